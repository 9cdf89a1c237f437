"""Base class for loggers that can show a series against the lag."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.figures import Picture
from lightning_glassy.loggers.files import temporary_files
from lightning_glassy.loggers.sinks import Pairs, Scalar, Sink, scalars

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord


class CurveSink(Sink):
    """Log one series per quantity, group and waiting time against the lag, and figures with logarithmic axes.

    The record itself is logged at the end.

    Args:
        logger: the Lightning logger.
        prefix: start of all names.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix
        self._step = 0
        self.place = type(logger).__name__

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Log the new pairs."""
        self._step = step
        self.log_curves(scalars(record, pairs, self._prefix))

    def close(self, record: AgingRecord) -> None:
        """Log the record."""
        if len(record):
            with temporary_files(record) as files:
                self.log_record(record, files)

    @abstractmethod
    def log_curves(self, points: Sequence[Scalar]) -> None:
        """Log points of curves against their lag."""

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
