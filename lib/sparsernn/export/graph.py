"""A small model as an ONNX file, compared with the model in ONNX Runtime before it is written.

A copy of the model is traced by torch's exporter; each level of a recurrent layer becomes one LSTM, GRU or RNN node, with
what was removed left out: a constant gate is a row of zeros and a bias (1812.05692), hard gates are HardSigmoid with alpha
0.2 and beta 0.5, a GRU has linear_before_reset=1. Numbers of steps and of sequences stay free.
"""

import inspect
import io
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..engines.chain import refuse_others
from ..engines.compare import REFUSES, difference
from ..engines.models import activation_of, as_small, recurrent_layers
from ..files import nearest, replacing, warn
from ..nets.layers import RECURRENT, by_time, kind_of
from ..nets.outside import deep_copy
from ..nets.readers import arguments, call
from ..nets.small import SmallEmbedding, SmallRecurrent, without_max_norm

OPSET = 17
TOLERANCE = 1e-5  # of what is returned, in float32
NODES = {
    "ifgo": ("LSTM", (0, 3, 1, 2)),
    "rzn": ("GRU", (1, 0, 2)),
    "h": ("RNN", (0,)),
}  # gates → node, ONNX's gate order
SQUASH = {"logistic": "Sigmoid", "hard": "HardSigmoid", "tanh": "Tanh", "relu": "Relu"}
INT8 = ("LSTM",)  # what ONNX Runtime has kernels for


def to_onnx(small, path, example, weights="float32"):
    """Write a model as an ONNX file, atomically → its largest error against the model in ONNX Runtime.

    small    what `compact` returned, or any model with recurrent layers that torch can trace
    example  what it is called with, as `compact` takes it: a tensor, or a tuple or dict of arguments. Inputs have the names
             of the arguments, outputs are `output`, `output_1`, …; a state that is given becomes an input too. T steps and
             B sequences are free where they are a dimension of an input. A warning names those that are not: a convolution with
             a stride reads an input of other steps than the layers do, and a loop over steps is unrolled as often as it ran
    weights  "float32", or "int8": ONNX Runtime's dynamic quantisation, of LSTM layers only
    The error is max|onnx − model| / max(1, max|model|) of everything returned, on the example and with other words, with more
    steps and sequences, with one step and with one sequence, where the model takes them.
    Raises ValueError for what cannot be exported, or what a trace ties to the example's sizes, RuntimeError where float32 is
    off by more than 1e-5 (nothing is written).
    """
    if weights not in ("float32", "int8"):
        raise ValueError(nearest("weights", weights, ("float32", "int8")))
    refuse_others(small)
    if callable(example) or not _tensors(example):
        given = "a call" if callable(example) else "without a tensor"
        raise ValueError(
            f"example is {given}; a file takes what the model's forward takes: give a tensor, or a tuple or dict of arguments. "
            "Another method goes into a file as the forward of a module that calls it"
        )
    model = deep_copy(small).float().cpu().eval().requires_grad_(False)
    example = tree_map(_as_given, example)
    layers = recurrent_layers(model)
    if not layers:
        raise ValueError(f"a {type(small).__name__} has no recurrent layer; torch.onnx.export takes it as it is")
    _refuse_activations(layers)
    if weights == "int8":
        _refuse_int8(layers)
    axes = Axes(model, layers, example)
    content = _traced(without_max_norm(deep_copy(model)), example, axes)
    if weights == "int8":
        content = _in_int8(content)
    worst = max(_errors(model, example, axes, content))
    if weights == "float32" and not worst <= TOLERANCE:
        raise RuntimeError(
            f"in ONNX Runtime the file differs from the model by {worst:.1e}: what {type(small).__name__} does depends on "
            "numbers or sizes that a trace does not show"
        )
    if fixed := axes.fixed(example):
        warn(f"{fixed}; for other numbers write another file, with such an example")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return worst


def _as_given(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().cpu().float() if x.is_floating_point() else x.detach().cpu()


def _refuse_activations(layers):
    for name, layer in layers.items():
        if (activation := activation_of(layer)) not in SQUASH:
            raise ValueError(
                f"{name} is an RNN of {activation}, which no node of ONNX computes; "
                "supported: LSTM and GRU with logistic or hard gates, RNN of tanh or relu"
            )


# ---- the trace


class Node(torch.autograd.Function):
    """One level as one node. Numbers do not matter while a model is traced, shapes do: the file is compared afterwards."""

    @staticmethod
    def forward(ctx, x, weight_ih, weight_hh, bias, lengths, cell, *initial):
        directions, width = weight_hh.shape[0], weight_hh.shape[2]
        final = [x.new_zeros(directions, x.shape[1], width) for _ in range(cell.n_states)]
        return x.new_zeros(*x.shape[:2], directions * width), *final

    @staticmethod
    def symbolic(g, x, weight_ih, weight_hh, bias, lengths, cell, *initial):
        kind, order = NODES[cell.gates]
        directions, _, width = weight_hh.type().sizes()
        functions = [SQUASH[cell.activation], *["Tanh"] * (len(order) - 1)][: 1 + cell.n_states]
        how = {"hidden_size_i": width, "activations_s": functions * directions}
        how["direction_s"] = "bidirectional" if directions == 2 else "forward"
        if cell.activation == "hard":
            how |= {"activation_alpha_f": [0.2] * directions, "activation_beta_f": [0.5] * directions}
        if kind == "GRU":
            how["linear_before_reset_i"] = 1
        given = [_absent(g) if value is None else value for value in (lengths, *(initial or [None] * cell.n_states))]
        y, *final = g.op(kind, x, weight_ih, weight_hh, bias, *given, **how, outputs=1 + cell.n_states)
        y = g.op("Transpose", y, perm_i=[0, 2, 1, 3])  # of directions before sequences
        return g.op("Reshape", y, g.op("Constant", value_t=torch.tensor([0, 0, -1]))), *final


def _absent(g):
    nothing = g.op("prim::Constant")
    nothing.setType(torch._C.OptionalType.ofTensor())
    return nothing


class Levels(nn.Module):
    """The levels of a small recurrent layer as nodes, in the place of `SmallRecurrent.level`.

    lengths   int32 [B] of the call that is traced, padding on the right; or None
    """

    def __init__(self, module):
        super().__init__()
        self.cell, self.lengths = module.cell, None
        for number in range(module.num_layers):
            weight_ih, weight_hh, bias = _weights(module, number)
            if not number and module._small.words is not None:  # ids have a table; numbers no column of removed words
                table, by_table = _looked_up(weight_ih)
                self.register_buffer("table", table), self.register_buffer("by_table", by_table)
                weight_ih = weight_ih[:, :, :-1]
            for name, weight in (("weight_ih", weight_ih), ("weight_hh", weight_hh), ("bias", bias)):
                self.register_buffer(f"{name}_{number}", weight)

    def forward(self, number, x, initial, ours):
        weight_ih, weight_hh, bias = (getattr(self, f"{name}_{number}") for name in ("weight_ih", "weight_hh", "bias"))
        if x.dtype == torch.int64:
            x, weight_ih = nn.functional.embedding(x, self.table), self.by_table
        y, *final = Node.apply(x, weight_ih, weight_hh, bias, self.lengths, self.cell, *(initial or ()))
        return y, final


def _weights(module, number):
    """A level's weights and biases as a node takes them: directions first, gates in ONNX's order."""
    names, (_, order) = [f"_l{number}{end}" for end in module.ends()], NODES[module.cell.gates]

    def stacked(kind):
        rows = torch.stack([getattr(module, kind + name).detach() for name in names]).chunk(len(order), 1)
        return torch.cat([rows[gate] for gate in order], 1)

    weight_ih, weight_hh = stacked("weight_ih"), stacked("weight_hh")
    if module.bias:
        return weight_ih, weight_hh, torch.cat([stacked("bias_ih"), stacked("bias_hh")], 1)
    return weight_ih, weight_hh, weight_hh.new_zeros(len(names), 2 * weight_hh.shape[1])


def _looked_up(weight_ih):
    """One-hot ids and weights [D, R, V] → a table [V, n] to look up and weights [D, R, n], n as small as it goes."""
    directions, rows, words = weight_ih.shape
    if words <= directions * rows:
        return torch.eye(words), weight_ih
    return weight_ih.flatten(0, 1).t().contiguous(), torch.eye(directions * rows).view(directions, rows, -1)


def _by_nodes(module, input, hx=None, lengths=None, padding="right"):
    """The forward of a small recurrent layer while it is traced. ONNX knows padding on the right only: steps are turned."""
    x, hx, lengths, back = by_time(module, input, hx, lengths)
    left = lengths is not None and padding == "left"
    if left:
        steps = x.shape[0]
        time = torch.arange(steps)[:, None]
        x = _turned(x, (time + steps - lengths) % steps)
    module.level.lengths = None if lengths is None else lengths.to(torch.int32)
    batch_first, module.batch_first = module.batch_first, False
    y, state = SmallRecurrent.forward(module, x, hx)
    module.batch_first = batch_first
    return back(_turned(y, (time + lengths) % steps) if left else y, state)


def _turned(x, source):
    return x.gather(0, source if x.dim() == 2 else source.unsqueeze(2).expand(-1, -1, x.shape[2]))


class Flat(nn.Module):
    """A model called with the tensors of an example, one after the other, that returns its tensors so."""

    def __init__(self, model, example, levels):
        super().__init__()
        self.model, self.example, self.levels = model, example, levels

    def forward(self, *tensors):
        return _tensors(call(self.model, _with(self.example, tensors)))


def _tensors(example):
    return [leaf for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)]


def _with(example, tensors):
    """An example with other tensors."""
    leaves, tree = tree_flatten(example)
    tensors = iter(tensors)
    return tree_unflatten([next(tensors) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], tree)


def _traced(model, example, axes):
    """The file's content. model: a copy to be changed."""
    levels = nn.ModuleList()
    for module in recurrent_layers(model).values():
        as_small(module, one_hot=kind_of(module) is not type(module))
        levels.append(Levels(module))
        object.__setattr__(module, "level", levels[-1])
        object.__setattr__(module, "forward", partial(_by_nodes, module))
    for module in model.modules():
        if isinstance(module, SmallEmbedding):  # of few words this list is most of the file
            module._small.follows("lookup", module._small.lookup.int())
    flat, content = Flat(model, example, levels), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # It is the exporter that takes nodes of ours, and deprecated; what the tracer fears is measured afterwards.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            torch.onnx.export(
                flat, tuple(_tensors(example)), content, dynamo=False, opset_version=OPSET,
                input_names=list(axes.inputs), output_names=list(axes.outputs),
                dynamic_axes=axes.inputs | axes.outputs,
            )  # fmt: skip
        except REFUSES as problem:
            raise ValueError(f"torch cannot trace {type(model).__name__}: {problem}") from problem
    return content.getvalue()


# ---- inputs and outputs


class Axes:
    """Which dimensions of what a model takes and returns run over steps (T) and sequences (B).

    inputs, outputs   name → {dimension: "T" or "B"}       steps, batch  those of the example
    turns             whether a layer was called more than once: the forward may loop over steps
    words             of each look-up of ids how many words there are, and the ids
    They are known by their size, at the first recurrent layer that is called.
    """

    def __init__(self, model, layers, example):
        met, self.words = [], []
        handles = [
            layer.register_forward_pre_hook(partial(_keep_sizes, met), with_kwargs=True) for layer in layers.values()
        ]
        for module in (*layers.values(), *(m for m in model.modules() if isinstance(m, nn.Embedding))):
            handles.append(module.register_forward_pre_hook(partial(_keep_ids, self.words), with_kwargs=True))
        try:
            with torch.no_grad():
                said = _tensors(call(model, example))
        except REFUSES as problem:
            raise ValueError(f"{type(model).__name__} cannot be called with the example: {problem}") from problem
        finally:
            for handle in handles:
                handle.remove()
        if not met or not said:
            raise ValueError(f"{type(model).__name__} runs no recurrent layer, or returns no tensor, for the example")
        self.steps, self.batch, self.batch_first, self.rows, self.hidden = met[0]
        self.turns = len(met) > len(layers)
        names = _names(model, example)
        self.inputs = dict(zip(names, map(self._of, _tensors(example)), strict=True))
        self.outputs = {f"output_{n}" if n else "output": self._of(tensor) for n, tensor in enumerate(said)}

    def _of(self, tensor):
        steps, batch, shape = self.steps, self.batch, tensor.shape
        if shape == (self.rows, batch, self.hidden):
            return {1: "B"}
        layouts = [((steps, batch), {0: "T", 1: "B"}), ((batch, steps), {0: "B", 1: "T"})]
        for sizes, axes in reversed(layouts) if self.batch_first else layouts:
            if shape[:2] == sizes:
                return axes
        if shape[:1] == (batch,):
            return {0: "B"}
        return {0: "T"} if shape[:1] == (steps,) else {}

    def fixed(self, example):
        """In words, which of T and B are no dimension of any input, so that the file takes the example's alone; "": none."""
        free = {letter for axes in self.inputs.values() for letter in axes.values()}
        may = {"T": ("steps", self.steps > 1 or self.turns), "B": ("sequences", self.batch is not None)}
        if not (lost := [f"{letter} ({may[letter][0]})" for letter in may if may[letter][1] and letter not in free]):
            return ""
        shapes = [
            f"{name} [{', '.join(axes.get(dim, str(size)) for dim, size in enumerate(tensor.shape))}]"
            for (name, axes), tensor in zip(self.inputs.items(), _tensors(example), strict=True)
        ]
        return f"{' and '.join(lost)} {'is' if len(lost) == 1 else 'are'} not free in the file, which takes {', '.join(shapes)}"

    def resized(self, example, steps, batch):
        """The example with other numbers of steps and sequences; lengths follow the steps."""
        changed = []
        for tensor, axes in zip(_tensors(example), self.inputs.values(), strict=True):
            for dim, letter in axes.items():
                new = steps if letter == "T" else batch
                tensor = tensor.index_select(dim, torch.arange(new) % tensor.shape[dim])
            if axes == {0: "B"} and tensor.dim() == 1 and not tensor.is_floating_point():
                tensor = (tensor * steps / self.steps).ceil().to(tensor.dtype)
            changed.append(tensor)
        return _with(example, changed)

    def with_other_words(self, example):
        """The example with random ids in the place of those that were looked up."""
        generator = torch.Generator().manual_seed(0)

        def other(tensor):
            for count, ids in self.words:
                if tensor.dtype == ids.dtype and any(torch.equal(tensor, each) for each in (ids, ids.mT)):
                    return torch.randint(count, tensor.shape, generator=generator, dtype=tensor.dtype)
            return tensor

        return _with(example, list(map(other, _tensors(example))))


def _keep_ids(words, layer, args, kwargs):
    x = args[0] if args else kwargs["input"]
    if isinstance(x, torch.Tensor) and not x.is_floating_point() and x.dim() > 1:
        words.append((getattr(layer, "num_embeddings", None) or layer.input_size, x.clone()))


def _keep_sizes(met, layer, args, kwargs):
    x = args[0] if args else kwargs["input"]
    if isinstance(x, PackedSequence):
        steps, batch = len(x.batch_sizes), int(x.batch_sizes[0])
    elif x.dim() == 2 and x.dtype != torch.int64:
        steps, batch = len(x), None
    else:
        batch, steps = x.shape[:2] if layer.batch_first else x.shape[1::-1]
    met.append((steps, batch, layer.batch_first, layer.num_layers * (1 + layer.bidirectional), layer.hidden_size))


def _names(model, example):
    """A name for each tensor of an example: that of the argument, numbered where one argument holds several."""
    if not isinstance(example, dict):
        example = inspect.signature(model.forward).bind(*arguments(example)).arguments
    names = []
    for name, value in example.items():
        found = _tensors(value)
        names += [f"{name}_{n}" for n in range(len(found))] if len(found) > 1 else [name] * len(found)
    return names


# ---- the comparison


def _errors(model, example, axes, content):
    """The error of the file on the example, and on other words and sizes where the model takes them. Raises ValueError where
    ONNX Runtime does not run it on them."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # what it refuses is raised, once
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    used = {each.name for each in session.get_inputs()}
    steps, batch = axes.steps, axes.batch or 1
    sizes = [(steps, batch), (2 * steps + 1, batch + 2), (steps, 1), (1, batch)]
    others = [axes.resized(example, *size) for size in sizes]
    for number, other in enumerate([*others, axes.with_other_words(example)]):
        try:
            with torch.no_grad():
                answers = _tensors(call(model, other))
        except REFUSES:
            if not number:
                raise
            continue
        given = {name: x.numpy() for name, x in zip(axes.inputs, _tensors(other), strict=True) if name in used}
        try:
            said = session.run(None, given)
        except Exception as problem:  # its errors have no class of their own
            shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in given.items())
            raise ValueError(
                f"{type(model).__name__} takes {shapes}, the file does not: a trace holds on to sizes that Python counts, by "
                f"len(x) or int(…) for example; say x.shape[0] instead ({problem})"
            ) from problem
        for mine, theirs in zip(said, answers, strict=True):
            yield difference(torch.as_tensor(mine), theirs)


# ---- int8


def _refuse_int8(layers):
    for name, layer in layers.items():
        kind = next(theirs.__name__ for theirs in RECURRENT if isinstance(layer, theirs))
        if kind not in INT8:
            raise ValueError(
                f"{name} is a {kind}: ONNX Runtime has no {kind} in int8, only {', '.join(INT8)}; "
                'write it with weights="float32", or with to_c(…, weights="int8")'
            )


def _in_int8(content):
    """The same file by ONNX Runtime's dynamic quantisation: weights in int8 with a scale a row, activations as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        shaped, path = Path(folder) / "shaped.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(onnx.load_from_string(content), shaped, skip_symbolic_shape=True)
        quantize_dynamic(shaped, path, per_channel=True, weight_type=QuantType.QInt8)
        return path.read_bytes()
