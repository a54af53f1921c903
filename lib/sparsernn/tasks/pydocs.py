"""The corpus every installation has: the docstrings of eight pinned packages.

Read with `ast` from the installed *.py (nothing is imported, tests are skipped), split by source *file* hash 80/10/10.
Documents of fewer than 15 words are dropped, and of those with the same first 12 masked words one is kept, in one
split. Order is by text hash, so that any beginning of a split is a fair sample of it. Tasks: `topic`, `char`, `word`.

The processed ids are cached as one npz under <root>/data/cache, named after package versions and `PROCESSING`; delete
it and it is built again. Locking uses fcntl (Linux, macOS).
"""

from __future__ import annotations

import ast
import fcntl
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import project_root
from .base import SPLITS, ClassificationTask, LanguageTask, WordTask
from .words import RESERVED, by_frequency, sequences

PROCESSING = 7  # part of the cache's name: raise it when the code below makes something else
PACKAGES = ("matplotlib", "networkx", "numba", "numpy", "pandas", "scipy", "sympy", "torch")
TEST_FOLDERS = {"test", "tests", "testing", "_testing"}

# Masked are the packages' names inside any word (`pytorch`, `__torch_function__`, `networkxerror`, `sympify`) and their
# customary aliases as a word or a part between underscores (`x_np`). What packages talk about stays, though it tells
# them apart (`ndarray`, `tensor`, `dataframe`, `jit`): it is the topic.
NAMES = re.compile(r"matplotlib|pyplot|(?:^|_)mpl|networkx|numba|numpy|pandas|scipy|symp(?:y|if)|torch")
ALIASES = {"np", "pd", "plt", "nx", "nb", "sp", "aten"}
WORD = re.compile(r"[a-z_]\w*|\d[\w.]*")

# Of the file hash: of 300..999 the one that gives every package closest to a tenth in valid and in test. (An earlier one
# was given up when plans had been changed after its test split was seen.)
SALT = 537
MIN_WORDS = 15  # shorter ones ("Return the name of this node.") say little about their package
KEY_WORDS = 12
TOPIC_WORDS = 100
TOPIC_VOCABULARY = 20_000  # as the papers' classification tasks
END, OTHER = "¶", "\N{REPLACEMENT CHARACTER}"  # end of a docstring; any character outside the alphabet
ALPHABET = 98  # printable ASCII and newline, with END and OTHER at most 100 symbols

PIECE = re.compile(r"\w+|[^\w\s]")  # of the word task: words and signs
WORD_VOCABULARY = 10_000  # with <unk> and <eos>
UNKNOWN, END_OF_DOCUMENT = "<unk>", "<eos>"

# Most passages per package, most characters and most words, in (train, valid, test).
TOPIC_CAP = {"full": (6000, 1000, 1000), "smoke": (50, 15, 15)}
CHAR_CAP = {"full": (3_000_000, 100_000, 100_000), "smoke": (40_000, 5_000, 5_000)}
WORD_CAP = {"full": (2_000_000, 100_000, 100_000), "smoke": (20_000, 3_000, 3_000)}


class Document(NamedTuple):
    package: str
    split: str
    text: str
    words: list[str]


def topic(profile: str) -> ClassificationTask:
    """`pydocs-topic`: which of eight packages a passage of at most 100 docstring words is from, their names masked.

    Docstrings are cut into passages, not cut off after 100 words: that gives twice the examples, and the network, which
    learns its words from nothing, needs them more than the linear opponent does.

    Tokens are lower-cased words; numbers are `<num>`, all eight names and their aliases `<name>`. Ids: 0 pad, 1 start
    (prepended), 2 out of vocabulary, then the 20,000 most frequent training words. torch has six times the docstrings
    of networkx, so a package gives at most 6,000 / 1,000 / 1,000 passages to train / valid / test: the largest class is
    about a sixth, and accuracy is not won by guessing it.
    """
    arrays, meta = _load(profile)
    splits = {s: {key: arrays[f"topic.{s}.{key}"] for key in ("ids", "lengths", "labels")} for s in SPLITS}
    return ClassificationTask("pydocs-topic", splits, meta["words"], list(PACKAGES), meta["note"])


def char(profile: str) -> LanguageTask:
    """`pydocs-char`: the docstrings, dedented, one after the other, each followed by `¶`.

    At most 3,000,000 / 100,000 / 100,000 characters; printable ASCII and newline, anything else is one symbol.
    """
    arrays, meta = _load(profile)
    splits = {split: {"ids": arrays[f"char.{split}.ids"]} for split in SPLITS}
    return LanguageTask("pydocs-char", splits, meta["alphabet"], data_note=meta["note"])


def word(profile: str) -> WordTask:
    """`pydocs-word`: the docstrings by lower-cased words and signs, an <eos> after each, the 10,000 most frequent.

    At most 2,000,000 / 100,000 / 100,000 words; others are <unk>.
    """
    arrays, meta = _load(profile)
    splits = {split: {"ids": arrays[f"word.{split}.ids"]} for split in SPLITS}
    return WordTask("pydocs-word", splits, meta["pieces"], data_note=meta["note"])


# ---- from source files to documents


def installed() -> dict[str, Path]:
    """Package → folder, found without importing it. Raises ModuleNotFoundError with what to type."""
    roots = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"pydocs reads {package}'s docstrings, it is not installed: pip install {package}"
            )
        roots[package] = Path(spec.origin).parent
    return roots


def source_files(package: str, root: Path) -> list[tuple[str, Path]]:
    """(split, path) of the package's *.py without tests, ordered by the hash of "SALT/package/relative/path.py"."""
    files = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if TEST_FOLDERS.isdisjoint(parts) and not re.match(r"(test_.*|.*_test|conftest)\.py$", path.name):
            digest = hashlib.sha256("/".join((str(SALT), package, *parts)).encode()).digest()
            split = {8: "valid", 9: "test"}.get(int.from_bytes(digest[-4:]) % 10, "train")
            files.append((digest, split, path))
    return [(split, path) for _, split, path in sorted(files)]


def docstrings(source: bytes) -> Iterator[str]:
    """The dedented docstrings of module, classes and functions. Raises SyntaxError if the source is not Python."""
    if b'"""' not in source and b"'''" not in source:
        return
    nodes = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text
        for field in ("body", "orelse", "handlers", "finalbody"):  # statements only: definitions are statements
            block = getattr(node, field, None)
            if isinstance(block, list):  # a lambda's body is no list
                nodes += block


def mask(text: str) -> list[str]:
    """The lower-cased words of a text; numbers become `<num>`, names of the packages `<name>`."""
    return [_mask_word(match.group()) for match in WORD.finditer(text.lower())]


@cache
def _mask_word(word: str) -> str:
    if word[0].isdigit():
        return "<num>"
    return "<name>" if NAMES.search(word) or not ALIASES.isdisjoint(word.split("_")) else word


def read(roots: Mapping[str, Path], cap: tuple[int, int, int] | None = None) -> tuple[list[Document], int]:
    """All documents of the packages, and the number of files that could not be parsed.

    cap   read a package's files of a split only until it has that many documents (for the smoke subset)
    """
    documents, unread = [], 0
    for package, root in roots.items():
        counts = Counter()
        for split, path in source_files(package, root):
            if cap and counts[split] >= cap[SPLITS.index(split)]:
                continue
            try:
                texts = list(docstrings(path.read_bytes()))
            except (SyntaxError, ValueError):  # ValueError: a null byte
                unread += 1
                continue
            for text in texts:
                words = mask(text)
                if len(words) >= MIN_WORDS:
                    documents.append(Document(package, split, text, words))
                    counts[split] += 1
    return documents, unread


def distinct(documents: list[Document]) -> list[Document]:
    """One document of each group with the same first 12 words, in the order of the texts' hashes."""
    ordered = sorted(documents, key=lambda d: (hashlib.sha256(d.text.encode()).digest(), d.package, d.split))
    first = {}
    for document in ordered:
        first.setdefault(tuple(document.words[:KEY_WORDS]), document)
    return list(first.values())


def passages(documents: list[Document]) -> Iterator[tuple[str, str, list[str]]]:
    """(package, split, words): documents cut every 100 words, ends too short left out, one of those that begin alike."""
    seen = set()
    for document in documents:
        for start in range(0, len(document.words), TOPIC_WORDS):
            words = document.words[start : start + TOPIC_WORDS]
            key = tuple(words[:KEY_WORDS])
            if len(words) >= MIN_WORDS and key not in seen:
                seen.add(key)
                yield document.package, document.split, words


# ---- from documents to ids


def topic_ids(documents: list[Document], cap: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays `topic.<split>.<ids|lengths|labels>` (see ClassificationTask) and the vocabulary."""
    chosen, counts = defaultdict(list), Counter()
    for package, split, words in passages(documents):
        counts[package, split] += 1
        if counts[package, split] <= cap[SPLITS.index(split)]:
            chosen[split].append((package, words))
    words = RESERVED + by_frequency((word for _, passage in chosen["train"] for word in passage), TOPIC_VOCABULARY)
    arrays = {}
    for split in SPLITS:
        labels = [PACKAGES.index(package) for package, _ in chosen[split]]
        made = sequences([passage for _, passage in chosen[split]], labels, words)
        arrays |= {f"topic.{split}.{name}": array for name, array in made.items()}
    return arrays, words


def char_ids(documents: list[Document], cap: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays `char.<split>.ids` (uint8) and the alphabet: END, OTHER, then the training characters by frequency."""
    streams = {}
    for split, most in zip(SPLITS, cap, strict=True):
        texts = "".join(d.text.replace(END, OTHER) + END for d in documents if d.split == split)
        streams[split] = texts[:most]
    ascii_used = (symbol for symbol in streams["train"] if symbol == "\n" or " " <= symbol <= "~")
    alphabet = [END, OTHER, *by_frequency(ascii_used, ALPHABET)]
    table = np.full(0x110000, alphabet.index(OTHER), dtype=np.uint8)
    table[[ord(symbol) for symbol in alphabet]] = np.arange(len(alphabet))
    points = {split: np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4") for split, text in streams.items()}
    return {f"char.{split}.ids": table[points[split]] for split in SPLITS}, alphabet


def word_ids(documents: list[Document], cap: tuple[int, int, int]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays `word.<split>.ids` and the vocabulary: <unk>, <eos>, then the training words by frequency."""
    texts = {}
    for split, most in zip(SPLITS, cap, strict=True):
        texts[split] = []
        for document in documents:
            if document.split == split and len(texts[split]) < most:
                texts[split] += [*PIECE.findall(document.text.lower()), END_OF_DOCUMENT]
        del texts[split][most:]
    seen = (word for word in texts["train"] if word != END_OF_DOCUMENT)
    words = [UNKNOWN, END_OF_DOCUMENT, *by_frequency(seen, WORD_VOCABULARY - 2)]
    index = {word: i for i, word in enumerate(words)}
    return {f"word.{s}.ids": np.array([index.get(word, 0) for word in texts[s]], dtype=np.int32) for s in SPLITS}, words


def build(roots: Mapping[str, Path], size: str = "full") -> tuple[dict[str, np.ndarray], dict]:
    """All tasks' arrays and meta data (words, alphabet, pieces, unread), from the files themselves; size "full" or "smoke"."""
    with warnings.catch_warnings(), _no_garbage_collection():
        for category in (SyntaxWarning, DeprecationWarning):  # of other people's string escapes
            warnings.simplefilter("ignore", category)
        documents, unread = read(roots, TOPIC_CAP["smoke"] if size == "smoke" else None)
        documents = distinct(documents)
        topic_arrays, words = topic_ids(documents, TOPIC_CAP[size])
        char_arrays, alphabet = char_ids(documents, CHAR_CAP[size])
        word_arrays, pieces = word_ids(documents, WORD_CAP[size])
    meta = {"words": words, "alphabet": alphabet, "pieces": pieces, "unread": unread}
    return topic_arrays | char_arrays | word_arrays, meta


# ---- cache


def _load(profile: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and meta data of `build`, from the cache if it has them; one process builds, others wait for it."""
    size = "smoke" if profile == "smoke" else "full"
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    key = hashlib.sha256(f"{PROCESSING} {versions}".encode()).hexdigest()[:12]
    path = project_root() / "data" / "cache" / f"pydocs-{size}-{key}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                arrays, meta = build(installed(), size)
                temporary = path.with_suffix(f".{os.getpid()}.npz")
                np.savez(temporary, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays)
                os.replace(temporary, path)
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes())
    note = [f"docstrings of {versions}"]
    note += [f"{meta['unread']} files not parsed"] if meta["unread"] else []
    note += ["smoke subset"] if size == "smoke" else []
    return arrays, meta | {"note": "; ".join(note)}


@contextmanager
def _no_garbage_collection():
    """Syntax trees are many small objects: collecting while they grow triples the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
