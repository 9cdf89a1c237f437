"""A two-time observable along the run: its value between a tenth of each step and the step."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.observables.arrays import Array, float64, quiet


@quiet()
def over_last_decade(waiting_times: ArrayLike, lags: ArrayLike, values: ArrayLike, steps: ArrayLike) -> Array:
    r"""Return an observable between step :math:`n/10` and step :math:`n`, for each :math:`n` in ``steps``.

    On the curves of the two waiting times around :math:`n/10`, the value is interpolated between the two lags around
    step :math:`n`. Then it is interpolated between the two waiting times. Both interpolations are straight lines in
    logarithms, or in the value if it is not positive.

    Args:
        waiting_times: ``[n_tw]``, in steps, increasing.
        lags: ``[n_lag]``, in steps, increasing.
        values: ``[n_tw, n_lag]``, NaN if not measured.
        steps: ``[n]``, positive.

    Returns:
        float64 ``[n]``, NaN if the curves around n/10 do not reach step n.

    Example:
        >>> over_last_decade([10], [50, 90], [[5.0, 9.0]], [100, 1000]).tolist()
        [9.0, nan]
    """
    times, delays, matrix, ends = float64(waiting_times, lags, values, steps)
    result = np.full(len(ends), np.nan)
    for place, end in enumerate(ends):
        start = end / 10
        after = int(np.searchsorted(times, start))
        exact = after < len(times) and times[after] == start
        around = [after] if exact else [after - 1, after]
        if around[0] < 0 or around[-1] >= len(times) or times[around[0]] <= 0:
            continue
        ends_of = [_at(delays, matrix[i], end - times[i]) for i in around]
        result[place] = ends_of[0] if exact else _line(start, times[around], np.array(ends_of))
    return result


def _at(lags: Array, row: Array, lag: float) -> float:
    """Return the value of a curve at a lag, NaN beyond its measured lags."""
    measured = np.isfinite(row) & (lags > 0)
    x, y = lags[measured], row[measured]
    after = int(np.searchsorted(x, lag))
    if after == len(x):
        return np.nan
    if x[after] == lag:
        return float(y[after])
    return np.nan if after == 0 else _line(lag, x[after - 1 : after + 1], y[after - 1 : after + 1])


def _line(place: float, x: Array, y: Array) -> float:
    """Interpolate between two points, in logarithms if both values are positive."""
    part = np.log(place / x[0]) / np.log(x[1] / x[0])
    if (y > 0).all():
        return float(np.exp((1 - part) * np.log(y[0]) + part * np.log(y[1])))
    return float((1 - part) * y[0] + part * y[1])
