"""python -m sparsernn.report.noise: the experiment of `study.noise`, its tracked table and its figure; a quarter of an hour."""

import sys

import pandas as pd

from .. import records, tasks
from ..files import project_root, replacing
from ..study.noise import NOISE, train
from . import plots
from .publish import drawn_from

if __name__ == "__main__":
    steps, tables = 2000, []
    for way in NOISE:
        tables.append(train(tasks.load("pydocs-char", "quick"), way, 0, steps))
        sys.stdout.write(f"{way}: {tables[-1].iloc[-1].to_dict()}\n")
    table = pd.concat(tables)
    with replacing(project_root() / "results" / "noise.csv") as temporary:
        table.to_csv(temporary, index=False)
    rows = pd.DataFrame({"commit": [records.commit()]})
    drawn_from(plots.noise_curves(table), project_root() / "figures" / "noise.png", rows, "results/noise.csv")
