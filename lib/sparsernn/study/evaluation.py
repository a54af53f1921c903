"""How good a network is, masked or compact: a task's metric over a split, and the proof that the two are one."""

import copy
import itertools
from dataclasses import dataclass

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
    total = count = 0
    for batch, logits in predictions(predict, task, split, plan, device):
        part, number = task.score(logits, batch)
        total, count = total + part, count + number
    return task.metric_of(total, count)


@dataclass(frozen=True)
class Examined:
    """What a test split says of a network.

    metric    the task's
    more      name → mean of what the task measures beside it, on `test`
    counts    (how much of each item is wrong, of how much), [N] each (of a language model the bits that a piece of text costs);
              None where the task does not count item by item
    """

    metric: float
    more: dict
    counts: tuple | None


def examine(predict, task, plan):
    """Split → `Examined` of all test splits of a task, each read once."""
    return {split: _examined(predict, task, split, plan) for split in ("test", *task.more_tests)}


def _examined(predict, task, split, plan):
    more = task.more_scores if split == "test" else {}
    scores, totals = {"": task.score, **more}, {name: (0, 0) for name in ("", *more)}

    def added_up():
        for batch, logits in predictions(predict, task, split, plan):
            for name, score in scores.items():
                totals[name] = tuple(map(sum, zip(totals[name], score(logits, batch), strict=True)))
            yield batch, logits

    read = added_up()
    counts = task.by_item(read)
    for _ in read:  # what does not count item by item has not read on
        pass
    return Examined(task.metric_of(*totals.pop("")), {name: a / b for name, (a, b) in totals.items()}, counts)


def mistakes(examined, task):
    """`<split>.errors`, `.of` and `.groups` → [N], of what `examine` found: what an item shares data with is left out where each
    stands alone. Empty for a task that does not count item by item."""
    if any(one.counts is None for one in examined.values()):
        return {}
    found = {}
    for split, one in examined.items():
        found |= dict(zip((f"{split}.errors", f"{split}.of"), one.counts, strict=True))
        if (groups := task.groups(split)) is not None:
            found[f"{split}.groups"] = groups
    return found


@torch.no_grad()
def predictions(predict, task, split, plan, device="cpu", dtype=None):
    """[(batch, logits)] over a split in evaluation order, the state carried where the task carries it; on a device, the floats
    that are read as `dtype`."""
    state, batch_size = None, plan.batch_size if plan.steps else max(plan.batch_size, EVALUATION_BATCH)
    for batch in task.batches(split, batch_size, plan.steps or None):
        batch = batch.to(device, dtype)
        logits, state = predict(*batch.inputs, lengths=batch.lengths, state=state if batch.carry else None)
        yield batch, logits


def example_of(task, plan, dtype=None):
    """What the model is called with, for one that does not declare who reads whom: a batch of training."""
    return next(examples_of(task, plan, dtype, 1))


def examples_of(task, plan, dtype=None, count=8):
    """The first batches of training, each as the model is called with it."""
    for batch in itertools.islice(task.batches("train", plan.batch_size, plan.steps or None), count):
        batch = batch.to("cpu", dtype)
        yield (*batch.inputs, *(() if batch.lengths is None else (batch.lengths,)))


def compact_error(model, masks, means, task, plan):
    """Largest relative difference of logits, compact against masked, float64, whole test set."""
    double, example = copy.deepcopy(model).double(), example_of(task, plan, torch.float64)
    means = {name: mean.double() for name, mean in means.items()}
    both = predictor(double, masks, means), compact(double, masks, means, example)
    pairs = zip(*(predictions(predict, task, "test", plan, dtype=torch.float64) for predict in both), strict=True)
    return max(error(small, reference) for (_, reference), (_, small) in pairs)
