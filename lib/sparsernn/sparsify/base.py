"""What training asks of a method. The base class is a method that does nothing: `dense`."""

from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch

from ..nets.masks import Masks, standing
from .carried import in_backward
from .options import Options, option


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `share` of the steps; only from `selectable` phases is an epoch chosen on validation."""

    name: str
    share: float
    selectable: bool


@dataclass(frozen=True)
class Reading:
    """How a method's scores are read: their name, the range that histograms show, and which side of a threshold is kept."""

    name: str
    low: float
    high: float
    bin: float
    cuts: tuple[float, ...]
    keeps_below: bool = False


LOG_ALPHA = Reading("log α", -8.0, 8.0, 0.4, tuple(range(-1, 8)), keeps_below=True)
MISSED = 0.1  # a density may end this far off the one asked for, as a share of it


@dataclass(frozen=True)
class Wanted(Options):
    """Options of a method that can be asked for a density."""

    density: float = option(
        0.0, "weights kept ÷ weights it may prune, at the end; 0: whatever its other options give", least=0, most=1
    )


@dataclass(frozen=True)
class Settled(Wanted):
    """Options of a method that may learn what to keep first, and train it on afterwards."""

    fine_tune: float = option(
        0.0,
        "share of the training, at the end, in which what is kept is fixed and trained on without noise and penalty "
        "(papers: 0); a schedule too short for the scores to settle needs it",
        least=0,
        below=1,
    )


@dataclass(frozen=True)
class Thresholded(Settled):
    """Options of a method whose scores decide what is kept, at a threshold that is an option."""

    threshold: float = option(0.0, "what is kept has its score below it")


class Method:
    """A way of making a recurrent network small. Subclasses override what they need; this base is `dense`.

    It works on items (`carried.Weight`, `carried.Group`), which live in the layers, and knows no model and no task.

    Options        its hyper-parameters (a frozen dataclass of `option`s); `self.options` holds this run's
    default_model  the preset to use where none is named; None: the task's own
    kinds          which axes get a group: a key of the model's `groups` ("voc", "wn", "wgn"), or axis kinds themselves
    touches        whether weights are items too          biases   whether biases are as well
    layers         the classes of torch whose weights are; None: of every layer that `attach` knows
    whole          whether a layer with a frozen weight or bias is left out, not that alone
    draws_words    whether weights and scales can be drawn for the words of a batch alone
    noise_on_output  whether linear layers with `local_noise` take their noise on the output (`variance`)
    draws_scales   whether scales are drawn while it learns; False: they are 1
    a_draw_each    whether a neuron's scales are drawn apart, one for each place where it is read
    reading        how its scores are read (`Reading`); None: it has none to draw, or to cut elsewhere
    begins         what begins, and the option that says when: for a training that would end before
    continues      whether the model goes on with the weights of the finished run it starts from
    looks_on       whether, at the moment, a step only looks: the parameters are put back to that run's (`finished`)
    trains         whether it is trained by gradient steps; else `fit` is all there is
    cuts           whether what is pruned is cut out of the training (`without_pruned`)
    listens        whether it hears at the moment what layers read in training (`hear`)
    asks           options that have to be given to `attach`: as they stand by themselves they do nothing
    or_else        what may stand in for the finished runs it needs, for an error
    """

    Options = Options
    default_model: str | None = None
    kinds: str | tuple[str, ...] = ()
    touches = biases = whole = False
    layers: tuple[type, ...] | None = None
    draws_words = False
    noise_on_output = False
    draws_scales = True
    a_draw_each = False
    reading: Reading | None = None
    begins = "the penalty", "kl_start"
    continues, trains, listens, cuts, looks_on = False, True, False, False, False
    asks, or_else = (), ""

    def __init__(self, options=None):
        self.options = options or self.Options()
        self.weights, self.groups, self.axes, self.shapes = {}, {}, (), {}
        self.step, self.now, self.last, self.idle = 0, None, None, True

    # ---- what a subclass may say

    def needs(self):
        """Names of methods whose finished runs of the same task and model this one starts from."""
        return ()

    def start_from(self, finished):
        """finished: name of `needs()` → state_dict of that run's model. Called before `prepare`."""

    def prepare(self):
        """Add the method's parameters to the items. There are `self.weights` and `self.groups` (name → item), `self.axes`,
        `self.shapes` (of every parameter), `self.n_examples`, `self.steps` of the whole training, `self.steps_per_epoch`."""

    def parameter_groups(self, lr):
        """The method's own parameters for the optimiser: groups with their `lr` and, where it falls as the weights' does,
        `decays=True`. lr: the weights' own."""
        parameters = [p for item in self.items() for p in item.parameters()]
        return [{"params": parameters, "lr": lr, "decays": True}] if parameters else []

    def draw(self, weight, lines=None):
        """What a layer computes with in a training step. lines: (dimension, positions) that are wanted alone; None: all."""
        return weight.theta.view_as(weight.theta)

    def draw_scale(self, group, batch, words=None):
        """[batch|1, n] of a group for a forward pass; words: those that are wanted alone."""
        raise NotImplementedError

    def variance(self, weight):
        """Of the noise of a linear layer's weights, where it is drawn on the output."""
        raise NotImplementedError

    def kept(self, item):
        """What a layer computes with in evaluation: θ, or μ of a group, or 0. Gradients pass. None: no scale."""
        score = self.score(item)
        return item.theta if score is None else item.theta * self.keep_of(item, score)

    def score(self, item):
        """A number for each weight or neuron that says whether it stays; None: it stays."""
        return None

    @property
    def threshold(self):
        """Where scores are cut; infinitely far out where the method has pruned already what goes."""
        return getattr(self.options, "threshold", torch.inf if self.reading.keeps_below else -torch.inf)

    def keeps(self, score, threshold=None):
        threshold = self.threshold if threshold is None else threshold
        return score < threshold if self.reading.keeps_below else score > threshold

    def keep_of(self, item, score, threshold=None):
        """bool: what stays of an item with these scores; what is spared always does."""
        keep = self.keeps(score, threshold)
        if item.spared is not None:
            keep = keep.clone()
            keep[item.spared] = True
        return keep

    def penalty(self, step):
        """What is added to the loss, nats per example."""
        return 0.0

    def after_step(self, step):
        """Thresholds, masks, clipping: called after every optimiser step, once it is over."""

    def phases(self):
        if share := getattr(self.options, "fine_tune", 0.0):
            return Phase("learn", 1 - share, selectable=False), Phase("fine-tune", share, selectable=True)
        return (Phase("learn", 1.0, selectable=True),)

    def schedule(self):
        """What happens when: [(words, first step, step after the last)], in steps of this training."""
        return []

    def changes(self):
        """How often its masks change in the training; None: it has no steps at which they do."""
        return None

    def hasty(self):
        """In words, where what is to be pruned little by little goes in a few jumps; None: it does not."""
        return None

    def to_come(self, step):
        """Of the schedule, what has not begun after so many steps."""
        return [(what, first, end) for what, first, end in self.schedule() if first > step]

    def hear(self, weight, read):
        """What a matrix multiplies in a training step, float [N, in], or looks up, int [N]: a row for each sequence and
        time step, padding left out where the layer knows it. Called while `listens`."""

    def fit(self, model, task, plan):
        """Called before the first epoch. Where no gradient step follows: → rows of metrics.csv, one of them `chosen`, the last
        with the `epoch` that is over; one without `valid` is read off the model. None: train it."""
        return None

    def without_pruned(self, model, optimizer):
        """A context for one epoch, in which what no longer matters may be cut out of the parameters and their state."""
        return nullcontext()

    def says_of(self, name):
        """What one of its options is, in words."""
        return next(one.metadata["says"] for one in fields(self.options) if one.name == name)

    def says(self):
        """Its options in a few words, for a record."""
        return ""

    def rates(self):
        """Rates of its own parameters that differ from the weights', for a record."""
        return ()

    # ---- what they all share

    def items(self):
        """Every item, weights first."""
        return (*self.weights.values(), *self.groups.values())

    @property
    def scope(self):
        """What a sequence keeps its scales in: one forward of the whole model; None outside of any. A part that is computed
        again in the backward pass belongs to the last."""
        return self.last if self.now is None and in_backward() else self.now

    @property
    def learning_steps(self):
        """Steps before what is kept is fixed."""
        epochs = self.steps // self.steps_per_epoch
        share = getattr(self.options, "fine_tune", 0.0)
        return min(round((1 - share) * epochs), epochs - 1) * self.steps_per_epoch

    def may_fix(self):
        """Give every scored item a place for the scores and the mask that fine-tuning holds on to."""
        for item in self.items():
            if getattr(self.options, "fine_tune", 0.0) and self.score(item) is not None:
                item.register_buffer("held_score", torch.zeros_like(item.theta))
                item.register_buffer("mask", torch.ones_like(item.theta, dtype=torch.bool))

    @torch.no_grad()
    def fix(self):
        """From now on what is kept is kept: scores are read once, noise and penalty end."""
        for item in self.items():
            if (score := self.score(item)) is not None:
                item.held_score.copy_(score)
                item.mask.copy_(self.keep_of(item, score))
                item.fixed.fill_(True)

    @property
    def fixed(self):
        return any(bool(item.fixed) for item in self.items())

    @torch.no_grad()
    def scores(self):
        """Name of a weight or axis → its scores, as they were when they were fixed; those that have any."""
        found = {item.name: item.held_score if item.fixed else self.score(item) for item in self.items()}
        return {name: score for name, score in found.items() if score is not None}

    def masks(self, threshold=None):
        """What is kept (`Masks`), at `threshold` or the options'."""
        items = self.weights | self.groups
        return self.masks_of({n: self.keep_of(items[n], score, threshold) for n, score in self.scores().items()})

    # ---- how dense

    def prunable(self):
        """Name → number of the weights that it may prune."""
        sizes = {name: self.shapes[name] for name in self.weights}
        spared = {name: 0 if w.spared is None else sizes[name][1:].numel() for name, w in self.weights.items()}
        return {name: size.numel() - spared[name] for name, size in sizes.items()}

    def reach(self):
        """The least and the largest density that it can end with: a weight of every matrix, and all."""
        sizes = self.prunable().values()
        return len(sizes) / sum(sizes), 1.0

    def density(self, masks=None):
        """Weights kept ÷ weights that it may prune; a weight of a removed word, neuron or gate is none that is kept."""
        names = self.prunable()
        kept = standing(self.masks() if masks is None else masks)
        for name in names:
            if (spared := self.weights[name].spared) is not None:
                kept[name][spared] = False
        return sum(int(kept[name].sum()) for name in names) / sum(names.values())

    def refuse_out_of_reach(self):
        """Raise ValueError for a density that the method cannot end with, with its range."""
        if not (wanted := getattr(self.options, "density", 0.0)):
            return
        least, most = self.reach()
        if not least * (1 - MISSED) <= wanted <= most * (1 + MISSED):
            raise ValueError(f"density is {wanted:g}; what this method can reach here is {least:.4g} to {most:.4g}")

    def missed(self, masks=None):
        """In words, where it is not at the density it was asked for; None: it is, or was asked for none."""
        wanted = getattr(self.options, "density", 0.0)
        if not wanted or abs((found := self.density(masks)) / wanted - 1) <= MISSED:
            return None
        return f"at a density of {found:.4g}, not at {wanted:g} as asked (±{MISSED:.0%})"

    def refuse_missed(self, masks=None):
        """Raise ValueError for a training that has not ended at the density it was asked for."""
        if missed := self.missed(masks):
            raise ValueError(f"the training ended {missed}")

    def masks_of(self, keep):
        """`Masks` of a bool tensor a scored item; everything else is kept."""
        keep = {name: mask.cpu() for name, mask in keep.items()}
        groups = {name: keep.pop(name) for name in self.groups if name in keep}
        weights = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.shapes.items() if len(shape) == 2}
        return Masks(self.axes, weights | keep, groups)

    def means(self):
        """Axis name → mean of its group variable, for evaluation; of those that have one."""
        return {name: group.mean for name, group in self.groups.items() if group.theta is not None}


class Dense(Method):
    """The network as it is: trained, early-stopped on validation, nothing removed."""
