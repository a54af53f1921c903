"""The reader with bidirectional attention flow: what it computes, what padding must not change, and who reads its neurons."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import questions
import torch
from oracles import error, random_masks, random_means, randomise, step_loop

import sparsernn
from sparsernn import sparsify
from sparsernn.nets.bidaf import BiDAF
from sparsernn.nets.compact import compact
from sparsernn.nets.file import load, save
from sparsernn.nets.masked import masked
from sparsernn.study.config import RunConfig
from sparsernn.study.presets import PRESETS
from sparsernn.study.runs import ensure

V, LETTERS, LENGTHS = 11, 9, torch.tensor([[7, 4], [3, 2], [1, 1], [5, 4]])


def reader(hidden=3, seed=0):
    return randomise(BiDAF(V, LETTERS, word_size=4, letter_size=2, filters=3, hidden=hidden), seed).eval()


def given(lengths=LENGTHS, steps=None, letters=6, seed=0):
    """Inputs with anything at all in the padding of words, and no letters after the last one of a word."""
    generator, (long, asked) = torch.Generator().manual_seed(seed), steps or lengths.amax(0).tolist()
    found = []
    for count in (long, asked):
        words = torch.randint(V, (count, len(lengths)), generator=generator)
        spelt = torch.randint(1, LETTERS, (count, len(lengths), letters), generator=generator)
        ends = torch.randint(letters + 1, (count, len(lengths), 1), generator=generator)
        found += [words, spelt.masked_fill(torch.arange(letters) >= ends, 0)]
    return tuple(found)


def one(inputs, lengths, number):
    """A question alone, without its padding."""
    t, j = lengths[number].tolist()
    words, letters, question, asked = (x[:, number : number + 1] for x in inputs)
    return words[:t], letters[:t], question[:j], asked[:j]


# ---- what it computes


def by_hand(model, words, letters, question, question_letters):
    """The paper's formulas (1611.01603, section 2), a question alone, one word and one pair of words at a time → [T, 2]."""
    p = {name: value.detach() for name, value in model.named_parameters()}

    def stack(name, x):
        layer = model.get_submodule(name)
        own = {n.removeprefix(f"{name}."): value for n, value in p.items() if n.startswith(f"{name}.")}
        return step_loop(layer, own, x[:, None])[0][:, 0]

    def letter_vector(ids):
        ids = [int(i) for i in ids if i > 0]
        x = [p["letters.embedding.weight"][i] for i in ids]
        blank, answers = torch.zeros(2, dtype=torch.float64), []
        for place in range(len(x)):
            seen = [x[i] if 0 <= i < len(x) else blank for i in range(place - 2, place + 3)]
            window = torch.stack(seen, 1)  # [size, 5]
            answers.append((p["letters.filters.weight"] * window).sum((1, 2)) + p["letters.filters.bias"])
        return torch.stack(answers).relu().amax(0) if answers else torch.zeros(3, dtype=torch.float64)

    def read(ids, spelt):
        x = torch.stack(
            [torch.cat([p["embedding.weight"][i], letter_vector(row)]) for i, row in zip(ids, spelt, strict=True)]
        )
        for number in (0, 1):
            w, b, wt, bt = (
                p[f"highway.{number}.{part}"] for part in ("change.weight", "change.bias", "gate.weight", "gate.bias")
            )
            t = torch.sigmoid(x @ wt.T + bt)
            x = t * (x @ w.T + b).relu() + (1 - t) * x
        return stack("contextual", x)

    h, u = read(words[:, 0], letters[:, 0]), read(question[:, 0], question_letters[:, 0])
    w = torch.cat([p["of_context.weight"][0], p["of_question.weight"][0], p["of_both.weight"][0]])
    s = torch.stack([torch.stack([w @ torch.cat([a, b, a * b]) for b in u]) for a in h])
    looked, marked = s.softmax(1) @ u, s.amax(1).softmax(0) @ h
    g = torch.cat([h, looked, h * looked, h * marked], 1)
    m = stack("modelling", g)
    start = torch.cat([g, m], 1) @ p["start.weight"][0] + p["start.bias"]
    begun = (start.softmax(0) @ m).expand_as(m)
    e = stack("output", torch.cat([g, m, begun, m * begun], 1))
    return torch.stack([start, torch.cat([g, e], 1) @ p["end.weight"][0] + p["end.bias"]], 1)


def test_it_computes_what_the_paper_s_formulas_say():
    model, inputs = reader(), given()
    logits, state = model(*inputs, lengths=LENGTHS)
    assert state is None and logits.shape == (7, 4, 2)
    for number, (t, _) in enumerate(LENGTHS.tolist()):
        assert error(logits[:t, number], by_hand(model, *one(inputs, LENGTHS, number))) <= 1e-12
        assert (logits[t:, number] == -torch.inf).all()


def test_padding_neighbours_and_the_batch_change_no_answer():
    model, inputs = reader(), given()
    logits, _ = model(*inputs, lengths=LENGTHS)
    for number, (t, _) in enumerate(LENGTHS.tolist()):
        alone, _ = model(*one(inputs, LENGTHS, number))
        assert error(logits[:t, number], alone[:, 0]) <= 1e-12
    longer, padded = given(steps=(12, 9), letters=10, seed=1), []
    for old, new in zip(inputs, longer, strict=True):
        new = new.clone()
        new[: len(old), :, ...] = 0
        new[(slice(len(old)), slice(None), *([slice(old.shape[2])] if old.dim() == 3 else []))] = old
        padded.append(new)
    more, _ = model(*padded, lengths=LENGTHS)
    assert error(more[:7].exp(), logits.exp()) <= 1e-12 and (more[7:] == -torch.inf).all()


def test_padding_gets_no_gradient_and_dropout_is_for_training_alone():
    model, inputs = reader().requires_grad_(True), given(torch.tensor([[3, 2]]), steps=(5, 4))
    inputs[0][:3], inputs[2][:2] = 1, 2
    inputs[0][3:], inputs[2][2:] = 5, 6
    lengths = torch.tensor([[3, 2]])
    model(*inputs, lengths=lengths)[0][:3].sum().backward()
    moved = model.embedding.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [1, 2]
    once, again = (model(*inputs, lengths=lengths)[0] for _ in range(2))
    assert torch.equal(once, again)
    model.train()
    assert not torch.equal(model(*inputs, lengths=lengths)[0], once)


@pytest.mark.parametrize("lengths", [torch.tensor([[3, 0]]), torch.tensor([3])])
def test_lengths_it_cannot_use_are_refused_in_words(lengths):
    with pytest.raises(
        ValueError, match=r"lengths has shape .* expected \(1, 2\): the words of each paragraph and of its"
    ):
        reader()(*given(torch.tensor([[3, 2]])), lengths=lengths)


# ---- who reads whom


def test_groups_of_neurons_have_the_published_sizes():
    """1709.05027's code gives 4800, 3201 and 6401 weights a group. Of the second modelling layer it leaves out the columns
    that read the neuron where the answer begins (2 × 400), which are nothing without the neuron: 4001 with them."""
    with torch.device("meta"):
        model = BiDAF(1000)
    method, axes = sparsify.make("iss"), model.axes()
    method.shapes = {name: p.shape for name, p in model.named_parameters()}
    method.weights = {name: None for name, shape in method.shapes.items() if len(shape) == 2}
    sizes = {axis.name: method.sizes(axis).unique().tolist() for axis in axes if axis.kind == "hidden"}
    for end in ("", "_reverse"):
        assert sizes[f"modelling.hidden_l0{end}"] == [4800]
        assert sizes[f"modelling.hidden_l1{end}"] == [3201 + 800]
        assert sizes[f"output.hidden_l0{end}"] == [6401]
        own, flow, attention = 4 * (200 + 100) + 400, 2 * 4 * 400 * 2 + 2 * 4, 3
        assert sizes[f"contextual.hidden_l0{end}"] == [own + flow + attention]
    (second,) = (axis for axis in axes if axis.name == "modelling.hidden_l1")
    members = []
    for member in second.members:
        read = member.tensor.startswith("output") and member.degree == 1  # the neuron, and where the answer begins
        assert not read or member.positions[0].tolist() == [800, 1000]
        members.append(replace(member, positions=member.positions[:, :1]) if read else member)
    without = replace(second, members=tuple(members))
    assert method.sizes(without).unique().tolist() == [3201]


def test_a_neuron_is_read_nowhere_but_where_the_axes_say():
    """With all its columns at zero, whatever the neuron's own numbers are, the answer is the same; with any of them not."""
    inputs = given()
    for axis in (axis for axis in reader().axes() if axis.kind == "hidden"):
        columns = axis.having("in")
        own = [m for m in columns if m.tensor.split(".")[0] == axis.name.split(".")[0] and "weight_hh" in m.tensor]
        model = reader()
        for member in columns:
            member.clear(model.get_parameter(member.tensor), torch.arange(axis.size) == 1)
        expected = model(*inputs, lengths=LENGTHS)[0].exp()
        for member in axis.having("out", "bias"):
            tensor = model.get_parameter(member.tensor)
            tensor[member.positions[1]] += 1.0
        assert error(model(*inputs, lengths=LENGTHS)[0].exp(), expected) <= 1e-12
        for member in (m for m in columns if m not in own):
            for places in member.positions.T:
                model.get_parameter(member.tensor)[:, places[1]] = 0.7
                assert error(model(*inputs, lengths=LENGTHS)[0].exp(), expected) > 1e-9
                model.get_parameter(member.tensor)[:, places[1]] = 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scaled", [False, True])
def test_the_small_reader_computes_what_the_masked_one_does(seed, scaled, tmp_path):
    """Weights, words, inputs, neurons and gates at random; with scales, of which products of two neurons have two."""
    model = reader(hidden=5, seed=seed)
    kinds = {axis.name: 0.6 for axis in model.axes() if axis.kind in ("vocabulary", "input", "hidden", "gates")}
    masks = random_masks(model, seed, 0.7, kinds)
    means = random_means(masks, seed) if scaled else {}
    small, reference = compact(model, masks, means), masked(model, masks, means)
    for lengths in (LENGTHS, torch.tensor([[2, 3], [9, 1]])):
        inputs = given(lengths, seed=seed + 7)
        got, expected = (net(*inputs, lengths=lengths)[0] for net in (small, reference))
        assert error(got.exp(), expected.exp()) <= 1e-9 and torch.equal(got.isinf(), expected.isinf())
        there = expected.isfinite()
        assert error(got[there], expected[there]) <= 1e-9
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert error(again(*inputs, lengths=lengths)[0][there], expected[there]) <= 1e-9


def test_a_reader_without_half_its_neurons_is_half_as_wide_everywhere():
    model = reader(hidden=6)
    masks = random_masks(model, 0, 1.0)
    for axis in model.axes():
        if axis.kind == "hidden":
            masks.groups[axis.name] = torch.arange(6) % 2 == 0
    small = compact(model, masks)
    assert small.contextual.weight_hh_l0.shape == (12, 3) and small.contextual.weight_ih_l0.shape == (12, 7)
    assert small.modelling.weight_ih_l0.shape == (12, 24) and small.modelling.weight_ih_l1.shape == (12, 6)
    assert small.output.weight_ih_l0_reverse.shape == (12, 42)
    assert small.start.weight.shape == small.end.weight.shape == (1, 30)
    assert small.of_both.weight.shape == (1, 6)


def test_users_make_it_small_with_a_proof():
    model = reader(hidden=4).requires_grad_(True)
    with torch.no_grad():
        for axis in model.axes():
            for member in axis.having("in", "out") if axis.kind == "hidden" else ():
                member.clear(model.get_parameter(member.tensor), torch.arange(4) > 1)
    small, proof = sparsernn.compact(model, example=(*given(), LENGTHS))
    assert proof.error <= 1e-9 and small.output.weight_hh_l0.shape == (8, 2)


# ---- presets and methods


def test_the_default_is_the_paper_s_reader_and_smaller_ones_count_against_it():
    assert list(PRESETS["squad"]) == ["bidaf-100", "bidaf-50", "bidaf-24"]
    for name, one in PRESETS["squad"].items():
        size = int(name.removeprefix("bidaf-"))
        with torch.device("meta"):
            model = one.build(SimpleNamespace(vocabulary=range(1000), classes=[]))
        assert one.equivalent == (None if size == 100 else "bidaf-100") and set(one.profiles) == {
            "smoke",
            "quick",
            "short",
        }
        assert [layer.hidden_size for layer in (model.contextual, model.modelling, model.output)] == [size] * 3
        widths = [layer.input_size for layer in (model.contextual, model.modelling, model.output)]
        assert widths == [100 + size, 8 * size, 14 * size], "numbers a word stay, for vectors from a file"
        assert model.modelling.num_layers == 2
        for method in ("dense", "iss", "l0", "sparse-vd-w", "gradual"):
            assert RunConfig("squad", name, method, "short").plan.batch_size == 32


@pytest.fixture
def tiny_squad(as_it_was):
    questions.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method, more", [
    ("dense", {}), ("iss", {}), ("l0", {}), ("sparse-vd-w", {}), ("sparse-vd-w-binary", {"dropout": 0.1}),
    ("sparse-vd-w-voc", {}), ("sparse-vd-wn", {}), ("sparse-vd-wgn", {}), ("binary-dropout", {"dropout": 0.1}),
    ("gradual", {"density": 0.5}), ("hard", {"density": 0.5}), ("blocks", {"density": 0.5, "block": "4x1"}),
    ("one-shot", {"density": 0.5}), ("one-shot", {"density": 0.5, "criterion": "wanda", "calibration": 2}),
    ("heads", {}), ("restricted", {}),
], ids=str)  # fmt: skip
def test_every_method_trains_it_and_leaves_a_small_reader(method, more, tiny_squad):
    run = ensure(RunConfig("tiny-squad", method=method, profile="quick", **more))
    assert run.record["compact_error"] <= 1e-9 and run.record["metric_difference"] < 0.03
    assert run.record["metric"] == "exact_match" and 0 <= run.record["test"] <= 1
    assert float(run.record["tests"].removeprefix("f1=")) >= run.record["test"]
    assert run.metrics["train_loss"].iloc[-1] < run.metrics["train_loss"].iloc[0]
    loaded, batch = load(run.directory / "model.safetensors"), next(run.task.batches("test", 8))
    expected, _ = run.predictor(run.study.masks())(*batch.inputs, lengths=batch.lengths, state=None)
    assert error(loaded(*batch.inputs, lengths=batch.lengths)[0].softmax(0), expected.softmax(0)) <= 1e-5


def test_it_learns_to_read(tiny_squad):
    """Better than the commonest answer of each paragraph, which needs no look at the question."""
    run = ensure(RunConfig("tiny-squad", method="dense", profile="short"))
    answers, blind = [given[0] for given in run.task.texts["test"].answers], 0
    for number in set(run.task.splits["test"]["paragraphs"].tolist()):
        of_it = [a for a, p in zip(answers, run.task.splits["test"]["paragraphs"], strict=True) if p == number]
        blind += max(map(of_it.count, of_it))
    assert run.record["test"] > blind / len(answers) + 0.1


def test_a_file_of_a_reader_is_read_where_nothing_else_was_imported(tmp_path):
    net = reader()
    masks = random_masks(net, 0)
    save(compact(net, masks, random_means(masks)), tmp_path / "model.safetensors")
    code = "import sys, sparsernn; small = sparsernn.load(sys.argv[1]); print(type(small).__name__)"
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "model.safetensors"], capture_output=True, text=True)
    assert said.stdout.strip() == "BiDAF", said.stderr
