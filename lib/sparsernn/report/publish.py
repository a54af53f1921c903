"""From records and tables to what a reader sees: the comparison with the tracked rows, the table, the figures.

Figures are drawn from tracked tables alone: `results/<profile>.csv` and, per run, `results/runs/<key>/*.csv`.
"""

import json
import shutil
from pathlib import Path

import pandas as pd

from .. import records, sparsify, tasks
from ..files import project_root, replacing
from ..study.asked import study_configs
from ..study.config import RunConfig, begun, runs_root
from ..study.presets import PRESETS
from ..study.runs import schedule
from . import decisions, plots, timings
from . import tables as tidy

TABLES = ("metrics.csv", "thresholds.csv", "scores.csv", "gates.csv", "numbers.csv", "trace.csv", "verdict.csv")
EVEN = 0.9  # a map on which so many gates are in one state shows nothing; nor does a trace of less than half of what is live
LARGEST_MODEL = 1 << 22  # bytes of a compact model that is worth tracking


def finished(profile, root=None):
    """Records of the finished runs of a profile under `root` (default: the runs directory), in a fixed order."""
    paths = sorted(Path(root or runs_root()).glob(f"*/*/*/{profile}-s*/record.json"))
    return [json.loads(path.read_text()) for path in paths]


def stopped(profile, root=None):
    """Rows of the runs that were begun and have no record: trials stopped on validation, and what is still under way.

    What their last epoch says, without a test figure: every configuration tried stays in the table.
    """
    rows = []
    for path in sorted(Path(root or runs_root()).glob(f"*/*/*/{profile}-s*/config.json")):
        metrics = path.with_name("metrics.csv")
        known = path.parent.parent.name in sparsify.names()  # not one that was registered elsewhere
        if path.with_name("record.json").exists() or not metrics.exists() or not known:
            continue
        there = begun(path)
        config = RunConfig(**{name: value for name, value in there.items() if name not in ("metric", "data_sha256")})
        table = pd.read_csv(
            metrics, dtype={"hidden_kept": str, "gates_live": str}, keep_default_na=False, na_values=[""]
        )
        last = table.iloc[-1]
        row = {name: getattr(config, name) for name in ("task", "model", "method", "variant", "profile", "seed")}
        row |= {name: there[name] for name in ("metric", "data_sha256")} | {"schedule": schedule(config)}
        kept = ("valid", "weights_kept", "compression", "vocabulary_kept", "input_kept", "hidden_kept", "gates_live")
        row |= {name: last[name] for name in kept} | {"epochs": last["epoch"], "steps": last["step"]}
        if last["weights_kept"]:  # with nothing left the compression is infinite, and says nothing of the total
            row |= {"weights_total": round(last["compression"] * last["weights_kept"])}
        rows.append(row | {"train_seconds": round(table["seconds"].sum(), 3)})
    return rows


def comparison(fresh, tracked):
    """Each fresh record beside the tracked row of the same key: what was reproduced, within what.

    → DataFrame: run, metric, tracked, here, difference, compression tracked and here, verdict.
    Rows made from other data are not compared.
    """
    known = {records.key_of(row): row for row in tracked.to_dict("records")}
    rows = []
    for record in fresh:
        old, row = (
            known.get(records.key_of(record)),
            {"run": records.run_key(record), "metric": record["metric"], "here": record["test"]},
        )
        row |= {"compression here": record.get("compression")}
        if old is None:
            row["verdict"] = "new: no tracked row"
        elif old["data_sha256"] != record["data_sha256"]:
            row["verdict"] = "other data: not compared"
        else:
            row |= {
                "tracked": old["test"],
                "difference": record["test"] - old["test"],
                "compression tracked": old["compression"],
            }
            same = abs(row["difference"]) < 1e-9
            row["verdict"] = "same to the last digit" if same else f"within {abs(row['difference']):.4f}"
        rows.append(row)
    order = ["run", "metric", "tracked", "here", "difference", "compression tracked", "compression here", "verdict"]
    return pd.DataFrame(rows, columns=order)


def missing(study, rows):
    """Runs `study.yaml` asks for that have no record: their notebooks hold the error."""
    there = {records.run_key(row) for row in rows}
    wanted = [config.directory.relative_to(runs_root()).as_posix() for config in study_configs(study)]
    return [key for key in wanted if key not in there]


def publish(profile, results=None, figures=None, study=None):
    """Upsert the finished runs of a profile into results/, copy their tables and small models, redraw every figure."""
    results, figures = Path(results or project_root() / "results"), Path(figures or project_root() / "figures")
    fresh = finished(profile)
    if not fresh:
        raise FileNotFoundError(f"no finished {profile!r} run under {runs_root()}; make study first")
    for record in fresh:
        source, target = runs_root() / records.run_key(record), results / "runs" / records.run_key(record)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("record.json", records.MISTAKES, *TABLES, "model.safetensors"):
            path = source / name
            if path.exists() and path.stat().st_size <= LARGEST_MODEL:
                with replacing(target / name) as temporary:
                    shutil.copyfile(path, temporary)
    records.upsert([*stopped(profile), *fresh], results / f"{profile}.csv")
    count_tests(fresh, results)
    return draw(profile, results, figures, study)


def count_tests(rows, results):
    """Write down in results/tests.csv how many items the tests behind these records have, where an accuracy was measured:
    task, data_sha256, items, classes (their names, joined by |). What is there already is not loaded again."""
    path = Path(results) / "tests.csv"
    table = (
        records.read_table(path) if path.exists() else pd.DataFrame(columns=["task", "data_sha256", "items", "classes"])
    )
    known, found = set(table["data_sha256"]), []
    for row in rows:
        if row["metric"] == "accuracy" and row["data_sha256"] not in known:
            task = tasks.load(row["task"], row["profile"])
            known.add(task.data_sha256)
            found.append((row["task"], task.data_sha256, len(task.splits["test"]["labels"]), "|".join(task.classes)))
    if found:
        table = pd.concat(
            [table, pd.DataFrame(found, columns=table.columns)]
            if len(table)
            else [pd.DataFrame(found, columns=table.columns)]
        )
        with replacing(path) as temporary:
            table.sort_values(["task", "data_sha256"]).to_csv(temporary, index=False)


def test_items(results):
    """data_sha256 → items of its test, of results/tests.csv."""
    path = Path(results) / "tests.csv"
    return records.read_table(path).set_index("data_sha256")["items"].to_dict() if path.exists() else {}


def costs(rows, results, timed):
    """`decisions.configurations` of one family's rows, with what a step takes where it was timed (`timings.a_step`)."""
    table = decisions.configurations(rows, test_items(results))
    steps = timings.a_step(timed, rows["task"].iloc[0])
    table = table.merge(steps[steps["variant"].notna()], on=["model", "method", "variant"], how="left")
    dense = steps[steps["variant"].isna()].drop(columns=["method", "variant"])
    whole = table[["model"]].merge(dense, on="model", how="left")
    absent = (table["method"] == decisions.REFERENCE) & table["step_us"].isna()
    for column in ("step_us", "device_timed"):
        table[column] = table[column].where(~absent, whole[column])
    return table


def tracked_tables(profile, name, results):
    """One of TABLES for every tracked run of a profile, with the run's columns task, model, method, variant, seed."""
    frames = []
    for path in sorted(Path(results, "runs").glob(f"*/*/*/{profile}-s*/{name}")):
        record = json.loads((path.parent / "record.json").read_text())
        keys = {column: record[column] for column in ("task", "model", "method", "variant", "seed")}
        frames.append(records.read_table(path).assign(**keys))
    frames = [frame for frame in frames if len(frame)]  # an empty one knows no types
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def draw(profile, results, figures, study=None):
    """Every figure of the study, from tracked tables alone → the files written, `<task>-<figure>.png` of the task's default
    model and what stands for it, `<task>-<model>-<figure>.png` of another.

    study: study.yaml as read; where it asks for runs of a task, curves, histograms and maps are theirs alone.
    """
    rows, written = records.read(Path(results) / f"{profile}.csv"), []
    timed = timings.timing_rows(results, "")

    def keep(figure, name):
        figure = getattr(figure, "figure", figure)
        with replacing(Path(figures) / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
        plots.plt.close(figure)
        written.append(Path(figures) / f"{name}.png")

    for task, stem, part in families(rows):
        finished = part[part["test"].notna()]  # trials stop at validation
        if finished.empty:
            continue
        shown = of_the_study(finished, study)
        part = part[part["data_sha256"].isin(finished["data_sha256"])]
        part = part.assign(asked=part.index.isin(shown.index))
        keep(plots.cost_front(costs(shown, results, timed)), f"{stem}-front")
        if len(finished) < len(part):
            keep(plots.front(part, quality="valid"), f"{stem}-tried")
        else:  # of trials that have become runs
            (Path(figures) / f"{stem}-tried.png").unlink(missing_ok=True)
        for model, same in finished.groupby("model"):
            same = same.assign(shape=[shape_of(row) for row in same.to_dict("records")])
            if same["shape"].str.contains("×").sum() >= 3:
                keep(plots.pattern_curves(same[same["shape"] != ""]), f"{task}-{model}-blocks")
        curves = _curves(profile, task, shown, results)
        if curves.empty:  # what is finished was counted, not trained
            continue
        keep(plots.training_curves(curves), f"{stem}-training")
        for method, thresholds in per_method(profile, shown, "thresholds.csv", results):
            keep(plots.threshold_curve(thresholds), f"{stem}-{method}-thresholds")
        for method, counts in per_method(profile, shown, "scores.csv", results):
            keep(plots.score_histograms(counts), f"{stem}-{method}-scores")
        for method, gates in per_method(profile, shown, "gates.csv", results):
            if gates["state"].value_counts(normalize=True).max() < EVEN:
                keep(plots.gate_map(gates), f"{stem}-{method}-gates")
                keep(plots.gate_counts(gates), f"{stem}-{method}-gate-counts")
        for method, numbers in per_method(profile, shown, "numbers.csv", results):
            keep(plots.word_page(numbers), f"{stem}-{method}-words")
        for method, trace in per_method(profile, shown, "trace.csv", results):
            if trace[["gate", "neuron"]].drop_duplicates().shape[0] >= trace["of"].iloc[0] / 2:
                keep(plots.gate_trace(trace), f"{stem}-{method}-trace")
        paths, theirs = paths_of(profile, task, shown, results), authors_curve(task, results)
        keep(plots.fronts(paths, theirs), f"{stem}-fronts")
        if len(theirs) and not shown["method"].isin(plots.OPPONENTS).all():
            keep(plots.beside_published(curves, theirs), f"{stem}-beside-authors")
    return written


SCATTERED = ("dense", "gradual")  # what blocks are drawn beside: nothing pruned, and weight by weight


def shape_of(row):
    """How what a run keeps lies: the block of a method that has one, or the name of one of SCATTERED; else nothing."""
    default = (
        getattr(sparsify.make(row["method"]).options, "block", None) if row["method"] in sparsify.names() else None
    )
    if default is None:
        return row["method"] if row["method"] in SCATTERED else ""
    given = dict(part.split("=", 1) for part in str(row["variant"] or "").split(",") if "=" in part)
    return given.get("block", default).replace("x", "×")


def families(rows):
    """(task, what its figures are called, rows) of every model with those that are compared with it: the ones that stand for
    it (`Preset.equivalent`), and what is no network."""
    for task, part in rows.groupby("task"):
        presets = PRESETS[task]
        family = part["model"].map({name: one.equivalent or name for name, one in presets.items()})
        for name in dict.fromkeys(family.dropna()) or [next(iter(presets))]:
            stem = task if name == next(iter(presets)) else f"{task}-{name}"
            yield task, stem, part[(family == name) | family.isna()]


def authors_curve(task, results):
    """Rows of results/published.csv of a task: the authors' learning curves, empty where they published none."""
    path = Path(results) / "published.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["task", "method", "epoch"])
    return table[table["task"] == task]


def paths_of(profile, task, rows, results):
    """What every run of a task was seen at on validation: each epoch or strength of L1, each threshold at the end."""
    columns = ["task", "method", "variant", "compression", "valid", "metric", "chosen"]
    curves = _curves(profile, task, rows, results).assign(task=task)
    sweeps = [
        table.assign(task=task, chosen=False) for _, table in per_method(profile, rows, "thresholds.csv", results)
    ]
    return pd.concat([curves, *sweeps], ignore_index=True).reindex(columns=columns)


def of_the_study(rows, study):
    """The rows of the runs a study asks for, and of opponents; all of them where it asks for none of these."""
    wanted = [config.directory.relative_to(runs_root()).as_posix() for config in study_configs(study)] if study else []
    asked = rows[
        [records.run_key(row) in wanted or row["method"] in plots.OPPONENTS for row in rows.to_dict("records")]
    ]
    return rows if asked["method"].isin(plots.OPPONENTS).all() else asked


def _curves(profile, task, rows, results):
    """metrics.csv of all runs of a task, with what their records know."""
    frames = []
    for record in rows.to_dict("records"):
        path = Path(results) / "runs" / records.run_key(record) / "metrics.csv"
        if path.exists():
            frames.append(tidy.tidy_metrics(pd.read_csv(path, dtype={"gates_live": str}), record))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def per_method(profile, shown, name, results):
    """(method, table) of one run of each method among the rows `shown` that left a table: the first variant and seed
    of the model itself, or of one that stands for it."""
    table = tracked_tables(profile, name, results)
    columns = ["task", "model", "method", "variant", "seed"]
    if len(table):
        table = table.fillna({"variant": ""}).merge(shown[columns].fillna({"variant": ""}), on=columns)
        other = [
            PRESETS[task][model].equivalent or "" for task, model in zip(table["task"], table["model"], strict=True)
        ]
        table = table.assign(other=other).sort_values(["other", "variant", "seed"], kind="stable")
        for method, part in table.groupby("method"):
            same = (part[["model", "variant", "seed"]] == part.iloc[0][["model", "variant", "seed"]]).all(axis=1)
            yield method, part[same].drop(columns="other")


def write_comparison(table, absent, path):
    """What `make study` ends with, as text: the comparison, and the runs that left no record."""
    lines = ["Here, beside the tracked rows (results/):", "", table.round(4).to_string(index=False, na_rep="–"), ""]
    lines += [f"no record: {run} (its notebook holds the error)" for run in absent]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n")
