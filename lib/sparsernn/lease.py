"""One writer at a time, in every process of a machine and on every node that shares a file system.

A lease is a small file that names its holder and is touched every 10 seconds. Whoever finds one waits, and takes it over
when its holder is gone: on the same machine as soon as the process has died (it keeps a lock on the file, which dies with
it), from another machine when the file has not been touched for 2 minutes by the file server's own clock, for a lost
node says nothing, and locks of another node may stay for ever or never have been seen. A holder that was only cut off
and comes back finds that the lease is not its own any more and stops before it writes (`Lease.check`).
"""

import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT, POLL = 10.0, 2.0  # seconds: how often a lease is touched, and asked for again
SILENT, SETTLE = 120.0, 2.0  # seconds: when another machine is given up, and how far apart two may have done so

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def held(path, busy):
    """Hold the lease at `path` (its folder must be there) → a `Lease`, as soon as nobody else does.

    busy    told once in words, `process 71 on node3`, who has it; it may raise instead of waiting
    """
    lease, told = Lease(path), False
    while holder := lease.take():
        if not told:
            busy(holder)
        told = True
        time.sleep(POLL)
    ended = threading.Event()
    threading.Thread(target=lease.beat_until, args=(ended,), daemon=True).start()
    try:
        yield lease
    finally:
        ended.set()
        lease.give_back()


class Lease:
    """The lease at a path, held or about to be."""

    def __init__(self, path):
        self.path, self.file = Path(path), None
        self.me = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "machine": machine(),
            "token": uuid.uuid4().hex,
        }

    def take(self):
        """One attempt → who has it, in words; None where it is ours now."""
        draft = self._draft()
        try:
            holder = self._put(draft)
            if holder is None:
                self.file = draft
        finally:
            Path(draft.name).unlink(missing_ok=True)
            if self.file is not draft:
                draft.close()
        return holder

    def _put(self, draft):
        """Put a draft in its place, where there is nothing or what nobody holds any more, or say who holds it."""
        while True:
            try:
                os.link(draft.name, self.path)
            except FileExistsError:
                with suppress(FileNotFoundError):  # given back just now: once more
                    return self._take_over(draft)
            except OSError as problem:
                if problem.errno not in NO_LINKS:
                    raise
                raise OSError(
                    f"{self.path.parent} lies on a file system without hard links ({problem.strerror}), where no two "
                    "processes can be kept from writing one run: let SPARSERNN_RUNS name a folder on another"
                ) from None
            else:
                return None

    def _draft(self):
        """What the lease will be, whole and locked before anyone can see it."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        file = open(name, "r+")
        try:
            file.write(json.dumps(self.me))
            file.flush()
            os.fsync(file.fileno())
        except OSError as problem:  # a disk that is full names no file
            Path(name).unlink(missing_ok=True)
            with suppress(OSError):
                file.close()
            raise type(problem)(problem.errno, problem.strerror, str(self.path)) from problem
        _locks(file)
        return file

    def _take_over(self, draft):
        """Replace a lease that nobody holds any more, or say who holds it. FileNotFoundError where there is none."""
        with open(self.path, "r+") as old:
            holder = _read(old)
            if holder == self.me:  # a file server may answer twice: it was linked, and said so the second time
                return None
            here = holder.get("machine", machine()) == machine()
            free = _locks(old) if here else None  # kept while we replace: one taker at a time on this machine
            if free is None:
                os.utime(draft.fileno())
                free = os.fstat(draft.fileno()).st_mtime - os.fstat(old.fileno()).st_mtime > SILENT
            if not free or not os.path.samestat(os.fstat(old.fileno()), os.stat(self.path)):
                return _words(holder)
            os.replace(draft.name, self.path)
        if not here:
            time.sleep(SETTLE)  # two nodes may have found it silent at once: the later one has it
        return None if self._is_ours() else _words(self._found())

    def _found(self):
        try:
            with open(self.path) as file:
                return _read(file)
        except FileNotFoundError:
            return {}

    def _is_ours(self):
        return self._found().get("token") == self.me["token"]

    def check(self):
        """Raise RuntimeError if the lease was taken over meanwhile: what we would write now is somebody else's to write."""
        if not self._is_ours():
            raise RuntimeError(
                f"{self.path.parent} is {_words(self._found())}'s to write now: this process had said nothing for "
                f"{SILENT:.0f} s and was taken for lost. Nothing is lost: the other one went on from the last epoch"
            )

    def beat_until(self, ended):
        """Touch the file, and no other that may have taken its place, until the event is set."""
        while not ended.wait(BEAT):
            try:
                os.utime(self.file.fileno())
            except OSError:  # the file server is away: whoever asks it gets no answer either
                continue

    def give_back(self):
        if self._is_ours():
            self.path.unlink(missing_ok=True)
        self.file.close()


def machine():
    """What tells this machine from every other, whatever they call themselves: this boot of it, on Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _locks(file):
    """Whether nobody else has the file locked, which we have then; None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(file):
    """The holder a lease names; a lease of an earlier version of the library is a bare number, or empty."""
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {"process": found}


def _words(holder):
    return f"process {holder.get('process', '?')} on {holder.get('host', 'this machine')}"
