"""From masks to a really smaller model that computes the same function: small layers in the places of large ones.

Removed neurons leave every gate, the recurrent columns and whatever reads them; a gate that nothing reaches keeps its bias
alone; scales, and the norm of what a layer takes from its input, are multiplied into the weights. A layer of another kind
(a convolution) stays as it is. Source: 1812.05692, ISS 1709.05027.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .attached import refuse_elsewhere, studies, uncompiled
from .found import Found, Shape, declares, parameter_names
from .layers import kind_of
from .masks import close
from .outside import Start, deep_copy
from .small import become, fill, renormalise
from .states import only_to_go_on
from .wiring import Way, left_as_they_are, readings, wired


def compact(model, masks, means=None, example=None):
    """A copy of `model` with small layers in it that computes what `model` computes under `masks`.

    masks    `Masks` as a method reads them off (closed here, see `masks.close`)
    means    axis name → mean of its group variable
    example  what a model that declares no axes (`axes()`) is called with: who reads whom is found by running it
    Equal to the masked model to 1e-9 in float64 (tests/test_compact.py); `sparsernn.compact` also proves it.
    """
    return shrunk(model, masks, means, example)[0]


def shrunk(model, masks, means=None, example=None):
    """→ `compact` of the same, and the closed masks it follows."""
    refuse_elsewhere(model, "compact")
    small, ways, left = plain_copy(model), {}, {}
    found = Found(small)
    if not declares(small):
        start = Start(small)
        left = left_as_they_are(found, start, [example])
        to_go_on = only_to_go_on(found, start, [example], {})
        masks, ways = wired(found, masks, readings(found, start, [example], {}, left, to_go_on))
    swap = _Swap(found, masks, means or {}, ways, left)
    return swap.swapped(small)[0], swap.closed


def plain_copy(model):
    """A copy of the model in evaluation, without the method; what torch's own tools made of a weight is made permanent."""
    copied = deep_copy(uncompiled(model))
    for study in studies(copied).values():
        study.detach()
    for module in copied.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    renormalise(copied)
    return copied.eval()


def layer_of(tensor):
    """`lstm.weight_hh_l0` → `lstm`."""
    return tensor.rpartition(".")[0]


def swapped(small, found, masks, means, ways, fixed=()):
    """`small`, a plain copy, with small layers in it → small, what became of each (name → words).

    found   of that copy            ways   layer → `Way` of its output; others: all who read it are named by the axes
    fixed   names of layers that stay as they are, with zeros for weights that are masked (tied ones do by themselves)
    """
    return _Swap(found, masks, means, ways, fixed).swapped(small)


class _Swap:
    """What is left, and layer by layer its shape and its numbers.

    closed    masks closed over who reads whom        tensors   masked weights with scales multiplied in
    sent      axis → bool [size]: neurons whose output leaves the layer that writes them
    narrow    names of layers whose output gets narrower
    arriving  layer → bool: columns of its input that are still given
    """

    def __init__(self, found, masks, means, ways, fixed):
        self.apart, self.scales_apart = self._scaled_apart(found, masks, means), (masks, means)
        masks = replace(masks, groups={n: g for n, g in masks.groups.items() if n not in self.apart.values()})
        means = {name: mean for name, mean in means.items() if name not in self.apart.values()}
        self.found, self.masks, self.means = found, masks, means
        self.fixed = {name for name in found.layers if name in fixed or found.is_tied(name)}
        self.ways = {name: ways.get(name, Way({})) for name in found.layers}
        read = {axis: some for way in self.ways.values() for axis, some in way.read.items()}
        axes = tuple(axis if axis.kind == "gates" else self._apart_from_fixed(axis, read) for axis in masks.axes)
        for axis in axes:
            if axis.apart and not (way := self.ways[self.home(axis)]).wide:
                self.ways[self.home(axis)] = replace(way, wide=True, why="what follows it needs the width")
        self.masks = masks = replace(masks, axes=axes)
        self.axes = [axis for axis in axes if axis.kind != "gates"]
        self.closed = close(masks, read)
        self.tensors = self._folded()
        self.sent, self.narrow = {}, set()
        for axis in self.axes:
            self.sent[axis.name] = self.closed.groups[axis.name]
            if (name := self.home(axis)) is not None:
                some = read.get(axis.name, torch.zeros(axis.size, dtype=torch.bool))
                for member in self.readers(axis):
                    some = some | member.read(_lines(self.closed.weights[member.tensor], member.dim))
                self.sent[axis.name] = self.sent[axis.name] & some
                if self._leaves(axis) and some.any() and not self.ways[name].wide and name not in self.fixed:
                    self.narrow.add(name)  # one of whose output nothing is left keeps its width: it says zeros
        self.arriving = {
            name: torch.ones(_inward(m), dtype=torch.bool) for name, m in found.layers.items() if _inward(m)
        }
        for axis in self.axes:
            if self._leaves(axis) and self.home(axis) in self.narrow:
                for member in self.readers(axis):
                    lines = member.positions[~self.sent[axis.name]]
                    self.arriving[layer_of(member.tensor)][lines[lines >= 0]] = False

    def _apart_from_fixed(self, axis, read):
        """The axis without members whose layers stay as they are: what they read is noted in `read`, the layer that writes
        it keeps its width, and scales what leaves it."""
        name, masks = self.home(axis), self.masks
        everything = torch.ones(axis.size, dtype=torch.bool)
        if any(member.tied for member in axis.having("out")):  # its columns are another's too: who reads them is scaled
            self.ways[name] = Way({}, True)
            return axis
        if name in self.fixed:  # whatever it says is read
            read[axis.name] = everything
            self.ways[name] = Way({}, True, self.scaled(axis))
            return axis
        stay = [
            m
            for m in self.readers(axis)
            if layer_of(m.tensor) in self.fixed or layer_of(m.tensor) not in self.found.layers
        ]
        if not stay:
            return axis
        if axis.kind == "vocabulary":  # who shares a look-up's weights has a use for every word
            read[axis.name] = everything
            return axis
        if name is None:
            return axis
        read[axis.name] = read.get(axis.name, ~everything)
        for member in stay:
            some = member.read(_lines(masks.weights[member.tensor], member.dim))
            read[axis.name] = read[axis.name] | (some & masks.group(axis) if member.role == "in" else some)
        why = self.ways[name].why or "a layer that stays as it is reads it"
        self.ways[name] = Way(self.ways[name].read, True, self.ways[name].scaled or self.scaled(axis), why)
        return replace(axis, members=tuple(m for m in axis.members if not any(m is other for other in stay)))

    @staticmethod
    def _scaled_apart(found, masks, means):
        """Tied embedding → the axis of its words, where they have a scale: what shares its weights does not have it."""
        apart, scales = {}, {axis.name: axis for axis in masks.axes if axis.kind == "vocabulary"}
        for name, axis in scales.items():
            owners = [layer_of(member.tensor) for member in axis.having("scale")]
            tied = [
                n for n in owners if n in found.layers and found.is_tied(n) and kind_of(found.layers[n]) is nn.Embedding
            ]
            scale = means.get(name, torch.ones(axis.size)) * masks.group(axis)
            if tied and bool((scale != 1).any()):
                apart |= dict.fromkeys(tied, name)
        return apart

    def _apart(self, small, name, masks, means):
        """The embedding with its scale, on its own."""
        module, axis = small.get_submodule(name), self.apart[name]
        weight = self.tensors[self.found.canonical[f"{name}.weight"]]
        scale = means.get(axis, torch.ones(len(weight))).to(weight) * masks.groups.get(axis, torch.tensor(True)).to(
            weight.device
        )
        spec, tensors = self._embedding(name, module, {"weight": (weight * scale[:, None]).cpu()})
        become(module, spec)
        fill(module, {own: tensor.to(weight.device) for own, tensor in tensors.items()})
        return module.extra_repr() + "; no longer tied: its words have a scale"

    def swapped(self, small):
        said = {name: self.layer(small, name) for name in self.found.layers if name not in self.fixed}
        for name in self.closed.weights:
            if layer_of(name) not in self.found.layers or layer_of(name) in self.fixed:
                weight = getattr(small.get_submodule(layer_of(name)), name.rpartition(".")[2])
                if isinstance(weight, nn.Parameter):  # not one that is computed anew in each call
                    weight.data.copy_(self.tensors[name])
        said |= {name: self._apart(small, name, *self.scales_apart) for name in self.apart}
        return small, said

    def home(self, axis):
        """The layer that writes an axis; None for words and other inputs that no layer of the model makes."""
        names = (layer_of(member.tensor) for member in axis.having("out"))
        return next((name for name in names if name in self.found.layers), None)

    def readers(self, axis):
        """Members of those who read an axis, other than the layer that writes it."""
        return [member for member in axis.having("in", "state") if layer_of(member.tensor) != self.home(axis)]

    def scaled(self, axis):
        return axis.name in self.means or axis.name in self.masks.groups

    def _leaves(self, axis):
        """Whether the neurons are a layer's output: those of a stack's last level, columns of an embedding."""
        name = self.home(axis)
        if axis.kind != "hidden" or name not in self.found.recurrent:
            return name is not None
        last = f"_l{self.found.layers[name].num_layers - 1}"
        return any(m.tensor.removesuffix("_reverse").endswith("weight_hh" + last) for m in axis.having("out"))

    def _folded(self):
        """Masked weights with every scale in them but those of `Way.scaled`."""
        plain = {name: p.detach() for name, p in self.found.parameters.items()}
        for name, mask in self.closed.weights.items():
            p = self.found.parameters.get(name)
            p = self.found.model.get_parameter(name) if p is None else p
            plain[name] = p.detach() * mask.to(p.device)
        tensors = {name: p.double() for name, p in plain.items()} if self.means else plain
        for axis in self.closed.axes:
            if axis.name not in self.means:
                continue
            name, value, roles = (
                None if axis.kind == "gates" else self.home(axis),
                self.means[axis.name].double(),
                ("in",),
            )
            if axis.kind == "gates" or (name is not None and axis.kind != "hidden" and self.ways[name].scaled):
                roles = ("out",)
            members = axis.having(*roles)
            if axis.kind == "gates":  # rows that are another direction's too: see `_own_rows`
                members = [member for member in members if not member.tied]
            if axis.kind == "hidden" and name is not None and self.ways[name].scaled and self._leaves(axis):
                members = [member for member in members if layer_of(member.tensor) == name]
            axis.multiply(tensors, value, members)
        return {name: tensor.to(plain[name].dtype) for name, tensor in tensors.items()}

    def layer(self, small, name):
        """Make one layer of the copy small → what became of it, in words."""
        module = small.get_submodule(name)
        make = {nn.Linear: self._linear, nn.Embedding: self._embedding}.get(kind_of(module), self._recurrent)
        full = {own: self.tensors[self.found.canonical[f"{name}.{own}"]] for own in parameter_names(module)}
        full |= self._own_rows(name, module, full) if name in self.found.recurrent else {}
        training, device = module.training, next(iter(full.values())).device
        spec, tensors = make(name, module, {own: tensor.cpu() for own, tensor in full.items()})
        become(module, spec)
        fill(module, {own: tensor.clone().contiguous().to(device) for own, tensor in tensors.items()})
        module.train(training)
        said = module.extra_repr()
        if name not in self.narrow and any(self.home(axis) == name for axis in self.axes):
            said += f"; {self.ways[name].why or 'nothing of its output is read'}, so the output keeps its width"
        return said

    def _linear(self, name, module, full):
        weight = full["weight"][:, self.arriving[name]]
        used = weight.any(0)
        few = 2 * int(used.sum()) < len(used) or (self._axis("vocabulary", f"{name}.weight") and not bool(used.all()))
        tensors = {"weight": weight[:, used], "_small.reads": used.nonzero().flatten()} if few else {"weight": weight}
        spec = {"inputs": len(used), "reads": int(used.sum()) if few else None}
        return spec, tensors | {own: tensor for own, tensor in full.items() if own == "bias"}

    def _embedding(self, name, module, full):
        columns = torch.ones(module.embedding_dim, dtype=torch.bool)
        for axis in self.axes if name in self.narrow else ():
            if self.home(axis) == name:
                columns = axis.having("out")[0].along(self.sent[axis.name], module.embedding_dim, rest=True)
        weight, words = full["weight"][:, columns], full["weight"].any(1)
        if bool(words.all()):
            return {"rows": None, "columns": weight.shape[1]}, {"weight": weight}
        rows = torch.cat([weight[words], weight.new_zeros(1, weight.shape[1])])
        spec = {"rows": int(words.sum()), "columns": weight.shape[1]}
        return spec, {"weight": rows, "_small.kept": words.nonzero().flatten()}

    def _recurrent(self, name, module, full):
        shape = Shape(module)
        cell, suffixes, ends = shape.cell, shape.suffixes(), shape.ends()
        hidden = {suffix: self._axis("hidden", f"{name}.weight_hh{suffix}", "out") for suffix in suffixes}
        kept = {suffix: self.closed.groups[axis.name] for suffix, axis in hidden.items()}
        out, arriving = len(shape.abreast()), self.arriving[name]
        last = suffixes[-len(ends) :][:out]
        sends = torch.cat([self.sent[hidden[s].name] if name in self.narrow else kept[s] for s in last])
        scale = None
        if self.ways[name].scaled and self.scaled(hidden[last[0]]):
            scales = [
                self.means.get(a.name, torch.ones(a.size)).cpu() * self.masks.group(a) for a in map(hidden.get, last)
            ]
            scale = torch.cat(scales).to(full["weight_hh_l0"])
        one_hot = self._axis("vocabulary", f"{name}.weight_ih_l0") is not None
        used = torch.stack([full[f"weight_ih_l0{end}"].any(0) for end in ends]).any(0) & arriving
        enough = bool(used.all()) if one_hot else 2 * int(used.sum()) >= int(arriving.sum())
        if enough and scale is None and bool(sends.all()) and all(bool(k.all()) for k in kept.values()):
            narrow = {own: t[:, arriving] if own.startswith("weight_ih_l0") else t for own, t in full.items()}
            return {"inputs": int(arriving.sum()), "kept": None}, narrow
        if not one_hot and not used.any():  # torch has no layer without an input
            used = arriving & (arriving.cumsum(0) == 1)
        reads = None if one_hot or bool((used | ~arriving).all()) else used[arriving].nonzero().flatten()
        words = used.nonzero().flatten() if one_hot else None
        spec = {"inputs": int(arriving.sum()), "reads": None if reads is None else len(reads)}
        spec |= {"words": None if words is None else len(words), "kept": {s: int(k.sum()) for s, k in kept.items()}}
        spec |= {"sends": int(sends.sum()), "wide": name not in self.narrow, "scaled": scale is not None}
        tensors = {"_small.kept" + suffix: k.nonzero().flatten() for suffix, k in kept.items()}
        tensors |= {"_small.sends": sends[torch.cat([kept[suffix] for suffix in last])].nonzero().flatten()}
        for own, tensor in (("reads", reads), ("words", words), ("scale", None if scale is None else scale[sends])):
            tensors |= {} if tensor is None else {"_small." + own: tensor}
        columns = used
        for number in range(module.num_layers):
            keep = [kept[f"_l{number}{end}"] for end in ends]
            for end, parts in _level(cell, full, number, ends, keep, columns, one_hot and number == 0):
                tensors |= {f"{own}_l{number}{end}": tensor for own, tensor in parts.items()}
            columns = torch.cat(keep[:out])
        return spec, tensors

    def _own_rows(self, name, module, full):
        """The input matrices and their biases with each direction's own norm, and scale of gates where it shares its rows.

        s ⊙ (norm(W x) + …) + b, the norm being scale ⊙ W x + shift: W gets s ⊙ scale, b gets s ⊙ shift."""
        twin, own = Shape(module), {}
        for suffix in twin.suffixes():
            ih, norm = "weight_ih" + suffix, twin.norm(suffix)
            if norm is None and not twin.shared_input:
                continue
            gates = self._evaluated(f"{name}.gates{suffix}", len(full[ih])).to(full[ih].device)
            own[ih] = (full[ih].double() * gates[:, None]).to(full[ih].dtype) if twin.shared_input else full[ih]
            if norm is not None:
                bias = "bias_ih" + suffix
                own[ih], own[bias] = norm.folded(own[ih], full[bias], gates)
        return own

    def _evaluated(self, scale, size):
        """What a scale [size] is in evaluation: the mean of its axis' variable, 0 where that is masked; ones without one."""
        for axis in self.closed.axes:
            if any(member.tensor == scale for member in axis.having("scale")):
                mean = self.means.get(axis.name)
                value = torch.ones(axis.size, dtype=torch.float64) if mean is None else mean.double()
                return value * self.masks.group(axis).to(value)
        return torch.ones(size, dtype=torch.float64)

    def _axis(self, kind, tensor, role="in"):
        """The axis of a kind of which a tensor is a member, None where there is none."""
        tensor = self.found.canonical[tensor]
        return next((a for a in self.axes if a.kind == kind and any(m.tensor == tensor for m in a.having(role))), None)


def _lines(tensor, dim):
    """bool: which lines along a dimension have an entry."""
    return tensor.movedim(dim, 0).flatten(1).any(1)


def _inward(module):
    """Columns a module reads; 0 for an embedding."""
    return getattr(module, "in_features", getattr(module, "input_size", 0))


def _level(cell, full, number, ends, keep, columns, one_hot):
    """A level's tensors, direction by direction. keep: bool [H] of each; columns: bool, what is left of the level below."""
    width, gates = max(1, *(int(k.sum()) for k in keep)), len(cell.gates)
    for end, k in zip(ends, keep, strict=True):
        rows = torch.cat([gate * width + torch.arange(int(k.sum())) for gate in range(gates)])
        names = [own for own in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if f"{own}_l{number}{end}" in full]
        mine, parts = {own: full[f"{own}_l{number}{end}"][k.repeat(gates)] for own in names}, {}
        mine["weight_ih"] = mine["weight_ih"][:, columns]
        if one_hot or not mine["weight_ih"].shape[1]:  # a removed word, or a level without an input: a column of zeros
            mine["weight_ih"] = F.pad(mine["weight_ih"], (0, 1))
        mine["weight_hh"] = F.pad(mine["weight_hh"][:, k], (0, width - int(k.sum())))
        if "bias_ih" in mine:
            mine["bias_ih"], mine["bias_hh"] = _joined(cell, mine["bias_ih"], mine["bias_hh"])
        for own, tensor in mine.items():
            parts[own] = tensor.new_zeros(gates * width, *tensor.shape[1:])
            parts[own][rows] = tensor
        yield end, parts


def _joined(cell, bias_ih, bias_hh):
    """The two biases with all in the first where they only ever add up."""
    first, second = bias_ih.chunk(len(cell.gates)), bias_hh.chunk(len(cell.gates))
    apart = [of_x != of_h for of_x, of_h in zip(cell.from_input, cell.from_state, strict=True)]
    if bias_ih.itemsize < 4:  # their sum would be rounded
        return bias_ih, bias_hh
    joined = [a if two else a + b for a, b, two in zip(first, second, apart, strict=True)]
    return torch.cat(joined), torch.cat([b if two else b * 0 for b, two in zip(second, apart, strict=True)])
