"""Who reads whom: a neuron is one thing, wherever it appears.

A model declares its axes once. Counting, closure, compaction and group variables walk over axes; nobody else needs to
know that unit k of an LSTM is four rows of two matrices, a column of W_hh and a column of whatever reads it.
"""

from dataclasses import dataclass, field

import torch

KINDS = ("vocabulary", "input", "hidden", "gates")


@dataclass(frozen=True)
class Member:
    """One place where an axis appears.

    tensor     name of a parameter, or of a scale as `layer.scale` (`lstm.recurrent_l0`)
    dim        the dimension that runs over the axis
    positions  int64 [size, k]: where each neuron stands along `dim` (k rows or columns a neuron)
    role       "in": the tensor reads the neuron · "out": the tensor writes it · "bias" · "scale"
    """

    tensor: str
    dim: int
    positions: torch.Tensor
    role: str


@dataclass(frozen=True)
class Axis:
    """All appearances of one kind of neuron.

    name             unique in the model: `vocabulary`, `input`, `hidden_l0`, `gates_l0`, …
    kind             one of KINDS; a `gates` axis runs over G·H gates in torch's order (gate-major)
    needs            the sides on which the authors' count asks for a kept weight (papers' rule, `masks.paper_count`)
    variable_decides True: where there is a group variable, it alone decides in that count
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    needs: tuple[str, ...] = ("in",)
    variable_decides: bool = False
    gates: str = field(default="")  # `gates` axes: a letter per gate type, in order; `hidden` axes: the name of theirs

    def having(self, *roles):
        return [member for member in self.members if member.role in roles]


def each(size):
    """Neuron j stands at position j."""
    return torch.arange(size)[:, None]


def recurrent_axes(name, layer, readers, prefix="", bias=True):
    """The hidden and gate axes of a `Recurrent` stack called `name` whose output the tensors `readers` read (dim 1).

    prefix: of the axes' names, where a model has several stacks. bias: whether the layer has biases.
    """
    axes, suffixes = [], layer.suffixes()
    size, letters = layer.hidden_size, layer.cell.gates
    rows = torch.arange(len(letters)) * size + each(size)  # [H, G]: neuron j is row g·H + j of every gate g
    all_rows = each(len(letters) * size)
    for suffix in suffixes:
        level = int(suffix.split("_")[1][1:])
        above = [f"{name}.weight_ih{s}" for s in suffixes if s.startswith(f"_l{level + 1}")] or readers
        columns = each(size) + (size if suffix.endswith("_reverse") else 0)
        weights, biases = (
            [f"{name}.weight_{k}{suffix}" for k in ("ih", "hh")],
            [f"{name}.bias_{k}{suffix}" for k in ("ih", "hh") if bias],
        )
        hidden = [Member(w, 0, rows, "out") for w in weights] + [Member(b, 0, rows, "bias") for b in biases]
        hidden += [Member(weights[1], 1, each(size), "in"), *(Member(reader, 1, columns, "in") for reader in above)]
        hidden += [Member(f"{name}.{scale}{suffix}", 1, each(size), "scale") for scale in ("recurrent", "output")]
        gates = [Member(w, 0, all_rows, "out") for w in weights] + [Member(b, 0, all_rows, "bias") for b in biases]
        gates += [Member(f"{name}.gates{suffix}", 1, all_rows, "scale")]
        axes.append(Axis(f"{prefix}hidden{suffix}", "hidden", size, tuple(hidden), gates=f"{prefix}gates{suffix}"))
        extra = {"needs": ("out",), "gates": letters}
        axes.append(Axis(f"{prefix}gates{suffix}", "gates", len(letters) * size, tuple(gates), **extra))
    return axes
