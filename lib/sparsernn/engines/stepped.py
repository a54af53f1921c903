"""The step loop with a sparse product for W_hh: what a library gives you when its kernel knows one product, not a sequence."""

import torch
from torch.nn import functional as F

from .base import Tabled
from .products import Csr


class Stepped(Tabled):
    """`product(W_hh)` is called once a step, and once for the head; the rest are ATen operations, as in `parts.run`."""

    product: type
    activations, hands_out = (*Tabled.activations, "clipped_relu"), True

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.times = self.product(layer.weight_hh, device)
        self.reached = layer.where.flatten().nonzero().flatten().to(device)
        fixed = layer.fixed.flatten()
        self.fixed_at = (~fixed.isnan()).nonzero().flatten().to(device)
        self.fixed = self.fp32(fixed[~fixed.isnan()])

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        times, bias = cls.product(weight, device), bias.to(device, torch.float32)
        return lambda y: (times(y.flatten(0, -2).T.contiguous()).T + bias).unflatten(0, y.shape[:-1])

    def run_with_states(self, x, live):
        cell, hidden = self.layer.cell, self.layer.hidden
        table, rows = self.table_and_rows(x, live)
        a = F.embedding(rows.clamp(min=0), table)
        steps, batch = rows.shape
        values = a.new_zeros(batch, self.layer.where.numel())
        slices = cell.slices(values[None])[0]
        state = [a.new_zeros(batch, hidden) for _ in range(cell.n_states)]
        new, y = [torch.empty_like(s) for s in state], a.new_empty(steps, batch, hidden)
        for t in range(steps):
            values[:, self.reached] = a[t] + self.times(state[0].T.contiguous()).T
            cell.squash(slices)
            if cell.moved_by:
                values[:, self.fixed_at] = self.fixed
            cell.propose(slices)
            values[:, self.fixed_at] = self.fixed
            cell.advance(slices, state, new)
            if live is not None:
                new = [torch.where(live[t][:, None], after, old) for after, old in zip(new, state, strict=True)]
            state, new = new, state
            y[t] = state[0]
        return (y if live is None else y.masked_fill(~live.unsqueeze(2), 0)), state


class CsrTorch(Stepped):
    product = Csr
