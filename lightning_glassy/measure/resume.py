"""What a tracker needs to go on in another process: its snapshots as plain values, in a checkpoint or beside it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_glassy.measure.layout import Stretch, TrackedParameters
from lightning_glassy.measure.moments import EagerMoments
from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.shards import Processes
from lightning_glassy.measure.snapshot_files import SnapshotFileError, Stored, is_stored, read_snapshot, write_snapshot
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank

log = logging.getLogger(__name__)

INLINE_BYTES = 16 << 20
"""Snapshots that take more than this go into files of their own, so that they do not bloat every checkpoint."""


_MOST_SNAPSHOTS = 100_000


class StateError(ValueError):
    """A state that does not belong to what is tracked now, or is no state of a tracker; the message says in what."""


def describe(selected: Sequence[Selected]) -> list[list[Any]]:
    """The tracked parameters as plain values: name, shape, dtype and groups of each."""
    return [[p.name, list(p.tensor.shape), str(p.dtype), list(p.groups)] for p in selected]


def restrict(selected: Sequence[Selected], described: object) -> list[Selected]:
    """Those parameters that a state is of, in its order: what has become trainable since is left out.

    Raises:
        StateError: one is missing, or is not what it was; the message names it.
    """
    now, kept = {p.name: p for p in selected}, []
    for name, shape, dtype, groups in described:  # type: ignore[attr-defined]
        if name not in now:
            raise StateError(f"the parameter {name!r} was tracked, and is gone, frozen or excluded now")
        [[_, *form]] = describe([now[name]])
        if form != [shape, dtype, groups]:
            raise StateError(
                f"the parameter {name!r} had the shape {tuple(shape)}, {dtype} and the groups {groups}, and has "
                f"{tuple(form[0])}, {form[1]} and {form[2]} now"
            )
        kept.append(now[name])
    return kept


def check_parts(parts: object, described: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The snapshots of a state, which may come from anywhere, if they are such of these parameters.

    Raises:
        StateError: they are not.
    """

    def whole(numbers: object, low: int = 0) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and n >= low for n in numbers)

    shapes = {name: tuple(shape) for name, shape, *_ in described}
    dtypes = {dtype for _, _, dtype, _ in described} | {"torch.float32"}  # complex weights, and masters in float32
    dtypes |= {"torch.float64"} if "torch.complex128" in dtypes else set()
    good = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
    for part in parts if good else ():  # type: ignore[attr-defined]
        stretches = [stretch for bucket in part["layout"] for stretch in bucket]
        for name, offsets, sizes, order, numel in stretches:
            shape = shapes.get(name)
            good &= shape is not None and whole(offsets) and whole(sizes) and type(numel) is int and numel >= 0
            if not good or shape is None:
                break
            # A complex parameter has one dimension more; flattened ones have one.
            fits = {len(shape): shape, len(shape) + 1: (*shape, 2), 1: (math.prod(shape) * 2,)}.get(len(sizes), ())
            ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
            good &= len(fits) == len(sizes) and all(end <= size for end, size in zip(ends, fits, strict=True))
            good &= sorted(order) == list(range(len(sizes))) and numel <= math.prod(sizes)
        good &= len(part["dtypes"]) == len(part["layout"]) and set(part["dtypes"]) <= dtypes
        good &= type(part["n_replica"]) is int and 1 <= part["n_replica"] <= 10**6
        times = [packed["waiting_time"] for packed in part["snapshots"]]
        good &= whole(times) and len(set(times)) == len(times) <= _MOST_SNAPSHOTS
        good &= times == [packed["waiting_time"] for packed in parts[0]["snapshots"]]  # type: ignore[index]
        for packed in part["snapshots"]:
            good &= type(packed["last_lag"]) is int and packed["last_lag"] >= -1
            for tensors in (packed["flats"] or [], packed["own_sums"]):
                good &= isinstance(tensors, list) and all(isinstance(tensor, Tensor) for tensor in tensors)
            file = packed["file"]
            good &= file is None or (len(file) == 2 and all(isinstance(word, str) for word in file))
    if not good:
        raise StateError("its snapshots are not those of these parameters")
    return parts  # type: ignore[return-value]


def pack(
    parameters: TrackedParameters,
    snapshots: Sequence[tuple[Snapshot, int]],
    directory: Path | None,
    processes: Processes | None,
) -> list[dict[str, Any]]:
    """The snapshots of each process, with their last lags, as tensors and plain values, by rank; all processes call it.

    Large ones, and those of several processes, go into files in ``directory``. One that cannot be written is left out,
    with a warning.
    """
    several = processes is not None and processes.size > 1
    n_bytes = sum(flat.nbytes for snapshot, _ in snapshots for flat in snapshot.flats)
    to_files = directory is not None and (several or n_bytes > INLINE_BYTES)
    rank, packed = 0 if processes is None else processes.rank, []
    for snapshot, last_lag in snapshots:
        try:
            packed.append(_packed(snapshot, last_lag, rank, directory if to_files else None))
        except Exception as error:
            # Left out, and not raised: the other processes wait for this one.
            packed.append(
                {
                    "waiting_time": snapshot.waiting_time,
                    "last_lag": last_lag,
                    "own_sums": [],
                    "flats": None,
                    "file": ["", ""],
                }
            )
            log.warning(
                "lightning_glassy: the snapshot of step %d could not be written beside the checkpoint (%s: %s): a run "
                "that is resumed from it will go on without it",
                snapshot.waiting_time,
                type(error).__name__,
                error,
            )
    layout = [[_plain(stretch) for stretch in bucket] for bucket in parameters.layout()]
    dtypes = [str(bucket.dtype) for bucket in parameters.buckets]
    part = {"layout": layout, "dtypes": dtypes, "n_replica": parameters.n_replica or 1, "snapshots": packed}
    return [part] if processes is None else processes.gather(part)


def _packed(snapshot: Snapshot, last_lag: int, rank: int, directory: Path | None) -> dict[str, Any]:
    """A snapshot as tensors and plain values; its weights in a file, if there is a directory for that."""
    flats, file = None, None
    if directory is not None and snapshot.flats:
        if snapshot.stored is None or not is_stored(directory, snapshot.stored):
            snapshot.stored = write_snapshot(directory, snapshot.waiting_time, rank, snapshot.flats)
        file = list(snapshot.stored)
    elif snapshot.flats:
        flats = [flat.detach().cpu().clone() for flat in snapshot.flats]
    return {
        "waiting_time": snapshot.waiting_time,
        "last_lag": last_lag,
        "own_sums": [sums.cpu().clone() for sums in snapshot.own_sums],
        "flats": flats,
        "file": file,
    }


def unpack(
    parts: Sequence[Mapping[str, Any]],
    parameters: TrackedParameters,
    bank: SnapshotBank,
    directories: Sequence[Path],
    processes: Processes | None,
    wanted: Callable[[int, int], bool],
) -> dict[int, str]:
    """Put the snapshots of :func:`pack` into an empty bank: those wanted, by waiting time and last lag.

    Every process calls it.

    Processes that hold other parts of the parameters than those that packed them, or that are more or fewer, take what
    they hold from wherever it is.

    Returns:
        The waiting times whose snapshot is lost, with the reason.
    """
    layout = [[_plain(stretch) for stretch in bucket] for bucket in parameters.layout()]
    rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
    same = len(parts) == size and parts[rank]["layout"] == layout
    if processes is not None:
        same = all(processes.gather(same))
    lost: dict[int, str] = {}
    for k, first in enumerate(parts[0]["snapshots"] if parts else []):
        waiting_time, last_lag = first["waiting_time"], first["last_lag"]
        if not wanted(waiting_time, last_lag):
            continue
        failure = None
        try:
            snapshot = bank.add(waiting_time)
            snapshot.last_lag = last_lag
            if same:
                packed = parts[rank]["snapshots"][k]
                _fill(snapshot.flats, _contents(parts[rank], packed, directories))
                for sums, saved in zip(snapshot.own_sums, packed["own_sums"], strict=True):
                    sums.copy_(saved)
                snapshot.stored = None if packed["file"] is None else Stored(*packed["file"])
            else:
                _gather(snapshot, parts, k, parameters, directories)
                own_sums = EagerMoments(parameters.over(snapshot.flats)).own_sums()
                for sums, own in zip(snapshot.own_sums, own_sums, strict=True):
                    sums.copy_(own)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        failures = [failure] if processes is None else processes.gather(failure)
        if any(failures):
            lost[waiting_time] = next(text for text in failures if text)
            if waiting_time in bank.live:
                bank.release(waiting_time)
    return lost


def _plain(stretch: Stretch) -> list[Any]:
    return [stretch.name, list(stretch.offsets), list(stretch.sizes), list(stretch.order), stretch.numel]


def _contents(part: Mapping[str, Any], packed: Mapping[str, Any], directories: Sequence[Path]) -> list[Tensor]:
    """The flat weights that a process packed, one per bucket."""
    if packed["flats"] is not None:
        return list(packed["flats"])
    if packed["file"] is None:
        return []
    dtypes = [getattr(torch, dtype.removeprefix("torch.")) for dtype in part["dtypes"]]
    sizes = [
        sum(numel for *_, numel in bucket) * part["n_replica"] * dtype.itemsize
        for bucket, dtype in zip(part["layout"], dtypes, strict=True)
    ]
    if not packed["file"][0]:
        raise SnapshotFileError("it could not be written when the checkpoint was saved")
    stored = read_snapshot(directories, Stored(*packed["file"]), sizes)
    # Copies, as torch wants memory that it may write to.
    return [torch.from_numpy(np.array(content)).view(dtype) for content, dtype in zip(stored, dtypes, strict=True)]


def _fill(flats: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    for flat, content in zip(flats, contents, strict=True):
        if flat.numel() != content.numel() or flat.dtype != content.dtype:
            raise ValueError(
                f"{tuple(content.shape)} of {content.dtype} where {tuple(flat.shape)} of {flat.dtype} are due"
            )
        flat.copy_(content.view(flat.shape))


def _gather(
    snapshot: Snapshot,
    parts: Sequence[Mapping[str, Any]],
    k: int,
    parameters: TrackedParameters,
    directories: Sequence[Path],
) -> None:
    """Take what this process holds from the snapshots of others, coordinate by coordinate."""
    mine: dict[str, list[tuple[Stretch, Tensor]]] = {}
    for bucket, flat in zip(parameters.layout(), snapshot.flats, strict=True):
        start = 0
        for stretch in bucket:
            mine.setdefault(stretch.name, []).append((stretch, flat[start : start + stretch.numel]))
            start += stretch.numel
    missing = sum(flat.numel() for flat in snapshot.flats)
    for part in parts:
        contents = _contents(part, part["snapshots"][k], directories)
        for bucket, content in zip(part["layout"], contents, strict=bool(contents)):
            start = 0
            for name, offsets, sizes, order, numel in bucket:
                theirs = Stretch(name, tuple(offsets), tuple(sizes), tuple(order), numel)
                values, start = content[start : start + numel], start + numel
                for stretch, target in mine.get(name, ()):
                    missing -= _take(parameters, theirs, values, stretch, target)
    if missing:
        raise SnapshotFileError(f"{missing} of its coordinates are in none of the files")


def _take(parameters: TrackedParameters, theirs: Stretch, values: Tensor, mine: Stretch, target: Tensor) -> int:
    """Copy the coordinates that two stretches share; the number of them."""
    if theirs[1:] == mine[1:]:
        target.copy_(values)
        return mine.numel
    have, order = parameters.positions(theirs).sort()
    want = parameters.positions(mine)
    place = torch.searchsorted(have, want).clamp_(max=max(len(have) - 1, 0))
    found = have[place] == want if len(have) else torch.zeros(len(want), dtype=torch.bool)
    target[found.to(target.device)] = values[order[place[found]]].to(target.device)
    return int(found.sum())
