"""Pictures with matplotlib: functions that draw on given axes, and some that make a figure.

The colour is the waiting time, on a perceptual map. matplotlib is imported when a function is called; it comes with the
extra ``plot``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_glassy.observables import Array, barrier_height, density, fold
from lightning_glassy.plain import printable
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_glassy.analysis import AgingExponent, Collapse, Curves, Diffusion, Heterogeneity, LossRegimes

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
    colours = _Colours(record.waiting_times)
    for waiting_time, row in zip(record.waiting_times, values, strict=True):
        shown = np.isfinite(row) & (record.lags > 0) & ((row > 0) | (not look.log))
        ax.plot(record.lags[shown], row[shown], **colours.line(waiting_time))
    _logarithmic(ax, both=look.log)
    ax.set_xlabel("lag $t$ (steps)")
    threshold = ""
    if quantity == "overlap":
        threshold = rf", $\epsilon = {record.overlap_thresholds[0] if eps is None else eps:.2g}$"
    ax.set_ylabel(look.label + threshold)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    if colorbar:
        colours.bar(ax)
    return ax


def plot_curves(curves: Curves, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    """Relaxation curves as they are analysed against the lag, both axes logarithmic; of replicas the mean.

    Args:
        curves: from :func:`~lightning_glassy.analysis.relaxation_curves`.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale of waiting times beside the axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    values = curves.mean()
    ax = _draw_curves(curves.waiting_times, np.broadcast_to(curves.lags, values.shape), values, ax, colorbar)
    ax.set_xlabel("lag $t$ (steps)")
    return ax


def plot_collapse(collapsed: Collapse, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    """Curves against the scaled lag: where they fall on each other, the lag to relax grows with that exponent.

    Args:
        collapsed: from :func:`~lightning_glassy.analysis.collapse`.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale of waiting times beside the axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    ax = _draw_curves(collapsed.waiting_times, collapsed.scaled_lags, collapsed.values, ax, colorbar)
    variable = {"effective": r"effective time $\lambda$", "plain": r"$t/t_w^\mu$"}[collapsed.variable]
    ax.set_xlabel(rf"{variable}, $\mu = {collapsed.mu:.3f}$")
    return ax


def _draw_curves(waiting_times: NDArray[np.int64], x: Array, values: Array, ax: Axes | None, colorbar: bool) -> Axes:
    require_matplotlib()
    ax = new_figure(1).axes[0] if ax is None else ax
    colours = _Colours(waiting_times)
    for waiting_time, lags, row in zip(waiting_times, x, values, strict=True):
        shown = np.isfinite(row) & (row > 0)
        ax.plot(lags[shown], row[shown], **colours.line(waiting_time))
    _logarithmic(ax)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    if colorbar:
        colours.bar(ax)
    return ax


def plot_threshold_lags(fit: AgingExponent, *, ax: Axes | None = None) -> Axes:
    r"""Lag to each threshold against the waiting time, with the fitted power laws.

    Args:
        fit: from :func:`~lightning_glassy.analysis.aging_exponent`.
        ax: where to draw; default new axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    from matplotlib import colormaps

    ax = new_figure(1).axes[0] if ax is None else ax
    colours, markers = colormaps["cividis"], "osD^v<>p"
    times = fit.waiting_times + fit.t0
    for i, threshold in enumerate(fit.thresholds):
        colour = colours(0.9 * i / max(len(fit.thresholds) - 1, 1))
        lags = threshold.crossings.lags
        found = np.isfinite(lags)
        ends = times[found][[0, -1]]
        label = f"{threshold.crossings.threshold:.2g}: slope {threshold.mu:.2f}"
        ax.plot(times[found], lags[found], markers[i % len(markers)], color=colour, markersize=5, label=label)
        ax.plot(ends, threshold.line(ends), color=colour, linewidth=1)
    if fit.thresholds:
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.legend(title="threshold", fontsize=8, title_fontsize=8)
    else:
        ax.text(0.5, 0.5, "no threshold is reached\nby enough waiting times", ha="center", transform=ax.transAxes)
    ax.set_xlabel("waiting time $t_w$ (steps)" if not fit.t0 else f"waiting time $t_w$ + {fit.t0:.3g} (steps)")
    ax.set_ylabel("lag $t^*$ to the threshold (steps)")
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    return ax


def plot_local_exponent(found: Diffusion, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""The plane of waiting times and lags, coloured by the local exponent: white is diffusion, blue is slower.

    Args:
        found: from :func:`~lightning_glassy.analysis.diffusion`.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale beside the axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    ax = new_figure(1).axes[0] if ax is None else ax
    positive = found.waiting_times > 0
    if positive.sum() >= 2 and len(found.lags) >= 2:
        mesh = ax.pcolormesh(
            _edges(found.waiting_times[positive]),
            _edges(found.lags),
            np.ma.masked_invalid(found.exponents[positive].T),
            cmap="RdBu_r",
            vmin=0,
            vmax=2,
            rasterized=True,
        )
        ax.set_xscale("log")
        ax.set_yscale("log")
        if colorbar:
            bar = ax.figure.colorbar(mesh, ax=ax, ticks=[0, 0.5, 1, 1.5, 2])
            bar.set_label(r"local exponent $\gamma$ (0 arrested, 1 diffusion, 2 ballistic)")
    ax.set_facecolor("0.92")
    ax.set_xlabel("waiting time $t_w$ (steps)")
    ax.set_ylabel("lag $t$ (steps)")
    return ax


def plot_chi4(found: Heterogeneity, *, ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""Dynamical susceptibility against the lag, a line per waiting time, its standard error as a band.

    Args:
        found: from :func:`~lightning_glassy.analysis.heterogeneity`.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale of the waiting times beside the axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        ValueError: no overlaps were counted in the record.
    """
    require_matplotlib()
    if found.chi4 is None or found.chi4_error is None:
        raise ValueError("no overlaps were counted in this record: there is no chi_4")
    ax = new_figure(1).axes[0] if ax is None else ax
    colours = _Colours(found.waiting_times)
    for waiting_time, row, error in zip(found.waiting_times, found.chi4, found.chi4_error, strict=True):
        shown = np.isfinite(row) & (found.lags > 0)
        lags, values, half = found.lags[shown], row[shown], np.nan_to_num(error[shown])
        line = colours.line(waiting_time)
        ax.fill_between(lags, values - half, values + half, color=line["color"], alpha=0.2, linewidth=0)
        ax.plot(lags, values, **line)
    _logarithmic(ax, both=False)
    ax.set_xlabel("lag $t$ (steps)")
    ax.set_ylabel(rf"$\chi_4 = N\,\mathrm{{Var}}(Q_\epsilon)$, $\epsilon$ = {found.eps:g}")
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    if colorbar:
        colours.bar(ax)
    return ax


def plot_replica_overlaps(found: Heterogeneity, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Overlap between replicas along the run (mean and extremes over pairs), and its distribution P(q) at the end.

    Args:
        found: from :func:`~lightning_glassy.analysis.heterogeneity`.
        axes: two to draw in; default new ones.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        ValueError: the replicas were trained apart: they were not compared.
    """
    from lightning_glassy.analysis.heterogeneity import overlap_distribution

    require_matplotlib()
    if not len(found.steps):
        raise ValueError("these replicas were not compared with each other: they were not trained together")
    left, right = new_figure(2).axes if axes is None else axes
    late = found.steps > 0
    steps, q = found.steps[late], found.overlaps[late]
    left.fill_between(steps, q.min(axis=1), q.max(axis=1), alpha=0.25, linewidth=0)
    left.plot(steps, q.mean(axis=1), marker="o", markersize=2.5)
    if len(steps):
        left.set_xscale("log")
    left.set_xlabel("step")
    left.set_ylabel("overlap $q_{ab}$ between replicas")
    edges, density = overlap_distribution(found.overlaps[-1])
    right.stairs(density, edges, fill=True, alpha=0.6)
    right.set_xlabel("$q$")
    right.set_ylabel(f"$P(q)$ at step {found.steps[-1]:,}")
    for ax in (left, right):
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    return left, right


def plot_loss(record: AgingRecord, regimes: LossRegimes | None = None, *, ax: Axes | None = None) -> Axes:
    """All losses of a record (series called ``<set>_loss``) against the logarithm of the step, of replicas with errors.

    Args:
        record: what to draw.
        regimes: from :func:`~lightning_glassy.analysis.loss_regimes`, to draw the fitted curve and both crossovers,
            each with the steps that the fit allows as a band.
        ax: where to draw; default new axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    ax = new_figure(1).axes[0] if ax is None else ax
    for name in record.one_time_names:
        if name.endswith("_loss"):
            words = printable(name.replace("\n", " ").replace("_", " "))  # what begins with "_" has no legend
            _plot_series(ax, record, name, label=words[-40:].replace("$", r"\$"), error=f"{name}_error")
    if regimes is not None and regimes.falls:
        ax.plot(regimes.steps, regimes.fitted, color="0.4", linestyle="--", linewidth=1, label="three regimes")
        for at, interval in (
            (regimes.falls_from, regimes.falls_interval),
            (regimes.bottom_from, regimes.bottom_interval),
        ):
            if at is not None and interval is not None:
                ax.axvspan(*interval, color="0.5", alpha=0.2, linewidth=0)
                ax.axvline(at, color="0.4", linewidth=0.8)
    _finish_series(ax, "loss")
    return ax


def plot_gradient_noise(record: AgingRecord, *, group: str = "all", ax: Axes | None = None) -> Axes:
    r"""Strength D(t) of the gradient noise and, if it was measured, the squared norm of the mean gradient.

    Args:
        record: what to draw.
        group: name of the group of parameters.
        ax: where to draw; default new axes.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        KeyError: the record has no gradient noise of that group.
    """
    require_matplotlib()
    ax = new_figure(1).axes[0] if ax is None else ax
    suffix = "" if group == "all" else f"/{group}"
    _plot_series(ax, record, f"gradient_noise{suffix}", label=r"noise $D$", positive=True)
    if f"gradient_norm2{suffix}" in record.one_time_names:
        _plot_series(ax, record, f"gradient_norm2{suffix}", label=r"signal $\|\langle g\rangle\|^2$", positive=True)
    _finish_series(ax, "strength of the gradient")
    _logarithmic(ax)
    return ax


def plot_curvature(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Fractions of flat and of descending directions, and the extreme eigenvalues of the curvature, along the run.

    The eigenvalues are on an axis that is logarithmic beyond :math:`\pm\epsilon` and linear between; shaded is where 90
    and where 50 % of the directions lie. Bands of the fractions are their errors.

    Args:
        record: with the series of :class:`~lightning_glassy.CurvatureMonitor`.
        axes: two to draw in; default new ones.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    left, right = new_figure(2).axes if axes is None else axes
    there = record.one_time_names
    matrix = "gauss_newton" if "gauss_newton_trace" in there else "hessian"
    for name, label in (
        ("flat_fraction", r"flat, $|\lambda| < \epsilon$"),
        (f"{matrix}_index", r"$\lambda < -\epsilon$"),
    ):
        if name in there:
            _plot_series(left, record, name, label=label, error=f"{name}_error")
    left.set_ylim(-0.02, 1.02)
    _finish_series(left, "fraction of the directions")
    for low, high in (("q05", "q95"), ("q25", "q75")):
        if {f"{matrix}_{low}", f"{matrix}_{high}"} <= set(there):
            (steps, lower), (others, upper) = _late(record, f"{matrix}_{low}"), _late(record, f"{matrix}_{high}")
            both, i, k = np.intersect1d(steps, others, return_indices=True)
            right.fill_between(both, lower[i], upper[k], color="C0", alpha=0.2, linewidth=0)
    for name, colour, label, marker in (
        ("max", "C3", "leading", "o"),
        ("max_at_least", "C3", "leading, at least", "2"),
        ("min", "C2", "lowest", "o"),
        ("min_at_most", "C2", "lowest, at most", "1"),
    ):
        if f"{matrix}_{name}" in there:
            _plot_series(right, record, f"{matrix}_{name}", label=label, color=colour, marker=marker)
    meta = record.meta.get("CurvatureMonitor")
    eps = meta.get("eps") if isinstance(meta, dict) else None
    right.set_yscale("symlog", linthresh=eps if isinstance(eps, float) and 0 < eps < np.inf else 1e-3)
    _finish_series(right, rf"eigenvalue $\lambda$ ({matrix.replace('_', ' ')})")
    return left, right


def plot_noise_clock(record: AgingRecord, *, group: str = "all", ax: Axes | None = None, colorbar: bool = True) -> Axes:
    r"""Displacement against the noise that has acted since t_w, :math:`\int D\,dt'`: diffusion is one straight line.

    Args:
        record: what to draw; of replicas their mean.
        group: name of the group of parameters.
        ax: where to draw; default new axes.
        colorbar: whether to draw the scale of the waiting times beside the axes.

    Raises:
        ImportError: matplotlib or scipy is missing; the message names the extra.
        KeyError: the record has no gradient noise of that group.
    """
    from lightning_glassy.analysis import noise_clock

    msd = record.msd(group)
    values = msd if record.n_replica is None else msd.mean(axis=0)
    clock = noise_clock(record, group)
    ax = _draw_curves(record.waiting_times, np.where(clock > 0, clock, np.nan), values, ax, colorbar)
    ax.set_xlabel(r"noise since $t_w$, $\int D\,dt'$")
    ax.set_ylabel(r"mean squared displacement $\Delta(t_w, t_w+t)$")
    return ax


def plot_barriers(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Loss along the straight line between the weights at two times, and the height of the barrier against the lag.

    Args:
        record: with the profile ``loss_path`` of a :class:`~lightning_glassy.BarrierMonitor`.
        axes: two to draw in; default new ones.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        KeyError: the record has no such profile.
    """
    require_matplotlib()
    left, right = new_figure(2).axes if axes is None else axes
    paths = record.profile("loss_path")
    times = np.unique(paths.waiting_times)
    colours = _Colours(times)
    for waiting_time in times:
        of_it = paths.waiting_times == waiting_time
        for values in paths.values[of_it]:
            left.plot(paths.grid, values, **{**colours.line(waiting_time), "linewidth": 0.8, "markersize": 1.5})
        heights = barrier_height(paths.values[of_it])
        right.plot(paths.lags[of_it], heights, **colours.line(waiting_time))
    if len(times):
        right.set_xscale("log")
    left.set_xlabel(r"$\alpha$ from $w(t_w)$ to $w(t_w+t)$")
    left.set_ylabel(r"loss $L(\alpha)$")
    right.set_xlabel("lag $t$ (steps)")
    right.set_ylabel("height of the barrier")
    for ax in (left, right):
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    colours.bar(right)
    return left, right


def plot_displacement_distribution(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Density of :math:`|\Delta w|/\sqrt\Delta` beside that of a Gaussian, and of the weights at each waiting time.

    Args:
        record: with the profiles of a :class:`~lightning_glassy.DisplacementDistribution`.
        axes: two to draw in; default new ones.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
        KeyError: the record has no such profiles.
    """
    require_matplotlib()
    left, right = new_figure(2).axes if axes is None else axes
    moved, weights = record.profile("displacement"), record.profile("weights")
    colours = _Colours(np.unique(np.concatenate([moved.waiting_times, weights.waiting_times])))
    for profile, ax in ((moved, left), (weights, right)):
        edges, counts = fold(profile.grid, profile.values)
        centres, found = np.sqrt(edges[1:] * edges[:-1]), density(edges, counts)
        for waiting_time, values in zip(profile.waiting_times, found, strict=True):
            shown = values > 0
            line = {**colours.line(waiting_time), "linewidth": 0.8, "markersize": 1.5}
            ax.plot(centres[shown], values[shown], **line)
    edges, _ = fold(moved.grid, moved.values)
    x = np.geomspace(edges[0], 10.0, 300)
    left.plot(x, np.sqrt(2 / np.pi) * np.exp(-(x**2) / 2), "k--", linewidth=1, label="Gaussian")
    left.legend(handles=left.get_lines()[-1:], fontsize=8)
    for ax in (left, right):
        _logarithmic(ax)
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    left.set_ylim(bottom=1e-8)
    left.set_xlabel(r"$|\Delta w|/\sqrt{\Delta}$")
    left.set_ylabel("density")
    right.set_xlabel(r"$|w(t_w)|$")
    colours.bar(right)
    return left, right


def _late(record: AgingRecord, name: str, positive: bool = False) -> tuple[NDArray[np.int64], Array]:
    """A series after step 0, which has no place on a logarithmic axis; NaN where it has no value to be drawn."""
    steps, values = record.one_time(name)
    shown = np.isfinite(values) & ((values > 0) | (not positive))
    return steps[steps > 0], np.where(shown, values, np.nan)[steps > 0]


def _plot_series(
    ax: Axes, record: AgingRecord, name: str, *, label: str, positive: bool = False, error: str = "", **style: Any
) -> None:
    steps, values = _late(record, name, positive)
    measured = np.isfinite(values)
    look: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2, "label": label} | style
    (line,) = ax.plot(steps[measured], values[measured], **look)
    if error in record.one_time_names:
        half = dict(zip(*(part.tolist() for part in _late(record, error)), strict=True))
        band = np.nan_to_num([half.get(step, 0.0) for step in steps.tolist()])
        ax.fill_between(steps, values - band, values + band, color=line.get_color(), alpha=0.2, linewidth=0)


def _finish_series(ax: Axes, label: str) -> None:
    if any(len(line.get_xdata()) for line in ax.get_lines()):  # type: ignore[arg-type]
        ax.set_xscale("log")
        ax.legend(fontsize=8)
    ax.set_xlabel("step $t$")
    ax.set_ylabel(label)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)


def two_time_figure(
    record: AgingRecord, quantity: Quantity = "msd", *, group: str = "all", eps: float | None = None
) -> Figure:
    """A figure of :func:`plot_two_time`, unknown to pyplot: nothing has to be closed. Arguments and errors as there."""
    figure = new_figure(1)
    plot_two_time(record, quantity, group=group, eps=eps, ax=figure.axes[0])
    figure.axes[0].set_title(title_of(record, group), fontsize=10)
    return figure


def title_of(record: AgingRecord, group: str) -> str:
    """What a picture of a group is called: its name, which is no formula and no longer than the picture, and N."""
    name = "all parameters" if group == "all" else printable(group.replace("\n", " "))
    name = name if len(name) <= 60 else f"{name[:57]}..."
    return f"{name}, N = {record.n_parameters[group]:,}".replace("$", r"\$")


def new_figure(columns: int, *, width: float = 6.4, height: float = 4.4) -> Figure:
    """A figure with so many axes side by side, outside pyplot's global state.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), dpi=110)
    figure.subplots(1, columns)
    # Fixed margins: to find them out, matplotlib would take three times as long as to draw the curves.
    figure.subplots_adjust(left=0.8 / (width * columns), right=0.985, bottom=0.55 / height, top=1 - 0.35 / height)
    return figure


def _logarithmic(ax: Axes, *, both: bool = True) -> None:
    """Logarithmic scales for what is drawn: nothing, or one value (all else NaN), would have no range on them."""
    lines = [line for line in ax.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]
    if not lines:
        return
    ax.set_xscale("log")
    if both:
        values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in lines])
        if values.min() == values.max():
            ax.set_ylim(values.min() / 2, 2 * values.max())
        ax.set_yscale("log")


class _Colours:
    """The colour of a waiting time, on a logarithmic scale."""

    def __init__(self, waiting_times: NDArray[np.int64]) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LinearSegmentedColormap, LogNorm

        positive = waiting_times[waiting_times > 0]
        low, high = (positive.min(), positive.max()) if len(positive) else (1, 1)
        self._norm = LogNorm(low, high if high > low else 10 * low)
        # The lightest tenth of the map is lost on white paper.
        shades = colormaps["viridis"](np.linspace(0, 0.93, 256))
        self._map = LinearSegmentedColormap.from_list("waiting times", shades)
        self._any = len(positive) > 0

    def line(self, waiting_time: int) -> dict[str, Any]:
        """How the curve of a waiting time is drawn."""
        style: dict[str, Any] = {"marker": ".", "markersize": 4, "linewidth": 1.2}
        # Step 0 has no place on a logarithmic scale of waiting times: dashed and grey.
        if waiting_time > 0:
            return style | {"color": self._map(self._norm(waiting_time)), "label": f"$t_w = {waiting_time:,}$"}
        return style | {"color": "0.6", "linestyle": "--", "label": "$t_w = 0$"}

    def bar(self, ax: Axes) -> None:
        """Draw the scale beside the axes."""
        from matplotlib.cm import ScalarMappable

        if self._any:
            ax.figure.colorbar(ScalarMappable(self._norm, self._map), ax=ax, label="waiting time $t_w$ (steps)")


def _edges(centres: ArrayLike) -> Array:
    """Borders of cells around points on a logarithmic axis, one more than points."""
    logs = np.log(np.asarray(centres, dtype=np.float64))
    middle = 0.5 * (logs[1:] + logs[:-1])
    return np.asarray(np.exp([1.5 * logs[0] - 0.5 * logs[1], *middle, 1.5 * logs[-1] - 0.5 * logs[-2]]))


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


def require_matplotlib() -> None:
    """What every plot needs.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'lightning-glassy[plot]'") from error
