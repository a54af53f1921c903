"""Every figure of the study: a function of a tidy table (`tables`, results/*.csv), so that it can be redrawn from a CSV.

A title is the finding, computed from the data. Colours are safe for the colour-blind and never alone: markers, dashes,
hatches say the same in grey. A table with no rows draws a sentence that says why.
"""

import matplotlib.pyplot as plt

from . import question, speech  # noqa: F401, known to `answers` and `listen` from here on
from .answers import answers
from .blocks import pattern_curves
from .costs import cost_front
from .gates import constant_values, gate_map, gates_differ
from .kernels import ENGINE_STYLE, block_times, crossover, product_claim, rooflines, rounding_cost, steps_on_a_gpu
from .listen import listen
from .patterns import gate_patterns
from .pruning import score_histogram, score_histograms, threshold_curve
from .reading import gate_trace, word_page
from .study import beside_published, front, fronts, sizes
from .style import METHOD_STYLE, OPPONENTS, look, percent, size, times
from .tests import tests_front
from .training import training_curves
from .variational import kl_curves, noise_curves

__all__ = [
    "ENGINE_STYLE",
    "METHOD_STYLE",
    "OPPONENTS",
    "answers",
    "beside_published",
    "block_times",
    "constant_values",
    "cost_front",
    "crossover",
    "front",
    "fronts",
    "gate_map",
    "gate_patterns",
    "gate_trace",
    "gates_differ",
    "kl_curves",
    "listen",
    "look",
    "noise_curves",
    "pattern_curves",
    "percent",
    "plt",
    "product_claim",
    "rooflines",
    "rounding_cost",
    "size",
    "score_histogram",
    "score_histograms",
    "sizes",
    "steps_on_a_gpu",
    "threshold_curve",
    "tests_front",
    "times",
    "training_curves",
    "word_page",
]
