"""What a tracker needs to go on in another process: its snapshots as plain values, in a checkpoint or beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_glassy.moments import EagerMoments
from lightning_glassy.parameters import Selected, Stretch, TrackedParameters
from lightning_glassy.shards import Processes
from lightning_glassy.snapshot_files import SnapshotFileError, Stored, read_snapshot, write_snapshot
from lightning_glassy.snapshots import Snapshot, SnapshotBank

log = logging.getLogger(__name__)

INLINE_BYTES = 16 << 20
"""Snapshots that take more than this go into files of their own, so that they do not bloat every checkpoint."""


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


def pack(
    parameters: TrackedParameters,
    snapshots: Sequence[Snapshot],
    directory: Path | None,
    processes: Processes | None,
) -> list[dict[str, Any]]:
    """The snapshots of each process as tensors and plain values, by rank. Every process calls it.

    Large ones, and those of several processes, go into files in ``directory``. One that cannot be written is left out,
    with a warning.
    """
    several = processes is not None and processes.size > 1
    n_bytes = sum(flat.nbytes for snapshot in snapshots for flat in snapshot.flats)
    to_files = directory is not None and (several or n_bytes > INLINE_BYTES)
    packed = []
    for snapshot in snapshots:
        flats, file = None, None
        if to_files and snapshot.flats:
            assert directory is not None
            try:
                rank = 0 if processes is None else processes.rank
                file = list(write_snapshot(directory, snapshot.waiting_time, rank, snapshot.flats))
            except OSError as error:
                file = ["", ""]
                log.warning(
                    "lightning_glassy: the snapshot of step %d could not be written beside the checkpoint (%s: %s): a "
                    "run that is resumed from it will go on without it",
                    snapshot.waiting_time,
                    type(error).__name__,
                    error,
                )
        elif snapshot.flats:
            flats = [flat.detach().cpu().clone() for flat in snapshot.flats]
        packed.append(
            {
                "waiting_time": snapshot.waiting_time,
                "last_lag": snapshot.last_lag,
                "own_sums": [sums.cpu().clone() for sums in snapshot.own_sums],
                "flats": flats,
                "file": file,
            }
        )
    layout = [[_plain(stretch) for stretch in bucket] for bucket in parameters.layout()]
    dtypes = [str(bucket.dtype) for bucket in parameters.buckets]
    part = {"layout": layout, "dtypes": dtypes, "snapshots": packed}
    return [part] if processes is None else processes.gather(part)


def unpack(
    parts: Sequence[Mapping[str, Any]],
    parameters: TrackedParameters,
    bank: SnapshotBank,
    directories: Sequence[Path],
    processes: Processes | None,
) -> dict[int, str]:
    """Put the snapshots of :func:`pack` into an empty bank. Every process calls it.

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
        snapshot = bank.add(first["waiting_time"])
        snapshot.last_lag = first["last_lag"]
        failure = None
        try:
            if same:
                packed = parts[rank]["snapshots"][k]
                _fill(snapshot.flats, _contents(parts[rank], packed, directories))
                for sums, saved in zip(snapshot.own_sums, packed["own_sums"], strict=True):
                    sums.copy_(saved)
            else:
                _gather(snapshot, parts, k, parameters, directories)
                _sum(snapshot, parameters)
        except (SnapshotFileError, KeyError, TypeError, ValueError, RuntimeError) as error:
            failure = f"{type(error).__name__}: {error}"
        failures = [failure] if processes is None else processes.gather(failure)
        if any(failures):
            lost[snapshot.waiting_time] = next(text for text in failures if text)
            bank.release(snapshot.waiting_time)
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
        sum(numel for *_, numel in bucket) * dtype.itemsize
        for bucket, dtype in zip(part["layout"], dtypes, strict=True)
    ]
    if not packed["file"][0]:
        raise SnapshotFileError("it could not be written when the checkpoint was saved")
    stored = read_snapshot(directories, Stored(*packed["file"]), sizes)
    # A copy of one bucket at a time: torch wants memory that it may write to.
    return [torch.from_numpy(np.array(content)).view(dtype) for content, dtype in zip(stored, dtypes, strict=True)]


def _fill(flats: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    for flat, content in zip(flats, contents, strict=True):
        if flat.shape != content.shape or flat.dtype != content.dtype:
            raise ValueError(
                f"{tuple(content.shape)} of {content.dtype} where {tuple(flat.shape)} of {flat.dtype} are due"
            )
        flat.copy_(content)


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


def _sum(snapshot: Snapshot, parameters: TrackedParameters) -> None:
    """The sums of a snapshot alone, as they are made when it is captured."""
    there = parameters.over(snapshot.flats)
    copy = SnapshotBank(there).add(snapshot.waiting_time)
    EagerMoments(there)((), copy)
    for sums, own in zip(snapshot.own_sums, copy.own_sums, strict=True):
        sums.copy_(own)
