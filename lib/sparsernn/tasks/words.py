"""From words to ids, for every task that reads words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

PAD, START, OOV = range(3)
RESERVED = ["<pad>", "<start>", "<oov>"]  # ids 0, 1, 2, as in the papers' classification tasks


def by_frequency(symbols: Iterable[str], most: int | None = None) -> list[str]:
    """The different symbols, the most frequent first, equals in their own order; `most` of them."""
    frequency = Counter(symbols)
    return sorted(frequency, key=lambda symbol: (-frequency[symbol], symbol))[:most]


def sequences(
    texts: Iterable[Sequence[str]], labels: Iterable[int], vocabulary: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays of a split of a ClassificationTask: ids (each text after <start>, other words <oov>), lengths, labels."""
    index = {word: i for i, word in enumerate(vocabulary)}
    rows = [[START, *(index.get(word, OOV) for word in text)] for text in texts]
    return {
        "ids": np.array([i for row in rows for i in row], dtype=np.int32),
        "lengths": np.array([len(row) for row in rows], dtype=np.int32),
        "labels": np.array(list(labels), dtype=np.int32),
    }
