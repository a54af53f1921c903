"""The sweeps: rows have their error and floor, a stopped sweep goes on, wrong names and wrong results are refused."""

import importlib
import json
import math
import subprocess
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from oracles import random_masks, randomise

from sparsernn import bench, records, tasks
from sparsernn.bench import __main__ as command
from sparsernn.bench import cases as bench_cases
from sparsernn.bench import training as training_steps
from sparsernn.engines import PRODUCTS, choose, engine_class, timing
from sparsernn.engines.models import activation_of, recurrent_layers
from sparsernn.nets.bidaf import BiDAF
from sparsernn.nets.compact import compact
from sparsernn.nets.file import save
from sparsernn.nets.models import Classifier
from sparsernn.nets.speech import SpeechModel
from sparsernn.sparsify.block_shapes import blocks_of
from sparsernn.study.config import RunConfig
from sparsernn.study.training import Session

bench_sweep = importlib.import_module("sparsernn.bench.sweep")  # `bench.sweep` is its function
ROOF = timing.Roof({1 << 20: 1e10}, {"fp32": 1e10})


pytestmark = pytest.mark.usefixtures("one_thread")


def layer_cell(pattern="unstructured", density=0.2):
    return bench.LayerCase(32, density, 2, pattern, 4)


@pytest.mark.parametrize("pattern", bench.PATTERNS)
def test_every_engine_of_a_layer_cell_is_timed_with_its_error(pattern):
    case, said = layer_cell(pattern), []
    rows = bench.measure(case, "cpu", ROOF, 0.01, said.append)
    assert not said, "every engine of the CPU runs these"
    assert {row["engine"] for row in rows} >= {
        "dense-fp32",
        "dense-int8",
        "compact-torch",
        "numba",
        "csr-torch",
        "choose",
    }
    for row in rows:
        assert set(row) <= set(records.TIMING_FIELDS)
        assert row["error"] <= (1e-5 if row["dtype"] == "float32" else 0.1)
        if (
            row["engine"] == "dense-fp32"
        ):  # 2 · 4 · 32² weights, 4 steps of 2 sequences: at the roof's 10 GB/s and GFLOP/s
            weights = 2 * 4 * 32 * 32
            size, flops = 4 * weights + 4 * 4 * 2 * 64, 2 * weights * 4 * 2
            assert row["floor_ms"] == pytest.approx(1e3 * max(size, flops) / 1e10)
        assert row["speedup"] == pytest.approx(row["opponent_ms"] / row["median_ms"])


@pytest.mark.parametrize("kind", ["gru", "rnn"])
def test_other_layers_are_timed_too(kind):
    case, said = bench.LayerCase(32, 0.2, 2, "unstructured", 4, kind), []
    rows = bench.measure(case, "cpu", ROOF, 0.01, said.append)
    assert {"dense-fp32", "dense-bf16", "compact-torch", "numba", "numba-csr", "choose"} <= {r["engine"] for r in rows}
    assert all(row["model"] == kind and row["error"] <= (1e-5 if row["dtype"] == "float32" else 0.1) for row in rows)
    assert not said or kind == "rnn" and "int8" in said[0]


@pytest.mark.parametrize("name", bench.PROFILES)
def test_a_sweep_of_layers_covers_every_place_once(name):
    cases = bench.layers(profile := bench.PROFILES[name])
    fields = [str(case.fields) for case in cases]
    assert len(set(fields)) == len(fields)
    of_lstm = len(profile.hidden) * len(profile.densities) * len(profile.batches) * len(profile.patterns)
    others = len(profile.others) * len(profile.product_densities) * len(profile.batches)
    assert len(fields) == of_lstm + others + len(profile.in_heads) and others


@pytest.mark.parametrize("pattern", bench.PATTERNS)
def test_a_pattern_leaves_the_density_it_says(pattern):
    dense, small, *_ = bench.LayerCase(256, 0.1, 1, pattern, 2).data
    assert small.nonzeros / (8 * 256**2) == pytest.approx(0.1, rel=0.2)
    assert dense.hidden == 256 and (small.hidden < 256) == (pattern == "removed neurons")
    assert len(small.parts["constant"]) > 0 or pattern != "removed gates"


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_heads_hear_of_themselves_alone(kind):
    case = bench.LayerCase(24, 1 / 4, 1, "4 heads", 2, kind)
    *_, layer = case.data
    heard, inside = layer.weight_hh_l0 != 0, torch.block_diag(*torch.ones(4, 6, 6)) > 0
    assert torch.equal(heard, inside.repeat(case.gates, 1)) and (layer.weight_ih_l0 != 0).all()
    call, *_ = case.make("compact-loop", "cpu")
    assert case.error("compact-loop", call()) <= 1e-6


@pytest.mark.parametrize("pattern", bench.BLOCKS[1:])
def test_a_layer_in_blocks_keeps_whole_ones_in_the_share_it_says(pattern):
    *_, layer = bench.LayerCase(256, 0.1, 1, pattern, 2, "gru").data
    for weight in (layer.weight_ih_l0, layer.weight_hh_l0):
        (row,) = [row for row in blocks_of(weight != 0) if row["block"] == pattern]
        assert row["fits"] and row["density"] == pytest.approx(0.1, rel=0.06)


@pytest.mark.parametrize("name", bench.PROFILES)
def test_a_sweep_of_blocks_covers_every_place_once(name):
    cases = bench.blocks(profile := bench.PROFILES[name])
    fields = {str(case.fields) for case in cases}
    every = len(profile.in_blocks) * len(profile.block_densities) * len(bench.BLOCKS) + len(profile.shipped)
    assert len(cases) == len(fields) == every


@pytest.mark.parametrize("system", bench.SHIPPED)
def test_a_layer_that_ships_has_the_blocks_and_the_shares_published(system):
    shipped, case = bench.SHIPPED[system], bench.ShippedCase(1, system, 2)
    of_input, of_state = (mask.unflatten(0, (3, -1)) for mask in case.masks)
    assert of_input.shape == (3, shipped.hidden, shipped.inputs) and of_state.shape == (
        3,
        shipped.hidden,
        shipped.hidden,
    )
    eye = torch.eye(shipped.hidden, dtype=torch.bool)
    for mask, shares in (
        (of_input, shipped.of_input),
        (of_state & ~eye if shipped.diagonal else of_state, shipped.of_state),
    ):
        for gate, share in zip(mask, shares, strict=True):
            expected = share / (shipped.heads if mask.shape[-1] == shipped.hidden and mask is of_state else 1)
            assert float(gate.double().mean()) == pytest.approx(expected, rel=0.05)
    assert not shipped.diagonal or bool(of_state[:, eye].all())
    dense, small, *_ = case.data
    assert small.nonzeros == int(of_input.sum() + of_state.sum()) and dense.hidden == shipped.hidden
    assert case.density == pytest.approx(
        small.nonzeros / (3 * shipped.hidden * (shipped.hidden + shipped.inputs)), abs=1e-4
    )


def test_a_system_that_is_misspelt_is_refused_with_the_right_one():
    with pytest.raises(ValueError, match="unknown system 'LPCnet'; did you mean 'LPCNet'"):
        bench.ShippedCase(1, "LPCnet", 2)


def test_the_cache_of_a_weight_is_the_nearest_that_holds_it(tmp_path):
    for number, (kind, level, holds) in enumerate(
        [("Data", 1, "32K"), ("Instruction", 1, "64K"), ("Unified", 2, "1024K")]
    ):
        (one := tmp_path / f"index{number}").mkdir()
        for name, text in (("type", kind), ("level", level), ("size", holds)):
            (one / name).write_text(f"{text}\n")
    said = [timing.cache_of(size, tmp_path) for size in (32 << 10, (32 << 10) + 1, 1 << 20, 2 << 20)]
    assert said == ["L1 (32K)", "L2 (1024K)", "L2 (1024K)", "memory"]
    assert timing.cache_of(1, tmp_path / "nothing") == ""


def test_two_to_four_keeps_two_of_four():
    kept = bench_cases.kept_mask((8, 64), 0.5, "2:4", torch.Generator().manual_seed(0))
    assert bool((kept.view(8, 16, 4).sum(2) == 2).all())


def test_a_wrong_engine_gets_no_row(monkeypatch):
    right, said = bench.LayerCase.error, []
    monkeypatch.setattr(
        bench.LayerCase, "error", lambda self, name, y: 0.5 if name == "numba" else right(self, name, y)
    )
    rows = bench.measure(layer_cell(), "cpu", ROOF, 0.01, said.append)
    assert "numba" not in {row["engine"] for row in rows if row["engine"] != "choose"}
    assert any("numba: refused, error 5.0e-01" in line for line in said)


@pytest.mark.parametrize("batch", [3, 40, 1500])
def test_an_engine_that_is_wrong_in_its_last_column_gets_no_row(monkeypatch, batch):
    class Wrong(engine_class("csr-torch", PRODUCTS)):
        def __call__(self, x):
            y = super().__call__(x)
            y[:, -1] += 1
            return y

    monkeypatch.setattr(
        bench_cases,
        "engine_class",
        lambda name, table, find=engine_class: Wrong if name == "csr-torch" else engine_class(name, table),
    )
    said = []
    rows = bench.measure(bench.ProductCase(32, 64, 0.2, batch), "cpu", ROOF, 0.01, said.append)
    assert "csr-torch" not in {row["engine"] for row in rows} and "csr-torch: refused" in "".join(said)


def test_a_case_that_choose_has_no_engine_for_is_timed_all_the_same(monkeypatch):
    said = []

    def none(*given, **more):
        raise ValueError("no engine runs this on cpu: numba: left out")

    monkeypatch.setattr(bench_cases.choose, "choose", none)
    rows = bench.measure(layer_cell(), "cpu", ROOF, 0.01, said.append)
    assert {row["engine"] for row in rows} >= {"dense-fp32", "c-blocks"} and "choose" not in {r["engine"] for r in rows}
    assert "    choose: n/a, no engine runs this on cpu: numba: left out" in said


def test_columns_compared_are_the_first_the_last_and_some_between():
    assert list(choose.compared(5)) == [0, 1, 2, 3, 4]
    assert list(choose.compared(128, 4)) == [0, 42, 85, 127]


def test_nets_of_two_seeds_are_two_cells(tmp_path):
    fields = [{"task": "t", "model": "m", "method": "w", "variant": "", "seed": seed, "batch": 1} for seed in (0, 1)]
    assert records.timing_key(fields[0]) != records.timing_key(fields[1])
    assert records.timing_key(fields[1]) == records.timing_key(fields[1] | {"seed": 1.0})


def test_a_cell_is_timed_again_when_asked(tmp_path, monkeypatch):
    path, cases = tmp_path / "timings-cpu.csv", [bench.ProductCase(32, 64, 0.2, 1)]
    assert bench.sweep(cases, seconds=0.01, path=path) and not bench.sweep(cases, seconds=0.01, path=path)
    assert bench.sweep(cases, seconds=0.01, path=path, again=True)


def test_news_say_the_forecast_and_once_why_an_engine_does_not_run(monkeypatch):
    said = []
    report = bench.news(said.append)
    for line in ("3 cases to time on cpu:x, 0 there already; about 0.1 minutes", "    numba: n/a, no", "1/3 [0.0 min] lstm: fast",
                 "    numba: n/a, no", "    csr-torch: refused, error 1", "2/3 [0.0 min] lstm: fast"):  # fmt: skip
        report(line)
    assert said == [said[0], "numba: n/a, no", "csr-torch: refused, error 1"] and "cases to time" in said[0]


def test_a_sweep_says_which_packages_are_missing(monkeypatch):
    def missing(name, table):
        if name == "persistent-cuda":
            raise ImportError("engine 'persistent-cuda' needs cuda: pip install cuda-bindings")

    monkeypatch.setattr(bench_sweep, "engine_class", missing)
    assert list(bench_sweep.not_here([layer_cell(), layer_cell("32x32")])) == [
        "engine 'persistent-cuda' needs cuda: pip install cuda-bindings"
    ]
    monkeypatch.setenv("SPARSERNN_WITHOUT", "numba,persistent-cuda")
    assert list(bench_sweep.not_here([layer_cell()])) == [
        "engine 'numba' is left out: SPARSERNN_WITHOUT names it",
        "engine 'persistent-cuda' is left out: SPARSERNN_WITHOUT names it",
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"densities": [90]}, "density 90 is no share of weights that are left, for example 0.1"),
        ({"densities": [0]}, "density 0 is no share"),
        ({"densities": ["a"]}, "density 'a' is no share"),
        ({"densities": []}, "densities is empty"),
        ({"batches": [0]}, "batch 0 is not a whole number from 1 on"),
        ({"batches": [1.5]}, "batch 1.5 is not a whole number"),
        ({"hidden": [-4]}, "hidden -4 is not a whole number"),
        ({"shapes": ["0x5"]}, "shape '0x5' is not rows x columns"),
        ({"shapes": [1760]}, "shape 1760 is not rows x columns"),
    ],
)
def test_a_profile_refuses_what_cannot_be_timed(given, words):
    with pytest.raises(ValueError, match=words):
        bench.profile_of("smoke", **given)


def test_a_convolution_is_rounded_beside_engines_that_round_alone():
    names = ("dense-fp32", "csr-torch", "tiny-cuda", "dense-tf32", "dense-fp16", "dense-bf16", "c-int8")
    found = {name: bench_cases.rounds(bench_cases.dtype_name(engine_class(name))) for name in names}
    assert [name for name in names if found[name]] == ["dense-tf32", "dense-fp16", "dense-bf16", "c-int8"]


def test_a_stopped_sweep_goes_on_where_it_stood(tmp_path, monkeypatch):
    path, measured, real = tmp_path / "timings-cpu.csv", [], bench.measure
    profile = bench.profile_of("smoke", shapes=["32x64"], batches=[1, 2])

    def measure(case, *rest):
        measured.append(case.fields)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(case, *rest)

    monkeypatch.setattr(bench_sweep, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench.sweep(bench.products(profile), seconds=0.01, path=path)
    done = measured[:2]
    measured.clear()
    monkeypatch.setattr(bench_sweep, "measure", lambda case, *rest: measured.append(case.fields) or real(case, *rest))
    said = []
    bench.sweep(bench.products(profile), seconds=0.01, path=path, report=said.append)
    assert len(measured) == 4 and not [fields for fields in measured if fields in done]
    assert "4 cases to time" in said[0] and "2 there already" in said[0] and "minutes" in said[0]
    table = records.read_timings(path)
    assert len(table[["batch", "pattern"]].drop_duplicates()) == 6 and table["error"].notna().all()


def test_a_smoke_run_times_one_network_of_each_task(tmp_path):
    for task, size, seed in (("a", 6, 0), ("a", 4, 1), ("b", 8, 0)):
        (folder := tmp_path / task / "m" / "dense" / f"smoke-s{seed}").mkdir(parents=True)
        model = randomise(Classifier(12, 2, embedding=4, hidden=size))
        save(compact(model, random_masks(model, 1, 0.9)), folder / "model.safetensors")
    paths = [case.path.parent for case in bench.models(bench.profile_of("smoke"), tmp_path)]
    assert [(path.parts[-4], path.name) for path in paths] == [("a", "smoke-s1"), ("b", "smoke-s0")]
    assert len(bench.models(bench.profile_of("cpu"), tmp_path)) == 6, "three nets at two batches"


def test_a_trained_model_is_timed_beside_the_dense_net_of_its_first_size(tmp_path):
    model = randomise(Classifier(12, 2, embedding=4, hidden=8))  # hard gates: torch's fused layer is the opponent alone
    run = tmp_path / "task" / "lstm-8" / "wgn" / "quick-s0"
    run.mkdir(parents=True)
    save(compact(model, random_masks(model, 1, 0.5)), run / "model.safetensors")
    record = {"task": "task", "model": "lstm-8", "method": "wgn", "variant": "", "seed": 0}
    (run / "record.json").write_text(json.dumps(record))
    (case,) = bench.models(bench.profile_of("smoke"), tmp_path)
    assert case.dense.lstm.activation == "logistic" and case.small.lstm.activation == "hard"
    rows = {row["engine"]: row for row in bench.measure(case, "cpu", ROOF, 0.01)}
    assert {"dense-fp32", "compact-loop", "numba", "choose"} <= set(rows) and "compact-torch" not in rows
    assert rows["numba"]["error"] <= 1e-5 and rows["numba"]["method"] == "wgn" and rows["numba"]["density"] < 0.6


def test_a_dense_opponent_of_our_own_has_the_activations_that_the_net_was_trained_with(tmp_path):
    """Hard gates and clipped states cost less than what torch has in their place, and int8 runs no state without a bound."""
    made = {
        "topic": Classifier(30, 3, 8, 8, activation="hard"),
        "speech": SpeechModel(20, 5, 12, layers=1, stride=4),
    }
    for name, model in made.items():
        path = tmp_path / f"{name}.safetensors"
        save(compact(randomise(model).float(), random_masks(model, 1, 0.5), example=model.example(8, 2)), path)
        case = bench_cases.TrainedCase(path, 1, 8)
        (own,), (torchs,) = (recurrent_layers(case.of(engine)).values() for engine in ("own-dense-int8", "dense-fp32"))
        assert activation_of(own) == activation_of(*recurrent_layers(model).values()) != activation_of(torchs)
        call, *_ = case.make("own-dense-int8", "cpu")
        assert case.error("own-dense-int8", call()) < 0.3, "of the net that it runs"


NETS = {  # what is called with sounds, and with words, letters, a question and its letters
    "speech": lambda: SpeechModel(20, 5, 12, layers=2, stride=4),
    "reading": lambda: BiDAF(30, letters=9, word_size=4, filters=4, hidden=6),
}


@pytest.mark.parametrize("net", NETS)
def test_a_trained_recogniser_and_a_reader_are_timed_like_any_other(tmp_path, net):
    model = randomise(NETS[net]()).float()
    run = tmp_path / "task" / net / "wgn" / "quick-s0"
    run.mkdir(parents=True)
    save(compact(model, random_masks(model, 1, 0.5), example=model.example(8, 2)), run / "model.safetensors")
    (run / "record.json").write_text(
        json.dumps({"task": "task", "model": net, "method": "wgn", "variant": "", "seed": 0})
    )
    (case,) = bench.models(bench.profile_of("smoke"), tmp_path)
    rows = {row["engine"]: row for row in bench.measure(case, "cpu", ROOF, 0.01)}
    assert {"dense-fp32", "compact-loop", "c-blocks", "choose"} <= set(rows)
    assert (
        rows["c-blocks"]["error"] <= 1e-5 and rows["dense-fp32"]["error"] <= 1e-5 and rows["c-blocks"]["density"] < 0.6
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "smok"], "unknown profile 'smok'; did you mean 'smoke'"),
        (["--sweep", "layer"], "unknown sweep 'layer'; did you mean 'layers'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(capsys, arguments, words):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert words in capsys.readouterr().err


def test_a_profile_takes_a_notebooks_lists():
    profile = bench.profile_of("cpu", ["1760x2560"], [0.1], [1, 4])
    assert profile.shapes == ((1760, 2560),) and profile.densities == (0.1,) and profile.model_batches == (1, 4)
    assert profile.hidden == bench.PROFILES["cpu"].hidden and bench.profile_of("cpu") == bench.PROFILES["cpu"]
    with pytest.raises(ValueError, match="shape '1760' is not rows x columns"):
        bench.profile_of("cpu", ["1760"])


@pytest.mark.parametrize("name", ["gpu-quarter", "cpu"])
def test_who_asks_for_layers_of_a_size_gets_no_others(name):
    profile = bench.profile_of(name, densities=[0.05], batches=[1, 4], hidden=[2304])
    layers = [case.fields for sweep in ("layers", "blocks") for case in bench.SWEEPS[sweep](profile)]
    assert {fields["hidden"] for fields in layers} == {2304} and {fields["batch"] for fields in layers} == {1, 4}


def test_the_full_sweep_of_a_gpu_goes_on_from_the_quarter_of_an_hour():
    whole, quarter = (
        {str(case.fields) for sweep in bench.SWEEPS.values() for case in sweep(bench.PROFILES[name])}
        for name in ("gpu", "gpu-quarter")
    )
    assert quarter < whole


def test_the_sweeps_need_no_notebook_and_no_figures():
    code = "import sys, sparsernn.bench; print([m for m in ('matplotlib', 'IPython', 'papermill', 'scipy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_interleaved_calls_take_turns():
    order = []
    samples = timing.interleaved({n: lambda n=n: order.append(n) for n in "ab"}, seconds=0, rounds=(3, 3))
    first = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert first == ["a", "b"] * 4 and all(len(values) == 3 for values in samples.values())


def test_what_a_processor_has_no_units_for_is_not_timed():
    roof, said = timing.Roof({1 << 20: 1e10}, {"fp32": 1e10, "bf16": 0.9e9}), []
    rows = bench.measure(layer_cell(), "cpu", roof, 0.01, said.append)
    assert "dense-bf16" not in {row["engine"] for row in rows} and len(said) == 1
    assert "dense-bf16: n/a, 0.9 GFLOP/s in bf16" in said[0]
    assert not timing.Roof({}, {"fp32": 1e10, "bf16": 1e9}).lacks("bf16") and not roof.lacks("int8")


def test_a_gpu_is_timed_between_events_with_the_host_ahead(monkeypatch):
    happened = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append("event")

        def synchronize(self):
            happened.append("wait")

        def elapsed_time(self, end):
            return 12.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda clocks: happened.append(clocks))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = [0.0]
    monkeypatch.setattr(timing, "time", type("Clock", (), {"perf_counter": lambda: clock[0]}))

    def call():
        happened.append("a")
        clock[0] += 0.002

    slow = {"a": call}
    samples = timing.interleaved(slow, "cuda", seconds=0, rounds=(2, 2))["a"]
    assert list(samples) == [6.0, 6.0], "5 ms are two calls of 2 ms"
    assert happened[1:7] == [happened[1], "event", "a", "a", "event", "wait"]
    assert 1.5 * 0.004 * timing.CLOCKS <= happened[1] <= 0.1 * timing.CLOCKS


def test_of_a_library_it_is_said_which_kernel_it_took(monkeypatch):
    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *problem):
            pass

        def key_averages(self):
            names = {"copies": (9, 3.0), "RNN_blockPersist_fp_LSTM": (1, 40.0), "on the host": (5, 0.0)}
            kinds = [("key", "count", "self_device_time_total")] * len(names)
            return [
                type("Event", (), dict(zip(kind, (n, *v), strict=True)))
                for kind, (n, v) in zip(kinds, names.items(), strict=True)
            ]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert timing.kernel_of(lambda: None, "cuda") == "1 x RNN_blockPersist_fp_LSTM"
    assert timing.kernel_of(lambda: None, "cpu") == ""


def test_what_is_kept_on_a_chip_has_a_floor_of_products_gathers_and_bytes(monkeypatch):
    chip = type("Chip", (), {"multi_processor_count": 100, "clock_rate": 1e6})  # a million clocks a millisecond
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)
    assert timing.on_chip_ms("cuda", 10, products=128e6, gathers=0) == pytest.approx(0.1)
    assert timing.on_chip_ms("cuda", 10, products=128e6, gathers=64e6, size=128e6) == pytest.approx(0.3)


def test_tf32_is_allowed_its_rounding_and_says_so():
    assert (
        bench_cases.dtype_name(engine_class("dense-tf32")) == "tf32"
        and bench_cases.dtype_name(engine_class("dense-fp32")) == "float32"
    )
    assert bench_cases.dtype_name(engine_class("dense-tf32", PRODUCTS)) == "tf32"
    assert bench_cases.ALLOWED["float32"] < 8e-4 < bench_cases.ALLOWED["tf32"], (
        "measured: factors of 10 bits in layers of 256 to 1024"
    )


def test_a_gpu_that_no_longer_answers_ends_the_sweep_and_names_the_engine(monkeypatch):
    def dead(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(timing, "wait", dead)
    monkeypatch.setattr(bench.LayerCase, "make", lambda self, name, device: dead(device))
    with pytest.raises(timing.Unusable, match="engine dense-fp32 left the GPU unusable: an illegal memory access"):
        bench.measure(layer_cell(), "cpu", ROOF, 0.01)


def test_a_fault_while_engines_take_turns_is_the_one_engines(monkeypatch):
    def fault():
        if len(calls) > 3:
            raise RuntimeError("unspecified launch failure\nand more")
        calls.append("persistent, empty")

    calls = []
    engines = {"numba": lambda: calls.append("numba"), "persistent, empty": fault}
    with pytest.raises(RuntimeError, match="unspecified launch failure") as found:
        timing.interleaved(engines, rounds=(9, 9))
    assert not isinstance(found.value, timing.Unusable), "the device answers"
    alive, calls = timing.wait, []
    monkeypatch.setattr(timing, "wait", lambda device: alive(device) if len(calls) < 4 else 1 / 0)
    with pytest.raises(timing.Unusable) as found:
        timing.interleaved(engines | {"numba": lambda: None}, rounds=(9, 9))
    assert found.value.engine == "persistent"


def test_choosing_ends_where_the_gpu_does(monkeypatch):
    def dead(*_):
        raise RuntimeError("an illegal memory access was encountered")

    _, small, _, x, *_ = layer_cell().data
    monkeypatch.setattr(timing, "wait", dead)
    monkeypatch.setattr(choose, "_built", dead)
    with pytest.raises(timing.Unusable, match="engine compact-torch left the GPU unusable"):
        choose.choose(small, x)


@pytest.mark.parametrize(("device", "threads"), [("cpu", 1), ("cuda", 2)])
def test_one_thread_computes_on_a_cpu_and_all_prepare_for_a_gpu(monkeypatch, device, threads):
    found = []
    monkeypatch.setattr(command, "check_device", lambda name: None)
    monkeypatch.setattr(command, "sweep", lambda *_: found.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    command.main(["--device", device, "--sweep", "products"])
    assert found == [threads]


def test_the_commands_last_line_says_how_to_go_on(monkeypatch, capsys):
    def fault(*_):
        raise timing.Unusable("persistent", "unspecified launch failure")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setenv("SPARSERNN_WITHOUT", "csr-triton")
    monkeypatch.setattr(command, "sweep", fault)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as status:
        command.main(["--device", "cpu", "--sweep", "products"])
    assert status.value.code == 3
    said = "engine persistent left the GPU unusable; SPARSERNN_WITHOUT=csr-triton,persistent goes on without it"
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_a_floor_of_few_bytes_takes_the_rate_of_larger_copies_where_they_are_faster():
    roof = timing.Roof({1 << 20: 1e9, 1 << 26: 4e9}, {})
    assert roof.floor(1 << 20, 0)[0] == pytest.approx(1e3 * (1 << 20) / 4e9)


def test_a_floor_is_the_larger_of_bytes_and_flops():
    roof = timing.Roof({1 << 20: 1e9, 1 << 26: 1e8}, {"fp32": 1e9, "bf16": 2e9})
    assert roof.floor(1e6, 0)[0] == pytest.approx(1.0), "a small thing moves at the rate of small copies"
    assert roof.floor(1e8, 1e6)[0] == pytest.approx(1000.0) and roof.floor(1e3, 1e9)[1].startswith("flop")
    assert roof.floor(1e3, 1e9, "bf16")[0] == pytest.approx(500.0)
    assert roof.floor(1e3, 1e9, "int8")[0] == pytest.approx(1e-3), "no rate was measured: bytes alone"
    assert timing.summary(np.array([3.0, 1.0, 2.0]))["median_ms"] == 2.0


def test_training_steps_and_layer_steps_are_timed_beside_dense_with_their_errors(monkeypatch):
    tiny.register()
    monkeypatch.setitem(training_steps.PROFILES, "tiny-topic", "quick")
    taken, timed = [], training_steps.interleaved

    def watched(calls, **more):
        for name, call in calls.items():
            penalties = [penalty for _, penalty in [*call(), *call()]]
            taken.append((name, len(penalties), {bool(penalty) for penalty in penalties}))
        return timed(calls, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training_steps, "interleaved", watched)
        rows = list(training_steps.train_steps(0.01, ["tiny-topic"]))
    assert taken == [(name, 2 * training_steps.AT_ONCE, {name != "dense"}) for name in training_steps.METHODS], (
        "each method is timed in its own training, as often as a held KL is computed"
    )
    assert [row["method"] for row in rows] == list(training_steps.METHODS)
    monkeypatch.setattr(training_steps, "SHAPES", ((3, 2, 4, 5),))
    rows += training_steps.layer_steps(0.01)
    assert [row["engine"] for row in rows[3:]] == ["torch-lstm", "layer-step", "layer-step-scaled"]
    for row in rows:
        assert row["error"] <= 1e-5 and row["speedup"] == pytest.approx(row["opponent_ms"] / row["median_ms"])
        assert set(row) <= set(records.TIMING_FIELDS)


def test_a_step_is_compared_with_float64_under_the_same_noise_tensor_by_tensor(monkeypatch):
    tiny.register()
    session = Session(RunConfig("tiny-char", method="sparse-vd-wgn", profile="quick"), tasks.load("tiny-char", "quick"))
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    exact = training_steps.costs_and_gradients(session, "cpu", torch.float64)
    learnt = {name for name, _ in session.model.named_parameters()}
    assert exact.keys() == learnt | {"loss", "penalty"} and all(float(value.abs().max()) for value in exact.values())
    assert training_steps.step_error(session) <= 1e-5
    after = session.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and session.study.step == 0
    assert all(p.grad is None for p in session.parameters), "a copy was stepped"

    honest, name = training_steps.costs_and_gradients, min(learnt, key=lambda name: float(exact[name].abs().max()))

    def slightly_wrong(session, device, dtype):
        found = honest(session, device, dtype)
        if dtype == torch.float32:
            found[name] *= 1.01
        return found

    assert float(exact[name].abs().max()) < 0.1
    monkeypatch.setattr(training_steps, "costs_and_gradients", slightly_wrong)
    assert training_steps.step_error(session) == pytest.approx(0.01, rel=0.01), "in units of that gradient"
    missing = {torch.float64: exact, torch.float32: {n: value for n, value in exact.items() if n != name}}
    monkeypatch.setattr(training_steps, "costs_and_gradients", lambda session, device, dtype: missing[dtype])
    assert training_steps.step_error(session) == math.inf, "a gradient is missing"


def test_the_same_noise_is_drawn_for_every_type_and_other_numbers_are_not_touched():
    with training_steps.SameNoise():
        single = torch.randn(3, 4)
    with training_steps.SameNoise():
        double, after = torch.randn((3, 4), dtype=torch.float64, device="cpu"), torch.rand(2)
    assert torch.equal(single.double(), double) and single.dtype == torch.float32 and len(after) == 2


def test_kernels_are_added_up_and_what_only_names_them_is_not(monkeypatch):
    def event(kind, us, named=False):
        span = types.SimpleNamespace(elapsed_us=lambda: us)
        return types.SimpleNamespace(device_type=kind, time_range=span, is_user_annotation=named)

    on_chip, host = training_steps.DeviceType.CUDA, training_steps.DeviceType.CPU
    events = [event(on_chip, 300), event(host, 900), *[event(on_chip, 50)] * 7, event(on_chip, 500, True)]
    called = []

    @contextmanager
    def profile(activities):
        yield types.SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(training_steps, "profile", profile)
    found = training_steps.floor(lambda: called.append(1), "cuda")
    assert found["floor_ms"] == 0.65 / training_steps.AT_ONCE and called == [1]
    assert found["floor_note"] == "measured: 2 kernels and copies one after the other", "8 in four steps"
    assert not training_steps.floor(called.append, "cpu")
    events.clear()
    assert training_steps.floor(lambda: None, "cuda") == {}


def test_training_steps_are_timed_from_the_command_line_into_a_table_of_the_device(tmp_path, monkeypatch, capsys):
    tiny.register()
    monkeypatch.setitem(training_steps.PROFILES, "tiny-topic", "quick")
    monkeypatch.setattr(training_steps, "SHAPES", ())
    given = ["--tasks", "tiny-topic", "--seconds", "0.01", "--out", str(tmp_path / "steps.csv"), "--device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, said in (("cuda", "there is no GPU"), ("gpu", "unknown device 'gpu'")):
        with pytest.raises(SystemExit):
            training_steps.main([*given, device])
        assert said in capsys.readouterr().err and not (tmp_path / "steps.csv").exists()
    threads = torch.get_num_threads()
    try:
        training_steps.main([*given, "cpu"])
    finally:
        torch.set_num_threads(threads)
    rows = records.read_timings(tmp_path / "steps.csv")
    assert sorted(rows["method"]) == sorted(training_steps.METHODS) and set(rows["threads"]) == {1}
    assert set(rows["device"]) == {records.device_name("cpu")} and rows["floor_ms"].isna().all()
    assert len(capsys.readouterr().out.splitlines()) == 3
