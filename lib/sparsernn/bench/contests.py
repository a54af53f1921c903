"""Engines side by side on what the goals are about, one core, one sequence at a time but for the language model: a contest is a
function of the seconds that timing may take → name → (milliseconds, error against float64), interleaved in one run, the
least time of each.

The product of a GRU of 1,024 neurons, 3072 × 1024, and the whole layer over 50 steps with 1,024 inputs, both matrices
sparse, beside torch's dense int8, our own dense int8 and scattered weights (numba). Our products are repeated in C, so that no
call stands between them; torch's and numba's have their calls. A layer goes on from the state in which its last call ended.

The language model of 1409.2329, two LSTMs of 1,500, cut to the 373 and 315 neurons that 1709.05027 leaves of them, with its
embedding and 10,000 logits at each of 30 steps, ten texts at once: a shape, its weights are random.

The study's own nets; a GRU of 512 in a model of one's own; and the call of a single step.
"""

from functools import partial

import torch
from torch import nn

from ..engines import LAYERS, PRODUCTS, choose, engine_class
from ..engines.base import Layer, oracle
from ..engines.c.build import library
from ..engines.parts import shrink
from ..engines.prove import compact as compacted
from ..engines.timing import interleaved
from ..engines.whole import by_engine
from ..files import error
from ..nets.compact import compact
from ..nets.layers import GRU
from ..nets.masks import Masks
from ..nets.models import StackedLanguageModel
from ..sparsify.block_shapes import shape_of, to_entries
from .cases import TrainedCase

HIDDEN, STEPS, TIMES = 1024, 50, 50
DENSE = ("dense-int8", "own-dense-int8")
SPARSE = (("c-int8", "16x4"), ("c-int8", "8x4"), ("c-blocks", "16x1"), ("c-blocks", "16x4"), ("c-blocks", "1x1"))
NUMBA = "numba-csr"


def least(calls, errors, seconds, rounds=(5, 500), parts=1):
    """name → milliseconds of one of the parts of its call, error."""
    samples = interleaved(calls, seconds=seconds, rounds=rounds)
    return {name: (float(ms.min()) / parts, errors[name]) for name, ms in samples.items()}


def entries(density):
    """name → engine, block, share of weights left."""
    return {name: (name, "1x1", 1.0) for name in DENSE} | {
        f"{name}, {block}".replace("1x1", "scattered"): (name, block, density) for name, block in SPARSE
    }


def weights(block, density, seed, rows=None, columns=None):
    """A GRU's matrix, [3·1024, 1024] if nothing is said, float32, whose blocks are kept, as many as make the density, or not."""
    rows, columns = rows or 3 * HIDDEN, columns or HIDDEN
    generator, shape = torch.Generator().manual_seed(seed), shape_of(block)
    kept = torch.rand(rows // shape[0], columns // shape[1], generator=generator)
    weight = torch.randn(rows, columns, generator=generator) / (density * columns) ** 0.5
    return weight * to_entries(kept <= kept.flatten().quantile(density), shape, weight)


def layer(block, density):
    made, everything = GRU(HIDDEN, HIDDEN).requires_grad_(False), torch.ones(3 * HIDDEN, dtype=torch.bool)
    given = weights(block, density, 0), weights(block, density, 1), made.bias_ih_l0, made.bias_hh_l0
    return Layer(made.cell, shrink(made.cell, *given, everything[:HIDDEN], everything))


def repeated(product, x):
    """→ a call that does a product TIMES times: in C where that can be."""
    try:
        product(x, TIMES)
    except TypeError:
        return lambda: [product(x) for _ in range(TIMES)]
    return lambda: product(x, TIMES)


def products(density, seconds):
    x, calls, errors = torch.randn(HIDDEN, 1), {}, {}
    for said, (name, block, share) in (entries(density) | {f"{NUMBA}, scattered": (NUMBA, "1x1", density)}).items():
        weight = weights(block, share, 0)
        product = engine_class("csr-numba" if name == NUMBA else name, PRODUCTS)(weight)
        errors[said] = error(product(x), weight.double() @ x.double())
        calls[said] = repeated(product, x)
    return least(calls, errors, seconds, parts=TIMES)


def going_on(engine, x):
    """→ a call of a GRU's engine that goes on with x from where the last call ended; torch's as its module does it."""
    zeros = torch.zeros(1, x.shape[1], engine.layer.hidden)
    if engine.carries:
        go_on, state = partial(engine.carry, x, None), list(zeros)
    else:
        go_on, state = partial(engine.module, x), zeros

    def call():
        nonlocal state
        y, state = go_on(state)
        return y

    return call


def layers(density, seconds):
    """Of all the steps of the layer."""
    x, calls, errors = torch.randn(STEPS, 1, HIDDEN), {}, {}
    for said, (name, block, share) in entries(density).items():
        made = layer(block, share)
        calls[said] = going_on(engine_class(name, LAYERS)(made), x)
        errors[said] = error(torch.cat([calls[said](), calls[said]()]), oracle(made, torch.cat([x, x])))
    return least(calls, errors, seconds)


LEFT, WORDS, WINDOW, TEXTS = (373, 315), 10_000, 30, 10
LARGE = "2 × 1500, dense-fp32"  # before anything is cut; the others after
BY = (LARGE, "dense-fp32", "c-blocks", "c-int8")


def cut(large):
    """The language model, and what is left of it."""
    model = StackedLanguageModel(WORDS, large, large, 2).eval().requires_grad_(False)
    generator, groups = torch.Generator().manual_seed(0), {}
    for axis, kept in zip((a for a in model.axes() if a.kind == "hidden"), LEFT, strict=True):
        groups[axis.name] = torch.zeros(large, dtype=torch.bool)
        groups[axis.name][torch.randperm(large, generator=generator)[:kept]] = True
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 2}
    return model, compact(model, Masks(tuple(model.axes()), masks, groups))


def language_models(seconds, large=1500):
    """Of a window."""
    model, small = cut(large)
    ids, calls, errors = torch.randint(WORDS, (WINDOW, TEXTS)), {}, {}
    expected = {id(net): choose.reference(net, ids)[0] for net in (model, small)}
    for name in BY:
        net = model if name == LARGE else small
        fast = by_engine(net, name.rpartition(" ")[2], ids, states=False)
        calls[name] = lambda fast=fast: fast(ids)[0]
        errors[name] = error(calls[name](), expected[id(net)])
    return least(calls, errors, seconds, rounds=(3, 100))


READ_BY = ("dense-fp32", "dense-bf16", "dense-int8", "own-dense-int8", "c-blocks", "c-int8")


def tracked_net(path, steps, seconds):
    """Of a text of so many steps through a tracked net, its file given, and through its dense one."""
    case, calls, errors = TrainedCase(path, 1, steps), {}, {}
    for name in READ_BY:
        calls[name], *_ = case.make(name, "cpu")
        errors[name] = case.error(name, calls[name]())
    return least(calls, errors, seconds)


class Own(nn.Module):
    """A stranger's model: a GRU and nothing else."""

    def __init__(self, size):
        super().__init__()
        self.gru = nn.GRU(size, size)

    def forward(self, x):
        return self.gru(x)[0]


def own_layer(seconds, size=512):
    """Of STEPS steps of torch's own layer in fp32, 95 % of it zeros in blocks of 16×1, and of what `compact` makes of it."""
    model, x = Own(size).eval().requires_grad_(False), torch.randn(STEPS, 1, size)
    for seed, name in enumerate(("weight_ih_l0", "weight_hh_l0")):
        getattr(model.gru, name).copy_(weights("16x1", 0.05, seed, 3 * size, size))
    small, _ = compacted(model, x)
    calls = {"torch's layer": lambda: model(x), "compact": lambda: small(x)}
    expected = Own(size).double()
    expected.load_state_dict(model.state_dict())
    expected = expected(x.double()).detach()
    return least(calls, {name: error(call(), expected) for name, call in calls.items()}, seconds)


SMALL, MANY = 32, 1001


def one_step(seconds):
    """Of a step of a GRU of 32 neurons that is a call by itself: of the engine, which makes the tensors that it answers with,
    and of its C function, whose pointers are at hand; and of one among a thousand of a call: what C computes."""
    module = GRU(SMALL, SMALL).requires_grad_(False)
    everything = torch.ones(3 * SMALL, dtype=torch.bool)
    given = (getattr(module, f"{kind}_{of}_l0") for kind in ("weight", "bias") for of in ("ih", "hh"))
    made = Layer(module.cell, shrink(module.cell, *given, everything[:SMALL], everything))
    engine, x = engine_class("c-blocks", LAYERS)(made), torch.randn(MANY, 1, SMALL)
    wrong, y, h = error(engine(x), oracle(made, x)), torch.empty(1, 1, SMALL), torch.zeros(1, SMALL)
    function, memory = library().sparsernn_run, engine.by_numbers.address
    pointers = memory, x.data_ptr(), None, None, y.data_ptr(), h.data_ptr(), None, h.data_ptr(), None, 1, 1
    calls = {"a step a call": going_on(engine, x[:1]), "many": going_on(engine, x)}
    calls["by pointers"] = lambda: function(*pointers)
    found = least(calls, dict.fromkeys(calls, wrong), seconds)
    single, many = found["a step a call"][0], found.pop("many")[0]
    return found | {"in C": ((many - single) / (MANY - 1), wrong)}
