"""Checks of the arguments of a record, and of the rows in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_glassy.record.file import RecordError, parse
from lightning_glassy.record.tables import MOMENTS

_LONGEST_NAME = 1000  # characters: every line of a table repeats the name of the group
_DEEPEST = 50  # levels of lists and dictionaries in the metadata, well below Python's recursion limit
_SMALL_PLANE = 4_000_000  # cells (32 MB): a plane of waiting times and lags up to this size may be arbitrarily sparse


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the overlap thresholds as a tuple of floats.

    Raises:
        TypeError: ``thresholds`` is not a list of numbers.
        ValueError: a threshold is not between 1e-18 and 1e18 (float32 must hold its square), or is not larger than the
            threshold before.
    """
    if isinstance(thresholds, (str, bytes, Mapping)) or not isinstance(thresholds, Iterable):
        raise TypeError(f"overlap_thresholds={thresholds!r} is not a list of numbers")
    for i, eps in enumerate(thresholds := tuple(thresholds)):
        if isinstance(eps, (bool, np.bool_)) or not isinstance(eps, (int, float, np.number)):
            raise TypeError(f"overlap_thresholds[{i}]={eps!r} is not a number")
    values = tuple(float(eps) for eps in thresholds)
    for i, eps in enumerate(values):
        if not 1e-18 <= eps <= 1e18:
            raise ValueError(f"overlap_thresholds[{i}]={eps} must be a positive number between 1e-18 and 1e18")
        if i and eps <= values[i - 1]:
            raise ValueError(f"overlap_thresholds must increase, but {eps} follows {values[i - 1]}")
    return values


def check_sums(sums: Sequence[str]) -> tuple[str, ...]:
    """Return the names of sums as a tuple.

    Raises:
        ValueError: there are no names, a name is repeated, or a file cannot hold a name.
    """
    names = tuple(sums)
    if isinstance(sums, str) or not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise ValueError(f"sums={sums!r:.200} must be different names of sums, such as {', '.join(MOMENTS)}")
    for name in names:
        check_name("a sum", name)
    return names


def check_name(what: str, name: str) -> None:
    """Refuse a name that a file cannot hold, or a name that is too long for a table.

    Args:
        what: kind of the named object, for the message.
        name: the name.

    Raises:
        ValueError: the name has more than 1000 characters, or a lone surrogate.
    """
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{what} has a name of {len(name):,} characters, {name[:40]!r}...: give it one of at most {_LONGEST_NAME:,}"
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} {name!r} has a lone surrogate in its name, which files cannot hold: rename it"
        ) from None


def check_meta(meta: dict[str, Any]) -> None:
    """Refuse metadata that cannot be saved.

    Raises:
        TypeError: JSON cannot hold a value of the metadata.
        ValueError: the metadata is nested too deep, or two keys are the same in JSON.
    """
    if not meta:
        return
    try:
        text = json.dumps(meta)
        level: list[Any] = [meta]
        for _ in range(_DEEPEST):
            parts = [part.values() if isinstance(part, dict) else part for part in level]
            level = [part for outer in parts for part in outer if isinstance(part, (dict, list, tuple))]
    except RecursionError:
        level = [meta]
    if level:
        raise ValueError(f"meta is nested more than {_DEEPEST} levels deep: give the record something flatter")
    try:
        parse(text.encode())
    except RecordError as error:
        raise ValueError("meta has two keys that are one in a file, such as 1 and '1': name them by strings") from error


def check_plane(pairs: NDArray[np.int64], n_replica: int | None) -> None:
    """Refuse rows whose matrices would be far larger than the measurement. A file of 2 MB could need 7 GB.

    The sparsest real records hold all pairs of n checkpoints at irregular steps. They have r = n (n - 1) / 2 pairs,
    n - 1 waiting times and at most r lags. Their matrix has less than 2 r**1.5 cells. Records of schedules are far
    denser, unless a training with a few pairs skips steps of its schedule. Such a record takes very little memory.
    """
    cells = len(np.unique(pairs[:, 0])) * len(np.unique(pairs[:, 1]))
    if cells * (n_replica or 1) > _SMALL_PLANE and cells > 2 * len(pairs) ** 1.5:
        raise RecordError(
            f"its {len(pairs):,} pairs of times would make a matrix of {cells:,} cells (waiting times x lags). Above "
            f"{_SMALL_PLANE:,} cells over all replicas, no training leaves more than 2 * pairs**1.5"
        )
