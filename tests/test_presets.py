"""The table of presets: the papers' numbers are in it, every entry can be made, the first of a task is its default."""

from types import SimpleNamespace

import pytest
import torch

from sparsernn.nets.masks import weight_matrices
from sparsernn.nets.models import BagOfWords
from sparsernn.study.config import PROFILES, RunConfig
from sparsernn.study.optimisers import share_of_rate
from sparsernn.study.presets import PRESETS, preset

SIZES = {  # vocabulary, or features, and classes of a task
    "pydocs-topic": (5_000, 8), "pydocs-char": (100, 0), "pydocs-word": (10_000, 0), "imdb": (20_003, 2),
    "imdb-authors": (20_003, 2), "ag-news": (20_003, 4), "ptb-char": (50, 0), "ptb-word": (10_000, 0), "wikitext-2": (33_278, 0),
    "digits": (81, 11),
}  # fmt: skip
EVERY = [(task, name) for task, presets in PRESETS.items() for name in presets if task in SIZES]
NETS = [(task, name) for task, name in EVERY if preset(task, name).model is not BagOfWords]


def built(task, name):
    """The model without numbers."""
    reads, classes = SIZES[task]
    words = {"vocabulary": [], "features": reads} if task == "digits" else {"vocabulary": range(reads)}
    with torch.device("meta"):
        return preset(task, name).build(SimpleNamespace(**words, classes=range(classes)))


def weights(task, name):
    return sum(p.numel() for p in weight_matrices(built(task, name)).values())


def paper(name):
    return preset("ptb-word", name).profiles["paper"].plan


def test_the_first_model_of_a_task_is_its_default():
    first = {
        "pydocs-topic": "lstm-64", "pydocs-char": "lstm-128", "imdb": "bayes-128", "imdb-authors": "bayes-128",
        "ag-news": "bayes-512", "ptb-char": "bayes-1000", "ptb-word": "bayes-256", "wikitext-2": "bayes-256",
        "pydocs-word": "bayes-256", "digits": "rnn-128",
    }  # fmt: skip
    assert {task: next(iter(PRESETS[task])) for task in SIZES} == first


@pytest.mark.parametrize("task, name", NETS)
def test_every_net_can_be_built_and_trained_by_dense_and_sparse_methods(task, name):
    model = built(task, name)
    size = name.rpartition("-")[2]
    assert not size.isdigit() or model.recurrent.hidden_size == int(size)
    cell = next((cell for cell in ("gru", "rnn") if name.startswith(cell) or f"-{cell}" in name), "lstm")
    assert model.stack == cell
    for profile in preset(task, name).profiles:
        assert profile in PROFILES
        for method in ("dense", "sparse-vd-w", "sparse-vd-wgn"):
            run = RunConfig(task, name, method, profile)
            assert run.variant == "" and bool(run.plan.steps) == (SIZES[task][1] == 0)


@pytest.mark.parametrize("task", ["pydocs-topic", "pydocs-char"])
def test_nets_of_other_sizes_count_against_the_first_one(task):
    default = next(iter(PRESETS[task]))
    small = [name for name, one in PRESETS[task].items() if one.equivalent == default and name != "bag-of-words"]
    assert small == [f"lstm-{n}" for n in ((2, 4, 8, 16) if task == "pydocs-topic" else (32, 48, 56, 64, 80, 256))]
    sizes = [weights(task, name) for name in small]
    assert sizes == sorted(sizes) and len({*sizes, weights(task, default)}) == len(sizes) + 1
    for name in small:
        assert preset(task, name).profiles == preset(task, default).profiles


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_recognisers_of_other_sizes_count_against_the_one_of_their_kind(cell):
    sizes = {size: weights("digits", f"{cell}-{size}") for size in (48, 128, 192, 256)}
    assert preset("digits", f"{cell}-128").equivalent is None
    assert {preset("digits", f"{cell}-{size}").equivalent for size in (48, 192, 256)} == {f"{cell}-128"}
    for n, count in sizes.items():  # both directions read one matrix: 3 of n² a layer, as Table 3 of 1704.05119 counts
        assert count == (168 * n + 8 * n * n + 11 * n if cell == "rnn" else 3 * 168 * n + 15 * n * n + 11 * n)


@pytest.mark.parametrize("name, steps, clip, full, factor, epochs", [
    ("zaremba-small", 20, 5, 4, 2.0, 13),
    ("zaremba-medium", 35, 5, 6, 1.2, 39),
    ("zaremba-large", 35, 10, 14, 1.15, 55),
])  # fmt: skip
def test_zaremba_s_plans_are_the_paper_s(name, steps, clip, full, factor, epochs):
    """A window's mean of losses for its sum: the same move for the rate times the steps, and the clip over the steps."""
    plan = paper(name)
    assert (plan.optimiser, plan.momentum, plan.weight_decay) == ("sgd", 0.0, 0.0)
    assert (plan.batch_size, plan.steps, plan.epochs) == (20, steps, epochs)
    assert plan.lr / plan.steps == 1.0 and plan.clip * plan.steps == pytest.approx(clip)
    shares = [share_of_rate(plan, 10 * epoch, 10) for epoch in range(epochs)]
    assert shares == pytest.approx([factor ** -max(0, epoch + 1 - full) for epoch in range(epochs)])
    gradient = torch.tensor([30.0, 40.0])  # of the sum: 50 long
    moved = gradient * min(1.0, clip / 50)  # at a rate of 1
    mean = gradient / steps
    assert torch.allclose(plan.lr * mean * min(1.0, plan.clip / (50 / steps)), moved)


def test_the_shapes_of_zaremba_s_nets_are_the_paper_s():
    for name, hidden, uniform, dropout in (
        ("zaremba-small", 200, 0.1, 0.0),
        ("zaremba-medium", 650, 0.05, 0.5),
        ("zaremba-large", 1500, 0.04, 0.65),
    ):
        model = built("ptb-word", name)
        assert (model.embedding.embedding_dim, model.recurrent.hidden_size, model.recurrent.num_layers) == (
            hidden,
            hidden,
            2,
        )
        assert (model.dropout_input.p, model.recurrent.dropout, model.dropout_output.p) == (dropout,) * 3
        assert model.arguments["uniform"] == uniform and model.head.weight is not model.embedding.weight
    assert sum(p.numel() for p in model.parameters()) == 66_034_000  # the large one


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("end", ["", "-td"])
def test_the_stacks_of_three_layers_are_the_paper_s(cell, end):
    plan, model = paper(f"rrnn-3x200-{cell}{end}"), built("ptb-word", f"rrnn-3x200-{cell}{end}")
    assert (plan.optimiser, plan.lr, plan.momentum, plan.weight_decay, plan.clip) == ("sgd", 1.0, 0.9, 1e-6, 0.25)
    assert (plan.batch_size, plan.steps, plan.epochs, plan.lr_schedule, plan.lr_end) == (80, 35, 100, "cosine", 0.0)
    assert (model.head.weight is model.embedding.weight) == (end == "-td") and model.recurrent.num_layers == 3
    assert (model.dropout_input.p, model.recurrent.dropout, model.dropout_output.p) == (0, 0.2 if end else 0, 0)
    recurrent = {"lstm": 964_800, "gru": 723_600, "rnn": 241_200}[cell]  # its table of parameters, nothing shared
    assert sum(p.numel() for p in model.recurrent.parameters()) == recurrent


def test_a_short_plan_is_the_paper_s_in_fewer_epochs():
    for task in ("ptb-word", "wikitext-2"):
        for name in (name for name in PRESETS[task] if name.startswith(("zaremba", "rrnn"))):
            whole, short = (preset(task, name).profiles[profile].plan for profile in ("paper", "short"))
            assert short.epochs <= whole.epochs
            same = [{n: v for n, v in vars(p).items() if n not in ("epochs", "products")} for p in (whole, short)]
            assert same[0] == same[1]
