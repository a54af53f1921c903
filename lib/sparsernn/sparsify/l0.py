"""Neuron selection by an expected L0 norm (1906.06847): switches on input neurons z and hidden neurons s of a network.

A switch is a hard concrete gate (Louizos et al. 1712.01312), drawn once a training step, and multiplies a neuron wherever
it is read and written: W ⊙ (s zᵀ), U ⊙ (s sᵀ), for every gate alike. The penalty is the expected number of weights whose
switches are not 0. In evaluation a gate is clip(sigm(log α) (ζ − γ) + γ, 0, 1); neurons at 0 go.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from .base import Reading, Settled
from .carried import Transient
from .neurons import TOUCHED, Neurons, by_neuron
from .options import option

GATES = Reading("gate", 0.0, 1.1, 0.05, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # of 1712.01312; 1906.06847 gives none
START = 1.0, 0.1  # mean and deviation of log α (1906.06847)
FURTHEST = math.log(100)  # |log α| stays below it, as in 1712.01312's code: a gate that is closed can open again


@dataclass(frozen=True)
class L0Options(Settled):
    """Of hard concrete gates on neurons."""

    l0_weight: float = option(
        1.0, "nats a weight that is expected to stay, divided by the training examples as a KL is", least=0
    )
    lr_gates: float = option(2.0e-3, "Adam's rate for every log α", above=0)

    threshold = 0.0  # no option: a gate at 0 is closed


def stretched(logit):
    """A concrete gate on the scale from γ to ζ, before it is clipped to [0, 1]."""
    return torch.sigmoid(logit) * (ZETA - GAMMA) + GAMMA


def hard_concrete(logit, noise):
    """Gates in [0, 1] from log α and noise uniform in (0, 1), of one shape."""
    return stretched((torch.logit(noise) + logit) / BETA).clamp(0, 1)


def expected_gate(logit):
    """The gate in evaluation."""
    return stretched(logit).clamp(0, 1)


def open_probability(logit):
    """P(gate ≠ 0)."""
    return torch.sigmoid(logit - BETA * math.log(-GAMMA / ZETA))


class L0(Neurons):
    """Weights as they are, hard concrete gates as scales: input = z, recurrent = output = s, gates = s for each of them.

    Every forward of a step computes with the same gates, from one noise, in a graph of its own.
    """

    Options, reading = L0Options, GATES
    kinds = ("input", "hidden", "gates")

    def __init__(self, options=None):
        super().__init__(options)
        self.noise = Transient()

    def prepare(self):
        super().prepare()
        mean, deviation = START
        for axis in self.own():
            group = self.groups[axis.name]
            group.gate_logit = nn.Parameter((mean + deviation * torch.randn(axis.size)).to(group.theta))
        self.may_fix()
        self.may_press()

    def parameter_groups(self, lr):
        logits = [self.groups[axis.name].gate_logit for axis in self.own()]
        return [{"params": logits, "lr": self.options.lr_gates, "weight_decay": 0.0}]

    def rates(self):
        return (self.options.lr_gates,)

    def says(self):
        return f"l0 {self.options.l0_weight:g}"

    def draw_scale(self, group, batch, words=None):
        return self.spread(group, lambda own: hard_concrete(own.gate_logit, self.noise_of(own)))[None]

    def noise_of(self, own):
        """Uniform [n]: one draw a training step."""
        since = self.step, own.version()
        if own.name not in self.noise or self.noise[own.name][0] != since:
            tiny = torch.finfo(own.theta.dtype).eps
            self.noise[own.name] = since, torch.rand_like(own.theta).clamp(tiny, 1 - tiny)
        return self.noise[own.name][1]

    def gate(self, group):
        return group.theta if group.fixed else self.spread(group, lambda own: expected_gate(own.gate_logit))

    def score(self, item):
        """The gate, and where it is 1 how far beyond that it was: a density may have to tell open gates apart."""
        if item.name not in self.groups:
            return None
        return self.spread(item, lambda own: stretched(own.gate_logit).clamp(min=0)).detach()

    def kept(self, item):
        return self.gate(item) if item.name in self.groups else item.theta

    def means(self):
        return {name: self.gate(group).detach() for name, group in self.groups.items()}

    @torch.no_grad()
    def fix(self):
        gates = self.means()
        super().fix()
        for name, group in self.groups.items():
            group.theta.copy_(gates[name])

    @torch.no_grad()
    def after_step(self, step):
        super().after_step(step)
        for axis in self.own():
            self.groups[axis.name].gate_logit.clamp_(-FURTHEST, FURTHEST)

    def charge(self, step):
        if not self.options.l0_weight:
            return 0.0
        return self.options.l0_weight * self.expected_weights() / self.n_examples

    def measure(self, step, masks):
        """At first the expected density, then more and more the one that is kept: gates close many at once, long after the
        penalty has begun to move them."""
        expected, late = (
            self.expected_weights().item() / sum(self.prunable().values()),
            min(1, step / self.pressed_steps),
        )
        return expected ** (1 - late) * self.density(masks) ** late

    def expected_weights(self):
        """The expected number of weights that are multiplied with no gate at 0, of those that hang on a gate.

        A weight stays if all neurons do that it hangs on: its row's and its column's, or the one that is both.
        """
        opened = {axis.name: open_probability(self.groups[axis.name].gate_logit) for axis in self.own()}
        return sum(self.expected_of(tensor, opened) for tensor in self.prunable())

    def expected_of(self, tensor, opened):
        """The same of one matrix. opened: axis name → P(gate ≠ 0) [n]."""
        members = [(axis, m) for axis in self.own() for m in axis.having(*TOUCHED) if m.tensor == tensor]

        def lines(dim, but=None):
            """P that no gate closes a row (dim 0) or a column; whatever that of the axis `but` does."""
            chance = opened[members[0][0].name].new_ones(self.shapes[tensor][dim])
            for axis, m in members:
                if m.dim == dim and axis is not but:
                    chance = chance * m.along(opened[axis.name], len(chance), rest=1)
            return chance

        total = lines(0).sum() * lines(1).sum()
        for axis in self.own():
            rows, columns = ([m for a, m in members if a is axis and m.dim == dim] for dim in (0, 1))
            if rows and columns:  # where both are the same neuron its gate counts once
                both = [sum(by_neuron(m, lines(m.dim, axis)) for m in side) for side in (rows, columns)]
                total = total + (both[0] * both[1] * (opened[axis.name] - opened[axis.name] ** 2)).sum()
        return total
