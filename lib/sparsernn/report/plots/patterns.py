"""The gates of many networks side by side: which types stay live, which become constants, by task and method."""

import numpy as np

from .gates import GATES, STATES
from .style import say, styled, subplots, title, unique_legend


@styled
def gate_patterns(table):
    """A line a network, a panel a gate type: of the gates of kept neurons the share that is live, the rest constants.

    table: `tables.gate_table` of several runs, with their task, model and method; all layers of a network are one line.
    The number of kept neurons stands at its name; networks that removed no gate and have no constant are left out.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no run left a table of gates")
        return figure
    kept = table[table["state"] != "removed"]
    runs, letters = [], list(dict.fromkeys(table["gate"]))
    for keys, part in kept.groupby(["task", "model", "method"], sort=False):
        if (part["state"] != "live").any():
            runs.append((keys, part))
    figure, axes = subplots(9, 1.3 + 0.21 * len(runs), 1, len(letters), sharey=True, squeeze=False)
    for ax, letter in zip(axes.flat, letters, strict=True):
        own = [part[part["gate"] == letter] for _, part in runs]
        live = np.array([(part["state"] == "live").mean() if len(part) else 0.0 for part in own])
        there = np.array([1.0 if len(part) else 0.0 for part in own])
        for share, left, state in ((live, 0 * live, "live"), (there - live, live, "constant")):
            colour, hatch = STATES[state]
            ax.barh(
                range(len(runs)), share, 0.78, left, color=colour, hatch=hatch, edgecolor="white", lw=0.4, label=state
            )
        ax.set(xlim=(0, 1), xticks=[0, 0.5, 1], title=GATES.get(letter, letter))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    names = [f"{task} {model} · {method} ({part.groupby('layer')['neuron'].nunique().sum():,})"
             for (task, model, method), part in runs]  # fmt: skip
    axes[0, 0].set_yticks(range(len(runs)), names, fontsize=7.5)
    axes[0, 0].set_ylim(len(runs) - 0.4, -0.6)
    unique_legend(axes[0, -1], loc="upper left", bbox_to_anchor=(1.01, 1))
    title(figure, f"{len(runs)} networks, one run each; in brackets: kept neurons, whose gates are 100 %")
    return figure
