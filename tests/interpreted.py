"""Every Triton kernel on the CPU, in Triton's interpreter, against the formulas: TRITON_INTERPRET=1 python interpreted.py

Prints one JSON object: case → error. A process of its own, because Triton reads the variable when it is imported.
"""

import json
from dataclasses import replace
from unittest import mock

import torch
from layers import CELLS, by_formula, inputs, pruned
from oracles import error

from sparsernn.engines import LAYERS, PRODUCTS, engine_class, persistent

KERNELS = ("triton-tiny", "persistent", "persistent-fp16", "persistent-dense")
STEPPED = ("csr-triton", "block-16", "block-32")


def layer_cases():
    for name in CELLS:
        layer, masked, kept = pruned(name)
        for engine in KERNELS:
            run, batch = engine_class(engine)(layer, "cpu"), 3 if engine == "triton-tiny" else 2
            x, ids, lengths, live = inputs(3, batch)
            yield f"{engine}, {name}, x", run(x), by_formula(masked, kept, x)
            yield f"{engine}, {name}, ids, padded", run(ids, live), by_formula(masked, kept, ids, lengths)
    for name in ("LSTM", "GRU, hard"):
        layer, masked, kept = pruned(name, density=0.1, live=0.9)
        x, _, lengths, live = inputs(2, 2)
        yield (
            f"csr-triton, {name}, padded",
            engine_class("csr-triton")(layer, "cpu")(x, live),
            by_formula(masked, kept, x, lengths),
        )
    layer, masked, kept = pruned(
        "LSTM", hidden=50, density=1.0, keep=0.9
    )  # wider than a chunk: rows of several, and neurons left over
    x, *_ = inputs(2, 1)
    for engine in ("triton-tiny", "persistent", "persistent-dense"):
        yield f"{engine}, 50 neurons", engine_class(engine)(layer, "cpu")(x), by_formula(masked, kept, x)
    with mock.patch.object(persistent, "plan", lambda *sizes, plan=persistent.plan: replace(plan(*sizes), held=False)):
        for engine in ("persistent", "persistent-fp16"):
            yield f"{engine}, read again each step", engine_class(engine)(layer, "cpu")(x), by_formula(masked, kept, x)
    layer, masked, kept = pruned("LSTM", live=0.0)
    yield "triton-tiny, every gate constant", engine_class("triton-tiny")(layer, "cpu")(x), by_formula(masked, kept, x)
    yield "persistent, every gate constant", engine_class("persistent")(layer, "cpu")(x), by_formula(masked, kept, x)


def product_cases():
    generator = torch.Generator().manual_seed(0)
    for rows, columns, wide in ((40, 70, 1), (33, 64, 5), (64, 96, 35)):
        tiles = torch.rand(-(-rows // 32), -(-columns // 32), generator=generator) < 0.4
        for name in STEPPED:
            kept = tiles.repeat_interleave(32, 0).repeat_interleave(32, 1)[:rows, :columns]
            if name == "csr-triton":
                kept = torch.rand(rows, columns, generator=generator) < 0.2
            weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * kept
            x = torch.randn(columns, wide, generator=generator)
            yield (
                f"{name}, product {rows}x{columns}x{wide}",
                engine_class(name, PRODUCTS)(weight)(x),
                weight @ x.double(),
            )


if __name__ == "__main__":
    in_triton = ("tiny", "persistent", "triton_products")
    assert set(KERNELS + STEPPED) == {name for name, (module, _) in LAYERS.items() if module in in_triton}
    print(
        json.dumps(
            {
                case: error(got.double(), expected)
                for cases in (layer_cases, product_cases)
                for case, got, expected in cases()
            }
        )
    )
