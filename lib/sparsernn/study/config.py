"""One run, said completely: what is trained, on what, how, from which seed, and where its files go."""

import ast
import json
import os
import types
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from .. import sparsify
from ..files import nearest, project_root
from ..records import KEY, run_key
from .presets import PRESETS, Plan, preset

CHOICES = {  # what the plan's words may be
    "products": ("float32", "bfloat16", "bfloat16-state"),
    "kl_fit": ("molchanov", "1812.05692"),
}
PROFILES = ("smoke", "quick", "short", "paper")  # seconds · a minute or two · what a CPU can afford · the paper's


def runs_root():
    """Where runs are written: `SPARSERNN_RUNS`, else `runs/` in the project."""
    return Path(os.environ.get("SPARSERNN_RUNS") or project_root() / "runs")


@dataclass(frozen=True)
class RunConfig:
    """task × model × method × profile × seed, and overrides of the plan (`presets.Plan`; None: the preset's value).

    Raises ValueError for an unknown name or choice, with the nearest right one, and TypeError for a wrong type.
    """

    task: str = "pydocs-topic"
    model: str | None = None
    method: str = "sparse-vd-wgn"
    profile: str = "smoke"
    seed: int = 0
    epochs: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    lr: float | None = None
    clip: float | None = None
    lr_hold: float | None = None
    lr_rest: float | None = None
    lr_end: float | None = None
    word_dropout: float | None = None
    dropout: float | None = None
    weight_decay: float | None = None
    lr_log_sigma: float | None = None
    log_sigma: float | None = None
    log_sigma_groups: float | None = None
    kl_weight: float | None = None
    kl_weight_neurons: float | None = None
    kl_peak: float | None = None
    kl_press: float | None = None
    kl_settle: float | None = None
    kl_start: float | None = None
    kl_full: float | None = None
    threshold: float | None = None
    fine_tune: float | None = None
    kl_fit: str | None = None
    kl_every: int | None = None
    sleep_above: float | None = None
    products: str | None = None

    def __post_init__(self):
        for field in fields(self):
            object.__setattr__(self, field.name, _typed(field.name, field.type, getattr(self, field.name)))
        if self.task not in PRESETS:
            raise ValueError(nearest("task", self.task, PRESETS))
        method = sparsify.make(self.method)
        if self.model is None:
            object.__setattr__(self, "model", method.default_model or next(iter(PRESETS[self.task])))
        plans = preset(self.task, self.model).plans
        if method.default_model not in (None, self.model):
            raise ValueError(f"method {self.method!r} is for the model {method.default_model!r}, not {self.model!r}")
        if self.profile not in plans:
            raise ValueError(nearest(f"profile of {self.task}/{self.model}", self.profile, plans))
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        for name, allowed in CHOICES.items():
            if (given := getattr(self.plan, name)) not in allowed:
                raise ValueError(nearest(name, given, allowed))
        for name in ("epochs", "batch_size", "kl_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr_hold", "fine_tune", "word_dropout", "dropout"):
            if not 0 <= getattr(self.plan, name) < 1:
                raise ValueError(f"{name} is {getattr(self.plan, name)}; it is a share, from 0 to below 1")
        if not self.plan.lr_hold < self.plan.lr_rest <= 1:
            raise ValueError(
                f"lr_rest is {self.plan.lr_rest}; it is a share, above lr_hold = {self.plan.lr_hold}, up to 1"
            )
        if self.plan.fine_tune and self.plan.sleep_above:  # log α is read within an epoch, when what sleeps is cut out
            raise ValueError("fine_tune and sleep_above do not go together; set one of them to 0")

    @property
    def plan(self) -> Plan:
        """The preset's plan with this run's overrides."""
        return replace(preset(self.task, self.model).plans[self.profile], **self._overrides())

    def _overrides(self):
        plan = preset(self.task, self.model).plans[self.profile]
        given = {field.name: getattr(self, field.name) for field in fields(Plan)}
        return {name: value for name, value in given.items() if value is not None and value != getattr(plan, name)}

    @property
    def variant(self):
        """Sorted overrides that differ from the preset, `kl_weight=2,lr=0.001`; empty if none."""
        return ",".join(
            f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
            for name, value in sorted(self._overrides().items())
        )

    @property
    def directory(self) -> Path:
        return runs_root() / run_key({name: getattr(self, name) for name in KEY})

    def as_dict(self):
        """What a resumed run must agree on: the names and the whole plan."""
        names = {name: getattr(self, name) for name in ("task", "model", "method", "profile", "seed")}
        return names | asdict(self.plan)

    @classmethod
    def from_notebook(cls, namespace, **extra):
        """The config a notebook's parameters describe. `extra`: names the notebook itself defines, with their types.

        Parameters are the names assigned in cells that hold nothing but constants (the `parameters` cell and
        papermill's). One that is no parameter, or of a wrong type (`"1e-4"`), is refused with the nearest right name.
        """
        known = {field.name: field.type for field in fields(cls)}
        given = check_parameters(namespace, **known, **extra)
        return cls(**{name: value for name, value in given.items() if name in known})


def begun(path):
    """config.json of a run. A field of the plan that is younger than the run stands at its default, which changes nothing."""
    return {f.name: f.default for f in fields(Plan) if f.default is not MISSING} | json.loads(Path(path).read_text())


def study_configs(study):
    """The runs a study (study.yaml as read) asks for: `method` or `{method: {parameter: value}}` per task, for each of its
    seeds, or for the one that the parameters name."""
    configs = []
    for task, methods in study["tasks"].items():
        for entry in methods:
            (method, overrides), *_ = entry.items() if isinstance(entry, dict) else [(entry, {})]
            given = {"task": task, "method": method, "profile": study["profile"]} | overrides
            if unknown := given.keys() - {field.name for field in fields(RunConfig)}:
                known = sorted(field.name for field in fields(RunConfig))
                raise ValueError(nearest(f"parameter of {task}, {method}", min(unknown), known))
            configs += [RunConfig(**({"seed": seed} | given)) for seed in study["seeds"]]
    return configs


def check_parameters(namespace, **kinds):
    """The parameters of a notebook that is about no run: name → value, each of a known name and of its type.

    kinds: every parameter's name and type. Refuses as `RunConfig.from_notebook` does.
    """
    given = _parameters(namespace)
    for name in given:
        if name not in kinds:
            raise ValueError(nearest("parameter", name, sorted(kinds)))
    return {name: _typed(name, kinds[name], value) for name, value in given.items()}


def _typed(name, kind, value):
    """The value if it is of that type (an int will do for a float), else TypeError in words."""
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    hint = ""
    if isinstance(value, str) and float in kinds:
        try:
            hint = f" (YAML reads 1e-4 as text; write {float(value)!r} as a number, for example 1.0e-4)"
        except ValueError:
            pass
    expected = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in kinds)
    raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}{hint}")


def _parameters(namespace):
    """Names and values assigned by the cells run so far that hold constants only."""
    cells = [cell for cell in namespace.get("In", []) if cell.strip()]
    names = {}
    for cell in cells:
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a magic or a shell line
            continue
        if body and all(_is_constant_assignment(statement) for statement in body):
            for statement in body:
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                names[target.id] = namespace[target.id]
    if not cells:  # a script, or a kernel that keeps no history (nbval): every public constant but IPython's `In`
        constants = (str, int, float, bool, type(None), list)
        names = {n: v for n, v in namespace.items() if n != "In" and n[0] != "_" and type(v) in constants}
    return names


def _is_constant_assignment(statement):
    if isinstance(statement, ast.AnnAssign):
        target, value = statement.target, statement.value
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    else:
        return False
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError):
        return False
    return isinstance(target, ast.Name)
