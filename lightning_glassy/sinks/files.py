"""The record and its long-form CSV table in a directory."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lightning_glassy.record import AgingRecord
from lightning_glassy.sinks import Pairs

RECORD_NAME = "aging_record"

# Between two writes of the record the run grows by a tenth, or so many seconds pass, whichever comes first.
_GROWTH = 1.1
_SECONDS = 30.0

# What a process that was killed in the middle of a write has left: no write takes an hour.
_LEFT = re.compile(rf"\.{RECORD_NAME}(-\d+)?\.(npz|csv)\.[0-9a-f]{{12}}")
_DEAD = 3600.0


class FileSink:
    """Writes ``aging_record.npz`` during the run, at log-spaced moments, and ``aging_record.csv`` at its end.

    Every write is atomic, so that a killed run keeps what it had. A file that is there already is somebody's record:
    the name gets a number then. What the writes of killed runs have left there, more than an hour ago, is removed.

    Args:
        directory: where to write; it is made when the first file is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._next_step = 0
        self._next_time = 0.0

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record if it is time to."""
        if step >= self._next_step or time.monotonic() >= self._next_time:
            # Before the attempt: a full disk must not be tried at every step.
            self._next_step, self._next_time = int(step * _GROWTH) + 1, time.monotonic() + _SECONDS
            record.save(self._own_path())

    def close(self, record: AgingRecord) -> None:
        """Write the record and the table."""
        _write(record, self._own_path())

    def where(self) -> str | None:
        """The record's path, once there is a record."""
        return f"record     {self._path} (and .csv)" if self._path is not None and self._path.stat().st_size else None

    def _own_path(self) -> Path:
        """The file of this sink alone: reserved when it is first needed, against other monitors and processes."""
        if self._path is None:
            self._path = reserve(self._directory / f"{RECORD_NAME}.npz", beside=".csv")
            _remove_left(self._directory)
        return self._path


def reserve(path: Path, beside: str | None = None) -> Path:
    """An empty file of that name, or of that name with a number if there is one, or one that ends in ``beside``.

    To make it keeps it from other monitors and processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        own = path.with_name(f"{path.stem}{f'-{number}' if number else ''}{path.suffix}")
        if beside is None or not own.with_suffix(beside).exists():
            with contextlib.suppress(FileExistsError):
                own.touch(exist_ok=False)
                return own
    raise AssertionError("numbers do not end")


def _remove_left(directory: Path) -> None:
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            if _LEFT.fullmatch(path.name):
                with contextlib.suppress(OSError):  # another run removes them, too
                    if path.lstat().st_mtime < time.time() - _DEAD:
                        path.unlink()


@contextlib.contextmanager
def temporary_files(record: AgingRecord) -> Iterator[tuple[Path, Path]]:
    """The record and its table as files that are gone afterwards, for a logger that keeps them elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        yield _write(record, Path(directory) / f"{RECORD_NAME}.npz")


def _write(record: AgingRecord, path: Path) -> tuple[Path, Path]:
    return record.save(path), record.to_csv(path.with_suffix(".csv"))
