"""Measure the moments on a CPU in one compiled pass over all tensors and all due snapshots, which needs numba.

The coordinates are cut into *chunks*. Each chunk is a run of coordinates within one tensor, and a table lists the
chunks with their addresses. A chunk is read in blocks of 512 coordinates. A block of weights stays in the first-level
cache while the same block of each due snapshot is read, so that everything is read from memory once. At a capture, the
block is also written to the new snapshot. The many short streams keep a single core busy at the speed of the memory.

Large events are shared with other threads, as many as ``torch.get_num_threads()`` allows. They are threads of Python,
which sleep between events, and not those of OpenMP, which would wait in a loop for work and fight with the threads of
torch. They take chunk after chunk, so that a thread that gets no processor holds nobody up. Each chunk has its own
sums, which are added in a fixed order. The bits of a sum do not depend on the number of threads.

numba compiles the pass when the first tracker is made, in a few seconds, and keeps it on disk for later processes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (numba types the arguments of a function and has no type hints)

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure.layout import Bucket, TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.record import MOMENTS

_BLOCK = 512  # coordinates that are summed in their own precision, before they are added to a float64 sum

# Coordinates of a chunk, and most chunks of a large model. Each chunk has sums of its own.
_CHUNK, _MOST_CHUNKS = 1 << 16, 1 << 12

# Differences are taken between weights times 2^13. The square of d^2 then stays within the range of float32, summed
# over a block, for |d| from 4e-14 to 9e4. A power of two costs no rounding.
SCALE = 2.0**13

_SUM_BYTES = 4 << 20  # for the sums of the chunks

# Bytes that a thread reads at least. One core reads them in about the tenfold time of waking another thread.
_BYTES_PER_THREAD = 16 << 20

# The dtypes of weights, and the dtype as which numba reads them. It has no floating-point numbers of 16 bits on a CPU.
_READ_AS = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}

# The order of a sum is free, as in torch. NaN and infinite values keep their meaning. Other threads run meanwhile.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that numba compiles when it is called first, or reads from disk."""
    try:
        return njit(cache=True, **_OPTIONS)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no directory can be written
        return njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- memory by address


@intrinsic
def _pointer(typing, address, like):
    """Return an address as a pointer to numbers of the dtype of the array ``like``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@intrinsic
def _take(typing, address):
    """Return the integer at an address, and add 1 to it. No other thread gets the same integer."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), generate


@intrinsic
def _as_float(typing, bits):
    """Return the float32 of these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(bits), generate


@compiled
def _copy(source, target):
    for k in range(source.shape[0]):
        target[k] = source[k]


@compiled
def _gather(source, places, target):
    for k in range(target.shape[0]):
        target[k] = source[places[k]]


@compiled
def _widen_bfloat16(narrow, wide):
    for k in range(narrow.shape[0]):
        wide[k] = _as_float(np.uint32(np.uint32(narrow[k]) << np.uint32(16)))


@compiled
def _widen_float16(narrow, wide):
    tiny = np.float32(2.0**-24)
    for k in range(narrow.shape[0]):
        bits = np.uint32(np.uint16(narrow[k]))
        size = bits & np.uint32(0x7FFF)
        # The exponent is counted from another zero. Infinities and NaN have the largest exponent in both.
        offset = np.uint32(0x70000000) if size >= np.uint32(0x7C00) else np.uint32(0x38000000)
        normal = _as_float(np.uint32(np.uint32(size << np.uint32(13)) + offset))
        value = normal if size >= np.uint32(0x0400) else np.float32(size) * tiny
        wide[k] = -value if bits >= np.uint32(0x8000) else value


def _widened(address: Any, n: Any, like: Any, scratch: Any) -> Any:
    """Return the address of ``n`` numbers in the precision of the sums: the same, or that of a wide copy."""
    raise NotImplementedError


@overload(_widened)
def _overload_widened(address, n, like, scratch):
    if isinstance(like.dtype, types.Float):
        return lambda address, n, like, scratch: address
    widen = _widen_bfloat16 if like.dtype == types.uint16 else _widen_float16

    def copy(address, n, like, scratch):
        widen(carray(_pointer(address, like), n), scratch)
        return np.int64(scratch.ctypes.data)

    return copy


# ---------------------------------------------------------------------- sums of a block


@compiled
def own_of_block(w, zero):
    """Return the sums of w^2 and of w."""
    w2, w1 = zero, zero
    for k in range(w.shape[0]):
        w2 += w[k] * w[k]
        w1 += w[k]
    return w2, w1


@compiled
def pair_of_block(w, s, low, high, scale):
    """Return the sums of (scale d)^2 and of (scale d)^4, and how often (scale d)^2 is at most each of two bounds."""
    zero, one = scale - scale, scale / scale
    d2, d4, n_low, n_high = zero, zero, zero, zero
    for k in range(w.shape[0]):
        difference = (w[k] - s[k]) * scale
        square = difference * difference
        d2 += square
        d4 += square * square
        n_low += one if square <= low else zero
        n_high += one if square <= high else zero
    return d2, d4, n_low, n_high


@compiled
def _msd_of_block(w, s, scale):
    d2 = scale - scale
    for k in range(w.shape[0]):
        difference = (w[k] - s[k]) * scale
        d2 += difference * difference
    return d2


# ---------------------------------------------------------------------- all blocks


@compiled
def _walk(chunks, due, new, flags, bounds, scale, like, own, pairs, counter):
    """Sum chunk after chunk, until another thread has taken the last.

    Args:
        chunks: ``[n_chunk, 4]``: address in memory, first coordinate in the bucket, number of coordinates, and the
            address of their places (0 if they are contiguous).
        due: addresses of the due snapshots, ``[n_due]``.
        new: address of the snapshot to fill, or 0.
        flags: ``[2]``: whether the sums of the weights alone are wanted, and whether only d^2 is.
        bounds: squares of the scaled thresholds, an even number of them, in the precision of the sums.
        scale: factor of the differences, in the same precision.
        like: an array of the dtype of the weights.
        own: result, ``[n_chunk, 2]``.
        pairs: result, ``[n_chunk, n_due, 2 + n_bound]``.
        counter: address of the number of the next chunk.
    """
    zero, width = scale - scale, like.itemsize
    integers = due[:0]
    raw, of_w, of_s = np.empty(_BLOCK, like.dtype), np.empty(_BLOCK, bounds.dtype), np.empty(_BLOCK, bounds.dtype)
    while True:
        c = _take(counter)
        if c >= len(chunks):
            return
        address, first, length, places = chunks[c, 0], chunks[c, 1], chunks[c, 2], chunks[c, 3]
        own[c] = 0
        pairs[c] = 0
        for at in range(0, length, _BLOCK):
            n = min(_BLOCK, length - at)
            here = address + at * width
            if places:
                _gather(carray(_pointer(address, like), 1), carray(_pointer(places + 8 * at, integers), n), raw[:n])
                here = np.int64(raw.ctypes.data)
            if new:
                there = new + (first + at) * width
                _copy(carray(_pointer(here, like), n), carray(_pointer(there, like), n))
            w = carray(_pointer(_widened(here, n, like, of_w[:n]), bounds), n)
            if flags[0]:
                w2, w1 = own_of_block(w, zero)
                own[c, 0] += w2
                own[c, 1] += w1
            for j in range(len(due)):
                there = due[j] + (first + at) * width
                s = carray(_pointer(_widened(there, n, like, of_s[:n]), bounds), n)
                if flags[1]:
                    pairs[c, j, 0] += _msd_of_block(w, s, scale)
                    continue
                for k in range(0, len(bounds), 2):
                    d2, d4, n_low, n_high = pair_of_block(w, s, bounds[k], bounds[k + 1], scale)
                    if k == 0:
                        pairs[c, j, 0] += d2
                        pairs[c, j, 1] += d4
                    pairs[c, j, 2 + k] += n_low
                    pairs[c, j, 3 + k] += n_high


@compiled
def _add_up(cells, own, pairs, own_s, own_new, flags, scale, n_threshold, of_due, out):
    """Add the sums of the chunks of each cell, in the order of ``MOMENTS``.

    Args:
        cells: first chunk of each cell, ``[n_cell + 1]``.
        own: sums of :func:`_walk`.
        pairs: sums of :func:`_walk`.
        own_s: addresses of the sums of each due snapshot, ``[n_due]``.
        own_new: address of the sums of the new snapshot, or 0.
        flags: as in :func:`_walk`.
        scale: factor of the differences.
        n_threshold: number of thresholds.
        of_due: place of the first due snapshot in ``out``.
        out: result, ``[n_cell, n_snapshot, 7 + n_threshold]``.
    """
    n_cell = len(cells) - 1
    for cell in range(n_cell):
        first, end = cells[cell], cells[cell + 1]
        w2 = w1 = 0.0
        for c in range(first, end):
            w2 += own[c, 0]
            w1 += own[c, 1]
        if own_new:
            target = carray(_pointer(own_new, out), 2 * n_cell)
            target[2 * cell], target[2 * cell + 1] = w2, w1
        for j in range(len(own_s)):
            row = out[cell, of_due + j]
            of_s = carray(_pointer(own_s[j], out), 2 * n_cell)
            row[:] = 0 if not flags[1] else np.nan
            row[0], row[4], row[6] = 0, of_s[2 * cell], of_s[2 * cell + 1]
            for c in range(first, end):
                row[0] += pairs[c, j, 0] / scale**2
            if flags[1]:
                continue
            for c in range(first, end):
                row[1] += pairs[c, j, 1] / scale**4
                for k in range(n_threshold):
                    row[7 + k] += pairs[c, j, 2 + k]
            # ws = (w^2 + s^2 - d^2)/2 is safe in this direction, see EagerMoments.
            row[2], row[3], row[5] = (w2 + row[4] - row[0]) / 2, w2, w1


class CompiledMoments:
    """Moments of one event by a compiled pass. The contract is in :mod:`lightning_glassy.measure.moments`.

    Args:
        parameters: the tracked coordinates, in host memory.
        overlap_thresholds: the thresholds eps for which coordinates with ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone. The sums of the snapshot, s^2 and s, are returned too. All other
            moments are NaN.

    Raises:
        TypeError: the pass cannot read a dtype.
    """

    streams: Mapping[torch.device, torch.cuda.Stream] = {}

    def __init__(
        self, parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
    ) -> None:
        assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")  # the pass relies on this order
        self._plans = [_Plan(b, parameters.n_cells, overlap_thresholds, msd_only) for b in parameters.buckets]

    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """Return the sums of current weights against each snapshot, ``[n_cell, n_snapshot, n_moment]`` per bucket."""
        return [plan.measure(index, snapshots, capture) for index, plan in enumerate(self._plans)]


class _Plan:
    """The table of chunks of a bucket, and the memory for their sums."""

    chunks: NDArray[np.int64]
    cells: NDArray[np.int64]

    def __init__(self, bucket: Bucket, n_cells: int, thresholds: Sequence[float], msd_only: bool) -> None:
        if bucket.dtype not in _READ_AS:
            raise TypeError(f"no compiled pass reads weights of dtype {str(bucket.dtype).removeprefix('torch.')}")
        self._bucket, self._n_cells, self._n_threshold = bucket, n_cells, 0 if msd_only else len(thresholds)
        self._n_column = len(MOMENTS) + len(thresholds)
        dtype = np.dtype(np.float64 if bucket.dtype == torch.float64 else np.float32)
        self._bounds = np.full(max(2, self._n_threshold + self._n_threshold % 2), -1, dtype)
        self._bounds[: self._n_threshold] = np.square(np.multiply(SCALE, thresholds[: self._n_threshold]))
        self._scale, self._like = dtype.type(SCALE), np.zeros(1, _READ_AS[bucket.dtype])
        self._alone, self._both = np.array([not msd_only, msd_only]), np.array([True, msd_only])
        self._bytes = bucket.numel * bucket.dtype.itemsize
        self._counter = np.zeros(1, np.int64)
        self._layout: object = None
        self._refresh()

    def _refresh(self) -> None:
        """Make the table again if a tensor has moved in memory.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at first.
        """
        layout = self._bucket.layout()
        if layout == self._layout:
            return
        size = max(_CHUNK, -(-self._bucket.numel // _MOST_CHUNKS))
        width, parts, of_cell, places = self._bucket.dtype.itemsize, [], [], []
        for extent in self._bucket.extents():
            n = extent.stop - extent.start
            begin = np.arange(0, n, size)
            part = np.empty((len(begin), 4), np.int64)
            part[:, 0] = extent.address + (width * begin if extent.places is None else 0)
            part[:, 1], part[:, 2] = extent.start + begin, np.minimum(size, n - begin)
            part[:, 3] = 0 if extent.places is None else extent.places.data_ptr() + 8 * begin
            parts.append(part)
            of_cell.append(np.full(len(begin), extent.cell))
            places += [] if extent.places is None else [extent.places]
        cell = np.concatenate(of_cell)
        self._places = places  # kept alive, because the table has only their addresses
        self.chunks = np.ascontiguousarray(np.concatenate(parts)[np.argsort(cell, kind="stable")])
        self.cells = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=self._n_cells))])
        # A part of the sums for each snapshot. More snapshots than fit take another pass.
        self._limit = max(1, _SUM_BYTES // (8 * len(cell) * (2 + len(self._bounds))))
        self._own, self._pairs = np.empty((len(cell), 2)), np.empty((len(cell), 0, 2 + len(self._bounds)))
        self._layout = layout

    def measure(self, index: int, snapshots: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        """Measure the bucket of this index, see :class:`CompiledMoments`."""
        self._refresh()
        out = np.empty((self._n_cells, len(snapshots), self._n_column))
        for at in range(0, max(len(snapshots), 1), self._limit):
            self._pass(index, snapshots[at : at + self._limit], None if at else capture, at, out)
        return torch.from_numpy(out)

    def _pass(
        self, index: int, due: Sequence[Snapshot], new: Snapshot | None, at: int, out: NDArray[np.float64]
    ) -> None:
        flats, own = [s.flats[index].data_ptr() for s in due], [s.own_sums[index].data_ptr() for s in due]
        if new is None:
            self._run(flats, 0, self._alone, due, own, 0, at, out)
        else:
            there = new.own_sums[index].data_ptr()
            self._run(flats, new.flats[index].data_ptr(), self._both, (*due, new), own, there, at, out)

    def _run(
        self,
        flats: list[int],
        new: int,
        flags: NDArray[np.bool_],
        alive: Sequence[Snapshot],
        own_s: list[int],
        own_new: int,
        at: int,
        out: NDArray[np.float64],
    ) -> None:
        """Run the pass, on as many threads as pay."""
        n_due = len(flats)
        if self._pairs.shape[1] < n_due:
            self._pairs = np.empty((len(self._own), n_due, 2 + len(self._bounds)))
        self._counter[0] = 0
        walk = (
            self.chunks, np.array(flats, np.int64), new, flags, self._bounds, self._scale, self._like, self._own,
            self._pairs, self._counter.ctypes.data,
        )  # fmt: skip
        n_thread = min((n_due + 1) * self._bytes // _BYTES_PER_THREAD, len(self._own))
        n_thread = min(n_thread, torch.get_num_threads()) if n_thread > 1 else 1
        if n_thread > 1:
            # A thread may still run if Ctrl-C ends the event. It keeps what it reads and writes.
            _threads.run(n_thread, lambda kept=(alive, self._bucket): _walk(*walk))  # type: ignore[misc]
        else:
            _walk(*walk)
        sums = self._own, self._pairs, np.array(own_s, np.int64)
        _add_up(self.cells, *sums, own_new, flags, SCALE, self._n_threshold, at, out)


class _Threads:
    """Threads that help the calling one. They sleep until there is something to do, and end with the process."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._made_for = (0, 0)

    def run(self, n: int, work: Callable[[], object]) -> None:
        """Call ``work`` on this thread, and on up to ``n - 1`` others at the same time."""
        made_for = n, os.getpid()  # a forked process has no threads
        if self._pool is None or self._made_for != made_for:
            self._pool, self._made_for = ThreadPoolExecutor(n - 1, "lightning_glassy"), made_for
        helpers = [self._pool.submit(work) for _ in range(n - 1)]
        try:
            work()
        finally:
            # Do not wait for a thread that has not begun. There is nothing left for it.
            wait([helper for helper in helpers if not helper.cancel()])
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


_threads = _Threads()
