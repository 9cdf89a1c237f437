"""Values that JSON can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Dictionaries, lists and arrays of numbers and texts as what :mod:`json` takes; NaN and infinity as None.

    Example:
        >>> plain({"lags": np.array([1, 2]), "msd": (0.5, float("nan"))})
        {'lags': [1, 2], 'msd': [0.5, None]}
    """
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
