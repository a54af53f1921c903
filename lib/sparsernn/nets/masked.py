"""The model as it stands under masks, trained and not yet cut: weights at zero, scales fixed. Style: dense, masked, compact."""

import copy

import torch
from torch import nn

from .layers import kind_of, stand_in


class Fixed(nn.Module):
    """What a layer carries in a masked model: its weights as they are, scales [1, n] that stay."""

    listens = False

    def __init__(self, layer, scales, batch_dim):
        super().__init__()
        self.__dict__["layer"], self.batch_dim = layer, batch_dim  # not a child: it is the parent
        for name, scale in scales.items():
            self.register_buffer(name, scale)

    def look_up(self, ids):
        return None, ids

    def weight(self, name, words=None):
        return getattr(self.layer, name, None)

    def scale(self, name, batch, words=None):
        return self._buffers.get(name)

    def noise(self, name, batch):
        return None


@torch.no_grad()
def masked(model, masks, means=None):
    """A copy of `model` in evaluation mode that computes with θ or 0, and μ or 0 (the papers' single-pass evaluation).

    masks  `Masks`      means  axis name → mean of its group variable (1 where absent)
    The copy carries no method: its weights are plain parameters.
    """
    means, copied, scales = means or {}, copy.deepcopy(model).eval(), {}
    batch_dims = {}
    for name, module in copied.named_modules():
        if kind_of(module) is not None and getattr(module, "carried", None) is not None:
            batch_dims[name] = module.carried.batch_dim
            del module._modules["carried"]
    parameters = dict(copied.named_parameters())
    for name, mask in masks.weights.items():
        parameters[name].mul_(mask.to(parameters[name].device))
    like = next(iter(parameters.values()))
    for axis in masks.axes:
        if axis.name in masks.groups or axis.name in means:
            value = means.get(axis.name, torch.ones(axis.size)).to(like) * masks.group(axis).to(like.device)
            for member in axis.having("scale"):
                layer, _, kind = member.tensor.rpartition(".")
                scales.setdefault(layer, {})[kind] = value[None]
    for layer, given in scales.items():
        module = stand_in(copied.get_submodule(layer))
        module.carried = Fixed(module, given, batch_dims.get(layer, 1))
    return copied
