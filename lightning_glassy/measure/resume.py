"""Save the snapshots of a tracker as plain values, in a checkpoint or beside it, and restore them later."""

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
"""Snapshots that together take more bytes than this go into separate files, to keep every checkpoint small."""


_MOST_SNAPSHOTS = 100_000


class StateError(ValueError):
    """A state does not fit the tracked parameters or options, or is not the state of a tracker.

    The message names the difference.
    """


def describe(selected: Sequence[Selected]) -> list[list[Any]]:
    """Return the name, shape, dtype and groups of each tracked parameter as plain values."""
    return [[p.name, list(p.tensor.shape), str(p.dtype), list(p.groups)] for p in selected]


def restrict(selected: Sequence[Selected], described: object) -> list[Selected]:
    """Return the parameters of a state, in the order of the state, without parameters that became trainable since.

    Raises:
        StateError: a parameter is missing or has changed. The message names the parameter.
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
    """Check that the snapshots of a state fit the described parameters, and return them.

    The state may come from an unknown source.

    Raises:
        StateError: the snapshots do not fit.
    """

    def whole(numbers: object, low: int = 0) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and n >= low for n in numbers)

    shapes = {name: tuple(shape) for name, shape, *_ in described}
    # Snapshots of complex64 weights and of master weights have the dtype float32.
    dtypes = {dtype for _, _, dtype, _ in described} | {"torch.float32"}
    dtypes |= {"torch.float64"} if "torch.complex128" in dtypes else set()
    good = isinstance(parts, list) and all(isinstance(part, dict) for part in parts)
    for part in parts if good else ():  # type: ignore[attr-defined]
        stretches = [stretch for bucket in part["layout"] for stretch in bucket]
        for name, offsets, sizes, order, numel in stretches:
            shape = shapes.get(name)
            good &= shape is not None and whole(offsets) and whole(sizes) and type(numel) is int and numel >= 0
            if not good or shape is None:
                break
            # A complex parameter has an additional last dimension of size 2. A flattened parameter has one dimension.
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
        raise StateError("its snapshots belong to other parameters")
    return parts  # type: ignore[return-value]


def pack(
    parameters: TrackedParameters,
    snapshots: Sequence[tuple[Snapshot, int]],
    directory: Path | None,
    processes: Processes | None,
    *,
    copy: bool = True,
) -> list[dict[str, Any]]:
    """Return the snapshots of each process with their last lags, by rank, as tensors and plain values.

    All processes must call this function. If the snapshots are large or come from several processes, they go into files
    in ``directory``. A snapshot that cannot be written is left out, and a warning is logged. Without ``copy``, tensors
    that are in host memory already are returned themselves.
    """
    several = processes is not None and processes.size > 1
    rank = 0 if processes is None else processes.rank
    layout = [[_plain(stretch) for stretch in bucket] for bucket in parameters.layout()]
    dtypes = [str(bucket.dtype) for bucket in parameters.buckets]
    packed = _pack_all(snapshots, directory, rank, several, copy)
    part = {"layout": layout, "dtypes": dtypes, "n_replica": parameters.n_replica or 1, "snapshots": packed}
    return [part] if processes is None else processes.gather(part)


def repack(parts: Sequence[Mapping[str, Any]], directory: Path | None) -> list[dict[str, Any]]:
    """Return the result of :func:`pack` in one process for another directory."""
    repacked = []
    for rank, part in enumerate(parts):
        snapshots = [
            (Snapshot(packed["waiting_time"], packed["flats"] or [], packed["own_sums"]), packed["last_lag"])
            for packed in part["snapshots"]
        ]
        repacked.append({**part, "snapshots": _pack_all(snapshots, directory, rank, False, True)})
    return repacked


def _pack_all(
    snapshots: Sequence[tuple[Snapshot, int]], directory: Path | None, rank: int, several: bool, copy: bool
) -> list[dict[str, Any]]:
    n_bytes = sum(flat.nbytes for snapshot, _ in snapshots for flat in snapshot.flats)
    to_files, packed = directory is not None and (several or n_bytes > INLINE_BYTES), []
    for snapshot, last_lag in snapshots:
        try:
            packed.append(_packed(snapshot, last_lag, rank, directory if to_files else None, copy))
        except Exception as error:
            # Do not raise, because the other processes wait for this process.
            nothing = {"own_sums": [], "flats": None, "file": ["", ""]}
            packed.append({"waiting_time": snapshot.waiting_time, "last_lag": last_lag, **nothing})
            log.warning(
                "lightning_glassy: the snapshot of step %d could not be written beside the checkpoint (%s: %s): a run "
                "that is resumed from it will go on without it",
                snapshot.waiting_time,
                type(error).__name__,
                error,
            )
    return packed


def _packed(snapshot: Snapshot, last_lag: int, rank: int, directory: Path | None, copy: bool) -> dict[str, Any]:
    """Return a snapshot as tensors and plain values. With a directory, the weights go into a file there."""
    flats, file = None, None
    if directory is not None and snapshot.flats:
        if snapshot.stored is None or not is_stored(directory, snapshot.stored):
            snapshot.stored = write_snapshot(directory, snapshot.waiting_time, rank, snapshot.flats)
        file = list(snapshot.stored)
    elif snapshot.flats:
        flats = [flat.detach().cpu() for flat in snapshot.flats]
        flats = [flat.clone() for flat in flats] if copy else flats
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
    """Put the wanted snapshots of :func:`pack` into an empty bank.

    ``wanted`` takes the waiting time and the last lag of a snapshot. Every process must call this function. The number
    of processes and the part of the parameters in each process may have changed since :func:`pack`. Each process then
    collects the coordinates it holds from all the parts.

    Returns:
        The waiting times of the lost snapshots, with the reasons.
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
    """Return the flat weights that a process packed, one tensor per bucket."""
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
    # Copy the weights, because the file is mapped read-only and torch expects writable memory.
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
    """Fill a snapshot with the coordinates that this process holds, from the packed snapshots of all processes."""
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
    """Copy the coordinates that two stretches share, and return their number."""
    if theirs[1:] == mine[1:]:
        target.copy_(values)
        return mine.numel
    have, order = parameters.positions(theirs).sort()
    want = parameters.positions(mine)
    place = torch.searchsorted(have, want).clamp_(max=max(len(have) - 1, 0))
    found = have[place] == want if len(have) else torch.zeros(len(want), dtype=torch.bool, device="cpu")
    target[found.to(target.device)] = values[order[place[found]]].to(target.device)
    return int(found.sum())
