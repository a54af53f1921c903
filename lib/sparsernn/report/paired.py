"""Is one run better than another, or were the test items kind to it? A bootstrap over items that both answered.

Two nets trip over the same hard items, so that most of what a test set's draw does to one it does to the other: resampling
items with both answers on them (Koehn 2004; Bisani & Ney 2004 for speech) gives the difference a far narrower interval than
each net's own would. Items that share recordings are drawn together.
"""

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

RESAMPLES = 9999
AT_ONCE = 1 << 22  # numbers drawn at a time: memory, not result


def difference(first, second, split="test"):
    """The second run's error rate less the first's on a test split, and its 95 % interval: (difference, low, high).

    first, second  `<split>.errors`, `.of` and, where items share data, `.groups` → int [N] (`study.evaluation.mistakes`)
    An error rate is all errors over all there is to get right. Raises KeyError for a split that was not kept, ValueError for
    runs whose items are not the same, or all of one group, which tells nothing of others.
    """
    of, groups = _same_items([first, second], split)
    _, groups = np.unique(np.arange(len(of)) if groups is None else groups, return_inverse=True)
    if groups.max(initial=0) == 0:
        raise ValueError(f"all {len(of)} items of {split} are of one group; an interval needs two or more")
    errors = second[f"{split}.errors"] - first[f"{split}.errors"]
    sums = [np.bincount(groups, values) for values in (errors, of)]
    found = stats.bootstrap(
        sums, _rate, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        batch=max(1, AT_ONCE // len(sums[0])), rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(_rate(*sums)), float(found.low), float(found.high)


def mean_of(runs):
    """What several runs got wrong, one a seed, as one: errors are means. Raises ValueError for runs of other items."""
    found = dict(runs[0])
    for split in [name.removesuffix(".of") for name in found if name.endswith(".of")]:
        _same_items(runs, split)
        found[f"{split}.errors"] = np.mean([run[f"{split}.errors"] for run in runs], 0)
    return found


def p_value(ours, theirs, split="test"):
    """The p value of equal error rates of two lists of runs, one a seed, each as `difference` takes it, on the same items.

    Of one run each whose items are right or wrong and stand alone it is McNemar's, exact; else a paired t test of the items'
    errors, means over the seeds, those of a group added up. Raises ValueError for runs whose items are not the same.
    """
    _, groups = _same_items([*ours, *theirs], split)
    here, there = (np.mean([run[f"{split}.errors"] for run in runs], 0) for runs in (ours, theirs))
    alone = groups is None
    if alone and len(ours) == len(theirs) == 1 and max(here.max(initial=0), there.max(initial=0)) <= 1:
        one, other = int(((here == 1) & (there == 0)).sum()), int(((here == 0) & (there == 1)).sum())
        return float(mcnemar([[0, one], [other, 0]], exact=True).pvalue) if one + other else 1.0
    if not alone:
        _, groups = np.unique(groups, return_inverse=True)
        here, there = np.bincount(groups, here), np.bincount(groups, there)
    return float(stats.ttest_rel(here, there).pvalue) if (here != there).any() else 1.0


def _same_items(runs, split):
    """→ `of` and `groups` (or None) that all the runs have. Raises ValueError where they do not."""
    of, groups = runs[0][f"{split}.of"], runs[0].get(f"{split}.groups")
    for run in runs[1:]:
        for name, here, there in (("of", of, run[f"{split}.of"]), ("groups", groups, run.get(f"{split}.groups"))):
            if not np.array_equal(here, there):
                raise ValueError(f"{split}.{name} differs between the runs: they did not answer the same items")
    return of, groups


def _rate(errors, of, axis=-1):
    return errors.sum(axis) / of.sum(axis)
