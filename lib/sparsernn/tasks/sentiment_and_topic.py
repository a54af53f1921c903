"""The classification tasks of 1812.05692: IMDb reviews and AG's News, prepared as its code does."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter

import numpy as np

from . import corpora
from .base import ClassificationTask
from .words import RESERVED, by_frequency, sequences

VOCABULARY = 20_000
SHUFFLE_SEED = 113
IMDB_TOKENS, AG_TOKENS = 200, 100  # of a sequence, the start token included
IMDB_HELD_OUT, AG_HELD_OUT = 0.15, 0.05  # of training, for validation
FILM = re.compile(r"tt\d+")
WORD = re.compile(r"\w+")
END = "</s>"


def imdb(profile: str) -> ClassificationTask:
    """`imdb`: positive or negative? 21,250 / 3,750 / 25,000 reviews, their first 200 tokens, case kept.

    Validation is of films of which no review is trained on, drawn by seed: as in the test half, all but one of whose films
    training does not know. The smoke profile takes 200 / 50 / 50 of them.
    """
    return _imdb("imdb", _of_other_films, profile)


def imdb_authors(profile: str) -> ClassificationTask:
    """`imdb-authors`: the same with the authors' validation, the last 15 % of the shuffled training half, where of 3,750
    reviews 3,636 are of films that training knows."""
    return _imdb("imdb-authors", lambda films: _last(len(films), IMDB_HELD_OUT), profile)


def _imdb(name, hold_out, profile):
    texts, labels, films, of = {"train": [], "test": []}, {"train": [], "test": []}, [], {}
    for path, data in corpora.members("imdb", "imdb/aclImdb_v1.tar.gz", "imdb/aclImdb_v1_labelled.tar.gz"):
        _, part, *rest = path.split("/")
        if len(rest) == 1 and part == "train":
            of[rest[0]] = data.decode().split()  # the film's address, of the review whose number is the line's
        elif len(rest) == 2:
            texts[part].append([*WORD.findall(data.decode()), END])
            labels[part].append(int(rest[0] == "pos"))
            films += [(rest[0], int(rest[1].split("_")[0]))] if part == "train" else []
    films = [FILM.search(of[f"urls_{label}.txt"][number])[0] for label, number in films]
    split = _parted(texts["train"], labels["train"], *hold_out(films)) | {"test": (texts["test"], labels["test"])}
    return _task(name, split, ["negative", "positive"], IMDB_TOKENS, profile, "")


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
    texts, labels = split["train"]
    split = _parted(texts, labels, *_last(len(texts), AG_HELD_OUT)) | {"test": split["test"]}
    return _task("ag-news", split, ["World", "Sports", "Business", "Sci/Tech"], AG_TOKENS, profile, note)


def _last(count, share):
    """Numbers of what is trained on and what is held out: shuffled as the authors' seed has it, the last `share`."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(count)
    end = count - round(share * count)
    return order[:end], order[end:]


def _of_other_films(films):
    """The same, as many held out, but film by film: shuffled, and taken as long as all its reviews still fit."""
    order, room, taken = np.random.RandomState(SHUFFLE_SEED), round(IMDB_HELD_OUT * len(films)), set()
    counts = Counter(films)
    for film in order.permutation(sorted(counts)):
        if counts[film] <= room:
            taken.add(film)
            room -= counts[film]
    shuffled = order.permutation(len(films))
    out = np.array([films[i] in taken for i in shuffled])
    return shuffled[~out], shuffled[out]


def _parted(texts, labels, train, valid):
    return {
        name: ([texts[i] for i in part], [labels[i] for i in part])
        for name, part in (("train", train), ("valid", valid))
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
