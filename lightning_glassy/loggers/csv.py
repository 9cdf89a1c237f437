"""CSVLogger: a separate table beside ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_glassy.loggers.files import reserve
from lightning_glassy.loggers.places import directory_of
from lightning_glassy.loggers.sinks import Pairs, Sink
from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.text import csv_cell

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord


class CSVSink(Sink):
    """Append to ``glassy.csv`` beside the ``metrics.csv`` of a ``CSVLogger``, one line per replica, group and pair.

    The table has the columns of ``aging_record.csv``: waiting_time, lag, step, group, n_parameters, msd and the other
    observables. With replicas, the standard error of each observable over the replicas follows. In ``metrics.csv``,
    each waiting time would need its own columns, and ``CSVLogger`` rewrites the whole file for each new column. An
    existing file is never overwritten: the new file gets a number in its name.
    """

    def __init__(self, logger: Any, prefix: str, curves: bool = False) -> None:
        directory = directory_of(logger.log_dir)
        if not isinstance(directory, Path):
            raise ValueError(f"{directory} is not a local directory: aging_record.csv has the table")
        self._wanted = directory / f"{prefix}.csv"
        self._path: Path | None = None
        self._is_wrong = False  # whether the table has pairs that have left the record

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Append the new pairs, or write the table again if it has pairs that have left the record."""
        if self._is_wrong and self._path is not None:
            content = _lines(_table(record, None), header=True)
            write_atomically(self._path, lambda file: file.write(content))
        elif pairs:
            self._append(_table(record, pairs))
        self._is_wrong = False

    def go_back(self, record: AgingRecord) -> None:
        """Let the next call write the table again, without the pairs that have left the record."""
        self._is_wrong = True

    def close(self, record: AgingRecord) -> None:
        """Write the table again if it has pairs that have left the record."""
        if self._is_wrong:
            self.update(record, (), record.last_step)

    def where(self) -> str | None:
        """Return a line with the path of the table, or None before the first write."""
        return f"curves     {self._path}" if self._path is not None else None

    def _append(self, columns: Mapping[str, Sequence[Any]]) -> None:
        if self._path is None:
            self._path = reserve(self._wanted)
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(_lines(columns, header=not size))
        except BaseException:
            # Part of a line may be in the file. Cut it off, so that the table continues after the last complete line.
            os.truncate(self._path, size)
            raise


def _lines(columns: Mapping[str, Sequence[Any]], *, header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8", "backslashreplace")


def _table(record: AgingRecord, pairs: Pairs | None) -> dict[str, list[Any]]:
    return record.table(pairs, sem=record.n_replica is not None and record.n_replica > 1)
