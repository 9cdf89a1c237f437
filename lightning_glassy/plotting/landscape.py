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
    log_axis,
    logarithmic,
    pyplot_axes,
)
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.record import Profile

_MOST_DENSITIES = 8  # functions of one figure with a place in the legend
_FEW_DENSITIES = 30  # functions of one figure that are all drawn


@quiet()
def plot_noise_clock(record: AgingRecord, *, group: str = "all", ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""Draw the displacement against the noise that has acted since t_w, :math:`\int D\,dn`.

    With diffusion, the curves of all waiting times fall on one straight line.

    Args:
        record: record to draw. With replicas, the mean over the replicas is drawn, with a band of one standard error.
        group: name of the group of parameters.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        KeyError: the record has no such group, or no gradient noise of this group.
    """
    from lightning_glassy.analysis import noise_clock

    values, n_replica = record.mean("msd", group), record.n_replica or 1
    errors = record.sem("msd", group) if record.has_errors else None
    clock = noise_clock(record, group)
    ax = draw_curves(record.waiting_times, clock, values, ax, colorbar, errors=errors, n_replica=n_replica)
    ax.set_xlabel(r"noise since $t_w$, $\int D\,dn$")
    ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")
    return ax


def plot_barriers(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Draw the loss along the straight line between the weights at two times, and the barrier height against the lag.

    Args:
        record: record with the profile ``loss_path`` of a :class:`~lightning_glassy.BarrierMonitor`.
        axes: two axes to draw on, default new axes of pyplot.

    Raises:
        KeyError: the record has no profile ``loss_path``.
    """
    left, right = pyplot_axes(2) if axes is None else axes
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
        log_axis(right, "x")
    left.set_xlabel(r"$\alpha$ from $w(t_w)$ to $w(t_w+t)$")
    left.set_ylabel(r"loss $L(\alpha)$")
    right.set_xlabel("lag $t$ (steps)")
    right.set_ylabel("height of the barrier")
    for ax in (left, right):
        grid(ax)
    colours.bar(right)
    return left, right


def plot_displacement_distribution(
    record: AgingRecord, *, lag: int | None = None, axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    r"""Draw the density of :math:`|\Delta w|/\sqrt\Delta`, and the density of :math:`|w|` at each waiting time.

    The left axes show the self van Hove function. All functions are drawn if there are at most 30. Otherwise there is
    one for each of at most eight waiting times, at the measured lag nearest to ``lag``. The legend has these eight. The
    displacements of a Gaussian are drawn for comparison.

    Args:
        record: record with the profiles of a :class:`~lightning_glassy.DisplacementDistribution`.
        lag: lag in steps, default the waiting time of each curve.
        axes: two axes to draw on, default new axes of pyplot.

    Raises:
        KeyError: the record lacks the profile ``displacement`` or ``weights``.
        ValueError: the lag is not positive.
    """
    if lag is not None and not lag > 0:
        raise ValueError(f"lag={lag} must be a positive number of steps")
    left, right = pyplot_axes(2) if axes is None else axes
    moved, weights = record.profile("displacement"), record.profile("weights")
    colours = Colours(np.unique(np.concatenate([moved.waiting_times, weights.waiting_times])))
    named = _one_lag_each(moved, lag)
    all_shown = lag is None and len(moved.values) <= _FEW_DENSITIES
    chosen = {
        id(moved): range(len(moved.values)) if all_shown else named,
        id(weights): few(range(len(weights.values)), MOST_CURVES),
    }
    for profile, ax in ((moved, left), (weights, right)):
        edges, counts = fold(profile.grid, profile.values)
        centres, found = np.sqrt(edges[1:] * edges[:-1]), density(edges, counts)
        for i in chosen[id(profile)]:
            shown = drawable(found[i], log=True)
            line = {**colours.line(profile.waiting_times[i]), "linewidth": 0.8, "markersize": 1.5}
            line["label"] = "_"  # without a place in the legend
            if profile is moved and i in named:
                line["label"] = f"$t_w = {profile.waiting_times[i]:,}$, $t = {profile.lags[i]:,}$"
            ax.plot(centres[shown], found[i][shown], **line)
    edges, _ = fold(moved.grid, moved.values)
    x = np.geomspace(edges[0], 10.0, 300)
    left.plot(x, np.sqrt(2 / np.pi) * np.exp(-(x**2) / 2), "k--", linewidth=1, label="Gaussian")
    left.legend(fontsize=7)
    for ax in (left, right):
        logarithmic(ax)
        grid(ax)
    left.set_ylim(bottom=1e-8)
    left.set_xlabel(r"$|\Delta w|/\sqrt{\Delta}$")
    left.set_ylabel("density")
    right.set_xlabel(r"$|w(t_w)|$")
    colours.bar(right)
    return left, right


def _one_lag_each(moved: Profile, lag: int | None) -> list[int]:
    """Return the places of one function for each of at most eight waiting times, at the lag nearest to a given lag."""
    times = np.unique(moved.waiting_times)
    chosen = []
    for time in times[log_spaced(times, _MOST_DENSITIES)]:
        places = np.flatnonzero((moved.waiting_times == time) & (moved.lags > 0))
        if len(places):
            aim = max(int(time), 1) if lag is None else lag
            chosen.append(int(places[np.abs(np.log(moved.lags[places] / aim)).argmin()]))
    return chosen
