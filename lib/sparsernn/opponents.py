"""Opponents that are no network: a back-off n-gram model, counted and recorded like a run."""

import json
import time

from . import tasks
from .config import runs_root
from .files import replacing
from .records import where_and_with
from .tasks.ngram import BackOff

ORDERS = range(2, 8)


def back_off_directory(task, profile, order):
    """Where its record goes: beside the runs of the task."""
    return runs_root() / task / f"{order}-gram" / "back-off" / f"{profile}-s0"


def count_back_off(task, profile, order):
    """Count the training split of a language model's task, predict valid and test, write record.json → its record.

    `weights_kept` is the number of stored n-grams. Raises ValueError for an order outside 2 … 7, and where grams of it
    over this vocabulary are no 63-bit numbers (words: above 4).
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order}; n-grams of order {ORDERS.start} to {ORDERS.stop - 1} are counted")
    directory, data = back_off_directory(task, profile, order), tasks.load(task, profile)
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
    with replacing(directory / "record.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return record
