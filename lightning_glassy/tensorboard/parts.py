"""A record in parts, as it grows: what the TensorBoard sink writes, and the tab puts together again.

A part is one line of JSON and the raw numbers after it, little-endian. The line says how many rows there are and how
many values of each one-time series; in the first part, and whenever it has changed, also what the record is of::

    {"rows": 2, "one_time": {"learning_rate": 1}, "header": {...}}
    waiting times and lags, int64 [2, 2]; moments, float64 [2, (n_replica,) n_group, n_moment];
    then of each series its steps, int64 [1], and values, float64 [1]

No part repeats the rows of another one, so that a run of any length writes little more than its record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_glassy.record import FORMAT, FORMAT_VERSION, AgingRecord, RecordError

LARGEST_PLANE = 4_000_000
"""Most cells of the two-time plane (replicas x waiting times x lags) that are put together: a crafted file of many
rows, no two of which share a time, would otherwise ask for the square of its size."""


@dataclass(frozen=True)
class Written:
    """What of a record is in its parts so far."""

    pairs: frozenset[tuple[int, int]] = frozenset()
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    header: str = ""


def next_part(record: AgingRecord, written: Written) -> tuple[bytes | None, Written]:
    """What is in a record and not yet written, and what is written after it; None if there is nothing new."""
    waiting_times, lags = record.pairs
    pairs = list(zip(waiting_times.tolist(), lags.tolist(), strict=True))
    new = np.array([pair not in written.pairs for pair in pairs], dtype=bool)
    moments = record.moments if record.n_replica is None else np.moveaxis(record.moments, 0, 1)
    blocks = [np.stack([waiting_times, lags], axis=1)[new].astype("<i8"), moments[new].astype("<f8")]
    series = {name: dict(zip(*(part.tolist() for part in record.one_time(name)), strict=True))
              for name in record.one_time_names}  # fmt: skip
    counts = {}
    for name, values in series.items():
        before = written.series.get(name, {})
        points = [(step, value) for step, value in values.items() if not _same(before.get(step), value)]
        if points:
            counts[name] = len(points)
            blocks += [
                np.array([step for step, _ in points], dtype="<i8"),
                np.array([v for _, v in points], dtype="<f8"),
            ]
    header = json.dumps(_header(record))
    line: dict[str, Any] = {"rows": int(new.sum()), "one_time": counts}
    if header != written.header:
        line["header"] = json.loads(header)
    elif not new.any() and not counts:
        return None, written
    content = b"\n".join([json.dumps(line).encode(), b"".join(block.tobytes() for block in blocks)])
    return content, Written(frozenset(pairs), series, header)


def _same(before: float | None, value: float) -> bool:
    return before is not None and (before == value or (math.isnan(before) and math.isnan(value)))


def _header(record: AgingRecord) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_parameters": record.n_parameters,
        "n_sampled": record.n_sampled,
        "overlap_thresholds": list(record.overlap_thresholds),
        "n_replica": record.n_replica,
        "meta": record.meta,
    }


def assemble(parts: Iterable[bytes]) -> AgingRecord:
    """The record whose parts, in the order in which they were written, these are.

    The parts are not trusted: nothing is executed, or allocated because a part says so.

    Raises:
        RecordError: a part that is missing, malformed or from a newer version; the message says which.
    """
    try:
        return _assembled([_split(part) for part in parts])
    except RecordError:
        raise
    except Exception as error:  # whatever a crafted part makes the parsers of JSON and of numbers raise
        raise RecordError(f"not a well-formed record: {type(error).__name__}: {error}") from error


def _split(part: bytes) -> tuple[dict[str, Any], bytes]:
    line, _, numbers = part.partition(b"\n")
    head = json.loads(line)
    counts = [head["rows"], *head["one_time"].values()]
    if not all(type(count) is int and 0 <= count <= len(numbers) for count in counts):
        raise RecordError("a part promises more rows than it has bytes")
    return head, numbers


def _assembled(parts: list[tuple[dict[str, Any], bytes]]) -> AgingRecord:
    headers = [head["header"] for head, _ in parts if "header" in head]
    if not parts or "header" not in parts[0][0]:
        raise RecordError("its first part is missing")
    header = headers[-1]
    if header["format"] != FORMAT or type(header["version"]) is not int:
        raise RecordError("not a lightning_glassy record: its header says something else")
    if header["version"] > FORMAT_VERSION:
        raise RecordError(
            f"written in format {header['version']}, this version of lightning_glassy reads up to {FORMAT_VERSION}: "
            "upgrade lightning_glassy"
        )
    record = AgingRecord(
        header["n_parameters"],
        n_sampled=header["n_sampled"],
        overlap_thresholds=header["overlap_thresholds"],
        meta=header["meta"],
        n_replica=header["n_replica"],
    )
    for head, numbers in parts:
        _append(record, head, numbers)
    n_cells = (record.n_replica or 1) * len(record.waiting_times) * len(record.lags)
    if n_cells > LARGEST_PLANE:
        raise RecordError(f"its two-time plane has {n_cells:,} cells; up to {LARGEST_PLANE:,} are shown")
    return record


def _append(record: AgingRecord, head: dict[str, Any], numbers: bytes) -> None:
    rows, shape = head["rows"], record.row_shape
    sizes = [2 * rows, rows * math.prod(shape), *(n for n in head["one_time"].values() for _ in "sv")]
    if 8 * sum(sizes) != len(numbers):
        raise RecordError(f"a part has {len(numbers):,} bytes of numbers where {8 * sum(sizes):,} are promised")
    blocks, at = [], 0
    for i, size in enumerate(sizes):
        # Times and steps are integers, what was measured is not: they alternate.
        blocks.append(np.frombuffer(numbers, dtype="<f8" if i % 2 else "<i8", count=size, offset=at))
        at += 8 * size
    times, moments = blocks[0].reshape(rows, 2).tolist(), blocks[1].reshape(rows, *shape)
    for (waiting_time, lag), row in zip(times, moments, strict=True):
        record.append(waiting_time, lag, row)
    for name, steps, values in zip(head["one_time"], blocks[2::2], blocks[3::2], strict=True):
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            record.append_one_time(name, step, value)
