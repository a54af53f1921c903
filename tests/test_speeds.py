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
    rows += net("words", 0, 1, "dense", c_int8=0.1) + net("words", 2, 1, device="cpu:Xeon", c_int8=0.1)
    rows += net("words", 2, 1, device="cuda:H100", c_int8=0.1) * 9
    (row,) = speeds.nets(pd.DataFrame(rows)).to_dict("records")
    assert row["task, model"] == "words, lstm-8" and row["nets"] == "2"
    assert row["over dense fp32, batch 1"] == "3 to 12×" and row["over the fastest dense, batch 1"] == "1.5 to 6×"
    assert row["over dense fp32, batch 128"] == "1×" and row["over the fastest dense, batch 128"] == "0.5×"
    assert (row["fastest at batch 1"], row["dense at batch 1"]) == ("c-int8", "dense-int8")


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
