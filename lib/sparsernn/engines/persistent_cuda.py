"""The persistent layer once more, in CUDA, for what Triton cannot say: h in shared memory, and no barrier.

Sparse W_hh stays on chip for all time steps (the idea of 1804.10223): 6 B a weight, fp32 with a column of 16 bits, in
registers and what does not fit them in shared memory. Each step's h is gathered from shared memory, in an order that
avoids conflicts of its banks (`dealing.py`); blocks wait for each other's numbers, not at a barrier
(`persistent_cuda.cu`). It runs on a GPU alone; tests run the same source on a CPU, thread by thread.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from .base import KINDS, Tabled, Unsupported
from .cuda_source import Kernel
from .dealing import deal
from .timing import on_chip_ms

SOURCE = Path(__file__).with_name("persistent_cuda.cu")
BATCHES = (1, 2, 4, 8, 16)  # others are filled up; more sequences leave too little room on chip
SPAN = 1 << 16  # bytes of h, or of a plane of four sequences, that an offset of 16 bits reaches
AT_ONCE = 5  # pieces of h, of four registers, that a thread copies at once
# For how many clocks nobody asks for others' numbers (persistent_cuda.cu): of those tried on an H100 the best at 1 and 4
# sequences together (results/layout-nvidia-h100-80gb-hbm3.csv; so is the order of SHAPES, and FEW).
DELAY = 600


@dataclass(frozen=True)
class Chip:
    """What a layout has to know of a GPU: multiprocessors, and bytes of shared memory a block may have."""

    processors: int
    shared: int

    @classmethod
    def of(cls, device):
        found = torch.cuda.get_device_properties(device)
        return cls(found.multi_processor_count, found.shared_memory_per_block_optin)


@dataclass(frozen=True)
class Shape:
    """How a block uses its multiprocessor.

    threads    of the block
    parts      lanes that each thread is
    registers  that a thread may have
    working    of them, what it needs for up to four sequences besides the weights it holds and the h it copies; with fewer the
               kernel spills
    """

    threads: int
    parts: int
    registers: int
    working: int

    def held(self, slots, words, batch, per_block):
        """How many of a thread's slots stay in registers: an even number, a register and a half each."""
        copied = 4 * min(AT_ONCE, ceil(words / (4 * self.threads)))
        more = 0
        if batch > 4:  # a sum a sequence, and what a thread knows of each gate that it advances
            more = self.parts * batch + 12 * (ceil(4 * per_block * batch / self.threads) - 1)
        return max(2, min(self.parts * slots, (self.registers - self.working - copied - more) // 3 * 2))


# Of those that fit, the one with the fewest gathers; of those, with few sums to write a step; of those, the first.
SHAPES = (Shape(256, 2, 255, 60), Shape(256, 1, 255, 60), Shape(512, 1, 128, 64), Shape(256, 4, 255, 60))
FEW = 512


@dataclass(frozen=True)
class Laid:
    """A layer's weights laid out for a number of sequences.

    constants  of the kernel (persistent_cuda.cu lists them)
    blocks, threads, shared   of its launch; shared in bytes a block
    left       slots of a thread that are in shared memory
    tensors    values, offsets, spans, places, fixed, as the kernel takes them
    """

    constants: dict
    blocks: int
    threads: int
    shared: int
    left: int
    tensors: tuple

    def to(self, device):
        return replace(self, tensors=tuple(tensor.to(device) for tensor in self.tensors))


def filled_up(batch):
    """The number of sequences that so many are run as. Raises Unsupported for more than there is."""
    if batch > BATCHES[-1]:
        raise Unsupported(f"{batch} sequences at once; this kernel runs up to {BATCHES[-1]}")
    return next(size for size in BATCHES if size >= batch)


def lay_out(layer, batch, chip, shapes=SHAPES):
    """→ `Laid`, on the CPU. Raises Unsupported if the weights do not fit the chip."""
    number, hidden = layer.where.shape
    per_block = max(ceil(hidden / chip.processors), min(4, hidden))
    blocks = ceil(hidden / per_block)
    neurons = blocks * per_block
    words, more = neurons * batch, neurons - hidden
    together = min(batch, 4)  # that one gather fetches
    if 4 * neurons * together > SPAN:
        raise Unsupported(f"{batch} sequences of {hidden} neurons; offsets into their h are 16 bits")
    rows = torch.zeros(4, neurons, hidden)
    rows[:number, :hidden][layer.where] = layer.weight_hh.float()
    rows = rows.transpose(0, 1).reshape(-1, hidden).numpy()  # a neuron's gates side by side
    plans, why = [], ""
    for shape in shapes:
        try:
            dealt = deal(rows, blocks, shape.threads * shape.parts, together)
        except ValueError as problem:
            why = f"{hidden} neurons on {blocks} multiprocessors: {problem}"
            continue
        slots = dealt.values.shape[1]
        held = shape.held(slots, words, batch, per_block)
        left = shape.parts * slots - held
        shared = 16 * ceil(words / 4) + shape.threads * (4 * shape.parts * batch + 6 * left)
        if shared <= chip.shared:
            reads = shape.threads * (shape.parts * slots + 1.5 * left)  # of shared memory: gathers, and weights
            sums = max(FEW, shape.threads * shape.parts * batch)
            plans.append(((reads, sums), shape, dealt, held, left, shared))
    if not plans:
        raise Unsupported(why or f"{np.count_nonzero(rows)} weights do not fit {chip.processors} multiprocessors")
    _, shape, dealt, held, left, shared = min(plans, key=lambda plan: plan[0])
    at = 4 * together * dealt.columns
    offsets = (at[:, ::2] | at[:, 1::2] << 16).astype(np.int32)
    spans = dealt.lanes[..., 0] | dealt.lanes[..., 1] << 16
    places = F.pad(layer.row_of, (0, more, 0, 4 - number), value=-1)
    fixed = F.pad(layer.fixed, (0, more, 0, 4 - number), value=torch.nan).float()
    constants = {"THREADS": shape.threads, "PARTS": shape.parts, "SLOTS": dealt.values.shape[1], "HELD": held}
    constants |= {"MOST": int(np.diff(dealt.lanes).max())}
    constants |= {"NEURONS": per_block, "BATCH": batch, "WORDS": words, "AT_ONCE": AT_ONCE}
    constants |= {"DELAY": DELAY}
    constants |= {"KIND": KINDS[layer.kind], "HARD": int(layer.cell.activation in ("hard", "relu"))}
    tensors = *map(torch.from_numpy, (dealt.values, offsets, spans)), places.contiguous(), fixed.contiguous()
    return Laid(constants, blocks, shape.threads, shared, left, tensors)


class PersistentCuda(Tabled):
    """Sparse W_hh, fp32."""

    devices = ("cuda",)

    def __init__(self, layer, device="cuda"):
        super().__init__(layer, device)
        self.laid, self.kernels = {}, {}

    def chip(self):
        return Chip.of(self.device)

    def kernel(self, **constants):
        return Kernel(SOURCE, "whole_sequence", self.device, **constants)

    def laid_for(self, batch):
        if batch not in self.laid:
            self.laid[batch] = lay_out(self.layer, batch, self.chip()).to(self.device)
        return self.laid[batch]

    def run(self, x, live, empty=False):
        table, rows = self.table_and_rows(x, live)
        steps, batch = rows.shape[0], filled_up(x.shape[1])
        rows = F.pad(rows, (0, batch - rows.shape[1]), value=-1)  # sequences that are padding from end to end
        laid = self.laid_for(batch)
        if (batch, empty) not in self.kernels:
            self.kernels[batch, empty] = self.kernel(**laid.constants, PRODUCTS=int(not empty))
        stride = 32 * ceil(laid.constants["WORDS"] / 32)
        exchange = torch.full((steps + 1, stride), -1, dtype=torch.int32, device=self.device)  # EMPTY
        sizes = steps, table.shape[1], stride
        self.kernels[batch, empty](laid.blocks, laid.threads, laid.shared, table, rows, *laid.tensors, exchange, *sizes)
        h = exchange.view(torch.float32)[1:, : self.layer.hidden * batch]
        y = h.view(steps, -1, batch)[:, :, : x.shape[1]].transpose(1, 2)
        return y.contiguous() if live is None else y.masked_fill(~live.unsqueeze(2), 0)

    def on_chip_ms(self, x):
        batch, weights = filled_up(x.shape[1]), int((self.layer.weight_hh != 0).sum())
        laid, products = self.laid_for(batch), weights * batch
        return on_chip_ms(self.device, x.shape[0], products, products, 6 * laid.left * laid.threads * laid.blocks)
