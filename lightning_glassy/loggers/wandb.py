"""Weights & Biases: series against the lag, figures, a table, and the record as an artifact."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.curves import CurveSink
from lightning_glassy.loggers.figures import Picture
from lightning_glassy.loggers.files import RECORD_NAME
from lightning_glassy.loggers.sinks import Scalar

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

_STEP = "trainer/global_step"  # the x axis of all other metrics that Lightning logs to wandb


class WandbSink(CurveSink):
    """Write to the run of a ``WandbLogger``.

    The keys are the tags of :mod:`lightning_glassy.loggers`. ``glassy/lag`` is the x axis of the curves
    (``define_metric``). At the end, ``glassy_table`` is logged: the table of the record, for the group
    ``"all"``. The artifact ``glassy-<run id>`` of type ``aging_record`` holds ``aging_record.npz`` and ``.csv``.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        super().__init__(logger, prefix)
        logger.experiment.define_metric(f"{prefix}/lag", hidden=True)
        logger.experiment.define_metric(f"{prefix}/*", step_metric=f"{prefix}/lag")

    def log_curves(self, points: Sequence[Scalar]) -> None:
        """Log one row per lag, because a row has one x value and one training step brings pairs of several lags."""
        rows: dict[int, dict[str, float]] = {}
        for tag, _, lag, value in points:
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

    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the table and the artifact."""
        import wandb

        run = self._logger.experiment
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
