"""Weights that a model reads otherwise than by calling their layer: what nobody who stands in for the layer could see."""

import copy
import random
from contextlib import contextmanager

import numpy as np
import torch
from torch import overrides
from torch.overrides import TorchFunctionMode

LOOKS = {"new", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like"}
LOOKS |= {"full_like", "rand_like", "randn_like"}  # what reads a tensor's dtype and device, not its numbers
DATA = torch.Tensor.data.__get__  # torch's flatten_parameters looks at every weight's address by it


class Watch(TorchFunctionMode):
    """While it is entered, sees every operation on one of the weights outside of a call of a layer that has it.

    weights  name → (parameter, the layers that have it)     read  the names that were read otherwise
    """

    def __init__(self, weights):
        super().__init__()
        self.names = {id(parameter): name for name, (parameter, _) in weights.items()}
        self.layers = {layer for _, owners in weights.values() for layer in owners}
        self.owners = {name: set(owners) for name, (_, owners) in weights.items()}
        self.inside, self.read, self.hooks = [], set(), []

    def __deepcopy__(self, memo):
        """A copy watches nothing: its weights are others."""
        return Watch({})

    def __enter__(self):
        for layer in self.layers:
            self.hooks.append(layer.register_forward_pre_hook(lambda layer, args: self.inside.append(layer)))
            self.hooks.append(layer.register_forward_hook(lambda *call: self.inside.pop() and None, always_call=True))
        return super().__enter__()

    def __exit__(self, *problem):
        self._unhook()
        return super().__exit__(*problem)

    def leave(self):
        """Leave it wherever it stands: modes that were entered since stay."""
        self._unhook()
        if self not in (standing := overrides._get_current_function_mode_stack()):
            return
        above = standing[standing.index(self) + 1 :]
        for _ in (*above, self):
            overrides._pop_mode()
        for mode in above:
            overrides._push_mode(mode)

    def _unhook(self):
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear(), self.inside.clear()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result, name = function(*args, **(kwargs or {})), getattr(function, "__name__", "")
        if name not in LOOKS and function != DATA and _holds_tensor(result):
            given = args[:1] if name in ("to", "type_as") else (*args, *(kwargs or {}).values())
            for value in given:
                for one in value if isinstance(value, tuple | list) else (value,):
                    weight = self.names.get(id(one))
                    if weight is not None and not self.owners[weight] & set(self.inside):
                        self.read.add(weight)
        return result


def _holds_tensor(result):
    return isinstance(result, torch.Tensor) or (
        isinstance(result, tuple | list) and any(isinstance(one, torch.Tensor) for one in result)
    )


@contextmanager
def calls_of(layers):
    """While it lasts, the names of the layers (name → module) that are called are added to the set it gives."""
    called = set()
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: called.add(name))
        for name, layer in layers.items()
    ]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def deep_copy(model, memo=None):
    """copy.deepcopy, also where torch's hooks (weight_norm, pruning) have left computed tensors in modules' attributes."""
    held = []
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                held.append((vars(module), name, value, value.detach()))
            elif isinstance(value, list) and any(isinstance(v, torch.Tensor) and v.grad_fn is not None for v in value):
                plain = [v.detach() if isinstance(v, torch.Tensor) and v.grad_fn is not None else v for v in value]
                held.append((vars(module), name, value, plain))
    try:
        for place, name, _, plain in held:
            place[name] = plain
        return copy.deepcopy(model, memo)
    except TypeError as problem:
        raise TypeError(f"{_uncopied(model) or type(model).__name__} cannot be copied: {problem}") from problem
    finally:
        for place, name, value, _ in held:
            place[name] = value


def _uncopied(model):
    """The first attribute of a module that cannot be copied, as `encoder.lock`; None where none is the cause."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                try:
                    copy.deepcopy(value)
                except TypeError:
                    return f"{place}.{name}".lstrip(".")
                except RuntimeError:  # a computed tensor, which is another matter
                    pass
    return None


class Start:
    """A model as it stands, run from there as often as one likes: its buffers and attributes, and the generators of torch,
    numpy and Python, are as they were each time."""

    def __init__(self, model):
        self.model, self.draws = model, _draws()

    @contextmanager
    def again(self):
        """A copy of the model that shares its parameters, to be run and thrown away."""
        put_back(self.draws)
        try:
            yield deep_copy(self.model, {id(parameter): parameter for parameter in self.model.parameters()})
        finally:
            put_back(self.draws)


def _draws():
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


@contextmanager
def draws_kept():
    """Afterwards the generators of torch, numpy and Python are as they were."""
    draws = _draws()
    try:
        yield
    finally:
        put_back(draws)


def put_back(draws):
    torch.set_rng_state(draws[0])
    if draws[1]:
        torch.cuda.set_rng_state_all(draws[1])
    np.random.set_state(draws[2])
    random.setstate(draws[3])
