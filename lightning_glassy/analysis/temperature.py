r"""Relaxation times against the temperature: the laws of Arrhenius and of Vogel, Fulcher and Tammann.

:func:`~lightning_glassy.analysis.relaxation_times` measures the relaxation time :math:`\tau` of each run. A run at a
temperature :math:`kT` is a training with :class:`~lightning_glassy.langevin.Langevin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lightning_glassy.analysis.exponent_result import NotEnoughDataError
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet

ARRHENIUS, VFT = "Arrhenius", "Vogel-Fulcher-Tammann"
"""Names of the laws."""

_NEAREST = 1e-4  # the search of T_0 ends so far below the lowest temperature, relative to this temperature
_GRID = 400  # temperatures T_0 of the first search


@dataclass(frozen=True)
class TemperatureLaw:
    r"""A law for the relaxation time against the temperature, fitted to :math:`\ln\tau`.

    Attributes:
        name: ``"Arrhenius"`` (:math:`\tau = \tau_0\,e^{E/kT}`) or ``"Vogel-Fulcher-Tammann"``
            (:math:`\tau = \tau_0\,e^{B/(kT - T_0)}`).
        parameters: ``"tau_0"`` in steps, and ``"E"``, or ``"B"`` and ``"T_0"``, in units of the loss.
        errors: standard error of each parameter, by the curvature of :math:`\chi^2` at its minimum.
        chi2: :math:`\chi^2`, the sum of :math:`(\text{misfit}/\text{error})^2`. NaN if no errors were given.
        misfit: rms difference between :math:`\ln\tau` and the law.
        n: number of relaxation times in the fit.
        doubts: reasons for doubt, one sentence each.
    """

    name: str
    parameters: dict[str, float]
    errors: dict[str, float]
    chi2: float
    misfit: float
    n: int
    doubts: tuple[str, ...]

    @property
    def degrees_of_freedom(self) -> int:
        r"""Number of relaxation times minus number of parameters: the mean of :math:`\chi^2` if the law holds."""
        return self.n - len(self.parameters)

    @quiet()
    def tau(self, kT: ArrayLike) -> Array:
        """Return the relaxation time of the law in steps, NaN at temperatures that are not above ``T_0``.

        Args:
            kT: temperatures, in units of the loss, of any shape.
        """
        above = np.asarray(kT, dtype=np.float64) - self.parameters.get("T_0", 0.0)
        energy = self.parameters["E" if self.name == ARRHENIUS else "B"]
        return np.where(above > 0, self.parameters["tau_0"] * np.exp(energy / above), np.nan)

    def __str__(self) -> str:
        formula = "tau_0 exp(E/kT)" if self.name == ARRHENIUS else "tau_0 exp(B/(kT - T_0))"
        values = ", ".join(
            f"{name} = {value:.4g} +- {self.errors[name]:.2g}" for name, value in self.parameters.items()
        )
        fit = f"misfit of ln tau {self.misfit:.2g}"
        if np.isfinite(self.chi2):
            fit += f", chi squared {self.chi2:.3g} for {self.degrees_of_freedom} degrees of freedom"
        return "\n".join([f"{self.name}: tau = {formula}, {values}", f"  {fit}", *(f"  ! {d}" for d in self.doubts)])


def fit_arrhenius(kT: ArrayLike, tau: ArrayLike, error: ArrayLike | None = None) -> TemperatureLaw:
    r"""Fit the law of Arrhenius, :math:`\tau = \tau_0\,e^{E/kT}`.

    This is the law of thermal jumps over a barrier of height E. :math:`\ln\tau` is fitted by linear least squares, with
    the error :math:`\sigma_\tau/\tau` of each :math:`\ln\tau`. Without given errors, all :math:`\ln\tau` get the error
    of the residuals. The law then has no :math:`\chi^2` to test it.

    Compare with :func:`fit_vft`, which has one parameter more. If the law of Arrhenius holds, :math:`\chi^2` falls by
    about 1 or not at all with the third parameter. A fall by more than 10 is evidence of a law that bends.

    Args:
        kT: temperatures in units of the loss, ``[n]``.
        tau: relaxation times in steps, ``[n]``. A time that is NaN or infinite (not determined by its run) is left out.
        error: standard errors of ``tau`` in steps, ``[n]``.

    Raises:
        ValueError: the shapes differ, or a temperature, a time or an error is not positive.
        NotEnoughDataError: there are fewer than 3 temperatures with a relaxation time.

    Example:
        >>> kT = np.array([0.2, 0.25, 0.3, 0.4])
        >>> law = fit_arrhenius(kT, 5 * np.exp(1.5 / kT), error=np.exp(1.5 / kT))
        >>> round(law.parameters["E"], 6), round(float(law.tau(1.5)), 2)
        (1.5, 13.59)
    """
    points = _points(kT, tau, error, fewest=3, name=ARRHENIUS)
    lines = _lines(1 / points.kT, points)
    return _result(ARRHENIUS, points, float(lines.intercept), {"E": float(lines.slope)}, [])


def fit_vft(kT: ArrayLike, tau: ArrayLike, error: ArrayLike | None = None) -> TemperatureLaw:
    r"""Fit the law of Vogel, Fulcher and Tammann, :math:`\tau = \tau_0\,e^{B/(kT - T_0)}` with :math:`T_0 \ge 0`.

    This is the usual law of fragile glasses. The relaxation time diverges at the temperature :math:`T_0`. With
    :math:`T_0 = 0`, it is the law of Arrhenius. :math:`T_0` is searched from 0 up to just below the lowest
    temperature. For each :math:`T_0`, the other parameters follow from linear least squares, as in
    :func:`fit_arrhenius`. The errors follow from the Jacobian :math:`\partial\ln\tau/\partial(\ln\tau_0, B, T_0) = (1,
    x, B x^2)` with :math:`x = 1/(kT - T_0)`.

    Args:
        kT: temperatures in units of the loss, ``[n]``.
        tau: relaxation times in steps, ``[n]``. A time that is NaN or infinite (not determined by its run) is left out.
        error: standard errors of ``tau`` in steps, ``[n]``.

    Raises:
        ValueError: the shapes differ, or a temperature, a time or an error is not positive.
        NotEnoughDataError: there are fewer than 4 temperatures with a relaxation time.

    Example:
        >>> kT = np.array([0.2, 0.25, 0.3, 0.4, 0.6])
        >>> law = fit_vft(kT, 5 * np.exp(0.5 / (kT - 0.1)), error=np.exp(0.5 / (kT - 0.1)))
        >>> round(law.parameters["T_0"], 6), round(law.parameters["B"], 6)
        (0.1, 0.5)
    """
    points = _points(kT, tau, error, fewest=4, name=VFT)
    lowest = float(points.kT.min())
    # chi squared changes fast just below the lowest temperature, so the grid is dense there.
    grid = lowest * (1 - np.geomspace(1, _NEAREST, _GRID))
    grid[0] = 0.0
    for _ in range(9):  # a finer grid between the neighbours of the best point, by a factor of 10 each time
        best = int(np.argmin(_lines(1 / (points.kT[:, None] - grid), points).squares))
        neighbours = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        found = float(grid[best])
        grid = np.linspace(*neighbours, 21)
    found = 0.0 if found <= _NEAREST**2 * lowest else found
    lines = _lines(1 / (points.kT - found), points)
    doubts = []
    if found == 0:
        doubts.append("T_0 is at its lower bound 0: the law is the law of Arrhenius, or bends the other way")
    elif found >= lowest * (1 - 2 * _NEAREST):
        doubts.append(f"T_0 is at its upper bound, the lowest temperature kT={lowest:.4g}: measure lower temperatures")
    return _result(VFT, points, float(lines.intercept), {"B": float(lines.slope), "T_0": found}, doubts)


class _Points(NamedTuple):
    """The points of a fit: temperatures, logarithms of the times, weights, and whether the weights are known."""

    kT: Array
    log_tau: Array
    weights: Array
    known: bool
    doubts: list[str]


class _Lines(NamedTuple):
    """Weighted straight lines through ln tau: intercepts, slopes, and weighted sums of squared residuals."""

    intercept: Array
    slope: Array
    squares: Array


def _points(kT: ArrayLike, tau: ArrayLike, error: ArrayLike | None, *, fewest: int, name: str) -> _Points:
    temperatures, times = np.asarray(kT, dtype=np.float64), np.asarray(tau, dtype=np.float64)
    errors = np.ones(times.shape) if error is None else np.asarray(error, dtype=np.float64)
    if temperatures.ndim != 1 or not temperatures.shape == times.shape == errors.shape:
        given = "" if error is None else f" and error of shape {errors.shape}"
        raise ValueError(
            f"kT of shape {temperatures.shape}, tau of shape {times.shape}{given}: give one list of each, of one length"
        )
    if not ((temperatures > 0) & (temperatures < np.inf)).all():
        raise ValueError(f"kT={temperatures.tolist()} must be finite and positive: leave out runs without temperature")
    if (times <= 0).any():
        raise ValueError(f"tau={times.tolist()} must be positive, or NaN if a run does not determine it")
    found = np.isfinite(times)
    if not ((errors[found] > 0) & (errors[found] < np.inf)).all():
        raise ValueError(
            f"error={errors.tolist()} must be finite and positive for each tau: leave out error if it is not known"
        )
    n = len(np.unique(temperatures[found]))
    if n < fewest:
        raise NotEnoughDataError(
            f"{n} temperatures have a relaxation time, and the law of {name} needs at least {fewest}: train at more "
            "temperatures, or longer"
        )
    doubts = []
    if not found.all():
        without = ", ".join(f"{one:.4g}" for one in temperatures[~found])
        doubts.append(f"no relaxation time is known at kT = {without}: the fit leaves it out")
    weights = np.ones(int(found.sum())) if error is None else (times[found] / errors[found]) ** 2
    return _Points(temperatures[found], np.log(times[found]), weights, error is not None, doubts)


def _lines(x: Array, points: _Points) -> _Lines:
    """Fit ln tau = intercept + slope x for columns of x, ``[n, ...]``."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    y, w = points.log_tau.reshape(shape), (points.weights / points.weights.sum()).reshape(shape)
    x_mean, y_mean = (w * x).sum(axis=0), (w * y).sum(axis=0)
    dx, dy = x - x_mean, y - y_mean
    slope = (w * dx * dy).sum(axis=0) / (w * dx**2).sum(axis=0)
    squares = (w * (dy - slope * dx) ** 2).sum(axis=0) * points.weights.sum()
    return _Lines(np.asarray(y_mean - slope * x_mean), np.asarray(slope), np.asarray(squares))


@quiet()
def _result(
    name: str, points: _Points, intercept: float, energies: dict[str, float], doubts: list[str]
) -> TemperatureLaw:
    """Compute the errors and the chi squared of a fit."""
    x = 1 / (points.kT - energies.get("T_0", 0.0))
    slope = energies["E" if name == ARRHENIUS else "B"]
    residuals = points.log_tau - intercept - slope * x
    jacobian = np.stack([np.ones(len(x)), x, slope * x**2][: 1 + len(energies)], axis=1)
    size = np.abs(jacobian).max(axis=0)
    roots = np.sqrt(points.weights)
    # Columns of similar size, because the temperatures can be tiny.
    singular, rotation = np.linalg.svd(roots[:, None] * (jacobian / np.where(size > 0, size, 1)))[1:]
    singular = np.maximum(singular, 1e-15 * singular[0])  # a parameter that the data do not determine
    variances = (rotation.T**2 / singular**2).sum(axis=1)
    free = len(x) - jacobian.shape[1]
    chi2 = float((points.weights * residuals**2).sum())
    if not points.known:
        variances = variances * chi2 / free
    spread = np.where(size > 0, np.sqrt(variances) / size, np.inf)
    tau_0 = float(np.exp(intercept))
    errors = dict(zip(("tau_0", *energies), (tau_0 * float(spread[0]), *map(float, spread[1:])), strict=True))
    doubts = [*points.doubts, *doubts]
    if slope <= 0:
        doubts.append("the relaxation time does not grow as the temperature falls, so there is no barrier to cross")
    if spread[0] > 0.5:
        doubts.append("tau_0 is uncertain by more than half: it is extrapolated to infinite temperature")
    if name == VFT and not errors["T_0"] <= points.kT.min():
        doubts.append("the error of T_0 is larger than its range: these temperatures do not determine T_0")
    if points.known and chi2 > free + 4 * np.sqrt(2 * free):
        doubts.append(f"chi squared is {chi2:.3g} for {free} degrees of freedom: the law does not fit")
    misfit = float(np.sqrt((residuals**2).mean()))
    given = chi2 if points.known else float("nan")
    return TemperatureLaw(name, {"tau_0": tau_0, **energies}, errors, given, misfit, len(x), tuple(doubts))
