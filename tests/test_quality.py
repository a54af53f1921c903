"""What a test says through an engine: the recorded figure where nothing is rounded, and what int8 makes of it where it is."""

import math

import pandas as pd
import pytest
import torch

from sparsernn import records, tasks
from sparsernn.bench import quality
from sparsernn.report import plots, publish, timings
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

pytest.importorskip("sparsernn.engines.c.layers", exc_type=ImportError, reason="no C compiler here")


@pytest.fixture
def tracked(tmp_path, as_it_was, monkeypatch):
    """A project whose results hold two small nets."""
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    for task, batch in (("tiny-topic", {}), ("tiny-char", {"batch_size": 4})):
        ensure(RunConfig(task=task, method="dense", profile="quick", epochs=2, **batch))
    publish.publish("quick", tmp_path / "results", tmp_path / "figures")
    return tmp_path


def in_int8(weight):
    """Row by row whole multiples of the largest ÷ 127."""
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step.clamp(min=1e-30)).round() * step


def test_engines_of_full_precision_give_the_recorded_figure_and_int8_its_own(tracked, capsys):
    quality.main([])
    table = records.read_engines(tracked / "results/engines.csv")
    assert {(row.task, row.engine) for row in table.itertuples()} >= {
        (task, engine) for task in ("tiny-topic", "tiny-char") for engine in ("c-blocks", "c-int8")
    }
    exact = table[table["engine"] != "c-int8"]
    assert (exact["change"].abs() < 1e-6).all() and set(table["test"]) == set(exact["test"])
    change = table.loc[(table["engine"] == "c-int8") & (table["task"] == "tiny-char"), "change"].item()
    assert change != 0 and abs(change) < 0.1

    run = ensure(RunConfig(task="tiny-char", method="dense", profile="quick", epochs=2, batch_size=4))
    task, model = tasks.load("tiny-char", "quick"), run.model.eval()
    for weight in (model.lstm.weight_ih_l0, model.lstm.weight_hh_l0, model.head.weight):
        weight.data.copy_(in_int8(weight.data))
    total, state = 0.0, None
    for batch in task.batches("test", 4, run.config.plan.steps):
        with torch.no_grad():
            logits, state = model(*batch.inputs, state=state)
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="sum"
        ).item()
    through = table.loc[(table["engine"] == "c-int8") & (table["task"] == "tiny-char"), "through"].item()
    predicted = (len(task.splits["test"]["ids"]) - 1) // 4 * 4
    by_hand = total / math.log(2) / predicted
    assert through == pytest.approx(by_hand, abs=0.02)  # the engine rounds h as well


def test_what_is_there_is_not_taken_again_but_of_other_weights_it_is(tracked, capsys, monkeypatch):
    quality.main(["tiny-topic"])
    assert "tiny-topic" in capsys.readouterr().out
    before = (tracked / "results/engines.csv").read_bytes()
    quality.main(["tiny-topic"])
    assert capsys.readouterr().out == "" and (tracked / "results/engines.csv").read_bytes() == before
    monkeypatch.setattr(quality, "digest", lambda path: "another")
    quality.main(["tiny-topic"])
    table = records.read_engines(tracked / "results/engines.csv")
    assert set(table["file_sha256"]) == {"another"} and len(table) == len(table[["engine"]].drop_duplicates())


def test_a_net_too_large_to_be_tracked_is_read_where_it_was_trained(tracked, capsys):
    (path,) = tracked.glob("results/runs/tiny-topic/*/*/*/model.safetensors")
    path.unlink()
    quality.main(["tiny-topic/*/dense*"])
    assert "tiny-topic" in capsys.readouterr().out and "tiny-char" not in capsys.readouterr().out
    (record,) = tracked.glob("runs/tiny-topic/*/*/*/record.json")
    record.write_text(records.written(records.read_record(record) | {"test": 0.123}))
    (tracked / "results/engines.csv").unlink()
    quality.main([])
    assert set(records.read_engines(tracked / "results/engines.csv")["task"]) == {"tiny-char"}, (
        "another run of that name"
    )


def test_nets_made_from_other_data_are_left_out_by_name(tracked, capsys):
    (path,) = tracked.glob("results/runs/tiny-topic/*/*/*/record.json")
    path.write_text(records.written(records.read_record(path) | {"data_sha256": "another"}))
    quality.main(["tiny-topic"])
    assert "made from other data" in capsys.readouterr().out and not (tracked / "results/engines.csv").exists()


def test_the_figure_says_the_worst_and_counts_worse_upwards():
    rows = [("t", "accuracy", 0.8, -0.004), ("t", "accuracy", 0.8, 0.008), ("c", "bits_per_char", 2.0, 0.02)]
    table = pd.DataFrame(rows, columns=["task", "metric", "test", "change"]).assign(engine="c-int8")
    ax = plots.rounding_cost(table)
    drawn = sorted(
        round(float(y), 6)
        for line in ax.lines
        for y in line.get_ydata()
        if len(line.get_ydata()) and line.get_label() == "c-int8"
    )
    assert drawn == [-0.8, 0.4, 1.0] and "the worst loses 1.00 % of bits_per_char (c)" in ax.get_title(loc="left")
    assert "no test was taken" in plots.rounding_cost(table.assign(engine="numba")).texts[0].get_text()


def test_the_tracked_table_is_of_tracked_nets_as_they_are():
    table = timings.through_engines()
    assert len(table) > 50
    for row in table.to_dict("records"):
        path = quality.project_root() / "results/runs" / records.run_key(row) / "model.safetensors"
        assert not path.exists() or quality.digest(path) == row["file_sha256"]
        assert records.read_record(path.with_name("record.json"))["test"] == row["test"]
        assert row["through"] - row["test"] == pytest.approx(row["change"], abs=1e-12)
        assert row["engine"] == "c-int8" or abs(row["change"]) < 1e-7 * max(1, row["test"])
