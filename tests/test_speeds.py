"""The tables of results/README.md about what engines take: each figure is a quotient of two rows of one cell."""

import pandas as pd
import timed

from sparsernn.report import speeds


def net(task, seed, batch, method="gradual", device="cpu:EPYC", **ms):
    """Rows of a tracked net: an engine's milliseconds, dense-fp32's 12."""
    same = {
        "task": task,
        "model": "lstm-8",
        "method": method,
        "variant": "",
        "seed": seed,
        "device": device,
        "batch": batch,
    }
    same |= {"steps": 50, "input": 4, "hidden": 8, "density": 0.1, "pattern": "trained", "opponent": "dense-fp32"}
    rows = []
    for engine, took in {"dense-fp32": 12.0, "dense-int8": 6.0, **ms}.items():
        rows.append(same | {"engine": engine.replace("_", "-"), "median_ms": took, "speedup": 12 / took})
    return rows


def test_the_nets_of_a_task_are_a_range_over_dense_fp32_and_over_the_fastest_dense():
    rows = net("words", 0, 1, c_int8=1.0, numba=2.0) + net("words", 1, 1, c_int8=4.0) + net("words", 0, 128, numba=12.0)
    rows += net("words", 2, 1, device="cpu:Xeon", c_int8=0.1)
    rows += net("words", 2, 1, device="cuda:H100", c_int8=0.1) * 9
    (row,) = speeds.nets(pd.DataFrame(rows)).to_dict("records")
    assert row["task, model"] == "words, lstm-8" and row["nets"] == "2"
    assert row["over dense fp32, batch 1"] == "3 to 12×" and row["over the fastest dense, batch 1"] == "1.5 to 6×"
    assert row["over dense fp32, batch 128"] == "1×" and row["over the fastest dense, batch 128"] == "0.5×"
    assert (row["fastest at batch 1"], row["dense at batch 1"]) == ("c-int8", "dense-int8")


def test_the_dense_net_by_the_engine_that_is_fastest_with_it_is_an_opponent_where_it_was_timed():
    """Digits' RNN: nothing dense runs both directions in int8, but the engine that runs the small nets runs the dense one too."""
    rows = net("words", 0, 1, c_int8=1.0) + net("words", 1, 1, c_int8=4.0)
    rows += [row for seed, ms in enumerate((1.0, 2.0, 9.0)) for row in net("words", seed, 1, "dense", c_int8=ms)]
    (row,) = speeds.nets(pd.DataFrame(rows)).to_dict("records")
    assert row["nets"] == "2" and row["over dense fp32, batch 1"] == "3 to 12×"
    assert row["over the fastest dense, batch 1"] == "0.5 to 2×" and row["dense at batch 1"] == "c-int8"


def test_layers_in_blocks_are_microseconds_a_step_by_shape_and_share():
    took = {
        ("16x4", 0.1): (1.0, 0.5),
        ("8x4", 0.1): (2.0, 1.5),
        ("unstructured", 0.1): (3.0, 2.5),
        ("16x4", 0.5): (5.0, 4.5),
    }
    wider, sparser = speeds.blocks(timed.in_blocks(took)).to_dict("records")
    assert (wider["left"], sparser["left"], sparser["layer"]) == ("50%", "10%", "GRU 1024, input 1024")
    assert [sparser[name] for name in ("16x4", "8x4", "unstructured", "32x32")] == [
        "20 / 10",
        "40 / 30",
        "60 / 50",
        "–",
    ]
    assert wider["16x4"] == "100 / 90" and wider["8x4"] == "–"
    assert (
        sparser["whole: torch fp32 / torch int8 / own int8"] == "200 / 80 / 40"
        and sparser["int8 16x4 lies in"] == "L1 (32K)"
    )


def test_what_ships_stands_with_its_blocks_beside_dense_int8():
    rows = timed.in_blocks({("WaveRNN", 0.0499): (1.0, 0.5)}, input=1)
    (row,) = speeds.shipped(rows).to_dict("records")
    assert (row["system"], row["blocks"], row["layer"], row["left"]) == ("WaveRNN", "4x4", "GRU 1024, input 1", "5.0%")
    assert (
        row["fp32 / int8, µs a step"] == "20 / 10"
        and row["whole: torch fp32 / torch int8 / own int8"] == "200 / 80 / 40"
    )
    assert (row["int8 over torch's dense int8"], row["int8 over our own dense int8"]) == ("8×", "4×")


def test_without_timings_the_tables_are_empty():
    rows = timed.in_blocks({("16x4", 0.1): (1.0, 0.5)})
    for table in speeds.TABLES.values():
        assert table(rows[:0]).empty


def test_a_training_step_is_milliseconds_of_the_dense_net_and_times_of_the_others():
    same = {"task": "words", "model": "lstm-8", "batch": 32, "steps": 35, "device": "cpu:EPYC"}
    rows = [same | {"method": "dense", "median_ms": 100.0, "speedup": 1.0}]
    rows += [same | {"method": "sparse-vd-w", "median_ms": 125.0, "speedup": 0.8}]
    rows += [same | {"task": "reviews", "steps": None, "method": "dense", "median_ms": 50.0, "speedup": 1.0}]
    rows += [one | {"device": "cpu:Xeon", "median_ms": 1.0} for one in rows[:1]]
    reviews, words = speeds.training(pd.DataFrame(rows)).to_dict("records")
    assert words == {
        "task, model": "words, lstm-8",
        "batch": "32",
        "steps": "35",
        "dense, ms": "100",
        "sparse-vd-w over dense": "1.25×",
    }
    assert (reviews["steps"], reviews["sparse-vd-w over dense"]) == ("–", "–")


H100 = "cuda:H100"
NOTE = "bytes: 1 B at 2 GB/s; most time in "


def cell(engine, ms, note="", dtype="float32", **own):
    """A row of a layer of 200 steps on a GPU, beside dense-fp32's 4 ms."""
    same = {"model": "lstm", "method": "shape-only", "device": H100, "opponent": "dense-fp32", "steps": 200}
    same |= {"hidden": 1024, "input": 1024, "batch": 1, "density": 0.1, "pattern": "unstructured"}
    return same | {"engine": engine, "median_ms": ms, "speedup": 4 / ms, "floor_note": note, "dtype": dtype, **own}


def test_a_layer_on_a_gpu_stands_beside_cudnn_its_graph_and_the_fastest_whole_one_whose_kernel_is_named():
    rows = [cell("dense-fp32", 4.0, NOTE + "200 x void gemv2T_kernel_val<int, float>(a, b)")]
    rows += [cell("dense-fp32-graph", 2.0), cell("choose", 0.1)]
    rows += [cell("dense-fp16-padded", 0.8, NOTE + "1 x void ampere_lstm_tile16<64, 4>(params_t)", "float16")]
    rows += [cell("persistent-fp16", 0.1, dtype="float16"), cell("csr-triton", 9.0), cell("persistent-dense", 0.3)]
    rows += [cell("persistent-cuda", 0.4, "measured: product of the input", floor_ms=0.32)]
    rows += [cell("persistent-cuda", 0.1, device="cpu:EPYC")]
    rows += [cell("dense-fp32", 4.0, pattern="24 heads"), cell("tiny-cuda", 0.2, pattern="24 heads")]
    heads, scattered = speeds.layers_on_gpu(pd.DataFrame(rows)).to_dict("records")
    assert scattered["engine"] == "persistent-cuda" and scattered["µs a step"] == "2"
    assert scattered["faster than cuDNN fp32"] == "10×" and scattered["faster than it from a graph"] == "5×"
    assert (scattered["than cuDNN's fastest timed"], scattered["which"]) == ("2×", "dense-fp16-padded")
    assert scattered["faster than persistent-dense, ours"] == "0.75×", "which leaves nothing out"
    assert scattered["its kernel"] == "1 × ampere_lstm_tile16" and scattered["times its floor"] == "1.25"
    assert (heads["left"], heads["engine"], heads["faster than it from a graph"]) == ("24 heads", "tiny-cuda", "–")
    assert speeds.kernel_in(NOTE + "200 x nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT") == "200 × nvjet_sm90_tst"
    assert speeds.kernel_in("bytes: 1 B at 2 GB/s") == "–"
    long = "9 x std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float>(a)"
    assert speeds.kernel_in(NOTE + long) == "9 × kernel"


def test_products_on_a_gpu_are_the_fastest_sparse_one_beside_two_dense():
    rows = [cell(name, ms, model="product", batch=n) for n, took in ((1, (0.004, 0.008, 0.002)), (64, (0.5, 0.1, 0.2)))
            for name, ms in zip(("csr-triton", "dense-fp32", "dense-fp16"), took, strict=True)]  # fmt: skip
    (row,) = speeds.products_on_gpu(pd.DataFrame(rows)).to_dict("records")
    assert row["product"] == "1024 × 1024" and row["left"] == "10%, unstructured"
    assert row["x of 1"] == "csr-triton 4 / 8 / 2" and row["x of 64"] == "csr-triton 500 / 100 / 100"


def test_training_on_a_gpu_says_what_kernels_take_and_the_error_of_the_gradients():
    same = {"task": "words", "model": "lstm-8", "batch": 32, "steps": 35}
    gpu = [("dense", 10.0, 1.0, 1e-6), ("sparse-vd-w", 15.0, 2 / 3, 8.6e-5)]
    rows = [
        same | {"method": m, "median_ms": ms, "speedup": s, "error": e, "floor_ms": 2.0, "device": H100}
        for m, ms, s, e in gpu
    ]
    rows += [same | {"method": "dense", "median_ms": 99.0, "speedup": 1.0, "error": 0.0, "device": "cpu:EPYC"}]
    (row,) = speeds.training_on_gpu(pd.DataFrame(rows)).to_dict("records")
    assert (row["dense, ms"], row["of that kernels"], row["sparse-vd-w over dense"]) == ("10", "2", "1.50×")
    assert row["error"] == "9e-05"
    (row,) = speeds.training(pd.DataFrame(rows)).to_dict("records")
    assert row["dense, ms"] == "99", "of a CPU, by itself"


def test_of_sound_a_frame_stands_for_ten_milliseconds_of_it():
    rows = net("digits", 0, 1, c_int8=1.0, own_dense_int8=2.0) + net("digits", 1, 1, c_int8=4.0, own_dense_int8=2.0)
    rows += net("digits", 0, 128, c_int8=0.1) + net("words", 0, 1, c_int8=0.1)
    rows += [one | {"model": "lstm-16"} for one in net("digits", 0, 1, "dense", c_int8=2.5)]
    whole, left = speeds.of_sound(pd.DataFrame(rows)).to_dict("records")
    assert (left["task, model"], left["nets made small"]) == ("digits, lstm-8", "2")
    assert (left["made small, µs for 10 ms"], left["made small, times real time"]) == ("20 to 80", "125 to 500×")
    assert (left["whole, µs for 10 ms"], left["whole, by"]) == ("40", "own-dense-int8"), "as their opponent"
    assert (whole["whole, µs for 10 ms"], whole["whole, by"]) == ("50", "c-int8"), "by itself"
    assert whole["made small, times real time"] == "–"
