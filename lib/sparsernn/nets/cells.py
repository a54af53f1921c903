"""One step of a recurrent layer, forward and by hand backward, and the loop over time as one operation."""

import math

import torch
from torch.autograd.function import once_differentiable

from .multiply import by_onednn, slope, times
from .quick import watched

HALF = torch.tensor(0.5)  # without a dimension it takes the other's dtype and device
MANY = 4096  # numbers of which four passes take less time than one slow one
CEILING = 20.0  # of the clipped relu, min(max(a, 0), 20) (Deep Speech 2, 1512.02595)


def squash(a, activation):
    """The gate's sigmoid, logistic or hard, in place."""
    if activation == "logistic":
        return a.sigmoid_()
    return torch.add(HALF, a, alpha=0.2, out=a).clamp_(0, 1)


def tanh_of_many(a, out):
    """tanh a = 2 σ(2a) − 1, of float32 within 2e-7: of many numbers in a quarter of the time that torch's own takes."""
    return torch.mul(a, 2, out=out).sigmoid_().mul_(2).sub_(1)


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

    tanh = staticmethod(lambda a, out: torch.tanh(a, out=out))

    def __init__(self, activation):
        self.activation = activation

    def is_for(self, state):
        """To be told of the states [B, H] that it will work on."""
        if not watched() and state.is_cpu and state.dtype == torch.float32 and state.numel() >= MANY:
            self.tanh = tanh_of_many

    def to_blocks(self, rows, landing, dim=0):
        """A tensor of which one dimension runs over gates → over blocks; zeros where no gate lands."""
        blocks = 1 + max(self.from_input + self.from_state)
        if landing == tuple(range(blocks)):
            return rows
        parts = rows.chunk(len(self.gates), dim)
        return torch.cat([parts[landing.index(b)] if b in landing else parts[0] * 0 for b in range(blocks)], dim)

    @property
    def gate_of_block(self):
        """For each block, the gate it belongs to."""
        gate = {block: gate for landing in (self.from_input, self.from_state) for gate, block in enumerate(landing)}
        return [gate[block] for block in sorted(gate)]

    def join_biases(self, bias_ih, bias_hh):
        return self.to_blocks(bias_ih, self.from_input) + self.to_blocks(bias_hh, self.from_state)

    def arrange(self, weight_ih, weight_hh, bias_ih, bias_hh, gates):
        """torch's parameters and the gates' scale [B|1, G·H] → weights, summed bias and scale over blocks."""
        weights = self.to_blocks(weight_ih, self.from_input), self.to_blocks(weight_hh, self.from_state)
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
        self.tanh(slices[3], slices[3])

    def advance(self, slices, state, new):
        _, i, f, g, o = slices
        h, c = new
        torch.mul(f, state[1], out=c).addcmul_(i, g)
        self.tanh(c, h).mul_(o)

    def backward(self, slices, state, new, grad, out):
        i_f, i, f, g, o = slices
        d_i_f, d_i, d_f, d_g, d_o = out
        d_h, d_c = grad
        tanh_c = self.tanh(new[1], torch.empty_like(new[1]))
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
        self.tanh(n.addcmul_(r, n_h), n)

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
    """h = tanh(a), relu(a), or the relu clipped at CEILING."""

    gates, n_states = "h", 1
    from_input = from_state = (0,)

    @property
    def bounds(self):
        return (0, math.inf if self.activation == "relu" else CEILING)

    def slices(self, values):
        return _each_step(values)

    def propose(self, slices):
        if self.activation == "tanh":
            self.tanh(slices[0], slices[0])
        else:
            slices[0].clamp_(0, self.bounds[1])

    def advance(self, slices, state, new):
        new[0].copy_(slices[0])

    def backward(self, slices, state, new, grad, out):
        if self.activation == "tanh":
            torch.ops.aten.tanh_backward.grad_input(grad[0], slices[0], grad_input=out[0])
        else:  # nothing at and beyond the bounds
            torch.ops.aten.hardtanh_backward.grad_input(grad[0], slices[0], *self.bounds, grad_input=out[0])


def _sum_to(grad, like):
    """A gradient [B, n] of a scale given as [B|1, n]."""
    return grad.sum(0, keepdim=True) if like.shape[0] == 1 and grad.shape[0] != 1 else grad


class Recurrence(torch.autograd.Function):
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
        transposed, fast = weight.t(), not rounded and by_onednn(inputs, batch, weight)
        cell.is_for(state[0])
        slices, states, value_rows = cell.slices(values), [kept.unbind() for kept in history], values.unbind()
        product_rows = None if gates is None else products.unbind()
        for t, x in enumerate(inputs.unbind()):
            old, new = ([kept[u % len(kept)] for kept in states] for u in (t, t + 1))
            h = old[0] if recurrent is None else torch.mul(old[0], recurrent, out=read)
            a = value_rows[t % rows]
            product = a if gates is None else product_rows[t % rows]
            if rounded:
                torch.add(x, (h.bfloat16() @ transposed).to(x.dtype), out=product)  # added as it is: five times as long
            elif fast:
                torch.add(x, times(h, weight), out=product)
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
            ctx.cell, ctx.partial, ctx.fast = cell, partial, fast
        last, hidden = steps % 2 if not save else steps, history[0][1:]
        if save and cell.n_states == 1:  # as torch's GRU and RNN, not its LSTM, it may be changed in place
            hidden = hidden.clone()
        return hidden, *(kept[last].clone() for kept in history[1:])

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
        back = weight.t().contiguous() if ctx.fast else None
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
            elif ctx.fast:
                d_h = times(d_inputs_rows[t], back)
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
        elif ctx.fast:
            d_weight = slope(d_factor, read)
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
