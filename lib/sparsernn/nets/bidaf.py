"""Bidirectional attention flow (1611.01603): two pointers into a paragraph, where the answer to a question begins and ends.

Words and their letters → h, u by one LSTM for paragraph and question → each word of the paragraph looks at the question, and
the question at it: [h; ũ; h∘ũ; h∘h̃] → two LSTM layers → start → another one → end; all LSTMs in both directions. It is the
net that 1709.05027 and 1906.06847 make smaller: six times 100 neurons behind the attention, of which each is read at several
places of a concatenation, and as a factor of products: 4800, 4001 and 6401 weights hang on one (the code of 1709.05027 leaves
out 800 of 4001). Ours may lose neurons of the first LSTM as well.
"""

from dataclasses import replace

import torch
from torch import nn

from .axes import Axis, Member, each, recurrent_axes
from .layers import LSTM, Embedding, Linear
from .models import GROUPS, Model

FILTER = 5  # letters that a filter sees
PER_QUESTION = 12  # words that a paragraph has for one of its question, in the mean of SQuAD


class Letters(nn.Module):
    """The letters of a word, whatever its length, as one vector: the largest answer of each filter (1408.5882).

    ids int64 [T, B, C], 0 where there is no letter → [T, B, filters]; no letters at all: zeros
    """

    def __init__(self, letters, size, filters):
        super().__init__()
        self.embedding = Embedding(letters, size)
        self.filters = nn.Conv1d(size, filters, FILTER, padding=FILTER // 2)

    def forward(self, ids):
        there = ids > 0
        x = (self.embedding(ids) * there.unsqueeze(-1)).flatten(0, 1).mT  # [T·B, size, C]
        y = self.filters(x).relu().masked_fill(~there.flatten(0, 1).unsqueeze(1), 0)
        return y.amax(-1).unflatten(0, ids.shape[:2])


class Highway(nn.Module):
    """t ∘ relu(W x + b) + (1 − t) ∘ x with t = σ(W_t x + b_t) (1505.00387)."""

    def __init__(self, size):
        super().__init__()
        self.change, self.gate = Linear(size, size), Linear(size, size)

    def forward(self, x):
        return x + self.gate(x).sigmoid() * (self.change(x).relu() - x)


class BiDAF(Model):
    """logits [T, B, 2], of every word of the paragraph as the first and as the last of the answer; −inf at padding.

    forward(words, letters, question, question_letters, lengths, state=None) → logits, None

    words [T, B], letters [T, B, C], question [J, B], question_letters [J, B, C]   int64 ids, padded on the right
    lengths    int64 [B, 2], words of paragraph and question, at least one each; None: all of them
    letters    the number of different letters; 0 is none
    word_size, letter_size, filters   numbers a word's and a letter's vector has, and filters over letters
    dropout    share of numbers dropped, anew at every step, of the words' vectors, of what the attention and each LSTM behind
               it say
    """

    groups = GROUPS

    def __init__(
        self, vocabulary, letters=256, word_size=100, letter_size=8, filters=100, hidden=100, dropout=0.2
    ):  # fmt: skip
        super().__init__()
        width, both = word_size + filters, 2 * hidden
        self.embedding, self.letters = Embedding(vocabulary, word_size), Letters(letters, letter_size, filters)
        self.highway = nn.Sequential(Highway(width), Highway(width))
        self.contextual = LSTM(width, hidden, bidirectional=True)
        self.of_context, self.of_question = Linear(both, 1, bias=False), Linear(both, 1, bias=False)
        self.of_both = Linear(both, 1, bias=False)
        self.modelling = LSTM(4 * both, hidden, 2, dropout=dropout, bidirectional=True)
        self.start = Linear(5 * both, 1)
        self.output = LSTM(7 * both, hidden, bidirectional=True)
        self.end = Linear(5 * both, 1)
        self.dropout = nn.Dropout(dropout)
        for pointer in (self.of_context, self.of_question, self.of_both, self.start, self.end):
            nn.init.xavier_uniform_(pointer.weight)  # as large as the highways', with which methods compare their sizes
        nn.init.normal_(self.embedding.weight, std=0.5)  # about GloVe's: only equal words are alike from the start

    def axes(self):
        words, width = self.embedding.num_embeddings, self.contextual.input_size
        first, modelled, last = (_matrices(name) for name in ("contextual", "modelling", "output"))
        rows = Member("embedding.weight", 0, each(words), "in"), Member("embedding.input", 1, each(words), "scale")
        inputs = [Member(name, 1, each(width), "in") for name in first]
        inputs += [Member(name.replace("weight_ih", "input"), 1, each(width), "scale") for name in first]
        # the parts of what is read, each as wide as what an LSTM says: h, ũ, h∘ũ, h∘h̃, m or e, m̃ where it begins, m∘m̃
        answers = ["start.weight", "end.weight"]
        flow = [(name, *blocks) for name in (*modelled, *last, *answers) for blocks in (((0, 1), 1), ((2, 3), 2))]
        flow += [("of_context.weight", (0,), 1), ("of_question.weight", (0,), 1), ("of_both.weight", (0,), 2)]
        model = [(name, *blocks) for name in last for blocks in (((4, 5), 1), ((6,), 2))] + [("start.weight", (4,), 1)]
        return [
            Axis("vocabulary", "vocabulary", words, rows, variable_decides=True),
            Axis("input", "input", width, tuple(inputs)),
            *_stack("contextual", self.contextual, flow),
            *_stack("modelling", self.modelling, model),
            *_stack("output", self.output, [("end.weight", (4,), 1)]),
        ]

    def example(self, steps, batch):
        generator, letters = torch.Generator().manual_seed(0), self.letters.embedding.num_embeddings
        found = []
        for count in (steps, -(-steps // PER_QUESTION)):
            found.append(torch.randint(self.embedding.num_embeddings, (count, batch), generator=generator))
            found.append(torch.randint(1, letters, (count, batch, FILTER), generator=generator))
        return tuple(found)

    def forward(self, words, letters, question, question_letters, lengths=None, state=None):
        if lengths is None:
            lengths = words.new_tensor([len(words), len(question)]).expand(words.shape[1], 2)
        if lengths.shape != (words.shape[1], 2) or bool((lengths < 1).any()):
            raise ValueError(
                f"lengths has shape {tuple(lengths.shape)}, expected {(words.shape[1], 2)}: the words of each paragraph and "
                "of its question, at least one"
            )
        here, asked = lengths.unbind(1)
        h, u = self.read(words, letters, here), self.read(question, question_letters, asked)
        there = torch.arange(len(h), device=h.device)[:, None] < here  # [T, B]
        g = self.dropout(self.flow(h, u, there, torch.arange(len(u), device=h.device)[:, None] < asked))
        m = self.dropout(self.modelling(g, lengths=here)[0])
        start = self.start(torch.cat([g, m], 2))
        chance = start.squeeze(2).masked_fill(~there, -torch.inf).softmax(0)
        begun = (chance.unsqueeze(2) * m).sum(0, keepdim=True).expand_as(m)
        e = self.dropout(self.output(torch.cat([g, m, begun, m * begun], 2), lengths=here)[0])
        logits = torch.cat([start, self.end(torch.cat([g, e], 2))], 2)
        return logits.masked_fill(~there.unsqueeze(2), -torch.inf), None

    def read(self, words, letters, lengths):
        """What stands at each word, [T, B, 2·hidden]."""
        x = self.highway(torch.cat([self.embedding(words), self.letters(letters)], 2))
        return self.contextual(self.dropout(x), lengths=lengths)[0]

    def flow(self, h, u, there, asked):
        """[h; ũ; h∘ũ; h∘h̃], [T, B, 8·hidden], of a paragraph h and a question u; there, asked: where they have words."""
        alike = torch.stack([self.of_both(h * word).squeeze(2) for word in u], 1)  # [T, J, B]; all at once is too large
        alike = alike + self.of_context(h).mT + self.of_question(u).squeeze(2)
        alike = alike.masked_fill(~asked, -torch.inf)
        looked = torch.einsum("tjb,jbn->tbn", alike.softmax(1), u)
        chance = alike.amax(1).masked_fill(~there, -torch.inf).softmax(0)
        marked = (chance.unsqueeze(2) * h).sum(0)
        return torch.cat([h, looked, h * looked, h * marked], 2)


def _matrices(name):
    """What a bidirectional layer reads with, direction by direction."""
    return [f"{name}.weight_ih_l0{end}" for end in ("", "_reverse")]


def _stack(name, layers, readers):
    """The axes of a bidirectional stack. readers: (tensor, which parts of what it reads are our output, degree), where the
    parts of a concatenation are each as wide as our output."""
    width, last = 2 * layers.hidden_size, f"hidden_l{layers.num_layers - 1}"
    for axis in recurrent_axes(name, layers, [], prefix=f"{name}."):
        if axis.name.removesuffix("_reverse").endswith(last):
            neurons = each(axis.size) + axis.size * axis.name.endswith("_reverse")
            read = (Member(t, 1, neurons + width * torch.tensor(parts), "in", degree=k) for t, parts, k in readers)
            axis = replace(axis, members=(*axis.members, *read))
        yield axis
