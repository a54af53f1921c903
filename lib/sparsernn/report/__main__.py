"""`make publish`: what the runs found goes into results/ and figures/, which are tracked.

python -m sparsernn.report [study.yaml]: the runs and the profile of that study.
"""

import sys

import yaml

from ..files import project_root
from .publish import publish

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "study.yaml"
    study = yaml.safe_load((project_root() / name).read_text())
    for path in publish(study["profile"], study=study):
        sys.stdout.write(f"{path}\n")
