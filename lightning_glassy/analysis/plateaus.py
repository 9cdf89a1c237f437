"""Where a fast process ends and the relaxation begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array


def above_plateaus(curves: Curves) -> Curves:
    """The curves without what lies below twice the level of their fast process (:func:`fast_levels`): NaN there.

    That part falls on one curve, or does not, whatever the aging exponent.
    """
    mean = curves.mean()
    with np.errstate(invalid="ignore"):
        slow = mean >= 2 * fast_levels(curves.lags, mean)[:, None]
    return replace(curves, values=np.where(slow, curves.values, np.nan))


def fast_levels(lags: NDArray[np.int64], curves: Array) -> Array:
    """For each curve the level at which a fast process hands over to the relaxation; 0 without one.

    A fast process (rattling in a cage, gradient noise in a stiff valley) shows as a local exponent that starts low, or
    falls, and then rises again by 0.4 at least; a plateau is the extreme case. The level is where half of that rise is
    done. Thresholds below it tell of the fast process, whatever the relaxation does.

    Args:
        lags: ``[n_lag]``, in steps.
        curves: ``[n_tw, n_lag]``, NaN where not measured.

    Returns:
        float64 ``[n_tw]``, in the units of the curves.
    """
    levels = np.zeros(len(curves))
    log_t = np.log(lags.astype(np.float64))
    for i, row in enumerate(curves):
        good = np.isfinite(row) & (row > 0)
        if good.sum() < 6:
            continue
        x, y = log_t[good], np.log(row[good])
        # Slopes over windows of more than half a decade, against the noise of single points.
        near = [np.abs(x - centre) <= np.log(2) for centre in x]
        slope = np.array([np.polyfit(x[part], y[part], 1)[0] if part.sum() >= 3 else np.nan for part in near])
        x, y, slope = x[np.isfinite(slope)], y[np.isfinite(slope)], slope[np.isfinite(slope)]
        if len(slope) < 4:
            continue
        later = np.maximum.accumulate(slope[::-1])[::-1]
        low = int(np.argmax(later - slope))
        if later[low] - slope[low] < 0.4:
            continue
        done = low + int(np.argmax(slope[low:] > (slope[low] + later[low]) / 2))
        levels[i] = float(np.exp(y[: done + 1].max()))
    return levels
