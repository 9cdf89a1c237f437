"""Write the files of a record to a file system of fsspec, such as ``s3://`` or ``memory://``."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from lightning_glassy.loggers.files import RECORD_NAME, FileSink
from lightning_glassy.loggers.sinks import Pairs, Sink
from lightning_glassy.record import AgingRecord

_SECONDS = 30.0  # before the next try after a failure, which may have waited for the network


class RemoteSink(Sink):
    """Write the files of a :class:`FileSink` to a remote directory, by way of a temporary local directory.

    A file is copied under a temporary name and then moved, so that a file of the record is always complete. An existing
    file is never overwritten: the new file gets a number in its name. Only a resumed training overwrites the earlier
    file of the same record. If the file system fails, the local files are kept, and a later write tries again.

    Args:
        address: address of the directory, such as ``s3://bucket/runs/glassy``.
    """

    is_whole = True
    longest = 300.0

    def __init__(self, address: str) -> None:
        self._address = address
        self._local = Path(tempfile.mkdtemp(prefix="lightning_glassy_"))
        self._files = FileSink(self._local)
        self._system: Any = None
        self._root = ""
        self._names: set[str] = set()  # names that were in the directory
        self._stem: str | None = None  # name of our files there
        self._copied_from: Path | None = None
        self._copied: dict[str, tuple[int, int]] = {}
        self._complete = False
        self._next_time = 0.0

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the record."""
        with self._remotely(record):
            self._files.update(record, pairs, step)

    def close(self, record: AgingRecord) -> None:
        """Write the record and the table, and remove the local files."""
        self._complete, self._next_time = False, 0.0
        with self._remotely(record):
            self._files.close(record)
        self._complete = True
        shutil.rmtree(self._local, ignore_errors=True)

    def where(self) -> str | None:
        """Return a line with the address of the record, or with the path of the local files if a copy has failed."""
        return f"record     {self._address}/{self._stem}.npz (and .csv)" if self._complete else self._files.where()

    @contextlib.contextmanager
    def _remotely(self, record: AgingRecord) -> Iterator[None]:
        """Copy the files that the block writes.

        Raises:
            OSError: the file system failed. The message has the local directory.
        """
        available, failure = time.monotonic() >= self._next_time, None
        try:
            if available:
                self._connect(record)
        except Exception as error:  # a missing package, the network, or a password
            failure = error
        yield
        if self._files.path is not None:
            for name in self._local.glob(f"{RECORD_NAME}*"):
                if not name.stat().st_size:  # it only reserved the name
                    name.unlink()
        try:
            if available and failure is None:
                self._copy()
        except Exception as error:
            failure = error
        if failure is not None:
            self._next_time = time.monotonic() + _SECONDS
            what = f"{self._address} cannot be written ({type(failure).__name__}: {failure})"
            raise OSError(f"{what}. The files of the record are in {self._local}") from failure

    def _connect(self, record: AgingRecord) -> None:
        """Find the file system. Give the local files names that are possible there."""
        if self._system is not None:
            return
        system, self._root = url_to_fs(self._address)
        system.makedirs(self._root, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # an object store has no empty directories
            self._names = {str(path).rpartition("/")[2] for path in system.ls(self._root, detail=False)}
        if self._files.path is None:
            for name in self._names:
                if name.startswith(RECORD_NAME) and name.endswith(".npz") and "resumed" in record.meta:
                    system.get_file(f"{self._root}/{name}", str(self._local / name))
                elif name.startswith(RECORD_NAME):
                    (self._local / name).touch()
            self._names = set()
        self._system = system

    def _copy(self) -> None:
        """Copy the files that have changed."""
        path = self._files.path
        if path is None:
            return
        left = None
        if self._copied_from != path:  # at first, and when the record takes over the file of an earlier time
            stems = (f"{path.stem}{f'-{number}' if number else ''}" for number in itertools.count())
            left, self._stem = self._stem, next(s for s in stems if not self._names & {f"{s}.npz", f"{s}.csv"})
            self._copied_from, self._copied = path, {}
        for file in (path, path.with_suffix(".csv")):
            stat = file.stat() if file.exists() else None
            if stat is None or self._copied.get(file.suffix) == (stat.st_mtime_ns, stat.st_size):
                continue
            target = f"{self._root}/{self._stem}{file.suffix}"
            temporary = f"{self._root}/.{self._stem}{file.suffix}.{secrets.token_hex(6)}"
            try:
                self._system.put_file(str(file), temporary)
                self._system.mv(temporary, target)
            except Exception:
                with contextlib.suppress(Exception):
                    self._system.rm_file(temporary)
                raise
            self._copied[file.suffix] = stat.st_mtime_ns, stat.st_size
        for suffix in (".npz", ".csv") if left not in (None, self._stem) else ():
            with contextlib.suppress(Exception):
                self._system.rm_file(f"{self._root}/{left}{suffix}")
