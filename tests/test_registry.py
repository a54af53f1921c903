"""What a stranger adds by name: a method that starts from a finished run, a task of floats, a model of two inputs."""

import numpy as np
import pytest
import torch
from oracles import error
from torch import nn

import sparsernn
from sparsernn import tasks
from sparsernn.nets.models import LanguageModel
from sparsernn.sparsify.base import Method
from sparsernn.sparsify.plan import Plan
from sparsernn.study.config import RunConfig, needed
from sparsernn.study.presets import Preset, Profile
from sparsernn.study.runs import ensure
from sparsernn.study.training import Session
from sparsernn.tasks.base import SPLITS, Batch, ClassificationTask, LanguageTask

pytestmark = pytest.mark.usefixtures("as_it_was")


class Largest(Method):
    """The larger half of each matrix of a finished dense run, from then on fixed: a method of a few lines."""

    touches = True

    def needs(self):
        return ("dense",)

    def start_from(self, finished):
        self.finished = finished["dense"]

    def prepare(self):
        for item in self.items():
            size = self.finished[item.name].abs()
            item.register_buffer("stays", size > size.median())

    def draw(self, weight, lines=None):
        return weight.theta * weight.stays

    def score(self, item):
        return item.stays

    def keeps(self, score, threshold=None):
        return score.clone()


def test_a_method_that_starts_from_a_finished_run_has_it_trained_first():
    sparsernn.register("largest", method=Largest)
    config = RunConfig("tiny-topic", method="largest", profile="quick", epochs=2)
    (before,) = needed(config)
    assert (before.method, before.task, before.seed, before.overrides) == ("dense", "tiny-topic", 0, {})
    lines = []
    run = ensure(config, lines.append)
    assert (before.directory / "record.json").exists() and "starts from a finished run of dense" in lines[0]
    kept = run.study.masks().weights["lstm.weight_hh_l0"]
    dense = ensure(before).model.lstm.weight_hh_l0.abs()
    assert torch.equal(kept, dense > dense.median()) and run.record["compact_error"] <= 1e-9
    assert run.record["weights_kept"] < 0.6 * run.record["weights_total"]


def test_attach_takes_the_run_a_method_starts_from_and_says_so_where_it_is_not_given():
    sparsernn.register("largest", method=Largest)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack, self.head = nn.GRU(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.stack(x)[0])

    model = Net().double()
    with pytest.raises(ValueError, match="starts from a finished run of 'dense': give attach reference="):
        sparsernn.attach(model, "largest", steps=5, n_examples=5)
    study = sparsernn.attach(model, "largest", steps=5, n_examples=5, reference=Net().double().state_dict())
    optimizer = torch.optim.Adam(study.parameter_groups(lr=0.1))
    for _ in range(5):
        optimizer.zero_grad()
        (model(torch.randn(3, 2, 4).double()).sum() + study.penalty()).backward()
        optimizer.step(), study.after_step()
    x = torch.randn(5, 3, 4).double()
    small, proof = sparsernn.compact(model.eval(), example=x)
    assert error(small(x), model(x)) <= 1e-12 and proof.weights_after <= 0.6 * proof.weights_before


def tones(profile):
    """Eight floats a step: which of two of them is the louder?"""
    rng, splits = np.random.default_rng(0), {}
    for split, n in zip(SPLITS, (120, 40, 40), strict=True):
        labels = rng.integers(0, 2, n)
        splits[split] = {"ids": np.zeros(5 * n, int), "lengths": np.full(n, 5), "labels": labels}
    task = ClassificationTask("tones", splits, [], ["low", "high"])

    def batches(split, batch_size, steps=None, generator=None):
        labels = torch.as_tensor(splits[split]["labels"])
        for group in torch.arange(len(labels)).split(batch_size):
            noise = torch.randn(5, len(group), 8, generator=torch.Generator().manual_seed(int(group[0])))
            noise[:, torch.arange(len(group)), labels[group]] += 2
            yield Batch((noise, noise[0]), labels[group], None)

    task.batches = batches
    return task


class TwoInputs(nn.Module):
    """A stack over floats, and a second input beside it."""

    def __init__(self, classes):
        super().__init__()
        self.stack, self.head = nn.GRU(8, 6), nn.Linear(6 + 8, classes)

    def forward(self, x, first, lengths=None, state=None):
        y, state = self.stack(x, state)
        return self.head(torch.cat([y[-1], first], 1)), state


def test_batches_may_hold_several_inputs_of_floats():
    sparsernn.register("tones", task=tones)
    sparsernn.register("two", model=Preset(TwoInputs, {}, {"quick": Profile(Plan(epochs=3, lr=1e-2))}), of="tones")
    session = Session(RunConfig("tones", method="sparse-vd-wgn", profile="quick"), tasks.load("tones", "quick"))
    losses = []
    for session.epoch in range(3):
        losses += [loss for loss, _ in session.steps()]
    assert losses[-1] < losses[0] and session.read_off()["valid"] > 0.7
    assert {axis.kind for axis in session.method.axes} == {"input", "hidden", "gates"}


def corpus(profile):
    splits = {split: {"ids": np.arange(n) * 7 % 5} for split, n in zip(SPLITS, (400, 60, 60), strict=True)}
    return LanguageTask("mine", splits, list("abcde"))


def test_a_corpus_of_ones_own_and_a_model_for_it_run_to_the_end():
    sparsernn.register("mine", task=corpus)
    profile = Profile(Plan(epochs=4, batch_size=4, steps=10, lr=2e-2), lr_log_sigma=0.1)
    sparsernn.register("lstm-6", model=Preset(LanguageModel, {"hidden": 6}, {"quick": profile}), of="mine")
    run = sparsernn.ensure(sparsernn.RunConfig("mine", method="sparse-vd-w", profile="quick"))
    assert run.record["test"] < 2.33 and run.record["compact_error"] <= 1e-9  # five symbols: log2 5


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({}, "register one thing at a time"),
        ({"task": corpus, "method": Largest}, "register one thing at a time"),
        ({"method": Largest, "of": "imdb"}, "of= names the task of a model"),
        ({"model": Preset(LanguageModel, {}, {})}, "of= names the task of a model"),
        ({"model": Preset(LanguageModel, {}, {}), "of": "nowhere"}, "no task 'nowhere'"),
    ],
)
def test_what_cannot_be_registered_is_refused_in_words(what, said):
    with pytest.raises(ValueError, match=said):
        sparsernn.register("new", **what)


def test_a_taken_name_and_a_wrong_kind_of_thing_are_refused():
    with pytest.raises(ValueError, match="there is a method 'dense' already"):
        sparsernn.register("dense", method=Largest)
    with pytest.raises(TypeError, match="method is .*; expected a subclass of Method"):
        sparsernn.register("new", method=nn.LSTM)


def test_public_names_are_loaded_when_they_are_used():
    assert set(sparsernn.__all__) == {
        "to_onnx",
        "to_c",
        "attach",
        "Study",
        "compact",
        "load",
        "save",
        "choose",
        "ensure",
        "RunConfig",
        "register",
    }
    assert all(callable(getattr(sparsernn, name)) for name in sparsernn.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atach'; public names: attach"):
        getattr(sparsernn, "atach")  # noqa: B009


class Scaled(nn.Module):
    """What stands between its layers depends on their width, which running it once does not show."""

    def __init__(self, classes):
        super().__init__()
        self.stack, self.head = nn.GRU(8, 16), nn.Linear(16, classes)

    def forward(self, x, first, lengths=None, state=None):
        y, state = self.stack(x, state)
        return self.head(y[-1]) / y.shape[-1] ** 0.5 - torch.tensor([y.shape[-1] / 50, 0.0]).to(y), state


class HalfOfThem(Method):
    """Every other neuron goes."""

    kinds, draws_scales, touches = ("hidden",), False, True

    def prepare(self):
        for group in self.groups.values():
            del group.theta
            group.register_buffer("theta", torch.arange(group.size) % 2.0)

    def score(self, item):
        return item.theta > 0 if item.name in self.groups else None

    def keeps(self, score, threshold=None):
        return score.clone()

    def kept(self, item):
        return item.theta


def test_a_model_that_is_not_equal_when_it_is_small_leaves_no_record():
    sparsernn.register("tones", task=tones)
    sparsernn.register("scaled", model=Preset(Scaled, {}, {"quick": Profile(Plan(epochs=1))}), of="tones")
    sparsernn.register("half", method=HalfOfThem)
    config = RunConfig("tones", method="half", profile="quick")
    with pytest.raises(
        RuntimeError, match="compact scaled differs from the masked one by .*let it say itself who reads whom"
    ):
        ensure(config)
    assert not (config.directory / "record.json").exists()


def test_a_name_that_no_folder_can_have_is_refused_when_it_is_given():
    with pytest.raises(ValueError, match="name is 'my/method'"):
        sparsernn.register("my/method", method=Largest)
    with pytest.raises(ValueError, match="make a folder's name of 3.. bytes; a file system takes 255"):
        RunConfig("pydocs-topic", method="sparse-vd-w", profile="quick", epochs=11, batch_size=33, lr=0.00123456, clip=0.123456,
                  lr_hold=0.123456, lr_end=0.123456, word_dropout=0.123456, kl_weight=0.123456, kl_full=3.123456,
                  kl_start=1.123456, threshold=1.123456, log_sigma=-3.123456, log_sigma_groups=-3.23456,
                  lr_log_sigma=0.0123456, kl_peak=2.123456, kl_press=4.123456, kl_settle=6.123456)  # fmt: skip
