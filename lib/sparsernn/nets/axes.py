"""Who reads whom: a neuron is one thing, wherever it appears.

A model declares its axes once, or they are found (`nets.found`). Counting, closure, compaction and group variables walk
over axes; nobody else needs to know that unit k of an LSTM is four rows of two matrices, a column of W_hh and a column of
whatever reads it.
"""

from dataclasses import dataclass

import torch

KINDS = ("vocabulary", "input", "hidden", "gates")


@dataclass(frozen=True)
class Member:
    """One place where an axis appears.

    tensor     name of a parameter, or of a scale as `layer.scale` (`lstm.recurrent_l0`)
    dim        the dimension that runs over the axis
    positions  int64 [size, k]: where each neuron stands along `dim` (k rows or columns a neuron; −1: it has fewer)
    role       "in": the tensor reads the neuron · "state": it reads its final state, which no scale touches · "out": the
               tensor writes it · "bias" · "scale"
    tied       the tensor is another layer's too, which has a use for its lines: they stay where the neuron goes
    degree     how often the neuron is a factor of what stands there: twice in a product of two numbers it is both in, so
               that its scale counts twice
    """

    tensor: str
    dim: int
    positions: torch.Tensor
    role: str
    tied: bool = False
    degree: int = 1

    def along(self, values, length, rest=0):
        """Values [size] of neurons → [length] of the lines of the tensor; lines of no neuron get `rest`."""
        spread, there = values.new_full((length,), rest), self.positions >= 0
        spread[self.positions[there]] = values[:, None].expand(self.positions.shape)[there]
        return spread

    def read(self, lines):
        """bool per line of the tensor → bool [size]: whether any line of a neuron is True."""
        return (lines[self.positions.clamp(min=0)] & (self.positions >= 0)).any(1)

    def clear(self, tensor, removed):
        """Set, in place, the lines of the removed neurons (bool [size]) to zero."""
        lines = self.positions[removed]
        tensor.movedim(self.dim, 0)[lines[lines >= 0]] = 0

    def neuron_of(self, length):
        """int64 [length]: the neuron each line of the tensor belongs to, −1 where it is none of the axis."""
        return self.along(torch.arange(len(self.positions)), length, rest=-1)


@dataclass(frozen=True)
class Axis:
    """All appearances of one kind of neuron. A tensor may be a member twice (tied), at either dimension.

    name             unique in the model: `vocabulary`, `input`, `hidden_l0`, `gates_l0`, …
    kind             one of KINDS; a `gates` axis runs over G·H gates in torch's order (gate-major)
    needs            the sides on which the authors' count asks for a kept weight (papers' rule, `masks.paper_count`)
    variable_decides True: where there is a group variable, it alone decides in that count
    letters, hidden  `gates` axes: a letter per gate type, in order, and the name of the axis of their neurons, which
                     several may share (directions that are summed)
    moved_by         `gates` axes: (letter, that of another gate that moves it without any weight), see `cells.Cell`
    apart            what stands between those who write it and those who read it (a convolution over time) needs its
                     width: neurons that go leave zeros behind
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    needs: tuple[str, ...] = ("in",)
    variable_decides: bool = False
    letters: str = ""
    hidden: str = ""
    moved_by: tuple[tuple[str, str], ...] = ()
    apart: bool = False

    def having(self, *roles):
        return [member for member in self.members if member.role in roles]

    def reduce(self, tensors, *roles):
        """bool [size]: whether any entry of the lines of a neuron is not zero, in the tensors of these roles."""
        found = torch.zeros(self.size, dtype=torch.bool)
        for member in self.having(*roles):
            found |= member.read(tensors[member.tensor].movedim(member.dim, 0).flatten(1).any(1))
        return found

    def drop(self, tensors, removed, *roles):
        """Clear, in place, the lines of the removed neurons (bool [size]) in the tensors of these roles that are not tied."""
        for member in self.having(*roles):
            if not member.tied:
                member.clear(tensors[member.tensor], removed)

    def multiply(self, tensors, values, members):
        """Multiply, into new tensors, the lines of each neuron by its value [size], in these of its members."""
        for member in members:
            tensor = tensors[member.tensor]
            factor = member.along(values.to(tensor) ** member.degree, tensor.shape[member.dim], rest=1)
            tensors[member.tensor] = tensor * factor.view([-1 if d == member.dim else 1 for d in range(tensor.dim())])

    def of_gates(self, neurons):
        """A `gates` axis: values [H] of neurons → [G·H] of their gates, gate-major."""
        return neurons.repeat(len(self.letters))

    def and_moved(self, live):
        """A `gates` axis: live gates, bool [G·H], and those that a live one moves."""
        found = live.view(len(self.letters), -1).clone()
        for moved, mover in self.moved_by:
            found[self.letters.index(moved)] |= found[self.letters.index(mover)]
        return found.flatten()


def drop_gates(axes, weights, kept):
    """Clear, in place, the rows of gates that are not in `kept` (axis name → bool [size]); one that the gates of several
    directions have in common where none of them is kept."""
    common = {}
    for axis in (axis for axis in axes if axis.kind == "gates"):
        axis.drop(weights, ~kept[axis.name], "out")
        for member in (member for member in axis.having("out") if member.tied):
            left, _ = common.get(member.tensor, (kept[axis.name], member))
            common[member.tensor] = left | kept[axis.name], member
    for tensor, (left, member) in common.items():
        member.clear(weights[tensor], ~left)


def gates_of(axes, hidden):
    """The `gates` axes of a hidden axis, one a direction."""
    return [axis for axis in axes if axis.kind == "gates" and axis.hidden == hidden.name]


def each(size):
    """Neuron j stands at position j."""
    return torch.arange(size)[:, None]


def input_axis(name, layer, size, writers=(), needs=("in",), axis="input"):
    """The axis of the numbers that a recurrent stack called `name` reads. writers: `Member`s of what makes them."""
    ends = layer.ends()[: 1 if layer.shared_input else None]
    members = [Member(f"{name}.weight_ih_l0{end}", 1, each(size), "in") for end in ends]
    members += [Member(f"{name}.input_l0{end}", 1, each(size), "scale") for end in ends]
    return Axis(axis, "input", size, (*writers, *members), needs)


def recurrent_axes(name, layer, readers, prefix="", tied=False, apart=False):
    """The hidden and gate axes of a recurrent stack called `name` whose output the tensors `readers` read (dim 1).

    prefix: of the axes' names, where a model has several stacks. tied: the readers are other layers' tensors too. apart:
    see `Axis`. Directions that are summed have one hidden axis.
    """
    found, size, letters, shared = [], layer.hidden_size, layer.cell.gates, layer.shared_input
    rows = torch.arange(len(letters)) * size + each(size)  # [H, G]: neuron j is row g·H + j of every gate g
    all_rows = each(len(letters) * size)
    for level in range(layer.num_layers):
        last = level + 1 == layer.num_layers
        above = [] if last else [f"{name}.weight_ih_l{level + 1}{end}" for end in layer.ends()[: 1 if shared else None]]
        for place, first in enumerate(layer.abreast()):
            hidden, gates, scales, columns = [], [], [], each(size) + place * size
            for suffix in [f"_l{level}{end}" for end in (layer.ends() if layer.summed else (first,))]:
                common = shared and suffix.endswith("_reverse")  # its input matrix is the other direction's
                inward = f"{name}.weight_ih{suffix.removesuffix('_reverse') if common else suffix}"
                recurrent = f"{name}.weight_hh{suffix}"
                biases = [f"{name}.bias_{k}{suffix}" for k in ("ih", "hh") if layer.bias]
                norms = [f"{name}.norm{suffix}.{own}" for own in ("weight", "bias")]
                hidden += [Member(w, 0, rows, "out") for w in ((recurrent,) if common else (inward, recurrent))]
                hidden += [Member(b, 0, rows, "bias") for b in biases] + [Member(recurrent, 1, each(size), "in")]
                hidden += [Member(n, 0, rows, "bias", True) for n in norms if layer.norm(suffix) and not common]
                scales += [Member(f"{name}.{k}{suffix}", 1, each(size), "scale") for k in ("recurrent", "output")]
                own = [Member(inward, 0, all_rows, "out", shared), Member(recurrent, 0, all_rows, "out")]
                own += [Member(b, 0, all_rows, "bias") for b in biases]
                own += [Member(f"{name}.gates{suffix}", 1, all_rows, "scale")]
                extra = {"letters": letters, "hidden": f"{prefix}hidden_l{level}{first}"}
                extra |= {"needs": ("out",), "moved_by": layer.cell.moved_by}
                gates.append(Axis(f"{prefix}gates{suffix}", "gates", len(all_rows), tuple(own), **extra))
            hidden += [Member(reader, 1, columns, "in") for reader in above]
            hidden += [Member(reader, 1, columns, "in", tied) for reader in readers if last] + scales
            found.append(Axis(f"{prefix}hidden_l{level}{first}", "hidden", size, tuple(hidden), apart=apart and last))
            found += gates
    return found
