"""One net, several tests: what pruning costs where all is easy, and where it is not."""

import numpy as np

from ...records import numbers_of
from .costs import corner, one_legend, short_counts
from .study import SPARSE
from .style import beside, look, metric_of, say, styled, subplots, times, title

FAR = 5  # widths of the middle half of the configurations, from their median: what is farther is out of view


@styled
def tests_front(rows):
    """Error or quality on every test of a task against weights kept, a panel a test: a point is the mean over the seeds of a
    configuration, a small one a seed. Models that are larger or smaller than the first are named beside their points.

    rows: finished rows of one task's comparable models, with `tests`.
    """
    rows = rows[rows["tests"].fillna("") != ""]
    if rows.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no run with more than one test yet")
        return figure
    words, better = metric_of(rows)
    found = [{"test": row["test"]} | numbers_of(row["tests"]) for row in rows.to_dict("records")]
    names = [name for name in dict.fromkeys(name for one in found for name in one) if all(name in one for one in found)]
    rows = rows.assign(**{f"on {name}": [one[name] for one in found] for name in names})
    usual = rows.loc[rows["compression"].sub(1).abs().idxmin(), "model"]
    figure, axes = subplots(max(6.2, 3.3 * len(names)), 4.1, 1, len(names), squeeze=False)
    named = {ax: {} for ax in axes.flat}
    for ax, name in zip(axes.flat, names, strict=True):
        for (model, method, _), part in rows.groupby(["model", "method", rows["variant"].fillna("")], sort=False):
            colour, marker, _ = look(method)
            kept, seen = part["weights_kept"], part[f"on {name}"]
            ax.plot(kept, seen, marker, color=colour, ms=3, alpha=0.5)
            ax.plot(kept.mean(), seen.mean(), marker, color=colour, ms=7.5, mec="white", label=method)
            if model != usual:
                named[ax][kept.mean(), seen.mean()] = model
        _leave_out(ax, rows.groupby(["model", "method", rows["variant"].fillna("")])[f"on {name}"].mean())
        ax.set(xscale="log", xlabel="weights kept")
        ax.set_title("test" if name == "test" else f"test, {name}", fontsize=9)
        ax.margins(0.15, 0.12)
        short_counts(ax)
    axes[0, 0].set_ylabel(f"{words} ({better} is better)")
    one_legend(figure)
    title(figure, _finding(rows, names, usual, better))
    figure.draw_without_rendering()  # where points are is known then
    for ax in axes.flat:
        beside(ax, named[ax])
    return figure


def _leave_out(ax, means):
    """Show what lies near the others; how many configurations do not is said in a corner."""
    low, middle, high = means.quantile([0.25, 0.5, 0.75])
    near = means[(means - middle).abs() <= FAR * (high - low)]
    if len(near) < len(means):
        seen = np.concatenate([line.get_ydata() for line in ax.lines])
        seen = seen[np.abs(seen - middle) <= FAR * (high - low)]
        margin = 0.12 * (seen.max() - seen.min())
        ax.set_ylim(seen.min() - margin, seen.max() + margin)
        corner(ax, f"{len(means) - len(near)} more out of view")


def _finding(rows, names, usual, better):
    """The sentence over it: dense against the sparsest, test by test."""
    means = rows.groupby(["model", "method", rows["variant"].fillna("")], sort=False)[
        [f"on {name}" for name in names] + ["compression"]
    ].mean()
    dense = means[
        (means.index.get_level_values("method") == "dense") & (means.index.get_level_values("model") == usual)
    ]
    if dense.empty:
        return f"{len(rows)} runs"
    last, sign = names[-1], 1 if better == "higher" else -1
    means = means.assign(weights=(1000 / means["compression"]).round(1)).sort_values(f"on {last}", ascending=sign < 0)
    fine = means[(sign * (means[f"on {last}"] - dense[f"on {last}"].iloc[0]) >= 0) & (means["compression"] > SPARSE)]
    text = f"{len(rows)} runs; {usual} dense: " + ", ".join(
        f"{name} {dense[f'on {name}'].iloc[0]:.3g}" for name in names
    )
    if fine.empty:
        return text + f"; no smaller net is as good on {last}"
    row = fine[fine["weights"] == fine["weights"].min()].iloc[0]  # of as many weights the better one
    return (
        text
        + f"; as good on {last} or better: {row.name[1]} ({row.name[0]}), {times(row['compression'])} fewer weights"
    )
