"""A layer laid down for the C engine: one piece of memory, its weights in blocks, in the order in which they are read.

Rows are cut into panels as high as a block, so that the rows of one read the same columns as far as can be: then a mask of
whole blocks keeps them, though pruned neurons and gates have left gaps of any size. Blocks four columns wide begin anywhere.
format.h says where everything stands.
"""

import struct

import numpy as np

KINDS = {"nothing": 0, "scattered": 1, "16x1": 2, "16x4": 3, "8x4": 4, "int8 16x4": 5, "int8 8x4": 6}  # format.h's
SHAPES = {"16x1": (16, 1), "16x4": (16, 4), "8x4": (8, 4)}
# about how many clocks a product takes for a block, a panel, a scattered weight and a row of such (AMD EPYC, near caches)
CLOCKS = {"16x1": 2.0, "16x4": 7.5, "8x4": 4.3, "int8 16x4": 2.6, "int8 8x4": 1.8}
PANEL, WEIGHT, ROW, SINGLY = 4.0, 0.7, 0.5, 20.0  # SINGLY: until a vector can be read that was written number by number
FEWEST, SIDE, ROOM = (
    4,
    8,
    16,
)  # columns of a matrix in blocks of four; rows of a scattered panel; a vector beyond the last row
MOST = 1 << 16  # columns that an index can name


def panels(kept, height):
    """Rows cut into panels of up to `height` in a row → the first row of each; kept: bool [rows, columns].

    The cut with the fewest columns, counted in every panel that reads them, found from the top by dynamic programming.
    """
    rows, bits = len(kept), np.packbits(kept, axis=1)
    costs, union = np.full((rows + 1, height + 1), np.inf), bits.copy()
    for size in range(1, min(height, rows) + 1):  # costs[end, size] of the panel of that size that ends there
        costs[size:, size] = np.bitwise_count(union).sum(1, dtype=np.int64) + PANEL / 2
        union = union[:-1] | bits[size:]
    best, last = np.zeros(rows + 1), np.zeros(rows + 1, np.int64)
    for end in range(1, rows + 1):
        most = min(height, end)
        total = best[end - most : end][::-1] + costs[end, 1 : most + 1]
        last[end] = 1 + total.argmin()
        best[end] = total[last[end] - 1]
    firsts, end = [], rows
    while end:
        end -= last[end]
        firsts.append(end)
    return np.array(firsts[::-1], np.int64)


def windows(kept, wide):
    """Where windows of `wide` columns begin that cover what each panel reads, from the left; kept: bool [panels, columns]."""
    if wide == 1:
        return kept
    begins, until = np.zeros_like(kept), np.zeros(len(kept), np.int64)
    for column in range(kept.shape[1]):
        here = kept[:, column] & (until <= column)
        begins[:, column], until[here] = here, column + wide
    return begins


class Cut:
    """A matrix's rows and columns cut into blocks of a shape: `first` and `height` of each panel, `panel` and `column` of
    each block, `clocks` that a product takes, about."""

    def __init__(self, kept, name, number=""):
        height, wide = SHAPES[name]
        kept = kept if kept.mean() < 0.9 else np.ones_like(kept)
        first = panels(kept, height) if not kept.all() else np.arange(0, len(kept), height)
        union = np.logical_or.reduceat(kept, first, axis=0)
        begins = windows(union, wide)
        counts = begins.sum(1)
        order = np.argsort(-counts, kind="stable")  # alike beside alike: the processor foresees when a panel ends
        order = order[counts[order] > 0]
        sizes = np.diff(first, append=len(kept))
        self.first, self.sizes, self.counts = first[order], sizes[order], counts[order]
        self.panel, self.column = begins[order].nonzero()
        self.shape, self.kind = (height, wide), number + name
        self.clocks = CLOCKS[number + name] * len(self.panel) + PANEL * len(order)

    def values(self, weight):
        """The blocks' weights [blocks, rows, columns], zero where a block reaches beyond its panel's rows, or what another
        block has; and the columns where they begin, at the latest where a whole one has room."""
        height, wide = self.shape
        begin = np.minimum(self.column, weight.shape[1] - wide)
        columns = begin[:, None, None] + np.arange(wide)
        rows = self.first[self.panel][:, None, None] + np.arange(height)[:, None]
        inside = (np.arange(height)[:, None] < self.sizes[self.panel][:, None, None]) & (
            columns >= self.column[:, None, None]
        )
        found = weight[np.minimum(rows, len(weight) - 1), columns]
        return found * inside, begin


def _scattered(weight):
    """kind, panels and arrays of a matrix whose weights bring their columns, rows of like length side by side."""
    counts = (weight != 0).sum(1)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    row = np.concatenate([order, np.full(-len(order) % SIDE, len(weight))]).astype(np.int32)
    steps = counts[order][::SIDE]
    start = np.concatenate([[0], np.cumsum(steps)])
    values, index = np.zeros((start[-1], SIDE), np.float32), np.zeros((start[-1], SIDE), np.uint16)
    for place, r in enumerate(order):
        columns = weight[r].nonzero()[0]
        here = slice(start[place // SIDE], start[place // SIDE] + len(columns))
        values[here, place % SIDE], index[here, place % SIDE] = weight[r, columns], columns
        index[here.stop : start[place // SIDE + 1], place % SIDE] = columns[0]
    return {"kind": "scattered", "panels": len(steps), "first": row, "start": start, "index": index, "values": values}


def pack_floats(weight):
    """The matrix float32 [rows, columns] as the quickest of blocks and scattered weights → kind, panels and arrays."""
    kept = weight != 0
    if not kept.any():
        return {"kind": "nothing"}
    names = [name for name, (_, wide) in SHAPES.items() if wide <= weight.shape[1]]
    cut = min((Cut(kept, name) for name in names), key=lambda one: one.clocks)
    counts = kept.sum(1)
    if SINGLY + ROW * np.count_nonzero(counts) + WEIGHT * counts.sum() < cut.clocks:
        return _scattered(weight)
    values, index = cut.values(weight)
    return _blocks(cut, values.transpose(0, 2, 1), index, np.float32)


def pack_bytes(weight, dense):
    """The same in int8, one scale a row → kind, panels and arrays, `sums` [rows]: of a row's weights, scaled. dense: with
    its zeros."""
    if not len(weight) or (not weight.any() and not dense):
        return {"kind": "nothing", "sums": np.zeros(len(weight))}
    weight = np.pad(weight, ((0, 0), (0, max(0, FEWEST - weight.shape[1]))))
    scale = np.abs(weight).max(1) / 127
    scale[scale == 0] = 1
    whole = np.rint(weight / scale[:, None])
    kept = np.ones_like(weight, bool) if dense else weight != 0
    cut = min((Cut(kept, name, "int8 ") for name in ("16x4", "8x4")), key=lambda one: one.clocks)
    values, index = cut.values(whole)
    arrays = _blocks(cut, values, index, np.int8)
    scale = scale.astype(np.float32)
    return arrays | {"scale": np.pad(scale, (0, ROOM)), "sums": whole.sum(1) * scale}


def _blocks(cut, values, index, kind):
    start = np.concatenate([[0], np.cumsum(cut.counts)])
    arrays = {"first": cut.first.astype(np.int32), "start": start, "index": index.astype(np.uint16)}
    return {"kind": cut.kind, "panels": len(cut.first), "values": np.ascontiguousarray(values, kind)} | arrays


class Laid:
    """What was laid down, copied to where it is 64 bytes aligned: `raw` uint8, and its address. Nobody writes to it, so that
    a copy is the same one."""

    def __init__(self, raw):
        room = np.empty(len(raw) + 64, np.uint8)
        self.raw = room[-room.ctypes.data % 64 :][: len(raw)]
        self.raw[:] = raw
        self.address = self.raw.ctypes.data

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return Laid, (self.raw,)


class Memory:
    """Arrays after each other, 64 bytes aligned, behind a head; `add` says where one stands."""

    def __init__(self, head):
        self.size, self.pieces = -(-head // 64) * 64, []

    def add(self, array):
        array, here = np.ascontiguousarray(array), self.size
        self.pieces.append((here, array))
        self.size += -(-array.nbytes // 64) * 64
        return here

    def whole(self, head):
        raw = np.zeros(self.size, np.uint8)
        raw[: len(head)] = np.frombuffer(head, np.uint8)
        for here, array in self.pieces:
            raw[here : here + array.nbytes] = array.reshape(-1).view(np.uint8)
        return Laid(raw)


MATRIX, LAYER = "10qd", "6qd2q12q"
HEAD = struct.calcsize(LAYER + 2 * MATRIX)


def _matrix(memory, arrays, rows, columns, step):
    """A struct matrix [rows, columns]: what `pack_floats` or `pack_bytes` gave, in memory."""
    if arrays["kind"] == "nothing":
        return [0] * 10 + [0.0]
    start = memory.add(arrays["start"].astype(np.int32))
    at = [memory.add(arrays["first"]), start, memory.add(arrays["index"]), memory.add(arrays["values"])]
    scale = memory.add(arrays["scale"] * np.float32(step)) if "scale" in arrays else 0
    height = 1 if arrays["kind"] == "scattered" else int(arrays["kind"].split()[-1].split("x")[0])
    reach = int(arrays["first"].max()) + height
    whole = height > 1 and reach == rows and np.array_equal(np.sort(arrays["first"]), np.arange(0, rows, height))
    return [KINDS[arrays["kind"]], arrays["panels"], columns, reach, whole, *at, scale, step]


def room(rows):
    """Floats of a row of preactivations (format.h)."""
    return (-(-rows // 16) + 2) * 16


def in_room(rows):
    """float32 [..., rows] with zeros up to the room of a row."""
    width = rows.shape[-1]
    return np.pad(rows.astype(np.float32), [(0, 0)] * (rows.ndim - 1) + [(0, room(width) - width)])


def pack_linear(bias, arrays, inputs, step=0.0):
    """A struct layer with nothing but one product → `Laid`."""
    memory = Memory(HEAD)
    head = [0, 0, 0, len(bias), inputs, 0, 0.0, memory.add(in_room(bias)), 0] + [0] * 12
    return memory.whole(
        struct.pack(LAYER + 2 * MATRIX, *head, *_matrix(memory, arrays, len(bias), inputs, step), *[0] * 10, 0.0)
    )


def pack_layer(cell, hard, limit, row_of, fixed, bias, table, inputs, of_input, of_state, steps):
    """A struct layer → `Laid`.

    cell     LSTM 0, GRU 1, RNN 2; hard: its gates; limit: of an RNN's h, 0 for tanh
    row_of   int [blocks, hidden]: the row of each block and neuron, −1 for none; fixed [blocks, hidden]: NaN where live
    bias     [rows]; table [words + 1, rows]: the same with a word's weights, or None
    of_…     what `pack_floats` or `pack_bytes` gave; steps: of x and of h in int8
    """
    memory, (blocks, hidden), rows = Memory(HEAD), row_of.shape, len(bias)
    places, begins, constants = [0] * 4, [0] * 4, [0] * 4
    for block in range(blocks):
        if hidden and row_of[block, 0] >= 0 and (np.diff(row_of[block]) == 1).all():
            begins[block] = int(row_of[block, 0])
        else:
            places[block] = memory.add(np.where(row_of[block] < 0, rows, row_of[block]).astype(np.int32))
        if not np.isnan(fixed[block]).all():
            constants[block] = memory.add(np.pad(fixed[block].astype(np.float32), (0, -hidden % 16)))
    words = 0 if table is None else len(table) - 1
    head = [cell, hard, hidden, rows, inputs, words, limit, memory.add(in_room(bias))]
    head += [0 if table is None else memory.add(in_room(table)), *places, *begins, *constants]
    head += _matrix(memory, of_input, rows, inputs, steps[0]) + _matrix(memory, of_state, rows, hidden, steps[1])
    return memory.whole(struct.pack(LAYER + 2 * MATRIX, *head))
