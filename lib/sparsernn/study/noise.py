"""One noise sample for all time steps, or a fresh one at each? The experiment behind claim A3 of 1708.00077.

A small character LSTM whose recurrent weights alone are uncertain is trained with its noise drawn in different ways.
The loop over time is plain torch, because fresh noise is what the library's layer refuses to know.
"""

import itertools
import math

import pandas as pd
import torch
from torch.nn import functional as F

from ..nets.models import LanguageModel
from ..sparsify.kl import kl, log_alpha, noisy


def _none(theta, log_sigma):
    """No noise, no penalty: the dense net."""
    return lambda h: h @ theta.t()


def _shared(theta, log_sigma):
    """One weight sample for every step and sequence: a draw from a posterior over weights."""
    weight = noisy(theta, log_sigma)
    return lambda h: h @ weight.t()


def _fresh(theta, log_sigma):
    """A new weight sample at each step: no fixed network does that."""
    return lambda h: h @ noisy(theta, log_sigma).t()


def _local(theta, log_sigma):
    """Local reparametrisation: noise on the product, fresh for each step and sequence."""
    variance = (2 * log_sigma).exp()
    return lambda h: (mean := h @ theta.t()) + torch.randn_like(mean) * torch.sqrt((h * h) @ variance.t() + 1e-8)


NOISE = {"none": _none, "shared": _shared, "fresh": _fresh, "local": _local}


def bits(model, log_sigma, tokens, targets, noise):
    """Mean bits per symbol of `tokens` → `targets`, int64 [T, B], with the noise of one kind (a name of NOISE) on W_hh."""
    p = dict(model.named_parameters())
    product = NOISE[noise](p["lstm.weight_hh_l0"], log_sigma)
    h = c = torch.zeros(tokens.shape[1], log_sigma.shape[1])
    outputs = []
    for x in F.embedding(tokens, p["lstm.weight_ih_l0"].t()) + p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]:
        i, f, g, o = (x + product(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    logits = F.linear(torch.stack(outputs), p["head.weight"], p["head.bias"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def train(task, noise, seed, steps, hidden=64, window=50, batch_size=32, kl_weight=20.0, every=100):
    """Train with one kind of noise → a row each `every` steps: noise, seed, step, valid, drawn, noise_share, log_sigma.

    valid        validation bits per symbol of the means, weights with log α ≥ 3 at zero: what is kept in the end
    drawn        the same of a network drawn once from the posterior, mean of 4
    noise_share  share of recurrent weights with log α ≥ 3
    Raises ValueError for an unknown kind of noise.
    """
    if noise not in NOISE:
        raise ValueError(f"noise is {noise!r}; allowed: {', '.join(NOISE)}")
    torch.manual_seed(seed)
    model = LanguageModel(len(task.vocabulary), hidden, forget_bias=1.0)
    theta = model.lstm.weight_hh_l0
    log_sigma = torch.nn.Parameter(torch.full_like(theta, -3.0))
    optimizer = torch.optim.Adam([{"params": model.parameters(), "lr": 1e-2}, {"params": [log_sigma], "lr": 1e-2}])
    order, rows = torch.Generator().manual_seed(seed), []
    endless = (batch for _ in itertools.count() for batch in task.batches("train", batch_size, window, order))
    for step, batch in enumerate(itertools.islice(endless, steps), 1):
        loss = bits(model, log_sigma, batch.tokens, batch.targets, noise) * math.log(2)
        penalty = kl_weight * kl(theta, log_sigma) / task.n_examples if noise != "none" else 0.0
        optimizer.zero_grad()
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), log_sigma], 1.0)
        optimizer.step()
        if step % every == 0 or step == steps:
            rows.append({"noise": noise, "seed": seed, "step": step} | _validate(task, model, log_sigma, window, noise))
    return pd.DataFrame(rows)


@torch.no_grad()
def _validate(task, model, log_sigma, window, noise, batches=10):
    """The columns `train` measures, on the first `batches` windows of the validation split."""
    theta = model.lstm.weight_hh_l0
    part = list(itertools.islice(task.batches("valid", 32, window), batches))
    uncertain = noise != "none"
    gone = (log_alpha(theta, log_sigma) >= 3) & uncertain

    def mean_bits(kind):
        return sum(bits(model, log_sigma, b.tokens, b.targets, kind).item() for b in part) / len(part)

    drawn = sum(mean_bits("shared") for _ in range(4)) / 4 if uncertain else mean_bits("none")
    kept = theta.clone()
    theta.masked_fill_(gone, 0.0)
    valid = mean_bits("none")
    theta.copy_(kept)
    share = gone.float().mean().item()
    return {"valid": valid, "drawn": drawn, "noise_share": share, "log_sigma": log_sigma.mean().item()}
