"""A neuron is one thing: axes find every line of it, the authors' count is their single pass, the closure a fixed point."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    Tagger,
    error,
    masked_by_hand,
    randn,
    random_masks,
    random_means,
    randomise,
    scale_names,
    with_scales,
)

from sparsernn.nets.axes import Member, each
from sparsernn.nets.layers import GRU, RNN, Linear
from sparsernn.nets.masked import masked
from sparsernn.nets.masks import (
    CONSTANT,
    LIVE,
    REMOVED,
    Masks,
    close,
    closed_count,
    gate_states,
    paper_count,
    weight_matrices,
)
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel

MODELS = {
    "classifier": lambda: Classifier(5, 2, embedding=3, hidden=4),
    "classifier, 2 layers": lambda: Classifier(5, 2, embedding=3, hidden=4, layers=2),
    "language model": lambda: LanguageModel(5, hidden=4),
    "language model, 2 layers": lambda: LanguageModel(5, hidden=4, layers=2),
    "bidirectional": lambda: Tagger(5, 2, hidden=3),
    "bidirectional, 2 layers": lambda: Tagger(5, 2, hidden=3, layers=2),
    "bidirectional, GRU": lambda: Tagger(5, 2, hidden=3, layers=2, cell=GRU),
    "bidirectional, RNN": lambda: Tagger(5, 2, hidden=3, layers=2, cell=RNN),
    "bag of words": lambda: BagOfWords(5, 3),
}
RECURRENT = [name for name in MODELS if name != "bag of words"]
TOKENS = torch.tensor([[0, 3, 1], [2, 3, 1], [0, 0, 4], [2, 4, 1]])


def built(name, seed=0):
    return randomise(MODELS[name](), seed)


def logits(model, weights=None, scales=None, state=None):
    state = state[0] if state is not None and len(state) == 1 else state  # of GRU and RNN h alone
    return with_scales(model, weights, scales)(TOKENS, state=state)[0]


def lines(weights, member, j):
    """The view-able place of neuron j in one member: (tensor with the axis first, positions)."""
    return weights[member.tensor].movedim(member.dim, 0), member.positions[j]


def zeroed(model, axis, j, *roles, weights=None):
    """Copies of the parameters (or of `weights`) with the lines of neuron j zeroed in the members of these roles."""
    weights = {name: p.detach().clone() for name, p in (weights or dict(model.named_parameters())).items()}
    for member in axis.having(*roles):
        matrix, positions = lines(weights, member, j)
        matrix[positions] = 0
    return weights


def shaken(model, axis, j):
    """Copies of the parameters with other weights into neuron j and other biases."""
    weights = zeroed(model, axis, j)
    for i, member in enumerate(axis.having("out", "bias")):
        matrix, positions = lines(weights, member, j)
        matrix[positions] += randn(*matrix[positions].shape, seed=50 + i)
    return weights


# ---- axes


@pytest.mark.parametrize("name", MODELS)
def test_every_line_of_every_matrix_belongs_to_one_neuron(name):
    """Each row and column is on exactly one axis, once; only what the head writes is on none."""
    model = built(name)
    for tensor, weight in weight_matrices(model).items():
        for dim in (0, 1):
            axes = [axis for axis in model.axes() if axis.kind != "gates"]
            members = [(m, r) for axis in axes for r in ("in", "out") for m in axis.having(r) if m.tensor == tensor]
            found = [p for m, _ in members if m.dim == dim for p in m.positions.flatten().tolist()]
            none = (tensor, dim) == ("head.weight", 0)
            assert sorted(found) == ([] if none else list(range(weight.shape[dim]))), f"{tensor}, dim {dim}"
    for axis in (axis for axis in model.axes() if axis.kind == "gates"):
        for member in axis.having("out", "bias"):
            assert sorted(member.positions.flatten().tolist()) == list(range(axis.size))


@pytest.mark.parametrize("name", MODELS)
def test_a_line_of_a_matrix_is_looked_up_as_the_neuron_it_belongs_to(name):
    model = built(name)
    weights = weight_matrices(model)
    for axis in model.axes():
        for member in axis.having("in", "out"):
            neurons = member.neuron_of(weights[member.tensor].shape[member.dim])
            for j in range(axis.size):
                assert (neurons == j).nonzero().flatten().tolist() == sorted(member.positions[j].tolist())


@pytest.mark.parametrize("name", RECURRENT)
def test_without_its_in_lines_nothing_depends_on_a_neuron(name):
    """Other weights into it, other biases, another start: the logits see them before its `in` lines are zeroed, not after."""
    model = built(name)
    suffixes, size = model.lstm.suffixes(), model.lstm.hidden_size
    for axis in (axis for axis in model.axes() if axis.kind == "hidden"):
        row = suffixes.index(axis.name.removeprefix("hidden"))
        for j in range(size):
            state = tuple(randn(len(suffixes), 3, size, seed=i) for i in range(model.lstm.cell.n_states))
            other = tuple(s.clone() for s in state)
            for s in other:
                s[row, :, j] += randn(3, seed=3)

            before = logits(model, state=state)
            assert error(logits(model, state=other), before) > 1e-6
            assert error(logits(model, shaken(model, axis, j), state=state), before) > 1e-6
            cut = logits(model, zeroed(model, axis, j, "in"), state=state)
            shaken_and_cut = zeroed(model, axis, j, "in", weights=shaken(model, axis, j))
            assert error(logits(model, shaken_and_cut, state=other), cut) <= 1e-12


@pytest.mark.parametrize("name", RECURRENT)
def test_out_and_bias_lines_are_all_that_moves_a_neuron(name):
    """Zeroed, a neuron that starts at zero stays at zero (its g is tanh 0); the others still move."""
    model = built(name)
    suffixes = model.lstm.suffixes()
    for axis in (axis for axis in model.axes() if axis.kind == "hidden"):
        row = suffixes.index(axis.name.removeprefix("hidden"))
        for j in range(axis.size):
            _, state = with_scales(model, zeroed(model, axis, j, "out", "bias"))(TOKENS)
            h = state if isinstance(state, torch.Tensor) else state[0]
            assert (h[row, :, j] == 0).all() and (h[row, :, torch.arange(axis.size) != j] != 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_scale_of_zero_is_the_neuron_without_its_lines(name):
    """z = 0 on words, inputs and neurons: nobody reads it (`in`); on a gate: nothing reaches it (`out`)."""
    model = built(name)
    for axis in model.axes():
        assert sorted(m.tensor for m in axis.having("scale")) == sorted(scale_names(model, axis.name))
        for j in range(axis.size):
            z = torch.ones(1, axis.size).double()
            z[0, j] = 0
            scaled = logits(model, scales={member.tensor: z for member in axis.having("scale")})
            cut = logits(model, zeroed(model, axis, j, "out" if axis.kind == "gates" else "in"))
            assert error(scaled, cut) <= 1e-12
            if axis.kind != "vocabulary" or (TOKENS == j).any():
                assert error(scaled, logits(model)) > 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_under_masks_is_theta_or_zero_and_mean_or_zero(name):
    model = built(name)
    masks = random_masks(model, 3, 0.7, {axis.name: 0.7 for axis in model.axes()})
    for means in ({}, random_means(masks)):
        by_hand = masked_by_hand(model, masks, means, TOKENS)[0]
        assert error(masked(model, masks, means)(TOKENS)[0], by_hand) <= 1e-12


class Summed(Tagger):
    """Two directions that are added up: neuron j of both is one neuron, with gates in either."""

    def __init__(self, vocabulary, classes, hidden):
        super().__init__(vocabulary, classes, hidden)
        self.head = Linear(hidden, classes)

    def axes(self):
        words, forth, forth_gates, back, back_gates = super().axes()
        reader = Member("head.weight", 1, each(forth.size), "in")
        members = [m for axis in (forth, back) for m in axis.members if m.tensor != "head.weight"]
        both = replace(forth, name="hidden", members=(*members, reader))
        return [words, both, replace(forth_gates, hidden="hidden"), replace(back_gates, hidden="hidden")]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.lstm(tokens, state, lengths=lengths)
        return self.head(sum(y.chunk(2, -1))), state


@pytest.mark.parametrize("seed", range(6))
def test_two_directions_may_share_one_hidden_axis(seed):
    model = randomise(Summed(5, 2, 4), seed)
    masks = random_masks(model, seed, 0.3, {"hidden": 0.7, "gates_l0": 0.7, "gates_l0_reverse": 0.7})
    closed, means = close(masks), random_means(masks, seed)
    assert error(masked(model, closed, means)(TOKENS)[0], masked(model, masks, means)(TOKENS)[0]) <= 1e-12
    kept, count = closed.groups["hidden"], closed_count(closed)
    for name in ("gates_l0", "gates_l0_reverse"):
        assert not closed.groups[name].view(4, -1)[:, ~kept].any()  # a removed neuron has no gate in either direction
        _, states = gate_states(closed)[name]
        assert all((state == REMOVED) == (not stays) for row in states for state, stays in zip(row, kept, strict=True))
    assert count.hidden_kept == [int(kept.sum())] and len(count.gates_live) == 2
    assert paper_count(masks).weights_kept >= closed_count(closed).weights_kept


# ---- the authors' count, by hand


def mask(shape, *kept):
    """A matrix of False but for these (row, column)."""
    out = torch.zeros(shape, dtype=torch.bool)
    for place in kept:
        out[place] = True
    return out


def hand_made_classifier():
    """4 words, 3 inputs, 3 neurons, 2 classes; rows i0 i1 i2 f0 f1 f2 g0 g1 g2 o0 o1 o2.

    Group variables remove word 2, neuron 2 and gate g0. Neuron 1 is read by the pruned gate g0 alone.
    """
    row = {f"{gate}{j}": 3 * k + j for k, gate in enumerate("ifgo") for j in range(3)}
    model = Classifier(4, 2, embedding=3, hidden=3)
    weights = {
        # word 0 writes inputs 0 and 2, word 1 nothing, word 2 (removed) input 0, word 3 input 1
        "embedding.weight": mask((4, 3), (0, 0), (0, 2), (2, 0), (3, 1)),
        # input 0 enters i0 and the pruned g0; input 1 enters neuron 1, input 2 the removed neuron 2
        "lstm.weight_ih_l0": mask((12, 3), (row["i0"], 0), (row["g0"], 0), (row["o1"], 1), (row["f2"], 2)),
        # neuron 1 enters the pruned g0; the removed neuron 2 alone feeds o0; neuron 0 feeds f1
        "lstm.weight_hh_l0": mask((12, 3), (row["g0"], 1), (row["o0"], 2), (row["f1"], 0)),
        # class 0 reads neuron 0, class 1 the removed neuron 2
        "head.weight": mask((2, 3), (0, 0), (1, 2)),
    }
    groups = {
        "vocabulary": torch.tensor([True, True, False, True]),
        "hidden_l0": torch.tensor([True, True, False]),
        "gates_l0": torch.arange(12) != row["g0"],
    }
    return model, Masks(tuple(model.axes()), weights, groups)


def test_paper_count_of_a_hand_made_classifier():
    count = paper_count(hand_made_classifier()[1])
    assert count.vocabulary_kept == 3  # 0, 1, 3: the variable alone decides, though word 1 has no weight
    assert count.input_kept == 3  # raw: written and read, 1 by the pruned way into g0, 2 by the removed neuron 2
    assert count.hidden_kept == [2]  # 0, and 1: read, if only by a pruned gate
    assert count.gates_total == [12]
    assert count.gates_live == [4]  # i0, f1, o1, and o0 though only the removed neuron 2 feeds it; not g0, not f2
    # embedding 3 (word 2 cleared), W_ih 3 (i0, o1 and the weight into the pruned g0; f2's row is cleared),
    # W_hh 2 (g0 ← 1, f1 ← 0; column 2 is cleared), head 1
    assert count.weights_kept == 3 + 3 + 2 + 1
    assert count.weights_total == 4 * 3 + 12 * 3 + 12 * 3 + 2 * 3
    assert count.compression == 10


def test_closure_of_a_hand_made_classifier():
    """g0 is pruned → nobody reads neuron 1 → nobody reads input 1 → word 3 writes nothing: only the fixed point sees it."""
    closed = close(hand_made_classifier()[1])
    count = closed_count(closed)
    assert closed.groups["vocabulary"].tolist() == [True, False, False, False]
    assert closed.groups["input"].tolist() == [True, False, False]
    assert closed.groups["hidden_l0"].tolist() == [True, False, False]
    assert closed.groups["gates_l0"].nonzero().flatten().tolist() == [0]  # i0
    assert {name: w.nonzero().tolist() for name, w in closed.weights.items()} == {
        "embedding.weight": [[0, 0]],
        "lstm.weight_ih_l0": [[0, 0]],
        "lstm.weight_hh_l0": [],
        "head.weight": [[0, 0]],
    }
    assert (count.weights_kept, count.vocabulary_kept, count.input_kept) == (3, 1, 1)
    assert (count.hidden_kept, count.gates_live) == ([1], [1])
    letters, states = gate_states(closed)["gates_l0"]
    assert letters == "ifgo" and states == [[s, REMOVED, REMOVED] for s in (LIVE, CONSTANT, CONSTANT, CONSTANT)]


def test_a_classifier_without_word_variables_keeps_the_words_that_have_weights():
    _, masks = hand_made_classifier()
    without = Masks(masks.axes, masks.weights, {k: v for k, v in masks.groups.items() if k != "vocabulary"})
    assert paper_count(without).vocabulary_kept == 3  # 0, 2, 3
    assert paper_count(without).weights_kept == 10


def test_paper_count_of_a_hand_made_language_model():
    """4 words, 2 neurons; a word needs its variable AND a non-zero. Rows i0 i1 f0 f1 g0 g1 o0 o1."""
    model = LanguageModel(4, hidden=2)
    weights = {
        # word 0 feeds i0; the removed word 1 alone feeds o0; word 2 nothing; word 3 only neuron 1, which nobody reads
        "lstm.weight_ih_l0": mask((8, 4), (0, 0), (6, 1), (7, 3)),
        "lstm.weight_hh_l0": mask((8, 2), (2, 0), (5, 0)),  # neuron 0 feeds f0 and g1
        "head.weight": mask((4, 2), (2, 0)),
    }
    masks = Masks(tuple(model.axes()), weights, {"vocabulary": torch.tensor([True, False, True, True])})
    count = paper_count(masks)
    assert count.vocabulary_kept == 2  # 0, and 3 by its raw weight; 1 has no variable, 2 no weight
    assert count.input_kept is None and count.hidden_kept == [1]
    assert count.weights_kept == 1 + 1 + 1  # i0 ← word 0, f0 ← neuron 0, head; the rows of neuron 1 are cleared
    assert count.gates_live == [3]  # i0, f0, and o0 fed by the removed word 1
    assert count.weights_total == 8 * 4 + 8 * 2 + 4 * 2
    closed = closed_count(close(masks))
    assert (closed.vocabulary_kept, closed.hidden_kept, closed.gates_live, closed.weights_kept) == (1, [1], [2], 3)


def test_counts_are_per_layer_and_a_neuron_may_be_read_by_the_next_layer_alone():
    model = LanguageModel(2, hidden=2, layers=2)
    weights = {
        "lstm.weight_ih_l0": mask((8, 2), (0, 0), (1, 1)),
        "lstm.weight_hh_l0": mask((8, 2)),
        "lstm.weight_ih_l1": mask((8, 2), (4, 0), (5, 1)),  # g0 ← lower 0; g1 ← lower 1, but nobody reads upper 1
        "lstm.weight_hh_l1": mask((8, 2)),
        "head.weight": mask((2, 2), (0, 0)),
    }
    masks = Masks(tuple(model.axes()), weights, {})
    count, closed = paper_count(masks), closed_count(close(masks))
    assert count.hidden_kept == [2, 1] and closed.hidden_kept == [1, 1]
    assert count.weights_kept == 2 + 1 + 1 and closed.weights_kept == 1 + 1 + 1
    assert count.vocabulary_kept == 2 and closed.vocabulary_kept == 1
    assert count.gates_live == [2, 1] and closed.gates_live == [1, 1]


def test_nothing_kept_counts_as_infinite_compression():
    model = LanguageModel(4, hidden=2)
    nothing = random_masks(model, 0, 0.0)
    assert paper_count(nothing).compression == float("inf")
    assert closed_count(close(nothing)).hidden_kept == [0]


# ---- the closure, on random masks


def read_by_somebody(w, layers):
    """Per layer, the neurons that the head reads, or one of these reads, and so on."""
    needed = [np.zeros(w[f"lstm.weight_hh_l{k}"].shape[1], bool) for k in range(layers)]
    needed[-1] |= w["head.weight"].any(0)
    for _ in range(layers * len(needed[0])):
        for k in reversed(range(layers)):
            needed[k] |= w[f"lstm.weight_hh_l{k}"][np.tile(needed[k], 4)].any(0)
            if k + 1 < layers:
                needed[k] |= w[f"lstm.weight_ih_l{k + 1}"][np.tile(needed[k + 1], 4)].any(0)
    return needed


def closure_by_hand(masks, layers, embedded):
    """Matrices and neurons by name, no axes: zero lines until nothing changes → weights, words, inputs, neurons."""
    w = {name: m.numpy().copy() for name, m in masks.weights.items()}
    group = {a.name: masks.group(a).numpy() for a in masks.axes}
    inputs = group["input"].copy() if embedded else None
    words, hidden = group["vocabulary"].copy(), [group[f"hidden_l{k}"].copy() for k in range(layers)]
    while True:
        before = [m.sum() for m in (*w.values(), words, *([inputs] if embedded else []), *hidden)]
        if embedded:
            w["embedding.weight"][~words] = False
            w["embedding.weight"][:, ~inputs] = False
            w["lstm.weight_ih_l0"][:, ~inputs] = False
            words &= w["embedding.weight"].any(1)
            inputs &= w["embedding.weight"].any(0) & w["lstm.weight_ih_l0"].any(0)
        else:
            w["lstm.weight_ih_l0"][:, ~words] = False
            words &= w["lstm.weight_ih_l0"].any(0)
        for k in range(layers):
            reader = w[f"lstm.weight_ih_l{k + 1}" if k + 1 < layers else "head.weight"]
            reader[:, ~hidden[k]] = False
            w[f"lstm.weight_hh_l{k}"][:, ~hidden[k]] = False
            for kind in ("ih", "hh"):
                w[f"lstm.weight_{kind}_l{k}"][~(group[f"gates_l{k}"] & np.tile(hidden[k], 4))] = False
        hidden = [h & needed for h, needed in zip(hidden, read_by_somebody(w, layers), strict=True)]
        if before == [m.sum() for m in (*w.values(), words, *([inputs] if embedded else []), *hidden)]:
            return w, words, inputs, hidden


share = st.sampled_from([0.03, 0.1, 0.3, 0.6, 1.0])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([n for n in RECURRENT if not n.startswith("bi")]), st.integers(0, 999))
def test_closure_is_the_fixed_point_idempotent_and_only_removes(data, name, seed):
    model = built(name)
    density = {n: data.draw(share) for n in weight_matrices(model)}
    groups = {a.name: data.draw(st.sampled_from([0.4, 0.8, 1.0])) for a in model.axes() if data.draw(st.booleans())}
    masks = random_masks(model, seed, density, groups)
    closed, layers = close(masks), model.lstm.num_layers
    again = close(closed)
    weights, words, inputs, hidden = closure_by_hand(masks, layers, "classifier" in name)
    for n, mask in closed.weights.items():
        assert np.array_equal(mask.numpy(), weights[n]), n
        assert torch.equal(mask, again.weights[n]) and not (mask & ~masks.weights[n]).any()
    for axis in masks.axes:
        kept = closed.groups[axis.name]
        assert torch.equal(kept, again.groups[axis.name]) and not (kept & ~masks.group(axis)).any()
    assert np.array_equal(closed.groups["vocabulary"], words)
    assert inputs is None or np.array_equal(closed.groups["input"], inputs)
    for k in range(layers):
        live = weights[f"lstm.weight_ih_l{k}"].any(1) | weights[f"lstm.weight_hh_l{k}"].any(1)
        assert np.array_equal(closed.groups[f"hidden_l{k}"], hidden[k])
        assert np.array_equal(closed.groups[f"gates_l{k}"], live)  # a live gate has a weight, and only a live one


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.sampled_from(list(MODELS)), st.integers(0, 999), share, st.sampled_from([0.4, 0.8, 1.0]), st.booleans())
def test_closure_does_not_change_the_function(name, seed, density, kept, with_means):
    model = built(name)
    masks = random_masks(model, seed, density, {axis.name: kept for axis in model.axes()})
    means = random_means(masks, seed) if with_means else {}
    before, after = (masked(model, m, means)(TOKENS)[0] for m in (masks, close(masks)))
    assert error(after, before) <= 1e-12


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.sampled_from(RECURRENT), st.integers(0, 999), share)
def test_live_constant_and_removed_gates_are_all_gates(name, seed, density):
    model = built(name)
    masks = random_masks(model, seed, density, {axis.name: 0.7 for axis in model.axes()})
    closed = close(masks)
    for axis in closed.of_kind("hidden"):
        letters, states = gate_states(closed)[axis.name.replace("hidden", "gates")]
        assert [len(states), len(states[0])] == [len(letters), axis.size]
        kept = closed.groups[axis.name].tolist()
        live = closed.groups["gates" + axis.name.removeprefix("hidden")].view(len(letters), -1).tolist()
        for k, row in enumerate(states):
            for j, state in enumerate(row):
                assert state == (REMOVED if not kept[j] else LIVE if live[k][j] else CONSTANT)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.sampled_from(list(MODELS)), st.integers(0, 999), share)
def test_the_closure_never_keeps_more_than_the_authors_count(name, seed, density):
    masks = random_masks(built(name), seed, density, {axis.name: 0.7 for axis in built(name).axes()})
    paper, closed = paper_count(masks), closed_count(close(masks))
    assert closed.weights_kept <= paper.weights_kept and closed.vocabulary_kept <= paper.vocabulary_kept
    for a, b in ((closed.hidden_kept, paper.hidden_kept), (closed.gates_live, paper.gates_live)):
        assert all(small <= large for small, large in zip(a, b, strict=True))
