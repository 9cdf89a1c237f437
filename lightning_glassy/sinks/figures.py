"""The log-log figures of a growing record that loggers show: which, and when they are drawn."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.plotting import Quantity
    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# Figures at steps 1000, 10,000, ... and at the end: to draw one takes as long as many training steps.
_FIRST, _GROWTH = 1000, 10


class Figures:
    """All curves of group ``"all"`` against the logarithm of the lag, at steps 1000, 10,000, ... and at the end.

    Args:
        place: where they are shown, for the one warning if matplotlib is missing.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._next = _FIRST
        self._can_draw = True

    def due(self, step: int) -> bool:
        """Whether it is time to draw; says so once per decade."""
        if step < self._next:
            return False
        self._next = max(self._next, step) * _GROWTH
        return True

    def draw(self, record: AgingRecord) -> Iterator[tuple[str, Figure]]:
        """The name of each quantity and its figure: ``msd``, ``non_gaussian``, ``overlap_<eps>``."""
        if not self._can_draw or not len(record):
            return
        quantities: list[tuple[str, Quantity, float | None]] = [("msd", "msd", None)]
        if record.meta.get("moments") != "msd":
            quantities.append(("non_gaussian", "non_gaussian", None))
            quantities += [(f"overlap_{eps:.6g}", "overlap", eps) for eps in record.overlap_thresholds]
        for name, quantity, eps in quantities:
            try:
                from lightning_glassy.plotting import two_time_figure

                figure = two_time_figure(record, quantity, eps=eps)
            except ImportError as error:
                self._can_draw = False
                log.warning("lightning_glassy: no figures in %s: %s", self._place, error)
                return
            yield name, figure


def png(figure: Figure) -> io.BytesIO:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    return file
