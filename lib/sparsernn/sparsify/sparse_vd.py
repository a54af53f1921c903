"""Sparse variational dropout for recurrent nets: weights (1708.00077), words (1810.10927), neurons and gates (1812.05692).

Every weight has a posterior N(θ, σ²) under a log-uniform prior; group variables z of words, neurons and gates
likewise, with mean one at the start. What ends with log α = log σ²/θ² ≥ 3 is noise and goes.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from .base import LOG_ALPHA, Method, Thresholded
from .carried import Transient
from .kl import CHOICES, Known, kl_and_gradients, log_alpha, noisy
from .options import option
from .pressure import Pressed
from .pruned import kept_axes, lines_left, narrowed, put_back, take_lines


@dataclass(frozen=True)
class SparseVDOptions(Thresholded):
    """Of sparse variational dropout. What counts in epochs counts in steps where `attach` is told of no epochs."""

    threshold: float = option(3.0, "keep log α below it (papers: 3: dropout rate 0.953, θ²/σ² < 0.05)")
    lr_log_sigma: float = option(2.0e-3, "Adam's rate for every log σ", above=0)
    log_sigma: float = option(-3.0, "log σ of weights at the start")
    log_sigma_groups: float = option(-3.0, "log σ of group variables at the start")
    kl_weight: float = option(1.0, "multiplies KL / n_examples (papers: 1)", least=0)
    kl_weight_neurons: float = option(
        0.0,
        "the same for the variables of inputs, neurons and gates (0: kl_weight); each answers for a row of weights, and "
        "at a fraction of 1 nat it is not heard",
        least=0,
    )
    kl_peak: float = option(0.0, "the same for all others from kl_press to kl_settle (0: kl_weight)", least=0)
    kl_press: float = option(0.0, "epoch from which kl_peak is charged (but not before kl_full)", least=0)
    kl_settle: float = option(0.0, "epoch from which kl_weight holds for every variable (0: never)", least=0)
    kl_start: float = option(0.0, "epoch from which the KL's factor rises from 0", least=0)
    kl_full: float = option(0.0, "epoch at which it is kl_weight", least=0)
    kl_fit: str = option(
        "molchanov",
        '"molchanov"; "1812.05692": its code\'s, flat beyond |log α| = 8; "exact": no fit, at twice the time',
        choices=CHOICES,
    )
    kl_every: int = option(1, "steps for which the KL's gradient is held (papers: 1)", least=1)
    sleep_above: float = option(
        0.0,
        "log α from which a word or neuron is pruned during training for good (papers, and 0: never); the study's alone",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.fine_tune and self.sleep_above:  # log α is read within an epoch, when what is pruned is cut out
            raise ValueError("fine_tune and sleep_above do not go together; set one of them to 0")
        if self.kl_full and self.kl_full < self.kl_start:
            raise ValueError(f"kl_full is {self.kl_full}; the KL is full at or after kl_start = {self.kl_start}")


class SparseVD(Pressed):
    """Weights with one noise sample per training step, shared by all time steps and sequences: the posterior is over weights.

    kinds: () (weights only), "voc", "wn" or "wgn": the model says which axes that opens. A group variable is drawn
    once per sequence and shared by its time steps. Linear layers with `local_noise` take their noise on the output.
    Only rows or columns of words that occur in the batch are drawn; the others feel their KL alone.

    Two economies for long runs, neither of the papers': with `sleep_above` what closure removes at that log α when
    an epoch begins is pruned (`without_pruned`): it is neither drawn nor moved nor charged any more, so it stays away; with
    `kl_every` the KL's gradient is held for some steps, in which no θ or log σ moves far.
    """

    Options, reading = SparseVDOptions, LOG_ALPHA
    touches = draws_words = noise_on_output = True

    def __init__(self, options=None, kinds=()):
        super().__init__(options)
        self.kinds, self.held, self.lines = kinds, Transient(), Transient()

    def prepare(self):
        for item in self.uncertain():
            start = self.options.log_sigma
            if item.name in self.groups:
                start, like = self.options.log_sigma_groups, next(iter(self.weights.values())).theta
                item.theta = nn.Parameter(like.new_ones(item.size))
            item.log_sigma = nn.Parameter(torch.full_like(item.theta, start))
        self.may_fix()
        self.may_press()

    def uncertain(self):
        """Weights and groups that have a posterior."""
        return self.items()

    def parameter_groups(self, lr):
        means = [item.theta for item in self.uncertain() if item.name in self.groups]
        uncertain = [item.log_sigma for item in self.uncertain()]
        return [
            {"params": means, "lr": lr, "decays": True},
            {
                "params": uncertain,
                "lr": self.options.lr_log_sigma,
                "weight_decay": 0.0,
            },  # whatever the optimiser's default is
        ]

    # ---- what is drawn

    def draw(self, weight, lines=None):
        return noisy(weight.theta, weight.log_sigma, lines=lines)

    def draw_scale(self, group, batch, words=None):
        return noisy(group.theta, group.log_sigma, (batch,), None if words is None else (0, words))

    def variance(self, weight):
        return (2 * weight.log_sigma).exp()

    # ---- what is kept

    def score(self, item):
        return (
            log_alpha(item.theta.detach(), item.log_sigma.detach()).clamp(-8, 8) if hasattr(item, "log_sigma") else None
        )

    @torch.no_grad()
    def scores(self):
        found = super().scores()
        for name, left in self.lines.items():  # within an epoch: what is cut out of it is gone
            if name in found:
                shape = self.shapes.get(name) or (self.groups[name].size,)
                whole = found[name].new_full(shape, 8.0)
                put_back(whole, found[name], left)
                found[name] = whole
        for name, left in self.pruned(found).items():
            if name in found:  # what is pruned during training is gone, wherever its own log α stopped
                gone = torch.full_like(found[name], 8.0)
                put_back(gone, take_lines(found[name], left), left)
                found[name] = gone
        return found

    # ---- what it costs

    def kl_weight(self, step, neurons=False):
        """The factor of the KL at a step, of weights and words or of `neurons` and gates: 0 until epoch `kl_start`, a
        straight line to its full value at `kl_full`, for weights and words `kl_peak` from `kl_press` on; from `kl_settle`
        on `kl_weight` for all."""
        plan, epoch = self.options, step / self.steps_per_epoch
        if plan.kl_settle and epoch >= plan.kl_settle:
            return plan.kl_weight
        full = (neurons and plan.kl_weight_neurons) or plan.kl_weight
        if plan.kl_peak and not neurons and epoch >= max(plan.kl_press, plan.kl_full):
            return plan.kl_peak
        if epoch >= plan.kl_full:
            return full
        return full * max(0.0, epoch - plan.kl_start) / (plan.kl_full - plan.kl_start)

    def charge(self, step):
        factors = {neurons: self.kl_weight(step, neurons) for neurons in (False, True)}
        if not any(factors.values()):
            return 0.0
        epoch = self.steps_per_epoch  # counted anew each epoch, so that a resumed run agrees; 1: there are no epochs
        fresh = (step if epoch == 1 else step % epoch) % self.options.kl_every == 0
        total = 0.0
        for item in self.uncertain():
            neuron = item.name in self.groups and item.kind != "vocabulary"
            weight = factors[neuron] / self.n_examples
            if not item.learns or not weight:
                continue
            if fresh or item.name not in self.held:
                self.held[item.name] = weight, self.cost(item, weight)
            then, cost = self.held[item.name]
            charged = Known.apply(item.theta, item.log_sigma, *cost)
            total = total + (charged if then == weight else weight / then * charged)
        return total

    def cost(self, item, weight):
        """KL of an item times a weight, with its gradients; what is spared feels none."""
        value, *gradients = kl_and_gradients(item.theta, item.log_sigma, self.options.kl_fit, weight)
        if item.spared is not None:
            for gradient in gradients:
                gradient[item.spared] = 0
        return value, *gradients

    def schedule(self):
        plan, per = self.options, self.steps_per_epoch
        end = round(plan.kl_settle * per) if plan.kl_settle else self.learning_steps if plan.fine_tune else self.steps
        full = round(plan.kl_full * per)
        found = [("penalty rises", round(plan.kl_start * per), full)] if full else []
        found += [("penalty full", full, end)]
        if plan.kl_peak:
            found += [("pressed", round(max(plan.kl_press, plan.kl_full) * per), end)]
        return found + ([("fine-tuned", self.learning_steps, self.steps)] if plan.fine_tune else [])

    def rates(self):
        return (self.options.lr_log_sigma,)

    def says(self):
        return f"kl {self.options.kl_start:g}-{self.options.kl_full:g}"

    # ---- what is pruned during training

    @contextmanager
    def without_pruned(self, model, optimizer):
        with torch.no_grad():
            scores = Method.scores(self)
            if self.sleeps:
                self.spare_the_last(self.step, self.awake(scores))
            lines = self.pruned(scores)
        if not self.sleeps:
            yield
            return
        found = {
            parameter: lines.get(item.name) for item in self.items() for parameter in (item.theta, *item.parameters())
        }
        found |= {p: lines.get(name) for name, p in model.named_parameters() if ".carried." not in name}
        self._forget()
        self.lines.update(lines)
        try:
            with narrowed({p: left for p, left in found.items() if left}, optimizer), self._renumbered(model, lines):
                yield
        finally:
            self._forget(), self.lines.clear()

    def _forget(self):
        """Nothing drawn or held has the shapes of the parameters any more."""
        self.held.clear()
        for item in self.items():
            item.drawn.clear()

    @contextmanager
    def _renumbered(self, model, lines):
        """Layers that look words up know which line is which word's while some are cut out."""
        layers = []
        for axis in self.axes:
            if axis.kind == "vocabulary" and axis.name in lines:
                ((_, left),) = lines[axis.name]
                number = torch.full((axis.size,), -1, device=left.device)
                number[left] = torch.arange(len(left), device=left.device)
                layer = model.get_submodule(axis.having("scale")[0].tensor.rpartition(".")[0])
                layer.carried.lookup = number
                layers.append(layer)
        try:
            yield
        finally:
            for layer in layers:
                layer.carried.lookup = None

    @property
    def cuts(self):
        return bool(self.options.sleep_above)

    @property
    def sleeps(self):
        """Whether words and neurons are pruned during training: no longer once the penalty has ended."""
        return bool(self.options.sleep_above and self.pressure and not self.fixed)

    def awake(self, scores):
        """`Masks` of these scores at `sleep_above`."""
        return self.masks_of({name: score < self.options.sleep_above for name, score in scores.items()})

    def pruned(self, scores):
        """`lines_left` by what closure removes at `sleep_above` of these scores; empty where nothing is pruned."""
        if not self.sleeps:
            return {}
        lines = lines_left(self.axes, kept_axes(self.awake(scores)), self.shapes)
        device = next(iter(scores.values())).device
        return {name: [(dim, at.to(device)) for dim, at in left] for name, left in lines.items()}
