"""Write the record and its long-form CSV table to a directory."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightning_glassy.loggers.sinks import Pairs, Sink
from lightning_glassy.record import AgingRecord, RecordError
from lightning_glassy.record.atomic import remove_left

RECORD_NAME = "aging_record"


class FileSink(Sink):
    """Write ``aging_record.npz`` during the run, and ``aging_record.csv`` at its end.

    The record is written at the first event, and then every few seconds. A killed run loses the measurements of the
    last five seconds, or of the last 30 if a write takes long. Every write is atomic, so a killed run keeps its last
    record, and no file is ever empty. The only exception is a file system without hard links: there, the first file is
    empty for a moment.

    An existing file is never overwritten: the new file gets a number in its name. Only a resumed training takes over
    the earlier file of the same record, as soon as its record has all of the earlier content
    (:meth:`AgingRecord.replaces`). Until then it writes a file with a number. If two trainings are resumed from one
    checkpoint, the second keeps its number. Temporary files of killed runs are removed if they are older than an hour.

    Args:
        directory: directory for the files, created with the first file.
    """

    is_whole = True
    longest = 30.0

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._written: tuple[int, int] | None = None  # identity of the file as this sink has written it
        self._earlier: list[Path] = []  # files of the same training that have more rows as yet
        self._complete = False

    @property
    def path(self) -> Path | None:
        """Path of the record, or ``None`` before the first write."""
        return self._path

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record."""
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
        """Write the record to the file of this sink, and return its path."""
        if self._path is None and "resumed" in record.meta:
            candidates = sorted(self._directory.glob(f"{RECORD_NAME}*.npz"), key=lambda path: (len(path.name), path))
            self._earlier = [
                path for path in candidates if (there := _load(path)) is not None and record.same_training(there)
            ]
        if self._path is not None and _identity(self._path) not in (None, self._written):
            # Another process has written there. The file is ours if it holds this record at an earlier time.
            there = _load(self._path)
            self._path = self._path if there is not None and record.goes_on_from(there) else None
        left = self._take_over(record) if self._earlier else []
        if self._path is None:
            self._path = self._reserve(record)
        else:
            record.save(self._path)
        for path in left:
            path.unlink(missing_ok=True)
            path.with_suffix(".csv").unlink(missing_ok=True)
        self._written = _identity(self._path)
        return self._path

    def _take_over(self, record: AgingRecord) -> list[Path]:
        """Use another file of the same training, if this record has all of its content.

        Returns:
            The other files of this record at earlier times. They can be removed after the next write.
        """
        found = {path: there for path in self._earlier if (there := _load(path)) is not None}
        replaced = [path for path, there in found.items() if record.replaces(there)]
        if not replaced:
            return []
        own = [] if self._path is None else [self._path]
        self._path, *others = replaced
        self._earlier = [path for path in self._earlier if path not in replaced]
        return own + [path for path in others if record.goes_on_from(found[path])]

    def _reserve(self, record: AgingRecord) -> Path:
        """Write the record to a new file, whose name no other monitor or process uses."""
        remove_left(self._directory, rf"{RECORD_NAME}(-\d+)?(\.npz|\.csv)?")
        written = record.save(self._directory / f".{RECORD_NAME}.{secrets.token_hex(6)}")
        try:
            return reserve(self._directory / f"{RECORD_NAME}.npz", beside=".csv", content=written)
        finally:
            written.unlink(missing_ok=True)


def _load(path: Path) -> AgingRecord | None:
    try:
        return AgingRecord.load(path)
    except (RecordError, OSError):
        return None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return numbers that change when a file is replaced, or ``None`` without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


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
