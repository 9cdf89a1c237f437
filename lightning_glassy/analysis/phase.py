r"""The verdict: whether a network ages, whether the aging stops, and the phase that this suggests.

Baity-Jesi et al. 2018 (arXiv 1803.06969) ask this question. An over-parametrised network stops aging at the bottom of
its landscape. An under-parametrised network continues to age like a glass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.analysis.curves import MOST_CURVES, Curves, relaxation_curves
from lightning_glassy.analysis.diffusion import smooth_exponent
from lightning_glassy.analysis.exponent_result import AgingExponent, wrapped
from lightning_glassy.analysis.headline import AGES
from lightning_glassy.analysis.noise_clock import moved_by_noise_alone
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.analysis.regimes import rest
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

Kind = Literal["aging throughout", "aging that stops", "no aging", "cannot tell"]
Phase = Literal["glassy", "over-parametrised"]

_CONFIDENCE = 0.95
_FITTED, _NOT_FITTED = 0.999, 0.98  # training accuracies: all data are learnt from the first on, not up to the second
_COINCIDE = 0.03  # curves coincide if no part of them has a stronger trend with the waiting time
_STEEP = 0.3  # a curve with a smaller local exponent is close to saturation
_LEAST_EXPONENT = 0.25  # the vertical shift of a flatter curve hardly determines its horizontal shift
_FEWEST = 4  # fewest replicas for an error from their scatter
_FEWEST_TIMES = 4  # fewest waiting times for a verdict
_FAR_ENOUGH = 1 / 3  # waiting times must be comparable up to this part of the last one
_LONGEST = 10  # curves are not compared if their shortest common lag is more than this many waiting times


@dataclass(frozen=True)
class AgingRate:
    r"""The rate at which the relaxation slows down with the waiting time, over a range of waiting times.

    It is :math:`-\frac{\partial\ln\Delta/\partial\ln t_w}{\partial\ln\Delta/\partial\ln t}` at lags between a thirtieth
    of the waiting time and the waiting time. Checkpoints may have only longer lags in common. The rate then belongs to
    the shortest common lag, up to ten waiting times. On a clock that slows down as a power of time, the rate is
    :math:`[(1+r)^\mu - 1]/r` at a lag of :math:`r` waiting times. This is the exponent :math:`\mu` if the lag is much
    shorter than the waiting time. At longer lags it is smaller than a :math:`\mu` between 0 and 1.

    Attributes:
        first: first waiting time, in steps.
        last: last waiting time.
        rate: 0 is no aging, 1 is full aging.
        low: lower end of the 95 % interval. It comes from the scatter of the replicas. With fewer than four replicas,
            it comes from the scatter from one waiting time to the next. The error of the interpolation between lags
            is added.
        high: upper end of the interval.
        lag_ratio: typical lag of the comparison, over the waiting time.
    """

    first: int
    last: int
    rate: float
    low: float
    high: float
    lag_ratio: float = np.nan

    @property
    def ages(self) -> bool:
        """Whether the relaxation slows down, by more than the error and by enough to matter."""
        return self.rate > self.least and self.low > 0

    @property
    def speeds_up(self) -> bool:
        """Whether the relaxation becomes faster."""
        return self.rate < -self.least and self.high < 0

    @property
    def flat(self) -> bool:
        """Whether the curves coincide, within a narrow interval."""
        return abs(self.rate) <= self.least and self.low > -2 * self.least and self.high < 1.5 * self.least

    @property
    def least(self) -> float:
        """The smallest rate that is called aging: 0.1, or less at lags beyond the waiting time, where rates are low."""
        return AGES * _rate_of(AGES, max(self.lag_ratio, 1.0)) / _rate_of(AGES, 1.0)

    def __str__(self) -> str:
        return (
            f"aging rate {self.rate:.2f} ({self.low:.2f} ... {self.high:.2f}) for waiting times {self.first:,} ... "
            f"{self.last:,}"
        )


@dataclass(frozen=True)
class Verdict:
    """Whether a network ages, and the evidence. ``print`` shows a few lines.

    Attributes:
        kind: ``"aging throughout"``, ``"aging that stops"``, ``"no aging"`` or ``"cannot tell"``.
        stops_at: first waiting time of the curves that coincide, in steps. None unless the aging stops.
        phase: ``"glassy"``, ``"over-parametrised"``, or None if the evidence does not decide.
        observable: name of the observable whose curves decided.
        group: name of the group of parameters.
        rates: the aging rates that decided: over all waiting times, over the last decade, and on both sides of
            ``stops_at``.
        train_loss: training loss at the end, if the record has it.
        train_accuracy: training accuracy at the end, if the record has it.
        evidence: the evidence, in words.
        warnings: other possible causes, in words.
        clock: ``"noise"`` if the curves were compared against the noise that has acted
            (:func:`~lightning_glassy.analysis.noise_clock`), otherwise ``"steps"``.
    """

    kind: Kind
    stops_at: int | None
    phase: Phase | None
    observable: str
    group: str
    rates: list[AgingRate]
    train_loss: float | None
    train_accuracy: float | None
    evidence: list[str]
    warnings: list[str] = field(default_factory=list)
    clock: Literal["steps", "noise"] = "steps"

    def __str__(self) -> str:
        stop = f" (at step {self.stops_at:,})" if self.stops_at is not None else ""
        phase = f": {self.phase}" if self.phase else ""
        lines = [f"verdict: {self.kind}{stop}{phase}", *wrapped([f"- {line}" for line in self.evidence], indent=2)]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])


@quiet()
def verdict(
    record: AgingRecord, *, group: str = "all", observable: str | None = None, eps: float | None = None
) -> Verdict:
    r"""Decide whether a network ages, from the shift of its curves with the waiting time.

    The curves of neighbouring waiting times are compared if they still rise, above the level of fast processes and at
    lags up to the waiting time. The vertical shifts add up to an :class:`AgingRate` over any range of waiting times.

    * *Aging throughout*: the curves still shift in the last decade of the waiting times of the record.
    * *Aging that stops*: the curves shift up to some waiting time, and coincide from it on. A fit finds this waiting
      time: a straight trend of the shifts that turns into none.
    * *No aging*: the curves coincide.
    * *Cannot tell*: the curves do not decide, or no waiting time above a third of the last one can be compared.

    Waiting times that share no lags, as in a record of checkpoints, are compared by interpolation. The error of the
    interpolation is part of the interval of every rate (:func:`~lightning_glassy.analysis.curves.relaxation_curves`).

    A record of more than 25 waiting times, or of more than 100 lags, is thinned to at most 40 and 60.

    The phase follows from the one-time series ``"train_accuracy"`` and ``"train_loss"``, if the record has them. A
    glass continues to age, although it has not learnt the training data and its loss hardly falls any more. An
    over-parametrised network stops aging and has learnt all training data (Baity-Jesi et al. 2018).

    Args:
        record: one run, or replicas.
        group: name of the group of parameters.
        observable: name of the observable. The default is the displacement. If the displacement ages throughout and the
            record has the gradient noise, the displacement over the noise is examined, too. Its curves coincide if the
            motion slows down only because the noise fades. If the noise changes during a lag, the curves of the
            displacement coincide when they are drawn against the noise that has acted
            (:func:`~lightning_glassy.analysis.noise_clock`).
        eps: threshold of the overlap.

    Raises:
        ValueError: there is no such observable, ``eps`` is given for another observable than the overlap, or the record
            has no pair at a positive lag.
        KeyError: the record does not have the group, or no gradient noise of the group.
    """
    has_noise = "normalised_msd" in record.available(group)
    used = "msd" if observable is None else observable
    curves = relaxation_curves(record, used, group=group, eps=eps).thinned(*MOST_CURVES)
    found = _judge(curves)
    if observable is None and found.kind in ("aging throughout", "cannot tell") and has_noise:
        used, found = _over_the_noise(record, group, found)
    loss, accuracy = _last(record, "train_loss"), _last(record, "train_accuracy")
    phase, words = _phase(found.kind, loss, accuracy, *rest(record))
    if used == "msd" and found.kind == "aging throughout" and phase is None and not has_noise:
        words.append("the record has no gradient noise, whose fading would slow the motion without any glass")
    return Verdict(
        kind=found.kind,
        stops_at=found.stops_at,
        phase=phase,
        observable=used,
        group=group,
        rates=found.rates,
        train_loss=loss,
        train_accuracy=accuracy,
        evidence=found.evidence + words,
        warnings=[*curves.doubts, *confounders(record)],
        clock=found.clock,
    )


def reconcile(judged: Verdict, fit: AgingExponent) -> Verdict:
    r"""Return the verdict, or "cannot tell" if the exponent of the same curves contradicts it.

    The contradictions are:

    * The verdict is "aging throughout", and the exponent is not above 0, or its interval ends below 0.1.
    * The verdict is "no aging", or the aging stops before most of the fitted waiting times, and the exponent differs
      from 0: its interval lies outside -0.1 ... 0.1, or it has no interval and is larger than 0.3 in size.
    * The verdict is "aging throughout", and the late aging rate misses the exponent by more than 0.2 beyond both
      intervals. The rate of a slowing clock with exponent :math:`\mu` is :math:`[(1+r)^\mu - 1]/r` at lags of
      :math:`r` waiting times. Without an interval of the exponent, the rate must miss it by more than 0.5. An exponent
      without a collapse (``mu`` is None) is not compared with the rate.

    Args:
        judged: result of :func:`verdict`.
        fit: the exponent. If it belongs to another observable, its table is searched for the observable of the verdict.
    """
    if judged.clock == "noise":  # an exponent belongs to the clock of the steps
        return judged
    same = [other for other in fit.table if (other.observable, other.group) == (judged.observable, judged.group)]
    words = _contradiction(judged, same[0]) if same else None
    if words is None:
        return judged
    return replace(judged, kind="cannot tell", stops_at=None, phase=None, evidence=[*judged.evidence, words])


def _contradiction(judged: Verdict, fit: AgingExponent) -> str | None:
    """Return the contradiction between a verdict and an exponent in words, or None without one."""
    mu = fit.estimate
    if not np.isfinite(mu):
        return None
    low, high = (-np.inf, np.inf) if fit.interval is None else fit.interval
    value = f"{mu:.2f}" + ("" if fit.interval is None else f" ({low:.2f} ... {high:.2f})")
    words = f"but the fit of the same curves has the exponent {value}: a contradiction to "
    if judged.kind == "aging throughout":
        if mu <= 0 or high < AGES:
            return words + "aging"
        late, slack = judged.rates[-1], 0.5 if fit.interval is None else 0.2
        ends = [_rate_of(end, late.lag_ratio) for end in ((mu, mu) if fit.interval is None else fit.interval)]
        if fit.mu is not None and (late.low > ends[1] + slack or late.high < ends[0] - slack):
            return words + f"the {late}"
        return None
    # An exponent describes the waiting times of its window. Aging that stops within the window changes the exponent.
    stopped = judged.kind == "no aging" or (judged.stops_at is not None and judged.stops_at <= 3.2 * fit.window[0])
    outside = abs(mu) > 3 * AGES if fit.interval is None else low > AGES or high < -AGES
    return words + "curves that coincide" if stopped and outside else None


def _rate_of(mu: float, ratio: float) -> float:
    """Return the aging rate of a slowing clock with this exponent, at a lag of this many waiting times."""
    return float(((1 + ratio) ** mu - 1) / ratio) if np.isfinite(ratio) else mu


def _over_the_noise(record: AgingRecord, group: str, found: _Finding) -> tuple[str, _Finding]:
    """Return the observable that decides, and its finding: the displacement over the noise if its curves coincide."""
    normalised = _judge(relaxation_curves(record, "normalised_msd", group=group).thinned(*MOST_CURVES))
    if not normalised.rates or not found.rates or normalised.rates[0].last < found.rates[0].last / 3.2:
        found.evidence.append("the gradient noise was not measured at late enough waiting times to compare with it")
    elif normalised.kind in ("aging that stops", "no aging"):
        normalised.evidence[:0] = [
            *found.evidence,
            "over the strength D(t_w) of the gradient noise, which changes, too:",
        ]
        return "normalised_msd", normalised
    elif found.kind == "aging throughout" and moved_by_noise_alone(
        record, relaxation_curves(record, group=group).after(found.rates[0].first - 1), group
    ):
        words = (
            "only the gradient noise fades: against the noise that has acted, the integral of D, its curves coincide"
        )
        return "msd", _Finding("no aging", found.rates, [*found.evidence, words], clock="noise")
    else:
        found.evidence.append(f"over the gradient noise D(t_w), the {normalised.evidence[0]}")
    return "msd", found


@dataclass
class _Finding:
    kind: Kind
    rates: list[AgingRate]
    evidence: list[str]
    stops_at: int | None = None
    clock: Literal["steps", "noise"] = "steps"


def _judge(curves: Curves) -> _Finding:
    name = curves.label
    shifts = _Shifts(curves)
    times = shifts.waiting_times
    lost = shifts.lost()
    if len(times) < _FEWEST_TIMES or times[-1] < 10 * times[0]:
        span = f"{len(times)} waiting times" + (f" from {times[0]:,} to {times[-1]:,}" if len(times) else "")
        words = f"{span} can be compared; {_FEWEST_TIMES} over a decade are needed"
        return _Finding("cannot tell", [], [words, *([lost] if lost else [])])
    if times[-1] < _FAR_ENOUGH * shifts.last:
        return _Finding("cannot tell", [], [str(lost)])
    end = len(times) - 1
    late_start = min(int(np.searchsorted(times, shifts.last / 10.01)), end - 2)
    whole, late = shifts.rate(0, end), shifts.rate(late_start, end)
    last = shifts.rate(min(int(np.searchsorted(times, shifts.last / 3.2)), end - 2), end)
    when = "in the last decade" if times[late_start] >= shifts.last / 10.01 else "at the end"
    # A stop within the last decade would show in its later half. A wide interval alone is no sign of a stop.
    if late.ages and last.rate > max(last.least, late.rate / 2):
        evidence = [f"{name} still ages {when}: {late}"]
        before = shifts.rate(0, late_start) if late_start >= 2 else None
        if before is not None and before.flat:
            evidence.append(f"before, its curves coincide: {before}")
        return _Finding("aging throughout", [whole, late], evidence)
    if late.speeds_up:
        return _Finding("cannot tell", [whole, late], [f"{name} relaxes faster the later it is looked at: {late}"])
    if not (last.flat if late.ages else late.flat):
        words = f"{name}: the aging {when} is not decided: {late}" + (f", but {last}" if late.ages else "")
        return _Finding("cannot tell", [whole, late], [words])
    # Find the earliest start with a flat rate from every later start to the end.
    start = int(np.searchsorted(times, last.first)) if late.ages else late_start
    while start > 0 and shifts.rate(start - 1, end).flat:
        start -= 1
    # It can lie too far back, because a long flat part outweighs a short slope, or too late, by chance.
    corner = shifts.corner(end - 2)
    early = shifts.rate(0, max(corner, 2))
    from_start = bool(times[start] <= 3.2 * times[0])
    stops = early.low > early.least if from_start else early.ages
    if shifts.rate(corner, end).flat and corner > 0 and (stops or not from_start):
        start, from_start = corner, False
    after, early = shifts.rate(start, end), shifts.rate(0, max(start, 2))
    odd = shifts.mismatch(start, end)
    if odd is not None:
        words = f"curves of the {name} coincide where they rise most ({after}), but {odd}"
        return _Finding("cannot tell", [whole, late], [words])
    if from_start:
        return _Finding("no aging", [after, late], [f"curves of the {name} coincide: {after}"])
    if early.ages:
        words = f"{name} ages at first: {early}; then its curves coincide: {after}"
        return _Finding("aging that stops", [whole, late, early, after], [words], int(times[start]))
    words = f"curves of the {name} coincide at the end: {after}; before, they shift without a trend: {early}"
    return _Finding("cannot tell", [whole, late, early, after], [words])


class _Shifts:
    """The vertical distance of each curve from the first curve on a logarithmic axis, at comparable lags.

    Attributes:
        waiting_times: the waiting times that can be compared, ``[n]``.
        last: the last waiting time of the record.
    """

    def __init__(self, curves: Curves) -> None:
        curves = curves.after(0)
        curves = curves.only(np.nan_to_num(curves.mean()).max(axis=-1, initial=0) > 0)
        slopes = smooth_exponent(curves.lags, curves.mean())
        for row, slope in zip(curves.mean(), slopes, strict=True):
            two = np.flatnonzero(row > 0)
            if len(two) == 2:  # too few for a smooth exponent
                slope[two] = np.diff(np.log(row[two])) / np.diff(np.log(curves.lags[two]))
        relaxing = np.isfinite(above_plateaus(curves).mean())
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(curves.values)
        usable: NDArray[np.bool_] = np.asarray(np.isfinite(logs).all(axis=0))
        between = np.zeros(usable.shape) if curves.interpolation is None else np.nan_to_num(curves.interpolation)
        kept: list[int] = []
        heights: list[Array] = []  # [n_replica] each
        offsets: list[float] = []  # errors of the heights from the interpolation
        exponents, ratios = [], []  # of each curve but the first
        self._beyond = False
        for i, waiting_time in enumerate(curves.waiting_times):
            # Compare with the latest curve that has a lag in common.
            for place in reversed(range(len(kept))):
                last = kept[place]
                rise = np.fmin(slopes[last], slopes[i])
                both = usable[last] & usable[i] & np.isfinite(rise)
                if not both.any():
                    continue
                # Lags up to the waiting time are the most informative. With few checkpoints, the shortest common lag
                # may be longer.
                shortest = curves.lags[both][0]
                if shortest > _LONGEST * waiting_time:
                    self._beyond = True
                    continue
                both &= curves.lags <= max(waiting_time, 1.5 * shortest)
                # Keep the relevant part, if there is one. Saturated curves coincide even if they differed before. It is
                # therefore more important that the curves still rise than that the lag is long.
                slow = both & relaxing[last] & relaxing[i]
                slow = slow if slow.any() else both
                steep = rise >= min(_STEEP, 0.5 * rise[slow].max(initial=0))
                for part in (slow, steep, curves.lags >= waiting_time / 30):
                    both = both & part if (both & part).sum() >= min(3, both.sum()) else both
                heights.append(heights[place] + (logs[:, i, both] - logs[:, last, both]).mean(axis=-1))
                offsets.append(offsets[place] + float((between[i, both] + between[last, both]).mean()))
                exponents.append(float(np.nanmean([slopes[last, both], slopes[i, both]])))
                ratios.append(float(np.log(curves.lags[both] / waiting_time).mean()))
                break
            else:
                if kept:
                    continue
                heights, offsets = [np.zeros(curves.n_replica)], [0.0]
            kept.append(i)
            self._beyond = False
        self._lags, self._logs = curves.lags, np.where(usable, logs, np.nan)[:, kept]
        self._between = between[kept]
        self.waiting_times = curves.waiting_times[kept]
        self.last = int(curves.waiting_times[-1]) if len(curves.waiting_times) else 0
        self._x = np.log(self.waiting_times.astype(np.float64))
        self._heights = np.array(heights).reshape(len(kept), curves.n_replica)  # [n_tw, n_replica]
        self._offsets, self._exponents, self._ratios = np.array(offsets), np.array(exponents), np.array(ratios)
        self._noise = noise_around_line(self._x, self._heights.mean(axis=1))

    def lost(self) -> str | None:
        """Return the reason why the last waiting times cannot be compared, or None if they can be."""
        end = int(self.waiting_times[-1]) if len(self.waiting_times) else 0
        if end == self.last:
            return None
        why = "they share no range of lags with earlier ones"
        if self._beyond:
            why = f"the lags that they share with earlier ones are more than {_LONGEST} times the waiting time"
        return (
            f"waiting times after step {end:,} cannot be compared, because {why}: more lags in common are needed, for "
            "example from checkpoints at ten steps per decade"
        )

    def corner(self, last: int) -> int:
        """Return the index of the waiting time at which a straight trend of the heights turns into none.

        It is the corner of the best such line, by least squares. It is at most ``last``.
        """
        heights = self._heights.mean(axis=1)
        squares = [
            np.square(heights - np.polyval(np.polyfit(ramp, heights, 1), ramp)).sum()
            for ramp in (np.minimum(self._x, x) for x in self._x[1 : last + 1])
        ]
        return 1 + int(np.argmin(squares))

    def rate(self, first: int, last: int) -> AgingRate:
        """Return the aging rate over the waiting times of these indices, both included."""
        x, heights = self._x[first : last + 1], self._heights[first : last + 1]
        scale = max(float(self._exponents[first:last].mean()), _LEAST_EXPONENT)
        centred = x - x.mean()
        slopes = -(centred @ heights) / (centred @ centred) / scale
        n = len(slopes)
        if n >= _FEWEST:
            error, freedom = slopes.std(ddof=1) / np.sqrt(n), n - 1
        else:
            # Use the scatter from waiting time to waiting time. The heights are sums of shifts. Their error lies
            # between the errors of independent numbers and of a random walk. Take the larger of the two.
            white = centred @ centred
            walk = np.sum(np.cumsum(centred[::-1])[:-1] ** 2)
            error = self._noise * np.sqrt(max(white, walk)) / white / scale
            freedom = max(len(self._x) - 2, 1)
        # The error of the interpolation has the same sign for all curves of the same shape. It adds up.
        offset = float(abs(centred @ self._offsets[first : last + 1]) / (centred @ centred) / scale)
        half = float(student.ppf(0.5 + _CONFIDENCE / 2, freedom) * error) + offset
        rate = float(slopes.mean())
        times = self.waiting_times
        ratio = float(np.exp(self._ratios[first:last].mean()))
        return AgingRate(int(times[first]), int(times[last]), rate, rate - half, rate + half, ratio)

    def mismatch(self, first: int, last: int) -> str | None:
        """Return the lags at which curves do not coincide, in words, or None if they coincide at all lags.

        A fast process without aging can hide a slow process with aging. In each half decade of lags, the trend of the
        curves with the waiting time must be small, or not larger than its error.
        """
        x = self._x[first : last + 1]
        centred = x - x.mean()
        bands = np.floor(2 * np.log10(self._lags) + 1e-9).astype(np.int64)
        for band in np.unique(bands):
            rows = self._logs[:, first : last + 1, bands == band]
            finite = np.isfinite(rows).all(axis=(0, 1))
            rows = rows[..., finite]
            if rows.shape[-1] == 0:
                continue
            heights = rows.mean(axis=-1).T  # [n_tw, n_replica]
            trends = centred @ heights / (centred @ centred)
            n = len(trends)
            if n >= _FEWEST:
                error = trends.std(ddof=1) / np.sqrt(n)
            else:
                error = noise_around_line(x, heights.mean(axis=1)) / np.sqrt(centred @ centred)
            trend = float(trends.mean())
            offsets = self._between[first : last + 1][:, bands == band][:, finite].mean(axis=-1)
            offset = float(np.abs(centred) @ offsets / (centred @ centred))
            if abs(trend) > _COINCIDE and abs(trend) > 5 * error + offset:
                lags = self._lags[bands == band]
                return f"at lags {lags[0]:,} ... {lags[-1]:,} they change as t_w^{trend:.2f}"
        return None


def noise_around_line(x: Array, heights: Array) -> float:
    """Return the standard deviation of a height from the straight line between its neighbours."""
    if len(x) < 3:
        return np.inf
    part = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    off = heights[1:-1] - (1 - part) * heights[:-2] - part * heights[2:]
    return float(np.sqrt(np.mean(off**2 / (1 + part**2 + (1 - part) ** 2))))


def _last(record: AgingRecord, name: str) -> float | None:
    """Return the last value of a series, if it is from the second half of the run."""
    if name not in record.one_time_names:
        return None
    steps, values = record.one_time(name)
    end = np.add(*record.pairs).max(initial=0)
    return float(values[-1]) if len(values) and np.isfinite(values[-1]) and steps[-1] >= end / 2 else None


def _phase(
    kind: Kind, loss: float | None, accuracy: float | None, fall: float, at_rest: bool | None
) -> tuple[Phase | None, list[str]]:
    """Return the phase that the end of the training suggests, and words."""
    end = f"at the end the training loss is {loss:.3g}" if loss is not None else "at the end of training"
    if accuracy is None:
        missing = "" if kind == "cannot tell" else ": the curves alone do not tell the phase"
        return None, [f"{end}, the accuracy is not in the record{missing}"] if loss is not None else []
    if not 0 <= accuracy <= 1:
        return None, [f"{end}; the accuracy in the record, {accuracy:.4g}, is not a fraction"]
    fitted = accuracy >= _FITTED
    words = [f"{end}, {accuracy:.2%} of the training data are learnt"]
    falls = f"its loss falls by a factor of {fall:.2g} per decade" if np.isfinite(fall) else "its loss still falls"
    if kind == "aging throughout":
        if fitted:
            words.append(
                "it ages although all is learnt: flat directions or fading gradient noise, not a glass's barriers"
            )
        elif accuracy > _NOT_FITTED:
            words.append("so nearly all that the phase is not clear")
        elif loss is None or at_rest is None:
            words.append("whether learning has come to an end is not in the record: a glass, or a short run")
        elif not at_rest:
            words.append(f"it is still learning ({falls}): a glass, or a short run")
        else:
            return "glassy", [*words, "it ages on without the rest, and its loss hardly falls any more, as in a glass"]
    if kind == "aging that stops":
        if fitted:
            words.append(
                "it has learnt all, and moves on without aging" + ("" if at_rest is not False else f": {falls}")
            )
            return "over-parametrised", words
        without = "it has stopped aging without having learnt the training data"
        words.append(without if at_rest is not False else f"it has stopped aging, but is still learning ({falls})")
    return None, words
