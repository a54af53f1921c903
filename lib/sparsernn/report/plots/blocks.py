"""What a pattern costs: quality against density, a line a shape of block."""

from matplotlib.ticker import LogLocator

from .style import BLACK, GREY, PATTERN_STYLE, metric_of, percent, styled, subplots, title, unique_legend


@styled
def pattern_curves(rows, quality="test"):
    """Quality against the share of weights kept, a line a shape of block (scattered zeros: a line a method), dense beside it,
    and dense nets of fewer weights as one more line.

    rows: records of one model and its smaller nets (model, method, variant, test, compression, metric) and the shape of what
    each keeps; of several seeds their mean, and a dot each.
    """
    figure, ax = subplots(6.4, 4.0)
    words, better = metric_of(rows)
    rows = rows.assign(density=1 / rows["compression"])
    dense, shown = rows[rows["density"] == 1], rows[rows["density"] != 1]
    finding = []
    for shape, part in shown.groupby("shape", sort=False):
        mean = part.groupby(["model", "variant"])[["density", quality]].mean().sort_values("density")
        colour, marker = PATTERN_STYLE.get(shape, (GREY, "X"))
        label = "dense, smaller" if shape == "dense" else shape
        ax.plot(mean["density"], mean[quality], marker + "-", color=colour, lw=1.3, ms=5, label=label)
        ax.plot(part["density"], part[quality], ".", color=colour, ms=3, alpha=0.5)
        sparsest = mean.iloc[0]
        finding.append(f"{shape} {sparsest[quality]:.3g} at {percent(sparsest['density'])}")
    if len(dense):
        ax.axhline(dense[quality].mean(), color=BLACK, lw=1, ls="--", label="dense")
    ax.set(xscale="log", xlabel="density: weights kept ÷ all")
    ax.set_ylabel(f"{quality} {words} ({better} is better)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda share, _: percent(share))
    ax.xaxis.set_minor_formatter(lambda share, _: "")
    ax.grid(color="0.92", lw=0.6)
    unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    title(figure, f"{words.capitalize()} by shape of what is kept – " + "; ".join(finding))
    return figure
