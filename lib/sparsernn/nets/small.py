"""Small layers: the same module objects, from now on without what was removed, called as before.

`become` turns a layer into one of the shape that a `spec` describes, in place: hooks, attributes and everybody who holds it
stay. `fill` then gives it its numbers. A layer of which only columns of the input went stays torch's own (or ours).

spec of a linear layer     inputs: columns that are given · reads: how many of them it takes, or None for all
spec of an embedding       rows: words that have one, or None for all · columns
spec of a recurrent layer  inputs · reads · words: of one-hot ids, those with a column, or None · kept: suffix → neurons, or
                           None for all (then nothing else is said) · sends: neurons that go out · wide: in their old
                           places · scaled: multiplied as they go out
"""

import re

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from .layers import RECURRENT, kind_of

PARAMETER = re.compile(r"((?:weight|bias)_[ih]h)_l(\d+)(_reverse)?")
STEP = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
}
LOOP = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def like(output, values):
    """An output (tensor or packed) with other values."""
    if isinstance(output, PackedSequence):
        return output._replace(data=values(output.data))
    return values(output)


class SmallLinear(nn.Linear):
    """A linear layer that takes only some columns of what it is given: `reads`."""

    def forward(self, input):
        _check_width(input, self.in_features)
        return F.linear(input.index_select(-1, self.reads), self.weight, self.bias)

    def settle(self):
        _check_index("reads", self.reads, self.in_features)

    def extra_repr(self):
        return super().extra_repr() + f", {len(self.reads)} of them read"


class SmallEmbedding(nn.Embedding):
    """An embedding without the rows that are zero: those words share one row of zeros, the last, which does not train."""

    def settle(self):
        _check_index("kept", self.kept, self.num_embeddings)
        self.register_buffer("lookup", _places(self.kept, self.num_embeddings), persistent=False)

    def places(self, ids):
        """Ids of words → of rows. Raises IndexError for a word that is not there, as torch does."""
        return self.lookup.index_select(0, ids.flatten()).view(ids.shape)

    def forward(self, input):
        how = self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        return F.embedding(self.places(input), self.weight, len(self.weight) - 1, *how)

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, {len(self.kept)} words with a row"


class SmallRecurrent(nn.RNNBase):
    """A stack of recurrent layers without the removed neurons, called as the layer it was.

    A level is a layer as wide as the direction that keeps more; the other has neurons without weights, which stay at zero.
    A constant gate is a row of zeros with its bias: σ(b) or tanh(b) at every step. States, given and returned, have the
    width they had: what is given to removed neurons is read by nobody, and they come out as zeros.

    levels  the layers, torch's or ours; their parameters are also found by their old names (`weight_hh_l1`)
    Raises RuntimeError for an input or a state of another width, as torch does.
    """

    def settle(self):
        """Check the numbers of what is kept and lay out what follows from them."""
        if self.reads is not None:
            _check_index("reads", self.reads, self.input_size)
        if self.words is not None:
            _check_index("words", self.words, self.input_size)
            self.register_buffer("lookup", _places(self.words, self.input_size), persistent=False)
        starts, ends = [], self._ends()
        for number in range(len(self.levels)):
            width, places = self.levels[number].hidden_size, []
            for direction, end in enumerate(ends):
                kept = getattr(self, f"kept_l{number}{end}")
                _check_index(f"kept_l{number}{end}", kept, self.hidden_size)
                places.append(direction * width + torch.arange(len(kept), device=kept.device))
                starts.append(kept + direction * self.hidden_size)
            places = torch.cat(places)
            if number + 1 == len(self.levels):
                _check_index("sends", self.sends, len(places))
                places = places[self.sends]
            elif not len(places):  # torch has no layer without an input: it gets a neuron that stays at zero
                places = places.new_zeros(1)
            all_of_it = len(places) == len(ends) * width and bool((places.diff() == 1).all())
            self.register_buffer(f"places_l{number}", None if all_of_it else places, persistent=False)
        outer = torch.cat(starts[-len(ends) :])[self.sends] if self.wide else None
        self.register_buffer("places_out", outer, persistent=False)

    def __getattr__(self, name):
        found = PARAMETER.fullmatch(name)
        if found and int(found[2]) < len(levels := self.__dict__["_modules"].get("levels", ())):
            return getattr(levels[int(found[2])], f"{found[1]}_l0{found[3] or ''}")
        return super().__getattr__(name)

    def _ends(self):
        return ("", "_reverse") if self.bidirectional else ("",)

    def flatten_parameters(self):
        for level in self._modules.get("levels", ()):
            level.flatten_parameters()

    def extra_repr(self):
        suffixes = [f"_l{number}{end}" for number in range(len(self.levels)) for end in self._ends()]
        kept = ", ".join(f"{s[1:]} {len(getattr(self, 'kept' + s))}/{self.hidden_size}" for s in suffixes)
        width = self.hidden_size * len(self._ends())
        return f"neurons {kept}" + (f", output {width} wide" if self.wide else f", output {len(self.sends)} of {width}")

    def forward(self, input, hx=None, **more):
        x, levels, ends = self._narrow_input(input), self.levels, self._ends()
        directions, finals = len(ends), []
        if hx is not None:
            tree_map(self._check_state, hx)
        for number, level in enumerate(levels):
            if number and self.dropout and self.training:
                x = like(x, lambda v: F.dropout(v, self.dropout))
            kept = [getattr(self, f"kept_l{number}{end}") for end in ends]
            rows, initial = slice(number * directions, (number + 1) * directions), None
            if hx is not None:
                initial = tree_map(lambda s, r=rows, k=kept, w=level.hidden_size: _narrow(s[r], k, w), hx)
            x, final = _run(level, x, initial, more)
            if (places := getattr(self, f"places_l{number}")) is not None:
                x = like(x, lambda v, p=places: v.index_select(-1, p))
            finals.append(tree_map(lambda s, k=kept: _widen(s, k, self.hidden_size), final))
        if self.scale is not None:
            x = like(x, lambda v: v * self.scale)
        if self.wide:
            width = directions * self.hidden_size
            x = like(x, lambda v: v.new_zeros(*v.shape[:-1], width).index_copy(-1, self.places_out, v))
        if len(finals) == 1:
            return x, finals[0]
        if isinstance(finals[0], tuple):
            return x, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        return x, torch.cat(finals)

    def _narrow_input(self, input):
        values = input.data if isinstance(input, PackedSequence) else input
        if values.dtype == torch.int64:
            return input if self.words is None else like(input, self.ids)
        _check_width(values, self.input_size)
        return input if self.reads is None else like(input, lambda v: v.index_select(-1, self.reads))

    def ids(self, words):
        """One-hot ids of words → of the columns that are left. Raises IndexError for a word that is not there."""
        return self.lookup.index_select(0, words.flatten()).view(words.shape)

    def _check_state(self, state):
        rows = self.num_layers * len(self._ends())
        if state.shape[-1] != self.hidden_size or state.shape[0] != rows:
            expected = f"({rows}, …, {self.hidden_size})"
            raise RuntimeError(f"Expected hidden size {expected}, got {list(state.shape)}")


class SmallLSTM(SmallRecurrent, nn.LSTM):
    """See `SmallRecurrent`."""


class SmallGRU(SmallRecurrent, nn.GRU):
    """See `SmallRecurrent`."""


class SmallRNN(SmallRecurrent, nn.RNN):
    """See `SmallRecurrent`."""


SMALL = {nn.LSTM: SmallLSTM, nn.GRU: SmallGRU, nn.RNN: SmallRNN}


def _check_width(values, width):
    if values.shape[-1] != width:
        raise RuntimeError(f"input.size(-1) must be equal to {width}, got {values.shape[-1]}")


def _check_index(name, index, size):
    """Rising numbers from 0 to below `size`."""
    if len(index) and not (bool((index.diff() > 0).all()) and 0 <= int(index[0]) and int(index[-1]) < size):
        raise ValueError(f"{name} are no rising numbers from 0 to {size - 1}")


def _places(kept, size):
    """int64 [size]: the place of each among the kept; of those that are not, the one after the last."""
    lookup = torch.full((size,), len(kept), device=kept.device)
    lookup[kept] = torch.arange(len(kept), device=kept.device)
    return lookup


def _run(level, x, initial, more):
    """A level over its input. torch's own is run by torch's kernel itself: checking arguments takes a third of one step."""
    plain = not more and type(level) in SMALL and isinstance(x, torch.Tensor) and x.dim() == 3
    if not plain or level._forward_hooks or level._forward_pre_hooks:
        return level(x, initial, **more)
    weights, pair = [level._parameters[name] for name in level._flat_weights_names], isinstance(level, nn.LSTM)
    if initial is None:
        initial = x.new_zeros(1 + level.bidirectional, x.shape[0 if level.batch_first else 1], level.hidden_size)
        initial = (initial, initial) if pair else initial
    still = torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    if not still and x.device.type == "cpu" and not level.bidirectional and x.shape[int(level.batch_first)] == 1:
        state = (initial[0][0], initial[1][0]) if pair else initial[0]
        state = STEP[level.mode](x[:, 0] if level.batch_first else x[0], state, *weights)
        h, *_ = state if pair else (state,)
        y = h.unsqueeze(int(level.batch_first))
        return y, tuple(s.unsqueeze(0) for s in state) if pair else state.unsqueeze(0)
    how = level.bias, 1, 0.0, level.training, level.bidirectional, level.batch_first
    y, *final = LOOP[level.mode](x, initial, weights, *how)
    return y, tuple(final) if pair else final[0]


def _narrow(state, kept, width):
    """The outer state of a level's directions [D, (B,) H] → the level's own, [D, (B,) width]."""
    if len(kept) == 1 and len(kept[0]) == width:
        return state if width == state.shape[-1] else state.index_select(-1, kept[0])
    parts = [part.index_select(-1, k) for part, k in zip(state, kept, strict=True)]
    return torch.stack([F.pad(part, (0, width - part.shape[-1])) for part in parts])


def _widen(state, kept, width):
    """A level's state → the outer one, zeros for neurons that are gone."""
    if len(kept) == 1 and len(kept[0]) == state.shape[-1]:
        if state.shape[-1] == width:
            return state
        return state.new_zeros(*state.shape[:-1], width).index_copy(-1, kept[0], state)
    parts = [s[..., : len(k)] for s, k in zip(state, kept, strict=True)]
    wide = [p.new_zeros(*p.shape[:-1], width).index_copy(-1, k, p) for p, k in zip(parts, kept, strict=True)]
    return torch.stack(wide)


# ---- from a layer to a small one


def _empty(*shape, like=None):
    """A place for a tensor that `fill` brings."""
    return torch.empty(*shape, dtype=torch.int64 if like is None else like.dtype, device="meta")


def _replace(module, name, *shape):
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(_empty(*shape, like=old), requires_grad=old.requires_grad))


def become(module, spec):
    """Turn a layer, in place, into one of the shape `spec` says (see the top), its tensors still to be filled in.

    Raises ValueError, naming it, for a spec that does not fit the layer.
    """
    kind = kind_of(module)
    if kind is None:
        raise ValueError(f"{type(module).__name__} is no layer that can be made small")
    _check(spec, LIMITS[kind](module))
    module._small = spec
    if kind is nn.Linear:
        module.in_features, columns = spec["inputs"], spec["inputs"] if spec["reads"] is None else spec["reads"]
        _replace(module, "weight", module.out_features, columns)
        if spec["reads"] is not None:
            module.__class__ = SmallLinear
            module.register_buffer("reads", _empty(columns))
    elif kind is nn.Embedding:
        module.embedding_dim, rows = spec["columns"], spec["rows"]
        _replace(module, "weight", module.num_embeddings if rows is None else rows + 1, spec["columns"])
        if rows is not None:
            module.__class__ = SmallEmbedding
            module.register_buffer("kept", _empty(rows))
    elif spec["kept"] is None:
        module.input_size = spec["inputs"]
        for name in module._flat_weights_names:
            if name.startswith("weight_ih_l0"):
                _replace(module, name, len(getattr(module, name)), spec["inputs"])
    else:
        _become_recurrent(module, kind, spec)


def _become_recurrent(module, kind, spec):
    ends, kept = ("", "_reverse") if module.bidirectional else ("",), spec["kept"]
    shape = {"bias": module.bias, "batch_first": module.batch_first, "bidirectional": module.bidirectional}
    if kind is not type(module):
        shape["activation"] = module.activation
    elif kind is nn.RNN:
        shape["nonlinearity"] = module.nonlinearity
    counts = [[kept[f"_l{number}{end}"] for end in ends] for number in range(module.num_layers)]
    first = spec["inputs"] if spec["reads"] is None else spec["reads"]
    columns = [first if spec["words"] is None else spec["words"] + 1, *(max(1, sum(c)) for c in counts[:-1])]
    levels, old = [], dict(module._parameters)
    with torch.device("meta"):
        for number, (width, count) in enumerate(zip(columns, counts, strict=True)):
            level = type(module)(width, max(1, *count), **shape)
            for name in level._flat_weights_names:
                was = old[name.replace("_l0", f"_l{number}")]
                setattr(level, name, nn.Parameter(_empty(*getattr(level, name).shape, like=was), was.requires_grad))
            levels.append(level.train(module.training))
    module._parameters.clear()
    module._flat_weights_names, module._flat_weights, module._flat_weight_refs = [], [], []
    module.__class__ = SMALL[kind]
    module.input_size, module.wide, module.levels = spec["inputs"], spec["wide"], nn.ModuleList(levels)
    for suffix, count in kept.items():
        module.register_buffer("kept" + suffix, _empty(count))
    module.register_buffer("sends", _empty(spec["sends"]))
    for name in ("reads", "words"):
        module.register_buffer(name, None if spec[name] is None else _empty(spec[name]))
    module.register_buffer("lookup", None, persistent=False)
    scale = _empty(spec["sends"], like=old["weight_hh_l0"]) if spec["scaled"] else None
    module.register_buffer("scale", scale)


def _recurrent_limits(module):
    ends = ("", "_reverse") if module.bidirectional else ("",)
    suffixes = [f"_l{number}{end}" for number in range(module.num_layers) for end in ends]
    limits = {
        "inputs": (1, module.input_size),
        "reads": (1, module.input_size, None),
        "words": (0, module.input_size, None),
    }
    limits |= {"kept": {suffix: (0, module.hidden_size) for suffix in suffixes}, "wide": bool, "scaled": bool}
    return limits | {"sends": (0, len(ends) * module.hidden_size)}


LIMITS = {  # of a spec: (least, most), None where it may be None, or bool
    nn.Linear: lambda module: {"inputs": (0, module.in_features), "reads": (0, module.in_features, None)},
    nn.Embedding: lambda module: {"rows": (0, module.num_embeddings, None), "columns": (1, module.embedding_dim)},
    **dict.fromkeys(RECURRENT, _recurrent_limits),
}


def _check(spec, limits):
    if isinstance(spec, dict) and spec.get("kept", 0) is None and "kept" in limits:
        limits = {"inputs": limits["inputs"], "kept": None}
    if not isinstance(spec, dict) or spec.keys() != limits.keys():
        raise ValueError(f"a shape is said by {', '.join(limits)}; given: {spec!r:.200}")
    for name, limit in limits.items():
        value = spec[name]
        if isinstance(limit, dict):
            _check(value, limit)
        elif limit is bool or limit is None:
            if not isinstance(value, bool) and (limit is bool or value is not None):
                raise ValueError(f"{name} is {value!r:.80}; True or False")
        elif not (value is None and None in limit) and (type(value) is not int or not limit[0] <= value <= limit[1]):
            raise ValueError(f"{name} is {value!r:.80}; a whole number from {limit[0]} to {limit[1]}")


def fill(module, tensors):
    """Give a layer that has become small its numbers: name → tensor, as `state_dict` calls them. Raises ValueError where
    they do not fit."""
    expected = module.state_dict()
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise ValueError(f"{odd} is {'missing' if odd in expected else 'not a tensor of this layer'}")
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        owner, wanted = module.get_submodule(place), expected[name]
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            given, wanted = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, wanted))
            raise ValueError(f"{name} is {given}, expected {wanted}")
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        else:
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=getattr(owner, leaf).requires_grad))
    if hasattr(module, "settle"):
        module.settle()
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()


class _ZerosStay:
    """A gradient without the entries whose weight is zero now."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, gradient):
        return gradient * (self.weight != 0)


def zeros_stay(module, args):
    """A hook before a layer's forward: whatever trains it, its zeros stay zero. Copies of the layer keep it."""
    for weight in module.parameters():
        hooks = (
            (weight._backward_hooks or {}).values() if weight.requires_grad and weight.is_leaf else (_ZerosStay(None),)
        )
        if not any(isinstance(hook, _ZerosStay) for hook in hooks):
            weight.register_hook(_ZerosStay(weight))
