"""A compact model is called as before and runs by an engine as long as that may be; after a change its layers run themselves."""

import copy
import io
import re

import pytest
import torch
from oracles import error, randomise
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import sparsernn
from sparsernn.engines import choose as chooser
from sparsernn.engines import stand_in
from sparsernn.engines.base import Unsupported
from sparsernn.engines.c import build, layers
from sparsernn.engines.whole import by_engine
from sparsernn.nets import quick
from sparsernn.nets.models import Classifier, LanguageModel

X = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Numbers [B, T, 5] → logits and the last state; with `lengths`, packed."""

    def __init__(self, kind, **shape):
        super().__init__()
        self.rnn = kind(5, 12, **{"batch_first": True} | shape)
        self.head = nn.Linear(12 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x, lengths=None, state=None):
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, self.rnn.batch_first, enforce_sorted=False)
        y, state = self.rnn(x, state)
        y = y if lengths is None else pad_packed_sequence(y, self.rnn.batch_first)[0]
        return self.head(y if self.rnn.batch_first else y.transpose(0, 1)), state


def net(kind=nn.LSTM, neurons=False, **shape):
    """A model in evaluation with half of its weights zero, or a third of its neurons read by nobody."""
    torch.manual_seed(1)
    model = Net(kind, **shape).eval()
    with torch.no_grad():
        for weight in model.rnn.parameters():
            if weight.dim() == 2:
                weight.mul_(torch.rand(weight.shape) < 0.5)
        if neurons:
            for level in range(model.rnn.num_layers):
                model.rnn.get_parameter(f"weight_hh_l{level}")[:, ::3] = 0
            for level in range(1, model.rnn.num_layers):
                model.rnn.get_parameter(f"weight_ih_l{level}")[:, ::3] = 0
            model.head.weight[:, ::3] = 0
    return model


def apart(mine, theirs):
    return max(error(a, b) for a, b in zip(tree_leaves(mine), tree_leaves(theirs), strict=True))


@pytest.fixture
def ran(monkeypatch):
    """The sequences of every call that an engine has answered."""
    calls, carry = [], layers.Blocks.carry
    monkeypatch.setattr(
        layers.Blocks,
        "carry",
        lambda self, x, *more, **named: (calls.append(x.shape[1]), carry(self, x, *more, **named))[1],
    )
    return calls


SHAPES = {
    "one level": {},
    "time first": {"batch_first": False},
    "two levels": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "both directions, two levels": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
    "fewer neurons": {"neurons": True},
    "fewer neurons, two levels": {"neurons": True, "num_layers": 2},
    "fewer neurons, both directions": {"neurons": True, "bidirectional": True},
}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_says_what_torch_s_layers_say_however_it_is_called(kind, shape, ran):
    model = net(kind, **SHAPES[shape])
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks")
    state = tree_map_randn(model(X)[1])
    kept = slice(None)
    if "neurons" in SHAPES[shape]:  # a state of neurons that are gone is read by nobody, and comes out as zeros
        kept = [n for n in range(12) if n % 3]
    for given in ((X,), (X[:1],), (X, torch.tensor([7, 2, 5])), (X, None, state), (X, torch.tensor([4, 7, 1]), state)):
        ran.clear()
        y, last = small(*given)
        expected_y, expected = model(*given)
        assert apart(y, expected_y) <= 1e-6
        assert all(
            error(a[..., kept], b[..., kept]) <= 1e-6 for a, b in zip(leaves(last), leaves(expected), strict=True)
        )
        assert ran, "an engine answered"


def leaves(state):
    return state if isinstance(state, tuple) else (state,)


def tree_map_randn(state):
    made = [0.5 * torch.randn(s.shape, generator=torch.Generator().manual_seed(n)) for n, s in enumerate(leaves(state))]
    return tuple(made) if isinstance(state, tuple) else made[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@torch.no_grad()
def test_a_stream_is_fed_a_step_a_call(kind, ran):
    model = net(kind)
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks")
    state, answers = None, []
    ran.clear()
    for step in X.split(1, 1):
        y, state = small(step, None, state)
        answers.append(y)
    expected, last = model(X)
    assert apart((torch.cat(answers, 1), state), (expected, last)) <= 1e-6 and ran == [3] * 7


@torch.no_grad()
def test_one_sequence_without_a_batch_is_run_too(ran):
    model = net(nn.GRU)
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks")
    ran.clear()
    assert apart(small.rnn(X[0]), model.rnn(X[0])) <= 1e-6 and ran == [1]


CHANGES = {
    "a step of an optimiser": lambda small: trained(small),
    "another checkpoint": lambda small: (
        small.load_state_dict({k: v + 0.1 for k, v in small.state_dict().items()}) and small
    ),
    "float64 and back": lambda small: small.double().float(),
    "another parameter": lambda small: (
        setattr(small.rnn, "weight_hh_l0", nn.Parameter(small.rnn.weight_hh_l0 + 1)) or small
    ),
    "training": lambda small: small.train(),
    "a copy": lambda small: copy.deepcopy(small),
    "a copy by pickle": lambda small: pickled(small),
    "a copy in eval, trained": lambda small: trained(copy.deepcopy(small)).eval(),
}


def trained(small):
    with torch.enable_grad():
        small(X)[0].square().sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    return small


def pickled(small):
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_after_a_change_the_layers_run_with_the_weights_they_have(change, ran):
    small, _ = sparsernn.compact(net(), X)
    stand_in.run_by(small, "c-blocks")
    changed = CHANGES[change](small)
    ran.clear()
    said = changed(X)
    assert not ran, "no engine answered"
    fresh = net()
    fresh.load_state_dict(changed.state_dict())
    assert apart(said, fresh(X)) <= 1e-6


def test_with_gradients_on_the_layers_run_and_give_them(ran):
    small, _ = sparsernn.compact(net(nn.GRU), X)
    stand_in.run_by(small, "c-blocks")
    ran.clear()
    small(X)[0].sum().backward()
    assert not ran and small.rnn.weight_hh_l0.grad.abs().sum() > 0
    x = X.clone().requires_grad_()
    small.requires_grad_(False)(x)[0].sum().backward()
    assert not ran and x.grad.abs().sum() > 0
    state = torch.zeros(1, 3, 12, requires_grad=True)
    small(X, None, state)[0].sum().backward()
    assert not ran and state.grad.abs().sum() > 0
    small(X)
    assert ran, "without a gradient to give, the engine answers"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own
@torch.no_grad()
def test_a_derivative_in_forward_mode_goes_through_the_layers(ran):
    small, _ = sparsernn.compact(net(nn.RNN), X)
    stand_in.run_by(small, "c-blocks")
    ran.clear()
    with forward_ad.dual_level():
        y = small(forward_ad.make_dual(X, torch.ones_like(X)))[0]
        assert forward_ad.unpack_dual(y).tangent.abs().sum() > 0
    assert not ran


@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:.*jit.trace", "ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_what_is_traced_or_exported_has_the_layers_in_it(ran):
    model = net(nn.GRU)
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks")
    assert apart(torch.jit.trace(small, (X,))(X + 1), model(X + 1)) <= 1e-6  # an engine's answer would be that to X
    ran.clear()
    assert apart(torch.export.export(small, (X,)).module()(X), model(X)) <= 1e-6
    assert not ran


def test_a_method_can_be_put_on_it_again():
    small, _ = sparsernn.compact(net(), X)
    stand_in.run_by(small, "c-blocks")
    study = sparsernn.attach(small.train(), "sparse-vd-w", steps=10, n_examples=10)
    assert not any("forward" in vars(module) for module in small.modules()) and not study.left


@torch.no_grad()
def test_more_sequences_than_it_is_faster_for_are_the_layers_own(ran):
    model = net()
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks", most=(2, 2))
    ran.clear()
    assert apart(small(X), model(X)) <= 1e-6 and not ran
    assert apart(small(X[:2]), model(X[:2])) <= 1e-6 and ran == [2]


@torch.no_grad()
def test_a_layer_slower_for_single_steps_takes_them_itself_and_leaves_longer_sequences_to_the_engine(ran):
    model = net()
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks", most=(0, 8))
    ran.clear()
    assert apart(small(X), model(X)) <= 1e-6 and ran
    ran.clear()
    assert apart(small(X[:, :1]), model(X[:, :1])) <= 1e-6 and not ran


@torch.no_grad()
def test_a_bad_call_is_refused_as_the_layer_refuses_it():
    model = net()
    small, _ = sparsernn.compact(model, X)
    stand_in.run_by(small, "c-blocks")
    for given in ((X[..., 1:],), (X, None, (torch.zeros(1, 2, 12),) * 2), (X, None, (torch.zeros(1, 3, 11),) * 2)):
        with pytest.raises(RuntimeError) as theirs:
            model(*given)
        with pytest.raises(RuntimeError) as mine:
            small(*given)
        assert str(mine.value) == str(theirs.value)


def test_an_engine_that_starts_from_zeros_is_no_stand_in():
    with pytest.raises(Unsupported, match="starts from zeros"):
        stand_in.run_by(net(), "numba")


# ---- which engine, and what is said of it


def timed(monkeypatch, engine, layers_):
    """Let the engine and the layers take these times, in ms."""
    times = {"engine": engine, "layers": layers_, "plain": layers_}
    monkeypatch.setattr(stand_in, "interleaved", lambda calls, **more: {by: torch.tensor([times[by]]) for by in calls})


@torch.no_grad()
def test_compact_puts_the_faster_one_in_its_place_and_the_proof_says_so(monkeypatch, ran):
    timed(monkeypatch, 0.02, 0.06)
    model = net(nn.GRU)
    small, proof = sparsernn.compact(
        model, X, metric=lambda small: f"{error(small(X)[0], model(X)[0]) < 1e-6}, measured"
    )
    said = str(proof)
    assert proof.engine.engine == "c-blocks" and proof.engine.error <= 1e-6 and proof.engine.most == (128, 128)
    assert "c-blocks while gradients are off, for up to 128 sequences (128 of a single step)" in said
    assert "60.0 → 20.0 µs the example, 60.0 → 20.0 µs a step" in said
    assert "(60.0 by torch's plain layer of that size)" in said
    assert "True, measured" in said
    ran.clear()
    assert apart(small(X), model(X)) <= 1e-6 and ran


@torch.no_grad()
def test_a_slower_engine_is_not_used(monkeypatch, ran):
    timed(monkeypatch, 0.06, 0.02)
    small, proof = sparsernn.compact(net(), X)
    ran.clear()
    small(X)
    assert not ran and proof.engine is None and "none: its layers are as fast" in str(proof)


def test_a_model_in_float64_and_one_where_nothing_compiles_are_left_alone(monkeypatch):
    timed(monkeypatch, 0.02, 0.06)
    proof = sparsernn.compact(net().double(), X.double())[1]
    assert proof.engine is None and "none: engines run recurrent layers in float32 on a CPU alone" in str(proof)

    def none(path=None):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(build, "library", none)
    proof = sparsernn.compact(net(), X)[1]
    assert proof.engine is None and "c-blocks could not be tried (RuntimeError: no compiler)" in str(proof)


def test_a_wrong_engine_is_not_used(monkeypatch):
    timed(monkeypatch, 0.02, 0.06)
    carry = layers.Blocks.carry

    def wrong(self, *given, **named):
        y, state = carry(self, *given, **named)
        return y * 1.001, state

    monkeypatch.setattr(layers.Blocks, "carry", wrong)
    proof = sparsernn.compact(net(), X)[1]
    assert proof.engine is None and re.search("none: c-blocks is off by ", str(proof))


def test_int8_is_chosen_only_by_who_allows_its_error(monkeypatch):
    monkeypatch.setattr(chooser, "_times", {})
    for tolerance, allowed in ((1e-5, False), (0.5, True)):
        choice = chooser.choose(net(nn.GRU), X, tolerance=tolerance, seconds=0.01)
        assert ("c-int8" in choice.times) == allowed and "own-dense-int8" not in choice.times


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@torch.no_grad()
def test_a_model_by_engine_goes_on_from_a_state(kind):
    model = net(kind, bidirectional=True, num_layers=2)
    fast, state = by_engine(model, "c-blocks", X), tree_map_randn(model(X)[1])
    assert apart(fast(X, None, state), model(X, None, state)) <= 1e-6


def test_removing_it_leaves_the_layers():
    small, _ = sparsernn.compact(net(), X)
    stand_in.run_by(small, "c-blocks")
    quick.remove(small)
    assert not any("forward" in vars(module) for module in small.modules())


@pytest.mark.parametrize(
    "make", [lambda: Classifier(9, 2, embedding=4, hidden=6), lambda: LanguageModel(9, hidden=6, layers=2)]
)
@torch.no_grad()
def test_the_study_s_own_models_run_by_it_too(make, ran):
    """Words embedded, and words as one-hot input; carried on from the state of the last call."""
    model = randomise(make()).float()
    tokens = torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(0))
    small, _ = sparsernn.compact(model, tokens)
    stand_in.run_by(small, "c-blocks")
    ran.clear()
    y, state = small(tokens)
    expected, last = model(tokens)
    assert error(y, expected) <= 1e-5 and ran
    if isinstance(model, LanguageModel):
        assert error(small(tokens, state=state)[0], model(tokens, state=last)[0]) <= 1e-5
