"""Two models that should be one: called alike, from the same start, in as many ways as the examples tell of."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..files import error
from ..nets.outside import Start, deep_copy
from ..nets.readers import REFUSES, answer
from ..nets.small import like
from ..nets.states import states_returned

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.complex128: 1e-9, torch.complex64: 1e-5}
TOLERANCE_ELSE = 1e-2  # of a number in half precision
KINDS = torch.Tensor | PackedSequence
ROUNDED = ", as it is returned"


def in_float64(models, examples):
    """Models and examples in float64; as they are where one of the models insists on a dtype of its own."""
    wide = [partial(_called, example) if callable(example) else tree_map(_double, example) for example in examples]
    doubled = [deep_copy(model).double() for model in models]
    try:
        for start in map(Start, doubled):
            for example in wide:
                with start.again() as model:
                    answer(model, example)
        return doubled, wide
    except REFUSES:
        return models, examples


def _called(example, model):
    return example(_Doubling(model))


class _Doubling:
    """A model, or a part of it, in float64, in an example that calls it with numbers of its own."""

    def __init__(self, thing):
        self.thing = thing

    def __getattr__(self, name):
        found = getattr(self.thing, name)
        return _Doubling(found) if callable(found) else found

    def __getitem__(self, place):
        return _Doubling(self.thing[place])

    def __call__(self, *args, **kwargs):
        args, kwargs = tree_map(_double, (args, kwargs))
        return self.thing(*args, **kwargs)


def _double(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def difference(a, b):
    """Of two tensors by their own kind: floats by the error everywhere used, infinities and NaN must be the same ones, what
    has no error must be equal. Infinite where they are of another shape or kind."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    same = (a == b) | ((a != a) & (b != b))
    odd = ~(a.isfinite() & b.isfinite())
    if not bool(same[odd].all()):
        return float("inf")
    return error(a.masked_fill(odd, 0), b.masked_fill(odd, 0)) if a.numel() else 0.0


@dataclass(frozen=True)
class Call:
    """words: how it is called; example: with what; layer: a recurrent layer that is given a random state, if it gets none."""

    words: str
    example: object
    layer: str | None = None


class Calls:
    """What the model answers to each call, twice in a row from the same start, and how far another is from that.

    start  `Start` of the model      examples  as `compact` takes them      found  the layers of its plain copy
    to_go_on  names of the layers whose returned states are no part of the answer
    Raises ValueError if it returns no tensor, or answers otherwise when it starts from the same place again.
    """

    def __init__(self, start, examples, found, to_go_on):
        self.start, self.to_go_on = start, to_go_on
        self.calls, self.answers, self.tolerance = [], {}, {}
        self.double = any(p.dtype == torch.float64 for p in start.model.parameters())
        names = ["the example"] if len(examples) == 1 else [f"example {n + 1}" for n in range(len(examples))]
        self.examples = set(names)
        for name, example in zip(names, examples, strict=True):
            with _Dtypes() as dtypes:
                first = self._ask(start, Call(name, example))
            tolerance = max((TOLERANCE.get(dtype, TOLERANCE_ELSE) for dtype in dtypes.seen), default=1e-9)
            if not first[0]:
                raise ValueError(f"the model returns no tensor for {name}, so nothing could be compared")
            if worst := _worst(first, self._answers(start, Call(name, example))):
                raise ValueError(
                    f"the model answers otherwise the second time, by {worst:.1e}, from the same start: it keeps a state "
                    "outside of itself or draws from a generator of its own; nothing can be compared with it"
                )
            for calls in _variations(start, name, example, found):
                for call in calls:
                    try:
                        self._ask(start, call)
                        break
                    except REFUSES:  # a way in which the model cannot be called
                        continue
            self.tolerance |= {call.words: tolerance for call in self.calls if call.words not in self.tolerance}

    def _ask(self, start, call):
        found = self._answers(start, call)
        self.calls.append(call)
        self.answers[call.words] = found
        return found

    def _answers(self, start, call):
        """What a model answers to a call, and to the same once more."""
        with start.again() as model:
            handles = []
            if call.layer is not None:
                module = model.get_submodule(call.layer)
                handles.append(module.register_forward_pre_hook(_GiveState(), with_kwargs=True))
            try:
                ask = partial(answer, model, call.example, behind=True, to_go_on=self.to_go_on)
                return [[x.clone() for x in ask()] for _ in range(2)]
            finally:
                for handle in handles:
                    handle.remove()

    def as_returned(self, small):
        """The same of the examples themselves, by the small model with its weights as they were rounded, in float64."""
        calls = [call for call in self.calls if call.words in self.examples]
        start = Start(deep_copy(small).double() if self.double else small)
        return {call.words + ROUNDED: _worst(self._answers(start, call), self.answers[call.words]) for call in calls}

    def compare(self, start):
        """→ words → error of the other model, the same of those that are too large; infinite where it cannot be called."""
        errors = {}
        for call in self.calls:
            try:
                errors[call.words] = _worst(self._answers(start, call), self.answers[call.words])
            except REFUSES:
                errors[call.words] = float("inf")
        return errors, {words: by for words, by in errors.items() if not by <= self.tolerance[words]}

    def other_states(self, start):
        """Layer → how far its returned state is from the model's, of those in `to_go_on` where that is more than rounding."""
        found = {}
        for call in [call for call in self.calls if call.words in self.examples]:
            with self.start.again() as model, start.again() as other:
                theirs, mine = (states_returned(each, call.example) for each in (model, other))
            for name in self.to_go_on & theirs.keys():
                by = _worst([mine.get(name, [])], [theirs[name]])
                if not by <= self.tolerance[call.words]:
                    found[name] = max(by, found.get(name, 0.0))
        return found


def _worst(mine, theirs):
    if any(len(a) != len(b) for a, b in zip(mine, theirs, strict=True)):
        return float("inf")
    return max(
        (difference(x, y) for a, b in zip(mine, theirs, strict=True) for x, y in zip(a, b, strict=True)), default=0.0
    )


class _GiveState:
    """A hook before a recurrent layer: where the model gives it no state, it gets a random one, the same in every run."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, module, args, kwargs):
        x = args[0] if args else kwargs["input"]
        if (args[1] if len(args) > 1 else kwargs.get("hx")) is not None:
            return None
        rows = module.num_layers * (2 if module.bidirectional else 1)
        if isinstance(x, PackedSequence):
            shape = rows, int(x.batch_sizes[0]), module.hidden_size
        elif x.dim() == (2 if x.dtype == torch.int64 else 3):
            shape = rows, x.shape[0 if module.batch_first else 1], module.hidden_size
        else:
            shape = rows, module.hidden_size
        like = next(p for p in module.parameters() if p.is_floating_point())
        state = [torch.randn(shape, generator=self.generator, dtype=torch.float64).to(like) for _ in range(2)]
        state = tuple(state) if isinstance(module, nn.LSTM) else state[0]
        return ((x, state), kwargs) if args else (args, kwargs | {"hx": state})


def _variations(start, name, example, found):
    """The calls that an example leads to: a state for each recurrent layer, other sizes, other words and numbers. Of each
    the ways to say it, of which one will do."""
    steps = batch = None
    looked_up, first = [], []
    with start.again() as model:
        for layer, module in found.layers.items():
            watch = first if layer in found.recurrent else looked_up if isinstance(module, nn.Embedding) else None
            if watch is not None:
                see = partial(_see, watch, module)
                model.get_submodule(layer).register_forward_pre_hook(see, with_kwargs=True)
        answer(model, example)
    for layer in found.recurrent:
        yield [Call(f"{name}, a state given to {layer}", example, layer)]
    if callable(example):  # with what it calls the model is its own affair
        return
    leaves, tree = tree_flatten(example, is_leaf=lambda x: isinstance(x, PackedSequence))
    changed = [like(leaf, partial(_other, looked_up)) if isinstance(leaf, KINDS) else leaf for leaf in leaves]
    yield [Call(f"{name}, other words and numbers", tree_unflatten(changed, tree))]
    for module, x in first[:1]:
        if isinstance(x, PackedSequence):
            steps, batch = len(x.batch_sizes), int(x.batch_sizes[0])
        elif x.dim() > 1:
            batch, steps = x.shape[:2] if module.batch_first else x.shape[1::-1]
    if batch is None:
        return
    layer = first[0][0]
    rows, layouts = layer.num_layers * (2 if layer.bidirectional else 1), (True, False)
    states = [isinstance(leaf, torch.Tensor) and leaf.shape == (rows, batch, layer.hidden_size) for leaf in leaves]
    sizes = {"one sequence": 1, "more sequences": 2 * batch + 1}
    sizes |= {"one step": 1, "fewer steps": -(-steps // 2), "more steps": 2 * steps + 1}
    for words, new in sizes.items():
        calls = []
        for batch_first in (
            layouts if layer.batch_first else layouts[::-1]
        ):  # the model may give it its input transposed
            shape = (batch, steps) if batch_first else (steps, batch)
            change = partial(
                _resized, shape=shape, batch=0 if batch_first else 1, sequences="sequence" in words, new=new
            )
            changed = [change(leaf, state) for leaf, state in zip(leaves, states, strict=True)]
            calls.append(Call(f"{name}, {words}", tree_unflatten(changed, tree)))
        yield calls


def _see(calls, layer, module, args, kwargs):
    calls.append((layer, args[0] if args else kwargs["input"]))


def _other(looked_up, leaf):
    """Random ids for ids that an embedding looked up, random numbers for numbers, anything else as it is."""
    generator = torch.Generator().manual_seed(1)
    if leaf.is_floating_point() and leaf.numel():
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
    for module, ids in looked_up:
        if leaf.dim() and ids.shape in (leaf.shape, leaf.mT.shape if leaf.dim() > 1 else leaf.shape):
            if torch.equal(ids, leaf) or torch.equal(ids, leaf.mT):
                return torch.randint(module.num_embeddings, leaf.shape, generator=generator).to(leaf)
    return leaf


def _resized(leaf, state, shape, batch, sequences, new):
    """A tensor for `new` sequences or steps: along the first two dimensions, if they are `shape` (`batch` is the place of the
    sequences in it); a state or a list along its sequences; lengths follow the steps, packed or beside."""
    if isinstance(leaf, PackedSequence):
        x, lengths = pad_packed_sequence(leaf, batch_first=True)
        places = torch.arange(new, device=x.device) % shape[batch if sequences else 1 - batch]
        if sequences:
            x, lengths = x[places], lengths[places.cpu()]
        else:
            x, lengths = x[:, places], (lengths * new / x.shape[1]).ceil().long().clamp(max=new)
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    if not isinstance(leaf, torch.Tensor) or not leaf.dim():
        return leaf
    old, dim = shape[batch if sequences else 1 - batch], None
    if state:
        dim = 1 if sequences else None
    elif leaf.shape[:2] == shape:
        dim = batch if sequences else 1 - batch
    elif leaf.shape == (shape[batch],) and not sequences and not leaf.is_floating_point():  # lengths, perhaps
        return (leaf * new / old).ceil().to(leaf.dtype).clamp(max=new)
    elif leaf.shape[0] == old and (sequences or leaf.dim() == 1):
        dim = 0
    return leaf if dim is None else leaf.index_select(dim, torch.arange(new, device=leaf.device) % old)


class _Dtypes(TorchDispatchMode):
    """While it is entered: dtypes of the floating results of everything that runs."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_floating_point()}
        return result
