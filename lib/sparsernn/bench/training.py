"""What a method costs per training step against dense, interleaved: python -m sparsernn.bench.training --device cpu|cuda

Two kinds of rows go to results/timings-<device>.csv: whole training steps of the study's models (engine `train-step`, opponent
`dense-fp32`), in the mean of as many as a held gradient of the KL lasts at the longest, and the bare layer forward and
backward against torch.nn.LSTM (engine `layer-step`, method `shape-only`, with and without scales). On a CPU one thread
computes; run it on an otherwise idle machine.

Time is what passes on the wall until the device has done with the steps. Between two events on a GPU's stream, the host ahead
of them, as engines are timed, would say what no user sees: a training step looks at its loss and waits for a batch. How far
the host holds up a GPU is said beside it: `floor_ms` is what the kernels and copies of a step take one after the other, and
`floor_note` how many they are.

`error` of a training step is that of its loss, its penalty and all gradients, on the device in float32 against float64 on the
CPU, with the same noise and without the rounding of products to bfloat16 that a row's `dtype` names; of a layer, that of its
output. (A fit of the KL that is flat beyond |log α| = 8 has an edge there, on whose other side a weight may fall: 4e-5 of
ptb-char's largest gradient.) Nothing is rounded to tf32.
"""

import argparse
import copy
import itertools
import sys
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from .. import records, tasks
from ..engines.precision import tf32
from ..engines.timing import check_device, interleaved, summary, wait
from ..files import error, project_root
from ..nets.layers import LSTM
from ..sparsify.attach import Study
from ..study.config import RunConfig
from ..study.training import Session
from .sweep import slug

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


class SameNoise(TorchFunctionMode):
    """Inside, normal noise is the same on every device and in every type: drawn on the CPU in float32, from a seed."""

    def __init__(self, seed=0):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not torch.randn:
            return function(*args, **kwargs)
        drawn = torch.randn(*args, generator=self.generator)
        return drawn.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))


def learning_epoch(session):
    """The last epoch (0-based) in which a session's method learns what to keep: there every penalty is charged in full."""
    return max(1, session.method.learning_steps // session.steps_per_epoch) - 1


def costs_and_gradients(session, device, dtype):
    """Name → loss, penalty and every gradient of a training step, float64 on the CPU: on the first training batch, by a copy of
    the session's model on a device in a type, under `SameNoise`."""
    plan, model = session.plan, copy.deepcopy(session.model).to(device, dtype).train()
    batches = session.task.batches("train", plan.batch_size, plan.steps or None, torch.Generator().manual_seed(0))
    batch, study = next(batches).to(device, dtype), Study.of(model)
    study.step = study.method.step = learning_epoch(session) * session.steps_per_epoch
    with SameNoise():
        logits, _ = model(*batch.inputs, lengths=batch.lengths)
    found = {"loss": session.task.loss(logits, batch), "penalty": torch.as_tensor(study.penalty())}
    (found["loss"] + found["penalty"]).backward()
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().to("cpu", torch.float64) for name, value in found.items()}


def step_error(session):
    """Largest `error` of what a training step computes on the session's device in float32, against float64 on the CPU, each
    tensor in units of its largest number: gradients of a mean are far below one."""
    exact = costs_and_gradients(session, "cpu", torch.float64)
    found = costs_and_gradients(session, session.device, torch.float32)
    if found.keys() != exact.keys():
        return float("inf")
    units = {name: float(value.abs().max()) or 1.0 for name, value in exact.items()}
    return max(error(found[name] / unit, exact[name] / unit) for name, unit in units.items())


def until_done(call, device):
    """The same call, over when the device has done with it."""

    def whole():
        result = call()
        wait(device)
        return result

    return whole


def floor(call, device):
    """`floor_ms` and `floor_note` of a step, of a call that takes `AT_ONCE` on a GPU: the time in which kernels run and bytes
    are copied. Empty elsewhere, and where torch's profiler may not look."""
    if torch.device(device).type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
    spans = [
        event.time_range.elapsed_us()
        for event in seen.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    note = f"measured: {len(spans) / AT_ONCE:.0f} kernels and copies one after the other"
    return {"floor_ms": sum(spans) / 1e3 / AT_ONCE, "floor_note": note} if spans else {}


def some_steps(session):
    """A function that takes the next `AT_ONCE` steps of the session's `learning_epoch`, begun anew at its end."""
    session.epoch = learning_epoch(session)

    def endless():
        while True:
            yield from session.steps()

    stream = endless()
    return until_done(lambda: [next(stream) for _ in range(AT_ONCE)], session.device)


def on_the_wall(calls, seconds):
    """`interleaved` by the clock on the wall, of calls that are over when the device has done with them."""
    for call in calls.values():
        call()  # so that it is compiled and warm
    return interleaved(calls, seconds=seconds)


def train_steps(seconds, names=NO_CORPUS, device="cpu"):
    """Rows of whole training steps, a method beside dense."""
    for task in names:
        data = tasks.load(task, PROFILES[task])
        sessions = {m: Session(RunConfig(task, method=m, profile=PROFILES[task]), data, device) for m in METHODS}
        errors = {name: step_error(session) for name, session in sessions.items()}
        calls = {name: some_steps(session) for name, session in sessions.items()}
        samples = on_the_wall(calls, seconds)
        plan, layers = sessions["dense"].plan, sessions["dense"].model.recurrent
        common = {"task": task, "engine": "train-step", "batch": plan.batch_size, "steps": plan.steps or None}
        common |= {"density": 1.0, "input": layers.input_size, "hidden": layers.hidden_size, "pattern": "dense"}
        for name, row in timing_rows({name: ms / AT_ONCE for name, ms in samples.items()}, "dense", errors):
            config = sessions[name].config
            dtype = "bfloat16" if sessions[name].rounds else "float32"
            row |= {"model": config.model, "method": name, "variant": config.variant, "dtype": dtype}
            yield common | row | floor(calls[name], device)


def layer_steps(seconds, device="cpu"):
    """Rows of our layer, with and without scales, beside torch's."""
    for steps, batch, width, hidden in SHAPES:
        torch.manual_seed(0)
        ours, theirs = LSTM(width, hidden).to(device), torch.nn.LSTM(width, hidden).to(device)
        theirs.load_state_dict(ours.state_dict())
        x, sizes = (
            torch.randn(steps, batch, width).to(device),
            {"input": width, "recurrent": hidden, "output": hidden, "gates": 4 * hidden},
        )
        scales = {kind + "_l0": (1 + 0.3 * torch.randn(batch, n)).requires_grad_() for kind, n in sizes.items()}
        forward = {"torch-lstm": lambda net, x, theirs=theirs: theirs(x)[0], "layer-step": lambda net, x: net(x)[0]}
        forward["layer-step-scaled"] = lambda net, x, s=scales: net(x, scales={n: z.to(x) for n, z in s.items()})[0]
        double = copy.deepcopy(ours).to("cpu", torch.float64)
        with torch.no_grad():
            exact = {name: call(double, x.cpu().double()) for name, call in forward.items() if name != "torch-lstm"}
            exact["torch-lstm"] = exact["layer-step"]
            errors = {name: error(call(ours, x).cpu().double(), exact[name]) for name, call in forward.items()}
        calls = {name: lambda call=call, x=x, net=ours: call(net, x).sum().backward() for name, call in forward.items()}
        calls = {name: until_done(call, device) for name, call in calls.items()}
        common = {"method": "shape-only", "batch": batch, "steps": steps, "input": width, "hidden": hidden}
        for name, row in timing_rows(on_the_wall(calls, seconds), "torch-lstm", errors):
            yield common | row | {"engine": name, "density": 1.0, "pattern": "dense", "dtype": "float32"}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="spent timing one model or shape")
    parser.add_argument(
        "--tasks", nargs="+", default=NO_CORPUS, choices=PROFILES, help="whose training steps are timed"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="the table; results/timings-<device>.csv if not given")
    given = parser.parse_args(arguments)
    try:
        check_device(given.device)
    except ValueError as problem:
        parser.error(str(problem))
    if given.device == "cpu":
        torch.set_num_threads(1)
    path = given.out or project_root() / "results" / f"timings-{slug(given.device)}.csv"
    where = records.where_and_with(given.device) | {"threads": torch.get_num_threads()}
    with tf32(False):
        steps = train_steps(given.seconds, given.tasks, given.device)
        for row in itertools.chain(steps, layer_steps(given.seconds, given.device)):
            records.upsert_timings([where | row], path)  # at once: a sweep that is stopped leaves what it has
            sys.stdout.write(said(row) + "\n")
            sys.stdout.flush()


def said(row):
    """A row in a line."""
    name = f"{row['engine']:18} {row.get('task', ''):13} {row['method']:14} H {row['hidden']:4}"
    cost = f"{row['median_ms']:7.1f} ms ± {row['iqr_ms']:.1f}, {1 / row['speedup']:.2f} x {row['opponent']}"
    busy = f"; {row['floor_ms']:.1f} ms {row['floor_note']}" if "floor_ms" in row else ""
    return f"{name} {cost}  error {row['error']:.1e}{busy}"


if __name__ == "__main__":
    main()
