"""Train a run to its end, whatever interrupts it, and turn it into a compact model and a record.

`ensure(config)` is the one entry: it finds a finished run, resumes a killed one, or trains anew. It trains on the GPU
where there is one (CUDA_VISIBLE_DEVICES hides it); a finished run lives on the CPU.
"""

import atexit
import copy
import fcntl
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.func import functional_call

from .. import sparsify, tasks
from ..files import error, replacing
from ..nets.compact import compact, load, save
from ..nets.layers import Recurrent
from ..nets.masks import close, closed_count, effective, paper_count, weight_matrices
from ..records import constant_gates, count_fields, joined, where_and_with
from ..tasks.words import OOV
from .config import RunConfig, begun
from .presets import preset

EVALUATION_BATCH = 256  # sequences; where a state is carried the batch is the number of streams, and stays


class Run:
    """A finished run, at the epoch chosen on validation.

    config, directory, task     what it is, where its files are, its data
    model, method               trained; `method.masks()` says what is kept
    compact, record, metrics    the small model (`Compact`), its row (dict), a row an epoch (DataFrame)
    """

    def __init__(self, config, directory, session):
        self.config, self.directory, self.task = config, directory, session.task
        self.model, self.method = session.model, session.method
        self.compact = load(directory / "model.safetensors")
        self.record = json.loads((directory / "record.json").read_text())
        self.metrics = pd.read_csv(directory / "metrics.csv")

    def predictor(self, masks):
        """The model under masks, as `evaluate` calls it."""
        return masked_predictor(self.model, masks, self.method.means())

    def threshold_curve(self, thresholds):
        """Quality against threshold, on validation: DataFrame of threshold, valid, compression, weights_kept, gates_live."""
        rows = []
        for threshold in thresholds:
            masks = self.method.masks(threshold)
            count = paper_count(masks)
            valid = evaluate(self.predictor(masks), self.task, "valid", self.config.plan)
            kept = {"weights_kept": count.weights_kept, "gates_live": sum(count.gates_live)}
            rows.append({"threshold": threshold, "valid": valid, "compression": count.compression} | kept)
        return pd.DataFrame(rows)


def masked_predictor(model, masks, means):
    """(tokens, lengths, state) → logits, state of `model` with pruned weights and scales at zero, the others at their mean.
    It runs where the model is."""
    with torch.no_grad():
        weights, scales = effective(model, masks, means)

    def predict(tokens, lengths, state):
        extras = {"lengths": lengths, "state": state, "scales": scales}
        with torch.no_grad():
            return functional_call(model, weights, (tokens,), extras)

    return predict


def evaluate(predict, task, split, plan, device="cpu"):
    """The task's metric of a predictor `(tokens, lengths, state) → logits, state` over a split."""
    total = count = 0
    for batch, logits in predictions(predict, task, split, plan, device):
        part, number = task.score(logits, batch)
        total, count = total + part, count + number
    return task.metric_of(total, count)


def predictions(predict, task, split, plan, device="cpu"):
    """(batch, logits) over a split in evaluation order, the state carried where the task carries it; on a device."""
    state, batch_size = None, plan.batch_size if plan.steps else max(plan.batch_size, EVALUATION_BATCH)
    for batch in task.batches(split, batch_size, plan.steps or None):
        batch = batch.to(device)
        logits, state = predict(batch.tokens, batch.lengths, state if batch.carry else None)
        yield batch, logits


class Session:
    """Model, method, optimiser and counters of one training on a device, and their one-file checkpoint."""

    def __init__(self, config, task, device="cpu"):
        self.config, self.plan, self.task, self.device = config, config.plan, task, device
        torch.manual_seed(config.seed)
        self.model = preset(config.task, config.model).build(self.task).to(device)
        for layer in self.model.modules():
            if isinstance(layer, Recurrent):
                layer.rounds_state = self.plan.products == "bfloat16-state"
        self.rounds = self.plan.products != "float32" and multiplies_bfloat16(device)
        self.method = sparsify.make(config.method)
        self.steps_per_epoch = task.steps_per_epoch(self.plan.batch_size, self.plan.steps)
        self.method.prepare(self.model, self.plan, self.task.n_examples, self.steps_per_epoch)
        self.method.to(device)
        groups = [{"params": list(self.model.parameters()), "lr": self.plan.lr, "decays": True}]
        groups += self.method.parameter_groups(self.plan)
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.parameters = [p for group in groups for p in group["params"]]
        self.epoch, self.seconds, self.best_epoch, self.best_valid, self.best = 0, 0.0, -1, math.nan, {}

    def tensors(self):
        """What training changes, without the optimiser."""
        return {f"{part}.{name}": value for part, module in (("model", self.model), ("method", self.method))
                for name, value in module.state_dict().items()}  # fmt: skip

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
        with self.method.resting(self.optimizer):
            yield from self._steps()

    def _steps(self):
        order = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch)
        state = None
        batches = self.task.batches("train", self.plan.batch_size, self.plan.steps or None, order)
        for step, batch in enumerate(batches, self.epoch * self.steps_per_epoch):
            self.set_rates(step)
            batch = batch.to(self.device)
            draw = self.method.sample(self.hide_words(batch))
            with torch.autocast(batch.tokens.device.type, torch.bfloat16, self.rounds):
                logits, state = draw.run(self.model, batch.lengths, state if batch.carry else None)
            logits = logits.to(torch.get_default_dtype())
            state = None if state is None else tuple(s.detach() for s in state)
            loss, penalty = self.task.loss(logits, batch), self.method.penalty(step)
            self.optimizer.zero_grad()
            (loss + penalty).backward()
            if self.plan.clip:
                torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
            self.optimizer.step()
            self.method.after_step(step)
            yield loss.item(), penalty.item() if isinstance(penalty, torch.Tensor) else penalty

    def set_rates(self, step):
        """Learning rates of a step: constant for a share `lr_hold`, a straight line to `lr_end` at `lr_rest`, constant."""
        done, hold = step / (self.plan.epochs * self.steps_per_epoch), self.plan.lr_hold
        past = min(max(0.0, (done - hold) / (self.plan.lr_rest - hold)), 1.0)
        for group in self.optimizer.param_groups:
            if group.get("decays"):
                group["lr"] = self.plan.lr * (1 + (self.plan.lr_end - 1) * past)

    def hide_words(self, batch):
        """Some words replaced by the out-of-vocabulary id, anew for every batch (small corpora are learnt by heart)."""
        if not self.plan.word_dropout:
            return batch
        hidden = (torch.rand(batch.tokens.shape, device=self.device) < self.plan.word_dropout) & (batch.tokens > OOV)
        return replace(batch, tokens=batch.tokens.masked_fill(hidden, OOV))

    def read_off(self):
        """Validation metric and counts as the model stands."""
        masks = self.method.masks()
        predict = masked_predictor(self.model, masks, self.method.means())
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
            self.best = {name: value.clone() for name, value in self.tensors().items()}

    def save(self, path):
        """ONE file: weights, optimiser, every RNG state, the best epoch so far, counters."""
        tensors = {name: value.clone() for name, value in self.tensors().items()}
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
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"counters": json.dumps(counters)})

    def restore(self, path):
        with safe_open(path, "pt") as file:
            counters = json.loads(file.metadata()["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, value in counters.items():
            setattr(self, name, value)
        self.best = {
            name.removeprefix("best."): tensors.pop(name) for name in list(tensors) if name.startswith("best.")
        }
        self.set(tensors)
        state = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, field = name.split(".")
                state.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])

    def set(self, tensors):
        for part, module in (("model", self.model), ("method", self.method)):
            state = {n.removeprefix(part + "."): value for n, value in tensors.items() if n.startswith(part + ".")}
            module.load_state_dict(state)


def ensure(config: RunConfig, report=None) -> Run:
    """A finished run of `config`: found, resumed or trained. `report(line)` is told the cost, then a line an epoch.

    The profile `smoke` always trains anew, in a temporary directory, on one thread. Raises ValueError when the run's
    directory holds another configuration (naming the field), RuntimeError when another process is writing it.
    """
    report = report or (lambda line: None)
    if config.profile == "smoke":
        with _one_thread():
            scratch = Path(tempfile.mkdtemp(prefix="sparsernn-smoke-"))
            atexit.register(shutil.rmtree, scratch, ignore_errors=True)
            return _ensure(config, scratch, report)
    return _ensure(config, config.directory, report)


def _ensure(config, directory, report):
    directory.mkdir(parents=True, exist_ok=True)
    with _only_writer(directory):
        session = Session(config, tasks.load(config.task, config.profile), training_device(config))
        _check_config(config, session.task, directory)
        checkpoint = directory / "checkpoint.safetensors"
        _train(session, directory, checkpoint, report)
        session.set(session.best)
        session.model.cpu(), session.method.cpu()
        if not (directory / "record.json").exists():
            _finish(session, directory, report)
    return Run(config, directory, session)


def training_device(config):
    """A GPU, where there is one; the profile `smoke` says the same everywhere, and stays on the CPU."""
    return "cuda" if torch.cuda.is_available() and config.profile != "smoke" else "cpu"


def multiplies_bfloat16(device):
    """Whether the processor has units for products of bfloat16; without them one takes 30 times as long as in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _only_writer(directory):
    """A lock that dies with its process."""
    with open(directory / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RuntimeError(
                f"{directory} is being written by process {lock.read().strip() or '?'}; wait for it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_config(config, task, directory):
    """Write config.json, or refuse to go on with a run that was begun as something else."""
    path, now = directory / "config.json", config.as_dict() | {"data_sha256": task.data_sha256, "metric": task.metric}
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n")
        return
    before = begun(path)
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) != before.get(name):
            raise ValueError(
                f"{directory} was begun with {name} = {before.get(name)!r}, now it is {now.get(name)!r}; "
                "put it back, or remove the directory to train anew"
            )


def _train(session, directory, checkpoint, report):
    """From wherever it stands to the last epoch; metrics.csv and the checkpoint are replaced after every epoch."""
    rows, epochs = [], session.plan.epochs
    if checkpoint.exists():
        session.restore(checkpoint)
        rows = pd.read_csv(directory / "metrics.csv", dtype={"hidden_kept": str, "gates_live": str}).to_dict("records")
        rows = [row for row in rows if row["epoch"] <= session.epoch]  # what came after the checkpoint happens again
        _write(rows, directory / "metrics.csv")
    else:
        start = time.perf_counter()
        fitted = session.method.fit(session.task, session.plan)
        if fitted is not None:
            rows, session.epoch, session.seconds = fitted, len(fitted), round(time.perf_counter() - start, 3)
            session.note_best(session.read_off()["valid"])
            session.best_epoch = next(row["epoch"] for row in rows if row["chosen"])
            _write(rows, directory / "metrics.csv")
            session.save(checkpoint)
    if session.epoch < epochs:
        report(_forecast(session))
    while session.epoch < epochs:
        start = time.perf_counter()
        loss, penalty = (sum(values) / len(values) for values in zip(*session.steps(), strict=True))
        phase = session.phase(session.epoch)
        session.epoch += 1
        row = {"epoch": session.epoch, "step": session.epoch * session.steps_per_epoch, "phase": phase.name}
        row |= {"train_loss": loss, "penalty": penalty} | session.read_off()
        if phase.selectable:
            session.note_best(row["valid"])
        row["seconds"] = round(time.perf_counter() - start, 3)
        session.seconds += row["seconds"]
        rows.append(row)
        _write(rows, directory / "metrics.csv")
        session.save(checkpoint)
        report(
            f"epoch {session.epoch}/{epochs}  loss {loss:.4f} + {penalty:.4f}  valid {session.task.metric} "
            f"{row['valid']:.4f}  {row['compression']:.1f}x  gates {row['gates_live']}  {row['seconds']:.1f} s"
        )


def _write(rows, path):
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _forecast(session, trial=4):
    """What is ahead, from a few steps of a twin that is thrown away."""
    with torch.random.fork_rng():
        steps = Session(session.config, session.task, session.device).steps()
        next(steps)  # warms up
        start = time.perf_counter()
        trial = sum(1 for _ in itertools.islice(steps, trial))
        seconds = (time.perf_counter() - start) / max(trial, 1) * session.steps_per_epoch
    left = session.plan.epochs - session.epoch
    return f"{left} epochs × {seconds:.0f} s (training alone) = {left * seconds / 60:.1f} min"


def _finish(session, directory, report):
    """Masks → compact model, proven equal, measured, recorded. The test split is read here, once, after every choice."""
    config, task, plan, method = session.config, session.task, session.plan, session.method
    masks, means = method.masks(), method.means()
    closed = close(masks)
    masked = masked_predictor(session.model, masks, means)
    size = save(compact(session.model, masks, means), directory / "model.safetensors")
    small = load(directory / "model.safetensors")
    error = compact_error(session.model, masks, means, task, plan)
    tests = {name: evaluate(predict, task, "test", plan) for name, predict in (("masked", masked), ("compact", small))}
    spec = preset(config.task, config.model)
    dense = session.model if spec.equivalent is None else preset(config.task, spec.equivalent).build(task)
    total, full = (sum(p.numel() for p in part) for part in (weight_matrices(dense).values(), dense.parameters()))
    record = {name: getattr(config, name) for name in ("task", "model", "method", "variant", "profile", "seed")}
    record |= {"cell": small.meta.get("cell", ""), "schedule": schedule(plan), "metric": task.metric}
    record |= {
        "valid": evaluate(small, task, "valid", plan),
        "test": tests["compact"],
        "epoch_selected": session.best_epoch,
    }
    record |= count_fields(paper_count(masks), closed_count(closed), total) | {"gates_constant": constant_gates(closed)}
    record |= {"size_bytes": size, "size_bytes_dense": 4 * full, "compact_error": error}
    record |= {"metric_difference": abs(tests["compact"] - tests["masked"])}
    record |= {
        "epochs": session.epoch,
        "steps": session.epoch * session.steps_per_epoch,
        "train_seconds": session.seconds,
    }
    record |= {"data_sha256": task.data_sha256, "data_note": task.data_note} | where_and_with(session.device)
    with replacing(directory / "record.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    report(f"test {task.metric} {record['test']:.4f}  {record['compression']:.1f}x  compact error {error:.1e}")


def compact_error(model, masks, means, task, plan):
    """Largest relative difference of logits, compact against masked, float64, whole test set."""
    double = copy.deepcopy(model).double()
    means = {name: mean.double() for name, mean in means.items()}
    pairs = zip(
        predictions(masked_predictor(double, masks, means), task, "test", plan),
        predictions(compact(double, masks, means), task, "test", plan),
        strict=True,
    )
    return max(error(small, reference) for (_, reference), (_, small) in pairs)


def schedule(plan):
    """A plan in a few words, for a record."""
    window = f"x{plan.steps}" if plan.steps else ""
    return (
        f"adam {plan.lr:g}/{plan.lr_log_sigma:g} batch {plan.batch_size}{window} kl {plan.kl_start:g}-{plan.kl_full:g}"
    )
