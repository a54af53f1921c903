"""The C engine as a shared library: compiled when it is first asked for, for a path that this processor can run.

A PATH is a set of instructions: AVX-512 with VNNI, AVX2 with FMA, NEON with dot products, or none of them. The compiler is
the system's `cc`, or that of the package ziglang where there is none. Libraries are kept in a cache folder, named after a
hash of what they are made of; two processes may make the same one at once, since a file gets its name when it is complete.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from ...files import nearest, replacing

SOURCES = Path(__file__).parent
PATHS = {  # name → flags, in the order of which.c, the fastest first
    "avx512": "-DSIMD=512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx2 -mfma",
    "avx2": "-DSIMD=256 -mavx2 -mfma",
    "neon": "-DSIMD=128 -march=armv8.2-a+dotprod",
    "plain": "-DSIMD=0",
}
FOR_ZIGLANG = {"-march=armv8.2-a+dotprod": "-mcpu=generic+dotprod"}  # which knows processors, and no architectures
NO_MEMORY, NO_SUCH_WORD = -1, -2  # what the engine returns for these
FLAGS = "-std=gnu99 -O3 -ffp-contract=fast -fno-math-errno -Wno-psabi -fPIC -shared"


def compiler():
    """The command of a C compiler. Raises ImportError where there is none, saying what brings one."""
    if found := shutil.which("cc"):
        return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise ImportError(
        "the C engines need a C compiler: install gcc or clang so that `cc` is found, or pip install ziglang"
    )


def words(flags, command):
    """Flags as the compiler of a command takes them."""
    return [FOR_ZIGLANG.get(word, word) if "ziglang" in command else word for word in flags.split()]


def cache_folder():
    """`sparsernn` in XDG_CACHE_HOME, else in ~/.cache; where nothing can be written there, one of this process alone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsernn"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(_own_folder().name)


@lru_cache
def _own_folder():
    return tempfile.TemporaryDirectory(prefix="sparsernn-")  # removed when the process ends


def compiled(source, flags):
    """The path of the library made of a C file with these flags, made now if it was not. Raises RuntimeError with what the
    compiler said."""
    command, files = compiler(), sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])
    command = [*command, *words(f"{FLAGS} {flags}", command)]
    made_of = hashlib.sha256(" ".join(command).encode())
    for file in files:
        made_of.update(file.name.encode() + file.read_bytes())
    library = cache_folder() / f"{source}-{made_of.hexdigest()[:24]}.so"
    if not library.exists():
        with replacing(library) as temporary:
            done = subprocess.run([*command, SOURCES / f"{source}.c", "-o", temporary], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} could not compile {source}.c: {done.stderr[-2000:]}")
    return library


@lru_cache
def paths():
    """Names of the paths that this processor can run, the fastest first."""
    runs = ctypes.CDLL(compiled("which", "")).sparsernn_paths()
    return [name for bit, name in enumerate(PATHS) if runs >> bit & 1]


@lru_cache
def library(path=None):
    """The engine for a path, the fastest if none is given. Raises ValueError for one that this processor cannot run."""
    path = paths()[0] if path is None else path
    if path not in paths():
        raise ValueError(nearest("path", path, paths()))
    loaded = ctypes.CDLL(compiled("engine", PATHS[path]))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.sparsernn_run.argtypes = [pointer] * 9 + [number] * 2
    loaded.sparsernn_linear.argtypes = [pointer] * 3 + [number] * 2
    loaded.sparsernn_chain.argtypes = [pointer] * 6 + [number] * 2
    loaded.sparsernn_run.restype = loaded.sparsernn_linear.restype = loaded.sparsernn_chain.restype = number
    return loaded


def done(result, call):
    """What C returned, if it is no complaint."""
    if result == NO_MEMORY:
        raise MemoryError(f"no memory for {call}")
    return result
