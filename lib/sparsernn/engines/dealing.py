"""Weights of a sparse matrix dealt out to the lanes of blocks that keep them for many products.

A row goes to as many lanes as make the busiest lane's share least. A lane's share is a sum, so its order is free, and
chosen here: lanes that gather from shared memory at once should find their columns in different banks, for a bank
serves one of them at a time.
"""

from dataclasses import dataclass

import numpy as np

from .compiled import njit

BANKS = 32  # of a multiprocessor's shared memory, 4 B each
SPLIT = 24  # lanes a row is dealt to at most: somebody has to add up their sums


@dataclass(frozen=True)
class Dealt:
    """values float32, columns int32 [P, K, L]: lane l of block p multiplies in slot k; where it has nothing, by 0.

    lanes int32 [P, rows, 2]: the first of a row's lanes, and the one after its last
    """

    values: np.ndarray
    columns: np.ndarray
    lanes: np.ndarray


def deal(weight, blocks, lanes, width=1):
    """weight [R, C] float32, its rows divided evenly among `blocks` of `lanes` → `Dealt`.

    width  numbers that one load fetches, of as many sequences (1, 2 or 4): 32 / width lanes are then served at a time
    Raises ValueError if a block has more rows than lanes.
    """
    rows = len(weight) // blocks
    row, column = np.nonzero(weight)
    counts = np.bincount(row, minlength=len(weight)).reshape(blocks, rows)
    slots = fewest_slots(counts, lanes)
    share = -(-counts // slots)
    end = share.cumsum(1)
    begin = end - share
    columns, values = np.full((blocks, lanes, slots), -1, np.int32), np.zeros((blocks, lanes, slots), np.float32)
    order = np.lexsort((column % (BANKS // width), row))  # a row's lanes get weights of every bank alike
    row, column = row[order], column[order]
    place = np.arange(len(row)) - (np.cumsum(counts) - counts.flatten())[row]
    lane, slot = begin.flatten()[row] + place % share.flatten()[row], place // share.flatten()[row]
    columns[row // rows, lane, slot], values[row // rows, lane, slot] = column, weight[row, column]
    together = BANKS // width
    groups = columns.reshape(-1, together, slots), values.reshape(-1, together, slots)
    for found in zip(*groups, strict=True):
        spread_over_banks(*found, together, min(together, weight.shape[1]))
    return Dealt(
        np.ascontiguousarray(values.transpose(0, 2, 1)),
        np.ascontiguousarray(columns.transpose(0, 2, 1)),
        np.stack([begin, end], 2).astype(np.int32),
    )


def fewest_slots(counts, lanes):
    """The least even number of slots with which every block's rows [P, R] fit its lanes."""
    if (counts > 0).sum(1).max() > lanes:
        raise ValueError(f"{(counts > 0).sum(1).max()} rows for {lanes} lanes")
    slots = max(2, -(-counts.max() // (2 * SPLIT)) * 2)
    while (-(-counts // slots)).sum(1).max() > lanes:
        slots += 2
    return int(slots)


@njit()
def spread_over_banks(columns, values, banks, known):
    """Reorder each lane's share, in place, so that few of a slot's lanes meet in a bank (a column's is column mod `banks`).

    columns int32, −1 where a lane has fewer, values float32 [lanes, slots]; lanes as many as are served at a time

    Slot by slot, lane by lane, those with no slot to spare first: of the banks that are still free the one which most
    of what is left wants. An empty place gets one of the first `known` columns, of a bank that is little used.
    """
    lanes, slots = columns.shape
    start, left = np.zeros((lanes, banks + 1), np.int64), np.zeros((lanes, banks), np.int64)
    given, weights, wanted, spare = columns.copy(), values.copy(), np.zeros(banks, np.int64), np.full(lanes, slots)
    for lane in range(lanes):
        for k in range(slots):
            if columns[lane, k] >= 0:
                left[lane, columns[lane, k] % banks] += 1
                spare[lane] -= 1
        for bank in range(banks):
            start[lane, bank + 1] = start[lane, bank] + left[lane, bank]
            wanted[bank] += left[lane, bank]
        filled = start[lane].copy()
        for k in range(slots):
            if columns[lane, k] >= 0:
                bank = columns[lane, k] % banks
                given[lane, filled[bank]], weights[lane, filled[bank]] = columns[lane, k], values[lane, k]
                filled[bank] += 1
    for k in range(slots):
        used, empty = np.zeros(banks, np.int64), np.full(lanes, False)
        for lane in np.argsort(spare, kind="mergesort"):
            best = -1
            for bank in range(banks):
                if left[lane, bank] and (
                    best < 0 or used[bank] < used[best] or (used[bank] == used[best] and wanted[bank] > wanted[best])
                ):
                    best = bank
            if best < 0 or (used[best] and spare[lane]):
                empty[lane] = True
                spare[lane] -= 1
                continue
            left[lane, best] -= 1
            wanted[best] -= 1
            used[best] += 1
            at = start[lane, best] + left[lane, best]
            columns[lane, k], values[lane, k] = given[lane, at], weights[lane, at]
        for lane in range(lanes):
            if empty[lane]:
                best = np.argmin(used[:known])
                columns[lane, k], values[lane, k] = best, 0
                used[best] += 1
