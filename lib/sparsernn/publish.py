"""`make publish`: what the runs found goes into results/ and figures/, which are tracked."""

import sys

import yaml

from .files import project_root
from .report import publish

if __name__ == "__main__":
    study = yaml.safe_load((project_root() / "study.yaml").read_text())
    for path in publish(study["profile"], study=study):
        sys.stdout.write(f"{path}\n")
