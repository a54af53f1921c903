"""What a training goes on from: ONE file, believed where it agrees with itself, with its run and with the run's metrics.csv.

Safetensors: `model.*` and `best.*`, the weights as they are and those of the best epoch, `optimizer.*`, `rng.*`, and a metadata
key `counters` with JSON: how far the training is, `config` (what config.json holds), `metrics` (how many rows metrics.csv had,
and their sha256) and `digest`, the sha256 of all of it. A file from before there were digests has none of these three: its
names, shapes, types and ranges are checked alone.
"""

import json
import math

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import replacing
from ..nets.file import digest
from ..sparsify.options import check, refuse_unknown
from .config import difference, identity, with_defaults
from .optimisers import OPTIMISERS

SWORN = ("config", "metrics", "digest")  # what a file says of others and of itself
GO_ON = "put a sound copy of it back, or remove the run's directory to train anew"
ANOTHER = "it was written by another version of the library, whose names of parameters differ: go on with that version"
PARTS = ("model", "best", "optimizer", "rng")


def save(session, path, metrics):
    """Write where a `Session` stands. metrics: {"rows", "sha256"} of its metrics.csv (`runs.Metrics`)."""
    tensors = {"model." + name: value.clone() for name, value in session.model.state_dict().items()}
    tensors |= {"best." + name: value for name, value in session.best.items()}
    for index, state in session.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    said = {
        "epoch": session.epoch,
        "seconds": session.seconds,
        "best_epoch": session.best_epoch,
        "best_valid": session.best_valid,
        "checks": session.averages.checks,
        "averaged": session.averages.count,
        "config": identity(session.config, session.task),
        "metrics": metrics,
    }
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    said["digest"] = digest(json.loads(json.dumps(said)), tensors)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {"counters": json.dumps(said)})
        except SafetensorError as problem:
            raise OSError(f"{path} cannot be written: {problem}") from problem


def restore(session, path):
    """Put a `Session` where a file of `save` stands → the file's `metrics`, None of one without a digest.

    Raises ValueError, naming the file and how to go on, before anything of the session has changed.
    """
    try:
        said, parts = _read(path)
        _agrees_with_run(session, said)
        counters = _counters(session, said)
        _old_names(session, parts)
        _weights(session, parts, counters)
        state = _optimizer_state(session, parts["optimizer"], counters)
        _random(parts["rng"])
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path}: {problem!s:.500}; {GO_ON}") from problem
    session.averages.checks, session.averages.count = counters.pop("checks"), counters.pop("averaged")
    for name, value in counters.items():
        setattr(session, name, value)
    session.best = parts["best"]
    session.model.load_state_dict(parts["model"])
    session.study.load_state_dict({"step": session.epoch * session.steps_per_epoch})
    session.optimizer.load_state_dict({"state": state, "param_groups": session.optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(parts["rng"]["cpu"])
    if "cuda" in parts["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["rng"]["cuda"])
    return said.get("metrics")


def _read(path):
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["counters"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError, OverflowError, MemoryError) as problem:
        raise ValueError(f"no checkpoint ({problem!s:.100})") from problem
    if not isinstance(said, dict):
        raise ValueError(f"counters are {said!r:.80}; expected names and numbers")
    if any(name in said for name in SWORN) and said.get("digest") != digest(said, tensors):
        raise ValueError("the content is not what was written (its sha256 is another): the file is damaged")
    parts = {part: {} for part in PARTS}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(ANOTHER)
        parts[part][rest] = value
    return said, parts


def _agrees_with_run(session, said):
    now = identity(session.config, session.task)
    before = with_defaults(said["config"]) if "config" in said else now
    if name := difference(now, before):
        raise ValueError(
            f"it belongs to another run, with {name} = {before.get(name)!r:.80}; here it is {now.get(name)!r:.80}"
        )


def _counters(session, said):
    """The counters of a file, each of its type and in its range; those younger than the file as they start."""
    wanted = ("epoch", "seconds", "best_epoch", "best_valid", "checks", "averaged")
    refuse_unknown(said, (*wanted, *SWORN), "counter")
    said = {"checks": [], "averaged": 0} | {name: said[name] for name in wanted if name in said}
    if missing := [name for name in wanted if name not in said]:
        raise ValueError(f"{missing[0]} is missing")
    most = session.plan.epochs if session.method.trains else None
    check("epoch", int, said["epoch"], least=0, most=most)
    check("seconds", float, said["seconds"], least=0)
    check("best_epoch", int, said["best_epoch"], least=-1, most=said["epoch"])
    check("averaged", int, said["averaged"], least=0)
    if said["best_epoch"] >= 0 or said["best_valid"] == said["best_valid"]:  # NaN: there is none yet
        check("best_valid", float, said["best_valid"])
    checks = said["checks"]
    if not isinstance(checks, list) or any(type(one) not in (int, float) or math.isnan(one) for one in checks):
        raise ValueError(f"checks are {checks!r:.80}; expected numbers")
    if len(checks) not in (0, said["epoch"]):
        raise ValueError(f"there are {len(checks)} checks after {said['epoch']} epochs")
    return said


def _old_names(session, parts):
    """A method may keep more now than when the file was written: it stands where it starts."""
    young = {n: v for n, v in session.model.state_dict().items() if ".carried." in n and n.endswith(".pressure")}
    for part in ("model", "best"):
        parts[part] = parts[part] and young | parts[part]


def _weights(session, parts, counters):
    expected = session.model.state_dict()
    learnt = {name for name, _ in session.model.named_parameters()}
    if parts["model"].keys() != expected.keys():
        raise ValueError(ANOTHER)
    if bool(parts["best"]) != (counters["best_epoch"] >= 0):
        raise ValueError(f"the best epoch is {counters['best_epoch']}, with {len(parts['best'])} tensors of it")
    for part in ("model", "best"):
        for name, tensor in parts[part].items():
            if name not in expected or len(parts[part]) != len(expected):
                raise ValueError(f"{part} has {len(parts[part])} tensors, {name!r} among them, not those of the model")
            _like(f"{part}.{name}", tensor, expected[name].shape, expected[name].dtype)
            if name in learnt:
                _finite(f"{part}.{name}", tensor)


def _optimizer_state(session, found, counters):
    """index → field → tensor, as the optimiser has it for each parameter that has been moved."""
    more = {"average": True} if counters["averaged"] else {}
    fields = {decays: _fields(session.plan, decays) | more for decays in (True, False)}
    of_all = [
        (p, fields[bool(group.get("decays"))]) for group in session.optimizer.param_groups for p in group["params"]
    ]
    state = {}
    for name, tensor in found.items():
        index, _, field = name.partition(".")
        if not index.isdecimal() or int(index) >= len(of_all) or field not in of_all[int(index)][1]:
            raise ValueError(f"optimizer.{name} is of no parameter of this run's optimiser ({session.plan.optimiser})")
        parameter, names = of_all[int(index)]
        shape, dtype = (parameter.shape, parameter.dtype) if names[field] else (torch.Size(), torch.float32)
        _like(f"optimizer.{name}", tensor, shape, dtype)
        _finite(f"optimizer.{name}", tensor)
        state.setdefault(int(index), {})[field] = tensor
    for index, there in state.items():
        if missing := sorted(of_all[index][1].keys() - there.keys()):
            raise ValueError(f"optimizer.{index}.{missing[0]} is missing")
    if any(names for _, names in of_all) and counters["epoch"] and session.method.trains and not state:
        raise ValueError("the optimiser's state is missing")
    return state


def _fields(plan, decays):
    """Field of the optimiser's state → whether it has the shape of its parameter: of one number, moved once. decays: at the
    weights' rate."""
    one = torch.nn.Parameter(torch.zeros(1))
    one.grad = torch.zeros(1)
    optimizer = OPTIMISERS[plan.optimiser]([{"params": [one], "lr": plan.lr, "decays": decays}], plan)
    optimizer.step()
    return {name: value.shape == one.shape for name, value in optimizer.state[one].items()}


def _random(found):
    if "cpu" not in found:
        raise ValueError("rng.cpu is missing")
    refuse_unknown(found, ("cpu", "cuda"), "generator")
    _like("rng.cpu", found["cpu"], torch.get_rng_state().shape, torch.uint8)
    try:
        torch.Generator().set_state(found["cpu"])
    except RuntimeError as problem:
        raise ValueError(f"rng.cpu is no state of a generator ({problem!s:.80})") from problem


def _like(name, tensor, shape, dtype):
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, expected {tuple(shape)} of {dtype}")


def _finite(name, tensor):
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite")
