"""A whole compact model run by an engine."""

from ..nets.compact import Compact
from . import engine_class
from .base import Layer, Unsupported


def layers_of(model):
    """suffix → `Layer` of a `Compact`, on the CPU."""
    parts = {suffix: model.parts(suffix) for suffix in model.meta["layers"]}
    return {suffix: Layer(model.cell, {n: p.cpu() for n, p in found.items()}) for suffix, found in parts.items()}


class Fast(Compact):
    """`model` on `device`, its layers and its head run by `engine`; called like it, with a state of zeros, in float32.

    Where the engine reads ids, the embedding is multiplied into the first layers' weights once, here.
    Raises ValueError for an unknown engine, `Unsupported` for a layer it does not run or a state to go on from.
    """

    def __init__(self, model, engine, device="cpu"):
        if not model.meta["layers"]:
            raise Unsupported(f"a {model.meta['model']} has no recurrent layer to run")
        super().__init__(model.meta, model.tensors())
        kind, layers = engine_class(engine), layers_of(self)
        self.folded = kind.reads_ids and "embedding/weight" in self.names
        if self.folded:
            first = {
                s: layer.reading(self.tensor("embedding.weight").cpu()) for s, layer in layers.items() if "_l0" in s
            }
            layers |= first
        self.engines = {suffix: kind(layer, device) for suffix, layer in layers.items()}
        self.head = kind.linear(self.tensor("head.weight").cpu(), self.tensor("head.bias").cpu(), device)
        self.float().to(device)

    def embed(self, words):
        return words if self.folded else super().embed(words)

    def answer(self, y):
        return self.head(y)

    def run_layer(self, suffix, x, state, live):
        if state is not None:
            raise Unsupported("engines start from zeros; Compact goes on from a state")
        if not suffix.endswith("_reverse"):
            return self.engines[suffix](x, live), None
        y = self.engines[suffix](x.flip(0), None if live is None else live.flip(0))
        return y.flip(0), None
