"""`digits`: three to seven spoken digits in a row, joined from the recordings of the Free Spoken Digit Dataset.

Single recordings ask for no sequence: so those of one speaker are joined, with silence of random length between and faint
noise over all. The same draw for everybody: data_sha256 covers the joined sounds. Of the five speakers who train, the
official test recordings (index 0 to 4) make the test utterances, 5 to 9 validation; the sixth is heard in no other split.
"""

from __future__ import annotations

import io
import itertools
import re
import wave
from collections.abc import Mapping

import numpy as np

from . import corpora
from .speech import FULL_SCALE, RATE, SpeechTask

BLANK = "–"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNSEEN = "yweweler"  # the last by name
SEED = 20170417
FEWEST, MOST = 3, 7  # recordings of an utterance
LEVEL = 0.05  # root mean square that every recording is brought to, of full scale
PAUSE = 0.05, 0.35  # seconds of silence before each recording and after the last
FAINT = 30.0, 50.0  # dB that noise lies below the recordings, in every utterance
NOISY = 9.0  # dB that more noise lies below them in the split `noisy`
TOGETHER = 10  # recordings of a test group: its utterances are joined from these alone, so that groups share none
PASSES = {"train": 4, "valid": 3, "test": 4, "unseen": 2}  # how many utterances a recording stands in
SMOKE = {"train": 48, "valid": 12, "test": 12, "unseen": 12}  # utterances


def digits(profile: str) -> SpeechTask:
    """The task; profile "smoke" takes a few utterances of every split."""
    small = profile == "smoke"
    splits = join(read(), np.random.default_rng(SEED), SMOKE if small else {})
    return SpeechTask("digits", splits, [BLANK, *DIGITS], "smoke subset" if small else "")


def read() -> dict[tuple[str, int, int], np.ndarray]:
    """(speaker, index, digit) → samples float64, 8 kHz, each recording at LEVEL; in the order of the keys."""
    found = {}
    for path, data in corpora.members("fsdd", "fsdd/free-spoken-digit-dataset.tar.gz", "fsdd/recordings.tar.gz"):
        digit, speaker, index = re.fullmatch(r"recordings/(\d)_(\w+)_(\d+)\.wav", path).groups()
        with wave.open(io.BytesIO(data)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / FULL_SCALE
        found[speaker, int(index), int(digit)] = samples * (LEVEL / np.sqrt((samples**2).mean()))
    return dict(sorted(found.items()))


def split_of(speaker: str, index: int) -> str:
    """The split that a recording belongs to."""
    if speaker == UNSEEN:
        return "unseen"
    return "test" if index < 5 else "valid" if index < 10 else "train"


def join(recordings, rng: np.random.Generator, most: Mapping[str, int]) -> dict[str, dict[str, np.ndarray]]:
    """Recordings, as `read` gives them → the arrays of every split of a `SpeechTask`, drawn by `rng`.

    In training every pass deals all recordings of a speaker anew, in the other splits those of a group of TOGETHER. Of a
    split in `most` so many utterances are taken, at random.
    """
    splits = {}
    for split, passes in PASSES.items():
        dealt = []
        for group, keys in enumerate(_groups(recordings, split, rng)):
            for _ in range(passes):
                order = iter(rng.permutation(len(keys)))
                dealt += [(group, [keys[i] for i in itertools.islice(order, n)]) for n in sizes(len(keys), rng)]
        if split in most:
            dealt = [dealt[i] for i in rng.permutation(len(dealt))[: most[split]]]
        splits[split] = arrays([(group, utterance(recordings, keys, rng)) for group, keys in dealt])
    splits["noisy"] = noisy(splits["test"], rng)
    return splits


def _groups(recordings, split, rng):
    """The recordings of a split that are joined with one another: lists of keys, a speaker's each."""
    mine = [key for key in recordings if split_of(*key[:2]) == split]
    for _, keys in itertools.groupby(mine, key=lambda key: key[0]):
        keys = list(keys)
        parts = 1 if split == "train" else max(1, len(keys) // TOGETHER)
        yield from ([keys[i] for i in part] for part in np.array_split(rng.permutation(len(keys)), parts))


def sizes(n: int, rng) -> list[int]:
    """n cut into pieces of FEWEST to MOST, drawn by `rng`. Raises ValueError for an n below FEWEST."""
    if n < FEWEST:
        raise ValueError(f"{n} recordings make no utterance of {FEWEST} or more")
    pieces = []
    while n:
        pieces.append(int(rng.choice([k for k in range(FEWEST, MOST + 1) if n - k == 0 or n - k >= FEWEST])))
        n -= pieces[-1]
    return pieces


def utterance(recordings, keys, rng) -> dict[str, np.ndarray]:
    """Recordings one after the other, silence before, between and behind, and faint noise over all: samples, words, spans."""
    sounds = [recordings[key] for key in keys]
    pauses = (rng.uniform(*PAUSE, len(sounds) + 1) * RATE).astype(int)
    ends = np.cumsum(pauses[:-1] + [len(sound) for sound in sounds])
    spans = np.stack([ends - [len(sound) for sound in sounds], ends], 1)
    samples = np.zeros(ends[-1] + pauses[-1])
    for (begin, end), sound in zip(spans, sounds, strict=True):
        samples[begin:end] = sound
    words = np.array([digit + 1 for _, _, digit in keys])
    return {"samples": with_noise(samples, rng.uniform(*FAINT), rng), "words": words, "spans": spans}


def with_noise(samples: np.ndarray, below: float, rng) -> np.ndarray:
    """Samples in −1 … 1 and white noise, `below` dB under LEVEL, as 16-bit numbers."""
    noise = rng.standard_normal(len(samples), np.float32) * LEVEL * 10 ** (-below / 20)
    loudest = FULL_SCALE - 1
    return ((samples + noise) * FULL_SCALE).round().clip(-loudest, loudest).astype(np.int16)


def noisy(data, rng) -> dict[str, np.ndarray]:
    """The same utterances with more noise."""
    return data | {"samples": with_noise(data["samples"] / FULL_SCALE, NOISY, rng)}


def arrays(utterances) -> dict[str, np.ndarray]:
    """The arrays of a split of a `SpeechTask`, from pairs of a group's number and an utterance."""
    groups, utterances = zip(*utterances, strict=True)
    return {
        "samples": np.concatenate([one["samples"] for one in utterances]),
        "lengths": np.array([len(one["samples"]) for one in utterances], np.int32),
        "words": np.concatenate([one["words"] for one in utterances]).astype(np.int8),
        "counts": np.array([len(one["words"]) for one in utterances], np.int8),
        "spans": np.concatenate([one["spans"] for one in utterances]).astype(np.int32),
        "groups": np.array(groups, np.int16),
    }
