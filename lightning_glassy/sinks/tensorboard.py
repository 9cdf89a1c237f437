"""TensorBoard: scalars against the lag, and log-log figures, which its scalars cannot be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning_glassy.sinks import Pairs, scalars

if TYPE_CHECKING:
    from lightning_glassy.plotting import Quantity
    from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

# Figures at steps 1000, 10,000, ... and at the end: to draw one takes as long as many training steps.
_FIRST_FIGURE, _FIGURE_GROWTH = 1000, 10


class TensorBoardSink:
    """Writes to a ``TensorBoardLogger``.

    =======================================  ========================================================
    tag                                      what is written
    =======================================  ========================================================
    ``glassy/msd/tw_<t_w>``                  mean squared displacement; the step is the lag
    ``glassy/decorrelation/tw_<t_w>``        1 - cosine correlation; the step is the lag
    ``glassy/non_gaussian/tw_<t_w>``         non-Gaussian parameter; the step is the lag
    ``glassy/overlap_<eps>/tw_<t_w>``        overlap; the step is the lag
    ``glassy/<quantity>/<group>/tw_<t_w>``   the same for the other groups
    ``glassy_figures/<quantity>``            all curves of group ``"all"`` against the logarithm of
                                             the lag, at steps 1000, 10,000, ... and at the
                                             end; the step is the training step
    =======================================  ========================================================

    One tag per waiting time: within a tag the lag must grow, as TensorBoard drops points before one whose step goes
    back.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        self._logger = logger
        self._prefix = prefix
        self._next_figure = _FIRST_FIGURE
        self._step = 0
        self._can_draw = True

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the scalars of the new pairs, and the figures if it is time to."""
        self._step = step
        for tag, _, lag, value in scalars(record, pairs, self._prefix):
            self._logger.experiment.add_scalar(tag, value, global_step=lag)
        if step >= self._next_figure:
            self._next_figure = max(self._next_figure, step) * _FIGURE_GROWTH
            self._draw(record)

    def close(self, record: AgingRecord) -> None:
        """Draw the figures of the whole record."""
        if len(record):
            self._draw(record)
        self._logger.experiment.flush()

    def where(self) -> str:
        """The command that opens TensorBoard on this run."""
        return f"curves     tensorboard --logdir {self._logger.log_dir}"

    def _draw(self, record: AgingRecord) -> None:
        if not self._can_draw:
            return
        try:
            from lightning_glassy.plotting import two_time_figure

            figures: list[tuple[str, Quantity, float | None]] = [("msd", "msd", None)]
            if record.meta.get("moments") != "msd":
                figures.append(("non_gaussian", "non_gaussian", None))
                figures += [(f"overlap_{eps:.6g}", "overlap", eps) for eps in record.overlap_thresholds]
            for tag, quantity, eps in figures:
                figure = two_time_figure(record, quantity, eps=eps)
                self._logger.experiment.add_figure(f"{self._prefix}_figures/{tag}", figure, global_step=self._step)
        except ImportError as error:
            self._can_draw = False
            log.warning("lightning_glassy: no figures in TensorBoard: %s", error)
