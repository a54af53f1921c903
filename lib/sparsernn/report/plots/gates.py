"""Where the gates of a recurrent layer live, how many of each type, and what the constant ones say."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize, to_rgba
from matplotlib.ticker import MaxNLocator

from .style import GREY, say, styled, subplots, title

GATES = {"i": "input i", "f": "forget f", "g": "candidate g", "o": "output o",
         "r": "reset r", "z": "update z", "n": "candidate n", "h": "state h"}  # fmt: skip
CANDIDATES = "gnh"  # a tanh, −1 … 1; the others are squashed to 0 … 1
LIVE = "#1f1f1f"
STATES = {"live": (LIVE, ""), "constant": ("#a79fcb", "///")}


def _patterns(part):
    """Kept neurons of one layer, those alike together: states, a letter a gate → neurons; most live gates first."""
    wide = part.pivot(index="neuron", columns="gate", values="state")[list(part["gate"].unique())]
    kept = wide[(wide != "removed").any(axis=1)]
    states = kept.apply(lambda row: "".join(state[0] for state in row), axis=1) if len(kept) else kept.iloc[:, 0]
    order = sorted(states.unique(), key=lambda pattern: (-pattern.count("l"), pattern.replace("l", "a")))
    return {pattern: states.index[states == pattern] for pattern in order}


FEW = 0.01  # of the gates of kept neurons: where fewer are constants a sentence says all there is


def gates_differ(table):
    """Whether enough gates of kept neurons are constants for a map of them. table: `tables.gate_table`."""
    return bool((table["state"] == "constant").sum() > FEW * (table["state"] != "removed").sum())


@styled
def gate_map(table):
    """Where the gates live: kept neurons whose gates are in the same states are one line, a column a gate type, and how many
    they are; of each layer, those with most live gates first. Removed neurons are counted in the title and not drawn.

    Live: dark. Constant: its value, of several neurons the least and the most, and the median as colour. table:
    `tables.gate_table`.
    """
    if not gates_differ(table):
        figure, ax = subplots(5.2, 1.6)
        say(ax, _nearly_all(table) if len(table) else "no gates here: the model has no recurrent layer")
        return figure
    layers = [part for _, part in table.groupby("layer", sort=False)]
    letters, groups = list(table["gate"].unique()), [_patterns(part) for part in layers]
    lines = [max(1, len(found)) for found in groups]
    figure, axes = subplots(
        1.0 * len(letters) + 3.0,
        0.9 + sum(0.3 * count + 0.75 for count in lines),
        len(layers),
        2,
        squeeze=False,
        width_ratios=[1.0 * len(letters), 2.4],
        height_ratios=[count + 0.4 for count in lines],
    )
    most = max((len(neurons) for found in groups for neurons in found.values()), default=1)
    for (ax, beside), part, found in zip(axes, layers, groups, strict=True):
        _states(ax, part, letters, found)
        _sizes(beside, found, most)
        kept, hidden = sum(map(len, found.values())), part["neuron"].nunique()
        where = f"layer {part['layer'].iloc[0]}, " if len(layers) > 1 else ""
        beside.set_title(f"{where}neurons like this:\n{kept:,} kept of {hidden:,}", fontsize=8.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=LIVE, label="live"),
               plt.Rectangle((0, 0), 1, 1, color=_shade(0.5), label="constant: least … most, the median as colour")]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
    title(figure, _counted(table))
    return figure


def _counted(table):
    """1 of 512 gates is live, in 1 of 128 hidden neurons."""
    live, total, hidden = (table["state"] == "live").sum(), len(table), table.groupby("layer")["neuron"].nunique().sum()
    kept = table[table["state"] != "removed"].groupby("layer")["neuron"].nunique().sum()
    return f"{live:,} of {total:,} gates {'is' if live == 1 else 'are'} live, in {kept:,} of {hidden:,} hidden neurons"


def _nearly_all(table):
    constant = (table["state"] == "constant").sum()
    return f"every gate of every kept neuron{f' but {constant}' if constant else ''} is live: {_counted(table)}"


VALUE_COLOURS, VALUE_RANGE = "PuOr", Normalize(-1.6, 1.6)  # wider than ±1: no constant looks as dark as a live gate


def _shade(value):
    return plt.get_cmap(VALUE_COLOURS)(VALUE_RANGE(value))


def _states(ax, part, letters, found):
    """A line a pattern, a column a gate type with how many of its gates are live and constant."""
    values = part.pivot(index="neuron", columns="gate", values="value").astype(float)
    colours = np.ones((max(1, len(found)), len(letters), 4))
    for line, (pattern, neurons) in enumerate(found.items()):
        for column, (letter, state) in enumerate(zip(letters, pattern, strict=True)):
            colours[line, column] = to_rgba(LIVE) if state == "l" else (1, 1, 1, 1)
            if state == "c":
                said = values.loc[neurons, letter]
                colours[line, column] = _shade(said.median())
                low, high = _short(said.min()), _short(said.max())
                ax.text(column, line, low if low == high else f"{low} … {high}", ha="center", va="center", fontsize=7.5)
    ax.imshow(colours, interpolation="nearest", aspect="auto")
    ax.set(xticks=np.arange(len(letters) + 1) - 0.5, yticks=np.arange(len(colours) + 1) - 0.5)
    ax.grid(color="white", lw=1.5)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    for column, letter in enumerate(letters):
        count = part.loc[part["gate"] == letter, "state"].value_counts()
        name = f"{GATES.get(letter, letter)}\n{count.get('live', 0):,} live\n{count.get('constant', 0):,} constant"
        ax.annotate(name, (column, -0.5), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8.5)
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.8", lw=0.6)


def _sizes(ax, found, most):
    """How many neurons each pattern has, a bar a line."""
    counts = [len(neurons) for neurons in found.values()]
    ax.barh(range(len(counts)), counts, 0.62, color=GREY)
    for line, count in enumerate(counts):
        ax.annotate(f"{count:,}", (count, line), (3, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(xlim=(0, 1.25 * most), ylim=(max(1, len(counts)) - 0.5, -0.5))
    ax.set_axis_off()


def _short(value):
    """A gate's value in few characters: .53, −.07, 0, 1."""
    rounded = round(value, 2)
    return (f"{rounded:.0f}" if rounded in (-1, 0, 1) else f"{rounded:.2f}".replace("0.", ".", 1)).replace("-", "−")


@styled
def constant_values(table):
    """What the constant gates say for ever: a histogram of their values, a panel a gate type. table: `tables.gate_table`."""
    constant = table[table["state"] == "constant"]
    if constant.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no constant gate: every gate of every kept neuron hears something" if len(table) else "no gates here")
        return figure
    letters = list(table["gate"].unique())
    figure, axes = subplots(2.15 * len(letters), 2.6, 1, len(letters), squeeze=False, sharey=True)
    for ax, letter in zip(axes.flat, letters, strict=True):
        low = -1 if letter in CANDIDATES else 0
        values = constant.loc[constant["gate"] == letter, "value"].astype(float)
        ax.hist(values, np.linspace(low, 1, 21), color=STATES["constant"][0], hatch="///", edgecolor="white", lw=0.4)
        ax.set(xlim=(low - 0.02, 1.02), xlabel="tanh(b)" if low else "σ(b)")
        ax.set_title(f"{GATES.get(letter, letter)}: {len(values):,}", fontsize=8.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if values.empty:
            ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", color="0.35")
    axes[0, 0].set_ylabel("constant gates per bin")
    median = constant.assign(value=constant["value"].astype(float)).groupby("gate", sort=False)["value"].median()
    medians = ", ".join(f"{letter} {median[letter]:.2f}" for letter in letters if letter in median).replace("-", "−")
    title(figure, f"{len(constant):,} constant gates; median value: {medians}")
    return figure
