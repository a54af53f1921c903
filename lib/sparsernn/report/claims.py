"""What the papers claim, and what the tracked tables say to it: a verdict, and the figures behind it, per claim.

A claim is checked on the papers' own data and model, at whatever schedule was run; what was not run is said to be so.
"""

import itertools
from functools import partial

import numpy as np
import pandas as pd

from .. import records
from ..sparsify.restricted import SHARING, pool_size
from . import intervals, timings
from .evidence import THEIRS, cut_short, epochs_of_the_paper, gather, says
from .paired import difference, mean_of, rate_of

HOLDS, PARTLY, FAILS, EARLY, NOT_RUN = "holds", "holds in part", "does not hold", "too early to say", "not run"
UNDECIDED = "undecided"
POINTS = 0.005  # that an accuracy may be below the paper's and still be called reached


def _lines(found):
    return "; ".join(f"{row['method']}: {says(row)}" for row in found)


def _not_run(task, *methods):
    return NOT_RUN, f"no finished run of {' and '.join(methods)} on {task}"


def _grade(*tests):
    return HOLDS if all(tests) else PARTLY if any(tests) else FAILS


def _where(verdict, tasks):
    """The verdict, and whether it comes from none of the papers' own data."""
    return verdict if verdict == NOT_RUN or set(tasks) & set(THEIRS) else f"{verdict}, on other data"


def _sentiment_zeros(evidence):
    """With and without binary dropout, against the better one of the dense nets with and without."""
    names, task = ("sparse-vd-w", "sparse-vd-w-binary"), evidence.of("imdb", "dense", "sparse-vd-w")
    sparse = [row for name in names if (row := evidence.row(task, name)) is not None]
    model = sparse[0]["model"] if sparse else None
    dense = [row for name in ("dense", "binary-dropout") if (row := evidence.row(task, name, model)) is not None]
    if not dense or not sparse:
        return _not_run("imdb", "dense", "sparse-vd-w")
    best, text = max(row["test"] for row in dense), [_lines(dense)]
    zeros = [1 - 1 / row["compression"] for row in sparse]
    text += [f"{row['method']}: {row['test']:.3f} with {z:.2%} zeros" for row, z in zip(sparse, zeros, strict=True)]
    kept = any(row["test"] >= best - POINTS and z >= 0.995 for row, z in zip(sparse, zeros, strict=True))
    return _grade(kept, max(zeros) >= 0.995), "; ".join(text) + " (IMDb)"


def _quality(task, method, quality, compression, better="higher", slack=POINTS):
    """A claim of a quality at a compression, reached within `slack` of the one and a tenth of the other, at the mean of its
    seeds: a wide interval is no argument for a claim."""

    def good(test):
        return test >= quality - slack if better == "higher" else test <= quality + slack

    def check(evidence):
        row = evidence.row(evidence.of(task, method), method)
        if row is None:
            return _not_run(task, method)
        verdict, text = _grade(good(row["test"]), row["compression"] >= 0.9 * compression), _lines([row])
        theirs = evidence.authors(row)
        if verdict != HOLDS and cut_short(row) and len(theirs) and not good(theirs).any():
            return EARLY, f"{text}; by then the authors' was at {theirs.iloc[-1]:.4g}"
        return verdict, text

    return check


def _at(task, method, quality, compression, slack):
    """The same of perplexity or bits: less is better."""
    return _quality(task, method, quality, compression, "lower", slack)


def _beats_dense(task, method):
    """Against the dense net, which the paper speaks of, and the same under dropout where that was run."""

    def check(evidence):
        sparse = evidence.row(task, method)
        dense = None if sparse is None else evidence.row(task, "dense", sparse["model"], profile=sparse["profile"])
        if dense is None:
            return _not_run(task, "dense", method)
        (better, gap), text = _verdict("better", sparse, dense), _lines([dense, sparse])
        verdict = UNDECIDED if better is None else _grade(better)
        said = "not known item by item" if gap is None else _said_gap(gap, sparse["metric"])
        text += f"; {method} less dense: {said}"
        dropped = evidence.row(task, "binary-dropout", sparse["model"], profile=sparse["profile"])
        if dropped is not None and verdict == HOLDS:
            (better, gap), said = _verdict("better", sparse, dropped), "not known item by item"
            said = said if gap is None else _said_gap(gap, sparse["metric"])
            verdict = _grade(True, better)
            text += f"; {_lines([dropped])}; {method} less binary-dropout: {said}"
        theirs = [evidence.authors(one | {"epochs": sparse["epochs"]}) for one in (dense.to_dict(), sparse.to_dict())]
        behind = sparse["test"] > dense["test"] and cut_short(sparse)
        if behind and all(len(part) for part in theirs) and theirs[0].min() < theirs[1].min():
            return EARLY, f"{text}; by then the authors' were at {theirs[0].min():.4g} and {theirs[1].min():.4g}"
        return verdict, text

    return check


def _gates(evidence):
    """Live gates without and with variables for gates, neurons having theirs in both; means over seeds."""
    methods, found = ("sparse-vd-wn", "sparse-vd-wgn"), []
    for task in evidence.tasks(*methods):
        first = evidence.row(task, methods[0])
        same = None if first is None else evidence.alike(first, methods[1])
        if same is not None:
            pair = first, same
            found.append((task, *(sum(row["gates_by_seed"]) / len(row["gates_by_seed"]) for row in pair)))
    if not found:
        return _not_run("any task", *methods)
    asked = [one for one in found if one[0] in THEIRS] or found
    as_said = [after >= 0.98 * before if task == "ptb-char" else after < before for task, before, after in asked]
    text = "; ".join(f"{task}: {before:.4g} → {after:.4g} live gates" for task, before, after in found)
    return _where(_grade(*as_said), [task for task, *_ in asked]), text


def _constants(evidence):
    """Of the neurons kept, the share whose gate of each type is a constant: whether tasks lie farther apart in it than seeds of
    one task do, in the mean over the types."""
    rows = [evidence.row(task, "sparse-vd-wgn") for task in evidence.tasks("sparse-vd-wgn")]
    if len(rows) < 2:
        return _not_run("two tasks", "sparse-vd-wgn")
    shares = {row["task"]: [_shares(*one) for one in zip(row["constants_by_seed"], row["neurons_by_seed"], strict=True)]
              for row in rows}  # fmt: skip
    spread = max((_apart(a, b) for seeds in shares.values() for a, b in itertools.combinations(seeds, 2)), default=None)
    means = {task: np.mean(seeds, 0) for task, seeds in shares.items()}
    asked = [task for task in means if task in THEIRS]
    asked = asked if len(asked) > 1 else list(means)
    pairs = {pair: _apart(*(means[task] for task in pair)) for pair in itertools.combinations(asked, 2)}
    text = "constants, first seed: " + "; ".join(
        f"{row['task']}: {row['gates_constant']} of {row['hidden_kept']} neurons" for row in rows
    )
    if spread is None:
        return EARLY, f"{text}; no task has two seeds to hold the difference to"
    text += f"; tasks lie {min(pairs.values()):.2f} apart or more, in the mean share of a gate, seeds of one {spread:.2f} or less"
    return _where(_grade(*(apart > spread for apart in pairs.values())), asked), text


def _shares(constants, neurons):
    """i3.f7.g1.o13 of 63 neurons, in all layers → the share of each gate, in that order."""
    return np.array([int(part[1:]) for part in constants.split(".")]) / neurons


def _apart(one, other):
    return float(np.abs(one - other).mean())


def _shrunk(evidence):
    part = evidence.rows[evidence.rows["metric_difference"].notna() & (evidence.rows["compression"] > 1)]
    worst, error = part["metric_difference"].max(), part["compact_error"].max()
    return _grade(
        worst < 5e-5
    ), f"{len(part)} runs: metric differs by at most {worst:.1g}, logits by {error:.1g} (float64)"


def _words(evidence):
    row = evidence.row(evidence.of("imdb", "sparse-vd-wgn"), "sparse-vd-wgn")
    numbers = None if row is None else evidence.table(row, "numbers.csv")
    if numbers is None or numbers.empty:
        return _not_run("imdb", "sparse-vd-wgn")
    sizes = numbers.groupby("dimension")["value"].apply(lambda v: (v != 0).sum())
    part = numbers[numbers["dimension"] == sizes.idxmax()]
    rank = abs(part["value"].corr(part["log_odds"], method="spearman"))
    ratings = [d for d in map(str, range(1, 11)) if d in set(numbers["word"].astype(str))]
    middle = not {"5", "6"} & set(ratings)
    return _grade(rank > 0.7, middle), (
        f"{numbers['word'].nunique()} words, {len(sizes)} dimensions; in the main one |rank correlation| with log-odds "
        f"{rank:.2f}; ratings kept: {' '.join(ratings) or 'none'}"
    )


def _noise(evidence):
    path = evidence.results / "noise.csv"
    if not path.exists():
        return NOT_RUN, "no results/noise.csv; notebooks/noise.ipynb makes it"
    table = pd.read_csv(path, **records.EXACTLY)
    last = table[table["step"] == table["step"].max()].groupby("noise")["valid"].apply(list)
    seeds = min(map(len, last))
    text = "; ".join(f"{name}: {sum(values) / len(values):.3f} bits" for name, values in last.items())
    text += f" ({'one seed' if seeds == 1 else f'{seeds} seeds'}, on pydocs-char)"
    others = [last[name] for name in last.index if name not in ("shared", "none")]
    known = [intervals.p_value(values, last["shared"]) for values in others]
    if any(p != p for p in known):
        return EARLY, text
    shared = sum(last["shared"]) / len(last["shared"])
    worse = [p < 0.05 and sum(v) / len(v) - shared > 0.02 for p, v in zip(known, others, strict=True)]
    return _where(_grade(*worse), ["pydocs-char"]), text


def _compared(task, wanted, test):
    """A claim about rows of one task: wanted is [(label, method, model, options)], test takes their test figures in order
    and says whether each part of the claim holds."""

    def check(evidence):
        found = [(label, evidence.row(task, method, model, options)) for label, method, model, options in wanted]
        if absent := [label for label, row in found if row is None]:
            return NOT_RUN, f"no finished run on {task} of: {', '.join(absent)}"
        text = "; ".join(f"{label}: {says(row)} ({row['weights_kept']:,.0f} weights)" for label, row in found)
        return _or_early(_grade(*test(*(row["test"] for _, row in found))), text, [row for _, row in found])

    return check


def _or_early(verdict, text, rows):
    """The verdict over these rows, saying where the data are others; "too early" after part of the paper's plan, whichever way
    it points by then."""
    longer = [epochs for row in rows if (epochs := epochs_of_the_paper(row))]
    if longer:
        return (
            EARLY,
            f"{text}; so far it {verdict if verdict != UNDECIDED else 'is undecided'}; the paper trains for {max(longer)} epochs",
        )
    return _where(verdict, [row["task"] for row in rows]), text


def _judged(task, *pairs, split="test"):
    """A claim about a task, judged by intervals over the items of one of its tests: pairs are [(what is wanted of the first
    against the second, the first, the second)], each of these (label, method, model, options); wanted: "worse", "better" or
    "no worse".

    Where an interval leaves open which of two is better, or one seed says it and another does not, or it is not known what items
    cost, the claim is undecided, unless another of its parts fails.
    """

    def check(evidence):
        asked = {one[0]: one for _, *both in pairs for one in both}
        found = {label: evidence.row(task, method, model, options) for label, method, model, options in asked.values()}
        if absent := [label for label, row in found.items() if row is None]:
            return NOT_RUN, f"no finished run on {task} of: {', '.join(absent)}"
        text, verdicts = [f"{label}: {says(row)}" for label, row in found.items()], []
        for wanted, (first, *_), (second, *_) in pairs:
            verdict, gap = _verdict(wanted, found[first], found[second], split)
            said = "not known item by item" if gap is None else _said_gap(gap, found[first]["metric"])
            if gap is not None and verdict != _as_wanted(wanted, *gap):
                said += ", but not in all seeds"
            text.append(f"{first} less {second}{_of_test(split)}: {said}")
            verdicts.append(verdict)
        undecided = None in verdicts and False not in verdicts
        return _or_early(UNDECIDED if undecided else _grade(*verdicts), "; ".join(text), list(found.values()))

    return check


def _at_most_in_part(check):
    """A judgement of a part of a claim, the rest of which was not looked at: the whole does not hold by it."""

    def part(evidence):
        verdict, text = check(evidence)
        return PARTLY if verdict == HOLDS else verdict, text

    return part


def _verdict(wanted, first, second, split="test"):
    """Whether what is wanted of the first against the second holds, None where that is open, and `_gap` of both.

    It has to outlast another draw of the items, by the interval, and of the seeds: each of the first's has to stand to each
    of the second's as their means do.
    """
    if (gap := _gap(first, second, split)) is None:
        return None, None
    least = gap[3] if wanted == "no worse" else 0
    ours, theirs = ([rate_of(wrong, split) for wrong in row["wrong"]] for row in (first, second))
    sides = {one - other > least for one in ours for other in theirs}
    return _as_wanted(wanted, *gap) if len(sides) == 1 else None, gap


def _gap(first, second, split="test"):
    """What the first spends on an item more than the second, means over their seeds, its interval, and a hundredth of what the
    second spends: (gap, low, high, margin); None where one of them has not said what each item cost, or they read others."""
    if any(wrong is None for row in (first, second) for wrong in row["wrong"]):
        return None
    if str(first.get("data_sha256")) != str(second.get("data_sha256")):
        return None
    try:
        ours, theirs = mean_of(first["wrong"]), mean_of(second["wrong"])
        return *difference(theirs, ours, split), rate_of(theirs, split) / 100
    except (KeyError, ValueError):
        return None


def _said_gap(gap, metric):
    unit = " bits" if metric in ("perplexity", "bits_per_char") else ""
    return f"{gap[0]:+.3f}{unit} ({gap[1]:+.3f} to {gap[2]:+.3f})"


def _of_test(split):
    return {"test": "", "noisy": ", in noise"}.get(split, f", on {split}")


def _as_wanted(wanted, gap, low, high, margin):
    """Whether an interval of a difference of error rates is as wanted; None where it leaves that open. "no worse": by the
    margin at most."""
    if wanted == "no worse":
        return True if high <= margin else False if low > 0 else None
    worse = True if low > 0 else False if high < 0 else None
    return worse if wanted == "worse" or worse is None else not worse


def _speech(cell):
    """What spoken digits say to C2, C3 and C4, of a cell as presets name it."""
    tenth = {"density": 0.1}
    dense, small = ("dense", "dense", f"{cell}-128", {}), ("small dense", "dense", f"{cell}-48", {})
    same, medium, big = (
        (name, "gradual", f"{cell}-{size}", tenth)
        for name, size in (("same size", 128), ("medium sparse", 192), ("big sparse", 256))
    )
    hard, of = ("hard", "hard", f"{cell}-128", tenth), f"spoken digits, {cell.upper()}"
    judged = partial(_judged, "digits", split="noisy")
    return {
        f"C2, {of}": (
            "a sparse net of the same size is worse, a larger sparse one no worse than the dense",
            judged(("worse", same, dense), ("no worse", big, dense)),
        ),
        f"C3, {of}": ("a larger sparse net beats a small dense one", judged(("better", medium, small))),
        f"C4, {of}": ("gradual pruning beats hard pruning", judged(("better", same, hard))),
    }


def _span(low, high):
    """91% · 91% to 93%"""
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"


def _heuristics(evidence):
    """Gradual pruning by the paper's own rule, wherever no density was asked for."""
    rows = evidence.rows[(evidence.rows["method"] == "gradual") & evidence.rows["test"].notna()]
    rows = rows[~rows["variant"].fillna("").str.contains("density=|q=")]
    if rows.empty:
        return (
            NOT_RUN,
            "no finished run of gradual by the paper's own threshold: those there are were asked for a density",
        )
    zeros = [1 - 1 / compression for compression in rows["compression"]]
    of = pd.DataFrame({"task": rows["task"], "zeros": zeros}).groupby("task", sort=False)["zeros"]
    text = "; ".join(
        f"{task}: {_span(part.min(), part.max())} zeros" + f" ({len(part)} runs)" * (len(part) > 1) for task, part in of
    )
    return _where(_grade(*(z >= 0.88 for z in zeros)), rows["task"]), text


def _products(evidence):
    """Sparse products of scattered zeros in nine or more of ten places, batch 1, against dense ones in fp32."""
    tables = [records.read_timings(path) for path in sorted(evidence.results.glob("timings-*.csv"))]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=records.TIMING_FIELDS)
    part = table[(table["model"] == "product") & table["density"].between(0.05, 0.1) & (table["dtype"] == "float32")]
    cells = timings.fastest(part[(part["pattern"] == "unstructured") & (part["batch"] == 1)])
    if cells.empty:
        return NOT_RUN, "no timing row of scattered zeros"
    best = cells["over_fp32"]
    text = f"best fp32 engine, batch 1, 90 to 95 % zeros: {best.min():.1f} to {best.max():.1f} times the fastest dense one in "
    text += f"fp32 ({len(best)} shapes and densities, {cells['device'].nunique()} processors)"
    return _grade(best.min() >= 2, best.max() >= 2), text


MOST_LISTED = 4  # configurations; of more those at both ends are named


def _blocks(evidence):
    rows = evidence.rows[(evidence.rows["method"] == "blocks") & (evidence.rows["metric"] == "bits_per_char")]
    rows, found, tasks = rows[rows["test"].notna()], [], set()
    for place, part in rows.groupby(["task", "model", "profile", rows["variant"].fillna("")], sort=False):
        dense, fewer = evidence.row(place[0], "dense", place[1], profile=place[2]), part["compression"].mean()
        if dense is not None and 5 <= fewer <= 11:  # 80 to 91 % of the weights
            named, tasks = f"{place[3]}: " if place[3] else "", {*tasks, place[0]}
            found.append((part["test"].mean() / dense["test"] - 1, named, f"bits at {fewer:.3g}×"))
    if not found:
        return _not_run("any language model", "blocks at a fifth to a tenth", "dense")
    found.sort()
    shown = found if len(found) <= MOST_LISTED else [found[0], found[-1]]
    said = [f"{named}{loss:+.1%} {there}" for loss, named, there in shown]
    text = "; ".join(said) if shown is found else f"{len(found)} configurations, from {' to '.join(said)}"
    return _where(_grade(*(loss <= 0.05 for loss, *_ in found)), tasks), text


ZAREMBA = {"density": 0.3, "fine_tune": 0.3}
PRESSED = {"l0": ZAREMBA | {"l0_weight": 0.003}, "iss": ZAREMBA}
BOTH_COUNTED = (  # task, model, what L0 and ISS were given, a density above all, the test that tells them apart
    ("pydocs-char", "lstm-128", dict.fromkeys(PRESSED, {"density": 0.3}), "test"),
    ("digits", "rnn-128", dict.fromkeys(PRESSED, {"density": 0.3}), "noisy"),
    ("squad", "bidaf-100", dict.fromkeys(PRESSED, {"density": 0.25}), "test"),
    ("ptb-word", "zaremba-medium", PRESSED, "test"),
)


def _neurons(evidence):
    """L0 against ISS wherever both were asked for the same share of weights: it has to keep fewer neurons and be no worse."""
    verdicts, said, tasks = [], [], []
    for task, model, given, split in BOTH_COUNTED:
        pair = [evidence.row(task, name, model, options) for name, options in given.items()]
        if any(row is None for row in pair):
            continue
        no_worse, gap = _verdict("no worse", *pair, split)
        kept = [sum(row["neurons_by_seed"]) / len(row["neurons_by_seed"]) for row in pair]
        loss = "not known item by item" if gap is None else _said_gap(gap, pair[0]["metric"])
        figures = " and ".join(
            f"{row['method']}: {says(row)}, {n:.4g} neurons" for row, n in zip(pair, kept, strict=True)
        )
        said.append(f"{task}: {figures}; l0 less iss{_of_test(split)}: {loss}")
        verdicts.append(False if kept[0] >= kept[1] else no_worse)
        tasks.append(task)
    if not verdicts:
        return _not_run("any task", "l0", "iss")
    undecided = None in verdicts and True not in verdicts and False not in verdicts
    return _where(UNDECIDED if undecided else _grade(*(verdict is True for verdict in verdicts)), tasks), "; ".join(
        said
    )


def _sharing(cell, r, tied=""):
    """A row of 1908.07724's stack with a sharing rate; 0 is the ordinary layer."""
    model, label = f"rrnn-3x200-{cell}{tied}", f"{cell.upper()}{' TD' if tied else ''} r = {r:g}"
    return (label, "restricted", model, {} if r == SHARING else {"sharing": r}) if r else (label, "dense", model, {})


def _counts(evidence):
    """Parameters of three layers of 200, biases included, beside the paper's table less its 9,800 (tests count layers): its
    decoder's bias of 10,000, less 200 (`tests/test_restricted.py`)."""
    reported = {
        "RNN": (241_200, 180_900, 120_600),
        "GRU": (723_600, 422_100, 120_600),
        "LSTM": (964_800, 542_700, 120_600),
    }
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}
    found = {cell: tuple(3 * pool_size(gates[cell], 200, 200, r) for r in (0, 0.5, 1)) for cell in reported}
    text = "; ".join(f"{cell}: {', '.join(f'{n:,}' for n in sizes)} at r = 0, 0.5, 1" for cell, sizes in found.items())
    text += " (the paper's tables add 9,800: the decoder's bias, 10,000, less 200)"
    return _grade(*(found[cell] == reported[cell] for cell in reported)), text


CHAR = "pydocs-char"
DENSE = ("dense", "dense", "lstm-128", {})
SAME, LARGER = (
    (label, "gradual", model, {"density": 0.1}) for label, model in (("same size", "lstm-128"), ("larger", "lstm-256"))
)
CLAIMS = {
    "A1": ("≥ 99.5 % zeros on sentiment, nothing lost", _sentiment_zeros),
    "A2": (
        "87 % zeros on PTB characters, a slight loss (1.429 bpc)",
        _at("ptb-char", "sparse-vd-w", 1.429, 7.89, 0.02),
    ),
    "A3": ("one noise sample for all time steps; fresh noise a step does not train properly", _noise),
    "B1": (
        "IMDb, W: 85.1 % at 1,135× (their logs: 84.1 % at 1,209×)",
        _quality("imdb", "sparse-vd-w", 0.851, 1135),
    ),
    "B1, W+Voc": (
        "IMDb, W+Voc: 83.6 % at 18,792× (their logs: 83.3 % at 19,499×)",
        _quality("imdb", "sparse-vd-w-voc", 0.836, 18792),
    ),
    "B2": ("AG News, W: 88.8 % at 322×", _quality("ag-news", "sparse-vd-w", 0.888, 322)),
    "B2, W+Voc": ("AG News, W+Voc: 89.2 % at 469×", _quality("ag-news", "sparse-vd-w-voc", 0.892, 469)),
    "B3": ("PTB characters: W beats the dense net (1.429 against 1.454 bpc)", _beats_dense("ptb-char", "sparse-vd-w")),
    "B3, W+N": ("PTB characters, W+N: 1.430 bpc at 10×", _at("ptb-char", "sparse-vd-wn", 1.43, 10.0, 0.005)),
    "B3, W+G+N": ("PTB characters, W+G+N: 1.425 bpc at 9.8×", _at("ptb-char", "sparse-vd-wgn", 1.425, 9.8, 0.005)),
    "B4": ("PTB words: W beats the dense net (109 against 129)", _beats_dense("ptb-word", "sparse-vd-w")),
    "B4, W+Voc": ("PTB words, W+Voc: 120 at 19×", _at("ptb-word", "sparse-vd-w-voc", 120.2, 19.3, 1.2)),
    "B4, W+N": ("PTB words, W+N: 111 at 23×", _at("ptb-word", "sparse-vd-wn", 111.0, 23.5, 1.1)),
    "B4, W+G+N": ("PTB words, W+G+N: 116 at 24×", _at("ptb-word", "sparse-vd-wgn", 116.5, 24.5, 1.2)),
    "B5": (
        "gate variables beside those of neurons leave fewer live gates: IMDb 19 → 8, AG News 62 → 39, PTB words 276 → 201, "
        "but not on PTB characters (1560 → 1563)",
        _gates,
    ),
    "B6": ("removed gates are constants; which, depends on the task", _constants),
    "B7": ("the shrunk net has the masked one's accuracy, to 4 digits", _shrunk),
    "B8": ("kept IMDb words are sentiment words; ratings 5 and 6 go", _words),
    "C1": (
        "the threshold schedule with its heuristics ends near 90 % zeros (those of Table 1, but for when pruning begins and "
        "ends, and how often masks change: presets.py has them for trainings as short as these)",
        _heuristics,
    ),
    "C2": (
        "a sparse net of the same size is worse, a larger sparse one as good as the dense",
        _judged(CHAR, ("worse", SAME, DENSE), ("no worse", LARGER, DENSE)),
    ),
    "C3": (
        "a large sparse net beats a small dense one of as many weights",
        _judged(CHAR, ("better", LARGER, ("small dense", "dense", "lstm-56", {}))),
    ),
    "C4": (
        "gradual pruning beats hard pruning",
        _judged(CHAR, ("better", SAME, ("hard", "hard", "lstm-128", {"density": 0.1}))),
    ),
    "C5": ("sparse products are 2 to 7 times faster at 90 to 95 % zeros", _products),
    "C6": ("80 to 90 % of blocks up to 32×32 go at a small loss", _blocks),
    **_speech("rnn"),
    **_speech("gru"),
    "D1": (
        "L0: a 2×1500 LSTM on PTB loses neurons, no perplexity, and runs 20 times as fast (judged: the perplexity of a 2×650 one "
        "with three tenths of its weights, not its speed)",
        _at_most_in_part(
            _judged(
                "ptb-word",
                (
                    "no worse",
                    ("l0", "l0", "zaremba-medium", PRESSED["l0"]),
                    ("dense", "dense", "zaremba-medium", {}),
                ),
            )
        ),
    ),
    "D2": ("L0 leaves fewer neurons than ISS at equal quality", _neurons),
    "D3": (
        "L0 works for RHN and BiDAF (judged: BiDAF with a quarter of its recurrent weights; RHN is not here)",
        _judged(
            "squad",
            ("no worse", ("l0", "l0", "bidaf-100", {"density": 0.25}), ("dense", "dense", "bidaf-100", {})),
        ),
    ),
    "E1": (
        "PTB words: r = 0.5 loses little in an LSTM (129.0 against 124.6), much in an RNN (176.5 against 154.8)",
        _compared(
            "ptb-word",
            [_sharing("lstm", 0), _sharing("lstm", 0.5), _sharing("rnn", 0), _sharing("rnn", 0.5)],
            lambda lstm, half, rnn, shared: (half <= 1.05 * lstm, shared >= 1.05 * rnn),
        ),
    ),
    "E2": (
        "PTB words: tied and with dropout, r = 0.5 is better than r = 0 (103.5 against 107.7)",
        _judged("ptb-word", ("better", _sharing("lstm", 0.5, "-td"), _sharing("lstm", 0, "-td"))),
    ),
    "E3": (
        "PTB words: a shared LSTM with fewer recurrent weights beats the plain RNN (148.1 against 154.8)",
        _judged("ptb-word", ("better", _sharing("lstm", 0.9), _sharing("rnn", 0))),
    ),
    "E4": (
        "PTB words: an LSTM that shares everything collapses (188 at r = 1, 148 at 0.9)",
        _compared("ptb-word", [_sharing("lstm", 0.9), _sharing("lstm", 1.0)], lambda most, all_: (all_ > 1.1 * most,)),
    ),
    "E5": ("parameters of the restricted stacks", _counts),
}  # fmt: skip


def table(results):
    """Every claim with its verdict: claim, says, verdict, here (the figures, or what would have to be run)."""
    evidence = gather(results)
    rows = [(name, says, *check(evidence)) for name, (says, check) in CLAIMS.items()]
    return pd.DataFrame(rows, columns=["claim", "says", "verdict", "here"])
