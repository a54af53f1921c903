"""What every training has, whatever the method: epochs, batches, the optimiser and its rate."""

from dataclasses import dataclass, fields

from .options import Options, option

USED_UNDER = {  # parameter → (what it belongs to, the choices that have a use for it)
    "momentum": ("optimiser", ("sgd",)),
    "lr_hold": ("lr_schedule", ("linear",)),
    "lr_rest": ("lr_schedule", ("linear",)),
    "lr_end": ("lr_schedule", ("linear", "cosine")),
    "lr_from": ("lr_schedule", ("step",)),
    "lr_every": ("lr_schedule", ("step",)),
    "lr_factor": ("lr_schedule", ("step",)),
}


@dataclass(frozen=True)
class Plan(Options):
    """Hyper-parameters of one training; those of a method are its `Options`."""

    epochs: int = option(1, "passes over the training split", least=1)
    batch_size: int = option(32, "sequences (or streams) a step", least=1)
    steps: int = option(0, "language models: window of truncated back-propagation, symbols", least=0)
    optimiser: str = option(
        "adam",
        "sgd: with momentum; nt-asgd: without, and averages of the weights from when validation stops getting better "
        "(1708.02182). What a method learns at a rate of its own is Adam's under each",
        choices=("adam", "sgd", "nt-asgd"),
    )
    lr: float = option(2.0e-3, "the optimiser's rate", above=0)
    momentum: float = option(0.0, "sgd: share of the last move that goes on", least=0, below=1)
    weight_decay: float = option(
        0.0,
        "times a parameter is added to its gradient after clipping, the derivative of half its square (L2, under Adam "
        "too); what a method learns of noise has none",
        least=0,
    )
    clip: float = option(0.0, "largest total norm of the gradient of what the optimiser moves; 0: no clipping", least=0)
    lr_schedule: str = option(
        "linear",
        "how the rate falls: in a straight line, epoch by epoch along half a cosine from lr to lr_end, or in steps",
        choices=("linear", "cosine", "step"),
    )
    lr_hold: float = option(0.5, "linear: share of the epochs until which the rate is full", least=0, below=1)
    lr_rest: float = option(1.0, "linear: share from which it is lr_end, a straight line between", above=0, most=1)
    lr_end: float = option(
        1.0, "linear, cosine: share of lr that is left in the end (1: constant, as the papers)", least=0
    )
    lr_from: int = option(1, "step: epochs at the full rate", least=1)
    lr_every: int = option(1, "step: epochs from one division to the next", least=1)
    lr_factor: float = option(1.0, "step: what the rate is divided by, the first time after lr_from epochs", least=1)
    word_dropout: float = option(
        0.0, "share of the words a batch's first input has that are hidden (id 2), not their letters", least=0, below=1
    )
    int8_noise: float = option(
        0.0,
        "share of the epochs, at the end, in which every weight that is left stands at each step anywhere within half a step of "
        "int8; an epoch is chosen among these",
        least=0,
        below=1,
    )
    products: str = option(
        "float32",
        "bfloat16: products with the input and in the head are rounded while training; bfloat16-state: those with the "
        "state too. The optimiser and every evaluation are not; a processor that is not faster for it rounds nothing",
        choices=("float32", "bfloat16", "bfloat16-state"),
    )

    def __post_init__(self):
        super().__post_init__()
        for one in fields(self):
            of, choices = USED_UNDER.get(one.name, (None, ()))
            given = getattr(self, one.name)
            if of and given != one.default and getattr(self, of) not in choices:
                raise ValueError(
                    f"{one.name} is {given}, which does nothing under {of} {getattr(self, of)!r}, only under "
                    f"{' or '.join(map(repr, choices))}; leave it at {one.default}"
                )
        if not self.lr_hold < self.lr_rest:
            raise ValueError(f"lr_rest is {self.lr_rest}; it is a share, above lr_hold = {self.lr_hold}, up to 1")
        if self.lr_schedule == "cosine" and self.lr_end == 1:
            raise ValueError("lr_end is 1, so the cosine would end where it begins; set lr_end below 1 (0: at nothing)")
        if self.lr_schedule == "step" and self.lr_factor == 1:
            raise ValueError("lr_factor is 1, so the steps would change nothing; set lr_factor above 1")
