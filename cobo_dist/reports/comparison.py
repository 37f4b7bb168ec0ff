"""Statistics that compare methods: paired tests, ranks over data sets and seeds, and how clients fare.

The tests are those of Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cobo_dist.reports.statistics import Array

LEVEL = 0.05
"""From which p-value on a difference does not count as shown."""
_MAX_ENUMERATED = 12  # differences, all signs of which are tried: 4096 times


def signed_rank_test(differences: npt.ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test that paired differences are about 0.

    Differences of 0 and NaN are left out; 1 where none is left. It is exact for up to 12 differences, and
    for up to 50 of which no two are equal.

    >>> signed_rank_test([1.0, 2.0, 3.0])
    0.25
    """
    from scipy import stats

    known: Array = np.asarray(differences, dtype=np.float64)
    known = known[np.isfinite(known) & (known != 0)]
    if not len(known):
        return 1.0
    if len(known) <= _MAX_ENUMERATED:  # also where ranks are equal
        ranks = stats.rankdata(np.abs(known))
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(known))[:, None] >> np.arange(len(known))) & 1)
        sums, found = np.abs(signs @ ranks), abs(float(np.sign(known) @ ranks))
        return float(np.mean(sums >= found - 1e-9))
    return float(stats.wilcoxon(known).pvalue)


def least_p(pairs: int) -> float:
    """Return the smallest p-value that `signed_rank_test` can have: all differences of one sign.

    >>> least_p(3), least_p(6)
    (0.25, 0.03125)
    """
    return min(1.0, 2.0 ** (1 - pairs))


def seeds_needed(comparisons: int, level: float = LEVEL) -> int:
    """Return with how many seeds the smallest of some p-values can be below a level, corrected by Holm.

    >>> seeds_needed(1), seeds_needed(5)
    (6, 8)
    """
    return 1 + math.floor(math.log2(2.0 * comparisons / level)) if comparisons else 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the same order.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    stepped = np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(p) for p in corrected]


def worst_tenth(values_n: npt.ArrayLike, higher: bool = True) -> float:
    """Return the mean of the 10% of clients, rounded up, that fare worst.

    >>> worst_tenth(np.arange(11.0))
    0.5
    """
    ordered: Array = np.sort(np.asarray(values_n, dtype=np.float64))
    count = math.ceil(len(ordered) / 10)
    return float((ordered[:count] if higher else ordered[len(ordered) - count :]).mean())


def jain_index(values_n: npt.ArrayLike) -> float:
    """Return Jain's fairness index, (sum x)^2 / (n sum x^2): 1 if all have the same, 1/n if one has all.

    >>> jain_index([1.0, 1.0]), jain_index([1.0, 0.0])
    (1.0, 0.5)
    """
    values: Array = np.asarray(values_n, dtype=np.float64)
    squares = float(len(values) * (values**2).sum())
    return float(values.sum()) ** 2 / squares if squares else math.nan


def harmed(
    own: Mapping[int, float], alone: Mapping[int, float], higher: bool = True
) -> list[int] | None:
    """Return the clients that fare worse than alone, ascending; None where the clients are not the same.

    >>> harmed({0: 1.0, 1: 3.0}, {0: 2.0, 1: 2.0})
    [0]
    """
    if own.keys() != alone.keys() or not own:
        return None
    return sorted(i for i in own if (own[i] < alone[i] if higher else own[i] > alone[i]))


def ranks(scores: Mapping[object, Mapping[str, float]], higher: bool = True) -> pd.DataFrame:
    """Return ranks, 1 the best, of the methods that have a score in every block; [block, method].

    A block is a data set and a seed; `scores` are by block and method. Equal scores share the mean of their
    ranks.
    """
    frame = pd.DataFrame.from_dict(
        {str(block): own for block, own in scores.items()}, orient="index"
    )
    return frame.dropna(axis="columns").rank(axis="columns", ascending=not higher)


def critical_difference(methods: int, blocks: int, level: float = LEVEL) -> float:
    """Return how far two mean ranks must be apart to differ at this level, by Nemenyi's test.

    q sqrt(k (k + 1) / (6 N)), q being the quantile of the studentized range over sqrt(2).

    >>> round(critical_difference(5, 30), 3)
    1.114
    """
    from scipy import stats

    quantile = stats.studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(quantile * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def alike(means_k: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return the longest groups of methods that do not differ: first and last place of ascending mean ranks.

    >>> alike([1.0, 1.5, 2.2, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, low in enumerate(means_k):
        last = int(np.searchsorted(means_k, low + difference, side="right")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
