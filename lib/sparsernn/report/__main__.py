"""`make publish`: what the runs found goes into results/ and figures/, which are tracked.

python -m sparsernn.report [study.yaml]: the runs and the profile of that study.
"""

import sys

from ..files import project_root
from ..study.asked import read_study
from .publish import publish

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "study.yaml"
    try:
        study = read_study(project_root() / name)
    except (OSError, ValueError) as problem:
        sys.exit(f"make publish: {problem}")
    for path in publish(study["profile"], study=study):
        sys.stdout.write(f"{path}\n")
