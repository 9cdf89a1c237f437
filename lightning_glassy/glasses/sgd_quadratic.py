"""Stochastic gradient descent in a quadratic valley, with momentum: aging that stops at the relaxation time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.glasses.gaussian import GaussianGlass
from lightning_glassy.observables import Array


@dataclass(frozen=True)
class SGDQuadratic(GaussianGlass):
    r"""SGD on :math:`\frac{1}{2}\lambda w^2` with additive gradient noise, in PyTorch's convention of momentum.

    :math:`g = \lambda w + \sigma\xi`, :math:`v' = \beta v + g`, :math:`w' = w - \eta v'`, :math:`w_0 \sim N(0, S_0)`,
    :math:`v_0 = 0`. Let :math:`A = ((1-\eta\lambda, -\eta\beta), (\lambda, \beta))` and :math:`B = \sigma(-\eta,
    1)^T`. The second moments follow :math:`P' = APA^T + BB^T`, and :math:`C(n, n+m) = (A^m P_n)_{ww}`. The variance of
    the weights ends at :math:`S_\infty = \eta\sigma^2(1+\beta)/[\lambda(1-\beta)(2(1+\beta)-\eta\lambda)]`. Without
    momentum, :math:`S_n = a^{2n}S_0 + S_\infty(1-a^{2n})` and :math:`\Delta = (1-a^m)^2S_n + S_\infty(1-a^{2m})` with
    :math:`a = 1-\eta\lambda`.

    Source: a linear recursion. In continuous time, it is the model of Mandt, Hoffman and Blei 2017, "Stochastic
    gradient descent as approximate Bayesian inference", JMLR 18, 134.

    Args:
        learning_rate: :math:`\eta`.
        curvature: :math:`\lambda`. The descent is stable for :math:`\eta\lambda < 2(1+\beta)`.
        noise: :math:`\sigma`, standard deviation of the gradient noise.
        momentum: :math:`\beta`.
        initial_variance: :math:`S_0`.

    Raises:
        ValueError: ``learning_rate`` is not positive, or ``momentum`` is not between 0 and 1.

    Example:
        >>> glass = SGDQuadratic(learning_rate=0.1, curvature=1.0, noise=1.0)
        >>> round(float(glass.covariance(1000, 1000)), 9) == round(0.1 / 1.9, 9)  # stationary
        True
    """

    learning_rate: float
    curvature: float
    noise: float
    momentum: float = 0.0
    initial_variance: float = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be between 0 and 1, 1 excluded")

    @property
    def temperature(self) -> float:
        r"""Effective temperature :math:`T = \lambda S_\infty` of the stationary motion without momentum.

        It is :math:`\eta\sigma^2/(2-\eta\lambda)`, and then :math:`\chi = [C(n,n) - C(n,n+m)]/T` exactly. With
        momentum, it is the limit of the ratio for long lags.
        """
        eta, lam, beta = self.learning_rate, self.curvature, self.momentum
        return eta * self.noise**2 * (1 + beta) / ((1 - beta) * (2 * (1 + beta) - eta * lam))

    def integrated_response(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the response :math:`\chi(n+m, n)` to a field that acts since step n, exactly linear in the field.

        Per unit of the field, the differences of weight and velocity follow :math:`(\delta w, \delta v)' = A(\delta w,
        \delta v) + (\eta, -1)` from zero. Without momentum, :math:`\chi = (1-a^m)/\lambda`, for every waiting time.
        """
        m = np.asarray(np.broadcast_arrays(np.asarray(waiting_time), np.asarray(lag))[1])
        difference = np.zeros((int(m.max(initial=0)) + 1, 2))
        for k in range(len(difference) - 1):
            difference[k + 1] = self._drift @ difference[k] + np.array([self.learning_rate, -1.0])
        return np.asarray(difference[m, 0])

    @property
    def _drift(self) -> Array:
        """The matrix A."""
        eta, lam, beta = self.learning_rate, self.curvature, self.momentum
        return np.array([[1 - eta * lam, -eta * beta], [lam, beta]])

    def covariance(self, s: ArrayLike, t: ArrayLike) -> Array:
        """Iterate the second moments up to the earlier step. The result is exact at every step."""
        early, late = np.minimum(s, t), np.maximum(s, t)
        drift = self._drift
        kick = self.noise * np.array([-self.learning_rate, 1.0])
        moments = np.zeros((int(early.max()) + 1, 2, 2))
        moments[0, 0, 0] = self.initial_variance
        for n in range(len(moments) - 1):
            moments[n + 1] = drift @ moments[n] @ drift.T + np.outer(kick, kick)
        first_row = np.zeros((int((late - early).max()) + 1, 2))  # first row of A^m
        first_row[0] = 1.0, 0.0
        for m in range(len(first_row) - 1):
            first_row[m + 1] = first_row[m] @ drift
        return np.asarray(np.einsum("...i,...i->...", first_row[late - early], moments[early][..., :, 0]))
