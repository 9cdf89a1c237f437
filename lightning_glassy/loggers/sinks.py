"""Sinks write a growing record to files and loggers.

``update`` passes the new pairs to a sink, and ``close`` marks the end. A failure in a sink causes a warning. The
training and the other sinks continue, and the record is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

Pairs = Sequence[tuple[int, int]]

Scalar = tuple[str, int, int, float]
"""A point of a curve: (tag, waiting time, lag, value)."""


class Sink(Protocol):
    """An object that writes a record to a file or a logger."""

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the pairs (waiting time, lag) that are new in the record at ``step``."""

    def close(self, record: AgingRecord) -> None:
        """Write the rest of the record. More calls of ``update`` may follow if the training continues."""

    def where(self) -> str | None:
        """Return one line that shows the user where to find the output, or None."""


class Sinks:
    """Hold several sinks. A failure in one sink does not stop the other sinks or the training.

    Args:
        who: name of the callback whose record is written, for warnings.
        sinks: the sinks.
    """

    def __init__(self, who: str = "AgingMonitor", sinks: Iterable[Sink] = ()) -> None:
        self._who = who
        self._sinks = list(sinks)
        self._failed: set[int] = set()

    def add(self, name: str, make: Callable[[], Sink | None]) -> Sink | None:
        """Create a sink with ``make``, add it unless it is None, and return it. A warning uses ``name``."""
        try:
            sink = make()
        except Exception as error:
            self._log(f"the sink for {name}", error)
            return None
        self._sinks += [] if sink is None else [sink]
        return sink

    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Call :meth:`Sink.update` of each sink."""
        self._each(lambda sink: sink.update(record, pairs, step))

    def close(self, record: AgingRecord) -> None:
        """Call :meth:`Sink.close` of each sink."""
        self._each(lambda sink: sink.close(record))

    def go_back(self, record: AgingRecord) -> None:
        """Tell the sinks that the record has lost its last rows. A sink with a method ``go_back`` writes it again.

        Points in other loggers cannot be removed.
        """
        self._each(lambda sink: getattr(sink, "go_back", lambda _: None)(record))

    def where(self) -> list[str]:
        """Return the lines of :meth:`Sink.where` of the sinks that return a line."""
        return [line for line in self._each(lambda sink: sink.where()) if line]

    def _each(self, call: Callable[[Sink], T]) -> list[T]:
        """Return the results of a call for the sinks that do not fail."""
        results: list[T] = []
        for sink in self._sinks:
            try:
                results.append(call(sink))
            except Exception as error:
                # A logger that is down stays down, so one warning per sink is enough. Later calls still try it.
                if id(sink) not in self._failed:
                    self._failed.add(id(sink))
                    self._log(type(sink).__name__, error)
        return results

    def _log(self, what: str, error: Exception) -> None:
        log.warning(
            "lightning_glassy: %s failed (%s: %s). Training goes on, and the record stays in memory: "
            "%s.record.save(path) writes it",
            what,
            type(error).__name__,
            error,
            self._who,
        )


def scalars(record: AgingRecord, pairs: Pairs, prefix: str) -> list[Scalar]:
    """Return the points of the curves at ``pairs`` for a logger of scalars.

    The tags are listed in :mod:`lightning_glassy.loggers`. The registry marks the observables with curves as
    ``logged``. With replicas, a value is the mean over the replicas.
    """
    names = [name for name, (entry, _) in record.columns().items() if entry.logged]
    table = record.mean_table(pairs, names)
    moved = table.get("msd", [0.0] * len(table["lag"]))
    result: list[Scalar] = []
    for i, (waiting_time, lag, group) in enumerate(
        zip(table["waiting_time"], table["lag"], table["group"], strict=True)
    ):
        if record.n_sampled[group] == 0:
            continue  # the sample has no coordinate of this group
        for name in names:
            value = table[name][i]
            # Leave out an undefined value, such as alpha_2 if nothing moved. Keep the NaN of diverged weights.
            if value == value or moved[i] != moved[i]:
                of_group = "" if group == "all" else f"{group}/"
                result.append((f"{prefix}/{name}/{of_group}tw_{waiting_time}", waiting_time, lag, value))
    return result
