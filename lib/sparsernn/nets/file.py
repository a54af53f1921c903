"""The file of a compact model: what its small layers look like, and every number once, scattered zeros left out.

Format `sparsernn-compact/2`: safetensors, one metadata key `sparsernn` with JSON:

model, arguments  class and arguments of one of the study's own models; null for a stranger's
layers            name → the shape of a small layer (`nets.small`)
sparse            matrix → {shape, by}: it is stored as `.values`, `.indices` and `.indptr`, by "rows" or "columns"; with
                  runs: true an index is where a run of values begins, of `.lengths`
zeros             tensor → [shape, dtype]: nothing but zeros        same  name → the name of the tensor it is tied to
rows              tensor → whose rows some of its own are (`nets.shared`); the key is left out where there are none
reach             layer → the largest number that it reads (`nets.reach`); left out where nobody looked
frozen            parameters that do not train             zeros_stay  layers whose zeros stay
digest            sha256 of all of this and of every tensor

A list of kept lines is stored as 16 or 32 bit numbers, or as `.bits`. `load` trusts nothing that it reads.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ..files import nearest, replacing
from . import bidaf, first_format, speech  # noqa: F401 (a file may name its model)
from .attached import refuse_no_model
from .compact import plain_copy
from .models import MODELS
from .packing import an_object, indices, pack, pack_index, unpacked
from .readers import call
from .shared import put_together, shared_rows, stored_shapes, without
from .small import become, fill, own_names, zeros_stay

FORMAT = "sparsernn-compact/2"
ROOM = 1 << 28  # bytes that a file may always unpack to, and
GROWTH = 1000  # so many times its own size


def save(small, path):
    """Write a small model to `path`, atomically → size in bytes.

    small  what `compact` returned, trained on or not, in its own dtypes; without a method on it
    Raises ValueError for a model with a method on it, without a small layer, with an extra state, or with a weight that is
    no finite number.
    """
    refuse_no_model(small, "save")
    if extra := next(filter(_is_extra, small.state_dict()), None):
        raise ValueError(
            f"{extra.rpartition('.')[0] or 'the model'} has an extra state (get_extra_state), which the file has no place for; "
            "keep it in a buffer, or save it beside"
        )
    content = _content(small)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Path(path).stat().st_size


def _is_extra(name):
    return name.rpartition(".")[2] == "_extra_state"


def packed_size(small):
    """Bytes that `save` would write."""
    return len(_content(small))


def _content(small):
    state = {name: value for name, value in small.state_dict().items() if not _is_extra(name)}
    layers = {name: module._small.spec for name, module in small.named_modules() if hasattr(module, "_small")}
    ours = {f"{layer}.{name}": layer for layer in layers for name in own_names(small.get_submodule(layer))}
    if not layers:
        raise ValueError(f"{type(small).__name__} has no small layer; save what compact returned")
    if odd := next(
        (name for name, value in state.items() if ".carried." in name or not isinstance(value, torch.Tensor)), None
    ):
        raise ValueError(f"{odd} is no weight or buffer of a small model; take the method off first (study.detach())")
    tensors, sparse, zeros, same, first, rows = {}, {}, {}, {}, {}, shared_in(small)
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if (key := _place(state[name])) in first and tensor.numel():
            same[name] = first[key]
            continue
        first[key] = name
        owner = ours.get(name)
        if owner is not None and tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
        if owner is not None and tensor.dtype == torch.int64:
            tensors |= pack_index(name, tensor, _size(small.get_submodule(owner), name))
            continue
        if name in rows:
            tensor = without(tensor, rows[name])
        if tensor.is_floating_point() and tensor.numel() > 8 and not tensor.any():
            zeros[name] = [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        elif tensor.dim() == 2 and tensor.is_floating_point():
            packed, layout = pack(name, tensor)
            tensors |= packed
            sparse |= {name: layout} if layout else {}
        else:
            tensors[name] = tensor.contiguous()
    meta = {"format": FORMAT, "model": None, "arguments": None}
    if MODELS.get(type(small).__name__) is type(small) and _plain(small.arguments):
        meta |= {"model": type(small).__name__, "arguments": small.arguments}
    meta |= {"layers": layers, "sparse": sparse, "zeros": zeros, "same": same} | ({"rows": rows} if rows else {})
    reached = {name: small.get_submodule(name)._small.reach for name in layers}
    meta |= {"reach": found} if (found := {name: most for name, most in reached.items() if most is not None}) else {}
    meta["frozen"] = [name for name, parameter in small.named_parameters() if not parameter.requires_grad]
    meta["zeros_stay"] = [n for n in layers if zeros_stay in small.get_submodule(n)._forward_pre_hooks.values()]
    text = json.dumps(meta | {"digest": digest(meta, tensors)}, separators=(",", ":"))
    return to_bytes(tensors, {"sparsernn": text})  # one key: the order of several would be chance


def digest(meta, tensors):
    """sha256 of what a file says, the digest itself left out."""
    found = hashlib.sha256(json.dumps({n: v for n, v in meta.items() if n != "digest"}, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def shared_in(small):
    """Tensor → its layout, of the small layers that repeat rows and are tied to no other."""
    found, seen = {}, set()
    for name, module in small.named_modules():
        if hasattr(module, "_small"):
            mine = [p.data_ptr() for p in module._parameters.values() if p is not None and p.numel()]
            layouts = {} if seen & {*mine} or len({*mine}) < len(mine) else shared_rows(module)
            found |= {f"{name}.{own}": layout | {"of": f"{name}.{layout['of']}"} for own, layout in layouts.items()}
            seen |= {*mine}
    return found


def _place(tensor):
    """What tied tensors have in common."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _plain(arguments):
    return all(isinstance(value, bool | int | float | str) for value in arguments.values())


def _size(module, name):
    """What numbers of kept lines count."""
    leaf = name.rpartition(".")[2]
    if leaf == "sends":
        return module.hidden_size * len(module.abreast())
    if leaf.startswith("kept_l"):
        return module.hidden_size
    return next(
        getattr(module, name) for name in ("num_embeddings", "in_features", "input_size") if hasattr(module, name)
    )


# ---- loading


def load(path, model=None):
    """The small model in a file that `save` wrote, in evaluation.

    model  the model it was made of, or one built like it (untouched); None for the study's own, which the file names
    It has no engine in the place of its layers, as what `compact` returns may have: `sparsernn.choose` finds one.
    Raises ValueError, naming the file, for anything that is no such file, is damaged, or does not fit the model.
    """
    if model is not None:
        refuse_no_model(model, "load")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a file that save wrote")
    meta, tensors = _read(path)
    try:
        return _built(meta, tensors, model, ROOM + GROWTH * path.stat().st_size)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from problem


def _read(path):
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("sparsernn", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, RecursionError, OverflowError, MemoryError, TypeError, KeyError) as problem:
        raise ValueError(f"{path}: no safetensors file ({problem!s:.100}), expected {FORMAT!r}") from problem
    formats = FORMAT, first_format.FORMAT
    found = meta.get("format") if isinstance(meta, dict) else meta
    if found not in formats:
        raise ValueError(f"{path}: format is {found!r:.80}, expected {formats[0]!r} or {formats[1]!r}")
    if found == FORMAT and meta.get("digest") != digest(meta, tensors):
        raise ValueError(f"{path}: the content is not what was written (its sha256 is another): the file is damaged")
    return meta, tensors


def _built(meta, tensors, model, room):
    first = meta["format"] == first_format.FORMAT
    if first:
        tensors = unpacked(tensors, meta.get("sparse"), room // 4)
        meta, tensors = first_format.converted(meta, tensors)
    small = _shell(meta) if model is None else plain_copy(model)
    layers = an_object(meta.get("layers"), "layers")
    modules = dict(small.named_modules())
    for name, spec in layers.items():
        if name not in modules:
            raise ValueError(nearest("layer", name, modules))
        become(modules[name], spec)
    ours = {f"{layer}.{name}": layer for layer in layers for name in own_names(modules[layer])}
    expected, same = small.state_dict(), an_object(meta.get("same"), "same")
    spread = [
        n
        for name in layers
        for n in (getattr(modules[name], a, 0) for a in ("num_embeddings", "input_size", "in_features"))
    ]
    room -= sum(t.numel() * t.element_size() for t in expected.values()) + 8 * sum(spread)
    if room < 0:
        raise ValueError("it would unpack to more than a file of this size can hold")
    if not first:
        rows = an_object(meta.get("rows", {}), "rows")
        shapes = stored_shapes(rows, {name: expected[name] for name in ours if name not in same})
        sparse = an_object(meta.get("sparse"), "sparse")
        for name, layout in sparse.items():
            if (
                name not in expected
                or not isinstance(layout, dict)
                or layout.get("shape") != shapes.get(name, list(expected[name].shape))
            ):
                wanted = shapes.get(name, list(expected[name].shape)) if name in expected else "none of that name"
                raise ValueError(f"{name} is laid out as {layout!r:.100}, expected a shape of {wanted}")
        tensors = unpacked(tensors, sparse, room // 4)
        lists = [n for n in ours if expected[n].dtype == torch.int64 and n not in same]
        sizes = {name: _size(modules[ours[name]], name) for name in lists}
        tensors = indices(tensors, sizes)
        for name, said in an_object(meta.get("zeros"), "zeros").items():
            if name not in expected or name in tensors or not _zero(said, shapes.get(name, list(expected[name].shape))):
                raise ValueError(f"{name} is said to be zeros of {said!r:.80}, which the model has not")
            tensors[name] = torch.zeros(said[0], dtype=getattr(torch, said[1]))
        tensors = put_together(tensors, rows, expected)
    for name, other in same.items():
        if name in tensors or name not in expected or not isinstance(other, str) or other not in tensors:
            raise ValueError(f"{name} is said to be the same as {other!r:.80}, which is not there")
    small = _filled(small, layers, ours, tensors, same, expected)
    if model is None:
        _tried(small)
    for name, most in an_object(meta.get("reach", {}), "reach").items():
        if name not in layers or type(most) not in (int, float) or not 0 < most < math.inf:
            raise ValueError(f"{name!r:.80} is said to read numbers up to {most!r:.80}; a layer, and a number above 0")
        small.get_submodule(name)._small.reach = float(most)
    if not first:
        for name in _names(meta.get("zeros_stay"), layers):
            small.get_submodule(name).register_forward_pre_hook(zeros_stay)
        named = dict(small.named_parameters())
        for name in _names(meta.get("frozen"), named):
            named[name].requires_grad_(False)
    return small


def _names(given, known):
    if not isinstance(given, list) or any(not isinstance(name, str) or name not in known for name in given):
        raise ValueError(f"{given!r:.200} are no names of its layers or parameters")
    return given


def _zero(said, wanted):
    names = ("float16", "bfloat16", "float32", "float64")
    return isinstance(said, list) and len(said) == 2 and said[0] == wanted and said[1] in names


def _filled(small, layers, ours, tensors, same, expected):
    tensors = tensors | {name: tensors[other] for name, other in same.items()}
    if odd := sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'not a tensor of the model'}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        kinds = [
            (t.is_floating_point(), t.is_complex(), None if t.is_floating_point() else t.dtype)
            for t in (tensor, wanted)
        ]
        if tensor.shape != wanted.shape or kinds[0] != kinds[1]:
            given, wanted = (f"{tuple(t.shape)} of {t.dtype}" for t in (tensor, wanted))
            raise ValueError(f"{name} is {given}, expected {wanted}")
        if tensor.is_floating_point() and name in ours and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    types = {}  # of the model's → of the file's
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and types.setdefault(expected[name].dtype, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, others of {types[expected[name].dtype]}")
    for layer in layers:
        mine = {name[len(layer) + 1 :]: tensors[name] for name, owner in ours.items() if owner == layer}
        fill(small.get_submodule(layer), mine)
    for name, tensor in tensors.items():
        if name not in ours:
            _put(small, name, tensor)
    for name, other in same.items():
        place, _, leaf = name.rpartition(".")
        owner, (of, _, its) = small.get_submodule(place), other.rpartition(".")
        if leaf in owner._parameters:
            setattr(owner, leaf, getattr(small.get_submodule(of), its))
    if any(t.is_meta for t in (*small.parameters(), *small.buffers())):
        raise ValueError(f"a {type(small).__name__} has buffers that no file holds; give load the model it was made of")
    return small.eval()


def _tried(small):
    """Whether the layers of one of the study's own models fit each other: it is called once."""
    try:
        with torch.no_grad():
            call(small, small.example(1, 1))
    except (RuntimeError, IndexError, ValueError) as problem:
        raise ValueError(f"the layers do not fit each other: {problem!s:.200}") from problem


def _put(small, name, tensor):
    place, _, leaf = name.rpartition(".")
    owner = small.get_submodule(place)
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=getattr(owner, leaf).requires_grad))


def _shell(meta):
    """One of the study's own models, without numbers."""
    name, arguments = meta.get("model"), meta.get("arguments")
    if name is None:
        raise ValueError("the model is nobody's but yours: load(path, model), with the model it was made of")
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(nearest("model", str(name)[:80], MODELS) + "; or give load the model it was made of")
    numbers = [v for v in an_object(arguments, "arguments").values() if type(v) is int]
    if not _plain(arguments) or any(not 0 < number < 1 << 31 for number in numbers):
        raise ValueError(f"arguments of {name} are {arguments!r:.200}")
    try:
        with torch.device("meta"):
            return MODELS[name](**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError, KeyError) as problem:
        raise ValueError(f"{name} cannot be made of {arguments!r:.200}: {problem!s:.200}") from problem


def size_floor(small):
    """Bytes no file of this kind goes below: 6 B a stored weight (value and index) + 4 B a bias (of a gate, the sum of two)."""
    rows, state = shared_in(small), small.state_dict()
    once = {_place(t) if t.numel() else n: n for n, t in reversed(state.items())}  # of tied ones the first
    tensors = {n: state[n] for n in once.values() if state[n].is_floating_point() and "bias_hh" not in n}
    tensors |= {n: without(t, rows[n]) for n, t in tensors.items() if n in rows}
    return sum(6 * int((t != 0).sum()) if t.dim() == 2 else 4 * t.numel() for t in tensors.values())
