"""Sum pairs of checkpoints in one compiled loop, which needs the package numba.

Plain torch needs eight passes over a tile for two thresholds. The loop needs one, and is about five times as fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MEMORY = 160 << 20
"""Bytes that numba and its compiler take, about."""

PairSums = Callable[..., None]


def available() -> bool:
    """Return whether numba can be imported. numba refuses a NumPy that is newer than itself."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


@lru_cache(maxsize=1)
def compiled() -> PairSums:
    """Return the compiled function :func:`lightning_glassy.measure.moments.compiled.sum_pairs`."""
    from lightning_glassy.measure.moments.compiled import sum_pairs

    return sum_pairs


def pair_sums(
    rows: NDArray[np.floating],
    earlier: NDArray[np.int64],
    later: NDArray[np.int64],
    thresholds: tuple[float, ...],
    scale: float,
) -> NDArray[np.float64]:
    """Return the sums of pairs of rows, ``[n_pair, n_tile, 2 + n_threshold]``.

    Args:
        rows: values ``[n_row, n_tile, n]``, float32 or float64.
        earlier: the row of the earlier checkpoint of each pair.
        later: the row of the later checkpoint of each pair.
        thresholds: the thresholds of the overlap.
        scale: the factor of the sum of d^4, a power of two.
    """
    from lightning_glassy.measure.moments.cpu import SCALE

    n = len(thresholds)
    bounds = np.full(max(n + n % 2, 2), -1, dtype=rows.dtype)
    bounds[:n] = np.square(np.multiply(SCALE, thresholds))
    found = np.empty((len(earlier), rows.shape[1], 2 + len(bounds)))
    compiled()(rows, earlier, later, bounds, rows.dtype.type(SCALE), found)
    found[..., 0] /= SCALE**2
    found[..., 1] *= scale / SCALE**4
    return found[..., : 2 + n]
