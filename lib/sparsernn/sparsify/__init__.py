"""Every way of making a recurrent network small: one file each, chosen by name here and nowhere else."""

from functools import partial

from ..files import nearest
from .base import Dense, Method
from .binary import BinaryDropout, BinarySparseVD
from .blocks import Blocks
from .few_words import FewWords
from .gradual import Gradual, Hard
from .heads import Heads
from .iss import ISS
from .l0 import L0
from .linear import L1Logistic
from .one_shot import OneShot
from .options import names_of, refuse_unknown
from .restricted import Restricted
from .sparse_vd import SparseVD

METHODS = {
    "dense": Dense,
    "binary-dropout": BinaryDropout,
    "sparse-vd-w": SparseVD,
    "sparse-vd-w-binary": BinarySparseVD,
    "sparse-vd-w-voc": partial(SparseVD, kinds="voc"),
    "sparse-vd-wn": partial(SparseVD, kinds="wn"),
    "sparse-vd-wgn": partial(SparseVD, kinds="wgn"),
    "gradual": Gradual,
    "hard": Hard,
    "blocks": Blocks,
    "l0": L0,
    "iss": ISS,
    "one-shot": OneShot,
    "heads": Heads,
    "restricted": Restricted,
    "few-words": FewWords,
    "linear": L1Logistic,
}


def names():
    return list(METHODS)


def make(name, options=None) -> Method:
    """A fresh method by name, with its options (None: the defaults). Raises ValueError naming the nearest one."""
    if name not in METHODS:
        raise ValueError(nearest("method", name, METHODS))
    return METHODS[name](options)


def options_of(name, given):
    """The options of a method with some values given by name. Raises ValueError for one it does not have, with the nearest
    it has, and for a value it cannot take; TypeError for a type."""
    kind = make(name).Options
    for parameter in given:
        if parameter not in names_of(kind) and parameter in every_option():
            own = ", ".join(names_of(kind)) or "none"
            raise ValueError(f"{name} has no {parameter}; its options: {own}")
    refuse_unknown(given, names_of(kind), f"option of {name}")
    return kind(**given)


def every_option():
    """The names of all options of all methods."""
    return names_of(*{make(name).Options: None for name in METHODS})
