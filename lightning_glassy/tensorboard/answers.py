"""Answers to the questions of the page about a record, as plain values.

Every number comes from the record or from :mod:`lightning_glassy.analysis`. Matrices are ``[n_tw][n_lag]``, with None
for a missing value. Times are in steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_glassy.observables import OBSERVABLES, find, unicode_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import plain

if TYPE_CHECKING:
    from lightning_glassy.analysis import Curves
    from lightning_glassy.analysis.collapse import Variable


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
    """Return the groups, observables, thresholds and series of a record, and its last step."""
    there = {name for group in record.groups for name in record.available(group)}
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
    }


def curves(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    """Return the two-time curves, as measured, and a band of one standard error on either side.

    Replicas are averaged, and the band is the standard error of their mean. The values and the error of an observable
    that compares replicas come from the record. A single run has no band.
    """
    entry, positive = find(observable), record.lags > 0  # a logarithmic axis cannot show lag 0
    values, error = record.observable(observable, group, eps=eps), None
    if entry.over_replicas:
        error = None if entry.error is None else record.standard_error(observable, group, eps=eps)
    elif record.n_replica is not None:
        error = values.std(axis=0, ddof=1) / np.sqrt(record.n_replica) if record.n_replica > 1 else None
        values = values.mean(axis=0)
    values = values[:, positive]
    band = None
    if error is not None:
        band = {"low": values - error[:, positive], "high": values + error[:, positive]}
    content = {"waiting_times": record.waiting_times, "lags": record.lags[positive], "values": values, "band": band}
    return plain(content)  # type: ignore[no-any-return]


def fit(record: AgingRecord, observable: str, group: str, eps: float | None) -> dict[str, Any]:
    """Return the exponent, the verdict and the doubts of ``lightning-glassy report``, as values and as text."""
    from lightning_glassy.report import report

    if find(observable).relaxation is None:
        return {"aging_exponent": None, "why_no_exponent": f"{observable} is no relaxation", "text": ""}
    found = report(record, observable=observable, group=group, eps=eps)
    content = found.to_dict()
    variable = None if found.exponent is None else found.exponent.variable
    return {key: content[key] for key in ("aging_exponent", "why_no_exponent", "verdict")} | {
        "variable": variable,
        "text": str(found),
    }


@dataclass(frozen=True)
class Window:
    """The curves for the fit of an exponent.

    Attributes:
        curves: the curves that :func:`lightning_glassy.analysis.exponents.windowed` selects. If they are too few for a
            fit, all curves after step 0.
        relaxing: these curves above their fast plateaus. The quality of a collapse is computed from them.
    """

    curves: Curves
    relaxing: Curves


def window(record: AgingRecord, observable: str, group: str, eps: float | None) -> Window:
    """Return the curves of one observable for the collapse and for the lags to a threshold."""
    from lightning_glassy.analysis import NotEnoughDataError, relaxation_curves
    from lightning_glassy.analysis.exponents import windowed
    from lightning_glassy.analysis.plateaus import above_plateaus

    whole = relaxation_curves(record, observable, group=group, eps=eps)
    try:
        used = windowed(whole, None)
    except NotEnoughDataError:
        used = whole.after(0)
    return Window(used, above_plateaus(used))


def scaled(record: AgingRecord, window: Window | None, mu: float, variable: Variable) -> dict[str, Any]:
    """Return the abscissa of each point after scaling the lag, and the quality S of the collapse.

    The abscissa is None outside of the window. An observable that does not relax, such as the non-Gaussian parameter,
    has no window. All its waiting times after step 0 are then scaled, and there is no S.
    """
    from lightning_glassy.analysis import collapse_quality, scaled_lag

    waiting_times, lags = record.waiting_times, record.lags[record.lags > 0]
    used = waiting_times > 0 if window is None else np.isin(waiting_times, window.curves.waiting_times)
    places = np.full((len(waiting_times), len(lags)), np.nan)
    places[used] = scaled_lag(waiting_times[used, None], lags[None, :], mu, variable)
    quality = None if window is None or not used.any() else collapse_quality(window.relaxing, mu, variable)[0]
    return plain({"scaled_lags": places, "quality": quality})  # type: ignore[no-any-return]


def crossings(window: Window, threshold: float) -> dict[str, Any]:
    """Return the lag at which each curve reaches a threshold, and the slope of this lag against the waiting time.

    For the overlap, the threshold applies to 1 - Q.
    """
    from lightning_glassy.analysis.exponents import threshold_fit

    times = window.curves.waiting_times
    law = threshold_fit(window.curves, threshold)
    reached = times[np.isfinite(law.crossings.lags)]
    ends = reached[[0, -1]] if len(reached) else reached
    content = {
        "waiting_times": times,
        "lags": law.crossings.lags,
        "early": int(law.crossings.early.sum()),
        "late": int(law.crossings.late.sum()),
        "slope": law.mu,
        "line": {"x": ends, "y": law.line(ends)},
    }
    return plain(content)  # type: ignore[no-any-return]


def exponents(record: AgingRecord, group: str) -> dict[str, Any]:
    """Return the local exponent of the displacement, smoothed over a quarter of a decade of lags to either side."""
    from lightning_glassy.analysis import diffusion

    found = diffusion(record, group=group)
    content = {"waiting_times": found.waiting_times, "lags": found.lags, "values": found.exponents}
    return plain(content)  # type: ignore[no-any-return]


def series(record: AgingRecord) -> dict[str, Any]:
    """Return every one-time series of a record."""
    content = {name: {"steps": steps, "values": values} for name in record.one_time_names
               for steps, values in [record.one_time(name)]}  # fmt: skip
    return plain(content)  # type: ignore[no-any-return]
