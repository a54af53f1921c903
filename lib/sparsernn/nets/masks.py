"""What is kept: masks (True = kept, always on the CPU), the authors' way of counting them, and their closure.

Two functions, two names. `paper_count` is the single pass the authors publish their compression with; `close` is the
fixed point that a really smaller model can use. They differ, and both are reported.
"""

from dataclasses import dataclass, field, replace

import torch

from .axes import drop_gates, gates_of


@dataclass(frozen=True)
class Masks:
    """axes: the model's; weights: matrix name → bool, its shape; groups: axis name → bool [size], where it has a mask;
    shared: matrix name → bool, entries that are copies of another, which alone is counted."""

    axes: tuple
    weights: dict
    groups: dict
    shared: dict = field(default_factory=dict)

    @classmethod
    def all_kept(cls, model):
        weights = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weight_matrices(model).items()}
        return cls(tuple(model.axes()), weights, {})

    def group(self, axis):
        mask = self.groups.get(axis.name)
        return torch.ones(axis.size, dtype=torch.bool) if mask is None else mask

    def stored(self, weights):
        """Name → bool, of weights (name → bool) without what is shared."""
        return {name: w & ~self.shared[name] if name in self.shared else w for name, w in weights.items()}

    def of_kind(self, kind):
        return [axis for axis in self.axes if axis.kind == kind]


def weight_matrices(model):
    """The prunable tensors: every matrix, no bias, nothing that a method added. Name → parameter."""
    return {name: p for name, p in model.named_parameters() if p.dim() == 2 and ".carried." not in name}


@dataclass(frozen=True)
class Count:
    """What a set of masks keeps. Per-layer numbers are lists in layer order; None: the model has no such axis."""

    weights_total: int
    weights_kept: int
    vocabulary_kept: int | None
    input_kept: int | None
    hidden_kept: list
    gates_total: list
    gates_live: list

    @property
    def compression(self):
        """weights_total ÷ weights_kept (infinite when nothing is kept); biases and scales are not counted."""
        return self.weights_total / self.weights_kept if self.weights_kept else float("inf")


def _count(masks, weights, kept, live):
    def only(kind):
        sizes = [int(kept[axis.name].sum()) for axis in masks.of_kind(kind)]
        return sizes[0] if sizes else None

    return Count(
        weights_total=sum(w.numel() for w in masks.weights.values()),
        weights_kept=sum(int(w.sum()) for w in masks.stored(weights).values()),
        vocabulary_kept=only("vocabulary"),
        input_kept=only("input"),
        hidden_kept=[int(kept[axis.name].sum()) for axis in masks.of_kind("hidden")],
        gates_total=[axis.size for axis in masks.of_kind("gates")],
        gates_live=[int(live[axis.name].sum()) for axis in masks.of_kind("gates")],
    )


def standing(masks):
    """Matrix name → bool: weights that are kept, once each, of no removed word, neuron or gate; nothing more is followed."""
    weights = {name: w.clone() for name, w in masks.weights.items()}
    for axis in masks.axes:
        if axis.name in masks.groups and axis.kind != "gates":
            axis.drop(weights, ~masks.groups[axis.name], "in", "out")
    drop_gates(masks.axes, weights, {axis.name: masks.group(axis) for axis in masks.axes})
    return masks.stored(weights)


def paper_count(masks):
    """Count as the authors do (1812.05692 code, `compute_compression_masks`): one pass, every test on the raw masks.

    A word or neuron is kept if its group variable is and the sides named by `Axis.needs` have a kept weight; lines of
    removed ones are cleared, non-zeros counted; those of a tied tensor stay. A gate is live if its variable and neuron are
    kept and any raw weight enters it: one fed only by removed neurons still counts, and weights into a pruned gate are not
    cleared. A GRU, which they have not, has a live n where r is: r moves it without a weight.
    """
    weights, kept, live = {name: w.clone() for name, w in masks.weights.items()}, {}, {}
    for axis in masks.axes:
        keep = masks.group(axis).clone()
        if not (axis.variable_decides and axis.name in masks.groups):
            for side in axis.needs:
                keep &= axis.reduce(masks.weights, side)
        (live if axis.kind == "gates" else kept)[axis.name] = keep
    for axis in masks.axes:
        if axis.kind == "gates":
            continue
        axis.drop(weights, ~kept[axis.name], "in", "out")
        if axis.kind == "hidden":
            for gates in gates_of(masks.axes, axis):
                live[gates.name] = gates.and_moved(live[gates.name] & gates.of_gates(kept[axis.name]))
    return _count(masks, weights, kept, live)


def close(masks, read=None):
    """The fixed point: → Masks with a group for every axis (`gates` groups say which gates are *live*).

    read  axis name → bool [size]: neurons that somebody reads whom no member of the axis names
    A neuron stays if a way of kept weights leads from it to somebody outside the axes: neurons that only read each other
    go. An input or word that nothing writes is zero and goes; weights into a pruned gate, into or out of a removed neuron
    go; repeat. Lines of a tied tensor stay: another layer has a use for them. The masked model computes the same function
    before and after.
    """
    weights = {name: w.clone() for name, w in masks.weights.items()}
    groups = {axis.name: masks.group(axis).clone() for axis in masks.axes}
    neurons, size = [axis for axis in masks.axes if axis.kind != "gates"], None
    drop_gates(masks.axes, weights, groups)
    for axis in neurons:
        axis.drop(weights, ~groups[axis.name], "in")
    while size != (size := sum(int(w.sum()) for w in weights.values())):
        for name, keep in _needed(neurons, weights, read or {}).items():
            axis = next(axis for axis in neurons if axis.name == name)
            if axis.kind != "hidden" and axis.having("out"):  # a neuron that nothing enters may still be given a state
                keep &= axis.reduce(weights, "out")
            axis.drop(weights, ~keep, "in", "state", "out")
            groups[name] = keep
    for axis in masks.of_kind("hidden"):
        for gates in gates_of(masks.axes, axis):
            heard = gates.of_gates(groups[axis.name]) & gates.reduce(weights, "out")
            groups[gates.name] = gates.and_moved(groups[gates.name] & heard)
    return replace(masks, weights=weights, groups=groups)


def _needed(axes, weights, read):
    """axis name → bool [size]: neurons from which a way of weights leads outside, found from there backwards."""
    needed = {axis.name: read.get(axis.name, torch.zeros(axis.size, dtype=torch.bool)).clone() for axis in axes}
    written = [(axis, member) for axis in axes for member in axis.having("out")]
    reads = {(member.tensor, member.dim) for axis in axes for member in axis.having("in", "state")}
    written = [(a, m) for a, m in written if (m.tensor, m.dim) not in reads]  # tied: its lines have another reader too
    before = None
    while before != (before := sum(int(some.sum()) for some in needed.values())):
        useful = dict(weights)
        for axis, member in written:
            if useful[member.tensor] is weights[member.tensor]:
                useful[member.tensor] = weights[member.tensor].clone()
            member.clear(useful[member.tensor], ~needed[axis.name])
        for axis in axes:
            needed[axis.name] |= axis.reduce(useful, "in", "state")
    return needed


def closed_count(closed):
    """What a closed set of masks keeps: `weights_kept` is then the number of weights stored."""
    return _count(closed, closed.weights, closed.groups, closed.groups)


LIVE, CONSTANT, REMOVED = "live", "constant", "removed"


def gate_states(closed):
    """gates axis name → (letters, array of states [G, H]) from closed masks; live + constant + removed = all gates."""
    states, names = {}, (REMOVED, CONSTANT, LIVE)
    for axis in closed.of_kind("hidden"):
        for gates in gates_of(closed.axes, axis):
            live = closed.groups[gates.name].view(len(gates.letters), -1)
            state = torch.where(closed.groups[axis.name].expand_as(live), 1, 0) + live.long()
            states[gates.name] = gates.letters, [[names[s] for s in row] for row in state.tolist()]
    return states
