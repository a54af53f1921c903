"""One-shot pruning: masks read off a finished dense network, which is then trained on under them, or left as it is.

What goes is decided by size; by size times the norm of what a weight multiplies (Wanda, 2306.11695); by the squared error
that is left of each product once the other weights have made up for it (SparseGPT, 2301.00774: half of the weights at little
loss of large transformers); or by ½ w² ∂²E/∂w², the way through time included (Pedersen & Hansen, NIPS 1994). The last
three look at a few training batches. A recurrent matrix reads a vector at every time step, and all of them count.
"""

import itertools
from dataclasses import dataclass

import torch

from ..tasks.base import detached
from .base import Wanted
from .layerwise import Seen, compensated, within_outputs
from .masking import Masked, largest
from .options import option


@dataclass(frozen=True)
class OneShotOptions(Wanted):
    """Of pruning a finished network."""

    density: float = option(0.1, "weights kept ÷ weights of the network", above=0, most=1)
    criterion: str = option(
        "magnitude",
        "magnitude: |w|, compared within a type of weight; wanda: |w|·‖x‖₂, within an output; hessian: squared error of a "
        "product, within a matrix; fisher: ½ w² times the mean squared gradient of a batch, which stands for the second "
        "derivative of the loss, over the whole network",
        choices=("magnitude", "wanda", "hessian", "fisher"),
    )
    calibration: int = option(16, "training batches that all criteria but magnitude look at", least=1)
    retrain: bool = option(True, "whether it is trained on under the masks; False: one shot and nothing more")


class OneShot(Masked):
    """Masks of a finished dense run, whose weights the model goes on with.

    The first `calibration` training steps look and prune nothing: after each of them the weights are put back to what they
    were; then the masks are cut, once. Forward passes with `study.after_step()` and no optimiser do just as well ("fisher"
    wants a backward pass too), and are all that `retrain=False` needs; the study makes these before its first epoch. A
    training of one's own that is killed before the masks are cut looks at as many batches anew. A matrix that is looked up
    in one layer and multiplied in another (tied) is judged by the products.
    """

    Options = OneShotOptions
    continues = True
    begins = "pruning", "calibration"

    def __init__(self, options=None):
        super().__init__(options)
        self.seen = Seen()  # what was looked at → its sum over the steps so far

    def needs(self):
        return ("dense",)

    def start_from(self, finished):
        self.finished = finished["dense"]

    def prepare(self):
        super().prepare()
        for weight in self.weights.values():
            weight.register_buffer("cut", torch.tensor(False))
        if not self.looks:
            self.cut()

    # ---- when

    @property
    def looks(self):
        """Steps before the masks are cut."""
        return 0 if self.options.criterion == "magnitude" else self.options.calibration

    @property
    def is_cut(self):
        return bool(next(iter(self.weights.values())).cut)

    @property
    def looks_on(self):
        return not self.is_cut

    @property
    def trains(self):
        return self.options.retrain

    @torch.no_grad()
    def after_step(self, step):
        if not self.is_cut:
            for weight in self.weights.values():
                if self.options.criterion == "fisher":
                    self.seen.feel(weight)
            self.seen.add("steps", 1)
            if self.seen["steps"] >= self.looks:
                self.cut()
        self.apply()

    def fit(self, model, task, plan):
        device, order, state = next(model.parameters()).device, torch.Generator().manual_seed(0), None
        epochs = (task.batches("train", plan.batch_size, plan.steps or None, order) for _ in itertools.count())
        model.train()
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), self.looks):
            batch, state = batch.to(device), detached(state) if batch.carry else None
            with torch.set_grad_enabled(self.options.criterion == "fisher"):
                logits, state = model(*batch.inputs, lengths=batch.lengths, state=state)
                loss = task.loss(logits.to(torch.get_default_dtype()), batch)
            if loss.requires_grad:
                loss.backward()
            self.after_step(0)
            model.zero_grad()
        return None if self.options.retrain else [{"epoch": 0, "chosen": True}]

    def schedule(self):
        return [] if self.is_cut else [("pruned", self.looks - 1, self.looks)]

    def says(self):
        return f"dense cut by {self.options.criterion}" + ("" if self.options.retrain else ", not retrained")

    # ---- what is looked at

    @property
    def listens(self):
        return self.options.criterion in ("wanda", "hessian") and not self.is_cut

    def hear(self, weight, read):
        self.seen.hear(weight, read)

    # ---- what is cut

    @torch.no_grad()
    def cut(self):
        getattr(self, self.options.criterion)()
        for weight in self.weights.values():
            weight.cut.fill_(True)
        self.seen.clear(), self.apply()

    def magnitude(self):
        for _, weights in self.of_types():
            self.keep_largest(weights, [weight.theta.abs() for weight in weights])

    def fisher(self):
        """½ w² ∂²E/∂w², but for a factor: Pedersen & Hansen take the second derivative as Gauss and Newton do, sequence by
        sequence; here the squared gradient of a batch, by the labels it has, stands for it (the empirical Fisher)."""
        weights = list(self.weights.values())
        self.keep_largest(weights, [weight.theta.square() * self.seen[weight.name, "gradient"] for weight in weights])

    def wanda(self):
        for weight in self.weights.values():
            power, count = self.seen.power(weight), self.left_of([weight])
            scores = weight.theta.abs() * power.sqrt()
            if weight.spared is not None:
                scores[weight.spared] = -1
            outputs = 0 if len(power) == 1 else 1  # the outputs of a look-up are the numbers of a word
            self.narrow(weight, within_outputs(scores.movedim(outputs, 0), count).movedim(0, outputs))

    def hessian(self):
        for weight in self.weights.values():
            if (weight.name, "products") in self.seen and weight.spared is None:
                left, keep = compensated(weight.theta, self.seen[weight.name, "products"], self.options.density)
                weight.theta.copy_(left)
                self.narrow(weight, keep)
            else:  # looked up: H is diagonal, and no word can make up for another
                self.keep_largest([weight], [weight.theta.square() * self.seen.power(weight)])

    def keep_largest(self, weights, scores):
        """Keep the largest of some matrices together; what is spared stays without being counted."""
        for weight, mine in zip(weights, scores, strict=True):
            if weight.spared is not None:
                mine[weight.spared] = -1
        keep = largest(torch.cat([mine.flatten() for mine in scores]), self.left_of(weights))
        for weight, mine in zip(weights, keep.split([mine.numel() for mine in scores]), strict=True):
            self.narrow(weight, mine.view_as(weight.theta))

    def left_of(self, weights):
        """How many weights of some matrices are to stay, of those that may be pruned."""
        may = self.prunable()
        return round(self.options.density * sum(may[weight.name] for weight in weights))
