r"""The aging exponent :math:`\mu`: the lag to relax grows as :math:`t_w^\mu`.

0 is no aging, between 0 and 1 subaging, 1 full aging. Two families of estimators, each with its bias; see
:func:`aging_exponent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.collapse import CollapseQuality, Variable, log_errors
from lightning_glassy.analysis.crossings import Crossings, lag_to_threshold
from lightning_glassy.analysis.curves import Curves, Observable, relaxation_curves
from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord

MIN_REPLICAS = 8
"""Fewer replicas than this give no interval: a bootstrap over them would be too narrow."""

try:
    from scipy.optimize import minimize_scalar
    from scipy.stats import t as student
except ImportError as error:
    raise ImportError("the aging exponent needs scipy: pip install 'lightning-glassy[analysis]'") from error

_BOUNDS = (-0.5, 2.0)  # where the exponent is looked for
_ENOUGH_CROSSINGS = 4  # waiting times that a threshold needs before a slope is fitted


@dataclass(frozen=True)
class ThresholdFit:
    r"""The slope of :math:`\ln t^*` against :math:`\ln t_w` for one threshold.

    Attributes:
        mu: the slope, by least squares.
        crossings: the lags :math:`t^*`, and which are censored.
        local_slopes: slope between neighbouring uncensored waiting times; a drift says that no power law is there yet.
    """

    mu: float
    crossings: Crossings
    local_slopes: Array


@dataclass(frozen=True)
class AgingExponent:
    r"""An aging exponent, how it was obtained, and what to doubt. Prints as a short table.

    Attributes:
        mu: the estimate of the scaling variable whose collapse is better.
        interval: confidence interval of ``mu`` from the scatter of replicas; None with fewer than 8.
        confidence: its level.
        estimates: mu by method: ``"collapse, effective time"``, ``"collapse, plain"``, ``"threshold"`` (median over
            thresholds; NaN where none could be fitted).
        systematic: largest minus smallest of the two collapse estimates.
        standard_error: standard error of ``mu`` over replicas; None with fewer than 8.
        qualities: Houdayer-Hartmann S by collapse method, at its minimum.
        thresholds: one fit per threshold.
        observable: what was analysed.
        window: first and last waiting time used, in steps.
        t0: origin of the clock, in steps before step 0.
        n_replica: number of replicas.
        warnings: what to doubt, in words.
    """

    mu: float
    interval: tuple[float, float] | None
    confidence: float
    estimates: dict[str, float]
    systematic: float
    standard_error: float | None
    qualities: dict[str, float]
    thresholds: list[ThresholdFit]
    observable: str
    window: tuple[int, int]
    t0: float
    n_replica: int
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.interval is None:
            error = (
                f"no interval: {self.n_replica} replica{'s' if self.n_replica > 1 else ''}, {MIN_REPLICAS} are needed"
            )
        else:
            error = f"{self.confidence:.0%} interval {self.interval[0]:.3f} ... {self.interval[1]:.3f}"
        lines = [
            f"aging exponent mu = {self.mu:.3f}   ({error})",
            f"  from the {self.observable}, waiting times {self.window[0]:,} ... {self.window[1]:,}",
        ]
        for name, mu in self.estimates.items():
            quality = f"   S = {self.qualities[name]:.2f}" if name in self.qualities and self.n_replica > 1 else ""
            lines.append(f"  {name:<26}{mu:7.3f}{quality}")
        lines.append(f"  {'systematic difference':<26}{self.systematic:7.3f}")
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])


def aging_exponent(
    record: AgingRecord,
    observable: Observable = "msd",
    *,
    group: str = "all",
    eps: float | None = None,
    thresholds: list[float] | None = None,
    window: tuple[int, int] | None = None,
    t0: float = 0.0,
    confidence: float = 0.95,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> AgingExponent:
    r"""Estimate the aging exponent of a record, by collapse and by threshold.

    *Collapse*: the exponent that minimises the Houdayer-Hartmann quality in the effective time :math:`\lambda` and in
    :math:`t/t_w^\mu` (:mod:`lightning_glassy.analysis.collapse`). Data that age by a slowing clock are unbiased in
    :math:`\lambda` and low in :math:`t/t_w^\mu`; data that scale with :math:`t/t_w^\mu` are unbiased there and high in
    :math:`\lambda`. The better collapse decides, and the difference is the systematic error.
    *Threshold* (Herrera Segura et al. 2022): the slope of :math:`\ln t^*` against :math:`\ln t_w`, which tends to
    :math:`\mu` only for lags small against the waiting time.

    The interval is that of the replicas: the whole fit is repeated on resampled replicas, the scatter widened by
    :math:`\sqrt{R/(R-1)}` and taken as Student's t with R-1 degrees of freedom.

    Args:
        record: one run, or (for an interval) at least 8 replicas.
        observable: ``"msd"``, ``"decorrelation"`` or ``"overlap"``.
        group: name of the group of parameters.
        eps: threshold of the overlap.
        thresholds: values to be reached; default up to five, log-spaced between the fast plateaus and what enough
            curves reach.
        window: first and last waiting time; default all from a hundredth of the last one, at least 1.
        t0: origin of the clock, in steps before step 0.
        confidence: level of the interval.
        n_bootstrap: resampled fits.
        seed: of the resampling.

    Raises:
        ValueError: fewer than three waiting times in the window, or an argument out of its range.
        KeyError: a group the record does not have.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1")
    if n_bootstrap < 10:
        raise ValueError(f"n_bootstrap={n_bootstrap} must be at least 10")
    whole = relaxation_curves(record, observable, group=group, eps=eps)
    last = int(whole.waiting_times.max())
    first_used, last_used = (max(1, round(last / 100)), last) if window is None else window
    curves = whole.between(first_used, last_used)
    if len(curves.waiting_times) < 3:
        raise ValueError(
            f"window=({first_used}, {last_used}) holds {len(curves.waiting_times)} waiting times, 3 are needed; the "
            f"record has {whole.waiting_times.tolist()}"
        )
    errors = log_errors(curves.values)
    qualities: dict[str, float] = {}
    estimates: dict[str, float] = {}
    variables: dict[str, Variable] = {"collapse, effective time": "effective", "collapse, plain": "plain"}
    for name, variable in variables.items():
        estimates[name], qualities[name] = _fit_collapse(curves, curves.values, errors, variable, t0)
    best = min(variables, key=lambda name: qualities[name])
    mean = curves.mean()
    plateau = _fast_plateau(curves.lags, mean)
    aims = _default_thresholds(mean, plateau) if thresholds is None else thresholds
    fits = [fit for aim in aims if (fit := _fit_threshold(curves, mean, aim, t0)) is not None]
    estimates["threshold"] = float(np.median([fit.mu for fit in fits])) if fits else np.nan

    standard_error, interval = None, None
    if curves.n_replica >= MIN_REPLICAS:
        standard_error = _bootstrap(curves, errors, variables[best], t0, estimates[best], n_bootstrap, seed)
        half = student.ppf(0.5 + confidence / 2, curves.n_replica - 1) * standard_error
        interval = (estimates[best] - half, estimates[best] + half)
    both = [estimates[name] for name in variables]
    result = AgingExponent(
        mu=estimates[best],
        interval=interval,
        confidence=confidence,
        estimates=estimates,
        systematic=max(both) - min(both),
        standard_error=standard_error,
        qualities=qualities,
        thresholds=fits,
        observable={"msd": "MSD", "decorrelation": "decorrelation 1 - C", "overlap": "overlap 1 - Q"}[observable],
        window=(int(curves.waiting_times[0]), int(curves.waiting_times[-1])),
        t0=t0,
        n_replica=curves.n_replica,
    )
    result.warnings.extend(_doubts(result, record, mean, plateau, aims))
    return result


def _fit_collapse(
    curves: Curves,
    values: Array,
    errors: Array,
    variable: Variable,
    t0: float,
    bounds: tuple[float, float] = _BOUNDS,
) -> tuple[float, float]:
    quality = CollapseQuality(curves.waiting_times, curves.lags, values, errors)
    low, high = bounds
    if bounds == _BOUNDS:
        # S can have several valleys far from the right one: look everywhere first.
        grid = np.linspace(low, high, 26)
        centre = grid[np.argmin([quality(mu, variable, t0) for mu in grid])]
        low, high = centre - 0.1, centre + 0.1
    found = minimize_scalar(
        lambda mu: quality(mu, variable, t0), bounds=(low, high), method="bounded", options={"xatol": 1e-4}
    )
    return float(found.x), float(found.fun)


def _bootstrap(curves: Curves, errors: Array, variable: Variable, t0: float, mu: float, n: int, seed: int) -> float:
    """Standard error of the collapse estimate: the scatter of fits to resampled replicas, widened for their number."""
    n_replica, generator = curves.n_replica, np.random.default_rng(seed)
    fits = np.empty(n)
    for i in range(n):
        drawn = curves.values[generator.integers(n_replica, size=n_replica)]
        # The weights of the points stay those of the data: of a resampled handful they would be noise themselves.
        fits[i] = _fit_collapse(curves, drawn, errors, variable, t0, (mu - 0.3, mu + 0.3))[0]
    return float(fits.std(ddof=1) * np.sqrt(n_replica / (n_replica - 1)))


def _fit_threshold(curves: Curves, mean: Array, threshold: float, t0: float) -> ThresholdFit | None:
    crossings = lag_to_threshold(curves.lags, mean, threshold)
    found = np.isfinite(crossings.lags)
    if found.sum() < _ENOUGH_CROSSINGS:
        return None
    x, y = np.log(curves.waiting_times[found] + t0), np.log(crossings.lags[found])
    return ThresholdFit(float(np.polyfit(x, y, 1)[0]), crossings, np.diff(y) / np.diff(x))


def _fast_plateau(lags: NDArray[np.int64], mean: Array) -> Array:
    """For each curve the level of its fast plateau: where it is flat at short lags before it rises; 0 without one."""
    levels = np.zeros(len(mean))
    log_t = np.log(lags.astype(np.float64))
    for i, row in enumerate(mean):
        good = np.isfinite(row) & (row > 0)
        if good.sum() < 6:
            continue
        x, y = log_t[good], np.log(row[good])
        # Slope over windows of about half a decade, against the noise of single points.
        flat = -1
        for j in range(len(x)):
            near = (x >= x[j]) & (x <= x[j] + np.log(4))
            if near.sum() >= 3 and np.polyfit(x[near], y[near], 1)[0] < 0.3:
                flat = int(np.flatnonzero(near)[-1])
            elif flat >= 0:
                break
        # A curve that is flat to its end has relaxed: that is no fast plateau.
        if 0 <= flat < len(x) - 3 and y[-1] - y[flat] > np.log(3):
            levels[i] = float(np.exp(y[: flat + 1].max()))
    return levels


def _default_thresholds(mean: Array, plateau: Array) -> list[float]:
    """Up to five thresholds above every plateau and every first point, reached by two thirds of the curves."""
    first = np.array([row[np.isfinite(row)][0] if np.isfinite(row).any() else np.nan for row in mean])
    top = np.array([np.nanmax(row) if np.isfinite(row).any() else np.nan for row in mean])
    low = np.nanmax([np.nanmax(first) * 1.5, 3 * plateau.max()])
    high = np.nanquantile(top, 1 / 3) / 1.2
    return [] if not high > low > 0 else [float(v) for v in np.geomspace(low, high, 5)]


def _doubts(result: AgingExponent, record: AgingRecord, mean: Array, plateau: Array, aims: list[float]) -> list[str]:
    """What a careful reader would ask."""
    doubts = []
    decades = np.log10(result.window[1] / result.window[0])
    if decades < 1.5:
        doubts.append(f"the waiting times span {decades:.1f} decades; below 1.5 an exponent is a guess")
    if result.interval is None:
        doubts.append(f"no interval: {result.n_replica} replica(s), at least {MIN_REPLICAS} are needed, 16 recommended")
    elif result.n_replica < 16:
        doubts.append(f"{result.n_replica} replicas; 16 are recommended for an interval")
    if not result.thresholds:
        doubts.append("no threshold above the fast plateau is reached by enough waiting times")
    inside = [aim for aim in aims if aim < 2 * plateau.max()]
    if inside:
        doubts.append(
            f"the thresholds {', '.join(f'{aim:.2g}' for aim in inside)} lie in the fast plateau (up to "
            f"{plateau.max():.2g}): their slopes tell of the noise, not of the relaxation"
        )
    for fit in result.thresholds:
        late, many = int(fit.crossings.late.sum()), int((fit.crossings.counts > 1).sum())
        if late:
            doubts.append(f"threshold {fit.crossings.threshold:.2g}: {late} waiting time(s) never reach it (left out)")
        if many:
            doubts.append(f"threshold {fit.crossings.threshold:.2g}: {many} curve(s) cross it more than once")
    bound = [name for name, mu in result.estimates.items() if mu < _BOUNDS[0] + 0.02 or mu > _BOUNDS[1] - 0.02]
    doubts += [f"{name}: the exponent is at the end of the range that was searched" for name in bound]
    return doubts + _doubts_of_the_run(record)


def _doubts_of_the_run(record: AgingRecord) -> list[str]:
    """Properties of the training that move the clock by themselves."""
    doubts: list[str] = []
    meta: dict[str, Any] = record.meta
    if "learning_rate" in record.one_time_names:
        rates = record.one_time("learning_rate")[1]
        if len(rates) and np.ptp(rates) > 0.01 * np.abs(rates).max():
            doubts.append("the learning rate changed during the run: so did the clock")
    if meta.get("sampler") == "SequentialSampler":
        doubts.append("the order of the batches is fixed: curves dip at multiples of an epoch")
    for optimizer in meta.get("optimizers") or []:
        name = optimizer.get("name") if isinstance(optimizer, dict) else None
        groups = optimizer.get("parameter_groups") if isinstance(optimizer, dict) else None
        if name and name != "SGD":
            doubts.append(f"{name} rescales its steps: the exponent is that of this optimiser")
        if any(isinstance(group, dict) and group.get("momentum") for group in groups or []):
            doubts.append("momentum: lags below 1/(1 - momentum) steps are ballistic")
        if any(isinstance(group, dict) and group.get("weight_decay") for group in groups or []):
            doubts.append("weight decay moves the weights by itself")
    return doubts
