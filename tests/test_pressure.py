"""A penalty that follows a density that was asked for, and that ends before a layer has no neuron left."""

import json
import warnings

import pytest
import tiny
import torch
from oracles import randn, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sparsernn import attach, sparsify, tasks
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.sparsify.attach import put_on
from sparsernn.study.checkpoint import SWORN
from sparsernn.study.config import RunConfig
from sparsernn.study.presets import PRESETS, Preset
from sparsernn.study.runs import ensure
from sparsernn.study.training import Session


@pytest.fixture(autouse=True)
def tiny_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tiny.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


FAST = {"lr_log_sigma": 0.1, "threshold": 0.0, "fine_tune": 0.3, "kl_start": 0.0, "kl_full": 0.0}


def config(task="tiny-char", method="sparse-vd-w", **more):
    return RunConfig(task, method=method, profile="quick", **more)


@pytest.mark.parametrize("density", [0.5, 0.25])
@pytest.mark.parametrize("kl_weight", [0.3, 3.0])
def test_the_density_asked_for_is_reached_whatever_the_weight_of_the_penalty(density, kl_weight):
    """Without it they are far apart; the masks are counted here by hand."""
    run = ensure(config(density=density, kl_weight=kl_weight, epochs=16, **FAST))
    kept = sum(int(mask.sum()) for mask in run.study.masks().weights.values())
    total = sum(mask.numel() for mask in run.study.masks().weights.values())
    assert abs(kept / total / density - 1) <= 0.1
    assert run.record["weights_total"] / run.record["compression"] == pytest.approx(kept, abs=0.02 * total)
    assert run.record["compact_error"] <= 1e-9


STEERED = {
    "sparse-vd-w": FAST,
    "sparse-vd-wgn": FAST | {"log_sigma_groups": -4.0},
    "l0": {"lr_gates": 0.05, "fine_tune": 0.3},
    "iss": {"iss_weight": 1e-3, "fine_tune": 0.3},
}


@pytest.mark.parametrize("method", ["l0", "iss"])
def test_a_penalty_far_above_the_loss_closes_nothing_before_anything_is_learned(method):
    """L0's is of 21 nats a word on Zaremba's medium net, of 290 a review on IMDb: as it was, all gates closed at once."""
    weight = {f"{method}_weight": 1e3}
    asked = Session(config(method=method, density=0.7, **weight), tasks.load("tiny-char", "quick"))
    given = Session(config(method=method, **weight), tasks.load("tiny-char", "quick"))
    (_, first), (_, _) = (next(iter(asked.steps())), next(iter(given.steps())))
    assert first == pytest.approx(0.1, rel=1e-4) and asked.method.pressure < 0.01
    assert given.method.pressure == 1 and next(iter(given.steps()))[1] > 10
    small = Session(config(method=method, density=0.7, **{f"{method}_weight": 1e-6}), tasks.load("tiny-char", "quick"))
    assert 0 < next(iter(small.steps()))[1] < 0.1 and small.method.pressure > 0.5  # steered once by then


@pytest.mark.parametrize("method", STEERED)
def test_every_method_with_a_penalty_is_steered_to_a_density(method):
    plan = PRESETS["tiny-char"]["lstm-8"].profiles["quick"]
    PRESETS["tiny-char"]["lstm-40"] = Preset(LanguageModel, {"hidden": 40}, {"quick": plan})
    run = ensure(config(method=method, model="lstm-40", density=0.4, epochs=20, **STEERED[method]))
    masks, total = run.study.masks(), 160 * 12 + 160 * 40 + 12 * 40
    hidden = masks.groups.get("hidden_l0", torch.ones(40, dtype=torch.bool))
    gates = masks.groups.get("gates_l0", torch.ones(160, dtype=torch.bool)) & hidden.repeat(4)
    kept = int(masks.weights["lstm.weight_ih_l0"][gates].sum())
    kept += int(masks.weights["lstm.weight_hh_l0"][gates][:, hidden].sum())
    kept += int(masks.weights["head.weight"][:, hidden].sum())
    assert abs(kept / total / 0.4 - 1) <= 0.1 and run.record["compact_error"] <= 1e-9
    assert run.study.method.pressure != 1 and run.record["test"] < 3.58  # log2 12: it has learnt


@pytest.mark.parametrize("density", [0.05, 0.33, 0.8])
def test_the_threshold_that_meets_a_density_is_the_one_that_a_search_over_all_scores_finds(density):
    model = randomise(LanguageModel(9, 5), 0).requires_grad_(True)
    options = sparsify.options_of("sparse-vd-w", {"density": density, "fine_tune": 0.5})
    study = put_on(model, sparsify.make("sparse-vd-w", options), steps=40, n_examples=100, batch_dim=1)
    with torch.no_grad():
        for i, item in enumerate(study.weights.values()):
            item.log_sigma.copy_(randn(*item.theta.shape, seed=i) - 1)
    before = torch.cat([score.flatten() for score in study.scores().values()])
    study.method.fix()
    kept = sum(int(mask.sum()) for mask in study.masks().weights.values())
    possible = torch.tensor([int((before < score).sum()) for score in before.unique()]) / len(before)
    assert abs(kept / len(before) - density) <= (possible - density).abs().min() + 1e-9
    assert sum(int((item.theta * item.mask != 0).sum()) for item in study.weights.values()) == kept


def test_gates_that_are_all_open_are_still_told_apart_where_a_density_asks_for_it():
    """Half of the neurons are to go, and every gate is 1: those go that were nearest to closing."""
    model = randomise(LanguageModel(9, 20), 0).requires_grad_(True)
    options = sparsify.options_of("l0", {"density": 0.5, "fine_tune": 0.5})
    study = put_on(model, sparsify.make("l0", options), steps=40, n_examples=100, batch_dim=1)
    hidden = study.groups["hidden_l0"]
    with torch.no_grad():
        hidden.gate_logit.copy_(torch.linspace(2.5, 4.5, 20)[torch.randperm(20)])
    order = hidden.gate_logit.detach().argsort()
    assert bool((study.method.means()["hidden_l0"] == 1).all())
    study.method.fix()
    kept = study.masks().groups["hidden_l0"]
    assert abs(study.method.density() / 0.5 - 1) <= 0.1 and 0 < kept.sum() < 20
    assert bool(kept[order[-kept.sum() :]].all()) and bool((hidden.theta == 1).all())


def test_without_a_density_the_factor_is_one_and_the_penalty_the_kl():
    session = Session(config(), tasks.load("tiny-char", "quick"))
    session.epoch = 4  # the kl is full
    penalties = [penalty for _, penalty in session.steps()]
    assert session.method.pressure == 1 and min(penalties) > 0
    step = 5 * session.steps_per_epoch
    assert session.method.penalty(step).item() == session.method.charge(step).item()


def test_a_density_run_stopped_in_between_goes_on_to_the_same_end(tmp_path, monkeypatch):
    given = config(density=0.4, epochs=8, **FAST)
    whole = ensure(given).directory
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(given, stop)
    same(whole, ensure(given).directory)


def same(one, other):
    """Two runs left the same, bit for bit."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    first, second = (load_file(directory / "checkpoint.safetensors") for directory in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def too_much(**more):
    return config("tiny-topic", "sparse-vd-wgn", epochs=12, kl_weight=60.0, **(FAST | {"kl_full": 2.0}), **more)


def test_a_penalty_far_too_large_ends_before_the_last_neuron_and_says_so(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match=r"hidden_l0 would keep none of its neurons at step [\d,]+ of [\d,]+") as said:
        run = ensure(too_much())
    assert len([one for one in said if "would keep none" in str(one.message)]) == 1
    assert run.study.method.pressure == 0 and int(run.record["hidden_kept"]) >= 1
    assert run.record["compact_error"] <= 1e-9
    penalties = run.metrics["penalty"].tolist()
    stopped = next(i for i, penalty in enumerate(penalties) if penalty == 0)
    assert 0 < stopped < 8 and not any(penalties[stopped:])  # before what is kept is fixed
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith(f"epoch {stopped + 1}/"):
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="would keep none"), pytest.raises(KeyboardInterrupt):
        ensure(too_much(), stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        again = ensure(too_much())
    same(run.directory, again.directory)


def test_one_neuron_that_is_left_does_not_end_the_penalty():
    model = randomise(LanguageModel(9, 5), 0).requires_grad_(True)
    study = put_on(model, sparsify.make("sparse-vd-wn"), steps=40, steps_per_epoch=4, n_examples=100, batch_dim=1)
    with torch.no_grad():
        study.groups["hidden_l0"].log_sigma[1:] = 5.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.method.after_step(3)
    assert study.method.pressure == 1 and study.penalty() > 0
    with torch.no_grad():
        study.groups["hidden_l0"].log_sigma[0] = 5.0
    with pytest.warns(UserWarning, match="hidden_l0 would keep none of its neurons at step 8 of 40") as said:
        study.method.after_step(7)
    assert said[0].filename == __file__
    assert study.method.pressure == 0 and study.penalty() == 0


def test_the_last_neuron_is_looked_for_by_who_reads_it_not_by_its_own_variable():
    model = randomise(Classifier(9, 3, embedding=4, hidden=5), 0).requires_grad_(True)
    study = put_on(model, sparsify.make("sparse-vd-w"), steps=40, steps_per_epoch=4, n_examples=100, batch_dim=1)
    with torch.no_grad():
        study.weights["head.weight"].log_sigma.fill_(5.0)
    with pytest.warns(UserWarning, match="hidden_l0 would keep none"):
        study.method.after_step(3)


def test_neurons_whose_readers_nobody_names_are_not_mistaken_for_unread():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack, self.head = nn.GRU(4, 6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.stack(x)[0])

    torch.manual_seed(0)
    model, x = Mine().double(), torch.randn(3, 2, 4).double()
    study = attach(model, "sparse-vd-wgn", steps=10, n_examples=10)
    model(x).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.after_step()
    assert study.method.pressure == 1
    with torch.no_grad():
        study.groups["stack.hidden_l1"].log_sigma.fill_(5.0)  # then nobody reads the layer below either
    with pytest.warns(UserWarning, match="stack.hidden_l[01] would keep none"):
        study.after_step()


def test_what_is_cut_out_of_an_epoch_is_gone_when_the_last_neuron_is_looked_for():
    session = Session(config("tiny-topic", "sparse-vd-wgn", sleep_above=0.5), tasks.load("tiny-topic", "quick"))
    with torch.no_grad():
        session.study.groups["hidden_l0"].log_sigma[:6] = 3.0
        session.study.groups["vocabulary"].log_sigma[3:] = 3.0
    whole = session.study.scores()
    with session.method.without_pruned(session.model, session.optimizer):
        assert session.model.lstm.weight_hh_l0.shape[1] == 2
        within = session.study.scores()
        assert session.method.density() < 0.3
    assert all(torch.equal(whole[name], score) for name, score in within.items())


def test_pruning_during_training_ends_with_the_penalty_before_it_takes_the_last_neuron():
    session = Session(config("tiny-topic", "sparse-vd-wgn", sleep_above=0.5), tasks.load("tiny-topic", "quick"))
    method, group = session.method, session.study.groups["hidden_l0"]
    with torch.no_grad():
        group.log_sigma.fill_(0.5)  # log α = 1: kept by the threshold, but not by sleep_above
    with pytest.warns(UserWarning, match="hidden_l0 would keep none"):
        with method.without_pruned(session.model, session.optimizer):
            assert session.model.lstm.weight_hh_l0.shape[1] == 8 and method.pressure == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with method.without_pruned(session.model, session.optimizer):
            assert session.model.lstm.weight_hh_l0.shape[1] == 8
    assert bool((session.study.scores()["hidden_l0"] < 3).all()), "nothing is read as gone any more"


def test_a_run_from_before_there_was_a_factor_goes_on(tmp_path, monkeypatch):
    whole = ensure(config(epochs=3)).directory
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "older"))

    def stop(line):
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config(epochs=3), stop)
    path = config(epochs=3).directory / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["counters"])
    counters = {"counters": json.dumps({name: value for name, value in said.items() if name not in SWORN})}
    older = {name: value for name, value in load_file(path).items() if not name.endswith(".pressure")}
    assert len(older) < len(load_file(path))
    save_file(older, path, counters)
    same(whole, ensure(config(epochs=3)).directory)
