"""Loops over time replayed as one give what they give kernel by kernel: with a CUDA graph where there is a GPU, and everywhere
with a stand-in for it, which computes anew on the same buffers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from loops import ACTIVATIONS, WAYS, answers
from oracles import error, randn

from sparsernn.engines.precision import tf32
from sparsernn.nets import fused_steps, recurrence, replay
from sparsernn.nets.layers import LSTM
from sparsernn.nets.replay import AFTER, Graph, Replays

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


class OnTheSameBuffers(Graph):
    """What a graph is but for its speed: inputs are copied to where they were, outputs are overwritten by the next call."""

    def _capture(self, function, way):
        self.again, self.graph = lambda: function(way, *self.inputs), self
        self.outputs = self.again()

    def replay(self):
        for own, new in zip(self.outputs, self.again(), strict=True):
            if own is not None:
                own.copy_(new)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """A device, its loops replayed by an own `Replays`."""
    name = request.param
    monkeypatch.setattr(replay, "replayed", Replays(Graph if name == "cuda" else OnTheSameBuffers))
    monkeypatch.setattr(replay, "may", lambda tensor, may=replay.may: tensor.is_cpu or may(tensor))
    return name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("cell", "activation"), ACTIVATIONS)
def test_every_loop_replayed_is_the_loop(device, cell, activation, way):
    more = WAYS[way]
    torch.manual_seed(0)
    exact = cell(5, 6, 2, bidirectional=True, activation=activation).double()
    net = copy.deepcopy(exact).to(device)
    for seed in range(AFTER + 3):
        with torch.no_grad():  # as an optimiser does: the weights of a replay are those of its call
            for ours, theirs in zip(net.parameters(), exact.parameters(), strict=True):
                theirs.mul_(1.01)
                ours.copy_(theirs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay, "may", lambda tensor: False)
            expected = answers(exact, seed, **more)
        for found, right in zip(answers(net, seed, **more), expected, strict=True):  # float64: no fused steps
            assert error(found, right) < 1e-12
    kinds = 2 if "scaled" in more else 1  # of loops: one direction alone is scaled
    assert len(replay.replayed.graphs) == 2 * kinds  # forward and backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("cell", "activation"), ACTIVATIONS)
def test_fused_steps_on_a_gpu_in_float32_are_the_loop_in_float64(cell, activation, way):
    torch.manual_seed(0)
    exact = cell(5, 6, 2, bidirectional=True, activation=activation).double()
    net = copy.deepcopy(exact).float().cuda()
    for seed in range(AFTER + 2):
        for found, right in zip(answers(net, seed, **WAYS[way]), answers(exact, seed, **WAYS[way]), strict=True):
            assert error(found, right) < 1e-5 * max(1.0, float(right.abs().max()))
    assert recurrence._fused_steps(torch.device("cuda", torch.cuda.current_device())) is fused_steps


def test_where_tritons_kernels_do_not_run_it_is_said_and_torchs_take_their_place():
    recurrence._fused_steps.cache_clear()
    with pytest.warns(UserWarning, match="training on cpu runs step by step.*Triton's kernels do not run here"):
        assert recurrence._fused_steps(torch.device("cpu")) is None
    recurrence._fused_steps.cache_clear()


@pytest.mark.parametrize("given", [torch.ones(2, 1, 4, dtype=torch.float64), torch.ones(2, 1, 4)])
def test_steps_are_fused_on_a_gpu_in_float32_alone(given):
    assert recurrence.fused(given) is None


def test_two_calls_before_a_way_back_keep_their_own_numbers(device):
    net = LSTM(5, 6).double().to(device)
    for _ in range(AFTER):
        answers(net, 0)
    x, z = (randn(7, 3, 5, seed=s).to(device, torch.float64).requires_grad_() for s in (1, 2))
    first, second = net(x)[0], net(z)[0]
    kept = first.detach().clone()
    second.sum().backward()
    assert torch.equal(first, kept)
    first.sum().backward()
    assert error(x.grad, torch.autograd.grad(net(x)[0].sum(), x)[0]) < 1e-12


def test_evaluation_is_replayed_too_and_rounded_products_as_well(device):
    net = LSTM(5, 6).to(device)
    net.rounds_state = True
    x = randn(7, 3, 5).to(device, torch.float32)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        once = net(x)[0]
        again = [net(x)[0] for _ in range(AFTER)]
    assert len(replay.replayed.graphs) == 1
    assert all(torch.equal(once, y) for y in again)
    assert len({y.data_ptr() for y in again}) == AFTER  # nobody's answer is overwritten by the next


def test_what_was_captured_in_inference_mode_serves_training(device):
    net, x = LSTM(5, 6).to(device), randn(7, 3, 5).to(device, torch.float32)
    with torch.inference_mode():
        once = [net(x)[0] for _ in range(AFTER + 1)][-1]
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            y = net(x)[0]
            assert torch.equal(y, once)
    y.sum().backward()
    assert len(replay.replayed.graphs) == 1  # of what keeps nothing for a way back


def test_evaluation_keeps_nothing_for_a_way_back(monkeypatch):
    ways = []
    monkeypatch.setattr(
        recurrence, "whole_forward", lambda way, *t, go=recurrence.whole_forward: ways.append(way) or go(way, *t)
    )
    net, x = LSTM(5, 6), torch.ones(7, 3, 5)
    net(x)
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    assert [way.save for way in ways] == [True, False, False]


def test_a_way_back_within_autocast_rounds_nothing(device):
    net, x = LSTM(5, 6).to(device), randn(7, 3, 5).to(device, torch.float32)
    expected = torch.autograd.grad(net(x)[0].sum(), net.weight_hh_l0)[0]
    for _ in range(AFTER + 1):
        y = net(x)[0].sum()
        with torch.autocast(device, torch.bfloat16):
            found = torch.autograd.grad(y, net.weight_hh_l0)[0]
        assert error(found, expected) < 1e-6


def test_threads_do_not_take_each_others_numbers(device):
    net = LSTM(5, 6).to(device)
    inputs = [randn(7, 3, 5, seed=s).to(device, torch.float32) for s in range(4)]
    with torch.no_grad():
        expected = [net(x)[0] for x in inputs]

    def wrong(place):
        with torch.no_grad():
            return sum(error(net(inputs[place])[0], expected[place]) > 1e-6 for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wrong, range(4))) == [0, 0, 0, 0]


def double(way, x):
    return (x * way,)


def counted(monkeypatch, most=2):
    monkeypatch.setattr(replay, "MOST", most)
    return Replays(OnTheSameBuffers)


def test_a_shape_gets_its_graph_when_it_comes_again_and_what_is_idle_makes_room(monkeypatch):
    replayed = counted(monkeypatch)
    for _ in range(AFTER):
        for steps in (1, 2, 3):
            assert torch.equal(replayed(double, 2.0, torch.ones(steps))[0], torch.full((steps,), 2.0))
    assert len(replayed.graphs) == 2  # the third had no place: both others are in use
    for _ in range(replay.IDLE):
        replayed(double, 2.0, torch.ones(2))
    replayed(double, 2.0, torch.ones(3))
    assert [key[-1][0][0] for key in replayed.graphs] == [(2,), (3,)]


def test_what_decides_a_kernel_decides_its_graph(monkeypatch):
    replayed = counted(monkeypatch, 100)
    calls = [
        (2.0, torch.ones(3)),
        (3.0, torch.ones(3)),
        (2.0, torch.ones(3, dtype=torch.float64)),
        (2.0, torch.ones(4)),
    ]
    for _ in range(AFTER + 1):
        for way, x in calls:
            found = replayed(double, way, x)[0]
            assert torch.equal(found, x * way) and found.dtype == x.dtype
    assert len(replayed.graphs) == len(calls)


def test_graphs_hold_no_more_than_their_share(monkeypatch):
    replayed = counted(monkeypatch, 100)
    monkeypatch.setattr(replay, "room", lambda device: replay.TIMES * 4 * 25)  # bytes of 25 numbers
    for _ in range(AFTER):
        for steps in (10, 11, 12):
            replayed(double, 2.0, torch.ones(steps))
    assert [key[-1][0][0] for key in replayed.graphs] == [(10,), (11,)]
    replayed.clear()
    assert not replayed.graphs
    assert torch.equal(replayed(double, 2.0, torch.ones(12))[0], torch.full((12,), 2.0))


def test_how_libraries_may_round_decides_too(monkeypatch):
    replayed = counted(monkeypatch, 100)
    for allowed in (False, True):
        with tf32(allowed):
            for _ in range(AFTER):
                replayed(double, 2.0, torch.ones(3))
    assert len(replayed.graphs) == 2


def test_a_full_memory_is_given_back_and_the_call_goes_on(monkeypatch):
    full = []

    def capture(function, way, tensors):
        if full:
            raise torch.OutOfMemoryError("full")
        return OnTheSameBuffers(function, way, tensors)

    replayed = Replays(capture)
    for _ in range(AFTER):
        replayed(double, 2.0, torch.ones(3))
    assert len(replayed.graphs) == 1
    full.append(True)
    for _ in range(AFTER + 2):
        assert torch.equal(replayed(double, 2.0, torch.ones(4))[0], torch.full((4,), 2.0))
    assert not replayed.graphs and not replayed.refused


def test_a_graph_that_cannot_be_captured_is_said_once_and_everything_runs_without():
    def fails(function, way, tensors):
        raise RuntimeError("operation not permitted when stream is capturing")

    replayed = Replays(fails)
    with pytest.warns(UserWarning, match="no CUDA graph could be captured.*not permitted") as seen:
        for _ in range(AFTER + 5):
            assert torch.equal(replayed(double, 2.0, torch.ones(3))[0], torch.full((3,), 2.0))
    assert len(seen) == 1
