"""Plots of quantities along the run: losses, gradient noise, curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array, log_spaced
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.plotting.axes import (
    bands_of,
    draw_band,
    drawable,
    epoch_axis,
    grid,
    log_axis,
    logarithmic,
    note,
    pyplot_axes,
)
from lightning_glassy.record import AgingRecord, series_name
from lightning_glassy.record.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import LossRegimes

_MOST_VALUES = 1000  # values of a series in one figure


def plot_loss(record: AgingRecord, regimes: LossRegimes | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw all losses of a record (series called ``<set>_loss``) against the logarithm of the step.

    With replicas, a band shows one standard error of their mean on either side, if the record has this error. Joined
    runs have it, and replicas that a :class:`~lightning_glassy.LogTimeEvaluator` has evaluated.

    Args:
        record: record to draw.
        regimes: result of :func:`~lightning_glassy.analysis.loss_regimes`. With this argument, the fitted curve and
            both crossovers are drawn, each crossover with a band of the steps that the fit allows.
        ax: axes to draw on, default new axes of pyplot.
    """
    ax = pyplot_axes()[0] if ax is None else ax
    for name in record.one_time_names:
        if name.endswith("_loss"):
            words = printable(name.replace("\n", " ").replace("_", " "))  # a label that begins with "_" has no legend
            _plot_series(ax, record, name, label=words[-40:].replace("$", r"\$"), error=f"{name}_error")
    if regimes is not None and regimes.falls:
        shown = drawable(regimes.fitted)
        ax.plot(
            regimes.steps[shown], regimes.fitted[shown], color="0.4", linestyle="--", linewidth=1, label="three regimes"
        )
        has_band = False
        for at, interval in (
            (regimes.falls_from, regimes.falls_interval),
            (regimes.bottom_from, regimes.bottom_interval),
        ):
            if at is not None and interval is not None:
                label = None if has_band else "crossover, with the steps that the fit allows"
                ax.axvspan(*interval, color="0.5", alpha=0.2, linewidth=0, label=label)
                has_band = True
                ax.axvline(at, color="0.4", linewidth=0.8)
    _finish_series(ax, record, "loss")
    _note_bands(ax, record)
    return ax


def plot_gradient_noise(record: AgingRecord, *, group: str = "all", ax: Axes | None = None) -> Axes:
    r"""Draw the strength D(t) of the gradient noise and, if measured, the squared norm of the mean gradient.

    With joined runs, a band shows one standard error of their mean on either side.

    Args:
        record: record to draw.
        group: name of the group of parameters.
        ax: axes to draw on, default new axes of pyplot.

    Raises:
        KeyError: the record has no gradient noise of this group.
    """
    ax = pyplot_axes()[0] if ax is None else ax
    for quantity, label in (("gradient_noise", "noise $D$"), ("gradient_norm2", r"signal $\|\langle g\rangle\|^2$")):
        name = series_name(quantity, group)
        if quantity == "gradient_noise" or name in record.one_time_names:
            _plot_series(ax, record, name, label=label, positive=True, error=f"{name}_error")
    _finish_series(ax, record, "strength of the gradient")
    logarithmic(ax)
    _note_bands(ax, record)
    return ax


def plot_curvature(record: AgingRecord, *, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    r"""Draw the fractions of flat and descending directions and the extreme eigenvalues of the curvature.

    Both are drawn against the step. The axis of the eigenvalues is logarithmic beyond :math:`\pm\lambda_0`, the ``eps``
    of the callback, and linear in between. Two shaded bands hold 90 % and 50 % of the directions. The bands of the
    fractions are their errors.

    Args:
        record: record with the series of :class:`~lightning_glassy.CurvatureMonitor`.
        axes: two axes to draw on, default new axes of pyplot.
    """
    left, right = pyplot_axes(2) if axes is None else axes
    there = record.one_time_names
    matrix = "gauss_newton" if "gauss_newton_trace" in there else "hessian"
    for name, label in (
        ("flat_fraction", r"flat, $|\lambda| < \lambda_0$"),
        (f"{matrix}_index", r"$\lambda < -\lambda_0$"),
    ):
        if name in there:
            _plot_series(left, record, name, label=label, error=f"{name}_error")
    left.set_ylim(-0.02, 1.02)
    _finish_series(left, record, "fraction of the directions")
    for low, high, part in (("q05", "q95", "90 %"), ("q25", "q75", "50 %")):
        if {f"{matrix}_{low}", f"{matrix}_{high}"} <= set(there):
            (steps, lower), (others, upper) = _late(record, f"{matrix}_{low}"), _late(record, f"{matrix}_{high}")
            both, i, k = np.intersect1d(steps, others, return_indices=True)
            right.fill_between(both, lower[i], upper[k], color="C0", alpha=0.2, linewidth=0, label=f"{part} of all")
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
    _finish_series(right, record, rf"eigenvalue $\lambda$ ({matrix.replace('_', ' ')})")
    return left, right


def _late(record: AgingRecord, name: str, positive: bool = False) -> tuple[NDArray[np.int64], Array]:
    """Return the steps and values of a series after step 0, with NaN for a value that cannot be drawn.

    Step 0 is left out, because a logarithmic axis has no 0.
    """
    steps, values = record.one_time(name)
    shown = drawable(values, log=positive)
    return steps[steps > 0], np.where(shown, values, np.nan)[steps > 0]


@quiet()
def _plot_series(
    ax: Axes, record: AgingRecord, name: str, *, label: str, positive: bool = False, error: str = "", **style: Any
) -> None:
    steps, values = _late(record, name, positive)
    kept = log_spaced(steps, _MOST_VALUES)
    steps, values = steps[kept], values[kept]
    measured = np.isfinite(values)
    look: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2, "label": label} | style
    (line,) = ax.plot(steps[measured], values[measured], **look)
    if error in record.one_time_names:
        half = dict(zip(*(part.tolist() for part in _late(record, error)), strict=True))
        errors = np.array([half.get(step, np.nan) for step in steps.tolist()])
        floor = 0.5 * values[measured].min(initial=np.inf) if positive else -np.inf
        draw_band(ax, steps, values, errors, line.get_color(), floor)


def _note_bands(ax: Axes, record: AgingRecord) -> None:
    """Add a note that explains the bands around the series, if there are bands and the record has replicas."""
    if record.n_replica is not None and record.n_replica > 1 and ax.collections:
        note(ax, bands_of(record.n_replica), left=True)  # losses and noise fall with the step


def _finish_series(ax: Axes, record: AgingRecord, label: str) -> None:
    if any(len(line.get_xdata()) for line in ax.get_lines()):  # type: ignore[arg-type]
        log_axis(ax, "x")
        ax.legend(fontsize=8)
    ax.set_xlabel("step")
    epoch_axis(ax, record)
    ax.set_ylabel(label)
    grid(ax)
