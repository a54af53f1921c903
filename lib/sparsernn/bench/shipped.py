"""Sparse GRUs of programs that ship, as shapes: their sizes, blocks and densities are published, the weights are random."""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..files import nearest
from .cases import LayerCase, kept_mask

ONE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Shipped:
    """A GRU's layer: neurons, inputs, the blocks, and of each gate of W_ih and W_hh (r, z, n) the share that is kept.

    An input of 1 stands for one that is looked up or not sparse: then the recurrent product alone is timed.
    diagonal  whether that of each gate of W_hh is kept beside the blocks
    heads     of a W_hh that is no more than this many squares along its diagonal from the start; 1: a whole one
    """

    hidden: int
    inputs: int
    block: str
    of_input: tuple = ONE
    of_state: tuple = ONE
    diagonal: bool = False
    heads: int = 1


SHIPPED = {
    "LPCNet": Shipped(384, 1, "8x4", of_state=(0.05, 0.05, 0.2), diagonal=True),
    "RNNoise little": Shipped(256, 256, "8x4", (0.3, 0.2, 0.5), (0.3, 0.2, 0.5), diagonal=True),  # one of three
    "WaveRNN": Shipped(1024, 1, "4x4", of_state=(0.049,) * 3),
    "Lyra 1": Shipped(1024, 1024, "4x4", (0.085, 0.031, 0.124), heads=16),
}


@dataclass
class ShippedCase(LayerCase):
    """The layer of one of SHIPPED, named by `pattern`; hidden and density are its own."""

    hidden: int = field(init=False)
    density: float = field(init=False)
    batch: int
    pattern: str
    steps: int
    kind: str = field(default="gru", init=False)

    def __post_init__(self):
        if self.pattern not in SHIPPED:
            raise ValueError(nearest("system", self.pattern, SHIPPED))
        self.hidden = SHIPPED[self.pattern].hidden
        of_input, of_state = self.masks
        self.density = round(float(of_input.sum() + of_state.sum()) / (of_input.numel() + of_state.numel()), 4)

    @property
    def inputs(self):
        return SHIPPED[self.pattern].inputs

    @cached_property
    def masks(self):
        shipped, generator = SHIPPED[self.pattern], torch.Generator().manual_seed(0)
        size, found = shipped.hidden, []
        for shares, width in ((shipped.of_input, shipped.inputs), (shipped.of_state, size)):
            gates = [kept_mask((size, width), share, shipped.block, generator) for share in shares]
            found.append(torch.stack(gates))
        if shipped.diagonal:
            found[1] |= torch.eye(size, dtype=torch.bool)
        if shipped.heads > 1:
            side = size // shipped.heads
            found[1] &= torch.block_diag(*[torch.ones(side, side)] * shipped.heads).bool()
        return [mask.flatten(0, 1) for mask in found]

    def cut(self, generator):
        return torch.ones(self.hidden, dtype=torch.bool), torch.ones(self.inputs, dtype=torch.bool), *self.masks
