"""One training: model, method, optimiser and counters, epoch by epoch, and their one-file checkpoint."""

import json
import math
from dataclasses import replace

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .. import sparsify
from ..files import replacing
from ..nets.layers import Recurrent
from ..nets.masks import paper_count
from ..records import joined
from ..sparsify.attach import put_on
from ..tasks.base import detached
from ..tasks.words import OOV
from .evaluation import evaluate, predictor
from .optimisers import OPTIMISERS, PATIENCE, Averages, share_of_rate
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
        self.rounds = self.plan.products != "float32" and multiplies_bfloat16(device)
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
            strict=False,
        )
        self.method = self.study.method
        self.model.to(device)
        groups = [group | {"initial_lr": group["lr"]} for group in self.study.parameter_groups(self.plan.lr)]
        self.optimizer = OPTIMISERS[self.plan.optimiser](groups, self.plan)
        self.averages = Averages(self.optimizer, PATIENCE.get(self.plan.optimiser), task.better)
        self.parameters = [p for group in groups for p in group["params"]]
        self.epoch, self.seconds, self.best_epoch, self.best_valid, self.best = 0, 0.0, -1, math.nan, {}

    def phase(self, epoch):
        """The phase an epoch (0-based) lies in; the last epoch is always in the last phase, however few there are."""
        phases, end = self.method.phases(), 0.0
        for phase in phases[:-1]:
            end += phase.share * self.plan.epochs
            if epoch < min(round(end), self.plan.epochs - 1):
                return phase
        return phases[-1]

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
        for step, batch in enumerate(batches, first):
            self.set_rates(step)
            self.study.step = self.method.step = step  # a random offset may make an epoch a step shorter
            batch = self.hide_words(batch.to(self.device))
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, self.rounds):
                logits, state = self.model(*batch.inputs, lengths=batch.lengths, state=state if batch.carry else None)
            logits = logits.to(torch.get_default_dtype())
            state = detached(state)
            loss, penalty = self.task.loss(logits, batch), self.study.penalty()
            self.optimizer.zero_grad()
            (loss + penalty).backward()
            norm = None
            if self.plan.clip:
                norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
            if not math.isfinite(loss.item()):
                raise Diverged(self, step, loss.item(), norm)
            self.optimizer.step()
            self.study.after_step()
            self.averages.step()
            yield loss.item(), penalty.item() if isinstance(penalty, torch.Tensor) else penalty

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
        """Keep a copy of this epoch if it is the best on validation so far."""
        better = valid > self.best_valid if self.task.better == "higher" else valid < self.best_valid
        if self.best_epoch < 0 or better:
            self.best_epoch, self.best_valid = self.epoch, valid
            with self.averages.in_place():
                self.best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def save(self, path):
        """ONE file: weights, optimiser, every RNG state, the best epoch so far, counters."""
        tensors = {"model." + name: value.clone() for name, value in self.model.state_dict().items()}
        tensors |= {"best." + name: value for name, value in self.best.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        counters = {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_valid": self.best_valid,
            "checks": self.averages.checks,
            "averaged": self.averages.count,
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"counters": json.dumps(counters)})

    def restore(self, path):
        with safe_open(path, "pt") as file:
            counters = json.loads(file.metadata()["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts = {part: {} for part in ("model", "best", "optimizer", "rng")}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        young = {n: v for n, v in self.model.state_dict().items() if ".carried." in n and n.endswith(".pressure")}
        for part in ("model", "best"):  # a checkpoint from before there was one: it stands where it starts
            parts[part] = parts[part] and young | parts[part]
        if len(parts) > 4 or parts["model"].keys() != self.model.state_dict().keys():
            raise ValueError(
                f"{path} was written by another version of the library, whose names of parameters differ: go on with that "
                "version, or remove the directory to train anew"
            )
        self.averages.checks, self.averages.count = counters.pop("checks", []), counters.pop("averaged", 0)
        for name, value in counters.items():
            setattr(self, name, value)
        self.best = parts["best"]
        self.model.load_state_dict(parts["model"])
        self.study.load_state_dict({"step": self.epoch * self.steps_per_epoch})
        state = {}
        for name, value in parts["optimizer"].items():
            index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(parts["rng"]["cpu"])
        if "cuda" in parts["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts["rng"]["cuda"])


class Diverged(RuntimeError):
    """The loss is no number any more: says where, how large the gradient was, and which epoch is kept."""

    def __init__(self, session, step, loss, norm):
        if norm is None:
            grads = [p.grad for p in session.parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        place = f"epoch {session.epoch + 1}, step {step - session.epoch * session.steps_per_epoch + 1}"
        kept = (
            f"epoch {session.best_epoch} is the best so far" if session.best_epoch > 0 else "no epoch before it is kept"
        )
        super().__init__(
            f"the loss is {loss} in {place} (gradient norm {float(norm):.3g}); {kept}. Lower lr, or set clip"
        )


def multiplies_bfloat16(device):
    """Whether the processor has units for products of bfloat16; without them one takes 30 times as long as in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
