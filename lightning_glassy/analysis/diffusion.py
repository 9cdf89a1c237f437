r"""The motion of the weights at a given age (ballistic, diffusive or arrested), and the diffusion at the bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.curves import MOST_CURVES, relaxation_curves
from lightning_glassy.analysis.exponent_result import wrapped
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

Motion = Literal["arrested", "subdiffusive", "diffusive", "superdiffusive", "ballistic"]

_LIMITS: list[tuple[float, Motion]] = [
    (0.15, "arrested"),
    (0.85, "subdiffusive"),
    (1.15, "diffusive"),
    (1.75, "superdiffusive"),
    (np.inf, "ballistic"),
]
_REACH = 10**0.25  # an exponent is the slope over lags up to this factor on either side
_SHORTEST = 10**0.5  # a window of lags spans at least this factor


@dataclass(frozen=True)
class Window:
    """Consecutive lags with one kind of motion after one waiting time.

    Attributes:
        waiting_time: step of the reference.
        first_lag: first lag, in steps.
        last_lag: last lag, in steps.
        motion: ``"arrested"`` (local exponent below 0.15), ``"subdiffusive"`` (to 0.85), ``"diffusive"`` (to 1.15),
            ``"superdiffusive"`` (to 1.75) or ``"ballistic"``.
        exponent: mean local exponent.
    """

    waiting_time: int
    first_lag: int
    last_lag: int
    motion: Motion
    exponent: float


@dataclass(frozen=True)
class Diffusion:
    r"""The kinds of motion in a record, and the diffusion at the bottom. ``print`` shows a short table.

    Attributes:
        waiting_times: steps, ``[n_tw]``. They are fewer than in the record if the record has many.
        lags: steps, ``[n_lag]``.
        exponents: local exponent :math:`\gamma(t_w, t)` of the mean over replicas, ``[n_tw, n_lag]``.
        windows: windows of at least half a decade of lags, by waiting time, then by lag.
        coefficient: diffusion coefficient at the bottom, per step. None if late curves share no diffusive window.
        standard_error: error of the coefficient, from the replicas and the bend of the curve. None for a single run.
        bottom: first waiting time, first lag and last lag of the diffusive window. None without a coefficient.
    """

    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    exponents: Array
    windows: list[Window]
    coefficient: float | None
    standard_error: float | None
    bottom: tuple[int, int, int] | None

    def __str__(self) -> str:
        if self.coefficient is None or self.bottom is None:
            first = "no diffusion at the bottom: late curves do not share half a decade of lags with a slope of 1"
        else:
            error = "" if self.standard_error is None else f" +- {self.standard_error:.2g}"
            first = (
                f"diffusion at the bottom: K = {self.coefficient:.3g}{error} per step (from t_w = {self.bottom[0]:,}, "
                f"lags {self.bottom[1]:,} ... {self.bottom[2]:,})"
            )
        lines = [first, f"  {'t_w':>10}   motion (lags, local exponent)"]
        for waiting_time in few(sorted({window.waiting_time for window in self.windows}), 8):
            parts = [
                f"{window.motion} ({window.first_lag:,} ... {window.last_lag:,}, {window.exponent:.2f})"
                for window in self.windows
                if window.waiting_time == waiting_time
            ]
            lines += wrapped([f"{waiting_time:>10,}   {', '.join(parts)}"], indent=2)
        return "\n".join(lines)


@quiet()
def diffusion(record: AgingRecord, *, group: str = "all") -> Diffusion:
    r"""Find the local exponent of the displacement, the windows of one kind of motion, and the diffusion at the bottom.

    The exponent :math:`\gamma(t_w, t) = \partial\ln\Delta/\partial\ln t` is the slope of a straight line through the
    lags up to a quarter of a decade on either side. A system at the bottom of its landscape diffuses, and does not age
    (Baity-Jesi et al. 2018). The diffusion coefficient of one coordinate comes from the straight line :math:`\Delta =
    \Delta_0 + 2 K t` (least squares of the relative deviations). The line is fitted to the diffusive window that the
    waiting times of the last decade share, if their curves agree there to within a quarter.

    A record of more than 25 waiting times or 100 lags is thinned to 40 and 60.

    Args:
        record: one run, or replicas.
        group: name of the group of parameters.

    Raises:
        ValueError: the record has no pair at a positive lag.
        KeyError: the record does not have the group.
    """
    curves = relaxation_curves(record, group=group).thinned(*MOST_CURVES)
    mean = curves.mean()
    exponents = smooth_exponent(curves.lags, mean)
    windows = [
        window
        for waiting_time, row in zip(curves.waiting_times.tolist(), exponents, strict=True)
        for window in _windows(waiting_time, curves.lags, row)
    ]
    shared = _shared_window(curves.waiting_times, curves.lags, mean, exponents)
    coefficient, error, bottom = None, None, None
    if shared is not None:
        late, inside = shared
        lags = curves.lags[inside]
        part = curves.values[:, late][:, :, inside].mean(axis=1)  # [n_replica, n_lag]
        fits = np.array([_line(lags, row) for row in part]) / 2
        half = len(lags) // 2
        # The slope of a curve that is not straight depends on the place. Compare both halves.
        bend = abs(_line(lags[:half], part.mean(axis=0)[:half]) - _line(lags[half:], part.mean(axis=0)[half:])) / 4
        coefficient = float(fits.mean())
        error = float(np.hypot(fits.std(ddof=1) / np.sqrt(len(fits)), bend)) if len(fits) > 1 else None
        bottom = (int(curves.waiting_times[late][0]), int(lags[0]), int(lags[-1]))
    return Diffusion(curves.waiting_times, curves.lags, exponents, windows, coefficient, error, bottom)


def _line(lags: NDArray[np.int64], values: Array) -> float:
    """Return the slope of a straight line through values, by least squares of the relative deviations."""
    return float(np.polyfit(lags.astype(np.float64), values, 1, w=1 / values)[0]) if len(lags) > 1 else np.nan


@quiet()
def smooth_exponent(lags: NDArray[np.int64], curves: Array) -> Array:
    """Return the slope of ln(curve) against ln(lag) over a quarter of a decade on either side, ``[..., n_lag]``.

    It is NaN if the curve is not measured or not positive, or has fewer than three lags. At the ends of a curve, the
    line is one-sided.
    """
    x = np.log(lags.astype(np.float64))
    result = np.full(curves.shape, np.nan)
    for index in np.ndindex(curves.shape[:-1]):
        row = curves[index]
        good = np.flatnonzero(np.isfinite(row) & (np.nan_to_num(row) > 0))
        y = np.log(row[good])
        for place, at in enumerate(good):
            near = np.abs(x[good] - x[at]) <= np.log(_REACH) * 1.0001
            if near.sum() < 3:  # sparse lags: take the neighbours at any distance
                near = np.abs(np.arange(len(good)) - min(max(place, 1), len(good) - 2)) <= 1
            if near.sum() >= 3:
                result[index][at] = np.polyfit(x[good][near], y[near], 1)[0]
    return result


def _motion(exponent: float) -> Motion:
    return next(motion for limit, motion in _LIMITS if exponent <= limit)


def _windows(waiting_time: int, lags: NDArray[np.int64], exponents: Array) -> list[Window]:
    measured = np.flatnonzero(np.isfinite(exponents))
    kinds = [_motion(exponents[at]) for at in measured]
    found, start = [], 0
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[start]:
            continue
        run = measured[start:end]
        if lags[run[-1]] >= _SHORTEST * lags[run[0]]:
            exponent = float(exponents[run].mean())
            found.append(Window(waiting_time, int(lags[run[0]]), int(lags[run[-1]]), kinds[start], exponent))
        start = end
    return found


def _shared_window(
    waiting_times: NDArray[np.int64], lags: NDArray[np.int64], mean: Array, exponents: Array
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Return masks of the late waiting times, and of the lags at which all of them diffuse alike, or None."""
    enough = np.isfinite(exponents).sum(axis=-1) >= 3
    late = enough & (waiting_times >= waiting_times[enough].max(initial=0) / 10.01)
    if late.sum() < 3:
        return None
    normal = ((exponents[late] > 0.85) & (exponents[late] <= 1.15)).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        agree = np.ptp(np.log(mean[late]), axis=0) < np.log(1.25)
    best: tuple[float, slice] | None = None
    where = np.flatnonzero(normal & agree)
    for run in np.split(where, np.flatnonzero(np.diff(where) > 1) + 1):
        if len(run) and (width := lags[run[-1]] / lags[run[0]]) >= _SHORTEST and (best is None or width > best[0]):
            best = (width, slice(run[0], run[-1] + 1))
    if best is None:
        return None
    inside = np.zeros(len(lags), dtype=bool)
    inside[best[1]] = True
    return late, inside
