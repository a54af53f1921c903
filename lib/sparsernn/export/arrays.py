"""Numbers as constant arrays of C: a matrix lies dense, or as the runs of each row that are not zero where these are fewer.

A run is where it begins and how long it is, so that single weights and blocks (1711.02782) are both kept as they are. In
int8 every row that multiplies has a scale of its own: its largest weight is 127 (as in the runtimes of LPCNet and RNNoise).
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

BYTES = {"float": 4, "int8_t": 1, "uint16_t": 2, "int32_t": 4, "uint32_t": 4}
WIDTH = 110  # of a line
RUN = 8


@dataclass(frozen=True)
class Array:
    """One array: its C type, its name and its numbers, of any shape."""

    ctype: str
    name: str
    values: torch.Tensor

    @property
    def bytes(self):
        return BYTES[self.ctype] * self.values.numel()

    def text(self):
        """`static const float name[3] = {…};`"""
        lines, line = [], ""
        for word in self.literals():
            if len(line) + len(word) > WIDTH:
                lines.append(line)
                line = ""
            line += f" {word},"
        head = f"static const {self.ctype} {self.name}[{self.values.numel()}] = {{"
        return "\n   ".join([head, *lines, line]) + "\n};\n"

    def literals(self):
        """Its numbers as C has them: nine digits tell every float32 from the next."""
        if self.ctype != "float":
            return [str(number) for number in self.values.flatten().tolist()]
        texts = [f"{number:.9g}" for number in self.values.float().flatten().tolist()]
        return [text + ("f" if "." in text or "e" in text else ".0f") for text in texts]


@dataclass
class Matrix:
    """A matrix [R, C] float64 as arrays.

    int8      with a scale a row, or float32
    by_row    it is a table of which one row at a time is looked up: runs then say where each row begins, and a scale is of a
              column, for the table is the transposed of what would multiply one-hot ids
    dense     whether it lies dense, however many zeros there are
    """

    name: str
    weight: torch.Tensor
    int8: bool
    by_row: bool = False
    dense: bool = False
    arrays: list = field(init=False)
    sparse: bool = field(init=False)

    def __post_init__(self):
        values, scale = self.weight, []
        if self.int8:
            lines = self.weight.T if self.by_row else self.weight
            largest = lines.abs().amax(1) if lines.numel() else lines.new_zeros(len(lines))
            steps = lines / largest.clamp(min=torch.finfo(torch.float64).tiny)[:, None] * 127
            values, scale = steps.round().to(torch.int8), [Array("float", self.name + "_scale", largest / 127)]
            values = values.T if self.by_row else values
        kind = "int8_t" if self.int8 else "float"
        whole, runs = [Array(kind, self.name, values)], None if self.dense else self._runs(kind, values)
        self.sparse = runs is not None and _size(runs) < _size(whole) and (self.by_row or self._worth(values, runs))
        self.arrays = (runs if self.sparse else whole) + scale

    def _runs(self, kind, values):
        """The arrays, or None where a line is too long for 16 bits."""
        if values.shape[1] >= 1 << 16:
            return None
        kept = values != 0
        edges = F.pad(kept, (1, 1)).to(torch.int8).diff()
        row, first = (edges == 1).nonzero(as_tuple=True)
        length = (edges == -1).nonzero()[:, 1] - first
        counts = torch.bincount(row, minlength=len(values))
        pairs = torch.stack([first, length], 1)
        found = [Array(kind, self.name, values[kept])]
        if self.by_row:
            starts = torch.stack([F.pad(counts.cumsum(0), (1, 0)), F.pad(kept.sum(1).cumsum(0), (1, 0))], 1)
            return [
                *found,
                Array("uint16_t", self.name + "_runs", pairs),
                Array("uint32_t", self.name + "_rows", starts),
            ]
        rows = zip(counts, pairs.split(counts.tolist()), strict=True)
        listed = [part for count, run in rows for part in (count[None], run.flatten())]
        return [*found, Array("uint16_t", self.name + "_runs", torch.cat(listed) if listed else counts)]

    def _worth(self, values, runs):
        """Whether a product is worth its runs: one costs about as much as RUN weights, more where several weights are
        multiplied at once, less where one is."""
        return runs[0].values.numel() + RUN * (runs[1].values.numel() - len(values)) / 2 < values.numel()

    @property
    def bytes(self):
        return _size(self.arrays)

    @property
    def empty(self):
        """Whether a product with it adds nothing."""
        return not bool(self.weight.any())


def _size(arrays):
    return sum(array.bytes for array in arrays)
