"""What a model does between its layers, followed through one call: whether numbers only move there, or something changes them.

A model that clamps what it reads, or takes the step that its input names, may answer to one input as its layers alone would,
and otherwise to the next: no comparison shows that, but the operations themselves do.
"""

import sys
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOVES = {  # what only moves numbers, where to shapes alone decide
    "_pack_padded_sequence", "_reshape_alias", "_unsafe_view", "alias", "clone", "detach", "expand", "index", "index_select",
    "permute", "select", "slice", "squeeze", "t", "transpose", "unsqueeze", "view",
}  # fmt: skip
SHAPES = {"new_empty", "new_full", "new_ones", "new_zeros", "empty_like", "full_like", "ones_like", "zeros_like"}
LEAVES = torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__  # numbers that torch does not see again
IDS = torch.int32, torch.int64


class Changed(ValueError):
    """Something other than a layer changed numbers; says what, and where that was met."""


class Follow(TorchDispatchMode):
    """Of every tensor that is made of the model's input: what has changed its numbers, "" where nothing but a layer has.

    layers  modules that may do what they like
    Ids that become one-hot numbers are still the input.
    Raises Changed where a layer is given changed numbers, or where numbers leave torch or decide what Python does.
    """

    def __init__(self, layers):
        super().__init__()
        self.layers, self.inside, self.slices = layers, 0, _Slices(self)
        self.changed, self.alive = {}, []  # by id, of tensors that are kept: no other gets their ids
        self.one_hot = set()  # by id as well: integers 0 and 1, which every type of number has

    @contextmanager
    def through(self, given):
        """While it lasts, what is made of `given` is followed."""
        handles = []
        for layer in self.layers:  # the hooks of others are no part of it: what they do is seen
            handles.append(layer.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave, prepend=True))
        self.note(given, "")
        try:
            with self, self.slices:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, tensor, where):
        """Raises Changed for a tensor with other numbers than the input's or a layer's."""
        if why := self.changed.get(id(tensor), "numbers of its own"):
            raise Changed(f"{why} {where}")

    def follows(self, found):
        """Whether any tensor in there is followed, outside of the layers."""
        return not self.inside and any(id(x) in self.changed for x in _tensors(found))

    def note(self, found, why):
        for x in _tensors(found):
            self.changed[id(x)] = why
            self.alive.append(x)

    def _enter(self, layer, args, kwargs):
        if not self.inside:
            tensors, where = _tensors((args, kwargs)), f"before its {type(layer).__name__}"
            self.check(tensors[0], where)
            for state in tensors[1:]:
                if id(state) in self.changed:  # others are zeros of its own, or are found by comparison
                    self.check(state, where)
        self.inside += 1

    def _leave(self, layer, args, output):
        self.inside -= 1
        if not self.inside:
            self.note(output, "")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), function.overloadpacket.__name__
        if name in SHAPES or not self.follows((args, kwargs)):
            return result
        if function._schema.is_mutable or not _tensors(result):
            raise Changed(f"{name} on numbers on their way")
        before = next(filter(None, (self.changed.get(id(x)) for x in _tensors((args, kwargs)))), "")
        moved = result[0] if name == "_pack_padded_sequence" else result  # what else it gives are lengths
        self.note(moved, before or ("" if self._moves(name, args, moved) else name))
        return result

    def _moves(self, name, args, result):
        """Whether an operation moves the numbers of its first tensor, whatever they are."""
        if name == "_to_copy":
            same = result.dtype == args[0].dtype or (result.dtype in IDS and args[0].dtype in IDS)
            return same or (result.is_floating_point() and id(args[0]) in self.one_hot)
        beyond = name == "slice" and _beyond(args[0].shape[args[1]], *args[2:4])
        return name in MOVES and not beyond and not self.follows(args[1:])


@torch.no_grad()
def followed(model, layers, x, whole=True):
    """What a model returns for x, where every number of it was last changed by one of the layers; whole=False: every number of
    its first tensor. Raises Changed, saying what else changed some."""
    follow = Follow(layers)
    with follow.through(x):
        said = model(x)
    for tensor in _tensors(said)[: None if whole else 1]:
        follow.check(tensor, "in what it returns")
    return said


class _Slices(TorchFunctionMode):
    """What a dispatcher is not told of: slices of more than there is, numbers that become Python's, and that what writes step
    by step is `pad_packed_sequence`."""

    def __init__(self, follow):
        super().__init__()
        self.follow = follow

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "_pad_packed_sequence":
            return self._padded(function, *args)
        if function is F.one_hot:
            return self._one_hot(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if function in LEAVES and self.follow.follows(args):
            raise Changed(f"{function.__name__} on numbers on their way")
        if function is torch.Tensor.__getitem__ and self.follow.follows(args[0]) and _slices_beyond(*args):
            self.follow.note(result, "a slice of more than there is")
        return result

    def _one_hot(self, ids, num_classes=-1):
        follow, known = self.follow, self.follow.follows(ids)
        follow.inside += 1
        result = F.one_hot(ids, num_classes)
        follow.inside -= 1
        if known:
            follow.note(result, follow.changed[id(ids)])
            follow.one_hot.add(id(result))
        return result

    def _padded(self, function, values, *others):
        follow, known = self.follow, self.follow.follows(values)
        follow.inside += 1
        result = function(values, *others)
        follow.inside -= 1
        if known:
            follow.note(result[0], "numbers of its own" if follow.follows(others) else follow.changed[id(values)])
        return result


def _beyond(size, start=None, end=None):
    """Whether a slice asks for more than there is: of more it would be a part."""
    start, end = 0 if start is None else start, sys.maxsize if end is None else end
    return not -size <= start <= size or not (-size <= end <= size or end == sys.maxsize)


def _slices_beyond(x, index):
    index = list(index) if isinstance(index, tuple) else [index]
    taken, dim = sum(part is not None and part is not Ellipsis for part in index), 0
    for part in index:
        if part is Ellipsis:
            dim += x.dim() - taken
        elif part is not None:
            if isinstance(part, slice) and _beyond(x.shape[dim], part.start, part.stop):
                return True
            dim += 1
    return False


def _tensors(found):
    """The tensors in there; of packed sequences their numbers."""
    leaves = tree_leaves(found, is_leaf=lambda x: isinstance(x, PackedSequence))
    leaves = [x.data if isinstance(x, PackedSequence) else x for x in leaves]
    return [x for x in leaves if isinstance(x, torch.Tensor)]
