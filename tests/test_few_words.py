"""Few words: a dense net to which symbols beyond the most frequent ones are nothing, from the first step on."""

import pytest
import torch
from torch import nn

import sparsernn
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

pytestmark = pytest.mark.usefixtures("as_it_was")


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("kind", [sparsernn.nets.models.Classifier, sparsernn.nets.models.LanguageModel])
def test_words_beyond_the_vocabulary_never_count_and_all_else_is_dense(kind, cell):
    torch.manual_seed(0)
    sizes = {"vocabulary": 20, "hidden": 5} | ({"classes": 2, "embedding": 4} if kind.__name__ == "Classifier" else {})
    model = kind(**sizes, cell=cell).double()
    study = sparsernn.attach(model, "few-words", steps=20, n_examples=8, words=6)
    name = "embedding.weight" if "classes" in sizes else f"{cell.lower()}.weight_ih_l0"
    optimizer = torch.optim.SGD(study.parameter_groups(lr=0.1), momentum=0.9)
    tokens = torch.randint(20, (7, 8), generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        optimizer.zero_grad()
        model(tokens)[0].square().sum().backward()
        optimizer.step(), study.after_step()
    masks = study.masks().weights
    read = masks.pop(name) if name == "embedding.weight" else masks.pop(name).T
    assert read[:6].all() and not read[6:].any() and all(mask.all() for mask in masks.values())
    unknown = torch.randint(6, 20, (7, 3), generator=torch.Generator().manual_seed(2))
    model.eval()
    assert torch.equal(*(model(words)[0] for words in (unknown, torch.full_like(unknown, 19)))), "all the same to it"
    small, proof = sparsernn.compact(model, example=tokens)
    assert proof.error < 1e-9 and small(unknown)[0].allclose(model(unknown)[0])


def test_a_small_vocabulary_is_counted_and_stored_as_one():
    run = ensure(RunConfig("tiny-topic", method="few-words", profile="quick", words=10, epochs=1))
    whole = ensure(RunConfig("tiny-topic", method="dense", profile="quick", epochs=1)).record
    width, words = run.model.embedding.embedding_dim, len(run.task.vocabulary)
    assert whole["weights_kept"] - run.record["weights_kept"] == (words - 10) * width
    assert run.record["vocabulary_kept"] == 10
    assert run.record["compact_error"] < 1e-12 and run.record["schedule"].endswith("10 words")


def test_a_model_that_reads_no_ids_is_refused():
    class Numbers(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.LSTM(3, 4)

        def forward(self, x):
            return self.stack(x)[0]

    with pytest.raises(ValueError, match="few-words needs a layer that reads ids"):
        sparsernn.attach(Numbers(), "few-words", steps=2, n_examples=2, example=torch.zeros(2, 1, 3))


def test_a_vocabulary_that_is_none_and_an_embedding_that_is_the_output_too_are_refused():
    model = sparsernn.nets.models.Classifier(vocabulary=20, classes=2, embedding=4, hidden=5)
    with pytest.raises(ValueError, match="words is 20; it must be below the 20 symbols"):
        sparsernn.attach(model, "few-words", steps=2, n_examples=2, words=20)
    tied = sparsernn.nets.models.StackedLanguageModel(20, embedding=4, hidden=4, layers=1, tied=True)
    with pytest.raises(ValueError, match="embedding.weight is the output's too"):
        sparsernn.attach(tied, "few-words", steps=2, n_examples=2, words=5)
