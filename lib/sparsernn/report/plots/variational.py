"""What variational dropout rests on, each tried by itself: the KL, exact and fitted; one noise sample or many."""

from .style import BLACK, BLUE, GREEN, GREY, ORANGE, styled, subplots, title, unique_legend


@styled
def kl_curves(table):
    """The KL exactly, by Monte Carlo and by its two published fits; how far these are from it, in value and in slope.

    table: log_alpha; kl, error (of Monte Carlo: its standard error), exact, molchanov, code (all → 0 at the right), in nats
    per weight; slope_exact, slope_molchanov, slope_code: their derivatives by log α.
    """
    figure, (left, middle, right) = subplots(11, 3.6, 1, 3)
    a, exact, noise = table["log_alpha"], table["exact"], 2 * table["error"]
    fits = {"molchanov": ("Molchanov et al. 2017", BLUE, "-", "o"), "code": ("code of 1812.05692", ORANGE, "--", "s")}
    left.errorbar(a, table["kl"], noise, fmt="o", ms=3, color=BLACK, lw=1, label="Monte Carlo ± 2 s.e.")
    left.plot(a, exact, color=GREEN, lw=3, alpha=0.6, label="exact")
    middle.errorbar(a, table["kl"] - exact, noise, fmt="o", ms=2, color=GREY, lw=0.8, label="Monte Carlo ± 2 s.e.")
    values, slopes = {}, {}
    for name, (words, colour, dash, marker) in fits.items():
        look = {"color": colour, "ls": dash, "lw": 1.2}
        values[name] = table[name] - exact
        slopes[name] = table[f"slope_{name}"] / table["slope_exact"] - 1
        left.plot(a, table[name], **look, label=words)
        middle.plot(a, values[name], **look, marker=marker, ms=3, label=words)
        right.plot(a, 100 * slopes[name], **look, marker=marker, ms=3, label=words)
    left.set(ylabel="KL per weight, nats")
    middle.set(ylabel="less the exact KL, nats")
    right.set(ylabel="slope, % steeper than the exact one")
    for ax in (left, middle, right):
        ax.set(xlabel=r"$\log\alpha = \log\,\sigma^2/\theta^2$")
        ax.legend(fontsize=8)
    for ax in (middle, right):
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_ylim(top=ax.get_ylim()[1] * 1.9)
    worst = [f"{values[n].abs().max():.3f} nats and {slopes[n].abs().max():.1%}" for n in fits]
    title(figure, "Both published fits follow the exact KL at these points, in value and slope: "
                  f"Molchanov within {worst[0]}; the code, up to a constant, within {worst[1]}")  # fmt: skip
    return figure


NOISES = {
    "none": (BLACK, "-", "o"),
    "shared": (BLUE, "-", "s"),
    "fresh": (ORANGE, "--", "^"),
    "local": (GREEN, ":", "D"),
}


@styled
def noise_curves(table):
    """Bits of what is kept, bits of one network drawn, share to be pruned, against training steps; a line a way of drawing.

    table: `noise.train` of several kinds and seeds (noise, seed, step, valid, drawn, noise_share).
    """
    figure, axes = subplots(10, 3.4, 1, 3)
    quantities = (("valid", "means, noise at zero: bits per character"),
                  ("drawn", "drawn once: bits per character"), ("noise_share", "recurrent weights to be pruned"))  # fmt: skip
    for ax, (column, words) in zip(axes, quantities, strict=True):
        for kind, part in table.groupby("noise", sort=False):
            colour, dash, marker = NOISES[kind]
            mean = part.groupby("step")[column].mean()
            ax.plot(mean.index, mean, color=colour, ls=dash, marker=marker, ms=3, lw=1.3, label=kind)
        ax.set(xlabel="training step", ylabel=words)
    axes[2].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    unique_legend(axes[2])
    end = table[table["step"] == table["step"].max()].groupby("noise", sort=False)[["valid", "drawn"]].mean()
    gaps = [f"{kind} {row.valid:.2f} kept, {row.drawn:.2f} drawn" for kind, row in end.iterrows() if kind != "none"]
    title(figure, f"After {table['step'].max():,} steps, bits: " + "; ".join(gaps))
    return figure
