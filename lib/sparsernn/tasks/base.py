"""What a task is: id arrays per split, cut into batches, and one number that says how good a model is.

A task knows data and metric; it knows no model and no method.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from .words import PAD

SPLITS = ("train", "valid", "test")
CHUNK = 20  # batches among which sequences are sorted by length


@dataclass(frozen=True)
class Batch:
    """A batch of sequences, time-major.

    inputs   what the model is called with: one tensor, or several as a tuple; ids int64 [T, B] or floats [T, B, n]
    targets  classification int64 [B]; language model int64 [T, B]; speech int64 [B, most words], padded with −1
    lengths  int64 [B], real steps; ids are padded on the LEFT with id 0, floats on the RIGHT. None = no padding
    carry    language model: the state of the previous batch goes on
    """

    inputs: tuple[torch.Tensor, ...]
    targets: torch.Tensor
    lengths: torch.Tensor | None
    carry: bool = False

    def __post_init__(self):
        if isinstance(self.inputs, torch.Tensor):
            object.__setattr__(self, "inputs", (self.inputs,))

    @property
    def tokens(self) -> torch.Tensor:
        """The first input: the ids, where there is but one."""
        return self.inputs[0]

    def to(self, device, dtype: torch.dtype | None = None) -> Batch:
        """The same batch on a device, the floats it is read in as `dtype`."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        inputs = tuple(x.to(device, dtype if x.is_floating_point() else None) for x in self.inputs)
        return replace(self, inputs=inputs, targets=self.targets.to(device), lengths=lengths)


class Task:
    """Base of `ClassificationTask`, `LanguageTask` and `SpeechTask`.

    name, data_note     what it is; package versions (and "smoke subset" where so)
    metric, better      "accuracy" | "bits_per_char" | "perplexity" | "label_error_rate"; "higher" | "lower"
    vocabulary, classes names of the token ids and of the class ids (no vocabulary: reads floats; no classes: language model)
    features            floats a step, of a task that reads a spectrum; 0: the model knows by itself what it reads
    more_tests          names of the splits beyond train, valid and test: further test sets, empty for most
    n_examples          training examples as the likelihood counts them: sequences or predicted symbols
    data_sha256         over the id arrays of all splits, with their names, dtypes and shapes
    more_scores         what is measured on the test split beside the metric: name → function like `score`, whose totals are
                        divided by the counts
    """

    metric: str
    better: str
    n_examples: int
    features = 0
    more_scores: Mapping[str, Callable] = {}

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Mapping[str, np.ndarray]],
        vocabulary: list[str],
        classes: list[str] | None = None,
        data_note: str = "",
    ):
        if missing := [split for split in SPLITS if split not in splits]:
            raise ValueError(f"task {name!r}: no data for {', '.join(missing)}; splits are {', '.join(SPLITS)}")
        self.name, self.data_note = name, data_note
        self.vocabulary, self.classes = list(vocabulary), list(classes or [])
        self.more_tests = tuple(split for split in splits if split not in SPLITS)
        self.splits = {split: dict(splits[split]) for split in (*SPLITS, *self.more_tests)}
        self.data_sha256 = data_sha256(self.splits)

    @property
    def reads(self) -> str:
        """What a model of the task is given, in words."""
        return f"{len(self.vocabulary):,} symbols"

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """One pass over a split; in training, `generator` draws the order (classification) or the offset (language)."""
        raise NotImplementedError

    def steps_per_epoch(self, batch_size: int, steps: int | None = None) -> int:
        """Batches of one pass over the training split (a random offset may make one fewer)."""
        return math.ceil(self.n_examples / (batch_size * max(1, steps or 1)))

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean nats per example, a scalar; logits [B, C] (classification) or [T, B, V] (language model)."""
        return F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten())

    def score(self, logits: torch.Tensor, batch: Batch) -> tuple[float, int]:
        """(total, count) of a batch; over a split they are added up and given to `metric_of`."""
        raise NotImplementedError

    def metric_of(self, total: float, count: int) -> float:
        """The metric of a split."""
        return total / count

    def mistakes(self, logits: torch.Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray] | None:
        """Per item of a batch: how much of it is wrong, of how much, int [B] each; None where nothing is counted so."""
        return None

    def by_item(self, predictions: Iterable[tuple[Batch, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray] | None:
        """The same of a split, from its [(batch, logits)] in the order of evaluation: [N] each."""
        parts = []
        for batch, logits in predictions:
            if (part := self.mistakes(logits, batch)) is None:
                return None
            parts.append(part)
        errors, of = map(np.concatenate, zip(*parts, strict=True))
        return errors, of

    def groups(self, split: str) -> np.ndarray | None:
        """Per item of a split, in the order of evaluation, what it shares data with: int [N]; None: each stands alone."""
        return None

    def initialise(self, model):
        """Put what the data know of words into a new model; most know nothing."""

    def speaks(self, predict, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each word, int64 [n], read alone by `predict`: which answer (of the classes, else of the vocabulary) rises most above
        its mean over all these words, int64 [n], and by how many nats [n]."""
        logits, _ = predict(words[None], torch.ones_like(words) if self.classes else None)
        scores = logits.reshape(len(words), -1).log_softmax(1)
        lift, says = (scores - scores.mean(0)).max(1)
        return says, lift

    def examples(self, n: int) -> list[tuple[str, str]]:
        """(label or "", text) of the first n training examples, as the model sees them."""
        raise NotImplementedError

    def _split(self, split: str, batch_size: int) -> dict[str, np.ndarray]:
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}; splits are {', '.join(self.splits)}")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be at least 1")
        return self.splits[split]


class ClassificationTask(Task):
    """Sequences with one label each.

    splits   per split: `ids` int [sum of lengths], the sequences one after the other; `lengths` int [N];
             `labels` int [N], an index into classes

    Batches are trimmed to their longest sequence, and sequences of similar length share one (`of_similar_length`). `steps`
    is not used.
    """

    metric, better = "accuracy", "higher"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for split, data in self.splits.items():
            if data["lengths"].sum() != len(data["ids"]) or len(data["lengths"]) != len(data["labels"]):
                raise ValueError(
                    f"task {self.name!r}, {split}: {len(data['labels'])} labels, {len(data['lengths'])} lengths of sum "
                    f"{data['lengths'].sum()} and {len(data['ids'])} ids; expected one label and one length a sequence"
                )
        self.n_examples = len(self.splits["train"]["labels"])

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        data = self._split(split, batch_size)
        lengths, labels = torch.as_tensor(data["lengths"]).long(), torch.as_tensor(data["labels"]).long()
        if not len(lengths):
            return
        ids, ends = torch.as_tensor(data["ids"]), lengths.cumsum(0)
        for group in of_similar_length(lengths, batch_size, generator):
            from_end = torch.arange(int(lengths[group].max()), 0, -1)[:, None]  # [T, 1]: T, ..., 1 steps before the end
            real = from_end <= lengths[group]
            tokens = torch.where(real, ids[(ends[group] - from_end).clamp(min=0)].long(), PAD)
            yield Batch(tokens, labels[group], lengths[group])

    def score(self, logits: torch.Tensor, batch: Batch) -> tuple[float, int]:
        """(correct, sequences)."""
        return float((logits.argmax(-1) == batch.targets).sum()), len(batch.targets)

    def mistakes(self, logits: torch.Tensor, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        wrong = (logits.argmax(-1) != batch.targets).long().cpu().numpy()
        return wrong, np.ones_like(wrong)

    def examples(self, n: int) -> list[tuple[str, str]]:
        data = self.splits["train"]
        ends = data["lengths"][:n].cumsum()
        return [
            (self.classes[label], " ".join(self.vocabulary[i] for i in data["ids"][end - length : end]))
            for label, length, end in zip(data["labels"][:n], data["lengths"][:n], ends, strict=True)
        ]


class LanguageTask(Task):
    """A stream of symbols, each predicted from those before it.

    splits   per split: `ids` int [N]

    A split's N-1 predictions (the first symbol has no past) are cut into `batch_size` parallel streams and walked in
    windows of `steps`; the last window may be shorter. Every symbol of a stream is predicted exactly once; left out
    are only the last (N-1) mod batch_size symbols, which do not divide into the streams. With a generator the split
    starts at a random offset in [0, steps), so that windows are cut elsewhere each epoch.

    piece   symbols that count as one item where two models are compared: what one symbol costs tells of those after it, what
            a piece so long costs not of the next one (blocks of Carlstein 1986; on Penn Treebank's test the standard error of
            a difference grows by two thirds from pieces of 200 words to these, and no more if they are twice as long)
    """

    metric, better, piece = "bits_per_char", "lower", 5000

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.n_examples = max(len(self.splits["train"]["ids"]) - 1, 0)

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Batch]:
        ids = torch.as_tensor(self._split(split, batch_size)["ids"])
        if steps is None or steps < 1:
            raise ValueError(f"steps is {steps}; a language model needs the window length, for example steps=100")
        offset = 0 if generator is None else int(torch.randint(steps, (), generator=generator))
        length = (len(ids) - 1 - offset) // batch_size
        if length < 1:
            raise ValueError(f"{split} has {len(ids)} symbols, too few for {batch_size} streams; lower batch_size")
        inputs, targets = (  # [length, B]
            ids[i : i + length * batch_size].view(batch_size, length).T.contiguous() for i in (offset, offset + 1)
        )
        for start in range(0, length, steps):
            window = slice(start, start + steps)
            yield Batch(inputs[window].long(), targets[window].long(), None, carry=start > 0)

    def score(self, logits: torch.Tensor, batch: Batch) -> tuple[float, int]:
        """(summed bits, symbols)."""
        nats = F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), reduction="sum")
        return float(nats) / math.log(2), batch.targets.numel()

    def by_item(self, predictions: Iterable[tuple[Batch, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        """Per piece of a split's text, whatever streams it was read in: the bits it costs, float64 [N], and its symbols."""
        nats = [
            F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), reduction="none").view_as(batch.targets)
            for batch, logits in predictions
        ]
        return self.in_pieces(self.in_order(nats).double().cpu().numpy() / math.log(2))

    def in_order(self, values: list[torch.Tensor]) -> torch.Tensor:
        """What the batches of an evaluation say of their symbols, [T, B] each, in the order of the text."""
        return torch.cat(values).T.flatten()

    def predicted(self, values: np.ndarray) -> np.ndarray:
        """Of a value for each symbol of a text those of symbols that a model of the task predicts: the first has no past."""
        return values[1:]

    def in_pieces(self, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits of a text's predicted symbols, in order, added up piece by piece, and the symbols of each."""
        starts = np.arange(0, len(bits), self.piece)
        return np.add.reduceat(bits, starts), np.diff([*starts, len(bits)])

    def examples(self, n: int, symbols: int = 200) -> list[tuple[str, str]]:
        """The first n pieces of `symbols` symbols each."""
        text = [self.vocabulary[i] for i in self.splits["train"]["ids"][: n * symbols]]
        return [("", "".join(text[start : start + symbols])) for start in range(0, len(text), symbols)]


class WordTask(LanguageTask):
    """A stream of words: its metric is the perplexity, 2 to the mean bits."""

    metric, piece = "perplexity", 1600

    def metric_of(self, total: float, count: int) -> float:
        return math.inf if total / count >= 1024 else 2 ** (total / count)  # no float is larger

    def examples(self, n: int, symbols: int = 40) -> list[tuple[str, str]]:
        words = [self.vocabulary[i] for i in self.splits["train"]["ids"][: n * symbols]]
        return [("", " ".join(words[start : start + symbols])) for start in range(0, len(words), symbols)]


def of_similar_length(lengths: torch.Tensor, batch_size: int, generator: torch.Generator | None) -> list[torch.Tensor]:
    """Numbers of sequences in batches whose padding costs little, from their lengths [N].

    Evaluation, without a generator, sorts the split by length. With one a fresh permutation is cut into chunks of 20
    batches, each chunk sorted by length, and the batches shuffled: every epoch mixes anew.
    """
    if generator is None:
        return list(lengths.argsort(stable=True).split(batch_size))
    chunks = torch.randperm(len(lengths), generator=generator).split(CHUNK * batch_size)
    groups = [group for chunk in chunks for group in chunk[lengths[chunk].argsort(stable=True)].split(batch_size)]
    return [groups[i] for i in torch.randperm(len(groups), generator=generator)]


def detached(state):
    """A carried state cut off from the graph: a tensor, a tuple of them, or None."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    return None if state is None else tuple(map(detached, state))


def data_sha256(splits: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """SHA-256 over the arrays of all splits, in the order given, each with name, dtype and shape; little-endian."""
    digest = hashlib.sha256()
    for split in splits:
        for key in sorted(splits[split]):
            array = np.ascontiguousarray(splits[split][key])
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{split}.{key} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
