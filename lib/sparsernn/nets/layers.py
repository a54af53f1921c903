"""Recurrent layers that a method can touch at two places: their weights and their scales.

Weights have the names, shapes and gate order of torch (`weight_ih_l0 [G·H, I]`, `weight_hh_l0 [G·H, H]`, biases).
Scales are multiplicative vectors, one per sequence, applied where a vector is *read*:

    a = s_gates ⊙ (W_ih (s_input ⊙ x) + W_hh (s_recurrent ⊙ h')) + b_ih + b_hh        y = s_output ⊙ h

(The GRU's n keeps the two products apart: tanh(s ⊙ W_in (…) + b_in + r ⊙ (s ⊙ W_hn (…) + b_hn)).) The carried state is
never scaled. With no scale a layer computes what torch's computes.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .cells import GRUCell, LSTMCell, Recurrence, RNNCell


def word_scale(tokens, scale):
    """The scale [B|1, V] of each token [T, B] → [T, B, 1]: the same wherever a word stands in its sequence."""
    return scale.expand(tokens.shape[1], -1).gather(1, tokens.t()).t().unsqueeze(2)


class Recurrent(nn.Module):
    """A stack of recurrent layers, in torch's words, that also takes scales, padding and token ids.

    forward(input, state=None, scales=None, lengths=None, padding="right") → output [T, B, D·H], state

    input    [T, B, I], or token ids int64 [T, B]: then the input is one-hot and columns of `weight_ih_l0` are gathered
    state    as torch's: (h, c), of GRU and RNN h alone, each [layers·D, B, H]; zeros if None
    scales   name → [B|1, n]: `input_l0 [·, I]`, `recurrent_l0 [·, H]`, `output_l0 [·, H]`, `gates_l0 [·, G·H]`,
             with torch's suffixes for further layers and the reverse direction
    lengths  int64 [B], real steps of each sequence; a padded step keeps the state and returns y = 0
    padding  the side of the padding, "left" or "right"
    dropout  between the layers of a stack, in training, as torch's

    Under bfloat16 autocast the product with the input is rounded, and where the attribute `rounds_state` is True that
    with the state too.

    Raises ValueError for a shape, a scale, lengths or a padding it cannot use, saying what it expected.
    """

    cell_type: type
    activations = (
        "logistic",
        "hard",
    )  # of gates; hard: clip(0.2 x + 0.5, 0, 1), the papers'; not F.hardsigmoid (x / 6)
    rounds_state = False

    def __init__(self, input_size, hidden_size, num_layers=1, bidirectional=False, activation=None, dropout=0.0):
        super().__init__()
        activation = activation or self.activations[0]
        if activation not in self.activations:
            raise ValueError(
                f"activation is {activation!r}; a {type(self).__name__} has {' or '.join(self.activations)}"
            )
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bidirectional, self.activation, self.dropout = bidirectional, activation, dropout
        self.cell = self.cell_type(activation)
        directions = 2 if bidirectional else 1
        rows = len(self.cell.gates) * hidden_size
        for suffix in self.suffixes():
            width = input_size if suffix.startswith("_l0") else directions * hidden_size
            self.register_parameter("weight_ih" + suffix, nn.Parameter(torch.empty(rows, width)))
            self.register_parameter("weight_hh" + suffix, nn.Parameter(torch.empty(rows, hidden_size)))
            self.register_parameter("bias_ih" + suffix, nn.Parameter(torch.empty(rows)))
            self.register_parameter("bias_hh" + suffix, nn.Parameter(torch.empty(rows)))
        bound = 1 / math.sqrt(hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def suffixes(self):
        """torch's parameter suffixes in the order layers run: `_l0`, `_l0_reverse`, `_l1`, …"""
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    def forward(self, input, state=None, scales=None, lengths=None, padding="right"):
        scales, state = scales or {}, (state,) if isinstance(state, torch.Tensor) else state
        self._check(input, state, scales, lengths, padding)
        steps, batch = input.shape[:2]
        live, partial = None, [False] * steps
        if lengths is not None:
            time = torch.arange(steps, device=input.device)[:, None]
            live = time < lengths if padding == "right" else time >= steps - lengths
            partial = (~live.all(1)).tolist()
            live = live.unsqueeze(2)
        suffixes = self.suffixes()
        if state is None:
            blank = self.weight_hh_l0.new_zeros(len(suffixes), batch, self.weight_hh_l0.shape[1])
            state = (blank,) * self.cell.n_states
        outputs, finals = [], []
        for index, suffix in enumerate(suffixes):
            if self.dropout and index and not suffix.endswith("_reverse"):
                input = F.dropout(input, self.dropout, self.training)
            initial = [s[index] for s in state]
            y, final = self._run(input, suffix, initial, scales, live, partial)
            outputs.append(y)
            finals.append(final)
            if not self.bidirectional or suffix.endswith("_reverse"):
                input, outputs = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)), []
        final = tuple(torch.stack(s) for s in zip(*finals, strict=True))
        return input, final if self.cell.n_states > 1 else final[0]

    def _run(self, x, suffix, initial, scales, live, partial):
        """One layer in one direction → y [T, B, H] and its final states."""
        given = [getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        weight, weight_hh, bias, gates = self.cell.arrange(*given, scales.get("gates" + suffix))
        inward, output = scales.get("input" + suffix), scales.get("output" + suffix)
        if x.dtype == torch.int64:
            a = F.embedding(x, weight.t())
            if inward is not None:
                a = a * word_scale(x, inward)
            a = a + bias if gates is None else a
        else:
            a = F.linear(x if inward is None else x * inward, weight, bias if gates is None else None)
        reverse = suffix.endswith("_reverse")
        if reverse:
            a, live, partial = a.flip(0), None if live is None else live.flip(0), partial[::-1]
        recurrent = scales.get("recurrent" + suffix)
        rounded, a = self.rounds_state and torch.is_autocast_enabled(a.device.type), a.to(weight_hh.dtype)
        with torch.autocast(a.device.type, enabled=False):
            given = a, bias, weight_hh, recurrent, gates, live, partial, rounded
            hidden, *rest = Recurrence.apply(self.cell, *given, *initial)
        y = hidden if output is None else hidden * output
        if live is not None:
            y = y.masked_fill(~live, 0)
        return (y.flip(0) if reverse else y), (hidden[-1], *rest)

    def _check(self, input, state, scales, lengths, padding):
        if padding not in ("left", "right"):
            raise ValueError(f"padding is {padding!r}; allowed: 'left', 'right'")
        if input.dtype == torch.int64:
            if input.dim() != 2:
                raise ValueError(f"token ids have shape {tuple(input.shape)}, expected (T, B)")
        elif input.dim() != 3 or input.shape[2] != self.weight_ih_l0.shape[1]:
            raise ValueError(f"input has shape {tuple(input.shape)}, expected (T, B, {self.weight_ih_l0.shape[1]})")
        if input.shape[0] == 0:
            raise ValueError("input has no time step")
        steps, batch = input.shape[:2]
        if lengths is not None and lengths.shape != (batch,):
            raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected {(batch,)}")
        if lengths is not None and bool(((lengths < 0) | (lengths > steps)).any()):
            raise ValueError(
                f"lengths are {lengths.min()} to {lengths.max()}, allowed: 0 to the {steps} steps of the input"
            )
        hidden = self.weight_hh_l0.shape[1]  # of the weights it is called with: a method may leave neurons out
        expected = len(self.suffixes()), batch, hidden
        for given in state or ():
            if given.shape != expected:
                raise ValueError(f"state has shape {tuple(given.shape)}, expected {expected}")
        width = {"input": None, "recurrent": hidden, "output": hidden, "gates": len(self.cell.gates) * hidden}
        suffixes = self.suffixes()
        for name, scale in scales.items():
            kind, _, suffix = name.partition("_")
            if kind not in width or "_" + suffix not in suffixes:
                known = ", ".join(k + s for k in width for s in suffixes)
                raise ValueError(f"no scale {name!r} in this layer; scales: {known}")
            expected = width[kind] if kind != "input" else getattr(self, "weight_ih_" + suffix).shape[1]
            if scale.dim() != 2 or scale.shape[0] not in (1, input.shape[1]) or scale.shape[1] != expected:
                shape = f"({input.shape[1]} or 1, {expected})"
                raise ValueError(f"scale {name!r} has shape {tuple(scale.shape)}, expected {shape}")

    def extra_repr(self):
        kinds = f", layers={self.num_layers}" if self.num_layers > 1 else ""
        kinds += ", bidirectional" if self.bidirectional else ""
        return f"{self.input_size}, {self.hidden_size}{kinds}, {self.activation}"


class LSTM(Recurrent):
    """LSTM with all four scales; equal to `torch.nn.LSTM` when there is none. See `Recurrent`."""

    cell_type = LSTMCell


class GRU(Recurrent):
    """GRU with all four scales; equal to `torch.nn.GRU` when there is none. See `Recurrent`."""

    cell_type = GRUCell


class RNN(Recurrent):
    """Vanilla RNN with all four scales (`gates`: on its one preactivation); equal to `torch.nn.RNN` without."""

    cell_type = RNNCell
    activations = ("tanh", "relu")


TORCH = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}


def from_torch(module):
    """Our layer with a copy of the parameters of an nn.LSTM, nn.GRU or nn.RNN; time comes first in ours.

    Without biases it gets zeros. Raises ValueError for another module, and for proj_size.
    """
    if type(module) not in TORCH:
        raise ValueError(f"{type(module).__name__} is none of {', '.join(kind.__name__ for kind in TORCH)} of torch.nn")
    if module.proj_size:
        raise ValueError(f"proj_size is {module.proj_size}; projections are not supported, use proj_size=0")
    shape = (module.input_size, module.hidden_size, module.num_layers, module.bidirectional)
    layer = TORCH[type(module)](*shape, activation=getattr(module, "nonlinearity", None), dropout=module.dropout)
    layer.to(module.weight_hh_l0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(getattr(module, name, torch.zeros(())))
    return layer


def to_torch(layer):
    """torch's layer with a copy of the parameters of ours. Raises ValueError for hard gates, which torch has not."""
    if layer.activation == "hard":
        raise ValueError("torch has no hard gates; only a layer with logistic gates can become torch's")
    kind = next(kind for kind, ours in TORCH.items() if type(layer) is ours)
    shape = {"num_layers": layer.num_layers, "bidirectional": layer.bidirectional, "dropout": layer.dropout}
    shape |= {"nonlinearity": layer.activation} if kind is nn.RNN else {}
    module = kind(layer.input_size, layer.hidden_size, **shape).to(layer.weight_hh_l0)
    module.load_state_dict(layer.state_dict())
    return module
