"""Sparse engines against dense ones, timed: `profile_of` says how much, `products`, `layers`, `models` make the cases,
`sweep` times them."""

from .cases import PATTERNS, LayerCase, ProductCase, TrainedCase
from .profiles import PROFILES, SWEEPS, layers, models, products, profile_of
from .sweep import measure, news, sweep

__all__ = [
    "PATTERNS",
    "PROFILES",
    "SWEEPS",
    "LayerCase",
    "ProductCase",
    "TrainedCase",
    "layers",
    "measure",
    "models",
    "news",
    "products",
    "profile_of",
    "sweep",
]
