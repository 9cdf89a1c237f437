"""Measure the moments on a CPU in one compiled pass over all tensors and all due snapshots, which needs numba.

The coordinates are cut into *chunks*. Each chunk is a run of coordinates within one tensor, and a table lists the
chunks with their addresses. A chunk is read in blocks of 2048 coordinates. A block of weights stays in the first-level
cache while the same block of each due snapshot is read, so that everything is read from memory once. At a capture, the
block is also written to the new snapshot. While a block is summed, the next one is fetched from memory.

The threads of torch, ``torch.get_num_threads()`` of them, share large events. They take chunk after chunk. A thread
that gets no processor leaves the chunks to the others, but the event ends only after this thread has checked for
chunks. Each chunk has its own sums, which are added in a fixed order. The bits of a sum depend neither on the number of
threads nor on the processor.

numba compiles the pass when the first tracker is made, in a few seconds, and keeps it on disk for later processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure.layout import Bucket, TrackedParameters
from lightning_glassy.measure.moments import compiled
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.record import MOMENTS

# Coordinates of a chunk, and most chunks of a large model. Each chunk has sums of its own.
_CHUNK, _MOST_CHUNKS = 1 << 16, 1 << 12

# Differences are taken between weights times 2^13. The square of d^2 then stays within the range of float32, summed
# over a block, for |d| from 4e-14 to 7e4. A power of two costs no rounding.
SCALE = 2.0**13

_SUM_BYTES = 4 << 20  # for the sums of the chunks

# Bytes of an event that is shared with other threads. One core reads them in about 3 ms. A thread may have to wait as
# long for a processor if other processes run.
_SHARED_BYTES = 32 << 20

# The dtypes of weights, and the dtype as which numba reads them. It has no floating-point numbers of 16 bits on a CPU.
_READ_AS = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.bfloat16: np.uint16,
    torch.float16: np.int16,
}


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


class Chunks:
    """The table of chunks of a bucket: ``[n_chunk, 4]`` as in :func:`compiled.walk`, sorted by cell.

    Attributes:
        table: the table.
        cells: first chunk of each cell, ``[n_cell + 1]``.
        like: an array of the dtype as which numba reads the weights.
        dtype: the precision of the sums.

    Raises:
        TypeError: numba cannot read the dtype.
    """

    table: NDArray[np.int64]
    cells: NDArray[np.int64]

    def __init__(self, bucket: Bucket, n_cells: int) -> None:
        if bucket.dtype not in _READ_AS:
            raise TypeError(f"no compiled pass reads weights of dtype {str(bucket.dtype).removeprefix('torch.')}")
        self._bucket, self._n_cells = bucket, n_cells
        self.like = np.zeros(1, _READ_AS[bucket.dtype])
        self.dtype = np.dtype(np.float64 if bucket.dtype == torch.float64 else np.float32)
        self._layout: object = None
        self.refresh()

    def refresh(self) -> bool:
        """Make the table again if a tensor has moved in memory. Return whether it has.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at first.
        """
        layout = self._bucket.layout()
        if layout == self._layout:
            return False
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
        self.table = np.ascontiguousarray(np.concatenate(parts)[np.argsort(cell, kind="stable")])
        self.cells = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=self._n_cells))])
        self._layout = layout
        return True

    def by_replica(self, n_replica: int) -> NDArray[np.int64]:
        """Return the table with an axis for the replicas, ``[n_replica, n_chunk, 4]``."""
        replica = np.repeat(np.arange(len(self.cells) - 1), np.diff(self.cells)) % n_replica
        return self.table[np.argsort(replica, kind="stable")].reshape(n_replica, -1, 4)


class _Plan:
    """The chunks of a bucket, and the memory for their sums."""

    def __init__(self, bucket: Bucket, n_cells: int, thresholds: Sequence[float], msd_only: bool) -> None:
        self.chunks = Chunks(bucket, n_cells)
        self._bucket, self._n_cells, self._n_threshold = bucket, n_cells, 0 if msd_only else len(thresholds)
        self._n_column = len(MOMENTS) + len(thresholds)
        dtype = self.chunks.dtype
        self._bounds = np.full(max(2, self._n_threshold + self._n_threshold % 2), -1, dtype)
        self._bounds[: self._n_threshold] = np.square(np.multiply(SCALE, thresholds[: self._n_threshold]))
        self._scale = dtype.type(SCALE)
        self._alone, self._both = np.array([not msd_only, msd_only]), np.array([True, msd_only])
        self._bytes = bucket.numel * bucket.dtype.itemsize
        self._counter = np.zeros(1, np.int64)
        self._next_chunk = self._counter.ctypes.data
        self._make_room()

    def _make_room(self) -> None:
        n_chunk, n_pair = len(self.chunks.table), 2 + len(self._bounds)
        # A part of the sums for each snapshot. More snapshots than fit take another pass.
        self._limit = max(1, _SUM_BYTES // (8 * n_chunk * n_pair))
        self._own, self._pairs = np.empty((n_chunk, 2)), np.empty((n_chunk, 0, n_pair))

    def measure(self, index: int, snapshots: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        """Measure the bucket of this index, see :class:`CompiledMoments`."""
        if self.chunks.refresh():
            self._make_room()
        out = np.empty((self._n_cells, len(snapshots), self._n_column))
        for at in range(0, max(len(snapshots), 1), self._limit):
            self._pass(index, snapshots[at : at + self._limit], None if at else capture, at, out)
        return torch.from_numpy(out)

    def _pass(
        self, index: int, due: Sequence[Snapshot], new: Snapshot | None, at: int, out: NDArray[np.float64]
    ) -> None:
        flats, own = [s.flats[index].data_ptr() for s in due], [s.own_sums[index].data_ptr() for s in due]
        if new is None:
            self._run(flats, 0, self._alone, own, 0, at, out)
        else:
            there = new.own_sums[index].data_ptr()
            self._run(flats, new.flats[index].data_ptr(), self._both, own, there, at, out)

    def _run(
        self,
        flats: list[int],
        new: int,
        flags: NDArray[np.bool_],
        own_s: list[int],
        own_new: int,
        at: int,
        out: NDArray[np.float64],
    ) -> None:
        """Run the pass, and add up its sums."""
        n_due = len(flats)
        if self._pairs.shape[1] < n_due:
            self._pairs = np.empty((len(self._own), n_due, 2 + len(self._bounds)))
        self._counter[0] = 0
        walk = (
            self.chunks.table, np.array(flats, np.int64), new, flags, self._bounds, self._scale, self.chunks.like,
            self._own, self._pairs, self._next_chunk,
        )  # fmt: skip
        if (n_due + 1) * self._bytes >= _SHARED_BYTES and len(self._own) > 1:
            _team.run(lambda: compiled.walk(*walk))
        else:
            compiled.walk(*walk)
        sums = self._own, self._pairs, np.array(own_s, np.int64)
        compiled.add_up(self.chunks.cells, *sums, own_new, flags, SCALE, self._n_threshold, at, out)


class CompiledDistances:
    """Squared distances of all pairs of replicas, by a compiled pass.

    The contract is in :class:`~lightning_glassy.measure.moments.replicas.BetweenReplicas`.

    Args:
        parameters: the tracked coordinates, with replicas, in host memory.

    Raises:
        TypeError: numba cannot read a dtype.
    """

    def __init__(self, parameters: TrackedParameters) -> None:
        assert parameters.n_replica is not None
        self._n_replica = parameters.n_replica
        self._buckets = [Chunks(bucket, parameters.n_cells) for bucket in parameters.buckets]
        self._tables = [chunks.by_replica(self._n_replica) for chunks in self._buckets]

    def __call__(self) -> Tensor:
        """Return the squared distances of all pairs, then the sum of squares of each replica."""
        n = self._n_replica
        sums = np.zeros(n * (n - 1) // 2 + n)
        for k, chunks in enumerate(self._buckets):
            if chunks.refresh():
                self._tables[k] = chunks.by_replica(n)
            compiled.compare(self._tables[k], chunks.like, np.ones(1, chunks.dtype), sums)
        return torch.from_numpy(sums)


class CompiledCounts:
    """Counts of the weights, or of their scaled differences from earlier ones, in bins that are symmetric about 0.

    Args:
        parameters: the tracked coordinates, in host memory.
        edges: the edges of the bins, ``[n_edge]``: positive ones, and the same with a minus sign.

    Raises:
        TypeError: numba cannot read a dtype.
    """

    def __init__(self, parameters: TrackedParameters, edges: NDArray[np.float64]) -> None:
        self._n = len(edges) // 2
        self._plans = []
        for bucket in parameters.buckets:
            chunks = Chunks(bucket, parameters.n_cells)
            bins, shift, positive = _bins(edges[self._n :].astype(chunks.dtype))
            self._plans.append((chunks, bins, shift, positive))

    def __call__(self, earlier: Sequence[Tensor] | None = None, scale: float = 1.0) -> Tensor:
        """Return the counts, int64 ``[n_edge + 1]``: below the first edge, in each bin, from the last edge on.

        Args:
            earlier: earlier weights, per bucket a tensor of its shape.
            scale: factor of the differences.
        """
        counts = np.zeros((4, 2 * self._n + 1), np.int64)
        for index, (chunks, bins, shift, edges) in enumerate(self._plans):
            chunks.refresh()
            address = 0 if earlier is None else earlier[index].data_ptr()
            compiled.count(chunks.table, address, edges.dtype.type(scale), chunks.like, bins, shift, edges, counts)
        return torch.from_numpy(counts.sum(axis=0))


def _bins(edges: NDArray[np.floating]) -> tuple[NDArray[np.int16], int, NDArray[np.floating]]:
    """Return the table of :func:`compiled.count`, the number of bits that it leaves out, and its edges.

    The table goes by the exponent and six more bits, which cut a factor of two into 64 parts.
    """
    bits, exponent = 8 * edges.itemsize, {4: 8, 8: 11}[edges.itemsize]
    shift = bits - 1 - exponent - 6
    least = (np.arange(1 << (exponent + 6), dtype=f"i{edges.itemsize}") << shift).view(edges.dtype)
    places = np.searchsorted(edges, least, side="right")
    places[np.isnan(least)] = len(edges)
    assert np.diff(places).max() <= 1
    return places.astype(np.int16), shift, np.concatenate([[np.nan], edges, [np.nan]]).astype(edges.dtype)


class _Team:
    """The threads with which torch computes on a CPU.

    They are awake after an operation of torch, and wait in a loop for more work. Threads of our own would have to share
    the processors with these loops. If torch does not use OpenMP, and in a forked process, there is only the calling
    thread.
    """

    def __init__(self) -> None:
        self._is_forked = False  # OpenMP does not notice that its threads are not there then
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: setattr(self, "_is_forked", True))
        # Machine code that OpenMP can call. It is freed together with this object.
        self._call = ctypes.CFUNCTYPE(None, ctypes.py_object)(lambda work: work())
        self._parallel: Any = None
        with contextlib.suppress(AttributeError, OSError):  # another OpenMP, as on Windows, or none
            # The search for a symbol includes the libraries that the library of torch needs.
            self._parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
            self._parallel.argtypes = [type(self._call), ctypes.py_object, ctypes.c_uint, ctypes.c_uint]
            self._parallel.restype = None

    def run(self, work: Callable[[], object]) -> None:
        """Call ``work`` on ``torch.get_num_threads()`` threads at the same time, including the calling thread."""
        n_thread = torch.get_num_threads()
        if self._parallel is None or self._is_forked or n_thread == 1:
            work()
            return
        failures: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # no exception passes through OpenMP
                failures.append(error)

        self._parallel(self._call, guarded, n_thread, 0)
        if failures:
            raise failures[0]


_team = _Team()
