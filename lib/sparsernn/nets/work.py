"""How many multiplications with weights a step takes: what a network costs where nothing is known of the machine."""

import math

import torch
from torch import nn

from .shared import shared_rows, without

STEPS = 200  # of the sequence it is counted on: what is multiplied once a sequence counts a two-hundredth
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@torch.no_grad()
def multiply_adds(model):
    """Multiply-adds with weights that are not zero, a step of one sequence of what the model reads (`Model.example`).

    Looking up a row is none, nor are products of two numbers that are no weights (gates with states, attention). A row that
    stands in a matrix more than once is multiplied once, and one that both matrices of an LSTM or RNN have (1908.07724), an input
    matrix that two directions share too.
    """
    total, hooks = [], []

    def product(module, inputs, output):
        numbers = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        total.append(_there(module.weight) * output.numel() // max(numbers, 1))

    def recurrent(module, inputs, output):
        x, counted = inputs[0], set()
        looked_up = x.dtype == torch.int64
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
                total.append(_there(own.unique(dim=0)) * math.prod(x.shape[:2]))

    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            hooks.append(module.register_forward_hook(recurrent))
        elif isinstance(module, PRODUCTS):
            hooks.append(module.register_forward_hook(product))
    was, example = model.training, model.example(STEPS, 1)
    try:
        model.eval()(*(example if isinstance(example, tuple) else (example,)))
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
    return sum(total) / STEPS


def _there(weight):
    return int((weight != 0).sum())
