"""A device that is not the CPU, without one: tensors that say they are on `DEVICE` and are refused beside the CPU's.

They wrap CPU tensors, so results are the CPU's, to the bit. What a GPU would refuse raises here: operands on two devices.
As on a GPU, a number may come from the CPU (no dimension), an index too, and a copy goes both ways.
"""

from contextlib import ExitStack, contextmanager, nullcontext
from importlib import import_module
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"  # the one kind that torch can name without owning it; its own kernels, which compute nothing, are never reached
BOTH_WAYS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **layout)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Elsewhere({self.inner})"

    def tolist(self):
        return self.inner.tolist()

    def __getitem__(self, key):  # a list becomes an index where we see it
        return super().__getitem__(_lists_as_tensors(key))

    def __setitem__(self, key, value):
        super().__setitem__(_lists_as_tensors(key), value)

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _lists_as_tensors(key):
    if isinstance(key, tuple):
        return tuple(map(_lists_as_tensors, key))
    return torch.tensor(key) if isinstance(key, list) else key


def _run(function, args, kwargs):
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if any(tensor.is_meta and not isinstance(tensor, Elsewhere) for tensor in tensors):
        raise RuntimeError(f"{function}: an operand was made where `elsewhere` did not see it")
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if there and function not in BOTH_WAYS:
        watched = [args[0]] if function in INDEXED else tensors
        if strangers := [t for t in watched if not isinstance(t, Elsewhere) and t.dim()]:
            raise RuntimeError(f"{function}: {tuple(strangers[0].shape)} is on the CPU, another operand on {DEVICE}")
    if kwargs.get("device") is not None:
        there, kwargs = torch.device(kwargs["device"]).type == DEVICE, kwargs | {"device": "cpu"}
    args_here, kwargs_here = tree_map(lambda v: v.inner if isinstance(v, Elsewhere) else v, (args, kwargs))
    result = function(*args_here, **kwargs_here)
    if not there or function is torch.ops.aten.copy_.default and not isinstance(args[0], Elsewhere):
        return args[0] if function is torch.ops.aten.copy_.default else result
    result = tree_map(lambda value: Elsewhere(value) if isinstance(value, torch.Tensor) else value, result)
    return return_and_correct_aliasing(function, args, kwargs, result)


@contextmanager
def elsewhere():
    """Inside, `DEVICE` can be named, and modules moved to it keep their parameters' identity."""
    swapped, tensor = torch.__future__.get_swap_module_params_on_conversion(), torch.tensor
    torch.__future__.set_swap_module_params_on_conversion(True)
    flat = torch.nn.RNNBase._init_flat_weights

    def without_references(
        layer,
    ):  # parameters are swapped here, which torch refuses where something refers to them weakly
        flat(layer)
        layer._flat_weight_refs = [None] * len(layer._flat_weights)

    otherwise = (  # what torch does for a GPU, but not for this kind
        mock.patch.object(torch.nn.RNNBase, "_init_flat_weights", without_references),
        mock.patch.object(torch, "tensor", lambda data, device=None, **how: tensor(data, **how).to(device)),
        mock.patch.object(torch, "autocast", lambda *args, **kwargs: nullcontext()),
        mock.patch.object(torch, "is_autocast_enabled", lambda device=None: False),
        mock.patch.object(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda parameter: None),
    )
    with _Mode(), ExitStack() as stack:
        for patch in otherwise:
            stack.enter_context(patch)
        try:
            yield DEVICE
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapped)
