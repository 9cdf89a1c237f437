"""What the curves say: one question per file. NumPy and SciPy only; a record is all that is needed."""

from lightning_glassy.analysis.collapse import Collapse, collapse
from lightning_glassy.analysis.crossings import Crossings, lag_to_threshold
from lightning_glassy.analysis.curves import Curves, relaxation_curves
from lightning_glassy.analysis.exponents import AgingExponent, ThresholdFit, aging_exponent

__all__ = [
    "AgingExponent",
    "Collapse",
    "Crossings",
    "Curves",
    "ThresholdFit",
    "aging_exponent",
    "collapse",
    "lag_to_threshold",
    "relaxation_curves",
]
