"""What is tracked: which tensors, in which groups, and in which order their coordinates lie in memory.

Every group is a union of *cells*, the disjoint sets of coordinates that belong to exactly the same groups. The
device sums over cells; the host adds cells to groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.shards import Block, ParametersChangedError, Processes, Shard, block_of

_SAMPLE_SEED = 20180307  # any number will do; a fixed one makes two runs sample the same coordinates


class _Source:
    """What this process holds of a tracked tensor, as a flat run of coordinates, in the order in which they lie there.

    The order is fixed once (channels-last weights are walked as they lie), so that a snapshot and the weights it is
    compared with always agree; where the tensor is dense the flat form is a view and costs nothing. With replicas it is
    a row for each, ``[n_replica, n]``; positions and stretches are those within a row.
    """

    def __init__(self, name: str, parameter: Tensor | Shard, n_replica: int | None = None) -> None:
        self.name, self.parameter, self._n_replica = name, parameter, n_replica
        self._form = (parameter.shape, parameter.dtype, parameter.device)
        real = self._real()
        strides = real.stride()
        self.order = sorted(range(real.dim()), key=lambda i: (i > 0 or n_replica is None, -strides[i]))
        self._view: Tensor | None = None
        self._layout: tuple[object, ...] = ()
        if n_replica is not None and not self.dense:
            raise ValueError(f"the parameter {name!r} does not lie in memory row by row, a row for each replica")

    def held(self) -> Tensor:
        """The tensor itself, or the shard of it that is here."""
        return self.parameter.held() if isinstance(self.parameter, Shard) else self.parameter

    def _real(self) -> Tensor:
        tensor = self.held().detach()
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor

    def _flat(self) -> Tensor | None:
        """All coordinates as a view; None where the tensor is not dense, and a flat form would be a copy."""
        form = (self.parameter.shape, self.parameter.dtype, self.parameter.device)
        if form != self._form:
            raise ParametersChangedError(
                f"the parameter {self.name!r} was {tuple(self._form[0])} {self._form[1]} on {self._form[2]} at first "
                f"and is {tuple(form[0])} {form[1]} on {form[2]} now: earlier weights cannot be compared with it"
            )
        # A view stays valid while the weights stay where they are; `p.data = ...` moves them.
        held = self.held()
        layout = (held.data_ptr(), held.stride())
        if self._view is None or self._layout != layout:
            if not layout[0] and held.numel():
                raise ParametersChangedError(f"the memory of the parameter {self.name!r} has been freed")
            ordered = self._real().permute(self.order)
            if self._n_replica is None:
                self._view = ordered.view(-1) if ordered.is_contiguous() else None
            else:
                self._view = ordered.flatten(1) if ordered[0].is_contiguous() else None
            self._layout = layout
        return self._view

    def in_memory(self, positions: Tensor) -> Tensor:
        """Flat positions in row-major order as positions in the order of memory, sorted."""
        shape, order = self._real().shape, self.order
        if self._n_replica is not None:
            shape, order = shape[1:], [dim - 1 for dim in order[1:]]
        return in_order(positions, shape, order).sort().values

    @property
    def dense(self) -> bool:
        """Whether all coordinates lie in a row."""
        return self._flat() is not None

    def stretch(self, start: int, stop: int) -> Tensor:
        """Coordinates ``start ... stop``: a view; of a tensor that is not dense a copy of the rows they lie in."""
        flat = self._flat()
        if flat is not None:
            return flat[..., start:stop]
        ordered = self._real().permute(self.order)
        width = ordered.numel() // len(ordered)
        first = start // width
        rows = ordered[first : -(-stop // width)].reshape(-1)
        return rows[start - first * width : stop - first * width]

    def sample(self, indices: Tensor, out: Tensor) -> Tensor:
        """The coordinates at some flat positions, in ``out`` where that has the dtype and the device of the weights."""
        flat = self._flat()
        if flat is None:
            real = self._real()
            reach = 1 + sum((size - 1) * stride for size, stride in zip(real.shape, real.stride(), strict=True))
            return real.as_strided((reach,), (1,)).index_select(0, self._scatter(indices))
        if out.dtype == flat.dtype and out.device == flat.device:
            return torch.index_select(flat, -1, indices, out=out)
        return flat.index_select(-1, indices)

    def write(self, values: Tensor) -> None:
        """Set all coordinates to those of a flat copy."""
        tensor = self.held().data
        ordered = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).permute(self.order)
        ordered.copy_(values.view(ordered.shape))

    def _scatter(self, indices: Tensor) -> Tensor:
        """Where coordinates lie, in elements from the first: by whole numbers alone, which no device is waited for."""
        real = self._real()
        places, left = torch.zeros_like(indices), indices
        for dim in reversed(self.order):
            places += left % real.shape[dim] * real.stride(dim)
            left = left // real.shape[dim]
        return places

    def locate(self, indices: Tensor | None, replica: int = 0) -> tuple[int, Tensor | None]:
        """The address of the first element; and, unless all coordinates lie in a row, the places of those wanted."""
        flat = self._flat()
        if flat is not None:
            skipped = replica * flat.stride(0) * flat.element_size() if replica else 0
            return self.held().data_ptr() + skipped, indices
        everything = torch.arange(self._real().numel(), device=self.parameter.device)
        return self.held().data_ptr(), self._scatter(everything if indices is None else indices)


def in_order(positions: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Flat positions in a tensor walked row by row, as positions in it walked with its dimensions in another order."""
    if list(order) == list(range(len(shape))):
        return positions
    place, left = torch.zeros_like(positions), positions
    strides = {dim: math.prod(shape[after] for after in order[i + 1 :]) for i, dim in enumerate(order)}
    for dim in reversed(range(len(shape))):
        place += left % shape[dim] * strides[dim]
        left = left // shape[dim]
    return place


@dataclass(frozen=True)
class Extent:
    """A stretch of a bucket's coordinates from one tensor, and where they are in memory.

    Attributes:
        cell: the cell that all of them belong to.
        start: first coordinate, in the bucket (whose rows, of replicas, lie one after the other).
        stop: end, in the bucket.
        address: of the tensor's first element.
        places: of each coordinate the distance from there, in elements, int64; ``None`` where they lie in a row.
    """

    cell: int
    start: int
    stop: int
    address: int
    places: Tensor | None


@dataclass(frozen=True)
class _Piece:
    """A stretch of a bucket's flat coordinates, and where in its source tensor they are found."""

    source: _Source
    start: int  # in the bucket
    stop: int
    indices: Tensor | None  # flat positions in the source where a sample is taken; otherwise the whole source

    def read(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Coordinates ``start ... stop`` of the bucket (within this piece): a view, unless a sample is gathered.

        ``out`` takes the sample where it has the dtype and the device of the weights.
        """
        a, b = start - self.start, stop - self.start
        return self.source.stretch(a, b) if self.indices is None else self.source.sample(self.indices[a:b], out)


@dataclass(frozen=True)
class Tile:
    """A run of a bucket's coordinates that all belong to one cell: the unit of work of a measurement."""

    start: int
    stop: int
    cell: int
    pieces: tuple[_Piece, ...]


class Bucket:
    """All tracked coordinates of one dtype on one device, as one flat vector that is never materialised.

    With replicas it is a row for each: what is said of coordinates below holds for each row.

    Attributes:
        device: where they are.
        dtype: of the weights.
        numel: number of all coordinates.
        shape: of a flat copy, ``[numel]``, or ``[n_replica, numel / n_replica]``.
        pieces: the stretches of tensors it consists of.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        pieces: list[_Piece],
        cells: list[int],
        n_replica: int | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.shape = (pieces[-1].stop,) if n_replica is None else (n_replica, pieces[-1].stop)
        self.numel = math.prod(self.shape)
        self.pieces, self._cells, self._n_replica = pieces, cells, n_replica

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums over tiles are kept in: float64, except on MPS, which has none."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def scattered(self) -> bool:
        """Whether the coordinates of some tensor do not lie in a row: a sample, or a tensor that is not dense."""
        return any(piece.indices is not None or not piece.source.dense for piece in self.pieces)

    def over(self, flat: Tensor) -> Bucket:
        """The same cells, of coordinates that lie in ``flat``, of this shape, instead of in the parameters."""
        pieces = [
            _Piece(
                _Source(piece.source.name, flat[..., piece.start : piece.stop], self._n_replica),
                piece.start,
                piece.stop,
                None,
            )
            for piece in self.pieces
        ]
        return Bucket(flat.device, flat.dtype, pieces, self._cells, self._n_replica)

    @property
    def gathers(self) -> bool:
        """Whether a tile may have to be put together from several places."""
        return len(self.pieces) > 1 or any(piece.indices is not None for piece in self.pieces)

    def tiles(self, size: int) -> list[Tile]:
        """The bucket cut into tiles of at most ``size`` coordinates; small tensors of one cell share a tile."""
        size = max(1, size // (self._n_replica or 1))
        tiles: list[Tile] = []
        for piece, cell in zip(self.pieces, self._cells, strict=True):
            # To put a tile together costs a copy; a large tensor is spared it.
            large = piece.stop - piece.start >= size // 2 and piece.indices is None
            start = piece.start
            while start < piece.stop:
                last = tiles[-1] if tiles and not large else None
                if last is not None and last.cell == cell and last.stop == start and start - last.start < size:
                    stop = min(piece.stop, last.start + size)
                    pieces = last.pieces if last.pieces[-1] is piece else (*last.pieces, piece)
                    tiles[-1] = Tile(last.start, stop, cell, pieces)
                else:
                    stop = min(piece.stop, start + size)
                    tiles.append(Tile(start, stop, cell, (piece,)))
                start = stop
        return tiles

    def rows(self, vector: Tensor, n: int) -> Tensor:
        """The beginning of a vector, as what ``n`` coordinates are put into: ``[n]``, or ``[n_replica, n]``."""
        return vector[:n] if self._n_replica is None else vector[: self._n_replica * n].view(-1, n)

    def read(self, tile: Tile, out: Tensor) -> Tensor:
        """The current weights of a tile, in the dtype of the vector ``out``: a view where possible, otherwise in it."""
        whole = self.rows(out, tile.stop - tile.start)
        if len(tile.pieces) == 1:
            values = tile.pieces[0].read(tile.start, tile.stop, whole)
            return values if values.dtype == out.dtype else whole.copy_(values)
        ends = [(piece, max(piece.start, tile.start), min(piece.stop, tile.stop)) for piece in tile.pieces]
        if all(piece.indices is None for piece in tile.pieces):
            # One call for all of them: a copy each would cost as much again as a pass over the tile.
            return torch.cat([piece.read(start, stop, whole) for piece, start, stop in ends], dim=-1, out=whole)
        for piece, start, stop in ends:
            _put(piece, start, stop, whole[..., start - tile.start : stop - tile.start])
        return whole

    def layout(self) -> list[tuple[object, ...]]:
        """What tells whether a tensor has been put elsewhere in memory. Cheap: for every event."""
        tensors = [piece.source.held() for piece in self.pieces]
        return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]

    def extents(self) -> list[Extent]:
        """Where all the coordinates are at the moment, in the order of the bucket; valid for as long as the layout is.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at first.
        """
        n, columns = self._n_replica or 1, self.shape[-1]
        return [
            Extent(
                cell * n + replica,
                replica * columns + piece.start,
                replica * columns + piece.stop,
                *piece.source.locate(piece.indices, replica),
            )
            for replica in range(n)
            for piece, cell in zip(self.pieces, self._cells, strict=True)
        ]

    def copy_to(self, flat: Tensor) -> None:
        """Copy the current weights into ``flat``, of this shape, on the same device."""
        if all(piece.indices is None for piece in self.pieces):
            torch.cat([piece.read(piece.start, piece.stop, flat) for piece in self.pieces], dim=-1, out=flat)
            return
        for piece in self.pieces:
            _put(piece, piece.start, piece.stop, flat[..., piece.start : piece.stop])

    def put_between(self, first: Tensor, last: Tensor, alpha: float) -> None:
        r"""Set the weights to :math:`(1 - \alpha)\,first + \alpha\,last`: to the bit to one of them at 0 and 1.

        Args:
            first: a flat copy of the weights, of this shape, on any device.
            last: another one.
            alpha: between 0 and 1.

        Raises:
            ValueError: a sample is tracked, and no copy of all weights.
        """
        if any(piece.indices is not None for piece in self.pieces):
            raise ValueError("a sample of the weights is tracked: what the others were is not known (sample=None)")
        for piece in self.pieces:
            a, b = (flat[..., piece.start : piece.stop].to(self.device) for flat in (first, last))
            if 0 < alpha < 1:
                wide = torch.promote_types(self.dtype, torch.float32)
                a = torch.lerp(a.to(wide), b.to(wide), alpha)
            piece.source.write(b if alpha == 1 else a)


def _put(piece: _Piece, start: int, stop: int, target: Tensor) -> None:
    values = piece.read(start, stop, target)
    if values.data_ptr() != target.data_ptr():
        target.copy_(values, non_blocking=True)


class Stretch(NamedTuple):
    """A run of coordinates in a flat copy of the weights: what of which parameter it is.

    Attributes:
        name: of the parameter.
        offsets: of the block of it, for each dimension.
        sizes: of the block.
        order: the dimensions, from the one that is walked slowest to the one that is walked fastest.
        numel: number of coordinates; fewer than the block has where a sample is tracked.
    """

    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    numel: int


class TrackedParameters:
    """The tracked coordinates, laid out for measuring: buckets by device and dtype, cells by group membership.

    Args:
        selected: from :func:`select_parameters`.
        sample: number of coordinates to draw, uniformly without replacement; ``None``, or at least as many as there
            are, takes all. Drawn with a generator of its own: the global random state is not touched. The same ones in
            all replicas.

    Raises:
        ValueError: ``sample`` below 1.
    """

    def __init__(self, selected: Sequence[Selected], sample: int | None = None) -> None:
        if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int) or sample < 1):
            raise ValueError(f"sample={sample!r} must be a whole number of coordinates, at least 1")
        self.tensors = {p.name: p.tensor.parameter if isinstance(p.tensor, Shard) else p.tensor for p in selected}
        """The parameters themselves, by their names."""
        self.dtypes = {parameter.name: parameter.dtype for parameter in selected}
        self.n_replica = selected[0].n_replica
        self.groups: tuple[str, ...] = ("all", *dict.fromkeys(g for parameter in selected for g in parameter.groups))
        memberships = list(dict.fromkeys(parameter.groups for parameter in selected))
        number = {member: cell for cell, member in enumerate(memberships)}
        n_member = len(memberships)
        self.n_cells = n_member * (self.n_replica or 1)
        """Number of cells: for each membership one, or as many as there are replicas."""
        self.cells_of = {
            group: [c for c, member in enumerate(memberships) if group == "all" or group in member]
            for group in self.groups
        }
        total = sum(parameter.numel for parameter in selected)
        chosen = _sample_coordinates(total, sample) if sample is not None and sample < total else None

        n_cell, sampled_cell = [0] * n_member, [0] * n_member
        parts: dict[tuple[torch.device, torch.dtype], list[tuple[int, _Source, Tensor | None, int]]] = {}
        self._chosen: dict[str, Tensor | None] = {}
        offset = 0
        for parameter in selected:
            logical = None
            if chosen is not None:
                ends = torch.searchsorted(chosen, torch.tensor([offset, offset + parameter.numel], device="cpu"))
                logical = chosen[int(ends[0]) : int(ends[1])] - offset
            self._chosen[parameter.name] = logical
            offset += parameter.numel
            cell = number[parameter.groups]
            n_cell[cell] += parameter.numel
            sampled_cell[cell] += parameter.numel if logical is None else len(logical)
            if not parameter.n_counted:
                continue
            source = _Source(parameter.name, parameter.tensor, self.n_replica)
            indices, numel = None, parameter.n_counted
            if logical is not None:
                here = block_of(parameter.tensor).within(logical)
                indices, numel = source.in_memory(here).to(parameter.tensor.device), len(here)
            if numel:
                parts.setdefault((parameter.tensor.device, parameter.dtype), []).append((cell, source, indices, numel))
        self._blocks = {parameter.name: block_of(parameter.tensor) for parameter in selected}
        self._shapes = {p.name: (*p.tensor.shape, 2) if p.tensor.is_complex() else p.tensor.shape for p in selected}
        self.n_parameters = {g: sum(n_cell[c] for c in cells) for g, cells in self.cells_of.items()}
        self.n_sampled = {g: sum(sampled_cell[c] for c in cells) for g, cells in self.cells_of.items()}

        # Rounding to a mantissa of spacing eps moves a weight by a mean square of eps^2/12 <m^-2> w^2, m its mantissa:
        # 0.045 eps^2 w^2 where the logarithms of the weights are spread evenly (2.7e-6 w^2 for bfloat16).
        self.resolution = {
            group: sum(p.numel * 0.045 * torch.finfo(p.dtype).eps ** 2 for p in selected if group in ("all", *p.groups))
            / self.n_parameters[group]
            for group in self.groups
        }
        """For each group the MSD, over the mean squared weight, below which rounding to the own dtype hides motion."""

        self.buckets: list[Bucket] = []
        for (device, dtype), members in parts.items():
            pieces, cells, start = [], [], 0
            # Odd sizes last: those before them start at multiples of 16, as loads of several numbers at once need.
            # Small ones of a cell together: they share a tile.
            placed = sorted(members, key=lambda member: (member[3] % 16 != 0, member[0], -member[3]))
            for cell, source, indices, numel in placed:
                pieces.append(_Piece(source, start, start + numel, indices))
                cells.append(cell)
                start += numel
            self.buckets.append(Bucket(device, dtype, pieces, cells, self.n_replica))

    def over(self, flats: Sequence[Tensor]) -> TrackedParameters:
        """The same coordinates and groups, of a copy of the weights: per bucket a tensor of its shape."""
        there = copy(self)
        there.buckets = [bucket.over(flat) for bucket, flat in zip(self.buckets, flats, strict=True)]
        return there

    def layout(self) -> list[list[Stretch]]:
        """What lies where in a flat copy of the weights: per bucket the stretches that tensors take, in their order."""
        return [
            [
                Stretch(
                    piece.source.name,
                    self._blocks[piece.source.name].offsets,
                    self._blocks[piece.source.name].sizes,
                    tuple(piece.source.order),
                    piece.stop - piece.start,
                )
                for piece in bucket.pieces
            ]
            for bucket in self.buckets
        ]

    def positions(self, stretch: Stretch) -> Tensor:
        """Of each coordinate of a stretch, in this process or another, the flat position in the parameter, int64."""
        shape = tuple(self._shapes[stretch.name])
        # Some kinds of sharding cut the flattened parameter.
        shape = shape if len(shape) == len(stretch.offsets) else (math.prod(shape),)
        block = Block(shape, stretch.offsets, stretch.sizes)
        chosen = self._chosen[stretch.name]
        if chosen is None:
            return block.positions(stretch.order)
        rows = block.within(chosen)
        in_file = in_order(rows, block.sizes, stretch.order).argsort()
        return block.positions(range(len(block.sizes)))[rows[in_file]]

    def by_group(self, buckets: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Sums over the cells of each bucket, ``[n_cell, ...]`` each, as sums over groups.

        Returns:
            ``[n_group, ...]``, with replicas ``[n_replica, n_group, ...]``.
        """
        cells = sum(buckets[1:], start=buckets[0])
        cells = cells.reshape(-1, self.n_replica or 1, *cells.shape[1:])
        groups = np.stack([cells[members].sum(axis=0) for members in self.cells_of.values()], axis=1)
        return groups[0] if self.n_replica is None else groups

    def standard_deviation(self, processes: Processes | None = None) -> float:
        """Standard deviation of the tracked coordinates now. Waits for the device: for the start of a run only.

        Args:
            processes: those that hold the parameters together.
        """
        n, total, squares = 0, 0.0, 0.0
        for bucket in self.buckets:
            scratch = torch.empty(min(bucket.numel, 1 << 18), dtype=bucket.sum_dtype, device=bucket.device)
            for tile in bucket.tiles(len(scratch)):
                values = bucket.read(tile, scratch).reshape(-1)
                n, total, squares = n + len(values), total + float(values.sum()), squares + float(values.dot(values))
        if processes is not None:
            n, total, squares = map(sum, zip(*processes.gather((n, total, squares)), strict=True))
        variance = squares / n - (total / n) * (total / n)
        return math.sqrt(variance) if variance > 0 else 0.0 if variance == variance else math.nan


def within_rounding(d2: ArrayLike, s2: ArrayLike, resolution: ArrayLike) -> NDArray[np.bool_]:
    """Whether sums of squared displacements, of weights with sums of squares ``s2``, are of the order of rounding.

    Args:
        d2: sums of squared displacements.
        s2: sums of the squared weights.
        resolution: of the weights' dtype, from :attr:`TrackedParameters.resolution`.
    """
    moved, squares = np.asarray(d2), np.asarray(s2)
    # Weights of 16 bits that do not move at all are as suspect; float32 ones may just have no gradient.
    suspect = (moved > 0) | (np.asarray(resolution) > 1e-9)
    return np.asarray(suspect & (squares > 0) & (moved <= 4 * np.asarray(resolution) * squares))


def _sample_coordinates(total: int, n: int) -> Tensor:
    """``n`` of ``range(total)``, sorted, each subset equally likely; int64 on the CPU, with O(n) memory."""
    generator = torch.Generator("cpu").manual_seed(_SAMPLE_SEED)
    if 4 * n >= total:
        return torch.randperm(total, generator=generator, device="cpu")[:n].sort().values
    chosen = torch.empty(0, dtype=torch.int64, device="cpu")
    while len(chosen) < n:
        more = torch.randint(total, (n + n // 4 + 16,), generator=generator, device="cpu")
        chosen = torch.unique(torch.cat([chosen, more]))
    # `unique` sorts: dropping the surplus from the end would favour small indices, so drop it at random.
    return chosen[torch.randperm(len(chosen), generator=generator, device="cpu")[:n]].sort().values
