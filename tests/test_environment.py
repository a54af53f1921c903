"""environment.yml is one list read two ways: by conda, and by `make` without conda."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import lock
from requirements import pip_section

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "environment.yml"


def pip_lines():
    """What conda hands to pip: the pip section, word for word."""
    return next(
        entry["pip"] for entry in yaml.safe_load(ENVIRONMENT.read_text())["dependencies"] if isinstance(entry, dict)
    )


REQUIREMENTS = [line for line in pip_lines() if not line.startswith("-")]


def test_conda_and_make_install_the_same():
    script = [sys.executable, ROOT / "tools/requirements.py", ENVIRONMENT]
    by_make = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    apply_here = [line for line in pip_lines() if not (";" in line and not Requirement(line).marker.evaluate())]
    assert by_make == apply_here
    assert by_make[-1] == "-e ./lib"


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_every_requirement_is_pinned_to_what_is_installed(line):
    requirement = Requirement(line)
    assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{line}: pin one version with =="
    if requirement.marker is None or requirement.marker.evaluate():
        assert requirement.specifier.contains(version(requirement.name))


def test_what_the_library_names_is_pinned_too():
    # the extra `cross` is a compiler of 400 MB that the study can do without
    named = [Requirement(line) for line in requires("sparsernn") if "cross" not in line]
    pinned = {Requirement(line).name: Requirement(line).specifier for line in REQUIREMENTS}
    for requirement in named:
        assert requirement.specifier.contains(next(iter(pinned[requirement.name])).version)


@pytest.mark.parametrize("stray", ["cudatoolkit=12.4", "conda-forge::graphviz", "pytorch >=2"])
def test_a_stray_conda_dependency_is_refused_in_words(tmp_path, stray):
    listed = yaml.safe_load(ENVIRONMENT.read_text())
    listed["dependencies"].insert(0, stray)
    (tmp_path / "environment.yml").write_text(yaml.safe_dump(listed))
    script = [sys.executable, ROOT / "tools/requirements.py", tmp_path / "environment.yml"]
    refused = subprocess.run(script, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stdout == ""
    assert repr(stray) in refused.stderr and "below `- pip:`" in refused.stderr and "Traceback" not in refused.stderr


def test_a_marker_that_does_not_apply_drops_its_line(tmp_path):
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [python, {pip: ['a==1; python_version < \"3\"', 'b==2', '-e ./lib']}]")
    assert pip_section(path) == ["b==2", "-e ./lib"]


def test_a_line_pip_cannot_read_is_named(tmp_path):
    path = tmp_path / "environment.yml"
    path.write_text("dependencies: [{pip: ['numpy=2.4']}]")
    with pytest.raises(ValueError, match="'numpy=2.4' is no requirement pip can read"):
        pip_section(path)


@pytest.mark.parametrize(("there", "verb"), [(False, "create"), (True, "update")])
def test_make_uses_conda_where_there_is_one(tmp_path, there, verb):
    """A stand-in for conda that notes how it was called and leaves an environment that passes `pip check`."""
    project, conda = tmp_path / "project", tmp_path / "conda"
    for file in ("Makefile", "environment.yml", "lib/pyproject.toml"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, project / file)
    if there:
        (project / ".venv/conda-meta").mkdir(parents=True)
    conda.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/called\n'
        "mkdir -p .venv/bin .venv/conda-meta\n"
        f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"\\n' > .venv/bin/python\n"
        "chmod +x .venv/bin/python\n"
    )
    conda.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def make_env():
        run = subprocess.run(["make", "env", f"CONDA={conda}"], cwd=project, env=environment, capture_output=True)
        assert run.returncode == 0, run.stdout + run.stderr

    make_env()
    make_env()  # nothing changed: nothing is called
    called = (tmp_path / "called").read_text().splitlines()
    prune = " --prune" if there else ""
    assert called == [f"env {verb} --prefix .venv --file environment.yml{prune}"]


def test_make_refuses_an_old_python_in_words(tmp_path):
    for file in ("Makefile", "environment.yml", "lib/pyproject.toml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    old = tmp_path / "python3.9"
    old.write_text(
        f"#!/bin/sh\nshift; exec {sys.executable} -c 'import collections, sys; code = sys.argv[1]\n"
        'sys.version_info = (3, 9, 0)\nexec(code)\' "$@"'
    )
    old.chmod(0o755)
    run = subprocess.run(["make", "env", "CONDA=", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and not (tmp_path / ".venv/.stamp").exists()
    assert "needs Python 3.11 or newer" in run.stderr and "is 3.9; name another: make PYTHON=python3.12" in run.stderr


# ---- the lock file


def test_the_lock_file_is_of_this_environment():
    """Where this fails: `make lock`, on the platform the lock file names."""
    of, python, environment, pinned = lock.read()
    assert environment == lock.digest(lock.wanted()), "environment.yml was changed after requirements.lock was made"
    assert re.fullmatch(r"CPython 3\.\d+, Linux x86_64, glibc", of) and of.split()[1].startswith(
        python.rpartition(".")[0]
    )
    for line in lock.wanted():
        requirement = Requirement(line)
        version, sha256 = pinned[re.sub("[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version) and len(sha256) == 64


def test_the_lock_file_is_for_the_first_release_that_all_its_packages_allow(monkeypatch):
    """Debian's 3.11.2 is a Python 3.11 too, and is refused soupsieve 4, which wants 3.11.5."""
    monkeypatch.setattr(lock.platform, "python_version_tuple", lambda: ("3", "11", "7"))
    assert lock.oldest({"", ">=3.8", ">=3.11.5"}) == "3.11.5" and lock.oldest({"<4,>=3.9"}) == "3.11.0"


def test_the_lock_file_pins_all_that_is_needed_and_holds_no_address():
    text, (of, _, _, pinned) = lock.LOCK.read_text(), lock.read()
    assert len(pinned) == len(text.splitlines()) - 4, "four lines of comment, and a line a package"
    assert not re.search(r"://|index-url|find-links", text)
    if of != lock.here():
        pytest.skip(f"the lock file is for {of}: what its packages need is known there")
    for name in pinned:  # what an installed package needs is in the list too
        for needed in map(Requirement, requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert re.sub("[-_.]+", "-", needed.name).lower() in pinned, f"{name} needs {needed.name}"


PIP = """
import json, sys
from pathlib import Path
folder = Path("{folder}")
with open(folder / "called", "a") as called:
    print(*sys.argv[1:], file=called)
if "--report" in sys.argv:
    file = {{"archive_info": {{"hashes": {{"sha256": (folder / "offered").read_text()}}}}}}
    print(json.dumps({{"install": [{{"metadata": {{"name": "torch", "version": "2.0"}}, "download_info": file}}]}}))
"""


def project_with_lock(folder, **changes):
    """A project whose lock file is of its environment.yml and of this machine, and a pip that notes how it is called."""
    for file in ("Makefile", "lib/pyproject.toml", "tools/lock.py", "tools/requirements.py"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    lines = ["torch==2.0", "b==1"]
    (folder / "environment.yml").write_text(yaml.safe_dump({"dependencies": [{"pip": [*lines, "-e ./lib"]}]}))
    header = {"platform": lock.here(), "python": "3.11.0", "environment": lock.digest(lines)} | changes
    text = "".join(f"# {name}: {value}\n" for name, value in header.items())
    (folder / "requirements.lock").write_text(
        text + f"b==1 --hash=sha256:{'b' * 64}\ntorch==2.0 --hash=sha256:{'a' * 64}\n"
    )
    python, pip = folder / ".venv/bin/python", folder / "stand-in/pip/__main__.py"
    for program in (python, pip):
        program.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/stand-in exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    pip.write_text(PIP.format(folder=folder))
    pip.with_name("__init__.py").touch()
    (folder / "offered").write_text("a" * 64)


def make_env(folder):
    """`make env` by pip → what it said, and the installations it asked pip for."""
    strange = ("MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    command = ["make", "env", "CONDA=", f"PYTHON={sys.executable}", "PIP_FLAGS=--index-url http://mirror/x"]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    calls = (folder / "called").read_text().splitlines()
    return run.stdout + run.stderr, [call for call in calls if call.startswith("install") and "--report" not in call][
        1:
    ]


def test_a_pip_that_says_hashes_as_they_were_said_before_installs_from_the_lock_file_too(tmp_path):
    project_with_lock(tmp_path)
    pip = tmp_path / "stand-in/pip/__main__.py"
    pip.write_text(
        pip.read_text()
        .replace('"hashes": {"sha256": (', '"hash": "sha256=" + (')
        .replace(".read_text()}}", ".read_text()}")
    )
    said, installed = make_env(tmp_path)
    assert "from requirements.lock" in said and "Traceback" not in said and "--require-hashes" in installed[0]


def test_a_pip_that_says_no_hash_installs_from_the_environment_and_the_words_say_so(tmp_path):
    project_with_lock(tmp_path)
    pip = tmp_path / "stand-in/pip/__main__.py"
    pip.write_text(pip.read_text().replace('"archive_info": ', '"dir_info": '))
    said, installed = make_env(tmp_path)
    assert (
        "pip would take another file here" in said
        and "Traceback" not in said
        and "--require-hashes" not in installed[0]
    )


def test_make_installs_from_the_lock_file_where_it_fits_through_the_mirror_that_is_asked_for(tmp_path):
    project_with_lock(tmp_path)
    said, installed = make_env(tmp_path)
    assert "environment: from requirements.lock, each file by its digest" in said
    flags = "install --quiet --index-url http://mirror/x"
    assert installed == [f"{flags} --require-hashes -r requirements.lock", f"{flags} --no-deps -e ./lib"]
    asked = next(call for call in (tmp_path / "called").read_text().splitlines() if "--report" in call)
    assert asked.endswith("--no-deps --index-url http://mirror/x torch==2.0")


@pytest.mark.parametrize(
    ("changes", "offered", "why"),
    [
        ({"environment": "0" * 64}, "a", "it was made from another environment.yml; `make lock` makes it anew"),
        (
            {"platform": "CPython 3.9, Plan9 vax, no glibc"},
            "a",
            "it is for CPython 3.9, Plan9 vax, no glibc, and this is",
        ),
        ({"python": "9.11.5"}, "a", "some of its packages want Python 9.11.5 or newer, and this is"),
        ({}, "c", "its torch is 2.0, and pip would take another file here"),
        (None, "a", "there is none"),
    ],
)
def test_make_installs_from_environment_yml_and_says_why_where_the_lock_file_does_not_fit(
    tmp_path, changes, offered, why
):
    project_with_lock(tmp_path, **(changes or {}))
    if changes is None:
        (tmp_path / "requirements.lock").unlink()
    (tmp_path / "offered").write_text(offered * 64)
    said, installed = make_env(tmp_path)
    assert f"not from requirements.lock: {why}" in said and "environment: from environment.yml" in said
    assert installed == ["install --quiet --index-url http://mirror/x -r .venv/requirements.txt"]
    assert (tmp_path / ".venv/requirements.txt").read_text().splitlines() == ["torch==2.0", "b==1", "-e ./lib"]
