"""Triton kernels without a GPU: right in the interpreter, and compiled for sm_80 and sm_90 into registers that suffice."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is on Linux alone")

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from sparsernn.engines import persistent, tiny, triton_products  # noqa: E402
from sparsernn.nets import fused_steps  # noqa: E402

FLOAT16 = 1e-3  # an error of weights rounded to fp16; everything else is fp32
FLOAT32 = 1e-6


BFLOAT16 = 3e-2  # some roundings that fell the other way, through seven steps and two layers
STEPS = 5e-6  # sums over time and sequences that nearly cancel
CLIPPED = 3e-4  # weights so large that something is clipped, and errors grow from step to step


# ---- right


def tolerance(case):
    if case.startswith("step"):
        return BFLOAT16 if "bfloat16" in case else CLIPPED if "clipped" in case else STEPS
    return FLOAT16 if "fp16" in case else FLOAT32


@pytest.fixture(scope="module")
def errors():
    """case → error against the formulas, from tests/interpreted.py."""
    script = Path(__file__).parent / "interpreted.py"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_kernel_computes_the_formulas_in_the_interpreter(errors):
    assert len(errors) >= 60
    wrong = {case: e for case, e in errors.items() if not e <= tolerance(case)}
    assert not wrong


def test_fp16_values_are_really_rounded(errors):
    assert all(e > FLOAT32 for case, e in errors.items() if "persistent-fp16" in case)


# ---- compiled

FLOATS = {name: "*fp32" for name in ("table", "weight", "fixed", "y", "exchange", "values", "x")}
INTEGERS = {name: "*i32" for name in ("rows", "places", "words", "arrived", "pointers", "columns")}


def compiled(kernel, capability, constants, types=FLOATS | INTEGERS, **options):
    """(registers a thread, bytes of stack it spills to, PTX) of the kernel, for a GPU that is not here."""
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    built = triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", capability, 32), options)
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    return *usage(tools / "cuobjdump", built.asm["cubin"]), built.asm["ptx"]


def usage(cuobjdump, cubin):
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"kernel-{os.getpid()}.cubin"
    path.write_bytes(cubin)
    try:
        text = subprocess.run(
            [cuobjdump, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    finally:
        path.unlink()
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[1]), int(found[2])


both_generations = pytest.mark.parametrize("capability", [80, 90])
TINY = {"BLOCKS": 4, "READS": 15}


@both_generations
@pytest.mark.parametrize(
    ("shape", "warps", "weights"),
    [
        ({"KIND": 0, "HARD": False, "MULTIPLIES": 15, "HP": 32}, 1, 128),
        ({"KIND": 0, "HARD": True, "MULTIPLIES": 5, "HP": 64}, 4, 64),
        ({"KIND": 1, "HARD": False, "MULTIPLIES": 11, "HP": 64}, 4, 96),
    ],
    ids=["LSTM of 32", "LSTM of 64, two gates without weights", "GRU of 64"],
)
def test_a_tiny_layer_stays_in_registers(capability, shape, warps, weights):
    registers, spilled, _ = compiled(tiny.whole_sequence, capability, TINY | shape, num_warps=warps)
    assert spilled == 0
    assert registers > weights, "each thread holds its share of the weights for all steps"


@both_generations
def test_a_tiny_layer_compiles_for_one_sequence_of_one_step(capability):
    """As a launch specialises integers that are 1."""
    shape = {"KIND": 2, "HARD": False, "BLOCKS": 1, "READS": 1, "MULTIPLIES": 1, "HP": 16, "steps": 1, "batch": 1}
    assert compiled(tiny.whole_sequence, capability, shape, num_warps=1)[1] == 0


@both_generations
@pytest.mark.parametrize("wide", [1, 32])
def test_the_csr_product_compiles(capability, wide):
    assert compiled(triton_products.csr_times, capability, {"CHUNK": max(16, 128 // wide), "WIDE": wide})[1] == 0


@both_generations
@pytest.mark.parametrize("block", [16, 32])
def test_the_block_product_runs_on_tensor_cores(capability, block):
    _, spilled, ptx = compiled(triton_products.block_times, capability, {"BLOCK": block, "WIDE": 16})
    assert spilled == 0 and ".tf32.tf32." in ptx


NO_SCALES = {"SCALED": False, "RECURRENT": False, "gates": None, "recurrent": None, "products": None}
STEPS_OF = {
    "LSTM, everything": {"KIND": 0, "SCALED": True, "RECURRENT": True, "PADDED": True, "ROUNDED": True},
    "LSTM, nothing": {"KIND": 0, "PADDED": False, "ROUNDED": False, "live": None} | NO_SCALES,
    "GRU, everything": {"KIND": 1, "SCALED": True, "RECURRENT": True, "PADDED": True, "ROUNDED": True},
    "RNN, nothing": {"KIND": 2, "PADDED": False, "ROUNDED": False, "live": None} | NO_SCALES,
    "RNN, everything": {"KIND": 2, "SCALED": True, "RECURRENT": True, "PADDED": True, "ROUNDED": True},
}


@both_generations
@pytest.mark.parametrize("kernel", [fused_steps.step_forward, fused_steps.step_backward], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", STEPS_OF)
@pytest.mark.parametrize("way", [0, 1, 2])
def test_a_fused_step_of_training_compiles(capability, kernel, kind, way):
    shape = {"WAY": way, "SPAN": fused_steps.SPAN} | STEPS_OF[kind]
    rounded = shape["ROUNDED"]
    if kernel is fused_steps.step_forward:
        shape["READS"] = shape.pop("ROUNDED")
    if shape["KIND"]:
        shape |= {"c_old": None, "c_new": None} | ({"d_c": None} if kernel is fused_steps.step_backward else {})
    shape = {name: value for name, value in shape.items() if name in kernel.arg_names}
    numbers = {"H", "width", "gates_row", "recurrent_row"}
    types = {name: "*fp32" for name in kernel.arg_names if name not in numbers} | {"live": "*u8"}
    types |= dict.fromkeys(("product", "read", "d_read", "d_factor"), "*bf16") if rounded else {}
    assert compiled(kernel, capability, shape, types=types)[1] == 0


def persistent_shape(plan, width, **changes):
    shape = {"KIND": 0, "HARD": False, "BLOCKS": 4, "READS": 15, "MULTIPLIES": 15, "HS": plan.neurons, "CHUNK": 32}
    shape |= {"CHUNKS": width // 32, "BATCH": 1, "PACKED": False, "DENSE": False, "HELD": plan.held, "EMPTY": False}
    return shape | changes


def build_persistent(capability, plan, shape):
    options = {"num_warps": plan.warps, "maxnreg": plan.registers, "launch_cooperative_grid": True}
    return compiled(persistent.whole_sequence, capability, shape, **options)


@both_generations
@pytest.mark.parametrize(
    "changes",
    [
        {"BATCH": 2},
        {"PACKED": True},
        {"DENSE": True},
        {"HELD": False},
        {"KIND": 1, "MULTIPLIES": 11},
        {"EMPTY": True},
        {"KIND": 2, "BLOCKS": 1, "READS": 1, "MULTIPLIES": 1},
    ],
    ids=str,
)
def test_every_variant_of_the_persistent_kernel_compiles(capability, changes):
    plan = persistent.plan(256, 4, 64, 2, 108)
    registers, spilled, ptx = build_persistent(capability, plan, persistent_shape(plan, 64, **changes))
    assert spilled == 0 and registers <= plan.registers
    assert "atom" in ptx and ".acquire." in ptx and ".release." in ptx


def test_1760_neurons_at_a_tenth_stay_on_the_chip_of_an_h200():
    """The largest layer of 1704.05119 with fp32 weights: 224 a row after filling up, all in registers of 132 processors."""
    plan = persistent.plan(1760, 4, 224, 2, 132)
    registers, spilled, _ = build_persistent(90, plan, persistent_shape(plan, 224))
    assert plan.held and plan.programs <= 132
    assert spilled == 0 and 4 * plan.neurons * 224 * 2 / (32 * plan.warps) < registers <= 255


@pytest.mark.parametrize("hidden", [256, 1024, 1760, 2304, 2560])
@pytest.mark.parametrize("width", [32, 256, 768])
@pytest.mark.parametrize("words", [1, 2])
def test_a_plan_fits_all_its_programs_at_once(hidden, width, words):
    """A barrier over programs that are not resident would wait for ever."""
    plan = persistent.plan(hidden, 4, width, words, 132)
    assert plan.neurons * plan.programs >= hidden
    resident = -(-plan.programs // 132)
    assert resident * 32 * plan.warps * plan.registers <= persistent.REGISTERS
    if plan.held:
        weights = 4 * plan.neurons * width * words / (32 * plan.warps)
        assert weights + persistent.WORKING <= plan.registers
