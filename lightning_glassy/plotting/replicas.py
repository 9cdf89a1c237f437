"""Plots of the differences between replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.observables import log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import (
    MOST_CURVES,
    MOST_POINTS,
    Colours,
    bands_of,
    draw_band,
    drawable,
    grid,
    log_axis,
    logarithmic,
    note,
    pyplot_axes,
)
from lightning_glassy.plotting.given import result_of
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import Heterogeneity


@quiet()
def plot_chi4(
    record: AgingRecord | Heterogeneity,
    *,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    r"""Draw the dynamical susceptibility against the lag, one line per waiting time, with its standard error as a band.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.heterogeneity`.
        group: group of the record.
        eps: threshold of the overlap.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        ValueError: the record has no counted overlaps.
    """
    found = result_of(record, _heterogeneity, group=group, eps=eps)
    if found.chi4 is None or found.chi4_error is None:
        raise ValueError("no overlaps were counted in this record: there is no chi_4")
    ax = pyplot_axes()[0] if ax is None else ax
    colours = Colours(found.waiting_times)
    for i in log_spaced(found.waiting_times, MOST_CURVES):
        row, error = found.chi4[i], found.chi4_error[i]
        shown = np.flatnonzero(drawable(row) & (found.lags > 0))
        shown = shown[log_spaced(found.lags[shown], MOST_POINTS)]
        line = colours.line(found.waiting_times[i])
        draw_band(ax, found.lags[shown], row[shown], error[shown], line["color"])
        ax.plot(found.lags[shown], row[shown], **line)
    logarithmic(ax, both=False)
    ax.set_xlabel("lag $t$ (steps)")
    ax.set_ylabel(rf"$\chi_4 = N\,\mathrm{{Var}}(Q_\epsilon)$, $\epsilon$ = {found.eps:g}")
    grid(ax)
    if drawable(found.chi4_error).any():
        note(ax, bands_of(found.n_replica))
    if colorbar:
        colours.bar(ax)
    return ax


@quiet()
def plot_replica_overlaps(
    record: AgingRecord | Heterogeneity, *, group: str = "all", axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    r"""Draw the overlap between replicas along the run, and the distribution P(q) of the overlap at the end.

    The line is the mean over the pairs of replicas, and the band spans their extremes. The distribution is drawn over
    the range of the overlaps, with a little margin.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.heterogeneity`.
        group: group of the record.
        axes: two axes to draw on, default new axes of pyplot.

    Raises:
        ValueError: the replicas were trained apart, so they were never compared.
    """
    from lightning_glassy.analysis.heterogeneity import narrow_bins, overlap_distribution

    found = result_of(record, _heterogeneity, group=group)
    if not len(found.steps):
        raise ValueError("these replicas were not compared with each other: they were not trained together")
    left, right = pyplot_axes(2) if axes is None else axes
    late = (found.steps > 0) & drawable(found.overlaps).all(axis=1)
    steps, q = found.steps[late], found.overlaps[late]
    left.fill_between(steps, q.min(axis=1), q.max(axis=1), alpha=0.25, linewidth=0)
    left.plot(steps, q.mean(axis=1), marker="o", markersize=2.5)
    if len(steps):
        log_axis(left, "x")
    left.set_xlabel("step")
    left.set_ylabel("overlap $q_{ab}$ between replicas")
    edges, density = overlap_distribution(found.overlaps[-1], *narrow_bins(found.overlaps[-1]))
    right.stairs(density, edges, fill=True, alpha=0.6)
    right.set_xlabel("$q$")
    right.set_ylabel(f"$P(q)$ at step {found.steps[-1]:,}")
    note(left, f"line and band: mean and extremes of {q.shape[1]} pairs of replicas")
    for ax in (left, right):
        grid(ax)
    return left, right


def _heterogeneity(record: AgingRecord, group: str, eps: float | None = None) -> Heterogeneity:
    from lightning_glassy.analysis import heterogeneity

    return heterogeneity(record, group=group, eps=eps)
