"""From masks to a really smaller model that computes the same function, and its file.

Removed neurons leave every gate, the recurrent columns and whatever reads them; a gate that nothing reaches is a
constant, σ(b) or tanh(b), and its rows are dropped; scales are multiplied into the weights. Source: 1812.05692, ISS
1709.05027. `load` needs torch and safetensors alone.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from ..files import replacing
from .layers import RECURRENT
from .masks import close
from .small import PARTS, run, shrink

FORMAT = "sparsernn-compact/1"
LAYERS = {layer.__name__: layer for layer in RECURRENT.values()}


def compact(model, masks, means=None):
    """Return a smaller model that computes what `model` computes under `masks`.

    model   `Classifier`, `LanguageModel` or `BagOfWords`; untouched
    masks   `Masks` as a method reads them off (closed here, see `masks.close`)
    means   axis name → mean of its group variable
    → `Compact`, in the model's dtype. Raises ValueError if a layer would keep no hidden neuron, naming it.
    Equal to the masked model to 1e-9 in float64 (tests/test_compact.py).
    """
    closed, means = close(masks), means or {}
    for axis in closed.of_kind("hidden"):
        if not closed.groups[axis.name].any():
            raise ValueError(
                f"{axis.name} would keep none of its {axis.size} hidden neurons, so nothing would be left to run; "
                "raise the threshold, train longer before the penalty is full, or lower kl_weight"
            )
    parameters = {name: p.detach() for name, p in model.named_parameters() if ".carried." not in name}
    tensors = {name: parameters[name] * mask for name, mask in closed.weights.items()}
    for axis in closed.axes:  # scales into weights: where the neuron is read; a gate's where it is written
        if axis.name in means:
            axis.multiply(tensors, means[axis.name], "out" if axis.kind == "gates" else "in")
    for axis in closed.of_kind("vocabulary") + closed.of_kind("input"):
        keep = closed.groups[axis.name]
        axis.select(tensors, keep, "in", "out")
        tensors["kept." + axis.name] = keep.nonzero().flatten()
    meta = {"format": FORMAT, "model": type(model).__name__, "layers": []}
    meta["sizes"] = {axis.name: axis.size for axis in closed.axes if axis.kind != "gates"}
    lstm = getattr(model, "lstm", None)
    if lstm is not None:
        meta |= {"cell": type(lstm).__name__, "activation": lstm.activation, "layers": lstm.suffixes()}
    for suffix in reversed(meta["layers"]):  # a reverse direction's columns stand behind: they go first
        _shrink_layer(tensors, parameters, closed, lstm, suffix)
    tensors["head.bias"] = parameters["head.bias"]
    return Compact(meta, {name: tensor.clone() for name, tensor in tensors.items()})


def _shrink_layer(tensors, parameters, closed, lstm, suffix):
    """Hidden neurons out of the columns, live rows only; biases of live rows, values of constant gates."""
    hidden = next(axis for axis in closed.axes if axis.name == "hidden" + suffix)
    gates = next(axis for axis in closed.axes if axis.name == "gates" + suffix)
    keep, live = closed.groups[hidden.name], closed.groups[gates.name]
    hidden.select(tensors, keep, "in")
    names = [kind + suffix for kind in ("weight_ih", "weight_hh")]
    biases = [parameters[f"lstm.bias_{kind}{suffix}"] for kind in ("ih", "hh")]
    small = shrink(lstm.cell, *(tensors["lstm." + name] for name in names), *biases, keep, live)
    tensors |= {f"lstm.{name}{suffix}": tensor for name, tensor in small.items()}
    tensors["kept." + hidden.name] = keep.nonzero().flatten()


class Compact(nn.Module):
    """A compact model: called like the model it came from, in evaluation only.

    meta     cell, activation, layers (suffixes in order), sizes (axis → size before), model
    buffers  matrices without removed lines; `lstm.live [G, Hk]`, `lstm.constant` (values of the gates that are not
             live, row by row), `kept.<axis>` (indices of what is left)
    """

    def __init__(self, meta, tensors):
        super().__init__()
        self.meta = meta
        self.names = {name.replace(".", "/"): name for name in tensors}
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "/"), tensor)
        if "kept.vocabulary" in tensors:
            kept = tensors["kept.vocabulary"].long()
            lookup = torch.full(
                (meta["sizes"]["vocabulary"],), len(kept)
            )  # a removed word: the row of zeros at the end
            lookup[kept] = torch.arange(len(kept))
            self.register_buffer("lookup", lookup)

    def tensor(self, name):
        return getattr(self, name.replace(".", "/"))

    def tensors(self):
        """Name → tensor, as in the file."""
        return {name: self.tensor(name) for name in self.names.values()}

    @torch.no_grad()
    def forward(self, tokens, lengths=None, state=None):
        words = self.lookup[tokens]
        if self.meta["model"] == "BagOfWords":
            return self._bag(words), None
        embedded = self.meta["model"] == "Classifier"
        x = self.embed(words) if embedded else words
        live = None
        if lengths is not None:
            time = torch.arange(len(tokens), device=tokens.device)[:, None]
            live = time >= len(tokens) - lengths if embedded else time < lengths  # classifiers: padded on the left
        outputs, finals = [], []
        for index, suffix in enumerate(self.meta["layers"]):
            y, final = self.run_layer(suffix, x, None if state is None else state[index], live)
            outputs.append(y)
            finals.append(final)
            if index + 1 == len(self.meta["layers"]) or not self.meta["layers"][index + 1].endswith("_reverse"):
                x, outputs = torch.cat(outputs, 2), []
        if embedded:
            x = x[-1]
        return self.answer(x), finals

    @property
    def cell(self):
        return LAYERS[self.meta["cell"]].cell_type(self.meta["activation"])

    def parts(self, suffix):
        """PARTS (see `small`) of one layer and direction."""
        return {name: self.tensor(f"lstm.{name}{suffix}") for name in PARTS}

    def embed(self, words):
        return F.embedding(words, F.pad(self.tensor("embedding.weight"), (0, 0, 0, 1)))

    def run_layer(self, suffix, x, state, live):
        """→ y [T, B, Hk] and final states; `engines.Fast` runs it otherwise."""
        return run(self.cell, self.parts(suffix), x, state, live, reverse=suffix.endswith("_reverse"))

    def answer(self, y):
        """→ logits of what the last layer says, y [..., H]; `engines.Fast` computes it otherwise."""
        return F.linear(y, self.tensor("head.weight"), self.tensor("head.bias"))

    def _bag(self, words):
        weight = self.tensor("head.weight")
        counts = weight.new_zeros(words.shape[1], weight.shape[1] + 1)
        counts.scatter_add_(1, words.t(), counts.new_ones(()).expand(words.t().shape))
        return F.linear(counts[:, :-1].log1p(), weight, self.tensor("head.bias"))


def _index_type(largest):
    return torch.uint16 if largest < 1 << 16 else torch.uint32


def _pack(name, matrix):
    """The smallest of dense, by rows, by columns → tensors, layout (None when dense)."""
    best, best_layout = {name: matrix.contiguous()}, None
    size = matrix.numel() * 4
    for layout, lines in (("rows", matrix), ("columns", matrix.t())):
        count, (which, index) = (lines != 0).sum(1), (lines != 0).nonzero(as_tuple=True)
        pointers = torch.cat([count.new_zeros(1), count.cumsum(0)])
        types = _index_type(lines.shape[1]), _index_type(int(pointers[-1]))
        packed = (
            len(index) * (4 + types[0].itemsize) + len(pointers) * types[1].itemsize + 150
        )  # header of two more names
        if packed < size:
            values = lines[which, index].contiguous()
            best = {
                name + ".values": values,
                name + ".indices": index.to(types[0]),
                name + ".indptr": pointers.to(types[1]),
            }
            size, best_layout = packed, {"shape": list(matrix.shape), "by": layout}
    return best, best_layout


def _unpack(tensors, name, layout):
    values, index = tensors.pop(name + ".values"), tensors.pop(name + ".indices").long()
    counts = tensors.pop(name + ".indptr").long().diff()
    rows, columns = layout["shape"] if layout["by"] == "rows" else layout["shape"][::-1]
    matrix = values.new_zeros(rows, columns)
    matrix[torch.arange(rows).repeat_interleave(counts), index] = values
    return matrix if layout["by"] == "rows" else matrix.t().contiguous()


def _bits(index, size):
    flags = torch.zeros(-(-size // 8) * 8, dtype=torch.uint8)
    flags[index.long()] = 1
    return (flags.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1).to(torch.uint8)


def save(model, path):
    """Write a `Compact` in float32 to `path` (format `sparsernn-compact/1`), atomically → size in bytes.

    A matrix is stored dense or as values and indices by rows or columns, a kept index as a list or as bits,
    whichever is smaller.
    """
    tensors, layouts = {}, {}
    for name, tensor in model.tensors().items():
        if name.startswith("kept."):
            size = model.meta["sizes"][name.removeprefix("kept.")]
            short = tensor.to(_index_type(size))
            if size <= 8 * short.itemsize * len(short):
                name, short = name + ".bits", _bits(tensor, size)
            tensors[name] = short
        elif tensor.dim() == 2 and tensor.is_floating_point():
            packed, layout = _pack(name, tensor.float())
            tensors |= packed
            if layout:
                layouts[name] = layout
        else:
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    meta = json.dumps(model.meta | {"sparse": layouts}, separators=(",", ":"))
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"sparsernn": meta})  # one key: the order of several would be chance
    return Path(path).stat().st_size


def load(path):
    """The compact model in a file `save` wrote. Raises ValueError if it is no such file."""
    try:
        opened = safe_open(path, "pt")
    except SafetensorError as problem:
        raise ValueError(f"{path}: no safetensors file ({problem}), expected {FORMAT!r}") from problem
    with opened as file:
        meta = json.loads((file.metadata() or {}).get("sparsernn", "{}"))
        if meta.get("format") != FORMAT:
            raise ValueError(f"{path}: format is {meta.get('format')!r}, expected {FORMAT!r}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, layout in meta.pop("sparse").items():
        tensors[name] = _unpack(tensors, name, layout)
    for name in [name for name in tensors if name.endswith(".bits")]:
        flags = tensors.pop(name)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        tensors[name.removesuffix(".bits")] = flags.flatten().nonzero().flatten()
    for name in [name for name in tensors if name.startswith("kept.")]:
        tensors[name] = tensors[name].long()
    return Compact(meta, tensors)


def size_floor(model):
    """Bytes no file of this kind goes below: 6 B a stored weight (value and index) + 4 B a bias or constant."""
    weights = sum(int((t != 0).sum()) for t in model.tensors().values() if t.dim() == 2 and t.is_floating_point())
    biases = sum(t.numel() for t in model.tensors().values() if t.dim() == 1 and t.is_floating_point())
    return 6 * weights + 4 * biases
