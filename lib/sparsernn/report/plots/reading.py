"""What a small network reads: its words and their numbers, and its live gates at work along a text."""

import math

import matplotlib.pyplot as plt
import numpy as np

from .gates import GATES
from .style import BLUE, RED, say, styled, subplots, title


@styled
def word_page(table, columns=6, largest=420):
    """Every kept word of a two-class task with its number, on one page; its order is the number's, its colour the sign.

    table: `tables.word_numbers`. With several dimensions left: the one whose numbers go most with the effect. More than
    `largest` words: those with the largest numbers.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(ax, "no page of words: the task has not two classes, or the model no embedding")
        return figure
    number, kept = table["dimension"].nunique(), table["word"].nunique()
    part = _main_dimension(table)
    both = part["value"].corr(part["log_odds"], method="spearman")
    shown = part.loc[part["value"].abs().nlargest(largest).index].sort_values("value", ascending=False)
    rows = math.ceil(len(shown) / columns)
    figure, (page, ax) = plt.subplots(
        2, 1, figsize=(9, 2.4 + 0.145 * rows + 3), layout="constrained", height_ratios=[0.145 * rows + 0.3, 3]
    )
    page.set(xlim=(0, columns), ylim=(rows, -1))
    page.set_axis_off()
    for place, word in enumerate(shown.itertuples()):
        column, row = divmod(place, rows)
        colour = BLUE if word.value > 0 else RED
        page.text(column, row, f"{word.value:+.2f}".replace("-", "−"), color=colour, fontsize=6.5, family="monospace")
        page.text(column + 0.27, row, word.word[:18], color=colour, fontsize=7)
    for sign, colour, marker in ((1, BLUE, "o"), (-1, RED, "v")):
        side = part[np.sign(part["value"]) == sign]
        ax.plot(side["log_odds"], side["value"], marker, color=colour, ms=3.5, alpha=0.6, ls="none")
    for word in _apart(part.loc[part["value"].abs().nlargest(30).index], part):
        ax.annotate(word.word, (word.log_odds, word.value), xytext=(4, 2), textcoords="offset points", fontsize=7)
    ax.axhline(0, color="0.6", lw=0.7), ax.axvline(0, color="0.6", lw=0.7)
    ax.set(xlabel="log-odds of the second class in the training documents with the word", ylabel="the word's number")
    more = f", of {number} dimensions this one goes most with the effect" if number > 1 else ", one number each"
    title(figure, f"{kept:,} words are kept{more}; rank correlation of number and log-odds: {both:.2f}")
    return figure


def _main_dimension(table):
    """The rows of the dimension that goes most with the effect, its numbers turned so that + speaks for the second class."""
    parts = {d: part for d, part in table.groupby("dimension") if part["value"].nunique() > 1}
    fullest = max(map(len, parts.values()), default=0)
    parts = {d: part for d, part in parts.items() if len(part) >= fullest / 10}  # two words always agree with anything
    if not parts:
        return table
    fit = {d: part["value"].corr(part["effect"], method="spearman") for d, part in parts.items()}
    best = max(fit, key=lambda d: (abs(fit[d]), -d))
    return parts[best].assign(value=parts[best]["value"] * (1 if fit[best] >= 0 else -1))


MOST = 4  # lines of each kind of gate in a trace: five kinds are as many lines as are read


@styled
def gate_trace(table):
    """Live gates over the words of a text, a line a gate, of each kind the MOST that move most: dark is shut or negative,
    bright is open or positive.

    table: `tables.gate_trace`.
    """
    if table.empty:
        figure, ax = subplots(5.2, 1.6)
        say(
            ax,
            "nothing moves here: no gate hears words or neurons, or no layer reads words as they are"
            if "gate" in table
            else "no gates here",
        )
        return figure
    wide = table.pivot(index=["gate", "neuron"], columns="step", values="value")
    total, moves = table["of"].iloc[0], wide.std(axis=1)
    wide = wide.loc[moves.sort_values(ascending=False, kind="stable").groupby("gate", sort=False).head(MOST).index]
    letters = [g for g in (*GATES, "h") if g in wide.index.get_level_values("gate")]
    order = sorted(wide.index, key=lambda key: (letters.index(key[0]), key[1]))
    wide = wide.loc[order]
    words = table.drop_duplicates("step").sort_values("step")["word"]
    figure, ax = subplots(max(5.5, 1.5 + 0.17 * len(words)), 1.9 + 0.16 * len(wide))
    image = ax.imshow(wide.to_numpy(), cmap="cividis", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(words)), [w if w.strip() else repr(w) for w in words], rotation=90, fontsize=7)
    ax.set_yticks(range(len(wide)), [f"{gate} of {neuron}" for gate, neuron in wide.index], fontsize=7)
    for place in range(1, len(wide)):
        if wide.index[place][0] != wide.index[place - 1][0]:
            ax.axhline(place - 0.5, color="white", lw=1.5)
    beyond = bool((wide.abs() > 1).to_numpy().any())  # a state may be: its colour ends at ±1, and the bar says so
    bar = figure.colorbar(
        image, ax=ax, fraction=0.03, pad=0.01, ticks=[-1, 0, 1], extend="both" if beyond else "neither"
    )
    bar.set_label("value (colours end at ±1)" if beyond else "value", fontsize=8)
    gate, neuron = moves.idxmax()
    less = f" (of each kind those that move most, {len(wide)} of {total})" if total > len(wide) else ""
    title(figure, f"{GATES.get(gate, 'output h')} of neuron {neuron} moves most, by ± {moves.max():.2f}{less}")
    return figure


def _apart(words, part, most=14):
    """Of words, the farthest from zero first, as many as are not written over one another."""
    width, height = np.ptp(part["log_odds"]) / 12, np.ptp(part["value"]) / 30  # of a word, about
    placed = []
    for word in words.itertuples():
        clear = all(abs(word.log_odds - o.log_odds) > width or abs(word.value - o.value) > height for o in placed)
        if clear and len(placed) < most:
            placed.append(word)
    return placed
