"""Matrices with scattered zeros, and lists of kept lines, as few bytes; and back, nothing believed."""

import torch

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
    """The smallest of dense, by rows, by columns → tensors, layout (None when dense)."""
    best, best_layout, size = {name: matrix.contiguous()}, None, matrix.numel() * matrix.itemsize
    for by, lines in (("rows", matrix), ("columns", matrix.t())):
        count, (which, index) = (lines != 0).sum(1), (lines != 0).nonzero(as_tuple=True)
        pointers = torch.cat([count.new_zeros(1), count.cumsum(0)])
        types = _index_type(lines.shape[1]), _index_type(int(pointers[-1]))
        header = 150  # of two more names
        packed = len(index) * (matrix.itemsize + types[0].itemsize) + len(pointers) * types[1].itemsize + header
        if packed < size:
            parts = {"values": lines[which, index], "indices": index.to(types[0]), "indptr": pointers.to(types[1])}
            best = {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
            size, best_layout = packed, {"shape": list(matrix.shape), "by": by}
    return best, best_layout


def unpacked(tensors, sparse, room):
    """Tensors with `.values`, `.indices` and `.indptr` put together. Raises ValueError where they do not belong together.

    sparse  matrix → its layout      room  numbers that may be made of it all
    """
    tensors = dict(tensors)
    for name, layout in an_object(sparse, "sparse").items():
        shape, by = an_object(layout, name).get("shape"), layout.get("by")
        if by not in ("rows", "columns") or not _shape(shape, 2):
            raise ValueError(f"{name} is laid out as {layout!r:.100}; a shape of two numbers, by rows or columns")
        room -= shape[0] * shape[1]
        if room < 0:
            raise ValueError(
                f"{name} would unpack to {shape[0]:,} × {shape[1]:,} numbers, more than such a file can hold"
            )
        parts = [tensors.pop(f"{name}.{part}", None) for part in ("values", "indices", "indptr")]
        if name in tensors or any(part is None or part.dim() != 1 for part in parts):
            raise ValueError(f"{name}: values, indices and indptr are not there, once, as lists")
        values, index, pointers = parts
        if index.dtype not in INDEX or pointers.dtype not in INDEX or not values.is_floating_point():
            raise ValueError(
                f"{name} is of {values.dtype}, {index.dtype} and {pointers.dtype}; floats, uint16 or uint32"
            )
        rows, columns = shape if by == "rows" else shape[::-1]
        index, pointers = index.long(), pointers.long()
        counts = pointers.diff()
        if len(pointers) != rows + 1 or pointers[0] or bool((counts < 0).any()) or pointers[-1] != len(values):
            raise ValueError(f"{name}: indptr does not divide {len(values)} values among {rows} lines")
        line = torch.arange(rows).repeat_interleave(counts)
        place = line * columns + index if len(index) == len(values) else index
        if len(index) != len(values) or bool((index >= columns).any()) or bool((place.diff() <= 0).any()):
            raise ValueError(f"{name}: indices are not one a value, rising in each line, below {columns}")
        matrix = values.new_zeros(rows, columns)
        matrix[line, index] = values
        tensors[name] = matrix if by == "rows" else matrix.t().contiguous()
    return tensors


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
