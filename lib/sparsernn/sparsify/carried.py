"""What a layer carries of a method, and how long a draw lasts.

A draw of a weight belongs to a training step: every call of the layer within it (a decoder's loop, two passes, accumulated
micro-batches) computes with the same numbers; the step is over when the optimiser has moved. A scale is drawn per
sequence: it holds within one forward of the whole model or, where a layer is called otherwise, for that call. Nothing
drawn is copied or saved, and in evaluation nothing is kept.
"""

import weakref

import torch
from torch import nn

from ..nets.layers import kind_of


class Transient(dict):
    """What need not outlive its moment: empty in every copy."""

    def __deepcopy__(self, memo):
        return Transient()

    def __reduce__(self):
        return Transient, ()


class Item(nn.Module):
    """One thing a method works on, a child of the layer it belongs to: a `Weight` or a `Group`.

    name    its name in the model: of the matrix (`lstm.weight_hh_l0`), of the axis (`hidden_l0`)
    theta   the matrix, or the mean of the group variable [n]
    fixed   True: what `mask` keeps is trained on as it is, without noise and penalty (see `Method.fix`)
    Whatever else a method adds is a parameter or a buffer of the item.
    """

    def __init__(self, name):
        super().__init__()
        self.name, self.drawn = name, Transient()
        self.register_buffer("fixed", torch.tensor(False))

    def version(self):
        """Changes when the optimiser moves any part of it."""
        parts = (self.theta, *self._parameters.values())
        return tuple((id(part), part._version) for part in parts if part is not None)

    def draw(self, since, key, words, draw, dim):
        """draw(words) as it was drawn `since` then under that key, or anew; since None: anew."""
        if since is None or self.drawn.get("since") != since:
            self.drawn.clear()
            self.drawn["since"] = since
        return self.drawn.setdefault(key, Pieces()).take(words, draw, dim)


class Weight(Item):
    """A matrix of a layer; `owners`: (layer, its name there) of all that share it."""

    def __init__(self, name, layer, own):
        super().__init__(name)
        self.__dict__["owners"] = [(layer, own)]  # parents, not children

    @property
    def theta(self):
        layer, own = self.owners[0]
        return getattr(layer, own)

    @property
    def local(self):
        """Whether its noise is drawn on the layer's output."""
        return getattr(self.owners[0][0], "local_noise", False)


class Group(Item):
    """The variables of an axis, one a neuron, and the names of the scales they are; a method may give it a `theta`."""

    def __init__(self, axis):
        super().__init__(axis.name)
        self.register_parameter("theta", None)
        self.kind, self.size = axis.kind, axis.size
        self.scales = tuple(member.tensor.rpartition(".")[2] for member in axis.having("scale"))


class Pieces:
    """A tensor drawn whole, or line by line of the words that were looked up: each once."""

    def __init__(self):
        self.pieces = []

    def take(self, words, draw, dim):
        """draw(None), or the lines `words` (int64, different; −1: of no word) of it along `dim`."""
        for piece in self.pieces:
            if (words is None and piece.words is None) or (
                words is not None and piece.words is not None and torch.equal(piece.words, words)
            ):
                return piece.tensor(draw)
        if words is None or not self.pieces:
            self.pieces.append(Piece(words))
            return self.pieces[-1].tensor(draw)
        new = words[~torch.isin(words, torch.cat([piece.words for piece in self.pieces]))]
        if len(new):
            self.pieces.append(Piece(new))
        lines = torch.cat([piece.tensor(draw) for piece in self.pieces], dim)
        order, place = torch.cat([piece.words for piece in self.pieces]).sort()
        return lines.index_select(dim, place[torch.searchsorted(order, words)])


class Piece:
    """What was drawn, and how to draw it again: after a backward pass through it, or first without gradient, then with."""

    def __init__(self, words):
        self.words, self.value, self.state, self.gradient = words, None, None, None

    def tensor(self, draw):
        if self.value is not None and self.gradient == torch.is_grad_enabled():
            return self.value
        now, again, self.gradient = _generators(), self.state is not None, torch.is_grad_enabled()
        if again:
            _set_generators(self.state)
        self.state = self.state or now
        self.value = draw(self.words)
        if again:
            _set_generators(now)
        if self.value.grad_fn is not None:
            me = weakref.ref(self)  # the value must not hold who holds it
            self.value.register_hook(lambda gradient: _spent(me()))
        return self.value


def _spent(piece):
    """Its graph has been used, and is gone."""
    if piece is not None:
        piece.value = None


def _generators():
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_generators(states):
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1]) if states[1] else None


class Carried(nn.Module):
    """What one layer carries (see `nets.layers.Carrying`): its items, and the method that knows what they mean.

    weights    own name → `Weight`            groups   axis's own name → `Group`
    batch_dim  the dimension of an embedding's ids that runs over sequences
    lookup     word → its line while words are cut out of the training (−1: cut out); None: each its own
    called     whether the layer was ever called with it        before   the class the layer had
    """

    def __init__(self, layer, method, batch_dim):
        super().__init__()
        self.weights, self.groups = nn.ModuleDict(), nn.ModuleDict()
        self.__dict__["layer"], self.__dict__["method"] = layer, method  # parents, not children
        self.batch_dim, self.lookup, self.called, self.before = batch_dim, None, False, type(layer)
        self.word_dim = 0 if kind_of(layer) is nn.Embedding else 1

    def items(self):
        return (*self.weights.values(), *self.groups.values())

    def look_up(self, ids):
        self.called = True
        shared = any(len(item.owners) > 1 for item in self.weights.values())
        if not self.training or not self.method.draws_words or shared or any(item.fixed for item in self.items()):
            return None, ids
        words, ids = torch.unique(ids, return_inverse=True)
        return (words if self.lookup is None else self.lookup[words]), ids

    def weight(self, name, words=None):
        self.called = True
        item, method = self.weights[name] if name in self.weights else None, self.method
        if item is None:
            theta = getattr(self.layer, name)
            return theta if words is None else theta.index_select(self.word_dim, words)
        with method.reading():
            if item.fixed:
                return item.theta * item.mask
            if not self.training:
                return method.kept(item)
            if item.local and method.noise_on_output:
                return item.theta.view_as(item.theta)
            since = method.step, item.version()

            def draw(words):
                return method.draw(item, None if words is None else (self.word_dim, words))

            return item.draw(since, "", words, draw, self.word_dim)

    def scale(self, name, batch, words=None):
        self.called = True
        item, method = next((group for group in self.groups.values() if name in group.scales), None), self.method
        if item is None:
            return None
        with method.reading():
            if item.fixed:
                return (item.theta * item.mask)[None]
            if not self.training:
                kept = method.kept(item)
                return None if kept is None else kept[None]
            key = (batch, name) if method.a_draw_each else batch
            return item.draw(method.scope, key, words, lambda words: method.draw_scale(item, batch, words), 1)

    def noise(self, name, batch):
        item, method = self.weights[name] if name in self.weights else None, self.method
        if item is None or item.fixed or not self.training or not method.noise_on_output:
            return None

        def draw(words):
            return torch.randn(batch, len(item.theta), dtype=item.theta.dtype, device=item.theta.device)

        with method.reading():
            return method.variance(item), item.draw(method.scope, ("noise", batch), None, draw, 0)
