"""Plots with matplotlib.

A function named ``plot_...`` takes a record first. It draws on the axes given as ``ax`` or ``axes``, or on new axes of
pyplot, which a notebook shows by itself, and returns the axes. If it draws a result of the analysis, it takes the
result instead of the record, too. The colour of a curve is the waiting time, on a perceptually uniform map.

A function imports matplotlib when it is called. Without matplotlib, it raises an ImportError that names the extra to
install. :func:`plot_noise_clock` needs scipy, too.
"""

from lightning_glassy.plotting.axes import new_figure, pyplot_axes, require_matplotlib, title_of
from lightning_glassy.plotting.exponents import plot_collapse, plot_curves, plot_local_exponent, plot_threshold_lags
from lightning_glassy.plotting.landscape import plot_barriers, plot_displacement_distribution, plot_noise_clock
from lightning_glassy.plotting.layers import groups_figure, plot_groups
from lightning_glassy.plotting.overview import comparison_figure, plot, plot_comparison, plot_overview
from lightning_glassy.plotting.relaxation import plot_collapse_residuals, plot_relaxation_times
from lightning_glassy.plotting.replicas import plot_chi4, plot_replica_overlaps
from lightning_glassy.plotting.response import plot_fluctuation_dissipation
from lightning_glassy.plotting.series import plot_curvature, plot_gradient_noise, plot_loss
from lightning_glassy.plotting.two_time import plot_two_time, two_time_figure

__all__ = [
    "comparison_figure",
    "groups_figure",
    "new_figure",
    "plot",
    "plot_barriers",
    "plot_chi4",
    "plot_collapse",
    "plot_collapse_residuals",
    "plot_comparison",
    "plot_curvature",
    "plot_curves",
    "plot_displacement_distribution",
    "plot_fluctuation_dissipation",
    "plot_gradient_noise",
    "plot_groups",
    "plot_local_exponent",
    "plot_loss",
    "plot_noise_clock",
    "plot_overview",
    "plot_relaxation_times",
    "plot_replica_overlaps",
    "plot_threshold_lags",
    "plot_two_time",
    "pyplot_axes",
    "require_matplotlib",
    "title_of",
    "two_time_figure",
]
