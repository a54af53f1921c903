"""The CUDA kernel without a GPU: its source run on the CPU thread by thread, against the formulas, and compiled for sm_80
and sm_90 into registers that suffice; its weights dealt out without loss and without conflict."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation import Emulated
from layers import CELLS, by_formula, inputs, pruned
from oracles import error
from test_kernels import usage

pytest.importorskip("cuda.bindings", reason="cuda-bindings is on Linux alone")

from sparsernn.bench import LayerCase  # noqa: E402
from sparsernn.engines import cuda_source, engine_class, persistent_cuda  # noqa: E402
from sparsernn.engines.base import Unsupported  # noqa: E402
from sparsernn.engines.dealing import BANKS, deal  # noqa: E402
from sparsernn.engines.persistent_cuda import Chip, Shape  # noqa: E402

FLOAT32 = 1e-6
H200 = Chip(132, 227 << 10)
SMALL = (Shape(64, 1, 32, 8), Shape(32, 4, 32, 9))  # as on a GPU, but for few neurons: blocks of few threads

# ---- right


@pytest.fixture
def emulated(kernels_folder, monkeypatch):
    """(layer, processors, shapes, source) → the engine, on the CPU."""

    def engine(layer, processors=3, shapes=SMALL, source=persistent_cuda.SOURCE, seed=1):
        kind = engine_class("persistent-cuda")
        monkeypatch.setattr(kind, "chip", lambda self: Chip(processors, 1 << 16))
        monkeypatch.setattr(kind, "kernel", lambda self, **constants: Emulated(source, kernels_folder, constants, seed))
        monkeypatch.setattr(persistent_cuda.lay_out, "__defaults__", (shapes,))
        return kind(layer, "cpu")

    return engine


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 16])
def test_the_source_computes_the_formulas(name, batch, emulated):
    layer, masked, kept = pruned(name)
    x, ids, lengths, live = inputs(4, batch)
    run = emulated(layer)
    assert error(run(x).double(), by_formula(masked, kept, x)) <= FLOAT32
    assert error(run(ids, live).double(), by_formula(masked, kept, ids, lengths)) <= FLOAT32


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_weights_beyond_the_registers_are_in_shared_memory(batch, emulated):
    layer, masked, kept = pruned("LSTM", hidden=50, density=1.0, keep=0.9)
    x, *_ = inputs(3, batch)
    for shape in SMALL:
        run = emulated(layer, processors=7, shapes=(shape,))
        assert error(run(x).double(), by_formula(masked, kept, x)) <= FLOAT32
        constants, left = run.laid[batch].constants, run.laid[batch].left
        assert left > 0 and constants["HELD"] + left == constants["PARTS"] * constants["SLOTS"]


def test_of_shapes_that_fit_the_one_with_the_fewest_gathers_is_taken():
    layer = pruned("LSTM", hidden=50, density=1.0, keep=0.9)[0]
    alone = [persistent_cuda.lay_out(layer, 1, Chip(7, 1 << 16), (shape,)) for shape in SMALL]
    costs = [one.threads * (one.constants["PARTS"] * one.constants["SLOTS"] + 1.5 * one.left) for one in alone]
    both = persistent_cuda.lay_out(layer, 1, Chip(7, 1 << 16), SMALL)
    assert costs[0] != costs[1] and both.constants == alone[costs.index(min(costs))].constants


def test_h_in_more_pieces_than_a_thread_copies_at_once(emulated):
    layer, masked, kept = pruned("RNN", hidden=200, density=0.02, keep=1.0, live=1.0)
    x, *_ = inputs(2, 4)
    run = emulated(layer, processors=8, shapes=(Shape(32, 1, 64, 8),))
    assert error(run(x).double(), by_formula(masked, kept, x)) <= FLOAT32


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps(steps, emulated):
    layer, masked, kept = pruned("GRU")
    x, *_ = inputs(steps, 1)
    assert error(emulated(layer)(x).double(), by_formula(masked, kept, x)) <= FLOAT32


def test_a_layer_whose_every_gate_is_constant(emulated):
    layer, masked, kept = pruned("LSTM", live=0.0)
    x, *_ = inputs(3, 1)
    assert error(emulated(layer)(x).double(), by_formula(masked, kept, x)) <= FLOAT32


def test_the_empty_loop_has_no_products(emulated):
    layer, masked, kept = pruned("LSTM")
    x, *_ = inputs(4, 2)
    without = masked.double()
    without.weight_hh_l0.zero_()
    assert error(emulated(layer)(x, empty=True).double(), by_formula(without, kept, x)) <= FLOAT32


def nth_removed(text, what, n):
    parts = text.split(what)
    return what.join(parts[: n + 1]) + what.join(["", *parts[n + 1 :]])[len(what) :]


@pytest.mark.parametrize("barrier", [0, 1])
def test_without_one_of_its_barriers_the_emulation_finds_it_wrong(barrier, emulated, tmp_path):
    """So the emulation would find a missing one."""
    text = persistent_cuda.SOURCE.read_text()
    assert text.count("__syncthreads();") == 2
    broken = tmp_path / "broken.cu"
    broken.write_text(nth_removed(text, "__syncthreads();", barrier))
    layer, masked, kept = pruned("LSTM")
    x, *_ = inputs(6, 1)
    errors = [
        error(emulated(layer, source=broken, seed=seed)(x).double(), by_formula(masked, kept, x))
        for seed in range(1, 9)
    ]
    assert max(errors) > 1e-3 or any(e != e for e in errors)


def test_what_is_not_published_is_waited_for(emulated, tmp_path):
    text = persistent_cuda.SOURCE.read_text()
    broken = tmp_path / "broken.cu"
    broken.write_text(text.replace("if (gate == 0 && unit", "if (gate == 0 && blockIdx.x != 1 && unit"))
    with pytest.raises(RuntimeError, match="for ever"):
        emulated(pruned("LSTM", hidden=12, keep=1.0)[0], source=broken)(inputs(3, 1)[0])


def test_what_it_does_not_run_is_said(emulated):
    layer = pruned("LSTM")[0]
    with pytest.raises(Unsupported, match="17 sequences at once; this kernel runs up to 16"):
        emulated(layer)(inputs(2, 17)[0])
    with pytest.raises(Unsupported, match="weights do not fit 2 multiprocessors"):
        persistent_cuda.lay_out(pruned("LSTM", hidden=64, density=1.0)[0], 1, Chip(2, 1 << 12), SMALL)
    with pytest.raises(Unsupported, match="rows for 64 lanes"):
        persistent_cuda.lay_out(pruned("LSTM", hidden=99, live=1.0)[0], 1, Chip(2, 1 << 16), SMALL[:1])


# ---- dealt


@pytest.mark.parametrize(("width", "lanes"), [(1, 64), (2, 128), (4, 256)])
def test_every_weight_is_dealt_once(width, lanes):
    generator = np.random.default_rng(0)
    weight = (generator.random((60, 200)) < 0.1) * generator.standard_normal((60, 200)).astype(np.float32)
    weight[7] = 0
    dealt = deal(weight, 4, lanes, width)
    again = np.zeros_like(weight)
    for row, (begin, end) in enumerate(dealt.lanes.reshape(-1, 2)):
        of_row = (row // 15, slice(None), slice(begin, end))
        np.add.at(again[row], dealt.columns[of_row].ravel(), dealt.values[of_row].ravel())
    assert np.array_equal(again, weight)
    assert np.count_nonzero(dealt.values) == np.count_nonzero(weight)
    assert dealt.columns.min() >= 0 and dealt.columns.max() < 200


def turns(columns, width):
    """Turns a gather takes in shared memory, on average; lanes that want the same column are served together."""
    together = BANKS // width
    gathers = columns.reshape(-1, together)
    return np.mean([np.bincount(np.unique(gather) % together).max() for gather in gathers])


@pytest.mark.parametrize(("width", "most"), [(1, 0.5), (2, 0.5), (4, 0.65)])
def test_what_is_gathered_at_once_lies_in_different_banks(width, most):
    """Against the same shares in any order: of 32 lanes three or four meet in some bank, of 8 two."""
    generator = np.random.default_rng(0)
    weight = (generator.random((64, 1024)) < 0.3).astype(np.float32)
    dealt = deal(weight, 2, 512, width)
    shuffled = generator.permuted(dealt.columns, axis=1)
    assert 1 <= turns(dealt.columns, width) <= most * turns(shuffled, width)


def test_more_rows_than_lanes_are_refused():
    with pytest.raises(ValueError, match="40 rows for 32 lanes"):
        deal(np.ones((80, 8), np.float32), 2, 32)


# ---- compiled


def built(laid, architecture, products=1):
    code = cuda_source.compile_source(persistent_cuda.SOURCE, architecture, **laid.constants, PRODUCTS=products)
    triton = pytest.importorskip("triton", reason="its tools read machine code")
    return usage(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", code)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", CELLS)
def test_it_compiles_without_spilling(architecture, name):
    for batch in persistent_cuda.BATCHES:
        laid = persistent_cuda.lay_out(pruned(name, hidden=64)[0], batch, H200)
        for products in (0, 1):
            assert built(laid, architecture, products)[1] == 0


@pytest.mark.parametrize(("hidden", "density"), [(1024, 0.3), (1760, 0.3), (2304, 0.05), (2304, 0.3)])
def test_large_layers_stay_on_the_chip_of_an_h200(hidden, density):
    """Every weight in registers or shared memory, and nothing spilled."""
    layer = LayerCase(hidden, density, 1, "unstructured", 1).data[1]
    for batch in (1, 4, 16) if hidden * density < 600 else (1, 4):  # with sixteen the largest does not fit
        laid = persistent_cuda.lay_out(layer, batch, H200)
        registers, spilled = built(laid, "sm_90")
        assert laid.blocks <= 132 and registers * laid.threads <= 1 << 16 and laid.shared <= H200.shared
        assert registers > 1.5 * laid.constants["HELD"] and spilled == 0


def test_what_the_compiler_says_is_handed_on(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("nonsense;")
    with pytest.raises(RuntimeError, match=r"(?s)wrong.cu for sm_90: .*nonsense.*[^\0]$"):
        cuda_source.compile_source(source, "sm_90")


# ---- launched


@pytest.mark.parametrize("cooperative", [True, False])
def test_a_launch_hands_over_pointers_and_ints(monkeypatch, cooperative):
    calls, used = [], "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
    monkeypatch.setattr(cuda_source.driver, "cuFuncSetAttribute", lambda *a: calls.append(a) or (0,))
    monkeypatch.setattr(cuda_source.driver, used, lambda *a: calls.append(a) or (0,))
    monkeypatch.setattr(torch.cuda, "device", lambda device: __import__("contextlib").nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 7}))
    kernel = object.__new__(cuda_source.Kernel)
    kernel.device, kernel.function, kernel.most, kernel.cooperative = torch.device("cuda"), "function", 0, cooperative
    tensor = torch.zeros(2)
    kernel(5, 64, 1000, tensor, 3)
    kernel(5, 64, 900, tensor, 3)
    raised, launched, again = calls
    assert raised[0] == "function" and raised[2] == 1000
    assert launched[:8] == ("function", 5, 1, 1, 64, 1, 1, 1000) and int(launched[8]) == 7 and again[7] == 900
    assert launched[9] == ((tensor.data_ptr(), 3), (ctypes.c_void_p, ctypes.c_int))
