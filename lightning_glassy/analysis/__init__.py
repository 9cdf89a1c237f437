"""Answers from a record: one question per file, with NumPy and SciPy alone."""

try:
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError("lightning_glassy.analysis needs scipy: pip install 'lightning-glassy[analysis]'") from error

from lightning_glassy.analysis.collapse import Collapse, CollapseQuality, collapse, collapse_quality, scaled_lag
from lightning_glassy.analysis.comparison import ComparedRecord, Comparison, compare
from lightning_glassy.analysis.crossings import Crossings, lag_to_threshold
from lightning_glassy.analysis.curves import Curves, relaxation_curves
from lightning_glassy.analysis.diffusion import Diffusion, diffusion
from lightning_glassy.analysis.exponent_result import AgingExponent, NotEnoughDataError, ThresholdFit
from lightning_glassy.analysis.exponents import aging_exponent
from lightning_glassy.analysis.growth import Growth
from lightning_glassy.analysis.heterogeneity import Heterogeneity, Peak, heterogeneity, overlap_distribution
from lightning_glassy.analysis.inherent import inherent_jumps
from lightning_glassy.analysis.layers import GroupAging, GroupRow, aging_by_group
from lightning_glassy.analysis.noise_clock import noise_clock
from lightning_glassy.analysis.overlaps import OverlapAt, overlap_at
from lightning_glassy.analysis.phase import AgingRate, Verdict, reconcile, verdict
from lightning_glassy.analysis.regimes import LossRegimes, loss_regimes
from lightning_glassy.analysis.relaxation import RelaxationTime, RelaxationTimes, relaxation_times
from lightning_glassy.analysis.response import FluctuationDissipation, TimeSector, fluctuation_dissipation
from lightning_glassy.analysis.temperature import TemperatureLaw, fit_arrhenius, fit_vft
from lightning_glassy.analysis.words import Slowdown, in_words

__all__ = [
    "AgingExponent",
    "AgingRate",
    "Collapse",
    "CollapseQuality",
    "ComparedRecord",
    "Comparison",
    "Crossings",
    "Curves",
    "Diffusion",
    "FluctuationDissipation",
    "GroupAging",
    "GroupRow",
    "Growth",
    "Heterogeneity",
    "LossRegimes",
    "NotEnoughDataError",
    "OverlapAt",
    "Peak",
    "RelaxationTime",
    "RelaxationTimes",
    "Slowdown",
    "TemperatureLaw",
    "ThresholdFit",
    "TimeSector",
    "Verdict",
    "aging_by_group",
    "aging_exponent",
    "collapse",
    "collapse_quality",
    "compare",
    "diffusion",
    "fit_arrhenius",
    "fit_vft",
    "fluctuation_dissipation",
    "heterogeneity",
    "in_words",
    "inherent_jumps",
    "lag_to_threshold",
    "loss_regimes",
    "noise_clock",
    "overlap_at",
    "overlap_distribution",
    "reconcile",
    "relaxation_curves",
    "relaxation_times",
    "scaled_lag",
    "verdict",
]
