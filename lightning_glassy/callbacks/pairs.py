"""Base class of the measurements at pairs of times, from the snapshots of an AgingMonitor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import Unpack

from lightning_glassy.callbacks.aging import AgingMonitor
from lightning_glassy.callbacks.recorder import MeasurementOptions
from lightning_glassy.callbacks.recording import Recording, of_kind
from lightning_glassy.callbacks.run import max_step, schedule_of
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.tracker import Finding, TrackerEvent, TrackerOptions
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule, ScheduleLike, check_schedule


class PairMeasurement(Recording, ABC):
    """Base class of callbacks that measure at pairs of times, and see the snapshots of an AgingMonitor.

    The callback runs at the events of the :class:`AgingMonitor` of the same ``name``. If there is no such AgingMonitor,
    the callback adds one. It measures the first pair that the AgingMonitor measures at or after each pair of the
    schedule. A subclass writes :meth:`measure`.

    Args:
        schedule: a :class:`LogTimeSchedule` of the pairs, a number of waiting times and of lags per decade, or the name
            of a preset.
        **options: see :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.
    """

    profile = ""
    """Name of the profile that the callback records at each pair."""

    waits = False
    """Whether the time of the measurement starts after the work of the training on a CUDA device."""

    needs: TrackerOptions = {}  # noqa: RUF012
    """Options of an AgingMonitor that is added."""

    def __init__(self, schedule: ScheduleLike, **options: Unpack[MeasurementOptions]) -> None:
        check_schedule(schedule)
        super().__init__(schedule, **options)
        self._choice: _Choice | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_choice": None}

    @abstractmethod
    def measure(
        self, trainer: Trainer, module: LightningModule, event: TrackerEvent, snapshots: list[Snapshot]
    ) -> Iterable[Finding]:
        """Return profiles for the record, from the weights of an event and the snapshots that the schedule selects.

        Only the process that measures calls this method. An error costs a warning.
        """

    def follower(self, trainer: Trainer, module: LightningModule) -> Callable[[TrackerEvent], list[Finding]]:
        """Return :meth:`follow` for one training."""
        return partial(self.follow, trainer, module)

    def follow(self, trainer: Trainer, module: LightningModule, event: TrackerEvent) -> list[Finding]:
        """Select the snapshots at an event, and measure."""
        if self._choice is None or self._choice.record is not event.record:
            self._choice = _Choice(schedule_of(self.schedule, trainer, module), event.record, self.profile)
        wanted = [s for s in event.due if self._choice.takes(s.waiting_time, event.step - s.waiting_time)]
        who = type(self).__name__
        if wanted and not self.recorder.affords(who, self.max_share, event.step, max_step(trainer, module)):
            self.recorder.leave_out(who, self.max_share)
            return []
        latest = self.progress.latest
        with self.progress.timed(trainer.strategy.root_device if self.waits and wanted else None):
            found = list(self.measure(trainer, module, event, wanted))
        if not wanted:  # an event without a pair does not determine the next pair
            self.progress.latest = latest
        if found:
            self.progress.count += len(found)
            self.recorder.note()
        return found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add an AgingMonitor if there is none."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if not any(monitor.name == self.name for monitor in of_kind(trainer, AgingMonitor)):
            options: Any = {"name": self.name, "dirpath": self.dirpath, "save": self.save, "summary": self.summary}
            place = trainer.callbacks.index(self)  # type: ignore[attr-defined]
            # Lightning calls its `setup` next.
            trainer.callbacks.insert(place + 1, AgingMonitor(self.schedule, **self.needs, **options))  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a preset for a run of unknown length, and forget the pairs of the last fit.

        Raises:
            ValueError: the length of the run is unknown, or too short for the preset.
        """
        super().on_train_start(trainer, pl_module)
        schedule_of(self.schedule, trainer, pl_module)


class _Choice:
    """Selects pairs that an AgingMonitor measures: the first at or after each pair of a schedule.

    Args:
        schedule: the wanted pairs.
        record: record of the AgingMonitor. Its pairs of the profile have been measured.
        name: name of the profile.
    """

    def __init__(self, schedule: LogTimeSchedule, record: AgingRecord, name: str) -> None:
        self.record = record
        self._schedule = schedule
        self._last_lags: dict[int, int] = {}
        if name in record.profile_names:
            profile = record.profile(name)
            # Sorted by lag, so the largest lag is kept.
            self._last_lags = dict(zip(profile.waiting_times.tolist(), profile.lags.tolist(), strict=True))

    def takes(self, waiting_time: int, lag: int) -> bool:
        """Return whether a pair is wanted. Pairs of one waiting time come in the order of their lags."""
        if waiting_time not in self._last_lags:
            due = self._schedule.next_waiting_time(max(self._last_lags, default=-1))
            if due is None or due > waiting_time:
                return False
        wanted = self._schedule.next_lag(self._last_lags.get(waiting_time, -1), waiting_time)
        if wanted is None or wanted > lag:
            return False
        self._last_lags[waiting_time] = lag
        return True
