# SPDX-License-Identifier: GPL-2.0-or-later
"""The statistics that pages and comparisons share. Pure."""

from collections.abc import Sequence


def compute_interval(count: int, of: int, risk: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a share (Clopper and Pearson), 0 to 1.

    :param of: at least 1
    :param risk: the probability that the interval misses the share
    """
    # scipy takes longer to load than the rest of the lab. So import scipy only when there is a figure to compute.
    from scipy.stats import beta

    low = float(beta.ppf(risk / 2, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - risk / 2, count + 1, of - count)) if count < of else 1.0
    return low, high


def compute_quantile_interval(n: int, share: float, risk: float) -> tuple[int | None, int | None]:
    """Return the indices of the ordered values that enclose a quantile. None stands for a bound beyond all values.

    The number of values below a quantile has a binomial distribution, whatever the values' distribution is.

    :param share: of the values that are below the quantile, between 0 and 1
    :param risk: the probability that the interval misses the quantile
    """
    # scipy takes longer to load than the rest of the lab. So import scipy only when there is a figure to compute.
    from scipy.stats import binom

    low = int(binom.ppf(risk / 2, n, share)) - 1
    high = int(binom.ppf(1 - risk / 2, n, share))
    return low if low >= 0 else None, high if high < n else None


def correct(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, in their order.

    Among a hundred tests one has p below 0.01 by chance alone. Holm's step-down: the k-th smallest p of n, counted from
    0, is multiplied by n - k. No result is below the result before it.
    """
    found, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
        found[index] = least
    return found
