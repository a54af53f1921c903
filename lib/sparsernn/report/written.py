"""How figures are written for a reader: as many digits as they carry, an interval where there is one, and tables in Markdown
and HTML whose empty fields are dashes."""

import html
import math

import pandas as pd

from .plots.style import METRICS, size, times

DASH = "–"
SHORTENED = 45  # characters of a variant that fit in a table
DECIMALS = {"accuracy": 3, "perplexity": 1, "bits_per_char": 3}


def quality(value, metric):
    """0.847 · 167.3 · 1.589 bits: a metric's figure; a dash where there is none."""
    return DASH if value is None or value != value else f"{value:.{DECIMALS.get(metric, 3)}f}"


def with_interval(row):
    """The test figure of a configuration, how many seeds it rests on, and what is known of its error.

    Three seeds or more: ± over seeds; two: both; an accuracy of one: ± over the test items.
    """
    metric, seeds = row["metric"], row["seeds"]
    text = quality(row["test"], metric)
    if row["seed_low"] == row["seed_low"]:
        return f"{text} ({seeds} seeds: {quality(row['seed_low'], metric)} … {quality(row['seed_high'], metric)})"
    if seeds == 2:
        return f"{text} (2 seeds: {' and '.join(quality(value, metric) for value in row['by_seed'])})"
    if row["item_low"] == row["item_low"]:
        return f"{text} (one seed; {quality(row['item_low'], metric)} … {quality(row['item_high'], metric)} over test items)"
    return f"{text} (one seed)"


def fewer(compression):
    """5.2× · 15,788×; a dash where nothing was counted."""
    return DASH if compression is None or not compression == compression else times(compression)


def count(value):
    """1,185; a dash where nothing was counted."""
    return DASH if value is None or value == "" or value != value else f"{float(value):,.0f}"


def seconds(value):
    """48 s · 20 min · 3.1 h."""
    if value is None or value != value:
        return DASH
    if value < 90:
        return f"{value:.0f} s" if value >= 1 else f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def bytes_of(value):
    """3.4 kB; a dash where no file was written."""
    return DASH if value is None or value != value else size(value)


def words_of(metric):
    """A metric in words and which way is better: accuracy, more is better."""
    words, better = METRICS[metric]
    return f"{words}, {'more' if better == 'higher' else 'less'} is better"


def measure(metric):
    """accuracy ↑ · perplexity ↓: a metric, and which way is better."""
    words, better = METRICS[metric]
    return f"{words} {'↑' if better == 'higher' else '↓'}"


def plain(value):
    """A field as text: what is missing is a dash, a list is joined."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == "":
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown(table):
    """A table of texts in Markdown, its first column left, as GitHub shows it."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.map(plain).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_html(table):
    """The same in HTML, in a box that scrolls sideways where the screen is narrow."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.columns)
    lines = table.map(plain).to_numpy().tolist()
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


class Verdicts(pd.DataFrame):
    """A table of `inside.verdict_table`, to be shown as text (`coloured`)."""


def coloured(table):
    """Texts of `inside.verdict_table` whose words are tinted by the chance of the last class after them: blue for, orange
    against, the more the surer."""
    found = []
    for _, part in table.groupby("text", sort=False):
        words = []
        for row in part.itertuples():
            tint = "1, 115, 178" if row.p >= 0.5 else "222, 143, 5"
            words.append(
                f'<span style="background: rgba({tint}, {abs(row.p - 0.5) * 1.1:.2f})">{html.escape(str(row.word))}</span>'
            )
        last = part.iloc[-1]
        verdict = f"{last['answer']} ({last['p']:.2f}), the label says {last['label']}"
        found.append(f'<p class="text">{" ".join(words)}<br><b>{html.escape(verdict)}</b></p>')
    return "\n".join(found)
