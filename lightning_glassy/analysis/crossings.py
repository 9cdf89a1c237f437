r"""The lag at which a curve reaches a threshold: the relaxation lag :math:`t^*(t_w)`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import jackknife_error, quiet


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
        errors: standard error of each lag over replicas, ``[..., n_tw]``, NaN if not known. None for a single run.
    """

    threshold: float
    lags: Array
    counts: NDArray[np.int64]
    early: NDArray[np.bool_]
    late: NDArray[np.bool_]
    errors: Array | None = None


@quiet()
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
    # Move the measured points of each curve to its front.
    order = np.argsort(~np.isfinite(rows), axis=1, kind="stable")
    x, y = t[order], np.take_along_axis(rows, order, axis=1)
    measured = np.isfinite(y)
    with np.errstate(invalid="ignore"):
        above = measured & (y >= threshold)
    ups = above[:, 1:] & ~above[:, :-1]
    early, late = above[:, :1].any(axis=1), measured.any(axis=1) & ~above.any(axis=1)
    counts = ups.sum(axis=1) + early
    where = np.full(len(rows), np.nan)
    crossing = np.flatnonzero(ups.any(axis=1) & ~early)
    if len(crossing):
        where[crossing] = _interpolated(x[crossing], y[crossing], np.argmax(ups[crossing], axis=1), threshold)
    shape = values.shape[:-1]
    return Crossings(threshold, where.reshape(shape), counts.reshape(shape), early.reshape(shape), late.reshape(shape))


@quiet()
def mean_lag_to_threshold(lags: ArrayLike, replicas: ArrayLike, threshold: float) -> Crossings:
    """Return the lag at which the mean curve over replicas first reaches a threshold, with its error by the jackknife.

    The error of a lag is NaN if the curve does not reach the threshold without one of the replicas.

    Args:
        lags: ``[n_lag]``, as in :func:`lag_to_threshold`.
        replicas: ``[n_replica, ..., n_lag]``, NaN if not measured.
        threshold: the threshold, positive.

    Raises:
        ValueError: as in :func:`lag_to_threshold`.
    """
    values = np.asarray(replicas, dtype=np.float64)
    found, n_replica = lag_to_threshold(lags, values.mean(axis=0), threshold), len(values)
    if n_replica < 2:
        return found
    without = (values.sum(axis=0) - values) / (n_replica - 1)
    return replace(found, errors=jackknife_error(lag_to_threshold(lags, without, threshold).lags))


def _interpolated(x: Array, y: Array, a: NDArray[np.int64], aim: float) -> Array:
    """Return the x between x[i, a[i]] and the next point at which each row y[i] passes ``aim``, ``[n]``."""
    # Take one more point on either side, if there is one, for the slopes at both ends.
    near = a[:, None] + np.arange(-1, 3)
    inside = (near >= 0) & (near < x.shape[1])
    near = np.where(inside, near, a[:, None])
    points, values = np.take_along_axis(x, near, axis=1), np.take_along_axis(y, near, axis=1)
    inside &= np.isfinite(values)
    inside[:, 0] &= values[:, 0] > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_x, log_y = np.log(points), np.log(np.maximum(values, 1e-300))
        width = np.diff(log_x)  # before, across and after the crossing
        secant = np.diff(log_y) / width
        # The slopes are at most three times the secant, so that the cubic is monotonic (Fritsch and Carlson 1980).
        parabola = (width[:, 1:] * secant[:, :-1] + width[:, :-1] * secant[:, 1:]) / (width[:, :-1] + width[:, 1:])
        middle, h, low, high = secant[:, 1], width[:, 1], log_y[:, 1], log_y[:, 2]
        bounded = np.minimum(np.maximum(parabola, 0), 3 * middle[:, None])
        left, right = (np.where(inside[:, end], bounded[:, i], middle) * h for i, end in enumerate((0, 3)))
        target = np.log(aim)
        bottom, top = np.zeros(len(a)), np.ones(len(a))
        for _ in range(40):
            u = 0.5 * (bottom + top)
            v = 1 - u
            value = v * v * (1 + 2 * u) * low + u * u * (3 - 2 * u) * high + u * v * (v * left - u * right)
            below = value < target
            bottom, top = np.where(below, u, bottom), np.where(below, top, u)
        cubic = np.exp(log_x[:, 1] + bottom * h)
        # A value that is not positive has no logarithm: take a straight line in the value.
        part = (aim - values[:, 1]) / (values[:, 2] - values[:, 1])
        straight = np.exp(log_x[:, 1] + part * (log_x[:, 2] - log_x[:, 1]))
    return np.where(values[:, 1] > 0, cubic, straight)
