"""The report, section by section: what `report.ipynb` shows cell by cell and results/report.html one under the other.

Each function makes one section from tracked tables alone, for whatever tasks and methods have rows there. A section is a title
and parts: sentences, tables of texts, figures. Sentences are written by rules (`decisions`) and name the runs they rest on.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from .. import records, sparsify
from ..files import project_root
from ..nets.file import load
from ..study.asked import study_configs
from ..study.config import RunConfig, needed
from . import claims as papers
from . import decisions, inside, plots, publish, published, timings, written
from .evidence import NEAREST
from .plots.style import telling


@dataclass(frozen=True)
class Section:
    """A title and parts to show one after the other: str, DataFrame, matplotlib figure."""

    title: str
    parts: list

    def _ipython_display_(self):
        from IPython.display import HTML, Markdown, display

        for part in self.parts:
            if isinstance(part, str):
                display(Markdown(part))
            elif isinstance(part, written.Verdicts):
                display(HTML(written.coloured(part)))
            elif isinstance(part, pd.DataFrame):
                display(Markdown(written.markdown(part)))
            else:
                display(part)
                plots.plt.close(part)


@dataclass(frozen=True)
class Setting:
    """One task's comparable models under one profile: label, the model that others count against, stem of its figures, finished
    rows and their configurations; `decided`: the answers these give."""

    label: str
    task: str
    model: str
    stem: str
    profile: str
    rows: pd.DataFrame
    table: pd.DataFrame

    @property
    def metric(self):
        return self.table["metric"].iloc[0]

    @cached_property
    def decided(self):
        return decisions.decide(self.table)


@dataclass(frozen=True)
class Tracked:
    """What is tracked in a results folder: settings, timing rows, and the folder."""

    results: Path
    settings: list
    timed: pd.DataFrame

    def runs(self, name):
        """(setting, method, table) of one run a method and setting that left this table, as `publish.per_method`."""
        for setting in self.settings:
            for method, table in publish.per_method(setting.profile, setting.rows, name, self.results):
                yield setting, method, table

    def folder(self, setting, table):
        """The tracked folder of the run a table of `runs` is of."""
        keys = table.iloc[0][["task", "model", "method", "variant", "seed"]].to_dict()
        return self.results / "runs" / records.run_key(keys | {"profile": setting.profile})

    def classes(self, task):
        """Names of a task's classes, of tests.csv; none where they are not known."""
        path = self.results / "tests.csv"
        table = records.read_table(path) if path.exists() else pd.DataFrame(columns=["task", "classes"])
        known = table.loc[table["task"] == task, "classes"]
        return known.iloc[0].split("|") if len(known) else []


def tracked(results=None):
    """The finished rows in `results` (the project's), every plan among them that was run to its end and tested."""
    results = Path(results or project_root() / "results")
    timed, settings = timings.timing_rows(results, ""), []
    for profile in reversed(NEAREST):
        for task, family, stem, rows in publish.families(records.read(results / f"{profile}.csv")):
            finished = rows[rows["test"].notna()]
            if finished.empty:
                continue
            table = publish.costs(finished, results, timed)
            nets = table[~table["method"].isin(plots.OPPONENTS)]
            label = task if nets.empty else f"{task}, {family}"
            settings.append(Setting(f"{label} ({profile})", task, family, stem, profile, finished, table))
    return Tracked(results, settings, timed)


# ---- which method, when, at what cost


def answer(tracked):
    """The first page: what the rows say in a paragraph, and the table of decisions."""
    decided = [(setting, setting.decided) for setting in tracked.settings]
    chosen = [(setting, row) for setting, table in decided for _, row in table.iterrows()]
    rows, costs = ([say(*one) for one in chosen] for say in (_decision, _cost))
    how = (
        "How it was decided: among configurations with that many times fewer weights the one best on validation; "
        f"“{decisions.EQUAL}” is the sparsest within a hundredth of the dense net there. A small dense net was small from "
        "the start: of those with as few weights as was asked for the best on validation, or the smallest; asked for "
        "equal quality the sparsest that is as good, or the best. The dense net is the best on validation with nothing "
        "left out, under dropout too. Level: chance at 95 % explains the difference, which is not to say that there is "
        "none; item by item where it is kept what each cost both nets (McNemar's test of mistakes, else a paired t test),"
        " p values of a net corrected for the number of its opponents (Holm). From three seeds on a difference has to "
        "outlast another draw of them too; of one or two it is of these runs, and none where their seeds cross. Ahead and"
        " behind: the losses of single items are not stored, and only the two figures are compared. Intervals: Student's "
        "t over seeds from three on, else over the items of the test (Wilson's of an accuracy, Student's t of others). "
        "Items of a language model are pieces of text. Weights are counted as the papers count them; multiply-adds are "
        "those with a weight that is not zero, so that looking up a word is none. In brackets the schedule: quick is "
        "minutes, short what a CPU affords of the papers' own."
    )
    parts = [
        *_sentences(decided),
        pd.DataFrame(rows),
        "What these nets cost, beside their dense nets:",
        pd.DataFrame(costs),
        how,
    ]
    return Section("Which method, when, at what cost?", parts)


def opponents(setting):
    """Every opponent of a setting, a row each, smallest first, and how each net that answers a question stands to it on test:
    verdict and p value, those of an answer held by Holm to the number of its opponents."""
    against = decisions.opponents(setting.table).sort_values("weights_kept", kind="stable")
    lines = {
        index: {
            "opponent": _named(other, setting.table),
            "test": written.with_interval(other),
            "weights": written.count(other["weights_kept"]),
        }
        for index, other in against.to_dict("index").items()
    }
    for row in setting.decided.to_dict("records"):
        name = f"{_named(row, setting.table)} ({written.quality(row['test'], setting.metric)})"
        for index, (verdict, p) in decisions.against_each(row, against).items():
            lines[index][name] = verdict if p != p else f"{verdict}, p = {p:.2g}"
    return pd.DataFrame(list(lines.values()))


TENTH = 10  # times fewer weights, of which the first sentences speak
SEVERAL = 3  # opponents from which a table of them tells more than the first one
NAME = "task", "asked for", "method"  # what a net is called in both tables
UNDER = {"binary-dropout": " under dropout"}  # of a whole net


def _called(setting, row):
    return dict(zip(NAME, (setting.label, row["asked"], _named(row, setting.table)), strict=True))


def _decision(setting, row):
    """A row of the table of decisions: what a net is as good as."""
    dense, other = decisions.whole(setting.table), decisions.opponent(setting.table)
    tiny = decisions.small(setting.table, row["least"])
    one = _called(setting, row) | {
        "measure": written.measure(setting.metric),
        "test": written.with_interval(row),
        "fewer weights": written.fewer(row["compression"]),
    }

    def further(name):
        return "".join(
            f"; {split}: {verdict} ({written.quality(ours, setting.metric)}, {written.quality(theirs, setting.metric)})"
            for split, ours, theirs, verdict in row[f"{name}_further"]
        )

    one["against dense"] = written.DASH if dense is None else (
        f"{row['dense']} ({written.quality(dense['test'], setting.metric)}{UNDER.get(dense['method'], '')}){further('dense')}"
    )  # fmt: skip
    one["against a small dense net"] = written.DASH if tiny is None else (
        f"{row['small']} ({written.quality(tiny['test'], setting.metric)} at {written.fewer(tiny['compression'])})"
        f"{further('small')}"
    )  # fmt: skip
    one["against no network"] = written.DASH if other is None else (
        f"{row['other']} ({other['method']}: {written.quality(other['test'], setting.metric)})"
    )  # fmt: skip
    return one


def _cost(setting, row):
    """A row of the table of costs: what the same net takes, and the dense one."""
    dense = decisions.reference(setting.table)

    def beside(name, say):
        if row[name] != row[name]:
            return written.DASH
        whole = math.nan if dense is None else dense[name]
        return say(row[name]) + (f" ({say(whole)})" if whole == whole else "")

    one = _called(setting, row) | {"file (dense)": beside("size_bytes", written.bytes_of)}
    ratio = _beside_dense(row, dense)
    one["training"] = written.seconds(row["train_seconds"]) + " after a dense run" * _starts_from_dense(row)
    one["training"] += "" if ratio is None else f", {ratio:.1f} × dense"
    one["a step (dense)"] = beside("step_us", lambda us: f"{us:.3g} µs")
    one["multiply-adds a step (dense)"] = beside("multiply_adds", written.count)
    return one


def _starts_from_dense(row):
    """Whether a configuration's runs start from a finished dense one, or read their thresholds from it."""
    return row["method"] in sparsify.names() and bool(needed(RunConfig.of_row(dict(row) | {"seed": 0})))


def _beside_dense(row, dense):
    """Training seconds over the dense net's, a dense run that had to be there first included; None where the two were not
    measured on one kind of processor."""
    if dense is None or row["device"] != dense["device"]:
        return None
    return row["train_seconds"] / dense["train_seconds"] + _starts_from_dense(row)


def _named(row, table):
    """A method of a table, with its model where that is another than the one it is compared with, and how its plan departs from
    that of others of the method, where that is short enough to read."""
    variant = telling(table.loc[table["method"] == row["method"], "variant"].unique())[row["variant"]]
    model = row["model"] if row["compression"] != row["compression"] else publish.other_model(row)
    said = ", ".join(filter(None, (model, variant if len(variant) <= written.SHORTENED else "")))
    return row["method"] + (f" ({said})" if said else "")


def _sentences(decided):
    """Which method to take, whether it pays, and what it loses: all settings together."""
    measured = [(s, table) for s, table in decided if decisions.reference(s.table) is not None]
    tenth = [(s, part) for s, table in measured if len(part := decisions.with_least(table, TENTH))]
    return [_taken(decided), _pays(decided), _level(measured, tenth), *_costs(decided)]


def _named_settings(settings):
    return ", ".join(f"{setting.task} {setting.model}" for setting in settings) or "none"


def _taken(decided):
    """Which methods the nets with a tenth of the weights or fewer come from, and how many were in the race."""
    asked = f"≥ {TENTH:,}×"
    by_method = {}
    for setting, table in decided:
        for row in table[table["asked"].str.split(", ").map(lambda names: asked in names)].to_dict("records"):
            of = decisions.entrants(setting.table, TENTH)
            by_method.setdefault(row["method"], []).append(f"{setting.task} {setting.model} (of {of})")
    order = sorted(by_method.items(), key=lambda item: -len(item[1]))
    text = "**Which method?** Best on validation with a tenth of the weights or fewer, of so many methods with such a net: "
    text += "; ".join(f"{method} on {', '.join(settings)}" for method, settings in order)
    return text + ". A race of two or three says little of the others."


def _pays(decided):
    """Where a net beats what is cheaper to have: one that was small from the start, and what is no network."""
    text = "**Does it beat training something small?** At 95 %, a net of the table below is better than "
    said = []
    for column, what in (
        ("small", "the small dense net that answers the same question"),
        ("other", "the best opponent that is no recurrent net"),
    ):
        known = [(s, table) for s, table in decided if len(table) and (table[column] != "").any()]
        ahead = [(s, table[table[column] == "better"]) for s, table in known]
        ahead = [(s, table[f"{column}_seeds"].max()) for s, table in ahead if len(table)]
        parts = [f"{what} in {len(ahead)} of the {len(known)} settings that have one"]
        for which, words in (
            ([s for s, seeds in ahead if seeds >= SEVERAL], "over three seeds or more"),
            ([s for s, seeds in ahead if seeds < SEVERAL], "in one run or two, which says nothing of other seeds"),
        ):
            parts += [f"{words}: {_named_settings(which)}"] * bool(which)
        said.append("; ".join(parts))
    return (
        text
        + ". And than ".join(said)
        + ". Elsewhere it is level or worse: there it has not earned its training, or its recurrence."
    )


def _level(measured, tenth):
    """What is lost against the dense net with a tenth of the weights."""
    level, lost = [], []
    for setting, part in tenth:
        worse = part["dense_further"].map(lambda tests: any(verdict == "worse" for *_, verdict in tests))
        fine = part[part["dense"].isin(["better", "level", "ahead"]) & ~worse]
        row = (fine if len(fine) else part).sort_values("compression").iloc[-1]
        named = f"{setting.label}: {row['method']} with {written.times(row['compression'])} fewer weights"
        (level if len(fine) else lost).append(named)
    never = [s for s, _ in measured if s.label not in {t.label for t, _ in tenth}]
    single = [s for s, table in measured if len(table) and (table["seeds"] < 2).all()]
    text = f"**What does it cost in quality?** Of {len(measured)} settings with a dense net, a net with at most a tenth of the "
    text += (
        f"weights is level with the best whole one, under dropout too, or ahead of it, on every test in {len(level)}"
    )
    text += f", and behind it in {len(lost)} ({'; '.join(lost)})" if lost else ""
    text += f"; in {len(never)} ({_named_settings(never)}) no net chosen here keeps that little" if never else ""
    return text + f". In {len(single)} settings every net of the table is of one seed ({_named_settings(single)})."


def _costs(decided):
    """What training and running cost beside the dense net, where both were measured on one device."""
    ratios = []
    for setting, table in decided:
        dense = decisions.reference(setting.table)
        found = [_beside_dense(row, dense) for row in table.to_dict("records")]
        ratios += [ratio for ratio in found if ratio is not None]
    text = ""
    if ratios:
        text = f"The nets chosen took {min(ratios):.1f} to {max(ratios):.1f} times the training seconds of their dense net on "
        text += f"the same kind of processor (median {np.median(ratios):.1f}, {len(ratios)} nets; times of older runs have their "
        text += "pauses in them, those of a run that starts from a dense net that one). "
    steps = [
        (setting, dense["step_us"] / row["step_us"])
        for setting, table in decided
        if (dense := decisions.reference(setting.table)) is not None
        for row in table.to_dict("records")
        if row["step_us"] == row["step_us"] and dense["step_us"] == dense["step_us"]
    ]
    if steps:
        gains = [gain for _, gain in steps]
        text += f"A step of one sequence is {min(gains):.1f} to {max(gains):.0f} times as fast as the dense net's by the engine "
        text += f"that is fastest with it, int8 among them ({len(gains)} nets timed, on one core of a CPU)."
    return [text] if text else []


# ---- fronts, claims, gates, costs


def fronts(tracked):
    """A figure a setting: test quality against weights, bytes, multiply-adds and microseconds."""
    words = (
        "Left is cheaper. A large mark is a configuration, a small one a seed. Bars are 95 % intervals: over seeds where there "
        "are three or more, else over the items of the test (of a language model pieces of its text, so long that one tells "
        "little of the next). Hollow marks are no networks."
    )
    parts = [words]
    for setting in tracked.settings:
        parts += [f"**{setting.label}** – {written.words_of(setting.metric)}.", plots.cost_front(setting.table)]
    return Section("Quality on the test against what it costs", parts)


def against_opponents(tracked):
    """A table a setting that has several opponents: how its answers stand to every one of them."""
    words = (
        "Each net of the first table against every opponent: dense nets of whatever size and plan, and what is no network, "
        "smallest first. p values of a column are held to the number of its opponents by Holm."
    )
    parts = [words]
    for setting in tracked.settings:
        if len(decisions.opponents(setting.table)) >= SEVERAL and len(setting.decided):
            parts += [f"**{setting.label}** – {written.words_of(setting.metric)}.", opponents(setting)]
    return Section("Against every opponent", parts)


def beside_authors(tracked):
    """Validation on the way there beside the authors' own curves, where they published any."""
    parts = ["A dot an epoch, threshold or strength of L1; a ring what was chosen; dotted, the authors' way by epoch."]
    for setting in tracked.settings:
        theirs = published.of_family(tracked.results, setting.task, setting.model)
        if len(theirs):
            paths = publish.paths_of(setting.profile, setting.task, setting.rows, tracked.results)
            parts += [f"**{setting.label}**", plots.fronts(paths, theirs)]
    return Section("On the way there, beside the authors' curves (validation)", parts)


def claims(tracked):
    """What the papers say, what was measured here, and the verdict."""
    table = papers.table(tracked.results)
    plain, elsewhere = table["verdict"].str.split(",").str[0], table["verdict"].str.contains(",")
    counts, others = plain.value_counts(), plain[elsewhere].value_counts()
    said = {
        verdict: f", {others[verdict]} of them on other data than the papers'" if verdict in others else ""
        for verdict in counts.index
    }
    text = "; ".join(f"{verdict}: {number}{said[verdict]}" for verdict, number in counts.items())
    shown = table.rename(columns={"says": "the papers", "here": "here"})[["claim", "the papers", "here", "verdict"]]
    return Section(
        "What the papers claim", [f"{len(table)} claims. {text}.", shown[shown["verdict"] != papers.NOT_RUN]]
    )


def gates(tracked):
    """Which gates live, side by side over tasks and methods."""
    tables = [table for _, _, table in tracked.runs("gates.csv")]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    words = "A gate that hears nothing is a constant. Of the neurons a network kept, the share whose gate of each type is live:"
    return Section("Which gates live", [words, plots.gate_patterns(table)])


def small_ones(tracked):
    """Of the networks that were chosen those small enough to be read: one neuron as formulas, a few dozen as a table."""
    parts = []
    chosen = {(s.label, method) for s in tracked.settings for method in s.decided["method"]}
    for setting, method, table in tracked.runs("gates.csv"):
        path = tracked.folder(setting, table) / "model.safetensors"
        if (setting.label, method) not in chosen or not path.exists():
            continue
        small, classes = load(path), tracked.classes(setting.task)
        found, lines = inside.neuron_table(small, classes), inside.formula(small, classes)
        name = f"**{setting.label}, {method}** (seed {table['seed'].iloc[0]})"
        if lines:
            parts += [
                f"{name}: the whole network, but for its list of numbers e(word); ′ is the step before.",
                "\n\n".join(lines),
            ]
        elif len(found):
            parts += [
                f"{name}: {len(found)} neurons. A number is a constant gate; “hears 24 + 1”: 24 inputs and one neuron.",
                found,
            ]
    return Section("Networks small enough to read", parts or ["No tracked network is as small as that."])


def verdicts(tracked):
    """Whole texts of the validation split with the verdict after each word, of the runs that left one."""
    parts = []
    for setting, method, table in tracked.runs("verdict.csv"):
        last = tracked.classes(setting.task)[-1:] or ["the last class"]
        words = f"blue is for {last[0]}, orange against; in brackets the chance it gives that at the end."
        parts += [f"**{setting.label}, {method}**: {words}", written.Verdicts(table)]
    return Section("Whole texts with the running verdict", parts or ["No run left one."])


def training(tracked):
    """What training cost: seconds of a run, its epochs, and seconds against the dense net's."""
    rows = []
    for setting in tracked.settings:
        dense = decisions.reference(setting.table)
        for row in setting.table.to_dict("records"):
            same = dense is not None and row["device"] == dense["device"]
            rows.append(
                {
                    "task": setting.label,
                    "method": _named(row, setting.table),
                    "training": written.seconds(row["train_seconds"]),
                    "epochs": written.count(row["epochs"]),
                    "× dense": f"{row['train_seconds'] / dense['train_seconds']:.1f}" if same else written.DASH,
                    "runs": str(row["seeds"]),
                    "on": row["device"].removeprefix("cpu:"),
                }
            )
    words = (
        "Of one run (the median where there are several), without that of a finished net it starts from (one-shot), on a CPU "
        "without pauses and others' turns; of the older runs, those of AG News and imdb-authors among them, the wall's, pauses "
        "counted. × dense: of those on one device."
    )
    return Section("What training cost", [words, pd.DataFrame(rows)])


def coverage(tracked):
    """How many seeds of a method were run on a task, of its configurations the one with most, a row a method; in brackets the
    configurations that have a row, one broken off on validation too, where they are several."""
    tables = [setting.table.assign(task=setting.task) for setting in tracked.settings]
    seeds = pd.concat(tables).groupby(["method", "task"])["seeds"].max()
    rows = pd.concat([records.read(tracked.results / f"{profile}.csv").assign(profile=profile) for profile in NEAREST])
    tried = rows.drop_duplicates(["task", "method", "profile", "model", "variant"]).groupby(["method", "task"]).size()
    cells = {key: f"{n:.0f} ({tried[key]})" if tried[key] > 1 else f"{n:.0f}" for key, n in seeds.items()}
    found = pd.Series(cells).unstack()
    order = found.notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    return found.loc[order].fillna(written.DASH).rename_axis("method").reset_index()


def not_run(tracked):
    """What the study files ask for that has no finished row, and the claims that nothing speaks to."""
    rows = []
    owed = sorted(path.name for path in project_root().glob("*.yaml") if path.name not in publish.STUDIES)
    for name in (*publish.STUDIES, *owed):
        for study in publish.studies([name]):
            asked, absent = len(study_configs(study)), publish.owed(study, tracked.results)
            by_task = pd.Series([config.task for config in absent], dtype=str).value_counts()
            rows.append({"study file": name, "runs asked for": str(asked), "finished": str(asked - len(absent)),
                         "not run": ", ".join(f"{task}: {n}" for task, n in by_task.items()) or written.DASH})  # fmt: skip
    table = papers.table(tracked.results)
    silent = table[table["verdict"] == papers.NOT_RUN].rename(columns={"says": "the papers", "here": "why"})
    parts = ["Seeds of a method on a task, of its configurations the one with most (in brackets: configurations):"]
    parts.append(coverage(tracked))
    parts += ["What the study files ask for:", pd.DataFrame(rows), "What the papers claim and nothing here speaks to:"]
    return Section("What was not run", [*parts, silent[["claim", "the papers", "why"]]])


SECTIONS = (answer, fronts, against_opponents, claims, beside_authors, gates, small_ones, verdicts, training, not_run)
