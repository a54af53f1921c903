"""Every engine of the CPU computes the formulas; what an engine does not run, it refuses; the choice is the fastest."""

import gc
import os
import subprocess
import sys
import time
import weakref

import pandas as pd
import pytest
import torch
from layers import CELLS, V, by_formula, inputs, pruned
from oracles import Tagger, error, randn, random_masks, randomise
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import sparsernn
from sparsernn import engines
from sparsernn.engines import LAYERS, PRODUCTS, engine_class, parts, split
from sparsernn.engines import choose as chooser
from sparsernn.engines.base import Unsupported, oracle
from sparsernn.engines.whole import by_engine
from sparsernn.nets.compact import compact
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel
from sparsernn.report import timings

CPU = [name for name in engines.available("cpu") if name != "dense-fp32"]  # the same class as compact-torch
ROUGH = {
    "dense-bf16": 2e-2,
    "dense-int8": 5e-2,
    "own-dense-int8": 5e-2,
    "c-int8": 5e-2,
}  # their error; everything else is fp32
REFUSED = {"dense-int8": ("hard", "RNN"), "compact-torch": ("hard",), "dense-bf16": ("hard",)}
FUSED = tuple(REFUSED)
REFUSED |= {"own-dense-int8": ("relu",), "c-int8": ("relu",)}


@pytest.mark.parametrize("name", CELLS)
def test_the_layers_of_these_tests_have_live_and_constant_gates_of_every_kind(name):
    layer, *_ = pruned(name)
    assert bool((~layer.fixed.isnan())[list(layer.cell.from_input)].any(1).all()) and bool(layer.where.any(1).all())


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("engine", CPU)
def test_an_engine_computes_the_formulas_or_refuses(engine, name):
    layer, masked, kept = pruned(name)
    if any(word in name for word in REFUSED.get(engine, ())):
        with pytest.raises(Unsupported):
            engine_class(engine)(layer)
        return
    for batch in (1, 6):  # numba goes four at a time, and one by one
        run = engine_class(engine)(layer)  # int8 goes as far as the first x
        x, ids, *_ = inputs(5, batch)
        assert error(run(x).double(), by_formula(masked, kept, x)) <= ROUGH.get(engine, 1e-6)
        assert error(run(ids).double(), by_formula(masked, kept, ids)) <= ROUGH.get(engine, 1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("engine", [name for name in CPU if LAYERS[name][0] != "fused" or name == "compact-loop"])
def test_a_padded_step_keeps_the_state_and_returns_nothing(engine, name):
    if any(word in name for word in REFUSED.get(engine, ())):
        return
    layer, masked, kept = pruned(name)
    x, _, lengths, live = inputs(6, 5)
    wrong = error(engine_class(engine)(layer)(x, live).double(), by_formula(masked, kept, x, lengths))
    assert wrong <= ROUGH.get(engine, 1e-6)


@pytest.mark.parametrize(
    ("engine", "name"), [(e, n) for e in FUSED for n in CELLS if not any(word in n for word in REFUSED[e])]
)
def test_torch_s_layers_look_many_words_up_instead_of_writing_them_out(engine, name):
    layer, *_ = pruned(name)
    words = 10 * layer.hidden * len(layer.cell.gates)
    layer = layer.reading(randn(words, layer.inputs, seed=3))
    run = engine_class(engine)(layer)
    run.module = None  # the product with every word written out
    ids = torch.randint(words + 1, (5, 6), generator=torch.Generator().manual_seed(0))  # `words`: a removed one
    assert error(run(ids).double(), oracle(layer, ids)) <= ROUGH.get(engine, 1e-6)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("engine", ["numba", "numba-csr", "c-blocks"])
def test_a_layer_that_keeps_every_gate(engine, name):
    layer, masked, kept = pruned(name, live=1.0, keep=1.0)
    assert bool(layer.where.all())
    x, _, lengths, live = inputs(6, 5)
    assert error(engine_class(engine)(layer)(x, live).double(), by_formula(masked, kept, x, lengths)) <= 1e-6


def test_numba_takes_more_sequences_than_lanes():
    layer, masked, kept = pruned("LSTM")
    x, *_ = inputs(2, 70)
    assert error(engine_class("numba-csr")(layer)(x).double(), by_formula(masked, kept, x)) <= 1e-6


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("engine", [name for name in CPU if engine_class(name).hands_out])
def test_final_states_that_are_handed_out_are_those_of_the_last_real_step(engine, name):
    if any(word in name for word in REFUSED.get(engine, ())):
        return
    layer, *_ = pruned(name)
    x, *_, live = inputs(6, 5)
    live = None if engine in FUSED else live
    _, states = parts.run(layer.cell, layer.double().parts, x.double(), None, live, reverse=False)
    y, got = engine_class(engine)(layer).with_states(x, live)
    assert len(got) == len(states) and torch.equal(y, engine_class(engine)(layer)(x, live))
    for mine, theirs in zip(got, states, strict=True):
        assert error(mine.double(), theirs) <= ROUGH.get(engine, 1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_the_oracle_is_exact(name):
    layer, masked, kept = pruned(name)
    x, ids, *_ = inputs(4, 2)
    assert error(oracle(layer, x), by_formula(masked, kept, x)) <= 1e-12
    assert error(oracle(layer, ids), by_formula(masked, kept, ids)) <= 1e-12


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "RNN, relu"])
def test_sequences_neurons_and_inputs_that_fill_up_change_no_answer(name):
    layer, *_ = pruned(name)
    kind = type("Padded", (engine_class("dense-fp16-padded"),), {"dtype": torch.float32})
    padded, seen = kind(layer), []
    assert (padded.module.hidden_size, padded.module.input_size) == (128, 128)
    assert type("As", (kind,), {"LARGEST": 100})(layer).module.hidden_size == layer.hidden
    padded.module.register_forward_hook(lambda module, given, said: seen.append(given[0].shape[1]))
    for batch in (1, 5, 12):
        x, ids, *_ = inputs(6, batch)
        assert error(padded(ids), engine_class("compact-torch")(layer)(ids)) <= 1e-6
        seen.pop()
        (y, got), (expected, states) = padded.with_states(x), engine_class("compact-torch")(layer).with_states(x)
        assert error(y, expected) <= 1e-6 and all(error(a, b) <= 1e-6 for a, b in zip(got, states, strict=True))
    assert seen == [8, 8, 16]
    x, *_ = inputs(6, 8)
    assert error(padded(x), engine_class("compact-torch")(layer)(x)) <= 1e-6, "neurons alone"
    with pytest.raises(Unsupported, match="8 sequences, neurons and inputs are multiples of 8 and 128"):
        type("As", (kind,), {"LARGEST": 100})(layer)(x)
    replayed = type("Replayed", (engine_class("dense-fp32-graph"),), {})(layer, "cpu")
    with pytest.raises(Unsupported, match="sequences of one length"):
        replayed.run_with_states(*[inputs(6, 5)[n] for n in (0, 3)])


def test_a_product_of_three_parts_rounds_as_fp32_where_factors_are_cut_to_tf32(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight, bias, y = (torch.randn(*shape, generator=generator) for shape in ((40, 300), (40,), (9, 11, 300)))
    exact, cut = F.linear(y.double(), weight.double(), bias.double()), lambda x: split.parts(x)[0]
    linear = F.linear
    in_fp32 = error(linear(y, weight, bias), exact)  # 5e-7, or what this processor's order of summing makes of it
    monkeypatch.setattr(split.F, "linear", lambda y, w, b: linear(cut(y), cut(w), b))
    by_parts, in_tf32 = error(split.split_linear(weight, bias)(y), exact), error(split.F.linear(y, weight, bias), exact)
    assert by_parts <= 3 * in_fp32 < 1e-4 < in_tf32, "three times as many numbers are summed"
    monkeypatch.setattr(split.F, "linear", linear)
    assert torch.equal(split.split_linear(weight, bias)(y[:1]), F.linear(y[:1], weight, bias)), "few rows: as they are"
    y[0, 0, 0], y[1, 0, 0] = torch.inf, torch.nan
    said = split.split_linear(weight, bias)(y)
    assert said[0, 0].isinf().all() and said[1, 0].isnan().all() and said[2:].isfinite().all()
    assert torch.backends.cuda.matmul.allow_tf32 is False


SETTINGS = {
    "as torch has it": "pass",
    "cuDNN's convolutions alone": "backends.cudnn.conv.fp32_precision = 'ieee'",
    "everything in full": "backends.fp32_precision = 'ieee'",
    "everything rounded": "backends.fp32_precision = 'tf32'",
    "products alone": "backends.cuda.matmul.fp32_precision = 'tf32'",
    "by name": "torch.set_float32_matmul_precision('medium')",
    "no tf32": "backends.cudnn.allow_tf32 = False",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_however_a_user_has_set_tf32_an_engine_is_chosen_and_the_setting_stays(setting):
    """In a process of its own: some of these settings cannot be taken back."""
    said = subprocess.run([sys.executable, "-c", f"""
import torch
from torch import backends
import sparsernn
from sparsernn.engines import choose, precision
def asked():
    found = [one.fp32_precision for one in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)]
    for read in (lambda: backends.cudnn.allow_tf32, lambda: backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found
{SETTINGS[setting]}
before = asked()
for allowed, wanted in ((False, ("ieee", "none")), (True, ("tf32",))):
    with precision.tf32(allowed):
        inside = asked()[:3]
        assert all(one in wanted for one in inside), inside
        with precision.products(not allowed):
            assert (backends.cuda.matmul.fp32_precision == "tf32") == (not allowed)
assert asked() == before, (before, asked())
model = torch.nn.LSTM(3, 4)
assert choose.choose(model, torch.randn(5, 2, 3), seconds=0.01).engine
assert asked() == before
print("right")
"""], capture_output=True, text=True, timeout=120)  # fmt: skip
    assert said.stdout.strip() == "right", said.stderr


def test_columns_that_fill_up_change_no_product():
    kind = type("Padded", (engine_class("dense-fp16-padded", PRODUCTS),), {"dtype": torch.float32})
    weight, x = torch.randn(7, 30), torch.randn(30, 12)
    assert error(kind(weight)(x), weight.double() @ x.double()) <= 1e-6
    assert error(kind(weight)(x[:, :1]), weight.double() @ x[:, :1].double()) <= 1e-6
    with pytest.raises(Unsupported, match="8 columns are a multiple of 8"):
        kind(weight)(x[:, :8])


def test_fused_layers_refuse_padding():
    layer, *_ = pruned("LSTM")
    x, _, _, live = inputs(6, 5)
    with pytest.raises(Unsupported, match="sequences of one length"):
        engine_class("compact-torch")(layer)(x, live)


@pytest.mark.parametrize(
    "name", ["dense-fp32", "dense-bf16", "dense-int8", "own-dense-int8", "csr-torch", "csr-numba", "c-int8", "c-blocks"]
)
@pytest.mark.parametrize("wide", [1, 4, 7, 48, 70])
def test_a_product_is_that_of_float64(name, wide):
    weight = torch.randn(20, 30, dtype=torch.float64) * (torch.rand(20, 30) < 0.3)
    x, product = torch.randn(30, wide), engine_class(name, PRODUCTS)(weight)
    assert error(product(x.to(product.reads)).double(), weight @ x.double()) <= ROUGH.get(name, 1e-6)


def test_an_opponent_runs_as_it_is_used_not_trained():
    """cuDNN keeps what a backward pass would need of a layer in training, whether there is one or not."""
    for name in ("dense-fp32", "compact-torch", "dense-bf16"):
        assert not engine_class(name)(pruned("LSTM")[0]).module.training


def test_two_to_four_refuses_what_is_not():
    weight = torch.ones(32, 64)
    with pytest.raises(Unsupported, match="more than two"):
        engine_class("two-to-four", PRODUCTS)(weight)
    with pytest.raises(Unsupported, match="columns in 64s"):
        engine_class("two-to-four", PRODUCTS)(weight[:, :30])


def test_an_unknown_engine_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown engine 'numba-crs'; did you mean 'numba-csr'"):
        engine_class("numba-crs")


def test_a_missing_package_takes_only_its_engines_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparsernn.engines.cpu", None)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match="engine 'numba' needs"):
        engine_class("numba")
    assert "numba" not in engines.available("cpu") and "csr-torch" in engines.available("cpu")


# ---- whole models

MODELS = {
    "classifier": lambda: Classifier(V, 2, embedding=4, hidden=6, layers=2),
    "language model": lambda: LanguageModel(V, hidden=6),
    "bidirectional": lambda: Tagger(V, 3, hidden=5, layers=2),
}


class Behind(torch.nn.Module):
    """An embedding, a dropout, a GRU; `also`: what else reads what the dropout says."""

    def __init__(self, also):
        super().__init__()
        self.embedding, self.dropout, self.gru = torch.nn.Embedding(V, 4), torch.nn.Dropout(0.5), torch.nn.GRU(4, 6)
        self.also = also

    def forward(self, ids):
        x = self.dropout(self.embedding(ids))
        return self.gru(x)[0] + (0 if self.also is None else self.also(x).sum())


@pytest.mark.parametrize(
    ("also", "goes"), [(None, True), (torch.nn.Linear(4, 1), False), (torch.nn.Identity(), False), (torch.relu, False)]
)
def test_an_embedding_behind_a_dropout_is_multiplied_into_weights_where_nothing_else_reads_it(also, goes):
    model, ids = Behind(also).eval(), torch.randint(V, (5, 3))
    fast = by_engine(model, "numba", ids)
    assert (type(fast.embedding).__name__ == "Ids") == goes
    with torch.no_grad():
        torch.testing.assert_close(fast(ids), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ["compact-loop", "csr-torch", "numba", "numba-csr", "c-blocks"])
@pytest.mark.parametrize("name", MODELS)
def test_a_compact_model_says_the_same_by_any_engine(name, engine):
    model = randomise(MODELS[name]())
    small = compact(model, random_masks(model, 3, 0.6))
    tokens, lengths = torch.randint(V, (6, 4)), torch.tensor([6, 1, 4, 6])
    fast = by_engine(small, engine, tokens)
    assert error(fast(tokens)[0].double(), small(tokens)[0]) <= 1e-6
    assert error(fast(tokens, lengths)[0].double(), small(tokens, lengths)[0]) <= 1e-6
    assert small.head.weight.dtype == torch.float64, "the model itself is untouched"


@pytest.mark.parametrize("engine", engines.available("cpu"))
@pytest.mark.parametrize("lines", [(1,), (3,), (5, 14), (2, 64)])
def test_a_linear_layer_is_that_of_float64(engine, lines):
    weight, bias = randn(130, 9, seed=1) * (randn(130, 9, seed=2) > 0.5), randn(130, seed=3)
    y = randn(*lines, 9, seed=4)
    got = engine_class(engine).linear(weight, bias)(y.float())
    assert got.dtype == torch.float32
    assert error(got.double(), torch.nn.functional.linear(y, weight, bias)) <= ROUGH.get(engine, 1e-6)


def test_a_model_without_layers_and_a_state_are_refused():
    model = randomise(BagOfWords(V, 2))
    with pytest.raises(Unsupported, match="no recurrent layer"):
        by_engine(compact(model, random_masks(model, 0)), "numba", torch.zeros(2, 2, dtype=torch.int64))
    model = randomise(LanguageModel(V, hidden=4))
    small = compact(model, random_masks(model, 0, 1.0))
    tokens = torch.randint(V, (3, 2))
    _, state = small(tokens)
    with pytest.raises(Unsupported, match="start from zeros"):
        by_engine(small, "numba", tokens)(tokens, state=tuple(part.float() for part in state))


# ---- the choice


class Slow(engine_class("compact-loop")):
    delay = 0.0
    factor = 1.0

    def run(self, x, live):
        time.sleep(self.delay)
        return self.factor * super().run(x, live)


def engine(delay, factor=1.0):
    return type("Made", (Slow,), {"delay": delay, "factor": factor})


def chosen(monkeypatch, **made):
    monkeypatch.setattr(chooser, "_times", {})
    monkeypatch.setattr(chooser, "available", lambda device: list(made))
    monkeypatch.setattr(chooser, "engine_class", lambda name: made[name])
    layer = pruned("LSTM")[0]
    return chooser.choose(layer, inputs(3, 2)[0], seconds=0.05)


def test_the_fastest_engine_is_chosen_and_a_wrong_one_never(monkeypatch):
    choice = chosen(monkeypatch, slow=engine(0.02), quick=engine(0.002), wrong=engine(0, 1.001))
    assert choice.engine == "quick" and set(choice.times) == {"slow", "quick"}
    assert "error" in choice.refused["wrong"]


def test_an_engine_disturbed_at_its_first_trial_is_still_chosen(monkeypatch):
    class Disturbed(engine(0.002)):
        calls = 0

        def run(self, x, live):
            type(self).calls += 1
            time.sleep(0.2 if self.calls == 3 else 0)  # once for the error, once to warm up, then the first trial
            return super().run(x, live)

    assert chosen(monkeypatch, steady=engine(0.02), disturbed=Disturbed).engine == "disturbed"


def test_what_torch_rounds_beside_an_engine_is_not_held_against_it(monkeypatch):
    class BesideAConvolution(engine(0)):
        def run(self, x, live):
            return (1.001 if torch.backends.cudnn.allow_tf32 else 1.0) * super().run(x, live)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch has it
    assert chosen(monkeypatch, right=BesideAConvolution).engine == "right" and torch.backends.cudnn.allow_tf32


def test_without_any_engine_the_reasons_are_given(monkeypatch):
    with pytest.raises(ValueError, match="no engine runs this on cpu: wrong: error"):
        chosen(monkeypatch, wrong=engine(0, 2.0))


@pytest.mark.parametrize(
    ("shape", "device", "words"),
    [
        ((3, 1, 5), "gpu", "unknown device 'gpu'"),
        ((3, 0, 5), "cpu", "at least one of each"),
        ((0, 1, 5), "cpu", "at least"),
    ],
)
def test_what_cannot_be_tried_is_refused(shape, device, words):
    with pytest.raises(ValueError, match=words):
        chooser.choose(pruned("LSTM")[0], torch.zeros(shape), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_the_choice_says_so():
    with pytest.raises(ValueError, match="no GPU that torch sees here"):
        chooser.choose(pruned("LSTM")[0], torch.zeros(3, 1, 5), "cuda")


def test_a_choice_is_made_where_it_was_tried(monkeypatch):
    built = []
    monkeypatch.setattr(chooser, "_built", lambda model, name, example, device, states: built.append((name, device)))
    chooser.Choice("numba", "cuda", {}, {}).make("model")
    assert built == [("numba", "cuda")]


def test_times_are_measured_once_for_the_same_shapes(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    layer = pruned("LSTM, hard")[0]
    choice = chooser.choose(layer, inputs(4, 3)[0], seconds=0.01)
    again = chooser.choose(pruned("LSTM, hard")[0], inputs(4, 3)[0])
    assert again.times == choice.times, "to the last digit: they were not measured again"
    x, *_ = inputs(4, 3)
    assert error(choice.make(layer)(x).double(), oracle(layer, x)) <= 1e-6


def test_a_choice_for_hard_gates_is_none_for_logistic_ones(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    nets = []
    for activation in ("hard", "logistic"):
        torch.manual_seed(0)
        nets.append(Classifier(9, 2, 4, 5, activation=activation).eval())
    words = torch.randint(9, (4, 2))
    first, second = (chooser.choose(net, words, seconds=0.01) for net in nets)
    assert second.times != first.times and chooser.choose(nets[0], words, seconds=0.01).times == first.times
    with torch.no_grad():
        assert error(second.make(nets[1])(words)[0], nets[1](words)[0]) <= 1e-5


class Stateful(nn.Module):
    """Returns its states."""

    def __init__(self, kind, **how):
        super().__init__()
        self.rnn = kind(16, 24, **how)
        self.out = nn.Linear(24 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        y, state = self.rnn(x)
        return self.out(y), state


@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one level", "two, both ways"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@torch.no_grad()
def test_a_model_that_returns_its_states_gets_an_engine_that_has_them(monkeypatch, kind, how):
    monkeypatch.setattr(chooser, "_times", {})
    net, x = Stateful(kind, **how).eval(), torch.randn(20, 4, 16)
    choice = chooser.choose(net, x, seconds=0.01)
    assert not choice.refused
    for name in choice.times:
        for mine, theirs in zip(tree_leaves(by_engine(net, name, x)(x)), tree_leaves(net(x)), strict=True):
            assert error(mine, theirs) <= 1e-5


@torch.no_grad()
def test_an_engine_without_a_state_that_the_model_returns_is_none_for_it(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    monkeypatch.setattr(engine_class("numba"), "hands_out", False)
    net, x = Stateful(nn.LSTM).eval(), torch.randn(20, 4, 16)
    choice = chooser.choose(net, x, seconds=0.01)
    assert "final states that it does not hand out" in choice.refused["numba"]
    unasked = chooser.choose(net, x, seconds=0.01, states=False)
    assert "numba" in unasked.times and error(unasked.make(net)(x)[0], net(x)[0]) <= 1e-5


class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.rnn, self.out = nn.GRU(16, 96), nn.Linear(96, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter *= by

    def forward(self, x):
        return self.out(self.rnn(x)[0][-1])


def test_other_weights_get_an_engine_that_is_right_for_them(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    torch.manual_seed(0)
    x, nets = torch.randn(20, 2, 16), [Scaled(1.0).eval(), Scaled(5.0).eval()]
    for net in nets:
        choice = chooser.choose(net, x, tolerance=5e-3, seconds=0.01)
        assert error(choice.make(net)(x), net(x)) <= 5e-3
        assert ("c-int8" in choice.refused) == (net is nets[1])


def test_a_choice_tells_two_classes_of_one_name_apart_and_keeps_no_example(monkeypatch):
    kept = weakref.WeakKeyDictionary()
    monkeypatch.setattr(chooser, "_times", kept)
    kinds = [type("Net", (Scaled,), {}) for _ in range(2)]
    x = torch.randn(4, 2, 16)
    seen = weakref.ref(x)
    for kind in kinds:
        chooser.choose(kind(1.0).eval(), x, seconds=0.01)
    assert set(kept) == set(kinds)
    del x
    gc.collect()
    assert seen() is None


def test_a_choice_draws_nothing(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    net, x, before = Scaled(1.0).eval(), torch.randn(4, 2, 16), torch.get_rng_state()
    chooser.choose(net, x, seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_choice_for_a_model_with_a_method_on_it_says_to_compact_it_first():
    net, x = Scaled(1.0), torch.randn(4, 2, 16)
    study = sparsernn.attach(net, "sparse-vd-w", steps=10, n_examples=10, example=x)
    with pytest.raises(
        ValueError, match="Scaled has a method on it; give what sparsernn.compact returns, or take it off"
    ):
        chooser.choose(net, x)
    study.detach()
    assert chooser.choose(net, x, seconds=0.01).engine


def table(*cells):
    """A full table: a cell is engine → ms, and what was chosen."""
    rows = []
    for number, (medians, choice) in enumerate(cells):
        for name, ms in (medians | {"choose": medians[choice]}).items():
            row = {
                "task": None,
                "model": "lstm",
                "method": "shape-only",
                "variant": None,
                "seed": None,
                "device": "cpu:x",
            }
            row |= {"batch": number, "steps": 10, "input": 8, "hidden": 8, "density": 0.1, "pattern": "block"}
            row |= {"engine": name, "median_ms": ms, "dtype": "float16" if "fp16" in name else "float32"}
            rows.append(row | {"floor_note": choice if name == "choose" else "", "opponent": "dense-fp32"})
    return pd.DataFrame(rows)


def test_agreement_counts_cells_within_five_percent_of_the_best():
    medians = {"numba": 1.0, "compact-torch": 1.04, "csr-torch": 3.0, "dense-fp32": 0.5, "persistent-fp16": 0.1}
    share, cells = timings.agreement(table((medians, "numba"), (medians, "compact-torch"), (medians, "csr-torch")))
    assert share == pytest.approx(2 / 3) and list(cells["right"]) == [True, True, False]
    assert list(cells["best"]) == ["numba"] * 3 and cells["loss"].iloc[2] == pytest.approx(2)


def test_agreement_of_an_empty_table_is_no_number():
    share, cells = timings.agreement(table(({"numba": 1.0}, "numba")).iloc[:0])
    assert share != share and cells.empty


READ_ONLY = """
import errno, os, tempfile

def refuse(*given, **more):  # how numba finds out whether it may write to a folder
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

tempfile.TemporaryFile = refuse
import torch
import sparsernn
from sparsernn.engines import cpu

assert type(cpu.tanh._cache).__name__ == "NullCache"
small, _ = sparsernn.compact(torch.nn.Sequential(torch.nn.LSTM(3, 4)), example=torch.randn(5, 2, 3))
choice = sparsernn.choose(small, torch.randn(5, 2, 3))
assert {"numba", "numba-csr"} <= choice.times.keys(), choice.refused
"""


def test_numba_and_the_choice_work_where_package_and_home_are_read_only():
    """In a process of its own, because it compiles when it is imported; without a cache that takes some ten seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    given = {"env": environment | {"PYTHONPATH": os.pathsep.join(sys.path)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", READ_ONLY], **given)
    assert done.returncode == 0, done.stderr
