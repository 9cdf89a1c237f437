"""Figures of a growing record for loggers: which are drawn, and when."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# Figures at steps 1000, 10,000, ... and at the end: to draw one takes as long as many training steps.
_FIRST, _GROWTH = 1000, 10


class Figures:
    """Figures of a growing record: the observables that the registry marks as ``drawn``, and the panels.

    They are drawn at steps 1000, 10,000, ... and at the end.

    Args:
        place: where they are shown, for the one warning if matplotlib is missing or a figure cannot be drawn.
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
        """Name and figure of each observable and panel."""
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
    from lightning_glassy.plotting import two_time_figure
    from lightning_glassy.plotting.panels import panels

    curves: dict[str, Callable[[], Figure]] = {
        name: partial(two_time_figure, record, entry.name, eps=eps)
        for name, (entry, eps) in record.columns().items()
        if entry.drawn and len(record)
    }
    return curves | panels(record)


def png(figure: Figure) -> io.BytesIO:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return file
