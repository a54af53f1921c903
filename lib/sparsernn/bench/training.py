"""What a method costs per training step against dense, interleaved, on one thread: python -m sparsernn.bench.training

Two kinds of rows go to results/timings-cpu.csv: whole training steps of the study's models (engine `train-step`, opponent
`dense-fp32`), in the mean of as many as a held gradient of the KL lasts at the longest, and the bare layer forward and
backward against torch.nn.LSTM (engine `layer-step`, method `shape-only`, with and without scales). `error` is that of the
forward pass without noise against float64. Run it on an otherwise idle machine.
"""

import argparse
import copy
import sys

import torch

from .. import records, tasks
from ..engines.timing import interleaved, summary
from ..files import error, project_root
from ..nets.layers import LSTM
from ..study.config import RunConfig
from ..study.training import Session

METHODS = ("dense", "sparse-vd-w", "sparse-vd-wgn")
PROFILES = {"pydocs-topic": "quick", "pydocs-char": "quick", "imdb": "short", "ptb-word": "short", "ptb-char": "short"}
NO_CORPUS = ("pydocs-topic", "pydocs-char")
AT_ONCE = 4  # steps of a sample, a multiple of every `kl_every` of these profiles: the KL costs in one of so many
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


def some_steps(session):
    """A function that takes the next `AT_ONCE` steps of the last epoch in which the session's method learns what to keep, begun
    anew at its end: there every penalty is charged in full."""
    session.epoch = max(1, session.method.learning_steps // session.steps_per_epoch) - 1

    def endless():
        while True:
            yield from session.steps()

    stream = endless()
    return lambda: [next(stream) for _ in range(AT_ONCE)]


def train_steps(seconds, names=NO_CORPUS):
    """Rows of whole training steps, a method beside dense."""
    for task in names:
        data = tasks.load(task, PROFILES[task])
        sessions = {m: Session(RunConfig(task, method=m, profile=PROFILES[task]), data) for m in METHODS}
        errors = {name: forward_error(session) for name, session in sessions.items()}
        samples = interleaved({name: some_steps(s) for name, s in sessions.items()}, seconds=seconds)
        plan, layers = sessions["dense"].plan, sessions["dense"].model.recurrent
        common = {"task": task, "engine": "train-step", "batch": plan.batch_size, "steps": plan.steps or None}
        common |= {"density": 1.0, "input": layers.input_size, "hidden": layers.hidden_size, "pattern": "dense"}
        for name, row in timing_rows({name: ms / AT_ONCE for name, ms in samples.items()}, "dense", errors):
            config = sessions[name].config
            dtype = "bfloat16" if sessions[name].rounds else "float32"
            yield common | row | {"model": config.model, "method": name, "variant": config.variant, "dtype": dtype}


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
            yield common | row | {"engine": name, "density": 1.0, "pattern": "dense", "dtype": "float32"}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="spent timing one model or shape")
    parser.add_argument(
        "--tasks", nargs="+", default=NO_CORPUS, choices=PROFILES, help="whose training steps are timed"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = records.where_and_with() | {"threads": 1}
    rows = [where | row for row in (*train_steps(given.seconds, given.tasks), *layer_steps(given.seconds))]
    records.upsert_timings(rows, project_root() / "results" / "timings-cpu.csv")
    for row in rows:
        name = f"{row['engine']:18} {row.get('task', ''):13} {row['method']:14} H {row['hidden']:4}"
        cost = f"{row['median_ms']:7.1f} ms ± {row['iqr_ms']:.1f}, {1 / row['speedup']:.2f} x {row['opponent']}"
        sys.stdout.write(f"{name} {cost}  error {row['error']:.1e}\n")


if __name__ == "__main__":
    main()
