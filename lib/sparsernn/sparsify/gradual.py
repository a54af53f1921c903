"""Gradual magnitude pruning while a network trains (1704.05119), its control, and the schedule that ships today.

Masks change every `prune_every` steps between two epochs, and a weight goes when it is smaller than a threshold that rises:
slowly at first, faster from the ramp on. Where it ends is read off a finished dense run: q, the size below which nine in ten
of its weights are. Thresholds are those of a type of weight: embedding, input, recurrent, output.
"""

from dataclasses import dataclass

import torch

from .masking import Masking, MaskingOptions, largest
from .options import option


@dataclass(frozen=True)
class ByReference(MaskingOptions):
    """Where a threshold ends."""

    percentile: float = option(0.9, "share of a dense run's weights that are smaller than q", above=0, below=1)
    q: float = option(0.0, "where the threshold ends, for all types; 0: by the percentile of a dense run", least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.q and self.density:
            raise ValueError("q and density do not go together: q says where the threshold ends, density what is left")


@dataclass(frozen=True)
class GradualOptions(ByReference):
    """Hyper-parameters of 1704.05119, Table 1, with its heuristics as defaults."""

    schedule: str = option(
        "two-slope",
        "two-slope: the paper's threshold; cubic: a density that falls by (1 − t)³ (Zhu & Gupta 1710.01878)",
        choices=("two-slope", "cubic"),
    )
    prune_every: int = option(100, "steps between two changes of the masks (paper: 100)", least=1)
    prune_ramp: float = option(0.25, "share of the training from which the threshold rises faster", least=0, below=1)
    ramp_slope: float = option(1.5, "second slope ÷ first (paper: 1.5 to 2); at 1.5 the threshold ends at q", above=0)

    def __post_init__(self):
        super().__post_init__()
        if self.schedule == "cubic" and (self.q or not self.density):
            raise ValueError("schedule='cubic' goes by a density, not by q: give density=")


def two_slope(step, start, ramp, end, every, q, ratio=1.5):
    """The threshold of 1704.05119 (Algorithm 1) after `step` steps. The first slope is its Eq. 1, so that with a `ratio` of
    1.5 for the second it ends at q."""
    theta = 2 * q * every / (2 * (ramp - start) + 3 * (end - ramp))
    if step < ramp:
        return theta * (step - start + 1) / every
    return (theta * (ramp - start + 1) + ratio * theta * (step - ramp + 1)) / every


def cubic(step, start, end, density):
    """The density after `step` steps: 1 at `start`, `density` at `end` (Zhu & Gupta 1710.01878, eq. 1)."""
    left = (end - min(max(step, start), end)) / (end - start)
    return density + (1 - density) * left**3


class ByThreshold(Masking):
    """Masks that shrink by a threshold a type of weight, which ends at q; with a density asked for, by rank."""

    or_else = "q=, or density="

    def start_from(self, finished):
        self.finished = finished["dense"]

    def prepare(self):
        super().prepare()
        self.sizes = {}  # type → sizes of the dense run's weights, rising
        for kind, weights in self.of_types() if self.needs() else ():
            sizes = [self.finished[weight.name].detach().abs().flatten() for weight in weights]
            self.sizes[kind] = torch.cat(sizes).to(weights[0].theta).sort().values

    @torch.no_grad()
    def shrink(self, step):
        for kind, weights in self.of_types():
            sizes, free = torch.cat([self.sizes_of(weight).flatten() for weight in weights]), self.prunable()
            if self.options.density:
                keep = largest(sizes, round(self.share(kind, step) * sum(free[weight.name] for weight in weights)))
            else:
                keep = sizes > self.rises_to(kind, step)
            for weight, mine in zip(weights, keep.split([w.theta.numel() for w in weights]), strict=True):
                self.narrow(weight, mine.view_as(weight.theta))

    def q(self, kind):
        """Where the threshold of a type of weight ends."""
        if self.options.q:
            return self.options.q
        sizes, share = self.sizes[kind], 1 - (self.options.density or 1 - self.options.percentile)
        return float(sizes[min(round(share * len(sizes)), len(sizes) - 1)])

    def rises_to(self, kind, step):
        """The threshold of a type of weight after so many steps."""
        raise NotImplementedError

    def share(self, kind, step):
        """The density that a type of weight is to have after so many steps, where one is asked for."""
        raise NotImplementedError


class Gradual(ByThreshold):
    """A threshold that rises on two slopes. With a density asked for, the shares that it would take of the dense run's
    weights are taken of those that are here, so that what is left in the end is that density."""

    Options = GradualOptions

    @property
    def or_else(self):
        by_density = "schedule='cubic', which goes by density alone"
        return by_density if self.options.density else f"q=, or density= with {by_density}"

    def needs(self):
        return ("dense",) if self.options.schedule == "two-slope" and not self.options.q else ()

    @property
    def every(self):
        return self.options.prune_every

    @property
    def ramp(self):
        """Steps after which the threshold rises faster."""
        start, end = self.window
        return min(max(round(self.options.prune_ramp * self.steps), start), end - 1)

    def rises_to(self, kind, step):
        start, end = self.window
        return two_slope(step, start, self.ramp, end, self.every, self.q(kind), self.options.ramp_slope)

    def share(self, kind, step):
        start, end = self.window
        if self.options.schedule == "cubic":
            return cubic(step, start, end, self.options.density)
        if step >= end:
            return self.options.density
        above = self.sizes[kind] > self.rises_to(kind, step)
        return max(float(above.double().mean()), self.options.density)

    def schedule(self):
        faster = [("pruned faster", self.ramp, self.window[1])] if self.options.schedule == "two-slope" else []
        return super().schedule() + faster


@dataclass(frozen=True)
class HardOptions(ByReference):
    """Of pruning at fixed epochs."""

    prune_times: int = option(1, "how often it is pruned, as far apart as each other; 1: once, at prune_end", least=1)


class Hard(ByThreshold):
    """The control of 1704.05119: what `gradual` takes step by step goes at one epoch, or at a few."""

    Options = HardOptions

    def needs(self):
        return () if self.options.q or self.options.density else ("dense",)

    @property
    def every(self):
        start, end = self.window
        return -(-(end - start) // self.options.prune_times)

    def done(self, step):
        """The share of the pruning that is over after so many steps."""
        start, end = self.window
        return 1.0 if step >= end else (step - start) // self.every / self.options.prune_times

    def rises_to(self, kind, step):
        return self.done(step) * self.q(kind)

    def share(self, kind, step):
        return 1 - self.done(step) * (1 - self.options.density)
