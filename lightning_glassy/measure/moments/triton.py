"""Measure the moments on CUDA: one kernel over all tensors and all due snapshots, and a small kernel that adds up.

The coordinates are cut into *chunks*. Each chunk is a run of coordinates within one tensor, and a table on the device
lists the chunks with their addresses. A *job* is one warp that takes every k-th chunk of a cell if the cell has k jobs.
It reads a row of 1024 coordinates (256 in float64) at a time. The row of weights stays in registers while the rows of
the snapshots are read, so that everything is read once. At a capture, the row is also written to the new snapshot. A
warp needs no barrier, and float32 sums never extend beyond a row. There are as many jobs as warps that the GPU runs at
once.

Each job writes its sums in float64 to its own place in memory. The second kernel adds them in a fixed order, so that
the same weights give the same bits. Tensors of several dtypes share a launch, because the table holds the dtype of each
chunk.

All addresses are kept on the device. The host sends only numbers: the rows of the due snapshots in a table of
addresses. Nothing is copied to the device at an event, unless tensors or snapshots lie elsewhere than before.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton types the arguments of a kernel and has no type hints)
# ruff: noqa: SIM102, SIM300
# (the outer condition is decided when the kernel is compiled, the inner one when it runs, and DTYPE is an argument)

from __future__ import annotations

import struct
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
_BLOCK = tl.constexpr(1024)  # number of jobs that the second kernel reads at once

# Differences are taken between weights times 2^13. The square of d^2 then stays within the range of float32, summed
# over a row, for |d| from 4e-14 to 9e4. A power of two costs no rounding.
_SCALE = tl.constexpr(2.0**13)

# Number of coordinates that a warp holds at once, and the number for float64.
_ROW = tl.constexpr(1024)
_SHORT_ROW = tl.constexpr(256)

# The kind of a chunk is an index into these dtypes. The kernel argument KINDS has a bit for each kind that occurs.
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Registers per thread of the first kernel. Without this bound, the compiler takes up to twice as many, and only half as
# many warps fit on a multiprocessor. With 96, it would keep some values in memory.
_REGISTERS = 128
_WALK: dict[str, Any] = {"num_warps": 1} | ({} if torch.version.hip else {"maxnreg": _REGISTERS})

# Chunks per job, if there are enough rows. All jobs then end at about the same time.
_CHUNKS_PER_JOB = 8

# Number of rows of the table of addresses. The host sends a row number as one byte.
_SLOTS = 256
_ROWS = struct.Struct("<4q")

# A compiled kernel is launched without the search for it, in a third of the time, if it takes the same arguments as its
# source. This has been tried with Triton 3.6 and 3.8. Earlier ones leave out the constants.
_COMPILED_TAKES_ALL = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)

# An event may take 8 MiB. The rest is for the tables.
_SCRATCH_BYTES = 6 << 20


@triton.jit
def _address(table, n_column, column, j, due0, due1, due2, due3):
    """Return an address of the j-th due snapshot. Byte j of the four numbers is its row in the table."""
    eight = tl.where(j < 16, tl.where(j < 8, due0, due1), tl.where(j < 24, due2, due3))
    return tl.load(table + ((eight >> (j % 8 * 8)) & 255) * n_column + column)


@triton.jit
def _fetch(row, N_BYTES: tl.constexpr):
    """Start to bring a row from memory into the second-level cache, 32 bytes per request. It takes no registers."""
    sectors = row.to(tl.int64) + 32 * tl.arange(0, N_BYTES // 32)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [sectors], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _widen(narrow, DTYPE: tl.constexpr, WIDE: tl.constexpr, PTX: tl.constexpr):
    """Convert to the dtype of the arithmetic."""
    if PTX and DTYPE == tl.bfloat16:  # one instruction for each number, instead of one and a half
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $2, 16; mov.b32 $0, t; and.b32 t, $2, 0xffff0000; mov.b32 $1, t; }",
            "=f,=f,r", [narrow], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return narrow.to(WIDE)


@triton.jit
def _count(d2, limit, WIDE: tl.constexpr, PTX: tl.constexpr):
    """Return the number of elements that are at most ``limit``."""
    if PTX and WIDE == tl.float32:  # 1.0 or 0.0 in one instruction. The compiler makes three of a comparison.
        close = tl.inline_asm_elementwise(
            "set.le.f32.f32 $0, $1, $2;", "=f,f,f", [d2, limit], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.sum(close)
    else:
        return tl.sum((d2 <= limit).to(tl.int32))


@triton.jit
def _add_row(
    own,
    pair,
    chunk,
    start,
    length,
    table,
    thresholds,
    n_bucket,
    n_snapshot,
    due0,
    due1,
    due2,
    due3,
    new,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    VECTOR: tl.constexpr,
    INDEXED: tl.constexpr,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    PTX: tl.constexpr,
    N_PAIR: tl.constexpr,
    ROW: tl.constexpr,
):
    """Add the sums over a row of a chunk: w^2 and w to ``own``, the sums of each pair to a column of ``pair``."""
    WIDTH: tl.constexpr = DTYPE.primitive_bitwidth // 8
    weights, bucket = tl.load(chunk).to(tl.pointer_type(DTYPE)) + start, tl.load(chunk + 6)
    offset = (tl.load(chunk + 1) + start) * WIDTH  # in a flat copy, in bytes
    n_column = 2 * n_bucket
    i = tl.arange(0, ROW)
    n = ROW if WHOLE else length - start
    if VECTOR:  # 16 bytes per load
        weights = tl.multiple_of(weights, 16)
        n = n if WHOLE else tl.multiple_of(n, 16 // WIDTH)
    inside = i < n
    ahead = _address(table, n_column, bucket, 0, due0, due1, due2, due3) + offset
    if WHOLE and PTX:
        if n_snapshot > 0:
            _fetch(ahead, ROW * WIDTH)
    if INDEXED:
        places = tl.load(chunk + 4)
        listed = tl.load(places.to(tl.pointer_type(tl.int64)) + start + i, mask=inside & (places != 0), other=0)
        narrow = tl.load(weights + tl.where(places != 0, listed - start, i), mask=inside, other=0.0)
    elif WHOLE:
        narrow = tl.load(weights + i)
    else:
        narrow = tl.load(weights + i, mask=inside, other=0.0)
    if CAPTURE:
        copy = (tl.load(table + new * n_column + bucket) + offset).to(tl.pointer_type(DTYPE))
        if VECTOR:
            copy = tl.multiple_of(copy, 16)
        if WHOLE:
            tl.store(copy + i, narrow, eviction_policy="evict_first")
        else:
            tl.store(copy + i, narrow, mask=inside, eviction_policy="evict_first")
    w = _widen(narrow, DTYPE, WIDE, PTX)
    if OWN:
        own += tl.where(tl.arange(0, 2) == 0, tl.sum(w * w).to(tl.float64), tl.sum(w).to(tl.float64))
    w *= _SCALE
    line, lane = tl.arange(0, pair.shape[0])[:, None], tl.arange(0, _LANES)[None, :]
    for j in range(n_snapshot):
        flat = ahead.to(tl.pointer_type(DTYPE))
        after = tl.minimum(j + 1, n_snapshot - 1)
        ahead = _address(table, n_column, bucket, after, due0, due1, due2, due3) + offset
        if VECTOR:
            flat = tl.multiple_of(flat, 16)
        # The snapshots leave the caches first. The training needs the weights again.
        if WHOLE:
            if PTX:
                _fetch(ahead, ROW * WIDTH)
            s = tl.load(flat + i, eviction_policy="evict_first")
        else:
            s = tl.load(flat + i, mask=inside, other=0.0, eviction_policy="evict_first")
        d = w - _widen(s, DTYPE, WIDE, PTX) * _SCALE
        d2 = d * d
        pair = tl.where((line == 0) & (lane == j), pair + tl.sum(d2).to(tl.float64), pair)
        if N_PAIR > 1:
            pair = tl.where((line == 1) & (lane == j), pair + tl.sum(d2 * d2).to(tl.float64), pair)
            for k in tl.static_range(N_PAIR - 2):
                # Beyond the end, d is 0 and is counted.
                count = _count(d2, tl.load(thresholds + k).to(WIDE), WIDE, PTX).to(tl.float64) - (ROW - n)
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
    due0,
    due1,
    due2,
    due3,
    new,
    DTYPE: tl.constexpr,
    WIDE: tl.constexpr,
    INDEXED: tl.constexpr,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    PTX: tl.constexpr,
    N_PAIR: tl.constexpr,
    ROW: tl.constexpr,
):
    """Add the sums over a chunk: whole rows, then a shorter row, both read 16 bytes at a time if possible."""
    length, vector = tl.load(chunk + 2).to(tl.int32), tl.load(chunk + 3).to(tl.int32)
    whole = vector // ROW * ROW
    for start in range(0, whole, ROW):
        own, pair = _add_row(
            own, pair, chunk, start, vector, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
            DTYPE, WIDE, True, True, False, OWN, CAPTURE, PTX, N_PAIR, ROW,
        )  # fmt: skip
    if vector > whole:
        own, pair = _add_row(
            own, pair, chunk, whole, vector, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
            DTYPE, WIDE, False, True, False, OWN, CAPTURE, PTX, N_PAIR, ROW,
        )  # fmt: skip
    for start in range(vector, length, ROW):
        own, pair = _add_row(
            own, pair, chunk, start, length, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
            DTYPE, WIDE, False, False, INDEXED, OWN, CAPTURE, PTX, N_PAIR, ROW,
        )  # fmt: skip
    return own, pair


@triton.jit(do_not_specialize=["n_bucket", "n_snapshot", "due0", "due1", "due2", "due3", "new"])
def _sum_jobs(
    # [n_chunk, 7] int64: address, first coordinate in the bucket, length, how many of these can be read 16 bytes at a
    # time, address of the places, kind, bucket
    chunks,
    jobs,  # [n_job, 3] int64: first chunk, end, step
    # [_SLOTS, 2 * n_bucket] int64: addresses of the flat weights and of the own sums of each snapshot
    table,
    thresholds,  # [at least 1] float64, (2^13 eps)^2
    partial,  # [2 + N_PAIR * n_snapshot, n_job] float64, written
    n_bucket,
    n_snapshot,
    due0: tl.int64,  # the rows of the due snapshots in the table, one byte each
    due1: tl.int64,
    due2: tl.int64,
    due3: tl.int64,
    new,  # the row of the new snapshot
    KINDS: tl.constexpr,  # the dtypes that occur, one bit each
    INDEXED: tl.constexpr,  # whether any chunk has places
    OWN: tl.constexpr,  # whether to sum w^2 and w
    CAPTURE: tl.constexpr,
    PTX: tl.constexpr,  # whether the device understands PTX
    DEPENDENT: tl.constexpr,  # whether the next kernel may be launched early
    N_PAIR: tl.constexpr,  # number of sums for each snapshot
    N_LINE: tl.constexpr,  # N_PAIR rounded up to a power of two
):
    """Write the sums of each job over its chunks."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
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
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
                    tl.float32, tl.float32, INDEXED, OWN, CAPTURE, PTX, N_PAIR, _ROW,
                )  # fmt: skip
        if KINDS & 2 != 0:
            if kind == 1:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
                    tl.float64, tl.float64, INDEXED, OWN, CAPTURE, PTX, N_PAIR, _SHORT_ROW,
                )  # fmt: skip
        if KINDS & 4 != 0:
            if kind == 2:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
                    tl.bfloat16, tl.float32, INDEXED, OWN, CAPTURE, PTX, N_PAIR, _ROW,
                )  # fmt: skip
        if KINDS & 8 != 0:
            if kind == 3:
                own, pair = _add_chunk(
                    own, pair, chunk, table, thresholds, n_bucket, n_snapshot, due0, due1, due2, due3, new,
                    tl.float16, tl.float32, INDEXED, OWN, CAPTURE, PTX, N_PAIR, _ROW,
                )  # fmt: skip
    if OWN:
        tl.store(partial + tl.arange(0, 2) * n_job + job, own)
    line, lane = tl.arange(0, N_LINE)[:, None], tl.arange(0, _LANES)[None, :]
    target = partial + (2 + line * n_snapshot + lane) * n_job + job
    tl.store(target, pair, mask=(line < N_PAIR) & (lane < n_snapshot))


@triton.jit(do_not_specialize=["n_bucket", "n_cell", "n_snapshot", "n_job", "due0", "due1", "due2", "due3", "new"])
def _add_jobs(
    partial,  # written by `_sum_jobs`
    cells,  # [n_bucket * n_cell + 1] int64: the first job of each cell of each bucket
    table,  # as for `_sum_jobs`
    out,  # [n_bucket, n_cell, n_snapshot, 7 + number of thresholds] float64, written
    n_bucket,
    n_cell,
    n_snapshot,
    n_job,
    due0: tl.int64,
    due1: tl.int64,
    due2: tl.int64,
    due3: tl.int64,
    new,
    OWN: tl.constexpr,
    CAPTURE: tl.constexpr,
    MEASURE: tl.constexpr,  # whether there are snapshots
    DEPENDENT: tl.constexpr,  # whether this kernel may be launched before `_sum_jobs` has finished
    N_THRESHOLD: tl.constexpr,
    N_PAIR: tl.constexpr,
    N_LINE: tl.constexpr,  # 2 + N_PAIR rounded up to a power of two
):
    """Add up the jobs of one cell for one snapshot, and write the moments in the order of ``MOMENTS``."""
    index, snapshot = tl.program_id(0), tl.program_id(1)
    bucket, cell = index // n_cell, index % n_cell
    n_column, column = 2 * n_bucket, n_bucket + bucket
    first, end = tl.load(cells + index), tl.load(cells + index + 1)
    line = tl.arange(0, N_LINE)
    taken = ((line < 2) & OWN) | ((line >= 2) & (line < 2 + N_PAIR) & MEASURE)
    source = partial + tl.where(line < 2, line, 2 + (line - 2) * n_snapshot + snapshot)[:, None] * n_job
    total = tl.zeros((N_LINE, _BLOCK), tl.float64)
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
    for start in range(first, end, _BLOCK):
        job = start + tl.arange(0, _BLOCK)[None, :]
        total += tl.load(source + job, mask=taken[:, None] & (job < end), other=0.0)
    sums = tl.sum(total, axis=1)
    sums = tl.where(line == 2, sums / (_SCALE * _SCALE), sums)
    sums = tl.where(line == 3, sums / (_SCALE * _SCALE * _SCALE * _SCALE), sums)
    if CAPTURE:
        of_w = tl.load(table + new * n_column + column).to(tl.pointer_type(tl.float64)) + 2 * cell
        tl.store(of_w + line, sums, mask=(line < 2) & (snapshot == 0))
    if MEASURE:
        of_s = _address(table, n_column, column, snapshot, due0, due1, due2, due3)
        of_s = of_s.to(tl.pointer_type(tl.float64)) + 2 * cell
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
            tl.store(moments + column, sums, mask=taken)
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
        self._n_line = triton.next_power_of_2(self._n_pair), triton.next_power_of_2(2 + self._n_pair)
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
            with _on(plan.device):
                plan.refresh()
                if len(snapshots) <= self._limit:
                    sums = self._launch(plan, scratch, snapshots, capture)
                else:
                    parts = [
                        self._launch(plan, scratch, snapshots[k : k + self._limit], None if k else capture)
                        for k in range(0, len(snapshots), self._limit)
                    ]
                    sums = torch.cat(parts, dim=2)
            found |= zip(plan.members, sums.unbind(), strict=True)
        return [found[index] for index in range(self._n_bucket)]

    def _launch(self, plan: _Plan, scratch: Tensor, due: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        """Launch both kernels and return the sums, ``[n_bucket of the device, n_cell, n_snapshot, n_moment]``."""
        n, n_bucket, n_cell, n_job = len(due), len(plan.members), plan.n_cells, len(plan.jobs)
        captures, measures, n_pair = capture is not None, n > 0, self._n_pair
        own = captures or n_pair > 1
        rows = plan.snapshots.rows(due if capture is None else [*due, capture])
        new = rows.pop() if captures else 0
        numbers = *_ROWS.unpack(bytes(rows).ljust(_ROWS.size, b"\0")), new
        table = plan.snapshots.addresses
        shape = (n_bucket, n_cell, n, len(MOMENTS) + self._n_threshold)
        out = torch.empty(shape, dtype=torch.float64, device=plan.device)
        first = (
            plan.chunks, plan.jobs, table, plan.thresholds, scratch, n_bucket, n, *numbers,
            plan.kinds, plan.indexed, own, captures, plan.ptx, plan.dependent, n_pair, self._n_line[0],
        )  # fmt: skip
        second = (
            scratch, plan.cells, table, out, n_bucket, n_cell, n, n_job, *numbers,
            own, captures, measures, plan.dependent, self._n_threshold, n_pair, self._n_line[1],
        )  # fmt: skip
        grids = (n_job, 1, 1), (n_bucket * n_cell, max(n, 1), 1)
        compiled = plan.compiled.get((captures, measures))
        if compiled is not None:
            for kernel, grid, arguments in zip(compiled, grids, (first, second), strict=True):
                kernel[grid](*arguments)
            return out
        options: dict[str, Any] = {"launch_pdl": True} if plan.dependent else {}
        compiled = _sum_jobs[grids[0]](*first, **_WALK), _add_jobs[grids[1]](*second, num_warps=8, **options)
        if _COMPILED_TAKES_ALL and None not in compiled:  # in the interpreter, they are None
            plan.compiled[captures, measures] = compiled
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
        self.ptx = device.type == "cuda" and not torch.version.hip
        # The second kernel can be launched while the first runs. Triton before 3.4 cannot ask for it.
        self.dependent = (
            self.ptx and torch.cuda.get_device_capability(device) >= (9, 0) and hasattr(tl.extra.cuda, "gdc_wait")
        )
        # Choose the rows per chunk so that each job gets about _CHUNKS_PER_JOB chunks.
        self._n_jobs = _resident_warps(device)
        rows = sum(-(-bucket.numel // _row(bucket)) for bucket in buckets)
        self._rows = -(-rows // (self._n_jobs * _CHUNKS_PER_JOB))
        squares = [(_SCALE.value * eps) ** 2 for eps in thresholds] or [0.0]
        self.thresholds = torch.tensor(squares, dtype=torch.float64, device="cpu").to(device)
        self.snapshots = _Addresses(device, members)
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
                length = np.minimum(self._rows * row, extent.stop - extent.start - begin)
                vector = extent.places is None and extent.address % 16 == 0 and extent.start * width % 16 == 0
                part[:, 0] = extent.address + (0 if extent.places is not None else width * begin)
                part[:, 1] = extent.start + begin
                part[:, 2] = length
                part[:, 3] = np.where(length * width % 16 == 0, length, length // row * row) if vector else 0
                part[:, 4] = 0 if extent.places is None else extent.places.data_ptr() + 8 * begin
                part[:, 5], part[:, 6] = _DTYPES.index(bucket.dtype), number
                parts.append(part)
                of_cell.append(np.full(len(begin), number * self.n_cells + extent.cell))
                places += [] if extent.places is None else [extent.places]
        # Keep these tensors alive, because the kernel has only their addresses.
        self._places, self.indexed = places, bool(places)
        cell = np.concatenate(of_cell)
        order = np.argsort(cell, kind="stable")
        n_chunks = np.bincount(cell, minlength=len(self._buckets) * self.n_cells)
        jobs, cells = _share_out(n_chunks, self._n_jobs)
        # The kernels as they were compiled for this device, by whether they capture and whether they measure.
        self.compiled: dict[tuple[bool, bool], tuple[Any, Any]] = {}
        self.chunks, self.jobs = _send(np.concatenate(parts)[order], self.device), _send(jobs, self.device)
        self.cells = _send(cells, self.device)
        self._layout = layout


class _Addresses:
    """The addresses of snapshots, in a table on the device with one row for each.

    The memory of a snapshot is used again for a later one. After a while, all addresses are in the table, and nothing
    more is sent.
    """

    def __init__(self, device: torch.device, members: list[int]) -> None:
        self._device, self._members = device, members
        self._rows: dict[tuple[int, ...], int] = {}
        self._host = np.zeros((_SLOTS, 2 * len(members)), np.int64)
        self.addresses = _send(self._host, device)

    def rows(self, snapshots: Sequence[Snapshot]) -> list[int]:
        """Return the rows of some snapshots, at most ``_SLOTS`` of them, and send new addresses if there are any."""
        keys = [
            (*[s.flats[i].data_ptr() for i in self._members], *[s.own_sums[i].data_ptr() for i in self._members])
            for s in snapshots
        ]
        if not self._rows.keys() >= set(keys):
            if len(self._rows.keys() | set(keys)) > _SLOTS:
                self._rows.clear()
            for key in keys:
                self._host[self._rows.setdefault(key, len(self._rows))] = key
            self.addresses = _send(self._host, self._device)
        return [self._rows[key] for key in keys]


def _row(bucket: Bucket) -> int:
    return int(_SHORT_ROW.value if bucket.dtype == torch.float64 else _ROW.value)


def _resident_warps(device: torch.device) -> int:
    """Return the number of warps of the first kernel that the device runs at once."""
    if device.type != "cuda":  # Triton's interpreter
        return 64
    properties = torch.cuda.get_device_properties(device)
    registers = getattr(properties, "regs_per_multiprocessor", 65536)
    return int(properties.multi_processor_count * registers // (32 * _REGISTERS))


def _share_out(n_chunks: NDArray[np.int64], n_jobs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Share out the chunks of each cell among jobs.

    The jobs of a cell take its chunks in turn, so that chunks that are read at the same time lie together in memory.

    Args:
        n_chunks: number of chunks of each cell, ``[n_cell]``.
        n_jobs: number of jobs in all. Each cell with chunks has at least one job, so there may be more.

    Returns:
        The jobs ``[n_job, 3]`` (first chunk, end, step), and the first job of each cell ``[n_cell + 1]``.
    """
    shares = np.minimum(n_chunks, np.maximum(n_chunks * n_jobs // n_chunks.sum(), 1))
    ends = np.cumsum(n_chunks)
    jobs = [
        np.stack([np.arange(end - n, end - n + k), np.full(k, end), np.full(k, k)], axis=1)
        for n, k, end in zip(n_chunks, shares, ends, strict=True)
    ]
    return np.concatenate(jobs), np.concatenate([[0], np.cumsum(shares)])


def _send(values: NDArray[np.int64], device: torch.device) -> Tensor:
    """Send a copy of some integers to the device, after the work that is queued there.

    Nothing waits for the copy. torch keeps the source alive until the copy is done.
    """
    host = torch.tensor(values, dtype=torch.int64, device="cpu")
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _on(device: torch.device) -> AbstractContextManager[Any]:
    # Triton launches on the current device, even if its arguments are on another device.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
