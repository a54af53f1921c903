"""int8_noise: weights that stand beside themselves in the last epochs, as int8 will put them."""

import pytest
import torch
from torch import nn

import sparsernn
from sparsernn import sparsify, tasks
from sparsernn.nets.masks import standing
from sparsernn.sparsify.rounding import matrices, rounding
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure
from sparsernn.study.training import Session


@pytest.fixture(autouse=True)
def tiny_tasks(as_it_was):
    pass


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(30, 6), nn.LSTM(6, 8, 2), nn.Linear(8, 3)
        self.tail = nn.Linear(3, 3, bias=False)
        self.tail.weight = nn.Parameter(torch.zeros(3, 3))

    def forward(self, ids):
        return self.tail(self.head(self.lstm(self.embedding(ids))[0][-1]))


def test_weights_stand_within_half_a_step_evenly_and_are_back_to_the_bit_afterwards():
    model = Own()
    study = sparsernn.attach(model, "dense", steps=10, n_examples=10)
    with torch.no_grad():
        model.lstm.weight_hh_l0[:, ::2] = 0
    before = {name: p.clone() for name, p in model.named_parameters()}
    sums, draws = dict.fromkeys(matrices(model), 0.0), 400
    for _ in range(draws):
        with study.rounding():
            for name in sums:
                moved = (model.get_parameter(name) - before[name]).detach()
                step = before[name].abs().amax(1, keepdim=True) / 127
                assert bool((moved.abs() <= step * 0.5001).all()) and not moved[before[name] == 0].any()
                sums[name] = sums[name] + (moved / step.clamp(min=1e-12)) ** 2
            untouched = {name: p for name, p in model.named_parameters() if name not in sums}
            assert all(torch.equal(p, before[name]) for name, p in untouched.items())
    assert set(sums) == {f"lstm.weight_{kind}_l{k}" for kind in ("ih", "hh") for k in (0, 1)} | {
        "head.weight",
        "tail.weight",
    }
    variance = torch.cat([(total.detach() / draws)[before[name] != 0] for name, total in sums.items()]).mean()
    assert float(variance) == pytest.approx(1 / 12, rel=0.01)  # of one step, evenly
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_weights_are_back_where_a_step_fails():
    model = Own()
    study = sparsernn.attach(model, "dense", steps=10, n_examples=10)
    before = model.head.weight.clone()
    with pytest.raises(RuntimeError), study.rounding():
        raise RuntimeError
    assert torch.equal(model.head.weight, before)


def test_the_gradient_is_that_beside_the_weights_and_moves_the_weights_themselves():
    torch.manual_seed(0)
    model = Own().double()
    study, ids = sparsernn.attach(model, "dense", steps=10, n_examples=10), torch.randint(30, (5, 4))
    nn.init.eye_(model.tail.weight)
    with study.rounding():
        beside = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(ids).pow(2).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    twin = Own().double()
    twin.load_state_dict(beside, strict=False)
    twin(ids).pow(2).sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-12, rtol=1e-9)
        assert name in matrices(twin) or torch.equal(beside[name], model.get_parameter(name))
    assert any(not torch.equal(beside[name], model.get_parameter(name)) for name in matrices(twin))


def test_a_step_is_that_of_what_is_kept():
    """A weight that is masked, however large, makes no step wider."""
    model = Own()
    study = sparsernn.attach(model, "dense", steps=10, n_examples=10)
    masks = study.masks()
    with torch.no_grad():
        model.head.weight[0, 0] = 1000.0
    masks.weights["head.weight"][0, 0] = False
    before = model.head.weight.clone()
    with rounding(model, masks):
        moved = (model.head.weight - before).abs()
    assert not moved[0, 0] and moved[0].max() < before[0, 1:].abs().max() / 254 * 1.001


EVERY = [name for name in sparsify.names() if sparsify.make(name).trains and not sparsify.make(name).default_model]


@pytest.mark.parametrize("method", EVERY)
def test_every_method_takes_it_and_chooses_among_these_epochs(method, monkeypatch):
    seen, began = [], Session.is_rounding
    monkeypatch.setattr(
        Session, "is_rounding", lambda self, epoch: seen.append((epoch, began(self, epoch))) or seen[-1][1]
    )
    own = {
        "blocks": {"density": 0.5},
        "few-words": {"words": 5},
    }  # at its own no net as small as this one ends, or begins
    more = own.get(method, {})
    run = ensure(RunConfig(task="tiny-topic", method=method, profile="quick", epochs=4, int8_noise=0.5, **more))
    noisy = {epoch for epoch, rounds in seen if rounds}
    assert noisy == {2, 3} and run.record["epoch_selected"] in (3, 4)
    assert "int8 noise 0.5" in run.record["schedule"] and run.record["compact_error"] < 1e-9
    assert run.config.variant.count("int8_noise=0.5") == 1


def test_the_last_epoch_rounds_where_the_share_is_less_than_one():
    session = Session(
        RunConfig(task="tiny-topic", method="dense", profile="quick", epochs=3, int8_noise=0.1),
        tasks.load("tiny-topic", "quick"),
    )
    assert [session.is_rounding(epoch) for epoch in range(3)] == [False, False, True]
    session = Session(
        RunConfig(task="tiny-topic", method="dense", profile="quick", epochs=3), tasks.load("tiny-topic", "quick")
    )
    assert not any(session.is_rounding(epoch) for epoch in range(3)) and all(session.may_choose(e) for e in range(3))


def test_a_method_that_cuts_words_out_meanwhile_says_how_to_go_on():
    given = {"task": "tiny-topic", "method": "sparse-vd-wgn", "profile": "quick", "int8_noise": 0.5, "fine_tune": 0.0}
    with pytest.raises(ValueError, match="set sleep_above to 0"):
        Session(RunConfig(**given, sleep_above=1.0), tasks.load("tiny-topic", "quick"))
    Session(RunConfig(**given), tasks.load("tiny-topic", "quick"))


def test_standing_knows_every_matrix_that_is_rounded():
    model = Own()
    study = sparsernn.attach(model, "sparse-vd-wgn", steps=10, n_examples=10)
    assert set(matrices(model)) <= set(standing(study.masks()))


def test_a_stopped_training_goes_on_to_the_same_bits():
    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    given = {
        "task": "tiny-topic",
        "method": "gradual",
        "profile": "quick",
        "epochs": 4,
        "int8_noise": 0.5,
        "density": 0.5,
    }
    whole = ensure(RunConfig(**given)).directory
    before = (whole / "model.safetensors").read_bytes()
    for path in whole.iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        ensure(RunConfig(**given), stop)
    ensure(RunConfig(**given))
    assert (whole / "model.safetensors").read_bytes() == before
