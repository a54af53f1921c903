"""What a layer carries of a method, and how long a draw lasts.

A draw of a weight belongs to a training step: every call of the layer within it (a decoder's loop, two passes, accumulated
micro-batches) computes with the same numbers; the step is over when the optimiser has moved. A scale is drawn per
sequence: it holds within one forward of the whole model or, where a layer is called otherwise, for that call. Nothing
drawn is copied or saved, and in evaluation nothing is kept beyond a forward.
"""

import weakref

import torch
from torch import nn

from ..nets.layers import kind_of


class Transient(dict):
    """What need not outlive its moment: empty in every copy."""

    def __deepcopy__(self, memo):
        return type(self)()

    def __reduce__(self):
        return type(self), ()


class Item(nn.Module):
    """One thing a method works on, a child of the layer it belongs to: a `Weight` or a `Group`.

    name    its name in the model: of the matrix (`lstm.weight_hh_l0`), of the axis (`hidden_l0`)
    theta   the matrix, or the mean of the group variable [n]
    spared  line of the matrix, or word, that a method neither moves nor removes (an embedding's padding); None: none
    fixed   True: what `mask` keeps is trained on as it is, without noise and penalty (see `Method.fix`)
    Whatever else a method adds is a parameter or a buffer of the item.
    """

    def __init__(self, name):
        super().__init__()
        self.name, self.drawn, self.seen, self.spared = name, Transient(), Transient(), None
        self.register_buffer("fixed", torch.tensor(False))

    def version(self):
        """Changes when the optimiser moves any part of it, or a mask of it does."""
        parts = (self.theta, *self._parameters.values(), *self._buffers.values())
        return tuple((id(part), 0 if part.is_inference() else part._version) for part in parts if part is not None)

    def kept(self, method):
        """What is left of it in evaluation: once a forward, for a decoder's loop calls its layer at every step."""
        if (now := method.now) is None:
            return method.kept(self)
        key = now, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), self.version()
        if (kept := self.seen.get(key)) is None:
            kept = self.seen[key] = method.kept(self)
        return kept

    def draw(self, since, scope, key, words, draw, dim):
        """draw(words) as it was drawn `since` then under that key, or anew; since None: anew."""
        if since is None or self.drawn.get("since") != since:
            self.drawn.clear()
            self.drawn["since"] = since
        return self.drawn.setdefault(key, Pieces()).take(words, draw, dim, scope)


class Weight(Item):
    """A matrix of a layer, or a bias; `owners`: (layer, its name there) of all that share it."""

    def __init__(self, name, layer, own):
        super().__init__(name)
        self.__dict__["owners"] = [(layer, own)]  # parents, not children

    @property
    def theta(self):
        layer, own = self.owners[0]
        return getattr(layer, own)

    @property
    def learns(self):
        """Whether it is trained at the moment: a frozen matrix has neither noise nor penalty."""
        return self.theta.requires_grad

    @property
    def local(self):
        """Whether its noise is drawn on the layer's output."""
        return getattr(self.owners[0][0], "local_noise", False)


class Group(Item):
    """The variables of an axis, one a neuron, in every layer that has a scale of it; a method may give it a `theta`."""

    learns = True

    def __init__(self, axis):
        super().__init__(axis.name)
        self.register_parameter("theta", None)
        self.kind, self.size = axis.kind, axis.size

    @property
    def mean(self):
        """θ, and 1 of what is spared, which layers do not scale."""
        mean = self.theta.detach()
        return mean if self.spared is None else mean.index_fill(0, torch.tensor(self.spared, device=mean.device), 1)


class Pieces:
    """A tensor drawn whole, or line by line of the words that were looked up: each line once."""

    def __init__(self):
        self.whole, self.parts = None, []

    def take(self, words, draw, dim, scope):
        """draw(None), or the lines `words` (int64, different; −1: of no word) of it along `dim`."""
        if words is None:
            self.whole = self.whole or Piece(None)
            drawn = self.whole.tensor(draw, scope)
            for part in self.parts:  # lines that were drawn before are these
                drawn = drawn.index_copy(dim, part.words, part.tensor(draw, scope))
            return drawn
        if self.whole is not None:
            return self.take(None, draw, dim, scope).index_select(dim, words)
        if not self.parts:
            self.parts.append(Piece(words))
        for part in self.parts:
            if torch.equal(part.words, words):
                return part.tensor(draw, scope)
        known = torch.cat([part.words for part in self.parts])
        if len(new := words[~torch.isin(words, known)]):
            self.parts.append(Piece(new))
        lines = torch.cat([part.tensor(draw, scope) for part in self.parts], dim)
        order, place = torch.cat([part.words for part in self.parts]).sort()
        return lines.index_select(dim, place[torch.searchsorted(order, words)])


class Piece:
    """What was drawn, and how to draw it again: in another forward (each has a graph of its own, whose backward pass ends
    it), or first without gradient, then with."""

    def __init__(self, words):
        self.words, self.value, self.state, self.made = words, None, None, None

    def tensor(self, draw, scope):
        made = scope, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if self.value is not None and scope is not None and self.made == made:
            return self.value
        now, again = _generators(), self.state is not None
        if again:
            _set_generators(self.state)
        self.state, self.made = self.state or now, made
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


def in_backward():
    """Whether this is called from a backward pass: a forward that is computed again (torch.utils.checkpoint)."""
    return torch._C._current_graph_task_id() != -1


def _generators():
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_generators(states):
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1]) if states[1] else None


class Carried(nn.Module):
    """What one layer carries (see `nets.layers.Carrying`): its items, and the method that knows what they mean.

    matrices   `Weight` of each matrix (and bias, where a method works on them), groups: `Group` of each axis; no name in
               them has the word weight or bias, by which loops over a layer's parameters know its own
    batch_dim  the dimension of an embedding's ids that runs over sequences; guessed: nobody has said so
    shapes     of ids that were looked up in the first step      batches  numbers of sequences that came by in it
    lookup     word → its line while words are cut out of the training (−1: cut out); None: each its own
    scales     name of a scale → that of the group it is
    called     whether the layer was ever called with it        before   the class the layer had
    """

    def __init__(self, layer, method, batch_dim):
        super().__init__()
        self.matrices, self.groups = nn.ModuleDict(), nn.ModuleDict()
        self.__dict__["layer"], self.__dict__["method"] = layer, method  # parents, not children
        self.batch_dim, self.lookup, self.called, self.before = batch_dim, None, False, type(layer)
        self.scales, self.guessed, self.shapes, self.batches = {}, False, set(), set()
        self.word_dim = 0 if kind_of(layer) is nn.Embedding else 1

    def __setitem__(self, own, item):
        self.matrices[own.replace("weight", "w").replace("bias", "b")] = item

    def __getitem__(self, own):
        """The `Weight` of a matrix or bias by its name in the layer; None where there is none."""
        return self.matrices._modules.get(own.replace("weight", "w").replace("bias", "b"))

    def items(self):
        return (*self.matrices.values(), *self.groups.values())

    @property
    def draws(self):
        """Whether this is training."""
        return self.layer.training and not self.method.idle

    @property
    def listens(self):
        return self.draws and self.method.listens

    def tell(self, name, read, live=None):
        if (item := self[name]) is not None:
            self.method.hear(item, (read if live is None else read[live.squeeze(-1)]).detach())

    def look_up(self, ids):
        self.called = True
        if self.draws and not self.method.step:
            self.shapes.add(tuple(ids.shape))
        shared = any(len(item.owners) > 1 for item in self.matrices.values())
        whole = shared or any(item.fixed or not item.learns for item in self.items())
        if whole or not self.draws or not self.method.draws_words:
            return None, ids
        words, ids = torch.unique(ids, return_inverse=True)
        return (words if self.lookup is None else self.lookup[words]), ids

    def weight(self, name, words=None):
        self.called = True
        item, method = self[name], self.method
        if item is None:
            theta = getattr(self.layer, name, None)
            return theta if words is None else theta.index_select(self.word_dim, words)
        if method.idle:
            return item.theta
        if item.fixed:
            return item.theta * item.mask
        if not self.draws:
            return item.kept(method)
        if not item.learns or item.local and method.noise_on_output:
            return item.theta

        def draw(words):
            return method.draw(item, None if words is None else (self.word_dim, words))

        return item.draw((method.step, item.version()), method.scope, "", words, draw, self.word_dim)

    def scale(self, name, batch, words=None):
        self.called = True
        if self.draws and not self.method.step:
            self.batches.add(batch)
        item, method = self.groups._modules.get(self.scales.get(name)), self.method
        if item is None or method.idle:
            return None
        if item.fixed:
            return (item.theta * item.mask)[None]
        if not self.draws:
            kept = method.kept(item)
            return None if kept is None else kept[None]
        if not method.draws_scales:
            return None
        key, scope = (batch, name) if method.a_draw_each else batch, method.scope
        return item.draw(scope, scope, key, words, lambda words: method.draw_scale(item, batch, words), 1)

    def noise(self, name, batch):
        item, method, scope = self[name], self.method, self.method.scope
        if item is None or item.fixed or not self.draws or not item.learns or not method.noise_on_output:
            return None

        def draw(words):
            return torch.randn(batch, len(item.theta), dtype=item.theta.dtype, device=item.theta.device)

        return method.variance(item), item.draw(scope, scope, ("noise", batch), None, draw, 0)
