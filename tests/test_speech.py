"""Spoken digits: utterances joined from recordings, read off by CTC. Generated tones stand in for the recordings."""

import io
import itertools
import math
import tarfile
import wave
from collections import Counter

import numpy as np
import pytest
import scipy.signal
import speech
import torch

import sparsernn
from sparsernn import tasks
from sparsernn.study.config import RunConfig
from sparsernn.study.evaluation import evaluate, examine, mistakes
from sparsernn.study.opponents import count_back_off
from sparsernn.study.training import Session
from sparsernn.tasks import corpora, digits
from sparsernn.tasks.base import Batch
from sparsernn.tasks.speech import FLOOR, RATE, WINDOW, SpeechTask, heard_anew, log_power


@pytest.fixture(scope="module")
def tones():
    """The task of generated tones; nobody changes it."""
    return speech.task()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spoken(words, answers, classes=4):
    """A batch of one utterance with these words, for a model that answers so many times, and a task to judge it."""
    batch = Batch(torch.zeros(answers, 1, 3), torch.tensor([words]), torch.tensor([answers]))
    task = SpeechTask.__new__(SpeechTask)
    task.classes = ["–", *"abcdefghij"[: classes - 1]]
    return task, batch


# ---- joined utterances


def test_every_split_joins_the_recordings_that_are_its_own_and_says_which_digits(monkeypatch):
    recordings = {key: np.full(400, 1e-3 * (1 + i)) for i, key in enumerate(speech.tones())}
    whose = {round(value[0] * 32768): key for key, value in recordings.items()}  # a sample tells the recording
    monkeypatch.setattr(digits, "FAINT", (300.0, 300.0))
    splits, heard = digits.join(recordings, np.random.default_rng(0), {}), {}
    for split in digits.PASSES:
        data, words, heard[split] = splits[split], 0, []
        assert data["counts"].min() == 3 and data["counts"].max() == 7
        begins = data["lengths"].cumsum() - data["lengths"]
        for begin, count in zip(begins.tolist(), data["counts"].tolist(), strict=True):
            spans = begin + data["spans"][words : words + count]
            keys = [whose[int(data["samples"][a])] for a, _ in spans]
            assert all(len(set(data["samples"][a:b].tolist())) == 1 and b - a == 400 for a, b in spans)
            assert [digit + 1 for _, _, digit in keys] == data["words"][words : words + count].tolist()
            assert len({speaker for speaker, _, _ in keys}) == 1, "one speaker an utterance"
            heard[split] += keys
            words += count
    indices = {"train": range(10, 14), "valid": range(5, 10), "test": range(5)}
    for split, passes in digits.PASSES.items():
        theirs = {key for key in recordings if (key[0] == digits.UNSEEN) == (split == "unseen")}
        theirs = {key for key in theirs if key[1] in indices.get(split, range(14))}
        assert Counter(heard[split]) == dict.fromkeys(theirs, passes)


def test_groups_of_test_utterances_share_no_recording():
    recordings = {key: np.full(200, 0.01 * (1 + i % 97)) for i, key in enumerate(speech.tones())}
    whose, total = {}, 0
    for group, keys in enumerate(digits._groups(recordings, "test", np.random.default_rng(1))):
        total += len(keys)
        for key in keys:
            assert whose.setdefault(key, group) == group
    assert total == len(whose) == 100 and set(np.bincount(list(whose.values()))) == {10}
    data = digits.join(recordings, np.random.default_rng(1), {})["test"]
    words = np.bincount(data["groups"], data["counts"])
    assert words.tolist() == [digits.TOGETHER * digits.PASSES["test"]] * 10


@pytest.mark.parametrize("n", [3, 7, 8, 10, 101])
def test_recordings_are_dealt_out_in_threes_to_sevens(n):
    rng, seen = np.random.default_rng(n), set()
    for _ in range(50):
        pieces = digits.sizes(n, rng)
        assert sum(pieces) == n and min(pieces) >= 3 and max(pieces) <= 7
        seen |= set(pieces)
    assert n < 101 or seen == {3, 4, 5, 6, 7}
    with pytest.raises(ValueError, match="2 recordings make no utterance of 3"):
        digits.sizes(2, rng)


def test_the_noisy_test_set_is_the_test_set_with_noise_as_loud_as_said(tones):
    test, noisy = tones.splits["test"], tones.splits["noisy"]
    assert all(np.array_equal(test[name], noisy[name]) for name in test if name != "samples")
    noise = (noisy["samples"].astype(float) - test["samples"]) / 32768
    assert 20 * math.log10(digits.LEVEL / noise.std()) == pytest.approx(digits.NOISY, abs=0.2)
    assert tones.more_tests == ("unseen", "noisy")


def test_the_same_seed_joins_the_same_sounds_and_the_sum_covers_all_of_them(tones):
    assert speech.task().data_sha256 == tones.data_sha256
    splits = {split: dict(data) for split, data in tones.splits.items()}
    splits["noisy"]["samples"] = splits["noisy"]["samples"].copy()
    splits["noisy"]["samples"][-1] += 1
    assert SpeechTask("tones", splits, tones.classes).data_sha256 != tones.data_sha256


def archive(path, folder=""):
    """Generated tones as the corpus has its recordings, at other levels: <digit>_<speaker>_<index>.wav."""
    with tarfile.open(path, "w:gz") as tar:
        for (speaker, index, digit), samples in speech.tones().items():
            file = io.BytesIO()
            with wave.open(file, "wb") as out:
                out.setparams((1, 2, RATE, 0, "NONE", ""))
                out.writeframes((samples * 3 * 32768).astype("<i2").tobytes())
            info = tarfile.TarInfo(f"{folder}recordings/{digit}_{speaker}_{index}.wav")
            info.size = file.tell()
            file.seek(0)
            tar.addfile(info, file)


def test_generated_recordings_are_read_from_either_archive_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_DATA", str(tmp_path))
    (tmp_path / "fsdd").mkdir()
    archive(tmp_path / "fsdd/recordings.tar.gz")
    with pytest.raises(ValueError, match="its 420 members have the sum ([0-9a-f]{64}), expected"):
        tasks.load("digits", "smoke")
    with pytest.raises(ValueError) as problem:
        digits.read()
    known = str(problem.value).split("the sum ")[1].split(",")[0]
    monkeypatch.setitem(corpora.MEMBERS, "fsdd", (corpora.MEMBERS["fsdd"][0], known))
    one = tasks.load("digits", "smoke")
    (tmp_path / "fsdd/recordings.tar.gz").unlink()
    archive(tmp_path / "fsdd/free-spoken-digit-dataset.tar.gz", "free-spoken-digit-dataset-master/")
    other = tasks.load("digits", "smoke")
    assert one.data_sha256 == other.data_sha256 and one.data_note == "smoke subset"
    assert {split: len(data["lengths"]) for split, data in one.splits.items()} == digits.SMOKE | {"noisy": 12}
    assert len(one.classes) == 11 and one.classes[1] == "zero"
    for recording in digits.read().values():  # whatever its own level
        assert np.sqrt((recording**2).mean()) == pytest.approx(digits.LEVEL)


# ---- spectrograms and batches


@pytest.mark.parametrize("hop", [68, 80, 92])
def test_a_spectrogram_is_scipys_own(hop):
    sound = np.random.default_rng(0).standard_normal(2345) / 10
    window = scipy.signal.get_window("hann", WINDOW)
    shift = -(WINDOW // 2) % hop  # so that a window begins where the sound does
    transform = scipy.signal.ShortTimeFFT(window, hop, RATE, scale_to=None)
    padded, first = np.concatenate([np.zeros(shift), sound]), (shift + WINDOW // 2) // hop
    frames = (len(sound) - WINDOW) // hop + 1
    expected = np.log(transform.spectrogram(padded, p0=first, p1=first + frames).T + FLOOR)
    found = log_power(sound, hop)
    assert found.shape == (frames, 81) and np.abs(found - expected).max() < 1e-4  # the window is float32


def test_a_tone_lights_its_own_band_and_a_click_is_too_short():
    assert log_power(np.sin(2 * np.pi * 1000 * np.arange(800) / RATE)).argmax(1).tolist() == [1000 // 50] * 9
    with pytest.raises(ValueError, match="sound of 159 samples is shorter than a window of 160"):
        log_power(np.zeros(159))


def test_training_frames_have_mean_nothing_and_deviation_one(tones):
    frames = torch.cat([tones.spectrogram(tones.sound("train", i)) for i in range(tones.n_examples)]).double()
    assert frames.mean(0).abs().max() < 1e-4 and (frames.std(0) - 1).abs().max() < 1e-3
    assert frames.shape[1] == tones.features == 81


@pytest.mark.parametrize("split", ["valid", "noisy"])
def test_a_batch_holds_every_utterance_once_padded_on_the_right(tones, split):
    left, order = list(range(12)), []
    for batch in tones.batches(split, 5):
        (features,) = batch.inputs
        assert features.dtype == torch.float32 and len(features) == batch.lengths.max()
        for i, (length, words) in enumerate(zip(batch.lengths.tolist(), batch.targets.tolist(), strict=True)):
            assert not features[length:, i].any()
            (item,) = [k for k in left if torch.equal(features[:length, i], tones.spectrogram(tones.sound(split, k)))]
            said = tones.said(split, item)[0].tolist()
            assert words == said + [-1] * (len(words) - len(said))
            left.remove(item), order.append(item)
    assert not left and order == tones.order(split).tolist()
    assert tones.groups(split).tolist() == [tones.splits[split]["groups"][item] for item in order]


def test_each_epoch_hears_the_utterances_anew_and_a_seed_repeats_it(tones):
    draw = generator(3)
    first, second = (list(tones.batches("train", 16, generator=draw)) for _ in range(2))
    again = list(tones.batches("train", 16, generator=generator(3)))
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, again, strict=True))
    assert not any(
        a.inputs[0].shape == b.inputs[0].shape and torch.equal(*a.inputs, *b.inputs) for a in first for b in second
    )
    words = sorted(line for batch in tones.batches("train", 16) for line in batch.targets.tolist())
    assert len(words) == 64 == sum(len(batch.targets) for batch in first)


def test_what_is_heard_anew_is_faster_or_slower_louder_or_softer_and_noisier_within_bounds():
    sound = np.sin(2 * np.pi * 1000 * np.arange(8000) / RATE).astype(np.float32) / 10
    draw, hops, gains, noises = generator(), [], [], []
    for _ in range(200):
        heard, hop = heard_anew(sound, draw)
        gain = float(heard @ sound / (sound @ sound))
        hops.append(hop), gains.append(20 * math.log10(gain))
        noises.append(-20 * math.log10((heard / gain - sound).std() / sound.std()))
    assert min(hops) < 70 and max(hops) > 90 and 68 <= min(hops) and max(hops) <= 92
    assert min(gains) < -5 and max(gains) > 5 and max(map(abs, gains)) < 6.1
    assert 14.8 < min(noises) < 20 and 40 < max(noises) < 45.2


# ---- loss and reading, against brute force


def collapsed(path):
    return [word for word, _ in itertools.groupby(path) if word]


@pytest.mark.parametrize("words", [[1], [1, 2], [2, 2], [3, 1, 3]])
@pytest.mark.parametrize("answers", [3, 5])
def test_the_loss_is_the_sum_over_all_ways_to_say_it(words, answers):
    logits = torch.randn(answers, 1, 4, generator=generator(answers), dtype=torch.float64)
    task, batch = spoken(words, answers)
    shares = logits[:, 0].softmax(-1)
    paths = [path for path in itertools.product(range(4), repeat=answers) if collapsed(path) == words]
    total = sum(math.prod(float(shares[t, word]) for t, word in enumerate(path)) for path in paths)
    expected = -math.log(total) if paths else math.inf
    assert task.loss(logits, batch).item() == pytest.approx(expected)


def test_the_loss_is_the_mean_over_utterances_and_padding_costs_nothing():
    task, _ = spoken([1], 6)
    logits = torch.randn(6, 2, 4, generator=generator(1), dtype=torch.float64)
    both = Batch(torch.zeros(12, 2, 3), torch.tensor([[1, 2], [3, -1]]), torch.tensor([12, 7]))  # stride 2
    one = Batch(torch.zeros(12, 1, 3), torch.tensor([[1, 2]]), torch.tensor([12]))
    two = Batch(torch.zeros(7, 1, 3), torch.tensor([[3]]), torch.tensor([7]))
    alone = [task.loss(logits[:, :1], one), task.loss(logits[:4, 1:], two)]
    assert task.loss(logits, both).item() == pytest.approx(sum(map(float, alone)) / 2)
    logits[4:, 1] += 50 * torch.randn(2, 4, dtype=torch.float64)
    assert task.loss(logits, both).item() == pytest.approx(sum(map(float, alone)) / 2)


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_how_often_a_model_answers_is_read_off_its_logits(stride):
    task, _ = spoken([1], 1)
    for longest in range(stride * (stride - 1) + 1, 60):
        lengths = torch.arange(1, longest + 1)
        batch = Batch(torch.zeros(longest, longest, 1), torch.zeros(longest, 1, dtype=torch.int64), lengths)
        logits = torch.zeros(math.ceil(longest / stride), longest, 4)
        assert task.answers(logits, batch).tolist() == [math.ceil(n / stride) for n in lengths.tolist()]


def test_the_greedy_reading_drops_repeats_then_blanks():
    task, batch = spoken([1], 5)
    for path in itertools.product(range(3), repeat=5):
        logits = torch.nn.functional.one_hot(torch.tensor(path), 4)[:, None].float()
        assert task.read(logits, batch) == [collapsed(path)]


def edit_distance(a, b):
    """By trying everything: the fewest words put in, left out or replaced."""
    if not a or not b:
        return len(a) + len(b)
    return min(edit_distance(a[1:], b) + 1, edit_distance(a, b[1:]) + 1, edit_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_mistakes_are_the_fewest_edits_of_every_utterance_also_of_one_that_reads_nothing():
    task, _ = spoken([1], 1)
    rng = np.random.default_rng(4)
    paths = torch.as_tensor(rng.integers(0, 4, (9, 40)))
    paths[:, 0] = 0
    counts = rng.integers(1, 5, 40)
    targets = torch.full((40, 4), -1)
    for line, count in zip(targets, counts, strict=True):
        line[:count] = torch.as_tensor(rng.integers(1, 4, count))
    batch = Batch(torch.zeros(9, 40, 1), targets, torch.full((40,), 9))
    edits, of = task.mistakes(torch.nn.functional.one_hot(paths, 4).float(), batch)
    references = [line[:count] for line, count in zip(targets.tolist(), counts, strict=True)]
    expected = [edit_distance(a, collapsed(p.tolist())) for a, p in zip(references, paths.T, strict=True)]
    assert edits.tolist() == expected and of.tolist() == counts.tolist() and edits[0] == counts[0]
    assert task.score(torch.nn.functional.one_hot(paths, 4).float(), batch) == (sum(expected), counts.sum())
    assert task.metric_of(3, 12) == 0.25 and task.metric == "label_error_rate" and task.better == "lower"


# ---- a study of tones


def test_a_small_net_learns_to_write_down_tones(as_it_was, tones):
    speech.register()
    session = Session(RunConfig("tones", method="dense", profile="smoke", epochs=20), tones)
    before = evaluate(lambda *x, **more: session.model(*x, **more), tones, "valid", session.plan)
    for session.epoch in range(20):
        losses = [loss for loss, _ in session.steps()]
    assert before > 0.9 and session.read_off()["valid"] < 0.15 and np.mean(losses) < 2.5


@pytest.mark.parametrize(("method", "options"), [("sparse-vd-wgn", {}), ("gradual", {"density": 0.5})])
def test_a_run_keeps_what_every_test_item_got_wrong(as_it_was, method, options):
    speech.register()
    config = RunConfig("tones", "frames-rnn", method=method, profile="quick", epochs=2, **options)
    run = sparsernn.ensure(config)
    assert run.record["compact_error"] < 1e-12 and run.record["metric"] == "label_error_rate"
    kept = np.load(run.directory / "mistakes.npz")
    rates = dict(part.split("=") for part in run.record["tests"].split(","))
    assert list(rates) == ["unseen", "noisy"]
    for split, rate in (rates | {"test": run.record["test"]}).items():
        assert kept[f"{split}.errors"].sum() / kept[f"{split}.of"].sum() == pytest.approx(float(rate))
        assert len(kept[f"{split}.groups"]) == len(kept[f"{split}.of"]) == 12
        assert kept[f"{split}.errors"].dtype.itemsize == 1
    again = mistakes(examine(run.compact, run.task, config.plan), run.task)
    assert all(np.array_equal(again[name], kept[name]) for name in kept) and len(again) == len(kept.files)


def test_a_classifier_keeps_a_byte_an_item_and_a_language_model_the_bits_of_its_pieces(as_it_was):
    run = sparsernn.ensure(RunConfig("tiny-topic", method="dense", profile="quick", epochs=2))
    kept = np.load(run.directory / "mistakes.npz")
    assert sorted(kept) == ["test.errors", "test.of"] and set(kept["test.of"]) == {1}
    assert 1 - kept["test.errors"].mean() == pytest.approx(run.record["test"]) and run.record["tests"] == ""
    assert kept["test.errors"].nbytes == 90
    run = sparsernn.ensure(RunConfig("tiny-char", method="dense", profile="quick", epochs=1))
    kept = np.load(run.directory / "mistakes.npz")
    assert kept["test.errors"].sum() / kept["test.of"].sum() == pytest.approx(run.record["test"], rel=1e-6)


def test_words_that_are_not_there_are_refused_by_name(as_it_was, tones):
    speech.register()
    with pytest.raises(ValueError, match="word_dropout is 0.1, but 'tones' has no words; set it to 0"):
        Session(RunConfig("tones", method="dense", profile="smoke", word_dropout=0.1), tones)
    with pytest.raises(ValueError, match="'tones' is no language model's task"):
        count_back_off("tones", "smoke", 3)
    assert tones.reads == "81 numbers a frame of 10 ms" and len(tones.examples(3)) == 3
    label, text = tones.examples(1)[0]
    assert set(label.split()) <= set(digits.DIGITS) and text.endswith(" seconds of sound")
