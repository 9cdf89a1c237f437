"""The door between training and analysis: raw two-time moments with labelled axes, in one safe file."""

from lightning_glassy.record.record import (
    FORMAT,
    FORMAT_VERSION,
    MOMENTS,
    AgingRecord,
    Profile,
    RecordError,
    check_thresholds,
)

__all__ = ["FORMAT", "FORMAT_VERSION", "MOMENTS", "AgingRecord", "Profile", "RecordError", "check_thresholds"]
