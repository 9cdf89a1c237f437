"""Handle the first argument of a plot: a record, or a result of the analysis that the caller has computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lightning_glassy.record import AgingRecord

T = TypeVar("T")
U = TypeVar("U")


def result_of(given: AgingRecord | T, compute: Callable[..., U], **choice: Any) -> T | U:
    """Return the result that a plot was given, or compute it from the record that the plot was given.

    Args:
        given: the first argument of the plot.
        compute: computes the result from a record and the choice.
        **choice: arguments of the plot that choose the quantity, None or ``"all"`` if they were not given.

    Raises:
        ValueError: the plot was given a result together with a choice, which only a record can follow.
    """
    if isinstance(given, AgingRecord):
        return compute(given, **choice)
    chosen = [f"{name}={value!r}" for name, value in choice.items() if value not in (None, "all")]
    if chosen:
        raise ValueError(f"{', '.join(chosen)} chooses from a record, and this is a result that was computed already")
    return given
