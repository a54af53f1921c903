"""Heads: W_hh in blocks on the diagonal of every gate from the first step on, and everything else dense."""

import pytest
import torch
from oracles import error
from torch import nn
from torch.nn import functional as F

import sparsernn
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

CELLS = [nn.LSTM, nn.GRU, nn.RNN]


pytestmark = pytest.mark.usefixtures("as_it_was")


class Net(nn.Module):
    def __init__(self, cell=nn.LSTM, hidden=12, layers=2, bidirectional=False):
        super().__init__()
        torch.manual_seed(0)
        self.stack = cell(5, hidden, layers, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (2 if bidirectional else 1), 3)
        self.double()

    def forward(self, x):
        return self.head(self.stack(x)[0])


X = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1)).double()


def train(model, study, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X).flatten(0, 1), torch.arange(24) % 3).backward()
        optimizer.step(), study.after_step()


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("cell", CELLS)
def test_a_neuron_remembers_the_neurons_of_its_head_alone_in_every_gate(cell, heads):
    model = Net(cell, bidirectional=True)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    study = sparsernn.attach(model, "heads", 50, 24, heads=heads)
    for name, value in dense.items():
        if "weight_hh" not in name:
            assert torch.equal(model.get_parameter(name), value)
            assert "weight" not in name or study.masks().weights[name].all()
            continue
        for row in range(len(value)):
            for column in range(12):
                same = row % 12 // (12 // heads) == column // (12 // heads)
                assert model.get_parameter(name)[row, column] == (value[row, column] if same else 0)
    assert study.method.density() == pytest.approx(1 / heads)
    assert set(study.method.prunable()) == {name for name in dense if "weight_hh" in name}


@pytest.mark.parametrize("cell", CELLS)
def test_what_happened_to_one_head_is_no_concern_of_the_others(cell):
    """The state that a head is given reaches its own neurons and no others, however many steps later."""
    model = Net(cell, layers=1)
    sparsernn.attach(model, "heads", 50, 24, heads=4)
    state = torch.zeros(1, 4, 12, dtype=torch.float64, requires_grad=True)
    given = (state, torch.zeros_like(state)) if cell is nn.LSTM else state
    y = model.stack(X, given)[0]
    for neuron in range(12):
        (reached,) = torch.autograd.grad(y[-1, :, neuron].sum(), state, retain_graph=True)
        heads = reached.abs().amax((0, 1)).view(4, 3).amax(1).nonzero().flatten().tolist()
        assert heads == [neuron // 3]


@pytest.mark.parametrize("cell", CELLS)
def test_heads_stay_apart_under_momentum_and_the_small_model_is_the_masked_one(cell):
    model = Net(cell)
    study = sparsernn.attach(model, "heads", 120, 24, heads=4)
    before = {name: mask.clone() for name, mask in study.masks().weights.items()}
    train(model, study, torch.optim.SGD(study.parameter_groups(lr=0.1), momentum=0.9), 100)
    for name, weight in study.weights.items():
        assert torch.equal(study.masks().weights[name], before[name]) and not weight.theta[~weight.mask].any()
    small, proof = sparsernn.compact(model.eval(), example=X)
    assert error(small(X), model(X)) <= 1e-9 and proof.error <= 1e-9


def test_a_density_asks_for_as_many_heads_and_is_met_or_refused_with_those_there_are():
    for density, heads in ((0.25, 4), (0.26, 4), (0.17, 6), (1.0, 1), (1 / 12, 12)):
        assert sparsernn.attach(Net(), "heads", 9, 9, density=density).method.heads == heads
    for given, said in (
        ({"density": 0.2}, r"density is 0.2; heads give 1, 0.5, 0.3333, 0.25, 0.1667, 0.08333 \(1 ÷ a divisor"),
        ({"density": 0.01}, "density is 0.01; heads give"),
        ({"heads": 5}, "heads is 5; it must divide the 12 neurons of a layer: 1, 2, 3, 4, 6, 12"),
        ({"heads": 24}, "heads is 24; it must divide"),
        ({"heads": 2, "density": 0.5}, "heads and density do not go together"),
    ):
        model = Net()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=said):
            sparsernn.attach(model, "heads", 9, 9, **given)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = nn.GRU(5, 12), nn.LSTM(12, 8)

    with pytest.raises(ValueError, match="heads is 3; it must divide the 8, 12 neurons of a layer: 1, 2, 4"):
        sparsernn.attach(Two(), "heads", 9, 9, heads=3)
    with pytest.raises(ValueError, match="no recurrent matrix is left"):
        sparsernn.attach(Net(), "heads", 9, 9, only="head")


def test_a_study_trains_heads_to_a_small_file_and_resumes_where_it_was_stopped(tmp_path, monkeypatch):
    config = RunConfig("tiny-char", method="heads", profile="quick", heads=2)
    run = ensure(config)
    assert run.record["weights_total"] - run.record["weights_kept"] == 4 * 8 * 8 // 2
    assert run.record["compact_error"] <= 1e-9 and run.record["test"] < 3.0  # 12 symbols: log2 12 is 3.6
    floor = 4 * run.record["weights_stored"] + 2 * 4 * 8 * 8 // 2 + 4 * (2 * 32 + 12)  # an index a weight of W_hh
    assert run.record["size_bytes"] <= 1.3 * floor + 4000
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config, stop)
    again = ensure(config)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in run.model.state_dict().items())
    assert again.record | {"train_seconds": 0} == run.record | {"train_seconds": 0}
