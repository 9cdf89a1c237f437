"""Answers to the questions of the page about a record, as plain values.

The tab asks for the answers one by one. ``report.html`` contains them. Every number comes from the record or from
:mod:`lightning_glassy.analysis`. Times are in steps. Curves are one list of lags and one list of values for each
waiting time, without the lags at which there is no finite value.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import OBSERVABLES, Array, density, find, log_spaced, unicode_of
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord, series_name
from lightning_glassy.record.tables import RESPONSE_TABLE
from lightning_glassy.record.text import few, plain

if TYPE_CHECKING:
    from lightning_glassy.analysis import FluctuationDissipation, GroupAging
    from lightning_glassy.report.findings import Findings

log = logging.getLogger(__name__)

SYMBOLS = {
    "t_w": "waiting time: the step at which the stopwatch starts",
    "t": "lag: steps since the waiting time",
    "Δ": "mean squared displacement of the weights between two steps",
    "δ": "rms displacement over the rms weight: 0.1 is 10 % of the size of the weights",
    "C": "correlation of the weights at two steps: 1 if they are the same, 0 if they have nothing in common",
    "Q": "overlap: the fraction of weights that have moved by at most ε",
    "ε": "threshold of the overlap: a weight that has moved by less has hardly moved",
    "α": "non-Gaussian parameter: 0 if all weights move alike, large if a few move much more than the rest",
    "U": "Binder cumulant: 0 for Gaussian displacements",
    "χ": "response of the weights to a small random field that acts since the waiting time",
    "χ_4": "dynamical susceptibility: large if many weights move together, differently in each replica",
    "T_eff": "effective temperature: the displacement over twice the response, from the slope of the curve",
    "X": "fluctuation-dissipation ratio: the temperature of the early lags over the effective temperature",
    "γ": "local exponent of the displacement: 1 is diffusion, 2 is straight motion, near 0 is a plateau",
    "D": "strength of the gradient noise: the variance of the gradient over batches, summed over the weights",
    "K": "diffusion coefficient at the bottom of the landscape: the displacement grows as 2 K t",
    "μ": "aging exponent: the lag to move as far grows as the waiting time to this power",
    "h": "effective time: the lag on a clock that slows down with the exponent μ",
    "S": "quality of the collapse: 1 if the curves agree within their errors, larger if they do not",
    "λ": "eigenvalue of the curvature of the loss",
    "q": "overlap of the weights of two replicas: 1 if they are the same, 0 if they have nothing in common",
    "N": "number of parameters",
}
"""Meaning of each symbol of the page. The page shows it when the mouse is on the symbol."""

_MUS = np.linspace(-0.5, 2, 126)
_MOST_FUNCTIONS = 60  # of one profile
_AT_ONE_LAG, _MOST_AT_LAGS = ("displacement", "weights", "loss_path"), 300  # profiles that a slider goes through
_MOST_ROWS = 100  # groups side by side, or time sectors of a response
_MOST_VALUES = 10_000  # of one series


@quiet()
def shielded(answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return an answer, or the error as ``{"error": sentence}``, so that the page still shows the other answers."""
    try:
        return answer()
    except (ValueError, KeyError) as error:
        return {"error": str(error.args[0] if error.args else error)}
    except Exception as error:  # the analysis cannot handle this record, and the page shows the error
        log.exception("lightning_glassy: a record could not be analysed")
        return {"error": f"it could not be analysed ({type(error).__name__}: {error})"}


def observables() -> list[dict[str, Any]]:
    """Return every observable of the registry, as the page shows it. :data:`SYMBOLS` explains the symbols.

    ``symbol`` is text with Unicode letters and subscripts after an underscore. ``relaxing`` is the symbol of the
    quantity that reaches a threshold, None for an observable that does not relax. ``falls`` is true if this quantity is
    one minus the observable.
    """
    return [
        {
            "name": entry.name,
            "title": entry.title[0].upper() + entry.title[1:],
            "symbol": unicode_of(entry.symbol),
            "log": entry.log,
            "has_threshold": entry.has_threshold,
            "relaxing": None if entry.relaxation is None else unicode_of(entry.relaxation.symbol),
            "falls": entry.relaxation is not None and entry.relaxation.falls,
            "band": "one standard error" + ("" if entry.over_replicas else " of the mean over replicas"),
        }
        for entry in OBSERVABLES.values()
    ]


def describe(record: AgingRecord) -> dict[str, Any]:
    """Return the groups, observables, thresholds, series and doubts of a record, and its last step."""
    # Groups differ only in whether their gradient noise was measured. Ask one group of each kind.
    series = set(record.one_time_names)
    kinds = {series_name("gradient_noise", group) in series: group for group in record.groups}
    there = {name for group in kinds.values() for name in record.available(group)}
    module = record.meta.get("module")
    waiting_times, lags = record.pairs
    steps = waiting_times + lags
    if not len(record):  # a record of a training without AgingMonitor
        steps = np.concatenate([steps, *(record.one_time(name)[0] for name in record.one_time_names)])
    return {
        "groups": [{"name": group, "n_parameters": n} for group, n in record.n_parameters.items()],
        "observables": [name for name in OBSERVABLES if name in there],
        "eps": list(record.overlap_thresholds),
        "series": list(record.one_time_names),
        "n_replica": record.n_replica,
        "n_pairs": len(record),
        "last_step": int(steps.max(initial=0)),
        "module": module if isinstance(module, str) else None,
        "steps_per_epoch": record.steps_per_epoch,
        "rms_weight": {group: record.rms_weight(group) for group in record.groups},
        "doubts": record.doubts,
    }


def curves(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    """Return the measured two-time curves, a band of one standard error on either side, and the relaxing curves.

    The values are :meth:`AgingRecord.mean`, and the band is :meth:`AgingRecord.sem`. A single run has no band. Replicas
    that are copies of others, or have diverged from the start, are left out.
    """
    record, _ = record.independent()
    positive = record.lags > 0  # a logarithmic axis cannot show lag 0
    values = record.mean(observable, group, eps=eps)[:, positive]
    edges: tuple[Array, ...] = ()
    if record.has_errors:
        error = record.sem(observable, group, eps=eps)[:, positive]
        edges = (values - error, values + error)
    content = {"waiting_times": record.waiting_times, **_rows(record.lags[positive], values, *edges)}
    return plain(content | _relaxation(record, observable, group, eps))  # type: ignore[no-any-return]


def _rows(lags: NDArray[np.int64], values: Array, *edges: Array) -> dict[str, Any]:
    """Return curves ``[n_tw, n_lag]`` as lists, without the lags at which there is no finite value."""
    kept = [np.isfinite(row) for row in values]
    rows = [[row[mask] for row, mask in zip(matrix, kept, strict=True)] for matrix in (values, *edges)]
    band = dict(zip(("low", "high"), rows[1:], strict=True)) if edges else None
    return {"lags": [lags[mask] for mask in kept], "values": rows[0], "band": band}


def _relaxation(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    """Return the waiting times that an exponent is fitted to, and the curves that reach a threshold.

    The page computes these curves from the values of the observable. If the waiting times share hardly any lags, the
    analysis interpolates, and the answer has the interpolated curves. An observable that does not relax, or a record
    with too few curves for a fit, gives all waiting times after step 0.
    """
    from lightning_glassy.analysis import NotEnoughDataError, relaxation_curves
    from lightning_glassy.analysis.exponents import windowed

    content: dict[str, Any] = {"used": record.waiting_times[record.waiting_times > 0], "relaxing": None}
    if find(observable).relaxation is None:
        return content
    try:
        whole = relaxation_curves(record, observable, group=group, eps=eps)
        if not np.array_equal(whole.lags, record.lags[record.lags > 0]):
            mean, error = whole.mean(), whole.sem()
            content["relaxing"] = _rows(
                whole.lags, mean, *((mean - error, mean + error) if whole.n_replica > 1 else ())
            )
        content["used"] = windowed(whole, None).waiting_times
    except NotEnoughDataError:
        pass
    except ValueError:  # no pair at a positive lag: nothing can be fitted
        content["used"] = []
    return content


def fit(found: Findings) -> dict[str, Any]:
    """Return the findings of ``lightning-glassy report``: exponent, verdict and doubts, as values and as text.

    ``headline`` has the short answers, as pairs of a value and its name. ``scan`` has the quality S of the collapse as
    a function of mu, in both scaling variables, as the fit has minimised it.
    """
    exponent = found.exponent
    content = {
        "aging_exponent": None if exponent is None else exponent.to_dict(),
        "why_no_exponent": found.why_not,
        "verdict": asdict(found.verdict),
        "variable": None if exponent is None else exponent.variable,
        "words": found.words,
        "confidence": found.confidence,
        "doubts": found.doubts,
        "headline": found.headline,
        "text": found.text,
        "scan": _scan(found),
    }
    return plain(content)  # type: ignore[no-any-return]


def _scan(found: Findings) -> dict[str, Any] | None:
    from lightning_glassy.analysis import collapse_quality, relaxation_curves
    from lightning_glassy.analysis.exponent_result import COLLAPSES
    from lightning_glassy.analysis.exponents import windowed
    from lightning_glassy.analysis.plateaus import above_plateaus

    fit = found.exponent
    if fit is None:
        return None
    curves = relaxation_curves(found.record, found.observable, group=found.group, eps=found.eps)
    used = above_plateaus(windowed(curves, fit.window, fit.t0))
    mus = _MUS if np.isnan(fit.estimate) else np.union1d(_MUS, fit.estimate)  # the page marks the estimate
    # This is the S that the fit has minimised, so that the minimum is where the page marks the exponent.
    scans = {
        variable: collapse_quality(used, mus, variable, t0=fit.t0, scatter=fit.scatter[method])
        for method, variable in COLLAPSES.items()
    }
    return {"mus": mus} | scans


def exponents(record: AgingRecord, group: str) -> dict[str, Any]:
    """Return the local exponent of the displacement, smoothed over a quarter of a decade of lags to either side."""
    from lightning_glassy.analysis import diffusion

    found = diffusion(record, group=group)
    content = {"waiting_times": found.waiting_times, **_rows(found.lags, found.exponents)}
    return plain(content)  # type: ignore[no-any-return]


def groups(record: AgingRecord, observable: str, eps: float | None) -> dict[str, Any]:
    """Return the aging rates of the groups side by side: the rows of a table, and a map of local rates.

    The exponents of the groups are left out, because they take long. The page asks for them with ``fits``.
    """
    from lightning_glassy.analysis import aging_by_group

    if len(record.groups) < 2 or find(observable).relaxation is None:
        return {"rows": [], "waiting_times": [], "n_groups": len(record.groups) - 1}
    found = aging_by_group(record, observable, eps=eps, most=_MOST_ROWS, exponents=False)
    return of_groups(found)


def of_groups(found: GroupAging) -> dict[str, Any]:
    """Return a table of groups as the page shows it."""
    rows = [
        {
            "group": row.group,
            "n_parameters": row.n_parameters,
            "mu": row.mu,
            "rate": None if row.rate is None else [row.rate.rate, row.rate.low, row.rate.high],
            "kind": row.kind,
            "local_rates": row.local_rates,
        }
        for row in (found.whole, *found.rows)
    ]
    return plain({"rows": rows, "waiting_times": found.waiting_times, "n_groups": found.n_groups})  # type: ignore[no-any-return]


def noise(record: AgingRecord, group: str) -> dict[str, Any]:
    r"""Return the noise clock: the noise :math:`\int D\,dn` that has acted at each pair, and the displacement.

    The answer has no curves if the gradient noise of the group was not measured.
    """
    from lightning_glassy.analysis import noise_clock

    if not len(record) or "normalised_msd" not in record.available(group):
        return {"waiting_times": [], "lags": [], "values": [], "band": None, "clock": []}
    record, _ = record.independent()
    positive = record.lags > 0
    clock, values = noise_clock(record, group)[:, positive], record.mean("msd", group)[:, positive]
    values = np.where(np.isfinite(clock), values, np.nan)
    kept = [clock[i][np.isfinite(row)] for i, row in enumerate(values)]
    return plain({"waiting_times": record.waiting_times, **_rows(record.lags[positive], values), "clock": kept})  # type: ignore[no-any-return]


def response(record: AgingRecord) -> dict[str, Any]:
    """Return the response to a field, half the displacement, and the effective temperatures by time sector.

    The band is one standard error on either side. ``slope`` is 1/T of the early lags after the last waiting time that
    has one, or None. The answer has no curves if the response was not measured.
    """
    from lightning_glassy.analysis import NotEnoughDataError, fluctuation_dissipation

    found = None
    if RESPONSE_TABLE in record.tables:
        with contextlib.suppress(NotEnoughDataError):
            found = fluctuation_dissipation(record)
    lists = ("waiting_times", "lags", "x", "values", "correlation", "sectors", "doubts")
    empty: dict[str, Any] = {name: [] for name in lists} | {"band": None, "slope": None}
    return empty if found is None else _curves_of_response(found)


def _curves_of_response(found: FluctuationDissipation) -> dict[str, Any]:
    from lightning_glassy.report.findings import sectors

    positive = found.lags > 0  # a logarithmic axis cannot show lag 0
    chi, error = found.response[:, positive], found.response_error[:, positive]
    half, lost = found.msd[:, positive] / 2, found.decorrelation[:, positive]
    chi = np.where(np.isfinite(half), chi, np.nan)
    kept = np.isfinite(chi)
    early = [sector.slope for sector in found.sectors if sector.name == "early" and np.isfinite(sector.temperature)]
    return plain(  # type: ignore[no-any-return]
        {
            "waiting_times": found.waiting_times,
            **_rows(found.lags[positive], chi, chi - error, chi + error),
            "x": [row[mask] for row, mask in zip(half, kept, strict=True)],
            "correlation": [s2 - row[mask] for s2, row, mask in zip(found.squares, lost, kept, strict=True)],
            "slope": early[-1] if early else None,
            "sectors": few(sectors(found), _MOST_ROWS),
            "doubts": found.doubts,
        }
    )


def replicas(record: AgingRecord) -> dict[str, Any]:
    """Return the overlaps between replicas along the run, and their distribution P(q) at the last comparison.

    The answer is empty if the replicas were trained apart, because they were never compared.
    """
    from lightning_glassy.analysis.heterogeneity import heterogeneity, narrow_bins, overlap_distribution

    empty = {"steps": [], "mean": [], "low": [], "high": [], "grid": [], "density": [], "n_pair": 0}
    if record.n_replica is None or record.n_replica < 2:
        return empty
    found = heterogeneity(record)
    if not len(found.steps):
        return empty
    q = found.overlaps
    edges, density_ = overlap_distribution(q[-1], *narrow_bins(q[-1]))
    return plain(  # type: ignore[no-any-return]
        {
            "steps": found.steps,
            "mean": q.mean(axis=1),
            "low": q.min(axis=1),
            "high": q.max(axis=1),
            "grid": (edges[1:] + edges[:-1]) / 2,
            "density": density_,
            "n_pair": q.shape[1],
        }
    )


def regimes(record: AgingRecord) -> dict[str, Any]:
    """Return the three regimes of the training loss: the fitted curve, and both crossovers with their ranges."""
    from lightning_glassy.analysis import NotEnoughDataError, loss_regimes

    found = None
    if "train_loss" in record.one_time_names:
        with contextlib.suppress(NotEnoughDataError):
            found = loss_regimes(record)
    if found is None or not found.falls:
        return {"steps": [], "fitted": [], "crossovers": []}
    ends = [(found.falls_from, found.falls_interval), (found.bottom_from, found.bottom_interval)]
    return plain(  # type: ignore[no-any-return]
        {
            "steps": found.steps,
            "fitted": found.fitted,
            "crossovers": [{"step": at, "interval": interval} for at, interval in ends if at is not None],
        }
    )


def series(record: AgingRecord) -> dict[str, Any]:
    """Return every one-time series of a record.

    The answer has at most ``_MOST_VALUES`` values, evenly spaced in the logarithm of the step, and the number ``n`` of
    all values.
    """
    content: dict[str, dict[str, Any]] = {}
    for name in record.one_time_names:
        steps, values = record.one_time(name)
        kept = log_spaced(steps, _MOST_VALUES)
        content[name] = {"steps": steps[kept], "values": values[kept]}
        content[name] |= {"n": len(steps)} if len(kept) < len(steps) else {}
    return {"one_time": plain(content)}


def profiles(record: AgingRecord) -> dict[str, Any]:
    """Return every profile of a record: functions on a grid, each at a waiting time and a lag.

    A histogram becomes the probability density in the middle of each bin. The answer has at most ``_MOST_FUNCTIONS``
    functions, evenly spaced over their pairs of times, and more of a profile that the page shows at one lag.
    """
    content = {}
    for name in record.profile_names:
        profile = record.profile(name)
        n, grid, values = len(profile.values), profile.grid, profile.values
        most = _MOST_AT_LAGS if name in _AT_ONE_LAG else _MOST_FUNCTIONS
        kept = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
        histogram = values.shape[1] == len(grid) + 1
        content[name] = {
            "waiting_times": profile.waiting_times[kept],
            "lags": profile.lags[kept],
            "grid": (grid[1:] + grid[:-1]) / 2 if histogram else grid,
            "values": density(grid, values[kept]) if histogram else values[kept],
            "density": histogram,
            "n": n,
        }
    return {"profiles": plain(content)}
