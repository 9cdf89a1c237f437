"""Bouchaud's trap model. It has full aging, because the longest sojourn so far is as long as the past."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array


@dataclass(frozen=True)
class BouchaudTrap:
    r"""Independent coordinates that sit in traps with sojourn times of infinite mean.

    The density of long sojourns falls as :math:`\psi(\tau) \sim \tau^{-1-x}`. A coordinate enters a trap at step 0. It
    leaves a trap at each step with a probability q. Each trap draws its q from Beta(x, 1-x). The density
    :math:`q^{x-1}` at 0 is the density for traps of exponentially distributed depth at temperature :math:`T = xT_g`. In
    the next trap, the coordinate is a new number from N(0, 1).

    The sojourns follow Sibuya's law, :math:`P(\tau > n) = S_n = \prod_{k=1}^{n}(1 - x/k) \to n^{-x}/\Gamma(1-x)`. A
    trap is entered at step n with probability :math:`u_n = \prod_{k=1}^{n}(1 - (1-x)/k)`. The probability of no jump
    between :math:`t_w` and :math:`t_w+t` is exactly

    .. math:: \Pi(t_w, t_w+t) = \sum_{n=0}^{t_w} u_n S_{t_w+t-n} .

    For long times it becomes the (generalised) arcsine law, a function of :math:`t/t_w`. This is full aging,
    :math:`\mu = 1`. Correlation and displacement are :math:`C = \Pi` and :math:`\Delta = 2(1-\Pi)`.

    Source: Bouchaud 1992, "Weak ergodicity breaking and aging in disordered systems", J. Phys. I France 2, 1705.
    Bouchaud and Dean 1995.

    Args:
        x: exponent of the sojourns, between 0 (frozen) and 1 (no aging), both excluded.

    Raises:
        ValueError: x is not between 0 and 1.

    Example:
        >>> glass = BouchaudTrap(x=0.5)
        >>> round(float(glass.arcsine_law(1.0)), 9)  # a sojourn covers t_w ... 2 t_w
        0.5
        >>> round(float(glass.persistence(1000, 1000)), 3)
        0.5
    """

    x: float

    def __post_init__(self) -> None:
        if not 0 < self.x < 1:
            raise ValueError(f"x={self.x} must be between 0 and 1, both excluded")

    def arcsine_law(self, ratio: ArrayLike) -> Array:
        r"""Return the limit of :math:`\Pi` at :math:`r = t/t_w`, the incomplete beta :math:`I_{1/(1+r)}(x, 1-x)`."""
        from scipy.special import betainc  # other glasses do without SciPy

        return np.asarray(betainc(self.x, 1 - self.x, 1 / (1 + np.asarray(ratio, dtype=np.float64))))

    def persistence(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return :math:`\Pi(t_w, t_w+t)`, the exact probability of no jump in between, at integer steps."""
        start, lags = np.broadcast_arrays(np.asarray(waiting_time), np.asarray(lag))
        k = np.arange(1, int((start + lags).max(initial=0)) + 1)
        survival, entry = (np.cumprod(np.append(1.0, 1 - a / k)) for a in (self.x, 1 - self.x))
        pairs = zip(start.flat, lags.flat, strict=True)
        values = [entry[: t_w + 1] @ survival[t : t_w + t + 1][::-1] for t_w, t in pairs]
        return np.asarray(values, dtype=np.float64).reshape(start.shape)

    def msd(self, waiting_time: ArrayLike, lag: ArrayLike) -> Array:
        r"""Return the exact mean squared displacement :math:`2(1-\Pi)` at integer steps."""
        return 2 * (1 - self.persistence(waiting_time, lag))

    def trajectory(self, n: int, steps: int, seed: int = 0) -> NDArray[np.float64]:
        """Simulate ``n`` coordinates, and return the ``[steps + 1, n]`` for :meth:`AgingRecord.from_trajectory`."""
        rng = np.random.default_rng(seed)
        path = np.empty((steps + 1, n))
        path[0], escape = rng.normal(size=n), rng.beta(self.x, 1 - self.x, size=n)
        for step in range(1, steps + 1):
            jump = rng.random(n) < escape
            path[step] = np.where(jump, rng.normal(size=n), path[step - 1])
            escape = np.where(jump, rng.beta(self.x, 1 - self.x, size=n), escape)
        return path
