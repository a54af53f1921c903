"""What a small network reads, and what its live gates do while it reads: tidy tables for `plots` and CSVs."""

import numpy as np
import pandas as pd
import torch

from .masks import close, effective, gate_states


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
    if not task.classes or len(task.classes) != 2 or "embedding.weight" not in small.tensors():
        return pd.DataFrame(columns=columns)
    kept = small.tensor("kept.vocabulary")
    logits, _ = small(kept[None], torch.ones(len(kept), dtype=torch.int64))
    effect = (logits[:, 1] - logits[:, 0]) - (logits[:, 1] - logits[:, 0]).mean()
    odds = document_log_odds(task)[kept.numpy()]
    values = small.tensor("embedding.weight")
    rows = [
        (task.vocabulary[word], int(dimension), value, effect[row].item(), odds[row])
        for row, word in enumerate(kept.tolist())
        for dimension, value in zip(small.tensor("kept.input").tolist(), values[row].tolist(), strict=True)
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
    output, as another gate. Of more than `most` lines, which `of` counts, those are kept that move most.
    """
    columns = ["step", "word", "neuron", "gate", "value", "of"]
    layer, masks = getattr(run.model, "lstm", None), run.method.masks()
    if layer is None:
        return pd.DataFrame(columns=columns)
    weights, scales = effective(run.model, masks, run.method.means())
    names = {name: weights.get("lstm." + name, p) for name, p in layer.named_parameters()}
    given = [names[kind + "_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w_input, w_state, bias, gates = layer.cell.arrange(*given, scales.get("lstm.gates_l0"))
    words = tokens[:, None]
    if hasattr(run.model, "embedding"):
        x = torch.nn.functional.embedding(words, weights["embedding.weight"])
        voc = scales.get("embedding.input")
        x = x if voc is None else x * voc[0][words][:, :, None]
        products = (x * scales.get("lstm.input_l0", 1)) @ w_input.t()
    else:
        voc = scales.get("lstm.input_l0")
        products = torch.nn.functional.embedding(words, w_input.t())
        products = products if voc is None else products * voc[0][words][:, :, None]
    letters, states = gate_states(close(masks))["hidden_l0"]
    live = [(g, n) for g, line in enumerate(states) for n, state in enumerate(line) if state == "live"]
    block_of = {gate: layer.cell.gate_of_block.index(gate) for gate in range(len(letters))}
    state = [w_state.new_zeros(1, layer.hidden_size) for _ in range(layer.cell.n_states)]
    recurrent, output, rows = scales.get("lstm.recurrent_l0", 1), scales.get("lstm.output_l0", torch.ones(1, 1)), []
    for step, product in enumerate(products):
        values = product + (state[0] * recurrent) @ w_state.t()
        values = (values if gates is None else values * gates) + bias
        (slices,) = layer.cell.slices(values[None])
        layer.cell.activate(slices)
        new = [torch.empty_like(s) for s in state]
        layer.cell.advance(slices, state, new)
        state, word = new, run.task.vocabulary[tokens[step]]
        by_block = values.view(-1, layer.hidden_size)
        rows += [(step, word, n, letters[g], by_block[block_of[g], n].item()) for g, n in live]
        shown = (state[0] * output)[0]
        rows += [(step, word, n, "h", shown[n].item()) for n in sorted({n for _, n in live})]
    table = pd.DataFrame(rows, columns=columns[:-1])
    moves = table.groupby(["gate", "neuron"])["value"].std().fillna(0)  # one step: nothing moves
    kept = moves.nlargest(most).rename("moves").reset_index()[["gate", "neuron"]]
    return table.merge(kept, on=["gate", "neuron"]).assign(of=len(moves))


def first_text(task, steps=40):
    """The first `steps` symbols of the validation split (of its first document), int64 [T]: what a trace is shown on."""
    data = task.splits["valid"]
    length = min(steps, int(data["lengths"][0])) if task.classes else steps
    return torch.as_tensor(data["ids"][:length].astype(np.int64))
