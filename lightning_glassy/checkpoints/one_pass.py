"""Sum all pairs of many checkpoints in one pass that reads each byte once.

The coordinates are cut into blocks. A block of all checkpoints is read into memory, and all pairs of the block are
summed while the next block is read. The reading time grows as the number of checkpoints. Only the arithmetic time grows
as its square.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.checkpoints import fused
from lightning_glassy.checkpoints.stored import Stored, n_coordinates, real_dtype
from lightning_glassy.checkpoints.unfinished import State, Unfinished
from lightning_glassy.measure.layout import Piece, Tile, TrackedParameters
from lightning_glassy.measure.memory import free_memory, human_bytes
from lightning_glassy.measure.moments.eager import D4_SCALE, in_columns, own_sums, pair_sums
from lightning_glassy.measure.select import Groups, Selected, choose_names
from lightning_glassy.record import MOMENTS

Checkpoint = Mapping[str, Stored]
_T = TypeVar("_T")

# Coordinates of a tile. Sums are float32 within a tile and float64 across tiles, so this number decides their bits.
# Memory, threads and blocks do not.
_TILE = 8192

# Rows [later checkpoint, tile] that are summed at once. Fewer rows would spend the time in calls.
_ROWS = 64

# Rows [checkpoint, tile] of which all pairs are summed by one thread. More rows would leave the third-level cache.
_ROWS_OF_UNIT = 512

# A read of 4 MiB takes much longer than a hard disk needs to find its place.
_BLOCK_BYTES = 4 << 20

_MOST_MEMORY = 512 << 20

# Importing numba and compiling a loop take two seconds, so the loop sums only this many coordinates or more. The number
# of pairs does not matter, because a pair must have the same bits alone.
_FEWEST_FUSED = 1 << 18

# Reads wait for the disk, so there may be more of them than processors.
_READERS = 8

_PROGRESS_EVERY = 0.1


class Sums(NamedTuple):
    """The sums of all pairs.

    Attributes:
        moments: float64 ``[n_pair, n_group, n_moment]``, in the order of ``MOMENTS``, then one count per threshold.
        not_finite: for each tensor with a value that is not finite, the places of its checkpoints, increasing.
    """

    moments: NDArray[np.float64]
    not_finite: dict[str, list[int]]


def plan(
    stored: Checkpoint,
    aliases: Mapping[str, Sequence[str]] | None = None,
    *,
    groups: Groups = "all",
    sample: int | None = None,
) -> TrackedParameters:
    """Lay out the coordinates of a checkpoint as the monitor does for a module. Nothing is read.

    Args:
        stored: the tensors of a checkpoint. Each tensor is counted, so give tied tensors once, under one name.
        aliases: other names of a tensor, which patterns may match too.
        groups: ``"all"``, ``"layer"``, or a mapping of group names to patterns.
        sample: number of coordinates to draw. The monitor draws the same coordinates for the same number.

    Raises:
        ValueError: there is nothing to measure, or a pattern of a group matches nothing.

    Example:
        >>> from lightning_glassy.checkpoints.stored import InMemory
        >>> stored = {"a.weight": InMemory(torch.ones(3, 2)), "b.weight": InMemory(torch.ones(4))}
        >>> plan(stored, groups="layer").n_parameters
        {'all': 10, 'a': 6, 'b': 4}
    """
    names = [name for name, tensor in stored.items() if n_coordinates(tensor)]
    others = aliases or {}
    chosen = choose_names([(name, *others.get(name, ())) for name in names], groups)
    selected = [Selected(names[i], _stand_in(stored[names[i]]), of_groups) for i, of_groups in chosen]
    return TrackedParameters(selected, sample)


def _stand_in(stored: Stored) -> Tensor:
    """Return a tensor of the same coordinates that has the memory of a single element."""
    shape = (*stored.shape, 2) if stored.dtype.is_complex else stored.shape
    return torch.empty((), dtype=real_dtype(stored.dtype), device="cpu").expand(shape)


def spread(parameters: TrackedParameters, checkpoint: Checkpoint) -> float:
    """Return the standard deviation of the weights of one checkpoint, which is read once."""
    n, total, squares = 0, 0.0, 0.0
    for block in _blocks(parameters, 1 << 20):
        values = torch.empty(block.stop - block.start, dtype=parameters.buckets[block.bucket].dtype, device="cpu")
        _fill(_parts(block), checkpoint, values)
        wide = values.double()
        n, total, squares = n + len(wide), total + float(wide.sum()), squares + float(wide.dot(wide))
    variance = squares / n - (total / n) * (total / n)
    return math.sqrt(variance) if variance > 0 else 0.0 if variance == variance else math.nan


def usable_memory() -> int:
    """Return the bytes that one pass takes by default: a quarter of the free memory, and at most 512 MiB."""
    return min(_MOST_MEMORY, free_memory(torch.device("cpu")) // 4)


def memory_needed(
    parameters: TrackedParameters,
    pairs: Sequence[tuple[int, int]],
    n_threshold: int,
    memory: int | None = None,
) -> int:
    """Return the bytes that :func:`sum_pairs` takes at its peak, with its result and without the files.

    The blocks and the scratch memory of all threads fit in ``memory``. The sums need more memory. More is also needed
    if ``memory`` is below two tiles of 8192 coordinates of each checkpoint.
    """
    sizes = _Sizes(parameters, pairs, memory)
    n_cell, n_moment = parameters.n_cells, len(MOMENTS) + n_threshold
    sums = 8 * len(parameters.buckets) * n_cell * (len(pairs) * (2 + n_threshold) + 2 * sizes.n_row)
    waiting = 8 * (2 * sizes.threads + 1) * sizes.together * len(pairs) * (2 + n_threshold)
    # The columns of each bucket, their sum, the groups, and the result in the order of the pairs.
    columns = 8 * len(pairs) * n_moment * (n_cell * (len(parameters.buckets) + 2) + 3 * len(parameters.groups))
    compiler = fused.MEMORY if _is_fused(parameters) else 0
    return compiler + sums + max(sizes.blocks + sizes.threads * sizes.scratch + waiting, columns)


def _is_fused(parameters: TrackedParameters) -> bool:
    """Return whether a compiled loop sums the coordinates."""
    return sum(bucket.numel for bucket in parameters.buckets) >= _FEWEST_FUSED and fused.available()


def sum_pairs(
    parameters: TrackedParameters,
    checkpoints: Sequence[Checkpoint],
    pairs: Sequence[tuple[int, int]],
    thresholds: Sequence[float] = (),
    *,
    memory: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    unfinished: Unfinished | None = None,
) -> Sums:
    """Sum all pairs in one pass over the checkpoints.

    The formulas are as in :class:`~lightning_glassy.measure.moments.EagerMoments`. If numba is installed, a compiled
    loop sums many coordinates. The result of a pair does not depend on the other pairs, the memory, the number of
    threads (``torch.get_num_threads()``), or an interruption.

    Args:
        parameters: the coordinates, from :func:`plan`.
        checkpoints: the tensors of each checkpoint. A checkpoint that is in no pair is not read.
        pairs: the places ``(i, j)`` of the earlier and the later checkpoint of each pair, ``i < j``.
        thresholds: the thresholds of the overlap.
        memory: most bytes for the blocks and for scratch memory. See :func:`memory_needed`. Default:
            :func:`usable_memory`.
        progress: called with the bytes that are summed and the bytes of all checkpoints: first before anything is read,
            then at most ten times a second, and at the end.
        unfinished: a file that keeps the sums of an interrupted run. An interrupted run goes on from there.

    Raises:
        ValueError: a file has changed or is damaged, or something else is at the path of ``unfinished``.
        MemoryError: the sums of all pairs and groups do not fit in the free memory.
    """
    needed, free = memory_needed(parameters, pairs, len(thresholds), memory), free_memory(torch.device("cpu"))
    if needed > free:
        raise MemoryError(
            f"the sums of {len(pairs):,} pairs of checkpoints in {len(parameters.groups):,} groups take "
            f"{human_bytes(needed)}, more than the {human_bytes(free)} of free memory: choose groups='all', or fewer "
            "pairs with pairs='log'"
        )
    work = _Work(parameters, checkpoints, pairs, thresholds)
    n_tensor = sum(len(bucket.pieces) for bucket in parameters.buckets)
    cells = len(parameters.buckets), parameters.n_cells
    state = State.empty(cells, len(work.rows), len(pairs), len(thresholds), n_tensor)
    if unfinished is not None:
        unfinished.expect(parameters, pairs, thresholds, (_TILE, work.is_fused))
        unfinished.load(state, lambda: sum(1 for _ in _tiles(parameters)))
    if pairs:
        _run(work, state, _Sizes(parameters, pairs, memory), progress, unfinished)
    result = Sums(work.moments(state), work.not_finite(state))
    if unfinished is not None:
        unfinished.remove()
    return result


# ---------------------------------------------------------------------- blocks


class _Block(NamedTuple):
    """Consecutive tiles of one bucket, which are read at once.

    The tiles of a unit are summed at once. They have one cell and one size, and follow one another.
    """

    bucket: int
    start: int
    stop: int
    units: list[list[Tile]]


class _Part(NamedTuple):
    """The coordinates of a tensor in a block, ``start ... stop`` of the block, from ``first`` on or at ``indices``."""

    name: str
    start: int
    stop: int
    first: int
    indices: Tensor | None


def _tiles(parameters: TrackedParameters) -> Iterator[tuple[int, Tile]]:
    for index, bucket in enumerate(parameters.buckets):
        for tile in bucket.each_tile(_TILE):
            yield index, tile


def _blocks(parameters: TrackedParameters, size: int, together: int = 1, done: int = 0) -> Iterator[_Block]:
    """Cut the coordinates after the first ``done`` tiles into blocks.

    Args:
        parameters: the coordinates.
        size: the most coordinates of a block.
        together: the most tiles of a unit.
        done: number of tiles that are left out.
    """
    block: _Block | None = None
    for bucket, tile in islice(_tiles(parameters), done, None):
        if block is not None and block.bucket == bucket and tile.stop - block.start <= size:
            last = block.units[-1]
            alike = last[-1].cell == tile.cell and last[-1].stop - last[-1].start == tile.stop - tile.start
            if alike and len(last) < together:
                last.append(tile)
            else:
                block.units.append([tile])
            block = block._replace(stop=tile.stop)
        else:
            if block is not None:
                yield block
            block = _Block(bucket, tile.start, tile.stop, [[tile]])
    if block is not None:
        yield block


def _parts(block: _Block) -> list[_Part]:
    parts = []
    for piece in _pieces(tile for unit in block.units for tile in unit):
        start, stop = max(piece.start, block.start), min(piece.stop, block.stop)
        a, b = start - piece.start, stop - piece.start
        indices = None if piece.indices is None else piece.indices[a:b]
        parts.append(_Part(piece.source.name, start - block.start, stop - block.start, a, indices))
    return parts


def _pieces(tiles: Iterable[Tile]) -> list[Piece]:
    return list(dict.fromkeys(piece for tile in tiles for piece in tile.pieces))


def _fill(parts: Sequence[_Part], checkpoint: Checkpoint, out: Tensor, stop: threading.Event | None = None) -> None:
    """Read a block of one checkpoint into the vector ``out``."""
    for part in parts:
        if stop is not None and stop.is_set():
            return
        tensor, target = checkpoint[part.name], out[part.start : part.stop]
        if part.indices is None:
            tensor.read(part.first, target)
        else:
            tensor.gather(part.indices, target)


class _Sizes:
    """Sizes of the parts of the memory.

    Attributes:
        n_row: number of checkpoints that are read.
        threads: number of threads that sum.
        scratch: bytes of the scratch memory of each thread.
        block: number of coordinates of a block.
        bytes_of_block: bytes of a block.
        blocks: bytes of all blocks that are in memory at once.
        together: number of tiles that are summed at once.
    """

    def __init__(self, parameters: TrackedParameters, pairs: Sequence[tuple[int, int]], memory: int | None) -> None:
        n_row = len({index for pair in pairs for index in pair})
        later = Counter(i for i, _ in pairs).values()
        height = min(_ROWS, max(later, default=1))
        memory = usable_memory() if memory is None else memory
        width = max(bucket.dtype.itemsize for bucket in parameters.buckets)
        wide = max(_sum_dtype(bucket.dtype).itemsize for bucket in parameters.buckets)
        longest = max(bucket.numel for bucket in parameters.buckets)
        tile = min(_TILE, longest)
        self.n_row = n_row
        n_batch = sum(-(-n // _ROWS) for n in later)
        self.together = max(
            1, min(_ROWS * n_batch // max(len(pairs), 1), _ROWS_OF_UNIT // max(n_row, 1), longest // tile)
        )
        self.scratch = wide * tile * self.together * (2 * height + n_row)
        self.threads = max(1, min(torch.get_num_threads(), memory // 2 // max(self.scratch, 1)))
        left = (memory - self.threads * self.scratch) // (2 * width * max(n_row, 1))
        self.block = max(tile, min(longest, _BLOCK_BYTES // width, left))
        self.bytes_of_block = n_row * self.block * width
        total = sum(bucket.numel for bucket in parameters.buckets)
        self.blocks = self.bytes_of_block * (1 if self.block >= total else 2)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---------------------------------------------------------------------- sums


@dataclass(frozen=True)
class _Batch:
    """Later rows that are summed at once against an earlier row, and the place of their sums."""

    earlier: int
    later: slice | Tensor
    n: int
    place: int


class _OfUnit(NamedTuple):
    """The sums of the tiles of a unit.

    Attributes:
        own: sums of w^2 and of w, ``[n_row, n_tile, 2]``.
        pair: sums of each pair, ``[n_pair, n_tile, 2 + n_threshold]``.
        not_finite: (tensor, row) of each tensor with a value that is not finite.
    """

    own: NDArray[np.float64]
    pair: NDArray[np.floating]
    not_finite: list[tuple[int, int]]


class _Work:
    """The rows and the pairs in the order in which they are summed."""

    def __init__(
        self,
        parameters: TrackedParameters,
        checkpoints: Sequence[Checkpoint],
        pairs: Sequence[tuple[int, int]],
        thresholds: Sequence[float],
    ) -> None:
        self.parameters, self.thresholds = parameters, tuple(thresholds)
        self.used = sorted({index for pair in pairs for index in pair})
        self.rows = [checkpoints[index] for index in self.used]
        row = {index: number for number, index in enumerate(self.used)}
        self._order = sorted(range(len(pairs)), key=lambda k: pairs[k])
        ordered = [(row[pairs[k][0]], row[pairs[k][1]]) for k in self._order]
        self._earlier, self._later = ([pair[end] for pair in ordered] for end in (0, 1))
        self._batches: list[_Batch] = []
        start = 0
        while start < len(ordered):
            stop = start + 1
            while stop < min(len(ordered), start + _ROWS) and ordered[stop][0] == ordered[start][0]:
                stop += 1
            first, last = self._later[start], self._later[stop - 1]
            neighbours = last - first == stop - start - 1
            later = slice(first, last + 1) if neighbours else torch.tensor(self._later[start:stop], device="cpu")
            self._batches.append(_Batch(ordered[start][0], later, stop - start, start))
            start = stop
        self._height = max((batch.n for batch in self._batches), default=1)
        self.is_fused = _is_fused(parameters)
        if self.is_fused:
            fused.compiled()  # else each thread would make and compile a loop of its own
        self.numbers: dict[str, int] = {}
        for bucket in parameters.buckets:
            for piece in bucket.pieces:
                self.numbers[piece.source.name] = len(self.numbers)

    @torch.no_grad()
    def sum_unit(self, unit: list[Tile], rows: Tensor, scratch: Tensor, stop: threading.Event) -> _OfUnit | None:
        """Return the sums of all pairs of some tiles, or ``None`` after a request to stop.

        Args:
            unit: the tiles, all of one size.
            rows: their values, ``[n_row, n]``.
            scratch: memory of this thread, as bytes.
            stop: set to stop early.
        """
        n, dtype = rows.shape[1], _sum_dtype(rows.dtype)
        tall, memory = self._height * n, scratch.view(dtype)
        x, y, wide = memory[:tall], memory[tall : 2 * tall], memory[2 * tall : 2 * tall + rows.numel()]
        if rows.dtype != dtype:
            rows = wide.view(rows.shape).copy_(rows)
        rows = rows.unflatten(-1, (len(unit), -1))
        own = torch.cat([own_sums(some, x[: some.numel()].view(some.shape)) for some in rows.split(self._height)])
        if self.is_fused:
            ends = np.array(self._earlier), np.array(self._later)
            of_pairs = fused.pair_sums(rows.numpy(), *ends, self.thresholds, D4_SCALE)
            return _OfUnit(own.numpy(), of_pairs, self._find_not_finite(unit, rows.flatten(1), own))
        found = torch.empty(len(self._order), len(unit), 2 + len(self.thresholds), dtype=dtype, device="cpu")
        zero = torch.zeros((), dtype=dtype, device="cpu")
        for batch in self._batches:
            if stop.is_set():
                return None
            x_k, y_k = (vector[: batch.n * n].view(batch.n, *rows.shape[1:]) for vector in (x, y))
            later = batch.later
            w = rows[later] if isinstance(later, slice) else torch.index_select(rows, 0, later, out=x_k)
            sums = pair_sums(w, rows[batch.earlier].expand_as(w), self.thresholds, x_k, y_k, zero)
            torch.stack(sums, dim=-1, out=found[batch.place : batch.place + batch.n])
        return _OfUnit(own.numpy(), found.numpy(), self._find_not_finite(unit, rows.flatten(1), own))

    def _find_not_finite(self, unit: list[Tile], rows: Tensor, own: Tensor) -> list[tuple[int, int]]:
        # The sum of a row is finite only if all of its values are. The sum of large values may overflow.
        suspects = torch.nonzero(~torch.isfinite(own[..., 1]).all(-1)).flatten().tolist()
        start = unit[0].start
        return [
            (self.numbers[piece.source.name], row)
            for row in suspects
            for piece in _pieces(unit)
            if not rows[row, max(piece.start - start, 0) : piece.stop - start].isfinite().all()
        ]

    def moments(self, state: State) -> NDArray[np.float64]:
        """Return the moments ``[n_pair, n_group, n_moment]``, in the order in which the pairs were given."""
        columns = [
            in_columns(
                torch.from_numpy(pair),
                torch.from_numpy(own[:, self._later]),
                torch.from_numpy(own[:, self._earlier]),
                len(self.thresholds),
            ).numpy()
            for own, pair in zip(state.own, state.pair, strict=True)
        ]
        of_groups = np.moveaxis(self.parameters.by_group(columns), 0, 1)
        result = np.empty(of_groups.shape)
        result[self._order] = of_groups
        return result

    def not_finite(self, state: State) -> dict[str, list[int]]:
        """Return the checkpoints in which a tensor is not finite."""
        return {
            name: [self.used[row] for row in np.flatnonzero(state.not_finite[number])]
            for name, number in self.numbers.items()
            if state.not_finite[number].any()
        }


# ---------------------------------------------------------------------- the pass


def _run(
    work: _Work,
    state: State,
    sizes: _Sizes,
    progress: Callable[[int, int], object] | None,
    unfinished: Unfinished | None,
) -> None:
    """Sum the tiles that are not in the state yet."""
    parameters = work.parameters
    n_bytes = [bucket.dtype.itemsize * sizes.n_row for bucket in parameters.buckets]  # of one coordinate
    total = sum(n * bucket.numel for n, bucket in zip(n_bytes, parameters.buckets, strict=True))
    done = sum(n_bytes[i] * (tile.stop - tile.start) for i, tile in islice(_tiles(parameters), state.done))
    shown = time.monotonic()
    if progress is not None:
        progress(done, total)
    try:
        with _Threads(work, sizes) as threads:
            for index, unit, sums in threads.sums(_blocks(parameters, sizes.block, sizes.together, state.done)):
                state.add(index, unit[0].cell, *sums)
                done += n_bytes[index] * (unit[-1].stop - unit[0].start)
                if progress is not None and (done == total or time.monotonic() - shown >= _PROGRESS_EVERY):
                    progress(done, total)
                    shown = time.monotonic()
                if unfinished is not None:
                    unfinished.save_sometimes(state)
    except BaseException:
        if unfinished is not None:
            unfinished.save_at_a_stop(state, done / total)
        raise


class _Threads:
    """Threads that read and threads that sum, each with kernels of one thread.

    A kernel with several threads would split each operation. That costs more than half of the gain for tiles that fit
    in a cache, and all of it beside other load.
    """

    def __init__(self, work: _Work, sizes: _Sizes) -> None:
        self._work, self._sizes, self._stop = work, sizes, threading.Event()
        self._n_before = torch.get_num_threads()
        self._readers, self._summers = (
            ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) for n in (_READERS, sizes.threads)
        )
        self._scratch = [torch.empty(sizes.scratch, dtype=torch.uint8, device="cpu") for _ in range(sizes.threads)]
        self._free: list[Tensor] = []

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for pool in (self._readers, self._summers):
            pool.shutdown(cancel_futures=True)
        # Each thread has set the number for all threads that torch will see first.
        torch.set_num_threads(self._n_before)

    def sums(self, blocks: Iterator[_Block]) -> Iterator[tuple[int, list[Tile], _OfUnit]]:
        """Yield the sums of all units of all blocks, in order. The next block is read while a block is summed."""
        ahead = self._read(next(blocks, None))
        while ahead is not None:
            block, memory, rows, reads = ahead
            for read in reads:
                _wait_for(read)
            ahead = self._read(next(blocks, None))
            waiting: deque[tuple[list[Tile], Future[_OfUnit | None]]] = deque()
            for unit in [*block.units, *[None] * (2 * self._sizes.threads)]:
                if unit is not None:
                    values = rows[:, unit[0].start - block.start : unit[-1].stop - block.start]
                    waiting.append((unit, self._summers.submit(self._sum, unit, values)))
                if waiting and (unit is None or len(waiting) > 2 * self._sizes.threads):
                    of_unit, sums = waiting.popleft()
                    found = _wait_for(sums)
                    assert found is not None  # there was no request to stop
                    yield block.bucket, of_unit, found
            self._free.append(memory)

    def _read(self, block: _Block | None) -> tuple[_Block, Tensor, Tensor, list[Future[None]]] | None:
        """Start to read a block."""
        if block is None:
            return None
        n_row, n, dtype = self._sizes.n_row, block.stop - block.start, self._work.parameters.buckets[block.bucket].dtype
        memory = (
            self._free.pop() if self._free else torch.empty(self._sizes.bytes_of_block, dtype=torch.uint8, device="cpu")
        )
        rows = memory[: n_row * n * dtype.itemsize].view(dtype).view(n_row, n)
        parts = _parts(block)
        reads = [
            self._readers.submit(_fill, parts, checkpoint, row, self._stop)
            for checkpoint, row in zip(self._work.rows, rows, strict=True)
        ]
        return block, memory, rows, reads

    def _sum(self, unit: list[Tile], rows: Tensor) -> _OfUnit | None:
        scratch = self._scratch.pop()
        try:
            return self._work.sum_unit(unit, rows, scratch, self._stop)
        finally:
            self._scratch.append(scratch)


def _wait_for(future: Future[_T]) -> _T:
    """Return the result of another thread."""
    while not future.done():
        # An interrupt cannot end a longer wait on Windows, or if another thread gets the signal.
        wait([future], timeout=0.2)
    return future.result()
