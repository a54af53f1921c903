"""What a few minutes on a GPU are spent with, tried on a CPU with engines that fail (faulty/sitecustomize.py)."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from oracles import random_masks

from sparsernn import engines, records
from sparsernn.bench import launch, watch
from sparsernn.bench.training import PROFILES
from sparsernn.nets.compact import compact
from sparsernn.nets.file import save
from sparsernn.nets.models import Classifier

PROJECT = Path(__file__).resolve().parents[1]
FAULTY = Path(__file__).with_name("faulty")
QUICK = ("dense-fp32", "compact-torch", "compact-loop", "csr-torch")  # those that the tests do not leave out
SLOW = ",".join(name for name in engines.LAYERS | engines.PRODUCTS if name not in QUICK)
CASES = 10


def around(**more):
    """The environment with engines that fail in it, and few others."""
    path = os.pathsep.join((str(FAULTY), str(PROJECT / "lib")))
    return os.environ | {"PYTHONPATH": path, "SPARSERNN_WITHOUT": SLOW, "OMP_NUM_THREADS": "1"} | more


def launched(tmp_path, names, seconds):
    """What `launch` prints, and the rows it writes by engine, with these engines and compact-loop alone."""
    without = ",".join((SLOW, *(name for name in QUICK if name != "compact-loop")))
    environment = around(FAULTY=names, SPARSERNN_WITHOUT=without, FAULTY_CHILD=str(tmp_path / "child"))
    command = [sys.executable, "-m", "sparsernn.bench.launch", "--device", "cpu", "--seconds", str(seconds)]
    command += ["--out", str(tmp_path / "launch.csv")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    lines, rows = run.stdout.splitlines(), {}
    with open(tmp_path / "launch.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert tuple(row) == launch.FIELDS
            rows.setdefault(row["engine"], []).append(row)
    assert lines[-1].startswith(f"SPARSERNN_WITHOUT={without}"), "those left out before stay so"
    return lines, rows, lines[-1].removeprefix(f"SPARSERNN_WITHOUT={without}").strip(",").split(",")


def test_engines_that_fail_hurt_nobody_else_and_are_named(tmp_path):
    lines, rows, failed = launched(tmp_path, "right refuses wrong unsteady raises aborts", 200)
    assert sorted(failed) == ["aborts", "raises", "unsteady"]
    assert all(len(found) == CASES for found in rows.values()) and set(rows) >= {"right", "compact-loop"}
    assert f"torch {torch.__version__}" in lines
    for name in ("right", "compact-loop"):
        assert all(not row["said"] and float(row["error"]) < 1e-5 and float(row["seconds"]) > 0 for row in rows[name])
    assert all(
        row["failed"] == "False" and row["said"] == "does not run it: it runs nothing" for row in rows["refuses"]
    )
    assert all(row["said"] == "wrong: 1e-04 is allowed" and float(row["error"]) > 1e-3 for row in rows["wrong"])
    assert all(row["said"] == "unsteady: 3 answers differ by 2.0e-05" for row in rows["unsteady"])
    assert all(row["said"] == "RuntimeError: it does not compile" for row in rows["raises"])
    assert "    raises | RuntimeError: it does not compile" in lines, "and where, for whoever has to mend it"
    first, second, third, *_ = rows["aborts"]
    assert not first["said"] and second["said"].startswith("died of SIGABRT") and second["batch"] == "4"
    assert third["said"] == "not tried" and third["failed"] == "False"
    assert {(row["cell"], row["batch"], row["hidden"]) for row in rows["right"]} == {
        *((cell, batch, "48") for cell in ("lstm", "gru", "rnn") for batch in ("1", "4", "32")),
        ("lstm", "1", "256"),
    }


def test_an_engine_that_hangs_is_killed_with_what_it_started(tmp_path):
    _, rows, failed = launched(tmp_path, "hangs", 12)
    first, second, *_ = rows["hangs"]
    assert failed == ["hangs"] and first["said"].startswith("hangs: killed after 1")
    assert second["said"] == "not tried" and not rows["compact-loop"][-1]["said"]
    child = Path("/proc") / (tmp_path / "child").read_text() / "stat"
    for _ in range(50):
        if not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process that the engine started lives on")


def test_one_that_ends_by_itself_has_its_rows_and_no_more(tmp_path):
    class Ended:
        name, begin, out = "numba", time.monotonic(), tmp_path / "out"
        said = staticmethod(lambda: ["  the last line"])

    row = launch.blank("numba", launch.cases()[0]) | {"error": 0.0, "seconds": 1.0}
    Ended.out.write_text(f"a word of its own\n{launch.json.dumps(row)}\n{{cut")
    found = launch.Attempt.rows(Ended, 1)
    assert len(found) == CASES and found[0] == row
    assert found[1]["said"] == "ended with status 1: the last line" and found[1]["failed"] and not found[2]["failed"]
    Ended.out.write_text(f"{launch.json.dumps(row)}\n" * CASES)
    assert launch.Attempt.rows(Ended, 0) == [row] * CASES
    assert launch.Attempt.rows(Ended, -11)[-1]["said"] == "at its end, died of SIGSEGV: the last line"


@pytest.mark.parametrize("command", ["sparsernn.bench", "sparsernn.bench.launch"])
def test_an_engine_that_is_not_there_cannot_be_left_out(command):
    run = subprocess.run(
        [sys.executable, "-m", command, "--device", "cpu"],
        env=around(SPARSERNN_WITHOUT="numba,triton-tin"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "SPARSERNN_WITHOUT: unknown engine 'triton-tin'; did you mean 'triton-tiny'" in run.stderr


def test_a_gpu_is_described(monkeypatch, tmp_path):
    chip = {"name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Chip", (), chip))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho name, clocks\necho $1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    *_, where, header, asked = launch.machine("cuda")
    assert where == "NVIDIA H100, sm_90, 132 multiprocessors, 80 B"
    assert header == "name, clocks" and "clocks.sm" in asked


def test_engines_are_left_out_of_layers_and_products(monkeypatch):
    monkeypatch.setenv("SPARSERNN_WITHOUT", " csr-torch , dense-onednn,")
    for table in (engines.LAYERS, engines.PRODUCTS):
        assert not {"csr-torch", "dense-onednn"} & {*engines.available("cpu", table)}
        assert "dense-fp32" in engines.available("cpu", table)
    monkeypatch.delenv("SPARSERNN_WITHOUT")
    assert "csr-torch" in engines.available("cpu") and engines.left_out() == []


def test_an_engine_that_answers_in_time_does_not_end_the_process():
    with watch.within(0.05, pytest.fail)("numba"):
        pass
    time.sleep(0.2)


@pytest.fixture
def project(tmp_path):
    """A project with one trained network."""
    torch.manual_seed(0)
    model = Classifier(30, 4, embedding=6, hidden=8)
    run = tmp_path / "project" / "results" / "runs" / "task" / "lstm-8" / "wgn" / "quick-s0"
    run.mkdir(parents=True)
    (tmp_path / "project" / "environment.yml").touch()
    save(compact(model, random_masks(model, 1, 0.5), example=model.example(8, 2)), run / "model.safetensors")
    (run / "record.json").write_text('{"task": "task", "model": "lstm-8", "method": "wgn", "variant": "", "seed": 0}')
    return tmp_path / "project"


def quarter(half, folder, **more):
    environment = around(PYTHON=sys.executable, DEVICE="cpu", PROFILE="smoke", TRAIN_SECONDS="0.1", **more)
    environment |= {"TRAIN_TASKS": "pydocs-topic", "PYTHONPATH": str(FAULTY)}
    for name in ("LAUNCH", "LAYERS", "MODELS", "PRODUCTS", "TRAINING"):
        environment.setdefault(f"LIMIT_{name}", "100")
    command = ["bash", str(PROJECT / "tools" / "gpu_quarter.sh"), half, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, cwd=folder.parent)
    assert run.returncode == 0, run.stderr
    return {line.split(":")[0]: line for line in run.stdout.splitlines()}


def test_both_halves_leave_their_tables_and_leave_out_what_fails(tmp_path, project):
    folder = tmp_path / "out"
    more = {
        "FAULTY": "right raises faults stalls",
        "SPARSERNN_ROOT": str(project),
        "PATIENCE": "10",
        "LIMIT_TRAINING": "40",
    }
    steps = quarter("A", folder, **more)
    assert list(steps) == ["launch", "layers", "models"] and all("status 0" in line for line in steps.values())
    assert "begun 3 times" in steps["layers"] and "begun 1 times" in steps["models"], "once more for each of two faults"
    said = (folder / "layers.log").read_text()
    for name in ("faults", "stalls"):
        assert f"engine {name} left the GPU unusable; SPARSERNN_WITHOUT={SLOW},raises" in said
    assert "engine stalls has not answered for 10 s" in said
    assert (folder / "without.txt").read_text() == f"{SLOW},raises,faults,stalls\n"
    more["FAULTY"] += " wrong"
    steps = quarter("B", folder, **more | {"SPARSERNN_WITHOUT": "wrong"})
    assert list(steps) == ["products", "training"] and "status 0" in steps["products"], "launched before"
    assert f"from here on: wrong,{SLOW},raises,faults,stalls" in steps["products"]
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} >= {
        *(f"{name}.log" for name in ("steps", "launch", "layers", "models", "products", "training")),
        *("launch.csv", "timings.csv", "without.txt"),
    }
    table = records.read_timings(folder / "timings.csv")
    assert {"lstm", "gru", "lstm-8", "product"} == {*table["model"]} and len(
        (folder / "steps.log").read_text().split("\n")
    ) == 6
    own = table[table["opponent"] == "dense-fp32"]
    after = own[(own["model"] == "lstm") & ~own["pattern"].str.contains("heads")]  # which come first, before any fault
    assert {*after["engine"]} == {
        "dense-fp32",
        "compact-torch",
        "compact-loop",
        "csr-torch",
        "right",
        "choose",
    }
    if (folder / "training.csv").exists():  # it is given little time, and leaves what it has
        steps_of = records.read_timings(folder / "training.csv")
        assert "pydocs-topic" in {*steps_of["task"]} and "train-step" in {*steps_of["engine"]}
    assert (own["error"] < 1e-4).all() and (own["median_ms"] > 0).all()


def test_a_step_that_outlasts_its_limit_is_killed_and_the_next_one_begins(tmp_path, project):
    more = {"SPARSERNN_ROOT": str(project), "LIMIT_LAUNCH": "1", "LIMIT_TRAINING": "1"}
    steps = quarter("B", tmp_path / "out", **more)
    assert list(steps) == ["launch", "products", "training"] and "status 0" in steps["products"]
    assert not (tmp_path / "out" / "without.txt").exists(), "so that it is tried again"
    assert all("status 124" in steps[name] for name in ("launch", "training"))


@pytest.mark.parametrize("arguments", [[], ["A"], ["C", "out"], ["A", "out", "more"]])
def test_the_script_says_what_it_wants(tmp_path, arguments):
    script = PROJECT / "tools" / "gpu_quarter.sh"
    run = subprocess.run(["bash", str(script), *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and "A|B FOLDER" in run.stderr and not list(tmp_path.iterdir())


def test_the_tasks_that_the_script_trains_have_a_profile():
    assert {"ptb-word", "imdb", "ptb-char"} <= {*PROFILES}
