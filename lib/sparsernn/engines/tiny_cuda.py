"""A layer of few neurons in one launch, in CUDA: weights in registers, h in shared memory, all time steps in the kernel.

Neurons that never hear of each other, by no gate and no way around, fall into groups, and each group of each sequence has a
block of its own: a layer of many heads is many tiny layers. Source: the idea of persistent RNNs (1804.10223 and before it
Diamos et al. 2016), at the other end of the scale; heads as FlashRNN (2412.07752) has them.
"""

from functools import cached_property
from pathlib import Path

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F

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
        self.neuron_of, self.no_head = neuron_of, torch.zeros(1, device=device)
        self.constants = {"NEURONS": size, "GROUPS": len(groups), "KIND": KINDS[layer.kind]}
        self.constants["HARD"] = int(layer.cell.activation in ("hard", "relu"))

    @cached_property
    def kernel(self):
        return self.compiled()

    def compiled(self, ids=0, classes=0):
        constants = self.constants | {"IDS": ids, "CLASSES": classes}
        return Kernel(SOURCE, "whole_sequence", self.device, cooperative=False, **constants)

    def launch(self, kernel, table, rows, head, y):
        (steps, batch), sizes = rows.shape, (table.shape[1], self.layer.hidden, len(table))
        kernel(
            batch * self.groups,
            self.threads,
            8 * self.neurons,
            table,
            rows,
            *self.tensors,
            head,
            y,
            steps,
            batch,
            *sizes,
        )
        return y

    @classmethod
    def whole(cls, chain, width, states, device):
        if len(chain.levels) > 1 or chain.words is None or (width and states):
            return None
        return Whole(chain, cls, width, device)

    def run(self, x, live):
        table, rows = self.table_and_rows(x, live)
        y = torch.empty(*rows.shape, self.layer.hidden, device=self.device)
        return self.launch(self.kernel, table, rows, self.no_head, y)


class Whole:
    """A `Chain` of ids, one layer and a head: `whole(x)` with ids [T, B] int64 → [B, C] or [T, B, C], and for states NaN.

    One launch where it answers on the last step and its neurons are one group; else the head is a product of its own. An id
    that is not there ends it as it ends torch's look-up on a GPU: by a fault.
    """

    def __init__(self, chain, kind, width, device):
        first = chain.levels[0]
        first = first if chain.embedding is None else first.reading(chain.embedding)
        self.engine, self.last, self.classes, self.width = kind(first, device), chain.last, len(chain.bias), width
        self.nothing = torch.full((1, 1, 1), torch.nan, device=device)
        place = torch.full((chain.words,), len(chain.kept)).index_copy(0, chain.kept, torch.arange(len(chain.kept)))
        self.table = self.engine.word_table[
            place.to(device)
        ].contiguous()  # of every word, so that no id is looked up twice
        self.in_one = self.last and self.engine.groups == 1
        self.kernel = self.engine.compiled(1, self.classes if self.in_one else 0)
        weight, bias = (self.engine.fp32(part) for part in (chain.weight, chain.bias))
        if self.in_one:
            order = self.engine.neuron_of[0].to(device)
            self.head = torch.cat([weight[:, order.clamp(min=0)] * (order >= 0), bias[:, None]], 1).contiguous()
        else:
            self.head = weight, bias

    @torch.no_grad()
    def __call__(self, x):
        steps, batch = x.shape
        states = [self.nothing.expand(1, batch, self.width)] * (self.engine.layer.cell.n_states if self.width else 0)
        if self.in_one:
            answer = torch.empty(batch, self.classes, device=x.device)
            return self.engine.launch(self.kernel, self.table, x, self.head, answer), states
        y = torch.empty(steps, batch, self.engine.layer.hidden, device=x.device)
        self.engine.launch(self.kernel, self.table, x, self.engine.no_head, y)
        return F.linear(y[-1] if self.last else y, *self.head), states
