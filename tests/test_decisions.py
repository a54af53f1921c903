"""Answers come from rows by rules: chosen on validation, compared on test, never more certain than seeds and items allow."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from oracles import random_masks

from sparsernn import records
from sparsernn.nets.compact import compact
from sparsernn.nets.models import Classifier
from sparsernn.report import decisions, documents, inside, intervals, page, plots, publish, sections, timings, written
from sparsernn.report.tables import gate_table, save
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

NUMBER = re.compile(r"[+-]?\d+\.\d{3}")


def row(method, test, compression, valid=None, seed=0, metric="accuracy", **more):
    kept = 1000.0 / compression
    return {"task": "t", "model": "m", "method": method, "variant": "", "profile": "quick", "seed": seed, "metric": metric,
            "valid": test if valid is None else valid, "test": test, "compression": compression, "weights_kept": kept,
            "weights_total": 1000, "size_bytes": 6 * kept, "size_bytes_dense": 4000.0, "multiply_adds": kept - 9,
            "train_seconds": 10.0, "epochs": 3, "device": "cpu:x", "data_sha256": "abc", "data_note": ""} | more  # fmt: skip


def decided(*rows, items=10_000):
    return decisions.decide(decisions.configurations(pd.DataFrame(rows), {"abc": items})).set_index("asked")


def topics(method, *figures, model="lstm-64", **more):
    return row(method, *figures, **more, **{"task": "pydocs-topic", "model": model})


def test_each_opponent_has_its_p_value_held_to_their_number():
    """A net a point above four opponents of 10,000 items: one alone would be significant, four are not."""
    rows = [
        row("dense", 0.840, 1),
        row("dense", 0.840, 20, model="tiny"),
        row("few-words", 0.840, 30),
        row("linear", 0.840, 9),
    ]
    table = decisions.configurations(
        pd.DataFrame([*rows, topics("sparse-vd-w", 0.852, 12, valid=0.9)]), {"abc": 10_000}
    )
    alone = intervals.p_value([0.852], [0.840], 10_000)
    assert 0.0125 < alone < 0.05
    setting = sections.Setting("topics", "pydocs-topic", "lstm-64", "t", "quick", None, table)
    found = sections.opponents(setting)
    assert list(found["weights"]) == ["33", "50", "111", "1,000"], "smallest first"
    assert set(found["sparse-vd-w (0.852)"]) == {f"level, p = {4 * alone:.2g}"}


def test_the_first_sentences_say_which_method_and_whether_it_beats_something_small():
    rows = [
        topics("dense", 0.84, 1),
        topics("few-words", 0.70, 30),
        topics("linear", 0.90, 9),
        topics("sparse-vd-w", 0.85, 12),
    ]
    table = decisions.configurations(pd.DataFrame(rows), {"abc": 10_000}).assign(step_us=math.nan)
    setting = sections.Setting("topics", "pydocs-topic", "lstm-64", "t", "quick", None, table)
    which, pays, quality, *_ = sections._sentences([(setting, decisions.decide(table))])
    assert "such a net: sparse-vd-w on pydocs-topic lstm-64 (of 1)." in which
    assert (
        "small dense net that answers the same question in 1 of the 1 settings that have one; in one run or two" in pays
    )
    assert "other seeds: pydocs-topic lstm-64. And" in pays
    assert "no recurrent net in 0 of the 1 settings that have one. Elsewhere" in pays
    assert "or ahead of it, on every test in 1." in quality


def test_seeds_that_cross_tell_two_nets_not_apart():
    """Ten thousand items would; two seeds each of which one fails do not, nor three against one in their midst."""
    ours = [row("a", test, 20, valid=0.9, seed=seed) for seed, test in enumerate((0.70, 0.95))]
    assert decided(row("dense", 0.9, 1), row("few-words", 0.86, 30), *ours)["small"].iloc[0] == "level"
    three = [row("a", test, 20, valid=0.9, seed=seed) for seed, test in enumerate((0.70, 0.80, 0.95))]
    other = [row("few-words", test, 30, seed=seed) for seed, test in enumerate((0.84, 0.85, 0.86))]
    assert decided(row("dense", 0.9, 1), *other, *three)["small"].iloc[0] == "level"
    assert decided(row("dense", 0.9, 1), row("few-words", 0.81, 30), *three)["small"].iloc[0] == "level"
    apart = [row("a", test, 20, valid=0.9, seed=seed) for seed, test in enumerate((0.90, 0.95))]
    assert decided(row("dense", 0.9, 1), row("few-words", 0.86, 30), *apart)["small"].iloc[0] == "better"


def test_equal_quality_is_asked_of_what_was_small_from_the_start_too():
    """A net of 441 weights is not set against what has 310 and is bad, but against the smallest that is as good."""
    small = [
        row("few-words", test, times, variant=f"words={times}") for test, times in ((0.76, 40), (0.895, 20), (0.90, 5))
    ]
    nets = row("dense", 0.9, 1), row("b", 0.93, 12), row("a", 0.896, 30, valid=0.895)
    answer = decided(*nets, *small).loc["equal quality"]
    assert answer["method"] == "a" and answer["small"] == "level"
    none = decided(*nets, small[0]).loc["equal quality"]
    assert none["small"] == "better", "where none is as good, the best"


def test_a_net_without_a_figure_on_validation_is_not_the_best():
    rows = [row("a", 0.8, 20, valid=math.nan), row("b", 0.7, 20)]
    assert decided(row("dense", 0.9, 1), *rows)["method"].iloc[0] == "b"


def test_a_difference_over_three_seeds_is_told_from_one_of_a_run():
    def three(method, test, compression):
        return [topics(method, test + seed / 1000, compression, seed=seed) for seed in range(3)]

    rows = [*three("dense", 0.84, 1), *three("few-words", 0.70, 30), *three("sparse-vd-w", 0.85, 12)]
    table = decisions.configurations(pd.DataFrame(rows), {"abc": 10_000}).assign(step_us=math.nan)
    setting = sections.Setting("topics", "pydocs-topic", "lstm-64", "t", "quick", None, table)
    said = sections._pays([(setting, setting.decided)])
    assert "over three seeds or more: pydocs-topic lstm-64" in said and "one run" not in said


# ---- intervals


def test_an_interval_over_seeds_is_students():
    low, high = intervals.over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-5)
    assert all(np.isnan(intervals.over_seeds([1.0, 2.0]))), "two seeds have no interval"
    assert intervals.over_seeds([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_an_interval_over_items_is_wilsons():
    n, p, z = 400, 0.9, 1.959964
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2) / (1 + z * z / n),
    )
    assert intervals.over_items(p, n) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert all(np.isnan(intervals.over_items(p, math.nan)))


def test_two_accuracies_differ_as_in_a_table_of_right_and_wrong():
    n, a, b = 5000, 0.86, 0.84
    z = (a - b) / math.sqrt(2 * 0.85 * 0.15 / n)  # pooled
    assert intervals.p_value([a], [b], n) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-6)
    assert intervals.p_value([1.0], [1.0], n) == 1 and intervals.p_value([1.0], [0.5], n) < 1e-9
    assert intervals.p_value([1.0], [0.998], 500) > 0.3, "one mistake in 500 is no difference"
    assert math.isnan(intervals.p_value([100.0], [99.0])), "one perplexity against one says nothing"


# ---- decisions


def test_what_is_chosen_is_best_on_validation_and_not_on_test():
    found = decided(row("dense", 0.9, 1), row("a", 0.80, 20, valid=0.85), row("b", 0.88, 20, valid=0.84))
    assert found.loc["≥ 2×, ≥ 10×", "method"] == "a"


def test_one_answer_to_several_questions_is_one_line_and_what_is_not_reached_has_none():
    found = decided(row("dense", 0.9, 1), row("a", 0.9, 60))
    assert list(found.index) == ["≥ 2×, ≥ 10×, ≥ 50×, equal quality"]


def test_equal_quality_is_the_sparsest_that_is_near_on_validation_and_judged_on_the_test():
    rows = row("dense", 0.900, 1), row("a", 0.898, 20), row("b", 0.80, 30, valid=0.891), row("c", 0.95, 90, valid=0.70)
    found = decided(*rows)
    assert found.loc["equal quality", "method"] == "b" and found.loc["equal quality", "dense"] == "worse"
    assert found.loc["≥ 50×", "method"] == "c" and found.loc["≥ 50×", "dense"] == "better"
    few = decided(row("dense", 0.900, 1), row("c", 0.85, 90), items=100)
    assert few["dense"].tolist() == ["level"] and "equal" not in few.index[0], "five points are not near"
    bits = [row(m, t, c, metric="bits_per_char") for m, t, c in (("dense", 2.0, 1), ("a", 2.019, 5), ("b", 2.03, 9))]
    assert decided(*bits).loc["≥ 2×, equal quality", "method"] == "a", "a hundredth of 2.0"


def test_without_an_error_a_figure_is_ahead_or_behind_and_no_more():
    def bits(method, test, compression, seed=0):
        return row(method, test, compression, seed=seed, metric="bits_per_char")

    assert decided(bits("dense", 2.0, 1), bits("a", 2.1, 5))["dense"].tolist() == ["behind"]
    assert decided(bits("dense", 2.0, 1), bits("a", 1.9, 5))["dense"].tolist() == ["ahead"]
    seeds = [bits(m, t + s / 1000, c, s) for m, t, c in (("dense", 2.0, 1), ("a", 2.1, 5)) for s in range(3)]
    found = decided(*seeds)
    assert found["dense"].tolist() == ["worse"] and found["seeds"].tolist() == [3]


def test_the_dense_net_is_the_one_that_weights_count_against():
    rows = row("dense", 0.8, 1.0), row("dense", 0.7, 1.0, valid=0.9, variant="lr=0.1"), row("gradual", 0.8, 20.0)
    rows += row("dense", 0.95, 0.5, model="larger"), row("dense", 0.9, 4.0, model="smaller")
    table = decisions.configurations(pd.DataFrame(rows), {"abc": 1000})
    assert (
        decisions.reference(table)["test"] == 0.7 and decisions.reference(table[table["method"] == "gradual"]) is None
    )


def wrong(errors):
    return {"test.errors": np.array(errors), "test.of": np.ones(len(errors), int)}


def judged(mistakes, *rows):
    """mistakes: method → what its run got wrong, or (method, seed) →."""
    find = lambda one: mistakes.get(one["method"], mistakes.get((one["method"], one["seed"])))  # noqa: E731
    return decisions.decide(decisions.configurations(pd.DataFrame(rows), {"abc": 1000}, find)).set_index("asked")


def test_kept_mistakes_are_compared_item_by_item():
    """20 of 1,000 items apart, all on one side: two tables of right and wrong would call that level."""
    dense, other = np.zeros(1000, int), np.zeros(1000, int)
    dense[:200], other[:220] = 1, 1
    rows = row("dense", 0.80, 1.0), row("gradual", 0.78, 20.0)
    assert judged({}, *rows)["dense"].iloc[0] == "level"
    assert judged({"dense": wrong(dense), "gradual": wrong(other)}, *rows)["dense"].iloc[0] == "worse"
    assert judged({"dense": wrong(dense)}, *rows)["dense"].iloc[0] == "level", "of one alone nothing is paired"
    short = {"dense": wrong(dense), "gradual": wrong(other[:500])}
    assert judged(short, *rows)["dense"].iloc[0] == "level", "and of other items neither"


def test_a_tenth_is_a_tenth_though_the_number_of_weights_is_odd():
    """density=0.1 of 649,731 weights leaves 64,974: 9.9997 times fewer, which every table calls 10×."""
    table = decided(row("dense", 0.9, 1.0), row("gradual", 0.89, 9.9997, valid=0.9), row("blocks", 0.8, 14.0))
    assert table.loc[[name for name in table.index if "≥ 10×" in name], "method"].tolist() == ["gradual"]
    assert all("≥ 10×" not in name for name in decided(row("dense", 0.9, 1.0), row("gradual", 0.89, 9.9)).index)


def test_nets_that_their_test_does_not_tell_apart_are_compared_on_their_further_tests_too():
    """Spoken digits: nobody errs on clean speech, in noise one net errs twice as often."""
    clean, noise = np.zeros(1000, int), np.arange(1000) % 10 == 0
    kept = {"dense": {"noisy.errors": noise.astype(int)}, "one-shot": {"noisy.errors": 2 * noise}}
    kept = {name: wrong(clean) | one | {"noisy.of": np.full(1000, 5)} for name, one in kept.items()}
    rows = row("dense", 0.0, 1.0, metric="label_error_rate"), row("one-shot", 0.0, 10.0, metric="label_error_rate")
    ((split, ours, theirs, verdict),) = judged(kept, *rows)["dense_further"].iloc[0]
    assert (split, ours, theirs, verdict) == ("noisy", 0.04, 0.02, "worse") and judged(kept, *rows)["dense"].iloc[
        0
    ] == "level"
    assert judged({"dense": kept["dense"]}, *rows)["dense_further"].iloc[0] == [], (
        "nothing is said of runs that kept nothing"
    )


def test_two_nets_get_one_verdict_wherever_it_is_shown():
    """Seven items to none are p = 0.016: worse beside one opponent, level as the worst of four by Holm, in the table of
    decisions as in that of opponents, however many questions are asked."""
    dense, other = np.zeros(1000, int), np.zeros(1000, int)
    dense[:200], other[:207] = 1, 1
    one = row("dense", 0.80, 1.0), row("gradual", 0.793, 20.0)
    mistakes = {"gradual": wrong(other), "hard": wrong(other), "dense": wrong(dense), "linear": wrong(dense)}
    assert judged(mistakes, *one)["dense"].iloc[0] == "worse"
    assert set(judged(mistakes, *one, row("hard", 0.793, 5.0, valid=0.9))["dense"]) == {"worse"}
    more = [row("linear", 0.80, 9.0, valid=0.7, variant=str(n)) for n in range(3)]
    table = decisions.configurations(pd.DataFrame([*one, *more]), {"abc": 1000}, lambda one: mistakes[one["method"]])
    (answer,) = decisions.decide(table).to_dict("records")
    assert answer["dense"] == "level"
    setting = sections.Setting("t", "t", "m", "t", "quick", None, table)
    assert all("level" in text for text in sections.opponents(setting)["gradual (0.793)"])


def test_the_dense_net_that_others_are_held_to_may_have_learned_under_dropout():
    """PTB's words: W+G+N is ahead of the dense net and behind the same one under dropout."""
    rows = row("dense", 0.80, 1.0), row("binary-dropout", 0.90, 1.0), row("sparse-vd-wgn", 0.85, 20.0)
    found = decided(*rows)
    assert found["dense"].tolist() == ["worse"] and "equal quality" not in found.index[0]
    table = decisions.configurations(pd.DataFrame(rows), {"abc": 10_000})
    assert decisions.reference(table)["method"] == "dense" and decisions.whole(table)["method"] == "binary-dropout"


def test_from_three_seeds_on_a_difference_has_to_outlast_another_draw_of_seeds():
    rows, mistakes = [], {}
    for seed, (theirs, ours) in enumerate([(200, 180), (205, 260), (195, 250)]):
        rows += [row("dense", 1 - theirs / 1000, 1.0, seed=seed), row("gradual", 1 - ours / 1000, 20.0, seed=seed)]
        for name, count in (("dense", theirs), ("gradual", ours)):
            mistakes[name, seed] = wrong(np.arange(1000) < count)
    table = decisions.configurations(
        pd.DataFrame(rows), {"abc": 1000}, lambda one: mistakes[one["method"], one["seed"]]
    )
    pair = [table[table["method"] == name].iloc[0] for name in ("gradual", "dense")]
    assert decisions.paired.p_value(pair[0]["wrong"], pair[1]["wrong"]) < 1e-4
    assert decisions.p_value(*pair) == intervals.p_value(pair[0]["by_seed"], pair[1]["by_seed"]) > 0.05


def test_an_opponent_that_is_no_network_is_compared_and_never_chosen():
    found = decided(row("dense", 0.9, 1), row("a", 0.80, 20), row("linear", 0.9, 100))
    assert "linear" not in found["method"].tolist() and found["other"].iloc[0] == "worse"


def test_figures_say_what_they_rest_on():
    one = decisions.configurations(pd.DataFrame([row("a", 0.84, 9)]), {"abc": 1000}).iloc[0]
    assert written.with_interval(one) == "0.840 (one seed; 0.816 … 0.861 over test items)"
    rows = [row("a", 0.84 + s / 100, 9, seed=s) for s in range(3)]
    three = decisions.configurations(pd.DataFrame(rows), {}).iloc[0]
    assert written.with_interval(three) == "0.850 (3 seeds: 0.825 … 0.875)"
    assert "(2 seeds: 0.840 and 0.850)" in written.with_interval(
        decisions.configurations(pd.DataFrame(rows[:2]), {}).iloc[0]
    )
    bits = decisions.configurations(pd.DataFrame([row("a", 2.0, 9, metric="bits_per_char")]), {"abc": 9}).iloc[0]
    assert written.with_interval(bits) == "2.000 (one seed)"


def test_a_step_is_the_mean_of_seeds_on_the_device_most_were_timed_on():
    base = {"task": "t", "model": "m", "method": "a", "variant": None, "batch": 1, "steps": 50.0, "input": 3, "hidden": 4,
            "density": 0.1, "pattern": "x", "opponent": "dense-fp32"}  # fmt: skip
    rows = []
    for device, method, seed, ms in (("p", "a", 0, 1.0), ("p", "a", 1, 3.0), ("p", "b", 0, 4.0), ("q", "a", 0, 0.1)):
        one = base | {"device": device, "method": method, "seed": seed}
        rows += [one | {"engine": "numba", "median_ms": ms, "speedup": 8.0 / ms}]
        rows += [one | {"engine": "dense-fp32", "median_ms": 8.0, "speedup": 1.0}]
    found = timings.a_step(pd.DataFrame(rows), "t")
    small = found.dropna(subset=["method"]).set_index("method")["step_us"]
    assert small.to_dict() == {"a": 40.0, "b": 80.0} and set(found["device_timed"]) == {"p"}
    assert found.loc[found["method"].isna(), "step_us"].tolist() == [160.0]


def test_nets_timed_while_the_machine_was_slow_are_set_beside_others_by_their_own_dense_net():
    base = {"task": "t", "model": "m", "variant": None, "batch": 1, "steps": 50.0, "input": 3, "hidden": 4, "seed": 0,
            "density": 0.1, "pattern": "x", "opponent": "dense-fp32", "device": "p"}  # fmt: skip
    rows = []
    for method, slow, faster in (("a", 1.0, 4.0), ("b", 2.0, 5.0), ("c", 1.0, 2.0)):
        one = base | {"method": method}
        rows += [one | {"engine": "numba", "median_ms": 8.0 * slow / faster, "speedup": faster}]
        rows += [one | {"engine": "dense-fp32", "median_ms": 8.0 * slow, "speedup": 1.0}]
    found = timings.a_step(pd.DataFrame(rows), "t").dropna(subset=["method"]).set_index("method")["step_us"]
    assert found.to_dict() == {"a": 40.0, "b": 32.0, "c": 80.0}, "b, measured at half the speed, is the fastest"


def test_a_front_shows_seeds_intervals_and_what_no_net_beats():
    rows = [row("dense", 0.9, 1), row("linear", 0.89, 90), *(row("a", 0.89 + s / 1000, 20, seed=s) for s in range(3))]
    figure = plots.cost_front(decisions.configurations(pd.DataFrame(rows), {"abc": 1000}))
    costs = [" ".join(ax.get_xlabel().split()) for ax in figure.axes]
    seconds = "training seconds of a run, without one it starts from (x)"
    assert costs == ["weights kept", "bytes of the file", "multiply-adds a step", seconds], "no engine was timed"
    text = " ".join(figure.get_suptitle().split())
    assert text.startswith("5 runs; sparsest net within 2 % of the best: a, 20× fewer weights at 0.891 (3 runs)")
    bars = [
        line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"
    ]
    assert any(np.allclose(bar, intervals.over_seeds([0.89, 0.891, 0.892])) for bar in bars) and len(bars) == 3
    lonely = plots.cost_front(decisions.configurations(pd.DataFrame([row("dense", 0.9, 1), row("a", 0.5, 9)]), {}))
    assert "no sparse net within 2 %" in lonely.get_suptitle()


def test_a_line_goes_through_what_was_small_from_the_start_and_is_the_best_so_far_on_validation():
    small = [(0.80, 0.82, 90), (0.83, 0.81, 50), (0.82, 0.85, 20), (0.84, 0.84, 10)]  # test, validation, times fewer
    rows = [row("few-words", test, times, valid, variant=f"words={times}") for test, valid, times in small]
    figure = plots.cost_front(
        decisions.configurations(pd.DataFrame([row("dense", 0.9, 1), row("a", 0.89, 30), *rows]), {})
    )
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["small from the start"].get_ydata()) == [0.80, 0.82], "the dense net and a are none"
    assert list(lines["small from the start"].get_xdata()) == [1000 / 90, 1000 / 20]


def test_five_costs_are_two_rows_of_panels_with_the_legend_beside_them():
    table = decisions.configurations(pd.DataFrame([row("dense", 0.9, 1), row("a", 0.89, 20)]), {"abc": 1000})
    figure = plots.cost_front(table.assign(step_us=[2.0, 1.0], device_timed="cpu:y"))
    *panels, last = figure.axes
    assert [len(panels), len({ax.get_subplotspec().rowspan.start for ax in panels})] == [5, 2] and not figure.legends
    assert [text.get_text() for text in last.get_legend().get_texts()] == ["dense", "a"] and not last.axison
    assert "(y)" in panels[3].get_xlabel() and "(x)" in panels[4].get_xlabel()


def test_seconds_of_training_are_of_the_device_of_most_networks():
    rows = [row("dense", 0.9, 1, device="cpu:y"), row("a", 0.89, 20), row("a", 0.88, 20, seed=1), row("b", 0.9, 9)]
    rows += [row("linear", 0.9, 9, device="cpu:y", variant=f"C={c}") for c in range(4)]
    figure = plots.cost_front(decisions.configurations(pd.DataFrame(rows), {"abc": 1000}))
    seconds = figure.axes[3]
    assert "(x)" in seconds.get_xlabel() and [text.get_text() for text in seconds.texts] == [
        "5 more trained on another device"
    ]
    assert {line.get_label() for line in seconds.lines if not line.get_label().startswith("_")} == {"a", "b"}


def test_near_the_best_error_rate_is_said_in_points():
    rows = [
        row(m, e, c, metric="label_error_rate") for m, e, c in (("dense", 0.0, 1), ("a", 0.0015, 9), ("b", 0.01, 99))
    ]
    figure = plots.cost_front(decisions.configurations(pd.DataFrame(rows), {}))
    assert "sparsest net within 0.2 points of the best: a, 9× fewer weights at 0.0015" in " ".join(
        figure.get_suptitle().split()
    )


def test_gate_patterns_are_shares_of_the_gates_of_kept_neurons():
    gates = [
        ("i", 0, "live"),
        ("i", 1, "constant"),
        ("i", 2, "removed"),
        ("o", 0, "live"),
        ("o", 1, "live"),
        ("o", 2, "removed"),
    ]
    table = pd.DataFrame(gates, columns=["gate", "neuron", "state"]).assign(layer="l0", task="t", model="m", method="a")
    figure = plots.gate_patterns(pd.concat([table, table.assign(method="b", state="live")]))
    assert "1 networks" in figure.get_suptitle(), "b has no constant"
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.5, 0.5]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [1.0, 0.0]


# ---- the page, from made-up runs


class Shape(HTMLParser):
    """Which tags a page has and whether each is closed; where images and links come from."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.sources, self.words = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two finished runs, one of them with its verdicts, published; a few seconds."""
    root, patch = tmp_path_factory.mktemp("page"), pytest.MonkeyPatch()
    patch.setenv("SPARSERNN_RUNS", str(root / "runs"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny.register()
    for method in ("dense", "sparse-vd-wgn", "linear"):
        run = ensure(RunConfig(task="tiny-topic", method=method, profile="quick"))
        save(run, gates=gate_table(run), verdict=inside.verdict_table(run.compact, run.task, shortest=3))
    publish.publish("quick", root / "results", root / "figures")
    yield root / "results"
    torch.set_num_threads(threads)
    patch.undo()


def test_the_report_is_one_page_that_fetches_nothing_and_fits_a_phone(results):
    text = page.write(results).read_text()
    shape = Shape(text)
    assert not shape.open and shape.seen.count("h2") == len(sections.SECTIONS)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in shape.sources)
    assert shape.seen.count("img") >= 2 and "max-width: 100%" in text and "overflow-x: auto" in text
    assert 'name="viewport"' in text and "tiny-topic, lstm-8 (quick)" in shape.words
    assert not re.search(r"\bnan\b|\d\.\d{5}", shape.words.lower()), "no missing number, none of six digits"


def test_publishing_fills_the_tables_and_writes_a_card_a_model(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# Mine\n\n<!-- table: quick tiny-topic -->\nold\n<!-- end -->\n\nafter\n")
    written_to = documents.write(results, tmp_path)
    text = page.read_text()
    assert "old" not in text and text.startswith("# Mine") and text.endswith("after\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| sparse-vd-wgn")]
    row = records.read(results / "quick.csv").set_index("method").loc["sparse-vd-wgn"]
    assert f"| {row['test']:.3f} |" in line and f"| {row['weights_kept']:,.0f} |" in line
    cards = [path for path in written_to if path.parent.name == "quick-s0"]
    assert len(cards) == 3 and all("# " in card.read_text() and "sparsernn.load(" in card.read_text() for card in cards)


def test_the_number_of_test_items_is_counted_from_the_data(results):
    assert records.read_table(results / "tests.csv")[["task", "items", "classes"]].values.tolist() == [
        ["tiny-topic", 90, "a|b|c"]
    ]
    shares = records.read(results / "quick.csv")["test"] * 90
    assert np.allclose(shares, shares.round())


def test_the_notebook_shows_the_parts_of_the_page(results, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    section = sections.answer(sections.tracked(results))
    section._ipython_display_()
    assert len(shown) == len(section.parts) and "sparse-vd-wgn" in "".join(getattr(x, "data", "") or "" for x in shown)


def test_a_running_verdict_ends_where_the_classifier_does(results):
    table = records.read_table(next((results / "runs").glob("tiny-topic/*/sparse-vd-wgn/*/verdict.csv")))
    run = ensure(RunConfig(task="tiny-topic", method="sparse-vd-wgn", profile="quick"))
    data = run.task.splits["valid"]
    for number, part in table.groupby("text"):
        start = int(data["lengths"][:number].sum())
        ids = torch.as_tensor(data["ids"][start : start + len(part)].astype("int64"))
        logits = run.compact(ids[:, None], torch.tensor([len(ids)]))[0]
        assert part["p"].iloc[-1] == pytest.approx(logits.softmax(1)[0, -1].item(), abs=1e-4)
        assert part["label"].iloc[0] == run.task.classes[data["labels"][number]]


def test_a_table_of_neurons_says_what_gates_hear(results):
    run = ensure(RunConfig(task="tiny-topic", method="sparse-vd-wgn", profile="quick"))
    table, gates = inside.neuron_table(run.compact, run.task.classes), gate_table(run)
    kept = gates[gates["state"] != "removed"]
    assert [int(n) for n in table["neuron"]] == sorted(kept["neuron"].unique())
    for gate in kept.itertuples():
        said = table.set_index("neuron").loc[str(gate.neuron), gate.gate]
        assert said.startswith("hears") == (gate.state == "live")
    assert {"a", "b", "c"} <= set(table.columns) and inside.formula(run.compact) == []


def test_a_network_of_one_neuron_is_written_out_and_the_lines_compute_it():
    torch.manual_seed(0)
    model = Classifier(5, 2, embedding=1, hidden=1).eval()
    small = compact(model, random_masks(model, 0, density=1.0))
    lines = dict(line.replace("−", "-").split(" = ", 1) for line in inside.formula(small) if " = " in line)
    assert list(lines) == ["i", "f", "g", "o", "c", "h", "log-odds of class 1"]
    values, h, c = model.embedding.weight[:, 0].tolist(), 0.0, 0.0

    def value(name, e):
        text = lines[name]
        w, u, b = (float(x) for x in NUMBER.findall(text))
        a = w * e + u * h + b
        return math.tanh(a) if "tanh" in text else min(1, max(0, 0.2 * a + 0.5))

    for word in (3, 1, 4):
        gates = {name: value(name, values[word]) for name in "ifgo"}
        c = gates["f"] * c + gates["i"] * gates["g"]
        h = gates["o"] * math.tanh(c)
    logits = small(torch.tensor([[3], [1], [4]]), torch.tensor([3]))[0][0]
    w, b = (float(x) for x in NUMBER.findall(lines["log-odds of class 1"]))
    assert w * h + b == pytest.approx((logits[1] - logits[0]).item(), abs=5e-3)


def test_a_net_is_set_against_one_that_was_small_and_dense_from_the_start():
    """W, which answers 10× and 50×, is set against the small net of 60×, not the better one of 10×, which answers no question
    itself; what answers 2× against that one; W+G+N, asked for 1,000×, against the smallest there is."""
    few = [
        row("few-words", test, times, model=name)
        for name, test, times in (("l", 0.90, 10), ("s", 0.80, 60), ("q", 0.79, 80))
    ]
    loose, sparse = row("gradual", 0.895, 4), [row("sparse-vd-w", 0.85, 50), row("sparse-vd-wgn", 0.70, 1000)]
    table = decisions.configurations(pd.DataFrame([row("dense", 0.90, 1), *few, loose, *sparse]), {"abc": 10_000})
    found = decisions.decide(table).set_index("method")
    assert found["small"].to_dict() == {"gradual": "level", "sparse-vd-w": "better", "sparse-vd-wgn": "worse"}
    assert found["least"].to_dict() == {"gradual": 2, "sparse-vd-w": 50, "sparse-vd-wgn": 1000}
    assert [decisions.small(table, least)["model"] for least in (2, 10, 50, 1000)] == ["l", "l", "s", "q"]
    assert decisions.small(table[table["method"] != "few-words"], 2) is None


def test_training_that_starts_from_a_dense_run_is_said_to_take_that_too():
    """Half the seconds of a dense net are one and a half of them where that net had to be there first."""
    rows = (
        row("dense", 0.9, 1.0),
        row("one-shot", 0.9, 10.0, train_seconds=5.0),
        row("sparse-vd-w", 0.9, 60.0, train_seconds=20.0),
    )
    names = {"task": "pydocs-topic", "model": "lstm-64", "step_us": math.nan}
    table = decisions.configurations(pd.DataFrame(rows).assign(**names), {}).assign(step_us=math.nan)
    setting = sections.Setting("topics", "pydocs-topic", "lstm-64", "pydocs-topic", "quick", None, table)
    said = {
        one["method"]: sections._cost(setting, one)["training"] for one in decisions.decide(table).to_dict("records")
    }
    assert said["one-shot"] == "5 s after a dense run, 1.5 × dense" and said["sparse-vd-w"] == "20 s, 2.0 × dense"
