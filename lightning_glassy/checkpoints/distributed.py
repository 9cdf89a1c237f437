"""Describe the tensors in directories of ``torch.distributed.checkpoint``, where each tensor is in chunks.

torch's own reader unpickles the file ``.metadata``, which can run code. Here it is read as data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from lightning_glassy.checkpoints.handles import File, Handles
from lightning_glassy.checkpoints.pickled import dtype_of, plain_pickle, read_object, read_torch, sizes_of
from lightning_glassy.checkpoints.strided import StridedTensor, Unreadable, boxes, gather_near
from lightning_glassy.checkpoints.unpickle import Damaged, Opaque

_SMALL = 2**20  # bytes of a value that is no tensor
_BESIDE = ("meta.pt", "common.pt")  # of Lightning, and of Megatron


class Chunk:
    """A box of a tensor, in a file of its own format. The file is opened at the first read."""

    def __init__(self, offsets: Sequence[int], sizes: Sequence[int], load: Callable[[], Any]) -> None:
        self.offsets, self.sizes, self._load = tuple(offsets), tuple(sizes), load
        self._opened: StridedTensor | None = None

    def open(self, dtype: torch.dtype) -> StridedTensor:
        """Return the tensor in the file."""
        if self._opened is None:
            found = self._load()
            if (
                not isinstance(found, StridedTensor)
                or found.problem
                or (found.shape, found.dtype) != (self.sizes, dtype)
            ):
                raise Damaged("a chunk differs from the list of chunks")
            self._opened = found
        return self._opened


class ChunkedTensor:
    """A tensor in chunks. See :class:`~lightning_glassy.checkpoints.stored.Stored`.

    Raises:
        Damaged: the chunks do not cover each element once.
    """

    problem: str | None = None

    def __init__(
        self, folder: Path, name: str, shape: Sequence[int], dtype: torch.dtype, chunks: Sequence[Chunk]
    ) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.place: Hashable = (str(folder), name)
        self._folder, self._name = folder, name
        self._chunks = sorted((chunk for chunk in chunks if 0 not in chunk.sizes), key=lambda chunk: chunk.offsets)
        if not self._cover():
            raise Damaged(f"the chunks of the tensor {name!r} do not cover it once")

    def _cover(self) -> bool:
        """Return whether the chunks lie in the tensor, apart from each other, and have all of its elements."""
        before: list[Chunk] = []
        for chunk in self._chunks:
            if len(chunk.sizes) != len(self.shape) or len(chunk.offsets) != len(self.shape):
                return False
            if any(a + n > size for a, n, size in zip(chunk.offsets, chunk.sizes, self.shape, strict=True)):
                return False
            before = [
                other for other in before if not self.shape or other.offsets[0] + other.sizes[0] > chunk.offsets[0]
            ]
            if any(_common(chunk.offsets, chunk.sizes, other.offsets, other.sizes) for other in before):
                return False
            before.append(chunk)
        return sum(math.prod(chunk.sizes) for chunk in self._chunks) == math.prod(self.shape)

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the coordinates from ``start`` on."""
        shape = (*self.shape, 2) if self.dtype.is_complex else self.shape or (1,)
        dims: list[tuple[int, int]] = []
        stride = 1
        for size in reversed(shape):
            dims.insert(0, (size, stride))
            stride *= size
        for done, box, first in boxes(dims, start, len(out)):
            sizes = [1] * (len(shape) - len(box)) + [size for size, _ in box]
            origin = [first // stride % size for size, stride in dims]
            part = out[done : done + math.prod(sizes)].view(sizes)
            for chunk in self._chunks:
                self._copy(chunk, origin, sizes, part)

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """Fill ``out`` with the coordinates at ``positions``, which increase."""
        gather_near(self, positions, out)

    def _copy(self, chunk: Chunk, origin: Sequence[int], sizes: Sequence[int], out: Tensor) -> None:
        """Copy the common part of a chunk and of a box to ``out``, which is the box."""
        real = (2,) if self.dtype.is_complex else () if self.shape else (1,)
        offsets = (*chunk.offsets, *(0 for _ in real))
        common = _common(offsets, (*chunk.sizes, *real), origin, sizes)
        if common is None:
            return
        try:
            stored = chunk.open(self.dtype).as_real(0 if self.shape else 1)
        except Damaged as error:
            raise ValueError(f"{self._folder}: the tensor {self._name!r} is damaged: {error}") from None
        wanted = stored.narrow(
            [a - begin for (a, _), begin in zip(common, offsets, strict=True)], [n for _, n in common]
        )
        values = torch.empty(math.prod(wanted.shape), dtype=out.dtype, device="cpu")
        wanted.read(0, values)
        at = tuple(slice(a - begin, a - begin + n) for (a, n), begin in zip(common, origin, strict=True))
        out[at] = values.view(wanted.shape)


def _common(
    a: Sequence[int], a_sizes: Sequence[int], b: Sequence[int], b_sizes: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Return beginning and size of the common part of two boxes in each dimension."""
    common = []
    for x, n, y, m in zip(a, a_sizes, b, b_sizes, strict=True):
        begin, end = max(x, y), min(x + n, y + m)
        if begin >= end:
            return None
        common.append((begin, end - begin))
    return common


def read_distributed(folder: Path, handles: Handles) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Return the nested dict that was saved to a directory, and the files with its tensors.

    Raises:
        FileNotFoundError: a file of the directory is missing.
        ValueError: the directory is damaged. The message names it.
    """
    file = handles.file(folder / ".metadata")
    try:
        everything, files = _content(folder, file, handles)
    except Damaged as error:
        raise ValueError(f"{folder} is not a readable distributed checkpoint: {error}. Leave it out") from None
    for name in _BESIDE:
        if (folder / name).is_file():
            everything = read_torch(handles.file(folder / name)) | everything
    if "pytorch-lightning_version" in everything and "state_dict" not in everything and "model" in everything:
        everything["state_dict"] = everything.pop("model")  # as in a checkpoint of Lightning in one file
    return everything, files


def _content(folder: Path, file: File, handles: Handles) -> tuple[dict[str, Any], tuple[Path, ...]]:
    metadata = plain_pickle(file.read(0, file.size))
    entries, where = _get(metadata, "state_dict_metadata", dict), _get(metadata, "storage_data", dict)
    mapping = metadata.get("planner_data")
    mapping = mapping if isinstance(mapping, dict) else {}
    parts: dict[tuple[str, Any], Opaque] = {}
    for index, part in where.items():
        if isinstance(index, Opaque) and isinstance(part, Opaque):
            offset = index.get("offset")
            parts[_get(index, "fqn", str), None if offset is None else sizes_of(offset)] = part
    files: dict[Path, None] = {}

    def load(key: tuple[str, Any], largest: int | None = None) -> Callable[[], Any] | None:
        part = parts.get(key)
        if part is None:
            raise Damaged(f"{key[0]!r} is in no file")
        name, offset, length = (_get(part, what, kind) for what, kind in _PART)
        if part.get("transform_descriptors") or (largest is not None and length > largest):
            return None
        if any(".." in kind(name).parts or kind(name).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
            raise Damaged(f"its file {name!r} is not in the directory")
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is incomplete: there is no {name!r}. Fetch or write it again")
        opened = handles.file(path)
        if offset < 0 or length < 0 or offset + length > opened.size:
            raise Damaged(f"its file {name!r} is cut short")
        files[path] = None
        return lambda: read_object(opened, offset, length)

    everything: dict[Any, Any] = {}
    for name, entry in entries.items():
        if not isinstance(name, str) or not isinstance(entry, Opaque):
            raise Damaged("its list of tensors is damaged")
        if entry.name.endswith("TensorStorageMetadata"):
            value: Any = _tensor(folder, name, entry, load)
        else:
            value = _value(name, load)
        if not isinstance(value, Opaque):
            _set(everything, _path(mapping.get(name)) or (name,), value)
    return {str(name): _lists(value) for name, value in everything.items()}, tuple(files)


_PART = (("relative_path", str), ("offset", int), ("length", int))


def _tensor(folder: Path, name: str, entry: Opaque, load: Callable[..., Callable[[], Any] | None]) -> Any:
    shape, properties = sizes_of(entry.get("size")), _get(entry, "properties", Opaque)
    state = properties.state
    dtype = dtype_of(state[0] if isinstance(state, tuple) and state else properties.get("dtype"))
    chunks = []
    for chunk in _get(entry, "chunks", list):
        if not isinstance(chunk, Opaque):
            raise Damaged("its list of chunks is damaged")
        offsets, sizes = sizes_of(chunk.get("offsets")), sizes_of(chunk.get("sizes"))
        if 0 in sizes:
            continue
        opened = load((name, offsets))
        if opened is None:
            return Unreadable("is stored by an extension (such as a compression)", shape, dtype)
        chunks.append(Chunk(offsets, sizes, opened))
    return ChunkedTensor(folder, name, shape, dtype, chunks)


def _value(name: str, load: Callable[..., Callable[[], Any] | None]) -> Any:
    """Return a plain value such as a step. Objects, long values and the many values of optimisers are left out."""
    opened = None if name.startswith("optim") else load((name, None), _SMALL)
    try:
        return Opaque(name) if opened is None else opened()
    except ValueError:
        return Opaque(name)


def _get(thing: object, attribute: str, kind: type) -> Any:
    value = thing.get(attribute) if isinstance(thing, Opaque) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Damaged(f"its metadata has no {attribute}")
    return value


def _path(path: Any) -> tuple[str | int, ...]:
    """Return the keys that lead to a value, or an empty tuple if they are not known."""
    whole = isinstance(path, tuple) and len(path) < 100 and all(type(part) in (str, int) for part in path)
    return path if whole else ()


def _set(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise Damaged(f"its names contradict each other at {part!r}")
    if path[-1] in tree:
        raise Damaged(f"it has two values of the name {path[-1]!r}")
    tree[path[-1]] = value


def _lists(tree: Any) -> Any:
    """Return a tree in which dicts with the keys 0, 1, ... are lists, as they were saved."""
    if not isinstance(tree, dict):
        return tree
    entries = {key: _lists(value) for key, value in tree.items()}
    is_list = bool(entries) and all(type(key) is int for key in entries) and set(entries) == set(range(len(entries)))
    return [entries[i] for i in range(len(entries))] if is_list else entries
