"""A whole model run by an engine: its recurrent layers, what reads them, and the look-up before them."""

from contextlib import suppress
from functools import partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..nets.found import Found, is_computed
from ..nets.layers import RECURRENT, kind_of
from ..nets.norms import without_norms
from ..nets.outside import Start, deep_copy
from ..nets.readers import answer, everything, moved
from ..nets.small import SMALL, SmallEmbedding, SmallLinear, SmallRecurrent, become, of_small, settle, without_max_norm
from . import engine_class
from .base import Layer, Unsupported
from .parts import shrink


def recurrent_layers(model):
    """name → recurrent layer, small or as it was."""
    kinds = (*RECURRENT, *RECURRENT.values(), *SMALL.values())
    return {name: module for name, module in model.named_modules() if type(module) in kinds}


def activation_of(module):
    """Of a recurrent layer's gates (LSTM, GRU), or of its neurons (RNN)."""
    return getattr(module, "activation", getattr(module, "nonlinearity", "logistic"))


def layers_of(module):
    """suffix → `Layer` of each layer and direction of a recurrent layer, on the CPU: gates without a weight are constants."""
    small, found = getattr(module, "_small", None), {}
    kind = next(theirs for theirs in RECURRENT if isinstance(module, theirs))
    cell, ends = RECURRENT[kind].cell_type(activation_of(module)), ("", "_reverse") if module.bidirectional else ("",)
    tensors = without_norms(module)
    for number, suffix in [(n, f"_l{n}{end}") for n in range(module.num_layers) for end in ends]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
        weights = [tensors[name + suffix].cpu() for name in names]
        weights += [] if module.bias else [weights[1].new_zeros(len(weights[1]))] * 2
        keep = torch.ones(weights[1].shape[1], dtype=torch.bool)
        if isinstance(module, SmallRecurrent):
            keep[len(getattr(small, "kept" + suffix)) :] = False  # neurons that stay at zero
            if small.words is not None and suffix.startswith("_l0"):
                weights[0] = weights[0][:, :-1]  # an engine knows the column of removed words by itself
        live = ((weights[0] != 0).any(1) | (weights[1] != 0).any(1)) & keep.repeat(len(cell.gates))
        weights[1] = weights[1][:, keep]
        reach = of_small(module, "reach")
        if number:  # what is below sends states
            below = found[f"_l{number - 1}"].bound
            reach = below if below is None else below * (1 + getattr(module, "summed", False))
        found[suffix] = Layer(cell, shrink(cell, *weights, keep, live), reach)
    return found


class Levels:
    """The levels of a small recurrent layer, each direction by an engine, in the place of `SmallRecurrent.level`.

    states  whether anyone has a use for final states: those that were not asked for, and an LSTM's c where the engine does not
            hand it out, are NaN.
    Raises Unsupported for a state to go on from, unless the engine `carries` one.
    """

    def __init__(self, layers, module, make):
        self.engines = {suffix: make(layer) if layer.hidden else None for suffix, layer in layers.items()}
        self.ends, self.last, self.pair = module.ends(), module.num_layers - 1, isinstance(module, nn.LSTM)
        self.widths, self.states, self.summed = module._small.widths, False, module.summed
        self.carries = all(engine is None or engine.carries for engine in self.engines.values())

    def __call__(self, number, x, initial, ours):
        if initial is not None and not self.carries:
            raise Unsupported("this engine can only start from zeros; the model itself goes on from a state")
        live, outputs, states, width = ours[0], [], [], self.widths[number]
        live, way = None if live is None else live[:, :, 0], self._carried if self.carries else self._from_zeros
        for direction, end in enumerate(self.ends):
            state = None if initial is None else [s[direction] for s in initial]
            turned, mask = (x, live) if not end else (x.flip(0), None if live is None else live.flip(0))
            y, state = way(self.engines[f"_l{number}{end}"], turned, mask, state)
            outputs.append(y.flip(0) if end else y)
            states.append(state and [_as_wide(s, width) for s in state])
        y = sum(outputs) if self.summed else outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        if not (y.shape[2] or number == self.last):  # the level above reads one column of zeros
            y = y.new_zeros(*x.shape[:2], 1)
        if states[0] is None:
            return y, None
        return y, [s[0].unsqueeze(0) if len(s) == 1 else torch.stack(s) for s in zip(*states, strict=True)]

    def _carried(self, engine, x, live, state):
        """One direction by an engine that goes on from a state of the level's width, or zeros → y, the state after it."""
        if engine is None:
            return self._nothing(x), [x.new_zeros(x.shape[1], 0, dtype=torch.float32)] * (1 + self.pair)
        return engine.carry(
            x, live, None if state is None else [s[:, : engine.layer.hidden] for s in state], final=True
        )

    def _from_zeros(self, engine, x, live, state):
        """One direction by an engine that does not → y, and h after it, if that was asked for: the last y."""
        if self.states and engine is not None and engine.hands_out:
            return engine.with_states(x, live)
        y = self._nothing(x) if engine is None else engine(x, live)
        if not self.states:
            return y, None
        (steps, batch), device = y.shape[:2], y.device
        time = torch.arange(steps, device=device)[:, None].expand(steps, batch)
        time = time if live is None else time.masked_fill(~live, 0)
        h = y[time.amax(0), torch.arange(batch, device=device)]
        return y, [h, torch.full_like(h, torch.nan)] if self.pair else [h]

    @staticmethod
    def _nothing(x):
        return torch.zeros(*x.shape[:2], 0, device=x.device)


def _as_wide(state, width):
    return state if state.shape[1] == width else nn.functional.pad(state, (0, width - state.shape[1]))


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
        self.register_buffer("lookup", of_small(embedding, "lookup"))

    def forward(self, input):
        if self.lookup is not None:
            return self.lookup.index_select(0, input.flatten()).view(input.shape).long()
        if bool(((input < 0) | (input >= self.num_embeddings)).any()):
            raise IndexError(
                f"ids from {int(input.min())} to {int(input.max())}; there are {self.num_embeddings} words"
            )
        return input.long()


def by_layers(model, engine, example, device="cpu", states=True):
    """A copy of `model` on `device` whose recurrent and linear layers are run by `engine`, in float32 and evaluation.

    model    small, or as it was                      example  what it is called with, as `sparsernn.compact` takes it
    states   whether final states that the model returns are wanted: else they may be NaN, as is an LSTM's c in any case where
             the engine does not hand it out
    Where the engine reads ids, an embedding that goes straight into a recurrent layer is multiplied into its weights, once.
    Raises ValueError for an unknown engine, `Unsupported` for a layer it does not run.
    """
    kind = engine_class(engine)
    if not recurrent_layers(model):
        raise Unsupported(f"a {type(model).__name__} has no recurrent layer to run")
    copied = without_max_norm(deep_copy(model).float().cpu().eval().requires_grad_(False))
    straight = _straight(copied, tree_map(_on_cpu, example)) if kind.reads_ids else {}
    for name, module in recurrent_layers(copied).items():
        layers = layers_of(module)
        if name in straight:
            embedding = copied.get_submodule(straight[name])
            table = embedding.weight[:-1] if isinstance(embedding, SmallEmbedding) else embedding.weight
            reads = module._small.reads if isinstance(module, SmallRecurrent) else None
            table = table if reads is None else table[:, reads]
            layers |= {suffix: layer.reading(table) for suffix, layer in layers.items() if suffix.startswith("_l0")}
        one_hot = kind_of(module) is not type(module) and name not in straight
        put_levels(module, layers, lambda layer: kind(layer, device), one_hot)
        module._small.takes_ids |= name in straight
    found = Found(copied)
    for name, module in list(copied.named_modules()):
        known = name in found.layers and kind_of(module) is nn.Linear and not found.is_tied(name)
        if isinstance(module, SmallLinear) or (known and not is_computed(module, "weight")):
            bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
            linear = partial(_only_bias, bias)
            if module.weight.shape[1]:
                reach = of_small(module, "reach")
                linear = kind.linear(module.weight.detach(), bias.detach(), device, reach)
            _put(
                copied,
                name,
                ByEngine(linear, of_small(module, "reads"), module.in_features),
            )
    for name in set(straight.values()):
        _put(copied, name, Ids(copied.get_submodule(name)))
    copied = copied.to(device)
    here = moved(example, device)
    _ask_for_states(copied, here, everything if states else answer)
    return copied


@torch.no_grad()
def _ask_for_states(model, example, said):
    """Have final states computed, unless the example runs, and what is `said` to it is a number without."""
    needed = True
    with suppress(Exception):  # an engine need not run the example to run other calls
        example = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, example)
        needed = any(bool((x != x).any()) for x in said(model, example))
    for module in recurrent_layers(model).values():
        module.level.states = needed


def _on_cpu(x):
    return (
        x.float().cpu()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x.cpu()
        if isinstance(x, torch.Tensor)
        else x
    )


def _only_bias(bias, y):
    """A linear layer that reads nothing."""
    return bias.to(y.device).expand(*y.shape[:-1], -1)


def _put(model, name, module):
    place, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(place), leaf, module.eval())


def put_levels(module, layers, make, one_hot):
    """Turn a recurrent layer, in place, into a small one whose levels `make`'s engines run. one_hot: it reads ids."""
    as_small(module, one_hot)
    object.__setattr__(module, "level", Levels(layers, module, make))
    for number in range(module.num_layers):  # an engine gives no neuron that stays at zero
        sends, last = module._small.sends, number == module.num_layers - 1
        whole = not last or len(sends) == sum(map(len, module.kept(number)[: len(module.abreast())]))
        module._small.follows(f"places_l{number}", None if whole else sends)


def as_small(module, one_hot):
    """A recurrent layer as one whose levels can be others."""
    if isinstance(module, SmallRecurrent):
        return
    ends, size = ("", "_reverse") if module.bidirectional else ("",), module.hidden_size
    kept = {f"_l{number}{end}": size for number in range(module.num_layers) for end in ends}
    words = module.input_size if one_hot else None
    spec = {"inputs": module.input_size, "reads": None, "words": words, "kept": kept}
    weights, out = without_norms(module), 1 if getattr(module, "summed", False) else len(ends)
    if one_hot:
        weights |= {
            name: nn.functional.pad(w, (0, 1)) for name, w in weights.items() if name.startswith("weight_ih_l0")
        }
    become(module, spec | {"sends": out * size, "wide": False, "scaled": False})
    for name, buffer in list(module._small.named_buffers()):
        module._small.register_buffer(name, torch.arange(len(buffer)))
    for name in module._flat_weights_names:
        setattr(module, name, nn.Parameter(weights[name], requires_grad=False))
    settle(module)


@torch.no_grad()
def _straight(model, example):
    """Recurrent layer → the embedding of ids [·, ·] that it alone reads, as it is: found by running the example."""
    start, found, outputs, inputs = Start(model), {}, {}, {}
    with start.again() as copied:
        for name, module in copied.named_modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_hook(partial(_keep_output, outputs.setdefault(name, [])))
        for name, module in recurrent_layers(copied).items():
            module.register_forward_pre_hook(partial(_keep_input, inputs.setdefault(name, [])))
        answer(copied, example)
    for layer, given in inputs.items():
        for name, said in outputs.items():
            if len(given) != 1 or len(said) != 1 or given[0] is None or said[0][0] is None:
                continue
            x, (ids, y) = given[0], said[0]
            straight = ids.dim() == 2 and x.dim() == 3 and x.numel() == y.numel()
            if straight and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
                if not _read_elsewhere(start, example, name, layer, x):
                    found[layer] = name
    return found


def _keep_output(kept, module, args, y):
    kept.append((args[0] if args else None, y))


def _keep_input(kept, module, args):
    kept.append(args[0] if args and isinstance(args[0], torch.Tensor) else None)


def _is_handed_on(x, y):
    """Whether y is x as it was: what a dropout says in evaluation."""
    same = isinstance(y, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype
    return same and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _read_elsewhere(start, example, embedding, layer, x):
    """Whether NaN in the place of what an embedding says reaches any module, or the answer, but by the layer, given x."""
    met = []

    def look(module, args, kwargs, y):
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor) and bool((v != v).any())]
        met.extend(v for v in given if not _is_handed_on(v, y))

    with start.again() as copied:
        reader = copied.get_submodule(layer)
        copied.get_submodule(embedding).register_forward_hook(lambda m, args, y: torch.full_like(y, torch.nan))
        reader.register_forward_pre_hook(lambda m, args: (x, *args[1:]))
        for module in copied.modules():
            if module is not reader:
                module.register_forward_hook(look, with_kwargs=True)
        return any(bool((v != v).any()) for v in answer(copied, example)) or bool(met)
