r"""Exact subaging at integer steps: the reference for the exponent :math:`\mu`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.observables import Array


@dataclass(frozen=True)
class SubagingClock(GaussianGlass):
    r"""A stationary Ornstein-Uhlenbeck process at the time of a slowing clock :math:`h(n) = \kappa n^{1-\mu}/(1-\mu)`.

    :math:`a_n = e^{-[h(n)-h(n-1)]}`, :math:`w_n = a_n w_{n-1} + \sqrt{1-a_n^2}\,\xi_n`, :math:`w_0 \sim N(0,1)`. Then
    :math:`C(n, n+m) = e^{-[h(n+m)-h(n)]}` and :math:`\Delta = 2(1-C)` without any discretisation error. The
    variance is 1 at every step. The process is stationary for :math:`\mu = 0`. It is subaging for :math:`0<\mu<1`, and
    full aging for :math:`\mu = 1` (:math:`h = \kappa\ln n`).

    Source: made for this package, from the effective time of subaging glasses (Struik 1978).

    Args:
        mu: aging exponent, between 0 and 1.
        kappa: rate of the clock at step 1.

    Raises:
        ValueError: ``mu`` is not between 0 and 1, or ``kappa`` is not positive.

    Example:
        >>> glass = SubagingClock(mu=0.5, kappa=0.1)
        >>> float(glass.clock(100)), round(float(glass.covariance(100, 400)), 9)
        (2.0, 0.135335283)
    """

    mu: float
    kappa: float
    initial_variance: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mu <= 1:
            raise ValueError(f"mu={self.mu} must be between 0 and 1")
        if not self.kappa > 0:
            raise ValueError(f"kappa={self.kappa} must be positive")

    def clock(self, n: ArrayLike) -> Array:
        r"""Return :math:`h(n)`, dimensionless. At :math:`\mu = 1`, :math:`h(0)` is 0, as :math:`h(1)` is."""
        steps = np.asarray(n, dtype=np.float64)
        if self.mu == 1:
            return np.asarray(self.kappa * np.log(np.maximum(steps, 1)))
        return np.asarray(self.kappa * steps ** (1 - self.mu) / (1 - self.mu))

    def factor(self, n: ArrayLike) -> Array:
        """Return :math:`a_n`, the factor of the weights in the update that completes step n >= 1."""
        steps = np.asarray(n, dtype=np.float64)
        return np.asarray(np.exp(-(self.clock(steps) - self.clock(steps - 1))))

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`e^{-|h(t)-h(s)|}`."""
        return np.asarray(np.exp(-np.abs(self.clock(t) - self.clock(s))))

    def lag_to_correlation(self, threshold: float, waiting_time: ArrayLike) -> Array:
        r"""Return the lag, a real number, at which C has fallen to a threshold :math:`\theta`.

        It is :math:`(t_w^{1-\mu} + (1-\mu)L/\kappa)^{1/(1-\mu)} - t_w` with :math:`L = -\ln\theta`. At
        :math:`\mu = 1` it is :math:`t_w(e^{L/\kappa} - 1)`.
        """
        t_w, length = np.asarray(waiting_time, dtype=np.float64), -np.log(threshold)
        if self.mu == 1:
            return np.asarray(t_w * np.expm1(length / self.kappa))
        power = 1 - self.mu
        return np.asarray((t_w**power + power * length / self.kappa) ** (1 / power) - t_w)
