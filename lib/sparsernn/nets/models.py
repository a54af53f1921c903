"""The models of the study: a classifier, a language model and the bag of words. Each declares its axes.

All are called alike: `logits, state = model(tokens, lengths=None, state=None, scales=None, noise=None)`.

tokens   int64 [T, B]                      lengths  int64 [B] or None (classifiers: padded on the left)
scales   `layer.scale` → [B|1, n]          noise    `layer` → (variance [out, in], ε [B, out]) for `Linear`
"""

import torch
from torch import nn
from torch.nn import functional as F

from .axes import Axis, Member, each, recurrent_axes
from .layers import LSTM, word_scale


class Linear(nn.Linear):
    """A linear layer that takes locally reparametrised noise: y = W x + b + ε √(σ² x² + 1e-8).

    The noise of the sum is drawn instead of the noise of each weight (Kingma et al. 2015; 1e-8 as 1812.05692's code).
    One ε [B, out] a sequence: over time it is shared, its standard deviation follows x.
    """

    def forward(self, x, noise=None):
        y = F.linear(x, self.weight, self.bias)
        if noise is None:
            return y
        variance, epsilon = noise
        return y + epsilon * torch.sqrt(F.linear(x * x, variance) + 1e-8)


class Embedding(nn.Embedding):
    """Rows by token id; a scale [B|1, V] multiplies the row of a word, the same wherever it stands in its sequence."""

    def forward(self, tokens, scale=None):
        x = F.embedding(tokens, self.weight)
        return x if scale is None else x * word_scale(tokens, scale)


def scales_of(scales, layer):
    """The scales of one layer, without its name: {"lstm.gates_l0": s} → {"gates_l0": s}."""
    return {name[len(layer) + 1 :]: s for name, s in (scales or {}).items() if name.startswith(layer + ".")}


class Model(nn.Module):
    """What methods, counting and compaction read off a model.

    groups       which axis kinds take group variables: "voc", "wn" (neurons), "wgn" (gates too)
    local_noise  linear layers whose noise is drawn on their output (1812.05692), not on their weights
    """

    groups: dict[str, tuple[str, ...]] = {}
    local_noise: tuple[str, ...] = ()

    def axes(self):
        raise NotImplementedError


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

    groups = {
        "voc": ("vocabulary",),
        "wn": ("vocabulary", "input", "hidden"),
        "wgn": ("vocabulary", "input", "hidden", "gates"),
    }
    local_noise = ("head",)

    def __init__(self, vocabulary, classes, embedding, hidden, layers=1, activation="hard", forget_bias=1.0):
        super().__init__()
        self.embedding = Embedding(vocabulary, embedding)
        self.lstm = LSTM(embedding, hidden, layers, activation=activation)
        self.head = Linear(hidden, classes)
        nn.init.normal_(self.embedding.weight, std=0.1)
        _start(self.lstm, nn.init.xavier_uniform_, gain=1.1, forget_bias=forget_bias)
        nn.init.xavier_uniform_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        words = _vocabulary_axis(self.embedding.num_embeddings, "embedding.weight", 0, "embedding.input", True)
        inputs = _input_axis(self.embedding.embedding_dim)
        return [words, inputs, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None, scales=None, noise=None):
        x = self.embedding(tokens, scales_of(scales, "embedding").get("input"))
        y, state = self.lstm(x, state, scales_of(scales, "lstm"), lengths, padding="left")
        return self.head(y[-1], (noise or {}).get("head")), state


class LanguageModel(Model):
    """One-hot input, LSTM, a linear layer over the vocabulary at every step (1812.05692, language models).

    logits [T, B, V]. `word_noise=True` draws the head's weights instead of its output, as the authors' word model does.
    """

    groups = {"voc": ("vocabulary",), "wn": ("hidden",), "wgn": ("hidden", "gates")}

    def __init__(self, vocabulary, hidden, layers=1, forget_bias=0.0, word_noise=False):
        super().__init__()
        self.lstm = LSTM(vocabulary, hidden, layers)
        self.head = Linear(hidden, vocabulary)
        self.local_noise = () if word_noise else ("head",)
        _start(self.lstm, nn.init.orthogonal_, gain=1.0, forget_bias=forget_bias)
        nn.init.orthogonal_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        words = _vocabulary_axis(self.lstm.input_size, "lstm.weight_ih_l0", 1, "lstm.input_l0", False)
        return [words, *recurrent_axes("lstm", self.lstm, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None, scales=None, noise=None):
        y, state = self.lstm(tokens, state, scales_of(scales, "lstm"), lengths)
        return self.head(y, (noise or {}).get("head")), state


class BagOfWords(Model):
    """The honest opponent's model: log(1 + count) of each word, a weight per word and class. logits [B, classes]."""

    def __init__(self, vocabulary, classes):
        super().__init__()
        self.head = Linear(vocabulary, classes)

    def axes(self):
        return [_vocabulary_axis(self.head.in_features, "head.weight", 1, "head.input", False)]

    def forward(self, tokens, lengths=None, state=None, scales=None, noise=None):
        counts = self.head.weight.new_zeros(tokens.shape[1], self.head.in_features)
        counts.scatter_add_(1, tokens.t(), counts.new_ones(()).expand(tokens.t().shape))
        x, scale = counts.log1p(), scales_of(scales, "head").get("input")
        return self.head(x if scale is None else x * scale), None
