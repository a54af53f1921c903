"""Sparse products y [M, N] = W [M, K] x [K, N] in Triton: CSR for any pattern, blocks of 16 or 32 for tensor cores."""

import torch
import triton
import triton.language as tl

from .base import Unsupported
from .products import Product
from .stepped import Stepped


@triton.jit
def csr_times(pointers, columns, values, x, y, n, CHUNK: tl.constexpr, WIDE: tl.constexpr):
    """A row of W and WIDE columns of x a program; CHUNK weights at a time."""
    row = tl.program_id(0)
    i = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    first, last = tl.load(pointers + row), tl.load(pointers + row + 1)
    total = tl.zeros([CHUNK, WIDE], tl.float32)
    for start in range(first, last, CHUNK):
        k = start + tl.arange(0, CHUNK)
        column = tl.load(columns + k, mask=k < last, other=0)
        value = tl.load(values + k, mask=k < last, other=0.0)
        total += value[:, None] * tl.load(x + column[:, None] * n + i[None, :], mask=i[None, :] < n, other=0.0)
    tl.store(y + row * n + i, tl.sum(total, 0), mask=i < n)


@triton.jit
def block_times(pointers, columns, values, x, y, n, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """A block row of W and WIDE columns of x a program; a block is [BLOCK, BLOCK], products in three tf32 parts."""
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    i = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    total = tl.zeros([BLOCK, WIDE], tl.float32)
    for k in range(tl.load(pointers + row), tl.load(pointers + row + 1)):
        block = tl.load(values + k * BLOCK * BLOCK + j[:, None] * BLOCK + j[None, :])
        lines = tl.load(columns + k) * BLOCK + j
        part = tl.load(x + lines[:, None] * n + i[None, :], mask=i[None, :] < n, other=0.0)
        total = tl.dot(block, part, total, input_precision="tf32x3")
    tl.store(y + (row * BLOCK + j[:, None]) * n + i[None, :], total, mask=i[None, :] < n)


class CsrTriton(Product):
    """CSR, fp32."""

    devices = ("cuda",)

    def prepare(self, weight):
        self.rows = len(weight)
        rows, columns = weight.nonzero(as_tuple=True)
        pointers = torch.zeros(self.rows + 1, dtype=torch.int32, device=weight.device)
        pointers[1:] = torch.bincount(rows, minlength=self.rows).cumsum(0)
        return pointers, columns.int(), weight[rows, columns].contiguous()

    def __call__(self, x):
        n, x = x.shape[1], x.contiguous()
        y = torch.empty(self.rows, n, device=x.device)
        wide = min(32, triton.next_power_of_2(n))
        csr_times[(self.rows, triton.cdiv(n, wide))](*self.weight, x, y, n, CHUNK=max(16, 128 // wide), WIDE=wide)
        return y


class Blocks(Product):
    """Blocks that hold any weight, dense inside; fp32 through tensor cores. A rim is filled up with zeros."""

    devices = ("cuda",)
    block: int

    def prepare(self, weight):
        size, (self.rows, self.columns) = self.block, weight.shape
        padded = torch.nn.functional.pad(weight, (0, -self.columns % size, 0, -self.rows % size))
        tiles = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).transpose(1, 2)  # [row, column, size, size]
        kept = (tiles != 0).any(3).any(2)
        if kept.float().mean() > 0.9:
            raise Unsupported(f"nearly every block of {size} holds a weight: the dense product is this one")
        pointers = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        return pointers, kept.nonzero()[:, 1].int(), tiles[kept].contiguous()

    def __call__(self, x):
        n, size = x.shape[1], self.block
        x = torch.nn.functional.pad(x, (0, 0, 0, -self.columns % size)).contiguous()
        count = len(self.weight[0]) - 1
        y = torch.empty(count * size, n, device=x.device)
        wide = 16 if n <= 16 else 32 if n <= 32 else 64
        block_times[(count, triton.cdiv(n, wide))](*self.weight, x, y, n, BLOCK=size, WIDE=wide)
        return y[: self.rows]


class Block16(Blocks):
    block = 16


class Block32(Blocks):
    block = 32


class SteppedCsr(Stepped):
    devices, product = ("cuda",), CsrTriton


class SteppedBlock16(Stepped):
    devices, product = ("cuda",), Block16


class SteppedBlock32(Stepped):
    devices, product = ("cuda",), Block32
