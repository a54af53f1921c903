"""Every Triton kernel on the CPU, in Triton's interpreter, against the formulas: TRITON_INTERPRET=1 python interpreted.py

Prints one JSON object: case → error. A process of its own, because Triton reads the variable when it is imported.
"""

import copy
import json
from dataclasses import replace
from unittest import mock

import torch
from layers import CELLS, by_formula, inputs, pruned
from loops import ACTIVATIONS, WAYS, answers
from oracles import error

from sparsernn.engines import LAYERS, PRODUCTS, engine_class, persistent
from sparsernn.nets import fused_steps, recurrence
from sparsernn.nets.layers import LSTM

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


def step_cases():
    """Outputs and gradients of layers by fused steps, in float32, against torch's operations in float64; rounded ones against
    the same roundings. Every tensor in units of its largest number."""
    fused = mock.patch.object(
        recurrence, "fused", lambda inputs: fused_steps if inputs.dtype == torch.float32 else None
    )
    for cell, activation in ACTIVATIONS:
        torch.manual_seed(0)
        exact = cell(5, 6, 2, bidirectional=True, activation=activation).double()
        if activation == "clipped_relu":  # else nothing reaches 20
            torch._foreach_mul_([p.data for p in exact.parameters()], 6.0)
        net = copy.deepcopy(exact).float()
        for way, more in WAYS.items():
            with fused:
                found = answers(net, 3, **more)
            yield f"step, {cell.__name__} {activation}, {way}", *in_units(found, answers(exact, 3, **more))
        net.rounds_state = activation != "clipped_relu"  # whose numbers grow, and their roundings with them
        with torch.autocast("cpu", torch.bfloat16):
            expected = answers(net, 3, scaled=3)
            with fused:
                found = answers(net, 3, scaled=3)
        yield f"step, {cell.__name__} {activation}, bfloat16", *in_units(found, expected)
        with fused:
            found = evaluated(net)
        yield f"step, {cell.__name__} {activation}, evaluated", *in_units(found, evaluated(net))


@torch.no_grad()
def evaluated(net):
    y, state = net(torch.ones(4, 2, 5))
    return [y, *(state if isinstance(state, tuple) else (state,))]


def nan_cases():
    """Whether NaN in one gate's bias reaches the output: of an LSTM with hard gates, whose input gate has it."""
    net = LSTM(5, 6, activation="hard")
    with torch.no_grad():
        net.bias_ih_l0[0] = torch.nan
        with mock.patch.object(recurrence, "fused", lambda inputs: fused_steps):
            yield "step, NaN stays", net(torch.ones(3, 2, 5))[0][..., 0].isnan().float(), torch.ones(3, 2)


def in_units(found, expected):
    units = [t.double().abs().max().clamp_min(1e-30) for t in expected]
    return [
        torch.cat([(t.double() / u).flatten() for t, u in zip(side, units, strict=True)]) for side in (found, expected)
    ]


if __name__ == "__main__":
    in_triton = ("tiny", "persistent", "triton_products")
    assert set(KERNELS + STEPPED) == {name for name, (module, _) in LAYERS.items() if module in in_triton}
    print(
        json.dumps(
            {
                case: error(got.double(), expected)
                for cases in (layer_cases, product_cases, step_cases, nan_cases)
                for case, got, expected in cases()
            }
        )
    )
