"""Sinks: the places a growing record is written to.

``update`` gives a sink the new pairs, and ``close`` marks the end. A failure in one sink costs a warning. It stops
neither the training nor the other sinks, and the record is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

Pairs = Sequence[tuple[int, int]]

Scalar = tuple[str, int, int, float]
"""(tag, waiting time, lag, value)."""


class Sink(Protocol):
    """Something that a record is written to."""

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Take the pairs (waiting time, lag) that are new in the record at ``step``."""

    def close(self, record: AgingRecord) -> None:
        """Write what is still to be written. More may follow if training goes on."""

    def where(self) -> str | None:
        """One line that tells a person where to look."""


class Sinks:
    """Several sinks, each shielded from the failures of the others, and training from all of them."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks = list(sinks)
        self._failed: set[int] = set()

    def add(self, name: str, make: Callable[[], Sink | None]) -> Sink | None:
        """Make one more sink, if there is one to be made, and return it; ``name`` is what it is for."""
        try:
            sink = make()
        except Exception as error:
            _warn(f"the sink for {name}", error)
            return None
        self._sinks += [] if sink is None else [sink]
        return sink

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """:meth:`Sink.update` of each."""
        for sink in self._sinks:
            try:
                sink.update(record, pairs, step)
            except Exception as error:
                self._warn(sink, error)

    def close(self, record: AgingRecord) -> None:
        """:meth:`Sink.close` of each."""
        for sink in self._sinks:
            try:
                sink.close(record)
            except Exception as error:
                self._warn(sink, error)

    def where(self) -> list[str]:
        """:meth:`Sink.where` of each that has something to say."""
        lines: list[str | None] = []
        for sink in self._sinks:
            try:
                lines.append(sink.where())
            except Exception as error:
                self._warn(sink, error)
        return [line for line in lines if line]

    def _warn(self, sink: Sink, error: Exception) -> None:
        # A logger that is down stays down: once is enough. It is tried again all the same.
        if id(sink) not in self._failed:
            self._failed.add(id(sink))
            _warn(type(sink).__name__, error)


def _warn(what: str, error: Exception) -> None:
    log.warning(
        "lightning_glassy: %s failed (%s: %s); training goes on, and the record stays in memory: "
        "AgingMonitor.record.save(path) writes it",
        what,
        type(error).__name__,
        error,
    )


def scalars(record: AgingRecord, pairs: Pairs, prefix: str) -> list[Scalar]:
    """Points of curves for a logger of scalars: (tag, waiting time, lag, value).

    The tags are those of :mod:`lightning_glassy.loggers`, the values those of the observables that the registry marks
    as ``logged``. With replicas a value is the mean over them.
    """
    names = [name for name, (entry, _) in record.columns().items() if entry.logged]
    table = record.mean_table(pairs, names)
    moved = table.get("msd", [0.0] * len(table["lag"]))
    result: list[Scalar] = []
    for i, (waiting_time, lag, group) in enumerate(
        zip(table["waiting_time"], table["lag"], table["group"], strict=True)
    ):
        if record.n_sampled[group] == 0:
            continue  # no coordinate of this group is in the sample
        for name in names:
            value = table[name][i]
            # An undefined value is left out, such as alpha_2 where nothing moved. NaN weights are shown.
            if value == value or moved[i] != moved[i]:
                of_group = "" if group == "all" else f"{group}/"
                result.append((f"{prefix}/{name}/{of_group}tw_{waiting_time}", waiting_time, lag, value))
    return result
