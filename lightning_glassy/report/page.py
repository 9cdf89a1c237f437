"""A report as one HTML file that needs no other file. The reader moves the exponent and watches the collapse."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import Any

import numpy as np

from lightning_glassy.analysis import AgingExponent, collapse_quality, relaxation_curves
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.observables import Array, find, unicode_of
from lightning_glassy.record.text import plain
from lightning_glassy.report.findings import Findings

_MUS = np.linspace(-0.5, 2, 126)


def page(found: Findings) -> str:
    """Return a report as an HTML page with plotly.js inside. The page loads no other file.

    Raises:
        ImportError: plotly is missing. The message names the extra.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the interactive report needs plotly: pip install 'lightning-glassy[report]'") from error
    template = (files("lightning_glassy.report") / "report.html").read_text(encoding="utf-8")
    # A name in a record could otherwise end the script with "</script>".
    data = json.dumps(_data(found), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(found.title), "plotly": get_plotlyjs(), "data": data}
    return re.sub(r"\{\{(title|plotly|data)\}\}", lambda match: parts[match[1]], template)


def _data(found: Findings) -> dict[str, Any]:
    from plotly.colors import sample_colorscale

    record, fit, moving = found.record, found.exponent, found.diffusion
    times = record.waiting_times
    place = np.log(np.maximum(times, 1)) / max(np.log(max(times.max(), 2)), 1)
    colours = sample_colorscale("Viridis", (0.95 * place / max(place.max(), 1e-9)).tolist())
    first, last = fit.window if fit is not None else (0, int(times[-1]))
    lags, values, label, log = _curves(found)
    positive = moving.waiting_times > 0
    data: dict[str, Any] = {
        "title": found.title,
        "words": str(found),
        "answers": _answers(found),
        "label": label,
        "log": log,
        "lags": lags,
        "curves": [
            {"waiting_time": t_w, "colour": colour, "values": row, "used": bool(first <= t_w <= last)}
            for t_w, colour, row in zip(times, colours, values, strict=True)
        ],
        "exponents": {
            "waiting_times": moving.waiting_times[positive],
            "lags": moving.lags,
            "values": moving.exponents[positive].T,
        },
        "observables": _observables(found),
        "series": [
            {"name": name, "steps": steps, "values": values}
            for name in record.one_time_names
            for steps, values in [record.one_time(name)]
        ],
        "t0": fit.t0 if fit is not None else 0.0,
        "scan": None,
        "thresholds": None,
    }
    if fit is not None:
        curves = relaxation_curves(record, found.observable, group=found.group, eps=found.eps)
        used = above_plateaus(curves.between(*fit.window))
        data |= {"mu": fit.mu, "variable": fit.variable, "thresholds": _thresholds(fit)}
        mus = np.union1d(_MUS, fit.mu)  # include the fitted mu, so that page and text show the same S
        data["scan"] = {"mus": mus} | {
            variable: collapse_quality(used, mus, variable, t0=fit.t0) for variable in ("effective", "plain")
        }
    return plain(data)  # type: ignore[no-any-return]


def _curves(found: Findings) -> tuple[Any, Array, str, bool]:
    """Return lags, curves, label, and whether the axis is logarithmic, for the observable of a report."""
    if find(found.observable).relaxation is not None:
        curves = relaxation_curves(found.record, found.observable, group=found.group, eps=found.eps)
        return curves.lags, curves.mean(), curves.label, True
    entry = find(found.observable)
    values = _mean(found, entry.name, found.eps)
    return found.record.lags, values, f"{entry.title} {unicode_of(entry.symbol)}", entry.log


def _mean(found: Findings, name: str, eps: float | None) -> Array:
    """Return an observable over the pairs of times, ``[n_tw, n_lag]``, averaged over replicas."""
    values = found.record.observable(name, found.group, eps=eps)
    return values if values.ndim == 2 else values.mean(axis=0)


def _observables(found: Findings) -> dict[str, Any]:
    """Return every observable that the record has, at each threshold.

    Waiting times of checkpoints share hardly any lags. Each curve therefore has only the lags at which it was measured.
    """
    record = found.record
    waiting_times, lags = record.pairs
    measured = [np.searchsorted(record.lags, lags[waiting_times == t_w]) for t_w in record.waiting_times]
    drawn = []
    for entry in map(find, record.available(found.group)):
        for eps in record.overlap_thresholds if entry.has_threshold else (None,):
            values = _mean(found, entry.name, eps)
            title = f"{entry.title} {unicode_of(entry.symbol)}" + ("" if eps is None else f", ε = {eps:.3g}")
            curves = [row[places] for row, places in zip(values, measured, strict=True)]
            drawn.append({"title": title, "log": entry.log, "values": curves})
    return {"lags": [record.lags[places] for places in measured], "curves": drawn}


def _answers(found: Findings) -> list[list[str]]:
    """Return the cards at the top of the page: a value and its name."""
    fit, judged = found.exponent, found.verdict
    answers = [[judged.kind + (f" at step {judged.stops_at:,}" if judged.stops_at is not None else ""), "verdict"]]
    if judged.phase is not None:
        answers[0][0] += f": {judged.phase}"
    if fit is not None:
        interval = "no interval"
        if fit.interval is not None:
            interval = f"{fit.confidence:.0%} interval {fit.interval[0]:.3f} … {fit.interval[1]:.3f}"
        answers.append([f"μ = {fit.mu:.3f}", f"aging exponent, {interval}"])
    if found.diffusion.coefficient is not None:
        answers.append([f"D = {found.diffusion.coefficient:.3g}", "diffusion at the bottom, per step"])
    for name, value, form in (
        ("training loss at the end", judged.train_loss, ".3g"),
        ("training accuracy at the end", judged.train_accuracy, ".2%"),
    ):
        if value is not None:
            answers.append([format(value, form), name])
    if found.regimes is not None and found.regimes.bottom_from is not None:
        answers.append([f"step {found.regimes.bottom_from:,.0f}", "from which on the training loss is at the bottom"])
    return answers


def _thresholds(fit: AgingExponent) -> list[dict[str, Any]]:
    from plotly.colors import sample_colorscale

    if not fit.thresholds:
        return []
    colours = sample_colorscale("Cividis", np.linspace(0, 0.9, len(fit.thresholds)).tolist())
    lines = []
    for threshold, colour in zip(fit.thresholds, colours, strict=True):
        line = threshold.line(fit.waiting_times + fit.t0)
        found = np.isfinite(threshold.crossings.lags)
        lines.append(
            {
                "name": f"{threshold.crossings.threshold:.2g}: slope {threshold.mu:.2f}",
                "colour": colour,
                "x": (fit.waiting_times + fit.t0)[found],
                "y": threshold.crossings.lags[found],
                "line_x": (fit.waiting_times + fit.t0)[found][[0, -1]],
                "line_y": line[found][[0, -1]],
            }
        )
    return lines
