"""What a run asks a cluster for comes from what was measured, and is never less."""

import json
import math

import pytest

from sparsernn import records
from sparsernn.study.config import RunConfig
from sparsernn.study.forecast import Forecast


@pytest.fixture(autouse=True)
def tiny_tasks(as_it_was):
    pass


def row(method="dense", seconds=120.0, epochs=2, size=4 << 20, **more):
    key = {"task": "tiny-topic", "model": "lstm-8", "variant": "", "profile": "quick", "seed": 0}
    said = {"metric": "accuracy", "valid": 0.5, "test": 0.5, "data_sha256": "made up"}
    return key | said | {"method": method, "train_seconds": seconds, "epochs": epochs, "size_bytes_dense": size} | more


def test_minutes_are_three_times_the_longest_measured_epoch_and_ten_to_start():
    forecast = Forecast([row(), row(seconds=60.0), row("l0", seconds=9000.0)], {})
    assert forecast.minutes(RunConfig("tiny-topic", method="dense", profile="quick", epochs=5)) == 10 + 3 * 5
    assert forecast.minutes(RunConfig("tiny-topic", method="l0", profile="quick", epochs=1)) == 10 + 3 * 75


def test_a_method_that_was_never_measured_asks_for_what_the_slowest_other_took():
    forecast = Forecast([row(), row("l0", seconds=240.0)], {})
    assert forecast.minutes(RunConfig("tiny-topic", method="gradual", profile="quick", epochs=4)) == 10 + 3 * 2 * 4


def test_a_method_that_trained_no_epoch_tells_nothing_of_one_that_does():
    forecast = Forecast([row(seconds=240.0), row("one-shot", epochs=0)], {})
    assert forecast.minutes(RunConfig("tiny-topic", method="one-shot", profile="quick", epochs=4)) == 10 + 3 * 2 * 4


def test_what_was_never_measured_asks_for_four_hours():
    rows = [row(model="lstm-9"), row(epochs=math.nan), row(task="tiny-char")]
    assert Forecast(rows, {}).minutes(RunConfig("tiny-topic", method="dense", profile="quick")) == 240


def test_memory_is_half_more_than_was_measured_or_counted_from_the_parameters():
    config = RunConfig("tiny-topic", method="dense", profile="quick")
    assert Forecast([row()], {("tiny-topic", "lstm-8"): 1001.0}).memory_mb(config) == 1502
    assert Forecast([row()], {}).memory_mb(config) == 2500 + 64  # 2²⁰ parameters
    assert Forecast([], {}).memory_mb(config) == 8000


def test_tracked_rows_and_finished_runs_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    config = RunConfig("tiny-topic", method="dense", profile="quick", epochs=4)
    records.upsert([row(seconds=600.0)], tmp_path / "results/quick.csv")
    (tmp_path / "results/noise.csv").write_text("what,else\n1,2\n")
    assert Forecast.gather().minutes(config) == 10 + 3 * 5 * 4
    config.directory.mkdir(parents=True)
    (config.directory / "record.json").write_text(json.dumps(row(seconds=1200.0)))
    (config.directory / "benchmark.tsv").write_text("s\tmax_rss\n5.1\t2000.5\n3.0\t-\n")
    forecast = Forecast.gather()
    assert forecast.minutes(config) == 10 + 3 * 10 * 4 and forecast.memory_mb(config) == 3001


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "{}", '{"task": "tiny-topic"}'])
def test_a_damaged_record_is_nothing_to_measure_by_and_does_not_stop_a_study(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    config = RunConfig("tiny-topic", method="dense", profile="quick", epochs=4)
    config.directory.mkdir(parents=True)
    (config.directory / "record.json").write_text(text)
    assert Forecast.gather().minutes(config) == 240


def test_the_figures_of_this_repository_cover_what_its_runs_took():
    forecast = Forecast.gather()
    for one in forecast.rows:
        if one["epochs"] == one["epochs"]:  # NaN where n-grams were counted
            given = {"task": one["task"], "model": one["model"], "method": one["method"], "profile": one["profile"]}
            config = RunConfig(**given, epochs=int(one["epochs"]))
            assert 60 * forecast.minutes(config) > one["train_seconds"]
