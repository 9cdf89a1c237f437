r"""The differences between replicas: how many coordinates move together (chi_4), and the distance of replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.exponent_result import NotEnoughDataError, wrapped
from lightning_glassy.observables import Array, log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

_MOST_STEPS = 4000  # more comparisons of the replicas are thinned


class Peak(NamedTuple):
    """The maximum of the dynamical susceptibility of one waiting time.

    Attributes:
        waiting_time: step of the reference.
        lag: lag of the maximum, in steps.
        height: chi_4 at the maximum.
        error: standard error of chi_4 there, NaN with two replicas.
    """

    waiting_time: int
    lag: int
    height: float
    error: float


@dataclass(frozen=True)
class Heterogeneity:
    r"""The differences between replicas. ``print`` shows a few lines.

    Attributes:
        waiting_times: steps, ``[n_tw]``.
        lags: steps, ``[n_lag]``.
        chi4: dynamical susceptibility :math:`N\,\mathrm{Var}(Q_\epsilon)`, ``[n_tw, n_lag]``. None without counted
            overlaps.
        chi4_error: standard error of chi4, by the jackknife over replicas.
        eps: threshold of the overlap.
        peaks: the maximum of chi_4 of each waiting time, if it is not at the first or the last lag.
        n_replica: number of replicas.
        steps: steps at which replicas were compared with each other, ``[n_step]``. Empty for runs that were trained
            apart. At most 4000 steps are kept, evenly in the logarithm.
        overlaps: :math:`q_{ab}` of each pair :math:`a < b`, ``[n_step, n_pair]``.
        distances: :math:`d_{ab}` of each pair, ``[n_step, n_pair]``.
        predictions: overlap of the predictions of each pair at the last comparison, ``[n_pair]``. Empty without a
            :class:`ReplicaOverlap`.
        agreements: fraction of the samples with equal predictions, ``[n_pair]``. Empty like ``predictions``.
    """

    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    chi4: Array | None
    chi4_error: Array | None
    eps: float | None
    peaks: tuple[Peak, ...]
    n_replica: int
    steps: NDArray[np.int64]
    overlaps: Array
    distances: Array
    predictions: Array
    agreements: Array

    @quiet()
    def __str__(self) -> str:
        lines = [f"between {self.n_replica} replicas"]
        if self.chi4 is not None:
            what = f"chi_4 of the overlap (eps = {self.eps:g})"
            if self.peaks:
                lines.append(f"  {what}: of independent weights it would be at most 0.25")
                lines += [
                    f"    after step {peak.waiting_time:>9,} highest {peak.height:.3g} +- {peak.error:.2g}, at lag "
                    f"{peak.lag:,}"
                    for peak in few(self.peaks, 6)
                ]
            else:
                lines.append(f"  {what} has no peak within the lags that were measured")
        if len(self.steps):
            q, d = self.overlaps[-1], self.distances[-1]
            lines.append(
                f"  at step {self.steps[-1]:,} the weights of two of them have the overlap {q.mean():.3g} +- "
                f"{_spread_of(q):.1g} (mean and standard deviation over {len(q)} pairs)"
            )
            lines.append(f"  and are {np.sqrt(d.mean()):.3g} apart (rms)")
        if len(self.predictions):
            agree = f", and they agree on {self.agreements.mean():.1%} of the samples" if len(self.agreements) else ""
            spread = _spread_of(self.predictions)
            lines.append(f"  their predictions have the overlap {self.predictions.mean():.3g} +- {spread:.1g}{agree}")
        return "\n".join(wrapped(lines))


@quiet()
def heterogeneity(record: AgingRecord, *, group: str = "all", eps: float | None = None) -> Heterogeneity:
    """Find the differences between the replicas of a record.

    Args:
        record: a record of at least two replicas, trained together or joined by :meth:`AgingRecord.concat`.
        group: group of the parameters for chi_4. Overlaps and distances are for all parameters.
        eps: threshold of the overlap, default the first of the record.

    Raises:
        NotEnoughDataError: there are fewer than two replicas, or some are copies of others.
        KeyError: the record does not have the group.
        ValueError: the threshold was not counted.
    """
    if record.n_replica is None or record.n_replica < 2:
        raise NotEnoughDataError(f"n_replica={record.n_replica}: two or more can be compared")
    if not record.has_errors:
        raise NotEnoughDataError("replicas that are copies of others differ by nothing: use record.independent()")
    counted = "chi4" in record.available(group)
    chi4 = record.chi4(group, eps=eps) if counted else None
    error = record.chi4_error(group, eps=eps) if counted else None
    pairs = np.triu_indices(record.n_replica, 1)
    steps, overlaps, distances = np.array([], np.int64), np.empty((0, len(pairs[0]))), np.empty((0, len(pairs[0])))
    if {"weight_product", "weight_distance"} <= set(record.between_names):
        steps, q = record.replica_overlap()
        kept = log_spaced(steps, _MOST_STEPS)
        steps, chosen = steps[kept], (kept[:, None], *pairs)
        overlaps, distances = q[chosen], record.replica_distance()[1][chosen]
    peaks = () if chi4 is None or error is None else tuple(_peaks(record, chi4, error))
    return Heterogeneity(
        record.waiting_times,
        record.lags,
        chi4,
        error,
        (record.overlap_thresholds[0] if eps is None else eps) if counted else None,
        peaks,
        record.n_replica,
        steps,
        overlaps,
        distances,
        *(
            record.between(name)[1][-1][pairs] if name in record.between_names else np.array([])
            for name in ("prediction_overlap", "prediction_agreement")
        ),
    )


def overlap_distribution(
    overlaps: Array, bins: int = 40, span: tuple[float, float] = (-1.0, 1.0)
) -> tuple[Array, Array]:
    r"""Return the distribution P(q) of the overlaps between replicas: a histogram.

    Args:
        overlaps: q of each pair, of any shape. Values that are not finite are left out.
        bins: number of bins.
        span: range of the histogram, default :math:`[-1, 1]`. Values beyond it count in the outer bins.

    Returns:
        Edges ``[bins + 1]`` and density ``[bins]``. The integral of the density is 1, or 0 without overlaps.

    Raises:
        ValueError: there is less than one bin, or the range is empty.
    """
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    if not span[0] < span[1]:
        raise ValueError(f"span={span} must be a range from a smaller to a larger number")
    finite = np.clip(overlaps[np.isfinite(overlaps)], *span)
    counts, edges = np.histogram(finite, bins=bins, range=span)
    return edges, counts / max(counts.sum(), 1) / np.diff(edges)


def narrow_bins(overlaps: Array) -> tuple[int, tuple[float, float]]:
    """Return a number of bins and a range for :func:`overlap_distribution`, a little wider than the overlaps.

    Args:
        overlaps: q of each pair, of any shape. Values that are not finite are left out.
    """
    finite = overlaps[np.isfinite(overlaps)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
    margin = max(0.1 * (high - low), 1e-3)
    return max(5, min(40, 2 * round(len(finite) ** 0.5))), (max(-1.0, low - margin), min(1.0, high + margin))


def _peaks(record: AgingRecord, chi4: Array, error: Array) -> list[Peak]:
    found = []
    for waiting_time, row, error_row in zip(record.waiting_times.tolist(), chi4, error, strict=True):
        measured = np.flatnonzero(np.isfinite(row))
        if len(measured) < 3:
            continue
        top = measured[row[measured].argmax()]
        # At the first or the last lag, there may be a larger value beyond.
        if row[top] > 0 and measured[0] < top < measured[-1]:
            found.append(Peak(waiting_time, int(record.lags[top]), float(row[top]), float(error_row[top])))
    return found


def _spread_of(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")
