"""Products of matrices in float32, by that of torch's two libraries which is at home on the processor.

torch multiplies by MKL, which gives an AMD processor half of its vector units (AVX2); oneDNN, which torch brings along for
its LSTM, gives it all of them: 105 and 230 GFLOP/s on an EPYC's core with AVX-512. Training is products above all. oneDNN
takes some 10 µs to begin, so that small products stay with MKL, as does everything on other processors.
"""

from functools import cache

import torch
from torch.nn import functional as F

from .quick import is_plain, watched

LEAST = 1 << 21  # multiplications from which oneDNN is faster, measured
FEWEST = 16  # of rows: below it a product is bound by the bytes of the matrix


@cache
def onednn_is_faster():
    """Whether this processor has vector units that torch's MKL leaves alone."""
    asked = getattr(torch.cpu, "get_capabilities", dict)()
    return asked.get("avx512_f", False) and "AMD" in asked.get("cpu_name", "") and torch.backends.mkldnn.is_available()


def by_onednn(x, rows, weight):
    """Whether a product of `rows` lines of x with a matrix [m, k] is for oneDNN, and nobody wants to see torch's own."""
    if watched() or not onednn_is_faster() or not torch.backends.mkldnn.enabled:
        return False
    plain = all(t.is_cpu and t.dtype == torch.float32 and t.layout == torch.strided for t in (x, weight))
    return plain and min(rows, *weight.shape) >= FEWEST and rows * weight.numel() >= LEAST


def times(x, weight, bias=None):
    """x Wᵀ + b by oneDNN; x [n, k], W [m, k] float32, in any layout, b [m] contiguous → [n, m]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """x Wᵀ + b by oneDNN, forward and backward, and backward through that."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        of_x, of_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return times(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return (
            None if weight is None else linear(grad, weight.t()),
            None if x is None else slope(grad, x),
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )


def slope(grad, x):
    """Gradient of a matrix that was multiplied with x [n, k], of that of the product [n, m] → [m, k]. What oneDNN lays out
    anew is its first factor: the narrower of the two."""
    if grad.shape[1] < x.shape[1]:
        return linear(grad.t(), x.t())
    return linear(x.t(), grad.t()).t().contiguous()


def linear(x, weight, bias=None):
    """F.linear; under autocast, and for whatever else wants to see torch's own operation, it is that."""
    if watched() or not is_plain(x) or not is_plain(weight) or torch.is_autocast_enabled(x.device.type) or x.dim() < 2:
        return F.linear(x, weight, bias)
    if bias is not None and not (bias.is_contiguous() and bias.shape == weight.shape[:1] and bias.dtype == x.dtype):
        return F.linear(x, weight, bias)
    if not by_onednn(x, x.numel() // max(1, x.shape[-1]), weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
