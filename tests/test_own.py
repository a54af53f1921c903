"""A method on a user's own model: nothing changes until it is asked for, and the small model is equal to the pruned one."""

import copy

import pytest
import torch
from oracles import error, randn
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sparsernn import attach, compact

CELLS = [nn.LSTM, nn.GRU, nn.RNN]
V, E, H = 20, 6, 8


class Reader(nn.Module):
    """Words, a stack in both directions, a way around it that the library knows nothing of, an answer."""

    def __init__(self, cell=nn.GRU, around=True, answer="mean", batch_first=True, bias=True, layers=2, dropout=0.3):
        super().__init__()
        self.words = nn.Embedding(V, E)
        shape = {"batch_first": batch_first, "bias": bias, "dropout": dropout}
        self.stack = cell(E, H, layers, bidirectional=True, **shape)
        self.skip, self.head = nn.Linear(E, 2 * H), nn.Linear(2 * H, 3)
        self.around, self.answer = around, answer

    def forward(self, words, lengths=None):
        x = self.words(words)
        if lengths is not None:
            y, _ = self.stack(pack_padded_sequence(x, lengths, self.stack.batch_first, enforce_sorted=False))
            y, _ = pad_packed_sequence(y, self.stack.batch_first)
            return self.head(y)
        y, state = self.stack(x)
        y = y + self.skip(x) if self.around else y
        time = 1 if self.stack.batch_first else 0
        if self.answer == "state":
            y = torch.cat(list((state[0] if isinstance(state, tuple) else state)[-2:]), -1)
        elif self.answer == "mean":
            y = y.mean(time)
        elif self.answer == "last":
            y = y.select(time, -1)
        return self.head(y)


def words(batch=3, steps=5, seed=0):
    return torch.randint(V, (batch, steps), generator=torch.Generator().manual_seed(seed))


def model_of(**shape):
    torch.manual_seed(0)
    return Reader(**shape).double()


def pruned(method="sparse-vd-wgn", keep=0.6, **shape):
    """A model with a method whose log α is drawn at random: about `keep` of everything is kept."""
    model = model_of(**shape)
    study = attach(model, method, steps=10, n_examples=10)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for item in (*study.weights.values(), *study.groups.values()):
            share = keep if item.name in study.groups else 0.4
            kept = torch.rand(item.theta.shape, generator=generator) < share
            item.log_sigma.copy_(item.theta.abs().clamp(min=1e-3).log() + torch.where(kept, -4.0, 4.0))
        for group in study.groups.values():
            group.theta.mul_(0.5 + torch.rand(group.size, generator=generator, dtype=torch.float64))
    return model.eval(), study


@pytest.mark.parametrize("answer", ["mean", "last", "all", "state"])
@pytest.mark.parametrize("around", [True, False])
@pytest.mark.parametrize("method", ["sparse-vd-w", "sparse-vd-wgn"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_small_model_equals_the_pruned_one_on_other_data(cell, method, around, answer):
    model, _ = pruned(method, cell=cell, around=around, answer=answer)
    small, proof = compact(model, example=words())
    other = words(4, 9, seed=3)
    assert proof.error <= 1e-12 and error(small(other), model(other)) <= 1e-12
    assert proof.weights_after < 0.7 * proof.weights_before


def test_a_two_layer_bidirectional_gru_with_a_way_around_it_trains_and_shrinks():
    model = model_of(cell=nn.GRU)
    plan = {"kl_weight": 0.3, "kl_weight_neurons": 1.0, "lr_log_sigma": 0.05, "fine_tune": 0.3}
    study = attach(model, "sparse-vd-wgn", steps=300, n_examples=300, **plan)
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    losses, generator = [], torch.Generator().manual_seed(2)
    for _ in range(300):
        x = torch.randint(V, (16, 6), generator=generator)
        loss = nn.functional.cross_entropy(model(x), (x == 7).any(1).long())
        optimizer.zero_grad()
        (loss + study.penalty()).backward()
        optimizer.step()
        study.after_step()
        losses.append(loss.item())
    model.eval()
    x = torch.randint(V, (500, 6), generator=generator)
    right = (model(x).argmax(1) == (x == 7).any(1)).double().mean()
    small, proof = compact(model, example=x)
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20]) and right > 0.95
    assert proof.error <= 1e-12 and torch.equal(small(x).argmax(1), model(x).argmax(1))
    assert proof.weights_after < proof.weights_before / 2 and proof.bytes_after < proof.bytes_before
    assert "not all known" in proof.layers["stack"]  # the way around adds to every output


def test_without_a_way_around_the_readers_get_narrower_too():
    model, _ = pruned(around=False, answer="mean")
    small, proof = compact(model, example=words())
    assert small.head.in_features < model.head.in_features and "keeps its width" not in proof.layers["stack"]


def test_consumers_that_cannot_be_found_may_be_named():
    class Reshaped(Reader):
        def forward(self, words):
            y, _ = self.stack(self.words(words))
            return self.head(torch.tanh(y.mean(1)))

    torch.manual_seed(0)
    model = Reshaped().double()
    mask = torch.ones(3, 2 * H, dtype=torch.float64)
    mask[:, 2:7] = 0
    with torch.no_grad():
        model.head.weight.mul_(mask)
    found, proof = compact(model, example=words())
    assert "not all known" in proof.layers["stack"] and found.head.in_features == 2 * H
    named, proof = compact(model, example=words(), consumers={"stack": ["head"]})
    assert named.head.in_features == 2 * H - 5 and error(named(words(seed=5)), model.eval()(words(seed=5))) <= 1e-12
    for given in (
        {model.stack: [model.head]},
        {model.stack: model.head},
        {"stack": "head"},
    ):  # as only= and skip= take them
        assert compact(model, example=words(), consumers=given)[0].head.in_features == 2 * H - 5
    with pytest.raises(ValueError, match="a Linear that is no part of the model; there are: .*head"):
        compact(model, example=words(), consumers={"stack": [nn.Linear(2, 2)]})
    with pytest.raises(ValueError, match="consumers of 'stakc': no recurrent layer.*; there are: words, stack"):
        compact(model, example=words(), consumers={"stakc": ["head"]})
    with pytest.raises(ValueError, match="no such module 'haed'; there are: .*head"):
        compact(model, example=words(), consumers={"stack": ["haed"]})
    with pytest.raises(ValueError, match="skip reads 6 columns, the layer has 16 outputs"):
        compact(model, example=words(), consumers={"stack": ["skip"]})


@pytest.mark.parametrize("cell", CELLS)
def test_zeros_of_torchs_own_pruning_are_accepted(cell):
    model = model_of(cell=cell, around=False)
    for name in ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1_reverse"):
        prune.random_unstructured(model.stack, name, 0.7)
    prune.ln_structured(model.head, "weight", 0.5, n=1, dim=1)
    model.eval()
    small, proof = compact(model, example=words())
    assert proof.error <= 1e-12 and small.head.in_features == H
    assert error(small(words(seed=4)), model(words(seed=4))) <= 1e-12


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_sequences_and_layers_without_bias(cell, batch_first):
    model, _ = pruned(keep=0.8, cell=cell, batch_first=batch_first, bias=False)
    x, lengths = words(4, 6), torch.tensor([2, 6, 1, 4])
    x = x if batch_first else x.t()
    small, proof = compact(model, example=(x, lengths))
    assert proof.error <= 1e-12 and error(small(x, lengths), model(x, lengths)) <= 1e-12


class Stateful(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.stack, self.head = cell(5, H, 2), nn.Linear(H, 5)

    def forward(self, x, state=None):
        y, state = self.stack(x, state)
        return self.head(y), state


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_state_handed_through_carries_on(cell, unbatched):
    torch.manual_seed(0)
    model = Stateful(cell).double().eval()
    with torch.no_grad():
        model.head.weight[:, ::2] = 0  # then every other neuron of the last layer is read by its own layer alone
        model.stack.weight_hh_l1[:, ::2] = 0
    x = randn(6, 5) if unbatched else randn(6, 3, 5)
    small, _ = compact(model, example=x)
    assert "neurons l0 8/8, l1 4/8" in small.stack.extra_repr()
    y, state = model(x)
    mine, carried = small(x)
    assert error(mine, y) <= 1e-12
    assert error(small(x, carried)[0], model(x, state)[0]) <= 1e-12


def test_a_tied_embedding_keeps_its_rows():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(V, H), nn.LSTM(H, H), nn.Linear(H, V)
            self.head.weight = self.words.weight

        def forward(self, words):
            return self.head(self.stack(self.words(words))[0])

    torch.manual_seed(0)
    model = Tied().double()
    study = attach(model, "sparse-vd-wgn", steps=10, n_examples=10)
    assert sum(p is model.words.weight for g in study.parameter_groups() for p in g["params"]) == 1
    model(words()).sum().backward()
    assert model.words.weight.grad.abs().sum() > 0
    small, proof = compact(model, example=words())
    assert proof.error <= 1e-12 and small.head.weight is small.words.weight


# ---- while the method is on


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("method", ["dense", "sparse-vd-w", "sparse-vd-wgn"])
def test_without_noise_the_model_computes_what_it_did(cell, method):
    model = model_of(cell=cell, dropout=0.0)
    x = words()
    before = model(x)
    quiet = {} if method == "dense" else {"log_sigma": -60.0, "log_sigma_groups": -60.0}
    study = attach(model, method, steps=10, n_examples=10, **quiet)
    for mode in (True, False):
        assert error(model.train(mode)(x), before) <= 1e-12
    study.detach()
    assert torch.equal(model(x), before)


def test_the_model_keeps_its_class_and_its_parameters_and_gets_them_back():
    model = model_of()
    parameters, names, twin = dict(model.named_parameters()), list(model.state_dict()), copy.deepcopy(model)
    study = attach(model, "sparse-vd-wgn", steps=10, n_examples=10)
    assert isinstance(model.stack, nn.GRU) and set(names) < set(model.state_dict())
    assert all(model.get_parameter(name) is parameter for name, parameter in parameters.items())
    study.detach()
    assert type(model.stack) is nn.GRU and list(model.state_dict()) == names
    twin.load_state_dict(model.state_dict())


def test_noise_is_new_in_every_training_step_and_absent_in_evaluation():
    model = model_of(dropout=0.0)
    study = attach(model, "sparse-vd-w", steps=10, n_examples=10)
    x = words()
    first = model(x)
    assert torch.equal(first, model(x))  # one draw of the weights a step
    study.after_step()
    assert not torch.equal(first, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_every_parameter_of_model_and_method_gets_a_gradient():
    model = model_of()
    study = attach(model, "sparse-vd-wgn", steps=10, n_examples=10)
    (model(words()).sum() + study.penalty()).backward()
    for parameter in (*model.parameters(), *study.parameters()):
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_the_penalty_is_per_example():
    a, b = (attach(model_of(), "sparse-vd-w", steps=10, n_examples=n).penalty() for n in (10, 1000))
    assert float(a.detach() / b.detach()) == pytest.approx(100)


# ---- refused in words


def test_projections_are_refused_by_name():
    model = nn.Sequential(nn.LSTM(4, 8, proj_size=3))
    with pytest.raises(ValueError, match="0: proj_size is 3; projections are not supported"):
        attach(model, "sparse-vd-w", steps=10, n_examples=10)


@pytest.mark.parametrize(
    ("model", "said"),
    [(nn.Sequential(nn.Linear(3, 3)), "nothing to thin out"), (nn.LSTM(3, 3), "put it inside an nn.Module")],
)
def test_a_model_that_cannot_be_used_is_refused_in_words(model, said):
    with pytest.raises(ValueError, match=said):
        attach(model, "sparse-vd-w", steps=10, n_examples=10)


class OfItsOwn(nn.LSTM):
    pass


class Stepped(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 8)


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize(("make", "said"), [
    (lambda: nn.Sequential(nn.LSTM(4, 8, proj_size=3)), "0: proj_size is 3; projections are not supported"),
    (lambda: nn.Sequential(OfItsOwn(4, 8)), "0: OfItsOwn is a LSTM with a class of its own"),
    (lambda: nn.Sequential(weight_norm(nn.LSTM(4, 8), "weight_hh_l0")), r"0: its weight_hh_l0 is computed \(a parametrization"),
    (lambda: quantize_dynamic(nn.Sequential(nn.LSTM(4, 8)), {nn.LSTM}), "0: torch.ao.*LSTM is not torch.nn's"),
    (lambda: compact(pruned()[0], words())[0], "stack: it is small already"),
    (Stepped, "cell: LSTMCell is a cell; nn.LSTM with the same weights"),
])  # fmt: skip
def test_a_recurrent_layer_that_stays_as_it_is_is_named_with_the_reason(make, said):
    model = make()
    with pytest.raises(ValueError, match=said):
        attach(model, "sparse-vd-w", steps=10, n_examples=10)
    if "small" not in said:
        with pytest.raises(ValueError, match=said):
            compact(model, torch.zeros(2, 3, 4))


def test_a_second_method_and_an_unknown_one_are_refused():
    model = model_of()
    with pytest.raises(ValueError, match="'sparse-vd-w'"):
        attach(model, "sparse-vd", steps=10, n_examples=10)
    attach(model, "sparse-vd-w", steps=10, n_examples=10)
    with pytest.raises(ValueError, match="a method on it already"):
        attach(model, "sparse-vd-w", steps=10, n_examples=10)


def test_a_method_that_trains_no_network_is_refused():
    with pytest.raises(ValueError, match="'linear' is for the model 'bag-of-words' alone"):
        attach(model_of(), "linear", steps=10, n_examples=10)


def test_a_layer_of_which_nothing_is_left_says_zeros():
    model, _ = pruned("sparse-vd-wgn", keep=0.0)
    small, proof = compact(model, example=words())
    assert proof.error <= 1e-12 and "l0 0/8" in proof.layers["stack"] and "keeps its width" in proof.layers["stack"]


@pytest.mark.parametrize("field", [{"products": "bfloat16"}, {"clip": 5.0}, {"lr_end": 0.1}, {"word_dropout": 0.1}])
def test_what_only_the_study_s_loop_does_is_refused(field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} belongs to a training loop"):
        attach(model_of(), "sparse-vd-w", 5, 9, **field)


def test_a_penalty_that_would_begin_after_the_training_is_refused():
    with pytest.raises(ValueError, match="the penalty would begin at step 10 of a training of 10: lower kl_start"):
        attach(model_of(), "sparse-vd-w", steps=10, n_examples=9, kl_start=10.0, kl_full=20.0)
