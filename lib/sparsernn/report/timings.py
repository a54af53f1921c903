"""What tracked timing tables say: rows of our sweeps, the fastest engine of a cell, whether `choose` was right."""

from pathlib import Path

import pandas as pd

from .. import records
from ..bench import BLOCKS, SHIPPED
from ..engines import LAYERS, PRODUCTS, is_dense
from ..files import project_root

CELL = [
    "task",
    "model",
    "method",
    "variant",
    "seed",
    "device",
    "batch",
    "steps",
    "input",
    "hidden",
    "density",
    "pattern",
]


PLACE = ["device", "task", "model", "batch"]  # where networks of one size stand beside their dense one
DENSE_FP32 = ("dense-fp32", "dense-onednn")  # torch's two libraries for a product in float32 on a CPU


def fastest(table):
    """Timing rows → one row a cell: + engine, the fastest that leaves something out, median_ms, over_fp32 (how many times
    faster than the fastest of DENSE_FP32), dense, the fastest that leaves nothing out, in whatever precision, over_dense (than
    that). Where the dense network was timed by itself too, the engine that was fastest with it is one that leaves nothing out."""
    rows = table[(table["opponent"] == "dense-fp32") & (table["engine"] != "choose")]
    keys, found = [name for name in CELL if name in rows], []
    for _, cell in rows.groupby(keys, dropna=False, sort=False):
        dense = cell["engine"].map(is_dense)
        if dense.any() and not dense.all():
            ours, theirs = (part.loc[part["speedup"].idxmax()] for part in (cell[~dense], cell[dense]))
            row = ours[[*keys, "engine", "median_ms"]].to_dict() | {
                "over_fp32": ours["speedup"] / cell.loc[cell["engine"].isin(DENSE_FP32), "speedup"].max(),
                "dense": theirs["engine"],
            }
            found.append(row | {"over_dense": ours["speedup"] / theirs["speedup"]})
    cells = pd.DataFrame(found, columns=[*keys, "engine", "median_ms", "over_fp32", "dense", "over_dense"])
    if not {*PLACE, "method"} <= {*cells} or not (whole := cells[cells["method"] == "dense"].groupby(PLACE)).ngroups:
        return cells  # none of a network
    best = pd.DataFrame({"over_fp32": whole["over_fp32"].median(), "engine": whole["engine"].last()})
    beside = cells[PLACE].join(best, on=PLACE)
    over = cells["over_fp32"] / beside["over_fp32"]
    slower = over < cells["over_dense"]  # of the dense network by itself 1; nothing is said where that was not timed
    return cells.assign(
        dense=cells["dense"].mask(slower, beside["engine"]), over_dense=cells["over_dense"].mask(slower, over)
    )


def agreement(table, within=0.05):
    """How often `choose` was right against a full table of timing rows: share of cells, and one row a cell.

    Right: the engine it chose took at most 1 + `within` times the median of the cell's fastest fp32 engine. The choice
    of a cell is its row with engine `choose`.
    """
    rows = table[table["opponent"] == "dense-fp32"]
    cells = []
    for _, part in rows.groupby(CELL, dropna=False):
        chosen, others = part[part["engine"] == "choose"], part[part["engine"] != "choose"]
        others = others[(others["dtype"] == "float32") & ~others["engine"].map(is_dense)]
        if len(chosen) and len(others):
            best, median = others["median_ms"].min(), chosen["median_ms"].iloc[0]
            cell = part.iloc[0][["model", "hidden", "density", "batch", "pattern"]].to_dict()
            cell |= {"chosen": chosen["floor_note"].iloc[0], "best": others.loc[others["median_ms"].idxmin(), "engine"]}
            cells.append(cell | {"loss": median / best - 1, "right": median <= (1 + within) * best})
    found = pd.DataFrame(
        cells, columns=["model", "hidden", "density", "batch", "pattern", "chosen", "best", "loss", "right"]
    )
    return (float(found["right"].mean()) if len(found) else float("nan")), found


INT8 = {"dense-int8": "torch", "own-dense-int8": "own"}  # dense engines in int8, and what their columns are called


def most_timed(table):
    """The rows of one device, the one with the most."""
    return table[table["device"].isin(table["device"].mode()[:1])]


def in_blocks(table):
    """Timing rows of layers cut in several shapes of block, or as programs that ship are, one sequence at a time → a row a layer
    and cut:

    layer, pattern, density          as "GRU 1024, input 1024"
    fp32_us, int8_us                 microseconds a step, by the fastest engine in fp32 and by the fastest in int8
    dense_us, torch_us, own_us       the same of the whole layer: the fastest dense one in fp32, torch's in int8 and ours in int8
    fp32_over_…, int8_over_…         how many times faster than torch's dense int8, than our own
    fp32_in, int8_in                 the nearest cache that holds the weights
    """
    rows = table[
        (table["opponent"] == "dense-fp32") & (table["engine"] != "choose") & (table["method"] == "shape-only")
    ]
    rows = rows[rows["pattern"].isin((*BLOCKS, *SHIPPED)) & (rows["batch"] == 1)]
    layer = ["device", "model", "hidden", "input", "steps"]
    several = (
        rows.groupby(layer)["pattern"].transform("nunique") > 2
    )  # other sweeps time scattered weights and 32x32 alone
    rows, places, found = rows[several | rows["pattern"].isin(SHIPPED)], [*layer, "pattern", "density"], []
    for place, cell in rows.groupby(places, sort=False):
        cell = cell.set_index("engine").assign(us=lambda c: 1e3 * c["median_ms"] / c["steps"])
        left, whole = cell[[not is_dense(name) for name in cell.index]], cell[[is_dense(name) for name in cell.index]]
        row = dict(zip(places, place, strict=True))
        row |= {"layer": f"{row['model'].upper()} {row['hidden']:g}, input {row['input']:g}"}
        row |= {"dense_us": whole.loc[whole["dtype"] == "float32", "us"].min()}
        row |= {f"{said}_us": whole["us"].get(name) for name, said in INT8.items()}
        for kind, dtype in (("fp32", "float32"), ("int8", "int8")):
            these = left[left["dtype"] == dtype]
            if len(these):
                best = these.loc[these["us"].idxmin()]
                row |= {
                    f"{kind}_us": best["us"],
                    f"{kind}_in": best["floor_note"].partition("; weights ")[2].partition(" in ")[2],
                }
                row |= {
                    f"{kind}_over_{said}": row[f"{said}_us"] / best["us"] for said in INT8.values() if row[f"{said}_us"]
                }
        found.append(row)
    columns = ["layer", "pattern", "density", "fp32_us", "int8_us", "dense_us", "torch_us", "own_us"]
    columns += [f"{kind}_over_{said}" for said in INT8.values() for kind in ("fp32", "int8")] + ["fp32_in", "int8_in"]
    return pd.DataFrame(found, columns=["device", *columns])


def tracked_timings(kind):
    """`timing_rows` of the project's results."""
    return timing_rows(project_root() / "results", kind)


def _tracked(results):
    tables = [records.read_timings(path) for path in sorted(Path(results).glob("timings-*.csv"))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=records.TIMING_FIELDS)


def timing_rows(results, kind):
    """The tracked rows of these sweeps from devices whose name begins with `kind`, "cpu" or "cuda"; empty where there is none."""
    table = _tracked(results)
    ours = table["engine"].isin([*LAYERS, *PRODUCTS, "choose"])
    return table[ours & table["device"].str.startswith(kind)].reset_index(drop=True)


def training_rows(results):
    """The tracked rows of training steps (`bench.training`)."""
    table = _tracked(results)
    return table[table["engine"] == "train-step"].reset_index(drop=True)


def through_engines(results=None):
    """The tracked rows of what tests say through each engine (`bench.quality`)."""
    return records.read_engines(Path(results or project_root() / "results") / "engines.csv")


def cusparse_figures():
    """cuSPARSE on a TITAN Xp, fp32, from DeepBench (the group of 1704.05119): hidden, input, density, batch, speedup."""
    rows = [(7680, 2560, 0.05, {1: 6.24, 2: 5.28, 4: 3.79, 1500: 0.16}), (10752, 3584, 0.05, {1: 6.28, 4: 2.79})]
    rows += [(7680, 2560, 0.1, {1: 2.49, 4: 1.97}), (10752, 3584, 0.1, {1: 4.00, 4: 1.73})]
    columns = ["hidden", "input", "density", "batch", "speedup"]
    return pd.DataFrame(
        [(*shape, batch, times) for *shape, found in rows for batch, times in found.items()], columns=columns
    )


def a_step(table, task):
    """What engines take for one step of one sequence of a task's networks, on the device on which most of them were timed.

    → a row a network: model, method, variant, device_timed, step_us (the fastest engine that leaves something out, the mean
    of its seeds), and one with variant None a model for the dense net by the fastest engine that runs it whole, in whatever
    precision, the median of its cells. A network's is that divided by how many times faster it was in its own cell: a machine is
    not equally fast at all times. Empty where none was timed.
    """
    columns = ["model", "method", "variant", "device_timed", "step_us"]
    cells = fastest(table[(table["task"] == task) & (table["batch"] == 1)])
    if cells.empty:
        return pd.DataFrame(columns=columns)
    cells = cells.assign(variant=cells["variant"].astype(object).fillna(""))
    networks = cells.groupby("device")[["method", "variant"]].apply(lambda part: len(part.drop_duplicates()))
    cells = cells[cells["device"] == networks.idxmax()].rename(columns={"device": "device_timed"})
    cells = cells.assign(whole_us=1e3 * cells["median_ms"] / cells["steps"] * cells["over_dense"])
    cells = cells.assign(step_us=cells.groupby("model")["whole_us"].transform("median") / cells["over_dense"])
    dense = cells.groupby(["model", "device_timed"])["whole_us"]
    small = cells.groupby(["model", "method", "variant", "device_timed"])["step_us"]
    return pd.concat(
        [small.mean().reset_index(), dense.median().rename("step_us").reset_index()], ignore_index=True
    ).reindex(columns=columns)
