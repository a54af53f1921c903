"""The C engine computes the formulas by every path that runs here, whatever the zeros; what it must not be given it refuses."""

import copy
import ctypes
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import arm
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from layers import CELLS, V, by_formula, inputs, pruned
from oracles import error, randn

from sparsernn.engines import engine_class
from sparsernn.engines.base import Layer, Unsupported
from sparsernn.engines.c import build, layers, pack
from sparsernn.nets.cells import GRUCell, LSTMCell, RNNCell

PATHS = build.paths()
EXACT = 1e-6


def by_path(path, kind=layers.Blocks):
    """An engine forced onto a path."""
    return type(kind.__name__, (kind,), {"path": path})


def rounding(layer, x, expected):
    """What float32 costs in a loop of torch's own operations: chaos makes a rounding grow in any engine."""
    return error(engine_class("compact-loop")(layer)(x).double(), expected)


# ---- float32


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("hidden", [1, 9, 33])
def test_a_layer_is_that_of_float64_in_any_batch(path, name, hidden):
    for density in (0.1, 0.5, 1.0):
        layer, masked, kept = pruned(name, hidden, density=density, live=0.7)
        run = by_path(path)(layer)
        for batch in range(1, 10):
            x, ids, lengths, live = inputs(5, batch, seed=batch)
            for given in (x, ids):
                expected = by_formula(masked, kept, given)
                assert error(run(given).double(), expected) <= max(EXACT, 3 * rounding(layer, given, expected))
            expected = by_formula(masked, kept, x, lengths)
            assert error(run(x, live).double(), expected) <= max(EXACT, 3 * rounding(layer, x, expected))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("path", PATHS)
def test_a_sequence_may_be_run_in_pieces(path, name):
    """y and every state, c too, are those of one run; and those that torch's own loop hands out."""
    layer, *_ = pruned(name, 21, live=0.8)
    run, (x, ids, _, live) = by_path(path)(layer), inputs(7, 3)
    for given in (x, ids):
        whole, last = run.carry(given, live, final=True)
        state = None
        for t, step in enumerate(given.split(1)):
            y, state = run.carry(step, live[t : t + 1], state, final=True)
            assert torch.equal(y[0], whole[t])
        assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))
        y, half = run.carry(given[:4], live[:4], final=True)
        before = [s.clone() for s in half]
        assert error(run.carry(given[4:], live[4:], half)[0], whole[4:]) <= EXACT
        assert all(torch.equal(a, b) for a, b in zip(before, half, strict=True)), "a state that was given was changed"


@pytest.mark.parametrize("path", PATHS)
def test_the_state_of_an_lstm_is_torch_s(path):
    module = torch.nn.LSTM(5, 19)
    layer = layers_of_torch(module)
    x, state = torch.randn(6, 4, 5), [torch.randn(4, 19), torch.randn(4, 19)]
    y, (h, c) = by_path(path)(layer).carry(x, None, state)
    with torch.no_grad():
        expected, (last_h, last_c) = module(x, tuple(s[None] for s in state))
    assert error(y, expected) <= EXACT and error(h, last_h[0]) <= EXACT and error(c, last_c[0]) <= EXACT


def layers_of_torch(module):
    from sparsernn.engines.models import layers_of

    return layers_of(module)["_l0"]


def clipped(weight_ih, weight_hh, bias, x):
    """h = min(max(W x + U h + b, 0), 20), float64."""
    h, y = torch.zeros(x.shape[1], len(bias), dtype=torch.float64), []
    for step in x.double():
        h = (step @ weight_ih.T + h @ weight_hh.T + bias).clamp(0, 20)
        y.append(h)
    return torch.stack(y)


def clipped_layer(hidden=20, scale=1.0):
    weights = scale * randn(hidden, V, seed=1), randn(hidden, hidden, seed=2) / hidden**0.5, randn(hidden, seed=3)
    live, none = torch.ones(1, hidden, dtype=torch.uint8), torch.zeros(0, dtype=torch.float64)
    names = "weight_ih", "weight_hh", "bias", "live", "constant"
    return Layer(RNNCell("clipped_relu"), dict(zip(names, (*weights, live, none), strict=True))), weights


@pytest.mark.parametrize("path", PATHS)
def test_a_clipped_relu_ends_at_twenty(path):
    layer, weights = clipped_layer(scale=9.0)
    x = inputs(6, 3)[0]
    expected = clipped(*weights, x)
    assert (expected == 20).any() and (expected == 0).any()
    assert error(by_path(path)(layer)(x).double(), expected) <= EXACT


def one_gate(cell, weight_ih, bias):
    """A layer of one neuron that nothing of its state reaches."""
    live = torch.ones(len(cell.gates), 1, dtype=torch.uint8)
    parts = {"weight_ih": weight_ih, "weight_hh": torch.zeros(len(weight_ih), 1), "bias": bias, "live": live}
    return Layer(cell, parts | {"constant": torch.zeros(0)})


@pytest.mark.parametrize("path", PATHS)
def test_tanh_and_the_logistic_function_are_within_2e_7(path):
    x = torch.cat([torch.linspace(-20, 20, 40001), torch.logspace(-6, 38, 2000), -torch.logspace(-6, 38, 2000)])
    ends = torch.tensor([float("inf"), -float("inf"), float("nan")])
    tanh = by_path(path)(one_gate(RNNCell("tanh"), torch.ones(1, 1), torch.zeros(1)))
    assert float((tanh(x[None, :, None])[0, :, 0].double() - x.double().tanh()).abs().max()) <= 2e-7
    assert (
        torch.equal(tanh(ends[None, :, None])[0, :2, 0], torch.tensor([1.0, -1.0]))
        and tanh(ends[None, :, None])[0, 2].isnan()
    )
    # n = tanh(50) = 1, h = (1 − z) n: one less the logistic function of x
    z = by_path(path)(
        one_gate(GRUCell("logistic"), torch.tensor([[0.0], [1.0], [0.0]]), torch.tensor([0.0, 0.0, 50.0, 0.0]))
    )
    assert float((1 - z(x[None, :, None])[0, :, 0].double() - x.double().sigmoid()).abs().max()) <= 2e-7


# ---- blocks


def blocky(rows, columns, shape, density, seed=0):
    """A matrix whose blocks of a shape are kept or not."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-rows // shape[0]), -(-columns // shape[1]), generator=generator) < density
    kept = kept.repeat_interleave(shape[0], 0).repeat_interleave(shape[1], 1)[:rows, :columns]
    return randn(rows, columns, seed=seed + 1) * kept


ZEROS = {  # what the zeros are like → the kind of block that fits them in float32, in int8
    "16x1": ((16, 1), 0.1, "16x1", None),
    "16x4": ((16, 4), 0.1, "16x4", "int8 16x4"),
    "8x4": ((8, 4), 0.1, "8x4", "int8 8x4"),
    "scattered": ((1, 1), 0.03, "scattered", None),
    "dense": ((1, 1), 1.0, "16x4", "int8 16x4"),
}


@pytest.mark.parametrize("zeros", ZEROS)
def test_blocks_are_of_the_shape_that_the_zeros_fit(zeros):
    shape, density, floats, bytes_ = ZEROS[zeros]
    weight = blocky(320, 256, shape, density).float().numpy()
    arrays = pack.pack_floats(weight)
    assert arrays["kind"] == floats
    if floats != "scattered":
        assert arrays["values"].size == np.count_nonzero(weight), "not a zero among them"
    if bytes_:
        assert (found := pack.pack_bytes(weight, dense=False))["kind"] == bytes_
        assert found["values"].size == np.count_nonzero(weight)


@pytest.mark.parametrize("zeros", ["16x1", "16x4", "8x4"])
def test_blocks_outlive_the_neurons_that_are_removed_between_them(zeros):
    """Rows and columns taken out anywhere: the blocks become smaller, and as few numbers are stored as before."""
    weight = blocky(320, 256, ZEROS[zeros][0], 0.1).float().numpy()
    generator = np.random.default_rng(0)
    left = weight[generator.random(320) > 0.1][:, generator.random(256) > 0.1]
    arrays, whole = pack.pack_floats(left), pack.pack_floats(weight)
    assert arrays["kind"] != "scattered" and arrays["values"].size <= whole["values"].size


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 5), (17, 4), (40, 33), (64, 300), (129, 70)])
def test_a_product_of_any_blocks_is_that_of_float64(path, zeros, size):
    weight, bias = blocky(*size, *ZEROS[zeros][:2]), randn(size[0], seed=5)
    weight[0, 0] = 1
    product, exact = layers.Linear(weight, bias, path), torch.nn.functional.linear
    for count in (*range(1, 10), 16, 21):
        x = randn(count, size[1], seed=count)
        assert error(product(x.float()).double(), exact(x, weight, bias)) <= EXACT


# ---- int8


def rounded(values, step):
    """To whole steps, 127 at most."""
    return (values.double() / step).round().clamp(-127, 127) * step


def rounded_rows(weight):
    scale = weight.double().abs().amax(1, keepdim=True) / 127
    return rounded(weight, scale.masked_fill(scale == 0, 1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [layers.LinearInt8, layers.LinearDenseInt8])
@pytest.mark.parametrize("zeros", ZEROS)
def test_an_int8_product_is_the_one_of_the_rounded_numbers(path, kind, zeros):
    for size in ((1, 1), (7, 5), (40, 33), (129, 70)):
        weight, bias = blocky(*size, *ZEROS[zeros][:2]).float(), randn(size[0], seed=5)
        product, largest = kind(weight, bias, path), torch.full((1, size[1]), 3.0)
        product(largest)  # the example: a step is 3 / 127
        for count in (*range(1, 10), 21):
            x = randn(count, size[1], seed=count).clamp(-2.9, 2.9).float()
            exact = torch.nn.functional.linear(rounded(x, 3 / 127), rounded_rows(weight), bias)
            assert error(product(x).double(), exact) <= EXACT
        assert product.saturated == 0


@pytest.mark.parametrize("path", PATHS)
def test_no_sum_of_int8_products_is_cut_off(path):
    """All at their largest: pairs of products as large as they can be, of either sign."""
    weight, x = torch.ones(24, 64), torch.ones(3, 64)
    weight[1::2], x[1] = -1, -1
    product = layers.LinearInt8(weight, torch.zeros(24), path)
    assert error(product(x), x @ weight.T) <= EXACT


@pytest.mark.parametrize("path", PATHS)
def test_what_int8_cuts_off_is_counted(path):
    product = layers.LinearInt8(torch.eye(40), torch.zeros(40), path)
    x = torch.ones(2, 40)
    assert error(product(x), x) <= EXACT and product.saturated == 0
    x[0, 3], x[1, 39], x[1, 0] = 2.0, -5.0, 1.003
    expected = x.clamp(-1, 1)
    assert error(product(x), expected) <= EXACT and product.saturated == 2


def in_int8(layer, x, of_x, of_h):
    """The formulas in float64 with every number rounded as int8 has it, a step at a time → y."""
    cell, parts, ids = layer.cell, layer.double().parts, x.dtype == torch.int64
    where, fixed = layer.where, layer.double().fixed
    from_x, from_h = (rounded_rows(w) for w in (layer.weight_ih.float(), layer.weight_hh.float()))
    state = [torch.zeros(x.shape[1], layer.hidden, dtype=torch.float64) for _ in range(cell.n_states)]
    squash = torch.sigmoid if cell.activation == "logistic" else lambda a: (0.2 * a + 0.5).clamp(0, 1)
    y = []
    for step in x:
        read = (
            layer.weight_ih.double().T[step] if ids else rounded(step, of_x) @ from_x.T
        )  # a word's weights are a table's
        a = read + rounded(state[0], of_h) @ from_h.T + parts["bias"]
        v = torch.zeros(x.shape[1], *where.shape, dtype=torch.float64)
        v[:, where] = a
        said = lambda k, value: torch.where(fixed[k].isnan(), value, fixed[k])  # noqa: E731
        if isinstance(cell, LSTMCell):
            i, f, o = (said(k, squash(v[:, k])) for k in (0, 1, 3))
            c = f * state[1] + i * said(2, v[:, 2].tanh())
            state = [o * c.tanh(), c]
        elif isinstance(cell, GRUCell):
            r, z = (said(k, squash(v[:, k])) for k in (0, 1))
            n = said(2, (v[:, 2] + r * v[:, 3]).tanh())
            state = [n + z * (state[0] - n)]
        else:
            state = [said(0, v[:, 0].tanh() if cell.activation == "tanh" else v[:, 0].clamp(0, 20))]
        y.append(state[0])
    return torch.stack(y)


@pytest.mark.parametrize("name", [name for name in CELLS if "relu" not in name])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [layers.Int8, layers.DenseInt8])
def test_an_int8_layer_is_the_one_of_the_rounded_numbers(path, name, kind):
    """But where float32 lands on the other side of a half: one step of h in 127, seldom."""
    for hidden in (9, 33):
        layer, *_ = pruned(name, hidden, live=0.8)
        run, x = by_path(path, kind)(layer), inputs(2, 9)[0]
        y = run(x)
        expected = in_int8(layer, x, float(x.abs().max()) / 127, 1 / 127)
        assert error(y[:1].double(), expected[:1]) <= EXACT
        assert float(((y[1].double() - expected[1]).abs() > EXACT).double().mean()) <= 0.02
        assert run.saturated == 0


@hypothesis.settings(derandomize=True, deadline=None, max_examples=150)
@hypothesis.given(
    st.sampled_from([name for name in CELLS if "relu" not in name]),
    st.sampled_from(PATHS),
    st.sampled_from([layers.Int8, layers.DenseInt8]),
    st.integers(1, 70),
    st.integers(0, 10_000),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([0.2, 0.7, 1.0]),
    st.integers(1, 9),
    st.sampled_from([None, 0.5, 4.0]),
)
def test_any_int8_layer_is_the_one_of_the_rounded_numbers(name, path, kind, hidden, seed, density, live, batch, reach):
    layer = replace(pruned(name, hidden, seed, density, live)[0], reach=reach)
    x, ids, *_ = inputs(2, batch, seed)
    for numbers in (x, ids.clamp(max=V - 1)):
        run = by_path(path, kind)(layer)
        y, most = run(numbers), float(x.abs().max()) if reach is None else reach
        expected = in_int8(layer, numbers, most / 127, 1 / 127)
        assert error(y[:1].double(), expected[:1]) <= EXACT
        assert float(((y[1].double() - expected[1]).abs() > EXACT).double().mean()) <= 0.2, "one of five: few neurons"
        cut_off = (x.abs() > 127.5 / 127 * most).sum() if numbers is x and layer.weight_ih.any() else 0
        assert run.saturated == cut_off or (kind is layers.DenseInt8 and numbers is x)


def test_the_paths_round_alike():
    layer, *_ = pruned("GRU", 33)
    x = inputs(5, 4)[0]
    first, *others = [by_path(path, layers.Int8)(layer)(x) for path in PATHS]
    assert all(error(first, other) <= EXACT for other in others)


@pytest.mark.parametrize("name", [name for name in CELLS if "relu" not in name])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf, -math.inf])
def test_of_what_is_not_finite_int8_makes_nan_in_that_sequence_from_then_on(path, name, odd):
    layer = pruned(name, 9, live=1.0, keep=1.0)[0]
    run, (x, *_) = by_path(path, layers.Int8)(layer), inputs(6, 3)
    finite, bad = run(x), x.clone()
    bad[2, 1, 0] = odd
    for engine in (run, by_path(path, layers.Int8)(layer)):  # the first numbers that are met set the steps
        y = engine(bad)
        assert bool(y[2:, 1].isnan().all()) and bool(y[:2].isfinite().all()) and bool(y[:, [0, 2]].isfinite().all())
    assert torch.equal(run(x), finite)
    with pytest.raises(ValueError, match="none of these is finite"):
        by_path(path, layers.Int8)(layer)(torch.full_like(x, odd))


def test_a_clipped_relu_in_int8_has_steps_of_its_largest_value():
    layer, _ = clipped_layer()
    x = inputs(4, 5)[0]
    expected = in_int8(layer, x, float(x.abs().max()) / 127, 20 / 127)
    assert error(layers.Int8(layer)(x).double(), expected) <= 1e-5


def test_int8_refuses_a_relu_for_its_state_has_no_bound():
    with pytest.raises(Unsupported, match="needs a bounded state"):
        layers.Int8(pruned("RNN, relu")[0])


# ---- what it must not be given


@pytest.mark.parametrize(
    ("change", "problem", "words"),
    [
        (lambda x, ids, live: (ids - 1, None), IndexError, "ids from -1 to"),
        (lambda x, ids, live: (ids + 1, None), IndexError, f"allowed: 0 to {V}"),
        (lambda x, ids, live: (ids[0], None), ValueError, "token ids have shape"),
        (lambda x, ids, live: (x[..., 1:], None), ValueError, rf"expected \(T, B, {V}\)"),
        (lambda x, ids, live: (x[:0], None), ValueError, "at least one of each"),
        (lambda x, ids, live: (x[:, :0], None), ValueError, "at least one of each"),
        (lambda x, ids, live: (x, live[1:]), ValueError, "live is"),
        (lambda x, ids, live: (x, live.int()), ValueError, "live is"),
        (lambda x, ids, live: (x, None, [torch.zeros(3, 2)] * 2), ValueError, "state is"),
        (lambda x, ids, live: (x, None, [torch.zeros(3, 7)]), ValueError, "expected 2 of"),
    ],
)
def test_a_bad_call_is_refused_before_anything_runs(change, problem, words):
    layer, *_ = pruned("LSTM")
    x, ids, _, live = inputs(4, 3)
    ids[0, 0], ids[0, 1] = 0, V
    with pytest.raises(problem, match=words):
        layers.Blocks(layer).carry(*change(x, ids, live))


def test_numbers_of_another_kind_and_layout_are_taken():
    layer, *_ = pruned("GRU")
    run, (x, _, _, live) = layers.Blocks(layer), inputs(4, 3)
    y = run(x, live)
    assert torch.equal(run(x.double(), live), y)
    assert torch.equal(run(x.transpose(0, 1).contiguous().transpose(0, 1), live.T.contiguous().T), y)
    assert torch.equal(run(x.requires_grad_(), live), y)


def test_a_layer_too_wide_for_an_index_is_refused():
    with pytest.raises(Unsupported, match="65536 columns"):
        layers.Linear(torch.zeros(1, 1 << 16), torch.zeros(1))


# ---- how it is made


def in_another_process(code, **environment):
    kept = {"PYTHONPATH": os.pathsep.join(sys.path)} | {k: str(v) for k, v in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_may_make_it_at_once(tmp_path):
    code = "from sparsernn.engines.c import build; print(build.compiled('which', ''), build.paths())"
    both = [in_another_process(code, XDG_CACHE_HOME=tmp_path) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert said[0][0] == said[1][0] and said[0][0].startswith(str(tmp_path)), said
    assert len(list((tmp_path / "sparsernn").iterdir())) == 1, "one library and nothing unfinished"


def test_a_change_of_the_source_or_the_flags_makes_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.compiled("which", "")
    assert first == build.compiled("which", "") and first.parent == tmp_path / "sparsernn"
    assert build.compiled("which", "-DOTHER") != first
    for file in build.SOURCES.glob("*.[ch]"):
        (tmp_path / file.name).write_bytes(file.read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.compiled("which", "") != first


def test_where_nothing_can_be_kept_it_is_made_for_the_process(tmp_path, monkeypatch):
    (tmp_path / "sparsernn").write_text("a file in the place of the folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = build.compiled("which", "")
    assert made.exists() and tmp_path not in made.parents


def test_without_a_compiler_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['ziglang'] = None\nfrom sparsernn import engines\n"
    code += "print('c-blocks' in engines.available('cpu'), 'compact-torch' in engines.available('cpu'))\n"
    code += "engines.engine_class('c-blocks')"
    out, problem = in_another_process(code, PATH=tmp_path, XDG_CACHE_HOME=tmp_path).communicate()
    assert out.split() == ["False", "True"]
    assert "install gcc or clang so that `cc` is found, or pip install ziglang" in problem.splitlines()[-1]


def test_without_cc_it_is_the_compiler_of_ziglang(tmp_path, monkeypatch):
    pytest.importorskip("ziglang", reason="the package ziglang is not here")
    monkeypatch.setenv("PATH", str(tmp_path)), monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "ziglang" in build.compiler()
    assert ctypes.CDLL(build.compiled("which", "")).sparsernn_paths() & 8


def test_what_the_compiler_says_is_handed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    (tmp_path / "which.c").write_text("not C\n")
    with pytest.raises(RuntimeError, match="could not compile which.c"):
        build.compiled("which", "")


def test_a_path_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="unknown path 'avx521'"):
        build.library("avx521")


def test_the_source_compiles_without_a_warning(tmp_path):
    for path in PATHS:
        words = f"{build.FLAGS} {build.PATHS[path]} -O0 -Wall -Wextra -Werror".split()
        source = Path(build.SOURCES) / "engine.c"
        done = subprocess.run(
            [*build.compiler(), *words, source, "-o", tmp_path / "out.so"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


# ---- where Python does not call it: under sanitizers, on another processor


def cases(path):
    """Layers and products of every kind, laid down for a path, and what they are called with → (head of the case, its
    arrays, what this processor's fastest path answers, how far sums in another order, and for int8 a number on the other side
    of a half, may be from it)."""
    for name in CELLS:
        for kind in (layers.Blocks, layers.Int8):
            if kind is layers.Int8 and "relu" in name:
                continue
            for hidden, batch in ((1, 1), (9, 3), (33, 9), (40, 8)):
                layer, *_ = pruned(name, hidden, live=0.8)
                made, reference = by_path(path, kind)(layer), by_path(None, kind)(layer)
                x, ids, _, live = inputs(5, batch, seed=hidden)
                states = [randn(batch, layer.hidden, seed=n).tanh().float() for n in range(made.states)]
                for given in (x, ids):
                    memory = made.prepare(None if given is ids else x)
                    head = [len(memory.raw), 0, given is ids, 1, len(states), 5, batch, V, layer.hidden]
                    y, final = reference.carry(given, live, states)
                    yield head, [memory.raw, given, live, *states], [y, *final], 5e-6 if kind is layers.Blocks else 2e-2
    for zeros in ZEROS:
        for kind in (layers.Linear, layers.LinearInt8):
            for size in ((1, 1), (7, 5), (40, 33), (129, 70)):
                weight, bias, x = blocky(*size, *ZEROS[zeros][:2]), randn(size[0], seed=5), randn(9, size[1]).float()
                made = kind(weight, bias, path)
                made.prepare(x)
                head = [len(made.memory.raw), 1, 0, 0, 0, 1, 9, size[1], size[0]]
                yield head, [made.memory.raw, x], [kind(weight, bias)(x)], EXACT


def run_elsewhere(program, path, folder):
    """Runs every case by a program (a command) and compares what it says."""
    found, (given, said) = list(cases(path)), (folder / "cases", folder / "answers")
    raw = [
        np.array(head, np.int64).tobytes() + b"".join(np.asarray(part).tobytes() for part in parts)
        for head, parts, *_ in found
    ]
    given.write_bytes(b"".join(raw))
    done = subprocess.run([*program, given, said], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = said.read_bytes()
    for _, _, expected, allowed in found:
        result, answers = int.from_bytes(answers[:8], "little", signed=True), answers[8:]
        assert result == 0
        for tensor in expected:
            size = 4 * tensor.numel()
            got, answers = torch.frombuffer(bytearray(answers[:size]), dtype=torch.float32), answers[size:]
            assert error(got.view(tensor.shape), tensor) <= allowed
    assert not answers and len(found) > 100


def program(folder, command, flags):
    """tests/run_engine.c compiled → the program; skipped only where the compiler cannot make an empty one with these flags."""
    source, made = Path(__file__).with_name("run_engine.c"), folder / "run_engine"
    words = build.words(f"-std=gnu99 -ffp-contract=fast -Wno-psabi {flags} -I{build.SOURCES}", command)
    empty = folder / "empty.c"
    empty.write_text("int main(void) { return 0; }\n")
    able = subprocess.run([*command, *words, empty, "-o", made], capture_output=True, text=True)
    if able.returncode:
        pytest.skip(f"{command[-1]} cannot: {able.stderr[-200:]}")
    done = subprocess.run([*command, *words, source, "-o", made], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.mark.parametrize("path", PATHS)
def test_no_sanitizer_finds_a_fault(path, tmp_path):
    flags = f"-O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all {build.PATHS[path]}"
    run_elsewhere([program(tmp_path, ["cc"], flags)], path, tmp_path)


on_arm = pytest.mark.skipif(arm.missing() is not None, reason=str(arm.missing()))


@on_arm
@pytest.mark.parametrize("path", ["neon", "plain"])
def test_an_arm_processor_says_the_same(path, tmp_path):
    """Under qemu. Plain C here lays weights and x down as both do there."""
    made = program(tmp_path, arm.compiler(), f"-O2 {build.PATHS[path]}")
    run_elsewhere([arm.EMULATOR, made], "plain", tmp_path)


@on_arm
@pytest.mark.parametrize(("processor", "expected"), [("max", ["neon", "plain"]), ("cortex-a53", ["plain"])])
def test_an_arm_processor_takes_the_path_of_dot_products_only_where_it_has_them(processor, expected, tmp_path):
    main = "int sparsernn_paths(void); int main(void) { return sparsernn_paths(); }"
    (tmp_path / "main.c").write_text(main)
    command = [*arm.compiler(), tmp_path / "main.c", build.SOURCES / "which.c", "-o", tmp_path / "which"]
    subprocess.run(command, check=True)
    runs = subprocess.run([arm.EMULATOR, "-cpu", processor, tmp_path / "which"]).returncode
    assert [name for bit, name in enumerate(build.PATHS) if runs >> bit & 1] == expected


@pytest.mark.parametrize("again", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
def test_a_copy_of_an_engine_outlives_it(again):
    layer, *_ = pruned("GRU", 33)
    run, product, x = layers.Blocks(layer), layers.LinearInt8(torch.eye(8), torch.zeros(8)), inputs(4, 3)[0]
    y, z = run(x), product(torch.ones(2, 8))
    other, product_again = again(run), again(product)
    del run, product
    assert torch.equal(other(x), y) and torch.equal(product_again(torch.ones(2, 8)), z)
    assert other.by_numbers.address % 64 == 0


def test_a_product_of_no_lines_has_none():
    assert layers.Linear(torch.ones(3, 4), torch.zeros(3))(torch.zeros(2, 0, 4)).shape == (2, 0, 3)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", [layers.Linear, layers.LinearInt8])
@pytest.mark.parametrize("starts", [(8, 16), (0, 16), (0, 9), (3,), (16,)])
def test_rows_without_weights_and_panels_that_begin_anywhere_keep_their_bias(path, kind, starts):
    weight, bias = torch.zeros(32, 64), randn(32, seed=5).float()
    for place, start in enumerate(starts):
        end = (*starts, 32)[place + 1]
        weight[start:end, 12 * place : 12 * place + 8] = 1
    product = kind(weight, bias, path)
    for count in (1, 2, 9):
        x = torch.ones(count, 64)
        assert error(product(x), torch.nn.functional.linear(x, weight, bias)) <= EXACT
