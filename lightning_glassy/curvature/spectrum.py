r"""The spectrum of a curvature matrix: known eigenvalues, and a quadrature of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RESOLUTION = 50  # the default width of a density is the range of an exact spectrum over this number


class Estimate(NamedTuple):
    """A value and its error. The error is 0 for an exact value.

    The error is one standard deviation and includes the possible error of the quadrature.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.error:.2g}" if self.error else "")


@dataclass(frozen=True)
class Spectrum:
    r"""The spectrum of a curvature matrix: eigenvalues known one by one, and a quadrature of the rest.

    ``print`` shows a summary. With K eigenvalues known, the mean of any function over the spectrum is

    .. math:: \frac{1}{N}\sum_i f(\lambda_i) \approx \frac{1}{N}\sum_{k\le K} f(\lambda_k)
        + \frac{N-K}{N}\,\frac{1}{P}\sum_p\sum_j \omega_{pj} f(\theta_{pj})

    with the eigenvalues :math:`\theta_{pj}` of the tridiagonal matrix that Lanczos makes from the probe vector p. The
    weights :math:`\omega_{pj}` are the squares of the first components of the eigenvectors. The error of an estimate
    has two parts, added in squares:

    * Error of the probes. The probes are spread evenly over the sphere of the N - K other directions. On this sphere,
      the variance of :math:`v^T f(H) v` is exactly :math:`2\,\mathrm{Var}_\lambda f/(N-K+2)`. The variance of f over
      the spectrum comes from the same quadrature, so the error needs no scatter between many probes.
    * Error of the quadrature. The estimate from all nodes is compared with the estimates from fewer nodes, down to half
      of them (root mean square difference). For a trace, this error is 0.

    Attributes:
        n_parameters: N.
        n_products: number of matrix-vector products that the measurement took.
        eps: directions with :math:`|\lambda| < \epsilon` count as flat, in units of the loss per weight squared.
        eigenvalues: known eigenvalues, ascending, ``[K]``. An exact spectrum has all N.
        residuals: :math:`|Hy - \lambda y|`, ``[K]``. An exact eigenvalue lies within this distance of :math:`\lambda`.
            0 for an exact spectrum.
        n_lowest: number of known eigenvalues, counted from the first, that are the lowest of the whole spectrum.
        n_leading: number of known eigenvalues, counted from the last, that are the largest of the whole spectrum.
            Smaller than requested if too few converged within the allowed products, or if an eigenvalue occurs more
            often than ARPACK could resolve.
        diagonals: diagonals of the tridiagonal matrices, ``[P, n_nodes]``, or ``[0, 0]`` for an exact spectrum.
        off_diagonals: off-diagonals of the tridiagonal matrices, ``[P, n_nodes - 1]``, or ``[0, 0]`` for an exact
            spectrum.
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
        """Return whether all eigenvalues are known."""
        return len(self.eigenvalues) == self.n_parameters

    @property
    def leading(self) -> Array:
        """Return the leading eigenvalues, the largest first. Empty if none converged."""
        return self.eigenvalues[::-1][: self.n_leading]

    @property
    def lowest(self) -> Array:
        """Return the lowest eigenvalues, the most negative first. Empty if none converged."""
        return self.eigenvalues[: self.n_lowest]

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lowest and the highest eigenvalue or node found. The spectrum reaches at least this far."""
        seen = self.eigenvalues if self.exact else np.concatenate([self.eigenvalues, self._seen()])
        return float(seen.min()), float(seen.max())

    @property
    def trace(self) -> Estimate:
        r"""Return :math:`\sum_i\lambda_i`: the known eigenvalues plus Hutchinson's estimate for the rest."""
        mean, error = self._mean(lambda x: x)
        return Estimate(self.n_parameters * float(mean), self.n_parameters * float(error))

    @property
    def flat_fraction(self) -> Estimate:
        r"""Return the fraction of directions with :math:`|\lambda| < \epsilon`.

        For another ε, make a copy of the spectrum with ``dataclasses.replace``.
        """
        return self._fraction(lambda x: np.abs(x) < self.eps, np.abs(np.abs(self.eigenvalues) - self.eps))

    @property
    def index(self) -> Estimate:
        r"""Return the fraction of directions with :math:`\lambda < -\epsilon`, in which the loss curves down."""
        return self._fraction(lambda x: x < -self.eps, np.abs(self.eigenvalues + self.eps))

    def density(self, grid: Array | None = None, width: float | None = None) -> tuple[Array, Array, Array]:
        r"""Return :math:`\rho(\lambda) = \frac{1}{N}\sum_i g_\sigma(\lambda - \lambda_i)`, a sum of Gaussians.

        Args:
            grid: values of λ at which to evaluate the density, ``[n]``. The default is 256 points across the bulk. It
                leaves out the leading and the lowest eigenvalues, because they are too far apart for one axis.
            width: σ of the Gaussians. The default is the width of the bulk over the number of nodes, about the
                resolution of the quadrature. For an exact spectrum, it is the width of the bulk over 50. A smaller σ
                shows the single nodes of the quadrature and has a larger error.

        Returns:
            The grid, the spectral density (its integral over all :math:`\lambda` is 1) and its error. The error is only
            approximate at points to which few eigenvalues contribute.

        Raises:
            ValueError: the width is not positive.
        """
        inner = self.eigenvalues[self.n_lowest : self.n_parameters - self.n_leading] if self.exact else self._seen()
        bulk = inner if len(inner) else self.eigenvalues
        low, high = float(bulk.min()), float(bulk.max())
        if width is None:
            width = (high - low) / (_RESOLUTION if self.exact else self.diagonals.shape[1])
            if width <= 1e-9 * max(abs(low), abs(high)):  # all eigenvalues are equal
                width = max(abs(low), abs(high)) / _RESOLUTION or self.eps
        if not width > 0:
            raise ValueError(f"width={width} must be positive: leave it out for the resolution of the quadrature")
        if grid is None:
            grid = np.linspace(low - 4 * width, high + 4 * width, 256)
        points, sigma = np.asarray(grid, dtype=np.float64), width
        density, error = self._mean(
            lambda x: np.exp(-(((x - np.expand_dims(points, tuple(range(1, x.ndim + 1)))) / sigma) ** 2) / 2)
        )
        scale = sigma * np.sqrt(2 * np.pi)
        return points, density / scale, error / scale

    def _mean(self, function: Callable[[Array], Array]) -> tuple[Array, Array]:
        """Return the mean over the spectrum of a function ``x -> [..., *x.shape]``, and its error, both ``[...]``."""
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
        """Return the fraction of directions inside a range.

        A known eigenvalue that may lie on the other side of the limit adds to the error.
        """
        mean, error = self._mean(lambda x: inside(x).astype(np.float64))
        doubtful = float((distances < self.residuals).sum()) / self.n_parameters
        return Estimate(float(mean), float(np.hypot(error, doubtful)))

    def _quadrature(self, n_nodes: int) -> tuple[Array, Array]:
        """Return the nodes and the weights of the quadrature with ``n_nodes`` nodes, each ``[P, n_nodes]``."""
        off = self.off_diagonals[:, : n_nodes - 1]
        matrices = np.zeros((len(off), n_nodes, n_nodes))
        row = np.arange(n_nodes)
        matrices[:, row, row] = self.diagonals[:, :n_nodes]
        matrices[:, row[:-1], row[1:]] = matrices[:, row[1:], row[:-1]] = off
        nodes, states = np.linalg.eigh(matrices)
        return nodes, states[:, 0] ** 2

    def _seen(self) -> Array:
        """Return the nodes with a weight above zero, ascending."""
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
