"""What a method costs per training step against dense, interleaved, on one thread → results/timings-cpu.csv.

Usage: python benchmarks/training_step.py [rounds]     Run it on an otherwise idle machine.

Two kinds of rows: whole training steps of the study's models (engine `train-step`, opponent `dense-fp32`), and the
bare layer forward and backward against torch.nn.LSTM (engine `layer-step`, method `shape-only`, with and without
scales). `error` is that of the forward pass against the step loop of tests/oracles.py in float64.
"""

import itertools
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracles

from sparsernn import records, tasks
from sparsernn.files import error, project_root
from sparsernn.nets.layers import LSTM
from sparsernn.nets.models import Classifier
from sparsernn.study.config import RunConfig
from sparsernn.study.training import Session

METHODS = ("dense", "sparse-vd-w", "sparse-vd-wgn")
SHAPES = ((100, 64, 64, 64), (100, 64, 128, 128), (200, 128, 300, 128), (35, 32, 256, 256))  # T, B, I, H


def interleaved(calls, rounds):
    """name → seconds per call, round by round, every call once a round."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: 1e3 * np.array(seconds[2:]) for name, seconds in times.items()}  # the first two warm up


def timing_rows(times, opponent, opponent_name, errors, common):
    """One timing row a call, with its speedup over `opponent` in the same run."""
    base = np.median(times[opponent])
    for name, ms in times.items():
        low, middle, high = np.percentile(ms, [25, 50, 75])
        row = {"median_ms": middle, "iqr_ms": high - low, "best_ms": ms.min(), "error": errors[name]}
        yield (
            common | row | {"opponent": opponent_name, "opponent_ms": base, "speedup": base / middle, "engine_of": name}
        )


def forward_error(session):
    """One training draw of the session's model in float32 against the step loop in float64 with the same draw."""
    model, plan = session.model, session.plan
    batch = next(session.task.batches("train", plan.batch_size, plan.steps or None, torch.Generator().manual_seed(0)))
    draw = session.method.sample(batch)
    with torch.no_grad():
        logits, _ = draw.run(model, batch.lengths)
    p = {name: value.detach() for name, value in model.named_parameters()} | draw.weights
    p = {name: value.detach().double() for name, value in p.items()}
    scales = {name: value.detach().double() for name, value in draw.scales.items()}
    classifier = isinstance(model, Classifier)
    if classifier:
        x = p["embedding.weight"][draw.tokens]
        if "embedding.input" in scales:
            x = x * scales["embedding.input"].gather(1, draw.tokens.t()).t().unsqueeze(2)
    else:
        x = torch.eye(p["lstm.weight_ih_l0"].shape[1], dtype=torch.float64)[draw.tokens]
    layer = {name.removeprefix("lstm."): value for name, value in p.items() if name.startswith("lstm.")}
    layer_scales = {name.removeprefix("lstm."): value for name, value in scales.items() if name.startswith("lstm.")}
    padding = "left" if classifier else "right"
    y, _ = oracles.step_loop(model.lstm, layer, x, scales=layer_scales, lengths=batch.lengths, padding=padding)
    y = y[-1] if classifier else y
    expected = y @ p["head.weight"].t() + p["head.bias"]
    if "head" in draw.noise:
        variance, epsilon = (part.detach().double() for part in draw.noise["head"])
        expected = expected + epsilon * torch.sqrt((y * y) @ variance.t() + 1e-8)
    return error(logits.double(), expected)


def train_steps(rounds):
    for task in ("pydocs-topic", "pydocs-char"):
        data = tasks.load(task, "quick")
        sessions = {m: Session(RunConfig(task=task, method=m, profile="quick"), data) for m in METHODS}
        errors = {name: forward_error(session) for name, session in sessions.items()}
        streams = {name: (loss for _ in itertools.count() for loss in s.steps()) for name, s in sessions.items()}
        times = interleaved({name: partial(next, stream) for name, stream in streams.items()}, rounds)
        plan, model = sessions["dense"].plan, sessions["dense"].model
        common = {
            "task": task,
            "engine": "train-step",
            "batch": plan.batch_size,
            "steps": plan.steps or None,
            "density": 1.0,
        }
        common |= {"input": model.lstm.input_size, "hidden": model.lstm.hidden_size, "pattern": "dense"}
        names = {name: sessions[name].config for name in METHODS}
        for row in timing_rows(times, "dense", "dense-fp32", errors, common):
            config = names[row.pop("engine_of")]
            yield row | {"model": config.model, "method": config.method, "variant": config.variant}


def layer_steps(rounds):
    for steps, batch, width, hidden in SHAPES:
        torch.manual_seed(0)
        ours, theirs = LSTM(width, hidden), torch.nn.LSTM(width, hidden)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(steps, batch, width)
        sizes = {"input": width, "recurrent": hidden, "output": hidden, "gates": 4 * hidden}
        scales = {k + "_l0": (1 + 0.3 * torch.randn(batch, n)).requires_grad_() for k, n in sizes.items()}
        calls = {
            "torch": lambda t=theirs, x=x: t(x)[0].sum().backward(),
            "plain": lambda o=ours, x=x: o(x)[0].sum().backward(),
        }
        calls["scaled"] = lambda o=ours, x=x, s=scales: o(x, scales=s)[0].sum().backward()
        p = {name: value.detach().double() for name, value in ours.named_parameters()}
        double = {name: value.detach().double() for name, value in scales.items()}
        with torch.no_grad():
            part = slice(0, 2)  # sequences are independent: two of them tell the error
            plain, _ = oracles.step_loop(ours, p, x[:, part].double())
            scaled, _ = oracles.step_loop(ours, p, x[:, part].double(), scales={n: s[part] for n, s in double.items()})
            got = {"torch": theirs(x)[0], "plain": ours(x)[0], "scaled": ours(x, scales=scales)[0]}
        expected = {"torch": plain, "plain": plain, "scaled": scaled}
        errors = {name: error(got[name][:, part].double(), expected[name]) for name in calls}
        common = {
            "method": "shape-only",
            "batch": batch,
            "steps": steps,
            "input": width,
            "hidden": hidden,
            "density": 1.0,
        }
        names = {"torch": "torch-lstm", "plain": "layer-step", "scaled": "layer-step-scaled"}
        for row in timing_rows(interleaved(calls, rounds), "torch", "dense-fp32", errors, common):
            yield row | {"engine": names[row.pop("engine_of")], "pattern": "dense"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 22
    where = records.where_and_with() | {"threads": 1, "dtype": "float32"}
    rows = [where | row for kind in (train_steps, layer_steps) for row in kind(rounds)]
    records.upsert_timings(rows, project_root() / "results" / "timings-cpu.csv")
    for row in rows:
        name = f"{row['engine']:18} {row.get('task', ''):13} {row['method']:14} H {row['hidden']:4}"
        cost = f"{row['median_ms']:7.1f} ms ± {row['iqr_ms']:.1f}, {1 / row['speedup']:.2f} x {row['opponent']}"
        print(f"{name} {cost}  error {row['error']:.1e}")
