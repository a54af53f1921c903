"""Products of matrices in float32, by that of torch's two libraries which is at home on the processor.

torch multiplies by MKL, which gives an AMD processor half of its vector units (AVX2); oneDNN, which torch brings along for
its LSTM, gives it all of them: 105 and 230 GFLOP/s on an EPYC's core with AVX-512. Training is products above all. oneDNN
takes some 10 µs to begin, so that small products stay with MKL, as does everything on other processors.
"""

from functools import cache

import torch
from torch.nn import functional as F

from .quick import watched

LEAST = 1 << 21  # multiplications from which oneDNN is faster, measured
FEWEST = 16  # of rows: below it a product is bound by the bytes of the matrix


@cache
def onednn_is_faster():
    """Whether this processor has vector units that torch's MKL leaves alone."""
    asked = getattr(torch.cpu, "get_capabilities", dict)()
    return asked.get("avx512_f", False) and "AMD" in asked.get("cpu_name", "") and torch.backends.mkldnn.is_available()


def by_onednn(x, rows, read, written):
    """Whether a product of `rows` lines of x, `read` numbers wide, with a matrix [written, read] is for oneDNN."""
    return (
        onednn_is_faster() and x.is_cpu and x.dtype == torch.float32 and torch.backends.mkldnn.enabled
        and min(rows, read, written) >= FEWEST and rows * read * written >= LEAST
    )  # fmt: skip


def times(x, weight, bias=None):
    """x Wᵀ + b by oneDNN; x [n, k], W [m, k] float32, in any layout → [n, m]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """F.linear by oneDNN, forward and backward, and backward through that."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return times(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            d_x = linear(rows, weight.t()).unflatten(0, x.shape[:-1])
        if ctx.needs_input_grad[1]:
            d_weight = slope(rows, x.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            d_bias = rows.sum(0)
        return d_x, d_weight, d_bias


def slope(grad, x):
    """Gradient of a matrix that was multiplied with x [n, k], of that of the product [n, m] → [m, k]. What oneDNN lays out
    anew is its first factor: the narrower of the two."""
    if grad.shape[1] < x.shape[1]:
        return linear(grad.t(), x.t())
    return linear(x.t(), grad.t()).t().contiguous()


def linear(x, weight, bias=None):
    """F.linear; under autocast, and for whatever else wants to see torch's own operation, it is that."""
    if (
        x.dim() > 1 and type(x) is torch.Tensor and weight.dtype == x.dtype
        and by_onednn(x, x.numel() // max(1, x.shape[-1]), *weight.shape[::-1])
        and not torch.is_autocast_enabled(x.device.type) and not watched()
    ):  # fmt: skip
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
