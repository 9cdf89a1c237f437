"""LitLogger: series, figures, and the record as files of the experiment."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_glassy.loggers.curves import CurveSink, Point
from lightning_glassy.loggers.figures import Picture

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord


class LitLoggerSink(CurveSink):
    """Write to the experiment of a ``LitLogger``, on lightning.ai.

    The keys are the tags of :mod:`lightning_glassy.loggers`. At the end, the record is uploaded
    as the files ``glassy/aging_record.npz`` and ``.csv``.

    The client sends one request to lightning.ai for each new name. A model with many groups causes many requests.
    """

    def log_points(self, points: Sequence[Point]) -> None:
        """Append each finite point to its series. The client would drop any other value, with a warning for each."""
        for tag, step, value in points:
            if math.isfinite(value):
                self._logger.experiment[tag].append(value, step=step)

    def log_figure(self, picture: Picture) -> None:
        """Append an image to the series of the figure."""
        from litlogger import Image as LitImage
        from PIL import Image

        with Image.open(io.BytesIO(picture.png)) as image:
            key = f"{self._prefix}_figures/{picture.name}"
            self._logger.experiment[key].append(LitImage(image), step=picture.step)

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Upload the two files and replace the previous files."""
        from litlogger import File

        for file in files:
            self._logger.experiment[f"{self._prefix}/{file.name}"] = File(str(file))

    def where(self) -> str:
        """Return a line with the address of the experiment."""
        return f"curves     {self._logger.experiment.url}"
