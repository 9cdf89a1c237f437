"""Make a record from checkpoints that are there already."""

from lightning_glassy.checkpoints.measure import measure_checkpoints

__all__ = ["measure_checkpoints"]
