"""Put a method on a model: its layers carry what the method adds, and nothing is held beside the model.

study = attach(model, "sparse-vd-wgn", steps=2000, n_examples=len(data))
optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-3))
for x, y in batches:
    loss = criterion(model(x), y) + study.penalty()
    optimizer.zero_grad(), loss.backward(), optimizer.step()
    study.after_step()
model.eval()  # now it runs pruned
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..files import nearest, warn
from ..nets import quick
from ..nets.attached import PLACE, refuse_elsewhere, uncompiled
from ..nets.found import Found, is_computed, no_recurrent, parameter_names
from ..nets.layers import RECURRENT, kind_of, stand_in
from ..nets.outside import Start, Watch, calls_of, deep_copy
from ..nets.readers import call
from . import make, options_of
from .carried import Carried, Group, Transient, Weight
from .masking import often
from .options import check, names_of
from .plan import Plan
from .rounding import rounding
from .sequences import along


def attach(
    model, method, steps, n_examples, *, only=None, skip=None, example=None, reference=None, batch_dim=None,
    steps_per_epoch=1, **options,
):  # fmt: skip
    """Put a method on `model`, in place → `Study`; on what torch.compile made of one: on that one.

    Layers that are exactly nn.LSTM, nn.GRU, nn.RNN, nn.Linear or nn.Embedding become stand-ins of the same name that carry
    what the method adds; attributes, hooks, parameters and their identity stay. Left as it is, and named in `study.left`,
    is what the method could not govern: a weight that is frozen (requires_grad=False), computed (weight_norm, torch's
    pruning, an assignment in forward) or read without a call of its layer (tied by F.linear), a layer that is not called,
    and a subclass with ways of its own.

    method       a name of `sparsify.names()`, for example "sparse-vd-w", "sparse-vd-wgn"
    steps        optimiser steps the training will have
    n_examples   training examples as your loss counts them (its mean is over examples): the penalty is divided by it
    only, skip   layers (names or modules) that alone are touched, or that are not
    example      what the model is called with (a tensor, a tuple or dict of arguments, or a function that calls it): a copy of
                 it is run to find what is not called or read otherwise; without one the first step finds it, and raises
    reference    for a method that starts from a finished run: the state_dict of that run's model; for any other none
    batch_dim    the dimension of an embedding's ids that runs over sequences; None: seen on the example, and without one that
                 of the recurrent layers
    steps_per_epoch  what options that count in epochs are multiplied with; 1: they count in steps
    options      of the method (`sparsify.options_of`)

    Raises ValueError or TypeError, in words, for anything it cannot take: an unknown name, a number out of range, a model
    without a recurrent layer, proj_size, a second method on one model, on a part or a whole of it, a method that trains no
    network (`linear`).
    """
    model = uncompiled(model)
    if Study.of(model) is not None:
        raise ValueError("this model has a method on it already; study.detach() takes it off")
    refuse_elsewhere(model, "attach")
    if needed := make(method).default_model:
        raise ValueError(f"method {method!r} is for the model {needed!r} alone, and trains no other")
    if idle := [name for name in options if name in names_of(Plan)]:
        raise ValueError(
            f"{idle[0]} belongs to a training loop; in yours you set it yourself, here it would do nothing"
        )
    chosen = make(method, options_of(method, options))
    if missing := [name for name in chosen.asks if name not in options]:
        raise ValueError(
            f"{method} needs to be told {missing[0]}: {chosen.says_of(missing[0])}; left out, it does nothing"
        )
    if chosen.cuts:
        raise ValueError(
            "sleep_above cuts words and neurons out of the study's own training loop; in yours it would not, and answers and "
            "masks would differ: leave it at 0"
        )
    return put_on(
        model, chosen, steps, n_examples, only=only, skip=skip, example=example, reference=reference,
        batch_dim=batch_dim, steps_per_epoch=steps_per_epoch,
    )  # fmt: skip


def put_on(
    model, method, steps, n_examples, *, only=None, skip=None, example=None, reference=None, batch_dim=None,
    steps_per_epoch=1, needs_recurrent=True, warns=True,
):  # fmt: skip
    """`attach` of a `Method` that is made already. warns: of a schedule that prunes in jumps, and at the
    last step of a density that was missed."""
    steps, n_examples = check("steps", int, steps, least=1), check("n_examples", int, n_examples, least=1)
    steps_per_epoch = check("steps_per_epoch", int, steps_per_epoch, least=1)
    quick.remove(model)
    found = Found(model)
    unwanted = _not_wanted(found, only, skip)
    left = unwanted | {
        name: why for name, why in found.left.items() if name not in found.refused.keys() & unwanted.keys()
    }
    for name, why in found.refused.items():
        if left[name] == why:
            raise ValueError(f"{name}: {why}, or skip=[{name!r}]")
    if needs_recurrent and not found.recurrent:
        raise ValueError(no_recurrent(found))
    before = _start(model, method, reference)
    method.axes, method.shapes = found.axes(), {name: p.shape for name, p in found.parameters.items()}
    method.steps, method.steps_per_epoch, method.n_examples = steps, steps_per_epoch, n_examples
    try:
        _carry(found, method, left, batch_dim)
        if example is not None:
            for name, why in _ungoverned(model, found, example).items():
                left[name] = why
                _put_down(found.layers[name])
        _order(model, found, example)
        _collect(found, method)
        if method.touches and not method.weights:
            reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
            raise ValueError(f"no layer is left for the method to touch ({reasons})")
        method.prepare()
        what, by = method.begins
        if (begins := min((first for _, first, _ in method.schedule()), default=0)) >= steps:
            raise ValueError(
                f"{what} would begin at step {begins:,} of a training of {steps:,}: lower {by}, or train longer"
            )
        method.refuse_out_of_reach()
    except BaseException:  # refused: the model as it was
        for layer in found.layers.values():
            _put_down(layer)
        model.load_state_dict(before, strict=False)
        raise
    if warns and (hasty := method.hasty()):
        warn(hasty)
    method.idle = False
    return Study(model, method, left, known=example is not None, warns=warns)


def _start(model, method, reference):
    """Hand a method the finished runs it starts from: one state_dict, or one a name of its `needs()`. → what the model held
    where it now holds the first one's weights."""
    needs = method.needs()
    if not needs:
        if reference:
            raise ValueError(
                "this method, with these options, starts from no finished run and reads no reference: leave reference= out"
            )
        return {}
    if reference is not None:
        _refuse_no_state(reference)
    given = reference if reference and set(needs) <= set(reference) else dict.fromkeys(needs, reference)
    if missing := [name for name in needs if not given.get(name)]:
        raise ValueError(
            f"this method starts from a finished run of {missing[0]!r}: give attach reference=, the state_dict of its model"
            + (method.or_else and f", or {method.or_else}")
        )
    for name in needs:
        _refuse_no_state(given[name])
        _refuse_other_state(given[name], model)
    method.start_from({name: _copied(given[name]) for name in needs})  # a state_dict may be the model's own tensors
    if not method.continues:
        return {}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(given[needs[0]])
    except RuntimeError as problem:
        model.load_state_dict(before)
        raise ValueError(f"the finished run's model is another one: {problem}") from None
    return before


def _refuse_no_state(reference):
    """Raise TypeError for what is no state_dict, with how to get one of it."""
    if isinstance(reference, Mapping):
        return
    what, instead = f"of type {type(reference).__name__}", "torch.load of a file that holds one, for example"
    if isinstance(reference, nn.Module):
        what, instead = f"a model, a {type(reference).__name__}", "its state_dict()"
    elif isinstance(reference, str | Path):
        what, instead = f"a path, {str(reference)!r}", "what torch.load makes of it, if that is one"
    raise TypeError(f"reference is {what}; it has to be the state_dict of a finished run's model: give {instead}")


def _refuse_other_state(state, model):
    """Raise ValueError for the state_dict of another model: a name it lacks, or another shape."""
    for name, parameter in model.named_parameters():
        if not isinstance(found := state.get(name), torch.Tensor):
            inside = [key for key, value in state.items() if isinstance(value, Mapping) and name in value]
            longer = [key.removesuffix(name) for key in state if str(key).endswith(f".{name}")]
            if inside:
                instead = f"; it stands in reference[{inside[0]!r}]: give that"
            elif longer:
                instead = f"; it has {longer[0] + name}: give the state_dict of what is {longer[0].rstrip('.')} there"
            else:
                instead = f" but {', '.join(map(str, list(state)[:3])) or 'nothing'}{', …' if len(state) > 3 else ''}"
            raise ValueError(f"the finished run's model is another one: reference has no {name}{instead}")
        if found.shape != parameter.shape:
            raise ValueError(
                f"the finished run's model is another one: {name} is {list(found.shape)} in reference, {list(parameter.shape)} "
                "in the model"
            )


def _copied(state):
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, torch.Tensor)}


def _not_wanted(found, only, skip):
    """name → why, of the layers that the caller leaves out. Raises ValueError for a name that is no layer."""

    def names(given):
        known = {id(module): name for name, module in layers.items()}
        for one in [given] if isinstance(given, str | nn.Module) else given:
            name = known.get(id(one), type(one).__name__) if isinstance(one, nn.Module) else one
            inside = [layer for layer in layers if layer == name or layer.startswith(f"{name}.")]
            if isinstance(one, nn.Module) and not inside:
                inside = [layer for layer, module in layers.items() if module in set(one.modules())]
            if not inside:
                raise ValueError(nearest("layer", name, layers))
            yield from inside

    layers = found.layers | {name: found.model.get_submodule(name) for name in found.left}
    skipped = set(names(skip)) if skip is not None else set()
    if only is not None:
        skipped |= set(layers) - set(names(only))
    return dict.fromkeys((name for name in layers if name in skipped), "left out by the caller")


def _carry(found, method, left, batch_dim):
    """Give every layer that the method may touch a `Carried` with its weights; what it may not goes to `left`."""
    guessed, batch_dim, items = batch_dim is None, _usual(found) or 0 if batch_dim is None else batch_dim, {}
    for name, layer in found.layers.items():
        if name in left:
            continue
        kind = kind_of(layer)
        if kind is nn.Embedding and layer.sparse and _touched(layer, method) and layer.weight.requires_grad:
            raise ValueError(
                f"{name} has sparse=True; the penalty reaches every row, use sparse=False (or skip={[name]!r})"
            )
        carried = Carried(layer, method, batch_dim)
        carried.guessed = guessed
        if computed := [own for own in (*_matrices(layer), *_touched(layer, method)) if is_computed(layer, own)]:
            left[name] = f"its {computed[0]} is computed (weight_norm, pruning or an assignment), not a parameter"
            continue
        if "forward" in vars(layer):
            left[name] = "a forward of its own has been put on it"
            continue
        reasons = [
            f"its {own} is frozen (requires_grad=False)"
            for own in _touched(layer, method)
            if not getattr(layer, own).requires_grad
        ]
        if reasons and method.whole:
            left[name] = "; ".join(reasons)
            continue
        for own in _touched(layer, method):
            if getattr(layer, own).requires_grad:
                canonical = found.canonical[f"{name}.{own}"]
                item = items.get(canonical)
                if item is None:
                    item = items[canonical] = Weight(canonical, layer, own)
                    item.spared = getattr(layer, "padding_idx", None)
                else:
                    item.owners.append((layer, own))
                carried[own] = item
        if reasons:
            left[name] = "; ".join(reasons)
        if len(carried.matrices) or method.kinds and not reasons:
            stand_in(layer).carried = carried
    opened = found.groups.get(method.kinds, ()) if isinstance(method.kinds, str) else method.kinds
    for axis in found.axes() if opened else ():
        if axis.kind not in opened:
            continue
        group, name = Group(axis), axis.name.rpartition(".")[2]
        for owner in dict.fromkeys(member.tensor.rpartition(".")[0] for member in axis.having("scale")):
            layer = found.layers.get(owner)
            carried = None if layer is None else getattr(layer, "carried", None)
            mine = [m.tensor for m in axis.having("in", "out") if m.tensor.startswith(owner + ".")]
            untouched = [t for t in mine if carried is None or carried[t.rpartition(".")[2]] is None]
            if carried is not None and not (method.touches and untouched and len(untouched) == len(mine)):
                carried.groups[name] = group
                if axis.kind == "vocabulary":
                    group.spared = getattr(layer, "padding_idx", None)
                own = [m.tensor for m in axis.having("scale") if m.tensor.startswith(owner + ".")]
                carried.scales |= {tensor.rpartition(".")[2]: name for tensor in own}
    for layer in found.layers.values():
        carried = getattr(layer, "carried", None)
        if carried is not None and not carried.items():
            _put_down(layer)


def _matrices(layer):
    names = getattr(layer, "_flat_weights_names", ["weight"])
    return [name for name in names if name.startswith("weight")]


def _touched(layer, method):
    """Names of the tensors of a layer that are items of the method."""
    if not method.touches or (method.layers is not None and kind_of(layer) not in method.layers):
        return []
    return [own for own in parameter_names(layer) if own.startswith("weight") or method.biases]


def _put_down(layer):
    """The layer without what it carries, and of the class it had."""
    carried = layer._modules.pop("carried", None)
    if carried is not None:
        for item in carried.matrices.values():
            item.owners[:] = [(owner, own) for owner, own in item.owners if owner is not layer]
        layer.__class__ = carried.before


def _usual(found):
    """The dimension of sequences of the recurrent layers; None where they differ."""
    orders = {module.batch_first for module in found.recurrent.values()}
    return (0 if orders.pop() else 1) if len(orders) == 1 else None


def _order(model, found, example):
    """Find, for each embedding whose words have variables and of which nobody has said it, the dimension of its ids that runs
    over sequences."""
    carried = {name: getattr(layer, "carried", None) for name, layer in found.layers.items()}
    guessed = [
        name
        for name, mine in carried.items()
        if mine is not None and mine.guessed and mine.groups and kind_of(mine.layer) is nn.Embedding
    ]
    start = Start(deep_copy(model).eval()) if guessed and example is not None else None
    for name in guessed:
        dim = along(start, name, found.recurrent, example, _usual(found)) if start else _usual(found)
        if dim is None:
            raise ValueError(
                f"{name}: some recurrent layers have batch_first=True and some False; say with batch_dim= which dimension of "
                "its ids runs over sequences (0 or 1)"
            )
        carried[name].batch_dim = dim


def _collect(found, method):
    """`method.weights` and `method.groups`: every item once, weights in the model's order, groups in that of the axes."""
    weights, groups = {}, {}
    for layer in found.layers.values():
        carried = getattr(layer, "carried", None)
        for item in carried.items() if carried is not None else ():
            (weights if isinstance(item, Weight) else groups)[item.name] = item
    method.weights = {name: weights[name] for name in found.parameters if name in weights}
    method.groups = {axis.name: groups[axis.name] for axis in method.axes if axis.name in groups}


def _ungoverned(model, found, example):
    """name → why, of the layers whose weights the example shows to be used otherwise than by their call. Runs a copy."""
    twin = deep_copy(model)
    carrying = [name for name, layer in found.layers.items() if getattr(layer, "carried", None) is not None]
    layers, why = {name: twin.get_submodule(name) for name in carrying}, {}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for training, gradient in ((False, False), (False, True), (True, True)):
            twin.train(training)
            with torch.set_grad_enabled(gradient), calls_of(layers) as called, Watch(_watched(layers)) as watch:
                call(twin, example)
            for name, layer in layers.items():
                if read := [item.name for item in layer.carried.matrices.values() if item.name in watch.read]:
                    why[name] = f"{read[0]} is read without a call of its layer"
                elif name not in called:
                    why.setdefault(name, "it is not called on the example")
    return why


def _watched(layers):
    """What a `Watch` is given of the layers (name → module) that carry something."""
    items = {item.name: item for layer in layers.values() for item in layer.carried.matrices.values()}
    return {name: (item.theta, [layer for layer, _ in item.owners]) for name, item in items.items()}


def _calling(frame):
    """The frame of the module's call that a hook is part of: between them are those that keep torch.compile out of it."""
    while frame is not None and frame.f_globals.get("__name__") != nn.Module.__module__:
        frame = frame.f_back
    return frame


def _runs(frame):
    """Whether a call is still running, in any thread."""
    for here in sys._current_frames().values():
        while here is not None:
            if here is frame:
                return True
            here = here.f_back
    return False


LATE = 20  # steps by which an optimiser has moved what it is given, however many AMP has skipped


class Study:
    """A method at work on a model: noise while the model is in training mode, masks and means in evaluation.

    model, method   what it is on, and which
    left            layer → why it is left as it is
    step            optimiser steps so far
    weights, groups name → item: what the method works on (`carried.Weight`, `carried.Group`)
    A copy of the model (copy.deepcopy, torch.save) has a study of its own: `Study.of(copy)`.
    """

    def __init__(self, model, method, left, known, warns):
        self.model, self.method, self.left, self.step, self.warns = model, method, left, 0, warns
        self.trained = False  # whether the model ever ran as it does in training
        self.known, self.depth, self.watch, self.watching = known, 0, None, False
        self.outer = Transient()  # "frame" → that of the outermost forward, while it runs
        self.hooks = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]
        model.__dict__[PLACE] = self
        self.start = self._sums()

    @classmethod
    def of(cls, model):
        """The study attached to a model; None where there is none."""
        return getattr(uncompiled(model), "__dict__", {}).get(PLACE)

    def detach(self):
        """The model as it was, with its weights as they are now."""
        self._let_go()
        for module in list(self.model.modules()):
            if kind_of(module) is not None and getattr(module, "carried", None) is not None:
                _put_down(module)
        for hook in self.hooks:
            hook.remove()
        del self.model.__dict__[PLACE]

    @property
    def weights(self):
        return self.method.weights

    @property
    def groups(self):
        return self.method.groups

    def ahead(self):
        """What is about to happen, a line each: how many weights may go, what begins and ends at which step, and how
        often masks change."""
        lines, prunable = [], self.method.prunable()
        if wanted := getattr(self.method.options, "density", 0.0):
            total = sum(prunable.values())
            lines = [f"density {wanted:g}: {round(wanted * total):,} of the {total:,} weights of {', '.join(prunable)}"]
        steps = [
            f"{what}: steps {first:,} to {end:,} of {self.method.steps:,}"
            for what, first, end in self.method.schedule()
        ]
        if changes := self.method.changes():
            steps.append(f"masks change {often(changes)}, last at step {self.method.window[1]:,}")
        return lines + steps

    def parameters(self):
        """What the method learns beside the model's own parameters."""
        return (parameter for item in self.method.items() for parameter in item.parameters())

    def parameter_groups(self, lr=2.0e-3):
        """Groups for an optimiser: the model's own parameters at `lr`, and the method's at their own rates."""
        mine = {id(parameter) for parameter in self.parameters()}
        own = [p for p in self.model.parameters() if id(p) not in mine and p.requires_grad]
        return [{"params": own, "lr": lr, "decays": True}, *self.method.parameter_groups(lr)]

    def penalty(self):
        """What to add to the loss, in its unit (nats per example)."""
        self._let_go()
        return self.method.penalty(self.step)

    def after_step(self):
        """To be called after every optimiser step. The first one raises ValueError for layers that were not called, or whose
        weights were read otherwise, where no example has shown it before."""
        self._let_go()
        if not self.known:
            self._look()
        if self.method.looks_on:
            self._put_back()
        self.method.after_step(self.step)
        if (
            getattr(self.method.options, "fine_tune", 0.0)
            and not self.method.fixed
            and self.step + 1 >= self.method.learning_steps
        ):
            self.method.fix()
        self.step += 1
        self.method.step = self.step
        if self.warns and self.step == self.method.steps and (missed := self.method.missed()):
            warn(f"the training ended {missed}")
        if self.step == LATE and not self.method.fixed and self._left_out():
            raise ValueError(
                f"after {LATE} steps nothing that the method learns has moved: make the optimiser of study.parameter_groups()"
            )

    def undone(self):
        """What the method was to do to the model as it stands and has not done, a line each."""
        method, steps = self.method, self.method.steps
        missed, asked, lines = method.missed(), getattr(method.options, "density", 0.0), []
        if self._unannounced() and (missed or not asked):
            lines.append(
                "study.after_step() was never called while the model was trained: what is done there was not done"
            )
        if missed:
            begun = (
                "the training ended" if self.step >= steps else f"after step {self.step:,} of {steps:,} the model is"
            )
            lines.append(f"{begun} {missed}")
        elif not asked and 0 < self.step < steps:
            later = [f"{what} (steps {first:,} to {end:,})" for what, first, end in method.to_come(self.step)]
            lines += (
                [f"after step {self.step:,} of {steps:,} there is still to come: {', '.join(later)}"] if later else []
            )
        return lines

    def _unannounced(self):
        """Whether a training has moved what a method works on over its steps, and told it of none."""
        return bool(self.method.schedule()) and self.trained and not self.step and self._sums() != self.start

    @torch.no_grad()
    def _put_back(self):
        """Every parameter that learns as it was in the finished run."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name in self.method.finished:
                parameter.copy_(self.method.finished[name])

    @torch.no_grad()
    def _sums(self):
        """Two numbers that change when an optimiser moves what the method learns, and the weights it works on."""
        weights = (item.theta for item in self.weights.values())
        return [sum(float(part.double().sum()) for part in parts) for parts in (self.parameters(), weights)]

    def _left_out(self):
        """Whether an optimiser has moved the weights and nothing that the method learns beside them."""
        (learnt, weights), (learnt_before, weights_before) = self._sums(), self.start
        return any(True for _ in self.parameters()) and learnt == learnt_before and weights != weights_before

    def rounding(self, masks=None):
        """A context for forward and backward of one step, towards the end of a training: weights that are kept stand beside
        themselves as int8 would put them (`rounding.rounding`). masks: what is kept, where it is known already."""
        return rounding(self.model, self.masks() if masks is None else masks)

    def masks(self, threshold=None):
        """What is kept (`Masks`), at `threshold` or the options'."""
        return self.method.masks(threshold)

    def means(self):
        """Axis → mean of its group variable, for evaluation."""
        return self.method.means()

    def scores(self):
        """Weight or axis → its scores, of those that have any."""
        return self.method.scores()

    def state_dict(self):
        """What the model's state_dict does not hold: the count of steps."""
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = self.method.step = check("step", int, state["step"], least=0)

    # ---- one forward of the whole model is a scope: a sequence keeps its scales in it

    @torch._disable_dynamo
    def _begin(self, *_):
        if torch.compiler.is_exporting() or torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
            raise ValueError(
                f"a {type(self.model).__name__} with a method on it cannot be traced: trace what "
                "sparsernn.compact(model, example=x) returns, or take the method off first with study.detach()"
            )
        self._let_go()
        self.trained = self.trained or self.model.training and torch.is_grad_enabled()
        if self.depth == 0:
            self.outer["frame"] = _calling(sys._getframe(1))
            self.method.now = self.method.last = object()
            if self.looks:
                self.watch = self.watch or Watch(_watched(self._carrying()))
                self.watch.__enter__()
                self.watching = True
        self.depth += 1

    @torch._disable_dynamo
    def _end(self, *_):
        self.depth -= 1
        if self.depth == 0:
            self.outer.clear()
            self.method.now = None
            for item in self.method.items():
                item.seen.clear()
            if self.watching:
                self.watch.leave()
                self.watching = False

    def _let_go(self):
        """End a forward that was interrupted: of a KeyboardInterrupt (a notebook's stop button) torch tells no hook."""
        if self.depth and not _runs(self.outer.get("frame")):
            self.depth = 1
            self._end()

    @property
    def looks(self):
        """Whether it still has to find out which layers are called."""
        return not self.known and self.model.training and self.step == 0

    def _carrying(self):
        return {
            name: module
            for name, module in self.model.named_modules()
            if kind_of(module) is not None and getattr(module, "carried", None) is not None
        }

    def _look(self):
        read, why = self.watch.read if self.watch is not None else set(), {}
        self.known, self.watch = True, None
        for name, layer in self._carrying().items():
            if otherwise := [item.name for item in layer.carried.matrices.values() if item.name in read]:
                why[name] = f"{otherwise[0]} is read without a call of its layer"
            elif not layer.carried.called:
                why[name] = "was not called in the first step"
        self._look_at_words()
        if why:
            raise ValueError(
                "; ".join(f"{name}: {reason}" for name, reason in why.items())
                + f". The method would charge and prune what it does not govern: give attach example= (then it is left as "
                f"it is), or skip={list(why)}"
            )

    def _look_at_words(self):
        """Raise ValueError for ids of the first step whose sequences stand elsewhere than they were taken to."""
        layers = self._carrying()
        batches = {n for layer in layers.values() if kind_of(layer) in RECURRENT for n in layer.carried.batches}
        for name, layer in layers.items():
            if kind_of(layer) is not nn.Embedding or not layer.carried.groups or not layer.carried.guessed:
                continue
            for shape in layer.carried.shapes:
                if len(shape) > 1 and shape[layer.carried.batch_dim] not in batches and batches & set(shape):
                    raise ValueError(
                        f"{name}: its ids have the shape {shape}, of which dimension {layer.carried.batch_dim} was taken to run "
                        f"over sequences, but the recurrent layers get {min(batches & set(shape))} sequences: give attach "
                        "example=, or say with batch_dim= which dimension it is"
                    )
