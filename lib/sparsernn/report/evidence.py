"""The rows that a claim is judged by: of a method on a task the one that speaks, all its seeds with it, and the authors' own."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from .. import records, sparsify
from ..study.config import PROFILES, RunConfig
from ..study.presets import PLAN, PRESETS
from . import intervals, published
from .decisions import over_items, sign_of
from .written import quality

NEAREST = PROFILES[:0:-1]  # the schedule nearest to the paper's first; smoke says nothing
THEIRS = (
    "imdb",
    "imdb-authors",
    "ag-news",
    "ptb-char",
    "ptb-word",
    "squad",
)  # the papers' data; a verdict from others says so
SAME_TEST = {
    "imdb": "imdb-authors"
}  # a task → one with its test and another validation, whose rows speak where it has none
MEANS = "test", "weights_kept", "compression"  # of a row of several seeds
COUNTS = {"gates": "gates_live", "neurons": "hidden_kept"}  # written layer by layer, 40-39


@dataclass(frozen=True)
class Evidence:
    """The tracked tables. rows: of results/*.csv; results: their folder; items: data_sha256 → items of an accuracy's test."""

    rows: pd.DataFrame
    results: Path
    items: dict

    def row(self, task, method, model=None, options=None, profile=None):
        """The finished row of a method on a task, at the longest schedule, of a plan that was run to its end before the beginning
        of the paper's, with the fewest changes to the preset's plan, of several the best on validation; or None.

        model: a preset, profile: a schedule, or None for any; options: name → value of the method's options that are not their
        defaults, and of no others, or None for any; what a row has in its variant of the training's plan does not matter.
        Of several seeds it is the first, but for the figures of MEANS; `by_seed` has the test figures of all, `gates_by_seed`,
        `neurons_by_seed` and `constants_by_seed` their live gates, the neurons kept and the constants as written, `wrong` what
        each got wrong item by item (None of one that is silent), `items` the items of the test where known.
        """
        part = self.rows[(self.rows["task"] == task) & (self.rows["method"] == method) & self.rows["test"].notna()]
        if model is not None:
            part = part[part["model"] == model]
        if profile is not None:
            part = part[part["profile"] == profile]
        if options is not None:
            part = part[[_options(variant) == options for variant in part["variant"].fillna("")]]
        if part.empty:
            return None
        changes = [sum(name in PLAN for name in records.entries(variant)) for variant in part["variant"].fillna("")]
        worse = -sign_of(part["metric"].iloc[0]) * part["valid"].astype(float)
        order = part.assign(rank=part["profile"].map(NEAREST.index), changes=changes, worse=worse)
        order["cut"] = [cut_short(one) for one in part.to_dict("records")]
        means = order.groupby(["model", "variant", "profile"], dropna=False)["worse"].transform("mean")
        first = order.assign(worse=means).sort_values(["rank", "cut", "changes", "worse"], kind="stable").iloc[0]
        same = part[["model", "variant", "profile"]].fillna("") == first[["model", "variant", "profile"]].fillna("")
        items = self.items.get(first.get("data_sha256"), float("nan"))
        alike = part[same.all(axis=1)]
        folders = [self.results / "runs" / records.run_key(one) for one in alike.to_dict("records")]
        wrong = tuple(records.read_counts(folder / records.MISTAKES) for folder in folders)
        first = pd.concat([first.drop(list(MEANS)), alike[list(MEANS)].astype(float).mean()])
        seeds = {"by_seed": tuple(alike["test"]), "wrong": wrong, "items": items}
        seeds["constants_by_seed"] = tuple(alike["gates_constant"])
        seeds |= {f"{name}_by_seed": tuple(map(_over_layers, alike[column])) for name, column in COUNTS.items()}
        return pd.concat([first, pd.Series(seeds)])

    def of(self, task, *methods):
        """The task, or the one with its test where that alone has finished rows of all these methods."""
        finished = self.rows[self.rows["test"].notna()].groupby("task")["method"].agg(set)
        other = SAME_TEST.get(task, task)
        return (
            other
            if set(methods) <= finished.get(other, set()) and not set(methods) <= finished.get(task, set())
            else task
        )

    def alike(self, row, method):
        """`row` of another method on the same model and profile under the same options; None where there is none."""
        return self.row(row["task"], method, row["model"], _options(row["variant"]), row["profile"])

    def tasks(self, *methods):
        """Every task with finished rows of all these methods; of two with one test not the authors' split."""
        finished = self.rows[self.rows["test"].notna()]
        names = [
            name
            for name in finished["task"].unique()
            if set(methods) <= {*finished.loc[finished["task"] == name, "method"]}
        ]
        return [name for name in names if not any(other == name and task in names for task, other in SAME_TEST.items())]

    def table(self, row, name):
        """A table a run left, for example numbers.csv; or None."""
        path = self.results / "runs" / records.run_key(row) / name
        return records.read_table(path) if path.exists() else None

    def authors(self, row):
        """The authors' own test figures of a row's model and method up to its epoch; empty where they published none."""
        part = published.beside(published.read(self.results, row["task"], SAME_TEST.get(row["task"])), row)
        return part.loc[part["epoch"] <= row["epochs"], "test"].dropna()


def _over_layers(counts):
    """All layers of 40-39 together: 79; NaN where nothing was counted."""
    return sum(map(int, str(counts).split("-"))) if str(counts).replace("-", "").isdigit() else float("nan")


def _options(variant):
    """Name → number of a variant's entries that belong to no plan."""
    found = records.entries(variant)
    return {name: float(value) if _is_number(value) else value for name, value in found.items() if name not in PLAN}


def _is_number(text):
    try:
        return float(text) == float(text)
    except ValueError:
        return False


def gather(results):
    """All tracked rows of a results folder, with variants as text."""
    paths = [path for profile in NEAREST if (path := Path(results) / f"{profile}.csv").exists()]
    rows = pd.concat([records.read(path) for path in paths], ignore_index=True)
    tests = Path(results) / "tests.csv"
    items = records.read_table(tests).set_index("data_sha256")["items"].to_dict() if tests.exists() else {}
    return Evidence(rows, Path(results), items)


def says(row):
    """0.838 at 17,000× after 60 epochs, on how many seeds it rests and what is known of its error; of a corpus of the papers
    that is not all there, what is."""
    note = row.get("data_note")
    said = [error(row), *([note] if row["task"] in THEIRS and isinstance(note, str) and note else [])]
    said += ["of " + row["task"]] * (row["task"] in SAME_TEST.values())
    unit = {"perplexity": " ppl", "bits_per_char": " bpc"}.get(row["metric"], "")
    return f"{row['test']:.4g}{unit} at {row['compression']:,.4g}× after {row['epochs']:.0f} epochs ({'; '.join(said)})"


def error(row):
    """one seed, 0.833 … 0.842 over test items · 2 seeds: 0.847, 0.847 · 3 seeds: 0.834 … 0.841"""
    low, high = interval(row)
    if len(row["by_seed"]) > 1:
        shown = (
            f"{low:.4g} … {high:.4g}"
            if low == low and len(row["by_seed"]) > 2
            else ", ".join(f"{t:.4g}" for t in row["by_seed"])
        )
        return f"{len(row['by_seed'])} seeds: {shown}"
    ends = " … ".join(quality(end, row["metric"]) for end in (low, high))
    return f"one seed, {ends} over test items" if low == low else "one seed"


def interval(row):
    """95 %: over seeds from three on, else over the items of the test; NaN where neither is known."""
    low, high = intervals.over_seeds(row["by_seed"])
    return (low, high) if low == low else over_items(row)


def epochs_of_the_paper(row):
    """How long the paper trains, of a run that is the beginning of that, whatever the method's options; None of others."""
    paper, ran, _ = _beside_the_papers(row)
    return paper.plan.epochs if paper and ran == paper.plan and row["epochs"] < paper.plan.epochs else None


def cut_short(row):
    """Whether a run is the beginning of the paper's own plan, the method's options among it, and not the whole of a plan of its
    own."""
    paper, plan, options = _beside_the_papers(row)
    if not paper:
        return True
    theirs = paper.of(row["method"])
    options = replace(options, kl_every=theirs.kl_every) if hasattr(theirs, "kl_every") else options
    return (plan, options) == (paper.plan, theirs)  # but for what is done for speed


def _beside_the_papers(row):
    """→ the paper's profile of a row's preset, and the row's plan and options, of a plan the paper's epochs and products; None
    each where there is none."""
    preset = PRESETS.get(row["task"], {}).get(row["model"])
    paper = preset and row["profile"] in preset.profiles and preset.profiles.get("paper")
    if not paper or row["method"] not in sparsify.names():
        return None, None, None
    ran = RunConfig.of_row(row)
    return paper, replace(ran.plan, epochs=paper.plan.epochs, products=paper.plan.products), ran.options
