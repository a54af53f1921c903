"""Two runs are compared by the items both answered: the interval is that of drawing other items of the same kind."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy import stats

from sparsernn import records, tasks
from sparsernn.report import claims, evidence
from sparsernn.report.paired import difference, mean_of, over_items, p_value
from sparsernn.report.paired import interval as over_one
from sparsernn.sparsify.plan import Plan
from sparsernn.study.evaluation import evaluate, examine, mistakes
from sparsernn.study.opponents import back_off_directory, count_back_off
from sparsernn.tasks.base import LanguageTask, WordTask
from sparsernn.tasks.language import WindowTask


def kept_of(predict, task, plan):
    return mistakes(examine(predict, task, plan), task)


def counts(errors, of=None, groups=None, split="test"):
    found = {f"{split}.errors": np.array(errors), f"{split}.of": np.array(of if of is not None else [1] * len(errors))}
    return found if groups is None else found | {f"{split}.groups": np.array(groups)}


def test_an_interval_holds_no_difference_exactly_where_the_p_value_does():
    rng, open_ = np.random.default_rng(1), []
    for _ in range(60):
        of = rng.integers(3, 9, 25)
        first, second = (counts(rng.binomial(of, share), of) for share in (0.3, 0.42))
        gap, low, high = difference(first, second)
        assert gap == pytest.approx((second["test.errors"].sum() - first["test.errors"].sum()) / of.sum())
        assert low < gap < high
        open_.append(low <= 0 <= high)
        assert open_[-1] == (p_value([first], [second]) >= 0.05)
    assert 0 < sum(open_) < 60


def test_of_twenty_pieces_an_interval_holds_what_is_true_as_often_as_it_says():
    rng, held = np.random.default_rng(2), 0
    of = np.full(20, 1000)
    for _ in range(600):
        first, second = (rng.gamma(4.0, 500.0, 20) for _ in range(2))
        _, low, high = difference(counts(first, of), counts(second, of))
        rate, least, most = over_one(counts(first, of))
        held += int(low <= 0 <= high) + int(least <= 2.0 <= most)
        assert rate == pytest.approx(first.sum() / of.sum())
    assert 0.92 < held / 1200 < 0.975


def test_pairs_tell_what_two_intervals_of_their_own_would_not():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.3
    worse = hard | (rng.random(400) < 0.03)
    gap, low, high = difference(counts(hard.astype(int)), counts(worse.astype(int)))
    alone = 1.96 * np.sqrt(2 * hard.mean() * (1 - hard.mean()) / 400)
    assert 0 < low < gap < high and (high - low) / 2 < alone / 3
    assert difference(counts(worse.astype(int)), counts(hard.astype(int)))[0] == -gap


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(60):
        shared = rng.random(60) < 0.2
        first, second = (rng.binomial(5, np.where(shared, 0.5, p)) for p in (0.1, 0.15))
        _, low, high = difference(counts(first, [5] * 60), counts(second, [5] * 60))
        covered += low <= 0.8 * 0.05 <= high
    assert 50 <= covered <= 60


def test_items_that_share_recordings_are_drawn_together():
    rng = np.random.default_rng(2)
    errors = rng.integers(0, 3, 30)
    once = difference(counts(0 * errors, [5] * 30), counts(errors, [5] * 30))
    fourfold = [np.tile(x, 4) for x in (0 * errors, errors, [5] * 30, range(30))]
    none, wrong, of, groups = fourfold
    assert difference(counts(none, of, groups), counts(wrong, of, groups)) == pytest.approx(once)
    _, low, high = difference(counts(none, of), counts(wrong, of))  # as if the copies were news
    assert high - low < 0.7 * (once[2] - once[1])


def test_right_and_wrong_items_are_judged_by_those_that_one_alone_gets_right():
    """McNemar: of 10 items that one of them alone gets right the first has 9, whatever 1,000 others say."""
    first, second = np.zeros(1010, int), np.zeros(1010, int)
    first[:1], second[1:10] = 1, 1
    first[500:700] = second[500:700] = 1
    assert p_value([counts(first)], [counts(second)]) == pytest.approx(2 * (1 + 10) / 2**10)
    assert p_value([counts(second)], [counts(first)]) == pytest.approx(2 * (1 + 10) / 2**10)
    assert p_value([counts(first)], [counts(first)]) == 1.0
    assert p_value([counts([0, 0])], [counts([0, 0])]) == 1.0
    with pytest.raises(ValueError, match="of one group"):
        p_value([counts([1, 0], groups=[3, 3])], [counts([0, 0], groups=[3, 3])])


def test_seeds_of_a_configuration_are_compared_as_their_mean():
    both = [counts([0, 2, 1], [3, 3, 3], [0, 1, 1]), counts([1, 0, 1], [3, 3, 3], [0, 1, 1])]
    mean = mean_of(both)
    assert mean["test.errors"].tolist() == [0.5, 1.0, 1.0] and mean["test.groups"].tolist() == [0, 1, 1]
    assert difference(mean, both[0])[0] == pytest.approx(0.5 / 9)
    with pytest.raises(ValueError, match="test.of differs"):
        mean_of([counts([0], [3]), counts([0], [4])])


def test_items_of_a_group_count_as_one_and_seeds_as_their_mean():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), 5)
    ours, theirs = (rng.integers(0, 4, (2, 60)) for _ in range(2))
    theirs += np.repeat(rng.integers(0, 2, 12), 5)
    given = [[counts(one, [4] * 60, groups) for one in runs] for runs in (ours, theirs)]
    gaps = (ours.mean(0) - theirs.mean(0)).reshape(12, 5).sum(1)
    t = gaps.mean() / (gaps.std(ddof=1) / math.sqrt(12))
    assert p_value(*given) == pytest.approx(2 * stats.t.sf(abs(t), 11))
    with pytest.raises(ValueError, match="test.of differs"):
        p_value([counts([0, 1], [3, 4])], [counts([0, 1], [3, 5])])


def test_equal_nets_are_told_apart_as_seldom_as_is_said():
    rng, found = np.random.default_rng(4), 0
    for _ in range(400):
        hard = rng.random(300)
        found += p_value(*([counts((rng.random(300) < hard).astype(int))] for _ in range(2))) < 0.05
    assert found <= 30  # 5 % of 400 and two standard deviations


def test_the_same_answers_differ_by_nothing_and_others_items_are_refused():
    assert difference(counts([0, 1, 2], [3, 3, 3]), counts([0, 1, 2], [3, 3, 3])) == (0, 0, 0)
    with pytest.raises(ValueError, match="test.of differs between the runs"):
        difference(counts([0, 1], [3, 4]), counts([0, 1], [3, 5]))
    with pytest.raises(ValueError, match="test.groups differs"):
        difference(counts([0, 1], groups=[0, 1]), counts([0, 1]))
    with pytest.raises(ValueError, match="all 2 items of test are of one group"):
        difference(counts([0, 1], groups=[4, 4]), counts([1, 1], groups=[4, 4]))
    with pytest.raises(KeyError, match="noisy"):
        difference(counts([0, 1]), counts([1, 1]), "noisy")


# ---- claims


def spoken(folder, method, model, wrong, options=""):
    """A tracked run on digits whose noisy utterances had so many errors of five each."""
    row = {"task": "digits", "model": model, "method": method, "variant": options, "profile": "quick", "seed": 0,
           "metric": "label_error_rate", "test": 0.01, "compression": 10.0, "epochs": 9, "data_note": ""}  # fmt: skip
    records.upsert([row], folder / "quick.csv")
    path = folder / "runs" / records.run_key(row)
    path.mkdir(parents=True)
    records.save_counts(counts(wrong, [5] * len(wrong), split="noisy"), path / records.MISTAKES)


def verdicts(folder):
    return claims.table(folder).set_index("claim")[["verdict", "here"]]


def test_gradual_against_hard_is_decided_by_the_interval_in_noise(tmp_path):
    pd.DataFrame(columns=records.FIELDS).to_csv(tmp_path / "quick.csv", index=False)
    base = np.arange(100) % 2
    spoken(tmp_path, "gradual", "rnn-128", base, "density=0.1")
    assert "no finished run on digits of: hard" in verdicts(tmp_path).loc["C4, spoken digits, RNN", "here"]
    spoken(tmp_path, "hard", "rnn-128", base + 1, "density=0.1")
    verdict, here = verdicts(tmp_path).loc["C4, spoken digits, RNN"]
    assert verdict == "holds, on other data" and "in noise: -0.200 (-0.200 to -0.200)" in here
    spoken(tmp_path, "gradual", "gru-128", base, "density=0.1")
    spoken(tmp_path, "hard", "gru-128", base[::-1].copy(), "density=0.1")
    assert verdicts(tmp_path).loc["C4, spoken digits, GRU", "verdict"] == "undecided, on other data"


@pytest.mark.parametrize(
    ("same", "big", "verdict"),
    [(2, 1, "holds"), (2, 2, "holds in part"), (0, 1, "holds in part"), (0, 2, "does not hold"), (1, 1, "undecided")],
)
def test_a_sparse_net_of_the_same_size_and_a_larger_one_are_set_against_the_dense(tmp_path, same, big, verdict):
    errors = np.ones(50, int)
    spoken(tmp_path, "dense", "gru-128", errors)
    spoken(tmp_path, "gradual", "gru-128", same * errors, "density=0.1")
    spoken(tmp_path, "gradual", "gru-256", big * errors, "density=0.1")
    assert verdicts(tmp_path).loc["C2, spoken digits, GRU", "verdict"] == f"{verdict}, on other data"


def test_counts_come_back_from_their_file_and_give_the_same_bytes(tmp_path):
    arrays = {"test.errors": np.array([0, 300, 2]), "test.of": np.array([5, 400, 2])}
    for name in "ab":
        records.save_counts(arrays, tmp_path / name)
    found = records.read_counts(tmp_path / "a")
    assert found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert records.read_counts(tmp_path / "none") is None


@pytest.mark.parametrize("cell", ["RNN", "GRU"])
def test_the_study_of_digits_runs_all_that_the_claims_compare(cell):
    study, asked = yaml.safe_load((Path(__file__).parents[1] / "digits.yaml").read_text()), set()

    class Asked(evidence.Evidence):
        def row(self, task, method, model=None, options=None):
            asked.add((task, method, model, (options or {}).get("density")))

    for name in ("C2", "C3", "C4"):
        assert claims.CLAIMS[f"{name}, spoken digits, {cell}"][1](Asked(None, None, {}))[0] == "not run"
    runs = {
        ("digits", method, given["model"], given.get("density"))
        for entry in study["tasks"]["digits"]
        for method, given in entry.items()
    }
    assert len(asked) == 6 and asked <= runs and study["seeds"] == [0, 1]
    assert ("digits", "gradual", f"{cell.lower()}-128", None) in runs, "C1 needs the paper's own threshold"


# ---- language models


def test_a_text_costs_the_same_pieces_whatever_streams_it_was_read_in():
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 7, 40_321)
    task = WordTask("words", {split: {"ids": ids} for split in ("train", "valid", "test")}, list("abcdefg"))
    table = torch.randn(
        7, 7, generator=torch.Generator().manual_seed(0)
    )  # what follows a word depends on that word alone

    def predict(tokens, lengths=None, state=None):
        return table[tokens], None

    found = {}
    for streams, steps in ((1, 35), (8, 10), (64, 50)):
        plan = Plan(epochs=1, batch_size=streams, steps=steps)
        found[streams] = kept_of(predict, task, plan)
        errors, of = found[streams]["test.errors"], found[streams]["test.of"]
        assert of[:-1].tolist() == [1600] * (len(of) - 1) and of.sum() == 40_320 // streams * streams
        assert task.metric_of(errors.sum(), of.sum()) == pytest.approx(evaluate(predict, task, "test", plan), rel=1e-6)
    by_hand = -table.double().log_softmax(1)[ids[:-1], ids[1:]].numpy() / math.log(2)
    assert found[1]["test.errors"][3] == pytest.approx(by_hand[4800:6400].sum(), rel=1e-5)
    assert difference(found[1], found[64])[0] == pytest.approx(0, abs=1e-6), "not all read the last piece whole"
    with pytest.raises(ValueError, match="test.of differs"):
        difference(found[1], kept_of(predict, LanguageTask("t", task.splits, list("abcdefg")), plan))
    shorter = WordTask("t", {split: {"ids": ids[:30_000]} for split in task.splits}, list("abcdefg"))
    with pytest.raises(ValueError, match="test.of differs"):
        difference(found[1], kept_of(predict, shorter, plan))


def test_windows_that_know_nothing_of_each_other_are_pieces_of_one_text_too():
    ids = np.random.default_rng(7).integers(0, 5, 17_550)
    task = WindowTask("windows", {split: {"ids": ids} for split in ("train", "valid", "test")}, list("abcde"))
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    found = kept_of(lambda tokens, lengths, state: (table[tokens], None), task, Plan(epochs=1, batch_size=4, steps=100))
    of_all = -table.double().log_softmax(1)[ids[:-1], ids[1:]].numpy() / math.log(2)
    errors, of = task.in_pieces(task.predicted(np.concatenate([[np.nan], of_all])))
    assert found["test.of"].tolist() == of.tolist() == [4950, 4950, 4950, 2475]
    assert found["test.errors"] == pytest.approx(errors, rel=1e-5)
    longer = Plan(epochs=1, batch_size=4, steps=150)
    assert kept_of(lambda tokens, lengths, state: (table[tokens], None), task, longer) == {}, (
        "its pieces would be others"
    )


def test_counted_n_grams_and_nets_are_compared_on_the_same_pieces(as_it_was, monkeypatch):
    ids = np.random.default_rng(8).integers(0, 3, 40_000)
    task = WordTask("counted", {split: {"ids": ids} for split in ("train", "valid", "test")}, list("abc"))
    monkeypatch.setitem(tasks.TASKS, "counted", lambda profile: task)
    record = count_back_off("counted", "quick", 3)
    kept = records.read_counts(back_off_directory("counted", "quick", 3) / records.MISTAKES)
    uniform = kept_of(
        lambda tokens, lengths, state: (torch.zeros(*tokens.shape, 3), None),
        task,
        Plan(epochs=1, batch_size=7, steps=9),
    )
    gap, low, high = difference(uniform, kept)
    assert gap == pytest.approx(math.log2(record["test"]) - math.log2(3), abs=2e-3) and low < gap < high


def test_the_interval_of_a_figure_is_drawn_from_its_items():
    rng = np.random.default_rng(6)
    bits = rng.normal(7, 0.5, 400)
    runs = [counts(200 * bits, [200] * 400), counts(200 * (bits + 0.1), [200] * 400)]
    low, high = over_items(runs, "perplexity")
    error = 1.96 * bits.std(ddof=1) / 20
    assert (math.log2(low), math.log2(high)) == pytest.approx(
        (bits.mean() + 0.05 - error, bits.mean() + 0.05 + error), abs=0.01
    )
    wrong = counts(np.arange(500) < 100)
    assert over_items([wrong], "exact_match") == pytest.approx(
        (0.8 - 1.96 * 0.4 / 500**0.5, 0.8 + 1.96 * 0.4 / 500**0.5), abs=0.005
    )
    assert all(map(math.isnan, over_items([wrong, None], "exact_match")))
    assert all(map(math.isnan, over_items([counts([1])], "exact_match")))
