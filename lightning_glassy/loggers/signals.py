"""The few numbers of a record that a logger gets against the training step."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lightning_glassy.observables import over_last_decade
from lightning_glassy.observables.arrays import quiet
from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

_PER_DECADE = 10  # values of each signal in each factor of ten of the steps
_SHARE = 0.005  # largest part of the time of a training that the aging rates take
_FIRST = 1.0  # seconds that the first rate may take, with the import of scipy


class Signal(NamedTuple):
    """A number at a training step.

    Attributes:
        name: ``"moved_percent"``, ``"aging_rate"`` or ``"mu"``, with ``/<group>`` at the end for a requested group.
        step: number of completed updates.
        value: the number.
    """

    name: str
    step: int
    value: float


class Signals:
    """The signals of a growing record, in the order of their steps.

    * ``moved_percent``: rms displacement between a tenth of the step and the step, in % of the rms weight, at ten steps
      per decade.
    * ``aging_rate``: :class:`~lightning_glassy.analysis.AgingRate` over all waiting times so far. A rate takes some
      hundredths of a second, so a short training has the last rate only.
    * ``mu``: the aging exponent at the end, if the record has one.

    With replicas, the displacement is the mean over them.

    Args:
        groups: groups with their own signals, in addition to all parameters.
    """

    def __init__(self, groups: Sequence[str] = ()) -> None:
        self.found: list[Signal] = []
        self._groups = groups
        self._grid = 0  # number of the next step on the grid 10^(grid / 10)
        self._rated = self._fitted = 0  # steps of the last rate and of the last exponent
        self._started: float | None = None
        self._spent, self._expected = 0.0, _FIRST  # seconds of all rates, and of the next

    def look(self, record: AgingRecord) -> None:
        """Add the signals of the steps that the record has reached. After an error, only these signals are missing."""
        now = time.monotonic()
        self._started = now if self._started is None else self._started
        if not len(record):
            return
        try:
            self._add_moved(record)
        except Exception as error:
            log.debug("lightning_glassy: no displacement for the loggers: %s", error)
        step = record.last_step
        allowed = self._spent + self._expected <= _SHARE * (now - self._started)
        if allowed and step >= self._rated * 10 ** (1 / _PER_DECADE):
            now = time.monotonic()
            self._add_rates(record, step)
            self._expected = time.monotonic() - now
            self._spent += self._expected

    def complete(self, record: AgingRecord) -> None:
        """Add the last rate, and the aging exponent if there is one."""
        self.look(record)
        step = record.last_step
        if not len(record):
            return
        if step > self._rated:
            self._add_rates(record, step)
        if step > self._fitted:
            self._fitted = step
            self._add_exponent(record, step)

    def go_back(self, step: int) -> None:
        """Forget the signals after a step: the record has lost its last rows."""
        self.found = [signal for signal in self.found if signal.step <= step]
        self._grid = min(self._grid, _place_after(step))
        self._rated, self._fitted = min(self._rated, step), min(self._fitted, step)

    def _names(self, record: AgingRecord) -> list[str]:
        sampled = record.n_sampled
        return [group for group in ("all", *self._groups) if sampled.get(group)]

    @quiet()
    def _add_moved(self, record: AgingRecord) -> None:
        last, first = record.last_step, self._grid
        end = _place_after(last)
        steps = np.unique(np.round(10 ** (np.arange(first, end) / _PER_DECADE)).astype(np.int64))
        if not len(steps) or not {"d2", "s2"} <= set(record.sums):
            return
        known = np.zeros(len(steps), dtype=bool)
        for group in self._names(record):
            values = record.relative_displacement(group)
            values = values if record.n_replica is None else values.mean(axis=0)
            moved = 100 * over_last_decade(record.waiting_times, record.lags, values, steps)
            known |= np.isfinite(moved)
            self.found += [
                Signal(_name("moved_percent", group), int(step), float(value))
                for step, value in zip(steps, moved, strict=True)
                if np.isfinite(value)
            ]
        # A pair that is still on its way from the device comes later, so a step is left out only if a later one is
        # there.
        if known.any():
            self._grid = _place_after(int(steps[known][-1]))

    def _add_rates(self, record: AgingRecord, step: int) -> None:
        self._rated = step
        with contextlib.suppress(ImportError):  # without scipy, there are no rates
            from lightning_glassy.analysis import verdict

            for group in self._names(record):
                try:
                    rates = verdict(record, group=group).rates
                except Exception as error:
                    log.debug("lightning_glassy: no aging rate at step %d: %s", step, error)
                    continue
                self.found += [Signal(_name("aging_rate", group), step, rate.rate) for rate in rates[:1]]

    def _add_exponent(self, record: AgingRecord, step: int) -> None:
        with contextlib.suppress(ImportError):
            from lightning_glassy.analysis import aging_exponent
            from lightning_glassy.analysis.latest import latest_exponent

            for group in self._names(record):
                try:
                    fit = latest_exponent(record) if group == "all" else aging_exponent(record, group=group)
                except Exception as error:
                    log.debug("lightning_glassy: no aging exponent: %s", error)
                    continue
                self.found += [] if fit.mu is None else [Signal(_name("mu", group), step, fit.mu)]


def _name(signal: str, group: str) -> str:
    return signal if group == "all" else f"{signal}/{group}"


def _place_after(step: int) -> int:
    """Return the number of the first step of the grid after ``step``."""
    if step < 1:
        return 0
    place = int(_PER_DECADE * np.log10(step))
    while round(10 ** (place / _PER_DECADE)) <= step:
        place += 1
    return place
