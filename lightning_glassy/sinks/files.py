"""The record and its long-form CSV table in a directory."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from lightning_glassy.record import AgingRecord
from lightning_glassy.sinks import Pairs

RECORD_NAME = "aging_record"

# Between two writes of the record the run grows by a tenth, or so many seconds pass, whichever comes first.
_GROWTH = 1.1
_SECONDS = 30.0


class FileSink:
    """Writes ``aging_record.npz`` during the run, at log-spaced moments, and ``aging_record.csv`` at its end.

    Every write is atomic, so that a killed run keeps what it had. A file that is there already is somebody's record:
    the name gets a number then.

    Args:
        directory: where to write; it is made when the first file is.
    """

    def __init__(self, directory: Path) -> None:
        numbered = (directory / f"{RECORD_NAME}{f'-{i}' if i else ''}.npz" for i in itertools.count())
        self.path = next(path for path in numbered if not path.exists() and not path.with_suffix(".csv").exists())
        self._next_step = 0
        self._next_time = 0.0

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record if it is time to."""
        if step >= self._next_step or time.monotonic() >= self._next_time:
            # Before the attempt: a full disk must not be tried at every step.
            self._next_step, self._next_time = int(step * _GROWTH) + 1, time.monotonic() + _SECONDS
            record.save(self.path)

    def close(self, record: AgingRecord) -> None:
        """Write the record and the table."""
        record.save(self.path)
        record.to_csv(self.path.with_suffix(".csv"))

    def where(self) -> str:
        """The record's path."""
        return f"record     {self.path} (and .csv)"
