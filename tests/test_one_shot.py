"""One-shot pruning: each criterion against brute force, the surgery against least squares, and what becomes of the run."""

import pytest
import torch
from oracles import error, one_hot, randn, step_loop
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import sparsernn
from sparsernn.nets.layers import stand_in
from sparsernn.nets.masks import weight_matrices
from sparsernn.sparsify.layerwise import compensated, within_outputs
from sparsernn.study.config import RunConfig, needed
from sparsernn.study.runs import ensure

CRITERIA = ["magnitude", "wanda", "hessian", "fisher"]
CELLS = [nn.LSTM, nn.GRU, nn.RNN]
LENGTHS = torch.tensor([7, 5, 2])


pytestmark = pytest.mark.usefixtures("as_it_was")


class Net(nn.Module):
    """Words, two layers in two directions over sequences of unequal length, a label a step."""

    def __init__(self, cell=nn.LSTM, padding_idx=None):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 4, padding_idx=padding_idx)
        self.stack = cell(4, 5, num_layers=2, bidirectional=True)
        self.head = nn.Linear(10, 3)
        self.double()

    def forward(self, ids):
        packed = pack_padded_sequence(self.words(ids), LENGTHS)
        return self.head(self.stack(packed)[0].data)


def batches(count, start=0):
    return [torch.randint(1, 9, (7, 3), generator=torch.Generator().manual_seed(start + i)) for i in range(count)]


def attached(cell=nn.LSTM, steps=200, padding_idx=None, **options):
    """A net that goes on with the weights of another one; → model, study, those weights."""
    finished, model = Net(cell, padding_idx), Net(cell, padding_idx)
    with torch.no_grad():
        for i, parameter in enumerate(finished.parameters()):
            parameter.copy_(0.6 * randn(*parameter.shape, seed=i))
    finished = finished.state_dict()
    return model, sparsernn.attach(model, "one-shot", steps, 50, reference=finished, **options), finished


def step(model, study, ids, optimizer=None):
    loss = F.cross_entropy(model(ids), torch.arange(14) % 3)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    study.after_step()
    model.zero_grad()


# ---- the surgery


def cost_of_losing(weight, inputs, row, column):
    """The squared error that is left of a row's products, and the row, when one weight goes and those to its right are
    chosen anew by least squares."""
    fixed, free = weight[row, :column], inputs[:, column + 1 :]
    wanted = inputs[:, column:] @ weight[row, column:]
    found = torch.linalg.lstsq(free, wanted[:, None]).solution[:, 0] if free.shape[1] else weight.new_zeros(0)
    return float((free @ found - wanted).square().sum()), torch.cat([fixed, weight.new_zeros(1), found])


def test_the_weight_that_goes_is_the_cheapest_and_the_others_make_up_for_it_as_least_squares_do():
    for seed in range(5):
        weight, inputs = randn(3, 5, seed=seed), randn(40, 5, seed=50 + seed) @ randn(5, 5, seed=90 + seed)
        left, keep = compensated(weight, inputs.T @ inputs, 14 / 15, dampening=0.0)
        places = [(row, column) for row in range(3) for column in range(5)]
        cheapest = min(places, key=lambda place: cost_of_losing(weight, inputs, *place)[0])
        assert [tuple(place) for place in (~keep).nonzero().tolist()] == [cheapest]
        expected = weight.clone()
        expected[cheapest[0]] = cost_of_losing(weight, inputs, *cheapest)[1]
        assert error(left, expected) <= 1e-9


@pytest.mark.parametrize("density", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("columns", [12, 300])  # more than are chosen at once
def test_the_products_of_what_is_left_are_nearer_than_those_of_the_largest_weights(columns, density):
    weight, inputs = randn(20, columns, seed=1), randn(500, columns, seed=2) @ randn(columns, columns, seed=3)
    left, keep = compensated(weight, inputs.T @ inputs, density)
    cut = weight.abs().flatten().sort(descending=True).values[round(density * weight.numel()) - 1]

    def missed(pruned):
        return float((inputs @ (pruned - weight).T).square().sum())

    assert int(keep.sum()) == round(density * weight.numel()) and not left[~keep].any()
    assert missed(left) < 0.95 * missed(weight * keep) and missed(left) < missed(weight * (weight.abs() >= cut))


def test_a_layer_that_reads_nothing_but_zeros_is_pruned_all_the_same():
    left, keep = compensated(randn(4, 6), torch.zeros(6, 6), 0.5)
    assert int(keep.sum()) == 12 and left.isfinite().all()


def test_rows_keep_as_many_each_and_the_matrix_exactly_what_is_asked_for():
    scores = randn(7, 10)
    keep = within_outputs(scores, 25)
    assert int(keep.sum()) == 25 and set(keep.sum(1).tolist()) == {3, 4}
    for row, kept in zip(scores, keep, strict=True):
        assert row[kept].min() > row[~kept].max()


# ---- what a matrix reads


def read_by_hand(model, state, calls):
    """name → [N, in] what each matrix multiplied at every real step of every sequence, from the formulas of the cells;
    of the embedding the ids."""
    p = {name: value.double() for name, value in state.items()}
    stack = {name.removeprefix("stack."): value for name, value in p.items() if name.startswith("stack.")}
    read = {name: [] for name in p if "weight" in name}
    for ids in calls:
        for b, length in enumerate(LENGTHS.tolist()):
            read["words.weight"].append(ids[:length, b])
            x = p["words.weight"][ids[:length, b]]
            for level in range(2):
                outputs = []
                for end in ("", "_reverse"):
                    cell = stand_in(type(model.stack)(x.shape[1], 5)).double()
                    own = {
                        f"{n}_l0": stack[f"{n}_l{level}{end}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                    }
                    given = x.flip(0) if end else x
                    y = step_loop(cell, own, given[:, None])[0][:, 0]
                    read[f"stack.weight_ih_l{level}{end}"].append(x)
                    read[f"stack.weight_hh_l{level}{end}"].append(torch.cat([y.new_zeros(1, 5), y[:-1]]))
                    outputs.append(y.flip(0) if end else y)
                x = torch.cat(outputs, 1)
            read["head.weight"].append(x)
    return {name: torch.cat(parts).detach() for name, parts in read.items()}


@pytest.mark.parametrize("cell", CELLS)
def test_every_time_step_of_every_sequence_counts_in_what_a_matrix_reads_and_padding_does_not(cell):
    model, study, finished = attached(cell, criterion="hessian", calibration=3)
    calls = batches(2)
    for ids in calls:
        model(ids), study.after_step()
    model.eval()(batches(1, 7)[0]), model.train()  # a look in evaluation is none
    seen = study.method.seen
    for name, read in read_by_hand(model, finished, calls).items():
        if name == "words.weight":  # the embedding itself does not know what is padding
            assert torch.equal(seen[name, "words"], torch.cat(calls).flatten().bincount(minlength=9).double())
            continue
        by_loop = torch.zeros(read.shape[1], read.shape[1], dtype=torch.float64)
        for x in read:
            by_loop += torch.outer(x, x)
        assert error(seen[name, "products"], by_loop) <= 1e-12, name


# ---- what goes


def test_wanda_compares_size_times_norm_within_each_output():
    model, study, finished = attached(criterion="wanda", calibration=2, density=0.4)
    calls = batches(2)
    for ids in calls:
        model(ids), study.after_step()
    read = read_by_hand(model, finished, calls)
    read["words.weight"] = one_hot(torch.cat(calls).flatten(), 9)
    for name, mask in study.masks().weights.items():
        weight = finished[name].t() if name == "words.weight" else finished[name]  # out × in
        mask = mask.t() if name == "words.weight" else mask
        assert abs(int(mask.sum()) - 0.4 * mask.numel()) <= 0.5
        for row, kept in zip(weight, mask, strict=True):
            scores = [abs(float(w)) * float(read[name][:, j].square().sum()) ** 0.5 for j, w in enumerate(row)]
            best = sorted(range(len(row)), key=lambda j: -scores[j])[: int(kept.sum())]
            assert kept.nonzero().flatten().tolist() == sorted(best)
        assert max(mask.sum(1)) - min(mask.sum(1)) <= 1


def test_magnitude_keeps_the_largest_of_a_type_and_looks_at_nothing():
    _, study, finished = attached(density=0.25)
    masks = study.masks().weights
    for part in ("weight_ih", "weight_hh", "head", "words"):
        names = [name for name in masks if part in name]
        sizes = torch.cat([finished[name].abs().flatten() for name in names])
        kept = torch.cat([masks[name].flatten() for name in names])
        assert int(kept.sum()) == round(0.25 * len(sizes)) and sizes[kept].min() > sizes[~kept].max()


def test_fisher_keeps_what_has_the_largest_squared_slopes_of_the_loss_through_time():
    model, study, finished = attached(nn.RNN, criterion="fisher", calibration=2, density=0.3)
    other, calls, squares = Net(nn.RNN), batches(2), {}
    other.load_state_dict(finished)
    for ids in calls:
        step(model, study, ids)
        for name, parameter in weight_matrices(other).items():
            slopes = torch.zeros_like(parameter)
            for place in torch.cartesian_prod(*map(torch.arange, parameter.shape)).tolist():
                losses = []
                for move in (1e-4, -1e-4):
                    with torch.no_grad():
                        parameter[tuple(place)] += move
                        losses.append(float(F.cross_entropy(other(ids), torch.arange(14) % 3)))
                        parameter[tuple(place)] -= move
                slopes[tuple(place)] = (losses[0] - losses[1]) / 2e-4
            squares[name] = squares.get(name, 0) + slopes.detach().square()
    saliency = torch.cat([(finished[name].square() * squares[name]).flatten() for name in squares])
    kept = torch.cat([study.masks().weights[name].flatten() for name in squares])
    assert int(kept.sum()) == round(0.3 * len(saliency)) and saliency[kept].min() > saliency[~kept].max()


def test_the_hessian_leaves_the_products_nearer_than_the_largest_weights_do():
    model, study, finished = attached(criterion="hessian", calibration=4, density=0.4)
    calls = batches(4)
    for ids in calls:
        model(ids), study.after_step()
    read, missed, by_size = read_by_hand(model, finished, calls), 0.0, 0.0
    for name, weight in study.weights.items():
        if name != "words.weight":
            dense, kept = finished[name], int(study.masks().weights[name].sum())
            cut = dense.abs().flatten().sort(descending=True).values[kept - 1]
            missed += float((read[name] @ (weight.theta.detach() - dense).T).square().sum())
            by_size += float((read[name] @ (dense * (dense.abs() < cut)).T).square().sum())
    assert missed < 0.8 * by_size


# ---- what becomes of the run


@pytest.mark.parametrize("criterion", CRITERIA)
def test_until_the_masks_are_cut_nothing_moves_and_then_zeros_survive_a_hundred_steps_with_momentum(criterion):
    model, study, finished = attached(criterion=criterion, calibration=3, density=0.2)
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.05), momentum=0.9)
    for number, ids in enumerate(batches(2)):
        step(model, study, ids, optimizer)
        if criterion != "magnitude":
            assert all(torch.equal(weight.theta, finished[name]) for name, weight in study.weights.items()), number
    step(model, study, batches(1)[0], optimizer)
    before = {name: mask.clone() for name, mask in study.masks().weights.items()}
    assert abs(study.method.density() / 0.2 - 1) <= 0.03
    for ids in batches(100):
        step(model, study, ids, optimizer)
    for name, weight in study.weights.items():
        assert torch.equal(study.masks().weights[name], before[name]) and not weight.theta[~weight.mask].any()
        assert not torch.equal(weight.theta, finished[name] * weight.mask)  # what is kept has learnt


@pytest.mark.parametrize("criterion", ["wanda", "fisher"])
def test_the_state_dict_of_the_very_model_will_do_as_reference_and_biases_stay_put_too(criterion):
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    study = sparsernn.attach(
        model, "one-shot", 100, 50, reference=model.state_dict(), criterion=criterion, calibration=4, density=0.5
    )
    optimizer = torch.optim.Adam(study.parameter_groups(lr=0.1))
    for i, ids in enumerate(batches(4)):
        step(model, study, ids, optimizer)
        for name, value in before.items():
            assert torch.equal(model.state_dict()[name], value) or i == 3 and "weight" in name
    for name, mask in study.masks().weights.items():
        assert torch.equal(model.state_dict()[name], before[name] * mask)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("cell", CELLS)
def test_the_small_model_is_the_masked_one(cell, criterion, tmp_path):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(9, 6), cell(6, 16, num_layers=2), nn.Linear(16, 3)

        def forward(self, ids):
            return self.head(self.stack(self.words(ids))[0])

    torch.manual_seed(1)
    model = Stack().double()
    study = sparsernn.attach(
        model, "one-shot", 6, 50, reference=model.state_dict(), criterion=criterion, calibration=4, density=0.3
    )
    optimizer = torch.optim.Adam(study.parameter_groups(lr=1e-2))
    for ids in batches(6):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten() % 3).backward()
        optimizer.step(), study.after_step(), optimizer.zero_grad()
    ids = batches(1, 30)[0]
    small, proof = sparsernn.compact(model.eval(), example=ids)
    assert error(small(ids), model(ids)) <= 1e-9 and proof.error <= 1e-9
    assert study.method.density() == pytest.approx(0.3, abs=0.01)


def test_one_shot_and_nothing_more_needs_no_optimiser_and_keeps_what_it_keeps():
    model, study, finished = attached(criterion="wanda", calibration=3, density=0.5, retrain=False, steps=3)
    with torch.no_grad():
        for ids in batches(3):
            model(ids), study.after_step()
    for name, parameter in model.named_parameters():
        mask = study.masks().weights.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter, finished[name] * mask)
    assert study.method.density() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_padding_stays_and_is_not_counted(criterion):
    model, study, finished = attached(criterion=criterion, calibration=2, density=0.25, padding_idx=0)
    for ids in batches(2):
        step(model, study, ids)
    row = study.weights["words.weight"]
    assert row.mask[0].all() and torch.equal(row.theta[0], finished["words.weight"][0])
    assert study.method.density() == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_words_that_are_looked_up_and_predicted_by_one_matrix_are_pruned_once(criterion):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.stack, self.head = nn.Embedding(9, 6), nn.GRU(6, 6), nn.Linear(6, 9)
            self.head.weight = self.words.weight

        def forward(self, ids):
            return self.head(self.stack(self.words(ids))[0])

    torch.manual_seed(0)
    model = Tied().double()
    study = sparsernn.attach(
        model, "one-shot", 2, 50, reference=model.state_dict(), criterion=criterion, calibration=2, density=0.3
    )
    for ids in batches(2):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        study.after_step()
    ids = batches(1, 30)[0]
    small, _ = sparsernn.compact(model.eval(), example=ids)
    assert study.method.density() == pytest.approx(0.3, rel=0.02) and error(small(ids), model(ids)) <= 1e-9


def test_what_it_cannot_do_is_refused_in_words_and_the_model_is_as_it_was():
    model = Net()
    before, good = {name: value.clone() for name, value in model.state_dict().items()}, attached()[2]
    for reference, options, said in (
        (None, {}, "starts from a finished run of 'dense': give attach reference="),
        (Net(nn.GRU).state_dict(), {}, "the finished run's model is another one"),
        (good, {"density": 1e-4}, "density is 0.0001; what this method can reach here is"),
        (good, {"density": 0.0}, "density is 0.0; it must be above 0"),
        (
            good,
            {"criterion": "wanda", "calibration": 9, "steps": 8},
            "pruning would begin at step 8 of .* 8: lower calib",
        ),
        (good, {"criterion": "obs"}, "unknown criterion 'obs'"),
    ):
        steps = options.pop("steps", 20)
        with pytest.raises(ValueError, match=said):
            sparsernn.attach(model, "one-shot", steps, 50, reference=reference, **options)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model, study, _ = attached(criterion="fisher", calibration=2)
    model(batches(1)[0])
    with pytest.raises(ValueError, match="has no gradient in study.after_step"):
        study.after_step()


@pytest.mark.parametrize("task", ["tiny-topic", "tiny-char"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_study_cuts_a_finished_dense_run_before_its_first_epoch(task, criterion):
    config = RunConfig(
        task, method="one-shot", profile="quick", criterion=criterion, density=0.3, retrain=False, calibration=50
    )
    (before,) = needed(config)
    run, dense = ensure(config), ensure(before)
    assert (run.record["epoch_selected"], run.record["epochs"], run.record["steps"]) == (0, 0, 0)
    assert run.record["compact_error"] <= 1e-9 and run.study.method.density() == pytest.approx(0.3, abs=0.01)
    assert run.metrics["valid"].tolist() == pytest.approx([run.record["valid"]], abs=1e-5)
    for name, weight in run.study.weights.items():
        if criterion != "hessian":
            assert torch.equal(weight.theta, dense.model.get_parameter(name) * weight.mask)
    assert torch.equal(run.model.head.bias, dense.model.head.bias)
    floor = 6 * run.record["weights_stored"] + 4 * sum(p.numel() for p in dense.model.parameters() if p.dim() == 1)
    assert run.record["size_bytes"] <= 1.3 * floor + 4000
    again = ensure(
        RunConfig(task, method="one-shot", profile="quick", criterion=criterion, density=0.3, calibration=50)
    )
    if task == "tiny-char":  # at this density the topics lose nothing by being cut
        assert again.record["valid"] < run.record["valid"] - 0.05
    assert again.record["epochs"] == config.plan.epochs and again.metrics["weights_kept"].nunique() == 1


@pytest.mark.parametrize("criterion", ["magnitude", "hessian"])
def test_a_run_killed_and_resumed_is_the_run_undisturbed(criterion, tmp_path, monkeypatch):
    config = RunConfig("tiny-char", method="one-shot", profile="quick", epochs=3, criterion=criterion, calibration=5)
    whole = ensure(config)
    monkeypatch.setenv("SPARSERNN_RUNS", str(tmp_path / "stopped"))

    def stop(line):
        if line.startswith("epoch 2/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(config, stop)
    again, state = ensure(config), whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert again.record | {"train_seconds": 0} == whole.record | {"train_seconds": 0}
