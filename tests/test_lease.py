"""One writer at a time: among the processes of a machine, and among nodes, of which one may be lost without a word."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from sparsernn import lease
from sparsernn.lease import held

HOLDS = """
import sys, time
from sparsernn import lease
lease.BEAT = float(sys.argv[2])
with lease.held(sys.argv[1], print) as ours:
    print("held", flush=True)
    time.sleep(60)
"""
COUNTS = """
import sys, time
from pathlib import Path
from sparsernn import lease
lease.POLL = 0.02
count = Path(sys.argv[1], "count")
for _ in range(int(sys.argv[2])):
    with lease.held(Path(sys.argv[1], "lease"), lambda holder: None):
        before = int(count.read_text())
        time.sleep(0.002)
        count.write_text(str(before + 1))
"""


@pytest.fixture(autouse=True)
def asked_often(monkeypatch):
    monkeypatch.setattr(lease, "POLL", 0.02)
    monkeypatch.setattr(lease, "SETTLE", 0.1)


@pytest.fixture
def elsewhere(monkeypatch):
    """This process is on another machine than those it starts."""
    monkeypatch.setattr(lease, "machine", lambda: "another")


@contextmanager
def holder(path, beat=10.0):
    """A process that holds the lease, dead in the end."""
    command = [sys.executable, "-c", HOLDS, path, str(beat)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def waits(path):
    """A thread that waits for the lease → (thread, what it was told, when it had it)."""
    told, had = [], []

    def take():
        with held(path, told.append):
            had.append(time.monotonic())

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread, told, had


def test_who_has_it_is_said_once_and_waited_for(tmp_path):
    with holder(tmp_path / "lease") as process:
        thread, told, had = waits(tmp_path / "lease")
        thread.join(0.5)
        assert told == [f"process {process.pid} on {os.uname().nodename}"] and not had


def test_whoever_will_not_wait_raises(tmp_path):
    def refuse(holder):
        raise RuntimeError(f"not while {holder} is there")

    with held(tmp_path / "lease", refuse):
        with pytest.raises(RuntimeError, match=f"not while process {os.getpid()}"), held(tmp_path / "lease", refuse):
            pass
    with held(tmp_path / "lease", refuse):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_frees_it_at_once(tmp_path):
    with holder(tmp_path / "lease") as process:
        thread, _, had = waits(tmp_path / "lease")
        thread.join(0.3)
        assert not had
        process.send_signal(signal.SIGKILL)
        thread.join(10)  # far below SILENT
        assert had


def test_a_process_that_only_stands_still_on_this_machine_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SILENT", 0.2)
    with holder(tmp_path / "lease", beat=0.05) as process:
        process.send_signal(signal.SIGSTOP)
        thread, _, had = waits(tmp_path / "lease")
        thread.join(1)
        assert not had


def test_a_node_that_speaks_keeps_it_and_one_that_falls_silent_loses_it(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(lease, "SILENT", 1.0)
    with holder(tmp_path / "lease", beat=0.1) as process:
        thread, told, had = waits(tmp_path / "lease")
        thread.join(2.5)
        assert told and not had
        process.send_signal(signal.SIGSTOP)  # as a node that is cut off: no death to be seen from here
        silent = time.monotonic()
        thread.join(20)
        assert had and had[0] - silent > 0.8


def test_who_comes_back_finds_that_it_is_no_longer_its_own_and_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SILENT", 0.3)
    with held(tmp_path / "lease", print) as ours:
        ours.check()
        monkeypatch.setattr(lease, "machine", lambda: "another")
        os.utime(tmp_path / "lease", (0, 0))
        with held(tmp_path / "lease", print) as theirs:
            with pytest.raises(RuntimeError, match="was taken for lost"):
                ours.check()
            ours.give_back()
            theirs.check()
            monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_many_processes_write_one_after_the_other_also_over_a_dead_one(tmp_path):
    with holder(tmp_path / "lease") as dead:
        dead.kill()
        dead.wait()
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", COUNTS, tmp_path, "25"]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "count").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


@pytest.mark.parametrize("left", ["", "4711", '{"proc'])
def test_what_an_earlier_version_left_is_no_obstacle(tmp_path, left):
    (tmp_path / "lease").write_text(left)
    thread, _, had = waits(tmp_path / "lease")
    thread.join(10)
    assert had


def test_two_nodes_that_find_it_silent_at_once_do_not_both_have_it(tmp_path, monkeypatch, elsewhere):
    path = tmp_path / "lease"
    path.write_text(json.dumps({"process": 1, "host": "node9", "machine": "lost", "token": "x"}))
    os.utime(path, (0, 0))
    replace, first, second = os.replace, lease.Lease(path), lease.Lease(path)

    def both(source, target):
        """The other node replaces it after we have, before either has looked again."""
        monkeypatch.setattr(os, "replace", replace)
        replace(source, target)
        with second._draft() as draft:
            replace(draft.name, target)

    monkeypatch.setattr(os, "replace", both)
    assert first.take() == f"process {os.getpid()} on {os.uname().nodename}" and second._is_ours()


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="without hard links .Operation not permitted.*let SPARSERNN_RUNS name"):
        with held(tmp_path / "lease", print):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "lease"))):
        lease.Lease(tmp_path / "lease").take()
    assert not list(tmp_path.iterdir())
