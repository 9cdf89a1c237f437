"""Where a fast process ends and the relaxation begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array

_RELAXES = 0.2  # what a curve must rise by, in its logarithm, after its fast process


def above_plateaus(curves: Curves) -> Curves:
    """The curves without what their fast process, and not the relaxation, has made (:func:`fast_levels`): NaN there.

    That part falls on one curve, or does not, whatever the aging exponent.
    """
    mean = curves.mean()
    with np.errstate(invalid="ignore"):
        slow = (
            mean
            >= relaxation_floor(fast_levels(curves.lags, mean), np.nan_to_num(mean).max(axis=-1, initial=0))[:, None]
        )
    return replace(curves, values=np.where(slow, curves.values, np.nan))


def relaxation_floor(levels: ArrayLike, top: ArrayLike) -> Array:
    """From which value on a curve is relaxation: twice the level of the fast process.

    Or, where the curve ends not far above that (a correlation is bounded), a quarter of the way from the level to its
    top.
    """
    level, end = np.asarray(levels, dtype=np.float64), np.asarray(top, dtype=np.float64)
    return np.minimum(2 * level, level + np.maximum(end - level, 0) / 4)


def fast_levels(lags: NDArray[np.int64], curves: Array) -> Array:
    """For each curve the level at which a fast process hands over to the relaxation; 0 without one.

    A fast process (rattling in a cage, gradient noise in a stiff valley) shows as a local exponent that starts low, or
    falls, and then rises again: by 0.4, or to two and a half times its value; a plateau is the extreme case. The level
    is where half of that rise is done; after it the curve must rise by a fifth, as noise alone does not. Thresholds
    below it tell of the fast process, whatever the relaxation does.

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
        rise = later[low] - slope[low]
        if rise < 0.4 and not (rise > 0.1 and slope[low] < 0.4 * later[low]):
            continue
        if y[low:].max() - y[low] < _RELAXES:  # the noise of a curve that has saturated
            continue
        done = low + int(np.argmax(slope[low:] > (slope[low] + later[low]) / 2))
        levels[i] = float(np.exp(y[: done + 1].max()))
    return levels
