"""A model that is a chain of layers, run by one call of C: it says what the model says, states too, however it is called."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from oracles import error
from test_export import CELLS, STUDY, Mine, V, mine, thinned, tokens
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import sparsernn
from sparsernn.engines.base import Unsupported
from sparsernn.engines.c import build, layers
from sparsernn.engines.models import by_layers
from sparsernn.engines.whole import InOneCall, by_engine
from sparsernn.nets.file import save

EXACT = 1e-5
every_cell = pytest.mark.parametrize("cell", CELLS)
every_model = pytest.mark.parametrize("name", STUDY)


def wrong(got, expected):
    """The largest error of all tensors that two models return; the first alone where the other has no states."""
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    return max(error(a.double(), b) for a, b in zip(got, expected, strict=True))


@every_cell
@every_model
@pytest.mark.parametrize("path", build.paths())
def test_a_model_of_the_study_and_its_states_are_those_of_float64(path, name, cell, monkeypatch):
    monkeypatch.setattr(layers.Blocks, "path", path)
    *_, small = thinned(name, cell, means=True)
    fast = by_engine(small, "c-blocks", tokens())
    assert isinstance(fast, InOneCall)
    for steps, batch in [(9, 4), (1, 1), (17, 1), (2, 9), (5, 20)]:
        x = tokens(steps, batch, seed=steps)
        assert wrong(fast(x), small(x)) <= EXACT
        assert torch.equal(fast(x)[0], fast(x)[0]), "each call starts from zeros"


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("words", [V, None])
@pytest.mark.parametrize(
    "how", [{}, {"batch_first": True}, {"turned": True}, {"layers": 2}, {"twice": True}, {"bias": False}]
)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_model_of_ones_own_in_either_layout_is_that_of_float64(cell, how, words, last):
    model = mine(cell, words=words, last=last, **how).double().eval()
    for batch, steps in [(4, 9), (1, 3), (9, 1)]:
        x = torch.randint(V, (batch, steps)) if words else torch.randn(batch, steps, 5)
        fast = by_engine(model, "c-blocks", x)
        assert isinstance(fast, InOneCall)
        assert wrong(fast(x), model(x if words else x.double())) <= EXACT


@every_cell
@every_model
def test_int8_says_the_same_as_layer_by_layer(name, cell):
    *_, small = thinned(name, cell)
    x = tokens()
    fast, slow = by_engine(small, "c-int8", x), by_layers(small, "c-int8", x)
    for ids in (x, tokens(20, 3, seed=1)):
        # scales are multiplied in elsewhere
        assert wrong(fast(ids), [y.double() for y in tree_leaves(slow(ids))]) <= 0.02


@every_model
def test_called_with_lengths_or_a_state_it_says_what_the_model_says(name):
    *_, small = thinned(name, "LSTM")
    fast, x, lengths = by_engine(small, "c-blocks", tokens()), tokens(), torch.tensor([9, 1, 4, 9])
    state = small(x)[1]
    given = [s.float() for s in state]
    assert wrong(fast(x, state=given), small(x, state=state)) <= EXACT
    if "classifier" in name:
        assert wrong(fast(x, lengths), small(x, lengths)) <= EXACT
    assert wrong(fast(x), small(x)) <= EXACT


def test_a_word_that_is_not_there_and_numbers_of_another_width_are_refused():
    *_, small = thinned("classifier", "GRU")
    for before in (False, True):
        fast = by_engine(small, "c-blocks", tokens())
        _ = before and fast(tokens())
        for bad in (-1, V):
            x = tokens()
            x[3, 1] = bad
            with pytest.raises(IndexError):
                fast(x)
        assert wrong(fast(tokens()), small(tokens())) <= EXACT
    fast = by_engine(mine(words=None), "c-blocks", torch.randn(3, 2, 5))
    with pytest.raises((ValueError, RuntimeError), match="5"):
        fast(torch.randn(3, 2, 4))


def test_what_is_no_chain_is_run_layer_by_layer():
    class Twice(Mine):
        def forward(self, x):
            return 2 * super().forward(x)

    class NotStates(Mine):
        def forward(self, x):
            y = super().forward(x)
            return y, torch.zeros(1, len(y), 6), torch.zeros(1, len(y), 6)

    class AtMostTen(Mine):
        def forward(self, x):
            return super().forward(x[: min(10, len(x))])

    long = torch.randint(V, (30, 4))
    assert isinstance(by_engine(AtMostTen().eval(), "c-blocks", long[:9]), InOneCall), "so far it is one"
    fast = by_engine(cut := AtMostTen().eval(), "c-blocks", long)
    assert not isinstance(fast, InOneCall) and wrong(fast(long), cut.double()(long)) <= EXACT
    ids = torch.randint(V, (3, 4))
    for model in (Twice(), NotStates(), mine(bidirectional=True)):
        fast = by_engine(model.eval(), "c-blocks", ids)
        assert not isinstance(fast, InOneCall)
        assert wrong(fast(ids), [y.double() for y in tree_leaves(model(ids))]) <= EXACT
    assert not isinstance(by_engine(mine(), "numba", ids), InOneCall)
    with pytest.raises(Unsupported, match="no recurrent layer"):
        by_engine(nn.Linear(2, 2), "c-blocks", torch.zeros(1, 2))


class Characters(nn.Module):
    """What tutorials write: ids made one-hot numbers in the forward. how: what it does beside."""

    def __init__(self, cell=nn.LSTM, how="float"):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out, self.how = cell(V, 6, batch_first=True), nn.Linear(6, V), how

    def forward(self, x):
        given = {
            "float": lambda: F.one_hot(x, V).float(),
            "to": lambda: F.one_hot(x, num_classes=V).to(self.out.weight),
            "twice as large": lambda: F.one_hot(x, V).float() * 2,
            "words cut off": lambda: F.one_hot(x.clamp(max=V - 2), V).float(),
            "numbers": lambda: (x.unsqueeze(-1) == torch.arange(V)).float(),
        }[self.how]()
        return self.out(self.rnn(given)[0])


@pytest.mark.parametrize("how", ["float", "to"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("small", [False, True])
def test_ids_that_a_model_makes_one_hot_itself_are_a_chain(tmp_path, cell, how, small):
    model, x = Characters(cell, how).eval(), torch.randint(V, (4, 9), generator=torch.Generator().manual_seed(0))
    if small:
        with torch.no_grad():
            model.rnn.weight_ih_l0[:, 2:7] = model.rnn.weight_hh_l0[::3] = 0
        model, _ = sparsernn.compact(model, x)
    expected, fast = model(x), by_engine(model, "c-blocks", x)
    assert isinstance(fast, InOneCall) and wrong(fast(x), expected.double()) <= EXACT
    sparsernn.to_c(model, tmp_path / "model.c")
    assert f"one id a step, int32_t from 0 to {V - 1}" in (tmp_path / "model.c").read_text()
    with pytest.raises(IndexError, match=f"there are {V} words"):
        fast(x + V)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("twice as large", "mul before its LSTM"),
        ("words cut off", "clamp before its LSTM"),
        ("numbers", "before its LSTM"),
    ],
)
def test_ids_that_become_something_else_are_none(tmp_path, how, words):
    model, x = Characters(how=how).eval(), torch.randint(V, (4, 9))
    fast = by_engine(model, "c-blocks", x)
    assert not isinstance(fast, InOneCall) and wrong(fast(x), model(x).double()) <= EXACT
    with pytest.raises(ValueError, match=words):
        sparsernn.to_c(model, tmp_path / "model.c")


class Between(Mine):
    """how: what it does between its layers."""

    def __init__(self, how, **more):
        super().__init__(**more)
        self.how = how
        if "subclass" in how:
            self.out = type(
                "Clamped", (nn.Linear,), {"forward": lambda m, x: F.linear(x, m.weight, m.bias).clamp(-5, 5)}
            )(6, 3)

    def forward(self, x):
        how = {
            "the last real step": lambda: self.out(
                self.rnn(self.words(x))[0][(x != 0).sum(0) - 1, torch.arange(len(x[0]))]
            ),
            "the first ten words": lambda: self.out(self.rnn(self.words(x[:10]))[0][-1]),
            "the last ten words": lambda: self.out(self.rnn(self.words(x[-10:]))[0][-1]),
            "the sixth step": lambda: self.out(self.rnn(self.words(x))[0][5]),
            "words cut off": lambda: self.out(self.rnn(self.words(x.clamp(max=V - 2)))[0][-1]),
            "numbers clamped": lambda: self.out(self.rnn(x.clamp(-9, 9))[0][-1]),
            "logits squashed": lambda: F.hardtanh(self.out(self.rnn(self.words(x))[0][-1]), -9, 9),
            "a question": lambda: self.out(self.rnn(self.words(x if bool((x < V - 1).all()) else x % 3))[0][-1]),
            "Python's numbers": lambda: self.out(self.rnn(self.words(torch.tensor(x.tolist())))[0][-1]),
            "written to": lambda: self.out(torch.zeros_like(y := self.rnn(self.words(x))[0]).copy_(y)[-1]),
            "a subclass that clamps": lambda: self.out(self.rnn(self.words(x))[0][-1]),
        }
        return how[self.how]()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("the last real step", "ne before its Linear"),
        ("the first ten words", "a slice of more than there is before its Embedding"),
        ("the last ten words", "a slice of more than there is before its Embedding"),
        ("the sixth step", "computes something else"),
        ("words cut off", "clamp before its Embedding"),
        ("numbers clamped", "clamp before its LSTM"),
        ("logits squashed", "hardtanh in what it returns"),
        ("a question", "_local_scalar_dense on numbers"),
        ("Python's numbers", "tolist on numbers"),
        ("written to", "copy_ on numbers"),
        ("a subclass that clamps", "out is a Clamped"),
    ],
)
def test_what_a_model_does_between_its_layers_is_done(tmp_path, how, words):
    model = Between(how, words=None if "numbers c" in how else V).eval()
    x = 20 * torch.randn(30, 4, 5) if model.words is None else torch.randint(V, (30, 4))
    if model.words is not None:
        x[13:] = 0
    fast = by_engine(model, "c-blocks", x[:9] / 20 if model.words is None else x[:9] % 5)
    assert not isinstance(fast, InOneCall) and wrong(fast(x), model(x).double()) <= EXACT
    with pytest.raises(ValueError, match=words):
        sparsernn.to_c(model, tmp_path / "model.c")


def test_what_only_moves_numbers_between_layers_is_a_chain_still():
    class Moves(Mine):
        def forward(self, x):
            words, zeros = self.words(x.long()[:]), torch.zeros(1, x.shape[1], 6).to(self.out.weight)
            packed = pack_padded_sequence(words.contiguous(), torch.full((x.shape[1],), len(x)))
            y, (h, c) = self.rnn(packed, (zeros, zeros))
            y = pad_packed_sequence(y)[0]
            return self.out(y.reshape(-1, 6)).view(*y.shape[:2], 3), (h, c)

    x = torch.randint(V, (9, 4))
    fast = by_engine(model := Moves().eval(), "c-blocks", x)
    assert isinstance(fast, InOneCall)
    assert wrong(fast(x), [y.double() for y in tree_leaves(model(x))]) <= EXACT


@pytest.mark.parametrize("engine", ["c-blocks", "compact-torch", "numba"])
def test_words_that_the_example_lacks_are_renormalised_too(engine):
    model = mine().eval()
    model.words.max_norm = 0.5
    before, x = model.words.weight.clone(), torch.arange(V)[:, None]
    fast = by_engine(model, engine, x[:2])
    assert torch.equal(model.words.weight, before) and wrong(fast(x), copy.deepcopy(model)(x).double()) <= EXACT


def test_what_int8_cuts_off_is_counted_for_the_whole():
    model = mine(words=None)
    fast = by_engine(model, "c-int8", torch.ones(3, 2, 5))
    fast(torch.ones(3, 2, 5))
    assert fast.run.saturated == 0
    fast(torch.full((3, 2, 5), 2.0))
    assert fast.run.saturated == 30


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_outlives_it(again):
    *_, small = thinned("classifier, 2 layers", "LSTM")
    fast, x = by_engine(small, "c-blocks", tokens()), tokens()
    y = fast(x)[0]
    other = again(fast)
    del fast
    torch.randn(100_000)
    assert torch.equal(other(x)[0], y)


def test_the_model_itself_may_change_afterwards():
    *_, small = thinned("classifier", "LSTM")
    fast, x, lengths = by_engine(small, "c-blocks", tokens()), tokens(), torch.tensor([9, 1, 4, 9])
    before = small(x, lengths)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert wrong(fast(x, lengths), before) <= EXACT


WATCHED = """
import sys, torch
from sparsernn.engines.c import build
build.FLAGS += " -g -fsanitize=address,undefined -fno-sanitize-recover=all"
from sparsernn.engines.whole import InOneCall, by_engine
from sparsernn.nets.file import load
for path in sys.argv[1:]:
    small = load(path)
    for engine in ("c-blocks", "c-int8"):
        for steps, batch in ((1, 1), (7, 3), (3, 17)):
            x = torch.randint(11, (steps, batch))
            fast = by_engine(small, engine, x)
            assert isinstance(fast, InOneCall)
            fast(x), fast(x)

class Numbers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = torch.nn.GRU(5, 12), torch.nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][-1])

x = torch.randn(7, 3, 5)
fast = by_engine(Numbers().eval(), "c-int8", x)
fast(x)
x[1, 0, 2], x[6, 1, 4] = torch.nan, torch.inf
assert fast(x).isnan().all(1).tolist() == [True, True, False]
"""


def test_no_sanitizer_finds_a_fault_in_the_call(tmp_path):
    """Python itself under the address sanitizer, so that what the call reads and writes of tensors is watched too."""
    asked = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not os.path.isabs(asked.stdout.strip()):
        pytest.skip("the compiler has no libasan.so")
    paths = []
    for number, (name, cell) in enumerate((name, cell) for name in STUDY for cell in CELLS):
        paths.append(tmp_path / f"{number}.safetensors")
        save(thinned(name, cell)[3].float(), paths[-1])
    watched = {"LD_PRELOAD": asked.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *paths], env=os.environ | watched, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@every_cell
def test_states_that_nobody_asks_for_are_nan_of_their_shape(cell):
    *_, small = thinned("language model", cell)
    x = tokens()
    fast, full = by_engine(small, "c-blocks", x, states=False), by_engine(small, "c-blocks", x)
    for ids in (x, tokens(9, 2, seed=1), x):
        (answer, *states), (expected, *found) = tree_leaves(fast(ids)), tree_leaves(full(ids))
        assert torch.equal(answer, expected)
        assert all(a.isnan().all() and a.shape == b.shape for a, b in zip(states, found, strict=True)) and states
