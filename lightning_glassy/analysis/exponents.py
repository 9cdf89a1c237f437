r"""The aging exponent :math:`\mu`: the lag to relax grows as :math:`t_w^\mu`.

0 is no aging, a value between 0 and 1 is subaging, and 1 is full aging. There are two families of estimators, with
different biases. See :func:`aging_exponent`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import t as student

from lightning_glassy.analysis.collapse import CollapseQuality, Variable, log_errors
from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.analysis.crossings import Crossings, lag_to_threshold, mean_lag_to_threshold
from lightning_glassy.analysis.curves import Curves, relaxation_curves
from lightning_glassy.analysis.plateaus import above_plateaus, fast_levels, relaxation_floor
from lightning_glassy.observables import Array, relaxation_of
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

MIN_REPLICAS = 8
"""Fewer replicas give no interval, because a bootstrap over them would be too narrow."""

_FEW = (25, 60)  # waiting times and lags that a fit is thinned to: its work grows with the square of the first
_BOUNDS = (-0.5, 2.0)  # range of the search for the exponent
_ENOUGH_CROSSINGS = 4  # a slope is fitted if a threshold has so many waiting times
_COLLAPSED = 0.05  # largest scatter about a common curve for a collapse
_EXACT = 0.01  # the interpolation between lags can cause this scatter, but no more
_SLOPES_AGREE = 0.2  # a larger difference of the slopes of thresholds comes from different processes

_COLLAPSES: dict[str, Variable] = {"collapse, effective time": "effective", "collapse, plain": "plain"}
_THRESHOLD = "threshold"


class NotEnoughDataError(ValueError):
    """A record, or a window of it, has too few curves for an exponent."""


@dataclass(frozen=True)
class ThresholdFit:
    r"""The slope of :math:`\ln t^*` against :math:`\ln t_w` for one threshold.

    Attributes:
        mu: the slope, by least squares.
        intercept: the logarithm of the lag at time 1.
        crossings: the lags :math:`t^*`. Some may be censored.
        local_slopes: slope between neighbouring waiting times that are not censored. If it drifts, there is no power
            law yet.
    """

    mu: float
    intercept: float
    crossings: Crossings
    local_slopes: Array

    def line(self, times: ArrayLike) -> Array:
        """Return the fitted power law at given times, in steps since the origin of the clock."""
        return np.asarray(np.exp(self.intercept) * np.asarray(times, dtype=np.float64) ** self.mu)


@dataclass(frozen=True)
class AgingExponent:
    r"""An aging exponent, the methods behind it, and reasons for doubt. ``print`` shows a short table.

    Attributes:
        mu: the estimate from the scaling variable with the better collapse.
        interval: confidence interval of ``mu``. None with fewer than 8 replicas, or if thresholds contradict each
            other.
        confidence: level of the interval.
        method: name of the estimate in ``mu``.
        estimates: mu by method: ``"collapse, effective time"``, ``"collapse, plain"``, ``"threshold"`` (median over
            thresholds, NaN without a fit).
        standard_errors: standard error of each estimate, over replicas. Empty with fewer than 8.
        systematic: difference of the two collapse estimates.
        qualities: Houdayer-Hartmann S by collapse method, with the errors of the replicas alone.
        scatter: by collapse method, the relative rms distance of the curves from a common curve beyond these errors. It
            enters the fit as a further error of every point, so that S is 1 at the minimum.
        thresholds: one fit per threshold.
        observable: name of the observable.
        group: name of the group of parameters.
        window: first and last waiting time used, in steps.
        waiting_times: all waiting times used, ``[n_tw]``. The lags of ``thresholds`` belong to them.
        t0: origin of the clock, in steps before step 0.
        n_replica: number of replicas.
        warnings: reasons for doubt, in words.
    """

    mu: float
    interval: tuple[float, float] | None
    confidence: float
    method: str
    estimates: dict[str, float]
    standard_errors: dict[str, float]
    systematic: float
    qualities: dict[str, float]
    scatter: dict[str, float]
    thresholds: list[ThresholdFit]
    observable: str
    group: str
    window: tuple[int, int]
    waiting_times: NDArray[np.int64]
    t0: float
    n_replica: int
    warnings: list[str] = field(default_factory=list)

    @property
    def standard_error(self) -> float | None:
        """Standard error of ``mu`` over replicas, None with fewer than 8."""
        return self.standard_errors.get(self.method)

    @property
    def variable(self) -> Variable:
        """The scaling variable with the better collapse, from which ``mu`` comes."""
        return _COLLAPSES[self.method]

    def __str__(self) -> str:
        replicas = f"{self.n_replica} replica{'s' if self.n_replica > 1 else ''}"
        if self.interval is None:
            few = self.n_replica < MIN_REPLICAS
            error = f"no interval: {replicas}, {MIN_REPLICAS} are needed" if few else f"no interval; {replicas}"
        else:
            error = f"{self.confidence:.0%} interval {self.interval[0]:.3f} ... {self.interval[1]:.3f}, {replicas}"
        origin = f", clock from {self.t0:.3g} steps before the start" if self.t0 else ""
        of_group = "" if self.group == "all" else f" of {self.group!r}"
        lines = [
            f"aging exponent mu = {self.mu:.3f}   ({error})",
            f"  from the {relaxation_of(self.observable).label}{of_group}, waiting times {self.window[0]:,} ... "
            f"{self.window[1]:,}{origin}",
        ]
        for name, mu in self.estimates.items():
            error = f" +- {self.standard_errors[name]:.3f}" if name in self.standard_errors else ""
            note = ""
            if name == _THRESHOLD and self.thresholds:
                note = f"   median of {len(self.thresholds)}"
            elif name in self.scatter:
                note = f"   curves within {self.scatter[name]:.1%}"
                note += f", S = {self.qualities[name]:.3g}" if self.n_replica > 1 else ""
            lines.append(f"  {name:<26}{mu:7.3f}{error}{note}")
        lines.append(f"  {'systematic difference':<26}{self.systematic:7.3f}")
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])


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
    r"""Estimate the aging exponent of a record, by collapse and by threshold.

    *Collapse*: find the exponent that minimises the Houdayer-Hartmann quality, in the effective time :math:`\lambda`
        and
    in :math:`t/t_w^\mu` (:mod:`lightning_glassy.analysis.collapse`). If data age by a slowing clock, the estimate is
    unbiased in :math:`\lambda` and low in :math:`t/t_w^\mu`. If data scale with :math:`t/t_w^\mu`, it is unbiased there
    and high in :math:`\lambda`. The better collapse decides, and the difference is the systematic error.

    *Threshold* (Herrera Segura et al. 2022): fit the slope of :math:`\ln t^*` against :math:`\ln t_w`. It tends to
    :math:`\mu` only for lags much shorter than the waiting time.

    The errors come from the replicas. The whole fit is repeated on resampled replicas. The scatter is widened by
    :math:`\sqrt{R/(R-1)}`, and is distributed as Student's t with R-1 degrees of freedom. If the curves do not collapse
    (they miss a common curve by more than 1 %), the interval also includes the largest difference between the methods.
    There is no interval if the thresholds contradict each other.

    A window of more than 25 waiting times, or a record of more than 100 lags, is thinned to 25 and 60 before the fit.

    Args:
        record: one run, or (for an interval) at least 8 replicas.
        observable: one of :func:`lightning_glassy.observables.relaxing`, such as ``"msd"``.
        group: name of the group of parameters.
        eps: threshold of the overlap.
        thresholds: thresholds of the curves. The default is up to five, log-spaced between the fast plateaus and the
            values that enough curves reach.
        window: first and last waiting time. The default is all from a hundredth of the last one, at least 1.
        t0: origin of the clock, in steps before step 0. ``"fit"`` finds the origin (0 ... last waiting time) with the
            best collapse in the effective time.
        confidence: level of the interval.
        n_bootstrap: number of resampled fits.
        seed: seed of the resampling.

    Raises:
        NotEnoughDataError: the window has fewer than three waiting times, or the curves do not rise or overlap.
        ValueError: an argument is out of its range.
        KeyError: the record does not have the group, or no gradient noise of the group.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1")
    if not 10 <= operator.index(n_bootstrap) <= 100_000:
        raise ValueError(f"n_bootstrap={n_bootstrap} must be between 10 and 100,000")
    if window is not None and (len(window) != 2 or window[0] > window[1]):
        raise ValueError(f"window={window!r} must be the first and the last waiting time")
    for i, threshold in enumerate(thresholds or []):
        if not 0 < threshold < np.inf:
            raise ValueError(f"thresholds[{i}]={threshold} must be a positive number")
    whole = relaxation_curves(record, observable, group=group, eps=eps)
    _check_origin(t0, int(whole.waiting_times.max()))
    curves = windowed(whole, window, 0.0 if t0 == "fit" else t0)
    mean = curves.mean()
    plateau = fast_levels(curves.lags, mean)
    aims = _default_thresholds(mean, plateau) if thresholds is None else thresholds

    slow = above_plateaus(curves, plateau)
    relaxing, errors = slow.mean(), log_errors(slow.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        risen = np.nan_to_num(np.log(relaxing[:, 1:] / relaxing[:, :-1])).sum(axis=-1).max()
    if not risen > 0.1:
        raise NotEnoughDataError(
            "the curves hardly rise with the lag (by less than a tenth): there is no relaxation to time"
        )
    origin, fits = 0.0 if t0 == "fit" else t0, {}
    if t0 == "fit":
        origin = _fit_origin(CollapseQuality(curves.waiting_times, curves.lags, relaxing, errors), curves)
    for name, variable in _COLLAPSES.items():
        fits[name] = _fit_collapse(curves, relaxing, errors, variable, origin)
    if not all(np.isfinite(fit.quality) for fit in fits.values()):
        raise NotEnoughDataError(
            f"the curves of the waiting times {curves.waiting_times[0]} ... {curves.waiting_times[-1]} share no values "
            "above their fast plateaus: more lags, or longer ones, are needed"
        )
    estimates = {name: fit.mu for name, fit in fits.items()}
    laws = [threshold_fit(curves, aim, t0=origin) for aim in aims]
    estimates[_THRESHOLD] = _median([law.mu for law in laws])
    best = min(fits, key=lambda name: (fits[name].scatter, fits[name].quality))

    standard_errors, interval = {}, None
    if curves.n_replica >= MIN_REPLICAS:
        draws = _resampled(curves, n_bootstrap, seed)
        refits = _refit(draws, np.isfinite(relaxing), curves, errors, fits, origin, aims, fit_origin=t0 == "fit")
        widening = np.sqrt(curves.n_replica / (curves.n_replica - 1))
        finite = {name: values[np.isfinite(values)] for name, values in refits.items()}
        # A method that fails on most of the draws has no error.
        standard_errors = {
            name: float(values.std(ddof=1) * widening)
            for name, values in finite.items()
            if len(values) > n_bootstrap / 2 and np.isfinite(estimates[name])
        }
    scatter = fits[best].scatter
    contradictory = _contradictory([law.mu for law in laws], scatter)
    if best in standard_errors and not contradictory and not _at_a_bound(estimates[best]):
        half = float(student.ppf(0.5 + confidence / 2, curves.n_replica - 1) * standard_errors[best])
        if scatter > _EXACT:  # no single exponent fits: the difference of the methods is part of the error
            half = float(np.hypot(half, np.nanmax(np.abs(np.array(list(estimates.values())) - estimates[best]))))
        interval = (estimates[best] - half, estimates[best] + half)
    result = AgingExponent(
        mu=estimates[best],
        interval=interval,
        confidence=confidence,
        method=best,
        estimates=estimates,
        standard_errors=standard_errors,
        systematic=float(np.ptp([estimates[name] for name in _COLLAPSES])),
        qualities={name: fit.quality for name, fit in fits.items()},
        scatter={name: fit.scatter for name, fit in fits.items()},
        thresholds=[law for law in laws if np.isfinite(law.mu)],
        observable=observable,
        group=group,
        window=(int(curves.waiting_times[0]), int(curves.waiting_times[-1])),
        waiting_times=curves.waiting_times,
        t0=origin,
        n_replica=curves.n_replica,
    )
    result.warnings.extend([*_doubts(result, record, plateau, aims), *curves.doubts])
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

    Slopes also differ if the lag is not much shorter than the waiting time, but then the curves collapse.
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
    # A waiting time without a measured value that has a logarithm is no curve.
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
    quality: float
    scatter: float


def _fit_collapse(curves: Curves, mean: Array, errors: Array, variable: Variable, t0: float) -> _CollapseFit:
    """Find the best exponent of one set of curves.

    Curves that do not collapse within their errors have a systematic scatter. It is added to the error of every point.
    Otherwise the few points with the smallest statistical errors would decide alone. The scatter makes S equal to 1,
    and is found together with the exponent.
    """

    def measure(scatter: float) -> CollapseQuality:
        return CollapseQuality(curves.waiting_times, curves.lags, mean, errors, scatter)

    pure, scatter = measure(0.0), 0.0
    mu = float(_minimise(pure, variable, t0, _search(pure, variable, t0), 0.1)[0])
    for _ in range(4):
        before, scatter = scatter, _scatter(measure, mu, variable, t0)
        if abs(scatter - before) <= 0.02 * before:
            break
        mu = float(_minimise(measure(scatter), variable, t0, mu, 0.1 if before == 0 else 0.03)[0])
    return _CollapseFit(mu, float(pure(mu, variable, t0)), scatter)


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
    return float(grid[np.argmin([quality(mu, variable, t0) for mu in grid])])


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
        found = [_minimise(quality, _COLLAPSES[name], origin, fit.mu, 0.2) for origin in origins]
        if len(found) == 1:
            fits[name] = found[0][0]
            continue
        mus, place = np.array([mu for mu, _ in found]), _vertex(np.array([least for _, least in found]))[0]
        below = np.clip(place.astype(np.int64), 0, len(mus) - 2)
        low, high = (np.take_along_axis(mus, below[None] + i, axis=0)[0] for i in (0, 1))
        fits[name] = low + (place - below) * (high - low)
    by_threshold = [lag_to_threshold(curves.lags, draws, aim).lags for aim in aims]
    times = np.asarray(curves.waiting_times + t0, dtype=np.float64)
    fits[_THRESHOLD] = np.array(
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


def _doubts(result: AgingExponent, record: AgingRecord, plateau: Array, aims: list[float]) -> list[str]:
    """Return the reasons for doubt."""
    doubts = []
    decades = np.log10((result.window[1] + result.t0) / (result.window[0] + result.t0))
    if decades < 1.5:
        doubts.append(f"the waiting times span {decades:.1f} decades; below 1.5 an exponent is a guess")
    if result.n_replica < MIN_REPLICAS:
        doubts.append(f"no interval: {result.n_replica} replica(s), at least {MIN_REPLICAS} are needed, 16 recommended")
    elif result.n_replica < 16:
        doubts.append(f"{result.n_replica} replicas; 16 are recommended for an interval")
    if not result.thresholds:
        doubts.append("no threshold above the fast plateau is reached by enough waiting times")
    slopes = [fit.mu for fit in result.thresholds]
    if _contradictory(slopes, result.scatter[result.method]):
        doubts.append(
            f"the slopes of the thresholds contradict each other ({min(slopes):.2f} ... {max(slopes):.2f}): they tell "
            "of different processes, and a low one may lie in a plateau; choose thresholds"
        )
    inside = [aim for aim in aims if aim < plateau.max()]
    if inside:
        doubts.append(
            f"the thresholds {', '.join(f'{aim:.2g}' for aim in inside)} lie in the fast plateau (up to "
            f"{plateau.max():.2g}): their slopes tell of the noise, not of the relaxation"
        )
    crossings = [fit.crossings for fit in result.thresholds]
    for affected, words in (
        ([c.early for c in crossings], "passed before the first lag of {} waiting time(s), left out"),
        ([c.late for c in crossings], "never reached by {} waiting time(s), left out"),
        ([c.counts > 1 for c in crossings], "crossed twice by {} curve(s)"),
    ):
        numbers = {f"{c.threshold:.2g}": curves.sum() for c, curves in zip(crossings, affected, strict=True)}
        listed = [f"{threshold} {words.format(n)}" for threshold, n in numbers.items() if n]
        doubts += [f"thresholds: {'; '.join(listed)}"] if listed else []
    drifting = [fit for fit in result.thresholds if _drift(fit.local_slopes) > 0.3]
    if len(drifting) > len(result.thresholds) / 2:
        doubts.append("the slope of the threshold lags drifts with the waiting time: no power law, or not yet")
    scatter = result.scatter[result.method]
    if scatter > (_COLLAPSED if result.n_replica > 1 else 0.2):
        doubts.append(
            f"the curves do not collapse (they miss a common one by {scatter:.0%}): no single exponent describes them"
        )
    elif abs(result.estimates[_THRESHOLD] - result.mu) > 0.1:
        doubts.append("collapse and threshold disagree by more than 0.1")
    if result.mu > 1.15 and result.observable == "msd":
        doubts.append("above 1 the motion itself fades: the decorrelation, or the MSD over the noise, may scale better")
    if 0.1 < result.mu < 0.95:
        doubts.append("a finite size can look like subaging: compare networks of several widths")
    bound = [name for name, mu in result.estimates.items() if _at_a_bound(mu)]
    doubts += [f"{name}: the exponent is at the end of the range that was searched" for name in bound]
    return doubts + confounders(record)


def _drift(slopes: Array) -> float:
    """Return the difference between the later half of the local slopes and the earlier half."""
    half = len(slopes) // 2
    return float(abs(np.median(slopes[-half:]) - np.median(slopes[:half]))) if half else 0.0
