"""`make study`: the runs of a study file by snakemake, its report of them, then the comparison with the tracked results.

Usage: python tools/study.py --study study.yaml --workers 2 [--profile profiles/slurm] [--owed]

The study file is checked before anything starts. One study writes a runs directory at a time: this process, which is snakemake's
own, holds a lease there (sparsernn.lease), so that a killed study leaves nothing to be lifted by hand, and a living one is
seen whatever became of the `make` that started it, also from another node. snakemake's own lock, which outlives its
process, is left out.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from sparsernn.files import project_root
from sparsernn.lease import held
from sparsernn.report.publish import owed
from sparsernn.study.asked import read_study
from sparsernn.study.config import runs_root

FAILED = "make study: some runs failed (see above); what finished is kept, and make study goes on from there"


def refuse(holder):
    sys.exit(f"make study: another one is writing {runs_root()}: {holder}; wait for it, or stop it with Ctrl-C there")


def graph(arguments):
    """snakemake with these arguments, in this process → its exit code."""
    from snakemake.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        return end.code or 0


def arguments_of(given):
    where = ["--profile", given.profile] if given.profile else ["--cores", given.workers]
    return [*where, "--nolock", "--keep-going", "--rerun-incomplete", *asked(given)]


def asked(given):
    return ["--config", f"study={given.study}", *["owed=1"] * given.owed]


def report(study):
    """The report notebook, and the comparison it writes → its exit code."""
    script = [
        sys.executable,
        Path(__file__).with_name("kernels.py"),
        "notebooks/report.ipynb",
        runs_root() / "report.ipynb",
    ]
    quiet = ["-k", "python3", "--no-progress-bar", "--log-level", "ERROR"]
    code = subprocess.run([*script, *quiet, "-r", "study", study]).returncode
    comparison = runs_root() / "comparison.txt"
    if code == 0 and comparison.exists():
        print("", comparison.read_text(), sep="\n", end="")
    return code


def provenance(given):
    """snakemake's own report: which rule made what from what, by which command, when and how long → its exit code."""
    path = runs_root() / "provenance.html"
    command = [sys.executable, "-m", "snakemake", "--nolock", *asked(given), "--report", path]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"how each run was made: {path}" if done.returncode == 0 else done.stderr[-2000:])
    return done.returncode


def make(given):
    try:
        study = read_study(project_root() / given.study)
    except (OSError, ValueError) as problem:
        sys.exit(f"make study: {problem}")
    if given.owed and not owed(study):
        return print(f"make study: {given.study}: nothing is owed, results/ has a row of every run")
    root = runs_root()
    if "{" in str(root) or "}" in str(root):
        sys.exit(
            f"make study: SPARSERNN_RUNS is {str(root)!r}; snakemake would fill in what stands in braces: name it otherwise"
        )
    root.mkdir(parents=True, exist_ok=True)
    with held(root / ".study.lock", refuse):
        print(
            f"make study: {given.study}, {study.get('takes', '')}; how far a run is: tail {root}/*/*/*/*/metrics.csv",
            flush=True,
        )
        code = graph(arguments_of(given))
        code = code or provenance(given)
        code = report(given.study) or code
        if code:
            print(FAILED)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="study.yaml")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--profile", default="")
    parser.add_argument("--owed", action="store_true", help="only the runs of which results/ has no row")
    sys.exit(make(parser.parse_args()))
