"""Words and neurons that are pruned during training are cut out of it, so that the late epochs of a long schedule cost what
the small network costs."""

from contextlib import contextmanager

import torch

from ..nets.axes import gates_of
from ..nets.masks import close


def kept_axes(masks):
    """Vocabulary, input and hidden axes → bool [size], what is left of `masks` by closure; an axis keeps at least one.

    Inputs that no layer of the model writes stay: it is given as many as before. A stack of several layers keeps its hidden
    neurons: their states are carried in one tensor. So does an axis with a tied tensor, whose lines another layer, or a
    norm's statistics, have a use for.
    """
    closed, found = close(masks), {}
    hidden = closed.of_kind("hidden")
    inputs = [axis for axis in closed.of_kind("input") if axis.having("out")]
    axes = closed.of_kind("vocabulary") + inputs + (hidden if len(hidden) == 1 else [])
    for axis in (axis for axis in axes if not any(member.tied for member in axis.members)):
        keep = closed.groups[axis.name]
        found[axis.name] = keep if keep.any() else torch.ones_like(keep)
    return found


def lines_left(axes, kept, shapes):
    """Parameter, scale or axis → [(dimension, positions that stay)], for those of which `kept` leaves something out.

    shapes: of the parameters; a scale runs along its axis.
    """
    left = {}

    def leave(tensor, dim, keep):
        left[tensor, dim] = left.get((tensor, dim), True) & keep

    for axis in axes:
        if axis.name not in kept or kept[axis.name].all():
            continue
        keep = kept[axis.name]
        leave(axis.name, 0, keep)
        for member in axis.members:
            size = shapes[member.tensor][member.dim] if member.tensor in shapes else axis.size
            leave(member.tensor, member.dim, member.along(keep, size, rest=True))
        for gates in gates_of(axes, axis):
            leave(gates.name, 0, gates.of_gates(keep))
            for member in gates.having("scale"):
                leave(member.tensor, member.dim, gates.of_gates(keep))
    lines = {}
    for (tensor, dim), keep in left.items():
        lines.setdefault(tensor, []).append((dim, keep.nonzero().flatten()))
    return lines


def take_lines(tensor, lines):
    """What stays of a tensor: `lines` [(dimension, positions)], None for all of it."""
    for dim, index in lines or ():
        tensor = tensor.index_select(dim, index)
    return tensor


def put_back(tensor, part, lines):
    """The inverse of `take_lines`, in place: `part` where `lines` cut it out of `tensor`."""
    where = [torch.arange(size, device=tensor.device) for size in tensor.shape]
    for dim, index in lines:
        where[dim] = index
    tensor[torch.meshgrid(*where, indexing="ij")] = part


@contextmanager
def narrowed(lines, optimizer):
    """Parameters, and what the optimiser keeps of each, cut to `lines` (parameter → [(dimension, positions)]) inside; what
    became of them is put back where it was outside, beside what was cut out."""
    whole = []
    for parameter, left in lines.items():
        state = optimizer.state.get(parameter, {})
        whole.append((parameter, left, parameter.data, dict(state)))
        state |= {name: take_lines(value, left) for name, value in state.items() if value.shape == parameter.shape}
        parameter.data, parameter.grad = take_lines(parameter.data, left), None
    try:
        yield
    finally:
        for parameter, left, data, before in whole:
            put_back(data, parameter.data, left)
            parameter.data, parameter.grad = data, None
            for name, value in optimizer.state.get(parameter, {}).items():
                if value.dim():
                    full = before.get(name, torch.zeros_like(data))  # absent: moments begin at zero
                    put_back(full, value, left)
                    optimizer.state[parameter][name] = full
