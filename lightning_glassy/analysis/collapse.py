r"""Whether curves of different waiting times fall on one when the lag is rescaled, and with which exponent.

Two variables, which differ where the lag is not small against the waiting time:

* ``"effective"``, the effective time :math:`\lambda = t_w^{1-\mu}\,[(1+t/t_w)^{1-\mu} - 1]/(1-\mu)`, for
  :math:`\mu \to 1` :math:`\ln(1 + t/t_w)`: the clock slows down during the lag, too;
* ``"plain"``, :math:`t/t_w^\mu`, what Herrera Segura et al. 2022 use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array

Variable = Literal["effective", "plain"]

_UNKNOWN = 1e-3  # the error of a logarithm, where there are no replicas to tell it


def scaled_lag(
    waiting_time: ArrayLike, lag: ArrayLike, mu: float, variable: Variable = "effective", t0: float = 0.0
) -> Array:
    r"""The scaling variable of a pair, in steps to the power :math:`1-\mu`; waiting times count from ``-t0``.

    Raises:
        ValueError: another variable, or a waiting time at or before the origin of the clock.

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


def _lag_of(waiting_time: Array, scaled: Array, mu: float, variable: Variable, t0: float) -> Array:
    """The lag at which a curve has a value of the scaling variable: the inverse of :func:`scaled_lag`, inf if never."""
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
        quality: Houdayer-Hartmann S; smaller is better.
    """

    mu: float
    variable: Variable
    waiting_times: NDArray[np.int64]
    scaled_lags: Array
    values: Array
    quality: float


def collapse(curves: Curves, mu: float, variable: Variable = "effective", *, t0: float = 0.0) -> Collapse:
    """The curves rescaled with a given exponent, and how well they fall on each other.

    Args:
        curves: from :func:`~lightning_glassy.analysis.curves.relaxation_curves`.
        mu: aging exponent.
        variable: scaling variable.
        t0: origin of the clock, in steps before step 0; with ``t0=0`` the waiting time 0 is left out.

    Raises:
        ValueError: another variable, or no waiting time after the origin of the clock.
    """
    used = _after_origin(curves, t0)
    scaled = scaled_lag(used.waiting_times[:, None], used.lags[None, :], mu, variable, t0)
    quality = CollapseQuality(used.waiting_times, used.lags, used.mean(), log_errors(used.values))(mu, variable, t0)
    return Collapse(mu, variable, used.waiting_times, scaled, used.mean(), float(quality))


def collapse_quality(curves: Curves, mus: ArrayLike, variable: Variable = "effective", *, t0: float = 0.0) -> Array:
    """The Houdayer-Hartmann S of a collapse as a function of the exponent: see :class:`CollapseQuality`.

    Args:
        curves: from :func:`~lightning_glassy.analysis.curves.relaxation_curves`.
        mus: exponents, ``[n_mu]``.
        variable: scaling variable.
        t0: origin of the clock, as in :func:`collapse`.

    Returns:
        S, ``[n_mu]``; infinite where too few points have neighbours on other curves.
    """
    used = _after_origin(curves, t0)
    measure = CollapseQuality(used.waiting_times, used.lags, used.mean(), log_errors(used.values))
    return np.array([float(measure(mu, variable, t0)) for mu in np.atleast_1d(np.asarray(mus, dtype=np.float64))])


def _after_origin(curves: Curves, t0: float) -> Curves:
    used = curves.after(-t0)
    if len(used.waiting_times) == 0:
        raise ValueError(f"no waiting time is after the origin of the clock, {-t0:g}")
    return used


class CollapseQuality:
    r"""The quality S of a collapse as a function of the exponent, of one set of curves or of many at once.

    S is the mean over points of :math:`(y - Y)^2/(dy^2 + dY^2)`, where Y is a weighted straight line, in logarithms,
    through the neighbours of the point on the *other* curves (one on either side of it on each), taken at the point.
    dy is the standard error of ln y.
    Source: Houdayer and Hartmann, Phys. Rev. B 70, 014418 (2004), appendix.

    Points of one curve share their noise: S near 1 is not a test, and S + 1 not an error bar.

    Args:
        waiting_times: ``[n_tw]`` steps.
        lags: ``[n_lag]`` steps.
        curves: ``[..., n_tw, n_lag]``; what is NaN, or not positive, in any of the sets is used in none.
        errors: of the logarithms, ``[n_tw, n_lag]``, the same for all sets (:func:`log_errors`).
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
        self._good = np.isfinite(logs).all(axis=0) & np.isfinite(errors)
        self._shape = curves.shape[:-2]
        self._logs = np.where(self._good, logs, 0.0).reshape(len(logs), -1).T  # [n_tw * n_lag, n_set]
        self._variances = np.where(self._good, errors, 1.0) ** 2 + scatter**2
        self._waiting_times = waiting_times.astype(np.float64)
        self._lags = lags.astype(np.float64)
        self._points = np.argwhere(self._good)

    def __call__(self, mu: float, variable: Variable = "effective", t0: float = 0.0) -> Array:
        """S of each set of curves, ``[...]``; infinite where fewer than three points have neighbours on other curves.

        Which points are neighbours, and with which weights, is the same for all sets: Y is a matrix times the curves.
        """
        curve, place = self._points.T
        t_w, t = self._waiting_times, self._lags
        x = np.log(scaled_lag(t_w[curve], t[place], mu, variable, t0))
        # Where each point lies on every other curve: the axis of lags is the same for all, so that one search finds
        # all.
        lag = _lag_of(t_w[None, :], np.exp(x)[:, None], mu, variable, t0)  # [n_point, n_tw]
        right = np.searchsorted(t, lag)
        inside = (right > 0) & (right < len(t)) & (np.arange(len(t_w))[None, :] != curve[:, None])
        right = np.clip(right, 1, len(t) - 1)
        point, other = np.nonzero(inside)
        ends = right[point, other]
        both = self._good[other, ends] & self._good[other, ends - 1]
        point, other, ends = point[both], other[both], ends[both]
        # Each neighbour as a cell of the matrix of curves.
        point, cell = np.concatenate([point, point]), np.concatenate([other * len(t) + ends - 1, other * len(t) + ends])
        xs = np.log(scaled_lag(t_w[cell // len(t)], t[cell % len(t)], mu, variable, t0)) - x[point]
        w = 1 / self._variances.ravel()[cell]
        k, kx, kxx = (np.bincount(point, terms, minlength=len(x)) for terms in (w, w * xs, w * xs**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            determinant = k * kxx - kx**2
            weights = w * (kxx[point] - kx[point] * xs) / determinant[point]
            variance = self._variances[curve, place] + kxx / determinant
        # Points whose neighbours do not fix a straight line have no expectation.
        good = np.isfinite(variance) & (determinant > 1e-12 * k * kxx)
        if good.sum() < 3:
            return np.full(self._shape, np.inf)
        kept = good[point]
        line = csr_array((weights[kept], (point[kept], cell[kept])), shape=(len(x), len(self._logs)))
        misfit = (self._logs[curve * len(t) + place] - line @ self._logs)[good]
        return np.asarray((misfit**2 / variance[good, None]).mean(axis=0).reshape(self._shape))


def log_errors(values: Array) -> Array:
    """Standard error of the logarithm of the mean over replicas, ``[n_tw, n_lag]``.

    Of a single run nothing is known of it: it is 0.001 for all points, and S has no meaning beyond its minimum.
    """
    n_replica = len(values)
    if n_replica < 2:
        return np.full(values.shape[1:], _UNKNOWN)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = values.std(axis=0, ddof=1) / np.sqrt(n_replica) / values.mean(axis=0)
    # Few replicas can agree by chance: no point may count for more than a hundred ordinary ones.
    typical = np.nanmedian(errors) if np.isfinite(errors).any() else 0.0
    return np.maximum(errors, 0.1 * typical) if typical > 0 else np.full(values.shape[1:], _UNKNOWN)
