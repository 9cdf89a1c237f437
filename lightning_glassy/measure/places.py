"""Find the places of parameters in memory, so that each weight is counted once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor


def address_of(tensor: Tensor) -> int:
    """Return the address of the first element, or 0 if the tensor has no memory of its own.

    Such a tensor has no values (on the meta device), or it keeps them in other tensors (a subclass that is made with
    ``Tensor._make_wrapper_subclass``).
    """
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a fake or a sparse tensor
        return 0


class Place(NamedTuple):
    """The places of all elements of a tensor, for any shape.

    Two tensors have equal places if they hold the same numbers in the same memory, as a matrix and its transpose do.

    Attributes:
        memory: the memory, such as a device or a file.
        first: address of the first element in it, in bytes.
        steps: steps and sizes of the dimensions, see :func:`steps_of`.
    """

    memory: Hashable
    first: int
    steps: tuple[tuple[int, int], ...]


def place_of(tensor: Tensor) -> tuple[object, ...]:
    """Return a key of the places of all elements in memory, for any shape of the tensor.

    Two tensors have equal keys if they hold the same numbers in the same memory, as a matrix and its transpose do.
    """
    dtype = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
    return dtype, _place(tensor)


def find_overlap(named: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """Return the names of two tensors that have an element at the same place in memory, or ``None``.

    The names are equal if two elements of one tensor are at the same place. Tensors may be interleaved, as two columns
    of a matrix are. Only then the function visits each element. Tensors without memory are left out.
    """
    return overlap_of_places((name, _place(tensor)) for name, tensor in named if tensor.numel() and address_of(tensor))


def overlap_of_places(named: Iterable[tuple[str, Place]]) -> tuple[str, str] | None:
    """Return the names of two places that share an element, or ``None``. See :func:`find_overlap`."""
    together: list[tuple[str, Place]] = []  # each of these begins before an earlier one ends
    memory, end = None, 0
    for name, place in sorted(named, key=lambda pair: (str(pair[1].memory), pair[1].first)):
        if place.memory != memory or place.first >= end:
            if (found := _overlap(together)) is not None:
                return found
            together, memory, end = [], place.memory, place.first
        together.append((name, place))
        end = max(end, place.first + _extent(place.steps))
    return _overlap(together)


def _overlap(together: list[tuple[str, Place]]) -> tuple[str, str] | None:
    """Mark some places, one after the other, and return the first pair that shares an element."""
    if not together or (len(together) == 1 and each_apart(together[0][1].steps)):
        return None
    first = together[0][1].first
    places = [(name, place.first - first, place.steps) for name, place in together]
    # A mark stands for as many bytes as all starts and steps allow.
    unit = math.gcd(*(start for _, start, _ in places))
    for _, _, dims in places:
        unit = math.gcd(unit, dims[-1][1], *(step for step, _ in dims[:-1]))
    n_mark = max(start + _extent(dims) for _, start, dims in places) // unit
    marks = torch.zeros(n_mark, dtype=torch.int32, device="cpu")
    for number, (name, start, dims) in enumerate(places, 1):
        if not all(step for step, _ in dims):
            return name, name
        *outer, (_, inner) = dims
        sizes, steps = [*(size for _, size in outer), inner // unit], [*(step // unit for step, _ in outer), 1]
        mine = marks.as_strided(sizes, steps, start // unit)
        if other := int(mine.max()):
            return places[other - 1][0], name
        mine.fill_(number)
        if not each_apart(dims) and int((marks == number).sum()) < mine.numel():
            return name, name
    return None


def _place(tensor: Tensor) -> Place:
    width = tensor.element_size()
    dims = [(step * width, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True)]
    return Place(tensor.device, address_of(tensor), steps_of(dims, width))


def steps_of(dims: Iterable[tuple[int, int]], width: int) -> tuple[tuple[int, int], ...]:
    """Return the steps in bytes and the sizes of the dimensions, from the largest step to 1.

    Steps of 0 come first. Dimensions that lie one after the other in memory are one dimension.

    Args:
        dims: step in bytes and size of each dimension.
        width: number of bytes of an element.
    """
    merged: list[tuple[int, int]] = []
    several = sorted((dim for dim in dims if dim[1] > 1), key=lambda dim: (dim[0] > 0, -dim[0]))
    for step, size in [*several, (1, width)]:
        if merged and merged[-1][0] == step * size:
            merged[-1] = (step, size * merged[-1][1])
        else:
            merged.append((step, size))
    return tuple(merged)


def each_apart(steps: tuple[tuple[int, int], ...]) -> bool:
    """Return whether each step is larger than all that lies within it, so that no two elements are at one place."""
    return all(step >= _extent(steps[i + 1 :]) for i, (step, _) in enumerate(steps))


def _extent(steps: tuple[tuple[int, int], ...]) -> int:
    """Return the number of bytes from the first element to the end of the last."""
    return 1 + sum(step * (size - 1) for step, size in steps)
