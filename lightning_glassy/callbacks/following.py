"""What the callbacks have in common that look at the snapshots of an AgingMonitor."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.probe import monitor_of
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule


def pairs_of(schedule: LogTimeSchedule | int | None, default: int) -> LogTimeSchedule:
    """The pairs of times to look at: a schedule, or the number of waiting times and of lags per decade.

    Raises:
        TypeError: something else.
        ValueError: a number below 1 or above 1000.
    """
    if isinstance(schedule, LogTimeSchedule):
        return schedule
    per_decade = default if schedule is None else schedule
    if not isinstance(per_decade, int) or isinstance(per_decade, bool):
        raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule, a number of points per decade or None")
    if not 1 <= per_decade <= 1000:
        raise ValueError(f"schedule={schedule!r} points per decade must lie between 1 and 1000")
    return LogTimeSchedule.logspaced(waiting_times_per_decade=per_decade, lags_per_decade=per_decade)


def bring_monitor(trainer: Trainer, name: str, schedule: LogTimeSchedule, **options: Any) -> None:
    """See to it that there is an AgingMonitor of that name, whose snapshots can be looked at."""
    if monitor_of(trainer, name) is None:
        # First, so that its record is there for all others; they are set up once more for it, which does no harm.
        trainer.callbacks.insert(0, AgingMonitor(schedule, name=name, **options))  # type: ignore[attr-defined]


class Choice:
    """Which of the pairs that an AgingMonitor measures are looked at: the first at or after each of a schedule.

    Args:
        schedule: the pairs that are wanted.
        record: that of the monitor; what it has of the profile already is known to have been looked at.
        name: of the profile.
    """

    def __init__(self, schedule: LogTimeSchedule, record: AgingRecord, name: str) -> None:
        self._schedule = schedule
        self._last_lags: dict[int, int] = {}
        if name in record.profile_names:
            profile = record.profile(name)
            # Sorted by lag: the last one wins.
            self._last_lags = dict(zip(profile.waiting_times.tolist(), profile.lags.tolist(), strict=True))

    def takes(self, waiting_time: int, lag: int) -> bool:
        """Whether this pair, the next one of its waiting time, is looked at."""
        if waiting_time not in self._last_lags:
            due = self._schedule.next_waiting_time(max(self._last_lags, default=-1))
            if due is None or due > waiting_time:
                return False
        wanted = self._schedule.next_lag(self._last_lags.get(waiting_time, -1), waiting_time)
        if wanted is None or wanted > lag:
            return False
        self._last_lags[waiting_time] = lag
        return True
