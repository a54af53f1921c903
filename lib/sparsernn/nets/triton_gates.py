"""What gates do to numbers, in Triton; shared by the steps that train and by the kernels that run whole sequences. NaN stays
NaN, and tanh is within 2e-7."""

import triton
import triton.language as tl


@triton.jit
def tanh(a):
    return 2 / (1 + tl.exp(-2 * a)) - 1


@triton.jit
def squash(a, HARD: tl.constexpr):
    if HARD:
        a = 0.2 * a + 0.5
        a = tl.where(a < 0, 0.0, a)  # minimum and maximum would lose NaN
        return tl.where(a > 1, 1.0, a)
    else:
        return 1 / (1 + tl.exp(-a))


@triton.jit
def slope(value, HARD: tl.constexpr):
    """Of `squash`, where it has this value."""
    if HARD:
        return tl.where((value > 0) & (value < 1), 0.2, 0.0)
    else:
        return value * (1 - value)
