"""Utterances and the words in them, without when each is said: connectionist temporal classification, CTC.

A model reads a log-spectrogram and answers at every frame, or every few, with a word or with the blank, class 0. Of all
ways to say a reference that way, with words held and blanks between, the loss adds up the likelihoods (Graves et al. 2006);
the greedy reading takes each frame's best answer, drops repeats, then blanks. Deep Speech 2 is trained so (1704.05119).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import rfft

from .base import Batch, Task, of_similar_length

RATE = 8_000  # samples a second
WINDOW, HOP = 160, 80  # samples: 20 and 10 ms
HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
FLOOR = 1e-9  # of the power: where the logarithm of silence stops, below the rounding of 16 bits
FULL_SCALE = 1 << 15
TEMPO = (0.85, 1.15)  # training: times as fast, the pitch kept
GAIN = 6.0  # training: dB louder or softer, at most
NOISE = (15.0, 45.0)  # training: dB that white noise lies below the utterance
NOTHING = -1  # pads targets


class SpeechTask(Task):
    """Utterances with the words said in each.

    splits   per split: `samples` int16 [sum of lengths], 8 kHz, the utterances one after the other; `lengths` int32 [N];
             `words` int8 [sum of counts], an index into classes, never 0; `counts` int8 [N]; `spans` int32 [sum of counts, 2],
             where each word begins and ends in its utterance, in samples (for pictures alone); `groups` int16 [N]: utterances
             of two groups share no recording
    classes  the blank, then the words            features  numbers a frame: log power in bands of 50 Hz, 0 to 4 kHz

    Batches hold inputs float32 [T, B, features], lengths in frames, targets int64 [B, most words] padded with −1; what is
    shorter is padded on the RIGHT with 0. Features are less the training split's mean, over its standard deviation, band by
    band. A generator draws the order and, of every utterance anew, its tempo (the hop between windows), gain and noise.

    Logits are [T', B, classes], where a model with a stride s answers T' = ⌈T / s⌉ times: s is read off as ⌈T / T'⌉, which is
    right from T > s (s − 1) on.
    """

    metric, better = "label_error_rate", "lower"
    features = WINDOW // 2 + 1

    def __init__(self, name, splits, classes, data_note=""):
        super().__init__(name, splits, [], classes, data_note)
        for split, data in self.splits.items():
            found = data["lengths"].sum(), data["counts"].sum(), len(data["counts"])
            if found != (len(data["samples"]), len(data["words"]), len(data["lengths"])):
                raise ValueError(
                    f"task {name!r}, {split}: lengths of sum {found[0]} for {len(data['samples'])} samples, counts of sum "
                    f"{found[1]} for {len(data['words'])} words, {found[2]} counts for {len(data['lengths'])} lengths"
                )
        self.n_examples = len(self.splits["train"]["lengths"])
        sums = np.zeros((3, self.features))
        for item in range(self.n_examples):
            frames = log_power(self.sound("train", item))
            sums += np.full(self.features, len(frames)), frames.sum(0), (frames**2).sum(0)
        self.mean = (sums[1] / sums[0]).astype(np.float32)
        self.deviation = np.sqrt(sums[2] / sums[0] - self.mean**2).astype(np.float32)

    @property
    def reads(self) -> str:
        return f"{self.features} numbers a frame of {1000 * HOP // RATE} ms"

    def sound(self, split: str, item: int) -> np.ndarray:
        """The samples of an utterance, float32 [length] in −1 … 1, RATE a second."""
        data = self.splits[split]
        end = int(data["lengths"][: item + 1].sum(dtype=np.int64))
        return data["samples"][end - int(data["lengths"][item]) : end] / np.float32(FULL_SCALE)

    def said(self, split: str, item: int) -> tuple[np.ndarray, np.ndarray]:
        """The words of an utterance: classes int [n], and where each begins and ends, samples int [n, 2]."""
        data = self.splits[split]
        end = int(data["counts"][: item + 1].sum(dtype=np.int64))
        part = slice(end - int(data["counts"][item]), end)
        return data["words"][part].astype(np.int64), data["spans"][part]

    def order(self, split: str) -> np.ndarray:
        """int64 [N]: the utterances of a split in the order of evaluation, short ones first."""
        return self.splits[split]["lengths"].argsort(kind="stable")

    def groups(self, split: str) -> np.ndarray:
        return self.splits[split]["groups"][self.order(split)]

    def spectrogram(self, samples: np.ndarray, hop: int = HOP) -> torch.Tensor:
        """What a model reads of a sound: float32 [frames, features]; hop, in samples, from one window to the next."""
        return torch.from_numpy((log_power(samples, hop) - self.mean) / self.deviation)

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        lengths = torch.as_tensor(self._split(split, batch_size)["lengths"]).long()
        for group in of_similar_length(lengths, batch_size, generator):
            sounds = [(self.sound(split, i), HOP) for i in group.tolist()]
            if generator is not None:
                sounds = [heard_anew(sound, generator) for sound, _ in sounds]
            frames = [self.spectrogram(*sound) for sound in sounds]
            words = [torch.from_numpy(self.said(split, i)[0]) for i in group.tolist()]
            inputs = torch.nn.utils.rnn.pad_sequence(frames)
            targets = torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=NOTHING)
            yield Batch(inputs, targets, torch.tensor([len(x) for x in frames]))

    def answers(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """int64 [B]: how many of the T' answers belong to each utterance, the padding's left out."""
        stride = -(-len(batch.inputs[0]) // len(logits))
        return -(-batch.lengths // stride)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean nats per utterance; infinite where an utterance has fewer answers than its words need."""
        given, counts = self.answers(logits, batch), (batch.targets != NOTHING).sum(1)
        targets = batch.targets.clamp(min=0)
        return F.ctc_loss(logits.log_softmax(-1), targets, given, counts, reduction="sum") / len(counts)

    def read(self, logits: torch.Tensor, batch: Batch) -> list[list[int]]:
        """The greedy reading: per utterance the classes of its best answers, repeats dropped, then blanks."""
        best, given = logits.argmax(-1), self.answers(logits, batch)
        lines = (best[:n, i].unique_consecutive().tolist() for i, n in enumerate(given.tolist()))
        return [[word for word in line if word] for line in lines]

    def mistakes(self, logits: torch.Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Per utterance: edits (words put in, left out or taken for others, the fewest that do), and words it has."""
        import jiwer  # only where utterances are scored

        references = [[word for word in line if word != NOTHING] for line in batch.targets.tolist()]
        texts = ([" ".join(map(str, line)) for line in lines] for lines in (references, self.read(logits, batch)))
        pairs = jiwer.process_words(*map(list, texts)).alignments
        edits = [sum(_edits(part) for part in pair) for pair in pairs]
        return np.array(edits), np.array([len(line) for line in references])

    def score(self, logits: torch.Tensor, batch: Batch) -> tuple[float, int]:
        """(edits, words)."""
        edits, words = self.mistakes(logits, batch)
        return float(edits.sum()), int(words.sum())

    def examples(self, n: int) -> list[tuple[str, str]]:
        lengths = self.splits["train"]["lengths"]
        words = (" ".join(self.classes[w] for w in self.said("train", i)[0]) for i in range(min(n, self.n_examples)))
        return [(line, f"{length / RATE:.1f} seconds of sound") for line, length in zip(words, lengths, strict=False)]


def _edits(part) -> int:
    """Of a part of an alignment: longer side's words, unless both say the same."""
    if part.type == "equal":
        return 0
    return max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)


def log_power(samples: np.ndarray, hop: int = HOP) -> np.ndarray:
    """Log of the power in bands of RATE / WINDOW, [frames, WINDOW // 2 + 1], of every whole Hann window; float32 of such.

    Raises ValueError for a sound shorter than a window.
    """
    if len(samples) < WINDOW:
        raise ValueError(f"a sound of {len(samples)} samples is shorter than a window of {WINDOW}")
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::hop]
    return np.log(np.abs(rfft(windows * HANN)) ** 2 + np.float32(FLOOR))


def heard_anew(sound: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, int]:
    """A sound at another gain, with white noise on it, and the hop that reads it at another tempo."""
    tempo, gain, below = torch.rand(3, generator=generator).tolist()
    noise = torch.randn(len(sound), generator=generator).numpy()
    level = float(np.sqrt((sound**2).mean())) * 10 ** (-(NOISE[0] + below * (NOISE[1] - NOISE[0])) / 20)
    louder = 10 ** ((2 * gain - 1) * GAIN / 20)
    return louder * (sound + level * noise), round(HOP * (TEMPO[0] + tempo * (TEMPO[1] - TEMPO[0])))
