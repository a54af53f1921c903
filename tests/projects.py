"""A copy of what `make study` needs, for tests that start it as a user does: real Makefile, Snakefile and tools."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).parents[1]
COPIED = ("Makefile", "Snakefile", "environment.yml", "tools", "profiles", "lib/pyproject.toml")


def copy_project(folder, study, notebooks=()):
    """The project in `folder`, whose environment is the one the tests run in → the variables its commands need.

    study      what study.yaml says
    notebooks  name → the cells of a notebook of ours in the place of the real one
    """
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    (folder / ".venv/.stamp").touch()
    (folder / "notebooks").mkdir()
    for name, cells in ({"report": ['study = "study.yaml"']} | dict(notebooks)).items():
        write_notebook(folder / f"notebooks/{name}.ipynb", cells)
    strange = ("MAKE", "MFLAGS", "SPARSERNN_", "STUDY", "WORKERS", "PROFILE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    paths = {"PYTHONPATH": str(ROOT / "lib"), "SPARSERNN_ROOT": str(folder), "PATH": f"{programs}:{os.environ['PATH']}"}
    return kept | paths | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def write_notebook(path, cells):
    """A notebook of code cells, the first one of its parameters."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
