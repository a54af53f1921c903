"""The tiny kernel in CUDA without a GPU: its source run on the CPU thread by thread, against the formulas, and compiled for
sm_80 and sm_90 into registers that suffice; neurons put into groups of which none hears of another."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from layers import CELLS, by_formula, inputs, pruned
from oracles import error
from test_kernels import usage

pytest.importorskip("cuda.bindings", reason="cuda-bindings is on Linux alone")

from emulation import Emulated  # noqa: E402

from sparsernn.engines import cuda_source, tiny_cuda  # noqa: E402
from sparsernn.engines.base import Layer, Unsupported  # noqa: E402
from sparsernn.engines.parts import shrink  # noqa: E402
from sparsernn.engines.tiny_cuda import groups_of  # noqa: E402
from sparsernn.engines.whole import by_engine  # noqa: E402
from sparsernn.nets.layers import GRU, LSTM, RNN  # noqa: E402

FLOAT32 = 3e-6  # powers of 2 for those of e, as the GPU has them


@pytest.fixture
def emulated(kernels_folder, monkeypatch):
    """(layer, source, seed) → the engine, on the CPU."""

    def engine(layer, source=tiny_cuda.SOURCE, seed=1):
        def kernel(path, name, device, cooperative, **constants):
            assert path == tiny_cuda.SOURCE and name == "whole_sequence" and not cooperative
            return Emulated(source, kernels_folder, constants, seed)

        monkeypatch.setattr(tiny_cuda, "Kernel", kernel)
        monkeypatch.setattr(tiny_cuda.TinyCuda, "devices", ("cpu",))
        return layer and tiny_cuda.TinyCuda(layer, "cpu")

    return engine


def heads(kind, number, width, seed=0):
    """A layer whose W_hh is block-diagonal, its neurons in any order; float64."""
    generator = torch.Generator().manual_seed(seed)
    size = number * width
    made = kind(5, size).double().requires_grad_(False)
    head = torch.randperm(size, generator=generator) % number
    made.weight_hh_l0.mul_((head[:, None] == head).repeat(len(made.cell.gates), 1)).mul_(width**0.5)
    keep, live = torch.ones(size, dtype=torch.bool), torch.ones(len(made.weight_hh_l0), dtype=torch.bool)
    given = made.weight_ih_l0, made.weight_hh_l0, made.bias_ih_l0, made.bias_hh_l0
    return Layer(made.cell, shrink(made.cell, *given, keep, live)), made, keep


# ---- right


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("steps", [1, 3, 4, 9, 13])
def test_the_source_computes_the_formulas(name, steps, emulated):
    layer, masked, kept = pruned(name)
    x, ids, lengths, live = inputs(steps, 3)
    run = emulated(layer)
    assert error(run(x).double(), by_formula(masked, kept, x)) <= FLOAT32
    assert error(run(ids, live).double(), by_formula(masked, kept, ids, lengths)) <= FLOAT32


@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_each_head_has_a_block_of_its_own(kind, emulated):
    layer, whole, kept = heads(kind, 3, 20)
    x, ids, lengths, live = inputs(6, 2)
    run = emulated(layer)
    assert run.groups == 3
    assert error(run(x).double(), by_formula(whole, kept, x)) <= FLOAT32
    assert error(run(ids, live).double(), by_formula(whole, kept, ids, lengths)) <= FLOAT32


def test_a_layer_without_any_recurrent_weight(emulated):
    layer, masked, kept = pruned("LSTM", hidden=50, live=0.0)
    x, *_ = inputs(3, 1)
    run = emulated(layer)
    assert run.groups == 2
    assert error(run(x).double(), by_formula(masked, kept, x)) <= FLOAT32


def test_nan_stays_nan_in_a_relu_too(emulated):
    layer, masked, kept = pruned("RNN, relu", hidden=20, live=1.0)
    x, *_ = inputs(3, 1)
    x[0, 0, :] = torch.nan
    assert torch.equal(emulated(layer)(x).isnan(), by_formula(masked, kept, x).isnan())


def test_a_kernel_is_copied_as_itself_and_pickled_as_what_it_is_made_of(monkeypatch):
    made = []
    monkeypatch.setattr(
        cuda_source.Kernel, "__init__", lambda self, *given, **constants: made.append((given, constants))
    )
    kernel = object.__new__(cuda_source.Kernel)
    kernel.made_of = tiny_cuda.SOURCE, "whole_sequence", "cuda", False, {"NEURONS": 8}
    assert copy.deepcopy([kernel])[0] is kernel
    assert type(pickle.loads(pickle.dumps(kernel))) is cuda_source.Kernel
    assert made == [((tiny_cuda.SOURCE, "whole_sequence", "cuda", False), {"NEURONS": 8})]


def test_without_its_barrier_the_emulation_finds_it_wrong(emulated, tmp_path):
    text = tiny_cuda.SOURCE.read_text()
    assert text.count("__syncthreads();") == 3
    broken = tmp_path / "broken.cu"
    assert "if (!ONE_WARP) __syncthreads();" in text
    broken.write_text(text.replace("if (!ONE_WARP) __syncthreads();", ""))
    layer, masked, kept = pruned("LSTM", hidden=24)
    x, *_ = inputs(6, 1)
    errors = [
        error(emulated(layer, source=broken, seed=seed)(x).double(), by_formula(masked, kept, x))
        for seed in range(1, 9)
    ]
    assert max(errors) > 1e-3 or any(e != e for e in errors)


def test_more_neurons_that_hear_of_each_other_than_registers_hold_are_refused(emulated):
    with pytest.raises(Unsupported, match=r"\d+ neurons hear of each other; the registers of a block hold 96"):
        emulated(pruned("LSTM", hidden=140, live=1.0)[0])


# ---- whole nets


class Reader(torch.nn.Module):
    """Ids → layer → head, on the last step or on each; with or without an embedding and states."""

    def __init__(self, kind, last, embedded, states, words=11, hidden=12):
        super().__init__()
        self.words = torch.nn.Embedding(words, 5) if embedded else torch.nn.Identity()
        self.layer, self.head = kind(5 if embedded else words, hidden), torch.nn.Linear(hidden, 3)
        self.last, self.states = last, states

    def forward(self, ids):
        y, states = self.layer(self.words(ids))
        answer = self.head(y[-1] if self.last else y)
        return (answer, states) if self.states else answer


@pytest.mark.parametrize("kind", [LSTM, GRU])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("states", [True, False])
def test_a_net_of_one_layer_is_one_launch(kind, last, embedded, states, emulated):
    torch.manual_seed(0)
    model, ids = Reader(kind, last, embedded, states).eval(), torch.randint(11, (9, 4))
    if embedded:
        model.layer = (torch.nn.LSTM if kind is LSTM else torch.nn.GRU)(5, 12)
    emulated(None)
    fast = by_engine(model, "tiny-cuda", ids, states=False)
    assert type(fast).__name__ == "InOneCall" and fast.run.in_one == last
    said, expected = fast(ids), model(ids)
    if states:
        (said, nothing), (expected, _) = said, expected
        assert all(state.isnan().all() for state in (nothing if kind is LSTM else [nothing]))
    assert error(said, expected.detach()) <= FLOAT32
    assert by_engine(model, "tiny-cuda", ids, states=states) is not None or not states


def test_words_and_neurons_that_went_are_none_in_one_launch(emulated):
    torch.manual_seed(0)
    model = Reader(LSTM, True, False, False, hidden=20).requires_grad_(False)
    model.layer.weight_ih_l0[:, [2, 5]] = 0
    model.layer.weight_hh_l0[:, 10:] = 0
    model.head.weight[:, 10:] = 0
    ids = torch.randint(11, (9, 4))
    emulated(None)
    fast = by_engine(model.eval(), "tiny-cuda", ids)
    assert error(fast(ids), model(ids)) <= FLOAT32


# ---- groups


def test_neurons_that_hear_of_each_other_by_any_way_are_one_group():
    weights = torch.zeros(2, 6, 6, dtype=torch.bool)
    weights[0, 0, 3] = weights[1, 3, 5] = True  # 0 hears of 3, and 3 of 5 by another gate
    assert groups_of(weights) == [[0, 3, 5], [1, 2, 4]]
    assert groups_of(weights, at_least=5) == [[0, 2, 3, 4, 5], [1]]
    assert sorted(sum(groups_of(weights, 2), [])) == list(range(6))


# ---- compiled


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("kind", "hard", "neurons"),
    [(0, 0, 8), (0, 0, 32), (0, 1, 64), (0, 0, 96), (1, 0, 96), (1, 1, 32), (2, 0, 16), (2, 1, 160)],
)
@pytest.mark.parametrize("ids", [0, 1])
def test_weights_stay_in_registers(architecture, kind, hard, neurons, ids):
    constants = {
        "NEURONS": neurons,
        "GROUPS": 1,
        "KIND": kind,
        "HARD": hard,
        "IDS": ids,
        "CLASSES": 2 * ids,
    }
    code = cuda_source.compile_source(tiny_cuda.SOURCE, architecture, **constants)
    triton = pytest.importorskip("triton", reason="its tools read machine code")
    registers, spilled = usage(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", code)
    assert spilled == 0 and registers > (neurons / 4 if kind == 2 else neurons)
    assert registers * 4 * neurons <= 1 << 16
