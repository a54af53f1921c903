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
    total = count = 0
    for batch, logits in predictions(predict, task, split, plan, device):
        part, number = task.score(logits, batch)
        total, count = total + part, count + number
    return task.metric_of(total, count)


@torch.no_grad()
def predictions(predict, task, split, plan, device="cpu"):
    """[(batch, logits)] over a split in evaluation order, the state carried where the task carries it; on a device."""
    state, batch_size = None, plan.batch_size if plan.steps else max(plan.batch_size, EVALUATION_BATCH)
    for batch in task.batches(split, batch_size, plan.steps or None):
        batch = batch.to(device)
        logits, state = predict(*batch.inputs, lengths=batch.lengths, state=state if batch.carry else None)
        yield batch, logits


def example_of(task, plan):
    """What the model is called with, for one that does not declare who reads whom: a batch of training."""
    batch = next(iter(task.batches("train", plan.batch_size, plan.steps or None)))
    return (*batch.inputs, *(() if batch.lengths is None else (batch.lengths,)))


def compact_error(model, masks, means, task, plan):
    """Largest relative difference of logits, compact against masked, float64, whole test set."""
    double, example = copy.deepcopy(model).double(), example_of(task, plan)
    means = {name: mean.double() for name, mean in means.items()}
    pairs = zip(
        predictions(predictor(double, masks, means), task, "test", plan),
        predictions(compact(double, masks, means, example), task, "test", plan),
        strict=True,
    )
    return max(error(small, reference) for (_, reference), (_, small) in pairs)
