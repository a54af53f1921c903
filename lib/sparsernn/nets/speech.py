"""A speech recogniser: Deep Speech 2 (1512.02595) in small, as it was pruned in 1704.05119.

A convolution over time and frequency, recurrent layers whose product with the input is normalised over sequences and time,
a linear layer: at every step log-odds of the symbols and of the blank of CTC. Two kinds of layers: vanilla RNNs with clipped
ReLUs, both directions reading one product and summed (7 layers of 1760, 67 M weights, character error rate 10.67; 12.88 with
8.3 M), or forward GRUs under a row convolution that looks some steps ahead (3 of 2560, 115 M, 9.55; 10.87 with 13 M).
"""

import torch
from torch import nn
from torch.nn import functional as F

from .axes import input_axis, recurrent_axes
from .cells import CEILING
from .layers import Linear, Recurrent
from .models import Model

KERNEL = 11, 11  # frames and frequencies that a number of the convolution sees
EVERY = 4  # frequencies from one to the next


class RowConvolution(nn.Conv1d):
    """What each neuron says in a step and the next ones, weighted, neuron by neuron: x [T, B, H] → [T, B, H].

    window: how many steps. At the start all weight is on the first. Beyond the end there are zeros.
    """

    def __init__(self, neurons, window):
        super().__init__(neurons, neurons, window, groups=neurons, bias=False)
        nn.init.zeros_(self.weight), nn.init.ones_(self.weight[..., 0])

    def forward(self, x):
        return super().forward(F.pad(x.permute(1, 2, 0), (0, self.kernel_size[0] - 1))).permute(2, 0, 1)


class SpeechModel(Model):
    """Convolution, recurrent layers with normalised input, a linear layer over the classes.

    logits [ceil(T / stride), B, classes]; class 0 is the blank. Called `model(features, lengths=None, state=None)`:

    features  float [T, B, F], padded on the right; what stands in the padding changes no logit of a real step
    lengths   int64 [B], real frames; logits are real up to ceil(length / stride)

    channels, stride  of the convolution, whose weights no method prunes; stride: frames from one step to the next
    cell, activation  "RNN" with "clipped_relu" (Deep Speech 2's), "relu" or "tanh"; "GRU" or "LSTM" with "logistic" or "hard"
    bidirectional     both directions, summed, with one input matrix; else forward alone
    window            steps that the row convolution on top weighs, this one and those ahead; 1: there is none
    """

    groups = {"wn": ("input", "hidden"), "wgn": ("input", "hidden", "gates")}

    def __init__(
        self, features, classes, hidden, layers=3, cell="RNN", activation="clipped_relu", bidirectional=True, window=1,
        channels=8, stride=2,
    ):  # fmt: skip
        super().__init__()
        if window > 1 and bidirectional:
            raise ValueError(f"window is {window}, but layers in both directions see all that follows; set it to 1")
        self.stride = stride
        self.convolution = nn.Conv2d(1, channels, KERNEL, (stride, EVERY), tuple(k // 2 for k in KERNEL))
        width = channels * -(-features // EVERY)
        both = {"bidirectional": bidirectional, "summed": bidirectional, "shared_input": bidirectional}
        self.make_stack(cell, width, hidden, layers, activation=activation, norm=True, **both)
        self.row_convolution = RowConvolution(hidden, window) if window > 1 else nn.Identity()
        self.head = Linear(hidden, classes)
        self.head.local_noise = True

    def axes(self):
        between = isinstance(self.row_convolution, RowConvolution)
        stack = recurrent_axes(self.stack, self.recurrent, ["head.weight"], apart=between)
        return [input_axis(self.stack, self.recurrent, self.recurrent.input_size), *stack]

    def forward(self, features, lengths=None, state=None):
        if lengths is not None:
            live, _ = Recurrent.padded(features, lengths, "right")
            features, lengths = features.masked_fill(~live, 0), -(-lengths // self.stride)
        x = self.convolution(features.transpose(0, 1).unsqueeze(1)).clamp(0, CEILING)
        y, state = self.recurrent(x.permute(2, 0, 1, 3).flatten(2), state, lengths=lengths)
        return self.head(self.row_convolution(y)), state

    def example(self, steps, batch):
        """Random features [T, B, F], always the same, in the model's own dtype."""
        generator, like = torch.Generator().manual_seed(0), self.head.weight
        return torch.randn(steps, batch, self.arguments["features"], generator=generator).to(like)
