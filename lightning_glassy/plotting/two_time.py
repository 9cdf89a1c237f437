"""Plot an observable against the lag, one curve per waiting time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.observables import find
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import draw_curves, new_figure, title_of
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@quiet()
def plot_two_time(
    record: AgingRecord,
    quantity: str = "msd",
    *,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw one curve per waiting time against the lag, on a logarithmic axis. The colour is the waiting time.

    The system does not age if the curves lie on each other. It ages if the curves move to longer lags as the waiting
    time grows. With replicas, :meth:`AgingRecord.mean` is drawn, with a band of one standard error
    (:meth:`AgingRecord.sem`) on either side. There is no band if replicas are copies of each other.

    Args:
        record: record to draw.
        quantity: name of the observable, see :data:`lightning_glassy.observables.OBSERVABLES`.
        group: name of the group of parameters.
        eps: threshold of the overlap, default the first threshold of the record.
        ax: axes to draw on, default new axes.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        KeyError: the record has no such group, or no gradient noise of this group.
        ValueError: an unknown quantity, a quantity that the record cannot provide, or a record without measured pairs.
    """
    entry = find(quantity, argument="quantity")
    if not len(record):
        raise ValueError("the record holds no measured pair yet: there is nothing to draw")
    values = record.mean(quantity, group, eps=eps)
    errors = record.sem(quantity, group, eps=eps) if record.has_errors else None
    lags, n_replica = np.broadcast_to(record.lags, values.shape), record.n_replica or 1
    ax = draw_curves(
        record.waiting_times, lags, values, ax, colorbar, errors=errors, n_replica=n_replica, log=entry.log
    )
    ax.set_xlabel("lag $t$ (steps)")
    threshold = ""
    if entry.has_threshold:
        threshold = rf", $\epsilon = {record.overlap_thresholds[0] if eps is None else eps:.2g}$"
    ax.set_ylabel(f"{entry.title} ${entry.symbol}$" + threshold)
    return ax


def two_time_figure(
    record: AgingRecord, quantity: str = "msd", *, group: str = "all", eps: float | None = None
) -> Figure:
    """Draw :func:`plot_two_time` in a new figure and return the figure.

    The arguments and errors are described there. pyplot does not keep the figure, so you need not close it.
    """
    figure = new_figure(1)
    plot_two_time(record, quantity, group=group, eps=eps, ax=figure.axes[0])
    figure.axes[0].set_title(title_of(record, group), fontsize=10)
    return figure
