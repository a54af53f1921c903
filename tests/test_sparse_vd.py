"""Sparse variational dropout: what is drawn once and for whom (1812.05692, its code), what it costs, and what is kept."""

import math

import pytest
import torch
from oracles import Tagger, error, logits_by_hand, masked_by_hand, randn, randomise, step_loop
from scipy.special import psi
from scipy.stats import poisson
from torch.nn import functional as F

from sparsernn.nets.masks import effective
from sparsernn.nets.models import Classifier, LanguageModel, Linear
from sparsernn.sparsify.binary import BinarySparseVD
from sparsernn.sparsify.sleep import cut, narrowed
from sparsernn.sparsify.sparse_vd import SparseVD, kl, log_alpha, noisy
from sparsernn.study.presets import Plan
from sparsernn.tasks.base import Batch

V, N_EXAMPLES, STEPS_PER_EPOCH = 9, 250, 10
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


def prepared(name, groups="", log_sigma=-1.0, log_sigma_groups=-1.0, model=None, **plan):
    model = model or randomise(MODELS[name](), 1).requires_grad_(True)
    method = SparseVD(groups)
    plan = Plan(epochs=4, batch_size=3, log_sigma=log_sigma, log_sigma_groups=log_sigma_groups, **plan)
    method.prepare(model, plan, N_EXAMPLES, STEPS_PER_EPOCH)
    return model, method


def drawn(model, method, seed, tokens=TOKENS, lengths=None):
    torch.manual_seed(seed)
    draw = method.sample(Batch(tokens, tokens, lengths))
    return draw, draw.run(model, lengths)[0]


def every_pair(method):
    """(θ, log σ) of every weight and group variable, by the names the method gives them."""
    weights = [(theta, method.log_sigma[name.replace(".", "/")]) for name, theta in method.theta.items()]
    return weights + [(method.group_theta[k], method.group_log_sigma[k]) for k in method.group_theta]


# ---- weights: one sample for all time steps and all sequences


@pytest.mark.parametrize("name", MODELS)
def test_weight_noise_is_shared_by_all_sequences_of_a_batch(name):
    """The same sequence twice in a batch, no noise on the head's output: the same logits bit for bit."""
    model = randomise(MODELS[name](), 1)
    model.local_noise = ()
    model, method = prepared(name, model=model)
    outputs = drawn(model, method, 0)[1]
    by_sequence = outputs if outputs.dim() == 2 else outputs.transpose(0, 1)
    assert torch.equal(by_sequence[0], by_sequence[2]) and not torch.equal(by_sequence[0], by_sequence[1])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "groups"), CASES)
def test_the_output_is_that_of_one_set_of_weights_and_one_scale_a_sequence(name, groups, padded):
    """Rebuilt from the draw by the step loop: the weights at all steps, z of each sequence at all its steps, ε at the head."""
    model, method = prepared(name, groups)
    lengths = torch.tensor([4, 2, 4, 3]) if padded else None
    draw, outputs = drawn(model, method, 0, lengths=lengths)
    weights, noise = dict(draw.weights), draw.noise.get("head")
    expected, _, read = logits_by_hand(model, weights, draw.scales, draw.tokens, lengths)
    if noise is not None:  # the authors: std = sqrt(h² σ² + 1e-8), the same noise of a sequence at all time steps
        variance = torch.exp(2 * method.log_sigma["head/weight"])
        expected = expected + noise[1] * torch.sqrt(read**2 @ variance.T + 1e-8)
        assert noise[1].shape == (4, model.head.out_features) and "head.weight" not in weights
    else:
        assert "head.weight" in weights
    assert error(outputs, expected) <= 1e-12


def test_who_takes_its_noise_on_the_output():
    """Classifiers and character models: the last layer. The word model: nobody (the authors' BayesianDense_noLRT)."""
    found = {name: set(prepared(name)[1].sample(Batch(TOKENS, TOKENS, None)).noise) for name in MODELS}
    assert found == {
        "classifier": {"head"},
        "classifier, 2 layers": {"head"},
        "character model": {"head"},
        "word model": set(),
        "bidirectional": set(),
    }


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_drawn_weights_are_theta_plus_sigma_times_standard_noise(name, groups):
    """Over 400 draws (w − θ)/σ has mean 0 and variance 1, every weight and group variable, within five standard errors."""
    model, method = prepared(name, groups)
    with torch.no_grad():
        for i, (_, log_sigma) in enumerate(every_pair(method)):
            log_sigma.copy_(-1 + 0.5 * randn(*log_sigma.shape, seed=i))
    touched, samples = TOKENS.unique(), {}
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(400):
            draw = method.sample(Batch(TOKENS, TOKENS, None))
            for key, value in (draw.weights | draw.scales).items():
                samples.setdefault(key, []).append(value)
    words = {"embedding.weight": 0, "embedding.input": 0, "lstm.weight_ih_l0": 1, "lstm.weight_ih_l0_reverse": 1}
    words |= {"lstm.input_l0": 0, "lstm.input_l0_reverse": 0}
    if "classifier" in name:
        del words["lstm.weight_ih_l0"], words["lstm.input_l0"]
    for key, values in samples.items():
        kind, _, suffix = key.rpartition(".")[2].partition("_")
        if kind == "weight":
            theta, log_sigma = model.get_parameter(key), method.log_sigma[key.replace(".", "/")]
        else:
            axis = {"recurrent": "hidden", "output": "hidden"}.get(kind, kind) + (
                f"_{suffix}" if kind != "input" else ""
            )
            axis = "vocabulary" if key in words else axis
            theta, log_sigma = method.group_theta[axis], method.group_log_sigma[axis]
        if key in words:
            theta, log_sigma = (p.index_select(words[key], touched) for p in (theta, log_sigma))
        standard = (torch.stack(values) - theta) / log_sigma.exp()
        count = standard.shape[0]
        rows = standard.reshape(count, -1)
        se = 1 / math.sqrt(count)
        assert rows.mean(0).abs().max() < 5 * se and (rows.var(0) - 1).abs().max() < 5 * math.sqrt(2) * se, key
        correlation = torch.corrcoef(rows.T) - torch.eye(rows.shape[1])  # every element its own noise
        assert correlation.abs().max() < 5.5 * se, key


def test_which_axes_take_group_variables():
    """1812.05692: classifiers open words with every letter; language models words for Voc only, else neurons and gates."""
    opened = {(name, g): sorted(prepared(name, g)[1].group_theta) for name, g in CASES}
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
    method = SparseVD("wgn")
    method.prepare(model, Plan(epochs=1, batch_size=1), N_EXAMPLES, STEPS_PER_EPOCH)
    assert all((p == -3).all() for p in [*method.log_sigma.values(), *method.group_log_sigma.values()])
    assert all((p == 1).all() for p in method.group_theta.values())
    assert {n.replace("/", ".") for n in method.log_sigma} == {n for n, p in model.named_parameters() if p.dim() == 2}


# ---- scales: one sample a sequence


@pytest.mark.parametrize("name", ["classifier", "character model", "bidirectional"])
def test_scale_noise_differs_between_sequences(name):
    """Weights without noise: two equal sequences of a batch still get different outputs, by their scales alone."""
    model, method = prepared(name, "wgn", log_sigma=-40.0)
    method.model.local_noise = ()
    draw, outputs = drawn(model, method, 0)
    by_sequence = outputs if outputs.dim() == 2 else outputs.transpose(0, 1)
    assert error(by_sequence[0], by_sequence[2]) > 1e-3
    for scale in draw.scales.values():
        assert scale.shape[0] == 4 and all((scale[a] != scale[b]).all() for a in range(4) for b in range(a))


def test_one_neuron_has_one_scale_wherever_it_is_read():
    draw, _ = drawn(*prepared("classifier, 2 layers", "wgn"), 0)
    for layer in ("l0", "l1"):
        assert torch.equal(draw.scales[f"lstm.recurrent_{layer}"], draw.scales[f"lstm.output_{layer}"])
    assert "lstm.input_l1" not in draw.scales  # the output scale below is it


def test_the_same_word_in_a_sequence_gets_the_same_factor():
    model, method = prepared("classifier", "voc")
    seen = []
    model.embedding.register_forward_hook(lambda module, given, out: seen.append(out))
    drawn(model, method, 0)
    (rows,) = seen  # [T, B, I]; sequence 0 is 2 5 2 2
    assert torch.equal(rows[0, 0], rows[2, 0]) and torch.equal(rows[0, 0], rows[3, 0])
    assert (rows[0, 0] != rows[0, 2]).all()  # the same word in another sequence: another factor
    ratio = rows[0, 0] / rows[0, 2]
    assert error(ratio, ratio[:1].expand(4)) <= 1e-12  # … and it is one factor for the whole row


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_noise_differs_between_forwards_and_a_seed_repeats_it(name, groups):
    model, method = prepared(name, groups)
    (draw, first), (_, second), (_, again) = (drawn(model, method, seed) for seed in (0, 1, 0))
    assert (first != second).any() and torch.equal(first, again)
    assert not torch.equal(draw.run(model)[0], first - 1) and torch.equal(draw.run(model)[0], first)


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_eval_is_deterministic_and_by_the_means(name, groups):
    model, method = prepared(name, groups)
    masks = method.masks()

    def evaluate():
        weights, scales = effective(model, method.masks(), method.means())
        return torch.func.functional_call(model, weights, (TOKENS,), {"scales": scales})[0]

    torch.manual_seed(0)
    first = evaluate()
    torch.manual_seed(1)
    assert torch.equal(first, evaluate())
    assert error(first, masked_by_hand(model, masks, method.means(), TOKENS)[0]) <= 1e-12


# ---- only the words that occur


@pytest.mark.parametrize(
    ("name", "tensor", "dim"), [("classifier", "embedding.weight", 0), ("character model", "lstm.weight_ih_l0", 1)]
)
@pytest.mark.parametrize("groups", ["", "voc"])
def test_only_words_of_the_batch_are_drawn_and_the_others_feel_their_penalty_alone(name, tensor, dim, groups):
    model, method = prepared(name, groups)
    draw, outputs = drawn(model, method, 0)
    touched = torch.tensor([2, 5, 7])
    assert draw.weights[tensor].shape[dim] == len(touched)
    assert torch.equal(touched[draw.tokens], TOKENS)
    pairs = [(model.get_parameter(tensor), method.log_sigma[tensor.replace(".", "/")], dim)]
    if groups:
        scale = draw.scales["embedding.input" if dim == 0 else "lstm.input_l0"]
        assert scale.shape == (4, len(touched))
        pairs.append((method.group_theta["vocabulary"], method.group_log_sigma["vocabulary"], 0))
    rest = [word for word in range(V) if word not in touched]
    outputs.square().sum().backward(retain_graph=True)
    for theta, log_sigma, along in pairs:
        for parameter in (theta, log_sigma):
            assert (parameter.grad.movedim(along, 0)[rest] == 0).all()
            assert (parameter.grad.movedim(along, 0)[touched] != 0).all()
    method.penalty(0).backward()
    for theta, log_sigma, along in pairs:
        plain = plain_kl(t := theta.detach().requires_grad_(), s := log_sigma.detach().requires_grad_()) / N_EXAMPLES
        for parameter, wanted in zip((theta, log_sigma), torch.autograd.grad(plain, (t, s)), strict=True):
            assert error(parameter.grad.movedim(along, 0)[rest], wanted.movedim(along, 0)[rest]) <= 1e-12
            assert (wanted.movedim(along, 0)[rest] != 0).all()


def test_gradients_through_a_draw_are_those_of_theta_plus_sigma_epsilon():
    """All of it by plain autograd: ε is read off the draw, the model is the step loop."""
    model, method = prepared("classifier", "wgn")
    draw, outputs = drawn(model, method, 0)
    leaves = [p for pair in every_pair(method) for p in pair] + [p for p in model.parameters() if p.dim() == 1]
    projection = randn(*outputs.shape, seed=5)
    mine = torch.autograd.grad((outputs * projection).sum(), leaves)

    touched = TOKENS.unique()
    weights, scales = {}, {}
    for key, w in draw.weights.items():
        theta, sigma = model.get_parameter(key), method.log_sigma[key.replace(".", "/")].exp()
        theta, sigma = (theta[touched], sigma[touched]) if key == "embedding.weight" else (theta, sigma)
        weights[key] = theta + sigma * ((w - theta) / sigma).detach()
    axes = {"embedding.input": "vocabulary", "lstm.input_l0": "input", "lstm.gates_l0": "gates_l0"}
    axes |= {"lstm.recurrent_l0": "hidden_l0", "lstm.output_l0": "hidden_l0"}
    for key, z in draw.scales.items():
        theta, sigma = method.group_theta[axes[key]], method.group_log_sigma[axes[key]].exp()
        theta, sigma = (theta[touched], sigma[touched]) if key == "embedding.input" else (theta, sigma)
        scales[key] = theta + sigma * ((z - theta) / sigma).detach()
    p = {n: q for n, q in model.named_parameters()} | weights
    cells = {n.removeprefix("lstm."): q for n, q in p.items() if n.startswith("lstm.")}
    own = {n.removeprefix("lstm."): s for n, s in scales.items() if n.startswith("lstm.")}
    factor = torch.stack([scales["embedding.input"][b, draw.tokens[:, b]] for b in range(4)], 1)[:, :, None]
    y, _ = step_loop(model.lstm, cells, p["embedding.weight"][draw.tokens] * factor, scales=own)
    variance = torch.exp(2 * method.log_sigma["head/weight"])
    logits = y[-1] @ p["head.weight"].T + p["head.bias"]
    logits = logits + draw.noise["head"][1] * torch.sqrt(y[-1] ** 2 @ variance.T + 1e-8)
    theirs = torch.autograd.grad((logits * projection).sum(), leaves)
    assert all(error(a, b) <= 1e-12 for a, b in zip(mine, theirs, strict=True))


# ---- the head's noise on its output


def test_local_noise_has_the_mean_and_variance_of_weight_noise():
    """W ~ N(θ, σ²) 100,000 times, against the same number of ε: both moments within five standard errors."""
    torch.manual_seed(0)
    n, layer, x = 100_000, Linear(4, 3).double(), randn(1, 4, seed=1)
    sigma = (randn(3, 4, seed=2) - 1).exp()
    with torch.no_grad():
        sums = (
            F.linear(x, layer.weight)
            + torch.einsum("noi,i->no", sigma * torch.randn(n, 3, 4).double(), x[0])
            + layer.bias
        )
        local = layer(x.expand(n, 4), (sigma**2, torch.randn(n, 3).double()))
        exact = x**2 @ (sigma**2).T
    for sample in (sums, local):
        assert ((sample.mean(0) - layer(x)).abs() < 5 * (exact / n).sqrt()).all()
        assert ((sample.var(0) - exact).abs() < 5 * exact * math.sqrt(2 / n)).all()


def test_local_noise_has_one_epsilon_a_sequence_for_all_steps():
    layer, x = Linear(4, 3).double(), randn(6, 2, 4)
    sigma, epsilon = randn(3, 4, seed=2).exp(), randn(2, 3, seed=3)
    noise = (layer(x, (sigma**2, epsilon)) - layer(x)) / torch.sqrt(x**2 @ (sigma**2).T + 1e-8)
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


def test_the_plan_chooses_the_fit():
    totals = {}
    for fit in ("molchanov", "1812.05692"):
        _, method = prepared("classifier", "wgn", kl_fit=fit)
        totals[fit] = method.penalty(0).item() * N_EXAMPLES
        assert totals[fit] == pytest.approx(sum(kl(*pair, fit).item() for pair in every_pair(method)))
    assert totals["molchanov"] != totals["1812.05692"]


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


def test_gradcheck_of_kl():
    theta, log_sigma = randn(3, 3, seed=1).requires_grad_(), (randn(3, 3, seed=2) - 2).requires_grad_()
    assert torch.autograd.gradcheck(kl, (theta, log_sigma))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-9, 1e4])
def test_log_alpha_and_kl_are_finite_with_finite_gradients_even_at_theta_zero(value, dtype):
    theta = torch.tensor([value, -value], dtype=dtype, requires_grad=True)
    log_sigma = torch.tensor([-3.0, -20.0], dtype=dtype, requires_grad=True)
    for y in (log_alpha(theta, log_sigma).sum(), kl(theta, log_sigma)):
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


def fitted(a):
    """kl() of one weight with log α = a."""
    return kl(torch.ones(1).double(), torch.full((1,), a / 2).double()).item()


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


# ---- what it adds to the loss, and when


def test_penalty_is_the_kl_of_every_weight_and_group_variable_over_the_examples():
    _, method = prepared("classifier", "wgn", kl_weight=0.7)
    total = sum(plain_kl(theta, log_sigma) for theta, log_sigma in every_pair(method))
    assert method.penalty(0).item() == pytest.approx(0.7 * total.item() / N_EXAMPLES, rel=1e-12)
    assert len(every_pair(method)) == 4 + 4


def test_the_variables_of_neurons_may_be_charged_more_than_weights_and_words():
    _, method = prepared("classifier", "wgn", kl_weight=0.5, kl_weight_neurons=2.0, kl_full=2.0)
    charged = {name: plain_kl(theta, log_sigma).sum() for name, theta, log_sigma in method._pairs()}
    neurons = sum(charged.pop(name) for name in ("input", "hidden_l0", "gates_l0"))
    expected = (0.5 * sum(charged.values()) + 2.0 * neurons).item() / N_EXAMPLES
    assert method.penalty(10**6).item() == pytest.approx(expected, rel=1e-12)
    assert method.penalty(STEPS_PER_EPOCH).item() == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("peak", [0.0, 5.0])
def test_pressing_neurons_and_the_rest_may_end_at_an_epoch(peak):
    _, method = prepared("classifier", "wgn", kl_weight_neurons=20.0, kl_peak=peak, kl_settle=3.0)
    charged = {name: plain_kl(theta, log_sigma).sum().item() for name, theta, log_sigma in method._pairs()}
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
    _, method = prepared("classifier", kl_weight=0.8, **schedule)
    weights = [method.kl_weight(step, neurons) for step in range(45)]
    pressed = 2.0 if peak and not neurons else 0.8
    assert weights[:11] == [0.0] * 11 and weights[40:] == [0.8] * 5
    assert weights[30:40] == ([0.8] * 5 + [pressed] * 5 if press else [pressed] * 10)
    assert weights[10:30] == pytest.approx([0.8 * k / 20 for k in range(20)], abs=1e-15)
    assert method.penalty(5) == 0 and method.penalty(20).item() > 0
    assert method.penalty(20).item() == pytest.approx(method.penalty(44).item() / 2, rel=1e-12)


def test_without_a_warm_up_the_kl_is_full_from_the_first_step():
    _, method = prepared("classifier", kl_weight=1.0)
    assert [method.kl_weight(step) for step in (0, 1, 100)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_log_sigma_gets_no_weight_decay_whatever_the_optimiser_is_set_to(optimizer):
    model, method = prepared("classifier", "wgn")
    groups = [{"params": list(model.parameters())}, *method.parameter_groups(method.plan)]
    run = optimizer(groups, lr=0.1, weight_decay=0.5)
    before = [log_sigma.detach().clone() for _, log_sigma in every_pair(method)]
    for group in run.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    run.step()
    assert all(torch.equal(new, old) for (_, new), old in zip(every_pair(method), before, strict=True))


def test_the_optimiser_gets_every_parameter_of_the_method_once():
    model, method = prepared("classifier", "wgn")
    given = [p for group in method.parameter_groups(method.plan) for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in method.parameters()} and len(given) == len(set(map(id, given)))
    assert not {id(p) for p in given} & {id(p) for p in model.parameters()}
    assert not {id(p) for p in method.parameters()} & {id(p) for p in model.parameters()}


# ---- training, and what is kept


def train(model, method, steps, optimizer):
    target = torch.tensor([0, 1, 0, 1])
    for step in range(steps):
        _, outputs = drawn(model, method, step)
        loss = F.cross_entropy(outputs, target) + method.penalty(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def adam(model, method):
    return torch.optim.Adam([{"params": list(model.parameters()), "lr": 0.02}, *method.parameter_groups(method.plan)])


@pytest.mark.parametrize("groups", ["", "wgn"])
def test_output_changes_after_an_optimizer_step(groups):
    model, method = prepared("classifier", groups)
    before, theta = drawn(model, method, 0)[1], {n: p.detach().clone() for n, p in model.named_parameters()}
    log_sigma = [s.detach().clone() for _, s in every_pair(method)]
    train(model, method, 1, adam(model, method))
    assert (drawn(model, method, 0)[1] != before).all()
    assert all((p != theta[n]).any() for n, p in model.named_parameters())
    assert all((s != old).all() for (_, s), old in zip(every_pair(method), log_sigma, strict=True))


def test_pruned_weights_stay_zero_after_100_adam_steps_with_momentum():
    """The masks are read once and applied again: whatever momentum does to θ, what evaluates is exactly zero."""
    model, method = prepared("classifier", "wgn", log_sigma=-2.0)
    optimizer = adam(model, method)
    train(model, method, 10, optimizer)
    masks = method.masks(threshold=0.0)
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, method, 100, optimizer)
    weights, scales = effective(model, masks, method.means())
    for name, weight in weights.items():
        assert (~masks.weights[name]).any() and (weight[~masks.weights[name]] == 0).all()
        assert (model.get_parameter(name) != theta[name]).any()
        assert torch.equal(weight[masks.weights[name]], model.get_parameter(name)[masks.weights[name]])
    for axis in masks.axes:
        for member in axis.having("scale"):
            assert (scales[member.tensor][0, ~masks.group(axis)] == 0).all()


@pytest.mark.parametrize(("name", "groups"), CASES)
def test_what_is_kept_has_squared_signal_to_noise_above_e_to_minus_three(name, groups):
    model, method = prepared(name, groups, log_sigma=0.5, log_sigma_groups=1.4)
    masks = method.masks()
    assert set(masks.groups) == set(method.group_theta) and set(masks.weights) == set(method.theta)
    for key, theta in method.theta.items():
        wanted = theta.detach() ** 2 / torch.exp(2 * method.log_sigma[key.replace(".", "/")].detach()) > math.exp(-3)
        assert torch.equal(masks.weights[key], wanted) and wanted.any() and not wanted.all()
    assert all(kept.all() for kept in masks.groups.values())  # μ = 1: log α = 2.8
    with torch.no_grad():
        for k in method.group_log_sigma:
            method.group_log_sigma[k].copy_(torch.linspace(1.3, 1.61, len(method.group_log_sigma[k])))
    for k, kept in method.masks().groups.items():
        assert torch.equal(kept, method.group_log_sigma[k] < 1.5)


def test_log_alpha_is_read_between_minus_eight_and_eight():
    model, method = prepared("classifier", "wgn", log_sigma=-30.0, log_sigma_groups=30.0)
    found = method.log_alpha()
    assert set(found) == {*method.theta, *method.group_theta}
    assert all((found[name] == -8).all() for name in method.theta)
    assert all((found[name] == 8).all() for name in method.group_theta)


def test_biases_have_no_posterior():
    _, method = prepared("classifier", "wgn")
    assert not any("bias" in name for name in [*method.log_sigma, *method.theta])
    draw = method.sample(Batch(TOKENS, TOKENS, None))
    assert not any("bias" in name for name in draw.weights)


# ---- economies of long runs


def asleep(name, groups="wgn", numbers=(1,), words=()):
    """A method whose input and hidden neurons `numbers` and whose `words` have log α far above the cut; noise is tiny."""
    model, method = prepared(name, groups, log_sigma=-20.0, log_sigma_groups=-20.0, sleep_above=5.0)
    gone = {a.name: list(words if a.kind == "vocabulary" else numbers) for a in method.group_axes if a.kind != "gates"}
    with torch.no_grad():
        for axis, which in gone.items():
            method.group_log_sigma[axis][which] = 4.0
    return model, method, gone


def descent(model, method):
    """Plain gradient descent on everything."""
    return torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)


@pytest.mark.parametrize("words", [(), (5, 8)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["classifier", "character model", "word model"])
def test_a_step_without_sleepers_is_a_step_with_them_scaled_by_zero_and_leaves_them_as_they_are(name, padded, words):
    model, method, gone = asleep(name, words=words)
    batch = Batch(TOKENS, TOKENS, torch.tensor([4, 2, 4, 3]) if padded else None)
    before = {n: p.detach().clone() for n, p in [*model.named_parameters(), *method.named_parameters()]}
    whole, scales = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}, {}
    for axis in method.group_axes:
        z = method.group_theta[axis.name].detach().clone()
        z[gone.get(axis.name, [])] = 0
        scales |= {member.tensor: z[None] for member in axis.having("scale")}
    expected = logits_by_hand(model, whole, scales, TOKENS, batch.lengths)[0]
    slopes = dict(zip(whole, torch.autograd.grad(expected.square().sum(), list(whole.values())), strict=True))

    optimizer = descent(model, method)
    with method.resting(optimizer):
        draw = method.sample(batch)
        draw.noise = {}
        assert draw.weights["lstm.weight_hh_l0"].shape == (16, 4)
        outputs = draw.run(model, batch.lengths)[0]
        assert error(outputs, expected.detach()) <= 1e-7  # σ is e^−20
        outputs.square().sum().backward()
        optimizer.step()
    after = {n: p.detach() for n, p in [*model.named_parameters(), *method.named_parameters()]}
    for n, slope in slopes.items():
        assert torch.allclose(after[n], before[n] - 0.1 * slope, rtol=1e-4, atol=1e-6)
    for axis, which in gone.items():
        assert torch.equal(after[f"group_theta.{axis}"][which], before[f"group_theta.{axis}"][which])
        assert torch.equal(after[f"group_log_sigma.{axis}"][which], before[f"group_log_sigma.{axis}"][which])
    assert method.sample(batch).weights["lstm.weight_hh_l0"].shape == (20, 5)  # whole again


def test_the_optimiser_s_moments_are_cut_and_put_back_with_their_parameter():
    whole = torch.nn.Parameter(randn(5, 4, seed=1))
    lines = [(0, torch.tensor([0, 2, 3])), (1, torch.tensor([1, 3]))]
    small = torch.nn.Parameter(cut(whole.detach(), lines))
    one, other, slopes = torch.optim.Adam([whole]), torch.optim.Adam([small]), randn(3, 5, 4, seed=2)
    for step, slope in enumerate(slopes):
        small.grad = cut(slope, lines)
        other.step()
        if step == 1:
            before, moments = whole.detach().clone(), {n: v.clone() for n, v in one.state[whole].items()}
            with narrowed({whole: lines}, one):
                whole.grad = cut(slope, lines)
                one.step()
            changed = (whole != before).nonzero().tolist()
            assert changed == [[r, c] for r in (0, 2, 3) for c in (1, 3)]
            assert ((one.state[whole]["exp_avg"] != moments["exp_avg"]).nonzero().tolist()) == changed
        else:
            whole.grad = slope.clone()
            one.step()
    assert torch.equal(cut(whole, lines), small)
    for name in ("step", "exp_avg", "exp_avg_sq"):
        value = one.state[whole][name]
        assert torch.equal(cut(value, lines) if value.dim() else value, other.state[small][name])


def test_what_was_cut_is_put_back_when_an_epoch_breaks_off():
    model, method, _ = asleep("classifier", words=(5,))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), method.resting(descent(model, method)):
        raise KeyboardInterrupt
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert method.sample(Batch(TOKENS, TOKENS, None)).weights["lstm.weight_hh_l0"].shape == (20, 5)


def test_the_last_neuron_and_the_last_word_stay_awake():
    model, method, _ = asleep("classifier", numbers=(0, 1, 2, 3), words=range(V))  # all 4 inputs, 4 of 5 hidden neurons
    with method.resting(descent(model, method)):
        assert model.embedding.weight.shape == (V, 4) and model.lstm.weight_hh_l0.shape == (4, 1)


def test_weights_alone_put_neurons_and_words_to_sleep_by_closure():
    """Without group variables: a neuron all of whose readers are noise, a word all of whose numbers are."""
    model, method = prepared("classifier", "", sleep_above=5.0)
    with torch.no_grad():
        for key, dim, at in (("lstm/weight_hh_l0", 1, 2), ("head/weight", 1, 2), ("embedding/weight", 0, 7)):
            method.log_sigma[key].fill_(-4.0).select(dim, at).fill_(9.0)
    with method.resting(descent(model, method)):
        assert model.head.weight.shape == (2, 4) and model.embedding.weight.shape == (V - 1, 4)
        assert method.lines["lstm.weight_hh_l0"][0][1].tolist() == [n for n in range(20) if n % 5 != 2]


def test_a_word_that_sleeps_for_want_of_weights_is_not_kept_by_its_variable():
    _, method, _ = asleep("classifier")
    with torch.no_grad():
        method.log_sigma["embedding/weight"][7] = 9.0  # all its numbers are noise, its variable is not
    assert method.masks().groups["vocabulary"].tolist() == [word != 7 for word in range(V)]
    found = method.log_alpha()
    assert found["vocabulary"][7] == 8 and (found["embedding.weight"][7] == 8).all()
    assert (found["embedding.weight"][:, 1] == 8).all() and (found["embedding.weight"][0, [0, 2, 3]] == -8).all()


def test_a_stack_keeps_its_hidden_neurons_awake():
    model, method, _ = asleep("classifier, 2 layers")
    with method.resting(descent(model, method)):
        assert model.embedding.weight.shape == (V, 3) and model.lstm.weight_hh_l0.shape == (20, 5)


def test_binary_masks_are_of_those_awake():
    model = randomise(MODELS["classifier"](), 1).requires_grad_(True)
    method = BinarySparseVD()
    method.prepare(model, Plan(epochs=4, batch_size=3, dropout=0.5, sleep_above=5.0), N_EXAMPLES, STEPS_PER_EPOCH)
    with torch.no_grad():
        method.log_sigma["lstm/weight_ih_l0"].fill_(-4.0).select(1, 2).fill_(9.0)
    with method.resting(descent(model, method)):
        draw = method.sample(Batch(TOKENS, TOKENS, None))
        assert draw.scales["lstm.input_l0"].shape == (4, 3) and draw.run(model)[0].shape == (4, 2)


def test_the_penalty_s_gradient_is_held_for_kl_every_steps_of_an_epoch():
    _, method = prepared("classifier", "wgn", kl_every=4)
    pairs = every_pair(method)

    def gradients(step):
        leaves = [p for pair in pairs for p in pair]
        return torch.autograd.grad(method.penalty(step), leaves)

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
