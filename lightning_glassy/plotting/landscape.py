"""Plots of the landscape: the noise clock, barriers and distributions of displacements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.observables import barrier_height, density, fold, log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import (
    MOST_CURVES,
    MOST_LINES,
    Colours,
    draw_curves,
    drawable,
    grid,
    logarithmic,
    new_figure,
)
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@quiet()
def plot_noise_clock(record: AgingRecord, *, group: str = "all", ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""Draw the displacement against the noise that has acted since t_w, :math:`\int D\,dt'`.

    With diffusion, the curves of all waiting times fall on one straight line.

    Args:
        record: record to draw. With replicas, the mean over the replicas is drawn, with a band of one standard error.
        group: name of the group of parameters.
        ax: axes to draw on, default new axes.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        KeyError: the record has no such group, or no gradient noise of this group.
    """
    from lightning_glassy.analysis import noise_clock

    values, n_replica = record.mean("msd", group), record.n_replica or 1
    errors = record.sem("msd", group) if record.has_errors else None
    clock = noise_clock(record, group)
    ax = draw_curves(record.waiting_times, clock, values, ax, colorbar, errors=errors, n_replica=n_replica)
    ax.set_xlabel(r"noise since $t_w$, $\int D\,dt'$")
    ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")
    return ax


def plot_barriers(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Draw the loss along the straight line between the weights at two times, and the barrier height against the lag.

    Args:
        record: record with the profile ``loss_path`` of a :class:`~lightning_glassy.BarrierMonitor`.
        axes: two axes to draw on, default new axes.

    Raises:
        KeyError: the record has no profile ``loss_path``.
    """
    left, right = new_figure(2).axes if axes is None else axes
    paths = record.profile("loss_path")
    times = np.unique(paths.waiting_times)
    colours = Colours(times)
    for i in few(range(len(paths.values)), MOST_LINES):
        line = colours.line(paths.waiting_times[i])
        shown = drawable(paths.values[i])
        left.plot(paths.grid[shown], paths.values[i][shown], **{**line, "linewidth": 0.8, "markersize": 1.5})
    for waiting_time in times[log_spaced(times, MOST_CURVES)]:
        of_it = paths.waiting_times == waiting_time
        heights = barrier_height(paths.values[of_it])
        shown = drawable(heights)
        right.plot(paths.lags[of_it][shown], heights[shown], **colours.line(waiting_time))
    if len(times):
        right.set_xscale("log")
    left.set_xlabel(r"$\alpha$ from $w(t_w)$ to $w(t_w+t)$")
    left.set_ylabel(r"loss $L(\alpha)$")
    right.set_xlabel("lag $t$ (steps)")
    right.set_ylabel("height of the barrier")
    for ax in (left, right):
        grid(ax)
    colours.bar(right)
    return left, right


def plot_displacement_distribution(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Draw the density of :math:`|\Delta w|/\sqrt\Delta`, and the density of :math:`|w|` at each waiting time.

    The displacements of a Gaussian are drawn for comparison.

    Args:
        record: record with the profiles of a :class:`~lightning_glassy.DisplacementDistribution`.
        axes: two axes to draw on, default new axes.

    Raises:
        KeyError: the record lacks the profile ``displacement`` or ``weights``.
    """
    left, right = new_figure(2).axes if axes is None else axes
    moved, weights = record.profile("displacement"), record.profile("weights")
    colours = Colours(np.unique(np.concatenate([moved.waiting_times, weights.waiting_times])))
    for profile, ax in ((moved, left), (weights, right)):
        edges, counts = fold(profile.grid, profile.values)
        centres, found = np.sqrt(edges[1:] * edges[:-1]), density(edges, counts)
        for i in few(range(len(found)), MOST_LINES):
            shown = drawable(found[i], log=True)
            line = {**colours.line(profile.waiting_times[i]), "linewidth": 0.8, "markersize": 1.5}
            ax.plot(centres[shown], found[i][shown], **line)
    edges, _ = fold(moved.grid, moved.values)
    x = np.geomspace(edges[0], 10.0, 300)
    left.plot(x, np.sqrt(2 / np.pi) * np.exp(-(x**2) / 2), "k--", linewidth=1, label="Gaussian")
    left.legend(handles=left.get_lines()[-1:], fontsize=8)
    for ax in (left, right):
        logarithmic(ax)
        grid(ax)
    left.set_ylim(bottom=1e-8)
    left.set_xlabel(r"$|\Delta w|/\sqrt{\Delta}$")
    left.set_ylabel("density")
    right.set_xlabel(r"$|w(t_w)|$")
    colours.bar(right)
    return left, right
