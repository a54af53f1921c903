"""Which dimension of the ids that an embedding looks up runs over sequences, found by running the model on an example.

The embedding says the same everywhere, then something else at the first place along one dimension. What a recurrent layer
gets tells the rest: sequences differ apart from each other, a time step differs in all of them.
"""

import torch

from ..nets.layers import by_time
from ..nets.readers import answer, replaced, watched


def along(start, name, recurrent, example, usual):
    """The dimension of the ids whose places become sequences of the recurrent layers.

    start      `outside.Start` of the model         name    of the embedding
    recurrent  names of layers that may read it     usual   what it is where several may be, or the example does not tell
    None where the example does not tell and there is nothing usual.
    """
    plain, dims = _arriving(start, name, recurrent, example, None)
    told = {dim: _told(plain, _arriving(start, name, recurrent, example, dim)[0]) for dim in range(dims)}
    for candidates in (
        [dim for dim in told if told[dim] == "sequences"],
        [dim for dim in told if told[dim] is None] if "steps" in told.values() else [],
    ):
        if candidates:
            return usual if usual in candidates else candidates[0]
    return usual


def _arriving(start, name, recurrent, example, dim):
    """What the recurrent layers get, call by call [T, B, I], if the embedding differs at the first place along `dim`; and how
    many dimensions its ids have at most."""
    arriving, dims = [], [0]

    def said(output):
        dims.append(output.dim() - 1)
        here, there = torch.randn(2, output.shape[-1], generator=torch.Generator().manual_seed(0)).to(output)
        output = here.expand_as(output).clone()
        if dim is not None and dim < dims[-1] and output.shape[dim] > 1:
            output.select(dim, 0).copy_(there)
        return output

    with start.again() as model:

        def see(layer, x):
            arriving.append(by_time(model.get_submodule(layer), x, None)[0])
            return x

        with replaced(model.get_submodule(name), said), watched({n: model.get_submodule(n) for n in recurrent}, see):
            answer(model, example)
    return arriving, max(dims)


def _told(plain, other):
    """What a dimension is, by the first call that it makes a difference to: "sequences", "steps", or None."""
    for a, b in zip(plain, other, strict=False):
        if a.shape == b.shape and a.dim() == 3 and (differs := (a != b).any(2)).any():
            if not differs.any(0).all():
                return "sequences"
            return None if differs.any(1).all() else "steps"
    return None
