"""torch's own fused layer (cuDNN, oneDNN) on what is left of a layer, in five precisions; and the plain step loop."""

import copy

import torch
from torch import nn
from torch.backends import cudnn
from torch.nn import functional as F

from ..nets.replay import Graph
from .base import Engine, Unsupported, one_hot
from .parts import run
from .precision import tf32
from .products import quantised

MODULES = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


def to_module(layer):
    """torch's layer that computes what `layer` does: a constant gate is a bias alone, σ⁻¹ or tanh⁻¹ of its value.

    Raises Unsupported for hard gates, and for a constant gate of a relu RNN that no bias gives.
    """
    if layer.cell.activation == "hard":
        raise Unsupported("torch's fused layers have no hard gates")
    extra = {"nonlinearity": layer.cell.activation} if layer.kind == "RNN" else {}
    module = MODULES[layer.kind](layer.inputs, layer.hidden, **extra).double().requires_grad_(False)
    live, parts = layer.parts["live"].bool(), layer.double().parts
    for name in ("weight_ih", "weight_hh"):
        weight = getattr(module, name + "_l0").zero_()
        weight[live.flatten()] = parts[name]
    fixed = layer.double().fixed
    bias = torch.zeros_like(fixed)
    bias[layer.where] = parts["bias"]
    for block in layer.cell.from_input:
        candidate = layer.cell.gates[layer.cell.gate_of_block[block]] in "gnh"
        inverse = fixed[block].atanh() if candidate else fixed[block].logit()
        if layer.cell.activation == "relu":
            inverse = fixed[block]
        bias[block] = torch.where(live[layer.cell.gate_of_block[block]], bias[block], inverse)
    module.bias_ih_l0.copy_(bias[list(layer.cell.from_input)].flatten())
    module.bias_hh_l0.zero_()
    for gate, (of_x, of_h) in enumerate(zip(layer.cell.from_input, layer.cell.from_state, strict=True)):
        if of_x != of_h:  # the bias that stands inside r ⊙ (…)
            module.bias_hh_l0[gate * layer.hidden : (gate + 1) * layer.hidden] = bias[of_h]
    return module


class Fused(Engine):
    """nn.LSTM, nn.GRU or nn.RNN in fp32.

    Ids of more words than the gates have rows are looked up in W_ihᵀ, and the module's product with its input is one
    with the identity: the fairest dense opponent, since written out a vocabulary of 10,000 costs ten times the time.
    """

    tf32, hands_out = False, True

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.reads = self.dtype if self.dtype.is_floating_point else torch.float32
        module = self.made(layer)
        rows, words = module.weight_ih_l0.shape
        self.word_table = None
        if words > rows:
            by_row = copy.deepcopy(module)
            by_row.input_size, by_row.weight_ih_l0 = rows, nn.Parameter(torch.eye(rows).double(), requires_grad=False)
            self.by_row = self.ready(by_row)
            self.word_table = F.pad(module.weight_ih_l0.T, (0, 0, 0, 1)).to(self.device, self.reads).contiguous()
        self.module = self.ready(module)

    def made(self, layer):
        """torch's layer, float64 on the CPU; it may have more inputs and neurons, which stay at zero."""
        return to_module(layer)

    def ready(self, module):
        """The module in this engine's precision, on its device, as it is used and not trained (cuDNN keeps more for that)."""
        module = module.to(self.device, self.reads).eval()
        if self.device.type == "cuda":
            if (
                cudnn.version() or 0
            ) >= 91300:  # it has bf16 layers then, and torch's list of what it has does not say so
                cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)
            module.flatten_parameters()  # else weights are laid out anew at each call
        return module

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        product = super().linear(weight, bias, device)

        def rounded(y):
            with tf32(cls.tf32):
                return product(y)

        return rounded

    def run_with_states(self, x, live):
        if live is not None and not bool(live.all()):
            raise Unsupported("torch's fused layers run sequences of one length")
        module = self.module
        if x.dtype != torch.int64:
            x = x.to(self.reads)
        elif self.word_table is None:
            x = one_hot(x, self.layer.inputs, self.reads)
        else:
            module, x = self.by_row, F.embedding(x, self.word_table)
        if module.input_size > x.shape[2]:
            x = F.pad(x, (0, module.input_size - x.shape[2]))
        with tf32(self.tf32):
            y, state = module(x)
        states, hidden = state if isinstance(state, tuple) else (state,), self.layer.hidden
        return y[:, :, :hidden].float(), [s[0, :, :hidden].float() for s in states]


class FusedTF32(Fused):
    devices, tf32 = ("cuda",), True


class FusedBF16(Fused):
    dtype = torch.bfloat16


class FusedFP16(Fused):
    devices, dtype = ("cuda",), torch.float16


class FusedFP16Padded(FusedFP16):
    """Filled up with sequences to a multiple of 8, and with neurons and inputs that stay at zero to one of 128: PyTorch asks for
    cuDNN's persistent algorithm for no other large layers (`get_algo` in its RNN.cpp, up to LARGEST), and more can take less
    time."""

    LARGEST = 1024

    def made(self, layer):
        module = to_module(layer)
        hidden, inputs = (-(-size // 128) * 128 for size in (module.hidden_size, module.input_size))
        if hidden > self.LARGEST or (hidden, inputs) == (module.hidden_size, module.input_size):
            return module
        extra = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
        wide = type(module)(inputs, hidden, **extra).double().requires_grad_(False)
        for name, given in module.named_parameters():
            to = getattr(wide, name).zero_().unflatten(0, (-1, hidden))[:, : module.hidden_size]  # gate by gate
            given = given.unflatten(0, (-1, module.hidden_size))
            (to[:, :, : given.shape[2]] if given.dim() == 3 else to).copy_(given)
        return wide

    def run_with_states(self, x, live):
        more = -x.shape[1] % 8
        if not more and self.module.hidden_size == self.layer.hidden and self.module.input_size == self.layer.inputs:
            raise Unsupported(f"{x.shape[1]} sequences, neurons and inputs are multiples of 8 and 128 as they are")
        if not more:
            return super().run_with_states(x, live)
        wide = F.pad(x, (0, 0) * (x.dim() - 2) + (0, more))
        y, states = super().run_with_states(wide, None if live is None else F.pad(live, (0, more), value=True))
        return y[:, :-more], [state[:-more] for state in states]


class Replayed(Fused):
    """Recorded once as a CUDA graph for a shape of input, and replayed: what launching kernel by kernel costs is left out."""

    devices = ("cuda",)

    def __init__(self, layer, device="cuda"):
        super().__init__(layer, device)
        self.recorded = {}

    def run_with_states(self, x, live):
        if live is not None and not bool(live.all()):
            raise Unsupported("torch's fused layers run sequences of one length")
        key = x.shape, x.dtype
        with torch.cuda.device(self.device):  # on which a graph is captured
            if key not in self.recorded:
                self.recorded[key] = Graph(self._whole, None, (x,))
            y, *states = self.recorded[key]((x,))
        return y, states

    def _whole(self, way, x):
        y, states = super().run_with_states(x, None)
        return y, *states

    def __getstate__(self):
        return self.__dict__ | {"recorded": {}}  # a graph is of its process


class ReplayedBF16(Replayed):
    dtype = torch.bfloat16


class ReplayedFP16(Replayed):
    dtype = torch.float16


class FusedInt8(Fused):
    """int8 weights, activations quantised as they come (torch's dynamic quantisation, CPU): fewer bytes, larger error."""

    devices, dtype = ("cpu",), torch.int8

    def __init__(self, layer, device="cpu"):
        if layer.kind == "RNN":
            raise Unsupported("torch has no int8 RNN layer")
        super().__init__(layer, device)

    def ready(self, module):
        return quantised(super().ready(module))

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        linear = nn.Linear(*weight.T.shape).requires_grad_(False)
        linear.weight.copy_(weight), linear.bias.copy_(bias)
        return quantised(linear)


class Loop(Engine):
    """`parts.run`: ATen operations step by step, any gate."""

    activations, hands_out = (*Engine.activations, "clipped_relu"), True

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.parts = {n: self.fp32(p) if p.is_floating_point() else p.to(device) for n, p in layer.parts.items()}

    def run_with_states(self, x, live):
        return run(self.layer.cell, self.parts, x, None, live, reverse=False)
