"""What the figures share: colours and looks, how a finding or an empty table is written, numbers for reading."""

import functools
import math
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# seaborn's "colorblind", and a purple
BLACK, GREY, BLUE, ORANGE, GREEN, RED = "#000000", "#949494", "#0173b2", "#de8f05", "#029e73", "#d55e00"
PINK, BROWN, PURPLE, YELLOW, SKY = "#cc78bc", "#ca9161", "#7a3fa0", "#ece133", "#56b4e9"

# The same method looks the same everywhere: (colour, marker, dash). Families share a hue, never a marker.
METHOD_STYLE = {
    "dense": (BLACK, "o", "-"),
    "binary-dropout": (GREY, "s", "--"),
    "sparse-vd-w": (ORANGE, "^", "--"),
    "sparse-vd-w-binary": ("#f2c36b", "v", ":"),
    "sparse-vd-w-voc": (SKY, "<", "-."),
    "sparse-vd-wn": ("#7fa8d9", "D", "--"),
    "sparse-vd-wgn": (BLUE, "s", "-"),
    "gradual": (GREEN, "P", "-"),
    "hard": ("#7bcbb0", "X", "--"),
    "blocks": ("#00543c", "p", ":"),
    "one-shot": ("#8aa812", ">", "-."),
    "l0": (PINK, "d", "-"),
    "iss": (BROWN, "h", "-"),
    "restricted": (YELLOW, "8", "-."),
    "heads": (BROWN, "^", ":"),
    "few-words": (PURPLE, ".", ":"),
    "linear": (RED, "*", "-."),
    "back-off": (PURPLE, "H", ":"),
}
# How zeros lie, everywhere: (colour, marker)
PATTERN_STYLE = {
    "scattered": (ORANGE, "P"), "16×1": (BLUE, "o"), "8×4": (GREEN, "s"), "4×4": (PINK, "v"), "16×4": (RED, "D"),
    "32×32": (PURPLE, "^"), "dense": (BLACK, "*"),
}  # fmt: skip
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

STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left", "figure.titlesize": 10.5,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "hatch.linewidth": 0.6,
    "figure.dpi": 100, "figure.max_open_warning": 0,
}  # fmt: skip


def styled(draw):
    """Draw under STYLE, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def subplots(width, height, rows=1, columns=1, **kwargs):
    """`plt.subplots`, so many inches wide and high."""
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **kwargs)


def say(ax, words):
    """What an empty table draws: a sentence."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(words, 44), ha="center", va="center", transform=ax.transAxes, color="0.35")
    return ax


def title(where, words):
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


def telling(variants):
    """Variant → its entries that not all of these have, joined again; of a single one all."""
    entries = {variant: [entry for entry in variant.split(",") if entry] for variant in variants}
    common = set.intersection(*map(set, entries.values())) if len(entries) > 1 else set()
    return {variant: ",".join(one for one in found if one not in common) for variant, found in entries.items()}


def look(method):
    """(colour, marker, dash) of a method; grey diamonds for one that was registered from outside."""
    return METHOD_STYLE.get(method, (GREY, "D", ":"))


def metric_of(table):
    """(name in words, "higher" | "lower") of the one metric in a table."""
    names = table["metric"].unique()
    if len(names) != 1:
        raise ValueError(f"one figure shows one metric; the table has {', '.join(map(str, names))}")
    return METRICS[names[0]]


def best_of(values, better):
    """The highest or the lowest value, as `better` says."""
    return values.max() if better == "higher" else values.min()


def log_counts(axis):
    """A logarithmic axis whose ticks are 1, 10, 1,000, written out, with a few between where it is short."""
    axis.set_major_formatter(
        lambda value, _: f"{value:,.0f}" if abs(value - round(value)) < 1e-9 * value else f"{value:.3g}"
    )
    low, high = sorted(axis.get_view_interval())
    if high / max(low, 1e-300) < 5:  # of 1, 2 and 5 there may be one between, or none
        axis.set_major_locator(MaxNLocator(4))
    elif high / max(low, 1e-300) < 100:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())


def unique_legend(ax, only=None, **kwargs):
    """A legend with one entry a name; only: those of these names."""
    entries = {name: handle for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    entries = {name: handle for name, handle in entries.items() if only is None or name in only}
    ax.legend(entries.values(), entries.keys(), fontsize=8, **kwargs)


CORNERS = (
    (7, 4, "left"),
    (-7, 4, "right"),
    (7, -10, "left"),
    (-7, -10, "right"),
)  # where a name stands beside its point
POINT = 4  # pixels around the middle of a point that no name covers


def beside(ax, names):
    """Write names beside points, (x, y) → name, in the first corner where they cover no point and no other name; where
    there is none, not at all. The axes have their limits by then."""
    dots = [ax.transData.transform(line.get_xydata()) for line in ax.lines]
    dots, taken = np.concatenate(dots), []
    for place, name in names.items():
        for right, up, side in CORNERS:
            text = ax.annotate(name, place, (right, up), textcoords="offset points", ha=side, fontsize=7, color="0.35")
            box = text.get_window_extent(ax.figure.canvas.get_renderer())
            covered = (
                ((dots > [box.x0 - POINT, box.y0 - POINT]) & (dots < [box.x1 + POINT, box.y1 + POINT])).all(1).any()
            )
            outside = not ax.bbox.padded(2).contains(box.x0, box.y0) or not ax.bbox.padded(2).contains(box.x1, box.y1)
            if not (covered or outside or any(box.overlaps(other) for other in taken)):
                taken.append(box)
                break
            text.remove()


def apart(texts):
    """Take away of some texts those that would be written over one before."""
    taken = []
    for text in texts:
        box = text.get_window_extent(text.figure.canvas.get_renderer())
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
