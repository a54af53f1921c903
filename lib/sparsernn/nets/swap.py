"""Small layers in the places of large ones: closure over who really reads whom, folding of scales, and the swap itself."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils._pytree import tree_map

from .axes import Member
from .found import Shape, parameter_names
from .layers import kind_of
from .masks import Masks, close
from .outside import deep_copy
from .readers import Reading, like, who_reads


def reading_of(model, own, name, example, given):
    readers = {n: m for n, m in own.layers.items() if n != name and kind_of(m) is not nn.Embedding}
    if name in given:
        if unknown := [reader for reader in given[name] if reader not in readers]:
            raise ValueError(f"consumers of {name}: no such module {unknown[0]!r}; there are: {', '.join(readers)}")
        width = _width(own, name)
        for reader in given[name]:
            if (reads := _inward(readers[reader])) != width:
                raise ValueError(f"consumers of {name}: {reader} reads {reads} columns, the layer has {width} outputs")
        columns = {column: (column, "y") for column in range(width)}
        return Reading(dict.fromkeys(given[name], columns), complete=True)
    return who_reads(model, own.layers[name], readers, example)


def _width(own, name):
    module = own.layers[name]
    if name in own.recurrent:
        return module.hidden_size * (2 if module.bidirectional else 1)
    return module.embedding_dim


def _last_level(twin):
    """The suffixes of a stack's last level, one a direction."""
    return twin.suffixes()[-2 if twin.bidirectional else -1 :]


def _inputs_of(own, consumer):
    """The matrices whose columns are a module's input."""
    if consumer in own.recurrent:
        return [f"{consumer}.weight_ih{s}" for s in Shape(own.layers[consumer]).suffixes() if s.startswith("_l0")]
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


def closed_over(own, masks, readings):
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
            kept, twin = masks.group(axis), Shape(own.layers[layer])
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


def folded(own, closed, means, parameters, readings, scales):
    """Masked weights with every scale in them but that on an output whose readers are not known."""
    tensors = {name: p * closed.weights[name] if name in closed.weights else p for name, p in parameters.items()}

    for axis in closed.axes:
        if axis.name in means:
            axis.multiply(tensors, means[axis.name], "out" if axis.kind == "gates" else "in")
    for name, reading in readings.items():
        scale = scales.get(name)
        if scale is not None and reading.complete:
            for consumer, columns in reading.columns.items():
                mine = {c: n for c, (n, kind) in columns.items() if kind == "y"}
                for tensor in _inputs_of(own, consumer):
                    factor = torch.ones(tensors[tensor].shape[1], dtype=scale.dtype)
                    factor[list(mine)] = scale[list(mine.values())]
                    tensors[tensor] = tensors[tensor] * factor
    return tensors


def output_scale(own, name, masks, means):
    """What the output of a recurrent layer is multiplied with, [width]; None where it has no scale."""
    twin = Shape(own.layers[name])
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
    places_out    places of what goes out in the outer width; None: it goes out side by side
    scale     what goes out is multiplied with; None: 1
    Final states have the outer width; removed neurons are zero there.
    """

    hands_out_state = True

    def __init__(self, module, levels, places, kept, reads, places_out, scale):
        super().__init__()
        self.kind, self.hidden_size, self.dropout = kind_of(module).__name__, module.hidden_size, module.dropout
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
        self.register_buffer("places_out", places_out)
        self.register_buffer("scale", scale)

    def extra_repr(self):
        kept = ", ".join(f"{s[1:]} {len(getattr(self, 'kept' + s))}/{self.hidden_size}" for s in self.suffixes)
        return f"{self.kind}, neurons {kept}" + ("" if self.places_out is None else f", output {self.width} wide")

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
        if self.places_out is not None:
            x = like(x, lambda v: v.new_zeros(*v.shape[:-1], self.width).index_copy(-1, self.places_out, v))
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


def plain_copy(model):
    """A copy of the model without the method; pruned by torch, its zeros are made permanent."""
    copied = deep_copy(model)
    if (study := copied.__dict__.get("_sparsernn_study")) is not None:
        study.detach()
    for module in copied.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if kind_of(module) is nn.Embedding and module.max_norm is not None:  # as it would be at its first look-up
            with torch.no_grad():
                torch.embedding_renorm_(
                    module.weight, torch.arange(len(module.weight)), module.max_norm, module.norm_type
                )
    return copied.eval()


def rebuilt(small, own, closed, tensors, readings, scales, narrow, outside=()):
    """`small`, a plain copy, with smaller modules in it → small, what became of each (name → words)."""
    narrowed = {name for name, reading in readings.items() if narrow and reading.narrow and name not in outside}
    kept = {name: _kept_outputs(own, name, closed, reading, tensors) for name, reading in readings.items()}
    incoming = {name: torch.ones(_inward(m), dtype=torch.bool) for name, m in own.layers.items() if _inward(m)}
    for name in narrowed:
        for consumer, columns in readings[name].columns.items():
            for column, (neuron, _) in columns.items():
                incoming[consumer][column] &= kept[name][neuron]
    layers = {}
    for name, module in own.layers.items():
        full = {n: tensors[own.canonical[f"{name}.{n}"]] for n in parameter_names(module)}
        if name in own.recurrent:
            places_out = None if name in narrowed else kept[name].nonzero().flatten()
            scale = None if readings[name].complete or scales[name] is None else scales[name][kept[name]]
            outputs = kept[name][_last_kept(own, name, closed)]
            new = _small_recurrent(own, name, closed, full, incoming[name], outputs, places_out, scale)
        elif own.is_tied(name) or name in outside:
            continue
        elif kind_of(module) is nn.Embedding:
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
        if own.is_tied(module) or module in outside:
            getattr(small.get_submodule(module), leaf).data.copy_(tensors[name])
    return small, layers


def _inward(module):
    """Columns a module reads; 0 for an embedding."""
    return getattr(module, "in_features", getattr(module, "input_size", 0))


def _kept_outputs(own, name, closed, reading, tensors):
    """bool [width]: the outputs of a layer that are still there."""
    if name in own.recurrent:
        kept = _last_kept(own, name, closed)
        return kept & _read_neurons(own, name, reading, tensors, kept)
    alive = tensors[own.canonical[f"{name}.weight"]].any(0)
    return alive & _read_neurons(own, name, reading, tensors, alive)


def _last_kept(own, name, closed):
    """bool [width]: the neurons of a stack's last level that are still there."""
    return torch.cat([closed.groups[f"{name}.hidden{suffix}"] for suffix in _last_level(Shape(own.layers[name]))])


def _small_recurrent(own, name, closed, full, incoming, outputs, places_out, scale):
    """`SmallRecurrent` of a layer. full: its masked tensors; incoming: bool, input columns that still arrive;
    outputs: bool over the last level's kept neurons, those that go out."""
    module, twin = own.layers[name], Shape(own.layers[name])
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
        layer = kind_of(module)(int(columns.sum()), width, **shape).to(full["weight_hh_l0"])
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
    return SmallRecurrent(module, levels, places, kept, reads, places_out, scale)
