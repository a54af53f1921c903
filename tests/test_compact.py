"""A compact model computes what the masked one computes, by the formulas written out; its file is small and exact."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Tagger, error, masked_by_hand, randn, random_masks, random_means, randomise
from safetensors import safe_open
from safetensors.torch import save_file

from sparsernn.engines.models import layers_of
from sparsernn.nets.axes import Member, each, recurrent_axes
from sparsernn.nets.compact import compact
from sparsernn.nets.file import load, save, size_floor
from sparsernn.nets.layers import GRU, LSTM, RNN, Linear
from sparsernn.nets.masks import Masks, close, closed_count
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel, Model

V = 7
MODELS = {
    "classifier": lambda: Classifier(V, 2, embedding=4, hidden=5),
    "classifier, 2 layers": lambda: Classifier(V, 3, embedding=4, hidden=5, layers=2),
    "classifier, logistic": lambda: Classifier(V, 2, embedding=4, hidden=5, activation="logistic"),
    "language model": lambda: LanguageModel(V, hidden=5),
    "language model, 2 layers": lambda: LanguageModel(V, hidden=5, layers=2),
    "bidirectional": lambda: Tagger(V, 3, hidden=5),
    "bidirectional, 2 layers": lambda: Tagger(V, 3, hidden=5, layers=2),
    "GRU, bidirectional": lambda: Tagger(V, 3, hidden=5, cell=GRU),
    "GRU, bidirectional, 2 layers, hard": lambda: Tagger(V, 3, 5, layers=2, cell=GRU, activation="hard"),
    "RNN, bidirectional": lambda: Tagger(V, 3, hidden=5, cell=RNN),
    "RNN, bidirectional, 2 layers, relu": lambda: Tagger(V, 3, 5, layers=2, cell=RNN, activation="relu"),
    "bag of words": lambda: BagOfWords(V, 3),
}


def built(name, seed=0):
    return randomise(MODELS[name](), seed)


def tokens_for(steps=5, batch=3, seed=0):
    return torch.randint(V, (steps, batch), generator=torch.Generator().manual_seed(seed))


def assert_states_equal(model, state, reference, closed):
    """The state of the kept neurons is the same, layer by layer; the others' is zero, and was read by nobody."""
    state, reference = (s if isinstance(s, tuple) else (s,) for s in (state, reference))
    for row, suffix in enumerate(model.lstm.suffixes()):
        keep = closed.groups["hidden" + suffix]
        for mine, theirs in zip(state, reference, strict=True):
            assert error(mine[row], theirs[row] * keep) <= 1e-12


def assert_compact_equals_masked(model, masks, means=None, steps=5, batch=3, lengths=None, windows=1):
    small, state, reference = compact(model, masks, means), None, None
    for window in range(windows):
        tokens = tokens_for(steps, batch, seed=window)
        logits, state = small(tokens, lengths, state)
        expected, reference = masked_by_hand(model, masks, means or {}, tokens, lengths, reference)
        assert error(logits, expected) <= 1e-12
        if reference is not None:
            assert_states_equal(model, state, reference, close(masks))
    return small


# ---- every pattern


def groups(**kept):
    """Group masks by axis: the neurons named are kept, all others removed."""
    return lambda axis: torch.tensor([j in kept[axis.name] for j in range(axis.size)]) if axis.name in kept else None


def with_groups(model, choose, density=1.0):
    masks = random_masks(model, 5, density)
    chosen = {axis.name: g for axis in masks.axes if (g := choose(axis)) is not None}
    return Masks(masks.axes, masks.weights, chosen)


def rows_cleared(model, neurons):
    """Every gate of these neurons of the first layer is fed by nothing: constants, though the neuron is read."""
    masks = Masks.all_kept(model)
    for j in neurons:
        for kind in ("ih", "hh"):
            masks.weights[f"lstm.weight_{kind}_l0"][j::5] = False
    return masks


def lines_cleared(model):
    """Words, inputs and neurons that go because their last weight went, without any group variable."""
    masks = Masks.all_kept(model)
    if "embedding.weight" in masks.weights:
        masks.weights["embedding.weight"][[1, 4]] = False
        masks.weights["embedding.weight"][:, 2] = False
        masks.weights["lstm.weight_ih_l0"][:, 3] = False
    else:
        masks.weights["lstm.weight_ih_l0"][:, [1, 4]] = False
    for name, weight in masks.weights.items():
        if name != "embedding.weight" and name != "lstm.weight_ih_l0":
            weight[:, 3] = False
    return masks


PATTERNS = {
    "nothing pruned": Masks.all_kept,
    "half of the weights": lambda m: random_masks(m, 1, 0.5),
    "a fifth of the weights": lambda m: random_masks(m, 2, 0.2),
    "words removed": lambda m: with_groups(m, groups(vocabulary=[0, 2, 5]), 0.7),
    "inputs removed": lambda m: with_groups(m, groups(input=[1, 3]), 0.7),
    "neurons removed": lambda m: with_groups(
        m, groups(hidden_l0=[0, 1, 4], hidden_l1=[2, 4], hidden_l0_reverse=[3, 4]), 0.7
    ),
    "gates removed": lambda m: with_groups(m, groups(gates_l0=[0, 3, 6, 7, 11, 15, 19], gates_l1=[2, 5, 9]), 0.7),
    "lines emptied": lines_cleared,
    "one neuron left": lambda m: with_groups(m, groups(hidden_l0=[3], hidden_l1=[1], hidden_l0_reverse=[2])),
    "all gates of two neurons constant": lambda m: rows_cleared(m, [0, 3]),
    "all gates constant": lambda m: rows_cleared(m, range(5)),
    "a single word": lambda m: with_groups(m, groups(vocabulary=[4])),
    "no word": lambda m: with_groups(m, groups(vocabulary=[])),
    "everything in groups": lambda m: random_masks(m, 9, 0.8, {axis.name: 0.7 for axis in m.axes()}),
}


@pytest.mark.parametrize("with_means", [False, True], ids=["means one", "means drawn"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bag of words"])
def test_compact_equals_masked(name, pattern, with_means):
    model = built(name)
    masks = PATTERNS[pattern](model)
    lengths = torch.tensor([2, 5, 1]) if "classifier" in name else None
    assert_compact_equals_masked(model, masks, random_means(masks) if with_means else None, lengths=lengths)


@pytest.mark.parametrize("with_means", [False, True])
@pytest.mark.parametrize(
    "pattern", ["nothing pruned", "half of the weights", "words removed", "a single word", "no word"]
)
def test_compact_bag_of_words_equals_masked(pattern, with_means):
    model = built("bag of words")
    masks = PATTERNS[pattern](model)
    assert_compact_equals_masked(model, masks, random_means(masks) if with_means else None)


share = st.sampled_from([0.05, 0.2, 0.5, 0.8, 1.0])


@settings(derandomize=True, deadline=None, max_examples=120)
@given(
    st.data(),
    st.sampled_from(list(MODELS)),
    st.integers(0, 10_000),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_compact_equals_masked_whatever_the_masks(data, name, seed, with_means, steps, batch):
    model = built(name, seed)
    density = {n: data.draw(share) for n, p in model.named_parameters() if p.dim() == 2}
    chosen = {a.name: data.draw(st.sampled_from([0.3, 0.7, 1.0])) for a in model.axes() if data.draw(st.booleans())}
    masks = random_masks(model, seed, density, chosen)
    means = random_means(masks, seed) if with_means else None
    lengths = torch.randint(1, steps + 1, (batch,)) if "classifier" in name else None
    assert_compact_equals_masked(model, masks, means, steps, batch, lengths)


@pytest.mark.parametrize("name", ["language model", "language model, 2 layers"])
@pytest.mark.parametrize("pattern", ["half of the weights", "neurons removed", "all gates of two neurons constant"])
def test_state_carried_over_windows_stays_equal(name, pattern):
    model = built(name)
    masks = PATTERNS[pattern](model)
    assert_compact_equals_masked(model, masks, random_means(masks), windows=4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (1, 3), (5, 1)])
def test_compact_equals_masked_at_one_step_and_one_sequence(name, steps, batch):
    model = built(name)
    masks = random_masks(model, 3, 0.6)
    assert_compact_equals_masked(model, masks, random_means(masks), steps, batch)


@pytest.mark.parametrize("name", ["language model", "bidirectional"])
def test_a_language_model_takes_lengths_as_its_masked_model_does(name):
    model = built(name)
    masks = random_masks(model, 3, 0.6)
    assert_compact_equals_masked(model, masks, lengths=torch.tensor([2, 5, 1]))


def test_an_lstm_neuron_of_constant_gates_still_moves_in_time():
    """c_t = σ(b_f) c + σ(b_i) tanh(b_g): it stays, it is no constant."""
    model = built("language model")
    small = compact(model, rows_cleared(model, range(5)))
    assert not small.lstm.weight_hh_l0.any() and not layers_of(small.lstm)["_l0"].parts["live"].any()
    logits, _ = small(tokens_for(5, 1))
    assert (logits[1:] - logits[:-1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_with_everything_pruned_the_biases_answer(name):
    model = built(name)
    assert_compact_equals_masked(model, random_masks(model, 0, 0.0))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_keeps_nothing_becomes_zeros(layer):
    model = built("language model, 2 layers")
    small = assert_compact_equals_masked(model, with_groups(model, groups(**{f"hidden_l{layer}": []})))
    assert not len(getattr(small.lstm._small, f"kept_l{layer}"))


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_untouched_and_the_compact_one_is_its_own(name):
    model = built(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    small = compact(model, random_masks(model, 3, 0.6))
    tokens = tokens_for()
    expected = small(tokens)[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for parameter in model.parameters():
        parameter.fill_(7.0)
    assert torch.equal(small(tokens)[0], expected)


def test_what_is_gone_is_gone():
    """Shapes after removal: 3 words of 7, 2 inputs of 4, 3 neurons of 5; a gate without weights is its bias."""
    model = built("classifier")
    masks = with_groups(model, groups(vocabulary=[0, 2, 5], input=[1, 3], hidden_l0=[0, 1, 4], gates_l0=range(1, 20)))
    small = compact(model, masks)
    assert small.embedding.weight.shape == (4, 2) and not small.embedding.weight[3].any()  # and one for all the others
    assert small.head.weight.shape == (2, 3) and type(small.head) is type(model.head)
    assert small.lstm.weight_ih_l0.shape == (12, 2) and small.lstm.weight_hh_l0.shape == (12, 3)
    assert small.embedding._small.kept.tolist() == [0, 2, 5] and small.lstm._small.kept_l0.tolist() == [0, 1, 4]
    parts = layers_of(small.lstm)["_l0"].parts
    assert parts["weight_ih"].shape == (11, 2) and parts["weight_hh"].shape == (11, 3)  # 4 · 3 less gate i0
    assert parts["live"].shape == (4, 3) and parts["bias"].shape == (11,) and parts["constant"].shape == (1,)
    assert parts["constant"].item() == pytest.approx(
        min(1, max(0, 0.2 * float(model.lstm.bias_ih_l0[0] + model.lstm.bias_hh_l0[0]) + 0.5)), abs=1e-15
    )


class Squares(Model):
    """A linear layer that reads each neuron as it is and its square."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = LSTM(V, 5), Linear(10, 2)

    def axes(self):
        hidden, gates = recurrent_axes("lstm", self.lstm, ["head.weight"])
        squared = Member("head.weight", 1, each(5) + 5, "in", degree=2)
        return [replace(hidden, members=(*hidden.members, squared)), gates]

    def forward(self, tokens, lengths=None, state=None):
        y, _ = self.lstm(tokens, lengths=lengths)
        return self.head(torch.cat([y, y * y], 2)), None


def test_the_scale_of_a_neuron_counts_twice_where_a_product_of_two_is_read():
    model, scale, tokens = (
        randomise(Squares()),
        torch.tensor([1.5, 0.0, -0.7, 0.3, 2.0], dtype=torch.float64),
        tokens_for(),
    )
    masks = replace(Masks.all_kept(model), groups={"hidden_l0": scale != 0})
    small = compact(model, masks, {"hidden_l0": scale.where(scale != 0, 9.0)})
    y, _ = model.lstm(tokens, scales={"recurrent_l0": scale[None], "output_l0": scale[None]})
    assert error(small(tokens)[0], model.head(torch.cat([y, y * y], 2))) <= 1e-12
    assert small.head.weight.shape == (2, 8) and small.lstm.weight_hh_l0.shape == (16, 4)


@pytest.mark.parametrize("pattern", ["half of the weights", "neurons removed", "everything in groups"])
def test_shuffling_neurons_changes_nothing(pattern):
    """Neurons renumbered everywhere (rows of all gates, columns, biases, masks, means): the same logits."""
    model, shuffled = built("language model, 2 layers"), built("language model, 2 layers")
    masks = PATTERNS[pattern](model)
    means = random_means(masks)
    orders = [torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2, 0, 4, 1, 3])]
    rows = [torch.cat([order + 5 * gate for gate in range(4)]) for order in orders]
    weights, group, mean = dict(masks.weights), dict(masks.groups), dict(means)
    parameters = {name: p.clone() for name, p in model.named_parameters()}
    for k, (order, row) in enumerate(zip(orders, rows, strict=True)):
        reader = "lstm.weight_ih_l1" if k == 0 else "head.weight"
        for table in (parameters, weights):
            table[f"lstm.weight_ih_l{k}"] = table[f"lstm.weight_ih_l{k}"][row]
            table[f"lstm.weight_hh_l{k}"] = table[f"lstm.weight_hh_l{k}"][row][:, order]
            table[reader] = table[reader][:, order]
        for kind in ("ih", "hh"):
            parameters[f"lstm.bias_{kind}_l{k}"] = parameters[f"lstm.bias_{kind}_l{k}"][row]
        for table in (group, mean):
            for name, where in ((f"hidden_l{k}", order), (f"gates_l{k}", row)):
                if name in table:
                    table[name] = table[name][where]
    shuffled.load_state_dict(parameters)
    small = compact(model, masks, means)
    other = compact(shuffled, Masks(masks.axes, weights, group), mean)
    tokens = tokens_for(9, 4)
    assert error(other(tokens)[0], small(tokens)[0]) <= 1e-12
    assert not torch.equal(other.lstm.weight_hh_l0, small.lstm.weight_hh_l0)


def test_float32_compact_equals_masked_within_1e_5():
    model = built("classifier, 2 layers").float()
    masks = random_masks(model, 3, 0.6)
    tokens = tokens_for()
    small, expected = compact(model, masks)(tokens)[0], masked_by_hand(model.double(), masks, {}, tokens)[0]
    assert small.dtype == torch.float32 and error(small.double(), expected) <= 1e-5


# ---- the file


def assert_same(back, small):
    mine, theirs = back.state_dict(), small.state_dict()
    assert mine.keys() == theirs.keys() and str(back) == str(small) and not back.training
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype and torch.equal(mine[name], tensor), name


@pytest.mark.parametrize(
    "pattern", ["nothing pruned", "a fifth of the weights", "no word", "all gates constant", "neurons removed"]
)
@pytest.mark.parametrize("name", ["classifier", "language model, 2 layers", "bidirectional, 2 layers"])
def test_a_file_gives_back_the_same_model(tmp_path, name, pattern):
    model = built(name).float()
    masks = PATTERNS[pattern](model)
    small = compact(model, masks, {name: mean.float() for name, mean in random_means(masks).items()})
    size = save(small, tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors", model if "bidirectional" in name else None)
    assert size == (tmp_path / "model.safetensors").stat().st_size
    assert_same(back, small)
    tokens = tokens_for()
    assert torch.equal(back(tokens)[0], small(tokens)[0])


def test_a_bag_of_words_comes_back_too(tmp_path):
    model = built("bag of words").float()
    small = compact(model, random_masks(model, 1, 0.5))
    save(small, tmp_path / "bag.safetensors")
    assert torch.equal(load(tmp_path / "bag.safetensors")(tokens_for())[0], small(tokens_for())[0])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.sampled_from(list(MODELS)), st.integers(0, 10_000), share)
def test_any_file_gives_back_every_tensor(tmp_path_factory, name, seed, density):
    model = built(name, seed)
    small = compact(model, random_masks(model, seed, density))
    path = tmp_path_factory.mktemp("files") / "model"
    save(small, path)
    assert_same(load(path, model), small)


def keeping(rows, columns, per_row=None, density=None, seed=0):
    """A mask with `per_row` entries in every row, or a share."""
    generator = torch.Generator().manual_seed(seed)
    if density is not None:
        return torch.rand(rows, columns, generator=generator) < density
    out = torch.zeros(rows, columns, dtype=torch.bool)
    return out.scatter_(1, torch.rand(rows, columns, generator=generator).topk(per_row, 1).indices, True)


def large(vocabulary, words, per_word, embedding=64, hidden=64, density=0.05):
    """A classifier of which `words` of a large vocabulary are kept, each with `per_word` weights."""
    torch.manual_seed(0)
    model = Classifier(vocabulary, 4, embedding=embedding, hidden=hidden)
    masks = random_masks(model, 0, density)
    kept = torch.randperm(vocabulary)[:words]
    masks.weights["embedding.weight"].fill_(False)
    masks.weights["embedding.weight"][kept] = keeping(words, embedding, per_word)
    return model, masks


def assert_small_file(model, masks, path):
    """size ≤ 1.3 × (6 B × weights_stored + 4 B × biases) + 4 kB; a bias is one of a gate of a kept neuron."""
    small = compact(model, masks)
    count = closed_count(close(masks))
    biases = 4 * sum(count.hidden_kept) + len(model.head.bias)
    floor = 6 * count.weights_kept + 4 * biases
    assert size_floor(small) == floor
    assert save(small, path) <= 1.3 * floor + 4096
    assert path.stat().st_size <= sum(4 * p.numel() for p in model.parameters()) + 4096
    return small


@pytest.mark.parametrize("per_word", [1, 4, 64])
@pytest.mark.parametrize("words", [1, 30, 300, 2_080, 4_200, 20_003])
def test_file_size_of_a_classifier_follows_what_is_kept(tmp_path, words, per_word):
    assert_small_file(*large(20_003, words, per_word), tmp_path / "model")


@pytest.mark.parametrize("per_word", [1, 4])
@pytest.mark.parametrize("words", [1, 300, 2_080, 33_278])
def test_file_size_of_the_largest_vocabulary_follows_what_is_kept(tmp_path, words, per_word):
    """33,278 words are WikiText-2's, the most any task has."""
    assert_small_file(*large(33_278, words, per_word), tmp_path / "model")


@pytest.mark.parametrize("density", [0.0005, 0.003, 0.03, 0.3, 0.6, 0.66, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("layers", [1, 2])
def test_file_size_of_a_language_model_follows_what_is_kept(tmp_path, layers, density):
    torch.manual_seed(0)
    model = LanguageModel(10_000, hidden=32, layers=layers)
    masks = random_masks(model, 0, density)
    masks.weights["lstm.weight_hh_l0"][0, 0] = True
    for k in range(layers):
        masks.weights[f"lstm.weight_hh_l{k}"][0, 0] = True
    assert_small_file(model, masks, tmp_path / "model")


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_file_size_of_a_bag_of_words_follows_what_is_kept(tmp_path, density):
    torch.manual_seed(0)
    model = BagOfWords(20_003, 8)
    assert_small_file(model, random_masks(model, 0, density), tmp_path / "model")


@pytest.mark.parametrize(
    ("density", "stored_as"), [(0.02, "scattered"), (0.4, "scattered"), (0.75, "runs"), (1.0, "dense")]
)
def test_a_matrix_is_stored_in_the_way_that_is_smallest(tmp_path, density, stored_as):
    """Of random zeros, in bytes an entry: dense 4, scattered 6 d, in runs 4 d + 4 d (1 − d), which is less from d = 1/2 on."""
    model = LanguageModel(200, hidden=50)
    masks = Masks.all_kept(model)
    masks.weights["lstm.weight_hh_l0"][:] = keeping(200, 50, density=density)
    masks.weights["lstm.weight_ih_l0"][:, 0] = True
    save(compact(model, masks), tmp_path / "model")
    with safe_open(tmp_path / "model", "pt") as file:
        stored = set(file.keys())
        dense = "lstm.weight_hh_l0" in stored
        assert dense == (stored_as == "dense") == ("lstm.weight_hh_l0.values" not in stored)
        assert ("lstm.weight_hh_l0.lengths" in stored) == (stored_as == "runs")
        if not dense:
            assert file.get_tensor("lstm.weight_hh_l0.indices").dtype == torch.uint16
        sparse = json.loads(file.metadata()["sparsernn"])["sparse"]
    assert set(sparse) == {name.removesuffix(".values") for name in stored if name.endswith(".values")}


@pytest.mark.parametrize("words", [70_000, 4])
def test_an_index_above_65535_is_stored_in_32_bits(tmp_path, words):
    """A row 70,000 long: its indices do not fit in 16 bits, nor do the numbers of the last words."""
    model = BagOfWords(70_000, 2)
    masks = Masks.all_kept(model)
    kept = torch.arange(70_000) if words == 70_000 else torch.tensor([5, 65_535, 65_536, 69_999])
    masks.weights["head.weight"][:] = False
    masks.weights["head.weight"][0, kept] = torch.rand(words) < (0.001 if words > 4 else 2)
    masks.weights["head.weight"][1, [5, 65_536, 69_999]] = True
    small = compact(model, masks)
    save(small, tmp_path / "model")
    assert_same(load(tmp_path / "model"), small)


@pytest.mark.parametrize("found", [None, "sparsernn-compact/3"])
@pytest.mark.parametrize("others", [{}, {"format": "pt"}])
def test_a_wrong_format_is_refused_in_words(tmp_path, found, others):
    metadata = others | ({"sparsernn": json.dumps({"format": found})} if found else {})
    save_file({"a": torch.zeros(3)}, tmp_path / "other", metadata or None)
    with pytest.raises(
        ValueError, match=rf"other: format is {found!r}, expected 'sparsernn-compact/2' or 'sparsernn-compact/1'"
    ):
        load(tmp_path / "other")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_a_file_that_is_no_safetensors_is_refused_in_words(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="other.*'sparsernn-compact/2'"):
        load(tmp_path / "other")


def test_a_half_written_file_is_refused_in_words(tmp_path):
    model = built("classifier").float()
    save(compact(model, Masks.all_kept(model)), tmp_path / "model")
    (tmp_path / "model").write_bytes((tmp_path / "model").read_bytes()[:-7])
    with pytest.raises(ValueError, match="model.*'sparsernn-compact/2'"):
        load(tmp_path / "model")


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = built("classifier").float(), tmp_path / "model"
    save(compact(model, Masks.all_kept(model)), path)
    before = path.read_bytes()

    def half_written(temporary, content):
        with temporary.open("wb") as file:
            file.write(content[:4])
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        save(compact(model, random_masks(model, 1, 0.5)), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_path_may_be_text(tmp_path):
    model = built("classifier").float()
    small = compact(model, Masks.all_kept(model))
    assert save(small, str(tmp_path / "a")) == save(small, tmp_path / "b")


def test_a_small_model_can_be_trained_on():
    model = built("classifier").requires_grad_(True)
    small = compact(model, PATTERNS["words removed"](model))
    small(tokens_for())[0].sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert not small.embedding.weight.grad[-1].any()  # the row of removed words stays zero


def test_the_carried_state_of_a_stream_does_not_depend_on_the_others():
    model = built("language model")
    small = compact(model, random_masks(model, 3, 0.6))
    tokens, state = tokens_for(4, 3), None
    together, state = small(tokens)
    then, _ = small(tokens, None, state)
    for b in range(3):
        alone, own = small(tokens[:, b : b + 1])
        assert error(alone, together[:, b : b + 1]) <= 1e-12
        assert error(small(tokens[:, b : b + 1], None, own)[0], then[:, b : b + 1]) <= 1e-12
    assert error(then, together) > 1e-3 and randn(1).dtype == then.dtype
