"""A network so small that it can be read: its one neuron as formulas, its few neurons as a table, its verdict word by word.

All of it is read off a compact model (`sparsernn.load`), whatever method and task left it.
"""

import re

import pandas as pd
import torch

from ..engines.models import layers_of
from ..tasks.base import ClassificationTask
from .plots.gates import CANDIDATES
from .tables import constants
from .written import DASH

MOST = 40  # neurons in a table that is read


def _recurrent(small):
    """The one recurrent layer of a model, with its `Layer`; (None, None) where there are more, or none."""
    layer = getattr(small, getattr(small, "stack", "lstm"), None)
    found = {} if layer is None else layers_of(layer)
    return (layer, next(iter(found.values()))) if len(found) == 1 else (None, None)


def _gates(layer, kept):
    """Gate letters of a layer, and per gate its rows of weight_ih and weight_hh and its biases, for the kept neurons."""
    letters = layer.cell.gates
    shape = len(letters), -1, *layer.weight_ih_l0.shape[1:]
    w, u = layer.weight_ih_l0.detach().view(shape), layer.weight_hh_l0.detach().view(len(letters), kept, -1)
    bias = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().view(len(letters), -1)
    return letters, w, u, bias


def neuron_table(small, classes=()):
    """A row a kept neuron: neuron, a column a gate (the constant it says, or from how many inputs and neurons it hears), and
    for each class what the neuron adds to its logit at full output. Empty for a model with more than MOST neurons, with
    several layers, or without such layers or a linear head.

    classes: names; without them they are numbered.
    """
    layer, found = _recurrent(small)
    if layer is None or found.hidden > MOST or not hasattr(small, "head"):
        return pd.DataFrame(columns=["neuron"])
    numbers, says = _lines(layer, "kept_l0"), constants(found.parts)
    letters, w, u, _ = _gates(layer, layer.weight_hh_l0.shape[1])
    rows = []
    for k, number in enumerate(numbers):
        row = {"neuron": str(number)}
        for gate, letter in enumerate(letters):
            inputs, neurons = int((w[gate, k] != 0).sum()), int((u[gate, k] != 0).sum())
            constant = says[gate][k]
            said = f"{constant:.2f}".replace("-", "−")
            row[letter] = said if constant == constant else f"hears {inputs} + {neurons}"
        rows.append(row | _votes(small, k, layer, classes))
    return pd.DataFrame(rows)


def _lines(layer, name):
    """A list of kept lines of a small layer; all neurons where none went."""
    kept = getattr(getattr(layer, "_small", None), name, None)
    return list(range(layer.weight_hh_l0.shape[1])) if kept is None else kept.tolist()


def _votes(small, place, layer, classes):
    """Class → the head's weight of the kept neuron at this place, where it is read."""
    sends, weight = _lines(layer, "sends"), small.head.weight.detach()
    if place not in sends or weight.shape[1] != len(sends):
        return {}
    column = weight[:, sends.index(place)].tolist()
    names = classes if len(classes) == len(column) else [f"class {i}" for i in range(len(column))]
    return {
        name: f"{value:+.2f}".replace("-", "−") if value else DASH for name, value in zip(names, column, strict=True)
    }


def formula(small, classes=()):
    """The lines of a network with one neuron of an LSTM and one number a word: gates, state, output, log-odds of the second
    of two classes. An empty list where the network is larger or of another kind."""
    layer, found = _recurrent(small)
    if layer is None or found.hidden != 1 or layer.weight_ih_l0.shape[1] != 1 or "".join(layer.cell.gates) != "ifgo":
        return []
    if not hasattr(small, "embedding") or not hasattr(small, "head") or small.head.weight.shape != (2, 1):
        return []
    letters, w, u, bias = _gates(layer, 1)
    squash = "clip(0.2 a + 0.5, 0, 1) of a =" if layer.activation == "hard" else "σ of"
    lines = []
    for gate, (letter, (constant,)) in enumerate(zip(letters, constants(found.parts), strict=True)):
        heard = f"{w[gate, 0, 0]:.3f} e(word) {u[gate, 0, 0]:+.3f} h′ {bias[gate, 0]:+.3f}"
        if constant == constant:
            lines.append(f"{letter} = {constant:.3f}, a constant")
        else:
            lines.append(f"{letter} = tanh({heard})" if letter in CANDIDATES else f"{letter} = {squash} {heard}")
    names = classes if len(classes) == 2 else ("class 0", "class 1")
    head, start = small.head.weight.detach()[:, 0], small.head.bias.detach()
    lines += ["c = f c′ + i g", "h = o tanh(c)"]
    lines.append(f"log-odds of {names[1]} = {head[1] - head[0]:.3f} h {start[1] - start[0]:+.3f}, after the last word")
    return [re.sub(r"-(?=\d)", "−", line) for line in lines]


@torch.no_grad()
def verdict_table(small, task, texts=4, shortest=20):
    """What a classifier would answer after each word of a few whole texts of the validation split: text, label, step, word,
    answer, p (of the last class). One text of each label that it gets right, then those it gets wrong, `texts` in all, of
    the first hundred, the shortest of at least `shortest` words first. Empty where a text
    is not one sequence with one label.
    """
    columns = ["text", "label", "step", "word", "answer", "p"]
    if not isinstance(task, ClassificationTask):
        return pd.DataFrame(columns=columns)
    data, read = task.splits["valid"], {}
    ends = data["lengths"].cumsum()
    for number in sorted(range(min(100, len(ends))), key=lambda i: int(data["lengths"][i])):
        ids = torch.as_tensor(data["ids"][ends[number] - data["lengths"][number] : ends[number]].astype("int64"))
        if len(ids) >= shortest:
            read[number] = ids, _running(small, ids), int(data["labels"][number])
    right = {}
    for number, (_, p, label) in read.items():
        if int(p[-1].argmax()) == label:
            right.setdefault(label, number)
    wrong = [number for number, (_, p, label) in read.items() if int(p[-1].argmax()) != label]
    rows = []
    for number in [*right.values(), *wrong][:texts]:
        ids, p, label = read[number]
        for step, (word, chances) in enumerate(zip(ids.tolist(), p, strict=True)):
            answer = task.classes[int(chances.argmax())]
            rows.append(
                (number, task.classes[label], step, task.vocabulary[word], answer, round(float(chances[-1]), 4))
            )
    return pd.DataFrame(rows, columns=columns)


def _running(small, ids):
    """Probabilities of the classes after each word [T, classes]: every beginning of the text is read as a text of its own."""
    steps = len(ids)
    beginnings = torch.zeros(steps, steps, dtype=torch.int64)
    for end in range(1, steps + 1):
        beginnings[steps - end :, end - 1] = ids[:end]
    return small(beginnings, torch.arange(1, steps + 1))[0].softmax(1)
