"""A model that the library has never heard of, an encoder and a decoder with attention: it needs no line of the library."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import error
from torch import nn

import sparsernn
from sparsernn import sparsify, tasks
from sparsernn.nets import layers
from sparsernn.nets.axes import Axis, Member, each, recurrent_axes
from sparsernn.nets.models import GROUPS, Model
from sparsernn.sparsify.plan import Plan
from sparsernn.study.presets import PRESETS, Preset, Profile
from sparsernn.tasks.base import SPLITS, Batch, Task

LETTERS, LENGTH = "-abcdef", 5


class Reversal(Task):
    """Five letters, to be written backwards; each is predicted from those before it, the first from "-"."""

    metric, better = "accuracy", "higher"

    def __init__(self, profile):
        rng = np.random.default_rng(3)
        splits = {split: {"ids": rng.integers(1, len(LETTERS), (600, LENGTH))} for split in SPLITS}
        super().__init__("reversal", splits, [*LETTERS])
        self.n_examples = 600 * LENGTH

    def steps_per_epoch(self, batch_size, steps=None):
        return math.ceil(600 / batch_size)

    def batches(self, split, batch_size, steps=None, generator=None):
        ids = torch.as_tensor(self._split(split, batch_size)["ids"])
        ids = ids if generator is None else ids[torch.randperm(len(ids), generator=generator)]
        for source in ids.mT.split(batch_size, 1):
            target = source.flip(0)
            yield Batch((source, torch.cat([0 * target[:1], target[:-1]])), target, None)

    def score(self, logits, batch):
        return float((logits.argmax(-1) == batch.targets).sum()), batch.targets.numel()


class Reverser(nn.Module):
    """Torch's layers, and nothing said about them."""

    kinds = nn.Embedding, nn.LSTM, nn.Linear

    def __init__(self, letters, size):
        super().__init__()
        embedding, lstm, linear = self.kinds
        self.words, self.encoder, self.decoder = embedding(letters, size), lstm(size, size), lstm(size, size)
        self.bridge, self.key, self.query = (linear(size, size) for _ in range(3))
        self.head = linear(2 * size, letters)

    def forward(self, source, previous=None, lengths=None, state=None):
        """logits [T, B, V]; without `previous` it writes on from its own letters."""
        memory, _ = self.encoder(self.words(source))
        h = self.bridge(memory[-1:]).tanh()
        state = h, torch.zeros_like(h)
        if previous is not None:
            return self.write(previous, memory, state)[0], None
        letter, answers = torch.zeros_like(source[:1]), []
        for _ in source:
            logits, state = self.write(letter, memory, state)
            answers.append(logits)
            letter = logits.argmax(-1)
        return torch.cat(answers), None

    def write(self, letters, memory, state):
        y, state = self.decoder(self.words(letters), state)
        weights = torch.einsum("tbh,sbh->bts", self.query(y), self.key(memory)).softmax(-1)
        return self.head(torch.cat([y, torch.einsum("bts,sbh->tbh", weights, memory)], -1)), state


class Declared(Reverser, Model):
    """The study's layers; it says itself who reads whom."""

    kinds, groups = (layers.Embedding, layers.LSTM, layers.Linear), GROUPS

    def axes(self):
        (letters, size), stacks = self.words.weight.shape, ("encoder", "decoder")
        words = (Member("words.weight", 0, each(letters), "in"), Member("words.input", 1, each(letters), "scale"))
        reads = [Member(f"{stack}.weight_ih_l0", 1, each(size), "in") for stack in stacks]
        scales = [Member(f"{stack}.input_l0", 1, each(size), "scale") for stack in stacks]
        inputs = (Member("words.weight", 1, each(size), "out"), *reads, *scales)
        memory, memory_gates = recurrent_axes("encoder", self.encoder, ["bridge.weight", "key.weight"], "encoder.")
        memory = replace(memory, members=(*memory.members, Member("head.weight", 1, each(size) + size, "in")))
        letters = Axis("vocabulary", "vocabulary", letters, words, variable_decides=True)
        inputs = Axis("input", "input", size, inputs, ("out", "in"))
        stack = recurrent_axes("decoder", self.decoder, ["query.weight", "head.weight"], "decoder.")
        return [letters, inputs, memory, memory_gates, *stack]


@pytest.fixture(autouse=True)
def as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    known = [(table, dict(table)) for table in (sparsify.METHODS, tasks.TASKS, PRESETS)]
    yield
    for table, before in known:
        table.clear()
        table.update(before)


OPTIONS = {
    "lr_log_sigma": 5e-2, "log_sigma": -4.0, "log_sigma_groups": -4.0, "threshold": 0.0, "fine_tune": 0.3,
    "kl_weight": 0.3, "kl_weight_neurons": 15.0, "kl_start": 6.0, "kl_full": 14.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", [Reverser, Declared])
def test_a_model_of_a_new_kind_is_trained_made_small_saved_and_loaded(kind, tmp_path):
    sparsernn.register("reversal", task=Reversal)
    plan = Plan(epochs=25, batch_size=32, lr=1e-2, clip=1.0)
    preset = Preset(kind, {"size": 24}, {"quick": Profile(plan, **OPTIONS)})
    sparsernn.register("reverser", model=preset, of="reversal")
    run = sparsernn.ensure(sparsernn.RunConfig("reversal", method="sparse-vd-wgn", profile="quick"))
    assert run.record["test"] > 0.95 and run.record["compact_error"] <= 1e-9
    assert run.record["weights_kept"] < 0.3 * run.record["weights_total"]
    assert run.record["size_bytes"] < 0.4 * run.record["size_bytes_dense"]
    longer = torch.randint(1, len(LETTERS), (7, 3), generator=torch.Generator().manual_seed(1))
    loaded = sparsernn.load(run.directory / "model.safetensors", preset.build(run.task))
    masked = run.predictor(run.study.masks())
    for inputs in ((longer,), (longer, longer.flip(0)), (longer[:1],)):  # of other lengths, with and without a teacher
        for net in (run.model, run.compact, loaded):
            assert error(net(*inputs)[0], masked(*inputs)[0]) <= 1e-5
    small, proof = sparsernn.compact(run.model.double(), (longer,))
    assert proof.error <= 1e-12 and sparsernn.save(small, tmp_path / "small") < run.record["size_bytes_dense"]
    again = sparsernn.load(tmp_path / "small", preset.build(run.task))
    assert error(again(longer[:3])[0], run.model(longer[:3])[0]) <= 1e-5


@pytest.mark.parametrize("kind", [Reverser, Declared])
def test_its_axes_declared_or_not_make_nothing_smaller_than_it_may_be(kind):
    torch.manual_seed(0)
    model, x = kind(9, 8).double().eval(), torch.arange(8).view(4, 2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and name != "words.weight":
                weight[:, 1::2] = 0
    small, proof = sparsernn.compact(model, (x,))
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, small))
    assert proof.error <= 1e-12 and after < 0.6 * before
    for inputs in ((x.T,), (x + 1, x), (x[:1],)):
        assert error(small(*inputs)[0], model(*inputs)[0]) <= 1e-12
