"""Files of the first format, `sparsernn-compact/1`, as what the second would say: three models, no digest, constants of gates.

A gate that no weight reached was stored as its value; it becomes the bias that gives it.
"""

import torch

from .packing import indices

FORMAT = "sparsernn-compact/1"
PARTS = ("weight_ih", "weight_hh", "bias", "live", "constant")


def converted(meta, tensors):
    """meta and tensors (matrices put together) of the first format → those of the second, matrices and lists as they are.

    Raises ValueError for what does not belong together.
    """
    model, sizes, layers = meta.get("model"), meta.get("sizes"), meta.get("layers")
    if model not in ("Classifier", "LanguageModel", "BagOfWords"):
        raise ValueError(f"model is {model!r:.80}; the first format knows Classifier, LanguageModel and BagOfWords")
    if not isinstance(layers, list) or layers != [f"_l{number}" for number in range(len(layers))] or len(layers) > 100:
        raise ValueError(f"layers are {layers!r:.80}; expected _l0, _l1, …")
    if bool(layers) == (model == "BagOfWords"):
        raise ValueError(f"a {model} has {len(layers)} layers")
    axes = ["vocabulary", *(["input"] if model == "Classifier" else []), *("hidden" + suffix for suffix in layers)]
    if not isinstance(sizes, dict) or sorted(sizes) != sorted(axes) or any(
        type(size) is not int or not 0 < size < 1 << 31 for size in sizes.values()
    ):  # fmt: skip
        raise ValueError(f"sizes are {sizes!r:.200}; expected a positive number for each of {', '.join(axes)}")
    names = {"head.weight", "head.bias"} | {"kept." + axis for axis in axes}
    names |= {f"lstm.{part}{suffix}" for part in PARTS for suffix in layers}
    names |= {"embedding.weight"} if model == "Classifier" else set()
    given = {name.removesuffix(".bits") for name in tensors}
    if odd := sorted(given ^ names):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in names else f'not a tensor of a {model}'}")
    tensors = indices(tensors, {"kept." + axis: sizes[axis] for axis in axes})
    for name, tensor in tensors.items():
        dims = 2 if "weight" in name or ".live" in name else 1
        if tensor.dim() != dims or (tensor.is_floating_point() and not bool(tensor.isfinite().all())):
            raise ValueError(
                f"{name} has {tensor.dim()} dimensions, expected {dims}, or holds a number that is not finite"
            )
        if tensor.is_floating_point() == (".live" in name or name.startswith("kept.")):
            raise ValueError(f"{name} is of {tensor.dtype}")
    if len(types := {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        raise ValueError(f"its numbers are of {' and '.join(sorted(map(str, types)))}")
    kept = {axis: len(tensors["kept." + axis]) for axis in axes}
    arguments, shapes, result = {"vocabulary": sizes["vocabulary"]}, {}, {}
    words = tensors["kept.vocabulary"]
    if model == "BagOfWords":
        arguments["classes"] = len(tensors["head.bias"])
        whole = kept["vocabulary"] == sizes["vocabulary"]
        shapes["head"] = {"inputs": sizes["vocabulary"], "reads": None if whole else kept["vocabulary"]}
        result |= {} if whole else {"head._small.reads": words}
    else:
        if meta.get("cell") != "LSTM" or meta.get("activation") not in ("logistic", "hard"):
            raise ValueError(
                f"cell is {meta.get('cell')!r:.80}, gates {meta.get('activation')!r:.80}; LSTM, logistic or hard"
            )
        arguments |= {"hidden": sizes["hidden_l0"], "layers": len(layers)}
        if any(sizes["hidden" + suffix] != sizes["hidden_l0"] for suffix in layers):
            raise ValueError("its layers are of different sizes")
        lstm = {"inputs": sizes["vocabulary"], "reads": None, "words": kept["vocabulary"]}
        if model == "Classifier":
            arguments |= {
                "classes": len(tensors["head.bias"]),
                "embedding": sizes["input"],
                "activation": meta["activation"],
            }
            shapes["embedding"] = {"rows": kept["vocabulary"], "columns": kept["input"]}
            table = tensors["embedding.weight"]
            result |= {"embedding.weight": _with_zeros(table, 0), "embedding._small.kept": words}
            lstm |= {"inputs": kept["input"], "words": None}
        elif meta["activation"] != "logistic":
            raise ValueError("the gates of a LanguageModel are logistic")
        else:
            result["lstm._small.words"] = words
        lstm |= {"kept": {suffix: kept["hidden" + suffix] for suffix in layers}, "sends": kept["hidden" + layers[-1]]}
        shapes["lstm"] = lstm | {"wide": False, "scaled": False}
        shapes["head"] = {"inputs": lstm["sends"], "reads": None}
        result["lstm._small.sends"] = torch.arange(lstm["sends"])
        for number, suffix in enumerate(layers):
            parts = {part: tensors[f"lstm.{part}{suffix}"] for part in PARTS}
            result[f"lstm._small.kept{suffix}"] = tensors["kept.hidden" + suffix]
            one_hot = model == "LanguageModel" and number == 0
            for name, tensor in _rows(parts, kept["hidden" + suffix], meta["activation"], one_hot).items():
                result[f"lstm.{name}{suffix}"] = tensor
    result |= {"head.weight": tensors["head.weight"], "head.bias": tensors["head.bias"]}
    said = {"format": FORMAT, "model": model, "arguments": arguments, "layers": shapes, "same": {}}
    return said, result


def _with_zeros(matrix, dim):
    return torch.cat([matrix, matrix.new_zeros(matrix.shape[:dim] + (1,) + matrix.shape[dim + 1 :])], dim)


def _rows(parts, neurons, activation, one_hot):
    """Rows of live gates, their biases and the constants of the others → torch's weights and biases of all gates."""
    live = parts["live"]
    if live.shape != (4, neurons) or live.dtype != torch.uint8 or int(live.max() if live.numel() else 0) > 1:
        raise ValueError(f"live is {tuple(live.shape)} of {live.dtype}; expected {(4, neurons)} of zeros and ones")
    live = live.bool()
    count = int(live.sum())
    shapes = {"weight_hh": (count, neurons), "bias": (count,), "constant": (4 * neurons - count,)}
    for name, shape in shapes.items():
        if parts[name].shape != shape:
            raise ValueError(f"{name} is {tuple(parts[name].shape)}, expected {shape}")
    if len(parts["weight_ih"]) != count:
        raise ValueError(f"weight_ih has {len(parts['weight_ih'])} rows, expected {count}")
    rows, result = live.flatten(), {}
    for name in ("weight_ih", "weight_hh"):
        given = _with_zeros(parts[name], 1) if one_hot and name == "weight_ih" else parts[name]
        result[name] = given.new_zeros(4 * neurons, given.shape[1])
        result[name][rows] = given
    bias, values = parts["bias"].new_zeros(4, neurons), parts["bias"].new_zeros(4, neurons)
    bias[live], values[~live] = parts["bias"], parts["constant"]
    for gate, (row, value) in enumerate(zip(bias, values.double(), strict=True)):
        if gate == 2:
            inverse = value.atanh().clamp(-20, 20)
        else:
            inverse = ((value - 0.5) / 0.2) if activation == "hard" else value.logit().clamp(-40, 40)
        row[~live[gate]] = inverse[~live[gate]].to(bias)
    if not bool(bias.isfinite().all()):
        raise ValueError("a constant is no value of a gate")
    return result | {"bias_ih": bias.flatten(), "bias_hh": torch.zeros_like(bias).flatten()}
