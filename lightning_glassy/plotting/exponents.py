"""Plots of relaxation curves and of the exponents fitted to them."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.plotting.axes import (
    bands_of,
    cell_edges,
    draw_curves,
    drawable,
    grid,
    log_axis,
    note,
    pyplot_axes,
)
from lightning_glassy.plotting.given import result_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import AgingExponent, Collapse, Curves, Diffusion


def plot_curves(
    record: AgingRecord | Curves,
    *,
    observable: str | None = None,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the relaxation curves of the analysis against the lag, with both axes logarithmic.

    With replicas, the mean over the replicas is drawn, with a band of one standard error on either side.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.relaxation_curves`.
        observable: observable of the record that relaxes, default the displacement.
        group: group of the record.
        eps: threshold of the overlap.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.
    """
    curves = result_of(record, _curves, observable=observable, group=group, eps=eps)
    values = curves.mean()
    lags = np.broadcast_to(curves.lags, values.shape)
    ax = draw_curves(curves.waiting_times, lags, values, ax, colorbar, errors=curves.sem(), n_replica=curves.n_replica)
    ax.set_xlabel("lag $t$ (steps)")
    return ax


def plot_collapse(
    record: AgingRecord | Collapse,
    *,
    observable: str | None = None,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw curves against the scaled lag.

    If the curves fall on each other, the lag to relax grows with the exponent ``collapsed.mu``. With replicas, a band
    shows one standard error on either side.

    Args:
        record: record to draw, with the exponent of :func:`~lightning_glassy.analysis.aging_exponent`, or a result of
            :func:`~lightning_glassy.analysis.collapse`.
        observable: observable of the record that relaxes, default the displacement.
        group: group of the record.
        eps: threshold of the overlap.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        NotEnoughDataError: the record has too few curves for an exponent, or their best collapse is at the end of the
            range of exponents that was searched. Both are also a ValueError.
    """
    found = result_of(record, _collapse, observable=observable, group=group, eps=eps)
    collapsed, fit = found if isinstance(found, tuple) else (found, None)
    ax = draw_curves(
        collapsed.waiting_times,
        collapsed.scaled_lags,
        collapsed.values,
        ax,
        colorbar,
        errors=collapsed.errors,
        n_replica=collapsed.n_replica,
    )
    variable = {"effective": r"effective time $h$", "plain": r"$t/t_w^\mu$"}[collapsed.variable]
    ax.set_xlabel(rf"{variable}, $\mu = {collapsed.mu:.3f}$")
    if fit is not None:
        ax.set_ylabel(fit.label)
        note_doubt(ax, fit)
    return ax


def note_doubt(ax: Axes, fit: AgingExponent) -> None:
    """If the exponent is no headline, write the reason above the axes, below an existing title."""
    if fit.why_not is None:
        return
    why = printable(fit.why_not).replace("$", r"\$")
    words = wrap(f"no aging exponent: {why}", 90, max_lines=2, placeholder=" ...")
    title = [ax.get_title()] if ax.get_title() else []
    ax.set_title("\n".join([*title, *words]), fontsize=8)
    ax.figure.subplots_adjust(top=0.87)


def plot_threshold_lags(
    record: AgingRecord | AgingExponent,
    *,
    observable: str | None = None,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the lag to each threshold against the waiting time, with the fitted power laws.

    With replicas, each lag has a bar of one standard error on either side, by the jackknife over replicas.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.aging_exponent`.
        observable: observable of the record that relaxes, default the displacement.
        group: group of the record.
        eps: threshold of the overlap.
        ax: axes to draw on, default new axes of pyplot.

    Raises:
        NotEnoughDataError: the record has too few curves for an exponent.
    """
    fit = result_of(record, _exponent, observable=observable, group=group, eps=eps)
    ax = pyplot_axes()[0] if ax is None else ax
    from matplotlib import colormaps

    colours, markers = colormaps["cividis"], "osD^v<>p"
    times = fit.waiting_times + fit.t0
    for i, threshold in enumerate(fit.thresholds):
        colour = colours(0.9 * i / max(len(fit.thresholds) - 1, 1))
        lags = threshold.crossings.lags
        found = np.isfinite(lags)
        ends = times[found][[0, -1]]
        label = f"{threshold.crossings.threshold:.2g}: slope {threshold.mu:.2f}"
        errors = threshold.crossings.errors
        # A logarithmic axis cannot show an end of a bar below 0.
        bars = None if errors is None else np.stack([np.minimum(errors, 0.9 * lags), errors])[:, found]
        ax.errorbar(
            times[found],
            lags[found],
            yerr=None if bars is None else np.where(drawable(bars), bars, 0.0),
            fmt=markers[i % len(markers)],
            color=colour,
            markersize=5,
            elinewidth=1,
            label=label,
        )
        ax.plot(ends, threshold.line(ends), color=colour, linewidth=1)
    if fit.thresholds:
        log_axis(ax, "x", "y")
        ax.legend(title="threshold", fontsize=8, title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "no threshold is reached\nby enough waiting times", ha="center", transform=ax.transAxes)
    ax.set_xlabel("waiting time $t_w$ (steps)" if not fit.t0 else f"waiting time $t_w$ + {fit.t0:.3g} (steps)")
    ax.set_ylabel("lag $t^*$ to the threshold (steps)")
    grid(ax)
    if any(threshold.crossings.errors is not None for threshold in fit.thresholds):
        note(ax, bands_of(fit.n_replica, what="bars"))
    return ax


def plot_local_exponent(
    record: AgingRecord | Diffusion, *, group: str = "all", ax: Axes | None = None, colorbar: bool = True
) -> Axes:
    r"""Draw the local exponent as a colour in the plane of waiting times and lags.

    White is diffusion, and blue is slower than diffusion.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.diffusion`.
        group: group of the record.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale beside the axes.
    """
    found = result_of(record, _diffusion, group=group)
    ax = pyplot_axes()[0] if ax is None else ax
    positive = found.waiting_times > 0
    if positive.sum() >= 2 and len(found.lags) >= 2:
        mesh = ax.pcolormesh(
            cell_edges(found.waiting_times[positive]),
            cell_edges(found.lags),
            np.ma.masked_invalid(found.exponents[positive].T),
            cmap="RdBu_r",
            vmin=0,
            vmax=2,
            rasterized=True,
        )
        log_axis(ax, "x", "y")
        if colorbar:
            bar = ax.figure.colorbar(mesh, ax=ax, ticks=[0, 0.5, 1, 1.5, 2])
            bar.set_label(r"local exponent $\gamma$ (0 arrested, 1 diffusion, 2 ballistic)")
    ax.set_facecolor("0.92")
    ax.set_xlabel("waiting time $t_w$ (steps)")
    ax.set_ylabel("lag $t$ (steps)")
    return ax


def _curves(record: AgingRecord, observable: str | None, group: str, eps: float | None) -> Curves:
    from lightning_glassy.analysis import relaxation_curves

    return relaxation_curves(record, observable or "msd", group=group, eps=eps)


def _exponent(record: AgingRecord, observable: str | None, group: str, eps: float | None) -> AgingExponent:
    from lightning_glassy.analysis import aging_exponent

    return aging_exponent(record, observable or "msd", group=group, eps=eps)


def _collapse(
    record: AgingRecord, observable: str | None, group: str, eps: float | None
) -> tuple[Collapse, AgingExponent]:
    from lightning_glassy.analysis import NotEnoughDataError, collapse
    from lightning_glassy.analysis.exponents import windowed

    fit = _exponent(record, observable, group, eps)
    if np.isnan(fit.estimate):
        raise NotEnoughDataError(f"there is no collapse to draw: {fit.why_not}")
    used = windowed(_curves(record, observable, group, eps), fit.window, fit.t0)
    return collapse(used, fit.estimate, fit.variable, t0=fit.t0), fit


def _diffusion(record: AgingRecord, group: str) -> Diffusion:
    from lightning_glassy.analysis import diffusion

    return diffusion(record, group=group)
