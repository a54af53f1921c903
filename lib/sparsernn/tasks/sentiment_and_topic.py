"""The classification tasks of 1812.05692: IMDb reviews and AG's News, prepared as its code does."""

from __future__ import annotations

import csv
import io
import re

import numpy as np

from . import corpora
from .base import ClassificationTask
from .words import RESERVED, by_frequency, sequences

VOCABULARY = 20_000
SHUFFLE_SEED = 113
IMDB_TOKENS, AG_TOKENS = 200, 100  # of a sequence, the start token included
WORD = re.compile(r"\w+")
END = "</s>"


def imdb(profile: str) -> ClassificationTask:
    """`imdb`: positive or negative? 21,250 / 3,750 / 25,000 reviews, their first 200 tokens, case kept.

    Validation is the last 15 % of the shuffled training half. The smoke profile takes 200 / 50 / 50 of them.
    """
    texts, labels = {"train": [], "test": []}, {"train": [], "test": []}
    for path, data in corpora.members("imdb", "imdb/aclImdb_v1.tar.gz", "imdb/aclImdb_v1_labelled.tar.gz"):
        parts = path.split("/")
        if parts[-1].endswith(".txt") and len(parts) == 4:
            texts[parts[1]].append([*WORD.findall(data.decode()), END])
            labels[parts[1]].append(int(parts[2] == "pos"))
    split = _held_out(texts["train"], labels["train"], 0.15) | {"test": (texts["test"], labels["test"])}
    return _task("imdb", split, ["negative", "positive"], IMDB_TOKENS, profile, "")


def ag_news(profile: str) -> ClassificationTask:
    """`ag-news`: World, Sports, Business or Sci/Tech? Title and text, lower-cased, their first 100 tokens.

    The authors read the csv with a header it does not have and lose its first row; so do we: 113,999 / 6,000 / 7,599.
    Where only the 38,123 training rows of the partial file are on disk they are taken, and `data_note` says so.
    """
    split, note = {}, ""
    for part, names in (("train", ("ag_news/train.csv", "ag_news/train.partial.csv")), ("test", ("ag_news/test.csv",))):
        data, name = corpora.read(*names)
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"))))[1:]
        if corpora.FILES[name].partial:
            note = "38k subset of the training rows"
        texts = [[*WORD.findall(" ".join(row[1:]).lower()), END] for row in rows]
        split[part] = texts, [int(row[0]) - 1 for row in rows]
    split = _held_out(*split["train"], 0.05) | {"test": split["test"]}
    return _task("ag-news", split, ["World", "Sports", "Business", "Sci/Tech"], AG_TOKENS, profile, note)


def _held_out(texts, labels, share):
    """Shuffled as the authors' seed has it; the last `share` is validation."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(texts))
    end = len(texts) - round(share * len(texts))
    return {
        name: ([texts[i] for i in part], [labels[i] for i in part])
        for name, part in (("train", order[:end]), ("valid", order[end:]))
    }


def _task(name, split, classes, most, profile, note):
    if profile == "smoke":
        split = {
            part: (texts[:n], labels[:n])
            for (part, (texts, labels)), n in zip(split.items(), (200, 50, 50), strict=True)
        }
        note = "; ".join(filter(None, (note, "smoke subset")))
    split = {part: ([text[: most - 1] for text in texts], labels) for part, (texts, labels) in split.items()}
    words = RESERVED + by_frequency((word for text in split["train"][0] for word in text), VOCABULARY)
    splits = {part: sequences(texts, labels, words) for part, (texts, labels) in split.items()}
    return ClassificationTask(name, splits, words, classes, note)
