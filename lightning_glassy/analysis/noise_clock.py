r"""The gradient noise as a clock: it counts the time :math:`\int D\,dt'`."""

from __future__ import annotations

import numpy as np

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.analysis.headline import COLLAPSED
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

_PER_DECADE = 200  # points of the quadrature


@quiet()
def noise_clock(record: AgingRecord, group: str = "all") -> Array:
    r"""Return the noise that has acted over each pair of times, :math:`\int_{t_w}^{t_w+t} D(t')\,dt'`.

    The noise alone moves a network that diffuses at the bottom of its landscape. Against this clock, its curves of all
    waiting times fall on one straight line. If D changes over the lag, this is true although :math:`\Delta/D(t_w)` does
    not collapse (Baity-Jesi et al. 2018, arXiv 1803.06969).

    :meth:`AgingRecord.gradient_noise` interpolates D between the measured steps. The integral uses the trapezoidal rule
    at 200 points per decade of 1 + step, and at all steps below 1000.

    Args:
        record: a record with the one-time series ``gradient_noise`` of the group.
        group: name of the group of parameters.

    Returns:
        float64 ``[n_tw, n_lag]``, NaN if D is not known over the whole lag.

    Raises:
        KeyError: the record has no such series, or no such group.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> record = AgingRecord.from_trajectory(np.zeros((101, 3)), LogTimeSchedule([0, 10], [5, 90]))
        >>> for step in (0, 100):
        ...     record.append_one_time("gradient_noise", step, 2.0)
        >>> noise_clock(record).round(6).tolist()
        [[10.0, 180.0], [10.0, 180.0]]
    """
    ends = record.waiting_times[:, None] + record.lags
    last = int(ends.max(initial=1))
    decades = np.log10(1 + last)
    fine = np.concatenate(
        [np.arange(min(last, 1000) + 1), np.geomspace(1, 1 + last, int(_PER_DECADE * decades) + 2) - 1]
    )
    steps = np.unique(np.concatenate([fine, record.waiting_times, ends.ravel()]))
    noise = record.gradient_noise(steps, group)
    known = np.isfinite(noise)
    pieces = np.diff(steps) * (np.where(known, noise, 0.0)[1:] + np.where(known, noise, 0.0)[:-1]) / 2
    # The noise is unknown before the first measured step and after the last.
    elapsed = np.where(known, np.concatenate([[0.0], np.cumsum(pieces)]), np.nan)
    return np.asarray(np.interp(ends, steps, elapsed) - np.interp(record.waiting_times, steps, elapsed)[:, None])


@quiet()
def moved_by_noise_alone(record: AgingRecord, curves: Curves, group: str = "all") -> bool:
    """Return whether the curves of all waiting times are one curve of the noise that has acted.

    They are if the rms relative distance of each curve from the mean of the others is at most 5 % beyond the errors of
    the replicas. If the noise fades, the curves then age by the clock of the steps, and by no other.

    Args:
        record: the record of the curves.
        curves: curves of :func:`~lightning_glassy.analysis.curves.relaxation_curves`, all or some of them.
        group: name of the group of parameters.

    Returns:
        False also if the record has no gradient noise, or too little to compare.
    """
    if "normalised_msd" not in record.available(group) or len(curves.waiting_times) < 2:
        return False
    rows = np.searchsorted(record.waiting_times, curves.waiting_times)
    columns = np.searchsorted(record.lags, curves.lags)
    clock, mean = noise_clock(record, group)[rows[:, None], columns], curves.mean()
    x, y = np.log(clock), np.log(mean)
    good = np.isfinite(x) & np.isfinite(y)
    errors = np.where(good, np.nan_to_num(curves.sem() / mean), 0.0)
    # [n_tw, n_tw, n_lag]: each curve at the places of the points of each curve
    lines = np.full((len(x), *x.shape), np.nan)
    for i, own in enumerate(good):
        if own.any():
            lines[i] = np.interp(x, x[i, own], y[i, own], np.nan, np.nan)
        lines[i, i] = np.nan
    common = np.nansum(lines, axis=0) / np.isfinite(lines).sum(axis=0)
    known = good & np.isfinite(common)
    if not known.any() or known.sum() < good.sum() / 2:
        return False
    return bool(np.mean((y - common)[known] ** 2 - errors[known] ** 2) <= COLLAPSED**2)
