"""What is published: rows, tables, small models and figures, from finished runs alone."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from sparsernn import records, sparsify, tasks
from sparsernn.report import page
from sparsernn.report import publish as report
from sparsernn.report.tables import gate_table, save, score_table, threshold_table, tidy_metrics
from sparsernn.study.config import RunConfig
from sparsernn.study.opponents import count_back_off
from sparsernn.study.presets import PRESETS
from sparsernn.study.runs import ensure
from sparsernn.tasks.base import WordTask


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two tasks run and published once; slow parts are shared by the tests here (some ten seconds)."""
    root, patch = tmp_path_factory.mktemp("study"), pytest.MonkeyPatch()
    patch.setenv("SPARSERNN_RUNS", str(root / "runs"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny.register()
    for task, method in [("tiny-topic", "linear"), ("tiny-topic", "sparse-vd-wgn"), ("tiny-char", "dense")]:
        run = ensure(RunConfig(task=task, method=method, profile="quick"))
        save(run, thresholds=threshold_table(run), scores=score_table(run), gates=gate_table(run))
    count_back_off("tiny-char", "quick", 3)
    written = report.publish("quick", root / "results", root / "figures")
    yield root, written
    torch.set_num_threads(threads)
    patch.undo()


def test_every_finished_run_has_one_row(published):
    table = records.read(published[0] / "results" / "quick.csv")
    assert sorted(zip(table["task"], table["method"], strict=True)) == [
        ("tiny-char", "back-off"), ("tiny-char", "dense"), ("tiny-topic", "linear"), ("tiny-topic", "sparse-vd-wgn"),
    ]  # fmt: skip
    assert not records.duplicates(table)


def test_publishing_again_changes_no_row_and_keeps_rows_made_elsewhere(published):
    root = published[0]
    path = root / "results" / "quick.csv"
    elsewhere = {
        "task": "tiny-topic",
        "model": "lstm-8",
        "method": "dense",
        "profile": "quick",
        "seed": 7,
        "metric": "accuracy",
    }
    records.upsert([elsewhere | {"test": 0.5, "compression": 1.0}], path)
    before = path.read_bytes()
    report.publish("quick", root / "results", root / "figures")
    assert path.read_bytes() == before


def test_a_run_stopped_on_validation_stays_in_the_table_without_a_test_figure(published):
    root = published[0]

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(RunConfig(task="tiny-topic", method="sparse-vd-w", profile="quick", lr=0.02), stop)
    report.publish("quick", root / "results", root / "figures")
    table = records.read(root / "results" / "quick.csv")
    row = table[table["method"] == "sparse-vd-w"].iloc[0]
    assert (row["variant"], row["epochs"], row["metric"]) == ("lr=0.02", 3, "accuracy") and pd.isna(row["test"])
    assert row["valid"] > 0 and row["weights_total"] == 40 * 6 + 4 * 8 * (6 + 8) + 3 * 8
    metrics = root / "runs" / records.run_key(row) / "metrics.csv"
    nothing = pd.read_csv(metrics, dtype={"gates_live": str}).assign(weights_kept=0, compression=float("inf"))
    before = metrics.read_bytes()
    nothing.to_csv(metrics, index=False)
    assert "weights_total" not in report.stopped("quick")[0]
    metrics.write_bytes(before)
    ensure(RunConfig(task="tiny-topic", method="sparse-vd-w", profile="quick", lr=0.02))
    report.publish("quick", root / "results", root / "figures")
    table = records.read(root / "results" / "quick.csv")
    assert table[table["method"] == "sparse-vd-w"]["test"].notna().all() and not records.duplicates(table)


def test_a_large_model_that_is_tracked_stays_but_never_beside_the_record_of_another(published, tmp_path, monkeypatch):
    source = published[0] / "runs" / "tiny-topic" / "lstm-8" / "sparse-vd-wgn" / "quick-s0"
    report._copy(source, tmp_path, pytest.fail)
    tracked = tmp_path / "model.safetensors"
    monkeypatch.setattr(report, "LARGEST_MODEL", 10)
    report._copy(source, tmp_path, pytest.fail)
    assert tracked.read_bytes() == (source / "model.safetensors").read_bytes()
    tracked.write_bytes(b"of other weights")
    report._copy(source, tmp_path, pytest.fail)
    assert not tracked.exists() and (tmp_path / "record.json").exists()


def test_a_net_of_another_size_counts_against_the_one_it_stands_for(published, tmp_path, monkeypatch):
    """Its own dense net is not what the others count against: at no threshold, and in no row of a run that was stopped."""
    smaller = replace(PRESETS["tiny-topic"]["lstm-8"], shape={"embedding": 6, "hidden": 4}, equivalent="lstm-8")
    monkeypatch.setitem(PRESETS["tiny-topic"], "lstm-4", smaller)
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path))

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    config = RunConfig(task="tiny-topic", model="lstm-4", method="sparse-vd-w", profile="quick")
    with pytest.raises(KeyboardInterrupt):
        ensure(config, stop)
    (row,) = report.stopped("quick")
    assert row["compression"] is None and "weights_total" not in row and row["weights_kept"] > 0
    run = ensure(config)
    total = 40 * 6 + 4 * 8 * (6 + 8) + 3 * 8
    assert run.record["weights_total"] == total
    kept = run.threshold_curve([0.0, 3.0])
    assert kept["compression"].tolist() == [total / count for count in kept["weights_kept"]]


def test_an_unfinished_run_of_a_method_registered_elsewhere_stops_nobody(published, tmp_path):
    place = tmp_path / "tiny-topic" / "lstm-8" / "mine" / "quick-s0"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"task": "tiny-topic", "method": "mine", "profile": "quick"}))
    (place / "metrics.csv").write_text("epoch,valid\n1,0.5\n")
    assert report.stopped("quick", tmp_path) == []


def test_figures_are_drawn_from_tracked_tables_alone(published, tmp_path, monkeypatch):
    root, written = published
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "no runs here"))
    again = report.draw("quick", root / "results", tmp_path)
    assert sorted(path.name for path in again) == sorted(path.name for path in written)
    assert {"tiny-topic-front.png", "tiny-topic-sparse-vd-wgn-gates.png", "tiny-char-training.png"} <= {
        p.name for p in again
    }


def test_a_map_without_constants_and_a_trace_of_few_gates_of_many_are_not_drawn(published, tmp_path):
    shutil.copytree(published[0] / "results", tmp_path / "results")
    (folder,) = (tmp_path / "results" / "runs").glob("tiny-topic/*/sparse-vd-wgn/quick-s0")
    trace = pd.DataFrame({"step": [0, 1], "word": ["a", "b"], "neuron": 0, "gate": "i", "value": [0.1, 0.9]})

    def drawn(of):
        trace.assign(of=of).to_csv(folder / "trace.csv", index=False)
        return {path.name for path in report.draw("quick", tmp_path / "results", tmp_path)}

    stem = "tiny-topic-sparse-vd-wgn"
    both = {f"{stem}-gates.png", f"{stem}-trace.png"}
    assert both <= drawn(of=2)
    gates = records.read_table(folder / "gates.csv")
    gates.assign(state="live").to_csv(folder / "gates.csv", index=False)
    assert not both & drawn(of=3)
    assert not both & {path.name for path in tmp_path.glob("*.png")}, "nor are those of before left"


def test_a_table_drawn_of_a_method_is_of_its_best_plan_on_validation_and_the_first_seed_with_a_row_in_it(tmp_path):
    given = [  # method, variant, seed, bits on validation, a row of its table
        ("dense", "", 2, 1.0, "two,2.0"),
        ("dense", "", 0, 1.4, ""),
        ("dense", "", 1, 1.6, "None,1.0"),
        ("dense", "epochs=9", 0, 1.7, "worse,1.0"),
        ("gradual", "", 0, 1.9, "early,1.0"),
        ("gradual", "epochs=9", 0, 1.5, "to its end,1.0"),
        ("gradual", "density=0.5,epochs=9", 0, 1.2, "a density that another has,1.0"),
        ("blocks", "epochs=8", 0, float("nan"), "no number,1.0"),
        ("blocks", "epochs=9", 0, 1.5, "a number,1.0"),
        ("hard", "", 0, 1.0, ""),
    ]
    rows = []
    for method, variant, seed, valid, numbers in given:
        row = {
            "task": "tiny-char",
            "model": "lstm-8",
            "method": method,
            "variant": variant,
            "profile": "quick",
            "seed": seed,
        }
        folder = tmp_path / "runs" / records.run_key(row)
        folder.mkdir(parents=True)
        (folder / "numbers.csv").write_text(f"word,value\n{numbers}\n".replace("\n\n", "\n"))
        rows.append(row | {"metric": "bits_per_char", "valid": valid})
    found = dict(report.per_method("quick", pd.DataFrame(rows), "numbers.csv", tmp_path))
    assert found.keys() == {"dense", "gradual", "blocks"}
    assert found["blocks"]["word"].tolist() == ["a number"]
    assert found["dense"]["word"].tolist() == ["None"] and found["dense"]["seed"].tolist() == [1]
    assert found["gradual"]["word"].tolist() == ["to its end"]


def test_a_counted_opponent_is_recorded_with_its_counts(published):
    row = records.read(published[0] / "results" / "quick.csv").set_index("method").loc["back-off"]
    assert (
        row["model"] == "3-gram" and 0 < row["test"] < 3.6 and row["weights_kept"] > 12 and pd.isna(row["compression"])
    )


def test_counted_words_are_recorded_by_their_perplexity(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path))
    text = tiny.char("quick")
    words = WordTask("tiny-word", text.splits, text.vocabulary, data_note="made up")
    monkeypatch.setitem(tasks.TASKS, "tiny-word", lambda profile: words)
    in_bits, in_words = (count_back_off(task, "quick", 3) for task in ("tiny-char", "tiny-word"))
    assert (in_bits["metric"], in_words["metric"]) == ("bits_per_char", "perplexity")
    assert [in_words[split] for split in ("valid", "test")] == pytest.approx(
        [2 ** in_bits[s] for s in ("valid", "test")]
    )


def test_an_order_nobody_counts_is_refused():
    with pytest.raises(ValueError, match="order is 1; n-grams of order 2 to 7"):
        count_back_off("tiny-char", "quick", 1)


def test_publishing_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make study first"):
        report.publish("quick", tmp_path / "results", tmp_path / "figures")


def test_runs_without_a_record_are_named(published):
    study = {
        "profile": "quick",
        "seeds": [0],
        "tasks": {"tiny-topic": ["linear", "dense", {"sparse-vd-wgn": {"kl_weight": 2}}]},
    }
    rows = report.finished("quick")
    assert report.missing(study, rows) == [
        "tiny-topic/lstm-8/dense/quick-s0",
        "tiny-topic/lstm-8/sparse-vd-wgn/quick-s0-kl_weight=2",
    ]


def test_a_misspelt_override_in_the_study_is_refused(published):
    study = {"profile": "quick", "seeds": [0], "tasks": {"tiny-topic": [{"dense": {"epoch": 2}}]}}
    with pytest.raises(ValueError, match="'epoch'; did you mean 'epochs'"):
        report.missing(study, [])


def test_a_task_of_which_only_counts_are_finished_has_a_front_and_no_curves(published, tmp_path):
    rows = records.read(published[0] / "results" / "quick.csv")
    rows[rows["method"] == "back-off"].to_csv(tmp_path / "quick.csv", index=False)
    assert [path.name for path in report.draw("quick", tmp_path, tmp_path)] == ["tiny-char-front.png"]


def test_a_task_of_which_nothing_is_finished_has_no_figure_yet(published, tmp_path):
    rows = records.read(published[0] / "results" / "quick.csv")
    rows = rows[rows["method"] == "back-off"]
    pd.concat([rows, rows.assign(task="tiny-topic", test=None)]).to_csv(tmp_path / "quick.csv", index=False)
    assert [path.name for path in report.draw("quick", tmp_path, tmp_path)] == ["tiny-char-front.png"]


def test_figures_of_another_network_than_a_tasks_default_do_not_replace_its_own(published, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny-char", PRESETS["tiny-char"] | {"lstm-9": PRESETS["tiny-char"]["lstm-8"]})
    rows = records.read(published[0] / "results" / "quick.csv")
    rows = rows[rows["task"] == "tiny-char"]
    rows.assign(model=rows["model"].replace("lstm-8", "lstm-9")).to_csv(tmp_path / "quick.csv", index=False)
    assert [path.name for path in report.draw("quick", tmp_path, tmp_path)] == ["tiny-char-lstm-9-front.png"]


# ---- what is damaged, and what is many


def several(root, methods=("dense", "hard"), seeds=3, variants=1):
    """Runs' records and metrics.csv, made up → the records."""
    made, rng = [], np.random.default_rng(0)
    names = ("task", "method", "variant", "seed")
    for given in itertools.product(("tiny-topic", "tiny-char"), methods, range(variants), range(seeds)):
        record = dict(zip(names, given, strict=True)) | {"model": "lstm-8", "profile": "quick"}
        record["variant"] = f"lr=0.{record['variant']}1" if record["variant"] else ""
        record |= {"metric": tasks.load(given[0], "quick").metric, "valid": rng.random(), "test": rng.random()}
        record |= {
            "weights_total": 1000,
            "weights_kept": int(rng.integers(1, 1000)),
            "epoch_selected": 2,
            "seed": given[-1],
        }
        record |= {"compression": 1000 / record["weights_kept"], "data_sha256": "made up"}
        record |= {"vocabulary_kept": 30, "input_kept": 8, "hidden_kept": "8", "gates_live": "32"}
        folder = root / records.run_key(record)
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(records.written(record))
        rows = "".join(f"{n},{rng.random()},{rng.random()},0.0,{10 * n},8\n" for n in (1, 2, 3))
        (folder / "metrics.csv").write_text("epoch,train_loss,valid,penalty,weights_kept,gates_live\n" + rows)
        made.append(record)
    return made


@pytest.fixture
def made_up(tmp_path, as_it_was):
    return tmp_path / "runs", several(tmp_path / "runs")


def publish(root):
    """As `python -m sparsernn.report` does → what is said of damaged files."""
    said = []
    report.publish("quick", root.parent / "results", root.parent / "figures", problem=said.append)
    return said


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"task": "x"}', "\0", "NaN", "[" * 10_000])
def test_one_bad_record_is_named_and_skipped_and_the_others_are_published(made_up, text):
    root, made = made_up
    bad = root / records.run_key(made[0]) / "record.json"
    bad.write_text(text)
    said = []
    assert len(report.finished("quick", problem=said.append)) == len(made) - 1
    assert len(said) == 1 and said[0].startswith(f"{bad}: ")
    with pytest.raises(ValueError, match=re.escape(str(bad))):
        report.finished("quick")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "../../../../x"},
        {"task": "tiny-char"},
        {"seed": 1},
        {"seed": 0.5},
        {"seed": "0"},
        {"variant": "/x"},
        {"model": ""},
        {"method": "."},
        {"test": float("nan")},
        {"test": "0.5"},
        {"valid": float("inf")},
        {"compression": True},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_that_lies_is_named_and_skipped(made_up, change):
    root, made = made_up
    bad = root / records.run_key(made[0]) / "record.json"
    bad.write_text(json.dumps(made[0] | change))
    said = []
    assert len(report.finished("quick", problem=said.append)) == len(made) - 1
    assert len(said) == 1 and said[0].startswith(f"{bad}: ")


def test_a_record_whose_names_lead_elsewhere_makes_nothing_there_and_stops_nobody(made_up):
    root, made = made_up
    bad = root / records.run_key(made[0]) / "record.json"
    bad.write_text(json.dumps(made[0] | {"task": "../../../../x"}))
    before = {*root.parent.rglob("*")}
    (line,) = publish(root)
    assert line.startswith(f"{bad}: task is '../../../../x'")
    assert len(records.read(root.parent / "results" / "quick.csv")) == len(made) - 1
    assert (root.parent / "figures" / "tiny-topic-front.png").exists()
    places = {path.relative_to(root.parent).parts[0] for path in {*root.parent.rglob("*")} - before}
    assert places == {"results", "figures"}


def test_what_is_damaged_is_told_by_the_exit_code(made_up, monkeypatch):
    root, made = made_up
    project = root.parent / "project"
    project.mkdir()
    (project / "study.yaml").write_text("profile: quick\nseeds: [0]\ntasks: {tiny-topic: [dense]}\n")
    bad = root / records.run_key(made[0]) / "record.json"
    bad.write_text("{")
    script = "import runpy, tiny; tiny.register(); runpy.run_module('sparsernn.report', run_name='__main__')"
    given = {"SPARSERNN_RUNS": str(root), "SPARSERNN_ROOT": str(project), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | given)
    assert done.returncode == 1 and str(bad) in done.stderr and "tiny-topic-front.png" in done.stdout
    bad.write_text(records.written(made[0]))
    assert subprocess.run([sys.executable, "-c", script], env=os.environ | given, capture_output=True).returncode == 0


def test_an_unknown_profile_is_refused_with_the_nearest(made_up):
    with pytest.raises(ValueError, match="unknown profile 'quik'; did you mean 'quick'"):
        report.finished("quik")


def test_curves_read_at_once_are_those_read_one_by_one(made_up):
    root, made = made_up
    results = root.parent / "results"
    publish(root)
    odd = results / "runs" / records.run_key(made[1]) / "metrics.csv"
    odd.write_text("epoch,C,valid,weights_kept\n1,0.5,0.25,\n2,1.0,0.5,7\n")
    rows = records.read(results / "quick.csv")
    rows = rows[rows["task"] == "tiny-topic"]
    frames = []
    for row in rows.to_dict("records"):
        table = pd.read_csv(results / "runs" / records.run_key(row) / "metrics.csv", dtype={"gates_live": str})
        frames.append(tidy_metrics(table, row))
    found = report._curves("quick", "tiny-topic", rows, results)
    pd.testing.assert_frame_equal(found, pd.concat(frames, ignore_index=True), check_like=True, check_dtype=False)


@pytest.mark.slow
def test_ten_thousand_records_are_gathered_reported_and_drawn_in_a_minute(tmp_path, as_it_was):
    """Ten methods, five plans, a hundred seeds, two tasks. On a machine with other work it takes as much longer."""
    made = several(tmp_path / "runs", list(sparsify.names())[:10], seeds=100, variants=5)
    start, processor = time.perf_counter(), time.process_time()
    rows = report.finished("quick")
    assert publish(tmp_path / "runs") == []
    tracked = records.read(tmp_path / "results" / "quick.csv")
    table = report.comparison(rows, tracked)
    assert page.write(tmp_path / "results").stat().st_size > 100_000
    spent = time.process_time() - processor
    print(f"{time.perf_counter() - start:.0f} s, {spent:.0f} s of the processor")  # pytest -rP shows it
    assert len(made) == len(tracked) == len(table) == 10_000 and set(table["verdict"]) == {"same to the last digit"}
    assert spent < 60
