r"""The growth of the relaxation time with the waiting time: a constant, a power law, a logarithm or an exponential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet

LAWS = {"constant": ("a",), "power law": ("a", "mu"), "logarithmic": ("a", "b"), "exponential": ("a", "b")}
"""The parameters of each law: see :class:`Growth`."""

FEWEST_REPLICAS = 3
"""Fewer replicas give no error."""

_FEWEST = 4  # fewest relaxation times for a fit
_FEWEST_TO_CHOOSE = 6  # fewest relaxation times to prefer a law. They must span a decade of waiting times.
_EXACT = 0.01  # error of ln(tau) from the interpolation between lags, and of laws that hold for long times only
_FITS = 4.0  # largest mean of (misfit/error)^2 of a law that fits
_MARGIN, _LEVEL = 10.0, 0.99  # least difference of the criterion between laws, and level of its quantile
_STRAIGHT = 0.05  # a drift of the local slope up to this size counts as none
_LONG = 0.1  # a relaxation time above this part of the waiting time is long
_FLAT = 0.1  # a growth slower than this power counts as none
_SINGLE = (0.02, 0.1)  # a single run: largest misfit of the preferred law, and least misfit of every other law


@dataclass(frozen=True)
class Growth:
    r"""A law for the growth of the relaxation time with the waiting time, fitted to :math:`\ln\tau`.

    Attributes:
        name: ``"constant"`` (:math:`\tau = a`), ``"power law"`` (:math:`a\,t_w^\mu`), ``"logarithmic"``
            (:math:`a + b\ln t_w`) or ``"exponential"`` (:math:`a\,e^{b t_w}`). :math:`t_w` counts from the origin of
            the clock.
        parameters: ``{"a": ...}``, and ``"mu"`` or ``"b"``.
        errors: standard error of each parameter over replicas. Empty with fewer than 3 replicas.
        misfit: rms difference between :math:`\ln\tau` and the law.
        criterion: AICc, :math:`\chi^2 + 2k + 2k(k+1)/(n-k-1)` with k parameters and n relaxation times. A smaller value
            is better. For a single run, :math:`n\ln(\text{misfit}^2 + 0.01^2)` replaces :math:`\chi^2`.
    """

    name: str
    parameters: dict[str, float]
    errors: dict[str, float]
    misfit: float
    criterion: float

    def line(self, times: ArrayLike) -> Array:
        """Return the law at given times, in steps since the origin of the clock. NaN if it is not positive."""
        t, p = np.asarray(times, dtype=np.float64), self.parameters
        with quiet():
            if self.name == "power law":
                values = p["a"] * t ** p["mu"]
            elif self.name == "logarithmic":
                values = p["a"] + p["b"] * np.log(t)
            elif self.name == "exponential":
                values = p["a"] * np.exp(p["b"] * t)
            else:
                values = np.full(t.shape, p["a"])
        return np.where(values > 0, values, np.nan)


class Choice(NamedTuple):
    """The laws that were fitted, the best first, the preferred law (None for "cannot tell"), and the reason."""

    growth: list[Growth]
    preferred: str | None
    reason: str


def jackknife_error(without: Array) -> Array:
    r"""Return :math:`\sqrt{\frac{R-1}{R}\sum_r (x_{(r)} - \bar x)^2}` of results without each replica, ``[R, ...]``."""
    n = len(without)
    return np.asarray(np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0)))


def drift(times: Array, logs: Array) -> Array:
    """Return the slope of the later half of the points minus the slope of the earlier half, ``[n_sample]``.

    Args:
        times: ``[n]``, increasing and positive.
        logs: logarithms of the relaxation times, ``[n_sample, n]``.
    """
    half = (len(times) + 1) // 2
    if half < 2:
        return np.full(len(logs), np.nan)
    x = np.log(times)
    early, late = (np.polyfit(x[part], logs[:, part].T, 1)[0] for part in (slice(half), slice(-half, None)))
    return np.asarray(late - early)


@quiet()
def compare_growth(times: Array, logs: Array) -> Choice:
    """Fit all laws, and choose one: see :func:`lightning_glassy.analysis.relaxation_times`.

    Args:
        times: waiting times since the origin of the clock, in steps, increasing and positive, ``[n]``.
        logs: logarithms of the relaxation times, ``[1 + R, n]``. The first row is from all replicas, the others are
            without each replica. With fewer than 3 replicas, there is only the first row.
    """
    n = len(times)
    if n < _FEWEST:
        return Choice([], None, f"cannot tell: {n} relaxation times are known, {_FEWEST} are needed for a fit")
    errors = jackknife_error(logs[1:]) if len(logs) > 1 else np.zeros(n)
    weights = 1 / (errors**2 + _EXACT**2)
    fits = {name: _fit(name, times, logs, weights) for name in LAWS}
    criteria = {}
    for name, (_, lines) in fits.items():
        squares = (logs - lines) ** 2
        chi2 = (squares * weights).sum(axis=1) if len(logs) > 1 else n * np.log(squares.mean(axis=1) + _EXACT**2)
        k = len(LAWS[name])
        criteria[name] = chi2 + 2 * k + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf)
    growth = []
    for name in sorted(LAWS, key=lambda name: float(criteria[name][0])):
        values, lines = fits[name]
        spread = jackknife_error(values[1:]) if len(logs) > 1 else np.empty(0)
        misfit = float(np.sqrt(((logs[0] - lines[0]) ** 2).mean()))
        parameters, uncertain = (dict(zip(LAWS[name], row.tolist(), strict=False)) for row in (values[0], spread))
        growth.append(Growth(name, parameters, uncertain, misfit, float(criteria[name][0])))
    return Choice(growth, *_choose(growth, times, logs, weights, criteria))


def _fit(name: str, times: Array, logs: Array, weights: Array) -> tuple[Array, Array]:
    """Return the parameters of a law for each sample, ``[n_sample, k]``, and its values ``[n_sample, n]`` (ln tau).

    The parameters of the fit are the values u and v of ln(tau) at the first and at the last waiting time. So the law is
    positive between them, and the fit is well conditioned.
    """
    x = times if name == "exponential" else np.log(times)
    width = x[-1] - x[0]
    s = (x - x[0]) / width
    design = np.ones((len(x), 1)) if name == "constant" else np.stack([1 - s, s], axis=1)
    roots = np.sqrt(weights)
    ends = np.linalg.lstsq(roots[:, None] * design, (roots * logs).T, rcond=None)[0].T  # [n_sample, k]
    if name == "constant":
        return np.exp(ends), np.broadcast_to(ends, logs.shape)
    if name != "logarithmic":
        slope = (ends[:, 1] - ends[:, 0]) / width
        return np.stack([np.exp(ends[:, 0] - slope * x[0]), slope], axis=1), ends @ design.T
    for _ in range(100):  # Gauss and Newton
        lines = np.log((1 - s) * np.exp(ends[:, :1]) + s * np.exp(ends[:, 1:]))
        slopes = np.stack([(1 - s) * np.exp(ends[:, :1] - lines), s * np.exp(ends[:, 1:] - lines)], axis=2)
        weighted = slopes * weights[:, None]
        right = np.einsum("ink,in->ik", weighted, logs - lines)
        step = np.linalg.solve(np.einsum("ink,inl->ikl", weighted, slopes), right[..., None])[..., 0]
        ends = ends + np.clip(step, -0.5, 0.5)
        if np.abs(step).max() < 1e-10:
            break
    first, last = np.exp(ends).T
    slope = (last - first) / width
    return np.stack([first - slope * x[0], slope], axis=1), np.log((1 - s) * first[:, None] + s * last[:, None])


def _choose(
    growth: list[Growth], times: Array, logs: Array, weights: Array, criteria: dict[str, Array]
) -> tuple[str | None, str]:
    """Return the preferred law, None for "cannot tell", and the reason."""
    n, decades, n_replica = len(times), float(np.log10(times[-1] / times[0])), len(logs) - 1
    if n < _FEWEST_TO_CHOOSE or decades < 1 - 1e-9:
        return None, (
            f"cannot tell: {n} relaxation times over {decades:.1f} decades of waiting times; "
            f"{_FEWEST_TO_CHOOSE} over a decade are needed"
        )
    by_name = {law.name: law for law in growth}
    best, constant, power = growth[0], by_name["constant"], by_name["power law"]
    mu = power.parameters["mu"]
    if n_replica == 0:
        if constant.misfit <= _SINGLE[0] and abs(mu) < _FLAT:
            return "constant", f"constant, within {constant.misfit:.1%}"
        if best.misfit <= _SINGLE[0] and growth[1].misfit >= _SINGLE[1]:
            return (
                best.name,
                f"{best.name}, within {best.misfit:.1%}; every other law misses by {_SINGLE[1]:.0%} or more",
            )
        return None, (
            f"cannot tell: the laws miss by {best.misfit:.1%} ({best.name}), {growth[1].misfit:.1%} ({growth[1].name}) "
            f"and more, and without {FEWEST_REPLICAS} replicas there is no error to compare this with"
        )

    quantile = float(student.ppf(_LEVEL, n_replica - 1))
    mean_squares = {
        name: float(((logs[0] - np.log(law.line(times))) ** 2 * weights).mean()) for name, law in by_name.items()
    }
    # A law is better if the difference of the criterion is large, and larger than its own error.
    doubtful = []
    for other in growth[1:]:
        difference = criteria[other.name] - criteria[best.name]
        error = float(jackknife_error(difference[1:]))
        if not difference[0] > max(_MARGIN, quantile * error):
            doubtful.append(f"{best.name} and {other.name} differ by {difference[0]:.3g} +- {error:.2g} in AICc")
    uncertain = power.errors["mu"]
    flat = abs(mu) + quantile * uncertain < _FLAT and abs(mu) <= max(quantile * uncertain, _FLAT / 5)
    if flat and mean_squares["constant"] <= _FITS and (doubtful or best is constant):
        return "constant", f"constant: a power law has the exponent {mu:.3f} +- {uncertain:.2g}"
    if mean_squares[best.name] > _FITS:
        return None, f"cannot tell: no law fits; the best, {best.name}, misses by {best.misfit:.1%}"
    if best.name == "power law":
        bends = drift(times, logs)
        error = float(jackknife_error(bends[1:]))
        if abs(bends[0]) > max(_STRAIGHT, quantile * error):
            # The clock goes on slowing down during a long lag. The local slope then rises with the waiting time.
            long = bends[0] > 0 and float(np.max(logs[0] - np.log(times))) > np.log(_LONG)
            hint = ", as it does for lags that are not much shorter than the waiting time" if long else ""
            return None, f"cannot tell: no law fits; the local slope drifts by {bends[0]:.2f} +- {error:.2g}{hint}"
    if doubtful or best is constant:
        return None, f"cannot tell: {doubtful[0]}" if doubtful else "cannot tell: the exponent is too uncertain"
    runner_up = growth[1]
    return best.name, f"{best.name}; {runner_up.name} is worse by {runner_up.criterion - best.criterion:.3g} in AICc"
