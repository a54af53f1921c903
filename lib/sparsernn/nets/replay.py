"""Many small kernels launched as one: functions of tensors as CUDA graphs.

A loop over time launches kernels that are over before the next is on its way: training by such a loop waits for the host.
Calls whose tensors have the same shapes launch the same kernels, so that a graph is captured of them once and replayed.
"""

import threading
import warnings
from collections import OrderedDict
from functools import cache

import torch

from .quick import is_plain, watched

AFTER = 3  # calls alike from which a graph pays: capturing one takes as long as some of them
MOST, IDLE = 256, 2000  # graphs that are kept; calls of others after which one makes room
SHARE, TIMES = 4, 4  # of a GPU's memory graphs may hold one part in `SHARE`; one is taken to hold `TIMES` its inputs
SEEN = 10_000  # kinds of calls that are counted


@cache
def _streams(device):
    """One stream to try a function on and one to capture it on, kept for ever: libraries give each stream a memory."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Graph:
    """function(way, *tensors) captured once: the same kernels on tensors of its own, which are copied in and out.

    The tensors are on the current device. Raises RuntimeError where the function does what no graph holds.
    """

    @torch.inference_mode(False)  # what is made in it could not be written to outside of it
    @torch.no_grad()
    def __init__(self, function, way, tensors):
        self.inputs = [None if t is None else t.new_empty(t.shape) for t in tensors]
        self._copy_in(tensors)
        self._capture(function, way)

    def _capture(self, function, way):
        now = torch.cuda.current_stream()
        aside, capturing = _streams(now.device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            function(way, *self.inputs)  # libraries get themselves ready, which no graph may hold
        now.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(now):  # that it is this one again, even where capturing fails
            with torch.cuda.graph(self.graph, stream=capturing, capture_error_mode="thread_local"):
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
    """Calls of functions, a graph for those that come again and again; one thread at a time, of whatever stream.

    capture   (function, way, tensors) → call(tensors), which returns new tensors each time
    """

    def __init__(self, capture=Graph):
        self.capture, self.lock = capture, threading.RLock()
        self.refused = False
        self.clear()

    def clear(self):
        """Give back what graphs hold; calls that come again get new graphs."""
        self.calls, self.seen, self.graphs = 0, {}, OrderedDict()  # key → graph, its bytes, the call that used it last

    def __call__(self, function, way, *tensors):
        """function(way, *tensors) → tuple of tensors, any of them None. `way` is hashable, and with the tensors' shapes says all
        that the kernels depend on; nothing in it is random, and nothing waits for the device."""
        shapes = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in tensors)
        key = function, way, settings(tensors[0]), shapes
        with self.lock:
            self.calls += 1
            if key in self.graphs or self._take(key, function, way, tensors):
                graph, size, _ = self.graphs[key]
                self.graphs[key] = graph, size, self.calls
                self.graphs.move_to_end(key)
                return graph(tensors)
        return function(way, *tensors)

    def _take(self, key, function, way, tensors):
        """Whether there is a graph of this key now."""
        if len(self.seen) > SEEN:
            self.seen.clear()
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.refused or self.seen[key] < AFTER:
            return False
        size = TIMES * sum(t.numel() * t.element_size() for t in tensors if t is not None)
        while len(self.graphs) >= MOST or size + sum(held for _, held, _ in self.graphs.values()) > room(
            tensors[0].device
        ):
            oldest, (_, _, used) = next(iter(self.graphs.items()), (None, (None, 0, self.calls)))
            if self.calls - used < IDLE:
                return False
            del self.graphs[oldest]
            self.seen.pop(oldest, None)
        try:
            self.graphs[key] = self.capture(function, way, tensors), size, self.calls
        except torch.OutOfMemoryError:  # others need it more
            self.clear()
            self.seen[key] = -self.calls - IDLE
            return False
        except RuntimeError as problem:
            self.refused = True
            warnings.warn(
                f"no CUDA graph could be captured; every kernel is launched by itself: {problem}", stacklevel=3
            )
            return False
        return True


def room(device):
    """Bytes that graphs may hold on a device."""
    return torch.cuda.get_device_properties(device).total_memory / SHARE if device.type == "cuda" else float("inf")


def settings(tensor):
    """What else decides which kernels run: the stream, and how libraries may round."""
    matmul = torch.backends.cuda.matmul
    names = "fp32_precision", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"
    rounding = [getattr(matmul, name) for name in (*names, "allow_fp16_accumulation")]
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None
    return stream, *rounding, torch.are_deterministic_algorithms_enabled()


def may(tensor):
    """Whether what is computed on this tensor's device may be replayed, and nobody wants to see the operations."""
    return tensor.is_cuda and is_plain(tensor) and not watched() and not torch.cuda.is_current_stream_capturing()


replayed = Replays()


def run(function, way, *tensors):
    """function(way, *tensors), by a graph where it may be, on the device of the first tensor."""
    call = replayed if may(tensors[0]) else lambda function, way, *tensors: function(way, *tensors)
    if not tensors[0].is_cuda:
        return call(function, way, *tensors)
    with torch.cuda.device(tensors[0].device):  # on which kernels are launched, and graphs captured
        return call(function, way, *tensors)
