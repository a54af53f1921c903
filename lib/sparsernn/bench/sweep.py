"""Time cases, engine beside engine, and keep their rows."""

import itertools
import re
import time
from contextlib import nullcontext

import torch

from .. import records
from ..engines import LAYERS, OPPONENTS, PRODUCTS, available, engine_class, left_out
from ..engines.timing import Roof, cache_of, check_usable, interleaved, kernel_of, summary, wait
from .cases import ALLOWED, ALLOWED_ELSE, RATES

COMPILES = 3.0  # seconds a case, of what Triton and NVRTC compile for it: 0.3 to 2 a kernel, many of them met before


def slug(device):
    """What the table of a device's timings is called: `slug_of` its name."""
    return slug_of(records.device_name(device))


def slug_of(device_name):
    """`cpu`, or a GPU's name as a file's: `cuda:NVIDIA H200` → `nvidia-h200`."""
    kind, name = device_name.split(":", 1)
    return kind if kind == "cpu" else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure(case, device, roof, seconds, report=lambda line: None, trying=nullcontext):
    """Rows of one case: each engine that runs it and is right, beside each opponent that does.

    trying  name → the context in which an engine is run for the first time (`watch.within`)
    Raises `timing.Unusable` where an engine's fault leaves a GPU that runs nothing any more.
    """
    where = records.where_and_with(device) | {"threads": torch.get_num_threads()} | case.fields
    calls, known, _ = {}, {}, case.expected  # what takes the CPU its time is no engine's
    for name in available(torch.device(device).type, case.table):
        if roof.lacks(rate := RATES.get(name, "fp32")):  # it cannot win, and would hold up the others for minutes
            report(
                f"    {name}: n/a, {roof.flops[rate] / 1e9:.2g} GFLOP/s in {rate}: this processor has no units for it"
            )
            continue
        try:
            with trying(name):
                call, dtype, empty = case.make(name, device)
                wrong = case.error(name, call())
                if empty:
                    empty[0]()  # so that it is compiled and warm
                    wait(device)  # a fault in it is its own, not the next engine's
        except Exception as problem:  # what does not run here has no row; the sweep goes on, and says so
            check_usable(device, name, problem)  # or ends: nothing runs any more on a GPU after a fault
            report(f"    {name}: n/a, {str(problem).splitlines()[0][:150]}")
            continue
        if not wrong <= ALLOWED.get(dtype, ALLOWED_ELSE):
            report(f"    {name}: refused, error {wrong:.1e} against float64")
            continue
        calls[name], known[name] = call, {"dtype": dtype, "error": wrong}
        if empty:
            calls[name + ", empty"], known[name]["on_chip"] = empty
    for name in known:
        size, flops = case.work(name)
        known[name]["floor_ms"], note = roof.floor(size, flops, RATES.get(name, "fp32"))
        if cache := device == "cpu" and cache_of(weights := case.weight_bytes(name)):
            note += f"; weights {weights:.3g} B in {cache}"
        known[name]["floor_note"] = note
    samples = interleaved(calls, device, seconds)
    for name in known:
        if (on_chip := known[name].pop("on_chip", None)) is not None:
            loop = float(samples.pop(name + ", empty").min())
            known[name] |= {
                "floor_ms": loop + on_chip,
                "floor_note": f"measured: product of the input, empty loop with its waits {loop:.3g} ms",
            }
            known[name]["floor_note"] += f", on chip {on_chip:.3g} ms reckoned"
    for name in [name for name in OPPONENTS if name in known]:  # a library chooses how: it is said what was beaten
        if kernel := kernel_of(calls[name], device):
            known[name]["floor_note"] += f"; most time in {kernel}"
    if case.chooses:
        try:
            chosen = case.chosen(device)
        except ValueError as problem:  # none of its engines is here, or none is right
            report(f"    choose: n/a, {str(problem)[:150]}")
        else:
            if chosen in known:
                samples["choose"], known["choose"] = samples[chosen], known[chosen] | {"floor_note": chosen}
    rows = []
    for name, opponent in itertools.product(known, [name for name in OPPONENTS if name in known]):
        if name != opponent or name == "dense-fp32":
            row = where | {"engine": name} | known[name] | summary(samples[name])
            base = summary(samples[opponent])["median_ms"]
            rows.append(row | {"opponent": opponent, "opponent_ms": base, "speedup": base / row["median_ms"]})
    return rows


def missing(cases, device, path):
    """The cases without rows at `path`: without their opponent's own, since the rows of a case are written at once."""
    there = {records.timing_key(row) for row in records.read_timings(path).to_dict("records")}
    common = {"device": records.device_name(device), "threads": torch.get_num_threads(), "dtype": "float32"}
    common |= {"engine": "dense-fp32", "opponent": "dense-fp32"}
    return [case for case in cases if records.timing_key(common | case.fields) not in there]


def forecast(cases, device, roof, seconds):
    """Minutes, roughly: timing, trials of every engine at the opponent's cost, and on a GPU what Triton compiles."""
    engines = {id(kind): len(available(torch.device(device).type, kind)) for kind in (LAYERS, PRODUCTS)}
    total = 0.0
    for case in cases:
        heavy = engines[id(case.table)] * case.heavy() / roof.flops["fp32"]
        total += (
            max(seconds, 5 * heavy)
            + 6 * heavy * (1 + case.chooses)
            + 0.2
            + (COMPILES if torch.device(device).type == "cuda" else 0)
        )
    return total / 60


def not_here(cases):
    """A line an engine that these cases would be run by, were its package here or its name not `left_out`."""
    without = left_out()
    for table in {id(case.table): case.table for case in cases}.values():
        for name in table:
            if name in without:
                yield f"engine {name!r} is left out: SPARSERNN_WITHOUT names it"
                continue
            try:
                engine_class(name, table)
            except ImportError as problem:
                yield str(problem)


def news(say):
    """A report for `sweep` that says what each line is about once: the forecast, and which engines do not run and why."""
    said = set()

    def report(line):
        about = line.split(":")[0] if line.startswith(" ") else line[line.find("cases to time") :]
        if about not in said and not line.split("/")[0].isdigit():
            said.add(about)
            say(line.strip())

    return report


def sweep(cases, device="cpu", seconds=0.5, path=None, report=lambda line: None, again=False, trying=nullcontext):
    """Time the cases → their rows; upserted to `path` a case at a time, and what is there already is skipped, unless
    `again`: a case counts as there with its dense row, whatever engines it was timed with. `trying`, and what is raised: as
    of `measure`."""
    roof = Roof.measured(device)
    todo = missing(cases, device, path) if path and not again else cases
    for line in not_here(cases):
        report(f"    {line}")
    minutes = forecast(todo, device, roof, seconds)
    where, there = records.device_name(device), len(cases) - len(todo)
    report(f"{len(todo)} cases to time on {where}, {there} there already; about {minutes:.1f} minutes")
    rows, begin = [], time.perf_counter()
    for number, case in enumerate(todo, 1):
        found = measure(case, device, roof, seconds, report, trying)
        if path:
            records.upsert_timings(found, path)
        rows += found
        case.__dict__ = {
            k: v for k, v in vars(case).items() if k in case.__dataclass_fields__
        }  # weights go, fields stay
        fields = ", ".join(f"{k} {v}" for k, v in case.fields.items() if v and k != "method")
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
