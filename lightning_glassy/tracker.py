"""The rooms on the torch side as one object that knows no framework: call ``update(step)`` after each step."""

from __future__ import annotations

import logging
import math
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.moments import moments_for
from lightning_glassy.observables import default_overlap_thresholds
from lightning_glassy.parameters import Groups, TrackedParameters, check_patterns, select_parameters, within_rounding
from lightning_glassy.readback import Readback
from lightning_glassy.record import MOMENTS, AgingRecord, check_thresholds
from lightning_glassy.schedule import LogTimeSchedule
from lightning_glassy.snapshots import Snapshot, SnapshotBank, check_memory_options, human_bytes, plan_sample

log = logging.getLogger(__name__)

# For a run whose length is unknown, memory is planned for one this long; the number of snapshots is logarithmic in it.
_HORIZON = 10**9


@dataclass(frozen=True)
class _Measured:
    """What a batch of moments on its way to the host belongs to."""

    step: int
    # Not the waiting times alone: a snapshot in host memory may be freed only when the device has read it.
    snapshots: tuple[Snapshot, ...]


def check_options(
    groups: object,
    include: object,
    exclude: object,
    sample: object,
    snapshot_device: str | torch.device | None,
    max_memory: object,
    overlap_thresholds: Sequence[float] | str,
    moments: object,
) -> None:
    """Refuse what can be known to be wrong before there is a model; arguments as of :class:`AgingTracker`.

    Raises:
        ValueError: an argument out of its range; the message names it, its value and what it may be.
    """
    if moments not in ("full", "msd"):
        raise ValueError(f"moments={moments!r} is not 'full' or 'msd'")
    check_patterns(groups, include, exclude)
    if isinstance(overlap_thresholds, str):
        if overlap_thresholds != "auto":
            raise ValueError(f"overlap_thresholds={overlap_thresholds!r} is not 'auto' or a list of numbers")
    else:
        check_thresholds(overlap_thresholds)
    check_memory_options(sample, snapshot_device, max_memory)


class AgingTracker:
    """Captures and measures the weights of any torch training, by its own count of steps.

    Two comparisons per step where nothing is due; at an event the moments of the current weights against every due
    snapshot are queued on the device, and entered into the record once they have landed on the host. A step that
    is jumped over (an optimiser count that grows by 2, say) is handled when it is reached or passed, and what is
    recorded is the waiting time and the lag that were realised.

    Args:
        named_parameters: as from ``module.named_parameters(remove_duplicate=False)``.
        schedule: when to capture and to measure; default ``LogTimeSchedule.logspaced()``.
        max_step: last step of the run, if known; later events of the schedule are left out.
        groups: ``"all"``, ``"layer"`` (one group per module), or a mapping of group names to name patterns.
        include: track only parameters whose name matches one of these shell patterns; default all trainable ones.
        exclude: do not track parameters whose name matches one of these.
        sample: coordinates to sample; ``None`` for all; ``"auto"`` for all where the snapshots fit in a tenth of the
            free memory of their device (and in ``max_memory``), otherwise as many as do.
        snapshot_device: where snapshots are kept; default with the parameters.
        max_memory: most bytes the snapshots may take; default what is free.
        overlap_thresholds: the epsilons of the overlap, positive and increasing; ``"auto"`` for about a hundredth
            and a tenth of the standard deviation of the weights at the start.
        moments: ``"full"``, or ``"msd"`` for the mean squared displacement alone, at about half of the cost.
        meta: what else the record should know of the run; only what JSON can hold.
        record: an earlier record of the same parameters to continue.

    Attributes:
        record: the :class:`AgingRecord`, growing.
        last_step: the last event; -1 before the first.
        next_event: the first step at which :meth:`update` has something to do.
        description: one line on what is tracked, and the memory its snapshots take.

    Raises:
        ValueError: nothing to track, or an argument out of its range.
        MemoryError: the snapshots would not fit.

    Example:
        >>> from lightning_glassy import LogTimeSchedule
        >>> layer = torch.nn.Linear(4, 3)
        >>> tracker = AgingTracker(layer.named_parameters(), LogTimeSchedule([0], [1]), sample=None)
        >>> tracker.update(0)  # before the first update: captured
        True
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1.0)
        >>> tracker.update(1)
        True
        >>> tracker.record.msd().round(6).tolist()  # 12 of 15 coordinates moved by 1
        [[0.8]]
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        schedule: LogTimeSchedule | None = None,
        *,
        max_step: int | None = None,
        groups: Groups = "all",
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        sample: int | Literal["auto"] | None = "auto",
        snapshot_device: str | torch.device | None = None,
        max_memory: int | None = None,
        overlap_thresholds: Sequence[float] | Literal["auto"] = "auto",
        moments: Literal["full", "msd"] = "full",
        meta: Mapping[str, Any] | None = None,
        record: AgingRecord | None = None,
    ) -> None:
        if not isinstance(schedule, (LogTimeSchedule, type(None))):
            raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule or None")
        check_options(groups, include, exclude, sample, snapshot_device, max_memory, overlap_thresholds, moments)
        whole = LogTimeSchedule.logspaced() if schedule is None else schedule
        self.schedule = whole if max_step is None else whole.until(max_step)
        finite = whole.until(_HORIZON) if self.schedule.open_ended else self.schedule
        selected = select_parameters(named_parameters, groups=groups, include=include, exclude=exclude)
        capacity = finite.max_live_snapshots
        n, n_bytes = plan_sample(selected, capacity, sample=sample, device=snapshot_device, max_memory=max_memory)

        self.parameters = TrackedParameters(selected, n)
        places = {str(snapshot_device or bucket.device) for bucket in self.parameters.buckets}
        homes = sorted({str(bucket.device) for bucket in self.parameters.buckets} - places)
        passing = 2 * sum(bucket.numel * bucket.dtype.itemsize for bucket in self.parameters.buckets)
        total, sampled = self.parameters.n_parameters["all"], self.parameters.n_sampled["all"]
        self.description = (
            f"tracking {f'a sample of {sampled:,} of ' if n else ''}{total:,} parameters in "
            f"{len(self.parameters.groups)} group{'s' if len(self.parameters.groups) > 1 else ''}, "
            f"at most {capacity} snapshots"
            f"{f' by step {_HORIZON:,}' if self.schedule.open_ended else ''}"
            f", {human_bytes(n_bytes)} on {', '.join(sorted(places))}"
            f"{f', {human_bytes(passing)} on ' + ', '.join(homes) + ' for those in passing' if homes else ''}"
        )
        self._bank = SnapshotBank(self.parameters, snapshot_device)
        if not self.schedule.open_ended:
            # What will be needed is taken now: a run must not find out in the middle that it does not fit.
            self._bank.reserve(capacity)
        if isinstance(overlap_thresholds, str):
            # A record that is continued has its thresholds already.
            thresholds = self._default_thresholds() if record is None else record.overlap_thresholds
        else:
            thresholds = check_thresholds(overlap_thresholds)
        if record is not None and (
            record.n_parameters != self.parameters.n_parameters
            or record.n_sampled != self.parameters.n_sampled
            or record.overlap_thresholds != thresholds
        ):
            raise ValueError(f"the record to continue ({record!r}) is of other parameters, samples or thresholds")
        self._moments = moments_for(
            self.parameters, thresholds, msd_only=moments == "msd", snapshot_device=snapshot_device
        )
        self._readback: Readback[_Measured] = Readback()
        self.record = (
            record
            if record is not None
            else AgingRecord(
                self.parameters.n_parameters,
                n_sampled=self.parameters.n_sampled,
                overlap_thresholds=thresholds,
                meta={
                    "schedule": repr(whole),
                    "max_step": max_step,
                    "dtypes": {
                        name: str(dtype).removeprefix("torch.") for name, dtype in self.parameters.dtypes.items()
                    },
                    "moments": moments,
                    **(meta or {}),
                },
            )
        )
        self.last_step = self._captured = -1
        if record is not None and len(record):
            self.last_step = int(np.add(*record.pairs).max())
            # The end of a run is no waiting time of that run, but may be one of its continuation.
            self._captured = self.last_step - (self.last_step not in record.waiting_times)
            part = {"from_step": self.last_step, "schedule": repr(whole), "max_step": max_step}
            record.meta["continued"] = [*record.meta.get("continued", []), part]
        self._seen = -1
        self._new: list[tuple[int, int]] = []
        self._warned: set[str] = set()
        self.next_event = 0

    def _default_thresholds(self) -> tuple[float, ...]:
        return default_overlap_thresholds(self.parameters.standard_deviation())

    def update(self, step: int, one_time: Mapping[str, float] | None = None) -> bool:
        """Tell the tracker that ``step`` updates are completed; the weights are those after the last of them.

        Args:
            step: never less than before. The same step again does nothing.
            one_time: values that belong to this step, recorded if it is an event.

        Returns:
            Whether something was captured or measured.

        Raises:
            TypeError: a step that is not an integer.
            ValueError: a step below an earlier one.
            ParametersChangedError: a tracked parameter has another shape, dtype or device than at the start.
        """
        step = operator.index(step)
        if self._readback:
            self._enter(self._readback.landed())
        if step < self._seen:
            raise ValueError(f"step={step} comes after step {self._seen}: steps cannot go back")
        self._seen = step
        if step < self.next_event:
            return False
        new = self._new_snapshot(step)
        due = [
            snapshot
            for snapshot in self._bank.live.values()
            if (lag := self.schedule.next_lag(snapshot.last_lag, snapshot.waiting_time)) is not None
            and snapshot.waiting_time + lag <= step
        ]
        if new is None and not due:
            sums = []
        elif new in due:
            # A lag of 0 compares a snapshot with what it is a copy of: it has to be there first.
            self._moments((), new)
            sums = self._moments(due)
        else:
            sums = self._moments(due, new)
        if due:
            self._readback.push(_Measured(step, tuple(due)), sums, self._moments.streams)
            for snapshot in due:
                # Lags that were passed together are measured once, at the lag that was realised.
                snapshot.last_lag = step - snapshot.waiting_time
                if self.schedule.next_lag(snapshot.last_lag, snapshot.waiting_time) is None:
                    more = self.schedule.next_waiting_time(self._captured) is not None
                    self._bank.release(snapshot.waiting_time, reuse=more)
        if new or due:
            for name, value in (one_time or {}).items():
                self.record.append_one_time(name, step, value)
        self.last_step = step
        self.next_event = self._find_next_event()
        self._enter(self._readback.landed())
        return bool(new or due)

    def _new_snapshot(self, step: int) -> Snapshot | None:
        """A snapshot to fill, if a waiting time has been reached or passed and a lag of it can be measured."""
        waiting_time = self.schedule.next_waiting_time(self._captured)
        if waiting_time is None or waiting_time > step:
            return None
        self._captured = step
        return None if self.schedule.next_lag(-1, step) is None else self._bank.add(step)

    def _find_next_event(self) -> int:
        steps = [self.schedule.next_waiting_time(self._captured)]
        for snapshot in self._bank.live.values():
            lag = self.schedule.next_lag(snapshot.last_lag, snapshot.waiting_time)
            steps.append(None if lag is None else snapshot.waiting_time + lag)
        return min((step for step in steps if step is not None), default=sys.maxsize)

    @property
    def pending(self) -> bool:
        """Whether measurements are on their way that the record does not have yet."""
        return len(self._readback) > 0

    def drain(self) -> None:
        """Enter everything into the record, waiting for what is under way."""
        self._enter(self._readback.drain())

    def new_pairs(self) -> list[tuple[int, int]]:
        """The (waiting time, lag) entered into the record since the last call, in the order of measurement."""
        pairs, self._new = self._new, []
        return pairs

    def release(self) -> None:
        """Free all snapshots and measure no more. What is under way can still be drained."""
        self._bank.clear()
        self.next_event = sys.maxsize

    def _enter(self, batches: list[tuple[_Measured, list[NDArray[np.float64]]]]) -> None:
        for measured, buckets in batches:
            of_groups = self.parameters.by_group(buckets)  # [n_group, n_snapshot, n_moment]
            for i, snapshot in enumerate(measured.snapshots):
                pair = (snapshot.waiting_time, measured.step - snapshot.waiting_time)
                self.record.append(*pair, of_groups[:, i])
                self._new.append(pair)
                self._check(of_groups[:, i], *pair)

    def _check(self, moments: NDArray[np.float64], waiting_time: int, lag: int) -> None:
        """Say once, in words, what a curve would not show by itself."""
        for group, row in zip(self.parameters.groups, moments, strict=True):
            d2, s2, n = row[MOMENTS.index("d2")], row[MOMENTS.index("s2")], self.parameters.n_sampled[group]
            resolution = self.parameters.resolution[group]
            where = f"(group {group!r}, waiting time {waiting_time}, lag {lag})"
            if not math.isfinite(d2) and n:
                self._warn_once("nan", f"the weights are not finite {where}; recorded as they are")
            elif lag > 0 and within_rounding(d2, s2, resolution):
                self._warn_once(
                    "resolution",
                    f"the mean squared displacement {d2 / n:.2g} is within the rounding of the weights' own dtype "
                    f"(about {resolution * s2 / n:.2g}) {where}: a plateau there is not physics",
                )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("lightning_glassy: %s", message)
