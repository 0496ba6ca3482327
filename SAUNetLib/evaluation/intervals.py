"""Bootstrap confidence intervals over patients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

RESAMPLES = 2000


def interval(figure: Callable[..., float], *columns: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a figure, over patients drawn with replacement, with a fixed seed.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993. Draws for which the figure is NaN do not count.
    Of few patients it is too narrow: that of the mean of 4 or 5 holds the true one in about 80 % of cases.

    Args:
        figure: function of the (resampled) columns.
        columns: each with one entry per patient.

    Returns:
        Lower and upper bound; NaN for a single patient, or if the figure is NaN in every draw.
    """
    data = tuple(np.asarray(column) for column in columns)
    if len(data[0]) < 2:
        return float("nan"), float("nan")
    # NumPy warns of distances that are infinite because one side is empty.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # from SciPy's own interval, which does not handle NaN
        drawn = bootstrap(
            data, figure, paired=True, vectorized=False, method="percentile", n_resamples=RESAMPLES, random_state=0
        ).bootstrap_distribution
        if np.isnan(drawn).all():
            return float("nan"), float("nan")
        low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return float(low), float(high)
