"""`make study` as a user meets it: killed, started twice, in folders with strange names, with a study file of their own."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from projects import ROOT, copy_project

from sparsernn import records
from sparsernn.study.asked import read_study, study_configs

STUDY = {"profile": "quick", "takes": "no time", "seeds": [0], "tasks": {"pydocs-topic": ["dense", "gradual"]}}
WAITS = """
rule all:
    input: "runs/done"
rule waits:
    output: "runs/done"
    shell: "touch runs/begun; while [ ! -e go ]; do sleep 0.1; done; touch {output}"
"""
# In the place of tools/kernels.py: writes the notebook it was to run, and the record of a run.
NOTEBOOKS = """
import sys
from pathlib import Path
out = Path(sys.argv[2])
out.write_text(" ".join(sys.argv[1:]))
if out.name == "train.ipynb" and not out.with_name("record.json").exists():
    out.with_name("record.json").write_text(str(out.stat().st_mtime_ns))
if out.name == "gates.ipynb" and Path("broken").exists():
    sys.exit("no drawing")
"""


def make(project, environment, *words, seconds=120):
    """`make study` to its end → (exit code, all it said)."""
    run = subprocess.run(
        ["make", "study", *words], cwd=project, env=environment, capture_output=True, text=True, timeout=seconds
    )
    return run.returncode, run.stdout + run.stderr


@contextmanager
def started(project, environment):
    """`make study` once its first job runs → (make, the process that is snakemake)."""
    with subprocess.Popen(["make", "study"], cwd=project, env=environment, start_new_session=True) as study:
        try:
            until((project / "runs/begun").exists)
            (snakemake,) = [
                child for child in psutil.Process(study.pid).children(recursive=True) if is_snakemake(child)
            ]
            yield study, snakemake
        finally:
            with suppress(ProcessLookupError):
                os.killpg(study.pid, signal.SIGKILL)


def is_snakemake(process):
    """Not a short-lived helper of make's or its, which may be gone by the time it is asked."""
    with suppress(psutil.NoSuchProcess):  # a zombie too
        return "tools/study.py" in process.cmdline() and "python" in process.name()
    return False


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture
def waiting(tmp_path):
    """A project whose study is one job that goes on until there is a file `go`."""
    environment = copy_project(tmp_path, STUDY)
    (tmp_path / "Snakefile").write_text(WAITS)
    return tmp_path, environment


def test_a_study_can_be_started_after_its_snakemake_was_killed(waiting):
    project, environment = waiting
    with started(project, environment) as (study, snakemake):
        snakemake.kill()
        study.wait()
        (project / "go").touch()
        code, said = make(project, environment)
    assert code == 0 and "LockException" not in said, said
    assert (project / "runs/done").exists() and not (project / "runs/.study.lock").exists()


def test_a_study_is_not_started_twice_though_its_make_was_killed(waiting):
    project, environment = waiting
    with started(project, environment) as (study, snakemake):
        shells = set(psutil.Process(study.pid).children(recursive=True)) & set(snakemake.parents())
        for process in [psutil.Process(study.pid), *shells]:
            process.kill()
        study.wait()
        code, said = make(project, environment)
        assert code != 0 and re.search(
            rf"another one is writing .*runs: process {snakemake.pid} on {os.uname().nodename}; wait for it", said
        ), said
        assert snakemake.is_running()
        (project / "go").touch()
        snakemake.wait(60)
    code, said = make(project, environment)
    assert code == 0 and "Nothing to be done" in said, said


def test_a_folder_with_spaces_and_a_path_with_commands_in_it_work_and_are_not_executed(tmp_path):
    project = tmp_path / "a folder $(touch hacked) it's"
    environment = copy_project(project, STUDY)
    (project / "tools/kernels.py").write_text(NOTEBOOKS)
    shutil.move(project / "study.yaml", project / "my `touch hacked` study.yaml")
    runs = "r uns $(touch hacked) 'x\" ;touch hacked;"
    code, said = make(project, environment | {"SPARSERNN_RUNS": runs}, "STUDY=my `touch hacked` study.yaml")
    assert code == 0, said
    assert list(tmp_path.rglob("hacked")) == []
    left = {str(path.relative_to(project / runs)) for path in (project / runs).rglob("*.json")}
    assert left == {f"pydocs-topic/lstm-64/{method}/quick-s0/record.json" for method in ("dense", "gradual")}
    for path in (project / runs).glob("*/*/*/*/gates.ipynb"):
        assert f"-r method {path.parts[-3]} " in path.read_text() + " "
        assert re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z on \S+", (path.parent / "run.log").read_text())
    assert "train_prune_gates_1" in (project / runs / "provenance.html").read_text()


def test_a_drawing_that_fails_costs_no_record_and_is_drawn_the_next_time(tmp_path):
    environment = copy_project(tmp_path, STUDY | {"tasks": {"pydocs-topic": ["dense"]}})
    (tmp_path / "tools/kernels.py").write_text(NOTEBOOKS)
    (tmp_path / "broken").touch()
    code, said = make(tmp_path, environment)
    record = tmp_path / "runs/pydocs-topic/lstm-64/dense/quick-s0/record.json"
    assert code != 0 and "no drawing" in said and record.exists(), said
    before = record.read_text()
    (tmp_path / "broken").unlink()
    code, said = make(tmp_path, environment)
    assert code == 0 and "Nothing to be done" not in said and record.read_text() == before, said
    assert "Nothing to be done" in make(tmp_path, environment)[1]


def test_a_path_with_braces_is_refused_in_words(tmp_path):
    environment = copy_project(tmp_path, STUDY) | {"SPARSERNN_RUNS": "r{seed}"}
    code, said = make(tmp_path, environment)
    assert code != 0 and "snakemake would fill in what stands in braces" in said and "Traceback" not in said


def test_a_malformed_study_stops_before_anything_starts(tmp_path):
    wrong = STUDY | {"tasks": {"pydocs-topic": ["dense", {"gradul": {"density": 0.1}}]}}
    environment = copy_project(tmp_path, wrong)
    code, said = make(tmp_path, environment)
    assert code != 0 and "Traceback" not in said
    assert "study.yaml: pydocs-topic, gradul: unknown method 'gradul'; did you mean 'gradual'?" in said
    assert not (tmp_path / "runs").exists() and not (tmp_path / ".snakemake").exists()
    code, said = make(tmp_path, environment, "STUDY=mine.yaml")
    assert code != 0 and "mine.yaml" in said and "No such file" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profile": "quik"}, "unknown profile 'quik'; did you mean 'quick'"),
        ({"seeds": 0}, "seeds is 0; it must be a list"),
        ({"seeds": []}, "tasks and seeds name no run"),
        ({"seeds": ["a"]}, "pydocs-topic, dense: seed is 'a'"),
        ({"tasks": None}, "tasks is None; it must be entries"),
        ({"tasks": {"pydocs-topics": ["dense"]}}, "tasks: unknown task 'pydocs-topics'; did you mean 'pydocs-topic'"),
        ({"tasks": {"pydocs-topic": "dense"}}, "tasks, pydocs-topic is 'dense'; it must be a list"),
        ({"tasks": {"pydocs-topic": [3]}}, "pydocs-topic, entry 1 is 3; write `- method`"),
        ({"tasks": {"pydocs-topic": [{"dense": None}]}}, "entry 1: dense is followed by None"),
        ({"tasks": {"pydocs-topic": [{"dense": {}, "hard": {}}]}}, "entry 1: dense, hard stand in one"),
        ({"tasks": {"pydocs-topic": [{"dense": {"profile": "paper"}}]}}, "dense names its profile again"),
        ({"tasks": {"pydocs-topic": [{"dense": {"epochs": "1e1"}}]}}, "pydocs-topic, dense: epochs is '1e1'"),
        ({"ngram": {}}, "unknown entry 'ngram'; did you mean 'ngrams'"),
        ({"ngrams": {"pydocs-char": [40]}}, "ngrams, pydocs-char: 40 is no order of 2 to 7"),
    ],
)
def test_what_is_wrong_in_a_study_is_named_with_its_file(tmp_path, changes, words):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes))
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(words)):
        read_study(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a study is entries"),
        ("- dense", "a study is entries"),
        ("profile: quick\nseeds: [0]", "the entry 'tasks' is missing"),
        ("profile: [quick", "is no YAML"),
        ("tasks:\n  imdb: [dense]\n  imdb: [linear]\nprofile: short\nseeds: [0]", "imdb stands there twice"),
    ],
)
def test_what_is_no_study_is_refused_with_its_file(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{words}"):
        read_study(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.yaml")), ids=lambda path: path.name)
def test_every_study_of_the_repository_can_be_read(path):
    assert study_configs(read_study(path))


def test_a_study_of_smoke_runs_is_a_study(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY | {"profile": "smoke"}))
    configs = study_configs(read_study(tmp_path / "mine.yaml"))
    assert [(one.method, one.profile) for one in configs] == [("dense", "smoke"), ("gradual", "smoke")]
    assert Path(configs[0].directory).name == "smoke-s0"


@pytest.mark.parametrize(("user", "starts"), [(0, False), (1000, True)])
def test_the_lab_stays_on_this_machine_and_refuses_root_in_words(tmp_path, user, starts):
    environment = copy_project(tmp_path, STUDY)
    for name, line in (("id", f"echo {user}"), ("jupyter", 'echo "$PWD: $@"')):
        program = tmp_path / ".venv/bin" / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    run = subprocess.run(["make", "lab"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    if starts:
        assert run.returncode == 0 and run.stdout.splitlines()[-1] == f"{tmp_path}/notebooks: lab --ip=127.0.0.1"
    else:
        assert run.returncode != 0 and "does not start as root" in run.stdout and "runuser -u NAME" in run.stdout
        assert "notebooks: lab" not in run.stdout


def test_where_the_runs_are_gone_only_those_without_a_tracked_row_are_made(tmp_path):
    environment = copy_project(tmp_path, STUDY | {"tasks": {"pydocs-topic": ["dense", "binary-dropout"]}})
    (tmp_path / "tools/kernels.py").write_text(NOTEBOOKS)
    (tmp_path / "results").mkdir(exist_ok=True)
    rows = [{"task": "pydocs-topic", "model": "lstm-64", "method": "dense", "profile": "quick", "seed": 0, "test": 0.5}]
    pd.DataFrame(rows, columns=records.FIELDS).to_csv(tmp_path / "results/quick.csv", index=False)
    code, said = make(tmp_path, environment, "OWED=1")
    made = [path.parts[-3] for path in (tmp_path / "runs").glob("*/*/*/*/record.json")]
    assert code == 0 and made == ["binary-dropout"], said
    rows.append(rows[0] | {"method": "binary-dropout"})
    pd.DataFrame(rows, columns=records.FIELDS).to_csv(tmp_path / "results/quick.csv", index=False)
    code, said = make(tmp_path, environment, "OWED=1")
    assert code == 0 and "nothing is owed" in said, said
