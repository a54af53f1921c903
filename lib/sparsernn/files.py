"""Below everything else: where the project is, files that are the old ones or the new ones and never half of one, what an
unknown name is answered with, where a warning points, and the one measure of error."""

import fcntl
import os
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager, suppress
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
def replacing(path, flushed=True):
    """A temporary path next to `path`; on a clean exit it is flushed to disk and takes its name, else it is removed.

    The old file stands until the new one is safe, and the folder is flushed too, so that a machine that loses power has one
    or the other; flushed=False is for a copy of what is safe elsewhere. Raises OSError naming `path` where the disk is full
    or may not be written to.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # as long as its process lives: `clear` leaves it alone
            yield Path(temporary)
            os.chmod(temporary, 0o644)
            if flushed:
                _flush(temporary)
            os.replace(temporary, path)
        finally:
            os.close(handle)
        if flushed:
            with suppress(OSError):  # some network disks flush no folder
                _flush(path.parent)
    except OSError as problem:
        if problem.errno is None or str(path) in str(problem.filename):
            raise
        raise type(problem)(problem.errno, problem.strerror, str(path)) from problem
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _flush(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear(folder, name=None):
    """Remove the temporary files that a killed process has left in a folder: of one file, or of all, safetensors' own too."""
    left = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}" if name else r"\..+\.[a-z0-9_]{8}|\.tmp\w{6}")
    for path in Path(folder).iterdir():
        if left.fullmatch(path.name):
            with suppress(OSError), open(path, "rb") as file:  # one that is being written is locked
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def warn(said):
    """A UserWarning at the line that led here from outside of this library and of torch, whose decorators stand between."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (__package__, "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(said, stacklevel=level)


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
