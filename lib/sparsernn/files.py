"""Where the project is, and files that are either the old ones or the new ones, never half of one."""

import os
import tempfile
from contextlib import contextmanager
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
