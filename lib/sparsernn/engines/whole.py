"""A model run by an engine: in one call where it is a chain of layers that the engine runs so, else layer by layer.

Where a net has a few neurons left, a step takes less than a tenth of a microsecond, and what Python does between an
embedding, a layer and a head takes a hundred: that is left out.
"""

from functools import cached_property

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..nets.outside import deep_copy
from . import engine_class
from .chain import Asked, chain_of, probe
from .compare import REFUSES, difference
from .models import ByEngine, by_layers, recurrent_layers

FEW = 3  # sequences of an example that a chain is compared on


def by_engine(model, engine, example, device="cpu", states=True):
    """A copy of `model` on `device` whose recurrent and linear layers are run by `engine`, in float32 and evaluation.

    model    small, or as it was                      example  what it is called with, as `sparsernn.compact` takes it
    states   whether final states that the model returns are wanted: else they may be NaN, as is an LSTM's c in any case where
             the engine does not hand it out
    Where the engine reads ids, an embedding that goes straight into a recurrent layer is multiplied into its weights, once.
    Raises ValueError for an unknown engine, `Unsupported` for a layer it does not run.
    """
    kind = engine_class(engine)
    if (
        kind.whole
        and not callable(example)
        and torch.device(device).type in kind.devices
        and (found := chained(model, example))
    ):
        chain, form, width = found
        if run := kind.whole(chain, width, states, device):
            return InOneCall(run, chain, form, (deep_copy(model), engine, example, device)).eval()
    return by_layers(model, engine, example, device, states)


def saturated(fast):
    """How many numbers int8 has cut off so far in a model that an engine runs; 0 where none counts."""
    if isinstance(fast, InOneCall):
        more = saturated(vars(fast)["layers"]) if "layers" in vars(fast) else 0
        return more + getattr(fast.run, "saturated", 0)
    levels = [engine for module in recurrent_layers(fast).values() for engine in module.level.engines.values()]
    products = [module.linear for module in fast.modules() if isinstance(module, ByEngine)]
    return sum(getattr(each, "saturated", 0) for each in (*levels, *products))


def chained(model, example):
    """→ the chain that a model is, on the example too, the form of what it returns, and the width of the states in it, 0 for
    none; None for a model that is no chain, or of which a layer has nothing to say."""
    try:
        chain = chain_of(model)
        shape = _returned(model, chain, *_of_example(example, chain))
    except REFUSES:
        return None
    return (chain, *shape) if shape and all(level.hidden for level in chain.levels) else None


def _of_example(example, chain):
    """Some sequences of an example, steps first, where it is what a chain reads."""
    x = example[0] if isinstance(example, tuple | list) and len(example) == 1 else example
    if not isinstance(x, torch.Tensor) or x.dim() != (3 if chain.words is None else 2) or not x.numel():
        return []
    x = (x.transpose(0, 1) if chain.first[0] else x)[:, :FEW].cpu()
    return [x.double() if x.is_floating_point() else x]


@torch.no_grad()
def _returned(model, chain, *more):
    """How a model returns a chain's answer, alone or before the states of its only recurrent layer → its form with
    numbers in the place of tensors, the width of the states or 0; None where it returns something else, or another answer to
    one of what more is given. Raises Changed where not only its layers made what it returns."""
    x = probe(chain.words, chain.kept, chain.inputs)
    asked = Asked(model, x)
    for other in more:
        answer, said = chain(other), tree_leaves(asked(other.transpose(0, 1) if chain.first[0] else other))[0]
        if difference(answer.transpose(0, 1) if chain.first[1] else answer, said) > asked.same:
            return None
    leaves, tree = tree_flatten(asked(x.transpose(0, 1) if chain.first[0] else x, whole=True))
    said, states = chain.with_states(x)
    if difference(said.transpose(0, 1) if chain.first[1] else said, leaves[0]) > asked.same:
        return None
    form = tree_unflatten(range(len(leaves)), tree)
    if len(leaves) == 1:
        return form, 0
    layers = list(asked.layers.values())
    if len(layers) != 1 or len(leaves) - 1 != len(states[0]):
        return None
    for leaf, level_states in zip(leaves[1:], zip(*states, strict=True), strict=True):
        wide = leaf.new_zeros(len(states), x.shape[1], layers[0].hidden_size)
        for to, state, places in zip(wide, level_states, chain.neurons, strict=True):
            to[:, places] = state
        if difference(wide, leaf) > asked.same:
            return None
    return form, layers[0].hidden_size


def filled(form, values):
    """A form with its numbers replaced by the values of those numbers."""
    if type(form) is int:
        return values[form]
    if type(form) is tuple:  # what models return, quicker than the general way
        return tuple([filled(part, values) for part in form])
    return tree_map(values.__getitem__, form)


class InOneCall(nn.Module):
    """A chain by one call, called and answering as its model does.

    What it is called with otherwise than with ids or numbers alone is run layer by layer, by the same engine, made when it is
    first asked for.
    """

    def __init__(self, run, chain, form, layers):
        super().__init__()
        self.run, self.form, self.given, self.where = run, form, layers, torch.empty(0, device=layers[-1]).device
        self.ids, self.inputs, (self.turns, self.turns_back) = chain.words is not None, chain.inputs, chain.first

    @cached_property
    def layers(self):
        """The model layer by layer."""
        return by_layers(*self.given)

    @staticmethod
    def states_in(returned):
        """The states in what it returns (`nets.readers.answer`)."""
        return tree_leaves(returned)[1:]

    def forward(self, *given, **more):
        x = given[0] if len(given) == 1 and not more else None
        if not isinstance(x, torch.Tensor) or not self._fits(x):
            with torch.no_grad():
                return self.layers(*given, **more)
        answer, found = self.run((x.transpose(0, 1) if self.turns else x).contiguous())
        if self.turns_back:
            answer = answer.transpose(0, 1)
        return filled(self.form, [answer, *found])

    def _fits(self, x):
        if x.device != self.where or not x.numel():
            return False
        if self.ids:
            return x.dtype == torch.int64 and x.dim() == 2
        return x.dtype == torch.float32 and x.dim() == 3 and x.shape[2] == self.inputs
