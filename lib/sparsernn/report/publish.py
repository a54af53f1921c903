"""From records and tables to what a reader sees: the comparison with the tracked rows, the table, the figures.

Figures are drawn from tracked tables alone: `results/<profile>.csv` and, per run, `results/runs/<key>/*.csv`.

A file of a run that is damaged, or lies where another run's belongs, is told to `problem(line)` and left out; the rest goes on.
"""

import filecmp
import re
import shutil
from functools import partial
from pathlib import Path

import pandas as pd

from .. import records, sparsify, tasks
from ..bench import BLOCKS, PATTERNS
from ..bench.sweep import slug_of
from ..files import clear, nearest, project_root, replacing
from ..study import sums
from ..study.asked import read_study, study_configs
from ..study.config import PROFILES, RunConfig, begun, runs_root
from ..study.metrics import read_metrics
from ..study.presets import PRESETS
from ..study.runs import schedule
from . import decisions, plots, published, timings
from . import tables as tidy

STUDIES = (
    "study-all.yaml",  # of which study.yaml's runs are some
    "study.yaml",
    "papers.yaml",
    "blocks.yaml",
    "digits.yaml",
    "squad.yaml",
    "imdb.yaml",
    "ag-news.yaml",
    "sharing.yaml",
    "neurons.yaml",
    "words.yaml",
)  # whose runs are compared; others are owed
TABLES = ("metrics.csv", "thresholds.csv", "scores.csv", "gates.csv", "numbers.csv", "trace.csv", "verdict.csv")
LARGEST_MODEL = 1 << 20  # bytes of a compact model that is worth tracking


def stop(line):
    """What is done about a damaged file where nobody asks to be told."""
    raise ValueError(line)


def _of(profile, root, name):
    """Paths of a file of the runs of a profile under `root`, in a fixed order."""
    if profile not in PROFILES:
        raise ValueError(nearest("profile", profile, PROFILES))
    return sorted(Path(root).glob(f"*/*/*/{profile}-s*/{name}"))


def finished(profile, root=None, problem=stop):
    """Records of the finished runs of a profile under `root` (default: the runs directory), in a fixed order."""
    root, found = Path(root or runs_root()), []
    for path in _of(profile, root, "record.json"):
        try:
            record = records.read_record(path)
            if (mine := records.run_key(record)) != path.parent.relative_to(root).as_posix():
                raise ValueError(f"{path}: it is the record of {mine}, which is not where it lies")
            sums.refuse_others(path.parent, path.name)
            found.append(record)
        except ValueError as refusal:
            problem(str(refusal))
    return found


def stopped(profile, root=None, problem=stop):
    """Rows of the runs that were begun and have no record: trials stopped on validation, and what is still under way.

    What their last epoch says, without a test figure: every configuration tried stays in the table.
    """
    rows = []
    for path in _of(profile, root or runs_root(), "config.json"):
        metrics = path.with_name("metrics.csv")
        known = path.parent.parent.name in sparsify.names()  # not one that was registered elsewhere
        if path.with_name("record.json").exists() or not metrics.exists() or not known:
            continue
        try:
            rows.append(_row_of_stopped(path, metrics))
        except (ValueError, TypeError) as refusal:
            problem(str(refusal) if str(path.parent) in str(refusal) else f"{path}: {refusal}")
    return rows


def _row_of_stopped(path, metrics):
    there = begun(path)
    config = RunConfig(**{name: value for name, value in there.items() if name not in ("metric", "data_sha256")})
    table = read_metrics(metrics)
    last = table.iloc[-1]
    row = {name: getattr(config, name) for name in ("task", "model", "method", "variant", "profile", "seed")}
    row |= {name: there.get(name) for name in ("metric", "data_sha256")} | {"schedule": schedule(config)}
    kept = ("valid", "weights_kept", "compression", "vocabulary_kept", "input_kept", "hidden_kept", "gates_live")
    row |= {name: last.get(name) for name in kept} | {"epochs": last["epoch"], "steps": last.get("step")}
    if stands_for(row):  # its own dense net is not what the others count against
        row["compression"] = None
    elif last["weights_kept"]:  # with nothing left the compression is infinite, and says nothing of the total
        row |= {"weights_total": round(last["compression"] * last["weights_kept"])}
    return row | {"train_seconds": round(table["seconds"].sum(), 3)}


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
        if old is None or old["test"] != old["test"]:  # or a trial's, which has no test figure
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
    return [config.key for config in study_configs(study) if config.key not in there]


def owed(study, results=None):
    """The runs a study asks for that have no finished row in `results` (the project's), as configurations."""
    path = Path(results or project_root() / "results") / f"{study['profile']}.csv"
    rows = records.read(path) if path.exists() else pd.DataFrame(columns=["test"])
    absent = set(missing(study, rows[rows["test"].notna()].to_dict("records")))
    return [config for config in study_configs(study) if config.key in absent]


def publish(profile, results=None, figures=None, problem=stop):
    """Upsert the finished runs of a profile into results/, copy their tables and small models, redraw every figure."""
    results, figures = Path(results or project_root() / "results"), Path(figures or project_root() / "figures")
    fresh = finished(profile, problem=problem)
    if not fresh:
        raise FileNotFoundError(f"no finished {profile!r} run under {runs_root()}; make study first")
    for record in fresh:
        _copy(runs_root() / records.run_key(record), results / "runs" / records.run_key(record), problem)
    records.upsert([*stopped(profile, problem=problem), *fresh], results / f"{profile}.csv")
    count_tests(fresh, results)
    return draw(profile, results, figures)


def _copy(source, target, problem):
    """What is tracked of a run: its record, tables and small model, where they are not there already."""
    target.mkdir(parents=True, exist_ok=True)
    clear(target)
    for name in ("record.json", records.MISTAKES, *TABLES, "model.safetensors"):
        path, there = source / name, target / name
        if not path.exists() or there.exists() and filecmp.cmp(path, there, shallow=False):
            continue
        if path.stat().st_size > LARGEST_MODEL:
            there.unlink(missing_ok=True)  # what was tracked before is of other weights
            continue
        try:
            sums.refuse_others(source, name)
            with replacing(there, flushed=False) as temporary:  # what the machine loses is copied again
                shutil.copyfile(path, temporary)
        except ValueError as refusal:
            problem(str(refusal))


def count_tests(rows, results):
    """Write down in results/tests.csv how many items the tests behind these records have, where an accuracy was measured:
    task, data_sha256, items, classes (their names, joined by |). What is there already is not loaded again, and nothing twice
    for the sake of rows that were made from other data."""
    path = Path(results) / "tests.csv"
    table = (
        records.read_table(path) if path.exists() else pd.DataFrame(columns=["task", "data_sha256", "items", "classes"])
    )
    known, found = set(table["data_sha256"]), []
    asked = [row for row in rows if row["metric"] == "accuracy" and row["data_sha256"] not in known]
    for name, profile in dict.fromkeys((row["task"], row["profile"]) for row in asked):
        task = tasks.load(name, profile)
        if task.data_sha256 not in known:
            known.add(task.data_sha256)
            found.append((name, task.data_sha256, len(task.splits["test"]["labels"]), "|".join(task.classes)))
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
    runs = Path(results) / "runs"
    table = decisions.configurations(
        rows, test_items(results), lambda row: records.read_counts(runs / records.run_key(row) / records.MISTAKES)
    )
    steps = timings.a_step(timed, rows["task"].iloc[0])
    table = table.merge(steps[steps["variant"].notna()], on=["model", "method", "variant"], how="left")
    dense = steps[steps["variant"].isna()].drop(columns=["method", "variant"])
    whole = table[["model"]].merge(dense, on="model", how="left")
    slower = (table["method"] == decisions.REFERENCE) & ~(
        table["step_us"] <= whole["step_us"]
    )  # an engine may skip its zeros
    for column in ("step_us", "device_timed"):
        table[column] = table[column].where(~slower, whole[column])
    return table


def draw(profile, results, figures):
    """Every figure of the study, from tracked tables alone → the files written, `<task>-<figure>.png` of the task's default
    model and what stands for it, `<task>-<model>-<figure>.png` of another.
    """
    rows, written = records.read(Path(results) / f"{profile}.csv"), []
    timed = timings.timing_rows(results, "")

    def keep(figure, name, rows, *tables):
        written.append(Path(figures) / f"{name}.png")
        drawn_from(figure, written[-1], rows, *tables)

    for task, family, stem, part in families(rows):
        finished = part[part["test"].notna()]  # trials stop at validation
        if finished.empty:
            continue
        part = part[part["data_sha256"].isin(finished["data_sha256"])]
        part = part.assign(asked=part["test"].notna())
        table = f"results/{profile}.csv"
        keep(
            plots.cost_front(costs(finished, results, timed)), f"{stem}-front", finished, table, "results/timings-*.csv"
        )
        if (finished["tests"].fillna("") != "").any():
            keep(plots.tests_front(finished), f"{stem}-tests", finished, table)
        if len(finished) < len(part):
            keep(plots.front(part, quality="valid"), f"{stem}-tried", part, table)
        else:  # of trials that have become runs
            (Path(figures) / f"{stem}-tried.png").unlink(missing_ok=True)
        for model, same in finished.groupby("model"):
            same = same.assign(shape=[shape_of(row) for row in same.to_dict("records")])
            if same.loc[same["shape"].str.contains("×"), "shape"].nunique() >= 2:
                smaller = finished[(finished["method"] == "dense") & (finished["compression"] > 1)]
                drawn = pd.concat([same[same["shape"] != ""], smaller.assign(shape="dense")])
                keep(plots.pattern_curves(drawn), f"{task}-{model}-blocks", drawn, table)
        curves = _curves(profile, task, finished, results)
        if curves.empty:  # what is finished was counted, not trained
            continue
        every = f"results/runs/{task}/*/*/{profile}-*"
        keep(plots.training_curves(curves), f"{stem}-training", finished, f"{every}/metrics.csv")

        for name, what, draw, worth in OF_A_RUN:
            for method, found in per_method(profile, finished, name, results):
                if not worth(found):
                    (Path(figures) / f"{stem}-{method}-{what}.png").unlink(missing_ok=True)
                else:
                    key = records.run_key(
                        found.iloc[0][[*records.KEY[:3], "variant", "seed"]].to_dict() | {"profile": profile}
                    )
                    one = finished[[records.run_key(row) == key for row in finished.to_dict("records")]]
                    keep(draw(found), f"{stem}-{method}-{what}", one, f"results/runs/{key}/{name}")
        paths, theirs = paths_of(profile, task, finished, results), published.of_family(results, task, family)
        cut = [f"{every}/thresholds.csv"] * any(True for _ in per_method(profile, finished, "thresholds.csv", results))
        seen = f"{every}/metrics.csv", *cut, *["results/published.csv"] * bool(len(theirs))
        keep(plots.fronts(paths, theirs), f"{stem}-fronts", finished, *seen)
        if (
            theirs["epoch"].nunique() > 1 and not finished["method"].isin(plots.OPPONENTS).all()
        ):  # curves, not ends alone
            alike = curves[curves["model"].isin(theirs["model"])]  # not of what was small from the start
            keep(plots.beside_published(alike, theirs), f"{stem}-beside-authors", finished, seen[0], seen[-1])
    if len(through := timings.through_engines(results)):
        keep(plots.rounding_cost(through), "int8", through, "results/engines.csv")
    for name, draw, timed in speeds(results):
        keep(draw(timed), f"speed-{name}", timed, f"results/timings-{slug_of(timed['device'].iloc[0])}.csv")
    return written


def speeds(results):
    """(what, who draws it, timing rows) of the figures about layers and products, of the CPU, and the GPU, that most were timed
    on."""
    timed = timings.timing_rows(results, "cpu")
    timed = timings.most_timed(timed)
    timed = timed[timed["method"] == "shape-only"]
    large = timed[(timed["model"] == "lstm") & (timed["hidden"] == timed.loc[timed["model"] == "lstm", "hidden"].max())]
    large = large[(large["batch"] == 1) & large["pattern"].isin(PATTERNS)]
    if len(large):
        yield "layers", partial(plots.crossover, x="density", panel="pattern"), large
    if len(products := timed[timed["model"] == "product"]):
        yield "products", partial(plots.product_claim, published=timings.cusparse_figures()), products
    cut = timed[timed["pattern"].isin(BLOCKS) & (timed["batch"] == 1) & timed["model"].isin(("lstm", "gru", "rnn"))]
    if len(cut):
        yield "blocks", lambda rows: plots.block_times(timings.in_blocks(rows)), cut
    timed = timings.most_timed(timings.timing_rows(results, "cuda"))
    if len(layers := timed[timed["model"].isin(("lstm", "gru", "rnn"))]):
        yield "gpu", plots.steps_on_a_gpu, layers


OF_A_RUN = (  # a run's table, what its figure is called, who draws it, and whether that is worth it
    ("thresholds.csv", "thresholds", plots.threshold_curve, len),
    ("scores.csv", "scores", plots.score_histograms, len),
    ("gates.csv", "gates", plots.gate_map, plots.gates_differ),
    ("numbers.csv", "words", plots.word_page, len),
    ("trace.csv", "trace", plots.gate_trace,  # of a net with hundreds of live gates a few lines say nothing
     lambda trace: trace[["gate", "neuron"]].drop_duplicates().shape[0] >= trace["of"].iloc[0] / 2),
)  # fmt: skip


def drawn_from(figure, path, rows, *tables):
    """Save a figure, and in it what it was drawn from: tables, and the commits of their rows (`documents.figures_page`)."""
    figure = getattr(figure, "figure", figure)
    commits = ", ".join(dict.fromkeys(filter(None, rows["commit"].fillna(""))))  # a trial that was broken off has none
    said = {"Software": None, "Source": ", ".join(tables), "Comment": f"rows of commits {commits}"}
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata=said)
    plots.plt.close(figure)


OTHER_SHAPES = {
    "dense": "dense",
    "gradual": "scattered",
}  # what blocks stand beside: nothing pruned, and weight by weight


def shape_of(row):
    """How what a run keeps lies: the block of a method that has one, or one of OTHER_SHAPES; else nothing."""
    default = (
        getattr(sparsify.make(row["method"]).options, "block", None) if row["method"] in sparsify.names() else None
    )
    if default is None:
        return OTHER_SHAPES.get(row["method"], "")
    return records.entries(row["variant"]).get("block", default).replace("x", "×")


def families(rows):
    """(task, model, what its figures are called, rows) of every model with those that are compared with it: the ones that stand
    for it (`Preset.equivalent`), and what is no network."""
    for task, part in rows[rows["task"].isin(PRESETS)].groupby("task"):  # not one that was registered elsewhere
        presets = PRESETS[task]
        family = part["model"].map({name: one.equivalent or name for name, one in presets.items()})
        for name in dict.fromkeys(family.dropna()) or [next(iter(presets))]:
            stem = task if name == next(iter(presets)) else f"{task}-{name}"
            if stem == task or part.loc[family == name, "test"].notna().any():  # counted opponents alone are shown once
                yield task, name, stem, part[(family == name) | family.isna()]


def stands_for(row):
    """The model that a row's own counts against, a larger or smaller one of its kind; None where it is compared as itself."""
    preset = PRESETS.get(row["task"], {}).get(row["model"])  # None of what is no network
    return preset and preset.equivalent


def other_model(row):
    """The name of a row's network where it is compared with another one; else nothing."""
    return row["model"] if stands_for(row) and row["method"] not in plots.OPPONENTS else ""


def paths_of(profile, task, rows, results):
    """What every run of a task was seen at on validation: each epoch or strength of L1, each threshold at the end."""
    columns = ["task", "model", "method", "variant", "compression", "valid", "metric", "chosen"]
    curves = _curves(profile, task, rows, results).assign(task=task)
    sweeps = [
        table.assign(task=task, chosen=False) for _, table in per_method(profile, rows, "thresholds.csv", results)
    ]
    return pd.concat([curves, *sweeps], ignore_index=True).reindex(columns=columns)


def studies(names=None):
    """The study files of these names (STUDIES) that there are, as read."""
    paths = (project_root() / name for name in (STUDIES if names is None else names))
    return [read_study(path) for path in paths if path.exists()]


def _curves(profile, task, rows, results):
    """metrics.csv of all runs of a task, with what their records know."""
    paths = [Path(results) / "runs" / records.run_key(row) / "metrics.csv" for row in rows.to_dict("records")]
    rows = rows[[path.exists() for path in paths]]
    if rows.empty:
        return pd.DataFrame()
    table = records.read_tables([path for path in paths if path.exists()], texts=["gates_live"])
    return tidy.tidy_metrics(table.drop(columns="table"), rows.iloc[table["table"]].reset_index(drop=True))


def per_method(profile, shown, name, results):
    """(method, table) of one run of each method among the rows `shown` that left a table: of the model itself, or of one that
    stands for it; of the plan of most seeds, of several the best there on validation, at the density of the first variant, its
    first seed. The table has the run's task, model, method, variant and seed."""
    found = {}
    for row in shown.to_dict("records"):
        path = Path(results) / "runs" / records.run_key(row) / name
        if path.exists() and len(table := records.read_table(path)):
            of_model = found.setdefault(row["method"], {}).setdefault(stands_for(row) or "", {})
            of_model.setdefault(row["variant"], []).append((row["seed"], row, table))
    for method, models in sorted(found.items()):
        variants = models[min(models)]
        same = [variant for variant in sorted(variants) if _density(variant) == _density(min(variants))]
        firsts = [min(variants[variant], key=lambda run: run[0]) for variant in same]
        of_method = shown.loc[shown["method"] == method, "variant"].fillna("")
        seeds = [int((of_method == variant).sum()) for variant in same]
        valid = [decisions.sign_of(row["metric"]) * row["valid"] for _, row, _ in firsts]
        worth = [(many, one == one, one) for many, one in zip(seeds, valid, strict=True)]
        _, row, table = firsts[worth.index(max(worth))]
        yield method, table.assign(**{column: row[column] for column in records.KEY if column != "profile"})


def _density(variant):
    """What a variant says of how much is left."""
    return re.findall(r"(?:^|,)((?:density|q|sharing)=[^,]*)", variant)


def write_comparison(table, absent, path):
    """What `make study` ends with, as text: the comparison, and the runs that left no record."""
    lines = ["Here, beside the tracked rows (results/):", "", table.round(4).to_string(index=False, na_rep="–"), ""]
    lines += [f"no record: {run} (its notebook holds the error)" for run in absent]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n")
