"""The moments on CUDA: one kernel over all tensors and all due snapshots, and a small one that adds up.

The coordinates of a bucket are cut into *chunks*, each a run within one tensor, listed with their addresses in a table
on the device. A *job* is one warp that walks through every so-manieth chunk of a cell, a row of 1024 coordinates at a
time: the row of weights stays in registers while the rows of the snapshots pass by, so that everything is read once.
A warp needs no barrier, and a row is the most that is ever added up in float32. Each job writes its sums, in float64,
to a place of its own, and the second kernel adds them in a fixed order: the same weights give the same bits.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (the arguments of a kernel are typed by Triton, which has no type hints)

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.parameters import Bucket, TrackedParameters
from lightning_glassy.record import MOMENTS
from lightning_glassy.snapshots import Snapshot

_LANES = tl.constexpr(32)  # most snapshots of one launch: each has a column of the float64 sums, one per thread
_BLOCK = tl.constexpr(512)  # jobs that the second kernel reads at once

# d^4 is summed in float32 over a row, as (2^52 d^2) d^2: this keeps |d| from 4e-14 to 9e4 in its range.
_D4_SCALE = tl.constexpr(2.0**52)

# Coordinates that a warp holds at once; half as many where they are float64.
_ROW = 1024

# The registers per thread that a row takes. Without a bound the compiler takes up to twice as many, and leaves a
# multiprocessor with half as many warps.
_WALK: dict[str, Any] = {"num_warps": 1} | ({} if torch.version.hip else {"maxnreg": 128})

# Several times as many warps as the largest GPU runs at once, and a few chunks for each if there are enough.
_JOBS = 4096
_CHUNKS = 4 * _JOBS

# Of the 8 MiB that an event may take; the rest is for the tables.
_SCRATCH_BYTES = 6 << 20


@triton.jit
def _add_row(
    own,
    pair,
    chunk,
    start,
    snapshots,
    thresholds,
    n_snapshot,
    DTYPE: tl.constexpr,
    WHOLE: tl.constexpr,
    INDEXED: tl.constexpr,
    OWN: tl.constexpr,
    N_PAIR: tl.constexpr,
    ROW: tl.constexpr,
):
    """Add the sums over a row of a chunk: of w^2 and w to ``own``, of each pair to a column of ``pair``."""
    weights = tl.load(chunk).to(tl.pointer_type(DTYPE))
    offset = tl.load(chunk + 1) + start
    i = tl.arange(0, ROW)
    inside = i < tl.load(chunk + 2).to(tl.int32) - start
    if WHOLE:  # complete and aligned: 16 bytes to a load, and no masks
        w = tl.load(tl.multiple_of(weights + start, 16) + i)
    elif INDEXED:
        places = tl.load(chunk + 4)
        listed = tl.load(places.to(tl.pointer_type(tl.int64)) + start + i, mask=inside & (places != 0), other=0)
        w = tl.load(weights + tl.where(places != 0, listed, start + i), mask=inside, other=0.0)
    else:
        w = tl.load(weights + start + i, mask=inside, other=0.0)
    w = w.to(thresholds.dtype.element_ty)
    if OWN:
        own += tl.where(tl.arange(0, 2) == 0, tl.sum(w * w).to(tl.float64), tl.sum(w).to(tl.float64))
    line, lane = tl.arange(0, pair.shape[0])[:, None], tl.arange(0, _LANES)[None, :]
    for j in range(n_snapshot):
        flat = tl.load(snapshots + j).to(tl.pointer_type(DTYPE)) + offset
        s = tl.load(tl.multiple_of(flat, 16) + i) if WHOLE else tl.load(flat + i, mask=inside, other=0.0)
        d = w - s.to(thresholds.dtype.element_ty)
        d2 = d * d
        pair = tl.where((line == 0) & (lane == j), pair + tl.sum(d2).to(tl.float64), pair)
        if N_PAIR > 1:
            d4 = tl.sum(d2 * _D4_SCALE * d2).to(tl.float64)
            pair = tl.where((line == 1) & (lane == j), pair + d4, pair)
            for k in tl.static_range(N_PAIR - 2):
                close = d2 <= tl.load(thresholds + k)
                if not WHOLE:
                    close = close & inside
                # Counted in float32, which comparisons give in one instruction, and integers in two.
                count = tl.sum(tl.where(close, 1.0, 0.0)).to(tl.float64)
                pair = tl.where((line == 2 + k) & (lane == j), pair + count, pair)
    return own, pair


@triton.jit(do_not_specialize=["n_snapshot"])
def _sum_jobs(
    chunks,  # [n_chunk, 5] int64: address, first coordinate, length, length of its aligned rows, address of the places
    jobs,  # [n_job, 3] int64: first chunk, end, step
    snapshots,  # [2, n_snapshot] int64: addresses of the flat weights, and of their own sums
    thresholds,  # [at least 1], eps^2, in the precision of the sums over a row
    partial,  # [2 + N_PAIR * n_snapshot, n_job] float64, written
    n_snapshot,
    DTYPE: tl.constexpr,  # of the weights
    INDEXED: tl.constexpr,  # whether there are places at all
    OWN: tl.constexpr,  # whether the sums of w^2 and of w are wanted
    N_PAIR: tl.constexpr,  # number of sums for each snapshot
    N_LINE: tl.constexpr,  # N_PAIR rounded up to a power of two
    ROW: tl.constexpr,  # coordinates in a row
):
    """The sums of each job over its chunks."""
    job, n_job = tl.program_id(0), tl.num_programs(0)
    own, pair = tl.zeros((2,), tl.float64), tl.zeros((N_LINE, _LANES), tl.float64)
    first, end, step = tl.load(jobs + 3 * job), tl.load(jobs + 3 * job + 1), tl.load(jobs + 3 * job + 2)
    for index in range(first, end, step):
        chunk = chunks + 5 * index
        length, aligned = tl.load(chunk + 2).to(tl.int32), tl.load(chunk + 3).to(tl.int32)
        if not INDEXED:
            for start in range(0, aligned, ROW):
                own, pair = _add_row(
                    own, pair, chunk, start, snapshots, thresholds, n_snapshot, DTYPE, True, False, OWN, N_PAIR, ROW
                )
        for start in range(aligned, length, ROW):
            own, pair = _add_row(
                own, pair, chunk, start, snapshots, thresholds, n_snapshot, DTYPE, False, INDEXED, OWN, N_PAIR, ROW
            )
    if OWN:
        tl.store(partial + tl.arange(0, 2) * n_job + job, own)
    line, lane = tl.arange(0, N_LINE)[:, None], tl.arange(0, _LANES)[None, :]
    target = partial + (2 + line * n_snapshot + lane) * n_job + job
    tl.store(target, pair, mask=(line < N_PAIR) & (lane < n_snapshot))


@triton.jit(do_not_specialize=["n_snapshot", "n_job"])
def _add_jobs(
    partial,  # as `_sum_jobs` left it
    cells,  # [n_cell + 1] int64: the first job of each cell
    snapshots,  # as for `_sum_jobs`
    out,  # float64, written: [n_cell, 2] where OWN_ALONE, otherwise [n_cell, n_snapshot, 7 + number of thresholds]
    n_snapshot,
    n_job,
    OWN_ALONE: tl.constexpr,
    N_THRESHOLD: tl.constexpr,
    N_PAIR: tl.constexpr,
    N_LINE: tl.constexpr,  # 2 + N_PAIR rounded up to a power of two
):
    """Add up the jobs of one cell, for one snapshot, and put the moments into the order of ``MOMENTS``."""
    cell, snapshot = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(cells + cell), tl.load(cells + cell + 1)
    line = tl.arange(0, N_LINE)
    # Without d^4 and the counts, those of the weights themselves have not been taken either.
    taken = (line < 2) if OWN_ALONE else (line < 2 + N_PAIR) & ((line >= 2) | (N_PAIR > 1))
    source = partial + tl.where(line < 2, line, 2 + (line - 2) * n_snapshot + snapshot)[:, None] * n_job
    total = tl.zeros((N_LINE, _BLOCK), tl.float64)
    for start in range(first, end, _BLOCK):
        job = start + tl.arange(0, _BLOCK)[None, :]
        total += tl.load(source + job, mask=taken[:, None] & (job < end), other=0.0)
    sums = tl.sum(total, axis=1)
    if OWN_ALONE:
        tl.store(out + 2 * cell + line, sums, mask=taken)
        return
    of_s = tl.load(snapshots + n_snapshot + snapshot).to(tl.pointer_type(tl.float64)) + 2 * cell
    s2, s = tl.load(of_s), tl.load(of_s + 1)
    moments = out + (cell * n_snapshot + snapshot) * (7 + N_THRESHOLD)
    tl.store(moments + 4, s2)
    tl.store(moments + 6, s)
    if N_PAIR == 1:
        tl.store(moments + line - 2, sums, mask=line == 2)
        for k in tl.static_range(7 + N_THRESHOLD):
            if k != 0 and k != 4 and k != 6:
                tl.store(moments + k, float("nan"))
    else:
        # From w^2, w, d^2, d^4, counts to where MOMENTS has them.
        column = tl.where(line == 0, 3, tl.where(line == 1, 5, tl.where(line < 4, line - 2, line + 3)))
        tl.store(moments + column, tl.where(line == 3, sums / _D4_SCALE, sums), mask=taken)
        # ws by the identity, which is safe in this direction: see EagerMoments.
        w2, d2 = tl.sum(tl.where(line == 0, sums, 0.0)), tl.sum(tl.where(line == 2, sums, 0.0))
        tl.store(moments + 2, (w2 + s2 - d2) / 2)


class TritonMoments:
    """Sums of one event by kernels of our own; the contract is in :mod:`lightning_glassy.moments`.

    Two launches for up to 32 due snapshots. Snapshots in pinned host memory are read from there, by the kernel, in
    the order of the stream; whoever frees one has to wait for that, as the tracker does.

    Args:
        parameters: the tracked coordinates, on CUDA (elsewhere only in Triton's interpreter).
        overlap_thresholds: the epsilons whose ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone; of the other moments only those of the snapshot are there, the rest
            is NaN.

    Raises:
        TypeError: a dtype that Triton does not know.
    """

    def __init__(
        self, parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
    ) -> None:
        assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")  # what the kernels are written for
        self._n_threshold = len(overlap_thresholds)
        self._n_pair = 1 if msd_only else 2 + self._n_threshold
        self._plans = [_Plan(bucket, parameters.n_cells, overlap_thresholds) for bucket in parameters.buckets]
        self._n_cells = parameters.n_cells
        n_job = max(plan.n_job for plan in self._plans)
        self._limit = max(1, min(_LANES.value, (_SCRATCH_BYTES // 8 // n_job - 2) // self._n_pair))
        n = n_job * (2 + self._n_pair * self._limit)
        # Kept: an event must not take memory that the training does not leave.
        self._scratch = {
            device: torch.empty(n, dtype=torch.float64, device=device)
            for device in dict.fromkeys(plan.device for plan in self._plans)
        }

    def own_sums(self) -> list[Tensor]:
        """Sums of w^2 and of w, per bucket ``[n_cell, 2]``."""
        return [self._launch(plan, [], torch.Size((self._n_cells, 2))) for plan in self._plans]

    def __call__(self, snapshots: Sequence[Snapshot]) -> list[Tensor]:
        """The sums of the current weights against each snapshot, per bucket ``[n_cell, n_snapshot, n_moment]``."""
        return [self._measure(plan, index, snapshots) for index, plan in enumerate(self._plans)]

    def _measure(self, plan: _Plan, index: int, snapshots: Sequence[Snapshot]) -> Tensor:
        parts = []
        for first in range(0, len(snapshots), self._limit):
            due = snapshots[first : first + self._limit]
            addresses = [s.flats[index].data_ptr() for s in due] + [s.own_sums[index].data_ptr() for s in due]
            parts.append(self._launch(plan, addresses, (self._n_cells, len(due), len(MOMENTS) + self._n_threshold)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _launch(self, plan: _Plan, addresses: list[int], shape: Sequence[int]) -> Tensor:
        """Both kernels, against the snapshots at these addresses; without any, for the sums of the weights alone."""
        n, scratch = len(addresses) // 2, self._scratch[plan.device]
        with _on(plan.device):
            plan.refresh()
            out = torch.empty(shape, dtype=torch.float64, device=plan.device)
            table = _send(addresses, plan.device) if n else plan.cells
            own, n_pair = not n or self._n_pair > 1, self._n_pair
            _sum_jobs[(plan.n_job,)](
                plan.chunks, plan.jobs, table, plan.thresholds, scratch, n,
                plan.dtype, plan.indexed, own, n_pair, triton.next_power_of_2(n_pair), plan.row,
                **_WALK,
            )  # fmt: skip
            _add_jobs[(self._n_cells, max(n, 1))](
                scratch, plan.cells, table, out, n, plan.n_job,
                n == 0, self._n_threshold, n_pair, triton.next_power_of_2(2 + n_pair), num_warps=4,
            )  # fmt: skip
        return out


class _Plan:
    """The tables of one bucket: its chunks and where they are, which jobs take which, which jobs are of which cell."""

    chunks: Tensor
    jobs: Tensor
    cells: Tensor
    indexed: bool

    def __init__(self, bucket: Bucket, n_cells: int, thresholds: Sequence[float]) -> None:
        name = str(bucket.dtype).removeprefix("torch.")
        if name not in ("float32", "float64", "float16", "bfloat16"):
            raise TypeError(f"there is no kernel for weights of dtype {name}")
        self.device, self.dtype = bucket.device, getattr(tl, name)
        self._bucket, self._n_cells = bucket, n_cells
        self.row = _ROW // 2 if bucket.dtype == torch.float64 else _ROW
        self._chunk = self.row * -(-bucket.numel // (self.row * _CHUNKS))
        squares = [eps**2 for eps in thresholds] or [0.0]
        wide = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        self.thresholds = torch.tensor(squares, dtype=wide).to(bucket.device)
        self._layout: object = None
        self.refresh()
        self.n_job = len(self.jobs)

    def refresh(self) -> None:
        """Make the tables anew if a tensor has been put elsewhere.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at first.
        """
        layout = self._bucket.layout()
        if layout == self._layout:
            return
        extents = self._bucket.extents()
        # The kernel knows the places by their address only.
        self._places = [extent.places for extent in extents]
        self.indexed = any(places is not None for places in self._places)
        width = self._bucket.dtype.itemsize
        parts, of_cell = [], []
        for extent in extents:
            begin = np.arange(0, extent.stop - extent.start, self._chunk)
            part = np.empty((len(begin), 5), np.int64)
            part[:, 0] = extent.address + (0 if extent.places is not None else width * begin)
            part[:, 1] = extent.start + begin
            part[:, 2] = np.minimum(self._chunk, extent.stop - extent.start - begin)
            vector = not self.indexed and extent.address % 16 == 0 and extent.start * width % 16 == 0
            part[:, 3] = part[:, 2] // self.row * self.row if vector else 0
            part[:, 4] = 0 if extent.places is None else extent.places.data_ptr() + 8 * begin
            parts.append(part)
            of_cell.append(np.full(len(begin), extent.cell))
        cell = np.concatenate(of_cell)
        order = np.argsort(cell, kind="stable")
        jobs, cells = _share_out(np.bincount(cell, minlength=self._n_cells))
        self.chunks, self.jobs = _send(np.concatenate(parts)[order], self.device), _send(jobs, self.device)
        self.cells = _send(cells, self.device)
        self._layout = layout


def _share_out(n_chunks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Jobs for cells of so many chunks each, ``[n_job, 3]``: first chunk, end, step; and ``[n_cell + 1]``: the first.

    The jobs of a cell take its chunks in turn, so that what is read at one time lies together.
    """
    n_jobs = np.minimum(n_chunks, -(-n_chunks * _JOBS // n_chunks.sum()))
    ends = np.cumsum(n_chunks)
    jobs = [
        np.stack([np.arange(end - n, end - n + k), np.full(k, end), np.full(k, k)], axis=1)
        for n, k, end in zip(n_chunks, n_jobs, ends, strict=True)
    ]
    return np.concatenate(jobs), np.concatenate([[0], np.cumsum(n_jobs)])


def _send(values: Any, device: torch.device) -> Tensor:
    """Whole numbers to the device, behind what is queued there: nothing waits, and torch keeps the source till then."""
    host = torch.as_tensor(values, dtype=torch.int64, device="cpu")
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _on(device: torch.device) -> AbstractContextManager[Any]:
    # Triton launches on the current device, whatever its arguments are on.
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
