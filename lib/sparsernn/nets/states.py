"""Final states that a model returns: part of its answer, or handed out only to be handed in again.

A language model returns (logits, state) to go on from there: neurons that nobody else reads may go from that state. What an
encoder returns is read by whoever called it, and no run of the encoder shows that.
"""

import inspect
from dataclasses import fields, is_dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from .layers import kind_of
from .readers import REFUSES, answer, arguments, call, everything, states_of, who_reads


@torch.no_grad()
def states_returned(model, example):
    """Recurrent layer → its final states that the model returns as they are."""
    with states_of(model) as states:
        leaves = everything(model, example)
    found = {name: [s for s in mine if any(s is x for x in leaves)] for name, mine in states.items()}
    return {name: mine for name, mine in found.items() if mine}


def only_to_go_on(found, start, examples, consumers):
    """Names of the recurrent layers whose returned states are no part of the answer: the model takes them as an argument too,
    returns something else, and something else of the layer is read.

    found, start  layers of the model, and its `Start`      consumers  as `compact` takes them: they are believed
    """
    returned, taken = set(), set()
    for example in examples:
        with start.again() as model:
            mine = states_returned(model, example).keys() & found.recurrent.keys()
        returned |= mine
        taken |= _taken_back(start, example) if mine else set()
    told = {name for name in returned & consumers.keys() if consumers[name]}
    taken = (returned & taken) - consumers.keys() | told
    for example in examples if taken else ():
        with start.again() as model:
            if not answer(model, example, to_go_on=taken):
                with start.again() as model:
                    taken -= states_returned(model, example).keys()
    return {name for name in taken if name in told or _is_read_otherwise(found, start, examples, name, taken)}


def _is_read_otherwise(found, start, examples, name, taken):
    readers = [reader for reader, m in found.layers.items() if reader != name and kind_of(m) is not nn.Embedding]
    seen = [who_reads(start, name, readers, example, taken) for example in examples]
    return any(reading.columns or not reading.complete for reading in seen if reading)


def _taken_back(start, example):
    """Names of the recurrent layers that are called with a state which the model is handed in one of its arguments."""
    if callable(example):
        return _given_one(start, example)
    with start.again() as model, states_of(model) as states, torch.no_grad():
        returned = call(model, example)
    generator, taken = torch.Generator().manual_seed(0), set()
    marks = {
        id(s): (torch.randint(-128, 128, s.shape, generator=generator) / 128).to(s)
        for mine in states.values()
        for s in mine
    }
    for part in _parts(returned):
        if not any(id(x) in marks for x in tree_leaves(part)):
            continue
        given = tree_map(lambda x: marks.get(id(x), x), part)
        for other in _handed(start.model, example, given):
            with start.again() as model:
                taken |= _called_with(model, other, [x for x in tree_leaves(given) if isinstance(x, torch.Tensor)])
    return taken


@torch.no_grad()
def _given_one(start, example):
    """Names of the recurrent layers that start from a state of an example's own: it is neither zeros nor the model's."""
    calls = {}

    def look(name):
        def see(module, args, kwargs):
            hx = tree_leaves(args[1] if len(args) > 1 else kwargs.get("hx"))
            made = {s.data_ptr() for mine in states.values() for s in mine} | own
            given = [s for s in hx if isinstance(s, torch.Tensor) and s.data_ptr() not in made]
            calls.setdefault(name, any(bool(s.any()) for s in given))

        return see

    with start.again() as model, states_of(model) as states:
        own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                module.register_forward_pre_hook(look(name), with_kwargs=True)
        call(model, example)
    return {name for name, given in calls.items() if given}


@torch.no_grad()
def _called_with(model, example, marks):
    """Names of the recurrent layers that get one of these tensors as their state."""
    found = set()

    def look(name):
        def see(module, args, kwargs):
            for state in tree_leaves(args[1] if len(args) > 1 else kwargs.get("hx")):
                if any(state.shape == m.shape and torch.equal(state.to(m), m) for m in marks if state is not None):
                    found.add(name)

        return see

    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(look(name), with_kwargs=True)
    try:
        call(model, example)
    except REFUSES:  # no argument for a state, or for one of several; whom it reached has been seen
        pass
    return found


def _parts(returned):
    """What a model returns, piece by piece."""
    if is_dataclass(returned):
        return [getattr(returned, one.name) for one in fields(returned)]
    if isinstance(returned, dict):
        return list(returned.values())
    if isinstance(returned, tuple | list) and not isinstance(returned, PackedSequence):
        return list(returned)
    return [returned]


def _handed(model, example, state):
    """The example with a state in the place of each argument, of those that it has and of those that it leaves out."""
    try:
        signature = inspect.signature(model.forward)
        given = signature.bind(**example) if isinstance(example, dict) else None
        given = given or signature.bind(*arguments(example))
    except (TypeError, ValueError):  # nothing to go by
        return
    several = [n for n, p in signature.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield (*given.args, state)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield {n: v for n, v in given.arguments.items() if n not in several} | {name: state}
