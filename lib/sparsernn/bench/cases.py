"""What is timed: a product, a recurrent layer, a trained network; each knows its fields, its engines and its error."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..engines import LAYERS, PRODUCTS, choose, engine_class, is_dense
from ..engines.base import Layer
from ..engines.models import layers_of, recurrent_layers
from ..engines.parts import shrink
from ..engines.precision import tf32
from ..engines.whole import by_engine
from ..files import error
from ..nets.file import load
from ..nets.layers import GRU, LSTM, RNN
from ..sparsify.block_shapes import shape_of, to_entries

PATTERNS = ("unstructured", "32x32", "removed neurons", "removed gates")
KINDS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
ALLOWED = {"float32": 1e-4, "tf32": 5e-3, "int8": 0.3}  # error an engine may have and still be timed, by its dtype
ALLOWED_ELSE = 0.1
WEIGHT_BYTES = {
    "dense-bf16": 2,
    "dense-fp16": 2,
    "dense-fp16-padded": 2,
    "two-to-four": 2,
    "persistent-fp16": 2,
}  # others: 4
WEIGHT_BYTES |= dict.fromkeys(("dense-fp16-padded", "dense-bf16-graph", "dense-fp16-graph"), 2)
WEIGHT_BYTES |= {"dense-int8": 1, "own-dense-int8": 1, "c-int8": 1}
RATES = {
    "dense-tf32": "tf32",
    "dense-bf16": "bf16",
    "dense-fp16": "fp16",
    "dense-fp16-padded": "fp16",
    "dense-bf16-graph": "bf16",
    "dense-fp16-graph": "fp16",
    "two-to-four": "fp16",
    "tiny-cuda": "tf32",  # its product of the input, the most of it
    "block-16": "tf32",
    "block-32": "tf32",
    "dense-int8": "int8",
    "own-dense-int8": "int8",
    "c-int8": "int8",
}  # of the units an engine computes with (`timing.Roof`); others: fp32


def kept_mask(shape, density, pattern, generator):
    """bool: which weights stay. `16x4` and its like: whole blocks, as many as make the density; `2:4`: two of every four in a
    row; `unstructured`: independent weights."""
    if pattern == "2:4":
        order = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(2)
        return (order < 2).view(shape)
    if pattern == "unstructured":
        return torch.rand(shape, generator=generator) < density
    block = shape_of(pattern)
    count = [-(-size // side) for size, side in zip(shape, block, strict=True)]
    kept = torch.zeros(math.prod(count), dtype=torch.bool)
    kept[torch.randperm(len(kept), generator=generator)[: max(1, round(density * len(kept)))]] = True
    return to_entries(kept.view(count), block, torch.empty(shape))


def dtype_name(engine):
    """ "float32" and its like; "tf32" where factors in float32 are rounded to it."""
    return "tf32" if getattr(engine, "tf32", False) else str(engine.dtype).removeprefix("torch.")


def rounds(dtype):
    """Whether what is no layer, a convolution say, may be rounded to tf32 beside an engine with numbers of this kind: on a GPU
    torch does, and an engine whose errors count as float32's is not to be held to it."""
    return dtype != "float32"


class Case:
    """One place of a sweep: `fields` of its rows, and, made when first asked for, its data and engines."""

    table = LAYERS
    chooses = True

    def make(self, name, device):
        """→ function without arguments that runs this engine here, the name of its dtype, and for one with a floor of its own the
        function that runs its empty loop and the milliseconds to add; else None."""
        raise NotImplementedError

    def error(self, name, got):
        """`base.error` of what the engine returned, in the sequences or columns that `choose.compared` picks."""
        raise NotImplementedError

    def stored(self, name):
        """Weights that this engine multiplies; their bytes are WEIGHT_BYTES as many."""
        raise NotImplementedError

    def weight_bytes(self, name):
        """Bytes of the weights that this engine multiplies, without what says where they stand."""
        return WEIGHT_BYTES.get(name, 4) * self.stored(name)

    def work(self, name):
        """Bytes and flops that this engine's function cannot do without."""
        raise NotImplementedError

    def heavy(self):
        """flops of the dense opponent: for the forecast."""
        return self.work("dense-fp32")[1]


@dataclass
class ProductCase(Case):
    """y = W x, W [rows, columns] sparse, x [columns, batch]."""

    rows: int
    columns: int
    density: float
    batch: int
    pattern: str = "unstructured"
    table = PRODUCTS
    chooses = False

    @property
    def fields(self):
        shape = {"input": self.columns, "hidden": self.rows, "density": self.density, "pattern": self.pattern}
        return {"model": "product", "method": "shape-only", "batch": self.batch} | shape

    @cached_property
    def data(self):
        generator = torch.Generator().manual_seed(0)
        kept = kept_mask((self.rows, self.columns), self.density, self.pattern, generator)
        weight = torch.randn(self.rows, self.columns, generator=generator) / (self.density * self.columns) ** 0.5
        return weight * kept, torch.randn(self.columns, self.batch, generator=generator)

    def make(self, name, device):
        (weight, x), kind = self.data, engine_class(name, PRODUCTS)
        engine = kind(weight, device)
        x = x.to(device, engine.reads)
        return (lambda: engine(x)), dtype_name(kind), None

    @cached_property
    def compared(self):
        return choose.compared(self.batch, 32)

    @cached_property
    def expected(self):
        weight, x = self.data
        return weight.double() @ x[:, self.compared].double()

    def error(self, name, got):
        return error(got.cpu()[:, self.compared], self.expected)

    def stored(self, name):
        return self.rows * self.columns * (1 if is_dense(name) else self.density)

    def work(self, name):
        moved = self.weight_bytes(name) + 4 * self.batch * (self.rows + self.columns)
        return moved, 2 * self.stored(name) * self.batch


@dataclass
class LayerCase(Case):
    """A layer of a kind of KINDS, input as wide as it is high, over `steps` steps: the masked one in full, and what is left.

    16x4 and its like  whole blocks of both matrices are left, as many as make the density
    removed neurons  the share √density of neurons and inputs is left, so that the share `density` of weights is
    removed gates    the share `density` of gates has weights, the others are constants
    24 heads and its like  W_ih is whole, of W_hh the blocks along the diagonal, as many; `density` is W_hh's
    """

    hidden: int
    density: float
    batch: int
    pattern: str
    steps: int
    kind: str = "lstm"

    @property
    def gates(self):
        return len(KINDS[self.kind].cell_type.gates)

    @property
    def inputs(self):
        return self.hidden

    @property
    def heads(self):
        """How many, 0 for another pattern."""
        return int(self.pattern.removesuffix(" heads")) if self.pattern.endswith(" heads") else 0

    @property
    def fields(self):
        shape = {"input": self.inputs, "hidden": self.hidden, "density": self.density, "pattern": self.pattern}
        return {"model": self.kind, "method": "shape-only", "batch": self.batch, "steps": self.steps} | shape

    def cut(self, generator):
        """What is left: bool of the neurons, of the inputs, and of each weight of W_ih and W_hh."""
        rows, keep = self.gates * self.hidden, torch.ones(self.hidden, dtype=torch.bool)
        reads = torch.ones(self.inputs, dtype=torch.bool)
        if self.pattern == "removed neurons":
            for kept in (keep, reads):
                kept[torch.randperm(len(kept), generator=generator)[max(1, round(self.density**0.5 * len(kept))) :]] = (
                    False
                )
            of_row = keep.repeat(self.gates)[:, None]
            return keep, reads, reads & of_row, keep & of_row
        if self.pattern == "removed gates":
            live = torch.rand(rows, 1, generator=generator) < self.density
            return keep, reads, live.expand(-1, self.inputs), live.expand(-1, self.hidden)
        if self.heads:
            head = torch.arange(self.hidden) * self.heads // self.hidden
            everything = torch.ones(rows, self.inputs, dtype=torch.bool)
            return keep, reads, everything, (head[:, None] == head).repeat(self.gates, 1)
        widths = self.inputs, self.hidden
        return keep, reads, *(kept_mask((rows, width), self.density, self.pattern, generator) for width in widths)

    @cached_property
    def data(self):
        """The dense layer, the small one, x for each, kept neurons, and the layer that both are of."""
        generator = torch.Generator().manual_seed(0)
        layer = KINDS[self.kind](self.inputs, self.hidden).requires_grad_(False)
        keep, reads, *masks = self.cut(generator)
        for name, mask in zip(("weight_ih_l0", "weight_hh_l0"), masks, strict=True):
            parameter, a_row = getattr(layer, name), max(1.0, float(mask.sum()) / len(mask))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * mask / a_row**0.5)
        given = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
        everything = torch.ones(self.gates * self.hidden, dtype=torch.bool)
        dense = Layer(layer.cell, shrink(layer.cell, *given, everything[: self.hidden], everything))
        live = (given[0] != 0).any(1) | (given[1] != 0).any(1)
        small = Layer(layer.cell, shrink(layer.cell, given[0][:, reads], given[1][:, keep], *given[2:], keep, live))
        x = torch.randn(self.steps, self.batch, self.inputs, generator=generator)
        return dense, small, x, x[:, :, reads].contiguous(), keep, layer

    @cached_property
    def expected(self):
        *_, layer = self.data
        return layer.double()(self.data[2][:, choose.compared(self.batch)].double())[0]

    def make(self, name, device):
        dense, small, x, narrow, *_ = self.data
        layer, x = (dense, x) if is_dense(name) else (small, narrow)
        engine, x = engine_class(name)(layer, device), x.to(device)
        if not hasattr(engine, "on_chip_ms"):
            return (lambda: engine(x)), dtype_name(engine), None
        return (lambda: engine(x)), dtype_name(engine), ((lambda: engine(x, empty=True)), engine.on_chip_ms(x))

    def error(self, name, got):
        keep = slice(None) if is_dense(name) else self.data[4]
        return error(got.cpu()[:, choose.compared(self.batch)], self.expected[:, :, keep])

    def stored(self, name):
        return self.gates * self.hidden * (self.inputs + self.hidden) if is_dense(name) else self.data[1].nonzeros

    def work(self, name):
        layer = self.data[0 if is_dense(name) else 1]
        moved = self.weight_bytes(name) + 4 * self.steps * self.batch * (layer.inputs + layer.hidden)
        return moved, 2 * self.stored(name) * self.steps * self.batch

    def heavy(self):
        return 2 * self.gates * self.hidden * (self.inputs + self.hidden) * self.steps * self.batch

    def chosen(self, device):
        return choose.choose(self.data[1], self.data[3], device).engine


TORCHS = {"hard": "logistic", "clipped_relu": "relu"}  # activation → the nearest that torch's layers have


@dataclass
class TrainedCase(Case):
    """A compact model of the study, called as it says (`Model.example`); the opponent is the dense net of its first size, in
    torch's engines with activations that torch has."""

    path: Path
    batch: int
    steps: int

    @property
    def fields(self):
        record = json.loads((self.path.parent / "record.json").read_text())
        named = {name: record[name] for name in ("task", "model", "method", "variant", "seed")}
        layers = list(recurrent_layers(self.dense).values())
        hidden = sum(layer.hidden_size * layer.num_layers for layer in layers)  # of several layers all neurons
        shape = {"input": layers[0].input_size, "hidden": hidden, "pattern": "trained"}
        kept, total = (sum(part.nonzeros for part in _parts(model)) for model in (self.small, self.dense))
        return named | shape | {"batch": self.batch, "steps": self.steps, "density": round(kept / total, 6)}

    @cached_property
    def small(self):
        return load(self.path).requires_grad_(False)

    @cached_property
    def dense(self):
        given = dict(self.small.arguments)
        if "activation" in given:
            given["activation"] = TORCHS.get(given["activation"], given["activation"])
        return self._whole(given)

    @cached_property
    def own_dense(self):
        """With the activations that it was trained with, which cost less: what an engine of our own runs."""
        return self._whole(self.small.arguments)

    def _whole(self, arguments):
        torch.manual_seed(0)
        return type(self.small)(**arguments).eval().requires_grad_(False)

    @cached_property
    def example(self):
        """What the model is called with: tensors whose sequences lie along dimension 1."""
        example = self.small.example(self.steps, self.batch)
        return (example,) if isinstance(example, torch.Tensor) else tuple(example)

    def of(self, name):
        return getattr(self, self._which(name))

    @staticmethod
    def _which(name):
        return "small" if not is_dense(name) else "own_dense" if name.startswith("own-") else "dense"

    def make(self, name, device):
        fast = by_engine(self.of(name), name, self.example, device, states=False)
        given = [x.to(device) for x in self.example]
        dtype = dtype_name(engine_class(name))

        def plain():
            return fast(*given)[0]

        def rounding():
            with tf32(rounds(dtype)):
                return plain()

        return rounding if torch.device(device).type == "cuda" else plain, dtype, None

    @cached_property
    def expected(self):
        """Name of a net → what it says in float64, of some sequences."""
        some = tuple(x[:, choose.compared(self.batch)] for x in self.example)
        nets = ("small", "dense", "own_dense")
        return {name: choose.reference(getattr(self, name), some)[0] for name in nets}

    def error(self, name, got):
        some = got.index_select(got.dim() - 2, choose.compared(self.batch).to(got.device)).cpu()  # logits [(T,) B, n]
        return error(some, self.expected[self._which(name)])

    def stored(self, name):
        return sum(self._by_step(name))

    def _by_step(self, name):
        """Weights of the recurrent products, and of the heads."""
        model = self.of(name)
        head = sum(int((m.weight != 0).sum()) for m in model.modules() if isinstance(m, torch.nn.Linear))
        return sum(int((part.weight_hh != 0).sum()) for part in _parts(model)), head

    def work(self, name):
        logits, (recurrent, head) = self.expected[self._which(name)], self._by_step(name)
        answers = logits.numel() // logits.shape[-1] // logits.shape[-2] * self.batch
        moved = self.weight_bytes(name) + 8 * self.batch * self.steps
        flops = 2 * (recurrent * self.batch * self.steps + head * answers)
        return moved + 4 * answers * logits.shape[-1], flops

    def chosen(self, device):
        return choose.choose(self.small, self.example, device, states=False).engine


def _parts(model):
    return [part for layer in recurrent_layers(model).values() for part in layers_of(layer).values()]
