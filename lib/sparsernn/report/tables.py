"""Tidy tables of a run, one row a thing: what the figures of `plots` are drawn from, and what CSVs can keep.

A table of what a method or model does not have (log α, gates) is empty, with its columns: the figures then say so.
"""

import numpy as np
import pandas as pd
import torch

from ..engines.models import layers_of
from ..files import replacing
from ..nets.file import size_floor
from ..nets.masked import masked
from ..nets.masks import CONSTANT, REMOVED, closed_count, gate_states, paper_count
from ..nets.norms import without_norms
from ..records import joined


def metrics_table(*runs):
    """`tidy_metrics` of one or several runs, one under the other."""
    return pd.concat([tidy_metrics(run.metrics, run.record) for run in runs], ignore_index=True)


def tidy_metrics(metrics, record):
    """A run's metrics.csv with what its record knows: + model, method, variant, seed, metric, compression, chosen (the epoch that
    became the model), gates_live of all layers together. Not every method has train_loss, penalty, gates_live, or a path of C."""
    table = metrics.assign(**{name: record[name] for name in ("model", "method", "variant", "seed", "metric")})
    table["chosen"] = table["epoch"] == record["epoch_selected"]
    table["compression"] = record["weights_total"] / table["weights_kept"].where(table["weights_kept"] > 0)
    if "gates_live" in table:
        layers = table["gates_live"].astype(str).fillna("nan").replace("", "nan").str.split("-")
        table["gates_live"] = [sum(map(float, parts)) for parts in layers]  # a missing one stays missing
    return table


def threshold_table(run):
    """`run.threshold_curve` over the cuts that suit the method's scores, its own among them: + reading (the scores' name),
    keeps_below, metric, chosen. Validation only."""
    if (reading := run.study.method.reading) is None:
        columns = ["threshold", "valid", "compression", "weights_kept", "gates_live"]
        return pd.DataFrame(columns=[*columns, "reading", "keeps_below", "metric", "chosen"])
    own = _cut(run.study.method)
    table = run.threshold_curve(sorted({*map(float, reading.cuts), own}))
    how = {"reading": reading.name, "keeps_below": reading.keeps_below, "metric": run.record["metric"]}
    return table.assign(**how, chosen=table["threshold"] == own)


def _cut(method):
    """A method's threshold, or the end of the range that its scores are shown in."""
    return min(max(method.threshold, method.reading.low), method.reading.high)


def score_table(run):
    """Counts of what decides who stays (log α, log10 |w|, a gate): tensor, low, high, count, kept, reading (its name).

    Bins [low, high), an edge at the threshold. Every bin of the range has its row, empty ones too, so the threshold can be
    read off: where `kept` changes. What lies outside the range is in the outermost bin of its side.
    """
    method, columns, rows = run.study.method, ["tensor", "low", "high", "count", "kept", "reading"], []
    if (reading := method.reading) is None:
        return pd.DataFrame(columns=columns)
    cut, width = _cut(method), reading.bin
    first, last = min(-1, int((reading.low - cut) // width)), max(0, int((reading.high - cut) // width))
    for name, values in run.study.scores().items():
        number = ((values.double() - cut) / width).floor().flatten().clamp(first, last)
        kept = method.keeps(values).flatten()  # as the method decides; a rounded quotient must not move a weight
        above = ~kept if reading.keeps_below else kept
        number = torch.where(above, number.clamp(min=0), number.clamp(max=-1)).long()
        counts = torch.bincount(number - first, minlength=last - first + 1).tolist()
        for k, count in enumerate(counts, first):
            low, high = round(cut + width * k, 9), round(cut + width * (k + 1), 9)
            side = (k < 0) == reading.keeps_below
            rows.append((name, low, high, count, side, reading.name))
    return pd.DataFrame(rows, columns=columns)


def count_table(run):
    """What is kept, counted twice: part, total, paper_count (the authors' pass), closed (what is stored)."""
    masks = run.study.masks()
    paper, closed = paper_count(masks), closed_count(run.closed)
    sizes = {axis.name: axis.size for axis in masks.axes}

    def row(part, *counts):
        shown = [joined(count) if isinstance(count, list) else str(count) for count in counts]
        return dict(zip(("part", "total", "paper_count", "closed"), (part, *shown), strict=True))

    rows = [row("weights", run.record["weights_total"], paper.weights_kept, closed.weights_kept)]
    for part in ("vocabulary", "input"):
        if part in sizes:
            rows.append(row(part, sizes[part], getattr(paper, part + "_kept"), getattr(closed, part + "_kept")))
    if paper.hidden_kept:
        hidden = [axis.size for axis in masks.of_kind("hidden")]
        rows.append(row("hidden neurons", hidden, paper.hidden_kept, closed.hidden_kept))
        rows.append(row("live gates", paper.gates_total, paper.gates_live, closed.gates_live))
    return pd.DataFrame(rows)


def sizes_table(run):
    """Bytes on disk: file (dense, compact, floor), bytes. The floor: 6 B a stored weight, 4 B a bias."""
    record = run.record
    sizes = {"dense": record["size_bytes_dense"], "compact": record["size_bytes"], "floor": size_floor(run.compact)}
    return pd.DataFrame({"file": sizes.keys(), "bytes": sizes.values()})


def gate_table(run):
    """Every gate of every neuron, after closure: layer, gate, neuron, state (live | constant | removed), value, bias.

    value  what a constant gate always says, as the compact file has it (NaN: not constant)
    bias   b_ih + b_hh of the trained model, and what a norm of the input adds: a constant gate is the squashed bias (a
           GRU's n has r between the two)
    """
    rows, axes = [], {axis.name: axis for axis in run.closed.of_kind("gates")}
    for name, (letters, states) in gate_states(run.closed).items():
        stack, _, scale = axes[name].having("scale")[0].tensor.rpartition(".")
        suffix, layers = scale.removeprefix("gates"), run.model.get_submodule(stack)
        says = constants(layers_of(run.compact.get_submodule(stack))[suffix].parts)
        trained = without_norms(layers)
        biases = (trained["bias_ih" + suffix] + trained["bias_hh" + suffix]).view(len(letters), -1)
        for gate, line, bias in zip(letters, states, biases.tolist(), strict=True):
            kept = iter(says[letters.index(gate)])
            for neuron, state in enumerate(line):
                value = next(kept) if state != REMOVED else float("nan")
                value = value if state == CONSTANT else float("nan")
                rows.append((name.replace("gates_", ""), gate, neuron, state, value, bias[neuron]))
    return pd.DataFrame(rows, columns=["layer", "gate", "neuron", "state", "value", "bias"])


def constants(parts):
    """[G][kept neurons]: what a gate that no weight reaches always says; NaN for the others."""
    says = parts["constant"].new_full(parts["live"].shape, float("nan"))
    says[~parts["live"].bool()] = parts["constant"]
    return says.tolist()


def gate_count_table(gates):
    """Gates per layer, type and state: layer, gate, live, constant, removed, and the range of the constant values."""
    columns = ["layer", "gate", "live", "constant", "removed", "lowest", "highest"]
    rows = []
    for (layer, gate), part in gates.groupby(["layer", "gate"], sort=False):
        counts = {state: int((part["state"] == state).sum()) for state in columns[2:5]}
        values = part["value"].astype(float)
        rows.append({"layer": layer, "gate": gate, **counts, "lowest": values.min(), "highest": values.max()})
    return pd.DataFrame(rows, columns=columns)


def neuron_table(gates):
    """Kept hidden neurons per layer: layer, hidden, kept, all_constant (kept though no gate is live)."""
    rows = []
    for layer, part in gates.groupby("layer", sort=False):
        states = part.groupby("neuron")["state"]
        kept, constant = states.agg(lambda s: (s != REMOVED).all()), states.agg(lambda s: (s == CONSTANT).all())
        rows.append({"layer": layer, "hidden": len(kept), "kept": int(kept.sum()), "all_constant": int(constant.sum())})
    return pd.DataFrame(rows, columns=["layer", "hidden", "kept", "all_constant"])


@torch.no_grad()
def words_table(run):
    """The kept vocabulary, strongest first: word, says, lift.

    The compact model reads each word alone; `says` is the answer (a class, in a language model the next symbol) that
    rises most above its mean over all kept words, `lift` that rise in nats (`Task.speaks`).
    """
    task, kept = run.task, kept_lines(run, "vocabulary")
    if not len(kept):
        return pd.DataFrame(columns=["word", "says", "lift"])
    says, lift = task.speaks(run.compact, kept)
    answers = task.classes or task.vocabulary
    words = {"word": [task.vocabulary[i] for i in kept.tolist()], "says": [answers[i] for i in says.tolist()]}
    return pd.DataFrame(words | {"lift": lift.tolist()}).sort_values("lift", ascending=False, ignore_index=True)


def kept_lines(run, kind):
    """int64: the words ("vocabulary") or inputs ("input") that are left, of the first axis of that kind; none without one."""
    axes = run.closed.of_kind(kind)
    return run.closed.groups[axes[0].name].nonzero().flatten() if axes else torch.empty(0, dtype=torch.int64)


def spoken_for(words, n=8):
    """Per answer the `n` kept words that speak for it most: says, kept (how many), words."""

    def visible(word):
        return word if word.strip() else repr(word)

    rows = [
        {"says": visible(says), "kept": len(part), "words": " ".join(map(visible, part["word"].head(n)))}
        for says, part in words.groupby("says", sort=True)
    ]
    return pd.DataFrame(rows, columns=["says", "kept", "words"])


def save(run, **tables):
    """Write tables into the run's directory, `thresholds=table` as thresholds.csv; figures can be redrawn from them."""
    for name, table in tables.items():
        with replacing(run.directory / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


@torch.no_grad()
def word_numbers(run):
    """The kept words of a two-class task as the network has them: word, dimension, value, effect, log_odds.

    value     the word's number in an embedding dimension that is left; a row for each that is not zero
    effect    what the word, read alone, does to log p(second class) − log p(first), from the mean over kept words, nats
    log_odds  of the second class in the training data: log of its share of documents with the word against the other's
    Empty for a task with other than two classes, or a model without an embedding.
    """
    columns = ["word", "dimension", "value", "effect", "log_odds"]
    task, small = run.task, run.compact
    if not task.classes or len(task.classes) != 2 or not hasattr(small, "embedding"):
        return pd.DataFrame(columns=columns)
    kept = kept_lines(run, "vocabulary")
    logits, _ = small(kept[None], torch.ones(len(kept), dtype=torch.int64))
    effect = (logits[:, 1] - logits[:, 0]) - (logits[:, 1] - logits[:, 0]).mean()
    odds = document_log_odds(task)[kept.numpy()]
    values, inputs = small.embedding(kept), kept_lines(run, "input").tolist()
    inputs = inputs if len(inputs) == values.shape[1] else range(values.shape[1])
    rows = [
        (task.vocabulary[word], int(dimension), value, effect[row].item(), odds[row])
        for row, word in enumerate(kept.tolist())
        for dimension, value in zip(inputs, values[row].tolist(), strict=True)
        if value
    ]
    return pd.DataFrame(rows, columns=columns)


def document_log_odds(task):
    """float [V]: log of (documents of the second class with the word + 1) ÷ (the class's documents), less the first's."""
    data = task.splits["train"]
    document = np.repeat(np.arange(len(data["labels"])), data["lengths"])
    pairs = np.unique(np.stack([document, data["ids"].astype(np.int64)]), axis=1)
    shares = []
    for label in (0, 1):
        with_word = np.bincount(pairs[1][data["labels"][pairs[0]] == label], minlength=len(task.vocabulary))
        shares.append(np.log((with_word + 1) / (data["labels"] == label).sum()))
    return shares[1] - shares[0]


@torch.no_grad()
def gate_trace(run, tokens, most=36):
    """Live gates of the first layer while it reads `tokens` (int64 [T]): step, word, neuron, gate, value, of.

    By a loop over the masked network's steps; a gate that is not live is a constant and left out. `h` is the neuron's
    output, as another gate: of an RNN the only one. Of more than `most` lines, which `of` counts, those of each kind of gate
    are kept that move most. No tokens, no rows.
    """
    columns = ["step", "word", "neuron", "gate", "value", "of"]
    if not len(tokens) or not hasattr(run.model, getattr(run.model, "stack", "lstm")):
        return pd.DataFrame(columns=columns)
    network = masked(run.model, run.study.masks(), run.study.means())
    layer, words = getattr(network, getattr(network, "stack", "lstm")), tokens[:, None]
    given = [getattr(layer, kind + "_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    scale = {kind: layer.scale(kind + "_l0", 1) for kind in ("input", "recurrent", "output", "gates")}
    w_input, w_state, bias, gates = layer.cell.arrange(*given, scale["gates"])
    if hasattr(network, "embedding"):
        x = network.embedding(words)
        products = (x if scale["input"] is None else x * scale["input"]) @ w_input.t()
    else:
        products = torch.nn.functional.embedding(words, w_input.t())
        products = products if scale["input"] is None else products * scale["input"][0][words][:, :, None]
    letters, states = gate_states(run.closed)["gates_l0"]
    live = [(g, n) for g, line in enumerate(states) for n, state in enumerate(line) if state == "live"]
    block_of = {gate: layer.cell.gate_of_block.index(gate) for gate in range(len(letters))}
    state = [w_state.new_zeros(1, layer.hidden_size) for _ in range(layer.cell.n_states)]
    recurrent, output = (1 if scale[kind] is None else scale[kind] for kind in ("recurrent", "output"))
    rows = []
    for step, product in enumerate(products):
        values = product + (state[0] * recurrent) @ w_state.t()
        values = (values if gates is None else values * gates) + bias
        (slices,) = layer.cell.slices(values[None])
        layer.cell.activate(slices)
        new = [torch.empty_like(s) for s in state]
        layer.cell.advance(slices, state, new)
        state, word = new, run.task.vocabulary[tokens[step]]
        by_block = values.view(-1, layer.hidden_size)
        rows += [(step, word, n, letters[g], by_block[block_of[g], n].item()) for g, n in live if letters[g] != "h"]
        shown = (state[0] * output)[0]
        rows += [(step, word, n, "h", shown[n].item()) for n in sorted({n for _, n in live})]
    table = pd.DataFrame(rows, columns=columns[:-1])
    moves = table.groupby(["gate", "neuron"])["value"].std().fillna(0)  # one step: nothing moves
    each = len(moves) if len(moves) <= most else max(1, most // moves.index.get_level_values("gate").nunique())
    kept = (
        moves.sort_values(ascending=False, kind="stable").groupby("gate").head(each).reset_index()[["gate", "neuron"]]
    )
    return table.merge(kept, on=["gate", "neuron"]).assign(of=len(moves))


def first_text(task, steps=40):
    """The first `steps` symbols of the validation split (of its first document), int64 [T]: what a trace is shown on; empty
    where a task has no symbols."""
    if not task.vocabulary:
        return torch.empty(0, dtype=torch.int64)
    data = task.splits["valid"]
    length = min(steps, int(data["lengths"][0])) if task.classes else steps
    return torch.as_tensor(data["ids"][:length].astype(np.int64))
