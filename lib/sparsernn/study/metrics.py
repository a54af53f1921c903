"""metrics.csv of a run, a row an epoch: replaced whole after every one, and held to what the checkpoint says of it."""

import csv
import hashlib
import io
from pathlib import Path

import pandas as pd

from ..files import replacing
from ..records import EXACTLY

TEXTS = {"phase": str, "hidden_kept": str, "gates_live": str}
GO_ON = "put a sound copy of it back, or remove the run's directory to train anew"


def read_metrics(path):
    """metrics.csv → DataFrame, every number as it was written. Raises ValueError, naming the file, where it is no such table."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; {GO_ON}") from None
    return _parsed(path, content)


class Metrics:
    """The rows of a run so far."""

    def __init__(self, path):
        self.path, self.rows = path, []

    def add(self, *rows):
        """More rows, on disk → what a checkpoint says of the file: {"rows", "sha256"}."""
        self.rows += rows
        content = pd.DataFrame(self.rows).to_csv(index=False).encode()
        self._write(content)
        return {"rows": len(self.rows), "sha256": hashlib.sha256(content).hexdigest()}

    def take_up(self, session, said):
        """The rows up to a `Session`'s epoch; what came after its checkpoint happens again.

        said: what the checkpoint says of them, None of one that says nothing. Raises ValueError, naming the file.
        """
        table = read_metrics(self.path)
        content = self.path.read_bytes()
        rows = int((table["epoch"] <= session.epoch).sum()) if said is None else said["rows"]
        kept = b"".join(content.splitlines(keepends=True)[: 1 + rows])
        if said is not None and hashlib.sha256(kept).hexdigest() != said["sha256"]:
            raise ValueError(
                f"{self.path}: its first {rows} rows are not those the checkpoint was written with; {GO_ON}"
            )
        table = table.iloc[:rows]
        if not rows or table["epoch"].iloc[-1] != session.epoch:
            raise ValueError(
                f"{self.path}: there is no row of epoch {session.epoch}, where the checkpoint stands; {GO_ON}"
            )
        self.rows = table.to_dict("records")
        if kept != content:
            self._write(kept)

    def _write(self, content):
        with replacing(self.path) as temporary:
            temporary.write_bytes(content)


def _parsed(path, content):
    try:
        lines = list(csv.reader(io.StringIO(content.decode()), strict=True))
        if not content.endswith(b"\n") or any(len(line) != len(lines[0]) for line in lines):
            raise ValueError("a line of it is cut, or has another number of fields than the first")
        if missing := [name for name in ("epoch", "valid") if name not in lines[0]]:
            raise ValueError(f"column {missing[0]} is missing")
        types = {name: kind for name, kind in TEXTS.items() if name in lines[0]}
        table = pd.read_csv(io.BytesIO(content), dtype=types, **EXACTLY)
        for name in ("epoch", "valid"):
            if not pd.api.types.is_numeric_dtype(table[name]) or table[name].isna().any():
                raise ValueError(f"column {name} holds what is no number")
        if (
            (table["epoch"] % 1 != 0).any()
            or not table["epoch"].is_monotonic_increasing
            or table["epoch"].duplicated().any()
        ):
            raise ValueError("its epochs are not one after the other")
    except (ValueError, csv.Error, OverflowError) as problem:  # those of pandas and of text are ValueErrors
        raise ValueError(f"{path}: {problem!s:.200}; {GO_ON}") from problem
    return table
