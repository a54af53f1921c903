"""One step of an LSTM, GRU or RNN on what Triton holds of it; shared by the kernels that run whole sequences.

KIND  of `base.KINDS`        HARD  gates squashed as clip(0.2x + 0.5, 0, 1); of an RNN: relu instead of tanh
p0 … p3  preactivations of the blocks (i f g o; r z n_x n_h; h)        f0 … f3  constants, NaN where a gate is live
"""

import triton
import triton.language as tl

from ..nets.triton_gates import squash, tanh


@triton.jit
def fixed_or(f, value):
    return tl.where(f == f, f, value)


@triton.jit
def advance(p0, p1, p2, p3, f0, f1, f2, f3, h, c, KIND: tl.constexpr, HARD: tl.constexpr):
    """→ the new h and c (c as it was where there is none)."""
    if KIND == 0:
        i, f = fixed_or(f0, squash(p0, HARD)), fixed_or(f1, squash(p1, HARD))
        g, o = fixed_or(f2, tanh(p2)), fixed_or(f3, squash(p3, HARD))
        c = f * c + i * g
        h = o * tanh(c)
    elif KIND == 1:
        r, z = fixed_or(f0, squash(p0, HARD)), fixed_or(f1, squash(p1, HARD))
        n = fixed_or(f2, tanh(p2 + r * p3))
        h = n + z * (h - n)
    else:
        if HARD:
            h = fixed_or(f0, tl.where(p0 < 0, 0.0, p0))  # NaN stays
        else:
            h = fixed_or(f0, tanh(p0))
    return h, c
