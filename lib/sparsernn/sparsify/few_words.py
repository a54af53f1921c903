"""Few words: a dense net that reads the most frequent symbols alone, from the first step on.

Of a classifier of reviews nine in ten weights are vectors of words. Whoever sparsifies it is asked first what a net does that
is small from the start, and that net's vocabulary is small too: symbols beyond it count for nothing.
"""

from dataclasses import dataclass

import torch

from .masking import Masked
from .options import Options, option


@dataclass(frozen=True)
class FewWordsOptions(Options):
    """Of a small vocabulary."""

    words: int = option(
        1000,
        "symbols that are read, reserved ones among them, those of the lowest ids: a task's ids go by frequency",
        least=1,
    )


class FewWords(Masked):
    """Masks that are there before the first step, over what each symbol is read by; everything else is dense."""

    Options = FewWordsOptions

    def prepare(self):
        super().prepare()
        places = [(axis, member) for axis in self.axes if axis.kind == "vocabulary" for member in axis.having("in")]
        places = [(axis, member) for axis, member in places if member.tensor in self.weights]
        if not places:
            raise ValueError(
                "few-words needs a layer that reads ids of symbols, an embedding or one-hot; there is none"
            )
        for axis, member in places:
            if self.options.words >= axis.size:
                raise ValueError(
                    f"words is {self.options.words}; it must be below the {axis.size} symbols that there are"
                )
            if member.tied:
                raise ValueError(
                    f"{member.tensor} is the output's too, which needs every word; few-words takes what is not tied"
                )
            weight, read = self.weights[member.tensor], torch.arange(axis.size) < self.options.words
            lines = member.along(read, weight.theta.shape[member.dim], rest=True).to(weight.theta.device)
            self.narrow(weight, lines.unsqueeze(1 - member.dim).expand_as(weight.mask))
        self.apply()

    def says(self):
        return f"{self.options.words} words"
