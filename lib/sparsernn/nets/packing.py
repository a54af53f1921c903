"""Matrices with scattered zeros, and lists of kept lines, as few bytes; and back, nothing believed."""

import torch
from torch.nn import functional as F

INDEX = {torch.uint16, torch.uint32}


def _index_type(largest):
    return torch.uint16 if largest < 1 << 16 else torch.uint32


def pack_index(name, index, size):
    """Kept lines as numbers or as a bit each, whichever is smaller."""
    short = index.to(_index_type(size))
    if size > 8 * short.itemsize * len(short):
        return {name: short}
    flags = torch.zeros(-(-size // 8) * 8, dtype=torch.uint8)
    flags[index] = 1
    return {name + ".bits": (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)}


def pack(name, matrix):
    """The smallest of dense, by rows, by columns, by runs of either → tensors, layout (None when dense)."""
    best, best_layout, size = {name: matrix.contiguous()}, None, matrix.numel() * matrix.itemsize
    for by, lines in (("rows", matrix), ("columns", matrix.t())):
        kept = lines != 0
        edges = F.pad(kept, (1, 1)).to(torch.int8).diff()
        (which, starts), ends = (edges == 1).nonzero(as_tuple=True), (edges == -1).nonzero()[:, 1]
        scattered, runs = {"indices": kept.nonzero()[:, 1]}, {"indices": starts, "lengths": ends - starts}
        for index, count in ((scattered, kept.sum(1)), (runs, torch.bincount(which, minlength=len(lines)))):
            parts = {part: numbers.to(_index_type(lines.shape[1])) for part, numbers in index.items()}
            pointers = torch.cat([count.new_zeros(1), count.cumsum(0)])
            parts |= {"values": lines[kept], "indptr": pointers.to(_index_type(int(pointers[-1])))}
            packed = sum(t.numel() * t.itemsize for t in parts.values()) + 75 * (len(parts) - 1)  # names in the header
            if packed < size:
                best = {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
                size, best_layout = packed, {"shape": list(matrix.shape), "by": by}
                best_layout |= {"runs": True} if index is runs else {}
    return best, best_layout


def unpacked(tensors, sparse, room):
    """Tensors with `.values`, `.indices` and `.indptr` put together; with `.lengths` where an index begins a run of values.
    Raises ValueError where they do not belong together.

    sparse  matrix → its layout      room  numbers that may be made of it all
    """
    tensors = dict(tensors)
    for name, layout in an_object(sparse, "sparse").items():
        shape, by, runs = an_object(layout, name).get("shape"), layout.get("by"), layout.get("runs", False)
        if by not in ("rows", "columns") or not _shape(shape, 2) or not isinstance(runs, bool):
            raise ValueError(f"{name} is laid out as {layout!r:.100}; a shape of two numbers, by rows or columns")
        room -= shape[0] * shape[1]
        if room < 0:
            raise ValueError(
                f"{name} would unpack to {shape[0]:,} × {shape[1]:,} numbers, more than such a file can hold"
            )
        wanted = ("values", "indices", "indptr", *["lengths"] * runs)
        parts = [tensors.pop(f"{name}.{part}", None) for part in wanted]
        if name in tensors or any(part is None or part.dim() != 1 for part in parts):
            raise ValueError(f"{name}: {', '.join(wanted)} are not there, once, as lists")
        values, *numbers = parts
        if any(part.dtype not in INDEX for part in numbers) or not values.is_floating_point():
            types = ", ".join(str(part.dtype) for part in parts)
            raise ValueError(f"{name} is of {types}; expected floats, then uint16 or uint32")
        rows, columns = shape if by == "rows" else shape[::-1]
        index, pointers, *lengths = (part.long() for part in numbers)
        counts = pointers.diff()
        if len(pointers) != rows + 1 or pointers[0] or bool((counts < 0).any()) or pointers[-1] != len(index):
            raise ValueError(f"{name}: indptr does not divide {len(index)} indices among {rows} lines")
        line = torch.arange(rows).repeat_interleave(counts)
        if runs:
            line, index = _run_out(name, line, index, lengths[0], len(values))
        place = line * columns + index if len(index) == len(values) else index
        if len(index) != len(values) or bool((index >= columns).any()) or bool((place.diff() <= 0).any()):
            raise ValueError(f"{name}: indices are not one a value, rising in each line, below {columns}")
        matrix = values.new_zeros(rows, columns)
        matrix[line, index] = values
        tensors[name] = matrix if by == "rows" else matrix.t().contiguous()
    return tensors


def _run_out(name, line, start, length, values):
    """Line and index of every value of runs, which have to be `values` together."""
    if len(length) != len(start) or bool((length < 1).any()) or int(length.sum()) != values:
        raise ValueError(f"{name}: lengths are not one an index, {values} values together")
    before = length.cumsum(0) - length
    return line.repeat_interleave(length), torch.arange(values) + (start - before).repeat_interleave(length)


def indices(tensors, sizes):
    """Lists of kept lines as int64. sizes: name → what the numbers count. Raises ValueError for what is no such list."""
    tensors = dict(tensors)
    for name, size in sizes.items():
        if (flags := tensors.pop(name + ".bits", None)) is not None:
            if name in tensors or flags.dtype != torch.uint8 or flags.shape != (-(-size // 8),):
                raise ValueError(
                    f"{name}: bits of {flags.dtype} {tuple(flags.shape)} do not say which of {size} are kept"
                )
            index = (flags[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().nonzero().flatten()
        else:
            index = tensors.get(name)
            if index is None or index.dim() != 1 or index.dtype not in INDEX:
                raise ValueError(f"{name} is missing, or no list of uint16 or uint32")
            index = index.long()
        if len(index) and (int(index.max()) >= size or bool((index.diff() <= 0).any())):
            raise ValueError(f"{name} are no rising numbers below {size}")
        tensors[name] = index
    return tensors


def an_object(value, name):
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.80}; expected an object")
    return value


def _shape(value, dims=None):
    right = isinstance(value, list) and (dims is None or len(value) == dims) and len(value) < 10
    return right and all(type(size) is int and 0 <= size < 1 << 40 for size in value)
