"""The gates of many networks side by side: which types stay live, which become constants, by task and method."""

import numpy as np

from .gates import GATES, STATES, gates_differ
from .style import say, styled, subplots, title


@styled
def gate_patterns(table):
    """A line a network, a panel a gate type: of the gates of kept neurons the share that is live, the rest constants.

    table: `tables.gate_table` of several runs, with their task, model and method; all layers of a network are one line.
    The number of kept neurons stands at its name; networks of whose gates hardly one is a constant (`gates_differ`) are
    left out.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no run left a table of gates")
        return figure
    kept = table[table["state"] != "removed"]
    runs = []
    for keys, part in kept.groupby(["task", "model", "method"], sort=False):
        if gates_differ(part):
            runs.append((keys, part))
    if not runs:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "every network kept nearly all gates of the neurons it kept")
        return figure
    kinds = {}  # of one cell, one under the other
    for keys, part in runs:
        kinds.setdefault(tuple(dict.fromkeys(part["gate"])), []).append((keys, part))
    heights = [len(nets) + 2 for nets in kinds.values()]
    wide = max(map(len, kinds))
    figure, axes = subplots(9, 0.6 + 0.21 * sum(heights), len(kinds), wide, squeeze=False, height_ratios=heights)
    for row, (letters, nets) in zip(axes, kinds.items(), strict=True):
        for ax in row[len(letters) :]:
            ax.set_axis_off()
        for ax, letter in zip(row, letters, strict=False):
            live = np.array([(part.loc[part["gate"] == letter, "state"] == "live").mean() for _, part in nets])
            for share, left, state in ((live, 0 * live, "live"), (1 - live, live, "constant")):
                colour, hatch = STATES[state]
                look = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.4, "label": state}
                ax.barh(range(len(nets)), share, 0.78, left, **look)
            ax.set(xlim=(0, 1), xticks=[0, 1], yticks=[], ylim=(len(nets) - 0.4, -0.6))
            ax.set_title(GATES.get(letter, letter), fontsize=8.5)
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        names = [f"{task} {model} · {method} ({part.groupby('layer')['neuron'].nunique().sum():,})"
                 for (task, model, method), part in nets]  # fmt: skip
        row[0].set_yticks(range(len(nets)), names, fontsize=7.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower left", ncols=2)
    title(figure, f"{len(runs)} networks, one run each; in brackets: kept neurons, whose gates are 100 %")
    return figure
