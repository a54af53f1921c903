"""A chain of layers by one call of the C engine."""

import numpy as np
import torch

from . import build
from .build import NO_SUCH_WORD, done


class Pointers:
    """struct chain of format.h: `address`. It holds on to what it points to; a copy is the same one."""

    def __init__(self, last, width, words, places, layers, head):
        self.made_of = last, width, words, places, layers, head
        pairs = [at for layer, where in zip(layers, places, strict=True) for at in (layer.address, where.ctypes.data)]
        known = (0, 0) if words is None else (len(words), words.ctypes.data)
        self.raw = np.array([len(layers), last, known[0], width, known[1], head.address, *pairs], np.int64)
        self.address = self.raw.ctypes.data

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return Pointers, self.made_of


class Whole:
    """A `Chain` in C, its products of the kind that an engine's class has: `whole(x)` with ids [T, B] int64 or numbers
    [T, B, I] float32, at least one, contiguous.

    width      of the final states, 0 for none
    states     whether they are asked for; else they are NaN
    saturated  how many numbers int8 has cut off so far
    Raises Unsupported for a layer that the engine does not run.
    """

    def __init__(self, chain, kind, width, states=True):
        first, *above = chain.levels
        first = first if chain.embedding is None else first.reading(chain.embedding)
        self.levels = [kind(level) for level in (first, *above)]
        self.head = kind.linear(chain.weight, chain.bias, reach=chain.reach)
        self.path, self.pointers = kind.path, None
        self.last, self.classes, self.width, self.saturated = chain.last, len(chain.bias), width, 0
        self.states, self.places = (self.levels[0].states if width else 0), chain.neurons
        self.nothing = None if states else [torch.empty(len(self.levels), 0, width)] * self.states
        self.words = None
        if chain.words is not None:
            self.words = torch.full((chain.words,), len(chain.kept)).index_copy(
                0, chain.kept, torch.arange(len(chain.kept))
            )

    def prepare(self, x):
        """Lay every layer down by running it once, on what is met first. Raises IndexError for a word that is not there."""
        if self.words is not None:
            x = self.words.index_select(0, x.flatten()).view(x.shape)
        of_words = x.dtype == torch.int64
        for level in self.levels:
            x = level(x)
        self.head(x)
        laid = [level.by_numbers for level in self.levels]
        laid[0] = self.levels[0].by_ids if of_words else laid[0]
        places = [where.numpy().astype(np.int32) for where in self.places]
        words = None if self.words is None else self.words.numpy()
        self.pointers = Pointers(int(self.last), self.width, words, places, laid, self.head.memory)

    def __call__(self, x):
        """→ [B, C] or, where it answers on every step, [T, B, C], and final states, each [levels, B, width]. Raises IndexError
        for a word that is not there."""
        if self.pointers is None:
            self.prepare(x)
        steps, batch = x.shape[:2]
        answer = torch.empty(batch, self.classes) if self.last else torch.empty(steps, batch, self.classes)
        if self.nothing is None:
            states = [torch.empty(len(self.levels), batch, self.width) for _ in range(self.states)]
            at = [*[state.data_ptr() for state in states], None, None]
        else:
            states, at = self.no_states(batch), (None, None)
        words = self.words is not None
        result = build.library(self.path).sparsernn_chain(
            self.pointers.address,
            None if words else x.data_ptr(),
            x.data_ptr() if words else None,
            answer.data_ptr(),
            at[0],
            at[1],
            steps,
            batch,
        )
        if result == NO_SUCH_WORD:
            raise IndexError(f"ids from {int(x.min())} to {int(x.max())}; there are {len(self.words)} words")
        if result:
            self.saturated += done(result, f"{batch} sequences of {steps} steps")
        return answer, states

    def no_states(self, batch):
        """NaN of the states' shape, made once for as many sequences."""
        if self.states and self.nothing[0].shape[1] != batch:
            self.nothing = [torch.full((len(self.levels), batch, self.width), torch.nan)] * self.states
        return self.nothing
