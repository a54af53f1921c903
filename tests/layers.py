"""Small layers with weights, neurons and gates removed, beside what the formulas of tests/oracles.py say they compute."""

import torch
from oracles import randn, step_loop

from sparsernn.engines.base import Layer
from sparsernn.engines.parts import shrink
from sparsernn.nets.layers import GRU, LSTM, RNN

# name → layer class, activation of its gates
CELLS = {
    "LSTM": (LSTM, "logistic"),
    "LSTM, hard": (LSTM, "hard"),
    "GRU": (GRU, "logistic"),
    "GRU, hard": (GRU, "hard"),
    "RNN": (RNN, "tanh"),
    "RNN, relu": (RNN, "relu"),
}
V = 5  # inputs, or words


def pruned(name, hidden=9, seed=1, density=0.5, live=0.5, keep=0.8):
    """→ (layer as shrunk, ours with the same weights masked, kept neurons [H] bool), float64; some gates constant."""
    kind, activation = CELLS[name]
    generator = torch.Generator().manual_seed(seed)
    masked = kind(V, hidden, activation=activation).double().requires_grad_(False)
    rows = len(masked.cell.gates) * hidden
    kept = torch.rand(hidden, generator=generator) < keep
    kept[0] = True
    alive = (torch.rand(rows, generator=generator) < live) & kept.repeat(rows // hidden)
    for i, (tensor, parameter) in enumerate(masked.named_parameters()):
        parameter.copy_(0.6 * randn(*parameter.shape, seed=10 * seed + i))
        if tensor.startswith("weight"):
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < density).mul_(alive[:, None])
    masked.weight_hh_l0[:, ~kept] = 0
    given = masked.weight_ih_l0, masked.weight_hh_l0[:, kept], masked.bias_ih_l0, masked.bias_hh_l0
    return Layer(masked.cell, shrink(masked.cell, *given, kept, alive)), masked, kept


def by_formula(masked, kept, x, lengths=None):
    """y [T, B, Hk] of the masked layer, one step and sequence at a time; ids written out, V a removed word."""
    if x.dtype == torch.int64:
        x = torch.cat([torch.eye(V), torch.zeros(1, V)]).double()[x]
    p = {name: parameter.detach() for name, parameter in masked.named_parameters()}
    return step_loop(masked, p, x.double(), lengths=lengths, padding="left")[0][:, :, kept]


def inputs(steps, batch, seed=0):
    """x, ids, and lengths with the bool [T, B] that says which steps are real: the last ones, so that a state that moved
    in the padding would show."""
    generator = torch.Generator().manual_seed(seed)
    x, ids = (
        torch.randn(steps, batch, V, generator=generator),
        torch.randint(V + 1, (steps, batch), generator=generator),
    )
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    return x, ids, lengths, torch.arange(steps)[:, None] >= steps - lengths
