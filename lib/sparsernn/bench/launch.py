"""Every engine of layers launched once, each in a process of its own: python -m sparsernn.bench.launch --device cuda

A kernel that faults takes the GPU from its process, and one that waits for ever holds it: here either hurts nobody else. Small
layers are compared with float64, and a larger one, whose thread blocks exchange states, has to say the same three times. The
last line, `SPARSERNN_WITHOUT=…`, names the engines that are unsteady, raise, die or hang (and those left out already), for a
shell to set before a sweep. No failure: that an engine does not run a layer, and says so; and a wrong answer, which a sweep
asks of every case, since cuDNN may be wrong for one size and right for all others. Ends with status 0.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..engines import available, engine_class, left_out
from ..engines.base import Unsupported
from ..engines.timing import check_device, wait
from ..files import error, replacing
from .cases import ALLOWED, ALLOWED_ELSE, KINDS, PATTERNS, LayerCase

FIELDS = ("engine", "cell", "batch", "hidden", "error", "seconds", "failed", "said")
PACKAGES = ("torch", "triton", "numba", "numpy", "cuda-bindings", "nvidia-cuda-nvrtc")
ANSWERS = 3
WRONG = "wrong"  # of what a sweep leaves out by itself, of each layer again
STEADY = 0.01  # of the error allowed: what answers may differ by among themselves, where sums take any order
CLOCKS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,utilization.gpu"
KEPT = 30  # last lines of what a failed process had to say


def cases():
    small = [LayerCase(48, 0.2, batch, PATTERNS[0], 8, kind) for kind in KINDS for batch in (1, 4, 32)]
    return [*small, LayerCase(256, 0.1, 1, PATTERNS[0], 64)]


def machine(device):
    """Lines that say what everything here ran with."""
    yield f"python {sys.version.split()[0]}, {os.cpu_count()} cores"
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
    if torch.device(device).type != "cuda":
        return
    chip = torch.cuda.get_device_properties(device)
    yield f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield f"{chip.name}, sm_{chip.major}{chip.minor}, {chip.multi_processor_count} multiprocessors, {chip.total_memory} B"
    if tool := shutil.which("nvidia-smi"):
        with suppress(OSError, subprocess.TimeoutExpired):
            asked = [tool, f"--query-gpu={CLOCKS}", "--format=csv"]
            yield from subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.splitlines()


def answered(case, name, device):
    """→ the largest error of some answers, seconds until the first was there, what is wrong with them (empty: nothing)."""
    _ = case.data  # its making is not the engine's time
    begin = time.perf_counter()
    call, dtype, empty = case.make(name, device)
    answers = [call().clone()]
    wait(device)
    seconds = time.perf_counter() - begin
    answers += [call().clone() for _ in range(ANSWERS - 1)]
    if empty:
        empty[0]()
    wait(device)
    allowed = ALLOWED.get(dtype, ALLOWED_ELSE)
    wrong = max(case.error(name, answer) for answer in answers)
    moved = max(error(answer.cpu(), answers[0].cpu()) for answer in answers)
    said = ""
    if not wrong <= allowed:
        said = f"{WRONG}: {allowed:.0e} is allowed"
    elif not moved <= STEADY * allowed:
        said = f"unsteady: {ANSWERS} answers differ by {moved:.1e}"
    return wrong, seconds, said


def tried(name, device):
    """Rows of one engine, in this process; no more of them once the GPU is unusable."""
    for case in cases():
        row = blank(name, case)
        try:
            row["error"], row["seconds"], row["said"] = answered(case, name, device)
            row["failed"] = bool(row["said"]) and not row["said"].startswith(WRONG)
        except Unsupported as reason:
            row["said"] = f"does not run it: {reason}"
        except Exception as problem:
            traceback.print_exc()
            row |= {"failed": True, "said": f"{type(problem).__name__}: {first_line(problem)}"}
        yield row
        if row["failed"]:
            wait(device)


def blank(name, case):
    where = {"engine": name, "cell": case.kind, "batch": case.batch, "hidden": case.hidden}
    return where | {"error": None, "seconds": None, "failed": False, "said": ""}


def first_line(said):
    return next(iter(str(said).strip().splitlines()), "")[:150]


class Attempt:
    """The process of one engine, and what it has written."""

    def __init__(self, name, device, folder):
        self.name, self.begin = name, time.monotonic()
        self.out, self.err = (Path(folder) / f"{name}.{kind}" for kind in ("out", "err"))
        command = [sys.executable, "-m", "sparsernn.bench.launch", "--engine", name, "--device", str(device)]
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    def end(self):
        """Kill it and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver may take its time
            self.process.wait(5)

    def rows(self, status):
        """A row a case: those that it wrote, one that says how it ended, and those that it did not come to.

        status  as of `Popen.poll`: None, it had to be killed
        """
        found, todo = [], cases()
        for line in self.out.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                if isinstance(row := json.loads(line), dict):
                    found.append(row)
        if len(found) == len(todo) and status == 0:
            return found
        if status is None:
            how = f"hangs: killed after {time.monotonic() - self.begin:.0f} s"
        elif status < 0:
            how = f"died of {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        last = (self.said() or [""])[-1].strip()
        how += f": {last[:150]}" * bool(last and status)
        rest = [blank(self.name, case) for case in todo[len(found) :]]
        if any(row["failed"] for row in found):  # what ended it is said there
            return found + [row | {"said": f"not tried: {how}"} for row in rest]
        if not rest:
            return found[:-1] + [found[-1] | {"failed": True, "said": f"at its end, {how}"}]
        rest[0] |= {"failed": True, "said": how}
        return found + rest[:1] + [row | {"said": "not tried"} for row in rest[1:]]

    def said(self):
        return self.err.read_text(errors="replace").splitlines()[-KEPT:]


def launched(names, device, seconds, at_once, report=lambda line: None):
    """Rows of all engines, as soon as their processes end; those that have not after `seconds` are killed and hang."""
    begin, waiting, running, rows = time.monotonic(), list(names), [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                late = time.monotonic() - begin > seconds
                while waiting and len(running) < at_once and not late:
                    running.append(Attempt(waiting.pop(0), device, folder))
                for attempt in list(running):
                    status = attempt.process.poll()
                    if status is None and not late:
                        continue
                    attempt.end()
                    running.remove(attempt)
                    found = attempt.rows(status)
                    rows += found
                    for row in found:
                        report(line_of(row))
                    if any(row["failed"] for row in found):
                        for line in attempt.said():
                            report(f"    {attempt.name} | {line}")
                if late:
                    for name in waiting:
                        report(f"{name}: not tried, no time was left")
                    waiting = []
                time.sleep(0.05)
        finally:
            for attempt in running:
                attempt.end()
    return rows


def line_of(row):
    line = f"{row['engine']:16} {row['cell']:4} {row['hidden']:4} neurons, batch {row['batch']:2}: "
    if row["error"] is not None:
        line += f"error {row['error']:.1e}, first answer after {row['seconds']:.2f} s"
    return line + "; " * bool(row["error"] is not None and row["said"]) + row["said"]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of them; what runs longer hangs")
    parser.add_argument("--out", type=Path, help=f"a table of {', '.join(FIELDS)}")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # what a process of its own is started with
    given = parser.parse_args(arguments)
    try:
        check_device(given.device)
        names, without = available(torch.device(given.device).type), left_out()
        if given.engine:
            engine_class(given.engine)
    except ValueError as problem:
        parser.error(str(problem))
    torch.set_num_threads(1)
    if given.engine:
        for row in tried(given.engine, given.device):
            print(json.dumps(row), flush=True)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # whoever ends this ends what it started
    for line in machine(given.device):
        print(line, flush=True)
    at_once = len(os.sched_getaffinity(0))
    rows = launched(names[::-1], given.device, given.seconds, at_once, lambda line: print(line, flush=True))
    if given.out:
        with replacing(given.out) as temporary, open(temporary, "w", newline="") as file:
            table = csv.DictWriter(file, FIELDS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    failed = [row["engine"] for row in rows if row["failed"]]
    print("SPARSERNN_WITHOUT=" + ",".join(dict.fromkeys([*without, *failed])), flush=True)


if __name__ == "__main__":
    main()
