"""How much a sweep covers, by name or as asked for, and the cases that makes."""

import itertools
import re
from dataclasses import dataclass, replace

from ..engines.models import recurrent_layers
from ..files import nearest, project_root
from ..nets.file import load
from ..sparsify.block_shapes import SHAPES
from .cases import PATTERNS, LayerCase, ProductCase, TrainedCase
from .shipped import SHIPPED, ShippedCase

PAPER_LAYERS = (("rnn", 1760), ("gru", 2560))  # the recurrent layers that 1704.05119 prunes
PAPER_SHAPES = ((1760, 1760), (2560, 2560), (3072, 3072), (7680, 2560), (10752, 3584))  # 1704.05119; DeepBench's layers


BLOCKS = ("unstructured", *SHAPES[1:])


@dataclass(frozen=True)
class Profile:
    """What a sweep covers; `seconds` is the time spent timing a case, `steps` the length of its sequences.

    shapes, product_*            products: [rows, columns], densities, columns of x
    hidden, densities, batches   LSTM layers, under every one of `patterns`
    others                       (kind, hidden) of other layers, scattered weights at `product_densities`
    in_heads                (kind, hidden, heads, batch) of layers whose W_hh is block-diagonal
    in_blocks, block_densities   (kind, hidden) of layers cut in every shape of BLOCKS, one sequence at a time
    shipped                      names of SHIPPED, likewise
    every_net                    whether all tracked networks are timed, or of each task the smallest file alone
    """

    shapes: tuple
    product_densities: tuple
    product_batches: tuple
    hidden: tuple
    densities: tuple
    batches: tuple
    patterns: tuple
    model_batches: tuple
    others: tuple
    in_heads: tuple
    in_blocks: tuple
    block_densities: tuple
    shipped: tuple
    every_net: bool
    steps: int
    seconds: float


HEADS = tuple((kind, 768, 24, batch) for kind in ("lstm", "gru") for batch in (1, 16))  # FlashRNN's (2412.07752)
WIDE = (1, 2, 4, 8, 16, 32, 64, 1500)
PROFILES = {
    "smoke": Profile(((256, 256),), (0.05,), (1, 8), (64,), (0.1,), (1, 4), PATTERNS, (1,), (("gru", 48),),
                     (("lstm", 48, 3, 1),), (("gru", 64),), (0.3,), ("LPCNet",), False, 10, 0.02),
    "cpu": Profile(((1760, 1760), (7680, 2560)), (0.1, 0.05), WIDE, (256, 1024), (0.3, 0.1, 0.05, 0.01), (1, 32),
                   PATTERNS, (1, 128), PAPER_LAYERS, (), (("gru", 1024), ("lstm", 512)), (0.5, 0.3, 0.1, 0.05),
                   tuple(SHIPPED), True, 50, 0.5),
    "gpu": Profile(PAPER_SHAPES, (0.1, 0.05), WIDE, (256, 512, 1024, 1760, 2304), (0.3, 0.1, 0.05, 0.01),
                   (1, 4, 16, 32, 128), PATTERNS, (1, 32, 128), PAPER_LAYERS, HEADS, (("gru", 1024),), (0.5, 0.3, 0.1, 0.05),
                   tuple(SHIPPED), True, 200, 1.0),
    # some of its cases, in a quarter of an hour: persistent layers, the trained nets, where sparse products win and lose
    "gpu-quarter": Profile(((1760, 1760), (7680, 2560)), (0.1, 0.05), (1, 4, 64, 1500), (1024, 2304), (0.3, 0.1, 0.05),
                           (1, 4, 16), PATTERNS[:1], (1, 32, 128), (("lstm", 1760),), HEADS, (), (), (), False, 200, 0.3),
}  # fmt: skip


def products(profile):
    combined = itertools.product(profile.shapes, profile.product_densities, PATTERNS[:2], profile.product_batches)
    cases = [ProductCase(*shape, density, batch, pattern) for shape, density, pattern, batch in combined]
    return cases + [
        ProductCase(*shape, 0.5, batch, "2:4") for shape in profile.shapes for batch in profile.product_batches
    ]


def layers(profile):
    combined = itertools.product(profile.hidden, profile.densities, profile.batches, profile.patterns)
    others = itertools.product(profile.others, profile.product_densities, profile.batches)
    in_heads = profile.in_heads
    return (
        [LayerCase(hidden, 1 / n, batch, f"{n} heads", profile.steps, kind) for kind, hidden, n, batch in in_heads]
        + [LayerCase(*place, profile.steps) for place in combined]
        + [
            LayerCase(hidden, density, batch, PATTERNS[0], profile.steps, kind)
            for (kind, hidden), density, batch in others
        ]
    )


def blocks(profile):
    combined = itertools.product(profile.in_blocks, profile.block_densities, BLOCKS)
    cases = [LayerCase(hidden, share, 1, block, profile.steps, kind) for (kind, hidden), share, block in combined]
    return cases + [ShippedCase(1, name, profile.steps) for name in profile.shipped]


def models(profile, root=None):
    paths = sorted((root or project_root() / "results" / "runs").glob("*/*/*/*/model.safetensors"))
    if not profile.every_net:
        paths = sorted(paths, key=lambda path: (path.parts[-5], path.stat().st_size))
    cases, seen = [], set()
    for path in paths:
        if (profile.every_net or path.parts[-5] not in seen) and recurrent_layers(load(path)):
            seen.add(path.parts[-5])
            cases += [TrainedCase(path, batch, profile.steps) for batch in profile.model_batches]
    return sorted(cases, key=lambda case: case.batch)  # every net once before any is timed again


SWEEPS = {
    "layers": layers,
    "blocks": blocks,
    "models": models,
    "products": products,
}  # in this order: what is new first


ELSEWHERE = ("others", "in_heads", "in_blocks", "shipped")  # layers whose neurons no list of `hidden` says


def profile_of(name, shapes=None, densities=None, batches=None, hidden=None):
    """A profile by name, some of it replaced: shapes of products ("1760x2560"), densities and batches of all sweeps,
    neurons of LSTM layers, which are then the only layers.

    Raises ValueError for an unknown name, a shape it cannot read, a density that is no share, a count under 1.
    """
    if name not in PROFILES:
        raise ValueError(nearest("profile", name, PROFILES))
    given = {"shapes": shapes, "densities": densities, "batches": batches, "hidden": hidden}
    for what, values in given.items():
        if values is not None and not len(values):
            raise ValueError(f"{what} is empty; leave it out to take the profile's")
    for shape in shapes or ():
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(shape)):
            raise ValueError(f"shape {shape!r} is not rows x columns, for example '1760x2560'")
    for density in densities or ():
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"density {density!r} is no share of weights that are left, for example 0.1 for 10 %")
    for what, count in [("batch", n) for n in batches or ()] + [("hidden", n) for n in hidden or ()]:
        if type(count) is not int or count < 1:
            raise ValueError(f"{what} {count!r} is not a whole number from 1 on")
    changes = {} if hidden is None else {"hidden": tuple(hidden)} | dict.fromkeys(ELSEWHERE, ())
    if shapes is not None:
        changes["shapes"] = tuple(tuple(map(int, shape.split("x"))) for shape in shapes)
    if densities is not None:
        changes |= dict.fromkeys(("product_densities", "densities", "block_densities"), tuple(densities))
    if batches is not None:
        changes |= dict.fromkeys(("product_batches", "batches", "model_batches"), tuple(batches))
    return replace(PROFILES[name], **changes)
