"""Choose which pairs of checkpoints are measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, get_args

from lightning_glassy.schedule import Steps

Pairs = Literal["all", "log"]


def choose_pairs(steps: Sequence[int], which: Pairs = "all") -> list[tuple[int, int]]:
    """Return pairs of checkpoints as places ``(i, j)`` in ``steps``, ``i < j``, sorted and each once.

    ``"all"`` takes every pair. ``"log"`` takes the pairs nearest to the grid of ``LogTimeSchedule.logspaced()``, which
    has 3 waiting times and 10 lags per decade. The earlier checkpoint is at the step nearest to a waiting time of the
    grid. The later checkpoint is at the lag nearest to a lag of the grid. Nearest means the smallest ratio. Step 0 is a
    waiting time if there is a checkpoint of step 0. The last checkpoint is always the later checkpoint of some pair.
    The number of pairs grows as the square of the logarithm of the last step.

    Args:
        steps: the steps of the checkpoints, increasing.
        which: ``"all"`` or ``"log"``.

    Raises:
        ValueError: ``which`` is something else.

    Example:
        >>> choose_pairs([0, 10, 20, 30])
        [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        >>> pythia = [0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)]
        >>> len(choose_pairs(pythia, "all")), len(choose_pairs(pythia, "log"))
        (11781, 384)
    """
    if which not in get_args(Pairs):
        raise ValueError(f"pairs={which!r} must be {' or '.join(map(repr, get_args(Pairs)))}")
    if which == "all" or len(steps) < 2:
        return list(combinations(range(len(steps)), 2))
    pairs = []
    for i in _nearest(steps[:-1], Steps.logspaced(3).upto(steps[-1])):
        lags = [step - steps[i] for step in steps[i + 1 :]]
        # A point of the grid beyond the last lag keeps the last checkpoint.
        pairs += [(i, i + 1 + k) for k in _nearest(lags, Steps.logspaced(10, zero=False).upto(2 * lags[-1]))]
    return pairs


def _nearest(values: Sequence[int], points: Sequence[int]) -> list[int]:
    """Return the places of the values whose ratio to a point is nearest to 1, sorted and each once.

    A point of 0 chooses only a value of 0.
    """
    found = set()
    for point in points:
        above = bisect_left(values, point)
        below = above - 1
        if above < len(values) and values[above] == point:
            found.add(above)
        elif point and (below < 0 or not values[below]):
            found.update([above] if above < len(values) else [])
        elif point:
            # Integers of any size are compared without rounding: b/p > p/a if a b > p^2.
            far = above == len(values) or values[above] * values[below] >= point * point
            found.add(below if far else above)
    return sorted(found)
