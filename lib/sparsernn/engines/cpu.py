"""One core of a CPU (numba): the whole sequence in one call, with no step leaving it.

`Rows` vectorises over the rows of live gates, four sequences at a time: for few neurons. `Lanes` takes up to 64
side by side and only the weights that are not zero, those of the head too: for sparse ones.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..nets.cells import CEILING
from .base import KINDS, Tabled
from .compiled import njit
from .products import Product

FAST = {"fastmath": {"reassoc", "contract", "arcp", "nsz"}, "error_model": "numpy"}  # one file: a cached
# function is not compiled again when one that it calls changes elsewhere
WIDTHS = (4, 8, 16, 32, 48, 64)  # sequences side by side
LONGEST = 16  # floats of one vector; where registers are shorter, LLVM cuts it
CLIPPED = 2  # see `advance`
AHEAD = 2  # weights at a time, each with its own sums: a sum has to wait for the one before
ROWS = 64  # of a sparse W at a time, where its product is laid out anew


@njit(**FAST)
def tanh(x):
    """tanh u = P/Q, Lambert's fraction cut at u⁷, doubled twice as 2PQ/(P² + Q²): one division, no branch, within 3e-7."""
    u = min(max(np.float32(0.25) * x, np.float32(-2.3)), np.float32(2.3))
    s = u * u
    p = u * (np.float32(135135) + s * (np.float32(17325) + s * (np.float32(378) + s)))
    q = np.float32(135135) + s * (np.float32(62370) + s * (np.float32(3150) + s * np.float32(28)))
    p, q = np.float32(2) * p * q, p * p + q * q
    return np.float32(2) * p * q / (p * p + q * q)


@njit(**FAST)
def squash(v, hard):
    if hard:
        for i in range(len(v)):
            v[i] = min(max(np.float32(0.2) * v[i] + np.float32(0.5), np.float32(0)), np.float32(1))
    else:
        for i in range(len(v)):
            v[i] = np.float32(0.5) + np.float32(0.5) * tanh(np.float32(0.5) * v[i])


@njit(**FAST)
def advance(kind, hard, v, fixed_at, fixed, h, c):
    """Preactivations v [K·n] and the old state [n] → the new one, in place; constants at `fixed_at` of v.

    hard: 0 logistic (of an RNN: tanh), 1 hard gates (relu), CLIPPED the clipped relu
    """
    n = len(h)
    if kind == 0:
        squash(v[: 2 * n], hard)
        squash(v[3 * n :], hard)
        i_, f, g, o = v[:n], v[n : 2 * n], v[2 * n : 3 * n], v[3 * n :]
        for i in range(n):
            g[i] = tanh(g[i])
        for k in range(len(fixed_at)):
            v[fixed_at[k]] = fixed[k]
        for i in range(n):  # in one loop there would be too many arrays for the compiler to tell apart
            c[i] = f[i] * c[i] + i_[i] * g[i]
        for i in range(n):
            h[i] = o[i] * tanh(c[i])
    elif kind == 1:
        squash(v[: 2 * n], hard)
        for k in range(len(fixed_at)):
            if fixed_at[k] < 2 * n:  # the candidate reads r
                v[fixed_at[k]] = fixed[k]
        r, z, x, m = v[:n], v[n : 2 * n], v[2 * n : 3 * n], v[3 * n :]
        for i in range(n):
            x[i] = tanh(x[i] + r[i] * m[i])
        for k in range(len(fixed_at)):
            if fixed_at[k] >= 2 * n:
                v[fixed_at[k]] = fixed[k]
        for i in range(n):
            h[i] = x[i] + z[i] * (h[i] - x[i])
    else:
        for i in range(n):
            h[i] = max(v[i], np.float32(0)) if hard else tanh(v[i])
        if hard == CLIPPED:
            for i in range(n):
                h[i] = min(h[i], np.float32(CEILING))
        for k in range(len(fixed_at)):
            h[fixed_at[k]] = fixed[k]


@njit(**FAST)
def rows_times(weight, h, a):
    """a [R] += W h; weight [Hp, R] transposed, four columns a pass."""
    for j in range(0, len(h), 4):
        r0, r1, r2, r3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        h0, h1, h2, h3 = h[j], h[j + 1], h[j + 2], h[j + 3]
        for r in range(len(a)):
            a[r] = a[r] + r0[r] * h0 + r1[r] * h1 + r2[r] * h2 + r3[r] * h3


@njit(**FAST)
def rows_times_four(weight, h, a):
    """The same for four sequences, h [4, Hp], a [4, R]: each weight is read once for all of them."""
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    for j in range(0, h.shape[1], 4):
        r0, r1, r2, r3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        p0, p1, p2, p3 = h[0, j], h[0, j + 1], h[0, j + 2], h[0, j + 3]
        q0, q1, q2, q3 = h[1, j], h[1, j + 1], h[1, j + 2], h[1, j + 3]
        u0, u1, u2, u3 = h[2, j], h[2, j + 1], h[2, j + 2], h[2, j + 3]
        v0, v1, v2, v3 = h[3, j], h[3, j + 1], h[3, j + 2], h[3, j + 3]
        for r in range(a.shape[1]):
            w0, w1, w2, w3 = r0[r], r1[r], r2[r], r3[r]
            a0[r] = a0[r] + w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3
            a1[r] = a1[r] + w0 * q0 + w1 * q1 + w2 * q2 + w3 * q3
            a2[r] = a2[r] + w0 * u0 + w1 * u1 + w2 * u2 + w3 * u3
            a3[r] = a3[r] + w0 * v0 + w1 * v1 + w2 * v2 + w3 * v3


@njit(**FAST)
def by_rows(kind, hard, table, rows, weight, of, block, neuron, fixed_at, fixed, group, start, y, last):
    """`group` (1 or 4) sequences from `start` on. weight [Hp, D]: rows of W_hh that differ, as columns; row r of R is
    of[r] of them (`of` empty: D = R, each its own) and lands in block[r] at neuron[r]; y [T, B, H], h and c after it in
    last [2, B, H]."""
    steps, _, hidden = y.shape
    size, n = weight.shape
    a, v = np.empty((group, n), np.float32), np.zeros((4 if kind < 2 else 1, group, size), np.float32)
    h, c = np.zeros((group, size), np.float32), np.zeros((group, size), np.float32)
    flat_v, flat_h, flat_c, old_h, old_c = v.reshape(-1), h.reshape(-1), c.reshape(-1), h.copy(), c.copy()
    for t in range(steps):
        padded = False
        for s in range(group):
            row = rows[t, start + s]
            padded |= row < 0
            line = table[max(row, 0)]
            for r in range(n):
                a[s, r] = line[r] if len(of) == 0 else np.float32(0)
        if group == 4:
            rows_times_four(weight, h, a)
        else:
            rows_times(weight, h[0], a[0])
        for s in range(group):
            line = table[max(rows[t, start + s], 0)]
            if len(of) == 0:
                for r in range(n):
                    v[block[r], s, neuron[r]] = a[s, r]
            for r in range(len(of)):
                v[block[r], s, neuron[r]] = line[r] + a[s, of[r]]
        if padded:
            old_h[:], old_c[:] = h, c
        advance(kind, hard, flat_v, fixed_at, fixed, flat_h, flat_c)
        for s in range(group):
            out = y[t, start + s]
            if rows[t, start + s] < 0:
                h[s], c[s] = old_h[s], old_c[s]
                out[:] = 0
            else:
                for j in range(hidden):
                    out[j] = h[s, j]
    for s in range(group):
        for j in range(hidden):
            last[0, start + s, j], last[1, start + s, j] = h[s, j], c[s, j]


def _rows_times(lanes):
    """y [M, lanes] += sparse W times x [K, lanes], as a function of arrays for nopython code."""
    wide, parts = min(lanes, LONGEST), max(1, lanes // LONGEST)
    vector, index = ir.VectorType(ir.FloatType(), wide), ir.IntType(64)
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), wide), None)

    def generate(context, builder, signature, arguments):
        arrays = [
            context.make_array(kind)(context, builder, a) for kind, a in zip(signature.args, arguments, strict=True)
        ]
        pointers, columns, values, x, y = (array.data for array in arrays)
        rows = builder.extract_value(arrays[4].shape, 0)
        contract = ("contract",)

        def at(array, place):
            return builder.zext(builder.load(builder.gep(array, [place])), index)

        def lines(array, place):
            """Pointers to the vectors of one row of x or y."""
            start = builder.mul(place, index(lanes))
            return [
                builder.bitcast(builder.gep(array, [builder.add(start, index(wide * part))]), vector.as_pointer())
                for part in range(parts)
            ]

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(parts)] for _ in range(AHEAD)]
        with cgutils.for_range(builder, rows) as row:
            begin, end = at(pointers, row.index), at(pointers, builder.add(row.index, index(1)))
            out = lines(y, row.index)
            for ahead, several in enumerate(sums):
                for total, place in zip(several, out, strict=True):
                    builder.store(builder.load(place, align=4) if ahead == 0 else vector(None), total)
            with cgutils.for_range_slice(builder, begin, end, index(AHEAD), index) as (k, _):
                for ahead, several in enumerate(sums):
                    here = builder.add(k, index(ahead))
                    value = builder.insert_element(nothing, builder.load(builder.gep(values, [here])), index(0))
                    value = builder.shuffle_vector(value, value, first)  # to all lanes
                    for total, place in zip(several, lines(x, at(columns, here)), strict=True):
                        product = builder.fmul(value, builder.load(place, align=4), flags=contract)
                        builder.store(builder.fadd(builder.load(total), product, flags=contract), total)
            for part, place in enumerate(out):
                total = builder.load(sums[0][part])
                for several in sums[1:]:
                    total = builder.fadd(total, builder.load(several[part]))
                builder.store(total, place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def rows_times(typing, pointers, columns, values, x, y):
        return types.void(pointers, columns, values, x, y), generate

    return rows_times


@njit(**FAST)
def width(count):
    """Lanes to take for `count` columns: the fewest of `WIDTHS` that hold them, or as many as there are; 1 for 1."""
    if count == 1:
        return 1
    for lanes in WIDTHS:
        if lanes >= count:
            return lanes
    return WIDTHS[-1]


_4, _8, _16, _32, _48, _64 = (_rows_times(lanes) for lanes in WIDTHS)


@njit(**FAST)
def sparse_times(pointers, columns, values, x, y):
    """y [M, N] += sparse W times x [K, N], N one of `WIDTHS` or 1; ValueError for another number.

    pointers [M + 1], columns, values: rows of W, each padded to a multiple of `AHEAD`; all arrays contiguous.
    """
    lanes = y.shape[1]
    if lanes == 64:
        _64(pointers, columns, values, x, y)
    elif lanes == 48:
        _48(pointers, columns, values, x, y)
    elif lanes == 32:
        _32(pointers, columns, values, x, y)
    elif lanes == 16:
        _16(pointers, columns, values, x, y)
    elif lanes == 8:
        _8(pointers, columns, values, x, y)
    elif lanes == 4:
        _4(pointers, columns, values, x, y)
    elif lanes == 1:
        vector, out = x.reshape(-1), y.reshape(-1)
        for r in range(len(out)):
            total = np.float32(0)
            for k in range(pointers[r], pointers[r + 1]):
                total += values[k] * vector[columns[k]]
            out[r] += total
    else:
        raise ValueError("the number of columns is none of WIDTHS")


@njit(**FAST)
def transpose(x, y):
    """y [N, M] = the first N columns of x [M, ·], eight rows of x a pass."""
    whole = len(x) // 8 * 8
    for r in range(0, whole, 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[r], x[r + 1], x[r + 2], x[r + 3], x[r + 4], x[r + 5], x[r + 6], x[r + 7]
        for i in range(len(y)):
            out = y[i, r : r + 8]
            out[0], out[1], out[2], out[3] = x0[i], x1[i], x2[i], x3[i]
            out[4], out[5], out[6], out[7] = x4[i], x5[i], x6[i], x7[i]
    for r in range(whole, len(x)):
        for i in range(len(y)):
            y[i, r] = x[r, i]


@njit(**FAST)
def look_up(table, rows, a):
    """a [R, ≥ N] = lines `rows` [N] of table [·, R] as columns (the first for one below 0), sixteen of its rows a pass."""
    for first in range(0, len(a), 16):
        last = min(first + 16, len(a))
        for i in range(len(rows)):
            line = table[max(rows[i], 0)]
            for r in range(first, last):
                a[r, i] = line[r]


@njit(**FAST)
def by_lanes(kind, hard, table, rows, pointers, columns, values, block, neuron, fixed_at, fixed, lanes, y, last):
    """All sequences from sparse rows; state [H, lanes]; `fixed_at` and `fixed` have an entry for each lane; y and last as
    in `by_rows`."""
    (steps, batch, hidden), blocks = y.shape, 4 if kind < 2 else 1
    v, whole = np.zeros((blocks, hidden, lanes), np.float32), len(block) == blocks * hidden
    a = v.reshape(-1, lanes) if whole else np.zeros((len(block), lanes), np.float32)
    h, c = np.empty((hidden, lanes), np.float32), np.empty((hidden, lanes), np.float32)
    flat_v, flat_h, flat_c, old_h, old_c = v.reshape(-1), h.reshape(-1), c.reshape(-1), h.copy(), c.copy()
    for start in range(0, batch, lanes):
        h[:], c[:] = 0, 0
        count = min(lanes, batch - start)
        for t in range(steps):
            here = rows[t, start : start + count]
            padded = here.min() < 0
            look_up(table, here, a)
            sparse_times(pointers, columns, values, h, a)
            if not whole:
                for r in range(len(block)):
                    for i in range(lanes):
                        v[block[r], neuron[r], i] = a[r, i]
            if padded:
                old_h[:], old_c[:] = h, c
            advance(kind, hard, flat_v, fixed_at, fixed, flat_h, flat_c)
            transpose(h, y[t, start : start + count])
            if padded:
                for i in range(count):
                    if here[i] < 0:
                        h[:, i], c[:, i] = old_h[:, i], old_c[:, i]
                        y[t, start + i] = 0
        transpose(h, last[0, start : start + count])
        transpose(c, last[1, start : start + count])


@njit(**FAST)
def sparse_linear(pointers, columns, values, bias, x, y):
    """y [N, M] = x [N, K] Wᵀ + bias, W sparse: some rows of W for `lanes` lines of x at a time, both near the core."""
    (count, size), total, lanes = x.shape, len(bias), width(len(x))
    side, part = np.zeros((size, lanes), np.float32), np.empty((ROWS, lanes), np.float32)
    for start in range(0, count, lanes):
        here = min(lanes, count - start)
        for i in range(here):
            for k in range(size):
                side[k, i] = x[start + i, k]
        for first in range(0, total, ROWS):
            some = part[: min(ROWS, total - first)]
            for r in range(len(some)):
                some[r] = bias[first + r]
            sparse_times(pointers[first : first + len(some) + 1], columns, values, side, some)
            transpose(some, y[start : start + here, first : first + len(some)])


@njit(**FAST)
def in_panels(pointers, columns, values, x, y):
    """y [M, N] += sparse W times x [K, N]."""
    total, lanes = x.shape[1], width(x.shape[1])
    if lanes == total:
        sparse_times(pointers, columns, values, x, y)
        return
    side, part = np.zeros((len(x), lanes), np.float32), np.empty((ROWS, lanes), np.float32)
    for start in range(0, total, lanes):
        here = min(lanes, total - start)
        side[:, :here] = x[:, start : start + here]
        for first in range(0, len(y), ROWS):
            some, out = part[: min(ROWS, len(y) - first)], y[first : first + ROWS, start : start + here]
            some[:] = 0
            sparse_times(pointers[first : first + len(some) + 1], columns, values, side, some)
            out += some[:, :here]


def padded_rows(weight, multiple=AHEAD):
    """CSR of weight [R, K], every row padded to a multiple (zeros at column 0): pointers, columns, values."""
    weight = weight.float().numpy()
    counts = (weight != 0).sum(1)
    pointers = np.concatenate([[0], np.cumsum(-(-counts // multiple) * multiple)])
    columns, values = np.zeros(pointers[-1], np.uint32), np.zeros(pointers[-1], np.float32)
    row, column = weight.nonzero()
    at = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(pointers[:-1], counts)
    columns[at], values[at] = column, weight[row, column]
    return pointers.astype(np.uint32), columns, values


class Whole(Tabled):
    """What `Rows` and `Lanes` share."""

    devices = ("cpu",)
    activations, hands_out = (*Tabled.activations, "clipped_relu"), True

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.cell = KINDS[layer.kind], {"hard": 1, "relu": 1, "clipped_relu": CLIPPED}.get(layer.cell.activation, 0)
        self.where = tuple(index.astype(np.uint32) for index in layer.where.numpy().nonzero())  # block, neuron of a row

    def constants(self, copies, block, neuron, copy):
        """Where in v the constants of `copies` sequences stand, and their values; the rest: strides of v."""
        fixed = self.layer.fixed.float().numpy()
        blocks, neurons = (~np.isnan(fixed)).nonzero()
        at = (blocks * block + neurons * neuron)[:, None] + copy * np.arange(copies)
        return at.flatten().astype(np.uint32), np.repeat(fixed[blocks, neurons], copies)

    def over(self, table, rows, y, last):
        """Fills y [T, B, H], and last [2, B, H] with h and c after it."""
        raise NotImplementedError

    def run_with_states(self, x, live):
        table, rows = self.table_and_rows(x, live)
        y, last = torch.empty(*rows.shape, self.layer.hidden), torch.empty(2, rows.shape[1], self.layer.hidden)
        self.over(table.numpy(), rows.numpy(), y.numpy(), last.numpy())
        return y, list(last[: self.layer.cell.n_states])


class Rows(Whole):
    """Dense rows of live gates, four sequences at a time (the last few one by one); equal rows are multiplied once.

    Those are the rows that gates share (1908.07724), and the zeros of a GRU's n that takes nothing from the state there.
    """

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        weight, places = layer.weight_hh.float().contiguous(), {}
        of = [places.setdefault(row.tobytes(), len(places)) for row in weight.numpy()]
        self.of = np.array(of if len(places) < len(of) else [], np.uint32)
        weight = weight[np.unique(of, return_index=True)[1]].T
        self.weight = torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % 4)).contiguous().numpy()
        size = len(self.weight)
        self.fixed = {group: self.constants(group, group * size, 1, size) for group in (1, 4)}

    def over(self, table, rows, y, last):
        batch, start = rows.shape[1], 0
        while start < batch:
            group = 4 if start + 4 <= batch else 1
            by_rows(
                *self.cell, table, rows, self.weight, self.of, *self.where, *self.fixed[group], group, start, y, last
            )
            start += group


class Lanes(Whole):
    """Weights that are not zero, up to 64 sequences side by side."""

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.csr = padded_rows(layer.weight_hh)

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        csr, bias = padded_rows(weight), bias.float().numpy()

        def times(y):
            flat = y.reshape(-1, y.shape[-1])
            result = torch.empty(len(flat), len(bias))
            sparse_linear(*csr, bias, flat.numpy(), result.numpy())
            return result.unflatten(0, y.shape[:-1])

        return times

    def over(self, table, rows, y, last):
        lanes = width(rows.shape[1])
        fixed = self.constants(lanes, self.layer.hidden * lanes, lanes, 1)
        by_lanes(*self.cell, table, rows, *self.csr, *self.where, *fixed, lanes, y, last)


class CsrNumba(Product):
    """The sparse product of `Lanes` on its own; a width it is not made for goes in panels."""

    devices = ("cpu",)

    def prepare(self, weight):
        return padded_rows(weight)

    def __call__(self, x):
        y = torch.zeros(len(self.weight[0]) - 1, x.shape[1])
        in_panels(*self.weight, x.contiguous().numpy(), y.numpy())
        return y
