"""The results of the study: quality against compression, beside the authors' own, and bytes on disk."""

import math

import numpy as np
import pandas as pd

from .style import (
    BLACK,
    BLUE,
    GREY,
    METRICS,
    OPPONENTS,
    apart,
    best_of,
    log_counts,
    look,
    metric_of,
    say,
    size,
    styled,
    subplots,
    telling,
    times,
    title,
    unique_legend,
)

FILES = {"dense": (BLACK, ""), "compact": (BLUE, "///"), "floor": (GREY, "...")}


def _named(row, same):
    """What tells a configuration from the others of its method: its model where they differ in it, and of its variant what
    not all have, `a=1,b=2,c=3,d=4` as `a=1 and 3 more` where it would not fit beside a point."""
    variant = telling(same["variant"])[row.variant]
    parts = variant.split(",")
    variant = variant if len(variant) <= 40 else f"{parts[0]} and {len(parts) - 1} more"
    return ", ".join(filter(None, (row.model if same["model"].nunique() > 1 else "", variant)))


SPARSE = 1.5  # times fewer weights, from which on a net is called sparse
CROWD = 6  # methods from which on rings are small
MOST_NAMED = 6  # methods in a sentence over a figure; of more, those that no other beats


@styled
def front(table, ax=None, quality="test"):
    """Quality against compression, a small point a run, a large one the mean of a method's seeds; one task.

    table: rows of results/<profile>.csv. Where it has a column `asked`, rows with False (plans that a study tried and does
    not ask for) are pale, and no part of the finding. A method asked for under several plans has them beside its points.
    Opponents that are no network are hollow; one without a compression is a line. In view are the rows asked for and what
    is within 15% of the best.
    """
    ax = ax or subplots(6.4, 4.2)[1]
    if table.empty:
        return say(ax, "no finished run yet")
    if table["task"].nunique() > 1:
        raise ValueError(f"one front shows one task; the table has {', '.join(table['task'].unique())}")
    words, better = metric_of(table)
    rows = table.assign(compression=pd.to_numeric(table["compression"]).where(lambda c: np.isfinite(c)))
    rows = rows.assign(variant=rows["variant"].fillna(""), asked=rows.get("asked", True))
    for row in rows[~rows["asked"]].itertuples():
        colour, marker, _ = look(row.method)
        ax.plot(row.compression, getattr(row, quality), marker, color=colour, ms=4, alpha=0.45, mew=0, zorder=2)
    if not rows["asked"].all():
        ax.plot([], [], "o", color=GREY, ms=4, alpha=0.45, mew=0, label="another plan")
    asked = rows[rows["asked"]]
    runs = asked.groupby(["method", "model", "variant"], as_index=False, sort=False, dropna=False)
    means, names = runs[["compression", quality]].mean(), []
    for row in means.itertuples():
        colour, marker, dash = look(row.method)
        value = getattr(row, quality)
        if math.isnan(row.compression):  # no network and no weights to count: a level to be under or over
            ax.axhline(value, color=colour, ls=dash, lw=1.6, zorder=1, label=row.method)
            ax.annotate(row.model, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                        textcoords="offset points", color=colour, fontsize=8)  # fmt: skip
            continue
        fill = {"mfc": "white", "mew": 1.6} if row.method in OPPONENTS else {"mec": "white"}
        big = 11 if marker == "*" else 9
        ax.plot(row.compression, value, marker, color=colour, ms=big, label=row.method, zorder=3, **fill)
        same = means[means["method"] == row.method]
        if 1 < len(same) <= MOST_NAMED:  # of more the table says what they are
            right = row.compression**2 > means["compression"].max()  # in the right half words run to the left
            names.append(ax.annotate(_named(row, same), (row.compression, value), xytext=(-8 if right else 7, 3),
                                     textcoords="offset points", fontsize=7, ha="right" if right else "left"))  # fmt: skip
    for method, part in asked[asked["compression"].notna()].groupby("method"):
        if part.duplicated(["model", "variant"]).any():
            colour, marker, _ = look(method)
            ax.plot(part["compression"], part[quality], marker, color=colour, ms=4, alpha=0.45, zorder=2)
    ax.set(xscale="log", xlabel="compression: weights of the dense net ÷ weights kept")
    ax.set_ylabel(f"{quality} {words} ({better} is better)")
    ax.margins(0.1, 0.12)
    out = ~_in_view(rows[quality], rows["asked"], better)
    if out.any():
        low, high = _limits(rows[~out][quality])
        ax.set_ylim(low, high)
        ax.annotate(f"{out.sum()} more out of view", (0.01, 0.02), xycoords="axes fraction", fontsize=7, color="0.4")
    log_counts(ax.xaxis)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    runs = "one run" if len(asked) == 1 else f"{len(asked)} runs"
    title(ax, f"{front_finding(means, quality, words, better)} ({runs})")
    apart(names)
    return ax


def _in_view(values, wanted, better):
    """bool: what is wanted, or within 15% of the best."""
    sign, best = (1 if better == "higher" else -1), best_of(values, better)
    return (sign * (values - best) > -0.15 * abs(best)) | wanted


def _limits(values):
    """Least and most, with a rim."""
    rim = 0.08 * max(values.max() - values.min(), 1e-9)
    return values.min() - rim, values.max() + rim


SPREAD = 20  # times the least: from there on what lies near it is told apart by its logarithm alone


RIM = 1.25  # of a logarithmic axis


def _look_at(ax, values, *tables):
    """Limits of quality for the values that are to be in view, on a logarithmic axis where they are spread wide, and of weights
    for the points of all tables that lie between them."""
    least = values[values > 0].min()
    (low, high), scale = _limits(values), {"value": "linear"}
    if values.min() >= 0 and values.max() > SPREAD * least:  # 0 stands half a decade below the least
        low, high = (least / RIM if values.min() else -least / 2), values.max() * RIM
        scale = {"value": "log"} if values.min() else {"value": "symlog", "linthresh": least, "linscale": 0.5}
    ax.set_yscale(**scale)
    ax.set_ylim(low, high)
    seen = pd.concat([table.loc[table["valid"].between(low, high), "compression"] for table in tables])
    ax.set_xlim(seen.min() / RIM, seen.max() * RIM)


def near_best(values, words, better):
    """bool a value: whether it is near the best, and how near that is, in words: of an error rate, whose best may be
    next to nothing, in points."""
    sign, best = (1 if better == "higher" else -1), best_of(values, better)
    slack, within = 0.02 * abs(best), "2 %"
    if words == METRICS["label_error_rate"][0]:
        slack, within = 0.002, "0.2 points"
    return sign * (values - best) >= -slack, within


def front_finding(means, quality, words, better):
    """The sentence over a front: the sparsest network near the best one, and what an opponent makes of it."""
    nets = means[~means["method"].isin(OPPONENTS) & means["compression"].notna()]
    if nets.empty:
        return f"No network yet, only opponents: best {words} {best_of(means[quality], better):.3g}"
    sign = 1 if better == "higher" else -1
    best = best_of(nets[quality], better)
    close, within = near_best(nets[quality], words, better)
    near = nets[close & (nets["compression"] >= SPARSE)]
    if near.empty:
        return f"No sparse net within {within} of the best one: {best:.3g} {words}"
    row = near.loc[near["compression"].idxmax()]
    text = f"{row['method']}: {times(row['compression'])} at {row[quality]:.3g} {words}, "
    text += f"the sparsest within {within} of the best net"
    others = means[means["method"].isin(OPPONENTS)]
    beats = others[(sign * (others[quality] - row[quality]) >= 0) & ~(others["compression"] < row["compression"])]
    if len(others):
        text += f"; {beats.iloc[0]['method']} beats it" if len(beats) else "; no opponent beats it on both"
    return text


@styled
def fronts(points, published=None):
    """Validation quality against compression, all that was seen on the way: a dot an epoch, threshold or strength of L1,
    a line a method's best, a ring what a configuration's runs chose, their mean; dotted to an open mark, the authors' own way
    where they published it.
    In view are the chosen ones and what is within 15% of the best.

    points: task, model, method, variant, compression, valid, metric, chosen. published: rows of results/published.csv.
    """
    if points.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no run left a path")
        return figure
    figure, ax = subplots(7.4, 4.6)
    words, better = metric_of(points)
    sign = 1 if better == "higher" else -1
    points = points.assign(compression=pd.to_numeric(points["compression"]))
    points = points[np.isfinite(points["compression"]) & points["valid"].notna()]
    for method, part in points.groupby("method", sort=False):
        colour, marker, dash = look(method)
        ordered = part.sort_values("compression", ascending=False)
        best = ordered[(sign * ordered["valid"]).cummax().diff().fillna(1) > 0]
        ax.plot(part["compression"], part["valid"], marker, color=colour, ms=3, alpha=0.35, ls="none", mew=0)
        ax.plot(best["compression"], best["valid"], color=colour, ls=dash, lw=1.4, marker=marker, ms=4.5, label=method)
        chosen = part[part["chosen"].astype(bool)].assign(
            model=part["model"].fillna(""), variant=part["variant"].fillna("")
        )
        chosen = chosen.groupby(["model", "variant"])[["compression", "valid"]].mean()  # a ring a configuration
        ring = 11 if points["method"].nunique() <= CROWD else 7
        ax.plot(chosen["compression"], chosen["valid"], "o", ms=ring, mfc="none", mec=BLACK, mew=1.2, label="chosen")
    runs = [] if published is None else [name for name in ("method", "model", "variant") if name in published]
    for (method, *_), part in published.groupby(runs, sort=False) if runs else ():
        part = part[part["valid"].notna()]
        others = "model" in part and not set(part["model"]) & set(points.loc[points["method"] == method, "model"])
        if method not in set(points["method"]) or part.empty or others:
            continue
        colour, marker, _ = look(method)
        if len(part) > 1:
            way = {"color": colour, "ls": (0, (1, 2)), "lw": 1.2, "label": "the authors', by epoch"}
            ax.plot(part["compression"], part["valid"], **way)
        end = part.iloc[-1]
        ax.plot(end["compression"], end["valid"], marker, color=colour, mfc="white", ms=6, label="the authors' end")
    ax.set(xscale="log", xlabel="compression: weights of the dense net ÷ weights kept")
    wanted = _in_view(points["valid"], points["chosen"].astype(bool), better)
    _look_at(ax, points.loc[wanted, "valid"], points, *([] if published is None or published.empty else [published]))
    ax.set_ylabel(f"validation {words} ({better} is better)")
    log_counts(ax.xaxis)
    ax.grid(color="0.92", lw=0.6)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    title(figure, chosen_finding(points[points["chosen"].astype(bool)], sign))
    return figure


def chosen_finding(points, sign):
    """The sentence over all that was seen: where each method's chosen runs lie, of one with several configurations (another
    size, another plan) those at both ends; of many methods those that no other beats."""
    plans = points.groupby(["method", "model", "variant"], sort=False, dropna=False)
    means = plans[["compression", "valid"]].mean().assign(runs=plans.size()).reset_index()
    said = "Chosen on validation – "
    if means["method"].nunique() > MOST_NAMED:
        beaten = [
            ((means["compression"] >= row.compression) & (sign * (means["valid"] - row.valid) > 0)).any()
            for row in means.itertuples()
        ]
        means, said = means[[not b for b in beaten]], "Chosen on validation, none better and sparser – "
    found = []
    for method, part in means.groupby("method", sort=False):
        ends = part.sort_values("compression").iloc[[0, -1]] if len(part) > 1 else part
        counted = f"{len(part)} configurations, " * (len(part) > 1) + f"{part['runs'].sum()} runs"
        text = " … ".join(f"{row.valid:.3g} at {times(row.compression)}" for row in ends.itertuples())
        found.append(f"{method}: {text}" + (f" ({counted})" if part["runs"].sum() > 1 else ""))
    return said + "; ".join(found)


@styled
def beside_published(curves, published):
    """Validation quality and compression by epoch, ours (full, a line a seed; dashed, plans that ended worse than the method's
    best) beside the authors' (dotted, open markers), a colour a method; a large mark at the end of each.

    curves: `tables.tidy_metrics` of several runs of a task; published: rows of results/published.csv of that task.
    """
    words, better = metric_of(curves)
    published = published[published["epoch"].notna()]
    curves = curves.assign(variant=curves["variant"].fillna("") if "variant" in curves else "")
    figure, axes = subplots(9, 3.6, 1, 2)
    plans = {method: _best_plan(part, better) for method, part in curves.groupby("method", sort=False)}
    for ax, column in zip(axes, ("valid", "compression"), strict=True):
        for method, part in curves[curves["epoch"] > 0].groupby("method", sort=False):
            if method in OPPONENTS:
                continue
            colour, marker, _ = look(method)
            for (variant, _), run in part.groupby(["variant", "seed"]):
                line = "-" if variant == plans[method] else "--"
                run = run[(run["compression"] != 1) | (column == "valid")]  # before anything is removed
                every = None if len(run) <= 25 else 0.08  # of the figure's size
                ax.plot(run["epoch"], run[column], color=colour, marker=marker, markevery=every, ms=3.5, lw=1.3, ls=line,
                        label=f"{method}, {'here' if line == '-' else 'another plan'}")  # fmt: skip
                ax.plot(
                    run["epoch"].iloc[-1:], run[column].iloc[-1:], marker, color=colour, mec="white", ms=8, zorder=3
                )
            theirs = published[(published["method"] == method)]
            if len(theirs):
                ax.plot(theirs["epoch"], theirs[column], color=colour, marker=marker, mfc="white", ms=4.5, ls=":",
                        label=f"{method}, authors")  # fmt: skip
                end = theirs[theirs[column].notna()].iloc[-1:]
                ax.plot(end["epoch"], end[column], marker, color=colour, mfc="white", ms=8, zorder=3)
        ax.set(xscale="log", xlabel="epoch", ylabel=f"validation {words}" if column == "valid" else "compression")
        log_counts(ax.xaxis)
        if column == "compression" or better == "lower":
            ax.set_yscale("log")
            log_counts(ax.yaxis)
    unique_legend(axes[1], loc="upper left", bbox_to_anchor=(1.01, 1))
    found, named = [], [method for method in plans if method in set(published["method"])]
    for method in named:
        part, theirs = curves[(curves["method"] == method) & (curves["variant"] == plans[method])], published
        theirs = theirs[(theirs["method"] == method) & theirs["valid"].notna()]
        if len(theirs) and method not in OPPONENTS:
            kept = theirs["compression"].nunique() == 1  # what loses no weight has its best behind it at the end
            series = part.groupby("epoch")["valid"].mean(), theirs.set_index("epoch")["valid"]
            said = _ends(*series, better if kept else None, len(named) == 1)
            found.append(f"{method}{' (best)' if kept else ''} {said}")
    text = f"Validation {words} at the end, here | the authors' – " + "; ".join(found)
    title(figure, text if found else f"Validation {words}; the authors have no figure")
    return figure


def _best_plan(part, better):
    """The variant of a method whose runs end best on validation."""
    ends = part.sort_values("epoch").groupby(["variant", "seed"])["valid"].last().groupby("variant").mean()
    return ends.idxmax() if better == "higher" else ends.idxmin()


def _ends(ours, theirs, better, alone):
    """Two series by epoch: what each is at its end, or at its best if better says which that is; and, of a method alone, where
    these are two epochs, at the last that both have."""
    lasts = [{"higher": one.idxmax, "lower": one.idxmin, None: one.index.max}[better]() for one in (ours, theirs)]
    (here, there), common = lasts, ours.index.intersection(theirs.index)
    text = f"{ours[here]:.3g} at epoch {here:.0f} | {theirs[there]:.3g} at epoch {there:.0f}"
    if alone and len(common) and here != there and better is None:
        text += f" (at epoch {common.max():.0f}: {ours[common.max()]:.3g} | {theirs[common.max()]:.3g})"
    return text


@styled
def sizes(table, ax=None):
    """Bytes on disk: dense, compact, and the floor no such file goes below. table: `tables.sizes_table`."""
    ax = ax or subplots(5.6, 1.9)[1]
    if table.empty:
        return say(ax, "no file written yet")
    bytes_of = dict(zip(table["file"], table["bytes"], strict=True))
    for place, (name, count) in enumerate(reversed(bytes_of.items())):
        colour, hatch = FILES.get(name, (GREY, ""))
        ax.barh(place, count, 0.65, color=colour, hatch=hatch, edgecolor="white", lw=0.5)
        ax.annotate(size(count), (count, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(bytes_of)), list(bytes_of)[::-1])
    ax.set(xscale="log", xlabel="bytes on disk", xlim=(max(1, table["bytes"].min()) / 3, table["bytes"].max() * 4))
    ax.tick_params(axis="y", length=0)
    if {"dense", "compact", "floor"} <= bytes_of.keys():
        smaller = bytes_of["dense"] / bytes_of["compact"]
        change = f"{times(smaller)} smaller than dense" if smaller > 1.05 else "no smaller than dense"
        title(ax, f"The file is {change}, {bytes_of['compact'] / max(1, bytes_of['floor']):.2f} × its floor")
    return ax
