"""The curves for the analysis: one relaxing quantity of a record as an array, with the replicas first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array, log_spaced, relaxation_of
from lightning_glassy.observables.arrays import over_replicas, quiet
from lightning_glassy.record import AgingRecord

MOST_CURVES = (40, 60)
"""Waiting times and lags that a record with many is thinned to, for an analysis of each curve."""

_MANY = (25, 100)  # waiting times and lags that are analysed without leaving any out


@dataclass(frozen=True)
class Curves:
    """A quantity that grows from 0 as the weights relax, for every replica, waiting time and lag.

    Attributes:
        name: the observable that relaxes.
        waiting_times: steps, increasing, int64 ``[n_tw]``.
        lags: steps, increasing and positive, int64 ``[n_lag]``.
        values: float64 ``[n_replica, n_tw, n_lag]``, NaN if not measured.
        doubts: the replicas, waiting times and lags that were left out, in words. Empty if there are none.
    """

    name: str
    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    values: Array
    doubts: tuple[str, ...] = ()

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
        return replace(self, waiting_times=self.waiting_times[kept], values=self.values[:, kept])

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
        values = self.values[:, rows[:, None], columns]
        return replace(
            self,
            waiting_times=self.waiting_times[rows],
            lags=self.lags[columns],
            values=values,
            doubts=(*self.doubts, words),
        )


@quiet()
def relaxation_curves(
    record: AgingRecord, observable: str = "msd", *, group: str = "all", eps: float | None = None
) -> Curves:
    """Return the relaxation of an observable: a quantity that grows from 0 with the lag.

    The registry has this quantity for each observable. The displacement, the displacement over the gradient noise and
    the decorrelation grow by themselves. For the overlap, the quantity is 1 - Q.

    If the waiting times share hardly any lags, as in a record of checkpoints, the curves are interpolated to common
    lags, ten per decade. The interpolation is linear in the logarithms. It stays within the lags of each curve.

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
    measured = _measured(record)[:, positive]
    if _sparse(measured):
        lags, replicas = _on_common_lags(lags, replicas, measured)
    alive = np.isfinite(replicas).any(axis=(1, 2))
    if alive.any() and not alive.all():
        broken = np.flatnonzero(~alive).tolist()
        doubts.append(
            f"of the replicas {broken} (counted from 0) nothing is finite: they have diverged, and are left out"
        )
        replicas = replicas[alive]
    return Curves(observable, record.waiting_times, lags, replicas, tuple(doubts))


def _measured(record: AgingRecord) -> NDArray[np.bool_]:
    """Return whether each pair was measured, ``[n_tw, n_lag]``. The value may be NaN."""
    waiting_times, lags = record.pairs
    mask = np.zeros((len(record.waiting_times), len(record.lags)), dtype=bool)
    mask[np.searchsorted(record.waiting_times, waiting_times), np.searchsorted(record.lags, lags)] = True
    return mask


def _sparse(measured: NDArray[np.bool_]) -> bool:
    """Return whether the curves lack more than half of the lags between their first and their last lag."""
    some = measured[measured.sum(axis=1) > 1]
    between = some.shape[1] - np.argmax(some, axis=1) - np.argmax(some[:, ::-1], axis=1)
    return len(some) > 1 and some.sum() < between.sum() / 2


def _on_common_lags(
    lags: NDArray[np.int64], values: Array, measured: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Array]:
    low, high = np.log10(lags[0]), np.log10(lags[-1])
    common = np.unique(np.round(10 ** np.arange(low, high + 1e-9, 0.1)).astype(np.int64))
    result = np.full((*values.shape[:-1], len(common)), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, logs = np.log(lags), np.log(values)
        for replica, waiting_time in np.ndindex(values.shape[:-1]):
            own = measured[waiting_time]
            if own.any():
                y = np.interp(np.log(common), x[own], logs[replica, waiting_time, own], left=np.nan, right=np.nan)
                result[replica, waiting_time] = np.exp(y)
    return common, result
