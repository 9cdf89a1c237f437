"""Write the record and its long-form CSV table to a directory."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_glassy.loggers.sinks import Pairs
from lightning_glassy.record import AgingRecord, RecordError
from lightning_glassy.record.atomic import remove_left

RECORD_NAME = "aging_record"

# The record is written again when the step has grown by this factor, or after this time, whichever comes first.
_GROWTH = 1.1
_SECONDS = 30.0


class FileSink:
    """Write ``aging_record.npz`` during the run, and ``aging_record.csv`` at its end.

    The record is written at an event if the step has grown by a tenth since the last write, or if 30 seconds have
    passed. Every write is atomic, so a killed run keeps its last record, and no file is ever empty. The only exception
    is a file system without hard links: there, the first file is empty for a moment.

    An existing file is never overwritten: the new file gets a number in its name. Only a resumed training overwrites
    the earlier file of the same record. Temporary files of killed runs are removed if they are older than an hour.

    Args:
        directory: directory for the files, created with the first file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._next_step = 0
        self._next_time = 0.0
        self._complete = False

    @property
    def path(self) -> Path | None:
        """Path of the record, or ``None`` before the first write."""
        return self._path

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record if it is due."""
        if step >= self._next_step or time.monotonic() >= self._next_time:
            # Set the next time before the attempt, so that a full disk is not tried again at every step.
            self._next_step, self._next_time = int(step * _GROWTH) + 1, time.monotonic() + _SECONDS
            self._save(record)

    def close(self, record: AgingRecord) -> None:
        """Write the record and the table."""
        self._complete = False
        record.to_csv(self._save(record).with_suffix(".csv"))
        self._complete = True

    def where(self) -> str | None:
        """Return a line with the path of the record, or None before both files are complete."""
        return f"record     {self._path} (and .csv)" if self._complete else None

    def _save(self, record: AgingRecord) -> Path:
        """Write the record to the file of this sink.

        The first call reserves the file name, so that other monitors and processes do not use it. The first call of a
        resumed training uses the file of the earlier training instead, if there is one.
        """
        if self._path is None and "resumed" in record.meta:
            candidates = sorted(self._directory.glob(f"{RECORD_NAME}*.npz"))
            self._path = next((path for path in candidates if _is_earlier(path, record)), None)
        if self._path is not None:
            return record.save(self._path)
        remove_left(self._directory, rf"{RECORD_NAME}(-\d+)?(\.npz|\.csv)?")
        written = record.save(self._directory / f".{RECORD_NAME}.{secrets.token_hex(6)}")
        try:
            self._path = reserve(self._directory / f"{RECORD_NAME}.npz", beside=".csv", content=written)
        finally:
            written.unlink(missing_ok=True)
        return self._path


def _is_earlier(path: Path, record: AgingRecord) -> bool:
    """Return whether a file holds an earlier state of this record, so that it may be overwritten.

    The file of a killed run may be ahead of the checkpoint, and the resumed run measures the last pairs again. The file
    of a completed run belongs to another training if one of its pairs is missing or different in this record.
    """
    try:
        there = AgingRecord.load(path)
    except (RecordError, OSError):
        return False
    same = there.meta.get("id") is not None and there.meta.get("id") == record.meta.get("id")
    return same and ("completed" not in there.meta or there.is_part_of(record))


def reserve(path: Path, beside: str | None = None, content: Path | None = None) -> Path:
    """Create a new file at ``path`` and return its path, with a number in the name if the name is taken.

    A name is taken if the file exists, or if a file of this name with the suffix ``beside`` exists. The new file
    reserves the name, so that other monitors and processes do not use it. It is empty, or has the content of the file
    ``content``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        own = path.with_name(f"{path.stem}{f'-{number}' if number else ''}{path.suffix}")
        if beside is None or not own.with_suffix(beside).exists():
            with contextlib.suppress(FileExistsError):
                _make(own, content)
                return own
    raise AssertionError("numbers do not end")


def _make(path: Path, content: Path | None) -> None:
    if content is not None:
        try:
            os.link(content, path)  # complete from the start, and never overwrites a file
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the file is empty for a moment
            path.touch(exist_ok=False)
            content.replace(path)
    else:
        path.touch(exist_ok=False)


@contextlib.contextmanager
def temporary_files(record: AgingRecord) -> Iterator[tuple[Path, Path]]:
    """Write the record and its table to temporary files, for a logger that stores copies elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        path = record.save(Path(directory) / f"{RECORD_NAME}.npz")
        yield path, record.to_csv(path.with_suffix(".csv"))
