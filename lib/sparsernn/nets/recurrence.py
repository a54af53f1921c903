"""The loop over time of one layer and direction as one operation, forward and by hand backward."""

import warnings
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from . import replay
from .cells import Cell, LSTMCell
from .multiply import by_onednn, slope, times
from .quick import is_plain, watched


class Way(NamedTuple):
    """How a loop runs, but for its tensors.

    partial  per step, whether any sequence is padded there
    rounded  the products with the state are of bfloat16; states and sums are not
    fast     they are oneDNN's
    save     what the way back needs is kept
    steps    the module that fuses a step's kernels; None: torch's own, one after the other
    """

    cell: Cell
    partial: tuple[bool, ...]
    rounded: bool
    fast: bool
    save: bool
    steps: ModuleType | None


@cache
def _fused_steps(device):
    """The module of fused steps if its kernels run on this GPU; None, and a warning that says why, where they do not."""
    try:
        from . import fused_steps

        net = Way(LSTMCell("logistic"), (False,), False, False, True, fused_steps)
        one = torch.ones(1, 1, 4, device=device)
        with torch.cuda.device(device):
            fused_steps.forward_by_steps(
                net, one, one[0, 0], one[0].t(), None, None, None, one[0, :, :1], one[0, :, :1]
            )
    except torch.OutOfMemoryError:  # says nothing of Triton
        raise
    except Exception as problem:  # no Triton, no compiler of C for it, a GPU that is too old
        said = f"training on {device} runs step by step, some ten times as long: Triton's kernels do not run here"
        warnings.warn(f"{said} ({type(problem).__name__}: {problem})", stacklevel=2)
        return None
    return fused_steps


def fused(inputs):
    """The module of fused steps for these inputs; None: torch's own, one after the other."""
    if not inputs.is_cuda or inputs.dtype != torch.float32 or watched() or not is_plain(inputs):
        return None
    return _fused_steps(inputs.device)


def forward_through_time(way, inputs, bias, weight, recurrent, gates, live, *state):
    """→ gate values and products before their scale (both None unless `way.save`), then every h [T + 1, B, H], from the first
    on, and of the other states as many, or the last alone."""
    steps, batch, width = inputs.shape
    rows = steps if way.save else 1
    values = inputs.new_empty(rows, batch, width)
    products = inputs.new_empty(rows, batch, width) if gates is not None else None
    history = [s.new_empty(steps + 1, *s.shape) for s in state[:1]]  # every h is returned
    history += [s.new_empty(steps + 1 if way.save else 2, *s.shape) for s in state[1:]]
    for kept, s in zip(history, state, strict=True):
        kept[0] = s
    read, transposed = inputs.new_empty(batch, weight.shape[1]), weight.t()
    slices, states, value_rows = way.cell.slices(values), [kept.unbind() for kept in history], values.unbind()
    product_rows = None if gates is None else products.unbind()
    for t, x in enumerate(inputs.unbind()):
        old, new = ([kept[u % len(kept)] for kept in states] for u in (t, t + 1))
        h = old[0] if recurrent is None else torch.mul(old[0], recurrent, out=read)
        a = value_rows[t % rows]
        product = a if gates is None else product_rows[t % rows]
        if way.rounded:
            torch.add(x, (h.bfloat16() @ transposed).to(x.dtype), out=product)  # added as it is: five times as long
        elif way.fast:
            torch.add(x, times(h, weight), out=product)
        else:
            torch.addmm(x, h, transposed, out=product)
        if gates is not None:
            torch.addcmul(bias, product, gates, out=a)
        way.cell.activate(slices[t % rows])
        way.cell.advance(slices[t % rows], old, new)
        if way.partial[t]:
            for before, after in zip(old, new, strict=True):
                torch.where(live[t], after, before, out=after)
    if not way.save:
        return None, None, history[0], *(kept[steps % 2].unsqueeze(0) for kept in history[1:])
    return values, products, *history


def backward_through_time(way, d_hidden, weight, recurrent, gates, live, values, products, *rest):
    """rest: the histories of the states, then the gradients of all last states but h. → gradients of the inputs, of what the
    products take of them (the same, or rounded), of the products' sums under their scale, of the scales by sequence (None
    where there are none), and of the first states."""
    history, d_last = rest[: way.cell.n_states], rest[way.cell.n_states :]
    d_inputs = torch.empty_like(values)
    d_a = d_inputs if gates is None else torch.empty_like(values[:1])  # of preactivations: all steps, or one
    d_sum = None if gates is None else torch.zeros_like(values[0])
    d_recurrent = None if recurrent is None else torch.zeros_like(history[0][0])
    d_gates = None if gates is None else torch.zeros_like(values[0])
    d_h, d_rest = torch.zeros_like(history[0][0]), [d.clone() for d in d_last]
    slices, d_slices, states = way.cell.slices(values), way.cell.slices(d_a), [kept.unbind() for kept in history]
    d_factor = torch.empty_like(d_inputs, dtype=weight.dtype) if way.rounded else d_inputs  # as the products take it
    back = weight.t().contiguous() if way.fast else None
    d_inputs_rows, d_factor_rows, d_hidden = d_inputs.unbind(), d_factor.unbind(), d_hidden.unbind()
    dead = None if live is None else ~live
    for t in reversed(range(len(values))):
        old, new = [kept[t] for kept in states], [kept[t + 1] for kept in states]
        d_h = d_h.add_(d_hidden[t])
        stays = None
        if way.partial[t]:  # a padded step hands its gradient on untouched
            stays = [d.masked_fill(live[t], 0) for d in (d_h, *d_rest)]
            for d in (d_h, *d_rest):
                d.masked_fill_(dead[t], 0)
        direct = way.cell.backward(slices[t], old, new, (d_h, *d_rest), d_slices[t % len(d_slices)])
        if gates is not None:
            d_sum.add_(d_a[0])
            d_gates.addcmul_(d_a[0], products[t])
            torch.mul(d_a[0], gates, out=d_inputs_rows[t])
        if way.rounded:
            d_h.copy_(d_factor_rows[t].copy_(d_inputs_rows[t]) @ weight)
        elif way.fast:
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
    return d_inputs, d_factor, d_sum, d_recurrent, d_gates, d_h, *d_rest


def whole_backward(way, d_hidden, weight, recurrent, gates, live, values, products, hidden, *rest):
    """hidden, rest: the histories of the states, then the gradients of all last states but h. → gradients of inputs, bias,
    weight, recurrent, gates (None where there is none) and of the first states."""
    loop = backward_through_time if way.steps is None else way.steps.backward_by_steps
    found = loop(way, d_hidden, weight, recurrent, gates, live, values, products, hidden, *rest)
    d_inputs, d_factor, d_sum, d_recurrent, d_gates, *d_state = found
    read = hidden[:-1] if recurrent is None else hidden[:-1] * recurrent
    read, d_factor = read.flatten(0, 1), d_factor.flatten(0, 1)
    if way.rounded:  # the smaller factor is laid out anew, half the time of the larger
        d_weight = (read.to(weight.dtype).t().contiguous() @ d_factor).to(d_inputs.dtype).t().contiguous()
    elif way.fast:
        d_weight = slope(d_factor, read)
    else:
        d_weight = d_factor.t() @ read
    return (
        d_inputs,
        None if gates is None else d_sum.sum(0),
        d_weight,
        None if recurrent is None else _sum_to(d_recurrent, recurrent),
        None if gates is None else _sum_to(d_gates, gates),
        *d_state,
    )


def whole_forward(way, *given):
    """As `forward_through_time`, in the way's steps."""
    loop = forward_through_time if way.steps is None else way.steps.forward_by_steps
    return loop(way, *given)


def _sum_to(grad, like):
    """A gradient [B, n] of a scale given as [B|1, n]."""
    return grad.sum(0, keepdim=True) if like.shape[0] == 1 and grad.shape[0] != 1 else grad


@cache
def _alike(padded, steps):
    """What `partial` is where every step may be padded, or none: one tuple, which keys of graphs share."""
    return (padded,) * steps


class Recurrence(torch.autograd.Function):
    """The whole time loop of one layer and direction as one operation.

    inputs [T, B, blocks·H] is W_ih x, with the bias in it unless `gates` scales it first; live [T, B, 1] is False where a
    step is padding (the state stays); `partial` lists, per step, whether any sequence is padded there (on a GPU nothing asks:
    it takes all steps alike); `learns`: whether there will be a way back. Returns the unscaled h [T, B, H] and the other
    final states. One product per step forward and one backward; the weight gradient is one product at the end; everything
    else of a step stays in the cache. `rounded`: the factors and results of these products are bfloat16; states and sums
    are not. On a GPU a step is two kernels (`fused_steps`), and loops that come again are replayed (`replay`).
    """

    @staticmethod
    def forward(ctx, cell, inputs, bias, weight, recurrent, gates, live, partial, rounded, learns, *state):
        weight = weight.bfloat16() if rounded else weight
        steps, save = fused(inputs), learns and any(ctx.needs_input_grad)
        if steps is not None or replay.may(inputs):
            partial = _alike(live is not None, len(inputs))
        fast = not rounded and by_onednn(inputs, inputs.shape[1], weight)
        cell.is_for(state[0])
        way = Way(cell, tuple(partial), rounded, fast, save, steps)
        found = replay.run(whole_forward, way, inputs, bias, weight, recurrent, gates, live, *state)
        values, products, *history = found
        if save:
            ctx.save_for_backward(weight, recurrent, gates, live, values, products, *history)
            ctx.way = way
        hidden = history[0][1:]
        if save and cell.n_states == 1:  # as torch's GRU and RNN, not its LSTM, it may be changed in place
            hidden = hidden.clone()
        return hidden, *(kept[-1].clone() for kept in history[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_hidden, *d_last):
        with torch.autocast(d_hidden.device.type, enabled=False):
            found = replay.run(whole_backward, ctx.way, d_hidden, *ctx.saved_tensors, *d_last)
        d_inputs, d_bias, d_weight, d_recurrent, d_gates, *d_state = found
        return None, d_inputs, d_bias, d_weight, d_recurrent, d_gates, None, None, None, None, *d_state
