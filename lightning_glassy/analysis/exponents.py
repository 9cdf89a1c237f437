r"""The aging exponent :math:`\mu`: the lag to a given amount of relaxation grows as :math:`t_w^\mu`.

0 is no aging, a value between 0 and 1 is subaging, and 1 is full aging. There are two families of estimators, with
different biases. See :func:`aging_exponent`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import t as student

from lightning_glassy.analysis.collapse import CollapseQuality, Variable, lag_of, log_errors, scaled_lag
from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.analysis.crossings import Crossings, lag_to_threshold, mean_lag_to_threshold
from lightning_glassy.analysis.curves import TOO_SHORT, Curves, relaxation_curves
from lightning_glassy.analysis.exponent_result import (
    COLLAPSES,
    CONTRADICTORY,
    MIN_REPLICAS,
    ONLY_NOISE,
    THRESHOLD,
    AgingExponent,
    NotEnoughDataError,
    ThresholdFit,
    label_of,
)
from lightning_glassy.analysis.headline import why_no_headline
from lightning_glassy.analysis.noise_clock import moved_by_noise_alone
from lightning_glassy.analysis.plateaus import above_plateaus, common_level, fast_levels, relaxation_floor
from lightning_glassy.observables import Array, find
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

_FEW = (25, 60)  # waiting times and lags that remain after thinning: the work grows with the square of the first
_BOUNDS = (-0.5, 2.0)  # range of the search for the exponent
_ENOUGH_CROSSINGS = 4  # a slope is fitted if a threshold has so many waiting times
_EXACT = 0.01  # largest scatter that the interpolation between lags can cause
_SLOPES_AGREE = 0.2  # slopes of thresholds that differ by more measure different processes
_DRIFT_DRAWS = 50  # resampled fits of both halves: they decide a question, and give no interval
_MOST_THRESHOLDS = 4  # overlaps in the table of a record that has counted at more thresholds


@quiet()
def aging_exponent(
    record: AgingRecord,
    observable: str = "msd",
    *,
    group: str = "all",
    eps: float | None = None,
    thresholds: list[float] | None = None,
    window: tuple[int, int] | None = None,
    t0: float | Literal["fit"] = 0.0,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> AgingExponent:
    r"""Estimate the aging exponent of a record, by collapse and by threshold, from every observable that relaxes.

    The result belongs to one observable, and also has the results of the others. Its ``mu`` is None unless the curves
    collapse, the methods agree and no other observable contradicts: see :mod:`lightning_glassy.analysis.headline`.

    *Collapse*: find the exponent that minimises the Houdayer-Hartmann quality, in the effective time :math:`h`
    and in :math:`t/t_w^\mu` (:mod:`lightning_glassy.analysis.collapse`). If data age by a slowing clock, the estimate
    is unbiased in :math:`h` and low in :math:`t/t_w^\mu`. If data scale with :math:`t/t_w^\mu`, it is unbiased
    there and high in :math:`h`. The better collapse decides, and the difference of the two is the systematic error.

    *Threshold* (Herrera Segura et al. 2022): fit the slope of :math:`\ln t^*` against :math:`\ln t_w`. It tends to
    :math:`\mu` only for lags much shorter than the waiting time.

    The errors come from the replicas. The whole fit is repeated on resampled replicas. The standard error is the
    standard deviation of these fits, times :math:`\sqrt{R/(R-1)}` for R replicas. The interval is from Student's t with
    R-1 degrees of freedom. If the curves miss a common curve by more than 1 %, the largest difference between the
    methods is added to the half width in quadrature. There is no interval if the thresholds contradict each other.

    A window of more than 25 waiting times, or a record of more than 100 lags, is thinned to at most 25 and 60 before
    the fit.

    Args:
        record: one run, or (for an interval) at least 8 replicas.
        observable: one of :func:`lightning_glassy.observables.relaxing`, such as ``"msd"``.
        group: name of the group of parameters.
        eps: threshold of the overlap.
        thresholds: thresholds of the curves of ``observable``. The default is up to five, log-spaced between the fast
            plateaus and the values that enough curves reach.
        window: first and last waiting time. The default is the last two decades: from a hundredth of the last waiting
            time (at least 1) to the last.
        t0: origin of the clock, in steps before step 0. ``"fit"`` searches from 0 to the last waiting time for the
            origin with the best collapse in the effective time, for each observable.
        confidence: level of the interval.
        n_bootstrap: number of resampled fits.
        seed: seed of the resampling.

    Raises:
        NotEnoughDataError: the window has fewer than three waiting times, or the curves do not rise or overlap.
        ValueError: an argument is out of its range.
        KeyError: the record does not have the group, or no gradient noise of the group.
    """
    options = _Options(window, t0, confidence, n_bootstrap, seed)
    fit = _fit(record, observable, group, eps, thresholds, options)
    others, unfitted = [], {}
    for name, threshold in _relaxing(record, group):
        if (name, threshold) == (fit.observable, fit.eps):
            continue
        try:
            others.append(_fit(record, name, group, threshold, None, options))
        except ValueError as error:  # this includes NotEnoughDataError
            unfitted[label_of(name, threshold)] = str(error).partition(";")[0]
    rows = [fit, *others]
    judged = [replace(row, why_not=why_no_headline(row, [other for other in rows if other is not row])) for row in rows]
    judged = [replace(row, why_not=row.why_not or _only_noise_fades(record, row)) for row in judged]
    return replace(judged[0], others=judged[1:], unfitted=unfitted)


def _only_noise_fades(record: AgingRecord, fit: AgingExponent) -> str | None:
    """Return the doubt that the exponent reflects only the gradient noise, in words, or None if it does not."""
    curves = relaxation_curves(record, fit.observable, group=fit.group, eps=fit.eps)
    if not moved_by_noise_alone(record, curves.only(np.isin(curves.waiting_times, fit.waiting_times)), fit.group):
        return None
    return f"{ONLY_NOISE}: against the noise that has acted, the integral of D, the curves of the {fit.label} coincide"


def _relaxing(record: AgingRecord, group: str) -> list[tuple[str, float | None]]:
    """Return the observables of a record that relax, with their thresholds."""
    there = [find(name) for name in record.available(group) if find(name).relaxation is not None]
    return [
        (entry.name, eps)
        for entry in there
        for eps in (few(record.overlap_thresholds, _MOST_THRESHOLDS) if entry.has_threshold else (None,))
    ]


@dataclass(frozen=True)
class _Options:
    """The arguments of a fit that are the same for all observables. They are checked here."""

    window: tuple[int, int] | None
    t0: float | Literal["fit"]
    confidence: float
    n_bootstrap: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence} must be between 0 and 1")
        if not 10 <= operator.index(self.n_bootstrap) <= 100_000:
            raise ValueError(f"n_bootstrap={self.n_bootstrap} must be between 10 and 100,000")
        if self.window is not None and (len(self.window) != 2 or self.window[0] > self.window[1]):
            raise ValueError(f"window={self.window!r} must be the first and the last waiting time")


def _fit(
    record: AgingRecord,
    observable: str,
    group: str,
    eps: float | None,
    thresholds: list[float] | None,
    options: _Options,
) -> AgingExponent:
    """Fit the exponent of one observable. See :func:`aging_exponent` for the arguments and errors."""
    for i, threshold in enumerate(thresholds or []):
        if not 0 < threshold < np.inf:
            raise ValueError(f"thresholds[{i}]={threshold} must be a positive number")
    whole, t0 = relaxation_curves(record, observable, group=group, eps=eps), options.t0
    if eps is None and find(observable).has_threshold:
        eps = record.overlap_thresholds[0]
    _check_origin(t0, int(whole.waiting_times.max()))
    curves = windowed(whole, options.window, 0.0 if t0 == "fit" else t0)
    mean = curves.mean()
    plateau = fast_levels(curves.lags, mean)
    aims = _default_thresholds(mean, plateau) if thresholds is None else thresholds

    slow = above_plateaus(curves, plateau)
    relaxing, errors = slow.mean(), log_errors(slow.values, slow.interpolation)
    with np.errstate(divide="ignore", invalid="ignore"):
        risen = np.nan_to_num(np.log(relaxing[:, 1:] / relaxing[:, :-1])).sum(axis=-1).max()
    if not risen > 0.1:
        raise NotEnoughDataError(
            "the curves hardly rise with the lag (by less than a tenth): there is no relaxation to time"
        )
    origin, fits = 0.0 if t0 == "fit" else t0, {}
    if t0 == "fit":
        origin = _fit_origin(CollapseQuality(curves.waiting_times, curves.lags, relaxing, errors), curves)
    for name, variable in COLLAPSES.items():
        fits[name] = _fit_collapse(curves, relaxing, errors, variable, origin)
    if not all(np.isfinite(fit.quality) for fit in fits.values()):
        raise NotEnoughDataError(
            f"the curves of the waiting times {curves.waiting_times[0]} ... {curves.waiting_times[-1]} share no values "
            "above their fast plateaus: more lags, or longer ones, are needed"
        )
    # A value at a bound of the search is no result.
    estimates = {name: np.nan if _at_a_bound(fit.mu) else fit.mu for name, fit in fits.items()}
    best = min(fits, key=lambda name: (np.isnan(estimates[name]), fits[name].scatter, fits[name].pure))
    laws = [threshold_fit(curves, aim, t0=origin) for aim in aims]
    estimates[THRESHOLD] = _median([law.mu for law in laws])
    parts = partial(_half_exponents, curves, errors=errors, fit=fits[best], variable=COLLAPSES[best], t0=origin)
    halves = parts(relaxing, centres=None)

    standard_errors, interval, drift_error = {}, None, np.nan
    if curves.n_replica >= MIN_REPLICAS:
        draws = _resampled(curves, options.n_bootstrap, options.seed)
        used, fit_origin = np.isfinite(relaxing), t0 == "fit"
        refits = _refit(draws, used, curves, errors, fits, origin, aims, fit_origin=fit_origin)
        widening = np.sqrt(curves.n_replica / (curves.n_replica - 1))
        finite = {name: values[np.isfinite(values)] for name, values in refits.items()}
        # A method that fails on most of the draws has no error.
        standard_errors = {
            name: float(values.std(ddof=1) * widening)
            for name, values in finite.items()
            if len(values) > options.n_bootstrap / 2 and np.isfinite(estimates[name])
        }
        if np.isfinite(halves).all():
            of_draws = parts(np.where(used, draws[:_DRIFT_DRAWS], np.nan), centres=halves)
            drift_error = float(np.std(of_draws[1] - of_draws[0], ddof=1) * widening)
    scatter = fits[best].scatter
    contradictory = _contradictory([law.mu for law in laws], scatter)
    if best in standard_errors and not contradictory:
        half = float(student.ppf(0.5 + options.confidence / 2, curves.n_replica - 1) * standard_errors[best])
        if scatter > _EXACT:  # no single exponent fits: the difference of the methods is part of the error
            half = float(np.hypot(half, np.nanmax(np.abs(np.array(list(estimates.values())) - estimates[best]))))
        interval = (estimates[best] - half, estimates[best] + half)
    result = AgingExponent(
        estimate=estimates[best],
        interval=interval,
        confidence=options.confidence,
        why_not=None,
        method=best,
        estimates=estimates,
        standard_errors=standard_errors,
        systematic=float(np.ptp([estimates[name] for name in COLLAPSES])),
        qualities={name: fit.quality for name, fit in fits.items()},
        scatter={name: fit.scatter for name, fit in fits.items()},
        thresholds=[law for law in laws if np.isfinite(law.mu)],
        drift=float(halves[1] - halves[0]),
        drift_error=drift_error,
        expected_slope=_median([_expected_slope(law, curves, fits[best].mu, COLLAPSES[best], origin) for law in laws]),
        plateau=common_level(curves.waiting_times + origin, plateau),
        observable=observable,
        eps=eps,
        group=group,
        window=(int(curves.waiting_times[0]), int(curves.waiting_times[-1])),
        waiting_times=curves.waiting_times,
        t0=origin,
        n_replica=curves.n_replica,
    )
    result.warnings.extend(_doubts(result, record, curves, plateau, aims))
    return result


@quiet()
def threshold_fit(curves: Curves, threshold: float, *, t0: float = 0.0) -> ThresholdFit:
    """Fit the slope of the lag to one threshold against the waiting time.

    Args:
        curves: result of :func:`~lightning_glassy.analysis.curves.relaxation_curves`. Their mean over replicas is used.
        threshold: the threshold, positive.
        t0: origin of the clock, in steps before step 0. All waiting times must lie after it.

    Returns:
        The fit. Its slope is NaN if fewer than four waiting times reach the threshold.

    Raises:
        ValueError: the threshold is not positive.
    """
    crossing = mean_lag_to_threshold(curves.lags, curves.values, threshold)
    times = np.asarray(curves.waiting_times + t0, dtype=np.float64)
    found = np.isfinite(crossing.lags)
    local_slopes = np.diff(np.log(crossing.lags[found])) / np.diff(np.log(times[found]))
    return ThresholdFit(*_power_law(times, crossing.lags), crossing, local_slopes)


def _check_origin(t0: float | str, last: int) -> None:
    if isinstance(t0, str) or not isinstance(t0, (int, float, np.number)):
        if t0 != "fit":
            raise ValueError(f"t0={t0!r} is neither a number of steps nor 'fit'")
    elif t0 != 0 and not -last < t0 <= 1000 * max(last, 1):
        raise ValueError(f"t0={t0} must be between -{last} and {1000 * max(last, 1)}: the last waiting time is {last}")


def _contradictory(slopes: list[float], scatter: float) -> bool:
    """Return whether thresholds measure different processes.

    Slopes also differ if the lags are not much shorter than the waiting times. In this case, the curves still collapse.
    """
    finite = [slope for slope in slopes if np.isfinite(slope)]
    return scatter > 2 * _EXACT and len(finite) > 1 and float(np.ptp(finite)) > _SLOPES_AGREE


def _at_a_bound(mu: float) -> bool:
    return mu < _BOUNDS[0] + 0.02 or mu > _BOUNDS[1] - 0.02


@quiet()
def windowed(whole: Curves, window: tuple[int, int] | None, t0: float = 0.0) -> Curves:
    """Return the curves for an exponent, thinned if there are many: see the arguments of :func:`aging_exponent`.

    Raises:
        NotEnoughDataError: there are fewer than three curves.
    """
    last = int(whole.waiting_times.max())
    first_used, last_used = (max(1, round(last / 100)), last) if window is None else window
    curves = whole.between(first_used, last_used).after(-t0)
    # A waiting time without a finite positive value has no curve.
    curves = curves.only(np.nan_to_num(curves.mean(), posinf=0).max(axis=-1) > 0)
    if len(curves.waiting_times) < 3:
        raise NotEnoughDataError(
            f"{len(curves.waiting_times)} waiting times from {first_used} to {last_used} have curves, 3 are needed; "
            f"the record has {', '.join(map(str, few(whole.waiting_times.tolist(), 20)))}"
        )
    return curves.thinned(*_FEW)


@dataclass(frozen=True)
class _CollapseFit:
    mu: float
    pure: float  # S at mu with the errors of the replicas alone
    quality: float  # S as minimised, with the scatter
    scatter: float


def _fit_collapse(curves: Curves, mean: Array, errors: Array, variable: Variable, t0: float) -> _CollapseFit:
    """Find the best exponent of one set of curves.

    Curves that do not collapse within their errors have a systematic scatter. It is added to the error of every point.
    Otherwise the few points with the smallest statistical errors would decide alone. The scatter makes S equal to 1,
    and is found together with the exponent.
    """

    def measure(scatter: float) -> CollapseQuality:
        return CollapseQuality(curves.waiting_times, curves.lags, mean, errors, scatter)

    # Keep the scatter of the last search, so that S has its minimum at the exponent.
    next_scatter = 0.0
    for _ in range(6):
        scatter, total = next_scatter, measure(next_scatter)
        # The scatter can move the minimum far away.
        start = _search(total, variable, t0)
        found = float(_minimise(total, variable, t0, start, 0.05)[0])
        # A parabola does not describe a rough minimum.
        rough = total(start, variable, t0) < 0.99 * total(found, variable, t0)
        mu = start if rough else found
        next_scatter = _scatter(measure, mu, variable, t0)
        if abs(next_scatter - scatter) <= 0.02 * scatter:
            break
    return _CollapseFit(mu, float(measure(0.0)(mu, variable, t0)), float(total(mu, variable, t0)), scatter)


def _scatter(measure: Callable[[float], CollapseQuality], mu: float, variable: Variable, t0: float) -> float:
    """Return the further error of every point that makes S equal to 1, or 0 if S is smaller without it."""

    def excess(log_scatter: float) -> float:
        return float(measure(np.exp(log_scatter))(mu, variable, t0)) - 1

    if not measure(0.0)(mu, variable, t0) > 1 or not np.isfinite(excess(0.0)):
        return 0.0
    low, high = np.log(1e-6), np.log(1e3)
    if excess(low) <= 0:
        return 0.0
    return float(np.exp(brentq(excess, low, high, xtol=0.01))) if excess(high) < 0 else float(np.exp(high))


def _search(quality: CollapseQuality, variable: Variable, t0: float) -> float:
    """Return roughly the best exponent of one set of curves. Search everywhere, because S can have several minima."""
    grid = np.linspace(*_BOUNDS, 26)
    values = np.array([quality(mu, variable, t0) for mu in grid])
    # S of curves that do not collapse is rough. Its minimum can lie between two points of the grid.
    low = grid[values < 1.5 * values.min()]
    fine = np.unique(np.clip(low[:, None] + np.linspace(-0.05, 0.05, 6), *_BOUNDS))
    return float(fine[np.argmin([quality(mu, variable, t0) for mu in fine])]) if len(fine) else float(grid[0])


def _minimise(
    quality: CollapseQuality, variable: Variable, t0: float, centre: float, reach: float
) -> tuple[Array, Array]:
    """Return the exponent and S at the minimum next to ``centre``, for each set of curves, ``[...]`` both.

    Search on a grid for all sets, then on a finer grid around the minima, then by a parabola. All sets share the grids,
    because finding the neighbours takes most of the time, and depends on the exponent alone.
    """
    coarse = centre + np.linspace(-reach, reach, round(reach / 0.01) + 1)
    lowest = coarse[np.argmin([quality(mu, variable, t0) for mu in coarse], axis=0)]
    low, high = lowest.min() - 0.024, lowest.max() + 0.024
    fine = np.linspace(low, high, max(13, min(61, round((high - low) / 0.004) + 1)))
    values = np.array([quality(mu, variable, t0) for mu in fine])
    place, least = _vertex(values)
    return np.clip(np.interp(place, np.arange(len(fine)), fine), *_BOUNDS), least


def _vertex(values: Array) -> tuple[Array, Array]:
    """Return index (a real number) and value of the minimum of ``[n, ...]`` along its first axis, by a parabola."""
    at = np.clip(np.argmin(values, axis=0), 1, len(values) - 2)
    before, here, after = (np.take_along_axis(values, at[None] + i, axis=0)[0] for i in (-1, 0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = 0.5 * (before - after) / (before - 2 * here + after)
        found = np.isfinite(shift)
        shift = np.where(found, np.clip(shift, -1, 1), 0.0)
        return at + shift, np.where(found, here - 0.25 * (before - after) * shift, here)


def _fit_origin(quality: CollapseQuality, curves: Curves) -> float:
    """Find the origin of the clock, in steps before step 0, with the best collapse in the effective time."""

    def least(t0: float) -> float:
        centre = _search(quality, "effective", t0)
        return float(_minimise(quality, "effective", t0, centre, 0.1)[1])

    first, last = float(curves.waiting_times[0]), float(curves.waiting_times[-1])
    grid = np.array([0.0, *np.geomspace(first / 10, last, 13)])
    at = int(np.argmin([least(t0) for t0 in grid]))
    if at == 0:
        return 0.0
    low, high = np.log(grid[max(at - 1, 1)]), np.log(grid[min(at + 1, len(grid) - 1)])
    found = minimize_scalar(lambda u: least(np.exp(u)), bounds=(low, high), method="bounded", options={"xatol": 0.02})
    return float(np.exp(found.x))


def _halves(n: int) -> tuple[slice, slice] | None:
    """Return the earlier and the later half of ``n`` waiting times, of three or more each, or None if there are few."""
    return (slice(0, n // 2 + 1), slice((n - 1) // 2, n)) if n >= 4 else None


def _half_exponents(
    curves: Curves, sets: Array, errors: Array, fit: _CollapseFit, variable: Variable, t0: float, centres: Array | None
) -> Array:
    """Return the exponents of the earlier and the later half of the waiting times, ``[2, ...]``.

    Args:
        curves: the curves, for their waiting times and lags.
        sets: one or many sets of curves ``[..., n_tw, n_lag]``.
        errors: errors of the logarithms.
        fit: the fit of all waiting times, for its scatter.
        variable: scaling variable.
        t0: origin of the clock.
        centres: the exponents of both halves of the mean curves, where the search begins. None searches everywhere.
    """
    found = []
    for i, half in enumerate(_halves(len(curves.waiting_times)) or ()):
        quality = CollapseQuality(
            curves.waiting_times[half], curves.lags, sets[..., half, :], errors[half], fit.scatter
        )
        centre = _search(quality, variable, t0) if centres is None else float(centres[i])
        mus, least = _minimise(quality, variable, t0, centre, 0.1 if centres is None else 0.2)
        found.append(np.where(np.isfinite(least), mus, np.nan))
    return np.array(found) if found else np.full((2, *sets.shape[:-2]), np.nan)


def _expected_slope(law: ThresholdFit, curves: Curves, mu: float, variable: Variable, t0: float) -> float:
    """Return the slope of a threshold if all its waiting times had the same scaled lag."""
    found = np.isfinite(law.crossings.lags)
    if not np.isfinite(law.mu):
        return np.nan
    times = curves.waiting_times[found].astype(np.float64)
    common = np.exp(np.log(scaled_lag(times, law.crossings.lags[found], mu, variable, t0)).mean())
    return _power_law(times + t0, lag_of(times, common, mu, variable, t0))[0]


def _resampled(curves: Curves, n: int, seed: int) -> Array:
    """Return means over replicas that are drawn with repetition, ``[n, n_tw, n_lag]``."""
    generator, n_replica = np.random.default_rng(seed), curves.n_replica
    drawn = generator.integers(n_replica, size=(n, n_replica))
    weights = np.stack([np.bincount(row, minlength=n_replica) for row in drawn]) / n_replica
    return np.tensordot(weights, curves.values, axes=1)


def _refit(
    draws: Array,
    used: NDArray[np.bool_],
    curves: Curves,
    errors: Array,
    first: dict[str, _CollapseFit],
    t0: float,
    aims: list[float],
    *,
    fit_origin: bool,
) -> dict[str, Array]:
    """Return every estimate on every draw, ``[n]`` each.

    Keep the fit weights of the original data. Weights estimated from a few resampled replicas are too noisy.
    """
    # Fit a fitted origin again, on a grid around the result.
    origins = t0 * np.geomspace(0.2, 5, 15) if fit_origin and t0 > 0 else np.array([t0])
    relaxing = np.where(used, draws, np.nan)
    fits: dict[str, Array] = {}
    for name, fit in first.items():
        quality = CollapseQuality(curves.waiting_times, curves.lags, relaxing, errors, fit.scatter)
        found = [_minimise(quality, COLLAPSES[name], origin, fit.mu, 0.2) for origin in origins]
        if len(found) == 1:
            fits[name] = found[0][0]
            continue
        mus, place = np.array([mu for mu, _ in found]), _vertex(np.array([least for _, least in found]))[0]
        below = np.clip(place.astype(np.int64), 0, len(mus) - 2)
        low, high = (np.take_along_axis(mus, below[None] + i, axis=0)[0] for i in (0, 1))
        fits[name] = low + (place - below) * (high - low)
    by_threshold = [lag_to_threshold(curves.lags, draws, aim).lags for aim in aims]
    times = np.asarray(curves.waiting_times + t0, dtype=np.float64)
    fits[THRESHOLD] = np.array(
        [_median([_power_law(times, lags[i])[0] for lags in by_threshold]) for i in range(len(draws))]
    )
    return fits


def _power_law(times: Array, lags: Array) -> tuple[float, float]:
    """Return the least-squares slope and intercept of ln(lag) over ln(time), NaN with fewer than four lags."""
    found = np.isfinite(lags)
    if found.sum() < _ENOUGH_CROSSINGS:
        return np.nan, np.nan
    slope, intercept = np.polyfit(np.log(times[found]), np.log(lags[found]), 1)
    return float(slope), float(intercept)


def _median(slopes: list[float]) -> float:
    finite = [slope for slope in slopes if np.isfinite(slope)]
    return float(np.median(finite)) if finite else np.nan


def _default_thresholds(mean: Array, plateau: Array) -> list[float]:
    """Return up to five thresholds above every plateau and first point that two thirds of the curves reach."""
    first = np.array([row[np.isfinite(row)][0] if np.isfinite(row).any() else np.nan for row in mean])
    top = np.array([row[np.isfinite(row)].max() if np.isfinite(row).any() else np.nan for row in mean])
    high = np.nanquantile(top, 1 / 3) / 1.2
    low = np.nanmax([np.nanmax(first) * 1.5, relaxation_floor(plateau.max(), high)])
    # If a curve starts at a plateau, its first point lies in it.
    low = min(low, float(relaxation_floor(max(plateau.max(), np.nanmax(first)), high))) if plateau.max() > 0 else low
    return [] if not high > low > 0 else [float(v) for v in np.geomspace(low, high, 5)]


def _doubts(result: AgingExponent, record: AgingRecord, curves: Curves, plateau: Array, aims: list[float]) -> list[str]:
    """Return the reasons for doubt that the table does not show, the most serious first."""
    alone = why_no_headline(result)
    if alone is not None and alone.startswith(TOO_SHORT):
        return [*curves.doubts, *confounders(record)]
    doubts = []
    slopes = [fit.mu for fit in result.thresholds]
    if _contradictory(slopes, result.scatter[result.method]):
        doubts.append(
            f"{CONTRADICTORY} ({min(slopes):.2f} ... {max(slopes):.2f}): they tell "
            "of different processes, and a low one may lie in a plateau; choose thresholds"
        )
    inside = [aim for aim in aims if aim < plateau.max()]
    if inside:
        doubts.append(
            f"the thresholds {', '.join(f'{aim:.2g}' for aim in inside)} lie in the fast plateau (up to "
            f"{plateau.max():.2g}): their slopes tell of the noise, not of the relaxation"
        )
    doubts += [*curves.doubts, *confounders(record)]
    if not result.thresholds:
        doubts.append("no threshold above the fast plateau is reached by enough waiting times")
    drifting = [fit for fit in result.thresholds if _drift(fit.local_slopes) > 0.3]
    if len(drifting) > len(result.thresholds) / 2:
        doubts.append("the slope of the threshold lags drifts with the waiting time: no power law, or not yet")
    doubts += _left_out([fit.crossings for fit in result.thresholds])
    if result.n_replica < MIN_REPLICAS:
        have = "1 replica" if result.n_replica == 1 else f"{result.n_replica} replicas"
        doubts.append(f"no interval: {have}, at least {MIN_REPLICAS} are needed, 16 recommended")
    elif result.n_replica < 16:
        doubts.append(f"{result.n_replica} replicas; 16 are recommended for an interval")
    if alone is None and result.estimate < 0.95:
        doubts.append("a finite size can look like subaging: compare networks of several widths")
    return doubts


def _left_out(crossings: list[Crossings]) -> list[str]:
    """Return how many lags to a threshold are not determined or ambiguous, in at most one sentence."""
    counts = (
        (sum(int(c.early.sum()) for c in crossings), "passed before the first lag, and left out"),
        (sum(int(c.late.sum()) for c in crossings), "never reached, and left out"),
        (sum(int((c.counts > 1).sum()) for c in crossings), "reached more than once"),
    )
    words = ", ".join(f"{n} {what}" for n, what in counts if n)
    return [f"of {sum(len(c.lags) for c in crossings)} lags to a threshold: {words}"] if words else []


def _drift(slopes: Array) -> float:
    """Return the size of the difference between the medians of the later and the earlier half of the local slopes."""
    half = len(slopes) // 2
    return float(abs(np.median(slopes[-half:]) - np.median(slopes[:half]))) if half else 0.0
