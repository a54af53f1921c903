"""One step of a recurrent layer, forward and by hand backward."""

import math

import torch

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

    def __eq__(self, other):
        return type(self) is type(other) and self.activation == other.activation

    def __hash__(self):
        return hash((type(self), self.activation))

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
