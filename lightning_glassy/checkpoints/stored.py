"""Tensors in files. They are described when a file is opened, and read block by block later."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor


class Stored(Protocol):
    """A tensor in a file. None of its values are in memory.

    The *coordinates* of a tensor are its elements in row-major order, however the file lays them out. A complex element
    is two coordinates, its real and its imaginary part.

    Attributes:
        shape: shape of the tensor.
        dtype: dtype of the tensor, as in the file.
        place: the memory of the file that the tensor covers. Tensors with equal places are one tensor.
        problem: the reason why the values cannot be measured, as words after the name of the tensor ("is a sparse
            tensor"), or ``None``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    problem: str | None

    @property
    def place(self) -> Hashable:
        """The memory that it covers, see above."""

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the coordinates ``start ... start + len(out)``.

        Args:
            start: the first coordinate.
            out: a contiguous vector in host memory, of the dtype :func:`real_dtype`.

        Raises:
            ValueError: the file has changed since it was opened, or is damaged. The message names it.
        """

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """Fill ``out`` with the coordinates at ``positions``, int64 and increasing. Otherwise as :meth:`read`."""


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the coordinates of a tensor."""
    return dtype.to_real() if dtype.is_complex else dtype


def n_coordinates(stored: Stored) -> int:
    """Return the number of coordinates of a tensor."""
    return math.prod(stored.shape) * (2 if stored.dtype.is_complex else 1)


def read_scalar(stored: Stored) -> Tensor | None:
    """Return the value of a tensor with a single coordinate, ``[1]``, or ``None`` for any other tensor."""
    if stored.problem is not None or n_coordinates(stored) != 1:
        return None
    out = torch.empty(1, dtype=stored.dtype, device="cpu")
    stored.read(0, out)
    return out


class InMemory:
    """A tensor in memory, with the methods of a tensor in a file."""

    problem = None

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self.place: Hashable = (tensor.data_ptr(), self.shape, tensor.stride())
        tensor = tensor.detach().contiguous()
        self._flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the coordinates from ``start`` on."""
        out.copy_(self._flat[start : start + len(out)])

    def gather(self, positions: Tensor, out: Tensor) -> None:
        """Fill ``out`` with the coordinates at ``positions``."""
        torch.index_select(self._flat, 0, positions, out=out)
