"""Fractional Brownian motion: anomalous diffusion that does not age, for control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.observables import Array


@dataclass(frozen=True)
class FractionalBrownianMotion(GaussianGlass):
    r"""The Gaussian process with stationary increments of variance :math:`2Kt^{2H}`, from :math:`w(0) = 0`.

    :math:`C(s,t) = K(s^{2H} + t^{2H} - |t-s|^{2H})` and :math:`\Delta = 2Kt^{2H}` for every waiting time. There is no
    aging, :math:`\mu = 0`, even if the diffusion is slow. The default :math:`K = 1/2` gives :math:`\Delta = t^{2H}`.

    Source: Mandelbrot and Van Ness 1968, "Fractional Brownian motions, fractional noises and applications", SIAM Rev.
    10, 422.

    Args:
        hurst: H, between 0 and 1. 1/2 is the random walk, and a smaller value is subdiffusion.
        coefficient: K, the (generalised) diffusion coefficient.

    Raises:
        ValueError: ``hurst`` is not between 0 and 1, or ``coefficient`` is not positive.

    Example:
        >>> float(FractionalBrownianMotion(hurst=0.25).msd(1000, 16))
        4.0
    """

    hurst: float
    coefficient: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.hurst < 1:
            raise ValueError(f"hurst={self.hurst} must be between 0 and 1, both excluded")
        if not self.coefficient > 0:
            raise ValueError(f"coefficient={self.coefficient} must be positive")

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`K(s^{2H} + t^{2H} - |t-s|^{2H})`."""
        first, second = np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64)
        power = 2 * self.hurst
        return np.asarray(self.coefficient * (first**power + second**power - np.abs(second - first) ** power))

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return :math:`2Kt^{2H}`, the same for each waiting time."""
        _, lags = np.broadcast_arrays(np.asarray(waiting_time), np.asarray(lag, dtype=np.float64))
        return np.asarray(2 * self.coefficient * lags ** (2 * self.hurst))
