"""Comet: metrics, figures, and the record as assets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_glassy.loggers.curves import CurveSink, Point, shortened
from lightning_glassy.loggers.figures import Picture

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

_LONGEST = 100  # Comet cuts longer names, which would remove the waiting time at the end


class CometSink(CurveSink):
    """Write to the experiment of a ``CometLogger``.

    The metrics and figures have the tags of :mod:`lightning_glassy.loggers`. A new figure replaces the previous figure.
    At the end, the record is logged as the assets ``glassy/aging_record.npz`` and ``.csv``.
    """

    def log_points(self, points: Sequence[Point]) -> None:
        """Log the points of each step together."""
        by_step: dict[int, dict[str, float]] = {}
        for tag, step, value in points:
            by_step.setdefault(step, {})[shortened(tag, _LONGEST)] = value
        for step, metrics in by_step.items():
            self._logger.experiment.log_metrics(metrics, step=step)
        # Comet would use the last step, here a lag, for later logs without a step.
        self._logger.experiment.set_step(self._step)

    def log_figure(self, picture: Picture) -> None:
        """Log the figure and replace the previous figure."""
        name = f"{self._prefix}_figures/{picture.name}"
        self._logger.experiment.log_figure(name, picture.figure, overwrite=True, step=picture.step)

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the two files and replace the previous files."""
        for file in files:
            # Pass the bytes, because Comet uploads later, when the file is gone.
            content, name = io.BytesIO(file.read_bytes()), f"{self._prefix}/{file.name}"
            self._logger.experiment.log_asset(content, file_name=name, overwrite=True, step=self._step)

    def where(self) -> str | None:
        """Return a line with the address of the experiment, or None offline: Comet itself reports how to upload it."""
        url = self._logger.experiment.url
        return f"curves     {url}" if url else None
