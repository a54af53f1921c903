"""Heads: W_hh block-diagonal from the start, so that a group of neurons remembers for itself.

What ships in Lyra 1 instead of sparsity (a GRU of 1024 in 16 heads of 64) and is fast on GPUs (FlashRNN: 24 heads of 32 take
1.41 µs a step on an H100, cuDNN's dense LSTM of 768 takes 1.96): with n heads one in n recurrent weights is left, in dense
blocks. All other weights are dense. n = H is the limit in which every neuron remembers itself alone.
"""

import math
from dataclasses import dataclass

import torch

from .base import MISSED, Wanted
from .masking import RECURRENT, Masked, type_of
from .options import option


@dataclass(frozen=True)
class HeadsOptions(Wanted):
    """Of heads; a density is 1 ÷ heads."""

    heads: int = option(0, "blocks of W_hh, the same in each gate; 0: as density says, without one 4", least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.heads and self.density:
            raise ValueError("heads and density do not go together: the density of W_hh is 1 ÷ heads")


class Heads(Masked):
    """Masks that are there before the first step: each gate's H × H of W_hh in `heads` blocks on its diagonal."""

    Options = HeadsOptions

    def prepare(self):
        super().prepare()
        if not self.recurrent:
            raise ValueError("no recurrent matrix is left to put heads in")
        for weight in self.recurrent:
            size = weight.theta.shape[1]
            head = torch.arange(size, device=weight.theta.device) * self.heads // size
            gates = len(weight.theta) // size
            self.narrow(weight, (head[:, None] == head).repeat(gates, 1))
        self.apply()

    @property
    def recurrent(self):
        """Every W_hh."""
        return [weight for weight in self.weights.values() if type_of(weight) == RECURRENT]

    @property
    def choices(self):
        """Numbers of heads that divide the neurons of every recurrent layer."""
        shared = math.gcd(*(weight.theta.shape[1] for weight in self.recurrent))
        return [n for n in range(1, shared + 1) if shared % n == 0]

    @property
    def heads(self):
        """How many there are. Raises ValueError for a number or a density that no choice gives, naming those there are."""
        heads, density, choices = self.options.heads or 4, self.options.density, self.choices
        if not density and heads not in choices:
            sizes = ", ".join(map(str, sorted({weight.theta.shape[1] for weight in self.recurrent})))
            raise ValueError(
                f"heads is {heads}; it must divide the {sizes} neurons of a layer: {', '.join(map(str, choices))}"
            )
        if density:
            heads = min(choices, key=lambda n: abs(1 / n / density - 1))
            if abs(1 / heads / density - 1) > MISSED:
                reach = ", ".join(f"{1 / n:.4g}" for n in choices)
                raise ValueError(
                    f"density is {density:g}; heads give {reach} (1 ÷ a divisor of the neurons), ±{MISSED:.0%}"
                )
        return heads

    def prunable(self):
        return {weight.name: weight.theta.numel() for weight in self.recurrent}

    def reach(self):
        return 1 / self.choices[-1], 1.0

    def says(self):
        given = self.options
        return f"density {given.density:g} in heads" if given.density else f"{given.heads or 4} heads"
