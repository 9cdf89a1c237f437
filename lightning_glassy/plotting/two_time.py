"""Plot an observable against the lag, one curve per waiting time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import find, free_overlap, log_spaced, overlap
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import (
    Colours,
    draw_curves,
    drawable,
    epoch_axis,
    new_figure,
    title_of,
)
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FREE_LINES = 5  # lines of free diffusion in one figure: more would hide the curves


@quiet()
def plot_two_time(
    record: AgingRecord,
    quantity: str = "msd",
    *,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
    only: Sequence[int] | NDArray[np.int64] | None = None,
    colours: Colours | None = None,
    free: bool = True,
) -> Axes:
    """Draw one curve per waiting time against the lag, on a logarithmic axis. The colour is the waiting time.

    The system does not age if the curves lie on each other. It ages if the curves move to longer lags as the waiting
    time grows. With replicas, :meth:`AgingRecord.mean` is drawn, with a band of one standard error
    (:meth:`AgingRecord.sem`) on either side. There is no band if replicas are copies of each other.

    A dotted line beside the overlap is :func:`~lightning_glassy.observables.free_overlap`: the overlap that Gaussian
    displacements with the measured MSD would have. It is drawn for five waiting times at most, in their colours.

    Args:
        record: record to draw.
        quantity: name of the observable, see :data:`lightning_glassy.observables.OBSERVABLES`.
        group: name of the group of parameters.
        eps: threshold of the overlap, default the first threshold of the record.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.
        only: waiting times to draw, default all.
        colours: colours of the waiting times, by default for the waiting times of this record.
        free: whether to draw the lines of free diffusion beside the overlap.

    Raises:
        KeyError: the record has no such group, or no gradient noise of this group.
        ValueError: an unknown quantity, a quantity that the record cannot provide, or a record without measured pairs.
    """
    entry = find(quantity, argument="quantity")
    if not len(record):
        raise ValueError("the record holds no measured pair yet: there is nothing to draw")
    kept = np.isin(record.waiting_times, record.waiting_times if only is None else only)
    values = record.mean(quantity, group, eps=eps)[kept]
    errors = record.sem(quantity, group, eps=eps)[kept] if record.has_errors else None
    lags, n_replica, times = (
        np.broadcast_to(record.lags, values.shape),
        record.n_replica or 1,
        record.waiting_times[kept],
    )
    ax = draw_curves(
        times, lags, values, ax, colorbar, errors=errors, n_replica=n_replica, log=entry.log, colours=colours
    )
    if free and entry.formula is overlap:
        _draw_free(ax, record, group, eps, kept, Colours(times) if colours is None else colours)
    ax.set_xlabel("lag $t$ (steps)")
    epoch_axis(ax, record)
    threshold = ""
    if entry.has_threshold:
        value = record.overlap_thresholds[0] if eps is None else eps
        size = record.rms_weight(group)
        part = rf" ({100 * value / size:.2g} % of $w_\mathrm{{rms}}$)" if size is not None else ""
        threshold = rf", $\epsilon = {value:.2g}$" + part
    ax.set_ylabel(f"{entry.title} ${entry.symbol}$" + threshold)
    return ax


def _draw_free(
    ax: Axes, record: AgingRecord, group: str, eps: float | None, kept: NDArray[np.bool_], colours: Colours
) -> None:
    """Draw the overlap of Gaussian displacements for a few of the kept waiting times."""
    expected = free_overlap(record.observable("msd", group), record.overlap_thresholds[0] if eps is None else eps)
    rows = (expected if record.n_replica is None else expected.mean(axis=0))[kept]
    times = record.waiting_times[kept]
    for i in log_spaced(times, _FREE_LINES):
        shown = drawable(rows[i]) & (record.lags > 0)
        colour = colours.line(times[i])["color"]
        (line,) = ax.plot(record.lags[shown], rows[i][shown], color=colour, linestyle=":", linewidth=1.1, zorder=1.5)
    ax.legend([line], ["Gaussian displacements with the measured MSD"], fontsize=7, loc="lower left")


def two_time_figure(
    record: AgingRecord, quantity: str = "msd", *, group: str = "all", eps: float | None = None
) -> Figure:
    """Draw :func:`plot_two_time` in a new figure and return the figure.

    The arguments and errors are described there. The figure has the curves alone, without lines of free diffusion.
    pyplot does not keep the figure, so you need not close it.
    """
    figure = new_figure(1)
    plot_two_time(record, quantity, group=group, eps=eps, ax=figure.axes[0], free=False)
    figure.axes[0].set_title(title_of(record, group), fontsize=10)
    return figure
