"""A kernel in CUDA run on the CPU, thread by thread (emulated.cpp)."""

import ctypes
import subprocess
from pathlib import Path

import torch

from sparsernn.engines import cuda_source

EMULATOR = Path(__file__).with_name("emulated.cpp")


class Emulated:
    """The kernel of a source, compiled for the CPU: called as `cuda_source.Kernel` is. Raises RuntimeError if it hangs."""

    def __init__(self, source, folder, constants, seed=1):
        library = folder / f"{abs(hash((source.read_text(), *constants.items())))}.so"
        if not library.exists():
            macros = [f"-D{name}={value}" for name, value in constants.items()]
            command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f'-DSOURCE="{source}"', *macros]
            command.append(f"-I{Path(cuda_source.__file__).parent}")  # of a changed copy too
            subprocess.run([*command, EMULATOR, "-o", library], check=True)
        self.library, self.seed = ctypes.CDLL(str(library)), seed

    def __call__(self, blocks, threads, shared, *arguments):
        numbers = [ctypes.c_int(a) if isinstance(a, int) else a for a in arguments]
        places = [a.data_ptr() if isinstance(a, torch.Tensor) else ctypes.addressof(a) for a in numbers]
        given = (ctypes.c_void_p * len(places))(*places)
        if self.library.run(blocks, threads, shared, given, self.seed, ctypes.c_long(3000)):
            raise RuntimeError("its threads wait for ever")
