"""Weights & Biases: metrics, a chart of the curves, figures, a table, and the record as an artifact."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_glassy.loggers.curves import CurveSink, Point
from lightning_glassy.loggers.figures import Picture
from lightning_glassy.loggers.files import RECORD_NAME
from lightning_glassy.observables import log_spaced

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

_MOST_LINES = 20  # in the chart of the curves
_STEP = "trainer/global_step"  # the x axis of all other metrics that Lightning logs to wandb


class WandbSink(CurveSink):
    """Write to the run of a ``WandbLogger``.

    The keys are the tags of :mod:`lightning_glassy.loggers`. At the end, ``glassy_curves`` is logged, a line chart of
    the mean squared displacement with a line for each waiting time, and ``glassy_table``, the table of the record. Both
    are of the group ``"all"``. The artifact ``glassy-<run id>`` of type ``aging_record`` holds ``aging_record.npz`` and
    ``.csv``. If the curves are logged as scalars, their x axis is ``glassy/lag`` (``define_metric``).
    """

    def __init__(self, logger: Any, prefix: str, curves: bool = False) -> None:
        super().__init__(logger, prefix, curves)
        self._defined: set[str] = set()
        if curves:
            logger.experiment.define_metric(f"{prefix}/lag", hidden=True)

    def log_points(self, points: Sequence[Point]) -> None:
        """Log one row per training step."""
        rows: dict[int, dict[str, float]] = {}
        for tag, step, value in points:
            rows.setdefault(step, {_STEP: step})[tag] = value
        for row in rows.values():
            self._logger.experiment.log(row)

    def log_curves(self, points: Sequence[Point]) -> None:
        """Log one row per lag, because a row has one x value and one training step brings pairs of several lags."""
        rows: dict[int, dict[str, float]] = {}
        for tag, lag, value in points:
            self._define(tag.removeprefix(f"{self._prefix}/").split("/")[0])
            rows.setdefault(lag, {f"{self._prefix}/lag": lag})[tag] = value
        for row in rows.values():
            self._logger.experiment.log(row)

    def log_figure(self, picture: Picture) -> None:
        """Log the figure as an image.

        For a figure object, wandb would look for pyplot.
        """
        import wandb
        from PIL import Image

        with Image.open(io.BytesIO(picture.png)) as image:
            key = f"{self._prefix}_figures/{picture.name}"
            self._logger.experiment.log({key: wandb.Image(image), _STEP: picture.step})

    def _define(self, quantity: str) -> None:
        """Make the lag the x axis of the curves of a quantity."""
        if quantity not in self._defined:
            self._logger.experiment.define_metric(f"{self._prefix}/{quantity}/*", step_metric=f"{self._prefix}/lag")
            self._defined.add(quantity)

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the chart of the curves, the table and the artifact."""
        import wandb

        run = self._logger.experiment
        chart = _chart(record)
        if chart is not None:
            run.log({f"{self._prefix}_curves": chart, _STEP: self._step})
        # The table has only the group "all", because wandb cuts a table at 10,000 rows. The artifact has all groups.
        columns = record.table()
        at = list(columns).index("group")
        rows = [row for row in zip(*columns.values(), strict=True) if row[at] == "all"]
        run.log({f"{self._prefix}_table": wandb.Table(columns=list(columns), data=rows), _STEP: self._step})
        # The prefix of a logger may have characters that the name of an artifact cannot have.
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{self._prefix}-{run.id}"), type=RECORD_NAME)
        for file in files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)

    def where(self) -> str:
        """Return a line with the address of the run, or with the command that uploads it."""
        run = self._logger.experiment
        return f"curves     {run.url or f'wandb sync {Path(run.dir).parent}'}"


def _chart(record: AgingRecord) -> Any:
    """Return a line chart of the displacement, or None if nothing has moved.

    The axes of this chart of wandb are linear, so it gets the logarithms of the lag and of the displacement.
    """
    import wandb

    xs, ys, keys = [], [], []
    values = record.mean("msd")
    for i in log_spaced(record.waiting_times, _MOST_LINES):
        row = values[i]
        shown = np.isfinite(row) & (row > 0) & (record.lags > 0)
        if shown.any():
            xs.append(np.log10(record.lags[shown]).tolist())
            ys.append(np.log10(row[shown]).tolist())
            keys.append(f"t_w = {record.waiting_times[i]:,}")
    if not keys:
        return None
    title = "log10 of the mean squared displacement, one line for each waiting time"
    return wandb.plot.line_series(xs, ys, keys=keys, title=title, xname="log10 of the lag (steps)")
