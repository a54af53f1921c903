"""How far a figure can be trusted: 95 % intervals over seeds and over the items of a test, and whether two figures differ.

Over seeds it is Student's t, from three on; of an accuracy it is Wilson's interval over the test items. All of it is scipy's.
Of a perplexity, of bits or of an error rate something can be said from what each item costs (`paired`), else from seeds alone.
"""

import math

import numpy as np
from scipy import stats

LEVEL = 0.95


def over_seeds(values):
    """(low, high) of the mean over seeds; of fewer than three seeds (NaN, NaN), for t says nothing of them."""
    values = np.asarray(values, float)
    if len(values) < 3:
        return math.nan, math.nan
    error = stats.sem(values)
    return stats.t.interval(LEVEL, len(values) - 1, values.mean(), error) if error else (values[0], values[0])


def over_items(share, items):
    """(low, high) of a share right of so many test items, by Wilson; (NaN, NaN) where their number is not known."""
    if not items or items != items:
        return math.nan, math.nan
    found = stats.binomtest(round(share * items), int(items)).proportion_ci(LEVEL, method="wilson")
    return found.low, found.high


def p_value(ours, theirs, items=math.nan):
    """The p value of equal means of two lists of figures, one a seed; NaN where nothing can be said.

    items: of the test, for accuracies: then by a 2 × 2 table of right and wrong, unpaired, which is on the safe side where both
    read the same items. Otherwise by Welch's t, from two seeds each on.
    """
    if items == items:
        right = np.array([round(float(np.mean(values)) * items) for values in (ours, theirs)])
        table = np.stack([right, items - right])
        return stats.chi2_contingency(table, correction=False).pvalue if table.sum(1).all() else 1.0
    if min(len(ours), len(theirs)) < 2 or not (np.ptp(ours) or np.ptp(theirs)):
        return math.nan
    return stats.ttest_ind(ours, theirs, equal_var=False).pvalue
