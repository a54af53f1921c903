"""Figures say what the data say: from small made-up tables, from empty ones, for one neuron and for a thousand."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
import timed
import torch

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.markers import MarkerStyle  # noqa: E402

from sparsernn import sparsify
from sparsernn.report import plots, publish, tables, timings
from sparsernn.report.plots import style


@pytest.fixture(autouse=True)
def closed_afterwards():
    yield
    plt.close("all")


def words_of(figure):
    """Every text of a drawn figure or axes, in one line."""
    figure = figure if isinstance(figure, plt.Figure) else figure.get_figure()
    figure.canvas.draw()
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(plt.Text))


def gate_rows(states, layer="l0", letters="ifgo", value=0.25):
    """states: a string a gate type, a letter a neuron: l(ive), c(onstant), r(emoved)."""
    names = {"l": "live", "c": "constant", "r": "removed"}
    rows = [
        (layer, gate, neuron, names[s], value if s == "c" else float("nan"), 0.0)
        for gate, line in zip(letters, states, strict=True)
        for neuron, s in enumerate(line)
    ]
    return pd.DataFrame(rows, columns=["layer", "gate", "neuron", "state", "value", "bias"])


def metric_rows(method="sparse-vd-wgn", epochs=3, **columns):
    e = np.arange(1, epochs + 1)
    table = {"method": method, "seed": 0, "metric": "accuracy", "epoch": e, "train_loss": 2.0 / e, "penalty": 8.0 / e}
    table |= {"valid": 0.25 * e, "compression": 10.0**e, "gates_live": 100 - e, "chosen": e == 2}
    return pd.DataFrame(table | columns)


def log_alpha_rows(tensor="lstm.weight_hh_l0", kept=(0, 5), pruned=(90, 5)):
    rows = [(tensor, 3 - 0.4 * (k + 1), 3 - 0.4 * k, n, True) for k, n in enumerate(kept)]
    rows += [(tensor, 3 + 0.4 * k, 3 + 0.4 * (k + 1), n, False) for k, n in enumerate(pruned)]
    return pd.DataFrame(rows, columns=["tensor", "low", "high", "count", "kept"]).assign(reading="log α")


def threshold_rows():
    table = pd.DataFrame({"threshold": [1.0, 2.0, 3.0, 4.0], "valid": [0.5, 0.9, 0.8, 0.8]})
    return table.assign(
        compression=[np.inf, 400.0, 200.0, 3.0],
        reading="log α",
        keeps_below=True,
        metric="accuracy",
        chosen=table["threshold"] == 3,
    )


def record(method, test, compression, metric="accuracy", variant="", seed=0, model="lstm-64", task="pydocs-topic"):
    return {"task": task, "model": model, "method": method, "variant": variant, "seed": seed,
            "metric": metric, "test": test, "compression": compression}  # fmt: skip


# ---- style


def test_every_method_has_a_look_and_no_two_the_same():
    assert set(sparsify.names()) <= set(plots.METHOD_STYLE)
    assert len({(colour, marker) for colour, marker, _ in plots.METHOD_STYLE.values()}) == len(plots.METHOD_STYLE)
    assert len({marker for _, marker, _ in plots.METHOD_STYLE.values()}) >= len(plots.METHOD_STYLE) - 2
    assert plots.look("a-stranger-s") not in plots.METHOD_STYLE.values()
    for method in (*plots.METHOD_STYLE, "a-stranger-s"):  # edges are white: what is all edge cannot be seen
        assert MarkerStyle(plots.look(method)[1]).is_filled()


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(plt.rcParams)
    plots.gate_map(gate_rows(["lc"] * 4))
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1, "100%"), (0.5, "50%"), (0.9998, "99.98%"), (0.0004, "0.04%"), (0.001, "0.1%")]
)
def test_a_share_that_is_not_all_never_reads_as_all(share, text):
    assert plots.percent(share) == text


def test_numbers_read_well():
    assert [plots.times(x) for x in (1, 3.14, 9.99, 1247.4, float("inf"))] == ["1×", "3.1×", "10×", "1,247×", "∞"]
    assert [plots.size(x) for x in (512, 4120, 1.2e6)] == ["512 B", "4.1 kB", "1.2 MB"]


# ---- findings


def test_training_curves_name_quality_and_compression_of_the_chosen_epoch():
    assert "sparse-vd-wgn: 0.5 accuracy at 100×" in words_of(plots.training_curves(metric_rows()))


def test_training_curves_count_every_run_that_chose_an_epoch():
    larger = pd.concat([metric_rows(), metric_rows()], ignore_index=True)  # of one method and seed, another size
    assert "2 runs –" in words_of(plots.training_curves(larger))


def test_training_curves_of_several_methods_share_axes():
    linear = metric_rows("linear", C=[0.1, 1.0, 10.0]).drop(columns=["train_loss", "penalty", "gates_live"])
    several = pd.concat([metric_rows(), metric_rows("dense", penalty=0.0), linear], ignore_index=True)
    text = words_of(plots.training_curves(several))
    assert all(name in text for name in ("sparse-vd-wgn", "dense", "linear", "penalty (dotted)"))


def test_a_path_of_strengths_is_drawn_against_c():
    linear = metric_rows("linear", C=[0.1, 1.0, 10.0]).drop(columns=["train_loss", "penalty", "gates_live"])
    text = words_of(plots.training_curves(linear))
    assert "inverse strength of L1" in text and "no training loss" in text and "no gates here" in text


def test_threshold_curve_names_the_chosen_and_the_best():
    text = words_of(plots.threshold_curve(threshold_rows()))
    assert "At threshold 3: 0.8 accuracy, 200× fewer weights; best 0.9 at 2" in text


def test_a_histogram_of_scores_says_the_share_of_noise():
    ax = plots.score_histogram(log_alpha_rows())
    assert "lstm.weight_hh_l0: 95% pruned" in words_of(ax) and "kept (5%)" in words_of(ax)
    assert ax.lines[0].get_xdata()[0] == 3, "the dashed line stands on the bin edge that is the threshold"


def test_histograms_of_scores_count_weights_not_group_variables():
    both = pd.concat([log_alpha_rows(), log_alpha_rows("hidden_l0", kept=(50,), pruned=(0,))])
    text = words_of(plots.score_histograms(both))
    assert (
        "95% of the 100 weights are pruned" in text and "hidden_l0: 0% pruned" in text and "variables per bin" in text
    )


@pytest.mark.parametrize("hidden", [1, 4, 64, 128, 1000])
def test_gate_map_counts_live_gates_at_any_size_and_has_a_line_a_pattern(hidden):
    line = ("clr" * hidden)[:hidden]
    figure = plots.gate_map(gate_rows([line] * 4))
    live = 4 * line.count("l")
    assert f"{live:,} of {4 * hidden:,} gates are live" in words_of(figure)
    assert f"in {hidden - line.count('r'):,} of {hidden:,} hidden neurons" in words_of(figure)
    states, beside = figure.axes
    assert states.images[0].get_array().shape[:2] == (min(hidden, 2), 4)
    assert [bar.get_width() for bar in beside.patches] == [line.count(s) for s in "lc" if s in line]
    assert [text.get_text() for text in states.texts if text.get_text().startswith(".")] == [".25"] * 4


def test_neurons_alike_are_one_line_those_with_most_live_gates_first_and_removed_ones_are_none():
    found = plots.gates._patterns(gate_rows(["rlcll", "rlccl", "rcccl", "rccll"]))
    assert {pattern: list(neurons) for pattern, neurons in found.items()} == {
        "llll": [4],
        "llcc": [1],
        "lccl": [3],
        "cccc": [2],
    }
    assert list(found) == ["llll", "llcc", "lccl", "cccc"]


def test_a_line_of_several_neurons_says_the_least_and_the_most_of_each_constant():
    table = gate_rows(["ccl", "lll"], letters="rn")
    table.loc[table["state"] == "constant", "value"] = [-0.071, 1.0]
    assert "−.07 … 1" in words_of(plots.gate_map(table))


def test_a_map_of_nets_that_removed_neurons_alone_is_a_sentence():
    assert not plots.gates_differ(gate_rows(["lr"] * 4))
    text = words_of(plots.gate_map(gate_rows(["lr"] * 4)))
    assert "every gate of every kept neuron is live: 4 of 8 gates are live, in 1 of 2 hidden neurons" in text
    nearly = gate_rows(["l" * 100] * 3 + ["c" + "l" * 99])
    assert "every kept neuron but 1 is live: 399 of 400" in words_of(plots.gate_map(nearly))


def test_gate_map_has_a_panel_a_layer_and_takes_a_gru():
    two = pd.concat([gate_rows(["lc", "ll", "cc"], layer, "rzn") for layer in ("l0", "l1")])
    text = words_of(plots.gate_map(two))
    assert "layer l1" in text and "reset r 1 live 1 constant" in text and "6 of 12 gates are live" in text


def test_constant_values_name_the_medians():
    text = words_of(plots.constant_values(gate_rows(["ccc", "ccl", "lll", "lll"])))
    assert "5 constant gates; median value: i 0.25, f 0.25" in text and "none" in text


def test_front_names_the_sparsest_good_net_and_who_beats_it():
    rows = [record("dense", 0.80, 1), record("sparse-vd-w", 0.79, 50), record("sparse-vd-wgn", 0.60, 500)]
    text = words_of(plots.front(pd.DataFrame(rows)))
    assert "sparse-vd-w: 50× at 0.79 accuracy" in text
    text = words_of(plots.front(pd.DataFrame([*rows, record("linear", 0.81, 90)])))
    assert "linear beats it" in text
    text = words_of(plots.front(pd.DataFrame([*rows, record("linear", 0.70, 90)])))
    assert "no opponent beats it" in text


def test_front_in_bits_prefers_less_and_draws_back_off_as_a_line():
    rows = [record("dense", 2.0, 1, "bits_per_char"), record("sparse-vd-wgn", 2.03, 6, "bits_per_char")]
    rows += [record("back-off", 2.5, float("nan"), "bits_per_char", model="5-gram")]
    ax = plots.front(pd.DataFrame(rows))
    text = words_of(ax)
    assert "sparse-vd-wgn: 6× at 2.03 bits per character" in text and "5-gram" in text and "lower is better" in text


def test_front_refuses_two_tasks_or_two_metrics():
    with pytest.raises(ValueError, match="one front shows one task"):
        plots.front(pd.DataFrame([record("dense", 0.8, 1), record("dense", 2.0, 1, task="pydocs-char")]))
    with pytest.raises(ValueError, match="one figure shows one metric"):
        plots.front(pd.DataFrame([record("dense", 0.8, 1), record("dense", 2.0, 1, "perplexity")]))


def test_front_shows_seeds_behind_their_mean():
    rows = pd.DataFrame([record("dense", 0.8, 1), record("dense", 0.7, 1, seed=1)])
    lines = [line.get_ydata().tolist() for line in plots.front(rows).lines]
    assert [0.75] in lines and [0.8, 0.7] in lines


def test_front_keeps_other_plans_pale_out_of_the_finding_and_the_worst_out_of_view():
    rows = pd.DataFrame([record("dense", 0.8, 1), record("sparse-vd-w", 0.79, 50), record("sparse-vd-w", 0.795, 500)])
    ax = plots.front(rows.assign(asked=[True, True, False]))
    assert "sparse-vd-w: 50×" in words_of(ax) and "another plan" in words_of(ax)
    rows = pd.concat([rows, pd.DataFrame([record("sparse-vd-w", 0.3, 900)])]).assign(asked=[True, True, False, False])
    ax = plots.front(rows)
    assert ax.get_ylim()[0] > 0.75 and "1 more out of view" in words_of(ax)
    rows = rows.assign(asked=[True, True, False, True])
    ax = plots.front(rows)
    assert ax.get_ylim()[0] < 0.3 and "out of view" not in words_of(ax)


def test_front_writes_the_plans_of_a_method_that_is_asked_for_under_several():
    rows = pd.DataFrame([record("dense", 0.8, 1, variant="lr=1"), record("dense", 0.79, 1, variant="lr=2")])
    assert "lr=1" in words_of(plots.front(rows)) and "lr=2" in words_of(plots.front(rows))
    assert "lr=1" not in words_of(plots.front(rows[:1]))


def test_sizes_say_how_much_smaller():
    table = pd.DataFrame({"file": ["dense", "compact", "floor"], "bytes": [100_000, 1_000, 800]})
    assert "100× smaller than dense, 1.25 × its floor" in words_of(plots.sizes(table))
    table["bytes"] = [100_000, 100_100, 100_000]
    assert "no smaller than dense" in words_of(plots.sizes(table))


def test_kl_curves_say_how_far_the_fits_are():
    table = pd.DataFrame({"log_alpha": [-1.0, 1.0], "kl": [1.0, 0.0], "error": 0.001, "exact": [1.001, 0.001]})
    table = table.assign(molchanov=table["exact"] + 0.004, code=table["exact"] - 0.02)
    text = words_of(plots.kl_curves(table.assign(slope_exact=-0.5, slope_molchanov=-0.51, slope_code=-0.45)))
    assert "Molchanov within 0.004 nats and 2.0%" in text and "within 0.020 nats and 10.0%" in text


def path_rows():
    rows = [("sparse-vd-wgn", 10.0, 0.85, False), ("sparse-vd-wgn", 100.0, 0.84, True), ("sparse-vd-wgn", 50.0, 0.80, False),
            ("linear", 20.0, 0.86, True), ("linear", 900.0, 0.82, False)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "compression", "valid", "chosen"])
    return table.assign(task="imdb", model="m", variant="", metric="accuracy")


def published_rows():
    columns = ["task", "method", "epoch", "valid", "test", "compression"]
    return pd.DataFrame(
        [("imdb", "sparse-vd-wgn", e, v, v, c) for e, v, c in ((1, 0.8, 9.0), (3, 0.83, 200.0))], columns=columns
    )


def test_fronts_join_only_what_nothing_beats_on_both():
    figure = plots.fronts(path_rows(), published_rows())
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert sorted(lines["sparse-vd-wgn"].get_xdata()) == [10, 100]  # 50× at 0.80 is beaten by 100× at 0.84
    assert sorted(lines["linear"].get_xdata()) == [20, 900]
    assert list(lines["the authors', by epoch"].get_xdata()) == [9, 200]
    assert "sparse-vd-wgn: 0.84 at 100×; linear: 0.86 at 20×" in words_of(figure)


def test_ends_that_authors_published_of_several_configurations_are_marks_and_no_way():
    rows = published_rows().assign(model="m", variant=["a=1", "a=2"])
    lines = [line for line in plots.fronts(path_rows(), rows).axes[0].lines if "the authors'" in line.get_label()]
    assert {line.get_label() for line in lines} == {"the authors' end"} and [
        len(line.get_xdata()) for line in lines
    ] == [1, 1]


def test_fronts_say_of_a_method_with_several_sizes_where_they_lie_not_their_mean():
    sizes = pd.DataFrame(
        {"model": [*"aabc"], "valid": [0.85, 0.83, 0.7, 0.8], "compression": [10.0, 10.0, 900.0, 90.0]}
    )
    table = pd.concat(
        [path_rows(), sizes.assign(task="imdb", method="few-words", variant="", metric="accuracy", chosen=True)]
    )
    text = words_of(plots.fronts(table))
    assert (
        "few-words: 0.84 at 10× … 0.7 at 900× (3 configurations, 4 runs)" in text
        and "sparse-vd-wgn: 0.84 at 100×;" in text
    )


def test_fronts_in_perplexity_prefer_less():
    table = path_rows().assign(metric="perplexity")
    line = next(x for x in plots.fronts(table).axes[0].lines if x.get_label() == "sparse-vd-wgn")
    assert sorted(line.get_xdata()) == [50, 100]


def test_what_was_chosen_is_in_view_however_far_from_the_best():
    far = path_rows().assign(valid=lambda t: t["valid"].where(t["method"] != "linear", 0.3))
    low, high = plots.fronts(far).axes[0].get_ylim()
    chosen = far.loc[far["chosen"].astype(bool), "valid"]
    assert set(chosen) == {0.3, 0.84} and low < 0.3 and high > 0.84


def test_errors_spread_over_decades_are_told_apart_and_the_axis_ends_with_what_is_in_view():
    table = path_rows().assign(metric="label_error_rate", valid=lambda t: 1 - t["valid"])
    axes = plots.fronts(table).axes[0]
    assert axes.get_yscale() == "linear"
    table.loc[table.index[0], ["valid", "chosen", "compression"]] = [0.004, True, 20.0]
    table.loc[table.index[1], ["valid", "chosen", "compression"]] = [0.9, False, 1e6]
    axes = plots.fronts(table).axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 0.004 and axes.get_xlim()[1] < 1e6
    table.loc[table.index[2], ["valid", "chosen"]] = [0.0, True]
    axes = plots.fronts(table).axes[0]
    assert axes.get_yscale() == "symlog" and axes.get_ylim()[0] < 0, "no error at all is in view too"


def test_beside_published_compares_the_ends_and_the_last_epoch_both_have():
    curves = metric_rows(valid=0.81)
    drawn = words_of(plots.beside_published(curves, published_rows()))
    assert drawn.endswith("here | the authors' – sparse-vd-wgn 0.81 at epoch 3 | 0.83 at epoch 3")
    later = pd.concat([curves, curves[curves["epoch"] == 3].assign(epoch=4, valid=0.9)])
    drawn = words_of(plots.beside_published(later, published_rows()))
    assert "0.9 at epoch 4 | 0.83 at epoch 3 (at epoch 3: 0.81 | 0.83)" in drawn


def test_of_several_plans_of_a_method_the_best_is_named_and_the_others_are_dashed():
    curves = pd.concat([metric_rows(valid=0.81), metric_rows(valid=0.7).assign(variant="lr=0.1")])
    figure = plots.beside_published(curves, published_rows())
    assert words_of(figure).endswith("sparse-vd-wgn 0.81 at epoch 3 | 0.83 at epoch 3")
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed and all((line.get_ydata() <= 0.7).all() for line in dashed)


def test_what_loses_no_weight_stands_beside_the_authors_at_its_best():
    curves, theirs = metric_rows("dense"), published_rows().assign(method="dense", compression=1.0, valid=[0.8, 0.7])
    assert "dense (best) 0.75 at epoch 3 | 0.8 at epoch 1" in words_of(plots.beside_published(curves, theirs))


def test_beside_published_draws_a_line_a_seed_and_tells_their_mean():
    curves = pd.concat([metric_rows(valid=0.81), metric_rows(valid=0.85).assign(seed=1)])
    figure = plots.beside_published(curves, published_rows())
    assert "sparse-vd-wgn 0.83 at epoch 3 | 0.83 at epoch 3" in words_of(figure)
    lines = [line for line in figure.axes[0].lines if line.get_label() == "sparse-vd-wgn, here"]
    assert len(lines) == 2 and all((np.diff(line.get_xdata()) > 0).all() for line in lines)


def test_a_configuration_is_told_from_the_others_of_its_method_by_what_they_do_not_share():
    def named(*rows):
        table = pd.DataFrame(rows, columns=["model", "variant"])
        return [plots.study._named(row, table) for row in table.itertuples()]

    assert named(("m", "kl_weight=2"), ("m", "")) == ["kl_weight=2", ""]
    assert named(("a", "lr=1,words=3"), ("b", "lr=1,words=3"), ("b", "lr=1")) == ["a, words=3", "b, words=3", "b"]
    assert named(("m", "clip=0,epochs=60,kl_full=16,kl_peak=0,kl_settle=45"), ("m", ""))[0] == "clip=0 and 4 more"


def test_the_page_of_words_is_of_a_dimension_with_many_of_them():
    few = pd.DataFrame([("worst", 9, 0.5, -2.0, -2.0), ("mildly", 9, 0.9, -1.0, -1.0)], columns=word_rows().columns)
    many = pd.concat([word_rows().assign(word=lambda t, i=i: t["word"] + str(i)) for i in range(10)])
    drawn = words_of(plots.word_page(pd.concat([many, few])))
    assert "good0" in drawn and "mildly" not in drawn


def word_rows():
    rows = [
        ("good", 0, 2.0, 1.0, 1.5),
        ("bad", 0, -1.0, -1.0, -2.0),
        ("film", 1, 0.1, 0.0, 0.0),
        ("poor", 0, -0.5, -0.7, -1.0),
    ]
    return pd.DataFrame(rows, columns=["word", "dimension", "value", "effect", "log_odds"])


def test_a_page_of_words_has_them_all_and_turns_the_sign_to_the_second_class():
    text = words_of(plots.word_page(word_rows()))
    assert "4 words are kept, of 2 dimensions" in text and "+2.00 good" in text and "−1.00 bad" in text
    turned = word_rows().assign(value=lambda t: -t["value"])
    assert "+2.00 good" in words_of(plots.word_page(turned)) and "odds: 1.00" in text


def trace_rows():
    values = {("f", 3): (0.9, 0.9, 0.1), ("h", 3): (0.0, 0.2, 0.2)}
    rows = [(t, w, n, g, v[t]) for (g, n), v in values.items() for t, w in enumerate(("a", "good", "film"))]
    return pd.DataFrame(rows, columns=["step", "word", "neuron", "gate", "value"]).assign(of=7)


def test_a_trace_names_the_gate_that_moves_most():
    figure = plots.gate_trace(trace_rows())
    assert "Forget f of neuron 3 moves most" in words_of(figure).replace("forget f", "Forget f")
    assert "(of each kind those that move most, 2 of 7)" in words_of(figure)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a", "good", "film"]


def test_a_trace_has_the_four_of_each_kind_that_move_most():
    rows = [(t, str(t), n, g, t * (n + 1) / 100) for g in "ih" for n in range(9) for t in range(3)]
    table = pd.DataFrame(rows, columns=["step", "word", "neuron", "gate", "value"]).assign(of=30)
    figure = plots.gate_trace(table)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown == [f"{gate} of {neuron}" for gate in "ih" for neuron in (5, 6, 7, 8)]
    assert "8 of 30" in words_of(figure)


def test_shapes_of_blocks_are_lines_over_the_density_with_dense_beside_them():
    rows = [record("dense", 2.2, 1.0, "bits_per_char"), record("gradual", 2.4, 10.0, "bits_per_char", "density=0.1")]
    for shape, cost in (("8x4", 0.1), ("32x32", 0.3)):
        rows += [record("blocks", 2.3 + cost * n, 2.0**n, "bits_per_char", f"block={shape},density={0.5**n:g}", seed)
                 for n in (1, 3) for seed in (0, 1)]  # fmt: skip
    rows += [record("blocks", 2.5, 4.0, "bits_per_char", "density=0.25")]
    shapes = [publish.shape_of(row) for row in rows]
    assert shapes[:3] == ["dense", "scattered", "8×4"] and shapes[-1] == "16×1", "a block not named is the method's own"
    assert publish.shape_of(record("l0", 1, 2)) == publish.shape_of(record("back-off", 1, 2)) == ""
    figure = plots.pattern_curves(pd.DataFrame(rows).assign(shape=shapes))
    text = words_of(figure)
    assert (
        "8×4 2.6 at 12%" in text and "32×32 3.2 at 12%" in text and "scattered 2.4 at 10%" in text and "dense" in text
    )
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    assert list(lines["8×4"]) == [0.125, 0.5] and "dense, smaller" not in lines
    rows += [record("dense", 2.7, 5.0, "bits_per_char") | {"model": f"small-{n}"} for n in (1, 2)]
    figure = plots.pattern_curves(pd.DataFrame(rows).assign(shape=[*shapes, "dense", "dense"]))
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    assert list(lines["dense, smaller"]) == [0.2, 0.2], "a point a net, though no variant tells them apart"


# ---- nothing to draw


@pytest.mark.parametrize(
    ("draw", "table", "words"),
    [
        (plots.score_histogram, log_alpha_rows()[:0], "this method has no scores"),
        (plots.score_histograms, log_alpha_rows()[:0], "this method has no scores"),
        (plots.threshold_curve, threshold_rows()[:0], "this method has no scores"),
        (plots.gate_map, gate_rows(["l"] * 4)[:0], "no gates here"),
        (plots.constant_values, gate_rows(["l"] * 4)[:0], "no gates here"),
        (plots.constant_values, gate_rows(["l"] * 4), "no constant gate"),
        (plots.front, pd.DataFrame([record("dense", 1, 1)])[:0], "no finished run"),
        (plots.sizes, pd.DataFrame({"file": [], "bytes": []}), "no file written"),
        (plots.fronts, path_rows()[:0], "no run left a path"),
        (plots.word_page, word_rows()[:0], "no page of words"),
        (plots.gate_trace, trace_rows()[:0], "nothing moves here"),
    ],
)
def test_an_empty_table_draws_a_sentence(draw, table, words):
    assert words in words_of(draw(table))


@pytest.mark.parametrize("draw", [plots.gate_map, plots.constant_values])
def test_a_figure_is_redrawn_from_csv(draw, tmp_path):
    table = gate_rows(["lcr", "ccr", "llr", "lcr"])
    table.to_csv(tmp_path / "gates.csv", index=False)
    assert words_of(draw(pd.read_csv(tmp_path / "gates.csv"))) == words_of(draw(table))


# ---- tables


class Stub:
    """As much of a run as a table asks for."""

    def __init__(self, **parts):
        self.__dict__ |= parts


@pytest.mark.parametrize("threshold", [3.0, 0.1, -8.0, 8.0])
def test_bins_of_log_alpha_cut_exactly_at_the_threshold(threshold):
    values = torch.cat(
        [
            torch.linspace(-8, 8, 1001),
            torch.tensor([threshold]),
            torch.tensor(threshold).nextafter(torch.tensor(-9.0))[None],
        ]
    )
    values = values.clamp(-8, 8)
    method = sparsify.make("sparse-vd-w", sparsify.options_of("sparse-vd-w", {"threshold": threshold}))
    table = tables.score_table(Stub(study=Stub(scores=lambda: {"w": values}, method=method)))
    assert table["count"].sum() == len(values)
    assert table.loc[table["kept"], "count"].sum() == int((values < threshold).sum())
    assert threshold in table["low"].to_list() or not (~table["kept"]).any()
    assert np.allclose(table["high"] - table["low"], method.reading.bin)


def test_sizes_of_pruned_weights_lie_left_of_the_range_and_the_others_in_it():
    values = torch.tensor([-torch.inf, -torch.inf, -9.0, -2.0, 0.1, 3.0])  # log10 |w|; zeros are pruned
    table = tables.score_table(Stub(study=Stub(scores=lambda: {"w": values}, method=sparsify.make("hard"))))
    assert table["count"].sum() == 6 and table.loc[~table["kept"], "count"].sum() == 2
    assert table.loc[table["kept"], "low"].min() == -6.0 and "log10" in table["reading"][0]
    assert "33% pruned" in words_of(plots.score_histogram(table))


def test_metrics_know_compression_and_all_layers_gates():
    metrics = pd.DataFrame(
        {"epoch": [1, 2], "valid": [0.1, 0.2], "weights_kept": [50, 0], "gates_live": ["12-30", "4-0"]}
    )
    row = {
        "model": "m",
        "method": "dense",
        "variant": "",
        "seed": 0,
        "metric": "accuracy",
        "epoch_selected": 2,
        "weights_total": 100,
    }
    table = tables.tidy_metrics(metrics, row)
    assert table["gates_live"].to_list() == [42, 4] and table["chosen"].to_list() == [False, True]
    assert table["compression"][0] == 2 and np.isnan(table["compression"][1])


def test_gate_counts_and_neurons_add_up():
    gates = gate_rows(["lcr", "ccr", "lcr", "ccr"])
    counts = tables.gate_count_table(gates)
    assert (counts[["live", "constant", "removed"]].sum(axis=1) == 3).all()
    assert tables.neuron_table(gates).to_dict("records") == [{"layer": "l0", "hidden": 3, "kept": 2, "all_constant": 1}]


def test_words_are_grouped_by_what_they_speak_for():
    words = pd.DataFrame({"word": ["tensor", " ", "jit"], "says": ["torch", "torch", "numba"], "lift": [3.0, 2.0, 1.0]})
    assert tables.spoken_for(words).to_dict("records") == [
        {"says": "numba", "kept": 1, "words": "jit"}, {"says": "torch", "kept": 2, "words": "tensor ' '"}]  # fmt: skip


# ---- engines


def timing(engine, speedup, density=0.1, batch=1, model="lstm", **more):
    row = {"model": model, "engine": engine, "opponent": "dense-fp32", "hidden": 64, "input": 64, "density": density}
    row |= {
        "device": "cpu:AMD EPYC",
        "batch": batch,
        "pattern": "32x32",
        "median_ms": 1 / speedup,
        "iqr_ms": 0.1,
        "floor_ms": 0.01,
        "error": 1e-7,
    }
    return row | {"speedup": speedup} | more


def test_every_engine_has_a_look():
    from sparsernn.engines import LAYERS, PRODUCTS

    assert set(plots.ENGINE_STYLE) == set(LAYERS) | set(PRODUCTS)
    assert len(set(plots.ENGINE_STYLE.values())) >= len(plots.ENGINE_STYLE) - 1, "csr-numba and numba-csr are one code"


def test_a_crossover_shades_where_dense_wins_and_says_where():
    rows = [timing("dense-fp32", 1, d, b) for d in (0.1, 0.3) for b in (1, 32)]
    rows += [
        timing("numba", 4.0, 0.1),
        timing("numba", 2.0, 0.3),
        timing("numba", 0.5, 0.1, 32),
        timing("numba", 0.4, 0.3, 32),
    ]
    rows += [timing("choose", 99.0), timing("dense-int8", 3.0, 0.3)]
    figure = plots.crossover(pd.DataFrame(rows))
    words = words_of(figure)
    assert (
        "AMD EPYC, LSTM 64: a sparse or compact engine beats dense fp32 in 2 of 4 cells, at most 4×; every dense engine in "
        "1 (not in 3, at batch 1, 32)" in words
    )
    left, right = figure.axes
    assert left.get_yscale() == "log" and "batch 1" in words and "batch 32" in words
    (line,) = [line for line in right.lines if line.get_label() == "numba"]
    assert list(line.get_ydata()) == [0.5, 0.4]
    assert "dense-int8" in words, "an engine of the first panel alone is in the legend too"


def test_rooflines_put_the_floor_beside_each_bar():
    ax = plots.rooflines(pd.DataFrame([timing("dense-fp32", 1.0), timing("numba", 2.0), timing("choose", 9.0)]))
    assert "numba is the fastest, 50× its floor, 2× dense fp32" in words_of(ax)
    assert len(ax.patches) == 2 and "error 1e-07" in words_of(ax)


def test_the_claim_counts_products_inside_it():
    rows = [timing("csr-torch", s, 0.05, b, "product") for s, b in ((8.0, 1), (3.0, 4), (0.2, 1500))]
    rows += [timing("dense-fp32", 1.0, 0.05, b, "product") for b in (1, 4, 1500)]
    rows += [timing("dense-bf16", 5.0, 0.05, 4, "product"), timing("two-to-four", 1.5, 0.5, 1, "product")]
    rows += [timing("dense-onednn", 2.0, 0.05, 4, "product"), timing("c-int8", 50.0, 0.05, 4, "product")]
    table = pd.DataFrame(rows).assign(pattern="unstructured")
    mixed = pd.concat([table, table.assign(pattern="32x32", speedup=99.0)]).sample(frac=1, random_state=1)
    ax = plots.product_claim(mixed)
    words = words_of(ax)
    assert any(list(line.get_xdata()) == [1, 4, 1500] for line in ax.lines), "a line goes from left to right"
    said = "0 of 3 products are 2 to 7 times faster than the fastest dense in fp32, 1 more, 1 slower; 2 lose to a dense one of"
    assert said in words, (
        "3 times dense-fp32 is 1.5 times oneDNN's, and what rounds its weights to int8 is another question"
    )


def test_the_fastest_of_a_cell_stands_against_fp32_and_against_the_fastest_dense():
    rows = [timing("dense-fp32", 1.0), timing("dense-int8", 4.0), timing("numba", 3.0), timing("csr-torch", 2.0)]
    rows += [timing("choose", 3.0), timing("dense-fp32", 1.0, batch=2)]
    (row,) = timings.fastest(pd.DataFrame(rows).assign(method="shape-only")).to_dict("records")
    assert (
        row["engine"] == "numba"
        and row["over_fp32"] == 3
        and row["dense"] == "dense-int8"
        and row["over_dense"] == 0.75
    )


def test_a_layer_in_blocks_stands_beside_every_dense_one_with_the_cache_of_its_weights():
    rows = timed.in_blocks({("16x4", 0.1): (1.0, 0.5), ("8x4", 0.1): (1.0, 1.0), ("unstructured", 0.1): (3.0, 3.0)})
    rows = pd.concat([rows, rows.assign(engine="choose"), rows.assign(batch=32), rows.assign(pattern="removed gates")])
    row, *others = timings.in_blocks(rows).to_dict("records")
    assert (
        len(others) == 2
        and row["layer"] == "GRU 1024, input 1024"
        and (row["pattern"], row["density"]) == ("16x4", 0.1)
    )
    assert [row[f"{name}_us"] for name in ("fp32", "int8", "dense", "torch", "own")] == [20, 10, 200, 80, 40]
    assert [row["fp32_over_torch"], row["int8_over_torch"], row["fp32_over_own"], row["int8_over_own"]] == [4, 8, 2, 4]
    assert (row["fp32_in"], row["int8_in"]) == ("memory", "L1 (32K)")


def test_the_finding_over_block_times_holds_in_every_layer():
    took = {("16x4", 0.5): (9.0, 3.0), ("8x4", 0.5): (9.0, 1.6), ("unstructured", 0.5): (1.0, 1.0)}
    took |= {("16x4", 0.1): (1.0, 0.5), ("8x4", 0.1): (3.0, 0.4), ("unstructured", 0.1): (9.0, 1.0)}
    slower = {place: (2.5 * fp32, 2 * int8) for place, (fp32, int8) in took.items()}
    table = pd.concat(
        [timings.in_blocks(timed.in_blocks(took)), timings.in_blocks(timed.in_blocks(slower, hidden=512))]
    )
    words = words_of(plots.block_times(table))
    assert "in fp32 they do not beat every dense int8 at any density" in words, (
        "2.5 ms in the smaller layer, dense has 2"
    )
    assert "in int8 they beat every dense int8 with 10% of the weights left, and 2.5× with 10%" in words
    assert "GRU 1024, input 1024, weights in fp32" in words and "GRU 512, input 512, weights in int8" in words


def test_layers_of_one_or_two_patterns_are_not_drawn_beside_those_in_blocks():
    table = timings.in_blocks(timed.in_blocks({("32x32", 0.1): (1.0, 0.5), ("unstructured", 0.1): (1.0, 0.5)}))
    assert "no layer in blocks was timed yet" in words_of(plots.block_times(table))


@pytest.mark.parametrize("draw", [plots.crossover, plots.rooflines, plots.product_claim])
def test_without_timings_a_sentence_says_so(draw):
    empty = pd.DataFrame(columns=[*timing("numba", 1.0)])
    assert re.search("no (timing|product timed) here yet", words_of(draw(empty.astype({"engine": str}))))


def runs_of_two_tests(better="lower"):
    """Dense, a smaller dense net, and a pruned one in two seeds that is as good in noise."""
    rows = [("big", "dense", 1000, 1.0, 0.01, 0.10), ("small", "dense", 200, 5.0, 0.02, 0.20)]
    rows += [("big", "gradual", 100, 10.0, 0.02, noisy) for noisy in (0.08, 0.10)]
    columns = ["model", "method", "weights_kept", "compression", "test", "noisy"]
    table = pd.DataFrame(rows, columns=columns).assign(variant="", metric="label_error_rate")
    if better == "higher":
        table = table.assign(metric="accuracy", test=1 - table["test"], noisy=1 - table["noisy"])
    return table.assign(tests=[f"noisy={value!r}" for value in table["noisy"]])


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_front_of_several_tests_has_a_panel_each_and_says_what_is_as_good_where_it_is_hard(better):
    figure = plots.tests_front(runs_of_two_tests(better))
    said = words_of(figure)
    assert "4 runs; big dense: test" in said and "as good on noisy or better: gradual (big), 10× fewer weights" in said
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["test", "test, noisy"]
    (noisy,) = [ax for ax in figure.axes if "noisy" in (ax.get_title(loc="left") + ax.get_title())]
    seen = sorted(round(float(y), 6) for line in noisy.lines if line.get_markersize() < 5 for y in line.get_ydata())
    assert seen == sorted(round(value, 6) for value in runs_of_two_tests(better)["noisy"])
    assert "small" in [text.get_text() for text in noisy.texts] and "big" not in [
        text.get_text() for text in noisy.texts
    ]


def test_a_front_of_several_tests_says_what_is_missing():
    table = runs_of_two_tests()
    assert "no smaller net is as good on noisy" in words_of(plots.tests_front(table[table["method"] == "dense"]))
    assert "no run with more than one test yet" in words_of(plots.tests_front(table.assign(tests="")))
    assert "2 runs" in words_of(plots.tests_front(table[table["method"] == "gradual"]))


def test_a_short_logarithmic_axis_has_more_than_one_label():
    for low, high in ((12.0, 18.0), (60.0, 150.0), (3.0, 90.0), (1.0, 5000.0)):
        fig, ax = plt.subplots()
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        style.log_counts(ax.xaxis)
        fig.canvas.draw()
        inside = [
            text.get_text() for text, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True) if low <= at <= high
        ]
        assert sum(map(bool, inside)) >= 2, (low, high, inside)
        plt.close(fig)


def test_on_a_gpu_ours_stand_beside_every_cudnn_in_microseconds_a_step():
    same = {"model": "lstm", "hidden": 1024, "steps": 200, "opponent": "dense-fp32", "device": "cuda:H100"}
    took = {"dense-fp32": 0.4, "dense-fp16-padded": 0.2, "persistent-cuda": 0.1, "compact-loop": 9.0, "choose": 0.1}
    rows = [
        same | {"batch": 1, "density": 0.1, "pattern": "unstructured", "engine": e, "median_ms": ms}
        for e, ms in took.items()
    ]
    rows += [same | {"batch": 4, "density": 1 / 24, "pattern": "24 heads", "engine": e, "median_ms": ms}
             for e, ms in {"dense-fp32": 0.1, "tiny-cuda": 0.2}.items()]  # fmt: skip
    ax = plots.steps_on_a_gpu(pd.DataFrame(rows))
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "LSTM 1024, 10%, 1 at once",
        "LSTM 1024, 24 heads, 4 at once",
    ]
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.get_lines()}
    assert drawn["persistent-cuda"] == [0.5] and drawn["tiny-cuda"] == [1.0] and "compact-loop" not in drawn
    assert "H100: what is left is faster than every whole layer timed in 1 of 2 cells, 0.5× to 2×" in ax.get_title(
        loc="left"
    )
    assert "no layer was timed" in plots.steps_on_a_gpu(pd.DataFrame(rows).assign(engine="numba")).texts[0].get_text()
