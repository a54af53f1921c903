"""What was asked of the C engine, and whether it is so on this machine: python -m sparsernn.bench.goals [--only NAME …]

Each contest (`contests`) prints what every engine took; what its goals are about goes to results/goals-cpu.csv as soon as it is
over, in the place of what this kind of machine had there. Goals hold on a processor with 512-bit vectors and products of
int8 (VNNI); what others say is a row too. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch

from .. import records
from ..engines.c import build
from ..files import project_root
from . import contests

TORCH_FP32 = "torch's dense fp32", ("dense-fp32",)
TORCH_INT8 = "torch's dense int8", ("dense-int8",)
OWN_INT8 = "our own dense int8", ("own-dense-int8",)
OF_TORCH = "the fastest dense of torch", ("dense-fp32", "dense-bf16", "dense-int8")
ANY_DENSE = "the fastest dense", ("dense-fp32", "dense-bf16", "dense-int8", "own-dense-int8")
YES_NO = "yes", "no"
BLOCKS_FP32, BLOCKS_INT8 = "c-blocks, 16x1", "c-int8, 16x4"


@dataclass(frozen=True)
class Times:
    """ours is so many times faster than the fastest of those that it stands against; None: that is only said."""

    ours: str
    against: str
    among: tuple[str, ...]
    at_least: float | None = None

    def judged(self, ms, opponent_ms):
        ratio, goal = opponent_ms / ms, self.at_least
        return {"ratio": ratio, "goal": goal, "met": "" if goal is None else YES_NO[ratio < goal]}


@dataclass(frozen=True)
class Beyond:
    """ours takes at most so many microseconds more; None: that is only said."""

    ours: str
    against: str
    among: tuple[str, ...]
    at_most_us: float | None = None

    def judged(self, ms, opponent_ms):
        more, goal = 1e3 * (ms - opponent_ms), self.at_most_us
        return {"more_us": more, "goal": goal, "met": "" if goal is None else YES_NO[more > goal]}


@dataclass(frozen=True)
class Contest:
    name: str  # what it is called at the command line
    measured: str
    run: Callable  # seconds → name → milliseconds, error
    goals: tuple


def net(key, steps):
    """A contest's function, of the tracked net of a run, the file that this pattern fits."""

    def run(seconds):
        (path,) = (project_root() / "results" / "runs").glob(f"{key}/model.safetensors")
        return contests.tracked_net(path, steps, seconds)

    return run


def _product(left, *goals):
    said = f"product of a GRU, 3072 × 1024, {100 * left:g} % left"
    return Contest("product", said, partial(contests.products, left), goals)


def _layer(left, int8=None, fp32=None):
    said = f"GRU of 1024, input 1024, 50 steps, state carried, {100 * left:g} % left"
    goals = Times(BLOCKS_INT8, *TORCH_INT8, int8), Times(BLOCKS_INT8, *OWN_INT8), Times(BLOCKS_FP32, *TORCH_INT8, fp32)
    return Contest("layer", said, partial(contests.layers, left), goals)


def _whole(name, said, key, steps, fp32=None, torch_int8=None, dense=None, ours="c-int8"):
    goals = Times(ours, *TORCH_FP32, fp32), Times(ours, *TORCH_INT8, torch_int8)
    return Contest(name, said, net(key, steps), (*goals, Times(ours, *OF_TORCH, dense), Times(ours, *ANY_DENSE, dense)))


SAME_SIZE, UNCUT = ("torch's fp32 of that size", ("dense-fp32",)), ("torch's fp32 of 2 × 1500", (contests.LARGE,))
CONTESTS = (
    _product(
        0.05,
        Times(BLOCKS_INT8, *TORCH_INT8, 25),
        Times(BLOCKS_INT8, *OWN_INT8, 15),
        Times(BLOCKS_FP32, "numba, scattered", (f"{contests.NUMBA}, scattered",), 8),
    ),
    _product(0.3, Times(BLOCKS_INT8, *TORCH_INT8, 3), Times(BLOCKS_INT8, *OWN_INT8)),
    _layer(0.05, 9, 4),
    _layer(0.3),
    _whole("imdb", "IMDb, W+G+N, a review of 200 words", "imdb/bayes-128/sparse-vd-wgn/short-s0", 200, fp32=60, dense=30,
           ours="c-blocks"),
    _whole("imdb", "IMDb, W, a review of 200 words", "imdb/bayes-128/sparse-vd-w/short-s0", 200,
           ours="c-blocks"),
    _whole("ptb-word", "PTB words, W+G+N of 10 epochs, 50 words", "ptb-word/bayes-256/sparse-vd-wgn/short-s0", 50,
           fp32=6, dense=2),
    _whole("ptb-char", "PTB characters, W+G+N of 5 epochs, 50 characters", "ptb-char/bayes-1000/sparse-vd-wgn/short-s0", 50,
           torch_int8=1),
    _whole("ptb-char", "PTB characters, W+G+N of 40 epochs, 50 characters",
           "ptb-char/bayes-1000/sparse-vd-wgn/short-s0-epochs=40,*", 50, torch_int8=1),
    _whole("ptb-char", "PTB characters, blocks of 8×4, a tenth left, 50 characters",
           "ptb-char/bayes-1000/blocks/short-s0-block=8x4,*", 50, torch_int8=4),
    Contest("2x1500", "2 × 1500 cut to 373 and 315, 30 words of ten texts", contests.language_models,
            (Times("c-blocks", *SAME_SIZE, 1.3), Times("c-int8", *SAME_SIZE, 2.5), Times("c-blocks", *UNCUT),
             Times("c-int8", *UNCUT))),
    Contest("own", "an nn.GRU(512) of one's own, 50 steps, 5 % left in blocks of 16×1", contests.own_layer,
            (Times("compact", "torch's own layer", ("torch's layer",), 5),)),
    Contest("call", "a step of a GRU of 32, a call each", contests.one_step,
            (Beyond("by pointers", "what C computes", ("in C",), 3), Beyond("a step a call", "what C computes", ("in C",)))),
)  # fmt: skip


def rows_of(contest, found):
    """A row of results/goals-cpu.csv for each goal of a contest, from what it found; without what says where."""
    for goal in contest.goals:
        name = min(goal.among, key=lambda one: found[one][0])
        (ms, wrong), (opponent_ms, opponent_wrong) = found[goal.ours], found[name]
        row = {"measured": contest.measured, "ours": goal.ours, "against": goal.against, "opponent": name}
        row |= {"ms": ms, "opponent_ms": opponent_ms, "error": wrong, "opponent_error": opponent_wrong}
        yield row | goal.judged(ms, opponent_ms)


def where():
    """Device, versions and commit of a row."""
    said = subprocess.run([*build.compiler(), "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    more = {"threads": torch.get_num_threads(), "numba": version("numba"), "compiler": said.strip()}
    return records.where_and_with("cpu") | more


def lines_of(contest, found):
    """What a person reads meanwhile: every engine, then every goal."""
    yield contest.measured
    for name, (ms, wrong) in sorted(found.items(), key=lambda one: one[1]):
        yield f"  {name:22} {1e3 * ms:10.2f} µs  error {wrong:.0e}"
    for row in rows_of(contest, found):
        said = f"{row['ratio']:.2f}×" if "ratio" in row else f"{row['more_us']:.2f} µs more"
        goal = f", goal {row['goal']:g}: {row['met']}" if row["met"] else ""
        yield f"  {row['ours']} and {row['against']} ({row['opponent']}): {said}{goal}"


def main(arguments=None):
    names = list(dict.fromkeys(contest.name for contest in CONTESTS))
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.goals", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these contests; all if not given")
    parser.add_argument("--seconds", type=float, default=6.0, help="spent timing each contest")
    parser.add_argument("--out", default=None, help="the table; results/goals-cpu.csv if not given")
    given = parser.parse_args(arguments)
    out = given.out or project_root() / "results" / "goals-cpu.csv"
    torch.set_num_threads(1)
    for contest in CONTESTS:
        if contest.name in given.only:
            torch.manual_seed(0)
            found, here = contest.run(given.seconds), where()
            records.upsert_goals([here | row for row in rows_of(contest, found)], out)
            sys.stdout.write("\n".join(lines_of(contest, found)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
