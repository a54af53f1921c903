"""What a parameter may be, and the one place where it is checked: for runs, notebooks and `attach` alike.

A set of parameters is a frozen dataclass of `option`s. A value is refused in words: a name that does not exist with the
nearest that does, a wrong type, a number that is none (NaN, infinity) or out of range.
"""

import math
import numbers
import types
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from ..files import nearest


def option(default, says, least=None, above=None, below=None, most=None, choices=None):
    """A field of a set of parameters.

    says                       what it is, with its unit and source
    least, above, below, most  bounds: ≥, >, <, ≤          choices  the only values there are
    """
    bounds = {"least": least, "above": above, "below": below, "most": most, "choices": choices}
    return field(default=default, metadata={"says": says} | bounds)


@dataclass(frozen=True)
class Options:
    """Hyper-parameters of a method; this base has none."""

    def __post_init__(self):
        for one in fields(self):
            object.__setattr__(self, one.name, check(one.name, one.type, getattr(self, one.name), **_bounds(one)))


def _bounds(one):
    return {name: bound for name, bound in one.metadata.items() if name != "says"}


class Bounded(NamedTuple):
    """What a parameter that belongs to no set may be: its type, and bounds as `check` takes them."""

    kind: type
    bounds: dict


def bounded(kind, **bounds):
    """A type within bounds, for a notebook's parameter: `bounded(int, least=1)`."""
    return Bounded(kind, bounds)


def check(name, kind, value, least=None, above=None, below=None, most=None, choices=None):
    """The value of a parameter if it is of that type and within its bounds; an int will do for a float.

    Raises TypeError for another type, ValueError for what is out of bounds, not finite or no choice.
    """
    value = typed(name, kind, value)
    if choices and value not in choices:
        raise ValueError(nearest(name, value, choices))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number")
    if isinstance(value, int | float) and not isinstance(value, bool):
        wanted = [
            (least is None or value >= least, f"at least {least}"),
            (above is None or value > above, f"above {above}"),
            (below is None or value < below, f"below {below}"),
            (most is None or value <= most, f"at most {most}"),
        ]
        if not all(right for right, _ in wanted):
            bounds = " and ".join(
                words for (_, words), b in zip(wanted, (least, above, below, most), strict=True) if b is not None
            )
            raise ValueError(f"{name} is {value}; it must be {bounds}")
    return value


def typed(name, kind, value):
    """The value as that type: a whole number, NumPy's too, for an int, any real one for a float; else TypeError in words."""
    kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in kinds:
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int in kinds:  # NumPy's too
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float in kinds:
        return float(value)
    hint = ""
    if isinstance(value, str) and float in kinds:
        try:
            hint = f" (YAML reads 1e-4 as text; write {float(value)!r} as a number, for example 1.0e-4)"
        except ValueError:
            pass
    if isinstance(value, int | float) and str in kinds and not isinstance(value, bool):
        hint = f" (in quotes it is text, {str(value)!r}; papermill reads a number from -p, and text from -r)"
    expected = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in kinds)
    raise TypeError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}{hint}")


def names_of(*sets):
    """The names of the parameters of some sets, in order."""
    return [one.name for kind in sets for one in fields(kind)]


def refuse_unknown(given, allowed, what):
    """Raise ValueError for the first of `given` that is not in `allowed`, with the nearest that is."""
    for name in given:
        if name not in allowed:
            raise ValueError(nearest(what, name, sorted(allowed)))
