"""Gradual and hard pruning: the paper's threshold by hand, what is dead stays dead, a density asked for is reached."""

import numpy as np
import pytest
import torch
from oracles import error
from torch import nn

import sparsernn
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.sparsify.gradual import Gradual, cubic, two_slope
from sparsernn.sparsify.masking import largest
from sparsernn.study.config import RunConfig, needed
from sparsernn.study.runs import ensure

pytestmark = pytest.mark.usefixtures("as_it_was")


class Net(nn.Module):
    """Words, a stack of two layers, a head."""

    def __init__(self, cell=nn.LSTM, bidirectional=False):
        super().__init__()
        torch.manual_seed(3)
        self.words = nn.Embedding(11, 5, padding_idx=0)
        self.stack = cell(5, 6, num_layers=2, bidirectional=bidirectional)
        self.head = nn.Linear(12 if bidirectional else 6, 3)

    def forward(self, ids):
        return self.head(self.stack(self.words(ids))[0])


CELLS = [nn.LSTM, nn.GRU, nn.RNN]
IDS = torch.randint(1, 11, (7, 4), generator=torch.Generator().manual_seed(0))


def train(model, study, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(study.parameter_groups(lr=1e-2))
    targets = torch.randint(0, 3, (7, 4), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), targets.flatten()) + study.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        study.after_step()


# ---- the schedules


def test_the_threshold_is_that_of_the_papers_algorithm_worked_out_by_hand():
    # 1,000 steps: begins at 100, faster from 300, ends at 500; masks every 50; q = 0.1:
    # θ = 2 · 0.1 · 50 / (2 · 200 + 3 · 200) = 0.01 every 50 steps; φ = 1.5 θ
    given = {"start": 100, "ramp": 300, "end": 500, "every": 50, "q": 0.1}
    assert two_slope(149, **given) == pytest.approx(0.01)
    assert two_slope(199, **given) == pytest.approx(0.02)
    assert two_slope(299, **given) == pytest.approx(0.04)
    assert two_slope(399, **given) == pytest.approx(0.04 + 0.0002 + 0.03)  # the first slope ends with ramp − start + 1
    assert two_slope(499, **given) == pytest.approx(0.1 + 0.0002)
    # with φ = 2 θ and the heuristic times (25 %, 50 % of 1,000 steps) it ends near 1.2 q
    assert two_slope(499, 50, 250, 500, 100, 0.1, ratio=2.0) == pytest.approx(0.1217, abs=2e-3)


def test_the_cubic_density_is_one_at_the_start_what_was_asked_at_the_end_and_an_eighth_above_it_half_way():
    assert [cubic(step, 100, 300, 0.2) for step in (0, 100, 200, 300, 900)] == pytest.approx([1, 1, 0.3, 0.2, 0.2])


def test_the_largest_are_as_many_as_were_asked_for_whatever_ties_there_are():
    sizes = torch.tensor([[1.0, 2.0, 2.0], [2.0, 2.0, 0.0]])
    for count in range(7):
        keep = largest(sizes, count)
        assert int(keep.sum()) == count and keep.shape == sizes.shape
        first = sizes.flatten().argsort(descending=True, stable=True)[:count]  # of equal ones whichever come first
        assert sorted(first.tolist()) == keep.flatten().nonzero().flatten().tolist()


# ---- where q comes from


def test_q_is_the_percentile_of_the_dense_run_of_the_same_task_type_by_type():
    config = RunConfig("tiny-char", method="gradual", profile="quick", epochs=6, prune_every=7)
    (before,) = needed(config)
    assert (before.method, before.seed, before.profile) == ("dense", 0, "quick")
    run = ensure(config)
    dense, q = ensure(before).model, run.study.method.q
    for kind, weight in (("input", "weight_ih_l0"), ("recurrent", "weight_hh_l0")):
        sizes = np.sort(getattr(dense.lstm, weight).detach().abs().numpy().ravel())
        assert q(kind) == pytest.approx(sizes[round(0.9 * len(sizes))])
    start, end = run.study.method.window
    assert (start, end) == (run.record["steps"] // 6, run.record["steps"] // 2)
    assert run.record["compact_error"] <= 1e-9 and run.record["compression"] > 2


def test_a_threshold_may_be_given_instead_of_a_dense_run_and_one_of_the_two_is_asked_for():
    assert not needed(RunConfig("tiny-char", method="gradual", profile="quick", q=0.1))
    model = Net()
    with pytest.raises(ValueError, match="finished run of 'dense': give attach reference=.*, or q="):
        sparsernn.attach(model, "gradual", steps=40, n_examples=40)
    with pytest.raises(ValueError, match="q and density do not go together"):
        sparsernn.attach(model, "gradual", steps=40, n_examples=40, q=0.1, density=0.3)
    with pytest.raises(ValueError, match="schedule='cubic' goes by a density"):
        sparsernn.attach(model, "gradual", steps=40, n_examples=40, schedule="cubic")
    study = sparsernn.attach(model, "gradual", steps=40, n_examples=40, q=0.2, prune_every=2)
    train(model, study, 40)
    weights = study.weights["stack.weight_hh_l1"]
    assert 0 < int(weights.mask.sum()) < weights.mask.numel()
    assert not bool((weights.theta[~weights.mask] != 0).any())


def test_a_reference_says_where_a_strangers_threshold_ends():
    reference = {name: value.clone() for name, value in Net().state_dict().items()}
    model = Net()
    study = sparsernn.attach(model, "gradual", steps=60, n_examples=40, reference=reference, prune_every=5)
    sizes = torch.cat([reference[f"stack.weight_hh_l{n}"].abs().flatten() for n in (0, 1)]).sort().values
    assert study.method.q("recurrent") == pytest.approx(float(sizes[round(0.9 * len(sizes))]))
    train(model, study, 60)
    assert study.method.density() < 0.5


# ---- dead is dead


@pytest.mark.parametrize("optimizer", [
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-4),
    lambda groups: torch.optim.Adam(groups, lr=1e-2),
])  # fmt: skip
@pytest.mark.parametrize("method, given", [
    ("gradual", {"schedule": "cubic", "prune_end": 0.1, "prune_every": 2}),
    ("hard", {"prune_times": 2, "prune_start": 5.0, "prune_end": 0.1}),
])  # fmt: skip
def test_zeros_survive_a_hundred_steps_of_an_optimiser_with_momentum(optimizer, method, given):
    model = Net()
    study = sparsernn.attach(model, method, steps=120, n_examples=40, density=0.3, **given)
    optimizer = optimizer(study.parameter_groups(lr=1e-2))
    train(model, study, 20, optimizer)
    dead = {name: ~weight.mask for name, weight in study.weights.items()}
    assert study.method.density() == pytest.approx(0.3, abs=0.02)
    for _ in range(4):
        train(model, study, 25, optimizer)
        for name, weight in study.weights.items():
            assert torch.equal(~weight.mask, dead[name]) and not bool(weight.theta[dead[name]].any()), name


def test_a_dead_weight_takes_no_part_and_gets_no_gradient_even_before_it_is_set_to_zero():
    model = Net().double()
    study = sparsernn.attach(model, "gradual", steps=10, n_examples=4, q=0.1, prune_every=1)
    weight = study.weights["stack.weight_hh_l0"]
    weight.mask[0] = False
    with torch.no_grad():
        weight.theta[0] = 5.0
    y = model(IDS)
    y.sum().backward()
    assert not bool(weight.theta.grad[0].any()) and bool(weight.theta.grad[1:].any())
    with torch.no_grad():
        weight.theta[0] = -5.0
    assert torch.equal(model(IDS), y)


@pytest.mark.parametrize("make, name", [
    (lambda: LanguageModel(40, 6), "lstm.weight_ih_l0"), (lambda: Classifier(40, 3, 5, 6), "embedding.weight"),
])  # fmt: skip
def test_masks_of_the_words_that_are_read_alone_give_what_all_masks_give(make, name, monkeypatch):
    ids = torch.randint(0, 40, (5, 3), generator=torch.Generator().manual_seed(0))
    found = []
    for reads_words in (True, False):
        torch.manual_seed(0)
        model = make().double()
        monkeypatch.setattr(Gradual, "draws_words", reads_words)
        study = sparsernn.attach(model, "gradual", steps=10, n_examples=4, q=0.1, prune_every=1, batch_dim=1)
        for weight in study.weights.values():
            weight.mask.copy_(torch.rand(weight.mask.shape, generator=torch.Generator().manual_seed(1)) < 0.3)
        logits, _ = model(ids)
        logits.square().sum().backward()
        dead = model.get_parameter(name).grad[~study.weights[name].mask]
        assert len(dead) and not bool(dead.any())
        found.append([logits, *(p.grad for p in model.parameters())])
    for words, everything in zip(*found, strict=True):
        assert error(words, everything) <= 1e-12


def test_padding_is_left_alone():
    model = Net()
    study = sparsernn.attach(
        model, "gradual", steps=20, n_examples=4, schedule="cubic", density=0.2, prune_every=1, prune_start=0.0
    )
    train(model, study, 20)
    assert bool(study.weights["words.weight"].mask[0].all()) and not bool(study.weights["words.weight"].mask.all())


# ---- how much is left, and when


@pytest.mark.parametrize("method, more", [
    ("gradual", {"schedule": "cubic", "prune_every": 4}), ("gradual", {"prune_every": 4}), ("hard", {}),
    ("hard", {"prune_times": 3}),
])  # fmt: skip
def test_a_density_asked_for_is_what_is_left(method, more):
    run = ensure(RunConfig("tiny-topic", method=method, profile="quick", density=0.2, **more))
    masks = run.study.masks()
    assert run.study.method.density(masks) == pytest.approx(0.2, rel=0.01)
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "embedding.weight", "head.weight"):
        assert float(masks.weights[name].double().mean()) == pytest.approx(0.2, abs=0.5 / 24)
    assert run.record["compact_error"] <= 1e-9


def test_a_run_says_what_it_will_prune_and_when_and_refuses_to_begin_after_its_end():
    lines = []
    ensure(RunConfig("tiny-topic", method="gradual", profile="quick", schedule="cubic", density=0.25), lines.append)
    assert "density 0.25: 178 of the 712 weights of embedding.weight, lstm.weight_ih_l0, " in " ".join(lines)
    assert any(line.startswith("pruned: steps 19 to 114 of 228") for line in lines)
    with pytest.raises(ValueError, match="pruning would begin at step 19 of a training of 19: lower prune_start"):
        ensure(RunConfig("tiny-topic", method="gradual", profile="quick", q=0.1, epochs=1))


def test_a_training_that_ends_elsewhere_than_asked_says_so():
    model = Net()
    study = sparsernn.attach(model, "gradual", steps=30, n_examples=4, schedule="cubic", density=0.2, prune_every=2)
    study.method.shrink = lambda step: None  # a method that does nothing
    with pytest.warns(UserWarning, match="ended at a density of 1, not at 0.2 as asked"):
        train(model, study, 30)
    assert study.step == 30  # the model is there to be saved
    assert sparsernn.compact(model, IDS)[1].warnings[0].startswith("the training ended at a density of 1, not at 0.2")


@pytest.mark.parametrize("method, given", [("gradual", {"schedule": "cubic"}), ("hard", {}), ("sparse-vd-w", {})])
def test_a_density_of_less_than_a_weight_is_refused_before_the_training_with_the_range(method, given):
    with pytest.raises(ValueError, match="density is 1e-05; what this method can reach here is [0-9.]+ to 1"):
        sparsernn.attach(Net(), method, steps=40, n_examples=4, density=1e-5, **given)


def test_a_smoke_run_is_too_short_to_be_held_to_its_density(tmp_path, monkeypatch):
    monkeypatch.setattr(Gradual, "shrink", lambda self, step: None)
    given = {"task": "tiny-topic", "method": "gradual", "schedule": "cubic", "density": 0.25}
    assert ensure(RunConfig(profile="smoke", **given)).record["compression"] == pytest.approx(1.0, abs=0.2)
    with pytest.raises(ValueError, match="not at 0.25 as asked"):
        ensure(RunConfig(profile="quick", **given))


@pytest.mark.parametrize("method, given", [
    ("gradual", {"schedule": "cubic", "density": 0.3}), ("gradual", {"q": 0.1}), ("blocks", {"density": 0.5, "block": "4x1"}),
])  # fmt: skip
def test_a_short_training_that_would_be_pruned_in_one_jump_is_told_so_with_what_would_make_it_more(method, given):
    said = "masks change once in steps 1 to 50.* prune_every is 100; with prune_every=9 they change 6 times"
    with pytest.warns(UserWarning, match=said):
        study = sparsernn.attach(Net(), method, steps=100, n_examples=4, **given)
    assert study.ahead()[-1] == "masks change once, last at step 50"
    model = Net()
    study, seen = sparsernn.attach(model, method, steps=100, n_examples=4, prune_every=9, **given), [1.0]
    assert study.ahead()[-1] == "masks change 6 times, last at step 50"
    for step in range(100):
        train(model, study, 1)
        if study.method.density() != seen[-1]:
            seen, last = [*seen, study.method.density()], step + 1
    assert len(seen) == 1 + 6 and last == 50


def test_pruning_at_once_on_purpose_is_no_jump_to_warn_of():
    assert (
        sparsernn.attach(Net(), "hard", steps=100, n_examples=4, density=0.3)
        .ahead()[-1]
        .startswith("masks change once")
    )


def test_hard_pruning_happens_at_its_epochs_alone():
    model = Net()
    study = sparsernn.attach(
        model, "hard", steps=60, n_examples=4, density=0.4, prune_times=2, prune_start=10.0, prune_end=0.5
    )
    seen = []
    for _ in range(60):
        train(model, study, 1)
        seen.append(round(study.method.density(), 2))
    changes = [step for step in range(1, 60) if seen[step] != seen[step - 1]]
    assert changes == [19, 29] and seen[18] == 1.0 and seen[20] == pytest.approx(0.7, abs=0.01)


def test_a_step_that_an_epoch_comes_out_shorter_by_loses_no_change_of_the_masks():
    model = Net()
    study = sparsernn.attach(model, "gradual", steps=40, n_examples=4, schedule="cubic", density=0.3, prune_every=3)
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    for step in [s for s in range(40) if s != 19]:  # the step after which pruning ends is missing
        study.step = study.method.step = step
        train(model, study, 1, optimizer)
    assert study.method.density() == pytest.approx(0.3, abs=0.02)


# ---- the small model


def test_the_file_of_scattered_weights_is_near_its_floor(tmp_path):
    """Values in 4 bytes, an index in 2, biases: of a model that is large enough for a header not to count."""
    model = Net()
    model.words, model.stack, model.head = nn.Embedding(500, 128), nn.LSTM(128, 256), nn.Linear(256, 64)
    x = torch.randint(0, 500, (3, 2))
    study = sparsernn.attach(model, "gradual", steps=4, n_examples=4, schedule="cubic", density=0.1, prune_every=1)
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    for _ in range(4):
        optimizer.zero_grad()
        (model(x).square().mean() + study.penalty()).backward()
        optimizer.step()
        study.after_step()
    small, proof = sparsernn.compact(model.eval(), example=x)
    size = sparsernn.save(small, tmp_path / "small.safetensors")
    assert (
        size
        <= 1.3 * (6 * proof.weights_after + 4 * (2 * 4 * 256 + 64))
        < 0.25 * 4 * sum(p.numel() for p in model.parameters())
    )


GIVEN = {
    "gradual": {"schedule": "cubic", "prune_every": 3},
    "hard": {"prune_times": 2, "prune_start": 5.0, "prune_end": 0.5},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method, bidirectional", [("gradual", False), ("gradual", True), ("hard", False)])
def test_the_small_model_is_the_masked_one(cell, method, bidirectional):
    model = Net(cell, bidirectional).double()
    study = sparsernn.attach(model, method, steps=30, n_examples=4, density=0.15, example=IDS, **GIVEN[method])
    train(model, study, 30)
    model.eval()
    small, proof = sparsernn.compact(model, example=IDS)
    other = torch.randint(0, 11, (5, 3), generator=torch.Generator().manual_seed(7))
    assert error(small(other), model(other)) <= 1e-9
    total = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert proof.weights_after <= 0.17 * total


@pytest.mark.parametrize("method", ["gradual", "hard"])
def test_a_run_killed_and_resumed_is_the_run_undisturbed(method, tmp_path, monkeypatch):
    given = {"task": "tiny-char", "method": method, "profile": "quick", "epochs": 6, "density": 0.3}
    whole = ensure(RunConfig(**given))
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "again"))
    lines = []

    def stop(line):
        lines.append(line)
        if line.startswith("epoch 3/6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(RunConfig(**given), stop)
    again = ensure(RunConfig(**given))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert whole.record["test"] == again.record["test"]
