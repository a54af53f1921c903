"""Generated tones instead of recordings, a small recogniser for them, and the task `tones` that both are registered for.

Digit d is a tone of its own, 300 + 300 d Hz, that two speakers hold for different times; nothing else tells digits apart.
"""

import numpy as np

from sparsernn import tasks
from sparsernn.nets.axes import Axis, Member, each, recurrent_axes
from sparsernn.nets.layers import Linear
from sparsernn.nets.models import Model
from sparsernn.sparsify.plan import Plan
from sparsernn.study.presets import PRESETS, Preset, Profile
from sparsernn.tasks import digits
from sparsernn.tasks.speech import RATE, SpeechTask

SPEAKERS = {"first": 0.10, "second": 0.16, digits.UNSEEN: 0.13}  # seconds of a tone


def tones(indices=14):
    """(speaker, index, digit) → samples, as `digits.read` gives recordings; index 0 to 4 test, 5 to 9 validation."""
    found = {}
    for speaker, seconds in SPEAKERS.items():
        for index in range(indices):
            time = np.arange(int(RATE * seconds * (1 + 0.02 * index))) / RATE
            for digit in range(10):
                found[speaker, index, digit] = digits.LEVEL * 2**0.5 * np.sin(2 * np.pi * (300 + 300 * digit) * time)
    return found


def task(profile="smoke"):
    """The task of the tones, small enough to train on in seconds."""
    most = {"train": 64, "valid": 12, "test": 12, "unseen": 12}
    splits = digits.join(tones(), np.random.default_rng(0), most)
    return SpeechTask("tones", splits, [digits.BLANK, *digits.DIGITS], "generated tones")


class Frames(Model):
    """A recurrent layer over every fourth frame and a linear layer at each: the smallest recogniser."""

    groups = {"voc": (), "wn": ("input", "hidden"), "wgn": ("input", "hidden", "gates")}

    def __init__(self, features, classes, hidden, cell="GRU", stride=4):
        super().__init__()
        self.make_stack(cell, features, hidden)
        self.head, self.stride = Linear(hidden, classes), stride

    def axes(self):
        size, stack = self.recurrent.input_size, self.stack
        reads = (
            Member(f"{stack}.weight_ih_l0", 1, each(size), "in"),
            Member(f"{stack}.input_l0", 1, each(size), "scale"),
        )
        return [Axis("input", "input", size, reads), *recurrent_axes(stack, self.recurrent, ["head.weight"])]

    def forward(self, x, lengths=None, state=None):
        lengths = None if lengths is None else -(-lengths // self.stride)
        y, state = self.recurrent(x[:: self.stride], state, lengths=lengths, padding="right")
        return self.head(y), state


class Sized(Preset):
    """A preset that is built for a task's features and classes."""

    def build(self, task):
        return self.model(task.features, len(task.classes), **self.shape)


def profiles():
    plan = Plan(epochs=2, batch_size=4, lr=5e-3, clip=1.0)
    options = {"lr_log_sigma": 0.1, "kl_weight": 1e-3, "threshold": 1.0, "l0_weight": 1e-3, "lr_gates": 0.1,
               "iss_weight": 1e-3, "fine_tune": 0.25, "prune_every": 5}  # fmt: skip
    return {"smoke": Profile(plan, **options), "quick": Profile(plan, **options)}


def register(name="tones"):
    """Make the task known, with a GRU (the default) and an RNN. name: of a task that is there, which stays what it is."""
    tasks.TASKS.setdefault(name, task)
    PRESETS.setdefault(name, {})
    for cell in ("GRU", "RNN"):
        PRESETS[name][f"frames-{cell.lower()}"] = Sized(Frames, {"hidden": 24, "cell": cell}, profiles())
