"""Show the progress of a long reading, and the time that the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from lightning_glassy.record.text import duration

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class Progress:
    """Describe the progress of a reading in one line. The first call is the start.

    Args:
        clock: returns seconds.

    Example:
        >>> seconds = iter([0.0, 20.0])
        >>> progress = Progress(clock=lambda: next(seconds))
        >>> progress.line(0, 3_000_000_000)
        '  0 %   0.0 of 3.0 GB'
        >>> progress.line(600_000_000, 3_000_000_000)
        ' 20 %   0.6 of 3.0 GB   1 min 20 s left'
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def line(self, done: int, total: int) -> str:
        """Return the share, the bytes and the remaining time, or at the end the total time.

        Args:
            done: bytes that are read. An interrupted reading that goes on does not begin at 0.
            total: all bytes.
        """
        now = self._clock()
        if self._start is None:
            self._start = now, done
        elapsed, new = now - self._start[0], done - self._start[1]
        text = f"{100 if done >= total else 100 * done // total:3d} %   {_bytes(done, total)}"
        if done >= total:
            return f"{text}   {duration(elapsed)}"
        left = elapsed * (total - done) / new if new > 0 else math.inf
        return text if math.isinf(left) else f"{text}   {duration(max(left, 1))} left"


def _bytes(done: int, total: int) -> str:
    for unit, size in _UNITS:
        if total >= size:
            return f"{done / size:.1f} of {total / size:.1f} {unit}"
    return f"{done} of {total} B"
