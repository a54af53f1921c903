"""Sparse kernels against dense ones, swept and timed: python -m sparsernn.bench --profile smoke|cpu|gpu-quarter|gpu

Four sweeps: products (the shapes behind the 2× to 7× of 1704.05119), layers (hidden × density × batch × pattern), blocks
(shape of block × density, and layers of programs that ship), and models (the study's own trained compact ones, results/runs/).
Every engine is compared with float64 before it is timed; one whose error is large gets no row. Rows go to
results/timings-<device>.csv a case at a time, so a sweep that was stopped goes on where it stood. Needs torch, numpy, pandas,
safetensors; an engine whose package is not here (numba, Triton, cuda-bindings) is said to be missing. Where an engine's fault
leaves the GPU unusable, the last line says how to go on without it, and the status is 3.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from ..engines import left_out
from ..engines.timing import Unusable, check_device
from ..files import nearest, project_root
from .profiles import PROFILES, SWEEPS, profile_of
from .sweep import slug, sweep
from .watch import leave, within


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="smoke", help=", ".join(PROFILES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--sweep", help=f"one of {', '.join(SWEEPS)}; all of them if not given")
    parser.add_argument("--shapes", nargs="+", metavar="1760x2560", help="of products, instead of the profile's")
    parser.add_argument("--densities", nargs="+", type=float, help="shares of weights that are left, likewise")
    parser.add_argument("--batches", nargs="+", type=int, help="sequences or columns at once, likewise")
    parser.add_argument(
        "--hidden", nargs="+", type=int, help="neurons of LSTM layers, instead of all layers of the profile"
    )
    parser.add_argument("--again", action="store_true", help="time cases that the table has already too")
    parser.add_argument("--out", type=Path, help="the table; results/timings-<device>.csv if not given (smoke: none)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="until an engine's first answer, else it is left out as if it had left the GPU unusable",
    )
    given = parser.parse_args(arguments)
    try:
        left_out()
        profile = profile_of(given.profile, given.shapes, given.densities, given.batches, given.hidden)
        if given.sweep and given.sweep not in SWEEPS:
            raise ValueError(nearest("sweep", given.sweep, SWEEPS))
        check_device(given.device)
    except ValueError as problem:
        parser.error(str(problem))
    if given.device == "cpu":
        torch.set_num_threads(1)  # beside a GPU they only prepare
    path = given.out or (
        None if given.profile == "smoke" else project_root() / "results" / f"timings-{slug(given.device)}.csv"
    )
    cases = [case for name in ([given.sweep] if given.sweep else SWEEPS) for case in SWEEPS[name](profile)]
    say = partial(print, flush=True)
    trying = within(given.patience, say) if given.patience else nullcontext
    try:
        sweep(cases, given.device, profile.seconds, path, say, given.again, trying)
    except Unusable as problem:
        say(problem)
        leave(problem.engine, say)
    sys.stdout.write(f"rows are in {path}\n" if path else "profile smoke keeps no rows; --out FILE does\n")


if __name__ == "__main__":
    main()
