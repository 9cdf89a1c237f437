"""Plot the response to a field against the fluctuations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_glassy.observables import log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import (
    MOST_CURVES,
    Colours,
    bands_of,
    drawable,
    grid,
    logarithmic,
    note,
    pyplot_axes,
)
from lightning_glassy.plotting.given import result_of
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import FluctuationDissipation


@quiet()
def plot_fluctuation_dissipation(
    record: AgingRecord | FluctuationDissipation,
    *,
    against: Literal["correlation", "msd"] = "msd",
    temperature: float | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    r"""Draw the response to a field against half the displacement or the correlation, one line per waiting time.

    In equilibrium, all points lie on the line :math:`\chi = \Delta/(2T)`, which has the slope -1/T against the
    correlation. A glass leaves this line at late lags, and so does a drift. The axes are logarithmic against the
    displacement, and linear against the correlation.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.fluctuation_dissipation`.
        against: ``"msd"`` for :math:`\Delta/2`, or ``"correlation"``.
        temperature: T of the straight line. Default: T of the result, or else the effective temperature of the early
            lags after the last waiting time that has one. Without any, no line is drawn.
        ax: axes to draw on, default new axes of pyplot.
        colorbar: whether to draw the colour scale of the waiting times beside the axes.

    Raises:
        ValueError: the record has no response, or ``against`` is none of the two.
    """
    if against not in ("correlation", "msd"):
        raise ValueError(f"against={against!r} is neither 'correlation' nor 'msd'")
    found = result_of(record, _fluctuation_dissipation)
    ax = pyplot_axes()[0] if ax is None else ax
    colours = Colours(found.waiting_times)
    by_msd = against == "msd"
    fluctuation, error = (
        (found.msd / 2, found.msd_error / 2) if by_msd else (found.decorrelation, found.decorrelation_error)
    )
    heights: list[float] = []
    for i in log_spaced(found.waiting_times, MOST_CURVES):
        chi = found.response[i]
        shown = np.flatnonzero(drawable(chi, log=by_msd) & drawable(fluctuation[i], log=by_msd))
        place = fluctuation[i, shown] if by_msd else found.squares[i] - fluctuation[i, shown]
        heights += chi[shown].tolist()
        ax.errorbar(
            place,
            chi[shown],
            xerr=np.nan_to_num(error[i, shown]),
            yerr=np.nan_to_num(found.response_error[i, shown]),
            elinewidth=0.7,
            **colours.line(found.waiting_times[i]),
        )
    limits = ax.get_xlim()
    early = [sector.temperature for sector in found.sectors if sector.name == "early" and sector.temperature > 0]
    line = next((t for t in (temperature, found.temperature, *early[::-1]) if t is not None), None)
    if line is not None and heights:
        ends = np.array([min(heights) if by_msd else 0.0, max(heights)])
        start = 0.0 if by_msd else found.squares[-1]
        label = f"slope {'1/T' if by_msd else '−1/T'}, T = {line:.3g}"
        style: dict[str, Any] = {"color": "0.4", "linestyle": "--", "label": label}
        ax.plot(start + (line if by_msd else -line) * ends, ends, **style)
        ax.legend(fontsize=8, loc="best", handles=[ax.get_lines()[-1]])
    if by_msd:  # displacements and responses span decades
        logarithmic(ax)
    else:
        ax.set_xlim(limits)
    ax.set_xlabel(r"$\Delta(t_w, t_w+t)/2$" if by_msd else "correlation $C(t_w, t_w+t)$")
    ax.set_ylabel(r"response $\chi(t_w+t, t_w)$")
    grid(ax)
    if found.n_replica > 1:
        note(ax, bands_of(found.n_replica, what="bars"))
    if colorbar:
        colours.bar(ax)
    return ax


def _fluctuation_dissipation(record: AgingRecord) -> FluctuationDissipation:
    from lightning_glassy.analysis import fluctuation_dissipation

    return fluctuation_dissipation(record)
