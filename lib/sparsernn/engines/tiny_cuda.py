"""A layer of few neurons in one launch, in CUDA: weights in registers, h in shared memory, all time steps in the kernel.

Neurons that never hear of each other, by no gate and no way around, fall into groups, and each group of each sequence has a
block of its own: a layer of many heads is many tiny layers. Source: the idea of persistent RNNs (1804.10223 and before it
Diamos et al. 2016), at the other end of the scale; heads as FlashRNN (2412.07752) has them.
"""

from pathlib import Path

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from .base import KINDS, Tabled, Unsupported
from .cuda_source import Kernel

SOURCE = Path(__file__).with_name("tiny_cuda.cu")
LARGEST = {"LSTM": 96, "GRU": 96, "RNN": 160}  # neurons whose weights fit the registers of a block of four threads each
COMMON = 32  # neurons that a group has at least, if the layer has so many: a barrier among fewer threads is no quicker


def groups_of(weights, at_least=1):
    """weights bool [..., H, H]: who hears of whom → lists of neurons, of which no other list hears.

    Those that hang together stay together; small ones share a list as long as it is not longer than the longest that hangs
    together, or than `at_least`.
    """
    heard = weights.flatten(0, -3).any(0)
    count, label = connected_components(csr_array(heard.numpy()), directed=False)
    together = sorted(
        torch.from_numpy(label).argsort(stable=True).split(torch.from_numpy(label).bincount().tolist()), key=len
    )
    room, lists = max(at_least, len(together[-1])), []
    for one in reversed(together):
        fitting = next((some for some in lists if len(some) + len(one) <= room), None)
        if fitting is None:
            lists.append(one.tolist())
        else:
            fitting += one.tolist()
    return [sorted(some) for some in lists]


class TinyCuda(Tabled):
    """Groups of up to 96 neurons of an LSTM or GRU, 160 of an RNN, fp32."""

    devices = ("cuda",)

    def __init__(self, layer, device="cuda"):
        super().__init__(layer, device)
        blocks, hidden = layer.where.shape
        weights = torch.zeros(4, hidden, hidden)
        weights[:blocks][layer.where] = layer.weight_hh.float()
        groups = groups_of(weights != 0, min(hidden, COMMON))
        longest, unit = max(map(len, groups)), 16 if layer.kind == "RNN" else 8
        if longest > LARGEST[layer.kind]:
            raise Unsupported(
                f"{longest} neurons hear of each other; the registers of a block hold {LARGEST[layer.kind]}"
            )
        size = -(-longest // unit) * unit
        self.groups, self.threads, self.neurons = len(groups), 4 * size, size
        neuron_of = torch.full((len(groups), size), -1)
        for some, place in zip(groups, neuron_of, strict=True):
            place[: len(some)] = torch.tensor(some)
        there, at = neuron_of >= 0, neuron_of.clamp(min=0)
        inside = weights[:, at[:, :, None], at[:, None, :]] * (there[:, :, None] & there[:, None, :])  # [4, G, N, N]
        if layer.kind == "RNN":  # [G, neuron, k, lane, 4] → [G, k, 4, neuron, lane]
            held = inside[0].unflatten(2, (-1, 4, 4)).permute(0, 2, 4, 1, 3)
        else:  # → [G, column, neuron, gate]
            held = inside.permute(1, 3, 2, 0)
        places, fixed = torch.full((4, hidden), -1, dtype=torch.int32), torch.full((4, hidden), torch.nan)
        places[:blocks], fixed[:blocks] = layer.row_of, layer.fixed.float()
        places, fixed = places[:, at], fixed[:, at]
        places[:, ~there] = -1
        of_threads = places.permute(1, 2, 0), fixed.permute(1, 2, 0)  # [G, neuron, gate]
        tensors = held, *of_threads, neuron_of.int()
        self.tensors = [tensor.contiguous().to(device) for tensor in tensors]
        self.kernel = self.compiled(NEURONS=size, GROUPS=len(groups), KIND=KINDS[layer.kind],
                                    HARD=int(layer.cell.activation in ("hard", "relu")))  # fmt: skip

    def compiled(self, **constants):
        return Kernel(SOURCE, "whole_sequence", self.device, cooperative=False, **constants)

    def run(self, x, live):
        table, rows = self.table_and_rows(x, live)
        (steps, batch), hidden = rows.shape, self.layer.hidden
        y = torch.empty(steps, batch, hidden, device=self.device)
        sizes = steps, batch, table.shape[1], hidden
        self.kernel(batch * self.groups, self.threads, 8 * self.neurons, table, rows, *self.tensors, y, *sizes)
        return y
