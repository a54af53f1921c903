"""The experiment on noise over time: without noise it is the library's own model, with noise each way has its distribution."""

import math

import pytest
import tiny
import torch
from oracles import randn
from torch.nn import functional as F

from sparsernn.nets.models import LanguageModel
from sparsernn.study import noise


def test_without_noise_it_is_the_library_s_model():
    torch.manual_seed(0)
    model, tokens, targets = LanguageModel(7, 5), torch.randint(7, (6, 3)), torch.randint(7, (6, 3))
    log_sigma = torch.zeros_like(model.lstm.weight_hh_l0)
    wanted = F.cross_entropy(model(tokens)[0].flatten(0, 1), targets.flatten()) / math.log(2)
    assert abs(noise.bits(model, log_sigma, tokens, targets, "none") - wanted) < 1e-6
    assert abs(noise.bits(model, log_sigma - 30, tokens, targets, "shared") - wanted) < 1e-6
    assert noise.bits(model, log_sigma, tokens, targets, "fresh") != wanted


def test_fresh_and_local_noise_have_the_same_mean_and_variance_on_a_product():
    """20,000 products of one h: mean θ h and variance σ² h², within five standard errors."""
    torch.manual_seed(0)
    theta, log_sigma, n = randn(4, 3, seed=1), 0.5 * randn(4, 3, seed=2) - 1, 20_000
    h = randn(1, 3, seed=3)
    mean, variance = (h @ theta.t())[0], (h**2 @ (2 * log_sigma).exp().t())[0]
    for way in ("fresh", "local"):
        product = noise.NOISE[way](theta, log_sigma)
        drawn = torch.cat([product(h) for _ in range(n)])
        assert ((drawn.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
        assert ((drawn.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / n)).all()


def test_a_row_a_look_and_the_same_again_from_the_same_seed():
    task = tiny.char("quick")
    first, again = (noise.train(task, "shared", 1, 5, hidden=4, window=10, every=2) for _ in range(2))
    assert first["step"].to_list() == [2, 4, 5] and first.equals(again)
    assert (noise.train(task, "none", 1, 2, hidden=4, window=10)[["noise_share"]] == 0).all().all()


def test_another_way_is_refused():
    with pytest.raises(ValueError, match="noise is 'twice'; allowed: none, shared, fresh, local"):
        noise.train(tiny.char("quick"), "twice", 0, 1)
