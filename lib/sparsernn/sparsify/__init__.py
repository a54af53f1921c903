"""Every way of making a recurrent network small: one file each, chosen by name here and nowhere else."""

from functools import partial

from ..files import nearest
from .base import Dense, Method
from .binary import BinaryDropout, BinarySparseVD
from .linear import L1Logistic
from .sparse_vd import SparseVD

METHODS = {
    "dense": Dense,
    "binary-dropout": BinaryDropout,
    "sparse-vd-w": SparseVD,
    "sparse-vd-w-binary": BinarySparseVD,
    "sparse-vd-w-voc": partial(SparseVD, groups="voc"),
    "sparse-vd-wn": partial(SparseVD, groups="wn"),
    "sparse-vd-wgn": partial(SparseVD, groups="wgn"),
    "linear": L1Logistic,
}


def names():
    return list(METHODS)


def make(name) -> Method:
    """A fresh method by name. Raises ValueError naming the nearest one."""
    if name not in METHODS:
        raise ValueError(nearest("method", name, METHODS))
    return METHODS[name]()
