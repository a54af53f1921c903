"""Which method, when, at what cost: answered from rows by rules, so that no sentence claims more than its rows carry.

A configuration is a method with a plan; its figures are means over seeds. What is kept at most is asked for (`RUNGS`), the
configuration is chosen on validation, and only then is its test figure compared with every opponent's, item by item where both
say what they got wrong (`paired`), with the p values of an answer held to the number of its opponents by Holm, so that a pair
has one verdict wherever it is shown. "Level" is a difference within chance at 95 %, and where no error is known it is said so.
"""

import math

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from . import intervals, paired
from .plots.style import METRICS, OPPONENTS

RUNGS = (2, 10, 50, 1000)  # times fewer weights that somebody may ask for
REFERENCE = "dense"  # the method that leaves nothing out
WHOLE = REFERENCE, "binary-dropout"  # methods whose nets are whole
SMALL = (
    REFERENCE,
    "few-words",
)  # methods whose nets, where they are smaller than the reference, were so from the start
SMALLER = 1.05  # times fewer weights than the reference
EQUAL = "equal quality"
ENOUGH = 0.995  # of what was asked for: a tenth of an odd number of weights is 9.9997 times fewer, and is said to be 10
NEAR = 0.01  # that a figure on validation may be worse and still be called equal: of a share as it is, of others times the dense
MEANS = ("valid", "test", "compression", "weights_kept", "size_bytes", "size_bytes_dense", "multiply_adds", "train_seconds",
         "epochs")  # fmt: skip
KEYS = ["task", "model", "method", "variant"]


def configurations(rows, items, mistakes=lambda row: None):
    """Finished rows of one task's comparable models → a row a configuration, in the rows' order.

    items     data_sha256 → how many items the test of a task with an accuracy has (results/tests.csv)
    mistakes  what a row's run got wrong, item by item (`study.evaluation.mistakes`), or None
    → KEYS, metric, profile, the means of MEANS (train_seconds: the median), seeds, tests, kept and wrong (a tuple, one a seed),
    items, item_low and item_high, seed_low and seed_high (`intervals`), device, data_note, data_sha256, started_small.
    """
    found = []
    for keys, part in rows.assign(variant=rows["variant"].fillna("")).groupby(KEYS, sort=False):
        first = part.iloc[0]
        row = dict(zip(KEYS, keys, strict=True)) | {name: part[name].astype(float).mean() for name in MEANS}
        row |= {name: first[name] for name in ("metric", "profile", "device")}
        row |= {"train_seconds": part["train_seconds"].median(), "seeds": len(part), "by_seed": tuple(part["test"])}
        row |= {
            "kept": tuple(part["weights_kept"]),
            "data_note": first["data_note"],
            "data_sha256": first["data_sha256"],
        }
        row["wrong"] = tuple(mistakes(one) for one in part.to_dict("records"))
        row["items"] = items.get(first["data_sha256"], math.nan) if first["metric"] == "accuracy" else math.nan
        row["item_low"], row["item_high"] = over_items(row)
        row["seed_low"], row["seed_high"] = intervals.over_seeds(row["by_seed"])
        found.append(row)
    table = pd.DataFrame(found)
    return table.assign(started_small=were_small(table)) if found else table


def sign_of(metric):
    """1 where more is better, −1 where less is."""
    return 1 if METRICS[metric][1] == "higher" else -1


def over_items(row):
    """95 % interval of a test figure over the test's items, of a row with items and wrong: Wilson's of an accuracy, else by what
    each item cost; (NaN, NaN) where nothing is known of them."""
    if row["items"] == row["items"]:
        return intervals.over_items(row["test"], row["items"])
    return paired.over_items(row["wrong"], row["metric"])


def best(table):
    """The configuration that is best on validation; None of a table without any figure there."""
    table = table[table["valid"].notna()]
    if table.empty:
        return None
    return table.iloc[int(np.argmax(sign_of(table["metric"].iloc[0]) * table["valid"].to_numpy()))]


def reference(table):
    """The dense net that the others' weights count against, not a smaller or larger one, under its best plan on validation; None
    where there is none."""
    dense = table[table["method"] == REFERENCE]
    size = dense["compression"].map(math.log).abs()
    return best(dense[size == size.min()])


def whole(table):
    """What a net that was made small is held to: the best net on validation with nothing left out, dense or under dropout, of
    the reference's size; None where there is none."""
    if (dense := reference(table)) is None:
        return None
    alike = (table["compression"] / dense["compression"]).map(math.log).abs() < math.log(SMALLER)
    return best(table[table["method"].isin(WHOLE) & alike])


def opponent(table):
    """The best opponent on validation that is no network; None where there is none."""
    return best(table[table["method"].isin(OPPONENTS)])


def with_least(table, times):
    """The rows with at least so many times fewer weights than the reference."""
    return table[table["compression"] >= ENOUGH * times]


def were_small(table):
    """bool a row: whether it was small and dense from the start."""
    return table["method"].isin(SMALL) & (table["compression"] > SMALLER)


def made_small(table):
    """The rows of nets that may answer a question: no opponents, and not what was small from the start."""
    return table[~table["method"].isin(OPPONENTS) & ~were_small(table)]


def entrants(table, least):
    """How many methods made a net of at least so many times fewer weights."""
    return with_least(made_small(table), least)["method"].nunique()


def sparsest_as_good(nets, dense):
    """The sparsest of some nets that is as good on validation as a whole one, but for NEAR; None where none is."""
    metric = dense["metric"]
    slack = NEAR * (dense["valid"] if metric in ("perplexity", "bits_per_char") else 1)
    equal = nets[sign_of(metric) * (nets["valid"] - dense["valid"]) >= -slack]
    return None if equal.empty else equal.loc[equal["compression"].idxmax()]


def small(table, least):
    """What was small and dense from the start and has at least so many times fewer weights (0: any), the best on validation; the
    smallest where none has; None where there is none at all."""
    nets = table[were_small(table)]
    if nets.empty:
        return None
    enough = with_least(nets, least)
    return nets.loc[nets["weights_kept"].idxmin()] if enough.empty else best(enough)


def p_value(one, other):
    """Of equal test figures of two configurations; NaN where no error is known.

    Item by item where both kept what they got wrong, else of the figures alone, and by the seeds' figures as well
    (`outlasting_seeds`).
    """
    ours, theirs = one["by_seed"], other["by_seed"]
    kept = all(wrong is not None for wrong in (*one["wrong"], *other["wrong"]))
    try:
        same = kept and one["data_sha256"] == other["data_sha256"]
        p = paired.p_value(one["wrong"], other["wrong"]) if same else intervals.p_value(ours, theirs, one["items"])
    except ValueError:  # other items, or too few
        p = intervals.p_value(ours, theirs, one["items"])
    return outlasting_seeds(p, ours, theirs)


def outlasting_seeds(p, ours, theirs):
    """The p value of a difference that has to outlast another draw of the items, whose p is given, and another of the seeds: from
    three each on the larger of the two, with fewer 1 where not all of one side's lie on one side of all of the other's."""
    if min(len(ours), len(theirs)) >= 3:
        seeds = intervals.p_value(ours, theirs)
        return p if seeds != seeds else max(p, seeds)
    crossing = max(ours) >= min(theirs) and max(theirs) >= min(ours)
    return 1.0 if max(len(ours), len(theirs)) > 1 and crossing else p


def against(one, other, p):
    """better | level | worse on test, at 95 %; where no error is known (p is NaN) "ahead" or "behind", which claims no more."""
    ahead = sign_of(one["metric"]) * (one["test"] - other["test"]) > 0
    if p != p:
        return "ahead" if ahead else "behind"
    return "level" if p >= 1 - intervals.LEVEL else "better" if ahead else "worse"


def further(one, other):
    """(split, figure of the first, of the other, `against`) of every further test that all their runs kept item by item: of other
    speakers, in noise. p values are held to the number of these tests by Holm."""
    if other is None or any(wrong is None for wrong in (*one["wrong"], *other["wrong"])):
        return []
    metric, found = one["metric"], []
    try:
        ours, theirs = paired.mean_of(one["wrong"]), paired.mean_of(other["wrong"])
        splits = [
            name.removesuffix(".of") for name in ours if name.endswith(".of") and name in theirs and name != "test.of"
        ]
        by_seed = {
            split: [[paired.rate_of(run, split) for run in row["wrong"]] for row in (one, other)] for split in splits
        }
        ps = [
            outlasting_seeds(paired.p_value(one["wrong"], other["wrong"], split), *by_seed[split]) for split in splits
        ]
    except ValueError:  # other items
        return []
    for split, p in zip(splits, multipletests(ps, method="holm")[1] if ps else [], strict=True):
        rates = [paired.rate_of(run, split) for run in (ours, theirs)]
        verdict = "level" if p >= 1 - intervals.LEVEL else "better" if rates[0] < rates[1] else "worse"
        found.append((split, *(paired.figure_of(rate, metric) for rate in rates), verdict))
    return found


def against_each(row, others):
    """How a configuration stands to each of a table of others on test: index → (`against`, p value), p values held by Holm to
    the number of those that are another one."""
    found = others.to_dict("index")
    ps = {i: p_value(row, other) for i, other in found.items() if any(row[name] != other[name] for name in KEYS)}
    known = [i for i, p in ps.items() if p == p]
    held = multipletests([ps[i] for i in known], method="holm")[1] if known else []
    ps |= dict(zip(known, held, strict=True))
    return {i: (against(row, other, ps.get(i, 1.0)), ps.get(i, 1.0)) for i, other in found.items()}


def opponents(table):
    """What any net that was made small is set against: nets with nothing left out, dense of whatever size and plan, under dropout
    too, and what is no network."""
    all_there = table["compression"] == 1
    return table[all_there | table["method"].isin((*SMALL, *OPPONENTS))]


def decide(table):
    """Configurations → an answer a question: + asked (what was asked for), least (times fewer weights that were asked for, of
    several rungs the highest), dense, small and other (`against` the `whole` net,
    the `small` one and the `opponent`, "" where there is none), small_seeds and other_seeds (its own or those of the small one,
    which are fewer; what is no network has none of its own), dense_further and small_further (`further` of them).

    A rung asks for the best net that was made small and has that many times fewer weights; `EQUAL` for the sparsest that is
    within NEAR of the whole one; both on validation. Questions with one answer are one row; what no net here reaches has none.
    What was small from the start is no answer: it is set against one, and answers the same question: the best of those that have
    as few weights as was asked for, or the sparsest that is as good as the whole net (the best, where none is).
    """
    nets = made_small(table)
    dense, other, everyone = whole(table), opponent(table), opponents(table)
    asked = [(f"≥ {rung:,}×", rung, best(with_least(nets, rung))) for rung in RUNGS]
    if dense is not None and (row := sparsest_as_good(with_least(nets, RUNGS[0]), dense)) is not None:
        asked.append((EQUAL, 0, row))
    answers = {}
    for question, least, row in asked:
        if row is not None:
            _, before, questions = answers.get(row.name, (row, 0, []))
            answers[row.name] = row, least or before, [*questions, question]
    rows = []
    for row, least, questions in answers.values():
        verdicts, tiny = against_each(row, everyone), small(table, least)
        if not least:  # asked the same: how small it may be and as good
            same = sparsest_as_good(with_least(table[were_small(table)], RUNGS[0]), dense)
            tiny = tiny if same is None else same
        said = {"asked": ", ".join(questions), "least": least, "other_seeds": row["seeds"]}
        for name, one in (("dense", dense), ("small", tiny), ("other", other)):
            said[name] = "" if one is None else verdicts[one.name][0]
        said["small_seeds"] = 0 if tiny is None else min(row["seeds"], tiny["seeds"])
        said |= {f"{name}_further": further(row, one) for name, one in (("dense", dense), ("small", tiny))}
        rows.append(row.to_dict() | said)
    columns = [*table.columns, "asked", "least", "dense", "small", "other", "small_seeds", "other_seeds"]
    columns += ["dense_further", "small_further"]
    return pd.DataFrame(rows, columns=columns, index=list(answers))
