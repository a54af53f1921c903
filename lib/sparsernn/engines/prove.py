"""A smaller model in place of one under masks, with a proof that it is equal, and what it costs before and after."""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..nets.attached import refuse_elsewhere, uncompiled
from ..nets.compact import plain_copy, swapped
from ..nets.file import packed_size, shared_in
from ..nets.found import Found, declares, no_recurrent
from ..nets.masks import Masks
from ..nets.outside import Start, deep_copy
from ..nets.reach import calibrate
from ..nets.readers import Reading, answer
from ..nets.shared import without
from ..nets.small import SmallEmbedding, SmallLinear, SmallRecurrent, zeros_stay
from ..nets.states import only_to_go_on
from ..nets.wiring import left_as_they_are, readings, wired
from ..sparsify.attach import Study
from .compare import ROUNDED, Calls, in_float64
from .stand_in import Tried, quickest, run_by
from .timing import wait

SHARED = "left as it is: it shares a weight with another layer"


@dataclass(frozen=True)
class Proof:
    """What `compact` measured: prints as a table, what is worse than before first.

    error      largest of `compared`: max|small − model| / max(1, max|model|) of everything the model returns, in float64 (in its
               own dtype where it insists on one), but for a final state that it returns and takes as an argument too, to go on
               from: a warning says where that differs
    compared   what the models were called with, in words → error
    weights_*  numbers in matrices that are not zero, before and after; after: rows that several gates share (`restricted`) once
    bytes_*    parameters and buffers        bytes_file  what `save` writes
    ms_*       a forward pass of the first example without gradients, median of nine, interleaved; before: the model as it runs
               without the method; after: by its engine, if any; layers: by the small layers themselves, as any copy runs
    layers     name → what became of it
    warnings   what the method has not done yet, what is worse than before, and what happens when the small model is trained on
    engine     what answers for its recurrent layers (`stand_in.Tried`), or None: they do themselves
    no_engine  why that is none, in words
    metric     what the `metric` that was given said of the small model, by its engine
    """

    error: float
    compared: dict
    weights_before: int
    weights_after: int
    bytes_before: int
    bytes_after: int
    bytes_file: int
    ms_before: float
    ms_after: float
    ms_layers: float
    layers: dict
    warnings: list = field(default_factory=list)
    engine: Tried | None = None
    metric: object = None
    no_engine: str = ""

    def __str__(self):
        smaller, engine = self.bytes_before / max(1, self.bytes_after), self.engine is not None
        lines = [f"{'NOTE':20} {warning}" for warning in self.warnings]
        lines += [f"{name:20} {what}" for name, what in self.layers.items()]
        lines += [
            f"{'error':20} {self.error:.1e} in {len(self.compared)} comparisons",
            f"{'weights not zero':20} {self.weights_before:,} → {self.weights_after:,}",
            f"{'bytes':20} {self.bytes_before:,} → {self.bytes_after:,}"
            + (f" ({smaller:.1f}× smaller)" if smaller > 1 else ""),
            f"{'bytes in a file':20} {self.bytes_file:,}",
            f"{'milliseconds':20} {self._times(self.ms_after, ' by the engine' * engine)}",
        ]
        lines += [f"{'':20} {self._times(self.ms_layers)} by the small layers themselves"] * engine
        return "\n".join(lines + self._engine_lines())

    def _times(self, ms, by=""):
        faster = self.ms_before / ms
        return f"{self.ms_before:.3f} → {ms:.3f}" + (f" ({faster:.1f}× faster{by})" if faster > 1.05 else by)

    def _engine_lines(self):
        by, lines = self.engine, [f"{'engine':20} none: {self.no_engine}"]
        if by:
            step, layers = by.us[1]
            steps = f"{layers:.1f} → {step:.1f} µs a step"
            plain = "" if by.us_plain is None else f" ({by.us_plain:.1f} by torch's plain layer of that size)"
            lines = [
                f"{'engine':20} {by.engine} while gradients are off, for up to {by.most[1]} sequences"
                f" ({by.most[0] or 'none'} of a single step); error {by.error:.1e}",
                f"{'':20} {1e3 * by.ms_layers:.1f} → {1e3 * by.ms:.1f} µs the example, {steps}{plain}",
                f"{'':20} in place in this model alone; one that is loaded or copied needs sparsernn.choose again",
            ]
        return lines + ([] if self.metric is None else [f"{'metric':20} {self.metric}"])


def compact(model, example=None, *, examples=None, consumers=None, keep_zeros=False, metric=None):
    """A smaller model that computes what `model` computes in evaluation, and the proof → (small, Proof).

    model       with a method attached: its masks and means are used; without: its zeros are (torch.nn.utils.prune's too);
                of a compiled one what torch.compile was given, and the small one is not compiled
    example     what the model is called with: a tensor, or a tuple or dict of arguments; or a function that calls it in another
                way, as `lambda m: m.step(x[:, 0])`
    examples    a list of them, where one does not show all ways through the model: other methods read its layers too
    consumers   layer → the modules that alone read its output, as it is, where running examples cannot show it, names or modules;
                an empty list: who reads it, its final state too, is no module of the model
    keep_zeros  zeros inside the small layers stay zero when it is trained on
    metric      function of a model → a task's metric; the small one's, by the engine that runs it, goes into the proof
    Both are compared in float64 (as they are where the model insists on a dtype of its own), from the same start, on the
    examples, each twice in a row, and on what is made of them: other batch sizes, lengths, words and numbers where the model
    takes them, and a state given to each recurrent layer.
    On a CPU and in float32, an engine answers for the small recurrent layers where it is the faster one (`stand_in.quickest`),
    in evaluation and without gradients, until their weights change. It is in no file and in no copy (`load`, pickle, deepcopy):
    these run by the layers, until `sparsernn.choose` finds them an engine.
    What the examples say of how far numbers go is noted, for int8 (`nets.reach.calibrate` does the same on training data).
    A layer whose readers are not all known keeps its outer width: inside it shrinks, removed neurons come out as zeros.
    A final state that the model returns is a part of its answer, unless the model takes it as an argument too, to go on from:
    then neurons that nothing else reads may go from it, and a warning of the proof says so.
    Raises ValueError where there is nothing to make smaller or to compare, or a method is on a part of the model (a wrapper's
    `module`) or on more than it; RuntimeError if the result were not equal.
    """
    model, examples = uncompiled(model), _examples(example, examples)
    refuse_elsewhere(model, "compact")
    consumers = _by_name(model, consumers or {})
    plain = plain_copy(model)
    known = Found(plain)
    if not known.recurrent and not any(isinstance(module, SmallRecurrent) for module in plain.modules()):
        raise ValueError(no_recurrent(known))
    (reference, wide), given = in_float64([deep_copy(model).eval(), plain], examples)
    study = Study.of(reference)  # of what is compared: gates in its own precision
    found, start = Found(wide), Start(wide)
    to_go_on = _all_recurrent(wide) if declares(wide) else only_to_go_on(found, start, given, consumers)
    calls = Calls(Start(reference), given, found, to_go_on)
    outside = left_as_they_are(found, start, given)
    if study:
        masks, means = study.masks(), {name: mean.cpu() for name, mean in study.means().items()}
    else:
        kept = {n: (p != 0).cpu() for n, p in found.parameters.items() if p.dim() == 2}
        masks, means = Masks(found.axes(), kept, {}), {}
    wrong = {}
    declared = [(masks, {})] if declares(wide) else None
    if declared and consumers:
        raise ValueError(f"consumers are for models that do not say who reads whom; {type(model).__name__} has axes()")
    for whole, ways in declared or _trials(found, masks, readings(found, start, given, consumers, outside, to_go_on)):
        candidate, _ = swapped(deep_copy(wide), found, whole, means, ways, outside)
        compared, bad = calls.compare(Start(candidate))
        if not bad:
            break
        wrong = wrong or bad
    else:
        words, by = next(iter(wrong.items()))
        raise RuntimeError(
            f"the small model differs from the model by {by:.1e} ({words}): "
            + ("are the consumers given the only readers?" if consumers else "please report it with the model")
        )
    before = deep_copy(plain)
    small, layers = swapped(plain, Found(plain), whole, means, ways, outside)
    layers |= outside | {name: SHARED for name in found.layers if name not in layers | outside}
    if not any(hasattr(module, "_small") for module in small.modules()):
        reasons = "; ".join(f"{name}: {why}" for name, why in layers.items())
        raise ValueError(f"no layer of {type(model).__name__} can be made smaller ({reasons})")
    if any(parameter.dtype != torch.float64 for parameter in small.parameters()):
        compared = compared | calls.as_returned(small)
    calibrate(small, examples)
    engine = quickest(small, examples[0])
    proof = _proof(before, small, examples[0], compared, layers, keep_zeros, *engine)
    if study := Study.of(model):
        proof.warnings[:0] = study.undone()
    if wide is plain and not calls.double:
        proof.warnings.append(
            "compared in the model's own dtype, rounding and all, not in float64: its forward makes tensors of that dtype itself"
        )
    if states := calls.other_states(Start(candidate)):
        told = "" if declared else f"; where you read it, say consumers={{{', '.join(f'{n!r}: []' for n in states)}}}"
        by = ", ".join(f"{name} (by {worst:.1e})" for name, worst in states.items())
        proof.warnings.insert(
            0,
            f"the returned state of {by} is another, without the neurons that nothing else reads: the model goes on from it as "
            f"before{told}",
        )
    return small, proof if metric is None else replace(proof, metric=metric(small))


def _all_recurrent(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.RNNBase)}


def _examples(example, examples):
    if (example is None) == (examples is None):
        raise ValueError("give one example, or a list of them as examples=[…]")
    if examples is not None and (not isinstance(examples, list) or not examples):
        raise ValueError(f"examples is {type(examples).__name__}; a list of at least one example")
    return [example] if examples is None else examples


def _by_name(model, consumers):
    """`consumers` with the names of modules in their places."""
    names = {id(module): name for name, module in model.named_modules()}

    def name(of):
        if isinstance(of, nn.Module) and id(of) not in names:
            raise ValueError(
                f"consumers name a {type(of).__name__} that is no part of the model; there are: {', '.join(names.values())}"
            )
        return names[id(of)] if isinstance(of, nn.Module) else of

    each = {name(of): [given] if isinstance(given, str | nn.Module) else given for of, given in consumers.items()}
    return {of: [name(reader) for reader in given] for of, given in each.items()}


def _trials(found, masks, seen):
    """Masks that know their readers, and ways out of layers, from the smallest to the safest."""
    whole, ways = wired(found, masks, seen)
    yield whole, ways
    narrow = [name for name, way in ways.items() if not way.wide]
    for some in [[name] for name in narrow] * (len(narrow) > 1) + [narrow] * bool(narrow):
        why = "what stands between it and its readers needs the width"
        yield whole, ways | {name: replace(ways[name], wide=True, why=why) for name in some}
    yield wired(found, masks, {name: Reading({}, complete=False, state=True) for name in seen})


def _proof(before, small, example, compared, layers, keep_zeros, engine, no_engine):
    made = [m for m in small.modules() if isinstance(m, SmallRecurrent | SmallEmbedding | SmallLinear)]
    zeros = sum(int((p == 0).sum()) for m in made for p in m.parameters() if p.dim() == 2)
    for module in [small.get_submodule(name) for name in layers] if keep_zeros else ():
        module.register_forward_pre_hook(zeros_stay)
    ms = _milliseconds(before, small, example, engine)
    counts, sizes = (_weights(before), _weights(small)), (_bytes(before), _bytes(small))
    rounding = max((by for words, by in compared.items() if words.endswith(ROUNDED)), default=0.0)
    warnings = []
    if rounding > 1e-4:
        warnings.append(
            f"in the model's own dtype the multiplied weights are rounded: the answer moves by {rounding:.1e}"
        )
    if sizes[1] > sizes[0]:
        where = " in memory, where rows that gates share are copies" if shared_in(small) else ""
        warnings.append(f"the small model is larger{where}: {sizes[0]:,} → {sizes[1]:,} bytes")
    if ms[1] > 1.05 * ms[0]:
        warnings.append(f"the small model is slower on the example: {ms[0]:.3f} → {ms[1]:.3f} ms")
    elif ms[2] > 1.2 * ms[0]:  # more than what two measurements of one layer differ by
        warnings.append(
            f"loaded or copied, without its engine, it is slower on the example: {ms[0]:.3f} → {ms[2]:.3f} ms"
        )
    if zeros and not keep_zeros:
        warnings.append(
            f"{zeros:,} zeros inside its layers come alive when it is trained on (keep_zeros=True keeps them)"
        )
    size = packed_size(small)
    return Proof(
        max(compared.values()), compared, *counts, *sizes, size, *ms, layers, warnings, engine, no_engine=no_engine
    )


def _weights(model):
    """Numbers in matrices that are not zero; of a small model rows that gates share once, as its file has them."""
    shared = shared_in(model)
    tensors = {id(t): (name, t) for name, t in (*model.named_parameters(), *model.named_buffers())}.values()
    tensors = [without(t, shared[name]) if name in shared else t for name, t in tensors]
    return sum(int((t != 0).sum()) for t in tensors if t.dim() == 2 and t.is_floating_point())


def _bytes(model):
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    )


@torch.no_grad()
def _milliseconds(model, small, example, engine, rounds=9):
    """→ of the model, of the small one, by its engine if there is one, and of the small one by its layers."""
    starts = {"model": Start(model), "small": Start(small)} | ({"layers": Start(small)} if engine else {})
    taken = {name: [] for name in starts}
    with ExitStack() as stack:
        copies = {name: stack.enter_context(start.again()) for name, start in starts.items()}
        if engine:  # a copy has none
            run_by(copies["small"], engine.engine, engine.most)
        device = next((t.device for t in answer(copies["model"], example)), "cpu")
        for _ in range(rounds):
            for name, each in copies.items():
                wait(device)
                begin = time.perf_counter()
                answer(each, example)
                wait(device)
                taken[name].append(1e3 * (time.perf_counter() - begin))
    before, after, *layers = (statistics.median(times) for times in taken.values())
    return before, after, *(layers or [after])
