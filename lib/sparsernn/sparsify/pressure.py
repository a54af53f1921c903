"""How hard a penalty presses: towards a density that was asked for, and never until nothing is left.

A penalty is multiplied with a factor. Without a density it is 1. With one, it makes the penalty small at first, whatever its
weight, and is steered while the network learns: the logarithm of the density is to fall on a parabola, fast at first, from
nothing pruned to what was asked for, and a controller moves the factor by how far off it is. (On a straight line a penalty is
held back while it could still move what it has to, and later no factor is large enough.) Where a layer would lose its last
neuron the factor becomes 0, and the data alone go on.

What the controller leaves to be done when what is kept is fixed, the threshold does: it is moved to where it meets the
density, which scores far from it (a penalty drives them there) make a small step.
"""

import math

import torch

from ..files import warn
from ..nets.masks import close
from .base import Method, Phase

TURNS = 200  # how often the factor moves until the density is to be reached
REACHED = 0.75  # share of the learning at which it has come down
PROPORTIONAL, INTEGRAL = 3.0, 0.2  # of the controller: nats of the factor a nat of density
MOST = 0.3  # nats behind that the second acts on: more says only that pruning takes its time
RETURN = 4.0  # what is pruned comes back slowly: so much harder it steers where less is left than is due
AIM = 1.05  # of a density that the threshold meets in the end: it can take what is too much, but open no closed gate
BISECTIONS = 25  # of the range of a score, for the threshold that meets a density
FURTHEST = 1e4  # the factor stays between its inverse and this
GENTLE = 0.1  # nats an example that a steered penalty is at first, at most: nothing is learned yet that could resist it
CHECKS = 4  # an epoch, whether every layer still has a neuron


class Pressed(Method):
    """A method with a penalty whose factor follows `Options.density`. A subclass calls `may_press` at the end of `prepare`
    and says `charge`; it must call `after_step` if it has one of its own.

    The factor is a buffer, `pressure`, of the first item, beside it `behind`: how far off the density was at the last turn,
    and `cut`: the threshold that meets it in the end.
    """

    def may_press(self):
        """Give the factor its place, once the items are there."""
        like = self.items()[0].theta
        self.items()[0].register_buffer("pressure", like.new_ones(()))
        if self.options.density:
            self.items()[0].register_buffer("behind", like.new_zeros(()))
            self.items()[0].register_buffer("cut", like.new_full((), super().threshold))

    def phases(self):
        if self.options.fine_tune:
            return super().phases()
        return Phase("learn", 0.75, selectable=False), Phase("settle", 0.25, selectable=True)

    def charge(self, step):
        """The penalty at a factor of 1, nats per example."""
        raise NotImplementedError

    @property
    def pressure(self):
        """What the penalty is multiplied with; 0: it has ended."""
        return float(self.items()[0].pressure)

    def penalty(self, step):
        if self.fixed or not (factor := self.pressure):
            return 0.0
        charge = self.charge(step)
        if self.options.density and not step and (first := float(torch.as_tensor(charge).detach())) > GENTLE:
            factor = GENTLE / first
            self.items()[0].pressure.fill_(factor)
        return charge * factor

    @torch.no_grad()
    def after_step(self, step):
        done = step + 1
        steer = self.options.density and done % max(1, self.pressed_steps // TURNS) == 0
        check = done % (self.steps_per_epoch // CHECKS or max(1, self.steps // (100 * CHECKS))) == 0
        if not (steer or check) or self.fixed or not self.pressure:
            return
        masks = self.masks()
        if steer:
            self.steer(done, self.measure(done, masks))
        if check:
            self.spare_the_last(done, masks)

    # ---- towards a density

    @property
    def pressed_steps(self):
        """Steps in which the network learns what to keep, before an epoch is chosen or what is kept is fixed."""
        if self.options.fine_tune:
            return self.learning_steps
        return round(sum(phase.share for phase in self.phases() if not phase.selectable) * self.steps)

    def measure(self, step, masks):
        """The density that is steered by. A subclass may know one that answers sooner than what is kept."""
        return self.density(masks)

    def due(self, step):
        """The density that there is to be after so many steps."""
        left = max(0.0, 1 - step / (REACHED * self.pressed_steps))
        aim = self.options.density * (AIM if self.options.fine_tune else 1)
        return min(1.0, aim) ** (1 - left**2)

    def steer(self, step, density):
        """Move the factor by how much denser than due the network is, in nats, and by how much more than at the last turn."""
        first = self.items()[0]
        behind = math.log(max(density, 1e-9) / self.due(step))
        turn = PROPORTIONAL * (behind - float(first.behind)) + INTEGRAL * (
            min(behind, MOST) if behind > 0 else RETURN * behind
        )
        first.pressure.mul_(math.exp(turn)).clamp_(1 / FURTHEST, FURTHEST)
        first.behind.fill_(behind)

    @property
    def threshold(self):
        """That of its options; with a density, once what is kept is fixed, the one that meets it."""
        cut = getattr(next(iter(self.items()), None), "cut", None)
        return super().threshold if cut is None else float(cut)

    def fix(self):
        if self.options.density:
            self.items()[0].cut.fill_(self.meets())
        super().fix()

    def meets(self):
        """The threshold that leaves what is nearest to the density asked for, within the range of the scores' reading."""
        low, high, tried = self.reading.low, self.reading.high, {}
        for cut in (self.threshold, *[None] * BISECTIONS):
            cut = (low + high) / 2 if cut is None else cut
            density = self.density(self.masks(cut))
            tried[cut] = abs(math.log(max(density, 1e-9) / self.options.density))
            if (density > self.options.density) == self.reading.keeps_below:
                high = cut
            else:
                low = cut
        return min(tried, key=tried.get)

    # ---- the last neuron

    def spare_the_last(self, step, masks):
        """End the penalty where closure would leave a hidden axis no neuron."""
        closed = close(masks, self.read_elsewhere(masks))
        if gone := [axis.name for axis in masks.of_kind("hidden") if not closed.groups[axis.name].any()]:
            self.items()[0].pressure.zero_()
            warn(
                f"{gone[0]} would keep none of its neurons at step {step:,} of {self.steps:,}: from here on it is trained "
                "without the penalty. Lower the penalty's weight, let it rise later, or ask for a density"
            )

    @staticmethod
    def read_elsewhere(masks):
        """Hidden axis → its neurons, where the axes name nobody who reads it but itself: of a model that declares none."""
        found = {}
        for axis in masks.of_kind("hidden"):
            written = {member.tensor for member in axis.having("out")}
            if not any(member.tensor not in written for member in axis.having("in", "state")):
                found[axis.name] = masks.group(axis)
        return found
