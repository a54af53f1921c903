"""The optimiser that a `Plan` asks for, how its rate falls, and averages of the weights."""

import math
from contextlib import contextmanager

import torch


def _adam(groups, plan):
    return torch.optim.Adam(groups, weight_decay=plan.weight_decay, fused=True)


class _SGD(torch.optim.Optimizer):
    """SGD of what moves at the weights' rate; Adam, beside it, of what a method learns at a rate of its own.

    Such a rate, of log σ or of gates, is one for Adam, and says how far a step goes. SGD's are of another kind (35 for Zaremba's
    nets, under a clip of 0.14): at 0.002 it leaves a gate where it is.
    """

    def __init__(self, groups, plan):
        theirs, own = ([group for group in groups if _follows(group) is side] for side in (True, False))
        self.parts = {}
        if theirs:
            self.parts[True] = torch.optim.SGD(theirs, momentum=plan.momentum, weight_decay=plan.weight_decay)
        if own:
            self.parts[False] = _adam(own, plan)
        super().__init__(groups, {})
        self._share()

    def _share(self):
        """Groups and state are this optimiser's; the parts see theirs of them."""
        for side, part in self.parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if _follows(group) is side]

    @torch.no_grad()
    def step(self):
        for part in self.parts.values():
            part.step()

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._share()


def _follows(group):
    return bool(group.get("decays"))


def moved(groups, plan):
    """The parameters that the plan's own optimiser moves, which are clipped together: not those that Adam moves beside SGD,
    since a step of Adam's is as long whatever the gradient, and a penalty's would leave SGD nothing of the clip."""
    return [p for group in groups if plan.optimiser == "adam" or _follows(group) for p in group["params"]]


OPTIMISERS = {"adam": _adam, "sgd": _SGD, "nt-asgd": _SGD}
PATIENCE = {"nt-asgd": 5}  # checks n that validation may be no better (1708.02182); others never average


def _linear(plan, step, steps_per_epoch):
    done, hold = step / (plan.epochs * steps_per_epoch), plan.lr_hold
    past = min(max(0.0, (done - hold) / (plan.lr_rest - hold)), 1.0)
    return 1 + (plan.lr_end - 1) * past


def _cosine(plan, step, steps_per_epoch):
    return plan.lr_end + (1 - plan.lr_end) * (1 + math.cos(math.pi * (step // steps_per_epoch) / plan.epochs)) / 2


def _step(plan, step, steps_per_epoch):
    return plan.lr_factor ** -max(0, (step // steps_per_epoch - plan.lr_from) // plan.lr_every + 1)


SCHEDULES = {"linear": _linear, "cosine": _cosine, "step": _step}


def share_of_rate(plan, step, steps_per_epoch):
    """What is left of the full rate at a step.

    linear  1 for a share `lr_hold` of the steps, a straight line to `lr_end` at a share `lr_rest`, constant
    cosine  an epoch at a time from 1 towards `lr_end` (1608.03983, without restarts)
    step    1 for `lr_from` epochs, then divided by `lr_factor` every `lr_every` epochs
    """
    return SCHEDULES[plan.lr_schedule](plan, step, steps_per_epoch)


class Averages:
    """Means of the weights over the steps since validation stopped getting better: NT-ASGD (1708.02182, algorithm 1).

    They begin after a check that is worse than the best of all checks before it but the last n; the weights as they are then
    count as the first. Each stands beside its parameter in the optimiser's state: there it is saved, restored and cut with it.

    checks  validation after every epoch so far        count  weights in the means; 0: not begun
    """

    def __init__(self, optimizer, patience, better):
        self.optimizer, self.patience, self.sign = optimizer, patience, 1 if better == "lower" else -1
        self.checks, self.count = [], 0

    def parameters(self):
        """Those that have moved so far, or are SGD's: where Adam finds a state it takes it for its own, so that a parameter
        that never had a gradient gets none. Such a one is its own mean."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        return (p for group in groups for p in group["params"] if _follows(group) or state.get(p))

    @torch.no_grad()
    def told(self, valid):
        """To be told of every check → whether the means begin with it."""
        before = self.checks[: -self.patience] if self.patience else []
        self.checks.append(valid)
        if self.count or not before or not self.sign * valid > min(self.sign * check for check in before):
            return False
        self.count = 1
        for parameter in self.parameters():
            self.optimizer.state[parameter]["average"] = parameter.detach().clone()
        return True

    @torch.no_grad()
    def step(self):
        """To be called after every step, once the weights are what they will be."""
        if self.count:
            self.count += 1
            for parameter in self.parameters():
                state = self.optimizer.state[parameter]
                state.setdefault("average", parameter.detach().clone()).lerp_(parameter.detach(), 1 / self.count)

    @contextmanager
    def in_place(self):
        """Inside, the means are the weights, where they have begun."""
        if not self.count:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for parameter in self.parameters():
            state = self.optimizer.state[parameter]
            if "average" in state:
                parameter.data, state["average"] = state["average"], parameter.data
