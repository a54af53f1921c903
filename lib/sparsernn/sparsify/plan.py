"""What every training has, whatever the method: epochs, batches, the optimiser and its rate."""

from dataclasses import dataclass

from .options import Options, option


@dataclass(frozen=True)
class Plan(Options):
    """Hyper-parameters of one training; those of a method are its `Options`."""

    epochs: int = option(1, "passes over the training split", least=1)
    batch_size: int = option(32, "sequences (or streams) a step", least=1)
    steps: int = option(0, "language models: window of truncated back-propagation, symbols", least=0)
    lr: float = option(2.0e-3, "Adam's rate", above=0)
    clip: float = option(0.0, "largest total norm of the gradient; 0: no clipping", least=0)
    lr_hold: float = option(0.5, "share of the epochs until which the rate is full", least=0, below=1)
    lr_rest: float = option(1.0, "share from which it is lr_end, a straight line between", above=0, most=1)
    lr_end: float = option(1.0, "share of lr that is left then (1: constant, as the papers)", least=0)
    word_dropout: float = option(0.0, "share of a batch's words that are hidden (id 2)", least=0, below=1)
    products: str = option(
        "float32",
        "bfloat16: products with the input and in the head are rounded while training; bfloat16-state: those with the "
        "state too. The optimiser and every evaluation are not; a processor without units for bfloat16 rounds nothing",
        choices=("float32", "bfloat16", "bfloat16-state"),
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.lr_hold < self.lr_rest:
            raise ValueError(f"lr_rest is {self.lr_rest}; it is a share, above lr_hold = {self.lr_hold}, up to 1")
