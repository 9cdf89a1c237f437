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


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN if the denominator is not positive."""
    with quiet():
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))
