"""Binary masks are drawn once a sequence, scale what is kept, and are gone in evaluation."""

import pytest
import torch
from oracles import Tagger, error, randomise, step_loop
from torch import nn

from sparsernn import sparsify
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.own import attach, compact
from sparsernn.study.presets import Plan
from sparsernn.tasks.base import Batch

V, B = 9, 50
MODELS = {
    "classifier": lambda: Classifier(V, 3, embedding=6, hidden=5),
    "classifier, 2 layers": lambda: Classifier(V, 3, embedding=6, hidden=5, layers=2),
    "language model": lambda: LanguageModel(V, hidden=5),
    "bidirectional": lambda: Tagger(V, 3, hidden=5),
}
BINARY = ["binary-dropout", "sparse-vd-w-binary"]
every_model = pytest.mark.parametrize("name", MODELS)
binary = pytest.mark.parametrize("method", BINARY)


def prepared(name, method, **plan):
    model = randomise(MODELS[name](), 0)
    made = sparsify.make(method)
    made.prepare(model, Plan(**({"epochs": 4, "batch_size": B} | plan)), n_examples=100, steps_per_epoch=10)
    return model, made


def batch():
    tokens = torch.randint(V, (7, B), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, torch.zeros(B, dtype=torch.int64), torch.full((B,), 7))


@every_model
@binary
def test_a_mask_is_zero_or_the_inverse_of_what_is_kept(name, method):
    _, made = prepared(name, method, dropout=0.2)
    torch.manual_seed(0)
    scales = made.sample(batch()).scales
    assert scales
    for mask in scales.values():
        assert mask.shape[0] == B and set(mask.unique().tolist()) <= {0.0, 1 / 0.8}
    share = torch.cat([mask.flatten() for mask in scales.values()]).mean()
    assert abs(share - 1) < 0.1


@every_model
@binary
def test_what_is_read_back_and_what_is_handed_on_are_masked_apart(name, method):
    _, made = prepared(name, method, dropout=0.5)
    scales = made.sample(batch()).scales
    for key, mask in scales.items():
        if "recurrent" in key:
            assert not torch.equal(mask, scales[key.replace("recurrent", "output")])


@binary
def test_the_layer_computes_the_masked_formulas(method):
    model, made = prepared("classifier", method, dropout=0.4)
    draw = made.sample(batch())
    logits, _ = draw.run(model, torch.full((B,), 7))
    p = {n: q for n, q in model.named_parameters()} | draw.weights
    cells = {n.removeprefix("lstm."): q for n, q in p.items() if n.startswith("lstm.")}
    own = {n.removeprefix("lstm."): s for n, s in draw.scales.items() if n.startswith("lstm.")}
    y, _ = step_loop(model.lstm, cells, p["embedding.weight"][draw.tokens], scales=own)
    expected = y[-1] @ p["head.weight"].T + p["head.bias"]
    if "head" in draw.noise:
        variance, epsilon = draw.noise["head"]
        expected = expected + epsilon * torch.sqrt((y[-1] ** 2) @ variance.T + 1e-8)
    assert error(logits, expected) <= 1e-12


@binary
def test_without_dropout_there_is_no_mask(method):
    assert prepared("classifier", method)[1].sample(batch()).scales == {}


@binary
def test_evaluation_has_no_mask(method):
    assert prepared("classifier", method, dropout=0.5)[1].means() == {}


def test_masks_stay_while_what_is_kept_is_trained_on():
    model, made = prepared("classifier", "sparse-vd-w-binary", dropout=0.5, fine_tune=0.5)
    made.after_step(10**6)
    draw = made.sample(batch())
    assert made.fixed and draw.scales and not draw.noise
    assert torch.equal(
        draw.weights["lstm.weight_hh_l0"], model.lstm.weight_hh_l0 * made.masks().weights["lstm.weight_hh_l0"]
    )


def test_weight_decay_is_half_the_sum_of_squares():
    model, made = prepared("classifier", "binary-dropout", weight_decay=0.3)
    squares = sum((w * w).sum() for name, w in model.named_parameters() if w.dim() == 2)
    assert float((made.penalty(0) - 0.15 * squares).detach()) == pytest.approx(0, abs=1e-12)
    assert prepared("classifier", "binary-dropout")[1].penalty(0) == 0


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
    study = attach(model, method, steps=10, n_examples=10, dropout=0.5, log_sigma=-60.0)
    assert not torch.equal(model(x), model(x))
    (model(x).sum() + study.penalty()).backward()
    small, proof = compact(model, example=x)
    assert proof.error <= 1e-12 and error(small(x), model.eval()(x)) <= 1e-12
