"""What a recurrent layer answers, forward and backward, as a list of tensors to compare."""

import torch
from oracles import randn

from sparsernn.nets.layers import GRU, LSTM, RNN

ACTIVATIONS = [(LSTM, "logistic"), (LSTM, "hard"), (GRU, "logistic"), (GRU, "hard")]
ACTIVATIONS += [(RNN, "tanh"), (RNN, "relu"), (RNN, "clipped_relu")]
WAYS = {
    "plain": {},
    "scaled": {"scaled": 3, "state": True},
    "one scale": {"scaled": 1},
    "padded": {"lengths": [7, 4, 0]},
    "padded and scaled": {"lengths": [2, 7, 5], "scaled": 3, "state": True},
}
NAMES = {"input_l0": 5, "recurrent_l0": 6, "output_l0": 6}


def answers(net, seed, scaled=0, lengths=None, state=False):
    """Output, last states and every gradient of a net of 5 inputs and 6 neurons on numbers of a seed, on the CPU.
    scaled: rows of the scales of the first layer, 1 or 3; 0: no scales"""
    device, dtype = net.weight_hh_l0.device, net.weight_hh_l0.dtype
    x = randn(7, 3, 5, seed=seed).to(device, dtype).requires_grad_()
    width = NAMES | {"gates_l0": len(net.weight_hh_l0)}
    scales = {n: 1 + 0.3 * randn(scaled, w, seed=seed + 1).to(x) for n, w in width.items()} if scaled else None
    first = [
        randn(len(net.suffixes()), 3, 6, seed=seed + 2 + i).to(x).requires_grad_() for i in range(net.cell.n_states)
    ]
    given = None if not state else tuple(first) if len(first) > 1 else first[0]
    for scale in (scales or {}).values():
        scale.requires_grad_()
    lengths = None if lengths is None else torch.tensor(lengths, device=device)
    y, last = net(x, given, scales, lengths)
    last = last if isinstance(last, tuple) else (last,)
    leaves = [x, *(scales or {}).values(), *(first if state else ()), *net.parameters()]
    cost = (y * randn(*y.shape, seed=seed + 9).to(y)).sum() + sum((s * s).sum() for s in last)
    return [t.detach().cpu() for t in (y, *last, *torch.autograd.grad(cost, leaves))]
