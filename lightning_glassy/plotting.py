"""Pictures of a record, with matplotlib: functions that draw on given axes, and one that makes a figure.

matplotlib is imported when a function is called; it comes with the extra ``plot``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_glassy.observables import Array
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
    _require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    if quantity not in _LOOKS:
        raise ValueError(f"quantity={quantity!r} is not one of {', '.join(map(repr, _LOOKS))}")
    if not len(record):
        raise ValueError("the record holds no measured pair yet: there is nothing to draw")
    if ax is None:
        ax = new_figure(1).axes[0]
    look, values = _LOOKS[quantity], _values(record, quantity, group, eps)
    waiting_times, lags = record.waiting_times, record.lags
    positive = waiting_times[waiting_times > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1, 1)
    norm = LogNorm(low, high if high > low else 10 * low)
    colours = colormaps["viridis"]
    for waiting_time, row in zip(waiting_times, values, strict=True):
        shown = np.isfinite(row) & (lags > 0) & ((row > 0) | (not look.log))
        # Step 0 has no place on a logarithmic scale of waiting times: dashed and grey.
        style: dict[str, Any] = {"color": "0.6", "linestyle": "--", "label": "$t_w = 0$"}
        if waiting_time > 0:
            style = {"color": colours(norm(waiting_time)), "label": f"$t_w = {waiting_time:,}$"}
        ax.plot(lags[shown], row[shown], marker=".", markersize=4, linewidth=1.2, **style)
    # Where nothing positive is shown (NaN weights, nothing moved yet) a logarithmic axis would have no range.
    drawn = [line for line in ax.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]
    if drawn:
        ax.set_xscale("log")
    if drawn and look.log:
        ax.set_yscale("log")
    ax.set_xlabel("lag $t$ (steps)")
    threshold = ""
    if quantity == "overlap":
        threshold = rf", $\epsilon = {record.overlap_thresholds[0] if eps is None else eps:.2g}$"
    ax.set_ylabel(look.label + threshold)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    if colorbar and len(positive):
        ax.figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="waiting time $t_w$ (steps)")
    return ax


def two_time_figure(
    record: AgingRecord, quantity: Quantity = "msd", *, group: str = "all", eps: float | None = None
) -> Figure:
    """A figure of :func:`plot_two_time`, unknown to pyplot: nothing has to be closed. Arguments and errors as there."""
    figure = new_figure(1)
    plot_two_time(record, quantity, group=group, eps=eps, ax=figure.axes[0])
    name = "all parameters" if group == "all" else group.replace("$", r"\$")
    figure.axes[0].set_title(f"{name}, N = {record.n_parameters[group]:,}", fontsize=10)
    return figure


def new_figure(columns: int, *, width: float = 6.4, height: float = 4.4) -> Figure:
    """A figure with so many axes side by side, outside pyplot's global state.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    _require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=110)
    figure.subplots(1, columns)
    # Fixed margins: to find them out, matplotlib would take three times as long as to draw the curves.
    figure.subplots_adjust(left=0.8 / (width * columns), right=0.985, bottom=0.55 / height, top=1 - 0.35 / height)
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


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'lightning-glassy[plot]'") from error
