"""What the training loop asks of a method. The base class is a method that does nothing: `dense`."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.func import functional_call

from ..nets.masks import Masks


@dataclass
class Draw:
    """One sample of everything a method touches: what the model is called with in this step.

    weights  parameter name → tensor to use instead          scales  `layer.scale` → [B, n]
    noise    linear layer → (variance, ε)                    tokens  the batch's ids, as the drawn weights number them
    """

    tokens: torch.Tensor
    weights: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    noise: dict = field(default_factory=dict)

    def run(self, model, lengths=None, state=None):
        extras = {"lengths": lengths, "state": state, "scales": self.scales, "noise": self.noise}
        return functional_call(model, self.weights, (self.tokens,), extras)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `share` of the epochs; only from `selectable` phases is an epoch chosen on validation."""

    name: str
    share: float
    selectable: bool


class Method(nn.Module):
    """A way of making a recurrent network small. Subclasses override what they need; this base is `dense`."""

    default_model: str | None = None  # the preset to use where none is named; None: the task's own

    def prepare(self, model, plan, n_examples, steps_per_epoch):
        """Add the method's parameters. plan: hyper-parameters; n_examples: what the penalty is divided by."""
        object.__setattr__(self, "model", model)  # not a submodule: its parameters are not the method's

    def parameter_groups(self, plan):
        """The method's own parameters for the optimiser: groups with their `lr`, and `decays=True` where it follows
        the weights' towards `lr_end`."""
        return []

    def phases(self):
        return (Phase("learn", 1.0, selectable=True),)

    def needs(self):
        """Methods whose finished runs of the same task and model this one reads."""
        return ()

    def fit(self, task, plan):
        """For methods that do not learn by gradient steps: fit the model; → rows of metrics.csv (one has `chosen`).
        None: train it."""
        return None

    def resting(self, optimizer):
        """A context for one epoch, in which what no longer matters may be cut out of the parameters and their state."""
        return nullcontext()

    def sample(self, batch):
        """→ Draw for one training step."""
        return Draw(batch.tokens, self.sample_weights(), self.sample_scales(batch.tokens.shape[1]))

    def sample_weights(self):
        """Parameter name → the tensor to use in this step, for those that are not used as they are."""
        return {}

    def sample_scales(self, batch_size):
        """`layer.scale` → [batch_size|1, n] to use in this step."""
        return {}

    def penalty(self, step):
        """What is added to the loss, nats per example."""
        return 0.0

    def after_step(self, step):
        """Thresholds, masks, clipping: called after every optimiser step."""

    def masks(self, threshold=None):
        """What is kept (`Masks`), at `threshold` or the plan's."""
        return Masks.all_kept(self.model)

    def means(self):
        """Axis name → mean of its group variable, for evaluation."""
        return {}

    def log_alpha(self):
        """Parameter or axis name → log α, for reading and drawing. Empty where the method has none."""
        return {}


class Dense(Method):
    """The network as it is: trained, early-stopped on validation, nothing removed."""
