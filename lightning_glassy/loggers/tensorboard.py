"""TensorBoard: the record for the tab "Glassy"; scalars against the lag, and log-log figures, which they cannot be."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.sinks import Pairs, scalars
from lightning_glassy.tensorboard.events import Place, summary, tag_of
from lightning_glassy.tensorboard.parts import Written, next_part

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# TensorBoard sends the metadata of a whole run at once. The matrices between more replicas would make it too large.
_MOST_COMPARED = 32

_SECONDS = 5.0  # between two parts of the record: TensorBoard looks for new events every five seconds


class TensorBoardSink:
    """Write to a ``TensorBoardLogger``.

    The tags are those of :mod:`lightning_glassy.loggers`. The step of a curve is the lag. Each waiting time has a tag
    of its own, because TensorBoard drops the points before one whose step goes back. The record itself is written under
    ``glassy_record/...``, in parts, at most every five seconds: the tab "Glassy" shows it. The step of a part, and of a
    figure, is the training step.

    The writer is the logger's own. A full disk ends its thread, which then raises an error at whatever anybody logs. If
    that happens here, the logger gets a new writer, and nothing more is written before the end, when it is tried again.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix
        self._step = 0
        self._figures = Figures("TensorBoard")
        # By the clock, so that the record of a resumed run in the same directory comes after the earlier one's.
        self._next_part = Place(prefix, f"{time.time_ns():016x}", 0)
        self._written = Written()
        self._next_time = 0.0
        self._has_tab = True
        self._left_out = False
        self._failed = False

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the scalars of the new pairs, and the figures if it is time to."""
        self._step = step
        if self._failed:
            return  # each attempt would leave an empty event file
        with self._writing():
            for tag, _, lag, value in scalars(record, pairs, self._prefix):
                self._logger.experiment.add_scalar(tag, value, global_step=lag)
            if self._figures.due(step):
                self._draw(record)
            if time.monotonic() >= self._next_time:
                self._write_part(record)

    def close(self, record: AgingRecord) -> None:
        """Draw the figures of the whole record, and write its last part."""
        self._failed = False
        with self._writing():
            self._draw(record)
            self._write_part(record)

    def where(self) -> str | None:
        """The command that opens TensorBoard on this run, if it has all of the record."""
        if self._failed:
            return None
        return f"curves     tensorboard --logdir {self._logger.log_dir}   (in the tab Glassy)"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """See to it that what is written here fails here, and leaves a writer that works."""
        writer = self._logger.experiment
        try:
            yield
            writer.flush()  # else the error would be that of who logs next, or of the end of the Trainer
        except OSError:
            self._failed = True
            # As its `close` does, which would raise: the next who logs opens a new file.
            writer.file_writer = writer.all_writers = None
            raise

    def _write_part(self, record: AgingRecord) -> None:
        """Write what is new in the record, and see to it that TensorBoard can read it."""
        self._next_time = time.monotonic() + _SECONDS
        too_many = (record.n_replica or 1) > _MOST_COMPARED and bool(record.between_names)
        if too_many and not self._left_out:
            self._left_out = True
            log.warning(
                "lightning_glassy: the matrices between %d replicas are not in the event file, which takes those of up "
                "to %d; the record has them",
                record.n_replica,
                _MOST_COMPARED,
            )
        content, written = next_part(record, self._written, left_out=("between",) if too_many else ())
        if content is None or not self._has_tab:
            return
        try:
            part = summary(tag_of(self._next_part), content)
        except ImportError as error:  # the logger writes by tensorboardX then
            self._has_tab = False
            log.warning("lightning_glassy: no tab in TensorBoard: %s", error)
            return
        # Its public methods write no metadata. As they do, this opens a new file after the logger has been closed.
        self._logger.experiment._get_file_writer().add_summary(part, self._step)
        self._written, self._next_part = written, self._next_part._replace(number=self._next_part.number + 1)

    def _draw(self, record: AgingRecord) -> None:
        for name, figure in self._figures.draw(record):
            self._logger.experiment.add_figure(f"{self._prefix}_figures/{name}", figure, global_step=self._step)
