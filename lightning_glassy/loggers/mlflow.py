"""MLflow: metrics, figures, and the record as artifacts."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_glassy.loggers.curves import CurveSink, Point, shortened
from lightning_glassy.loggers.figures import Picture

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

# The most metrics that MLflow accepts at once, and the longest name.
_BATCH, _LONGEST = 1000, 250


class MLflowSink(CurveSink):
    """Write to the run of an ``MLFlowLogger``.

    The metrics have the tags of :mod:`lightning_glassy.loggers`. A figure is the artifact
    ``glassy/<figure>.png``, and a new figure replaces the previous figure. At the end, the record is logged as
    the artifacts ``glassy/aging_record.npz`` and ``.csv``.

    MLflow refuses some characters in names, such as ``=``. Such a character in the name of a group is replaced by its
    code between underscores (``_3d_``).
    """

    def log_points(self, points: Sequence[Point]) -> None:
        """Log the points in few requests."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_metric_name(tag), value, now, step) for tag, step, value in points]
        for start in range(0, len(metrics), _BATCH):
            self._logger.experiment.log_batch(self._logger.run_id, metrics=metrics[start : start + _BATCH])

    def log_figure(self, picture: Picture) -> None:
        """Log a PNG and replace the previous PNG."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / f"{picture.name}.png"
            file.write_bytes(picture.png)
            self._logger.experiment.log_artifact(self._logger.run_id, str(file), self._prefix)

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the two files and replace the previous files."""
        for file in files:
            self._logger.experiment.log_artifact(self._logger.run_id, str(file), self._prefix)

    def where(self) -> str:
        """Return a line with the run and, for a local store, the command that shows the run.

        The address of any other store is left out, because it may contain a password.
        """
        uri, run_id = self._logger.experiment.tracking_uri, self._logger.run_id
        local = "://" not in uri or uri.startswith(("sqlite:", "file:"))
        return f"curves     MLflow run {run_id}" + (f": mlflow ui --backend-store-uri {uri}" if local else "")


def _metric_name(tag: str) -> str:
    """Return the tag in a form that MLflow accepts.

    Characters that MLflow refuses are replaced by their code. Parts that would change the path, such as ``..``, get
    underscores around them. A long tag is shortened.
    """
    parts = [re.sub(r"[^\w. -]", lambda match: f"_{ord(match[0]):x}_", part) for part in tag.split("/")]
    return shortened("/".join(part if part.strip(".") else f"_{part}_" for part in parts), _LONGEST)
