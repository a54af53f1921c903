"""What is timed: a product, a recurrent layer, a trained network; each knows its fields, its engines and its error."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..engines import LAYERS, PRODUCTS, choose, engine_class, is_dense
from ..engines.base import Layer
from ..engines.models import by_engine, layers_of, recurrent_layers
from ..engines.parts import shrink
from ..files import error
from ..nets.file import load
from ..nets.layers import GRU, LSTM, RNN

PATTERNS = ("unstructured", "block", "removed neurons", "removed gates")
KINDS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
ALLOWED = {"float32": 1e-4, "tf32": 5e-3, "int8": 0.3}  # error an engine may have and still be timed, by its dtype
ALLOWED_ELSE = 0.1
WEIGHT_BYTES = {"dense-bf16": 2, "dense-fp16": 2, "two-to-four": 2, "persistent-fp16": 2}  # others: 4
WEIGHT_BYTES |= {"dense-int8": 1, "own-dense-int8": 1, "c-int8": 1}
RATES = {
    "dense-tf32": "tf32",
    "dense-bf16": "bf16",
    "dense-fp16": "fp16",
    "two-to-four": "fp16",
    "block-16": "tf32",
    "block-32": "tf32",
    "dense-int8": "int8",
    "own-dense-int8": "int8",
    "c-int8": "int8",
}  # of the units an engine computes with (`timing.Roof`); others: fp32
BLOCK = 32  # side of the blocks of pattern "block"


def kept_mask(shape, density, pattern, generator):
    """bool: which weights stay. `block`: whole tiles of 32 × 32, as many as make the density; else independent weights;
    `2:4`: two of every four in a row."""
    if pattern == "2:4":
        order = torch.rand(shape[0], shape[1] // 4, 4, generator=generator).argsort(2)
        return (order < 2).view(shape)
    if pattern != "block":
        return torch.rand(shape, generator=generator) < density
    tiles = -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)
    count = tiles[0] * tiles[1]
    kept = torch.zeros(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=generator)[: max(1, round(density * count))]] = True
    wide = kept.view(tiles).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return wide[: shape[0], : shape[1]]


def dtype_name(engine):
    """ "float32" and its like; "tf32" where factors in float32 are rounded to it."""
    return "tf32" if getattr(engine, "tf32", False) else str(engine.dtype).removeprefix("torch.")


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

    def work(self, name):
        kept = self.rows * self.columns * (1 if is_dense(name) else self.density)
        moved = WEIGHT_BYTES.get(name, 4) * kept + 4 * self.batch * (self.rows + self.columns)
        return moved, 2 * kept * self.batch


@dataclass
class LayerCase(Case):
    """A layer of a kind of KINDS, input as wide as it is high, over `steps` steps: the masked one in full, and what is left.

    removed neurons  the share √density of neurons and inputs is left, so that the share `density` of weights is
    removed gates    the share `density` of gates has weights, the others are constants
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
    def fields(self):
        shape = {"input": self.hidden, "hidden": self.hidden, "density": self.density, "pattern": self.pattern}
        return {"model": self.kind, "method": "shape-only", "batch": self.batch, "steps": self.steps} | shape

    @cached_property
    def data(self):
        """The dense layer, the small one, x for each, kept neurons."""
        generator, size, rows = torch.Generator().manual_seed(0), self.hidden, self.gates * self.hidden
        layer = KINDS[self.kind](size, size).requires_grad_(False)
        keep, inputs = torch.ones(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
        masks = [torch.ones(rows, size, dtype=torch.bool) for _ in range(2)]
        if self.pattern == "removed neurons":
            for kept in (keep, inputs):
                kept[torch.randperm(size, generator=generator)[max(1, round(self.density**0.5 * size)) :]] = False
            masks[0] &= inputs & keep.repeat(self.gates)[:, None]
            masks[1] &= keep & keep.repeat(self.gates)[:, None]
        elif self.pattern == "removed gates":
            masks = [(torch.rand(rows, 1, generator=generator) < self.density).expand(-1, size)] * 2
        else:
            masks = [kept_mask((rows, size), self.density, self.pattern, generator) for _ in range(2)]
        for name, mask in zip(("weight_ih_l0", "weight_hh_l0"), masks, strict=True):
            parameter = getattr(layer, name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * mask / (self.density * size) ** 0.5)
        given = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
        everything = torch.ones(rows, dtype=torch.bool)
        dense = Layer(layer.cell, shrink(layer.cell, *given, everything[:size], everything))
        live = (given[0] != 0).any(1) | (given[1] != 0).any(1)
        small = Layer(layer.cell, shrink(layer.cell, given[0][:, inputs], given[1][:, keep], *given[2:], keep, live))
        x = torch.randn(self.steps, self.batch, size, generator=generator)
        return dense, small, x, x[:, :, inputs].contiguous(), keep, layer

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

    def work(self, name):
        if is_dense(name):
            weights, width = 2 * self.gates * self.hidden**2, 2 * self.hidden
        else:
            small = self.data[1]
            weights, width = small.nonzeros, small.inputs + small.hidden
        moved = WEIGHT_BYTES.get(name, 4) * weights + 4 * self.steps * self.batch * width
        return moved, 2 * weights * self.steps * self.batch

    def heavy(self):
        return 4 * self.gates * self.hidden**2 * self.steps * self.batch

    def chosen(self, device):
        return choose.choose(self.data[1], self.data[3], device).engine


TORCHS = {"hard": "logistic", "clipped_relu": "relu"}  # activation → the nearest that torch's layers have


@dataclass
class TrainedCase(Case):
    """A compact model of the study, called as it says (`Model.example`); the opponent is the dense net of its first size,
    with activations that torch has."""

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
        return load(self.path)

    @cached_property
    def dense(self):
        given = dict(self.small.arguments)
        if "activation" in given:
            given["activation"] = TORCHS.get(given["activation"], given["activation"])
        torch.manual_seed(0)
        return type(self.small)(**given).eval()

    @cached_property
    def example(self):
        """What the model is called with: tensors whose sequences lie along dimension 1."""
        example = self.small.example(self.steps, self.batch)
        return (example,) if isinstance(example, torch.Tensor) else tuple(example)

    def of(self, name):
        return self.dense if is_dense(name) else self.small

    def make(self, name, device):
        fast = by_engine(self.of(name), name, self.example, device)
        given = [x.to(device) for x in self.example]
        return torch.no_grad()(lambda: fast(*given)[0]), dtype_name(engine_class(name)), None

    @cached_property
    def expected(self):
        """Of the small net and of the dense one, by whether an engine runs it whole; in float64, of some sequences."""
        some = tuple(x[:, choose.compared(self.batch)] for x in self.example)
        return {whole: choose.reference(m, some)[0] for whole, m in ((False, self.small), (True, self.dense))}

    def error(self, name, got):
        some = got.index_select(got.dim() - 2, choose.compared(self.batch).to(got.device)).cpu()  # logits [(T,) B, n]
        return error(some, self.expected[is_dense(name)])

    def work(self, name):
        model, logits = self.of(name), self.expected[is_dense(name)]
        recurrent = sum(int((part.weight_hh != 0).sum()) for part in _parts(model))
        head = sum(int((m.weight != 0).sum()) for m in model.modules() if isinstance(m, torch.nn.Linear))
        answers = logits.numel() // logits.shape[-1] // logits.shape[-2] * self.batch
        moved = WEIGHT_BYTES.get(name, 4) * (recurrent + head) + 8 * self.batch * self.steps
        flops = 2 * (recurrent * self.batch * self.steps + head * answers)
        return moved + 4 * answers * logits.shape[-1], flops

    def chosen(self, device):
        return choose.choose(self.small, self.example, device).engine


def _parts(model):
    return [part for layer in recurrent_layers(model).values() for part in layers_of(layer).values()]
