"""What a shape of block costs in quality: the nets of a setting that stand for a shape and a share of weights left."""

import math
from pathlib import Path

import pandas as pd

from .. import records
from ..bench import BLOCKS
from ..files import project_root
from . import publish

LEFT = (1.0, 0.5, 0.3, 0.1, 0.05)  # shares of weights by which blocks are told apart
NEAR = 1.3  # times as many or as few weights, at most
SHAPES = {"unstructured": "scattered"} | {name: name.replace("x", "×") for name in BLOCKS[1:]}  # as timed → as written


def standing(table):
    """Of each shape, and of dense nets that were small from the start, the row that stands for a share of weights left, the
    nearest in weights: the rows with `left` and `shape`.

    table: rows of one setting, that is of one task and of models that count against the same dense net.
    """
    table = table.assign(shape=[publish.shape_of(row) for row in table.to_dict("records")])
    whole, found = table[(table["method"] == "dense") & (table["compression"] == 1)], []
    table = table[table["shape"].isin([*SHAPES.values(), "dense"]) & (table["compression"] >= 1)]
    table = table[(table["shape"] == "dense") | table["model"].isin(whole["model"])]
    for left in LEFT:
        off = (table["compression"] * left).map(math.log).abs()
        for _, part in table[off <= math.log(NEAR)].groupby("shape"):
            found.append(table.loc[[off[part.index].idxmin()]].assign(left=left))
    return pd.concat(found) if found else table.iloc[:0].assign(left=())


def with_quality(cut, results=None, task="pydocs-char", model="bayes-512", profile="short"):
    """Rows of `timings.in_blocks` with the test's figure, by what the metric is called, of the net of a task that was pruned in
    the same shape to the same share, and beside it of the dense net with as many weights; none where no net stands for it."""
    rows = records.read(Path(results or project_root() / "results") / f"{profile}.csv")
    setting = {name: part for which, name, _, part in publish.families(rows) if which == task}[model]
    stand = standing(setting[setting["test"].notna()])
    (metric,) = stand["metric"].unique()
    of, places = stand.set_index(["shape", "left"])["test"], cut["pattern"].map(SHAPES)
    columns = {metric: places, f"{metric}_small_dense": places.where(places.isna(), "dense")}
    found = [
        pd.Series([of.get(place) for place in zip(shape, cut["density"], strict=True)], cut.index, float, name)
        for name, shape in columns.items()
    ]
    first = ["layer", "pattern", "density"]
    return pd.concat([cut[first], *found, cut.drop(columns=first)], axis=1)
