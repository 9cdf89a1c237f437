"""Read a tensor that lies in a file with any strides, block by block and in row-major order."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_glassy.checkpoints.handles import File
from lightning_glassy.checkpoints.stored import Stored, real_dtype
from lightning_glassy.measure.places import Place, each_apart, overlap_of_places, steps_of

_SPARSE = 4  # reading up to this many times the bytes that are needed costs less than reading them one by one
_PIECE = 2**19  # coordinates with strides that are read at once, which bounds the memory
_NEAR = 1024  # coordinates this near to each other are read together


class Memory:
    """A piece of a file in which tensors lie.

    Attributes:
        file: the file.
        key: name of the piece in the file.
        size: number of bytes.
    """

    __slots__ = ("_start", "file", "key", "size")

    def __init__(self, file: File, key: str, size: int, start: int | Callable[[], int]) -> None:
        self.file, self.key, self.size, self._start = file, key, size, start

    @property
    def start(self) -> int:
        """Position of the first byte in the file. It is looked up at the first use."""
        if callable(self._start):
            self._start = self._start()
        return self._start

    @start.setter
    def start(self, start: int) -> None:
        self._start = start


class StridedTensor:
    """A tensor in a file. See :class:`~lightning_glassy.checkpoints.stored.Stored`.

    Args:
        memory: where it lies.
        dtype: dtype.
        shape: shape.
        strides: strides in elements, not negative.
        offset: position of its first element in the memory, in elements.
        problem: the reason why it cannot be measured.

    Raises:
        ValueError: it reaches beyond its memory.
    """

    __slots__ = ("_offset", "_strides", "dtype", "memory", "problem", "shape")

    def __init__(
        self,
        memory: Memory,
        dtype: torch.dtype,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int = 0,
        problem: str | None = None,
    ) -> None:
        self.memory, self.dtype, self.shape = memory, dtype, tuple(shape)
        self._strides, self._offset = tuple(strides), offset
        last = sum([(size - 1) * stride for size, stride in zip(shape, strides, strict=True)])
        if (offset + last + 1) * dtype.itemsize > memory.size and 0 not in self.shape:
            raise ValueError(f"a tensor reaches beyond its memory, the record {memory.key!r}")
        dims = _merged([*zip(shape, strides, strict=True)])
        simple = not dims or (len(dims) == 1 and dims[0][1] > 0) or 0 in self.shape
        if str(dtype).startswith(("torch.q", "torch.float4")):  # torch does no arithmetic with them
            problem = "is a quantised tensor"
        if problem is None and not simple and not each_apart(self._place().steps):
            problem = "is an expanded tensor, in which several elements share one number of the file"
        self.problem = problem

    @property
    def place(self) -> Hashable:
        """The bytes of the file that it covers, and how they are read."""
        return real_dtype(self.dtype), self._place()

    def _place(self) -> Place:
        dims, width, offset = self._real()
        steps = steps_of([(stride * width, size) for size, stride in dims], width)
        return Place((self.memory.file.path, self.memory.key), offset * width, steps)

    def _real(self) -> tuple[list[tuple[int, int]], int, int]:
        """Return sizes and strides of the dimensions of real numbers, the bytes of such a number, and the offset."""
        dims, width, offset = [*zip(self.shape, self._strides, strict=True)], self.dtype.itemsize, self._offset
        if self.dtype.is_complex:
            dims, width, offset = [*((size, 2 * stride) for size, stride in dims), (2, 1)], width // 2, 2 * offset
        return _merged(dims), width, offset

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the coordinates from ``start`` on."""
        dims, width, offset = self._real()
        begin = self.memory.start + offset * width
        if not dims or (len(dims) == 1 and dims[0][1] == 1):
            first = begin + start * width
            self.memory.file.read_into(first, _bytes_of(out))
            return
        for first in range(0, len(out), _PIECE):
            piece = out[first : first + _PIECE]
            for done, box, at in boxes(dims, start + first, len(piece)):
                n = math.prod(size for size, _ in box)
                self._read_box(box, begin + at * width, width, piece[done : done + n])

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """Fill ``out`` with the coordinates at ``positions``, which increase."""
        gather_near(self, positions, out)

    def narrow(self, starts: Sequence[int], sizes: Sequence[int]) -> StridedTensor:
        """Return a box of the tensor."""
        offset = self._offset + sum(a * stride for a, stride in zip(starts, self._strides, strict=True))
        return StridedTensor(self.memory, self.dtype, sizes, self._strides, offset)

    def as_real(self, n_more: int = 0) -> StridedTensor:
        """Return the tensor with a last dimension for real and imaginary parts, and ``n_more`` of size 1."""
        shape, strides, ones = self.shape, self._strides, (1,) * n_more
        if not self.dtype.is_complex:
            return StridedTensor(self.memory, self.dtype, (*shape, *ones), (*strides, *ones), self._offset)
        twice = [2 * stride for stride in strides]
        dtype = real_dtype(self.dtype)
        return StridedTensor(self.memory, dtype, (*shape, *ones, 2), (*twice, *ones, 1), 2 * self._offset)

    def _read_box(self, box: list[tuple[int, int]], begin: int, width: int, out: Tensor) -> None:
        """Read a box of numbers, given by sizes and strides, that begins at a position of the file."""
        sizes, strides = [size for size, _ in box], [stride for _, stride in box]
        order = sorted(range(len(sizes)), key=strides.__getitem__)
        # The dimensions with the smallest strides are read in one piece, if they lie close enough.
        n_inner, run, count = 0, 1, 1
        for i in order:
            wider = run + (sizes[i] - 1) * strides[i]
            if wider > _SPARSE * count * sizes[i]:
                break
            n_inner, run, count = n_inner + 1, wider, count * sizes[i]
        inner, outer = order[:n_inner], order[n_inner:][::-1]
        starts = torch.zeros((), dtype=torch.int64, device="cpu")
        for i in outer:
            starts = starts.unsqueeze(-1) + torch.arange(sizes[i], device="cpu") * strides[i]
        buffer = torch.empty(starts.numel() * run, dtype=real_dtype(self.dtype), device="cpu")
        view = _bytes_of(buffer)
        self.memory.file.read_pieces(
            [
                (begin + start * width, view[i * run * width : (i + 1) * run * width])
                for i, start in enumerate(starts.flatten().tolist())
            ]
        )
        buffer_strides = [0] * len(sizes)
        for i in inner:
            buffer_strides[i] = strides[i]
        for i in reversed(outer):
            buffer_strides[i] = run
            run *= sizes[i]
        out.view(sizes).copy_(buffer.as_strided(sizes, buffer_strides))


class Unreadable:
    """A tensor whose values cannot be read. See :class:`~lightning_glassy.checkpoints.stored.Stored`."""

    def __init__(self, problem: str, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> None:
        self.problem: str | None = problem
        self.shape, self.dtype = tuple(shape), dtype
        self.place: Hashable = id(self)

    def read(self, start: int, out: Tensor) -> None:
        """Refuse."""
        raise ValueError(f"a tensor cannot be read: it {self.problem}")

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """Refuse."""
        self.read(0, out)


def overlapping(named: Iterable[tuple[str, Stored]]) -> tuple[str, str] | None:
    """Return the names of two tensors that share a part of their memory, or ``None``.

    Tensors with equal places are one tensor, which does not overlap itself. Only the first of them is checked.
    """
    first: dict[Hashable, tuple[str, Place]] = {}
    for name, stored in named:
        if isinstance(stored, StridedTensor) and stored.problem is None and 0 not in stored.shape:
            first.setdefault(stored.place, (name, stored._place()))
    return overlap_of_places(first.values())


def gather_near(stored: Stored, positions: Tensor, out: Tensor) -> None:
    """Fill ``out`` with the coordinates at ``positions``. Coordinates that are near to each other are read together."""
    if not len(positions):
        return
    far = (positions.diff() > _NEAR).nonzero().flatten() + 1
    ends = [*far.tolist(), len(positions)]
    begin = 0
    for end in ends:
        while begin < end:
            low = int(positions[begin])
            stop = begin + int(torch.searchsorted(positions[begin:end], low + _PIECE))
            block = torch.empty(int(positions[stop - 1]) - low + 1, dtype=out.dtype, device="cpu")
            stored.read(low, block)
            torch.index_select(block, 0, positions[begin:stop] - low, out=out[begin:stop])
            begin = stop


def boxes(dims: list[tuple[int, int]], start: int, n: int) -> Iterator[tuple[int, list[tuple[int, int]], int]]:
    """Cut ``n`` coordinates into boxes of the last dimensions.

    Yields the number of coordinates before, sizes and strides of the box, and its offset in elements.
    """
    done = 0
    while done < n:
        # Find the box of the most dimensions that begins here and does not end too late.
        dim, row = len(dims) - 1, 1
        while dim > 0 and (start + done) % (row * dims[dim][0]) == 0 and row * dims[dim][0] <= n - done:
            row, dim = row * dims[dim][0], dim - 1
        index, offset = (start + done) // row, 0
        many = min(dims[dim][0] - index % dims[dim][0], (n - done) // row)
        for size, stride in reversed(dims[: dim + 1]):
            index, i = divmod(index, size)
            offset += i * stride
        yield done, [(many, dims[dim][1]), *dims[dim + 1 :]], offset
        done += many * row


def _merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join dimensions of (size, stride) that follow each other in row-major order and in memory."""
    merged: list[tuple[int, int]] = []
    for size, stride in dims:
        if size == 1:
            continue
        if merged and merged[-1][1] == stride * size:
            merged[-1] = merged[-1][0] * size, stride
        else:
            merged.append((size, stride))
    return merged


def _bytes_of(vector: Tensor) -> memoryview:
    return memoryview(vector.view(torch.uint8).numpy())  # type: ignore[arg-type]  # of older NumPy
