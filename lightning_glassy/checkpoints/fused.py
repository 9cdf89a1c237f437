"""Sum pairs of checkpoints in one compiled loop, which needs the package numba.

Plain torch needs eight passes over a tile for two thresholds. The loop needs one, and is about five times as fast.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Values of each row that are summed in their own precision before they are added to a float64 sum. So many values of
# 150 checkpoints fit in a second-level cache.
_BLOCK = 1024

MEMORY = 160 << 20
"""Bytes that numba and its compiler take, about."""

PairSums = Callable[..., None]


def available() -> bool:
    """Return whether numba can be imported. It refuses a NumPy that is newer than itself."""
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


@lru_cache(maxsize=1)
def compiled() -> PairSums:
    """Return the compiled function ``sum_pairs(rows, earlier, later, bounds, scale, out)``.

    Its arguments are the values ``[n_row, n_tile, n]``, the rows of each pair, the squares of the scaled thresholds (an
    even number of them), the factor of the differences d, and the result ``[n_pair, n_tile, 2 + n_bound]``, float64:
    the sums of (scale d)^2 and of (scale d)^4, and the numbers of coordinates below each bound. The function holds no
    lock of Python.
    """
    from lightning_glassy.measure.moments import cpu

    pair_of_block = cpu.pair_of_block

    @cpu.compiled
    def sum_pairs(rows: Any, earlier: Any, later: Any, bounds: Any, scale: Any, out: Any) -> None:
        out[:] = 0
        for tile in range(rows.shape[1]):
            for start in range(0, rows.shape[2], _BLOCK):
                block = np.ascontiguousarray(rows[:, tile, start : start + _BLOCK])
                for pair in range(len(earlier)):
                    a, b = block[earlier[pair]], block[later[pair]]
                    for k in range(0, len(bounds), 2):
                        d2, d4, n_low, n_high = pair_of_block(a, b, bounds[k], bounds[k + 1], scale)
                        if k == 0:
                            out[pair, tile, 0] += d2
                            out[pair, tile, 1] += d4
                        out[pair, tile, 2 + k] += n_low
                        out[pair, tile, 3 + k] += n_high

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
