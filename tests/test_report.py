"""What is published: rows, tables, small models and figures, from finished runs alone."""

import json
import shutil

import pandas as pd
import pytest
import tiny
import torch

from sparsernn import records, tasks
from sparsernn.report import publish as report
from sparsernn.report.tables import gate_table, save, score_table, threshold_table
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


def test_a_map_in_one_colour_and_a_trace_of_few_gates_of_many_are_not_drawn(published, tmp_path):
    shutil.copytree(published[0] / "results", tmp_path / "results")
    (folder,) = (tmp_path / "results" / "runs").glob("tiny-topic/*/sparse-vd-wgn/quick-s0")
    trace = pd.DataFrame({"step": [0, 1], "word": ["a", "b"], "neuron": 0, "gate": "i", "value": [0.1, 0.9]})

    def drawn(of):
        trace.assign(of=of).to_csv(folder / "trace.csv", index=False)
        return {path.name for path in report.draw("quick", tmp_path / "results", tmp_path)}

    stem = "tiny-topic-sparse-vd-wgn"
    assert {f"{stem}-gates.png", f"{stem}-gate-counts.png", f"{stem}-trace.png"} <= drawn(of=2)
    gates = records.read_table(folder / "gates.csv")
    gates.assign(state="live").to_csv(folder / "gates.csv", index=False)
    assert not {f"{stem}-gates.png", f"{stem}-gate-counts.png", f"{stem}-trace.png"} & drawn(of=3)


def test_an_empty_table_takes_no_types_from_a_full_one(tmp_path):
    for task, numbers in (("words", "word,value\nfine,0.5\n"), ("characters", "word,value\n")):
        folder = tmp_path / "runs" / task / "m" / "dense" / "quick-s0"
        folder.mkdir(parents=True)
        (folder / "numbers.csv").write_text(numbers)
        keys = {"task": task, "model": "m", "method": "dense", "variant": "", "seed": 0}
        (folder / "record.json").write_text(json.dumps(keys))
    found = report.tracked_tables("quick", "numbers.csv", tmp_path)
    assert found["value"].dtype == float and found["task"].tolist() == ["words"]


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
