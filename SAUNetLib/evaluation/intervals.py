"""Bootstrap confidence intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

RESAMPLES = 2000


def interval(figure: Callable[..., float], *columns: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of a figure, patients drawn with replacement, always from the same seed.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993. Draws for which the figure is NaN do not count.
    Of few patients it is too narrow: that of the mean of 4 or 5 holds the true one in about 80 % of cases.

    Args:
        figure: of columns like the given ones.
        columns: one entry per patient each.

    Returns:
        Lower and upper bound; NaN where there is one patient only, or no draw has the figure.
    """
    data = tuple(np.asarray(column) for column in columns)
    if len(data[0]) < 2:
        return float("nan"), float("nan")
    # Of distances that are infinite, since one side is empty, NumPy warns.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of SciPy's own interval, which knows no NaN
        drawn = bootstrap(
            data, figure, paired=True, vectorized=False, method="percentile", n_resamples=RESAMPLES, random_state=0
        ).bootstrap_distribution
        if np.isnan(drawn).all():
            return float("nan"), float("nan")
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)
