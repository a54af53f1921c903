"""From a model under masks to a smaller model of the same classes around smaller layers, with a proof that it is equal."""

import copy
import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils._pytree import tree_map

from ..engines.timing import wait
from ..nets.axes import Member
from ..nets.masks import Masks, close
from ..nets.readers import Reading, answer, find, like
from .attaching import STUDIES, OwnModel, matrix_and_bias_names

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Proof:
    """What `compact` measured on the example: prints as a table.

    error      max|small − model| / max(1, max|model|) of everything the model returns (states handed through left out)
    weights_*  numbers in matrices that are not zero, before and after
    bytes_*    parameters and buffers                     ms_*   a forward pass, median of nine, interleaved
    layers     name → what became of it
    """

    error: float
    weights_before: int
    weights_after: int
    bytes_before: int
    bytes_after: int
    ms_before: float
    ms_after: float
    layers: dict

    def __str__(self):
        lines = [f"{name:20} {what}" for name, what in self.layers.items()]
        lines += [
            f"{'error':20} {self.error:.1e} on the example",
            f"{'weights not zero':20} {self.weights_before:,} → {self.weights_after:,}",
            f"{'bytes':20} {self.bytes_before:,} → {self.bytes_after:,} ({self.bytes_before / self.bytes_after:.1f}× smaller)",
            f"{'milliseconds':20} {self.ms_before:.2f} → {self.ms_after:.2f} ({self.ms_before / self.ms_after:.1f}× faster)",
        ]
        return "\n".join(lines)


def compact(model, example, consumers=None):
    """A smaller model that computes what `model` computes in evaluation, and the proof → (small, Proof).

    model      with a method attached: its masks and means are used; without: its zeros are (torch.nn.utils.prune's too)
    example    what the model is called with: a tensor, or a tuple or dict of arguments
    consumers  layer → names of the modules that alone read its output, as it is, where running the example cannot show it
    A layer whose readers are not all known keeps its outer width: inside it shrinks, removed neurons come out as zeros.
    Raises ValueError where a layer would keep no neuron, RuntimeError if the result were not equal.
    """
    was_training = model.training
    model.eval()
    try:
        study = STUDIES.get(model)
        own = study.own if study else OwnModel(model)
        before = answer(model, example)  # torch's pruning puts its products in place when a module is called
        if not before:
            raise ValueError("the model returns no tensor for the example, so nothing could be compared")
        parameters = {name: _read(model, name) for name in own.parameters}
        if study:
            masks, means = study.method.masks(), {name: mean.cpu() for name, mean in study.method.means().items()}
        else:
            masks, means = Masks(tuple(own.axes()), {n: p != 0 for n, p in parameters.items() if p.dim() == 2}, {}), {}
        producers = [name for name, module in own.modules.items() if not isinstance(module, nn.Linear)]
        readings = {name: _reading(model, own, name, example, consumers or {}) for name in producers}
        closed = _closed(own, masks, readings)
        scales = {name: _output_scale(own, name, masks, means) for name in own.twins}
        tensors = _folded(own, closed, means, parameters, readings, scales)
        plain = _plain_copy(model, study)
        for narrow in (True, False):  # what lies between a layer and its reader may insist on the width
            small, layers = _rebuilt(copy.deepcopy(plain), own, closed, tensors, readings, scales, narrow)
            error = _error(small, example, before)
            if error <= TOLERANCE.get(before[0].dtype, 1e-2):
                break
        else:
            raise RuntimeError(
                f"the small model differs from the model on the example by {error:.1e}: "
                + ("are the consumers given the only readers?" if consumers else "please report it with the model")
            )
        ms_before, ms_after = _milliseconds(model, small, example)
        counts = _weights(plain), _weights(small)
        return small, Proof(error, *counts, _bytes(plain), _bytes(small), ms_before, ms_after, layers)
    finally:
        model.train(was_training)


def _error(small, example, before):
    """Largest relative difference from the answer before; infinite where the small model cannot be run."""
    try:
        after = answer(small, example)
    except RuntimeError:
        return float("inf")
    if [x.shape for x in after] != [x.shape for x in before]:
        return float("inf")
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in zip(after, before, strict=True))


def _read(model, name):
    """A parameter as the module uses it, on the CPU: with torch's pruning it is a plain tensor in the parameter's place."""
    module, _, own = name.rpartition(".")
    return getattr(model.get_submodule(module), own).detach().cpu()


def _reading(model, own, name, example, given):
    readers = {n: m for n, m in own.modules.items() if n != name and not isinstance(m, nn.Embedding)}
    if name in given:
        if unknown := [reader for reader in given[name] if reader not in readers]:
            raise ValueError(f"consumers of {name}: no such module {unknown[0]!r}; there are: {', '.join(readers)}")
        width = _width(own, name)
        for reader in given[name]:
            if (reads := _inward(readers[reader])) != width:
                raise ValueError(f"consumers of {name}: {reader} reads {reads} columns, the layer has {width} outputs")
        columns = {column: (column, "y") for column in range(width)}
        return Reading(dict.fromkeys(given[name], columns), complete=True)
    return find(model, own.modules[name], readers, example)


def _width(own, name):
    module = own.modules[name]
    if name in own.twins:
        return module.hidden_size * (2 if module.bidirectional else 1)
    return module.embedding_dim


def _last_level(twin):
    """The suffixes of a stack's last level, one a direction."""
    return twin.suffixes()[-2 if twin.bidirectional else -1 :]


def _inputs_of(own, consumer):
    """The matrices whose columns are a module's input."""
    if consumer in own.twins:
        return [f"{consumer}.weight_ih{s}" for s in own.twins[consumer].suffixes() if s.startswith("_l0")]
    return [own.canonical[f"{consumer}.weight"]]


def _read_neurons(own, name, reading, weights, alive):
    """bool [width]: which outputs of a layer anybody reads. alive: those that are not always zero."""
    read = torch.zeros(_width(own, name), dtype=torch.bool)
    for consumer, columns in reading.columns.items():
        for tensor in _inputs_of(own, consumer):
            some = weights[tensor].any(0)
            for column, (neuron, _) in columns.items():
                read[neuron] |= some[column]
    return read if reading.complete else read | alive | reading.state


def _closed(own, masks, readings):
    """Masks closed over who really reads whom, without groups: a scale of zero becomes columns of zeros.

    What reads a stack from outside is a row of its own, `<axis>.read`; rows and closure change each other, so they take
    turns until nothing changes.
    """
    weights, axes, tops = {name: w.clone() for name, w in masks.weights.items()}, [], {}
    groups = {
        axis.name: masks.group(axis) for axis in masks.axes if axis.kind != "hidden" and axis.name in masks.groups
    }
    for axis in masks.axes:
        if axis.kind == "hidden":
            layer, _, suffix = axis.name.rpartition(".hidden")
            kept, twin = masks.group(axis), own.twins[layer]
            for member in axis.having("in"):
                weights[member.tensor][:, member.positions[~kept].flatten()] = False
            if suffix in _last_level(twin):
                start = twin.hidden_size if suffix.endswith("_reverse") else 0
                tops[axis.name] = layer, slice(start, start + axis.size), kept
                for consumer, columns in readings[layer].columns.items() if readings[layer].complete else ():
                    lost = [c for c, (n, kind) in columns.items() if kind == "y" and start <= n < start + axis.size]
                    lost = [c for c in lost if not kept[columns[c][0] - start]]
                    for tensor in _inputs_of(own, consumer):
                        weights[tensor][:, lost] = False
            elif readings[layer].state and not readings[layer].complete:
                tops[axis.name] = layer, None, kept
            if axis.name in tops:
                row = Member(f"{axis.name}.read", 1, torch.arange(axis.size)[:, None], "in")
                axis = replace(axis, members=(*axis.members, row))
        axes.append(axis)
    before = None
    while before != (before := sum(int(w.sum()) for w in weights.values())):
        for name, (layer, place, kept) in tops.items():
            if place is None:  # a lower level whose state somebody may read
                weights[f"{name}.read"] = torch.ones(1, len(kept), dtype=torch.bool)
            else:
                alive = torch.zeros(_width(own, layer), dtype=torch.bool)
                alive[place] = kept
                weights[f"{name}.read"] = _read_neurons(own, layer, readings[layer], weights, alive)[None, place]
        closed = close(Masks(tuple(axes), weights, groups))
        weights = dict(closed.weights)
    for axis in closed.of_kind("hidden"):
        if not closed.groups[axis.name].any():
            raise ValueError(
                f"{axis.name} would keep none of its {axis.size} neurons, so nothing would be left to run; "
                "raise the threshold, train longer, or lower kl_weight"
            )
    return closed


def _folded(own, closed, means, parameters, readings, scales):
    """Masked weights with every scale in them but that on an output whose readers are not known."""
    tensors = {name: p * closed.weights[name] if name in closed.weights else p for name, p in parameters.items()}

    def fold(tensor, dim, positions, values):
        factor = torch.ones(tensors[tensor].shape[dim], dtype=values.dtype)
        factor[positions] = values
        tensors[tensor] = tensors[tensor] * (factor[:, None] if dim == 0 else factor)

    for axis in closed.axes:
        mean = means.get(axis.name)
        if mean is None:
            continue
        for member in axis.having("out" if axis.kind == "gates" else "in"):
            if member.tensor in tensors:
                fold(member.tensor, member.dim, member.positions, mean[:, None].expand(member.positions.shape))
    for name, reading in readings.items():
        scale = scales.get(name)
        if scale is not None and reading.complete:
            for consumer, columns in reading.columns.items():
                mine = {c: n for c, (n, kind) in columns.items() if kind == "y"}
                for tensor in _inputs_of(own, consumer):
                    fold(tensor, 1, torch.tensor(list(mine), dtype=torch.long), scale[list(mine.values())])
    return tensors


def _output_scale(own, name, masks, means):
    """What the output of a recurrent layer is multiplied with, [width]; None where it has no scale."""
    twin = own.twins[name]
    names = [f"{name}.hidden{suffix}" for suffix in _last_level(twin)]
    if names[0] not in means:
        return None
    return torch.cat([means[axis] * masks.groups[axis] for axis in names])


# ---- the small model


class SmallRecurrent(nn.Module):
    """A stack of torch layers without the removed neurons, called as the layer it stands for.

    A level is a layer as wide as the direction that keeps more; the other has neurons without weights, which stay at
    zero. A constant gate is a row of zeros with its bias: σ(b) or tanh(b) at every step.

    levels    the layers                                     places    per level: columns of its output that are neurons
    kept      per level and direction: which neurons of the model's layer they are
    reads     columns of the input that are read; None: all
    spread    places of what goes out in the outer width; None: it goes out side by side
    scale     what goes out is multiplied with; None: 1
    Final states have the outer width; removed neurons are zero there.
    """

    hands_out_state = True

    def __init__(self, module, levels, places, kept, reads, spread, scale):
        super().__init__()
        self.kind, self.hidden_size, self.dropout = type(module).__name__, module.hidden_size, module.dropout
        self.width = module.hidden_size * (2 if module.bidirectional else 1)
        self.batch_first, self.bidirectional, self.num_layers = (
            module.batch_first,
            module.bidirectional,
            module.num_layers,
        )
        self.levels = nn.ModuleList(levels)
        for level, columns in enumerate(places):
            self.register_buffer(f"places_l{level}", columns)
        self.suffixes = list(kept)
        for suffix, neurons in kept.items():
            self.register_buffer("kept" + suffix, neurons)
        self.register_buffer("reads", reads)
        self.register_buffer("spread", spread)
        self.register_buffer("scale", scale)

    def extra_repr(self):
        kept = ", ".join(f"{s[1:]} {len(getattr(self, 'kept' + s))}/{self.hidden_size}" for s in self.suffixes)
        return f"{self.kind}, neurons {kept}" + ("" if self.spread is None else f", output {self.width} wide")

    def forward(self, input, hx=None):
        x = input if self.reads is None else like(input, lambda v: v.index_select(-1, self.reads))
        directions, finals = len(self.suffixes) // len(self.levels), []
        for level, layer in enumerate(self.levels):
            if level and self.dropout:
                x = like(x, lambda v: F.dropout(v, self.dropout, self.training))
            rows = range(level * directions, (level + 1) * directions)
            initial = (
                None if hx is None else tree_map(lambda s, rows=rows, w=layer.hidden_size: self._narrow(s, rows, w), hx)
            )
            x, final = layer(x, initial)
            places = getattr(self, f"places_l{level}")
            x = like(x, lambda v, places=places: v.index_select(-1, places))
            finals.append(tree_map(lambda s, rows=rows: self._wide(s, rows), final))
        if self.scale is not None:
            x = like(x, lambda v: v * self.scale)
        if self.spread is not None:
            x = like(x, lambda v: v.new_zeros(*v.shape[:-1], self.width).index_copy(-1, self.spread, v))
        if isinstance(finals[0], tuple):
            return x, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        return x, torch.cat(finals)

    def _narrow(self, state, rows, width):
        """The model's state [layers·D, (B,) H] → this level's, [D, (B,) width]."""
        parts = [state[row].index_select(-1, getattr(self, "kept" + self.suffixes[row])) for row in rows]
        return torch.stack([F.pad(part, (0, width - part.shape[-1])) for part in parts])

    def _wide(self, state, rows):
        """This level's state → its rows of the model's."""
        wide = state.new_zeros(*state.shape[:-1], self.hidden_size)
        for place, row in enumerate(rows):
            kept = getattr(self, "kept" + self.suffixes[row])
            wide[place] = wide[place].index_copy(-1, kept, state[place][..., : len(kept)])
        return wide


class SmallEmbedding(nn.Module):
    """An embedding without the rows that are zero: those words share one row of zeros."""

    def __init__(self, weight, words):
        super().__init__()
        lookup = torch.full((len(words),), int(words.sum()))
        lookup[words] = torch.arange(int(words.sum()))
        self.register_buffer("lookup", lookup.to(torch.int32))
        self.register_buffer("weight", F.pad(weight[words], (0, 0, 0, 1)))

    def extra_repr(self):
        return f"{len(self.lookup)} words, {len(self.weight) - 1} with a row, {self.weight.shape[1]} wide"

    def forward(self, input):
        return F.embedding(self.lookup[input], self.weight)


def _plain_copy(model, study):
    """The model's own copy without the method; pruned by torch, its zeros are made permanent."""
    forwards = {module: module.__dict__.pop("forward") for module in (study.own.modules.values() if study else ())}
    try:
        plain = copy.deepcopy(model)
    finally:
        for module, forward in forwards.items():
            module.forward = forward
    if study:
        plain._forward_pre_hooks.pop(study.hook.id)
    for module in plain.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return plain.eval()


def _rebuilt(small, own, closed, tensors, readings, scales, narrow):
    """`small`, a plain copy, with smaller modules in it → small, what became of each (name → words)."""
    narrowed = {name for name, reading in readings.items() if narrow and reading.narrow}
    kept = {name: _kept_outputs(own, name, closed, reading, tensors) for name, reading in readings.items()}
    incoming = {name: torch.ones(_inward(m), dtype=torch.bool) for name, m in own.modules.items() if _inward(m)}
    for name in narrowed:
        for consumer, columns in readings[name].columns.items():
            for column, (neuron, _) in columns.items():
                incoming[consumer][column] &= kept[name][neuron]
    layers = {}
    for name, module in own.modules.items():
        full = {n: tensors[own.canonical[f"{name}.{n}"]] for n in matrix_and_bias_names(module)}
        if name in own.twins:
            spread = None if name in narrowed else kept[name].nonzero().flatten()
            scale = None if readings[name].complete or scales[name] is None else scales[name][kept[name]]
            outputs = kept[name][_last_kept(own, name, closed)]
            new = _small_recurrent(own, name, closed, full, incoming[name], outputs, spread, scale)
        elif own.is_tied(name):
            continue
        elif isinstance(module, nn.Embedding):
            weight = full["weight"][:, kept[name]] if name in narrowed else full["weight"]
            new = SmallEmbedding(weight, weight.any(1))
        else:
            new = nn.Linear(int(incoming[name].sum()), module.out_features, "bias" in full).to(full["weight"])
            for own_name, value in full.items():
                getattr(new, own_name).data = (value[:, incoming[name]] if value.dim() == 2 else value).clone()
        parent, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(parent), leaf, new.eval().to(next(module.parameters()).device))
        layers[name] = new.extra_repr()
        if name in readings and name not in narrowed:
            why = "its final state is read" if readings[name].state else "its readers are not all known"
            layers[name] += f"; {why}, so the output keeps its width"
    for name in own.parameters:  # tied tensors stay where they are, with their zeros
        module, _, leaf = name.rpartition(".")
        if own.is_tied(module):
            getattr(small.get_submodule(module), leaf).data.copy_(tensors[name])
    return small, layers


def _inward(module):
    """Columns a module reads; 0 for an embedding."""
    return getattr(module, "in_features", getattr(module, "input_size", 0))


def _kept_outputs(own, name, closed, reading, tensors):
    """bool [width]: the outputs of a layer that are still there."""
    if name in own.twins:
        kept = _last_kept(own, name, closed)
        return kept & _read_neurons(own, name, reading, tensors, kept)
    alive = tensors[own.canonical[f"{name}.weight"]].any(0)
    return alive & _read_neurons(own, name, reading, tensors, alive)


def _last_kept(own, name, closed):
    """bool [width]: the neurons of a stack's last level that are still there."""
    return torch.cat([closed.groups[f"{name}.hidden{suffix}"] for suffix in _last_level(own.twins[name])])


def _small_recurrent(own, name, closed, full, incoming, outputs, spread, scale):
    """`SmallRecurrent` of a layer. full: its masked tensors; incoming: bool, input columns that still arrive;
    outputs: bool over the last level's kept neurons, those that go out."""
    module, twin = own.modules[name], own.twins[name]
    ends, gates = ("", "_reverse") if twin.bidirectional else ("",), len(twin.cell.gates)
    used = torch.stack([full[f"weight_ih_l0{end}"].any(0) for end in ends]).any(0)
    if not used.any():  # torch has no layer without an input
        used |= incoming & (incoming.cumsum(0) == 1)
    reads = None if bool((used | ~incoming).all()) else used[incoming].nonzero().flatten()
    columns, levels, places, kept = used & incoming, [], [], {}
    for level in range(twin.num_layers):
        keep = [closed.groups[f"{name}.hidden_l{level}{end}"] for end in ends]
        width = max(int(k.sum()) for k in keep)
        shape = {"bias": module.bias, "batch_first": module.batch_first, "bidirectional": module.bidirectional}
        shape |= {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
        layer = type(module)(int(columns.sum()), width, **shape).to(full["weight_hh_l0"])
        for end, k in zip(ends, keep, strict=True):
            rows = torch.cat([gate * width + torch.arange(int(k.sum())) for gate in range(gates)])
            for own_name in module._flat_weights_names:
                kind, _, suffix = own_name.partition("_l")
                if suffix != f"{level}{end}":
                    continue
                tensor = full[own_name][k.repeat(gates)]
                small = getattr(layer, f"{kind}_l0{end}").data.zero_()
                if kind == "weight_ih":
                    small[rows] = tensor[:, columns]
                elif kind == "weight_hh":
                    small[rows, : int(k.sum())] = tensor[:, k]
                else:
                    small[rows] = tensor
            kept[f"_l{level}{end}"] = k.nonzero().flatten()
        levels.append(layer)
        places.append(torch.cat([d * width + torch.arange(int(k.sum())) for d, k in enumerate(keep)]))
        columns = torch.cat(keep)
    places[-1] = places[-1][outputs]
    return SmallRecurrent(module, levels, places, kept, reads, spread, scale)


def _weights(model):
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return sum(int((t != 0).sum()) for t in tensors if t.dim() == 2 and t.is_floating_point())


def _bytes(model):
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    )


def _milliseconds(model, small, example, rounds=9):
    times, device = {model: [], small: []}, answer(model, example)[0].device
    for _ in range(rounds):
        for each_model, taken in times.items():
            wait(device)
            start = time.perf_counter()
            answer(each_model, example)
            wait(device)
            taken.append(1e3 * (time.perf_counter() - start))
    return tuple(statistics.median(taken) for taken in times.values())
