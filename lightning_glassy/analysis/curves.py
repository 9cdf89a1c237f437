"""The curves for the analysis: one relaxing quantity of a record as an array, with the replicas first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from lightning_glassy.observables import Array, log_spaced, relaxation_of
from lightning_glassy.observables.arrays import over_replicas, quiet
from lightning_glassy.record import AgingRecord

TOO_SHORT = "too short for an exponent"
"""The beginning of the sentence about a record with too few waiting times."""

MOST_CURVES = (40, 60)
"""Waiting times and lags that a record with many is thinned to, for an analysis of each curve."""

_MANY = (25, 100)  # waiting times and lags that are analysed without leaving any out
_PER_DECADE = 10  # lags per decade of curves that share hardly any lags
_BORROWED = 1.5  # factor on an error that comes from another curve
_FEWEST_TIMES, _LEAST_DECADES = 4, 1.6  # an exponent needs so many waiting times over so many decades


@dataclass(frozen=True)
class Curves:
    """A quantity that grows from 0 as the weights relax, for every replica, waiting time and lag.

    Attributes:
        name: the observable that relaxes.
        waiting_times: steps, increasing, int64 ``[n_tw]``.
        lags: steps, increasing and positive, int64 ``[n_lag]``.
        values: float64 ``[n_replica, n_tw, n_lag]``, NaN if not measured.
        doubts: the replicas, waiting times and lags that were left out, in words. Empty if there are none.
        interpolation: systematic error of the logarithm of each value from the interpolation between lags, the same for
            all replicas, ``[n_tw, n_lag]``. It is 0 for a measured value, and NaN if there is no value. None if no
            value is interpolated.
    """

    name: str
    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    values: Array
    doubts: tuple[str, ...] = ()
    interpolation: Array | None = None

    @property
    def label(self) -> str:
        """The name of this quantity in texts and on axes, such as ``"MSD"`` or ``"overlap 1 - Q"``."""
        return relaxation_of(self.name).label

    @property
    def n_replica(self) -> int:
        """Number of independent realisations, 1 for a single run."""
        return len(self.values)

    @property
    def diverged(self) -> list[int]:
        """Replicas that are not finite at a pair at which another replica is finite. These pairs have no mean."""
        finite = np.isfinite(self.values)
        return [i for i in range(self.n_replica) if (finite.any(axis=0) & ~finite[i]).any()]

    def mean(self) -> Array:
        """Return the mean over the replicas, ``[n_tw, n_lag]``."""
        return over_replicas(self.values)[0]

    def sem(self) -> Array:
        """Return the standard error of the mean over the replicas, ``[n_tw, n_lag]``, NaN for a single run."""
        return over_replicas(self.values)[1]

    def between(self, first: int, last: int) -> Curves:
        """Return the curves of the waiting times ``first ... last``."""
        return self.only((self.waiting_times >= first) & (self.waiting_times <= last))

    def after(self, step: float) -> Curves:
        """Return the curves of the waiting times after a step."""
        return self.only(self.waiting_times > step)

    def only(self, kept: NDArray[np.bool_]) -> Curves:
        """Return the curves of the waiting times that a mask ``[n_tw]`` selects."""
        error = None if self.interpolation is None else self.interpolation[kept]
        return replace(self, waiting_times=self.waiting_times[kept], values=self.values[:, kept], interpolation=error)

    def thinned(self, waiting_times: int, lags: int) -> Curves:
        """Return few enough curves for an analysis. More than 25 waiting times or 100 lags are thinned.

        The work of a fit grows with the square of the number of waiting times and more, but the fit has few parameters.

        Args:
            waiting_times: largest number of waiting times in a thinned result. They are evenly spaced in the logarithm.
            lags: largest number of lags in a thinned result.
        """
        n_tw, n_lag = self.values.shape[1:]
        if n_tw <= _MANY[0] and n_lag <= _MANY[1]:
            return self
        rows, columns = log_spaced(self.waiting_times, waiting_times), log_spaced(self.lags, lags)
        words = (
            f"of {n_tw:,} waiting times and {n_lag:,} lags, {len(rows)} and {len(columns)} are analysed, evenly in "
            "their logarithms"
        )
        return replace(
            self,
            waiting_times=self.waiting_times[rows],
            lags=self.lags[columns],
            values=self.values[:, rows[:, None], columns],
            doubts=(*self.doubts, words),
            interpolation=None if self.interpolation is None else self.interpolation[rows[:, None], columns],
        )


@quiet()
def relaxation_curves(
    record: AgingRecord, observable: str = "msd", *, group: str = "all", eps: float | None = None
) -> Curves:
    """Return the relaxation of an observable: a quantity that grows from 0 with the lag.

    The registry has this quantity for each observable. The displacement, the displacement over the gradient noise and
    the decorrelation grow by themselves. For the overlap, the quantity is 1 - Q.

    A lag that a curve lacks between its first and its last lag is interpolated by a monotonic cubic in the logarithms.
    :attr:`Curves.interpolation` is the error of this: the difference between the cubic and a straight line, at the lag
    or at its largest between neighbouring measured lags. A curve of two lags is a straight line there. Its error comes
    from the bend of the curve of the nearest waiting time with three lags. If the curves lack more
    than half of the lags, as in a record of checkpoints, the result has ten lags per decade at most. Each of them is
    the lag in its tenth of a decade that the latest waiting time has.

    Replicas that are copies of others, and replicas without a finite value, are left out if others remain
    (:meth:`AgingRecord.independent`). :attr:`Curves.doubts` names them.

    Args:
        record: a single run, or replicas.
        observable: one of :func:`lightning_glassy.observables.relaxing`, such as ``"msd"``.
        group: name of the group of parameters.
        eps: threshold of the overlap.

    Raises:
        ValueError: there is no such observable, ``eps`` is given for another observable than the overlap, the record
            has no pair at a positive lag, or the record lacks the sums of the observable.
        KeyError: the record does not have the group, or no gradient noise of the group.
    """
    record, doubts = record.independent()
    values = relaxation_of(observable).of(record.observable(observable, group, eps=eps))
    positive = record.lags > 0
    if not positive.any():
        raise ValueError("the record holds no pair at a positive lag yet")
    replicas = values if record.n_replica is not None else values[None]
    lags, replicas = record.lags[positive], replicas[..., positive]
    measured, error = _measured(record)[:, positive], None
    if (_between(measured) & ~measured).any():
        columns = _common_lags(lags, measured) if _sparse(measured) else np.arange(len(lags))
        replicas, error = _filled(lags, replicas, measured, columns)
        lags = lags[columns]
    alive = np.isfinite(replicas).any(axis=(1, 2))
    if alive.any() and not alive.all():
        broken = np.flatnonzero(~alive).tolist()
        doubts.append(
            f"of the replicas {broken} (counted from 0) nothing is finite: they have diverged, and are left out"
        )
        replicas = replicas[alive]
    curves = Curves(observable, record.waiting_times, lags, replicas, tuple(doubts), error)
    if curves.diverged:
        words = f"the replicas {curves.diverged} are not finite where others are: those pairs are left out"
        return replace(curves, doubts=(*doubts, words))
    return curves


def _measured(record: AgingRecord) -> NDArray[np.bool_]:
    """Return whether each pair was measured, ``[n_tw, n_lag]``. The value may be NaN."""
    waiting_times, lags = record.pairs
    mask = np.zeros((len(record.waiting_times), len(record.lags)), dtype=bool)
    mask[np.searchsorted(record.waiting_times, waiting_times), np.searchsorted(record.lags, lags)] = True
    return mask


def _between(measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the lags from the first to the last lag of each curve."""
    before, after = (np.maximum.accumulate(measured[:, ::way], axis=1)[:, ::way] for way in (1, -1))
    return np.asarray(before & after)


def _sparse(measured: NDArray[np.bool_]) -> bool:
    """Return whether the curves lack more than half of the lags between their first and their last lag."""
    some = measured[measured.sum(axis=1) > 1]
    return len(some) > 1 and bool(some.sum() < _between(some).sum() / 2)


def _common_lags(lags: NDArray[np.int64], measured: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the place of one lag in each tenth of a decade: the lag that the latest waiting time has."""
    latest = len(measured) - 1 - np.argmax(measured[::-1], axis=0)
    intervals = np.round(_PER_DECADE * np.log10(lags)).astype(np.int64)
    order = np.lexsort((lags, -latest, intervals))
    first = np.flatnonzero(np.diff(intervals[order], prepend=-1))
    return np.sort(order[first])


def _filled(
    lags: NDArray[np.int64], values: Array, measured: NDArray[np.bool_], columns: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Return the values ``[n_replica, n_tw, n]`` at some of the lags, interpolated where they were not measured.

    Also return the errors of their logarithms, ``[n_tw, n]``.
    """
    x = np.log(lags.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs, mean = np.log(values), np.log(values.mean(axis=0))
    result = np.where(measured, values, np.nan)[..., columns]
    error = np.where(measured, 0.0, np.nan)[:, columns]
    bends = [_bends(x[own], row[own]) for own, row in zip(measured & np.isfinite(mean), mean, strict=True)]
    bent = [i for i, (widths, _) in enumerate(bends) if len(widths) > 1]
    for i in np.flatnonzero(measured.any(axis=1)) if bent else []:
        points = np.flatnonzero(measured[i])
        holes = np.flatnonzero(~measured[i, columns] & (columns > points[0]) & (columns < points[-1]))
        right = np.searchsorted(points, columns[holes])
        for logs_of, filled in [*zip(logs[:, i], result[:, i], strict=True), (mean[i], None)]:
            good = np.isfinite(logs_of[points])
            inside = good[right - 1] & good[right]  # never bridge a value that is not finite
            if not inside.any():
                continue
            own, at = points[good], x[columns[holes[inside]]]
            if filled is not None:
                filled[holes[inside]] = np.exp(PchipInterpolator(x[own], logs_of[own])(at))
            else:
                other = bends[min(bent, key=lambda near: abs(near - i))]
                error[i, holes[inside]] = _errors(at, x[own], mean[i, own], bends[i], other)
    return result, error


def _errors(at: Array, x: Array, y: Array, bends: tuple[Array, Array], other: tuple[Array, Array]) -> Array:
    """Return the error of the cubic through a curve, ``[n]``.

    Args:
        at: where the curve is interpolated, ``[n]``.
        x: logarithms of its measured lags.
        y: logarithms of its values.
        bends: result of :func:`_bends` for this curve.
        other: the same for another curve, in case that this curve has two points.
    """
    left = np.searchsorted(x, at) - 1
    width = np.diff(x)[left]
    part = (at - x[left]) / width
    parabola = 4 * part * (1 - part)
    if len(x) == 2:
        widths, heights = other
        wide = widths >= min(width[0] / 2, widths.max())
        return np.asarray(_BORROWED * (heights / widths**2)[wide].max() * width**2 * parabola)
    # A corner of the curve shows in the next interval as well as in its own.
    widths, heights = (np.pad(part, 1, constant_values=end) for part, end in zip(bends, (np.inf, 0.0), strict=True))
    near = left[:, None] + np.arange(3)
    bound = (heights[near] * np.minimum(1, width[:, None] / widths[near]) ** 2).max(axis=1) * parabola
    return np.asarray(np.maximum(bound, np.abs(PchipInterpolator(x, y)(at) - np.interp(at, x, y))))


def _bends(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the width of each interval of a curve, and the largest distance of the cubic from the straight line."""
    if len(x) < 3:
        return np.diff(x), np.zeros(max(len(x) - 1, 0))
    part = np.linspace(0.1, 0.9, 9)
    at = x[:-1, None] + part * np.diff(x)[:, None]
    line = y[:-1, None] + part * np.diff(y)[:, None]
    return np.diff(x), np.asarray(np.abs(PchipInterpolator(x, y)(at) - line).max(axis=1))


@quiet()
def too_short(curves: Curves) -> str | None:
    """Return the reason why a record is too short for an exponent, in one sentence, or None if it is long enough.

    An exponent needs four waiting times after step 0 over 1.6 decades. A waiting time counts if its curve has a
    positive value.

    Args:
        curves: all curves of the record, as :func:`relaxation_curves` returns them.
    """
    used = curves.after(0)
    return too_few(used.waiting_times[np.nan_to_num(used.mean(), posinf=0).max(axis=-1, initial=0) > 0])


def too_few(times: Array | NDArray[np.int64]) -> str | None:
    """Return the reason why some waiting times are too few for an exponent, in one sentence, or None.

    Args:
        times: steps after the origin of the clock, increasing.
    """
    decades = float(np.log10(times[-1] / times[0])) if len(times) else 0.0
    if len(times) >= _FEWEST_TIMES and decades >= _LEAST_DECADES:
        return None
    if len(times) == 0:
        found = "no waiting time after step 0 has a positive value"
    elif len(times) == 1:
        found = f"1 waiting time ({times[0]:,.0f})"
    else:
        found = f"{len(times)} waiting times span {decades:.1f} decades ({times[0]:,.0f} ... {times[-1]:,.0f})"
    return f"{TOO_SHORT}: {found}; at least {_FEWEST_TIMES} over {_LEAST_DECADES} decades are needed"
