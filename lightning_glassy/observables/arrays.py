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
    """Return the places of at most ``most`` of some numbers, evenly in the logarithm of 1 + number, with both ends.

    Args:
        values: ``[n]``, increasing and not negative.
        most: at least 2. No number is left out if there are not more.

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


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN if the denominator is not positive."""
    with quiet():
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))
