"""Estimate a spectrum from matrix-vector products."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lightning_glassy.curvature.operators import CurvatureOperator
from lightning_glassy.curvature.spectrum import Array, Spectrum

_DENSE = 2000  # with at most this many parameters, the whole matrix takes 32 MB and seconds to diagonalise


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
    """Measure the spectrum of a curvature matrix with at most ``max_products`` products with vectors.

    If the matrix has at most ``max_products`` rows, and at most 2,000, the whole matrix is computed and the result is
    exact. Otherwise the leading and the lowest eigenvalues come from ARPACK. These eigenvalues are projected out, and
    Lanczos quadrature with random vectors estimates the rest. The random vectors come from a separate generator, so the
    same seed gives the same result.

    Args:
        operator: a :class:`HessianOperator` or a :class:`GaussNewtonOperator`.
        eps: a direction with curvature below this size is flat, in units of the loss per weight squared.
        n_eigenvalues: number of leading eigenvalues, and number of lowest eigenvalues, to look for.
        n_probes: number of random vectors. Errors fall as ``1 / sqrt(n_probes)``.
        n_nodes: products for each random vector, and nodes of its quadrature. The resolution of the quadrature is the
            width of the bulk over ``n_nodes``.
        max_products: largest number of products. The probes take ``n_probes * n_nodes`` products. The leading
            eigenvalues take at most half of the other products. The lowest eigenvalues take at most the rest.
        tol: largest residual of an eigenvalue, relative to the eigenvalue (leading end) or to the width of the spectrum
            (lowest end). The error of an eigenvalue is about the square of its residual over the distance to the next
            eigenvalue.
        seed: seed of the random vectors.

    Returns:
        The spectrum, with the errors of its estimates.

    Raises:
        ValueError: an argument is out of range, or ``max_products`` is too small. The message then gives the smallest
            possible value.
        ImportError: scipy is missing. Install the extra ``curvature``.
        FloatingPointError: a product is not finite, for example because the weights have diverged.
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
    # Subtract the smallest leading eigenvalue, so that the lowest eigenvalues have the largest magnitude. ARPACK's
    # tolerance is then relative to the width of the bulk, and not to an eigenvalue that may be zero.
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
    # ARPACK finds only a few copies of a degenerate eigenvalue, and then returns other eigenvalues as the lowest or the
    # leading ones. Do not count an eigenvalue if a node of the probes lies beyond it.
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
    """Return the eigenvalues of one end, ``[k]``, and their vectors, ``[N, k]``, orthogonal to ``known``."""
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
            # Each restart computes basis - count new vectors. Leave products for the first basis and the residuals.
            maxiter=(room - count - basis - 1) // (basis - count),
            tol=tol,
            **options,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    except ArpackError:  # the zero matrix and multiples of the identity leave ARPACK no direction to start from
        values, vectors = np.zeros(0), np.zeros((n, 0))
    return np.asarray(values) + shift, np.asarray(vectors)


def _without(known: Array, vector: Array) -> Array:
    """Return the part of ``vector`` that is orthogonal to the orthonormal columns of ``known``."""
    return np.asarray(vector - known @ (known.T @ vector))


def _lanczos(operator: CurvatureOperator, known: Array, n_nodes: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the diagonal and the off-diagonal of the tridiagonal matrix of a random vector orthogonal to ``known``.

    Run the Lanczos recurrence without reorthogonalisation, which would keep all vectors in memory. The only loss is
    that a converged node can appear twice. The copies share the weight of the node.
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
        if off[k] == 0:  # no further vector is reachable from the first one, and later nodes would have no weight
            break
        previous, vector = vector, new / off[k]
    return diagonal, off[:-1]
