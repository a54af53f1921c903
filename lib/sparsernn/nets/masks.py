"""What is kept: masks (True = kept, always on the CPU), the authors' way of counting them, and their closure.

Two functions, two names. `paper_count` is the single pass the authors publish their compression with; `close` is the
fixed point that a really smaller model can use. They differ, and both are reported.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Masks:
    """axes: the model's; weights: matrix name → bool, its shape; groups: axis name → bool [size], where it has a mask."""

    axes: tuple
    weights: dict
    groups: dict

    @classmethod
    def all_kept(cls, model):
        weights = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in weight_matrices(model).items()}
        return cls(tuple(model.axes()), weights, {})

    def group(self, axis):
        mask = self.groups.get(axis.name)
        return torch.ones(axis.size, dtype=torch.bool) if mask is None else mask

    def of_kind(self, kind):
        return [axis for axis in self.axes if axis.kind == kind]


def weight_matrices(model):
    """The prunable tensors: every matrix, no bias. Name → parameter."""
    return {name: p for name, p in model.named_parameters() if p.dim() == 2}


def effective(model, masks, means=None):
    """Weights and scales that run `model` under `masks`: θ or 0, μ or 0 (the papers' single-pass evaluation).

    Gradients pass. means: axis name → mean of its group variable (1 where absent). → ({weight name: tensor}, {scale: [1, size]}).
    """
    means = means or {}
    weights = {name: w * masks.weights[name].to(w.device) for name, w in weight_matrices(model).items()}
    like, scales = next(iter(weights.values())), {}
    for axis in masks.axes:
        if axis.name in masks.groups or axis.name in means:
            value = means.get(axis.name, torch.ones(axis.size)).to(like) * masks.group(axis).to(like.device)
            scales |= {member.tensor: value[None] for member in axis.having("scale")}
    return weights, scales


def _touched(weights, axis, role):
    """bool [size]: whether any kept weight touches the neuron from that side."""
    touched = torch.zeros(axis.size, dtype=torch.bool)
    for member in axis.having(role):
        lines = weights[member.tensor].movedim(member.dim, 0)[member.positions]  # [size, k, …]
        touched |= lines.flatten(1).any(1)
    return touched


def _drop(weights, axis, removed):
    """Clear, in place, every weight into and out of the removed neurons."""
    for member in axis.having("in", "out"):
        weights[member.tensor].movedim(member.dim, 0)[member.positions[removed].flatten()] = False


def _neuron_of_gate(axis, neurons):
    """bool [H] → [G·H], gate-major."""
    return neurons.repeat(len(axis.gates))


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
        weights_kept=sum(int(w.sum()) for w in weights.values()),
        vocabulary_kept=only("vocabulary"),
        input_kept=only("input"),
        hidden_kept=[int(kept[axis.name].sum()) for axis in masks.of_kind("hidden")],
        gates_total=[axis.size for axis in masks.of_kind("gates")],
        gates_live=[int(live[axis.name].sum()) for axis in masks.of_kind("gates")],
    )


def paper_count(masks):
    """Count as the authors do (1812.05692 code, `compute_compression_masks`): one pass, every test on the raw masks.

    A word or neuron is kept if its group variable is and the sides named by `Axis.needs` have a kept weight; lines of
    removed ones are cleared, non-zeros counted. A gate is live if its variable and neuron are kept and any raw weight
    enters it: one fed only by removed neurons still counts, and weights into a pruned gate are not cleared.
    """
    weights, kept, live = {name: w.clone() for name, w in masks.weights.items()}, {}, {}
    for axis in masks.axes:
        keep = masks.group(axis).clone()
        if not (axis.variable_decides and axis.name in masks.groups):
            for side in axis.needs:
                keep &= _touched(masks.weights, axis, side)
        (live if axis.kind == "gates" else kept)[axis.name] = keep
    for axis in masks.axes:
        if axis.kind == "gates":
            continue
        _drop(weights, axis, ~kept[axis.name])
        if axis.kind == "hidden":
            gates = next(a for a in masks.axes if a.name == axis.gates)
            live[gates.name] &= _neuron_of_gate(gates, kept[axis.name])
    return _count(masks, weights, kept, live)


def close(masks):
    """The fixed point: → Masks with a group for every axis (`gates` groups say which gates are *live*).

    A neuron nobody reads goes; an input or word that nothing writes is zero and goes; weights into a pruned gate, into
    or out of a removed neuron go; repeat. The masked model computes the same function before and after.
    """
    weights = {name: w.clone() for name, w in masks.weights.items()}
    groups = {axis.name: masks.group(axis).clone() for axis in masks.axes}
    for axis in masks.of_kind("gates"):
        _drop(weights, axis, ~groups[axis.name])
    size = None
    while size != (size := sum(int(w.sum()) for w in weights.values())):
        for axis in masks.axes:
            if axis.kind == "gates":
                continue
            keep = groups[axis.name]
            keep &= _touched(weights, axis, "in")
            if axis.having("out") and not axis.having("bias"):
                keep &= _touched(weights, axis, "out")
            _drop(weights, axis, ~keep)
    for axis in masks.of_kind("hidden"):
        gates = next(a for a in masks.axes if a.name == axis.gates)
        groups[gates.name] &= _neuron_of_gate(gates, groups[axis.name]) & _touched(weights, gates, "out")
    return Masks(masks.axes, weights, groups)


def closed_count(closed):
    """What a closed set of masks keeps: `weights_kept` is then the number of weights stored."""
    return _count(closed, closed.weights, closed.groups, closed.groups)


LIVE, CONSTANT, REMOVED = "live", "constant", "removed"


def gate_states(closed):
    """hidden axis name → (letters, array of states [G, H]) from closed masks; live + constant + removed = all gates."""
    states = {}
    for axis in closed.of_kind("hidden"):
        gates = next(a for a in closed.axes if a.name == axis.gates)
        live = closed.groups[gates.name].view(len(gates.gates), -1)
        state = torch.where(closed.groups[axis.name].expand_as(live), 1, 0) + live.long()
        names = (REMOVED, CONSTANT, LIVE)
        states[axis.name] = gates.gates, [[names[s] for s in row] for row in state.tolist()]
    return states
