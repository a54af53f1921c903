"""Sparse kernels against dense ones, swept and timed: python -m sparsernn.bench --profile smoke|cpu|gpu-short|gpu

Three sweeps: products (the shapes behind the 2× to 7× of 1704.05119), layers (hidden × density × batch × pattern), and
models (the study's own trained compact ones, results/runs/). Every engine is compared with float64 before it is timed;
one whose error is large gets no row. Rows go to results/timings-<device>.csv a cell at a time, so a sweep that was
stopped goes on where it stood. Needs torch, numpy, pandas, safetensors; an engine whose package is not here (numba,
Triton, cuda-bindings) is said to be missing.
"""

import argparse
import itertools
import json
import re
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import torch

from . import compact, records
from .engines import LAYERS, OPPONENTS, PRODUCTS, choose, find, on, whole
from .engines.base import Layer, error
from .engines.models import Fast, layers_of
from .files import project_root
from .masks import Masks
from .models import Classifier, LanguageModel
from .names import nearest
from .recurrent import GRU, LSTM, RNN
from .small import shrink
from .timing import Roof, check_device, interleaved, spread, wait

PATTERNS = ("unstructured", "block", "removed neurons", "removed gates")
KINDS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
PAPER_LAYERS = (("rnn", 1760), ("gru", 2560))  # the recurrent layers that 1704.05119 prunes
PAPER_SHAPES = ((1760, 1760), (2560, 2560), (3072, 3072), (7680, 2560), (10752, 3584))  # 1704.05119; DeepBench's layers
ALLOWED = {"float32": 1e-4, "tf32": 5e-3, "int8": 0.3}  # error an engine may have and still be timed, by its dtype
ALLOWED_ELSE = 0.1
WEIGHT_BYTES = {"dense-bf16": 2, "dense-fp16": 2, "dense-int8": 1, "two-to-four": 2, "persistent-fp16": 2}  # others: 4
RATES = {
    "dense-tf32": "tf32",
    "dense-bf16": "bf16",
    "dense-fp16": "fp16",
    "two-to-four": "fp16",
    "block-16": "tf32",
    "block-32": "tf32",
    "dense-int8": "int8",
}  # of the units an engine computes with (`timing.Roof`); others: fp32
BLOCK = 32  # side of the blocks of pattern "block"


@dataclass(frozen=True)
class Profile:
    """What a sweep covers; `seconds` is the time spent timing a cell, `steps` the length of its sequences.

    shapes, product_*            products: [rows, columns], densities, columns of x
    hidden, densities, batches   LSTM layers, under every one of `patterns`
    others                       (kind, hidden) of other layers, scattered weights at `product_densities`
    """

    shapes: tuple
    product_densities: tuple
    product_batches: tuple
    hidden: tuple
    densities: tuple
    batches: tuple
    patterns: tuple
    model_batches: tuple
    others: tuple
    steps: int
    seconds: float


WIDE = (1, 2, 4, 8, 16, 32, 64, 1500)
PROFILES = {
    "smoke": Profile(((256, 256),), (0.05,), (1, 8), (64,), (0.1,), (1, 4), PATTERNS, (1,), (("gru", 48),), 10, 0.02),
    "cpu": Profile(((1760, 1760), (7680, 2560)), (0.1, 0.05), WIDE, (256, 1024), (0.3, 0.1, 0.05, 0.01), (1, 32),
                   PATTERNS, (1, 128), PAPER_LAYERS, 50, 0.5),
    "gpu": Profile(PAPER_SHAPES, (0.1, 0.05), WIDE, (256, 512, 1024, 1760, 2304), (0.3, 0.1, 0.05, 0.01),
                   (1, 4, 32, 128), PATTERNS, (1, 32, 128), PAPER_LAYERS, 200, 1.0),
    # some of its cells, in half an hour: persistent layers, the trained nets, and where sparse products win and lose
    "gpu-short": Profile(((1760, 1760), (7680, 2560)), (0.1, 0.05), (1, 4, 64, 1500), (1024, 1760, 2304),
                         (0.3, 0.1, 0.05), (1, 4), PATTERNS[:1], (1, 128), PAPER_LAYERS, 200, 0.3),
}  # fmt: skip


def cut(shape, density, pattern, generator):
    """bool: which weights stay. `block`: whole tiles of 32 × 32, as many as make the density; else independent weights;
    `2:4`: two of every four in a row."""
    if pattern == "2:4":
        order = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(2)
        return (order < 2).view(shape)
    if pattern != "block":
        return torch.rand(shape, generator=generator) < density
    tiles = -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)
    count = tiles[0] * tiles[1]
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=generator)[: max(1, round(density * count))]] = True
    wide = kept.view(tiles).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return wide[: shape[0], : shape[1]]


def dtype_name(engine):
    """ "float32" and its like; "tf32" where factors in float32 are rounded to it."""
    return "tf32" if getattr(engine, "tf32", False) else str(engine.dtype).removeprefix("torch.")


class Cell:
    """One place of a sweep: `fields` of its rows, and, made when first asked for, its data and engines."""

    table = LAYERS
    chooses = True

    def make(self, name, device):
        """→ function without arguments that runs this engine here, the name of its dtype, and for one with a floor of its own the
        function that runs its empty loop and the milliseconds to add; else None."""
        raise NotImplementedError

    def error(self, name, got):
        """`base.error` of what the engine returned, in the sequences or columns that `choose.compared` picks."""
        raise NotImplementedError

    def work(self, name):
        """Bytes and flops that this engine's function cannot do without."""
        raise NotImplementedError

    def heavy(self):
        """flops of the dense opponent: for the forecast."""
        return self.work("dense-fp32")[1]


@dataclass
class Product(Cell):
    """y = W x, W [rows, columns] sparse, x [columns, batch]."""

    rows: int
    columns: int
    density: float
    batch: int
    pattern: str = "unstructured"
    table = PRODUCTS
    chooses = False

    @property
    def fields(self):
        shape = {"input": self.columns, "hidden": self.rows, "density": self.density, "pattern": self.pattern}
        return {"model": "product", "method": "shape-only", "batch": self.batch} | shape

    @cached_property
    def data(self):
        generator = torch.Generator().manual_seed(0)
        kept = cut((self.rows, self.columns), self.density, self.pattern, generator)
        weight = torch.randn(self.rows, self.columns, generator=generator) / (self.density * self.columns) ** 0.5
        return weight * kept, torch.randn(self.columns, self.batch, generator=generator)

    def make(self, name, device):
        (weight, x), kind = self.data, find(name, PRODUCTS)
        engine, x = kind(weight, device), x.to(device, kind.dtype)
        return (lambda: engine(x)), dtype_name(kind), None

    @cached_property
    def compared(self):
        return choose.compared(self.batch, 32)

    @cached_property
    def expected(self):
        weight, x = self.data
        return weight.double() @ x[:, self.compared].double()

    def error(self, name, got):
        return error(got.cpu()[:, self.compared], self.expected)

    def work(self, name):
        kept = self.rows * self.columns * (1 if whole(name) else self.density)
        moved = WEIGHT_BYTES.get(name, 4) * kept + 4 * self.batch * (self.rows + self.columns)
        return moved, 2 * kept * self.batch


@dataclass
class LayerCell(Cell):
    """A layer of a kind of KINDS, input as wide as it is high, over `steps` steps: the masked one in full, and what is left.

    removed neurons  the share √density of neurons and inputs is left, so that the share `density` of weights is
    removed gates    the share `density` of gates has weights, the others are constants
    """

    hidden: int
    density: float
    batch: int
    pattern: str
    steps: int
    kind: str = "lstm"

    @property
    def gates(self):
        return len(KINDS[self.kind].cell_type.gates)

    @property
    def fields(self):
        shape = {"input": self.hidden, "hidden": self.hidden, "density": self.density, "pattern": self.pattern}
        return {"model": self.kind, "method": "shape-only", "batch": self.batch, "steps": self.steps} | shape

    @cached_property
    def data(self):
        """The dense layer, the small one, x for each, kept neurons."""
        generator, size, rows = torch.Generator().manual_seed(0), self.hidden, self.gates * self.hidden
        layer = KINDS[self.kind](size, size).requires_grad_(False)
        keep, inputs = torch.ones(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
        masks = [torch.ones(rows, size, dtype=torch.bool) for _ in range(2)]
        if self.pattern == "removed neurons":
            for kept in (keep, inputs):
                kept[torch.randperm(size, generator=generator)[max(1, round(self.density**0.5 * size)) :]] = False
            masks[0] &= inputs & keep.repeat(self.gates)[:, None]
            masks[1] &= keep & keep.repeat(self.gates)[:, None]
        elif self.pattern == "removed gates":
            masks = [(torch.rand(rows, 1, generator=generator) < self.density).expand(-1, size)] * 2
        else:
            masks = [cut((rows, size), self.density, self.pattern, generator) for _ in range(2)]
        for name, mask in zip(("weight_ih_l0", "weight_hh_l0"), masks, strict=True):
            parameter = getattr(layer, name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * mask / (self.density * size) ** 0.5)
        given = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
        everything = torch.ones(rows, dtype=torch.bool)
        dense = Layer(layer.cell, shrink(layer.cell, *given, everything[:size], everything))
        live = (given[0] != 0).any(1) | (given[1] != 0).any(1)
        small = Layer(layer.cell, shrink(layer.cell, given[0][:, inputs], given[1][:, keep], *given[2:], keep, live))
        x = torch.randn(self.steps, self.batch, size, generator=generator)
        return dense, small, x, x[:, :, inputs].contiguous(), keep, layer

    @cached_property
    def expected(self):
        *_, layer = self.data
        return layer.double()(self.data[2][:, choose.compared(self.batch)].double())[0]

    def make(self, name, device):
        dense, small, x, narrow, *_ = self.data
        layer, x = (dense, x) if whole(name) else (small, narrow)
        engine, x = find(name)(layer, device), x.to(device)
        if not hasattr(engine, "on_chip_ms"):
            return (lambda: engine(x)), dtype_name(engine), None
        return (lambda: engine(x)), dtype_name(engine), ((lambda: engine(x, empty=True)), engine.on_chip_ms(x))

    def error(self, name, got):
        keep = slice(None) if whole(name) else self.data[4]
        return error(got.cpu()[:, choose.compared(self.batch)], self.expected[:, :, keep])

    def work(self, name):
        if whole(name):
            weights, width = 2 * self.gates * self.hidden**2, 2 * self.hidden
        else:
            small = self.data[1]
            weights, width = small.nonzeros, small.inputs + small.hidden
        moved = WEIGHT_BYTES.get(name, 4) * weights + 4 * self.steps * self.batch * width
        return moved, 2 * weights * self.steps * self.batch

    def heavy(self):
        return 4 * self.gates * self.hidden**2 * self.steps * self.batch

    def chosen(self, device):
        return choose.choose(self.data[1], self.batch, device, self.steps).engine


@dataclass
class Trained(Cell):
    """A compact model of the study, ids in, logits out; the opponent is the dense net of its first size, logistic gates."""

    path: Path
    batch: int
    steps: int

    @property
    def fields(self):
        record = json.loads((self.path.parent / "record.json").read_text())
        named = {name: record[name] for name in ("task", "model", "method", "variant", "seed")}
        sizes = self.small.meta["sizes"]
        hidden = records.joined(size for name, size in sizes.items() if name.startswith("hidden"))
        shape = {"input": sizes.get("input", sizes["vocabulary"]), "hidden": hidden, "pattern": "trained"}
        kept = sum(layer.nonzeros for layer in layers_of(self.small).values())
        total = sum(t.numel() for name, t in self.dense.tensors().items() if name.startswith("lstm.weight"))
        return named | shape | {"batch": self.batch, "steps": self.steps, "density": round(kept / total, 6)}

    @cached_property
    def small(self):
        return compact.load(self.path)

    @cached_property
    def dense(self):
        meta, classes = self.small.meta, len(self.small.tensor("head.bias"))
        sizes = meta["sizes"]
        layers = sum(not suffix.endswith("_reverse") for suffix in meta["layers"])
        torch.manual_seed(0)
        if meta["model"] == "Classifier":
            model = Classifier(
                sizes["vocabulary"], classes, sizes["input"], sizes["hidden_l0"], layers, activation="logistic"
            )
        else:
            model = LanguageModel(sizes["vocabulary"], sizes["hidden_l0"], layers)
        return compact.compact(model, Masks.all_kept(model))

    def of(self, name):
        return self.dense if whole(name) else self.small

    def make(self, name, device):
        model = self.of(name)
        fast, ids = Fast(model, name, device), choose.example(model, self.batch, self.steps, device)
        return (lambda: fast(ids)[0]), dtype_name(next(iter(fast.engines.values()))), None

    @cached_property
    def expected(self):
        """Of the small net and of the dense one, by whether an engine runs it whole."""
        models = {False: self.small, True: self.dense}
        return {w: choose.reference(m, choose.example(m, self.batch, self.steps)) for w, m in models.items()}

    def error(self, name, got):
        return error(choose.of_compared(self.of(name), got), self.expected[whole(name)])

    def work(self, name):
        model = self.of(name)
        recurrent = sum(int((layer.weight_hh != 0).sum()) for layer in layers_of(model).values())
        head = int((model.tensor("head.weight") != 0).sum())
        answers = self.batch * (1 if model.meta["model"] == "Classifier" else self.steps)
        moved = WEIGHT_BYTES.get(name, 4) * (recurrent + head) + 8 * self.batch * self.steps
        flops = 2 * (recurrent * self.batch * self.steps + head * answers)
        return moved + 4 * answers * len(model.tensor("head.bias")), flops

    def chosen(self, device):
        return choose.choose(self.small, self.batch, device, self.steps).engine


def products(profile):
    combined = itertools.product(
        profile.shapes, profile.product_densities, ("unstructured", "block"), profile.product_batches
    )
    cells = [Product(*shape, density, batch, pattern) for shape, density, pattern, batch in combined]
    return cells + [Product(*shape, 0.5, batch, "2:4") for shape in profile.shapes for batch in profile.product_batches]


def layers(profile):
    combined = itertools.product(profile.hidden, profile.densities, profile.batches, profile.patterns)
    others = itertools.product(profile.others, profile.product_densities, profile.batches)
    return [LayerCell(*place, profile.steps) for place in combined] + [
        LayerCell(hidden, density, batch, PATTERNS[0], profile.steps, kind) for (kind, hidden), density, batch in others
    ]


def models(profile, root=None):
    paths = sorted((root or project_root() / "results" / "runs").glob("*/*/*/*/model.safetensors"))
    paths = [path for path in paths if compact.load(path).meta["layers"]]
    return [Trained(path, batch, profile.steps) for path in paths for batch in profile.model_batches]


def published():
    """cuSPARSE on a TITAN Xp, fp32, from DeepBench (the group of 1704.05119): hidden, input, density, batch, speedup."""
    rows = [(7680, 2560, 0.05, {1: 6.24, 2: 5.28, 4: 3.79, 1500: 0.16}), (10752, 3584, 0.05, {1: 6.28, 4: 2.79})]
    rows += [(7680, 2560, 0.1, {1: 2.49, 4: 1.97}), (10752, 3584, 0.1, {1: 4.00, 4: 1.73})]
    columns = ["hidden", "input", "density", "batch", "speedup"]
    return pd.DataFrame(
        [(*shape, batch, times) for *shape, found in rows for batch, times in found.items()], columns=columns
    )


def tracked(kind):
    """The tracked rows of these sweeps from "cpu" or "cuda" devices; empty where none was measured."""
    tables = [records.read_timings(path) for path in sorted((project_root() / "results").glob("timings-*.csv"))]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=records.TIMING_FIELDS)
    ours = table["engine"].isin([*LAYERS, *PRODUCTS, "choose"])
    return table[ours & table["device"].str.startswith(kind)].reset_index(drop=True)


SWEEPS = {"layers": layers, "models": models, "products": products}  # in this order: what is new first


def profile_of(name, shapes=None, densities=None, batches=None, hidden=None):
    """A profile by name, some of it replaced: shapes of products ("1760x2560"), densities and batches of all sweeps,
    neurons of LSTM layers.

    Raises ValueError for an unknown name, a shape it cannot read, a density that is no share, a count under 1.
    """
    if name not in PROFILES:
        raise ValueError(nearest("profile", name, PROFILES))
    given = {"shapes": shapes, "densities": densities, "batches": batches, "hidden": hidden}
    for what, values in given.items():
        if values is not None and not len(values):
            raise ValueError(f"{what} is empty; leave it out to take the profile's")
    for shape in shapes or ():
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(shape)):
            raise ValueError(f"shape {shape!r} is not rows x columns, for example '1760x2560'")
    for density in densities or ():
        if not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"density {density!r} is no share of weights that are left, for example 0.1 for 10 %")
    for what, count in [("batch", n) for n in batches or ()] + [("hidden", n) for n in hidden or ()]:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{what} {count!r} is not a whole number from 1 on")
    changes = {} if hidden is None else {"hidden": tuple(hidden)}
    if shapes is not None:
        changes["shapes"] = tuple(tuple(map(int, shape.split("x"))) for shape in shapes)
    if densities is not None:
        changes |= dict.fromkeys(("product_densities", "densities"), tuple(densities))
    if batches is not None:
        changes |= dict.fromkeys(("product_batches", "batches", "model_batches"), tuple(batches))
    return replace(PROFILES[name], **changes)


def slug(device):
    """`cpu`, or a GPU's name as a file's: `cuda:NVIDIA H200` → `nvidia-h200`."""
    kind, name = records.device_name(device).split(":", 1)
    return kind if kind == "cpu" else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure(cell, device, roof, seconds, report=lambda line: None):
    """Rows of one cell: each engine that runs it and is right, beside each opponent that does."""
    where = records.where_and_with(device) | {"threads": torch.get_num_threads()} | cell.fields
    calls, known = {}, {}
    for name in on(torch.device(device).type, cell.table):
        if roof.lacks(rate := RATES.get(name, "fp32")):  # it cannot win, and would hold up the others for minutes
            report(
                f"    {name}: n/a, {roof.flops[rate] / 1e9:.2g} GFLOP/s in {rate}: this processor has no units for it"
            )
            continue
        try:
            call, dtype, empty = cell.make(name, device)
            wrong = cell.error(name, call())
            if empty:
                empty[0]()  # so that it is compiled and warm
        except Exception as problem:  # what does not run here has no row; the sweep goes on, and says so
            wait(device)  # or ends: nothing runs any more on a GPU after a fault
            report(f"    {name}: n/a, {str(problem).splitlines()[0][:150]}")
            continue
        if not wrong <= ALLOWED.get(dtype, ALLOWED_ELSE):
            report(f"    {name}: refused, error {wrong:.1e} against float64")
            continue
        calls[name], known[name] = call, {"dtype": dtype, "error": wrong}
        if empty:
            calls[name + ", empty"], known[name]["on_chip"] = empty
    for name in known:
        size, flops = cell.work(name)
        known[name]["floor_ms"], known[name]["floor_note"] = roof.floor(size, flops, RATES.get(name, "fp32"))
    samples = interleaved(calls, device, seconds)
    for name in known:
        if (on_chip := known[name].pop("on_chip", None)) is not None:
            loop = float(samples.pop(name + ", empty").min())
            known[name] |= {
                "floor_ms": loop + on_chip,
                "floor_note": f"measured: product of the input, empty loop with its waits {loop:.3g} ms",
            }
            known[name]["floor_note"] += f", on chip {on_chip:.3g} ms reckoned"
    if cell.chooses and (chosen := cell.chosen(device)) in known:
        samples["choose"], known["choose"] = samples[chosen], known[chosen] | {"floor_note": chosen}
    rows = []
    for name, opponent in itertools.product(known, [name for name in OPPONENTS if name in known]):
        if name != opponent or name == "dense-fp32":
            row = where | {"engine": name} | known[name] | spread(samples[name])
            base = spread(samples[opponent])["median_ms"]
            rows.append(row | {"opponent": opponent, "opponent_ms": base, "speedup": base / row["median_ms"]})
    return rows


def missing(cells, device, path):
    """The cells without rows at `path`: without their opponent's own, since the rows of a cell are written at once."""
    there = {records.timing_key(row) for row in records.read_timings(path).to_dict("records")}
    common = {"device": records.device_name(device), "threads": torch.get_num_threads(), "dtype": "float32"}
    common |= {"engine": "dense-fp32", "opponent": "dense-fp32"}
    return [cell for cell in cells if records.timing_key(common | cell.fields) not in there]


def forecast(cells, device, roof, seconds):
    """Minutes, roughly: timing, trials of every engine at the opponent's cost, and on a GPU what Triton compiles."""
    engines = {id(kind): len(on(torch.device(device).type, kind)) for kind in (LAYERS, PRODUCTS)}
    total = 0.0
    for cell in cells:
        heavy = engines[id(cell.table)] * cell.heavy() / roof.flops["fp32"]
        total += (
            max(seconds, 5 * heavy)
            + 6 * heavy * (1 + cell.chooses)
            + 0.2
            + (15 if torch.device(device).type == "cuda" else 0)
        )
    return total / 60


def not_here(cells):
    """A line an engine that these cells would be run by, were its package here."""
    for table in {id(cell.table): cell.table for cell in cells}.values():
        for name in table:
            try:
                find(name, table)
            except ImportError as problem:
                yield str(problem)


def news(say):
    """A report for `sweep` that says what each line is about once: the forecast, and which engines do not run and why."""
    said = set()

    def report(line):
        about = line.split(":")[0] if line.startswith(" ") else line[line.find("cells to time") :]
        if about not in said and not line.split("/")[0].isdigit():
            said.add(about)
            say(line.strip())

    return report


def sweep(cells, device="cpu", seconds=0.5, path=None, report=lambda line: None, again=False):
    """Time the cells → their rows; upserted to `path` a cell at a time, and what is there already is skipped, unless
    `again`: a cell counts as there with its dense row, whatever engines it was timed with."""
    roof = Roof.measured(device)
    todo = missing(cells, device, path) if path and not again else cells
    for line in not_here(cells):
        report(f"    {line}")
    minutes = forecast(todo, device, roof, seconds)
    where, there = records.device_name(device), len(cells) - len(todo)
    report(f"{len(todo)} cells to time on {where}, {there} there already; about {minutes:.1f} minutes")
    rows, begin = [], time.perf_counter()
    for number, cell in enumerate(todo, 1):
        found = measure(cell, device, roof, seconds, report)
        if path:
            records.upsert_timings(found, path)
        rows += found
        cell.__dict__ = {
            k: v for k, v in vars(cell).items() if k in cell.__dataclass_fields__
        }  # weights go, fields stay
        fields = ", ".join(f"{k} {v}" for k, v in cell.fields.items() if v and k != "method")
        best = max(
            (r for r in found if r["opponent"] == "dense-fp32" and r["engine"] != "choose"),
            key=lambda r: r["speedup"],
            default=None,
        )
        line = (
            f"{best['engine']} {best['median_ms']:.3g} ms, {best['speedup']:.2f} x dense-fp32"
            if best
            else "nothing ran"
        )
        spent = (time.perf_counter() - begin) / 60
        report(f"{number}/{len(todo)} [{spent:.1f} min] {fields}: {line}")
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="smoke", help=", ".join(PROFILES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--sweep", help=f"one of {', '.join(SWEEPS)}; all of them if not given")
    parser.add_argument("--shapes", nargs="+", metavar="1760x2560", help="of products, instead of the profile's")
    parser.add_argument("--densities", nargs="+", type=float, help="shares of weights that are left, likewise")
    parser.add_argument("--batches", nargs="+", type=int, help="sequences or columns at once, likewise")
    parser.add_argument("--hidden", nargs="+", type=int, help="neurons of LSTM layers, likewise")
    parser.add_argument("--again", action="store_true", help="time cells that the table has already too")
    parser.add_argument("--out", type=Path, help="the table; results/timings-<device>.csv if not given (smoke: none)")
    given = parser.parse_args(arguments)
    try:
        profile = profile_of(given.profile, given.shapes, given.densities, given.batches, given.hidden)
        if given.sweep and given.sweep not in SWEEPS:
            raise ValueError(nearest("sweep", given.sweep, SWEEPS))
        check_device(given.device)
    except ValueError as problem:
        parser.error(str(problem))
    torch.set_num_threads(1)
    path = given.out or (
        None if given.profile == "smoke" else project_root() / "results" / f"timings-{slug(given.device)}.csv"
    )
    cells = [cell for name in ([given.sweep] if given.sweep else SWEEPS) for cell in SWEEPS[name](profile)]
    sweep(cells, given.device, profile.seconds, path, partial(print, flush=True), given.again)
    sys.stdout.write(f"rows are in {path}\n" if path else "profile smoke keeps no rows; --out FILE does\n")


if __name__ == "__main__":
    main()
