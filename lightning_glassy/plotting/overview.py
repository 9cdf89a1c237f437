"""The overview of one record, and the comparison of several records side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_glassy.observables import OBSERVABLES, log_spaced, relative_displacement
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import Colours, new_figure, pyplot_axes, title_of
from lightning_glassy.plotting.exponents import plot_collapse, plot_local_exponent, plot_threshold_lags
from lightning_glassy.plotting.landscape import plot_barriers, plot_displacement_distribution, plot_noise_clock
from lightning_glassy.plotting.layers import plot_groups
from lightning_glassy.plotting.relaxation import plot_collapse_residuals, plot_relaxation_times
from lightning_glassy.plotting.replicas import plot_replica_overlaps
from lightning_glassy.plotting.response import plot_fluctuation_dissipation
from lightning_glassy.plotting.series import plot_curvature, plot_gradient_noise, plot_loss
from lightning_glassy.plotting.two_time import plot_two_time
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_glassy.analysis import Comparison

_MOST_RECORDS = 6  # columns of a comparison
_LINES = 16  # waiting times of a column of a comparison

# The plots of a record by name, besides the observables. True for a plot of two axes.
_PLOTS: dict[str, tuple[Callable[..., Any], bool]] = {
    "collapse": (plot_collapse, False),
    "collapse_residuals": (plot_collapse_residuals, True),
    "threshold_lags": (plot_threshold_lags, False),
    "relaxation_times": (plot_relaxation_times, True),
    "exponent_map": (plot_local_exponent, False),
    "groups": (plot_groups, False),
    "replica_overlap": (plot_replica_overlaps, True),
    "loss": (plot_loss, False),
    "gradient_noise": (plot_gradient_noise, False),
    "noise_clock": (plot_noise_clock, False),
    "barriers": (plot_barriers, True),
    "distributions": (plot_displacement_distribution, True),
    "curvature": (plot_curvature, True),
    "fluctuation_dissipation": (plot_fluctuation_dissipation, False),
}


def plot(record: AgingRecord, name: str | None = None, *, ax: Any = None, **choice: Any) -> Any:
    """Draw a plot of a record by its name. See :meth:`AgingRecord.plot`.

    Args:
        record: record to draw.
        name: name of an observable or of another plot. None draws :func:`plot_overview`.
        ax: axes to draw on, or two axes for a plot of two.
        **choice: ``group`` and ``eps``, and further arguments of the plot.

    Raises:
        ValueError: there is no plot of this name. The message lists the names.
    """
    if name is None:
        return plot_overview(record, axes=ax, **choice)
    if name in OBSERVABLES:
        return plot_two_time(record, name, ax=ax, **choice)
    if name not in _PLOTS:
        raise ValueError(f"name={name!r} is no plot; there are {[*OBSERVABLES, *_PLOTS]}")
    draw, has_two = _PLOTS[name]
    return draw(record, **{"axes" if has_two else "ax": ax}, **choice)


@quiet()
def plot_overview(
    record: AgingRecord, *, group: str = "all", axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw the curves of the displacement, and the lag to reach some displacements against the waiting time.

    The title above the left axes is the answer in plain words (:func:`lightning_glassy.analysis.in_words`), if scipy is
    installed.

    Args:
        record: record to draw.
        group: name of the group of parameters.
        axes: two axes to draw on, default new axes of pyplot.

    Raises:
        KeyError: the record does not have the group.
        ValueError: the record has no measured pair.
    """
    left, right = pyplot_axes(2) if axes is None else axes
    plot_two_time(record, "msd", group=group, ax=left)
    words: list[str] = []
    try:
        from lightning_glassy.analysis import NotEnoughDataError, aging_exponent, in_words, reconcile, verdict

        judged = verdict(record, group=group)
        try:
            fit = aging_exponent(record, group=group)
            judged = reconcile(judged, fit)
            plot_threshold_lags(fit, ax=right)
        except NotEnoughDataError as error:
            _say(right, str(error))
        words = in_words(record, judged)[:1]
    except ImportError as error:
        _say(right, str(error))
    except ValueError as error:  # no pair at a positive lag
        _say(right, str(error))
    left.set_title(
        "\n".join([title_of(record, group), *(line for word in words for line in wrap(word, 100))]), fontsize=9
    )
    inches = 1.0 if left.child_axes else 0.6  # for the title, and for the axis in epochs
    left.figure.subplots_adjust(top=1 - inches / left.figure.get_size_inches()[1])  # type: ignore[union-attr]
    return left, right


def _say(ax: Axes, words: str) -> None:
    ax.text(
        0.5,
        0.5,
        "\n".join(wrap(printable(words).replace("$", r"\$"), 48)),
        ha="center",
        va="center",
        fontsize=9,
        transform=ax.transAxes,
    )
    ax.set_axis_off()


@quiet()
def plot_comparison(
    records: Mapping[str, AgingRecord] | Comparison, *, group: str = "all", axes: tuple[Axes, ...] | None = None
) -> tuple[Axes, ...]:
    """Draw the relative displacement of several records side by side, with the same axes.

    The displacement is relative to the rms weight at the waiting time, so that networks whose weights have different
    sizes can be compared. The colours show the waiting times, and are the same in all columns.

    Args:
        records: records by name, at most six, or a result of :func:`~lightning_glassy.analysis.compare`, whose verdicts
            and exponents are then in the titles.
        group: name of the group of parameters.
        axes: one axes for each record, default new axes of pyplot.

    Raises:
        ValueError: there are more than six records or none, or the number of axes differs from the number of records.
    """
    titles, group, named = _columns(records, group)
    if not 1 <= len(named) <= _MOST_RECORDS:
        raise ValueError(f"records holds {len(named)} records: a figure takes 1 to {_MOST_RECORDS}")
    if axes is None:
        axes = pyplot_axes(len(named), width=4.6)
    if len(axes) != len(named):
        raise ValueError(f"axes holds {len(axes)} axes, and there are {len(named)} records")
    times = sorted({int(time) for record in named.values() for time in record.waiting_times if time > 0})
    colours = Colours(np.array(times or [1]))
    for ax, (name, record) in zip(axes, named.items(), strict=True):
        chosen = record.waiting_times[log_spaced(record.waiting_times, _LINES)]
        plot_two_time(
            record, relative_displacement.__name__, group=group, ax=ax, colorbar=False, only=chosen, colours=colours
        )
        ax.set_title("\n".join([printable(name).replace("$", r"\$"), *titles.get(name, [])]), fontsize=9)
        if ax is not axes[0]:
            ax.set_ylabel("")
    for limits, setter in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        ranges = [getattr(ax, limits)() for ax in axes]
        for ax in axes:
            getattr(ax, setter)(min(low for low, _ in ranges), max(high for _, high in ranges))
    axes[0].figure.subplots_adjust(top=0.86, wspace=0.16)
    colours.bar(axes[-1])
    return tuple(axes)


def comparison_figure(found: Comparison) -> Figure:
    """Draw :func:`plot_comparison` in a new figure, outside the global state of pyplot, and return the figure."""
    figure = new_figure(len(found.rows), width=4.6)
    plot_comparison(found, axes=tuple(figure.axes))
    return figure


def _columns(
    records: Mapping[str, AgingRecord] | Comparison, group: str
) -> tuple[dict[str, list[str]], str, dict[str, AgingRecord]]:
    """Return the further lines of the titles, the group, and the records by name."""
    if isinstance(records, Mapping):
        return {}, group, dict(records)
    titles = {}
    for row in records.rows:
        mu = None if row.exponent is None else row.exponent.mu
        titles[row.name] = [row.verdict.kind + ("" if mu is None else rf", $\mu$ = {mu:.2f}")]
    return titles, records.group, {row.name: row.record for row in records.rows}
