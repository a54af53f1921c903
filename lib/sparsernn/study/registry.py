"""What a stranger adds from a notebook or a script: a data set, a model for one, a method; known by name from then on."""

from .. import sparsify, tasks
from ..sparsify.base import Method
from .presets import PRESETS, Preset


def register(name, *, task=None, model=None, method=None, of=None):
    """Make a task, a model or a method known as `name` in this process.

    task     profile → `tasks.base.Task`, for example `lambda profile: LanguageTask(…)`; give it a model next
    model    a `Preset`, for the task named by `of`; the first of a task is its default
    method   a subclass of `sparsify.base.Method`
    Raises ValueError unless exactly one of them is given, and for a name that is taken or cannot name a folder;
    TypeError for a wrong kind of thing.
    """
    given = {kind: value for kind, value in (("task", task), ("model", model), ("method", method)) if value is not None}
    if len(given) != 1:
        raise ValueError(f"register one thing at a time: task=, model= or method=; given: {', '.join(given) or 'none'}")
    ((kind, value),) = given.items()
    if (of is not None) != (kind == "model"):
        raise ValueError("of= names the task of a model, and goes with model= alone")
    table = {"task": tasks.TASKS, "method": sparsify.METHODS, "model": PRESETS.setdefault(of, {}) if of else None}[kind]
    if kind == "model" and of not in tasks.TASKS:
        del PRESETS[of]
        raise ValueError(f"no task {of!r}; register it first, or name one of {', '.join(tasks.names())}")
    if not name or name[0] == "." or not name.isprintable() or {*"/\\"} & {*name}:
        raise ValueError(f"name is {name!r}; a run's folder is called so: no folder in it, no dot in front")
    if name in table:
        raise ValueError(f"there is a {kind} {name!r} already; choose another name")
    right = isinstance(value, Preset) if kind == "model" else callable(value)
    if not right or (kind == "method" and not (isinstance(value, type) and issubclass(value, Method))):
        wanted = {"task": "a function of the profile", "model": "a Preset", "method": "a subclass of Method"}[kind]
        raise TypeError(f"{kind} is {value!r}; expected {wanted}")
    table[name] = value
