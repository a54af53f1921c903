"""Tables of what engines take, for results/README.md: written from tracked timings, of the CPU, and the GPU, that most were
timed on."""

import re

import pandas as pd

from ..bench import BLOCKS, SHIPPED, goals
from ..engines import is_dense
from ..tasks.speech import HOP, RATE
from . import timings, written
from .decisions import SMALL

SOUND = {"digits": 1e6 * HOP / RATE}  # tasks of sound → microseconds of it that a step, a frame, stands for
WHOSE = {"torch": "torch's", "own": "our own"}


def _here(timed, kind="cpu"):
    return timings.most_timed(timed[timed["device"].str.startswith(kind)])


def nets(timed, kind="cpu"):
    """How many times faster the tracked networks that were made small are than their dense net, a row a task and model."""
    cells = timings.fastest(_here(timed[timed["method"] != "shape-only"], kind))
    cells, rows = cells[~cells["method"].isin(SMALL)], []
    sizes = sorted(int(size) for size in cells["batch"].unique())
    for (task, model), part in cells.groupby(["task", "model"]):
        single = part[part["batch"] == 1]
        row = {"task, model": f"{task}, {model}", "nets": written.count(len(single))}
        for over, said in (("over_fp32", "over dense fp32"), ("over_dense", "over the fastest dense")):
            row |= {f"{said}, batch {size}": _range(part.loc[part["batch"] == size, over]) for size in sizes}
        row["fastest at batch 1"] = ", ".join(single["engine"].value_counts().index)
        rows.append(row | {"dense at batch 1": ", ".join(single["dense"].value_counts().index)})
    return pd.DataFrame(rows)


def _range(numbers, as_text=written.times):
    """1.2 to 3.4×, or one figure where both are written alike."""
    if numbers.empty:
        return written.DASH
    low, high = as_text(numbers.min()), as_text(numbers.max())
    return low if low == high else f"{low.removesuffix('×')} to {high}"


def of_sound(timed):
    """Microseconds that a frame of sound takes one sequence, and how many times faster than real time that is: of each task of
    sound and model the whole net by the engine it was fastest with, and what was left of it by the fastest engine."""
    cells = timings.fastest(_here(timed[timed["task"].isin(SOUND)]))
    cells, rows = cells[cells["batch"] == 1], []
    for (task, model), part in cells.groupby(["task", "model"]):
        part = part.assign(us=1e3 * part["median_ms"] / part["steps"])
        left, whole = part[~part["method"].isin(SMALL)], part[part["method"].isin(SMALL)]
        if whole.empty:  # none was timed by itself: as the opponent of what was left of it
            whole = left.assign(us=left["us"] * left["over_dense"], engine=left["dense"])
        row = {"task, model": f"{task}, {model}", "nets made small": written.count(len(left))}
        for said, nets in (("whole", whole), ("made small", left)):
            row[f"{said}, µs for {SOUND[task] / 1e3:g} ms"] = _range(nets["us"], "{:.2g}".format)
            row[f"{said}, times real time"] = _range(SOUND[task] / nets["us"])
            row[f"{said}, by"] = ", ".join(nets["engine"].value_counts().index) or written.DASH
        rows.append(row)
    return pd.DataFrame(rows)


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


def layers_on_gpu(timed):
    """Microseconds a step of the fastest fp32 engine that leaves something out, and how many times as long others take: cuDNN in
    fp32 as it is called and replayed from a graph; our own persistent kernel with every weight; the fastest that cuDNN has, in
    whatever precision: which, and by which kernel. A dash: not timed."""
    rows = _here(timed, "cuda")
    rows = rows[rows["model"].isin(["lstm", "gru", "rnn"]) & (rows["opponent"] == "dense-fp32")]
    order, found = ["model", "hidden", "density", "pattern", "batch"], []
    for (model, hidden, density, pattern, batch), cell in rows.groupby(order):
        of = cell[cell["engine"] != "choose"].set_index("engine")
        whole = of[of.index.map(is_dense)]
        sparse = of[(of["dtype"] == "float32") & ~of.index.isin([*whole.index, OWN])]
        if sparse.empty:
            continue
        us, name, best = 1e3 * of["median_ms"] / of["steps"], sparse["median_ms"].idxmin(), whole["median_ms"].idxmin()
        left = pattern if "heads" in pattern else f"{density:.0%}"
        row = {"layer": f"{model.upper()} {hidden:g}", "left": left, "batch": f"{batch:g}", "engine": name}
        row |= {"µs a step": f"{us[name]:.3g}", "times its floor": written.DASH}
        if of.loc[name, "floor_note"].startswith("measured"):
            row["times its floor"] = f"{of.loc[name, 'median_ms'] / of.loc[name, 'floor_ms']:.2f}"
        for other, said in BESIDE.items():
            row[f"faster than {said}"] = written.times(us[other] / us[name]) if other in us else written.DASH
        row |= {"than cuDNN's fastest timed": written.times(us[best] / us[name]), "which": best}
        found.append(row | {"its kernel": kernel_in(of.loc[best, "floor_note"])})
    return pd.DataFrame(found)


OWN = "persistent-dense"
BESIDE = {"dense-fp32": "cuDNN fp32", "dense-fp32-graph": "it from a graph", OWN: f"{OWN}, ours"}


def kernel_in(note):
    """ "200 × gemv2T_kernel_val" from a note of what a library ran (`bench.sweep`)."""
    said = re.search(r"most time in (\d+) x (.+)", note)
    if not said:
        return written.DASH
    called = (
        said[2].rpartition("::type ")[2].removeprefix("void ").partition("<")[0].partition("(")[0].rpartition("::")[2]
    )
    return f"{said[1]} × {re.sub(r'_[0-9].*', '', called)}"


def products_on_gpu(timed):
    """Microseconds of the fastest sparse product / of the fastest dense one in fp32 / in whatever precision, a column a number of
    columns of x."""
    rows, found = _here(timed, "cuda"), []
    rows = rows[(rows["model"] == "product") & (rows["opponent"] == "dense-fp32")]
    for (hidden, inputs, density, pattern), part in rows.groupby(["hidden", "input", "density", "pattern"]):
        row = {"product": f"{hidden:g} × {inputs:g}", "left": f"{density:.0%}, {pattern}"}
        for batch, cell in part.groupby("batch"):
            of = cell.set_index("engine")["median_ms"] * 1e3
            dense = of.index.map(is_dense)
            both = f"{of['dense-fp32']:.3g} / {of[dense].min():.3g}"
            row[f"x of {batch:g}"] = f"{of[~dense].idxmin()} {of[~dense].min():.3g} / {both}"
        found.append(row)
    return pd.DataFrame(found)


def training_on_gpu(rows):
    """Milliseconds of a training step of the dense net by the wall, of that the kernels', how many times as long others take, and
    the largest error of loss and gradients against float64."""
    rows, found = rows[rows["device"].str.startswith("cuda")], []
    for (task, model), part in rows.groupby(["task", "model"]):
        of = part.set_index("method")
        row = {"task, model": f"{task}, {model}", "batch": written.count(of["batch"].iloc[0])}
        row |= {
            "dense, ms": f"{of.loc['dense', 'median_ms']:.3g}",
            "of that kernels": f"{of.loc['dense', 'floor_ms']:.2g}",
        }
        others = of[of.index != "dense"]
        row |= {f"{name} over dense": f"{1 / times:.2f}×" for name, times in others["speedup"].items()}
        found.append(row | {"error": f"{of['error'].max():.0e}"})
    return pd.DataFrame(found)


def training(rows):
    """Milliseconds of a training step of the dense net, and how many times as long others take, a row a task and model."""
    rows, found = _here(rows), []
    for (task, model), part in rows.groupby(["task", "model"]):
        of = part.set_index("method")
        row = {"task, model": f"{task}, {model}", "batch": written.count(of["batch"].iloc[0])}
        row |= {"steps": written.count(of["steps"].iloc[0]), "dense, ms": f"{of.loc['dense', 'median_ms']:.3g}"}
        others = of[of.index != "dense"]
        found.append(row | {f"{name} over dense": f"{1 / times:.2f}×" for name, times in others["speedup"].items()})
    return pd.DataFrame(found).fillna(written.DASH)


def goals_of(rows):
    """What was asked of the C engine, and found: milliseconds of ours and of the opponent, the fastest of several."""
    order = [(one.measured, goal.ours, goal.against) for one in goals.CONTESTS for goal in one.goals]
    rows, found = _here(rows).to_dict("records"), []
    places = [(row["measured"], row["ours"], row["against"]) for row in rows]
    known = {place: number for number, place in enumerate(dict.fromkeys([*order, *places]))}
    for row, _ in sorted(zip(rows, places, strict=True), key=lambda one: known[one[1]]):
        fastest = f" ({row['opponent']})" if row["against"] in (goals.ANY_DENSE[0], goals.OF_TORCH[0]) else ""
        one = {"measured": row["measured"], "ours": row["ours"], "against": row["against"] + fastest}
        one["ms"] = " / ".join(f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}" for ms in (row["ms"], row["opponent_ms"]))
        asked = row["goal"] == row["goal"]
        if row["ratio"] == row["ratio"]:
            one |= {"found": written.times(row["ratio"]), "asked for": f"≥ {row['goal']:g}×" if asked else written.DASH}
        else:
            one |= {"found": f"{row['more_us']:.2g} µs more"}
            one |= {"asked for": f"≤ {row['goal']:g} µs more" if asked else written.DASH}
        found.append(one | {"met": row["met"] or written.DASH})
    return pd.DataFrame(found, columns=["measured", "ours", "against", "ms", "found", "asked for", "met"])


TABLES = {"speed of nets": nets, "speed of blocks": blocks, "speed as shipped": shipped}
TABLES["speed of sound"] = of_sound
TABLES |= {"speed of nets on a GPU": lambda timed: nets(timed, "cuda"), "speed of layers on a GPU": layers_on_gpu}
TABLES |= {"speed of products on a GPU": products_on_gpu}
TRAINING = {"speed of training": training, "speed of training on a GPU": training_on_gpu}  # of `timings.training_rows`
GOALS = {"speed beside its goals": goals_of}  # of `records.read_goals`
