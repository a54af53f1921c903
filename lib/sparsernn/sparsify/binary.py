"""Binary variational dropout for recurrent nets (Gal & Ghahramani 2016), alone and under sparse weights (1708.00077).

A mask over input and hidden neurons is drawn once a sequence and used at every time step: Bernoulli(1 − p) / (1 − p), so
that evaluation uses 1. What a layer hands on is masked apart from what it reads back. Alone it is the dense opponent
that learns less by heart; its prior is the plan's weight decay.
"""

from dataclasses import dataclass

import torch

from .base import Method
from .options import Options, option
from .pruned import take_lines
from .sparse_vd import SparseVD, SparseVDOptions

READ = ("input", "hidden")  # the axes whose neurons are dropped


def p():
    return option(0.0, "share of input and hidden neurons dropped for a sequence", least=0, below=1)


@dataclass(frozen=True)
class BinaryDropoutOptions(Options):
    """Of binary dropout."""

    dropout: float = p()


@dataclass(frozen=True)
class BinarySparseVDOptions(SparseVDOptions):
    """Of sparse weights under binary dropout."""

    dropout: float = p()


def bernoulli(group, batch, p, like):
    """[batch, n]: 1 / (1 − p) where a neuron stays, else 0."""
    keep = 1 - p
    return (torch.rand(batch, group.size, dtype=like.dtype, device=like.device) < keep).to(like) / keep


class BinaryDropout(Method):
    """Weights as they are, masks on what is read."""

    Options = BinaryDropoutOptions
    kinds, a_draw_each, touches, asks = READ, True, True, ("dropout",)

    def draw_scale(self, group, batch, words=None):
        return bernoulli(group, batch, self.options.dropout, next(iter(self.weights.values())).theta)

    def kept(self, item):
        return item.theta


class BinarySparseVD(SparseVD):
    """Noise on the weights and binary masks on what is read: the configuration of 1708.00077."""

    Options = BinarySparseVDOptions
    a_draw_each, asks = True, ("dropout",)

    def __init__(self, options=None):
        super().__init__(options, READ)

    def uncertain(self):
        return tuple(self.weights.values())

    def draw_scale(self, group, batch, words=None):
        mask = bernoulli(group, batch, self.options.dropout, next(iter(self.weights.values())).theta)
        return take_lines(mask, [(1, at) for _, at in self.lines.get(group.name, ())])

    def kept(self, item):
        return item.theta if item.name in self.groups else super().kept(item)
