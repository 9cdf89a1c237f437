r"""The gradient noise as a clock: it counts the time :math:`\int D\,dt'`."""

from __future__ import annotations

import numpy as np

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
