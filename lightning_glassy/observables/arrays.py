"""The arrays that formulas take and return."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def quiet() -> np.errstate:
    """Silence NumPy's warnings. Diverged weights are data, so inf and NaN are returned as they are."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def float64(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Convert each argument to a float64 array."""
    return tuple(np.asarray(a, dtype=np.float64) for a in arrays)


def log_spaced(values: ArrayLike, most: int) -> NDArray[np.int64]:
    """Return the places of at most ``most`` numbers, spread evenly in the logarithm of 1 + number, with both ends.

    Args:
        values: ``[n]``, increasing and not negative.
        most: at least 2. If there are no more numbers than this, all are kept.

    Example:
        >>> log_spaced(range(1000), 8).tolist()
        [0, 2, 7, 19, 51, 138, 372, 999]
    """
    x = np.log1p(np.asarray(values, dtype=np.float64))
    places = np.arange(len(x))
    if len(x) <= most:
        return places
    # Keep the first number of each interval. Bisect for the narrowest intervals that leave few enough numbers.
    narrow, wide = 0.0, 2 * (x[-1] - x[0])
    for _ in range(40):
        width = (narrow + wide) / 2
        interval = np.floor((x[:-1] - x[0]) / width)
        kept = np.flatnonzero(np.diff(interval, prepend=-1))
        narrow, wide = (narrow, width) if len(kept) < most else (width, wide)
        if len(kept) < most:
            places = np.append(kept, len(x) - 1)
    return places


@quiet()
def over_replicas(values: ArrayLike) -> tuple[Array, Array]:
    r"""Return the mean over replicas and its standard error, :math:`\sqrt{\sum_r (x_r - \bar x)^2 / (R (R-1))}`.

    The jackknife over replicas gives the same error for a mean.

    Args:
        values: ``[n_replica, ...]``.

    Returns:
        The mean and its error, both ``[...]``. If a replica is not finite, the error is NaN and the mean is not finite.
        The error of one replica is NaN.

    Example:
        >>> mean, error = over_replicas([1.0, 2.0, 3.0])
        >>> float(mean), round(float(error), 4)
        (2.0, 0.5774)
    """
    (of_replicas,) = float64(values)
    n_replica, mean = len(of_replicas), np.asarray(of_replicas.mean(axis=0))
    if n_replica < 2:
        return mean, np.full(mean.shape, np.nan)
    return mean, np.asarray(of_replicas.std(axis=0, ddof=1) / np.sqrt(n_replica))


@quiet()
def jackknife_error(values: ArrayLike) -> Array:
    r"""Return the jackknife error :math:`\sqrt{\frac{R-1}{R}\sum_r (\theta_{(r)} - \bar\theta)^2}` of an estimate.

    Args:
        values: the estimates :math:`\theta_{(r)}` without replica r, ``[n_replica, ...]``.

    Returns:
        ``[...]``, NaN if an estimate without a replica is NaN, or with fewer than two replicas.
    """
    (without,) = float64(values)
    n_replica = len(without)
    if n_replica < 2:
        return np.full(without.shape[1:], np.nan)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt((n_replica - 1) / n_replica * spread))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN if the denominator is not positive."""
    with quiet():
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))
