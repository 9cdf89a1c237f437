"""Open many files, and read them at any position from any thread."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

_LARGEST_READ = 2**30  # systems read at most 2 GiB at once
# Without O_NONBLOCK, opening a pipe would wait until another process writes to it.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK"))


@dataclass
class _Handle:
    number: int
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handles:
    """The files of a measurement. Only a few are open at a time.

    A file is read at positions and never mapped into memory. Mapped pages count as memory of the process. A mapped file
    that is cut short would end the process.

    Args:
        most: the largest number of files that stay open. Default: 64, and at most a quarter of the limit of the system.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, Handles() as handles:
        ...     path = Path(folder, "a")
        ...     _ = path.write_bytes(b"some bytes")
        ...     handles.file(path).read(5, 5)
        b'bytes'
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = min(64, max(_allowed() // 4, 1)) if most is None else most
        self._open: OrderedDict[File, _Handle] = OrderedDict()
        self._files: dict[str, File] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, path: Path) -> File:
        """Return the file of this name. Its size is the size at the first call.

        Raises:
            OSError: the file cannot be opened.
        """
        name = os.path.abspath(path)  # noqa: PTH100  # follows no links
        if name not in self._files:
            self._files[name] = File(self, path)
        return self._files[name]

    def close(self) -> None:
        """Close all files. A later read opens them again."""
        with self._lock:
            for handle in self._open.values():
                os.close(handle.number)
            self._open.clear()

    def _take(self, file: File) -> _Handle:
        """Open the file, if it is not open, and keep it open until :meth:`_give_back`."""
        with self._lock:
            handle = self._open.get(file)
            if handle is None:
                handle = self._open[file] = _Handle(os.open(file.path, _FLAGS))
            self._open.move_to_end(file)
            handle.users += 1
            idle = [other for other, its in self._open.items() if not its.users]
            for other in idle[: max(len(self._open) - self._most, 0)]:
                os.close(self._open.pop(other).number)
            return handle

    def _give_back(self, handle: _Handle) -> None:
        with self._lock:
            handle.users -= 1


class File:
    """A file that is opened when it is read.

    Attributes:
        path: its name.
        size: its number of bytes, when it was opened first.
    """

    def __init__(self, handles: Handles, path: Path) -> None:
        self.path, self._handles = path, handles
        self.size = -1
        self._time = 0
        self.read_into(0, memoryview(bytearray()))

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes from ``start`` on, fewer than ``length`` only at the end of the file."""
        data = bytearray(max(min(length, self.size - start), 0))
        self.read_into(start, memoryview(data))
        return bytes(data)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill ``out``, a view of bytes, with the bytes from ``start`` on. All of them must be in the file."""
        self.read_pieces([(start, out)])

    def read_pieces(self, pieces: list[tuple[int, memoryview]]) -> None:
        """Fill each view of bytes with the bytes from its position on.

        Raises:
            ValueError: the file has changed since it was opened first.
        """
        handle = self._handles._take(self)
        try:
            found = os.fstat(handle.number)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{self.path} is not a file, but a directory, a device or a pipe: leave it out")
            if self.size < 0:
                self.size, self._time = found.st_size, found.st_mtime_ns
            if (found.st_size, found.st_mtime_ns) != (self.size, self._time):
                raise self._changed()
            for start, out in pieces:
                done = 0
                while done < len(out):
                    n = _read(handle, start + done, out[done : done + _LARGEST_READ])
                    if n == 0:
                        raise self._changed()
                    done += n
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        finally:
            self._handles._give_back(handle)

    def _changed(self) -> ValueError:
        return ValueError(f"{self.path} has changed while it was measured: measure again when nothing writes to it")


def _allowed() -> int:
    """Return the number of files that the system allows to be open."""
    try:
        import resource
    except ImportError:  # on Windows
        return 512
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if limit == resource.RLIM_INFINITY else limit


def _read(handle: _Handle, start: int, out: memoryview) -> int:
    """Read at a position, and return the number of bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(handle.number, [out], start)
    with handle.lock:  # on Windows the position belongs to the open file
        os.lseek(handle.number, start, os.SEEK_SET)
        data = os.read(handle.number, len(out))
        out[: len(data)] = data
        return len(data)
