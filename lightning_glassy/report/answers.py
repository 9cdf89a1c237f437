"""Answers to the questions of the page about a record, as plain values.

The tab asks for them one by one. ``report.html`` has them inside. Every number comes from the record or from
:mod:`lightning_glassy.analysis`. Times are in steps. Curves are one list of lags and one list of values for each
waiting time, without the lags at which there is no finite value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import OBSERVABLES, Array, density, find, log_spaced, unicode_of
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord, series_name
from lightning_glassy.record.text import plain

if TYPE_CHECKING:
    from lightning_glassy.report.findings import Findings

log = logging.getLogger(__name__)

_MUS = np.linspace(-0.5, 2, 126)
_MOST_FUNCTIONS = 60  # of one profile
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
    """Return every observable of the registry, as the page shows it.

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
        "doubts": record.doubts,
    }


def curves(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    """Return the two-time curves, as measured, a band of one standard error on either side, and what relaxes.

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
    functions, evenly spaced over their pairs of times.
    """
    content = {}
    for name in record.profile_names:
        profile = record.profile(name)
        n, grid, values = len(profile.values), profile.grid, profile.values
        kept = np.unique(np.linspace(0, n - 1, min(n, _MOST_FUNCTIONS)).round().astype(np.int64))
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
