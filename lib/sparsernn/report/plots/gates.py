"""Where the gates of a recurrent layer live, how many of each type, and what the constant ones say."""

import functools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, to_rgba
from matplotlib.ticker import MaxNLocator

from .style import say, styled, subplots, title

GATES = {"i": "input i", "f": "forget f", "g": "candidate g", "o": "output o",
         "r": "reset r", "z": "update z", "n": "candidate n", "h": "state h"}  # fmt: skip
CANDIDATES = "gnh"  # a tanh, −1 … 1; the others are squashed to 0 … 1
LIVE = "#1f1f1f"
STATES = {"live": (LIVE, ""), "constant": ("#a79fcb", "///"), "removed": ("#e6e6e6", "...")}


def _order(part):
    """Neurons of one layer by what is kept: most live gates first, equal patterns together, removed ones last."""
    rank = part["state"].map({"live": 0, "constant": 1, "removed": 2})
    wide = part.assign(rank=rank).pivot(index="neuron", columns="gate", values="rank")[list(part["gate"].unique())]
    keys = pd.DataFrame({"removed": (wide == 2).all(axis=1), "live": -(wide == 0).sum(axis=1)}).join(wide)
    return keys.sort_values(list(keys.columns), kind="stable").index.to_list()


@styled
def gate_map(table):
    """Where the gates live: a panel a gate type, a square a hidden neuron, neurons sorted by what is kept.

    Every panel of a layer has the same neurons at the same places. Live: dark. Constant: its value as colour, and
    written in where there is room, else a dot. Removed: a small cross. table: `tables.gate_table`.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no gates here: the model has no recurrent layer")
        return figure
    layers, letters = list(table["layer"].unique()), list(table["gate"].unique())
    figure, axes = subplots(
        2.15 * len(letters) + 0.9, 2.35 * len(layers) + 1.0, len(layers), len(letters), squeeze=False
    )
    for row, layer in zip(axes, layers, strict=True):
        part = table[table["layer"] == layer]
        order = _order(part)
        for ax, letter in zip(row, letters, strict=True):
            states = part[part["gate"] == letter].set_index("neuron").loc[order]
            _gate_panel(ax, states["state"].tolist(), states["value"].astype(float).tolist())
            count = states["state"].value_counts()
            ax.set_title(f"{GATES.get(letter, letter)}\n{count.get('live', 0)} live, {count.get('constant', 0)} constant",
                         fontsize=8.5, loc="center")  # fmt: skip
        if len(layers) > 1:
            row[0].set_ylabel(f"layer {layer}")
    _gate_legend(figure, axes)
    neurons = table[table["state"] != "removed"].groupby("layer")["neuron"].nunique().sum()
    live, total = (table["state"] == "live").sum(), len(table)
    title(figure, f"{live:,} of {total:,} gates are live, in {neurons:,} of {total // len(letters):,} hidden neurons")
    return figure


VALUE_COLOURS, VALUE_RANGE = "PuOr", Normalize(-1.6, 1.6)  # wider than ±1: no constant looks as dark as a live gate


def _gate_panel(ax, states, values):
    side = math.ceil(math.sqrt(len(states)))
    high = math.ceil(len(states) / side)
    colours = np.ones((high * side, 4))
    places = [(k % side, k // side) for k in range(len(states))]
    marks = {"constant": [], "removed": []}
    for k, (state, value) in enumerate(zip(states, values, strict=True)):
        colours[k] = to_rgba(LIVE) if state == "live" else (1, 1, 1, 1)
        if state == "constant":
            colours[k] = plt.get_cmap(VALUE_COLOURS)(VALUE_RANGE(value))
        if state in marks:
            marks[state].append(k)
    ax.imshow(colours.reshape(high, side, 4), interpolation="nearest")
    cell = 2.0 * 72 / side  # points a cell, roughly
    for k in marks["constant"]:
        if side <= 8:
            ax.text(*places[k], _short(values[k]), ha="center", va="center", fontsize=min(8, cell * 0.42))
    if side > 8 and marks["constant"]:
        ax.scatter(*zip(*(places[k] for k in marks["constant"]), strict=True), s=(cell * 0.16) ** 2, c="black", lw=0)
    if marks["removed"]:
        ax.scatter(*zip(*(places[k] for k in marks["removed"]), strict=True), s=(min(cell, 30) * 0.3) ** 2, c="0.72", marker="x",
                   lw=min(0.8, cell * 0.07))  # fmt: skip
    ax.set(xticks=np.arange(side + 1) - 0.5, yticks=np.arange(high + 1) - 0.5)
    ax.grid(color="white", lw=min(0.8, cell * 0.06))
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.8", lw=0.6)


def _short(value):
    """A gate's value in as few characters as a square holds: .53, −.07, 0, 1."""
    rounded = round(value, 2)
    return (f"{rounded:.0f}" if rounded in (-1, 0, 1) else f"{rounded:.2f}".replace("0.", ".", 1)).replace("-", "−")


def _gate_legend(figure, axes):
    marker = functools.partial(plt.Line2D, [], [], ls="none")
    handles = [marker(marker="s", color=LIVE, ms=8, label="live"),
               marker(marker="x", color="0.6", ms=5, label="neuron removed")]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
    bar = plt.cm.ScalarMappable(VALUE_RANGE, VALUE_COLOURS)
    shown = figure.colorbar(bar, ax=axes, fraction=0.02, pad=0.015, aspect=25, ticks=[-1, 0, 1])
    shown.ax.set_ylim(-1, 1)
    shown.set_label("value of a constant gate (number or dot)", fontsize=8)


@styled
def gate_counts(table):
    """Live, constant and removed gates of each type, stacked, per layer. table: `tables.gate_table`."""
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no gates to count: the model has no recurrent layer")
        return figure
    layers, letters = list(table["layer"].unique()), list(table["gate"].unique())
    figure, axes = subplots(1.2 + 4.0 * len(layers), 3.2, 1, len(layers), squeeze=False, sharey=True)
    for ax, layer in zip(axes.flat, layers, strict=True):
        part = table[table["layer"] == layer]
        bottom, total = np.zeros(len(letters)), part["neuron"].nunique()
        for state, (colour, hatch) in STATES.items():
            counts = np.array([((part["gate"] == k) & (part["state"] == state)).sum() for k in letters])
            ax.bar(
                range(len(letters)),
                counts,
                0.7,
                bottom,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                lw=0.5,
                label=state,
            )
            for k, (count, below) in enumerate(zip(counts, bottom, strict=True)):
                if count > 0.055 * total:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
                    ax.text(k, below + count / 2, f"{count:,}", ha="center", va="center", fontsize=8, bbox=box)
            bottom += counts
        ax.set_xticks(range(len(letters)), [GATES.get(k, k) for k in letters])
        if len(layers) > 1:
            ax.set_title(f"layer {layer}")
    axes[0, 0].set_ylabel("gates")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", fontsize=8)
    live = [((table["gate"] == k) & (table["state"] == "live")).sum() for k in letters]
    most, least = int(np.argmax(live)), int(np.argmin(live))
    finding = f"most live gates: {GATES.get(letters[most], letters[most])} ({live[most]:,}); " \
              f"fewest: {GATES.get(letters[least], letters[least])} ({live[least]:,})"  # fmt: skip
    if live[most] == live[least]:
        finding = f"every gate type has {live[most]:,} live gates"
    title(figure, finding[0].upper() + finding[1:])
    return figure


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
