"""Figures, scales and colours for all plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array, log_spaced
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 200  # functions in one figure: more cannot be distinguished
MOST_CURVES, MOST_POINTS = 40, 100  # curves in one figure, and points of each


def title_of(record: AgingRecord, group: str) -> str:
    """Return the title for a figure of a group: the name of the group and N.

    The name is cut to 60 characters, so that the title fits the figure. A ``$`` is escaped, because matplotlib would
    read it as the start of a formula.
    """
    name = "all parameters" if group == "all" else printable(group.replace("\n", " "))
    name = name if len(name) <= 60 else f"{name[:57]}..."
    return f"{name}, N = {record.n_parameters[group]:,}".replace("$", r"\$")


def new_figure(columns: int, *, width: float = 6.4, height: float = 4.4) -> Figure:
    """Create a figure with axes side by side, outside the global state of pyplot.

    Args:
        columns: number of axes.
        width: width of each of the axes, in inches.
        height: height of the figure, in inches.

    Raises:
        ImportError: matplotlib is missing. The message names the extra to install.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=110)
    figure.subplots(1, columns)
    # The margins are fixed, because a search by matplotlib takes three times as long as drawing the curves.
    figure.subplots_adjust(left=0.8 / (width * columns), right=0.985, bottom=0.55 / height, top=1 - 0.35 / height)
    return figure


def pyplot_axes(columns: int = 1, *, width: float = 6.4, height: float = 4.4) -> tuple[Axes, ...]:
    """Create a figure of pyplot with axes side by side, which a notebook shows by itself. Return the axes.

    Raises:
        ImportError: matplotlib is missing. The message names the extra to install.
    """
    require_matplotlib()
    from matplotlib import pyplot

    with pyplot.rc_context({"figure.max_open_warning": 0}):  # a script may draw many records
        figure, axes = pyplot.subplots(1, columns, figsize=(width * columns, height), dpi=110, squeeze=False)
    figure.subplots_adjust(left=0.8 / (width * columns), right=0.985, bottom=0.55 / height, top=1 - 0.35 / height)
    return tuple(axes[0])


def epoch_axis(ax: Axes, record: AgingRecord) -> None:
    """Draw a second axis in epochs above an axis in steps, if the record knows the steps of an epoch."""
    size = record.steps_per_epoch
    if size is None or ax.get_xscale() != "log" or ax.get_xlim()[1] < 2 * size:
        return
    top = ax.secondary_xaxis("top", functions=(lambda x: np.divide(x, size), lambda x: np.multiply(x, size)))
    top.tick_params(labelsize=7, pad=1)
    top.set_xlabel("epochs", fontsize=8, labelpad=2)
    figure = ax.figure
    figure.subplots_adjust(top=min(figure.subplotpars.top, 1 - 0.75 / figure.get_size_inches()[1]))  # type: ignore[union-attr]


def drawable(values: ArrayLike, *, log: bool = False) -> NDArray[np.bool_]:
    """Return which values axes can show. The margins of matplotlib would overflow beyond 1e200.

    Args:
        values: of any shape.
        log: whether the axis is logarithmic, so that a value must also be at least 1e-200.
    """
    numbers = np.asarray(values, dtype=np.float64)
    return np.isfinite(numbers) & (np.abs(numbers) <= 1e200) & ((numbers >= 1e-200) | (not log))


def logarithmic(ax: Axes, *, both: bool = True) -> None:
    """Set a logarithmic x axis and, with ``both``, a logarithmic y axis.

    Axes without points stay linear, because a logarithmic scale without points has no range. If all y values are equal,
    the logarithmic y axis runs from half to twice this value.
    """
    lines = [line for line in ax.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]
    if not lines:
        return
    log_axis(ax, "x")
    if both:
        values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines])
        if values.min() == values.max():
            ax.set_ylim(values.min() / 2, 2 * values.max())
        log_axis(ax, "y")


def log_axis(ax: Axes, *names: Literal["x", "y"]) -> None:
    """Make axes logarithmic, with a few labels that do not overlap, for any range.

    Beyond two decades the powers of ten are labelled. Between half a decade and two decades 1, 2 and 5 times a power of
    ten are labelled, and below it a few round numbers.
    """
    from matplotlib.ticker import FuncFormatter, Locator, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

    class Few(Locator):
        def __call__(self) -> Any:
            return self.tick_values(*self.axis.get_view_interval())  # type: ignore[union-attr]

        def tick_values(self, vmin: float, vmax: float) -> Any:
            low, high = sorted((vmin, vmax))
            if not 0 < low < high:
                return []
            decades = np.log10(high / low)
            if decades < 0.5:
                return MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
            locator = LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=8)
            locator.set_axis(self.axis)
            return locator.tick_values(low, high)

    for name in names:
        (ax.set_xscale if name == "x" else ax.set_yscale)("log")
        axis = ax.xaxis if name == "x" else ax.yaxis
        powers = LogFormatterMathtext()
        axis.set_major_locator(Few())

        def text(value: float, place: Any, axis: Any = axis, powers: Any = powers) -> str:
            low, high = sorted(axis.get_view_interval())
            if low > 0 and high / low >= 100:
                powers.set_axis(axis)
                return str(powers(value, place))
            return f"{value:,g}" if 1e-3 <= value < 1e6 else f"{value:.3g}"

        axis.set_major_formatter(FuncFormatter(text))
        axis.set_minor_formatter(NullFormatter())


class Colours:
    """Colours of waiting times, on a logarithmic scale."""

    def __init__(self, waiting_times: NDArray[np.int64]) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap, LogNorm

        positive = waiting_times[waiting_times > 0]
        low, high = (positive.min(), positive.max()) if len(positive) else (1, 1)
        self._norm = LogNorm(low, high if high > low else 10 * low)
        # The lightest 7 % of the map is hard to see on white paper.
        shades = colormaps["viridis"](np.linspace(0, 0.93, 256))
        self._map = LinearSegmentedColormap.from_list("waiting times", shades)
        self._any = len(positive) > 0

    def line(self, waiting_time: int) -> dict[str, Any]:
        """Return the line style for the curve of a waiting time."""
        style: dict[str, Any] = {"marker": ".", "markersize": 4, "linewidth": 1.2}
        # A logarithmic scale has no step 0, so this curve is dashed and grey.
        if waiting_time > 0:
            return style | {"color": self._map(self._norm(waiting_time)), "label": f"$t_w = {waiting_time:,}$"}
        return style | {"color": "0.6", "linestyle": "--", "label": "$t_w = 0$"}

    def bar(self, ax: Axes) -> None:
        """Draw the colour scale beside the axes."""
        from matplotlib.cm import ScalarMappable

        if self._any:
            ax.figure.colorbar(ScalarMappable(self._norm, self._map), ax=ax, label="waiting time $t_w$ (steps)")


def draw_curves(
    waiting_times: NDArray[np.int64],
    x: NDArray[Any],
    values: Array,
    ax: Axes | None,
    colorbar: bool,
    *,
    errors: Array | None = None,
    n_replica: int = 1,
    log: bool = True,
    colours: Colours | None = None,
) -> Axes:
    """Draw one curve per waiting time, on a logarithmic x axis and, with ``log``, a logarithmic y axis.

    The arrays ``x``, ``values`` and ``errors`` have the shape ``[n_tw, n_lag]``. Points that the axes cannot show are
    left out. More than 40 curves, or 100 points of a curve, are thinned evenly in the logarithm. A band shows one
    standard error on either side if ``errors`` is finite, and a note in the axes explains it.
    """
    ax = pyplot_axes()[0] if ax is None else ax
    colours = Colours(waiting_times) if colours is None else colours
    positive = values[drawable(values, log=True)]
    floor = 0.5 * positive.min(initial=np.inf) if log else -np.inf  # a logarithmic axis cannot show an edge below 0
    for i in log_spaced(waiting_times, MOST_CURVES):
        places, row = x[i], values[i]
        shown = np.flatnonzero(drawable(places, log=True) & drawable(row, log=log))
        if len(shown) > MOST_POINTS:
            shown = shown[log_spaced(places[shown] / places[shown[0]], MOST_POINTS)]
        line = colours.line(waiting_times[i])
        if errors is not None:
            draw_band(ax, places[shown], row[shown], errors[i][shown], line["color"], floor)
        ax.plot(places[shown], row[shown], **line)
    logarithmic(ax, both=log)
    grid(ax)
    if errors is not None and drawable(errors).any():
        note(ax, bands_of(n_replica))
    if colorbar:
        colours.bar(ax)
    return ax


def draw_band(ax: Axes, x: NDArray[Any], values: Array, errors: Array, colour: Any, floor: float = -np.inf) -> None:
    """Draw a band of one standard error on either side of a curve, down to ``floor``."""
    half = np.where(drawable(errors), errors, np.nan)
    low = np.where(np.isfinite(half), np.maximum(values - half, floor), np.nan)
    ax.fill_between(x, low, values + half, color=colour, alpha=0.25, linewidth=0)


def bands_of(n_replica: int, *, what: str = "bands") -> str:
    """Return the note on the bands or bars of a figure, such as ``"bands: one standard error over 8 replicas"``."""
    return f"{what}: one standard error over {n_replica} replicas"


def note(ax: Axes, words: str, *, left: bool = False) -> None:
    """Write a small note into the lower right corner of the axes, or the lower left corner, below the curves."""
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5}
    x, side = (0.01, "left") if left else (0.99, "right")
    ax.text(x, 0.015, words, ha=side, va="bottom", fontsize=7, color="0.3", bbox=box, transform=ax.transAxes)


def grid(ax: Axes) -> None:
    """Draw thin lines at the major ticks."""
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)


def cell_edges(centres: ArrayLike) -> Array:
    """Return the edges of cells around ``n`` points on a logarithmic axis, ``[n + 1]``."""
    logs = np.log(np.asarray(centres, dtype=np.float64))
    middle = 0.5 * (logs[1:] + logs[:-1])
    return np.asarray(np.exp([1.5 * logs[0] - 0.5 * logs[1], *middle, 1.5 * logs[-1] - 0.5 * logs[-2]]))


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: matplotlib is missing. The message names the extra to install.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'lightning-glassy[plot]'") from error
