"""The record and its long-form CSV table in a directory."""

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

# Between two writes of the record the run grows by a tenth, or so many seconds pass, whichever comes first.
_GROWTH = 1.1
_SECONDS = 30.0


class FileSink:
    """Writes ``aging_record.npz`` during the run, at log-spaced moments, and ``aging_record.csv`` at its end.

    Every write is atomic, the first one, too: a killed run keeps what it had, and there is never an empty file. A file
    that is there already is somebody's record: the name gets a number then. Only what is left of the same record by a
    training that was interrupted is written over by the one that is resumed. What the writes of killed runs have left
    there, more than an hour ago, is removed.

    Args:
        directory: where to write; it is made when the first file is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._next_step = 0
        self._next_time = 0.0
        self._complete = False

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record if it is time to."""
        if step >= self._next_step or time.monotonic() >= self._next_time:
            # Before the attempt: a full disk must not be tried at every step.
            self._next_step, self._next_time = int(step * _GROWTH) + 1, time.monotonic() + _SECONDS
            self._save(record)

    def close(self, record: AgingRecord) -> None:
        """Write the record and the table."""
        self._complete = False
        record.to_csv(self._save(record).with_suffix(".csv"))
        self._complete = True

    def where(self) -> str | None:
        """The record's path, once all of it is there."""
        return f"record     {self._path} (and .csv)" if self._complete else None

    def _save(self, record: AgingRecord) -> Path:
        """Write the record to the file of this sink alone: kept, at first, from other monitors and processes."""
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
    """Whether a file holds what this record has grown from, or a part that is being measured once more.

    After a kill the file is ahead of the checkpoint. A run that was completed and has more than this one is another's.
    """
    try:
        there = AgingRecord.load(path)
    except (RecordError, OSError):
        return False
    same = there.meta.get("id") is not None and there.meta.get("id") == record.meta.get("id")
    return same and ("completed" not in there.meta or there.is_part_of(record))


def reserve(path: Path, beside: str | None = None, content: Path | None = None) -> Path:
    """A file of that name, or of that name with a number if there is one, or one that ends in ``beside``.

    To make it keeps it from other monitors and processes. It is empty, or what the file ``content`` is.
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
            os.link(content, path)  # whole from the first moment on, and never in place of another file
        except FileExistsError:
            raise
        except OSError:  # a file system without links: empty for a moment
            path.touch(exist_ok=False)
            content.replace(path)
    else:
        path.touch(exist_ok=False)


@contextlib.contextmanager
def temporary_files(record: AgingRecord) -> Iterator[tuple[Path, Path]]:
    """The record and its table as files that are gone afterwards, for a logger that keeps them elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        path = record.save(Path(directory) / f"{RECORD_NAME}.npz")
        yield path, record.to_csv(path.with_suffix(".csv"))
