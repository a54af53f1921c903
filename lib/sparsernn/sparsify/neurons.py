"""What the methods share that remove whole neurons: which weights hang on them, and how small a network can become."""

import torch

from .base import MISSED
from .pressure import Pressed

TOUCHED = "out", "in", "state"  # roles of a neuron's own weights: rows that write it, columns that read it


def by_neuron(member, lines):
    """Numbers of the lines of a tensor → [size]: their sum over the lines of each neuron of an axis' member."""
    return (lines[member.positions.clamp(min=0)] * (member.positions >= 0).to(lines)).sum(1)


class Neurons(Pressed):
    """A method that keeps or removes neurons with all their weights. A `gates` group goes with its neurons."""

    touches = True

    def prepare(self):
        """Raises ValueError where there is no neuron to decide about. A group's `theta` is what multiplies its neurons once
        they are fixed."""
        if not self.own():
            raise ValueError("no recurrent layer is left whose neurons the method could remove")
        like = next(iter(self.weights.values())).theta
        for group in self.groups.values():
            del group.theta
            group.register_buffer("theta", like.new_ones(group.size))
        self.leader = {axis.name: axis.hidden for axis in self.axes if axis.kind == "gates"}

    def schedule(self):
        fixed = self.learning_steps if self.options.fine_tune else self.steps
        return [("penalty", 0, fixed)] + ([("fine-tuned", fixed, self.steps)] if self.options.fine_tune else [])

    def own(self):
        """The axes whose neurons it decides about."""
        return [axis for axis in self.axes if axis.name in self.groups and axis.kind != "gates"]

    def spread(self, group, values_of):
        """values_of(group of its neurons) [n] for a group; of a gates group: the same for every gate of a neuron."""
        own = self.groups[self.leader.get(group.name, group.name)]
        return values_of(own).repeat(group.size // own.size)

    def with_gates(self, values):
        """Axis name → values [size] of neurons, and those of their gates beside them."""
        gates = [axis for axis in self.axes if axis.kind == "gates" and axis.name in self.groups]
        return values | {axis.name: axis.of_gates(values[axis.hidden]) for axis in gates}

    def prunable(self):
        hang = {member.tensor for axis in self.own() for member in axis.having(*TOUCHED)}
        return {name: size for name, size in super().prunable().items() if name in hang}

    def reach(self):
        """From the density at which a neuron is as much as may be missed, or one neuron an axis if that is more, to 1."""

        def density(of=None, kept=1):
            keep = {axis.name: torch.arange(axis.size) < (kept if axis is of else 1) for axis in self.own()}
            return self.density(self.masks_of(self.with_gates(keep)))

        least = density()
        neuron = max(density(axis, 2) - least for axis in self.own())
        return max(least, neuron / (2 * MISSED)), 1.0
