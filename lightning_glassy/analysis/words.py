"""The answer in plain words: how much slower the weights move, and whether the network still learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_glassy.analysis.confounders import confounders
from lightning_glassy.analysis.crossings import mean_lag_to_threshold
from lightning_glassy.analysis.curves import Curves, relaxation_curves
from lightning_glassy.analysis.exponent_result import AgingExponent
from lightning_glassy.analysis.growth import jackknife_error
from lightning_glassy.analysis.phase import AgingRate, Verdict, noise_around_line
from lightning_glassy.observables import Array, over_last_decade
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

Confidence = Literal["sure", "doubtful", "unknown"]

_FEWEST = 4  # fewest replicas for an error from their scatter
_LEVELS = 3  # displacements whose lags are compared
_STILL = 0.02  # a loss that changes by less than this part in a decade of steps hardly changes
_FAR = {"msd": "move as far", "normalised_msd": "move as far, over the gradient noise,"}
_NEAR = 1.6  # "a decade before" is a waiting time within this factor of a tenth


@dataclass(frozen=True)
class Slowdown:
    r"""How much longer the weights take to move as far after a later waiting time.

    It is :math:`t^*(b)/t^*(a)`, where :math:`t^*` is the lag to one displacement and a, b are waiting times about a
    decade apart. It is the geometric mean over a few displacements, which both curves reach at lags between a thirtieth
    of the waiting time and the waiting time.

    Attributes:
        first: the earlier waiting time a, in steps.
        last: the later waiting time b, in steps.
        factor: the ratio of the two lags. Above 1 the motion has slowed down.
        error: its standard error. It comes from the jackknife over at least four replicas. With fewer, it comes from
            scatter of the lags around straight lines between neighbouring waiting times.
        observable: name of the observable whose curves are compared.
    """

    first: int
    last: int
    factor: float
    error: float
    observable: str = "msd"

    def __str__(self) -> str:
        value, error = _with_error(self.factor, self.error)
        before, after = f"after step {self.first:,}", f"After step {self.last:,}"
        far = _FAR.get(self.observable, "relax as far")
        if self.error > self.factor / 2:
            return f"{after} it takes {value} ± {error} times as long to {far} as {before}, which is not known well."
        if abs(self.factor - 1) <= max(2 * self.error, 0.02):
            return f"{after} it takes as long to {far} as {before}: {value} ± {error} times."
        if self.factor < 1:
            return f"{after} it takes only {value} ± {error} times as long to {far} as {before}."
        return f"{after} it takes {value} ± {error} times longer to {far} as {before}."


@quiet()
def slowdown(curves: Curves, rate: AgingRate) -> Slowdown | None:
    """Return how much longer the weights take to move as far, over the last decade of an aging rate.

    The logarithm of the ratio is averaged over a few displacements.

    Args:
        curves: the curves that the rate belongs to.
        rate: the aging rate of the last waiting times.

    Returns:
        None if the curves of the two waiting times have no displacement in common, or their error is not known.
    """
    curves = curves.after(0)
    times = curves.waiting_times
    inside = np.flatnonzero((times >= rate.first) & (times <= rate.last))
    if len(inside) < 2:
        return None
    last = int(inside[-1])
    first = int(inside[np.argmin(np.abs(np.log(times[inside[:-1]] * 10.0 / times[last])))])
    levels = _common_levels(curves, first, last)
    if not len(levels):
        return None
    logs = _log_lags(curves, curves.values, levels)
    ratio = float((logs[:, last] - logs[:, first]).mean())
    if curves.n_replica >= _FEWEST:
        parts = (_log_lags(curves, np.delete(curves.values, r, axis=0), levels) for r in range(curves.n_replica))
        without = np.array([(part[:, last] - part[:, first]).mean() for part in parts])
        error = float(jackknife_error(without))
    else:
        x = np.log(times.astype(np.float64))
        scatter = [noise_around_line(x[known], row[known]) for row in logs for known in [np.isfinite(row)]]
        error = float(np.sqrt(2) * max(scatter))  # both lags have it
    factor = float(np.exp(ratio))
    if not (np.isfinite(factor) and np.isfinite(error)):
        return None
    return Slowdown(int(times[first]), int(times[last]), factor, factor * error, curves.name)


def last_slowdown(record: AgingRecord, judged: Verdict, fit: AgingExponent | None = None) -> Slowdown | None:
    """Return :func:`slowdown` over the last decade of a verdict, None if the verdict has no aging rate.

    Args:
        record: the record.
        judged: its verdict.
        fit: its aging exponent, which has the threshold of an overlap.
    """
    if not judged.rates:
        return None
    last = judged.rates[1] if len(judged.rates) > 1 else judged.rates[0]
    eps = fit.eps if fit is not None and fit.observable == judged.observable else None
    return slowdown(relaxation_curves(record, judged.observable, group=judged.group, eps=eps), last)


def _log_lags(curves: Curves, values: Array, levels: Array) -> Array:
    """Return the logarithm of the lag to each level, ``[n_level, n_tw]``, NaN if a level is not reached."""
    lags = [mean_lag_to_threshold(curves.lags, values, float(level)).lags for level in levels]
    return np.asarray(np.log(np.array(lags)))


def _common_levels(curves: Curves, first: int, last: int) -> Array:
    """Return a few displacements that two curves reach at comparable lags, none if there are none."""
    low, high = 0.0, np.inf
    for place in (first, last):
        row, time = curves.mean()[place], curves.waiting_times[place]
        there = np.isfinite(row) & (row > 0)
        for near in (there & (curves.lags >= time / 30) & (curves.lags <= time), there & (curves.lags <= time), there):
            if near.sum() >= 2:
                low, high = max(low, row[near].min()), min(high, row[near].max())
                break
        else:
            return np.empty(0)
    if not low < high:
        return np.array([high])
    return np.geomspace(low, high, _LEVELS + 2)[1:-1]


def in_words(record: AgingRecord, judged: Verdict, fit: AgingExponent | None = None) -> list[str]:
    """Return the answer in a few plain sentences, for a reader who knows no glasses.

    The sentences are: how much longer the weights take to move as far (:class:`Slowdown`), whether the network ages,
    whether it still learns, and how far the weights have moved in the last decade of steps. A sentence is left out if
    the record does not have its number.

    Args:
        record: the record.
        judged: its verdict.
        fit: its aging exponent.
    """
    found = last_slowdown(record, judged, fit)
    sentences = [] if found is None else [str(found)]
    sentences.append(_whether(judged))
    sentences += _learning(record)
    moved = moved_in_last_decade(record, judged.group)
    if moved is not None:
        step, part = moved
        sentences.append(
            f"Between step {round(step / 10):,} and step {step:,} the weights moved by {part:.3g} % of their rms size."
        )
    return sentences


def _whether(judged: Verdict) -> str:
    if judged.clock == "noise":
        return "Only the gradient noise fades: against the noise that has acted, the motion does not slow down."
    if judged.kind == "aging throughout":
        return "It slows down to the end of the run: it ages."
    if judged.kind == "aging that stops":
        return f"It slows down at first, and stops slowing down at about step {judged.stops_at:,}."
    if judged.kind == "no aging":
        return "It does not slow down: it does not age."
    return "Whether it ages cannot be told from this run."


def _learning(record: AgingRecord) -> list[str]:
    """Return whether the training loss still falls, in a sentence, or nothing without a loss in the last decade."""
    if "train_loss" not in record.one_time_names:
        return []
    steps, loss = record.one_time("train_loss")
    good = (steps > 0) & np.isfinite(loss)
    steps, loss = steps[good], loss[good]
    if len(steps) < 2:
        return []
    before = int(np.argmin(np.abs(np.log(steps * 10.0 / steps[-1]))))
    if not 1 / _NEAR < steps[before] * 10.0 / steps[-1] < _NEAR or not loss[before] > 0:
        return []
    change = float(loss[-1] / loss[before] - 1)
    if abs(change) < _STILL:
        return [f"It hardly learns any more (the training loss changed by {100 * change:+.1f} % in the last decade)."]
    if change > 0:
        return [f"It does not learn any more (the training loss rose by {100 * change:.0f} % in the last decade)."]
    return [f"It still learns (the training loss fell by {-100 * change:.0f} % in the last decade)."]


def moved_in_last_decade(record: AgingRecord, group: str = "all") -> tuple[int, float] | None:
    """Return the last step n with a known displacement since step n/10, and the displacement in % of the rms weight.

    It is the relative displacement of :func:`lightning_glassy.observables.relative_displacement`, interpolated by
    :func:`lightning_glassy.observables.over_last_decade`. With replicas, it is the mean over them.
    """
    if not {"d2", "s2"} <= set(record.sums):
        return None
    waiting_times, lags = record.pairs
    steps = np.unique(waiting_times + lags)[-64:]
    values: Array = record.relative_displacement(group)
    values = values if record.n_replica is None else values.mean(axis=0)
    found = over_last_decade(record.waiting_times, record.lags, values, steps)
    known = np.flatnonzero(np.isfinite(found))
    return (int(steps[known[-1]]), 100 * float(found[known[-1]])) if len(known) else None


def doubts_of(record: AgingRecord, judged: Verdict, fit: AgingExponent | None = None) -> list[str]:
    """Return all doubts about an answer, each once, the most serious first.

    First come the doubts about the numbers, then other causes of the motion, then the doubts about the fit.
    """
    return list(dict.fromkeys([*record.doubts, *judged.warnings, *([] if fit is None else fit.warnings)]))


def confidence(record: AgingRecord, judged: Verdict) -> Confidence:
    """Return how sure a verdict is: ``"unknown"`` for "cannot tell", ``"doubtful"`` if there are other causes."""
    if judged.kind == "cannot tell":
        return "unknown"
    return "doubtful" if confounders(record) or record.doubts else "sure"


def _with_error(value: float, error: float) -> tuple[str, str]:
    """Write a value and its error with two digits of the error, such as ``("4.2", "0.3")``."""
    if not error > 0:
        return f"{value:.3g}", "0"
    digits = max(0, 1 - int(np.floor(np.log10(error)))) if error < 9.5 else 0
    digits = digits - 1 if digits and round(error, digits) >= 0.3 * 10 ** (1 - digits) else digits
    return f"{value:.{digits}f}", f"{error:.{digits}f}"
