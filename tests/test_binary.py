"""Binary masks are drawn once a sequence, scale what is kept, and are gone in evaluation."""

import pytest
import torch
from oracles import Tagger, error, logits_by_hand, masked_by_hand, randomise
from torch import nn

from sparsernn import attach, compact, sparsify
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.sparsify.attach import put_on

V, B = 9, 50
TOKENS = torch.randint(V, (7, B), generator=torch.Generator().manual_seed(0))  # every word occurs
LENGTHS = torch.full((B,), 7)
MODELS = {
    "classifier": lambda: Classifier(V, 3, embedding=6, hidden=5),
    "classifier, 2 layers": lambda: Classifier(V, 3, embedding=6, hidden=5, layers=2),
    "language model": lambda: LanguageModel(V, hidden=5),
    "bidirectional": lambda: Tagger(V, 3, hidden=5),
}
BINARY = ["binary-dropout", "sparse-vd-w-binary"]
every_model = pytest.mark.parametrize("name", MODELS)
binary = pytest.mark.parametrize("method", BINARY)


def prepared(name, method, **options):
    model = randomise(MODELS[name](), 0).requires_grad_(True)
    made = sparsify.make(method, sparsify.options_of(method, options))
    return model, put_on(model, made, steps=40, steps_per_epoch=10, n_examples=100, batch_dim=1)


def drawn(model, study):
    """What the layers compute with in a pass (weights, scales, noise of linear layers; name → tensor), and the logits."""
    weights, scales, noise, axes = {}, {}, {}, study.method.axes
    over_words = {member.tensor for axis in axes if axis.kind == "vocabulary" for member in axis.having("in")}

    def look(*_):  # at the end of the pass, while its draws are held
        for name, item in study.weights.items():
            layer, _, own = name.rpartition(".")
            layer = model.get_submodule(layer)
            weights[name] = layer.used(own, layer.look_up(TOKENS)[0] if name in over_words else None)
            if item.local and (found := layer.carried.noise(own, B)) is not None:
                noise[name] = found
        for member in (member for axis in axes for member in axis.having("scale")):
            layer, _, own = member.tensor.rpartition(".")
            if (scale := model.get_submodule(layer).scale(own, B)) is not None:
                scales[member.tensor] = scale

    handle = model.register_forward_hook(look, prepend=True)
    logits, _ = model(TOKENS, lengths=LENGTHS)
    handle.remove()
    return weights, scales, noise, logits


@every_model
@binary
def test_a_mask_is_zero_or_the_inverse_of_what_is_kept(name, method):
    model, study = prepared(name, method, dropout=0.2)
    torch.manual_seed(0)
    _, scales, _, _ = drawn(model, study)
    assert scales
    for mask in scales.values():
        assert mask.shape[0] == B and set(mask.unique().tolist()) <= {0.0, 1 / 0.8}
    share = torch.cat([mask.flatten() for mask in scales.values()]).mean()
    assert abs(share - 1) < 0.1


@every_model
@binary
def test_what_is_read_back_and_what_is_handed_on_are_masked_apart(name, method):
    _, scales, _, _ = drawn(*prepared(name, method, dropout=0.5))
    assert any("recurrent" in key for key in scales)
    for key, mask in scales.items():
        if "recurrent" in key:
            assert not torch.equal(mask, scales[key.replace("recurrent", "output")])


@binary
def test_the_layer_computes_the_masked_formulas(method):
    model, study = prepared("classifier", method, dropout=0.4)
    weights, scales, noise, logits = drawn(model, study)
    expected, _, read = logits_by_hand(model, weights, scales, TOKENS, LENGTHS)
    assert set(noise) == ({"head.weight"} if method == "sparse-vd-w-binary" else set())
    for variance, epsilon in noise.values():
        expected = expected + epsilon * torch.sqrt((read**2) @ variance.T + 1e-8)
    assert error(logits, expected) <= 1e-12


@every_model
@binary
def test_without_dropout_there_is_no_mask(name, method):
    model, study = prepared(name, method)
    weights, scales, noise, logits = drawn(model, study)
    assert all((mask == 1).all() for mask in scales.values())
    expected, _, read = logits_by_hand(model, weights, {}, TOKENS, LENGTHS)
    for variance, epsilon in noise.values():
        expected = expected + epsilon * torch.sqrt((read**2) @ variance.T + 1e-8)
    assert error(logits, expected) <= 1e-12


@every_model
@binary
def test_evaluation_has_no_mask(name, method):
    model, study = prepared(name, method, dropout=0.5)
    assert study.means() == {}
    expected = masked_by_hand(model, study.masks(), {}, TOKENS, LENGTHS)[0]
    assert error(model.eval()(TOKENS, lengths=LENGTHS)[0], expected) <= 1e-12


def test_masks_stay_while_what_is_kept_is_trained_on():
    model, study = prepared("classifier", "sparse-vd-w-binary", dropout=0.5, fine_tune=0.5)
    model(TOKENS)
    for _ in range(21):  # half of its 40 steps, and the one after which it is decided
        study.after_step()
    (weights, scales, noise, _), (_, others, _, _) = drawn(model, study), drawn(model, study)
    assert study.method.fixed and scales and not noise
    for key, mask in scales.items():
        assert set(mask.unique().tolist()) == {0.0, 2.0} and not torch.equal(mask, others[key])
    assert torch.equal(
        weights["lstm.weight_hh_l0"], model.lstm.weight_hh_l0 * study.masks().weights["lstm.weight_hh_l0"]
    )


@binary
def test_a_model_of_ones_own_takes_binary_masks(method):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.head = nn.GRU(4, 6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.gru(x)[0][-1])

    torch.manual_seed(0)
    model, x = Mine().double(), torch.randn(5, 3, 4).double()
    noiseless = {"log_sigma": -60.0} if method == "sparse-vd-w-binary" else {}
    study = attach(model, method, steps=10, n_examples=10, dropout=0.5, **noiseless)
    assert not torch.equal(model(x), model(x))
    (model(x).sum() + study.penalty()).backward()
    small, proof = compact(model, example=x)
    assert proof.error <= 1e-12 and error(small(x), model.eval()(x)) <= 1e-12
