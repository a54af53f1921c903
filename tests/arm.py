"""A C compiler for ARM and what runs its programs here: Debian's gcc-aarch64-linux-gnu and qemu-user, or the package ziglang
in the place of the first."""

import shutil
import sys
from importlib.util import find_spec

ZIG = [sys.executable, "-m", "ziglang", "cc"] if find_spec("ziglang") else None
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def compiler():
    """The command of a compiler whose programs need nothing but the processor, or None."""
    if found := shutil.which("aarch64-linux-gnu-gcc"):
        return [found, "-static"]
    return [*ZIG, "-target", "aarch64-linux-musl", "-static"] if ZIG else None


def missing():
    """What is to be installed before anything is checked on ARM, or None."""
    if not compiler():
        return "no C compiler for ARM: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross, or pip ziglang"
    return None if EMULATOR else "nothing runs programs for ARM: apt-get install qemu-user"
