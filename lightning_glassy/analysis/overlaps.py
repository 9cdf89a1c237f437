r"""The overlap at any threshold :math:`\epsilon` after the run, from histograms of the displacements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array, fold
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import quoted

_PROFILE = "displacement"


@dataclass(frozen=True)
class OverlapAt:
    r"""The overlap :math:`Q_\epsilon` at a threshold that was not counted during the run.

    Attributes:
        eps: the threshold.
        waiting_times: waiting times that have a histogram, in steps, int64 ``[n_tw]``.
        lags: lags that have a histogram, in steps, int64 ``[n_lag]``.
        values: the overlap, float64 ``[n_tw, n_lag]``. NaN at pairs without a histogram.
        low: the overlap is at least this, ``[n_tw, n_lag]``. It is the overlap at the next lower edge of the bins.
        high: the overlap is at most this, ``[n_tw, n_lag]``. It is the overlap at the next higher edge of the bins.
    """

    eps: float
    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    values: Array
    low: Array
    high: Array

    @property
    def curves(self) -> Curves:
        """The quantity 1 - Q as curves, for :func:`~lightning_glassy.analysis.lag_to_threshold`, figures and fits."""
        return Curves("overlap", self.waiting_times, self.lags, 1 - self.values[None])


@quiet()
def overlap_at(record: AgingRecord, eps: float | None = None, *, factor: float | None = None) -> OverlapAt:
    r"""Return the overlap at any threshold after the run, from histograms of the displacements.

    The callback :class:`~lightning_glassy.DisplacementDistribution` makes the histograms. They are counts of
    :math:`|\Delta w|/\sqrt\Delta`, with ten bins per decade from 0.001 to 1000. Their cumulative sum is
    :math:`Q(\epsilon = e_k\sqrt\Delta)` at the edges :math:`e_k` of the bins. It is exact there, up to the few
    displacements that lie on an edge. Between two edges, a monotonic cubic in :math:`\ln\epsilon` interpolates it.
    ``low`` and ``high`` are the overlaps at both edges, and the true overlap lies between them.

    The histograms include all measured parameters. The overlap of Winter and Janssen 2024 (arXiv 2405.13098) leaves out
    the output layer. To compare with it, count during the run, and use ``record.overlap(eps, group)`` of a group
    without the output layer.

    Args:
        record: a single run with the profile ``"displacement"``.
        eps: the threshold, positive. Give either ``eps`` or ``factor``.
        factor: take as the threshold the standard deviation of all weights, at the first waiting time, over this
            factor. Networks with weights of different size can then be compared. Winter and Janssen 2024 use 300, 400,
            500, 1000 and 6000 for MNIST, and 100 by default
            (:func:`~lightning_glassy.observables.relative_overlap_thresholds` makes thresholds for the run).

    Raises:
        KeyError: the record has no histograms of displacements.
        ValueError: the record has replicas, not exactly one of ``eps`` and ``factor`` is given, or it is not positive.

    Example:
        >>> record = AgingRecord({"all": 100})
        >>> record.append(10, 5, [[4.0, 1.0, 98.0, 100.0, 100.0, 0.0, 0.0]])  # a root mean square of 0.2
        >>> record.append_profile("displacement", 10, 5, [-1.0, -0.1, 0.1, 1.0], [5, 30, 20, 35, 10])
        >>> overlap_at(record, 0.2).values.item(), overlap_at(record, 0.02).values.item()
        (0.85, 0.2)
        >>> between = overlap_at(record, 0.1)
        >>> between.low.item(), between.values.round(2).item(), between.high.item()
        (0.2, 0.65, 0.85)
    """
    name, value = ("eps", eps) if factor is None else ("factor", factor)
    if (eps is None) == (factor is None) or value is None:
        raise ValueError(f"eps={eps} and factor={factor}: give one of them")
    if not 0 < value < np.inf:
        raise ValueError(f"{name}={value} must be a positive number")
    if record.n_replica is not None:
        raise ValueError(f"n_replica={record.n_replica}: histograms belong to a single run; analyse each run by itself")
    if _PROFILE not in record.profile_names:
        raise KeyError(
            f"no profile {_PROFILE!r}; there are {quoted(record.profile_names)}. Add the callback "
            "DisplacementDistribution() to the run"
        )
    threshold = value if factor is None else _spread(record) / factor
    found = record.profile(_PROFILE)
    edges, counts = fold(found.grid, found.values)
    below = np.cumsum(counts, axis=1)[:, :-1] / counts.sum(axis=1, keepdims=True)  # Q at each edge
    waiting_times, lags = np.unique(found.waiting_times), np.unique(found.lags)
    results = np.full((3, len(waiting_times), len(lags)), np.nan)
    places = np.searchsorted(waiting_times, found.waiting_times), np.searchsorted(lags, found.lags)
    scaled = threshold / np.sqrt(_displacements(record, found.waiting_times, found.lags))
    for i, (x, overlaps) in enumerate(zip(scaled, below, strict=True)):
        results[:, places[0][i], places[1][i]] = _overlap(x, edges, overlaps)
    return OverlapAt(threshold, waiting_times, lags, *results)


def _displacements(record: AgingRecord, waiting_times: NDArray[np.int64], lags: NDArray[np.int64]) -> Array:
    """Return the MSD at some pairs, ``[n_pair]``, NaN if the record lacks the pair or the MSD is not finite."""
    rows = np.searchsorted(record.waiting_times, waiting_times).clip(max=len(record.waiting_times) - 1)
    columns = np.searchsorted(record.lags, lags).clip(max=len(record.lags) - 1)
    there = (record.waiting_times[rows] == waiting_times) & (record.lags[columns] == lags)
    msd = record.msd()[rows, columns]
    return np.where(there & np.isfinite(msd), msd, np.nan)


def _overlap(x: float, edges: Array, overlaps: Array) -> tuple[float, float, float]:
    """Return the overlap at x with both bounds, from the overlaps at the edges."""
    if np.isnan(x):
        return np.nan, np.nan, np.nan
    if x == np.inf:  # nothing has moved
        return 1.0, 1.0, 1.0
    near = int(np.argmin(np.abs(np.log(edges / x))))
    if abs(edges[near] / x - 1) < 1e-9:
        return overlaps[near], overlaps[near], overlaps[near]
    at = int(np.searchsorted(edges, x))
    low = overlaps[at - 1] if at > 0 else 0.0
    high = overlaps[at] if at < len(edges) else 1.0
    if at == 0:  # the density is constant near 0
        value = high * x / edges[0]
    elif at == len(edges):
        value = low
    else:
        value = float(PchipInterpolator(np.log(edges), overlaps)(np.log(x)))
    return min(max(value, low), high), low, high


def _spread(record: AgingRecord) -> float:
    """Return the standard deviation of all weights at the first waiting time."""
    if "s2" not in record.sums or "s" not in record.sums:
        raise ValueError(
            f"factor needs the sums 's' and 's2' of the weights, and this record has {quoted(record.sums)}: give eps"
        )
    first = record.moments[int(np.argmin(record.pairs[0])), record.groups.index("all")]
    n = record.n_sampled["all"]
    mean, square = (first[record.sums.index(name)] / n for name in ("s", "s2"))
    spread = float(np.sqrt(square - mean**2))
    if not 0 < spread < np.inf:
        raise ValueError(f"the standard deviation of the weights at the first waiting time is {spread}: give eps")
    return spread
