"""Read the records in event files, without TensorBoard.

An event file is a sequence of events: 8 bytes with the length, 4 bytes of checksum, the event, and 4 bytes of checksum.
An event is a message of protocol buffers. Only its summary matters here::

    Event.summary = 5, Summary.value = 1, Value.tag = 1, Value.metadata = 9,
    SummaryMetadata.plugin_data = 1, PluginData.plugin_name = 1, PluginData.content = 2

The files are not trusted. Nothing in them is executed, and each part of a record has its own checksum.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_glassy.record import AgingRecord, RecordError, without_replaced
from lightning_glassy.tensorboard.events import PLUGIN_NAME, by_record
from lightning_glassy.tensorboard.parts import join

_HEAD = 4096  # bytes of an event that hold its tag
_MARK = b"_record/"  # in the tag of each part, see events.py


class EventRecord(NamedTuple):
    """A record that was joined from the parts in event files.

    Attributes:
        monitor: name of the AgingMonitor.
        record: the record, None if it cannot be read.
        note: a sentence about missing parts, or the reason why the record cannot be read.
    """

    monitor: str
    record: AgingRecord | None
    note: str | None


def is_event_file(name: str) -> bool:
    """Return whether TensorBoard would read a file of this name."""
    return "tfevents" in name


def records_in(files: Sequence[Path]) -> list[EventRecord]:
    """Return the records in the event files of one run. A resumed run has several files.

    Raises:
        OSError: a file cannot be read.
    """
    contents = [content for file in files for content in _parts_in(file)]
    readings = [_reading(monitor, parts) for (monitor, _), parts in sorted(by_record(contents).items())]
    # The record of a resumed run contains the record of the run before.
    return [readings[i] for i in without_replaced([reading.record for reading in readings])]


def _reading(monitor: str, parts: dict[int, bytes]) -> EventRecord:
    try:
        record, note = join(parts)
    except RecordError as error:
        return EventRecord(monitor, None, str(error))
    if note is not None:
        record.add_doubt(note)
    return EventRecord(monitor, record, note)


def _parts_in(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the tag and the content of each part in a file. Other events are skipped, and hardly read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            if length > size - file.tell() - 4:
                return  # a run that was killed, or is still running, leaves a last event that is not complete
            event = file.read(min(length, _HEAD))
            if _MARK in event:
                event += file.read(length - len(event))
                with contextlib.suppress(IndexError):  # a damaged event
                    yield from _parts_of(event)
                file.seek(4, os.SEEK_CUR)
            else:
                file.seek(length - len(event) + 4, os.SEEK_CUR)


def _parts_of(event: bytes) -> Iterator[tuple[str, bytes]]:
    for value in (value for summary in _fields(event, 5) for value in _fields(summary, 1)):
        for data in (data for metadata in _fields(value, 9) for data in _fields(metadata, 1)):
            if PLUGIN_NAME.encode() in _fields(data, 1):
                tags, contents = _fields(value, 1), _fields(data, 2)
                yield from zip((tag.decode(errors="replace") for tag in tags), contents, strict=False)


def _fields(message: bytes, number: int) -> list[bytes]:
    """Return the fields of a number in a message of protocol buffers: texts, bytes and messages.

    Raises:
        IndexError: the message is damaged.
    """
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 2:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise IndexError(length)
            if key >> 3 == number:
                found.append(message[at : at + length])
            at += length
        elif key & 7 == 0:
            _, at = _varint(message, at)
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise IndexError(key)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return an integer of variable length, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError(at)
