"""Below everything else: where the project is, files that are the old ones or the new ones and never half of one, what an
unknown name is answered with, and the one measure of error."""

import os
import tempfile
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


def project_root():
    """`SPARSERNN_ROOT`, else the folder with environment.yml above this file or the working directory.

    Raises FileNotFoundError where there is none (the library installed on its own), saying what to set.
    """
    if root := os.environ.get("SPARSERNN_ROOT"):
        return Path(root)
    for start in (Path(__file__).resolve(), Path.cwd() / "here"):
        for folder in start.parents:
            if (folder / "environment.yml").exists():
                return folder
    raise FileNotFoundError("no project found (a folder with environment.yml); set SPARSERNN_ROOT to one")


@contextmanager
def replacing(path):
    """A temporary path next to `path`; on a clean exit it is flushed to disk and takes its name, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def nearest(what, given, allowed):
    """`unknown method 'sparse-vd'; did you mean 'sparse-vd-w'? Known: …`"""
    close = get_close_matches(str(given), [str(name) for name in allowed], 1, 0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {given!r}{hint} Known: {', '.join(str(name) for name in allowed)}"


def error(value, reference):
    """max|value − reference| / max(1, max|reference|) of two tensors: the one measure of error.

    Equal infinities are equal. Infinite, so worse than any number, where shapes differ or a NaN stands in either.
    """
    if value.shape != reference.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    value = value.to(reference)
    wrong = (value - reference).abs().masked_fill(value == reference, 0)
    size = reference.abs().masked_fill(~reference.isfinite(), 0).max().clamp(min=1)
    worst = float((wrong / size).max())
    return worst if worst == worst else float("inf")
