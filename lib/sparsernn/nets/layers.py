"""Layers that a method can touch at two places: their weights and their scales. Stand-ins for torch's own.

`LSTM`, `GRU`, `RNN`, `Linear` and `Embedding` are subclasses of torch's, called alike, with the same parameters, so that an
instance of one becomes the other by its class alone (`stand_in`, `plain`). Weights have the names, shapes and gate order of
torch. Scales are multiplicative vectors, one per sequence, applied where a vector is *read*:

    a = s_gates ⊙ (W_ih (s_input ⊙ x) + W_hh (s_recurrent ⊙ h')) + b_ih + b_hh        y = s_output ⊙ h

(The GRU's n keeps the two products apart: tanh(s ⊙ W_in (…) + b_in + r ⊙ (s ⊙ W_hn (…) + b_hn)).) The carried state is
never scaled. With no scale a layer computes what torch's computes.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .cells import GRUCell, LSTMCell, RNNCell
from .multiply import linear
from .norms import SequenceNorm
from .quick import watched
from .recurrence import Recurrence

MOST_LAYERS = 1000  # of a stack: more is a mistake, or a file that was made to do harm


def word_scale(tokens, scale, batch_dim=1):
    """The scale [B|1, V] of each token (ids of any shape, sequences along `batch_dim`) → its shape + [1]: the same wherever
    a word stands in its sequence. Ids of one dimension are one sequence."""
    if tokens.dim() == 1:
        return scale[0][tokens].unsqueeze(1)
    rows = tokens.movedim(batch_dim, 0)
    found = scale.expand(len(rows), -1).gather(1, rows.flatten(1)).view(rows.shape)
    return found.movedim(0, batch_dim).unsqueeze(-1)


@torch._disable_dynamo
def untraced(call, *args):
    """call(*args), as it is: torch.compile goes on after it. What a layer computes with differs from step to step, and would be
    compiled anew each time."""
    return call(*args)


class Carrying:
    """What the stand-ins share: a place for what a method adds.

    carried   None, or a child module that says what the layer computes with in this call:
              look_up(ids) → (words, ids)            the words that are looked up and the ids as numbers in them; words None: all
              weight(name, words) → tensor           a weight, of these words alone, or a bias; None where there is none
              scale(name, batch, words) → [B|1, n]   a scale; None where there is none
              noise(name, batch) → (variance, ε)     of a linear layer's output; None where there is none
              tell(name, read, live)                 called while `listens`: what a weight multiplies or looks up
    """

    @property
    def carried(self):
        return self._modules.get("carried")

    def used(self, name, words=None):
        """The parameter `name` as this call uses it; None where the layer has none (bias=False)."""
        if self.carried is not None:
            return self.carried.weight(name, words)
        return getattr(self, name, None)

    @property
    def listens(self):
        return self.carried is not None and self.carried.listens

    def look_up(self, ids):
        return (None, ids) if self.carried is None else self.carried.look_up(ids)

    def scale(self, name, batch, words=None):
        return None if self.carried is None else self.carried.scale(name, batch, words)


class Linear(Carrying, nn.Linear):
    """torch's, that also takes locally reparametrised noise: y = W x + b + ε √(σ² x² + 1e-8).

    local_noise  draw the noise of the sum instead of that of each weight (Kingma et al. 2015; 1e-8 as 1812.05692's code):
                 one ε [B, out] a sequence, so that over time it is shared; its standard deviation follows x [(T,) B, in]
    """

    local_noise = False

    def forward(self, input):
        if self.carried is None:
            return linear(input, self.weight, self.bias)
        return untraced(self._carrying, input)

    def _carrying(self, input):
        scale = self.scale("input", input.shape[-2] if input.dim() > 1 else 1)
        x = input if scale is None else input * scale
        if self.listens:
            self.carried.tell("weight", x)
        y = linear(x, self.used("weight"), self.bias)
        noise = self.carried.noise("weight", input.shape[-2] if input.dim() > 1 else 1) if self.local_noise else None
        if noise is None:
            return y
        variance, epsilon = noise
        return y + epsilon * torch.sqrt(linear(x * x, variance) + 1e-8)


class Embedding(Carrying, nn.Embedding):
    """torch's; a scale [B|1, V] multiplies the row of a word, the same wherever it stands in its sequence."""

    def forward(self, input):
        if self.carried is None:
            return super().forward(input)
        return untraced(self._carrying, input)

    def _carrying(self, input):
        if self.max_norm is not None:
            self._renormalise(input)
        if self.listens:
            self.carried.tell("weight", input)
        words, ids = self.look_up(input)
        padding = self.padding_idx
        if words is not None and padding is not None:
            padding = next(iter((words == padding).nonzero().flatten().tolist()), None)
        rows = F.embedding(ids, self.used("weight", words), padding, scale_grad_by_freq=self.scale_grad_by_freq)
        batch_dim = self.carried.batch_dim
        scale = self.scale("input", input.shape[batch_dim] if input.dim() > 1 else 1, words)
        rows = rows if scale is None else rows * word_scale(ids, scale, batch_dim)
        if self.padding_idx is not None:  # a row that is not trained has no noise
            rows = torch.where((input == self.padding_idx).unsqueeze(-1), self.weight[self.padding_idx].detach(), rows)
        return rows

    @torch.no_grad()
    def _renormalise(self, ids):
        """As torch does at every look-up, in place; only where a row is too long, so that nothing else counts as a change."""
        ids = ids.flatten().unique()
        if (self.weight[ids].norm(self.norm_type, dim=1) > self.max_norm).any():
            torch.embedding_renorm_(self.weight, ids, self.max_norm, self.norm_type)


class Recurrent(Carrying):
    """A stack of recurrent layers: torch's, that also takes scales, padding and token ids.

    forward(input, hx=None, scales=None, lengths=None, padding="right") → output [T, B, D·H], state

    input    as torch's layer takes it ([T, B, I], batch first if the layer is, unbatched, or packed), or token ids int64
             [T, B]: then the input is one-hot and columns of `weight_ih_l0` are gathered; a stand-in for torch's takes no ids
    hx       as torch's: (h, c), of GRU and RNN h alone, each [layers·D, B, H]; zeros if None
    scales   name → [B|1, n]: `input_l0 [·, I]`, `recurrent_l0 [·, H]`, `output_l0 [·, H]`, `gates_l0 [·, G·H]`,
             with torch's suffixes for further layers and the reverse direction; None: those it carries, if any
    lengths  int64 [B], real steps of each sequence; a padded step keeps the state and returns y = 0
    padding  the side of the padding, "left" or "right"
    dropout  between the layers of a stack, in training, as torch's

    What torch's layers have not (Deep Speech 2, 1512.02595):

    summed        the outputs of both directions are added, not put side by side: the output is [T, B, H]
    shared_input  both directions, then summed, read one product: `weight_ih_l0_reverse` is `weight_ih_l0`, and the scale
                  of its input is `input_l0`
    norm          the product with the input is normalised (`norms.SequenceNorm`, a child `norm_l0` a layer and direction,
                  one where the product is shared) before gates' scales and biases

    Under bfloat16 autocast the product with the input is rounded, and where the attribute `rounds_state` is True that
    with the state too.

    Raises ValueError for a shape, a scale, lengths or a padding it cannot use, saying what it expected.
    """

    cell_type: type
    activations = (
        "logistic",
        "hard",
    )  # of gates; hard: clip(0.2 x + 0.5, 0, 1), the papers'; not F.hardsigmoid (x / 6)
    activation = "logistic"
    rounds_state = summed = False

    def __init__(
        self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
        activation=None, summed=False, shared_input=False, norm=False,
    ):  # fmt: skip
        activation = self.activations[0] if activation is None else activation
        if activation not in self.activations:
            raise ValueError(
                f"activation is {activation!r}; a {type(self).__name__} has {' or '.join(self.activations)}"
            )
        if num_layers > MOST_LAYERS:
            raise ValueError(f"num_layers is {num_layers}; at most {MOST_LAYERS}")
        if summed and not bidirectional:
            raise ValueError("summed adds the outputs of two directions: it needs bidirectional=True")
        if shared_input and not summed:  # else a row of the matrix belongs to two neurons
            raise ValueError("shared_input is for directions that are summed: give summed=True")
        if norm and not bias:
            raise ValueError("norm shifts what it normalises, in the end by way of a bias: give bias=True")
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional,
        )  # fmt: skip
        self._activate(activation)
        if summed or shared_input or norm:
            self._beyond_torch(summed, shared_input, norm)

    def _activate(self, activation):
        self.activation = activation

    def _beyond_torch(self, summed, shared_input, norm):
        self.summed, rows = summed, len(self.weight_hh_l0)
        for suffix in self.suffixes():
            own = "weight_ih" + suffix
            if summed and not suffix.startswith("_l0"):
                setattr(self, own, nn.Parameter(torch.empty(rows, self.hidden_size)))
            if shared_input and suffix.endswith("_reverse"):
                setattr(self, own, getattr(self, own.removesuffix("_reverse")))
        self.reset_parameters()
        for suffix in self.suffixes() if norm else ():
            if not (shared_input and suffix.endswith("_reverse")):
                self.add_module("norm" + suffix, SequenceNorm(rows))

    @property
    def cell(self):
        return self.cell_type(self.activation)

    @property
    def shared_input(self):
        """Whether both directions, summed, read one product with the input."""
        return self.summed and self.weight_ih_l0 is self.weight_ih_l0_reverse

    def norm(self, suffix):
        """The norm of a direction's product with the input; None where there is none."""
        return self._modules.get("norm" + suffix, self._modules.get("norm" + suffix.removesuffix("_reverse")))

    @property
    def is_torchs(self):
        """Whether torch's own layer computes the same."""
        return self.activation in ("logistic", "tanh", "relu") and not self.summed and self.norm("_l0") is None

    def flatten_parameters(self):
        """As torch: lays the weights out for cuDNN, which knows its layers alone."""
        if self.is_torchs:
            super().flatten_parameters()

    def ends(self):
        """What the names of a layer's directions end with."""
        return ("", "_reverse") if self.bidirectional else ("",)

    def abreast(self):
        """The same of those whose outputs stand side by side; directions that are summed have one output."""
        return ("",) if self.summed else self.ends()

    def suffixes(self):
        """torch's parameter suffixes in the order layers run: `_l0`, `_l0_reverse`, `_l1`, …"""
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in self.ends()]

    def joined(self, outputs):
        """The outputs of a layer's directions → the layer's."""
        if len(outputs) == 1:
            return outputs[0]
        return outputs[0] + outputs[1] if self.summed else torch.cat(outputs, 2)

    @property
    def takes_ids(self):
        """Whether ids are one-hot input: not where it stands in for a layer of torch's, which refuses them."""
        return issubclass(getattr(self.carried, "before", Recurrent), Recurrent)

    def refuse_dtype(self, values):
        """Raise ValueError for an input that is neither numbers nor ids that it takes."""
        if values.is_floating_point() or values.is_complex() or self.takes_ids and values.dtype == torch.int64:
            return
        wanted = f"{self.weight_hh_l0.dtype}" + " numbers or int64 ids [T, B]" * self.takes_ids
        raise ValueError(
            f"RNN input dtype ({values.dtype}) does not match weight dtype ({self.weight_hh_l0.dtype}): it takes {wanted}; is an "
            "embedding or .float() missing?"
        )

    def forward(self, input, hx=None, scales=None, lengths=None, padding="right"):
        if self.carried is None:
            return self._packed_or_not(input, hx, scales, lengths, padding)
        return untraced(self._packed_or_not, input, hx, scales, lengths, padding)

    def _packed_or_not(self, input, hx, scales, lengths, padding):
        self.refuse_dtype(input.data if isinstance(input, PackedSequence) else input)
        input, state, lengths, back = by_time(self, input, hx, lengths)
        return back(*self._forward(input, state, scales, lengths, padding))

    def _forward(self, input, state, scales, lengths, padding):
        state = (state,) if isinstance(state, torch.Tensor) else state
        self._check(input, state, scales or {})
        batch = input.shape[1]
        live, partial = self.padded(input, lengths, padding)
        suffixes = self.suffixes()
        if state is None:
            blank = self.weight_hh_l0.new_zeros(len(suffixes), batch, self.weight_hh_l0.shape[1])
            state = (blank,) * self.cell.n_states
        words, input = self.look_up(input) if input.dtype == torch.int64 else (None, input)
        finals, directions = [], len(self.ends())
        for number in range(self.num_layers):
            if self.dropout and number:
                input = F.dropout(input, self.dropout, self.training)
            initial = [s[number * directions : (number + 1) * directions] for s in state]
            input, final = self._level(number, input, initial, scales, live, partial, words)
            finals += final
        final = tuple(torch.stack(s) for s in zip(*finals, strict=True))
        return input, final if self.cell.n_states > 1 else final[0]

    @staticmethod
    def padded(input, lengths, padding):
        """→ bool [T, B, 1], False where a step is padding, or None; and per step whether any sequence is padded there."""
        steps = len(input)
        if padding not in ("left", "right"):
            raise ValueError(f"padding is {padding!r}; allowed: 'left', 'right'")
        if lengths is None:
            return None, [False] * steps
        if lengths.shape != input.shape[1:2]:
            raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected {tuple(input.shape[1:2])}")
        if bool(((lengths < 0) | (lengths > steps)).any()):
            raise ValueError(
                f"lengths are {lengths.min()} to {lengths.max()}, allowed: 0 to the {steps} steps of the input"
            )
        time = torch.arange(steps, device=input.device)[:, None]
        live = time < lengths if padding == "right" else time >= steps - lengths
        return live.unsqueeze(2), (~live.all(1)).tolist()

    def _level(self, number, x, initial, scales, live, partial, words):
        """One layer in all its directions → y [T, B, ·], final states direction by direction. initial: [D, B, H] each."""
        outputs, finals = [], []
        for direction, end in enumerate(self.ends()):
            suffix = f"_l{number}{end}"
            weight = self.used("weight_ih" + suffix, words if x.dtype == torch.int64 else None)
            if not (direction and self.shared_input):
                projected = self._projected(x, weight, suffix, scales, live, words)
            given = [s[direction] for s in initial], scales, live, partial, words
            y, final = self._run(x, weight, projected, suffix, *given)
            outputs.append(y)
            finals.append(final)
        return self.joined(outputs), finals

    def _projected(self, x, weight, suffix, scales, live, words):
        """The product with the input over gates [T, B, G·H], where it is shared or normalised; else None."""
        if (norm := self.norm(suffix)) is None and not self.shared_input:
            return None
        product = self._product(x, weight, suffix, self._scale("input", suffix, scales, x, words), None, live)
        return product if norm is None else norm(product.to(norm.weight.dtype), live)

    def _scale(self, kind, suffix, scales, x, words):
        if scales is not None:
            return scales.get(kind + suffix)
        return self.scale(kind + suffix, x.shape[1], words if kind == "input" and x.dtype == torch.int64 else None)

    def _product(self, x, weight, suffix, inward, bias, live):
        """The product with the input, under its scale, plus a bias or None."""
        if x.dtype == torch.int64:
            columns, later = weight.t(), bias
            if not watched() and x.numel() >= len(columns):  # once a column, not as often as it is read
                if bias is not None and inward is None:
                    columns, later = columns + bias, None
                columns = columns.contiguous()
            a = F.embedding(x, columns)
            if inward is not None:
                a = a * word_scale(x, inward)
            a = a if later is None else a + later
        else:
            x = x if inward is None else x * inward
            a = linear(x, weight, bias)
        if self.listens:
            self.carried.tell("weight_ih" + suffix, x, live)
        return a

    def _run(self, x, weight, projected, suffix, initial, scales, live, partial, words):
        """One layer in one direction → y [T, B, H] and its final states.

        projected  stands in for x: see `_projected`
        """
        cell, inward = self.cell, None
        weight_hh = self.used("weight_hh" + suffix)
        biases = [self.used(name + suffix) for name in ("bias_ih", "bias_hh")]
        if not self.bias:
            biases = [weight_hh.new_zeros(len(weight_hh))] * 2
        if projected is None:
            inward = self._scale("input", suffix, scales, x, words)
        recurrent, output, gates = (
            self._scale(kind, suffix, scales, x, words) for kind in ("recurrent", "output", "gates")
        )
        weight, weight_hh, bias, gates = cell.arrange(weight, weight_hh, *biases, gates)
        added = bias if gates is None else None
        if projected is None:
            a = self._product(x, weight, suffix, inward, added, live)
        else:
            a = cell.to_blocks(projected, cell.from_input, 2)
            a = a if added is None else a + added
        reverse = suffix.endswith("_reverse")
        if reverse:
            a, live, partial = a.flip(0), None if live is None else live.flip(0), partial[::-1]
        rounded, a = self.rounds_state and torch.is_autocast_enabled(a.device.type), a.to(weight_hh.dtype)
        with torch.autocast(a.device.type, enabled=False):
            given = a, bias, weight_hh, recurrent, gates, live, partial, rounded, torch.is_grad_enabled()
            hidden, *rest = Recurrence.apply(cell, *given, *initial)
        if self.listens:
            before = torch.cat([initial[0][None].to(hidden), hidden[:-1]])
            self.carried.tell("weight_hh" + suffix, before if recurrent is None else before * recurrent, live)
        y = hidden if output is None else hidden * output
        if live is not None:
            y = y.masked_fill(~live, 0)
        return (y.flip(0) if reverse else y), (hidden[-1], *rest)

    def _check(self, input, state, scales):
        if input.dtype == torch.int64:
            if input.dim() != 2:
                raise ValueError(f"token ids have shape {tuple(input.shape)}, expected (T, B)")
        elif input.dim() != 3 or input.shape[2] != self.weight_ih_l0.shape[1]:
            raise ValueError(f"input has shape {tuple(input.shape)}, expected (T, B, {self.weight_ih_l0.shape[1]})")
        if input.shape[0] == 0:
            raise ValueError("input has no time step")
        hidden = self.weight_hh_l0.shape[1]  # of the weights it is called with: a method may leave neurons out
        expected = len(self.suffixes()), input.shape[1], hidden
        for given in state or ():
            if given.shape != expected:
                raise ValueError(f"state has shape {tuple(given.shape)}, expected {expected}")
        width = {"input": None, "recurrent": hidden, "output": hidden, "gates": len(self.cell.gates) * hidden}
        known = [kind + suffix for kind in width for suffix in self.suffixes()]
        if self.shared_input:
            known = [name for name in known if not (name.startswith("input") and name.endswith("_reverse"))]
        for name, scale in scales.items():
            kind, _, suffix = name.partition("_")
            if name not in known:
                raise ValueError(f"no scale {name!r} in this layer; scales: {', '.join(known)}")
            expected = width[kind] if kind != "input" else getattr(self, "weight_ih_" + suffix).shape[1]
            if scale.dim() != 2 or scale.shape[0] not in (1, input.shape[1]) or scale.shape[1] != expected:
                shape = f"({input.shape[1]} or 1, {expected})"
                raise ValueError(f"scale {name!r} has shape {tuple(scale.shape)}, expected {shape}")

    def beyond_torch(self):
        """In words, what torch's layers have not."""
        more = {"hard": ", hard gates", "clipped_relu": ", clipped relu"}.get(self.activation, "")
        return more + ", directions summed" * self.summed + ", one product with the input" * self.shared_input

    def extra_repr(self):
        return super().extra_repr() + self.beyond_torch()


class LSTM(Recurrent, nn.LSTM):
    """LSTM with all four scales; equal to `torch.nn.LSTM` when there is none. See `Recurrent`."""

    cell_type = LSTMCell


class GRU(Recurrent, nn.GRU):
    """GRU with all four scales; equal to `torch.nn.GRU` when there is none. See `Recurrent`."""

    cell_type = GRUCell


class RNN(Recurrent, nn.RNN):
    """Vanilla RNN with all four scales (`gates`: on its one preactivation); equal to `torch.nn.RNN` without."""

    cell_type = RNNCell
    activations = ("tanh", "relu", "clipped_relu")  # the last is min(max(a, 0), 20), which torch has not

    @property
    def activation(self):
        return self.nonlinearity

    def _activate(self, activation):
        self.nonlinearity, self.mode = activation, f"RNN_{activation.upper()}"  # torch runs no mode it does not know


RECURRENT = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
STAND_INS = RECURRENT | {nn.Linear: Linear, nn.Embedding: Embedding}


def kind_of(module):
    """The torch class a module stands in for or is: of exactly that type, or one of ours; else None."""
    return next((theirs for theirs, ours in STAND_INS.items() if type(module) in (theirs, ours)), None)


def stand_in(module):
    """The same module, from now on ours: its parameters, hooks and attributes stay. Returns it.

    Raises ValueError for a module that is not exactly of one of torch's classes in STAND_INS, and for proj_size.
    """
    if (kind := kind_of(module)) is None:
        raise ValueError(f"{type(module).__name__} is none of {', '.join(k.__name__ for k in STAND_INS)} of torch.nn")
    if getattr(module, "proj_size", 0):
        raise ValueError(f"proj_size is {module.proj_size}; projections are not supported, use proj_size=0")
    module.__class__ = STAND_INS[kind]
    return module


def plain(module):
    """The same module, from now on torch's. Raises ValueError for what torch has not. Returns it."""
    if getattr(module, "activation", None) == "hard":
        raise ValueError("torch has no hard gates; only a layer with logistic gates can become torch's")
    if not getattr(module, "is_torchs", True):
        raise ValueError("torch has no clipped relu, no directions that are summed and no norm of the input")
    module.__class__ = kind_of(module)
    return module


def by_time(module, input, hx, lengths=None):
    """What a recurrent layer of torch accepts → x [T, B, I] or ids [T, B], state, lengths, and the way back for (y, state)."""
    if isinstance(input, PackedSequence):
        x, lengths = pad_packed_sequence(input)

        def back(y, state):
            return pack_padded_sequence(y, lengths, enforce_sorted=input.sorted_indices is None), state

        return x, hx, lengths.to(x.device), back
    one_hot = input.dtype == torch.int64
    if input.dim() == 2 and not one_hot:  # one sequence, no batch
        hx = None if hx is None else tuple(s.unsqueeze(1) for s in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)

        def back(y, state):
            return y[:, 0], tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]

        return input.unsqueeze(1), hx, lengths, back
    if module.batch_first and input.dim() > 1:
        return input.transpose(0, 1), hx, lengths, lambda y, state: (y.transpose(0, 1), state)
    return input, hx, lengths, lambda y, state: (y, state)
