"""Gradient descent into flatter and flatter directions. It has full aging without noise and without barriers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array


@dataclass(frozen=True)
class BetaDescent:
    r"""Descent without noise in N quadratic directions. Their density of curvatures is a power law at zero.

    :math:`u = 1-\eta\lambda \sim \mathrm{Beta}(b, a)`, so that the density of curvatures grows as
    :math:`\lambda^{a-1}`. The weights are :math:`w_n = u^n w_0` with :math:`w_0 \sim N(0, S_0)`. The displacement is
    :math:`\Delta(i, j) = S_0[K(2i) + K(2j) - 2K(i+j)]` with :math:`K(m) = B(b+m, a)/B(b, a)`. The cosine overlap tends
    to :math:`[4r/(1+r)^2]^{a/2}` with :math:`r = j/i`. This is full aging, :math:`\mu = 1`.

    It is the picture of "more and more flat directions" of Baity-Jesi et al. 2018 (arXiv 1803.06969), with an exact
    answer. At a = 3/2, the exponent is the exponent of the spherical p = 2 model.

    Args:
        a: exponent of the flat directions, positive. A small a means many flat directions.
        b: shape at the steep end, positive.
        initial_variance: :math:`S_0`.

    Raises:
        ValueError: ``a`` or ``b`` is not positive.

    Example:
        >>> glass = BetaDescent(a=1.0, b=1.0)
        >>> float(np.round(glass.moment(3), 12))  # the mean of u^3, u uniform
        0.25
    """

    a: float
    b: float = 1.0
    initial_variance: float = 1.0

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    def moment(self, m: ArrayLike) -> Array:
        r"""Return :math:`K(m) = \langle u^m\rangle = B(b+m, a)/B(b, a)`."""
        total = math.lgamma(self.a + self.b) - math.lgamma(self.b)
        log_gamma = np.vectorize(math.lgamma, otypes=[np.float64])
        power = np.asarray(m, dtype=np.float64)
        return np.asarray(np.exp(log_gamma(self.b + power) - log_gamma(self.a + self.b + power) + total))

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`\langle w(s)w(t)\rangle = S_0 K(s+t)`."""
        return self.initial_variance * self.moment(np.asarray(s) + np.asarray(t))

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        """Return the exact mean squared displacement, averaged over curvatures and initial weights."""
        i = np.asarray(waiting_time)
        j = i + np.asarray(lag)
        return self.covariance(i, i) + self.covariance(j, j) - 2 * self.covariance(i, j)

    def msd_covariance(self, waiting_times: ArrayLike, lags: ArrayLike, n: int) -> Array:
        r"""Return the covariance of measured MSDs, ``[n_pair, n_pair]``. Each MSD is an average over ``n`` coordinates.

        :math:`[3S_0^2\langle (u^a-u^b)^2(u^c-u^d)^2\rangle - \Delta(a,b)\Delta(c,d)]/N`. The moments give the average.
        """
        i = np.asarray(waiting_times, dtype=np.int64)
        j = i + np.asarray(lags, dtype=np.int64)
        product = np.zeros((len(i), len(i)))
        for first, sign_first in _square(i, j):
            for second, sign_second in _square(i, j):
                product += sign_first * sign_second * self.moment(first[:, None] + second[None, :])
        mean = self.msd(waiting_times, lags)
        return (3 * self.initial_variance**2 * product - np.outer(mean, mean)) / n


def _square(i: NDArray[np.int64], j: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int]]:
    """Return the exponents and the coefficients of (u^i - u^j)^2."""
    return [(2 * i, 1), (2 * j, 1), (i + j, -2)]
