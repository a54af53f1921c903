"""A tiny compact layer in one launch: a program a sequence, weights in registers, all time steps in the kernel.

What the input adds is gathered from a table two steps ahead. A block without a live gate has no product and no load; a
constant gate is a constant. Source: the idea of persistent RNNs, at the other end of the scale.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .base import KINDS, Tabled, Unsupported
from .triton_cells import advance

LARGEST = 1 << 14  # weights of a program: 128 registers a thread of four warps


@triton.jit
def times(weight, h):
    """Transposed weights [columns, rows] · h [columns] → [rows]."""
    return tl.sum(weight * h[:, None], 0)


@triton.jit
def load_block(weight, BLOCK: tl.constexpr, MULTIPLIES: tl.constexpr, HP: tl.constexpr):
    j = tl.arange(0, HP)
    if (MULTIPLIES >> BLOCK) & 1:
        return tl.load(weight + BLOCK * HP * HP + j[:, None] * HP + j[None, :])
    else:
        return tl.zeros([HP, HP], tl.float32)


@triton.jit
def read(table, row, place, READS: tl.constexpr, BLOCK: tl.constexpr, HP: tl.constexpr):
    """Of the table's row the entries of one block, 0 where it has none."""
    if (READS >> BLOCK) & 1:
        return tl.load(table + row + place, mask=place >= 0, other=0.0)
    else:
        return tl.zeros([HP], tl.float32)


@triton.jit
def look_up(table, row, l0, l1, l2, l3, width, READS: tl.constexpr, HP: tl.constexpr):
    """What the input adds to each block; some row's where there is none (−1)."""
    at = tl.maximum(row, 0).to(tl.int64) * width
    a0, a1 = read(table, at, l0, READS, 0, HP), read(table, at, l1, READS, 1, HP)
    return a0, a1, read(table, at, l2, READS, 2, HP), read(table, at, l3, READS, 3, HP)


@triton.jit
def step(a0, a1, a2, a3, w0, w1, w2, w3, f0, f1, f2, f3, h, c, row,
         KIND: tl.constexpr, HARD: tl.constexpr, MULTIPLIES: tl.constexpr):  # fmt: skip
    """→ h and c after it, as they were where row is −1."""
    if MULTIPLIES & 1:
        a0 += times(w0, h)
    if MULTIPLIES & 2:
        a1 += times(w1, h)
    if MULTIPLIES & 4:
        a2 += times(w2, h)
    if MULTIPLIES & 8:
        a3 += times(w3, h)
    new_h, new_c = advance(a0, a1, a2, a3, f0, f1, f2, f3, h, c, KIND, HARD)
    return tl.where(row >= 0, new_h, h), tl.where(row >= 0, new_c, c)


@triton.jit
def whole_sequence(table, rows, weight, places, fixed, y, steps, batch, width, hidden,
                   KIND: tl.constexpr, HARD: tl.constexpr, BLOCKS: tl.constexpr, READS: tl.constexpr,
                   MULTIPLIES: tl.constexpr, HP: tl.constexpr):  # fmt: skip
    """One sequence. table [N, width]; rows int32 [T, B]; weight [BLOCKS, HP, HP] transposed; places, fixed [4, HP].

    READS, MULTIPLIES: bit k says whether any row of block k reads the table, or multiplies h. Two steps a turn, a and b:
    what a turn adds was asked for a turn ago, and the row of it two turns ago, since either takes longer than a step.
    """
    program, j = tl.program_id(0), tl.arange(0, HP)
    w0, w1 = load_block(weight, 0, MULTIPLIES, HP), load_block(weight, 1, MULTIPLIES, HP)
    w2, w3 = load_block(weight, 2, MULTIPLIES, HP), load_block(weight, 3, MULTIPLIES, HP)
    l0, l1 = tl.load(places + j), tl.load(places + HP + j)
    l2, l3 = tl.load(places + 2 * HP + j), tl.load(places + 3 * HP + j)
    f0, f1 = tl.load(fixed + j), tl.load(fixed + HP + j)
    f2, f3 = tl.load(fixed + 2 * HP + j), tl.load(fixed + 3 * HP + j)
    h, c = tl.zeros([HP], tl.float32), tl.zeros([HP], tl.float32)
    rows, out, last = rows + program, y + program * hidden + j, steps - 1
    row_a, row_b = tl.load(rows), tl.load(rows + tl.minimum(1, last) * batch)
    next_a, next_b = tl.load(rows + tl.minimum(2, last) * batch), tl.load(rows + tl.minimum(3, last) * batch)
    a0, a1, a2, a3 = look_up(table, row_a, l0, l1, l2, l3, width, READS, HP)
    b0, b1, b2, b3 = look_up(table, row_b, l0, l1, l2, l3, width, READS, HP)
    for t in range(0, steps, 2):
        h, c = step(a0, a1, a2, a3, w0, w1, w2, w3, f0, f1, f2, f3, h, c, row_a, KIND, HARD, MULTIPLIES)
        a0, a1, a2, a3 = look_up(table, next_a, l0, l1, l2, l3, width, READS, HP)
        tl.store(out, tl.where(row_a >= 0, h, 0.0), mask=j < hidden)
        row_a, next_a = next_a, tl.load(rows + tl.minimum(t + 4, last) * batch)
        h, c = step(b0, b1, b2, b3, w0, w1, w2, w3, f0, f1, f2, f3, h, c, row_b, KIND, HARD, MULTIPLIES)
        b0, b1, b2, b3 = look_up(table, next_b, l0, l1, l2, l3, width, READS, HP)
        tl.store(out + batch * hidden, tl.where(row_b >= 0, h, 0.0), mask=(j < hidden) & (t < last))
        row_b, next_b = next_b, tl.load(rows + tl.minimum(t + 5, last) * batch)
        out += 2 * batch * hidden


class Tiny(Tabled):
    """Up to 64 neurons of an LSTM or GRU, 128 of an RNN, fp32."""

    devices = ("cuda",)

    def __init__(self, layer, device="cuda"):
        super().__init__(layer, device)
        blocks, hidden = layer.where.shape
        size = max(16, triton.next_power_of_2(hidden))
        if blocks * size * size > LARGEST:
            raise Unsupported(f"{hidden} neurons in {blocks} blocks do not fit the registers of one program")
        dense = torch.zeros(blocks, hidden, hidden)
        dense[layer.where] = layer.weight_hh.float()
        more = size - hidden
        self.weight = self.fp32(F.pad(dense.transpose(1, 2), (0, more, 0, more)))
        self.places = F.pad(layer.row_of, (0, more, 0, 4 - blocks), value=-1).to(device).contiguous()
        self.fixed = self.fp32(F.pad(layer.fixed, (0, more, 0, 4 - blocks), value=torch.nan))
        bits = 1 << torch.arange(blocks)
        multiplies, reads = dense.flatten(1).any(1), layer.where.any(1)
        self.shape = {"KIND": KINDS[layer.kind], "HARD": layer.cell.activation in ("hard", "relu"), "BLOCKS": blocks}
        self.shape |= {"READS": int(bits[reads].sum()), "MULTIPLIES": int(bits[multiplies].sum()), "HP": size}
        self.warps = max(1, blocks * size * size // 4096)

    def run(self, x, live):
        table, rows = self.table_and_rows(x, live)
        (steps, batch), hidden = rows.shape, self.layer.hidden
        y = torch.empty(steps, batch, hidden, device=self.device)
        sizes = steps, batch, table.shape[1], hidden
        held = self.weight, self.places, self.fixed
        whole_sequence[(batch,)](table, rows, *held, y, *sizes, **self.shape, num_warps=self.warps)
        return y
