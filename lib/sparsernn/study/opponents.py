"""Opponents that are no network: a back-off n-gram model, counted and recorded like a run."""

from __future__ import annotations

import time

import numpy as np

from .. import tasks
from ..files import replacing
from ..records import MISTAKES, save_counts, where_and_with, written
from ..tasks.base import LanguageTask
from .config import runs_root

ORDERS = range(2, 8)


def back_off_directory(task, profile, order):
    """Where its record goes: beside the runs of the task."""
    return runs_root() / task / f"{order}-gram" / "back-off" / f"{profile}-s0"


def count_back_off(task, profile, order):
    """Count the training split of a language model's task, predict valid and test, write record.json → its record.

    `weights_kept` is the number of stored n-grams; what the test costs piece by piece stands beside it. Raises ValueError for
    an order outside 2 … 7, and where grams of it over this vocabulary are no 63-bit numbers (words: above 4).
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order}; n-grams of order {ORDERS.start} to {ORDERS.stop - 1} are counted")
    directory, data = back_off_directory(task, profile, order), tasks.load(task, profile)
    if not isinstance(data, LanguageTask):
        raise ValueError(
            f"{task!r} is no language model's task; n-grams are counted where the next symbol is predicted"
        )
    start = time.perf_counter()
    model = BackOff(order).fit(data.splits["train"]["ids"], len(data.vocabulary))
    bits = {split: model.bits(data.splits[split]["ids"]) for split in ("valid", "test")}
    quality = {split: data.metric_of(float(values.sum()), len(values)) for split, values in bits.items()}
    record = {
        "task": task,
        "model": f"{order}-gram",
        "method": "back-off",
        "variant": "",
        "profile": profile,
        "seed": 0,
    }
    record |= {"schedule": "counted", "metric": data.metric} | quality | {"weights_kept": model.n_counts}
    record |= {"train_seconds": round(time.perf_counter() - start, 3), "data_sha256": data.data_sha256}
    record |= {"data_note": data.data_note} | where_and_with()
    directory.mkdir(parents=True, exist_ok=True)
    errors, of = data.in_pieces(data.predicted(bits["test"]))
    save_counts({"test.errors": errors, "test.of": of}, directory / MISTAKES)
    with replacing(directory / "record.json") as temporary:
        temporary.write_text(written(record))
    return record


class BackOff:
    """Interpolated Kneser-Ney n-gram model over integer ids (Chen & Goodman 1999, section 2.7, absolute discounting).

        p_k(w | c) = (max(n(c w) - D_k, 0) + D_k · types(c) · p_{k-1}(w | c without its first symbol)) / n(c)
        D_k = n1 / (n1 + 2 n2), from the k-grams counted once and twice;  p_0 = 1 / V

    n counts occurrences for the highest order; below it, the different symbols seen before the gram (continuation
    counts). A context never seen leaves p_{k-1} as it is.

    order   longest gram: order 5 predicts from four symbols
    """

    def __init__(self, order: int = 4):
        if order < 1:
            raise ValueError(f"order is {order}, must be at least 1")
        self.order = order

    def fit(self, ids: np.ndarray, vocabulary_size: int) -> BackOff:
        """Count `ids` int [N], each in [0, vocabulary_size).

        Raises ValueError where N < order, ids are out of range, or grams do not fit 63 bits.
        """
        ids = np.asarray(ids).astype(np.int64)
        if len(ids) < self.order:
            raise ValueError(f"{len(ids)} ids are too few to count grams of order {self.order}")
        if vocabulary_size**self.order >= 2**63:
            raise ValueError(f"grams of order {self.order} over {vocabulary_size} symbols exceed 63 bits; lower order")
        self.vocabulary_size = vocabulary_size
        self._check(ids)
        grams, counts = np.unique(self._keys(ids, self.order), return_counts=True)
        tables = [_Table(grams, counts, vocabulary_size)]
        for k in range(self.order - 1, 0, -1):
            grams, counts = np.unique(grams % vocabulary_size**k, return_counts=True)
            tables.append(_Table(grams, counts, vocabulary_size))
        self.tables = tables[::-1]  # tables[k - 1] holds the k-grams
        return self

    @property
    def n_counts(self) -> int:
        """Stored n-grams of all orders."""
        return sum(len(table.grams) for table in self.tables)

    def bits(self, ids: np.ndarray) -> np.ndarray:
        """-log2 p of every symbol, float64 [N]; the first ones are predicted from the shorter contexts there are."""
        ids = np.asarray(ids).astype(np.int64)
        self._check(ids)
        p = np.full(len(ids), 1 / self.vocabulary_size)
        for k, table in enumerate(self.tables, start=1):
            if len(ids) >= k:
                p[k - 1 :] = table.interpolate(self._keys(ids, k), p[k - 1 :])
        return -np.log2(p)

    def _keys(self, ids: np.ndarray, k: int) -> np.ndarray:
        """The k-grams of a sequence as numbers in base V, int64 [N - k + 1]; the last symbol is the last digit."""
        keys = np.zeros(len(ids) - k + 1, dtype=np.int64)
        for i in range(k):
            keys = keys * self.vocabulary_size + ids[i : i + len(keys)]
        return keys

    def _check(self, ids: np.ndarray) -> None:
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocabulary_size):
            raise ValueError(f"ids are in [{ids.min()}, {ids.max()}], must be in [0, {self.vocabulary_size})")


class _Table:
    """Counts of the grams of one order, sorted, and of their contexts (the gram without its last symbol)."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, vocabulary_size: int):
        self.grams, self.counts, self.vocabulary_size = grams, counts, vocabulary_size
        self.contexts, starts, self.types = np.unique(grams // vocabulary_size, return_index=True, return_counts=True)
        self.totals = np.add.reduceat(counts, starts)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / (once + 2 * twice) if once else 0.5  # nothing seen once: keep something for the unseen

    def interpolate(self, keys: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p of the grams `keys`, given the lower order's p of their last symbols; both [N]."""
        count = _look_up(self.grams, self.counts, keys)
        total = _look_up(self.contexts, self.totals, keys // self.vocabulary_size)
        types = _look_up(self.contexts, self.types, keys // self.vocabulary_size)
        seen = np.maximum(count - self.discount, 0) + self.discount * types * lower
        return np.where(total > 0, seen / np.maximum(total, 1), lower)


def _look_up(sorted_keys: np.ndarray, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """values[i] where sorted_keys[i] == key, else 0."""
    at = np.searchsorted(sorted_keys, keys).clip(max=len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == keys, values[at], 0)
