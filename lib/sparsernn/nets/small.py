"""Small layers: the same module objects, from now on without what was removed, called as before.

`become` turns a layer into one of the shape that a `spec` describes, in place: hooks, attributes, parameters' names and
everybody who holds it stay. `fill` then gives it its numbers. A layer of which only columns of the input went stays torch's
own (or ours). What a small layer knows of what was removed is its child `_small` (`Kept`).

spec of a linear layer     inputs: columns that are given · reads: how many of them it takes, or None for all
spec of an embedding       rows: words that have one, or None for all · columns
spec of a recurrent layer  inputs · reads · words: of one-hot ids, those with a column, or None · kept: suffix → neurons, or
                           None for all (then nothing else is said) · sends: neurons that go out · wide: in their old
                           places · scaled: multiplied as they go out
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from .layers import GRU, LSTM, RECURRENT, RNN, by_time, kind_of

OURS = "hard", "clipped_relu"  # activations that torch's kernels have not
LOOP = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}

APART = "Input and hidden tensors are not {0}, found input tensor {1} {2} and hidden tensor {1} {3}"  # torch's words


def like(output, values):
    """An output (tensor or packed) with other values."""
    if isinstance(output, PackedSequence):
        return output._replace(data=values(output.data))
    return values(output)


class Kept(nn.Module):
    """What is left of a layer: `spec`, and lists of lines as buffers (`reads`, `words`, `kept_l0`, `sends`, `scale`).

    reach      the largest number, without its sign, that it reads (`nets.reach`), or None where nobody looked
    takes_ids  whether the recurrent layer that it was took ids, as one-hot input
    """

    def __init__(self, spec, **sizes):
        super().__init__()
        self.spec, self.reach, self.takes_ids = spec, None, False
        for name, size in sizes.items():
            self.register_buffer(name, None if size is None else torch.empty(size, dtype=torch.int64, device="meta"))

    def follows(self, name, tensor):
        """A buffer that follows from the others, and is in no file."""
        self.register_buffer(name, tensor, persistent=False)


def of_small(module, name):
    """What a small layer's `Kept` has by this name; None of a layer that is not small."""
    return getattr(getattr(module, "_small", None), name, None)


class SmallLinear(nn.Linear):
    """A linear layer that takes only some columns of what it is given."""

    def forward(self, input):
        _check_width(input, self.in_features)
        return F.linear(input.index_select(-1, self._small.reads), self.weight, self.bias)

    def extra_repr(self):
        return super().extra_repr() + f", {len(self._small.reads)} of them read"


class SmallEmbedding(nn.Embedding):
    """An embedding without the rows that are zero: those words share one row of zeros, the last, which does not train."""

    def forward(self, input):
        how = self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        rows = F.embedding(_look_up(self._small.lookup, input), self.weight, len(self.weight) - 1, *how)
        if (
            self._small.pads and torch.is_grad_enabled() and self.weight.requires_grad
        ):  # a row of numbers that does not train
            rows = torch.where((input == self.padding_idx).unsqueeze(-1), rows.detach(), rows)
        return rows

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, {len(self._small.kept)} words with a row"


@torch.no_grad()
def renormalise(model):
    """Every row of the model's embeddings with a `max_norm` as it would be at its first look-up, in place. Returns them."""
    found = [m for m in model.modules() if kind_of(m) is nn.Embedding or type(m) is SmallEmbedding]
    found = [module for module in found if module.max_norm is not None]
    for module in found:
        words = torch.arange(len(module.weight), device=module.weight.device)
        torch.embedding_renorm_(module.weight, words, module.max_norm, module.norm_type)
    return found


def without_max_norm(model):
    """The same model, whose embeddings need no `max_norm` any more: what is read off them, or looked up, is what the model
    would look up."""
    for module in renormalise(model):
        module.max_norm = None
    return model


class SmallRecurrent:
    """A stack of recurrent layers without the removed neurons, called as the layer it was.

    Parameters have their old names. A level is as wide as the direction that keeps more; the other has neurons without
    weights, which stay at zero. A constant gate is a row of zeros with its bias: σ(b) or tanh(b) at every step. States,
    given and returned, have the width they had: what is given to removed neurons is read by nobody, and they come out as
    zeros. An input or a state that torch's layer of the old size refuses raises what that says: torch's kernels, called here
    without their layer, read beyond a state that is too small.
    """

    def flatten_parameters(self):
        """Nothing is laid out anew: levels differ in width, and cuDNN takes them as they are."""

    def __prepare_scriptable__(self):
        raise RuntimeError(
            f"torch.jit.script cannot read a {type(self).__name__}; torch.jit.trace, torch.export and torch.compile take it"
        )

    def kept(self, number):
        """Which of the old neurons a level has, one list a direction."""
        return [getattr(self._small, f"kept_l{number}{end}") for end in self.ends()]

    def extra_repr(self):
        suffixes = [f"l{number}{end}" for number in range(self.num_layers) for end in self.ends()]
        kept = ", ".join(f"{s} {len(getattr(self._small, 'kept_' + s))}/{self.hidden_size}" for s in suffixes)
        width = self.hidden_size * len(self.abreast())
        sends = f"output {width} wide" if self._small.spec["wide"] else f"output {len(self._small.sends)} of {width}"
        return f"neurons {kept}, {sends}" + self.beyond_torch()

    def forward(self, input, hx=None, lengths=None, padding="right"):
        small = self._modules["_small"]
        buffers, ours, back = small._buffers, None, None  # by dict: one step is short
        hx = self._checked(input, hx)
        x = self._narrow_input(input)
        directions, abreast, finals = len(self.ends()), len(self.abreast()), []
        ids = not isinstance(x, PackedSequence) and x.dtype == torch.int64
        if self.activation in OURS or lengths is not None or ids or "level" in vars(self):
            x, hx, lengths, back = by_time(self, x, hx, lengths)
            ours = self.padded(x, lengths, padding)
        states = hx if hx is None or isinstance(hx, tuple | list) else (hx,)
        for number in range(self.num_layers):
            if number and self.dropout and self.training:
                x = like(x, lambda v: F.dropout(v, self.dropout))
            kept, width, initial = [buffers[name] for name in small.kept_names[number]], small.widths[number], None
            if states is not None:
                rows = slice(number * directions, (number + 1) * directions)
                initial = [_narrow(s if self.num_layers == 1 else s[rows], kept, width) for s in states]
            x, final = self.level(number, x, initial, ours)
            if (places := buffers[small.places_names[number]]) is not None:
                x = like(x, lambda v, p=places: v.index_select(-1, p))
            finals.append(final and [_widen(s, kept, self.hidden_size) for s in final])
        if (scale := buffers["scale"]) is not None:
            x = like(x, lambda v: v * scale)
        if (out := buffers["places_out"]) is not None:
            width = abreast * self.hidden_size
            x = like(x, lambda v: v.new_zeros(*v.shape[:-1], width).index_copy(-1, out, v))
        if finals[0] is None:  # an engine that was not asked for it
            rows = self.num_layers * directions
            finals = [[x.new_full((), torch.nan).expand(rows, x.shape[1], self.hidden_size)] * self.cell.n_states]
        state = finals[0] if len(finals) == 1 else [torch.cat(s) for s in zip(*finals, strict=True)]
        state = tuple(state) if len(state) > 1 else state[0]
        return (x, state) if back is None else back(x, state)

    def level(self, number, x, initial, ours):
        """One level over its input → outputs, final states. initial: states [D, (B,) width], or None; ours: (live, partial)
        where our own loop runs it; None: torch's kernel, without its layer's checks, a third of the time of one step."""
        small = self._modules["_small"]
        width, names = small.widths[number], small.weights[number]
        if ours is None:
            y, final = _torch_level(self, width, [getattr(self, name) for name in names], x, initial)
            return like(y, lambda v: v.unflatten(-1, (2, width)).sum(-2)) if self.summed else y, final
        if initial is None:
            blank = self.weight_hh_l0.new_zeros(len(self.ends()), x.shape[1], width)
            initial = (blank,) * self.cell.n_states
        y, finals = self._level(number, x, initial, None, *ours, None)
        return y, [torch.stack(s) for s in zip(*finals, strict=True)]

    @property
    def takes_ids(self):
        small = self._modules["_small"]
        return small.takes_ids or small._buffers["words"] is not None

    def _dtype(self):
        """Of its weights, by dict where they are parameters: quicker; in a replica, or pruned by torch, they are attributes."""
        weight = self._parameters.get("weight_hh_l0")
        return (self.weight_hh_l0 if weight is None else weight).dtype

    def _checked(self, input, hx):
        """The state to start from, None for zeros. Raises what torch's own layer says of an input or a state that is none."""
        packed, where, dtype = isinstance(input, PackedSequence), None, self._dtype()
        values = input.data if packed else input
        shape = values.shape
        if values.dtype is not dtype or shape[-1] != self.input_size or len(shape) != (2 if packed else 3):
            where = self._other_input(input, hx)  # whatever is right, and is not asked for in most steps
        if hx is None:
            return None
        batch = int(input.batch_sizes[0]) if packed else shape[0 if self.batch_first else 1]
        expected = self.num_layers * (1 + self.bidirectional), batch, self.hidden_size
        expected = expected[::2] if where == "alone" else expected
        states = hx if isinstance(hx, tuple | list) else (hx,)
        if len(states) != 1 + isinstance(self, nn.LSTM):
            self._as_torch(input, hx)
        for state in states:
            if state.shape != expected or state.dtype is not dtype or state.is_cpu is not values.is_cpu:
                return self._other_states(input, hx, states, expected)
        return hx

    def _other_input(self, input, hx):
        """→ "alone" for one sequence of numbers without a batch; nothing for ids, and for what autocast makes fit."""
        packed, dtype = isinstance(input, PackedSequence), self._dtype()
        values = input.data if packed else input
        dims = values.dim()
        if not (values.is_floating_point() or values.is_complex()):
            self.refuse_dtype(values)
            if not packed and dims != 2:
                raise ValueError(f"token ids have shape {tuple(values.shape)}, expected (T, B)")
            return None
        cast = values.dtype is dtype or torch.is_autocast_enabled(values.device.type)
        if not cast or dims not in ((2,) if packed else (2, 3)) or values.shape[-1] != self.input_size:
            self._as_torch(input, hx)
        return "alone" if dims == 2 and not packed else None

    def _other_states(self, input, hx, states, expected):
        """Of states that are more than there are packed sequences those that torch takes; raises for others that do not fit."""
        packed, dtype = isinstance(input, PackedSequence), self._dtype()
        batch, values = expected[1], input.data if packed else input
        if packed and input.sorted_indices is not None:
            states = tuple(state[:, :batch] if state.dim() == 3 else state for state in states)
        if any(state.shape != expected for state in states):
            self._as_torch(input, hx)
        for state in states:
            if state.device != values.device:
                raise RuntimeError(APART.format("at the same device", "at", values.device, state.device))
            if state.dtype is not dtype and not torch.is_autocast_enabled(values.device.type):
                raise RuntimeError(APART.format("the same dtype", "with", dtype, state.dtype))
        return states

    def _as_torch(self, input, hx):
        """Raise what torch's layer of the old size, made without numbers, says of a call; of packed sequences as of a batch."""
        layer = next(theirs for theirs in RECURRENT if isinstance(self, theirs))(
            self.input_size, self.hidden_size, self.num_layers, batch_first=self.batch_first,
            bidirectional=self.bidirectional, dtype=self.weight_hh_l0.dtype, device="meta",
        )  # fmt: skip
        values = input
        if isinstance(input, PackedSequence):
            values = input.data[: int(input.batch_sizes[0])].unsqueeze(1 if self.batch_first else 0)
        if values.dtype == torch.int64:  # ids stand for one-hot numbers
            values = self.weight_hh_l0.new_empty(1, device="meta").expand(*values.shape, self.input_size)
        layer(*tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (values, hx)))
        raise RuntimeError(f"input of shape {tuple(values.shape)} or its state is none for {self}")

    def _narrow_input(self, input):
        buffers = self._modules["_small"]._buffers
        if (input.data if isinstance(input, PackedSequence) else input).dtype == torch.int64:
            return input if buffers["words"] is None else like(input, lambda v: _look_up(buffers["lookup"], v))
        return input if (reads := buffers["reads"]) is None else like(input, lambda v: v.index_select(-1, reads))


class SmallLSTM(SmallRecurrent, LSTM):
    """See `SmallRecurrent`."""


class SmallGRU(SmallRecurrent, GRU):
    """See `SmallRecurrent`."""


class SmallRNN(SmallRecurrent, RNN):
    """See `SmallRecurrent`."""


SMALL = {nn.LSTM: SmallLSTM, nn.GRU: SmallGRU, nn.RNN: SmallRNN}


def _check_width(values, width):
    if values.shape[-1] != width:
        raise RuntimeError(f"input.size(-1) must be equal to {width}, got {values.shape[-1]}")


def _look_up(lookup, ids):
    """Ids of words → of what is left. Raises IndexError for a word that is not there, as torch does."""
    return lookup.index_select(0, ids.flatten()).view(ids.shape)


def _torch_level(layer, width, weights, x, initial):
    """torch's kernel over a tensor [T, B, ·] (or batch first), one sequence, or a packed one."""
    packed, pair = isinstance(x, PackedSequence), isinstance(layer, nn.LSTM)
    values = x.data if packed else x
    single = not packed and values.dim() == 2
    if single:  # one sequence, no batch
        values = values.unsqueeze(0 if layer.batch_first else 1)
        initial = None if initial is None else [s.unsqueeze(1) for s in initial]
    if initial is None:
        batch = x.batch_sizes[0] if packed else values.shape[0 if layer.batch_first else 1]
        initial = [values.new_zeros(1 + layer.bidirectional, batch, width)] * (1 + pair)
    elif packed and x.sorted_indices is not None:
        initial = [s.index_select(1, x.sorted_indices) for s in initial]
    how = layer.bias, 1, 0.0, layer.training, layer.bidirectional
    given = initial if pair else initial[0]
    if packed:
        y, *final = LOOP[layer.mode](values, x.batch_sizes, given, weights, *how)
        if x.unsorted_indices is not None:
            final = [s.index_select(1, x.unsorted_indices) for s in final]
        return x._replace(data=y), final
    one_step = pair and not layer.bidirectional and x.device.type == "cpu" and values.shape[int(layer.batch_first)] == 1
    if one_step and not (torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")):
        final = torch.lstm_cell(values[:, 0] if layer.batch_first else values[0], [s[0] for s in initial], *weights)
        y, final = final[0].unsqueeze(int(layer.batch_first)), [s.unsqueeze(0) for s in final]
    else:
        y, *final = LOOP[layer.mode](values, given, weights, *how, layer.batch_first)
    if single:
        y, final = y.squeeze(0 if layer.batch_first else 1), [s.squeeze(1) for s in final]
    return y, final


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


def _replace(module, name, *shape):
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(torch.empty(shape, dtype=old.dtype, device="meta"), old.requires_grad))


def become(module, spec):
    """Turn a layer, in place, into one of the shape `spec` says (see the top), its tensors still to be filled in.

    Raises ValueError, naming it, for a spec that does not fit the layer.
    """
    kind = kind_of(module)
    if kind is None:
        raise ValueError(f"{type(module).__name__} is no layer that can be made small")
    _check(spec, LIMITS[kind](module))
    if kind is nn.Linear:
        module.in_features, reads = spec["inputs"], spec["reads"]
        _replace(module, "weight", module.out_features, spec["inputs"] if reads is None else reads)
        module.__class__ = type(module) if reads is None else SmallLinear
        module._small = Kept(spec) if reads is None else Kept(spec, reads=reads)
    elif kind is nn.Embedding:
        module.embedding_dim, rows = spec["columns"], spec["rows"]
        _replace(module, "weight", module.num_embeddings if rows is None else rows + 1, spec["columns"])
        module.__class__ = type(module) if rows is None else SmallEmbedding
        module._small = Kept(spec) if rows is None else Kept(spec, kept=rows)
    else:
        module.input_size = spec["inputs"]
        _become_recurrent(module, kind, spec)
    module.register_load_state_dict_post_hook(_settled_again)


def _become_recurrent(module, kind, spec):
    ends, abreast, kept = *_directions(module), spec["kept"]
    shared = getattr(module, "shared_input", False)
    first, rows = spec["inputs"] if spec.get("reads") is None else spec["reads"], len(module.weight_hh_l0)
    if kept is None:
        kept = {f"_l{number}{end}": module.hidden_size for number in range(module.num_layers) for end in ends}
    elif spec["words"] is not None:
        first = spec["words"] + 1
    gates, columns = rows // module.hidden_size, first
    for number in range(module.num_layers):
        counts = [kept[f"_l{number}{end}"] for end in ends]
        width = max(1, *counts)
        for end in ends:
            _replace(module, f"weight_ih_l{number}{end}", gates * width, columns)
            _replace(module, f"weight_hh_l{number}{end}", gates * width, width)
            for name in ("bias_ih", "bias_hh") if module.bias else ():
                _replace(module, f"{name}_l{number}{end}", gates * width)
            module._modules.pop(f"norm_l{number}{end}", None)  # it is in the weights
        if shared:
            setattr(module, f"weight_ih_l{number}_reverse", getattr(module, f"weight_ih_l{number}"))
        columns = max(1, sum(counts[:abreast]))
    if spec["kept"] is None:
        module._small = Kept(spec)
        return
    takes_ids = getattr(module, "takes_ids", False)
    module.__class__ = SMALL[kind]
    lists = {"kept" + suffix: count for suffix, count in kept.items()} | {"sends": spec["sends"]}
    module._small = Kept(spec, reads=spec["reads"], words=spec["words"], **lists)
    module._small.takes_ids = takes_ids
    scale = torch.empty(spec["sends"], dtype=module.weight_hh_l0.dtype, device="meta") if spec["scaled"] else None
    module._small.register_buffer("scale", scale)


def _directions(module):
    """What the names of the directions of a recurrent layer, torch's or ours, end with; how many outputs stand side by side."""
    ends = ("", "_reverse") if module.bidirectional else ("",)
    return ends, 1 if getattr(module, "summed", False) else len(ends)


def _recurrent_limits(module):
    ends, abreast = _directions(module)
    suffixes = [f"_l{number}{end}" for number in range(module.num_layers) for end in ends]
    limits = {
        "inputs": (1, module.input_size),
        "reads": (1, module.input_size, None),
        "words": (0, module.input_size, None),
    }
    limits |= {"kept": {suffix: (0, module.hidden_size) for suffix in suffixes}, "wide": bool, "scaled": bool}
    return limits | {"sends": (0, abreast * module.hidden_size)}


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


def own_names(module):
    """What of a layer's state the small one brings: its weights and biases, and `_small`; not what others hung on it."""
    names = module._flat_weights_names if isinstance(module, nn.RNNBase) else ("weight", "bias")
    kept = module._small.state_dict() if hasattr(module, "_small") else {}
    return [name for name in names if getattr(module, name, None) is not None] + ["_small." + name for name in kept]


def fill(module, tensors):
    """Give a layer that has become small its numbers: name → tensor, those of `own_names`. Raises ValueError where they do
    not fit."""
    expected = {name: tensor for name, tensor in module.state_dict().items() if name in own_names(module)}
    shared = getattr(module, "shared_input", False)
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[0]
        raise ValueError(f"{odd} is {'missing' if odd in expected else 'not a tensor of this layer'}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point():
            given, wanted = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, wanted))
            raise ValueError(f"{name} is {given}, expected {wanted}")
        if name.startswith("_small."):
            module._small._buffers[name.removeprefix("_small.")] = tensor
        else:
            setattr(module, name, nn.Parameter(tensor, requires_grad=getattr(module, name).requires_grad))
    for number in range(module.num_layers if shared else 0):
        first, second = (getattr(module, f"weight_ih_l{number}{end}") for end in ("", "_reverse"))
        if torch.equal(first, second):  # not where gates of one direction alone are scaled
            setattr(module, f"weight_ih_l{number}_reverse", first)
    settle(module)
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()


def _settled_again(module, keys):
    """A hook after load_state_dict: with the lists of another small model come what follows from them."""
    if not any(tensor.is_meta for tensor in module._small.state_dict().values()):
        settle(module)


def settle(module):
    """Check the lists of what is kept, and lay out what follows from them. Raises ValueError for lists that are none."""
    small = module._small
    if isinstance(module, SmallLinear):
        _check_index("reads", small.reads, module.in_features)
    elif isinstance(module, SmallEmbedding):
        _check_index("kept", small.kept, module.num_embeddings)
        small.follows("lookup", _places(small.kept, module.num_embeddings))
        small.pads = module.padding_idx is not None and bool((small.kept == module.padding_idx).any())
    elif isinstance(module, SmallRecurrent):
        for name in ("reads", "words"):
            if getattr(small, name) is not None:
                _check_index(name, getattr(small, name), module.input_size)
        small.follows("lookup", None if small.words is None else _places(small.words, module.input_size))
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
        small.widths = [max(1, *map(len, module.kept(number))) for number in range(module.num_layers)]
        small.kept_names = [[f"kept_l{n}{end}" for end in module.ends()] for n in range(module.num_layers)]
        small.places_names = [f"places_l{n}" for n in range(module.num_layers)]
        small.weights = [[f"{k}_l{n}{end}" for end in module.ends() for k in kinds] for n in range(module.num_layers)]
        for number, width in enumerate(small.widths):
            kept = module.kept(number)
            for each in kept:
                _check_index(f"kept_l{number}", each, module.hidden_size)
            if module.summed:
                if not torch.equal(*kept):
                    raise ValueError(f"kept_l{number}: directions that are summed keep the same neurons")
                kept = kept[:1]
            places = [d * width + torch.arange(len(each), device=each.device) for d, each in enumerate(kept)]
            places, old = torch.cat(places), torch.cat([each + d * module.hidden_size for d, each in enumerate(kept)])
            if number + 1 == module.num_layers:
                _check_index("sends", small.sends, len(places))
                places, old = places[small.sends], old[small.sends]
            elif not len(places):  # torch has no layer without an input: it gets a neuron that stays at zero
                places = places.new_zeros(1)
            whole = len(places) == len(kept) * width
            small.follows(f"places_l{number}", None if whole else places)
        small.follows("places_out", old if small.spec["wide"] else None)


def _check_index(name, index, size):
    """Rising numbers from 0 to below `size`."""
    if len(index) and not (bool((index.diff() > 0).all()) and 0 <= int(index[0]) and int(index[-1]) < size):
        raise ValueError(f"{name} are no rising numbers from 0 to {size - 1}")


def _places(kept, size):
    """int64 [size]: the place of each among the kept; of those that are not, the one after the last."""
    lookup = torch.full((size,), len(kept), device=kept.device)
    lookup[kept] = torch.arange(len(kept), device=kept.device)
    return lookup


class _ZerosStay:
    """A gradient without the entries whose weight is zero now."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, gradient):
        return gradient.masked_fill(self.weight == 0, 0)


def zeros_stay(module, args):
    """A hook before a layer's forward: whatever trains it, its zeros stay zero. Copies of the layer keep it."""
    for weight in module.parameters():
        hooks = (
            (weight._backward_hooks or {}).values() if weight.requires_grad and weight.is_leaf else (_ZerosStay(None),)
        )
        if not any(isinstance(hook, _ZerosStay) for hook in hooks):
            weight.register_hook(_ZerosStay(weight))
