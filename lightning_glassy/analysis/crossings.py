r"""The lag at which a curve reaches a threshold: the relaxation lag :math:`t^*(t_w)`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array


@dataclass(frozen=True)
class Crossings:
    """The lags at which curves reach a threshold.

    Attributes:
        threshold: the threshold.
        lags: steps (real numbers, interpolated), ``[..., n_tw]``. NaN if the curve does not cross the threshold.
        counts: how often the curve passes the threshold upwards, int64 ``[..., n_tw]``. A curve with more than one is
            not monotonic.
        early: whether the curve starts above the threshold, so that the lag is shorter than all measured lags.
        late: whether the curve never reaches the threshold, so that the lag is longer than all measured lags.
    """

    threshold: float
    lags: Array
    counts: NDArray[np.int64]
    early: NDArray[np.bool_]
    late: NDArray[np.bool_]


def lag_to_threshold(lags: ArrayLike, curves: ArrayLike, threshold: float) -> Crossings:
    r"""Return the lag :math:`t^*` at which each curve first reaches a threshold: :math:`\Delta(t_w, t_w+t^*)=\Delta^*`.

    A monotonic cubic between the logarithms interpolates the first crossing. A curve that does not reach the threshold
    is censored, and not extrapolated.

    Source: Herrera Segura et al. 2022 (arXiv 2209.02517), with :math:`\Delta^* = 10^{-3}`.

    Args:
        lags: ``[n_lag]``, positive and increasing, in steps.
        curves: ``[..., n_lag]``, NaN if not measured.
        threshold: the threshold, positive.

    Raises:
        ValueError: the threshold or a lag is not positive, the lags do not increase, or the curves have another length.

    Example:
        >>> lag_to_threshold([1, 10, 100], [[0.1, 1.0, 10.0]], threshold=0.5).lags.round(3).tolist()
        [5.0]
    """
    t, values = np.asarray(lags, dtype=np.float64), np.asarray(curves, dtype=np.float64)
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} must be positive")
    if (t <= 0).any():
        raise ValueError(f"lags must be positive, but there is {t.min():g}")
    if (np.diff(t) <= 0).any() or values.shape[-1:] != t.shape:
        raise ValueError(f"curves of shape {values.shape} need as many increasing lags; there are {len(t)}")
    rows = values.reshape(-1, values.shape[-1])
    where, counts = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=np.int64)
    early, late = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        measured = np.isfinite(row)
        x, y = t[measured], row[measured]
        above = y >= threshold
        ups = np.flatnonzero(above[1:] & ~above[:-1])
        counts[i] = len(ups) + (bool(above[0]) if len(above) else 0)
        early[i] = len(above) > 0 and bool(above[0])
        late[i] = len(above) > 0 and not above.any()
        if not len(ups) or early[i]:
            continue
        where[i] = _interpolated(x, y, ups[0], threshold)
    shape = values.shape[:-1]
    return Crossings(threshold, where.reshape(shape), counts.reshape(shape), early.reshape(shape), late.reshape(shape))


def _interpolated(x: Array, y: Array, a: int, aim: float) -> float:
    """Return the x between x[a] and x[a + 1] at which y passes ``aim``."""
    if not y[a] > 0:  # it has no logarithm: take a straight line in the value
        part = (aim - y[a]) / (y[a + 1] - y[a])
        return float(np.exp(np.log(x[a]) + part * (np.log(x[a + 1]) - np.log(x[a]))))
    # One more point on either side, if there is one, gives the slopes at both ends. They are at most three times the
    # secant, so that the cubic is monotonic (Fritsch and Carlson 1980).
    first = a - 1 if a > 0 and y[a - 1] > 0 else a
    log_x, log_y = np.log(x[first : a + 3]), np.log(np.maximum(y[first : a + 3], 1e-300))
    width, secant = np.diff(log_x), np.diff(log_y) / np.diff(log_x)
    k = a - first

    def slope(end: int) -> float:
        if end == 0 or end == len(secant):
            return float(secant[k])
        parabola = (width[end] * secant[end - 1] + width[end - 1] * secant[end]) / (width[end - 1] + width[end])
        return float(np.clip(parabola, 0, 3 * secant[k]))

    h, low, high = float(width[k]), float(log_y[k]), float(log_y[k + 1])
    left, right, target = slope(k) * h, slope(k + 1) * h, float(np.log(aim))
    bottom, top = 0.0, 1.0
    for _ in range(40):
        u = 0.5 * (bottom + top)
        v = 1 - u
        value = v * v * (1 + 2 * u) * low + u * u * (3 - 2 * u) * high + u * v * (v * left - u * right)
        bottom, top = (u, top) if value < target else (bottom, u)
    return float(np.exp(log_x[k] + bottom * h))
