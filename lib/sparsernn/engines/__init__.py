"""Ways of running what is left of a recurrent layer, and its products; each is compared with float64 before it is timed.

`LAYERS` run whole sequences (`base.Engine`), `PRODUCTS` one matrix product (`products.Product`). A file is imported
when its engine is asked for: numba and Triton need not be there for the others.
"""

import os
from importlib import import_module

from ..files import nearest

LAYERS = {
    "dense-fp32": ("fused", "Fused"),  # the opponents: the whole layer, zeros and all
    "dense-tf32": ("fused", "FusedTF32"),
    "dense-bf16": ("fused", "FusedBF16"),
    "dense-fp16": ("fused", "FusedFP16"),
    "dense-fp16-padded": ("fused", "FusedFP16Padded"),
    "dense-fp32-graph": ("fused", "Replayed"),
    "dense-bf16-graph": ("fused", "ReplayedBF16"),
    "dense-fp16-graph": ("fused", "ReplayedFP16"),
    "dense-int8": ("fused", "FusedInt8"),
    "own-dense-int8": ("c.layers", "DenseInt8"),
    "compact-torch": ("fused", "Fused"),  # from here on: what is left of it
    "compact-loop": ("fused", "Loop"),
    "csr-torch": ("stepped", "CsrTorch"),
    "csr-triton": ("triton_products", "SteppedCsr"),
    "block-16": ("triton_products", "SteppedBlock16"),
    "block-32": ("triton_products", "SteppedBlock32"),
    "numba": ("cpu", "Rows"),
    "numba-csr": ("cpu", "Lanes"),
    "c-blocks": ("c.layers", "Blocks"),
    "c-int8": ("c.layers", "Int8"),
    "triton-tiny": ("tiny", "Tiny"),
    "tiny-cuda": ("tiny_cuda", "TinyCuda"),
    "persistent": ("persistent", "Persistent"),
    "persistent-fp16": ("persistent", "PersistentFP16"),
    "persistent-dense": ("persistent", "PersistentDense"),
    "persistent-cuda": ("persistent_cuda", "PersistentCuda"),
}
PRODUCTS = {
    "dense-fp32": ("products", "Dense"),
    "dense-tf32": ("products", "DenseTF32"),
    "dense-bf16": ("products", "DenseBF16"),
    "dense-fp16": ("products", "DenseFP16"),
    "dense-fp16-padded": ("products", "DenseFP16Padded"),
    "dense-onednn": ("products", "DenseOneDNN"),
    "dense-int8": ("products", "DenseInt8"),
    "own-dense-int8": ("c.layers", "DenseInt8Product"),
    "c-blocks": ("c.layers", "BlocksProduct"),
    "c-int8": ("c.layers", "Int8Product"),
    "csr-torch": ("products", "Csr"),
    "two-to-four": ("products", "TwoToFour"),
    "csr-numba": ("cpu", "CsrNumba"),
    "csr-triton": ("triton_products", "CsrTriton"),
    "block-16": ("triton_products", "Block16"),
    "block-32": ("triton_products", "Block32"),
}
PACKAGES = {"cuda": "cuda-bindings nvidia-cuda-nvrtc"}  # module → what brings it, where its name does not say
OPPONENTS = (
    "dense-fp32",
    "dense-tf32",
    "dense-bf16",
    "dense-fp16",
    "dense-fp16-padded",
    "dense-fp32-graph",
    "dense-bf16-graph",
    "dense-fp16-graph",
    "dense-onednn",
    "dense-int8",
    "own-dense-int8",
    "compact-torch",
)  # a timing row for each


def is_dense(name):
    """Whether an engine of this name is an opponent that runs the layer whole, zeros and all."""
    return name.startswith(("dense-", "own-dense-"))


def engine_class(name, table=LAYERS):
    """The class of an engine. Raises ValueError for an unknown name, ImportError saying which package is missing."""
    if name not in table:
        raise ValueError(nearest("engine", name, table))
    module, kind = table[name]
    try:
        return getattr(import_module("." + module, __name__), kind)
    except ModuleNotFoundError as problem:
        missing = problem.name.split(".")[0]
        raise ImportError(f"engine {name!r} needs {missing}: pip install {PACKAGES.get(missing, missing)}") from problem


def left_out():
    """The names in `SPARSERNN_WITHOUT`, with commas between them. Raises ValueError for one that no engine has."""
    names = [name.strip() for name in os.environ.get("SPARSERNN_WITHOUT", "").split(",") if name.strip()]
    for name in names:
        if name not in LAYERS | PRODUCTS:
            raise ValueError(f"SPARSERNN_WITHOUT: {nearest('engine', name, LAYERS | PRODUCTS)}")
    return names


def available(device, table=LAYERS):
    """Names of the engines that run on a device type, whose packages are there, and that are not `left_out`."""
    names, without = [], left_out()
    for name in table:
        if name in without:
            continue
        try:
            if device in engine_class(name, table).devices:
                names.append(name)
        except ImportError:
            continue
    return names
