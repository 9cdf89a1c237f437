"""The free random walk: diffusion without aging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.observables import Array


@dataclass(frozen=True)
class RandomWalk(GaussianGlass):
    r""":math:`w_{n+1} = w_n + \sigma\xi_n`, :math:`w_0 = 0`, :math:`\xi \sim N(0,1)`.

    :math:`C(s,t) = \sigma^2\min(s,t)` and :math:`\Delta = \sigma^2 t` for every waiting time. There is no aging,
    :math:`\mu = 0`.

    Args:
        sigma: standard deviation of one step.

    Example:
        >>> float(RandomWalk(sigma=0.5).msd(100, 8))
        2.0
    """

    sigma: float = 1.0
    initial_variance: ClassVar[float] = 0.0

    def integrated_response(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the response :math:`\chi = \eta t` to a field since :math:`t_w`. The learning rate :math:`\eta` is 1.

        The effective temperature :math:`\Delta/(2\chi)` is :math:`\sigma^2/2`.
        """
        return np.asarray(np.broadcast_arrays(np.asarray(waiting_time), np.asarray(lag, dtype=np.float64))[1])

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`\sigma^2\min(s,t)`."""
        return self.sigma**2 * np.minimum(s, t).astype(np.float64)
