"""Blocks of a matrix: cutting it into them, and which of the shapes that ship a mask has.

A matrix [out, in] is cut from its first row and column on; where a size is no multiple of the block's, the last blocks are
smaller. What runs fast wants a shape: 16×1 one index for 16 float32, 8×4 and 16×4 dot products of four int8, 32×32 a GPU.
"""

import math
import re

import torch
from torch.nn import functional as F

from .masking import EMBEDDING, INPUT, RECURRENT, type_of

SHAPES = "1x1", "16x1", "8x4", "4x4", "16x4", "32x32"


def shape_of(text):
    """Rows and columns of a block: "16x1" → (16, 1). Raises ValueError for what is no such text."""
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if not found:
        raise ValueError(f"block is {text!r}; expected rows x columns of a block (out x in), for example 16x1 or 8x4")
    return int(found[1]), int(found[2])


def shares_of(text):
    """The density of each gate: "0.5,0.2" → [0.5, 0.2]; none for no text. Raises ValueError for what is no such text."""
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        found = [math.nan]
    if not all(0 < share <= 1 for share in found):
        raise ValueError(
            f"gate_densities is {text!r}; expected a number above 0 and at most 1 for each gate, for example 0.05,0.05,0.2"
        )
    return found


def gates_of(weight):
    """The letters of the gates whose rows a matrix has; empty outside a recurrent layer."""
    return weight.owners[0][0].cell.gates if type_of(weight) in (INPUT, RECURRENT) else ""


def by_gate(weight, values):
    """A tensor of a matrix's shape → [gates, out, in]. An embedding [words, numbers] is a weight that lies on its side."""
    return values.t()[None] if type_of(weight) == EMBEDDING else values.unflatten(0, (len(gates_of(weight)) or 1, -1))


def as_it_lies(weight, values):
    """[gates, out, in] → the matrix's shape."""
    return values[0].t() if type_of(weight) == EMBEDDING else values.flatten(0, 1)


def in_blocks(matrix, shape):
    """[…, out, in] → […, R, C, entries of a block]; what a block at the edge lacks is 0 (or False)."""
    rows, columns = matrix.shape[-2:]
    height, width = min(shape[0], rows), min(shape[1], columns)
    padded = F.pad(matrix, (0, -columns % width, 0, -rows % height))
    parts = padded.unflatten(-1, (-1, width)).unflatten(-3, (-1, height))
    return parts.transpose(-3, -2).flatten(-2)


def to_entries(values, shape, like):
    """A value a block, […, R, C] → the same for each of its entries, of the shape of `like` […, out, in]."""
    rows, columns = like.shape[-2:]
    spread = values.repeat_interleave(min(shape[0], rows), -2).repeat_interleave(min(shape[1], columns), -1)
    return spread[..., :rows, :columns]


def blocks_of(mask):
    """How well a mask (bool [out, in], True = kept) fits the shapes that ship → a list of dicts, one a shape:

    block          the shape, out × in         fits  whether every block is kept whole or not at all
    density        share of weights kept       block_density  the same once every block that has one is kept whole
    cost           block_density ÷ density: how many times the weights have to be stored and multiplied (1 for no weight)
    Raises ValueError for what is no such mask.
    """
    if mask.dtype != torch.bool or mask.dim() != 2 or not mask.numel():
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; expected bool [out, in]")
    density, rows = float(mask.double().mean()), []
    for text in SHAPES:
        shape = shape_of(text)
        whole = to_entries(in_blocks(mask, shape).any(-1), shape, mask)
        full = float(whole.double().mean())
        row = {"block": text, "fits": bool((whole == mask).all()), "density": density, "block_density": full}
        rows.append(row | {"cost": full / density if density else 1.0})
    return rows
