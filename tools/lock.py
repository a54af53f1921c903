"""The lock file: every package that `make env` installs by pip, with the SHA-256 of its file, for one platform.

Usage: python tools/lock.py write|fits [PIP_FLAGS ...]     (`make lock` writes it; `make env` asks whether it fits)

requirements.lock holds names, versions and digests, as pip itself reports what it would install, and no address: where files
come from is pip's own business, an index, a mirror or a folder. It is of the platform and of the pip section of
environment.yml that it names; elsewhere `fits` says why not, and environment.yml is installed. The same release of torch is
another file on the package index (CUDA, which brings packages of its own) than on PyTorch's index for CPU builds: the
lock has the latter, and fits where pip, as it is set up, would take that very file, which it is asked without fetching it.
"""

import hashlib
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from requirements import pip_section

ROOT = Path(__file__).parents[1]
LOCK, ENVIRONMENT = ROOT / "requirements.lock", ROOT / "environment.yml"
DIFFERS = "torch"  # by index


def here():
    """The platform in words; wheels differ by each of them."""
    version = ".".join(platform.python_version_tuple()[:2])
    libc = platform.libc_ver()[0] or "no glibc"
    return f"{platform.python_implementation()} {version}, {platform.system()} {platform.machine()}, {libc}"


def wanted():
    """The pip section without this repository's own library, which has no file to be hashed."""
    return [line for line in pip_section(ENVIRONMENT) if not line.startswith("-")]


def digest(lines):
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def reported(lines, *flags):
    """What pip would install for requirement lines → name → (version, SHA-256), sorted, and what Pythons each asks for."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    said = subprocess.run([*command, *flags, *lines], stdout=subprocess.PIPE, text=True)
    if said.returncode:
        sys.exit("tools/lock.py: pip could not say what it would install (see above)")
    found, pythons = {}, set()
    for one in json.loads(said.stdout)["install"]:
        name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
        file = one["download_info"].get("archive_info", {})  # before pip 23 it said `hash`; of a folder it says none
        sha256 = file.get("hashes", {}).get("sha256") or file.get("hash", "").removeprefix("sha256=")
        found[name] = one["metadata"]["version"], sha256
        pythons.add(one["metadata"].get("requires_python") or "")
    return dict(sorted(found.items())), pythons


def oldest(pythons):
    """The first release of this Python's line that all of these specifiers allow: 3.11.5. This one is among them."""
    line = platform.python_version_tuple()
    releases = (f"{line[0]}.{line[1]}.{n}" for n in range(int(re.match(r"\d+", line[2])[0]) + 1))
    return next(one for one in releases if all(SpecifierSet(python).contains(one) for python in pythons))


def write(flags):
    lines = wanted()
    found, pythons = reported(lines, *flags)
    text = "# Made by `make lock` from environment.yml, never by hand; tools/lock.py says what it is.\n"
    text += f"# platform: {here()}\n# python: {oldest(pythons)}\n# environment: {digest(lines)}\n"
    for name, (version, sha256) in found.items():
        if not sha256:
            sys.exit(f"tools/lock.py: pip says no SHA-256 of {name} {version}; a newer pip may")
        text += f"{name}=={version} --hash=sha256:{sha256}\n"
    LOCK.write_text(text)


def read(path=LOCK):
    """A lock file → (platform, first release of its Python that will do, digest of what it was made from, name → (version,
    SHA-256))."""
    text = path.read_text()
    said = dict(re.findall(r"^# (platform|python|environment): (.*)$", text, re.MULTILINE))
    pinned = re.findall(r"^([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    return (
        said["platform"],
        said["python"],
        said["environment"],
        {name: (version, sha256) for name, version, sha256 in pinned},
    )


def misfit(flags):
    """Why the lock file is not what is to be installed here, in words; None where it is."""
    if not LOCK.exists():
        return "there is none"
    of, python, environment, pinned = read()
    if environment != digest(wanted()):
        return "it was made from another environment.yml; `make lock` makes it anew"
    if of != here():
        return f"it is for {of}, and this is {here()}"
    if Version(platform.python_version()) < Version(python):
        return f"some of its packages want Python {python} or newer, and this is {platform.python_version()}"
    listed = [line for line in wanted() if re.match(rf"{DIFFERS}\b", line)]
    if reported(listed, "--no-deps", *flags)[0] != {DIFFERS: pinned[DIFFERS]}:
        return (
            f"its {DIFFERS} is {pinned[DIFFERS][0]}, and pip would take another file here (see PIP_FLAGS in Makefile)"
        )
    return None


if __name__ == "__main__":
    verb, *flags = sys.argv[1:]
    if verb == "write":
        write(flags)
    elif why := misfit(flags):
        sys.exit(f"environment: not from requirements.lock: {why}")
