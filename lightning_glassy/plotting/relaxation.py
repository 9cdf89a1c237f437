"""Plots that show whether relaxation times grow as a power law, and at which lags curves leave a common curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_glassy.plotting.axes import (
    cell_edges,
    draw_curves,
    drawable,
    grid,
    log_axis,
    pyplot_axes,
)
from lightning_glassy.plotting.given import result_of
from lightning_glassy.record import AgingRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_glassy.analysis import Curves, RelaxationTimes
    from lightning_glassy.analysis.collapse import Variable


def plot_relaxation_times(
    record: AgingRecord | RelaxationTimes, *, group: str = "all", axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    r"""Draw the relaxation times and their local slope against the waiting time.

    The left axes show the times of each method with their errors, the fitted power law (thin), and the preferred law of
    the main method if it is another law (dashed). The right axes show the local slope between neighbouring waiting
    times. For a power law, it is constant.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.relaxation_times`.
        group: group of the record.
        axes: two axes to draw on, default new axes of pyplot.
    """
    found = result_of(record, _relaxation_times, group=group)
    left, right = pyplot_axes(2) if axes is None else axes
    from matplotlib import colormaps

    style: dict[str, Any]
    clock, points = found.waiting_times + found.t0, [0, 0]  # points that are drawn left and right
    for i, one in enumerate(found.methods.values()):
        colour, marker = colormaps["cividis"](0.9 * i / max(len(found.methods) - 1, 1)), "osD^v<>p"[i % 8]
        shown = drawable(one.times, log=True) & drawable(clock, log=True)
        label = f"{one.method}: no power law fitted" if np.isnan(one.mu) else f"{one.method}: slope {one.mu:.2f}"
        label += "" if one.mu_error is None else rf" $\pm$ {one.mu_error:.2g}"
        label += f", drift {one.drift:.2f}" if np.isfinite(one.drift) else ""
        style = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "", "capsize": 2}
        points[0] += int(shown.sum())
        errors = None if one.errors is None else np.nan_to_num(one.errors[shown])
        left.errorbar(clock[shown], one.times[shown], yerr=errors, label=label, **style)
        fitted = one.slope_at.min(initial=np.inf), one.slope_at.max(initial=0.0)
        for law in one.growth:
            other = one is found.main and law.name == one.preferred
            if law.name == "power law" or other:
                times = np.geomspace(*fitted, 50)
                line = law.line(times)
                shown = drawable(line, log=True)
                dashes = "-" if law.name == "power law" else "--"
                left.plot(times[shown], line[shown], color=colour, linewidth=1, linestyle=dashes)
        shown = drawable(one.slopes)
        points[1] += int(shown.sum())
        errors = None if one.slope_errors is None else np.nan_to_num(one.slope_errors[shown])
        right.errorbar(one.slope_at[shown], one.slopes[shown], yerr=errors, **(style | {"linestyle": "-"}))
    if points[0]:
        log_axis(left, "x", "y")
        left.legend(fontsize=8)
    else:
        words = "the measured lags determine\nno relaxation time after step 0"
        left.text(0.5, 0.5, words, ha="center", transform=left.transAxes)
    if points[1]:
        log_axis(right, "x")
        for level in (0, 1):
            right.axhline(level, color="0.6", linewidth=0.8, linestyle=":")
    words = found.preferred if found.preferred is not None else "cannot tell"
    right.set_title(f"growth ({found.main.method}): {words}", fontsize=10)
    for ax in (left, right):
        ax.set_xlabel("waiting time $t_w$ (steps)" if not found.t0 else f"waiting time $t_w$ + {found.t0:.3g} (steps)")
        grid(ax)
    left.set_ylabel(r"relaxation time $\tau$ (steps)")
    right.set_ylabel(r"local slope $\Delta\ln\tau/\Delta\ln t_w$")
    return left, right


def plot_collapse_residuals(
    record: AgingRecord | Curves,
    mu: float | None = None,
    variable: Variable = "effective",
    *,
    t0: float = 0.0,
    group: str = "all",
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    r"""Draw the misfit of every point from the other curves, after a collapse with a given exponent.

    The misfit is the difference of the logarithms of a curve and of the common curve through its neighbours
    (:meth:`~lightning_glassy.analysis.collapse.CollapseQuality.residuals`). The left axes show the misfit against the
    scaled lag. With replicas, they show the misfit over its error, and most points of a good collapse lie between -2
    and 2. The right axes show the misfit in the plane of waiting times and lags. Red is above the other curves, and
    blue is below.

    If no power law rescales the curves, the misfits have a pattern: whole curves lie above or below the others.

    Args:
        record: record to draw, or a result of :func:`~lightning_glassy.analysis.relaxation_curves`.
        mu: aging exponent. For a record, the default is its exponent, in the variable of its better collapse.
        variable: scaling variable, ``"effective"`` or ``"plain"``.
        t0: origin of the clock, in steps before step 0. Curves up to this time are left out.
        group: group of the record.
        axes: two axes to draw on, default new axes of pyplot.

    Raises:
        ValueError: there is no such variable, ``mu`` is missing for curves, or the record has no exponent.
    """
    if mu is None:
        if not isinstance(record, AgingRecord):
            raise ValueError("mu=None: curves need an exponent. A record has its own")
        mu, variable, t0, record = _fitted(record, group)
        group = "all"  # of the curves, which are found
    curves = result_of(record, _curves, group=group)
    from lightning_glassy.analysis.collapse import CollapseQuality, log_errors, scaled_lag

    left, right = pyplot_axes(2) if axes is None else axes
    used = curves.after(-t0)
    quality = CollapseQuality(used.waiting_times, used.lags, used.mean(), log_errors(used.values))
    misfits, errors = quality.residuals(mu, variable, t0)
    scaled = scaled_lag(used.waiting_times[:, None], used.lags[None, :], mu, variable, t0)
    several = used.n_replica > 1
    draw_curves(used.waiting_times, scaled, misfits / errors if several else misfits, left, colorbar=True, log=False)
    left.axhline(0, color="0.3", linewidth=0.8)
    if several:
        left.axhspan(-2, 2, color="0.5", alpha=0.15, linewidth=0)
    left.set_ylabel("misfit over its error" if several else "misfit (difference of logarithms)")
    name = {"effective": r"effective time $h$", "plain": r"$t/t_w^\mu$"}[variable]
    left.set_xlabel(rf"{name}, $\mu = {mu:.3f}$")

    clock = used.waiting_times + t0
    if len(clock) >= 2 and len(used.lags) >= 2 and np.isfinite(misfits).any():
        most = max(float(np.nanquantile(np.abs(misfits), 0.98)), 1e-6)
        mesh = right.pcolormesh(
            cell_edges(clock),
            cell_edges(used.lags),
            np.ma.masked_invalid(misfits.T),
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            rasterized=True,
        )
        log_axis(right, "x", "y")
        right.figure.colorbar(mesh, ax=right).set_label("misfit (difference of logarithms)")
    right.set_facecolor("0.92")
    right.set_xlabel("waiting time $t_w$ (steps)" if not t0 else f"waiting time $t_w$ + {t0:.3g} (steps)")
    right.set_ylabel("lag $t$ (steps)")
    return left, right


def _relaxation_times(record: AgingRecord, group: str) -> RelaxationTimes:
    from lightning_glassy.analysis import relaxation_times

    return relaxation_times(record, group=group)


def _curves(record: AgingRecord, group: str) -> Curves:
    from lightning_glassy.analysis import relaxation_curves

    return relaxation_curves(record, group=group)


def _fitted(record: AgingRecord, group: str) -> tuple[float, Variable, float, Curves]:
    """Return the exponent of a record, its scaling variable, the origin of its clock, and the curves it belongs to."""
    from lightning_glassy.analysis import NotEnoughDataError, aging_exponent
    from lightning_glassy.analysis.exponents import windowed
    from lightning_glassy.analysis.plateaus import above_plateaus

    fit = aging_exponent(record, group=group)
    if np.isnan(fit.estimate):
        raise NotEnoughDataError(f"there is no collapse to draw: {fit.why_not}")
    used = above_plateaus(windowed(_curves(record, group), fit.window, fit.t0))
    return fit.estimate, fit.variable, fit.t0, used
