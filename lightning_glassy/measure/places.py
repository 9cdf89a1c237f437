"""Find the places of parameters in memory, so that each weight is counted once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

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


def place_of(tensor: Tensor) -> tuple[object, ...]:
    """Return a key of the places of all elements in memory, whatever the shape of the tensor.

    Two tensors have equal keys if they hold the same numbers in the same memory, as a matrix and its transpose do.
    """
    dtype = tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype
    return tensor.device, dtype, address_of(tensor), _steps(tensor)


def find_overlap(named: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """Return the names of two tensors that have an element at the same place in memory, or ``None``.

    The names are equal if two elements of one tensor are at the same place. Tensors may be interleaved, as two columns
    of a matrix are. Only then the function visits each element. Tensors without memory are left out.
    """
    located = [(name, tensor) for name, tensor in named if tensor.numel() and address_of(tensor)]
    together: list[tuple[str, Tensor]] = []  # each of these begins before an earlier one ends
    device, end = None, 0
    for name, tensor in sorted(located, key=lambda pair: (str(pair[1].device), address_of(pair[1]))):
        address = address_of(tensor)
        if tensor.device != device or address >= end:
            if (found := _overlap(together)) is not None:
                return found
            together, device, end = [], tensor.device, address
        together.append((name, tensor))
        end = max(end, address + _extent(tensor))
    return _overlap(together)


def _overlap(together: list[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """Mark the places of some tensors, one tensor after the other, and return the first pair that shares a place."""
    if not together or (len(together) == 1 and _simple(together[0][1])):
        return None
    first = address_of(together[0][1])
    places = [(name, address_of(tensor) - first, _steps(tensor), tensor) for name, tensor in together]
    # A mark stands for as many bytes as all starts and steps allow.
    unit = math.gcd(*(start for _, start, _, _ in places))
    for _, _, dims, _ in places:
        unit = math.gcd(unit, dims[-1][1], *(step for step, _ in dims[:-1]))
    n_mark = max(start + _extent(tensor) for _, start, _, tensor in places) // unit
    marks = torch.zeros(n_mark, dtype=torch.int32, device="cpu")
    for number, (name, start, dims, tensor) in enumerate(places, 1):
        if not all(step for step, _ in dims):
            return name, name
        *outer, (_, inner) = dims
        sizes, steps = [*(size for _, size in outer), inner // unit], [*(step // unit for step, _ in outer), 1]
        mine = marks.as_strided(sizes, steps, start // unit)
        if other := int(mine.max()):
            return places[other - 1][0], name
        mine.fill_(number)
        if not _simple(tensor) and int((marks == number).sum()) < mine.numel():
            return name, name
    return None


def _steps(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Return the steps in bytes and the sizes of the dimensions, from the largest step to 1.

    Steps of 0 come first. Dimensions that lie one after the other in memory are one dimension.
    """
    width = tensor.element_size()
    dims = [(step * width, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    merged: list[tuple[int, int]] = []
    for step, size in [*sorted(dims, key=lambda dim: (dim[0] > 0, -dim[0])), (1, width)]:
        if merged and merged[-1][0] == step * size:
            merged[-1] = (step, size * merged[-1][1])
        else:
            merged.append((step, size))
    return tuple(merged)


def _extent(tensor: Tensor) -> int:
    """Return the number of bytes from the first element to the end of the last."""
    return 1 + sum(step * (size - 1) for step, size in _steps(tensor))


def _simple(tensor: Tensor) -> bool:
    """Return whether each step is larger than all that lies within it, so that no two elements are at one place."""
    steps = _steps(tensor)
    return all(step >= below * size for (step, _), (below, size) in itertools.pairwise(steps))
