"""What a recogniser hears and answers: a spectrogram, and under it how likely each word is at every moment."""

import itertools
import textwrap

import numpy as np
import torch

from ...tasks.speech import HOP, RATE, WINDOW, SpeechTask
from .answers import answers
from .listen import listen
from .style import styled, subplots, title

BANDS = RATE / WINDOW  # Hz from one to the next
LONGEST = 80  # characters of what is read; a net that has learnt nothing reads a word a frame


def _shown(task):
    """The utterance that is shown: the validation split's one of middle length, whatever a model makes of it → (its number,
    a batch of it alone)."""
    order = task.order("valid")
    place = len(order) // 2
    return int(order[place]), next(itertools.islice(task.batches("valid", 1), place, None))


@torch.no_grad()
def posteriors(task, predict, batch):
    """How likely each class is, float [T', classes], and what is read, a list of words, of a batch of one utterance."""
    logits, _ = predict(*batch.inputs, lengths=batch.lengths, state=None)
    return logits[:, 0].softmax(-1), [task.classes[word] for word in task.read(logits, batch)[0]]


@answers.register
@styled
def spoken(task: SpeechTask, before, after):
    """An utterance's log-spectrogram, its words where they were said, and the probabilities of all classes over the same time
    before and after pruning. CTC is free to say a word at any moment: what counts is the order."""
    item, batch = _shown(task)
    words, spans = task.said("valid", item)
    said, spans = [task.classes[word] for word in words], spans / RATE
    seconds = len(batch.inputs[0]) * HOP / RATE
    figure, (sound, *panels) = subplots(8.6, 7.2, 3, 1, sharex=True, height_ratios=[1.15, 1, 1])
    image = sound.imshow(
        batch.inputs[0][:, 0].T.numpy(), origin="lower", aspect="auto", cmap="cividis", interpolation="nearest",
        extent=(0, seconds, 0, task.features * BANDS / 1000), vmin=-2.5, vmax=2.5,
    )  # fmt: skip
    figure.colorbar(image, ax=sound, pad=0.01, label="log power, standardised", extend="both")
    sound.set(ylabel="frequency, kHz")
    for (begin, end), word in zip(spans, said, strict=True):
        sound.annotate(word, ((begin + end) / 2, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        for ax in (sound, *panels):
            ax.axvspan(begin, end, fill=False, ec="white", lw=0.8, ls=":")
    heard = []
    for ax, predict, when in zip(panels, (before, after), ("before", "after"), strict=True):
        shares, read = posteriors(task, predict, batch)
        image = ax.imshow(
            shares.T.numpy(), origin="lower", aspect="auto", cmap="cividis", interpolation="nearest", vmin=0, vmax=1,
            extent=(0, seconds, -0.5, len(task.classes) - 0.5),
        )  # fmt: skip
        ax.set_yticks(range(len(task.classes)), ["blank", *task.classes[1:]], fontsize=7)
        said_so = textwrap.shorten(" ".join(read), LONGEST, placeholder=" …") or "nothing"
        ax.set_title(f"{when} pruning it reads: {said_so}", fontsize=8.5)
        figure.colorbar(image, ax=ax, pad=0.01, label="probability")
        heard.append((shares, read))
    panels[-1].set(xlabel="seconds", xlim=(0, seconds))
    ((old, first), (new, second)) = heard
    moved = (old - new).abs().sum(-1) / 2
    verdict = _verdict(said, first, second)
    title(
        figure, f"{verdict}; at a frame {moved.mean():.1%} of the probability moves, {moved.max():.0%} where it is most"
    )
    return figure


def _verdict(said, before, after):
    if before == after:
        return f"Pruned or not it reads the same, {'rightly' if after == said else 'wrongly'}"
    return (
        f"Right {'before' if before == said else 'after' if after == said else 'neither before nor after'} pruning"
        + (" alone" if said in (before, after) else "")
    )


@listen.register
def player(task: SpeechTask):
    from IPython.display import Audio  # where there is a notebook

    item, _ = _shown(task)
    return Audio(np.asarray(task.sound("valid", item)), rate=RATE)
