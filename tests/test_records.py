"""Rows are upserted by their key, and no row made elsewhere is lost."""

import pandas as pd
import pytest
import torch

from sparsernn import records
from sparsernn.files import replacing
from sparsernn.nets.axes import Axis, Member, each
from sparsernn.nets.masks import Masks, close
from sparsernn.report.publish import comparison


def row(seed=0, variant="", test=0.5, **more):
    keys = {"task": "t", "model": "m", "method": "dense", "variant": variant, "profile": "quick", "seed": seed}
    return (
        keys
        | {"metric": "accuracy", "test": test, "data_sha256": "a", "hidden_kept": "7-12", "compression": 2.0}
        | more
    )


def test_same_key_replaces_and_other_rows_stay(tmp_path):
    path = tmp_path / "quick.csv"
    records.upsert([row(0), row(1), row(0, "lr=1")], path)
    records.upsert([row(1, test=0.75)], path)
    table = records.read(path)
    assert len(table) == 3 and not records.duplicates(table)
    assert table.set_index(["seed", "variant"])["test"].to_dict() == {(0, ""): 0.5, (1, ""): 0.75, (0, "lr=1"): 0.5}
    assert list(table.columns) == list(records.FIELDS)


def test_upserting_twice_changes_no_byte(tmp_path):
    path = tmp_path / "quick.csv"
    records.upsert([row(3, test=0.1 + 0.2), row(1)], path)
    before = path.read_bytes()
    records.upsert([row(1)], path)
    assert path.read_bytes() == before


def test_per_layer_fields_stay_text(tmp_path):
    records.upsert([row(gates_live="8", hidden_kept="07")], tmp_path / "r.csv")
    table = records.read(tmp_path / "r.csv")
    assert table["gates_live"][0] == "8" and table["hidden_kept"][0] == "07"


def test_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="accuracy_top5"):
        records.upsert([row(accuracy_top5=1)], tmp_path / "r.csv")


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_constant_gates_are_counted_by_type():
    hidden = [
        Member("w", 0, torch.arange(4) * 2 + each(2), "out"),
        Member("head", 1, each(2), "in"),
        Member("b", 0, each(8), "bias"),
    ]
    gates = Axis("gates", "gates", 8, (Member("w", 0, each(8), "out"),), ("out",), letters="ifgo", hidden="hidden")
    weights = {"w": torch.zeros(8, 3, dtype=torch.bool), "head": torch.ones(1, 2, dtype=torch.bool)}
    weights["w"][[0, 1, 2]] = True  # i of both neurons and f of the first are live
    closed = close(Masks((Axis("hidden", "hidden", 2, tuple(hidden)), gates), weights, {}))
    assert records.constant_gates(closed) == "i0.f1.g2.o2"


def test_comparison_says_what_was_reproduced_within_what():
    tracked = pd.DataFrame([row(0, test=0.5), row(1, test=0.6), row(2, data_sha256="b")], columns=records.FIELDS)
    table = comparison([row(0, test=0.5), row(1, test=0.61), row(2), row(3)], tracked).set_index("run")["verdict"]
    assert table.tolist() == [
        "same to the last digit",
        "within 0.0100",
        "other data: not compared",
        "new: no tracked row",
    ]


def test_none_is_a_word_of_a_table_and_an_empty_field_is_missing(tmp_path):
    pd.DataFrame({"word": ["None", "null", "nan", "fine"], "value": [1.0, None, 3.0, 4.0]}).to_csv(
        tmp_path / "numbers.csv", index=False
    )
    table = records.read_table(tmp_path / "numbers.csv")
    assert table["word"].tolist() == ["None", "null", "nan", "fine"]
    assert table["value"].isna().tolist() == [False, True, False, False]
