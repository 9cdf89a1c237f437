"""The figures of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy import plotting
from lightning_glassy.analysis import collapse, relaxation_curves
from lightning_glassy.analysis.exponents import windowed
from lightning_glassy.analysis.plateaus import above_plateaus
from lightning_glassy.observables import find
from lightning_glassy.plotting.exponents import note_doubt
from lightning_glassy.plotting.panels import panels
from lightning_glassy.report.findings import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(found: Findings) -> dict[str, Figure]:
    """Draw the figures of a report, by name, outside the global state of pyplot.

    Every report has ``curves`` of the observable, and ``local_exponent``. A report with an exponent has ``collapse``
    (the curves beside the collapsed curves), ``collapse_residuals`` and ``threshold_lags``. A report with relaxation
    times has ``relaxation_times``. A report about all parameters of a record with groups has ``groups``. A report on
    replicas has ``chi4`` if overlaps were counted, and ``replica_overlap`` if the replicas were trained together. The
    figures of :func:`~lightning_glassy.plotting.panels.panels` follow if the record has the data.

    Raises:
        ImportError: matplotlib is missing. The message names the extra.
    """
    record, group, fit = found.record, found.group, found.exponent
    drawn = {"curves": _curves(found)}
    title = plotting.title_of(record, group)
    if fit is not None and np.isfinite(fit.estimate):
        whole = relaxation_curves(record, found.observable, group=group, eps=found.eps)
        used = windowed(whole, fit.window, fit.t0)
        drawn["collapse"] = plotting.new_figure(2)
        left, right = drawn["collapse"].axes
        plotting.plot_curves(used, ax=left).set_ylabel(used.label)
        plotting.plot_collapse(collapse(used, fit.estimate, fit.variable, t0=fit.t0), ax=right)
        note_doubt(right, fit)
        drawn["collapse_residuals"] = plotting.new_figure(2)
        left, right = drawn["collapse_residuals"].axes
        slow = above_plateaus(used)  # the part of the curves that determines the exponent
        plotting.plot_collapse_residuals(slow, fit.estimate, fit.variable, t0=fit.t0, axes=(left, right))
    if fit is not None:
        drawn["threshold_lags"] = plotting.new_figure(1)
        plotting.plot_threshold_lags(fit, ax=drawn["threshold_lags"].axes[0]).set_title(title, fontsize=10)
        note_doubt(drawn["threshold_lags"].axes[0], fit)
    if found.relaxation is not None:
        drawn["relaxation_times"] = plotting.new_figure(2)
        left, right = drawn["relaxation_times"].axes
        plotting.plot_relaxation_times(found.relaxation, axes=(left, right))
        left.set_title(title, fontsize=10)
    drawn["local_exponent"] = plotting.new_figure(1)
    plotting.plot_local_exponent(found.diffusion, ax=drawn["local_exponent"].axes[0]).set_title(title, fontsize=10)
    if found.groups is not None:
        drawn["groups"] = plotting.groups_figure(found.groups)
    between = found.heterogeneity
    if between is not None and between.chi4 is not None:
        drawn["chi4"] = plotting.new_figure(1)
        plotting.plot_chi4(between, ax=drawn["chi4"].axes[0]).set_title(title, fontsize=10)
    if between is not None and len(between.steps):
        drawn["replica_overlap"] = plotting.new_figure(2)
        left, right = drawn["replica_overlap"].axes
        plotting.plot_replica_overlaps(between, axes=(left, right))
    more = panels(record, group=group, regimes=found.regimes)
    if found.response is None:
        more.pop("fluctuation_dissipation", None)
    return drawn | {name: draw() for name, draw in more.items()}


def _curves(found: Findings) -> Figure:
    if find(found.observable).relaxation is None:
        return plotting.two_time_figure(found.record, found.observable, group=found.group, eps=found.eps)
    curves = relaxation_curves(found.record, found.observable, group=found.group, eps=found.eps)
    figure = plotting.new_figure(1)
    axes = plotting.plot_curves(curves, ax=figure.axes[0])
    axes.set_ylabel(curves.label)
    axes.set_title(plotting.title_of(found.record, found.group), fontsize=10)
    return figure
