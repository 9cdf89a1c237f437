"""Compare the response to a field with the fluctuations: effective temperatures by time sector."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.analysis.exponent_result import NotEnoughDataError, wrapped
from lightning_glassy.observables import Array
from lightning_glassy.observables.arrays import jackknife_error, over_replicas, quiet
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.record.text import few

SECTORS = {"early": (0.0, 0.1), "middle": (0.1, 1.0), "late": (1.0, np.inf)}
"""Time sectors by their names: the lowest and the highest ratio of lag to waiting time."""

_FEW = 8  # fields
_SURE = 2.0  # errors that a slope must differ from 0 to give a temperature
_MOST_SECTORS = 4  # in one sentence
_DRIFT = 1.3  # a local exponent of the displacement above this, where diffusion has 1
_DIFFERENT = 4.0  # errors between responses to two strengths, of many pairs of times
_ADAPTIVE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
_THERMAL = ("SGD", "Langevin")  # optimisers whose updates do not rescale the field


_Estimate = Callable[[NDArray[np.int64]], float]
"""An estimate from some replicas, as a function of their numbers."""


class TimeSector(NamedTuple):
    r"""Effective temperature in one sector of lags after a waiting time.

    Attributes:
        name: a key of :data:`SECTORS`.
        waiting_time: in steps.
        first_lag: first lag of the sector, in steps.
        last_lag: last lag of the sector, in steps.
        slope: :math:`\partial\chi/\partial(\Delta/2) = 1/T_{eff}`, fitted to the points of the sector.
        slope_error: its standard error over the replicas, NaN for one replica.
        correlation_slope: :math:`-\partial\chi/\partial C`. It equals ``slope`` if the size of the weights is constant.
        correlation_slope_error: its standard error.
        ratio: fluctuation-dissipation ratio :math:`X = T/T_{eff}`.
        ratio_error: its standard error.
    """

    name: str
    waiting_time: int
    first_lag: int
    last_lag: int
    slope: float
    slope_error: float
    correlation_slope: float
    correlation_slope_error: float
    ratio: float
    ratio_error: float

    @property
    def temperature(self) -> float:
        r""":math:`T_{eff}` in units of the loss. NaN if the slope is not larger than two of its errors."""
        sure = self.slope > _SURE * np.nan_to_num(self.slope_error) and self.slope > 0
        return 1 / self.slope if sure else float("nan")

    @property
    def temperature_error(self) -> float:
        """Standard error of the temperature, to first order."""
        return self.slope_error * self.temperature**2


@dataclass(frozen=True)
class FluctuationDissipation:
    r"""Responses and fluctuations at the pairs of times with a response. Prints as a few lines of text.

    Attributes:
        waiting_times: steps, ``[n_tw]``.
        lags: steps, ``[n_lag]``.
        response: :math:`\chi(t_w+t, t_w)`, mean over replicas, ``[n_tw, n_lag]``, NaN if not measured.
        response_error: its standard error over replicas. The error of one replica is a bound of the error over fields.
        msd: :math:`\Delta(t_w, t_w+t)`, mean over replicas, ``[n_tw, n_lag]``.
        msd_error: its standard error.
        decorrelation: :math:`C(t_w, t_w) - C(t_w, t_w+t)` with the raw correlation, mean over replicas.
        decorrelation_error: its standard error.
        squares: :math:`C(t_w, t_w)`, the mean square of the weights at the waiting times, ``[n_tw]``.
        sectors: the effective temperatures, by waiting time and then by lag.
        temperature: T in the ratios X, None if T is the effective temperature of the early sector.
        fields: the strengths of the field.
        n_replica: number of replicas.
        doubts: reasons to doubt the numbers, in words.
    """

    waiting_times: NDArray[np.int64]
    lags: NDArray[np.int64]
    response: Array
    response_error: Array
    msd: Array
    msd_error: Array
    decorrelation: Array
    decorrelation_error: Array
    squares: Array
    sectors: tuple[TimeSector, ...]
    temperature: float | None
    fields: tuple[float, ...]
    n_replica: int
    doubts: tuple[str, ...]

    def __str__(self) -> str:
        strengths = ", ".join(f"{h:.3g}" for h in self.fields)
        lines = [
            f"response to a random field (h = {strengths}) in {self.n_replica} replica{'s' * (self.n_replica > 1)}: "
            "effective temperature in units of the loss"
        ]
        for sector in few(self.sectors, 12):
            found = f"not resolved (1/T_eff = {sector.slope:.2g} +- {sector.slope_error:.1g})"
            if np.isfinite(sector.temperature):
                found = f"T_eff = {sector.temperature:.3g} +- {sector.temperature_error:.1g}"
                if np.isfinite(sector.ratio) and (sector.name != "early" or self.temperature is not None):
                    found += f", X = {sector.ratio:.2f} +- {sector.ratio_error:.1g}"
            span = f"{sector.first_lag:,} ... {sector.last_lag:,}"
            lines.append(f"    after step {sector.waiting_time:>9,} {sector.name:<6} (lags {span}) {found}")
        return "\n".join(wrapped(lines + [f"  ! {doubt}" for doubt in self.doubts]))


@quiet()
def fluctuation_dissipation(record: AgingRecord, *, temperature: float | None = None) -> FluctuationDissipation:
    r"""Find effective temperatures from the response to a field, by time sector.

    In equilibrium at the temperature T, the fluctuation-dissipation theorem is :math:`\chi = \Delta/(2T)`. Out of
    equilibrium, :math:`1/T_{eff} = \partial\chi/\partial(\Delta/2)` defines an effective temperature. The slope is
    fitted by least squares to the points of a sector: the early lags up to a tenth of the waiting time (with the point
    at lag 0), the lags between, and the late lags from the waiting time on. Its error is the jackknife over replicas.
    If the weights keep their size, the slope against the correlation, :math:`-\partial\chi/\partial C`, is the same.
    The ratio is :math:`X = T/T_{eff}`. In a mean-field glass, it is 1 in the early sector and smaller in the late
    sector.

    Args:
        record: a record with a response, of one run or of replicas.
        temperature: T in the ratios X, such as the kT of a Langevin dynamics. By default, it is the effective
            temperature of the early sector after the same waiting time.

    Raises:
        NotEnoughDataError: the record has no response.
        ValueError: the temperature is not positive.

    Source: Cugliandolo and Kurchan 1993, Phys. Rev. Lett. 71, 173. Cugliandolo, Kurchan and Peliti 1997, Phys. Rev. E
    55, 3898.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be positive, in units of the loss")
    if RESPONSE_TABLE not in record.tables or not len(record):
        raise NotEnoughDataError("no response to a field was measured: train with a ResponseMonitor")
    record, left_out = record.independent()
    n_replica = record.n_replica or 1

    def of_replicas(values: Array) -> Array:  # [n_replica, n_tw, n_lag]
        return values if record.n_replica is not None else values[None]

    chi, delta = of_replicas(record.response()), of_replicas(record.msd())
    # With moments="msd", a record has no correlations.
    c = of_replicas(record.correlation()) if "ws" in record.sums else np.full_like(delta, np.nan)
    there: NDArray[np.bool_] = np.asarray(np.isfinite(chi).any(axis=0))
    rows, columns = there.any(axis=1), there.any(axis=0)
    if not rows.any():
        raise NotEnoughDataError("the response was measured at none of the pairs of times of the record")
    chi, delta, c = (np.where(there, x, np.nan)[:, rows][:, :, columns] for x in (chi, delta, c))
    s2 = record.moments[..., 0, record.sums.index("s2")]  # [n_row(, n_replica)]
    squares = record._matrix(s2) / record.n_sampled["all"]
    squares = of_replicas(squares)[:, rows][:, :, columns]
    lost = squares - c
    waiting_times, lags = record.waiting_times[rows], record.lags[columns]
    (chi_mean, chi_error), (msd, msd_error), (lost_mean, lost_error) = map(over_replicas, (chi, delta, lost))
    if n_replica == 1:
        chi_error = of_replicas(record.response_error())[0][rows][:, columns]
    sectors = tuple(
        sector
        for i, waiting_time in enumerate(waiting_times.tolist())
        for sector in _sectors(waiting_time, lags, chi[:, i], delta[:, i] / 2, lost[:, i], temperature)
    )
    strengths = of_replicas(record.response_columns()[2])[:, rows][:, :, columns]
    found = FluctuationDissipation(
        waiting_times=waiting_times,
        lags=lags,
        response=chi_mean,
        response_error=chi_error,
        msd=msd,
        msd_error=msd_error,
        decorrelation=lost_mean,
        decorrelation_error=lost_error,
        squares=np.nanmean(squares, axis=(0, 2)),
        sectors=sectors,
        temperature=temperature,
        fields=tuple(np.unique(strengths[np.isfinite(strengths)]).tolist()),
        n_replica=n_replica,
        doubts=(),
    )
    doubts = (
        *left_out,
        *_few_fields(n_replica),
        *_same_field(record),
        *_nonlinear(found, chi, strengths),
        *_rescaled(record),
        *_clipped(record),
        *_rounded(record, found),
        *_drifting(found),
        *_changing_size(found),
    )
    return FluctuationDissipation(**{**found.__dict__, "doubts": doubts})


def _sectors(
    waiting_time: int, lags: NDArray[np.int64], chi: Array, half: Array, lost: Array, temperature: float | None
) -> list[TimeSector]:
    """Return the sectors after a waiting time. The arrays are ``[n_replica, n_lag]``."""
    ratio = lags / waiting_time if waiting_time else np.full(len(lags), np.inf)
    known = np.isfinite(chi.mean(axis=0) + half.mean(axis=0)) & (lags > 0)
    slopes: dict[str, _Estimate] = {}
    spans: dict[str, NDArray[np.bool_]] = {}
    for name, (low, high) in SECTORS.items():
        inside = known & (ratio >= low) & (ratio <= high)
        if inside.sum() + (name == "early") >= 3:
            spans[name] = inside
            slopes[name] = _slope_of(chi, half, inside, origin=name == "early")
    found = []
    n_replica = len(chi)
    everyone = np.arange(n_replica)

    def with_error(estimate: _Estimate) -> tuple[float, float]:
        return estimate(everyone), float(jackknife_error([estimate(np.delete(everyone, r)) for r in everyone])) if (
            n_replica > 1
        ) else float("nan")

    for name, slope in slopes.items():
        by_correlation = _slope_of(chi, lost, spans[name], origin=name == "early")

        def x(kept: NDArray[np.int64], slope: _Estimate = slope) -> float:
            if temperature is not None:
                return slope(kept) * temperature
            early = slopes["early"](kept) if "early" in slopes else 0.0
            return slope(kept) / early if early else float("nan")

        inside = lags[spans[name]]
        numbers = (*with_error(slope), *with_error(by_correlation), *with_error(x))
        found.append(TimeSector(name, waiting_time, int(inside[0]), int(inside[-1]), *numbers))
    return found


def _slope_of(y: Array, x: Array, inside: NDArray[np.bool_], *, origin: bool) -> _Estimate:
    """Return the slope of a straight line through the means over some replicas, as a function of their numbers."""

    def slope(kept: NDArray[np.int64]) -> float:
        at, value = x[kept][:, inside].mean(axis=0), y[kept][:, inside].mean(axis=0)
        if origin:  # nothing has moved, and nothing has responded
            at, value = np.append(0.0, at), np.append(0.0, value)
        at = at - at.mean()
        return float(at @ value / (at @ at))

    return slope


def _few_fields(n_replica: int) -> list[str]:
    if n_replica >= _FEW:
        return []
    few_fields = "one random field: there is no error over replicas" if n_replica == 1 else f"{n_replica} random fields"
    return [f"few fields: the response is an average over {few_fields}, and {_FEW} replicas or more are recommended"]


def _same_field(record: AgingRecord) -> list[str]:
    """Name a seed that several joined runs have. Its signs are the same in all of them."""
    return [
        f"{count} runs had the same random field (seed={seed}), so that the errors leave out the scatter between "
        "fields: give the ResponseMonitor of each run its own seed"
        for seed, count in Counter(_seeds(record.meta)).items()
        if count > 1
    ]


def _seeds(meta: Mapping[str, Any]) -> list[str]:
    """Return the seeds of the fields of a run, or of the runs that were joined."""
    runs, facts = meta.get("replicas"), meta.get("ResponseMonitor")
    if isinstance(runs, list):
        return [seed for run in runs if isinstance(run, dict) for seed in _seeds(run)]
    return [str(facts["seed"])] if isinstance(facts, dict) and "seed" in facts else []


def _nonlinear(found: FluctuationDissipation, chi: Array, strengths: Array) -> list[str]:
    """Compare the responses to different strengths of the field."""
    of_replica = np.nan_to_num(strengths).max(axis=(1, 2))  # each replica has one strength
    groups = {h: chi[of_replica == h] for h in found.fields}
    if len(groups) < 2:
        return ["linearity was not tested: give several strengths, field=[h, 2 h], to a ReplicaEnsemble"]
    if min(map(len, groups.values())) < 2:
        return ["linearity was not tested: each strength needs two replicas or more"]
    for (h, one), (k, two) in itertools.combinations(groups.items(), 2):
        (a, a_error), (b, b_error) = over_replicas(one), over_replicas(two)
        z = np.nan_to_num(np.abs(a - b) / np.hypot(a_error, b_error), posinf=0.0)
        i, j = np.unravel_index(np.argmax(z), z.shape)
        # With few replicas an error can be small by chance.
        if z[i, j] > _DIFFERENT * (1 + 4 / min(len(one), len(two))) and abs(a - b)[i, j] > 0.02 * abs(a + b)[i, j] / 2:
            return [
                f"nonlinear: at lag {found.lags[j]:,} after step {found.waiting_times[i]:,}, the response is "
                f"{a[i, j]:.3g} at h = {h:.3g} and {b[i, j]:.3g} at h = {k:.3g}, {z[i, j]:.1f} errors apart: take a "
                "weaker field"
            ]
    return []


def _rescaled(record: AgingRecord) -> list[str]:
    optimizers: Any = record.meta.get("optimizers")
    names = [o.get("name") for o in optimizers if isinstance(o, dict)] if isinstance(optimizers, list) else []
    others = [name for name in names if isinstance(name, str) and name not in _THERMAL]
    return [
        f"{name} {'is adaptive and rescales' if name in _ADAPTIVE else 'may rescale'} the field with the gradient: "
        "1/T_eff is a response to this optimiser's update"
        for name in dict.fromkeys(others)
    ]


def _rounded(record: AgingRecord, found: FluctuationDissipation) -> list[str]:
    dtypes: Any = record.meta.get("dtypes")
    if isinstance(dtypes, dict) and dtypes and set(dtypes.values()) == {"float64"}:
        return []
    size = record.rms_weight()
    shift = np.nanmin(np.abs(found.response)) * min(found.fields)
    if size is not None and shift < 8 * np.finfo(np.float32).eps * size:
        return [
            f"the smallest mean shift by the field, {shift:.2g}, is near the rounding of float32 weights of size "
            f"{size:.2g}: take a stronger field, or double precision"
        ]
    return []


def _clipped(record: AgingRecord) -> list[str]:
    if not record.meta.get("gradient_clip_val"):
        return []
    return ["gradients are clipped, and so is the field: 1/T_eff is a response to the clipped update"]


def _drifting(found: FluctuationDissipation) -> list[str]:
    """Name the sectors in which the displacement grows faster than by diffusion."""
    fast = []
    for sector in found.sectors:
        i = int(np.searchsorted(found.waiting_times, sector.waiting_time))
        inside = (found.lags >= sector.first_lag) & (found.lags <= sector.last_lag) & (found.msd[i] > 0)
        if inside.sum() >= 3:
            exponent = float(np.polyfit(np.log(found.lags[inside]), np.log(found.msd[i, inside]), 1)[0])
            if exponent > _DRIFT:
                fast.append(f"{sector.name} lags after step {sector.waiting_time:,} ({exponent:.2f})")
    if not fast:
        return []
    more = len(fast) - _MOST_SECTORS
    named = ", ".join(fast[:_MOST_SECTORS]) + (f" and {more} more" if more > 0 else "")
    return [
        f"the weights drift: the displacement grows faster than by diffusion, with these powers of the lag: {named}. A "
        "drift is no fluctuation, so that T_eff is too high there. If the early lags drift, X is too large"
    ]


def _changing_size(found: FluctuationDissipation) -> list[str]:
    for sector in found.sectors:
        apart = abs(sector.slope - sector.correlation_slope)
        error = np.hypot(sector.slope_error, sector.correlation_slope_error)
        if apart > max(3 * np.nan_to_num(error), 0.1 * abs(sector.slope)):
            return [
                "the weights change their size: the slopes of the response against the displacement and against the "
                "correlation differ, and T_eff here is from the displacement"
            ]
    return []
