"""What a task's test says of the tracked small nets through each engine: int8 rounds, so its speed has a price, said here.

python -m sparsernn.bench.quality [task or runs …]   (`ptb-word/*/sparse-*`; all tasks whose corpus is the one of a record)

A net whose file is too large to be tracked is read in the runs directory, where it is still there.

Rows go to results/engines.csv, a net at a time; what is there already, of the same file of weights, is skipped. Where a run is
older than the file of what it got wrong (mistakes.npz), that is written too, if it adds up to the recorded figure.
"""

import argparse
import hashlib
import sys
from contextlib import suppress
from fnmatch import fnmatch

import torch

from .. import records, tasks
from ..engines import available, is_dense
from ..engines.base import Unsupported
from ..engines.whole import by_engine, saturated
from ..files import clear, project_root
from ..nets.file import load
from ..nets.reach import calibrate
from ..nets.small import Kept
from ..study.config import RunConfig, runs_root
from ..study.evaluation import evaluate, examine, example_of, examples_of, mistakes

ROUNDING = 1e-6  # of a figure that was added up in another order, in float32
STEPPED = ("compact-loop", "csr-torch")  # a call of torch for every step: nobody's choice, and slow over a whole test


def engines():
    """Names of the CPU's engines that run what is left of a net, but STEPPED."""
    return [name for name in available("cpu") if not is_dense(name) and name not in STEPPED]


def digest(path):
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(record, path, task, names):
    """A row for each engine that runs the compact model at `path`, with the metric over the whole test through it."""
    small, plan = load(path), RunConfig.of_row(record).plan
    common = {name: record[name] for name in (*records.KEY, "metric", "test", "data_sha256")}
    common |= {"file_sha256": digest(path)} | records.where_and_with("cpu")
    said = any(module.reach for module in small.modules() if isinstance(module, Kept))
    if not said:  # a file older than what it would say of how far numbers go
        calibrate(small, examples_of(task, plan))
    for name in names:
        with suppress(Unsupported):
            by = by_engine(small, name, example_of(task, plan))
            through = evaluate(by, task, "test", plan)
            row = common | {"engine": name, "through": through, "change": through - record["test"]}
            yield row | {"saturated": saturated(by)}


def keep_mistakes(record, path, task, folder):
    """Write into a folder what the compact model at `path` gets wrong in the test. Raises ValueError where its record says
    another figure."""
    counts = mistakes(examine(load(path), task, RunConfig.of_row(record).plan), task)
    if not counts:
        return
    errors, of = counts["test.errors"].sum(), counts["test.of"].sum()
    found = task.metric_of(errors if task.better == "lower" else of - errors, of)
    if abs(found - record["test"]) > ROUNDING * max(1, abs(found)):
        raise ValueError(f"{path}: its test says {found}, its record {record['test']}")
    records.save_counts(counts, folder / records.MISTAKES)


def model_of(record, folder):
    """The file of a record's compact model: in its folder, or of the same run in the runs directory; None for neither."""
    path = folder / "model.safetensors"
    if path.exists():
        return path
    path = runs_root() / records.run_key(record) / "model.safetensors"
    same = path.exists() and records.read_record(path.with_name("record.json"))["test"] == record["test"]
    return path if same else None


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument(
        "wanted", nargs="*", help=f"of {', '.join(tasks.names())}, or patterns of runs; all if not given"
    )
    given, results = parser.parse_args(arguments), project_root() / "results"
    clear(results)
    torch.set_num_threads(1)
    loaded, table = {}, results / "engines.csv"
    for place in sorted(results.glob("runs/*/*/*/*/record.json")):
        record = records.read_record(place)
        named = record["task"], records.run_key(record)
        if given.wanted and not any(fnmatch(name, one) for one in given.wanted for name in named):
            continue
        path = model_of(record, place.parent)
        if path is None or record["task"] not in tasks.names():
            continue
        there = records.read_engines(table)
        there = there[(there["file_sha256"] == digest(path)) & there["saturated"].notna()]
        names = [name for name in engines() if name not in set(there["engine"])]
        counted = place.with_name(records.MISTAKES).exists()
        if not names and counted:
            continue
        key = record["task"], record["profile"]
        if key not in loaded:
            loaded[key] = tasks.load(*key)
        if loaded[key].data_sha256 != record["data_sha256"]:
            sys.stdout.write(f"{records.run_key(record)}: made from other data, left out\n")
            continue
        if not counted:
            keep_mistakes(record, path, loaded[key], place.parent)
        rows = list(rows_of(record, path, loaded[key], names))
        if not rows:  # none runs it, a list of words for example
            continue
        records.upsert_engines(rows, table)
        said = ", ".join(f"{row['engine']} {row['change']:+.2g}" for row in rows)
        sys.stdout.write(f"{records.run_key(record)}: {record['metric']} {record['test']:.4f}; {said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
