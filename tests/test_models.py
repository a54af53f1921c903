"""The study's models with every cell: how they start, what they drop, what ties them, and that they can be made small."""

import math

import pytest
import tiny
import torch
from oracles import error, masked_by_hand, random_masks, random_means, randomise
from torch import nn

import sparsernn
from sparsernn.engines.choose import choose
from sparsernn.nets.compact import compact, shrunk
from sparsernn.nets.file import load, save
from sparsernn.nets.found import Found
from sparsernn.nets.masked import masked
from sparsernn.nets.masks import Masks, closed_count, paper_count, weight_matrices
from sparsernn.nets.models import CELLS, Classifier, LanguageModel, StackedLanguageModel
from sparsernn.report import plots, tables
from sparsernn.sparsify.attach import attach
from sparsernn.study.config import RunConfig
from sparsernn.study.presets import PRESETS, Preset
from sparsernn.study.runs import ensure

V = 7
MODELS = {f"classifier, {cell}": lambda cell=cell: Classifier(V, 2, 4, 5, cell=cell) for cell in CELLS}
MODELS |= {f"language model, {cell}": lambda cell=cell: LanguageModel(V, 5, layers=2, cell=cell) for cell in CELLS}
MODELS |= {f"stacked, {cell}": lambda cell=cell: StackedLanguageModel(V, 4, 5, 3, cell) for cell in CELLS}
MODELS |= {f"tied, {cell}": lambda cell=cell: StackedLanguageModel(V, 5, 5, 2, cell, tied=True) for cell in CELLS}
MODELS |= {"tied, one layer": lambda: StackedLanguageModel(V, 5, 5, 1, tied=True)}
TIED = [name for name in MODELS if name.startswith("tied")]
every_model = pytest.mark.parametrize("name", MODELS)


def tokens_for(steps=5, batch=3, seed=0):
    return torch.randint(V, (steps, batch), generator=torch.Generator().manual_seed(seed))


# ---- how they start


@pytest.mark.parametrize("cell", CELLS)
def test_weights_start_gate_by_gate_and_only_an_lstm_has_a_forget_bias(cell):
    torch.manual_seed(0)
    model = LanguageModel(V, 6, forget_bias=1.0, cell=cell)
    assert type(model.recurrent) is CELLS[cell] and model.stack == cell.lower()
    for block in getattr(model.recurrent, "weight_hh_l0").chunk(len(model.recurrent.cell.gates)):  # noqa: B009
        torch.testing.assert_close(block @ block.t(), torch.eye(6))
    biases = model.recurrent.bias_ih_l0.view(-1, 6)
    wanted = torch.tensor([[0.0], [1.0], [0.0], [0.0]] if cell == "LSTM" else [[0.0]] * len(biases))
    assert torch.equal(biases, wanted.expand_as(biases)) and not model.recurrent.bias_hh_l0.any()


def test_a_classifier_s_gates_are_hard_and_an_rnn_has_none():
    activations = {cell: Classifier(V, 2, 4, 5, cell=cell).recurrent.activation for cell in CELLS}
    assert activations == {"LSTM": "hard", "GRU": "hard", "RNN": "tanh"}
    assert Classifier(V, 2, 4, 5, cell="GRU", activation="logistic").recurrent.activation == "logistic"


def test_a_stack_starts_as_torch_does_or_uniformly():
    torch.manual_seed(3)
    model = StackedLanguageModel(V, 4, 5, 3, "GRU")
    torch.manual_seed(3)
    theirs = nn.Embedding(V, 4), nn.GRU(4, 5, 3), nn.Linear(5, V)
    own = [parameter for module in theirs for parameter in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True))
    for tied in (False, True):
        model = StackedLanguageModel(500, 40, 40, 2, tied=tied, uniform=0.05)
        for parameter in model.parameters():  # biases too
            assert 0.045 < parameter.abs().max() <= 0.05 and parameter.mean().abs() < 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_a_stack_is_torch_s(cell):
    model = StackedLanguageModel(V, 4, 5, 3, cell).double()
    theirs = getattr(nn, cell)(4, 5, 3).double()
    theirs.load_state_dict(model.recurrent.state_dict())
    state = None
    for seed in range(2):
        tokens, before = tokens_for(seed=seed), state
        logits, state = model(tokens, state=before)
        y, last = theirs(model.embedding.weight[tokens], before)
        assert error(logits, y @ model.head.weight.t() + model.head.bias) <= 1e-12
        for mine, other in zip(*(s if isinstance(s, tuple) else (s,) for s in (state, last)), strict=True):
            assert error(mine, other) <= 1e-12


# ---- how large they are


@pytest.mark.parametrize("vocabulary, cell, tied, total, recurrent", [
    (10_000, "LSTM", False, 4_974_800, 964_800),  # 1908.07724 at a sharing rate of 0
    (10_000, "LSTM", True, 2_974_800, 964_800),
    (10_000, "GRU", False, 4_733_600, 723_600),
    (10_000, "RNN", False, 4_251_200, 241_200),
    (33_278, "LSTM", False, 14_309_278, 964_800),
])  # fmt: skip
def test_stacks_of_three_layers_are_as_large_as_published(vocabulary, cell, tied, total, recurrent):
    with torch.device("meta"):
        model = StackedLanguageModel(vocabulary, 200, 200, 3, cell, tied)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model, model.recurrent)]
    assert sizes == [total, recurrent]


@pytest.mark.parametrize("hidden, millions", [(200, 4.7), (650, 19.8), (1500, 66.0)])
def test_the_stacks_of_zaremba_are_as_large_as_published(hidden, millions):
    with torch.device("meta"):
        model = StackedLanguageModel(10_000, hidden, hidden, 2)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


# ---- what is dropped


@pytest.mark.parametrize("place", ["input", "between", "output"])
def test_dropout_acts_in_its_place_in_training_and_nowhere_else(place):
    """Ones in, weights that hand on what they get: the share of zeros shows where something was dropped."""
    torch.manual_seed(0)
    model = StackedLanguageModel(V, 40, 40, 2, "RNN", **{f"dropout_{place}": 0.5})
    seen, layers = {}, model.recurrent
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        (
            model.embedding.weight.fill_(1.0),
            layers.weight_ih_l0.copy_(torch.eye(40)),
            layers.weight_ih_l1.copy_(torch.eye(40)),
        )
    layers.register_forward_hook(lambda module, args, output: seen.update(input=args[0], state=output[1]))
    model.head.register_forward_hook(lambda module, args, output: seen.update(output=args[0]))
    model.train()(tokens_for(30, 4))
    dropped = {"input": seen["input"], "between": seen["state"][1], "output": seen["output"]}
    share = {name: float((values == 0).float().mean()) for name, values in dropped.items()}
    reached = {"input": ("input", "between", "output"), "between": ("between", "output"), "output": ("output",)}
    for name, zeros in share.items():
        assert zeros == pytest.approx(0.5 if name in reached[place] else 0.0, abs=0.1), name
    if place != "between":  # what is left counts double, and other numbers go at the next step
        values, whole = dropped[place].detach(), {"input": 1.0, "output": math.tanh(math.tanh(1.0))}[place]
        assert values.max().item() == pytest.approx(2 * whole) and not torch.equal(values[0] == 0, values[1] == 0)
    model.eval()(tokens_for(30, 4))
    assert (seen["input"] == 1).all() and (seen["output"] != 0).all()


@pytest.mark.parametrize("given, said", [
    ({"cell": "LSTN"}, "unknown cell 'LSTN'; did you mean 'LSTM'"),
    ({"tied": True}, "embedding is 4, hidden 5"),
    ({"layers": 1, "dropout_between": 0.2}, "one layer has nothing between"),
    ({"dropout_input": 1.5}, "between 0 and 1"),
])  # fmt: skip
def test_a_stack_that_makes_no_sense_is_refused_in_words(given, said):
    with pytest.raises(ValueError, match=said):
        StackedLanguageModel(**({"vocabulary": V, "embedding": 4, "hidden": 5, "layers": 2} | given))


def test_a_classifier_s_activation_is_refused_whatever_the_cell():
    for cell in CELLS:
        with pytest.raises(ValueError, match="unknown activation 'hrad'; did you mean 'hard'"):
            Classifier(V, 2, 4, 5, activation="hrad", cell=cell)


# ---- what is tied


def test_tied_weights_are_one_parameter_and_go_by_the_embedding_s_name():
    model = StackedLanguageModel(V, 5, 5, 2, tied=True)
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters()) and "head.weight" not in weight_matrices(model)
    assert Found(model).canonical["head.weight"] == "embedding.weight"
    tensors = {member.tensor for axis in model.axes() for member in axis.members if member.tied}
    assert tensors == {"embedding.weight"} and not any(
        m.tied for a in MODELS["stacked, LSTM"]().axes() for m in a.members
    )
    logits, _ = model(tokens_for())
    logits.sum().backward()
    before = model.embedding.weight.detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    unread = [word for word in range(V) if not (tokens_for() == word).any()]  # the head moves those too
    assert not torch.equal(model.embedding.weight[unread], before[unread]) or not unread
    assert torch.equal(model.head.weight, model.embedding.weight)


@pytest.mark.parametrize("name", TIED)
def test_lines_of_tied_weights_are_counted_as_long_as_somebody_reads_them(name):
    """Words, inputs and neurons may go; the matrix keeps what its own mask keeps, for the other layer has a use for it."""
    model = randomise(MODELS[name]())
    masks = random_masks(model, 2, 0.6, {axis.name: 0.5 for axis in model.axes()})
    own = int(masks.weights["embedding.weight"].sum())
    small, closed = shrunk(model, masks)
    assert int(closed.weights["embedding.weight"].sum()) == own
    paper, stored = paper_count(masks), closed_count(closed)
    assert own <= stored.weights_kept <= paper.weights_kept
    others = {tensor for tensor in masks.weights if tensor != "embedding.weight"}
    assert stored.weights_kept == own + sum(int(closed.weights[tensor].sum()) for tensor in others)
    groups = {axis.name: masks.groups[axis.name] for axis in model.axes() if axis.kind != "vocabulary"}
    small = compact(model, Masks(masks.axes, masks.weights, groups))
    assert small.head.weight is small.embedding.weight and int((small.head.weight != 0).sum()) == own


def test_one_noise_is_drawn_for_tied_weights_and_one_penalty_paid():
    model = MODELS["tied, LSTM"]()
    study = attach(model, "sparse-vd-w-voc", steps=10, n_examples=10)
    assert set(study.weights) == set(weight_matrices(model)) and len(study.weights["embedding.weight"].owners) == 2
    rows = model.embedding(torch.arange(V)[:, None])[:, 0]
    drawn = model.head.used("weight")
    assert not torch.equal(drawn, model.head.weight)
    scales = rows / drawn  # of each word, which the head does not have
    torch.testing.assert_close(scales, scales[:, :1].expand_as(scales), rtol=1e-4, atol=1e-4)
    assert study.groups["vocabulary"].size == V and not torch.allclose(scales, torch.ones_like(scales))


# ---- made small


def drawn(model, seed):
    """Masks: weights alone, or groups of some axes too; the sparser the larger the seed."""
    chosen = {a.name: 0.6 for k, a in enumerate(model.axes()) if (seed >> k % 4) & 1}
    return random_masks(model, seed, (0.9, 0.6, 0.3, 0.1)[seed % 4], chosen)


@every_model
@pytest.mark.parametrize("seed", range(16))
def test_compact_equals_masked_for_random_masks(name, seed):
    model = randomise(MODELS[name](), seed)
    masks = drawn(model, seed)
    means = random_means(masks, seed) if seed % 3 else {}
    small, whole = compact(model, masks, means), masked(model, masks, means)
    lengths = torch.tensor([2, 5, 1]) if seed % 2 else None
    state = reference = by_hand = None
    for window in range(1 if "classifier" in name else 3):
        tokens = tokens_for(seed=seed + window)
        logits, state = small(tokens, lengths, state)
        expected, reference = whole(tokens, lengths, reference)
        formula, by_hand = masked_by_hand(model, masks, means, tokens, lengths, by_hand)
        assert error(expected, formula) <= 1e-12 and error(logits, expected) <= 1e-9
    assert str(small) == str(compact(model, masks, means))


@every_model
def test_everything_or_nothing_kept_is_equal_too(name):
    model = randomise(MODELS[name]())
    for density in (0.0, 1.0):
        masks = random_masks(model, 0, density)
        assert error(compact(model, masks)(tokens_for())[0], masked(model, masks)(tokens_for())[0]) <= 1e-9


@every_model
@pytest.mark.parametrize("seed", range(4))
def test_a_file_gives_back_the_same_model(tmp_path, name, seed):
    model = randomise(MODELS[name](), seed).float()
    masks = drawn(model, seed)
    means = {axis: mean.float() for axis, mean in random_means(masks).items()} if seed % 2 else {}
    small = compact(model, masks, means)
    save(small, tmp_path / "model")
    for built_like in (None, model):
        back = load(tmp_path / "model", built_like)
        assert str(back) == str(small) and torch.equal(back(tokens_for())[0], small(tokens_for())[0])
        if name in TIED:
            assert (back.head.weight is back.embedding.weight) == (small.head.weight is small.embedding.weight)
        mine, theirs = back.state_dict(), small.state_dict()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.filterwarnings("ignore:.*would keep none of its neurons")
@pytest.mark.parametrize("name", ["stacked, GRU", *TIED])
def test_a_proof_of_a_trained_stack_is_given(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    study = attach(model, "sparse-vd-wgn", steps=60, n_examples=2, lr_log_sigma=0.1, threshold=0.0)
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    for step in range(60):
        tokens = tokens_for(6, 4, seed=step)
        loss = nn.functional.cross_entropy(model(tokens[:-1])[0].flatten(0, 1), tokens[1:].flatten())
        optimizer.zero_grad()
        (loss + study.penalty()).backward()
        optimizer.step(), study.after_step()
    small, proof = sparsernn.compact(model, example=(tokens,))
    assert proof.error <= 1e-9 and proof.weights_after < proof.weights_before
    assert error(small.eval()(tokens)[0], model.eval()(tokens)[0]) <= 1e-9


def test_a_whole_number_for_a_share_comes_back_too(tmp_path):
    model = StackedLanguageModel(V, 4, 5, 2, dropout_input=0, uniform=1)
    save(compact(model, Masks.all_kept(model)), tmp_path / "model")
    assert load(tmp_path / "model").arguments == model.arguments
    assert type(model.arguments["dropout_input"]) is float and type(model.arguments["layers"]) is int


@every_model
def test_an_engine_is_chosen_and_runs_it(name):
    model = randomise(MODELS[name]()).float()
    small, tokens = compact(model, drawn(model, 2)), tokens_for(6, 2)
    choice = choose(small, (tokens,), seconds=0.01)
    assert error(choice.make(small)(tokens)[0], small(tokens)[0]) <= 1e-5
    assert len(choice.times) > 2, choice.refused


# ---- in a study


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """A run of a tiny language model with a cell, by name."""
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tiny.register()
    (profiles,) = {id(p.profiles): p.profiles for p in PRESETS["tiny-char"].values()}.values()

    def of(model, method, **shape):
        monkeypatch.setitem(PRESETS["tiny-char"], "mine", Preset(model, shape, profiles))
        return ensure(RunConfig("tiny-char", "mine", method, "quick", epochs=3, kl_full=2.0, kl_weight=8.0))

    return of


@pytest.mark.parametrize("model, shape", [
    (LanguageModel, {"hidden": 6, "cell": "GRU"}),
    (LanguageModel, {"hidden": 6, "cell": "RNN"}),
    (StackedLanguageModel, {"embedding": 5, "hidden": 6, "layers": 2, "cell": "GRU", "dropout_between": 0.2}),
    (StackedLanguageModel, {"embedding": 6, "hidden": 6, "layers": 2, "tied": True}),
])  # fmt: skip
def test_a_study_reads_gates_by_the_letters_of_the_cell(studied, model, shape):
    run = studied(model, "sparse-vd-wgn", **shape)
    letters = run.model.recurrent.cell.gates
    assert run.record["cell"] == shape.get("cell", "LSTM") and run.record["compact_error"] <= 1e-9
    assert run.record["weights_stored"] <= run.record["weights_kept"] <= run.record["weights_total"]
    gates = tables.gate_table(run)
    assert list(gates["gate"].unique()) == list(letters) and len(gates) == 6 * len(letters) * shape.get("layers", 1)
    assert set(gates["layer"]) == {f"l{k}" for k in range(shape.get("layers", 1))}
    live = [int(part) for part in run.record["gates_live_closed"].split("-")]
    assert (gates["state"] == "live").sum() == sum(live)
    assert gates.loc[gates["state"] == "constant", "value"].notna().all()
    trace = tables.gate_trace(run, tables.first_text(run.task, 7))
    assert set(trace["gate"]) <= {*letters, "h"} and len(trace)
    for figure in (plots.gate_map(gates), plots.constant_values(gates)):
        assert figure is not None
    assert len(tables.count_table(run)) >= 3 and len(tables.sizes_table(run)) == 3
    assert len(tables.words_table(run)) == len(tables.kept_lines(run, "vocabulary"))
