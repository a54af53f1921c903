"""SHA256SUMS of a finished run: what its files must be for its record to hold, as `sha256sum -c` reads it."""

import hashlib
from pathlib import Path

from ..files import replacing

NAME = "SHA256SUMS"


def write(directory, known, *names):
    """Write the sums of files in a directory. known: name → content, of what is about to be written."""
    known = known | {name: Path(directory, name).read_bytes() for name in names}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(known.items())]
    with replacing(Path(directory, NAME)) as temporary:
        temporary.write_text("".join(lines))


def read(directory):
    """Name → sum, of the files of a finished run; empty for one from before there were sums."""
    path = Path(directory, NAME)
    try:
        lines = [line.split("  ") for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return {}
    except ValueError:
        lines = [[]]
    if not lines or any(len(line) != 2 or len(line[0]) != 64 or Path(line[1]).name != line[1] for line in lines):
        raise ValueError(f"{path} is damaged: expected a sum and a name a line; remove it, and nothing is compared")
    return {name: found for found, name in lines}


def refuse_others(directory, *names):
    """Raise ValueError, naming the file, where one is not what was written; of these names, where they have a sum, or of all."""
    for name, found in read(directory).items():
        file = Path(directory, name)
        if names and name not in names:
            continue
        if not file.is_file():
            raise ValueError(
                f"{file} is missing, of which {NAME} beside it has the sum; put it back, or remove the directory"
            )
        if found != hashlib.sha256(file.read_bytes()).hexdigest():
            raise ValueError(
                f"{file}: the content is not what was written (its sha256 is another): the file is damaged, or another run's; "
                "put it back, or remove the directory to train anew"
            )
