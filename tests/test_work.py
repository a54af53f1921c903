"""How many multiplications with weights a step takes, against what is counted by hand."""

import pytest
import torch
from oracles import random_masks, random_means, randomise

from sparsernn.nets.bidaf import PER_QUESTION, BiDAF
from sparsernn.nets.compact import compact
from sparsernn.nets.masks import close, closed_count
from sparsernn.nets.models import BagOfWords, Classifier, LanguageModel, StackedLanguageModel
from sparsernn.nets.speech import SpeechModel
from sparsernn.nets.work import STEPS, multiply_adds

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("cell", GATES)
def test_of_a_dense_net_every_weight_counts_that_is_not_looked_up(cell):
    model = randomise(Classifier(11, 3, 5, 7, layers=2, cell=cell))
    stack, g = model.recurrent, GATES[cell]
    assert multiply_adds(model) == g * 7 * (5 + 7 + 7 + 7) + 3 * 7 / STEPS, "the verdict is asked for once"
    assert stack.weight_ih_l0.shape == (g * 7, 5) and model.training
    assert multiply_adds(randomise(LanguageModel(11, 7, cell=cell))) == g * 7 * 7 + 11 * 7, "one-hot input is a look-up"
    tied = randomise(StackedLanguageModel(11, 7, 7, 1, cell=cell, tied=True))
    assert multiply_adds(tied) == g * 7 * 14 + 11 * 7, "a tied embedding is looked up, and multiplied at the end"
    assert multiply_adds(randomise(BagOfWords(500, 2))) == 1000 / STEPS


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("seed", range(3))
def test_a_small_net_multiplies_what_it_stores_but_for_words(cell, seed):
    model = randomise(LanguageModel(11, 7, cell=cell), seed).double()
    masks = random_masks(model, seed)
    closed = close(masks)
    words = int(closed.weights[f"{cell.lower()}.weight_ih_l0"].sum())
    small = compact(model, masks, random_means(masks, seed))
    assert multiply_adds(small) == closed_count(closed).weights_kept - words


def test_zeros_are_left_out():
    model = randomise(LanguageModel(11, 7))
    with torch.no_grad():
        model.lstm.weight_hh_l0[:, 1:] = 0
    assert multiply_adds(model) == 28 + 77


@pytest.mark.parametrize("cell", GATES)
def test_a_row_of_both_matrices_is_multiplied_once_but_where_n_keeps_them_apart(cell):
    model, g = randomise(Classifier(11, 3, 20, 30, cell=cell)), GATES[cell]
    with torch.no_grad():
        stack = model.recurrent
        stack.weight_ih_l0[:25] = stack.weight_hh_l0[:25, :20]
    once = 0 if cell == "GRU" else 25 * 20
    assert multiply_adds(model) == g * 30 * 50 - once + 3 * 30 / STEPS


def test_a_row_of_one_matrix_is_multiplied_once_and_one_that_is_looked_up_is_no_copy():
    model = randomise(LanguageModel(40, 7))
    with torch.no_grad():
        model.lstm.weight_ih_l0[:20, :7] = model.lstm.weight_hh_l0[:20]
    assert multiply_adds(model) == 28 * 7 + 40 * 7
    with torch.no_grad():
        model.lstm.weight_hh_l0[:10] = model.lstm.weight_hh_l0[10:20]
    assert multiply_adds(model) == 18 * 7 + 40 * 7


def test_a_recogniser_pays_for_its_convolution_and_once_for_a_shared_input():
    model = randomise(SpeechModel(13, 4, 6, layers=2, stride=2, channels=2))
    convolution = (
        2 * 11 * 11 * 4
    )  # numbers it says a step that goes on, each of 121 weights: 2 channels, ceil(13 / 4) rows
    layers = (6 * 8 + 2 * 6 * 6) + (6 * 6 + 2 * 6 * 6)
    assert multiply_adds(model) == (convolution + layers + 4 * 6) / 2, "every other frame goes on"
    ahead = randomise(SpeechModel(13, 4, 6, layers=1, cell="GRU", activation="logistic", bidirectional=False, window=3,
                                  stride=2, channels=2))  # fmt: skip
    assert multiply_adds(ahead) == (convolution + 18 * (8 + 6) + 3 * 6 + 4 * 6) / 2


def test_a_reader_pays_for_letters_of_paragraph_and_question():
    model = randomise(BiDAF(11, 9, word_size=4, letter_size=2, filters=3, hidden=3))
    both, lstm, asked = 6, lambda width: 2 * 12 * (width + 3), -(-STEPS // PER_QUESTION)
    read = 5 * (3 * 2 * 5) + 4 * 7 * 7 + lstm(7)  # of five letters each, filters of five; two highways; an LSTM
    after = lstm(4 * both) + lstm(both) + lstm(7 * both) + 2 * 5 * both
    alike = both * asked + both + both * asked / STEPS  # each word against each of the question, and both alone
    assert multiply_adds(model) == pytest.approx(read * (1 + asked / STEPS) + after + alike, rel=1e-12)
