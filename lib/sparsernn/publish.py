"""`make publish`: what the runs found goes into results/ and figures/, which are tracked."""

import sys

import yaml

from .files import project_root
from .report import publish

if __name__ == "__main__":
    profile = yaml.safe_load((project_root() / "study.yaml").read_text())["profile"]
    for path in publish(profile):
        sys.stdout.write(f"{path}\n")
