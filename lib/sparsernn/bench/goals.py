"""What blocks are worth on one core, one sequence at a time: python -m sparsernn.bench.goals

The product of a GRU of 1,024 neurons, 3072 × 1024, and the whole layer over 50 steps with 1,024 inputs, both matrices
sparse, beside torch's dense int8, our own dense int8 and scattered weights (numba): interleaved in one run, the least time
of each. Our products are repeated in C, so that no call stands between them; torch's and numba's have their calls.

And the language model of 1409.2329, two LSTMs of 1,500, cut to the 373 and 315 neurons that 1709.05027 leaves of them, with its
embedding and 10,000 logits at each of 30 steps, ten texts at once: a shape, its weights are random.

And the study's sentiment nets on one review of 200 words, as long as the papers let them be.
"""

import argparse
import sys

import torch

from ..engines import LAYERS, PRODUCTS, choose, engine_class
from ..engines.base import Layer, oracle
from ..engines.parts import shrink
from ..engines.timing import interleaved
from ..engines.whole import by_engine
from ..files import error, project_root
from ..nets.compact import compact
from ..nets.layers import GRU
from ..nets.masks import Masks
from ..nets.models import StackedLanguageModel
from ..sparsify.block_shapes import shape_of, to_entries
from .cases import TrainedCase

HIDDEN, STEPS, TIMES = 1024, 50, 50
DENSE = ("dense-int8", "own-dense-int8")
SPARSE = (("c-int8", "16x4"), ("c-int8", "8x4"), ("c-blocks", "16x1"), ("c-blocks", "16x4"))
SPARSE += (("c-blocks", "1x1"), ("numba-csr", "1x1"))


def weights(block, density, seed):
    """A GRU's matrix [3·1024, 1024] float32 whose blocks are kept, as many as make the density, or not."""
    generator, shape = torch.Generator().manual_seed(seed), shape_of(block)
    kept = torch.rand(3 * HIDDEN // shape[0], HIDDEN // shape[1], generator=generator)
    weight = torch.randn(3 * HIDDEN, HIDDEN, generator=generator) / (density * HIDDEN) ** 0.5
    return weight * to_entries(kept <= kept.flatten().quantile(density), shape, weight)


def layer(block, density):
    made, everything = GRU(HIDDEN, HIDDEN).requires_grad_(False), torch.ones(3 * HIDDEN, dtype=torch.bool)
    given = weights(block, density, 0), weights(block, density, 1), made.bias_ih_l0, made.bias_hh_l0
    return Layer(made.cell, shrink(made.cell, *given, everything[:HIDDEN], everything))


def repeated(product, x):
    """→ a call that does a product TIMES times: in C where that can be."""
    try:
        product(x, TIMES)
    except TypeError:
        return lambda: [product(x) for _ in range(TIMES)]
    return lambda: product(x, TIMES)


def products(density, seconds):
    """(engine, block) → microseconds of a product, error against float64."""
    x, calls, errors = torch.randn(HIDDEN, 1), {}, {}
    for name, block, share in [(n, "1x1", 1.0) for n in DENSE] + [(n, b, density) for n, b in SPARSE]:
        weight = weights(block, share, 0)
        product = engine_class("csr-numba" if name == "numba-csr" else name, PRODUCTS)(weight)
        errors[name, block] = error(product(x), weight.double() @ x.double())
        calls[name, block] = repeated(product, x)
    samples = interleaved(calls, seconds=seconds, rounds=(5, 500))
    return {key: (1e3 * float(ms.min()) / TIMES, errors[key]) for key, ms in samples.items()}


def layers(density, seconds):
    """The same of a step of the layer."""
    x, calls, errors = torch.randn(STEPS, 1, HIDDEN), {}, {}
    for name, block, share in [(n, "1x1", 1.0) for n in DENSE] + [(n, b, density) for n, b in SPARSE]:
        made = layer(block, share)
        engine = engine_class(name, LAYERS)(made)
        errors[name, block] = error(engine(x), oracle(made, x))
        calls[name, block] = lambda engine=engine: engine(x)
    samples = interleaved(calls, seconds=seconds, rounds=(5, 500))
    return {key: (1e3 * float(ms.min()) / STEPS, errors[key]) for key, ms in samples.items()}


LEFT, WORDS, WINDOW, TEXTS = (373, 315), 10_000, 30, 10
WHOLE = ("whole, dense-fp32", "dense-fp32", "c-blocks", "c-int8")  # the first before anything is cut, the others after


def cut(large):
    """The language model, and what is left of it."""
    model = StackedLanguageModel(WORDS, large, large, 2).eval().requires_grad_(False)
    generator, groups = torch.Generator().manual_seed(0), {}
    for axis, kept in zip((a for a in model.axes() if a.kind == "hidden"), LEFT, strict=True):
        groups[axis.name] = torch.zeros(large, dtype=torch.bool)
        groups[axis.name][torch.randperm(large, generator=generator)[:kept]] = True
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() == 2}
    return model, compact(model, Masks(tuple(model.axes()), masks, groups))


def language_models(seconds, large=1500):
    """Engine → milliseconds for a window, and the error against float64."""
    model, small = cut(large)
    ids, calls, errors = torch.randint(WORDS, (WINDOW, TEXTS)), {}, {}
    expected = {id(net): choose.reference(net, ids)[0] for net in (model, small)}
    for name in WHOLE:
        net = model if name.startswith("whole") else small
        fast = by_engine(net, name.removeprefix("whole, "), ids, states=False)
        calls[name] = torch.no_grad()(lambda fast=fast: fast(ids)[0])
        errors[name] = error(calls[name](), expected[id(net)])
    samples = interleaved(calls, seconds=seconds, rounds=(3, 100))
    return {name: (float(ms.min()), errors[name]) for name, ms in samples.items()}


REVIEW, NETS = 200, ("sparse-vd-wgn", "sparse-vd-w")  # words; how they were made small
READ_BY = ("dense-fp32", "dense-int8", "own-dense-int8", "c-blocks", "c-int8")


def reviews(method, seconds):
    """Engine → microseconds for a review by a tracked net of IMDb, and the error against float64."""
    path = project_root() / "results" / "runs" / "imdb" / "bayes-128" / method / "short-s0" / "model.safetensors"
    case, calls, errors = TrainedCase(path, 1, REVIEW), {}, {}
    for name in READ_BY:
        calls[name], *_ = case.make(name, "cpu")
        errors[name] = case.error(name, calls[name]())
    samples = interleaved(calls, seconds=seconds, rounds=(5, 500))
    return {name: (1e3 * float(ms.min()), errors[name]) for name, ms in samples.items()}


def table(found):
    """Lines: microseconds, and how many times those of each opponent."""
    base = {name: found[name, "1x1"][0] for name in (*DENSE, "numba-csr")}
    for (name, block), (us, wrong) in found.items():
        against = "  ".join(f"{other} / {us_of / us:5.1f}" for other, us_of in base.items() if other != name)
        yield f"  {name:15} {block:5} {us:8.2f} µs  error {wrong:.0e}  {against}"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m sparsernn.bench.goals", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--densities", nargs="+", type=float, default=(0.3, 0.05), help="shares of weights that are left"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="spent timing each of the tables")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1), torch.manual_seed(0)
    for density in given.densities:
        for what, times in (("product 3072 × 1024", products), (f"step of a GRU 1024, T {STEPS}", layers)):
            lines = [f"{what}, {density:.0%} of weights left", *table(times(density, given.seconds))]
            sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.write(f"2 × 1500 cut to {' and '.join(map(str, LEFT))}, {WINDOW} words of {TEXTS} texts\n")
    found = language_models(given.seconds)
    for name, (ms, wrong) in found.items():
        sys.stdout.write(
            f"  {name:17} {ms:8.2f} ms  error {wrong:.0e}  {found['dense-fp32'][0] / ms:5.2f}× torch's own net of that size, "
            f"{found[WHOLE[0]][0] / ms:5.2f}× the whole one\n"
        )
    for method in NETS:
        sys.stdout.write(f"a review of {REVIEW} words by {method} of IMDb\n")
        found = reviews(method, given.seconds)
        for name, (us, wrong) in found.items():
            against = "  ".join(f"{other} / {found[other][0] / us:5.1f}" for other in READ_BY[:3] if other != name)
            sys.stdout.write(f"  {name:15} {us:8.2f} µs  error {wrong:.0e}  {against}\n")


if __name__ == "__main__":
    main()
