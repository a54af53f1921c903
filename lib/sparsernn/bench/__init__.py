"""Sparse engines against dense ones, timed: `profile_of` says how much, `products`, `layers`, `blocks`, `models` make the
cases, `sweep` times them."""

from .cases import PATTERNS, LayerCase, ProductCase, TrainedCase
from .profiles import BLOCKS, PROFILES, SWEEPS, blocks, layers, models, products, profile_of
from .shipped import SHIPPED, ShippedCase
from .sweep import measure, news, sweep

__all__ = [
    "BLOCKS",
    "PATTERNS",
    "PROFILES",
    "SHIPPED",
    "SWEEPS",
    "LayerCase",
    "ProductCase",
    "ShippedCase",
    "TrainedCase",
    "blocks",
    "layers",
    "measure",
    "models",
    "news",
    "products",
    "profile_of",
    "sweep",
]
