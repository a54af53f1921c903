"""Training on another device than the CPU, checked without one (`elsewhere.py`): nothing is left behind on the CPU, and
the numbers are the CPU's."""

import json

import pandas as pd
import pytest
import tiny
import torch
from elsewhere import elsewhere
from layers import inputs, pruned
from torch import nn

from sparsernn import attach, compact, tasks
from sparsernn.bench import training as training_steps
from sparsernn.engines import engine_class
from sparsernn.engines.base import Unsupported
from sparsernn.engines.whole import by_engine
from sparsernn.nets.file import load
from sparsernn.study import runs
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure
from sparsernn.study.training import Session

pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta")  # it does copy: `Elsewhere` sees to it
SLEEP = {"sleep_above": 1.0, "kl_every": 4, "kl_start": 0.0, "kl_full": 0.0, "log_sigma_groups": -1.0}


@pytest.fixture(autouse=True)
def tiny_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "where_and_with", lambda device: {"device": device})
    tiny.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_operands_on_two_devices_are_refused_as_on_a_gpu():
    with elsewhere() as device:
        there = torch.arange(3.0, device=device)
        with pytest.raises(RuntimeError, match="on the CPU"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="on the CPU"):
            there.index_select(0, torch.tensor([1]))
        assert (there * 2 + torch.tensor(1.0)).tolist() == [1, 3, 5]
        assert there[torch.tensor([2, 0])].cpu().tolist() == [2, 0]
        assert type(there.cpu()) is torch.Tensor and there.device == torch.device(device)


@pytest.mark.parametrize(
    "task, method, plan",
    [
        ("tiny-topic", "dense", {}),
        ("tiny-topic", "linear", {}),
        ("tiny-topic", "binary-dropout", {"dropout": 0.2}),
        ("tiny-topic", "sparse-vd-w-binary", {"dropout": 0.2}),
        ("tiny-topic", "sparse-vd-wgn", SLEEP),
        ("tiny-topic", "sparse-vd-wgn", {"fine_tune": 0.5}),
        ("tiny-char", "sparse-vd-wgn", SLEEP),
    ],
)
def test_a_run_elsewhere_is_the_run_on_the_cpu(task, method, plan, tmp_path, monkeypatch):
    config = RunConfig(
        task=task, method=method, profile="quick", **plan | ({} if method == "linear" else {"epochs": 2})
    )
    here = ensure(config)
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "elsewhere"))

    def stop(line):
        if line.startswith("epoch 1/"):
            raise KeyboardInterrupt

    with elsewhere() as device:
        monkeypatch.setattr(runs, "training_device", lambda config: device)
        if method != "linear":
            with pytest.raises(KeyboardInterrupt):  # and goes on from its checkpoint
                ensure(config, stop)
        there = ensure(config)
    for run, name in ((here, "cpu"), (there, device)):
        assert run.record.pop("device") == name
        run.record.pop("train_seconds")
    assert json.dumps(there.record) == json.dumps(here.record)
    if method != "linear":
        pd.testing.assert_frame_equal(there.metrics.drop(columns="seconds"), here.metrics.drop(columns="seconds"))
    for ours, theirs in zip(here.model.parameters(), there.model.parameters(), strict=True):
        assert theirs.device.type == "cpu" and torch.equal(ours, theirs)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.lstm(self.embedding(words))[0])


def trained(device):
    torch.manual_seed(0)
    model, words = Tagger().to(device), torch.randint(20, (5, 7)).to(device)
    study = attach(model, "sparse-vd-wgn", steps=6, n_examples=5, log_sigma=-1.0, log_sigma_groups=-2.0)
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.1), lr=0.1)
    for _ in range(6):
        loss = model(words).logsumexp(-1).mean() + study.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        study.after_step()
    small, proof = compact(model, example=words)
    return small, proof, small(words)


def test_a_model_of_ones_own_elsewhere():
    small, proof, answer = trained("cpu")
    with elsewhere() as device:
        small_there, proof_there, answer_there = trained(device)
        assert all(p.device.type == device for p in small_there.parameters())
        assert torch.allclose(answer_there.detach().cpu(), answer.detach(), atol=1e-6)
    assert proof_there.weights_after == proof.weights_after < proof.weights_before


@pytest.mark.parametrize(
    "engine", ["dense-fp32", "dense-bf16", "compact-torch", "compact-loop"]
)  # a wrapper has no CSR
@pytest.mark.parametrize("cell", ["LSTM", "LSTM, hard", "GRU", "RNN"])
def test_engines_of_torch_run_elsewhere(engine, cell):
    layer, *_ = pruned(cell)
    x, ids, _, live = inputs(6, 4)
    try:
        expected = engine_class(engine)(layer)(x, live), engine_class(engine)(layer)(ids)
    except Unsupported:
        return
    with elsewhere() as device:
        there = engine_class(engine)(layer, device)
        got = there(x.to(device), live.to(device)), there(ids.to(device))
        assert all(y.device.type == device for y in got)
        for ours, theirs in zip(expected, got, strict=True):
            assert torch.allclose(theirs.cpu(), ours, atol=2e-2 if "bf16" in engine else 1e-5)


@pytest.mark.parametrize("task", ["tiny-topic", "tiny-char"])
def test_a_compact_model_runs_elsewhere(task):
    run = ensure(RunConfig(task=task, method="sparse-vd-wgn", profile="quick", epochs=2))
    batch = next(run.task.batches("valid", 8, 20))
    expected = run.compact(batch.tokens, batch.lengths)[0]
    with elsewhere() as device:
        there = batch.to(device)
        for small in (
            load(run.directory / "model.safetensors").to(device),
            by_engine(run.compact, "compact-loop", batch.tokens, device),
        ):
            got = small(there.tokens, there.lengths)[0]
            assert got.device.type == device and torch.allclose(got.cpu(), expected, atol=1e-5)


@pytest.mark.parametrize("task", ["tiny-topic", "tiny-char"])
def test_training_steps_are_checked_and_timed_elsewhere(task, monkeypatch):
    monkeypatch.setitem(training_steps.PROFILES, task, "quick")
    with elsewhere() as device:
        session = Session(RunConfig(task, method="sparse-vd-wgn", profile="quick"), tasks.load(task, "quick"), device)
        here = training_steps.costs_and_gradients(session, "cpu", torch.float32)
        there = training_steps.costs_and_gradients(session, device, torch.float32)
        rows = list(training_steps.train_steps(0.01, [task], device))
    assert here.keys() == there.keys() and all(torch.equal(value, there[name]) for name, value in here.items())
    assert [row["method"] for row in rows] == list(training_steps.METHODS)
    assert all(row["error"] <= 1e-5 and row["median_ms"] > 0 for row in rows)
