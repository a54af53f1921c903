"""An engine in the place of a model's small recurrent layers: the model is called as before, and runs faster.

Every layer is still there, weights, names, hooks and all; `nets.quick` has the engine answer as long as the weights are
those it was made of. A layer over one level, in one direction, with all of its neurons goes to the engine at once; any other
through a private copy of itself whose levels the engine runs.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..files import error
from ..nets import quick
from ..nets.layers import RECURRENT, kind_of
from ..nets.outside import Start, deep_copy
from ..nets.readers import answer, everything
from ..nets.small import OURS, of_small
from . import available, engine_class
from .base import Unsupported
from .choose import reference
from .models import layers_of, put_levels, recurrent_layers
from .timing import interleaved

BATCHES = (1, 8, 32, 128)  # sequences that are tried, of one step and of LONGER
LONGER = 8


@dataclass(frozen=True)
class Tried:
    """An engine in the place of a model's layers, and what was measured, the least of some times each.

    error          on the example, against float64
    ms, ms_layers  milliseconds of the example by the engine, by the layers as they are
    us             sequences → microseconds of a step of the first layer that goes on from a state, by engine and layer
    us_plain       of one sequence by torch's plain layer with as many neurons as are left; None where there is no such layer
    most           sequences up to which it answers, of one step and of several: the most for which it was the faster one
    """

    engine: str
    error: float
    ms: float
    ms_layers: float
    us: dict
    us_plain: float | None
    most: tuple[int, int]


def run_by(model, name, most=(BATCHES[-1],) * 2):
    """Have an engine that goes on from states answer for a model's recurrent layers, in place, for up to `most`
    sequences: (of one step, of several).

    Raises Unsupported for a layer it does not run.
    """
    kind, layers = engine_class(name), recurrent_layers(model)
    if not kind.carries:
        raise Unsupported(f"engine {name!r} starts from zeros; a layer goes on from a state")
    for module in layers.values():
        quick.quicken(module, partial(_up_to, most, module.batch_first, _runner(module, kind)))


def _up_to(most, batch_first, run, input, hx=None, scales=None, **more):
    """A call for few sequences; ValueError for more, and for scales. most: of one step, of several."""
    if scales is not None:
        raise ValueError("an engine knows no scales")
    if isinstance(input, PackedSequence):
        steps, batch = len(input.batch_sizes), int(input.batch_sizes[0])
    elif input.dim() == 2 and input.dtype != torch.int64:
        steps, batch = len(input), 1
    else:
        batch, steps = input.shape[:2] if batch_first and input.dim() == 3 else input.shape[1::-1]
    if batch > most[steps > 1]:
        raise ValueError(f"{batch} sequences; the engine is faster for up to {most[steps > 1]}")
    return run(input, hx, **more)


def _runner(module, kind):
    """What runs a recurrent layer by an engine of this kind: (input, hx, …) → output, state."""
    shadow = deep_copy(module).float().cpu().eval().requires_grad_(False)
    put_levels(shadow, layers_of(shadow), kind, one_hot=kind_of(module) is not type(module))
    engines, lists = shadow.level.engines, shadow._small._buffers
    if shadow.summed or not all(engines.values()):
        return shadow.forward
    kept = [[None if len(k) == shadow.hidden_size else k for k in shadow.kept(n)] for n in range(shadow.num_layers)]
    levels = [
        [(engines[f"_l{n}{end}"], bool(end), k) for end, k in zip(shadow.ends(), kept[n], strict=True)]
        for n in range(shadow.num_layers)
    ]
    sent = lists[shadow._small.places_names[-1]], lists["scale"], lists["places_out"]
    return partial(_at_once, levels, shadow, lists["reads"], sent)


def _at_once(levels, shadow, reads, sent, input, hx=None, **more):
    """A batch of numbers by the engines themselves; packed sequences, ids and padding, and one sequence alone, by the copy.

    levels  a list of (engine, whether it is the reverse direction, the neurons that are left or None for all) each
    sent    which of the last level's outputs go out, what they are multiplied with, and their old places; None: all, 1, in order
    """
    if more or isinstance(input, PackedSequence) or input.dim() != 3 or input.dtype != torch.float32:
        return shadow.forward(input, hx, **more)
    if input.shape[2] != shadow.input_size:
        raise ValueError("input of another width; the layer itself says what is wrong")
    x, pair, width = input.transpose(0, 1) if shadow.batch_first else input, shadow.level.pair, shadow.hidden_size
    x = x if reads is None else x.index_select(2, reads)
    given, lasts, expected = hx if pair or hx is None else (hx,), [], (sum(map(len, levels)), x.shape[1], width)
    if given is not None and (len(given) != 1 + pair or not isinstance(given[0], torch.Tensor)):
        raise ValueError("no states of its kind; the layer itself says what is wrong")
    for s in given or ():  # no function for it: one step is short
        if s.shape != expected or s.dtype is not torch.float32 or not s.is_cpu:
            raise ValueError("states of another shape or kind; the layer itself says what is wrong")
    for level in levels:
        outputs = []
        for engine, reverse, kept in level:
            state = None
            if given is not None:
                state = [s[len(lasts)] for s in given]
                state = state if kept is None else [s.index_select(1, kept) for s in state]
            y, last = engine.carry(x.flip(0) if reverse else x, None, state, final=True)
            outputs.append(y.flip(0) if reverse else y)
            lasts.append(last if kept is None else [_wide(s, kept, width) for s in last])
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    places, scale, old = sent
    x = x if places is None else x.index_select(2, places)
    x = x if scale is None else x * scale
    x = x if old is None else x.new_zeros(*x.shape[:2], len(levels[-1]) * width).index_copy_(2, old, x)
    state = [s[0].unsqueeze(0) if len(s) == 1 else torch.stack(s) for s in zip(*lasts, strict=True)]
    return x.transpose(0, 1) if shadow.batch_first else x, tuple(state) if pair else state[0]


def _wide(state, kept, width):
    """A state of the neurons that are left in their old places; zeros for the others."""
    return state.new_zeros(len(state), width).index_copy_(1, kept, state)


@torch.no_grad()
def quickest(model, example, tolerance=1e-5, seconds=0.05):
    """→ `Tried` of the engine that is put in the place of the model's recurrent layers, None where they are left as they are,
    and why they are, in words.

    Only engines in float32, within `tolerance` of float64, and faster than the layers on the example; and they answer only for
    as many sequences, of one step and of several, as they are faster for. Tried on copies: the model has not been called when
    it gets one.
    """
    layers, best, refused = recurrent_layers(model), None, {}
    single = all(p.dtype == torch.float32 and p.is_cpu for layer in layers.values() for p in layer.parameters())
    names = [
        name for name in available("cpu") if engine_class(name).carries and engine_class(name).dtype == torch.float32
    ]
    if not (layers and names and single):
        alone = "engines run recurrent layers in float32 on a CPU alone"
        lacks = "there is none for this machine" if single and layers else alone
        return None, lacks
    for name in names:
        try:
            found = _tried(model, name, example, tolerance, seconds)
        except Exception as problem:  # what does not compile or run here is one engine less; the layers run as they are
            refused[name] = f"{name} could not be tried ({type(problem).__name__}: {problem!s:.200})"
            continue
        if found.error > tolerance:
            refused[name] = f"{name} is off by {found.error:.1e}"
        elif any(found.most) and found.ms < min(found.ms_layers, best.ms if best else found.ms_layers):
            best = found
    if best:
        run_by(model, best.engine, best.most)
    slower = ["its layers are as fast"] if len(refused) < len(names) else []
    return best, "" if best else "; ".join([*slower, *refused.values()])


def _tried(model, name, example, tolerance, seconds):
    start = Start(model)
    with start.again() as fast, start.again() as plain:
        run_by(fast, name)
        said, expected = everything(fast, example), reference(model, example, states=True)
        wrong = max((error(a, b) for a, b in zip(said, expected, strict=True) if a.is_floating_point()), default=0.0)
        if not wrong <= tolerance:
            return Tried(name, wrong, 0.0, 0.0, {}, None, (0, 0))
        calls = {"engine": partial(answer, fast, example), "layers": partial(answer, plain, example)}
        ms = {by: float(samples.min()) for by, samples in interleaved(calls, seconds=seconds, rounds=(3, 30)).items()}
        us, us_plain, most = {}, None, []
        for steps in (1, LONGER):
            most.append(0)
            for batch in BATCHES:
                calls = {"engine": _steps(fast, steps, batch), "layers": _steps(plain, steps, batch)}
                if steps == batch == 1 and (same := _plain(plain)):
                    calls["plain"] = same
                samples = interleaved(calls, seconds=seconds / 4, rounds=(3, 30))
                taken = {by: 1e3 * float(values.min()) for by, values in samples.items()}
                us_plain = taken.get("plain", us_plain)
                us |= {batch: (taken["engine"], taken["layers"])} if steps == 1 else {}
                if taken["engine"] >= taken["layers"]:
                    break
                most[-1] = batch
    return Tried(name, wrong, ms["engine"], ms["layers"], us, us_plain, tuple(most))


def _plain(model):
    """A call of one step of torch's own layer that is as small as a model's first recurrent one; None where torch has none."""
    layer = next(iter(recurrent_layers(model).values()))
    levels = layers_of(layer)
    first, kind = levels["_l0"], next(theirs for theirs in RECURRENT if isinstance(layer, theirs))
    if len(levels) > 1 or not first.hidden or first.inputs != _width(layer) or first.cell.activation in OURS:
        return None
    how = {"nonlinearity": first.cell.activation} if kind is nn.RNN else {}
    plain = kind(first.inputs, first.hidden, **how).eval().requires_grad_(False)
    x, h = torch.zeros(1, 1, first.inputs), torch.zeros(1, 1, first.hidden)
    return partial(plain, x, (h, h) if kind is nn.LSTM else h)


def _width(layer):
    """Columns that a layer reads of what it is given."""
    reads = of_small(layer, "reads")
    return layer.input_size if reads is None else len(reads)


def _steps(model, steps, batch):
    """A call of some steps of a model's first recurrent layer, from a state."""
    layer = next(iter(recurrent_layers(model).values()))
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    words = of_small(layer, "words")
    x = torch.zeros(*shape, layer.input_size) if words is None else torch.zeros(steps, batch, dtype=torch.int64)
    h = torch.zeros(layer.num_layers * (1 + layer.bidirectional), batch, layer.hidden_size)
    return partial(layer, x, (h, h) if isinstance(layer, nn.LSTM) else h)
