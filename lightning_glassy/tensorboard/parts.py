"""A growing record in parts. The TensorBoard sink writes the parts, and the tab joins them.

A part is one line of JSON, and then the raw numbers, little-endian. The line holds the number of rows of each table
that follow. The first part has the header of the record, and so has each part after a change of the header::

    {"checksum": "0a1b2c3d", "part": 0, "rows": 2, "one_time": {"learning_rate": 1}, "between": {},
     "profiles": {"displacement": [1, 122, 123]}, "header": {...}}
    moments: keys, int64 [2, 2], and sums, float64 [2, (n_replica,) n_group, n_moment]
    each series: steps, int64 [1], and values, float64 [1]
    each table between replicas: steps, int64 [n], and values, float64 [n, n_replica, n_replica]
    each profile: keys, int64 [1, 2], grid, float64 [122], and values, float64 [1, 123]
    the response: keys, int64 [n, 2], and values, float64 [n, (n_replica,) 3]

A profile has three numbers in the line: rows, points of the grid (0 if an earlier part has the grid), and values in a
row. No part repeats the rows of another part, so that a run of any length writes little more than its record. For the
same reason, a change of the metadata does not repeat a long header (of a record with very many groups). The line then
has ``"meta": {...}`` instead of the header. Parts without a response have no ``responses``. Parts of format 1 had
neither ``between`` nor ``profiles``.

The checksum is the CRC-32 of everything after it. TensorBoard's fast data server does not compare the checksums of the
event file. The number of the part is the number in its tag. Earlier versions wrote neither.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord, RecordError
from lightning_glassy.record.checks import check_plane
from lightning_glassy.record.file import Part, opened, parse
from lightning_glassy.record.tables import KINDS, MOMENTS_TABLE, NAMED_KINDS, Mark, TableName

_LONG = 16_384  # characters of a header that is not repeated

_ORDER = list(KINDS)

_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{8})", ')


@dataclass(frozen=True)
class Written:
    """The content of the parts so far: their number, the header with its metadata as text, and a mark of each table."""

    n_part: int = 0
    header: dict[str, Any] = field(default_factory=dict)
    marks: dict[TableName, Mark] = field(default_factory=dict)


def next_part(record: AgingRecord, written: Written, *, left_out: Sequence[str] = ()) -> tuple[bytes | None, Written]:
    """Make a part of the rows of a record that are not yet written. The cost grows with the number of these rows.

    Args:
        record: the record in its present state.
        written: the content of the parts so far.
        left_out: kinds of tables that are not written.

    Returns:
        The part, and the content of all parts including this part. The part is None if neither a row nor the header
        has changed.
    """
    line: dict[str, Any] = {
        "part": written.n_part,
        "rows": 0,
        **{kind: {} for kind in NAMED_KINDS if kind != "responses"},
    }
    blocks: list[NDArray[Any]] = []
    marks: dict[TableName, Mark] = {}
    # Sort the tables by kind, because the reader expects the numbers in this order.
    for name, table in sorted(record.tables.items(), key=lambda item: _ORDER.index(item[0].kind)):
        if name.kind in left_out:
            continue
        before, marks[name] = written.marks.get(name), table.mark()
        part = table.since(before)
        if not len(part):
            continue
        blocks += [part.keys.astype("<i8"), part.values.astype("<f8")]
        if name == MOMENTS_TABLE:
            line["rows"] = len(part)
        elif table.grid is None:
            line.setdefault(name.kind, {})[name.name] = len(part)  # few records have a response
        else:
            grid = np.zeros(0) if before else table.grid
            blocks.insert(-1, grid.astype("<f8"))
            line[name.kind][name.name] = [len(part), len(grid), *table.shape]
    # The sizes of the groups are the same objects as before, unless this is another record. Compare no names.
    header = {**record.header(), "meta": json.dumps(record.meta)}
    if header != written.header:
        sizes, earlier = {**header, "meta": ""}, {**written.header, "meta": ""}
        is_long = sizes == earlier and len(json.dumps(sizes)) > _LONG
        line |= {"meta": record.meta} if is_long else {"header": record.header()}
    elif not blocks:
        return None, written
    content = b"\n".join([json.dumps(line).encode()[1:], b"".join(block.tobytes() for block in blocks)])
    checksum = b'{"checksum": "%08x", ' % zlib.crc32(content)
    return checksum + content, Written(written.n_part + 1, header, marks)


def join(parts: Mapping[int, bytes]) -> tuple[AgingRecord, str | None]:
    """Join the parts of a record that are there, by number.

    Returns:
        The record, and a sentence if parts are missing or damaged. The record lacks the rows of these parts.

    Raises:
        RecordError: as in :func:`assemble`, but not for a damaged part.
    """
    whole = {number: part for number, part in sorted(parts.items()) if _is_whole(part, number)}
    record, total = assemble(whole.values()), max(parts) + 1
    if len(whole) == total:
        return record, None
    first = next(number for number in itertools.count() if number not in whole)
    return record, (
        f"{total - len(whole):,} of {total:,} parts of the record are missing or damaged in the event files, the first "
        f"is part {first:,}: the curves lack their rows, and the file of the record has them"
    )


def _is_whole(part: bytes, number: int | None = None) -> bool:
    """Return whether a part is unchanged, as far as can be known. Earlier versions wrote no checksum."""
    checksum = _CHECKSUM.match(part)
    if checksum is None:
        return True
    rest = part[checksum.end() :]
    is_numbered = number is None or rest.startswith(b'"part": %d, ' % number)
    return is_numbered and zlib.crc32(rest) == int(checksum[1], 16)


def assemble(parts: Iterable[bytes]) -> AgingRecord:
    """Join the parts of a record, in the order in which they were written.

    The parts are not trusted. Nothing in them is executed. The sizes in a part are checked against its bytes before
    memory is allocated.

    Raises:
        RecordError: a part is missing, malformed or from a newer version. The message gives the reason.
    """
    try:
        return _assembled([_split(part) for part in parts])
    except RecordError:
        raise
    except Exception as error:  # a crafted part can make the parsers of JSON and of numbers raise anything
        raise RecordError(f"not a well-formed record: {type(error).__name__}: {error}") from error


def _split(part: bytes) -> tuple[dict[str, Any], bytes]:
    if not _is_whole(part):
        raise RecordError("a part is damaged: its checksum is wrong")
    line, _, numbers = part.partition(b"\n")
    head = parse(line)
    counts = [head["rows"]]
    for kind in NAMED_KINDS:
        for entry in head.get(kind, {}).values():
            counts += entry if kind == "profiles" else [entry]
    if not all(type(count) is int and 0 <= count <= len(numbers) for count in counts):
        raise RecordError("a part promises more rows than it has bytes")
    return head, numbers


def _assembled(parts: list[tuple[dict[str, Any], bytes]]) -> AgingRecord:
    headers: list[dict[str, Any]] = []
    for head, _ in parts:
        if "header" in head:
            headers.append(opened(head["header"]))
        elif "meta" in head and headers:
            headers[-1] = {**headers[-1], "meta": head["meta"]}
    if not headers:
        raise RecordError("its first part is missing or damaged")
    header = headers[-1]
    if len({json.dumps({**other, "meta": None}) for other in headers}) > 1:
        raise RecordError("its parts do not measure the same: only the metadata of a record can change")
    record = AgingRecord.from_header(header)
    grids: dict[TableName, Array] = {}
    for head, numbers in parts:
        for part in _tables(head, numbers, record, grids):
            record.extend(part, replace=part.table != MOMENTS_TABLE)
    check_plane(np.stack(record.pairs, axis=1), record.n_replica)
    return record.upgraded(header["version"])


def _tables(head: dict[str, Any], numbers: bytes, record: AgingRecord, grids: dict[TableName, Array]) -> Iterator[Part]:
    """Yield the rows of each table in a part.

    Args:
        head: the first line of the part.
        numbers: the bytes after this line.
        record: the record, for the shape of its rows.
        grids: the grids of all profiles so far. The grids in this part are added.
    """
    shapes: list[tuple[TableName, int, int, tuple[int, ...]]] = [(MOMENTS_TABLE, head["rows"], 0, record.row_shape)]
    shapes += [(TableName("one_time", name), n, 0, ()) for name, n in head["one_time"].items()]
    between = (record.n_replica or 1,) * 2
    shapes += [(TableName("between", name), n, 0, between) for name, n in head.get("between", {}).items()]
    for name, (n, n_point, n_value) in head.get("profiles", {}).items():
        shapes.append((TableName("profiles", name), n, n_point, (n_value,)))
    of_response = record.response_shape
    shapes += [(TableName("responses", name), n, 0, of_response) for name, n in head.get("responses", {}).items()]
    size = sum(n * (len(KINDS[name.kind]) + math.prod(shape)) + n_point for name, n, n_point, shape in shapes)
    if 8 * size != len(numbers):
        raise RecordError(f"a part has {len(numbers):,} bytes of numbers where {8 * size:,} are promised")
    at = 0

    def take(dtype: str, *shape: int) -> NDArray[Any]:
        nonlocal at
        found = np.frombuffer(numbers, dtype=dtype, count=math.prod(shape), offset=at).reshape(shape)
        at += found.nbytes
        return found.astype(dtype[1:])

    for name, n, n_point, shape in shapes:
        keys = take("<i8", n, len(KINDS[name.kind]))
        if name.kind == "profiles" and n_point:
            grids[name] = take("<f8", n_point)
        rows = take("<f8", n, *shape)
        if name.kind != "profiles" or name in grids:  # the part with the grid may be missing
            yield Part(name, keys, rows, grids.get(name))
