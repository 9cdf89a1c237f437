r"""Base class of the Gaussian reference systems, with the sampling error of a measurement on N coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array


class GaussianGlass(ABC):
    r"""N independent copies of one centred Gaussian process :math:`w(n)`, n in steps.

    The covariance :math:`C(s,t) = \langle w(s) w(t)\rangle` determines everything. The displacement is
    :math:`\Delta(s,t) = C(s,s) + C(t,t) - 2C(s,t)`. Isserlis' theorem gives the error of an average over N coordinates.
    """

    @abstractmethod
    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`C(s,t) = \langle w(s) w(t)\rangle` at integer steps, with the broadcasting of NumPy."""

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the exact mean squared displacement :math:`\langle [w(t_w+t) - w(t_w)]^2\rangle`."""
        s = np.asarray(waiting_time)
        t = s + np.asarray(lag)
        return self.covariance(s, s) + self.covariance(t, t) - 2 * self.covariance(s, t)

    def msd_covariance(self, waiting_times: ArrayLike, lags: ArrayLike, n: int) -> Array:
        r"""Return the covariance of measured MSDs, ``[n_pair, n_pair]``. Each MSD is an average over ``n`` coordinates.

        For displacements x over [a, b] and y over [c, d]:
        :math:`\mathrm{Cov}(x^2, y^2)/N = 2\langle xy\rangle^2/N`,
        :math:`\langle xy\rangle = C(b,d) - C(b,c) - C(a,d) + C(a,c)`.

        Args:
            waiting_times: ``[n_pair]`` steps.
            lags: ``[n_pair]`` steps.
            n: number of coordinates.
        """
        a, c, b, d = _corners(waiting_times, lags)
        both = self.covariance(b, d) - self.covariance(b, c) - self.covariance(a, d) + self.covariance(a, c)
        return 2 * both**2 / n

    def correlation_covariance(self, waiting_times: ArrayLike, lags: ArrayLike, n: int) -> Array:
        r"""Return the covariance of measured raw correlations, ``[n_pair, n_pair]``.

        The arguments are as for :meth:`msd_covariance`.
        :math:`\mathrm{Cov}(w_a w_b, w_c w_d) = C(a,c)C(b,d) + C(a,d)C(b,c)`.
        """
        a, c, b, d = _corners(waiting_times, lags)
        straight, crossed = self.covariance(a, c) * self.covariance(b, d), self.covariance(a, d) * self.covariance(b, c)
        return (straight + crossed) / n


def _corners(waiting_times: ArrayLike, lags: ArrayLike) -> tuple[NDArray[np.int64], ...]:
    start = np.asarray(waiting_times, dtype=np.int64)
    end = start + np.asarray(lags, dtype=np.int64)
    return start[:, None], start[None, :], end[:, None], end[None, :]
