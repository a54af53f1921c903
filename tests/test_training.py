"""A run survives whatever interrupts it, and is the same run afterwards."""

import errno
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparsernn import tasks
from sparsernn.files import clear, replacing
from sparsernn.nets.layers import GRU, LSTM, RNN
from sparsernn.nets.masks import Masks
from sparsernn.nets.work import multiply_adds
from sparsernn.study import checkpoint, runs, training
from sparsernn.study.config import RunConfig
from sparsernn.study.evaluation import predictor
from sparsernn.study.runs import ensure
from sparsernn.study.stopwatch import Stopwatch
from sparsernn.tasks.base import SPLITS, WordTask

HERE = Path(__file__).parent
EPOCHS = 60  # of the run that is killed: some seconds


@pytest.fixture(autouse=True)
def tiny_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tiny.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(task="tiny-topic", method="sparse-vd-wgn", **more):
    return RunConfig(task=task, method=method, profile="quick", **more)


@contextmanager
def process(runs, task, method):
    """A training process of its own, reaped in the end."""
    environment = os.environ | {"SPARSERNN_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "tiny.py"), task, method, str(EPOCHS)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        yield running


def outcome(directory):
    """All that a run leaves, without clocks."""
    checkpoint, model = load_file(directory / "checkpoint.safetensors"), (directory / "model.safetensors").read_bytes()
    record = json.loads((directory / "record.json").read_text())
    record.pop("train_seconds")
    return checkpoint, model, record, pd.read_csv(directory / "metrics.csv").drop(columns="seconds")


def test_killed_and_resumed_run_is_bit_identical(tmp_path):
    """Slow (about half a minute): six processes, five of them killed at a random moment of their training."""
    moments, leaf, reached = random.Random(0), Path(f"tiny-topic/lstm-8/sparse-vd-wgn/quick-s0-epochs={EPOCHS}"), []
    with process(tmp_path / "quiet", "tiny-topic", "sparse-vd-wgn") as running:
        assert running.wait() == 0
    for _ in range(5):
        with process(tmp_path / "killed", "tiny-topic", "sparse-vd-wgn") as running:
            lines = [running.stdout.readline() for _ in range(4)]  # the forecast, the schedule, an epoch: it trains
            time.sleep(moments.uniform(0, 0.6))
            running.send_signal(signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL and lines[0]
        directory = tmp_path / "killed" / leaf
        assert not (directory / "record.json").exists(), "the kill came too late to hit the training"
        checkpoint = directory / "checkpoint.safetensors"
        if checkpoint.exists():
            with safe_open(checkpoint, "pt") as file:
                reached.append(json.loads(file.metadata()["counters"])["epoch"])
    with process(tmp_path / "killed", "tiny-topic", "sparse-vd-wgn") as running:
        assert running.wait() == 0
    assert len(set(reached)) >= 2, "kills hit the training in different epochs"
    quiet, killed = outcome(tmp_path / "quiet" / leaf), outcome(tmp_path / "killed" / leaf)
    assert quiet[0].keys() == killed[0].keys()
    assert all(torch.equal(value, killed[0][name]) for name, value in quiet[0].items())
    assert quiet[1] == killed[1] and quiet[2] == killed[2]
    pd.testing.assert_frame_equal(quiet[3], killed[3], check_exact=True)


ECONOMIES = {"kl_every": 3, "sleep_above": 0.5, "products": "bfloat16"}


@pytest.mark.parametrize(
    "task, method, plan",
    [
        ("tiny-topic", "dense", {}),
        ("tiny-char", "sparse-vd-w", {}),
        ("tiny-char", "sparse-vd-wgn", {}),
        ("tiny-topic", "sparse-vd-wgn", ECONOMIES | {"log_sigma_groups": 0.0}),
    ],
)
def test_a_run_stopped_after_any_epoch_goes_on_to_the_same_end(task, method, plan, tmp_path, monkeypatch):
    run = ensure(config(task, method, **plan))
    whole = outcome(run.directory)
    if plan:  # some neurons were pruned during training, some were not
        with run.study.method.without_pruned(run.model, torch.optim.SGD(run.model.parameters())):
            assert 4 * 1 < run.model.lstm.weight_ih_l0.numel() < 4 * 8 * 6
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config(task, method, **plan), stop)
    again = outcome(ensure(config(task, method, **plan)).directory)
    assert all(torch.equal(value, again[0][name]) for name, value in whole[0].items())
    assert whole[1] == again[1] and whole[2] == again[2]


def test_a_fine_tuned_run_stopped_in_either_phase_goes_on_to_the_same_end(tmp_path, monkeypatch):
    whole = outcome(ensure(config(fine_tune=0.25)).directory)
    for stop_after in (8, 10):
        monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / f"stopped-{stop_after}"))

        def stop(line, after=stop_after):
            if line.startswith(f"epoch {after}/"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ensure(config(fine_tune=0.25), stop)
        again = outcome(ensure(config(fine_tune=0.25)).directory)
        assert all(torch.equal(value, again[0][name]) for name, value in whole[0].items())
        assert whole[1] == again[1] and whole[2] == again[2]


@pytest.fixture(params=["tiny-topic", "tiny-char"])
def first_losses(request):
    """products of bfloat16 are faster → the losses of three steps from the same draws, for each kind of products."""

    def losses(kind):
        session = training.Session(config(request.param, products=kind), tasks.load(request.param, "quick"))
        torch.manual_seed(1)
        return [loss for loss, _ in itertools.islice(session.steps(), 3)]

    def of(faster):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "bfloat16_is_faster", lambda device: faster)
            return [losses(kind) for kind in ("float32", "bfloat16", "bfloat16-state")]

    return of


def test_rounded_products_change_training_a_little(first_losses):
    exact, *rounded = first_losses(True)
    assert all(abs(a - b) < 2e-3 * a for losses in rounded for a, b in zip(exact, losses, strict=True))
    assert exact != rounded[0] != rounded[1] != exact


def test_nothing_is_rounded_on_a_processor_that_is_slower_for_it(first_losses):
    exact, *asked = first_losses(False)
    assert asked == [exact, exact]


@pytest.mark.parametrize("slower", [0, 1])
def test_products_are_rounded_where_that_takes_less_time(monkeypatch, slower):
    calls = itertools.count()

    def seconds_of(call):
        call()
        return 2.0 if next(calls) % 2 == slower else 1.0

    monkeypatch.setattr(training, "seconds_of", seconds_of)
    assert training.bfloat16_is_faster.__wrapped__("cpu") is (slower == 0)


@pytest.mark.parametrize("task", ["tiny-topic", "tiny-char"])
def test_rounded_products_change_no_evaluation_and_no_parameter_s_type(task):
    kinds = "float32", "bfloat16", "bfloat16-state"
    sessions = [training.Session(config(task, products=kind), tasks.load(task, "quick")) for kind in kinds]
    assert sessions[0].read_off() == sessions[1].read_off() == sessions[2].read_off()
    assert {p.dtype for session in sessions for p in session.parameters} == {torch.float32}


@pytest.mark.parametrize(("hold", "rest"), [(0.0, 1.0), (0.25, 1.0), (0.5, 0.75), (0.0, 0.5)])
def test_rates_of_what_decays_fall_on_a_straight_line_between_the_shares_held_and_rested(hold, rest):
    given = config(lr=0.1, lr_end=0.2, lr_hold=hold, lr_rest=rest)
    session = training.Session(given, tasks.load("tiny-topic", "quick"))
    last = session.plan.epochs * session.steps_per_epoch

    def rates(step):
        session.set_rates(step)
        return {bool(group.get("decays")): group["lr"] for group in session.optimizer.param_groups}

    for done in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        expected = 0.1 if done <= hold else 0.02 if done >= rest else 0.1 * (1 - 0.8 * (done - hold) / (rest - hold))
        assert rates(done * last) == pytest.approx(
            {True: expected, False: session.config.options.lr_log_sigma}, rel=1e-12
        )


def test_fine_tuning_fixes_what_is_kept_and_drops_the_penalty():
    run = ensure(config(fine_tune=0.25))
    tuned = run.metrics[run.metrics["phase"] == "fine-tune"]
    assert tuned["epoch"].tolist() == [10, 11, 12] and run.record["epoch_selected"] in (10, 11, 12)
    assert tuned["weights_kept"].nunique() == 1 and tuned["gates_live"].nunique() == 1
    assert (tuned["penalty"] == 0).all() and (run.metrics["penalty"].iloc[3:9] > 0).all()
    assert run.record["compact_error"] <= 1e-9
    head = run.study.weights["head.weight"]
    kept = head.held_score < run.config.options.threshold
    assert torch.equal(head.mask, kept) and torch.equal(run.study.masks().weights["head.weight"], kept)
    moved = run.study.method.score(head)  # θ was trained on: what is kept would be another choice now, and is not asked
    assert not torch.equal(moved, head.held_score)


def test_fine_tuning_begins_after_exactly_the_steps_that_learn():
    session = training.Session(config(fine_tune=0.25), tasks.load("tiny-topic", "quick"))
    fixed = []
    for session.epoch in range(9, 10):
        session.study.load_state_dict({"step": 0})
    session.epoch = 8
    for _ in session.steps():
        fixed.append(session.study.method.fixed)
    assert fixed == [False] * (session.steps_per_epoch - 1) + [True]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    run = ensure(config(method="dense"))
    metrics = run.directory / "metrics.csv"
    last = metrics.read_text().splitlines()[-1]
    metrics.write_text(metrics.read_text() + "99" + last.removeprefix("12") + "\n")
    (run.directory / "record.json").unlink()
    assert ensure(config(method="dense")).metrics["epoch"].tolist() == list(range(1, 13))


def test_a_changed_config_refuses_to_resume_and_names_the_field():
    run = ensure(config(method="dense"))
    path = run.directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lr": 0.5}))
    with pytest.raises(ValueError, match=r"begun with lr = 0\.5, now it is 0\.01"):
        ensure(config(method="dense"))


def test_a_field_younger_than_a_run_stands_at_its_default():
    path = ensure(config(method="dense")).directory / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in saved.items() if name != "lr_hold"}))
    ensure(config(method="dense"))
    path.write_text(json.dumps({name: value for name, value in saved.items() if name != "lr"}))
    with pytest.raises(ValueError, match=r"begun with lr = 0\.002, now it is 0\.01"):
        ensure(config(method="dense"))


def as_before_digests(directory, renamed=str):
    """The files of a run as they were before they had digests."""
    path = directory / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["counters"])
    said = {name: value for name, value in said.items() if name not in checkpoint.SWORN}
    save_file({renamed(name): value for name, value in load_file(path).items()}, path, {"counters": json.dumps(said)})
    (directory / "SHA256SUMS").unlink(missing_ok=True)


def test_a_checkpoint_of_another_version_is_refused_in_words():
    directory = ensure(config(method="dense")).directory
    as_before_digests(directory, lambda name: name.replace("model.lstm", "method.lstm"))
    with pytest.raises(ValueError, match="checkpoint.safetensors: it was written by another version of the library"):
        ensure(config(method="dense"))


@pytest.mark.parametrize("stop_after", [3, 12])
def test_a_run_from_before_digests_opens_and_goes_on_to_the_same_end(stop_after, tmp_path, monkeypatch):
    whole = outcome(ensure(config()).directory)
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith(f"epoch {stop_after}/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config(), stop)
    as_before_digests(config().directory)
    again = outcome(ensure(config()).directory)
    assert all(torch.equal(value, again[0][name]) for name, value in whole[0].items())
    assert whole[1:3] == again[1:3]
    pd.testing.assert_frame_equal(whole[3], again[3], check_exact=True)
    as_before_digests(config().directory)
    assert ensure(config()).record["test"] == whole[2]["test"]


def test_what_a_finished_run_says_is_held_to_its_sums():
    directory = ensure(config(method="dense")).directory
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=directory, check=True, capture_output=True)
    record = directory / "record.json"
    before = record.read_text()
    record.write_text(before.replace('"seed": 0', '"seed": 0 '))
    with pytest.raises(ValueError, match=r"record\.json: the content is not what was written"):
        ensure(config(method="dense"))
    (directory / "SHA256SUMS").unlink()
    record.write_text(json.dumps(json.loads(before) | {"seed": 1}))
    with pytest.raises(ValueError, match=r"record\.json is of tiny-topic/lstm-8/dense/quick-s1"):
        ensure(config(method="dense"))


def without_writing(directory):
    """As on a disk mounted read-only: whatever opens a file of the directory to write is refused, until the list is empty."""
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def refuse(event, arguments):
        if event == "open" and str(arguments[0]).startswith(str(directory)) and arguments[2] & flags and refusing:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

    refusing = [True]
    sys.addaudithook(refuse)
    return refusing


def test_a_finished_run_opens_on_a_disk_that_is_read_only():
    first = ensure(config(method="dense"))
    refusing = without_writing(first.directory)
    try:
        assert ensure(config(method="dense")).record == first.record
        with pytest.raises(OSError, match="Read-only file system"):
            (first.directory / "new").write_text("")
    finally:
        refusing.clear()


def test_what_a_killed_process_left_is_removed_when_the_run_is_taken_up():
    directory = ensure(config(method="dense")).directory
    left = [directory / name for name in (".metrics.csv.ab12cd34", ".checkpoint.safetensors.________", ".tmpAb3dEf")]
    for path in left:
        path.write_text("half")
    ensure(config(method="dense"))
    assert not any(path.exists() for path in left) and not (directory / ".lock").exists()
    with replacing(directory / "thresholds.csv") as temporary:  # one that is being written stays
        temporary.write_text("whole")
        clear(directory)
    assert (directory / "thresholds.csv").read_text() == "whole"


def test_a_run_that_diverges_ends_with_its_best_epoch_and_says_so(monkeypatch):
    whole, lines = ensure(config(method="dense", epochs=4)), []
    loss = tasks.base.Task.loss

    def breaks(self, logits, batch):
        return loss(self, logits, batch) * (float("nan") if state["session"].epoch == 4 else 1)

    state, made = {}, training.Session.__init__

    def noting(session, *given):
        made(session, *given)
        state["session"] = session

    monkeypatch.setattr(training.Session, "__init__", noting)
    monkeypatch.setattr(tasks.base.Task, "loss", breaks)
    monkeypatch.setattr(runs, "_forecast", lambda session: "")
    run = ensure(config(method="dense"), lines.append)
    assert (
        "the loss is nan in epoch 5, step 1 (gradient norm nan)" in lines[-2] and "The run ends with epoch" in lines[-2]
    )
    assert run.record["schedule"].endswith(", diverged in epoch 5, step 1") and run.record["epochs"] == 4
    assert run.record["epoch_selected"] == whole.record["epoch_selected"] and run.record["test"] == whole.record["test"]
    assert ensure(config(method="dense")).record == run.record  # found, not trained again


def test_a_perplexity_beyond_all_numbers_stops_no_training_and_is_never_the_best():
    task = WordTask("words", {split: {"ids": np.arange(9) % 3} for split in SPLITS}, ["a", "b", "c"])
    assert task.metric_of(5000.0, 2) == float("inf") and task.metric_of(6.0, 2) == 8.0
    session = training.Session(config("tiny-char", "dense"), tasks.load("tiny-char", "quick"))
    session.epoch = 1
    session.note_best(float("inf")), session.note_best(float("nan"))
    assert session.best_epoch == -1 and not session.best
    session.note_best(3.0)
    assert session.best_epoch == 1 and session.best


def test_changed_data_refuses_to_resume():
    run = ensure(config(method="dense"))
    path = run.directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "other"}))
    with pytest.raises(ValueError, match="data_sha256"):
        ensure(config(method="dense"))


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_another_process_is_writing_is_waited_for(finished):
    config = RunConfig("tiny-topic", method="dense", profile="quick", epochs=2)
    if finished:
        ensure(config)
    config.directory.mkdir(parents=True, exist_ok=True)
    read, lines = [], []
    waits = threading.Thread(target=lambda: read.append(ensure(config, lines.append).record["test"]), daemon=True)
    with runs._only_writer(config.directory, print):
        waits.start()
        waits.join(timeout=1)
        assert not read and waits.is_alive()
        assert lines == [
            f"{config.directory} is being written by process {os.getpid()} on {socket.gethostname()}; waiting for it"
        ]
    waits.join(timeout=60)
    assert read


def test_a_copy_that_was_taken_for_lost_stops_before_it_writes():
    config = RunConfig("tiny-topic", method="dense", profile="quick", epochs=3)
    lock, after = config.directory / ".lock", config.directory / "metrics.csv"

    def taken_after_the_first_epoch(line):
        if line.startswith("epoch 1/"):
            lock.write_text('{"process": 5, "host": "node2", "machine": "another", "token": "theirs"}')

    with pytest.raises(RuntimeError, match="process 5 on node2's to write now"):
        ensure(config, taken_after_the_first_epoch)
    assert len(pd.read_csv(after)) == 1 and lock.exists()
    lock.unlink()
    assert ensure(config).metrics["epoch"].tolist() == [1, 2, 3]


def test_a_finished_run_is_found_not_trained():
    ensure(config(method="dense"))
    lines = []
    ensure(config(method="dense"), lines.append)
    assert lines == []


def test_smoke_trains_anew_in_a_directory_of_its_own(tmp_path):
    smoke = RunConfig(task="tiny-topic", method="dense", profile="smoke")
    one, two = ensure(smoke), ensure(smoke)
    assert one.directory != two.directory and not (tmp_path / "runs").exists()
    assert (one.directory / "model.safetensors").read_bytes() == (two.directory / "model.safetensors").read_bytes()


def test_a_study_keeps_its_smoke_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_KEEP_SMOKE", "1")
    smoke, lines = RunConfig(task="tiny-topic", method="dense", profile="smoke"), []
    assert ensure(smoke).directory == smoke.directory == tmp_path / "runs/tiny-topic/lstm-8/dense/smoke-s0"
    ensure(smoke, lines.append)
    assert lines == []


def test_seeds_draw_everything_and_nothing_else_does():
    same = [(ensure(config(seed=1)).record["test"], torch.rand(()))[0] for _ in range(2)]
    assert same[0] == same[1]
    assert ensure(config(seed=1)).record["weights_kept"] != ensure(config(seed=2)).record["weights_kept"]


def test_cost_is_said_before_the_first_epoch():
    lines = []
    ensure(config(method="dense"), lines.append)
    assert "12 epochs" in lines[0] and "min" in lines[0] and lines[1].startswith("epoch 1/12")


def test_a_run_says_in_its_own_steps_when_its_penalty_begins_and_ends():
    lines = []
    ensure(config(fine_tune=0.25), lines.append)
    assert lines[1:4] == [
        "penalty rises: steps 19 to 57 of 228",
        "penalty full: steps 57 to 171 of 228",
        "fine-tuned: steps 171 to 228 of 228",
    ]


def test_a_run_whose_penalty_would_never_begin_is_refused():
    with pytest.raises(ValueError, match="the penalty would begin at step 380 of a training of 228: lower kl_start"):
        ensure(config(kl_start=20.0, kl_full=30.0))


def test_a_loss_that_is_no_number_stops_the_run_at_once_and_says_where():
    with pytest.raises(
        RuntimeError, match=r"the loss is (nan|inf) in epoch \d+, step \d+ \(gradient norm .*\); .* Lower lr"
    ):
        ensure(config(method="dense", lr=3e38, clip=0.0))
    directory = config(method="dense", lr=3e38, clip=0.0).directory
    assert not (directory / "record.json").exists()


def test_the_state_of_a_language_model_is_carried_whatever_its_cell(monkeypatch):
    """GRU and RNN carry one tensor, the LSTM two."""
    for kind in (GRU, RNN):
        session = training.Session(config("tiny-char", "dense"), tasks.load("tiny-char", "quick"))
        session.model.lstm = kind(12, 8)
        session.optimizer = torch.optim.Adam(session.model.parameters(), lr=1e-2)
        session.parameters = list(session.model.parameters())
        losses = [loss for loss, _ in session.steps()]
        assert losses[-1] < losses[0]


def test_dropout_in_a_stack_acts_in_training_and_not_in_validation():
    session = training.Session(config("tiny-topic", "dense"), tasks.load("tiny-topic", "quick"))
    session.model.lstm = LSTM(6, 8, 2, dropout=0.5, activation="hard")
    session.model.train()
    batch = next(session.task.batches("valid", 16))
    one, two = (session.model(*batch.inputs, lengths=batch.lengths)[0] for _ in range(2))
    assert not torch.equal(one, two)
    masks = Masks.all_kept(session.model)
    one, two = (predictor(session.model, masks, {})(*batch.inputs, lengths=batch.lengths)[0] for _ in range(2))
    assert torch.equal(one, two)


def test_the_forecast_does_not_change_the_run(monkeypatch):
    record = ensure(config()).record
    monkeypatch.setattr(runs, "_forecast", lambda session: "")
    monkeypatch.setenv("SPARSERNN_RUNS", os.environ["SPARSERNN_RUNS"] + "-again")
    other = ensure(config()).record
    assert record["test"] == other["test"] and record["weights_kept"] == other["weights_kept"]


@pytest.mark.parametrize("task, method", [("tiny-topic", m) for m in ("dense", "sparse-vd-w", "sparse-vd-wgn", "linear")]
                         + [("tiny-char", m) for m in ("dense", "sparse-vd-w", "sparse-vd-wgn")])  # fmt: skip
def test_every_method_ends_in_an_equal_compact_model(task, method):
    run = ensure(config(task, method))
    assert run.record["compact_error"] <= 1e-9
    assert run.record["metric_difference"] <= 1e-6
    assert run.record["weights_stored"] <= run.record["weights_kept"] <= run.record["weights_total"]
    assert (run.directory / "model.safetensors").stat().st_size == run.record["size_bytes"]
    assert run.record["multiply_adds"] == multiply_adds(run.compact) > 0


def test_a_sparse_run_chooses_its_epoch_in_the_last_quarter():
    run = ensure(config())
    settled = run.metrics[run.metrics["phase"] == "settle"]
    assert settled["epoch"].tolist() == [10, 11, 12]
    assert run.record["epoch_selected"] == settled.loc[settled["valid"].idxmax(), "epoch"]


def test_linear_is_counted_against_the_dense_network():
    linear, dense = ensure(config(method="linear")), ensure(config(method="dense"))
    assert linear.record["weights_total"] == dense.record["weights_total"] == 40 * 6 + 32 * 6 + 32 * 8 + 8 * 3
    assert linear.record["weights_kept"] == int((linear.model.head.weight != 0).sum())


def test_seconds_of_a_training_leave_out_that_it_was_stopped():
    on_cpu, on_gpu = Stopwatch("cpu"), Stopwatch("cuda")
    time.sleep(0.5)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.1 <= on_cpu.seconds < 0.4 and on_gpu.seconds >= 0.6
