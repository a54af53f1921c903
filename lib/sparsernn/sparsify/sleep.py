"""Words and neurons that are gone for good are cut out of the training, so that the late epochs of a long schedule cost
what the small network costs."""

from contextlib import contextmanager

import torch

from ..nets.masks import close


def awake(masks):
    """Vocabulary, input and hidden axes → bool [size], what is left of `masks` by closure; an axis keeps at least one.

    A stack of several layers keeps its hidden neurons: their states are carried in one tensor.
    """
    closed, found = close(masks), {}
    hidden = closed.of_kind("hidden")
    for axis in closed.of_kind("vocabulary") + closed.of_kind("input") + (hidden if len(hidden) == 1 else []):
        keep = closed.groups[axis.name]
        found[axis.name] = keep if keep.any() else torch.ones_like(keep)
    return found


def lines_left(axes, awake, shapes):
    """Parameter, scale or axis → [(dimension, positions that stay)], for those in which something of `awake` sleeps.

    shapes: of the parameters; a scale runs along its axis.
    """
    gone = {}
    for axis in axes:
        asleep = ~awake[axis.name] if axis.name in awake else None
        if asleep is None or not asleep.any():
            continue
        gone[axis.name, 0] = asleep
        for member in axis.members:
            size = shapes[member.tensor][member.dim] if member.tensor in shapes else axis.size
            gone.setdefault((member.tensor, member.dim), torch.zeros(size, dtype=torch.bool))[
                member.positions[asleep].flatten()
            ] = True
        for gates in (other for other in axes if other.name == axis.gates and axis.kind == "hidden"):
            gone[gates.name, 0] = asleep.repeat(len(gates.gates))
            for member in gates.having("scale"):
                gone[member.tensor, member.dim] = gone[gates.name, 0]
    left = {}
    for (tensor, dim), lines in gone.items():
        left.setdefault(tensor, []).append((dim, (~lines).nonzero().flatten()))
    return left


def cut(tensor, lines):
    """What stays of a tensor: `lines` [(dimension, positions)], None for all of it."""
    for dim, index in lines or ():
        tensor = tensor.index_select(dim, index)
    return tensor


def put_back(tensor, part, lines):
    """The inverse of `cut`, in place: `part` where `lines` cut it out of `tensor`."""
    where = [torch.arange(size, device=tensor.device) for size in tensor.shape]
    for dim, index in lines:
        where[dim] = index
    tensor[torch.meshgrid(*where, indexing="ij")] = part


@contextmanager
def narrowed(lines, optimizer):
    """Parameters, and what the optimiser keeps of each, cut to `lines` (parameter → [(dimension, positions)]) inside; what
    became of them is put back where it was outside, beside what slept."""
    whole = []
    for parameter, left in lines.items():
        state = optimizer.state.get(parameter, {})
        whole.append((parameter, left, parameter.data, dict(state)))
        state |= {name: cut(value, left) for name, value in state.items() if value.shape == parameter.shape}
        parameter.data, parameter.grad = cut(parameter.data, left), None
    try:
        yield
    finally:
        for parameter, left, data, before in whole:
            put_back(data, parameter.data, left)
            parameter.data, parameter.grad = data, None
            for name, value in optimizer.state.get(parameter, {}).items():
                if value.dim():
                    full = before.get(name, torch.zeros_like(data))  # absent: Adam's moments begin at zero
                    put_back(full, value, left)
                    optimizer.state[parameter][name] = full
