r"""Relaxation times :math:`\tau(t_w)` by threshold, by 1/e and 90 %, and by a stretched exponential.

An aging exponent assumes that :math:`\tau` grows as a power of :math:`t_w`. Here, this growth is compared with others.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.crossings import lag_to_threshold
from lightning_glassy.analysis.curves import MOST_CURVES, Curves, relaxation_curves
from lightning_glassy.analysis.exponent_result import wrapped
from lightning_glassy.analysis.exponents import _default_thresholds
from lightning_glassy.analysis.growth import FEWEST_REPLICAS, Growth, compare_growth, drift, jackknife_error
from lightning_glassy.analysis.plateaus import fast_levels
from lightning_glassy.observables import Array, find, relaxation_of, relaxing
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

FALLS = {"1/e": float(np.exp(-1)), "90 %": 0.9}
"""Values to which a correlation C or an overlap Q falls, by the name of the method."""

STRETCHED = "stretched exponential"
"""Name of the method that fits a stretched exponential."""

_EARLY = "shorter than the first lag"
_LATE = "longer than the last lag"
_UNMEASURED = "the curve is not measured"

_FEWEST_LAGS = 6  # a stretched exponential is fitted to so many lags
_STARTS = 2 / 3  # the first lag must see at least this part of the amplitude
_BETAS = (0.1, 4.0)  # a fit at one of these bounds is refused
_MISFIT = 0.05  # a fit that misses the curve by more, as rms difference of C, is refused


@dataclass(frozen=True)
class Stretched:
    r"""The shape of the stretched exponentials :math:`A\,e^{-(t/\tau)^\beta}` that were fitted to C or Q.

    Attributes:
        betas: the stretching exponents :math:`\beta`, ``[n_tw]``. NaN if the relaxation time is NaN.
        beta_errors: standard errors over replicas, ``[n_tw]``. None with fewer than 3 replicas.
        amplitudes: the amplitudes A, ``[n_tw]``. They are 1 for a curve without a fast process.
        amplitude_errors: standard errors over replicas, ``[n_tw]``, 0 if A was not fitted. None with fewer than 3.
        misfits: rms difference between the curve and the fit, ``[n_tw]``.
    """

    betas: Array
    beta_errors: Array | None
    amplitudes: Array
    amplitude_errors: Array | None
    misfits: Array


@dataclass(frozen=True)
class RelaxationTime:
    r"""The relaxation times of one method, and their growth.

    Attributes:
        method: ``"1/e"``, ``"90 %"``, ``"stretched exponential"``, or ``"threshold "`` and the threshold.
        times: :math:`\tau` in steps (real numbers), ``[n_tw]``. NaN if the measured lags do not determine it.
        errors: standard error of each time over replicas, in steps, ``[n_tw]``. None with fewer than 3 replicas.
        early: whether the relaxation time is shorter than the measured lags, ``[n_tw]``.
        late: whether the relaxation time is longer than the measured lags, ``[n_tw]``.
        why_not: why a time is NaN, in words, empty otherwise, ``n_tw`` texts.
        growth: the laws that were fitted, the best first. Empty with fewer than 4 times in the window.
        preferred: name of the law of growth that is better than all others by a safe margin. None for "cannot tell".
        reason: the reason for ``preferred``, in words.
        slope_at: waiting times between neighbours, the geometric mean of both, ``[n_slope]``.
        slopes: local slope :math:`\Delta\ln\tau/\Delta\ln t_w` between neighbouring times, ``[n_slope]``.
        slope_errors: standard errors of the slopes over replicas. None with fewer than 3 replicas.
        drift: slope over the later half of the times minus slope over the earlier half. It is 0 for a power law. NaN
            with fewer than 4 times.
        drift_error: standard error of ``drift`` over replicas. None with fewer than 3 replicas.
        shape: the other results of the fit of a stretched exponential, None for other methods.
    """

    method: str
    times: Array
    errors: Array | None
    early: NDArray[np.bool_]
    late: NDArray[np.bool_]
    why_not: list[str]
    growth: list[Growth]
    preferred: str | None
    reason: str
    slope_at: Array
    slopes: Array
    slope_errors: Array | None
    drift: float
    drift_error: float | None
    shape: Stretched | None = None

    @property
    def mu(self) -> float:
        """The exponent of the fitted power law, NaN without a fit. It is a growth exponent only if the law fits."""
        return next((law.parameters["mu"] for law in self.growth if law.name == "power law"), np.nan)

    @property
    def mu_error(self) -> float | None:
        """Standard error of ``mu`` over replicas, None with fewer than 3."""
        return next((law.errors.get("mu") for law in self.growth if law.name == "power law"), None)


@dataclass(frozen=True)
class RelaxationTimes:
    """The relaxation times of an observable by several methods. ``print`` shows a short table.

    Attributes:
        observable: name of the observable.
        group: name of the group of parameters.
        eps: threshold of the overlap, None for another observable.
        waiting_times: steps, int64 ``[n_tw]``.
        window: first and last waiting time for the laws of growth.
        t0: origin of the clock, in steps before step 0.
        n_replica: number of replicas.
        methods: the relaxation times by method.
        warnings: reasons for doubt, in words.
    """

    observable: str
    group: str
    eps: float | None
    waiting_times: NDArray[np.int64]
    window: tuple[int, int]
    t0: float
    n_replica: int
    methods: dict[str, RelaxationTime]
    warnings: list[str] = field(default_factory=list)

    @property
    def main(self) -> RelaxationTime:
        """The method that determines the most relaxation times. If several do, it is the first in ``methods``."""
        return max(self.methods.values(), key=lambda one: int(np.isfinite(one.times).sum()))

    @property
    def growth(self) -> list[Growth]:
        """The laws of growth of :attr:`main`, the best first."""
        return self.main.growth

    @property
    def preferred(self) -> str | None:
        """The preferred law of growth of :attr:`main`, None for "cannot tell"."""
        return self.main.preferred

    def __str__(self) -> str:
        name, eps = relaxation_of(self.observable).label, "" if self.eps is None else f" (eps = {self.eps:.3g})"
        of_group = "" if self.group == "all" else f" of {self.group!r}"
        replicas = "1 run" if self.n_replica == 1 else f"{self.n_replica} replicas"
        replicas += f", no errors with fewer than {FEWEST_REPLICAS}" if self.n_replica < FEWEST_REPLICAS else ""
        lines = [
            f"relaxation times of the {name}{eps}{of_group}   ({replicas})",
            "  tau in steps, at the first and at the last waiting time that has one; growth as t_w^slope",
        ]
        for one in list(self.methods.values())[:5]:
            found = np.flatnonzero(np.isfinite(one.times))
            if len(found) == 0:
                reasons = sorted(set(one.why_not), key=one.why_not.count)
                lines.append(f"  {one.method:<22} none: {reasons[-1]}")
                continue
            ends = [found[0], found[-1]] if len(found) > 1 else [found[0]]
            errors = one.errors if one.errors is not None else np.full(len(one.times), np.nan)
            values = " -> ".join(f"{_with_error(one.times[i], errors[i])} at {self.waiting_times[i]:,}" for i in ends)
            growth = f"; slope {_with_error(one.mu, one.mu_error)}" if one.growth else ""
            growth += f", drift {_with_error(one.drift, one.drift_error)}" if np.isfinite(one.drift) else ""
            lines.append(f"  {one.method:<22} {values}{growth}")
            if one.shape is not None:
                lines[-1] += f"; beta {np.nanmin(one.shape.betas):.2f} ... {np.nanmax(one.shape.betas):.2f}"
        lines.append(f"  growth ({self.main.method}): {self.main.reason}")
        return "\n".join([*wrapped(lines), *(f"  ! {warning}" for warning in self.warnings[:2])])


def _with_error(value: float, error: float | None) -> str:
    if error is None or not np.isfinite(error):
        return _plain(value, 3)
    # The value has as many digits as its error.
    digits = 3 if not error > 0 or value == 0 else int(np.log10(abs(value)) // 1 - np.log10(error) // 1) + 2
    return f"{_plain(value, min(max(digits, 1), 6))} +- {_plain(error, 2)}"


def _plain(value: float, digits: int) -> str:
    """Return a number with so many digits, and without an exponent if it is between 1,000 and a million."""
    return f"{float(f'{value:.{digits}g}'):,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.{digits}g}"


@quiet()
def relaxation_times(
    record: AgingRecord,
    observable: str | None = None,
    *,
    group: str = "all",
    eps: float | None = None,
    thresholds: list[float] | None = None,
    window: tuple[int, int] | None = None,
    t0: float = 0.0,
) -> RelaxationTimes:
    r"""Measure the relaxation time of every waiting time, and compare laws for its growth.

    A correlation C (from the decorrelation) and an overlap Q fall from 1. Their relaxation times are

    * ``"1/e"`` and ``"90 %"``: the lag at which C or Q has fallen to 1/e, and to 0.9. The lag is interpolated, by
      :func:`~lightning_glassy.analysis.crossings.lag_to_threshold`. Winter and Janssen 2024 (arXiv 2405.13098) use
      both. Their program takes the next snapshot after the crossing, which is later.
    * ``"stretched exponential"`` (Kohlrausch, Williams and Watts): the time :math:`\tau` in
      :math:`A\,e^{-(t/\tau)^\beta}`, fitted by least squares. A is 1 unless the curve has a fast process. A fit counts
      only if the measured lags reach from 2/3 of A down to 1/e of A, if it misses the curve by at most 0.05 (rms), and
      if :math:`\beta` is between 0.1 and 4.

    Thresholds belong to the quantity that grows from 0: the MSD, the MSD over the noise, 1 - C or 1 - Q.

    Nothing is extrapolated. If the measured lags do not determine a time, it is NaN, and ``why_not`` gives the reason.
    The errors are jackknife errors over the replicas: the whole analysis is repeated without each replica. A time
    counts only if no replica is needed to determine it. A single run has no errors.

    The laws of growth (:class:`Growth`) are fitted to :math:`\ln\tau` in a window of waiting times, by least squares.
    Each time has the weight of its jackknife error and a further error of 1 %. The relaxation times of different
    waiting times share noise. The criterion alone is therefore not enough, and its difference between two laws has a
    jackknife error, too. A law is preferred only if

    * it fits: the mean of :math:`(\text{misfit}/\text{error})^2` is at most 4, and the local slope of a power law does
      not drift,
    * its criterion is lower than the criterion of each other law by 10, and by the 99 % quantile of Student's t times
      the jackknife error of the difference, and
    * 6 waiting times over a decade have a relaxation time.

    The constant is preferred if it fits, and the exponent of the power law is zero within its error and below 0.1. The
    errors of a single run are unknown. It has a preferred law only if this law misses by at most 2 % and every other by
    at least 10 %.

    A record of more than 25 waiting times, or 100 lags, is thinned to 40 and 60.

    Args:
        record: one run, or (for errors) at least 3 replicas.
        observable: one of :func:`lightning_glassy.observables.relaxing`. The default is the decorrelation, and for a
            record of displacements alone the MSD.
        group: name of the group of parameters. The overlap of Winter and Janssen leaves out the output layer.
        eps: threshold of the overlap.
        thresholds: thresholds of the quantity that grows. The default is none for C and Q, and up to three for the
            others.
        window: first and last waiting time for the laws of growth. The default is all from a hundredth of the last one,
            at least 1.
        t0: origin of the clock, in steps before step 0.

    Raises:
        ValueError: an argument is out of its range, the observable does not relax, or the record lacks its data.
        KeyError: the record does not have the group, or no gradient noise of the group.

    Example:
        >>> from lightning_glassy import AgingRecord, LogTimeSchedule
        >>> from lightning_glassy.glasses import SubagingClock
        >>> glass, pairs = SubagingClock(mu=0.5, kappa=0.1), LogTimeSchedule.logspaced(100_000).pairs
        >>> record = AgingRecord({"all": 1})
        >>> for t_w, t in pairs:
        ...     record.append(t_w, t, [[glass.msd(t_w, t), 0, glass.covariance(t_w, t_w + t), 1, 1, 0, 0]])
        >>> found = relaxation_times(record).methods["1/e"]
        >>> exact = glass.lag_to_correlation(np.exp(-1), relaxation_times(record).waiting_times)
        >>> bool(np.nanmax(abs(found.times / exact - 1)) < 1e-3)
        True
    """
    for i, threshold in enumerate(thresholds or []):
        if not 0 < threshold < np.inf:
            raise ValueError(f"thresholds[{i}]={threshold} must be a positive number")
    if window is not None and (len(window) != 2 or window[0] > window[1]):
        raise ValueError(f"window={window!r} must be the first and the last waiting time")
    if observable is None:
        there = [name for name in relaxing() if name in record.available(group)]
        observable = next((name for name in there if relaxation_of(name).correlation), "msd")
    curves = relaxation_curves(record, observable, group=group, eps=eps).thinned(*MOST_CURVES)
    last = int(curves.waiting_times.max())
    if t0 != 0 and not -last < t0 < np.inf:
        raise ValueError(f"t0={t0} must be a number of steps above -{last}: the last waiting time is {last}")
    used = (
        (max(1, round(last / 100)), last) if window is None else (operator.index(window[0]), operator.index(window[1]))
    )
    in_window = (curves.waiting_times >= used[0]) & (curves.waiting_times <= used[1])
    clock = np.asarray(curves.waiting_times + t0, dtype=np.float64)
    in_window &= clock > 0

    # The mean over all replicas comes first, then the means without each replica.
    samples = np.concatenate([curves.mean()[None], _without_each_replica(curves.values)])
    levels = fast_levels(curves.lags, samples[0])
    correlation = relaxation_of(observable).correlation
    if thresholds is None:
        thresholds = [] if correlation else _default_thresholds(samples[0], levels)[::2]
    aims = {name: 1 - value for name, value in FALLS.items()} if correlation else {}
    aims |= {f"threshold {threshold:.3g}": threshold for threshold in thresholds}
    timed = {name: _crossed(curves.lags, samples, aim) for name, aim in aims.items()}
    if correlation:
        timed[STRETCHED] = _stretched(curves, samples, levels > 0)
    return RelaxationTimes(
        observable,
        group,
        (record.overlap_thresholds[0] if eps is None else eps) if find(observable).has_threshold else None,
        curves.waiting_times,
        used,
        t0,
        curves.n_replica,
        {name: _result(name, clock, in_window, found) for name, found in timed.items()},
        [*_doubts(curves, samples[0], aims), *curves.doubts],
    )


def _doubts(curves: Curves, mean: Array, aims: dict[str, float]) -> list[str]:
    """Return a warning for each threshold that curves pass several times, as if they were noisy, or oscillated."""
    several = {name: int((lag_to_threshold(curves.lags, mean, aim).counts > 1).sum()) for name, aim in aims.items()}
    return [f"{name}: {n} curve(s) pass it several times; the first time counts" for name, n in several.items() if n]


def _without_each_replica(values: Array) -> Array:
    """Return the means over all replicas but one, ``[n_replica, n_tw, n_lag]``, or none with fewer than 3 replicas."""
    n = len(values)
    return (values.sum(axis=0) - values) / (n - 1) if n >= FEWEST_REPLICAS else values[:0]


class _Timed(NamedTuple):
    """Relaxation times of one method. ``logs`` is ln(tau) of each sample, ``[1 + R, n_tw]``."""

    logs: Array
    early: NDArray[np.bool_]
    late: NDArray[np.bool_]
    why_not: list[str]
    shape: Stretched | None = None


def _result(method: str, clock: Array, in_window: NDArray[np.bool_], timed: _Timed) -> RelaxationTime:
    """Add errors and growth to the relaxation times of one method. A time counts if every sample has it."""
    logs, several = timed.logs, len(timed.logs) > 1
    known = np.isfinite(logs).all(axis=0)
    times = np.where(known, np.exp(logs[0]), np.nan)
    used = known & in_window
    x, y = np.log(clock[used]), logs[:, used]
    slopes = np.diff(y, axis=1) / np.diff(x)
    bend = drift(clock[used], y) if len(x) >= 4 else np.full(len(y), np.nan)
    return RelaxationTime(
        method,
        times,
        times * jackknife_error(logs[1:]) if several else None,
        timed.early,
        timed.late,
        timed.why_not,
        *compare_growth(clock[used], y),
        np.exp((x[1:] + x[:-1]) / 2),
        slopes[0],
        jackknife_error(slopes[1:]) if several else None,
        float(bend[0]),
        float(jackknife_error(bend[1:])) if several else None,
        timed.shape,
    )


def _crossed(lags: NDArray[np.int64], samples: Array, aim: float) -> _Timed:
    """Time the lags at which samples of the curves, ``[n_sample, n_tw, n_lag]``, reach a threshold."""
    crossing = lag_to_threshold(lags, samples, aim)
    early, late = np.asarray(crossing.early.any(axis=0)), np.asarray(crossing.late.any(axis=0))
    missing = ~np.isfinite(crossing.lags).all(axis=0)
    words = np.where(early, _EARLY, np.where(late, _LATE, _UNMEASURED))
    return _Timed(np.log(crossing.lags), early, late, np.where(missing, words, "").tolist())


def _stretched(curves: Curves, samples: Array, fast: NDArray[np.bool_]) -> _Timed:
    """Fit a stretched exponential to samples of the curves. Only curves with a fast process have an amplitude below 1.

    The points of a curve are weighted by their standard error over replicas and its rms along the curve, so that no
    point has much more weight than the others. The weights are the same for all samples.
    """
    n_sample, n_tw, n_lag = samples.shape
    log_t = np.log(curves.lags.astype(np.float64))
    measured = np.asarray(np.isfinite(samples).all(axis=0))
    falling = np.where(measured, 1 - samples, 0.0)
    variances = np.ones((n_tw, n_lag))
    if n_sample > 1:
        squares = np.where(measured, jackknife_error(samples[1:]) ** 2, 0.0)
        typical = squares.sum(axis=1, keepdims=True) / np.maximum(measured.sum(axis=1, keepdims=True), 1)
        variances = np.where(typical > 0, squares + typical, 1.0)
    weights = measured / variances
    enough = measured.sum(axis=1) >= _FEWEST_LAGS
    first = np.where(measured.any(axis=1), log_t[np.argmax(measured, axis=1)], np.nan)
    last = np.where(measured.any(axis=1), log_t[n_lag - 1 - np.argmax(measured[:, ::-1], axis=1)], np.nan)

    # Search a grid of starts for the mean curves. The other samples start from the result of the mean curves.
    starts = np.stack(np.meshgrid(np.linspace(log_t[0], log_t[-1], 30), np.log([0.3, 0.6, 1, 1.6]), [1.0]), axis=-1)
    starts = starts.reshape(-1, 3)
    lines = _line(starts, log_t)
    distances = ((falling[0][:, None] - lines) ** 2 * weights[:, None]).sum(axis=-1)  # [n_tw, n_start]
    whole = _fit(falling[0], weights, log_t, starts[np.argmin(distances, axis=1)], fast)
    free = fast & (whole[:, 2] < 1)
    start = np.where(free[:, None], whole, whole * [1, 1, 0] + [0, 0, 1])
    of_all = (np.tile(weights, (n_sample, 1)), log_t, np.tile(start, (n_sample, 1)), np.tile(free, n_sample))
    found = _fit(falling.reshape(-1, n_lag), *of_all).reshape(n_sample, n_tw, 3)

    log_tau, beta, amplitude = found[..., 0], np.exp(found[..., 1]), found[..., 2]
    misfits = np.sqrt(((falling - _line(found, log_t)) ** 2 * measured).sum(axis=-1) / measured.sum(axis=-1))
    early = np.exp(-np.exp(beta * (first - log_tau))) < _STARTS
    late = log_tau > last
    bound = (beta < 1.01 * _BETAS[0]) | (beta > 0.99 * _BETAS[1])
    causes = {
        f"fewer than {_FEWEST_LAGS} lags are measured": np.broadcast_to(~enough, late.shape),
        _LATE: late,
        _EARLY: early,
        f"a stretched exponential misses the curve by more than {_MISFIT}": ~(misfits < _MISFIT),
        f"the fitted beta is at a bound, {_BETAS[0]} or {_BETAS[1]}": bound,
    }
    why_not = np.full(n_tw, "", dtype=object)
    for words, failed in causes.items():
        why_not[failed.any(axis=0) & (why_not == "")] = words
    good = why_not == ""
    values = [np.where(good, part[0], np.nan) for part in (beta, amplitude)]
    errors = [np.where(good, jackknife_error(part[1:]), np.nan) if n_sample > 1 else None for part in (beta, amplitude)]
    shape = Stretched(values[0], errors[0], values[1], errors[1], np.where(enough, misfits[0], np.nan))
    return _Timed(np.where(good, log_tau, np.nan), why_not == _EARLY, why_not == _LATE, why_not.tolist(), shape)


def _line(parameters: Array, log_t: Array) -> Array:
    """Return A exp(-(t/tau)^beta) at some lags, ``[..., n_lag]``, for parameters (ln tau, ln beta, A), ``[..., 3]``."""
    log_tau, log_beta, amplitude = np.moveaxis(parameters[..., None], -2, 0)
    return np.asarray(amplitude * np.exp(-np.exp(np.exp(log_beta) * (log_t - log_tau))))


def _fit(falling: Array, weights: Array, log_t: Array, start: Array, free: NDArray[np.bool_]) -> Array:
    """Fit stretched exponentials by least squares, all at once, with the method of Levenberg and Marquardt.

    Args:
        falling: curves that fall from 1, ``[n, n_lag]``.
        weights: weights of the squares, ``[n, n_lag]``, 0 if not measured.
        log_t: logarithms of the lags, ``[n_lag]``.
        start: parameters to start from (ln tau, ln beta, A), ``[n, 3]``.
        free: whether A is fitted, ``[n]``. Otherwise it stays as it is.
    """
    low: Array = np.array([log_t[0] - 5, np.log(_BETAS[0]), 0.0])
    high: Array = np.array([log_t[-1] + 5, np.log(_BETAS[1]), 2.0])
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    w, found, damping = weights / total, start.copy(), np.full(len(start), 1e-2)

    def cost(parameters: Array) -> Array:
        return np.asarray((w * (falling - _line(parameters, log_t)) ** 2).sum(axis=1))

    least = cost(found)
    for _ in range(200):
        line, beta = _line(found, log_t), np.exp(found[:, 1:2])
        shifted = log_t - found[:, :1]
        slope = line * np.exp(beta * shifted) * beta
        jacobian = np.stack([slope, -slope * shifted, line / np.maximum(found[:, 2:], 1e-9) * free[:, None]], axis=-1)
        weighted = jacobian * w[..., None]
        matrix = np.einsum("ink,inl->ikl", weighted, jacobian)
        gradient = np.einsum("ink,in->ik", weighted, falling - line)
        diagonal = np.einsum("ikk->ik", matrix)
        matrix = matrix + np.eye(3) * (damping[:, None] * diagonal + 1e-12)[:, None]
        step = np.clip(np.linalg.solve(matrix, gradient[..., None])[..., 0], -1, 1)
        trial = np.clip(found + step, low, high)
        value = cost(trial)
        better = value <= least
        moved = np.abs(trial - found)[better].max(initial=0.0)
        found, least = np.where(better[:, None], trial, found), np.where(better, value, least)
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
        if moved < 1e-9:
            break
    return np.asarray(found)
