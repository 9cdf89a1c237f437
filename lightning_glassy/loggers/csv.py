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
from lightning_glassy.loggers.sinks import Pairs
from lightning_glassy.record.atomic import write_atomically
from lightning_glassy.record.text import csv_cell

if TYPE_CHECKING:
    from lightning_glassy.record import AgingRecord


class CSVSink:
    """Append to ``glassy.csv`` beside the ``metrics.csv`` of a ``CSVLogger``, one line per replica, group and pair.

    The table has the columns of ``aging_record.csv``: waiting_time, lag, step, group, n_parameters, msd and the other
    observables. With replicas, the standard error of each observable over the replicas follows. In ``metrics.csv``,
    each waiting time would need its own columns, and ``CSVLogger`` rewrites the whole file for each new column. An
    existing file is never overwritten: the new file gets a number in its name.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        directory = directory_of(logger.log_dir)
        if not isinstance(directory, Path):
            raise ValueError(f"{directory} is not a local directory: aging_record.csv has the table")
        self._wanted = directory / f"{prefix}.csv"
        self._path: Path | None = None
        self._lines = io.StringIO()  # lines to write

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Append the new pairs."""
        self._add(_table(record, pairs), header=self._path is None and not self._lines.getvalue())
        self._write()

    def go_back(self, record: AgingRecord) -> None:
        """Write the table again, without the pairs that have left the record."""
        self._lines = io.StringIO()
        self._add(_table(record, None), header=True)
        if self._path is not None:
            content, self._lines = self._lines.getvalue(), io.StringIO()
            write_atomically(self._path, lambda file: file.write(content.encode("utf-8", "backslashreplace")))

    def close(self, record: AgingRecord) -> None:
        """Append the lines that could not be written before."""
        if self._lines.getvalue():
            self._write()

    def where(self) -> str | None:
        """Return a line with the path of the table, or None before the first write."""
        return f"curves     {self._path}" if self._path is not None else None

    def _add(self, columns: Mapping[str, Sequence[Any]], header: bool) -> None:
        writer = csv.writer(self._lines, lineterminator="\n")
        if header:
            writer.writerow(columns)
        writer.writerows(map(csv_cell, row) for row in zip(*columns.values(), strict=True))

    def _write(self) -> None:
        if self._path is None:
            self._path = reserve(self._wanted)
        size = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(self._lines.getvalue())
        except OSError:
            # Part of a line may be in the file. Cut it off, so that the table continues after the last complete line.
            os.truncate(self._path, size)
            raise
        self._lines = io.StringIO()


def _table(record: AgingRecord, pairs: Pairs | None) -> dict[str, list[Any]]:
    return record.table(pairs, sem=record.n_replica is not None and record.n_replica > 1)
