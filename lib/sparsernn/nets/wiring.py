"""Axes of a model that declares none: who reads whom, found by running examples, said as members of `Axis`."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .axes import Axis, Member, each
from .found import Found, Shape, is_computed, parameter_names
from .layers import kind_of
from .outside import Watch, calls_of
from .readers import Reading, answer, who_reads

STATE, SOMEBODY = "its final state is read", "its readers are not all known"


@dataclass(frozen=True)
class Way:
    """How the output of a layer leaves it.

    read    axis name → bool [size]: neurons that somebody reads whom no member of the axis names
    wide    it keeps its width, removed neurons as zeros
    scaled  its scale is applied as it leaves, not in the weights of those who read it
    why     in words, where it keeps its width
    """

    read: dict
    wide: bool = False
    scaled: bool = False
    why: str = ""


def left_as_they_are(found, start, examples):
    """Layer that must stay as it is → why: not called, its weight computed, or also read otherwise than by a call."""
    left = dict(found.left)
    for name, module in found.layers.items():
        if any(is_computed(module, own) for own in parameter_names(module)):
            left[name] = "its weight is computed in forward"
    called = set()
    for example in examples:
        with start.again() as model:
            here, owners = Found(model), {}
            for full, canonical in here.canonical.items():
                owners.setdefault(canonical, []).append(here.layers[full.rpartition(".")[0]])
            watched = {name: (parameter, owners[name]) for name, parameter in here.weights.items()}
            with calls_of(here.layers) as reached, Watch(watched) as watch:
                answer(model, example)
        called |= reached
        for full, canonical in found.canonical.items():
            if canonical in watch.read:
                left.setdefault(full.rpartition(".")[0], "its weight is also read without a call")
    for name in found.layers:
        if name not in called:
            left.setdefault(name, "no example reaches it")
    return {name: f"left as it is: {why}" for name, why in left.items()}


def readings(found, start, examples, consumers, fixed, to_go_on):
    """Producer → `Reading` over all examples, of every recurrent layer and embedding that they reach and that may change.

    consumers  producer → names of the modules that alone read its output, as it is: believed; none: who reads it is no module
    to_go_on   layers whose returned states are no part of the answer (`states.only_to_go_on`)
    Raises ValueError for a producer or a consumer that is not there, or of another width.
    """
    readers = [name for name, module in found.layers.items() if kind_of(module) is not nn.Embedding]
    for name in consumers:
        if name not in found.layers or kind_of(found.layers[name]) is nn.Linear:
            known = [each for each, module in found.layers.items() if kind_of(module) is not nn.Linear]
            raise ValueError(
                f"consumers of {name!r}: no recurrent layer or embedding of that name; there are: {', '.join(known)}"
            )
    result = {}
    for name, module in found.layers.items():
        if kind_of(module) is nn.Linear or name in fixed:
            continue
        if name in consumers:
            result[name] = _given(found, name, consumers[name], readers)
            continue
        seen = [
            who_reads(start, name, [reader for reader in readers if reader != name], example, to_go_on)
            for example in examples
        ]
        for reading in filter(None, seen):
            result[name] = result[name].and_also(reading) if name in result else reading
    return result


def _given(found, name, given, readers):
    readers = {reader: found.layers[reader] for reader in readers if reader != name}
    if unknown := [reader for reader in given if reader not in readers]:
        raise ValueError(f"consumers of {name}: no such module {unknown[0]!r}; there are: {', '.join(readers)}")
    width = _width(found.layers[name])
    for reader in given:
        reads = getattr(readers[reader], "in_features", getattr(readers[reader], "input_size", 0))
        if reads != width:
            raise ValueError(f"consumers of {name}: {reader} reads {reads} columns, the layer has {width} outputs")
    if not given:
        return Reading({}, complete=False, state=name in found.recurrent)
    columns = {column: (column, "y") for column in range(width)}
    return Reading(dict.fromkeys(given, columns), complete=True, state=False)


def _width(module):
    return getattr(module, "embedding_dim", 0) or module.hidden_size * len(Shape(module).abreast())


def wired(found, masks, readings):
    """→ masks whose axes know their readers, layer → `Way` of its output."""
    axes, ways = {axis.name: axis for axis in masks.axes}, {}
    for name, reading in readings.items():
        module = found.layers[name]
        why = "" if reading.complete and not reading.state else STATE if reading.state else SOMEBODY
        if kind_of(module) is nn.Embedding:
            size = module.embedding_dim
            members = (
                Member(found.canonical[f"{name}.weight"], 1, each(size), "out"),
                *_members(found, reading, {"y": (0,), "h": (0,)}, size),
            )
            axes[f"{name}.columns"] = Axis(f"{name}.columns", "input", size, members)
            read = {} if reading.complete else {f"{name}.columns": torch.ones(size, dtype=torch.bool)}
            ways[name] = Way(read, wide=bool(why), why=why)
            continue
        twin, size, read = Shape(module), module.hidden_size, {}
        for number in range(module.num_layers):
            for place, end in enumerate(twin.abreast()):
                axis, last = axes[f"{name}.hidden_l{number}{end}"], number + 1 == module.num_layers
                if last:
                    states = range(len(twin.ends())) if twin.summed else (place,)
                    starts = {"y": (place * size,), "h": tuple(direction * size for direction in states)}
                    more = _members(found, reading, starts, size)
                    axes[axis.name] = replace(axis, members=(*axis.members, *more))
                if not reading.complete and (reading.state or last):
                    read[axis.name] = torch.ones(axis.size, dtype=torch.bool) if reading.state else masks.group(axis)
        ways[name] = Way(read, wide=bool(why), scaled=not reading.complete, why=why)
    return replace(masks, axes=tuple(axes.values())), ways


def _members(found, reading, starts, size):
    """Members that read neurons: one a consumer's matrix, and whether from outputs ("y") or the final state ("h"), in which
    they stand from each of `starts` on."""
    for consumer, columns in reading.columns.items():
        for kind, role in (("y", "in"), ("h", "state")):
            places = [[] for _ in range(size)]
            for column, (neuron, of) in columns.items():
                for start in starts[kind]:
                    if of == kind and 0 <= neuron - start < size:
                        places[neuron - start].append(column)
            if longest := max(map(len, places)):
                positions = torch.tensor([p + [-1] * (longest - len(p)) for p in places])
                for tensor in _matrices(found, consumer):
                    yield Member(tensor, 1, positions, role)


def _matrices(found, consumer):
    """The matrices whose columns are a layer's input."""
    module = found.layers[consumer]
    if consumer not in found.recurrent:
        return [found.canonical[f"{consumer}.weight"]]
    return list(dict.fromkeys(found.canonical[f"{consumer}.weight_ih_l0{end}"] for end in Shape(module).ends()))
