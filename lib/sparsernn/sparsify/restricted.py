"""Weight sharing inside a recurrent layer (Diao, Ding & Tarokh 2019, 1908.07724): restricted RNN, GRU and LSTM.

A layer and direction has one pool of rows. Its first s = round(r·H) are the first s rows of every gate, of W_ih and of W_hh;
each gate has H − s rows of its own for either. Biases likewise, so that a shared one enters from both sides. At r = 0.5
(paper) 3/4 of an RNN's cell parameters are left, 7/12 of a GRU's, 9/16 of an LSTM's; at r = 1 a half, a sixth, an eighth,
and all gates have the same preactivation. Nothing is penalised or pruned. PTB, LSTM 3 × 200, tied embeddings: test
perplexity 103.5 at r = 0.5, 107.7 at r = 0.

Shared rows live once, in the first gate of the wider matrix; the others are copies, which no gradient reaches.
"""

from dataclasses import dataclass, replace

import torch

from ..nets.layers import RECURRENT
from .base import Method, Wanted
from .options import option

SHARING = 0.5


@dataclass(frozen=True)
class RestrictedOptions(Wanted):
    """Of weight sharing."""

    sharing: float = option(SHARING, "r: share of a layer's neurons with shared rows (1908.07724)", least=0, most=1)

    def __post_init__(self):
        super().__post_init__()
        if self.density and self.sharing != SHARING:
            raise ValueError("sharing and density do not go together: either says what the other is")


@dataclass(frozen=True)
class Pool:
    """What shares rows: tensors of one layer and direction, the two matrices or the two biases; where both directions read
    one product with the input, the three matrices.

    source  name of the tensor whose first gate holds the shared rows: the widest
    names   of all               hidden  neurons, H              gates  n
    """

    source: str
    names: tuple[str, ...]
    hidden: int
    gates: int


def pool_size(gates, width, hidden, rate):
    """Parameters of the pool of one layer and direction, biases included: (s + 2 n (H − s)) (k + 1), k the wider of both
    inputs (1908.07724)."""
    shared = round(rate * hidden)
    return (shared + 2 * gates * (hidden - shared)) * (width + 1)


class Restricted(Method):
    """Rows of a layer's pool in the places of its matrices, in training and in evaluation.

    It starts from the model's own initial values: private rows keep them, shared rows take those of the first gate (of the
    wider matrix, of bias_ih). For torch's layers with as many inputs as neurons that is the paper's U(±1/√k). A layer of
    which anything is frozen is left as it is.
    """

    Options = RestrictedOptions
    touches = biases = whole = True
    layers = tuple(RECURRENT)

    def prepare(self):
        self.pools = list(self._pools())
        self.pool_of = {name: pool for pool in self.pools for name in pool.names}
        if sorted(name for pool in self.pools for name in pool.names) != sorted(self.weights):
            raise ValueError(
                "two recurrent layers have one of their weights in common but not all: there is no pool for both; skip one"
            )
        self.rate = self._rate(self.options.density) if self.options.density else self.options.sharing
        self.refuse_out_of_reach()  # before anything is written
        self.write_copies()

    def _pools(self):
        for item in self.weights.values():
            layer, own = item.owners[0]
            kind, _, suffix = own.partition("_ih")
            if not suffix:
                continue
            mine = [own.partition("_ih")[2] for owner, own in item.owners if owner is layer]
            linked = item, *(layer.carried[f"{kind}_hh{suffix}"] for suffix in mine)
            source, hidden = max(linked, key=lambda one: one.theta.shape[1:]), layer.hidden_size
            yield Pool(source.name, tuple(one.name for one in linked), hidden, len(item.theta) // hidden)

    # ---- how much is shared

    def shared(self, pool):
        """s: rows that every gate of the pool has in common."""
        return round(self.rate * pool.hidden)

    def _matrices(self):
        """[(pool, columns of its matrices)]."""
        return [
            (pool, [self.weights[name].theta.shape[1] for name in pool.names])
            for pool in self.pools
            if self.weights[pool.source].theta.dim() == 2
        ]

    def _copied(self):
        """Weights that are copies where everything is shared: at a rate r about r times as many."""
        return sum(p.hidden * (p.gates * sum(widths) - max(widths)) for p, widths in self._matrices())

    def prunable(self):
        return {name: self.weights[name].theta.numel() for pool, _ in self._matrices() for name in pool.names}

    def reach(self):
        return 1 - self._copied() / sum(self.prunable().values()), 1.0

    def _rate(self, density):
        """The sharing rate at which the pools are this share of the layers' weights, as near as there is one."""
        return min((1 - density) * sum(self.prunable().values()) / self._copied(), 1.0)

    # ---- what is shared

    def effective(self, item):
        """The tensor with the pool's rows in their places; gradients of all copies add up in the source."""
        pool = self.pool_of[item.name]
        if not (shared := self.shared(pool)):
            return item.theta.view_as(item.theta)
        rows, by_gate = self._rows(pool, item), self._by_gate(item)
        return torch.cat([rows.expand(pool.gates, *rows.shape), by_gate[:, shared:]], 1).flatten(0, 1)

    def _by_gate(self, item):
        """The tensor itself as [gates, H, …]."""
        pool = self.pool_of[item.name]
        return item.theta.unflatten(0, (pool.gates, pool.hidden))

    def _rows(self, pool, item):
        """The pool's shared rows, as wide as those of the tensor."""
        rows = self.weights[pool.source].theta[: self.shared(pool)]
        return rows[:, : item.theta.shape[1]] if rows.dim() == 2 else rows

    def draw(self, weight, lines=None):
        return self.effective(weight)

    def kept(self, item):
        return self.effective(item)

    @torch.no_grad()
    def write_copies(self):
        """Make every copy equal to its source: the model's own tensors are the network."""
        for name, pool in self.pool_of.items():
            if shared := self.shared(pool):
                self._by_gate(self.weights[name])[:, :shared] = self._rows(pool, self.weights[name]).clone()

    def after_step(self, step):
        self.write_copies()

    def masks_of(self, keep):
        shared = {}
        for pool, _ in self._matrices():
            for name in pool.names:
                copies = torch.zeros(self.shapes[name], dtype=torch.bool)
                by_gate = copies.unflatten(0, (pool.gates, pool.hidden))
                by_gate[int(name == pool.source) :, : self.shared(pool)] = True
                shared[name] = copies
        return replace(super().masks_of(keep), shared=shared)

    def says(self):
        asked = self.options
        return f"density {asked.density:g}" if asked.density else f"sharing {asked.sharing:g}"
