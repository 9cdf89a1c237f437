"""Draw the figures of a complete record for loggers."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A figure with its name, drawn once for all loggers.

    Attributes:
        name: name of the observable or panel.
        figure: the figure.
        step: the training step at the end.
    """

    name: str
    figure: Figure
    step: int

    @cached_property
    def png(self) -> bytes:
        """The figure as the content of a PNG file."""
        return png(self.figure).getvalue()


class Figures:
    """Figures of a record: the observables that the registry marks as ``drawn``, and the panels.

    One figure takes as long as many training steps, so they are drawn when the training is over.

    Args:
        place: name of the logger, for the warning if matplotlib is missing or a figure cannot be drawn. Each warning is
            logged once.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._warned: set[str] = set()

    def draw(self, record: AgingRecord) -> Iterator[tuple[str, Figure]]:
        """Yield the name and the figure of each observable and panel."""
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
            except Exception as error:  # keep the other figures and the record
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
    """Return a figure as the bytes of a PNG file with 64 colours, which is a quarter of the size."""
    from PIL import Image

    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(file, format="png", optimize=True)
    file.seek(0)
    return file
