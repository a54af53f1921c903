"""Sparse engines against dense ones, timed: `profile_of` says how much, `products`, `layers`, `models` make the cells,
`sweep` times them."""

from .cells import PATTERNS, LayerCell, Product, Trained
from .profiles import PROFILES, SWEEPS, layers, models, products, profile_of
from .sweep import measure, news, sweep

__all__ = [
    "PATTERNS",
    "PROFILES",
    "SWEEPS",
    "LayerCell",
    "Product",
    "Trained",
    "layers",
    "measure",
    "models",
    "news",
    "products",
    "profile_of",
    "sweep",
]
