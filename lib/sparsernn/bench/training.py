"""What a method costs per training step against dense, interleaved, on one thread: python -m sparsernn.bench.training

Two kinds of rows go to results/timings-cpu.csv: whole training steps of the study's models (engine `train-step`, opponent
`dense-fp32`), and the bare layer forward and backward against torch.nn.LSTM (engine `layer-step`, method `shape-only`, with
and without scales). `error` is that of the forward pass without noise against float64. Run it on an otherwise idle machine.
"""

import argparse
import copy
import itertools
import sys
from functools import partial

import torch

from .. import records, tasks
from ..engines.timing import interleaved, summary
from ..files import error, project_root
from ..nets.layers import LSTM
from ..study.config import RunConfig
from ..study.training import Session

METHODS = ("dense", "sparse-vd-w", "sparse-vd-wgn")
STEPS = (("pydocs-topic", "quick"), ("pydocs-char", "quick"))  # what needs no corpus
SHAPES = ((100, 64, 64, 64), (100, 64, 128, 128), (200, 128, 300, 128), (35, 32, 256, 256))  # T, B, I, H


def timing_rows(samples, opponent, errors):
    """(name, row) a call, with its speedup over `opponent` in the same run."""
    base = summary(samples[opponent])["median_ms"]
    for name, ms in samples.items():
        row = summary(ms) | {"error": errors[name], "opponent": "dense-fp32", "opponent_ms": base}
        yield name, row | {"speedup": base / row["median_ms"]}


@torch.no_grad()
def forward_error(session):
    """The model in evaluation, float32 against float64, on the first training batch."""
    plan = session.plan
    batch = next(session.task.batches("train", plan.batch_size, plan.steps or None, torch.Generator().manual_seed(0)))
    single, double = session.model.eval(), copy.deepcopy(session.model).double().eval()
    return error(
        single(*batch.inputs, lengths=batch.lengths)[0].double(), double(*batch.inputs, lengths=batch.lengths)[0]
    )


def train_steps(seconds, steps=STEPS):
    """Rows of whole training steps, a method beside dense."""
    for task, profile in steps:
        data = tasks.load(task, profile)
        sessions = {m: Session(RunConfig(task, method=m, profile=profile), data) for m in METHODS}
        errors = {name: forward_error(session) for name, session in sessions.items()}
        streams = {name: (loss for _ in itertools.count() for loss in s.steps()) for name, s in sessions.items()}
        samples = interleaved({name: partial(next, stream) for name, stream in streams.items()}, seconds=seconds)
        plan, layers = sessions["dense"].plan, sessions["dense"].model.recurrent
        common = {"task": task, "engine": "train-step", "batch": plan.batch_size, "steps": plan.steps or None}
        common |= {"density": 1.0, "input": layers.input_size, "hidden": layers.hidden_size, "pattern": "dense"}
        for name, row in timing_rows(samples, "dense", errors):
            config = sessions[name].config
            yield common | row | {"model": config.model, "method": name, "variant": config.variant}


def layer_steps(seconds):
    """Rows of our layer, with and without scales, beside torch's."""
    for steps, batch, width, hidden in SHAPES:
        torch.manual_seed(0)
        ours, theirs = LSTM(width, hidden), torch.nn.LSTM(width, hidden)
        theirs.load_state_dict(ours.state_dict())
        x, sizes = (
            torch.randn(steps, batch, width),
            {"input": width, "recurrent": hidden, "output": hidden, "gates": 4 * hidden},
        )
        scales = {kind + "_l0": (1 + 0.3 * torch.randn(batch, n)).requires_grad_() for kind, n in sizes.items()}
        forward = {"torch-lstm": lambda net, x, theirs=theirs: theirs(x)[0], "layer-step": lambda net, x: net(x)[0]}
        forward["layer-step-scaled"] = lambda net, x, s=scales: net(x, scales={n: z.to(x) for n, z in s.items()})[0]
        double = copy.deepcopy(ours).double()
        with torch.no_grad():
            exact = {name: call(double, x.double()) for name, call in forward.items() if name != "torch-lstm"}
            exact["torch-lstm"] = exact["layer-step"]
            errors = {name: error(call(ours, x).double(), exact[name]) for name, call in forward.items()}
        calls = {name: lambda call=call, x=x, net=ours: call(net, x).sum().backward() for name, call in forward.items()}
        common = {"method": "shape-only", "batch": batch, "steps": steps, "input": width, "hidden": hidden}
        for name, row in timing_rows(interleaved(calls, seconds=seconds), "torch-lstm", errors):
            yield common | row | {"engine": name, "density": 1.0, "pattern": "dense"}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="spent timing one model or shape")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = records.where_and_with() | {"threads": 1, "dtype": "float32"}
    rows = [where | row for kind in (train_steps, layer_steps) for row in kind(given.seconds)]
    records.upsert_timings(rows, project_root() / "results" / "timings-cpu.csv")
    for row in rows:
        name = f"{row['engine']:18} {row.get('task', ''):13} {row['method']:14} H {row['hidden']:4}"
        cost = f"{row['median_ms']:7.1f} ms ± {row['iqr_ms']:.1f}, {1 / row['speedup']:.2f} x {row['opponent']}"
        sys.stdout.write(f"{name} {cost}  error {row['error']:.1e}\n")


if __name__ == "__main__":
    main()
