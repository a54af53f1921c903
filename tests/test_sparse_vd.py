"""Sparse variational dropout: what is drawn once and for whom (1812.05692, its code), what it costs, and what is kept."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import Tagger, error, logits_by_hand, masked_by_hand, randn, randomise
from scipy.integrate import quad
from scipy.special import dawsn, psi
from scipy.stats import poisson
from torch import nn
from torch.nn import functional as F

from sparsernn.nets.layers import Linear
from sparsernn.nets.masked import masked
from sparsernn.nets.models import Classifier, LanguageModel
from sparsernn.sparsify.attach import put_on
from sparsernn.sparsify.binary import BinarySparseVD, BinarySparseVDOptions
from sparsernn.sparsify.carried import Carried
from sparsernn.sparsify.kl import CHOICES, kl, kl_and_gradients, log_alpha, noisy, slope_by_series
from sparsernn.sparsify.pruned import narrowed, take_lines
from sparsernn.sparsify.sparse_vd import SparseVD, SparseVDOptions

V, N_EXAMPLES, EPOCHS, STEPS_PER_EPOCH = 9, 250, 4, 10
MODELS = {
    "classifier": lambda: Classifier(V, 2, embedding=4, hidden=5),
    "classifier, 2 layers": lambda: Classifier(V, 2, embedding=4, hidden=5, layers=2),
    "character model": lambda: LanguageModel(V, hidden=5),
    "word model": lambda: LanguageModel(V, hidden=5, word_noise=True),
    "bidirectional": lambda: Tagger(V, 2, hidden=3),
}
GROUPS = {
    "classifier": ("", "voc", "wn", "wgn"),
    "character model": ("", "voc", "wn", "wgn"),
    "bidirectional": ("", "wgn"),
}
CASES = [(name, g) for name in MODELS for g in GROUPS.get(name, ("", "wgn"))]
TOKENS = torch.tensor(
    [[2, 5, 2, 7], [5, 5, 5, 2], [2, 7, 2, 2], [2, 2, 2, 7]]
)  # sequences 0 and 2 are the same; 4 words of 9


def prepared(name, groups="", log_sigma=-1.0, log_sigma_groups=-1.0, model=None, **options):
    model = model or randomise(MODELS[name](), 1).requires_grad_(True)
    options = SparseVDOptions(log_sigma=log_sigma, log_sigma_groups=log_sigma_groups, **options)
    return model, studied(model, SparseVD(options, groups or ()))


def studied(model, method):
    steps = EPOCHS * STEPS_PER_EPOCH
    return put_on(
        model, method, steps=steps, steps_per_epoch=STEPS_PER_EPOCH, n_examples=N_EXAMPLES, batch_dim=1,
        needs_recurrent=False,
    )  # fmt: skip


def drawn(model, seed, tokens=TOKENS, lengths=None):
    """A pass with that seed → what the layers computed with, and the logits.

    weights, scales  name → tensor     noise  weight whose layer takes it on its output → (variance, ε)
    tokens           the ids as the drawn lines number them
    """
    draw, spied = SimpleNamespace(weights={}, scales={}, noise={}, tokens=tokens), {}
    for name, module in model.named_modules():
        if isinstance(module, Carried):
            spied[module] = _spies(draw, name.removesuffix("carried"), module)
            vars(module).update(spied[module])
    try:
        torch.manual_seed(seed)
        outputs = model(tokens, lengths=lengths)[0]
    finally:
        for module, spies in spied.items():
            for name in spies:
                del vars(module)[name]
    for name in draw.noise:
        assert torch.equal(draw.weights.pop(name), model.get_parameter(name))  # the mean, where noise is on the output
    return draw, outputs


def _spies(draw, prefix, carried):
    """The layer's questions to what it carries, noting the answers."""

    def noting(ask, answers):
        def asked(name, *more):
            if (answer := ask(name, *more)) is not None and not name.startswith("bias"):  # which no method here draws
                answers[prefix + name] = answer
            return answer

        return asked

    def look_up(ids):
        words, draw.tokens = Carried.look_up(carried, ids)
        return words, draw.tokens

    noted = {"weight": draw.weights, "scale": draw.scales, "noise": draw.noise}
    return {"look_up": look_up} | {name: noting(getattr(carried, name), answers) for name, answers in noted.items()}


def by_sequence(outputs):
    return outputs if outputs.dim() == 2 else outputs.transpose(0, 1)


def every_pair(study):
    """(θ, log σ) of every weight and group variable."""
    return [(item.theta, item.log_sigma) for item in (*study.weights.values(), *study.groups.values())]


def over_words(model):
    """What runs over words → along which dimension; of a scale's variables [V] along the first."""
    if hasattr(model, "embedding"):
        return {"embedding.weight": 0, "embedding.input": 0}
    ends = ["_l0", "_l0_reverse"] if model.lstm.bidirectional else ["_l0"]
    return {"lstm.weight_ih" + end: 1 for end in ends} | {"lstm.input" + end: 0 for end in ends}


def pair_of(model, study, key, tokens=TOKENS):
    """θ and log σ of a drawn weight or scale, of the words of `tokens` alone where it runs over words."""
    kind, _, suffix = key.rpartition(".")[2].partition("_")
    if kind == "weight":
        item = study.weights[key]
    elif kind == "input":
        item = study.groups["vocabulary" if key in over_words(model) else "input"]
    else:
        item = study.groups[f"{'gates' if kind == 'gates' else 'hidden'}_{suffix}"]
    pair = item.theta, item.log_sigma
    if key in over_words(model):
        pair = [p.index_select(over_words(model)[key], tokens.unique()) for p in pair]
    return pair


def by_plain_autograd(model, study, draw, tokens=TOKENS, lengths=None):
    """The logits with θ + σ ε for what was drawn, ε read off it; the model is the step loop."""

    def again(key, value):
        theta, log_sigma = pair_of(model, study, key, tokens)
        return theta + log_sigma.exp() * ((value - theta) / log_sigma.exp()).detach()

    weights = {name: p for name, p in model.named_parameters() if "bias" in name or name in draw.noise}
    weights |= {key: again(key, value) for key, value in draw.weights.items()}
    scales = {key: again(key, value) for key, value in draw.scales.items()}
    logits, _, read = logits_by_hand(model, weights, scales, draw.tokens, lengths)
    for name, (_, epsilon) in draw.noise.items():
        logits = logits + epsilon * torch.sqrt(read**2 @ torch.exp(2 * study.weights[name].log_sigma).T + 1e-8)
    return logits


# ---- weights: one sample for all time steps and all sequences


@pytest.mark.parametrize("name", MODELS)
def test_weight_noise_is_shared_by_all_sequences_of_a_batch(name):
    """The same sequence twice in a batch, no noise on the head's output: the same logits bit for bit."""
    model, _ = prepared(name)
    model.head.local_noise = False
    outputs = by_sequence(drawn(model, 0)[1])
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "groups"), CASES)
def test_the_output_is_that_of_one_set_of_weights_and_one_scale_a_sequence(name, groups, padded):
    """Rebuilt from the draw by the step loop: the weights at all steps, z of each sequence at all its steps, ε at the head."""
    model, study = prepared(name, groups)
    lengths = torch.tensor([4, 2, 4, 3]) if padded else None
    draw, outputs = drawn(model, 0, lengths=lengths)
    assert {*draw.weights, *draw.noise} == set(study.weights)
    expected, _, read = logits_by_hand(model, draw.weights, draw.scales, draw.tokens, lengths)
    if noise := draw.noise.get("head.weight"):
        # the authors: std = sqrt(h² σ² + 1e-8), the same noise of a sequence at all time steps
        variance = torch.exp(2 * study.weights["head.weight"].log_sigma)
        expected = expected + noise[1] * torch.sqrt(read**2 @ variance.T + 1e-8)
        assert noise[1].shape == (4, model.head.out_features)
    assert error(outputs, expected) <= 1e-12


def test_who_takes_its_noise_on_the_output():
    """Classifiers and character models: the last layer. The word model: nobody (the authors' BayesianDense_noLRT)."""
    found = {}
    for name in MODELS:
        draw, outputs = drawn(prepared(name)[0], 0)
        found[name] = set(draw.noise)
        same = torch.equal(by_sequence(outputs)[0], by_sequence(outputs)[2])  # one ε a sequence tells equal ones apart
        assert same == (not draw.noise)
    assert found == {
        "classifier": {"head.weight"},
        "classifier, 2 layers": {"head.weight"},
        "character model": {"head.weight"},
        "word model": set(),
        "bidirectional": set(),
    }


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_drawn_weights_are_theta_plus_sigma_times_standard_noise(name, groups):
    """Over 400 draws (w − θ)/σ has mean 0 and variance 1, every weight and group variable, within five standard errors."""
    model, study = prepared(name, groups)
    with torch.no_grad():
        for i, (_, log_sigma) in enumerate(every_pair(study)):
            log_sigma.copy_(-1 + 0.5 * randn(*log_sigma.shape, seed=i))
    samples = {}
    with torch.no_grad():
        for step in range(400):
            draw, _ = drawn(model, step)
            study.after_step()
            for key, value in (draw.weights | draw.scales).items():
                samples.setdefault(key, []).append(value)
    assert set(samples) >= set(study.weights) - set(draw.noise)
    for key, values in samples.items():
        theta, log_sigma = pair_of(model, study, key)
        standard = (torch.stack(values) - theta) / log_sigma.exp()
        count = standard.shape[0]
        rows = standard.reshape(count, -1)
        se = 1 / math.sqrt(count)
        assert rows.mean(0).abs().max() < 5 * se and (rows.var(0) - 1).abs().max() < 5 * math.sqrt(2) * se, key
        correlation = torch.corrcoef(rows.T) - torch.eye(rows.shape[1])  # every element its own noise
        assert correlation.abs().max() < 5.5 * se, key


def test_which_axes_take_group_variables():
    """1812.05692: classifiers open words with every letter; language models words for Voc only, else neurons and gates."""
    opened = {(name, g): sorted(prepared(name, g)[1].groups) for name, g in CASES}
    assert opened["classifier", ""] == opened["character model", ""] == []
    assert opened["classifier", "voc"] == opened["character model", "voc"] == ["vocabulary"]
    assert opened["classifier", "wn"] == ["hidden_l0", "input", "vocabulary"]
    assert opened["classifier", "wgn"] == ["gates_l0", "hidden_l0", "input", "vocabulary"]
    assert opened["character model", "wn"] == ["hidden_l0"]
    assert opened["character model", "wgn"] == opened["word model", "wgn"] == ["gates_l0", "hidden_l0"]
    assert opened["classifier, 2 layers", "wgn"] == [
        "gates_l0",
        "gates_l1",
        "hidden_l0",
        "hidden_l1",
        "input",
        "vocabulary",
    ]


def test_start_is_log_sigma_minus_three_and_group_means_one():
    model = MODELS["classifier"]()
    matrices = {n for n, p in model.named_parameters() if p.dim() == 2}
    study = studied(model, SparseVD(kinds="wgn"))
    assert all((log_sigma == -3).all() for _, log_sigma in every_pair(study))
    assert all((group.theta == 1).all() for group in study.groups.values())
    assert set(study.weights) == matrices


# ---- scales: one sample a sequence


@pytest.mark.parametrize("name", ["classifier", "character model", "bidirectional"])
def test_scale_noise_differs_between_sequences(name):
    """Weights without noise: two equal sequences of a batch still get different outputs, by their scales alone."""
    model, _ = prepared(name, "wgn", log_sigma=-40.0)
    model.head.local_noise = False
    draw, outputs = drawn(model, 0)
    assert error(by_sequence(outputs)[0], by_sequence(outputs)[2]) > 1e-3
    assert draw.scales
    for scale in draw.scales.values():
        assert scale.shape[0] == 4 and all((scale[a] != scale[b]).all() for a in range(4) for b in range(a))


def test_one_neuron_has_one_scale_wherever_it_is_read():
    draw, _ = drawn(prepared("classifier, 2 layers", "wgn")[0], 0)
    for layer in ("l0", "l1"):
        assert torch.equal(draw.scales[f"lstm.recurrent_{layer}"], draw.scales[f"lstm.output_{layer}"])
    assert "lstm.input_l1" not in draw.scales  # the output scale below is it


def test_the_same_word_in_a_sequence_gets_the_same_factor():
    model, _ = prepared("classifier", "voc")
    seen = []
    model.embedding.register_forward_hook(lambda module, given, out: seen.append(out))
    drawn(model, 0)
    (rows,) = seen  # [T, B, I]; sequence 0 is 2 5 2 2
    assert torch.equal(rows[0, 0], rows[2, 0]) and torch.equal(rows[0, 0], rows[3, 0])
    assert (rows[0, 0] != rows[0, 2]).all()  # the same word in another sequence: another factor
    ratio = rows[0, 0] / rows[0, 2]
    assert error(ratio, ratio[:1].expand(4)) <= 1e-12  # … and it is one factor for the whole row


# ---- how long a draw lasts: weights a step, scales and ε a pass


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_noise_is_the_same_within_a_step_differs_between_steps_and_a_seed_repeats_it(name, groups):
    model, study = prepared(name, groups)
    draw, first = drawn(model, 0)
    within, other = drawn(model, 1)
    assert all(torch.equal(w, within.weights[key]) for key, w in draw.weights.items())
    assert all((z != within.scales[key]).all() for key, z in draw.scales.items())
    assert all((e != within.noise[key][1]).all() for key, (_, e) in draw.noise.items())
    assert torch.equal(first, other) == (not draw.scales and not draw.noise)
    study.after_step()
    later, second = drawn(model, 1)
    assert all((w != later.weights[key]).all() for key, w in draw.weights.items()) and (first != second).any()
    study.after_step()
    again, third = drawn(model, 0)
    for one, two in ((draw.weights, again.weights), (draw.scales, again.scales)):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert all(torch.equal(e, again.noise[key][1]) for key, (_, e) in draw.noise.items()) and torch.equal(first, third)


def test_a_step_is_over_when_the_optimiser_has_moved():
    model, study = prepared("classifier")
    (draw, outputs), optimizer = drawn(model, 0), torch.optim.SGD(study.parameter_groups(1e-3), lr=0.0)
    outputs.sum().backward()
    assert all(torch.equal(w, drawn(model, 1)[0].weights[key]) for key, w in draw.weights.items())
    optimizer.step()
    assert all((w != drawn(model, 2)[0].weights[key]).all() for key, w in draw.weights.items())


@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize(("name", "groups"), CASES)
def test_micro_batches_of_a_step_share_one_draw_of_the_weights_and_their_gradients_add_up(name, groups, between):
    """A backward pass after each (`between`) or after both; the words of the second are partly those of the first."""
    model, study = prepared(name, groups)
    leaves = [p for pair in every_pair(study) for p in pair]
    leaves += [p for n, p in model.named_parameters() if "bias" in n]
    mine, theirs, draws = 0.0, 0.0, []
    for seed, tokens in enumerate((TOKENS, torch.tensor([[7, 3, 2], [8, 7, 7], [3, 3, 2]]))):
        draw, outputs = drawn(model, seed, tokens)
        projection = randn(*outputs.shape, seed=5 + seed)
        if between:
            (outputs * projection).sum().backward()
        else:
            mine = mine + (outputs * projection).sum()
        draws.append(draw)
        if seed:  # the drawn weight is one: where both calls have it, the first's
            for key, w in draw.weights.items():
                at = over_words(model).get(key)
                if at is None:
                    assert torch.equal(w, draws[0].weights[key])
                    draw.weights[key] = draws[0].weights[key]
        theirs = theirs + (by_plain_autograd(model, study, draw, tokens) * projection).sum()
    if not between:
        mine.backward()
    for leaf, wanted in zip(leaves, torch.autograd.grad(theirs, leaves), strict=True):
        assert error(leaf.grad, wanted) <= 1e-12


@pytest.mark.parametrize("between", [True, False])
@pytest.mark.parametrize(
    ("name", "tensor", "dim"), [("classifier", "embedding.weight", 0), ("character model", "lstm.weight_ih_l0", 1)]
)
def test_lines_of_words_drawn_in_several_calls_of_a_step_agree_on_common_words(name, tensor, dim, between):
    model, study = prepared(name)
    calls = TOKENS, torch.tensor([[7, 3], [8, 2]]), torch.tensor([[3, 3], [5, 3]])

    def lines(*seeds):
        """word → its line, of each call."""
        found = []
        for seed, tokens in zip(seeds, calls, strict=True):
            draw, outputs = drawn(model, seed, tokens)
            if between:
                outputs.sum().backward()
            drawn_lines = draw.weights[tensor].detach().movedim(dim, 0)
            found.append(dict(zip(tokens.unique().tolist(), drawn_lines, strict=True)))
        return found

    first, second, third = lines(0, 1, 2)
    assert (set(first), set(second), set(third)) == ({2, 5, 7}, {2, 3, 7, 8}, {3, 5})
    every = third | second | first
    assert all(torch.equal(line, every[word]) for call in (first, second, third) for word, line in call.items())
    theta, sigma = study.weights[tensor].theta.movedim(dim, 0), study.weights[tensor].log_sigma.exp().movedim(dim, 0)
    noise = torch.cat([(line - theta[word]) / sigma[word] for word, line in every.items()])
    assert len(noise.detach().unique()) == len(noise) and noise.abs().max() < 6  # every number its own
    study.after_step()
    assert all((line != every[word]).all() for call in lines(3, 4, 5) for word, line in call.items())


def test_factors_of_words_drawn_in_several_calls_of_a_pass_agree_on_common_words():
    model, study = prepared("classifier", "voc")
    calls = [torch.tensor(words) for words in ([2, 5, 7], [2, 3, 7, 8], [3, 5])]

    def factors():
        study.method.now = object()  # as one pass of the model
        found = [model.embedding.carried.scale("input", 4, words) for words in calls]
        return [dict(zip(words.tolist(), z.t(), strict=True)) for words, z in zip(calls, found, strict=True)]

    first, second, third = factors()
    every = third | second | first
    assert all(torch.equal(z, every[word]) for call in (first, second, third) for word, z in call.items())
    assert len(torch.cat(list(every.values())).unique()) == 4 * len(every)  # a sequence and word its own
    assert all((z != every[word]).all() for call in factors() for word, z in call.items())


# ---- evaluation


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_eval_is_deterministic_and_by_the_means(name, groups):
    model, study = prepared(name, groups)
    masks, means = study.masks(), study.means()
    by_hand = masked_by_hand(model, masks, means, TOKENS)[0]
    for one in (masked(model, masks, means), model.eval()):
        torch.manual_seed(0)
        first = one(TOKENS)[0]
        torch.manual_seed(1)
        assert torch.equal(first, one(TOKENS)[0])
        assert error(first, by_hand) <= 1e-12


# ---- only the words that occur


@pytest.mark.parametrize(
    ("name", "tensor", "dim"), [("classifier", "embedding.weight", 0), ("character model", "lstm.weight_ih_l0", 1)]
)
@pytest.mark.parametrize("groups", ["", "voc"])
def test_only_words_of_the_batch_are_drawn_and_the_others_feel_their_penalty_alone(name, tensor, dim, groups):
    model, study = prepared(name, groups)
    draw, outputs = drawn(model, 0)
    touched = torch.tensor([2, 5, 7])
    assert draw.weights[tensor].shape[dim] == len(touched)
    assert torch.equal(touched[draw.tokens], TOKENS)
    pairs = [(model.get_parameter(tensor), study.weights[tensor].log_sigma, dim)]
    if groups:
        scale = draw.scales["embedding.input" if dim == 0 else "lstm.input_l0"]
        assert scale.shape == (4, len(touched))
        pairs.append((study.groups["vocabulary"].theta, study.groups["vocabulary"].log_sigma, 0))
    rest = [word for word in range(V) if word not in touched]
    outputs.square().sum().backward(retain_graph=True)
    for theta, log_sigma, along in pairs:
        for parameter in (theta, log_sigma):
            assert (parameter.grad.movedim(along, 0)[rest] == 0).all()
            assert (parameter.grad.movedim(along, 0)[touched] != 0).all()
    study.penalty().backward()
    for theta, log_sigma, along in pairs:
        plain = plain_kl(t := theta.detach().requires_grad_(), s := log_sigma.detach().requires_grad_()) / N_EXAMPLES
        for parameter, wanted in zip((theta, log_sigma), torch.autograd.grad(plain, (t, s)), strict=True):
            assert error(parameter.grad.movedim(along, 0)[rest], wanted.movedim(along, 0)[rest]) <= 1e-12
            assert (wanted.movedim(along, 0)[rest] != 0).all()


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_gradients_through_a_draw_are_those_of_theta_plus_sigma_epsilon(name, groups):
    """All of it by plain autograd: ε is read off the draw, the model is the step loop."""
    model, study = prepared(name, groups)
    draw, outputs = drawn(model, 0)
    leaves = [p for pair in every_pair(study) for p in pair] + [p for n, p in model.named_parameters() if "bias" in n]
    projection = randn(*outputs.shape, seed=5)
    mine = torch.autograd.grad((outputs * projection).sum(), leaves)
    theirs = torch.autograd.grad((by_plain_autograd(model, study, draw) * projection).sum(), leaves)
    assert all(error(a, b) <= 1e-12 for a, b in zip(mine, theirs, strict=True))


# ---- the head's noise on its output


def noisy_layer():
    """A linear layer that takes its noise on the output, inside a model, and its σ."""
    model = nn.Sequential(Linear(4, 3)).double()
    model[0].local_noise = True
    study = studied(model, SparseVD())
    with torch.no_grad():
        study.weights["0.weight"].log_sigma.copy_(randn(3, 4, seed=2) - 1)
    return model, model[0], (randn(3, 4, seed=2) - 1).exp()


def test_local_noise_has_the_mean_and_variance_of_weight_noise():
    """W ~ N(θ, σ²) 100,000 times, against the same number of ε: both moments within five standard errors."""
    torch.manual_seed(0)
    n, x = 100_000, randn(1, 4, seed=1)
    model, layer, sigma = noisy_layer()
    with torch.no_grad():
        mean = F.linear(x, layer.weight, layer.bias)
        sums = mean + torch.einsum("noi,i->no", sigma * torch.randn(n, 3, 4).double(), x[0])
        local = model(x.expand(n, 4))
        exact = x**2 @ (sigma**2).T
    for sample in (sums, local):
        assert ((sample.mean(0) - mean).abs() < 5 * (exact / n).sqrt()).all()
        assert ((sample.var(0) - exact).abs() < 5 * exact * math.sqrt(2 / n)).all()


def test_local_noise_has_one_epsilon_a_sequence_for_all_steps():
    (model, layer, sigma), x, seen = noisy_layer(), randn(6, 2, 4), []
    ask = layer.carried.noise
    vars(layer.carried)["noise"] = lambda *of: seen.append(ask(*of)) or seen[-1]
    noise = (model(x) - F.linear(x, layer.weight, layer.bias)) / torch.sqrt(x**2 @ (sigma**2).T + 1e-8)
    ((variance, epsilon),) = seen
    assert epsilon.shape == (2, 3) and error(variance, sigma**2) <= 1e-12
    assert error(noise, epsilon.expand(6, 2, 3)) <= 1e-12


# ---- formulas and their gradients


@pytest.mark.parametrize("rows", [(), (5,)])
def test_noisy_is_theta_plus_sigma_epsilon_with_its_gradients(rows):
    theta, log_sigma = randn(3, 4, seed=1).requires_grad_(), (randn(3, 4, seed=2) - 1).requires_grad_()
    torch.manual_seed(0)
    w = noisy(theta, log_sigma, rows)
    torch.manual_seed(0)
    plain = theta + log_sigma.exp() * torch.randn(*rows, 3, 4, dtype=torch.float64)
    projection = randn(*rows, 3, 4, seed=3)
    assert error(w, plain) <= 1e-12
    for a, b in zip(
        *(torch.autograd.grad((y * projection).sum(), (theta, log_sigma)) for y in (w, plain)), strict=True
    ):
        assert error(a, b) <= 1e-12

    def seeded(theta, log_sigma):
        torch.manual_seed(0)
        return noisy(theta, log_sigma, rows)

    assert torch.autograd.gradcheck(seeded, (theta, log_sigma))


def plain_kl(theta, log_sigma):
    """Molchanov et al. 2017, eq. 14, as printed: −KL ≈ k1 σ(k2 + k3 log α) − ½ log(1 + α⁻¹) − k1."""
    a = torch.log(log_sigma.exp() ** 2 / (theta**2 + 1e-16))
    return -(0.63576 * torch.sigmoid(1.87320 + 1.48695 * a) - 0.5 * torch.log1p(torch.exp(-a)) - 0.63576).sum()


@pytest.mark.parametrize("shape", [(1,), (7, 9), (3, 32_768), (70_001,)])
def test_kl_equals_the_printed_formula_in_value_and_gradient(shape):
    """Also where it is cut into slices: exactly at their length, and not."""
    theta, log_sigma = randn(*shape, seed=1).requires_grad_(), (2 * randn(*shape, seed=2) - 2).requires_grad_()
    mine, theirs = kl(theta, log_sigma), plain_kl(theta, log_sigma)
    assert abs(mine - theirs) <= 1e-12 * theirs
    for a, b in zip(*(torch.autograd.grad(3 * y, (theta, log_sigma)) for y in (mine, theirs)), strict=True):
        assert error(a, b) <= 1e-12


def test_the_fit_of_the_paper_s_code_is_its_formula_and_flat_beyond_eight():
    """½ log1p(e^−a) − (0.03 + 0.64 sigm(1.5 (a + 1.3))), a clipped to ±8 without gradient outside; ours ends at zero."""
    theta, log_sigma = randn(40, 50, seed=1).requires_grad_(), (5 * randn(40, 50, seed=2)).requires_grad_()
    a = (2 * log_sigma - torch.log(theta**2 + 1e-16)).clamp(-8, 8)
    assert 100 < (a == 8).sum() < 1000 and 100 < (a == -8).sum() < 1000
    theirs = (0.5 * torch.log1p(torch.exp(-a)) - (0.03 + 0.64 * torch.sigmoid(1.5 * (a + 1.3))) + 0.67).sum()
    mine = kl(theta, log_sigma, "1812.05692")
    assert abs(mine - theirs) <= 1e-12 * theirs
    for x, y in zip(*(torch.autograd.grad(v, (theta, log_sigma)) for v in (mine, theirs)), strict=True):
        assert error(x, y) <= 1e-12


def test_the_options_choose_the_fit():
    totals = {}
    for fit in CHOICES:
        _, study = prepared("classifier", "wgn", kl_fit=fit)
        totals[fit] = study.penalty().item() * N_EXAMPLES
        assert totals[fit] == pytest.approx(sum(kl(*pair, fit).item() for pair in every_pair(study)))
    assert len({*totals.values()}) == len(CHOICES) == 3


def test_kl_of_a_transposed_matrix_has_its_gradient_in_place():
    theta, log_sigma = randn(6, 4).t().requires_grad_(), (randn(4, 6, seed=2) - 2).requires_grad_()
    for a, b in zip(
        *(torch.autograd.grad(f(theta, log_sigma), (theta, log_sigma)) for f in (kl, plain_kl)), strict=True
    ):
        assert error(a, b) <= 1e-12


def test_kl_in_float32_is_the_same_within_its_precision():
    theta, log_sigma = randn(200, 300), 2 * randn(200, 300, seed=2) - 2
    small = [t.float().requires_grad_() for t in (theta, log_sigma)]
    exact = [t.detach().double().requires_grad_() for t in small]
    assert kl(*small).dtype == torch.float32 and abs(kl(*small).double() - kl(*exact)) <= 1e-6 * kl(*exact)
    for a, b in zip(torch.autograd.grad(kl(*small), small), torch.autograd.grad(kl(*exact), exact), strict=True):
        assert error(a.double(), b) <= 5e-6


@pytest.mark.parametrize("fit", CHOICES)
def test_gradcheck_of_kl(fit):
    theta, log_sigma = randn(3, 3, seed=1).requires_grad_(), (randn(3, 3, seed=2) - 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *of: kl(*of, fit), (theta, log_sigma), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-9, 1e4])
def test_log_alpha_and_kl_are_finite_with_finite_gradients_even_at_theta_zero(value, dtype):
    theta = torch.tensor([value, -value] * 2, dtype=dtype, requires_grad=True)
    log_sigma = torch.tensor([-3.0, -20.0, 40.0, -80.0], dtype=dtype, requires_grad=True)
    for y in (log_alpha(theta, log_sigma).sum(), *(kl(theta, log_sigma, fit) for fit in CHOICES)):
        assert y.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(y, (theta, log_sigma)))
    if value == 0:
        assert log_alpha(theta, log_sigma)[0].item() == pytest.approx(-6 + 16 * math.log(10), rel=1e-6)


def exact_kl(a):
    """KL(N(θ, αθ²) ‖ log-uniform) in nats, zero at α = ∞: ½ E[ψ(j + ½)] − ½ ψ(½), j ~ Poisson(1/2α).

    −½ log α + E log|1 + √α ε| + const; (1/√α + ε)² is non-central χ² with one degree of freedom, whose mean
    logarithm is that of a Poisson mixture of central ones.
    """
    rate = 0.5 * math.exp(-a)
    j = range(int(rate + 12 * math.sqrt(rate) + 60))
    return 0.5 * float((poisson.pmf(j, rate) * (psi([k + 0.5 for k in j]) - psi(0.5))).sum())


def fitted(a, fit="molchanov"):
    """kl() of one weight with log α = a."""
    return kl(torch.ones(1).double(), torch.full((1,), a / 2).double(), fit).item()


@pytest.mark.parametrize("a", range(-6, 7))
def test_penalty_matches_monte_carlo_kl(a):
    """E log q − E log p over 400,000 weights, up to the fit's own error; the constant is that of α = ∞, where KL = 0."""
    n = 400_000
    noise = torch.randn(n, generator=torch.Generator().manual_seed(a + 100), dtype=torch.float64)
    log_w = torch.log((1 + math.exp(a / 2) * noise).abs())
    estimate = log_w.mean().item() - 0.5 * a + 0.5 * (0.5772156649015329 + math.log(2))  # E log|ε| = −(γ + log 2)/2
    standard_error = log_w.std().item() / math.sqrt(n)
    assert abs(exact_kl(a) - estimate) < 5 * standard_error
    assert abs(fitted(a) - estimate) < 5 * standard_error + FIT_ERROR


FIT_ERROR = 0.0094  # nats a weight: the largest |fit − exact| for log α in [−8, 8], found at −3.5


def test_the_fit_of_the_kl_is_within_a_hundredth_of_a_nat_everywhere():
    errors = {a / 20: fitted(a / 20) - exact_kl(a / 20) for a in range(-160, 161)}
    assert max(map(abs, errors.values())) <= FIT_ERROR
    assert fitted(60.0) == pytest.approx(0, abs=1e-12) and exact_kl(60.0) == pytest.approx(0, abs=1e-12)
    values = [fitted(a / 20) for a in range(-160, 161)]
    assert all(low > high > 0 for low, high in zip(values, values[1:], strict=False))  # ≥ 0 and falling: noise is free


# ---- without a fit


def by_dawson(a):
    """u = θ²/2σ² at log α = a, and dKL/dlog α = −√u Dawson(√u), by scipy."""
    u = 0.5 * np.exp(-a)
    return u, -np.sqrt(u) * dawsn(np.sqrt(u))


def test_the_series_are_dawson_s_function():
    u, slope = by_dawson(np.linspace(-30, 30, 20_001))
    assert np.abs(slope_by_series(u) / (-slope / u) - 1).max() <= 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 3e-6)])
def test_the_gradient_without_a_fit_is_dawson_s_function_at_every_alpha(dtype, bound):
    """In float32 the bound is that of log α itself: 30 in its digits."""
    log_sigma = torch.linspace(-15, 15, 70_001, dtype=torch.float64).to(dtype)
    _, d_theta, d_log_sigma = kl_and_gradients(torch.ones_like(log_sigma), log_sigma, "exact")
    slope = by_dawson(2 * log_sigma.double().numpy())[1]
    for found, factor in ((d_log_sigma, 2), (d_theta, -2)):  # log α = 2 log σ − 2 log θ
        assert np.abs(found.double().numpy() / (factor * slope) - 1).max() <= bound


@pytest.mark.parametrize("a", range(-30, 31, 3))
def test_the_value_without_a_fit_is_its_gradient_integrated_from_infinity(a):
    """Within 1e-9 nats: torch's softplus(x) is x from 20 on."""
    integral, uncertain = quad(lambda b: -by_dawson(b)[1], a, 60, epsabs=1e-11, epsrel=1e-12, limit=500)
    assert uncertain < 1e-10 and fitted(a, "exact") == pytest.approx(integral, abs=1e-9)
    if a >= -6:
        assert fitted(a, "exact") == pytest.approx(exact_kl(a), abs=1e-10)


def test_without_a_fit_it_is_never_negative_and_falls_as_noise_grows():
    values = [fitted(a / 4, "exact") for a in range(-160, 81)]
    assert all(low > high > 0 for low, high in zip(values, values[1:], strict=False))


# ---- what it adds to the loss, and when


def charges(study):
    """Name → its KL in nats."""
    items = (study.weights | study.groups).items()
    return {name: plain_kl(item.theta, item.log_sigma).item() for name, item in items}


def test_penalty_is_the_kl_of_every_weight_and_group_variable_over_the_examples():
    _, study = prepared("classifier", "wgn", kl_weight=0.7)
    total = sum(plain_kl(theta, log_sigma) for theta, log_sigma in every_pair(study))
    assert study.penalty().item() == pytest.approx(0.7 * total.item() / N_EXAMPLES, rel=1e-12)
    assert len(every_pair(study)) == 4 + 4


def test_the_variables_of_neurons_may_be_charged_more_than_weights_and_words():
    _, study = prepared("classifier", "wgn", kl_weight=0.5, kl_weight_neurons=2.0, kl_full=2.0)
    charged = charges(study)
    neurons = sum(charged.pop(name) for name in ("input", "hidden_l0", "gates_l0"))
    expected = (0.5 * sum(charged.values()) + 2.0 * neurons) / N_EXAMPLES
    assert study.method.penalty(10**6).item() == pytest.approx(expected, rel=1e-12)
    assert study.method.penalty(STEPS_PER_EPOCH).item() == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("peak", [0.0, 5.0])
def test_pressing_neurons_and_the_rest_may_end_at_an_epoch(peak):
    _, study = prepared("classifier", "wgn", kl_weight_neurons=20.0, kl_peak=peak, kl_settle=3.0)
    charged, method = charges(study), study.method
    neurons = sum(charged[name] for name in ("input", "hidden_l0", "gates_l0"))
    extra = 19 * neurons + (4 * (sum(charged.values()) - neurons) if peak else 0)
    assert method.kl_weight(0) == (peak or 1.0) and method.kl_weight(0, neurons=True) == 20.0
    for step, more in ((0, extra), (3 * STEPS_PER_EPOCH - 1, extra), (3 * STEPS_PER_EPOCH, 0.0)):
        assert method.penalty(step).item() * N_EXAMPLES == pytest.approx(sum(charged.values()) + more, rel=1e-12)


@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("peak", [0.0, 2.0])
@pytest.mark.parametrize("press", [0.0, 3.5])
def test_kl_weight_is_zero_then_a_straight_line_then_full(neurons, peak, press):
    schedule = {"kl_start": 1.0, "kl_full": 3.0, "kl_peak": peak, "kl_press": press, "kl_settle": 4.0}
    method = prepared("classifier", kl_weight=0.8, **schedule)[1].method
    weights = [method.kl_weight(step, neurons) for step in range(45)]
    pressed = 2.0 if peak and not neurons else 0.8
    assert weights[:11] == [0.0] * 11 and weights[40:] == [0.8] * 5
    assert weights[30:40] == ([0.8] * 5 + [pressed] * 5 if press else [pressed] * 10)
    assert weights[10:30] == pytest.approx([0.8 * k / 20 for k in range(20)], abs=1e-15)
    assert method.penalty(5) == 0 and method.penalty(20).item() > 0
    assert method.penalty(20).item() == pytest.approx(method.penalty(44).item() / 2, rel=1e-12)


def test_without_a_warm_up_the_kl_is_full_from_the_first_step():
    method = prepared("classifier", kl_weight=1.0)[1].method
    assert [method.kl_weight(step) for step in (0, 1, 100)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_log_sigma_gets_no_weight_decay_whatever_the_optimiser_is_set_to(optimizer):
    model, study = prepared("classifier", "wgn")
    run = optimizer(study.parameter_groups(0.1), lr=0.1, weight_decay=0.5)
    before = [(theta.detach().clone(), log_sigma.detach().clone()) for theta, log_sigma in every_pair(study)]
    for group in run.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    run.step()
    for (theta, log_sigma), (old_theta, old_log_sigma) in zip(every_pair(study), before, strict=True):
        assert torch.equal(log_sigma, old_log_sigma) and (theta != old_theta).all()


def test_the_optimiser_gets_every_parameter_once_and_the_model_s_own_apart():
    model = randomise(MODELS["classifier"](), 1).requires_grad_(True)
    own = list(model.parameters())
    _, study = prepared("classifier", "wgn", model=model)
    first, *more = study.parameter_groups(0.1)
    given = [p for group in more for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in study.parameters()} and len(given) == len(set(map(id, given)))
    assert [id(p) for p in first["params"]] == [id(p) for p in own]
    assert not {id(p) for p in given} & {id(p) for p in own}
    assert {id(p) for p in (*given, *own)} == {id(p) for p in model.parameters()}
    assert {id(p) for p in given} == {id(p) for pair in every_pair(study) for p in pair} - {id(p) for p in own}


# ---- training, and what is kept


def train(model, study, steps, optimizer):
    target = torch.tensor([0, 1, 0, 1])
    for step in range(steps):
        _, outputs = drawn(model, step)
        loss = F.cross_entropy(outputs, target) + study.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        study.after_step()


def adam(study):
    return torch.optim.Adam(study.parameter_groups(0.02))


@pytest.mark.parametrize("groups", ["", "wgn"])
def test_output_changes_after_an_optimizer_step(groups):
    model, study = prepared("classifier", groups)
    before, parameters = drawn(model, 0)[1], {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, study, 1, adam(study))
    assert (drawn(model, 0)[1] != before).all()
    assert all((p != parameters[n]).any() for n, p in model.named_parameters())
    assert all((s != parameters[n]).all() for n, s in model.named_parameters() if n.endswith(".log_sigma"))
    assert sum(n.endswith(".log_sigma") for n in parameters) == len(every_pair(study))


def test_pruned_weights_stay_zero_after_100_adam_steps_with_momentum():
    """The masks are read once and applied again: whatever momentum does to θ, what evaluates is exactly zero."""
    model, study = prepared("classifier", "wgn", log_sigma=-2.0)
    optimizer = adam(study)
    train(model, study, 10, optimizer)
    masks = study.masks(threshold=0.0)
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, study, 100, optimizer)
    small = masked(model, masks, study.means())
    assert set(masks.weights) == set(study.weights)
    for name, mask in masks.weights.items():
        weight = small.get_parameter(name)
        assert (~mask).any() and (weight[~mask] == 0).all()
        assert (model.get_parameter(name) != theta[name]).any()
        assert torch.equal(weight[mask], model.get_parameter(name)[mask])
    for axis in masks.axes:
        for member in axis.having("scale"):
            layer, _, own = member.tensor.rpartition(".")
            scale, kept = small.get_submodule(layer).carried.scale(own, 1)[0], masks.group(axis)
            assert (scale[~kept] == 0).all() and torch.equal(scale[kept], study.means()[axis.name][kept])


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_what_is_kept_has_squared_signal_to_noise_above_e_to_minus_three(name, groups):
    _, study = prepared(name, groups, log_sigma=0.5, log_sigma_groups=1.4)
    masks = study.masks()
    assert set(masks.groups) == set(study.groups) and set(masks.weights) == set(study.weights)
    for key, item in study.weights.items():
        wanted = item.theta.detach() ** 2 / torch.exp(2 * item.log_sigma.detach()) > math.exp(-3)
        assert torch.equal(masks.weights[key], wanted) and wanted.any() and not wanted.all()
    assert all(kept.all() for kept in masks.groups.values())  # μ = 1: log α = 2.8
    with torch.no_grad():
        for group in study.groups.values():
            group.log_sigma.copy_(torch.linspace(1.3, 1.61, group.size))
    for key, kept in study.masks().groups.items():
        assert torch.equal(kept, study.groups[key].log_sigma < 1.5)


def test_log_alpha_is_read_between_minus_eight_and_eight():
    _, study = prepared("classifier", "wgn", log_sigma=-30.0, log_sigma_groups=30.0)
    found = study.scores()
    assert set(found) == {*study.weights, *study.groups}
    assert all((found[name] == -8).all() for name in study.weights)
    assert all((found[name] == 8).all() for name in study.groups)


def test_biases_have_no_posterior():
    model, study = prepared("classifier", "wgn")
    assert not any("bias" in name for name in [*study.weights, *study.groups])
    assert not any("bias" in name for name, _ in model.named_parameters() if ".carried." in name)
    draw, _ = drawn(model, 0)
    assert not any("bias" in name for name in draw.weights)
    for layer, name in ((model.lstm, "bias_ih_l0"), (model.lstm, "bias_hh_l0"), (model.head, "bias")):
        assert layer.used(name) is getattr(layer, name)


# ---- what is kept may be fixed and trained on


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_fine_tuning_decides_once(name, groups):
    """After half of the training: then θ and log σ may go where they like, the masks stay, without noise and penalty."""
    model, study = prepared(name, groups, log_sigma=0.5, log_sigma_groups=1.4, fine_tune=0.5)
    with torch.no_grad():
        for group in study.groups.values():
            group.log_sigma.copy_(torch.linspace(1.3, 1.61, group.size))
    wanted = {
        name: item.theta**2 / torch.exp(2 * item.log_sigma) > math.exp(-3) for name, item in study.weights.items()
    }
    wanted |= {name: group.log_sigma < 1.5 for name, group in study.groups.items()}
    for step in range(EPOCHS * STEPS_PER_EPOCH // 2):
        assert not study.method.fixed and study.penalty() > 0
        draw, _ = drawn(model, step)
        study.after_step()
    study.after_step()
    assert study.method.fixed and all((w != 0).all() for w in draw.weights.values())

    scores = {name: score.clone() for name, score in study.scores().items()}
    with torch.no_grad():
        for i, ((theta, log_sigma), kept) in enumerate(zip(every_pair(study), wanted.values(), strict=True)):
            theta.copy_(randn(*theta.shape, seed=50 + i))
            log_sigma.copy_(theta.abs().log() + torch.where(kept, 3.0, -3.0))  # now it would be decided the other way
            assert torch.equal(log_alpha(theta, log_sigma) < 3, ~kept)
    for _ in range(3):
        masks = study.masks()
        found = masks.weights | masks.groups
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert all(torch.equal(score, scores[name]) for name, score in study.scores().items())
        study.after_step()
    expected = masked_by_hand(model, masks, study.means(), TOKENS)[0]
    (draw, outputs), (_, again) = drawn(model, 0), drawn(model, 1)
    assert study.penalty() == 0 and not draw.noise and torch.equal(outputs, again)
    assert error(outputs, expected) <= 1e-12 and error(model.eval()(TOKENS)[0], expected) <= 1e-12
    outputs.square().sum().backward()
    for name, item in (study.weights | study.groups).items():
        assert (item.theta.grad[~wanted[name]] == 0).all() and item.log_sigma.grad is None


# ---- economies of long runs


def asleep(name, groups="wgn", numbers=(1,), words=()):
    """A study whose input and hidden neurons `numbers` and whose `words` have log α far above the cut; noise is tiny."""
    model, study = prepared(name, groups, log_sigma=-20.0, log_sigma_groups=-20.0, sleep_above=5.0)
    gone = {
        name: list(words if group.kind == "vocabulary" else numbers)
        for name, group in study.groups.items()
        if group.kind != "gates"
    }
    with torch.no_grad():
        for axis, which in gone.items():
            study.groups[axis].log_sigma[which] = 4.0
    return model, study, gone


def descent(model):
    """Plain gradient descent on everything."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("words", [(), (5, 8)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["classifier", "character model", "word model"])
def test_a_step_without_sleepers_is_a_step_with_them_scaled_by_zero_and_leaves_them_as_they_are(name, padded, words):
    model, study, gone = asleep(name, words=words)
    model.head.local_noise = False  # its 1e-8 is more than these σ
    lengths = torch.tensor([4, 2, 4, 3]) if padded else None
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = {
        axis: (group.theta.detach().clone(), group.log_sigma.detach().clone()) for axis, group in study.groups.items()
    }
    whole, scales = {n: p.clone().requires_grad_() for n, p in before.items() if ".carried." not in n}, {}
    for axis in study.method.axes:
        if axis.name in study.groups:
            z = groups[axis.name][0].clone()
            z[gone.get(axis.name, [])] = 0
            scales |= {member.tensor: z[None] for member in axis.having("scale")}
    expected = logits_by_hand(model, whole, scales, TOKENS, lengths)[0]
    slopes = dict(zip(whole, torch.autograd.grad(expected.square().sum(), list(whole.values())), strict=True))

    optimizer = descent(model)
    with study.method.without_pruned(model, optimizer):
        draw, outputs = drawn(model, 0, lengths=lengths)
        assert draw.weights["lstm.weight_hh_l0"].shape == (16, 4)
        assert error(outputs, expected.detach()) <= 1e-7  # σ is e^−20
        outputs.square().sum().backward()
        optimizer.step()
        study.after_step()
    after = {n: p.detach() for n, p in model.named_parameters()}
    for n, slope in slopes.items():
        assert torch.allclose(after[n], before[n] - 0.1 * slope, rtol=1e-4, atol=1e-6)
    for axis, which in gone.items():
        assert torch.equal(study.groups[axis].theta[which], groups[axis][0][which])
        assert torch.equal(study.groups[axis].log_sigma[which], groups[axis][1][which])
    assert drawn(model, 0)[0].weights["lstm.weight_hh_l0"].shape == (20, 5)  # whole again


def test_the_optimiser_s_moments_are_cut_and_put_back_with_their_parameter():
    whole = torch.nn.Parameter(randn(5, 4, seed=1))
    lines = [(0, torch.tensor([0, 2, 3])), (1, torch.tensor([1, 3]))]
    small = torch.nn.Parameter(take_lines(whole.detach(), lines))
    one, other, slopes = torch.optim.Adam([whole]), torch.optim.Adam([small]), randn(3, 5, 4, seed=2)
    for step, slope in enumerate(slopes):
        small.grad = take_lines(slope, lines)
        other.step()
        if step == 1:
            before, moments = whole.detach().clone(), {n: v.clone() for n, v in one.state[whole].items()}
            with narrowed({whole: lines}, one):
                whole.grad = take_lines(slope, lines)
                one.step()
            changed = (whole != before).nonzero().tolist()
            assert changed == [[r, c] for r in (0, 2, 3) for c in (1, 3)]
            assert ((one.state[whole]["exp_avg"] != moments["exp_avg"]).nonzero().tolist()) == changed
        else:
            whole.grad = slope.clone()
            one.step()
    assert torch.equal(take_lines(whole, lines), small)
    for name in ("step", "exp_avg", "exp_avg_sq"):
        value = one.state[whole][name]
        assert torch.equal(take_lines(value, lines) if value.dim() else value, other.state[small][name])


@pytest.mark.parametrize("reached", ["nothing", "a draw", "its gradient"])
def test_what_was_cut_is_put_back_when_an_epoch_breaks_off(reached):
    model, study, _ = asleep("classifier", words=(5,))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), study.method.without_pruned(model, descent(model)):
        if reached != "nothing":
            draw, outputs = drawn(model, 0)
            assert draw.weights["lstm.weight_hh_l0"].shape == (16, 4)
        if reached == "its gradient":
            outputs.sum().backward()
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert drawn(model, 0)[0].weights["lstm.weight_hh_l0"].shape == (20, 5)


def test_the_last_neuron_and_the_last_word_stay_awake():
    model, study, _ = asleep("classifier", numbers=(0, 1, 2, 3), words=range(V))  # all 4 inputs, 4 of 5 hidden neurons
    with study.method.without_pruned(model, descent(model)):
        assert model.embedding.weight.shape == (V, 4) and model.lstm.weight_hh_l0.shape == (4, 1)


def test_weights_alone_put_neurons_and_words_to_sleep_by_closure():
    """Without group variables: a neuron all of whose readers are noise, a word all of whose numbers are."""
    model, study = prepared("classifier", "", sleep_above=5.0)
    with torch.no_grad():
        for key, dim, at in (("lstm.weight_hh_l0", 1, 2), ("head.weight", 1, 2), ("embedding.weight", 0, 7)):
            study.weights[key].log_sigma.fill_(-4.0).select(dim, at).fill_(9.0)
    with study.method.without_pruned(model, descent(model)):
        assert model.head.weight.shape == (2, 4) and model.embedding.weight.shape == (V - 1, 4)
        assert study.method.lines["lstm.weight_hh_l0"][0][1].tolist() == [n for n in range(20) if n % 5 != 2]


def test_a_word_that_sleeps_for_want_of_weights_is_not_kept_by_its_variable():
    _, study, _ = asleep("classifier")
    with torch.no_grad():
        study.weights["embedding.weight"].log_sigma[7] = 9.0  # all its numbers are noise, its variable is not
    assert study.masks().groups["vocabulary"].tolist() == [word != 7 for word in range(V)]
    found = study.scores()
    assert found["vocabulary"][7] == 8 and (found["embedding.weight"][7] == 8).all()
    assert (found["embedding.weight"][:, 1] == 8).all() and (found["embedding.weight"][0, [0, 2, 3]] == -8).all()


def test_a_stack_keeps_its_hidden_neurons_awake():
    model, study, _ = asleep("classifier, 2 layers")
    with study.method.without_pruned(model, descent(model)):
        assert model.embedding.weight.shape == (V, 3) and model.lstm.weight_hh_l0.shape == (20, 5)


def test_binary_masks_are_of_those_awake():
    model = randomise(MODELS["classifier"](), 1).requires_grad_(True)
    study = studied(model, BinarySparseVD(BinarySparseVDOptions(dropout=0.5, sleep_above=5.0)))
    with torch.no_grad():
        study.weights["lstm.weight_ih_l0"].log_sigma.fill_(-4.0).select(1, 2).fill_(9.0)
    with study.method.without_pruned(model, descent(model)):
        draw, outputs = drawn(model, 0)
        assert draw.scales["lstm.input_l0"].shape == (4, 3) and outputs.shape == (4, 2)


def test_the_penalty_s_gradient_is_held_for_kl_every_steps_of_an_epoch():
    _, study = prepared("classifier", "wgn", kl_every=4)
    pairs = every_pair(study)

    def gradients(step):
        leaves = [p for pair in pairs for p in pair]
        return torch.autograd.grad(study.method.penalty(step), leaves)

    def move():
        with torch.no_grad():
            for _, log_sigma in pairs:
                log_sigma.add_(0.1)

    first = gradients(0)
    move()
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(3), strict=True))
    fresh = gradients(4)
    assert not any(torch.equal(a, b) for a, b in zip(first, fresh, strict=True))
    move()
    assert all(torch.equal(a, b) for a, b in zip(fresh, gradients(STEPS_PER_EPOCH - 1 - 2), strict=True))  # 7
    held = gradients(STEPS_PER_EPOCH)  # an epoch begins, where a run may have been resumed: counted anew
    assert not any(torch.equal(a, b) for a, b in zip(fresh, held, strict=True))


def test_whatever_is_done_to_a_gradient_the_one_that_is_held_stays():
    _, study = prepared("classifier", "w", kl_every=4)
    leaves = [p for pair in every_pair(study) for p in pair]

    def gradients():
        for leaf in leaves:
            leaf.grad = None
        study.method.penalty(1).backward()
        return [leaf.grad for leaf in leaves]

    first = gradients()
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.mul_(0.1)  # as a clip does
    assert all(torch.equal(a, b) for a, b in zip(gradients(), kept, strict=True))
    (3 * study.method.penalty(1)).backward()
    assert all(torch.allclose(leaf.grad, 4 * b) for leaf, b in zip(leaves, kept, strict=True)), "added up"


def test_gradients_of_the_penalty_may_be_taken_again_or_in_batches():
    theta, log_sigma = torch.randn(5, requires_grad=True), torch.full((5,), -1.0, requires_grad=True)
    (one,) = torch.autograd.grad(kl(theta, log_sigma), theta)
    (many,) = torch.autograd.grad(kl(theta, log_sigma), theta, torch.tensor([1.0, 2.0]), is_grads_batched=True)
    assert torch.allclose(many, torch.stack([one, 2 * one]))
    for weight in (1.0, 1.5):
        weight = torch.tensor(weight, requires_grad=True)
        (slope,) = torch.autograd.grad(weight * kl(theta, log_sigma), theta, create_graph=True)
        assert torch.allclose(torch.autograd.grad(slope.sum(), weight)[0], one.sum())


def test_a_held_gradient_is_charged_at_the_weight_of_its_step():
    _, study = prepared("classifier", "w", kl_every=4, kl_full=2.0)
    leaves = [p for pair in every_pair(study) for p in pair]
    fresh, third = (torch.autograd.grad(study.method.penalty(step), leaves) for step in (4, 6))
    assert all(torch.allclose(6 / 4 * a, b) for a, b in zip(fresh, third, strict=True))
    assert study.method.penalty(6).item() == pytest.approx(6 / 4 * study.method.penalty(4).item())
