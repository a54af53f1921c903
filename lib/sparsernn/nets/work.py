"""How many multiplications with weights a step takes: what a network costs where nothing is known of the machine."""

import math

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .readers import arguments, call
from .shared import shared_rows, without

STEPS = 200  # of the sequence it is counted on: what is multiplied once a sequence counts a two-hundredth
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@torch.no_grad()
def multiply_adds(model, example=None):
    """Multiply-adds with weights that are not zero, a step of one sequence of what the model reads.

    example  what it is called with, its first tensor [T, B, …]; None: the model's own (`Model.example`), of STEPS steps

    Looking up a row is none, nor are products of two numbers that are no weights (gates with states, attention). A row that
    stands in a matrix more than once is multiplied once, and one that both matrices of an LSTM or RNN have (1908.07724), an input
    matrix that two directions share too.
    """
    example = model.example(STEPS, 1) if example is None else example
    example = arguments(example)
    total, hooks = [], []

    def product(module, args, kwargs, output):
        numbers = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        total.append(_there(module.weight) * output.numel() // max(numbers, 1))

    def recurrent(module, args, kwargs, output):
        x, counted = args[0] if args else kwargs["input"], set()
        places = len(x.data) if isinstance(x, PackedSequence) else math.prod(x.shape[:2])
        looked_up = x.data.dtype == torch.int64
        # what is shared by both matrices is multiplied once with x + h, but not where one is looked up or n keeps them apart
        layouts = {} if looked_up or isinstance(module, nn.GRU) else shared_rows(module)
        for name in module._flat_weights_names:
            weight = getattr(module, name)
            if (
                name.startswith("weight")
                and id(weight) not in counted
                and not (looked_up and name.startswith("weight_ih_l0"))
            ):
                counted.add(id(weight))
                own = without(weight, layouts[name]) if name in layouts else weight
                total.append(_there(own.unique(dim=0)) * places)

    for module in model.modules():
        hook = recurrent if isinstance(module, nn.RNNBase) else product if isinstance(module, PRODUCTS) else None
        if hook is not None:
            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    was = model.training
    try:
        call(model.eval(), example)
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
    return sum(total) / math.prod(example[0].shape[:2])


def _there(weight):
    return int((weight != 0).sum())
