"""Is one run better than another, or were the test items kind to it? A bootstrap over items that both answered.

Two nets trip over the same hard items, so that most of what a test set's draw does to one it does to the other: resampling
items with both answers on them (Koehn 2004; Bisani & Ney 2004 for speech) gives the difference a far narrower interval than
each net's own would. Items that share recordings are drawn together.
"""

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999
AT_ONCE = 1 << 22  # numbers drawn at a time: memory, not result


def difference(first, second, split="test"):
    """The second run's error rate less the first's on a test split, and its 95 % interval: (difference, low, high).

    first, second  `<split>.errors`, `.of` and, where items share data, `.groups` → int [N] (`study.evaluation.mistakes`)
    An error rate is all errors over all there is to get right. Raises KeyError for a split that was not kept, ValueError for
    runs whose items are not the same, or all of one group, which tells nothing of others.
    """
    of, groups = first[f"{split}.of"], first.get(f"{split}.groups")
    for name, here, there in (("of", of, second[f"{split}.of"]), ("groups", groups, second.get(f"{split}.groups"))):
        if not np.array_equal(here, there):
            raise ValueError(f"{split}.{name} differs between the runs: they did not answer the same items")
    _, groups = np.unique(np.arange(len(of)) if groups is None else groups, return_inverse=True)
    if groups.max(initial=0) == 0:
        raise ValueError(f"all {len(of)} items of {split} are of one group; an interval needs two or more")
    errors = second[f"{split}.errors"] - first[f"{split}.errors"]
    sums = [np.bincount(groups, values) for values in (errors, of)]
    found = bootstrap(
        sums, _rate, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
        batch=max(1, AT_ONCE // len(sums[0])), rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(_rate(*sums)), float(found.low), float(found.high)


def _rate(errors, of, axis=-1):
    return errors.sum(axis) / of.sum(axis)
