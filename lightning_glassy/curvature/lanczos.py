"""Estimate a spectrum from matrix-vector products."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lightning_glassy.curvature.operators import CurvatureOperator
from lightning_glassy.curvature.spectrum import Array, Spectrum

_DENSE = 2000  # up to so many parameters the whole matrix is a small thing: 32 MB, and seconds to diagonalise


def measure_spectrum(
    operator: CurvatureOperator,
    *,
    eps: float = 1e-3,
    n_eigenvalues: int = 5,
    n_probes: int = 2,
    n_nodes: int = 100,
    max_products: int = 400,
    tol: float = 1e-3,
    seed: int = 0,
) -> Spectrum:
    """The spectrum of a curvature matrix, by at most ``max_products`` products with vectors.

    With no more parameters than that (and at most 2,000) the whole matrix is computed, and everything is exact.
    Otherwise the leading and the lowest eigenvalues come from ARPACK and are taken out of the rest, which Lanczos
    quadrature then sees from random vectors. These come from a generator of their own: the same seed, the same result.

    Args:
        operator: from :class:`HessianOperator` or :class:`GaussNewtonOperator`.
        eps: below which a direction is flat, in units of the loss per weight squared.
        n_eigenvalues: how many leading and how many lowest eigenvalues to look for.
        n_probes: random vectors; errors fall with its square root.
        n_nodes: products for each of them, and nodes of its quadrature; it resolves the width of the bulk over this.
        max_products: what may be spent. What the probes leave is for the eigenvalues, half of it for each end.
        tol: largest residual of an eigenvalue, relative to the eigenvalue for the leading ones and to the width of the
            spectrum for the lowest. The error of an eigenvalue is about the square of its residual over the distance to
            the next one.
        seed: of the probes.

    Raises:
        ValueError: an argument out of its range, or ``max_products`` that do not suffice for the least.
        ImportError: scipy is missing; it is in the extra ``curvature``.
        FloatingPointError: a product that is not finite, as where the weights have diverged.
    """
    counts = {"n_eigenvalues": n_eigenvalues, "n_probes": n_probes, "max_products": max_products, "n_nodes": n_nodes}
    for name, count in counts.items():
        if count < (fewest := 4 if name == "n_nodes" else 1):
            raise ValueError(f"{name}={count} must be at least {fewest}")
    for name, bound in {"eps": eps, "tol": tol}.items():
        if not bound > 0:
            raise ValueError(f"{name}={bound} must be positive")
    n, before = operator.n_parameters, operator.n_products
    if n <= min(max_products, _DENSE):
        matrix = np.array([operator.product(row) for row in np.eye(n)])
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        few = min(n_eigenvalues, n)
        none = np.zeros((0, 0))
        return Spectrum(n, n, eps, values, np.zeros(n), few, few, none, none)

    basis = max(2 * n_eigenvalues + 1, 20)  # scipy's own choice
    for_probes, least = n_probes * n_nodes, 2 * (2 * basis + 1)
    if max_products < for_probes + least:
        raise ValueError(
            f"max_products={max_products} does not suffice for n_probes={n_probes}, n_nodes={n_nodes} and "
            f"n_eigenvalues={n_eigenvalues}: allow {for_probes + least}, or ask for less"
        )
    rng = np.random.default_rng(seed)
    room = max_products - for_probes
    top, leading = _extremes(operator, "LA", np.zeros((n, 0)), 0.0, n_eigenvalues, basis, room // 2, tol, rng)
    # Seen from the last of the leading ones, the lowest are the largest in size: ARPACK's tolerance is then relative to
    # the width of the bulk, and not to an eigenvalue that may be zero.
    shift = float(top.min()) if len(top) else 0.0
    room -= operator.n_products - before + len(top)
    bottom, lowest = _extremes(operator, "SA", leading, shift, n_eigenvalues, basis, room, tol, rng)
    found, vectors = np.concatenate([bottom, top]), np.hstack([lowest, leading])
    residuals = np.zeros(len(found))
    for k, vector in enumerate(vectors.T):
        image = operator.product(vector)
        found[k] = vector @ image
        residuals[k] = np.linalg.norm(image - found[k] * vector)
    diagonals, off_diagonals = map(
        np.array, zip(*(_lanczos(operator, vectors, n_nodes, rng) for _ in range(n_probes)), strict=True)
    )
    order = np.argsort(found)
    known = found[order], residuals[order]
    spectrum = Spectrum(n, operator.n_products - before, eps, *known, 0, 0, diagonals, off_diagonals)
    # Of a degenerate eigenvalue ARPACK sees few copies, and takes what comes next for the lowest or the leading ones.
    # What the probes saw beyond them shows it.
    seen, slack = spectrum._seen(), residuals + 1e-9 * np.abs(found)
    return replace(
        spectrum,
        n_lowest=int((found - slack <= seen[0])[: len(bottom)].sum()),
        n_leading=int((found + slack >= seen[-1])[len(bottom) :].sum()),
    )


def _extremes(
    operator: CurvatureOperator,
    which: Literal["LA", "SA"],
    known: Array,
    shift: float,
    count: int,
    basis: int,
    room: int,
    tol: float,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Eigenvalues of one end, ``[k]``, and their vectors, ``[N, k]``, beside those that are known."""
    try:
        from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
    except ImportError as error:
        raise ImportError("a spectrum needs scipy: pip install 'lightning-glassy[curvature]'") from error

    def product(vector: Array) -> Array:
        vector = _without(known, vector.ravel())
        return _without(known, operator.product(vector) - shift * vector)

    n = operator.n_parameters
    options: dict[str, Any] = {"rng": rng} if "rng" in inspect.signature(eigsh).parameters else {}  # scipy >= 1.17
    try:
        values, vectors = eigsh(
            LinearOperator((n, n), matvec=product, dtype=np.float64),
            count,
            which=which,
            v0=_without(known, rng.standard_normal(n)),
            ncv=basis,
            # A basis, and in each round as much of it anew as is not kept; one more for each residual afterwards.
            maxiter=(room - count - basis - 1) // (basis - count),
            tol=tol,
            **options,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    except ArpackError:  # a matrix that is zero, or a multiple of one, has no direction to start from
        values, vectors = np.zeros(0), np.zeros((n, 0))
    return np.asarray(values) + shift, np.asarray(vectors)


def _without(known: Array, vector: Array) -> Array:
    """A vector less its part in the span of orthonormal ones."""
    return np.asarray(vector - known @ (known.T @ vector))


def _lanczos(operator: CurvatureOperator, known: Array, n_nodes: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The tridiagonal matrix that a random vector beside the known ones sees: its diagonal, and that next to it.

    The recurrence of Lanczos without reorthogonalisation, which would keep all its vectors: what it loses are second
    copies of nodes that have converged, which share their weight.
    """
    diagonal, off = np.zeros(n_nodes), np.zeros(n_nodes)
    previous = np.zeros(operator.n_parameters)
    vector = _without(known, rng.standard_normal(operator.n_parameters))
    vector /= np.linalg.norm(vector)
    for k in range(n_nodes):
        new = _without(known, operator.product(vector))
        diagonal[k] = new @ vector
        new -= diagonal[k] * vector + off[k - 1] * previous
        off[k] = np.linalg.norm(new)
        if off[k] == 0:  # the vectors so far span all that this one sees; later nodes have no weight
            break
        previous, vector = vector, new / off[k]
    return diagonal, off[:-1]
