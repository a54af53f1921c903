"""Rows are upserted by their key, and no row made elsewhere is lost."""

import errno
import io
import os
import re
from pathlib import Path

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


def test_keys_are_exact(tmp_path):
    path = tmp_path / "quick.csv"
    seeds = [1_234_567, 1_234_568, 2**32 - 1, 2**32 - 2]
    records.upsert([row(seed) for seed in seeds], path)
    records.upsert([row(seeds[0], test=0.75)], path)
    table = records.read(path).set_index("seed")["test"]
    assert sorted(table.index) == sorted(seeds) and table[seeds[0]] == 0.75 and (table.drop(seeds[0]) == 0.5).all()
    numbers = [0.1, 0.1 + 1e-9, 0.1 + 1e-16, 64]
    records.upsert_timings([{"engine": "numba", "density": n, "error": 0.0} for n in numbers], tmp_path / "t.csv")
    assert len(records.read_timings(tmp_path / "t.csv")) == len({*numbers})
    again = [{"engine": "numba", "density": n, "error": 1.0} for n in (0.1, 64.0)]
    records.upsert_timings(again, tmp_path / "t.csv")
    assert records.read_timings(tmp_path / "t.csv")["error"].sum() == 2 and len(
        records.read_timings(tmp_path / "t.csv")
    ) == len({*numbers})


def test_a_number_read_by_an_older_pandas_is_the_one_that_was_written():
    def older(file, float_precision=None):
        number = float(file.read().split()[1])
        return {"number": [number if float_precision == "round_trip" else round(number, 16)]}

    text = f"number\n{1 / 24!r}\n"
    assert older(io.StringIO(text))["number"][0] != 1 / 24
    for read in (older, pd.read_csv):
        assert read(io.StringIO(text), **records.exactly(read))["number"][0] == 1 / 24


DAMAGE = {
    "semicolons for commas": lambda text: text.replace(",", ";"),
    "a column missing": lambda text: "\n".join(line.partition(",")[2] for line in text.split("\n")),
    "a column more": lambda text: text.replace("\n", ",x\n"),
    "columns in another order": lambda text: text.replace("task,model", "model,task", 1),
    "no header": lambda text: text.partition("\n")[2],
    "half a line": lambda text: text[:-30],
    "a line without its end": lambda text: text.rstrip("\n"),
    "a line of another table": lambda text: text + "a,b,c\n",
    "a word for a number": lambda text: text.replace(",0.5,", ",half,"),
    "a key twice": lambda text: text + text.splitlines()[-1] + "\n",
    "a name that leads elsewhere": lambda text: text.replace("\nt,", "\n../../t,"),
    "nothing": lambda text: "",
    "bytes that are no text": lambda text: text.replace("accuracy", "\udcff"),
    "a quote that is not closed": lambda text: text.replace("accuracy", '"accuracy'),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_table_is_refused_instead_of_rewritten(tmp_path, what):
    path = tmp_path / "quick.csv"
    records.upsert([row(0), row(1)], path)
    damaged = DAMAGE[what](path.read_text()).encode(errors="surrogateescape")
    path.write_bytes(damaged)
    for use in (lambda: records.read(path), lambda: records.upsert([row(2)], path)):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            use()
    assert path.read_bytes() == damaged


def test_every_tracked_table_is_read_and_would_be_written_as_it_is(tmp_path):
    for path in sorted((Path(__file__).parents[1] / "results").glob("*.csv")):
        header = tuple(path.read_text().partition("\n")[0].split(","))
        writes = {records.FIELDS: records.upsert, records.TIMING_FIELDS: records.upsert_timings}.get(header)
        if writes:
            (tmp_path / path.name).write_bytes(path.read_bytes())
            writes([], tmp_path / path.name)
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_a_killed_process_left_of_a_table_is_removed_and_another_s_is_not(tmp_path):
    mine, other = tmp_path / ".quick.csv.ab12cd34", tmp_path / ".short.csv.ab12cd34"
    mine.write_text("half"), other.write_text("half")
    records.upsert([row(0)], tmp_path / "quick.csv")
    assert not mine.exists() and other.exists()


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "file"))), replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write says it, without a name
    assert not list(tmp_path.iterdir())


def test_several_metrics_of_one_field_are_read_as_they_were_written():
    values = {"noisy": 0.125, "unseen": 1 / 3, "f1": 5e-324}
    assert records.numbers_of(records.named(values)) == values and records.numbers_of("") == {} == records.numbers_of(
        None
    )


def test_a_row_that_could_not_be_read_again_is_not_written(tmp_path):
    good = dict.fromkeys(records.TIMING_KEY, "") | {"engine": "numba", "hidden": 8, "error": 0.0}
    path = tmp_path / "timings.csv"
    records.upsert_timings([good], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="hidden is '8-8' in row 2; expected a number"):
        records.upsert_timings([good | {"hidden": "8-8"}], path)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir() if "tmp" in one.name] == []
