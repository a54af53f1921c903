"""The honest opponent for classification: L1 logistic regression on the same tokens, refit on the words it keeps.

Counted by the same rule as the networks: non-zero weights against the dense network's. A sparse net that keeps more
than this, or says less, has not earned its gates.
"""

import torch

from ..masks import Masks, weight_matrices
from .base import Method


class L1Logistic(Method):
    """A path of L1 strengths; the one that is best on validation, refit on its own words with a light L2."""

    default_model = "bag-of-words"

    @torch.no_grad()
    def fit(self, task, plan):
        from ..tasks.linear import l1_path  # scikit-learn only where it is used

        path = l1_path(task)
        best = max(path, key=lambda point: point["valid"])
        coef, intercept = torch.as_tensor(best["coef"].toarray()), torch.as_tensor(best["intercept"])
        self.model.head.weight.copy_(coef)
        self.model.head.bias.copy_(intercept)
        columns = ("C", "weights_kept", "valid")
        return [
            {"epoch": number} | {name: point[name] for name in columns} | {"chosen": point is best}
            for number, point in enumerate(path, 1)
        ]

    def masks(self, threshold=None):
        weights = {name: (weight != 0).cpu() for name, weight in weight_matrices(self.model).items()}
        return Masks(tuple(self.model.axes()), weights, {})
