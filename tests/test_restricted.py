"""Restricted RNNs (1908.07724): the pool by the paper's formulas, ties that hold, every number counted and stored once."""

import copy
import json

import pytest
import tiny
import torch
from oracles import error, randn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import sparsernn
from sparsernn import tasks
from sparsernn.engines.whole import by_engine
from sparsernn.nets.file import digest, size_floor
from sparsernn.nets.masks import close, closed_count, gate_states, paper_count
from sparsernn.sparsify.restricted import pool_size
from sparsernn.study.config import RunConfig
from sparsernn.study.presets import PRESETS
from sparsernn.study.runs import ensure

CELLS = {"RNN": (nn.RNN, 1), "GRU": (nn.GRU, 3), "LSTM": (nn.LSTM, 4)}
RATES = [0.0, 0.3, 0.5, 1.0]
every_cell = pytest.mark.parametrize("cell", CELLS)


@pytest.fixture(autouse=True)
def as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tables = [(table, dict(table)) for table in (tasks.TASKS, PRESETS)]
    tiny.register()
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


class Net(nn.Module):
    """A stack over numbers, and a head."""

    def __init__(self, cell, inputs=5, hidden=6, layers=1, bidirectional=False):
        super().__init__()
        torch.manual_seed(3)
        self.stack = CELLS[cell][0](inputs, hidden, layers, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), 3)
        self.double()

    def forward(self, x):
        return self.head(self.stack(x)[0])


def attach(model, **options):
    return sparsernn.attach(model, "restricted", **({"steps": 100, "n_examples": 10} | options))


# ---- the paper's formulas: a pool → matrices → a cell


class Pooled:
    """Section 3 of 1908.07724 for one layer and direction: a pool of s + m·n·q rows and as many biases, m = 2 inputs."""

    def __init__(self, n, d, widths, s, seed):
        self.n, self.d, self.s, self.q, self.widths = n, d, s, d - s, widths
        rows = s + 2 * n * self.q
        self.pool = randn(rows, max(widths), seed=seed).mul_(0.4).requires_grad_()
        self.bias = randn(rows, seed=seed + 1).mul_(0.4).requires_grad_()

    def matrix(self, i, j):
        """Of input i and gate j: the shared rows, then a block of its own; input-major, gate-minor."""
        block = self.s + (i * self.n + j) * self.q
        rows = [*range(self.s), *range(block, block + self.q)]
        return self.pool[rows, : self.widths[i]], self.bias[rows]

    def step(self, x, h, c):
        parts = [[w @ v + b for w, b in (self.matrix(i, j) for j in range(self.n))] for i, v in enumerate((x, h))]
        if self.n == 1:
            return torch.tanh(parts[0][0] + parts[1][0]), c
        if self.n == 3:  # torch's GRU: the reset gate multiplies W_hn h + b_hn
            r, z = (torch.sigmoid(parts[0][j] + parts[1][j]) for j in (0, 1))
            new = torch.tanh(parts[0][2] + r * parts[1][2])
            return (1 - z) * new + z * h, c
        i, f, g, o = (parts[0][j] + parts[1][j] for j in range(4))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def run(self, x, reverse=False):
        """x [T, B, k_x] → [T, B, d]."""
        answers = []
        for sequence in x.unbind(1):
            h, c, ys = x.new_zeros(self.d), x.new_zeros(self.d), []
            for step in sequence.flip(0) if reverse else sequence:
                h, c = self.step(step, h, c)
                ys.append(h)
            answers.append(torch.stack(ys[::-1] if reverse else ys))
        return torch.stack(answers, 1)

    def rows_of(self, i, j):
        """Where the private rows of input i and gate j stand in the pool."""
        block = self.s + (i * self.n + j) * self.q
        return slice(block, block + self.q)


def once(pool, x, h, c):
    """The same step with every shared row multiplied once: W_s (x + h) for all gates, W_s x and W_s h apart for a GRU's n."""
    s, n, (k, d) = pool.s, pool.n, pool.widths
    wide, shared = max(k, d), pool.pool[:s]
    x, h_in = F.pad(x, (0, wide - k)), F.pad(h, (0, wide - d))
    own = [
        [pool.pool[pool.rows_of(i, j)] @ v + pool.bias[pool.rows_of(i, j)] for j in range(n)]
        for i, v in ((0, x), (1, h_in))
    ]
    if n == 3:
        of_x, of_h = shared @ x + pool.bias[:s], shared @ h_in + pool.bias[:s]
        both = torch.sigmoid(of_x + of_h)
        r, z = (torch.cat([both, torch.sigmoid(own[0][j] + own[1][j])]) for j in (0, 1))
        new = torch.tanh(torch.cat([of_x, own[0][2]]) + r * torch.cat([of_h, own[1][2]]))
        return (1 - z) * new + z * h, c
    both = shared @ (x + h_in) + 2 * pool.bias[:s]
    gates = [torch.cat([both, a + b]) for a, b in zip(*own, strict=True)]
    if n == 1:
        return torch.tanh(gates[0]), c
    i, f, g, o = gates
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@every_cell
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("inputs", [4, 7])
def test_shared_rows_multiplied_once_are_the_same_step(cell, rate, inputs):
    d = 5
    pool = Pooled(CELLS[cell][1], d, (inputs, d), round(rate * d), seed=5)
    x, h, c = randn(inputs, seed=1), randn(d, seed=2), randn(d, seed=3)
    for given, expected in zip(once(pool, x, h, c), pool.step(x, h, c), strict=True):
        assert error(given, expected) <= 1e-12


@every_cell
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_the_numba_engine_multiplies_a_shared_row_once_and_says_the_same(cell, rate):
    model = Net(cell, inputs=7, hidden=10)
    if rate:
        attach(model, sharing=rate)
    n, x = CELLS[cell][1], randn(5, 6, 7)
    fast = by_engine(sparsernn.compact(model.eval(), x)[0] if rate else model, "numba", x)
    (engine,) = fast.stack.level.engines.values()
    shared = round(rate * 10)
    assert engine.weight.shape[1] == shared + n * (10 - shared) + (n == 3)  # zeros: what a GRU's n takes from x alone
    assert error(fast(x.float()).double(), model(x)) <= 1e-6


def pools(model, rate, cell):
    """Pools for every layer and direction of a stack, with numbers of their own: suffix → `Pooled`."""
    stack, found, n = model.stack, {}, CELLS[cell][1]
    for level in range(stack.num_layers):
        inputs = stack.input_size if level == 0 else stack.hidden_size * (1 + stack.bidirectional)
        for end in ("", "_reverse")[: 1 + stack.bidirectional]:
            d = stack.hidden_size
            found[f"_l{level}{end}"] = Pooled(n, d, (inputs, d), round(rate * d), seed=10 * len(found))
    return found


def answer(model, found, x):
    ends = ("", "_reverse")[: 1 + model.stack.bidirectional]
    for level in range(model.stack.num_layers):
        x = torch.cat([found[f"_l{level}{end}"].run(x, bool(end)) for end in ends], 2)
    return x @ model.head.weight.detach().T + model.head.bias.detach()


@torch.no_grad()
def put(model, found, copies=None):
    """The pools' numbers in the places where the model has them; copies: what stands in the place of each copy."""
    for suffix, pool in found.items():
        kinds = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")
        for names, numbers in zip(kinds, (pool.pool, pool.bias), strict=True):
            source = 1 if names[0].startswith("weight") and pool.widths[1] > pool.widths[0] else 0
            for i, name in enumerate(names):
                tensor = getattr(model.stack, name + suffix).data
                for j, gate in enumerate(tensor.chunk(pool.n)):
                    width = gate.shape[1:].numel()
                    mine = numbers[:, :width] if numbers.dim() == 2 else numbers
                    gate[pool.s :] = mine[pool.rows_of(i, j)]
                    gate[: pool.s] = mine[: pool.s] if copies is None or (i, j) == (source, 0) else copies


def gradient_of(model, pool, suffix):
    """The gradients that the model's tensors got, as those of the pool: shared rows where they live, private ones; 0 else."""
    matrices, biases = torch.zeros_like(pool.pool), torch.zeros_like(pool.bias)
    for kind, out in (("weight", matrices), ("bias", biases)):
        for i, side in enumerate(("ih", "hh")):
            gradient = getattr(model.stack, f"{kind}_{side}{suffix}").grad
            for j, gate in enumerate(gradient.chunk(pool.n)):
                place = (slice(None), slice(gate.shape[1])) if kind == "weight" else (slice(None),)
                out[: pool.s][place] += gate[: pool.s]
                out[pool.rows_of(i, j)][place] += gate[pool.s :]
    return matrices, biases


X = randn(5, 2, 5, seed=40)
STACKS = [(5, 6, 1, False), (5, 4, 1, False), (5, 5, 1, True), (5, 4, 2, True), (5, 6, 2, False)]


@every_cell
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("shape", STACKS)
def test_values_and_gradients_are_those_of_the_papers_pool(cell, rate, shape):
    model = Net(cell, *shape)
    attach(model, sharing=rate)
    found = pools(model, rate, cell)
    put(model, found, copies=7.0)  # what stands in the place of a copy is read by nobody
    expected = answer(model, found, X)
    assert error(model(X), expected) <= 1e-12 and error(model.eval()(X), expected) <= 1e-12
    model.train()
    expected.square().sum().backward()
    model(X).square().sum().backward()
    for suffix, pool in found.items():
        for given, wanted in zip(gradient_of(model, pool, suffix), (pool.pool.grad, pool.bias.grad), strict=True):
            assert wanted.any() and error(given, wanted) <= 1e-12


@every_cell
def test_without_sharing_it_is_the_ordinary_cell_to_the_bit(cell):
    model, plain = Net(cell, layers=2), Net(cell, layers=2)
    study = attach(model, sharing=0.0)
    own = sparsernn.attach(plain, "binary-dropout", 100, 10, dropout=0.0)  # nothing dropped: the same loop, not torch's
    for each, optimizer in ((model, sgd(study)), (plain, sgd(own))):
        train(each, sparsernn.Study.of(each), optimizer, 5)
    assert all(torch.equal(p, dict(plain.named_parameters())[name]) for name, p in model.named_parameters())
    assert torch.equal(model(X), plain(X)) and study.method.density() == 1


def test_a_wholly_shared_rnn_is_one_product_with_the_sum_of_input_and_state():
    model = Net("RNN", inputs=6)
    attach(model, sharing=1.0)
    w, b, h = model.stack.weight_ih_l0, model.stack.bias_ih_l0, torch.zeros(2, 6).double()
    x, ys = randn(4, 2, 6), []
    for step in x:
        h = torch.tanh((step + h) @ w.T + 2 * b)
        ys.append(h)
    assert error(model.stack(x)[0], torch.stack(ys)) <= 1e-12


def test_all_gates_of_a_wholly_shared_cell_have_one_preactivation():
    x = randn(4, 1, 6)
    model = Net("LSTM", inputs=6)
    attach(model, sharing=1.0)
    w, b = model.stack.weight_ih_l0[:6], model.stack.bias_ih_l0[:6]
    h = c = torch.zeros(1, 6).double()
    for step in x:
        a = (step + h) @ w.T + 2 * b
        c = torch.sigmoid(a) * (c + a.tanh())
        h = torch.sigmoid(a) * c.tanh()
    assert error(model.stack(x)[0][-1], h) <= 1e-12
    model = Net("GRU", inputs=6)
    attach(model, sharing=1.0)
    w, b, h = model.stack.weight_ih_l0[:6], model.stack.bias_ih_l0[:6], torch.zeros(1, 6).double()
    for step in x:
        of_x, of_h = step @ w.T + b, h @ w.T + b
        gate = torch.sigmoid(of_x + of_h)
        h = (1 - gate) * torch.tanh(of_x + gate * of_h) + gate * h
    assert error(model.stack(x)[0][-1], h) <= 1e-12


# ---- training


def train(model, study, optimizer, steps, clip=None):
    for step in range(steps):
        loss = (model(randn(4, 3, model.stack.input_size, seed=step)) - 1).square().mean()
        optimizer.zero_grad(), loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if study is not None:
            study.after_step()


def sgd(study):
    return torch.optim.SGD(study.parameter_groups(lr=0.1), momentum=0.9, weight_decay=1e-2)


def adam(study):
    return torch.optim.AdamW(study.parameter_groups(lr=1e-2), weight_decay=0.1)


OPTIMISERS = {
    "SGD": lambda of: torch.optim.SGD(of, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda of: torch.optim.Adam(of, lr=1e-2, weight_decay=1e-2),
    "AdamW": lambda of: torch.optim.AdamW(of, lr=1e-2, weight_decay=0.1),
}


@every_cell
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_hundred_steps_are_those_of_the_pool_itself(cell, optimiser):
    """The pool as the only parameters, trained alike: equal numbers mean that no copy moves, decays or counts in clipping."""
    model = Net(cell, inputs=5, hidden=6)
    study, found = attach(model, sharing=0.5), pools(model, 0.5, cell)
    put(model, found)
    model.head.requires_grad_(False)
    optimizer, (pool,) = OPTIMISERS[optimiser](model.stack.parameters()), found.values()
    reference = OPTIMISERS[optimiser]([pool.pool, pool.bias])
    for step in range(100):
        x = randn(3, 2, 5, seed=step)
        for output, parameters, by in (
            (model(x), model.stack.parameters(), optimizer),
            (answer(model, found, x), [pool.pool, pool.bias], reference),
        ):
            by.zero_grad()
            (output - 1).square().mean().backward()
            nn.utils.clip_grad_norm_(parameters, 0.25)
            by.step()
        study.after_step()
    for i, side in enumerate(("ih", "hh")):
        for j in range(pool.n):
            weight, bias = pool.matrix(i, j)
            for kind, expected in (("weight", weight), ("bias", bias)):
                assert error(getattr(model.stack, f"{kind}_{side}_l0").chunk(pool.n)[j], expected) <= 1e-9


def tied(stack, share):
    """Whether the first rows of all gates and of both matrices are the same numbers, as far as they go; so the biases."""
    for ih, hh, bih, bhh in zip(*(iter(stack.parameters()),) * 4, strict=True):
        n = len(hh) // hh.shape[1]
        s, k = round(share * hh.shape[1]), min(ih.shape[1], hh.shape[1])
        rows = [gate[:s, :k] for w in (ih, hh) for gate in w.chunk(n)]
        shared = [gate[:s] for b in (bih, bhh) for gate in b.chunk(n)]
        wide = [gate[:s] for gate in max((ih, hh), key=lambda w: w.shape[1]).chunk(n)]
        for some in (rows, shared, wide):
            if not all(torch.equal(some[0], one) for one in some):
                return False
    return True


@every_cell
@pytest.mark.parametrize("optimiser", [sgd, adam])
def test_ties_hold_for_a_hundred_steps_and_the_state_dict_is_the_network(cell, optimiser):
    model = Net(cell, layers=2, bidirectional=True)
    assert not tied(model.stack, 0.5)
    study = attach(model, sharing=0.5)
    start = copy.deepcopy(model.state_dict())
    train(model, study, optimiser(study), 100)
    assert tied(Net(cell, layers=2, bidirectional=True).stack, 0.0) and tied(model.stack, 0.5)
    assert error(model.stack.weight_hh_l1, start["stack.weight_hh_l1"]) > 1e-2
    plain = Net(cell, layers=2, bidirectional=True)
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".carried." not in n})
    assert error(plain(X), model.eval()(X)) <= 1e-12


def test_shared_rows_start_as_the_first_gates_of_the_wider_matrix_and_private_ones_as_the_models():
    for inputs, wide in ((5, "weight_hh_l0"), (9, "weight_ih_l0")):
        model, before = Net("LSTM", inputs), Net("LSTM", inputs).stack
        attach(model, sharing=0.5)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            now, own = getattr(model.stack, name), getattr(before, name)
            source = getattr(before, wide if name.startswith("weight") else "bias_ih_l0")
            for gate, old in zip(now.chunk(4), own.chunk(4), strict=True):
                assert torch.equal(gate[3:], old[3:])
                assert torch.equal(gate[:3], source[:3, : gate.shape[1]] if gate.dim() == 2 else source[:3])


def test_a_copy_an_average_and_a_saved_model_go_on_alone():
    model = Net("GRU")
    study = attach(model, sharing=0.5)
    mean, optimizer = AveragedModel(model), adam(study)
    for _ in range(3):
        train(model, study, optimizer, 2)
        mean.update_parameters(model)
    assert tied(mean.module.stack, 0.5)
    other, kept = copy.deepcopy(model), model(X)
    train(other, sparsernn.Study.of(other), adam(sparsernn.Study.of(other)), 3)
    assert tied(other.stack, 0.5) and torch.equal(model(X), kept) and error(other(X), kept) > 1e-3
    again = Net("GRU")
    attach(again, sharing=0.5)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(X), kept)
    study.detach()
    assert type(model.stack) is nn.GRU and error(model(X), kept) <= 1e-12


# ---- counts


PAPER = {  # papers' table: true parameters of the cells of 3 × 200, r = 1 … 0
    "RNN": [120_600, 126_630, 132_660, 156_780, 180_900, 205_020, 229_140, 241_200],
    "GRU": [120_600, 150_750, 180_900, 301_500, 422_100, 542_700, 663_300, 723_600],
    "LSTM": [120_600, 162_810, 205_020, 373_860, 542_700, 711_540, 880_380, 964_800],
}
REPORTED = {  # in millions, as the paper prints them
    "RNN": [0.130, 0.136, 0.142, 0.167, 0.191, 0.215, 0.239, 0.251],
    "GRU": [0.130, 0.161, 0.191, 0.311, 0.432, 0.553, 0.673, 0.733],
    "LSTM": [0.130, 0.173, 0.215, 0.384, 0.553, 0.721, 0.890, 0.975],
}


@every_cell
def test_counts_are_the_papers_at_all_eight_rates(cell):
    for rate, true, reported in zip((1, 0.95, 0.9, 0.7, 0.5, 0.3, 0.1, 0), PAPER[cell], REPORTED[cell], strict=True):
        model = Net(cell, 200, 200, 3)
        for parameter in model.parameters():  # in float64 no two are equal by chance
            nn.init.uniform_(parameter)
        study = attach(model, sharing=float(rate))
        biases = 3 * (200 + (2 * CELLS[cell][1] - 1) * (200 - round(rate * 200)))
        masks, head = study.masks(), 600
        assert len(torch.cat([p.flatten() for p in model.stack.parameters()]).unique()) == true  # numbers there are
        assert 3 * pool_size(CELLS[cell][1], 200, 200, rate) == true
        assert paper_count(masks).weights_kept == closed_count(close_read(masks)).weights_kept == true - biases + head
        dense = PAPER[cell][-1] - 3 * 2 * CELLS[cell][1] * 200
        assert study.method.density() == pytest.approx((true - biases) / dense, abs=1e-12)
        # The paper's column has the decoder's bias (10,000) in it, less 200, a layer's width: 9,800 too many.
        assert (true + 10_000 - 200) / 1e6 == pytest.approx(reported, abs=0.6e-3)
    assert paper_count(masks).weights_total == dense + head


def close_read(masks):
    return close(masks, {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in masks.axes})


def test_equal_gates_are_not_constant():
    study = attach(Net("LSTM"), sharing=1.0)
    closed = close_read(study.masks())
    assert {state for _, rows in gate_states(closed).values() for row in rows for state in row} == {"live"}


@every_cell
@pytest.mark.parametrize("shape", [(6, 6), (3, 6), (12, 6)])
def test_a_density_says_how_much_is_shared(cell, shape):
    least = attach(Net(cell, *shape), sharing=1.0).method.density()
    n, (k, d) = CELLS[cell][1], shape
    assert least == pytest.approx(max(k, d) / (n * (k + d)))
    for wanted in (least, 0.75, 0.9, 1.0):
        model = Net(cell, 2 * shape[0], 2 * shape[1])
        study = attach(model, steps=1, density=wanted)
        train(model, study, adam(study), 1)  # the last step refuses a density that was missed
        assert abs(study.method.density() / wanted - 1) <= 0.1
    before = Net(cell, *shape)
    model = copy.deepcopy(before)
    with pytest.raises(ValueError, match=f"density is 0.05; what this method can reach here is {least:.4g} to 1"):
        attach(model, density=0.05)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert type(model.stack) is CELLS[cell][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sharing": 0.3, "density": 0.5}, "sharing and density do not go together"),
        ({"sharing": 1.5}, "sharing is 1.5; it must be at least 0 and at most 1"),
        ({"threshold": 0.5}, "restricted has no threshold; its options: density, sharing"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(options, said):
    with pytest.raises(ValueError, match=said):
        attach(Net("LSTM"), **options)


@every_cell
@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_layer_with_something_frozen_is_left_as_it_is_by_name(cell, frozen):
    class Two(Net):
        def __init__(self):
            super().__init__(cell)
            self.upper = CELLS[cell][0](6, 6).double()

        def forward(self, x):
            return self.head(self.upper(self.stack(x)[0])[0])

    model, x = Two(), randn(4, 2, 5)
    getattr(model.stack, frozen).requires_grad = False
    before = {name: p.detach().clone() for name, p in model.stack.named_parameters()}
    study = attach(model, example=x)
    assert f"its {frozen} is frozen" in study.left["stack"]
    assert all(name.startswith("upper.") for name in study.weights) and len(study.weights) == 4
    assert all(torch.equal(p, before[name]) for name, p in model.stack.named_parameters())
    assert sparsernn.compact(model, x)[1].error <= 1e-12
    model = Net(cell)
    getattr(model.stack, frozen).requires_grad = False
    with pytest.raises(ValueError, match=f"no layer is left .*its {frozen} is frozen"):
        attach(model)


def test_layers_that_have_one_matrix_in_common_and_not_the_others_are_refused():
    class Two(nn.Module):
        def __init__(self, whole):
            super().__init__()
            self.one, self.other = nn.RNN(4, 4), nn.RNN(4, 4)
            for name in self.one._flat_weights_names if whole else ["weight_ih_l0"]:
                setattr(self.other, name, getattr(self.one, name))

        def forward(self, x):
            return self.other(self.one(x)[0])[0]

    with pytest.raises(ValueError, match="have one of their weights in common"):
        attach(Two(whole=False))
    study = attach(Two(whole=True), sharing=1.0)
    assert study.method.density() == 0.5


# ---- small models and their files


@every_cell
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_the_small_model_is_equal_and_its_file_holds_every_number_once(cell, rate, tmp_path):
    model = Net(cell, 40, 32, 2, bidirectional=True)
    study = attach(model, sharing=rate)
    train(model, study, adam(study), 3)
    x = randn(4, 5, 40)
    small, proof = sparsernn.compact(model.eval(), x)
    assert proof.error <= 1e-9 and error(small(x), model(x)) <= 1e-9
    size = sparsernn.save(small.float(), tmp_path / "file")
    numbers = len(torch.cat([p.flatten() for p in small.stack.parameters()]).unique()) + 3 * 65
    assert size <= 1.3 * 4 * numbers + 2500  # names and the JSON of a safetensors file do not shrink with the model
    assert 4 * numbers <= size
    loaded = sparsernn.load(tmp_path / "file", Net(cell, 40, 32, 2, bidirectional=True))
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in small.named_parameters())
    for engine in ("compact-torch", "compact-loop", "numba", "csr-torch"):
        assert error(by_engine(loaded, engine, x)(x.float()).double(), model(x)) <= 1e-5


@every_cell
def test_the_proof_of_a_small_model_counts_rows_that_are_shared_once(cell):
    model = Net(cell, 6, 8, bidirectional=True)
    gates = CELLS[cell][1]
    attach(model, sharing=0.5)
    small, proof = sparsernn.compact(model.eval(), randn(4, 3, 6))
    head, pool = model.head.weight.numel(), 2 * (pool_size(gates, 8, 8, 0.5) - (4 + 2 * gates * 4))
    narrower = 2 * gates * 4 * 2  # rows of their own of W_ih have 6 columns, not 8
    assert proof.weights_before == 2 * gates * 8 * (6 + 8) + head and proof.weights_after == pool - narrower + head


@every_cell
def test_a_large_file_is_within_three_tenths_of_its_floor(cell, tmp_path):
    model = Net(cell, 100, 128)
    attach(model, sharing=0.9)
    small = sparsernn.compact(model.eval(), randn(2, 2, 100))[0].float()
    numbers = len(torch.cat([p.flatten() for p in small.stack.parameters()]).unique()) + 3 * 129
    assert sparsernn.save(small, tmp_path / "file") <= 1.3 * 4 * numbers
    assert 4 * numbers < size_floor(small) <= 6 * numbers


def test_a_small_model_that_is_trained_on_without_ties_is_saved_as_it_is(tmp_path):
    model = Net("LSTM", 40, 32)
    attach(model, sharing=0.5)
    small = sparsernn.compact(model.eval(), randn(4, 3, 40))[0]
    before = sparsernn.save(small, tmp_path / "file")
    train(small.train(), None, torch.optim.Adam(small.parameters(), lr=1e-2), 3)
    assert sparsernn.save(small, tmp_path / "file") > 1.5 * before
    loaded = sparsernn.load(tmp_path / "file", Net("LSTM", 40, 32))
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in small.named_parameters())


RUNS = {
    "no object": lambda rows, a, b: [],
    "no such tensor": lambda rows, a, b: rows | {"stack.weight_xx": rows[a]},
    "another key": lambda rows, a, b: rows | {a: rows[a] | {"more": 1}},
    "of nothing": lambda rows, a, b: rows | {b: rows[b] | {"of": "stack.weight_xx"}},
    "of a bias": lambda rows, a, b: rows | {b: rows[b] | {"of": "stack.bias_ih_l0"}},
    "of the narrower": lambda rows, a, b: rows | {a: rows[a] | {"of": b}},
    "of each other": lambda rows, a, b: rows | {a: rows[a] | {"of": b}, b: rows[b] | {"of": a}},
    "no runs": lambda rows, a, b: rows | {b: rows[b] | {"runs": []}},
    "runs of two": lambda rows, a, b: rows | {b: rows[b] | {"runs": [[0, 0]]}},
    "runs of text": lambda rows, a, b: rows | {b: rows[b] | {"runs": [["0", 0, 4]]}},
    "below zero": lambda rows, a, b: rows | {b: rows[b] | {"runs": [[0, -1, 4]]}},
    "too many": lambda rows, a, b: rows | {b: rows[b] | {"runs": [[0, 0, 10**9]]}},
    "far too many": lambda rows, a, b: rows | {b: rows[b] | {"runs": [[0, 0, 10**15]]}},
    "rows that are not there": lambda rows, a, b: rows | {b: rows[b] | {"runs": [[0, 127, 16]]}},
    "twice": lambda rows, a, b: rows | {b: rows[b] | {"runs": [*rows[b]["runs"], rows[b]["runs"][-1]]}},
    "of itself": lambda rows, a, b: rows | {a: rows[a] | {"runs": [[0, 0, 48]]}},
    "fewer": lambda rows, a, b: rows | {b: rows[b] | {"runs": rows[b]["runs"][1:]}},
    "none": lambda rows, a, b: {},
}


@pytest.mark.parametrize("how", RUNS)
def test_a_file_that_says_nonsense_of_its_rows_is_refused_in_words(how, tmp_path):
    model = Net("LSTM", 40, 32)
    attach(model, sharing=0.5)
    sparsernn.save(sparsernn.compact(model.eval(), randn(4, 3, 40))[0], path := tmp_path / "file")
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["sparsernn"])
    tensors = load_file(path)
    meta["rows"] = RUNS[how](meta["rows"], "stack.weight_ih_l0", "stack.weight_hh_l0")
    save_file(tensors, path, {"sparsernn": json.dumps(meta | {"digest": digest(meta, tensors)})})
    with pytest.raises(ValueError, match=str(path)) as refused:
        sparsernn.load(path, Net("LSTM", 40, 32))
    assert len(str(refused.value)) < 500 and any(word in str(refused.value) for word in ("row", "expected"))


# ---- the study


@pytest.mark.parametrize(("task", "more"), [("tiny-topic", {"sharing": 0.5}), ("tiny-char", {"density": 0.4})])
def test_a_run_of_the_study_learns_and_one_that_is_stopped_ends_the_same(task, more, tmp_path, monkeypatch):
    config = RunConfig(task, method="restricted", profile="quick", epochs=6, **more)
    run = ensure(config)
    assert run.record["compact_error"] <= 1e-9 and run.record["metric_difference"] == 0
    lstm = run.compact.lstm
    assert run.record["weights_kept"] == run.record["weights_stored"] < run.record["weights_total"]
    numbers = len(torch.cat([p.flatten() for n, p in lstm.named_parameters() if n.startswith("weight")]).unique())
    others = sum(p.numel() for n, p in run.compact.named_parameters() if p.dim() == 2 and not n.startswith("lstm"))
    assert run.record["weights_kept"] == numbers + others
    assert run.record["gates_constant"] == "i0.f0.g0.o0"
    if density := more.get("density"):
        assert abs(numbers / sum(p.numel() for p in lstm.parameters() if p.dim() == 2) / density - 1) <= 0.1
    first, last = run.metrics["train_loss"].iloc[[0, -1]]
    assert last < first - 0.1
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config, stop)
    again = ensure(config)
    for name in ("checkpoint.safetensors", "model.safetensors"):
        one, other = (load_file(each.directory / name) for each in (run, again))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_words_are_no_part_of_it():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(9, 5, sparse=True), nn.LSTM(5, 6), nn.Linear(6, 5)
            self.out = nn.Linear(5, 9)

        def forward(self, ids):
            return F.linear(self.head(self.stack(self.words(ids))[0]), self.words.weight.detach())

    model = Words()
    study = attach(model, skip=[model.out])
    assert set(study.weights) == {f"stack.{name}" for name in model.stack._flat_weights_names}
    assert type(model.words) is nn.Embedding
