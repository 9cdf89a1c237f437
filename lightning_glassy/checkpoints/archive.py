"""Find the records of an archive in the format zip, without reading them."""

from __future__ import annotations

import struct
from functools import partial

from lightning_glassy.checkpoints.handles import File
from lightning_glassy.checkpoints.strided import Memory
from lightning_glassy.checkpoints.unpickle import Damaged

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_DESCRIBED = 8  # flag of a record that is followed by a description, as torch writes it


class Archive:
    """The records of a zip archive by name, each stored as it is.

    Python's ``zipfile`` needs a kilobyte of memory per record, and reads records from their beginning only.

    Args:
        file: the file.
        start: position of the archive in the file.
        length: number of bytes of the archive. Default: until the end of the file.

    Attributes:
        compressed: whether a record is compressed, so that it cannot be read.

    Raises:
        Damaged: the archive is damaged, or has no ``data.pkl``.
    """

    def __init__(self, file: File, start: int = 0, length: int | None = None) -> None:
        self._file, self._start = file, start
        self._length = file.size - start if length is None else length
        directory, n, self._end = self._directory()
        self.compressed = False
        found: dict[str, tuple[int, int, int, int]] = {}
        at = 0
        for _ in range(n):
            if at + _ENTRY.size > len(directory):
                raise Damaged("its list of records is cut short")
            entry = _ENTRY.unpack_from(directory, at)
            magic, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, _, _, _, offset = entry
            if magic != b"PK\1\2":
                raise Damaged("its list of records is damaged")
            at += _ENTRY.size
            name = directory[at : at + n_name].decode("utf-8", "replace")
            extra = directory[at + n_name : at + n_name + n_extra]
            at += n_name + n_extra + n_comment
            size, packed, offset = _wide(extra, size, packed, offset)
            self.compressed |= bool(method or flags & 1 or packed != size)
            if name in found:
                raise Damaged(f"it has two records {name!r}")
            found[name] = offset, packed, n_name, flags
        self._records: dict[str, Memory] = {}
        last, before = 0, ""
        ordered = sorted(found.items(), key=lambda item: item[1])
        ends = [offset for _, (offset, *_) in ordered[1:]] + [self._end]
        for (name, (offset, size, n_name, flags)), end in zip(ordered, ends, strict=True):
            if offset < last:
                raise Damaged(f"its records {before!r} and {name!r} share bytes")
            last, before = offset + _LOCAL.size + n_name + size, name
            self._records[name] = Memory(file, name, size, partial(self._find, name, offset, size, flags, end))
        if last > self._end:
            raise Damaged(f"its record {before!r} is cut short")
        roots = [name for name in found if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise Damaged("it is an archive of something else: it has no data.pkl")
        self._root = roots[0][: -len("data.pkl")]

    def record(self, name: str) -> Memory | None:
        """Return a record beside ``data.pkl``."""
        return self._records.get(self._root + name)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a record."""
        record = self.record(name)
        return None if record is None else self._file.read(record.start, record.size)

    def _directory(self) -> tuple[bytes, int, int]:
        """Return the bytes of the list of records, their number, and the position of the list."""
        n_tail = min(self._length, _END.size + 2**16 + _LOCATOR_64.size)
        tail = self._file.read(self._start + self._length - n_tail, n_tail)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + _END.size > len(tail):
            raise Damaged("it is cut short: it has no list of records at its end")
        _, _, _, _, n, size, offset, _ = _END.unpack_from(tail, at)
        if at >= _LOCATOR_64.size and tail[at - _LOCATOR_64.size :][:4] == b"PK\6\7":
            _, _, wide_at, _ = _LOCATOR_64.unpack_from(tail, at - _LOCATOR_64.size)
            wide = self._file.read(self._start + wide_at, _END_64.size) if wide_at < self._length else b""
            if len(wide) < _END_64.size or wide[:4] != b"PK\6\6":
                raise Damaged("its list of records is damaged")
            _, _, _, _, _, _, _, n, size, offset = _END_64.unpack(wide)
        if offset + size > self._length or n * _ENTRY.size > size:
            raise Damaged("its list of records is damaged")
        return self._file.read(self._start + offset, size), n, offset

    def _find(self, name: str, offset: int, size: int, flags: int, end: int) -> int:
        """Return the position in the file of the bytes of a record. The next record begins at ``end``."""
        head = self._file.read(self._start + offset, _LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            raise ValueError(f"{self._file.path} is damaged: its record {name!r} is not where it should be")
        n_name, n_extra = _LOCAL.unpack(head)[-2:]
        begin: int = offset + _LOCAL.size + n_name + n_extra
        # A wrong length of the name would shift all numbers.
        after = self._start + begin + size
        if size and (self._file.read(after, 4) != b"PK\7\10" if flags & _DESCRIBED else begin + size != end):
            raise ValueError(f"{self._file.path} is damaged: its record {name!r} is not as long as it should be")
        return self._start + begin


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Return the numbers of a record. Numbers that need 64 bits are in its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            full = 2**32 - 1
            size, packed, offset = (next(numbers, x) if x == full else x for x in (size, packed, offset))
        at += 4 + length
    return size, packed, offset
