"""Base class for loggers of metrics, figures and files."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.figures import Picture
from lightning_glassy.loggers.files import temporary_files
from lightning_glassy.loggers.signals import Signal
from lightning_glassy.loggers.sinks import Pairs, Sink, scalars

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord


Point = tuple[str, int, float]
"""A value of a series: (tag, step or lag, value)."""


class CurveSink(Sink):
    """Log the signals against the training step, figures with logarithmic axes, and the record at the end.

    With ``curves``, log one series per quantity, group and waiting time against the lag, too.

    Args:
        logger: the Lightning logger.
        prefix: start of all names.
        curves: whether to log the curves as scalars.
    """

    takes_signals = True

    def __init__(self, logger: Any, prefix: str, curves: bool = False) -> None:
        self._logger = logger
        self._prefix = prefix
        self._curves = curves
        self._step = 0
        self.place = type(logger).__name__

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Log the new pairs, if the curves are wanted as scalars."""
        self._step = step
        if self._curves:
            self.log_curves([(tag, lag, value) for tag, _, lag, value in scalars(record, pairs, self._prefix)])

    def log_signals(self, signals: Sequence[Signal]) -> None:
        """Log numbers against the training step."""
        self.log_points([(f"{self._prefix}/{signal.name}", signal.step, signal.value) for signal in signals])

    def close(self, record: AgingRecord) -> None:
        """Log the record."""
        if len(record):
            with temporary_files(record) as files:
                self.log_record(record, files)

    def log_curves(self, points: Sequence[Point]) -> None:
        """Log points of curves against their lag."""
        self.log_points(points)

    @abstractmethod
    def log_points(self, points: Sequence[Point]) -> None:
        """Log points against their step or lag."""

    @abstractmethod
    def log_figure(self, picture: Picture) -> None:
        """Log a figure at its training step."""

    @abstractmethod
    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the record from ``files``, the ``.npz`` and the ``.csv``, which are deleted after this call."""


def shortened(tag: str, longest: int) -> str:
    """Shorten a tag to at most ``longest`` characters, for a logger that cuts or refuses longer tags.

    The waiting time at the end is kept. A digest of the rest keeps shortened tags different from each other.
    """
    if len(tag) <= longest:
        return tag
    head, _, tail = tag.rpartition("/")
    digest = hashlib.sha256(head.encode()).hexdigest()[:8]
    return f"{head[: longest - len(tail) - len(digest) - 2]}-{digest}/{tail}"
