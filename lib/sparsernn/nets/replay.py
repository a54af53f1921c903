"""Many small kernels launched as one: functions of tensors as CUDA graphs.

A loop over time launches some twenty kernels a step, and on a GPU each is over before the next is on its way: training by such a
loop waits for the host nine tenths of the time. Calls whose tensors have the same shapes launch the same kernels, so that a
graph is captured of them once and replayed.
"""

import warnings
from collections import OrderedDict
from contextlib import nullcontext

import torch

from .quick import is_plain, watched

AFTER = 3  # calls alike from which a graph pays: capturing one takes as long as some of them
MOST = 24  # graphs that are kept; each has a memory of its own, as much as one call takes
IDLE = 200  # calls of others after which a graph may make room for one


class Graph:
    """function(way, *tensors) captured once: the same kernels on tensors of its own, which are copied in and out."""

    def __init__(self, function, way, tensors):
        self.inputs = [None if t is None else t.new_empty(t.shape) for t in tensors]
        self._copy_in(tensors)
        aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            function(way, *self.inputs)  # libraries get themselves ready, which no graph may hold
        now.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.outputs = function(way, *self.inputs)

    def _copy_in(self, tensors):
        pairs = [(own, given) for own, given in zip(self.inputs, tensors, strict=True) if own is not None]
        for dtype in {own.dtype for own, _ in pairs}:
            alike = [(own, given) for own, given in pairs if own.dtype == dtype]
            torch._foreach_copy_([own for own, _ in alike], [given for _, given in alike])

    def __call__(self, tensors):
        self._copy_in(tensors)
        self.graph.replay()
        return tuple(None if t is None else t.clone() for t in self.outputs)


class Replays:
    """Calls of functions, a graph for those that come again and again.

    capture   (function, way, tensors) → call(tensors), which returns new tensors each time
    """

    def __init__(self, capture=Graph):
        self.capture, self.calls = capture, 0
        self.seen, self.graphs, self.refused = {}, OrderedDict(), False

    def __call__(self, function, way, *tensors):
        """function(way, *tensors) → tuple of tensors, any of them None. `way` is hashable, and with the tensors' shapes says all
        that the kernels depend on; nothing in it is random, and nothing waits for the device."""
        self.calls += 1
        key = (
            function,
            way,
            settings(tensors),
            tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors),
        )
        if key not in self.graphs and not self._take(key, function, way, tensors):
            return function(way, *tensors)
        graph, _ = self.graphs[key]
        self.graphs[key] = graph, self.calls
        self.graphs.move_to_end(key)
        return graph(tensors)

    def _take(self, key, function, way, tensors):
        """Whether there is a graph of this key now."""
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.refused or self.seen[key] < AFTER:
            return False
        if len(self.graphs) >= MOST:
            oldest, (_, used) = next(iter(self.graphs.items()))
            if self.calls - used < IDLE:
                return False
            del self.graphs[oldest], self.seen[oldest]
        try:
            self.graphs[key] = self.capture(function, way, tensors), self.calls
        except RuntimeError as problem:
            self.refused = True
            warnings.warn(
                f"no CUDA graph could be captured; every kernel is launched by itself: {problem}", stacklevel=2
            )
            return False
        return True


def settings(tensors):
    """What else decides which kernels run: the stream, and how libraries may round."""
    matmul = torch.backends.cuda.matmul
    rounding = matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    stream = torch.cuda.current_stream(tensors[0].device).cuda_stream if tensors[0].is_cuda else None
    return stream, *rounding, torch.are_deterministic_algorithms_enabled()


def may(tensor):
    """Whether what is computed on this tensor's device may be replayed, and nobody wants to see the operations."""
    return tensor.is_cuda and is_plain(tensor) and not watched() and not torch.cuda.is_current_stream_capturing()


replayed = Replays()


def run(function, way, *tensors):
    """function(way, *tensors), on a GPU by a graph where it may be, on the device of the first tensor."""
    if not may(tensors[0]):
        return function(way, *tensors)
    with torch.cuda.device(tensors[0].device) if tensors[0].is_cuda else nullcontext():
        return replayed(function, way, *tensors)
