"""The record of a training, the input of the analysis: raw two-time moments with labelled axes, in one safe file.

The training code works with tensors, ranks and streams. The analysis code works with NumPy arrays. A record stores sums
over parameters, and no derived curves, so that an observable can be defined or corrected after the run. Reading a
record needs neither torch nor lightning.
"""

from lightning_glassy.record.checks import check_thresholds
from lightning_glassy.record.content import Profile, without_replaced
from lightning_glassy.record.file import FORMAT, FORMAT_VERSION, RecordError
from lightning_glassy.record.record import AgingRecord, series_name, without_cut_short
from lightning_glassy.record.tables import MOMENTS, MSD_MOMENTS

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MOMENTS",
    "MSD_MOMENTS",
    "AgingRecord",
    "Profile",
    "RecordError",
    "check_thresholds",
    "series_name",
    "without_cut_short",
    "without_replaced",
]
