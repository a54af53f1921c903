"""What a study asks for: study.yaml, or a file like it, read and checked before anything starts.

profile, takes, seeds; tasks: task → methods, each `method` or `{method: {parameter: value}}`; ngrams: task → orders.
"""

from pathlib import Path

import yaml

from .. import tasks
from ..files import nearest
from ..sparsify.options import refuse_unknown
from .config import PROFILES, RunConfig
from .opponents import ORDERS

FORM = {"profile": str, "takes": str, "seeds": list, "tasks": dict, "ngrams": dict}
OPTIONAL = ("takes", "ngrams")
SAID = {str: "text", list: "a list, [0, 1]", dict: "entries, `name: value`"}


def read_study(path):
    """A study file → its entries, each checked. Raises ValueError naming the file and the entry, OSError without a file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        _refuse_twice(yaml.compose(text))
        study = yaml.safe_load(text)
        _check_form(study)
        if not study_configs(study):
            raise ValueError("tasks and seeds name no run")
    except yaml.YAMLError as problem:
        raise ValueError(f"{path} is no YAML: {problem}") from None
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{path}: {problem}") from None
    return study


def study_configs(study):
    """The runs a study (as read) asks for: `method` or `{method: {parameter: value}}` per task, for each of its seeds, or
    for the one that the parameters name."""
    configs = []
    for task, methods in study["tasks"].items():
        for number, entry in enumerate(methods, 1):
            method, overrides = _entry(f"{task}, entry {number}", entry)
            given = {"task": task, "method": method, "profile": study["profile"]} | overrides
            try:
                configs += [RunConfig(**({"seed": seed} | given)) for seed in study["seeds"]]
            except (TypeError, ValueError) as problem:
                raise type(problem)(f"{task}, {method}: {problem}") from None
    return list(dict.fromkeys(configs))


def _entry(where, entry):
    """An entry of a task's list → its method, and the parameters given to it."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f"{where} is {entry!r}; write `- method`, or `- method: {{parameter: value}}`")
    (method, overrides), *more = entry.items()
    if more:
        raise ValueError(f"{where}: {', '.join(map(str, entry))} stand in one; give each a line of its own")
    if not isinstance(overrides, dict):
        raise ValueError(f"{where}: {method} is followed by {overrides!r}; write `- {method}: {{parameter: value}}`")
    named = {"task", "method", "profile"} & overrides.keys()
    if named:
        raise ValueError(f"{where}: {method} names its {', '.join(sorted(named))} again; it stands above it")
    return method, overrides


def _check_form(study):
    if not isinstance(study, dict):
        raise ValueError(f"a study is entries, `name: value`: {', '.join(FORM)}; this is {str(study)[:40]!r}")
    refuse_unknown(study, FORM, "entry")
    for name, kind in FORM.items():
        if name not in study and name not in OPTIONAL:
            raise ValueError(
                f"the entry {name!r} is missing; a study has {', '.join(n for n in FORM if n not in OPTIONAL)}"
            )
        if name in study and not isinstance(study[name], kind):
            raise ValueError(f"{name} is {study[name]!r}; it must be {SAID[kind]}")
    if study["profile"] not in PROFILES:
        raise ValueError(nearest("profile", study["profile"], PROFILES))
    for part in ("tasks", "ngrams"):
        for task, listed in study.get(part, {}).items():
            if task not in tasks.names():
                raise ValueError(f"{part}: {nearest('task', task, tasks.names())}")
            if not isinstance(listed, list):
                raise ValueError(f"{part}, {task} is {listed!r}; it must be a list")
    for task, orders in study.get("ngrams", {}).items():
        for order in orders:
            if type(order) is not int or order not in ORDERS:
                raise ValueError(f"ngrams, {task}: {order!r} is no order of {ORDERS.start} to {ORDERS.stop - 1}")


def _refuse_twice(node):
    """YAML takes the last of two entries of one name, and says nothing of the first."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"{twice[0]} stands there twice (line {node.start_mark.line + 1} and below); put them together"
            )
    for child in getattr(node, "value", ()) if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _refuse_twice(part)
