"""Reading: questions and paragraphs become batches and answers become words again, split by article, scored officially."""

import json
import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import questions
import torch

matplotlib.use("agg")

from sparsernn import tasks
from sparsernn.nets.bidaf import BiDAF
from sparsernn.report import plots
from sparsernn.study.config import RunConfig
from sparsernn.study.evaluation import evaluate, examine, mistakes
from sparsernn.study.opponents import count_back_off
from sparsernn.study.training import Session
from sparsernn.tasks import corpora, squad
from sparsernn.tasks.base import SPLITS
from sparsernn.tasks.squad import exact_match, f1, normalised, of_articles
from sparsernn.tasks.words import OOV, PAD


def asked(question, answers, context, place=None):
    """One article with one paragraph and one question."""
    start = context.index(answers[0]) if place is None else place
    given = [{"text": text, "answer_start": start} for text in answers]
    return {
        "title": "one",
        "paragraphs": [{"context": context, "qas": [{"id": "1", "question": question, "answers": given}]}],
    }


def tiny(*train, test=None):
    """Those articles are the training; validation is another one."""
    size = len(train)
    held_out = int(np.random.RandomState(squad.SEED).permutation(size + 1)[0])
    every = [*train[:held_out], *questions.articles(2), *train[held_out:]]
    return of_articles("tiny", every, test or questions.articles(2, seed=1), "short")


@pytest.fixture
def registered(as_it_was):
    questions.register()
    return tasks.load("tiny-squad", "quick")


# ---- the official rules


@pytest.mark.parametrize("text, expected", [
    ("The  Cat, an Apple!", "cat apple"),
    ("a.b-c's", "abcs"),
    ("theatre and a\tband\n", "theatre and band"),
    ("U.S.A. (the 3rd)", "usa 3rd"),
    ("A", ""),
    ("naïve – café", "naïve – café"),
])  # fmt: skip
def test_texts_are_compared_without_case_punctuation_and_articles(text, expected):
    assert normalised(text) == expected


def test_exact_match_and_f1_are_those_of_the_official_rules():
    assert exact_match("the Saint Bernadette", ["Bernadette", "Saint Bernadette."]) == 1
    assert exact_match("Saint Bernadette Soubirous", ["Saint Bernadette"]) == 0
    assert f1("the big red dog", ["a red dog house"]) == pytest.approx(2 / 3)  # 2 of 3 words, 2 of 3
    assert f1("red", ["the red red dog"]) == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))
    assert f1("red red", ["red dog"]) == pytest.approx(0.5)  # a word counts as often as both have it
    assert f1("blue", ["red", "the blue sky", "green"]) == pytest.approx(2 / 3)  # of the best answer
    assert f1("blue", ["red"]) == 0 and f1("", ["red"]) == 0 and f1("Red!", ["red"]) == 1


# ---- words, letters, spans


def test_an_answer_is_the_words_it_touches_and_comes_back_as_it_stands():
    context = "Nobody—not even Dr. Émile O'Neill—paid $3.5 million in 1904."
    task = tiny(asked("Who paid?", ["Dr. Émile O'Neill"], context), asked("How much?", ["$3.5 million"], context))
    for batch in task.batches("train", 2):
        logits = torch.zeros(len(batch.inputs[0]), 2, 2)
        for end in (0, 1):
            logits[batch.targets[:, end], torch.arange(2), end] = 9.0
        assert sorted(task.said(logits, batch)) == sorted(["Dr. Émile O'Neill", "$3.5 million"])
    text, places = task.paragraph("train", 0)
    words = "Nobody — not even Dr . Émile O ' Neill — paid $ 3 . 5 million in 1904 ."
    assert text == context and " ".join(text[a:b] for a, b in places) == words


def test_ids_are_those_of_the_words_and_letters_their_codes():
    twice = asked("The Éclair?", ["big"], "A big Éclair, a big Łódź. the")
    task = tiny(twice)
    words, letters, question, question_letters = next(task.batches("train", 1)).inputs
    spelt = ["A", "big", "Éclair", ",", "a", "big", "Łódź", ".", "the"]
    assert [task.vocabulary[i] for i in words[:, 0]] == [
        "a",
        "big",
        "éclair",
        "<oov>",
        "a",
        "big",
        "<oov>",
        "<oov>",
        "the",
    ]
    assert [task.vocabulary[i] for i in question[:, 0]] == ["the", "éclair", "<oov>"]
    for row, word in zip(letters[:, 0], spelt, strict=True):
        assert row.tolist() == ([ord(c) if ord(c) < 256 else 1 for c in word] + [0] * 16)[:16]
    assert question_letters.shape == (3, 1, 16)


def test_answers_that_are_not_whole_words_are_left_out_of_training_alone():
    whole = asked("Which year?", ["1904"], "It was in 1904s or 1904.", place=19)
    part = asked("Which year?", ["1904"], "It was in 1904s or 1904.", place=10)
    task = tiny(whole, part, test=[part])
    assert task.n_examples == 1 and len(task.splits["test"]["spans"]) == 1
    assert "1 training questions left out" in task.data_note
    assert task.splits["train"]["spans"].tolist() == [[5, 5]] and task.splits["test"]["spans"].tolist() == [[3, 3]]


def test_long_paragraphs_are_cut_in_training_and_nowhere_else():
    early, late = ("yes " * 5 + "early " + "no " * (squad.LONGEST + 50) + "late.",) * 2
    task = tiny(asked("When?", ["early"], early), asked("When?", ["late"], late), test=[asked("When?", ["late"], late)])
    assert task.n_examples == 1 and task.splits["train"]["lengths"].max() == squad.LONGEST
    assert task.splits["test"]["lengths"].tolist() == [squad.LONGEST + 58]
    assert "1 training questions left out" in task.data_note


# ---- splits and batches


def test_articles_are_in_one_split_and_validation_is_drawn_the_same_each_time():
    given, test = questions.articles(*[3] * 20), questions.articles(2, 2, seed=1)
    first, again = (of_articles("tiny", given, test, "short") for _ in range(2))
    assert first.data_sha256 == again.data_sha256
    homes = {p["context"]: a["title"] for a in (*given, *test) for p in a["paragraphs"]}
    titles = {split: {homes[text] for text in first.texts[split].paragraphs} for split in SPLITS}
    assert not titles["train"] & titles["valid"] and titles["test"] == {"article 1.0", "article 1.1"}
    assert len(titles["valid"]) == 1 and len(titles["train"]) == 19
    smoke = of_articles("tiny", questions.articles(*[40] * 3), test, "smoke")
    assert smoke.n_examples == 160 and "smoke subset" in smoke.data_note
    assert len(set(smoke.texts["train"].articles)) == 2, "of all its articles: one of three is held out"


@pytest.mark.parametrize("order", [None, 0])
@pytest.mark.parametrize("split", SPLITS)
def test_every_question_is_asked_once_with_its_own_paragraph(registered, split, order):
    task, seen = registered, []
    generator = None if order is None else torch.Generator().manual_seed(order)
    for batch in task.batches(split, 7, generator=generator):
        words, letters, question, question_letters = batch.inputs
        assert batch.lengths.shape == batch.targets.shape == (len(batch.numbers), 2)
        for column, number in enumerate(batch.numbers.tolist()):
            t, j = batch.lengths[column].tolist()
            text, places = task.paragraph(split, number)
            spelt = ["".join(chr(c) for c in row if c) for row in letters[:t, column].tolist()]
            assert spelt == [text[a:b] for a, b in places]
            asks = ["".join(chr(c) for c in row if c) for row in question_letters[:j, column].tolist()]
            assert "".join(asks) == task.texts[split].questions[number].replace(" ", "")
            for ids, real in ((words, t), (question, j)):
                assert (ids[:real, column] >= OOV).all() and (ids[real:, column] == PAD).all()
            first, last = batch.targets[column].tolist()
            assert text[places[first][0] : places[last][1]] in task.texts[split].answers[number]
        assert len(words) == batch.lengths[:, 0].max() and len(question) == batch.lengths[:, 1].max()
        seen += batch.numbers.tolist()
    assert sorted(seen) == list(range(len(task.splits[split]["spans"])))


def test_long_paragraphs_share_a_batch_with_fewer_in_evaluation(registered, monkeypatch):
    monkeypatch.setattr(squad, "LARGEST", 60)
    sizes = [batch.inputs[0].numel() for batch in registered.batches("test", 256)]
    assert max(sizes) <= 60 and len(sizes) > 5
    steps = list(registered.batches("train", 12, generator=torch.Generator()))
    assert len(steps) == registered.steps_per_epoch(12)


def test_a_batch_keeps_what_it_is_about_wherever_it_goes(registered):
    batch = next(registered.batches("valid", 3))
    moved = replace(batch.to("cpu"), targets=batch.targets)
    assert moved.split == "valid" and torch.equal(moved.numbers, batch.numbers) and len(moved.inputs) == 4


def test_hidden_words_are_words_of_the_paragraph(registered):
    session = Session(RunConfig("tiny-squad", method="dense", profile="quick", word_dropout=0.5), registered)
    batch = next(registered.batches("train", 12))
    hidden = session.hide_words(batch)
    gone = hidden.inputs[0] != batch.inputs[0]
    assert 0.3 < float(gone[batch.inputs[0] > OOV].float().mean()) < 0.7 and (hidden.inputs[0][gone] == OOV).all()
    assert all(torch.equal(a, b) for a, b in zip(hidden.inputs[1:], batch.inputs[1:], strict=True))


# ---- loss and metric


def test_the_loss_is_the_nats_of_both_ends():
    task = tiny(asked("Which?", ["b c"], "a b c d"))
    batch = next(task.batches("train", 1))
    logits = torch.tensor([[0.1, 0.4], [1.0, -1.0], [0.3, 2.0], [-torch.inf, -torch.inf]])[:, None]
    first = -math.log(math.e / (math.exp(0.1) + math.e + math.exp(0.3)))
    last = -math.log(math.exp(2) / (math.exp(0.4) + math.exp(-1) + math.exp(2)))
    assert task.loss(logits, batch).item() == pytest.approx(first + last, rel=1e-6)


@pytest.mark.parametrize("longest", [15, 3, 1])
def test_the_answer_is_the_likeliest_span_that_is_not_too_long(registered, longest, monkeypatch):
    monkeypatch.setattr(squad, "LONGEST_ANSWER", longest)
    batch = next(registered.batches("test", 16))
    logits = torch.randn(len(batch.inputs[0]), len(batch.numbers), 2, generator=torch.Generator().manual_seed(2))
    for column, length in enumerate(batch.lengths[:, 0].tolist()):
        logits[length:, column] = -torch.inf
    for column, (number, said) in enumerate(zip(batch.numbers.tolist(), registered.said(logits, batch), strict=True)):
        chances, best = logits[:, column].softmax(0), {}
        for a in range(int(batch.lengths[column, 0])):
            for b in range(a, min(a + longest, int(batch.lengths[column, 0]))):
                best[a, b] = float(chances[a, 0] * chances[b, 1])
        a, b = max(best, key=best.get)
        text, places = registered.paragraph("test", number)
        assert said == text[places[a][0] : places[b][1]]


def test_a_split_s_metric_is_the_mean_over_its_questions_and_f1_stands_beside_it(registered):
    def says(right):
        def predict(words, letters, question, question_letters, lengths, state):
            calls.append(words.shape[1])
            batch = next(b for b in registered.batches("test", 256) if torch.equal(b.inputs[1], letters))
            logits = torch.zeros(*words.shape, 2)
            spans = (
                batch.targets
                if right
                else batch.targets * torch.tensor([1, 0]) + batch.targets[:, :1] * torch.tensor([0, 1])
            )
            for end in (0, 1):
                logits[spans[:, end], torch.arange(len(spans)), end] = 9.0
            return logits, None

        return predict

    plan, calls = RunConfig("tiny-squad", method="dense", profile="quick").plan, []
    assert evaluate(says(True), registered, "test", plan) == 1 and sum(calls) == len(registered.splits["test"]["spans"])
    answers = [given[0] for given in registered.texts["test"].answers]
    first = [answer.split()[0] for answer in answers]  # "dark red" → "dark": half right
    exact = sum(a == b for a, b in zip(first, answers, strict=True)) / len(answers)
    assert evaluate(says(False), registered, "test", plan) == pytest.approx(exact) and 0 < exact < 1
    assert examine(says(False), registered, plan)["test"].more == {"f1": pytest.approx(exact + (1 - exact) * 2 / 3)}


def test_what_a_net_misses_is_counted_question_by_question_and_article_by_article(registered):
    task, plan, read = registered, RunConfig("tiny-squad", method="dense", profile="quick").plan, []

    def predict(words, letters, question, question_letters, lengths=None, state=None):
        read.append(words.shape[1])
        return torch.zeros(*words.shape, 2), None  # always the first word

    kept = mistakes(examine(predict, task, plan), task)
    assert sum(read) == len(task.splits["test"]["spans"]), "each question once, whatever is measured"
    assert 1 - kept["test.errors"].mean() == evaluate(predict, task, "test", plan) and set(kept["test.of"]) == {1}
    batches = list(task.batches("test", 256))
    numbers = torch.cat([batch.numbers for batch in batches]).tolist()
    assert kept["test.groups"].tolist() == [task.texts["test"].articles[n] for n in numbers]


# ---- what is shown


def test_the_figure_shows_the_question_that_pruning_changed(registered):
    task = registered
    shown = next(b for b in task.batches("valid", 64))
    victim = int(shown.lengths[:, 0].argmax())

    def says(wrong):
        def predict(words, letters, question, question_letters, lengths, state):
            logits, spans = torch.zeros(*words.shape, 2), shown.targets.clone()
            spans[wrong] = 0
            for end in (0, 1):
                logits[spans[:, end], torch.arange(len(spans)), end] = 9.0
            return logits, None

        return predict

    figure = plots.answers(task, says([]), says([victim]))
    figure.canvas.draw()
    drawn = " ".join(" ".join(text.get_text().split()) for text in figure.findobj(plots.plt.Text))
    number = int(shown.numbers[victim])
    text, places = task.paragraph("valid", number)
    right = task.texts["valid"].answers[number][0]
    assert f"Pruning changes 1 of {len(shown.numbers)} answers" in drawn
    assert task.texts["valid"].questions[number] in drawn and f"before: “{right}” (right)" in drawn
    assert f"after: “{text[slice(*places[0])]}” (wrong)" in drawn
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == [text[a:b] for a, b in places]
    heights = [bar.get_height() for bar in figure.axes[0].containers[0]]
    assert heights.index(max(heights)) == shown.targets[victim, 0] and sum(heights) == pytest.approx(1, abs=1e-5)
    plots.plt.close(figure)
    assert plots.answers(object(), None, None) is None


def test_a_word_alone_is_pointed_at_or_not(registered):
    """What a table of kept words says of each: the logits of a paragraph and a question of that word, from their mean."""
    model = BiDAF(len(registered.vocabulary), word_size=3, filters=2, hidden=2).eval()
    words = torch.arange(3, 9)
    with torch.no_grad():
        says, lift = registered.speaks(model, words)
        alone = []
        for word in words.tolist():
            letters = [ord(c) for c in registered.vocabulary[word]]
            given = torch.tensor([[word]]), torch.tensor([[letters]])
            alone.append(model(*given, *given)[0].sum().item())
    assert torch.equal(says, words)
    assert lift.tolist() == pytest.approx([value - np.mean(alone) for value in alone], abs=1e-5)


# ---- where the data come from, and what words start from


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSERNN_DATA", str(tmp_path))
    files = {"train-v1.1.partial": questions.articles(4, 4, 4), "dev-v1.1": questions.articles(3, seed=1)}
    for name, articles in files.items():
        path = tmp_path / f"squad/{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"data": articles}))
        monkeypatch.setitem(corpora.FILES, f"squad/{name}.json", replace(corpora.FILES[f"squad/{name}.json"], sum=""))
    return tmp_path


def test_a_part_of_the_training_set_is_accepted_and_named(on_disk):
    task = tasks.load("squad", "short")
    assert "3 of 442 training articles" in task.data_note
    assert [len(task.splits[split]["spans"]) for split in SPLITS] == [24, 12, 9]
    label, text = task.examples(1)[0]
    assert text.startswith("Which colour has the ") and label in text


def test_words_start_from_glove_vectors_where_they_are_on_disk(on_disk):
    before = tasks.load("squad", "short")
    words = ["cat", "unheard-of", "is", "of"]
    rows = {word: [0.25 * number + 0.5 * place for place in range(6)] for number, word in enumerate(words)}
    (on_disk / "glove").mkdir()
    (on_disk / squad.GLOVE).write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in rows.items()))
    task, model = tasks.load("squad", "short"), BiDAF(len(before.vocabulary), word_size=6, filters=2, hidden=2)
    assert "GloVe" in task.data_note and task.data_sha256 != before.data_sha256 and task.vocabulary == before.vocabulary
    drawn = model.embedding.weight.detach().clone()
    task.initialise(model)
    for number, word in enumerate(task.vocabulary):
        expected = torch.tensor(rows[word]) if word in rows else drawn[number]
        assert torch.equal(model.embedding.weight[number], expected)
    with pytest.raises(ValueError, match="have 6 numbers, the model's 5"):
        task.initialise(BiDAF(len(task.vocabulary), word_size=5, filters=2, hidden=2))


def test_no_n_grams_are_counted_where_no_symbol_follows_another(registered):
    with pytest.raises(ValueError, match="'tiny-squad' is no language model's task"):
        count_back_off("tiny-squad", "quick", 3)
