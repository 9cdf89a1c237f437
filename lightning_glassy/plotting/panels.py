"""Figures for the measurements of callbacks other than the monitor, used by the report and the loggers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lightning_glassy.plotting.axes import (
    new_figure,
    title_of,
)
from lightning_glassy.plotting.exponents import plot_curves
from lightning_glassy.plotting.landscape import plot_barriers, plot_displacement_distribution, plot_noise_clock
from lightning_glassy.plotting.response import plot_fluctuation_dissipation
from lightning_glassy.plotting.series import plot_curvature, plot_gradient_noise, plot_loss
from lightning_glassy.record import AgingRecord, series_name
from lightning_glassy.record.tables import RESPONSE_TABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.analysis import LossRegimes


def panels(
    record: AgingRecord, *, group: str = "all", regimes: LossRegimes | None = None
) -> dict[str, Callable[[], Figure]]:
    """Return a function for each figure that the record has data for, by name.

    The names are:

    * ``loss``: the losses in logarithmic time, with the three regimes of the training loss.
    * ``gradient_noise``: the gradient noise of the group.
    * ``displacement_over_noise``: the displacement of the group, and the displacement over D.
    * ``noise_clock``: the displacement of the group against the noise that has acted.
    * ``barriers``, ``distributions``, ``curvature`` and ``fluctuation_dissipation``.

    A returned function takes no arguments and returns its figure. pyplot does not keep the figure.

    Args:
        record: record to draw.
        group: name of the group of parameters.
        regimes: regimes of the training loss. By default, they are fitted when the figure is drawn.

    Raises:
        ImportError: raised by a returned function if matplotlib or scipy is missing. The message names the extra to
            install.
    """
    there, found = record.one_time_names, {}
    if any(name.endswith("_loss") for name in there):
        found["loss"] = lambda: _loss(record, regimes)
    if series_name("gradient_noise", group) in there:
        found["gradient_noise"] = lambda: _gradient_noise(record, group)
        if len(record) and group in record.groups and "normalised_msd" in record.available(group):
            found["displacement_over_noise"] = lambda: _displacement_over_noise(record, group)
            found["noise_clock"] = lambda: _noise_clock(record, group)
    if "loss_path" in record.profile_names:
        found["barriers"] = lambda: _two(record, plot_barriers)
    if {"displacement", "weights"} <= set(record.profile_names):
        found["distributions"] = lambda: _two(record, plot_displacement_distribution)
    if "flat_fraction" in there:
        found["curvature"] = lambda: _two(record, plot_curvature)
    if group == "all" and RESPONSE_TABLE in record.tables and np.isfinite(record.response()).any():
        found["fluctuation_dissipation"] = lambda: _response(record)
    return found


def _loss(record: AgingRecord, regimes: LossRegimes | None) -> Figure:
    figure = new_figure(1)
    if regimes is None and "train_loss" in record.one_time_names:
        # The fit of the regimes needs scipy. Without scipy, the losses are drawn alone.
        with contextlib.suppress(ImportError):
            from lightning_glassy.analysis import NotEnoughDataError, loss_regimes

            with contextlib.suppress(NotEnoughDataError):
                regimes = loss_regimes(record)
    plot_loss(record, regimes, ax=figure.axes[0])
    return figure


def _gradient_noise(record: AgingRecord, group: str) -> Figure:
    figure = new_figure(1)
    plot_gradient_noise(record, group=group, ax=figure.axes[0])
    figure.axes[0].set_title(title_of(record, group), fontsize=10)
    return figure


def _displacement_over_noise(record: AgingRecord, group: str) -> Figure:
    from lightning_glassy.analysis import relaxation_curves

    figure = new_figure(2)
    for name, axes in zip(("msd", "normalised_msd"), figure.axes, strict=True):
        curves = relaxation_curves(record, name, group=group)
        plot_curves(curves, ax=axes).set_ylabel(curves.label)
        axes.set_title(title_of(record, group), fontsize=10)
    return figure


def _response(record: AgingRecord) -> Figure:
    from lightning_glassy.analysis import fluctuation_dissipation

    figure, found = new_figure(2), fluctuation_dissipation(record)
    left, right = figure.axes
    plot_fluctuation_dissipation(found, ax=left, colorbar=False)
    plot_fluctuation_dissipation(found, against="correlation", ax=right)
    return figure


def _noise_clock(record: AgingRecord, group: str) -> Figure:
    figure = new_figure(1)
    plot_noise_clock(record, group=group, ax=figure.axes[0])
    return figure


def _two(record: AgingRecord, plot: Callable[..., object]) -> Figure:
    figure = new_figure(2)
    left, right = figure.axes
    plot(record, axes=(left, right))
    return figure
