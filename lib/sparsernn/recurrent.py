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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

HALF = torch.tensor(0.5)  # without a dimension it takes the other's dtype and device


def squash(a, activation):
    """The gate's sigmoid, logistic or hard, in place."""
    if activation == "logistic":
        return a.sigmoid_()
    return torch.add(HALF, a, alpha=0.2, out=a).clamp_(0, 1)


def word_scale(tokens, scale):
    """The scale [B|1, V] of each token [T, B] → [T, B, 1]: the same wherever a word stands in its sequence."""
    return scale.expand(tokens.shape[1], -1).gather(1, tokens.t()).t().unsqueeze(2)


class Cell:
    """One step of a recurrent layer on one time slice, forward and by hand backward; the shared part.

    gates                    a letter each, in torch's order: the rows of the weights
    n_states                 tensors carried from step to step, h first
    from_input, from_state   in which *block* of the preactivations each gate's product with x and with h lands. They
                             differ where a gate needs the two apart (the GRU's n)
    moved_by                 (gate, another that moves it without any weight)
    """

    gates: str
    n_states: int
    from_input: tuple[int, ...]
    from_state: tuple[int, ...]
    moved_by: tuple[tuple[str, str], ...] = ()

    def __init__(self, activation):
        self.activation = activation

    def spread(self, rows, landing):
        """A tensor whose first dimension runs over gates → over blocks; zeros where no gate lands."""
        blocks = 1 + max(self.from_input + self.from_state)
        if landing == tuple(range(blocks)):
            return rows
        parts = rows.chunk(len(self.gates))
        return torch.cat([parts[landing.index(b)] if b in landing else parts[0] * 0 for b in range(blocks)])

    @property
    def gate_of_block(self):
        """For each block, the gate it belongs to."""
        gate = {block: gate for landing in (self.from_input, self.from_state) for gate, block in enumerate(landing)}
        return [gate[block] for block in sorted(gate)]

    def join_biases(self, bias_ih, bias_hh):
        return self.spread(bias_ih, self.from_input) + self.spread(bias_hh, self.from_state)

    def arrange(self, weight_ih, weight_hh, bias_ih, bias_hh, gates):
        """torch's parameters and the gates' scale [B|1, G·H] → weights, summed bias and scale over blocks."""
        weights = self.spread(weight_ih, self.from_input), self.spread(weight_hh, self.from_state)
        if gates is not None and self.from_input != self.from_state:
            parts = gates.chunk(len(self.gates), 1)
            gates = torch.cat([parts[gate] for gate in self.gate_of_block], 1)
        return *weights, self.join_biases(bias_ih, bias_hh), gates

    def slices(self, values):
        """Preactivations or gate values [T, B, blocks·H] → for each t the slices the other methods take.

        Made for all steps at once: cut step by step they cost as much as the arithmetic.
        """
        raise NotImplementedError

    def activate(self, slices):
        """Preactivations become gate values, in place."""
        self.squash(slices)
        self.propose(slices)

    def squash(self, slices):
        """The squashed gates alone."""

    def propose(self, slices):
        """The candidate, once the others have their values."""
        raise NotImplementedError

    def advance(self, slices, state, new):
        """Gate values and the old state → the new state, written to `new`."""
        raise NotImplementedError

    def backward(self, slices, state, new, grad, out):
        """Gradients of the new state → of the preactivations (slices `out`), and of the old state where it does not go
        through the product with h: for h returned (None: there is no such way), for the others in place in `grad`."""
        raise NotImplementedError

    def _through_squash(self, grad, value):
        if self.activation == "logistic":
            torch.ops.aten.sigmoid_backward.grad_input(grad, value, grad_input=grad)
        else:  # slope 0.2 strictly inside (0, 1)
            torch.ops.aten.hardtanh_backward.grad_input(grad, value, 0, 1, grad_input=grad).mul_(0.2)


def _each_step(*parts):
    return list(zip(*(part.unbind() for part in parts), strict=True))


def _through_tanh(grad, value):
    torch.ops.aten.tanh_backward.grad_input(grad, value, grad_input=grad)


class LSTMCell(Cell):
    """c = f ⊙ c' + i ⊙ g,  h = o ⊙ tanh c."""

    gates, n_states = "ifgo", 2
    from_input = from_state = (0, 1, 2, 3)

    def slices(self, values):
        return _each_step(values[..., : values.shape[2] // 2], *values.chunk(4, 2))  # i and f in one, then each

    def squash(self, slices):
        squash(slices[0], self.activation), squash(slices[4], self.activation)

    def propose(self, slices):
        slices[3].tanh_()

    def advance(self, slices, state, new):
        _, i, f, g, o = slices
        h, c = new
        torch.mul(f, state[1], out=c).addcmul_(i, g)
        torch.tanh(c, out=h).mul_(o)

    def backward(self, slices, state, new, grad, out):
        i_f, i, f, g, o = slices
        d_i_f, d_i, d_f, d_g, d_o = out
        d_h, d_c = grad
        tanh_c = new[1].tanh()
        torch.mul(d_h, tanh_c, out=d_o)
        d_c.add_(torch.ops.aten.tanh_backward(d_h * o, tanh_c))
        torch.mul(d_c, g, out=d_i), torch.mul(d_c, state[1], out=d_f), torch.mul(d_c, i, out=d_g)
        self._through_squash(d_i_f, i_f), _through_tanh(d_g, g), self._through_squash(d_o, o)
        d_c.mul_(f)


class GRUCell(Cell):
    """n = tanh(n_x + r ⊙ n_h),  h = n + z ⊙ (h' − n): the products of n with x and with h stay apart."""

    gates, n_states = "rzn", 1
    from_input, from_state = (0, 1, 2), (0, 1, 3)
    moved_by = (("n", "r"),)  # through b_hn

    def slices(self, values):
        return _each_step(values[..., : values.shape[2] // 2], *values.chunk(4, 2))  # r and z in one, then each

    def squash(self, slices):
        squash(slices[0], self.activation)

    def propose(self, slices):
        _, r, _, n, n_h = slices
        n.addcmul_(r, n_h).tanh_()

    def advance(self, slices, state, new):
        _, _, z, n, _ = slices
        torch.sub(state[0], n, out=new[0]).mul_(z).add_(n)

    def backward(self, slices, state, new, grad, out):
        r_z, r, z, n, n_h = slices
        d_r_z, d_r, d_z, d_n, d_n_h = out
        torch.mul(grad[0], state[0] - n, out=d_z)
        direct = grad[0] * z
        torch.sub(grad[0], direct, out=d_n)
        _through_tanh(d_n, n)
        torch.mul(d_n, r, out=d_n_h), torch.mul(d_n, n_h, out=d_r)
        self._through_squash(d_r_z, r_z)
        return direct


class RNNCell(Cell):
    """h = tanh(a) or relu(a)."""

    gates, n_states = "h", 1
    from_input = from_state = (0,)

    def slices(self, values):
        return _each_step(values)

    def propose(self, slices):
        slices[0].tanh_() if self.activation == "tanh" else slices[0].relu_()

    def advance(self, slices, state, new):
        new[0].copy_(slices[0])

    def backward(self, slices, state, new, grad, out):
        backward = torch.ops.aten.tanh_backward if self.activation == "tanh" else torch.ops.aten.threshold_backward
        extra = () if self.activation == "tanh" else (0,)
        backward.grad_input(grad[0], slices[0], *extra, grad_input=out[0])


def _sum_to(grad, like):
    """A gradient [B, n] of a scale given as [B|1, n]."""
    return grad.sum(0, keepdim=True) if like.shape[0] == 1 and grad.shape[0] != 1 else grad


class _Recurrence(torch.autograd.Function):
    """The whole time loop of one layer and direction as one operation.

    inputs [T, B, blocks·H] is W_ih x, with the bias in it unless `gates` scales it first; live [T, B, 1] is False where a
    step is padding (the state stays); `partial` lists, per step, whether any sequence is padded there. Returns the
    unscaled h [T, B, H] and the other final states. One product per step forward and one backward; the weight
    gradient is one product at the end; everything else of a step stays in the cache. `rounded`: the factors and results
    of these products are bfloat16; states and sums are not.
    """

    @staticmethod
    def forward(ctx, cell, inputs, bias, weight, recurrent, gates, live, partial, rounded, *state):
        steps, batch, width = inputs.shape
        save = any(ctx.needs_input_grad)
        rows = steps if save else 1
        values = inputs.new_empty(rows, batch, width)  # gate values
        products = inputs.new_empty(rows, batch, width) if gates is not None else None
        history = [s.new_empty(steps + 1, *s.shape) for s in state[:1]]  # every h is returned
        history += [s.new_empty(steps + 1 if save else 2, *s.shape) for s in state[1:]]
        for kept, s in zip(history, state, strict=True):
            kept[0] = s
        read = inputs.new_empty(batch, weight.shape[1])
        weight = weight.bfloat16() if rounded else weight
        transposed = weight.t()
        slices, states, value_rows = cell.slices(values), [kept.unbind() for kept in history], values.unbind()
        product_rows = None if gates is None else products.unbind()
        for t, x in enumerate(inputs.unbind()):
            old, new = ([kept[u % len(kept)] for kept in states] for u in (t, t + 1))
            h = old[0] if recurrent is None else torch.mul(old[0], recurrent, out=read)
            a = value_rows[t % rows]
            product = a if gates is None else product_rows[t % rows]
            if rounded:
                torch.add(x, (h.bfloat16() @ transposed).to(x.dtype), out=product)  # added as it is: five times as long
            else:
                torch.addmm(x, h, transposed, out=product)
            if gates is not None:
                torch.addcmul(bias, product, gates, out=a)
            cell.activate(slices[t % rows])
            cell.advance(slices[t % rows], old, new)
            if partial[t]:
                for before, after in zip(old, new, strict=True):
                    torch.where(live[t], after, before, out=after)
        if save:
            ctx.save_for_backward(weight, recurrent, gates, live, values, products, *history)
            ctx.cell, ctx.partial = cell, partial
        last = steps % 2 if not save else steps
        return history[0][1:], *(kept[last].clone() for kept in history[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hidden, *d_last):
        weight, recurrent, gates, live, values, products, *history = ctx.saved_tensors
        steps = values.shape[0]
        d_inputs = torch.empty_like(values)
        d_a = d_inputs if gates is None else torch.empty_like(values[:1])  # of preactivations: all steps, or one
        d_sum = None if gates is None else torch.zeros_like(values[0])
        d_recurrent = None if recurrent is None else torch.zeros_like(history[0][0])
        d_gates = None if gates is None else torch.zeros_like(values[0])
        d_h, d_rest = torch.zeros_like(history[0][0]), [d.clone() for d in d_last]
        slices, d_slices, states = ctx.cell.slices(values), ctx.cell.slices(d_a), [kept.unbind() for kept in history]
        rounded = weight.dtype != d_h.dtype
        d_factor = torch.empty_like(d_inputs, dtype=weight.dtype) if rounded else d_inputs  # as the products take it
        d_inputs_rows, d_factor_rows, d_hidden = d_inputs.unbind(), d_factor.unbind(), d_hidden.unbind()
        dead = None if live is None else ~live
        for t in reversed(range(steps)):
            old, new = [kept[t] for kept in states], [kept[t + 1] for kept in states]
            d_h = d_h.add_(d_hidden[t])
            stays = None
            if ctx.partial[t]:  # a padded step hands its gradient on untouched
                stays = [d.masked_fill(live[t], 0) for d in (d_h, *d_rest)]
                for d in (d_h, *d_rest):
                    d.masked_fill_(dead[t], 0)
            direct = ctx.cell.backward(slices[t], old, new, (d_h, *d_rest), d_slices[t % len(d_slices)])
            if gates is not None:
                d_sum.add_(d_a[0])
                d_gates.addcmul_(d_a[0], products[t])
                torch.mul(d_a[0], gates, out=d_inputs_rows[t])
            if rounded:
                d_h.copy_(d_factor_rows[t].copy_(d_inputs_rows[t]) @ weight)
            else:
                torch.mm(d_inputs_rows[t], weight, out=d_h)
            if recurrent is not None:
                d_recurrent.addcmul_(d_h, old[0])
                d_h.mul_(recurrent)
            if direct is not None:
                d_h.add_(direct)
            if stays is not None:
                for d, kept in zip((d_h, *d_rest), stays, strict=True):
                    d.add_(kept)
        read = history[0][:-1] if recurrent is None else history[0][:-1] * recurrent
        read, d_factor = read.flatten(0, 1), d_factor.flatten(0, 1)
        if rounded:  # the smaller factor is laid out anew, half the time of the larger
            d_weight = (read.to(weight.dtype).t().contiguous() @ d_factor).to(d_inputs.dtype).t().contiguous()
        else:
            d_weight = d_factor.t() @ read
        return (
            None,
            d_inputs,
            None if gates is None else d_sum.sum(0),
            d_weight,
            None if recurrent is None else _sum_to(d_recurrent, recurrent),
            None if gates is None else _sum_to(d_gates, gates),
            None,
            None,
            None,
            d_h,
            *d_rest,
        )


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
            hidden, *rest = _Recurrence.apply(self.cell, *given, *initial)
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
