"""What is shown of spoken digits: a figure and a player, the notebooks, what is published. Generated tones stand in for them."""

import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import speech
import torch
from nbclient import NotebookClient

from sparsernn.report import claims, evidence, plots
from sparsernn.report.publish import publish
from sparsernn.study.config import RunConfig
from sparsernn.study.runs import ensure

TESTS = Path(__file__).parent


def oracle(task, split, words=None):
    """A predictor that says each word in the middle of where it was said, and is sure; words: what it says instead."""

    def predict(features, lengths=None, state=None):
        logits = torch.zeros(len(features), features.shape[1], len(task.classes))
        logits[:, :, 0] = 20
        for i, length in enumerate(lengths.tolist()):
            sounds = (task.spectrogram(task.sound(split, k)) for k in range(len(task.splits[split]["counts"])))
            item = next(k for k, sound in enumerate(sounds) if torch.equal(sound, features[:length, i]))
            for word, span in zip(*task.said(split, item), strict=True):
                frame = int(span.mean()) // 80
                logits[frame, i] = 20 * torch.eye(len(task.classes))[words or word]
        return logits, None

    return predict


def test_a_picture_says_what_is_read_before_and_after_over_the_sound():
    task = speech.task()
    order = task.order("valid")
    item = int(order[len(order) // 2])
    said = [task.classes[word] for word in task.said("valid", item)[0]]
    figure = plots.answers(task, oracle(task, "valid"), oracle(task, "valid", words=3))
    texts = [text.get_text() for ax in figure.axes for text in (ax.title, ax._left_title, *ax.texts)]
    assert f"before pruning it reads: {' '.join(said)}" in texts
    assert f"after pruning it reads: {' '.join(['two'] * len(said))}" in texts
    assert [text for text in texts if text in task.classes] == said, "the words stand over the spectrogram"
    assert figure.get_suptitle().startswith("Right before pruning alone")
    sound, before, after = (ax for ax in figure.axes if ax.images and ax.get_xlim()[0] == 0)
    assert (
        before.images[0].get_array().shape
        == after.images[0].get_array().shape
        == (11, len(sound.images[0].get_array()[0]))
    )
    shares = np.asarray(before.images[0].get_array())
    assert np.allclose(shares.sum(0), 1) and (shares[0] < 0.5).sum() == len(said)
    plt.close(figure)
    same = plots.answers(task, oracle(task, "valid"), oracle(task, "valid"))
    assert same.get_suptitle().startswith("Pruned or not it reads the same, rightly; at a frame 0.0%")
    plt.close(same)


def test_one_hears_the_utterance_that_is_shown_and_a_text_shows_nothing():
    task = speech.task()
    item = int(task.order("valid")[6])
    player = plots.listen(task)
    wave = np.frombuffer(player.data[44:], "<i2").astype(float)
    expected = task.sound("valid", item).astype(float)
    assert len(wave) == len(expected) and np.corrcoef(wave, expected)[0, 1] > 0.999
    assert int.from_bytes(player.data[24:28], "little") == 8000
    assert plots.answers("a text", None, None) is None and plots.listen("a text") is None


def test_before_pruning_is_the_finished_run_a_method_starts_from_or_the_weights_uncut(as_it_was):
    speech.register()
    dense = ensure(RunConfig("tones", "frames-rnn", method="dense", profile="quick"))
    cut = ensure(RunConfig("tones", "frames-rnn", method="one-shot", profile="quick", density=0.3, epochs=1))
    learnt = ensure(RunConfig("tones", "frames-rnn", method="sparse-vd-w", profile="quick", epochs=1))
    batch = next(dense.task.batches("valid", 12))

    def says(predict):
        return predict(*batch.inputs, lengths=batch.lengths, state=None)[0]

    assert torch.equal(says(cut.unpruned), says(dense.model))
    assert not torch.allclose(says(cut.unpruned), says(cut.compact), atol=1e-3)
    weights = {name: p for name, p in learnt.model.named_parameters() if p.dim() == 2 and ".carried." not in name}
    bare = type(dense.model)(**dense.model.arguments)
    bare.load_state_dict({name: learnt.model.state_dict()[name] for name in bare.state_dict()})
    assert len(weights) >= 3 and torch.allclose(says(learnt.unpruned), says(bare.eval()), atol=1e-6)


@pytest.mark.parametrize("method", ["sparse-vd-wgn"])
def test_the_notebooks_run_for_a_task_without_words(method):
    """Train, prune and gates in one kernel, as papermill would run them for `digits`."""
    cells = [
        nbformat.v4.new_code_cell(f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nimport speech\nspeech.register()")
    ]
    for name in ("train", "prune", "gates"):
        for cell in nbformat.read(TESTS.parent / f"notebooks/{name}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                cells.append(cell)
            if "parameters" in cell.metadata.get("tags", []):
                cells.append(nbformat.v4.new_code_cell(f'task = "tones"\nmethod = "{method}"\nepochs = 2'))
    book = nbformat.v4.new_notebook(cells=cells)
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    checks = [cell for cell in book.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    text = "".join(output.text for cell in checks for output in cell.outputs)
    assert len(checks) >= 6 and "True" in text and "False" not in text
    (answers,) = (cell for cell in book.cells if "plots.listen(" in cell.source)
    assert {kind for output in answers.outputs for kind in output.get("data", {})} >= {"image/png", "text/html"}
    assert "81 numbers a frame" in json.dumps(book)


def test_runs_on_sounds_are_published_with_their_mistakes_and_their_tests(as_it_was, tmp_path):
    speech.register()
    ensure(RunConfig("tones", method="dense", profile="quick", epochs=1))
    written = publish("quick", tmp_path / "results", tmp_path / "figures")
    (row,) = evidence.gather(tmp_path / "results").rows.to_dict("records")
    tests = dict(part.split("=") for part in row["tests"].split(","))
    (kept,) = evidence.gather(tmp_path / "results").row("tones", "dense")["wrong"]
    assert set(tests) == {"unseen", "noisy"} and row["metric"] == "label_error_rate"
    assert kept["noisy.errors"].sum() / kept["noisy.of"].sum() == pytest.approx(float(tests["noisy"]))
    assert {"tones-front.png", "tones-training.png"} <= {path.name for path in written}
    assert set(claims.table(tmp_path / "results")["verdict"]) >= {"not run"}
