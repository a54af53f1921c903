"""How far the numbers go that a small model's layers read: int8 cuts them into 127 steps up to there."""

from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .outside import Start
from .readers import call


@torch.no_grad()
def calibrate(small, examples):
    """Note of each small layer that reads numbers the largest one, without its sign, that it is given on `examples`; `save`
    writes it into the file, and engines in int8 go by it (`engines.base.Layer.reach`). Returns layer → that number.

    small     what `compact` returned; it is left in the state in which it was called
    examples  of what it was trained on, each as `compact` takes one
    What is 0 everywhere, or not finite, is not noted.
    """
    start = Start(small)
    with start.again() as copied:
        noted = {name: {"most": 0.0} for name, module in copied.named_modules() if hasattr(module, "_small")}
        for name, found in noted.items():
            copied.get_submodule(name).register_forward_pre_hook(partial(_note, found), with_kwargs=True)
        for example in examples:
            call(copied, example)
    reached = {name: float(f"{found['most']:.4g}") for name, found in noted.items() if found["most"]}
    for name, most in reached.items():
        small.get_submodule(name)._small.reach = most
    return reached


def _note(found, module, args, kwargs):
    x = args[0] if args else kwargs.get("input")
    x = x.data if isinstance(x, PackedSequence) else x
    if isinstance(module, nn.Embedding) or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        return
    finite = x[x.isfinite()]
    if len(finite):
        found["most"] = max(found["most"], float(finite.abs().max()))
