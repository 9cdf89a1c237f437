"""The figures of a growing record that loggers show: which, and when they are drawn."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.plotting.two_time import Quantity
    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# Figures at steps 1000, 10,000, ... and at the end: to draw one takes as long as many training steps.
_FIRST, _GROWTH = 1000, 10


class Figures:
    """All curves of group ``"all"`` against the logarithm of the lag, and what other callbacks have measured.

    At steps 1000, 10,000, ... and at the end.

    Args:
        place: where they are shown, for the one warning if matplotlib is missing, or a figure cannot be drawn.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._next = _FIRST
        self._warned: set[str] = set()

    def due(self, step: int) -> bool:
        """Whether it is time to draw; says so once per decade."""
        if step < self._next:
            return False
        self._next = max(self._next, step) * _GROWTH
        return True

    def draw(self, record: AgingRecord) -> Iterator[tuple[str, Figure]]:
        """Name and figure: ``msd``, ``non_gaussian``, ``overlap_<eps>``, and those of :func:`panels`."""
        from lightning_glassy.plotting.axes import require_matplotlib

        drawings = _drawings(record)
        try:
            if drawings:
                require_matplotlib()
        except ImportError as error:
            self._warn(f"no figures in {self._place}: {error}")
            return
        for name, draw in drawings.items():
            try:
                figure = draw()
            except Exception as error:  # the others, and the record, are worth more
                self._warn(f"no figure {name!r} in {self._place}: {error}")
                continue
            yield name, figure

    def _warn(self, words: str) -> None:
        if words not in self._warned:
            self._warned.add(words)
            log.warning("lightning_glassy: %s", words)


def _drawings(record: AgingRecord) -> dict[str, Callable[[], Figure]]:
    from lightning_glassy.plotting.panels import panels
    from lightning_glassy.plotting.two_time import two_time_figure

    quantities: list[tuple[str, Quantity, float | None]] = [("msd", "msd", None)]
    if record.meta.get("moments") != "msd":
        quantities.append(("non_gaussian", "non_gaussian", None))
        quantities += [(f"overlap_{eps:.6g}", "overlap", eps) for eps in record.overlap_thresholds]
    curves: dict[str, Callable[[], Figure]] = {
        name: partial(two_time_figure, record, quantity, eps=eps) for name, quantity, eps in quantities if len(record)
    }
    return curves | panels(record)


def png(figure: Figure) -> io.BytesIO:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return file
