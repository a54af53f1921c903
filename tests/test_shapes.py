"""Block times stand beside the quality of the net that was pruned in the same shape to the same share."""

import timed

from sparsernn import records
from sparsernn.report import shapes, timings


def row(method, test, compression, variant="", model="bayes-512", task="pydocs-char"):
    same = {"task": task, "profile": "short", "seed": 0, "metric": "bits_per_char", "valid": test, "epochs": 8}
    return same | {"model": model, "method": method, "variant": variant, "test": test, "compression": compression}


def test_block_times_have_the_quality_of_that_shape_and_share_and_of_a_dense_net_as_small(tmp_path):
    rows = [row("dense", 1.9, 1.0), row("dense", 2.3, 10.1, model="bayes-128")]
    rows += [row("blocks", 2.2, 10.4, "block=16x4"), row("blocks", 2.25, 12.0, "block=16x4,kl_weight=2")]
    rows += [row("gradual", 2.1, 10.0, "density=0.1"), row("blocks", 9.9, 10.0, "block=8x4", task="pydocs-word")]
    records.upsert(rows, tmp_path / "short.csv")
    took = {(shape, 0.1): (1.0, 0.5) for shape in ("16x4", "8x4", "unstructured")} | {("16x4", 0.05): (0.5, 0.3)}
    cut = timings.in_blocks(timed.in_blocks(took))
    table = shapes.with_quality(cut, tmp_path)
    assert list(table)[:5] == ["layer", "pattern", "density", "bits_per_char", "bits_per_char_small_dense"]
    of = table.set_index(["pattern", "density"])
    assert of.loc[("16x4", 0.1), ["bits_per_char", "bits_per_char_small_dense", "int8_us"]].tolist() == [2.2, 2.3, 10]
    assert of.loc[("unstructured", 0.1), "bits_per_char"] == 2.1
    assert of["bits_per_char"].notna().sum() == 2
    assert len(table) == len(cut) and (table["fp32_us"] == cut["fp32_us"]).all()


def test_where_no_net_was_pruned_so_there_is_no_quality(tmp_path):
    records.upsert([row("dense", 1.9, 1.0)], tmp_path / "short.csv")
    took = {(shape, 0.1): (1.0, 0.5) for shape in ("16x4", "8x4", "unstructured")}
    table = shapes.with_quality(timings.in_blocks(timed.in_blocks(took)), tmp_path)
    assert len(table) == 3 and table["bits_per_char"].isna().all()
