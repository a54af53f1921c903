"""Who reads a layer's output, found by running the model on an example.

A neuron's output is replaced by a number of its own, the same at every step and in every sequence, so that taking the
last step, a maximum or a mean over time leaves it as it is. Whoever then reads a column of that number reads the neuron.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from .small import like

REFUSES = (RuntimeError, ValueError, LookupError, TypeError, AssertionError, AttributeError)  # how a forward says no


@dataclass
class Reading:
    """Who reads a producer's output.

    columns   consumer's name → {its column: (the neuron in it, "y" from the outputs or "h" from the final state)}
    complete  nothing else in the model, and no part of its answer, depends on outputs or final state
    state     the answer depends on the final state
    seen      the same as columns of all that were called, those that read nothing of it too
    """

    columns: dict
    complete: bool
    state: bool
    seen: dict = field(default_factory=dict)

    def and_also(self, other):
        """What holds in two examples. A consumer that reads one thing here and another there is none to rely on."""
        both = self.seen.keys() & other.seen.keys()
        spoiled = {name for name in both if self.seen[name] != other.seen[name]}
        columns = {name: found for name, found in (self.columns | other.columns).items() if name not in spoiled}
        complete = self.complete and other.complete and not spoiled & (self.columns.keys() | other.columns.keys())
        return Reading(columns, complete, self.state or other.state, self.seen | other.seen)


def call(model, example):
    """The model on a copy of an example: a tensor, or a tuple or dict of arguments, or a function that calls it."""
    if callable(example):
        return example(model)
    example = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, example)
    given, named = ((), example) if isinstance(example, dict) else (arguments(example), {})
    try:
        return model(*given, **named)
    except TypeError as problem:
        _say_how(model, example, given, named, problem)
        raise


def arguments(example):
    """What an example that is no dict hands in: a tuple's items; anything else whole, a packed sequence or named tuple too."""
    return example if isinstance(example, tuple) and not hasattr(example, "_fields") else (example,)


def _say_how(model, example, given, named, problem):
    """Raise TypeError with a hint where an example does not fit a forward's arguments."""
    try:
        inspect.signature(model.forward).bind(*given, **named)
    except (TypeError, ValueError) as why:
        kind = type(example).__name__
        hint = f"a {kind} is handed in as one argument; to hand in its items, give `tuple(batch)`"
        if named or example is given:
            hint = f"the items of a {kind} are handed in one by one; to pass it as one argument, give `(batch,)`"
        if not isinstance(example, torch.Tensor):
            raise TypeError(f"{type(model).__name__} cannot be called with the example: {why} ({hint})") from problem


def moved(example, device):
    """An example with its tensors on a device; of packed sequences the sizes stay where torch wants them."""
    kinds = torch.Tensor | PackedSequence
    return tree_map(lambda x: x.to(device) if isinstance(x, kinds) else x, example, is_leaf=_is_packed)


def _is_packed(x):
    return isinstance(x, PackedSequence)


@torch.no_grad()
def everything(model, example):
    """The tensors the model returns, states too; of packed sequences their numbers."""
    return [_tensor_of(x) for x in _leaves(call(model, example))]


@torch.no_grad()
def answer(model, example, behind=False, to_go_on=None):
    """The tensors the model returns, but for states of its recurrent layers that it hands through (of one that has the method
    `states_in`, what that finds in its output).

    behind    behind a yes or no, or the number of a class, stand numbers that say more: then also what linear layers returned
    to_go_on  names of the layers whose states are left out (`states.only_to_go_on`); None: of all
    """
    said = []
    handles = [
        m.register_forward_hook(lambda module, args, output: said.append(output))
        for m in model.modules()
        if behind and isinstance(m, nn.Linear)
    ]
    try:
        with states_of(model) as states:
            leaves = everything(model, example)
    finally:
        for handle in handles:
            handle.remove()
    left_out = [state for name, found in states.items() if to_go_on is None or name in to_go_on for state in found]
    leaves = [x for x in leaves if not any(x is state for state in left_out)]
    return leaves + said if any(not x.is_floating_point() for x in leaves) else leaves


@contextmanager
def states_of(model):
    """While it lasts, the final states of the model's recurrent layers are added to the dict it gives: name → tensors."""
    found = {}

    def look(name):
        def see(module, args, output):
            states = module.states_in(output) if hasattr(module, "states_in") else tree_leaves(output[1])
            found.setdefault(name, []).extend(states)

        return see

    handles = [
        m.register_forward_hook(look(name))
        for name, m in model.named_modules()
        if isinstance(m, nn.RNNBase) or hasattr(m, "states_in")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _leaves(returned):
    """The tensors in whatever a model returns: containers, dataclasses, and objects that hold them as attributes."""
    for x in tree_leaves(returned):
        if isinstance(x, torch.Tensor | PackedSequence):
            yield x
        elif is_dataclass(x) and not isinstance(x, type):
            yield from _leaves([getattr(x, one.name) for one in fields(x)])


def _tensor_of(x):
    return x.data if isinstance(x, PackedSequence) else x


@contextmanager
def replaced(module, replace):
    """While it lasts, `module` returns replace(its output)."""
    handle = module.register_forward_hook(lambda module, args, output: replace(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched(modules, see):
    """While it lasts, see(name, first argument) is told of every call of the modules; what it returns is used instead."""

    def hook(name):
        def look(module, args, kwargs):
            if args:
                return (see(name, args[0]), *args[1:]), kwargs
            return args, kwargs | {"input": see(name, kwargs["input"])}

        return look

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def who_reads(start, producer, consumers, example, to_go_on):
    """→ `Reading` of one producer (name of a recurrent layer or an embedding); None if the example never reaches it.

    start     `outside.Start` of the model      consumers  names of those that may read it
    to_go_on  names of the layers whose returned states are no part of the answer
    """
    generator, directions = torch.Generator().manual_seed(0), 1

    def marked(output):
        y, state = output if recurrent else (output, None)
        values = _tensor_of(y)
        if "y" not in found:  # the same in every call: outputs of several may be put together
            found["y"] = (torch.rand(values.shape[-1], generator=generator, dtype=torch.float64) + 1).to(values)
        marks = found["y"]
        y = like(y, lambda v: marks.expand(v.shape).clone())
        if not recurrent:
            return y
        hidden, *rest = state if isinstance(state, tuple) else (state,)
        if "h" not in found:
            last = torch.rand(directions, hidden.shape[-1], generator=generator, dtype=torch.float64).to(values) + 3
            found["h"] = last.flatten()
        last = found["h"].view(directions, -1)
        noise = [torch.randn(s.shape, generator=generator, dtype=torch.float64).to(s) for s in (hidden, *rest)]
        noise[0][-directions:] = last[(slice(None), *[None] * (hidden.dim() - 2))]
        return y, tuple(noise) if isinstance(state, tuple) else noise[0]

    found, maps, spoiled = {}, {}, set()

    def see(name, x):
        values = _tensor_of(x)
        if not values.is_floating_point() or not values.numel():
            return x
        values = values.reshape(-1, values.shape[-1])
        steady = (values.amax(0) - values.amin(0)).abs() <= 1e-6 * values.abs().amax(0)
        mapping = {}
        for kind, marks in found.items():  # y: columns of the output; h: of the last layer's states, as in y
            distance = (values[0][:, None] - marks[None]).abs() / marks
            nearest = distance.argmin(1)
            for column in (steady & (distance.amin(1) < 1e-6)).nonzero().flatten().tolist():
                mapping[column] = (int(nearest[column]), kind)
        if maps.setdefault(name, mapping) != mapping:  # called on different things: not a reader to rely on
            spoiled.add(name)
        return x

    with start.again() as model:
        module = model.get_submodule(producer)
        if recurrent := isinstance(module, nn.RNNBase):
            directions = 2 if module.bidirectional else 1
        with replaced(module, marked), watched({name: model.get_submodule(name) for name in consumers}, see):
            answer(model, example)
    if not found:
        return None
    columns = {name: mapping for name, mapping in maps.items() if mapping and name not in spoiled}
    itself = recurrent and _goes_on(start, producer, example)
    complete = _indifferent(start, producer, columns, example, ("y", "h"), to_go_on, itself)
    state = recurrent and not _indifferent(start, producer, {}, example, ("h",), to_go_on, itself)
    return Reading(columns, complete, state, {name: {} if name in spoiled else found for name, found in maps.items()})


def _goes_on(start, producer, example):
    """Whether a recurrent layer is called again, with states in which each neuron has what came out for it, as it was or scaled
    or reset, if they are its own. Then it is no reader: what goes in for a neuron that is gone comes out for nobody."""
    for chosen in (True, False):  # these neurons say something else in the second run, the others must not notice
        one, other = (_called_again(start, producer, example, chosen, seed) for seed in range(2))
        if len(one) < 2 or [len(states) for states in one] != [len(states) for states in other]:
            return False
        for a, b in zip(tree_leaves(one[1:]), tree_leaves(other[1:]), strict=True):
            others = _half(a) != chosen
            if a.shape != b.shape or not torch.equal(a * others, b * others):
                return False
    return True


def _half(state):
    """bool: a half of the neurons of each level, the same ones in all sequences and states."""
    few = (len(state), *[1] * (state.dim() - 2), state.shape[-1])
    return (torch.rand(few, generator=torch.Generator().manual_seed(0)) < 0.5).to(state.device)


def _called_again(start, producer, example, chosen, seed):
    """The states that a recurrent layer is given, call by call, where it always says zeros, and as final states ones, but for
    the half of the neurons that is `chosen`."""
    given, generator = [], torch.Generator().manual_seed(seed)

    def see(module, args, kwargs):
        given.append([s for s in tree_leaves(args[1] if len(args) > 1 else kwargs.get("hx")) if s is not None])

    def other(state):
        numbers = torch.randn(state.shape, generator=generator, dtype=torch.float64).to(state)
        return torch.where(_half(state) == chosen, numbers, 1.0)

    with start.again() as model:
        module = model.get_submodule(producer)
        module.register_forward_pre_hook(see, with_kwargs=True)
        with replaced(module, lambda output: (like(output[0], torch.zeros_like), tree_map(other, output[1]))):
            answer(model, example)
    return given


def _indifferent(start, producer, columns, example, parts, to_go_on, itself=False):
    """Whether the model's answer is the same whatever the outputs ("y") and final states ("h") are, `columns` unseen, nor, with
    `itself`, the states that the layer itself is given."""
    answers, hard = [], False
    for seed in range(8):
        if len(answers) == 2 and not hard:  # a yes or no may be the same by chance
            break
        generator = torch.Generator().manual_seed(seed)

        def random(v, generator=generator):
            return torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v)

        def scrambled(output, random=random):
            if not isinstance(output, tuple) or isinstance(output, PackedSequence):
                return like(output, random)
            y, state = output
            return (like(y, random) if "y" in parts else y), tree_map(random, state)

        def blind(name, x):
            unseen = list(columns.get(name, ()))
            return like(x, lambda v: v.index_fill(-1, torch.tensor(unseen, device=v.device), 0)) if unseen else x

        def from_zeros(module, args, kwargs):
            if len(args) > 1:
                return (args[0], _zeros(args[1]), *args[2:]), kwargs
            return args, kwargs | {"hx": _zeros(kwargs.get("hx"))}

        with start.again() as model:
            watch = watched({name: model.get_submodule(name) for name in columns}, blind)
            if itself:
                model.get_submodule(producer).register_forward_pre_hook(from_zeros, with_kwargs=True)
            with replaced(model.get_submodule(producer), scrambled), watch:
                answers.append(answer(model, example, behind=True, to_go_on=to_go_on))
        hard = any(not x.is_floating_point() for x in answers[0])
    return all(len(a) == len(answers[0]) and all(map(_same, a, answers[0])) for a in answers[1:])


def _zeros(states):
    return tree_map(lambda s: s if s is None else torch.zeros_like(s), states)


def _same(a, b):
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
