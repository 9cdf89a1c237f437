"""What the loggers have in common that can show a series against the lag."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.figures import Figures
from lightning_glassy.loggers.files import temporary_files
from lightning_glassy.loggers.sinks import Pairs, Scalar, scalars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.record import AgingRecord


class CurveSink(ABC):
    """One series per quantity, group and waiting time against the lag; log-log figures; at the end the record itself.

    Args:
        logger: the Lightning logger.
        prefix: what the names begin with.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix
        self._step = 0
        self._figures = Figures(type(logger).__name__)

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Log the new pairs, and the figures if it is time to."""
        self._step = step
        self.log_curves(scalars(record, pairs, self._prefix))
        if self._figures.due(step):
            self._draw(record)

    def close(self, record: AgingRecord) -> None:
        """Log the record, then the figures of all of it."""
        if len(record):
            with temporary_files(record) as files:
                self.log_record(record, files)
            self._draw(record)

    def _draw(self, record: AgingRecord) -> None:
        for quantity, figure in self._figures.draw(record):
            self.log_figure(quantity, figure)

    @abstractmethod
    def log_curves(self, points: Sequence[Scalar]) -> None:
        """Log points of curves, against their lag."""

    @abstractmethod
    def log_figure(self, quantity: str, figure: Figure) -> None:
        """Log the figure of one quantity, as it is at the training step ``self._step``."""

    @abstractmethod
    def log_record(self, record: AgingRecord, files: Sequence[Path]) -> None:
        """Log the record, of which ``files`` are there until this returns: the ``.npz`` and the ``.csv``."""

    @abstractmethod
    def where(self) -> str | None:
        """One line that tells a person where to look."""


def shortened(tag: str, longest: int) -> str:
    """A tag of at most so many characters, for a logger that cuts or refuses longer ones.

    The waiting time at its end stays; of the rest a digest tells apart what was cut.
    """
    if len(tag) <= longest:
        return tag
    head, _, tail = tag.rpartition("/")
    digest = hashlib.sha256(head.encode()).hexdigest()[:8]
    return f"{head[: longest - len(tail) - len(digest) - 2]}-{digest}/{tail}"
