"""What the READMEs say is in the tables: written tables are current, every figure quoted in their prose is a number that its
section's rows hold, and each tracked model has its card."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sparsernn import records
from sparsernn.report import documents, publish, sections, timings

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
FIGURE = re.compile(r"(?<![\w.,/−-])(\d{1,3}(?:,\d{3})+|\d+\.\d+|\d{2,})(?![\w,.]*\d)(×| bits\b| bpc\b)?")

# Quoted, and no number of a row: file → the figures, each worked out as its sentence says.
ELSEWHERE = {
    "README.md": {
        *"1760 2304".split(),  # neurons that a GPU's registers hold (tests/test_kernels.py, tests/test_persistent_cuda.py)
        *"4,000 523".split(),  # damaged model files (tests/test_hostile_files.py), malformed sets (tests/test_config.py)
    },
    "results/README.md": {
        *"1,827 1,691 1,757 1,629 254 196 213 208 268 215".split(),  # the same, two seeds; texts by topic
        *"3,636 3,750 3,581 3,623 97.0 96.6".split(),  # reviews and films of IMDb's splits
        *"0.846 337 640 1,755 0.831".split(),  # lists by their length: metrics.csv of the linear runs; the authors' words
        *"0.15 0.11 0.09 0.014 0.008 325 956 540 36,000".split(),  # differences, sums and rounded ratios of rows
        *"583 598".split(),  # cells in which `choose` is right: a test below
        *"250 256 1500 1760 2560".split(),  # a weight of the penalty (presets.py); sizes of layers and batches
        *"38,123 120,000 36,216".split(),  # rows of AG News' corpus
        *"600 1.27 1.53 209 375".split(),  # read off the threshold path and a trace: neurons and their states
        *"2,000 30,000 15,000".split(),  # steps, and round numbers in words
        *"10,388 1,169".split(),  # questions of SQuAD's partial corpus
        *"136 0.833 0.864".split(),  # means over seeds, and an interval over them (the report's first table)
        *"10,068 33.3 23.3 31.7 23.6 22.5 100 442 3.57 2.43".split(),  # SQuAD: sizes, per cents of shares, losses by epoch
        *"787,000 2,400,000 523,000 742,000 2,621,000 967,000".split(),  # recurrent weights of its models, products a step
        *"600,000 591,000 19.6 3072 383".split(),  # the same; rows of a product; cells in which `choose` was right
        *"1,737 0.842 0.847 1,185".split(),  # rows of imdb-authors, in the section on imdb
    },
}
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


def quoted(text):
    """Figures that a table should hold: of three digits or more, or with a × or bits behind them."""
    text = re.sub(r"<!-- table: .*?<!-- end -->|```.*?```|`[^`]*`|\[([^]]*)\]\([^)]*\)", r" \1 ", text, flags=re.DOTALL)
    text = ARXIV.sub(" ", text)
    found = []
    for number, unit in FIGURE.findall(text):
        digits = len(number.replace(",", "").replace(".", "").lstrip("0"))
        if unit or digits >= 3:
            found.append(number)
    return found


@functools.cache
def numbers(tasks=None):
    """Every number of the tracked rows, the authors' curves and what runs left, of these tasks or of all."""
    tables = [records.read(RESULTS / f"{profile}.csv") for profile in ("quick", "short")]
    tables += [pd.read_csv(RESULTS / "published.csv"), records.read_table(RESULTS / "tests.csv")]
    tables = [table if tasks is None else table[table["task"].isin(tasks)] for table in tables]
    for folder in (RESULTS / "runs").iterdir():
        if tasks is None or folder.name in tasks:
            tables += [records.read_table(path) for path in folder.glob("*/*/*/thresholds.csv")]
    if tasks is None:
        timed = timings.timing_rows(RESULTS, "")
        tables += [
            timings.fastest(timed)[["median_ms", "over_fp32", "over_dense"]],
            timed[["speedup", "median_ms", "error"]],
            records.read_goals(RESULTS / "goals-cpu.csv")[["ms", "opponent_ms", "ratio"]],
        ]
        through = timings.through_engines()
        points = 100 * through["change"].abs().where(through["metric"] == "accuracy")
        tables += [
            pd.read_csv(RESULTS / "noise.csv")[["valid"]],
            through[["through", "change", "saturated"]].abs().assign(points=points),
        ]
    for table in [table for table in tables if "tests" in table]:
        tables.append(
            table.groupby(["task", "model", "method", table["variant"].fillna("")])[["test"]].mean()
        )  # over seeds
        many = table[table["tests"].fillna("") != ""]
        rates = pd.DataFrame(
            [{"test": row["test"]} | records.numbers_of(row["tests"]) for row in many.to_dict("records")]
        )
        if len(rates):  # each run's, and the means over its seeds
            runs = [records.run_key(row | {"seed": 0}) for row in many.fillna({"variant": ""}).to_dict("records")]
            tables += [rates, rates.groupby(np.array(runs)).mean()]
    values = [pd.to_numeric(table[name], errors="coerce").to_numpy(float) for table in tables for name in table]
    counts = "-".join(str(part) for table in tables if "gates_constant" in table for part in table["gates_constant"])
    values.append(np.array(re.findall(r"\d+", counts), float))  # i64.f65.g10.o0
    values = np.concatenate(values)
    return np.unique(values[np.isfinite(values)])


def held(number, values):
    """Whether some value is this figure when it is rounded to as many decimals."""
    decimals = len(number.partition(".")[2])
    return bool((np.abs(values - float(number.replace(",", ""))) <= 0.5001 * 10.0**-decimals).any())


def sections_of(path):
    """(heading, text, tasks of the tables in it, or None) of each section of a document."""
    for part in re.split(r"^## ", path.read_text(), flags=re.MULTILINE):
        names = re.findall(r"<!-- table: \w+ ([\w-]+) -->", part)
        tasks = {task for task in publish.PRESETS for name in names if name == task or name.startswith(f"{task}-bayes")}
        yield part.partition("\n")[0], part, frozenset(tasks) or None


def absent(name, values=None):
    """Figures quoted in a document that its rows do not hold; values: in place of the tracked ones, tasks → numbers."""
    found = []
    for heading, part, tasks in sections_of(ROOT / name):
        there = (values or numbers)(tasks)
        found += [f"{heading}: {n}" for n in quoted(part) if not held(n, there) and n not in ELSEWHERE[name]]
    return found


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_figure_quoted_is_still_in_the_tables(name):
    assert absent(name) == []


def test_a_figure_that_left_the_tables_is_named():
    """As if two runs of IMDb had ended elsewhere: every quotation of its figures is found."""

    def without(tasks):
        there = numbers(tasks)
        return there[(np.abs(there - 15787.5) > 1) & (np.abs(there - 5270) > 0.1)]

    assert any("15,788" in line for line in absent("results/README.md", values=without))
    assert any("5,270" in line for line in absent("README.md", values=without))


def test_figures_are_told_from_years_versions_and_papers():
    text = "1708.00077 has 0.847 at 5,249× in 12 lines, 3 bits, `0.123`, [a 0.456 b](x/0.789.md), 22.1× and 2.21 bits"
    assert quoted(text) == ["0.847", "5,249", "0.456", "22.1", "2.21"]
    assert held("0.847", np.array([0.84732])) and not held("0.847", np.array([0.8477, 0.8464]))
    assert held("5,249", np.array([5249.19]))


@pytest.fixture(scope="module")
def tracked():
    return sections.tracked(RESULTS)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_tables_in_a_readme_are_those_of_the_tracked_rows(name, tracked):
    text = (ROOT / name).read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end -->") > 0
    assert documents.filled(text, tracked) == text, "write them anew: python -m sparsernn.report"


def test_a_table_nobody_knows_is_refused_with_the_nearest(tracked):
    with pytest.raises(ValueError, match="unknown table 'short imdb-author'; did you mean 'short imdb-authors'"):
        documents.filled("<!-- table: short imdb-author -->\n<!-- end -->", tracked)


def test_every_tracked_model_has_the_card_of_its_record():
    models = sorted(RESULTS.glob("runs/*/*/*/*/model.safetensors"))
    assert models
    for model in models:
        record, text = json.loads(model.with_name("record.json").read_text()), model.with_name("README.md").read_text()
        assert text == documents.card(model.parent, ROOT)
        assert record["data_sha256"] in text and f"{record['weights_kept']:,} of {record['weights_total']:,}" in text
        assert f'path = "{model.relative_to(ROOT)}"\nsmall = sparsernn.load(path)' in text
        assert (model.parent / re.search(r"\]\(([^)]*data/README.md)\)", text)[1]).exists()


def test_a_card_says_the_terms_of_its_data(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# Data\n\n### `a` – one (task `b`)\n\nTerms: research\nonly.\n\n### `c`\n\nTerms: none.\n")
    assert documents.terms("b", page) == "Terms: research only." and documents.terms("d", page) == ""
    assert all("research" in documents.terms(task, ROOT / "data" / "README.md") for task in ("imdb", "imdb-authors"))


def test_every_figure_says_which_tracked_tables_it_was_drawn_from():
    figures, text = sorted((ROOT / "figures").glob("*.png")), (ROOT / "figures" / "README.md").read_text()
    assert text == documents.figures_page(ROOT / "figures")
    for figure in figures:
        with Image.open(figure) as image:
            said = image.info
        assert re.fullmatch(r"rows of commits \w{12}\+?(, \w{12}\+?)*", said["Comment"]), figure
        for source in said["Source"].split(", "):
            assert list(ROOT.glob(source)) if "*" in source else (ROOT / source).is_file(), f"{figure}: {source}"
        assert f"[{figure.stem}]({figure.name})" in text


def test_shapes_of_blocks_stand_beside_dense_nets_of_as_many_weights_with_what_a_step_takes():
    def row(method, test, compression, variant="", model="lstm-64", us=float("nan")):
        return {"model": model, "method": method, "variant": variant, "test": test, "compression": compression} | {
            "metric": "bits_per_char",
            "step_us": us,
        }

    rows = [
        row("dense", 1.9, 1.0, us=90.0),
        row("dense", 2.1, 9.8, model="lstm-16"),
        row("back-off", 2.0, float("nan")),
    ]
    rows += [row("blocks", 2.2, 10.4, "block=8x4", us=3.256), row("blocks", 2.4, 19.0, "block=8x4,density=0.05")]
    rows += [row("gradual", 2.15, 10.0, "density=0.1,schedule=cubic"), row("l0", 2.3, 10.0)]
    rows += [
        row("gradual", 9.9, 12.0),
        row("gradual", 9.8, 51.0, "density=0.02"),
        row("dense", 1.5, 0.33, model="lstm-256"),
    ]
    rows += [row("gradual", 9.7, 3.3, "density=0.1", "lstm-256")]
    setting = sections.Setting("chars", "chars", "net", "chars", "short", None, pd.DataFrame(rows))
    whole, tenth, twentieth = documents.blocks_of(setting).to_dict("records")
    assert whole == {"left": "100%", "scattered": "–", "8×4": "–", "dense": "1.900 · 90 µs"}
    assert tenth == {"left": "10%", "scattered": "2.150", "8×4": "2.200 · 3.26 µs", "dense": "2.100"}
    assert twentieth == {"left": "5%", "scattered": "–", "8×4": "2.400", "dense": "–"}


def test_how_often_choose_is_right_is_what_the_tracked_rows_say():
    _, cells = timings.agreement(timings.most_timed(timings.timing_rows(RESULTS, "cpu")))
    said = re.search(r"fp32 engine\) in (\d+) of (\d+) cells", (RESULTS / "README.md").read_text())
    assert (int(said[1]), int(said[2])) == (cells["right"].sum(), len(cells))


def test_how_often_numba_is_fastest_is_what_the_tracked_rows_say():
    cells = timings.fastest(timings.most_timed(timings.timing_rows(RESULTS, "cpu")))
    said = re.search(r"the fastest in (\d+) of (\d+) cells", (RESULTS / "README.md").read_text())
    assert (int(said[1]), int(said[2])) == (cells["engine"].str.contains("numba").sum(), len(cells))
