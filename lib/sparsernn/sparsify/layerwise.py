"""What is left of a matrix that is pruned on its own, given what it multiplies: Wanda's choice, SparseGPT's surgery."""

import torch

from .carried import Transient
from .masking import EMBEDDING, largest, type_of

BLOCK = 128  # columns whose masks are chosen at once (SparseGPT)
DAMPENING = 0.01  # of the mean diagonal of H, added to it (SparseGPT)


class Seen(Transient):
    """What matrices were seen to read, and whatever else is summed over training steps. No copy has it."""

    def add(self, what, value):
        self[what] = self.get(what, 0) + value

    @torch.no_grad()
    def hear(self, weight, read):
        """Σ x xᵀ over sequences and time steps of what a matrix multiplies; how often each word was looked up."""
        if read.is_floating_point():
            rows = read.flatten(0, -2).double()
            self.add((weight.name, "products"), rows.T @ rows)
        else:
            words = weight.theta.shape[0 if type_of(weight) == EMBEDDING else 1]
            self.add((weight.name, "words"), read.flatten().bincount(minlength=words).double())

    def feel(self, weight):
        """Σ of the squared gradients of a matrix."""
        if weight.theta.grad is None:
            raise ValueError(f"{weight.name} has no gradient in study.after_step(): clear gradients after it")
        self.add((weight.name, "gradient"), weight.theta.grad.square())

    def power(self, weight):
        """Σ x² of what each weight multiplies, [1, in] or, where rows are looked up, [words, 1]."""
        if (products := self.get((weight.name, "products"))) is not None:
            return products.diagonal()[None]
        if (words := self.get((weight.name, "words"))) is None:
            raise ValueError(f"{weight.name} was not read in training before the masks were cut; leave it out (skip=)")
        return words[:, None] if type_of(weight) == EMBEDDING else words[None]


def within_outputs(scores, count):
    """bool, of the shape of `scores` [out, in]: the largest of each row, as many in each; where `count`, that of all, does
    not divide, rows differ by one."""
    ends = (torch.arange(len(scores) + 1, dtype=torch.float64) * count / len(scores)).round().long()
    rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return rank < ends.diff()[:, None].to(rank.device)


def compensated(weight, hessian, density, dampening=DAMPENING):
    """Prune a matrix and let what is left make up for it: the sweep of SparseGPT (2301.00774), by optimal brain surgeon.

    weight  [out, in]       hessian  [in, in]: Σ x xᵀ over what it multiplies
    Column by column what is pruned is taken over by the columns to the right, as least squares would have it; masks are
    chosen for BLOCK columns at a time, by the error that each weight costs. → weights float64, bool: which are kept
    """
    w, h = weight.double().clone(), hessian.double()
    h = h + dampening * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
    if not h.diagonal().any():  # nothing but zeros was read: every weight costs the same
        h = torch.eye(len(h), dtype=h.dtype, device=h.device)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    keep = torch.ones_like(w, dtype=torch.bool)
    for column in range(w.shape[1]):
        if column % BLOCK == 0:
            block = slice(column, min(column + BLOCK, w.shape[1]))
            count = round(density * len(w) * block.stop) - round(density * len(w) * block.start)
            keep[:, block] = largest((w[:, block] / upper.diagonal()[block]).square(), count)
        lost = torch.where(keep[:, column], 0, w[:, column] / upper[column, column])
        w[:, column:] -= torch.outer(lost, upper[column, column:])
    return w * keep, keep
