"""Batches show every example once, the corpus keeps its promises, and the opponents do what they say."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from sparsernn import tasks
from sparsernn.sparsify.linear import accuracy, l1_path
from sparsernn.study.opponents import BackOff
from sparsernn.tasks import pydocs
from sparsernn.tasks.base import SPLITS, ClassificationTask, LanguageTask


def language(n):
    """Symbol i at place i: a batch tells where it was cut."""
    ids = np.arange(n, dtype=np.int32)
    return LanguageTask("tiny", {split: {"ids": ids} for split in SPLITS}, [chr(97 + i % 26) for i in range(n)])


def classification(n=101, seed=0):
    """Sequence i of random length starts with the symbol 1 and goes on with 2 + i; its label is i mod 3."""
    lengths = np.random.default_rng(seed).integers(1, 12, n)
    ids = np.concatenate([[1] + [2 + i] * (length - 1) for i, length in enumerate(lengths)])
    data = {"ids": ids, "lengths": lengths, "labels": np.arange(n) % 3}
    words = ["<pad>", "<start>"] + [f"w{i}" for i in range(n)]
    return ClassificationTask("tiny", {split: dict(data) for split in SPLITS}, words, ["a", "b", "c"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- language batches


@pytest.mark.parametrize("n", [5, 64, 100, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_every_symbol_of_a_stream_is_predicted_once(n, batch_size, steps):
    batches = list(language(n).batches("test", batch_size, steps))
    targets = torch.cat([batch.targets for batch in batches])
    expected = torch.arange(1, 1 + (n - 1) // batch_size * batch_size)  # the rest does not divide into the streams
    assert targets.T.flatten().tolist() == expected.tolist()
    assert all(len(batch.tokens) == steps for batch in batches[:-1])
    assert sum(language(n).score(torch.zeros(*b.targets.shape, n), b)[1] for b in batches) == len(expected)


def test_streams_are_continuous_across_windows():
    batches = list(language(1000).batches("train", 4, 30, generator()))
    assert [batch.carry for batch in batches] == [False] + [True] * (len(batches) - 1)
    tokens, targets = (torch.cat([getattr(b, key) for b in batches]) for key in ("tokens", "targets"))
    assert torch.equal(targets[:-1], tokens[1:])
    assert torch.equal(targets, tokens + 1)
    assert all(b.lengths is None and b.tokens.dtype == torch.int64 and b.tokens.is_contiguous() for b in batches)


def test_training_starts_at_a_random_offset_below_the_window():
    task, draw = language(1000), generator()
    starts = [int(next(task.batches("train", 4, 10, draw)).tokens[0, 0]) for _ in range(100)]
    assert set(starts) == set(range(10))
    assert all(int(next(task.batches("train", 4, 10)).tokens[0, 0]) == 0 for _ in range(3))


def test_too_many_streams_or_no_window_is_refused():
    with pytest.raises(ValueError, match="too few for 10 streams"):
        next(language(10).batches("train", 10, 5))
    with pytest.raises(ValueError, match="steps is None"):
        next(language(10).batches("train", 1))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        next(language(10).batches("dev", 1, 5))


def test_uniform_logits_cost_log_v_and_score_bits():
    task = language(32)
    batch = next(task.batches("valid", 2, 5))
    logits = torch.zeros(5, 2, 32, dtype=torch.float64)
    assert task.loss(logits, batch).item() == pytest.approx(math.log(32))
    assert task.score(logits, batch) == (pytest.approx(10 * 5.0), 10)
    assert task.n_examples == 31


# ---- classification batches


@pytest.mark.parametrize("batch_size", [1, 4, 16, 1000])
@pytest.mark.parametrize("draw", [None, generator(1)])
def test_classification_batches_cover_every_sequence_once_with_its_label(batch_size, draw):
    task = classification()
    lengths, seen = task.splits["train"]["lengths"], []
    for batch in task.batches("train", batch_size, generator=draw):
        assert len(batch.tokens) == batch.lengths.max() and batch.tokens.shape[1] <= batch_size
        for tokens, label, length in zip(batch.tokens.T.tolist(), batch.targets.tolist(), batch.lengths, strict=True):
            real = tokens[len(tokens) - length :]
            assert tokens[: len(tokens) - length] == [0] * (len(tokens) - length), "padding is on the left"
            assert real[0] == 1 and len(set(real[1:])) <= 1
            if length > 1:
                i = real[1] - 2
                assert label == i % 3 and length == lengths[i]
                seen.append(i)
    assert sorted(seen) == [i for i in range(101) if lengths[i] > 1]


def test_each_epoch_mixes_anew_and_a_seed_repeats_it():
    task, draw = classification(), generator(2)
    first, second = ([b.targets.tolist() for b in task.batches("train", 8, generator=draw)] for _ in range(2))
    assert first != second
    assert first == [b.targets.tolist() for b in task.batches("train", 8, generator=generator(2))]


def test_batches_of_similar_length_leave_little_padding():
    task = classification(2000)
    real = task.splits["train"]["lengths"].sum()
    assert real > 0.95 * sum(b.tokens.numel() for b in task.batches("train", 16, generator=generator()))


def test_accuracy_counts_the_largest_logit():
    task = classification()
    batch = next(task.batches("test", 10))
    logits = torch.nn.functional.one_hot(batch.targets, 3).float()
    logits[0] = -logits[0]
    assert task.score(logits, batch) == (9.0, 10)
    assert task.loss(torch.zeros(10, 3), batch).item() == pytest.approx(math.log(3))
    assert task.examples(2)[0][0] == "a" and task.examples(2)[0][1].startswith("<start>")


def test_a_missing_label_is_refused():
    data = {"ids": np.arange(4), "lengths": np.array([2, 2]), "labels": np.array([0])}
    with pytest.raises(ValueError, match="train: 1 labels, 2 lengths of sum 4"):
        ClassificationTask("tiny", dict.fromkeys(SPLITS, data), ["w"] * 4, ["a"])


def test_checksum_changes_with_a_single_id_and_with_the_type_of_the_array():
    def checksum(ids):
        splits = {"train": {"ids": ids}, "valid": {"ids": np.arange(3)}, "test": {"ids": np.arange(3)}}
        return LanguageTask("tiny", splits, list("abc")).data_sha256

    ids = np.zeros(50, dtype=np.int32)
    changed = ids.copy()
    changed[31] = 1
    assert checksum(ids) == checksum(ids.astype(">i4"))
    assert len({checksum(ids), checksum(changed), checksum(ids.astype(np.int64)), checksum(ids.reshape(2, 25))}) == 4


# ---- names


def test_an_unknown_task_is_told_the_nearest_name():
    with pytest.raises(ValueError, match="unknown task 'pydoc-topic'; did you mean 'pydocs-topic'"):
        tasks.load("pydoc-topic", "smoke")
    assert {"pydocs-topic", "pydocs-char"} <= set(tasks.names())


# ---- the embedded corpus, on a small forest of made-up packages


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """Eight packages of 40 files; two own texts a file, one text the package repeats everywhere, tests to be skipped."""
    rng, roots = np.random.default_rng(0), {}
    for package in pydocs.PACKAGES:
        root = roots[package] = tmp_path_factory.mktemp("site") / package
        (root / "tests").mkdir(parents=True)
        for i in range(40):
            one, two = (" ".join(f"{package[::-1]}w{w}" for w in rng.integers(0, 50, 30)) for _ in range(2))
            repeated = "This is the text that every file of every package begins with and then " + one
            (root / f"m{i:02}.py").write_text(
                f'"""{one} see {package}."""\n\nif True:\n    class A:\n        """{repeated}"""\n\n'
                f'        def f(self):\n            """Größe 3.5:\n\n            {two}\n            """\n\n'
                f'        def short(self):\n            """Return the name."""\n'
            )
        (root / "tests" / "a.py").write_text('"""' + "forbidden " * 20 + '"""')
        (root / "test_b.py").write_text('"""' + "forbidden " * 20 + '"""')
    (roots["torch"] / "broken.py").write_text('"""' + "forbidden " * 20 + '"""\ndef (')
    return roots


@pytest.fixture(scope="module")
def documents(forest):
    return pydocs.distinct(pydocs.read(forest)[0])


def test_near_duplicates_never_cross_splits(forest, documents):
    keys = [tuple(document.words[: pydocs.KEY_WORDS]) for document in documents]
    assert len(keys) == len(set(keys))
    repeated = [d for d in pydocs.read(forest)[0] if d.text.startswith("This is the text")]
    assert len(repeated) == 320 and {d.split for d in repeated} == set(SPLITS)
    assert sum(d.text.startswith("This is the text") for d in documents) == 1


def test_tests_short_texts_and_broken_files_are_left_out(forest, documents):
    text = " ".join(document.text for document in documents)
    assert "forbidden" not in text and "Return the name." not in text
    assert pydocs.read(forest)[1] == 1
    assert Counter(d.split for d in documents)["train"] == pytest.approx(0.8 * len(documents), rel=0.1)


def test_a_file_is_in_one_split_wherever_it_is_installed(forest, tmp_path):
    (tmp_path / "numba").symlink_to(forest["numba"])
    here = {path.name: split for split, path in pydocs.source_files("numba", forest["numba"])}
    there = {path.name: split for split, path in pydocs.source_files("numba", tmp_path / "numba")}
    assert here == there and set(here.values()) == set(SPLITS)


def test_own_names_are_masked():
    masked = (
        "torch pytorch __torch_function__ NumPy np x_np plt mpl_toolkits mplot3d pyplot nx SymPy sympify pd nb scipy"
    )
    kept = "simple ndarray tensor number sparse dataframe expand"
    assert set(pydocs.mask(masked)) == {"<name>"}
    assert pydocs.mask(kept) == kept.split()
    assert pydocs.mask("import Torch.nn as nn; x1 = 3.5e4") == ["import", "<name>", "nn", "as", "nn", "x1", "<num>"]


def test_no_own_name_is_left_in_the_vocabulary(forest):
    _, meta = pydocs.build(forest)
    assert not [word for word in meta["words"] if pydocs.NAMES.search(word) or word in pydocs.ALIASES]
    assert meta["words"][:3] == ["<pad>", "<start>", "<oov>"] and meta["unread"] == 1


def test_docstrings_are_found_where_definitions_can_stand():
    source = b'''"""module"""
if x:
    async def f(): "not tripled"
else:
    try:
        def g():
            """g

                indented
            """
            text = """no docstring"""
            class C: """C"""
    except E:
        def h(): """h"""
    finally:
        def i(): """i"""
'''
    assert sorted(pydocs.docstrings(source)) == ["C", "g\n\nindented", "h", "i", "module", "not tripled"]


def test_topic_caps_classes_and_counts_the_vocabulary_in_training_only(documents):
    arrays, words = pydocs.topic_ids(documents, (20, 3, 2))
    assert np.bincount(arrays["topic.train.labels"]).tolist() == [20] * 8
    assert np.bincount(arrays["topic.valid.labels"]).max() == 3
    starts = np.concatenate([[0], arrays["topic.train.lengths"].cumsum()[:-1]])
    assert (arrays["topic.train.ids"][starts] == 1).all() and (arrays["topic.train.ids"] == 1).sum() == len(starts)
    assert set(arrays["topic.train.ids"].tolist()) == set(range(1, len(words))) - {2}


def test_char_stream_is_the_texts_themselves(documents):
    arrays, alphabet = pydocs.char_ids(documents, (10**6, 10**6, 1000))
    for split in SPLITS:
        text = "".join(alphabet[i] for i in arrays[f"char.{split}.ids"])
        expected = "¶".join(d.text for d in documents if d.split == split) + "¶"
        assert text == (expected if split != "test" else expected[:1000]).replace("ö", "�").replace("ß", "�")
    assert len(alphabet) <= 100


def test_the_cache_returns_what_was_built_and_is_not_built_twice(forest, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    monkeypatch.setattr(pydocs, "installed", lambda: forest)
    built = {name: tasks.load(name, "quick") for name in ("pydocs-topic", "pydocs-char")}
    files = {path.suffix for path in (tmp_path / "data" / "cache").iterdir()}
    assert files == {".npz", ".lock"}
    monkeypatch.setattr(pydocs, "build", None)  # not callable: any use would raise
    for name, task in built.items():
        cached = tasks.load(name, "paper")
        assert cached.data_sha256 == task.data_sha256 and cached.vocabulary == task.vocabulary
        assert "torch " in cached.data_note and "1 files not parsed" in cached.data_note
    arrays, _ = pydocs.topic_ids(pydocs.distinct(pydocs.read(forest)[0]), pydocs.TOPIC_CAP["full"])
    assert np.array_equal(built["pydocs-topic"].splits["train"]["ids"], arrays["topic.train.ids"])


def test_smoke_is_a_small_part_and_says_so(forest, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    monkeypatch.setattr(pydocs, "installed", lambda: forest)
    monkeypatch.setitem(pydocs.TOPIC_CAP, "smoke", (5, 2, 2))
    smoke, full = (tasks.load("pydocs-topic", profile) for profile in ("smoke", "quick"))
    assert smoke.n_examples <= 40 < full.n_examples
    assert smoke.data_note.endswith("smoke subset") and "smoke" not in full.data_note
    assert smoke.data_sha256 != full.data_sha256


# ---- back-off model


def test_back_off_reproduces_a_sum_done_by_hand():
    """abab over {a, b, c}: bigrams ab ×2, ba ×1, so D₂ = 1/(1 + 2·1) = 1/3. Continuation counts of a and b are 1 each:
    D₁ = 2/(2 + 0) = 1, so p₁ = 1/3 for each symbol. p(b|a) = (2 − 1/3)/2 + 1/3·1/2·1/3 = 8/9; p(c|a) = 1/18.
    p(a|b) = (1 − 1/3)/1 + 1/3·1/3 = 7/9; after c, never a context, 1/3."""
    model = BackOff(2).fit(np.array([0, 1, 0, 1]), 3)
    p = 2 ** -model.bits(np.array([0, 1, 0, 2, 0]))
    assert p == pytest.approx([1 / 3, 8 / 9, 7 / 9, 1 / 18, 1 / 3])
    assert model.n_counts == 4


@pytest.mark.parametrize("order", [1, 2, 4])
def test_back_off_probabilities_sum_to_one_after_seen_and_unseen_contexts(order):
    rng, size = np.random.default_rng(0), 6
    model = BackOff(order).fit(rng.choice(5, 400, p=[0.6, 0.2, 0.1, 0.05, 0.05]), size)  # symbol 5 is never seen
    for context in ([], [0], [0, 0, 0], [4, 4, 4], [5, 5, 5], [0, 5, 0]):
        p = [2 ** -model.bits(np.array([*context, symbol]))[-1] for symbol in range(size)]
        assert sum(p) == pytest.approx(1, abs=1e-12) and min(p) > 0


def test_back_off_equals_the_recursion_written_out():
    rng, size, order = np.random.default_rng(1), 4, 3
    ids = rng.integers(0, size, 60) * rng.integers(0, 2, 60)
    counts = {order: Counter(tuple(ids[i : i + order].tolist()) for i in range(len(ids) - order + 1))}
    for k in range(order - 1, 0, -1):
        counts[k] = Counter(gram[1:] for gram in counts[k + 1])

    def p(gram):
        if not gram:
            return 1 / size
        seen = {g: n for g, n in counts[len(gram)].items() if g[:-1] == gram[:-1]}
        if not seen:
            return p(gram[1:])
        ones, twos = (sum(n == m for n in counts[len(gram)].values()) for m in (1, 2))
        d = ones / (ones + 2 * twos) if ones else 0.5
        return (max(seen.get(gram, 0) - d, 0) + d * len(seen) * p(gram[1:])) / sum(seen.values())

    new = rng.integers(0, size, 200)
    expected = [p(tuple(new[max(0, i - order + 1) : i + 1].tolist())) for i in range(len(new))]
    assert 2 ** -BackOff(order).fit(ids, size).bits(new) == pytest.approx(expected, rel=1e-12)


def test_a_longer_memory_predicts_text_better():
    text = np.array([ord(c) % 128 for c in " ".join(d for d in map(_documentation, "argparse inspect ast".split()))])
    held_out = np.array([ord(c) % 128 for c in _documentation("subprocess")])
    bits = [BackOff(order).fit(text, 128).bits(held_out).mean() for order in (1, 2, 3, 4)]
    assert bits == sorted(bits, reverse=True) and bits[0] < 7


def _documentation(module):
    """The source of a standard module: real text that is always there."""
    import importlib
    import inspect

    return inspect.getsource(importlib.import_module(module))


def test_back_off_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="exceed 63 bits"):
        BackOff(5).fit(np.zeros(10, int), 10_000)
    with pytest.raises(ValueError, match="2 ids are too few"):
        BackOff(3).fit(np.zeros(2, int), 5)
    with pytest.raises(ValueError, match=r"must be in \[0, 5\)"):
        BackOff(2).fit(np.array([0, 5]), 5)


# ---- linear


def told_by_a_word(classes=3, n=300):
    """Ten words of noise and, in three of four sequences, one of the three words that tell the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    rows = [[1, *rng.integers(20, 60, 10), 3 + 3 * c + rng.integers(3) if rng.random() < 0.75 else 20] for c in labels]
    data = {"ids": np.concatenate(rows), "lengths": np.full(n, 12), "labels": labels}
    vocabulary = ["<pad>", "<start>", "<oov>"] + [f"w{i}" for i in range(3, 60)]
    return ClassificationTask("tiny", {s: dict(data) for s in SPLITS}, vocabulary, [f"c{c}" for c in range(classes)])


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_path_keeps_the_words_that_tell_and_counts_its_weights(classes):
    task = told_by_a_word(classes)
    path = l1_path(task, costs=[1e-4, 0.1, 1.0])
    assert path[0]["weights_kept"] == 0 and path[0]["words"] == []
    telling = {f"w{i}" for i in range(3, 3 + 3 * classes)}
    assert set(path[1]["words"]) & telling and path[1]["valid"] > 0.6
    for entry in path:
        coef = entry["coef"].toarray()
        assert coef.shape == (classes, 60) and coef.dtype == np.float32
        assert np.count_nonzero(coef) == entry["weights_kept"]
        assert entry["words"] == [task.vocabulary[i] for i in np.flatnonzero(coef.any(0))]
        assert entry["valid"] == accuracy(task, entry, "valid")
    assert path[2]["weights_kept"] > path[1]["weights_kept"]
    assert classes > 2 or not path[2]["coef"].toarray()[0].any(), "two classes need one set of weights"
