"""The end of a fast process and the start of the relaxation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.analysis.curves import Curves
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet

_SCATTER = 0.47  # largest scatter of the logarithms of the levels of a fast process
_RELAXES = 0.2  # least rise of the logarithm of a curve after its fast process


@quiet()
def above_plateaus(curves: Curves, levels: Array | None = None) -> Curves:
    """Return the curves with NaN below the level of their fast process.

    The aging exponent does not determine whether these parts of the curves collapse.

    Args:
        curves: the curves.
        levels: result of :func:`fast_levels`, if it is known already.
    """
    mean = curves.mean()
    with np.errstate(invalid="ignore"):
        levels = fast_levels(curves.lags, mean) if levels is None else levels
        floor = relaxation_floor(levels, np.nan_to_num(mean).max(axis=-1, initial=0))
        slow = mean >= floor[:, None]
    return replace(curves, values=np.where(slow, curves.values, np.nan))


def relaxation_floor(levels: ArrayLike, top: ArrayLike) -> Array:
    """Return the value above which a curve is relaxation: twice the level of the fast process.

    If the curve ends not far above this value (a correlation is bounded), return a quarter of the way from the level to
    the top of the curve.
    """
    level, end = np.asarray(levels, dtype=np.float64), np.asarray(top, dtype=np.float64)
    return np.minimum(2 * level, level + np.maximum(end - level, 0) / 4)


@quiet()
def fast_levels(lags: NDArray[np.int64], curves: Array) -> Array:
    """Return the level of each curve at which a fast process ends and the relaxation begins, or 0 without one.

    A fast process is, for example, rattling in a cage, or gradient noise in a stiff valley. Its local exponent starts
    low, or falls, and then rises again. It rises by 0.4, or to two and a half times its value. A plateau is the extreme
    case. The level is the value of the curve after half of this rise. The curve must rise by a fifth after it, because
    noise alone does not. Thresholds below the level measure the fast process, and not the relaxation.

    Args:
        lags: ``[n_lag]``, in steps.
        curves: ``[n_tw, n_lag]``, NaN if not measured.

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
        # Take slopes over windows of more than half a decade, because single points are noisy.
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


@quiet()
def common_level(waiting_times: ArrayLike, levels: ArrayLike) -> float:
    """Return the highest level of a fast process that the curves have in common, or 0 if they have none.

    At least half of the curves must have a level. The levels must follow a power of the waiting time within a factor of
    1.6 (rms). Noise makes levels, too, but they scatter by more.

    Args:
        waiting_times: steps after the origin of the clock, ``[n_tw]``.
        levels: result of :func:`fast_levels`, ``[n_tw]``.
    """
    times, found = np.asarray(waiting_times, dtype=np.float64), np.asarray(levels, dtype=np.float64)
    fast = found > 0
    if not len(found) or fast.mean() < 0.5:
        return 0.0
    x, y = np.log(times[fast]), np.log(found[fast])
    off = y - np.polyval(np.polyfit(x, y, 1), x) if len(x) > 2 else np.zeros(1)
    return float(found.max()) if np.sqrt(np.mean(off**2) * len(off) / max(len(off) - 2, 1)) < _SCATTER else 0.0
