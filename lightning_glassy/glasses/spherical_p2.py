"""The spherical p = 2 model after a quench: full aging below its transition, with a solution in Bessel functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.observables import Array


@dataclass(frozen=True)
class SphericalP2:
    r"""Langevin dynamics of :math:`E = -\frac{1}{2}\sum_{ij} J_{ij} w_i w_j` on the sphere :math:`|w|^2 = N`.

    J is symmetric, Gaussian, its entries of variance :math:`1/N`, so that its eigenvalues fill a semicircle over
    -2 ... 2; :math:`\dot w = Jw - \mu(t)w + \xi`, :math:`\langle\xi_i(t)\xi_j(t')\rangle = 2T\delta_{ij}\delta(t-t')`,
    the multiplier :math:`\mu(t)` keeps the length, and the weights start anywhere on the sphere. Times are real numbers
    (a descent with learning rate :math:`\eta` reaches :math:`t = n\eta` in n steps), :math:`N \to \infty`. With
    :math:`k(u) = I_1(2u)/u` and :math:`\Gamma(t) = e^{2\int_0^t\mu}`

    .. math::
        \Gamma(t) &= k(2t) + 2T\int_0^t \Gamma(s)\,k(2(t-s))\,ds

        \sqrt{\Gamma(t)\Gamma(t')}\;C(t,t') &= k(t+t') + 2T\int_0^{\min(t,t')} \Gamma(s)\,k(t+t'-2s)\,ds .

    The first is solved by :math:`\Gamma(t) = \langle e^{2\lambda t}/(1+T^2-T\lambda)\rangle`, an average over the
    semicircle (as :math:`k(u) = \langle e^{\lambda u}\rangle` is), to which :math:`(1-T^{-2})\,e^{2(T+1/T)t}` is added
    at :math:`T > 1`. Both integrals are done by rules that converge exponentially, with enough nodes for an error near
    1e-11 at t = 1000; they grow as :math:`\sqrt{t}` and, near the transition, as :math:`1/|T-1|`. Below :math:`T_c = 1`
    correlations at :math:`t, t' \to \infty` depend on the ratio of the times alone: :math:`\mu = 1`.

    Reproduces :math:`C(10,20) = 0.916188`, :math:`E(1) = -0.658047` and :math:`E(10) = -0.962740` at T = 0;
    :math:`C(10,11) = 0.75473`, :math:`C(10,20) = 0.50930` and :math:`C(40,80) = 0.47904` at T = 0.5. Source:
    Cugliandolo and Dean 1995, "Full dynamical solution for a spherical spin-glass model", J. Phys. A 28, 4213.

    Args:
        temperature: T, in units of the energy per weight; 0 is gradient descent.

    Raises:
        ValueError: a negative temperature.

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
        r""":math:`C(s,t) = \frac{1}{N}\langle w(s)\cdot w(t)\rangle` at real times, broadcast as NumPy does."""
        first, second = np.broadcast_arrays(np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64))
        early, total = np.minimum(first, second)[..., None], (first + second)[..., None]
        # Gauss-Legendre over 0 ... min: its nodes crowd at the ends, where the integrand varies over a time of one.
        x, weights = np.polynomial.legendre.leggauss(30 + int(10 * math.sqrt(early.max(initial=0.0))))
        time = early * (1 + x) / 2
        noise = early[..., 0] * np.sum(weights * self._growth(time) * self._kernel(total - 2 * time), axis=-1)
        unnormalised = self._kernel(total[..., 0]) + self.temperature * noise
        return np.asarray(unnormalised / np.sqrt(self._growth(first) * self._growth(second)))

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Mean squared displacement :math:`\Delta(t_w, t_w+t) = 2(1-C)`, times real numbers."""
        start = np.asarray(waiting_time, dtype=np.float64)
        return 2 * (1 - self.correlation(start, start + np.asarray(lag)))

    def energy(self, t: ArrayLike) -> Array:
        r"""Energy per weight :math:`E(t) = (T - \mu(t))/2`, :math:`\mu = \Gamma'/(2\Gamma)`; -1 at the bottom."""
        multiplier = self._growth(t, derivative=True) / (2 * self._growth(t))
        return np.asarray((self.temperature - multiplier) / 2)

    @property
    def _edge(self) -> float:
        """Largest exponent; e^(edge u) is taken out of all functions of u, which would overflow with it."""
        return max(2.0, self.temperature + 1 / self.temperature) if self.temperature > 1 else 2.0

    def _growth(self, t: ArrayLike, derivative: bool = False) -> Array:
        """Gamma(t), or its derivative, times e^(-2 edge t)."""
        temperature, u = self.temperature, 2 * np.asarray(t, dtype=np.float64)
        # The weight of the average has a pole near the edge of the semicircle when T is near 1.
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
        """k(u) times e^(-edge u)."""
        eigenvalues, weights = _semicircle(u)
        return _sum_of_exponentials(u, eigenvalues - self._edge, weights)


def _semicircle(u: Array, extra: int = 0) -> tuple[Array, Array]:
    """Nodes and weights of an average of e^(lambda u) over the semicircle: the midpoint rule in lambda = 2 cos."""
    n = 30 + int(7 * math.sqrt(u.max(initial=0.0))) + extra
    angle = (np.arange(n) + 0.5) * np.pi / n
    return 2 * np.cos(angle), 2 / n * np.sin(angle) ** 2


def _sum_of_exponentials(u: Array, exponents: Array, weights: Array) -> Array:
    """The sum at each u, some millions of terms at a time."""
    parts = np.array_split(u.ravel(), 1 + u.size * len(weights) // 2**22)
    return np.concatenate([np.exp(np.multiply.outer(part, exponents)) @ weights for part in parts]).reshape(u.shape)
