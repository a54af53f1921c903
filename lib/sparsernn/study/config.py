"""One run, said completely: what is trained, on what, how, from which seed, and where its files go."""

import ast
import json
import os
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

from .. import sparsify
from ..files import nearest, project_root
from ..records import KEY, entries, run_key
from ..sparsify.options import Bounded, bounded, check, names_of, refuse_unknown, typed
from ..sparsify.plan import Plan
from .presets import PLAN, PRESETS, preset

PROFILES = ("smoke", "quick", "short", "paper")  # seconds · a minute or two · what a CPU can afford · the paper's
NAMES = ("task", "model", "method", "profile", "seed")
LONGEST = 255  # bytes of a folder's name
LARGEST_SEED = 2**32 - 1
SEED = bounded(int, least=0, most=LARGEST_SEED)  # of a notebook


def runs_root():
    """Where runs are written: `SPARSERNN_RUNS` (relative to the project, wherever the caller stands), else `runs/` in it."""
    given = os.environ.get("SPARSERNN_RUNS") or "runs"
    return Path(given) if Path(given).is_absolute() else project_root() / given


def kept(config):
    """Whether a run's files stay and are found again: all but those of smoke runs, which are kept where a study asks for them
    (its graph sets `SPARSERNN_KEEP_SMOKE`), so that a notebook on its own is always run from the start."""
    return config.profile != "smoke" or bool(os.environ.get("SPARSERNN_KEEP_SMOKE"))


class RunConfig:
    """task × model × method × profile × seed, and overrides of the training's plan and the method's options.

    plan, options   what the run is trained with: the preset's, with the overrides (None: the preset's value)
    Raises ValueError for an unknown name, an option the method does not have, a number out of range, always with the
    nearest right one, and TypeError for a wrong type.
    """

    def __init__(self, task="pydocs-topic", model=None, method="sparse-vd-wgn", profile="smoke", seed=0, **overrides):
        for name, kind, value in (
            ("task", str, task),
            ("model", str | None, model),
            ("method", str, method),
            ("profile", str, profile),
        ):
            typed(name, kind, value)
        seed = check("seed", int, seed, least=0, most=LARGEST_SEED)
        if task not in PRESETS:
            raise ValueError(nearest("task", task, PRESETS))
        only = sparsify.make(method).default_model
        model = model or only or next(iter(PRESETS[task]))
        profiles = preset(task, model).profiles
        if only not in (None, model):
            raise ValueError(f"method {method!r} is for the model {only!r}, not {model!r}")
        if profile not in profiles:
            raise ValueError(nearest(f"profile of {task}/{model}", profile, profiles))
        refuse_unknown(overrides, {*NAMES, *PLAN, *sparsify.every_option()}, "parameter")
        given = {name: value for name, value in overrides.items() if value is not None}
        plan, options = profiles[profile].plan, profiles[profile].of(method)
        ours = {name: value for name, value in given.items() if name in PLAN}
        theirs = {name: value for name, value in given.items() if name not in PLAN}
        sparsify.options_of(method, theirs)  # refuses what the method does not have
        values = {"plan": replace(plan, **ours), "options": replace(options, **theirs)}
        values |= {"task": task, "model": model, "method": method, "profile": profile, "seed": seed}
        changed = {n: v for n, v in asdict(values["plan"]).items() if n in ours and v != getattr(plan, n)}
        changed |= {n: v for n, v in asdict(values["options"]).items() if n in theirs and v != getattr(options, n)}
        self.__dict__.update(values | {"overrides": changed})
        if len(folder := self.key.rpartition("/")[2].encode()) > LONGEST:
            raise ValueError(
                f"{len(changed)} overrides make a folder's name of {len(folder)} bytes; a file system takes {LONGEST}"
            )

    def __setattr__(self, name, value):
        raise AttributeError(f"a RunConfig does not change; make another with {name}={value!r}")

    def __eq__(self, other):
        return isinstance(other, RunConfig) and self.as_dict() == other.as_dict()

    def __hash__(self):
        return hash(tuple(self.as_dict().items()))

    def __repr__(self):
        return f"RunConfig({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    def given(self):
        """What makes this run and no other: names, and overrides that differ from the preset."""
        return {name: getattr(self, name) for name in NAMES} | self.overrides

    @property
    def variant(self):
        """Sorted overrides that differ from the preset, `kl_weight=2,lr=0.001`; empty if none."""
        return ",".join(f"{name}={_short(value)}" for name, value in sorted(self.overrides.items()))

    @property
    def key(self):
        """`task/model/method/profile-s0[-variant]`: its place under runs/."""
        return run_key({name: getattr(self, name) for name in KEY})

    @property
    def directory(self) -> Path:
        return runs_root() / self.key

    def as_dict(self):
        """What a resumed run must agree on: the names, the whole plan and every option of the method."""
        return {name: getattr(self, name) for name in NAMES} | asdict(self.plan) | asdict(self.options)

    @classmethod
    def of_row(cls, row):
        """The run that a row of results/, or a record, is of."""
        given = {name: _value(text) for name, text in entries(row["variant"]).items()}
        return cls(*(row[name] for name in NAMES[:-1]), int(row["seed"]), **given)

    @classmethod
    def from_notebook(cls, namespace, **extra):
        """The config a notebook's parameters describe. `extra`: names the notebook itself defines, with their types.

        Parameters are the names assigned in cells that hold nothing but assignments (the `parameters` cell and
        papermill's). One that is no parameter, or of a wrong type (`"1e-4"`), is refused with the nearest right name.
        """
        known = dict.fromkeys((*PLAN, *sparsify.every_option()), object)  # their types are checked with the run
        known |= {"task": str, "model": str | None, "method": str, "profile": str, "seed": int}
        given = check_parameters(namespace, **known, **extra)
        return cls(**{name: value for name, value in given.items() if name in known})


def _value(text):
    """What a variant's text stands for: 2, 0.5, True, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _short(value):
    """2.0 as 2; every digit of a number that needs more than six."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def identity(config, task):
    """What a run must agree on to be resumed, and what config.json holds: the config, and the data's sum and metric."""
    return config.as_dict() | {"data_sha256": task.data_sha256, "metric": task.metric}


def difference(now, before):
    """The first name, in order, that two of these disagree on; None where they agree."""
    return next((name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name)), None)


def begun(path):
    """config.json of a run, `with_defaults`. Raises ValueError, naming the file, where it is no such thing."""
    try:
        return with_defaults(json.loads(Path(path).read_text()))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: {problem!s:.300}; put it back, or remove the directory to train anew") from problem


def with_defaults(found):
    """A run's `identity` as it was written once. A parameter younger than it stands at its default, which changes nothing;
    one that its method does not have (runs once listed all) is left out."""
    if not isinstance(found, dict) or not isinstance(found.get("method"), str):
        raise ValueError(f"{found!r:.80} is no config of a run: expected names and values, a method among them")
    options = sparsify.make(found["method"]).Options
    defaults = {f.name: f.default for kind in (Plan, options) for f in fields(kind) if f.default is not MISSING}
    foreign = set(sparsify.every_option()) - set(names_of(options))
    return defaults | {name: value for name, value in found.items() if name not in foreign}


def needed(config):
    """The finished runs that a run starts from: same task, model, profile and seed."""
    names = sparsify.make(config.method, config.options).needs()
    return [RunConfig(config.task, config.model, name, config.profile, config.seed) for name in names]


def check_parameters(namespace, **kinds):
    """The parameters of a notebook that is about no run: name → value, each of a known name, of its type and in its bounds.

    kinds: every parameter's name and type (`object`: any), or `bounded` one. Refuses as `RunConfig.from_notebook` does.
    """
    given = _parameters(namespace, kinds)
    refuse_unknown(given, kinds, "parameter")
    whole = {name: kind if isinstance(kind, Bounded) else bounded(kind) for name, kind in kinds.items()}
    return {
        name: value if kinds[name] is object else check(name, whole[name].kind, value, **whole[name].bounds)
        for name, value in given.items()
    }


def _parameters(namespace, known):
    """Names and values assigned by the cells run so far that hold assignments only: every name where all are constants, and
    those that are known where something is computed."""
    cells = [cell for cell in namespace.get("In", []) if cell.strip()]
    names = {}
    for cell in cells:
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a magic or a shell line
            continue
        targets = [_assigned(statement) for statement in body]
        if body and all(targets):
            constant = all(_is_constant(statement.value) for statement in body)
            names |= {name: namespace[name] for name in targets if name in namespace and (constant or name in known)}
    if not cells:  # a script, or a kernel that keeps no history (nbval): every public constant but IPython's `In`
        constants = (str, int, float, bool, type(None), list)
        names = {n: v for n, v in namespace.items() if n != "In" and n[0] != "_" and type(v) in constants}
    return names


def _assigned(statement):
    """The one name a statement assigns to; None where it does anything else."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _is_constant(value):
    """Whether an expression is a literal, with float("inf") and float("nan") in it as papermill writes them."""

    class Numbers(ast.NodeTransformer):
        def visit_Call(self, call):
            named = getattr(call.func, "id", None) == "float" and len(call.args) == 1 and not call.keywords
            return ast.Constant(1.0) if named and isinstance(call.args[0], ast.Constant) else call

    try:
        ast.literal_eval(Numbers().visit(value))
    except (ValueError, TypeError):
        return False
    return True
