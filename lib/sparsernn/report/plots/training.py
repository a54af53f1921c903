"""What happened while runs trained, epoch by epoch."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from .study import chosen_finding
from .style import BLACK, log_counts, look, metric_of, say, styled, subplots, times, title, unique_legend

FEW = 4  # runs of a method that are each a line to follow; of more, all are pale
MOST_SAID = 3  # runs that a title speaks of one by one
FIT_INSIDE = 6  # lines of a legend that leave room for the curves
ABSENT = {"train_loss": "no training loss: fitted in one go", "gates_live": "no gates here"}


@styled
def training_curves(table):
    """Loss and penalty, validation metric, compression, live gates against epoch; one line a configuration, the mean of its
    seeds.

    table: `tables.metrics_table`. A path of C (no epochs) is drawn against C when alone, as a level line beside others.
    """
    figure, axes = subplots(8, 5.2, 2, 2)
    words, better = metric_of(table)
    path = table["C"].notna() if "C" in table else pd.Series(False, table.index)
    runs = _over_seeds(table if path.all() else table[~path])
    x, label = ("C", "C, inverse strength of L1") if path.all() else ("epoch", "epoch")
    panels = [("train_loss", "nats per example"), ("valid", f"validation {words}"),
              ("compression", "compression: all ÷ kept"), ("gates_live", "live gates")]  # fmt: skip
    for ax, (column, quantity) in zip(axes.flat, panels, strict=True):
        if column not in runs or runs[column].isna().all():
            say(ax, ABSENT.get(column, "not measured"))
            continue
        for method, part in runs.groupby("method", sort=False):
            _curve(ax, part, x, column, method)
        for method, part in table[path & table["chosen"]].groupby("method") if not path.all() else ():
            if part[column].notna().all() and column != "train_loss":
                ax.axhline(part[column].mean(), color=look(method)[0], ls=look(method)[2], lw=1.2, label=method)
        ax.set(xlabel=label, ylabel=quantity, xscale="log" if x == "C" else "linear")
        if x == "epoch":
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        else:
            log_counts(ax.xaxis)
        if column == "compression" and table[column].max() > 5 * table[column].min():
            ax.set_yscale("log")
            log_counts(ax.yaxis)
    _loss_panel(axes[0, 0], runs)
    entries = {name: handle for handle, name in zip(*axes[0, 1].get_legend_handles_labels(), strict=True)}
    if len(entries) > FIT_INSIDE:
        figure.legend(entries.values(), entries.keys(), fontsize=8, loc="outside right lower")
    elif entries:
        unique_legend(axes[0, 1])
    best = table[table["chosen"]]
    found = [f"{r.method}: {r.valid:.3g} {words} at {times(r.compression)}" for r in best.itertuples()]
    said = f"Chosen on validation, {'one run' if len(best) == 1 else f'{len(best)} runs'} – " + "; ".join(found)
    if len(found) > MOST_SAID:
        said = chosen_finding(best, 1 if better == "higher" else -1)
    title(figure, said if found else f"No epoch chosen yet ({better} is better)")
    return figure


def _over_seeds(table):
    """The table with the rows of a configuration's seeds as one, epoch by epoch; an epoch is chosen that most of them chose."""
    if "seed" not in table or table["seed"].nunique() < 2:
        return table
    x = "C" if "C" in table and table["C"].notna().any() else "epoch"
    keys = [name for name in ("model", "method", "variant") if name in table]
    numbers = [name for name in table.select_dtypes("number") if name not in ("seed", x)]
    found = table.assign(chosen=table["chosen"].astype(float)).groupby([*keys, x], sort=False, dropna=False)
    means = found[[*numbers, "chosen"]].mean().reset_index().sort_values(x, kind="stable")
    order = means.groupby(keys, sort=False, dropna=False).ngroup().argsort(kind="stable")
    means = means.iloc[order.to_numpy()].reset_index(drop=True)
    most = means.groupby(keys, dropna=False)["chosen"].transform("max")
    return means.assign(chosen=(means["chosen"] == most) & (most > 0), metric=table["metric"].iloc[0])


def _curve(ax, part, x, column, method, dash=None, label=None):
    """A line a run: of several under one another, each begins where x falls back."""
    colour, marker, own_dash = look(method)
    values = [part[name].to_numpy(float) for name in (x, column)]
    ends = np.flatnonzero(np.diff(values[0]) <= 0) + 1
    crowd, many = len(ends) >= FEW, np.diff([0, *ends, len(part)]).max() > 25
    lines = [np.insert(numbers, ends, np.nan) for numbers in values]
    pale = {"lw": 0.8, "alpha": 0.8} if crowd else {"lw": 1.3}
    ax.plot(*lines, color=colour, ls=dash or own_dash, marker=None if many or crowd else marker, ms=4, label=label or method,
            **pale)  # fmt: skip
    chosen = part[part["chosen"]]
    if dash is None:
        ax.plot(chosen[x], chosen[column], "o", ms=4 if crowd else 9, mfc="none", mec=BLACK, mew=0.7 if crowd else 1.1,
                label="chosen")  # fmt: skip


def _loss_panel(ax, runs):
    """The penalty beside the loss, on a common logarithmic axis where it is not zero."""
    if not ax.axison or "penalty" not in runs or not (runs["penalty"] > 0).any():
        return
    for method, part in runs[runs["penalty"] > 0].groupby("method", sort=False):
        _curve(ax, part, "epoch", "penalty", method, dash=(0, (1, 1)), label="penalty (dotted)")
    ax.set_yscale("log")
    log_counts(ax.yaxis)
    ax.lines[0].set_label("loss")
    unique_legend(ax, only=("loss", "penalty (dotted)"))
