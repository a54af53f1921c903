"""The language models' tasks: Penn Treebank by words and by characters, WikiText-2."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from . import corpora
from .base import SPLITS, Batch, LanguageTask, WordTask
from .words import by_frequency

END = "<eos>"
UNKNOWN = "<unk>"
SMOKE = (20_000, 3_000, 3_000)  # symbols


class WindowTask(LanguageTask):
    """Characters in windows that know nothing of each other, as 1812.05692 has them: `steps` symbols, steps − 1 predictions.

    In training the first window starts at a random offset and the windows are shuffled; the state starts at zero in each.
    """

    window, piece = 100, 4950  # symbols of fifty windows that are predicted

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        windows = (len(self.splits["train"]["ids"]) - self.window + 1) // self.window  # at any offset
        self.n_examples = windows * (self.window - 1)

    def steps_per_epoch(self, batch_size: int, steps: int | None = None) -> int:
        return math.ceil(len(self.splits["train"]["ids"]) // (steps or self.window) / batch_size)

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        ids, steps = torch.as_tensor(self._split(split, batch_size)["ids"]).long(), steps or self.window
        offset = 0 if generator is None else int(torch.randint(steps, (), generator=generator))
        windows = ids[offset : offset + (len(ids) - offset) // steps * steps].view(-1, steps)
        if generator is not None:
            windows = windows[torch.randperm(len(windows), generator=generator)]
        for group in windows.split(batch_size):
            yield Batch(group[:, :-1].t(), group[:, 1:].t(), None)

    def by_item(self, predictions: Iterable[tuple[Batch, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray] | None:
        """None for windows of another length than `window`, whose pieces would be others."""
        rest = iter(predictions)
        first = next(rest)
        if len(first[0].targets) != self.window - 1:
            return None
        return super().by_item(itertools.chain([first], rest))

    def in_order(self, values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([of_windows.t().flatten() for of_windows in values])

    def predicted(self, values: np.ndarray) -> np.ndarray:
        return values[: len(values) // self.window * self.window].reshape(-1, self.window)[:, 1:].ravel()


def _lines(name):
    return corpora.read(name)[0].decode("utf-8").splitlines()


def _words_of_lines(name, files, profile):
    texts = {
        s: [word for line in _lines(file) for word in (*line.split(), END)]
        for s, file in zip(SPLITS, files, strict=True)
    }
    vocabulary = by_frequency([*texts["train"], UNKNOWN])
    if profile == "smoke":
        texts = {split: words[:most] for (split, words), most in zip(texts.items(), SMOKE, strict=True)}
        vocabulary = by_frequency([*texts["train"], UNKNOWN])
    index = {word: i for i, word in enumerate(vocabulary)}
    splits = {s: {"ids": np.array([index.get(w, index[UNKNOWN]) for w in texts[s]], dtype=np.int32)} for s in SPLITS}
    return WordTask(name, splits, vocabulary, data_note="smoke subset" if profile == "smoke" else "")


def ptb_word(profile: str) -> WordTask:
    """`ptb-word`: 929,589 / 73,760 / 82,430 words, an <eos> a line, vocabulary 10,000."""
    return _words_of_lines("ptb-word", [f"ptb/ptb.{split}.txt" for split in SPLITS], profile)


def wikitext_2(profile: str) -> WordTask:
    """`wikitext-2`: 2,088,628 / 217,646 / 245,569 words, an <eos> a line, vocabulary 33,278."""
    return _words_of_lines("wikitext-2", [f"wikitext-2/wiki.{split}.tokens" for split in SPLITS], profile)


def ptb_char(profile: str) -> WindowTask:
    """`ptb-char`: the same text by characters, spaces as `_`, a newline a line: 5,017,482 / 393,042 / 442,423 of 50."""
    texts = {s: "".join(line.strip().replace(" ", "_") + "\n" for line in _lines(f"ptb/ptb.{s}.txt")) for s in SPLITS}
    alphabet = by_frequency(texts["train"])
    if profile == "smoke":
        texts = {split: text[:most] for (split, text), most in zip(texts.items(), SMOKE, strict=True)}
    index = {symbol: i for i, symbol in enumerate(alphabet)}
    splits = {s: {"ids": np.array([index[symbol] for symbol in texts[s]], dtype=np.uint8)} for s in SPLITS}
    return WindowTask("ptb-char", splits, alphabet, data_note="smoke subset" if profile == "smoke" else "")
