"""Magnitude pruning by blocks of weights (1711.02782, and the sparse RNNs that ship: LPCNet, RNNoise, Opus DRED).

A block stays or goes as a whole, by its mean square or its largest weight, ranked within each gate of each matrix, while the
density falls by a cubic schedule: zeros in blocks are what a processor can leave out. Published: 80 to 90 % of the weights
gone in blocks of up to 32×32 at a small loss (1711.02782); W_hh of a GRU of 384 at 5 to 20 % in blocks of 8×4 (LPCNet).
"""

from dataclasses import dataclass, replace

import torch

from .base import MISSED
from .block_shapes import as_it_lies, by_gate, gates_of, in_blocks, shape_of, shares_of, to_entries
from .gradual import cubic
from .masking import INPUT, RECURRENT, SIZES, TYPES, Masking, MaskingOptions, type_of
from .options import option

MATRICES = {"all": TYPES, "both": (INPUT, RECURRENT), "recurrent": (RECURRENT,), "input": (INPUT,)}

# As published, for attach; steps are updates. RNNoise prunes until 20,000 of about 75,000; LPCNet (20,000) and DRED (24,000)
# name no length: give prune_end=20_000 / steps. Their densities leave out the diagonal, which ours counts. DRED's five GRUs
# get sparser with depth, from .6, .4, .8: these are the deepest's.
RECIPES = {
    "lpcnet": {
        "block": "8x4", "matrices": "recurrent", "density": 0.1, "gate_densities": "0.05,0.05,0.2", "keep_diagonal": True,
        "prune_start": 2000, "prune_every": 400,
    },
    "rnnoise": {
        "block": "8x4", "matrices": "both", "density": 1 / 3, "gate_densities": "0.3,0.2,0.5", "keep_diagonal": True,
        "prune_start": 6000, "prune_end": 20 / 75, "prune_every": 100,
    },
    "dred": {
        "block": "8x4", "matrices": "input", "density": 0.15, "gate_densities": "0.15,0.1,0.2",
        "prune_start": 12000, "prune_every": 100,
    },
}  # fmt: skip


@dataclass(frozen=True)
class BlocksOptions(MaskingOptions):
    """Of pruning by blocks. gate_densities say how `density` is divided among gates, so their mean has to be it."""

    density: float = option(0.1, "weights kept ÷ weights it may prune, at the end", above=0, most=1)
    block: str = option("16x1", "rows x columns of a block (out x in; an embedding's lie along the numbers of a word)")
    saliency: str = option(
        "energy", "a block's: mean square of its weights, or largest |w| (1711.02782)", choices=("energy", "maximum")
    )
    prune_every: int = option(100, "steps between two changes of the masks (RNNoise, DRED: 100, LPCNet: 400)", least=1)
    keep_diagonal: bool = option(False, "whether the diagonal of each gate of W_hh stays beside the blocks (LPCNet)")
    gate_densities: str = option(
        "", "density of each gate of W_ih and W_hh, in torch's order (GRU: r,z,n), as 0.05,0.05,0.2; empty: density"
    )
    matrices: str = option("all", "what is pruned; both: W_ih and W_hh", choices=tuple(MATRICES))
    group_lasso: float = option(0.0, "λ of λ Σ ‖block‖₂, in the loss until masks stay, nats per example", least=0)

    def __post_init__(self):
        super().__post_init__()
        shape_of(self.block)
        if self.keep_diagonal and self.matrices == "input":
            raise ValueError("keep_diagonal is about W_hh, which matrices='input' leaves as it is")
        mean = sum(shares := shares_of(self.gate_densities) or [self.density]) / len(shares)
        if abs(mean / self.density - 1) > MISSED:
            raise ValueError(f"gate_densities have a mean of {mean:.4g}, density is {self.density:g}: make them agree")


class Blocks(Masking):
    """Masks of whole blocks: of each gate of each matrix those with the largest saliency, as many as come nearest to the
    density, at least one. What stays in any case (the diagonal, an embedding's padding) counts as kept."""

    Options, reading = BlocksOptions, replace(SIZES, name="log10 |w| of a block")

    def prepare(self):
        super().prepare()
        if not self.chosen():
            raise ValueError(f"matrices is {self.options.matrices!r}; among {', '.join(self.weights)} there is none")
        given = len(shares_of(self.options.gate_densities))
        for weight in self.chosen():
            if given not in (0, len(gates := gates_of(weight))) and gates:
                of = ", as a GRU has gates (and as RECIPES say them: they are those of GRUs)" if given == 3 else ""
                raise ValueError(
                    f"gate_densities has {given} numbers{of}; {weight.name} has gates {', '.join(gates)}: give {len(gates)}, "
                    "whose mean is density, or leave gate_densities out"
                )

    @property
    def every(self):
        return self.options.prune_every

    @property
    def shape(self):
        return shape_of(self.options.block)

    def says(self):
        return f"blocks of {self.options.block}, {super().says()}"

    def chosen(self):
        return [weight for weight in self.weights.values() if type_of(weight) in MATRICES[self.options.matrices]]

    # ---- which blocks

    def free(self, weight):
        """bool [gates, out, in]: what may go, that is, all but the diagonal and what is spared."""
        may = torch.ones_like(weight.mask)
        if weight.spared is not None:
            may[weight.spared] = False
        may = by_gate(weight, may)
        if self.options.keep_diagonal and type_of(weight) == RECURRENT:
            may = may & ~torch.eye(may.shape[-1], dtype=torch.bool, device=may.device)
        return may

    def saliency(self, weight):
        """[gates, R, C] a block: mean square or largest |w| of the weights in it that may go; −1 where it went."""
        free, mask = self.free(weight), by_gate(weight, weight.mask)
        values = in_blocks(by_gate(weight, weight.theta.detach()) * (mask & free), self.shape)
        if self.options.saliency == "maximum":
            found = values.abs().amax(-1)
        else:
            found = values.square().sum(-1) / in_blocks(free, self.shape).sum(-1).clamp(min=1)
        return found.masked_fill(~in_blocks(mask & free, self.shape).any(-1), -1.0)

    @torch.no_grad()
    def nearest(self, weight, densities):
        """bool [gates, out, in]: what is kept where each gate comes as near to its density as whole blocks can."""
        found, free = self.saliency(weight), self.free(weight)
        order = found.flatten(1).argsort(dim=1, descending=True, stable=True)
        sizes = in_blocks(free, self.shape).sum(-1).flatten(1).gather(1, order)
        kept = (~free).sum((1, 2))[:, None] + sizes.cumsum(1)  # with the first block, with the second too, …
        wanted = torch.tensor(densities, dtype=torch.float64, device=kept.device)[:, None] * free[0].numel()
        first = torch.arange(order.shape[1], device=kept.device) <= (kept - wanted).abs().argmin(1, keepdim=True)
        blocks = torch.zeros_like(first).scatter(1, order, first).view(found.shape)
        return to_entries(blocks, self.shape, free) | ~free

    def densities(self, weight):
        """Of each gate of a matrix, at the end."""
        gates = gates_of(weight)
        return (shares_of(self.options.gate_densities) if gates else []) or [self.options.density] * (len(gates) or 1)

    def shrink(self, step):
        for weight in self.chosen():
            now = [cubic(step, *self.window, density) for density in self.densities(weight)]
            self.narrow(weight, as_it_lies(weight, self.nearest(weight, now)))

    def score(self, item):
        """log10 of a block's root mean square or largest |w|, for each weight in it; of a weight beside the blocks its own."""
        own = super().score(item)
        if item not in self.chosen():
            return own
        found, free = self.saliency(item).clamp(min=0), self.free(item)
        sizes = to_entries(found if self.options.saliency == "maximum" else found.sqrt(), self.shape, free).log10()
        return as_it_lies(item, torch.where(free, sizes, by_gate(item, own)))

    # ---- what it costs

    def penalty(self, step):
        if not self.options.group_lasso or step >= self.window[1]:
            return 0.0
        values = [by_gate(w, w.theta * w.mask) * self.free(w) for w in self.chosen() if w.learns]
        squares = [in_blocks(value, self.shape).square().sum(-1) for value in values]
        return self.options.group_lasso * sum(s.clamp(min=1e-30).sqrt().sum() for s in squares)  # at 0 no gradient

    # ---- how dense

    def prunable(self):
        return {weight.name: weight.theta.numel() for weight in self.chosen()}

    def ends(self, density):
        """Where it would end if that were asked for, its weights as they are, each gate in proportion."""
        kept, ratio = 0, density / self.options.density
        for weight in self.chosen():
            kept += int(self.nearest(weight, [min(d * ratio, 1.0) for d in self.densities(weight)]).sum())
        return kept / sum(self.prunable().values())

    def reach(self):
        return self.ends(1e-9), 1.0

    def refuse_out_of_reach(self):
        wanted = self.options.density
        if abs((end := self.ends(wanted)) / wanted - 1) > MISSED:
            near = {self.ends(min(wanted * 1.05**power, 1.0)) for power in range(-80, 81)}
            near = [*sorted(d for d in near if d < wanted)[-1:], *sorted(d for d in near if d > wanted)[:1]]
            raise ValueError(
                f"density is {wanted:g}; blocks of {self.options.block}, at least one a gate, would end at {end:.4g} here; "
                f"they can end at {' or '.join(f'{d:.4g}' for d in near)}"
            )
