"""Products by oneDNN, and tanh: what torch computes, and torch's own operation wherever somebody asks for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparsernn.nets import cells, layers, multiply, recurrence

CELLS = {nn.LSTM: layers.LSTM, nn.GRU: layers.GRU, nn.RNN: layers.RNN}


@pytest.fixture
def asked(monkeypatch):
    """As on a processor where oneDNN is the faster one, from small products on; → the shapes it was asked for. Where torch was
    built without it, torch's own product stands in for it: who asks for what, and the gradients, are tested all the same."""
    shapes, answered = [], multiply.times if torch.backends.mkldnn.is_available() else F.linear

    def watched(x, weight, bias=None):
        shapes.append((*x.shape, len(weight)))
        return answered(x, weight, bias)

    monkeypatch.setattr(multiply, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(multiply, "LEAST", 16**3)
    for module in (multiply, recurrence):
        monkeypatch.setattr(module, "times", watched)
    return shapes


def slopes(y, of):
    """Gradients of a sum in which every number of y counts otherwise."""
    weighed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weighed).sum(), of)


@pytest.mark.parametrize("shape", [(40, 24), (5, 8, 24), (24, 40), (3, 5, 4, 24)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_and_its_gradients_are_those_of_float64(asked, shape, biased):
    torch.manual_seed(0)
    x = torch.randn(shape)
    x = x.t() if shape == (24, 40) else x  # laid out column by column
    weight, bias = torch.randn(32, 24), torch.randn(32) if biased else None
    given = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
    double = [t.detach().double().requires_grad_() for t in given]
    y, exact = multiply.linear(*given), F.linear(*double)
    assert len(asked) == 1 and y.shape == exact.shape and (y - exact).abs().max() < 1e-5
    for ours, theirs in zip(slopes(y, given), slopes(exact, double), strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4
    assert len(asked) == 3, "a product for each of two gradients"


def test_a_gradient_has_a_gradient(asked):
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=True) for shape in ((40, 24), (32, 24), (32,))]
    double = [t.detach().double().requires_grad_() for t in given]
    found = []
    for linear, (x, weight, bias) in ((multiply.linear, given), (F.linear, double)):
        (slope,) = torch.autograd.grad(linear(x, weight, bias).tanh().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, weight, bias]))
    assert asked and all((a - b).abs().max() < 1e-4 * (1 + b.abs().max()) for a, b in zip(*found, strict=True))


def test_only_the_gradients_that_are_wanted_are_computed(asked):
    x, weight = torch.randn(40, 24), torch.randn(32, 24, requires_grad=True)
    multiply.linear(x, weight).sum().backward()
    assert len(asked) == 2 and x.grad is None and weight.grad.shape == weight.shape


@pytest.mark.parametrize("theirs", CELLS)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_layer_answers_and_learns_as_in_float64(asked, theirs, scaled):
    torch.manual_seed(0)
    batch, read, hidden = 32, 24, 40
    layer = CELLS[theirs](read, hidden)
    double = CELLS[theirs](read, hidden).double()
    double.load_state_dict(layer.state_dict())
    rows = len(layer.weight_hh_l0)
    scales = {"recurrent_l0": (batch, hidden), "gates_l0": (1, rows), "input_l0": (batch, read)} if scaled else {}
    scales = {name: (1 + 0.2 * torch.randn(shape)).requires_grad_() for name, shape in scales.items()}
    twice = {name: scale.detach().double().requires_grad_() for name, scale in scales.items()}
    x, lengths = torch.randn(7, batch, read, requires_grad=True), torch.randint(0, 8, (batch,))
    x64 = x.detach().double().requires_grad_()
    y, _ = layer(x, scales=scales or None, lengths=lengths)
    exact, _ = double(x64, scales=twice or None, lengths=lengths)
    assert len(asked) == 8, "the input's product and one a step"
    assert (y - exact).abs().max() < 1e-5
    ours = slopes(y, [x, *layer.parameters(), *scales.values()])
    both = zip(ours, slopes(exact, [x64, *double.parameters(), *twice.values()]), strict=True)
    assert all((one - other).abs().max() < 1e-4 * (1 + other.abs().max()) for one, other in both)
    assert len(asked) == 8 + 7 + 3, "one a step back, and those of both matrices and the input"


def test_a_layer_without_it_computes_the_same_to_rounding(asked, monkeypatch):
    layer, x = layers.LSTM(24, 40), torch.randn(7, 32, 24)
    fast = layer(x)[0]
    assert asked
    monkeypatch.setattr(multiply, "onednn_is_faster", lambda: False)
    asked.clear()
    slow = layer(x)[0]
    assert not asked and (fast - slow).abs().max() < 1e-6


def test_torch_answers_itself_where_somebody_watches_or_the_product_is_none_for_onednn(asked, monkeypatch):
    layer, x = layers.Linear(24, 32), torch.randn(40, 24)
    layer(x)
    assert len(asked) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    asked.clear()
    taken = torch.func.grad(lambda w: torch.func.functional_call(layer, {"weight": w}, x).square().sum())(layer.weight)
    assert taken.shape == layer.weight.shape
    layer(x[:3]), layer(x[0]), layer.double()(x.double())
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    layer.float()(x)
    assert not asked, "few rows, one row, float64, oneDNN switched off"


def test_no_other_processor_is_asked(monkeypatch):
    known = {"AMD EPYC 9B45": True, "Intel(R) Xeon(R) Processor": False}
    for name, faster in known.items():
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda name=name: {"cpu_name": name, "avx512_f": True}, raising=False
        )
        assert multiply.onednn_is_faster.__wrapped__() == faster
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD EPYC 7B13", "avx512_f": False})
    assert not multiply.onednn_is_faster.__wrapped__()


@pytest.mark.parametrize("theirs", CELLS)
def test_tanh_of_many_numbers_is_within_a_rounding_of_one(theirs, monkeypatch):
    a = torch.linspace(-30, 30, cells.MANY)
    a[:3] = torch.tensor([float("inf"), float("-inf"), 0.0])
    exact, given = a.double().tanh(), a.clone()
    assert cells.tanh_of_many(a, torch.empty_like(a)).sub(exact).abs().max() <= 2e-7
    assert torch.equal(a, given) and cells.tanh_of_many(a, a) is a and a.sub(exact).abs().max() <= 2e-7, "in place too"
    assert cells.tanh_of_many(torch.full((9,), float("nan")), torch.empty(9)).isnan().all()
    asked, answer = [], cells.tanh_of_many

    def watched(a, out):
        asked.append(a.numel())
        return answer(a, out)

    monkeypatch.setattr(cells, "tanh_of_many", watched)
    layer, x = CELLS[theirs](8, 64), torch.randn(2, 64, 8)
    layer(x)[0].sum().backward()
    assert asked and min(asked) >= 64 * 64
    asked.clear()
    layer(x[:, :63]), layer.double()(x.double())
    assert not asked, "few numbers, other types"


def test_a_linear_layer_s_answer_may_be_changed_in_place(asked):
    layer, x = layers.Linear(24, 32), torch.randn(5, 40, 24)
    for given in (x, x[0]):
        y = layer(given)
        y += 1
        y.relu_().sum().backward()
    assert len(asked) == 4


def test_only_what_a_gradient_needs_has_to_stay_as_it_was(asked):
    x, weight = torch.randn(40, 24, requires_grad=True), torch.randn(32, 24)
    y = multiply.linear(x, weight)
    with torch.no_grad():
        x.add_(1)
    y.sum().backward()
    x, weight = torch.randn(40, 24), torch.randn(32, 24, requires_grad=True)
    y = multiply.linear(x, weight)
    with torch.no_grad():
        weight.mul_(2)
    y.sum().backward()
    assert len(asked) == 4


@pytest.mark.parametrize("bias", [torch.arange(64.0)[::2], torch.ones(1).expand(32), torch.ones(1)])
def test_a_bias_laid_out_otherwise_counts_as_it_is(asked, bias):
    x, weight = torch.randn(40, 24), torch.randn(32, 24)
    assert (multiply.linear(x, weight, bias) - (x @ weight.t() + bias)).abs().max() < 1e-5


def test_weights_that_are_sparse_go_to_torch(asked):
    x, weight = torch.randn(40, 24), torch.randn(32, 24)
    assert torch.allclose(multiply.linear(x.to_sparse(), weight), x @ weight.t(), atol=1e-5)
    assert not asked


def test_gradients_may_be_taken_in_batches(asked):
    layer, x = layers.Linear(24, 32), torch.randn(40, 24, requires_grad=True)
    y, many = layer(x), torch.randn(3, 40, 32)
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True)
    assert torch.allclose(found, many @ layer.weight, atol=1e-5)


def test_whoever_counts_flops_or_writes_down_the_graph_sees_torch_s_own_product(asked):
    layer, x = layers.Linear(24, 32), torch.randn(40, 24)
    with FlopCounterMode(display=False) as counted:
        layer(x)
    assert counted.get_total_flops() == 2 * 40 * 24 * 32 and not asked
    assert torch.allclose(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("ids", [False, True])
def test_a_layer_is_exported_for_any_number_of_sequences(asked, ids):
    layer = layers.LSTM(24, 40).requires_grad_(False)
    x = torch.randint(24, (7, 32)) if ids else torch.randn(7, 32, 24)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {1: batch}}, strict=False).module()
    wider = torch.cat([x] * 20, 1)
    assert (program(wider)[0] - layer(wider)[0]).abs().max() < 1e-5
