"""Put a method on a model: noise in training, masks in evaluation, the model's own classes and names untouched."""

import weakref
from functools import partial

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import sparsify
from ..nets.axes import Axis, Member, each, recurrent_axes
from ..nets.layers import TORCH, from_torch
from ..nets.masks import effective
from ..nets.models import Classifier, word_scale
from ..study.presets import Plan

STUDIES = weakref.WeakKeyDictionary()  # model → the study attached to it


class OwnModel:
    """A user's model as methods, masks and closure see it: named matrices, axes, which axes take group variables."""

    groups = Classifier.groups
    local_noise = ()

    def __init__(self, model):
        self.model = model
        self.modules = {n: m for n, m in model.named_modules() if isinstance(m, (*TORCH, nn.Embedding, nn.Linear))}
        self.twins = {n: twin_of(n, m) for n, m in self.modules.items() if isinstance(m, tuple(TORCH))}
        if "" in self.modules:
            raise ValueError(f"the model is a bare {type(model).__name__}; put it inside an nn.Module of your own")
        if not self.twins:
            raise ValueError(
                f"{type(model).__name__} has no nn.LSTM, nn.GRU or nn.RNN inside; there is nothing to thin out"
            )
        orders = {self.modules[name].batch_first for name in self.twins}
        if len(orders) > 1:
            raise ValueError("some recurrent layers have batch_first=True and some False; give all of them the same")
        self.batch_dim = 0 if orders.pop() else 1
        self.canonical = {}  # a parameter tied to another goes by the first one's name
        self.parameters = {}
        for name, module in self.modules.items():
            for own in matrix_and_bias_names(module):
                parameter, full = getattr(module, own), f"{name}.{own}"
                self.canonical[full] = next((n for n, p in self.parameters.items() if p is parameter), full)
                self.parameters.setdefault(self.canonical[full], parameter)

    def is_tied(self, name):
        """Whether a module's weight is another module's too."""
        canonical = self.canonical.get(f"{name}.weight")
        return canonical is not None and list(self.canonical.values()).count(canonical) > 1

    def named_parameters(self):
        return self.parameters.items()

    def axes(self):
        axes = []
        for name, module in self.modules.items():
            if isinstance(module, nn.Embedding):
                size = module.num_embeddings
                members = (Member(self.canonical[f"{name}.weight"], 0, each(size), "in"),)
                scale = Member(f"{name}.input", 1, each(size), "scale")
                axes.append(Axis(f"{name}.vocabulary", "vocabulary", size, (*members, scale), variable_decides=True))
            elif name in self.twins:
                size, ends = module.input_size, [s for s in self.twins[name].suffixes() if s.startswith("_l0")]
                members = [Member(f"{name}.weight_ih{end}", 1, each(size), "in") for end in ends]
                members += [Member(f"{name}.input{end}", 1, each(size), "scale") for end in ends]
                axes.append(Axis(f"{name}.input", "input", size, tuple(members)))
                axes += recurrent_axes(name, self.twins[name], [], prefix=f"{name}.", bias=module.bias)
        return axes


def twin_of(name, module):
    """Our layer of the same shape."""
    try:
        return from_torch(module)
    except ValueError as problem:
        raise ValueError(f"{name}: {problem}") from problem


def matrix_and_bias_names(module):
    """The names of a known module's weights, also where torch's pruning has split them in two."""
    if isinstance(module, tuple(TORCH)):
        return list(module._flat_weights_names)
    return ["weight"] + (["bias"] if getattr(module, "bias", None) is not None else [])


LOOP_ONLY = {"kl_every", "products", "sleep_above"}  # economies of `training`, which draws words and neurons itself


def attach(model, method, steps, n_examples, **plan):
    """Put a method on `model`, in place → `Study`.

    method       a name of `sparsify.names()`, for example "sparse-vd-w", "sparse-vd-wgn"
    steps        optimiser steps the training will have: schedules count in them
    n_examples   training examples as your loss counts them (its mean is over examples): the penalty is divided by it
    plan         fields of `presets.Plan`; where they count in epochs (kl_start, kl_full, kl_press, kl_settle) they count
                 in steps here, `fine_tune` is the share of steps at the end in which what is kept is trained on without noise
    Raises ValueError for a plan's field in LOOP_ONLY, for a model without a recurrent layer, for proj_size, for a second
    method on one model, and for a method that trains none (`linear`).
    """
    if model in STUDIES:
        raise ValueError("this model has a method on it already; study.detach() takes it off")
    if needed := sparsify.make(method).default_model:
        raise ValueError(f"method {method!r} is for the model {needed!r} alone, and trains no other")
    if idle := sorted(plan.keys() & LOOP_ONLY):
        raise ValueError(
            f"{', '.join(idle)}: only the study's own training loop knows this; in yours it would do nothing"
        )
    plan = Plan(**({"epochs": steps, "batch_size": 1} | plan))
    return Study(model, method, plan, n_examples)


class Study:
    """A method at work on a user's model: noise while the model is in training mode, masks and means in evaluation."""

    def __init__(self, model, method, plan, n_examples):
        self.own, self.plan, self.step = OwnModel(model), plan, 0
        self.method = sparsify.make(method)
        self.method.prepare(self.own, plan, n_examples, steps_per_epoch=1)
        self.drawn_weights, self.drawn_scales = None, {}
        for name, module in self.own.modules.items():
            module.forward = partial(_forward_of(module), self, name, module)
        self.hook = model.register_forward_pre_hook(lambda *_: self.forget())
        STUDIES[model] = self

    def detach(self):
        """The model as it was, with its weights as they are now."""
        for module in self.own.modules.values():
            del module.forward
        self.hook.remove()
        del STUDIES[self.own.model]

    def parameters(self):
        """What the method learns beside the model's own parameters."""
        return self.method.parameters()

    def parameter_groups(self, lr=None):
        """Groups for an optimiser: the model's parameters at `lr` (default: plan.lr) and the method's at their own rates."""
        ours = self.method.parameter_groups(self.plan)
        return [{"params": list(self.own.model.parameters()), "lr": lr or self.plan.lr}, *ours]

    def penalty(self):
        """What to add to the loss, in its unit (nats per example)."""
        return self.method.penalty(self.step)

    def after_step(self):
        """To be called after every optimiser step."""
        self.method.after_step(self.step)
        self.step += 1
        self.forget()

    def forget(self):
        self.drawn_weights, self.drawn_scales = None, {}

    def weight(self, name):
        """A parameter of the model as this forward pass uses it."""
        name = self.own.canonical[name]
        if self.drawn_weights is None:
            self.drawn_weights = self.method.sample_weights() if self.own.model.training else self._kept()[0]
        return self.drawn_weights.get(name, self.own.parameters[name])

    def scales(self, layer, batch_size):
        """The scales of a module in this forward pass, by their names in it."""
        if batch_size not in self.drawn_scales:
            training = self.own.model.training
            self.drawn_scales[batch_size] = self.method.sample_scales(batch_size) if training else self._kept()[1]
        drawn = self.drawn_scales[batch_size]
        return {n.removeprefix(layer + "."): s for n, s in drawn.items() if n.rpartition(".")[0] == layer}

    def _kept(self):
        with torch.no_grad():
            return effective(self.own, self.method.masks(), self.method.means())


# ---- what a module computes while a method is on it


def _forward_of(module):
    if isinstance(module, nn.Embedding):
        return _embedding
    return _linear if isinstance(module, nn.Linear) else _recurrent


def _linear(study, name, module, input):
    return F.linear(input, study.weight(f"{name}.weight"), module.bias)


def _embedding(study, name, module, input):
    rows = F.embedding(input, study.weight(f"{name}.weight"), module.padding_idx)
    by_time = input.t() if study.own.batch_dim == 0 and input.dim() == 2 else input
    scale = study.scales(name, by_time.shape[-1]).get("input") if input.dim() == 2 else None
    if scale is None:
        return rows
    factor = word_scale(by_time, scale)
    return rows * (factor.transpose(0, 1) if study.own.batch_dim == 0 else factor)


def _recurrent(study, name, module, input, hx=None):
    twin = study.own.twins[name].train(module.training)
    x, state, lengths, back = by_time(module, input, hx)
    given = {own: study.weight(f"{name}.{own}") for own in module._flat_weights_names}
    blank = x.new_zeros(())
    for own, parameter in twin.named_parameters():  # bias=False
        given.setdefault(own, blank.expand(parameter.shape))
    how = {"scales": study.scales(name, x.shape[1]), "lengths": lengths}
    return back(*functional_call(twin, given, (x, state), how))


def by_time(module, input, hx):
    """What torch's layers accept → x [T, B, I], state, lengths or None, and the way back for (y, state)."""
    if isinstance(input, PackedSequence):
        x, lengths = pad_packed_sequence(input)

        def back(y, state):
            return pack_padded_sequence(y, lengths, enforce_sorted=input.sorted_indices is None), state

        return x, hx, lengths.to(x.device), back
    if input.dim() == 2:  # one sequence, no batch
        hx = None if hx is None else tuple(s.unsqueeze(1) for s in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)

        def back(y, state):
            return y[:, 0], tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]

        return input.unsqueeze(1), hx, None, back
    if module.batch_first:
        return input.transpose(0, 1), hx, None, lambda y, state: (y.transpose(0, 1), state)
    return input, hx, None, lambda y, state: (y, state)
