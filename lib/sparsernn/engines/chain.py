"""A model as a chain: (embedding or one-hot ids, or numbers) → recurrent levels → linear, on the last or on every step.

Modules say what may be a chain; that the model is this chain, and on which steps it answers, is found by running it: between
its layers numbers only move (`follow`), and both answer alike in float64, or the model is refused. What stands between the
links (neurons sent, columns read, scales, see `nets.small`) is multiplied into the weights of whoever reads.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from ..nets.layers import kind_of
from ..nets.outside import deep_copy
from ..nets.small import SmallEmbedding, SmallLinear, SmallRecurrent, of_small, without_max_norm
from .base import Layer
from .compare import REFUSES, TOLERANCE, difference, in_float64
from .follow import Changed, followed
from .models import layers_of, recurrent_layers
from .parts import run

SUPPORTED = "supported: (nn.Embedding) → nn.LSTM, nn.GRU or nn.RNN, forwards → nn.Linear, on the last or on every step"
ELSE = "computes something else than its layers one after the other"
STEPS, BATCH = 6, 3
SIZES = (1, 2), (9, 1)  # steps and sequences that are compared too: a number in the model's code fits one size alone


@dataclass(frozen=True)
class Chain:
    """What is left of a model, in float64.

    words      number of ids it knows; None: the input is numbers
    kept       int64, rising: the ids that have a row of `embedding` (or a column of the first weights); others are zeros
    embedding  [len(kept), I], or None: one-hot ids, or numbers
    levels     `Layer`s that read the input, then each other       weight [C, H], bias [C]  read the last level
    last       whether it answers on the last step alone           name     of the model's class
    first      whether the model is given, and gives, sequences along the first dimension, not steps
    neurons    of each level the places in its layer's state
    reach      the largest number, without its sign, that the head reads, None where that is not known
    """

    name: str
    words: int | None
    kept: torch.Tensor | None
    embedding: torch.Tensor | None
    levels: tuple[Layer, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    last: bool
    first: tuple[bool, bool]
    neurons: tuple[torch.Tensor, ...]
    reach: float | None = None

    @property
    def inputs(self):
        return self.levels[0].inputs if self.words is None else 1

    def __call__(self, x):
        """Ids [T, B] or numbers [T, B, I] → [B, C] or [T, B, C], each sequence from zeros."""
        return self.with_states(x)[0]

    def with_states(self, x):
        """The same, and of each level its final states, each [B, H]."""
        if self.words is not None:
            places = torch.full((self.words,), len(self.kept))
            places[self.kept] = torch.arange(len(self.kept))
            x = places[x] if self.embedding is None else F.pad(self.embedding, (0, 0, 0, 1))[places[x]]
        states = []
        for level in self.levels:
            x, state = run(level.cell, level.parts, x, None, None, reverse=False)
            states.append(state)
        return F.linear(x[-1] if self.last else x, self.weight, self.bias), states


class NotCalled(ValueError):
    """A model that takes no such input."""


def chain_of(model):
    """The chain that a model is. Raises ValueError, saying what is supported, for a model that is none."""
    refuse_others(model)
    given, model = model, without_max_norm(deep_copy(model).double().cpu().eval().requires_grad_(False))
    embedding, layers, head = links_of(model)
    first = next(iter(layers.values()))
    one_hot = embedding is None and (
        first._small.words is not None if isinstance(first, SmallRecurrent) else kind_of(first) is not type(first)
    )
    words = embedding.num_embeddings if embedding is not None else first.input_size if one_hot else None
    kept, table = _words(embedding, first, words)
    x = probe(words, kept, first.input_size)
    asked = Asked(given, x)
    try:
        answers, called = _answers(asked, x)
    except NotCalled as refused:
        if words is not None:
            raise
        words, kept = first.input_size, torch.arange(first.input_size)  # that it makes one-hot numbers of itself
        x = probe(words, kept, words)
        asked = Asked(given, x)
        try:
            answers, called = _answers(asked, x)
        except NotCalled:
            raise refused from None  # of numbers, which is what its first layer takes
    links = [layers[name] for name in called]
    levels, weight = _levels(links), _read(head)
    if table is not None and isinstance(links[0], SmallRecurrent) and links[0]._small.reads is not None:
        table = table[:, links[0]._small.reads]
    elif embedding is None and not one_hot:
        levels[0] = _with_inputs(levels[0], _spread(levels[0].parts["weight_ih"], links[0], links[0].input_size))
    weight = _of_neurons(weight, links[-1])
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()
    neurons, scaled = tuple(kept for link in links for kept in _neurons(link)), of_small(links[-1], "scale") is not None
    reach = None if scaled else of_small(head, "reach")  # numbers that are scaled in the weight go less far, or further
    for last in (True, False):
        chain = Chain(
            type(model).__name__, words, kept, table, tuple(levels), weight, bias, last, (False, False), neurons, reach
        )
        said = chain(x)
        for first, answer in answers:
            if difference(said, answer) <= asked.same and _also(asked, found := replace(chain, first=first)):
                return found
    raise ValueError(f"{type(model).__name__} {ELSE}; {SUPPORTED}")


class Asked:
    """A model that says what it says to numbers like x, or ids: in float64, or in float32 where it insists on that.

    same  how far its answers may be from those of its chain
    """

    def __init__(self, model, x):
        own, self.dtype = deep_copy(model).cpu().eval(), torch.float64
        tried = (in_float64([own], [given])[0][0] for given in (x, x.transpose(0, 1)))
        double = next((each for each in tried if each is not own), None)
        if double is None:
            self.dtype = torch.float32
        self.model = without_max_norm((double or own.float()).requires_grad_(False))
        embedding, self.layers, head = links_of(self.model)
        self.known = [each for each in (embedding, *self.layers.values(), head) if each is not None]
        self.same = TOLERANCE[self.dtype]

    def __call__(self, x, whole=False):
        """What it returns for x, if its layers alone make it (`follow`): numbers in float64."""
        said = followed(self.model, self.known, x.to(self.dtype) if x.is_floating_point() else x, whole)
        return tree_map(lambda y: y.double() if isinstance(y, torch.Tensor) and y.is_floating_point() else y, said)


def _also(asked, chain):
    """Whether a model says what its chain says for other numbers of steps and sequences too."""
    for steps, batch in SIZES:
        x = probe(chain.words, chain.kept, asked.known[0].input_size if chain.words is None else 0, steps, batch)
        try:
            said = _first(asked(x.transpose(0, 1) if chain.first[0] else x))
        except REFUSES:
            return False
        if not said or difference(chain(x), said[0].transpose(0, 1) if chain.first[1] else said[0]) > asked.same:
            return False
    return True


def refuse_others(model):
    """Raises ValueError for a model that no file of ours could hold: with a method on it, or with projections."""
    refuse_method(model)
    for name, module in model.named_modules():
        if getattr(module, "proj_size", 0):
            raise ValueError(f"{name}: proj_size is {module.proj_size}; projections are not supported, use proj_size=0")


def refuse_method(model):
    """Raises ValueError for a model with a method on it: its weights alone are not what it computes with."""
    if any(getattr(module, "carried", None) is not None for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has a method on it; give what sparsernn.compact returns, or take it off first (detach)"
        )


def links_of(model):
    """→ its embedding or None, name → recurrent layer, its linear layer."""
    name, layers = type(model).__name__, recurrent_layers(model)
    ours = {nn.Embedding: SmallEmbedding, nn.Linear: SmallLinear}  # a subclass of a stranger's may do anything
    of = {k: [m for m in model.modules() if kind_of(m) is k or type(m) is small] for k, small in ours.items()}
    known = [*layers.values(), *of[nn.Embedding], *of[nn.Linear]]
    for where, module in model.named_modules():
        if list(module.parameters(recurse=False)) and not any(module is each for each in known):
            raise ValueError(f"{name}: {where or 'the model'} is a {type(module).__name__}; {SUPPORTED}")
    for where, module in layers.items():
        if module.bidirectional:
            raise ValueError(
                f"{name}: {where} runs backwards too, which no step by step code can; {SUPPORTED}, or to_onnx"
            )
    if not layers or len(of[nn.Linear]) != 1 or len(of[nn.Embedding]) > 1:
        counts = f"{len(of[nn.Embedding])} embeddings, {len(layers)} recurrent and {len(of[nn.Linear])} linear layers"
        raise ValueError(f"{name} has {counts}; {SUPPORTED}")
    return next(iter(of[nn.Embedding]), None), layers, of[nn.Linear][0]


def probe(words, kept, width, steps=STEPS, batch=BATCH):
    """Random numbers, or ids of which at least half have a row."""
    generator = torch.Generator().manual_seed(0)
    if words is None:
        return torch.randn(steps, batch, width, generator=generator, dtype=torch.float64)
    x = torch.randint(words, (steps, batch), generator=generator)
    if len(kept):
        x[::2] = kept[torch.randint(len(kept), x[::2].shape, generator=generator)]
    return x


@torch.no_grad()
def _answers(asked, x):
    """What the model says to x, in either layout of both, each after (whether x, whether the answer had its sequences first);
    and the names of its recurrent layers as they are called."""
    answers, problem, layers, name = [], None, asked.layers, type(asked.model).__name__
    for turned in (False, True):
        called, handles = [], []
        for place, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(lambda *_, to=called, place=place: to.append(place)))
        try:
            for y in _first(asked(x.transpose(0, 1) if turned else x)):
                answers += [((turned, False), y), ((turned, True), y.transpose(0, 1))]
            order = called
        except Changed as changed:
            raise ValueError(f"{name} {ELSE} ({changed}); {SUPPORTED}") from changed
        except REFUSES as refused:
            problem = refused
        finally:
            for handle in handles:
                handle.remove()
    if not answers:
        given = f"ids [{STEPS}, {BATCH}]" if x.dim() == 2 else f"numbers {list(x.shape)}"
        raise NotCalled(f"{name} cannot be called with {given} alone: {problem}; {SUPPORTED}")
    if sorted(order) != sorted(layers):
        raise ValueError(f"{name} calls {', '.join(order)}, not each of {', '.join(layers)} once; {SUPPORTED}")
    return answers, order


def _first(said):
    """A list of the first tensor that was returned, if it has rows."""
    return [y for y in [y for y in tree_leaves(said) if isinstance(y, torch.Tensor)][:1] if y.dim() > 1]


def _words(embedding, first, words):
    """→ the ids that have a row, and the rows of an embedding; None where there are no ids, or no embedding."""
    if words is None:
        return None, None
    small = getattr(first if embedding is None else embedding, "_small", None)
    kept = getattr(small, "words" if embedding is None else "kept", None)
    if embedding is None:
        return torch.arange(words) if kept is None else kept, None
    rows = embedding.weight.detach()
    return (torch.arange(words), rows) if kept is None else (kept, rows[:-1])


def _levels(links):
    """The levels of all links, reading each other."""
    levels = []
    for number, link in enumerate(links):
        found = list(layers_of(link).values())
        if number:
            weight = _spread(found[0].parts["weight_ih"], link, link.input_size)
            below = levels[-1].bound  # what stands between them is in the weight
            found[0] = replace(_with_inputs(found[0], _of_neurons(weight, links[number - 1])), reach=below)
        levels += found
    for number, below in enumerate(levels[:-1], 1):
        if not below.hidden:  # a column of zeros stands for no neuron
            levels[number] = _with_inputs(levels[number], levels[number].parts["weight_ih"][:, :0])
    return levels


def _neurons(link):
    """Of each level of a link the places of its neurons in the states that it gives."""
    if not isinstance(link, SmallRecurrent):
        return [torch.arange(link.hidden_size)] * link.num_layers
    return [link.kept(number)[0] for number in range(link.num_layers)]


def _with_inputs(level, weight_ih):
    return replace(level, parts=level.parts | {"weight_ih": weight_ih})


def _read(linear):
    small = getattr(linear, "_small", None)
    return _spread(linear.weight.detach(), linear, linear.in_features) if small is not None else linear.weight.detach()


def _spread(weight, reader, inputs):
    """A weight with the columns that its layer does not read, as zeros."""
    reads = of_small(reader, "reads")
    return weight if reads is None else weight.new_zeros(len(weight), inputs).index_copy(1, reads, weight)


def _of_neurons(weight, link):
    """A weight over what a recurrent layer sends → over the neurons of its last level."""
    if not isinstance(link, SmallRecurrent):
        return weight
    small, neurons = link._small, len(link.kept(link.num_layers - 1)[0])
    if small.places_out is not None:
        weight = weight[:, small.places_out]
    weight = weight if small.scale is None else weight * small.scale
    return weight.new_zeros(len(weight), neurons).index_copy(1, small.sends, weight)
