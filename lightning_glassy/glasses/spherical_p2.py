"""The spherical p = 2 model after a quench. It has full aging below its transition, and an exact solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.observables import Array


@dataclass(frozen=True)
class SphericalP2:
    r"""Langevin dynamics of :math:`E = -\frac{1}{2}\sum_{ij} J_{ij} w_i w_j` on the sphere :math:`|w|^2 = N`.

    J is symmetric and Gaussian. Its entries have the variance :math:`1/N`, so that its eigenvalues fill a semicircle
    over -2 ... 2. The motion is :math:`\dot w = Jw - \mu(t)w + \xi` with :math:`\langle\xi_i(t)\xi_j(t')\rangle =
    2T\delta_{ij}\delta(t-t')`. The multiplier :math:`\mu(t)` keeps the length. The weights start at a random point of
    the sphere. Times are real numbers: a descent with learning rate :math:`\eta` reaches :math:`t = n\eta` in n steps.
    For :math:`N \to \infty`, with :math:`k(u) = I_1(2u)/u` and :math:`\Gamma(t) = e^{2\int_0^t\mu}`,

    .. math::
        \Gamma(t) &= k(2t) + 2T\int_0^t \Gamma(s)\,k(2(t-s))\,ds

        \sqrt{\Gamma(t)\Gamma(t')}\,C(t,t') &= k(t+t') + 2T\int_0^{\min(t,t')} \Gamma(s)\,k(t+t'-2s)\,ds .

    The solution of the first equation is :math:`\Gamma(t) = \langle e^{2\lambda t}/(1+T^2-T\lambda)\rangle`, an average
    over the semicircle. At :math:`T > 1`, :math:`(1-T^{-2})\,e^{2(T+1/T)t}` is added. The kernel is an average, too:
    :math:`k(u) = \langle e^{\lambda u}\rangle`. The quadratures of both integrals converge exponentially. Their numbers
    of nodes grow as :math:`\sqrt{t}` and, near the transition, as :math:`1/|T-1|`. The error is near 1e-11 at t = 1000.
    Below :math:`T_c = 1`, correlations at :math:`t, t' \to \infty` depend on the ratio of the times alone, so that
    :math:`\mu = 1`.

    This class reproduces :math:`C(10,20) = 0.916188`, :math:`E(1) = -0.658047` and :math:`E(10) = -0.962740` at T = 0,
    and :math:`C(10,11) = 0.75473`, :math:`C(10,20) = 0.50930` and :math:`C(40,80) = 0.47904` at T = 0.5.

    Source: Cugliandolo and Dean 1995, "Full dynamical solution for a spherical spin-glass model", J. Phys. A 28, 4213.

    Args:
        temperature: T, in units of the energy per weight. 0 is gradient descent.

    Raises:
        ValueError: the temperature is negative.

    Example:
        >>> glass = SphericalP2()
        >>> round(float(glass.correlation(10, 20)), 6), round(float(glass.energy(10)), 6)
        (0.916188, -0.96274)
    """

    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")

    def correlation(self, s: ArrayLike, t: ArrayLike) -> Array:
        r"""Return :math:`C(s,t) = \frac{1}{N}\langle w(s)\cdot w(t)\rangle` at real times."""
        first, second = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64))
        early, total = np.minimum(first, second)[..., None], (first + second)[..., None]
        # The nodes of Gauss-Legendre are dense at the ends of 0 ... min, where the integrand varies over a time of one.
        x, weights = np.polynomial.legendre.leggauss(30 + int(10 * math.sqrt(early.max(initial=0.0))))
        time = early * (1 + x) / 2
        noise = early[..., 0] * np.sum(weights * self._growth(time) * self._kernel(total - 2 * time), axis=-1)
        unnormalised = self._kernel(total[..., 0]) + self.temperature * noise
        return np.asarray(unnormalised / np.sqrt(self._growth(first) * self._growth(second)))

    def response(self, t: ArrayLike, s: ArrayLike) -> Array:
        r"""Return the response :math:`R(t,s) = \sqrt{\Gamma(s)/\Gamma(t)}\,k(t-s)` at time t to a kick at time s."""
        late, early = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(s, dtype=np.float64))
        return np.asarray(np.sqrt(self._growth(early) / self._growth(late)) * self._kernel(late - early))

    def integrated_response(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the response to a field since :math:`t_w`, :math:`\chi(t_w+t, t_w) = \int_{t_w}^{t_w+t} R\,ds`."""
        start, lags = np.broadcast_arrays(np.asarray(waiting_time, dtype=np.float64), np.asarray(lag, dtype=np.float64))
        x, weights = np.polynomial.legendre.leggauss(30 + int(10 * math.sqrt(lags.max(initial=0.0))))
        times = start[..., None] + lags[..., None] * (1 + x) / 2
        return np.asarray(lags / 2 * np.sum(weights * self.response((start + lags)[..., None], times), axis=-1))

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the mean squared displacement :math:`\Delta(t_w, t_w+t) = 2(1-C)` at real times."""
        start = np.asarray(waiting_time, dtype=np.float64)
        return 2 * (1 - self.correlation(start, start + np.asarray(lag)))

    def energy(self, t: ArrayLike) -> Array:
        r"""Return the energy per weight :math:`E(t) = (T - \mu(t))/2`, :math:`\mu = \Gamma'/(2\Gamma)`."""
        multiplier = self._growth(t, derivative=True) / (2 * self._growth(t))
        return np.asarray((self.temperature - multiplier) / 2)

    @property
    def _edge(self) -> float:
        """Largest exponent. Functions of u are divided by e^(edge u), because they would overflow otherwise."""
        return max(2.0, self.temperature + 1 / self.temperature) if self.temperature > 1 else 2.0

    def _growth(self, t: ArrayLike, derivative: bool = False) -> Array:
        """Return Gamma(t), or its derivative, times e^(-2 edge t)."""
        temperature, u = self.temperature, 2 * np.asarray(t, dtype=np.float64)
        # If T is near 1, the weight of the average has a pole near the edge of the semicircle.
        extra = 0 if temperature in (0, 1) else math.ceil(20 / abs(math.log(temperature)))
        eigenvalues, weights = _semicircle(u, extra)
        weights = weights / (1 + temperature**2 - temperature * eigenvalues)
        if temperature > 1:
            eigenvalues = np.append(eigenvalues, temperature + 1 / temperature)
            weights = np.append(weights, 1 - temperature**-2)
        if derivative:
            weights = 2 * eigenvalues * weights
        return _sum_of_exponentials(u, eigenvalues - self._edge, weights)

    def _kernel(self, u: Array) -> Array:
        """Return k(u) times e^(-edge u)."""
        eigenvalues, weights = _semicircle(u)
        return _sum_of_exponentials(u, eigenvalues - self._edge, weights)


def _semicircle(u: Array, extra: int = 0) -> tuple[Array, Array]:
    """Return nodes and weights of the midpoint rule in lambda = 2 cos, for averages over the semicircle."""
    n = 30 + int(7 * math.sqrt(u.max(initial=0.0))) + extra
    angle = (np.arange(n) + 0.5) * np.pi / n
    return 2 * np.cos(angle), 2 / n * np.sin(angle) ** 2


def _sum_of_exponentials(u: Array, exponents: Array, weights: Array) -> Array:
    """Return the sum at each u. Compute a few million terms at a time."""
    parts = np.array_split(u.ravel(), 1 + u.size * len(weights) // 2**22)
    return np.concatenate([np.exp(np.multiply.outer(part, exponents)) @ weights for part in parts]).reshape(u.shape)
