"""The penalty of sparse variational dropout: KL of a Gaussian posterior from the log-uniform prior, with known gradients."""

import math
from functools import cache

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch.autograd.function import once_differentiable

from ..nets.quick import is_plain, watched

# name → k1, k2, k3 of KL ≈ k1 (1 − sigm(k2 + k3 log α)) + ½ log(1 + 1/α), and the |log α| beyond which it is flat.
# For |log α| ≤ 8 their values are within 0.010 and 0.013 nats, their gradients within 3.8 and 3.4 % (notebooks/kl.ipynb).
FITS = {
    "molchanov": (0.63576, 1.87320, 1.48695, math.inf),  # Molchanov et al. 2017, eq. 14
    "1812.05692": (0.64, 1.95, 1.5, 8.0),  # its code; there less a constant of 0.67
}
CHOICES = (*FITS, "exact")  # the last is no fit


def log_alpha(theta, log_sigma):
    """log σ²/θ²; the 1e-16 keeps the gradient at θ = 0 finite."""
    return 2 * log_sigma - torch.log(theta * theta + 1e-16)


def slope_by_series(u):
    """dKL/du at u = θ²/2σ² = 1/2α, an array: Dawson(√u)/√u (1711.02989), by series: slow, within 1e-13.

    Dawson's function is F(y) = exp(−y²) ∫₀ʸ exp(t²) dt (DLMF 7.2.5). Up to u = 30 the integral's power series, all of whose
    terms are positive; beyond, the asymptotic one, whose smallest term is exp(−u).
    """
    term, near, far = np.exp(-np.minimum(u, 30)), 0.0, 0.0
    for k in range(150):
        near, term = near + term / (2 * k + 1), term * np.minimum(u, 30) / (k + 1)
    term = 0.5 / np.maximum(u, 30)
    for k in range(30):
        far, term = far + term, term * (2 * k + 1) / (2 * np.maximum(u, 30))
    return np.where(u <= 30, near, far)


# KL = ½ log(1 + u/C) + R(t) with t = u/(u + C): R is bounded and smooth on [0, 1], so a polynomial will do. These two leave
# dKL/dlog σ within 1e-9 of itself at every α, and float32 its digits; a smaller C asks for a higher degree.
C, DEGREE = 8.0, 24


@cache
def _coefficients(dtype, device):
    """R's in powers of 2t − 1, the highest first: its slope, interpolated at Chebyshev's points, is integrated from R(0) = 0."""

    def slope(s):
        t = (1 + s) / 2
        u = C * t / (1 - t)
        return (u * slope_by_series(u) / t - 0.5) / (1 - t)

    r = chebyshev.chebint(chebyshev.chebinterpolate(slope, DEGREE), lbnd=-1, scl=0.5)
    return torch.tensor(chebyshev.cheb2poly(r)[::-1].copy(), dtype=dtype, device=device).unbind()


SLICE = (
    1 << 17
)  # elements whose buffers stay in a processor's last cache, and for which a call of torch costs next to nothing


@torch.no_grad()
def kl_and_gradients(theta, log_sigma, fit="molchanov", factor=1.0):
    """`kl` times a factor with its gradients (value, d θ, d log σ), in one pass over slices that stay in the cache."""
    theta, log_sigma = theta.contiguous(), log_sigma.contiguous()
    d_theta, d_log_sigma = torch.empty_like(theta), torch.empty_like(log_sigma)
    total = theta.new_zeros((), dtype=torch.float64)
    length = SLICE if theta.device.type == "cpu" else theta.numel()
    parts = (t.reshape(-1).split(length) for t in (theta, log_sigma, d_theta, d_log_sigma))
    buffers = [theta.new_empty(min(length, theta.numel())) for _ in range(3)]
    for t, ls, d_t, d_ls in zip(*parts, strict=True):
        square, x, s = (buffer[: len(t)] for buffer in buffers)
        torch.mul(t, t, out=square).add_(1e-16)
        torch.log(square, out=x).sub_(ls, alpha=2)  # −log α
        total += _exact(x, s, d_t, d_ls) if fit == "exact" else _fitted(x, s, d_t, d_ls, *FITS[fit])
        if factor != 1:
            d_ls.mul_(factor)
        torch.div(t, square, out=d_t).mul_(d_ls).neg_()  # dKL/dθ = −θ/θ² dKL/dlog σ
    return factor * total.to(theta.dtype), d_theta, d_log_sigma


def _fitted(x, s, spare, d_log_sigma, k1, k2, k3, flat):
    """Σ KL at −log α = x by a fit, and dKL/dlog σ of each in its place; x, s and spare are overwritten."""
    if flat < math.inf:
        x.clamp_(-flat, flat)
    # KL = k1 s + ½ softplus(x), s = 1 − sigm(k2 + k3 log α) without losing its digits where α is large
    torch.mul(x, k3, out=s).sub_(k2).sigmoid_()
    total = k1 * s.sum() + 0.5 * torch._C._nn.softplus(x, out=spare).sum()
    # dKL/dlog σ = 2 k1 k3 s (s − 1) − sigm(x), 0 where x is at an end of its range
    torch.mul(s, s, out=d_log_sigma).sub_(s).mul_(2 * k1 * k3).sub_(torch.sigmoid(x, out=spare))
    if flat < math.inf:
        torch.ops.aten.hardtanh_backward(d_log_sigma, x, -flat, flat, grad_input=d_log_sigma)
    return total


def _exact(x, t, r, d_log_sigma):
    """The same without a fit, KL = ½ softplus(x − log 2C) + R(t); x, t and r are overwritten."""
    torch.sigmoid(x.sub_(math.log(2 * C)), out=t)
    total = 0.5 * torch._C._nn.softplus(x, out=r).sum()
    s, slope = torch.mul(t, 2, out=x).sub_(1), d_log_sigma
    r.zero_(), slope.zero_()
    for coefficient in _coefficients(s.dtype, s.device):  # Horner's scheme for R, and beside it for dR/ds
        torch.addcmul(r, slope, s, out=slope)
        torch.addcmul(coefficient, r, s, out=r)
    # dKL/dlog σ = −2 dKL/dx = −t (1 + 2 (1 − t) dR/dt), where dR/dt = 2 dR/ds and 2 (1 − t) = 1 − s
    slope.mul_(s.neg_().add_(1)).mul_(2).add_(1).mul_(t).neg_()
    return total + r.sum()


class Known(torch.autograd.Function):
    """A value whose gradients are known. Where they count once they are handed on as they are: `backward` adds or copies them,
    but what `torch.autograd.grad` returns is not to be written to."""

    @staticmethod
    def forward(ctx, theta, log_sigma, value, d_theta, d_log_sigma):
        ctx.save_for_backward(d_theta, d_log_sigma)
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        d_theta, d_log_sigma = ctx.saved_tensors
        # a GPU would have to be waited for
        at_hand = not watched() and is_plain(grad) and grad.is_cpu and not grad.requires_grad
        if not at_hand or grad != 1:
            d_theta, d_log_sigma = grad * d_theta, grad * d_log_sigma
        return d_theta, d_log_sigma, None, None, None


def kl(theta, log_sigma, fit="molchanov"):
    """Σ KL(N(θ, σ²) ‖ log-uniform), nats, "exact" or by one of FITS; → 0 as α → ∞ (by the code's fit to −10⁻⁶, and flat
    there)."""
    return Known.apply(theta, log_sigma, *kl_and_gradients(theta, log_sigma, fit))


class _Noisy(torch.autograd.Function):
    """θ + σ ε with one ε per element of what is wanted; keeps σ ε for the gradient of log σ.

    It saves no tensor the way autograd does, so that a draw may be shared by graphs whose backward passes come apart, and a
    part of a network that is computed again finds it as it was.
    """

    @staticmethod
    def forward(ctx, theta, log_sigma, rows, dim, at):
        ctx.shape = theta.shape
        if at is not None:
            known = at if (at >= 0).all() else at[at >= 0]
            theta, log_sigma = theta.index_select(dim, known), log_sigma.index_select(dim, known)
        noise = torch.randn(rows + theta.shape, dtype=theta.dtype, device=theta.device).mul_(log_sigma.exp())
        drawn = theta + noise
        ctx.noise, ctx.rows, ctx.dim, ctx.known, ctx.place = noise, len(rows), dim, None, None
        if at is not None:
            ctx.known = known
            if len(known) < len(at):
                shape = list(drawn.shape)
                shape[dim + len(rows)] = len(at)
                ctx.place = (at >= 0).nonzero().flatten()
                drawn = drawn.new_zeros(shape).index_copy_(dim + len(rows), ctx.place, drawn)
        return drawn

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.place is not None:
            grad = grad.index_select(ctx.dim + ctx.rows, ctx.place)
        d_theta, d_log_sigma = grad, grad * ctx.noise
        if ctx.rows:
            d_theta, d_log_sigma = d_theta.sum(0), d_log_sigma.sum(0)
        if ctx.known is not None:
            d_theta, d_log_sigma = (
                part.new_zeros(ctx.shape).index_add_(ctx.dim, ctx.known, part) for part in (d_theta, d_log_sigma)
            )
        return d_theta, d_log_sigma, None, None, None


def noisy(theta, log_sigma, rows=(), lines=None):
    """A sample of N(θ, σ²), shape rows + θ.shape. lines: (dimension, positions) of θ that are wanted alone, in this order;
    zeros at positions of −1."""
    return _Noisy.apply(theta, log_sigma, tuple(rows), *(lines or (0, None)))
