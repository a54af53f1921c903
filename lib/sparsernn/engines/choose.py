"""Which engine runs this model fastest here: tried, briefly, not guessed. And whether that was right."""

from dataclasses import dataclass

import torch

from ..files import error
from ..nets.compact import Compact
from . import available, engine_class, is_dense, timing
from .base import oracle
from .models import Fast

_choices = {}


@dataclass(frozen=True)
class Choice:
    """engine: the name; device: where it was tried; times: ms of every engine tried; refused: name → why it was not."""

    engine: str
    device: str
    times: dict
    refused: dict

    def make(self, model):
        """The model or layer, run by the chosen engine on that device."""
        return _built(model, self.engine, self.device)


def _built(model, name, device):
    return Fast(model, name, device) if isinstance(model, Compact) else engine_class(name)(model, device)


def _signature(model):
    """What the time of a model depends on: shapes and what is not zero."""
    tensors = model.tensors() if isinstance(model, Compact) else model.parts
    found = {name: (tuple(t.shape), int((t != 0).sum())) for name, t in tensors.items()}
    kind = (
        (model.meta["cell"], model.meta["activation"])
        if isinstance(model, Compact)
        else (model.kind, model.cell.activation)
    )
    return kind, tuple(sorted(found.items()))


def example(model, batch, steps, device="cpu"):
    """Random input for it: ids int64 [T, B] of a model, x [T, B, I] of a layer."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, Compact):
        return torch.randint(model.meta["sizes"]["vocabulary"], (steps, batch), generator=generator).to(device)
    return torch.randn(steps, batch, model.inputs, generator=generator).to(device)


def run(built, x):
    """y or logits of what `_built` made."""
    y = built(x)
    return y[0] if isinstance(y, tuple) else y


def compared(batch, most=8):
    """Which sequences of a batch, or columns of a product, are compared with float64: the first, the last, evenly between."""
    return torch.linspace(0, batch - 1, min(batch, most)).round().long()


def reference(model, x):
    """y or logits in float64, of the sequences `compared`."""
    x = x[:, compared(x.shape[1]).to(x.device)].cpu()
    if isinstance(model, Compact):
        return Compact(model.meta, model.tensors()).cpu().double()(x)[0]
    return oracle(model, x)


def of_compared(model, y):
    """y or logits of the sequences `compared`."""
    dim = 0 if isinstance(model, Compact) and model.meta["model"] == "Classifier" else 1
    return y.index_select(dim, compared(y.shape[dim]).to(y.device)).cpu()


def choose(model, batch, device="cpu", steps=100, tolerance=1e-5, seconds=0.6):
    """→ `Choice` for `model` (a `Compact` or a `Layer`) at this batch and number of steps.

    Every engine of the device that is within `tolerance` of float64 is tried three times, and those within three times
    the best for about `seconds` together; the least time counts, which a disturbance does not touch. The answer is kept
    for the next model of the same shapes. Raises ValueError where none runs it, with each one's reason, and for a device
    that is not here, or less than one sequence or step.
    """
    timing.check_device(device)
    if batch < 1 or steps < 1:
        raise ValueError(f"{batch} sequences of {steps} steps; at least one of each")
    key = _signature(model), batch, str(device), steps, tolerance, torch.get_num_threads()
    if key in _choices:
        return _choices[key]
    x, calls, refused = example(model, batch, steps, device), {}, {}
    expected = reference(model, x)
    for name in available(torch.device(device).type):
        if is_dense(name):  # the same layers as compact-torch's, or fewer digits
            continue
        try:
            built = _built(model, name, device)
            wrong = error(of_compared(model, run(built, x)), expected)
        except Exception as problem:  # a kernel that does not compile or launch here is one engine less
            timing.wait(device)  # but after a fault a GPU runs nothing any more
            refused[name] = str(problem)
            continue
        if wrong > tolerance:
            refused[name] = f"error {wrong:.1e} > {tolerance:.0e}"
        else:
            calls[name] = lambda built=built: run(built, x)
    if not calls:
        raise ValueError(f"no engine runs this on {device}: " + "; ".join(f"{n}: {why}" for n, why in refused.items()))
    first = {name: values.min() for name, values in timing.interleaved(calls, device, 0, (3, 3)).items()}
    close = {name: call for name, call in calls.items() if first[name] <= 3 * min(first.values())}
    times = first | {n: values.min() for n, values in timing.interleaved(close, device, seconds, (5, 30)).items()}
    times = {name: float(ms) for name, ms in times.items()}
    _choices[key] = Choice(min(times, key=times.get), str(device), times, refused)
    return _choices[key]
