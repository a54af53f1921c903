"""A damaged or hostile file is refused in words, or it runs; no file, id, length or width ends the process.

Files are made of good ones by seeds, and opened in a process of its own, which takes many. One case alone, as a failing
test names it: `echo CASE | python test_hostile_files.py FOLDER`.
"""

import faulthandler
import json
import os
import random
import re
import resource
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import random_masks, randomise
from safetensors import numpy as safe
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sparsernn
from sparsernn import engines
from sparsernn.engines.base import Unsupported
from sparsernn.engines.c import build
from sparsernn.engines.whole import by_engine
from sparsernn.files import error
from sparsernn.nets.compact import compact
from sparsernn.nets.file import FORMAT, digest
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel

SECONDS, ROOM, V = 20, 2 << 30, 40  # for one file: seconds, bytes; words
GOOD = {  # of the first format, tracked, without a digest; of the second
    "classifier/1": "imdb-authors/bayes-128/sparse-vd-w/short-s1",
    "bag of words/1": "imdb-authors/bag-of-words/linear/short-s0",
    "language model/1": "pydocs-char/lstm-128/sparse-vd-wgn/quick-s0",
    "classifier": lambda: Classifier(V, 3, embedding=7, hidden=9, layers=2),
    "language model": lambda: LanguageModel(V, hidden=9, layers=2),
    "bag of words": lambda: BagOfWords(V, 3),
    "shared rows": lambda: LanguageModel(V, hidden=9, layers=2),
    "stranger, words": lambda: Stranger(nn.GRU, nn.Embedding(V, 6)),
    "stranger, numbers": lambda: Stranger(nn.LSTM, nn.Identity()),
    "stranger, blocks": lambda: Stranger(nn.RNN, nn.Embedding(V, 6), hidden=24),
}


class Stranger(nn.Module):
    def __init__(self, cell, first, hidden=8):
        super().__init__()
        self.first, self.head = first, nn.Linear(2 * hidden, 3)
        self.stack = cell(6, hidden, 2, bidirectional=True)
        self.arguments = {"vocabulary": getattr(first, "num_embeddings", 0)}

    def forward(self, x, lengths=None):
        x = self.first(x) if lengths is None else pack_padded_sequence(self.first(x), lengths, enforce_sorted=False)
        y, state = self.stack(x)
        return self.head(y if lengths is None else pad_packed_sequence(y)[0]), state


def example(model):
    words = model.arguments["vocabulary"]
    return torch.randint(words, (6, 3)) if words else torch.rand(6, 3, 6)


def made(name, path):
    """→ the bytes of a good file, its model, and what is given to `load` beside it."""
    given = ()
    if name.endswith("/1"):
        path = Path(__file__).parents[1] / "results/runs" / GOOD[name] / "model.safetensors"
    elif name.startswith("stranger"):
        given = (randomise(GOOD[name](), 1).float(),)
        for own, weight in given[0].named_parameters():
            if weight.dim() == 2:  # weights of every matrix are gone, and every fourth neuron
                weight.mul_(weight.abs() > 0.3)[:, :: 99 if "first" in own or "ih_l0" in own else 4] = 0
            if name.endswith("blocks") and "weight_hh" in own:  # of the upper half of the rows, of the lower half, …
                weight.fill_(0.1)[:12, ::2], weight[12:, 1::2] = 0, 0
        sparsernn.save(sparsernn.compact(given[0], example(given[0]))[0], path)
    elif name == "shared rows":
        model = randomise(GOOD[name](), 1).float().requires_grad_(True)
        masks = sparsernn.attach(model, "restricted", steps=1, n_examples=1, sharing=0.7).masks()
        sparsernn.save(compact(model, masks), path)
    else:
        model = randomise(GOOD[name](), 1).float()
        sparsernn.save(compact(model, random_masks(model, 1, 0.4, {axis.name: 0.7 for axis in model.axes()})), path)
    return path.read_bytes(), sparsernn.load(path, *given), *given


# ---- hostile content and damage


class File:
    """A file taken apart without the library: its JSON, and name → array, to be changed by a seed."""

    def __init__(self, raw, seed=0):
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        self.meta, self.arrays = json.loads(header["__metadata__"]["sparsernn"]), safe.load(raw)
        self.second, self.pick = self.meta["format"] == FORMAT, random.Random(seed).choice

    def raw(self, new_digest=False):
        if new_digest and isinstance(self.meta, dict):
            self.meta["digest"] = digest(self.meta, {n: torch.from_numpy(a) for n, a in self.arrays.items()})
        text = self.meta if isinstance(self.meta, str) else json.dumps(self.meta, sort_keys=True)
        return safe.save(self.arrays, {"sparsernn": text})

    def some(self, pattern=""):
        return self.pick(sorted(name for name in self.arrays if re.search(pattern, name)))

    def edit(self, change, pattern=""):
        """change(array) in place of some tensor."""
        name = self.some(pattern)
        self.arrays[name] = np.array(change(self.arrays[name].copy()), order="C")

    def put(self, pattern, *values):
        """One of the values in place of some number."""
        self.edit(lambda a: np.put(a, self.pick(range(a.size)), self.pick(values)) or a, pattern)

    def places(self, node=None):
        """(container, key) of every value in the JSON."""
        node = self.meta if node is None else node
        keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        return [(node, key) for key in keys] + [place for key in keys if node[key] for place in self.places(node[key])]

    def say(self, *values, at=None, where=lambda node: True):
        """One of the values (or what it makes of the old one) in place of what stands anywhere, or at a key of some node."""
        node, key = self.pick(
            [(n, k) for n, k in self.places() if at is None or (k == at and n[k] not in (None, [], {}) and where(n))]
        )
        value = self.pick(values)
        node[key] = value(node[key]) if callable(value) else value


KEPT, FLOATS = r"(kept|reads|words|sends)(?!.*bits$)", r"weight\w*$|values$|bias|constant"
INDEX = KEPT + "|indices$|indptr$|lengths$"
OTHER = {"float32": ["i4", "u4"], "uint16": ["i2", "f2"], "uint8": ["i1", "?"]}  # types of the same size
SHAPES = [lambda a: a.T, lambda a: a[:-1], lambda a: a[:0], lambda a: a.flatten()[0], lambda a: a[None]]
SHAPES += [lambda a: np.concatenate([a, a[-1:]]), lambda a: np.zeros((0, 10**15), a.dtype)]
VALUES = [-1, 0, 2.5, 10**9, 10**12, 10**30, float("nan"), "7", "\ud800", None, True, [], {}, [[[{"shape": [1]}]]]]
NONSENSE = [*VALUES, "LSTMCell", "__class__", [FORMAT], ["_l7"], ["_l0_reverse"], {"_l0": 1}, [-1, -1], [2, 2, 2]]
TEXTS = ["", "null", "[]", "3", '"x"', "{", "{}", "\0", "NaN", "7" * 10_000, "[" * 10_000, '{"format":' * 10_000]
TEXTS += [json.dumps({"format": FORMAT, "a": 7}).replace("7", text) for text in TEXTS[-3:]]
BOMB = {"arguments": {"vocabulary": 800_000, "classes": 2, "embedding": 32_000, "hidden": 1}, "sparse": {}, "same": {}}
with torch.device("meta"):  # 100 GB of zeros, nothing in it is wrong
    zeros = {n: [list(t.shape), "float32"] for n, t in Classifier(**BOMB["arguments"]).state_dict().items()}
BOMB |= {"model": "Classifier", "layers": {"embedding": {"rows": None, "columns": 32_000}}, "zeros": zeros}
REFUSED = {  # whatever else the file says
    "a tensor missing": lambda f: f.arrays.pop(f.some()),
    "a tensor too many": lambda f: f.arrays.update(more=f.arrays[f.some()]),
    "another name": lambda f: f.arrays.update({f.pick([(n := f.some()) + "0", n[1:], n.upper()]): f.arrays.pop(n)}),
    "another type": lambda f: f.edit(lambda a: a.view(f.pick(OTHER[a.dtype.name]))),
    "another shape": lambda f: f.edit(f.pick(SHAPES)),
    "an index below zero": lambda f: f.edit(lambda a: a.astype(np.int64) - 1, INDEX),
    "an index too large": lambda f: f.put(INDEX, 65_535),
    "bits too many": lambda f: f.put("bits$", 255),
    "an index twice": lambda f: f.edit(lambda a: np.put(a, 0, a[1]) or a, KEPT),
    "wrong pointers": lambda f: f.edit(lambda a: np.put(a, f.pick([0, 1, -1]), a[-1] + 1) or a, "indptr"),
    "no finite number": lambda f: f.put(FLOATS, np.nan, np.inf, -np.inf),
    "runs of nothing": lambda f: f.put("lengths$", 0),
    "runs too long": lambda f: f.edit(lambda a: a + 1, "lengths$"),
    "runs that overlap": lambda f: f.edit(lambda a: np.zeros_like(a) + a[0], "ih_l1.indices$"),
    "no runs": lambda f: f.say(False, 0, "7", None, at="runs"),
    "rows for columns": lambda f: f.say(  # of a square matrix it would be another one's file
        {"rows": "columns", "columns": "rows"}.get, at="by", where=lambda node: node["shape"][0] != node["shape"][1]
    ),
    "a matrix too many": lambda f: f.meta["sparse"].update(more=f.pick([*f.meta["sparse"].values()])),
    "other JSON": lambda f: setattr(f, "meta", f.pick(TEXTS)),
    "nothing of it": lambda f: f.say(0, at=f.pick(["classes", "embedding", "hidden", "vocabulary"])),
    "no activation": lambda f: f.say(0, "", False, at="activation"),
    "100 GB of zeros": lambda f: f.meta.update(BOMB) or f.arrays.clear(),
    "a billion layers": lambda f: f.meta.update(arguments=f.meta["arguments"] | {"layers": 10**9}),
    "100 GB of a matrix": lambda f: f.say(lambda s: f.pick([[s[0], 10**11], [10**11, s[1]]]), at="shape"),
}
KEYS = ("format", "model", "layers", "cell", "activation", "sizes", "by", "shape")
REFUSED |= {f"no such {key}": lambda f, key=key: f.say(*NONSENSE, at=key) for key in KEYS}
POSSIBLE = {
    "anything in the JSON": lambda f: f.say(*VALUES),
    "one off": lambda f: f.say(
        lambda i: i + f.pick([1, -1]), at=f.pick([k for n, k in f.places() if type(n[k]) is int])
    ),
    "another output": lambda f: f.say(lambda old: not old, at=f.pick(["wide", "scaled"])),
    "a key missing": lambda f: (p := f.pick([p for p in f.places() if isinstance(p[0], dict)]))[0].pop(p[1]),
    "another vocabulary": lambda f: f.say(12 * 10**9, 2**31 - 1, 10**7, V - 1, at="vocabulary"),
    "tied to another": lambda f: f.meta["same"].update({(n := f.some()): f.some()}) or f.arrays.pop(n),
    "zeros": lambda f: f.meta["zeros"].__setitem__(n := f.some(), [[*f.arrays.pop(n).shape], "float16"]),
    "two exchanged": lambda f: f.arrays.update({(a := f.some()): f.arrays[b := f.some()], b: f.arrays[a]}),
    "more or fewer bits": lambda f: f.edit(lambda a: a.astype(f.pick([np.float64, np.float16])), FLOATS),
    "indices turned round": lambda f: f.edit(lambda a: a[::-1], INDEX + "|bits$"),
    "other gates": lambda f: f.put("live|constant", 0, 1, 7, 255),
    "huge numbers": lambda f: f.put(FLOATS, 3e38, -3e38),
}
DAMAGED = [f"{how} in the {part}" for how in ("a bit", "bytes", "a break") for part in ("length", "header", "numbers")]
CALLS = {f"id {number:,}": number for number in (-1, V, -(10**12), 10**9, 2**31, 2**32)}
CALLS |= {f"length {number:,}": number for number in (-1, 7, 10**12)} | {"length 6, and a fourth": 6, "wide numbers": 0}


def damaged(raw, what, rng):
    end = 8 + int.from_bytes(raw[:8], "little")
    first, last = {"length": (0, 8), "header": (8, end), "numbers": (end, len(raw))}[what.split()[-1]]
    at, size = rng.randrange(first, last), rng.choice([1, 4, 64])
    new = rng.choice([rng.randbytes(size), bytes(size), raw[first : first + size], b"7"])
    if what.startswith("a break"):
        return raw[:at] + rng.choice([b"", new + raw[at:], raw[at + size :], raw[at:] + new])
    new = bytes([raw[at] ^ 1 << rng.randrange(8)]) if what.startswith("a bit") else new
    return raw[:at] + new + raw[at + len(new) :]


def file_of(good, case):
    """The bytes of a case, and whether they have to be refused; None where there is nothing to change."""
    _, what, seed = case.split(" | ")
    file, old = File(good, case), seed == "old digest"
    if what in DAMAGED:
        return damaged(good, what, random.Random(case)), file.second
    with suppress(KeyError, IndexError, TypeError, ValueError):
        (REFUSED | POSSIBLE)[what](file)
        return file.raw(file.second and not old), what in REFUSED or (file.second and old)


# ---- the process

SANITIZER = "-g -fsanitize=address,undefined -fno-sanitize-recover=all"
RUNTIME = "libasan.so", "libstdc++.so.6"  # before all others, the second so that C++ can throw past the first
SANITIZED = "SANITIZED" in os.environ  # this process: C engines are compiled with it
if SANITIZED:
    build.FLAGS += f" {SANITIZER}"


def runs(small):
    """Engine → what runs a model by it, if it does."""
    found = {"itself": small}
    for engine in engines.available("cpu"):
        with suppress(Unsupported):
            found[engine] = by_engine(small, engine, example(small))
    return found


def opened(path, raw, must, good, original, *given):
    """What comes of a file: "refused", "runs", or what is wrong with it. must: it has to be refused."""
    path.write_bytes(raw)
    try:
        small = sparsernn.load(path, *given)
    except ValueError as problem:
        right = str(path) in str(problem) and len(str(problem)) < 1000
        return "refused" if right else f"refused, but {type(problem).__name__}: {str(problem)[:300]}"
    same = File(raw).raw() == File(good).raw()
    if must and not same:
        return "not refused"
    x, numbers = example(small), [t for t in small.state_dict().values() if t.is_floating_point() and t.numel()]
    expected, largest = small(x)[0], max(float(t.abs().max()) for t in numbers)
    if same and not torch.equal(expected, original(x)[0]):
        return "another answer, though nothing was changed"
    for engine, run in runs(small).items():
        y = run(x)[0]
        if largest < 1e6 and not y.isfinite().all():  # sums of the largest numbers are not
            return f"{engine} answers {y.flatten()[:3].tolist()}"
        if (
            largest < 3
            and engine not in ("dense-bf16", "dense-int8", "own-dense-int8", "c-int8")
            and error(y, expected) > 1e-4
        ):
            return f"{engine} is wrong by {error(y, expected)}"
    return "runs"


def called(run, what, x, words):
    kind, number = what.split()[0], CALLS[what]
    if run is None or (kind == "id" and not words):
        return "does not apply"
    run(x)
    lengths = [torch.tensor([6, number, 6, 6][: 3 + (number == 6)])] if kind == "length" else []
    if kind == "id":
        x[3, 1] = words if number == V else number
    try:
        return f"answers {run(x if kind != 'wide' else torch.rand(6, 3, 7), *lengths)[0].flatten()[:3].tolist()}"
    except (ValueError, IndexError, RuntimeError):
        return "refused"


def work(folder, cases):
    goods, by = {name: made(name, folder / "good") for name in GOOD}, {}
    for name, (_, small, *_) in goods.items():
        by[name] = runs(small)
        for run in by[name].values():  # numba compiles once
            run(example(small))
    if not SANITIZED:  # which has a limit of its own, and takes terabytes of addresses
        used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    warnings.simplefilter("error"), torch.set_grad_enabled(False)
    print(json.dumps(["", "ready"]), flush=True)
    for case in cases:
        name, what, engine = case.split(" | ")
        good, small, *given = goods[name]
        faulthandler.dump_traceback_later(SECONDS, exit=True), torch.manual_seed(0)
        try:
            if what in CALLS:
                result = called(by[name].get(engine), what, example(small), small.arguments["vocabulary"])
            else:
                file, result = file_of(good, case), "does not apply"
                result = opened(folder / "file", *file, good, small, *given) if file else result
        except Exception as problem:
            result = f"{type(problem).__name__}: {problem}"[:300]
        print(json.dumps([case, result]), flush=True)


FINE = ("refused", "runs", "does not apply")
WHAT, ENGINES = [*DAMAGED, *REFUSED, *POSSIBLE, *CALLS], ["itself", *engines.available("cpu")]
CASES = [(n, w, s) for n in GOOD for w in WHAT for s in (ENGINES if w in CALLS else [*range(5), "old digest"])]


def verdicts_of(folder, cases, **environment):
    """Case → what came of it. A process that ended is followed by another, and the case that it was at has failed."""
    left, found = [" | ".join(map(str, case)) for case in cases], {}
    while left:
        given = {"input": "\n".join(left), "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment}
        done = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True, **given)
        found |= dict(json.loads(line) for line in done.stdout.splitlines())
        assert found.pop("", None), done.stderr
        left = [case for case in left if case not in found]
        if left:
            found[lost := left.pop(0)] = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
            left = [case for case in left if case.rpartition(" | ")[0] != lost.rpartition(" | ")[0]]  # once is enough
    files = [case for case, result in found.items() if result != "does not apply" and case.split(" | ")[1] not in CALLS]
    assert len(files) > 500
    return found


def wrong(verdicts):
    # whose widths fit whose is a stranger's own business: torch says it when the model is called
    said = {
        case for case, result in verdicts.items() if case.startswith("stranger") and "cannot be multiplied" in result
    }
    return [f"{case}: {result}" for case, result in verdicts.items() if result not in FINE and case not in said]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    return verdicts_of(tmp_path_factory.mktemp("files"), CASES)


@pytest.mark.parametrize("what", WHAT)
def test_it_is_refused_in_words_or_runs(what, verdicts):
    mine = {case: result for case, result in verdicts.items() if case.split(" | ")[1] == what}
    assert not wrong(mine), "\n".join(wrong(mine))
    assert set(mine.values()) != {"does not apply"}


@pytest.fixture
def checking_addresses():
    """What a process needs whose C engines are compiled with the sanitizer."""
    found = [subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True) for name in RUNTIME]
    paths = [one.stdout.strip() for one in found]
    if not all(Path(path).exists() for path in paths):
        pytest.skip("this compiler has no address sanitizer")
    room = f"max_allocation_size_mb={ROOM >> 20}:allocator_may_return_null=1"
    return {"SANITIZED": "1", "LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": f"detect_leaks=0:{room}"}


@pytest.mark.slow
def test_no_file_makes_a_c_engine_leave_its_memory(tmp_path, checking_addresses):
    """Every file and call, C engines under address checking; which sees a number that is read beyond its end."""
    beyond = "import test_hostile_files, torch; from sparsernn.engines.c import build, layers as c; "
    beyond += "run, x = c.Linear(torch.ones(3, 64), torch.ones(3)), torch.ones(1, 64); run(x); y = torch.empty(3); "
    beyond += "build.library().sparsernn_linear(run.memory.address, x.data_ptr(), y.data_ptr(), 2, 1)"
    given = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | checking_addresses
    done = subprocess.run([sys.executable, "-c", beyond], capture_output=True, text=True, env=given)
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr, done.stderr
    found = verdicts_of(tmp_path, CASES, **checking_addresses)
    assert not wrong(found), "\n".join(wrong(found))


if __name__ == "__main__":
    work(Path(sys.argv[1]), [line.strip() for line in sys.stdin])
