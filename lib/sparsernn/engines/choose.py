"""Which engine runs this model fastest here: tried, briefly, not guessed. And whether that was right."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch.utils._pytree import tree_leaves, tree_map

from ..files import error
from ..nets.outside import deep_copy, draws_kept
from ..nets.readers import answer, everything, moved
from . import available, engine_class, is_dense, timing
from .base import Layer, oracle
from .chain import refuse_method
from .compare import in_float64
from .models import recurrent_layers
from .precision import tf32
from .whole import by_engine

CLOSE = {
    "cpu": 1e-5,
    "cuda": 3e-5,
}  # on an H100 cuDNN's own layers in fp32 are off by up to 1.8e-5, ours by up to 1.1e-5
COARSE = 1e-3  # an error that is asked for by whoever wants int8
_times = WeakKeyDictionary()  # class → shapes and where → engine → ms; no errors, which are each model's own


@dataclass(frozen=True)
class Choice:
    """engine: the name; device: where it was tried; times: ms of every engine tried; refused: name → why it was not;
    example: with what; states: whether those that the model returns were wanted."""

    engine: str
    device: str
    times: dict
    refused: dict
    example: object = None
    states: bool = True

    def make(self, thing):
        """The model or layer, run by the chosen engine on that device."""
        return _built(thing, self.engine, self.example, self.device, self.states)


def _built(thing, name, example, device, states):
    if isinstance(thing, Layer):
        return engine_class(name)(thing, device)
    return by_engine(thing, name, example, device, states)


def _signature(thing, example):
    """What the time of a model or layer depends on: shapes and what is not zero, of it and of what it is called with."""
    tensors = thing.parts if isinstance(thing, Layer) else thing.state_dict()
    found = [(name, tuple(t.shape), int((t != 0).sum())) for name, t in tensors.items()]
    given = [(tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in tree_leaves(example)]
    layers = [thing.cell] if isinstance(thing, Layer) else recurrent_layers(thing).values()
    says = [
        getattr(layer, "activation", getattr(layer, "nonlinearity", "")) for layer in layers
    ]  # torch's own, or ours
    kind = thing.kind if isinstance(thing, Layer) else ""
    return (kind, *says), tuple(sorted(found)), repr(given)


@torch.no_grad()
def run(built, example, states=False):
    """What it answers: of a layer y, of a model the tensors it returns, with or without states."""
    if not isinstance(built, torch.nn.Module):
        return [built(example)]
    return everything(built, example) if states else answer(built, example)


def compared(batch, most=8):
    """Which sequences of a batch, or columns of a product, are compared with float64: the first, the last, evenly between."""
    return torch.linspace(0, batch - 1, min(batch, most)).round().long()


@torch.no_grad()
def reference(thing, example, states=False):
    """On the CPU, in float64 (a model that insists on a dtype of its own in that one): of a layer y of the sequences `compared`,
    of a model its answers, with or without states."""
    if isinstance(thing, Layer):
        return [oracle(thing, example[:, compared(example.shape[1]).to(example.device)].cpu())]
    here = moved(example, "cpu")
    (model,), (here,) = in_float64([deep_copy(thing).cpu().eval()], [here])
    return run(model, here, states)


def worst(thing, answers, expected):
    """The largest error of what an engine answered."""
    if isinstance(thing, Layer):
        answers = [y.index_select(1, compared(y.shape[1]).to(y.device)) for y in answers]
    if len(answers) != len(expected):
        return float("inf")
    return max(error(a.cpu(), b) for a, b in zip(answers, expected, strict=True))


def choose(thing, example, device="cpu", tolerance=None, seconds=0.6, states=True):
    """→ `Choice` for a model, small or as it was, or for a `Layer`, called with this example.

    thing    a model with a recurrent layer, or `engines.base.Layer`
    example  what a model is called with (a tensor, a tuple or dict of arguments, or a function that calls it); of a layer
             x [T, B, I]
    states   whether final states that a model returns are wanted: an engine that does not hand them out is none for it then
    Every engine of the device that is within `tolerance` of float64 (None: 1e-5 on a CPU, 3e-5 on a GPU, where torch's own
    layers need that; int8 only where it is at least 1e-3) is tried three
    times, and those within three times the best for about `seconds` together; the least time counts, which a disturbance
    does not touch. Times are kept for the next model of the same class and shapes; whether an engine is right is asked of
    every model, with what torch does beside the layers, a convolution say, in full fp32: how it is rounded is torch's setting.
    Random generators are left as they were. Raises ValueError where none runs it, with each one's reason, for
    a model with a method on it, and for a device that is not here; `timing.Unusable` where an engine's fault ends a GPU's use.
    """
    timing.check_device(device)
    tolerance = CLOSE[torch.device(device).type] if tolerance is None else tolerance
    if isinstance(thing, torch.nn.Module):
        refuse_method(thing)
    with draws_kept():
        calls, refused = _right(thing, example, device, tolerance, states)
        if not calls:
            reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
            raise ValueError(f"no engine runs this on {device}: {reasons}")
        key = _signature(thing, example), str(device), states, torch.get_num_threads()
        known = _times.setdefault(type(thing), {}).setdefault(key, {})
        if not calls.keys() <= known.keys():
            known |= _measured(calls, device, seconds)
    times = {name: known[name] for name in calls}
    return Choice(min(times, key=times.get), str(device), times, refused, example, states)


def _right(thing, example, device, tolerance, states):
    """→ name → call of the example by every engine that is within `tolerance`, name → why it is not of the others."""
    calls, refused, expected = {}, {}, reference(thing, example, states)
    here = moved(example, device)
    here = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, here)
    for name in available(torch.device(device).type):
        if is_dense(name):  # the same layers as compact-torch's, or fewer digits
            continue
        if engine_class(name).dtype == torch.int8 and tolerance < COARSE:  # one example may hide what it costs
            continue
        try:
            built = _built(thing, name, example, device, states)
            with tf32(False):  # a convolution that torch rounds beside an engine is none of its faults
                said = run(built, here, states)
            wrong = worst(thing, said, expected)
        except Exception as problem:  # a kernel that does not compile or launch here is one engine less
            timing.check_usable(device, name, problem)  # but after a fault a GPU runs nothing any more
            refused[name] = str(problem)
            continue
        missing = [bool((a != a).any()) > bool((b != b).any()) for a, b in zip(said, expected, strict=False)]
        if any(missing):
            refused[name] = "it leaves NaN where the model has numbers, as of final states that it does not hand out"
        elif wrong > tolerance:
            refused[name] = f"error {wrong:.1e} > {tolerance:.0e}"
        else:
            calls[name] = lambda built=built: run(built, here, states)
    return calls, refused


def _measured(calls, device, seconds):
    """name → the least milliseconds of a call: of three, or of those close to the quickest in about `seconds` together."""
    first = {name: values.min() for name, values in timing.interleaved(calls, device, 0, (3, 3)).items()}
    close = {name: call for name, call in calls.items() if first[name] <= 3 * min(first.values())}
    times = first | {n: values.min() for n, values in timing.interleaved(close, device, seconds, (5, 30)).items()}
    return {name: float(ms) for name, ms in times.items()}
