"""A model as methods, masks and compaction see it: its layers by name, its matrices, its axes. Declared, or found."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .axes import Axis, Member, each, input_axis, recurrent_axes
from .layers import RECURRENT, Recurrent, kind_of
from .models import GROUPS


def declares(model):
    """Whether a model says itself what axes it has: `axes()` gives them. An attribute that is called so by chance does not."""
    axes = getattr(type(model), "axes", None)
    if not callable(axes):
        return False
    try:
        found = tuple(model.axes())
    except TypeError:  # it wants arguments, or gives nothing to go through
        return False
    return bool(found) and all(isinstance(axis, Axis) for axis in found)


READS_ITS_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Found:
    """Layers of a model that a method knows, and what to call their parameters.

    layers       name → module: exactly nn.LSTM, nn.GRU, nn.RNN, nn.Linear, nn.Embedding, or our stand-ins
    left         name → why a layer is left as it is; refused: of these, what a method would have been for
    weights      name → matrix, of every known layer; one tied to another goes by the first one's name
    canonical    name → the name it goes by
    Raises ValueError for a bare layer.
    """

    def __init__(self, model):
        self.model, self.layers, self.left, self.refused = model, {}, {}, {}
        guarded = {}
        for module in model.modules():
            if isinstance(module, READS_ITS_CHILDREN):
                guarded |= {child: type(module).__name__ for child in module.modules() if child is not module}
        for name, module in model.named_modules():
            kind = kind_of(module)
            if kind is None:
                parents = [k for k in (*RECURRENT, nn.Linear, nn.Embedding) if isinstance(module, k)]
                if hasattr(module, "_small"):
                    self.left[name] = "it is small already"
                elif parents and is_parametrized(module):
                    own = ", ".join(module.parametrizations)
                    self.left[name] = (
                        f"its {own} is computed (a parametrization); remove_parametrizations makes it permanent"
                    )
                elif parents:
                    self.left[name] = (
                        f"{type(module).__name__} is a {parents[0].__name__} with {_own(type(module), parents[0])} of its own"
                    )
            elif module in guarded:
                self.left[name] = f"its weight is read by {guarded[module]} without a call"
            elif getattr(module, "proj_size", 0):
                why = f"proj_size is {module.proj_size}; projections are not supported, use proj_size=0"
                self.left[name] = self.refused[name] = why
            else:
                self.layers[name] = module
        self._leave_shared()
        if "" in self.layers:
            raise ValueError(f"the model is a bare {type(model).__name__}; put it inside an nn.Module of your own")
        self.canonical, self.parameters, first = {}, {}, {}
        for name, module in self.layers.items():
            for own in parameter_names(module):
                parameter, full = getattr(module, own), f"{name}.{own}"
                self.canonical[full] = first.setdefault(id(parameter), full)
                self.parameters.setdefault(self.canonical[full], parameter)

    def _leave_shared(self):
        """Leave layers that share a parameter with a module that is none of them, an nn.LSTMCell say: who calls that reads it."""
        others = {}
        for name, module in self.model.named_modules():
            inside = any(name.startswith(f"{layer}.") for layer in self.layers)
            if name not in self.layers and not inside and not isinstance(module, nn.ParameterList | nn.ParameterDict):
                where = f"{name or 'the model'}, a {type(module).__name__}"
                others |= {id(p): where for p in module.parameters(recurse=False)}
        for name, module in [*self.layers.items()]:
            if own := next((n for n in parameter_names(module) if id(getattr(module, n)) in others), None):
                self.left[name] = f"its {own} is also that of {others[id(getattr(module, own))]}"
                del self.layers[name]

    @property
    def recurrent(self):
        return {name: module for name, module in self.layers.items() if kind_of(module) in RECURRENT}

    @property
    def weights(self):
        return {name: parameter for name, parameter in self.parameters.items() if parameter.dim() == 2}

    @property
    def groups(self):
        """Which axis kinds take group variables, by "voc", "wn", "wgn"."""
        return getattr(self.model, "groups", GROUPS) if declares(self.model) else GROUPS

    def is_tied(self, layer):
        """Whether a weight or bias of a layer has another place too, in it or elsewhere, but for its `shared_input`."""
        once = [canonical for full, canonical in self.canonical.items() if not self._common(full)]
        mine = [canonical for full, canonical in self.canonical.items() if full.rpartition(".")[0] == layer]
        return any(once.count(canonical) > 1 for canonical in mine)

    def _common(self, full):
        """Whether this is the input matrix of another direction, which the layer knows."""
        layer, _, own = full.rpartition(".")
        shared = getattr(self.layers[layer], "shared_input", False)
        return shared and own.startswith("weight_ih") and own.endswith("_reverse")

    def axes(self):
        """What the model declares; else words of embeddings, inputs, neurons and gates of recurrent layers."""
        if declares(self.model):
            return tuple(self.model.axes())
        return tuple(self._by_first_names(axis) for axis in self._axes())

    def _by_first_names(self, axis):
        """The axis with shared parameters under the name they go by."""
        members = (replace(m, tensor=self.canonical.get(m.tensor, m.tensor)) for m in axis.members)
        return replace(axis, members=tuple(members))

    def _axes(self):
        for name, module in self.layers.items():
            kind = kind_of(module)
            if kind is nn.Embedding:
                size = module.num_embeddings
                members = (Member(self.canonical[f"{name}.weight"], 0, each(size), "in"),)
                scale = Member(f"{name}.input", 1, each(size), "scale")
                yield Axis(f"{name}.vocabulary", "vocabulary", size, (*members, scale), variable_decides=True)
            elif kind in RECURRENT:
                twin = Shape(module)
                yield input_axis(name, twin, module.input_size, axis=f"{name}.input")
                yield from recurrent_axes(name, twin, [], prefix=f"{name}.")


def no_recurrent(found):
    """In words, that a model has no recurrent layer that can be thinned out: each that it has, and why it stays."""
    model, stay = type(found.model).__name__, dict(found.refused)
    for name, module in found.model.named_modules():
        kind = type(module)
        if isinstance(module, tuple(RECURRENT)) and name in found.left:
            stay[name] = found.left[name]
        elif isinstance(module, nn.RNNCellBase):
            stack = f"nn.{kind.__name__.removesuffix('Cell')}"
            stay[name] = (
                f"{kind.__name__} is a cell; {stack} with the same weights, called a step at a time, can be thinned out"
            )
        elif kind_of(module) is None and kind.__name__ in (known.__name__ for known in RECURRENT):
            stay[name] = (
                f"{kind.__module__}.{kind.__name__} is not torch.nn's; where it was made of one (quantised), begin with that"
            )
    if not stay:
        return f"{model} has no nn.LSTM, nn.GRU or nn.RNN inside; there is nothing to thin out"
    reasons = "; ".join(f"{name}: {why}" for name, why in stay.items())
    return f"{model} has no recurrent layer that can be thinned out, exactly nn.LSTM, nn.GRU or nn.RNN ({reasons})"


def _own(kind, parent):
    return "a forward" if kind.forward is not parent.forward else "a class"


class Shape:
    """What of a recurrent layer, torch's or ours, its axes depend on."""

    def __init__(self, module):
        ours = RECURRENT[kind_of(module)]
        self.hidden_size, self.bias, self.num_layers = module.hidden_size, module.bias, module.num_layers
        self.bidirectional, self.summed = module.bidirectional, getattr(module, "summed", False)
        self.shared_input = getattr(module, "shared_input", False)
        self.cell = ours.cell_type(getattr(module, "nonlinearity", "logistic"))
        self.norm = getattr(module, "norm", lambda suffix: None)

    ends, abreast, suffixes = Recurrent.ends, Recurrent.abreast, Recurrent.suffixes


def parameter_names(module):
    """The names of a known layer's weights and biases, also where they are computed (pruning, weight_norm)."""
    if kind_of(module) in RECURRENT:
        return list(module._flat_weights_names)
    return ["weight"] + (["bias"] if getattr(module, "bias", None) is not None else [])


def is_computed(module, name):
    """Whether a weight is no parameter of its layer: torch's pruning, weight_norm, or a value assigned in forward."""
    return not isinstance(module._parameters.get(name), torch.nn.Parameter)
