"""What the tests compare the library with: slow, obvious, written from the formulas of the papers, not from the code."""

import copy

import torch

from sparsernn.nets.axes import Axis, Member, each, recurrent_axes
from sparsernn.nets.layers import LSTM, Linear, stand_in
from sparsernn.nets.masked import Fixed
from sparsernn.nets.masks import weight_matrices
from sparsernn.nets.models import Classifier, Model

VALUES = {torch.float64: 1e-12, torch.float32: 1e-6}
GRADIENTS = {torch.float64: 1e-12, torch.float32: 5e-6}


def error(a, b):
    """max|a − b| / max(1, max|b|)."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) if a.numel() else 0.0


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(outputs, leaves):
    """Gradients by `leaves` of a random projection of all outputs (the same numbers for the same shapes)."""
    total = sum((y * randn(*y.shape, seed=100 + i, dtype=y.dtype)).sum() for i, y in enumerate(outputs))
    return torch.autograd.grad(total, leaves)


SQUASH = {"logistic": torch.sigmoid, "hard": lambda a: (0.2 * a + 0.5).clip(0, 1)}


def lstm_step(p, name, act, s_gates, x, read, h, c):
    """x and h as W_ih and W_hh read them, h as it is carried → the next (h, c)."""
    a = s_gates * (p["weight_ih" + name] @ x + p["weight_hh" + name] @ read)
    i, f, g, o = (a + p["bias_ih" + name] + p["bias_hh" + name]).chunk(4)
    c = SQUASH[act](f) * c + SQUASH[act](i) * g.tanh()
    return SQUASH[act](o) * c.tanh(), c


def gru_step(p, name, act, s_gates, x, read, h):
    from_x = (s_gates * (p["weight_ih" + name] @ x) + p["bias_ih" + name]).chunk(3)
    from_h = (s_gates * (p["weight_hh" + name] @ read) + p["bias_hh" + name]).chunk(3)
    r, z = (SQUASH[act](from_x[k] + from_h[k]) for k in (0, 1))
    n = torch.tanh(from_x[2] + r * from_h[2])
    return ((1 - z) * n + z * h,)


def rnn_step(p, name, act, s_gates, x, read, h):
    a = s_gates * (p["weight_ih" + name] @ x + p["weight_hh" + name] @ read) + p["bias_ih" + name] + p["bias_hh" + name]
    return (a.tanh() if act == "tanh" else a.clip(0, 20 if act == "clipped_relu" else None),)


STEPS = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}


def step_loop(layer, p, x, state=None, scales=None, lengths=None, padding="right"):
    """The layer, one sequence at a time without its padding, one step at a time → y [T, B, D·H], state as torch's.

    layer: read for its kind and shape only. p: parameter name → tensor. x [T, B, I], one-hot written out.
    """
    step, act, directions = STEPS[type(layer).__name__], layer.activation, 1 + layer.bidirectional
    scales, size, ends = scales or {}, p["weight_hh_l0"].shape[1], ("", "_reverse")[:directions]
    n_states = 2 if step is lstm_step else 1
    state = state if state is None or n_states == 2 else (state,)
    ys, finals = [], []
    for b in range(x.shape[1]):
        n = len(x) if lengths is None else int(lengths[b])
        start = 0 if padding == "right" else len(x) - n
        sequence, final, row = list(x[start : start + n, b]), [], 0
        for level in range(layer.num_layers):
            read = []
            for end in ends:
                name = f"_l{level}{end}"
                s_in, s_rec, s_out, s_gates = (
                    1.0 if (s := scales.get(kind + name)) is None else s[b if len(s) > 1 else 0]
                    for kind in ("input", "recurrent", "output", "gates")
                )
                carried = (x.new_zeros(size),) * n_states if state is None else tuple(s[row, b] for s in state)
                y = [None] * n
                for t in reversed(range(n)) if end else range(n):
                    carried = step(p, name, act, s_gates, s_in * sequence[t], s_rec * carried[0], *carried)
                    y[t] = s_out * carried[0]
                read.append(y)
                final.append(carried)
                row += 1
            sequence = [torch.cat(parts) for parts in zip(*read, strict=True)]
        blank = x.new_zeros(directions * size)
        ys.append(torch.stack([blank] * start + sequence + [blank] * (len(x) - n - start)))
        finals.append(final)
    final = tuple(
        torch.stack([torch.stack([final[r][k] for final in finals]) for r in range(len(finals[0]))])
        for k in range(n_states)
    )
    return torch.stack(ys, 1), final if n_states == 2 else final[0]


def one_hot(tokens, size):
    return torch.eye(size, dtype=torch.float64)[tokens]


class Tagger(Model):
    """A bidirectional stack for the tests: one-hot words, a label at every step. No preset has one yet."""

    groups = {"wgn": ("vocabulary", "hidden", "gates")}

    def __init__(self, vocabulary, classes, hidden, layers=1, cell=LSTM, activation=None):
        super().__init__()
        self.lstm = cell(vocabulary, hidden, layers, bidirectional=True, activation=activation)
        self.head = Linear(2 * hidden, classes)

    def axes(self):
        size, ends = self.lstm.input_size, ("_l0", "_l0_reverse")
        reads = [Member("lstm.weight_ih" + end, 1, each(size), "in") for end in ends]
        scales = [Member("lstm.input" + end, 1, each(size), "scale") for end in ends]
        words = Axis("vocabulary", "vocabulary", size, (*reads, *scales))
        return [words, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.lstm(tokens, state, lengths=lengths)
        return self.head(y), state


def with_scales(model, weights=None, scales=None):
    """A copy of the model with these parameters (by name) and scales (`layer.scale` → [B|1, n])."""
    model, by_layer = copy.deepcopy(model), {}
    model.load_state_dict(weights or {}, strict=False)
    for name, scale in (scales or {}).items():
        layer, _, kind = name.rpartition(".")
        by_layer.setdefault(layer, {})[kind] = scale
    for name, given in by_layer.items():
        layer = stand_in(model.get_submodule(name))
        layer.carried = Fixed(layer, given, batch_dim=1)
    return model


def logits_by_hand(model, weights, scales, tokens, lengths=None, state=None):
    """The formulas for a whole model but the bag of words: weights and scales by name, everything else from `model`."""
    p = {name: parameter.detach() for name, parameter in model.named_parameters()} | weights
    stack, layers = f"{model.stack}.", model.recurrent
    own = {name.removeprefix(stack): s for name, s in scales.items() if name.startswith(stack)}
    cells = {name.removeprefix(stack): value for name, value in p.items() if name.startswith(stack)}
    head = p["head.weight"] if "head.weight" in p else p["embedding.weight"]  # tied
    if "embedding.weight" in p:
        x = p["embedding.weight"][tokens]
        if (z := scales.get("embedding.input")) is not None:
            rows = [[z[b if len(z) > 1 else 0, word] for b, word in enumerate(step)] for step in tokens.tolist()]
            x = x * torch.stack([torch.stack(row) for row in rows])[:, :, None]
    else:
        x = one_hot(tokens, cells["weight_ih_l0"].shape[1])
    last = isinstance(model, Classifier)
    y, state = step_loop(layers, cells, x, state, own, lengths, "left" if last else "right")
    y = y[-1] if last else y
    return y @ head.T + p["head.bias"], state, y


def random_masks(model, seed, density=0.5, groups=None):
    """Masks with every weight kept with probability `density` (a number, or one per matrix), and groups: axis → probability."""
    from sparsernn.nets.masks import Masks

    generator = torch.Generator().manual_seed(seed)
    share = density if isinstance(density, dict) else dict.fromkeys(weight_matrices(model), density)
    weights = {n: torch.rand(w.shape, generator=generator) < share[n] for n, w in weight_matrices(model).items()}
    axes = tuple(model.axes())
    chosen = {
        a.name: torch.rand(a.size, generator=generator) < groups[a.name] for a in axes if a.name in (groups or {})
    }
    return Masks(axes, weights, chosen)


def randomise(model, seed=0):
    """float64, every parameter (biases too) drawn anew, so that nothing is zero or symmetric by its start."""
    model = model.double().requires_grad_(False)
    for i, parameter in enumerate(model.parameters()):
        parameter.copy_(0.6 * randn(*parameter.shape, seed=1000 * seed + i))
    return model


def random_means(masks, seed=0):
    """A group mean for every axis, around one, some negative."""
    return {a.name: 1 + 0.6 * randn(a.size, seed=1000 * seed + i) for i, a in enumerate(masks.axes)}


def scale_names(model, axis):
    """The scales of a group variable (1812.05692): z^x where it is read, z^h on output and recurrence, z^k on gates."""
    kind, _, suffix = axis.partition("_")
    if kind == "hidden":
        return [f"{model.stack}.recurrent_{suffix}", f"{model.stack}.output_{suffix}"]
    if kind == "gates":
        return [f"{model.stack}.gates_{suffix}"]
    if kind == "vocabulary" and hasattr(model, "embedding"):
        return ["embedding.input"]
    if kind == "vocabulary" and not hasattr(model, model.stack):
        return ["head.input"]
    return [f"{model.stack}.input{suffix}" for suffix in model.recurrent.suffixes() if suffix.startswith("_l0")]


def masked_by_hand(model, masks, means, tokens, lengths=None, state=None):
    """The authors' single-pass evaluation (1812.05692): θ or 0, μ or 0 → logits, (h, c)."""
    weights = {name: w * masks.weights[name] for name, w in weight_matrices(model).items()}
    scales = {}
    for axis in masks.axes:
        z = means.get(axis.name, torch.ones(axis.size, dtype=torch.float64)) * masks.group(axis)
        scales |= dict.fromkeys(scale_names(model, axis.name), z[None])
    if not hasattr(model, model.stack):
        counts = torch.stack([(tokens == word).sum(0) for word in range(model.head.in_features)], 1)
        x = torch.log(1.0 + counts.double()) * scales["head.input"]
        return x @ weights["head.weight"].T + model.head.bias, None
    return logits_by_hand(model, weights, scales, tokens, lengths, state)[:2]
