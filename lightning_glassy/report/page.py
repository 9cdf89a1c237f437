"""A report as one HTML file that needs nothing else: curves that collapse as the exponent is moved."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_glassy.analysis import collapse_quality, relaxation_curves
from lightning_glassy.analysis.curves import OBSERVABLES
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.record.text import plain

if TYPE_CHECKING:
    from lightning_glassy.report.result import Report

_MUS = np.linspace(-0.5, 2, 126)


def page(report: Report) -> str:
    """The report as an HTML page with plotly.js inside; it loads nothing from anywhere.

    Raises:
        ImportError: plotly is missing; the message names the extra.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the interactive report needs plotly: pip install 'lightning-glassy[report]'") from error
    template = (files("lightning_glassy.report") / "report.html").read_text(encoding="utf-8")
    # "<" would let a name in a record end the script.
    data = json.dumps(_data(report), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(report.title), "plotly": get_plotlyjs(), "data": data}
    return re.sub(r"\{\{(title|plotly|data)\}\}", lambda match: parts[match[1]], template)


def _data(report: Report) -> dict[str, Any]:
    from plotly.colors import sample_colorscale

    record, fit, judged = report.record, report.exponent, report.verdict
    curves = relaxation_curves(record, report.observable, group=report.group, eps=report.eps)
    times = curves.waiting_times
    place = np.log(np.maximum(times, 1)) / max(np.log(max(times.max(), 2)), 1)
    colours = sample_colorscale("Viridis", (0.95 * place / max(place.max(), 1e-9)).tolist())
    first, last = fit.window if fit is not None else (0, int(times[-1]))
    answers = [[judged.kind + (f" at step {judged.stops_at:,}" if judged.stops_at is not None else ""), "verdict"]]
    if judged.phase is not None:
        answers[0][0] += f": {judged.phase}"
    if fit is not None:
        interval = "no interval"
        if fit.interval is not None:
            interval = f"{fit.confidence:.0%} interval {fit.interval[0]:.3f} … {fit.interval[1]:.3f}"
        answers.append([f"μ = {fit.mu:.3f}", f"aging exponent, {interval}"])
    if report.diffusion.coefficient is not None:
        answers.append([f"D = {report.diffusion.coefficient:.3g}", "diffusion at the bottom, per step"])
    for name, value, form in (
        ("training loss at the end", judged.train_loss, ".3g"),
        ("training accuracy at the end", judged.train_accuracy, ".2%"),
    ):
        if value is not None:
            answers.append([format(value, form), name])
    if report.regimes is not None and report.regimes.bottom_from is not None:
        answers.append([f"step {report.regimes.bottom_from:,.0f}", "from which on the training loss is at the bottom"])
    positive = report.diffusion.waiting_times > 0
    data: dict[str, Any] = {
        "title": report.title,
        "words": str(report),
        "answers": answers,
        "label": OBSERVABLES[report.observable],
        "lags": curves.lags,
        "curves": [
            {"waiting_time": t_w, "colour": colour, "values": row, "used": bool(first <= t_w <= last)}
            for t_w, colour, row in zip(times, colours, curves.mean(), strict=True)
        ],
        "exponents": {
            "waiting_times": report.diffusion.waiting_times[positive],
            "values": report.diffusion.exponents[positive].T,
        },
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
        used = above_plateaus(curves.between(*fit.window))
        data |= {"mu": fit.mu, "variable": fit.variable, "thresholds": _thresholds(report)}
        mus = np.union1d(_MUS, fit.mu)  # with the fitted one, so that page and text have the same S there
        data["scan"] = {"mus": mus} | {
            variable: collapse_quality(used, mus, variable, t0=fit.t0) for variable in ("effective", "plain")
        }
    return plain(data)  # type: ignore[no-any-return]


def _thresholds(report: Report) -> list[dict[str, Any]]:
    from plotly.colors import sample_colorscale

    fit = report.exponent
    assert fit is not None
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
