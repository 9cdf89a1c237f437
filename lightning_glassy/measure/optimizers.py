"""The options of optimisers, for the metadata and the series of a record."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

ParameterGroups = Sequence[Mapping[Any, Any]]
"""The ``param_groups`` of an optimiser, or of its state in a checkpoint."""


def learning_rates(i: int, groups: ParameterGroups) -> dict[str, float]:
    """Return the learning rates of optimiser number ``i``, by their names in a record.

    The name is ``learning_rate_<i>_<j>`` for parameter group j, and ``learning_rate`` for the first group of the first
    optimiser. A rate that is not a number on the host is left out, because reading it would wait for the device.
    """
    rates: dict[str, float] = {}
    for j, group in enumerate(groups):
        rate = group.get("lr")
        on_host = isinstance(rate, Tensor) and rate.device.type == "cpu" and rate.numel() == 1
        if isinstance(rate, (int, float)) or on_host:
            # The groups can come from a file, with an integer or a tensor that is no float.
            with contextlib.suppress(OverflowError, RuntimeError, TypeError):
                rates["learning_rate" if i == j == 0 else f"learning_rate_{i}_{j}"] = float(rate)  # type: ignore[arg-type]
    return rates


def options_of(groups: ParameterGroups) -> list[dict[str, Any]]:
    """Return the options of each parameter group that JSON can hold."""
    return [
        {name: value for name, value in group.items() if name != "params" and isinstance(name, str) and is_plain(value)}
        for group in groups
    ]


def is_plain(value: object) -> bool:
    """Return whether a value is a number, a text, a truth value or None, or a list or tuple of these."""
    plain = (bool, int, float, str, type(None))
    return isinstance(value, plain) or (isinstance(value, (tuple, list)) and all(isinstance(v, plain) for v in value))
