r"""The three regimes of the training loss in logarithmic time, by Baity-Jesi et al. 2018 (arXiv 1803.06969).

(i) The loss is high and nearly constant. (ii) It falls about linearly in the logarithm of the time. (iii) It is at the
bottom. In the paper, the displacements do not age in (i), and age in (ii). In over-parametrised networks, they stop
aging in (iii). The paper gives no rule for the ends of the regimes. Here, the rule is a fit of the simplest such curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher

from lightning_glassy.analysis.exponent_result import NotEnoughDataError
from lightning_glassy.observables import Array, log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

_FEWEST = 8  # fewest points for a curve with four parameters
_SPAN = 10.0  # least ratio of the last step to the first
_PER_INTERVAL = 4  # possible places of a corner from one measured step to the next, ...
_PLACES = 400  # ... and the most in all
_MOST_VALUES = 500  # more values are averaged before the fit
_FALLS = 0.25  # the loss falls if the fitted curve leaves at most this part of the squares about a constant
_SEEN = 3  # a regime counts as seen with so many points, ...
_BREADTH = 10**0.25  # ... if they span this factor
_ODD = 0.1  # a larger deviation from the fitted curve, as part of the fall, causes a warning
_RISES = 0.2  # a larger rise of the loss, as part of the fall, causes a warning
_CONFIDENCE = 0.95
_AT_REST = 1 / 0.7  # training is at rest if its loss falls by no more than this factor per decade at the end
_SHORTEST = 3.2  # and is known over at least this factor of steps


@dataclass(frozen=True)
class LossRegimes:
    """The step at which the loss starts to fall, and the step at which it reaches the bottom. ``print`` shows both.

    Attributes:
        series: name of the loss.
        steps: steps after step 0 at which the loss is finite, ``[n]``.
        fitted: the curve of three straight pieces at these steps, ``[n]``.
        high: the loss of the first regime, or the mean loss if the loss does not fall.
        low: the loss at the bottom, or at the end if the bottom is not reached.
        falls_from: step (a real number) at which the second regime begins. None if the first regime was not seen.
        bottom_from: step at which the third regime begins, on a linear scale of the loss. None if this regime was not
            seen.
        falls_interval: the steps that the fit allows for ``falls_from`` (95 %, for independent deviations).
        bottom_interval: the steps that the fit allows for ``bottom_from``.
        deviation: root mean square deviation from the curve, as part of the fall. NaN if the loss does not fall.
        warnings: reasons for doubt, in words.
        fall: factor by which the loss falls per decade of steps at the end (:func:`rest`), below 1 if it rises. NaN if
            it is not known.
        at_rest: whether the training is at rest at the end (:func:`rest`). None if this is not known.
    """

    series: str
    steps: NDArray[np.int64]
    fitted: Array
    high: float
    low: float
    falls_from: float | None
    bottom_from: float | None
    falls_interval: tuple[float, float] | None
    bottom_interval: tuple[float, float] | None
    deviation: float
    warnings: list[str] = field(default_factory=list)
    fall: float = np.nan
    at_rest: bool | None = None

    @property
    def falls(self) -> bool:
        """Whether the loss falls."""
        return not np.isnan(self.deviation)

    def __str__(self) -> str:
        first, last = int(self.steps[0]), int(self.steps[-1])
        lines = [f"regimes of the loss {self.series!r} (steps {first:,} ... {last:,})"]
        if not self.falls:
            lines.append(f"  it does not fall; its mean is {self.high:.3g}")
        else:
            until, since = _step(self.falls_from, self.falls_interval), _step(self.bottom_from, self.bottom_interval)
            lines += [
                f"  (i) high, {self.high:.3g}: {f'until step {until}' if until else 'over before it was measured'}",
                f"  (ii) falling about linearly in log t; deviation {self.deviation:.1%} of the fall",
                f"  (iii) at the bottom{self._scale}, {self.low:.3g}: from step {since}{self._but}"
                if since
                else f"  (iii) the bottom is not reached: {self.low:.3g} at the end",
            ]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])

    @property
    def _scale(self) -> str:
        return " on a linear scale" if self.at_rest is False else ""

    @property
    def _but(self) -> str:
        return f",\n        but still falling by a factor of {self.fall:.2g} per decade of steps" if self._scale else ""


def _step(at: float | None, interval: tuple[float, float] | None) -> str:
    return "" if at is None or interval is None else f"{at:,.0f} ({interval[0]:,.0f} ... {interval[1]:,.0f})"


@quiet()
def loss_regimes(record: AgingRecord, series: str = "train_loss") -> LossRegimes:
    r"""Find the two crossover steps of a loss curve.

    Fit a curve of three straight pieces against :math:`\ln t` (constant, falling, constant) with corners :math:`t_1 <
    t_2`. The fit is by least squares at the measured steps after step 0, all with the same weight. The possible places
    of the corners are the measured steps, and three places between neighbours. The loss falls if the curve leaves less
    than a quarter of the squares about a constant. The first or the third regime counts as seen if it has three
    measured steps that span a factor of 1.8.

    More than 500 values are averaged before the fit, over intervals of equal width in the logarithm of the step.

    The scale of the loss is linear. A loss near zero that still falls by orders of magnitude is therefore at the
    bottom. :attr:`LossRegimes.at_rest` is False then.

    Args:
        record: one run, or replicas (their mean loss).
        series: name of the one-time series. :class:`~lightning_glassy.LogTimeEvaluator` writes ``"train_loss"``,
            ``"val_loss"`` and others.

    Raises:
        KeyError: the record has no such series.
        NotEnoughDataError: there are fewer than 8 finite values after step 0, or they span less than a decade of steps.
    """
    steps, loss = record.one_time(series)
    good = (steps > 0) & np.isfinite(loss)
    lost = int((steps > 0).sum() - good.sum())
    steps, loss = steps[good], loss[good]
    if len(steps) < _FEWEST or steps[-1] < _SPAN * steps[0]:
        raise NotEnoughDataError(
            f"series={series!r} has {len(steps)} finite values after step 0"
            + (f", at steps {steps[0]:,} ... {steps[-1]:,}" if len(steps) else "")
            + f": regimes need {_FEWEST} over a decade"
        )
    warnings = [f"the loss is not finite at {lost} of the steps, which are left out"] if lost else []
    x = np.log(steps.astype(np.float64))
    unit = float(np.abs(loss).max()) or 1.0  # the squares of very large losses would overflow
    loss = loss / unit
    first_of = log_spaced(steps, _MOST_VALUES)
    counts = np.diff(first_of, append=len(x))
    centres, means = (np.add.reduceat(part, first_of) / counts for part in (x, loss))
    n_places = min(_PER_INTERVAL * (len(centres) - 1) + 1, _PLACES)
    places = np.interp(np.linspace(0, len(centres) - 1, n_places), np.arange(len(centres)), centres)
    squares, highs, drops = _fits(centres, means, counts, places)
    if len(centres) < len(x):
        squares += ((loss - np.repeat(means, counts)) ** 2).sum()
        warnings.append(f"{len(x):,} values of the loss are averaged to {len(centres)} for the fit")
    first, second = np.unravel_index(int(np.argmin(squares)), squares.shape)
    best, constant = float(squares[first, second]), float(((loss - loss.mean()) ** 2).sum())
    high, drop = float(highs[first, second]), float(drops[first, second])
    # The squares about a constant loss are rounding errors.
    if not drop > 1e-9 or best > _FALLS * constant:
        mean = unit * float(loss.mean())
        level = np.full(len(loss), mean)
        fall, still = _rest(steps, loss, None)
        return LossRegimes(series, steps, level, mean, mean, None, None, None, None, np.nan, warnings, fall, still)

    fitted = high - drop * _ramp(x, places[first], places[second])
    deviation = float(np.sqrt(best / len(loss)) / drop)
    allowed = best * (1 + fisher.ppf(_CONFIDENCE, 1, len(x) - 4) / (len(x) - 4))
    falls_from, falls_interval = None, None
    if _seen(steps[x <= places[first]]):
        falls_from, falls_interval = float(np.exp(places[first])), _interval(squares.min(axis=1), places, allowed)
    bottom_from, bottom_interval = None, None
    bottom = x >= places[second]
    if _seen(steps[bottom]):
        bottom_from, bottom_interval = float(np.exp(places[second])), _interval(squares.min(axis=0), places, allowed)
    if deviation > _ODD:
        warnings.append(f"the loss deviates from three straight pieces by {deviation:.0%} of its fall: several falls?")
    rise = loss - np.minimum.accumulate(loss)
    if rise.max() > _RISES * drop:
        warnings.append(
            f"the loss rises again, by {rise.max() / drop:.0%} of its fall, at step {steps[np.argmax(rise)]:,}"
        )
    fall, still = _rest(steps, loss, bottom_from)
    return LossRegimes(
        series,
        steps,
        unit * fitted,
        unit * high,
        unit * (high - drop),
        falls_from,
        bottom_from,
        falls_interval,
        bottom_interval,
        deviation,
        warnings,
        fall,
        still,
    )


@quiet()
def rest(record: AgingRecord, series: str = "train_loss") -> tuple[float, bool | None]:
    r"""Return how fast a loss falls at the end of a run, and whether the training is at rest.

    The first number is the factor per decade of steps, :math:`10^{-s}` with the slope :math:`s` of :math:`\log_{10}` of
    the loss against :math:`\log_{10}` of the step, by least squares. The slope belongs to the last decade of steps, or
    to the third regime of :func:`loss_regimes` if it is shorter. The training is at rest if the factor is at most
    1/0.7. A loss that is exactly 0 is at rest. A loss that becomes negative has no factor, and is at rest if the third
    regime was seen.

    Args:
        record: one run, or replicas (their mean loss).
        series: name of the one-time series.

    Returns:
        The factor, NaN if there is none, and whether the training is at rest, None if the record does not determine it.
    """
    if series not in record.one_time_names:
        return np.nan, None
    try:
        regimes = loss_regimes(record, series)
    except NotEnoughDataError:
        steps, loss = record.one_time(series)
        good = (steps > 0) & np.isfinite(loss)
        return _rest(steps[good], loss[good], None)
    return regimes.fall, regimes.at_rest


def _rest(steps: NDArray[np.int64], loss: Array, bottom_from: float | None) -> tuple[float, bool | None]:
    early = steps[steps <= steps[-1] / _SHORTEST] if len(steps) else steps
    if len(early) == 0:
        return np.nan, None
    since = int(early[np.argmin(np.abs(np.log(early * 10.0 / steps[-1])))])
    late = steps >= max(since, 0.999 * (bottom_from or 0))
    x, y = np.log10(steps[late].astype(np.float64)), loss[late]
    if y[-1] == 0:
        return np.nan, True
    if not (y > 0).all():
        return np.nan, bottom_from is not None
    fall = float(10 ** -np.polyfit(x, np.log10(y), 1)[0])
    return fall, fall <= _AT_REST


def _ramp(x: Array, first: Array, second: Array) -> Array:
    """Return 0 up to the first corner, 1 from the second corner on, and a straight line between them."""
    return np.clip((x - first) / (second - first), 0.0, 1.0)


def _fits(x: Array, loss: Array, weights: NDArray[np.int64], places: Array) -> tuple[Array, Array, Array]:
    """Return the remaining squares, the high level and the fall of the best curve, for each pair of corners."""
    n, total = len(places), weights.sum()
    mean = (loss * weights).sum() / total
    squares, highs, drops = np.full((n, n), np.inf), np.zeros((n, n)), np.zeros((n, n))
    for i in range(n - 1):
        ramps = _ramp(x, places[i], places[i + 1 :, None])  # [n - i - 1, n_step]
        means = (ramps * weights).sum(axis=1) / total
        centred = ramps - means[:, None]
        variances = (centred**2 * weights).sum(axis=1)
        # A ramp beyond all points is constant at the points, and has no variance.
        drop = -np.divide(centred @ (loss * weights), variances, out=np.zeros(n - i - 1), where=variances > 0)
        high = mean + drop * means
        squares[i, i + 1 :] = ((loss - high[:, None] + drop[:, None] * ramps) ** 2 * weights).sum(axis=1)
        highs[i, i + 1 :], drops[i, i + 1 :] = high, drop
    return squares, highs, drops


def _seen(steps: NDArray[np.int64]) -> bool:
    return len(steps) >= _SEEN and bool(steps[-1] >= _BREADTH * steps[0])


def _interval(profile: Array, places: Array, allowed: float) -> tuple[float, float]:
    """Return the range of places at which a corner leaves few enough squares, with one more place on either side."""
    inside = np.flatnonzero(profile <= allowed)
    low, high = places[max(inside[0] - 1, 0)], places[min(inside[-1] + 1, len(places) - 1)]
    return float(np.exp(low)), float(np.exp(high))
