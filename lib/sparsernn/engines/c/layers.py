"""Layers and products by the C engine: weights in float32, in int8, or in int8 with all zeros."""

import math

import numpy as np
import torch

from ...nets.cells import CEILING
from ..base import KINDS, Engine, Unsupported, check_ids
from ..products import Product
from . import build, pack
from .build import NO_SUCH_WORD, done
from .whole import Whole

build.compiler()  # without one there are no such engines: better known when this file is imported than when one is made

LIMITS = {"tanh": 0.0, "relu": math.inf, "clipped_relu": CEILING}  # where C cuts an RNN's h off; 0: tanh does
FLIP = {"avx512": 128}  # what is added to every q of x, by path (simd.h)


NOWHERE = None, None


def _float32(tensor):
    return tensor.detach().cpu().float().contiguous()


def _numbers(tensor):
    """What C reads of a tensor: of one that fits already itself, since only its address is taken."""
    return tensor.contiguous() if tensor.dtype == torch.float32 else tensor.float().contiguous()


def _addresses(states):
    """Of h and, where there is one, c."""
    return states[0].data_ptr(), states[1].data_ptr() if len(states) > 1 else None


class InFloat32:
    """How a matrix is laid down: the way that its zeros fit best."""

    dtype = torch.float32

    def packed(self, weight):
        return pack.pack_floats(weight)

    def without_flip(self, bias, arrays, step):
        return bias

    def step_of(self, reach, x):
        """Of x in int8; none is needed."""
        return 0.0


class InInt8:
    """int8 weights with a scale a row, and x as whole steps; what lies beyond 127 of them is cut off and counted, and of what
    is not finite comes NaN."""

    dtype, dense = torch.int8, False

    def packed(self, weight):
        return pack.pack_bytes(weight, self.dense)

    def without_flip(self, bias, arrays, step):
        """The bias less what is added to each product since x is stored as the path multiplies it."""
        return bias - FLIP.get(self.path or build.paths()[0], 0) * step * arrays["sums"]

    def step_of(self, reach, x):
        """x in int8 goes as far as is known, or else as this one, the first that is met. Raises ValueError where none of it is
        finite."""
        if reach is not None:
            return reach / 127
        finite = x[x.isfinite()]
        if not len(finite):
            raise ValueError("int8 goes as far as the first numbers that it meets, and none of these is finite")
        return float(finite.abs().max()) / 127 or 1 / 127


class Linear(InFloat32):
    """y [..., V] = x [..., K] Wᵀ + b. reach: how far x goes, None where that is not known; `saturated`: how many numbers int8
    has cut off so far."""

    def __init__(self, weight, bias, path=None, reach=None):
        if weight.shape[1] >= pack.MOST:
            raise Unsupported(f"{weight.shape[1]} columns; the C engine's blocks have room for {pack.MOST - 1}")
        self.path, self.reach, self.saturated, self.inputs = path, reach, 0, weight.shape[1]
        self.arrays, self.bias = self.packed(_float32(weight).numpy()), _float32(bias).numpy().astype(np.float64)
        self.memory = None
        build.library(path)  # compiled when an engine is made, not when it is called

    def prepare(self, x):
        step = self.step_of(self.reach, x)
        bias = self.without_flip(self.bias, self.arrays, step)
        self.memory = pack.pack_linear(bias, self.arrays, self.inputs, step)

    def __call__(self, x, times=1):
        if x.shape[-1] != self.inputs:
            raise ValueError(f"input has width {x.shape[-1]}, expected {self.inputs}")
        x = _float32(x)
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], len(self.bias))
        if self.memory is None:
            self.prepare(x)
        count, y = x.numel() // self.inputs, torch.empty(*x.shape[:-1], len(self.bias))
        result = build.library(self.path).sparsernn_linear(
            self.memory.address, x.data_ptr(), y.data_ptr(), count, times
        )
        self.saturated += done(result, f"a product of {len(self.bias)} rows")
        return y


class LinearInt8(InInt8, Linear):
    """The same in int8."""


class LinearDenseInt8(LinearInt8):
    dense = True


class Blocks(InFloat32, Engine):
    """A layer in float32: blocks of 16×1, 8×4 or 16×4, or scattered weights, whichever its zeros fit best.

    path       of `build.PATHS`; the fastest if None
    saturated  how many numbers int8 has cut off so far (0 here)
    """

    devices, reads_ids, carries = ("cpu",), True, True
    activations = (*Engine.activations, "clipped_relu")
    path, product = None, Linear

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        if max(layer.hidden, 1) >= pack.MOST:
            raise Unsupported(f"{layer.hidden} neurons; the C engine's blocks have room for {pack.MOST - 1}")
        self.saturated, self.hidden, self.inputs = 0, layer.hidden, layer.inputs
        self.states = 2 if layer.kind == "LSTM" else 1
        self.of_state = self.packed(_float32(layer.weight_hh).numpy())
        self.by_ids = self.by_numbers = None
        build.library(self.path)  # compiled when an engine is made, not when it is called

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        return cls.product(weight, bias, cls.path, reach)

    @classmethod
    def whole(cls, chain, width, states, device):
        return Whole(chain, cls, width, states)

    def step_of_state(self):
        """Of h in int8."""
        return 0.0

    def prepare(self, x=None):
        """The layer laid down for ids, or for numbers like x."""
        layer, step, table = self.layer, self.step_of_state(), None
        bias = self.without_flip(_float32(layer.parts["bias"]).numpy().astype(np.float64), self.of_state, step)
        weight, of_input, steps = _float32(layer.weight_ih).numpy(), {"kind": "nothing"}, (0.0, step)
        if x is None:
            table = np.pad(weight.T, ((0, 1), (0, 0))) + bias
        else:
            if self.inputs >= pack.MOST:
                raise Unsupported(f"{self.inputs} inputs; the C engine's blocks have room for {pack.MOST - 1}")
            of_input, steps = self.packed(weight), (self.step_of(layer.reach, x), step)
            bias = self.without_flip(bias, of_input, steps[0])
        limit = LIMITS[layer.cell.activation] if layer.kind == "RNN" else 0.0
        named = KINDS[layer.kind], layer.cell.activation == "hard", limit, layer.row_of.numpy(), layer.fixed.numpy()
        return pack.pack_layer(*named, bias, table, self.inputs, of_input, self.of_state, steps)

    def __call__(self, x, live=None):
        return self.carry(x, live)[0]

    def carry(self, x, live=None, state=None, final=False):
        """→ y, and the last state [h, c] (GRU, RNN: [h]), each [B, H], where a state is given or `final`; else None."""
        ids, shape = x.dtype == torch.int64, x.shape
        if ids or live is not None or len(shape) != 3 or shape[2] != self.inputs or not x.numel():
            self.check_shapes(x, live)
        steps, batch, hidden = shape[0], shape[1], self.hidden
        memory = (self.by_ids if ids else self.by_numbers) or self.lay_down(x)
        x, y, last = x.contiguous() if ids else _numbers(x), torch.empty(steps, batch, hidden), None
        mask, before, after = None, NOWHERE, NOWHERE
        if live is not None:
            live = live.contiguous()
            mask = live.data_ptr()
        if state is not None:
            before, state = self._given(state, batch)
        if final or state is not None:
            last = [torch.empty(batch, hidden) for _ in range(self.states)]
            after = _addresses(last)
        result = build.library(self.path).sparsernn_run(
            memory.address,
            None if ids else x.data_ptr(),
            x.data_ptr() if ids else None,
            mask,
            y.data_ptr(),
            before[0],
            before[1],
            after[0],
            after[1],
            steps,
            batch,
        )
        if result:  # so many numbers cut off, or a complaint
            if result == NO_SUCH_WORD:
                check_ids(x, self.inputs)
            self.saturated += done(result, f"{batch} sequences of {hidden} neurons")
        return y, last

    def _given(self, state, batch):
        """→ addresses of a state's two parts, and what they belong to."""
        expected = (batch, self.hidden)
        if len(state) != self.states or any(s.shape != expected for s in state):
            shapes = [tuple(s.shape) for s in state]
            raise ValueError(f"state is {shapes}, expected {self.states} of {expected}")
        state = [_numbers(s) for s in state]
        return _addresses(state), state

    def lay_down(self, x):
        """`prepare` for what is read, ids or numbers like x, once."""
        if x.dtype == torch.int64:
            self.by_ids = self.prepare()
            return self.by_ids
        self.by_numbers = self.prepare(_numbers(x))
        return self.by_numbers


class Int8(InInt8, Blocks):
    """int8 weights in blocks of 8×4 or 16×4, one scale a row; h in 127 steps of its bound, x of how far it is known to go
    (`Layer.reach`), or else the first x does.

    Raises Unsupported for a ReLU, whose h has no largest value.
    """

    product = LinearInt8

    def __init__(self, layer, device="cpu"):
        if layer.cell.activation == "relu":
            raise Unsupported("int8 needs a bounded state; that of a ReLU has no bound, a clipped one has")
        super().__init__(layer, device)

    def step_of_state(self):
        return self.layer.bound / 127


class DenseInt8(Int8):
    """The same with all zeros multiplied: what sparse int8 has to beat."""

    dense, product = True, LinearDenseInt8


class BlocksProduct(Product):
    """The product of `Blocks` on its own. A column of x is a row in C; `times`: repeated there, without a call between."""

    devices, linear = ("cpu",), Linear
    reads = torch.float32

    def prepare(self, weight):
        return self.linear(weight.float(), torch.zeros(len(weight)))

    def __init__(self, weight, device="cpu"):
        self.weight = self.prepare(weight)

    def __call__(self, x, times=1):
        return self.weight(x.T, times).T


class Int8Product(BlocksProduct):
    dtype, linear = torch.int8, LinearInt8


class DenseInt8Product(BlocksProduct):
    dtype, linear = torch.int8, LinearDenseInt8
