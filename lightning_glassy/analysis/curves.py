"""Which curve is analysed: one relaxing quantity of a record as an array, replicas first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord

Observable = Literal["msd", "normalised_msd", "decorrelation", "overlap"]

OBSERVABLES: dict[Observable, str] = {
    "msd": "MSD",
    "normalised_msd": "MSD over the noise strength",
    "decorrelation": "decorrelation 1 - C",
    "overlap": "overlap 1 - Q",
}
"""The quantities that can be analysed, and what they are called in a text."""


@dataclass(frozen=True)
class Curves:
    """A quantity that grows from 0 as the weights relax, for every replica, waiting time and lag.

    Attributes:
        name: what it is, one of :data:`OBSERVABLES`.
        waiting_times: steps, increasing, int64 ``[n_tw]``.
        lags: steps, increasing and positive, int64 ``[n_lag]``.
        values: float64 ``[n_replica, n_tw, n_lag]``, NaN where not measured.
    """

    name: Observable
    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    values: Array

    @property
    def n_replica(self) -> int:
        """Number of independent realisations; 1 for a single run."""
        return len(self.values)

    def mean(self, replicas: NDArray[np.int64] | None = None) -> Array:
        """Average over replicas (with repetition, over those given), ``[n_tw, n_lag]``."""
        values = self.values if replicas is None else self.values[replicas]
        return np.asarray(values.mean(axis=0))

    def between(self, first: int, last: int) -> Curves:
        """The curves of waiting times ``first ... last``."""
        return self.only((self.waiting_times >= first) & (self.waiting_times <= last))

    def after(self, step: float) -> Curves:
        """The curves of waiting times after a step."""
        return self.only(self.waiting_times > step)

    def only(self, kept: NDArray[np.bool_]) -> Curves:
        """The curves of the waiting times that a mask ``[n_tw]`` selects."""
        return Curves(self.name, self.waiting_times[kept], self.lags, self.values[:, kept])


def relaxation_curves(
    record: AgingRecord, observable: Observable = "msd", *, group: str = "all", eps: float | None = None
) -> Curves:
    """One relaxing quantity of a record, growing with the lag whatever it is.

    Args:
        record: a single run, or replicas.
        observable: ``"msd"``; ``"normalised_msd"``, the same over the gradient noise at the waiting time;
            ``"decorrelation"``, one minus the cosine correlation; or ``"overlap"``, one minus the overlap.
        group: name of the group of parameters.
        eps: threshold of the overlap.

    Raises:
        ValueError: another observable, or a record without a pair at a positive lag.
        KeyError: a group the record does not have, or no gradient noise in it.
    """
    if observable == "msd":
        values = record.msd(group)
    elif observable == "normalised_msd":
        values = record.msd(group, normalise="noise")
    elif observable == "decorrelation":
        values = record.decorrelation(group)
    elif observable == "overlap":
        values = 1 - record.overlap(eps, group)
    else:
        raise ValueError(f"observable={observable!r} is not one of {', '.join(map(repr, OBSERVABLES))}")
    positive = record.lags > 0
    if not positive.any():
        raise ValueError("the record holds no pair at a positive lag yet")
    replicas = values if record.n_replica is not None else values[None]
    return Curves(observable, record.waiting_times, record.lags[positive], replicas[..., positive])
