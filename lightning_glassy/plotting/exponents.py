"""Plots of relaxation curves and of the exponents fitted to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.plotting.axes import bands_of, cell_edges, draw_curves, drawable, grid, new_figure, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import AgingExponent, Collapse, Curves, Diffusion


def plot_curves(curves: Curves, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    """Draw the relaxation curves of the analysis against the lag, with both axes logarithmic.

    With replicas, the mean over the replicas is drawn, with a band of one standard error on either side.

    Args:
        curves: result of :func:`~lightning_glassy.analysis.relaxation_curves`.
        ax: axes to draw on, default new axes.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.
    """
    values = curves.mean()
    lags = np.broadcast_to(curves.lags, values.shape)
    ax = draw_curves(curves.waiting_times, lags, values, ax, colorbar, errors=curves.sem(), n_replica=curves.n_replica)
    ax.set_xlabel("lag $t$ (steps)")
    return ax


def plot_collapse(collapsed: Collapse, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    """Draw curves against the scaled lag.

    If the curves fall on each other, the lag to relax grows with the exponent ``collapsed.mu``. With replicas, a band
    shows one standard error on either side.

    Args:
        collapsed: result of :func:`~lightning_glassy.analysis.collapse`.
        ax: axes to draw on, default new axes.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.
    """
    ax = draw_curves(
        collapsed.waiting_times,
        collapsed.scaled_lags,
        collapsed.values,
        ax,
        colorbar,
        errors=collapsed.errors,
        n_replica=collapsed.n_replica,
    )
    variable = {"effective": r"effective time $\lambda$", "plain": r"$t/t_w^\mu$"}[collapsed.variable]
    ax.set_xlabel(rf"{variable}, $\mu = {collapsed.mu:.3f}$")
    return ax


def plot_threshold_lags(fit: AgingExponent, *, ax: Axes | None = None) -> Axes:
    r"""Draw the lag to each threshold against the waiting time, with the fitted power laws.

    With replicas, each lag has a bar of one standard error on either side, by the jackknife over replicas.

    Args:
        fit: result of :func:`~lightning_glassy.analysis.aging_exponent`.
        ax: axes to draw on, default new axes.
    """
    ax = new_figure(1).axes[0] if ax is None else ax
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
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.legend(title="threshold", fontsize=8, title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "no threshold is reached\nby enough waiting times", ha="center", transform=ax.transAxes)
    ax.set_xlabel("waiting time $t_w$ (steps)" if not fit.t0 else f"waiting time $t_w$ + {fit.t0:.3g} (steps)")
    ax.set_ylabel("lag $t^*$ to the threshold (steps)")
    grid(ax)
    if any(threshold.crossings.errors is not None for threshold in fit.thresholds):
        note(ax, bands_of(fit.n_replica, what="bars"))
    return ax


def plot_local_exponent(found: Diffusion, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""Draw the local exponent as a colour in the plane of waiting times and lags.

    White is diffusion, and blue is slower than diffusion.

    Args:
        found: result of :func:`~lightning_glassy.analysis.diffusion`.
        ax: axes to draw on, default new axes.
        colorbar: whether to draw the colour scale beside the axes.
    """
    ax = new_figure(1).axes[0] if ax is None else ax
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
        ax.set_xscale("log")
        ax.set_yscale("log")
        if colorbar:
            bar = ax.figure.colorbar(mesh, ax=ax, ticks=[0, 0.5, 1, 1.5, 2])
            bar.set_label(r"local exponent $\gamma$ (0 arrested, 1 diffusion, 2 ballistic)")
    ax.set_facecolor("0.92")
    ax.set_xlabel("waiting time $t_w$ (steps)")
    ax.set_ylabel("lag $t$ (steps)")
    return ax
