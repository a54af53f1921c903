"""Methods that remove whole neurons: gates with an expected L0 norm, and a group lasso; what they charge, draw and leave."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from oracles import error, logits_by_hand, randomise
from safetensors import safe_open
from torch import nn

from sparsernn import attach, compact, sparsify
from sparsernn.nets.axes import Axis, Member, each, recurrent_axes
from sparsernn.nets.layers import GRU, LSTM, RNN, Embedding, Linear
from sparsernn.nets.masks import close
from sparsernn.nets.models import Classifier, LanguageModel, Model
from sparsernn.sparsify.attach import put_on
from sparsernn.sparsify.iss import ISSOptions
from sparsernn.sparsify.l0 import expected_gate, hard_concrete
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

V, C = 9, 3
TOKENS = torch.randint(V, (7, 5), generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("method", ["l0", "iss"])


@pytest.fixture(autouse=True)
def tiny_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "runs"))
    tiny.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Words(Model):
    """An embedding, a stack of any cell, its last output, a linear layer."""

    def __init__(self, cell, layers=2, embedding=4, hidden=5):
        super().__init__()
        self.embedding, self.lstm = Embedding(V, embedding), cell(embedding, hidden, layers)
        self.head = Linear(hidden, C)

    def axes(self):
        size = self.embedding.embedding_dim
        inputs = Member("embedding.weight", 1, each(size), "out"), Member("lstm.weight_ih_l0", 1, each(size), "in")
        scale = Member("lstm.input_l0", 1, each(size), "scale")
        stack = recurrent_axes("lstm", self.lstm, ["head.weight"])
        return [Axis("input", "input", size, (*inputs, scale), ("out", "in")), *stack]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.lstm(self.embedding(tokens), state)
        return self.head(y[-1]), state


def prepared(method, cell=LSTM, layers=2, steps=40, **options):
    model = randomise(Words(cell, layers), 0).requires_grad_(True)
    made = sparsify.make(method, sparsify.options_of(method, options))
    return model, put_on(model, made, steps=steps, steps_per_epoch=10, n_examples=100, batch_dim=1)


def trained(model, study, optimizer, steps, target=None):
    """Some steps on made-up answers."""
    target = torch.arange(5) % C if target is None else target
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(TOKENS)[0], target) + study.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        study.after_step()


# ---- expected L0


def weights_left(model, open_):
    """Weights whose switches are all open, element by element. open_: axis → bool [n]."""
    z, s0, s1 = (open_[name].tolist() for name in ("input", "hidden_l0", "hidden_l1"))
    count, hidden = 0, len(s0)
    count += V * sum(z)  # columns of the embedding
    for row, column in itertools.product(range(4 * hidden), range(len(z))):
        count += s0[row % hidden] and z[column]
    for s in (s0, s1):
        for row, column in itertools.product(range(4 * hidden), range(hidden)):
            count += s[row % hidden] and s[column]
    for row, column in itertools.product(range(4 * hidden), range(hidden)):
        count += s1[row % hidden] and s0[column]
    return count + C * sum(s1)


def test_the_expected_number_of_weights_is_that_of_the_formula_and_of_many_draws():
    model, study = prepared("l0")
    for i, axis in enumerate(study.method.own()):
        with torch.no_grad():
            study.groups[axis.name].gate_logit.copy_(torch.linspace(-2.5, 1, axis.size) + 0.1 * i)
    p = {
        axis.name: torch.sigmoid(study.groups[axis.name].gate_logit - 2 / 3 * math.log(0.1 / 1.1)).tolist()
        for axis in study.method.own()
    }
    z, s0, s1 = p["input"], p["hidden_l0"], p["hidden_l1"]
    own = lambda s: sum(s[j] * (sum(s[k] for k in range(5) if k != j) + 1) for j in range(5))  # noqa: E731
    by_hand = V * sum(z) + 4 * sum(s0) * sum(z) + 4 * own(s0) + 4 * sum(s1) * sum(s0) + 4 * own(s1) + C * sum(s1)
    assert study.method.expected_weights().item() == pytest.approx(by_hand, rel=1e-12)
    torch.manual_seed(0)
    counts = []
    for _ in range(1500):
        gates = {}
        for axis in study.method.own():
            logit = study.groups[axis.name].gate_logit.detach()
            u = torch.rand(axis.size, dtype=logit.dtype)
            gates[axis.name] = torch.sigmoid((u.log() - (1 - u).log() + logit) / (2 / 3)) * 1.2 - 0.1 > 0
        counts.append(weights_left(model, gates))
    counts = torch.tensor(counts, dtype=torch.float64)
    assert abs(float(counts.mean()) - by_hand) < 4 * float(counts.std()) / len(counts) ** 0.5


def test_the_penalty_is_in_nats_of_all_examples():
    _, study = prepared("l0", l0_weight=3.0)
    assert study.penalty().item() == pytest.approx(3.0 * study.method.expected_weights().item() / 100, rel=1e-12)


def test_gates_are_hard_concrete():
    """P(0), P(1) and the median by the distribution function, over many draws."""
    logit, u = torch.tensor(0.4, dtype=torch.float64), (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    gates = hard_concrete(logit.expand(100_000), u)
    sigm = lambda a: 1 / (1 + math.exp(-a))  # noqa: E731

    def below(s):  # P(stretched gate < s)
        t = (s + 0.1) / 1.2
        return sigm(2 / 3 * math.log(t / (1 - t)) - 0.4)

    assert float((gates == 0).double().mean()) == pytest.approx(below(0.0), abs=2e-5)
    assert float((gates == 1).double().mean()) == pytest.approx(1 - below(1.0), abs=2e-5)
    for s in (0.1, 0.5, 0.8):
        assert float((gates < s).double().mean()) == pytest.approx(below(s), abs=2e-5)


def gates_of_a_pass(model, study):
    """Scale → what it is in a training pass, and the logits of that pass."""
    found = {}

    def look(*_):
        for axis in study.method.axes:
            for member in axis.having("scale"):
                layer, _, own = member.tensor.rpartition(".")
                found[member.tensor] = model.get_submodule(layer).scale(own, 5)

    handle = model.register_forward_hook(look, prepend=True)
    logits, _ = model(TOKENS)
    handle.remove()
    return found, logits


@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
def test_gates_are_the_same_in_all_passes_of_a_step_and_new_in_the_next(cell):
    model, study = prepared("l0", cell)
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.01))
    first, logits = gates_of_a_pass(model, study)
    again, _ = gates_of_a_pass(model, study)
    assert all(torch.equal(first[name], again[name]) and first[name].shape[0] == 1 for name in first)
    gates = len(model.lstm.cell.gates)
    for layer in ("_l0", "_l1"):
        s = first["lstm.recurrent" + layer]
        assert torch.equal(s, first["lstm.output" + layer])
        assert torch.equal(s.repeat(1, gates), first["lstm.gates" + layer])
    if cell is LSTM:
        assert error(logits, logits_by_hand(model, {}, first, TOKENS)[0][-1]) <= 1e-12
    for _ in range(2):  # micro-batches: each has a graph of its own
        model(TOKENS)[0].sum().backward()
    assert study.groups["hidden_l1"].gate_logit.grad.abs().sum() > 0
    optimizer.step(), study.after_step()
    later, _ = gates_of_a_pass(model, study)
    assert not torch.equal(first["lstm.output_l0"], later["lstm.output_l0"])


def test_evaluation_multiplies_with_the_gates_of_the_test_and_nothing_is_drawn():
    model, study = prepared("l0", layers=1)
    with torch.no_grad():
        study.groups["hidden_l0"].gate_logit.copy_(torch.tensor([-3.0, -1.0, 0.0, 1.0, 4.0]))
    gate = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-a)) - 0.1)) for a in (-3.0, -1.0, 0.0, 1.0, 4.0)]
    assert gate[0] == 0 and gate[4] == 1
    s = torch.tensor(gate, dtype=torch.float64)
    z = expected_gate(study.groups["input"].gate_logit.detach())
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if ".carried." not in name}
    weights["lstm.weight_ih_l0"] *= s.repeat(4)[:, None] * z
    weights["lstm.weight_hh_l0"] *= s.repeat(4)[:, None] * s
    weights["head.weight"] *= s
    plain = Words(LSTM, 1).double()
    plain.load_state_dict(weights)
    model.eval()
    assert error(model(TOKENS)[0], plain(TOKENS)[0]) <= 1e-12
    assert study.masks().groups["hidden_l0"].tolist() == [False, True, True, True, True]
    assert study.masks().groups["gates_l0"].tolist() == [False, True, True, True, True] * 4


def test_log_alpha_starts_as_in_the_paper_and_has_a_rate_of_its_own():
    torch.manual_seed(0)
    study = put_on(LanguageModel(V, 2000), sparsify.make("l0"), steps=10, n_examples=10)
    logit = study.groups["hidden_l0"].gate_logit.detach()
    assert float(logit.mean()) == pytest.approx(1.0, abs=0.01) and float(logit.std()) == pytest.approx(0.1, abs=0.01)
    _, study = prepared("l0", lr_gates=0.07)
    own, gates = study.parameter_groups(lr=0.5)
    assert gates["lr"] == 0.07 and gates["weight_decay"] == 0 and len(gates["params"]) == 3
    assert not {id(p) for p in own["params"]} & {id(p) for p in gates["params"]}


# ---- group lasso


def test_a_group_is_all_that_a_neuron_touches():
    model, study = prepared("iss", iss_weight=0.5)
    p, total = dict(model.named_parameters()), 0.0
    for layer, reader in ((0, "lstm.weight_ih_l1"), (1, "head.weight")):
        for k in range(5):
            rows = [gate * 5 + k for gate in range(4)]
            parts = [p[f"lstm.weight_{name}_l{layer}"][rows] for name in ("ih", "hh")]
            parts += [p[f"lstm.weight_hh_l{layer}"][:, k], p[reader][:, k]]
            total += math.sqrt(sum((part**2).sum().item() for part in parts) + 1e-8)
    assert study.penalty().item() == pytest.approx(0.5 * total, rel=1e-12)


def group_sizes(axes, shapes):
    """Entries of each axis' groups, by a model that has these axes and matrices of these shapes."""
    method = sparsify.make("iss")
    method.axes, method.shapes = axes, {name: torch.Size(shape) for name, shape in shapes.items()}
    method.weights = dict.fromkeys(shapes)
    return {axis.name: method.sizes(axis).unique().tolist() for axis in axes if axis.kind == "hidden"}


def test_groups_of_the_paper_s_stacked_lstm_have_the_published_sizes():
    with torch.device("meta"):
        lstm = LSTM(1500, 1500, 2)
    shapes = {f"lstm.{name}": p.shape for name, p in lstm.named_parameters() if p.dim() == 2}
    axes = recurrent_axes("lstm", lstm, ["softmax"])
    assert group_sizes(axes, shapes | {"softmax": (10_000, 1500)}) == {"hidden_l0": [24_000], "hidden_l1": [28_000]}


def test_groups_of_the_paper_s_reader_have_the_published_sizes():
    """BiDAF: two modelling layers and one for the end of the answer, in both directions, 100 units each."""
    stacks = {"first": 800, "second": 200, "out": 1400}
    with torch.device("meta"):
        layers = {name: LSTM(width, 100, bidirectional=True) for name, width in stacks.items()}
    shapes = {
        f"{n}.{own}": p.shape for n, layer in layers.items() for own, p in layer.named_parameters() if p.dim() == 2
    }
    shapes |= {"start": (1, 1000), "end": (1, 1000)}
    ends, axes = ("_l0", "_l0_reverse"), []
    axes += recurrent_axes("first", layers["first"], [f"second.weight_ih{end}" for end in ends], "first.")
    for axis in recurrent_axes("second", layers["second"], ["start"], "second."):
        shift = 100 * axis.name.endswith("_reverse")
        twice = torch.stack([torch.arange(100) + 800 + shift, torch.arange(100) + 1000 + shift], 1)
        more = [Member(f"out.weight_ih{end}", 1, twice, "in") for end in ends] if axis.kind == "hidden" else []
        axes.append(replace(axis, members=(*axis.members, *more)))
    axes += recurrent_axes("out", layers["out"], ["end"], "out.")
    sizes = group_sizes(axes, shapes)
    for stack, size in (("first", 4800), ("second", 3201), ("out", 6401)):
        assert sizes[f"{stack}.hidden_l0"] == sizes[f"{stack}.hidden_l0_reverse"] == [size]


def test_small_weights_of_groups_are_zero_after_every_step():
    model, study = prepared("iss", zero_below=0.05)
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.01), momentum=0.9)
    trained(model, study, optimizer, 3)
    for name in study.method.prunable():
        sizes = study.weights[name].theta.detach().abs()
        assert ((sizes == 0) | (sizes >= 0.05)).all()
    assert (model.lstm.weight_hh_l0 == 0).any() and "embedding.weight" not in study.method.prunable()


def test_a_neuron_goes_whose_group_is_small():
    model, study = prepared("iss", least_rms=0.1)
    before = study.scores()["hidden_l0"]
    with torch.no_grad():
        for member, item in study.method.members(study.method.axes[1]):
            item.theta.movedim(member.dim, 0)[member.positions[2]] = 0.01
    after = study.scores()["hidden_l0"]
    assert (before > -1).all() and float(after[2]) == pytest.approx(-2, abs=0.05)
    assert study.masks().groups["hidden_l0"].tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_default_threshold_lies_between_neurons_that_are_dead_and_alive(kind):
    """Answers that two neurons can give, many neurons, a penalty that is felt: no group is left near the threshold."""
    torch.manual_seed(0)
    model = LanguageModel(4, 12)
    study = put_on(model, sparsify.make("iss", ISSOptions(iss_weight=0.02)), steps=600, n_examples=100, batch_dim=1)
    groups = study.parameter_groups(lr=0.01 if kind == "adam" else 0.3)
    optimizer = torch.optim.Adam(groups) if kind == "adam" else torch.optim.SGD(groups, momentum=0.9)
    tokens = torch.randint(4, (9, 32), generator=torch.Generator().manual_seed(1))
    for _ in range(600):
        loss = nn.functional.cross_entropy(model(tokens[:-1])[0].flatten(0, 1), (tokens[:-1] % 2).flatten())
        optimizer.zero_grad(), (loss + study.penalty()).backward(), optimizer.step()
        study.after_step()
    sizes = study.scores()["hidden_l0"]
    dead = sizes < -2
    assert 4 <= int(dead.sum()) < 12 and loss.item() < 0.3
    assert float(sizes[dead].max()) < -2.3 and float(sizes[~dead].min()) > -1.5


# ---- what both leave


def half_closed(study):
    """About half of the neurons of each axis below what is kept, some weights of the others large."""
    with torch.no_grad():
        for axis in study.method.own():
            if hasattr(study.groups[axis.name], "gate_logit"):
                study.groups[axis.name].gate_logit[::2] = -4.0
            else:
                for member, item in study.method.members(axis):
                    item.theta.movedim(member.dim, 0)[member.positions[::2]] *= 1e-4


@BOTH
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
def test_what_is_left_is_a_small_dense_network_that_computes_the_same(method, cell, layers):
    model, study = prepared(method, cell, layers)
    half_closed(study)
    model.eval()
    small, proof = compact(model, example=(TOKENS,))
    assert proof.error <= 1e-9 and error(small(TOKENS)[0], model(TOKENS)[0]) <= 1e-9
    assert small.lstm.weight_hh_l0.shape[1] == 2 and small.head.weight.shape[1] == 2
    assert proof.weights_after < 0.6 * proof.weights_before


@BOTH
def test_removed_neurons_stay_away_whatever_momentum_the_optimiser_has(method):
    model, study = prepared(method, steps=200, fine_tune=0.5)
    half_closed(study)
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.05), momentum=0.9)
    study.method.step = study.step = 98
    trained(model, study, optimizer, 2)
    assert study.method.fixed
    kept, before = study.masks().groups, model.lstm.weight_hh_l0.detach().clone()
    assert 0 < int(kept["hidden_l0"].sum()) < 5
    trained(model, study, optimizer, 100)
    assert all(torch.equal(kept[name], mask) for name, mask in study.masks().groups.items())
    assert not torch.equal(before, model.lstm.weight_hh_l0)  # what is kept is trained on
    model.eval()
    small, proof = compact(model, example=(TOKENS,))
    assert proof.error <= 1e-9 and small.lstm.weight_hh_l0.shape[1] == int(
        close(study.masks()).groups["hidden_l0"].sum()
    )


@BOTH
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("shape", [{}, {"num_layers": 2}, {"bidirectional": True}])
def test_a_model_of_ones_own_is_thinned_out(method, kind, shape):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack = nn.Embedding(V, 4), kind(4, 6, **shape)
            self.head = nn.Linear(6 * (1 + shape.get("bidirectional", False)), C)

        def forward(self, tokens):
            return (self.head(self.stack(self.words(tokens))[0][-1]),)

    torch.manual_seed(0)
    model = Mine().double()
    study = attach(model, method, steps=20, n_examples=50, example=TOKENS, fine_tune=0.5)
    half_closed(study)
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-3))
    trained(model, study, optimizer, 20)
    model.eval()
    small, proof = compact(model, example=(TOKENS,))
    assert proof.error <= 1e-9 and error(small(TOKENS)[0], model(TOKENS)[0]) <= 1e-9
    assert small.stack.weight_hh_l0.shape[1] == 3 and proof.weights_after < proof.weights_before


@BOTH
def test_a_removed_neuron_whose_final_state_is_read_keeps_no_weight_but_its_readers(method):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(V, 4), nn.GRU(4, 6), nn.Linear(6, C)

        def forward(self, tokens):
            return (self.head(self.stack(self.words(tokens))[1][-1]),)

    torch.manual_seed(0)
    model = Mine().double()
    study = attach(model, method, steps=20, n_examples=50, example=TOKENS)
    half_closed(study)
    small, proof = compact(model.eval(), example=(TOKENS,))
    assert proof.error <= 1e-9 and error(small(TOKENS)[0], model(TOKENS)[0]) <= 1e-9
    assert proof.weights_after < 0.6 * proof.weights_before


@BOTH
def test_a_method_that_removes_neurons_wants_some(method):
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))
    with pytest.raises(ValueError, match="no recurrent layer is left whose neurons the method could remove"):
        attach(model, method, steps=5, n_examples=5, only=["0"])


STRONG = {
    ("l0", "tiny-topic"): {"l0_weight": 0.3, "lr_gates": 0.1},
    ("l0", "tiny-char"): {"l0_weight": 2.0, "lr_gates": 0.1},
    ("iss", "tiny-topic"): {"iss_weight": 0.03, "least_rms": 0.15},
    ("iss", "tiny-char"): {"iss_weight": 0.02, "least_rms": 0.15},
}


@BOTH
@pytest.mark.parametrize("task", ["tiny-topic", "tiny-char"])
def test_a_run_stopped_in_either_phase_goes_on_to_the_same_end(method, task, tmp_path, monkeypatch):
    config = RunConfig(task, method=method, profile="quick", epochs=6, fine_tune=0.34, **STRONG[method, task])
    whole = ensure(config)
    assert whole.record["compact_error"] <= 1e-9 and 1 <= int(whole.record["hidden_kept"]) < 8
    stored, scales = whole.record["weights_stored"], sum(b.numel() for b in whole.model.parameters() if b.dim() == 1)
    assert whole.record["size_bytes"] <= 1.3 * (6 * stored + 4 * scales) + 4096
    for after in (2, 5):
        monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / f"stopped-{after}"))

        def stop(line, after=after):
            if line.startswith(f"epoch {after}/"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ensure(config, stop)
        again = ensure(config)
        assert (again.directory / "model.safetensors").read_bytes() == (
            whole.directory / "model.safetensors"
        ).read_bytes()
        with safe_open(whole.directory / "checkpoint.safetensors", "pt") as a:
            with safe_open(again.directory / "checkpoint.safetensors", "pt") as b:
                assert set(a.keys()) == set(b.keys())
                assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
        record = [json.loads((run.directory / "record.json").read_text()) for run in (whole, again)]
        assert {k: v for k, v in record[0].items() if k != "train_seconds"} == {
            k: v for k, v in record[1].items() if k != "train_seconds"
        }


def test_a_density_between_two_numbers_of_neurons_is_refused_before_training():
    with pytest.raises(ValueError, match=r"density is 0.05; what this method can reach here is 0\.\d+ to 1"):
        prepared("l0", density=0.05)
    _, study = prepared("iss", density=0.9)
    assert study.method.reach()[0] < 0.9


def test_the_classifier_s_embedding_loses_columns():
    model = randomise(Classifier(V, C, embedding=6, hidden=5), 0).requires_grad_(True)
    study = put_on(model, sparsify.make("l0"), steps=10, n_examples=10, batch_dim=1)
    half_closed(study)
    assert set(study.method.prunable()) == {"embedding.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"}
    kept = 3 * V + 4 * 2 * 3 + 4 * 2 * 2 + C * 2
    assert study.method.density() == pytest.approx(kept / (6 * V + 4 * 5 * 6 + 4 * 5 * 5 + C * 5))
    small, proof = compact(model.eval(), example=(TOKENS,))
    assert proof.error <= 1e-9 and small.embedding.weight.shape[1] == 3


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("fine_tune", [0.0, 0.3])
def test_a_net_of_ones_own_in_single_precision_is_made_small(cell, fine_tune):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(V, 4), cell(4, 12, batch_first=True), nn.Linear(12, C)

        def forward(self, words):
            return self.head(self.stack(self.words(words))[0][:, -1])

    torch.manual_seed(0)
    model, x = Own(), TOKENS.T
    study = attach(model, "l0", 20, 100, example=x, l0_weight=0.1, fine_tune=fine_tune)
    optimizer = torch.optim.Adam(study.parameter_groups(1e-2))
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), torch.arange(5) % C) + study.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        study.after_step()
    small, proof = compact(model, x)
    assert proof.error <= 1e-6 and error(small(x), model.eval()(x)) <= 1e-6
