"""Measure the aging of any torch training, without a framework: call ``AgingTracker.update(step)`` after each step."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack

from lightning_glassy.measure.layout import ROUNDING_MARGIN, TrackedParameters, within_rounding
from lightning_glassy.measure.memory import check_memory_options, host_budget, human_bytes, plan_sample
from lightning_glassy.measure.moments import distances_for, moments_for
from lightning_glassy.measure.moments.replicas import as_matrices
from lightning_glassy.measure.readback import Readback
from lightning_glassy.measure.resume import StateError, check_parts, describe, pack, restrict, unpack
from lightning_glassy.measure.select import (
    Groups,
    Selected,
    as_replicas,
    check_patterns,
    plain_name,
    select_parameters,
    share_out,
)
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank
from lightning_glassy.measure.streams import FixedStreams, queued_on
from lightning_glassy.observables import default_overlap_thresholds, msd, replica_overlap
from lightning_glassy.record import MOMENTS, MSD_MOMENTS, AgingRecord, check_thresholds
from lightning_glassy.replicas.ensemble import replica_axes
from lightning_glassy.schedule import ScheduleLike, as_schedule

log = logging.getLogger(__name__)

T = TypeVar("T")

# Number of steps for which memory is planned if the length of the run is unknown. The number of snapshots grows only
# with its logarithm.
_HORIZON = 10**9

_STATE_VERSION = 1

_NEVER = sys.maxsize
_next_step = operator.attrgetter("next_step")

_DOUBTS = {
    "nan": "the weights are not finite at some pairs of times, which are recorded as they are",
    "resolution": "the mean squared displacement of some pairs of times is within the rounding of the weights' own "
    "dtype: a plateau there is not physics",
}

_D2, _S2 = MOMENTS.index("d2"), MOMENTS.index("s2")


class _Measured(NamedTuple):
    """Tag of a batch of moments on its way to the host."""

    step: int
    # This keeps the snapshots alive, because a snapshot in host memory may be freed only after the device has read it.
    # Empty if the batch compares the replicas with each other.
    snapshots: tuple[Snapshot, ...]


class TrackerEvent(NamedTuple):
    """Results of an event for a listener, right after the measurement, before the weights change.

    Attributes:
        step: number of completed updates.
        due: the snapshots that were compared with the weights. They may be freed after the listener returns.
        captured: the snapshot of these weights, if the step is a waiting time.
        parameters: the tracked coordinates.
        sums: the moments on the device, per bucket ``[n_cell, n_due, n_moment]``.
        record: the record, with the measurements that have landed on the host so far.
    """

    step: int
    due: tuple[Snapshot, ...]
    captured: Snapshot | None
    parameters: TrackedParameters
    sums: list[Tensor]
    record: AgingRecord


class Finding(NamedTuple):
    """Values that a listener has measured at a pair of times, for :meth:`AgingRecord.append_profile`.

    Attributes:
        name: name of the profile, or ``"response"``.
        waiting_time: waiting time in steps.
        lag: lag in steps.
        grid: points of the profile, on the host, ``[n_point]``. None for a response, which is a row for
            :meth:`AgingRecord.append_response`.
        values: values of the profile, on any device, ``[n_value]``. The listener must not write to them afterwards.
    """

    name: str
    waiting_time: int
    lag: int
    grid: NDArray[np.float64] | None
    values: Tensor


class _Found(NamedTuple):
    """Tag of a batch of values from a listener on its way to the host."""

    findings: tuple[Finding, ...]
    snapshots: tuple[Snapshot, ...]  # kept for the same reason as in _Measured


class TrackerOptions(TypedDict, total=False):
    """Options of :class:`AgingTracker`, and of the callbacks that make an AgingTracker.

    Attributes:
        include: track only parameters whose name matches one of these shell patterns. Default: all trainable
            parameters.
        exclude: do not track parameters whose name matches one of these patterns.
        sample: number of coordinates to sample, or ``None`` for all. ``"auto"`` (default) tracks all coordinates if the
            snapshots fit in a tenth of the free memory of their device (and in ``max_memory``), otherwise as many as
            fit.
        snapshot_device: device that keeps the snapshots. ``"cpu"`` keeps them in host memory (pinned on CUDA). Default:
            the device of the parameters.
        max_memory: most bytes the snapshots may take. Default: the free memory of their device.
        overlap_thresholds: the epsilons of the overlap, positive and increasing. ``"auto"`` (default): about a
            hundredth and a tenth of the standard deviation of the weights at the start. The function
            :func:`~lightning_glassy.observables.relative_overlap_thresholds` makes the thresholds of Winter and Janssen
            2024.
        moments: ``"full"`` (default), or ``"msd"`` for the mean squared displacement alone, at about half of the cost.
            No overlaps are counted then, and ``overlap_thresholds`` is ignored.
    """

    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    sample: int | Literal["auto"] | None
    snapshot_device: str | torch.device | None
    max_memory: int | None
    overlap_thresholds: Sequence[float] | Literal["auto"]
    moments: Literal["full", "msd"]


_DEFAULTS: TrackerOptions = {
    "include": None,
    "exclude": None,
    "sample": "auto",
    "snapshot_device": None,
    "max_memory": None,
    "overlap_thresholds": "auto",
    "moments": "full",
}


def check_options(groups: Groups, options: TrackerOptions) -> TrackerOptions:
    """Check the options of :class:`AgingTracker` as far as possible without a model, and add the defaults.

    Raises:
        TypeError: there is no such option.
        ValueError: an option is out of its range. The message names the option, its value and the allowed values.
    """
    unknown = options.keys() - _DEFAULTS.keys()
    if unknown:
        raise TypeError(f"there is no option {sorted(unknown)[0]!r}; there are {['groups', *_DEFAULTS]}")
    complete: TrackerOptions = {**_DEFAULTS, **options}
    if complete["moments"] not in ("full", "msd"):
        raise ValueError(f"moments={complete['moments']!r} is not 'full' or 'msd'")
    check_patterns(groups, complete["include"], complete["exclude"])
    thresholds = complete["overlap_thresholds"]
    if not isinstance(thresholds, str):
        complete["overlap_thresholds"] = check_thresholds(thresholds)
    elif thresholds != "auto":
        raise ValueError(f"overlap_thresholds={thresholds!r} is not 'auto' or a list of numbers")
    check_memory_options(complete["sample"], complete["snapshot_device"], complete["max_memory"])
    return complete


class AgingTracker:
    """Capture and measure the weights of any torch training, at the steps that the caller reports.

    A step without an event costs two comparisons. At an event, the tracker queues the moments of the current weights
    against every due snapshot on the device. The moments enter the record after they have landed on the host. If the
    step count jumps over an event (for example, it grows by 2), the event is handled at the next reported step. The
    record then contains the realised waiting time and lag.

    Args:
        named_parameters: the module, or pairs as from ``module.named_parameters(remove_duplicate=False)``.
        schedule: steps at which to capture and to measure: a :class:`LogTimeSchedule`, a number of waiting times and of
            lags per decade, or the name of a preset (with ``max_step``). Default: ``LogTimeSchedule.logspaced()``, with
            3 waiting times and 10 lags per decade.
        groups: ``"all"``, ``"layer"`` (one group per module), or a mapping of group names to name patterns.
        max_step: last step of the run, if known. Memory is planned for this length. A longer run continues the
            schedule.
        n_replica: number of replicas, if the first axis of every parameter is the replica axis. Each replica is
            measured by itself, and the replicas are compared with each other. Default for a module: the number of
            replicas of the :class:`~lightning_glassy.replicas.ReplicaEnsemble` in it.
        meta: further facts about the run for the record, as values that JSON can hold.
        state: result of :meth:`state_dict` of an earlier tracker of the same parameters. The new tracker continues
            from there, bit for bit. If the new schedule differs, it applies from there on.
        directory: first directory to search for the snapshot files of the state. The second is the directory in
            which they were written.
        **options: the other options, see :class:`~lightning_glassy.measure.tracker.TrackerOptions`: ``include``,
            ``exclude``, ``sample``, ``snapshot_device``, ``max_memory``, ``overlap_thresholds`` and ``moments``.

    On CUDA, events run on the stream that is current when the tracker is made. If :meth:`update` is called on another
    stream, the event runs after the work queued there, and later work there runs after the event.

    If parameters are spread over processes (FSDP, tensor parallelism, ZeRO), every process makes a tracker and calls it
    at the same steps. Each process keeps and reads the part it holds. Every record contains the sums over all
    processes.

    Attributes:
        record: the growing :class:`AgingRecord`.
        last_step: step of the last event, or -1 before the first.
        next_event: first step at which :meth:`update` has something to capture or to measure.
        description: one line about the tracked parameters and the memory of their snapshots.
        listeners: functions that run at each event and may return profiles for the record. Their keys are names for
            log messages. An error in a listener is logged as a warning. A listener sees the sums and the weights of
            this process only.

    Raises:
        ValueError: there is nothing to track, or an argument is out of its range.
        StateError: the state has other parameters, samples, thresholds or moments. The message names the difference.
        UnmeasurableError: parameters are spread over processes in a way that cannot be measured correctly.
        MemoryError: the snapshots do not fit.

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
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        schedule: ScheduleLike | None = None,
        groups: Groups = "all",
        *,
        max_step: int | None = None,
        n_replica: int | None = None,
        meta: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
        **options: Unpack[TrackerOptions],
    ) -> None:
        self.schedule = as_schedule(schedule, max_step)
        chosen = check_options(groups, options)
        sample, thresholds, moments = chosen["sample"], chosen["overlap_thresholds"], chosen["moments"]
        device, max_memory = chosen["snapshot_device"], chosen["max_memory"]
        self._max_memory = max_memory
        self._end = max_step
        if max_step is not None:
            self.schedule.until(max_step)  # raises if the run is too short to measure anything
        endless = self.schedule.open_ended and max_step is None
        # Waiting times beyond the horizon are captured in the memory of one snapshot.
        capacity = max(1, self.schedule.snapshots_by(_HORIZON if max_step is None else max_step))
        selected = select_parameters(
            named_parameters, groups=groups, include=chosen["include"], exclude=chosen["exclude"]
        )
        if n_replica is None and isinstance(named_parameters, nn.Module):
            n_replica = _ensemble_size(named_parameters, selected)
        if n_replica is not None:
            selected = as_replicas(selected, n_replica)
        earlier = None if state is None else _Earlier(state, selected, sample, thresholds, moments)
        if earlier is not None:
            selected, sample = earlier.selected, earlier.sample
        selected, self._processes = share_out(selected)
        n, n_bytes = plan_sample(
            selected, capacity, sample=sample, device=device, max_memory=max_memory, processes=self._processes
        )

        # This line allocates memory. If one process runs out of memory, all processes must raise.
        self.parameters = self._together(lambda: TrackedParameters(selected, n))
        self._resolution = np.array(list(self.parameters.resolution.values()))[:, None]  # [n_group, 1]
        self._rounding = ROUNDING_MARGIN * self._resolution
        # The bound of the only group, if there is one row of sums for each snapshot.
        self._one_bound = float(self._rounding[0, 0]) if self._rounding.size == 1 and not n_replica else None
        self._options = {"sample": n, "moments": moments, "parameters": describe(selected)}
        devices = {parameter.tensor.device for parameter in selected}
        self._device = self._processes.place(devices) if self._processes is not None else min(devices, key=str)
        self._streams = FixedStreams({*devices, self._device})
        self.description = self._describe(n, n_bytes, capacity, device)
        self._bank = SnapshotBank(self.parameters, device)
        if earlier is not None:
            thresholds = earlier.record.overlap_thresholds
        elif moments == "msd":
            thresholds = ()
        elif isinstance(thresholds, str):
            thresholds = default_overlap_thresholds(self.parameters.standard_deviation(self._processes))
        self._moments = self._together(
            lambda: moments_for(self.parameters, thresholds, msd_only=moments == "msd", snapshot_device=device)
        )
        self._between = None if n_replica is None else distances_for(self.parameters)
        # Size the memory for the sums against four snapshots, more than most events measure.
        n_bytes = 8 * math.prod((self.parameters.n_cells, 4, len(MOMENTS) + len(thresholds)))
        self._readback: Readback[_Measured | _Found] = Readback(devices, n_bytes)
        self.listeners: Mapping[str, Callable[[TrackerEvent], Iterable[Finding]]] = {}
        self.record = (
            earlier.record
            if earlier is not None
            else AgingRecord(
                self.parameters.n_parameters,
                n_sampled=self.parameters.n_sampled,
                overlap_thresholds=thresholds,
                n_replica=n_replica,
                sums=MOMENTS if moments == "full" else MSD_MOMENTS,
                meta={
                    # A draw from a global generator would change the random numbers of the training.
                    "id": secrets.token_hex(8),
                    "schedule": repr(self.schedule),
                    "max_step": max_step,
                    "dtypes": {
                        name: str(dtype).removeprefix("torch.") for name, dtype in self.parameters.dtypes.items()
                    },
                    "moments": moments,
                    **(meta or {}),
                },
            )
        )
        # Columns that the record keeps. All of them are a slice, which does not copy.
        counts = range(len(MOMENTS), len(MOMENTS) + len(thresholds))
        columns = [*(MOMENTS.index(name) for name in self.record.sums), *counts]
        self._columns = slice(None) if self.record.sums == MOMENTS else columns
        self.last_step = self._seen = -1
        self.next_event = 0
        self._note_capture(-1)
        self._new: list[tuple[int, int]] = []
        self._warned: set[str] = set()
        self._broken = False
        self._before: _Before | None = None
        self.lost: dict[int, str] = {}
        if earlier is not None:
            self._go_on(earlier, directory)
        if not endless:
            # Allocate all snapshots now, so that the run cannot run out of memory later.
            self._together(lambda: self._bank.reserve(capacity))

    def _together(self, make: Callable[[], T]) -> T:
        return make() if self._processes is None else self._processes.together(make)

    def _describe(self, n: int | None, n_bytes: int, capacity: int, snapshot_device: object) -> str:
        buckets = self.parameters.buckets
        places = {str(snapshot_device or bucket.device) for bucket in buckets} or {"no device"}
        homes = sorted({str(bucket.device) for bucket in buckets} - places)
        passing = 2 * sum(bucket.numel * bucket.dtype.itemsize for bucket in buckets)
        total, sampled = self.parameters.n_parameters["all"], self.parameters.n_sampled["all"]
        by_when = f" by step {_HORIZON:,}" if self.schedule.open_ended and self._end is None else ""
        return (
            f"tracking {f'{replicas} replicas of ' if (replicas := self.parameters.n_replica) else ''}"
            f"{f'a sample of {sampled:,} of ' if n else ''}{total:,} parameters in "
            f"{len(self.parameters.groups)} group{'s' if len(self.parameters.groups) > 1 else ''}, "
            f"at most {capacity} snapshots{by_when}"
            f", {human_bytes(n_bytes)} on {', '.join(sorted(places))}"
            f"{f' in each of {self._processes.size} processes' if self._processes else ''}"
            f"{f', {human_bytes(passing)} on ' + ', '.join(homes) + ' for those in passing' if homes else ''}"
        )

    def _go_on(self, earlier: _Earlier, directory: str | os.PathLike[str] | None) -> None:
        if earlier.record.n_sampled != self.parameters.n_sampled:
            raise StateError(
                f"sample: {earlier.record.n_sampled} coordinates were sampled, and {self.parameters.n_sampled} are now"
            )
        self.last_step = earlier.last_step
        self._note_capture(earlier.captured)
        places = [Path(place) for place in (directory, earlier.directory) if place is not None]

        def wanted(waiting_time: int, last_lag: int) -> bool:
            return self.schedule.next_lag(last_lag, waiting_time) is not None

        self.lost = unpack(earlier.parts, self.parameters, self._bank, places, self._processes, wanted)
        for snapshot in self._bank.live.values():
            self._plan(snapshot)
        for waiting_time, why in self.lost.items():
            log.warning("lightning_glassy: the snapshot of step %d is lost: %s", waiting_time, why)
        if earlier.schedule != repr(self.schedule):
            log.warning(
                "lightning_glassy: the schedule was %s, and is %r from step %d on",
                earlier.schedule,
                self.schedule,
                self.last_step,
            )
        self.record.start_branch(step=self.last_step, schedule=repr(self.schedule), max_step=self._end)
        self.next_event = self._find_next_event()

    def update(self, step: int, one_time: Mapping[str, float] | None = None) -> bool:
        """Capture and measure the current weights if an event is due. Call this after ``step`` completed updates.

        Args:
            step: number of completed updates, never less than before. A repeated step does nothing.
            one_time: values that belong to this step, recorded if the step is an event.

        Returns:
            Whether something was captured or measured.

        Raises:
            TypeError: ``step`` is not an integer.
            ValueError: ``step`` is below an earlier step. Call :meth:`go_back` first.
            ParametersChangedError: a tracked parameter has another shape, dtype or device than at the start.
        """
        step = operator.index(step)
        if self._readback.queue:
            self._enter(self._readback.landed())
        if step < self._seen:
            raise ValueError(
                f"step={step} comes after step {self._seen}: steps cannot go back. If the training has gone back to an "
                f"earlier state, call go_back({step}) first"
            )
        self._seen = step
        if step < self.next_event:
            return False
        live = self._bank.live.values()
        due = [snapshot for snapshot in live if snapshot.next_step <= step]
        # A signal handler that calls state_dict() during the event gets the state before the event.
        lags = {snapshot: snapshot.last_lag for snapshot in due}
        self._before = _Before(step, self.last_step, self._captured, tuple(live), lags)
        try:
            # Events share scratch, tables and snapshots, and callers may report steps from different streams.
            with self._streams.entered():
                handled = self._handle(step, due, one_time)
        except Exception:
            self._before = None
            raise
        # Ctrl-C during the event skips this line. A checkpoint then leaves out the snapshot that may be incomplete.
        self._before = None
        if self._readback.queue:
            self._enter(self._readback.landed())
        return handled

    def _handle(self, step: int, due: list[Snapshot], one_time: Mapping[str, float] | None) -> bool:
        """Capture and measure everything that is due at a step.

        Args:
            step: number of completed updates.
            due: the snapshots to measure. A new snapshot is added if the schedule has lag 0.
            one_time: values that belong to this step.
        """
        new = self._new_snapshot(step) if self._next_capture <= step else None
        if new is not None and new.next_step <= step:
            due.append(new)
        if new is not None or due:
            self._measure_all(step, due, new, one_time)
        self.last_step = step
        self.next_event = self._find_next_event()
        return new is not None or bool(due)

    def _measure_all(
        self, step: int, due: list[Snapshot], new: Snapshot | None, one_time: Mapping[str, float] | None
    ) -> None:
        """Capture the new snapshot, measure the due snapshots, and run the listeners."""
        sums = [] if self._broken else self._measure(due, new)
        if due:
            try:
                self._send(_Measured(step, tuple(due)), sums)
            except Exception as error:
                if self._processes is None:
                    raise
                self.give_up(error, self._seen)
        if self.listeners and not self._broken:
            self._tell(TrackerEvent(step, tuple(due), new, self.parameters, sums, self.record))
        for snapshot in due:
            # Several lags passed in one jump are measured once, at the realised lag.
            snapshot.last_lag = step - snapshot.waiting_time
            self._plan(snapshot)
            if snapshot.next_step == _NEVER:
                self._bank.release(snapshot.waiting_time, reuse=self._next_capture != _NEVER)
        if self._between is not None and not self._broken:
            self._readback.push(_Measured(step, ()), [self._between()])
        if one_time:
            for name, value in one_time.items():
                self.record.append_one_time(name, step, value)

    def _measure(self, due: list[Snapshot], new: Snapshot | None) -> list[Tensor]:
        """Capture the new snapshot, measure the due snapshots, and return their sums.

        If several processes measure together, a process that fails returns no sums instead of raising. Otherwise the
        other processes would wait for it.
        """
        try:
            if due and due[-1] is new:
                # At lag 0 the new snapshot is compared with the weights, so it must be filled first.
                self._moments((), new)
                return self._moments(due)
            return self._moments(due, new)
        except Exception as error:
            if self._processes is None:
                raise
            self.give_up(error, self._seen)
            return []

    def _send(self, measured: _Measured, sums: list[Tensor]) -> None:
        """Queue the sums for the host. If several processes hold the parameters, first add up their sums."""
        if self._processes is None:
            self._readback.push(measured, sums, self._moments.streams)
            return
        with torch.no_grad(), queued_on(self._moments.streams):
            shape = self._sums_shape(len(measured.snapshots))
            # The last number counts the processes that could not measure.
            vector = torch.zeros(math.prod(shape) + 1, dtype=torch.float64, device=self._device)
            if self._broken:
                vector.fill_(math.nan)
                vector[-1] = 1
            else:
                for of_bucket in sums:
                    vector[:-1] += of_bucket.to(vector, non_blocking=True).view(-1)
            work = self._processes.start_sum(vector)
        self._readback.push(measured, [vector], self._moments.streams, work)

    def _tell(self, event: TrackerEvent) -> None:
        """Run the listeners on the stream of the training, and queue their findings for the host like the moments."""
        for device, side in self._moments.streams.items():
            torch.cuda.current_stream(device).wait_stream(side)
        for tensor in event.sums:
            # Another stream may have made the tensor. Its memory must not be reused before this stream has read it.
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        for name, listener in self.listeners.items():
            try:
                found = tuple(listener(event))
                if found:
                    self._readback.push(_Found(found, event.due), [finding.values for finding in found])
            except Exception as error:
                words = f"{name} failed ({type(error).__name__}: {error})"
                self._warn_once(words, f"at step {event.step}. Training goes on")

    def _sums_shape(self, n_snapshot: int) -> tuple[int, int, int]:
        return self.parameters.n_cells, n_snapshot, len(MOMENTS) + len(self.record.overlap_thresholds)

    def _new_snapshot(self, step: int) -> Snapshot | None:
        """Return a snapshot to fill at a step that reaches or passes a waiting time.

        Return ``None`` if none of its lags can be measured.
        """
        if step == self._end and self.schedule.next_lag(-1, step) != 0:
            return None  # no lag is left in this run, but a continued training captures this step when it starts
        self._note_capture(step)
        if self.schedule.next_lag(-1, step) is None:
            return None
        try:
            new = self._bank.hold(step) if self._broken else self._bank.add(step)
        except Exception as error:
            if self._processes is None:
                raise
            self.give_up(error, self._seen)
            new = self._bank.hold(step)
        self._plan(new)
        return new

    def _note_capture(self, step: int) -> None:
        """Remember the step of the last capture, and find the next waiting time."""
        upcoming = self.schedule.next_waiting_time(step)
        self._captured, self._next_capture = step, _NEVER if upcoming is None else upcoming

    def _plan(self, snapshot: Snapshot) -> None:
        """Find the step at which a snapshot is measured next."""
        lag = self.schedule.next_lag(snapshot.last_lag, snapshot.waiting_time)
        snapshot.next_step = _NEVER if lag is None else snapshot.waiting_time + lag

    def _find_next_event(self) -> int:
        return min(self._next_capture, min(map(_next_step, self._bank.live.values()), default=_NEVER))

    def go_back(self, step: int) -> None:
        """Forget everything from ``step`` on, because the training has gone back to its state after ``step`` updates.

        The rows measured at ``step`` or later leave the record, and the later snapshots are freed. :meth:`update` can
        measure ``step`` again. A snapshot that was freed after its last lag does not come back.

        Args:
            step: number of completed updates.
        """
        before = self._seen
        self.forget_from(operator.index(step))
        self.record.start_branch(step=step, gone_back_from=before)

    def forget_from(self, step: int) -> None:
        """Forget everything from ``step`` on, as if it had not been measured."""
        self.drain()
        self.record = self.record.before(step)
        waiting_times, lags = self.record.pairs
        for waiting_time, snapshot in list(self._bank.live.items()):
            if waiting_time >= step:
                self._bank.release(waiting_time)
            else:
                snapshot.last_lag = int(lags[waiting_times == waiting_time].max(initial=-1))
                self._plan(snapshot)
        if self._captured >= step:
            self._note_capture(max([*self._bank.live, *waiting_times.tolist()], default=-1))
        self.last_step, self._seen = min(self.last_step, step - 1), step
        if not self._broken:
            self.next_event = self._find_next_event()

    def drop_snapshots(self) -> None:
        """Free all snapshots, because the weights do not continue from them. Later waiting times are captured."""
        for waiting_time in list(self._bank.live):
            self._bank.release(waiting_time)
        self.next_event = self._find_next_event()

    @property
    def alone(self) -> bool:
        """Whether this process holds all parameters."""
        return self._processes is None or self._processes.size == 1

    @property
    def n_snapshots(self) -> int:
        """Number of snapshots that are held now."""
        return len(self._bank.live)

    @property
    def pending(self) -> bool:
        """Whether some measurements are still on their way to the record."""
        return bool(self._readback.queue)

    def drain(self, timeout: float | None = None) -> None:
        """Wait for all measurements under way, and enter them into the record.

        Args:
            timeout: most seconds to wait, if other processes may have stopped. Measurements that have not arrived by
                then are lost.
        """
        self._enter(self._readback.drain(timeout))

    def close(self) -> None:
        """Free all snapshots and the connection to other processes. The tracker cannot measure after this."""
        self._bank.clear()
        self._broken, self.next_event = True, _NEVER
        if self._processes is not None:
            self._processes.close()

    def end(self) -> dict[str, Any]:
        """Free the tracker, and return the state from which another tracker can continue.

        The snapshots in the state are in host memory. They are left out if they do not fit there (in ``max_memory``, or
        a tenth of the free memory), or if several processes hold them. ``state["left_out"]`` is the number of snapshots
        that were left out.
        """
        live = list(self._bank.live.values())
        on_device = _on_device(live)
        fits = not on_device or on_device <= host_budget(self._max_memory)
        try:
            state = self._state(None, snapshots=fits and self.alone, copy=False)
        finally:
            with contextlib.suppress(RuntimeError):  # a connection that has failed already
                self.close()
        return {**state, "left_out": 0 if state["parts"] else len(live)}

    def new_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs (waiting time, lag) that entered the record since the last call, in order of measurement."""
        pairs, self._new = self._new, []
        return pairs

    def give_up(self, error: Exception, step: int) -> None:
        """Free all snapshots and stop measuring, after an error at a step.

        Measurements under way can still be drained. If several processes hold the parameters, this process still takes
        part in the sums over the processes, because the others would wait for it. Then all processes stop measuring.
        """
        if self._broken:
            return
        self._broken = True
        log.warning(
            "lightning_glassy: no more is measured from step %d on (%s: %s). The record so far is kept",
            step,
            type(error).__name__,
            error,
        )
        if self._processes is None:
            self._bank.clear()
            self.next_event = _NEVER
        else:
            self._bank.empty()

    def state_dict(self, directory: str | os.PathLike[str] | None = None, *, snapshots: bool = True) -> dict[str, Any]:
        """Return the state from which another tracker can continue: tensors and plain values, for ``torch.save``.

        The method waits for measurements under way. If several processes hold the parameters, all of them must call it.
        All results are equal, so it is enough to save one result.

        Args:
            directory: directory for files with the snapshots. Files are used if the snapshots take more than 16 MiB
                together, or if several processes hold them. Each file is written once, and later states refer to it by
                name and checksum. Keep the files as long as the states. ``None``: the state itself holds the snapshots.
            snapshots: whether the state includes the snapshots. Without them, the record continues with new waiting
                times.

        Raises:
            ValueError: several processes hold the snapshots, and there is no directory.
        """
        if directory is None and snapshots and self._processes is not None and self._processes.size > 1:
            raise ValueError("directory=None: the snapshots of several processes need files: name a directory")
        return self._state(None if directory is None else Path(directory), snapshots=snapshots, copy=True)

    def _state(self, place: Path | None, *, snapshots: bool, copy: bool) -> dict[str, Any]:
        before, record, usable = self._before, self.record, snapshots and not self._broken
        try:
            self.drain()
            for stream in self._moments.streams.values():
                stream.synchronize()  # a snapshot may still be on its way to the host
        except RuntimeError as error:  # the device failed
            if self._processes is None:
                raise
            self.give_up(error, self._seen)
            usable = False
        if before is None:
            before = _Before(self._seen, self.last_step, self._captured, tuple(self._bank.live.values()), {})
        else:
            record = record.before(before.step)
        if snapshots and self._processes is not None:
            usable = all(self._processes.gather(usable))  # another process may have given up
        kept = [(snapshot, before.lags.get(snapshot, snapshot.last_lag)) for snapshot in before.live] if usable else []
        with self._streams.entered():
            parts = pack(self.parameters, kept, place, self._processes, copy=copy) if kept else []
        return {
            "version": _STATE_VERSION,
            "record": torch.frombuffer(bytearray(record.to_bytes()), dtype=torch.uint8),
            "schedule": repr(self.schedule),
            "last_step": before.last_step,
            "captured": before.captured,
            "directory": None if place is None else str(place.absolute()),
            "parts": parts,
            **self._options,
        }

    def _enter(self, batches: Iterable[tuple[_Measured | _Found, list[NDArray[np.float64]]]]) -> None:
        for measured, buckets in batches:
            if isinstance(measured, _Found):
                for (name, waiting_time, lag, grid, _), values in zip(measured.findings, buckets, strict=True):
                    try:
                        if grid is None:
                            self.record.append_response(waiting_time, lag, values)
                        else:
                            self.record.append_profile(name, waiting_time, lag, grid, values)
                    except ValueError as error:  # the grid differs from the grid before the resume
                        self._warn_once(f"the record cannot take more: {error}", f"(from step {waiting_time + lag} on)")
                continue
            if self._processes is not None:
                failed, shape = buckets[0][-1], self._sums_shape(len(measured.snapshots))
                buckets = [buckets[0][:-1].reshape(shape)]
                if failed:
                    n = f"{failed:.0f} of {self._processes.size} processes"
                    self.give_up(RuntimeError(f"{n} could not measure, and log the reason"), measured.step)
                    continue
            if not measured.snapshots:
                self._enter_between(measured.step, *as_matrices(buckets[0], self.record.n_replica or 1))
                continue
            of_groups = self.parameters.by_group(buckets)  # [(n_replica,) n_group, n_snapshot, n_moment]
            record = self.record
            for i, snapshot in enumerate(measured.snapshots):
                pair = (snapshot.waiting_time, measured.step - snapshot.waiting_time)
                if pair in record:
                    continue  # already entered by a signal handler that called state_dict()
                record.append(*pair, of_groups[..., i, self._columns])
                self._new.append(pair)
            self._check(of_groups, measured)

    def _warn_once(self, what: str, where: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("lightning_glassy: %s %s", what, where)

    def _enter_between(self, step: int, distances: NDArray[np.float64], products: NDArray[np.float64]) -> None:
        self.record.append_between("weight_distance", step, distances)
        self.record.append_between("weight_product", step, products)
        pairs = np.triu_indices(len(distances), 1)
        if len(pairs[0]):
            distance = msd(distances[pairs], self.parameters.n_sampled["all"])
            self.record.append_one_time("replica_distance", step, float(distance.mean()))
            self.record.append_one_time("replica_overlap", step, float(replica_overlap(products)[pairs].mean()))

    def _check(self, of_groups: NDArray[np.float64], measured: _Measured) -> None:
        """Warn once about weights that are not finite and about displacements within rounding.

        A curve alone does not show these problems, so the record keeps the doubt.
        """
        # Use plain numbers, because NumPy is slower for a few numbers.
        bound = self._one_bound
        if bound is not None and all(bound * row[_S2] < row[_D2] < math.inf for row in of_groups[0].tolist()):
            return  # as nearly always
        d2, s2 = of_groups[..., _D2], of_groups[..., _S2]  # [(n_replica,) n_group, n_snapshot]
        if np.count_nonzero((d2 > self._rounding * s2) & (d2 < np.inf)) == d2.size:
            return
        resolution = self._resolution
        lags = np.array([measured.step - snapshot.waiting_time for snapshot in measured.snapshots])
        finite = np.isfinite(d2)
        hidden = finite & (lags > 0) & within_rounding(d2, s2, resolution)
        for kind, found in (("nan", ~finite), ("resolution", hidden)):
            if kind in self._warned or not found.any():
                continue
            at = tuple(np.argwhere(found)[0])
            *replica, k, i = at
            group, n = self.parameters.groups[k], self.parameters.n_sampled[self.parameters.groups[k]]
            where = f"(group {group!r}, waiting time {measured.snapshots[i].waiting_time}, lag {lags[i]})"
            where = f"in replica {replica[0]} {where}" if replica else where
            self._warned.add(kind)
            self.record.add_doubt(_DOUBTS[kind])
            log.warning(
                "lightning_glassy: %s",
                f"the weights are not finite {where}. They are recorded as they are"
                if kind == "nan"
                else f"the mean squared displacement {d2[at] / n:.2g} is within the rounding of the weights' own dtype "
                f"(about {resolution[k, 0] * s2[at] / n:.2g}) {where}: a plateau there is not physics",
            )


def _on_device(snapshots: Iterable[Snapshot]) -> int:
    """Return the bytes of snapshots that are not in host memory."""
    return sum(flat.nbytes for snapshot in snapshots for flat in snapshot.flats if flat.device.type != "cpu")


class _Before(NamedTuple):
    """State of the tracker before the event at ``step``. The snapshots need no copy, as their weights never change.

    Attributes:
        step: step of the event.
        last_step: step of the event before.
        captured: step of the last capture.
        live: the live snapshots.
        lags: last lags of the snapshots that the event measures.
    """

    step: int
    last_step: int
    captured: int
    live: tuple[Snapshot, ...]
    lags: dict[Snapshot, int]


def _ensemble_size(module: nn.Module, selected: Sequence[Selected]) -> int | None:
    """Return the number of replicas of the selected parameters of a module, or ``None`` without replicas.

    Raises:
        ValueError: the parameters have different numbers of replicas, or only some have replicas. The message names
            one parameter.
    """
    sizes = {plain_name(name): n for name, n in replica_axes(module).items()}
    found = {parameter.name: sizes.get(parameter.name) for parameter in selected}
    if len(set(found.values())) > 1:
        n = max(size for size in found.values() if size)
        odd = next(name for name, size in found.items() if size != n)
        raise ValueError(
            f"the parameter {odd!r} belongs to no ensemble of {n} replicas, as others do: leave it out with exclude=..."
        )
    return next(iter(found.values()))


class _Earlier:
    """State of an earlier tracker, checked against the parameters and options of the new tracker.

    Raises:
        StateError: the state does not fit, or is not the state of a tracker.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        selected: Sequence[Selected],
        sample: int | str | None,
        thresholds: Sequence[float] | str,
        moments: str,
    ) -> None:
        try:
            if state["version"] != _STATE_VERSION:
                raise StateError(f"the state is of version {state['version']}, this package reads {_STATE_VERSION}")
            self.record = AgingRecord.from_bytes(bytes(state["record"].numpy()))
            self.selected = restrict(selected, state["parameters"])
            self.schedule, self.parts = str(state["schedule"]), check_parts(state["parts"], state["parameters"])
            self.directory = None if state["directory"] is None else Path(state["directory"])
            self.last_step, self.captured = operator.index(state["last_step"]), operator.index(state["captured"])
            before = state["sample"]
            total = sum(parameter.numel for parameter in self.selected)
            wanted = sample if isinstance(sample, int) and sample < total else None
            if sample != "auto" and wanted != before:
                raise StateError(f"sample={sample!r}, and it was {before!r} before")
            self.sample = before
            if state["moments"] != moments:
                raise StateError(f"moments={moments!r}, and it was {state['moments']!r} before")
            unknown = set(self.record.sums) - set(MOMENTS)
            if unknown:
                raise StateError(f"its record has the sums {sorted(unknown)}, which this version does not measure")
        except StateError:
            raise
        except Exception as error:
            raise StateError(f"not the state of an AgingTracker ({type(error).__name__}: {error})") from error
        if moments == "msd" or isinstance(thresholds, str):
            return  # no thresholds are needed, or the earlier thresholds are used
        if thresholds != self.record.overlap_thresholds:
            raise StateError(
                f"overlap_thresholds={list(thresholds)!r}, and they were {list(self.record.overlap_thresholds)} before"
            )
