"""Rows that outlive their run: one record a run, upserted into `results/<profile>.csv`; rows made elsewhere stay."""

import fcntl
import platform
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .files import project_root, replacing
from .nets.masks import CONSTANT, gate_states

KEY = ("task", "model", "method", "variant", "profile", "seed")
FIELDS = (
    *KEY, "cell", "schedule", "metric", "valid", "test", "tests", "epoch_selected", "weights_total", "weights_kept",
    "weights_stored", "compression", "vocabulary_kept", "input_kept", "hidden_kept", "gates_total", "gates_live",
    "gates_live_closed", "gates_constant", "size_bytes", "size_bytes_dense", "compact_error", "metric_difference", "epochs",
    "steps", "train_seconds", "device", "data_sha256", "data_note", "torch", "commit",
)  # fmt: skip
MISTAKES = "mistakes.npz"  # beside a record: `study.evaluation.mistakes`

TIMING_KEY = ("task", "model", "method", "variant", "seed", "engine", "device", "threads", "dtype", "batch", "steps", "input",
              "hidden", "density", "pattern", "opponent")  # fmt: skip
TIMING_FIELDS = (*TIMING_KEY[:-1], "median_ms", "iqr_ms", "best_ms", "error", "opponent", "opponent_ms", "speedup",
                 "floor_ms", "floor_note", "torch", "commit")  # fmt: skip


def run_key(record):
    """`task/model/method/profile-s0[-variant]`: a run's place under runs/ and results/runs/."""
    leaf = f"{record['profile']}-s{record['seed']}" + (f"-{record['variant']}" if record["variant"] else "")
    return f"{record['task']}/{record['model']}/{record['method']}/{leaf}"


def joined(values):
    """Per-layer values as one field: [7, 12] → "7-12"; no layer → empty."""
    return "-".join(str(value) for value in values)


def named(values):
    """Several metrics as one field: {"noisy": 0.125, "unseen": 0.2} → "noisy=0.125,unseen=0.2"."""
    return ",".join(f"{name}={value!r}" for name, value in values.items())


def save_counts(arrays, path):
    """Name → small whole numbers [N], into one compressed file; the same numbers give the same bytes."""
    smallest = {name: array.astype(np.min_scalar_type(array.max())) for name, array in arrays.items()}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **smallest)


def read_counts(path):
    """Name → int64 [N] of a file of `save_counts`; None where there is no such file."""
    if not Path(path).exists():
        return None
    with np.load(path) as file:
        return {name: file[name].astype(np.int64) for name in file}


def constant_gates(closed):
    """Constant gates per type over all layers: "i3.f10.g1.o6"; empty where there is no recurrent layer."""
    counts = {}
    for letters, states in gate_states(closed).values():
        for letter, row in zip(letters, states, strict=True):
            counts[letter] = counts.get(letter, 0) + row.count(CONSTANT)
    return ".".join(f"{letter}{count}" for letter, count in counts.items())


def count_fields(count, closed, total):
    """The counting fields of a record, from `paper_count(masks)`, `closed_count(closed)` and the dense equivalent's weights."""
    return {
        "weights_total": total,
        "weights_kept": count.weights_kept,
        "compression": total / count.weights_kept if count.weights_kept else float("inf"),
        "vocabulary_kept": count.vocabulary_kept,
        "input_kept": count.input_kept,
        "hidden_kept": joined(count.hidden_kept),
        "gates_total": joined(count.gates_total),
        "gates_live": joined(count.gates_live),
        "weights_stored": closed.weights_kept,
        "gates_live_closed": joined(closed.gates_live),
    }


def device_name(device="cpu"):
    """`cpu:<model name>` or `cuda:<name>`."""
    if torch.device(device).type == "cuda":
        return "cuda:" + torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return "cpu:" + name


def commit():
    """The commit the code stands at, `+` if the tree differs from it; empty outside a repository."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=project_root(), capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "lib", "notebooks", "environment.yml")
        return git("rev-parse", "--short=12", "HEAD").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def where_and_with(device="cpu"):
    return {"device": device_name(device), "torch": torch.__version__, "commit": commit()}


def read(path):
    """The rows of a results table, every field as text but numbers as numbers; empty if there is no such file."""
    text = dict.fromkeys(
        ("tests", "hidden_kept", "gates_total", "gates_live", "gates_live_closed", "gates_constant", "variant"), str
    )
    if not Path(path).exists():
        return pd.DataFrame(columns=FIELDS)
    return pd.read_csv(
        path, dtype=text, keep_default_na=False, na_values={name: [""] for name in FIELDS if name not in text}
    )


def upsert(records, path):
    """Put records into the table at `path`: same key replaces, all other rows stay. Atomic, one writer at a time."""
    _upsert(records, path, FIELDS, key_of, read)


def upsert_timings(rows, path):
    """The same for timing rows, whose key is everything but what was measured. Every row needs its `error`."""
    if silent := [row for row in rows if row.get("error") is None]:
        raise ValueError(f"{len(silent)} timing rows have no error against the oracle, the first: {silent[0]}")
    _upsert(rows, path, TIMING_FIELDS, timing_key, read_timings)


def timing_key(row):
    """What identifies a timing row, as texts."""
    return tuple(_text(row.get(name)) for name in TIMING_KEY)


def read_table(path):
    """A table a run left. "None", "null" and "nan" are words there; only an empty field is missing."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def read_timings(path):
    return pd.read_csv(path) if Path(path).exists() else pd.DataFrame(columns=TIMING_FIELDS)


def _upsert(new, path, fields, key, load):
    path = Path(path)
    unknown = {name for row in new for name in row} - set(fields)
    if unknown:
        raise ValueError(f"no such field: {', '.join(sorted(unknown))}; fields: {', '.join(fields)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {key(row): row for row in load(path).to_dict("records")} | {key(row): row for row in new}
        with replacing(path) as temporary:
            pd.DataFrame([rows[k] for k in sorted(rows)], columns=fields).to_csv(temporary, index=False)


def _text(value):
    """A key's part, the same from memory and from a CSV: 64 and 64.0 and "64" agree, None and NaN are empty."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def key_of(row):
    """What identifies a record, as texts."""
    return tuple(_text(row.get(name)) for name in KEY)


def duplicates(table):
    """Keys that occur more than once in a table (there should be none)."""
    return [key for key, times in Counter(map(tuple, table[list(KEY)].astype(str).values)).items() if times > 1]
