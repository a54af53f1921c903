"""Optimisers and the schedules of their rates, beside the papers' numbers and loops written out."""

import json
from dataclasses import fields

import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sparsernn import tasks
from sparsernn.nets.masks import Masks
from sparsernn.sparsify.plan import USED_UNDER, Plan
from sparsernn.study.config import RunConfig
from sparsernn.study.evaluation import evaluate, predictor
from sparsernn.study.optimisers import OPTIMISERS, PATIENCE, SCHEDULES, Averages, share_of_rate
from sparsernn.study.runs import ensure, schedule
from sparsernn.study.training import Session


@pytest.fixture(autouse=True)
def tiny_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tiny.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(task="tiny-topic", method="dense", **more):
    return RunConfig(task=task, method=method, profile="quick", **more)


# ---- schedules


def by_epoch(plan, steps_per_epoch=7):
    """The share of the rate in every epoch, which is the same in all its steps."""
    shares = []
    for epoch in range(plan.epochs):
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        (share,) = {share_of_rate(plan, step, steps_per_epoch) for step in steps}
        shares.append(share)
    return shares


def test_a_rate_in_steps_is_zaremba_s():
    """1409.2329: full for 6 epochs, then divided by 1.2 after each (medium); 14 and 1.15 (large); 4 and 2 (small)."""
    medium = by_epoch(Plan(epochs=39, lr_schedule="step", lr_from=6, lr_factor=1.2))
    assert medium[:6] == [1.0] * 6 and medium[6:9] == pytest.approx([0.8333333333, 0.6944444444, 0.5787037037])
    assert medium[38] == pytest.approx(1.2**-33) and len(medium) == 39
    large = by_epoch(Plan(epochs=55, lr_schedule="step", lr_from=14, lr_factor=1.15))
    assert large[:14] == [1.0] * 14 and large[14] == pytest.approx(0.8695652174)
    assert large[54] == pytest.approx(0.0032463, rel=1e-4)  # 1.15 to the −41
    small = by_epoch(Plan(epochs=13, lr_schedule="step", lr_from=4, lr_factor=2.0))
    assert small == [1, 1, 1, 1, 0.5, 0.25, 0.125, 0.0625, 2**-5, 2**-6, 2**-7, 2**-8, 2**-9]


def test_a_rate_in_steps_of_many_epochs_is_that_of_iss():
    """1709.05027's code: 1.0 · 0.1 to the (epoch // 18), epochs counted from 0."""
    shares = by_epoch(Plan(epochs=55, lr_schedule="step", lr_from=18, lr_every=18, lr_factor=10.0))
    assert shares == pytest.approx([0.1 ** (epoch // 18) for epoch in range(55)], rel=1e-12)


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_a_cosine_is_torch_s(end):
    shares = by_epoch(Plan(epochs=100, lr_schedule="cosine", lr_end=end))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, annealing = [], torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=end)
    for _ in range(100):
        theirs.append(annealing.get_last_lr()[0])
        optimizer.step(), annealing.step()
    assert shares == pytest.approx(theirs, rel=1e-9)
    assert shares[50] == pytest.approx(end + (1 - end) / 2) and shares[99] > end


def test_what_follows_the_weights_rate_keeps_its_own_and_the_rest_stays():
    given = config(method="sparse-vd-wgn", optimiser="sgd", lr=4.0, lr_schedule="step", lr_factor=2.0)
    session = Session(given, tasks.load("tiny-topic", "quick"))
    session.optimizer.param_groups[1]["initial_lr"] = 0.5  # as a method may have given it
    session.set_rates(3 * session.steps_per_epoch)
    weights, means, log_sigma = session.optimizer.param_groups
    assert weights["lr"] == 4.0 / 8 and means["lr"] == 0.5 / 8
    assert log_sigma["lr"] == given.options.lr_log_sigma == 0.05 and "decays" not in log_sigma


# ---- what a plan refuses


def test_a_plan_s_choices_are_those_that_there_are():
    choices = {one.name: one.metadata["choices"] for one in fields(Plan)}
    assert choices["optimiser"] == tuple(OPTIMISERS) and choices["lr_schedule"] == tuple(SCHEDULES)
    for of, used in USED_UNDER.values():
        assert set(used) <= set(choices[of])


@pytest.mark.parametrize("given, said", [
    ({"momentum": 0.9}, "momentum is 0.9, which does nothing under optimiser 'adam', only under 'sgd'; leave it at 0.0"),
    ({"momentum": 0.9, "optimiser": "nt-asgd"}, "momentum is 0.9, which does nothing under optimiser 'nt-asgd'"),
    ({"lr_factor": 2.0}, "lr_factor is 2.0, which does nothing under lr_schedule 'linear', only under 'step'"),
    ({"lr_schedule": "cosine", "lr_end": 0.0, "lr_hold": 0.1}, "lr_hold is 0.1, which does nothing under .* 'cosine'"),
    ({"lr_schedule": "step", "lr_factor": 2.0, "lr_end": 0.1}, "lr_end .*'step', only under 'linear' or 'cosine'"),
    ({"lr_schedule": "cosine"}, "lr_end is 1, so the cosine would end where it begins"),
    ({"lr_schedule": "step"}, "lr_factor is 1, so the steps would change nothing"),
    ({"optimiser": "sdg"}, "unknown optimiser 'sdg'; did you mean 'sgd'"),
    ({"lr_schedule": "cosin"}, "unknown lr_schedule 'cosin'; did you mean 'cosine'"),
])  # fmt: skip
def test_what_would_do_nothing_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Plan(**given)


def test_a_record_says_the_optimiser():
    assert schedule(config()) == "adam 0.01 batch 32"
    assert schedule(config(method="sparse-vd-w")) == "adam 0.01/0.05 batch 32 kl 1-3"
    more = {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 1e-6, "lr_schedule": "cosine", "lr_end": 0.0}
    assert schedule(config("tiny-char", **more)) == "sgd 0.01 cosine momentum 0.9 weight decay 1e-06 batch 8x20"


# ---- loops written out


@pytest.fixture
def double():
    """Training in float64, so that two orders of the same sums end alike."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_hand(given, decay=0.0, momentum=0.0, averages=False):
    """A dense training written out → (validation after each epoch, the weights after the last, means begin after epoch)."""
    task, plan = tasks.load(given.task, "quick"), given.plan
    model = Session(given, task).model
    parameters = list(model.parameters())
    moves, checks, sums, begins = [torch.zeros_like(p) for p in parameters], [], None, None
    for epoch in range(plan.epochs):
        order, state = torch.Generator().manual_seed(given.seed * 1_000_003 + epoch), None
        for batch in task.batches("train", plan.batch_size, plan.steps or None, order):
            model.train()
            logits, state = model(*batch.inputs, lengths=batch.lengths, state=state if batch.carry else None)
            state = tuple(s.detach() for s in state)
            gradients = list(torch.autograd.grad(task.loss(logits, batch), parameters))
            norm = torch.stack([g.norm() for g in gradients]).norm()
            with torch.no_grad():
                for p, g, move in zip(parameters, gradients, moves, strict=True):
                    move.mul_(momentum).add_(g * (plan.clip / (norm + 1e-6)).clamp(max=1) + decay * p)
                    p.sub_(plan.lr * move)
                if sums is not None:
                    sums.append([p.clone() for p in parameters])
        now = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, *each in zip(parameters, *(sums or [now]), strict=True):
                p.copy_(torch.stack(each).mean(0))
            valid = evaluate(predictor(model, Masks.all_kept(model), {}), task, "valid", plan)
            means = [p.clone() for p in parameters]
            for p, value in zip(parameters, now, strict=True):
                p.copy_(value)
        if averages and begins is None and epoch > 5 and valid > min(checks[: epoch - 5]):
            sums, begins = [now], epoch + 1
        checks.append(valid)
    return checks, means, begins


def test_momentum_and_decay_are_as_written_out(double):
    given = config("tiny-char", optimiser="sgd", lr=0.5, momentum=0.9, weight_decay=1e-3, clip=0.25, epochs=3)
    checks, weights, _ = by_hand(given, decay=1e-3, momentum=0.9)
    run = ensure(given)
    assert run.metrics["valid"].tolist() == pytest.approx(checks, abs=1e-8)
    last = load_file(run.directory / "checkpoint.safetensors")
    for (name, _), value in zip(run.model.named_parameters(), weights, strict=True):
        torch.testing.assert_close(last["model." + name], value, atol=1e-8, rtol=0)


def test_decay_under_adam_is_the_gradient_of_half_the_square():
    session = Session(config(weight_decay=0.5), tasks.load("tiny-topic", "quick"))
    weight = session.model.head.weight
    before = weight.detach().clone()
    for parameter in session.parameters:
        parameter.grad = torch.zeros_like(parameter)
    session.optimizer.step()
    torch.testing.assert_close(weight.detach(), before - 1e-2 * before.sign())  # Adam's first step is the rate


AVERAGED = {"optimiser": "nt-asgd", "lr": 20.0, "epochs": 14}


def test_averages_begin_and_are_as_written_out(double):
    given = config("tiny-char", **AVERAGED)
    checks, means, begins = by_hand(given, averages=True)
    lines = []
    run = ensure(given, lines.append)
    (said,) = [number for number, line in enumerate(lines) if "weights are averaged" in line]
    assert lines[said - 1].startswith(f"epoch {begins}/14 ") and 6 < begins < 12
    assert run.metrics["valid"].tolist() == pytest.approx(checks, abs=1e-8)
    assert run.record["epoch_selected"] == 1 + min(range(14), key=checks.__getitem__) > begins
    assert run.record["valid"] == pytest.approx(min(checks), abs=1e-8)
    last = load_file(run.directory / "checkpoint.safetensors")
    for index, value in enumerate(means):
        torch.testing.assert_close(last[f"optimizer.{index}.average"], value, atol=1e-8, rtol=0)


def test_averages_wait_for_a_check_worse_than_all_but_the_last_five():
    def begins(checks, better="lower", patience=5):
        weight = torch.zeros(1, requires_grad=True)
        averages = Averages(torch.optim.SGD([weight], lr=1.0), patience, better)
        found = [number for number, check in enumerate(checks) if averages.told(check)]
        return found[0] if found else None

    assert begins([5, 4, 6, 6, 6, 6, 6]) == 6  # worse than 5: the best of all but the last five
    assert begins([5, 4, 6, 6, 6, 6]) is None and begins([5, 4, 4.9, 4.9, 4.9, 4.9, 4.9, 4.1]) == 7
    assert begins([5] * 20) is None and begins([9 - k for k in range(9)]) is None
    assert begins([0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4], "higher") == 6
    assert begins([5, 4, 6, 6, 6, 6, 6], patience=None) is None


def test_what_had_no_gradient_when_averages_begin_is_moved_once_it_has_one():
    """A method's own numbers beside SGD are Adam's, which takes any state that is there for its own."""
    weight, late = (torch.zeros(1, requires_grad=True) for _ in range(2))
    groups = [{"params": [weight], "lr": 1.0, "decays": True}, {"params": [late], "lr": 0.1}]
    averages = Averages(OPTIMISERS["nt-asgd"](groups, Plan(epochs=1, optimiser="nt-asgd")), 1, "lower")
    weight.grad = torch.ones(1)
    averages.optimizer.step()
    assert [averages.told(check) for check in (2, 1, 3)] == [False, False, True]
    late.grad = torch.ones(1)
    averages.optimizer.step(), averages.step()
    assert weight.item() == -2 and late.item() == pytest.approx(-0.1)
    with averages.in_place():
        assert weight.item() == -1.5 and late.item() == pytest.approx(
            -0.1
        )  # the means of −1 and −2; of what has moved once
    assert weight.item() == -2


# ---- stopped, and gone on with


def outcome(directory):
    record = json.loads((directory / "record.json").read_text())
    record.pop("train_seconds")
    metrics = pd.read_csv(directory / "metrics.csv").drop(columns="seconds")
    return (
        load_file(directory / "checkpoint.safetensors"),
        (directory / "model.safetensors").read_bytes(),
        record,
        metrics,
    )


SGD = {"optimiser": "sgd", "lr": 0.3, "momentum": 0.9, "weight_decay": 1e-5}
COSINE = {"lr_schedule": "cosine", "lr_end": 0.0}
SLEEPS = {"sleep_above": 0.5, "log_sigma_groups": 0.0, "kl_every": 3}


@pytest.mark.filterwarnings("ignore:.*would keep none of its neurons")
@pytest.mark.parametrize(
    "task, method, plan",
    [
        ("tiny-char", "dense", SGD | COSINE | {"epochs": 12}),
        ("tiny-topic", "sparse-vd-wgn", SGD | SLEEPS),
        ("tiny-char", "dense", AVERAGED),
        ("tiny-topic", "sparse-vd-wgn", {"optimiser": "nt-asgd", "lr": 3.0, "epochs": 14}),
        ("tiny-topic", "sparse-vd-wgn", {"optimiser": "nt-asgd", "lr": 3.0, "epochs": 14} | SLEEPS),
    ],
)
def test_a_run_stopped_after_any_epoch_goes_on_to_the_same_end(task, method, plan, tmp_path, monkeypatch):
    monkeypatch.setitem(PATIENCE, "nt-asgd", 1)  # so that the means begin for certain
    given = config(task, method, **plan)
    whole = outcome(ensure(given).directory)
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))
    for stop_after in (1, 5, 11):

        def stop(line, after=stop_after):
            if line.startswith(f"epoch {after}/"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ensure(given, stop)
    again = outcome(ensure(given).directory)
    kinds = {name.rpartition(".")[2] for name in whole[0] if name.startswith("optimizer.")}
    beside = {"step", "exp_avg", "exp_avg_sq"} if method != "dense" else set()
    assert kinds == ({"average"} if plan["optimiser"] == "nt-asgd" else {"momentum_buffer"}) | beside
    assert whole[0].keys() == again[0].keys()
    assert all(torch.equal(value, again[0][name]) for name, value in whole[0].items())
    assert whole[1] == again[1] and whole[2] == again[2]
    pd.testing.assert_frame_equal(whole[3], again[3], check_exact=True)


def test_what_is_pruned_during_training_keeps_its_momentum_beside_it():
    session = Session(config(method="sparse-vd-wgn", **SGD, **SLEEPS), tasks.load("tiny-topic", "quick"))
    for session.epoch in range(6):
        list(session.steps())
    theta = session.model.lstm.weight_ih_l0
    before = session.optimizer.state[theta]["momentum_buffer"].clone()
    with session.method.without_pruned(session.model, session.optimizer):
        inside = session.optimizer.state[theta]["momentum_buffer"]
        assert inside.shape == theta.shape and 0 < theta.numel() < before.numel()
        inside.add_(1)
    after = session.optimizer.state[theta]["momentum_buffer"]
    assert after.shape == before.shape and int((after != before).sum()) == inside.numel()


# ---- what a method learns at a rate of its own


def test_gates_under_sgd_move_as_far_as_adam_s_rate_says():
    """Zaremba's nets are trained with SGD at a rate of 35 under a clip of 0.14: gates at 0.002 would never close."""
    given = config("tiny-topic", "l0", **SGD, clip=0.01, l0_weight=1e4, lr_gates=0.02)
    session = Session(given, tasks.load("tiny-topic", "quick"))
    gates = [p for group in session.optimizer.param_groups if not group.get("decays") for p in group["params"]]
    weight = session.model.lstm.weight_hh_l0
    before, was = [p.detach().clone() for p in gates], weight.detach().clone()
    next(iter(session.steps()))
    assert all(
        torch.allclose(a - b.detach(), torch.full_like(a, 0.02), rtol=1e-3) for a, b in zip(before, gates, strict=True)
    )
    norm = torch.nn.utils.get_total_norm([p.grad for p in session.clipped if p.grad is not None])
    assert norm == pytest.approx(0.01, rel=1e-3) and any(p.grad.abs().max() > 1 for p in gates)
    assert float((weight.detach() - was).norm()) <= 0.3 * 0.0101


def test_sgd_beside_adam_is_each_of_them_alone():
    a, b = (torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))
    alone = [torch.nn.Parameter(p.detach().clone()) for p in (a, b)]
    plan = Plan(optimiser="sgd", momentum=0.9)
    groups = [
        {"params": [a], "lr": 0.1, "decays": True},
        {"params": [], "lr": 1.0, "decays": True},
        {"params": [b], "lr": 0.02},
    ]
    both = OPTIMISERS["sgd"](groups, plan)
    parts, saved = (torch.optim.SGD([alone[0]], lr=0.1, momentum=0.9), torch.optim.Adam([alone[1]], lr=0.02)), None
    for turn in range(6):
        if turn == 3:  # as after a checkpoint
            both = OPTIMISERS["sgd"]([{**group} for group in groups], plan)
            both.load_state_dict(saved)
        for optimizer, parameters in ((both, (a, b)), *zip(parts, ((alone[0],), (alone[1],)), strict=True)):
            optimizer.zero_grad()
            sum((p**2).sum() + p.sum() for p in parameters).backward()
            optimizer.step()
        saved = both.state_dict()
    for ours, theirs in zip((a, b), alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
