"""A file that lies, a kill, a full disk: refused in words that name the file, or the run is the same in the end.

`python tests/test_campaign.py` tries all of it and prints the table of the README (a quarter of an hour on an idle core); the
tests try one case in ten, `pytest -m slow` all. Model files have a campaign of their own (`test_hostile_files.py`).

A case is "kind | what | seed". Its process makes one run whole, one stopped after an epoch and a table, and forks for every
case, so that one that dies takes no other with it. One alone: `echo CASE | python tests/test_campaign.py FOLDER`.
"""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from sparsernn import records
from sparsernn.nets.file import digest
from sparsernn.report import publish
from sparsernn.study.checkpoint import SWORN
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

SECONDS = 300  # for one case, on a machine with other work
GIVEN = {"task": "tiny-topic", "method": "dense", "profile": "quick", "epochs": 2}

# ---- what is done to a file


def bytes_of(raw, what, rng):
    """Damage that knows nothing of a format."""
    at, size = rng.randrange(max(1, len(raw))), rng.choice([1, 4, 64])
    return {
        "a bit": raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :],
        "other bytes": raw[:at] + rng.randbytes(size) + raw[at + size :],
        "zeros": raw[:at] + bytes(min(size, len(raw) - at)) + raw[at + size :],
        "cut": raw[:at],
        "bytes missing": raw[:at] + raw[at + size :],
        "bytes too many": raw[:at] + raw[max(0, at - size) :],
        "twice": raw + raw,
        "nothing": b"",
    }[what]


BYTES = ["a bit", "other bytes", "zeros", "cut", "bytes missing", "bytes too many", "twice", "nothing"]


def lines_of(text, what, rng):
    """Damage to a text: of a line, a field, a digit."""
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    where = rng.choice(digits or [0])
    number = rng.choice(["nan", "inf", "-1", "1e999", "x", '"', "", "99999999999999999999"])
    return {
        "a line missing": "".join(lines[:at] + lines[at + 1 :]),
        "a line twice": "".join(lines[: at + 1] + lines[at:]),
        "half a line": text[: -max(1, len(lines[-1]) // 2)],
        "another digit": text[:where] + str((int(text[where]) + 5) % 10 if digits else "") + text[where + 1 :],
        "no number": text[:where] + number + text[where + 1 :],
        "semicolons": text.replace(",", ";"),
        "lines turned round": "".join(lines[:1] + lines[:0:-1]),
        "a dot in front": text.replace('": "', '": "../', 1),
        "no text": text + "\udcff",
    }[what]


LINES = ["a line missing", "a line twice", "half a line", "another digit", "no number", "semicolons"]
LINES += ["lines turned round", "a dot in front", "no text"]


class Checkpoint:
    """A checkpoint in parts, to be changed and written anew; `sealed`: with the digest it should have."""

    def __init__(self, path, rng):
        with safe_open(path, "pt") as file:
            self.said = json.loads(file.metadata()["counters"])
        self.tensors, self.rng = load_file(path), rng

    def raw(self, seal):
        if seal == "before digests":
            self.said = {name: value for name, value in self.said.items() if name not in SWORN}
        if seal == "sealed":
            self.said["digest"] = digest(self.said, self.tensors)
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        return to_bytes(tensors, {"counters": json.dumps(self.said)})

    def some(self, start):
        return self.rng.choice(
            sorted(name for name in self.tensors if name.startswith(start) and self.tensors[name].numel())
        )

    def put(self, start, change):
        name = self.some(start)
        self.tensors[name] = change(self.tensors[name].clone())

    def drop(self, start):
        self.tensors = {name: value for name, value in self.tensors.items() if not name.startswith(start)}


def spoilt(value):
    return lambda tensor: tensor.fill_(value) if tensor.dim() == 0 else tensor.index_fill_(0, torch.tensor([0]), value)


ONE = torch.ones(1)
STRUCTURE = {  # refused whatever the digest says, and without one
    "one number for many": lambda c: c.put(c.rng.choice(["optimizer", "model", "best"]), lambda t: torch.zeros(1)),
    "no optimiser": lambda c: c.drop("optimizer"),
    "half an optimiser": lambda c: c.tensors.pop(c.some("optimizer")),
    "another type": lambda c: c.put("", lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.int8)),
    "another shape": lambda c: c.put("", lambda t: t.reshape(-1)[:-1]),
    "a tensor missing": lambda c: c.tensors.pop(c.some(c.rng.choice(["model", "best", "rng"]))),
    "a tensor too many": lambda c: c.tensors.update({c.rng.choice(["model.x", "best.x", "optimizer.0.x", "y.x"]): ONE}),
    "a NaN": lambda c: c.put(c.rng.choice(["model", "best", "optimizer"]), spoilt(float("nan"))),
    "an infinity": lambda c: c.put(c.rng.choice(["model", "best", "optimizer"]), spoilt(float("inf"))),
    "no random state": lambda c: c.tensors.update({"rng.cpu": torch.full_like(c.tensors["rng.cpu"], 255)}),
    "epoch −5": lambda c: c.said.update(epoch=-5),
    "an epoch beyond the last": lambda c: c.said.update(epoch=99),
    "no epoch": lambda c: c.said.update(epoch=c.rng.choice(["1", 1.0, None, True, [1], float("nan")])),
    "a best epoch to come": lambda c: c.said.update(best_epoch=2),
    "no best epoch": lambda c: c.said.update(best_epoch=-1),
    "no counter": lambda c: c.said.pop(c.rng.choice(["epoch", "seconds", "best_epoch", "best_valid"])),
    "a counter too many": lambda c: c.said.update(model=1),
    "checks that are none": lambda c: c.said.update(checks=c.rng.choice([[None], ["1"], 3, [1.0, 2.0, 3.0]])),
}
SWORN_TO = {  # what a digest alone shows
    "a bit of a number": lambda c: c.put(
        "", lambda t: t.view(torch.uint8).bitwise_xor_(1).view(t.dtype) if t.dim() else t + 1
    ),
    "two exchanged": lambda c: c.tensors.update({(a := c.some("model")): c.tensors["best" + a[5:]] + 1}),
    "an epoch earlier": lambda c: c.said.update(epoch=0),
    "another best": lambda c: c.said.update(best_valid=0.125),
    "fewer rows": lambda c: c.said.update(metrics=c.said["metrics"] | {"rows": 0}),
    "another seed": lambda c: c.said.update(config=c.said["config"] | {"seed": 1}),
}
OTHERS = ["of another seed", "of the end", "missing", "a folder"]

# ---- the runs that it is done to


def directory(root, seed=0):
    os.environ["SPARSERNN_RUNS"] = str(root)
    return RunConfig(seed=seed, **GIVEN).directory


def made(root, seed=0, stop=None):
    """A run under `root`, whole or stopped after an epoch → its directory."""
    place = directory(root, seed)

    def halt(line):
        if line.startswith(f"epoch {stop}/"):
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        ensure(RunConfig(seed=seed, **GIVEN), halt)
    return place


def found(place):
    """What a finished run says, without clocks and the code's commit: one sum."""
    with safe_open(place / "checkpoint.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    record = json.loads((place / "record.json").read_text())
    table = pd.read_csv(place / "metrics.csv").drop(columns="seconds").to_csv()
    model = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    return digest({"record": record | {"train_seconds": 0, "commit": ""}, "model": model, "metrics": table}, tensors)


class Goods:
    def __init__(self, folder):
        self.folder = folder
        self.stopped, self.other = made(folder / "stopped", stop=1), made(folder / "other", seed=1, stop=1)
        self.finished = made(folder / "finished")
        self.end, self.stopped_root, self.finished_root = found(self.finished), folder / "stopped", folder / "finished"
        self.table = folder / "quick.csv"
        row = {
            "task": "tiny-topic",
            "model": "lstm-8",
            "method": "dense",
            "variant": "",
            "profile": "quick",
            "metric": "accuracy",
        }
        rows = [row | {"seed": seed, "test": 0.5, "hidden_kept": "8", "data_sha256": "a"} for seed in range(4)]
        records.upsert(rows, self.table)


def change(goods, path, kind, what, rng):
    """Do it to a file → whether it has to be refused; None where it does not apply."""
    what, _, seal = what.partition(", ")
    if what in OTHERS:
        other = {"of another seed": goods.other, "of the end": goods.finished}.get(what, goods.other) / path.name
        path.unlink()
        if what == "a folder":
            path.mkdir()
        elif what != "missing":
            if not other.exists():
                return None
            shutil.copyfile(other, path)
        return False
    if what in STRUCTURE or what in SWORN_TO:
        checkpoint = Checkpoint(path, rng)
        (STRUCTURE | SWORN_TO)[what](checkpoint)
        path.write_bytes(checkpoint.raw(seal))
        return True
    raw = path.read_bytes()
    new = (
        bytes_of(raw, what, rng)
        if what in BYTES
        else lines_of(raw.decode(), what, rng).encode(errors="surrogateescape")
    )
    path.write_bytes(new)
    return False if new != raw else None


def resumed(place, goods, must=False):
    """What comes of a run that is taken up: "refused", "the same", or what is wrong with that."""
    try:
        ensure(RunConfig(**GIVEN))
    except (ValueError, TypeError, OSError) as problem:
        return "refused" if str(place) in str(problem) else f"names no file: {type(problem).__name__}: {problem!s:.200}"
    if must:
        return "not refused"
    return "the same" if found(place) == goods.end else "silently different"


def damaged(goods, root, kind, what, rng):
    """A file of a run that was stopped, or is finished, or a table."""
    if kind.startswith("table"):
        path = root / "quick.csv"
        shutil.copyfile(goods.table, path)
        if change(goods, path, kind, what, rng) is None:
            return "does not apply"
        before = path.read_bytes() if path.is_file() else None
        try:
            read = records.read(path).sort_values("seed", ignore_index=True)
            records.upsert([], path)
            after = records.read(path).sort_values("seed", ignore_index=True)
        except (ValueError, OSError) as problem:
            kept = before is None or path.read_bytes() == before
            return "refused" if str(path) in str(problem) and kept else f"rewritten, or names no file: {problem!s:.200}"
        whole = what in ("a line missing", "bytes missing") or len(read) == len(records.read(goods.table))
        return "the same" if whole and read.equals(after) else f"{len(read)} rows"
    good = goods.stopped_root if kind.startswith("stopped") else goods.finished_root
    shutil.copytree(good, root / "runs")
    place = directory(root / "runs")
    path = place / kind.split()[-1]
    must = change(goods, path, kind, what, rng)
    if must is None:
        return "does not apply"
    if path.name == "SHA256SUMS" and not path.exists():
        return "the same"  # a run from before there were sums has none
    result = resumed(place, goods, must)
    if kind == "finished record.json" and result == "refused":  # named, and skipped
        said = []
        if publish.finished("quick", root / "runs", problem=said.append) or not any(
            str(place) in line for line in said
        ):
            return f"gathered all the same: {said}"
    return result


# ---- kills and full disks


def counting(place, act, at):
    """Call `act(path)` at the operation number `at` on a file of the run: open, rename, remove, chmod, lock, flush."""
    seen, flush = [0], os.fsync

    def one(path, writes):
        seen[0] += writes or act is killed
        if seen[0] == at and (writes or act is killed):
            seen[0] += 1
            act(path)

    def hook(event, given):
        if event in ("open", "os.rename", "os.chmod", "os.remove") and str(given[0]).startswith(str(place)):
            one(given[0], event == "open" and isinstance(given[2], int) and bool(given[2] & (os.O_WRONLY | os.O_RDWR)))

    def flushed(handle):
        one(None, True)  # what a flush or a write refuses has no name
        flush(handle)

    os.fsync = flushed
    sys.addaudithook(hook)


def killed(path):
    os.kill(os.getpid(), signal.SIGKILL)


def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if path is None else [str(path)]))


def interrupted(goods, root, kind, number):
    """A run from its beginning that is killed, or finds the disk full, at one operation or at several; then taken up again."""
    place, rng = directory(root / "runs"), random.Random(number)
    at = [rng.randrange(1, 70) for _ in range(3)] if kind == "kills in a row" else [number]
    ended = [forked(partial(first, goods, place, kind, one)) for one in at]
    again = forked(partial(resumed, place, goods))
    if wrong := [one for one in ended if one not in FINE] or (again != "the same" and [again]):
        return f"{ended}, then {again}: {wrong[0]}"
    if left := [path.name for path in place.iterdir() if path.name.startswith(".") and path.name != ".lock"]:
        return "the same" if ended[-1] == "the same" else f"left {left}"
    return max(ended, key=FINE.index) if ended.count("killed") < 2 else f"killed {ended.count('killed')} times"


def first(goods, place, kind, number):
    if kind == "small files":  # the system's own refusal: no file above so many bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (number * 700, resource.RLIM_INFINITY))
    else:
        counting(place, full if kind == "full disk" else killed, number)
    return resumed(place, goods)


def forked(work):
    """What `work()` returns, in a process of its own; or how that ended."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        signal.alarm(SECONDS)
        try:
            result = work()
        except BaseException as problem:
            result = f"{type(problem).__name__}: {problem!s:.300}"
        os.write(write, result.encode(errors="replace"))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:  # nobody but `killed` sends it
        return "killed"
    return f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else result


def work(folder, cases):
    torch.set_num_threads(1)
    tiny.register()
    goods = Goods(folder / "good")
    for case in cases:
        kind, what, seed = case.split(" | ")
        root = folder / "case"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if kind in INTERRUPTIONS:
            result = interrupted(goods, root, kind, int(seed))
        else:
            result = forked(partial(damaged, goods, root, kind, what, random.Random(case)))
        print(json.dumps([case, result]), flush=True)


INTERRUPTIONS = {"kill": 100, "kills in a row": 110, "full disk": 48, "small files": 12}
FINE = ("does not apply", "the same", "refused", "killed", "killed 2 times", "killed 3 times")
SEALS = ["", ", sealed", ", before digests"]
FILES = {
    "stopped checkpoint.safetensors": [*BYTES, *OTHERS, *(f"{w}{s}" for w in STRUCTURE for s in SEALS), *SWORN_TO],
    "stopped metrics.csv": [*BYTES, *LINES, *OTHERS],
    "stopped config.json": [*BYTES, *LINES, "of another seed", "a folder"],
    "finished checkpoint.safetensors": [*BYTES, *OTHERS],
    "finished model.safetensors": [*BYTES, "missing", "a folder"],
    "finished metrics.csv": [*BYTES, *LINES, *OTHERS],
    "finished record.json": [*BYTES, *LINES, "a folder"],
    "finished SHA256SUMS": [*BYTES, *LINES],
    "table": [*BYTES, *LINES, "a folder"],
}
CASES = [f"{kind} | {what} | {seed}" for kind, whats in FILES.items() for what in whats for seed in range(4)]
CASES += [f"{kind} | at operation | {n}" for kind, most in INTERRUPTIONS.items() for n in range(1, most + 1)]


def verdicts(folder, cases):
    """Case → what came of it, in a process of its own."""
    path = os.pathsep.join(sys.path)
    given = {"input": "\n".join(cases), "env": os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
    done = subprocess.run([sys.executable, __file__, folder], stdout=subprocess.PIPE, text=True, **given)
    results = dict(json.loads(line) for line in done.stdout.splitlines())
    return {case: results.get(case, f"the process ended with {done.returncode}") for case in cases}


def wrong(results):
    return [f"{case}: {result}" for case, result in results.items() if result not in FINE]


def test_one_in_ten_is_refused_in_words_or_ends_the_same(tmp_path):
    cases = CASES[::10]
    results = verdicts(tmp_path, cases)
    assert not wrong(results), "\n".join(wrong(results))
    assert {"refused", "the same", "killed"} <= {*results.values()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FILES, *INTERRUPTIONS])
def test_all_are_refused_in_words_or_end_the_same(tmp_path, kind):
    """Every case, a quarter of an hour in all."""
    results = verdicts(tmp_path, [case for case in CASES if case.startswith(kind + " | ")])
    assert not wrong(results), "\n".join(wrong(results))


def table(results):
    """What came of each kind of case: the README's rows."""
    rows = [
        "| what lies or ends | tried | refused, naming it | killed | ends the same | wrong |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for kind in dict.fromkeys(case.split(" | ")[0] for case in results):
        mine = Counter(result for case, result in results.items() if case.startswith(kind + " | "))
        mine.pop("does not apply", None)
        kills = mine["killed"] + 2 * mine["killed 2 times"] + 3 * mine["killed 3 times"]
        bad = sum(times for result, times in mine.items() if result not in FINE)
        same = mine.total() - mine["refused"] * (kind not in INTERRUPTIONS) - bad
        rows.append(f"| {kind} | {mine.total()} | {mine['refused']} | {kills} | {same} | {bad} |")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), [line.strip() for line in sys.stdin])
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            every = verdicts(Path(scratch), CASES)
        print(table(every), *wrong(every), sep="\n")
