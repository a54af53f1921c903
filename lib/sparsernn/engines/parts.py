"""One recurrent layer and direction with neurons removed and gates constant: cut it, run it.

A gate that no weight reaches is a constant, σ(b) or tanh(b), and has no rows. What is left of a layer are its PARTS:

weight_ih, weight_hh   rows of live gates only, gate by gate; columns of what is still there to be read
bias                   of live gates, over blocks (see `nets.cells.Cell`), input's and state's added up
live                   uint8 [G, Hk]: which gates of the kept neurons have rows
constant               values of the gates that have none, row by row of `live`
"""

import torch
from torch.nn import functional as F

PARTS = ("weight_ih", "weight_hh", "bias", "live", "constant")


def shrink(cell, weight_ih, weight_hh, bias_ih, bias_hh, keep, live):
    """PARTS of a layer. keep: bool [H], neurons that stay; live: bool [G·H], gates that something reaches.

    The weights [G·H, …] come with removed columns already gone and scales multiplied in.
    """
    live = live.view(len(cell.gates), -1).clone()
    for moved, mover in cell.moved_by:  # without a weight of its own a GRU's n is no constant where its r is none
        live[cell.gates.index(moved)] |= live[cell.gates.index(mover)]
    small_live, live = live[:, keep], live.flatten()
    bias = cell.join_biases(bias_ih, bias_hh).view(-1, len(keep))[:, keep]
    values = bias.reshape(1, 1, -1).clone()  # every block as it is when nothing reaches it
    cell.activate(cell.slices(values)[0])
    constant = values.view(bias.shape)[list(cell.from_input)]
    return {
        "weight_ih": weight_ih[live],
        "weight_hh": weight_hh[live],
        "bias": bias[small_live[cell.gate_of_block]],
        "live": small_live.to(torch.uint8),
        "constant": constant[~small_live],
    }


def run(cell, parts, x, state, live, reverse):
    """The layer over x [T, B, I] or one-hot ids [T, B] → y [T, B, Hk] and its final states.

    state   of the kept neurons, each [B, Hk]; None: zeros
    live    bool [T, B], False where a step is padding, or None
    ids     one more than the last column stands for a word that was removed
    """
    where, gates = parts["live"].bool(), cell.gate_of_block
    weight_ih = by_block(parts["weight_ih"], cell.from_input, where, gates)
    weight_hh = by_block(parts["weight_hh"], cell.from_state, where, gates).t()
    if x.dtype == torch.int64:
        a = F.embedding(x, F.pad(weight_ih.t(), (0, 0, 0, 1))) + parts["bias"]
    else:
        a = F.linear(x, weight_ih, parts["bias"])
    if reverse:
        a, live = a.flip(0), None if live is None else live.flip(0)
    (steps, batch), hidden = a.shape[:2], where.shape[1]
    reached = where[gates].flatten().nonzero().flatten()  # columns that the products reach
    fixed = where.new_zeros(len(gates), hidden)
    fixed[list(cell.from_input)] = ~where
    fixed = fixed.flatten().nonzero().flatten()  # and those that hold a constant
    values = a.new_zeros(batch, len(gates) * hidden)
    slices = cell.slices(values[None])[0]
    state = [a.new_zeros(batch, hidden) for _ in range(cell.n_states)] if state is None else state
    y = a.new_empty(steps, batch, hidden)
    for t in range(steps):
        values[:, reached] = torch.addmm(a[t], state[0], weight_hh)
        cell.squash(slices)
        if cell.moved_by:  # the candidate reads a gate, which may be constant
            values[:, fixed] = parts["constant"]
        cell.propose(slices)
        values[:, fixed] = parts["constant"]
        new = [torch.empty_like(s) for s in state]
        cell.advance(slices, state, new)
        if live is not None:
            new = [torch.where(live[t][:, None], after, before) for after, before in zip(new, state, strict=True)]
        state = new
        y[t] = state[0]
    if live is not None:
        y = y.masked_fill(~live.unsqueeze(2), 0)
    return (y.flip(0) if reverse else y), state


def by_block(rows, landing, live, gates):
    """Rows of live gates [R, n] → rows of live blocks; zeros for a block in which this side's products do not land."""
    counts = live.sum(1).tolist()
    of_gate = rows.split(counts)
    blocks = (
        of_gate[landing.index(block)] if block in landing else rows.new_zeros(counts[gate], rows.shape[1])
        for block, gate in enumerate(gates)
    )
    return torch.cat(list(blocks))
