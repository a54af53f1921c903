"""Binary variational dropout for recurrent nets (Gal & Ghahramani 2016), alone and under sparse weights (1708.00077).

A mask over input and hidden neurons is drawn once a sequence and used at every time step: Bernoulli(1 − p) / (1 − p), so
that evaluation uses 1. What a layer hands on is masked apart from what it reads back. Alone it is the dense opponent
that learns less by heart; its prior is the weight decay.
"""

import torch

from ..nets.masks import weight_matrices
from .base import Method
from .sleep import cut
from .sparse_vd import SparseVD


def bernoulli_scales(axes, p, batch_size, like):
    """`layer.scale` → [batch_size, n] for every place where an input or hidden neuron is read."""
    keep, scales = 1 - p, {}
    for axis in axes:
        if p and axis.kind in ("input", "hidden"):
            for member in axis.having("scale"):
                drawn = torch.rand(batch_size, axis.size, dtype=like.dtype, device=like.device) < keep
                scales[member.tensor] = drawn.to(like) / keep
    return scales


class BinaryDropout(Method):
    """Weights as they are, masks on what is read, weight decay: `plan.dropout` is p, `plan.weight_decay` multiplies ½ Σ w²."""

    def prepare(self, model, plan, n_examples, steps_per_epoch):
        super().prepare(model, plan, n_examples, steps_per_epoch)
        self.plan, self.axes, self.theta = plan, model.axes(), weight_matrices(model)

    def sample_scales(self, batch_size):
        return bernoulli_scales(self.axes, self.plan.dropout, batch_size, next(iter(self.theta.values())))

    def penalty(self, step):
        decay = self.plan.weight_decay
        return decay / 2 * sum((theta * theta).sum() for theta in self.theta.values()) if decay else 0.0


class BinarySparseVD(SparseVD):
    """Noise on the weights and binary masks on what is read: the configuration of 1708.00077."""

    def sample(self, batch):
        draw = super().sample(batch)
        if self.fixed:
            draw.scales |= self.sample_scales(batch.tokens.shape[1])
        return draw

    def sample_scales(self, batch_size, lines=None):
        scales = bernoulli_scales(self.axes, self.plan.dropout, batch_size, next(iter(self.theta.values())))
        return {name: cut(scale, self.lines.get(name)) for name, scale in scales.items()}
