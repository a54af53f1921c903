"""Layers as Deep Speech 2 has them: clipped relu, directions that are summed and read one product, which is normalised."""

import copy

import pytest
import torch
from oracles import GRADIENTS, VALUES, error, gradients, randn, step_loop
from torch import nn

import sparsernn
from sparsernn.nets.layers import GRU, LSTM, RNN, plain
from sparsernn.nets.norms import without_norms

DOUBLE = VALUES[torch.float64]
AS_IN_DEEP_SPEECH = {"bidirectional": True, "summed": True, "shared_input": True, "norm": True}
CELLS = [(RNN, "clipped_relu"), (RNN, "tanh"), (GRU, "logistic"), (LSTM, "logistic")]


def drawn(layer, seed=0):
    """float64, with numbers of its own in every parameter and running mean; some preactivations beyond the ceiling."""
    layer = layer.double()
    with torch.no_grad():
        for i, (name, value) in enumerate(layer.state_dict().items()):
            if value.is_floating_point():
                value.copy_(0.6 * randn(*value.shape, seed=100 * seed + i))
                if "norm" in name and name.endswith(("weight", "running_var")):
                    value.abs_().add_(0.5)
    return layer


def by_hand(layer, p, x, lengths, training, scales=None):
    """A stack of summed directions that read one normalised product, from torch's batch norm on the real steps and the step
    loop of tests/oracles.py over what it says, one direction at a time."""
    scales, size = scales or {}, p["weight_hh_l0"].shape[1]
    live = torch.arange(len(x))[:, None] < (torch.full((x.shape[1],), len(x)) if lengths is None else lengths)
    for level in range(layer.num_layers):
        ends = ("", "_reverse") if layer.bidirectional else ("",)
        product = x @ p[f"weight_ih_l{level}"].T
        norm = nn.BatchNorm1d(product.shape[2]).double().train(training)
        own = {k: p[f"norm_l{level}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        normal = torch.zeros_like(product)
        own |= {k: own[k].clone() for k in ("running_mean", "running_var")}
        normal[live] = torch.func.functional_call(norm, own, product[live])
        total = 0
        for end in ends:
            suffix = f"_l{level}{end}"
            single = type(layer)(product.shape[2], size, activation=layer.activation)
            eye = torch.eye(product.shape[2], dtype=torch.float64)
            q = {"weight_ih_l0": eye} | {f"{k}_l0": p[k + suffix] for k in ("weight_hh", "bias_ih", "bias_hh")}
            mine = {f"{k}_l0": scales[k + suffix] for k in ("recurrent", "output", "gates") if k + suffix in scales}
            backwards = normal
            if end:  # each sequence from its own end
                backwards = torch.zeros_like(normal)
                for b, n in enumerate(live.sum(0).tolist()):
                    backwards[:n, b] = normal[:n, b].flip(0)
            y, _ = step_loop(single, q, backwards, None, mine, lengths)
            if end:
                turned = torch.zeros_like(y)
                for b, n in enumerate(live.sum(0).tolist()):
                    turned[:n, b] = y[:n, b].flip(0)
                y = turned
            total = total + y
        x = total
    return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("kind", "activation"), CELLS)
def test_it_computes_the_formulas_and_their_gradients(kind, activation, both, training):
    how = {"bidirectional": both, "summed": both, "shared_input": both, "norm": True}
    layer = drawn(kind(4, 3, 2, activation=activation, **how)).train(training)
    x, lengths = 30 * randn(5, 4, 4, seed=7), torch.tensor([5, 3, 4, 1])
    x.requires_grad_()
    scales = {f"{k}{s}": 1 + 0.3 * randn(4, n * 3, seed=i + 9) for s in layer.suffixes() for i, (k, n) in enumerate(
        {"recurrent": 1, "output": 1, "gates": len(layer.cell.gates)}.items())}  # fmt: skip
    leaves = [x, *layer.parameters()]
    p = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for given in (None, scales):
        expected = by_hand(layer, p, x, lengths, training, given)
        wanted = gradients([expected], leaves)
        y, _ = copy.deepcopy(layer)(x.detach(), scales=given, lengths=lengths)
        assert error(y, expected) <= DOUBLE
        y, _ = layer(x, scales=given, lengths=lengths)
        for ours, theirs in zip(gradients([y], leaves), wanted, strict=True):
            assert error(ours, theirs) <= 10 * GRADIENTS[torch.float64]
        if training:  # the statistics have moved on
            p = dict(layer.named_parameters()) | dict(layer.named_buffers())


def test_a_preactivation_is_clipped_at_twenty_and_learns_nothing_beyond():
    layer = RNN(1, 1, activation="clipped_relu").double()
    with torch.no_grad():
        for value, parameter in zip((1.0, 0.5, 0.0, 0.0), layer.parameters(), strict=True):
            parameter.fill_(value)
    x = torch.tensor([-3.0, 18.0, 12.0, 1.0]).double().view(4, 1, 1).requires_grad_()
    y, _ = layer(x)
    assert y.flatten().tolist() == [0.0, 18.0, 20.0, 11.0]
    (by_x,) = torch.autograd.grad(y[3].sum(), x)
    assert by_x.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]  # what came before went through a clipped step


def test_gradients_agree_with_finite_differences():
    layer = drawn(RNN(2, 3, activation="clipped_relu", **AS_IN_DEEP_SPEECH))
    names, values = zip(*layer.named_parameters(), strict=True)
    lengths = torch.tensor([4, 2])

    def run(x, *given):
        fresh = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        call = dict(zip(names, given, strict=True)) | fresh
        return torch.func.functional_call(layer, call, (x,), {"lengths": lengths})[0]

    x = randn(4, 2, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *(v.detach().clone().requires_grad_() for v in values)))


@pytest.mark.parametrize("training", [True, False])
def test_what_stands_in_padding_is_in_no_statistic_and_no_output(training):
    layer = drawn(RNN(4, 3, 2, activation="clipped_relu", **AS_IN_DEEP_SPEECH))
    lengths, x = torch.tensor([6, 2, 4]), randn(6, 3, 4)
    other = x.clone()
    other[torch.arange(6)[:, None] >= lengths] = 1e3
    twins = [copy.deepcopy(layer).train(training) for _ in range(2)]
    results = [twin(given, lengths=lengths)[0] for twin, given in zip(twins, (x, other), strict=True)]
    assert torch.equal(*results)
    assert all(torch.equal(a, b) for a, b in zip(*(twin.buffers() for twin in twins), strict=True))
    assert training != all(torch.equal(a, b) for a, b in zip(layer.buffers(), twins[0].buffers(), strict=True))


def test_summed_directions_are_torchs_two_added():
    torch.manual_seed(0)
    theirs = nn.GRU(4, 3, bidirectional=True).double()
    ours = GRU(4, 3, bidirectional=True, summed=True).double()
    ours.load_state_dict(theirs.state_dict())
    x, (y, state) = randn(5, 2, 4), theirs(randn(5, 2, 4))
    summed, same = ours(x)
    assert error(summed, y[..., :3] + y[..., 3:]) <= DOUBLE and error(same, state) <= DOUBLE


def test_the_norm_of_evaluation_is_in_the_weights():
    layer = drawn(GRU(4, 3, 2, bidirectional=True, summed=True, norm=True)).eval()
    bare = GRU(4, 3, 2, bidirectional=True, summed=True).double()
    bare.load_state_dict(without_norms(layer))
    assert error(bare(randn(5, 2, 4))[0], layer(randn(5, 2, 4))[0]) <= DOUBLE


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"summed": True}, "bidirectional=True"),
        ({"bidirectional": True, "shared_input": True}, "summed=True"),
        ({"norm": True, "bias": False}, "bias=True"),
        ({"activation": "cliped_relu"}, "tanh or relu or clipped_relu"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(how, words):
    with pytest.raises(ValueError, match=words):
        RNN(3, 2, **how)


def test_torchs_own_layer_is_refused_what_it_cannot_compute():
    layer = RNN(3, 2, activation="clipped_relu")
    with pytest.raises(ValueError, match="no clipped relu"):
        plain(layer)
    with pytest.raises(ValueError, match="no scale 'input_l0_reverse'"):
        RNN(3, 2, bidirectional=True, summed=True, shared_input=True)(
            randn(2, 1, 3).float(), scales={"input_l0_reverse": torch.ones(1, 3)}
        )


@pytest.mark.parametrize("assign", [False, True])
def test_copies_and_loaded_weights_compute_the_same(assign):
    layer = drawn(RNN(4, 3, 2, activation="clipped_relu", **AS_IN_DEEP_SPEECH)).eval()
    other = RNN(4, 3, 2, activation="clipped_relu", **AS_IN_DEEP_SPEECH).double().eval()
    other.load_state_dict(layer.state_dict(), assign=assign)  # assigned, the matrices are two, as torch's tied ones are
    x = randn(5, 2, 4)
    assert torch.equal(other(x)[0], layer(x)[0]) and torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])
    assert copy.deepcopy(layer).shared_input and other.shared_input != assign


class Net(nn.Module):
    """A stranger's model around one of these layers; it says nothing of who reads whom."""

    def __init__(self, kind, activation, hidden=6, layers=2):
        super().__init__()
        self.before = nn.Linear(4, 5)
        self.rnn = kind(5, hidden, layers, activation=activation, **AS_IN_DEEP_SPEECH)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x, lengths=None):
        return self.head(self.rnn(self.before(x).tanh(), lengths=lengths)[0])


@pytest.mark.parametrize(("kind", "activation"), CELLS)
def test_the_shared_matrix_is_drawn_once_a_step_and_a_neurons_variable_once_for_both_directions(kind, activation):
    torch.manual_seed(0)
    net = Net(kind, activation).double()
    study = sparsernn.attach(net, "sparse-vd-wgn", steps=3, n_examples=9, example=randn(5, 2, 4), log_sigma=-1.0)
    shared = [name for name in study.weights if "weight_ih" in name]
    assert shared == ["rnn.weight_ih_l0", "rnn.weight_ih_l1"]  # each is charged once
    assert [name for name in study.groups if "hidden" in name] == ["rnn.hidden_l0", "rnn.hidden_l1"]
    x, net = randn(5, 2, 4, seed=5), net.train()
    names = list(net.rnn._flat_weights_names)
    with torch.no_grad():
        used = {own: net.rnn.carried.weight(own) for own in names}
    assert all(torch.equal(used[f"weight_ih_l{n}"], used[f"weight_ih_l{n}_reverse"]) for n in (0, 1))
    assert not torch.equal(used["weight_ih_l0"], net.rnn.weight_ih_l0)
    seen = []

    def note(name, batch, words=None, real=net.rnn.carried.scale):
        seen.append((name, real(name, batch, words)))
        return seen[-1][1]

    net.rnn.carried.scale = note
    y = net(x)
    scales = {name: value.detach() for name, value in seen if value is not None}
    assert torch.equal(scales["output_l0"], scales["output_l0_reverse"]) and "input_l0_reverse" not in scales
    assert not torch.equal(scales["gates_l0"], scales["gates_l0_reverse"])
    drawn_now = {own: net.rnn.carried.weight(own).detach() for own in names}
    assert all(torch.equal(drawn_now[own], used[own]) for own in names)  # the same for all calls of a step
    p = drawn_now | {name: value for name, value in net.rnn.state_dict().items() if "norm" in name}
    weighed = (x @ net.before.carried.weight("weight").T + net.before.bias).tanh() * scales["input_l0"]
    top = by_hand(net.rnn, p, weighed, None, True, scales)
    assert error(y, top @ net.head.carried.weight("weight").T + net.head.bias) <= DOUBLE


def test_directions_side_by_side_that_a_stranger_ties_stay_as_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, bidirectional=True), nn.Linear(12, 2)
            self.lstm.weight_ih_l0_reverse = self.lstm.weight_ih_l0

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    torch.manual_seed(0)
    net = Tied().double()
    study = sparsernn.attach(net, "sparse-vd-w", steps=2, n_examples=9, example=randn(5, 2, 4))
    assert "lstm.weight_ih_l0_reverse" not in study.weights
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4)
        net.head.weight[:, :3] = 0  # nobody reads these neurons of the first direction; the second has their rows
    study.detach()
    small, proof = sparsernn.compact(net, randn(5, 2, 4))
    assert proof.error <= 1e-12 and error(small(randn(3, 2, 4)), net(randn(3, 2, 4))) <= 1e-12


@pytest.mark.parametrize(("kind", "activation"), [(RNN, "clipped_relu"), (GRU, "logistic")])
def test_who_reads_final_states_of_either_direction_keeps_the_neuron(kind, activation):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(4, 6, activation=activation, **AS_IN_DEEP_SPEECH), nn.Linear(12, 2)

        def forward(self, x):
            state = self.rnn(x)[1]
            return self.head(torch.cat([state[0], state[1]], 1))

    net = drawn(Last()).eval()
    with torch.no_grad():
        net.head.weight[:, [0, 1, 2, 6, 7]] = 0  # nobody reads 0 and 1; one direction's state of 2 is read
        for end in ("", "_reverse"):
            getattr(net.rnn, "weight_hh_l0" + end)[:, :3] = 0
    small, proof = sparsernn.compact(net, randn(5, 3, 4))
    assert small.rnn.weight_hh_l0.shape == (len(net.rnn.cell.gates) * 4, 4)
    assert proof.error <= 1e-12 and error(small(randn(7, 2, 4)), net(randn(7, 2, 4))) <= 1e-12
