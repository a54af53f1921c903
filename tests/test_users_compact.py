"""What people had who made their model small: it is equal in every way it is used, and its layers are what they were."""

import copy
import io
import itertools
import pickle
import random
import re
import statistics
import threading
import time
import warnings
from collections import namedtuple
from dataclasses import is_dataclass, make_dataclass, replace
from functools import partial

import pytest
import torch
from oracles import randn
from test_users import CELLS, COMPUTED, Called, E, H, V, computed, words
from test_users import WAYS as HOW
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import sparsernn
from sparsernn.engines import available, base, engine_class, prove, stand_in
from sparsernn.engines.whole import by_engine

W = 2 * H
STACKS = [{}, {"cell": nn.GRU, "bidirectional": True, "layers": 2}]


class Net(nn.Module):
    """Words, a stack, an answer. told: how its forward goes, a name in WAYS; more: what else it has, name → function."""

    def __init__(self, told="plain", cell=nn.LSTM, layers=1, bias=True, dropout=0.0, bidirectional=False, **more):
        super().__init__()
        self.emb, self.told = nn.Embedding(V, E), told
        self.rnn = cell(E, H, layers, bias=bias, batch_first=True, dropout=dropout, bidirectional=bidirectional)
        self.head = nn.Linear(H * (1 + bidirectional), 3)
        for name, make in more.items():
            setattr(self, name, make())

    def forward(self, *args, **kwargs):
        return WAYS[self.told](self, *args, **kwargs)

    def read(self, x, state=None):
        return self.rnn(x, state)[0]


def plain(m, words, state=None):
    return m.head(m.read(m.emb(words), state).mean(1))


WAYS = {
    "plain": plain,
    "by step": lambda m, w: m.head(m.read(m.emb(w))),
    "fixed": lambda m, w: m.head(m.read(m.emb(w), (m.first, m.first)).reshape(3, 5 * H)),
    "behind": lambda m, w: m.head((y := m.read(m.emb(w))) + m.back(m.side(y)[0])),
    "norm": lambda m, w: m.norm(plain(m, w)),
    "shared": lambda m, w: m.head(m.read(m.emb(w))) + m.second(m.side(m.emb(w))[0]),
}


class Heard(nn.Module):
    def __init__(self, inputs=8, width=H, outputs=3, cell=nn.LSTM):
        super().__init__()
        self.rnn, self.head = cell(inputs, width), nn.Linear(width, outputs)

    def forward(self, x, state=None):
        y, state = self.rnn(x, state)
        return self.head(y), state


@torch.no_grad()
def pruned(model, scattered=0.3):
    """In float64, at rest: nobody reads every other neuron or input, every fourth word is zero, so are some weights."""
    generator = torch.Generator().manual_seed(1)
    for module in model.double().eval().modules():
        for weight in (p for p in module.parameters(recurse=False) if p.dim() == 2):
            weight *= torch.rand(weight.shape, generator=generator) >= scattered
            weight.t()[1::2] *= isinstance(module, nn.Embedding)
            weight[1::4] *= not isinstance(module, nn.Embedding)
    return model


def model_of(kind=Net, *args, **shape):
    torch.manual_seed(0)
    return pruned(kind(*args, **shape))


Pair, Output = namedtuple("Pair", "logits best"), make_dataclass("Output", ["logits", ("loss", object, None)])
FEW, OTHER = words(below=V // 2), words(4, 9, 3)


def call(model, x):
    return model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)


def same(ours, theirs, within=1e-12):
    ours, theirs = (tree_leaves(vars(x) if is_dataclass(x) else x) for x in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=within, atol=within, equal_nan=True)
        else:
            assert a == b


def size(model):
    return sum(p.numel() for p in model.parameters())


def compacted(model, example=FEW, *others, smaller=True, **options):
    """The small model, found equal on the example and on others."""
    small, proof = sparsernn.compact(model, example, **options)
    assert proof.error <= 1e-12 and (size(small) < size(model) or not smaller)
    for x in (example, *(others or (OTHER,))):
        same(call(small, x), call(model, x))
    return small


def learn(model, steps=3, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        x = words(6, 5, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, 0] % 3).backward()
        optimizer.step()


def matrices(m):
    found = {"emb": m.emb.weight, "ih": m.rnn.weight_ih_l0, "hh": m.rnn.weight_hh_l0, "head": m.head.weight}
    return {name: weight.detach().clone() for name, weight in found.items()}


# ---- E: layers are asked what they are while the model runs      aster.pytorch #59, transformers #16283, LLM-Pruner #55
def first_state(m, words, width):
    blank = m.emb(words).new_zeros(m.rnn.num_layers * (1 + m.rnn.bidirectional), len(words), width)
    return plain(m, words, (blank, blank) if isinstance(m.rnn, nn.LSTM) else blank)


def asked_for_its_kind(m, words):
    m.rnn.flatten_parameters()
    y, state = m.rnn(m.emb(words))
    return m.head(y[:, -1] if m.rnn.batch_first else y[-1]), (state[0] if m.rnn.mode == "LSTM" else state).shape


WAYS |= (ASKS := {
    "kind": asked_for_its_kind,
    "device": lambda m, w: m.head(m.read(m.emb(w).to(m.rnn.weight_ih_l0.device, m.rnn.weight_hh_l0.dtype))),
    "all_weights": lambda m, w: m.head(m.read(m.emb(w).to(m.rnn.all_weights[-1][-1]).type(next(m.parameters()).dtype))),
    "names": lambda m, w: (plain(m, w), sum(p.norm() for n, p in m.named_parameters() if "weight_hh_l0" in n)),
    "hidden_size": lambda m, w: first_state(m, w, m.rnn.hidden_size),
    "width of a weight": lambda m, w: first_state(m, w, m.rnn.weight_hh_l0.size(1)),
    "embedding_dim": lambda m, w: m.head(m.read(m.emb(w) * m.emb.embedding_dim**0.5).mean(1)),
    "num_embeddings": lambda m, w: plain(m, w.clamp(max=m.emb.num_embeddings - 1)),
    "view as embedding_dim": lambda m, w: m.head(m.read(m.emb(w.flatten()).view(*w.shape, m.emb.embedding_dim))),
    "view as input_size": lambda m, w: m.head(m.read(m.emb(w).view(*w.shape, m.rnn.input_size))),
    "view as hidden_size": lambda m, w: m.head(m.read(m.emb(w)).reshape(-1, m.rnn.hidden_size)),
    "view as in_features": lambda m, w: m.head(m.read(m.emb(w)).reshape(-1, m.head.in_features)),
    "view as out_features": lambda m, w: plain(m, w).view(-1, m.head.out_features),
    "a norm of weights": lambda m, w: (plain(m, w), m.rnn.weight_hh_l0.norm(), m.emb.weight.square().sum()),
    "F.linear, tied": lambda m, w: F.linear(m.read(m.emb(w))[..., :E], m.emb.weight),
    "F.embedding": lambda m, w: m.head(m.read(F.embedding(w, m.emb.weight))),
    "F.linear, as well": lambda m, w: plain(m, w) + F.linear(m.read(m.emb(w))[:, 0], m.head.weight, m.head.bias),
})  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*_norm.*:FutureWarning")
@pytest.mark.parametrize("told", [*ASKS, *COMPUTED])
def test_a_model_that_asks_its_layers_while_it_runs_or_makes_their_weights_is_made_small(told):
    for model in [computed(told).eval()] if told in COMPUTED else [model_of(Net, told), model_of(Net, told, nn.GRU, 2)]:
        compacted(model, smaller=told not in ("a norm of weights", "F.linear, tied", *COMPUTED))


def test_small_layers_are_what_loops_over_layers_take_them_for():
    model = model_of(**STACKS[1])
    small = compacted(model)
    assert all(isinstance(small.get_submodule(name), type(module)) for name, module in model.named_modules())
    rnn = small.rnn
    assert (rnn.mode, rnn.hidden_size, rnn.num_layers, rnn.batch_first, small.emb.num_embeddings) == (
        "GRU",
        H,
        2,
        True,
        V,
    )
    assert small.emb.embedding_dim > 0 and rnn.input_size > 0 and rnn.weight_hh_l1_reverse.dim() == 2
    groups = [{"params": [*layer.parameters()], "lr": 0.1} for layer in (small.emb, small.rnn, small.head)]
    assert sum(p.numel() for g in groups for p in g["params"]) == size(small)
    assert all(("weight" if p.dim() == 2 else "bias") in name for name, p in small.named_parameters())
    small.apply(lambda m: m.flatten_parameters() if isinstance(m, nn.RNNBase) else None)
    same(small(OTHER), model(OTHER))
    small.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)  # trained from scratch
    assert small(OTHER).isfinite().all() and not torch.allclose(small(OTHER), model(OTHER))


def test_hooks_are_on_the_small_layers_and_what_they_return_counts():
    model, seen = model_of(), []
    model.rnn.register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True)
    model.emb.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2]))
    model.rnn.register_forward_hook(lambda module, args, output: seen.append(output[1][0].shape))
    model.head.register_forward_hook(lambda module, args, output: output + 1)
    model.head.register_full_backward_hook(lambda module, grads, _: (3 * grads[0],))

    def run(net):
        seen.clear()
        answer = net(OTHER)
        return answer, torch.autograd.grad(answer.sum(), net.head.bias), [*seen]

    before, small = run(model), compacted(model)
    same(run(small), before)
    scale = 1 + randn(H).abs()  # and one that needs the whole width
    model.rnn.register_forward_hook(lambda module, args, output: (output[0] * scale, output[1]))
    compacted(model, smaller=False)


def aliased(m, words):
    y = m.encoder.rnn(m.again(words))[0] + m.by_name["rnn"][0](m.emb(words))[0]
    return m.stages["last"](y + m.run(m.stages["first"](words))[0]) + m.listed[1](y)


def test_one_layer_under_several_names_is_one_small_layer(monkeypatch):
    monkeypatch.setitem(WAYS, "aliased", aliased)
    model = model_of(Net, "aliased", encoder=nn.Module)
    model.encoder.rnn, model.again, model.listed = model.rnn, model.emb, [model.rnn, model.head]
    model.stages, model.by_name = nn.ModuleDict({"last": model.head, "first": model.emb}), {"rnn": (model.rnn,)}
    model.run = partial(model.rnn, hx=None)
    small = compacted(model)
    for m in (small, copy.deepcopy(small)):
        assert m.rnn is m.encoder.rnn is m.listed[0] is m.by_name["rnn"][0] is m.run.func
        assert m.emb is m.again is m.stages["first"] and m.head is m.stages["last"] is m.listed[1]


def test_weights_that_two_layers_share_stay_shared():
    torch.manual_seed(0)
    model = Net("shared", second=lambda: nn.Linear(H, 3), side=lambda: nn.LSTM(E, H, batch_first=True))
    model.side.weight_hh_l0, model.second.bias = model.rnn.weight_hh_l0, model.head.bias
    small = compacted(pruned(model), smaller=False)
    assert small.side.weight_hh_l0 is small.rnn.weight_hh_l0 and small.second.bias is small.head.bias


def test_what_somebody_hung_on_a_layer_is_on_the_small_one():
    model = model_of()
    model.rnn.note, model.emb.vocabulary, model.rnn.gate = "mine", {"a": 1}, nn.Parameter(torch.tensor(0.5))
    model.head.register_buffer("scale", torch.tensor(2.0))
    small = compacted(model)
    assert (small.rnn.note, small.emb.vocabulary, float(small.head.scale)) == ("mine", {"a": 1}, 2.0)
    assert any(p is small.rnn.gate for p in small.parameters()) and {"head.scale", "rnn.gate"} <= {*small.state_dict()}


def saved(model):
    torch.save(model, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def replicated(model):
    found = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in found.items():
        for name, part in (*module._modules.items(), *module._parameters.items()):
            setattr(replica, name, part.clone() if isinstance(part, torch.Tensor) else found.get(part))
    return found[model]


COPIES = {
    "deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": saved,
    "state_dict": lambda m: (other := copy.deepcopy(m)).load_state_dict(m.state_dict()) and other,
    "replicate": replicated, "DataParallel": nn.DataParallel,
    "share_memory": lambda m: m.share_memory(), "average": lambda m: AveragedModel(m).module,
    "float and back": lambda m: m.float().double(), "requires_grad_": lambda m: m.requires_grad_(False),
}  # fmt: skip


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_a_copy_of_the_small_model_answers_as_it(how, keep_zeros):
    small = compacted(model := model_of(**STACKS[1]), keep_zeros=keep_zeros)
    same(COPIES[how](small)(OTHER), model(OTHER), 1e-6 if "float" in how else 1e-12)


@pytest.mark.parametrize("shape", STACKS, ids=["LSTM", "GRU"])
def test_weights_handed_in_by_functional_call_are_the_ones_that_are_read(shape):
    small = compacted(model_of(**shape))
    given = {name: parameter.detach() for name, parameter in small.named_parameters()}
    for name, parameter in given.items():
        other = {name: parameter + 0.5 * randn(*parameter.shape)}
        assert not torch.allclose(functional_call(small, other, OTHER), small(OTHER)), name
    taken = torch.func.grad(lambda p: functional_call(small, p, OTHER).square().sum())(given)
    plainly = torch.autograd.grad(small(OTHER).square().sum(), [*small.parameters()])
    same([*taken.values()], plainly)
    again = checkpoint(small, OTHER, use_reentrant=False).square().sum()  # activations computed again
    same(torch.autograd.grad(again, [*small.parameters()]), plainly)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_between_the_layers_acts_in_training_and_not_in_evaluation(cell):
    small = compacted(model := model_of(cell=cell, layers=2, dropout=1.0))
    assert not small.training and small.train().rnn.training
    same(small(FEW), small(FEW + 1))  # nothing of the first level arrives
    small.rnn.dropout = 0.5
    assert not torch.allclose(small(OTHER), small(OTHER))
    same(small.eval()(OTHER), model(OTHER))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_small_layer_is_called_in_any_way_that_torch_knows(cell, batch_first):  # EasyEdit PR #654, Torch-Pruning #488
    model, x = model_of(Called, cell, batch_first), words(6, 7)
    small = compacted(model, FEW, *({"ids": x, "how": how} for how in HOW))
    compacted(model, {"ids": FEW, "how": "keywords"}, (x, "packed"))
    right, h = small.words(x), model.state(x.shape[0 if batch_first else 1])
    narrow = tuple(s[..., 1:] for s in h) if model.pair else h[..., 1:]
    for wrong in ((torch.cat([right] * 2, -1),), (right, narrow), (right, model.state(17))):
        with pytest.raises((RuntimeError, ValueError)):
            small.stack(*wrong)


class GoesOn(nn.Module):
    """Numbers, a stack that may be told where to go on from, an answer and the state."""

    def __init__(self, cell, layers, bidirectional, batch_first):
        super().__init__()
        self.rnn = cell(8, H, layers, batch_first=batch_first, bidirectional=bidirectional)
        self.head = nn.Linear(H * (1 + bidirectional), 3)

    def forward(self, x, state=None):
        y, state = self.rnn(x, state)
        return self.head(y.data if isinstance(y, PackedSequence) else y), state


def said(net, *given):
    """What it says that it is wrong."""
    with pytest.raises((RuntimeError, ValueError, IndexError)) as caught:
        net(*given)
    return f"{caught.type.__name__}: {caught.value}"


def ways_to_run(model, tmp_path, built, example):
    """A small model as compact returns it, by an engine, copied, and loaded."""
    small = sparsernn.compact(model, example)[0]
    stand_in.run_by(fast := copy.deepcopy(small), "c-blocks")
    sparsernn.save(small, tmp_path / "small")
    return small, fast, copy.deepcopy(small), sparsernn.load(tmp_path / "small", built)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, True)])
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_left_over_from_another_batch_is_refused_as_torch_refuses_it(
    cell, layers, bidirectional, batch_first, tmp_path
):
    shape = cell, layers, bidirectional, batch_first
    model, rows, pair = model_of(GoesOn, *shape).float(), layers * (1 + bidirectional), cell is nn.LSTM
    nets = ways_to_run(model, tmp_path, GoesOn(*shape), torch.randn(4, 6, 8))

    def x(batch, steps):
        return torch.randn(*((batch, steps) if batch_first else (steps, batch)), 8)

    def state(*sizes, c=None, dtype=None):
        h = torch.randn(*sizes, H)
        return (h, torch.randn(*(c or sizes), H).to(dtype)) if pair else h.to(dtype)

    few, lengths = x(3, 5), torch.tensor([5, 4, 2])
    wrong = [
        (x(64, 20), state(rows, 1)),
        (x(1, 5), state(rows, 9)),
        (x(4, 1), state(rows, 1)),
        (few, state(rows + 1, 3)),
    ]
    wrong += [(few, state(3)), (few[0], state(rows, 1)), (few[0], state(rows - 1)), (few, torch.randn(rows, 3, H + 1))]
    wrong += [(few.double(), None), (few.double(), state(rows, 3)), (few[..., 1:], None), (few[None], None)]
    wrong += [(few, state(rows, 3, c=(rows, 2))), (x(3, 1), state(rows, 3, c=(rows, 2)))] * pair
    wrong += [(few, (torch.randn(rows, 3, H),)), (few, (torch.randn(rows, 3, H),) * 3)] * pair
    for grad, given in itertools.product((True, False), wrong):
        with torch.set_grad_enabled(grad):
            assert {said(net, *given) for net in nets} == {said(model, *given)}
    for grad, steps in itertools.product((True, False), (1, 5)):
        with torch.set_grad_enabled(grad):
            words = {said(net, x(3, steps), state(rows, 3, dtype=torch.double)) for net in nets}
        assert (
            "not the same dtype, found input tensor with torch.float32 and hidden tensor with torch.float64"
            in words.pop()
        )
        assert not words
    packed = pack_padded_sequence(few, lengths, batch_first, enforce_sorted=False)
    for net in nets:
        same(net(packed, more := state(rows, 5))[0], model(packed, more)[0], 1e-5)  # torch takes those that it needs
        for sort in (True, False):
            packed = pack_padded_sequence(few, lengths, batch_first, enforce_sorted=sort)
            assert f"size ({rows}, 3, {H}), got [{rows}, 2, {H}]" in said(net, packed, state(rows, 2))


@pytest.mark.parametrize("bad", [-1, V, V + 7])
def test_a_word_that_there_is_not_raises_as_nn_embedding_does(bad):
    small = compacted(model_of())
    for ids in (torch.tensor([[0, bad]]), torch.tensor([[0, bad]], dtype=torch.int32)):
        with pytest.raises(IndexError):
            small(ids)
    same(small(OTHER.int()), small(OTHER))


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:.*jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("shape", STACKS, ids=["LSTM", "GRU"])
def test_the_small_model_is_exported_and_traced_where_the_model_was(shape):
    small = compacted(model := model_of(Net, "by step", **shape))
    same(torch.export.export(small, (OTHER,)).module()(OTHER), model(OTHER))
    exported = torch.export.export(small, (FEW,), dynamic_shapes={"args": ({0: torch.export.Dim.AUTO},)})
    same(exported.module()(OTHER[:, :5]), model(OTHER[:, :5]))
    same(torch.jit.trace(small, (FEW,))(OTHER), model(OTHER))


def test_what_was_trained_and_what_was_frozen_stays_so():
    (model := model_of()).emb.requires_grad_(False)
    model.rnn.weight_hh_l0.requires_grad_(False)
    with torch.no_grad():
        small = compacted(model)
    for net, fixed in ((small, {"emb", "hh"}), (compacted(model_of()), set())):
        before = matrices(net)
        learn(net)
        assert {name for name, value in matrices(net).items() if torch.equal(value, before[name])} == fixed


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("how", ["itself", "deepcopy", "torch.save", "state_dict", "average", "not asked for"])
def test_zeros_stay_zero_where_that_was_asked_for_and_come_alive_else(how, optimiser):  # nni #4521, transformers #29227
    small, proof = sparsernn.compact(model_of(), FEW, keep_zeros=how != "not asked for")
    small = COPIES.get(how, lambda m: m)(small)
    before = matrices(small)
    learn(small, 4, optimiser(small.parameters(), lr=0.05, weight_decay=0.1))
    after = matrices(small)
    alive = [name for name in before if after[name][before[name] == 0].any()]
    assert bool(alive) == (how == "not asked for") == ("alive" in str(proof))
    assert not any(torch.equal(after[name], before[name]) for name in before)
    assert size(compacted(small.eval(), smaller=False)) <= size(small)  # trained on, then made small again


@pytest.mark.parametrize("argument", [{"padding_idx": 2}, {"sparse": True}], ids=["padding", "sparse"])
def test_a_padding_row_stays_zero_and_sparse_gradients_stay_sparse(argument):
    small = compacted(model_of(emb=lambda: nn.Embedding(V, E, **argument)))
    small(OTHER).square().sum().backward()
    assert small.emb.weight.grad.is_sparse == ("sparse" in argument)
    learn(small)
    assert "sparse" in argument or not small.emb(torch.tensor([2])).any()


def test_the_small_model_is_pruned_by_torch_and_asked_about_again():
    small = compacted(model_of(Net, "by step"))
    for layer, name in ((small.emb, "weight"), (small.rnn, "weight_hh_l0"), (small.head, "weight")):
        prune.ln_structured(layer, name, 0.5, n=1, dim=1)
    again, proof = sparsernn.compact(small, FEW)
    assert proof.layers["rnn"] == "left as it is: it is small already" and proof.error < 1e-15
    same(again(OTHER), small(OTHER))


def test_making_small_leaves_no_trace_on_the_model():
    model = model_of(layers=2, dropout=0.5).train()
    model.rnn.eval()  # a part that somebody put at rest
    model(FEW).sum().backward()

    def stands():
        hooks = [(m.training, type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        tensors = (*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state())
        return hooks, [t.clone() for t in tensors], [p.requires_grad for p in model.parameters()]

    before, _ = stands(), sparsernn.compact(model, FEW)
    same(stands(), before, 0)


# ---- A: what a model answers with                                           allennlp #890, pointer networks
def packed(m, words):
    x = pack_padded_sequence(m.emb(words), torch.arange(len(words), 0, -1), True)
    y, _ = m.rnn(x, m.rnn(m.emb(words))[1])
    return y._replace(data=m.head(y.data))


WAYS |= (OUTPUTS := {
    "minus infinity": lambda m, w: WAYS["by step"](m, w).masked_fill((w % 3 == 0)[..., None], float("-inf")),
    "NaN where no choice is left": lambda m, w: WAYS["minus infinity"](m, w).softmax(-1), "packed": packed,
    "numbers of classes": lambda m, w: plain(m, w).argmax(-1), "yes and no": lambda m, w: plain(m, w) > 0,
    "a rare yes": lambda m, w: m.head((8 * (y := m.read(m.emb(w))) @ y.mT).softmax(-1) @ y)[..., 0] > -0.038,
    "bytes": lambda m, w: (100 * plain(m, w).sigmoid()).to(torch.uint8),
    "nothing beside something": lambda m, w: (plain(m, w)[:0], plain(m, w), w[:, :0]),
    "a dict": lambda m, w: {"logits": plain(m, w), "loss": None, "task": "x", "steps": w.shape[1]},
    "a named tuple": lambda m, w: Pair(plain(m, w), plain(m, w).argmax(-1)),
    "a dataclass": lambda m, w: Output(plain(m, w)), "lists in lists": lambda m, w: [plain(m, w), [w, {"0": w == 0}]],
    "complex numbers": lambda m, w: torch.fft.rfft(WAYS["by step"](m, w), dim=1),
    "what is above a bound": lambda m, w: plain(m, w)[plain(m, w) > 0],
    "numbers beyond any": lambda m, w: plain(m, w) * 1e300 * torch.tensor([1e30, 1.0, -1e30]),
    "another type": lambda m, w: (plain(m, w).float(), plain(m, w)), "one number": lambda m, w: plain(m, w).square().mean(),
})  # fmt: skip


@pytest.mark.parametrize("told", OUTPUTS)
def test_whatever_a_model_answers_with_is_compared_by_its_kind(told):
    model = model_of(Net, told)
    (small, proof), within = sparsernn.compact(model, FEW), 1e-6 if told == "another type" else 1e-12
    assert proof.error <= within
    for seed in range(3):
        same(small(words(8, 9, seed)), model(words(8, 9, seed)), within)


class Textbook(nn.Module):
    """It makes its first state, or numbers of its words, in float32, whatever its own dtype. told: which."""

    def __init__(self, told):
        super().__init__()
        self.told, self.rnn, self.head = (
            told,
            nn.GRU(E if told == "first state" else V, H, batch_first=True),
            nn.Linear(H, 3),
        )

    def forward(self, x):
        if self.told == "first state":
            return self.head(self.rnn(x, torch.zeros(1, len(x), H))[0])
        return self.head(self.rnn(F.one_hot(x, V).float())[0])


@pytest.mark.parametrize("method", ["zeros", "sparse-vd-wgn", "sparse-vd-w", "l0", "iss", "restricted"])
@pytest.mark.parametrize("told", ["first state", "one-hot words"])
def test_a_model_that_makes_tensors_in_float32_is_made_small_run_and_written(told, method, tmp_path):
    torch.manual_seed(0)
    model, x = Textbook(told), torch.randn(2, 7, E) if told == "first state" else words(2, 7)
    with torch.no_grad():
        model.head.weight[:, ::2] = model.rnn.weight_hh_l0[:, ::2] = 0
    if method != "zeros":
        sparsernn.attach(model, method, 10, 10)
    small, proof = sparsernn.compact(model.eval(), x)
    assert proof.error <= 1e-5 and "not in float64" in str(proof)
    assert proof.engine or proof.no_engine == "its layers are as fast"
    same(small(x), model(x), 1e-5)
    if method == "zeros":
        choice = sparsernn.choose(small, x, seconds=0.01)
        same(choice.make(small)(x), model(x), 1e-5)
        if told == "first state":
            assert sparsernn.to_c(small, tmp_path / "model.c")


class Encoder(nn.Module):
    """The PyTorch tutorial's, kept as a module of its own. told: what it returns, and whether it takes a state."""

    def __init__(self, told, cell=nn.GRU):
        super().__init__()
        self.told, self.emb, self.rnn = told, nn.Embedding(V, E), cell(E, H, 2, batch_first=True)
        self.head = nn.Linear(E, 3)

    def forward(self, words, state=None):
        x = self.emb(words)
        y, last = self.rnn(x, state if "goes on" in self.told else None)
        if "alone" in self.told:
            return last
        return (self.head(x.mean(1)) if "beside" in self.told else y), last


def half_unread(told, cell):
    """Level 1 reads half of the neurons of level 0, which do not hear of the others."""
    (model := model_of(Encoder, told, cell)).rnn.weight_ih_l1.data[:, : H // 2] = 0
    model.rnn.weight_hh_l0.data.view(-1, H, H)[:, H // 2 :, : H // 2] = 0
    return model


@pytest.mark.parametrize("told", ["outputs", "alone", "beside", "alone, goes on", "beside, goes on"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_state_that_a_model_returns_is_what_it_was(told, cell):
    compacted(half_unread(told, cell))  # `same` compares states too


@pytest.mark.parametrize("how", ["words alone", "a state beside"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_of_a_state_to_go_on_from_the_proof_says_that_it_is_another_and_how_to_keep_it(cell, how):
    model = half_unread("goes on", cell)
    example = FEW if how == "words alone" else {"words": FEW, "state": model(FEW)[1]}
    small, proof = sparsernn.compact(model, example)
    assert re.search(r"NOTE +the returned state of rnn .by \d\S+. is another.*consumers=.'rnn': \[\]", str(proof))
    mine, theirs = small(FEW)[1], model(FEW)[1]
    same(small(OTHER[:3], mine)[0], model(OTHER[:3], theirs)[0])
    assert size(small) < size(compacted(model, example, consumers={"rnn": []}))


class Keeps(Net):
    hidden, calls = None, 0

    def forward(self, words):
        x, state, mc = self.emb(words), None, self.told == "dropout"
        if self.told == "state" and self.hidden is not None and self.hidden[0].shape[1] == len(words):
            state = self.hidden
        elif self.told == "first state":
            state = torch.randn(2, 1, len(words), H, dtype=x.dtype).unbind()
        elif self.told == "average":
            x = x - self.mean.lerp_(x.detach().mean((0, 1)), 0.1)
        y, state = self.rnn(F.dropout(x, 0.3, mc), state)
        self.hidden, self.calls = tuple(s.detach() for s in state), self.calls + 1
        more = {"count": self.calls, "dice": random.random()}.get(self.told, 0)
        return self.head(F.dropout(y, 0.3, mc)) + more


@pytest.mark.parametrize("what", ["state", "first state", "dropout", "dice", "average", "count"])
def test_a_model_that_keeps_a_state_or_draws_is_made_small(what):  # pytorch #2769, cnslab_fmri #4, PyTorch-Tutorial #57
    model, before = model_of(Keeps, what), torch.get_rng_state()
    model.register_buffer("mean", torch.zeros(E).double())
    small, _ = sparsernn.compact(model, FEW)
    assert size(small) < size(model) and torch.equal(torch.get_rng_state(), before)
    assert model.hidden is small.hidden is None and model.calls == small.calls == 0 and not model.mean.any()
    for x in (FEW, FEW + 3, OTHER, OTHER):
        same(*[torch.manual_seed(7) and (random.seed(7), net(x)) for net in (small, model)])
    assert small.hidden[0].shape == model.hidden[0].shape


NOISE, COUNT, DICE = torch.Generator().manual_seed(0), itertools.count(), random.Random(0)
WAYS |= (
    CHANGES := {
        "a generator of its own": lambda m, w: plain(m, w) + torch.rand(3, generator=NOISE),
        "a count kept elsewhere": lambda m, w: plain(m, w) + next(COUNT),
        "dice of its own": lambda m, w: plain(m, w) * DICE.random(),
    }
)


@pytest.mark.parametrize("told", CHANGES)
def test_a_model_that_answers_otherwise_the_second_time_is_told_so(told):
    with pytest.raises(ValueError, match="answers otherwise the second time"):
        sparsernn.compact(model_of(Net, told), FEW)


# ---- A: ways the example does not take                                   Torch-Pruning #407, nni #5547, haste #8
def ways(m, words, which="first"):
    y = m.read((m.more if which == "more" else m.emb)(words))
    y = y + m.late(y)[0].sum(-1, keepdim=True) if words.shape[1] > 7 else y
    return (m.second if which == "second" else m.head)(y)


WAYS["ways"], SIDE = ways, {
    "second": lambda: nn.Linear(H, 2), "more": lambda: nn.Embedding(V, E), "late": lambda: nn.GRU(H, 4, batch_first=True),
}  # fmt: skip


def with_ways():
    model = model_of(Net, "ways", **SIDE)
    for parameter in (p for name, p in model.named_parameters() if name.startswith((*SIDE,))):
        parameter.data = randn(*parameter.shape)  # they read what the first answer does not
    return model


def test_layers_that_the_example_does_not_reach_answer_as_they_did_and_are_named():
    model = with_ways()
    small, proof = sparsernn.compact(model, FEW)
    for name in SIDE:
        assert re.search("reach|call", proof.layers[name])
        same([*small.get_submodule(name).parameters()], [*model.get_submodule(name).parameters()], 0)
    for x in ((FEW, "second"), (FEW, "more"), OTHER, (OTHER, "second"), (OTHER, "more")):
        same(call(small, x), call(model, x))


def test_several_examples_reach_what_one_does_not():
    model, examples = with_ways(), [FEW, {"words": FEW, "which": "second"}, (words(2, 8, 4), "more"), words(1, 1)]
    small, proof = sparsernn.compact(model, examples=examples)
    assert proof.error == max(proof.compared.values()) <= 1e-12 and len(proof.compared) >= len(examples)
    assert not any(re.search("reach", proof.layers[name]) for name in SIDE)
    for x in (*examples, (OTHER, "second"), (words(7, 3, 9), "more")):
        same(call(small, x), call(model, x))


class Stepped(Net):
    """What a forward, and other methods of the same model, read of its layer differs."""

    def forward(self, words):
        return WAYS["by step"](self, words)

    def encode(self, words):
        return self.rnn(self.emb(words))[1][-1].norm(dim=-1)

    def step(self, word, state=None):
        y, state = self.rnn(self.emb(word)[:, None], state)
        return self.head(y[:, 0]), state


def test_an_example_may_be_a_call_of_another_method():  # generate, step, encode
    model = model_of(Stepped, cell=nn.GRU)
    state = randn(1, len(FEW), H)
    ways = [lambda m: m.encode(FEW), lambda m: m.head(m.rnn(m.emb(FEW))[1][-1]), lambda m: m.step(FEW[:, 0], state)[0]]
    for way in ways:
        small, proof = sparsernn.compact(model, examples=[FEW, way])
        assert (
            proof.error <= 1e-12 and proof.compared.keys() >= {"example 1", "example 2"} and size(small) < size(model)
        )
        assert "example 2, one step" not in proof.compared, "with what it calls the model is its own"
        same(way(small), way(model))
        same(small(OTHER), model(OTHER))


Batch = namedtuple("Batch", "numbers lengths")


class Beside(Net):
    def forward(self, words, lengths):
        return plain(self, words) / lengths[:, None]


class OfABatch(Heard):
    def forward(self, batch):
        x = (
            batch
            if isinstance(batch, PackedSequence)
            else batch["numbers"]
            if isinstance(batch, dict)
            else batch.numbers
        )
        return self.head((self.rnn(x)[1][0])[-1])


@pytest.mark.parametrize("what", ["packed", "named tuple", "a dict in a tuple"])
def test_a_model_that_takes_one_container_is_given_it_whole(what):
    model, x, lengths = model_of(OfABatch), randn(5, 3, 8), torch.tensor([5, 2, 4])
    example = {
        "packed": pack_padded_sequence(x, lengths, enforce_sorted=False),
        "named tuple": Batch(x, lengths),
        "a dict in a tuple": ({"numbers": x},),
    }[what]
    small, proof = sparsernn.compact(model, example)
    whole = example[0] if "dict" in what else example
    same(small(whole), model(whole))
    assert proof.error <= 1e-12 and size(small) < size(model) and "the example, fewer steps" in proof.compared
    choice = sparsernn.choose(small.float(), example, seconds=0.01)
    assert choice.times and not sparsernn.attach(model, "sparse-vd-wgn", 10, 10, example=example).left


def test_an_example_that_is_taken_apart_wrongly_is_told_how_to_give_it():
    model, x = model_of(OfABatch), randn(5, 3, 8)
    for example in ({"numbers": x}, (x, torch.tensor([5, 2, 4]))):
        with pytest.raises(TypeError, match=r"argument.*one by one; to pass it as one argument, give `\(batch,\)`"):
            sparsernn.compact(model, example)
    two = model_of(Beside)
    with pytest.raises(TypeError, match="a Batch is handed in as one argument; to hand in its items, give `tuple"):
        sparsernn.compact(two, Batch(FEW, torch.tensor([5, 2, 4])))


def test_a_model_that_steps_is_as_small_as_one_that_does_not():
    model, state = model_of(Stepped, cell=nn.GRU), randn(1, len(FEW), H)
    alone, _ = sparsernn.compact(model, FEW)
    small, proof = sparsernn.compact(model, examples=[FEW, lambda m: m.step(FEW[:, 0], state)])
    assert size(small) == size(alone) and "the returned state of rnn" in str(proof)
    read, proof = sparsernn.compact(
        model, examples=[FEW, lambda m: m.step(FEW[:, 0])]
    )  # whoever wants the state gets it
    same(read.step(OTHER[:, 0]), model.step(OTHER[:, 0]))
    assert "the returned state" not in str(proof)


HANDED = {  # from a step to the next
    "as it is": lambda state, x: state,
    "reset": lambda state, x: tuple(s * (x[:, :1] > -1)[None] for s in state),
    "changed places": lambda state, x: state[::-1],
    "turned": lambda state, x: tuple(s.flip(-1) for s in state),
}


class Loops(nn.Module):
    """Goes over its steps itself. told: how it hands the layer's state on."""

    def __init__(self, told):
        super().__init__()
        self.rnn, self.head, self.told = nn.LSTM(8, H, 2, batch_first=True), nn.Linear(H, 3), told

    def forward(self, x):
        said, state = [], None
        for step in [x] if self.told == "at once" else x.split(1, 1):
            y, state = self.rnn(step, state)
            said.append(y)
            state = HANDED.get(self.told, HANDED["as it is"])(state, step[:, 0])
        return self.head(torch.cat(said, 1))


@pytest.mark.parametrize("told", HANDED)
def test_a_loop_over_steps_is_as_small_as_one_call_over_all_of_them(told):
    x, other = randn(4, 6, 8, seed=2), randn(2, 3, 8)
    whole, small = (compacted(model_of(Loops, how), x, other, smaller=how != "turned") for how in ("at once", told))
    assert size(small) == size(whole) if told != "turned" else size(small) > size(whole)


def test_numbers_of_a_call_are_in_the_dtype_of_the_model():
    model, x = model_of(Heard).float(), randn(5, 3, 8).float()
    small, proof = sparsernn.compact(model, examples=[x, lambda m: m(x)[0], lambda m: m.head(m.rnn(x, hx=None)[0])])
    assert proof.compared["example 2"] <= 1e-12 and size(small) < size(model) and "not in float64" not in str(proof)


def test_a_call_is_an_example_for_engines_and_methods_too():
    model = model_of(Stepped).float()
    small, _ = sparsernn.compact(model, examples=[FEW, lambda m: m.step(FEW[:, 0])])
    choice = sparsernn.choose(small, lambda m: m.step(FEW[:, 0]), seconds=0.01)
    same(choice.make(small).step(OTHER[:, 0]), model.step(OTHER[:, 0]), 1e-5)
    study = sparsernn.attach(model, "sparse-vd-wgn", 10, 10, example=lambda m: m.step(FEW[:, 0]))
    assert not study.left


def test_where_nothing_can_be_made_small_each_layer_is_named_and_why(monkeypatch):
    monkeypatch.setitem(WAYS, "decay", lambda m, w: (plain(m, w), sum(p.square().sum() for p in m.parameters())))
    why = "left as it is: its weight is also read without a call"
    with pytest.raises(ValueError, match=f"no layer of Net can be made smaller .emb: {why}; rnn: {why}; head: {why}"):
        sparsernn.compact(model_of(told="decay"), FEW)


def test_layers_that_share_a_weight_are_named_in_the_proof():
    model = model_of(Net, "shared", second=lambda: nn.Linear(H, 3), side=lambda: nn.LSTM(E, H, batch_first=True))
    model.side.weight_hh_l0 = model.rnn.weight_hh_l0
    _, proof = sparsernn.compact(model, FEW)
    assert {"emb", "rnn", "head", "second", "side"} == {*proof.layers}
    assert proof.layers["rnn"] == proof.layers["side"] == "left as it is: it shares a weight with another layer"


def test_a_weight_that_a_cell_has_too_is_left_as_it_is():
    class Celled(Net):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(E, H)
            for name in dict(self.cell.named_parameters()):
                setattr(self.cell, name, getattr(self.rnn, f"{name}_l0"))

        def step(self, word):
            return self.head(self.cell(self.emb(word))[0])

    model, why = model_of(Celled), "its weight_ih_l0 is also that of cell, a LSTMCell"
    with pytest.raises(ValueError, match=f"no recurrent layer that can be thinned out, .*rnn: {why}"):
        sparsernn.compact(model, FEW)
    model.top = nn.GRU(E, H, batch_first=True).double()
    WAYS["beside a cell"] = lambda m, w: plain(m, w) + m.head(m.top(m.emb(w))[0].mean(1))
    model.told = "beside a cell"
    small, proof = sparsernn.compact(pruned(model), examples=[FEW, lambda m: m.step(FEW[:, 0])])
    assert proof.layers["rnn"] == f"left as it is: {why}" and small.cell.weight_ih is small.rnn.weight_ih_l0
    same(small.step(OTHER[:, 0]), model.step(OTHER[:, 0]))
    with pytest.raises(ValueError, match=f"no layer is left for the method to touch .*rnn: {why}"):
        sparsernn.attach(model, "sparse-vd-w", 10, 10, only=["rnn"])
    study = sparsernn.attach(model, "sparse-vd-wgn", 10, 10)
    assert study.left == {"rnn": why} and "top.weight_hh_l0" in study.weights


def test_the_proof_looks_beyond_the_example():
    _, proof = sparsernn.compact(model_of(layers=2, told="by step"), words(1, 1))
    assert proof.error == max(proof.compared.values()) <= 1e-12 and {"emb", "rnn", "head"} <= {*proof.layers}
    for word in ("example", "batch|sequences|texts", "length|steps", "state"):
        assert re.search(word, " ".join(proof.compared))


def test_a_model_that_takes_one_shape_only_is_made_small():
    parts = {"head": lambda: nn.Linear(5 * H, 3), "first": lambda: nn.Parameter(randn(1, 3, H), requires_grad=False)}
    compacted(model_of(Net, "fixed", **parts), FEW, words(seed=8))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_neuron_that_nothing_enters_goes_on_from_the_state_it_is_given(cell, bias, layers):  # haste #8
    model = model_of(cell=cell, bias=bias, layers=layers, bidirectional=layers == 2)
    for weight in (p.data for name, p in model.rnn.named_parameters() if "weight" in name):
        weight.view(-1, H, weight.shape[1])[:, [2, 3]] = 0
    h, c = (randn(layers**2, 3, H, seed=seed) for seed in (3, 4))
    state = (h, c) if cell is nn.LSTM else h
    compacted(model, FEW, (words(3, 9, 3), state))
    compacted(model, (FEW, state), OTHER)


LAYERS = {
    "LayerNorm": lambda: nn.LayerNorm(W), "BatchNorm1d": lambda: nn.BatchNorm1d(W), "PReLU": lambda: nn.PReLU(W),
    "Conv1d": lambda: nn.Conv1d(W, 6, 3, padding=1), "Bilinear": lambda: nn.Bilinear(W, E, 6), "gate": lambda: nn.Linear(W, W),
    "LSTMCell": lambda: nn.LSTMCell(W, 6), "attention": lambda: nn.MultiheadAttention(W, 2, batch_first=True),
    "another": lambda: nn.GRU(W, 6, batch_first=True), "residual": lambda: nn.Linear(E, W),
    "twice": lambda: nn.RNN(W, H, bidirectional=True, batch_first=True),
    "transformer": lambda: nn.TransformerEncoderLayer(W, 2, 12, 0.0, batch_first=True),
}  # fmt: skip
BETWEEN = {  # what the layer's outputs y, beside what it read, x, go through; f is of LAYERS
    **dict.fromkeys(["BatchNorm1d", "Conv1d", "PReLU"], lambda f, y, x: f(y.mT).mT), "cosine": lambda f, y, x: y.cos(),
    **dict.fromkeys(["LayerNorm", "transformer"], lambda f, y, x: f(y)), "attention": lambda f, y, x: f(y, y, y)[0],
    "another": lambda f, y, x: f(y)[0], "twice": lambda f, y, x: f(f(y)[0])[0], "Bilinear": lambda f, y, x: f(y, x),
    "LSTMCell": lambda f, y, x: f(y[:, -1], f(y[:, 0]))[0][:, None], "gate": lambda f, y, x: f(y).sigmoid() * y,
    "residual": lambda f, y, x: y + f(x), "beside the words": lambda f, y, x: torch.cat([x, y, x], -1),
    "sum of directions": lambda f, y, x: y[..., :H] + y[..., H:], "tanh": lambda f, y, x: torch.tanh(2 * y),
    "product of directions": lambda f, y, x: y[..., :H] * y[..., H:], "softmax": lambda f, y, x: y.softmax(-1),
    "ends of both directions": lambda f, y, x: torch.cat([y[:, -1, :H], y[:, 0, H:]], -1)[:, None],
    "one length": lambda f, y, x: F.normalize(y, dim=-1), "largest over time": lambda f, y, x: y.amax(1, keepdim=True),
    "largest of all": lambda f, y, x: torch.cat([y, y.amax(-1, keepdim=True)], -1), "sorted": lambda f, y, x: y.sort(-1)[0],
    "top k": lambda f, y, x: y.topk(4, -1)[0], "every other": lambda f, y, x: y[..., ::2], "alone": lambda f, y, x: y[..., 3:4],
    "turned round": lambda f, y, x: y.flip(-1), "rolled": lambda f, y, x: y.roll(2, -1), "sum": lambda f, y, x: y.cumsum(-1),
    "padded": lambda f, y, x: F.pad(y, (2, 1), value=1.0), "likeness": lambda f, y, x: (y @ y.mT).softmax(-1) @ y,
    "heads": lambda f, y, x: y.unflatten(-1, (4, 4)).transpose(1, 2).mean(1), "steps": lambda f, y, x: y.diff(dim=1),
    "outer product": lambda f, y, x: torch.einsum("bti,btj->btij", y, x).flatten(2),
    "chosen by a neuron": lambda f, y, x: torch.where(y[..., :1] > 0, y, 2 * y),
}  # fmt: skip


class Between(Net):
    def __init__(self, what):
        super().__init__(bidirectional=True, between=LAYERS.get(what, nn.Identity))
        self.what, self.head = what, None
        self.head = nn.Linear(self(FEW).shape[-1], 3)

    def forward(self, words):
        x = self.emb(words)
        return (self.head or nn.Identity())(BETWEEN[self.what](self.between, self.read(x), x))


@pytest.mark.parametrize("what", BETWEEN)
def test_whatever_lies_between_a_layer_and_its_reader_is_respected(what):
    compacted(model_of(Between, what), FEW, OTHER, words(1, 2, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [64, 256])
def test_a_model_in_half_precision_is_made_small_as_in_double(width, dtype):  # YuanGongND/ltu #38, Video-LLaVA #218
    torch.manual_seed(0)
    model = Heard(width=width).eval()
    model.head.weight.data[:, ::2] = model.rnn.weight_hh_l0.data[:, ::2] = 0
    model, x = model.to(dtype), randn(9, 4, 8, seed=1)
    small, proof = sparsernn.compact(model, randn(5, 3, 8).to(dtype))
    assert size(small) == size(Heard(width=width // 2)) and proof.error <= 1e-9
    assert {p.dtype for p in small.parameters()} == {small(x.to(dtype))[0].dtype} == {dtype}
    ours, theirs = (copy.deepcopy(net).double()(x.requires_grad_())[0] for net in (small, model))
    same((ours, torch.autograd.grad(ours.sum(), x)), (theirs, torch.autograd.grad(theirs.sum(), x)))


def test_a_direction_that_nobody_reads_goes_even_if_its_neurons_read_each_other():  # Torch-Pruning #276
    model = model_of(bidirectional=True)
    model.head.weight.data[:, H:], model.rnn.weight_hh_l0_reverse.data = 0, randn(4 * H, H)
    small = compacted(model)
    assert size(small) < size(model) / 2 and not small.rnn.weight_hh_l0_reverse.any()
    model.head.weight.data.zero_()  # and a model that answers the same to everything
    assert size(compacted(model)) < size(model) / 4


@pytest.mark.parametrize("cut", ["back", "side"])
def test_a_layer_behind_a_residual_that_is_not_needed_becomes_nothing(cut):
    model = model_of(Net, "behind", side=lambda: nn.GRU(H, H, batch_first=True), back=lambda: nn.Linear(H, H))
    for parameter in model.get_submodule(cut).parameters():
        parameter.data.zero_()
    assert size((small := compacted(model)).side) < size(model.side) / 4 and isinstance(small.side, nn.GRU)


@pytest.mark.parametrize("cell", CELLS)
def test_neurons_that_only_read_each_other_go(cell):
    model = model_of(cell=cell)
    for weight in (model.head.weight, model.rnn.weight_hh_l0):
        weight.data = randn(*weight.shape)
        weight.data.view(-1, 3 if weight is model.head.weight else H, H)[:, :4, 4:] = 0
    small = compacted(model)
    assert size(small.rnn) <= size(cell(E, 4)) and small.rnn.hidden_size == H


def test_what_is_larger_or_slower_is_said_first():
    many = {"emb": lambda: nn.Embedding(2000, 1), "rnn": lambda: nn.LSTM(1, H, batch_first=True)}
    for model in (model_of(), model_of(**many), model_of(**STACKS[1])):
        _, proof = sparsernn.compact(model, FEW)
        worse = {"larger": proof.bytes_after > proof.bytes_before, "slower": proof.ms_after > 1.1 * proof.ms_before}
        first = str(proof).splitlines()[: sum(worse.values())]
        assert all(is_so == (word in " ".join(first)) for word, is_so in worse.items())
        assert not re.search(r"\b0\.\d+×", str(proof))


def test_the_time_before_is_that_of_the_model_without_the_method(monkeypatch):
    model, timed = model_of().float(), []
    sparsernn.attach(model, "iss", 10, 10, example=FEW)
    monkeypatch.setattr(prove, "_milliseconds", lambda *nets: (timed.append(nets[0]), (2.0, 0.5, 2.5))[1])
    proof = sparsernn.compact(model.eval(), FEW)[1]
    assert type(timed[0].rnn) is nn.LSTM and sparsernn.Study.of(timed[0]) is None and sparsernn.Study.of(model)
    same(timed[0](OTHER), model(OTHER), 1e-5)
    told = str(
        replace(proof, engine=stand_in.Tried("c-blocks", 1e-7, 0.5, 2.5, {1: (3.0, 9.0)}, None, (8, 8)), warnings=[])
    )
    assert re.search(
        r"2.000 → 0.500 \(4.0× faster by the engine\)\n +2.000 → 2.500 by the small layers themselves", told
    )
    assert "in place in this model alone; one that is loaded or copied needs sparsernn.choose again" in told
    assert "without its engine, it is slower on the example: 2.000 → 2.500 ms" in str(proof)


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_a_call_is_not_slower_than_the_large_model(cell):  # FullSubNet #67, neural-amp-modeler #22
    model, x = model_of(Heard, 16, 128, cell=cell).float(), torch.ones(1, 1, 16)
    model.head.weight.data[:, 32:] = model.rnn.weight_hh_l0.data[:, 32:] = 0
    small, _ = sparsernn.compact(model, (x, model(x)[1]))
    states, taken = {net: net(x)[1] for net in (model, small)}, {model: [], small: []}
    with torch.no_grad():
        for net in 600 * [*states]:
            start = time.perf_counter()
            net(x, states[net])
            taken[net].append(time.perf_counter() - start)
    ratios = [mine / theirs for mine, theirs in zip(taken[small], taken[model], strict=True)]
    assert statistics.median(ratios) <= 1.3 and size(small) < size(model) / 3  # in turn: what else runs slows both


# ---- files and engines of a model of one's own      fatchord/WaveRNN #104, #30, Torch-Pruning #44, #404, sparse_learning #11
def test_scattered_zeros_make_a_small_file(tmp_path):
    model, built = pruned(Heard(64, 256, 10), 0.95).float(), Heard(64, 256, 10)
    written = sparsernn.save(small := sparsernn.compact(model, randn(5, 3, 64).float())[0], tmp_path / "small")
    assert written == (tmp_path / "small").stat().st_size < 120_000 and 4 * size(model) == 1_329_192
    before, x = copy.deepcopy(built.state_dict()), randn(9, 2, 64).float()
    loaded = sparsernn.load(tmp_path / "small", built)
    same(loaded(x)[0], small(x)[0], 0)
    same((built.state_dict(), loaded.training), (before, False), 0)


FILES = {
    "two directions": STACKS[1], "no bias": {"bias": False}, "RNN": {"cell": nn.RNN},
    "a state that is read": {"told": "kind"}, "read elsewhere": {"told": "a norm of weights"},
    "ways not taken": {"told": "ways", **SIDE}, "norm": {"norm": lambda: nn.BatchNorm1d(3), "told": "norm"},
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("what", FILES)
def test_a_small_model_of_ones_own_is_saved_and_loaded(what, dtype, tmp_path):
    model = model_of(Net, **FILES[what]).to(dtype)
    model.train()(FEW), model.eval()  # what a norm remembers is in the file
    sparsernn.save(small := sparsernn.compact(model, FEW)[0], tmp_path / "small")
    loaded = sparsernn.load(tmp_path / "small", Net(**FILES[what]))
    assert {p.dtype for p in loaded.parameters()} == {dtype} and size(loaded) == size(small)
    same(loaded(OTHER), small(OTHER), 0)


def test_a_file_that_cannot_be_loaded_is_refused_in_words(tmp_path):
    sparsernn.save(sparsernn.compact(model_of(), FEW)[0], path := tmp_path / "small")
    with pytest.raises(ValueError, match="model"):
        sparsernn.load(path)
    for other in (Net(cell=nn.GRU), Net(layers=2), Heard(), nn.Linear(2, 2)):
        with pytest.raises(ValueError):
            sparsernn.load(path, other)
    for use in (
        lambda: sparsernn.load(path, Net),
        lambda: sparsernn.compact(Net, FEW),
        lambda: sparsernn.save(Net, path),
    ):
        with pytest.raises(TypeError, match=r"was given the class Net; it takes a model, .* for example Net\(…\)"):
            use()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        sparsernn.load(path, Net())


@pytest.mark.parametrize("shape", STACKS, ids=["LSTM", "GRU"])
def test_a_model_of_ones_own_runs_on_the_engines(shape):
    model = model_of(Net, "by step", **shape).float()
    small, _ = sparsernn.compact(model, FEW)
    choice, answered = sparsernn.choose(small, FEW, device="cpu"), 0
    assert choice.engine in choice.times and all(isinstance(why, str) and why for why in choice.refused.values())
    exact = [name for name in available("cpu") if engine_class(name).dtype == torch.float32]
    for name in ("chosen", *exact):
        try:
            run = choice.make(small) if name == "chosen" else by_engine(small, name, FEW)
            for x in (FEW, OTHER):
                same(run(x), model(x), 1e-5)
            answered += 1
        except base.Unsupported as why:
            assert str(why)
    assert answered >= 2


# ---- what is done with it afterwards


def loaded_into_another():
    """Two small models of one shape, of which other words and neurons are left."""
    found = []
    for words_gone, neurons_gone in ((range(0, 5), [0, 1, 2]), (range(9, 14), [4, 5, 6])):
        torch.manual_seed(0)
        net = Net().double().eval()
        with torch.no_grad():
            net.emb.weight[[*words_gone]] = 0
            net.head.weight[:, neurons_gone] = 0
            net.rnn.weight_hh_l0[:, neurons_gone] = 0
        found.append(compacted(net))
    return found


def test_the_weights_of_one_small_model_are_loaded_into_another_of_its_shape():
    one, other = loaded_into_another()
    assert (one(FEW) - other(FEW)).abs().max() > 1e-3
    other.load_state_dict(one.state_dict())
    same(other(FEW), one(FEW))
    again = copy.deepcopy(one)
    again.load_state_dict(loaded_into_another()[1].state_dict())
    same(again(FEW), loaded_into_another()[1](FEW))


@pytest.mark.parametrize("how", ["trained", "averaged"])
def test_an_engine_notices_weights_that_are_moved_by_their_data(how):
    """pytorch/examples' word_language_model trains by `p.data.add_`, which torch counts as no change of a parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, 16), nn.LSTM(16, 48, batch_first=True), Takes(48, 32)).eval()
    small, _ = sparsernn.compact(model, FEW)
    stand_in.run_by(small, "c-blocks", (8, 8))
    layer = next(m for m in small.modules() if isinstance(m, nn.LSTM))
    calls, runs = [], layer.forward.run
    layer.forward.run = lambda *args, **more: calls.append(1) or runs(*args, **more)
    with torch.no_grad():
        before = small(FEW)
    assert calls, "it answers while nothing moves"
    if how == "trained":
        small.train()
        small(FEW).sum().backward()
        for p in small.parameters():
            p.data.add_(p.grad, alpha=-0.01)
        small.eval()
    else:
        for p in small.parameters():
            p.data.mul_(1.01)
    with torch.no_grad():
        after = small(FEW)
    assert torch.equal(after, small(FEW).detach()) and len(calls) == 1 and (before - after).abs().max() > 1e-4


class Takes(nn.Module):
    """A head that reads some of the neurons alone."""

    def __init__(self, width, read):
        super().__init__()
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            self.head.weight[:, read:] = 0

    def forward(self, answer):
        return self.head(answer[0])


def test_a_padding_row_with_numbers_in_it_does_not_train():
    """nn.Embedding.from_pretrained(glove, freeze=False, padding_idx=0) keeps that row as it is."""
    model = model_of(told="plain").float()
    model.emb = nn.Embedding.from_pretrained(randn(V, E, dtype=torch.float32), freeze=False, padding_idx=0)
    with torch.no_grad():
        model.emb.weight[10:] = 0
    text = FEW.clone()
    text[:, :2] = 0
    small, _ = sparsernn.compact(model.eval(), text)
    small.train()(text).sum().backward()
    place = int(small.emb._small.lookup[0])
    assert small.emb.weight[place].any() and not small.emb.weight.grad[place].any() and small.emb.weight.grad.any()


@pytest.mark.parametrize("name", ["axes", "groups"])
def test_an_attribute_that_is_called_as_ours_by_chance_is_the_users(name):
    model = model_of(told="plain")
    setattr(model, name, (0, 1))
    assert compacted(model)(FEW) is not None
    sparsernn.attach(model, "sparse-vd-wgn", 10, 100, example=FEW).detach()


def test_what_has_no_place_in_the_file_is_refused_when_it_is_written(tmp_path):
    class Counts(Net):
        def get_extra_state(self):
            return torch.tensor([3.0])

        def set_extra_state(self, state):
            self.state = state

    small = compacted(model_of(Counts))
    with pytest.raises(
        ValueError, match="the model has an extra state .get_extra_state., which the file has no place for"
    ):
        sparsernn.save(small, tmp_path / "small.safetensors")
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_copied_or_scripted_is_named():
    model = model_of(told="plain")
    small = compacted(model)
    with pytest.raises(RuntimeError, match="torch.jit.script cannot read a SmallLSTM; torch.jit.trace"):
        with warnings.catch_warnings(action="ignore"):  # torch would rather have it exported
            torch.jit.script(small)
    model.rnn.guard = threading.Lock()
    with pytest.raises(TypeError, match="rnn.guard cannot be copied"):
        sparsernn.compact(model, FEW)
