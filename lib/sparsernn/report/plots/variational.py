"""What variational dropout rests on, each tried by itself: the KL and its fits; one noise sample or many."""

from .style import BLACK, BLUE, GREEN, ORANGE, styled, subplots, title, unique_legend


@styled
def kl_curves(table):
    """The KL by Monte Carlo beside its two published fits, and what is left between them.

    table: log_alpha, kl, error (standard), molchanov, code (both → 0 at the right), in nats per weight.
    """
    figure, (left, right) = subplots(9, 3.6, 1, 2)
    a, estimate, error = table["log_alpha"], table["kl"], table["error"]
    left.errorbar(a, estimate, 2 * error, fmt="o", ms=3, color=BLACK, lw=1, label="Monte Carlo ± 2 s.e.")
    left.plot(a, table["molchanov"], color=BLUE, lw=1.5, label="Molchanov et al. 2017")
    left.plot(a, table["code"], color=ORANGE, ls="--", lw=1.5, label="code of 1812.05692, shifted")
    left.set(ylabel="KL per weight, nats")
    right.fill_between(a, -2 * error, 2 * error, color="0.88", label="Monte Carlo ± 2 s.e.")
    right.plot(a, table["molchanov"] - estimate, color=BLUE, marker="o", ms=3, lw=1.2, label="Molchanov − Monte Carlo")
    right.plot(a, table["code"] - estimate, color=ORANGE, marker="s", ms=3, ls="--", lw=1.2, label="code − Monte Carlo")
    right.axhline(0, color=BLACK, lw=0.8)
    right.set(ylabel="difference, nats")
    for ax in (left, right):
        ax.set(xlabel=r"$\log\alpha = \log\,\sigma^2/\theta^2$")
        ax.legend(fontsize=8)
    right.set_ylim(top=right.get_ylim()[1] * 1.9)
    worst = {name: (table[name] - estimate).abs().max() for name in ("molchanov", "code")}
    title(figure, f"Both published fits follow the KL: Molchanov within {worst['molchanov']:.3f} nats, "
                  f"the code, up to a constant, within {worst['code']:.3f}")  # fmt: skip
    return figure


NOISES = {
    "none": (BLACK, "-", "o"),
    "shared": (BLUE, "-", "s"),
    "fresh": (ORANGE, "--", "^"),
    "local": (GREEN, ":", "D"),
}


@styled
def noise_curves(table):
    """Bits of what is kept, bits of one network drawn, share of noise, against training steps; a line a way of drawing.

    table: `noise.train` of several kinds and seeds (noise, seed, step, valid, drawn, noise_share).
    """
    figure, axes = subplots(10, 3.4, 1, 3)
    quantities = (("valid", "means, noise at zero: bits per character"),
                  ("drawn", "drawn once: bits per character"), ("noise_share", "recurrent weights that are noise"))  # fmt: skip
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
