"""What a small network reads: words with their numbers, gates along a text, against counts and steps by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import randn, randomise

from sparsernn.nets.compact import compact
from sparsernn.nets.masked import masked
from sparsernn.nets.masks import Masks, close
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.report import plots
from sparsernn.report import tables as reading
from sparsernn.tasks.base import ClassificationTask

WORDS = ["<pad>", "<start>", "<oov>", "good", "bad", "film"]
DOCUMENTS = [([3, 3, 5], 1), ([4, 5], 0), ([3, 4, 5], 0), ([5], 1)]


def two_classes():
    ids = np.concatenate([words for words, _ in DOCUMENTS])
    split = {
        "ids": ids,
        "lengths": np.array([len(w) for w, _ in DOCUMENTS]),
        "labels": np.array([c for _, c in DOCUMENTS]),
    }
    return ClassificationTask("two", {"train": split, "valid": split, "test": split}, WORDS, ["no", "yes"], "made up")


def reader(model, groups, means=None):
    """As much of a run as `reading` asks for; groups: axis → kept neurons."""
    masks = Masks.all_kept(model)
    kept = {name: torch.zeros(axis.size, dtype=torch.bool) for axis in masks.axes if (name := axis.name) in groups}
    for name, numbers in groups.items():
        kept[name][numbers] = True
    masks = Masks(masks.axes, masks.weights, kept)
    means = means or {}
    study = SimpleNamespace(masks=lambda: masks, means=lambda: means)
    return SimpleNamespace(
        model=model, study=study, compact=compact(model, masks, means), closed=close(masks), task=two_classes()
    )


def test_log_odds_count_documents_not_words():
    odds = reading.document_log_odds(two_classes())
    assert odds[3] == pytest.approx(math.log((1 + 1) / 2) - math.log((1 + 1) / 2))  # one "yes" (twice in it), one "no"
    assert odds[4] == pytest.approx(math.log((0 + 1) / 2) - math.log((2 + 1) / 2))
    assert odds[5] == pytest.approx(0)


def test_word_numbers_are_the_embedding_of_kept_words_in_kept_dimensions():
    model = randomise(Classifier(6, 2, embedding=4, hidden=3), 1)
    means = {"vocabulary": torch.arange(6).double() / 2}
    run = reader(model, {"vocabulary": [3, 4], "input": [1, 2]}, means)
    table = reading.word_numbers(run)
    assert list(zip(table["word"], table["dimension"], strict=True)) == [
        ("good", 1),
        ("good", 2),
        ("bad", 1),
        ("bad", 2),
    ]
    wanted = [model.embedding.weight[w, d].item() * w / 2 for w in (3, 4) for d in (1, 2)]
    assert table["value"].to_list() == pytest.approx(wanted)
    assert table["effect"].sum() == pytest.approx(0) and table["log_odds"].iloc[2] == pytest.approx(math.log(1 / 3))


def test_three_classes_have_no_page():
    run = reader(randomise(Classifier(6, 3, embedding=4, hidden=3), 1), {})
    run.task.classes = ["a", "b", "c"]
    assert reading.word_numbers(run).empty


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_a_trace_ends_where_the_masked_network_does(kind):
    """h of every step is the layer's own output, with z of all kinds and a removed neuron."""
    model = Classifier(6, 2, embedding=4, hidden=3) if kind == "classifier" else LanguageModel(6, hidden=3)
    model = randomise(model, 1)
    means = {axis.name: randn(axis.size, seed=i) for i, axis in enumerate(model.axes())}
    run = reader(model, {"hidden_l0": [0, 2]}, means)
    tokens = torch.tensor([3, 5, 4, 3])
    trace = reading.gate_trace(run, tokens)
    seen, network = [], masked(model, run.study.masks(), means)
    hook = network.lstm.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    network(tokens[:, None])
    hook.remove()
    h = trace[trace["gate"] == "h"].pivot(index="step", columns="neuron", values="value")
    assert list(h.columns) == [0, 2]
    assert torch.allclose(torch.tensor(h.to_numpy()), seen[0][:, 0, [0, 2]], rtol=0, atol=1e-12)


def test_a_trace_shows_live_gates_under_their_names():
    """One neuron whose forget gate alone hears the words: hard-sigmoid(w x + b) by hand."""
    model = randomise(Classifier(6, 2, embedding=1, hidden=1), 1)
    with torch.no_grad():
        model.lstm.weight_hh_l0.zero_()
        model.lstm.weight_ih_l0.copy_(torch.tensor([[0.0], [1.5], [0.0], [0.0]]))
    run = reader(model, {})
    masks = run.study.masks()
    weights = {name: p != 0 for name, p in model.named_parameters() if p.dim() == 2}
    run.study = SimpleNamespace(masks=lambda: Masks(masks.axes, weights, {}), means=dict)
    run.closed = close(run.study.masks())
    trace = reading.gate_trace(run, torch.tensor([3, 4]))
    assert set(trace["gate"]) == {"f", "h"} and trace["word"].to_list() == ["good", "good", "bad", "bad"]
    bias = model.lstm.bias_ih_l0[1] + model.lstm.bias_hh_l0[1]
    wanted = [(0.2 * (1.5 * model.embedding.weight[w, 0] + bias) + 0.5).clamp(0, 1).item() for w in (3, 4)]
    assert trace.loc[trace["gate"] == "f", "value"].to_list() == pytest.approx(wanted)


def test_a_trace_keeps_of_each_kind_of_gate_the_lines_that_move_most():
    run = reader(randomise(LanguageModel(6, hidden=3), 1), {})
    tokens = torch.tensor([3, 5, 4, 3])
    whole, few = reading.gate_trace(run, tokens), reading.gate_trace(run, tokens, most=10)
    moves = whole.groupby(["gate", "neuron"])["value"].std()
    assert set(whole["of"]) == set(few["of"]) == {len(moves)} == {15}  # four gates and h of three neurons
    two = {key for _, part in moves.groupby("gate") for key in part.nlargest(2).index}
    assert set(zip(few["gate"], few["neuron"], strict=True)) == two and len(few) == 10 * 4
    assert set(reading.gate_trace(run, tokens, most=1)["gate"]) == set(whole["gate"]), "one of each at least"


@pytest.mark.parametrize(("cell", "kinds"), [("RNN", {"h"}), ("GRU", {"r", "z", "n", "h"})])
def test_a_small_net_of_any_cell_is_drawn_along_a_text(cell, kinds):
    run = reader(randomise(LanguageModel(6, hidden=3, cell=cell), 1), {})
    trace = reading.gate_trace(run, torch.tensor([3, 5, 4, 3]))
    assert set(trace["gate"]) == kinds and not trace.duplicated(["step", "gate", "neuron"]).any()
    assert set(trace["of"]) == {3 * len(kinds)} and plots.gate_trace(trace).axes


def test_a_trace_without_a_live_gate_is_empty():
    model = randomise(LanguageModel(6, hidden=2), 1)
    run = reader(model, {})
    axes, none = run.study.masks().axes, {n: p != p for n, p in model.named_parameters() if p.dim() == 2}
    run.study = SimpleNamespace(masks=lambda: Masks(axes, none, {}), means=dict)
    run.closed = close(run.study.masks())
    assert reading.gate_trace(run, torch.tensor([3, 4])).empty


def test_the_text_of_a_trace_is_the_first_document_or_window():
    task = two_classes()
    assert reading.first_text(task).tolist() == [3, 3, 5] and reading.first_text(task, 2).tolist() == [3, 3]
