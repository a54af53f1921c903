"""What people had who came from elsewhere: their layers, weights and calls stay what they were, or are left alone by name.

Most situations stand in public reports about other tools, named beside them, and are rebuilt small.
"""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from oracles import error, randn
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sparsernn
from sparsernn.files import project_root
from sparsernn.nets import layers
from sparsernn.sparsify.blocks import RECIPES

CELLS = [nn.LSTM, nn.GRU, nn.RNN]
V, E, H = 20, 6, 8


class Reader(nn.Module):
    """What a tutorial writes: words, two recurrent layers, an answer."""

    def __init__(self, cell=nn.LSTM, **shape):
        super().__init__()
        self.words, self.lower = nn.Embedding(V, E), nn.GRU(E, E, batch_first=True)
        self.stack, self.head = cell(E, H, batch_first=True, **shape), nn.Linear(H, 3)

    def encode(self, words):
        return self.stack(self.lower(self.words(words))[0])[0].mean(1)

    def forward(self, words):
        return self.head(self.encode(words))


def words(batch=3, steps=5, seed=0, below=V):
    return torch.randint(below, (batch, steps), generator=torch.Generator().manual_seed(seed))


def model_of(kind=Reader, **shape):
    torch.manual_seed(0)
    return kind(**shape).double()


def attach(model, method="sparse-vd-w", **options):
    return sparsernn.attach(model, method, **({"steps": 10, "n_examples": 10} | options))


def silent(method):
    """Options under which a method's noise is nothing."""
    options = {} if method in ("dense", "binary-dropout") else {"log_sigma": -60.0}
    return options | ({"log_sigma_groups": -60.0} if method.startswith("sparse-vd-w") and method[11:] else {})


@torch.no_grad()
def thin(study):
    """About half of the weights and two thirds of the groups stay: log α is −8 or 8."""
    generator = torch.Generator().manual_seed(1)
    for _, item in sorted((study.weights | study.groups).items()):
        kept = torch.rand(item.theta.shape, generator=generator) < 0.5
        if item.theta.dim() == 1:
            kept = torch.arange(len(item.theta)) % 3 != 1
            item.theta.copy_(0.5 + torch.rand(item.theta.shape, generator=generator))
        item.log_sigma.copy_(item.theta.abs().clamp(min=1e-3).log() + torch.where(kept, -4.0, 4.0))
    return study


def compacted(model, example=None, other=None):
    """The small model, found equal on words that the example lacks too."""
    model.eval()
    example, other = words(below=V // 2) if example is None else example, words(4, 9, 3) if other is None else other
    small, proof = sparsernn.compact(model, example=example)
    assert proof.error <= 1e-12 and error(small(other), model(other)) <= 1e-12
    return small


def is_left(study, layer, why="."):
    """Whether a method has nothing in a layer, and says why."""
    has = [name for name in (*study.weights, *study.groups) if name.startswith(layer + ".")]
    return not has and bool(re.search(why, study.left.get(layer, "")))


def is_plain(model):
    """Whether no method is on a model."""
    kinds = {type(m) for m in model.modules() if isinstance(m, (nn.RNNBase, nn.Linear, nn.Embedding))}
    return sparsernn.Study.of(model) is None and kinds <= {*CELLS, nn.Linear, nn.Embedding}


def train(model, study, steps=2):
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.1))
    for step in range(steps):
        x = words(6, 5, seed=step)
        optimizer.zero_grad()
        (F.cross_entropy(model(x).reshape(6, -1), x[:, 0] % 3) + study.penalty()).backward()
        optimizer.step()
        study.after_step()


# ---- layers: how they are called, what hangs on them, what they are asked for


class Called(nn.Module):
    """One layer of each kind, called in every way that torch knows."""

    def __init__(self, cell=nn.LSTM, batch_first=False):
        super().__init__()
        self.words, self.stack = nn.Embedding(V, E), cell(E, H, 2, batch_first=batch_first, bidirectional=True)
        self.head, self.batch_first, self.pair = nn.Linear(2 * H, 3), batch_first, cell is nn.LSTM

    def state(self, *batch):
        h, c = (0.3 * randn(4, *batch, H, seed=seed) for seed in (5, 6))
        return (h, c) if self.pair else h

    def forward(self, ids, how="positions"):
        x, batch = self.words(input=ids), ids.shape[0 if self.batch_first else 1]
        if how == "packed":
            lengths = torch.arange(batch) % 3 + 2
            y, _ = self.stack(pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False))
            y, _ = pad_packed_sequence(y, self.batch_first)
        elif how == "one sequence":
            y, _ = self.stack(x[0] if self.batch_first else x[:, 0], self.state())
        elif how == "keywords":
            y, _ = self.stack(input=x, hx=self.state(batch))
        else:
            y, _ = self.stack(x, self.state(batch)) if how == "state" else self.stack(x)
        return self.head(input=y)


WAYS = ["positions", "state", "keywords", "one sequence", "packed"]


@pytest.mark.parametrize("method", ["dense", "sparse-vd-w", "sparse-vd-wgn"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_called_in_any_way_that_torch_knows_answers_as_before(cell, batch_first, method):
    model, x = model_of(Called, cell=cell, batch_first=batch_first), words(4, 6)
    before = {how: model(x, how) for how in WAYS}
    attach(model, method, **silent(method))
    for mode in (True, False):
        model.train(mode)
        assert max(error(model(x, how), before[how]) for how in WAYS) <= 1e-12


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_called_by_keyword_is_thinned_out_as_any_other(cell):  # EasyEdit PR #654, Torch-Pruning #488
    model = model_of(Called, cell=cell, batch_first=True)
    thin(attach(model, "sparse-vd-wgn"))
    other = words(4, 9, 3)
    small, proof = sparsernn.compact(model.eval(), example={"ids": words(below=V // 2), "how": "keywords"})
    assert proof.error <= 1e-12 and error(small(ids=other, how="state"), model(other, "state")) <= 1e-12
    assert error(small(other), model(other)) <= 1e-12


def test_layers_are_what_isinstance_and_names_of_classes_say_they_are():
    model = model_of(Called)
    layers = {name: module for name, module in model.named_modules() if name}
    kinds = {name: type(module) for name, module in layers.items()}
    text = {name: module.extra_repr() for name, module in layers.items()}
    flat = [id(p) for p in model.stack._flat_weights]
    study = attach(model)
    for name, module in layers.items():
        assert model.get_submodule(name) is module and isinstance(module, kinds[name])
        assert type(module).__name__.find(kinds[name].__name__) != -1  # as in DCGAN's weights_init
        assert module.extra_repr() == text[name] in str(module)
    stack, embedding = model.stack, model.words
    stack.flatten_parameters()
    assert (stack.mode, stack.input_size, stack.hidden_size, stack.num_layers) == ("LSTM", E, H, 2)
    assert [id(p) for p in stack._flat_weights] == flat == [id(p) for level in stack.all_weights for p in level]
    assert (embedding.num_embeddings, embedding.embedding_dim, model.head.in_features) == (V, E, 2 * H)
    study.detach()
    assert {name: type(module) for name, module in model.named_modules() if name} == kinds


@pytest.mark.parametrize("cell", CELLS)
def test_a_second_layer_made_from_the_class_of_the_first_is_a_plain_one(cell):
    model = model_of(cell=cell)
    attach(model)
    twin, plain = (kind(E, H, batch_first=True).double() for kind in (type(model.stack), cell))
    plain.load_state_dict(twin.state_dict())
    assert error(twin(randn(3, 4, E))[0], plain(randn(3, 4, E))[0]) <= 1e-12


def test_parameters_keep_their_names_and_stay_the_same_objects():
    model = model_of()
    names, before = list(model.state_dict()), dict(model.named_parameters())
    study = attach(model, "sparse-vd-wgn")
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items()) and {*names} < {*model.state_dict()}
    assert all(study.weights[name].theta is before[name] for name in before if before[name].dim() == 2)
    assert {id(p) for p in study.parameters()} == {id(p) for p in model.parameters()} - {id(p) for p in before.values()}
    assert {"words.vocabulary", "stack.input", "stack.hidden_l0", "stack.gates_l0"} <= {*study.groups}
    study.detach()
    assert list(model.state_dict()) == names and dict(model.named_parameters()).keys() == before.keys()


def test_hooks_go_on_being_called_and_what_they_return_counts():
    model, seen, x = model_of(), [], words()
    model.register_forward_pre_hook(lambda module, args: seen.append("root"))
    late = model.words.register_forward_hook(lambda module, args, output: seen.append("after"))
    model.stack.register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True)
    model.head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model.head.register_forward_hook(lambda module, args, output: output + 1)
    model.head.register_full_backward_hook(lambda module, grads, _: (3 * grads[0],))

    def run():
        seen.clear()
        answer = model(x)
        return answer, torch.autograd.grad(answer.sum(), model.stack.weight_hh_l0)[0]

    before = run()
    study = attach(model, "dense")
    for end in (study.detach, late.remove):
        assert max(map(error, run(), before)) <= 1e-12 and seen == ["root", "after", "before"]
        end()
    run()
    assert seen == ["root", "before"]


def test_a_hook_set_while_a_method_is_on_stays_when_it_goes():
    model, seen = model_of(), []
    study = attach(model)
    model.stack.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    model(words())
    study.detach()
    model(words())
    assert seen == 2 * [torch.Size([3, 5, H])]


def test_attributes_that_somebody_hung_on_a_layer_stay():
    model = model_of()
    model.stack.note = "mine"
    model.head.register_buffer("temperature", torch.tensor(2.0))
    study = attach(model)
    model.words.later = [1, 2]
    assert model.stack.note == "mine" and model.head.temperature == 2 and "head.temperature" in model.state_dict()
    study.detach()
    assert (model.stack.note, model.words.later, float(model.head.temperature)) == ("mine", [1, 2], 2.0)


@pytest.mark.parametrize("by", ["kind", "name"])
def test_weights_initialised_by_model_apply_are_the_layer_s_own(by):
    def initialise(module):
        if by == "kind" and isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.25)
        elif by == "name" and isinstance(module, nn.RNNBase):  # every tutorial's loop over a recurrent layer
            for name, parameter in module.named_parameters():
                if "weight" in name:
                    nn.init.orthogonal_(parameter)
                elif "bias" in name:
                    nn.init.zeros_(parameter)

    model = model_of()
    study = attach(model, "sparse-vd-wgn", log_sigma=-5.0, log_sigma_groups=-5.0)
    model.apply(initialise)
    assert all((item.log_sigma == -5).all() for item in (study.weights | study.groups).values())
    assert all((item.theta == 1).all() for item in study.groups.values())
    square = model.stack.weight_hh_l0.T @ model.stack.weight_hh_l0
    assert (model.head.weight == 0.25).all() if by == "kind" else error(square, torch.eye(H)) <= 1e-12


class Stacked(nn.Module):
    def __init__(self, layers, dropout):
        super().__init__()
        self.words, self.head = nn.Embedding(V, E), nn.Linear(H, 3)
        self.stack = nn.LSTM(E, H, layers, dropout=dropout, batch_first=True)

    def forward(self, words):
        return self.head(self.stack(self.words(words))[0].mean(1))


def test_a_stack_s_own_dropout_acts_in_training_and_not_in_evaluation():
    model, x, other = model_of(Stacked, layers=2, dropout=1.0), words(seed=1), words(seed=2)
    plain = copy.deepcopy(model).eval()
    attach(model, "dense")
    assert torch.equal(model(x), model(other))  # nothing of the first level arrives
    assert error(model.eval()(x), plain(x)) <= 1e-12 and not torch.equal(model(x), model(other))
    model.train().stack.dropout = 0.5
    assert not torch.equal(model(x), model(x))
    model.stack.dropout = 0.0
    assert error(model(x), plain(x)) <= 1e-12


# ---- classes with a forward of their own


class Scaled(nn.Embedding):  # huggingface/transformers PR #45388
    def forward(self, input):
        return super().forward(input) * self.embedding_dim**0.5


class Adapted(nn.Linear):  # iurada/px-ntk-pruning #4
    def __init__(self, *shape):
        super().__init__(*shape)
        self.down, self.up = nn.Parameter(torch.randn(2, shape[0])), nn.Parameter(torch.randn(shape[1], 2))

    def forward(self, input):
        return super().forward(input) + input @ self.down.T @ self.up.T


class Residual(nn.LSTM):
    def forward(self, input, hx=None):
        y, state = super().forward(input, hx)
        return y + input, state


class Named(nn.LSTM):
    """No forward of its own."""

    def answer(self):
        return 42


def with_layer(name, layer):
    torch.manual_seed(0)
    model = Reader()
    setattr(model, name, layer())
    return model.double()


OWN = {
    "words": lambda: Scaled(V, E),
    "head": lambda: Adapted(H, 3),
    "lower": lambda: Residual(E, E, batch_first=True),
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_with_a_forward_of_its_own_runs_as_it_is(name):
    model = with_layer(name, OWN[name])
    kind, before = type(model.get_submodule(name)), model(words())
    study = attach(model, "dense")
    assert error(model(words()), before) <= 1e-12
    study.detach()
    study = attach(model, example=words())
    assert type(model.get_submodule(name)) is kind and is_left(study, name, "forward")
    train(model, study)
    thin(study)
    assert type(compacted(model).get_submodule(name)) is kind


def test_a_forward_put_on_one_layer_by_hand_is_the_one_that_runs():  # as adapters and loaders do
    model = model_of()
    model.head.forward = lambda x: 2 * F.linear(x, model.head.weight)
    before = model(words())
    study = attach(model, example=words(), **silent("sparse-vd-w"))
    assert error(model(words()), before) <= 1e-12 and is_left(study, "head")


def test_a_subclass_without_a_forward_of_its_own_stays_what_it_is():
    model = with_layer("stack", lambda: Named(E, H, batch_first=True))
    before = model(words())
    attach(model, example=words(), **silent("sparse-vd-w"))
    assert isinstance(model.stack, Named) and model.stack.answer() == 42 and error(model(words()), before) <= 1e-12


# ---- arguments of nn.Embedding                                 pytorch #26596, #30899, dayyass/pytorch-ner #60

ARGUMENTS = [{"max_norm": 0.5}, {"padding_idx": 0}, {"scale_grad_by_freq": True}, {"sparse": True}]


@pytest.mark.parametrize("method", ["dense", "sparse-vd-w"])
@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda argument: next(iter(argument)))
def test_an_argument_of_an_embedding_is_honoured_or_refused_by_name(argument, method):
    name, x = next(iter(argument)), words()
    model = with_layer("words", lambda: nn.Embedding(V, E, **argument))
    plain = copy.deepcopy(model)
    try:
        attach(model, method, **silent(method))
    except ValueError as refusal:
        assert "words" in str(refusal) and name in str(refusal) and is_plain(model)
        assert method != "dense" and name != "padding_idx"
        return
    assert method == "dense" or name != "sparse"
    for each in (model, plain):
        each(x).sum().backward()
    mine, theirs = model.words.weight.grad, plain.words.weight.grad
    assert mine.is_sparse == theirs.is_sparse and error(mine.to_dense(), theirs.to_dense()) <= 1e-12
    other = words(4, 9, 3)
    assert error(model(other), plain(other)) <= 1e-12 and error(model.eval()(x), plain.eval()(x)) <= 1e-12
    assert error(model.words.weight, plain.words.weight) <= 1e-12


def test_a_padding_row_stays_zero_under_noise():
    model = with_layer("words", lambda: nn.Embedding(V, E, padding_idx=0))
    study = attach(model, "sparse-vd-w", log_sigma=-1.0)
    blank = torch.zeros(2, 3, dtype=torch.long)
    assert not model.words(blank).any() and model.words(blank + 1).any()
    model(blank).sum().backward()
    item = study.weights["words.weight"]
    assert not item.theta.grad[0].any() and not item.log_sigma.grad[0].any()


@pytest.mark.parametrize("method", ["sparse-vd-w-voc", "sparse-vd-wgn"])
def test_a_padding_row_that_came_with_the_vectors_has_no_variable(method):
    vectors = torch.randn(V, E, generator=torch.Generator().manual_seed(0)).double()
    model = with_layer("words", lambda: nn.Embedding.from_pretrained(vectors, freeze=False, padding_idx=0))
    x = words()
    x[:, :2] = 0
    study = attach(model, method, example=x, log_sigma_groups=-0.5)
    optimizer = torch.optim.AdamW(study.parameter_groups(lr=0.1), weight_decay=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        (model(x).square().mean() + study.penalty()).backward()
        optimizer.step()
        study.after_step()
    thin(study)
    group = study.groups["words.vocabulary"]
    with torch.no_grad():
        group.log_sigma[0] = 8.0
    assert study.masks().groups[group.name][0] and study.means()[group.name][0] == 1
    compacted(model, x)


def test_rows_with_a_largest_norm_are_equal_for_words_that_the_example_lacks():
    model = with_layer("words", lambda: nn.Embedding(V, E, max_norm=0.5)).eval()
    few, others = words(below=V // 2), words(4, 9, 3)
    try:
        small, _ = sparsernn.compact(copy.deepcopy(model), example=few)
    except ValueError as refusal:
        assert "max_norm" in str(refusal)
        return
    assert error(small(others), model(others)) <= 1e-12


# ---- weights that are no parameters, or are read without a call        pytorch #86457, #32346, fastai #2591


class WeightDrop(nn.Module):
    """AWD-LSTM's: the recurrent weight is made anew in every call."""

    def __init__(self, layer, p=0.5):
        super().__init__()
        self.layer, self.p, self.raw = layer, p, layer.weight_hh_l0
        del layer._parameters["weight_hh_l0"]
        layer.weight_hh_l0 = self.raw.detach().clone()

    def forward(self, x):
        self.layer.weight_hh_l0 = F.dropout(1 * self.raw, self.p, self.training)
        return self.layer(x)


COMPUTED = {
    "weight_norm, old": ("head", lambda model: nn.utils.weight_norm(model.head)),
    "weight_norm, old, recurrent": ("stack", lambda model: nn.utils.weight_norm(model.stack, "weight_hh_l0")),
    "weight_norm": ("head", lambda model: parametrizations.weight_norm(model.head)),
    "spectral_norm, old": ("head", lambda model: nn.utils.spectral_norm(model.head)),
    "spectral_norm": ("head", lambda model: parametrizations.spectral_norm(model.head)),
    "prune": ("head", lambda model: prune.l1_unstructured(model.head, "weight", 0.5)),
    "prune, recurrent": ("stack", lambda model: prune.l1_unstructured(model.stack, "weight_hh_l0", 0.5)),
    "WeightDrop": ("stack.layer", lambda model: setattr(model, "stack", WeightDrop(model.stack))),
}


def computed(how):
    model = model_of()
    COMPUTED[how][1](model)
    return model


@pytest.mark.filterwarnings("ignore:.*_norm.*:FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_a_computed_weight_trains_as_it_would_without_the_library(how):
    model, plain = computed(how), computed(how)  # what weight_norm makes cannot be copied
    study = attach(model, "dense", example=words())
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
        torch.manual_seed(1)
        for step in range(3):
            optimizer.zero_grad()
            each(words(seed=step)).square().sum().backward()
            optimizer.step()
            _ = study.after_step() if each is model else None
    mine = dict(model.named_parameters())
    assert max(error(mine[name], parameter) for name, parameter in plain.named_parameters()) <= 1e-12
    assert error(model.eval()(words()), plain.eval()(words())) <= 1e-12


@pytest.mark.filterwarnings("ignore:.*_norm.*:FutureWarning")
@pytest.mark.parametrize("how", COMPUTED)
def test_a_computed_weight_is_left_as_it_is_by_name(how):
    model = computed(how)
    study = attach(model, example=words())
    assert is_left(study, COMPUTED[how][0]) and "lower.weight_hh_l0" in study.weights
    train(model, study)
    thin(study)
    compacted(model)


class Attends(nn.Module):  # pytorch #78109, Baijiong-Lin/LoRA-Torch #3
    def __init__(self):
        super().__init__()
        self.words, self.stack = nn.Embedding(V, H), nn.LSTM(H, H, batch_first=True)
        self.front = nn.TransformerEncoderLayer(H, 2, 16, dropout=0.0, batch_first=True)
        self.attention, self.head = nn.MultiheadAttention(H, 2, batch_first=True), nn.Linear(H, 3)

    def forward(self, words):
        y, _ = self.stack(self.front(self.words(words)))
        return self.head(self.attention(y, y, y)[0].mean(1))


@pytest.mark.parametrize("method", ["sparse-vd-w", "sparse-vd-wgn"])
def test_attention_over_the_outputs_of_a_layer_is_left_as_it_is(method):
    model = model_of(Attends)
    before = model(words())
    study = attach(model, method, example=words(), batch_dim=0)  # no recurrent layer reads the words
    assert is_left(study, "attention.out_proj") and is_left(study, "front.self_attn.out_proj")
    train(model, study)
    assert model.attention.out_proj.weight.grad.any()
    thin(study)
    small, other = compacted(model), words(4, 9, 3)
    assert error(before, model(words())) > 1e-3
    with torch.no_grad():  # where torch takes a way of its own, which reads weights of layers that it does not call
        fast = model(other)
    assert error(fast, model(other)) <= 1e-12 and error(small(other), fast) <= 1e-12


class Tied(Reader):
    """Answers with words: tied by reading the weight, or by being the same parameter."""

    def __init__(self, shared):
        super().__init__()
        self.back, self.head, self.shared = nn.Linear(H, E), nn.Linear(E, V, bias=False), shared
        if shared:
            self.head.weight = self.words.weight
        else:
            del self.head

    def forward(self, words):
        y = self.back(self.encode(words))
        return self.head(y) if self.shared else F.linear(y, self.words.weight)


def test_an_embedding_that_is_also_read_by_f_linear_is_left_as_it_is():  # transformers #16283, LLM-Pruner #55
    model = model_of(Tied, shared=False)
    study = attach(model, "sparse-vd-wgn", example=words())
    assert is_left(study, "words", "outside|read") and "back.weight" in study.weights
    assert torch.equal(model.words(words()), model.words.weight[words()])
    train(model, study)
    thin(study)
    compacted(model)


def test_two_layers_that_share_a_parameter_share_its_noise_and_are_charged_once():
    model = model_of(Tied, shared=True)
    alone = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    study = attach(model, log_sigma=-1.0, example=words())
    assert sum(item.theta is model.words.weight for item in study.weights.values()) == 1
    assert sum(p.numel() for p in study.parameters()) == alone
    drawn = model.words(torch.arange(V)[None])[0]
    assert error(model.head(torch.eye(E).double()).T, drawn) <= 1e-12 and error(drawn, model.words.weight) > 0.1
    train(model, study)
    thin(study)
    assert error(model.eval().head(torch.eye(E).double()).T, model.words(torch.arange(V)[None])[0]) <= 1e-12
    small = compacted(model)
    assert small.head.weight is small.words.weight


def test_a_layer_under_two_names_is_one_layer():
    model = model_of()
    model.alias = model.stack
    study = attach(model, example=words())
    assert len({id(item.theta) for item in study.weights.values()}) == len(study.weights)
    assert model.alias is model.stack


@pytest.mark.parametrize("method", ["dense", "sparse-vd-w"])
def test_a_weight_handed_in_by_functional_call_is_the_one_that_is_read(method):
    model, other, x = model_of(), {"head.weight": randn(3, H, seed=7)}, words()
    expected = functional_call(model, other, x)
    attach(model, method, **silent(method))
    for mode in (True, False):
        assert error(functional_call(model.train(mode), other, x), expected) <= 1e-12


class Letters(nn.Module):
    """A word is what a GRU reads in its letters [B, W, C]."""

    def __init__(self):
        super().__init__()
        self.chars, self.spell = nn.Embedding(V, E), nn.GRU(E, E, batch_first=True)
        self.stack, self.head = nn.LSTM(E, H, batch_first=True), nn.Linear(H, 3)

    def forward(self, letters):
        b, w, c = letters.shape
        _, h = self.spell(self.chars(letters).view(b * w, c, -1))
        return self.head(self.stack(h[0].view(b, w, -1))[0])


def test_letters_looked_up_in_three_dimensions_keep_what_their_variable_says():  # jarfo/kchar #14, NCRFpp #21
    model, x = model_of(Letters), words(2, 12).view(2, 3, 4)
    study = attach(model, "sparse-vd-w-voc", example=x)
    model(x).square().sum().backward()
    variable = study.groups.get("chars.vocabulary")
    assert variable is None or variable.theta.grad[x.unique()].ne(0).all()
    thin(study)  # letters 1, 4, 7 … go; the example has none of them
    compacted(model, x % 3 * 3, words(4, 15, 3).view(4, 3, 5))


# ---- which layers are left alone                          pytorch/translate #174, microsoft/nni #3811, Torch-Pruning #341


@pytest.mark.parametrize("method", ["sparse-vd-w", "sparse-vd-w-voc"])
def test_frozen_vectors_are_neither_noisy_nor_charged_nor_masked(method):
    model = with_layer("words", lambda: nn.Embedding.from_pretrained(torch.randn(V, E), freeze=True))
    vectors = model.words.weight.detach().clone()
    study = attach(model, method, example=words())
    assert is_left(study, "words", "frozen") and torch.equal(model.words(words()), vectors[words()])
    handed = [p for group in study.parameter_groups(lr=0.1) for p in group["params"]]
    assert all(p is not model.words.weight for p in handed)
    train(model, study, 4)
    thin(study)
    assert torch.equal(model.words.weight, vectors)
    assert torch.equal(model.eval().words(words()), vectors[words()])
    compacted(model)


def test_one_frozen_matrix_of_a_layer_stays_out_and_the_others_do_not():
    model = model_of()
    model.stack.weight_ih_l0.requires_grad_(False)
    before = model.stack.weight_ih_l0.clone()
    study = attach(model)
    assert "stack.weight_ih_l0" not in study.weights and "stack.weight_hh_l0" in study.weights
    train(model, study)
    assert torch.equal(model.stack.weight_ih_l0, before)
    thin(study)
    compacted(model)


def test_layers_frozen_and_thawed_during_training_have_noise_only_while_they_learn():
    model, x = model_of(), torch.eye(H).double()
    study = attach(model, log_sigma=-1.0)
    plain, before = F.linear(x, model.head.weight, model.head.bias), study.penalty().item()
    for learns in (True, False, True):
        model.head.requires_grad_(learns)
        assert (error(model.head(x), plain) > 0.01) == learns and torch.equal(model.head(x), plain) != learns
        assert (study.penalty().item() == pytest.approx(before)) == learns


@pytest.mark.parametrize("by", ["name", "module"])
def test_skip_and_only_say_which_layers_a_method_is_for(by):
    kept, others = {"lower", "stack"}, {"words", "head"}
    for argument, names in (("only", kept), ("skip", others)):
        model = model_of()
        chosen = sorted(names) if by == "name" else [model.get_submodule(name) for name in sorted(names)]
        study = attach(model, "sparse-vd-wgn", **{argument: chosen})
        assert {name.split(".")[0] for name in (*study.weights, *study.groups)} == kept
        assert all(is_left(study, name) for name in others) and {*study.left} == others
        assert torch.equal(model.words(words()), model.words.weight[words()])
        train(model, study)
        thin(study)
        compacted(model)


@pytest.mark.parametrize("argument", ["only", "skip"])
def test_a_layer_that_is_not_there_is_refused_with_the_nearest(argument):
    model = model_of()
    with pytest.raises(ValueError, match="'stakc'.*did you mean 'stack'"):
        attach(model, **{argument: ["stakc"]})
    with pytest.raises(ValueError):
        attach(model, **{argument: [nn.Linear(2, 2)]})
    assert is_plain(model)


class Spare(Reader):
    """A second answer that nobody asks for yet, and a weight that is only read."""

    def __init__(self):
        super().__init__()
        self.second, self.read = nn.Linear(H, 2), nn.Linear(H, H)

    def forward(self, words):
        return self.head(F.linear(self.encode(words), self.read.weight, self.read.bias))


def test_layers_that_the_example_does_not_call_are_left_as_they_are():
    model = model_of(Spare)
    study = attach(model, example=words())
    assert is_left(study, "second", "called") and is_left(study, "read")
    train(model, study)
    thin(study)
    compacted(model)


def test_without_an_example_the_first_step_names_the_layers_that_were_not_called():
    model = model_of(Spare)
    study = attach(model)
    model(words()).sum().backward()
    with pytest.raises((RuntimeError, ValueError), match="(?s)(?=.*second)(?=.*read)(?=.*skip=)(?=.*example=)"):
        study.after_step()
    study.detach()
    study = attach(model, skip=["second", "read"])
    train(model, study)


class Normed(Reader):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, words):
        return self.norm(F.dropout(super().forward(words), 0.5, self.training))


@pytest.mark.parametrize("example", [words(), (words(),), {"words": words()}], ids=["tensor", "tuple", "dict"])
def test_looking_at_an_example_leaves_no_trace(example):
    model = model_of(Normed)
    model.stack.eval()  # a part that somebody put at rest
    buffers, modes = copy.deepcopy(dict(model.norm.named_buffers())), {m: m.training for m in model.modules()}
    before = torch.get_rng_state()
    attach(model, "dense", example=example)
    assert torch.equal(torch.get_rng_state(), before) and all(m.training == mode for m, mode in modes.items())
    assert all(torch.equal(b, buffers[name]) for name, b in model.norm.named_buffers())
    assert all(p.grad is None for p in model.parameters())


# ---- what attach is told                                                nteract/papermill #245, #667, #630, #537

SAID = [("kl_wieght", 1.0, "kl_weight"), ("kl_fit", "molchanow", "molchanov"), ("finetune", 0.3, "fine_tune")]
WRONG = [
    ("kl_weight", "2"), ("kl_weight", True), ("threshold", [3.0]), ("kl_fit", 3), ("log_sigma", "-3"), ("steps", 3.5),
    ("steps", "10"), ("n_examples", "10"), ("n_examples", True),
]  # fmt: skip
NAN, INF = float("nan"), float("inf")
OUTSIDE = [
    *(("sparse-vd-w", "kl_weight", value) for value in (-1.0, NAN, INF)),
    *(("sparse-vd-w", "fine_tune", value) for value in (-0.1, 1.5, NAN)),
    *(("sparse-vd-w", "log_sigma", value) for value in (NAN, -INF)),
    *(("sparse-vd-w", "lr_log_sigma", value) for value in (-1.0, INF)),
    *(("sparse-vd-w", name, NAN) for name in ("threshold", "kl_start")),
    *(("binary-dropout", "dropout", value) for value in (-0.1, 1.0, NAN)),
    *(("dense", "n_examples", value) for value in (0, -5)),
    *(("dense", "steps", value) for value in (0, -3)),
]
OF_THE_LOOP = {"clip": 1.0, "weight_decay": 0.1, "lr_end": 0.1, "word_dropout": 0.1, "batch_size": 4, "epochs": 3}


@pytest.mark.parametrize(("name", "value", "right"), SAID)
def test_a_misspelt_option_is_refused_with_the_nearest(name, value, right):
    model = model_of()
    with pytest.raises(ValueError, match=f"did you mean '{right}'"):
        attach(model, **{name: value})
    assert is_plain(model)


def test_a_misspelt_method_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sparse-vd-w"):
        attach(model := model_of(), "sparse-vdw")
    assert is_plain(model)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_option_of_a_wrong_type_is_refused_by_name(name, value):
    model = model_of()
    with pytest.raises(TypeError, match=name):
        attach(model, **{name: value})
    assert is_plain(model)


@pytest.mark.parametrize(("method", "name", "value"), OUTSIDE)
def test_a_number_outside_its_range_is_refused_by_name(method, name, value):
    model = model_of()
    with pytest.raises(ValueError, match=name):
        attach(model, method, **{name: value})
    assert is_plain(model)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [("dense", "kl_weight", 1.0), ("binary-dropout", "log_sigma", -3.0), ("sparse-vd-w", "dropout", 0.5)],
)
def test_an_option_of_another_method_is_refused_with_the_method_s_name(method, name, value):
    model = model_of()
    with pytest.raises(ValueError, match=f"(?s)(?=.*{method})(?=.*{name})"):
        attach(model, method, **{name: value})
    assert is_plain(model)


@pytest.mark.parametrize("name", OF_THE_LOOP)
@pytest.mark.parametrize("method", ["dense", "sparse-vd-w"])
def test_what_is_the_training_loop_s_own_is_refused_by_name(method, name):
    model = model_of()
    with pytest.raises(ValueError, match=name):
        attach(model, method, **{name: OF_THE_LOOP[name]})
    assert is_plain(model)


@pytest.mark.parametrize("method", ["binary-dropout", "sparse-vd-w-binary"])
def test_dropout_that_would_drop_nothing_is_asked_how_much(method):
    model = model_of()
    with pytest.raises(ValueError, match=f"{method} needs to be told dropout: share of input and hidden neurons"):
        attach(model, method)
    assert is_plain(model)
    attach(model, method, dropout=0.5)


@pytest.mark.parametrize("method", ["sparse-vd-w", "sparse-vd-wgn"])
def test_cutting_out_of_the_training_what_is_pruned_is_refused_where_the_loop_would_not(method):
    model = model_of()
    with pytest.raises(ValueError, match="sleep_above .* leave it at 0"):
        attach(model, method, sleep_above=4.0)
    assert is_plain(model)


def test_a_whole_number_will_do_for_a_rate_and_what_was_refused_can_be_said_again():
    model = model_of()
    with pytest.raises(ValueError, match="kl_weight"):
        attach(model, kl_weight=-1.0)
    study = attach(model, kl_weight=2)
    twice = study.penalty().item()
    study.detach()
    assert twice == pytest.approx(2 * attach(model, kl_weight=1.0).penalty().item())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(2, E), (2, 3), (2, 7, E)], ids=str)
def test_whole_numbers_where_an_embedding_was_forgotten_are_refused_as_torch_does(shape, cell):
    """A layer of the library's own takes ids as one-hot input; a user's, under a method or small, must not."""

    class Numbers(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.stack, self.head = kind(E, H, batch_first=True), nn.Linear(H, 3)

        def forward(self, x):
            return self.head(self.stack(x)[0])

    model, given = Numbers(cell).double(), torch.ones(shape).long()
    refused = pytest.raises(
        ValueError, match=r"RNN input dtype \(torch.int64\) does not match weight dtype \(torch.float64\)"
    )
    with refused:
        model(given)
    study = attach(model)
    for training in (True, False):
        with refused:
            model.train(training)(given)
    small, _ = sparsernn.compact(thin(study).model, randn(2, 7, E))
    with refused, torch.no_grad():
        small(given)
    study.detach()
    with refused:
        model(given)
    ours = Numbers(getattr(layers, cell.__name__)).double().eval()
    thin(attach(ours))
    for each in (ours, sparsernn.compact(ours, randn(2, 7, E))[0]):
        if len(shape) == 2:
            assert error(each(given), each(F.one_hot(given, E).double())) <= 1e-12
        else:
            with pytest.raises(ValueError, match="token ids have shape .*, expected"):
                each(given)


def test_numbers_of_numpy_will_do_where_python_s_do():
    model = model_of()
    study = attach(
        model, steps=np.int64(100), n_examples=np.int32(50), kl_weight=np.float32(2), fine_tune=np.float64(0.5)
    )
    method = study.method
    assert [type(n) for n in (method.steps, method.n_examples, method.options.kl_weight)] == [int, int, float]
    assert method.steps == 100 and method.options.fine_tune == 0.5
    for wrong in (True, np.bool_(True), np.float64(100)):
        with pytest.raises(TypeError, match="steps is .*expected int"):
            attach(model_of(), steps=wrong)


def test_what_is_refused_after_a_look_at_the_layers_leaves_the_model_as_it_was():
    model = model_of()
    model.words = nn.Embedding(V, E, sparse=True).double()
    names = list(model.state_dict())
    for options in ({}, {"skip": ["words"], "kl_start": 10.0, "kl_full": 20.0}):
        with pytest.raises(ValueError, match="sparse=True|would begin"):
            attach(model, **options)
        assert is_plain(model) and list(model.state_dict()) == names
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no layer is left for the method to touch.*frozen"):
        attach(model)
    assert is_plain(model) and list(model.state_dict()) == names


def test_an_optimiser_that_never_got_what_the_method_learns_is_noticed():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # made before: it knows nothing of log σ
    study = attach(model, steps=100)
    with pytest.raises(ValueError, match="after 20 steps nothing that the method learns has moved: .*parameter_groups"):
        for step in range(40):
            optimizer.zero_grad()
            (model(words(seed=step)).square().mean() + study.penalty()).backward()
            optimizer.step()
            study.after_step()
    assert study.step == 20


def test_a_projected_layer_may_be_left_out_and_is_else_refused():
    class Projected(Reader):
        def __init__(self):
            super().__init__()
            self.side = nn.LSTM(E, 5, proj_size=3, batch_first=True)

        def forward(self, words):
            return super().forward(words) + self.side(self.words(words))[0].mean(1)

    model = model_of(Projected)
    with pytest.raises(ValueError, match=r"side: proj_size is 3; projections are not supported.* or skip=\['side'\]"):
        attach(model)
    assert is_plain(model)
    study = attach(model, skip=["side"], example=words())
    assert is_left(study, "side") and "stack.weight_hh_l0" in study.weights
    train(model, study)
    thin(study)
    compacted(model)


def test_what_readme_and_cards_name_is_there_after_import_sparsernn_alone():
    """A part of a package is not there before somebody imports it; `sparsernn.tasks.load` in a fresh session failed for that."""
    said = "import sparsernn; print(sparsernn.sparsify.names()[0], len(sparsernn.tasks.names()) > 5, "
    said += "len(sparsernn.sparsify.blocks.RECIPES) > 1, sparsernn.sparsify.block_shapes.__name__)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dense", "True", "True", "sparsernn.sparsify.block_shapes"]


class WithAGru(nn.Module):
    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.words, self.stack, self.head = nn.Embedding(11, 6), kind(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.stack(self.words(words))[0].mean(1))


@pytest.mark.parametrize("method, options", [("one-shot", {}), ("hard", {}), ("gradual", {"density": 0.3})])
@pytest.mark.parametrize("given, kind, said", [
    (lambda good: WithAGru(), TypeError, r"reference is a model, a WithAGru; .*give its state_dict\(\)"),
    (lambda good: "best.pt", TypeError, "reference is a path, 'best.pt'; .*what torch.load makes of it"),
    (lambda good: [*good.values()], TypeError, "reference is of type list; it has to be the state_dict"),
    (lambda good: {"model": good, "step": 3}, ValueError, r"no words.weight; it stands in reference\['model'\]: give that"),
    (
        lambda good: {f"module.{name}": value for name, value in good.items()}, ValueError,
        "no words.weight; it has module.words.weight: give the state_dict of what is module there",
    ),
    (lambda good: {"nonsense": 1}, ValueError, "reference has no words.weight but nonsense"),
    (lambda good: WithAGru(nn.LSTM).state_dict(), ValueError, r"stack.weight_ih_l0 is \[32, 6\] in reference, \[24, 6\] in the"),
])  # fmt: skip
def test_a_finished_run_given_in_another_way_is_asked_for_in_words(given, kind, said, method, options):
    model = WithAGru()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(kind, match=said):
        attach(model, method, reference=given(WithAGru().state_dict()), **options)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_finished_run_that_the_method_would_not_read_is_refused():
    for method, options in (("blocks", {"density": 0.5}), ("gradual", {"density": 0.3, "schedule": "cubic"})):
        with pytest.raises(ValueError, match="these options, starts from no finished run .*: leave reference= out"):
            attach(WithAGru(), method, reference={"nonsense": 1}, **options)


def test_a_density_alone_is_told_of_the_schedule_that_goes_by_it():
    with pytest.raises(
        ValueError, match="give attach reference=, .* or schedule='cubic', which goes by density alone$"
    ):
        attach(WithAGru(), "gradual", density=0.1)
    readme = (project_root() / "README.md").read_text()
    said = re.search(r'# or ("gradual", density=[^…]*), …', readme)[1]
    study = eval(f"attach(WithAGru(), {said}, steps=2000)", {"attach": attach, "WithAGru": WithAGru})
    assert study.method.options.density == 0.1


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_of_a_gru_says_so_to_an_lstm(recipe):
    with pytest.raises(ValueError, match="3 numbers, as a GRU has gates .*RECIPES.*has gates i, f, g, o: give 4"):
        attach(WithAGru(nn.LSTM), "blocks", steps=100_000, **RECIPES[recipe])
