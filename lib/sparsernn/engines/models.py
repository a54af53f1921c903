"""A whole model run by an engine: its recurrent layers, what reads them, and the look-up before them."""

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..nets.found import Found, is_computed
from ..nets.layers import RECURRENT, by_time, kind_of
from ..nets.outside import Start, deep_copy
from ..nets.readers import answer
from ..nets.small import SmallLinear, SmallRecurrent, become
from . import engine_class
from .base import Layer, Unsupported
from .parts import shrink


def recurrent_layers(model):
    """name → recurrent layer, small or as it was; not the levels inside small ones."""
    found, inside = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, SmallRecurrent) or (kind_of(module) in RECURRENT and module not in inside):
            found[name] = module
            inside |= set(module.modules()) - {module}
    return found


def layers_of(module):
    """suffix → `Layer` of each layer and direction of a recurrent layer, on the CPU: gates without a weight are constants."""
    return {suffix: layer for level in _levels(module) for suffix, layer in level.items()}


def _levels(module):
    small = isinstance(module, SmallRecurrent)
    kind = next(theirs for theirs in RECURRENT if isinstance(module, theirs))
    ends = ("", "_reverse") if module.bidirectional else ("",)
    for number in range(module.num_layers):
        level, found = module.levels[number] if small else module, {}
        cell = RECURRENT[kind].cell_type(getattr(level, "activation", getattr(level, "nonlinearity", "logistic")))
        for end in ends:
            suffix = f"_l{number}{end}"
            names = [f"{own}{suffix}" for own in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            weights = [getattr(module, name).detach().cpu() for name in names[: 4 if module.bias else 2]]
            weights += [] if module.bias else [weights[1].new_zeros(len(weights[1]))] * 2
            width = weights[1].shape[1]
            keep = torch.ones(width, dtype=torch.bool)
            if small:
                keep[len(getattr(module, "kept" + suffix)) :] = False  # neurons that stay at zero
                if number == 0 and module.words is not None:
                    weights[0] = weights[0][:, :-1]  # an engine knows the column of removed words by itself
            live = (weights[0] != 0).any(1) | (weights[1] != 0).any(1)
            live &= keep.repeat(len(cell.gates))
            weights[1] = weights[1][:, keep]
            found[suffix] = Layer(cell, shrink(cell, *weights, keep, live))
        yield found


class Level(nn.Module):
    """One level of a recurrent layer, each direction by an engine; called as the layer is.

    The final h is that of the last real step; of an LSTM's c, which no engine hands out, only NaN is returned.
    Raises Unsupported for a state to go on from, ValueError for lengths that are none.
    """

    def __init__(self, layers, module, make, last):
        super().__init__()
        self.engines = [make(layer) if layer.hidden else None for layer in layers]
        self.hidden_size, self.batch_first = max(1, *(layer.hidden for layer in layers)), module.batch_first
        self.pair, self.last = isinstance(module, nn.LSTM), last

    def flatten_parameters(self):
        """Nothing to lay out: the engine has its own."""

    def forward(self, input, hx=None, lengths=None, padding="right"):
        if hx is not None:
            raise Unsupported("engines start from zeros; the model itself goes on from a state")
        x, _, lengths, back = by_time(self, input, None, lengths)
        steps, batch, live = len(x), x.shape[1], None
        if lengths is not None:
            if lengths.shape != (batch,) or bool(((lengths < 0) | (lengths > steps)).any()):
                raise ValueError(f"lengths are {lengths.tolist()!r:.80}; one for each of {batch}, from 0 to {steps}")
            time = torch.arange(steps, device=x.device)[:, None]
            live = time < lengths if padding == "right" else time >= steps - lengths
        outputs, states = [], []
        for engine, reverse in zip(self.engines, (False, True), strict=False):
            if engine is None:
                y = torch.zeros(steps, batch, 0, device=x.device)
            elif reverse:
                y = engine(x.flip(0), None if live is None else live.flip(0)).flip(0)
            else:
                y = engine(x, live)
            end = torch.full((batch,), 0 if reverse else steps - 1, device=x.device)
            if lengths is not None and (padding == "left") == reverse:
                end = (steps - lengths if reverse else lengths - 1).clamp(0, steps - 1)
            h = y[end, torch.arange(batch, device=x.device)]
            states.append(nn.functional.pad(h, (0, self.hidden_size - h.shape[1])))
            outputs.append(y)
        y, h = torch.cat(outputs, 2), torch.stack(states)
        if not (y.shape[2] or self.last):  # the level above reads one column of zeros
            y = y.new_zeros(steps, batch, 1)
        return back(y, (h, torch.full_like(h, torch.nan)) if self.pair else h)


class ByEngine(nn.Module):
    """A linear layer by an engine's kind of product."""

    def __init__(self, linear, reads, inputs):
        super().__init__()
        self.linear, self.in_features = linear, inputs
        self.register_buffer("reads", reads)

    def forward(self, input):
        if input.shape[-1] != self.in_features:
            raise ValueError(f"input has width {input.shape[-1]}, expected {self.in_features}")
        return self.linear((input if self.reads is None else input.index_select(-1, self.reads)).float())


class Ids(nn.Module):
    """In the place of an embedding that is multiplied into the weights of the layer that reads it."""

    def __init__(self, embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.register_buffer("lookup", getattr(embedding, "lookup", None))

    def forward(self, input):
        if self.lookup is not None:
            return self.lookup.index_select(0, input.flatten()).view(input.shape).long()
        if bool(((input < 0) | (input >= self.num_embeddings)).any()):
            raise IndexError(
                f"ids from {int(input.min())} to {int(input.max())}; there are {self.num_embeddings} words"
            )
        return input.long()


def by_engine(model, engine, example, device="cpu"):
    """A copy of `model` on `device` whose recurrent and linear layers are run by `engine`, in float32 and evaluation.

    model    small, or as it was                      example  what it is called with, as `sparsernn.compact` takes it
    Where the engine reads ids, an embedding that goes straight into a recurrent layer is multiplied into its weights, once.
    Raises ValueError for an unknown engine, `Unsupported` for a layer it does not run.
    """
    kind = engine_class(engine)
    if not recurrent_layers(model):
        raise Unsupported(f"a {type(model).__name__} has no recurrent layer to run")
    copied = deep_copy(model).float().cpu().eval().requires_grad_(False)
    straight = _straight(copied, tree_map(_on_cpu, example)) if kind.reads_ids else {}
    for name, module in recurrent_layers(copied).items():
        levels = list(_levels(module))
        if name in straight:
            embedding = copied.get_submodule(straight[name])
            table = embedding.weight if getattr(embedding, "kept", None) is None else embedding.weight[:-1]
            table = table if getattr(module, "reads", None) is None else table[:, module.reads]
            levels[0] = {suffix: layer.reading(table) for suffix, layer in levels[0].items()}
        _as_small(module, one_hot=kind_of(module) is not type(module) and name not in straight)
        for number, level in enumerate(levels):
            last = number + 1 == len(levels)
            module.levels[number] = Level(level.values(), module, lambda layer: kind(layer, device), last)
            places = module.sends if last and len(module.sends) < sum(part.hidden for part in level.values()) else None
            module.register_buffer(f"places_l{number}", places, persistent=False)
    found = Found(copied)
    for name, module in list(copied.named_modules()):
        known = name in found.layers and kind_of(module) is nn.Linear and not found.is_tied(name)
        if isinstance(module, SmallLinear) or (known and not is_computed(module, "weight")):
            bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
            linear = kind.linear(module.weight.detach(), bias.detach(), device)
            _put(copied, name, ByEngine(linear, getattr(module, "reads", None), module.in_features))
    for name in set(straight.values()):
        _put(copied, name, Ids(copied.get_submodule(name)))
    return copied.to(device)


def _on_cpu(x):
    return (
        x.float().cpu()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x.cpu()
        if isinstance(x, torch.Tensor)
        else x
    )


def _put(model, name, module):
    place, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(place), leaf, module.eval())


def _as_small(module, one_hot):
    """A recurrent layer as one whose levels can be others."""
    if isinstance(module, SmallRecurrent):
        return
    ends, size = ("", "_reverse") if module.bidirectional else ("",), module.hidden_size
    kept = {f"_l{number}{end}": size for number in range(module.num_layers) for end in ends}
    words = module.input_size if one_hot else None
    spec = {"inputs": module.input_size, "reads": None, "words": words, "kept": kept}
    become(module, spec | {"sends": len(ends) * size, "wide": False, "scaled": False})
    for name in ("sends", "words", *("kept" + suffix for suffix in kept)):
        buffer = getattr(module, name)
        module.register_buffer(name, None if buffer is None else torch.arange(len(buffer)))
    module.settle()


@torch.no_grad()
def _straight(model, example):
    """Recurrent layer → the embedding of ids [·, ·] that it alone reads, as it is: found by running the example."""
    start, found = Start(model), {}
    embeddings = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    outputs, inputs = {}, {}
    with start.again() as copied:
        for name in embeddings:
            keep = lambda m, args, y, to=name: outputs.setdefault(to, []).append((args[0] if args else None, y))  # noqa: E731
            copied.get_submodule(name).register_forward_hook(keep)
        for name in recurrent_layers(copied):
            keep = lambda m, args, to=name: inputs.setdefault(to, []).append(args[0] if args else None)  # noqa: E731
            copied.get_submodule(name).register_forward_pre_hook(keep)
        expected = answer(copied, example)
    for layer, given in inputs.items():
        for name, ((ids, y), *more) in outputs.items():
            x = given[0]
            if (
                more
                or len(given) > 1
                or not isinstance(x, torch.Tensor)
                or ids is None
                or ids.dim() != 2
                or x.dim() != 3
            ):
                continue
            if x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() and x.numel() == y.numel():
                with start.again() as copied:
                    copied.get_submodule(name).register_forward_hook(lambda m, args, y: torch.full_like(y, torch.nan))
                    copied.get_submodule(layer).register_forward_pre_hook(lambda m, args, x=x: (x, *args[1:]))
                    if all(map(torch.equal, answer(copied, example), expected)):
                        found[layer] = name
    return found
