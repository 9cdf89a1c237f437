"""The file of a record: an uncompressed ``.npz`` of plain arrays and one JSON text. A reader does not trust it.

=============================  ==================================================================================
member                         content
=============================  ==================================================================================
``header``                     JSON as bytes: format, version, sizes of the groups, overlap thresholds, number of
                               replicas, ``sums`` (the names of the columns of ``moments``, before one count per
                               overlap threshold), metadata, and the names of the tables of each kind
``waiting_time``, ``lag``      the keys of the rows of ``moments``, int64 ``[n_row]``
``moments``                    float64 ``[n_row, (n_replica,) n_group, n_sum + n_threshold]``
``<kind>_<i>_<key>``           the keys of table i of another kind (``one_time``, ``between``, ``profile`` or
                               ``response``), int64 ``[n_row]`` each
``<kind>_<i>_value``           its rows, float64 ``[n_row, ...]``
``profile_<i>_grid``           the points at which a function is known, float64 ``[n_point]``
=============================  ==================================================================================

Files without a measured response, and the files of earlier versions, may lack the kind ``response``. Version 1 had no
``sums``, because a record always had these seven sums: d2, d4, ws, w2, s2, w and s. The first axis of
its moments was the replica axis.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array
from lightning_glassy.record.tables import KINDS, MOMENTS_TABLE, NAMED_KINDS, Table, TableName

FORMAT = "lightning_glassy.AgingRecord"
FORMAT_VERSION = 2

# The last record of an archive without a comment: its length and its mark (APPNOTE 4.3.16).
_END, _END_MARK = 22, b"PK\x05\x06"
# The sums in files of version 1. They stay fixed if this package measures other sums later.
_SUMS_V1 = ("d2", "d4", "ws", "w2", "s2", "w", "s")
MSD_SUMS_V1 = ("d2", "s2", "s")


class RecordError(ValueError):
    """A file that is not a readable record: truncated, foreign, written by a newer version, or malformed."""


class Part(NamedTuple):
    """The content of one table as it was stored.

    Attributes:
        table: kind and name of the table.
        keys: int64 ``[n_row, n_key]``.
        rows: float64 ``[n_row, ...]``.
        grid: the points at which a function is known, None for other tables.
    """

    table: TableName
    keys: NDArray[np.int64]
    rows: Array
    grid: Array | None


_MOST_NAMED = 8  # records of a directory that an error names


def write(file: BinaryIO, header: Mapping[str, Any], tables: Mapping[TableName, Table]) -> None:
    """Write the header and all tables of a record.

    Raises:
        TypeError: the header holds a value that JSON cannot hold.
    """
    names: dict[str, list[str]] = {kind: [] for kind in NAMED_KINDS}
    arrays: dict[str, Any] = {}  # NDArray, but savez has other arguments, too
    for table_name, table in tables.items():
        kind, name = table_name
        prefix = _prefix(kind, len(names.get(kind, ())))
        if kind in names:
            names[kind].append(name)
        for column, key_name in zip(table.keys.T, table.key_names, strict=True):
            arrays[f"{prefix}{key_name}"] = column
        arrays[_values_name(kind, prefix)] = table.values
        if table.grid is not None:
            arrays[f"{prefix}grid"] = table.grid
    text = json.dumps({**header, **names}).encode()
    np.savez(file, header=np.frombuffer(text, dtype=np.uint8), **arrays)


def read(content: bytes) -> tuple[dict[str, Any], Iterator[Part]]:
    """Read the header of a record, and then its tables one by one.

    Raises:
        RecordError: the content is not a record, or is malformed. The iterator can raise it, too.
    """
    arrays = _read_arrays(io.BytesIO(content))
    if "header" not in arrays or arrays["header"].dtype != np.uint8:
        raise RecordError("not a lightning_glassy record: it has no header")
    header = opened(parse(arrays.pop("header").tobytes()))
    if header["version"] == 1 and header["n_replica"] is not None:
        arrays["moments"] = np.moveaxis(arrays["moments"], 0, 1)
    if header["version"] == 1:
        header = {"between": [], "profiles": []} | header  # the first files had neither
    header = {"responses": []} | header  # the files of version 2 had none at first
    names = {kind: header[kind] for kind in NAMED_KINDS}
    for of_kind in names.values():
        if type(of_kind) is not list or not all(type(name) is str for name in of_kind):
            raise RecordError("its header holds something else where numbers and names are expected")
        if len(set(of_kind)) != len(of_kind):
            raise RecordError("its header holds a repeated name")
    return header, _parts(arrays, names)


def opened(header: object) -> dict[str, Any]:
    """Check a header, and add the entries that only the present version writes.

    Raises:
        RecordError: it is not the header of a record, or a newer version has written it.
    """
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RecordError("not a lightning_glassy record: its header names another format")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise RecordError(f"its format version is {version!r:.40}")
    if version > FORMAT_VERSION:
        raise RecordError(
            f"written in format {version}, this version of lightning_glassy reads up to {FORMAT_VERSION}: "
            "upgrade lightning_glassy"
        )
    return header if version > 1 else header | {"sums": list(_SUMS_V1)}


def parse(text: bytes) -> Any:
    """Parse JSON from a source that is not trusted.

    Raises:
        RecordError: an object names something twice.
        ValueError: the text is not JSON.
    """
    return json.loads(text, object_pairs_hook=_without_repetition)


def _parts(arrays: dict[str, NDArray[Any]], names: Mapping[str, list[str]]) -> Iterator[Part]:
    yield _part(arrays, MOMENTS_TABLE, 0)
    for kind, of_kind in names.items():
        for number, name in enumerate(of_kind):
            yield _part(arrays, TableName(kind, name), number)
    if arrays:
        raise RecordError(f"its header does not name {', '.join(sorted(arrays)):.200}")


def _part(arrays: dict[str, NDArray[Any]], table: TableName, number: int) -> Part:
    """Take the arrays of one table out of all arrays."""
    kind = table.kind
    prefix = _prefix(kind, number)
    keys = [_column(arrays, f"{prefix}{key_name}", np.int64) for key_name in KINDS[kind]]
    rows_name = _values_name(kind, prefix)
    rows = arrays.pop(rows_name)
    if rows.dtype != np.float64 or rows.ndim < 1 or {len(key) for key in keys} != {len(rows)}:
        what = "one waiting time, one lag and float64 moments" if kind == "moments" else "a key and float64 numbers"
        raise RecordError(f"its rows do not have {what} each ({rows_name!r})")
    grid = _column(arrays, f"{prefix}grid", np.float64) if kind == "profiles" else None
    return Part(table, np.stack(keys, axis=1), rows, grid)


def _prefix(kind: str, number: int) -> str:
    return "" if kind == "moments" else f"{kind.removesuffix('s')}_{number}_"


def _values_name(kind: str, prefix: str) -> str:
    return kind if kind == "moments" else f"{prefix}value"


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise RecordError("its header names something twice")
    return dict(pairs)


def _column(arrays: dict[str, NDArray[Any]], name: str, dtype: type[np.generic]) -> NDArray[Any]:
    column = arrays.pop(name)
    if column.ndim != 1 or column.dtype != dtype:
        raise RecordError(f"{name!r} is {column.dtype} of shape {column.shape}, not a column of {dtype.__name__}")
    return column


def _read_arrays(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    """Read the arrays of an ``.npz`` that may be malicious.

    NumPy's own reader allocates the size given in a header, and inflates compressed members, before it checks the
    content. Here each member must be stored uncompressed, and must have the length given in its header.
    """
    try:
        # Release the view before an error propagates: Python 3.12.1 can crash when it frees a traceback with a view.
        with file.getbuffer() as content, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if min((m.header_offset for m in members), default=0) or content[-_END : -_END + 4] != _END_MARK:
                raise RecordError("not a lightning_glassy record: there is something before or after it")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise RecordError("not a lightning_glassy record: it is compressed")
            if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
                raise RecordError("it names a part twice")
            if sum(member.file_size for member in members) > len(content):
                raise RecordError("its parts claim to be longer than the file")
            return {
                member.filename.removesuffix(".npy"): _parse_npy(archive.read(member), member.filename)
                for member in members
            }
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
        raise RecordError(f"truncated, or not a lightning_glassy record ({error})") from error


def _parse_npy(content: bytes, name: str) -> NDArray[Any]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # NumPy writes later versions only for headers of more than 64 KiB
        raise RecordError(f"{name}: unknown array format {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or dtype.kind not in "uif" or fortran_order:
        raise RecordError(f"{name}: arrays of {dtype} are not part of a record")
    data = content[file.tell() :]
    if any(extent < 0 for extent in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise RecordError(f"{name}: {len(data)} bytes where its header promises {shape} of {dtype}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def only_record(directory: Path) -> Path:
    """Return the only record file in a directory or below it. Links to directories are not followed.

    Raises:
        IsADirectoryError: there is no record file.
        RecordError: there are several record files. The message names them.
    """
    found: list[Path] = []
    for place, directories, names in os.walk(directory):
        directories.sort()
        found += [Path(place) / name for name in sorted(names) if fnmatch(name, "aging_record*.npz")]
        if len(found) > _MOST_NAMED:
            break
    if not found:
        raise IsADirectoryError(
            errno.EISDIR, "this directory and those below it have no aging_record.npz", str(directory)
        )
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(directory)) for path in found[:_MOST_NAMED])
        more = " and more" if len(found) > _MOST_NAMED else ""
        raise RecordError(f"{directory} holds several records: {listed}{more}. Name one of them")
    return found[0]
