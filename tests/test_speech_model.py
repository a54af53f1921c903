"""The speech recogniser: called with features, sized by its task, pruned by every method, and really smaller afterwards."""

import copy

import pytest
import tones
import torch
from oracles import error, randn, random_masks, random_means
from torch import nn

import sparsernn
from sparsernn import sparsify
from sparsernn.engines import engine_class
from sparsernn.engines.base import Unsupported
from sparsernn.engines.models import layers_of
from sparsernn.engines.whole import by_engine
from sparsernn.nets.compact import compact
from sparsernn.nets.file import load, save, size_floor
from sparsernn.nets.masked import masked
from sparsernn.nets.masks import close, closed_count
from sparsernn.nets.speech import SpeechModel
from sparsernn.sparsify.pruned import kept_axes

KINDS = {
    "RNN": {},
    "GRU": {"cell": "GRU", "activation": "logistic", "bidirectional": False, "window": 3},
    "LSTM": {"cell": "LSTM", "activation": "logistic", "bidirectional": False},
    "GRU, both": {"cell": "GRU", "activation": "hard"},
}


def drawn(kind, hidden=8, layers=2, seed=0, **more):
    """A model in evaluation, float64, nothing about it zero or one by its start."""
    model = SpeechModel(tones.FEATURES, tones.CLASSES, hidden, layers, channels=3, **KINDS[kind] | more).double().eval()
    with torch.no_grad():
        for i, (name, value) in enumerate(model.state_dict().items()):
            if value.is_floating_point():
                value.copy_(0.5 * randn(*value.shape, seed=100 * seed + i))
                if "norm" in name and name.endswith(("weight", "running_var")):
                    value.abs_().add_(0.5)
    return model.requires_grad_(False)


class Undeclared(nn.Module):
    """The same without a word about who reads whom."""

    def __init__(self, model):
        super().__init__()
        self.stride, self.rnn, self.head = model.stride, model.recurrent, model.head
        self.convolution, self.row_convolution = model.convolution, model.row_convolution
        self.add_module(model.stack, self.rnn)

    forward = SpeechModel.forward

    @property
    def recurrent(self):
        return self.rnn


@pytest.mark.parametrize("kind", KINDS)
def test_logits_stand_every_second_frame_and_know_nothing_of_the_padding(kind):
    model, (features, lengths, _) = drawn(kind), tones.batch(4, dtype=torch.float64)
    logits, _ = model(features, lengths)
    assert logits.shape == (-(-len(features) // 2), 4, tones.CLASSES)
    padding = (torch.arange(len(features))[:, None] >= lengths)[:, :, None]
    for changed in (features.masked_fill(padding, 1e6), features.masked_fill(padding, -3)):
        again, _ = model(changed, lengths)
        for b, steps in enumerate((-(-lengths // 2)).tolist()):
            assert torch.equal(again[:steps, b], logits[:steps, b])
    for b, length in enumerate(lengths.tolist()):  # alone, with nothing behind it
        alone, _ = model(features[:length, b : b + 1])
        assert error(alone[:, 0], logits[: -(-length // 2), b]) <= 1e-12


def test_the_row_convolution_weighs_the_next_steps_neuron_by_neuron():
    model = drawn("GRU")
    y, weight = randn(5, 3, 8), model.row_convolution.weight[:, 0]
    expected = torch.zeros(5, 3, 8).double()
    for t in range(5):
        for j in range(min(3, 5 - t)):
            expected[t] += weight[:, j] * y[t + j]
    assert error(model.row_convolution(y), expected) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [{}, {"input": 0.6, "hidden_l0": 0.7, "hidden_l1": 0.6}, "all"])
def test_small_equals_masked_and_its_file_is_near_the_floor(kind, groups, tmp_path):
    model, (features, lengths, _) = drawn(kind, hidden=48), tones.batch(3, dtype=torch.float64)
    if groups == "all":
        groups = {axis.name: 0.6 for axis in model.axes()}
    masks = random_masks(model, seed=1, density=0.2, groups=groups)
    means = {name: mean for name, mean in random_means(masks).items() if name in groups}
    masks.groups.update({name: g | (torch.arange(len(g)) == 0) for name, g in masks.groups.items()})
    small, reference = compact(model, masks, means), masked(model, masks, means)
    expected, _ = reference(features, lengths)
    assert error(small(features, lengths)[0], expected) <= 1e-9
    assert error(small(features[:9])[0], reference(features[:9])[0]) <= 1e-9
    assert not any("norm" in name for name, _ in small.named_modules())
    small = small.float()
    size = save(small, tmp_path / "small")
    assert size <= 1.3 * size_floor(small) + 4000
    loaded = load(tmp_path / "small")
    assert torch.equal(loaded(features.float(), lengths)[0], small(features.float(), lengths)[0])
    assert error(load(tmp_path / "small", model)(features.float(), lengths)[0], expected) <= 1e-5


def test_a_matrix_that_both_directions_read_is_stored_once():
    model = drawn("RNN", hidden=24)
    masks = random_masks(model, seed=1, density=0.3)
    small, kept = compact(model, masks), closed_count(close(masks)).weights_kept
    assert small.rnn.weight_ih_l0 is small.rnn.weight_ih_l0_reverse
    assert kept == sum(int((p != 0).sum()) for p in small.parameters() if p.dim() == 2)
    biases = sum(p.numel() for name, p in small.named_parameters() if p.dim() != 2 and "bias_hh" not in name)
    assert size_floor(small) == 6 * kept + 4 * biases


@pytest.mark.parametrize("kind", KINDS)
def test_a_neuron_goes_when_both_directions_go_and_the_layer_above_narrows(kind):
    model, x = drawn(kind, hidden=8), tones.batch(2, dtype=torch.float64)[0]
    gone = torch.arange(8) < 3
    masks = random_masks(model, seed=0, density=1.0)
    masks.groups["hidden_l0"] = ~gone
    small = compact(model, masks)
    assert small.recurrent.weight_hh_l0.shape[1] == 5 and small.recurrent.weight_ih_l1.shape[1] == 5
    assert error(small(x)[0], masked(model, masks)(x)[0]) <= 1e-12
    if model.recurrent.bidirectional:  # rows of one direction alone do not make a neuron go
        masks = random_masks(model, seed=0, density=1.0)
        masks.weights[f"{model.stack}.weight_hh_l0"][:] = False
        assert compact(model, masks).recurrent.weight_hh_l0.shape[1] == 8


@pytest.mark.parametrize("kind", KINDS)
def test_axes_that_are_declared_and_those_found_by_running_make_the_same(kind):
    model, (features, lengths, _) = drawn(kind, hidden=12), tones.batch(3, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.4)
                if "weight_hh" in name or name == "head.weight":  # nobody reads neurons 2 and 5
                    weight[:, [2, 5]] = 0
                if "weight_ih_l1" in name:
                    weight[:, [2, 5]] = 0
    expected, _ = model(features, lengths)
    declared, proof = sparsernn.compact(model, (features, lengths))
    found, found_proof = sparsernn.compact(Undeclared(model), (features, lengths))
    assert max(proof.error, found_proof.error) <= 1e-12
    for small in (declared, found):
        assert error(small(features, lengths)[0], expected) <= 1e-12
        assert small.recurrent.weight_hh_l0.shape[1] == 10
    tops = [small.recurrent.weight_hh_l1.shape[1] for small in (declared, found)]
    assert tops == ([10, 12] if kind == "GRU" else [10, 10])  # running it shows no one who reads through a convolution
    assert kind == "GRU" or proof.weights_after == found_proof.weights_after


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_layers_are_given_keeps_its_width_while_they_are_trained(kind):
    model = drawn(kind, hidden=8, layers=1)  # neurons of one layer could be cut out, but for the statistics of its norm
    masks = random_masks(model, seed=0, density=0.3, groups={"input": 0.5, "hidden_l0": 0.5})
    assert kept_axes(masks) == {}


def test_a_window_ahead_is_refused_where_layers_see_all_that_follows():
    with pytest.raises(ValueError, match="window is 4"):
        SpeechModel(9, 4, 8, window=4)
    with pytest.raises(ValueError, match="a GRU has logistic or hard"):
        SpeechModel(9, 4, 8, cell="GRU")


# ---- engines


@pytest.mark.parametrize("name", ["compact-loop", "csr-torch", "numba", "numba-csr"])
@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("small", [True, False])
def test_engines_run_the_summed_and_normalised_layers(name, kind, small):
    model, (features, lengths, _) = drawn(kind, hidden=12), tones.batch(3)
    masks = random_masks(model, seed=1, density=0.4, groups={"hidden_l0": 0.7, "hidden_l1": 0.7})
    with torch.no_grad():
        model.recurrent.bias_ih_l0.add_(8.0)  # some neurons reach the ceiling
    net = compact(model, masks) if small else model
    expected, _ = net(features.double(), lengths)
    run = by_engine(net, name, (features, lengths))
    assert error(run(features, lengths)[0].double(), expected) <= 1e-5


def test_engines_that_do_not_clip_say_so():
    model = drawn("RNN")
    layer = layers_of(model.recurrent)["_l0_reverse"]
    assert layer.cell.activation == "clipped_relu"
    for name in ("dense-fp32", "compact-torch", "dense-bf16"):
        with pytest.raises(Unsupported, match="clipped_relu"):
            engine_class(name)(layer, "cpu")


# ---- methods

OPTIONS = {
    "gradual": {"q": 0.05, "prune_start": 2, "prune_every": 4}, "hard": {"density": 0.5, "prune_start": 2},
    "blocks": {"density": 0.5, "block": "4x1", "prune_start": 2, "prune_every": 4},
    "one-shot": {"density": 0.5}, "heads": {"heads": 4}, "l0": {"l0_weight": 1e-3, "lr_gates": 0.1, "fine_tune": 0.3},
    "iss": {"iss_weight": 0.03, "fine_tune": 0.3}, "binary-dropout": {"dropout": 0.1},
    "sparse-vd-w-binary": {"dropout": 0.1, "threshold": 0.5, "lr_log_sigma": 0.1, "kl_weight": 0.01, "fine_tune": 0.3},
}  # fmt: skip
BAYES = {"threshold": 0.0, "lr_log_sigma": 0.1, "log_sigma": -4.0, "kl_weight": 0.02, "fine_tune": 0.3}
STEPS, BATCH = 40, 16


def train(model, study=None):
    """Adam on fresh tones → the loss of the first and of the last step."""
    groups = model.parameters() if study is None else study.parameter_groups(1e-2)
    optimizer, losses = torch.optim.Adam(groups, lr=1e-2), []
    model.train()
    for step in range(STEPS):
        features, lengths, targets = tones.batch(BATCH, seed=step)
        losses.append(tones.loss(model(features, lengths)[0], lengths, targets, model.stride))
        optimizer.zero_grad()
        (losses[-1] + (study.penalty() if study else 0.0)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if study:
            study.after_step()
    return losses[0].item(), losses[-1].item()


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("method", [name for name in sparsify.names() if name not in ("linear", "few-words")])
def test_every_method_trains_it_and_makes_it_small(method, kind, tmp_path):
    torch.manual_seed(0)
    model = SpeechModel(tones.FEATURES, tones.CLASSES, 16, 2, channels=4, **KINDS[kind])
    more = OPTIONS.get(method, BAYES if method.startswith("sparse-vd") else {})
    if method == "one-shot":
        train(model)
        more = more | {"reference": copy.deepcopy(model.state_dict())}
    convolution = [name for name, p in model.named_parameters() if p.dim() > 2]
    example = tones.batch(BATCH)[:2]
    study = sparsernn.attach(model, method, steps=STEPS, n_examples=STEPS * BATCH, example=example, **more)
    assert not set(convolution) & set(study.weights)  # a convolution stays dense, and is trained
    first, last = train(model, study)
    assert last < 0.7 * first or method == "one-shot"
    example = (example[0].double(), example[1])
    model.double().eval()
    small, proof = sparsernn.compact(model, example)
    masks, means = study.masks(), study.means()
    features, lengths, targets = tones.batch(32, seed=10**6, dtype=torch.float64)
    expected = masked(model, masks, means)(features, lengths)[0]
    assert proof.error <= 1e-9 and error(small(features, lengths)[0], expected) <= 1e-9
    assert error(model(features, lengths)[0], expected) <= 1e-9
    said = tones.read(small(features, lengths)[0], lengths, model.stride)
    assert sum(a == b for a, b in zip(said, targets.tolist(), strict=True)) >= 16 or method in ("l0", "iss", "one-shot")
    assert all((p.dim() > 2) == (name in convolution) for name, p in small.named_parameters())
    save(small.float(), tmp_path / "small")
    assert error(load(tmp_path / "small")(features.float(), lengths)[0].double(), expected) <= 1e-4
