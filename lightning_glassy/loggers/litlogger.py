"""LitLogger: series against the lag, figures, and the record as files of the experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_glassy.loggers.curves import CurveSink
from lightning_glassy.loggers.figures import png
from lightning_glassy.loggers.sinks import Scalar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.record import AgingRecord


class LitLoggerSink(CurveSink):
    """Writes to the experiment of a ``LitLogger``, on lightning.ai.

    =======================================  ========================================================
    key                                      what is logged
    =======================================  ========================================================
    ``glassy/msd/tw_<t_w>``                  mean squared displacement; the step is the lag
    ``glassy/decorrelation/tw_<t_w>``        1 - cosine correlation; the step is the lag
    ``glassy/non_gaussian/tw_<t_w>``         non-Gaussian parameter; the step is the lag
    ``glassy/overlap_<eps>/tw_<t_w>``        overlap; the step is the lag
    ``glassy/<quantity>/<group>/tw_<t_w>``   the same for the other groups
    ``glassy_figures/<quantity>``            all curves of group ``"all"`` on logarithmic axes, at
                                             steps 1000, 10,000, ... and at the end
    ``glassy_figures/<panel>``               the same for the pictures of what other callbacks have
                                             measured, as :func:`~lightning_glassy.plotting.panels.panels` names them
    ``glassy/aging_record.npz``              the record, at the end
    ``glassy/aging_record.csv``              the same as a table
    =======================================  ========================================================

    Its client asks lightning.ai once about each name that is new to it: many groups are as many requests.
    """

    def log_curves(self, points: Sequence[Scalar]) -> None:
        """Append each point to its series; the client keeps nothing that is not finite, with a warning each."""
        for tag, _, lag, value in points:
            if math.isfinite(value):
                self._logger.experiment[tag].append(value, step=lag)

    def log_figure(self, quantity: str, figure: Figure) -> None:
        """Append an image to the series of the quantity."""
        from litlogger import Image as LitImage
        from PIL import Image

        with Image.open(png(figure)) as image:
            key = f"{self._prefix}_figures/{quantity}"
            self._logger.experiment[key].append(LitImage(image), step=self._step)

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Upload the two files in place of those before."""
        from litlogger import File

        for file in files:
            self._logger.experiment[f"{self._prefix}/{file.name}"] = File(str(file))

    def where(self) -> str:
        """The address of the experiment."""
        return f"curves     {self._logger.experiment.url}"
