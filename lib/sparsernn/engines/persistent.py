"""A large recurrent layer in one launch whose weights stay on chip for all time steps (the idea of 1804.10223).

Each program owns HS neurons: their rows of W_hh, sparse (columns and values, rows filled up to equal length) or dense,
are loaded into registers once. A step reads h of all neurons, gathers, sums, advances its own neurons, writes their h
where no step wrote before (no cache can hold an old one) and waits until every program has arrived: a barrier in a
counter, which needs all programs resident at once, so the launch is cooperative. What does not fit the registers is
read again each step, from L2. On the CPU, in Triton's interpreter, one program owns all neurons.
"""

from dataclasses import dataclass
from math import ceil

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .base import KINDS, Tabled, Unsupported
from .timing import on_chip_ms
from .triton_cells import advance

REGISTERS = 1 << 16  # of a multiprocessor, sm_80 and sm_90
WORKING = 100  # registers a thread needs besides the weights it holds: with fewer the compiled kernels spill
BATCHES = (1, 2, 4)  # more sequences leave no registers for weights


@triton.jit
def fetch(words, at, PACKED: tl.constexpr, DENSE: tl.constexpr):
    """One tile [HS, CHUNK] as column and value: packed in a word (fp16 above, column below), in two, or values alone."""
    if DENSE:
        value = tl.load(words + at).to(tl.float32, bitcast=True)
        return value, value
    elif PACKED:
        word = tl.load(words + at)
        return word, word
    else:
        return tl.load(words + 2 * at), tl.load(words + 2 * at + 1).to(tl.float32, bitcast=True)


@triton.jit
def gathered(column, value, h, line, BATCH: tl.constexpr, PACKED: tl.constexpr, DENSE: tl.constexpr):
    """value · h[column] of a tile for the sequence that h, lying as [H, BATCH], starts with."""
    if DENSE:
        return value * tl.load(h + line * BATCH)
    elif PACKED:
        value = (column >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return value * tl.load(h + (column & 0xFFFF) * BATCH)
    else:
        return value * tl.load(h + column * BATCH)


@triton.jit
def block_tile(held, words, base, h, BLOCK: tl.constexpr, MULTIPLIES: tl.constexpr, HS: tl.constexpr,
               CHUNK: tl.constexpr, CHUNKS: tl.constexpr, BATCH: tl.constexpr, PACKED: tl.constexpr,
               DENSE: tl.constexpr, HELD: tl.constexpr):  # fmt: skip
    """What one sequence's h contributes to one block of this program's neurons, before the sum over a chunk.

    Sparse, a tile lies [CHUNK, HS]: a gather has no order that the compiler could see, and it deals lanes out along the first
    dimension, which so is a row's weights; the sum then stays in a warp. Dense, loads along a row are what it looks for.
    """
    line = tl.arange(0, CHUNK)[None, :] if DENSE else tl.arange(0, CHUNK)[:, None]
    row = tl.arange(0, HS)[:, None] if DENSE else tl.arange(0, HS)[None, :]
    total = tl.zeros([HS, CHUNK] if DENSE else [CHUNK, HS], tl.float32)
    if (MULTIPLIES >> BLOCK) & 1:
        at = row * CHUNK + line
        if HELD:
            for q in tl.static_range(CHUNKS):
                column, value = held[2 * (BLOCK * CHUNKS + q)], held[2 * (BLOCK * CHUNKS + q) + 1]
                total += gathered(column, value, h, q * CHUNK + line, BATCH, PACKED, DENSE)
        else:
            for q in range(CHUNKS):
                column, value = fetch(words, base + (BLOCK * CHUNKS + q) * HS * CHUNK + at, PACKED, DENSE)
                total += gathered(column, value, h, q * CHUNK + line, BATCH, PACKED, DENSE)
    return total


@triton.jit
def summed(tile, b: tl.constexpr, BATCH: tl.constexpr, DENSE: tl.constexpr):
    """The sum over a tile's chunk in column b of [HS, BATCH], 0 in the others."""
    return tl.where(tl.arange(0, BATCH)[None, :] == b, tl.sum(tile, 1 if DENSE else 0)[:, None], 0.0)


@triton.jit
def read(table, at, place, READS: tl.constexpr, BLOCK: tl.constexpr, HS: tl.constexpr, BATCH: tl.constexpr):
    if (READS >> BLOCK) & 1:
        return tl.load(table + at + place, mask=place >= 0, other=0.0)
    else:
        return tl.zeros([HS, BATCH], tl.float32)


@triton.jit
def whole_sequence(table, rows, words, places, fixed, exchange, arrived, steps, width, stride, neurons,
                   KIND: tl.constexpr, HARD: tl.constexpr, BLOCKS: tl.constexpr, READS: tl.constexpr,
                   MULTIPLIES: tl.constexpr, HS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
                   BATCH: tl.constexpr, PACKED: tl.constexpr, DENSE: tl.constexpr, HELD: tl.constexpr,
                   EMPTY: tl.constexpr):  # fmt: skip
    """table [N, width]; rows [T, BATCH]; words [program, block, chunk, HS, CHUNK]; places, fixed [4, neurons].

    exchange [T + 1, stride] holds h as [neuron, BATCH], zeros at first; arrived [1] is 0. EMPTY: no products, the
    loop, the barrier and the gates alone, to measure what no engine of this kind goes below.
    """
    program, b = tl.program_id(0), tl.arange(0, BATCH)
    mine = program * HS + tl.arange(0, HS)
    base = program.to(tl.int64) * BLOCKS * CHUNKS * HS * CHUNK
    held = ()
    if HELD and not EMPTY:
        row = tl.arange(0, HS)[:, None] if DENSE else tl.arange(0, HS)[None, :]
        at = row * CHUNK + (tl.arange(0, CHUNK)[None, :] if DENSE else tl.arange(0, CHUNK)[:, None])
        for q in tl.static_range(BLOCKS * CHUNKS):
            held = held + fetch(words, base + q * HS * CHUNK + at, PACKED, DENSE)
    l0, l1 = tl.load(places + mine)[:, None], tl.load(places + neurons + mine)[:, None]
    l2, l3 = tl.load(places + 2 * neurons + mine)[:, None], tl.load(places + 3 * neurons + mine)[:, None]
    f0, f1 = tl.load(fixed + mine)[:, None], tl.load(fixed + neurons + mine)[:, None]
    f2, f3 = tl.load(fixed + 2 * neurons + mine)[:, None], tl.load(fixed + 3 * neurons + mine)[:, None]
    h, c = tl.zeros([HS, BATCH], tl.float32), tl.zeros([HS, BATCH], tl.float32)
    out = exchange + stride + mine[:, None] * BATCH + b[None, :]
    row = tl.load(rows + b)[None, :]
    at = tl.maximum(row, 0).to(tl.int64) * width
    a0, a1 = read(table, at, l0, READS, 0, HS, BATCH), read(table, at, l1, READS, 1, HS, BATCH)
    a2, a3 = read(table, at, l2, READS, 2, HS, BATCH), read(table, at, l3, READS, 3, HS, BATCH)
    for t in range(steps):
        following = tl.load(rows + tl.minimum(t + 1, steps - 1) * BATCH + b)[None, :]
        at = tl.maximum(following, 0).to(tl.int64) * width
        p0, p1, p2, p3 = a0, a1, a2, a3
        a0, a1 = read(table, at, l0, READS, 0, HS, BATCH), read(table, at, l1, READS, 1, HS, BATCH)
        a2, a3 = read(table, at, l2, READS, 2, HS, BATCH), read(table, at, l3, READS, 3, HS, BATCH)
        if not EMPTY:
            for i in tl.static_range(BATCH):  # every gather is asked for before the first sum waits for one
                h_i = exchange + i
                t0 = block_tile(held, words, base, h_i, 0, MULTIPLIES, HS, CHUNK, CHUNKS, BATCH, PACKED, DENSE, HELD)
                t1 = block_tile(held, words, base, h_i, 1, MULTIPLIES, HS, CHUNK, CHUNKS, BATCH, PACKED, DENSE, HELD)
                t2 = block_tile(held, words, base, h_i, 2, MULTIPLIES, HS, CHUNK, CHUNKS, BATCH, PACKED, DENSE, HELD)
                t3 = block_tile(held, words, base, h_i, 3, MULTIPLIES, HS, CHUNK, CHUNKS, BATCH, PACKED, DENSE, HELD)
                p0 += summed(t0, i, BATCH, DENSE)
                p1 += summed(t1, i, BATCH, DENSE)
                p2 += summed(t2, i, BATCH, DENSE)
                p3 += summed(t3, i, BATCH, DENSE)
        new_h, new_c = advance(p0, p1, p2, p3, f0, f1, f2, f3, h, c, KIND, HARD)
        h, c = tl.where(row >= 0, new_h, h), tl.where(row >= 0, new_c, c)
        tl.store(out, h)
        out += stride
        exchange += stride
        row = following
        tl.debug_barrier()  # all threads of the program have stored
        tl.atomic_add(arrived, 1, sem="release")
        while tl.atomic_add(arrived, 0, sem="acquire") < (t + 1) * tl.num_programs(0):
            pass
        tl.debug_barrier()


@dataclass(frozen=True)
class Plan:
    """How neurons are dealt out: `programs` of `neurons` each, `warps` and `registers` a thread; held in them, or not."""

    neurons: int
    programs: int
    warps: int
    registers: int
    held: bool


def plan(hidden, blocks, width, words, processors):
    """The plan with the fewest neurons on the busiest of `processors`, weights in registers if they fit.

    width  weights a row, filled up        words  registers a weight takes: 2 (column, value) or 1
    At most two programs a processor: each has to arrive at the barrier. Where several are level, the most registers to spare.
    """
    if processors == 1:
        return Plan(triton.next_power_of_2(hidden), 1, 4, 255, True)
    plans = []
    for neurons in (4, 8, 16, 32, 64):
        programs = ceil(hidden / neurons)
        share = ceil(programs / processors)
        for warps in (1, 2, 4, 8, 16)[: neurons.bit_length()]:  # a row of a chunk is a warp: with more they repeat work
            registers = min(255, REGISTERS // (share * 32 * warps) // 8 * 8)
            spare = registers - blocks * neurons * width * words / (32 * warps)
            chosen = Plan(neurons, programs, warps, registers, held=spare >= WORKING)
            plans.append((not chosen.held, share * neurons, share, -spare, chosen))
    fitting = [entry for entry in plans if entry[2] <= 2]
    best = min(fitting, key=lambda entry: entry[:4])[4]
    if best.held:
        return best
    neurons = 16 if ceil(hidden / 16) <= 2 * processors else 32
    return Plan(neurons, ceil(hidden / neurons), 8, REGISTERS // (2 * 32 * 8), held=False)


class Persistent(Tabled):
    """Sparse W_hh, fp32 values: two registers a weight."""

    devices = ("cuda",)
    packed = dense = False
    chunk = 32

    def __init__(self, layer, device="cuda"):
        super().__init__(layer, device)
        on_gpu = self.device.type == "cuda"
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count if on_gpu else 1
        blocks, hidden = layer.where.shape
        if hidden >= 1 << 16:
            raise Unsupported(f"{hidden} neurons; columns are 16 bits")
        rows = torch.zeros(blocks, hidden, hidden)
        rows[layer.where] = layer.weight_hh.float()
        counts = (rows != 0).sum(2)
        chunks = max(1, ceil((hidden if self.dense else int(counts.max())) / self.chunk))
        self.words_each = 1 if self.packed or self.dense else 2
        self.plan = plan(hidden, blocks, chunks * self.chunk, self.words_each, processors)
        if self.dense and not self.plan.held:
            raise Unsupported(
                f"the dense weights of {hidden} neurons do not fit the registers of {processors} processors"
            )
        self.neurons = self.plan.neurons * self.plan.programs
        self.words = self.lay_out(rows, counts, chunks).to(device)
        more = self.neurons - hidden
        fixed = F.pad(layer.fixed, (0, more, 0, 4 - blocks), value=torch.nan)
        self.places = F.pad(layer.row_of, (0, more, 0, 4 - blocks), value=-1).to(device).contiguous()
        self.fixed, bits = self.fp32(fixed), 1 << torch.arange(blocks)
        multiplies, reads = counts.any(1), layer.where.any(1)
        self.shape = {"KIND": KINDS[layer.kind], "HARD": layer.cell.activation in ("hard", "relu"), "BLOCKS": blocks}
        self.shape |= {"READS": int(bits[reads].sum()), "MULTIPLIES": int(bits[multiplies].sum())}
        self.shape |= {"HS": self.plan.neurons, "CHUNK": self.chunk, "CHUNKS": chunks, "HELD": self.plan.held}
        self.shape |= {"PACKED": self.packed, "DENSE": self.dense}

    def lay_out(self, rows, counts, chunks):
        """[blocks, H, H] → int32 words, [program, block, chunk, HS, CHUNK] and column and value last where they are two."""
        blocks, hidden, _ = rows.shape
        shape = blocks, self.neurons, chunks * self.chunk
        columns, values = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
        if self.dense:
            values[:, :hidden, :hidden] = rows
        else:
            block, row, column = rows.nonzero(as_tuple=True)
            first = counts.flatten().cumsum(0) - counts.flatten()
            place = torch.arange(len(column)) - first[block * hidden + row]
            columns[block, row, place], values[block, row, place] = column.int(), rows[block, row, column]
        if self.packed:
            words = columns | values.half().view(torch.int16).int() << 16
        else:
            words = values.view(torch.int32)
        if not (self.packed or self.dense):
            words = torch.stack([columns, words], 3)
        words = words.view(blocks, self.plan.programs, self.plan.neurons, chunks, self.chunk, -1)
        return words.permute(1, 0, 3, 2, 4, 5).contiguous()

    def run(self, x, live, empty=False):
        table, rows = self.table_and_rows(x, live)
        steps, batch = rows.shape
        if batch not in BATCHES:
            raise Unsupported(f"{batch} sequences at once; this kernel runs {', '.join(map(str, BATCHES))}")
        span = max(self.neurons, self.shape["CHUNK"] * self.shape["CHUNKS"] if self.dense else 0)
        stride = 32 * ceil(span * batch / 32)  # no cache line holds two steps
        exchange = torch.zeros(steps + 1, stride, device=self.device)
        arrived = torch.zeros(1, dtype=torch.int32, device=self.device)
        whole_sequence[(self.plan.programs,)](
            table, rows, self.words, self.places, self.fixed, exchange, arrived, steps, table.shape[1],
            stride, self.neurons, **self.shape, BATCH=batch, EMPTY=empty, num_warps=self.plan.warps,
            maxnreg=self.plan.registers, launch_cooperative_grid=True,
        )  # fmt: skip
        y = exchange[1:, : self.layer.hidden * batch].view(steps, -1, batch).transpose(1, 2)
        return y.contiguous() if live is None else y.masked_fill(~live.unsqueeze(2), 0)

    def on_chip_ms(self, x):
        weights = self.layer.weight_hh
        products = x.shape[1] * (weights.numel() if self.dense else int((weights != 0).sum()))
        size = 0 if self.plan.held else 4 * self.words_each * int((weights != 0).sum())
        return on_chip_ms(self.device, x.shape[0], products, 0 if self.dense else products, size)


class PersistentFP16(Persistent):
    """Values rounded to fp16, one register a weight: twice as many fit. Sums stay in fp32."""

    packed = True
    dtype = torch.float16


class PersistentDense(Persistent):
    """Dense W_hh of what is left, fp32, one register a weight."""

    dense = True
