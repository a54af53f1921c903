"""A product of float32 numbers on a GPU's units that round factors to tf32, several times as fast as those that do not.

A factor is a part that tf32 holds and a rest that it holds too but for the last digits; of the four products of parts that of
the two rests is too small to count. Rounded sums would give the digits of fp32; the units cut them, and on an H100 an answer is
off by up to 1.1e-5, where tf32 alone is by 5e-4 and cuDNN's layers in fp32 by up to 1.8e-5. Source: the splitting that Markidis
et al. (1803.04014) do with fp16, and what cutting costs: Ootomo and Yokota (2203.03341).
"""

import torch
from torch.nn import functional as F

from . import precision

HELD = -1 << 13  # the bits of a float32 that tf32 has
MANY = 64  # rows, from which on three products on those units take less time than one


def parts(x):
    """x float32 → what tf32 holds of it, and the rest, none of what is not finite."""
    held = (x.view(torch.int32) & HELD).view(torch.float32)
    return held, (x - held).nan_to_num_(0.0)


def split_linear(weight, bias):
    """weight [V, H], bias [V], both float32 on one device → function of y [..., H] float32 → [..., V]."""
    held, rest = parts(weight)
    three = torch.cat([held, held, rest], 1)

    def product(y):
        if y.numel() < MANY * weight.shape[1]:
            return F.linear(y, weight, bias)
        held, rest = parts(y.contiguous())
        with precision.products(True):
            return F.linear(torch.cat([held, rest, held], -1), three, bias)

    return product
