"""Pictures with matplotlib: functions that draw on given axes, and some that make a figure.

The colour is the waiting time, on a perceptual map. matplotlib is imported when a function is called; it comes with the
extra ``plot``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lightning_glassy.observables import Array
from lightning_glassy.plotting.axes import Colours, logarithmic, new_figure, require_matplotlib, title_of
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Quantity = Literal["msd", "decorrelation", "correlation", "overlap", "non_gaussian", "local_exponent"]


@dataclass(frozen=True)
class _Look:
    """How a quantity is written and scaled."""

    label: str
    log: bool


_LOOKS: dict[str, _Look] = {
    "msd": _Look(r"mean squared displacement $\Delta(t_w, t_w+t)$", log=True),
    "decorrelation": _Look(r"decorrelation $1 - C(t_w, t_w+t)$", log=True),
    "correlation": _Look(r"cosine correlation $C(t_w, t_w+t)$", log=False),
    "overlap": _Look(r"overlap $Q_\epsilon(t_w, t_w+t)$", log=False),
    "non_gaussian": _Look(r"non-Gaussian parameter $\alpha_2(t_w, t_w+t)$", log=False),
    "local_exponent": _Look(r"local exponent $\partial\ln\Delta/\partial\ln t$", log=False),
}


def plot_two_time(
    record: AgingRecord,
    quantity: Quantity = "msd",
    *,
    group: str = "all",
    eps: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """One curve per waiting time against the lag, on a logarithmic axis; the colour is the waiting time.

    Curves that lie on each other do not age; curves that move to longer lags as the waiting time grows do. Of several
    replicas the mean is drawn.

    Args:
        record: what to draw.
        quantity: ``"msd"``, ``"decorrelation"``, ``"correlation"`` (cosine), ``"overlap"``, ``"non_gaussian"`` or
            ``"local_exponent"``.
        group: name of the group of parameters.
        eps: threshold of the overlap; default the record's first.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale of waiting times beside the axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        ValueError: another quantity, or a record without a measured pair.
    """
    require_matplotlib()
    if quantity not in _LOOKS:
        raise ValueError(f"quantity={quantity!r} is not one of {', '.join(map(repr, _LOOKS))}")
    if not len(record):
        raise ValueError("the record holds no measured pair yet: there is nothing to draw")
    if ax is None:
        ax = new_figure(1).axes[0]
    look, values = _LOOKS[quantity], _values(record, quantity, group, eps)
    colours = Colours(record.waiting_times)
    for waiting_time, row in zip(record.waiting_times, values, strict=True):
        shown = np.isfinite(row) & (record.lags > 0) & ((row > 0) | (not look.log))
        ax.plot(record.lags[shown], row[shown], **colours.line(waiting_time))
    logarithmic(ax, both=look.log)
    ax.set_xlabel("lag $t$ (steps)")
    threshold = ""
    if quantity == "overlap":
        threshold = rf", $\epsilon = {record.overlap_thresholds[0] if eps is None else eps:.2g}$"
    ax.set_ylabel(look.label + threshold)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    if colorbar:
        colours.bar(ax)
    return ax


def two_time_figure(
    record: AgingRecord, quantity: Quantity = "msd", *, group: str = "all", eps: float | None = None
) -> Figure:
    """A figure of :func:`plot_two_time`, unknown to pyplot: nothing has to be closed. Arguments and errors as there."""
    figure = new_figure(1)
    plot_two_time(record, quantity, group=group, eps=eps, ax=figure.axes[0])
    figure.axes[0].set_title(title_of(record, group), fontsize=10)
    return figure


def _values(record: AgingRecord, quantity: Quantity, group: str, eps: float | None) -> Array:
    values = {
        "msd": lambda: record.msd(group),
        "decorrelation": lambda: record.decorrelation(group),
        "correlation": lambda: record.correlation(group, "cosine"),
        "overlap": lambda: record.overlap(eps, group),
        "non_gaussian": lambda: record.non_gaussian(group),
        "local_exponent": lambda: record.local_exponent(group),
    }[quantity]()
    return values if record.n_replica is None else values.mean(axis=0)
