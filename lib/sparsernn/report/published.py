"""What the papers' authors published of their own runs: results/published.csv.

A row is an epoch of a run (none given: its end). `model`: the preset that is theirs (none: the task's first); `variant`: the
options that differ from the method's own, as in a row of ours.
"""

from pathlib import Path

import pandas as pd

from .. import records
from ..study.presets import PRESETS

EMPTY = ("task", "method", "epoch", "valid", "test", "compression")


def read(results, *tasks):
    """The rows of tasks (none: of all), models and variants filled in; empty where there are none."""
    path = Path(results) / "published.csv"
    texts = {"model": str, "variant": str}
    table = pd.read_csv(path, dtype=texts, **records.EXACTLY) if path.exists() else pd.DataFrame(columns=EMPTY)
    first = table["task"].map(lambda task: next(iter(PRESETS.get(task, [""]))))
    table["model"] = table["model"].fillna(first) if "model" in table else first
    table["variant"] = table["variant"].fillna("") if "variant" in table else ""
    return table[table["task"].isin(tasks)] if tasks else table


def of_family(results, task, model):
    """Those of a model and of what is compared with it (`Preset.equivalent`)."""
    table, presets = read(results, task), PRESETS.get(task, {})
    stands = {name: one.equivalent or name for name, one in presets.items()}
    return table[table["model"].map(lambda name: stands.get(name, name)) == stands.get(model, model)]


def beside(table, row):
    """Of these rows those of a row's model and method, and of its options where theirs name any; epoch by epoch."""
    part = table[(table["model"] == row["model"]) & (table["method"] == row["method"])]
    named = {name for variant in part["variant"] for name in records.entries(variant)}
    ours = {name: value for name, value in records.entries(row["variant"]).items() if name in named}
    alike = part["variant"].map(lambda variant: records.entries(variant) == ours).astype(bool)
    return part[alike].sort_values("epoch")
