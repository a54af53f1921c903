"""What a run will need of a cluster, minutes and memory, from what was measured.

Minutes: the longest epoch measured on the same task, model and method (where there is none: with another method), times the
run's epochs, times 3 for a slower processor, validation and drawing, and 10 to start. What was never measured, under
whatever profile, asks for four hours. Memory: half more than a finished run of the same task and model took here (snakemake's
benchmark.tsv beside its record), else 2,500 MB and 64 bytes for each parameter of the dense model: value, gradient, two
moments and best epoch, each for the noise too, and what a step adds. Both are guesses on the safe side: a run that was
stopped by one is asked for again with twice as much, and goes on where it stood.
"""

import math

import pandas as pd

from .. import records
from ..files import project_root
from .config import runs_root

START, SPARE, UNKNOWN = 10, 3.0, 4 * 60  # minutes; times; minutes
MEMORY, BYTES, MORE = 2500, 64, 1.5  # MB; a parameter; times
UNMEASURED = 8000  # MB, for a model whose parameters no record counts


class Forecast:
    """Minutes and megabytes of runs, from the tracked rows (results/) and the finished runs under the runs directory.

    rows      records (dicts), of which task, model, method, epochs, train_seconds and size_bytes_dense are read
    peaks     (task, model) → megabytes of memory a run of it took
    """

    def __init__(self, rows, peaks):
        self.rows, self.peaks = rows, peaks

    @classmethod
    def gather(cls):
        rows = [row for path in sorted(project_root().glob("results/*.csv")) for row in _rows(path)]
        peaks = {}
        for path in sorted(runs_root().glob("*/*/*/*/record.json")):
            try:
                record = records.read_record(path)
            except ValueError:  # the run itself refuses it, by name
                continue
            rows.append(record)
            measured = path.with_name("benchmark.tsv")
            if measured.exists():
                peak = _peak(measured)
                key = record["task"], record["model"]
                peaks[key] = max(peaks.get(key, 0), peak)
        return cls(rows, peaks)

    def minutes(self, config):
        """Whole minutes."""
        trained = [row for row in self._of(config) if _number(row, "epochs") > 0 and _number(row, "train_seconds") > 0]
        same = [row for row in trained if row["method"] == config.method] or trained
        epochs = [row["train_seconds"] / row["epochs"] for row in same]
        if not epochs:
            return UNKNOWN
        return START + math.ceil(SPARE * max(epochs) * config.plan.epochs / 60)

    def memory_mb(self, config):
        if peak := self.peaks.get((config.task, config.model)):
            return math.ceil(MORE * peak)
        sizes = [_number(row, "size_bytes_dense") for row in self._of(config)]
        parameters = max(sizes, default=0) / 4  # a record counts them in fp32
        return MEMORY + math.ceil(BYTES * parameters / 2**20) if parameters else UNMEASURED

    def _of(self, config):
        return [row for row in self.rows if (row["task"], row["model"]) == (config.task, config.model)]


def _peak(path):
    """Megabytes, from a benchmark.tsv of snakemake's; 0 where it is half a file, or the job was too short to be looked at."""
    try:
        peak = pd.read_csv(path, sep="\t", na_values="-")["max_rss"].max()
    except (KeyError, ValueError):
        return 0
    return 0 if math.isnan(peak) else peak


def _rows(path):
    """The rows of a table of records; none of another kind of table."""
    ours = {*records.KEY, "train_seconds"} <= set(pd.read_csv(path, nrows=0).columns)
    return records.read(path).to_dict("records") if ours else []


def _number(row, name):
    value = row.get(name)
    return 0 if value is None or value != value else value
