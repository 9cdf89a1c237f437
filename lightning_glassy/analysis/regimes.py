r"""The three regimes of the training loss in logarithmic time, of Baity-Jesi et al. 2018 (arXiv 1803.06969).

(i) the loss is high and nearly constant, (ii) it falls about linearly in the logarithm of the time, (iii) it is at the
bottom. The paper finds the displacements not to age in (i), to age in (ii), and in over-parametrised networks to stop
aging in (iii); it gives no rule for where one ends. The rule here is a fit of the simplest such curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher

from lightning_glassy.analysis.exponents import NotEnoughDataError
from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord

_FEWEST = 8  # points for a curve of four parameters
_SPAN = 10.0  # first to last step, at least
_PER_INTERVAL = 4  # places for a corner from one measured step to the next, ...
_PLACES = 400  # ... and at most in all
_FALLS = 0.25  # of the squares about a constant, what the fitted curve may leave
_SEEN = 3  # points in a regime, and ...
_BREADTH = 10**0.25  # ... the factor that they span, before it counts as seen
_ODD = 0.1  # deviation from the fitted curve, as part of the fall, from which on it is said
_RISES = 0.2  # rise of the loss, as part of the fall, likewise
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class LossRegimes:
    """Where the loss starts to fall, and where it reaches the bottom. Prints as a few lines.

    Attributes:
        series: name of the loss.
        steps: at which it was measured and finite, after step 0, ``[n]``.
        fitted: the curve of three straight pieces there, ``[n]``.
        high: the loss of the first regime; the mean of all where the loss does not fall.
        low: the loss at the bottom; where that is not reached, at the end.
        falls_from: step (a real number) at which the second regime begins; None where the first was not seen.
        bottom_from: step at which the third regime begins; None where that was not seen.
        falls_interval: the steps that the fit allows for ``falls_from`` (95 %, were the deviations independent).
        bottom_interval: likewise for ``bottom_from``.
        deviation: root mean square deviation from the curve, as part of the fall; NaN where the loss does not fall.
        warnings: what to doubt, in words.
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

    @property
    def falls(self) -> bool:
        """Whether the loss falls at all."""
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
                f"  (iii) at the bottom, {self.low:.3g}: from step {since}"
                if since
                else f"  (iii) the bottom is not reached: {self.low:.3g} at the end",
            ]
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])


def _step(at: float | None, interval: tuple[float, float] | None) -> str:
    return "" if at is None or interval is None else f"{at:,.0f} ({interval[0]:,.0f} ... {interval[1]:,.0f})"


def loss_regimes(record: AgingRecord, series: str = "train_loss") -> LossRegimes:
    r"""The two crossover steps of a loss curve.

    Rule: the curve of three straight pieces against :math:`\ln t` (constant, falling, constant; corners
    :math:`t_1 < t_2`) that fits the loss at the measured steps after step 0 best, by least squares, each step with the
    same weight. The corners are looked for at the measured steps and at three places between neighbours. The loss
    falls if that curve leaves less than a quarter of the squares that a constant leaves; and the first or the third
    regime counts as seen if it holds three measured steps that span a factor of 1.8.

    The scale of the loss is linear: a loss that goes on to fall by orders of magnitude near zero is at the bottom.

    Args:
        record: one run, or replicas (their mean loss).
        series: name of the one-time series; :class:`~lightning_glassy.LogTimeEvaluator` writes ``"train_loss"``,
            ``"val_loss"`` and others.

    Raises:
        KeyError: the record has no such series.
        NotEnoughDataError: fewer than 8 finite values after step 0, or less than a decade of steps.
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
    n_places = min(_PER_INTERVAL * (len(x) - 1) + 1, _PLACES)
    places = np.interp(np.linspace(0, len(x) - 1, n_places), np.arange(len(x)), x)
    unit = float(np.abs(loss).max()) or 1.0  # squares of what is far from 1 would overflow
    loss = loss / unit
    squares, highs, drops = _fits(x, loss, places)
    first, second = np.unravel_index(int(np.argmin(squares)), squares.shape)
    best, constant = float(squares[first, second]), float(((loss - loss.mean()) ** 2).sum())
    high, drop = float(highs[first, second]), float(drops[first, second])
    # A constant has rounding for squares.
    if not drop > 1e-9 or best > _FALLS * constant:
        mean = unit * float(loss.mean())
        level = np.full(len(loss), mean)
        return LossRegimes(series, steps, level, mean, mean, None, None, None, None, np.nan, warnings)

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
        start, end = float(loss[bottom][0]), float(loss[bottom][-1])
        if 0 < end < start / 2:
            words = f"from {unit * start:.2g} to {unit * end:.2g}"
            warnings.append(f"at the bottom the loss still falls, {words}: slowly on this scale")
    if deviation > _ODD:
        warnings.append(f"the loss deviates from three straight pieces by {deviation:.0%} of its fall: several falls?")
    rise = loss - np.minimum.accumulate(loss)
    if rise.max() > _RISES * drop:
        warnings.append(
            f"the loss rises again, by {rise.max() / drop:.0%} of its fall, at step {steps[np.argmax(rise)]:,}"
        )
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
    )


def _ramp(x: Array, first: Array, second: Array) -> Array:
    """0 up to the first corner, 1 from the second on, straight between them."""
    return np.clip((x - first) / (second - first), 0.0, 1.0)


def _fits(x: Array, loss: Array, places: Array) -> tuple[Array, Array, Array]:
    """For each pair of corners the squares that the best curve leaves, its high level and its fall, ``[n, n]``."""
    n = len(places)
    squares, highs, drops = np.full((n, n), np.inf), np.zeros((n, n)), np.zeros((n, n))
    for i in range(n - 1):
        ramps = _ramp(x, places[i], places[i + 1 :, None])  # [n - i - 1, n_step]
        centred = ramps - ramps.mean(axis=1, keepdims=True)
        variances = (centred**2).sum(axis=1)
        # A ramp that lies beyond all points, or between two of them, is no more than a step.
        drop = -np.divide(centred @ loss, variances, out=np.zeros(n - i - 1), where=variances > 0)
        high = loss.mean() + drop * ramps.mean(axis=1)
        squares[i, i + 1 :] = ((loss - high[:, None] + drop[:, None] * ramps) ** 2).sum(axis=1)
        highs[i, i + 1 :], drops[i, i + 1 :] = high, drop
    return squares, highs, drops


def _seen(steps: NDArray[np.int64]) -> bool:
    return len(steps) >= _SEEN and bool(steps[-1] >= _BREADTH * steps[0])


def _interval(profile: Array, places: Array, allowed: float) -> tuple[float, float]:
    """The places at which a corner leaves no more squares than allowed, and one to either side."""
    inside = np.flatnonzero(profile <= allowed)
    low, high = places[max(inside[0] - 1, 0)], places[min(inside[-1] + 1, len(places) - 1)]
    return float(np.exp(low)), float(np.exp(high))
