"""Rows that stand in a recurrent layer more than once (restricted RNNs, 1908.07724), written once.

Found by their numbers: a row of the wider matrix that repeats an earlier one, a row of the narrower matrix that is the
beginning of one of the wider; the same of the two biases.

layout   {"of": tensor, "runs": [[at, first, count], …]}: rows at … at + count of this tensor are rows first … first + count
         of that one, as far as they go. What is stored of this tensor are its other rows.
"""

from itertools import pairwise

import torch

LEAST = 40  # bytes that a run saves; less is not worth its text


def shared_rows(module):
    """Tensor of a recurrent layer → its layout, of those that repeat rows. An empty dict for any other layer."""
    found = {}
    for ih in getattr(module, "_flat_weights_names", ()):
        kind, inward, suffix = ih.partition("_ih")
        if inward:
            hh = f"{kind}_hh{suffix}"
            tensors = {name: getattr(module, name).detach().cpu().contiguous() for name in (ih, hh)}
            found |= _repeated(tensors, max((ih, hh), key=lambda name, of=tensors: of[name].shape[1:]))
    return found


def _repeated(tensors, wide):
    """Layouts of two tensors: of the wider one with itself, of the other with that."""
    narrow, found, runs = next(name for name in tensors if name != wide), {}, []
    if tensors[narrow].dtype != tensors[wide].dtype:
        return found
    places = {}
    own = [places.setdefault(key, at) if key else at for at, key in enumerate(_keys(tensors[wide]))]
    for name in (wide, narrow):
        if name == narrow:
            copied = {at + i for at, _, count in runs for i in range(count)}
            columns = tensors[narrow].shape[1:].numel()
            begins = _keys(tensors[wide].reshape(len(tensors[wide]), -1)[:, :columns].contiguous())
            places = {key: at for at, key in reversed(list(enumerate(begins))) if key and at not in copied}
            own = [places.get(key) if key else None for key in _keys(tensors[narrow])]
        pairs = [(at, of) for at, of in enumerate(own) if of is not None and (name, at) != (wide, of)]
        runs = [run for run in _runs(pairs) if run[2] * tensors[name][0].nbytes >= LEAST]
        if runs:
            found[name] = {"of": wide, "runs": runs}
    return found


def _keys(tensor):
    """The bytes of each row; nothing for one of zeros, which costs nothing."""
    rows = tensor.view(len(tensor), -1)
    raw = rows.view(torch.uint8).numpy() if rows.numel() else rows.new_zeros(len(rows), 0).numpy()
    return [line.tobytes() if some else b"" for line, some in zip(raw, rows.any(1).tolist(), strict=True)]


def _runs(pairs):
    runs = []
    for at, of in pairs:
        if runs and at == runs[-1][0] + runs[-1][2] and of == runs[-1][1] + runs[-1][2]:
            runs[-1][2] += 1
        else:
            runs.append([at, of, 1])
    return runs


def _targets(runs):
    return torch.cat([torch.arange(at, at + count) for at, _, count in runs])


def _sources(runs):
    return torch.cat([torch.arange(first, first + count) for _, first, count in runs])


def without(tensor, layout):
    """The rows of a tensor that are stored."""
    left = torch.ones(len(tensor), dtype=torch.bool)
    left[_targets(layout["runs"])] = False
    return tensor[left.to(tensor.device)]


def stored_shapes(layouts, expected):
    """Name → shape of what is stored of it, for layouts that a file gives. Raises ValueError for one that cannot be.

    expected  name → tensor of that layer's, whole
    """
    shapes = {}
    for name, layout in layouts.items():
        of = layout.get("of") if isinstance(layout, dict) and layout.keys() == {"of", "runs"} else None
        if not isinstance(of, str) or name not in expected or of not in expected or not _ordered(layout["runs"]):
            raise ValueError(
                f"{name} is said to share rows as {layout!r:.100}; expected a tensor and runs of rows of it"
            )
        mine, other, runs = expected[name], expected[of], layout["runs"]
        if of != name and of in layouts and layouts[of].get("of") != of:
            raise ValueError(f"{name} is said to share rows of {of}, which shares those of another")
        if mine.dim() != other.dim() or mine.shape[1:] > other.shape[1:]:
            raise ValueError(f"{name} {tuple(mine.shape)} is said to share rows of {of} {tuple(other.shape)}")
        if runs[-1][0] + runs[-1][2] > len(mine) or any(first + count > len(other) for _, first, count in runs):
            raise ValueError(f"{name} is said to share rows that {of} does not have: {runs!r:.100}")
        at = _targets(runs)
        if of == name and bool(torch.isin(_sources(runs), at).any()):
            raise ValueError(f"{name} is said to share rows that are shared themselves: {runs!r:.100}")
        shapes[name] = [len(mine) - len(at), *mine.shape[1:]]
    return shapes


def _ordered(runs):
    """Whether these are runs: whole numbers, of places that rise and do not overlap."""
    right = isinstance(runs, list) and runs and all(isinstance(run, list) and len(run) == 3 for run in runs)
    if not right or any(type(i) is not int or not 0 <= i < 1 << 31 for run in runs for i in run):
        return False
    return all(run[2] for run in runs) and all(a[0] + a[2] <= b[0] for a, b in pairwise(runs))


def put_together(tensors, layouts, expected):
    """Tensors, whole again. Raises ValueError for what was stored in another shape or type, or is not there."""
    tensors, shapes = dict(tensors), stored_shapes(layouts, expected)
    for name in sorted(layouts, key=lambda name: layouts[name]["of"] != name):  # those that others share first
        of, runs = layouts[name]["of"], layouts[name]["runs"]
        stored, source = tensors.get(name), tensors.get(of)
        if stored is None or source is None or list(stored.shape) != shapes[name] or stored.dtype != source.dtype:
            raise ValueError(f"{name} is no tensor of {shapes[name]} of the type of {of}, whose rows it shares")
        if of != name and source.shape != expected[of].shape:
            raise ValueError(f"{of}, whose rows {name} shares, is {tuple(source.shape)}")
        whole, left = stored.new_empty(expected[name].shape), torch.ones(len(expected[name]), dtype=torch.bool)
        left[at := _targets(runs)] = False
        whole[left] = stored
        source = whole if of == name else source
        rows = source[_sources(runs)]
        whole[at] = rows[:, : whole.shape[1]] if whole.dim() == 2 else rows
        tensors[name] = whole
    return tensors
