"""Tables of what engines take, for results/README.md: written from tracked timings, of the CPU that most were timed on."""

import pandas as pd

from ..bench import BLOCKS, SHIPPED
from . import timings, written
from .decisions import SMALL

WHOSE = {"torch": "torch's", "own": "our own"}


def _here(timed):
    return timings.most_timed(timed[timed["device"].str.startswith("cpu")])


def nets(timed):
    """How many times faster the tracked networks that were made small are than their dense net, a row a task and model."""
    cells = timings.fastest(_here(timed[timed["method"] != "shape-only"]))
    cells, rows = cells[~cells["method"].isin(SMALL)], []
    for (task, model), part in cells.groupby(["task", "model"]):
        single, most = part[part["batch"] == 1], int(part["batch"].max())
        row = {"task, model": f"{task}, {model}", "nets": written.count(len(single))}
        for over, said in (("over_fp32", "over dense fp32"), ("over_dense", "over the fastest dense")):
            row |= {f"{said}, batch {size}": _range(part.loc[part["batch"] == size, over]) for size in (1, most)}
        row["fastest at batch 1"] = ", ".join(single["engine"].value_counts().index)
        rows.append(row | {"dense at batch 1": ", ".join(single["dense"].value_counts().index)})
    return pd.DataFrame(rows)


def _range(times):
    """1.2 to 3.4×, or one figure where both are written alike."""
    if times.empty:
        return written.DASH
    low, high = written.times(times.min()), written.times(times.max())
    return low if low == high else f"{low.removesuffix('×')} to {high}"


def blocks(timed):
    """Microseconds a step in fp32 / in int8, a row a layer and share left, a column a shape of block, beside the whole layer."""
    cut = timings.in_blocks(_here(timed))
    cut, rows = cut[cut["pattern"].isin(BLOCKS)], []
    for (layer, density), part in sorted(cut.groupby(["layer", "density"]), key=lambda one: (one[0][0], -one[0][1])):
        row = {"layer": layer, "left": f"{density:.0%}"}
        of = part.set_index("pattern")
        row |= {
            shape: _both(of.loc[shape], "fp32_us", "int8_us") if shape in of.index else written.DASH for shape in BLOCKS
        }
        row["whole: torch fp32 / torch int8 / own int8"] = " / ".join(
            f"{part[name].median():.3g}" for name in ("dense_us", "torch_us", "own_us")
        )
        ratio = of["int8_over_own"].get("16x4") if "int8_over_own" in of else None
        row["int8 16x4 over own int8, in its run"] = written.DASH if ratio is None else written.times(ratio)
        row["int8 16x4 lies in"] = of["int8_in"].get("16x4", written.DASH)
        rows.append(row)
    return pd.DataFrame(rows)


def shipped(timed):
    """Microseconds a step of layers as they ship, and how many times faster than torch's and our own dense int8."""
    cut, rows = timings.in_blocks(_here(timed)), []
    for row in cut[cut["pattern"].isin(SHIPPED)].to_dict("records"):
        one = {"system": row["pattern"], "layer": row["layer"], "blocks": SHIPPED[row["pattern"]].block}
        one |= {"left": f"{row['density']:.1%}", "fp32 / int8, µs a step": _both(row, "fp32_us", "int8_us")}
        whole = " / ".join(f"{row[name]:.3g}" for name in ("dense_us", "torch_us", "own_us"))
        one["whole: torch fp32 / torch int8 / own int8"] = whole
        one |= {f"int8 over {said} dense int8": written.times(row[f"int8_over_{name}"]) for name, said in WHOSE.items()}
        rows.append(one | {"int8 lies in": row["int8_in"]})
    return pd.DataFrame(rows)


def _both(row, one, other):
    return f"{row[one]:.3g} / {row[other]:.3g}"


def training(rows):
    """Milliseconds of a training step of the dense net, and how many times as long others take, a row a task and model."""
    rows, found = timings.most_timed(rows), []
    for (task, model), part in rows.groupby(["task", "model"]):
        of = part.set_index("method")
        row = {"task, model": f"{task}, {model}", "batch": written.count(of["batch"].iloc[0])}
        row |= {"steps": written.count(of["steps"].iloc[0]), "dense, ms": f"{of.loc['dense', 'median_ms']:.3g}"}
        others = of[of.index != "dense"]
        found.append(row | {f"{name} over dense": f"{1 / times:.2f}×" for name, times in others["speedup"].items()})
    return pd.DataFrame(found).fillna(written.DASH)


TRAINING = "speed of training"
TABLES = {"speed of nets": nets, "speed of blocks": blocks, "speed as shipped": shipped}
