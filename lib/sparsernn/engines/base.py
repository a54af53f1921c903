"""What an engine runs, what it is compared with, and how it says that it cannot.

An engine is a class: `Engine(layer, device)` prepares (its cost is not timed), `engine(x, live)` runs. Whole sequences
start from zeros.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.nn import functional as F

from ..nets.cells import CEILING, Cell
from .parts import by_block, run
from .split import split_linear

KINDS = {"LSTM": 0, "GRU": 1, "RNN": 2}  # what kernels call a cell


class Unsupported(ValueError):
    """This engine does not run this layer, batch or device; says why."""


@dataclass(frozen=True)
class Layer:
    """One recurrent layer and direction as `parts.shrink` leaves it, float64 or float32 on the CPU.

    R = rows of live gates over blocks (see `nets.cells.Cell`), K = blocks, H = kept neurons.
    reach: the largest number, without its sign, that it reads, None where that is not known.
    """

    cell: Cell
    parts: dict
    reach: float | None = None

    @property
    def kind(self):
        return type(self.cell).__name__.removesuffix("Cell")

    @property
    def inputs(self):
        return self.parts["weight_ih"].shape[1]

    @property
    def hidden(self):
        return self.parts["live"].shape[1]

    @property
    def bound(self):
        """Of its state's numbers; None: a ReLU's have none."""
        return {"relu": None, "clipped_relu": CEILING}.get(self.cell.activation, 1.0)

    @property
    def nonzeros(self):
        return sum(int((self.parts[name] != 0).sum()) for name in ("weight_ih", "weight_hh"))

    @property
    def bytes(self):
        """Of the stored weights, 4 B each, and biases: what any fp32 engine must have read once."""
        return 4 * (self.nonzeros + len(self.parts["bias"]) + len(self.parts["constant"]))

    @cached_property
    def where(self):
        """bool [K, H]: which blocks have a row."""
        return self.parts["live"].bool()[self.cell.gate_of_block]

    @cached_property
    def weight_ih(self):
        """[R, I] over blocks: zeros where a block gets nothing from the input."""
        return by_block(self.parts["weight_ih"], self.cell.from_input, self.parts["live"], self.cell.gate_of_block)

    @cached_property
    def weight_hh(self):
        """[R, H] over blocks."""
        return by_block(self.parts["weight_hh"], self.cell.from_state, self.parts["live"], self.cell.gate_of_block)

    @cached_property
    def fixed(self):
        """[K, H]: what a constant gate says; NaN where the gate is live (or the block is but a second product)."""
        values = torch.full(self.where.shape, torch.nan, dtype=self.parts["constant"].dtype)
        dead = torch.zeros_like(self.where)
        dead[list(self.cell.from_input)] = ~self.parts["live"].bool()
        values[dead] = self.parts["constant"]
        return values

    @cached_property
    def row_of(self):
        """int32 [K, H]: the row among R of each block and neuron, −1 where there is none."""
        rows = torch.full(self.where.shape, -1, dtype=torch.int32)
        rows[self.where] = torch.arange(int(self.where.sum()), dtype=torch.int32)
        return rows

    def double(self):
        return replace(self, parts={n: p.double() if p.is_floating_point() else p for n, p in self.parts.items()})

    def reading(self, embedding):
        """The layer that reads ids of rows of `embedding` [V, I] as one-hot input: both products in one table."""
        return Layer(
            self.cell, self.parts | {"weight_ih": self.parts["weight_ih"] @ embedding.T.to(self.parts["bias"])}
        )


def one_hot(ids, size, dtype):
    """Ids [T, B] written out [T, B, size]; an id of `size` is a removed word, a row of zeros."""
    return F.one_hot(ids, size + 1)[..., :size].to(dtype)


def check_ids(ids, last):
    """Raises IndexError for ids that are not from 0 to `last`; on a GPU as torch's look-up does: asking would wait for it."""
    least, most = torch.aminmax(ids)
    if ids.device.type == "cuda":
        torch._assert_async((least >= 0) & (most <= last))
    elif least.item() < 0 or most.item() > last:
        raise IndexError(f"ids from {least.item()} to {most.item()}; allowed: 0 to {last}")


class Engine:
    """Runs one layer: `engine(x, live)` with x [T, B, I] float or ids [T, B] int64 → y [T, B, H], from a zero state.

    live  bool [T, B], False where a step is padding (state kept, y = 0), or None
    Raises Unsupported, when it is made or called, for what it does not run.
    """

    devices = ("cpu", "cuda")
    dtype = torch.float32  # of its products; x and y are float32
    reads_ids = False  # whether ids cost a row of a table, not a product
    activations = ("logistic", "hard", "tanh", "relu")  # those it computes (`Cell.activation`)
    whole = None  # of a class that runs a `chain.Chain` in one call: `whole(chain, width, states, device)` → x ↦ its
    # answer, its states of that width, NaN where states is False; or None for a chain that it does not run so
    carries = False  # whether it goes on from a state and hands one out: `carry(x, live, state)` → y, [h, c]
    hands_out = False  # whether it has, from zeros, final states to hand out: `run_with_states(x, live)` → y, [h, c]

    def __init__(self, layer, device="cpu"):
        if layer.cell.activation not in self.activations:
            raise Unsupported(f"it computes {', '.join(self.activations)}, not {layer.cell.activation}")
        self.layer, self.device = layer, torch.device(device)

    @torch.no_grad()
    def __call__(self, x, live=None, **more):
        self.check(x, live)
        return self.run(x, live, **more)

    def run(self, x, live):
        """What `__call__` does, with input that was checked."""
        return self.run_with_states(x, live)[0]

    def run_with_states(self, x, live):
        """The same, and [h, c] (of a GRU or RNN [h]), each [B, H] float32, after the last real step."""
        raise NotImplementedError

    @torch.no_grad()
    def with_states(self, x, live=None):
        """What `__call__` does, and the states after it, of an engine that hands them out."""
        self.check(x, live)
        return self.run_with_states(x, live)

    def check(self, x, live):
        """Raises ValueError or IndexError for what no kernel may be given: other widths, ids that are not there."""
        self.check_shapes(x, live)
        if x.dtype == torch.int64:
            check_ids(x, self.layer.inputs)

    def check_shapes(self, x, live):
        """The first half of `check`: but for the ids themselves."""
        if x.dtype == torch.int64:
            if x.dim() != 2 or not x.numel():
                raise ValueError(f"token ids have shape {tuple(x.shape)}, expected (T, B), at least one of each")
        elif x.dim() != 3 or x.shape[2] != self.layer.inputs or not x.shape[0] * x.shape[1]:
            raise ValueError(
                f"input has shape {tuple(x.shape)}, expected (T, B, {self.layer.inputs}), at least one of each"
            )
        if live is not None and (live.dtype != torch.bool or live.shape != x.shape[:2]):
            raise ValueError(f"live is {tuple(live.shape)} of {live.dtype}, expected {tuple(x.shape[:2])} of bool")

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        """A linear layer outside the recurrence by this engine's kind of product → function of y [..., H] float32.

        weight [V, H] and bias [V] on the CPU; the function returns [..., V] float32. reach: how far y goes, None where that
        is not known; int8 cuts it into steps.
        """
        weight, bias = weight.to(device, cls.dtype), bias.to(device, cls.dtype)
        return lambda y: F.linear(y.to(weight.dtype), weight, bias).float()

    def fp32(self, tensor):
        return tensor.to(self.device, torch.float32).contiguous()


def oracle(layer, x, live=None):
    """The formulas in float64, step by step (`parts.run`, itself proven against tests/oracles.py) → y [T, B, H]."""
    layer = layer.double()
    return run(layer.cell, layer.parts, x if x.dtype == torch.int64 else x.double(), None, live, reverse=False)[0]


class Tabled(Engine):
    """An engine of ours: what the input contributes to a step is a row of a table [N, R], bias added.

    For ids the table is W_ihᵀ itself (a removed word's row is the bias), for x it is made by one product beforehand.
    """

    reads_ids = True

    @classmethod
    def linear(cls, weight, bias, device="cpu", reach=None):
        if torch.device(device).type != "cuda":
            return super().linear(weight, bias, device)
        return split_linear(weight.to(device, torch.float32), bias.to(device, torch.float32))

    def __init__(self, layer, device="cpu"):
        super().__init__(layer, device)
        self.word_table = F.pad(self.fp32(layer.weight_ih.T), (0, 0, 0, 1)) + self.fp32(layer.parts["bias"])

    @cached_property
    def times_input(self):
        """x [..., I] → W_ih x + b [..., R], by the engine's kind of product."""
        return self.linear(self.layer.weight_ih, self.layer.parts["bias"], self.device)

    def table_and_rows(self, x, live):
        """→ table [N, R] float32, rows int32 [T, B]; a padded step has row −1."""
        if x.dtype == torch.int64:
            table, rows = self.word_table, x.int()
        else:
            table = self.times_input(x.flatten(0, 1))
            rows = torch.arange(len(table), dtype=torch.int32, device=x.device).view(x.shape[:2])
        return table, (rows if live is None else rows.masked_fill(~live, -1)).contiguous()
