"""TensorBoard: the record for the tab "Glassy", a few scalars, and log-log figures.

The figures are needed because TensorBoard's charts of scalars cannot be log-log.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.curves import Point
from lightning_glassy.loggers.figures import Picture
from lightning_glassy.loggers.signals import Signal
from lightning_glassy.loggers.sinks import Pairs, Sink, scalars
from lightning_glassy.tensorboard.checksums import quicken
from lightning_glassy.tensorboard.events import Place, curves, image, summary, tag_of
from lightning_glassy.tensorboard.parts import Written, next_part

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# TensorBoard sends the metadata of a whole run at once. The matrices between more replicas are too large for this.
_MOST_COMPARED = 32

_SECONDS = 5.0  # between two writes, because TensorBoard looks for new events every five seconds

_PAUSE = 60.0  # seconds before the first attempt after a failed write


class TensorBoardSink(Sink):
    """Write to a ``TensorBoardLogger``.

    The tags are listed in :mod:`lightning_glassy.loggers`. If the curves are logged as scalars, their step is the lag.
    Each waiting time has its own tag, because TensorBoard drops earlier points of a tag if the step decreases. The
    points of one lag share an event. The record itself is written under ``glassy_record/...`` in parts, and the tab
    "Glassy" shows it. The step of a part, and of a figure, is the training step.

    The sink uses the writer of the logger. A full disk ends the writer's thread, and each later log call then raises an
    error. If the error is raised here, the logger gets a new writer. The sink tries again after a minute, then after
    two, four and so on, and in :meth:`close`. A part counts as written only after a flush without an error. A part that
    may be lost is written again with the same content and the same tag, so that TensorBoard may read either copy.
    """

    place = "TensorBoard"
    takes_signals = True

    def __init__(self, logger: Any, prefix: str, curves: bool = False) -> None:
        self._logger = logger
        self._prefix = prefix
        self._curves = curves
        self._step = 0
        self._signals: list[Signal] = []  # that wait for an attempt
        self._waiting: list[tuple[int, int]] = []  # pairs that came between two attempts
        self._start_parts()
        self._has_protocol = True  # whether the package tensorboard is there. If not, the logger uses tensorboardX.
        self._left_out = False
        self._failed = False
        self._pause, self._retry_time = _PAUSE, 0.0

    @property
    def usual_pause(self) -> float:
        """The usual pause between two writes in a long training, in seconds."""
        return min(super().usual_pause, _SECONDS)

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the next part of the record, and the scalars of the new pairs."""
        self._step = step
        if self._failed and time.monotonic() < self._retry_time:
            self._waiting += pairs  # an attempt on a full disk leaves an empty event file
            return
        self._write(record, pairs)

    def close(self, record: AgingRecord) -> None:
        """Write the last part of the record, and the scalars that wait for an attempt."""
        self._write(record, ())

    def go_back(self, record: AgingRecord) -> None:
        """Let the next part start the record anew, because parts only grow."""
        self._waiting = [pair for pair in self._waiting if pair in record]
        self._start_parts()

    def log_signals(self, signals: Sequence[Signal]) -> None:
        """Log numbers against the training step."""
        self._signals += signals
        if not self._failed:
            with self._writing():
                self._write_signals()
            self._signals = []

    def log_figure(self, picture: Picture) -> None:
        """Log the figure as an image."""
        if self._failed:
            return
        with self._writing():
            tag, writer = f"{self._prefix}_figures/{picture.name}", self._logger.experiment
            if self._has_protocol:
                writer._get_file_writer().add_summary(image(tag, picture.png), picture.step)
            else:
                writer.add_figure(tag, picture.figure, global_step=picture.step)

    def where(self) -> str | None:
        """Return a line with the command that opens TensorBoard on this run, or None if a write failed."""
        if self._failed:
            return None
        return f"curves     tensorboard --logdir {self._logger.log_dir}   (in the tab Glassy)"

    def _start_parts(self) -> None:
        # The token is the time, which is unique. A clock may be set back, so the tab does not order records by it.
        self._token = f"{time.time_ns():016x}"
        self._written = Written()
        # Parts that may not be in a file, by number: those after the last flush, and those before it.
        self._unflushed: dict[int, bytes] = {}
        self._flushed: dict[int, bytes] = {}

    def _write(self, record: AgingRecord, pairs: Pairs) -> None:
        with self._writing():
            # Write the part first. If its write fails, the later writes in this block raise the error.
            self._write_part(record)
            if self._curves:
                self._write_scalars(record, [*self._waiting, *pairs])
            self._write_signals()
        self._waiting, self._signals = [], []

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise a write error inside this block, and give the logger a working writer."""
        writer = self._logger.experiment
        try:
            yield
            writer.flush()  # else the next log call, or the end of the Trainer, would raise the error
            self._flushed, self._unflushed = self._unflushed, {}
            self._failed, self._pause = False, _PAUSE
        except OSError:
            self._failed, self._retry_time, self._pause = True, time.monotonic() + self._pause, 2 * self._pause
            # The writer's thread can fail a moment after the flush that waited for it.
            self._unflushed = self._flushed | self._unflushed
            # `close` resets these attributes, too, but it would raise. The next log call opens a new file.
            writer.file_writer = writer.all_writers = None
            raise

    def _write_part(self, record: AgingRecord) -> None:
        """Write the new rows of the record as a part for the tab "Glassy", after the parts that may be lost."""
        if not self._has_protocol:
            return
        too_many = (record.n_replica or 1) > _MOST_COMPARED and bool(record.between_names)
        if too_many and not self._left_out:
            self._left_out = True
            log.warning(
                "lightning_glassy: the matrices between %d replicas are not in the event file, which takes at most %d "
                "replicas. The record has them",
                record.n_replica,
                _MOST_COMPARED,
            )
        number = self._written.n_part
        content, self._written = next_part(record, self._written, left_out=("between",) if too_many else ())
        if content is not None:
            self._unflushed[number] = content
        for number, content in self._unflushed.items():
            try:
                part = summary(tag_of(Place(self._prefix, self._token, number)), content)
                quicken()
            except ImportError as error:  # the logger then writes with tensorboardX
                self._has_protocol = False
                log.warning("lightning_glassy: no tab in TensorBoard: %s", error)
                return
            # The public methods write no metadata. This one also opens a new file if the logger has been closed.
            self._logger.experiment._get_file_writer().add_summary(part, self._step)

    def _write_scalars(self, record: AgingRecord, pairs: Pairs) -> None:
        self._write_points((tag, lag, value) for tag, _, lag, value in scalars(record, pairs, self._prefix))

    def _write_signals(self) -> None:
        self._write_points((f"{self._prefix}/{signal.name}", signal.step, signal.value) for signal in self._signals)

    def _write_points(self, points: Iterable[Point]) -> None:
        """Write scalars, with one event for each step."""
        by_step: dict[int, list[tuple[str, float]]] = {}
        for tag, step, value in points:
            by_step.setdefault(step, []).append((tag, value))
        for step, values in sorted(by_step.items()):
            writer = self._logger.experiment
            if self._has_protocol:
                writer._get_file_writer().add_summary(curves(values), step)
                continue
            for tag, value in values:
                writer.add_scalar(tag, value, global_step=step)
