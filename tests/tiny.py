"""Two tasks of made-up data that train in a second, registered like the real ones: `tiny-topic`, `tiny-char`."""

import sys

import numpy as np

from sparsernn import tasks
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel
from sparsernn.sparsify.plan import Plan
from sparsernn.study.presets import PRESETS, Preset, Profile
from sparsernn.tasks.base import SPLITS, ClassificationTask, LanguageTask

WORDS, SYMBOLS = 40, 12


def topic(profile):
    """Documents of words 3 … 39; class c likes the words with number ≡ c (mod 3)."""
    splits, rng = {}, np.random.default_rng(5)
    for split, n in zip(SPLITS, (600, 90, 90), strict=True):
        labels, lengths = rng.integers(0, 3, n), rng.integers(1, 12, n)
        docs = []
        for label, length in zip(labels, lengths, strict=True):
            words = rng.integers(3, WORDS, length)
            docs.append(
                np.where(rng.random(length) < 0.6, words // 3 * 3 % (WORDS - 3) + 3 * (words < 6) + label, words)
                % WORDS
            )
        splits[split] = {"ids": np.concatenate(docs), "lengths": lengths, "labels": labels}
    return ClassificationTask("tiny-topic", splits, [f"w{i}" for i in range(WORDS)], ["a", "b", "c"], "made up")


def char(profile):
    """A walk over 12 symbols that mostly goes on by one or two."""
    splits, rng = {}, np.random.default_rng(6)
    for split, n in zip(SPLITS, (6000, 900, 900), strict=True):
        steps = np.where(rng.random(n) < 0.8, rng.integers(1, 3, n), rng.integers(0, SYMBOLS, n))
        splits[split] = {"ids": np.cumsum(steps) % SYMBOLS}
    return LanguageTask("tiny-char", splits, [chr(97 + i) for i in range(SYMBOLS)], data_note="made up")


def register():
    options = {"lr_log_sigma": 5e-2, "log_sigma": -4.0, "log_sigma_groups": -4.0, "kl_start": 1.0, "kl_full": 3.0}
    topics = Profile(Plan(epochs=12, batch_size=32, word_dropout=0.1, lr=1e-2, clip=1.0), **options)
    chars = Profile(Plan(epochs=6, batch_size=8, steps=20, lr=1e-2, clip=1.0), **options)
    tasks.TASKS["tiny-topic"], tasks.TASKS["tiny-char"] = topic, char
    PRESETS["tiny-topic"] = {
        "lstm-8": Preset(Classifier, {"embedding": 6, "hidden": 8}, {"quick": topics, "smoke": topics}),
        "bag-of-words": Preset(BagOfWords, {}, {"quick": Profile(Plan(epochs=1, batch_size=32))}, "lstm-8"),
    }
    PRESETS["tiny-char"] = {"lstm-8": Preset(LanguageModel, {"hidden": 8}, {"quick": chars})}


if __name__ == "__main__":  # a training process of its own: python tiny.py task method epochs → one line an epoch
    import torch

    from sparsernn.study.config import RunConfig
    from sparsernn.study.runs import ensure

    register()
    torch.set_num_threads(1)
    given = {"task": sys.argv[1], "method": sys.argv[2], "profile": "quick", "epochs": int(sys.argv[3])}
    ensure(RunConfig(**given), lambda line: print(line, flush=True))
