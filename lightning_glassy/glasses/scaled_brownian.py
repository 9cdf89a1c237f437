"""Brownian motion on a clock that slows down by a power law or a logarithm. The aging does not end."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.observables import Array


class ClockedBrownianMotion(GaussianGlass):
    r"""Brownian motion at the time h of a clock: :math:`w(n) = \sqrt{2K}\,B(h(n))`, :math:`h(0) = 0`.

    :math:`C(s,t) = 2K\min(h(s),h(t))` and :math:`\Delta = 2K[h(t_w+t) - h(t_w)]`. The increments are independent, so
    :math:`w_n = w_{n-1} + \sqrt{2K[h(n)-h(n-1)]}\,\xi_n` is exact at integer steps.

    Raises:
        ValueError: an argument is not positive.
    """

    coefficient: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value} must be positive")

    @abstractmethod
    def clock(self, n: ArrayLike) -> Array:
        """Return :math:`h(n)`, dimensionless."""

    @abstractmethod
    def lag_to_msd(self, threshold: float, waiting_time: ArrayLike) -> Array:
        """Return the lag, a real number, at which the mean squared displacement has grown to a threshold."""

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`2K\min(h(s),h(t))`."""
        return np.asarray(2 * self.coefficient * self.clock(np.minimum(s, t)))


@dataclass(frozen=True)
class ScaledBrownianMotion(ClockedBrownianMotion):
    r"""Brownian motion with a diffusion coefficient that falls as a power law: :math:`h(n) = n^\alpha`.

    :math:`\Delta = 2K[(t_w+t)^\alpha - t_w^\alpha]`. The lag to a fixed displacement grows as :math:`t_w^{1-\alpha}`,
    so thresholds give :math:`\mu = 1-\alpha`. As a function of both times, :math:`\Delta/t_w^\alpha` depends on
    :math:`t/t_w` alone.

    Source: Lim and Muniandy 2002, "Self-similar Gaussian processes for modeling anomalous diffusion", Phys. Rev. E 66,
    021114. Aging: Jeon, Chechkin and Metzler 2014, Phys. Chem. Chem. Phys. 16, 15811.

    Args:
        alpha: exponent of the clock, positive. 1 is the random walk, and a smaller value is subdiffusion that ages.
        coefficient: K, positive.

    Example:
        >>> float(ScaledBrownianMotion(alpha=0.5, coefficient=0.5).msd(100, 300))
        10.0
    """

    alpha: float
    coefficient: float = 0.5

    def clock(self, n: ArrayLike) -> Array:
        r"""Return :math:`h(n) = n^\alpha`."""
        return np.asarray(np.asarray(n, dtype=np.float64) ** self.alpha)

    def lag_to_msd(self, threshold: float, waiting_time: ArrayLike) -> Array:
        r"""Return :math:`(t_w^\alpha + \Delta^*/2K)^{1/\alpha} - t_w` for a threshold :math:`\Delta^*`."""
        start = np.asarray(waiting_time, dtype=np.float64)
        return np.asarray((self.clock(start) + threshold / (2 * self.coefficient)) ** (1 / self.alpha) - start)


@dataclass(frozen=True)
class LogClock(ClockedBrownianMotion):
    r"""Brownian motion on a logarithmic clock: :math:`h(n) = \ln(1+n/\tau_0)`, full aging.

    :math:`\Delta = 2K\ln[1+t/(t_w+\tau_0)]` is a function of :math:`t/t_w` beyond :math:`\tau_0`. The lag to a fixed
    displacement is :math:`(t_w+\tau_0)(e^{\Delta^*/2K}-1)`, so that :math:`\mu = 1`.

    Args:
        tau0: :math:`\tau_0` in steps, positive.
        coefficient: K, positive.

    Example:
        >>> glass = LogClock(tau0=1.0)
        >>> bool(np.isclose(glass.msd(99, 100), np.log(2)))
        True
    """

    tau0: float = 1.0
    coefficient: float = 0.5

    def clock(self, n: ArrayLike) -> Array:
        r"""Return :math:`h(n) = \ln(1+n/\tau_0)`."""
        return np.asarray(np.log1p(np.asarray(n, dtype=np.float64) / self.tau0))

    def lag_to_msd(self, threshold: float, waiting_time: ArrayLike) -> Array:
        r"""Return :math:`(t_w+\tau_0)(e^{\Delta^*/2K}-1)` for a threshold :math:`\Delta^*`."""
        start = np.asarray(waiting_time, dtype=np.float64)
        return np.asarray((start + self.tau0) * np.expm1(threshold / (2 * self.coefficient)))
