"""The layer computes the formulas of `nets/layers.py`: torch's own where there is no scale, a step loop's where there is."""

import copy

import pytest
import torch
from oracles import GRADIENTS, VALUES, error, gradients, one_hot, randn, step_loop
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sparsernn.nets.layers import GRU, LSTM, RNN, plain, stand_in

KINDS = ("input", "recurrent", "output", "gates")
CELLS = [(LSTM, "logistic"), (LSTM, "hard"), (GRU, "logistic"), (GRU, "hard"), (RNN, "tanh"), (RNN, "relu")]
LIKE_TORCH = [(cell, act) for cell, act in CELLS if act != "hard"]  # torch knows no hard gates
every_cell = pytest.mark.parametrize(("cell", "act"), CELLS)
every_cell_of_torch = pytest.mark.parametrize(("cell", "act"), LIKE_TORCH)


def layer(inputs, hidden, layers=1, directions=1, dtype=torch.float64, cell=LSTM, act="logistic", spread=1.0):
    torch.manual_seed(0)
    ours = cell(inputs, hidden, layers, bidirectional=directions == 2, activation=act).to(dtype)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(spread)
    return ours


def torch_twin(ours):
    """torch's layer with the same parameters: strict loading also proves names and shapes."""
    shape = {"num_layers": ours.num_layers, "bidirectional": ours.bidirectional}
    shape |= {"nonlinearity": ours.activation} if isinstance(ours, RNN) else {}
    twin = getattr(torch.nn, type(ours).__name__)(ours.input_size, ours.hidden_size, **shape).to(
        ours.weight_hh_l0.dtype
    )
    twin.load_state_dict(ours.state_dict(), strict=True)
    return twin


def initial(ours, batch, seed=7):
    shape = (len(ours.suffixes()), batch, ours.hidden_size)
    states = [randn(*shape, seed=seed + i, dtype=ours.weight_hh_l0.dtype).requires_grad_() for i in (0, 1)]
    return tuple(states) if ours.cell.n_states == 2 else states[0]


def parts(state):
    """A state as a tuple: torch's is one for the LSTM, h alone for GRU and RNN."""
    return (state,) if isinstance(state, torch.Tensor) else tuple(state or ())


def like(state, tensors):
    """`tensors` packed as `state` is."""
    tensors = tuple(tensors)
    return tensors[0] if isinstance(state, torch.Tensor) else tensors


def torch_padded(twin, x, state, lengths, padding):
    """torch's answer: packed when padded on the right; when on the left, each sequence alone without its padding."""
    if padding is None:
        return twin(x, state)
    if padding == "right":
        y, final = twin(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
        return pad_packed_sequence(y, total_length=len(x))[0], final
    ys, finals = [], []
    for b, n in enumerate(lengths.tolist()):
        one = None if state is None else like(state, (s[:, b : b + 1].contiguous() for s in parts(state)))
        y, final = twin(x[len(x) - n :, b : b + 1], one)
        ys.append(torch.cat([y.new_zeros(len(x) - n, 1, y.shape[2]), y]))
        finals.append(parts(final))
    return torch.cat(ys, 1), like(final, (torch.cat(s, 1) for s in zip(*finals, strict=True)))


def assert_same(ours, twin, x, state, answer, reference, dtype):
    (y, final), (y_twin, final_twin) = ((y, parts(final)) for y, final in (answer, reference))
    for a, b in zip((y, *final), (y_twin, *final_twin), strict=True):
        assert error(a, b) <= VALUES[dtype]
    leaves = [x, *parts(state)]
    names = ["input", "h", "c"][: len(leaves)] + [name for name, _ in ours.named_parameters()]
    mine = gradients((y, *final), leaves + list(ours.parameters()))
    theirs = gradients((y_twin, *final_twin), leaves + [twin.get_parameter(n) for n, _ in ours.named_parameters()])
    for name, a, b in zip(names, mine, theirs, strict=True):
        assert error(a, b) <= GRADIENTS[dtype], name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@every_cell_of_torch
def test_a_layer_equals_torch_in_values_and_all_gradients(cell, act, layers, directions, padding, given_state, dtype):
    ours = layer(4, 5, layers, directions, dtype, cell, act)
    twin, x = torch_twin(ours), randn(7, 3, 4, dtype=dtype).requires_grad_()
    state = initial(ours, 3) if given_state else None
    lengths = None if padding is None else torch.tensor([4, 7, 1])
    answer = ours(x, state, lengths=lengths, padding=padding or "right")
    assert_same(ours, twin, x, state, answer, torch_padded(twin, x, state, lengths, padding), dtype)


@pytest.mark.parametrize("padding", [None, "right", "left"])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"), [(1, 3, 4, 5), (6, 1, 4, 5), (6, 3, 4, 1), (6, 3, 1, 5), (1, 1, 1, 1)]
)
@every_cell_of_torch
def test_a_layer_equals_torch_at_size_one(cell, act, steps, batch, inputs, hidden, padding):
    ours = layer(inputs, hidden, 2, 2, cell=cell, act=act)
    twin, x = torch_twin(ours), randn(steps, batch, inputs).requires_grad_()
    lengths = None if padding is None else torch.tensor([max(1, steps - 2 * b) for b in range(batch)])
    state = initial(ours, batch)
    answer = ours(x, state, lengths=lengths, padding=padding or "right")
    assert_same(ours, twin, x, state, answer, torch_padded(twin, x, state, lengths, padding), torch.float64)


@pytest.mark.parametrize("view", ["batch first", "every other column", "expanded"])
def test_non_contiguous_input_equals_torch(view):
    ours = layer(4, 5, 2)
    twin = torch_twin(ours)
    views = {
        "batch first": lambda: randn(3, 7, 4).transpose(0, 1),
        "every other column": lambda: randn(7, 3, 8)[..., ::2],
    }
    x = views.get(view, lambda: randn(7, 1, 4).expand(7, 3, 4))().requires_grad_()
    state = tuple(randn(3, 2, 5, seed=i).transpose(0, 1).requires_grad_() for i in (1, 2))
    assert not x.is_contiguous() and not state[0].is_contiguous()
    assert_same(ours, twin, x, state, ours(x, state), twin(x, tuple(s.contiguous() for s in state)), torch.float64)


@every_cell_of_torch
@pytest.mark.parametrize("bias", [True, False])
def test_from_torch_and_back(cell, act, bias):
    ours = layer(4, 5, 2, 2, cell=cell, act=act)
    torchs = torch_twin(ours) if bias else getattr(torch.nn, cell.__name__)(4, 5, 2, bias=False).double()
    x, kind, parameters = randn(7, 3, 4), type(torchs), list(torchs.parameters())
    before = torchs(x)[0]
    swapped = stand_in(torchs)
    assert swapped is torchs and type(swapped) is cell and isinstance(swapped, kind)
    assert all(a is b for a, b in zip(swapped.parameters(), parameters, strict=True))
    assert error(swapped(x)[0], before) <= 1e-12
    again = plain(swapped)
    assert type(again) is kind and torch.equal(again(x)[0], before)


@every_cell_of_torch
@pytest.mark.parametrize("form", ["batch first", "unbatched", "packed", "keyword"])
def test_a_stand_in_is_called_as_torch_s_layer(cell, act, form):
    theirs = getattr(torch.nn, cell.__name__)(4, 5, 2, batch_first=form == "batch first", bidirectional=True).double()
    if act == "relu":
        theirs = torch.nn.RNN(
            4, 5, 2, nonlinearity="relu", batch_first=form == "batch first", bidirectional=True
        ).double()
    ours = stand_in(copy.deepcopy(theirs))
    state = [randn(4, 3, 5, seed=i) for i in range(ours.cell.n_states)]
    state = tuple(state) if len(state) == 2 else state[0]
    if form == "unbatched":
        x, hx = randn(7, 4), tuple(s[:, 0] for s in state) if isinstance(state, tuple) else state[:, 0]
    elif form == "packed":
        x, hx = pack_padded_sequence(randn(7, 3, 4), torch.tensor([2, 7, 4]), enforce_sorted=False), state
    else:
        x, hx = randn(*((3, 7, 4) if form == "batch first" else (7, 3, 4))), state
    (y, final), (expected, last) = ours(input=x, hx=hx), theirs(x, hx)
    if form == "packed":
        y, expected = y.data, expected.data
    assert error(y, expected) <= 1e-12
    for a, b in zip(parts(final), parts(last), strict=True):
        assert error(a, b) <= 1e-12


def test_what_torch_has_not_is_refused_in_words():
    with pytest.raises(ValueError, match="torch has no hard gates"):
        plain(layer(4, 5, act="hard"))
    with pytest.raises(ValueError, match="proj_size is 2; projections are not supported"):
        stand_in(torch.nn.LSTM(4, 5, proj_size=2))
    with pytest.raises(ValueError, match="Conv1d is none of LSTM, GRU, RNN, Linear, Embedding"):
        stand_in(torch.nn.Conv1d(4, 5, 1))


# ---- scales


def scales_for(ours, kinds, rows, seed=20):
    """Scales around 1, some negative, every one a leaf."""
    scales = {}
    for suffix in ours.suffixes():
        widths = {"input": getattr(ours, "weight_ih" + suffix).shape[1], "recurrent": ours.hidden_size}
        widths |= {"output": ours.hidden_size, "gates": len(ours.cell.gates) * ours.hidden_size}
        for kind in kinds:
            z = 1 + 0.7 * randn(rows, widths[kind], seed=seed + len(scales))
            scales[kind + suffix] = z.requires_grad_()
    return scales


def assert_equals_loop(ours, x, scales, lengths, padding, tokens=None):
    """Values, and gradients of inputs, states, scales and parameters, against the step loop in float64."""
    state = initial(ours, x.shape[1])
    how = {"scales": scales, "lengths": lengths, "padding": padding}
    y, final = ours(x if tokens is None else tokens, state, **how)
    y_loop, final_loop = step_loop(ours, dict(ours.named_parameters()), x, state, **how)
    state, final, final_loop = parts(state), parts(final), parts(final_loop)
    for a, b in zip((y, *final), (y_loop, *final_loop), strict=True):
        assert error(a, b) <= 1e-12
    leaves = dict(ours.named_parameters()) | scales | dict(zip("hc", state, strict=False))
    leaves |= {} if tokens is not None else {"input": x}
    pairs = (gradients((a, *b), list(leaves.values())) for a, b in ((y, final), (y_loop, final_loop)))
    for name, a, b in zip(leaves, *pairs, strict=True):
        assert error(a, b) <= 1e-12, name


@pytest.mark.parametrize("padding", [None, "left", "right"])
@every_cell
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="+".join)
def test_a_scaled_layer_equals_the_step_loop(kinds, rows, cell, act, padding):
    ours = layer(
        4, 5, cell=cell, act=act, spread=4.0 if act == "hard" else 1.0
    )  # wide enough for hard gates to reach 0 and 1
    x, lengths = 2 * randn(6, 3, 4), None if padding is None else torch.tensor([3, 6, 1])
    assert_equals_loop(ours, x.requires_grad_(), scales_for(ours, kinds, rows), lengths, padding or "right")


def test_hard_gates_of_these_tests_are_open_shut_and_between():
    ours = layer(4, 5, act="hard", spread=4.0)
    a = torch.nn.functional.linear(2 * randn(6, 3, 4), ours.weight_ih_l0, ours.bias_ih_l0 + ours.bias_hh_l0)
    gate = (0.2 * a + 0.5).clip(0, 1)
    assert (gate == 0).any() and (gate == 1).any() and ((gate > 0) & (gate < 1)).any()


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("layers", "directions"), [(2, 1), (1, 2), (2, 2)])
@every_cell_of_torch
def test_a_scaled_stack_equals_the_step_loop(cell, act, layers, directions, rows, padding):
    ours = layer(4, 5, layers, directions, cell=cell, act=act)
    lengths = None if padding is None else torch.tensor([3, 6, 1])
    x = randn(6, 3, 4).requires_grad_()
    assert_equals_loop(ours, x, scales_for(ours, KINDS, rows), lengths, padding or "right")


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("kinds", [(), ("input",), KINDS], ids=lambda kinds: "+".join(kinds) or "none")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("directions", [1, 2])
@every_cell_of_torch
def test_token_ids_equal_an_explicit_one_hot_matrix(cell, act, directions, rows, kinds, padding):
    ours = layer(4, 5, 1, directions, cell=cell, act=act)
    tokens = torch.tensor([[0, 3, 1], [2, 3, 1], [0, 0, 3], [2, 3, 1], [2, 1, 0]])  # words repeat, within and across
    lengths = None if padding is None else torch.tensor([3, 5, 1])
    assert_equals_loop(ours, one_hot(tokens, 4), scales_for(ours, kinds, rows), lengths, padding or "right", tokens)


def test_one_tensor_as_recurrent_and_output_scale_gets_both_gradients():
    ours, x, z = layer(4, 5), randn(6, 3, 4), (1 + randn(3, 5, seed=3)).requires_grad_()
    loop = step_loop(ours, dict(ours.named_parameters()), x, scales={"recurrent_l0": z, "output_l0": z})[0]
    y = ours(x, scales={"recurrent_l0": z, "output_l0": z})[0]
    assert error(gradients([y], [z])[0], gradients([loop], [z])[0]) <= 1e-12


@every_cell
@pytest.mark.parametrize("rows", [1, 2])
def test_gradcheck_with_every_scale(rows, cell, act):
    ours = layer(2, 3, cell=cell, act=act)
    scales, state = scales_for(ours, KINDS, rows), initial(ours, 2)
    x, names = randn(4, 2, 2).requires_grad_(), [name for name, _ in ours.named_parameters()]

    def run(x, *rest):
        given = iter(rest)
        carried = like(state, [next(given) for _ in parts(state)])
        drawn = {name: next(given) for name in scales}
        weights = {name: next(given) for name in names}
        how = {"scales": drawn, "lengths": torch.tensor([4, 2]), "padding": "left"}
        y, final = torch.func.functional_call(ours, weights, (x, carried), how)
        return y, *parts(final)

    assert torch.autograd.gradcheck(run, (x, *parts(state), *scales.values(), *ours.parameters()))


@pytest.mark.parametrize("rows", [1, 3])
@every_cell_of_torch
def test_zero_noise_equals_torch(cell, act, rows):
    ours = layer(4, 5, 2, 2, cell=cell, act=act)
    ones = {name: torch.ones_like(z) for name, z in scales_for(ours, KINDS, rows).items()}
    x = randn(7, 3, 4).requires_grad_()
    assert_same(ours, twin := torch_twin(ours), x, None, ours(x, scales=ones), twin(x), torch.float64)


# ---- rounded products


@pytest.mark.parametrize("scaled", [False, True])
@every_cell
def test_rounding_the_state_s_products_costs_three_digits_and_only_where_it_is_asked_for(cell, act, scaled):
    ours, x = layer(6, 8, cell=cell, act=act, dtype=torch.float32), randn(9, 3, 6, dtype=torch.float32)
    scales = {name: z.detach().float().requires_grad_() for name, z in scales_for(ours, KINDS * scaled, 3).items()}
    leaves = [*ours.parameters(), *scales.values()]

    def run(rounds):
        ours.rounds_state = rounds
        y, final = ours(x, scales=scales)
        return [y, *gradients((y, *parts(final)), leaves)]

    def inside(rounds):
        with torch.autocast("cpu", torch.bfloat16):
            return run(rounds)

    plain, alone, both = run(False), inside(False), inside(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, run(True), strict=True))  # no autocast, no rounding
    assert {t.dtype for t in both} == {torch.float32}
    assert error(both[0], plain[0]) <= 2e-2 and error(both[0], alone[0]) > 1e-6
    for name, a, b in zip([*dict(ours.named_parameters()), *scales], both[1:], plain[1:], strict=True):
        assert error(a, b) <= 5e-2, name


# ---- states and padding


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("padding", ["left", "right"])
@every_cell_of_torch
def test_padded_steps_keep_the_state_and_return_zero(cell, act, padding, scaled):
    ours, lengths = layer(4, 5, cell=cell, act=act), torch.tensor([3, 6, 1])
    scales = scales_for(ours, KINDS, 3) if scaled else None
    x, state = randn(6, 3, 4), initial(ours, 3)
    time = torch.arange(6)[:, None]
    padded = time >= lengths if padding == "right" else time < 6 - lengths
    y, final = ours(x, state, scales, lengths, padding)
    assert (y[padded] == 0).all() and ((y[~padded] != 0).all() or act == "relu")
    elsewhere = torch.where(padded[:, :, None], 1e3 * randn(6, 3, 4, seed=5), x)
    y_other, final_other = ours(elsewhere, state, scales, lengths, padding)
    assert torch.equal(y, y_other) and all(map(torch.equal, parts(final), parts(final_other)))


@every_cell_of_torch
def test_a_sequence_of_length_zero_returns_its_initial_state(cell, act):
    ours, x = layer(4, 5, 2, 2, cell=cell, act=act), randn(6, 2, 4)
    for padding in ("left", "right"):
        y, final = ours(x, state := initial(ours, 2), lengths=torch.tensor([0, 6]), padding=padding)
        pairs = zip(parts(final), parts(state), strict=True)
        assert (y[:, 0] == 0).all() and all(torch.equal(a[:, 0], b[:, 0]) for a, b in pairs)


@pytest.mark.parametrize("scaled", [False, True])
def test_last_output_is_that_of_the_last_real_step(scaled):
    ours, lengths, x = layer(4, 5), torch.tensor([3, 6, 1]), randn(6, 3, 4)
    scales = scales_for(ours, KINDS, 1) if scaled else None
    y, _ = ours(x, scales=scales, lengths=lengths, padding="left")
    for b, n in enumerate(lengths.tolist()):
        alone, _ = ours(x[6 - n :, b : b + 1], scales=scales)
        assert error(y[-1, b], alone[-1, 0]) <= 1e-12


@every_cell_of_torch
def test_the_carried_state_is_never_scaled(cell, act):
    """One step: h' is unscaled although y and the next read are scaled."""
    ours, x = layer(4, 5, cell=cell, act=act), randn(1, 3, 4)
    scales = {"output_l0": torch.full((1, 5), 3.0, dtype=torch.float64), "recurrent_l0": torch.zeros(1, 5).double()}
    y, state = ours(x, scales=scales)
    plain, unscaled = ours(x)
    assert torch.equal(y, 3 * plain) and all(map(torch.equal, parts(state), parts(unscaled)))


@pytest.mark.parametrize("scaled", [False, True])
@every_cell_of_torch
def test_a_carried_state_continues_the_sequence(cell, act, scaled):
    ours, x = layer(4, 5, 2, cell=cell, act=act), randn(9, 3, 4)
    scales = scales_for(ours, KINDS, 3) if scaled else None
    whole, final = ours(x, scales=scales)
    ys, state = [], None
    for window in x.split([4, 1, 4]):
        y, state = ours(window, state, scales)
        ys.append(y)
    assert error(torch.cat(ys), whole) <= 1e-12
    assert max(error(a, b) for a, b in zip(parts(state), parts(final), strict=True)) <= 1e-12


@every_cell_of_torch
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_without_gradients_the_values_are_the_same_bit_for_bit(steps, cell, act):
    ours, x = layer(4, 5, 2, 2, cell=cell, act=act), randn(steps, 3, 4)
    lengths = torch.tensor([steps, 1, (steps + 1) // 2])
    frozen, state = copy.deepcopy(ours).requires_grad_(False), initial(ours, 3)
    for padding in ("left", "right"):
        for scales in ({}, scales_for(ours, KINDS, 3)):
            y, final = ours(x, state, scales, lengths, padding)
            still = like(state, (s.detach() for s in parts(state)))
            y_frozen, final_frozen = frozen(x, still, {k: z.detach() for k, z in scales.items()}, lengths, padding)
            assert not y_frozen.requires_grad and torch.equal(y, y_frozen)
            assert all(map(torch.equal, parts(final), parts(final_frozen)))


@pytest.mark.parametrize("learned", ["input", "recurrent", "output", "gates", "bias_hh_l0", "weight_ih_l0", "h"])
@every_cell_of_torch
def test_gradients_of_one_part_do_not_need_the_others(cell, act, learned):
    ours = layer(4, 5, cell=cell, act=act)
    scales, state, x = scales_for(ours, KINDS, 3), initial(ours, 3), randn(6, 3, 4)
    every = (
        dict(ours.named_parameters()) | {k.removesuffix("_l0"): z for k, z in scales.items()} | {"h": parts(state)[0]}
    )
    full = gradients([ours(x, state, scales)[0]], [every[learned]])[0]
    for leaf in (*every.values(), *parts(state)):
        leaf.requires_grad_(leaf is every[learned])
    assert error(gradients([ours(x, state, scales)[0]], [every[learned]])[0], full) <= 1e-12


def test_the_gradient_can_be_taken_twice_from_one_forward():
    ours = layer(4, 5)
    y, final = ours(randn(6, 3, 4), scales=scales_for(ours, KINDS, 3))
    first = torch.autograd.grad((y * y).sum() + final[1].sum(), list(ours.parameters()), retain_graph=True)
    again = torch.autograd.grad((y * y).sum() + final[1].sum(), list(ours.parameters()))
    assert all(map(torch.equal, first, again))


# ---- errors a stranger can act on


@pytest.mark.parametrize(
    ("scale", "shape", "said"),
    [
        ("recurent_l0", (1, 5), r"no scale 'recurent_l0' in this layer; scales: .*recurrent_l0"),
        ("recurrent_l1", (1, 5), r"no scale 'recurrent_l1' in this layer; scales: .*recurrent_l0"),
        ("gates", (1, 20), r"no scale 'gates' in this layer; scales: .*gates_l0"),
        ("recurrent_l0", (1, 4), r"'recurrent_l0' has shape \(1, 4\), expected \(3 or 1, 5\)"),
        ("input_l0", (1, 5), r"'input_l0' has shape \(1, 5\), expected \(3 or 1, 4\)"),
        ("output_l0", (2, 5), r"'output_l0' has shape \(2, 5\), expected \(3 or 1, 5\)"),
        ("gates_l0", (3, 5), r"'gates_l0' has shape \(3, 5\), expected \(3 or 1, 20\)"),
        ("gates_l0", (20,), r"'gates_l0' has shape \(20,\), expected \(3 or 1, 20\)"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused_in_words(scale, shape, said):
    with pytest.raises(ValueError, match=said):
        layer(4, 5)(randn(6, 3, 4), scales={scale: torch.ones(shape).double()})


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(6, 3, 5).double(), r"input has shape \(6, 3, 5\), expected \(T, B, 4\)"),
        (torch.zeros(6, 5).double(), r"input has shape \(6, 1, 5\), expected \(T, B, 4\)"),
        (torch.zeros(6, 3, 4).long(), r"token ids have shape \(6, 3, 4\), expected \(T, B\)"),
        (torch.zeros(0, 3, 4).double(), "no time step"),
        (torch.zeros(0, 3).long(), "no time step"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_in_words(x, said):
    with pytest.raises(ValueError, match=said):
        layer(4, 5)(x)


def test_an_unknown_padding_is_refused_in_words():
    with pytest.raises(ValueError, match="padding is 'centre'; allowed: 'left', 'right'"):
        layer(4, 5)(randn(6, 3, 4), lengths=torch.tensor([6, 6, 6]), padding="centre")


def test_an_unknown_activation_is_refused_in_words():
    with pytest.raises(ValueError, match="activation is 'hardsigmoid'; a LSTM has logistic or hard"):
        LSTM(4, 5, activation="hardsigmoid")


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (torch.tensor([6, 7, 1]), r"lengths.*7.*6"),
        (torch.tensor([6, -1, 1]), r"lengths.*-1"),
        (torch.tensor([6, 6]), r"lengths.*\(2,\).*\(3,\)"),
    ],
)
def test_lengths_that_do_not_fit_are_refused_in_words(lengths, said):
    with pytest.raises(ValueError, match=said):
        layer(4, 5)(randn(6, 3, 4), lengths=lengths)


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 5), (1, 3, 4), (3, 5)])
def test_a_state_that_does_not_fit_is_refused_in_words(shape):
    with pytest.raises(ValueError, match=r"state.*expected.*\(1, 3, 5\)"):
        layer(4, 5)(randn(6, 3, 4), (torch.zeros(shape).double(),) * 2)
