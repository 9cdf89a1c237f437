r"""The collapse of curves of different waiting times onto one curve, against a rescaled lag.

The two scaling variables differ if the lag is not much shorter than the waiting time:

* ``"effective"`` is the effective time :math:`h = t_w^{1-\mu}\,[(1+t/t_w)^{1-\mu} - 1]/(1-\mu)`. The clock slows
  down during the lag, too. For :math:`\mu \to 1` it is :math:`\ln(1 + t/t_w)`.
* ``"plain"`` is :math:`t/t_w^\mu`, as in Herrera Segura et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet

Variable = Literal["effective", "plain"]

_UNKNOWN = 1e-3  # the error of a logarithm, if there are no replicas to estimate it
_BLOCK = 10_000  # pairs of a point and a curve that are compared at once


def scaled_lag(
    waiting_time: ArrayLike, lag: ArrayLike, mu: float, variable: Variable = "effective", t0: float = 0.0
) -> Array:
    r"""Return the scaling variable of a pair, in steps to the power :math:`1-\mu`. Waiting times count from ``-t0``.

    Raises:
        ValueError: there is no such variable, or a waiting time is not after the origin of the clock.

    Example:
        >>> float(scaled_lag(100, 300, mu=0.5))
        20.0
        >>> float(scaled_lag(100, 300, mu=0.5, variable="plain"))
        30.0
    """
    t_w, t = np.asarray(waiting_time, dtype=np.float64) + t0, np.asarray(lag, dtype=np.float64)
    if (t_w <= 0).any():
        raise ValueError(f"the waiting time {t_w.min() - t0:g} is not after the origin of the clock, {-t0:g}")
    if variable == "plain":
        return np.asarray(t / t_w**mu)
    if variable != "effective":
        raise ValueError(f"variable={variable!r} is not one of {', '.join(map(repr, get_args(Variable)))}")
    power = 1 - mu
    if abs(power) < 1e-9:
        return np.asarray(np.log1p(t / t_w))
    return np.asarray(t_w**power * np.expm1(power * np.log1p(t / t_w)) / power)


def lag_of(waiting_time: Array, scaled: Array, mu: float, variable: Variable, t0: float) -> Array:
    """Return the lag of a value of the scaling variable, inf if there is none: the inverse of :func:`scaled_lag`."""
    t_w = waiting_time + t0
    if variable == "plain":
        return np.asarray(scaled * t_w**mu)
    power = 1 - mu
    if abs(power) < 1e-9:
        with np.errstate(over="ignore"):
            return np.asarray(t_w * np.expm1(scaled))
    inside = 1 + power * scaled / t_w**power
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.asarray(np.where(inside > 0, t_w * (inside ** (1 / power) - 1), np.inf))


@dataclass(frozen=True)
class Collapse:
    """Curves against the scaled lag, for plotting.

    Attributes:
        mu: the exponent used.
        variable: ``"effective"`` or ``"plain"``.
        waiting_times: steps, ``[n_tw]``.
        scaled_lags: ``[n_tw, n_lag]``.
        values: the curves, mean over replicas, ``[n_tw, n_lag]``.
        quality: Houdayer-Hartmann S with the errors of the replicas. A smaller value is better.
        errors: standard error of the values over replicas, ``[n_tw, n_lag]``. None for a single run.
        n_replica: number of replicas.
    """

    mu: float
    variable: Variable
    waiting_times: NDArray[np.int64]
    scaled_lags: Array
    values: Array
    quality: float
    errors: Array | None = None
    n_replica: int = 1


@quiet()
def collapse(curves: Curves, mu: float, variable: Variable = "effective", *, t0: float = 0.0) -> Collapse:
    """Rescale curves with a given exponent, and measure the quality of the collapse.

    Args:
        curves: result of :func:`~lightning_glassy.analysis.curves.relaxation_curves`.
        mu: aging exponent.
        variable: scaling variable.
        t0: origin of the clock, in steps before step 0. ``t0=0`` leaves out the waiting time 0.

    Raises:
        ValueError: there is no such variable, or no waiting time is after the origin of the clock.
    """
    used, measure = _measure_of(curves, t0)
    scaled = scaled_lag(used.waiting_times[:, None], used.lags[None, :], mu, variable, t0)
    errors, quality = used.sem() if used.n_replica > 1 else None, float(measure(mu, variable, t0))
    return Collapse(mu, variable, used.waiting_times, scaled, used.mean(), quality, errors, used.n_replica)


@quiet()
def collapse_quality(
    curves: Curves, mus: ArrayLike, variable: Variable = "effective", *, t0: float = 0.0, scatter: float = 0.0
) -> Array:
    """Return the Houdayer-Hartmann S of a collapse as a function of the exponent: see :class:`CollapseQuality`.

    Args:
        curves: result of :func:`~lightning_glassy.analysis.curves.relaxation_curves`.
        mus: exponents, ``[n_mu]``.
        variable: scaling variable.
        t0: origin of the clock, as in :func:`collapse`.
        scatter: a further error of the logarithms, the same for all points. The :attr:`AgingExponent.scatter
            <lightning_glassy.analysis.AgingExponent.scatter>` of a fit gives the S that the fit has minimised.

    Returns:
        S, ``[n_mu]``, infinite if too few points have neighbours on other curves.
    """
    _, measure = _measure_of(curves, t0, scatter)
    return np.array([float(measure(mu, variable, t0)) for mu in np.atleast_1d(np.asarray(mus, dtype=np.float64))])


def _measure_of(curves: Curves, t0: float, scatter: float = 0.0) -> tuple[Curves, CollapseQuality]:
    """Return the curves after the origin of the clock, and the quality of their collapse."""
    used = curves.after(-t0)
    if len(used.waiting_times) == 0:
        raise ValueError(f"no waiting time is after the origin of the clock, {-t0:g}")
    return used, CollapseQuality(
        used.waiting_times, used.lags, used.mean(), log_errors(used.values, used.interpolation), scatter
    )


class CollapseQuality:
    r"""The quality S of a collapse as a function of the exponent, for one set of curves or for many at once.

    S is the mean over points of :math:`(y - Y)^2/(dy^2 + dY^2)`. dy is the standard error of ln y. Y is the value at
    the point of a weighted straight line, in logarithms, through the neighbours of the point on the *other* curves.
    Each other curve gives one neighbour on either side.

    The points of one curve share their noise. S near 1 is therefore no test, and S + 1 is no error bar.

    Source: Houdayer and Hartmann, Phys. Rev. B 70, 014418 (2004), appendix.

    Args:
        waiting_times: ``[n_tw]`` steps.
        lags: ``[n_lag]`` steps.
        curves: ``[..., n_tw, n_lag]``. A point that is NaN or not positive in one set is left out of all sets.
        errors: errors of the logarithms, ``[n_tw, n_lag]``, the same for all sets (:func:`log_errors`).
        scatter: a further error of the logarithms, the same for all points.
    """

    def __init__(
        self,
        waiting_times: NDArray[np.int64],
        lags: NDArray[np.int64],
        curves: Array,
        errors: Array,
        scatter: float = 0.0,
    ) -> None:
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log(curves).reshape(-1, len(waiting_times), len(lags))
        good = np.isfinite(logs).all(axis=0) & np.isfinite(errors)
        self._shape = curves.shape[:-2]
        self._logs = np.where(good, logs, 0.0).reshape(len(logs), -1).T  # [n_tw * n_lag, n_set]
        self._variances = np.where(good, errors, 1.0).ravel() ** 2 + scatter**2  # [n_tw * n_lag]
        self._weights = 1 / self._variances
        self._waiting_times = waiting_times.astype(np.float64)
        self._lags = lags.astype(np.float64)
        self._points = np.flatnonzero(good)
        # Whether a curve has both ends of the step between lag k - 1 and lag k, [n_tw, n_lag + 1].
        self._steps = np.pad(good[:, 1:] & good[:, :-1], ((0, 0), (1, 1)))

    def __call__(self, mu: float, variable: Variable = "effective", t0: float = 0.0) -> Array:
        """Return S of each set of curves, ``[...]``. It is infinite if fewer than three points have neighbours.

        The neighbours and their weights are the same for all sets, so Y is a matrix times the curves.
        """
        squares = np.concatenate(
            [misfit**2 / variance[:, None] for _, misfit, variance in self._terms(mu, variable, t0)]
        )
        if len(squares) < 3:
            return np.full(self._shape, np.inf)
        return np.asarray(squares.mean(axis=0).reshape(self._shape))

    def residuals(self, mu: float, variable: Variable = "effective", t0: float = 0.0) -> tuple[Array, Array]:
        r"""Return the terms of S: the misfit of each point from the other curves, and the error of the misfit.

        The misfit is y - Y, a difference of logarithms. Its error is :math:`\sqrt{dy^2 + dY^2}`. S is the mean of the
        squares of misfit over error.

        Args:
            mu: exponent.
            variable: scaling variable.
            t0: origin of the clock, in steps before step 0. All waiting times must lie after it.

        Returns:
            The misfits ``[..., n_tw, n_lag]`` and the errors ``[n_tw, n_lag]``, which all sets share. Both are NaN at a
            point with too few neighbours on other curves.

        Raises:
            ValueError: there is no such variable, or a waiting time is not after the origin of the clock.
        """
        n_cell, n_set = self._logs.shape
        misfits, errors = np.full((n_cell, n_set), np.nan), np.full(n_cell, np.nan)
        for points, misfit, variance in self._terms(mu, variable, t0):
            misfits[points], errors[points] = misfit, np.sqrt(variance)
        shape = (len(self._waiting_times), len(self._lags))
        return misfits.T.reshape(*self._shape, *shape), errors.reshape(shape)

    def _terms(self, mu: float, variable: Variable, t0: float) -> Iterator[tuple[NDArray[np.int64], Array, Array]]:
        """Yield blocks of points with neighbours, their misfits ``[n, n_set]``, and the variances of these ``[n]``."""
        t_w, t = self._waiting_times, self._lags
        places = np.log(scaled_lag(t_w[:, None], t[None, :], mu, variable, t0)).ravel()
        n = max(_BLOCK // len(t_w), 1)
        # Points are independent of each other. Blocks of them bound the memory, and stay in the cache.
        for i in range(0, max(len(self._points), 1), n):
            yield self._misfits(self._points[i : i + n], places, mu, variable, t0)

    def _misfits(
        self, points: NDArray[np.int64], places: Array, mu: float, variable: Variable, t0: float
    ) -> tuple[NDArray[np.int64], Array, Array]:
        """Return misfits from the other curves, without the points that have too few neighbours: see :meth:`_terms`.

        Args:
            points: cells of the matrix of curves, ``[n_point]``.
            places: logarithm of the scaling variable at each cell, ``[n_tw * n_lag]``.
            mu: exponent.
            variable: scaling variable.
            t0: origin of the clock.
        """
        t_w, t, x = self._waiting_times, self._lags, places[points]
        other = np.arange(len(t_w))
        # Find the place of each point on every other curve. All curves have the same lags, so one search finds all.
        lag = lag_of(t_w[None, :], np.exp(x)[:, None], mu, variable, t0)  # [n_point, n_tw]
        right = np.searchsorted(t, lag)
        there = self._steps.ravel()[right + other * (len(t) + 1)] & (other != points[:, None] // len(t))
        counts = there.sum(axis=1)
        point = np.repeat(np.arange(len(points)), counts)
        # A neighbour is a cell of the matrix of curves.
        left = (right + (other * len(t) - 1))[there]
        point, cell = np.concatenate([point, point]), np.concatenate([left, left + 1])
        xs = places[cell] - x[point]
        w = self._weights[cell]
        k, kx, kxx = (np.bincount(point, terms, minlength=len(x)) for terms in (w, w * xs, w * xs**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            determinant = k * kxx - kx**2
            weights = w * (kxx[point] - kx[point] * xs) / determinant[point]
            variance = self._variances[points] + kxx / determinant
        # If its neighbours do not determine a straight line, a point has no expectation.
        good = np.isfinite(variance) & (determinant > 1e-12 * k * kxx)
        # Both ends of a step follow each other in a row of the matrix, so that its columns are sorted.
        rows = np.concatenate([[0], np.cumsum(2 * counts)])
        by_row = (np.stack([part[: len(left)], part[len(left) :]], axis=1).ravel() for part in (weights, cell))
        line = csr_array((*by_row, rows), shape=(len(x), len(places)))
        misfit = (self._logs[points] - line @ self._logs)[good]
        return points[good], np.asarray(misfit), np.asarray(variance[good])


@quiet()
def log_errors(values: Array, interpolation: Array | None = None) -> Array:
    """Return the error of the logarithm of the mean over replicas, ``[n_tw, n_lag]``.

    The variance of a point is the average over the point and its neighbours in both directions. Few replicas know
    their own scatter badly, and an error that is small by chance would give a point too much weight.

    The error of a single run is unknown. It is then 0.001 for all points, and only the place of the minimum of S has a
    meaning.

    Args:
        values: ``[n_replica, n_tw, n_lag]``.
        interpolation: a further error of each point, ``[n_tw, n_lag]`` (:attr:`Curves.interpolation`). NaN counts as 0.
    """
    errors = _errors_over_replicas(values)
    return errors if interpolation is None else np.hypot(errors, np.nan_to_num(interpolation))


def _errors_over_replicas(values: Array) -> Array:
    n_replica = len(values)
    if n_replica < 2:
        return np.full(values.shape[1:], _UNKNOWN)
    with np.errstate(invalid="ignore", divide="ignore"):
        variances = values.var(axis=0, ddof=1) / n_replica / values.mean(axis=0) ** 2
    known = np.isfinite(variances)
    around = _around(np.where(known, variances, 0.0)) / np.maximum(_around(known.astype(np.float64)), 1)
    errors = np.where(known, np.sqrt(around), np.nan)
    # No point may have more than a hundred times the weight of a typical point.
    typical = np.nanmedian(errors) if known.any() else 0.0
    return np.maximum(errors, 0.1 * typical) if typical > 0 else np.full(values.shape[1:], _UNKNOWN)


def _around(values: Array) -> Array:
    """Return the sum over each cell of a matrix and its eight neighbours."""
    padded = np.pad(values, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return np.asarray(rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])
