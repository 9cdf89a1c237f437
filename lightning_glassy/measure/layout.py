"""Lay out the tracked coordinates: their tensors, their groups, and their order in memory.

A *cell* is the set of all coordinates that belong to exactly the same groups. Cells are disjoint, and every group is a
union of cells. The device sums over cells, and the host adds cells up to groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.shards import Block, ParametersChangedError, Processes, Shard, block_of

_SAMPLE_SEED = 20180307  # any fixed number makes two runs sample the same coordinates

ROUNDING_MARGIN = 4
"""Squared displacements of so many times the resolution of a dtype are not explained by its rounding."""


class _Source:
    """The part of a tracked tensor that this process holds, as a flat run of coordinates in memory order.

    The order is fixed at construction (channels-last weights keep their memory order). A snapshot and the current
    weights therefore always have the same order. If the tensor is dense, the flat form is a view and costs nothing.
    With replicas, the flat form has one row per replica, ``[n_replica, n]``. Positions and stretches then count within
    a row.
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
        """Return the tensor itself, or its shard in this process."""
        return self.parameter.held() if isinstance(self.parameter, Shard) else self.parameter

    def _real(self) -> Tensor:
        tensor = self.held().detach()
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor

    def _flat(self) -> Tensor | None:
        """Return all coordinates as a view, or None if the tensor is not dense (its flat form would be a copy)."""
        form = (self.parameter.shape, self.parameter.dtype, self.parameter.device)
        if form != self._form:
            raise ParametersChangedError(
                f"the parameter {self.name!r} was {tuple(self._form[0])} {self._form[1]} on {self._form[2]} at first "
                f"and is {tuple(form[0])} {form[1]} on {form[2]} now: earlier weights cannot be compared with it"
            )
        # A view is valid until the weights move in memory, as by `p.data = ...`.
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
        """Convert flat row-major positions to positions in memory order, sorted."""
        shape, order = self._real().shape, self.order
        if self._n_replica is not None:
            shape, order = shape[1:], [dim - 1 for dim in order[1:]]
        return in_order(positions, shape, order).sort().values

    @property
    def dense(self) -> bool:
        """Whether the coordinates are contiguous in memory (with replicas: within each replica)."""
        return self._flat() is not None

    def stretch(self, start: int, stop: int) -> Tensor:
        """Return the coordinates ``start ... stop`` as a view.

        If the tensor is not dense, copy the rows that contain these coordinates.
        """
        flat = self._flat()
        if flat is not None:
            return flat[..., start:stop]
        ordered = self._real().permute(self.order)
        width = ordered.numel() // len(ordered)
        first = start // width
        rows = ordered[first : -(-stop // width)].reshape(-1)
        return rows[start - first * width : stop - first * width]

    def sample(self, indices: Tensor, out: Tensor) -> Tensor:
        """Return the coordinates at the flat positions ``indices``.

        The result is in ``out`` if the tensor is dense and ``out`` has the dtype and the device of the weights.
        Otherwise it is a new tensor.
        """
        flat = self._flat()
        if flat is None:
            real = self._real()
            reach = 1 + sum((size - 1) * stride for size, stride in zip(real.shape, real.stride(), strict=True))
            return real.as_strided((reach,), (1,)).index_select(0, self._scatter(indices))
        if out.dtype == flat.dtype and out.device == flat.device:
            return torch.index_select(flat, -1, indices, out=out)
        return flat.index_select(-1, indices)

    def write(self, values: Tensor) -> None:
        """Set all coordinates to the values of a flat copy."""
        tensor = self.held().data
        ordered = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).permute(self.order)
        ordered.copy_(values.view(ordered.shape))

    def _scatter(self, indices: Tensor) -> Tensor:
        """Return the distance of coordinates from the first element in memory, in elements.

        Integer operations on ``indices`` suffice, so the host does not wait for the device.
        """
        real = self._real()
        places, left = torch.zeros_like(indices), indices
        for dim in reversed(self.order):
            places += left % real.shape[dim] * real.stride(dim)
            left = left // real.shape[dim]
        return places

    def locate(self, indices: Tensor | None, replica: int = 0) -> tuple[int, Tensor | None]:
        """Return the address of the first element (of the replica), and the places of the wanted coordinates.

        The places are distances in elements from this address. They are ``None`` if all coordinates are wanted and the
        tensor is dense.
        """
        flat = self._flat()
        if flat is not None:
            skipped = replica * flat.stride(0) * flat.element_size() if replica else 0
            return self.held().data_ptr() + skipped, indices
        everything = torch.arange(self._real().numel(), device=self.parameter.device)
        return self.held().data_ptr(), self._scatter(everything if indices is None else indices)


def in_order(positions: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Convert flat row-major positions to flat positions with the dimensions in ``order``, slowest first."""
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
    """A stretch of a bucket's coordinates from one tensor, and their places in memory.

    Attributes:
        cell: the cell of all these coordinates.
        start: first coordinate, in the bucket. With replicas, the rows of the bucket follow one another.
        stop: end, in the bucket.
        address: address of the first element of the tensor, or of the replica.
        places: distance of each coordinate from ``address``, in elements, int64. ``None`` if the coordinates are
            contiguous.
    """

    cell: int
    start: int
    stop: int
    address: int
    places: Tensor | None


@dataclass(frozen=True)
class Piece:
    """A stretch of a bucket's flat coordinates, and their positions in the source tensor."""

    source: _Source
    start: int  # in the bucket
    stop: int
    indices: Tensor | None  # flat positions in the source for a sample, None for the whole source

    def read(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Return the coordinates ``start ... stop`` of the bucket, which must be within this piece.

        The result is a view if the tensor is dense and not sampled. A sample is gathered into ``out`` if the tensor is
        dense and ``out`` has the dtype and the device of the weights.
        """
        a, b = start - self.start, stop - self.start
        return self.source.stretch(a, b) if self.indices is None else self.source.sample(self.indices[a:b], out)


@dataclass(frozen=True)
class Tile:
    """A run of a bucket's coordinates in one cell, which is the unit of work of a measurement."""

    start: int
    stop: int
    cell: int
    pieces: tuple[Piece, ...]


class Bucket:
    """All tracked coordinates of one dtype on one device, as one flat vector that is never materialised.

    With replicas the bucket has one row per replica. Starts, stops and tiles then count coordinates within a row.

    Attributes:
        device: device of the weights.
        dtype: dtype of the weights.
        numel: number of coordinates, over all replicas.
        shape: shape of a flat copy, ``[numel]`` or ``[n_replica, numel / n_replica]``.
        pieces: the stretches of tensors that make up the bucket.
        cells: the cell of each piece.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        pieces: list[Piece],
        cells: list[int],
        n_replica: int | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.shape = (pieces[-1].stop,) if n_replica is None else (n_replica, pieces[-1].stop)
        self.numel = math.prod(self.shape)
        self.pieces, self.cells, self._n_replica = pieces, cells, n_replica
        parameters = [piece.source.parameter for piece in pieces]
        # A shard is not always held in the same tensor.
        self._tensors = [] if any(isinstance(p, Shard) for p in parameters) else cast("list[Tensor]", parameters)

    @property
    def sum_dtype(self) -> torch.dtype:
        """Dtype of the sums over tiles: float64, or float32 on MPS, which has no float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def dense(self) -> bool:
        """Whether the tensors are contiguous in memory, in the order of their dimensions."""
        return all(piece.source.dense for piece in self.pieces)

    @property
    def scattered(self) -> bool:
        """Whether some coordinates are not contiguous in memory, because of a sample or a tensor that is not dense."""
        return not self.dense or any(piece.indices is not None for piece in self.pieces)

    def over(self, flat: Tensor) -> Bucket:
        """Return a bucket with the same cells that reads its coordinates from ``flat`` instead of the parameters.

        ``flat`` must have the shape of this bucket.
        """
        pieces = [
            Piece(
                _Source(piece.source.name, flat[..., piece.start : piece.stop], self._n_replica),
                piece.start,
                piece.stop,
                None,
            )
            for piece in self.pieces
        ]
        return Bucket(flat.device, flat.dtype, pieces, self.cells, self._n_replica)

    @property
    def gathers(self) -> bool:
        """Whether some tile may have to be assembled from several places in memory."""
        return len(self.pieces) > 1 or any(piece.indices is not None for piece in self.pieces)

    def tiles(self, size: int, *, across_cells: bool = False) -> list[Tile]:
        """Cut the bucket into tiles of at most ``size`` coordinates, over all replicas.

        Small tensors of one cell share a tile. With ``across_cells``, small tensors of different cells also share a
        tile.
        """
        return list(self.each_tile(size, across_cells=across_cells))

    def each_tile(self, size: int, *, across_cells: bool = False) -> Iterator[Tile]:
        """Make the same tiles one after the other. A list of the tiles of a large model would take much memory."""
        size = max(1, size // (self._n_replica or 1))
        first = end = 0  # the tile that grows
        pieces: list[Piece] = []
        of_tile = 0
        for piece, cell in zip(self.pieces, self.cells, strict=True):
            # A tile of several pieces is assembled by a copy. A large tensor starts a new tile to avoid the copy.
            large = piece.stop - piece.start >= size // 2 and piece.indices is None
            while end < piece.stop:
                joins = not large and (across_cells or of_tile == cell) and end - first < size
                if pieces and not joins:
                    yield Tile(first, end, of_tile, tuple(pieces))
                    first, pieces = end, []
                if not pieces or pieces[-1] is not piece:
                    pieces.append(piece)
                of_tile, end = cell, min(piece.stop, first + size)
        if pieces:
            yield Tile(first, end, of_tile, tuple(pieces))

    def rows(self, vector: Tensor, n: int) -> Tensor:
        """Return the first elements of a vector as a buffer for ``n`` coordinates: ``[n]`` or ``[n_replica, n]``."""
        return vector[:n] if self._n_replica is None else vector[: self._n_replica * n].view(-1, n)

    def read(self, tile: Tile, out: Tensor) -> Tensor:
        """Return the current weights of a tile, in the dtype of the vector ``out``.

        The result is a view of the parameter if possible. Otherwise it is a copy in ``out``, or in new memory
        if the tensor is not dense.
        """
        whole = self.rows(out, tile.stop - tile.start)
        if len(tile.pieces) == 1:
            values = tile.pieces[0].read(tile.start, tile.stop, whole)
            return values if values.dtype == out.dtype else whole.copy_(values)
        ends = [(piece, max(piece.start, tile.start), min(piece.stop, tile.stop)) for piece in tile.pieces]
        if all(piece.indices is None for piece in tile.pieces):
            # Concatenate in one call. A separate copy of each piece would cost as much again as a pass over the tile.
            return torch.cat([piece.read(start, stop, whole) for piece, start, stop in ends], dim=-1, out=whole)
        for piece, start, stop in ends:
            _put(piece, start, stop, whole[..., start - tile.start : stop - tile.start])
        return whole

    def layout(self) -> tuple[object, ...]:
        """Return the addresses and sizes of the tensors, and their strides if they are not contiguous.

        The result changes if a tensor moves in memory. This runs at every event, so it calls methods written in C.
        """
        tensors = self._tensors or [piece.source.held() for piece in self.pieces]
        contiguous = list(map(Tensor.is_contiguous, tensors))
        strides = [] if all(contiguous) else list(map(Tensor.stride, tensors))
        return list(map(Tensor.data_ptr, tensors)), list(map(Tensor.numel, tensors)), strides

    def extents(self) -> list[Extent]:
        """Return the current places of all coordinates in memory, in the order of the bucket.

        The result is valid as long as :meth:`layout` does not change.

        Raises:
            ParametersChangedError: a tensor has another shape, dtype or device than at the start.
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
            for piece, cell in zip(self.pieces, self.cells, strict=True)
        ]

    def copy_to(self, flat: Tensor) -> None:
        """Copy the current weights into ``flat``, which has the shape and the device of this bucket."""
        if all(piece.indices is None for piece in self.pieces):
            torch.cat([piece.read(piece.start, piece.stop, flat) for piece in self.pieces], dim=-1, out=flat)
            return
        for piece in self.pieces:
            _put(piece, piece.start, piece.stop, flat[..., piece.start : piece.stop])

    def put_between(self, first: Tensor, last: Tensor, alpha: float) -> None:
        r"""Set the weights to :math:`(1 - \alpha)\,first + \alpha\,last`, bit for bit at the two ends.

        Args:
            first: a flat copy of the weights, of this shape, on any device.
            last: another flat copy of the weights.
            alpha: between 0 and 1.

        Raises:
            ValueError: only a sample is tracked, so ``first`` and ``last`` do not hold all weights.
        """
        if any(piece.indices is not None for piece in self.pieces):
            raise ValueError("only a sample of the weights is tracked: set sample=None to track all weights")
        for piece in self.pieces:
            a, b = (flat[..., piece.start : piece.stop].to(self.device) for flat in (first, last))
            if 0 < alpha < 1:
                wide = torch.promote_types(self.dtype, torch.float32)
                a = torch.lerp(a.to(wide), b.to(wide), alpha)
            piece.source.write(b if alpha == 1 else a)


def _put(piece: Piece, start: int, stop: int, target: Tensor) -> None:
    values = piece.read(start, stop, target)
    if values.data_ptr() != target.data_ptr():
        target.copy_(values, non_blocking=True)


class Stretch(NamedTuple):
    """A run of coordinates in a flat copy of the weights, and the block of the parameter that they come from.

    Attributes:
        name: name of the parameter.
        offsets: offsets of the block in the parameter, for each dimension.
        sizes: sizes of the block, for each dimension.
        order: the dimensions in the order of memory, from the slowest to the fastest.
        numel: number of coordinates per replica. A sample has fewer coordinates than the block.
    """

    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    numel: int


class TrackedParameters:
    """The tracked coordinates, laid out for measuring: buckets by device and dtype, cells by group membership.

    Args:
        selected: the parameters from :func:`select_parameters`.
        sample: number of coordinates to draw, uniformly without replacement. ``None``, or a number not below the total,
            takes all coordinates. The draw uses its own generator and does not change the global random state. All
            replicas use the same sample.
    """

    def __init__(self, selected: Sequence[Selected], sample: int | None = None) -> None:
        self.tensors = {p.name: p.tensor.parameter if isinstance(p.tensor, Shard) else p.tensor for p in selected}
        """The parameters themselves, by name."""
        self.dtypes = {parameter.name: parameter.dtype for parameter in selected}
        self.n_replica = selected[0].n_replica
        self.groups: tuple[str, ...] = ("all", *dict.fromkeys(g for parameter in selected for g in parameter.groups))
        memberships = list(dict.fromkeys(parameter.groups for parameter in selected))
        number = {member: cell for cell, member in enumerate(memberships)}
        n_member = len(memberships)
        self.n_cells = n_member * (self.n_replica or 1)
        """Number of cells: one for each distinct set of groups, times the number of replicas."""
        self.cells_of: dict[str, list[int]] = {group: [] for group in self.groups}
        for cell, member in enumerate(memberships):
            for group in dict.fromkeys(("all", *member)):
                self.cells_of[group].append(cell)
        # Groups with equal numbers of cells are summed together: their places, and their cells [n_group, n_cell].
        by_number: dict[int, list[int]] = {}
        for place, cells in enumerate(self.cells_of.values()):
            by_number.setdefault(len(cells), []).append(place)
        members_of = list(self.cells_of.values())
        self._sums_of_cells = [
            (np.array(places), np.array([members_of[place] for place in places])) for places in by_number.values()
        ]
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

        # Rounding to a mantissa m of spacing eps moves a weight by a mean square of eps^2/12 <m^-2> w^2. This is
        # 0.045 eps^2 w^2 if the logarithms of the weights are spread evenly (2.7e-6 w^2 for bfloat16).
        rounded = dict.fromkeys(self.groups, 0.0)
        for parameter in selected:
            for group in dict.fromkeys(("all", *parameter.groups)):
                rounded[group] += parameter.numel * 0.045 * torch.finfo(parameter.dtype).eps ** 2
        self.resolution = {group: rounded[group] / self.n_parameters[group] for group in self.groups}
        """For each group, the MSD over the mean squared weight, below which rounding to the dtype hides motion."""

        self.buckets: list[Bucket] = []
        for (device, dtype), members in parts.items():
            pieces, cells, start = [], [], 0
            # Put sizes that are not multiples of 16 last. All other tensors then start at multiples of 16, as vector
            # loads need. Keep the tensors of a cell together, so that small tensors share a tile.
            placed = sorted(members, key=lambda member: (member[3] % 16 != 0, member[0], -member[3]))
            for cell, source, indices, numel in placed:
                pieces.append(Piece(source, start, start + numel, indices))
                cells.append(cell)
                start += numel
            self.buckets.append(Bucket(device, dtype, pieces, cells, self.n_replica))

    def over(self, flats: Sequence[Tensor]) -> TrackedParameters:
        """Return the same coordinates and groups for a copy of the weights.

        Args:
            flats: per bucket a tensor of its shape.
        """
        there = copy(self)
        there.buckets = [bucket.over(flat) for bucket, flat in zip(self.buckets, flats, strict=True)]
        return there

    def layout(self) -> list[list[Stretch]]:
        """Return the layout of a flat copy of the weights: per bucket the stretches of its tensors, in order."""
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
        """Return the flat position in the parameter of each coordinate of a stretch, int64.

        The stretch may be from this process or another.
        """
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
        """Convert sums over the cells of each bucket, ``[n_cell, ...]`` each, to sums over groups.

        Returns:
            ``[n_group, ...]``, or ``[n_replica, n_group, ...]`` with replicas.
        """
        cells = buckets[0] if len(buckets) == 1 else sum(buckets[1:], start=buckets[0])
        if self.n_replica is None and len(self.groups) == 1:
            return cells
        cells = cells.reshape(-1, self.n_replica or 1, *cells.shape[1:])
        groups = np.empty((len(self.groups), *cells.shape[1:]))
        for places, members in self._sums_of_cells:
            # Each sum adds the cells one after the other, in their order.
            groups[places] = cells[members[:, 0]] if members.shape[1] == 1 else cells[members].sum(axis=1)
        return groups[:, 0] if self.n_replica is None else groups.swapaxes(0, 1)

    def standard_deviation(self, processes: Processes | None = None) -> float:
        """Return the current standard deviation of the tracked coordinates.

        Call this only at the start of a run, because the host waits for the device.

        Args:
            processes: the processes that together hold the parameters.
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
    """Return whether squared displacements are so small that rounding of the weights may explain them.

    Args:
        d2: sums of squared displacements.
        s2: sums of the squared weights.
        resolution: resolution of the weights' dtype, from :attr:`TrackedParameters.resolution`.
    """
    moved, squares = np.asarray(d2), np.asarray(s2)
    # 16-bit weights that do not move at all are suspect, too. Float32 weights that do not move may have no gradient.
    suspect = (moved > 0) | (np.asarray(resolution) > 1e-9)
    return np.asarray(suspect & (squares > 0) & (moved <= ROUNDING_MARGIN * np.asarray(resolution) * squares))


def _sample_coordinates(total: int, n: int) -> Tensor:
    """Draw ``n`` numbers of ``range(total)``, each subset equally likely, with O(n) memory.

    The result is sorted, int64 and on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(_SAMPLE_SEED)
    if 4 * n >= total:
        return torch.randperm(total, generator=generator, device="cpu")[:n].sort().values
    chosen = torch.empty(0, dtype=torch.int64, device="cpu")
    while len(chosen) < n:
        more = torch.randint(total, (n + n // 4 + 16,), generator=generator, device="cpu")
        chosen = torch.unique(torch.cat([chosen, more]))
    # `unique` sorts. Drop the surplus at random, because cutting the end would favour small indices.
    return chosen[torch.randperm(len(chosen), generator=generator, device="cpu")[:n]].sort().values
