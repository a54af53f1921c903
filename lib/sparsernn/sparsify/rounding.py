"""Noise in the place of rounding: a training that ends among weights as far off as int8 will put them.

In int8 each row of a matrix is whole multiples of its step, the largest of its weights ÷ 127, so a weight lands within half a
step of where it was. A training whose weights stand each step anywhere within that half, drawn evenly, ends where this matters
little; zeros stay zeros. LPCNet is trained so (1810.11846 and its code, in the last epochs). Steps are those of the matrices as
they are trained: a scale of an axis, which compaction multiplies into columns, is not in them.
"""

from contextlib import contextmanager

import torch
from torch import nn

from ..nets.layers import RECURRENT, kind_of
from ..nets.masks import standing

LEVELS = 127  # whole numbers on each side of 0
ROUNDED = (*RECURRENT, nn.Linear)  # an embedding's rows are looked up as they are


def matrices(model):
    """Name → matrix [rows, columns] that an engine rounds, each once, of the layers that a method can work on."""
    layers = {name: layer for name, layer in model.named_modules() if kind_of(layer) in ROUNDED}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and name.rpartition(".")[0] in layers
    }


@contextmanager
def rounding(model, masks):
    """Inside, forward and backward of one step, every weight that `masks` keeps stands within half a step of int8 of where it
    stood; afterwards all are back, to the bit. masks: `Masks`, as `Study.masks` gives them."""
    kept, before = standing(masks), {}
    with torch.no_grad():
        for name, weight in matrices(model).items():
            before[weight] = weight.clone()
            stays = kept[name].to(weight.device) if name in kept else torch.ones_like(weight, dtype=torch.bool)
            step = (weight.abs() * stays).amax(1, keepdim=True) / LEVELS
            weight += (torch.rand_like(weight) - 0.5) * step * (stays & (weight != 0))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, stood in before.items():
                weight.copy_(stood)
