"""What was asked of the C engine: contests compute what they should, and a row says whether its goal is met."""

import pytest
import torch

from sparsernn import records
from sparsernn.bench import contests, goals
from sparsernn.report import speeds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small(monkeypatch):
    shapes = {"HIDDEN": 64, "STEPS": 3, "TIMES": 2, "LEFT": (9, 7), "WORDS": 50, "WINDOW": 4, "MANY": 11}
    for name, value in shapes.items():
        monkeypatch.setattr(contests, name, value)


def test_every_contest_has_what_its_goals_ask_for_and_every_engine_is_right(small, monkeypatch):
    monkeypatch.setattr(contests.language_models, "__defaults__", (20,))
    monkeypatch.setattr(contests.own_layer, "__defaults__", (64,))
    for contest in goals.CONTESTS:
        torch.manual_seed(0)
        found = contest.run(0.01)
        assert all(
            wrong <= (0.2 if "int8" in name else 0.02 if "bf16" in name else 1e-5) for name, (_, wrong) in found.items()
        )
        assert all(ms > 0 for name, (ms, _) in found.items() if name != "in C")
        assert len(list(goals.rows_of(contest, found))) == len(contest.goals) > 0


def test_what_is_timed_of_a_layer_goes_on_from_the_state_before(small, monkeypatch):
    calls = {}

    def least(made, errors, seconds):
        calls.update(made)
        return {}

    monkeypatch.setattr(contests, "least", least)
    contests.layers(0.3, 0.01)
    for call in calls.values():
        first, second = call(), call()
        assert not torch.allclose(first, second, atol=1e-3), "from zeros both would be the same"


TIMES = {"ours": 1.0, "dense-fp32": 9.0, "dense-int8": 2.5, "large": 30.0, "a call": 0.004, "in C": 0.0005}
ASKED = (
    goals.Times("ours", "the fastest dense", ("dense-fp32", "dense-int8"), 2.0),
    goals.Times("ours", "a large one", ("large",)),
    goals.Beyond("a call", "C", ("in C",), 3.0),
)


def contest(**others):
    """One whose milliseconds are given."""
    times = TIMES | {name.replace("_", "-"): ms for name, ms in others.items()}
    return goals.Contest("one", "a thing", lambda seconds: {name: (ms, 1e-7) for name, ms in times.items()}, ASKED)


def rows(made):
    return list(goals.rows_of(made, made.run(0)))


def test_a_row_says_the_ratio_to_the_fastest_opponent_and_whether_its_goal_is_met():
    first, second, third = rows(contest())
    assert (first["opponent"], first["opponent_ms"], first["ratio"], first["met"]) == ("dense-int8", 2.5, 2.5, "yes")
    assert (second["ratio"], second["goal"], second["met"]) == (30, None, "")
    assert third["more_us"] == pytest.approx(3.5) and (third["goal"], third["met"]) == (3, "no")
    assert rows(contest(ours=2.0))[0]["met"] == "no"


def test_rows_are_tracked_and_the_next_run_of_the_device_takes_their_place(tmp_path, monkeypatch, capsys):
    table = tmp_path / "goals-cpu.csv"
    for made in (contest(), contest(ours=2.0, dense_fp32=2.2)):
        monkeypatch.setattr(goals, "CONTESTS", (made,))
        goals.main(["--out", str(table)])
    kept = records.read_goals(table)
    assert len(kept) == 3 and set(kept["device"]) == {records.device_name("cpu")} and set(kept["threads"]) == {1}
    (row,) = kept[kept["against"] == "the fastest dense"].to_dict("records")
    assert (row["opponent"], row["met"], row["torch"]) == ("dense-fp32", "no", torch.__version__)
    assert all(row[name] for name in ("numba", "compiler")) and kept["error"].notna().all()
    assert "  ours and the fastest dense (dense-fp32): 1.10×, goal 2: no" in capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit):
        goals.main(["--only", "two", "--out", str(table)])


def test_the_table_says_what_was_asked_what_was_found_and_whether_it_is_met(tmp_path):
    records.upsert_goals([goals.where() | row for row in rows(contest())], tmp_path / "goals-cpu.csv")
    table = speeds.goals_of(records.read_goals(tmp_path / "goals-cpu.csv")).set_index("against")
    assert table.loc["the fastest dense (dense-int8)"].to_dict() == {
        "measured": "a thing", "ours": "ours", "ms": "1 / 2.5", "found": "2.5×", "asked for": "≥ 2×", "met": "yes"
    }  # fmt: skip
    assert table.loc["a large one", ["found", "asked for", "met"]].tolist() == ["30×", "–", "–"]
    assert table.loc["C", ["found", "asked for", "met"]].tolist() == ["3.5 µs more", "≤ 3 µs more", "no"]


def test_before_anything_was_measured_the_table_is_empty(tmp_path):
    assert speeds.goals_of(records.read_goals(tmp_path / "goals-cpu.csv")).empty
