"""Rows that outlive their run: one record a run, upserted into `results/<profile>.csv`; rows made elsewhere stay.

A table that is not as it was written (another header, a line cut short, a word for a number, a key twice) is refused rather
than written anew without what could not be read; a record likewise, and one whose names would lead out of its folder.
"""

import csv
import fcntl
import io
import json
import math
import platform
import subprocess
from collections import Counter
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .files import clear, project_root, replacing
from .nets.masks import CONSTANT, gate_states

KEY = ("task", "model", "method", "variant", "profile", "seed")
FIELDS = (
    *KEY, "cell", "schedule", "metric", "valid", "test", "tests", "epoch_selected", "weights_total", "weights_kept",
    "weights_stored", "compression", "vocabulary_kept", "input_kept", "hidden_kept", "gates_total", "gates_live",
    "gates_live_closed", "gates_constant", "size_bytes", "size_bytes_dense", "multiply_adds", "compact_error",
    "metric_difference", "epochs", "steps", "train_seconds", "device", "data_sha256", "data_note", "torch", "commit",
)  # fmt: skip
MISTAKES = "mistakes.npz"  # beside a record: `study.evaluation.mistakes`

TEXTS = {*KEY[:5], "cell", "schedule", "metric", "tests", "hidden_kept", "gates_total", "gates_live", "gates_live_closed",
         "gates_constant", "device", "data_sha256", "data_note", "torch", "commit"}  # fmt: skip

TIMING_KEY = ("task", "model", "method", "variant", "seed", "engine", "device", "threads", "dtype", "batch", "steps", "input",
              "hidden", "density", "pattern", "opponent")  # fmt: skip
TIMING_FIELDS = (*TIMING_KEY[:-1], "median_ms", "iqr_ms", "best_ms", "error", "opponent", "opponent_ms", "speedup",
                 "floor_ms", "floor_note", "torch", "commit")  # fmt: skip
TIMING_TEXTS = {"task", "model", "method", "variant", "engine", "device", "dtype", "pattern", "opponent", "floor_note",
                "torch", "commit"}  # fmt: skip

ENGINE_KEY = (*KEY, "engine", "device")
ENGINE_FIELDS = (*ENGINE_KEY, "metric", "test", "through", "change", "saturated", "data_sha256", "file_sha256",
                 "torch", "commit")  # fmt: skip
ENGINE_TEXTS = {*ENGINE_FIELDS} - {"seed", "test", "through", "change", "saturated"}

GOAL_KEY = ("device", "measured", "ours", "against")
GOAL_FIELDS = (*GOAL_KEY, "opponent", "ms", "opponent_ms", "ratio", "more_us", "goal", "met", "error", "opponent_error",
               "threads", "torch", "numba", "compiler", "commit")  # fmt: skip
GOAL_TEXTS = {*GOAL_KEY, "opponent", "met", "torch", "numba", "compiler", "commit"}


def run_key(record):
    """`task/model/method/profile-s0[-variant]`: a run's place under runs/ and results/runs/.

    Raises ValueError for a name that is empty or would lead elsewhere, and for a seed that is no whole number.
    """
    for name in KEY[:5]:
        value = record.get(name)
        empty = name == "variant" and value == ""
        if (
            not isinstance(value, str)
            or not (empty or value and value[0] != "." and value.isprintable())
            or {*"/\\"} & {*value}
        ):
            raise ValueError(f"{name} is {value!r:.80}; expected a name: no folder in it, no dot in front")
    if not _is_whole(record.get("seed")) or record["seed"] < 0:
        raise ValueError(f"seed is {record.get('seed')!r:.80}; expected a whole number from 0 on")
    leaf = f"{record['profile']}-s{int(record['seed'])}" + (f"-{record['variant']}" if record["variant"] else "")
    return f"{record['task']}/{record['model']}/{record['method']}/{leaf}"


def entries(variant):
    """Name → value, as texts, of what a row's variant says: `kl_weight=2,lr=0.001`; empty of none."""
    return dict(entry.split("=", 1) for entry in str(variant or "").split(",") if "=" in entry)


def joined(values):
    """Per-layer values as one field: [7, 12] → "7-12"; no layer → empty."""
    return "-".join(str(value) for value in values)


def named(values):
    """Several metrics as one field: {"noisy": 0.125, "unseen": 0.2} → "noisy=0.125,unseen=0.2"."""
    return ",".join(f"{name}={value!r}" for name, value in values.items())


def numbers_of(text):
    """What `named` wrote → name → number; nothing of an empty field."""
    return {name: float(value) for name, value in (part.split("=") for part in (text or "").split(",") if part)}


def save_counts(arrays, path):
    """Name → numbers [N], whole ones as small as they are, into one compressed file; the same numbers give the same bytes."""
    smallest = {
        name: array if array.dtype.kind == "f" else array.astype(np.min_scalar_type(array.max()))
        for name, array in arrays.items()
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **smallest)


def read_counts(path):
    """Name → int64 or float64 [N] of a file of `save_counts`; None where there is no such file."""
    if not Path(path).exists():
        return None
    with np.load(path) as file:
        return {name: file[name].astype(np.float64 if file[name].dtype.kind == "f" else np.int64) for name in file}


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
    """The rows of a results table, texts as texts and numbers as numbers; empty if there is no such file.

    Raises ValueError, naming the file, for one that is no such table, or not whole.
    """
    table = _table(path, FIELDS, TEXTS, key_of)
    for row in table[list(KEY)].to_dict("records"):
        try:
            run_key(row)
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None
    return table


def written(record):
    """A record as the text of its file. Raises ValueError for a quality that is no finite number, and for any NaN."""
    for name, value in record.items():
        if isinstance(value, float) and (math.isnan(value) or (name in ("valid", "test") and math.isinf(value))):
            metric = f" ({record.get('metric')})" if name in ("valid", "test") else ""
            raise ValueError(f"{name}{metric} is {value}; a record holds finite numbers: lower lr, or set clip")
    return json.dumps(record, indent=1) + "\n"


def read_record(path):
    """A run's record. Raises ValueError, naming the file, where it is none: other fields, texts for numbers, NaN."""
    try:
        record = json.loads(Path(path).read_text())
        if not isinstance(record, dict):
            raise ValueError(f"{record!r:.80} is no record: expected fields and values")
        if unknown := record.keys() - {*FIELDS}:
            raise ValueError(f"no such field: {', '.join(sorted(unknown))!r:.80}; fields: {', '.join(FIELDS)}")
        if missing := [name for name in (*KEY, "metric", "valid", "test", "data_sha256") if name not in record]:
            raise ValueError(f"{missing[0]} is missing")
        for name, value in record.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and (not isinstance(value, str) if name in TEXTS else not number):
                raise ValueError(f"{name} is {value!r:.80}; expected a {'text' if name in TEXTS else 'number'}")
        run_key(record), written(record)
    except (OSError, ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: {problem!s:.300}") from problem
    return record


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


def read_table(path, texts=()):
    """A table a run left. "None", "null" and "nan" are words there; only an empty field is missing.

    texts: columns that are read as texts, whatever stands there. Raises ValueError, naming the file, for one that is not whole.
    """
    return _parsed(path, {name: str for name in texts})


def read_timings(path):
    """The rows of a timings table, as `read`."""
    return _table(path, TIMING_FIELDS, TIMING_TEXTS, timing_key)


def read_engines(path):
    """The rows of a table of what tests say through engines (`bench.quality`), as `read`."""
    return _table(path, ENGINE_FIELDS, ENGINE_TEXTS, engine_key)


def upsert_engines(rows, path):
    """`upsert` of such rows."""
    _upsert(rows, path, ENGINE_FIELDS, engine_key, read_engines)


def read_goals(path):
    """The rows of a table of what was asked of the engines (`bench.goals`), as `read`."""
    return _table(path, GOAL_FIELDS, GOAL_TEXTS, goal_key)


def upsert_goals(rows, path):
    """`upsert` of such rows."""
    _upsert(rows, path, GOAL_FIELDS, goal_key, read_goals)


def goal_key(row):
    """What identifies such a row, as texts."""
    return tuple(_text(row.get(name)) for name in GOAL_KEY)


def engine_key(row):
    """What identifies such a row, as texts."""
    return tuple(_text(row.get(name)) for name in ENGINE_KEY)


def _table(path, fields, texts, key):
    if not Path(path).exists():
        return pd.DataFrame(columns=fields)
    table = _parsed(path, {name: str for name in fields if name in texts}, fields)
    for name in (name for name in fields if name not in texts):
        if not pd.api.types.is_numeric_dtype(table[name]):
            numbers = pd.to_numeric(table[name], errors="coerce")
            if (odd := table[name][numbers.isna() & table[name].notna()]).any():
                raise ValueError(f"{path}: {name} is {odd.iloc[0]!r:.80} in row {odd.index[0] + 1}; expected a number")
    keys = Counter(map(key, table.to_dict("records")))
    if twice := next((one for one, times in keys.items() if times > 1), None):
        raise ValueError(f"{path}: two rows are of {' '.join(twice)}; remove one, or put a sound copy of the file back")
    return table


def read_tables(paths, texts=()):
    """Tables as `read_table` reads them, a line a row, all at once and under one another; + `table`: which path a row is of."""
    contents = {}
    for number, path in enumerate(paths):
        header, content = _whole(path)
        contents.setdefault(header, []).append((number, content))
    frames = []
    for header, parts in contents.items():
        first, rows = parts[0][1], [(number, content.partition(b"\n")[2]) for number, content in parts]
        joined = first.partition(b"\n")[0] + b"\n" + b"".join(content for _, content in rows)
        numbers = [number for number, content in rows for _ in range(content.count(b"\n"))]
        frames.append(_typed(joined, header, dict.fromkeys(texts, str)).assign(table=numbers))
    if not frames:
        return pd.DataFrame({"table": []})
    return pd.concat(frames).sort_values("table", kind="stable", ignore_index=True)


def _parsed(path, texts, fields=None):
    """The rows of a CSV; `texts` (name → str) are never numbers, and empty where nothing stands."""
    header, content = _whole(path, fields)
    try:
        return _typed(content, header, texts)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem!s:.300}; put a sound copy of the file back") from problem


def exactly(read):
    """What makes `read`, pandas' `read_csv`, read numbers as they were written: from 3.1 on nothing (it warns where it is given
    `float_precision`), before that this name, without which 1/24 comes back as another number, and a key of it as another key."""
    there = read(io.StringIO(f"number\n{1 / 24!r}\n"))["number"][0]
    return {} if there == 1 / 24 else {"float_precision": "round_trip"}


EXACTLY = exactly(pd.read_csv)


def _typed(content, header, texts):
    numbers = {name: [""] for name in header if name not in texts}
    return pd.read_csv(io.BytesIO(content), dtype=texts, keep_default_na=False, na_values=numbers, **EXACTLY)


def _whole(path, fields=None):
    """Header and bytes of a CSV, every line of it whole."""
    try:
        content = Path(path).read_bytes()
        lines = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
        if not lines:
            raise ValueError("it is empty")
        if fields and lines[0] != [*fields]:
            odd = [
                *(f"{one} is missing" for one in fields if one not in lines[0]),
                *({*lines[0]} - {*fields}),
                "another order",
            ]
            raise ValueError(f"its columns are others than those of such a table ({odd[0]!s:.80})")
        for number, line in enumerate(lines, 1):
            if len(line) != len(lines[0]):
                raise ValueError(f"row {number - 1} has {len(line)} fields, the header {len(lines[0])}")
        if not content.endswith(b"\n"):
            raise ValueError("its last line is cut")
    except (OSError, ValueError, csv.Error, OverflowError) as problem:
        raise ValueError(f"{path}: {problem!s:.300}; put a sound copy of the file back") from problem
    return tuple(lines[0]), content


def _upsert(new, path, fields, key, load):
    path = Path(path)
    unknown = {name for row in new for name in row} - set(fields)
    if unknown:
        raise ValueError(f"no such field: {', '.join(sorted(unknown))}; fields: {', '.join(fields)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear(path.parent, path.name)
        rows = {key(row): row for row in load(path).to_dict("records")} | {key(row): row for row in new}
        with replacing(path) as temporary:
            pd.DataFrame([rows[k] for k in sorted(rows)], columns=fields).to_csv(temporary, index=False)
            load(temporary)  # what could not be read again is not written


def _text(value):
    """A key's part, the same from memory and from a CSV: 64 and 64.0 and "64" agree, and no two that differ; None and NaN are
    empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, str):
        return value
    return str(int(value)) if _is_whole(value) else repr(float(value))


def _is_whole(value):
    return isinstance(value, Real) and not isinstance(value, bool) and value % 1 == 0


def key_of(row):
    """What identifies a record, as texts."""
    return tuple(_text(row.get(name)) for name in KEY)


def duplicates(table):
    """Keys that occur more than once in a table (there should be none)."""
    return [key for key, times in Counter(map(tuple, table[list(KEY)].astype(str).values)).items() if times > 1]
