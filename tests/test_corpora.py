"""Corpora come from disk, or over the wire by checksum: the right file, a wrong one, half a one, a hostile one."""

import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsernn import tasks
from sparsernn.tasks import corpora, sentiment_and_topic

TEXT = b"".join(b" no it was n't black monday <unk> %d \n" % i for i in range(5000))
NAME = "ptb/ptb.train.txt"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves TEXT, from where it is asked to; `cut` sends half of it and hangs up."""

    cut, asked = False, []

    def do_GET(self):
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        type(self).asked.append(start)
        if start >= len(TEXT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(TEXT) - start))
        self.end_headers()
        self.wfile.write(TEXT[start : len(TEXT) // 2] if self.cut else TEXT[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A project elsewhere, and NAME served on loopback under its right sum."""
    Server.cut, Server.asked = False, []
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    (tmp_path / "environment.yml").touch()
    monkeypatch.setenv("SPARSERNN_ROOT", str(tmp_path))
    monkeypatch.delenv("SPARSERNN_DATA", raising=False)
    url = f"http://127.0.0.1:{running.server_port}/ptb.train.txt"
    monkeypatch.setitem(corpora.FILES, NAME, corpora.Source(url, hashlib.sha256(TEXT).hexdigest()))
    yield tmp_path
    running.shutdown()
    running.server_close()


def known(monkeypatch, data, name=NAME, **changes):
    monkeypatch.setitem(
        corpora.FILES, name, replace(corpora.FILES[name], sum=hashlib.sha256(data).hexdigest(), **changes)
    )


# ---- over the wire


def test_the_right_file_is_fetched_once_and_stays(server):
    for _ in range(2):
        assert corpora.read(NAME) == (TEXT, NAME)
    assert (server / "data" / NAME).read_bytes() == TEXT and Server.asked == [0]
    assert not list(server.rglob("*.part"))


def test_a_file_with_a_wrong_sum_is_refused_and_not_kept(server, monkeypatch):
    known(monkeypatch, b"something else")
    with pytest.raises(ValueError, match=r"ptb/ptb.train.txt, fetched from http://127.*is not the file known"):
        corpora.read(NAME)
    assert not (server / "data" / NAME).exists() and not list(server.rglob("*.part"))


def test_a_transfer_that_was_cut_goes_on_where_it_stopped(server):
    Server.cut = True
    with pytest.raises(ConnectionError, match="cut after .* bytes; run it again to go on"):
        corpora.read(NAME)
    assert not (server / "data" / NAME).exists()
    Server.cut = False
    assert corpora.read(NAME) == (TEXT, NAME)
    assert Server.asked == [0, len(TEXT) // 2]


def test_a_transfer_killed_between_its_last_byte_and_its_check_is_not_repeated(server):
    part = server / "data" / (NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(TEXT)
    assert corpora.read(NAME) == (TEXT, NAME)
    assert Server.asked == [len(TEXT)]


def test_without_a_network_the_error_says_what_to_do(server, monkeypatch):
    monkeypatch.setitem(corpora.FILES, NAME, replace(corpora.FILES[NAME], url="http://127.0.0.1:9/nobody"))
    with pytest.raises(ConnectionError, match="could not be fetched from .*name that by SPARSERNN_DATA"):
        corpora.read(NAME)


# ---- on disk


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_on_disk_is_taken_first_gzipped_or_not(server, monkeypatch, packed):
    folder = server / "mine"
    path = folder / (NAME + ".gz" if packed else NAME)
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(TEXT) if packed else TEXT)
    monkeypatch.setenv("SPARSERNN_DATA", str(folder))
    assert corpora.read(NAME) == (TEXT, NAME) and Server.asked == []


def test_another_file_of_that_name_is_refused(server, monkeypatch):
    path = server / "data" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(TEXT[:-1])
    with pytest.raises(ValueError, match=r"ptb.train.txt has the sha256 .*, expected .*another file, or damaged"):
        corpora.read(NAME)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"ptb/ptb.train.txt"):
        corpora.read("ptb/ptb.trian.txt")


def test_data_readme_gives_the_sums_that_are_checked():
    text = (Path(__file__).parents[1] / "data/README.md").read_text()
    for name, source in corpora.FILES.items():
        assert source.sum.removeprefix("md5:") in text and source.url.rpartition("/")[2] in text, name
    assert corpora.MEMBERS["imdb"][1] in text


# ---- archives


def archive(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = tarfile.SYMTYPE, data
                tar.addfile(info)


def expect(monkeypatch, members):
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(members))
    monkeypatch.setitem(
        corpora.MEMBERS, "imdb", (corpora.MEMBERS["imdb"][0], hashlib.sha256(lines.encode()).hexdigest())
    )


REVIEWS = [
    (
        f"aclImdb/{half}/{side}/{i}_{7 if side == 'pos' else 2}.txt",
        f"{side} Film, number {i} of {half}: it's 7/10".encode(),
    )
    for half in ("train", "test")
    for side in ("pos", "neg")
    for i in range(20)
]
ARCHIVES = ("imdb/aclImdb_v1.tar.gz", "imdb/aclImdb_v1_labelled.tar.gz")


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_hostile_archive_writes_nothing_and_changes_nothing(server, monkeypatch, name):
    hostile = [
        ("../../escaped.txt", b"x"),
        ("/tmp/escaped.txt", b"x"),
        ("aclImdb/train/pos/../../../escaped_1.txt", b"x"),
        ("aclImdb/train/pos/99_9.txt", "/etc/passwd"),
    ]
    archive(server / "data" / name, [*hostile, *REVIEWS])
    expect(monkeypatch, REVIEWS)
    before = sorted(server.rglob("*"))
    assert [path for path, _ in corpora.members("imdb", *ARCHIVES)] == sorted(path for path, _ in REVIEWS)
    assert sorted(server.rglob("*")) == before and not (server.parent / "escaped.txt").exists()


def test_an_archive_with_a_changed_member_is_refused(server, monkeypatch):
    archive(server / "data" / ARCHIVES[1], [(REVIEWS[0][0], b"changed"), *REVIEWS[1:]])
    expect(monkeypatch, REVIEWS)
    with pytest.raises(ValueError, match=r"its 80 members have the sum .*, expected"):
        list(corpora.members("imdb", *ARCHIVES))


# ---- the tasks made of them


def text_of(task, split, i):
    data = task.splits[split]
    start = int(data["lengths"][:i].sum())
    return [task.vocabulary[word] for word in data["ids"][start : start + data["lengths"][i]]]


@pytest.fixture
def reviews(server, monkeypatch):
    """40 training reviews of seven films, three to a side but for the last."""
    addresses = "".join(f"http://www.imdb.com/title/tt{i // 3:07}/usercomments\n" for i in range(20)).encode()
    every = [*REVIEWS, *((f"aclImdb/train/urls_{side}.txt", addresses) for side in ("pos", "neg"))]
    archive(server / "data" / ARCHIVES[1], every)
    expect(monkeypatch, every)


@pytest.mark.parametrize("name", ["imdb", "imdb-authors"])
def test_imdb_is_prepared_as_the_authors_do(reviews, name):
    task = tasks.load(name, "quick")
    assert {s: len(task.splits[s]["labels"]) for s in task.splits} == {"train": 34, "valid": 6, "test": 40}
    first = text_of(task, "test", 0)
    assert first[0] == "<start>" and first[-1] == "</s>" and "Film" in first  # case is kept
    for split in task.splits:
        for i, label in enumerate(task.splits[split]["labels"]):
            assert ("pos" in text_of(task, split, i)) == (task.classes[label] == "positive")


def test_validation_is_of_films_that_training_does_not_know(reviews, monkeypatch):
    monkeypatch.setattr(
        sentiment_and_topic, "by_frequency", lambda words, most: sorted({str(i) for i in range(20)} | {"number"})
    )

    def films(task, split):
        """The films of a split, by the number that every review says of itself."""
        texts = [text_of(task, split, i) for i in range(len(task.splits[split]["labels"]))]
        return [int(text[text.index("number") + 1]) // 3 for text in texts]

    ours, theirs, again = (tasks.load(name, "quick") for name in ("imdb", "imdb-authors", "imdb"))
    assert len(films(ours, "valid")) == 6 and ours.data_sha256 == again.data_sha256
    assert not set(films(ours, "train")) & set(films(ours, "valid"))
    assert set(films(theirs, "train")) & set(films(theirs, "valid"))


def test_a_partial_training_set_is_accepted_and_named(server, monkeypatch):
    rows = [f'"{i % 4 + 1}","Title {i}","Some ""quoted"" text {i}"\n' for i in range(101)]
    for name, count in (("ag_news/train.partial.csv", 101), ("ag_news/test.csv", 21)):
        data = "".join(rows[:count]).encode()
        known(monkeypatch, data, name)
        (server / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (server / "data" / name).write_bytes(data)
    task = tasks.load("ag-news", "quick")
    assert "38k subset" in task.data_note
    assert {s: len(task.splits[s]["labels"]) for s in task.splits} == {
        "train": 95,
        "valid": 5,
        "test": 20,
    }  # first rows lost
    first = text_of(task, "test", 0)
    assert (
        first == ["<start>", "title", "1", "some", "quoted", "text", "1", "</s>"]
        and task.splits["test"]["labels"][0] == 1
    )


@pytest.fixture
def ptb(server, monkeypatch):
    for split, lines in (("train", 400), ("valid", 60), ("test", 50)):
        data = b"".join(TEXT.splitlines(keepends=True)[:lines]).replace(b"4", b"four")
        known(monkeypatch, data, f"ptb/ptb.{split}.txt")
        path = server / "data" / f"ptb/ptb.{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_ptb_by_words_has_an_end_a_line(ptb):
    task = tasks.load("ptb-word", "quick")
    words = [task.vocabulary[i] for i in task.splits["valid"]["ids"]]
    assert (
        words[:9] == ["no", "it", "was", "n't", "black", "monday", "<unk>", "0", "<eos>"] and words.count("<eos>") == 60
    )
    assert task.metric == "perplexity"


def test_ptb_by_characters_is_the_official_derivation(ptb):
    task = tasks.load("ptb-char", "quick")
    text = "".join(task.vocabulary[i] for i in task.splits["test"]["ids"])
    assert text.startswith("no_it_was_n't_black_monday_<unk>_0\nno_it") and text.endswith("\n")


def test_character_windows_know_nothing_of_each_other(ptb):
    task = tasks.load("ptb-char", "quick")
    ids = torch.as_tensor(task.splits["train"]["ids"]).long()
    batches = list(task.batches("train", 7, 100, torch.Generator().manual_seed(0)))
    assert not any(batch.carry for batch in batches) and all(len(batch.tokens) == 99 for batch in batches)
    windows = torch.cat([torch.cat([batch.tokens, batch.targets[-1:]]).t() for batch in batches])
    text = ids.unfold(0, 100, 1)
    starts = [int((text == window).all(1).nonzero()[0]) for window in windows[:5]]
    assert len({start % 100 for start in starts}) == 1 and starts != sorted(starts)
    assert task.n_examples == (len(ids) - 99) // 100 * 99
    assert abs(len(batches) - task.steps_per_epoch(7, 100)) <= 1
    every = torch.cat([batch.tokens.t() for batch in task.batches("valid", 7, 100)])
    assert np.array_equal(every[0], task.splits["valid"]["ids"][:99])


def test_perplexity_is_the_exponential_of_the_mean_nats(ptb):
    task = tasks.load("ptb-word", "quick")
    batch = next(task.batches("valid", 4, 10))
    uniform = torch.zeros(*batch.tokens.shape, len(task.vocabulary))
    assert task.metric_of(*task.score(uniform, batch)) == pytest.approx(len(task.vocabulary))
