"""The models of the study: a classifier, a language model and the bag of words. Each declares its axes.

All are called alike: `logits, state = model(tokens, lengths=None, state=None)`.

tokens   int64 [T, B]                      lengths  int64 [B] or None (classifiers: padded on the left)
"""

import inspect

import torch
from torch import nn

from .axes import Axis, Member, each, recurrent_axes
from .layers import LSTM, Embedding, Linear

MODELS = {}  # name → class of every `Model`: what a file names


class Model(nn.Module):
    """What methods, counting and compaction read off a model.

    groups     which axis kinds take group variables: "voc", "wn" (neurons), "wgn" (gates too); for a model that says
               nothing, `GROUPS`
    arguments  name → value it was made with
    """

    groups: dict[str, tuple[str, ...]] = {}

    def __init_subclass__(cls, **more):
        super().__init_subclass__(**more)
        MODELS[cls.__name__] = cls

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        if args or kwargs:  # a copy is made without
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            object.__setattr__(self, "arguments", dict(list(bound.arguments.items())[1:]))
        return self

    def axes(self):
        raise NotImplementedError

    def example(self, steps, batch):
        """Random input to time it with: token ids int64 [T, B], always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.arguments["vocabulary"], (steps, batch), generator=generator)


GROUPS = {
    "voc": ("vocabulary",),
    "wn": ("vocabulary", "input", "hidden"),
    "wgn": ("vocabulary", "input", "hidden", "gates"),
}


def _start(lstm, start_input, gain, forget_bias):
    """Initial weights gate by gate, as the code of 1812.05692 has them; the two bias vectors add up, so one starts at zero."""
    gates = len(lstm.cell.gates)
    for suffix in lstm.suffixes():
        for block in getattr(lstm, "weight_ih" + suffix).data.chunk(gates):
            start_input(block)
        for block in getattr(lstm, "weight_hh" + suffix).data.chunk(gates):
            nn.init.orthogonal_(block, gain)
        nn.init.zeros_(getattr(lstm, "bias_hh" + suffix))
        nn.init.zeros_(getattr(lstm, "bias_ih" + suffix)).data.chunk(gates)[1].fill_(forget_bias)


def _vocabulary_axis(size, tensor, dim, scale, variable_decides):
    members = (Member(tensor, dim, each(size), "in"), Member(scale, 1, each(size), "scale"))
    return Axis("vocabulary", "vocabulary", size, members, variable_decides=variable_decides)


def _input_axis(size):
    writes, reads = Member("embedding.weight", 1, each(size), "out"), Member("lstm.weight_ih_l0", 1, each(size), "in")
    return Axis("input", "input", size, (writes, reads, Member("lstm.input_l0", 1, each(size), "scale")), ("out", "in"))


class Classifier(Model):
    """Embedding, LSTM, its last output, a linear layer (1812.05692, classification; hard-sigmoid gates).

    logits [B, classes]; sequences are padded on the left.
    """

    groups = GROUPS

    def __init__(self, vocabulary, classes, embedding, hidden, layers=1, activation="hard", forget_bias=1.0):
        super().__init__()
        self.embedding = Embedding(vocabulary, embedding)
        self.lstm = LSTM(embedding, hidden, layers, activation=activation)
        self.head = Linear(hidden, classes)
        self.head.local_noise = True
        nn.init.normal_(self.embedding.weight, std=0.1)
        _start(self.lstm, nn.init.xavier_uniform_, gain=1.1, forget_bias=forget_bias)
        nn.init.xavier_uniform_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        words = _vocabulary_axis(self.embedding.num_embeddings, "embedding.weight", 0, "embedding.input", True)
        inputs = _input_axis(self.embedding.embedding_dim)
        return [words, inputs, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.lstm(self.embedding(tokens), state, lengths=lengths, padding="left")
        return self.head(y[-1]), state


class LanguageModel(Model):
    """One-hot input, LSTM, a linear layer over the vocabulary at every step (1812.05692, language models).

    logits [T, B, V]. `word_noise=True` draws the head's weights instead of its output, as the authors' word model does.
    """

    groups = {"voc": ("vocabulary",), "wn": ("hidden",), "wgn": ("hidden", "gates")}

    def __init__(self, vocabulary, hidden, layers=1, forget_bias=0.0, word_noise=False):
        super().__init__()
        self.lstm = LSTM(vocabulary, hidden, layers)
        self.head = Linear(hidden, vocabulary)
        self.head.local_noise = not word_noise
        _start(self.lstm, nn.init.orthogonal_, gain=1.0, forget_bias=forget_bias)
        nn.init.orthogonal_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        words = _vocabulary_axis(self.lstm.input_size, "lstm.weight_ih_l0", 1, "lstm.input_l0", False)
        return [words, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.lstm(tokens, state, lengths=lengths)
        return self.head(y), state


class BagOfWords(Model):
    """The honest opponent's model: log(1 + count) of each word, a weight per word and class. logits [B, classes]."""

    def __init__(self, vocabulary, classes):
        super().__init__()
        self.head = Linear(vocabulary, classes)

    def axes(self):
        return [_vocabulary_axis(self.head.in_features, "head.weight", 1, "head.input", False)]

    def forward(self, tokens, lengths=None, state=None):
        LSTM.padded(tokens, lengths, "left")  # refuses lengths that are none
        counts = self.head.weight.new_zeros(tokens.shape[1], self.head.in_features)
        counts.scatter_add_(1, tokens.t(), counts.new_ones(()).expand(tokens.t().shape))
        return self.head(counts.log1p()), None
