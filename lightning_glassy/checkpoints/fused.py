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

    Its arguments are the values ``[n_row, n_tile, n]``, the rows of each pair, the squares of the thresholds (an even
    number of them), the factor of the sum of d^4, and the result ``[n_pair, n_tile, 2 + n_bound]``, float64: the sums
    of d^2 and of d^4, and the numbers of coordinates with d^2 below each bound. The function holds no lock of Python.
    """
    from numba import njit

    # The order of a sum is free, as in torch. NaN and infinite values keep their meaning.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}

    @njit(**options)  # type: ignore[untyped-decorator]
    def of_block(a: Any, b: Any, low: Any, high: Any, scale: Any) -> Any:
        zero = scale - scale
        one = scale / scale
        d2, d4, n_low, n_high = zero, zero, zero, zero
        for k in range(a.shape[0]):
            difference = a[k] - b[k]
            square = difference * difference
            d2 += square
            d4 += (square * scale) * square
            n_low += one if square <= low else zero
            n_high += one if square <= high else zero
        return d2, d4, n_low, n_high

    @njit(**options)  # type: ignore[untyped-decorator]
    def sum_pairs(rows: Any, earlier: Any, later: Any, bounds: Any, scale: Any, out: Any) -> None:
        out[:] = 0
        for tile in range(rows.shape[1]):
            for start in range(0, rows.shape[2], _BLOCK):
                block = np.ascontiguousarray(rows[:, tile, start : start + _BLOCK])
                for pair in range(len(earlier)):
                    a, b = block[earlier[pair]], block[later[pair]]
                    for k in range(0, len(bounds), 2):
                        d2, d4, n_low, n_high = of_block(a, b, bounds[k], bounds[k + 1], scale)
                        if k == 0:
                            out[pair, tile, 0] += d2
                            out[pair, tile, 1] += d4
                        out[pair, tile, 2 + k] += n_low
                        out[pair, tile, 3 + k] += n_high

    return sum_pairs  # type: ignore[no-any-return]


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
    n = len(thresholds)
    bounds = np.full(max(n + n % 2, 2), -1, dtype=rows.dtype)
    bounds[:n] = np.square(thresholds)
    found = np.empty((len(earlier), rows.shape[1], 2 + len(bounds)))
    compiled()(rows, earlier, later, bounds, rows.dtype.type(scale), found)
    return found[..., : 2 + n]
