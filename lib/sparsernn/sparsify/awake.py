"""Neurons that are gone for good are left out of the products, so that the late epochs of a long schedule cost little."""

import torch

from ..masks import close


def awake(masks):
    """Input and hidden axes that `masks` thin out → bool [size], what is left by closure; an axis keeps at least one.

    A stack of several layers keeps its hidden neurons: their states are carried in one tensor.
    """
    closed, found = close(masks), {}
    hidden = closed.of_kind("hidden")
    for axis in closed.of_kind("input") + (hidden if len(hidden) == 1 else []):
        keep = closed.groups[axis.name]
        found[axis.name] = keep if keep.any() else torch.ones_like(keep)
    return found


def lines_left(axes, awake, shapes):
    """Parameter or scale → [(dimension, positions that stay)], for tensors that the sleeping neurons of `awake` stand in.

    shapes: of the parameters; a scale runs along its axis.
    """
    gone = {}
    for axis in axes:
        asleep = ~awake[axis.name] if axis.name in awake else None
        if asleep is None or not asleep.any():
            continue
        for member in axis.members:
            size = shapes[member.tensor][member.dim] if member.tensor in shapes else axis.size
            gone.setdefault((member.tensor, member.dim), torch.zeros(size, dtype=torch.bool))[
                member.positions[asleep].flatten()
            ] = True
        for gates in (other for other in axes if other.name == axis.gates and axis.kind == "hidden"):
            for member in gates.having("scale"):
                gone[member.tensor, member.dim] = asleep.repeat(len(gates.gates))
    left = {}
    for (tensor, dim), lines in gone.items():
        left.setdefault(tensor, []).append((dim, (~lines).nonzero().flatten()))
    return left


def cut(tensor, lines):
    """What stays of a tensor: `lines` [(dimension, positions)], None for all of it."""
    for dim, index in lines or ():
        tensor = tensor.index_select(dim, index)
    return tensor
