"""A smaller model in place of one under masks, with a proof that it is equal, and what it costs before and after."""

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from ..files import error
from ..nets.found import Found
from ..nets.layers import kind_of
from ..nets.masks import Masks
from ..nets.outside import Watch, calls_of
from ..nets.readers import answer
from ..nets.swap import closed_over, folded, output_scale, plain_copy, reading_of, rebuilt
from ..sparsify.attach import Study
from .timing import wait

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Proof:
    """What `compact` measured on the example: prints as a table.

    error      max|small − model| / max(1, max|model|) of everything the model returns (states handed through left out)
    weights_*  numbers in matrices that are not zero, before and after
    bytes_*    parameters and buffers                     ms_*   a forward pass, median of nine, interleaved
    layers     name → what became of it
    """

    error: float
    weights_before: int
    weights_after: int
    bytes_before: int
    bytes_after: int
    ms_before: float
    ms_after: float
    layers: dict

    def __str__(self):
        lines = [f"{name:20} {what}" for name, what in self.layers.items()]
        lines += [
            f"{'error':20} {self.error:.1e} on the example",
            f"{'weights not zero':20} {self.weights_before:,} → {self.weights_after:,}",
            f"{'bytes':20} {self.bytes_before:,} → {self.bytes_after:,} ({self.bytes_before / self.bytes_after:.1f}× smaller)",
            f"{'milliseconds':20} {self.ms_before:.2f} → {self.ms_after:.2f} ({self.ms_before / self.ms_after:.1f}× faster)",
        ]
        return "\n".join(lines)


def compact(model, example, consumers=None):
    """A smaller model that computes what `model` computes in evaluation, and the proof → (small, Proof).

    model      with a method attached: its masks and means are used; without: its zeros are (torch.nn.utils.prune's too)
    example    what the model is called with: a tensor, or a tuple or dict of arguments
    consumers  layer → names of the modules that alone read its output, as it is, where running the example cannot show it
    A layer whose readers are not all known keeps its outer width: inside it shrinks, removed neurons come out as zeros.
    Raises ValueError where a layer would keep no neuron, RuntimeError if the result were not equal.
    """
    was_training = model.training
    model.eval()
    try:
        found, study = Found(model), Study.of(model)
        if not found.recurrent:
            raise ValueError(
                f"{type(model).__name__} has no nn.LSTM, nn.GRU or nn.RNN inside; there is nothing to thin out"
            )
        before = answer(model, example)  # torch's pruning puts its products in place when a module is called
        if not before:
            raise ValueError("the model returns no tensor for the example, so nothing could be compared")
        plain = plain_copy(model)
        found = Found(plain)
        parameters = {name: parameter.detach().cpu() for name, parameter in found.parameters.items()}
        outside = _read_outside(plain, found, example)
        if study:
            masks, means = study.masks(), {name: mean.cpu() for name, mean in study.means().items()}
        else:
            masks = Masks(found.axes(), {n: p != 0 for n, p in parameters.items() if p.dim() == 2}, {})
            means = {}
        producers = [name for name, module in found.layers.items() if kind_of(module) is not nn.Linear]
        readings = {name: reading_of(plain, found, name, example, consumers or {}) for name in producers}
        closed = closed_over(found, masks, readings)
        scales = {name: output_scale(found, name, masks, means) for name in found.recurrent}
        tensors = folded(found, closed, means, parameters, readings, scales)
        for narrow in (True, False):  # what lies between a layer and its reader may insist on the width
            small, layers = rebuilt(copy.deepcopy(plain), found, closed, tensors, readings, scales, narrow, outside)
            worst = _worst(small, example, before)
            if worst <= TOLERANCE.get(before[0].dtype, 1e-2):
                break
        else:
            raise RuntimeError(
                f"the small model differs from the model on the example by {worst:.1e}: "
                + ("are the consumers given the only readers?" if consumers else "please report it with the model")
            )
        ms_before, ms_after = _milliseconds(model, small, example)
        counts = _weights(plain), _weights(small)
        return small, Proof(worst, *counts, _bytes(plain), _bytes(small), ms_before, ms_after, layers)
    finally:
        model.train(was_training)


def _worst(small, example, before):
    """Largest error of what the small model answers; infinite where it cannot be run."""
    try:
        after = answer(small, example)
    except RuntimeError:
        return float("inf")
    if len(after) != len(before):
        return float("inf")
    return max(error(a, b) for a, b in zip(after, before, strict=True))


def _read_outside(plain, found, example):
    """Names of layers that the model does not call, or whose weights it also reads otherwise: they stay as they are."""
    owners = {}
    for full, canonical in found.canonical.items():
        owners.setdefault(canonical, []).append(found.layers[full.rpartition(".")[0]])
    watched = {name: (parameter, owners[name]) for name, parameter in found.weights.items()}
    with calls_of(found.layers) as called, Watch(watched) as watch:
        answer(plain, example)
    read = {full.rpartition(".")[0] for full, canonical in found.canonical.items() if canonical in watch.read}
    return {name for name in found.layers if name in read or name not in called}


def _weights(model):
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return sum(int((t != 0).sum()) for t in tensors if t.dim() == 2 and t.is_floating_point())


def _bytes(model):
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    )


def _milliseconds(model, small, example, rounds=9):
    times, device = {model: [], small: []}, answer(model, example)[0].device
    for _ in range(rounds):
        for each_model, taken in times.items():
            wait(device)
            start = time.perf_counter()
            answer(each_model, example)
            wait(device)
            taken.append(1e3 * (time.perf_counter() - start))
    return tuple(statistics.median(taken) for taken in times.values())
