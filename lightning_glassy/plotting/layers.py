"""Plot the aging of groups of parameters side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.observables import relaxation_of
from lightning_glassy.plotting.axes import (
    log_axis,
    new_figure,
    pyplot_axes,
)
from lightning_glassy.plotting.given import result_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import few, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_glassy.analysis import GroupAging

MOST_ROWS = 40  # more names cannot be read
_LEFT = 0.3  # part of the width that is left for the names


def plot_groups(
    record: AgingRecord | GroupAging,
    *,
    observable: str | None = None,
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw the local aging rate of each group as a colour, against the waiting time.

    White is no aging, red is aging, and blue is relaxation that becomes faster. Hatched cells are not known. The groups
    are in the order of the table, with all parameters above. More than 40 groups are thinned evenly in this order, and
    the axis reports it.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.aging_by_group`.
        observable: observable of the record that relaxes, default the displacement.
        eps: threshold of the overlap.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale beside the axes.
    """
    found = result_of(record, _by_group, observable=observable, eps=eps)
    everything = list(zip(found.names(28), (found.whole, *found.rows), strict=True))
    chosen = [everything[0], *few(everything[1:], MOST_ROWS)]
    rows = [row for _, row in chosen]
    if ax is None:
        (ax,) = pyplot_axes(height=_height(len(rows)))
        ax.figure.subplots_adjust(left=_LEFT)
    times = found.waiting_times.astype(np.float64)
    ax.set_facecolor("0.92")
    if len(times) >= 2:
        rates = np.array([row.local_rates for row in rows])
        ax.patch.set_hatch("////")
        ax.patch.set_edgecolor("0.75")
        mesh = ax.pcolormesh(
            times,
            np.arange(len(rows) + 1) - 0.5,
            np.ma.masked_invalid(rates),
            cmap="RdBu_r",
            vmin=-1.5,
            vmax=1.5,
            rasterized=True,
        )
        log_axis(ax, "x")
        if colorbar:
            bar = ax.figure.colorbar(mesh, ax=ax, ticks=[-1, 0, 1], extend="both", aspect=30)
            bar.set_label("local aging rate")
    else:
        ax.text(0.5, 0.5, "fewer than two waiting times\na factor of 2 apart", ha="center", transform=ax.transAxes)
    ax.axhline(0.5, color="0.2", linewidth=1)
    names = ["all parameters", *(name for name, _ in chosen[1:])]
    ax.set_yticks(np.arange(len(rows)), [printable(name).replace("$", r"\$") for name in names], fontsize=7)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("waiting time $t_w$ (steps)")
    shown = len(rows) - 1
    title = f"{relaxation_of(found.observable).label}, {shown} groups by aging rate"
    if shown < found.n_groups:
        title = f"{relaxation_of(found.observable).label}, {shown} of {found.n_groups} groups by aging rate"
    ax.set_title(title if found.n_replica > 1 else f"{title} (one run: no errors)", fontsize=10)
    return ax


def groups_figure(found: GroupAging) -> Figure:
    """Draw :func:`plot_groups` in a new figure, as high as its rows need, and return the figure."""
    figure = _figure(1 + min(len(found.rows), MOST_ROWS))
    plot_groups(found, ax=figure.axes[0])
    return figure


def _figure(rows: int) -> Figure:
    figure = new_figure(1, height=_height(rows))
    figure.subplots_adjust(left=_LEFT)
    return figure


def _height(rows: int) -> float:
    return max(3.2, 1.2 + 0.2 * rows)


def _by_group(record: AgingRecord, observable: str | None, eps: float | None) -> GroupAging:
    from lightning_glassy.analysis import aging_by_group

    return aging_by_group(record, observable or "msd", eps=eps)
