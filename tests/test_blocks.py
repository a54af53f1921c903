"""Pruning by blocks: what is kept is worked out by hand, and each fault of the sparsifiers that ship has its test."""

import json

import pytest
import torch
from oracles import error, randn
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import sparsernn
from sparsernn.nets.packing import pack, unpacked
from sparsernn.sparsify.block_shapes import blocks_of
from sparsernn.sparsify.blocks import RECIPES
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

pytestmark = [
    pytest.mark.usefixtures("as_it_was"),
    pytest.mark.filterwarnings("ignore:masks change"),  # in jumps, so that each can be worked out
]


class Net(nn.Module):
    """Words, two recurrent layers of different widths, a head."""

    def __init__(self, cell=nn.GRU, words=11, width=5, hidden=(8, 12), bidirectional=False):
        super().__init__()
        torch.manual_seed(3)
        first, second = hidden
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.below = cell(width, first, bidirectional=bidirectional)
        self.above = cell(first * (1 + bidirectional), second, num_layers=2, bidirectional=bidirectional)
        self.head = nn.Linear(second * (1 + bidirectional), 3)

    def forward(self, ids):
        return self.head(self.above(self.below(self.words(ids))[0])[0])


CELLS = [nn.LSTM, nn.GRU, nn.RNN]
IDS = torch.randint(1, 11, (7, 4), generator=torch.Generator().manual_seed(0))


def put(model, steps=20, **options):
    """Blocks on a model, pruned from step 2 to 10 every second one."""
    given = {"density": 0.5, "block": "4x1", "prune_start": 2, "prune_end": 10 / steps, "prune_every": 2} | options
    return sparsernn.attach(model, "blocks", steps=steps, n_examples=100, **given)


def train(model, study, steps, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(study.parameter_groups(lr=1e-2))
    targets = torch.randint(0, 3, (7, 4), generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), targets.flatten()) + study.penalty()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        study.after_step()


def pruned_as_it_stands(model, **options):
    """What is kept of the weights as they are: name → bool."""
    study = put(model, **options)
    study.method.shrink(study.method.window[1])
    study.method.apply()
    return study.masks().weights


def blocks_by_hand(w, height, width):
    """Every block of a matrix, one slice after the other: those at the edges are smaller."""
    rows, columns = w.shape
    return [
        (slice(i, min(i + height, rows)), slice(j, min(j + width, columns)))
        for i in range(0, rows, height)
        for j in range(0, columns, width)
    ]


# ---- which blocks


@pytest.mark.parametrize("saliency", ["energy", "maximum"])
@pytest.mark.parametrize(("block", "height", "width"), [("4x1", 4, 1), ("3x5", 3, 5), ("1x1", 1, 1), ("5x3", 5, 3)])
def test_the_blocks_with_most_weight_stay_in_each_gate_whatever_the_edges(block, height, width, saliency):
    model = Net().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = pruned_as_it_stands(model, block=block, saliency=saliency, skip=["words", "head"])
    for name in ("below.weight_ih_l0", "below.weight_hh_l0", "above.weight_hh_l1"):
        for gate, mask in zip(before[name].chunk(3), masks[name].chunk(3), strict=True):
            of = {"energy": lambda w: w.square().mean(), "maximum": lambda w: w.abs().max()}[saliency]
            blocks = sorted(blocks_by_hand(gate, height, width), key=lambda at: float(of(gate[at])), reverse=True)
            expected, counts = torch.zeros_like(mask), []
            for at in blocks:
                counts.append(sum(counts[-1:]) + gate[at].numel())
            n = min(range(len(blocks)), key=lambda k: abs(counts[k] - 0.5 * gate.numel())) + 1
            for at in blocks[:n]:
                expected[at] = True
            assert torch.equal(mask, expected), (name, block)


def test_a_block_at_the_edge_is_ranked_by_the_weights_that_it_has():
    model = nn.Module()
    model.gru, model.head = nn.GRU(1, 2), nn.Linear(5, 1, bias=False)  # 5 is no multiple of 4: a block of one
    model.forward = lambda x: model.head(x)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.5]]))
    masks = pruned_as_it_stands(model, block="1x4", density=0.2, only="head")
    assert masks["head.weight"].tolist() == [[False, False, False, False, True]]


def test_a_block_larger_than_a_matrix_is_the_matrix():
    with pytest.raises(ValueError, match="density is 0.5; blocks of 99999x99999.*they can end at 1$"):
        put(Net(), block="99999x99999", density=0.5)
    assert pruned_as_it_stands(Net(), block="99999x99999", density=1.0)["above.weight_hh_l0"].all()


def test_a_word_is_cut_along_its_numbers_and_the_padding_stays():
    model = Net(words=8, width=8)
    with torch.no_grad():
        model.words.weight.fill_(1.0)
        model.words.weight[0], model.words.weight[3, 4:], model.words.weight[5, :4] = 0.0, 3.0, 2.0
    mask = pruned_as_it_stands(model, block="4x1", density=0.25, only="words")["words.weight"]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0] = True  # 8 of the 16 weights that a quarter is
    expected[3, 4:] = expected[5, :4] = True
    assert torch.equal(mask, expected)


def test_each_gate_has_the_density_that_was_said_for_it():
    masks = pruned_as_it_stands(
        Net(hidden=(40, 20)), block="2x2", matrices="both", density=0.25, gate_densities="0.05,0.2,0.5"
    )
    for name in ("below.weight_hh_l0", "above.weight_ih_l0", "above.weight_hh_l1"):
        shares = [float(gate.double().mean()) for gate in masks[name].chunk(3)]
        assert shares == pytest.approx([0.05, 0.2, 0.5], abs=2 / masks[name].chunk(3)[0].numel())
    assert masks["head.weight"].all() and masks["words.weight"].all()


def test_the_diagonal_stays_and_is_counted():
    model = Net(nn.LSTM, hidden=(16, 24))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "weight_hh" in name:  # nothing but the rule would keep it
                for gate in p.chunk(4):
                    gate.fill_diagonal_(1e-6)
    study = put(model, block="4x4", density=0.2, matrices="recurrent", keep_diagonal=True)
    study.method.shrink(study.method.window[1])
    masks = study.masks().weights
    for gate in masks["above.weight_hh_l1"].chunk(4):
        assert gate.diagonal().all()
        assert abs(int(gate.sum()) - 0.2 * gate.numel()) <= 8  # half a block
        free = gate & ~torch.eye(24, dtype=torch.bool)
        assert all(
            free[at].sum() in (0, free[at].numel() - (gate[at].diagonal().numel() if at[0] == at[1] else 0))
            for at in blocks_by_hand(gate, 4, 4)
        )
    assert study.method.density() == pytest.approx(0.2, rel=0.1) and masks["above.weight_ih_l0"].all()


@pytest.mark.parametrize(
    ("matrices", "touched"),
    [
        ("all", ("words", "weight_ih", "weight_hh", "head")),
        ("both", ("weight_ih", "weight_hh")),
        ("recurrent", ("weight_hh",)),
        ("input", ("weight_ih",)),
    ],
)
def test_only_the_matrices_that_were_named_are_pruned(matrices, touched):
    model = Net()
    study = put(model, matrices=matrices)
    train(model, study, 20)
    pruned = {name for name, mask in study.masks().weights.items() if not mask.all()}
    expected = {n for n, p in model.named_parameters() if p.dim() == 2 and any(part in n for part in touched)}
    assert pruned == expected and set(study.method.prunable()) == expected


# ---- faults of the sparsifiers that ship


def test_a_density_that_rounds_to_no_block_is_refused_with_what_can_be_reached():
    with pytest.raises(
        ValueError, match=r"density is 0.1; blocks of 16x4.*would end at 0.25 here; they can end at 0.25"
    ):
        put(Net(hidden=(16, 16)), block="16x4", density=0.1, matrices="recurrent")
    with pytest.raises(ValueError, match="density is 0.4; .* they can end at 0.25 or 0.5"):
        put(Net(hidden=(16, 16)), block="16x4", density=0.4, matrices="recurrent")
    masks = pruned_as_it_stands(Net(hidden=(16, 16)), block="16x4", density=0.25, matrices="recurrent")
    assert [int(gate.sum()) for gate in masks["below.weight_hh_l0"].chunk(3)] == [64, 64, 64]  # one block each


def test_of_equal_blocks_as_many_stay_as_were_asked_for():
    model = Net(nn.LSTM, hidden=(16, 16))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    masks = pruned_as_it_stands(model, density=0.25, matrices="recurrent")
    assert [int(gate.sum()) for gate in masks["above.weight_hh_l1"].chunk(4)] == [64] * 4


def test_the_density_falls_by_the_cube_of_what_is_left():
    model = Net(nn.LSTM, hidden=(16, 16))
    study, seen = put(model, steps=40, density=0.2, block="1x1", prune_end=0.5, prune_start=4, matrices="recurrent"), {}
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    for step in range(1, 41):
        train(model, study, 1, optimizer)
        seen[step] = study.method.density()
    for step in (6, 8, 12, 16, 20, 40):  # 4 … 20, every second step
        expected = 0.2 + 0.8 * ((20 - min(step, 20)) / 16) ** 3
        assert seen[step] == pytest.approx(expected, abs=1 / 256), step
    assert seen[3] == 1 and list(seen.values()) == sorted(seen.values(), reverse=True)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)])
def test_two_layers_of_unequal_size_are_pruned_and_zeros_stay_for_a_hundred_steps(optimizer):
    model = Net(nn.LSTM)
    study = put(model, steps=110)
    optimizer = optimizer(study.parameter_groups(lr=1e-2))
    train(model, study, 10, optimizer)
    masks = {name: mask.clone() for name, mask in study.masks().weights.items()}
    moved = model.above.weight_hh_l0.detach().clone()
    train(model, study, 100, optimizer)
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        assert not mask.all() and not weights[name][~mask].any() and torch.equal(study.masks().weights[name], mask)
    assert (model.above.weight_hh_l0 != moved)[masks["above.weight_hh_l0"]].float().mean() > 0.9
    assert study.method.density() == pytest.approx(0.5, rel=0.1)


# ---- group lasso


def test_group_lasso_is_the_sum_of_the_norms_of_the_blocks():
    model = Net(nn.RNN).double()
    study = put(model, group_lasso=0.03, block="3x2", matrices="both")
    weights = [p for name, p in model.named_parameters() if "weight_ih" in name or "weight_hh" in name]
    expected = 0.03 * sum(float(w[at].detach().norm()) for w in weights for at in blocks_by_hand(w, 3, 2))
    assert float(study.penalty().detach()) == pytest.approx(expected, rel=1e-12)
    study.method.shrink(study.method.window[1])  # of what is gone the gradient is 0, and a number
    study.method.apply()
    study.penalty().backward()
    for w, mask in zip(weights, [study.masks().weights[n] for n in study.method.prunable()], strict=True):
        at = next(at for at in blocks_by_hand(w, 3, 2) if mask[at].all())
        assert torch.allclose(w.grad[at], (0.03 * w[at] / w[at].norm()).detach())
        assert torch.equal(w.grad != 0, mask)
    study.step = study.method.window[1]
    assert study.penalty() == 0


def test_group_lasso_makes_the_blocks_that_go_smaller_before_they_do():
    def small(strength):
        model = Net()
        study = put(model, steps=100, prune_start=60, prune_end=0.9, group_lasso=strength)
        train(model, study, 60)
        return sorted(
            float(model.above.weight_hh_l0[at].detach().norm()) for at in blocks_by_hand(torch.zeros(36, 12), 4, 1)
        )[:50]

    assert sum(small(0.05)) < 0.5 * sum(small(0.0))


# ---- on anyone's model, to the end


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_made_small_computes_what_was_trained(cell, bidirectional):
    model = Net(cell, bidirectional=bidirectional).double()
    study = put(model, density=0.3, keep_diagonal=cell is nn.GRU, prune_end=0.5)
    train(model, study, 20)
    small, proof = sparsernn.compact(model.eval(), example=IDS)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert error(small(IDS), model(IDS)) <= 1e-12 and proof.weights_after <= 0.33 * weights


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_ships_can_be_asked_for_by_name(name):
    recipe = dict(RECIPES[name])
    assert recipe.pop("prune_start") in (2000, 6000, 12000)
    model = Net(hidden=(64, 64), width=32)
    study = sparsernn.attach(model, "blocks", 200, 100, **recipe | {"prune_start": 0, "prune_every": 10})
    train(model, study, 200)
    (shares,) = [recipe["gate_densities"]]
    part = "weight_ih" if name == "dred" else "weight_hh"
    gates = study.masks().weights[f"above.{part}_l0"].chunk(3)
    assert [float(gate.double().mean()) for gate in gates] == pytest.approx(
        list(map(float, shares.split(","))), abs=0.01
    )
    assert study.method.density() == pytest.approx(recipe["density"], rel=0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block": "16"}, "block is '16'; expected rows x columns"),
        ({"block": "0x4"}, "block is '0x4'; expected rows x columns"),
        ({"density": 0.0}, "density is 0.0; it must be above 0"),
        ({"gate_densities": "0.5,half,0.5"}, "gate_densities is '0.5,half,0.5'; expected a number above 0"),
        ({"gate_densities": "0.5,0.5,0.0"}, "expected a number above 0 and at most 1 for each gate"),
        ({"gate_densities": "0.5,0.5,0.5,0.5"}, "gate_densities has 4 numbers; below.weight_ih_l0 has gates r, z, n"),
        ({"gate_densities": "0.1,0.1,0.4"}, "gate_densities have a mean of 0.2, density is 0.5: make them agree"),
        ({"keep_diagonal": True, "matrices": "input"}, "keep_diagonal is about W_hh, which matrices='input' leaves"),
        ({"matrices": "recurrent", "only": "head"}, "matrices is 'recurrent'; among head.weight there is none"),
        ({"saliency": "mean"}, "unknown saliency 'mean'"),
        ({"prune_start": 20}, "pruning would begin at step 20 of a training of 20: lower prune_start"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(options, said):
    with pytest.raises(ValueError, match=said):
        put(Net(), **options)


def test_a_run_stopped_while_it_prunes_goes_on_to_the_same_end(tmp_path, monkeypatch):
    def config():
        return RunConfig(
            "tiny-topic", method="blocks", profile="quick", density=0.3, block="4x2", prune_every=7, group_lasso=1e-3
        )

    run = ensure(config())
    assert run.study.method.density() == pytest.approx(0.3, rel=0.1) and run.record["compact_error"] <= 1e-9
    assert run.record["schedule"].endswith("blocks of 4x2, pruned from epoch 1 to 50%")
    whole = load_file(run.directory / "checkpoint.safetensors"), (run.directory / "model.safetensors").read_bytes()
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config(), stop)
    again = ensure(config())
    checkpoint = load_file(again.directory / "checkpoint.safetensors")
    assert all(torch.equal(value, checkpoint[name]) for name, value in whole[0].items())
    assert (again.directory / "model.safetensors").read_bytes() == whole[1]


def test_scores_are_of_blocks_so_that_a_threshold_takes_whole_ones():
    run = ensure(RunConfig("tiny-char", method="blocks", profile="quick", density=0.5, block="4x2"))
    masks = run.study.masks(-0.4).weights
    assert 0.02 < run.study.method.density(run.study.masks(-0.4)) < 0.48
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        assert next(row for row in blocks_of(masks[name]) if row["block"] == "4x4")["density"] > 0
        assert all(masks[name][at].all() or not masks[name][at].any() for at in blocks_by_hand(masks[name], 4, 2))


# ---- which shapes a mask has


def test_a_mask_says_which_blocks_it_is_made_of_and_what_others_would_cost():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32, 5] = mask[48:64, 40] = True  # two blocks of 16x1
    found = {row["block"]: row for row in blocks_of(mask)}
    assert list(found) == ["1x1", "16x1", "8x4", "4x4", "16x4", "32x32"]
    assert [row["fits"] for row in found.values()] == [True, True, False, False, False, False]
    assert all(row["density"] == 32 / 4096 for row in found.values())
    assert [row["block_density"] * 4096 for row in found.values()] == [32, 32, 128, 128, 128, 2048]
    assert [row["cost"] for row in found.values()] == [1, 1, 4, 4, 4, 64]


def test_blocks_at_the_edge_of_a_mask_are_the_smaller_ones():
    mask = torch.zeros(18, 3, dtype=torch.bool)
    mask[16:, 2] = True
    found = {row["block"]: row for row in blocks_of(mask)}
    assert found["16x1"]["fits"] and found["16x1"]["cost"] == 1
    assert found["16x4"]["block_density"] == pytest.approx(6 / 54) and not found["16x4"]["fits"]
    assert {row["cost"] for row in blocks_of(torch.zeros(5, 5, dtype=torch.bool))} == {1.0}
    with pytest.raises(ValueError, match="mask is torch.float32 of shape"):
        blocks_of(torch.zeros(3, 3))


# ---- the file


@pytest.mark.parametrize(
    ("block", "height", "width"), [("16x1", 16, 1), ("8x4", 8, 4), ("4x4", 4, 4), ("32x32", 32, 32)]
)
def test_blocks_are_stored_as_runs_near_the_floor_and_come_back(block, height, width):
    weight = randn(512, 128, dtype=torch.float32)
    kept = torch.rand(512 // height, 128 // width, generator=torch.Generator().manual_seed(1)) < 0.1
    weight *= kept.repeat_interleave(height, 0).repeat_interleave(width, 1)
    parts, layout = pack("w", weight)
    assert layout == {"shape": [512, 128], "by": "columns", "runs": True}
    stored, blocks = int((weight != 0).sum()), int(kept.sum())
    assert sum(t.numel() * t.itemsize for t in parts.values()) <= 1.3 * (4 * stored + 2 * blocks)
    assert torch.equal(unpacked(parts, {"w": layout}, 1 << 20)["w"], weight)


def test_scattered_zeros_are_stored_as_before():
    weight = randn(60, 50) * (torch.rand(60, 50, generator=torch.Generator().manual_seed(2)) < 0.05)
    parts, layout = pack("w", weight)
    assert layout == {"shape": [60, 50], "by": "columns"} and set(parts) == {"w.values", "w.indices", "w.indptr"}
    assert torch.equal(unpacked(parts, {"w": layout}, 1 << 20)["w"], weight)


def test_the_file_of_a_model_in_blocks_is_near_its_floor(tmp_path):
    model = Net(nn.LSTM, words=2000, width=64, hidden=(64, 128))
    study = put(model, density=0.1, block="16x1")
    train(model, study, 20)
    size = sparsernn.save(sparsernn.compact(model.eval(), example=IDS)[0], tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        layouts = json.loads(file.metadata()["sparsernn"])["sparse"]
    assert sum(layout.get("runs", False) for layout in layouts.values()) >= 6
    small = sparsernn.load(tmp_path / "small.safetensors", model)
    stored = sum(int((t != 0).sum()) for n, t in small.state_dict().items() if t.is_floating_point() and t.dim() == 2)
    biases = sum(t.numel() for t in small.state_dict().values() if t.is_floating_point() and t.dim() == 1)
    assert size <= 1.3 * (4 * stored + 2 * stored / 16 + 4 * biases)
    assert error(small(IDS), model(IDS)) <= 1e-6
