"""Sparse variational dropout for recurrent nets: weights (1708.00077), words (1810.10927), neurons and gates (1812.05692).

Every weight has a posterior N(θ, σ²) under a log-uniform prior; group variables z of words, neurons and gates
likewise, with mean one at the start. What ends with log α = log σ²/θ² ≥ 3 is noise and goes.
"""

import math
from contextlib import contextmanager

import torch
from torch import nn

from ..nets.masks import Masks, effective, weight_matrices
from .base import Draw, Method, Phase
from .sleep import awake, cut, lines_left, narrowed, put_back

# name → k1, k2, k3 of KL ≈ k1 (1 − sigm(k2 + k3 log α)) + ½ log(1 + 1/α), and the |log α| beyond which it is flat.
# Compared with the integral in notebooks/kl.ipynb; their gradients agree to about one per cent.
FITS = {
    "molchanov": (0.63576, 1.87320, 1.48695, math.inf),  # Molchanov et al. 2017, eq. 14
    "1812.05692": (0.64, 1.95, 1.5, 8.0),  # its code; there less a constant of 0.67
}


def log_alpha(theta, log_sigma):
    """log σ²/θ²; the 1e-16 keeps the gradient at θ = 0 finite."""
    return 2 * log_sigma - torch.log(theta * theta + 1e-16)


SLICE = 1 << 15  # elements whose buffers stay in a core's cache


@torch.no_grad()
def kl_and_gradients(theta, log_sigma, fit="molchanov"):
    """`kl` with its gradients (value, d θ, d log σ), in one pass over slices that stay in the cache."""
    k1, k2, k3, flat = FITS[fit]
    theta, log_sigma = theta.contiguous(), log_sigma.contiguous()
    d_theta, d_log_sigma = torch.empty_like(theta), torch.empty_like(log_sigma)
    total = theta.new_zeros((), dtype=torch.float64)
    length = SLICE if theta.device.type == "cpu" else theta.numel()
    parts = (t.reshape(-1).split(length) for t in (theta, log_sigma, d_theta, d_log_sigma))
    buffers = [theta.new_empty(min(length, theta.numel())) for _ in range(3)]
    for t, ls, d_t, d_ls in zip(*parts, strict=True):
        square, x, s = (buffer[: len(t)] for buffer in buffers)
        torch.mul(t, t, out=square).add_(1e-16)
        torch.log(square, out=x).sub_(ls, alpha=2)  # −log α
        inside = x.abs() < flat if flat < math.inf else None
        if inside is not None:
            x.clamp_(-flat, flat)
        # KL = k1 s + ½ softplus(x), s = 1 − sigm(k2 + k3 log α) without losing its digits where α is large
        torch.mul(x, k3, out=s).sub_(k2).sigmoid_()
        total += k1 * s.sum() + 0.5 * torch._C._nn.softplus(x, out=d_t).sum()
        # dKL/dlog σ = 2 k1 k3 s (s − 1) − sigm(x);  dKL/dθ = −θ/θ² of it
        torch.mul(s, s, out=d_ls).sub_(s).mul_(2 * k1 * k3).sub_(x.sigmoid_())
        if inside is not None:
            d_ls.mul_(inside)
        torch.div(t, square, out=d_t).mul_(d_ls).neg_()
    return total.to(theta.dtype), d_theta, d_log_sigma


class _KL(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx, theta, log_sigma, value, d_theta, d_log_sigma):
        ctx.save_for_backward(d_theta, d_log_sigma)
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        d_theta, d_log_sigma = ctx.saved_tensors
        return grad * d_theta, grad * d_log_sigma, None, None, None


def kl(theta, log_sigma, fit="molchanov"):
    """Σ KL(N(θ, σ²) ‖ log-uniform), nats, by one of FITS; → 0 as α → ∞ (its code's fit: to −10⁻⁶, and flat there)."""
    return _KL.apply(theta, log_sigma, *kl_and_gradients(theta, log_sigma, fit))


class _Noisy(torch.autograd.Function):
    """θ + σ ε with one ε per element (θ may broadcast over the rows of ε); keeps σ ε for the gradient of log σ."""

    @staticmethod
    def forward(ctx, theta, log_sigma, rows):
        sigma = log_sigma.exp()
        noise = torch.randn(rows + theta.shape, dtype=theta.dtype, device=theta.device).mul_(sigma)
        ctx.save_for_backward(noise)
        ctx.extra = len(rows)
        return theta + noise

    @staticmethod
    def backward(ctx, grad):
        (noise,) = ctx.saved_tensors
        d_log_sigma = grad * noise
        if ctx.extra:
            return grad.sum(0), d_log_sigma.sum(0), None
        return grad, d_log_sigma, None


def noisy(theta, log_sigma, rows=()):
    """A sample of N(θ, σ²), shape rows + θ.shape."""
    return _Noisy.apply(theta, log_sigma, tuple(rows))


def _drawn(theta, log_sigma, lines=None, rows=()):
    """`noisy` of what `lines` [(dimension, positions)] pick, and zero at positions of −1."""
    known = [(dim, at[at >= 0]) for dim, at in lines or ()]
    drawn = noisy(cut(theta, known), cut(log_sigma, known), rows)
    for dim, at in lines or ():
        if (at < 0).any():
            dim, shape = dim + len(rows), list(drawn.shape)
            shape[dim] = len(at)
            drawn = drawn.new_zeros(shape).index_copy(dim, (at >= 0).nonzero().flatten(), drawn)
    return drawn


def _key(name):
    """Parameter names cannot hold dots in an nn.ParameterDict."""
    return name.replace(".", "/")


class SparseVD(Method):
    """Weights with one noise sample per mini-batch, shared by all time steps and sequences: the posterior is over weights.

    groups: "" (weights only), "voc", "wn" or "wgn": the model says which axes that opens. A group variable is drawn
    once per sequence and shared by its time steps. Linear layers named by `model.local_noise` take their noise on the
    output. Only rows or columns of words that occur in the batch are drawn; the others feel their KL alone.

    With `plan.fine_tune`, log α is read once when learning ends (buffers `cut`), and what it keeps is trained on as it
    is. The papers do not; their schedules are ten to a hundred times as long.

    Two economies for long runs, neither of the papers': with `plan.sleep_above` what closure removes at that log α when
    an epoch begins sleeps (`resting`): it is neither drawn nor moved nor charged any more, so it stays away; with
    `plan.kl_every` the KL's gradient is held for some steps, in which no θ or log σ moves far.
    """

    def __init__(self, groups=""):
        super().__init__()
        self.groups = groups

    def prepare(self, model, plan, n_examples, steps_per_epoch):
        super().prepare(model, plan, n_examples, steps_per_epoch)
        self.plan, self.n_examples, self.steps_per_epoch = plan, n_examples, steps_per_epoch
        kinds = model.groups[self.groups] if self.groups else ()
        self.axes = tuple(model.axes())
        self.group_axes = [axis for axis in self.axes if axis.kind in kinds]
        self.words = next((axis for axis in self.axes if axis.kind == "vocabulary"), None)
        self.neurons = {axis.name for axis in self.group_axes if axis.kind != "vocabulary"}
        self.theta = weight_matrices(model)
        self.log_sigma = nn.ParameterDict(
            {_key(n): nn.Parameter(torch.full_like(w, plan.log_sigma)) for n, w in self.theta.items()}
        )
        like = next(iter(self.theta.values()))
        self.group_theta = nn.ParameterDict(
            {_key(axis.name): nn.Parameter(like.new_ones(axis.size)) for axis in self.group_axes}
        )
        self.group_log_sigma = nn.ParameterDict(
            {_key(a.name): nn.Parameter(like.new_full((a.size,), plan.log_sigma_groups)) for a in self.group_axes}
        )

        self.held, self.lines = {}, {}
        self.register_buffer("fixed", torch.tensor(False))
        self.learning_steps = min(round((1 - plan.fine_tune) * plan.epochs), plan.epochs - 1) * steps_per_epoch
        if plan.fine_tune:
            for name, theta, _ in self._pairs():
                self.register_buffer("cut/" + _key(name), torch.zeros_like(theta))

    def parameter_groups(self, plan):
        uncertain = [*self.log_sigma.values(), *self.group_log_sigma.values()]
        return [
            {"params": list(self.group_theta.values()), "lr": plan.lr, "decays": True},
            {"params": uncertain, "lr": plan.lr_log_sigma, "weight_decay": 0.0},  # whatever the optimiser's default is
        ]

    def phases(self):
        if share := self.plan.fine_tune:
            return Phase("learn", 1 - share, selectable=False), Phase("fine-tune", share, selectable=True)
        return Phase("learn", 0.75, selectable=False), Phase("settle", 0.25, selectable=True)

    @contextmanager
    def resting(self, optimizer):
        if not self.plan.sleep_above or self.fixed:
            yield
            return
        with torch.no_grad():
            self.lines = self._left(self._measured())
        parts = dict(self.model.named_parameters()), self.log_sigma, self.group_theta, self.group_log_sigma
        found = {p: self.lines.get(name.replace("/", ".")) for part in parts for name, p in part.items()}
        try:
            with narrowed({p: left for p, left in found.items() if left}, optimizer):
                yield
        finally:
            self.lines = {}

    def sample(self, batch):
        if self.fixed:
            return Draw(batch.tokens, *self._kept())
        touched, tokens = torch.unique(batch.tokens, return_inverse=True)
        batch_size, lines = tokens.shape[1], self._lines(touched)
        draw = Draw(tokens, self.sample_weights(lines), self.sample_scales(batch_size, lines))
        for layer in self.model.local_noise:
            log_sigma = self.log_sigma[_key(layer + ".weight")]
            epsilon = torch.randn(batch_size, log_sigma.shape[0], dtype=log_sigma.dtype, device=log_sigma.device)
            draw.noise[layer] = ((2 * log_sigma).exp(), epsilon)
        return draw

    def _lines(self, touched):
        """Tensor that runs over words → [(dimension, positions)]: the words of the batch, in the order in which they are
        numbered then; −1 for one that sleeps."""
        if not self.words:
            return {}
        if self.words.name in self.lines:
            ((_, left),) = self.lines[self.words.name]
            number = torch.full((self.words.size,), -1, device=left.device)
            number[left] = torch.arange(len(left), device=left.device)
            touched = number[touched]
        return {member.tensor: [(member.dim, touched)] for member in self.words.having("in", "scale")}

    def sample_weights(self, lines=None):
        """lines: what to draw of each tensor (`_lines`); None: everything."""
        if self.fixed:
            return self._kept()[0]
        draws, lines = {}, lines or {}
        for name, theta in self.theta.items():
            if name.rpartition(".")[0] not in self.model.local_noise:
                draws[name] = _drawn(theta, self.log_sigma[_key(name)], lines.get(name))
        return draws

    def sample_scales(self, batch_size, lines=None):
        if self.fixed:
            return self._kept()[1]
        draws, lines = {}, lines or {}
        for axis in self.group_axes:
            members, key = axis.having("scale"), _key(axis.name)
            left = [(0, at) for _, at in lines.get(members[0].tensor, ())]
            z = _drawn(self.group_theta[key], self.group_log_sigma[key], left, (batch_size,))
            draws |= {member.tensor: z for member in members}
        return draws

    def _kept(self):
        """Weights and scales of the second phase, without noise; gradients pass."""
        return effective(self.model, self.masks(), {a.name: self.group_theta[_key(a.name)] for a in self.group_axes})

    def kl_weight(self, step, neurons=False):
        """The factor of the KL at a step, of weights and words or of `neurons` and gates: 0 until epoch `kl_start`, a
        straight line to its full value at `kl_full`, for weights and words `kl_peak` from `kl_press` on; from `kl_settle`
        on `kl_weight` for all."""
        plan, epoch = self.plan, step / self.steps_per_epoch
        if plan.kl_settle and epoch >= plan.kl_settle:
            return plan.kl_weight
        full = (neurons and plan.kl_weight_neurons) or plan.kl_weight
        if plan.kl_peak and not neurons and epoch >= max(plan.kl_press, plan.kl_full):
            return plan.kl_peak
        if epoch >= plan.kl_full:
            return full
        return full * max(0.0, epoch - plan.kl_start) / (plan.kl_full - plan.kl_start)

    def _pairs(self):
        """Every (name, θ, log σ), of weights and of groups."""
        yield from ((name, theta, self.log_sigma[_key(name)]) for name, theta in self.theta.items())
        yield from (
            (a.name, self.group_theta[_key(a.name)], self.group_log_sigma[_key(a.name)]) for a in self.group_axes
        )

    def penalty(self, step):
        factors = {neurons: self.kl_weight(step, neurons) for neurons in (False, True)}
        if self.fixed or not any(factors.values()):
            return 0.0
        fresh = step % self.steps_per_epoch % self.plan.kl_every == 0  # counted anew each epoch: a resumed run agrees
        total = 0.0
        for name, theta, log_sigma in self._pairs():
            if fresh or name not in self.held:
                self.held[name] = kl_and_gradients(theta, log_sigma, self.plan.kl_fit)
            total = total + factors[name in self.neurons] * _KL.apply(theta, log_sigma, *self.held[name])
        return total / self.n_examples

    @torch.no_grad()
    def after_step(self, step):
        if self.plan.fine_tune and not self.fixed and step >= self.learning_steps:
            for name, value in self.log_alpha().items():
                getattr(self, "cut/" + _key(name)).copy_(value)
            self.fixed.fill_(True)

    @torch.no_grad()
    def log_alpha(self):
        found = self._measured()
        for name, left in self._left(found).items():
            if name in found:  # what sleeps is gone, wherever its own log α stopped
                gone = torch.full_like(found[name], 8.0)
                put_back(gone, cut(found[name], left), left)
                found[name] = gone
        return found

    def _measured(self):
        if self.fixed:
            return {name: getattr(self, "cut/" + _key(name)) for name, _, _ in self._pairs()}
        return {name: log_alpha(theta, log_sigma).clamp(-8, 8) for name, theta, log_sigma in self._pairs()}

    def _left(self, found):
        """`lines_left` by what closure removes at `plan.sleep_above` of the log α `found`; empty where nothing sleeps."""
        if not self.plan.sleep_above:
            return {}
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        lines = lines_left(self.axes, awake(self._masks(found, self.plan.sleep_above)), shapes)
        device = next(iter(found.values())).device
        return {name: [(dim, at.to(device)) for dim, at in left] for name, left in lines.items()}

    def masks(self, threshold=None):
        return self._masks(self.log_alpha(), self.plan.threshold if threshold is None else threshold)

    def _masks(self, found, threshold):
        """3: dropout rate 0.953, θ²/σ² < 0.05."""
        keep = {name: (a < threshold).cpu() for name, a in found.items()}
        groups = {axis.name: keep.pop(axis.name) for axis in self.group_axes}
        return Masks(self.axes, keep, groups)

    def means(self):
        return {axis.name: self.group_theta[_key(axis.name)].detach() for axis in self.group_axes}
