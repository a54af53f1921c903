"""Models, zeros and inputs drawn at random: whatever was drawn, the small model computes what the large one does.

By hand, in tests/ with lib on PYTHONPATH: `python test_drawn.py 5000`, or seeds 17 to 19, `17 20 --engines`.
"""

import itertools
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from oracles import error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sparsernn import attach, compact, engines
from sparsernn.engines.base import Unsupported
from sparsernn.engines.whole import by_engine

CELLS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN tanh": nn.RNN, "RNN relu": nn.RNN}
V, ANSWERS, DRAWS, CHUNK, EXACT, FLOAT = 12, 3, 300, 10, 1e-9, 1e-5

# ---- models


def last(y, lengths):
    """The last step of every sequence, y [B, T, ...]."""
    return y[:, -1] if lengths is None else y[torch.arange(len(y)), lengths - 1]


def attention(m, x, y, final, lengths):
    """Dot products of every step with the last; without matrices for key and query every neuron is in them."""
    y = m.turn(y)
    scores = (m.key(y) * m.query(last(y, lengths))[:, None]).sum(-1)
    return m.head((scores.softmax(1)[..., None] * y).sum(1))


def chosen(m, x, y, final, lengths):
    y = m.turn(y)
    at = torch.arange(2 * len(y)).view(-1, 2) % y.shape[1]
    return m.head(y.gather(1, at[..., None].expand(-1, -1, y.shape[2])))


def two_readers(m, x, y, final, lengths):
    left, right = (m.turn(m.run(y, lengths, None, layer)[0]) for layer in (m.left, m.right))
    return m.head(torch.cat([last(left, lengths), right.mean(1)], -1))


def states(final):
    """h, or h and then c, of every level and direction."""
    return [s for part in (final if isinstance(final, tuple) else (final,)) for s in part]


USES = {  # what is done with the outputs y and the final state of the layer that reads x
    "each step": lambda m, x, y, final, lengths: m.head(y),
    "last step": lambda m, x, y, final, lengths: m.head(last(m.turn(y), lengths)),
    "mean": lambda m, x, y, final, lengths: m.head(m.turn(y).mean(1)),
    "max": lambda m, x, y, final, lengths: m.head(m.turn(y).amax(1)),
    "residual": lambda m, x, y, final, lengths: m.head(y + m.skip(x)),
    "gated": lambda m, x, y, final, lengths: m.head(y * m.skip(x).sigmoid()),
    "normed": lambda m, x, y, final, lengths: m.head(m.norm(y)),
    "beside the input": lambda m, x, y, final, lengths: m.head(torch.cat([x, y], -1)),
    "two outputs": lambda m, x, y, final, lengths: m.head(torch.cat([m.run(x, lengths, None, m.side)[0], y], -1)),
    "attention": attention,
    "bare attention": attention,
    "chosen steps": chosen,
    "final state": lambda m, x, y, final, lengths: m.head(torch.cat(states(final)[m.plan.top], -1)),
    "all states": lambda m, x, y, final, lengths: m.head(torch.cat(states(final), -1)),
    "tied": lambda m, x, y, final, lengths: m.head(y),
    "siamese": lambda m, x, y, final, lengths: m.head((y - m.run(x.flip(0), lengths, None, m.stack)[0]).abs()),
    "chain": lambda m, x, y, final, lengths: m.head(y),  # y comes from a second layer, packed as the first left it
    "two readers": two_readers,
    "encoder and decoder": lambda m, x, y, final, lengths: m.head(m.run(x, lengths, final, m.decoder)[0]),
    "decoder loop": None,  # see Net.loop
    "greedy loop": None,
}
READ_WHOLE = ("normed", "bare attention", "encoder and decoder")  # no zero in a matrix takes a neuron out of these
READ_CELLS = ("all states", "encoder and decoder", "decoder loop", "greedy loop")  # an LSTM's c, too


class Net(nn.Module):
    """A layer over words or numbers, what is done with its outputs, an answer: as a plan says."""

    def __init__(self, plan):
        super().__init__()
        self.plan, use, inputs = plan, plan.use, plan.inputs
        wide, other = plan.hidden * plan.directions, plan.hidden_other * plan.directions
        if plan.words:
            self.words = nn.Embedding(V, inputs)
        self.stack = self.layer(plan.cell, inputs, plan.hidden, plan.layers)
        for name, size in {"two outputs": {"side": inputs}, "chain": {"second": wide}}.get(use, {}).items():
            self.add_module(name, self.layer(plan.cell_other, size, plan.hidden_other))
        if use == "two readers":
            self.left, self.right = (self.layer(plan.cell_other, wide, plan.hidden_other) for _ in range(2))
        elif use == "encoder and decoder":
            self.decoder = self.layer(plan.cell, inputs, plan.hidden, plan.layers)
        elif use.endswith("attention"):
            self.key, self.query = (nn.Linear(wide, wide) if use == "attention" else nn.Identity() for _ in range(2))
        elif use == "normed":
            self.norm = nn.LayerNorm(wide)
        elif use in ("residual", "gated"):
            self.skip = nn.Linear(inputs, wide)
        elif use == "decoder loop":
            self.back = nn.Linear(ANSWERS, inputs)
        every = plan.rows * plan.hidden * (2 if plan.cell == "LSTM" else 1)
        reads = {"chain": other, "two readers": 2 * other, "all states": every}.get(use, wide)
        reads += {"beside the input": inputs, "two outputs": other}.get(use, 0)
        self.head = nn.Linear(reads, V if use in ("tied", "greedy loop") else ANSWERS, bias=plan.bias)
        if use == "tied":
            self.head.weight = self.words.weight
        head, first = "head.weight", [f"weight_ih_l0{end}" for end in plan.ends]
        self.outside = {  # recurrent layer → [(matrix, column)], where the columns begin that read its outputs
            "beside the input": {"stack": [(head, inputs)]},
            "two outputs": {"stack": [(head, other)], "side": [(head, 0)]},
            "attention": {"stack": [(head, 0), ("key.weight", 0), ("query.weight", 0)]},
            "all states": {"stack": []},  # see `readers`
            "chain": {"stack": [(f"second.{name}", 0) for name in first], "second": [(head, 0)]},
            "two readers": {"stack": [(f"{side}.{name}", 0) for side in ("left", "right") for name in first]}
            | {"left": [(head, 0)], "right": [(head, other)]},
            "encoder and decoder": {"stack": [], "decoder": [(head, 0)]},
        }.get(use, {"stack": [(head, 0)]})

    def layer(self, cell, inputs, size, layers=1):
        plan = self.plan
        shape = {"bias": plan.bias, "batch_first": plan.batch_first, "bidirectional": plan.directions == 2}
        shape |= {"nonlinearity": cell[4:]} if cell.startswith("RNN") else {}
        return CELLS[cell](inputs, size, layers, **shape)

    def readers(self, layer, level, direction):
        """[(matrix, first column)] of everybody but its own level who reads a level and direction of a layer."""
        plan, module, outside = self.plan, self.get_submodule(layer), self.outside[layer]
        if level + 1 < module.num_layers:
            outside = [(f"{layer}.weight_ih_l{level + 1}{end}", 0) for end in plan.ends]
        found = [(name, column + direction * module.hidden_size) for name, column in outside]
        if plan.use == "all states":
            row = (level * plan.directions + direction) * plan.hidden
            found += [("head.weight", at) for at in range(row, self.head.in_features, plan.rows * plan.hidden)]
        return found

    def turn(self, y):
        """Batch first ⇄ as the layers have it."""
        return y if self.plan.batch_first else y.transpose(0, 1)

    def run(self, x, lengths, state, *layers):
        """Layers one after the other → outputs of the last, final state of the first."""
        first = self.plan.batch_first
        y, final = layers[0](x if lengths is None else pack_padded_sequence(x, lengths, first, False), state)
        for layer in layers[1:]:
            y, _ = layer(y)
        return y if lengths is None else pad_packed_sequence(y, first, total_length=self.turn(x).shape[1])[0], final

    def loop(self, x, state):
        """A step at a time; what it answers is, or is part of, what it reads next."""
        fed, answers, greedy = self.turn(x)[:, 0], [], self.plan.use == "greedy loop"
        for step in self.turn(x).unbind(1):
            y, state = self.stack(self.turn(fed[:, None]), state)
            answers.append(self.head(self.turn(y)[:, 0]))
            fed = self.words(answers[-1].argmax(-1)) if greedy else step + self.back(answers[-1])
        return torch.stack(answers, 1), state

    def forward(self, x, lengths=None, state=None):
        x = self.words(x) if self.plan.words else x
        if "loop" in self.plan.use:
            answer, final = self.loop(x, state)
        else:
            y, final = self.run(x, lengths, state, self.stack, *([self.second] if self.plan.use == "chain" else []))
            answer = USES[self.plan.use](self, x, y, final, lengths)
        return (answer, final) if self.plan.state else answer


# ---- zeros


def some(rng, size):
    """Some of range(size), not all."""
    return sorted(rng.sample(range(size), rng.randint(1, size - 1)))


class Place:
    """Some neurons of one level and direction of one of a model's layers, drawn; what may be made zero there."""

    def __init__(self, model, rng, top=False):
        self.model, self.rng, self.name = model, rng, rng.choice(sorted(model.outside))
        self.layer = model.get_submodule(self.name)
        self.level = self.layer.num_layers - 1 if top else rng.randrange(self.layer.num_layers)
        self.direction, self.size = rng.randrange(model.plan.directions), self.layer.hidden_size
        self.neurons, self.gates = some(rng, self.size), len(self.layer.weight_hh_l0) // self.size
        self.others = [n for n in range(self.size) if n not in self.neurons]
        end = f"_l{self.level}{model.plan.ends[self.direction]}"
        self.ih, self.hh = (getattr(self.layer, kind + end).data for kind in ("weight_ih", "weight_hh"))

    def rows(self, neurons):
        return torch.tensor([[gate * self.size + neuron] for gate in range(self.gates) for neuron in neurons])

    def unread(self, every=False, directions=None):
        """Nobody outside of the level reads these neurons, or every one, of this direction or others."""
        for direction in directions or [self.direction]:
            for name, column in self.model.readers(self.name, self.level, direction):
                for n in range(self.size) if every else self.neurons:
                    self.model.get_parameter(name).data[:, column + n] = 0

    def whole(self):
        self.ih[self.rows(self.neurons)], self.hh[self.rows(self.neurons)], self.hh[:, self.neurons] = 0, 0, 0
        self.unread()

    def some_gates(self):
        rows = some(self.rng, self.gates * self.size)
        self.ih[rows], self.hh[rows] = 0, 0

    def clique(self):
        """The neurons are read by each other alone, and perhaps read nobody else either."""
        self.hh[self.rows(self.others), self.neurons] = 0
        self.unread()
        if self.rng.random() < 0.5:
            self.ih[self.rows(self.neurons)], self.hh[self.rows(self.neurons), self.others] = 0, 0

    def inputs(self):
        columns = some(self.rng, self.layer.input_size)
        for end in self.model.plan.ends:
            getattr(self.layer, f"weight_ih_l0{end}").data[:, columns] = 0


def scattered(model, rng):
    density = rng.choice([0.05, 0.2, 0.5, 0.8, 1.0])
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.mul_(torch.rand(weight.shape) < density)


PATTERNS = {
    "scattered": scattered,
    "whole neurons": lambda model, rng: Place(model, rng).whole(),
    "columns of readers": lambda model, rng: Place(model, rng).unread(),
    "rows of gates": lambda model, rng: Place(model, rng).some_gates(),
    "words": lambda model, rng: model.words.weight.data[some(rng, V)].zero_(),
    "embedding columns": lambda model, rng: model.words.weight.data.t()[some(rng, model.plan.inputs)].zero_(),
    "input columns": lambda model, rng: Place(model, rng).inputs(),
    "a direction unread": lambda model, rng: Place(model, rng, top=rng.random() < 0.7).unread(True),
    "a dead layer": lambda model, rng: Place(model, rng, top=True).unread(True, range(model.plan.directions)),
    "a clique": lambda model, rng: Place(model, rng).clique(),
    "nothing": lambda model, rng: None,
}


@torch.no_grad()
def with_method(model, rng):
    """A method whose log α and means are drawn: some share of everything is kept."""
    study = attach(model, rng.choice(["sparse-vd-wgn", "sparse-vd-wgn", "sparse-vd-w"]), steps=10, n_examples=10)
    share = {"weights": rng.choice([0.2, 0.4, 0.8]), "groups": rng.choice([0.6, 0.8, 0.95])}
    for kind in share:
        for _, item in sorted(getattr(study, kind).items()):
            if kind == "groups":
                item.theta.copy_(1 + 0.4 * torch.randn(item.theta.shape))
            kept = torch.rand(item.theta.shape) < share[kind]
            item.log_sigma.copy_(item.theta.abs().clamp(min=1e-3).log() + torch.where(kept, -4.0, 4.0))


# ---- what is drawn


def plan_of(seed, rng):
    """What a model is like; the use of the outputs goes round with the seed."""
    use = list(USES)[seed % len(USES)]
    plan = SimpleNamespace(use=use, cell=rng.choice(list(CELLS)), cell_other=rng.choice(list(CELLS)))
    plan.layers, plan.directions = rng.randint(1, 3), 1 if "loop" in use else rng.randint(1, 2)
    plan.rows, plan.ends = plan.layers * plan.directions, ("", "_reverse")[: plan.directions]
    plan.top = slice(plan.rows - plan.directions, plan.rows)  # of the states
    plan.hidden, plan.hidden_other = rng.randint(3, 9), rng.randint(3, 9)
    plan.bias, plan.batch_first, plan.state = rng.random() < 0.7, rng.random() < 0.5, rng.random() < 0.4
    plan.words = use in ("tied", "greedy loop") or rng.random() < 0.5
    plan.inputs = plan.hidden * plan.directions if use == "tied" else rng.randint(2, 6)
    plan.packed = "loop" not in use and rng.random() < 0.35
    return plan


def call_of(plan, rng, few=False, given=False):
    """Arguments of a call: perhaps with few words only, with a state given."""
    batch, steps = rng.randint(1, 5), rng.randint(1, 8)
    x = torch.randint(V // 2 if few else V, (batch, steps)) if plan.words else torch.randn(batch, steps, plan.inputs)
    call = [x if plan.batch_first else x.transpose(0, 1).contiguous()]
    if plan.packed or given:
        call.append(torch.randint(1, steps + 1, (batch,)) if plan.packed else None)
    if given:
        h, c = torch.randn(2, plan.rows, batch, plan.hidden)
        call.append((h, c) if plan.cell == "LSTM" else h)
    return cast(tuple(call), torch.float64)


def cast(call, dtype):
    if isinstance(call, tuple):
        return tuple(cast(part, dtype) for part in call)
    return call.to(dtype) if isinstance(call, torch.Tensor) and call.is_floating_point() else call


def draw(seed):
    """The same for the same seed → plan, model, what was drawn in words, and

    example  the arguments of `compact`            size  numbers in weights and biases, without a method's
    turns    [(arguments of a call, whether the answer meant is that to a second one, from the state then handed out)]
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    plan = plan_of(seed, rng)
    model = Net(plan).double().eval()
    size, method, several = sum(p.numel() for p in model.parameters()), rng.random() < 1 / 3, rng.random() < 0.2
    able = set(PATTERNS) - ({"words", "embedding columns"} if not plan.words else set())
    able -= {"a direction unread"} if plan.directions == 1 else set()
    patterns = rng.sample(sorted(able), 0 if method and rng.random() < 0.7 else rng.choice([1, 1, 2]))
    for name in patterns:
        for _ in range(rng.randint(1, 3)):
            PATTERNS[name](model, rng)
    if method:
        with_method(model, rng)
    examples = [call_of(plan, rng, rng.random() < 0.5, plan.state and rng.random() < 0.3) for _ in range(1 + several)]
    named, names = rng.random() < 0.4, ("x", "lengths", "state")
    examples = [dict(zip(names, e, strict=False)) if named else e[0] if len(e) == 1 else e for e in examples]
    calls = [call_of(plan, rng, given=plan.state and given) for given in (False, False, True)]
    turns = [(call, carried) for call in calls for carried in (False, True)[: 1 + plan.state]]
    words = [plan.cell, f"{plan.layers} levels", f"{plan.directions} directions", f"use: {plan.use}"]
    words += ["bias" if plan.bias else "no bias", "batch first" if plan.batch_first else "time first"]
    words += ["word ids" if plan.words else "numbers", "several examples" if several else "one example"]
    words += ["packed"] * plan.packed + ["state"] * plan.state + ["method"] * method
    words += [f"zeros: {name}" for name in patterns]
    example = {"examples": examples} if several else {"example": examples[0]}
    return SimpleNamespace(plan=plan, model=model, example=example, turns=turns, words=words, size=size)


# ---- what must hold


@torch.no_grad()
def say(model, call, carried):
    """What a model answers, its state left out."""
    said = model(*call)
    if carried:
        said = model(call[0].flip(0), call[1] if len(call) > 1 else None, said[1])
    return said[0] if isinstance(said, tuple) else said


def complaints(seed, by_engines=False):
    """→ what is wrong with a draw, in one line with its seed, or ""; how many times smaller it became."""
    drawn, wrong, times = draw(seed), [], 1
    try:
        before = [say(drawn.model, *turn) for turn in drawn.turns]
        small, _ = compact(drawn.model, **drawn.example)
        for (call, carried), want in zip(drawn.turns, before, strict=True):
            if not (apart := error(say(small, call, carried), want)) <= EXACT:
                wrong.append(f"{apart:.1e}{', from a given state' * (len(call) > 2)}{', carried on' * carried}")
            if error(say(drawn.model, call, carried), want):
                wrong.append("the model itself was changed")
        wrong += said_otherwise(drawn, small, before) if by_engines else []
        tensors = {id(t): t for t in (*small.parameters(), *small.buffers())}.values()
        times = drawn.size / max(1, sum(t.numel() for t in tensors if t.is_floating_point()))
    except Exception as problem:  # whatever it is, the seed is to be named, and others are to be tried
        wrong.append(f"{type(problem).__name__}: {problem}")
    return f"seed {seed} ({', '.join(drawn.words)}): {'; '.join(dict.fromkeys(wrong))}" if wrong else "", times


def said_otherwise(drawn, small, before):
    """What engines answer otherwise than the model; those that refuse the model or a call need not answer."""
    wrong, plan = [], drawn.plan
    example = drawn.example["example"] if "example" in drawn.example else drawn.example["examples"][0]
    for name in engines.available("cpu"):
        exact = engines.engine_class(name).dtype == torch.float32
        if not exact or plan.use == "greedy loop":  # float32 may choose another
            continue
        for (call, carried), want in zip(drawn.turns, before, strict=True):
            try:
                got = say(by_engine(small, name, example, device="cpu"), cast(call, torch.float32), carried).double()
            except Exception as problem:  # other engines have their turn
                wrong += [] if isinstance(problem, Unsupported) else [f"{name}: {type(problem).__name__}: {problem}"]
                continue
            if got.isnan().any() and plan.cell == "LSTM" and (carried or plan.use in READ_CELLS):
                continue  # an engine that does not compute c says so
            if not (apart := error(got, want)) <= FLOAT:
                wrong.append(f"{name}: {apart:.1e}{', carried on' * carried}")
    return wrong


def may_shrink(seed):
    """Whether a draw has words or neurons that may go, by its zeros alone: neurons that nobody reads but they themselves."""
    drawn = draw(seed)
    model, found = drawn.model, "method" in drawn.words
    found = found or drawn.plan.words and not model.words.weight.any(1).all()
    for layer in model.outside if drawn.plan.use not in READ_WHOLE else ():
        for level, end in itertools.product(range(model.get_submodule(layer).num_layers), drawn.plan.ends):
            hh = model.get_parameter(f"{layer}.weight_hh_l{level}{end}")
            hh = hh.view(-1, hh.shape[1], hh.shape[1]).any(0)
            gone = torch.ones(len(hh), dtype=torch.bool)
            for name, column in model.readers(layer, level, drawn.plan.ends.index(end)):
                gone &= ~model.get_parameter(name)[:, column : column + len(hh)].any(0)
            while (gone & hh[~gone].any(0)).any():
                gone &= ~hh[~gone].any(0)
            found = found or gone.any()
    return bool(found)


def test_the_draws_are_of_every_kind_and_half_of_them_can_shrink():
    counts = Counter(word for seed in range(DRAWS) for word in draw(seed).words)
    assert len(counts) == len(USES) + len(PATTERNS) + 20  # and cells, sizes, what is there or not
    assert min(counts.values()) >= 10, counts
    assert sum(map(may_shrink, range(DRAWS))) >= DRAWS / 2


@pytest.mark.parametrize("chunk", range(DRAWS // CHUNK))
def test_a_small_model_computes_what_the_large_one_does(chunk):
    seeds = range(chunk * CHUNK, (chunk + 1) * CHUNK)
    wrong = [complaints(seed, by_engines=seed % CHUNK == chunk % CHUNK)[0] for seed in seeds]
    assert not any(wrong), "\n".join(["", *filter(None, wrong)])


if __name__ == "__main__":
    seeds, failed, smaller = range(*(int(word) for word in sys.argv[1:] if word.isdigit())), 0, []
    for seed in seeds:
        wrong, times = complaints(seed, "--engines" in sys.argv)
        failed, smaller = failed + bool(wrong), smaller + [times] * (times > 1)
        print(wrong, end="\n" * bool(wrong), flush=True)
    mean = sum(smaller) / max(1, len(smaller))
    print(f"{len(seeds)} draws, {failed} failed; {len(smaller)} became smaller, in the mean {mean:.1f} times")
