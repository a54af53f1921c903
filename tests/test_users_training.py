"""A training loop of one's own around a method: copies, files, casts, several passes a step, several processes.

What a method adds lives in the layers, a weight is drawn once a step, a scale once a forward of the whole model.
"""

import copy
import io
import os
import re

import pytest
import torch
from oracles import error
from test_users import CELLS, E, H, Reader, Tied, V, attach, compacted, model_of, silent, thin, words
from torch import distributed, multiprocessing, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import sparsernn

METHODS = ["sparse-vd-w", "sparse-vd-wgn"]


class Short(nn.Module):
    """Nothing but what a step's weights can be read off: tanh of one layer, and sums."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(V, E), nn.Linear(H, 3)
        self.stack = nn.RNN(E, H, batch_first=True)

    def forward(self, words):
        return self.head(self.stack(self.words(words))[0].mean(1))


@torch.no_grad()
def drawn(model):
    """The weights that this step computes with, as the answers of `Short`'s layers tell them: name → tensor."""
    read, carried, bias = torch.eye(E).double(), torch.eye(H).double(), model.stack.bias_ih_l0 + model.stack.bias_hh_l0
    of_input, _ = model.stack(read[:, None])
    of_state, _ = model.stack(torch.zeros(H, 1, E).double(), carried[None])
    return {
        "words.weight": model.words(torch.arange(V)[None])[0],
        "stack.weight_ih_l0": (of_input[:, 0].atanh() - bias).T,
        "stack.weight_hh_l0": (of_state[:, 0].atanh() - bias).T,
        "head.weight": (model.head(carried) - model.head.bias).T,
    }


def noise(model, study):
    """ε of every weight, one vector."""
    found = [(w - study.weights[n].theta) / study.weights[n].log_sigma.exp() for n, w in drawn(model).items()]
    return torch.cat([epsilon.detach().flatten() for epsilon in found])


def grads(study):
    """Gradients of everything that a method touches."""
    items = study.weights | study.groups
    return {name: (item.theta.grad.clone(), item.log_sigma.grad.clone()) for name, item in items.items()}


def same(one, other):
    return max(error(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)) <= 1e-12


def step_of(model, study, optimizer, step):
    x = words(6, 5, seed=step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), x[:, 0] % 3)
    (loss + study.penalty()).backward()
    optimizer.step()
    study.after_step()
    return float(loss.detach())


def adam(study, lr=1e-2):
    return torch.optim.Adam(study.parameter_groups(lr=lr))


# ---- how far a training came


def notes(model):
    """What the proof says of the training, beside sizes and times."""
    found = sparsernn.compact(model, words())[1].warnings
    return [note for note in found if "after_step" in note or "step " in note or "the training" in note]


@pytest.mark.parametrize("method, options, said", [
    ("gradual", {"density": 0.2, "schedule": "cubic", "prune_every": 1}, "step 4 of 20 the model is at a density of 0"),
    ("gradual", {"q": 0.1, "prune_every": 1}, r"step 4 of 20 there is still to come: pruned \(steps 1 to 10\)"),
    ("hard", {"density": 0.2}, "step 4 of 20 the model is at a density of 1, not at 0.2"),
    ("sparse-vd-w", {"density": 0.2}, r"step 4 of 20 the model is at a density of 0\.\d+, not at 0.2"),
    ("sparse-vd-w", {"kl_full": 8.0}, r"step 4 of 20 there is still to come: penalty full \(steps 8 to 20\)"),
    ("l0", {"fine_tune": 0.5}, r"step 4 of 20 there is still to come: fine-tuned \(steps 10 to 20\)"),
])  # fmt: skip
def test_a_training_that_stopped_early_is_told_how_far_it_came(method, options, said):
    model = model_of(Short)
    study = attach(model, method, steps=20, **options)
    optimizer = adam(study)
    for step in range(4):
        step_of(model, study, optimizer, step)
    assert re.search(said, "".join(notes(model)))


@pytest.mark.parametrize("method, options", [("hard", {"density": 0.2}), ("sparse-vd-w", {})])
def test_a_training_that_forgot_after_step_is_told_so(method, options):
    model = model_of(Short)
    study = attach(model, method, **options)
    optimizer = adam(study)
    study.after_step = lambda: None
    for step in range(4):
        step_of(model, study, optimizer, step)
    assert notes(model)[0].startswith("study.after_step() was never called while the model was trained")


@pytest.mark.parametrize("method, options, steps", [
    ("hard", {"density": 0.2, "prune_end": 0.1}, 4), ("sparse-vd-w", {}, 4), ("dense", {}, 4), ("heads", {"heads": 2}, 4),
    ("gradual", {"q": 0.1, "prune_every": 1}, 12), ("sparse-vd-w", {"kl_full": 8.0}, 0),
])  # fmt: skip
def test_a_training_that_has_nothing_left_to_do_is_told_nothing(method, options, steps):
    model = model_of(Short)
    study = attach(model, method, steps=20, **options)
    optimizer = adam(study)
    for step in range(steps):
        step_of(model, study, optimizer, step)
    assert not notes(model)


def test_a_model_made_anew_from_a_file_is_not_taken_for_one_that_was_trained():
    model, options = model_of(Short), {"q": 0.1, "prune_every": 1}
    study = attach(model, "gradual", **options)
    optimizer = adam(study)
    for step in range(10):
        step_of(model, study, optimizer, step)
    again = model_of(Short)
    attach(again, "gradual", **options)
    again.load_state_dict(model.state_dict())
    assert not notes(again)


# ---- a weight is drawn once a step


def test_accumulated_micro_batches_of_different_size_are_one_draw():
    model, batches = model_of(Short), (words(3, 5), words(5, 4, seed=1))
    plain, study = copy.deepcopy(model), attach(model)
    for x in batches:
        model(x).square().mean().backward()
    weights = {name: w.requires_grad_() for name, w in drawn(model).items()}
    sum(functional_call(plain, weights, x).square().mean() for x in batches).backward()
    for name, w in weights.items():
        item = study.weights[name]
        assert error(w, item.theta) > 1e-3 and error(item.theta.grad, w.grad) <= 1e-12
        assert error(item.log_sigma.grad, w.grad * (w - item.theta)) <= 1e-12


def test_a_weight_s_noise_is_standard_normal_and_new_in_every_step():
    model = model_of(Short)
    study, draws = attach(model), []
    for _ in range(40):
        model(words())
        draws.append(noise(model, study))
        assert error(noise(model, study), draws[-1]) <= 1e-9
        study.after_step()
    draws = torch.stack(draws)  # 40 steps of 256 numbers: standard errors are 0.010 and 0.007
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.04
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.4


def test_a_step_that_is_not_announced_is_seen_by_the_weights_it_moved():
    model = model_of(Short)
    study = attach(model)
    optimizer, before = adam(study), noise(model, study)
    model(words()).sum().backward()
    optimizer.step()
    assert error(noise(model, study), before) > 0.5


def test_a_look_in_evaluation_in_the_middle_of_a_step_changes_nothing():
    found = []
    for looks in (False, True):
        model = model_of(Short)
        study = attach(model)
        torch.manual_seed(1)
        model(words(seed=2)).square().sum().backward()
        if looks:
            model.eval()(words(seed=1))
            model.train()
        model(words(4, 3, seed=3)).square().sum().backward()
        found.append(grads(study))
    assert same(*found)


@pytest.mark.parametrize("look", [torch.no_grad, torch.inference_mode])
def test_a_look_without_gradients_sees_the_weights_of_the_step_and_leaves_them_their_gradients(look):
    model = model_of(Short)
    study = attach(model)
    with look():
        first = model(words(seed=1))
    assert error(model(words(seed=1)), first) <= 1e-12
    model(words(seed=2)).square().sum().backward()
    assert all(item.log_sigma.grad is not None and item.log_sigma.grad.any() for item in study.weights.values())


@pytest.mark.parametrize("method", ["sparse-vd-w", "sparse-vd-wn", "binary-dropout"])
def test_two_passes_in_a_step_share_weights_and_not_scales(method):
    scales = method != "sparse-vd-w"
    options = {"sparse-vd-wn": {"log_sigma": -60.0, "log_sigma_groups": -1.0}, "binary-dropout": {"dropout": 0.5}}
    model, x = model_of(Short), words(1, 5).expand(4, 5)
    study = attach(model, method, **options.get(method, {}))
    first, second = model(x), model(x)
    assert (error(first, second) > 1e-3) == scales == (error(first, first[:1].expand(4, 3)) > 1e-3)
    assert scales or error(first, second) <= 1e-12
    study.after_step()
    assert error(model(x), second) > 1e-3
    assert error(model.eval()(x), model(x)) == 0


class Decoder(nn.Module):
    """A stack over a whole sequence, and the same stack a step at a time, in one forward."""

    def __init__(self, cell, batch_first):
        super().__init__()
        self.words, self.stack = nn.Embedding(V, E), cell(E, H, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, ids):
        time = 0 if ids.dim() == 1 or not self.batch_first else 1
        whole, _ = self.stack(self.words(ids))
        steps, state = [], None
        for symbol in ids.split(1, time):
            y, state = self.stack(self.words(symbol), state)
            steps.append(y)
        return whole, torch.cat(steps, time)


@pytest.mark.parametrize(("method", "options"), [
    ("sparse-vd-w", {"log_sigma": -1.0}),
    ("sparse-vd-wgn", {"log_sigma": -1.0, "log_sigma_groups": -1.0}),
    ("binary-dropout", {"dropout": 0.5}),
])  # fmt: skip
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_decoder_s_loop_computes_what_one_call_does(cell, batch_first, method, options):
    model, x = model_of(Decoder, cell=cell, batch_first=batch_first), words(4, 6)
    study = attach(model, method, example=x, **options)
    for mode in (True, False):
        whole, loop = model.train(mode)(x)
        assert error(loop, whole) <= 1e-12
    whole, loop = model.train()(x)
    (loop.square().sum() + study.penalty()).backward()
    assert all(p.grad.isfinite().all() for p in study.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_one_sequence_without_a_batch_decodes_a_step_at_a_time(cell):
    model, x = model_of(Decoder, cell=cell, batch_first=True), words(1, 6)[0]
    attach(model, log_sigma=-1.0, example=x)
    whole, loop = model(x)
    assert whole.shape == (6, H) and error(loop, whole) <= 1e-12 and error(model(x)[1], whole) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_activations_computed_again_in_the_backward_pass_are_those_of_the_forward_pass(method):
    class Saving(Reader):
        saves = True

        def encode(self, words):
            inner = super().encode
            return checkpoint(inner, words, use_reentrant=False) if self.saves else inner(words)

    found = []
    for saves in (False, True):
        model = model_of(Saving)
        model.saves, study = saves, attach(model, method)
        torch.manual_seed(1)
        model(words()).square().sum().backward()
        found.append(grads(study))
    assert same(*found)


@pytest.mark.parametrize("every", [1, 4])
def test_the_penalty_s_gradient_is_held_for_as_many_steps_as_asked_for(every, monkeypatch):
    model, asked = model_of(), []
    study = attach(model, steps=100, kl_every=every)
    optimizer, cost = adam(study), study.method.cost
    monkeypatch.setattr(study.method, "cost", lambda item, weight: asked.append(study.step) or cost(item, weight))
    for step in range(8):
        step_of(model, study, optimizer, step)
    assert sorted(set(asked)) == list(range(0, 8, every))


# ---- a model trained through something else than forward


class Scorer(Reader):
    def loss(self, words, target):
        return F.cross_entropy(self.head(self.encode(words)), target)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_trained_through_a_method_of_its_own(method):
    model = model_of(Scorer)
    study = attach(model, method)
    optimizer = adam(study)
    for step in range(3):
        x = words(3 + step, 5, seed=step)
        optimizer.zero_grad()
        (model.loss(x, x[:, 0] % 3) + study.penalty()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        study.after_step()
    thin(study)
    compacted(model)


def test_outside_of_the_model_s_forward_weights_hold_for_the_step_and_scales_for_the_call():
    model, x = model_of(Scorer), words()
    attach(model, "sparse-vd-w", log_sigma=-1.0)
    assert error(model.encode(x), model.encode(x)) <= 1e-12
    model = model_of(Scorer)
    attach(model, "sparse-vd-wn", log_sigma=-60.0, log_sigma_groups=-1.0)
    assert error(model.encode(x), model.encode(x)) > 1e-3 and model.encode(words(7, 2)).shape == (7, H)


# ---- a word's variable is drawn once a sequence, however the model turns its input


class Turning(nn.Module):
    """Ids [B, T], read by a layer that wants time first."""

    def __init__(self):
        super().__init__()
        self.words, self.mixed, self.stack = nn.Embedding(V, E), nn.Linear(E, E), nn.LSTM(E, H)
        self.head = nn.Linear(H, 3)

    def forward(self, ids):
        return self.head(self.stack(self.mixed(self.words(ids)).transpose(0, 1))[0][-1])


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize(("kind", "dim"), [(Turning, 0), (Reader, 0)])
def test_a_word_has_one_variable_in_a_sequence_where_the_model_turns_its_input(kind, dim, batch):
    model, x = model_of(kind), words(batch, 5)
    attach(model, "sparse-vd-w-voc", example=x, log_sigma=-60.0, log_sigma_groups=-1.0)
    assert model.words.carried.batch_dim == dim
    same = torch.full((2, 6), 7)
    rows = model.words(same)
    assert error(rows, rows[:, :1].expand_as(rows)) == 0 and error(rows[0], rows[1]) > 1e-2


def test_layers_of_both_orders_need_no_word_where_there_is_an_example():
    class Both(Turning):
        def __init__(self):
            super().__init__()
            self.lower = nn.GRU(E, E, batch_first=True)

        def forward(self, ids):
            return self.head(self.stack(self.lower(self.words(ids))[0].transpose(0, 1))[0][-1])

    with pytest.raises(ValueError, match="say with batch_dim="):
        attach(model_of(Both), "sparse-vd-w-voc")
    model = model_of(Both)
    attach(model, "sparse-vd-w-voc", example=words())
    assert model.words.carried.batch_dim == 0


def test_without_an_example_the_first_step_asks_along_which_dimension_sequences_run():
    model = model_of(Turning)
    study = attach(model, "sparse-vd-w-voc")
    with pytest.raises(ValueError, match=r"words: its ids have the shape \(6, 5\), .* batch_dim="):
        step_of(model, study, adam(study), 0)
    model = model_of(Turning)
    study = attach(model, "sparse-vd-w-voc", batch_dim=0)
    step_of(model, study, adam(study), 0)


# ---- evaluation


@pytest.mark.parametrize("method", ["dense", "sparse-vd-w"])
def test_gradients_in_evaluation_reach_every_weight(method):  # pytorch #5878, meta-pytorch/captum #564
    model, x = model_of().eval(), words()
    plain, study = copy.deepcopy(model), attach(model, method)
    assert not (model.training or model.stack.training)
    kept = {} if method == "dense" else thin(study).masks().weights
    with torch.no_grad():
        for name, mask in kept.items():
            plain.get_parameter(name).mul_(mask)
    for each in (model, plain):
        each(x).square().sum().backward()
    for name, parameter in plain.named_parameters():
        mask = kept.get(name, torch.ones(parameter.shape, dtype=torch.bool))
        assert error(model.get_parameter(name).grad[mask], parameter.grad[mask]) <= 1e-12
        assert parameter.grad.any() and 0 < mask.sum()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_in_evaluation_every_change_is_seen_at_once(mode):
    model, x = model_of().eval(), words()
    study = thin(attach(model, "sparse-vd-wn"))
    with mode():
        before = model(x)
        model.head.bias.data.add_(1)
        assert error(model(x), before + 1) <= 1e-12
        product = model(x) - model.head.bias
        model.head.weight.data.mul_(2)
        assert error(model(x), 2 * product + model.head.bias) <= 1e-12
        study.groups["stack.hidden_l0"].theta.data.mul_(0.5)
        now = model(x)
        study.weights["lower.weight_hh_l0"].log_sigma.data.fill_(5.0)
        assert error(model(x), now) > 1e-9
        study.weights["head.weight"].log_sigma.data.fill_(5.0)
        assert error(model(x), model.head.bias.expand(3, 3)) == 0


# ---- copies, files, casts                                  pytorch #37322, KindXiaoming/pykan #285


@pytest.mark.parametrize("method", ["dense", *METHODS])
def test_the_best_model_kept_by_deepcopy_is_a_model_of_its_own(method):
    model, x = model_of(), words()
    study = attach(model, method)
    if method != "dense":
        thin(study)
    best = copy.deepcopy(model).eval()
    kept, theirs = best(x), sparsernn.Study.of(best)
    assert theirs is not None and theirs is not study is sparsernn.Study.of(model)
    optimizer = adam(study, 0.1)
    for step in range(3):
        step_of(model, study, optimizer, step)
    assert torch.equal(best(x), kept) and error(model.eval()(x), kept) > 1e-3
    compacted(copy.deepcopy(best))
    optimizer = adam(theirs, 0.1)
    step_of(best.train(), theirs, optimizer, 7)
    assert error(best.eval()(x), kept) > 1e-4
    best.head.weight.data.zero_()
    assert error(best(x), best.head.bias.expand(3, 3)) == 0 and model.head.weight.any()
    theirs.detach()
    assert sparsernn.Study.of(best) is None and sparsernn.Study.of(model) is study


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_between_forward_and_backward_disturbs_neither(method):
    found = []
    for copies in (False, True):
        model = model_of()
        study = attach(model, method)
        torch.manual_seed(1)
        loss = model(words()).square().sum()
        twin = copy.deepcopy(model) if copies else None
        loss.backward()
        found.append(grads(study))
    assert same(*found)
    twin(words()).sum().backward()
    assert all(p.grad.isfinite().all() for p in twin.parameters())
    compacted(twin)


@pytest.mark.parametrize("ema", [False, True])
def test_weights_averaged_over_steps_are_evaluated_and_made_small(ema):
    model = model_of()
    study = attach(model, "sparse-vd-wn", lr_log_sigma=0.1)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75) if ema else None)
    optimizer, seen = adam(study, 0.05), []
    for step in range(3):
        step_of(model, study, optimizer, step)
        averaged.update_parameters(model)
        seen.append({n: (i.theta.detach().clone(), i.log_sigma.detach().clone()) for n, i in study.weights.items()})
    shares, mine = (0.5625, 0.1875, 0.25) if ema else 3 * (1 / 3,), sparsernn.Study.of(averaged.module)
    expected = {n: [sum(s * one[n][k] for s, one in zip(shares, seen, strict=True)) for k in (0, 1)] for n in seen[0]}
    assert same({n: (item.theta, item.log_sigma) for n, item in mine.weights.items()}, expected)
    thin(mine)
    small, x = compacted(averaged.module), words()
    averaged.eval()
    assert error(averaged(x), small(x)) <= 1e-12 and error(averaged(x), model.eval()(x)) > 1e-4


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.post = inner, nn.Linear(3, 3).double()

    def forward(self, words):
        return self.post(self.inner(words))


@pytest.mark.parametrize(("wrap", "name"), [
    (nn.DataParallel, "module"), (AveragedModel, "module"), (Around, "inner"),
])  # fmt: skip
def test_a_wrapper_around_the_model_is_told_apart_from_it(wrap, name):
    model = model_of()
    thin(attach(model, example=words()))
    wrapped = wrap(model)
    with pytest.raises(ValueError, match=f"a method is on model.{name}, .*give compact model.{name}"):
        sparsernn.compact(wrapped, words())
    with pytest.raises(ValueError, match=f"a method is on model.{name}, .*give attach model.{name}"):
        attach(wrapped, "gradual")
    compacted(wrapped.get_submodule(name))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own look where its graph is broken
@pytest.mark.parametrize("first", ["attach", "compile"])
def test_a_compiled_model_is_attached_to_trained_and_made_small_as_the_model_it_was_made_of(first):
    model = model_of(Short)
    if first == "attach":
        attach(model, example=words())
    compiled = torch.compile(model, backend="eager")
    study = sparsernn.Study.of(compiled) if first == "attach" else attach(compiled, example=words())
    assert study is sparsernn.Study.of(model) and study.model is model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step_of(compiled, study, adam(study), 0)
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    thin(study)
    small, proof = sparsernn.compact(compiled.eval(), words())
    assert (
        type(small) is Short and proof.error <= 1e-12 and error(small(words(4, 9, 3)), model(words(4, 9, 3))) <= 1e-12
    )
    with pytest.raises(ValueError, match="a method on it already"):
        attach(compiled)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("method, options", [("sparse-vd-wn", {}), ("gradual", {"q": 0.01, "prune_every": 1})])
def test_a_compiled_model_trains_without_being_compiled_anew_at_every_step(method, options):
    torch._dynamo.reset()
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    model = model_of(Short)
    study = attach(model, method, example=words(), **options)
    compiled, optimizer = torch.compile(model, backend=backend), adam(study)
    for step in range(2):  # the first finds out more
        step_of(compiled, study, optimizer, step)
    so_far = len(made)
    for step in range(2, 14):  # dynamo gives up after eight
        step_of(compiled, study, optimizer, step)
    assert len(made) == so_far


@pytest.mark.parametrize("trace", [
    pytest.param(lambda model, x: torch.jit.trace(model, x), marks=pytest.mark.filterwarnings("ignore")),
    lambda model, x: torch.export.export(model, (x,)),
], ids=["jit.trace", "export"])  # fmt: skip
def test_a_trace_of_a_model_with_a_method_is_told_what_can_be_traced(trace):
    model, x = model_of().eval(), words()
    study = attach(model, "sparse-vd-wgn", example=x)
    with pytest.raises(
        ValueError, match=r"with a method on it cannot be traced: trace what sparsernn.compact\(model, example=x\)"
    ):
        trace(model, x)
    thin(study)
    small, _ = sparsernn.compact(model, x)
    assert trace(small, x) is not None


def test_a_warning_after_a_step_points_at_the_line_of_the_training():
    model = model_of()
    study = attach(model, "sparse-vd-wn", steps=1, density=0.2, example=words())
    with torch.no_grad():
        for group in study.groups.values():
            group.log_sigma.fill_(5.0)
    with pytest.warns(UserWarning) as said:
        study.after_step()
    assert {"would keep none" in str(one.message) or "the training ended" in str(one.message) for one in said} == {True}
    assert len(said) == 2 and {one.filename for one in said} == {__file__}


def test_a_part_of_a_model_with_a_method_is_told_apart_from_it():
    whole = Around(model_of())
    attach(whole, example=words())
    with pytest.raises(ValueError, match="words belongs to a larger model .*give compact that one"):
        sparsernn.compact(whole.inner, words())
    with pytest.raises(ValueError, match="words belongs to a larger model .*give attach that one"):
        attach(whole.inner, "gradual")


def test_two_models_that_share_an_embedding_leave_it_out_in_both():
    one, other = model_of(), model_of()
    other.words = one.words
    study = attach(one)
    with pytest.raises(
        ValueError, match=r"where another model only shares it, give skip=\['words'\] to attach for both"
    ):
        attach(other)
    study.detach()
    for model in (one, other):
        thin(attach(model, skip=["words"]))
        compacted(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_a_method_is_saved_whole_and_goes_on(method):
    model, x, file = model_of(), words(), io.BytesIO()
    study = thin(attach(model, method))
    model(x).sum().backward()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    mine = sparsernn.Study.of(loaded)
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert all(torch.equal(mask, study.masks().weights[name]) for name, mask in mine.masks().weights.items())
    step_of(loaded.train(), mine, adam(mine), 1)
    compacted(loaded)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_dict_carries_what_a_method_learnt(method):
    model, fresh, x = model_of(), model_of(), words()
    study = thin(attach(model, method))
    other = attach(fresh, method)
    assert error(fresh.eval()(x), model.eval()(x)) > 1e-3
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x)) and other.penalty().item() == study.penalty().item()
    compacted(fresh)


@pytest.mark.parametrize("at", [3, 6])
@pytest.mark.parametrize("method", ["dense", "sparse-vd-w", "sparse-vd-wgn"])
def test_a_killed_training_resumes_as_if_nothing_had_happened(method, at):
    options = {} if method == "dense" else {"fine_tune": 0.5, "kl_start": 1.0, "kl_full": 5.0, "lr_log_sigma": 0.1}

    def begun():
        model = model_of()
        study = attach(model, method, steps=8, **options)
        return model, study, adam(study)

    model, study, optimizer = begun()
    file, losses = io.BytesIO(), []
    for step in range(8):
        if step == at:
            state = [part.state_dict() for part in (model, optimizer, study)]
            torch.save([*state, torch.get_rng_state()], file)
        losses.append(step_of(model, study, optimizer, step))
    again, file = begun(), io.BytesIO(file.getvalue())
    *state, generator = torch.load(file, weights_only=True)
    for part, kept in zip((again[0], again[2], again[1]), state, strict=True):
        part.load_state_dict(kept)
    torch.set_rng_state(generator)
    resumed = [step_of(again[0], again[1], again[2], step) for step in range(at, 8)]
    assert resumed == losses[at:]
    assert all(torch.equal(tensor, again[0].state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_cast_while_a_method_is_on_trains_in_its_new_type(method, dtype):
    model, x = model_of().float(), words()
    study = attach(model, method)
    model(x)  # what was drawn is of the old type
    model.to(dtype)
    assert all(p.dtype == dtype for p in (*model.parameters(), *study.parameters()))
    assert all(item.theta is model.get_parameter(name) for name, item in study.weights.items())
    optimizer = adam(study)
    (model(x).square().sum() + study.penalty()).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    study.after_step()
    assert model(x).dtype == dtype and torch.equal(model.eval()(x), model(x))
    if dtype == torch.float64:
        thin(study)
        compacted(model)


def test_taken_off_the_model_is_as_it_was_with_its_weights_as_they_are_now():
    model, x = model_of(), words()
    names, study = list(model.state_dict()), attach(model, "sparse-vd-wgn")
    optimizer = adam(study)
    for step in range(2):
        step_of(model, study, optimizer, step)
    now = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    study.detach()
    plain = model_of()
    plain.load_state_dict({name: now[name] for name in names})
    assert list(model.state_dict()) == names and type(model.stack) is nn.LSTM
    assert error(model(x), plain(x)) == 0 and sparsernn.Study.of(model) is None
    attach(model)  # and another goes on


# ---- optimisers, schedules, mixed precision, processes


def test_the_groups_for_an_optimiser_hold_every_trainable_parameter_once():
    model = model_of(Tied, shared=True)
    model.lower.requires_grad_(False)
    study = attach(model, "sparse-vd-wgn", example=words())
    given = [p for group in study.parameter_groups(lr=0.125) for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, given)) == sorted(map(id, trainable)) and {*study.parameters()} <= {*trainable}
    own = {*trainable} - {*study.parameters()}
    assert all(group["lr"] == 0.125 for group in study.parameter_groups(lr=0.125) if own & {*group["params"]})


def test_two_optimisers_one_for_the_model_and_one_for_the_method():
    model = model_of()
    study = attach(model, "sparse-vd-wgn")
    theirs, own = list(study.parameters()), {*model.parameters()} - {*study.parameters()}
    pair = torch.optim.SGD(list(own), 0.1), torch.optim.Adam(theirs, 1e-2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(2):
        loss = model(words(seed=step)).square().sum() + study.penalty()
        model.zero_grad()
        loss.backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.5).isfinite()
        for optimizer in pair:
            optimizer.step()
        study.after_step()
    assert all((parameter != before[name]).any() for name, parameter in model.named_parameters())


@pytest.mark.parametrize("method", ["dense", *METHODS])
def test_mixed_precision_answers_and_learns_as_it_does_without_a_method(method):
    model, x = model_of().float(), words()
    plain = copy.deepcopy(model)
    study = attach(model, method, **silent(method))
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = model(x), plain(x)
        assert mine.dtype == theirs.dtype and error(mine.float(), theirs.float()) < 0.02
        (F.cross_entropy(mine, x[:, 0] % 3) + study.penalty()).backward()
        F.cross_entropy(theirs, x[:, 0] % 3).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    if method == "dense":
        found = dict(model.named_parameters())
        assert all(error(found[name].grad, parameter.grad) < 0.02 for name, parameter in plain.named_parameters())
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), model(x))
    assert model(x).dtype == torch.float32


def one_of_two(rank, folder):
    """What each process of the next test does: its own data and noise, one model."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for fine_tune in (0.0, 0.5):
        model = model_of()
        options = {"log_sigma": -2.0, "lr_log_sigma": 0.2, "kl_weight": 10.0, "fine_tune": fine_tune}
        study = attach(model, "sparse-vd-wgn", steps=20, **options)
        both = DistributedDataParallel(model, find_unused_parameters=fine_tune > 0)  # there log σ comes to rest
        torch.manual_seed(100 + rank)
        optimizer = adam(study)
        for step in range(20):
            step_of(both, study, optimizer, 2 * step + rank)
        masks = study.masks()
        kept = {"model": model.state_dict(), "masks": masks.weights, "groups": masks.groups}
        torch.save(kept, f"{folder}/{fine_tune}-{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_end_with_one_model_and_the_same_masks(tmp_path):
    # slow: two processes start and import torch, some ten seconds
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for fine_tune in (0.0, 0.5):
        one, other = (torch.load(tmp_path / f"{fine_tune}-{rank}.pt") for rank in (0, 1))
        for part, tensors in one.items():
            assert tensors and all(torch.equal(tensor, other[part][name]) for name, tensor in tensors.items())
        weights = torch.cat([mask.flatten() for mask in one["masks"].values()])
        assert 0 < weights.sum() < len(weights)


class Classifier(nn.Module):
    """From a tutorial: the last state of an LSTM over words says which class a text is of."""

    def __init__(self, vocabulary=V, embedding=16, hidden=24, classes=2):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocabulary, embedding, padding_idx=0), nn.Dropout(0.1)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, text):
        output, (hidden, cell) = self.lstm(self.dropout(self.embedding(text)))
        return self.fc(self.dropout(hidden[-1]))


def test_the_story_of_the_readme_from_a_tutorial_s_classifier_to_a_small_one():
    torch.manual_seed(0)
    model, steps, generator = Classifier(), 400, torch.Generator().manual_seed(1)
    options = {"kl_weight": 0.2, "kl_full": 100.0, "lr_log_sigma": 0.05, "fine_tune": 0.3}
    study = sparsernn.attach(model, "sparse-vd-wgn", steps=steps, n_examples=400, example=words(2, 8), **options)
    assert study.left == {}
    optimizer = torch.optim.AdamW(study.parameter_groups(lr=1e-2), weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps)
    held_out = torch.randint(1, V, (300, 8), generator=generator)
    best, best_accuracy = None, 0.0
    for step in range(steps):
        text = torch.randint(1, V, (32, 8), generator=generator)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(text), (text == 7).any(1).long()) + study.penalty()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        study.after_step()
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                accuracy = float((model(held_out).argmax(1) == (held_out == 7).any(1)).float().mean())
            model.train()
            if accuracy >= best_accuracy:
                best, best_accuracy = copy.deepcopy(model), accuracy
    small, proof = sparsernn.compact(best.eval(), example=held_out[:50])
    new = torch.randint(V, (200, 11), generator=generator)
    assert best_accuracy > 0.9 and proof.weights_after < 0.8 * proof.weights_before
    assert proof.error <= 1e-5 and error(small(new), best(new)) <= 1e-5


@pytest.mark.parametrize("method", ["dense", "sparse-vd-w"])
def test_nothing_goes_on_watching_after_a_forward(method):
    model = model_of()
    attach(model, method)
    for _ in range(2):
        model(words())
        assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_in_evaluation_a_decoder_s_loop_asks_once_a_forward_what_is_kept(monkeypatch):
    model, x = model_of(Decoder, cell=nn.GRU, batch_first=True), words(4, 6)
    study, asked = thin(attach(model, example=x)), []
    score = study.method.score
    monkeypatch.setattr(study.method, "score", lambda item: asked.append(item.name) or score(item))
    for _ in range(2):
        model.eval()(x)
    assert sorted(asked) == sorted(2 * [*study.weights])


@pytest.mark.parametrize("cell", [nn.GRU, nn.RNN])
def test_what_a_layer_returns_may_be_changed_in_place_as_torch_s_own(cell):
    """`y *= mask` behind a GRU: torch's own allows it."""

    class Masked(Reader):
        def encode(self, words):
            y, _ = self.stack(self.lower(self.words(words))[0])
            y *= (words > 3).unsqueeze(-1)
            return F.relu_(y).mean(1)

    torch.manual_seed(0)
    theirs = Masked(cell)
    ours = copy.deepcopy(theirs)
    sparsernn.attach(ours, "gradual", 30, 100, density=0.5, schedule="cubic", prune_every=2)
    for model in (ours, theirs):
        model(words()).sum().backward()
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-6)


class Stopped(Reader):
    """Somebody presses the notebook's stop button in the middle of a forward."""

    stop = False

    def encode(self, words):
        found = super().encode(words)
        if self.stop:
            raise KeyboardInterrupt
        return found


def stopped(model, x):
    model.stop = True
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model.stop = False


def test_a_training_goes_on_after_the_stop_button():
    model, x = model_of(Stopped), words()
    study = attach(model, "sparse-vd-wgn", steps=100, example=x)
    optimizer = adam(study)
    stopped(model.eval(), x)
    step_of(model.train(), study, optimizer, 0)
    assert error(model.eval()(x), copy.deepcopy(model)(x)) == 0  # sees the weights as they are now
    stopped(model.train(), x)
    assert error(model(x), model(x)) > 0  # each forward draws scales anew
    stopped(model, x)
    model.eval()
    with torch.no_grad():
        one = model(x)
        model.head.weight.add_(1)
        assert error(model(x), one) > 0


def test_nothing_goes_on_watching_after_the_stop_button():
    model, x = model_of(Stopped), words()
    study = attach(model)
    stopped(model, x)
    with torch.device("cpu"):
        model(x)
        assert len(torch.overrides._get_current_function_mode_stack()) == 1
    stopped(model, x)
    study.penalty()
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    step_of(model, study, adam(study), 0)
