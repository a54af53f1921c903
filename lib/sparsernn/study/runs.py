"""Runs that are found, resumed or trained once, whatever interrupts them, and turned into a compact model and a record.

`ensure(config)` is the one entry. It trains on the GPU where there is one (CUDA_VISIBLE_DEVICES hides it); a finished run
lives on the CPU.
"""

import atexit
import errno
import itertools
import json
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch

from .. import records, sparsify, tasks
from ..files import clear, replacing
from ..lease import held
from ..nets.compact import shrunk
from ..nets.file import load, save
from ..nets.found import Found
from ..nets.layers import kind_of
from ..nets.masks import closed_count, paper_count, weight_matrices
from ..nets.reach import calibrate
from ..nets.work import multiply_adds
from ..records import MISTAKES, constant_gates, count_fields, named, save_counts, where_and_with
from . import checkpoint, sums
from .config import RunConfig, begun, difference, identity, kept, needed
from .evaluation import compact_error, evaluate, examine, example_of, examples_of, mistakes, predictor
from .metrics import Metrics, read_metrics
from .presets import preset
from .stopwatch import Stopwatch
from .training import Diverged, Session

SMOKE, A_DAY = "sparsernn-smoke-", 86_400  # how a smoke run's directory is called; seconds
EQUAL = 1e-9  # what a compact model may differ by from the masked one, in float64


class Run:
    """A finished run, at the epoch chosen on validation.

    config, directory, task     what it is, where its files are, its data
    model, study                trained, and what is on it: `study.masks()` says what is kept, `study.scores()` why
    compact, record, metrics    the small model, its row (dict), a row an epoch (DataFrame)
    """

    def __init__(self, config, directory, session):
        self.config, self.directory, self.task = config, directory, session.task
        self.model, self.study, self.finished = session.model.eval(), session.study, session.finished
        self.compact = load(directory / "model.safetensors", self.model)
        self.record = records.read_record(directory / "record.json")
        mine, epoch = records.run_key(self.record), self.record.get("epoch_selected")
        if (mine, epoch) != (config.key, session.best_epoch):
            raise ValueError(
                f"{directory / 'record.json'} is of {mine}, epoch {epoch}, not of {config.key}, epoch {session.best_epoch}; "
                "put its own back, or remove the directory to train anew"
            )
        self.metrics = read_metrics(directory / "metrics.csv")

    def predictor(self, masks):
        """The model under masks, as `evaluate` calls it."""
        return predictor(self.model, masks, self.study.means())

    @cached_property
    def unpruned(self):
        """A predictor before pruning: the finished run that the method started from, where it did; else the trained weights,
        none taken out, of which a method that prunes while it trains has zeroed its own."""
        nothing = replace(self.study.masks(), weights={}, groups={})
        if not self.finished:
            return self.predictor(nothing)
        model = preset(self.config.task, self.config.model).build(self.task)
        model.load_state_dict(next(iter(self.finished.values())))
        return predictor(model, nothing, {})

    @cached_property
    def closed(self):
        """The masks closed over who reads whom: what the small model has."""
        return shrunk(self.model, self.study.masks(), self.study.means(), example_of(self.task, self.config.plan))[1]

    def threshold_curve(self, thresholds):
        """Quality against threshold, on validation: DataFrame of threshold, valid, compression, weights_kept, gates_live."""
        rows = []
        for threshold in thresholds:
            masks = self.study.masks(threshold)
            count = paper_count(masks)
            valid = evaluate(self.predictor(masks), self.task, "valid", self.config.plan)
            kept = {"weights_kept": count.weights_kept, "gates_live": sum(count.gates_live)}
            fewer = self.record["weights_total"] / count.weights_kept if count.weights_kept else float("inf")
            rows.append({"threshold": threshold, "valid": valid, "compression": fewer} | kept)
        return pd.DataFrame(rows)


def ensure(config: RunConfig, report=None) -> Run:
    """A finished run of `config`: found, resumed or trained. `report(line)` is told the cost, then a line an epoch.

    The profile `smoke` trains on one thread, and anew, in a temporary directory, unless a study keeps it. Another process
    that is writing the run, on whatever node, is waited for: two copies of a run train it once. Raises ValueError when the
    run's directory holds another configuration (naming the field), RuntimeError in a copy that was taken for lost.
    """
    report = report or (lambda line: None)
    if not kept(config):
        directory = _for_this_process()
    else:
        directory = config.directory
    with _one_thread() if config.profile == "smoke" else nullcontext():
        return _ensure(config, directory, report)


def _for_this_process():
    """A new temporary directory that goes when the process ends; one of a process that was killed goes after a day."""
    for left in Path(tempfile.gettempdir()).glob(f"{SMOKE}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > A_DAY:
                shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=SMOKE))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _ensure(config, directory, report):
    directory.mkdir(parents=True, exist_ok=True)
    with _only_writer(directory, report) as lease:
        before = _finished(config, report)
        session = Session(config, tasks.load(config.task, config.profile), training_device(config), before)
        _check_config(config, session.task, directory)
        finished, stands = (directory / "record.json").exists(), (directory / "checkpoint.safetensors").exists()
        if finished:
            sums.refuse_others(directory)
            if not stands:
                raise ValueError(
                    f"{directory} has a record and no checkpoint.safetensors: put it back, or remove the directory to train anew"
                )
        metrics = Metrics(directory / "metrics.csv")
        if stands:
            metrics.take_up(session, checkpoint.restore(session, directory / "checkpoint.safetensors"))
        else:
            _fit(session, directory, metrics, lease)
        diverged = None if finished else _train(session, directory, metrics, lease, report)
        if diverged:
            checkpoint.restore(session, directory / "checkpoint.safetensors")
        session.model.load_state_dict(session.best)
        session.model.cpu()
        if not finished:
            _finish(session, directory, lease, report, diverged)
    return Run(config, directory, session)


def _finished(config, report):
    """method → the trained weights of the finished runs it starts from, which are trained first where they are not there."""
    found = {}
    for before in needed(config):
        report(f"{config.method} starts from a finished run of {before.method}")
        found[before.method] = ensure(before, report).model.state_dict()
    return found


def training_device(config):
    """A GPU, where there is one; the profile `smoke` says the same everywhere, and stays on the CPU."""
    return "cuda" if torch.cuda.is_available() and config.profile != "smoke" else "cpu"


@contextmanager
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _only_writer(directory, report):
    """The directory's lease, waited for; who had it before may have left temporary files. A finished run is only read by who has
    it, and where nothing can be written nobody does: None."""
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(
                held(
                    directory / ".lock",
                    lambda holder: report(f"{directory} is being written by {holder}; waiting for it"),
                )
            )
            clear(directory)
        except OSError as problem:
            read_only = problem.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            if not read_only or not (directory / "record.json").exists():
                raise
            lease = None
        yield lease


def _check_config(config, task, directory):
    """Write config.json, or refuse to go on with a run that was begun as something else."""
    path, now = directory / "config.json", identity(config, task)
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n")
        return
    before = begun(path)
    if name := difference(now, before):
        raise ValueError(
            f"{directory} was begun with {name} = {before.get(name)!r}, now it is {now.get(name)!r}; "
            "put it back, or remove the directory to train anew"
        )


def _fit(session, directory, metrics, lease):
    """What a method does before the first epoch; where no gradient step follows, the run stands at its end then."""
    watch = Stopwatch(session.device)
    fitted = session.method.fit(session.model, session.task, session.plan)
    if fitted is not None:
        session.epoch, session.seconds = fitted[-1]["epoch"], watch.seconds
        reading = session.read_off()
        rows = [row if "valid" in row else row | reading for row in fitted]
        session.note_best(reading["valid"])
        session.best_epoch = next(row["epoch"] for row in rows if row["chosen"])
        lease.check()
        checkpoint.save(session, directory / "checkpoint.safetensors", metrics.add(*rows))


def _train(session, directory, metrics, lease, report):
    """From wherever it stands to the last epoch, metrics.csv and the checkpoint replaced after every one → nothing, or where
    it diverged after an epoch that can be kept. Raises `Diverged` where none can."""
    epochs = session.plan.epochs if session.method.trains else 0
    if session.epoch < epochs:
        report(_forecast(session))
        for line in session.study.ahead():
            report(line)
    while session.epoch < epochs:
        watch = Stopwatch(session.device)
        try:
            loss, penalty = (sum(values) / len(values) for values in zip(*session.steps(), strict=True))
            session.refuse_no_numbers()
        except Diverged as problem:
            if not session.best:
                raise
            report(f"{problem}. The run ends with epoch {session.best_epoch}")
            return problem.place
        phase, may_choose = session.phase(session.epoch), session.may_choose(session.epoch)
        session.epoch += 1
        row = {"epoch": session.epoch, "step": session.epoch * session.steps_per_epoch, "phase": phase.name}
        row |= {"train_loss": loss, "penalty": penalty} | session.read_off()
        averaged = session.averages.told(row["valid"])
        if may_choose:
            session.note_best(row["valid"])
        row["seconds"] = watch.seconds
        session.seconds += row["seconds"]
        lease.check()
        checkpoint.save(session, directory / "checkpoint.safetensors", metrics.add(row))
        report(
            f"epoch {session.epoch}/{epochs}  loss {loss:.4f} + {penalty:.4f}  valid {session.task.metric} "
            f"{row['valid']:.4f}  {row['compression']:.1f}x  gates {row['gates_live']}  {row['seconds']:.1f} s"
        )
        if averaged:
            report(
                f"validation was better {session.averages.patience} epochs ago or before: from here on the weights are averaged"
            )
    if not session.best:
        raise ValueError(
            f"{directory}: validation was a finite number in no epoch that can be chosen; lower lr, or set clip"
        )
    return None


def _forecast(session, trial=4):
    """What is ahead, from a few steps of a twin that is thrown away."""
    with torch.random.fork_rng():
        steps = Session(session.config, session.task, session.device, session.finished).steps()
        next(steps)  # warms up
        start = time.perf_counter()
        trial = sum(1 for _ in itertools.islice(steps, trial))
        seconds = (time.perf_counter() - start) / max(trial, 1) * session.steps_per_epoch
    left = session.plan.epochs - session.epoch
    return f"{left} epochs × {seconds:.0f} s (training alone) = {left * seconds / 60:.1f} min"


def _finish(session, directory, lease, report, diverged):
    """Masks → compact model, proven equal, measured, recorded. The test split is read here, once, after every choice."""
    config, task, plan, study = session.config, session.task, session.plan, session.study
    masks, means = study.masks(), study.means()
    small, closed = shrunk(session.model, masks, means, example_of(task, plan))
    _refuse_nothing(closed)
    if config.profile != "smoke":  # too short to reach anything
        session.method.refuse_missed(masks)
    masked = predictor(session.model, masks, means)
    calibrate(small, examples_of(task, plan))
    lease.check()
    size = save(small, directory / "model.safetensors")
    small = load(directory / "model.safetensors", session.model)
    error = compact_error(session.model, masks, means, task, plan)
    if not error <= EQUAL:
        raise RuntimeError(
            f"the compact {config.model} differs from the masked one by {error:.1e}: between its layers it does what running it "
            "did not show; let it say itself who reads whom (axes(), as nets/models.py has it)"
        )
    examined, metric = examine(small, task, plan), evaluate(masked, task, "test", plan)
    spec = preset(config.task, config.model)
    dense = preset(config.task, spec.equivalent or config.model).build(task)
    total, full = (sum(p.numel() for p in part) for part in (weight_matrices(dense).values(), dense.parameters()))
    record = {name: getattr(config, name) for name in ("task", "model", "method", "variant", "profile", "seed")}
    record |= {
        "cell": cell_of(session.model),
        "schedule": schedule(config) + (f", diverged in {diverged}" if diverged else ""),
    }
    record |= {"metric": task.metric}
    record |= {
        "valid": evaluate(small, task, "valid", plan),
        "test": examined["test"].metric,
        "tests": named({split: examined[split].metric for split in task.more_tests} | examined["test"].more),
        "epoch_selected": session.best_epoch,
    }
    record |= count_fields(paper_count(masks), closed_count(closed), total) | {"gates_constant": constant_gates(closed)}
    record |= {"size_bytes": size, "size_bytes_dense": 4 * full, "multiply_adds": _a_step(small, task, plan)}
    record |= {"compact_error": error, "metric_difference": abs(examined["test"].metric - metric)}
    record |= {
        "epochs": session.epoch,
        "steps": session.epoch * session.steps_per_epoch,
        "train_seconds": session.seconds,
    }
    record |= {"data_sha256": task.data_sha256, "data_note": task.data_note} | where_and_with(session.device)
    wrong, text = mistakes(examined, task), records.written(record)
    lease.check()
    if wrong:
        save_counts(wrong, directory / MISTAKES)
    said = ("checkpoint.safetensors", "metrics.csv", "model.safetensors", *[MISTAKES] * bool(wrong))
    sums.write(directory, {"record.json": text.encode()}, *said)
    with replacing(directory / "record.json") as temporary:
        temporary.write_text(text)
    report(f"test {task.metric} {record['test']:.4f}  {record['compression']:.1f}x  compact error {error:.1e}")


def _a_step(small, task, plan):
    """Multiply-adds a step: of the model's own example, or where it declares none of a batch of training."""
    if hasattr(small, "example"):
        with suppress(NotImplementedError):
            return multiply_adds(small)
    return multiply_adds(small, example_of(task, plan))


def cell_of(model):
    """LSTM, GRU or RNN; empty for a model without a recurrent layer."""
    return next((kind_of(layer).__name__ for layer in Found(model).recurrent.values()), "")


def _refuse_nothing(closed):
    """A training that pruned a whole layer has failed, whatever the rest of the network says."""
    for axis in closed.of_kind("hidden"):
        if not closed.groups[axis.name].any():
            raise ValueError(
                f"{axis.name} would keep none of its {axis.size} hidden neurons, so nothing would be left to run; "
                "let more stand: a larger density, a later or weaker penalty, or a threshold that removes less"
            )


def schedule(config):
    """A training in a few words, for a record."""
    plan, method = config.plan, sparsify.make(config.method, config.options)
    window = f"x{plan.steps}" if plan.steps else ""
    rates = "/".join(f"{rate:g}" for rate in (plan.lr, *method.rates()))
    falls = "" if plan.lr_schedule == "linear" else f" {plan.lr_schedule}"
    pulls = "".join(
        f" {name.replace('_', ' ')} {getattr(plan, name):g}"
        for name in ("momentum", "weight_decay", "int8_noise")
        if getattr(plan, name)
    )
    return f"{plan.optimiser} {rates}{falls}{pulls} batch {plan.batch_size}{window} {method.says()}".strip()
