"""Where an answer begins and ends, word by word, before and after pruning."""

import textwrap

import torch

from ...tasks.squad import SpanTask, exact_match
from .answers import answers
from .style import BLUE, GREY, ORANGE, styled, subplots, title

LOOKED_AT = 64  # validation questions, those about the shortest paragraphs
FEWEST, MOST = 20, 60  # words of a paragraph that is worth reading, and of what is shown of it
SIDES = (("first word", BLUE, ""), ("last word", ORANGE, "///"))


@torch.no_grad()
def asked(task, before, after):
    """The validation questions looked at → a batch, and for either predictor its answers' texts, and the chance of each word
    to be the first and the last one, [T, B, 2]."""
    batches = list(task.batches("valid", LOOKED_AT))
    batch = next((batch for batch in batches if len(batch.inputs[0]) >= FEWEST), batches[-1])
    found = []
    for predict in (before, after):
        logits, _ = predict(*batch.inputs, lengths=batch.lengths, state=None)
        found.append((task.said(logits, batch), logits.softmax(0)))
    return batch, found


@answers.register(SpanTask)
@styled
def answer_chances(task, before, after):
    """A question, and over the words of its paragraph the chances that the answer begins (up) and ends (down) there; a right
    one lies in the shade. Of the questions looked at the one that pruning moves most, of a long paragraph the part around
    that answer."""
    batch, found = asked(task, before, after)
    moved = (found[1][1] - found[0][1]).abs().sum((0, 2))
    shown = int(moved.argmax())
    number, (first, last) = int(batch.numbers[shown]), batch.targets[shown].tolist()
    text, places = task.paragraph("valid", number)
    right, asks = task.texts["valid"].answers[number], task.texts["valid"].questions[number]
    start = max(0, min((first + last - MOST) // 2, len(places) - MOST))
    words = range(start, min(start + MOST, len(places)))
    chances = [chances[: len(places), shown].cpu().numpy() for _, chances in found]
    top = max(0.05, 1.1 * max(float(each[start : words.stop].max()) for each in chances))
    figure, axes = subplots(max(6.0, 1.2 + 0.17 * len(words)), 5.4, rows=2, sharex=True)
    for ax, name, (said, _), heights in zip(axes, ("before", "after"), found, chances, strict=True):
        for end, (side, colour, hatch) in enumerate(SIDES):
            ax.bar(
                words, heights[start : words.stop, end] * (1, -1)[end], 0.9, color=colour, hatch=hatch, lw=0, label=side
            )
        ax.axvspan(first - 0.5, last + 0.5, color=GREY, alpha=0.25, lw=0, zorder=0)
        ax.axhline(0, color="0.4", lw=0.7)
        verdict = "right" if exact_match(said[shown], right) else "wrong"
        ax.set(xlim=(words.start - 0.7, words.stop - 0.3), ylim=(-top, top), ylabel="chance")
        ax.set_title(f"{name}: {_short(said[shown])} ({verdict})")
        ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes[0].legend(loc="upper right", fontsize=8, ncols=2)
    axes[1].set_xticks(words, [text[a:b] for a, b in places[start : words.stop]], rotation=90, fontsize=7)
    changed = sum(a != b for a, b in zip(found[0][0], found[1][0], strict=True))
    finding = f"Pruning changes {changed} of {len(moved)} answers, and moves this one most: {asks}"
    title(figure, f"{finding} ({' · '.join(dict.fromkeys(right))})")
    return figure


def _short(text):
    return f"“{textwrap.shorten(text, 60, placeholder=' …')}”"
