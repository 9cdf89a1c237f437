"""Sinks write a growing record to files and loggers.

``update`` passes the new pairs to a sink, ``close`` marks the end, and ``log_figure`` follows after the training. A
failure in a sink causes a warning. The training and the other sinks continue, and the record is kept.

:class:`Sinks` decides when a sink writes. A sink gets the pairs of many events at once, so that it takes a small share
of the time of a training. No figure is drawn before the end of the training.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from lightning_glassy.loggers.figures import Figures, Picture
from lightning_glassy.loggers.signals import Signal, Signals
from lightning_glassy.record import AgingRecord

log = logging.getLogger(__name__)

Pairs = Sequence[tuple[int, int]]

Scalar = tuple[str, int, int, float]
"""A point of a curve: (tag, waiting time, lag, value)."""

MOST_GROUPS = 16
"""Number of groups, besides ``"all"``, whose curves a logger gets as scalars: those with the most parameters.

The record, its files, the table of a ``CSVLogger`` and the tab Glassy have all groups.
"""

# The pause in seconds between two writes of a sink: the time since the first event, between these bounds. It is longer
# after a write that took more than this share of it.
_SHORTEST, _LONGEST = 1.0, 5.0
_SHARE = 0.01


class Sink(ABC):
    """An object that writes a record to a file or a logger.

    Attributes:
        place: name of the logger if it takes figures, for messages.
        takes_signals: whether the sink logs numbers against the training step.
        is_whole: whether each write is of the whole record, so that no pair needs to wait for the next write.
        longest: the longest pause between two writes in seconds, however long they take.
    """

    place: str | None = None
    takes_signals = False
    is_whole = False
    longest = math.inf

    @property
    def usual_pause(self) -> float:
        """The usual pause between two writes in a long training, in seconds. Without a pause, each event is written."""
        return _LONGEST

    @abstractmethod
    def update(self, record: AgingRecord, pairs: Pairs, step: int) -> None:
        """Write the pairs (waiting time, lag) that are new in the record at ``step``.

        After an error, the same pairs come again, together with the pairs that are new since then.
        """

    @abstractmethod
    def close(self, record: AgingRecord) -> None:
        """Complete the output. No pair waits any more. More calls may follow if the training continues."""

    def log_signals(self, signals: Sequence[Signal]) -> None:  # noqa: B027 (files have them in the record)
        """Log numbers against the training step. A call of :meth:`update` follows."""

    def log_figure(self, picture: Picture) -> None:  # noqa: B027 (not every sink takes figures)
        """Log a figure of the complete record, after :meth:`close`."""

    def go_back(self, record: AgingRecord) -> None:  # noqa: B027 (not every sink can correct its output)
        """Note that the record has lost its last rows. Output that can be changed is corrected at the next call.

        Points in a logger cannot be removed.
        """

    @abstractmethod
    def where(self) -> str | None:
        """Return one line that shows the user where to find the output, or None."""


@dataclass
class _Paced:
    """A sink, the pairs that wait for it, and the time of its next write."""

    sink: Sink
    pairs: list[tuple[int, int]] = field(default_factory=list)
    has_news: bool = False  # whether the record has rows that the sink has not written
    next_time: float = -math.inf
    has_failed: bool = False
    n_signals: int = 0  # number of signals that the sink has


class Sinks:
    """Hold several sinks, and write to each of them from time to time.

    The first event is written at once. Then a sink pauses for as long as the training has taken, but at least for a
    second and at most for five seconds. After a long write it pauses longer, so that each sink takes about a hundredth
    of the time of the training. A failure in one sink does not stop the other sinks or the training. The pairs then
    wait for the next write.

    Args:
        who: name of the callback whose record is written, for warnings.
        groups: groups whose signals the loggers get, beside all parameters.
    """

    def __init__(self, who: str = "AgingMonitor", groups: Sequence[str] = ()) -> None:
        self._who = who
        self._signals = Signals(groups)
        self._all: list[_Paced] = []
        self._started: float | None = None
        self._first_step = self._step = 0

    def add(self, name: str, make: Callable[[], Sink | None]) -> Sink | None:
        """Create a sink with ``make``, add it unless it is None, and return it. A warning uses ``name``."""
        try:
            sink = make()
        except Exception as error:
            self._log(f"the sink for {name}", error)
            return None
        self._all += [] if sink is None else [_Paced(sink)]
        return sink

    def update(self, record: AgingRecord, pairs: Pairs, step: int, only: Collection[Sink] | None = None) -> None:
        """Take the pairs that are new in the record at ``step``, and write to the sinks that are due.

        Args:
            record: the record.
            pairs: the new pairs (waiting time, lag).
            step: number of completed updates.
            only: the sinks that get the pairs, default all. The other sinks have the signals so far, too.
        """
        if only is not None:
            self._signals.look(record)
        now, self._step = time.monotonic(), step
        if self._started is None:
            self._started, self._first_step = now, step
        for paced in self._all:
            if only is not None and paced.sink not in only:
                paced.n_signals = len(self._signals.found)
            else:
                paced.has_news |= bool(pairs)
                if not paced.sink.is_whole:
                    paced.pairs += pairs
                if paced.has_news and now >= paced.next_time:
                    self._write(paced, record)

    def next_look(self, step: int) -> int:
        """Return the step at which a write becomes due that has waited, as estimated from the pace of the steps so far.

        Events are far apart in a long run. Without this step, the last of a few quick events would wait for a long
        time.
        """
        due = min((paced.next_time for paced in self._all if paced.has_news), default=math.inf)
        if due == math.inf or self._started is None:
            return sys.maxsize
        now = time.monotonic()
        pace = (step - self._first_step) / max(now - self._started, 1e-3)
        return step + 1 + int(pace * max(due - now, 0.0))

    def flush(self, record: AgingRecord) -> None:
        """Write all pairs that wait. A training that goes on from a checkpoint does not log the earlier pairs again."""
        for paced in self._all:
            if paced.pairs:
                self._write(paced, record)

    def close(self, record: AgingRecord) -> None:
        """Write all pairs that wait, and complete the output of each sink."""
        for paced in self._all:
            with self._caught(paced):
                if paced.pairs:
                    self._give(paced, record)
            with self._caught(paced):
                paced.sink.close(record)
                paced.has_news = False

    def draw(self, record: AgingRecord) -> None:
        """Complete the signals, and draw each figure once for all sinks. Call this after the training."""
        takers = [paced for paced in self._all if paced.sink.takes_signals]
        if takers:
            self._signals.complete(record)
        for paced in takers:
            with self._caught(paced):
                if paced.n_signals < len(self._signals.found):
                    self._give(paced, record)
        takers = [paced for paced in self._all if paced.sink.place is not None]
        if not takers:
            return
        for name, figure in Figures(" and ".join(str(paced.sink.place) for paced in takers)).draw(record):
            picture = Picture(name, figure, self._step)
            for paced in takers:
                with self._caught(paced):
                    paced.sink.log_figure(picture)

    def go_back(self, record: AgingRecord) -> None:
        """Notify the sinks that the record has lost its last rows, and drop rows that have not been written yet."""
        self._signals.go_back(record.last_step)
        for paced in self._all:
            paced.n_signals = min(paced.n_signals, len(self._signals.found))
            paced.pairs = [pair for pair in paced.pairs if pair in record]
            paced.next_time = -math.inf
            with self._caught(paced):
                paced.sink.go_back(record)

    def where(self) -> list[str]:
        """Return the lines of :meth:`Sink.where` of the sinks that return a line."""
        lines: list[str | None] = []
        for paced in self._all:
            with self._caught(paced):
                lines.append(paced.sink.where())
        return [line for line in lines if line]

    def _write(self, paced: _Paced, record: AgingRecord) -> None:
        """Let a sink write, and find the time of its next write."""
        began = time.monotonic()
        with self._caught(paced):
            self._give(paced, record)
        now, usual = time.monotonic(), paced.sink.usual_pause
        age = now - (now if self._started is None else self._started)
        pause = max(min(max(_SHORTEST, age), usual), (now - began) / _SHARE) if usual else 0.0
        paced.next_time = now + min(pause, paced.sink.longest)

    def _give(self, paced: _Paced, record: AgingRecord) -> None:
        """Pass the waiting pairs to a sink, and drop them if it raises nothing."""
        if paced.sink.takes_signals:
            self._signals.look(record)
            signals = self._signals.found[paced.n_signals :]
            if signals:
                paced.sink.log_signals(signals)
                paced.n_signals += len(signals)
        pairs = list(paced.pairs)
        paced.sink.update(record, pairs, self._step)
        del paced.pairs[: len(pairs)]
        paced.has_news = False

    @contextlib.contextmanager
    def _caught(self, paced: _Paced) -> Iterator[None]:
        """Log the first error of a sink. A logger that is down stays down, and later calls still try it."""
        try:
            yield
        except Exception as error:
            if not paced.has_failed:
                paced.has_failed = True
                self._log(type(paced.sink).__name__, error)

    def _log(self, what: str, error: Exception) -> None:
        log.warning(
            "lightning_glassy: %s failed (%s: %s). Training goes on, and the record stays in memory: "
            "%s.record.save(path) writes it",
            what,
            type(error).__name__,
            error,
            self._who,
        )


def curve_groups(record: AgingRecord) -> list[str]:
    """Return the groups whose curves loggers get as scalars: ``"all"``, and the :data:`MOST_GROUPS` largest others.

    The order is as in the record. Groups without a coordinate in the sample are left out.
    """
    sampled, sizes = record.n_sampled, record.n_parameters
    there = [group for group in record.groups if sampled[group]]
    others = [group for group in there if group != "all"]
    largest = {"all", *sorted(others, key=lambda group: -sizes[group])[:MOST_GROUPS]}
    return [group for group in there if group in largest]


def scalars(record: AgingRecord, pairs: Pairs, prefix: str) -> list[Scalar]:
    """Return the points of the curves at ``pairs``, for a logger that gets curves as scalars.

    The tags are listed in :mod:`lightning_glassy.loggers`. The registry marks the observables with curves as
    ``logged``, and :func:`curve_groups` has the groups. With replicas, a value is the mean over the replicas.
    """
    if not pairs:
        return []
    names = [name for name, (entry, _) in record.columns().items() if entry.logged]
    table = record.mean_table(pairs, names, groups=curve_groups(record))
    waiting_times, lags, groups = table["waiting_time"], table["lag"], table["group"]
    moved = table.get("msd", [0.0] * len(lags))
    result: list[Scalar] = []
    for name in names:
        start = {group: f"{prefix}/{name}/{'' if group == 'all' else f'{group}/'}tw_" for group in set(groups)}
        # Leave out an undefined value, such as alpha_2 if nothing moved. Keep the NaN of diverged weights.
        result += [
            (f"{start[group]}{waiting_time}", waiting_time, lag, value)
            for waiting_time, lag, group, value, d2 in zip(waiting_times, lags, groups, table[name], moved, strict=True)
            if value == value or d2 != d2
        ]
    return result
