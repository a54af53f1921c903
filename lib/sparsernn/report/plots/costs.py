"""Quality on the test against what it costs: weights, bytes, multiply-adds and microseconds a step, seconds of training."""

import math

import numpy as np

from .study import SPARSE, near_best
from .style import GREY, OPPONENTS, log_counts, look, metric_of, say, styled, subplots, times, title

COSTS = {
    "weights_kept": "weights kept",
    "size_bytes": "bytes of the file",
    "multiply_adds": "multiply-adds a step",
    "step_us": "µs a step, batch 1, fastest engine",
    "train_seconds": "training seconds of a run,\nwithout one it starts from",
}
COLUMNS = 3  # of panels, at most
NEAR, MOST_OUT = 0.15, 0.25  # out of view is what is farther from the best than this share of it, if few rows are
FAR = 4  # or what lies so many times farther from the middle than the middle half is wide
FEW = 8  # configurations, of which all are in view
CROWD = 14  # configurations from which on marks are small


@styled
def cost_front(table):
    """One task's test figures, a panel a cost that was measured: left is cheaper. A point is a configuration's mean, a small
    one a seed. Bars: over seeds (t, 95 %) from three seeds on, otherwise over the items of the test where these are known.

    table: `decisions.configurations`, with step_us where engines were timed and device_timed, whose times they are. Seconds
    of training are of the device that most networks were trained on, without those of a dense run that a method starts
    from.
    Opponents that are no network are hollow. A line goes through what was small from the start: of all that cost no more, the
    best on validation.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no finished run yet")
        return figure
    words, better = metric_of(table)
    table, device = _of_one_device(table)
    measured = [name for name in COSTS if name in table and table[name].notna().sum() > 1]
    costs = measured or ["weights_kept"]
    columns = len(costs) if len(costs) <= COLUMNS else min(COLUMNS, math.ceil(len(costs) / 2))
    rows = math.ceil(len(costs) / columns)
    size = max(6.2, 3.1 * columns), 0.9 + 3.2 * rows
    figure, axes = subplots(*size, rows, columns, sharey=True, squeeze=False)
    sign = 1 if better == "higher" else -1
    shown = table[_in_view(table["test"], sign)]
    devices = {"step_us": _devices(table, "device_timed"), "train_seconds": device}
    for ax, cost in zip(axes.flat, costs, strict=False):
        for row in shown[shown[cost].notna()].to_dict("records"):
            _point(ax, row, cost, 0.7 if len(shown) > CROWD else 1)
        _way_of_the_small(ax, shown, cost, sign)
        on = devices.get(cost)
        ax.set(xscale="log", xlabel=COSTS[cost] + (f"\n({on})" if on else ""))
        if cost == "train_seconds" and (elsewhere := shown[cost].isna().sum()):
            corner(ax, f"{elsewhere} more trained on another device")
        ax.margins(0.12, 0.12)
        short_counts(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"test {words} ({better} is better)")
    if len(shown) < len(table):
        corner(axes[0, 0], f"{len(table) - len(shown)} more out of view")
        for method in table.loc[~table["method"].isin(shown["method"]), "method"].unique():  # named, though not in view
            colour, marker, _ = look(method)
            axes[0, 0].plot([], [], marker, color=colour, label=f"{method}, out of view")
    empty = axes.flat[len(costs) :]
    for ax in empty:
        ax.set_axis_off()
    one_legend(figure, *empty[-1:])
    title(figure, finding(table, words, better))
    return figure


def _of_one_device(table):
    """The table without the seconds of what was trained on another device than most networks, and that device."""
    if "device" not in table:
        return table, None
    nets = table["seeds"].where(~table["method"].isin(OPPONENTS), 0.001)  # these decide where networks do not
    most = nets.groupby(table["device"]).sum().idxmax()
    seconds = table["train_seconds"].where(table["device"] == most)
    return table.assign(train_seconds=seconds), most.removeprefix("cpu:").removeprefix("cuda:")


def _devices(table, column):
    names = table[column].dropna().unique() if column in table else ()
    return ", ".join(name.removeprefix("cpu:") for name in names)


def _in_view(values, sign):
    """bool a configuration: all of few; else what is near the best, or, where the best errs next to never, near the middle."""
    best = (sign * values).max() * sign
    near = sign * (values - best) > -NEAR * abs(best)
    if (~near).mean() > MOST_OUT:
        low, middle, high = values.quantile([0.25, 0.5, 0.75])
        near = sign * (values - middle) > -FAR * (high - low)
    return near if len(values) > FEW and (~near).mean() <= MOST_OUT else near | True


def _point(ax, row, cost, scale):
    colour, marker, _ = look(row["method"])
    fill = {"mfc": "white", "mew": 1.5} if row["method"] in OPPONENTS else {"mec": "white", "mew": scale**2}
    low, high = row["seed_low"], row["seed_high"]
    if math.isnan(low):
        low, high = row["item_low"], row["item_high"]
    if not math.isnan(low):
        ax.plot([row[cost]] * 2, [low, high], color=colour, lw=1.2, alpha=0.7, zorder=2)
    if row["seeds"] > 1:
        ax.plot(row["kept"] if cost == "weights_kept" else [row[cost]] * row["seeds"], row["by_seed"], marker, color=colour,
                ms=3 * scale, alpha=0.5, zorder=2)  # fmt: skip
    ax.plot(
        row[cost],
        row["test"],
        marker,
        color=colour,
        ms=scale * (11 if marker in "*." else 7.5),
        zorder=3,
        label=row["method"],
        **fill,
    )


def _way_of_the_small(ax, table, cost, sign):
    """From the cheapest on, the test figure of the net that was small from the start and is the best on validation so far."""
    nets = (
        table[table["started_small"] & table[cost].notna()].sort_values(cost) if "started_small" in table else table[:0]
    )
    best = nets[(sign * nets["valid"]).cummax().diff().fillna(1) > 0]
    if len(best) > 1:
        ax.step(
            best[cost], best["test"], where="post", color=GREY, lw=1, ls="--", zorder=1, label="small from the start"
        )


def short_counts(ax):
    """Ticks of a logarithmic x for reading, over a pale grid."""
    log_counts(ax.xaxis)
    ax.xaxis.set_major_formatter(lambda value, _: short(value))
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)


def one_legend(figure, place=None):
    """One legend of all panels: in a place that no panel has, or under them."""
    entries = {}
    for ax in figure.axes:
        entries |= {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    handles, names = list(entries.values()), list(entries)
    if place is None:
        figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=min(6, 2 * len(figure.axes)))
    else:
        place.legend(handles, names, fontsize=8, loc="center left", ncols=1 + (len(names) > 10))


def corner(ax, words):
    """Say at the lower left what a panel does not show."""
    ax.annotate(words, (0.01, 0.02), xycoords="axes fraction", fontsize=7, color="0.4")


def short(value):
    """10 · 2k · 50M: a tick for reading."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def finding(table, words, better):
    """The sentence over a front: of how many runs; the sparsest net near the best one; the best opponent."""
    nets = table[~table["method"].isin(OPPONENTS)]
    others, sign = table[table["method"].isin(OPPONENTS)], 1 if better == "higher" else -1
    text = f"{int(table['seeds'].sum())} runs"
    if len(nets):
        best = (sign * nets["test"]).max() * sign
        close, within = near_best(nets["test"], words, better)
        near = nets[close & (nets["compression"] >= SPARSE)]
        if near.empty:
            text += f"; no sparse net within {within} of the best ({best:.4g} {words})"
        else:
            row = near.loc[near["compression"].idxmax()]
            runs = "one run" if row["seeds"] == 1 else f"{row['seeds']} runs"
            text += f"; sparsest net within {within} of the best: {row['method']}, {times(row['compression'])} fewer weights "
            text += f"at {row['test']:.4g} ({runs})"
    if len(others):
        row = others.iloc[int(np.argmax(sign * others["test"].to_numpy()))]
        text += f"; {row['method']}, no network: {row['test']:.4g}"
    return text
