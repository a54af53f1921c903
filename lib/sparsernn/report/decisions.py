"""Which method, when, at what cost: answered from rows by rules, so that no sentence claims more than its rows carry.

A configuration is a method with a plan; its figures are means over seeds. What is kept at most is asked for (`RUNGS`), the
configuration is chosen on validation, and only then is its test figure compared, with the dense net's and with that of the
best opponent that is no network. "Level" is a difference within chance at 95 %, and where no error is known it is said so.
"""

import math

import numpy as np
import pandas as pd

from . import intervals
from .plots.style import METRICS, OPPONENTS

RUNGS = (2, 10, 50, 1000)  # times fewer weights that somebody may ask for
REFERENCE = "dense"  # the method that leaves nothing out
EQUAL = "equal quality"
MEANS = ("valid", "test", "compression", "weights_kept", "size_bytes", "size_bytes_dense", "train_seconds", "epochs")
KEYS = ["task", "model", "method", "variant"]


def configurations(rows, items):
    """Finished rows of one task's comparable models → a row a configuration, in the rows' order.

    items: data_sha256 → how many items the test of a task with an accuracy has (results/tests.csv).
    → KEYS, metric, profile, the means of MEANS (train_seconds: the median), seeds, tests and kept (a tuple, one a seed), items,
    item_low and item_high, seed_low and seed_high (`intervals`), device, data_note.
    """
    found = []
    for keys, part in rows.assign(variant=rows["variant"].fillna("")).groupby(KEYS, sort=False):
        first = part.iloc[0]
        row = dict(zip(KEYS, keys, strict=True)) | {name: part[name].astype(float).mean() for name in MEANS}
        row |= {name: first[name] for name in ("metric", "profile", "device")}
        row |= {"train_seconds": part["train_seconds"].median(), "seeds": len(part), "by_seed": tuple(part["test"])}
        row |= {"kept": tuple(part["weights_kept"]), "data_note": first["data_note"]}
        row["items"] = items.get(first["data_sha256"], math.nan) if first["metric"] == "accuracy" else math.nan
        row["item_low"], row["item_high"] = intervals.over_items(row["test"], row["items"])
        row["seed_low"], row["seed_high"] = intervals.over_seeds(row["by_seed"])
        found.append(row)
    return pd.DataFrame(found)


def sign_of(metric):
    """1 where more is better, −1 where less is."""
    return 1 if METRICS[metric][1] == "higher" else -1


def best(table):
    """The configuration that is best on validation; None of an empty table."""
    if table.empty:
        return None
    return table.iloc[int(np.argmax(sign_of(table["metric"].iloc[0]) * table["valid"].to_numpy()))]


def reference(table):
    """The dense net, under its best plan on validation; None where there is none."""
    return best(table[table["method"] == REFERENCE])


def opponent(table):
    """The best opponent on validation that is no network; None where there is none."""
    return best(table[table["method"].isin(OPPONENTS)])


def against(one, other):
    """better | level | worse on test, at 95 %; where no error is known "ahead" or "behind", which claims no more than that."""
    p = intervals.p_value(one["by_seed"], other["by_seed"], one["items"])
    ahead = sign_of(one["metric"]) * (one["test"] - other["test"]) > 0
    if p != p:
        return "ahead" if ahead else "behind"
    return "level" if p >= 1 - intervals.LEVEL else "better" if ahead else "worse"


def decide(table):
    """Configurations → an answer a question: + asked (what was asked for), dense and other (`against`, "" where there is none).

    A rung asks for the best net with that many times fewer weights; `EQUAL` for the sparsest that is not worse than the dense
    one. Questions with one answer are one row; what no net here reaches has none.
    """
    nets, dense, other = table[~table["method"].isin(OPPONENTS)], reference(table), opponent(table)
    asked = [(f"≥ {rung:,}×", best(nets[nets["compression"] >= rung])) for rung in RUNGS]
    if dense is not None:
        sparse = nets[nets["compression"] >= RUNGS[0]]
        equal = sparse[[against(row, dense) not in ("worse", "behind") for _, row in sparse.iterrows()]]
        asked.append((EQUAL, None if equal.empty else equal.loc[equal["compression"].idxmax()]))
    answers = {}
    for question, row in asked:
        if row is not None:
            answers.setdefault(row.name, (row, []))[1].append(question)
    found = [
        row.to_dict()
        | {"asked": ", ".join(questions)}
        | {"dense": "" if dense is None else against(row, dense), "other": "" if other is None else against(row, other)}
        for row, questions in answers.values()
    ]
    return pd.DataFrame(found, columns=[*table.columns, "asked", "dense", "other"])
