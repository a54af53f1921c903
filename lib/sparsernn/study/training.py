"""One training: model, method, optimiser and counters, epoch by epoch."""

import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial

import torch

from .. import sparsify
from ..nets.layers import Recurrent
from ..nets.masks import paper_count
from ..records import joined
from ..sparsify.attach import put_on
from ..tasks.base import detached
from ..tasks.words import OOV
from .evaluation import evaluate, predictor
from .optimisers import OPTIMISERS, PATIENCE, Averages, moved, share_of_rate
from .presets import preset


class Session:
    """Model, method, optimiser and counters of one training on a device.

    finished   method → state_dict of the finished run it starts from, for methods that need one
    """

    def __init__(self, config, task, device="cpu", finished=None):
        self.config, self.plan, self.task, self.device, self.finished = config, config.plan, task, device, finished
        if self.plan.word_dropout and not task.vocabulary:
            raise ValueError(f"word_dropout is {self.plan.word_dropout}, but {task.name!r} has no words; set it to 0")
        torch.manual_seed(config.seed)
        self.model = preset(config.task, config.model).build(self.task).to(device)
        task.initialise(self.model)
        for layer in self.model.modules():
            if isinstance(layer, Recurrent):
                layer.rounds_state = self.plan.products == "bfloat16-state"
        self.rounds = self.plan.products != "float32" and bfloat16_is_faster(device)
        self.steps_per_epoch = task.steps_per_epoch(self.plan.batch_size, self.plan.steps)
        self.study = put_on(
            self.model,
            sparsify.make(config.method, config.options),
            steps=self.plan.epochs * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            n_examples=task.n_examples,
            reference=finished,
            batch_dim=1,
            needs_recurrent=False,
            warns=False,
        )
        self.method = self.study.method
        if self.plan.int8_noise and self.method.cuts:
            raise ValueError(
                f"int8_noise is {self.plan.int8_noise}, but this method cuts what it prunes out of the training; set sleep_above "
                "to 0"
            )
        self.model.to(device)
        groups = [group | {"initial_lr": group["lr"]} for group in self.study.parameter_groups(self.plan.lr)]
        self.optimizer = OPTIMISERS[self.plan.optimiser](groups, self.plan)
        self.averages = Averages(self.optimizer, PATIENCE.get(self.plan.optimiser), task.better)
        self.parameters, self.clipped = [p for group in groups for p in group["params"]], moved(groups, self.plan)
        self.unclipped = [p for p in self.parameters if not any(p is other for other in self.clipped)]
        self.epoch, self.seconds, self.best_epoch, self.best_valid, self.best = 0, 0.0, -1, math.nan, {}

    def phase(self, epoch):
        """The phase an epoch (0-based) lies in; the last epoch is always in the last phase, however few there are."""
        phases, end = self.method.phases(), 0.0
        for phase in phases[:-1]:
            end += phase.share * self.plan.epochs
            if epoch < min(round(end), self.plan.epochs - 1):
                return phase
        return phases[-1]

    def is_rounding(self, epoch):
        """Whether weights stand beside themselves in an epoch (0-based) as int8 would put them; in the last one, if in any."""
        noisy = self.plan.int8_noise * self.plan.epochs
        return noisy > 0 and epoch >= min(round(self.plan.epochs - noisy), self.plan.epochs - 1)

    def may_choose(self, epoch):
        """Whether an epoch (0-based) may be chosen on validation."""
        return self.phase(epoch).selectable and (not self.plan.int8_noise or self.is_rounding(epoch))

    def steps(self):
        """One epoch, a training step at a time: yields (loss, penalty), nats per example."""
        self.model.train()
        with self.method.without_pruned(self.model, self.optimizer):
            yield from self._steps()

    def _steps(self):
        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch)
        state = None
        batches = self.task.batches("train", self.plan.batch_size, self.plan.steps or None, order)
        first = self.epoch * self.steps_per_epoch
        beside = partial(self.study.rounding, self.study.masks()) if self.is_rounding(self.epoch) else nullcontext
        for step, batch in enumerate(batches, first):
            self.set_rates(step)
            self.study.step = self.method.step = step  # a random offset may make an epoch a step shorter
            batch = self.hide_words(batch.to(self.device))
            with beside():
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, self.rounds):
                    logits, state = self.model(
                        *batch.inputs, lengths=batch.lengths, state=state if batch.carry else None
                    )
                logits = logits.to(torch.get_default_dtype())
                state = detached(state)
                loss, penalty = self.task.loss(logits, batch), self.study.penalty()
                self.optimizer.zero_grad()
                (loss + penalty).backward()
            costs = {"loss": loss.item(), "penalty": penalty.item() if isinstance(penalty, torch.Tensor) else penalty}
            if self.plan.clip:
                costs["gradient's norm"] = clipped(self.clipped, self.plan.clip)
                if unclipped := [p.grad for p in self.unclipped if p.grad is not None]:
                    costs["norm of the gradient beside the clip"] = torch.nn.utils.get_total_norm(unclipped).item()
            if odd := [name for name, cost in costs.items() if not math.isfinite(cost)]:
                place = f"epoch {self.epoch + 1}, step {step - first + 1}"
                raise Diverged(self, f"the {odd[0]} is {costs[odd[0]]}", place)
            self.optimizer.step()
            self.study.after_step()
            self.averages.step()
            yield costs["loss"], costs["penalty"]

    def set_rates(self, step):
        """The rates of a step, for what follows the plan's."""
        share = share_of_rate(self.plan, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            if group.get("decays"):
                group["lr"] = group["initial_lr"] * share

    def hide_words(self, batch):
        """Some words replaced by the out-of-vocabulary id, anew for every batch (small corpora are learnt by heart)."""
        if not self.plan.word_dropout:
            return batch
        hidden = (torch.rand(batch.tokens.shape, device=self.device) < self.plan.word_dropout) & (batch.tokens > OOV)
        return replace(batch, inputs=(batch.tokens.masked_fill(hidden, OOV), *batch.inputs[1:]))

    def refuse_no_numbers(self):
        """Raise `Diverged` where a parameter is no finite number: a last step can do that, and accuracy would not show it."""
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise Diverged(self, f"{name} is not finite", f"epoch {self.epoch + 1}, after its last step")

    def read_off(self):
        """Validation metric and counts as the model stands, of its averages where it has some."""
        with self.averages.in_place():
            masks = self.study.masks()
            predict = predictor(self.model, masks, self.study.means())
            valid = evaluate(predict, self.task, "valid", self.plan, self.device)
        count = paper_count(masks)
        return {
            "valid": valid,
            "weights_kept": count.weights_kept,
            "compression": count.compression,
            "vocabulary_kept": count.vocabulary_kept,
            "input_kept": count.input_kept,
            "hidden_kept": joined(count.hidden_kept),
            "gates_live": joined(count.gates_live),
        }

    def note_best(self, valid):
        """Keep a copy of this epoch if it is the best on validation so far, where that is a number."""
        if not math.isfinite(valid):
            return
        better = valid > self.best_valid if self.task.better == "higher" else valid < self.best_valid
        if self.best_epoch < 0 or better:
            self.best_epoch, self.best_valid = self.epoch, valid
            with self.averages.in_place():
                self.best = {name: value.clone() for name, value in self.model.state_dict().items()}


class Diverged(RuntimeError):
    """Something is no number any more: says what, where, how large the gradient was, and which epoch is kept.

    place   "epoch 3, step 14", both counted from 1
    """

    def __init__(self, session, what, place):
        gradients = [p.grad for p in session.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        kept = f"epoch {session.best_epoch} is the best so far" if session.best else "no epoch before it is kept"
        self.place = place
        super().__init__(f"{what} in {place} (gradient norm {norm:.3g}); {kept}. Lower lr, or set clip")


def clipped(parameters, most):
    """The norm of all gradients together, which are scaled down to `most` where it is larger, and else not touched."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm.item()


@cache
def bfloat16_is_faster(device):
    """Whether a product of factors rounded to bfloat16 takes less time than one of float32. On a CPU it is timed: with AVX-512
    for bfloat16 an AMD EPYC is faster, an Intel Xeon whose AMX is off takes twice as long, one without either 30 times."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    a, b = torch.ones(512, 256), torch.ones(256, 2048)
    ways = (lambda: a @ b, lambda: a.bfloat16() @ b.bfloat16())
    seconds = [[seconds_of(way) for way in ways] for _ in range(12)][1:]  # in turn, the first time not counted
    return statistics.median(rounded / exact for exact, rounded in seconds) < 1  # whatever else runs slows both


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
