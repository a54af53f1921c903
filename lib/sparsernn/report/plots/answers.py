"""What a task shows of a model's answers before and after pruning: each kind of task in a file of its own."""

import functools


@functools.singledispatch
def answers(task, before, after):
    """What a task shows of a model before and after pruning: a figure, or None.

    before, after  predictors as `study.evaluation` makes them
    """
    return None
