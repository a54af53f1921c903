"""How good a network is, masked or compact: a task's metric over a split, and the proof that the two are one."""

import copy

import torch

from ..files import error
from ..nets.compact import compact
from ..nets.masked import masked

EVALUATION_BATCH = 256  # sequences; where a state is carried the batch is the number of streams, and stays


def predictor(model, masks, means):
    """The model under masks, in evaluation, called as `evaluate` calls it; it runs where the model is."""
    return masked(model, masks, means)


def evaluate(predict, task, split, plan, device="cpu"):
    """The task's metric of a predictor `(*inputs, lengths=, state=) → logits, state` over a split."""
    return task.metric_of(*_added_up(task.score, predictions(predict, task, split, plan, device)))


def more_scores(predict, task, plan):
    """What the task measures on the test split beside its metric: name → mean."""
    found = {}
    for name, score in task.more_scores.items():
        total, count = _added_up(score, predictions(predict, task, "test", plan))
        found[name] = total / count
    return found


def _added_up(score, predictions):
    """(total, count) of a score, added up over [(batch, logits)]."""
    total = count = 0
    for batch, logits in predictions:
        part, number = score(logits, batch)
        total, count = total + part, count + number
    return total, count


@torch.no_grad()
def predictions(predict, task, split, plan, device="cpu", dtype=None):
    """[(batch, logits)] over a split in evaluation order, the state carried where the task carries it; on a device, the floats
    that are read as `dtype`."""
    state, batch_size = None, plan.batch_size if plan.steps else max(plan.batch_size, EVALUATION_BATCH)
    for batch in task.batches(split, batch_size, plan.steps or None):
        batch = batch.to(device, dtype)
        logits, state = predict(*batch.inputs, lengths=batch.lengths, state=state if batch.carry else None)
        yield batch, logits


def mistakes(predict, task, plan):
    """`<split>.errors`, `.of` and `.groups` → [N], for the test splits of a task that counts item by item: how much of an item
    is wrong (of a language model: the bits that a piece of text costs), of how much, and what it shares data with (left out
    where each stands alone)."""
    found = {}
    for split in ("test", *task.more_tests):
        if (counts := task.by_item(predictions(predict, task, split, plan))) is None:
            return {}
        found |= dict(zip((f"{split}.errors", f"{split}.of"), counts, strict=True))
        if (groups := task.groups(split)) is not None:
            found[f"{split}.groups"] = groups
    return found


def example_of(task, plan, dtype=None):
    """What the model is called with, for one that does not declare who reads whom: a batch of training."""
    batch = next(iter(task.batches("train", plan.batch_size, plan.steps or None))).to("cpu", dtype)
    return (*batch.inputs, *(() if batch.lengths is None else (batch.lengths,)))


def compact_error(model, masks, means, task, plan):
    """Largest relative difference of logits, compact against masked, float64, whole test set."""
    double, example = copy.deepcopy(model).double(), example_of(task, plan, torch.float64)
    means = {name: mean.double() for name, mean in means.items()}
    both = predictor(double, masks, means), compact(double, masks, means, example)
    pairs = zip(*(predictions(predict, task, "test", plan, dtype=torch.float64) for predict in both), strict=True)
    return max(error(small, reference) for (_, reference), (_, small) in pairs)
