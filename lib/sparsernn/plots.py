"""Every figure of the study: a function of a tidy table (`tables`, results/*.csv), so that it can be redrawn from a CSV.

A title is the finding, computed from the data. Colours are safe for the colour-blind and never alone: markers, dashes,
hatches say the same in grey. A table with no rows draws a sentence that says why.
"""

import functools
import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, to_rgba
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullFormatter

# seaborn's "colorblind", and a purple
BLACK, GREY, BLUE, ORANGE, GREEN, RED = "#000000", "#949494", "#0173b2", "#de8f05", "#029e73", "#d55e00"
PINK, BROWN, PURPLE, YELLOW, SKY = "#cc78bc", "#ca9161", "#7a3fa0", "#ece133", "#56b4e9"

# The same method looks the same everywhere: (colour, marker, dash). Families share a colour, never a marker.
METHOD_STYLE = {
    "dense": (BLACK, "o", "-"),
    "binary-dropout": (GREY, "s", "--"),
    "sparse-vd-w": (ORANGE, "^", "--"),
    "sparse-vd-w-binary": (ORANGE, "v", ":"),
    "sparse-vd-w-voc": (SKY, "<", "-."),
    "sparse-vd-wn": (SKY, "D", "--"),
    "sparse-vd-wgn": (BLUE, "s", "-"),
    "gradual": (GREEN, "P", "-"),
    "hard": (GREEN, "X", "--"),
    "gradual-block": (GREEN, "p", ":"),
    "l0": (PINK, "d", "-"),
    "iss": (BROWN, "h", "-"),
    "restricted": (YELLOW, "8", "-."),
    "linear": (RED, "*", "-."),
    "back-off": (PURPLE, "H", ":"),
}
OPPONENTS = ("linear", "back-off")  # drawn hollow: no recurrent network

# metric → its words with unit, and which way is better
METRICS = {
    "accuracy": ("accuracy", "higher"),
    "exact_match": ("exact match", "higher"),
    "f1": ("F1", "higher"),
    "perplexity": ("perplexity per word", "lower"),
    "bits_per_char": ("bits per character", "lower"),
    "label_error_rate": ("label error rate", "lower"),
}
GATES = {"i": "input i", "f": "forget f", "g": "candidate g", "o": "output o",
         "r": "reset r", "z": "update z", "n": "candidate n", "h": "state h"}  # fmt: skip
CANDIDATES = "gnh"  # a tanh, −1 … 1; the others are squashed to 0 … 1
LIVE = "#1f1f1f"
STATES = {"live": (LIVE, ""), "constant": ("#a79fcb", "///"), "removed": ("#e6e6e6", "...")}
FILES = {"dense": (BLACK, ""), "compact": (BLUE, "///"), "floor": (GREY, "...")}
KEPT, PRUNED = (BLUE, ""), (ORANGE, "///")

STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "figure.titlesize": 10.5,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "hatch.linewidth": 0.6,
    "figure.dpi": 100, "figure.max_open_warning": 0,
}  # fmt: skip


def _styled(draw):
    """Draw under STYLE, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def _axes(width, height, rows=1, columns=1, **kwargs):
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def _say(ax, words):
    """What an empty table draws: a sentence."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(words, 44), ha="center", va="center", transform=ax.transAxes, color="0.35")
    return ax


def _title(where, words):
    """The finding, wrapped to the width of the axes' or figure's own inches, at the left."""
    if isinstance(where, plt.Figure):
        where.suptitle(textwrap.fill(words, int(where.get_size_inches()[0] * 12.5)), x=0.01, ha="left")
    else:
        width = where.get_figure().get_size_inches()[0] * where.get_position().width
        where.set_title(textwrap.fill(words, max(24, int(width * 15.5))))


def percent(share):
    """0.9998 is 99.98%, not 100%: as few decimals as tell it from all and from nothing."""
    for decimals in range(5):
        text = f"{share:.{decimals}%}"
        if share in (0, 1) or float(text[:-1]) not in (0, 100):
            break
    return text


def times(factor):
    """3.14 → 3.1×, 1247.4 → 1,247×, nothing left → ∞."""
    return f"{factor:.2g}×" if factor < 9.95 else f"{factor:,.0f}×" if math.isfinite(factor) else "∞"


def size(count):
    """Bytes for reading: 512 B, 4.1 kB, 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000


def look(method):
    """(colour, marker, dash) of a method. Raises ValueError for one that has none yet."""
    if method not in METHOD_STYLE:
        raise ValueError(f"no style for method {method!r}: add it to plots.METHOD_STYLE ({', '.join(METHOD_STYLE)})")
    return METHOD_STYLE[method]


def _metric(table):
    """(name in words, "higher" | "lower") of the one metric in a table."""
    names = table["metric"].unique()
    if len(names) != 1:
        raise ValueError(f"one figure shows one metric; the table has {', '.join(map(str, names))}")
    return METRICS[names[0]]


def _best(values, better):
    return values.max() if better == "higher" else values.min()


def _log_counts(axis):
    """A logarithmic axis whose ticks are 1, 10, 1,000, written out, with a few between where it is short."""
    axis.set_major_formatter(
        lambda value, _: f"{value:,.0f}" if abs(value - round(value)) < 1e-9 * value else f"{value:.3g}"
    )
    low, high = sorted(axis.get_view_interval())
    if high / max(low, 1e-300) < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())


# ---- training


ABSENT = {"train_loss": "no training loss: fitted in one go", "gates_live": "no gates here"}


@_styled
def training_curves(table):
    """Loss and penalty, validation metric, compression, live gates against epoch; one line a method and seed.

    table: `tables.metrics_table`. A path of C (no epochs) is drawn against C when alone, as a level line beside others.
    """
    figure, axes = _axes(8, 5.2, 2, 2)
    words, better = _metric(table)
    path = table["C"].notna() if "C" in table else pd.Series(False, table.index)
    runs = table if path.all() else table[~path]
    x, label = ("C", "C, inverse strength of L1") if path.all() else ("epoch", "epoch")
    panels = [("train_loss", "nats per example"), ("valid", f"validation {words}"),
              ("compression", "compression: all ÷ kept"), ("gates_live", "live gates")]  # fmt: skip
    for ax, (column, quantity) in zip(axes.flat, panels, strict=True):
        if column not in runs or runs[column].isna().all():
            _say(ax, ABSENT.get(column, "not measured"))
            continue
        for (method, _), part in runs.groupby(["method", "seed"], sort=False):
            _curve(ax, part, x, column, method)
        for method, part in table[path & table["chosen"]].groupby("method") if not path.all() else ():
            if part[column].notna().all() and column != "train_loss":
                ax.axhline(part[column].mean(), color=look(method)[0], ls=look(method)[2], lw=1.2, label=method)
        ax.set(xlabel=label, ylabel=quantity, xscale="log" if x == "C" else "linear")
        if x == "epoch":
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        else:
            _log_counts(ax.xaxis)
        if column == "compression" and table[column].max() > 5 * table[column].min():
            ax.set_yscale("log")
            _log_counts(ax.yaxis)
    _loss_panel(axes[0, 0], runs)
    if axes[0, 1].get_legend_handles_labels()[0]:
        _unique_legend(axes[0, 1])
    best = table[table["chosen"]]
    found = [f"{r.method}: {r.valid:.3g} {words} at {times(r.compression)}" for r in best.itertuples()][:3]
    _title(
        figure, "Chosen on validation – " + "; ".join(found) if found else f"No epoch chosen yet ({better} is better)"
    )
    return figure


def _curve(ax, part, x, column, method, dash=None, label=None):
    colour, marker, own_dash = look(method)
    many = len(part) > 25
    ax.plot(part[x], part[column], color=colour, ls=dash or own_dash, marker=None if many else marker, ms=4, lw=1.3,
            label=label or method)  # fmt: skip
    chosen = part[part["chosen"]]
    if dash is None:
        ax.plot(chosen[x], chosen[column], "o", ms=9, mfc="none", mec=BLACK, mew=1.1, label="chosen")


def _loss_panel(ax, runs):
    """The penalty beside the loss, on a common logarithmic axis where it is not zero."""
    if not ax.axison or "penalty" not in runs or not (runs["penalty"] > 0).any():
        return
    for (method, _), part in runs[runs["penalty"] > 0].groupby(["method", "seed"], sort=False):
        _curve(ax, part, "epoch", "penalty", method, dash=(0, (1, 1)), label="penalty (dotted)")
    ax.set_yscale("log")
    _log_counts(ax.yaxis)
    ax.lines[0].set_label("loss")
    _unique_legend(ax, only=("loss", "penalty (dotted)"))


def _unique_legend(ax, only=None, **kwargs):
    entries = {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    entries = {name: handle for name, handle in entries.items() if only is None or name in only}
    ax.legend(entries.values(), entries.keys(), fontsize=8, **kwargs)


# ---- thresholds and log α


@_styled
def threshold_curve(table):
    """Validation quality and compression against the threshold of log α; the chosen one marked.

    table: `tables.threshold_table` (threshold, valid, compression, metric, chosen).
    """
    if table.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no threshold to choose: this method has no log α")
        return figure
    figure, axes = _axes(6.2, 5.0, 2, 1, sharex=True)
    words, better = _metric(table)
    table = table.sort_values("threshold")
    chosen = table[table["chosen"].astype(bool)]
    shown = table.assign(compression=table["compression"].where(np.isfinite(table["compression"].astype(float))))
    for ax, column, (colour, marker) in zip(axes, ("valid", "compression"), ((BLUE, "o"), (ORANGE, "s")), strict=True):
        ax.plot(shown["threshold"], shown[column], color=colour, marker=marker, ms=4.5, lw=1.3)
        for cut in chosen["threshold"]:
            ax.axvline(cut, color=BLACK, ls="--", lw=1)
    axes[0].set_ylabel(f"validation {words}\n({better} is better)")
    axes[1].set(ylabel="compression:\nweights, all ÷ kept", xlabel="threshold: keep log α below it", yscale="log")
    _log_counts(axes[1].yaxis)
    best = _best(table["valid"], better)
    peak = table[table["valid"] == best]["threshold"]
    where = f"{peak.min():g}" if peak.min() == peak.max() else f"{peak.min():g}…{peak.max():g}"
    where = where.replace("-", "−")
    for row in chosen.itertuples():
        axes[0].annotate(f"chosen: {row.threshold:g}", (row.threshold, 1.01), xycoords=("data", "axes fraction"),
                         ha="center", va="bottom", fontsize=8)  # fmt: skip
        _title(figure, f"At threshold {row.threshold:g}: {row.valid:.3g} {words}, {times(row.compression)} fewer weights; "
                       f"best {best:.3g} at {where}")  # fmt: skip
    return figure


@_styled
def log_alpha_histogram(table, ax=None):
    """How far apart signal and noise are: counts of log α, the cut, and the share on each side.

    table: rows of one tensor of `tables.log_alpha_table` (low, high, count, kept); of several: their sum.
    """
    ax = ax or _axes(5, 3)[1]
    if table.empty:
        return _say(ax, "this method has no log α")
    kept = table["kept"].astype(bool)
    bins = table.assign(kept=kept).groupby(["low", "high", "kept"], as_index=False)["count"].sum()
    total, cut = bins["count"].sum(), bins["low"][~bins["kept"]].min() if (~kept).any() else bins["high"].max()
    for side, (colour, hatch) in ((True, KEPT), (False, PRUNED)):
        part = bins[bins["kept"] == side]
        name = f"{'kept' if side else 'pruned'} ({percent(part['count'].sum() / total)})"
        ax.bar(part["low"], part["count"], part["high"] - part["low"], align="edge", color=colour, hatch=hatch,
               edgecolor="white", lw=0.4, label=name)  # fmt: skip
    ax.axvline(cut, ymax=0.86, color=BLACK, ls="--", lw=1)
    is_weight = table["tensor"].str.contains(".", regex=False).all()
    ax.set(
        xlabel=r"$\log\alpha = \log\,\sigma^2/\theta^2$", ylabel=f"{'weights' if is_weight else 'variables'} per bin"
    )
    ax.xaxis.set_major_locator(MultipleLocator(2 if ax.get_position().width > 0.5 else 4))
    ax.set(yscale="log", ylim=(0.6, bins["count"].max() * 12), xlim=(bins["low"].min(), bins["high"].max()))
    ax.legend(fontsize=8, loc="upper left", ncols=2, handlelength=1.4, columnspacing=1, borderaxespad=0.2)
    names = table["tensor"].unique()
    whose = f"{names[0]}: " if len(names) == 1 else ""
    ax.set_title(f"{whose}{percent(1 - bins['count'][bins['kept']].sum() / total)} is noise")
    return ax


@_styled
def log_alpha_histograms(table, columns=3):
    """`log_alpha_histogram` of every tensor and group variable. table: `tables.log_alpha_table`."""
    names = list(table["tensor"].unique())
    if not names:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "this method has no log α: nothing says which weights are noise")
        return figure
    columns = min(columns, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = _axes(3.5 * columns, 2.4 * rows + 0.3, rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        log_alpha_histogram(table[table["tensor"] == name], ax)
    for ax in axes.flat[: max(0, len(names) - columns)]:
        ax.set_xlabel("")
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    weights = table[table["tensor"].str.contains(".", regex=False)]
    noise = weights.loc[~weights["kept"].astype(bool), "count"].sum() / max(1, weights["count"].sum())
    _title(figure, f"{percent(noise)} of the {weights['count'].sum():,} weights are noise")
    return figure


# ---- gates


def _order(part):
    """Neurons of one layer by what is kept: most live gates first, equal patterns together, removed ones last."""
    rank = part["state"].map({"live": 0, "constant": 1, "removed": 2})
    wide = part.assign(rank=rank).pivot(index="neuron", columns="gate", values="rank")[list(part["gate"].unique())]
    keys = pd.DataFrame({"removed": (wide == 2).all(axis=1), "live": -(wide == 0).sum(axis=1)}).join(wide)
    return keys.sort_values(list(keys.columns), kind="stable").index.to_list()


@_styled
def gate_map(table):
    """Where the gates live: a panel a gate type, a square a hidden neuron, neurons sorted by what is kept.

    Every panel of a layer has the same neurons at the same places. Live: dark. Constant: its value as colour, and
    written in where there is room, else a dot. Removed: a small cross. table: `tables.gate_table`.
    """
    if table.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no gates here: the model has no recurrent layer")
        return figure
    layers, letters = list(table["layer"].unique()), list(table["gate"].unique())
    figure, axes = _axes(2.15 * len(letters) + 0.9, 2.35 * len(layers) + 1.0, len(layers), len(letters), squeeze=False)
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
    _title(figure, f"{live:,} of {total:,} gates are live, in {neurons:,} of {total // len(letters):,} hidden neurons")
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


@_styled
def gate_counts(table):
    """Live, constant and removed gates of each type, stacked, per layer. table: `tables.gate_table`."""
    if table.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no gates to count: the model has no recurrent layer")
        return figure
    layers, letters = list(table["layer"].unique()), list(table["gate"].unique())
    figure, axes = _axes(1.2 + 4.0 * len(layers), 3.2, 1, len(layers), squeeze=False, sharey=True)
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
    _title(figure, finding[0].upper() + finding[1:])
    return figure


@_styled
def constant_values(table):
    """What the constant gates say for ever: a histogram of their values, a panel a gate type. table: `tables.gate_table`."""
    constant = table[table["state"] == "constant"]
    if constant.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no constant gate: every gate of every kept neuron hears something" if len(table) else "no gates here")
        return figure
    letters = list(table["gate"].unique())
    figure, axes = _axes(2.15 * len(letters), 2.6, 1, len(letters), squeeze=False, sharey=True)
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
    _title(figure, f"{len(constant):,} constant gates; median value: {medians}")
    return figure


# ---- what is read


@_styled
def word_page(table, columns=6, largest=420):
    """Every kept word of a two-class task with its number, on one page; its order is the number's, its colour the sign.

    table: `reading.word_numbers`. With several dimensions left: the one whose numbers go most with the effect. More than
    `largest` words: those with the largest numbers.
    """
    if table.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no page of words: the task has not two classes, or the model no embedding")
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
    for word in part.loc[part["value"].abs().nlargest(14).index].itertuples():
        ax.annotate(word.word, (word.log_odds, word.value), xytext=(4, 2), textcoords="offset points", fontsize=7)
    ax.axhline(0, color="0.6", lw=0.7), ax.axvline(0, color="0.6", lw=0.7)
    ax.set(xlabel="log-odds of the second class in the training documents with the word", ylabel="the word's number")
    more = f", of {number} dimensions this one goes most with the effect" if number > 1 else ", one number each"
    _title(figure, f"{kept:,} words are kept{more}; rank correlation of number and log-odds: {both:.2f}")
    return figure


def _main_dimension(table):
    """The rows of the dimension that goes most with the effect, its numbers turned so that + speaks for the second class."""
    parts = {d: part for d, part in table.groupby("dimension") if part["value"].nunique() > 1}
    if not parts:
        return table
    fit = {d: part["value"].corr(part["effect"], method="spearman") for d, part in parts.items()}
    best = max(fit, key=lambda d: (abs(fit[d]), -d))
    return parts[best].assign(value=parts[best]["value"] * (1 if fit[best] >= 0 else -1))


@_styled
def gate_trace(table, most=36):
    """Live gates over the words of a text, a line a gate: dark is shut or negative, bright is open or positive.

    table: `reading.gate_trace`. More than `most` lines: those that move most.
    """
    if table.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "nothing moves here: no gate hears words or neurons" if "gate" in table else "no gates here")
        return figure
    wide = table.pivot(index=["gate", "neuron"], columns="step", values="value")
    total = len(wide)
    wide = wide.loc[wide.std(axis=1).nlargest(most).index]
    letters = [g for g in (*GATES, "h") if g in wide.index.get_level_values("gate")]
    order = sorted(wide.index, key=lambda key: (letters.index(key[0]), key[1]))
    wide = wide.loc[order]
    words = table.drop_duplicates("step").sort_values("step")["word"]
    figure, ax = _axes(max(5.5, 1.5 + 0.17 * len(words)), 1.9 + 0.16 * len(wide))
    image = ax.imshow(wide.to_numpy(), cmap="cividis", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    ax.set_xticks(range(len(words)), [w if w.strip() else repr(w) for w in words], rotation=90, fontsize=7)
    ax.set_yticks(range(len(wide)), [f"{gate} of {neuron}" for gate, neuron in wide.index], fontsize=7)
    for place in range(1, len(wide)):
        if wide.index[place][0] != wide.index[place - 1][0]:
            ax.axhline(place - 0.5, color="white", lw=1.5)
    figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01, ticks=[-1, 0, 1]).set_label("value", fontsize=8)
    moves = wide.std(axis=1)
    gate, neuron = moves.idxmax()
    less = f" (the {len(wide)} of {total} that move most)" if total > len(wide) else ""
    _title(figure, f"{GATES.get(gate, 'output h')} of neuron {neuron} moves most, by ± {moves.max():.2f}{less}")
    return figure


# ---- results


@_styled
def front(table, ax=None, quality="test", variants=True):
    """Quality against compression, a small point a run, a large one the mean of a method's seeds; one task.

    table: rows of results/<profile>.csv. variants: write them beside their points. Opponents that are no network are
    hollow; one without a compression is a line.
    """
    ax = ax or _axes(6.4, 4.2)[1]
    if table.empty:
        return _say(ax, "no finished run yet")
    if table["task"].nunique() > 1:
        raise ValueError(f"one front shows one task; the table has {', '.join(table['task'].unique())}")
    words, better = _metric(table)
    rows = table.assign(compression=pd.to_numeric(table["compression"]).where(lambda c: np.isfinite(c)))
    runs = rows.groupby(["method", "model", "variant"], as_index=False, sort=False, dropna=False)
    means = runs[["compression", quality]].mean()
    for row in means.itertuples():
        colour, marker, dash = look(row.method)
        value, variant = getattr(row, quality), row.variant if isinstance(row.variant, str) else ""
        if math.isnan(row.compression):  # no network and no weights to count: a level to be under or over
            ax.axhline(value, color=colour, ls=dash, lw=1.6, zorder=1, label=row.method)
            ax.annotate(row.model, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                        textcoords="offset points", color=colour, fontsize=8)  # fmt: skip
            continue
        fill = {"mfc": "white", "mew": 1.6} if row.method in OPPONENTS else {"mec": "white"}
        ax.plot(
            row.compression,
            value,
            marker,
            color=colour,
            ms=11 if marker == "*" else 9,
            label=row.method,
            zorder=3,
            **fill,
        )
        ax.annotate(
            variant if variants else "", (row.compression, value), xytext=(7, 3), textcoords="offset points", fontsize=7
        )
    for method, part in rows[rows["compression"].notna()].groupby("method"):
        if part.duplicated(["model", "variant"]).any():
            colour, marker, _ = look(method)
            ax.plot(part["compression"], part[quality], marker, color=colour, ms=4, alpha=0.45, zorder=2)
    ax.set(xscale="log", xlabel="compression: weights of the dense net ÷ weights kept")
    ax.set_ylabel(f"{quality} {words} ({better} is better)")
    ax.margins(0.1, 0.12)
    _log_counts(ax.xaxis)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    _unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    _title(ax, front_finding(means, quality, words, better))
    return ax


def front_finding(means, quality, words, better):
    """The sentence over a front: the sparsest network near the best one, and what an opponent makes of it."""
    nets = means[~means["method"].isin(OPPONENTS) & means["compression"].notna()]
    if nets.empty:
        return f"No network yet, only opponents: best {words} {_best(means[quality], better):.3g}"
    sign = 1 if better == "higher" else -1
    best = _best(nets[quality], better)
    near = nets[sign * (nets[quality] - best) >= -0.02 * abs(best)]
    row = near.loc[near["compression"].idxmax()]
    text = f"{row['method']}: {times(row['compression'])} at {row[quality]:.3g} {words}, the sparsest within 2% of the best net"
    others = means[means["method"].isin(OPPONENTS)]
    beats = others[(sign * (others[quality] - row[quality]) >= 0) & ~(others["compression"] < row["compression"])]
    if len(others):
        text += f"; {beats.iloc[0]['method']} beats it" if len(beats) else "; no opponent beats it on both"
    return text


@_styled
def fronts(points, published=None):
    """Validation quality against compression, all that was seen on the way: a dot an epoch, threshold or strength of L1,
    a line a method's best, a ring the chosen one; dotted, the authors' own way where they published it.

    points: task, method, variant, compression, valid, metric, chosen. published: rows of results/published.csv.
    """
    if points.empty:
        figure, ax = _axes(5.2, 1.6)
        _say(ax, "no run left a path")
        return figure
    figure, ax = _axes(7.4, 4.6)
    words, better = _metric(points)
    sign = 1 if better == "higher" else -1
    points = points.assign(compression=pd.to_numeric(points["compression"]))
    points = points[np.isfinite(points["compression"]) & points["valid"].notna()]
    for method, part in points.groupby("method", sort=False):
        colour, marker, dash = look(method)
        ordered = part.sort_values("compression", ascending=False)
        best = ordered[(sign * ordered["valid"]).cummax().diff().fillna(1) > 0]
        ax.plot(part["compression"], part["valid"], marker, color=colour, ms=3, alpha=0.35, ls="none", mew=0)
        ax.plot(best["compression"], best["valid"], color=colour, ls=dash, lw=1.4, marker=marker, ms=4.5, label=method)
        chosen = part[part["chosen"].astype(bool)]
        ax.plot(chosen["compression"], chosen["valid"], "o", ms=11, mfc="none", mec=BLACK, mew=1.2, label="chosen")
    for method, part in published.groupby("method", sort=False) if published is not None else ():
        part = part[part["valid"].notna()]
        if method in set(points["method"]) and len(part):
            colour = look(method)[0]
            ax.plot(
                part["compression"], part["valid"], color=colour, ls=(0, (1, 2)), lw=1.2, label="the authors', by epoch"
            )
            end = part.iloc[-1]
            ax.annotate(f"authors, epoch {end['epoch']:.0f}", (end["compression"], end["valid"]), xytext=(4, -9),
                        textcoords="offset points", fontsize=7, color=colour)  # fmt: skip
    top = _best(points["valid"], better)
    near = points[sign * (points["valid"] - top) > -0.15 * abs(top)]["valid"]
    low, high = near.min(), near.max()
    pad = 0.08 * max(high - low, 1e-9)
    ax.set(xscale="log", ylim=(low - pad, high + pad), xlabel="compression: weights of the dense net ÷ weights kept")
    ax.set_ylabel(f"validation {words} ({better} is better)")
    _log_counts(ax.xaxis)
    ax.grid(color="0.92", lw=0.6)
    _unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    chosen = points[points["chosen"].astype(bool)]
    _title(figure, "Chosen on validation – " + "; ".join(
        f"{r.method}: {r.valid:.3g} at {times(r.compression)}" for r in chosen.itertuples()))  # fmt: skip
    return figure


@_styled
def beside_published(curves, published):
    """Validation quality and compression by epoch, ours (full) beside the authors' (dotted, open markers), a colour a method.

    curves: `tables.tidy_metrics` of several runs of a task; published: rows of results/published.csv of that task.
    """
    words, better = _metric(curves)
    published = published[published["epoch"].notna()]
    figure, axes = _axes(9, 3.6, 1, 2)
    last = curves["epoch"].max()
    for ax, column in zip(axes, ("valid", "compression"), strict=True):
        for method, part in curves[curves["epoch"] > 0].groupby("method", sort=False):
            if method in OPPONENTS or (column == "compression" and part[column].eq(1).all()):  # nothing removed
                continue
            colour, marker, _ = look(method)
            ax.plot(part["epoch"], part[column], color=colour, marker=marker, ms=3.5, lw=1.3, label=f"{method}, here")
            theirs = published[(published["method"] == method)]
            ax.plot(theirs["epoch"], theirs[column], color=colour, marker=marker, mfc="white", ms=4.5, ls=":",
                    label=f"{method}, authors")  # fmt: skip
        ax.set(xscale="log", xlabel="epoch", ylabel=f"validation {words}" if column == "valid" else "compression")
        _log_counts(ax.xaxis)
        if column == "compression" or better == "lower":
            ax.set_yscale("log")
            _log_counts(ax.yaxis)
    _unique_legend(axes[1], loc="upper left", bbox_to_anchor=(1.01, 1))
    found = []
    for method, part in curves[curves["epoch"] == last].groupby("method", sort=False):
        theirs = published[(published["method"] == method) & (published["epoch"] == last)]["valid"]
        if len(theirs):
            found.append(f"{method} {part['valid'].iloc[0]:.3g} here, {theirs.iloc[0]:.3g} there")
    _title(figure, f"Validation {words} after {last:.0f} epochs: " + ("; ".join(found) or "the authors have no figure"))
    return figure


@_styled
def sizes(table, ax=None):
    """Bytes on disk: dense, compact, and the floor no such file goes below. table: `tables.sizes_table`."""
    ax = ax or _axes(5.6, 1.9)[1]
    if table.empty:
        return _say(ax, "no file written yet")
    bytes_of = dict(zip(table["file"], table["bytes"], strict=True))
    for place, (name, count) in enumerate(reversed(bytes_of.items())):
        colour, hatch = FILES.get(name, (GREY, ""))
        ax.barh(place, count, 0.65, color=colour, hatch=hatch, edgecolor="white", lw=0.5)
        ax.annotate(size(count), (count, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(bytes_of)), list(bytes_of)[::-1])
    ax.set(xscale="log", xlabel="bytes on disk", xlim=(max(1, table["bytes"].min()) / 3, table["bytes"].max() * 4))
    ax.tick_params(axis="y", length=0)
    if {"dense", "compact", "floor"} <= bytes_of.keys():
        smaller = bytes_of["dense"] / bytes_of["compact"]
        change = f"{times(smaller)} smaller than dense" if smaller > 1.05 else "no smaller than dense"
        _title(ax, f"The file is {change}, {bytes_of['compact'] / max(1, bytes_of['floor']):.2f} × its floor")
    return ax


# ---- the penalty


@_styled
def kl_curves(table):
    """The KL by Monte Carlo beside its two published fits, and what is left between them.

    table: log_alpha, kl, error (standard), molchanov, code (both → 0 at the right), in nats per weight.
    """
    figure, (left, right) = _axes(9, 3.6, 1, 2)
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
    _title(figure, f"Both published fits follow the KL: Molchanov within {worst['molchanov']:.3f} nats, "
                   f"the code, up to a constant, within {worst['code']:.3f}")  # fmt: skip
    return figure


# ---- one noise sample or many

NOISES = {
    "none": (BLACK, "-", "o"),
    "shared": (BLUE, "-", "s"),
    "fresh": (ORANGE, "--", "^"),
    "local": (GREEN, ":", "D"),
}


@_styled
def noise_curves(table):
    """Bits of what is kept, bits of one network drawn, share of noise, against training steps; a line a way of drawing.

    table: `noise.train` of several kinds and seeds (noise, seed, step, valid, drawn, noise_share).
    """
    figure, axes = _axes(10, 3.4, 1, 3)
    quantities = (("valid", "means, noise at zero: bits per character"),
                  ("drawn", "drawn once: bits per character"), ("noise_share", "recurrent weights that are noise"))  # fmt: skip
    for ax, (column, words) in zip(axes, quantities, strict=True):
        for kind, part in table.groupby("noise", sort=False):
            colour, dash, marker = NOISES[kind]
            mean = part.groupby("step")[column].mean()
            ax.plot(mean.index, mean, color=colour, ls=dash, marker=marker, ms=3, lw=1.3, label=kind)
        ax.set(xlabel="training step", ylabel=words)
    axes[2].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _unique_legend(axes[2])
    end = table[table["step"] == table["step"].max()].groupby("noise", sort=False)[["valid", "drawn"]].mean()
    gaps = [f"{kind} {row.valid:.2f} kept, {row.drawn:.2f} drawn" for kind, row in end.iterrows() if kind != "none"]
    _title(figure, f"After {table['step'].max():,} steps, bits: " + "; ".join(gaps))
    return figure


# ---- engines

# engine → colour, marker, dash: a colour is a way of storing weights, a marker who runs it
ENGINE_STYLE = {
    "dense-fp32": (BLACK, "o", "-"),
    "dense-tf32": (BLACK, "v", "--"),
    "dense-bf16": (GREY, "^", "--"),
    "dense-fp16": (GREY, "v", ":"),
    "dense-int8": (GREY, "s", "-."),
    "compact-torch": (BLUE, "o", "-"),
    "compact-loop": (BLUE, "x", ":"),
    "persistent-dense": (BLUE, "D", "--"),
    "csr-torch": (ORANGE, "o", "-"),
    "csr-triton": (ORANGE, "^", "--"),
    "csr-numba": (ORANGE, "P", "-."),
    "numba-csr": (ORANGE, "P", "-."),
    "persistent": (RED, "D", "-"),
    "persistent-fp16": (RED, "d", "--"),
    "block-16": (GREEN, "s", "--"),
    "block-32": (GREEN, "p", "-"),
    "two-to-four": (PINK, "h", "-"),
    "numba": (PURPLE, "P", "-"),
    "triton-tiny": (PURPLE, "*", "-"),
}
CLAIM = (2, 7)  # the speed-up 1704.05119 states for its sparse products


def _against_dense(table):
    """Rows beside dense-fp32, `choose` left out."""
    return table[(table["opponent"] == "dense-fp32") & (table["engine"] != "choose")]


def _shade_losses(ax):
    """The line where an engine is as fast as dense, and the side on which it loses."""
    low, high = ax.get_ylim()
    low, high = min(low, 0.5), max(high, 2)
    ax.axhspan(low, 1, color="0.93", zorder=0)
    ax.axhline(1, color=BLACK, lw=1)
    ax.set_ylim(low, high)


@_styled
def crossover(table, x="density", panel="batch"):
    """How many times faster than dense fp32 each engine is, against density or batch, log-log; losing side shaded.

    table: timing rows. A panel for each value of `panel`; a point is the median over whatever else differs, the bar
    behind it from the least to the most.
    """
    rows = _against_dense(table)
    values = list(dict.fromkeys(rows[panel]))[:6]
    figure, axes = _axes(max(4.5, 3.1 * len(values)), 3.6, 1, max(1, len(values)), sharey=True, squeeze=False)
    if rows.empty:
        _say(axes[0, 0], "no timing here yet")
        return figure
    for ax, value in zip(axes.flat, values, strict=True):
        part = rows[(rows[panel] == value) & (rows["engine"] != "dense-fp32")]
        for engine, points in part.groupby("engine", sort=False):
            colour, marker, dash = ENGINE_STYLE[engine]
            found = points.groupby(x)["speedup"].agg(["min", "median", "max"])
            ax.vlines(found.index, found["min"], found["max"], color=colour, lw=3, alpha=0.25)
            ax.plot(found.index, found["median"], color=colour, marker=marker, ls=dash, ms=5, lw=1.3, label=engine)
        ax.set(
            xscale="log", yscale="log", xlabel=x, title=f"{panel} {value:g}" if panel == "batch" else f"{panel} {value}"
        )
        ax.set_xlim(rows[x].min() / 1.4, rows[x].max() * 1.4)
        ax.set_xticks(sorted(rows[x].round(3).unique()), minor=False)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    for ax in axes.flat:
        _shade_losses(ax)
    axes[0, 0].set_ylabel("times faster than dense fp32")
    _log_counts(axes[0, 0].yaxis)
    axes[0, -1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    _title(figure, crossover_finding(rows))
    return figure


def crossover_finding(rows):
    """The sentence over a crossover: in how many cells the fastest engine beats dense, and where none does."""
    cells = rows[~rows["engine"].str.startswith("dense-")].groupby(
        ["model", "hidden", "input", "density", "batch", "pattern"]
    )
    best = cells["speedup"].max()
    text = f"A sparse or compact engine beats dense fp32 in {(best > 1).sum()} of {len(best)} cells, at most {times(best.max())}"
    lost = best[best <= 1]
    if len(lost):
        where = lost.reset_index()
        text += (
            f"; none at batch {', '.join(f'{b:g}' for b in sorted(where['batch'].unique()))} in the other {len(lost)}"
        )
    return text


@_styled
def rooflines(table, ax=None):
    """What each engine takes in one cell, beside the floor that no engine of its kind goes below; errors written."""
    rows = _against_dense(table).sort_values("median_ms", ascending=False)
    ax = ax or _axes(6.2, 0.9 + 0.32 * max(3, len(rows)))[1]
    if rows.empty:
        return _say(ax, "no timing here yet")
    for place, row in enumerate(rows.itertuples()):
        ax.barh(
            place,
            row.median_ms,
            0.6,
            color=ENGINE_STYLE[row.engine][0],
            alpha=0.85,
            xerr=row.iqr_ms / 2,
            error_kw={"lw": 1},
        )
        ax.plot([row.floor_ms] * 2, [place - 0.42, place + 0.42], color=BLACK, lw=2, label="floor")
        ax.annotate(f"{row.median_ms:.3g} ms, error {row.error:.0e}", (row.median_ms, place), xytext=(8, 0),
                    textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows["engine"]))
    right = 6 * rows["median_ms"].max()
    ax.set(
        xscale="log", xlabel="median, ms (bar ± half its interquartile range)", xlim=(rows["floor_ms"].min() / 2, right)
    )
    ax.tick_params(axis="y", length=0)
    _unique_legend(ax, loc="lower right")
    best = rows.iloc[-1]
    _title(
        ax,
        f"{best.engine} is the fastest, {times(best.median_ms / best.floor_ms)} its floor, {times(best.speedup)} dense fp32",
    )
    return ax


@_styled
def product_claim(table, published=None, ax=None):
    """The fastest sparse product of each shape against batch, beside the 2× to 7× of 1704.05119 (band).

    published: shape, density, batch, speedup of another library on another device, drawn as crosses.
    """
    ax = ax or _axes(6.4, 4)[1]
    rows = _against_dense(table)
    rows = rows[~rows["engine"].str.startswith("dense") & (rows["density"] <= 0.1)]
    if rows.empty:
        return _say(ax, "no product timed here yet")
    ax.axhspan(*CLAIM, color="#cfe6f5", zorder=0, label="1704.05119 says")
    best = rows.groupby(["hidden", "input", "density", "batch"], as_index=False)["speedup"].max()
    palette = [BLUE, ORANGE, GREEN, RED, PURPLE, BROWN]
    for number, ((hidden, inputs), part) in enumerate(best.groupby(["hidden", "input"])):
        for density, line in part.groupby("density"):
            ax.plot(line["batch"], line["speedup"], color=palette[number % 6], marker="os^Dvp"[number % 6], ms=5, lw=1.3,
                    ls="-" if density < 0.08 else "--", label=f"{hidden:g} × {inputs:g}, {density:g}")  # fmt: skip
    if published is not None:
        ax.plot(published["batch"], published["speedup"], "x", color=GREY, label="DeepBench, TITAN Xp")
    ax.set(xscale="log", yscale="log", xlabel="batch: columns of x", ylabel="times faster than dense fp32")
    _log_counts(ax.xaxis)
    _shade_losses(ax)
    _log_counts(ax.yaxis)
    _unique_legend(ax, loc="upper left", bbox_to_anchor=(1.01, 1))
    inside, more = best["speedup"].between(*CLAIM).sum(), (best["speedup"] > CLAIM[1]).sum()
    lost = (best["speedup"] <= 1).sum()
    _title(ax, f"{inside} of {len(best)} products are 2 to 7 times faster than dense, {more} more, {lost} slower")
    return ax
