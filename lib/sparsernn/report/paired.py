"""Is one run better than another, or were the test items kind to it? Paired t tests over items that both answered.

Two nets trip over the same hard items, so that most of what a test set's draw does to one it does to the other: a test of
the differences item by item has a far narrower interval than each net's own would. Items that share recordings count as one;
an item of a language model is a piece of text, long enough that its neighbours tell little of it. (With twenty pieces the
percentiles of a bootstrap, as Koehn 2004 has them, cover 93 % where 95 are meant, Student's t 96.)
"""

import math

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from .intervals import LEVEL
from .plots.style import METRICS

CUT = 2  # last pieces of a text that runs may have read to different ends


def difference(first, second, split="test"):
    """The second run's error rate less the first's on a test split, and its 95 % interval: (difference, low, high).

    first, second  `<split>.errors`, `.of` and, where items share data, `.groups` → [N] (`study.evaluation.mistakes`)
    An error rate is all errors over all there is to get right; of a language model it is its bits a symbol. Raises KeyError for
    a split that was not kept, ValueError for runs whose items are not the same, or all of one group, which tells nothing of
    others.
    """
    (ours, theirs), of, groups = _same_items([first, second], split)
    gaps, of = _by_group([theirs - ours, of], groups, split)
    return gaps.sum() / of.sum(), *_ends(gaps, of)


def interval(run, split="test"):
    """A run's error rate on a test split, and its 95 % interval over the items: (rate, low, high)."""
    (errors,), of, groups = _same_items([run], split)
    errors, of = _by_group([errors, of], groups, split)
    rate = errors.sum() / of.sum()
    low, high = _ends(errors - rate * of, of)  # of a ratio: what an item has more than its share
    return rate, max(0.0, rate + low), rate + high


def over_items(runs, metric):
    """95 % interval, over the test's items, of a metric's figure, of errors (or bits) that are means over runs, one a seed;
    (NaN, NaN) where one of them is None, or they have no such items, or not the same, or too few."""
    if any(run is None for run in runs):
        return math.nan, math.nan
    try:
        _, *ends = interval(mean_of(runs))
    except (KeyError, ValueError):
        return math.nan, math.nan
    return tuple(sorted(figure_of(rate, metric) for rate in ends))


def rate_of(run, split="test"):
    """All errors of a run on a test split over all there was to get right."""
    return run[f"{split}.errors"].sum() / run[f"{split}.of"].sum()


def figure_of(rate, metric):
    """A metric's figure from what was spent on an item, on the mean: the share that was wrong, or bits."""
    if metric == "perplexity":
        return math.inf if rate >= 1024 else 2**rate
    return 1 - rate if METRICS[metric][1] == "higher" else rate


def _ends(values, of):
    """95 % interval of the mean of values, in units of the mean of `of`."""
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # scipy warns of such
        return (values[0] / of.mean(),) * 2
    found = stats.ttest_1samp(values, 0).confidence_interval(LEVEL)
    return found.low / of.mean(), found.high / of.mean()


def _by_group(columns, groups, split):
    """Columns over items, those of a group added up. Raises ValueError where there is one group alone."""
    items = len(columns[0])
    if groups is not None:
        _, groups = np.unique(groups, return_inverse=True)
        columns = [np.bincount(groups, values) for values in columns]
    if len(columns[0]) < 2:
        raise ValueError(f"all {items} items of {split} are of one group; an interval needs two or more")
    return columns


def mean_of(runs):
    """What several runs got wrong, one a seed, as one: errors are means. Raises ValueError for runs of other items."""
    found = {}
    for split in [name.removesuffix(".of") for name in runs[0] if name.endswith(".of")]:
        errors, of, groups = _same_items(runs, split)
        found |= {f"{split}.errors": np.mean(errors, 0), f"{split}.of": of}
        found |= {} if groups is None else {f"{split}.groups": groups}
    return found


def p_value(ours, theirs, split="test"):
    """The p value of equal error rates of two lists of runs, one a seed, each as `difference` takes it, on the same items.

    Of one run each whose items are right or wrong and stand alone it is McNemar's, exact; else a paired t test of the items'
    errors, means over the seeds, those of a group added up. Raises ValueError for runs whose items are not the same, or of one
    group alone.
    """
    errors, _, groups = _same_items([*ours, *theirs], split)
    here, there = np.mean(errors[: len(ours)], 0), np.mean(errors[len(ours) :], 0)
    alone = groups is None
    if alone and len(ours) == len(theirs) == 1 and max(here.max(initial=0), there.max(initial=0)) <= 1:
        one, other = int(((here == 1) & (there == 0)).sum()), int(((here == 0) & (there == 1)).sum())
        return float(mcnemar([[0, one], [other, 0]], exact=True).pvalue) if one + other else 1.0
    here, there = _by_group([here, there], groups, split)
    return float(stats.ttest_rel(here, there).pvalue) if (here != there).any() else 1.0


def _same_items(runs, split):
    """→ a list of the runs' errors, and `of` and `groups` (or None) that all of them have. Raises ValueError where they do not.

    A language model reads a text in streams, and leaves out the few symbols at its end that do not divide into them: its last
    pieces, one or two, which not all runs read whole, are not compared."""
    ofs, errors = ([run[f"{split}.{name}"] for run in runs] for name in ("of", "errors"))
    most, n = max(map(len, ofs)), min(map(len, ofs))
    alike = np.all([of[:n] == ofs[0][:n] for of in ofs], 0)
    n = n if alike.all() else int(alike.argmin())
    text = any(values.dtype.kind == "f" for values in errors)
    if n < most and not (text and n >= max(2, most - CUT)):
        raise ValueError(f"{split}.of differs between the runs: they did not answer the same items")
    groups = [run.get(f"{split}.groups") for run in runs]
    if not all(np.array_equal(groups[0], other) for other in groups[1:]):
        raise ValueError(f"{split}.groups differs between the runs: they did not answer the same items")
    return [values[:n] for values in errors], ofs[0][:n], None if groups[0] is None else groups[0][:n]
