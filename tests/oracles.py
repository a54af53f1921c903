"""What the tests compare the library with: slow, obvious, written from the formulas of the papers, not from the code."""

import torch

from sparsernn.axes import Axis, Member, each, recurrent_axes
from sparsernn.masks import weight_matrices
from sparsernn.models import Linear, Model, scales_of
from sparsernn.recurrent import LSTM

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


def step_loop(p, x, layers=1, directions=1, state=None, scales=None, lengths=None, padding="right", gate="logistic"):
    """The layer, one sequence at a time without its padding, one step at a time → y [T, B, D·H], (h, c).

    p: parameter name → tensor. x [T, B, I], one-hot written out. state: (h, c), each [layers·D, B, H].
    """
    scales, size = scales or {}, p["weight_hh_l0"].shape[1]
    squash, ends = SQUASH[gate], ("", "_reverse")[:directions]
    ys, finals = [], []
    for b in range(x.shape[1]):
        n = len(x) if lengths is None else int(lengths[b])
        start = 0 if padding == "right" else len(x) - n
        sequence, final, row = list(x[start : start + n, b]), [], 0
        for layer in range(layers):
            read = []
            for end in ends:
                name = f"_l{layer}{end}"
                s_in, s_rec, s_out, s_gates = (
                    1.0 if (s := scales.get(kind + name)) is None else s[b if len(s) > 1 else 0]
                    for kind in ("input", "recurrent", "output", "gates")
                )
                h, c = (x.new_zeros(size),) * 2 if state is None else (state[0][row, b], state[1][row, b])
                y = [None] * n
                for t in reversed(range(n)) if end else range(n):
                    a = s_gates * (p["weight_ih" + name] @ (s_in * sequence[t]) + p["weight_hh" + name] @ (s_rec * h))
                    i, f, g, o = (a + p["bias_ih" + name] + p["bias_hh" + name]).chunk(4)
                    c = squash(f) * c + squash(i) * g.tanh()
                    h = squash(o) * c.tanh()
                    y[t] = s_out * h
                read.append(y)
                final.append((h, c))
                row += 1
            sequence = [torch.cat(parts) for parts in zip(*read, strict=True)]
        blank = x.new_zeros(directions * size)
        ys.append(torch.stack([blank] * start + sequence + [blank] * (len(x) - n - start)))
        finals.append(final)
    state = tuple(
        torch.stack([torch.stack([final[r][k] for final in finals]) for r in range(len(finals[0]))]) for k in (0, 1)
    )
    return torch.stack(ys, 1), state


def one_hot(tokens, size):
    return torch.eye(size, dtype=torch.float64)[tokens]


class Tagger(Model):
    """A bidirectional stack for the tests: one-hot words, a label at every step. No preset has one yet."""

    groups = {"wgn": ("vocabulary", "hidden", "gates")}

    def __init__(self, vocabulary, classes, hidden, layers=1):
        super().__init__()
        self.lstm = LSTM(vocabulary, hidden, layers, bidirectional=True)
        self.head = Linear(2 * hidden, classes)

    def axes(self):
        size, ends = self.lstm.input_size, ("_l0", "_l0_reverse")
        reads = [Member("lstm.weight_ih" + end, 1, each(size), "in") for end in ends]
        scales = [Member("lstm.input" + end, 1, each(size), "scale") for end in ends]
        words = Axis("vocabulary", "vocabulary", size, (*reads, *scales))
        return [words, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None, scales=None, noise=None):
        y, state = self.lstm(tokens, state, scales_of(scales, "lstm"), lengths)
        return self.head(y, (noise or {}).get("head")), state


def logits_by_hand(model, weights, scales, tokens, lengths=None, state=None):
    """The formulas for a whole Classifier or one-hot model: weights and scales by name, everything else from `model`."""
    p = {name: parameter.detach() for name, parameter in model.named_parameters()} | weights
    lstm, own = model.lstm, {name.removeprefix("lstm."): s for name, s in scales.items() if name.startswith("lstm.")}
    cells = {name.removeprefix("lstm."): value for name, value in p.items() if name.startswith("lstm.")}
    shape = {"layers": lstm.num_layers, "directions": 1 + lstm.bidirectional, "gate": lstm.gate_activation}
    if "embedding.weight" in p:
        x = p["embedding.weight"][tokens]
        if (z := scales.get("embedding.input")) is not None:
            rows = [[z[b if len(z) > 1 else 0, word] for b, word in enumerate(step)] for step in tokens.tolist()]
            x = x * torch.stack([torch.stack(row) for row in rows])[:, :, None]
        y, state = step_loop(cells, x, state=state, scales=own, lengths=lengths, padding="left", **shape)
        return y[-1] @ p["head.weight"].T + p["head.bias"], state, y[-1]
    x = one_hot(tokens, cells["weight_ih_l0"].shape[1])
    y, state = step_loop(cells, x, state=state, scales=own, lengths=lengths, **shape)
    return y @ p["head.weight"].T + p["head.bias"], state, y


def random_masks(model, seed, density=0.5, groups=None):
    """Masks with every weight kept with probability `density` (a number, or one per matrix), and groups: axis → probability."""
    from sparsernn.masks import Masks

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
        return [f"lstm.recurrent_{suffix}", f"lstm.output_{suffix}"]
    if kind == "gates":
        return [f"lstm.gates_{suffix}"]
    if kind == "vocabulary" and hasattr(model, "embedding"):
        return ["embedding.input"]
    if kind == "vocabulary" and not hasattr(model, "lstm"):
        return ["head.input"]
    return ["lstm.input" + suffix for suffix in model.lstm.suffixes() if suffix.startswith("_l0")]


def masked_by_hand(model, masks, means, tokens, lengths=None, state=None):
    """The authors' single-pass evaluation (1812.05692): θ or 0, μ or 0 → logits, (h, c)."""
    weights = {name: w * masks.weights[name] for name, w in weight_matrices(model).items()}
    scales = {}
    for axis in masks.axes:
        z = means.get(axis.name, torch.ones(axis.size, dtype=torch.float64)) * masks.group(axis)
        scales |= dict.fromkeys(scale_names(model, axis.name), z[None])
    if not hasattr(model, "lstm"):
        counts = torch.stack([(tokens == word).sum(0) for word in range(model.head.in_features)], 1)
        x = torch.log(1.0 + counts.double()) * scales["head.input"]
        return x @ weights["head.weight"].T + model.head.bias, None
    return logits_by_hand(model, weights, scales, tokens, lengths, state)[:2]
