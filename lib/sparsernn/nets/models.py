"""The models of the study that read words: a classifier, two language models, the bag of words. Each declares its axes.

All are called alike: `logits, state = model(tokens, lengths=None, state=None)`.

tokens   int64 [T, B]                      lengths  int64 [B] or None (classifiers: padded on the left)
"""

import inspect

import torch
from torch import nn

from ..files import nearest
from .axes import Axis, Member, each, input_axis, recurrent_axes
from .layers import RECURRENT, Embedding, Linear, Recurrent

MODELS = {}  # name → class of every `Model`: what a file names
CELLS = {kind.__name__: kind for kind in RECURRENT.values()}  # LSTM, GRU, RNN


class Model(nn.Module):
    """What methods, counting and compaction read off a model.

    groups     which axis kinds take group variables: "voc", "wn" (neurons), "wgn" (gates too); for a model that says
               nothing, `GROUPS`
    arguments  name → value it was made with
    stack      name of its recurrent layers: `lstm`, `gru` or `rnn`
    """

    groups: dict[str, tuple[str, ...]] = {}
    stack = "lstm"

    def __init_subclass__(cls, **more):
        super().__init_subclass__(**more)
        MODELS[cls.__name__] = cls

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        if args or kwargs:  # a copy is made without
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = {}
            for name, value in list(bound.arguments.items())[1:]:
                whole = type(value) is int and type(bound.signature.parameters[name].default) is float
                arguments[name] = float(value) if whole else value
            object.__setattr__(self, "arguments", arguments)
        return self

    @property
    def recurrent(self):
        """Its recurrent layers, whatever their cell."""
        return self._modules[self.stack]

    def make_stack(self, cell, *sizes, **how):
        """Its recurrent layers, called by their cell's name. cell: "LSTM", "GRU" or "RNN"."""
        if cell not in CELLS:
            raise ValueError(nearest("cell", cell, CELLS))
        self.stack = cell.lower()
        self.add_module(self.stack, CELLS[cell](*sizes, **how))

    def axes(self):
        raise NotImplementedError

    def example(self, steps, batch):
        """Random input to time it with: token ids int64 [T, B], always the same. Raises NotImplementedError for a model that
        reads no words and does not say what else."""
        if "vocabulary" not in self.arguments:
            raise NotImplementedError(
                f"{type(self).__name__} has no vocabulary; say with `example(steps, batch)` what it reads"
            )
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.arguments["vocabulary"], (steps, batch), generator=generator)


GROUPS = {
    "voc": ("vocabulary",),
    "wn": ("vocabulary", "input", "hidden"),
    "wgn": ("vocabulary", "input", "hidden", "gates"),
}


def _start(layers, start_input, gain, forget_bias):
    """Initial weights gate by gate, as the code of 1812.05692 has them; the two bias vectors add up, so one starts at zero."""
    gates = layers.cell.gates
    for suffix in layers.suffixes():
        for block in getattr(layers, "weight_ih" + suffix).data.chunk(len(gates)):
            start_input(block)
        for block in getattr(layers, "weight_hh" + suffix).data.chunk(len(gates)):
            nn.init.orthogonal_(block, gain)
        nn.init.zeros_(getattr(layers, "bias_hh" + suffix))
        bias = nn.init.zeros_(getattr(layers, "bias_ih" + suffix)).data.chunk(len(gates))
        if "f" in gates:
            bias[gates.index("f")].fill_(forget_bias)


def _vocabulary_axis(size, tensor, dim, scale, variable_decides, tied=False):
    members = (Member(tensor, dim, each(size), "in", tied), Member(scale, 1, each(size), "scale"))
    return Axis("vocabulary", "vocabulary", size, members, variable_decides=variable_decides)


def _input_axis(size, stack, layers, tied=False):
    writer = Member("embedding.weight", 1, each(size), "out", tied)
    return input_axis(stack, layers, size, (writer,), ("out", "in"))


class Classifier(Model):
    """Embedding, LSTM, its last output, a linear layer (1812.05692, classification; hard-sigmoid gates).

    logits [B, classes]; sequences are padded on the left.

    activation   of the gates, "hard" or "logistic"; an RNN has none and is a tanh
    forget_bias  of an LSTM's forget gates at the start          cell  "LSTM", "GRU" or "RNN"
    """

    groups = GROUPS

    def __init__(
        self, vocabulary, classes, embedding, hidden, layers=1, activation="hard", forget_bias=1.0, cell="LSTM"
    ):
        super().__init__()
        if activation not in Recurrent.activations:
            raise ValueError(nearest("activation", activation, Recurrent.activations))
        self.embedding = Embedding(vocabulary, embedding)
        gated = {} if cell == "RNN" else {"activation": activation}
        self.make_stack(cell, embedding, hidden, layers, **gated)
        self.head = Linear(hidden, classes)
        self.head.local_noise = True
        nn.init.normal_(self.embedding.weight, std=0.1)
        _start(self.recurrent, nn.init.xavier_uniform_, gain=1.1, forget_bias=forget_bias)
        nn.init.xavier_uniform_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        words = _vocabulary_axis(self.embedding.num_embeddings, "embedding.weight", 0, "embedding.input", True)
        inputs = _input_axis(self.embedding.embedding_dim, self.stack, self.recurrent)
        return [words, inputs, *recurrent_axes(self.stack, self.recurrent, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.recurrent(self.embedding(tokens), state, lengths=lengths, padding="left")
        return self.head(y[-1]), state


class LanguageModel(Model):
    """One-hot input, LSTM, a linear layer over the vocabulary at every step (1812.05692, language models).

    logits [T, B, V]. `word_noise=True` draws the head's weights instead of its output, as the authors' word model does.

    forget_bias  of an LSTM's forget gates at the start          cell  "LSTM", "GRU" or "RNN"
    """

    groups = {"voc": ("vocabulary",), "wn": ("hidden",), "wgn": ("hidden", "gates")}

    def __init__(self, vocabulary, hidden, layers=1, forget_bias=0.0, word_noise=False, cell="LSTM"):
        super().__init__()
        self.make_stack(cell, vocabulary, hidden, layers)
        self.head = Linear(hidden, vocabulary)
        self.head.local_noise = not word_noise
        _start(self.recurrent, nn.init.orthogonal_, gain=1.0, forget_bias=forget_bias)
        nn.init.orthogonal_(self.head.weight), nn.init.zeros_(self.head.bias)

    def axes(self):
        size, columns, scale = self.recurrent.input_size, f"{self.stack}.weight_ih_l0", f"{self.stack}.input_l0"
        words = _vocabulary_axis(size, columns, 1, scale, False)
        return [words, *recurrent_axes(self.stack, self.recurrent, ["head.weight"])]

    def forward(self, tokens, lengths=None, state=None):
        y, state = self.recurrent(tokens, state, lengths=lengths)
        return self.head(y), state


class StackedLanguageModel(Model):
    """Embedding, a stack of recurrent layers, a linear layer over the vocabulary at every step (1409.2329, 1908.07724).

    logits [T, B, V]

    cell     "LSTM", "GRU" or "RNN"
    tied     the linear layer's weights are the embedding's (1608.05859), which is then as wide as a layer
    uniform  every parameter starts from U(−uniform, uniform); 0: as in torch's layers, the embedding from N(0, 1)
    dropout_input, dropout_between, dropout_output
             share of numbers dropped in training, anew at every step: of those the embedding says, of those that a layer
             hands to the next, of those that the linear layer reads
    """

    groups = {"voc": ("vocabulary",), "wn": ("input", "hidden"), "wgn": ("input", "hidden", "gates")}

    def __init__(
        self, vocabulary, embedding, hidden, layers, cell="LSTM", tied=False, uniform=0.0, dropout_input=0.0,
        dropout_between=0.0, dropout_output=0.0,
    ):  # fmt: skip
        super().__init__()
        if tied and embedding != hidden:
            raise ValueError(f"tied: the embedding is as wide as a layer; embedding is {embedding}, hidden {hidden}")
        if layers == 1 and dropout_between:
            raise ValueError(f"dropout_between is {dropout_between}, but one layer has nothing between; set it to 0")
        self.embedding = Embedding(vocabulary, embedding)
        self.dropout_input = nn.Dropout(dropout_input)
        self.make_stack(cell, embedding, hidden, layers, dropout=dropout_between)
        self.dropout_output = nn.Dropout(dropout_output)
        self.head = Linear(hidden, vocabulary)
        if tied:
            self.head.weight = self.embedding.weight
        for parameter in self.parameters() if uniform else ():
            nn.init.uniform_(parameter, -uniform, uniform)

    def axes(self):
        tied = self.head.weight is self.embedding.weight  # then it goes by the embedding's name
        words = _vocabulary_axis(self.embedding.num_embeddings, "embedding.weight", 0, "embedding.input", True, tied)
        inputs = _input_axis(self.embedding.embedding_dim, self.stack, self.recurrent, tied)
        reader = "embedding.weight" if tied else "head.weight"
        return [words, inputs, *recurrent_axes(self.stack, self.recurrent, [reader], tied=tied)]

    def forward(self, tokens, lengths=None, state=None):
        x = self.dropout_input(self.embedding(tokens))
        y, state = self.recurrent(x, state, lengths=lengths)
        return self.head(self.dropout_output(y)), state


class BagOfWords(Model):
    """The honest opponent's model: log(1 + count) of each word, a weight per word and class. logits [B, classes]."""

    def __init__(self, vocabulary, classes):
        super().__init__()
        self.head = Linear(vocabulary, classes)

    def axes(self):
        return [_vocabulary_axis(self.head.in_features, "head.weight", 1, "head.input", False)]

    def forward(self, tokens, lengths=None, state=None):
        Recurrent.padded(tokens, lengths, "left")  # refuses lengths that are none
        counts = self.head.weight.new_zeros(tokens.shape[1], self.head.in_features)
        counts.scatter_add_(1, tokens.t(), counts.new_ones(()).expand(tokens.t().shape))
        return self.head(counts.log1p()), None
