"""Intrinsic sparse structures (1709.05027): a group lasso over all that one hidden neuron touches, so that neurons go whole.

The group of a neuron holds its rows in W_ih and W_hh, of every gate, its column of W_hh, and its columns in whatever reads
it; biases are in none. With W_hh the weights where row and column meet count twice, as in the paper's code, so groups of
a 2 × 1500 LSTM on word PTB have 24,000 and 28,000 entries.
"""

import math
from dataclasses import dataclass

import torch

from .base import Reading, Settled
from .neurons import TOUCHED, Neurons, by_neuron
from .options import option

ROOT_MEAN_SQUARES = Reading("log10 rms", -5.0, 0.5, 0.1, (-4.0, -3.5, -3.0, -2.5, -2.0, -1.75, -1.5, -1.25, -1.0))


@dataclass(frozen=True)
class ISSOptions(Settled):
    """Of the group lasso over neurons."""

    iss_weight: float = option(
        7.0e-5,
        "nats an example and unit of a group's norm (paper, word PTB: 0.00245 for a loss summed over 35 steps, which is "
        "7.0e-5 a symbol)",
        least=0,
    )
    zero_below: float = option(
        1.0e-4, "weights of groups that are smaller are 0 after every step (paper: 1e-4)", least=0
    )
    least_rms: float = option(
        1.0e-2, "a neuron goes whose group has a smaller root mean square (paper: whose weights are all 0)", above=0
    )

    @property
    def threshold(self):
        """Of the logarithm that is read."""
        return math.log10(self.least_rms)


class ISS(Neurons):
    """Weights as they are under a group lasso. A neuron that is removed is multiplied with 0 wherever it is read and written."""

    Options, reading = ISSOptions, ROOT_MEAN_SQUARES
    kinds, draws_scales = ("hidden", "gates"), False

    def prepare(self):
        super().prepare()
        self.may_fix()
        self.may_press()

    def says(self):
        return f"iss {self.options.iss_weight:g}"

    def members(self, axis):
        """What the groups of an axis are made of: (member, item of its matrix)."""
        return [(m, self.weights[m.tensor]) for m in axis.having(*TOUCHED) if m.tensor in self.weights]

    def sizes(self, axis):
        """int64 [n]: entries of each neuron's group."""
        return sum((m.positions >= 0).sum(1) * self.shapes[m.tensor][1 - m.dim] for m, _ in self.members(axis))

    def squares(self, axis):
        """[n]: the sum of squares of each neuron's group."""
        members = self.members(axis)
        return sum(by_neuron(m, (item.theta * item.theta).sum(1 - m.dim)) for m, item in members)

    def charge(self, step):
        if not self.options.iss_weight:
            return 0.0
        return self.options.iss_weight * sum((self.squares(axis) + 1e-8).sqrt().sum() for axis in self.own())

    @torch.no_grad()
    def score(self, item):
        """log10 of the root mean square of a neuron's group."""
        return self.spread(item, self.root_mean_squares).log10() if item.name in self.groups else None

    def root_mean_squares(self, group):
        """[n], of the groups of an axis' neurons."""
        axis = next(axis for axis in self.axes if axis.name == group.name)
        squares = self.squares(axis)
        return (squares / self.sizes(axis).to(squares)).sqrt()

    def kept(self, item):
        return super().kept(item) if item.name in self.groups else item.theta

    @torch.no_grad()
    def after_step(self, step):
        for item in map(self.weights.get, self.prunable()):
            if item.learns:
                item.theta.masked_fill_(item.theta.abs() < self.options.zero_below, 0)
        super().after_step(step)
