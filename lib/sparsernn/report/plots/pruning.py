"""Where a threshold cuts: what it buys, and how far apart what stays and what goes are."""

import math

import numpy as np
from matplotlib.ticker import MaxNLocator

from .style import BLACK, BLUE, ORANGE, best_of, log_counts, metric_of, percent, say, styled, subplots, times, title

KEPT, PRUNED = (BLUE, ""), (ORANGE, "///")
LABELS = {"log α": r"$\log\alpha = \log\,\sigma^2/\theta^2$", "log10 |w|": r"$\log_{10}|w|$"}


def _cut(bins):
    """The edge between the bins of what is kept and of what goes."""
    kept, gone = bins[bins["kept"]], bins[~bins["kept"]]
    if gone.empty or kept.empty:
        return bins["high"].max()
    return gone["low"].min() if kept["low"].min() < gone["low"].min() else kept["low"].min()


@styled
def threshold_curve(table):
    """Validation quality and compression against the threshold; the chosen one marked.

    table: `tables.threshold_table` (threshold, valid, compression, reading, keeps_below, metric, chosen).
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no threshold to choose: this method has no scores")
        return figure
    figure, axes = subplots(6.2, 5.0, 2, 1, sharex=True)
    words, better = metric_of(table)
    reading, side = table["reading"].iloc[0], "above"
    side = "below" if table["keeps_below"].astype(bool).all() else side
    table = table.sort_values("threshold")
    chosen = table[table["chosen"].astype(bool)]
    shown = table.assign(compression=table["compression"].where(np.isfinite(table["compression"].astype(float))))
    for ax, column, (colour, marker) in zip(axes, ("valid", "compression"), ((BLUE, "o"), (ORANGE, "s")), strict=True):
        ax.plot(shown["threshold"], shown[column], color=colour, marker=marker, ms=4.5, lw=1.3)
        for cut in chosen["threshold"]:
            ax.axvline(cut, color=BLACK, ls="--", lw=1)
    axes[0].set_ylabel(f"validation {words}\n({better} is better)")
    axes[1].set(ylabel="compression:\nweights, all ÷ kept", xlabel=f"threshold: keep {reading} {side} it", yscale="log")
    log_counts(axes[1].yaxis)
    best = best_of(table["valid"], better)
    peak = table[table["valid"] == best]["threshold"]
    where = f"{peak.min():g}" if peak.min() == peak.max() else f"{peak.min():g}…{peak.max():g}"
    where = where.replace("-", "−")
    for row in chosen.itertuples():
        cut = f"{row.threshold:.3g}".replace("-", "−")
        axes[0].annotate(f"chosen: {cut}", (row.threshold, 1.01), xycoords=("data", "axes fraction"),
                         ha="center", va="bottom", fontsize=8)  # fmt: skip
        title(figure, f"At threshold {cut}: {row.valid:.3g} {words}, {times(row.compression)} fewer weights; "
                      f"best {best:.3g} at {where}")  # fmt: skip
    return figure


@styled
def score_histogram(table, ax=None):
    """How far apart what stays and what goes are: counts of scores, the cut, and the share on each side.

    table: rows of one tensor of `tables.score_table` (low, high, count, kept, reading); of several: their sum.
    """
    ax = ax or subplots(5, 3)[1]
    if table.empty:
        return say(ax, "this method has no scores")
    kept = table["kept"].astype(bool)
    bins = table.assign(kept=kept).groupby(["low", "high", "kept"], as_index=False)["count"].sum()
    total, cut = bins["count"].sum(), _cut(bins)
    for side, (colour, hatch) in ((True, KEPT), (False, PRUNED)):
        part = bins[bins["kept"] == side]
        name = f"{'kept' if side else 'pruned'} ({percent(part['count'].sum() / total)})"
        ax.bar(part["low"], part["count"], part["high"] - part["low"], align="edge", color=colour, hatch=hatch,
               edgecolor="white", lw=0.4, label=name)  # fmt: skip
    ax.axvline(cut, ymax=0.86, color=BLACK, ls="--", lw=1)
    is_weight = table["tensor"].str.contains(".", regex=False).all()
    ax.set(
        xlabel=LABELS.get(table["reading"].iloc[0], table["reading"].iloc[0]),
        ylabel=f"{'weights' if is_weight else 'variables'} per bin",
    )
    ax.xaxis.set_major_locator(MaxNLocator(9 if ax.get_position().width > 0.5 else 5, steps=[1, 2, 4, 5, 10]))
    ax.set(yscale="log", ylim=(0.6, bins["count"].max() * 12), xlim=(bins["low"].min(), bins["high"].max()))
    ax.legend(fontsize=8, loc="upper left", ncols=2, handlelength=1.4, columnspacing=1, borderaxespad=0.2)
    names = table["tensor"].unique()
    whose = f"{names[0]}: " if len(names) == 1 else ""
    ax.set_title(f"{whose}{percent(1 - bins['count'][bins['kept']].sum() / total)} pruned")
    return ax


@styled
def score_histograms(table, columns=3):
    """`score_histogram` of every tensor and group variable. table: `tables.score_table`."""
    names = list(table["tensor"].unique())
    if not names:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "this method has no scores that say which weights go")
        return figure
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = subplots(3.5 * columns, 2.4 * rows + 0.3, rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        score_histogram(table[table["tensor"] == name], ax)
    for ax in axes.flat[: max(0, len(names) - columns)]:
        ax.set_xlabel("")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    is_weight = table["tensor"].str.contains(".", regex=False)
    what, part = ("weights", table[is_weight]) if is_weight.any() else ("inputs, neurons and gates", table)
    pruned = part.loc[~part["kept"].astype(bool), "count"].sum() / max(1, part["count"].sum())
    title(figure, f"{percent(pruned)} of the {part['count'].sum():,} {what} are pruned")
    return figure
