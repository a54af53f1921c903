"""A step of the loop over time as two launches on a GPU: the product with the state, and one kernel for all the rest.

The loop of `recurrence` takes some thirty kernels a step, forward and backward, each of a few numbers; here Triton computes
them in one, a program for `SPAN` neurons of a sequence. Float32 alone; the same numbers but for roundings.

KIND       of LSTM, GRU, RNN: 0, 1, 2
WAY        of squashing: 1 an LSTM's and GRU's hard gates, else 0; of an RNN tanh, relu, clipped relu: 0, 1, 2
SCALED     gates have a scale, `gates_row` numbers apart a sequence (0: one for all); `products` keeps what it multiplies
RECURRENT  h has one where it is read, likewise
READS      what the next product reads is written apart from h
PADDED     `live` [B] is 0 where a step is padding: the state stays
ROUNDED    products are of bfloat16
"""

import torch
import triton
import triton.language as tl

from . import cells
from .triton_gates import slope, squash, tanh

SPAN = 128
KINDS = ("LSTMCell", "GRUCell", "RNNCell")
WAYS = {"logistic": 0, "hard": 1, "tanh": 0, "relu": 1, "clipped_relu": 2}
CEILING = tl.constexpr(cells.CEILING)


@triton.jit
def _preactivation(k, x, product, bias, gates, products, place, j, inside, H, gates_row, SCALED: tl.constexpr):
    """Of block k; place: where block 0 of these neurons lies in [B, blocks·H]."""
    at = place + k * H
    a = tl.load(x + at, inside) + tl.load(product + at, inside).to(tl.float32)
    if SCALED:
        tl.store(products + at, a, inside)
        a = tl.load(bias + k * H + j, inside) + a * tl.load(gates + gates_row + k * H + j, inside)
    return a


@triton.jit
def step_forward(
    x, product, bias, gates, recurrent, live, h_old, c_old, values, products, h_new, c_new, read, H, width, gates_row,
    recurrent_row, KIND: tl.constexpr, WAY: tl.constexpr, SCALED: tl.constexpr, RECURRENT: tl.constexpr,
    READS: tl.constexpr, PADDED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    b, j = tl.program_id(0), tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside, here, place, scale = j < H, b * H + j, b * width + j, b * gates_row
    h0, alive = tl.load(h_old + here, inside), True
    if PADDED:
        alive = tl.load(live + b) != 0
    a = _preactivation(0, x, product, bias, gates, products, place, j, inside, H, scale, SCALED)
    if KIND == 2:
        if WAY == 0:
            h = tanh(a)
        else:
            h = tl.where(a < 0, 0.0, a)  # NaN stays
            if WAY == 2:
                h = tl.where(h > CEILING, CEILING, h)
        tl.store(values + place, h, inside)
    else:
        first = squash(a, WAY)
        second = squash(_preactivation(1, x, product, bias, gates, products, place, j, inside, H, scale, SCALED), WAY)
        a2 = _preactivation(2, x, product, bias, gates, products, place, j, inside, H, scale, SCALED)
        a3 = _preactivation(3, x, product, bias, gates, products, place, j, inside, H, scale, SCALED)
        if KIND == 0:
            c0, third, fourth = tl.load(c_old + here, inside), tanh(a2), squash(a3, WAY)
            c = second * c0 + first * third
            h = fourth * tanh(c)
            tl.store(c_new + here, tl.where(alive, c, c0), inside)
        else:
            third, fourth = tanh(a2 + first * a3), a3
            h = third + second * (h0 - third)
        tl.store(values + place, first, inside)
        tl.store(values + place + H, second, inside)
        tl.store(values + place + 2 * H, third, inside)
        tl.store(values + place + 3 * H, fourth, inside)
    h = tl.where(alive, h, h0)
    tl.store(h_new + here, h, inside)
    if READS:
        if RECURRENT:
            h = h * tl.load(recurrent + b * recurrent_row + j, inside)
        tl.store(read + here, h.to(read.dtype.element_ty), inside)


@triton.jit
def _hand_on(
    k, d, gates, products, d_inputs, d_factor, d_sum, d_gates, place, j, inside, H, gates_row, SCALED: tl.constexpr,
    ROUNDED: tl.constexpr,
):  # fmt: skip
    """The gradient of block k's preactivations → of its scale, of the sum under that, and of the product's factor."""
    at = place + k * H
    if SCALED:
        tl.store(d_sum + at, tl.load(d_sum + at, inside) + d, inside)
        tl.store(d_gates + at, tl.load(d_gates + at, inside) + d * tl.load(products + at, inside), inside)
        d = d * tl.load(gates + gates_row + k * H + j, inside)
    tl.store(d_inputs + at, d, inside)
    if ROUNDED:
        tl.store(d_factor + at, d.to(d_factor.dtype.element_ty), inside)


@triton.jit
def step_backward(
    d_hidden, d_read, d_h, d_c, gates, recurrent, live, h_old, c_old, h_new, c_new, values, products, d_inputs, d_factor,
    d_sum, d_gates, d_recurrent, H, width, gates_row, recurrent_row, KIND: tl.constexpr, WAY: tl.constexpr,
    SCALED: tl.constexpr, RECURRENT: tl.constexpr, ROUNDED: tl.constexpr, PADDED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """d_read is the gradient of what the step after this read of h, d_h that which passed it by; both are of h_new."""
    b, j = tl.program_id(0), tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside, here, place, scale = j < H, b * H + j, b * width + j, b * gates_row
    way, alive = tl.load(d_read + here, inside).to(tl.float32), True
    if RECURRENT:
        seen = way * tl.load(h_new + here, inside)
        tl.store(d_recurrent + here, tl.load(d_recurrent + here, inside) + seen, inside)
        way = way * tl.load(recurrent + b * recurrent_row + j, inside)
    whole = tl.load(d_hidden + here, inside) + tl.load(d_h + here, inside) + way
    if PADDED:
        alive = tl.load(live + b) != 0
    d, past = tl.where(alive, whole, 0.0), tl.where(alive, 0.0, whole)
    first = tl.load(values + place, inside)
    if KIND == 2:
        if WAY == 0:
            d0 = d * (1 - first * first)
        elif WAY == 1:
            d0 = tl.where(first > 0, d, 0.0)
        else:
            d0 = tl.where((first > 0) & (first < CEILING), d, 0.0)
    else:
        second = tl.load(values + place + H, inside)
        third, fourth = tl.load(values + place + 2 * H, inside), tl.load(values + place + 3 * H, inside)
        if KIND == 0:
            before, c = tl.load(d_c + here, inside), tanh(tl.load(c_new + here, inside))
            inner = tl.where(alive, before, 0.0) + d * fourth * (1 - c * c)
            d0 = inner * third * slope(first, WAY)
            d1 = inner * tl.load(c_old + here, inside) * slope(second, WAY)
            d2 = inner * first * (1 - third * third)
            d3 = d * c * slope(fourth, WAY)
            tl.store(d_c + here, tl.where(alive, inner * second, before), inside)
        else:
            d1 = d * (tl.load(h_old + here, inside) - third) * slope(second, WAY)
            past += d * second
            d2 = (d - d * second) * (1 - third * third)
            d3 = d2 * first
            d0 = d2 * fourth * slope(first, WAY)
        _hand_on(
            1, d1, gates, products, d_inputs, d_factor, d_sum, d_gates, place, j, inside, H, scale, SCALED, ROUNDED
        )
        _hand_on(
            2, d2, gates, products, d_inputs, d_factor, d_sum, d_gates, place, j, inside, H, scale, SCALED, ROUNDED
        )
        _hand_on(
            3, d3, gates, products, d_inputs, d_factor, d_sum, d_gates, place, j, inside, H, scale, SCALED, ROUNDED
        )
    _hand_on(0, d0, gates, products, d_inputs, d_factor, d_sum, d_gates, place, j, inside, H, scale, SCALED, ROUNDED)
    tl.store(d_h + here, past, inside)


def _shared(way, gates, recurrent, live, hidden):
    """What all steps take alike: sizes and kinds, and the number of programs."""
    batch, width = hidden.shape[1], hidden.shape[2]
    rows = [0 if s is None or len(s) == 1 else s.shape[1] for s in (gates, recurrent)]
    kinds = {"KIND": KINDS.index(type(way.cell).__name__), "WAY": WAYS[way.cell.activation], "SPAN": SPAN}
    flags = {"SCALED": gates is not None, "RECURRENT": recurrent is not None, "PADDED": live is not None}
    return (batch, triton.cdiv(width, SPAN)), rows, kinds | flags


def _rows(tensor, count):
    """The steps of a tensor; of none, as many None."""
    return [None] * count if tensor is None else tensor.unbind()


def forward_by_steps(way, inputs, bias, weight, recurrent, gates, live, *state):
    """As `recurrence.forward_through_time`."""
    steps, batch, width = inputs.shape
    inputs, hidden = inputs.contiguous(), state[0].shape[1]
    gates, recurrent = (None if s is None else s.contiguous() for s in (gates, recurrent))
    values = inputs.new_empty(steps if way.save else 1, batch, width)
    products = torch.empty_like(values) if gates is not None else None
    history = [s.new_empty(steps + 1, *s.shape) for s in state]
    for kept, s in zip(history, state, strict=True):
        kept[0] = s
    product, transposed = weight.new_empty(batch, width), weight.t()
    reads = recurrent is not None or way.rounded
    read = state[0] if recurrent is None else state[0] * recurrent
    read = read.to(weight.dtype).contiguous() if reads else None
    grid, scale_rows, constants = _shared(way, gates, recurrent, live, history[0])
    kept_values, kept_products = values.unbind(), _rows(products, len(values))
    h, alive = history[0].unbind(), _rows(None if live is None else live.contiguous().view(torch.uint8), steps)
    c = history[1].unbind() if len(history) > 1 else [None] * (steps + 1)
    for t, x in enumerate(inputs.unbind()):
        torch.mm(read if reads else h[t], transposed, out=product)
        kept = kept_values[t % len(values)], kept_products[t % len(values)]
        step_forward[grid](
            x, product, bias, gates, recurrent, alive[t], h[t], c[t], *kept, h[t + 1], c[t + 1], read, hidden, width,
            *scale_rows, READS=reads, **constants,
        )  # fmt: skip
    if not way.save:
        return None, None, history[0], *(kept[-1:] for kept in history[1:])
    return values, products, *history


def backward_by_steps(way, d_hidden, weight, recurrent, gates, live, values, products, *rest):
    """As `recurrence.backward_through_time`."""
    history, d_last = rest[: way.cell.n_states], rest[way.cell.n_states :]
    steps, batch, width = values.shape
    d_hidden, hidden = d_hidden.contiguous(), history[0].shape[2]
    gates, recurrent = (None if s is None else s.contiguous() for s in (gates, recurrent))
    d_inputs = torch.empty_like(values)
    d_factor = torch.empty_like(values, dtype=weight.dtype) if way.rounded else d_inputs
    d_sum, d_gates = (None if gates is None else torch.zeros_like(values[0]) for _ in range(2))
    d_recurrent = None if recurrent is None else torch.zeros_like(history[0][0])
    d_h, d_read = torch.zeros_like(history[0][0]), weight.new_zeros(batch, hidden)
    d_rest = [d.clone(memory_format=torch.contiguous_format) for d in d_last]
    grid, scale_rows, constants = _shared(way, gates, recurrent, live, history[0])
    h, alive = history[0].unbind(), _rows(None if live is None else live.contiguous().view(torch.uint8), steps)
    c = history[1].unbind() if len(history) > 1 else [None] * (steps + 1)
    d_c, kept_products = (d_rest or [None])[0], _rows(products, steps)
    kept, d_input, d_product = values.unbind(), d_inputs.unbind(), d_factor.unbind()
    for t in reversed(range(steps)):
        step_backward[grid](
            d_hidden[t], d_read, d_h, d_c, gates, recurrent, alive[t], h[t], c[t], h[t + 1], c[t + 1], kept[t],
            kept_products[t], d_input[t], d_product[t], d_sum, d_gates, d_recurrent, hidden, width, *scale_rows,
            ROUNDED=way.rounded, **constants,
        )  # fmt: skip
        torch.mm(d_product[t], weight, out=d_read)
    d_first = d_read.to(d_h.dtype)
    if recurrent is not None:
        d_recurrent.addcmul_(d_first, h[0])
        d_first = d_first * recurrent
    return d_inputs, d_factor, d_sum, d_recurrent, d_gates, d_h + d_first, *d_rest
