r"""The spectrum of a curvature matrix: known eigenvalues, and a quadrature of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RESOLUTION = 50  # the width of a density is its range over this where the spectrum is exact


class Estimate(NamedTuple):
    """A value and its error: one standard deviation, with what the quadrature may miss. 0 where it is exact."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.error:.2g}" if self.error else "")


@dataclass(frozen=True)
class Spectrum:
    r"""The spectrum of a curvature matrix: eigenvalues known one by one, and a quadrature of the rest. Prints readably.

    With K eigenvalues known, the mean of any function over the spectrum is

    .. math:: \frac{1}{N}\sum_i f(\lambda_i) \approx \frac{1}{N}\sum_{k\le K} f(\lambda_k)
        + \frac{N-K}{N}\,\frac{1}{P}\sum_p\sum_j \omega_{pj} f(\theta_{pj})

    with the eigenvalues :math:`\theta_{pj}` of the tridiagonal matrix that Lanczos makes of the probe vector p, and the
    squares :math:`\omega_{pj}` of the first components of their vectors. An error has two parts, added in squares:

    * of the probes: they are spread evenly over the sphere of the N - K other directions, on which the variance of
      :math:`v^T f(H) v` is :math:`2\,\mathrm{Var}_\lambda f/(N-K+2)`, exactly. The variance of f over the spectrum is
      from the same quadrature, so that this needs no scatter between many probes;
    * of the quadrature: how far the estimates from half of the nodes, and from each number up to all, are from the last
      (root mean square). For a trace it is 0.

    Attributes:
        n_parameters: N.
        n_products: matrix-vector products that it took.
        eps: directions with :math:`|\lambda| < \epsilon` count as flat, in units of the loss per weight squared.
        eigenvalues: known ones, ascending, ``[K]``; all N of them where the spectrum is exact.
        residuals: :math:`|Hy - \lambda y|`, within which there is an eigenvalue for certain, ``[K]``; 0 where exact.
        n_lowest: how many of these, from the first, are the lowest of all.
        n_leading: how many of these, from the last, are the leading ones. Fewer than asked for if they did not converge
            within the products allowed, or if an eigenvalue occurs more often than ARPACK could tell.
        diagonals: of the tridiagonal matrices, ``[P, n_nodes]``; ``[0, 0]`` where exact.
        off_diagonals: likewise, ``[P, n_nodes - 1]``.
    """

    n_parameters: int
    n_products: int
    eps: float
    eigenvalues: Array
    residuals: Array
    n_lowest: int
    n_leading: int
    diagonals: Array
    off_diagonals: Array

    @property
    def exact(self) -> bool:
        """Whether all eigenvalues are known."""
        return len(self.eigenvalues) == self.n_parameters

    @property
    def leading(self) -> Array:
        """Leading eigenvalues, the largest first; none where none converged."""
        return self.eigenvalues[::-1][: self.n_leading]

    @property
    def lowest(self) -> Array:
        """Lowest eigenvalues, the most negative first; none where none converged."""
        return self.eigenvalues[: self.n_lowest]

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest place seen, eigenvalue or node: the spectrum reaches at least that far."""
        seen = self.eigenvalues if self.exact else np.concatenate([self.eigenvalues, self._seen()])
        return float(seen.min()), float(seen.max())

    @property
    def trace(self) -> Estimate:
        r""":math:`\sum_i\lambda_i`: known eigenvalues, and Hutchinson's estimator for the rest."""
        mean, error = self._mean(lambda x: x)
        return Estimate(self.n_parameters * float(mean), self.n_parameters * float(error))

    @property
    def flat_fraction(self) -> Estimate:
        r"""Fraction of the directions with :math:`|\lambda| < \epsilon`. Of another ε: ``dataclasses.replace``."""
        return self._fraction(lambda x: np.abs(x) < self.eps, np.abs(np.abs(self.eigenvalues) - self.eps))

    @property
    def index(self) -> Estimate:
        r"""Fraction of the directions with :math:`\lambda < -\epsilon`, those in which the loss curves down."""
        return self._fraction(lambda x: x < -self.eps, np.abs(self.eigenvalues + self.eps))

    def density(self, grid: Array | None = None, width: float | None = None) -> tuple[Array, Array, Array]:
        r"""Spectral density :math:`\rho(\lambda) = \frac{1}{N}\sum_i g_\sigma(\lambda - \lambda_i)`, each a Gaussian.

        Args:
            grid: where to give it, ``[n]``; by default 256 points across the bulk, without the leading and the lowest
                eigenvalues, which would be too far apart for one axis.
            width: σ of the Gaussians; by default the width of the bulk over the number of nodes of a quadrature,
                which is about what the quadrature resolves. A smaller one shows its nodes, and a larger error.

        Returns:
            The grid, the density (its integral over all :math:`\lambda` is 1) and its error, which is rough where only
            a few eigenvalues make the density.

        Raises:
            ValueError: a width that is not positive.
        """
        inner = self.eigenvalues[self.n_lowest : self.n_parameters - self.n_leading] if self.exact else self._seen()
        bulk = inner if len(inner) else self.eigenvalues
        low, high = float(bulk.min()), float(bulk.max())
        if width is None:
            width = (high - low) / (_RESOLUTION if self.exact else self.diagonals.shape[1])
            if width <= 1e-9 * max(abs(low), abs(high)):  # all eigenvalues are the same
                width = max(abs(low), abs(high)) / _RESOLUTION or self.eps
        if not width > 0:
            raise ValueError(f"width={width} must be positive; leave it out for what the quadrature resolves")
        if grid is None:
            grid = np.linspace(low - 4 * width, high + 4 * width, 256)
        points, sigma = np.asarray(grid, dtype=np.float64), width
        density, error = self._mean(
            lambda x: np.exp(-(((x - np.expand_dims(points, tuple(range(1, x.ndim + 1)))) / sigma) ** 2) / 2)
        )
        scale = sigma * np.sqrt(2 * np.pi)
        return points, density / scale, error / scale

    def _mean(self, function: Callable[[Array], Array]) -> tuple[Array, Array]:
        """Mean over the spectrum of a function ``[...] -> [..., *x.shape]``, and its error, ``[...]``."""
        known = function(self.eigenvalues).sum(-1) / self.n_parameters
        rest = self.n_parameters - len(self.eigenvalues)
        if not rest:
            return known, np.zeros_like(known)
        n_probes, n_nodes = self.diagonals.shape
        nodes, weights = self._quadrature(n_nodes)
        values = function(nodes)
        mean = (weights * values).sum((-2, -1)) / n_probes
        variance = (weights * (values - mean[..., None, None]) ** 2).sum((-2, -1)) / n_probes
        moved = np.zeros_like(mean)
        earlier = range(n_nodes // 2, n_nodes)
        for few in earlier:
            nodes, weights = self._quadrature(few)
            moved += ((weights * function(nodes)).sum((-2, -1)) / n_probes - mean) ** 2
        error = np.sqrt(2 * variance / ((rest + 2) * n_probes) + moved / len(earlier))
        share = rest / self.n_parameters
        return known + share * mean, share * error

    def _fraction(self, inside: Callable[[Array], NDArray[np.bool_]], distances: Array) -> Estimate:
        """Fraction of the directions inside a range; a known eigenvalue that may lie on its other side is an error."""
        mean, error = self._mean(lambda x: inside(x).astype(np.float64))
        doubtful = float((distances < self.residuals).sum()) / self.n_parameters
        return Estimate(float(mean), float(np.hypot(error, doubtful)))

    def _quadrature(self, n_nodes: int) -> tuple[Array, Array]:
        """Nodes and weights of the quadrature with so many, each ``[P, n_nodes]``."""
        off = self.off_diagonals[:, : n_nodes - 1]
        matrices = np.zeros((len(off), n_nodes, n_nodes))
        row = np.arange(n_nodes)
        matrices[:, row, row] = self.diagonals[:, :n_nodes]
        matrices[:, row[:-1], row[1:]] = matrices[:, row[1:], row[:-1]] = off
        nodes, states = np.linalg.eigh(matrices)
        return nodes, states[:, 0] ** 2

    def _seen(self) -> Array:
        """Nodes that have a weight, ascending."""
        nodes, weights = self._quadrature(self.diagonals.shape[1])
        return np.sort(nodes[weights > 1e-12])

    def __str__(self) -> str:
        def row(values: Array, bound: str) -> str:
            return ", ".join(f"{value:.4g}" for value in values[:5]) or f"{bound} (did not converge)"

        low, high = self.bounds
        how = "exact" if self.exact else f"{len(self.diagonals)} probes"
        return "\n".join(
            [
                f"curvature of {self.n_parameters:,} parameters ({how}, {self.n_products:,} products)",
                f"  leading: {row(self.leading, f'at least {high:.4g}')}",
                f"  lowest: {row(self.lowest, f'at most {low:.4g}')}",
                f"  trace: {self.trace}",
                f"  flat, |lambda| < {self.eps:g}: {self.flat_fraction}",
                f"  index, lambda < -{self.eps:g}: {self.index}",
            ]
        )
