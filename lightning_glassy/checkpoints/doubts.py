"""Doubts about displacements between checkpoints that a curve does not show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.measure.layout import ROUNDING_MARGIN, within_rounding
from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import listed


def doubts_of_pairs(record: AgingRecord, resolution: Mapping[str, float]) -> list[str]:
    r"""Return the doubts about the pairs of a record, one sentence each.

    There are three kinds of doubt. First: squares are not finite. Second: weights at different steps are equal to the
    last bit, so that :math:`d^2` is exactly 0. Third: displacements are so small that the rounding of the weights may
    explain them. A group is named only if the group ``"all"`` does not have the doubt.

    Args:
        record: a single run with the sums ``"d2"`` and ``"s2"``.
        resolution: for each group the mean squared displacement over the mean squared weight, below which rounding to
            the dtype hides motion. See :attr:`TrackedParameters.resolution`.
    """
    d2, s2 = (record.moments[..., record.sums.index(name)].T for name in ("d2", "s2"))  # [n_group, n_pair]
    waiting_times, lags = record.pairs
    coarse = np.array([resolution[group] for group in record.groups])[:, None]
    n = np.array(list(record.n_sampled.values()), dtype=np.float64)[:, None]
    finite, still = np.isfinite(d2), (d2 == 0) & (lags > 0)
    hidden = finite & (lags > 0) & within_rounding(d2, s2, coarse)

    def where(found: NDArray[np.bool_]) -> tuple[int, str] | None:
        """Return the group to name, and the words for the number of its pairs. None if there is no such pair."""
        named = [i for i, of_group in enumerate(found) if of_group.any()]
        whole = record.groups.index("all")
        if not named:
            return None
        if whole in named:
            return whole, f"in {found[whole].sum():,} of {len(lags):,} pairs"
        names = record.groups
        groups = listed([repr(names[i]) for i in named])
        worst = max(named, key=lambda i: int(found[i].sum()))
        return worst, f"in up to {found[worst].sum():,} of {len(lags):,} pairs of the groups {groups}"

    doubts = []
    if (not_finite := where(~finite)) is not None:
        doubts.append(
            f"d^2 is not finite {not_finite[1]}: weights are not finite, or too large for their squares. They are "
            "recorded as they are"
        )
    whole = record.groups.index("all")
    if still[whole].any():
        doubts.append(_identical(waiting_times[still[whole]], lags[still[whole]]))
    if (rounded := where(hidden)) is not None:
        i, words = rounded
        msd: Array = d2[i, hidden[i]] / n[i]
        floor = float(np.max(ROUNDING_MARGIN * coarse[i] * s2[i, hidden[i]] / n[i]))
        doubts.append(
            f"{words} the mean squared displacement is within the rounding of the weights' own dtype: a plateau there "
            f"is not physics. These pairs have lags up to {lags[hidden[i]].max():,} steps and a displacement up to "
            f"{msd.max():.2g}, and rounding alone may explain {floor:.2g}"
        )
    return doubts


def _identical(waiting_times: NDArray[np.int64], lags: NDArray[np.int64]) -> str:
    """Return the doubt about pairs of checkpoints with equal weights."""
    like: dict[int, int] = {}  # for each step the earliest step with the same weights
    for early, late in zip(waiting_times.tolist(), (waiting_times + lags).tolist(), strict=True):
        first = like.setdefault(early, early)
        like.setdefault(late, first)
    sets: dict[int, list[str]] = {}
    for step, first in sorted(like.items()):
        sets.setdefault(first, []).append(f"{step:,}")
    names = [" = ".join(equal if len(equal) <= 4 else [*equal[:3], "...", equal[-1]]) for equal in sets.values()]
    return (
        f"the measured weights are equal to the last bit at different steps, {listed(names)}, so that d^2 is exactly 0 "
        f"in {len(lags):,} pairs: a checkpoint was copied, or the weights did not move by more than their rounding"
    )
