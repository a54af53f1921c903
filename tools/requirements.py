"""Print the pip section of an environment.yml as requirement lines for this machine: `make env` without conda.

Usage: python tools/requirements.py [environment.yml]
"""

import re
import sys
from pathlib import Path

import yaml
from packaging.requirements import InvalidRequirement, Requirement


def pip_section(path):
    """Return the lines below `pip:` whose markers apply here; anything pip could not install is refused."""
    listed = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["dependencies"]
    for line in (entry for entry in listed if isinstance(entry, str)):
        name = re.match(r"(?:.*::)?([\w.-]*)", line)[1]
        if name not in ("python", "pip"):
            raise ValueError(
                f"{path}: {line!r} stands among conda's own dependencies, where `make` without conda cannot "
                f"install it; only python and pip may stand there. Move it below `- pip:`"
            )
    lines = [line for entry in listed if isinstance(entry, dict) for line in entry.get("pip", [])]
    return [line for line in lines if line.startswith("-") or applies(line, path)]


def applies(line, path):
    try:
        marker = Requirement(line).marker
    except InvalidRequirement as error:
        raise ValueError(f"{path}: {line!r} is no requirement pip can read: {error}") from None
    return marker is None or marker.evaluate()


if __name__ == "__main__":
    try:
        print("\n".join(pip_section(sys.argv[1] if len(sys.argv) > 1 else "environment.yml")))
    except ValueError as error:
        sys.exit(str(error))
