"""Measure the moments on CUDA: one kernel over all tensors and all due snapshots, and a small kernel that adds up.

The coordinates are cut into *chunks*. Each chunk is a run of coordinates within one tensor, and a table on the device
lists the chunks with their addresses. A *job* is one warp that takes every k-th chunk of a cell if the cell has k jobs.
It reads a row of 1024 coordinates (512 in float64) at a time. The row of weights stays in registers while the rows of
the snapshots are read, so that everything is read once. At a capture, the row is also written to the new snapshot. A
warp needs no barrier, and float32 sums never extend beyond a row.

Each job writes its sums in float64 to its own place in memory. The second kernel adds them in a fixed order, so that
the same weights give the same bits. Tensors of several dtypes share a launch, because the table holds the dtype of each
chunk.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton types the arguments of a kernel and has no type hints)
# ruff: noqa: SIM102
# (the outer condition is decided when the kernel is compiled, the inner one when it runs)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure.layout import Bucket, TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.record import MOMENTS

_LANES = tl.constexpr(32)  # most snapshots per launch: a column of float64 sums for each, one per thread
_BLOCK = tl.constexpr(512)  # number of jobs that the second kernel reads at once

# d^4 is summed in float32 over a row, as (2^52 d^2) d^2. The factor keeps |d| from 4e-14 to 9e4 within its range.
_D4_SCALE = tl.constexpr(2.0**52)

# Number of coordinates that a warp holds at once, and half of it for float64.
_ROW = tl.constexpr(1024)
_HALF_ROW = tl.constexpr(512)

# The kind of a chunk is an index into these dtypes. The kernel argument KINDS has a bit for each kind that occurs.
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# A row takes 128 registers per thread. Without this bound the compiler takes up to twice as many, and only half as many
# warps fit on a multiprocessor.
_WALK: dict[str, Any] = {"num_warps": 1} | ({} if torch.version.hip else {"maxnreg": 128})

# More warps than the largest GPU runs at once, and a few chunks for each warp if there are enough.
_JOBS = 4096
_CHUNKS = 4 * _JOBS

# An event may take 8 MiB. The rest is for the tables.
_SCRATCH_BYTES = 6 << 20


@triton.jit
def _add_row(
    own,
    pair,
    chunk,
    start,
    table,
    thresholds,
    n_bucket,
    n_snapshot,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    INDEXED: tl.constexpr,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    N_PAIR: tl.constexpr,
    ROW: tl.constexpr,
):
    """Add the sums over a row of a chunk: w^2 and w to ``own``, the sums of each pair to a column of ``pair``."""
    weights = tl.load(chunk).to(tl.pointer_type(DTYPE))
    offset, bucket = tl.load(chunk + 1) + start, tl.load(chunk + 6)
    i = tl.arange(0, ROW)
    inside = i < tl.load(chunk + 2).to(tl.int32) - start
    if WHOLE:  # the row is complete and aligned: 16 bytes per load, and no masks
        narrow = tl.load(tl.multiple_of(weights + start, 16) + i)
    elif INDEXED:
        places = tl.load(chunk + 4)
        listed = tl.load(places.to(tl.pointer_type(tl.int64)) + start + i, mask=inside & (places != 0), other=0)
        narrow = tl.load(weights + tl.where(places != 0, listed, start + i), mask=inside, other=0.0)
    else:
        narrow = tl.load(weights + start + i, mask=inside, other=0.0)
    if CAPTURE:
        copy = tl.load(table + 2 * n_bucket * n_snapshot + bucket).to(tl.pointer_type(DTYPE)) + offset
        if WHOLE:
            tl.store(tl.multiple_of(copy, 16) + i, narrow)
        else:
            tl.store(copy + i, narrow, mask=inside)
    w = narrow.to(WIDE)
    if OWN:
        own += tl.where(tl.arange(0, 2) == 0, tl.sum(w * w).to(tl.float64), tl.sum(w).to(tl.float64))
    line, lane = tl.arange(0, pair.shape[0])[:, None], tl.arange(0, _LANES)[None, :]
    for j in range(n_snapshot):
        flat = tl.load(table + bucket * n_snapshot + j).to(tl.pointer_type(DTYPE)) + offset
        s = tl.load(tl.multiple_of(flat, 16) + i) if WHOLE else tl.load(flat + i, mask=inside, other=0.0)
        d = w - s.to(WIDE)
        d2 = d * d
        pair = tl.where((line == 0) & (lane == j), pair + tl.sum(d2).to(tl.float64), pair)
        if N_PAIR > 1:
            d4 = tl.sum(d2 * _D4_SCALE * d2).to(tl.float64)
            pair = tl.where((line == 1) & (lane == j), pair + d4, pair)
            for k in tl.static_range(N_PAIR - 2):
                close = d2 <= tl.load(thresholds + k).to(WIDE)
                if not WHOLE:
                    close = close & inside
                # Count in float32. A comparison gives a float32 in one instruction, and an integer in two.
                count = tl.sum(tl.where(close, 1.0, 0.0)).to(tl.float64)
                pair = tl.where((line == 2 + k) & (lane == j), pair + count, pair)
    return own, pair


@triton.jit
def _add_chunk(
    own,
    pair,
    chunk,
    table,
    thresholds,
    n_bucket,
    n_snapshot,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    INDEXED: tl.constexpr,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    N_PAIR: tl.constexpr,
    ROW: tl.constexpr,
):
    """Add the sums over a chunk, row by row. Rows that can be read 16 bytes at a time come first."""
    length, aligned = tl.load(chunk + 2).to(tl.int32), tl.load(chunk + 3).to(tl.int32)
    for start in range(0, aligned, ROW):
        own, pair = _add_row(
            own, pair, chunk, start, table, thresholds, n_bucket, n_snapshot,
            DTYPE, WIDE, True, False, OWN, CAPTURE, N_PAIR, ROW,
        )  # fmt: skip
    for start in range(aligned, length, ROW):
        own, pair = _add_row(
            own, pair, chunk, start, table, thresholds, n_bucket, n_snapshot,
            DTYPE, WIDE, False, INDEXED, OWN, CAPTURE, N_PAIR, ROW,
        )  # fmt: skip
    return own, pair


@triton.jit(do_not_specialize=["n_bucket", "n_snapshot"])
def _sum_jobs(
    # [n_chunk, 7] int64: address, first coordinate in the bucket, length, length of the aligned rows, address of the
    # places, kind, bucket
    chunks,
    jobs,  # [n_job, 3] int64: first chunk, end, step
    # int64 addresses: flat weights [n_bucket, n_snapshot] and own sums [n_bucket, n_snapshot] of the due snapshots,
    # then flat weights [n_bucket] and own sums [n_bucket] of the new snapshot
    table,
    thresholds,  # [at least 1] float64, eps^2
    partial,  # [2 + N_PAIR * n_snapshot, n_job] float64, written
    n_bucket,
    n_snapshot,
    KINDS: tl.constexpr,  # the dtypes that occur, one bit each
    INDEXED: tl.constexpr,  # whether any chunk has places
    OWN: tl.constexpr,  # whether to sum w^2 and w
    CAPTURE: tl.constexpr,
    N_PAIR: tl.constexpr,  # number of sums for each snapshot
    N_LINE: tl.constexpr,  # N_PAIR rounded up to a power of two
):
    """Write the sums of each job over its chunks."""
    job, n_job = tl.program_id(0), tl.num_programs(0)
    own, pair = tl.zeros((2,), tl.float64), tl.zeros((N_LINE, _LANES), tl.float64)
    first, end, step = tl.load(jobs + 3 * job), tl.load(jobs + 3 * job + 1), tl.load(jobs + 3 * job + 2)
    for index in range(first, end, step):
        chunk = chunks + 7 * index
        kind = tl.load(chunk + 5)
        # Only the dtypes that occur have a branch.
        if KINDS & 1 != 0:
            if kind == 0:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot,
                    tl.float32, tl.float32, INDEXED, OWN, CAPTURE, N_PAIR, _ROW,
                )  # fmt: skip
        if KINDS & 2 != 0:
            if kind == 1:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot,
                    tl.float64, tl.float64, INDEXED, OWN, CAPTURE, N_PAIR, _HALF_ROW,
                )  # fmt: skip
        if KINDS & 4 != 0:
            if kind == 2:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot,
                    tl.bfloat16, tl.float32, INDEXED, OWN, CAPTURE, N_PAIR, _ROW,
                )  # fmt: skip
        if KINDS & 8 != 0:
            if kind == 3:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot,
                    tl.float16, tl.float32, INDEXED, OWN, CAPTURE, N_PAIR, _ROW,
                )  # fmt: skip
    if OWN:
        tl.store(partial + tl.arange(0, 2) * n_job + job, own)
    line, lane = tl.arange(0, N_LINE)[:, None], tl.arange(0, _LANES)[None, :]
    target = partial + (2 + line * n_snapshot + lane) * n_job + job
    tl.store(target, pair, mask=(line < N_PAIR) & (lane < n_snapshot))


@triton.jit(do_not_specialize=["n_bucket", "n_cell", "n_snapshot", "n_job"])
def _add_jobs(
    partial,  # written by `_sum_jobs`
    cells,  # [n_bucket * n_cell + 1] int64: the first job of each cell of each bucket
    table,  # as for `_sum_jobs`
    out,  # [n_bucket, n_cell, n_snapshot, 7 + number of thresholds] float64, written
    n_bucket,
    n_cell,
    n_snapshot,
    n_job,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    MEASURE: tl.constexpr,  # whether there are snapshots
    N_THRESHOLD: tl.constexpr,
    N_PAIR: tl.constexpr,
    N_LINE: tl.constexpr,  # 2 + N_PAIR rounded up to a power of two
):
    """Add up the jobs of one cell for one snapshot, and write the moments in the order of ``MOMENTS``."""
    index, snapshot = tl.program_id(0), tl.program_id(1)
    bucket, cell = index // n_cell, index % n_cell
    first, end = tl.load(cells + index), tl.load(cells + index + 1)
    line = tl.arange(0, N_LINE)
    taken = ((line < 2) & OWN) | ((line >= 2) & (line < 2 + N_PAIR) & MEASURE)
    source = partial + tl.where(line < 2, line, 2 + (line - 2) * n_snapshot + snapshot)[:, None] * n_job
    total = tl.zeros((N_LINE, _BLOCK), tl.float64)
    for start in range(first, end, _BLOCK):
        job = start + tl.arange(0, _BLOCK)[None, :]
        total += tl.load(source + job, mask=taken[:, None] & (job < end), other=0.0)
    sums = tl.sum(total, axis=1)
    if CAPTURE:
        of_w = tl.load(table + n_bucket * (2 * n_snapshot + 1) + bucket).to(tl.pointer_type(tl.float64)) + 2 * cell
        tl.store(of_w + line, sums, mask=(line < 2) & (snapshot == 0))
    if MEASURE:
        of_s = tl.load(table + (n_bucket + bucket) * n_snapshot + snapshot).to(tl.pointer_type(tl.float64)) + 2 * cell
        s2, s = tl.load(of_s), tl.load(of_s + 1)
        moments = out + (index * n_snapshot + snapshot) * (7 + N_THRESHOLD)
        tl.store(moments + 4, s2)
        tl.store(moments + 6, s)
        if N_PAIR == 1:
            tl.store(moments + line - 2, sums, mask=line == 2)
            for k in tl.static_range(7 + N_THRESHOLD):
                if k != 0 and k != 4 and k != 6:
                    tl.store(moments + k, float("nan"))
        else:
            # Put w^2, w, d^2, d^4 and the counts into the order of MOMENTS.
            column = tl.where(line == 0, 3, tl.where(line == 1, 5, tl.where(line < 4, line - 2, line + 3)))
            tl.store(moments + column, tl.where(line == 3, sums / _D4_SCALE, sums), mask=taken)
            # ws = (w^2 + s^2 - d^2)/2 is safe in this direction, see EagerMoments.
            w2, d2 = tl.sum(tl.where(line == 0, sums, 0.0)), tl.sum(tl.where(line == 2, sums, 0.0))
            tl.store(moments + 2, (w2 + s2 - d2) / 2)


class TritonMoments:
    """Moments of one event by our own kernels. The contract is in :mod:`lightning_glassy.measure.moments`.

    Two launches on each GPU with weights measure up to 32 due snapshots and a capture, for any number of tensors. With
    many thresholds or cells, the scratch memory holds fewer snapshots per launch.

    Args:
        parameters: the tracked coordinates, on CUDA (elsewhere only in Triton's interpreter).
        overlap_thresholds: the thresholds eps for which coordinates with ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone. The sums of the snapshot, s^2 and s, are returned too. All other
            moments are NaN.

    Raises:
        TypeError: a dtype has no kernel.
    """

    streams: Mapping[torch.device, torch.cuda.Stream] = {}

    def __init__(
        self, parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
    ) -> None:
        assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")  # the kernels rely on this order
        self._n_threshold = len(overlap_thresholds)
        self._n_pair = 1 if msd_only else 2 + self._n_threshold
        self._n_bucket = len(parameters.buckets)
        by_device: dict[torch.device, list[int]] = {}
        for index, bucket in enumerate(parameters.buckets):
            by_device.setdefault(bucket.device, []).append(index)
        self._plans = [
            _Plan(device, members, [parameters.buckets[i] for i in members], parameters.n_cells, overlap_thresholds)
            for device, members in by_device.items()
        ]
        n_job = max(len(plan.jobs) for plan in self._plans)
        self._limit = max(1, min(_LANES.value, (_SCRATCH_BYTES // 8 // n_job - 2) // self._n_pair))
        # Take the memory now and keep it. At an event, the training may have left no free memory.
        n = n_job * (2 + self._n_pair * self._limit)
        self._scratch = [torch.empty(n, dtype=torch.float64, device=plan.device) for plan in self._plans]

    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """Return the sums of current weights against each snapshot, ``[n_cell, n_snapshot, n_moment]`` per bucket."""
        found: dict[int, Tensor] = {}
        for plan, scratch in zip(self._plans, self._scratch, strict=True):
            starts = range(0, max(len(snapshots), 1), self._limit)
            parts = [
                self._launch(plan, scratch, snapshots[k : k + self._limit], None if k else capture) for k in starts
            ]
            sums = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            found |= dict(zip(plan.members, sums.unbind(), strict=True))
        return [found[index] for index in range(self._n_bucket)]

    def _launch(self, plan: _Plan, scratch: Tensor, due: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        """Launch both kernels and return the sums, ``[n_bucket of the device, n_cell, n_snapshot, n_moment]``."""
        n, n_bucket, n_cell = len(due), len(plan.members), plan.n_cells
        own, n_pair = capture is not None or self._n_pair > 1, self._n_pair
        addresses = [snapshot.flats[i].data_ptr() for i in plan.members for snapshot in due]
        addresses += [snapshot.own_sums[i].data_ptr() for i in plan.members for snapshot in due]
        if capture is not None:
            addresses += [capture.flats[i].data_ptr() for i in plan.members]
            addresses += [capture.own_sums[i].data_ptr() for i in plan.members]
        with _on(plan.device):
            plan.refresh()
            shape = (n_bucket, n_cell, n, len(MOMENTS) + self._n_threshold)
            out = torch.empty(shape, dtype=torch.float64, device=plan.device)
            table = _send(addresses, plan.device)
            _sum_jobs[(len(plan.jobs),)](
                plan.chunks, plan.jobs, table, plan.thresholds, scratch, n_bucket, n,
                plan.kinds, plan.indexed, own, capture is not None, n_pair, triton.next_power_of_2(n_pair),
                **_WALK,
            )  # fmt: skip
            _add_jobs[(n_bucket * n_cell, max(n, 1))](
                scratch, plan.cells, table, out, n_bucket, n_cell, n, len(plan.jobs),
                own, capture is not None, n > 0, self._n_threshold, n_pair, triton.next_power_of_2(2 + n_pair),
                num_warps=4,
            )  # fmt: skip
        return out


class _Plan:
    """The tables of one device: the chunks with their addresses, the chunks of each job, the jobs of each cell."""

    chunks: Tensor
    jobs: Tensor
    cells: Tensor
    indexed: bool

    def __init__(
        self,
        device: torch.device,
        members: list[int],
        buckets: list[Bucket],
        n_cells: int,
        thresholds: Sequence[float],
    ) -> None:
        for bucket in buckets:
            if bucket.dtype not in _DTYPES:
                name = str(bucket.dtype).removeprefix("torch.")
                raise TypeError(f"there is no kernel for weights of dtype {name}")
        self.device, self.members, self.n_cells = device, members, n_cells
        self._buckets = buckets
        self.kinds = sum(1 << _DTYPES.index(bucket.dtype) for bucket in buckets)
        # Choose the rows per chunk so that there are about _CHUNKS chunks in all.
        rows = sum(-(-bucket.numel // _row(bucket)) for bucket in buckets)
        self._rows = -(-rows // _CHUNKS)
        squares = [eps**2 for eps in thresholds] or [0.0]
        self.thresholds = torch.tensor(squares, dtype=torch.float64).to(device)
        self._layout: object = None
        self.refresh()

    def refresh(self) -> None:
        """Rebuild the tables if a tensor has moved in memory.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at first.
        """
        layout = [bucket.layout() for bucket in self._buckets]
        if layout == self._layout:
            return
        parts, of_cell, places = [], [], []
        for number, bucket in enumerate(self._buckets):
            width, row = bucket.dtype.itemsize, _row(bucket)
            for extent in bucket.extents():
                begin = np.arange(0, extent.stop - extent.start, self._rows * row)
                part = np.empty((len(begin), 7), np.int64)
                part[:, 0] = extent.address + (0 if extent.places is not None else width * begin)
                part[:, 1] = extent.start + begin
                part[:, 2] = np.minimum(self._rows * row, extent.stop - extent.start - begin)
                vector = extent.places is None and extent.address % 16 == 0 and extent.start * width % 16 == 0
                part[:, 3] = part[:, 2] // row * row if vector else 0
                part[:, 4] = 0 if extent.places is None else extent.places.data_ptr() + 8 * begin
                part[:, 5], part[:, 6] = _DTYPES.index(bucket.dtype), number
                parts.append(part)
                of_cell.append(np.full(len(begin), number * self.n_cells + extent.cell))
                places += [] if extent.places is None else [extent.places]
        # Keep these tensors alive, because the kernel has only their addresses.
        self._places, self.indexed = places, bool(places)
        cell = np.concatenate(of_cell)
        order = np.argsort(cell, kind="stable")
        jobs, cells = _share_out(np.bincount(cell, minlength=len(self._buckets) * self.n_cells))
        self.chunks, self.jobs = _send(np.concatenate(parts)[order], self.device), _send(jobs, self.device)
        self.cells = _send(cells, self.device)
        self._layout = layout


def _row(bucket: Bucket) -> int:
    return int(_HALF_ROW.value if bucket.dtype == torch.float64 else _ROW.value)


def _share_out(n_chunks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Share out the chunks of each cell among jobs.

    The jobs of a cell take its chunks in turn, so that chunks that are read at the same time lie together in memory.

    Args:
        n_chunks: number of chunks of each cell, ``[n_cell]``.

    Returns:
        The jobs ``[n_job, 3]`` (first chunk, end, step), and the first job of each cell ``[n_cell + 1]``.
    """
    n_jobs = np.minimum(n_chunks, -(-n_chunks * _JOBS // n_chunks.sum()))
    ends = np.cumsum(n_chunks)
    jobs = [
        np.stack([np.arange(end - n, end - n + k), np.full(k, end), np.full(k, k)], axis=1)
        for n, k, end in zip(n_chunks, n_jobs, ends, strict=True)
    ]
    return np.concatenate(jobs), np.concatenate([[0], np.cumsum(n_jobs)])


def _send(values: Any, device: torch.device) -> Tensor:
    """Send integers to the device, after the work that is queued there.

    Nothing waits for the copy. torch keeps the source alive until the copy is done.
    """
    host = torch.as_tensor(values, dtype=torch.int64, device="cpu")
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _on(device: torch.device) -> AbstractContextManager[Any]:
    # Triton launches on the current device, even if its arguments are on another device.
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
