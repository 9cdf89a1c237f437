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

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array

Variable = Literal["effective", "plain"]


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
    """
    used = curves.between(1 if t0 <= 0 else 0, 2**53)
    scaled = scaled_lag(used.waiting_times[:, None], used.lags[None, :], mu, variable, t0)
    measure = CollapseQuality(used.waiting_times, used.lags, used.values)
    return Collapse(mu, variable, used.waiting_times, scaled, used.mean(), measure(mu, variable, t0))


class CollapseQuality:
    r"""The quality S of a collapse as a function of the exponent.

    S is the mean over points of :math:`(y - Y)^2/(dy^2 + dY^2)`, where Y is a weighted straight line, in logarithms,
    through the neighbours of the point on the *other* curves (one on either side of it on each), taken at the point.
    dy is the standard error over replicas of ln y; for a single run it is the same for all points and S has no scale.
    Source: Houdayer and Hartmann, Phys. Rev. B 70, 014418 (2004), appendix.

    Points of one curve share their noise: S near 1 is not a test, and S + 1 not an error bar.

    Args:
        waiting_times: ``[n_tw]`` steps.
        lags: ``[n_lag]`` steps.
        values: ``[n_replica, n_tw, n_lag]``.
        errors: of ln y, ``[n_tw, n_lag]``; default from the replicas.
    """

    def __init__(
        self,
        waiting_times: NDArray[np.int64],
        lags: NDArray[np.int64],
        values: Array,
        errors: Array | None = None,
    ) -> None:
        mean = values.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            self._y = np.where(mean > 0, np.log(mean), np.nan)
        self._dy = log_errors(values) if errors is None else errors
        self._waiting_times = waiting_times.astype(np.float64)
        self._lags = lags.astype(np.float64)
        self._points = np.argwhere(np.isfinite(self._y))

    def __call__(self, mu: float, variable: Variable = "effective", t0: float = 0.0) -> float:
        """S at an exponent; infinite where fewer than three points have neighbours on other curves."""
        curve, place = self._points.T
        t_w, t = self._waiting_times, self._lags
        x = np.log(scaled_lag(t_w[curve], t[place], mu, variable, t0))
        y, dy = self._y[curve, place], self._dy[curve, place]
        # Where each point lies on every other curve: the axis of lags is the same for all, so that one search finds
        # all.
        lag = _lag_of(t_w[None, :], np.exp(x)[:, None], mu, variable, t0)  # [n_point, n_tw]
        right = np.searchsorted(t, lag)
        others = np.arange(len(t_w))[None, :]
        inside = (right > 0) & (right < len(t)) & (others != curve[:, None])
        right = np.clip(right, 1, len(t) - 1)
        inside &= np.isfinite(self._y[others, right]) & np.isfinite(self._y[others, right - 1])
        sums = np.zeros((5, len(x)))
        for side in (right - 1, right):
            xs = np.log(scaled_lag(t_w[None, :], t[side], mu, variable, t0)) - x[:, None]
            ys, w = np.where(inside, self._y[others, side], 0.0), np.where(inside, self._dy[others, side] ** -2.0, 0.0)
            sums += np.stack([w, w * xs, w * xs**2, w * ys, w * xs * ys]).sum(axis=-1)
        k, kx, kxx, ky, kxy = sums
        with np.errstate(invalid="ignore", divide="ignore"):
            determinant = k * kxx - kx**2
            expected, variance = (kxx * ky - kx * kxy) / determinant, kxx / determinant
            terms = (y - expected) ** 2 / (dy**2 + variance)
        terms = terms[np.isfinite(terms)]
        return float(terms.mean()) if len(terms) >= 3 else np.inf


def log_errors(values: Array) -> Array:
    """Standard error of the logarithm of the mean over replicas, ``[n_tw, n_lag]``; 1 for a single run."""
    n_replica = len(values)
    if n_replica < 2:
        return np.ones(values.shape[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = values.std(axis=0, ddof=1) / np.sqrt(n_replica) / values.mean(axis=0)
    # Few replicas can agree by chance: no point may count for more than a hundred ordinary ones.
    typical = np.nanmedian(errors)
    return np.maximum(errors, 0.1 * typical) if typical > 0 else np.ones(values.shape[1:])
