"""Weights under masks that only ever lose: what the methods share that prune by rule instead of by a penalty.

A weight that was pruned stays pruned. It is zero after every optimiser step, whatever momentum the optimiser has for it,
and takes no part in a forward pass in between.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..nets.layers import kind_of
from .base import Method, Phase, Reading, Wanted
from .options import option

SIZES = Reading("log10 |w|", -6.0, 1.0, 0.25, (-3.0, -2.5, -2.0, -1.5, -1.25, -1.0, -0.75, -0.5))
FEW = 5  # changes of the masks: fewer are jumps, not a gradual pruning
EMBEDDING, INPUT, RECURRENT, OUTPUT = TYPES = "embedding", "input", "recurrent", "output"


@dataclass(frozen=True)
class MaskingOptions(Wanted):
    """When masks shrink. What counts in epochs counts in steps where `attach` is told of no epochs."""

    prune_start: float = option(1.0, "epoch at which pruning begins (1704.05119: start of the second)", least=0)
    prune_end: float = option(0.5, "share of the training after which masks stay", above=0, most=1)


def often(times):
    """A number of times, in words."""
    return "once" if times == 1 else f"{times:,} times"


def type_of(weight):
    """Which of TYPES a matrix is: thresholds are set for each apart (1704.05119)."""
    layer, own = weight.owners[0]
    if (kind := kind_of(layer)) in (nn.Embedding, nn.Linear):
        return EMBEDDING if kind is nn.Embedding else OUTPUT
    return RECURRENT if own.startswith("weight_hh") else INPUT


def largest(sizes, count):
    """bool, of the shape of `sizes`: exactly `count` of them, the largest; of equal ones whichever come first."""
    flat = sizes.flatten()
    if not 0 < count < len(flat):
        return torch.full(sizes.shape, count > 0, dtype=torch.bool, device=flat.device)
    edge = flat.kthvalue(len(flat) - count + 1).values  # a sixth of the time that sorting them takes
    keep = flat > edge
    keep[(flat == edge).nonzero().flatten()[: count - int(keep.sum())]] = True
    return keep.view(sizes.shape)


class Masked(Method):
    """A mask beside every weight; a subclass says when it narrows."""

    touches = draws_words = True
    reading = SIZES

    def prepare(self):
        for weight in self.weights.values():
            weight.register_buffer("mask", torch.ones_like(weight.theta, dtype=torch.bool))

    def after_step(self, step):
        self.apply()

    def reach(self):
        return 1 / min(self.prunable().values()), 1.0  # every matrix is pruned by itself

    def draw(self, weight, lines=None):
        if lines is None:
            return weight.theta * weight.mask
        return weight.theta.index_select(*lines) * weight.mask.index_select(*lines)

    def kept(self, item):
        return item.theta * item.mask

    def score(self, item):
        """log10 |w|; −∞ where it was pruned."""
        return (item.theta.detach() * item.mask).abs().log10()

    def of_types(self):
        """[(type, its weights)] of the types there are."""
        found = {kind: [w for w in self.weights.values() if type_of(w) == kind] for kind in TYPES}
        return [(kind, weights) for kind, weights in found.items() if weights]

    @torch.no_grad()
    def sizes_of(self, weight):
        """|w| of a matrix; 0 where it was pruned, or is not to be."""
        sizes = (weight.theta * weight.mask).abs()
        if weight.spared is not None:
            sizes[weight.spared] = 0
        return sizes

    @torch.no_grad()
    def narrow(self, weight, keep):
        """Prune what is not in `keep`; what was pruned before stays pruned."""
        weight.mask &= keep
        if weight.spared is not None:
            weight.mask[weight.spared] = True

    @torch.no_grad()
    def apply(self):
        """Zeros where the masks say so: after every optimiser step."""
        for weight in self.weights.values():
            weight.theta.mul_(weight.mask)


class Masking(Masked):
    """Masks that shrink in a window of steps.

    A subclass says when (`window`, `every`) and how (`shrink`).
    """

    begins = "pruning", "prune_start"

    def prepare(self):
        super().prepare()
        for weight in self.weights.values():
            weight.register_buffer("changed", torch.zeros((), dtype=torch.int64))  # steps before its mask last did

    # ---- when

    @property
    def window(self):
        """Steps after which pruning begins, and after which masks stay: they change last then."""
        plan = self.options
        start = round(plan.prune_start * self.steps_per_epoch)
        return start, max(round(plan.prune_end * self.steps), start + 1)

    @property
    def every(self):
        """Steps between two changes."""
        raise NotImplementedError

    def after_step(self, step):
        start, end = self.window
        done, last = step + 1, max(start, int(next(iter(self.weights.values())).changed))
        if last < end and (done >= end or done - start >= self.every + (last - start) // self.every * self.every):
            self.shrink(min(done, end))
            for weight in self.weights.values():
                weight.changed.fill_(done)
        self.apply()

    def shrink(self, step):
        """Narrow the masks to what they are to be after so many steps."""
        raise NotImplementedError

    def phases(self):
        share = min(self.window[1] / self.steps, 1.0)
        return Phase("prune", share, selectable=False), Phase("settle", 1 - share, selectable=True)

    def schedule(self):
        return [("pruned", *self.window)]

    def changes(self):
        start, end = self.window
        return -(-(end - start) // self.every)  # the last at the end

    def hasty(self):
        if not (now := getattr(self.options, "prune_every", 0)) or self.changes() >= FEW:
            return None
        start, end = self.window
        if (better := max(1, (end - start) // FEW)) >= now:
            return None
        return (
            f"masks change {often(self.changes())} in steps {start:,} to {end:,}, where it is pruned, for prune_every is {now}; "
            f"with prune_every={better} they change {often(-(-(end - start) // better))}, by less each"
        )

    def to_come(self, step):
        """Of the schedule, what is not over: masks change last when it ends."""
        return self.schedule() if int(next(iter(self.weights.values())).changed) < self.window[1] else []

    def says(self):
        return f"pruned from epoch {self.options.prune_start:g} to {self.options.prune_end:.0%}"
