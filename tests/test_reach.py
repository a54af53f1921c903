"""int8 goes as far as training did: how far is noted in the small model's file, and engines keep to it."""

import pytest
import torch
from oracles import error
from torch import nn

from sparsernn import compact, load, save
from sparsernn.engines.models import layers_of
from sparsernn.engines.whole import by_engine, saturated
from sparsernn.nets.reach import calibrate

WIDTH = 4


class Own(nn.Module):
    """Numbers → GRU → linear; `wide` more that int8 has to be told of on its way."""

    def __init__(self, levels=1):
        super().__init__()
        self.gru, self.head = nn.GRU(WIDTH, 12, levels), nn.Linear(12, 3)
        with torch.no_grad():
            self.gru.weight_hh_l0[:, ::3] = 0
            self.gru.weight_ih_l0[3] = 0
            self.gru.weight_hh_l0[3] = 0

    def forward(self, x):
        return self.head(self.gru(x)[0][-1])


def numbers(most, seed=0):
    x = torch.randn(6, 3, WIDTH, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)
    x[0, 0, 0] = most
    return x


@pytest.fixture
def small():
    torch.manual_seed(0)
    return compact(Own().eval(), example=numbers(5.0))[0]


def test_what_is_given_as_an_example_says_how_far_numbers_go(small):
    assert small.gru._small.reach == 5.0
    assert 0 < small.head._small.reach <= 1


def test_it_is_in_the_file(small, tmp_path):
    save(small, tmp_path / "small.safetensors")
    assert load(tmp_path / "small.safetensors", Own()).gru._small.reach == 5.0


def test_a_user_who_has_training_data_measures_on_it(small):
    reached = calibrate(small, [numbers(2.0), numbers(-7.5), numbers(3.0)])
    assert reached["gru"] == small.gru._small.reach == 7.5


def test_an_engine_keeps_to_it_whatever_it_meets_first(small):
    """A quiet sequence first does not cut the loud one off that training had."""
    assert layers_of(small.gru)["_l0"].reach == 5.0
    fast = by_engine(small, "c-int8", numbers(1.0))
    fast(numbers(1.0))
    assert error(fast(numbers(5.0)), small(numbers(5.0))) <= 0.1
    assert saturated(fast) == 0
    fast(numbers(50.0))
    assert saturated(fast) == 1


def test_what_stands_above_reads_states_that_are_bounded():
    torch.manual_seed(0)
    small = compact(Own(levels=2).eval(), example=numbers(5.0))[0]
    assert [layer.reach for layer in layers_of(small.gru).values()] == [5.0, 1.0]


def test_a_file_of_nonsense_is_refused(small, tmp_path):
    small.gru._small.reach = -3.0
    save(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="'gru' is said to read numbers up to -3.0"):
        load(tmp_path / "small.safetensors", Own())


def test_numbers_that_are_none_are_not_noted(small):
    assert "gru" not in calibrate(small, [torch.full((6, 3, WIDTH), torch.nan)])
