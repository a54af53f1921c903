"""What people wanted of a small model where there is no Python: an ONNX file, and one file of C, that say what it says."""

import copy
import math
import re
import shutil
import subprocess

import arm
import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from oracles import STEPS, Tagger, error, masked_by_hand, one_hot, random_masks, random_means, randomise
from test_users_compact import Net, pruned
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import sparsernn
from sparsernn.export.arrays import Matrix
from sparsernn.nets.compact import compact
from sparsernn.nets.layers import GRU, LSTM, RNN
from sparsernn.nets.masks import Masks
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel, StackedLanguageModel

V = 11
CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
STUDY = {
    "classifier": lambda cell: Classifier(V, 3, 4, 6, cell=cell),
    "classifier, 2 layers": lambda cell: Classifier(V, 3, 4, 6, layers=2, cell=cell),
    "language model": lambda cell: LanguageModel(V, 6, layers=2, cell=cell),
    "stacked, tied": lambda cell: StackedLanguageModel(V, 6, 6, 2, cell=cell, tied=True),
}
every_cell = pytest.mark.parametrize("cell", CELLS)
every_model = pytest.mark.parametrize("name", STUDY)


def tokens(steps=9, batch=4, below=V, seed=0):
    return torch.randint(below, (steps, batch), generator=torch.Generator().manual_seed(seed))


def thinned(name, cell, means=False):
    """A model of the study, its masks and means, and what compact makes of it: neurons, gates, words and weights gone."""
    model = randomise(STUDY[name](cell))
    gates = {"gates_l0": 0.8, "gates_l1": 0.8} if cell != "RNN" else {}
    masks = random_masks(model, 3, 0.7, {"vocabulary": 0.7, "input": 0.8, "hidden_l0": 0.8, "hidden_l1": 0.8} | gates)
    means = random_means(masks) if means else {}
    small = compact(model, masks, means)
    assert small(tokens())[0].std(-2).max() > 0.01, "what is left still reads its input"
    return model, masks, means, small


class Mine(nn.Module):
    """A stranger's: words or numbers, a stack, a linear layer, on the last or on every step."""

    def __init__(self, cell=nn.LSTM, layers=1, words=V, last=True, turned=False, twice=False, **how):
        super().__init__()
        self.words, self.last, self.turned = nn.Embedding(words, 5) if words else None, last, turned
        self.rnn = cell(5, 6, layers, **how)
        wide = 6 * (1 + self.rnn.bidirectional)
        self.more = cell(wide, 6, batch_first=self.rnn.batch_first) if twice else None
        self.out = nn.Linear(6 if twice else wide, 3)

    def forward(self, x, lengths=None):
        x = x.transpose(0, 1) if self.turned else x
        x = x if self.words is None else self.words(x)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        y = self.rnn(x)[0]
        if lengths is not None:
            y = pad_packed_sequence(y, batch_first=self.rnn.batch_first)[0]
        y = y if self.more is None else self.more(y)[0]
        return self.out((y[:, -1] if self.rnn.batch_first else y[-1]) if self.last else y)


def mine(*args, **how):
    torch.manual_seed(0)
    model = pruned(Mine(*args, **how)).requires_grad_(False)
    for parameter in model.parameters():
        parameter *= 3  # of torch's start: so that a step is told from the next
    return model


# ---- ONNX: read by another program, other lengths, other numbers of sequences


def asked(path, *inputs, outputs=None):
    """What ONNX Runtime says to tensors."""
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = [x.float() if x.is_floating_point() else x for x in inputs]
    said = session.run(outputs, {name: x.numpy() for name, x in zip(names, given, strict=True)})
    return [torch.as_tensor(y).double() for y in said]


def kinds(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@every_cell
@every_model
def test_a_model_of_the_study_as_a_file_says_what_the_formulas_say(tmp_path, name, cell):
    model, masks, means, small = thinned(name, cell, means=True)
    assert sparsernn.to_onnx(small.float(), tmp_path / "m.onnx", tokens()) <= 1e-5
    assert kinds(tmp_path / "m.onnx").count(cell) == small.recurrent.num_layers
    for steps, batch in [(9, 4), (1, 4), (17, 1), (30, 7)]:
        x = tokens(steps, batch, seed=steps)
        logits, state = masked_by_hand(model, masks, means, x)
        said, *states = asked(tmp_path / "m.onnx", x)
        assert said.shape == logits.shape and error(said, logits) <= 1e-5
        assert len(states) == (2 if isinstance(state, tuple) else 1)


@every_cell
def test_texts_of_different_lengths_are_padded_on_the_left_as_in_training(tmp_path, cell):
    model, masks, means, small = thinned("classifier, 2 layers", cell, True)
    lengths = torch.tensor([9, 1, 4, 6])
    sparsernn.to_onnx(small, tmp_path / "m.onnx", (tokens(), lengths))
    for steps, given in [(12, [3, 12, 0]), (2, [1]), (9, [9, 1, 4, 6])]:
        x = tokens(steps, len(given), seed=steps)
        expected = masked_by_hand(model, masks, means, x, torch.tensor(given))[0]
        said = asked(tmp_path / "m.onnx", x, torch.tensor(given), outputs=["output"])[0]
        assert error(said, expected) <= 1e-5
    assert error(said, masked_by_hand(model, masks, means, x)[0]) > 1e-3, "lengths matter"


@every_cell
def test_steps_that_are_padded_on_the_right_say_zero(tmp_path, cell):
    model = randomise(Tagger(V, 3, 5, layers=2, cell=CELLS[cell]))
    lengths = torch.tensor([9, 1, 4, 6])
    sparsernn.to_onnx(model, tmp_path / "m.onnx", (tokens(), lengths))
    expected = model(tokens(), lengths)[0]
    said = asked(tmp_path / "m.onnx", tokens(), lengths, outputs=["output"])[0]
    assert error(said, expected) <= 1e-5 and torch.equal(said[1:, 1], said[1:2, 1].expand(8, -1))


@every_cell
def test_a_text_is_fed_piece_by_piece_with_the_state_handed_on(tmp_path, cell):
    _, _, _, small = thinned("language model", cell)
    small, rows = small.float(), torch.zeros(2, 4, 6)
    state = (rows, rows) if cell == "LSTM" else rows
    sparsernn.to_onnx(small, tmp_path / "m.onnx", (tokens(3), None, state))
    x, said, states = tokens(12), [], [rows] * (2 if cell == "LSTM" else 1)
    for piece in x.split([5, 1, 6]):
        y, *states = asked(tmp_path / "m.onnx", piece, *states)
        said.append(y)
    assert error(torch.cat(said), small(x)[0].double()) <= 1e-5


DEEP = {"layers": 2, "bidirectional": True}


@pytest.mark.parametrize(
    ("cell", "how"),
    [
        *((cell, DEEP) for cell in CELLS),
        ("LSTM", {"batch_first": True, "bidirectional": True, "last": False}),
        ("GRU", {"twice": True, "bidirectional": True, "batch_first": True}),
        ("LSTM", {"bias": False, "last": False}),
        ("GRU", {"bias": False}),
        ("RNN", {"words": None, "last": False, "layers": 2}),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_my_own_model_as_a_file_says_what_it_said(tmp_path, cell, how):
    model = mine(getattr(nn, cell), **how)

    def given(steps, batch):
        ids = tokens(steps, batch, seed=steps)
        x = ids if model.words is not None else torch.sin(torch.arange(ids.numel() * 5.0).view(*ids.shape, 5)).double()
        return x.transpose(0, 1) if model.rnn.batch_first else x

    small = sparsernn.compact(model, given(9, 4))[0].float()
    sparsernn.to_onnx(small, tmp_path / "m.onnx", given(9, 4))
    for steps, batch in [(9, 4), (20, 1), (1, 6)]:
        assert error(asked(tmp_path / "m.onnx", given(steps, batch))[0], model(given(steps, batch))) <= 1e-5


def test_packed_sequences_of_my_own_model_become_lengths(tmp_path):
    model, lengths = mine(nn.GRU, bidirectional=True, batch_first=True, last=False).float(), torch.tensor([9, 2, 5, 5])
    ids = tokens().T
    sparsernn.to_onnx(model, tmp_path / "m.onnx", (ids, lengths))
    assert error(asked(tmp_path / "m.onnx", ids, lengths)[0], model(ids, lengths).double()) <= 1e-5


class Single(nn.Module):
    """One sequence of numbers, no batch."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def test_a_model_of_one_sequence_keeps_its_steps_free(tmp_path):
    model, x = Single().requires_grad_(False), torch.sin(torch.arange(100.0)).view(20, 5)
    sparsernn.to_onnx(model, tmp_path / "m.onnx", x[:7])
    assert error(asked(tmp_path / "m.onnx", x)[0], model(x).double()) <= 1e-5


def test_an_rnn_of_relu_and_a_mean_over_time_are_a_file_too(tmp_path):
    torch.manual_seed(0)
    model = pruned(Net("plain", nn.RNN))
    model.rnn.nonlinearity, model.rnn.mode = "relu", "RNN_RELU"
    sparsernn.to_onnx(model, tmp_path / "m.onnx", tokens())
    assert error(asked(tmp_path / "m.onnx", tokens(3, 9, seed=2))[0], model(tokens(3, 9, seed=2))) <= 1e-5


def test_constant_gates_are_rows_of_zeros_and_a_bias(tmp_path):
    model = randomise(LanguageModel(V, 4))
    masks = Masks.all_kept(model)
    masks.weights["lstm.weight_ih_l0"][4:8] = masks.weights["lstm.weight_hh_l0"][4:8] = False  # f, of i f g o
    small = compact(model, masks)
    sparsernn.to_onnx(small, tmp_path / "m.onnx", tokens())
    stored = {
        t.name.rpartition(".")[2]: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    rows, bias = stored["weight_hh_0"][0], stored["bias_0"][0]
    assert [bool(rows[4 * gate : 4 * gate + 4].any()) for gate in range(4)] == [True, True, False, True], "i o f c"
    both = model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0
    np.testing.assert_allclose(bias[8:12] + bias[24:28], both[4:8].detach(), atol=1e-6)


def test_what_goes_in_has_the_names_of_the_arguments(tmp_path):
    _, _, _, small = thinned("classifier", "GRU")
    sparsernn.to_onnx(small, tmp_path / "m.onnx", {"lengths": torch.tensor([9, 2, 4, 4]), "tokens": tokens()})
    shapes = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in onnx.load(tmp_path / "m.onnx").graph.input
    }
    assert shapes == {"lengths": ["B"], "tokens": ["T", "B"]}


def test_a_large_vocabulary_is_looked_up_and_not_multiplied(tmp_path):
    small = randomise(LanguageModel(3000, 4))
    sparsernn.to_onnx(small, tmp_path / "m.onnx", tokens(below=3000))
    assert (tmp_path / "m.onnx").stat().st_size < 4 * 3000 * (16 + 4 + 1) * 1.2
    assert error(asked(tmp_path / "m.onnx", tokens(below=3000))[0], small(tokens(below=3000))[0]) <= 1e-5


def test_of_a_large_vocabulary_a_removed_word_costs_four_bytes(tmp_path):
    model = randomise(Classifier(3000, 3, 20, 6))
    masks = Masks.all_kept(model)
    masks.weights["embedding.weight"][30:] = False
    sparsernn.to_onnx(compact(model, masks), tmp_path / "m.onnx", tokens(below=60))
    assert (tmp_path / "m.onnx").stat().st_size < 4 * 3000 + 4 * 31 * 20 + 10000
    x = tokens(below=60, seed=1)
    said = asked(tmp_path / "m.onnx", x, outputs=["output"])[0]
    assert error(said, masked_by_hand(model, masks, {}, x)[0]) <= 1e-5


class AtMostHalf(Mine):
    """Rows of its embedding are as long as at most 0.5, from their first look-up on."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 5, max_norm=0.5)


def test_words_that_the_example_lacks_are_renormalised_too(tmp_path):
    model = AtMostHalf().eval()
    before, x, others = model.words.weight.clone(), torch.randint(20, (9, 4)), torch.randint(20, 40, (9, 4))
    sparsernn.to_onnx(model, tmp_path / "m.onnx", x)
    assert torch.equal(model.words.weight, before)
    assert error(asked(tmp_path / "m.onnx", others)[0], copy.deepcopy(model)(others).double()) <= 1e-5


class OnlyItsWords(Mine):
    def forward(self, x):
        return super().forward(torch.tensor(x.tolist()))


def test_a_file_that_says_the_same_to_all_words_is_not_written(tmp_path):
    with pytest.raises(RuntimeError, match="differs from the model"):
        sparsernn.to_onnx(OnlyItsWords(), tmp_path / "m.onnx", tokens())


class Sudden(Mine):
    def forward(self, x):
        return super().forward(x) * (2 if len(x) > 12 else 1)


def test_a_model_that_a_trace_does_not_show_is_not_written(tmp_path):
    (tmp_path / "m.onnx").write_text("the old one")
    with pytest.raises(RuntimeError, match="differs from the model by .*Sudden does depends on numbers or sizes"):
        sparsernn.to_onnx(Sudden(), tmp_path / "m.onnx", tokens())
    assert (tmp_path / "m.onnx").read_text() == "the old one" and len(list(tmp_path.iterdir())) == 1


class Halved(Single):
    """A convolution that halves the steps, in front of what reads them."""

    def __init__(self):
        super().__init__()
        self.rnn.batch_first, self.front = True, nn.Conv1d(5, 5, 3, stride=2, padding=1)

    def forward(self, x):
        return super().forward(self.front(x.transpose(1, 2)).transpose(1, 2))


class Looped(Single):
    """A step at a time, in a loop of Python."""

    def forward(self, x):
        said, state = [], None
        for step in range(x.shape[0]):
            y, state = self.rnn(x[step : step + 1], state)
            said.append(y)
        return self.out(torch.cat(said))


@pytest.mark.parametrize("model, shape, said", [
    (Halved, (4, 12, 5), r"T \(steps\) is not free in the file, which takes x \[B, 12, 5\]; for other numbers write"),
    (Looped, (7, 4, 5), r"T \(steps\) and B \(sequences\) are not free in the file, which takes x \[7, 4, 5\]"),
])  # fmt: skip
def test_a_file_of_as_many_steps_as_the_example_has_says_so(tmp_path, model, shape, said):
    torch.manual_seed(0)
    model, x = model().requires_grad_(False), torch.randn(shape)
    with pytest.warns(UserWarning, match=said) as caught:
        sparsernn.to_onnx(model, tmp_path / "m.onnx", x)
    assert caught[0].filename == __file__
    assert error(asked(tmp_path / "m.onnx", x)[0], model(x).double()) <= 1e-5


class OneStep(Single):
    """What a loop around the file feeds: one step, from a state to a state."""

    def forward(self, x, h):
        y, h = self.rnn(x[None], h)
        return self.out(y[0]), h


def test_a_model_of_one_step_is_a_file_without_a_word_about_steps(tmp_path):
    model, x, h = OneStep().requires_grad_(False), torch.randn(4, 5), torch.randn(1, 4, 6)
    sparsernn.to_onnx(model, tmp_path / "m.onnx", (x, h))
    assert error(asked(tmp_path / "m.onnx", x[:3], h[:, :3])[0], model(x[:3], h[:, :3])[0].double()) <= 1e-5


class Counted(Single):
    def forward(self, x):
        return self.out(self.rnn(x, x.new_zeros(1, int(x.shape[1]), 6))[0])


def test_a_size_that_python_counts_is_refused_in_words_and_not_written(tmp_path, capfd):
    with pytest.raises(
        ValueError, match=r"Counted takes x \[15, 6, 5\], the file does not: .*by len\(x\).*say x.shape\[0\] instead"
    ):
        sparsernn.to_onnx(Counted(), tmp_path / "m.onnx", torch.randn(7, 4, 5))
    assert not list(tmp_path.iterdir()) and not capfd.readouterr().err


@pytest.mark.parametrize(
    "model", [lambda: mine(), lambda: mine(layers=2, bidirectional=True), lambda: STUDY["classifier"]("LSTM")]
)
def test_an_lstm_in_int8_is_off_by_little_and_says_by_how_much(tmp_path, model):
    model = model().eval().float()
    stated = sparsernn.to_onnx(model, tmp_path / "m.onnx", tokens(), weights="int8")
    assert "DynamicQuantizeLSTM" in kinds(tmp_path / "m.onnx") and "LSTM" not in kinds(tmp_path / "m.onnx")
    expected = model(tokens())
    off = error(
        asked(tmp_path / "m.onnx", tokens())[0], (expected if torch.is_tensor(expected) else expected[0]).double()
    )
    assert 1e-6 < off <= stated * 1.001 < 0.05


@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_int8_that_onnx_runtime_has_not_is_refused_by_name(tmp_path, cell):
    with pytest.raises(ValueError, match=f"rnn is a {cell}: ONNX Runtime has no {cell} in int8, only LSTM"):
        sparsernn.to_onnx(mine(getattr(nn, cell)), tmp_path / "m.onnx", tokens(), weights="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", [lambda model: model(tokens()), (), None])
def test_an_example_that_gives_the_file_no_input_is_refused(tmp_path, example):
    with pytest.raises(ValueError, match="example is (a call|without a tensor); a file takes what the model's forward"):
        sparsernn.to_onnx(mine(), tmp_path / "model.onnx", example)
    assert not list(tmp_path.iterdir())


def test_what_is_no_weights_or_no_example_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="unknown weights 'int4'; did you mean 'int8'"):
        sparsernn.to_onnx(mine(), tmp_path / "m.onnx", tokens(), weights="int4")
    with pytest.raises(ValueError, match="Mine cannot be called with the example"):
        sparsernn.to_onnx(mine(), tmp_path / "m.onnx", torch.randn(3, 2, 5))
    with pytest.raises(ValueError, match="BagOfWords has no recurrent layer"):
        sparsernn.to_onnx(BagOfWords(V, 2), tmp_path / "m.onnx", tokens())


# ---- C: compiled, fed, compared

MAIN = r"""
#include <stdio.h>
#include "model.c"
int main(void)
{
    static model_state state;
    static model_input input[4096];
    static float output[MODEL_OUTPUTS * 512];
    int steps;
    if (fread(&steps, sizeof steps, 1, stdin) != 1 || steps > 512 ||
        fread(input, sizeof *input * MODEL_INPUTS, (size_t)steps, stdin) != (size_t)steps)
        return 2;
    model_reset(&state);
    for (int t = 0; t < steps; t++)
        if (model_step(&state, input + t * MODEL_INPUTS, output + t * MODEL_OUTPUTS) != 0)
            return 3;
    fwrite(output, sizeof *output * MODEL_OUTPUTS, (size_t)steps, stdout);
    model_reset(&state);
    if (model_sequence(&state, input, steps, output) != 0)
        return 4;
    fwrite(output, sizeof *output * MODEL_OUTPUTS, (size_t)steps, stdout);
    return 0;
}
"""
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
CHECKED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
GCC = shutil.which("gcc")
needs_gcc = pytest.mark.skipif(not GCC, reason="no gcc on this machine")
needs_zig = pytest.mark.skipif(not arm.ZIG, reason="no ziglang in this environment (pip install ziglang)")
needs_arm = pytest.mark.skipif(arm.missing() is not None, reason=str(arm.missing()))


def compiled(folder, compiler, main=MAIN, *flags):
    """model.c in the folder, with a main → the program."""
    (folder / "main.c").write_text(main)
    built = subprocess.run(
        [*compiler, *STRICT, *flags, "main.c", "-o", "program", "-lm"], cwd=folder, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[:4000]
    return folder / "program"


def fed(program, x, *emulator):
    """One sequence of ids [T] or numbers [T, I] → what it says after each step [T, C], and what model_sequence left [T, C]."""
    given = x.numpy().astype(np.float32 if x.is_floating_point() else np.int32)
    ran = subprocess.run([*emulator, program], input=np.int32(len(x)).tobytes() + given.tobytes(), capture_output=True)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[:4000])
    said = torch.as_tensor(np.frombuffer(ran.stdout, np.float32).copy()).double()
    return said.view(2, len(x), -1).unbind()


def as_c(folder, small, *flags, weights="float32", compiler=(GCC,), main=MAIN):
    size = sparsernn.to_c(small, folder / "model.c", weights=weights)
    return compiled(folder, compiler, main, *flags), size


def prefixes(model, x):
    """What a model that answers at the end says after each step."""
    return torch.cat([model(x[: n + 1, None]) for n in range(len(x))])


@needs_gcc
@every_cell
@every_model
def test_a_model_of_the_study_in_c_says_what_the_formulas_say(tmp_path, name, cell):
    model, masks, means, small = thinned(name, cell, means=True)
    program, _ = as_c(tmp_path, small, *CHECKED)
    x = tokens(25, 1)[:, 0]
    steps, whole = fed(program, x)
    if "classifier" in name:
        expected = prefixes(lambda part: masked_by_hand(model, masks, means, part)[0], x)
        assert error(whole[0], expected[-1]) <= 1e-5
    else:
        expected = masked_by_hand(model, masks, means, x[:, None])[0][:, 0]
        assert torch.equal(whole, steps)
    assert error(steps, expected) <= 1e-5


@needs_gcc
@pytest.mark.parametrize(
    ("cell", "how"),
    [
        ("LSTM", {"twice": True, "batch_first": True}),
        ("GRU", {"layers": 2, "bias": False, "last": False}),
        ("RNN", {"turned": True, "batch_first": True, "last": False}),
        *((cell, {"words": None, "layers": 2, "last": False}) for cell in CELLS),
    ],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_my_own_model_in_c_says_what_it_said(tmp_path, cell, how):
    model = mine(getattr(nn, cell), **how)
    x = tokens(25, 1)[:, 0] if model.words is not None else torch.sin(torch.arange(125.0)).view(25, 5).double()
    by_batch = model.rnn.batch_first and not model.turned

    def say(part):
        y = model(part.transpose(0, 1) if by_batch else part)
        return y if model.last else y[0] if model.rnn.batch_first else y[:, 0]

    example = torch.cat([x[:, None]] * 2, 1)
    small = sparsernn.compact(model, example.transpose(0, 1) if by_batch else example)[0]
    program, _ = as_c(tmp_path, small, *CHECKED)
    expected = prefixes(say, x) if model.last else say(x[:, None])
    assert error(fed(program, x)[0], expected) <= 1e-5
    assert expected.std(0).max() > 0.01


class OneHot(Mine):
    """Of ids that it makes one-hot numbers itself."""

    def forward(self, x):
        return super().forward(nn.functional.one_hot(x, 5).to(self.out.weight))


@needs_gcc
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_model_that_makes_ids_one_hot_itself_is_given_ids_in_c(tmp_path, weights):
    torch.manual_seed(0)
    model = OneHot(words=None, last=False).requires_grad_(False)
    x = torch.randint(5, (9, 1), generator=torch.Generator().manual_seed(0))
    program, _ = as_c(tmp_path, model, *CHECKED, weights=weights)
    assert error(fed(program, x[:, 0])[0], model(x)[:, 0]) <= (1e-5 if weights == "float32" else 2e-2)
    assert sparsernn.to_onnx(model, tmp_path / "model.onnx", x) <= 1e-5


@needs_gcc
def test_in_c_all_words_are_renormalised(tmp_path):
    model = AtMostHalf().double().eval()
    program, x = as_c(tmp_path, model)[0], torch.arange(40)
    assert error(fed(program, x)[0], prefixes(model, x)) <= 1e-5


@needs_gcc
def test_an_rnn_of_relu_in_c(tmp_path):
    model = mine(nn.RNN, words=None, nonlinearity="relu", last=False)
    x = torch.sin(torch.arange(60.0)).view(12, 5).double()
    assert error(fed(as_c(tmp_path, model)[0], x)[0], model(x[:, None])[:, 0]) <= 1e-5
    with pytest.raises(ValueError, match='level 1 is an RNN of relu, whose states have no bound .*weights="float32"'):
        sparsernn.to_c(model, tmp_path / "model.c", weights="int8")


@pytest.mark.parametrize("small", [False, True], ids=["as trained", "compact"])
def test_a_clipped_relu_is_refused_by_name(tmp_path, small):
    model = mine(words=None, last=False)
    model.rnn, x = RNN(5, 6, activation="clipped_relu").requires_grad_(False).double(), torch.ones(4, 2, 5).double()
    model = sparsernn.compact(model, x)[0] if small else model
    for write in (
        lambda weights: sparsernn.to_c(model, tmp_path / "m", weights),
        lambda weights: sparsernn.to_onnx(model, tmp_path / "m", x, weights),
    ):
        for weights in ("float32", "int8"):
            with pytest.raises(ValueError, match="is an RNN of clipped_relu.*LSTM and GRU .*RNN of tanh or relu"):
                write(weights)
    assert not list(tmp_path.iterdir())


@needs_gcc
@every_cell
@pytest.mark.parametrize("name", ["classifier, 2 layers", "language model"])
def test_int8_in_c_is_off_by_little(tmp_path, name, cell):
    model, masks, means, small = thinned(name, cell)
    x = tokens(25, 1)[:, 0]
    sizes = {weights: sparsernn.to_c(small, tmp_path / "model.c", weights) for weights in ("float32", "int8")}
    said = fed(compiled(tmp_path, [GCC], MAIN, *CHECKED), x)[1]
    expected = masked_by_hand(model, masks, means, x[:, None])[0]
    off = error(said[0], expected[0]) if "classifier" in name else error(said, expected[:, 0])
    assert 1e-6 < off < 0.05
    assert sizes["int8"] < sizes["float32"]


def quantised_by_hand(weight):
    """Rounded to 255 steps of each row's largest."""
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step.clamp(min=1e-300)).round() * step


def of_127(h):
    return (h * 127).round() / 127


@needs_gcc
@every_cell
def test_int8_is_the_scheme_that_the_file_states(tmp_path, cell):
    """Rows rounded by their largest, states to 1/127, numbers given by their largest; sums and states themselves are not."""
    model = mine(getattr(nn, cell), words=None, last=False)
    x = torch.sin(torch.arange(60.0)).view(12, 5).double()
    p = {name: parameter.detach() for name, parameter in model.rnn.named_parameters()}
    p |= {name: quantised_by_hand(p[name]) for name in ("weight_ih_l0", "weight_hh_l0")}
    act = "tanh" if cell == "RNN" else "logistic"
    state, expected = (x.new_zeros(6),) * (2 if cell == "LSTM" else 1), []
    for given in x:
        read = quantised_by_hand(given[None])[0]
        state = STEPS[cell](p, "_l0", act, 1.0, read, of_127(state[0]), *state)
        expected.append(quantised_by_hand(model.out.weight) @ of_127(state[0]) + model.out.bias)
    said = fed(as_c(tmp_path, model, weights="int8")[0], x)[0]
    assert error(said, torch.stack(expected)) <= 1e-5 < error(said, model(x[:, None])[:, 0])


@needs_gcc
@every_cell
def test_int8_rounds_the_weights_of_one_hot_words_by_the_same_rows(tmp_path, cell):
    model = randomise(LanguageModel(V, 6, cell=cell))
    p = {name: parameter.detach() for name, parameter in model.recurrent.named_parameters()}
    p |= {name: quantised_by_hand(p[name]) for name in ("weight_ih_l0", "weight_hh_l0")}
    x, state, expected = tokens(12, 1)[:, 0], (torch.zeros(6).double(),) * (2 if cell == "LSTM" else 1), []
    for word in x:
        state = STEPS[cell](p, "_l0", model.recurrent.activation, 1.0, one_hot(word, V), of_127(state[0]), *state)
        expected.append(quantised_by_hand(model.head.weight) @ of_127(state[0]) + model.head.bias)
    said = fed(as_c(tmp_path, model, weights="int8")[0], x)[0]
    assert error(said, torch.stack(expected)) <= 1e-5 < error(said, model(x[:, None])[0][:, 0])


@needs_zig
def test_another_compiler_takes_it_as_well(tmp_path):
    _, _, _, small = thinned("language model", "GRU")
    x = tokens(12, 1)[:, 0]
    program, _ = as_c(tmp_path, small, "-O2", compiler=arm.ZIG)
    assert error(fed(program, x)[0], small(x[:, None])[0][:, 0]) <= 1e-5


@needs_gcc
@needs_arm
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_device_with_an_arm_processor_says_the_same(tmp_path, weights):
    x, said = tokens(25, 1)[:, 0], []
    _, _, _, small = thinned("classifier, 2 layers", "LSTM")
    for compiler, emulator in (arm.compiler(), [arm.EMULATOR]), ([GCC], []):
        program, _ = as_c(tmp_path, small, "-O2", weights=weights, compiler=compiler)
        said.append(fed(program, x, *emulator)[0])
    there, here = said
    assert error(there, here) <= (1e-6 if weights == "float32" else 1e-2)
    assert error(there, prefixes(lambda part: small(part)[0], x)) <= (1e-5 if weights == "float32" else 0.05)


# ---- C: what the head of the file says, and the edges

NUMBERS = r"""
#include <stdio.h>
#include "model.c"
int main(void)
{
    model_state state, before;
    float first[MODEL_OUTPUTS], second[MODEL_OUTPUTS];
    model_input good = 1, bad[] = {-1, WORDS, 2147483647};
    model_reset(&state);
    model_step(&state, &good, first);
    before = state;
    for (int k = 0; k < 3; k++)
        if (model_step(&state, bad + k, first) != -1 || model_sequence(&state, bad + k, 1, first) != -1)
            return 2;
    if (memcmp(&before, &state, sizeof state) != 0)
        return 3;
    model_step(&before, &good, first);
    model_step(&state, &good, second);
    printf("%d %d", memcmp(first, second, sizeof first), (int)sizeof state);
    return 0;
}
"""


NOT_FINITE = (
    NUMBERS[: NUMBERS.index("    model_input good")]
    + r"""
    float good[MODEL_INPUTS] = {0.5f}, bad[3] = {NAN, INFINITY, -INFINITY}, given[MODEL_INPUTS] = {0};
    model_reset(&state);
    model_step(&state, good, first);
    before = state;
    for (int k = 0; k < 3; k++) {
        given[MODEL_INPUTS - 1] = bad[k];
        if (model_step(&state, given, first) != -2 || model_sequence(&state, given, 1, first) != -2)
            return 2;
    }
    if (memcmp(&before, &state, sizeof state) != 0)
        return 3;
    return model_step(&state, good, second);
}
"""
)


def stated(path, what):
    return int(re.search(rf"^ \* {what} +([\d,]+) bytes", path.read_text(), re.M)[1].replace(",", ""))


@needs_gcc
def test_an_id_out_of_range_is_refused_and_leaves_the_state(tmp_path):
    _, _, _, small = thinned("classifier", "LSTM")
    program, _ = as_c(tmp_path, small, *CHECKED, main=NUMBERS.replace("WORDS", str(V)))
    ran = subprocess.run([program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, f"0 {stated(tmp_path / 'model.c', 'state')}"), ran.stderr


@needs_gcc
@pytest.mark.parametrize("cell", CELLS)
def test_int8_refuses_numbers_that_are_not_finite_and_leaves_the_state(tmp_path, cell):
    program, _ = as_c(tmp_path, mine(getattr(nn, cell), words=None), *CHECKED, weights="int8", main=NOT_FINITE)
    assert "-2 for a number that is not finite" in (tmp_path / "model.c").read_text()
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@needs_gcc
def test_in_float32_nan_stays_nan(tmp_path):
    x = torch.zeros(3, 5)
    x[1] = math.nan
    hard = sparsernn.compact(HardGates().eval(), torch.randn(4, 2, 5))[0]
    for model in (mine(nn.RNN, words=None, nonlinearity="relu"), hard):
        said = fed(as_c(tmp_path, model)[0], x)[0]
        assert said.isnan().all(1).tolist() == [False, True, True]


@needs_gcc
@pytest.mark.skipif(not shutil.which("nm"), reason="no nm on this machine")
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("name", STUDY)
def test_the_bytes_that_the_head_states_are_those_of_the_object(tmp_path, name, weights):
    _, _, _, small = thinned(name, "LSTM")
    size = sparsernn.to_c(small, tmp_path / "model.c", weights=weights)
    subprocess.run([GCC, *STRICT, "-O0", "-fstack-usage", "-c", "model.c"], cwd=tmp_path, check=True)
    listed = subprocess.run(["nm", "-S", "model.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    constants = [int(line.split()[1], 16) for line in listed.splitlines() if line.split()[-2] in "rR"]
    assert size == stated(tmp_path / "model.c", "weights") == sum(constants)
    assert not [line for line in listed.splitlines() if line.split()[-2] in "bBdD"], "nothing but constants"
    unknown = {line.split()[-1] for line in listed.splitlines() if line.split()[-2] == "U"}
    assert unknown <= {
        "expf",
        "tanhf",
        "fabsf",
        "fmaxf",
        "fminf",
        "lrintf",
        "memcpy",
        "memset",
        "_GLOBAL_OFFSET_TABLE_",
        "__stack_chk_fail",
    }
    frames = [int(line.split("\t")[1]) for line in (tmp_path / "model.su").read_text().splitlines()]
    assert (
        stated(tmp_path / "model.c", "stack") <= sum(frames)
        and max(frames) <= stated(tmp_path / "model.c", "stack") + 160
    )


@needs_gcc
def test_the_declarations_alone_serve_another_file(tmp_path):
    _, _, _, small = thinned("language model", "GRU")
    sparsernn.to_c(small, tmp_path / "model.c")
    program = compiled(tmp_path, [GCC], "#define MODEL_DECLARATIONS\n" + MAIN, "model.c")
    assert error(fed(program, tokens(5, 1)[:, 0])[0], small(tokens(5, 1))[0][:, 0]) <= 1e-5


@needs_gcc
@every_cell
def test_constant_gates_are_numbers_and_no_weights(tmp_path, cell):
    """Every gate of the second level constant: it moves in time all the same, and nothing below it is left."""
    model = randomise(StackedLanguageModel(V, 4, 5, 2, cell=cell))
    masks = Masks.all_kept(model)
    for kind in ("ih", "hh"):
        masks.weights[f"{model.stack}.weight_{kind}_l1"][:] = False
    small = compact(model, masks)
    program, size = as_c(tmp_path, small, *CHECKED)
    said, x = fed(program, tokens(9, 1)[:, 0])[0], tokens(9, 1)
    assert error(said, masked_by_hand(model, masks, {}, x)[0][:, 0]) <= 1e-5
    assert (said.std(0).max() > 0.01) == (cell != "RNN")
    assert (
        "input_2" not in (tmp_path / "model.c").read_text() and "recurrent_2" not in (tmp_path / "model.c").read_text()
    )


@needs_gcc
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("name", ["classifier", "language model"])
def test_a_model_of_which_nothing_is_left_says_its_bias(tmp_path, name, cell, weights):
    model = randomise(STUDY[name](cell))
    masks = Masks.all_kept(model)
    for mask in masks.weights.values():
        mask[:] = False
    program, _ = as_c(tmp_path, compact(model, masks), *CHECKED, weights=weights)
    assert error(fed(program, tokens(4, 1)[:, 0])[0], model.head.bias.expand(4, -1)) <= 1e-5


@needs_gcc
def test_a_level_that_hears_nothing_needs_no_words(tmp_path):
    """No neuron of the first level is left; the second moves by its biases."""
    model = randomise(StackedLanguageModel(V, 4, 5, 2))
    masks = Masks.all_kept(model)
    masks.weights["embedding.weight"][::2] = masks.weights["lstm.weight_ih_l1"][:] = False
    program, _ = as_c(tmp_path, compact(model, masks), *CHECKED)
    assert "level_1(" not in (tmp_path / "model.c").read_text()
    x = tokens(9, 1)
    assert error(fed(program, x[:, 0])[0], masked_by_hand(model, masks, {}, x)[0][:, 0]) <= 1e-5


@needs_gcc
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_words_without_weights_are_read_as_zeros(tmp_path, weights):
    model = randomise(Classifier(V, 3, 4, 6))
    masks = Masks.all_kept(model)
    masks.weights["embedding.weight"][1::2] = False
    program, _ = as_c(tmp_path, compact(model, masks), *CHECKED, weights=weights)
    said = fed(program, torch.tensor([1, 3, 10, 0, 9]))[0]
    x = torch.tensor([3, 9, 10, 0, 1])
    expected = prefixes(lambda part: masked_by_hand(model, masks, {}, part)[0], x)
    assert error(said, expected) <= (1e-5 if weights == "float32" else 0.05)


def test_blocks_cost_an_index_a_block_and_scattered_weights_one_each():
    blocks = F.pad(torch.ones(16, 8, dtype=torch.float64), (0, 56))  # one run of 8 in each of 16 rows of 64
    assert Matrix("w", blocks, int8=False).bytes == 16 * (8 * 4 + 2 + 4)
    assert Matrix("w", blocks, int8=True).bytes == 16 * (8 + 2 + 4 + 4)
    scattered = torch.eye(64, dtype=torch.float64)[:16]
    assert Matrix("w", scattered, int8=False).bytes == 16 * (4 + 2 + 4)
    full = torch.ones(16, 64, dtype=torch.float64)
    assert Matrix("w", full, int8=False).bytes == 16 * 64 * 4
    assert Matrix("w", scattered, int8=False, by_row=True).bytes == 16 * (4 + 4) + 17 * 8


@needs_gcc
@pytest.mark.parametrize("density", [0.05, 0.9])
def test_scattered_and_whole_rows_are_the_same_network(tmp_path, density):
    """Weights that are worth runs, in every matrix and table, and those that are not."""
    model = randomise(LanguageModel(40, 24))
    masks = random_masks(model, 1, density)
    small = compact(model, masks)
    program, size = as_c(tmp_path, small, *CHECKED)
    x = tokens(20, 1, below=40)
    assert error(fed(program, x[:, 0])[0], masked_by_hand(model, masks, {}, x)[0][:, 0]) <= 1e-5
    text = (tmp_path / "model.c").read_text()
    as_runs = [name in text for name in ("input_1_rows", "recurrent_1_runs", "head_runs")]
    assert as_runs == [density < 0.5] * 3
    assert (size < sparsernn.to_c(randomise(LanguageModel(40, 24)), tmp_path / "model.c") / 2) == (density < 0.5)


class HardGates(Mine):
    """An LSTM of hard gates whose candidate is a constant, and of whose neurons nobody reads one."""

    def __init__(self):
        super().__init__(words=None)
        self.rnn = LSTM(5, 6, activation="hard")
        for weight in (self.rnn.weight_ih_l0, self.rnn.weight_hh_l0):
            weight.data[12:18] = 0
        self.rnn.bias_ih_l0.data[12:18] = 1
        self.rnn.weight_hh_l0.data[:, 2] = self.out.weight.data[:, 2] = 0


class Otherwise(Mine):
    """how: what it does that no chain does."""

    def __init__(self, how, **more):
        super().__init__(**more)
        self.how = how

    def forward(self, x):
        y, _ = self.rnn(self.words(x))
        return {
            "mean": lambda: self.out(y.mean(0)),
            "squashed": lambda: self.out(y[-1]).tanh(),
            "first": lambda: self.out(y[0]),
            "state": lambda: self.out(self.rnn(self.words(x), (y[-1:] * 0 + 1, y[-1:] * 0))[0][-1]),
        }[self.how]()


@pytest.mark.parametrize("how", ["mean", "squashed", "first", "state"])
def test_a_model_that_is_no_chain_is_refused_and_not_written(tmp_path, how):
    with pytest.raises(
        ValueError, match="Otherwise (computes something else|calls rnn, rnn).*supported: .nn.Embedding. →"
    ):
        sparsernn.to_c(Otherwise(how), tmp_path / "model.c")
    assert not list(tmp_path.iterdir())


def test_a_model_of_two_arguments_is_refused_by_what_it_lacks(tmp_path):
    with pytest.raises(
        ValueError, match=r"OneStep cannot be called with numbers \[.*, 5\] alone: .*missing .* argument: 'h'"
    ):
        sparsernn.to_c(OneStep(), tmp_path / "m.c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: mine(bidirectional=True), "Mine: rnn runs backwards too, .*supported: .* or to_onnx"),
        (lambda: BagOfWords(V, 2), "BagOfWords has 0 embeddings, 0 recurrent and 1 linear layers; supported"),
        (lambda: nn.Sequential(mine(), nn.LayerNorm(3)), "Sequential: 1 is a LayerNorm; supported"),
    ],
)
def test_what_c_cannot_say_is_refused_in_words(tmp_path, model, words):
    with pytest.raises(ValueError, match=words):
        sparsernn.to_c(model(), tmp_path / "model.c")


@pytest.mark.parametrize("words", ["Mine has a method on it; give what sparsernn.compact", "rnn: proj_size is 2; proj"])
def test_a_method_and_a_projection_are_refused_by_both(tmp_path, words):
    model = Mine(proj_size=2) if "proj" in words else Mine()
    if "method" in words:
        sparsernn.attach(model, "sparse-vd-w", steps=10, n_examples=10, example=tokens())
    for write in (
        lambda: sparsernn.to_c(model, tmp_path / "m"),
        lambda: sparsernn.to_onnx(model, tmp_path / "m", tokens()),
    ):
        with pytest.raises(ValueError, match=words):
            write()


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    model = mine()
    model.out.bias.data[1] = math.inf
    with pytest.raises(ValueError, match="head_bias of Mine holds numbers that are not finite"):
        sparsernn.to_c(model, tmp_path / "model.c")
