"""Batch norm of what a recurrent layer takes from its input, W_ih x, over all time steps and sequences of a batch.

What comes back from the state is not normalised: norm(W_ih x) + W_hh h' + b (sequence-wise normalisation, Laurent et al.
1510.01378; Deep Speech 2, 1512.02595). Once training is over it multiplies every row of W_ih with a number and adds one to
its bias: a small layer has none.
"""

import torch
from torch import nn


class SequenceNorm(nn.BatchNorm1d):
    """torch's batch norm over products [T, B, n]; in training padded steps count in no statistic and come out as zeros."""

    def forward(self, products, live=None):
        """live: bool [T, B, 1], False where a step is padding, or None."""
        flat = products.flatten(0, 1)
        if live is None or not self.training:
            return super().forward(flat).view_as(products)
        real = live.flatten().nonzero().flatten()
        normal = super().forward(flat.index_select(0, real))
        return torch.zeros_like(flat).index_copy(0, real, normal).view_as(products)

    def folded(self, weight, bias, gates=1.0):
        """W_ih [n, I] and its bias [n] → with the norm of evaluation in them.

        gates: what multiplies the norm's outcome, a number or float64 [n]; the weight has it in it already
        """
        scale = self.weight.detach().double() * (self.running_var.double() + self.eps).rsqrt()
        shift = self.bias.detach().double() - scale * self.running_mean.double()
        return (weight.double() * scale[:, None]).to(weight.dtype), (bias.double() + gates * shift).to(bias.dtype)


def without_norms(layer):
    """Name → weight or bias of a recurrent layer, torch's or ours, as in evaluation: with its norms in them."""
    found = {name: getattr(layer, name).detach() for name in layer._flat_weights_names}
    norm_of = getattr(layer, "norm", lambda suffix: None)
    for ih in [name for name in found if name.startswith("weight_ih")]:
        suffix = ih.removeprefix("weight_ih")
        if (norm := norm_of(suffix)) is not None:
            found[ih], found["bias_ih" + suffix] = norm.folded(found[ih], found["bias_ih" + suffix])
    return found
