"""`squad`: where in a paragraph of Wikipedia is the answer to a question? SQuAD 1.1 (1606.05250).

Training articles and those held out for validation share no paragraph; the official development set is the test.
A model points at the first and the last word of the answer; its text is compared with those that people gave, by the
official rules: exact match, and F1 of the words. 1709.05027 and 1906.06847 prune such a reader (BiDAF).
"""

from __future__ import annotations

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from . import corpora
from .base import SPLITS, Batch, Task, of_similar_length
from .words import OOV, RESERVED, by_frequency

PIECE = re.compile(r"\w+|[^\w\s]")
LONGEST = 200  # words of a paragraph, in training: what comes later is cut off (1709.05027: 400)
LONGEST_ANSWER = (
    15  # words of an answer that is given, as in 1704.00051: of the right ones in training 2 in 100 have more
)
LETTERS = 16  # of a word: what comes later is cut off
NO_LETTER, OTHER_LETTER = 0, 1  # a letter's number is its code in Latin-1, if it has one
RARE = 2  # times a word of the vocabulary stands in the training texts at least
HELD_OUT, SEED = 0.05, 113  # share of the training articles that is validation, and what draws it
LARGEST = 16_384  # words of a batch in evaluation, where paragraphs are as long as they are
ARTICLES = 442  # official training set
PARTS = {"smoke": (160, 40, 40), "quick": (1_000, 200, 300)}  # questions of a profile that does not take all
GLOVE = "glove/glove.6B.100d.txt"  # vectors to start from, where such a file is on disk


# ---- the official rules (the evaluation script of SQuAD 1.1)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(said: str, answers: Iterable[str]) -> float:
    """1 if what is said is one of the answers, else 0."""
    return float(any(normalised(said) == normalised(answer) for answer in answers))


def f1(said: str, answers: Iterable[str]) -> float:
    """Harmonic mean of precision and recall of the words, of the answer where it is highest."""

    def of(answer):
        mine, theirs = Counter(normalised(said).split()), Counter(normalised(answer).split())
        both = (mine & theirs).total()
        return 2 * both / (mine.total() + theirs.total()) if both else 0.0

    return max(map(of, answers))


# ---- the task


class Texts(NamedTuple):
    """What a split's numbers stand for: its paragraphs, its questions, and for each of these the answers that are right and
    the number of the article it is about."""

    paragraphs: list[str]
    questions: list[str]
    answers: list[tuple[str, ...]]
    articles: list[int]


@dataclass(frozen=True, kw_only=True)
class Questions(Batch):
    """A batch of questions: which of the split they are (int64 [B]) comes with it, for their answers' texts."""

    split: str
    numbers: torch.Tensor


class SpanTask(Task):
    """Questions whose answers stand in a paragraph.

    splits   per split: of the paragraphs, one after the other, `ids` int [W], `letters` uint8 [W, LETTERS], `begins` and
             `ends` int [W], each word's place in the text, and `lengths` int [P], words of each; of the questions
             `question_ids`, `question_letters`, `question_lengths` alike, `paragraphs` int [N], and `spans` int [N, 2], the
             first and last word of an answer; in training also `vectors` float [n, width] and `vector_ids` int [n], which
             words of the vocabulary start from
    texts    per split: `Texts`

    A batch's inputs are words [T, B] and letters [T, B, C] of paragraphs, words [J, B] and letters [J, B, C] of questions,
    padded on the right; its lengths int64 [B, 2] are those of both; its targets int64 [B, 2] are spans. Logits are
    [T, B, 2]. In evaluation a batch has fewer than `batch_size` questions where paragraphs are long. `steps` is not used.
    """

    metric, better = "exact_match", "higher"

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Mapping[str, np.ndarray]],
        vocabulary: list[str],
        texts: Mapping[str, Texts],
        data_note: str = "",
    ):
        super().__init__(name, splits, vocabulary, data_note=data_note)
        self.texts = texts
        self.n_examples = len(self.splits["train"]["spans"])

    def batches(
        self, split: str, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> Iterator[Questions]:
        data = {name: torch.as_tensor(array) for name, array in self._split(split, batch_size).items()}
        lengths = torch.stack([data["lengths"][data["paragraphs"]], data["question_lengths"]], 1).long()
        starts = [data[name].cumsum(0) - data[name] for name in ("lengths", "question_lengths")]
        groups = of_similar_length(lengths[:, 0], batch_size, generator)
        if generator is None:
            groups = [some for g in groups for some in g.split(max(1, LARGEST // int(lengths[g, 0].max())))]
        for group in groups:
            places = starts[0][data["paragraphs"][group]], starts[1][group]
            paragraph = _padded(data["ids"], data["letters"], places[0], lengths[group, 0])
            question = _padded(data["question_ids"], data["question_letters"], places[1], lengths[group, 1])
            spans = data["spans"][group].long()
            yield Questions((*paragraph, *question), spans, lengths[group], split=split, numbers=group)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean nats a question: of the first word and of the last one."""
        return sum(F.cross_entropy(logits[..., end].t(), batch.targets[:, end]) for end in (0, 1))

    def said(self, logits: torch.Tensor, batch: Questions) -> list[str]:
        """The answers: of all spans of at most LONGEST_ANSWER words the most likely one, as it stands in the text."""
        starts, ends = logits.movedim(2, 0).mT  # [B, T]
        before = LONGEST_ANSWER - 1
        best, place = F.pad(starts, (before, 0), value=-torch.inf).unfold(1, LONGEST_ANSWER, 1).max(2)
        last = (best + ends).argmax(1)
        first = last - before + place.gather(1, last[:, None])[:, 0]
        said = []
        for number, a, b in zip(batch.numbers.tolist(), first.tolist(), last.tolist(), strict=True):
            text, places = self.paragraph(batch.split, number)
            said.append(text[places[a][0] : places[b][1]])
        return said

    def paragraph(self, split: str, number: int) -> tuple[str, np.ndarray]:
        """The text that a question is about, and where its words begin and end in it, int [words, 2]."""
        data, paragraph = self.splits[split], self.splits[split]["paragraphs"][number]
        words = slice(data["lengths"][:paragraph].sum(), data["lengths"][: paragraph + 1].sum())
        return self.texts[split].paragraphs[paragraph], np.stack([data["begins"][words], data["ends"][words]], 1)

    def score(self, logits: torch.Tensor, batch: Questions) -> tuple[float, int]:
        """(exact matches, questions)."""
        return sum(self.by(exact_match, logits, batch)), len(batch.numbers)

    def by(self, rule, logits: torch.Tensor, batch: Questions) -> list[float]:
        """A rule(said, answers) of each question of a batch."""
        answers = (self.texts[batch.split].answers[number] for number in batch.numbers.tolist())
        return list(map(rule, self.said(logits, batch), answers))

    def mistakes(self, logits: torch.Tensor, batch: Questions) -> tuple[np.ndarray, np.ndarray]:
        """Per question whether its answer is no exact match."""
        wrong = 1 - np.array(self.by(exact_match, logits, batch), int)
        return wrong, np.ones_like(wrong)

    def groups(self, split: str) -> np.ndarray:
        """The article of each question: a net that is at home in one is so in all its questions."""
        data = self.splits[split]
        order = data["lengths"][data["paragraphs"]].argsort(kind="stable")
        return np.array(self.texts[split].articles)[order]

    @property
    def more_scores(self):
        return {"f1": lambda logits, batch: (sum(self.by(f1, logits, batch)), len(batch.numbers))}

    def speaks(self, predict, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A paragraph of one word has one answer; how readily it is pointed at where it is the question too, from the mean."""
        letters = torch.as_tensor(_letters(self.vocabulary[word] for word in words.tolist())).long()
        logits, _ = predict(*(words[None], letters[None]) * 2)
        lift = logits[0].sum(1)
        return words, lift - lift.mean()

    def initialise(self, model):
        data = self.splits["train"]
        if "vectors" not in data:
            return
        given, wanted = data["vectors"].shape[1], model.embedding.embedding_dim
        if given != wanted:
            raise ValueError(f"the vectors of words have {given} numbers, the model's {wanted}; make them agree")
        with torch.no_grad():
            model.embedding.weight[torch.as_tensor(data["vector_ids"])] = torch.as_tensor(data["vectors"])

    def examples(self, n: int) -> list[tuple[str, str]]:
        texts = self.texts["train"]
        return [
            (answers[0], f"{question} {self.paragraph('train', number)[0]}")
            for number, (question, answers) in enumerate(zip(texts.questions[:n], texts.answers[:n], strict=True))
        ]


def _padded(ids, letters, starts, lengths):
    """Words [T, B] and their letters [T, B, C] of the sequences that start there and are so long."""
    time = torch.arange(int(lengths.max()))[:, None]
    real, at = time < lengths, (starts + time).clamp(max=len(ids) - 1)
    return torch.where(real, ids[at], 0).long(), torch.where(real.unsqueeze(2), letters[at], NO_LETTER).long()


# ---- from the files


def squad(profile: str) -> SpanTask:
    """`squad`: the official training set, or the part of it that is on disk, and the official development set."""
    data, name = corpora.read("squad/train-v1.1.json", "squad/train-v1.1.partial.json")
    articles = json.loads(data)["data"]
    note = [f"{len(articles)} of {ARTICLES} training articles"] if corpora.FILES[name].partial else []
    return of_articles("squad", articles, json.loads(corpora.read("squad/dev-v1.1.json")[0])["data"], profile, note)


def of_articles(name: str, train: list, test: list, profile: str, note: Iterable[str] = ()) -> SpanTask:
    """The task of articles as SQuAD's files have them under "data"; those held out for validation come from `train`."""
    order, held_out = np.random.RandomState(SEED).permutation(len(train)), max(1, round(HELD_OUT * len(train)))
    parts = [train[i] for i in sorted(order[held_out:])], [train[i] for i in sorted(order[:held_out])], test
    read, note = {split: _asked(articles) for split, articles in zip(SPLITS, parts, strict=True)}, list(note)
    if part := PARTS.get(profile):
        read = {split: _spread(asked, most) for (split, asked), most in zip(read.items(), part, strict=True)}
        note.append(f"{profile} subset")
    whole = [asked for asked in read["train"] if asked.is_whole and asked.span[1] < LONGEST]
    if dropped := len(read["train"]) - len(whole):
        note.append(f"{dropped:,} training questions left out that no words among the first {LONGEST} answer")
    read["train"] = [replace(asked, paragraph=asked.paragraph.cut) for asked in whole]
    counts = Counter(_words(read["train"]))
    vocabulary = RESERVED + by_frequency(word for word, n in counts.items() for _ in range(n) if n >= RARE)
    splits = {split: _arrays(asked, vocabulary) for split, asked in read.items()}
    if path := corpora.on_disk(GLOVE):
        splits["train"] |= _vectors(path, vocabulary)
        note.append("words start from GloVe vectors")
    return SpanTask(name, splits, vocabulary, {split: _texts(asked) for split, asked in read.items()}, "; ".join(note))


@dataclass(frozen=True)
class Text:
    """A text and where its words stand in it: (begin, end) each."""

    text: str
    words: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, text):
        return cls(text, tuple(piece.span() for piece in PIECE.finditer(text)))

    @property
    def cut(self):
        return replace(self, words=self.words[:LONGEST])

    def spelt(self):
        return [self.text[begin:end] for begin, end in self.words]


@dataclass(frozen=True)
class Asked:
    """A question about a paragraph of an article, the answers' texts, and where the first of them begins and ends."""

    article: int
    paragraph: Text
    question: Text
    answers: tuple[str, ...]
    place: tuple[int, int]

    @property
    def span(self):
        """The first and the last word that the answer touches."""
        begin, end = self.place
        touched = [i for i, (a, b) in enumerate(self.paragraph.words) if a < end and b > begin]
        return (touched[0], touched[-1]) if touched else (0, 0)

    @property
    def is_whole(self):
        """Whether the answer begins where its first word does, and ends where its last one does."""
        first, last = self.span
        return (self.paragraph.words[first][0], self.paragraph.words[last][1]) == self.place


def _asked(articles):
    """The questions of articles; paragraphs and questions without a word have nothing to read."""
    found = []
    for number, article in enumerate(articles):
        for part in article["paragraphs"]:
            paragraph = Text.of(part["context"])
            for one in part["qas"]:
                answers, start = tuple(a["text"] for a in one["answers"]), one["answers"][0]["answer_start"]
                asked = Asked(number, paragraph, Text.of(one["question"]), answers, (start, start + len(answers[0])))
                found += [asked] if paragraph.words and asked.question.words else []
    return found


def _spread(asked, most):
    """So many questions, evenly over the articles; all of them where there are no more."""
    return [asked[i * len(asked) // most] for i in range(most)] if len(asked) > most else asked


def _paragraphs(asked):
    """The different paragraphs, in order."""
    return list(dict.fromkeys(one.paragraph for one in asked))


def _words(asked):
    """All words, of every paragraph once, as the vocabulary has them."""
    for text in (*_paragraphs(asked), *(one.question for one in asked)):
        yield from (word.lower() for word in text.spelt())


def _texts(asked):
    paragraphs = [paragraph.text for paragraph in _paragraphs(asked)]
    columns = zip(*((one.question.text, one.answers, one.article) for one in asked), strict=True)
    return Texts(paragraphs, *map(list, columns))


def _arrays(asked, vocabulary):
    """A split's arrays."""
    index, paragraphs = {word: i for i, word in enumerate(vocabulary)}, _paragraphs(asked)
    number = {paragraph: i for i, paragraph in enumerate(paragraphs)}
    found = _spelt("", paragraphs, index) | _spelt("question_", [one.question for one in asked], index)
    places = np.array([place for paragraph in paragraphs for place in paragraph.words], dtype=np.int32)
    found |= {"begins": places[:, 0], "ends": places[:, 1]}
    found["paragraphs"] = np.array([number[one.paragraph] for one in asked], dtype=np.int32)
    found["spans"] = np.array([one.span for one in asked], dtype=np.int32)
    return found


def _spelt(prefix, texts, index):
    """Ids and letters of all words, and the texts' lengths."""
    words = [word for text in texts for word in text.spelt()]
    ids = np.array([index.get(word.lower(), OOV) for word in words], dtype=np.int32)
    lengths = np.array([len(text.words) for text in texts], dtype=np.int32)
    return {f"{prefix}ids": ids, f"{prefix}letters": _letters(words), f"{prefix}lengths": lengths}


def _letters(words):
    """uint8 [n, LETTERS]: the letters' numbers of n words."""
    codes = ([ord(letter) if ord(letter) < 256 else OTHER_LETTER for letter in word[:LETTERS]] for word in words)
    return np.array([row + [NO_LETTER] * (LETTERS - len(row)) for row in codes], dtype=np.uint8)


def _vectors(path, vocabulary):
    """Vectors of the words that a file of GloVe has: a word and its numbers a line."""
    index, ids, vectors = {word: i for i, word in enumerate(vocabulary)}, [], []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            if word in index:
                ids.append(index[word])
                vectors.append(np.array(numbers, dtype=np.float32))
    if not ids:
        raise ValueError(
            f"{path} has none of the {len(vocabulary):,} words of the training texts; expected GloVe's lower case"
        )
    return {"vectors": np.stack(vectors), "vector_ids": np.array(ids)}
