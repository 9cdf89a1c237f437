"""The recorder of a training: one owner of its record, its files, its loggers, its resume state and its cost."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.fabric.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import TypedDict

from lightning_glassy.callbacks.run import same_weights, weight_sums
from lightning_glassy.callbacks.watch import ParameterWatch
from lightning_glassy.loggers.dispatch import file_sink, log_directory, run_of, sink_for
from lightning_glassy.loggers.places import Directory, directory_of, inside
from lightning_glassy.loggers.sinks import MOST_GROUPS, Pairs, Sinks
from lightning_glassy.measure.optimizers import UpdateCounter
from lightning_glassy.measure.resume import StateError, repack
from lightning_glassy.measure.select import plain_name
from lightning_glassy.measure.shards import ParametersChangedError, spread
from lightning_glassy.measure.tracker import AgingTracker, Finding, TrackerEvent
from lightning_glassy.record import AgingRecord
from lightning_glassy.record.checks import check_meta

log = logging.getLogger(__name__)

NEVER = sys.maxsize
"""The next event of a callback to which nothing more is due."""

SNAPSHOTS = "glassy_snapshots"
"""Name of the directory of large snapshots, beside the checkpoints that refer to them."""


class RecorderOptions(TypedDict, total=False):
    """Options of every callback that writes to a record.

    Callbacks with the same name share one record. The options of the :class:`~lightning_glassy.AgingMonitor` apply to
    the record, or else the options of the first callback. ``summary`` applies to each callback separately.

    Attributes:
        name: prefix of the keys, and name of the directory (default ``"glassy"``). A second AgingMonitor of the same
            name gets a number.
        dirpath: directory of the files, or an address of fsspec such as ``s3://bucket/runs``. Default: the directory
            ``name`` beside the first logger's files. An existing file is never overwritten: the new file gets a number.
        save: whether to write files there (default). Loggers that keep files get the record in any case.
        summary: whether to print a summary at the end of training (default): the displacements, the verdict and the
            aging exponent of an AgingMonitor, or the time that a measurement took.
        curves: how loggers get the curves. ``"figures"`` (default): figures at the end, and the tab Glassy.
            ``"scalars"``: also one tag for each waiting time, of the 16 largest groups. Several hundred tags are usual.
        log_groups: groups for which loggers get the scalars of :mod:`lightning_glassy.loggers`, in addition to the
            scalars of all parameters. Default: none.
    """

    name: str
    dirpath: str | os.PathLike[str] | None
    save: bool
    summary: bool
    curves: Literal["figures", "scalars"]
    log_groups: Sequence[str]


class MeasurementOptions(RecorderOptions, total=False):
    """Options of every callback that measures more than an AgingMonitor does.

    Attributes:
        max_share: largest part of the time of the training that the callback takes, default 0.05. Steps are left out if
            the callback would take more, and the log and the summary report it. The first measurement, the last step
            and the first five seconds (fifteen in a run of at most 1,000 steps) are not limited. The omitted steps
            depend on the machine: None measures all steps.
    """

    max_share: float | None


FREE, FREE_IF_SHORT = 5.0, 15.0
"""Seconds that each measurement may take in any case, in a long run and in a short one."""

SHORT = 1000
"""Steps of a short run, of which a share of the time is too little for any measurement."""

_SETTLED = 100  # steps after which the pace of a training predicts its duration


def check_share(share: object) -> float | None:
    """Check the option ``max_share``.

    Raises:
        ValueError: it is no number between 0 and 1, and not None.
    """
    if share is None:
        return None
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"max_share={share!r} must be a part of the time of the training above 0 and up to 1, or None")
    return float(share)


class Logged(NamedTuple):
    """Options of the loggers, see :class:`RecorderOptions`."""

    curves: bool = False
    groups: tuple[str, ...] = ()


def check_logged(options: RecorderOptions) -> Logged:
    """Check the options ``curves`` and ``log_groups``.

    Raises:
        TypeError: ``log_groups`` is not a list of names.
        ValueError: ``curves`` is none of the known words, or a group is named twice.
    """
    curves, groups = options.get("curves", "figures"), options.get("log_groups", ())
    if curves not in ("figures", "scalars"):
        raise ValueError(f"curves={curves!r} is neither 'figures' nor 'scalars'")
    if isinstance(groups, str) or not isinstance(groups, Sequence) or not all(isinstance(one, str) for one in groups):
        raise TypeError(f"log_groups={groups!r} must be a list of names of groups, such as ['encoder']")
    if len(set(groups)) < len(groups):
        raise ValueError(f"log_groups={list(groups)!r} names a group twice")
    return Logged(curves == "scalars", tuple(group for group in groups if group != "all"))


def check_known(who: str, options: Mapping[str, Any], *kinds: type) -> None:
    """Refuse an unknown option of a callback.

    Raises:
        TypeError: with the names of all options.
    """
    known = [name for kind in kinds for name in kind.__annotations__]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{who} has no option {unknown[0]!r}; there are {known}")


def check_name(name: object) -> str:
    """Return a name that can be the name of a directory.

    Raises:
        ValueError: it cannot.
    """
    proper = isinstance(name, str) and name and all(c.isalnum() or c in "_-." for c in name)
    if not isinstance(name, str) or not proper or name.startswith("."):
        raise ValueError(f"name={name!r} must consist of letters, digits, '_', '-' and '.': it names a directory")
    return name


class Place(NamedTuple):
    """Place of the output of a training.

    Attributes:
        who: name of the callback whose options apply, for messages.
        loggers: loggers of the Trainer or Fabric.
        root: directory for files if no logger has one.
        dirpath: directory chosen by the user.
        save: whether files are written.
        here: whether this process writes.
        logged: options of the loggers.
    """

    who: str
    loggers: Sequence[Any]
    root: str
    dirpath: Directory | None
    save: bool
    here: bool
    logged: Logged = Logged()


class Member(Protocol):
    """A callback that writes to the record."""

    @property
    def summary(self) -> bool:
        """Whether the callback prints something at the end."""

    def facts(self) -> dict[str, Any] | None:
        """Return facts about the callback for the metadata of the record, as JSON values."""

    def report(self, record: AgingRecord) -> list[str]:
        """Return the lines for the end of training."""


@dataclass
class Progress:
    """Progress of one measurement, which a resumed training continues.

    Attributes:
        last_step: step of the last measurement, or -1.
        count: number of measurements.
        seconds: time they took.
        left_out: number of measurements that were left out because they took too large a share of the time.
        latest: seconds of the last measurement.
    """

    last_step: int = -1
    count: int = 0
    seconds: float = 0.0
    left_out: int = 0
    latest: float = 0.0

    @contextlib.contextmanager
    def timed(self, device: torch.device | None = None) -> Iterator[None]:
        """Add the time of the block. If a CUDA device is given, first wait for the work of the training there."""
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.latest = time.perf_counter() - started
            self.seconds += self.latest


Series = dict[str, dict[int, float]]
Followers = Mapping[str, Callable[[TrackerEvent], Iterable[Finding]]]


@dataclass
class _Run:
    """Everything that belongs to one record, and starts anew with a new record."""

    progress: dict[str, Progress] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    # Do not draw from a global generator, because its numbers belong to the training.
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    resumed: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    logger_runs: list[str | None] = field(default_factory=list)
    sinks: Sinks = field(default_factory=Sinks)


class Recorder:
    """Owns the record of one name in one Trainer or Fabric, with its files, loggers, resume state and cost.

    Callbacks that write to the same record share a recorder. It lives through all fits of its Trainer. :meth:`begin`
    decides whether a fit continues the record. No other code decides this.

    Args:
        name: name of the record in its directory, its keys and a checkpoint.
        home: the Trainer or Fabric. It is not kept alive.

    Attributes:
        name: as above.
        record: the record, or ``None`` before it is made and in processes that do not measure.
        tracker: the tracker of an AgingMonitor during training.
        snapshots: directory of large snapshots, or ``None`` to keep them in the checkpoints.
    """

    def __init__(self, name: str, home: object = None) -> None:
        self.name = name
        self._home = None if home is None else weakref.ref(home)
        self._trained: weakref.ref[nn.Module] | None = None  # the module of the last fit, not kept alive
        self.record: AgingRecord | None = None
        self.tracker: AgingTracker | None = None
        self._restored: Mapping[str, Any] | None = None  # state of a checkpoint
        self._near: Path | None = None  # directory of this checkpoint
        self._ended: dict[str, Any] | None = None  # state at the end of the last fit, with the snapshots
        self._begins_anew = False  # the next fit trains another module than the last fit
        self._run = _Run()
        self._pending: list[tuple[str, int, Any]] = []
        self._members: dict[str, Member] = {}
        self._facts: dict[str, dict[str, Any]] = {}  # facts that can be saved
        self._open: set[str] = set()
        self._place = Place("AgingMonitor", (), "", None, False, False)
        self._directory: Directory | None = None
        self.snapshots: Path | None = None
        self._followers: Followers = {}
        self._watch: ParameterWatch | None = None
        self._started = 0.0
        self._warned: set[tuple[str, str]] = set()
        self._continues = False
        self._end = 0  # step at the end of the last fit
        self._end_sums: dict[str, Tensor] = {}  # sums of the weights at that step, if this process has all of them
        self._replaced = False  # whether other weights are in the place of the trained ones since then
        self._reached = -1  # step of the last measurement
        self._cut_at: tuple[int, int] | None = None  # step, and number of updates, at which the record was cut last
        self._updates: UpdateCounter | None = None
        self._names: set[str] = set()  # parameters that were trainable at the start
        self._given_up = False
        self._undrawn = False  # whether the record is complete, and its figures are not drawn
        self._expected: dict[str, Tensor] = {}  # sums of the weights with which this fit starts

    def __getstate__(self) -> dict[str, Any]:
        """Return the name and the record for pickle and copy. The rest belongs to a training that is under way."""
        return {**Recorder(self.name).__dict__, "record": self.record}

    def belongs_to(self, home: object, name: str) -> bool:
        """Return whether this is the recorder of a name in a Trainer or Fabric."""
        return self.name == name and self._home is not None and self._home() is home

    def busy_elsewhere(self, trainer: object) -> bool:
        """Return whether the training of another Trainer is under way."""
        home = None if self._home is None else self._home()
        status = getattr(getattr(home, "state", None), "status", None)
        return self.running and home is not trainer and status == "running"

    # ------------------------------------------------------------------ begin and end of a fit

    @property
    def running(self) -> bool:
        """Whether a fit is under way."""
        return bool(self._open)

    def expect(self, module: nn.Module) -> None:
        """Prepare for a fit of a module. Forget the checkpoint of an earlier fit."""
        self._restored = self._near = None
        self._begins_anew = self._trained is None or self._trained() is not module
        if self.running:  # the last fit ended without its last hooks
            self.close()

    def begin(
        self,
        place: Place,
        members: Mapping[str, Member],
        module: nn.Module,
        step: int,
        followers: Followers | None = None,
    ) -> None:
        """Start a fit: continue the record of a checkpoint or of the last fit, or start a new record.

        All processes call this method, and make the same decision.

        Args:
            place: where the output goes.
            members: the callbacks that write to the record, by name.
            module: the module that is trained.
            step: number of completed updates.
            followers: functions that run at each event of the tracker, see :attr:`AgingTracker.listeners`.
        """
        same, self._trained = self._trained is not None and self._trained() is module, weakref.ref(module)
        self._place, self._members, self._facts, self._open = place, dict(members), {}, set(members)
        self.free()
        self._warned, self._directory, self.snapshots, self._followers = set(), None, None, dict(followers or {})
        self._expected = {}
        self._refuse_foreign(module, step)
        self._continues = self._restored is None and same and 0 < self._end <= step
        if self._continues and self._weights_changed():
            self._continues = False
            self.tell("the weights have been changed since the end of the last fit: a new record starts here")
        if self._continues:
            self._expected = self._end_sums
        if not self._continues:
            self.record, self._ended, self._run = None, None, self._restored_run()
        # A new record may be made. The values from before then enter it.
        series = self._run.series.items()
        self._pending = [(name, at, value) for name, values in series for at, value in values.items()]
        self._started, self._replaced = time.perf_counter(), False
        self._begins_anew, self._reached, self._given_up, self._updates = False, step, False, None
        self._names = {plain_name(name) for name, weight in module.named_parameters() if weight.requires_grad}
        if self._continues and self.record is not None:
            self.record.meta.pop("completed", None)

    def check_weights(self) -> None:
        """Drop the earlier snapshots if a hook has set the weights since the start of a fit that continues another fit.

        Each member calls this method before the first update.
        """
        expected, self._expected = self._expected, {}
        module = None if self._trained is None else self._trained()
        if self.tracker is None or module is None or same_weights(module, expected):
            return
        self.tracker.drop_snapshots()
        self.tell("the weights have been set since the start of this fit: no pair compares them with earlier weights")

    def count_updates(self, optimizers: Iterable[Any], step: int) -> None:
        """Count the updates of optimisers from a step on. Each member calls this method."""
        if self._updates is None and self._open:
            self._updates = UpdateCounter(optimizers, step)

    def _weights_changed(self) -> bool:
        """Return whether the weights are not the weights of the end of the last fit."""
        module = None if self._trained is None else self._trained()
        return self._replaced or (module is not None and not same_weights(module, self._end_sums))

    def _refuse_foreign(self, module: nn.Module, step: int) -> None:
        """Discard the state of a checkpoint unless it is the state of a training at this step, with these weights."""
        state = self._restored
        if not isinstance(state, Mapping):
            return
        try:
            measured = [state.get("last_step", -1), *(p["last_step"] for p in state.get("progress", {}).values())]
            saved_at = state.get("step", max(step, *measured))  # states of earlier versions do not have their step
        except Exception:
            return  # another check reports the fault of the state
        sums = state.get("weights")
        why = ""
        if saved_at != step:
            why = f"was saved at step {saved_at}, and this training starts at step {step}"
        elif isinstance(sums, dict) and not spread(module):
            self._expected = sums
            if not same_weights(module, sums):
                why = "was saved with other weights than those at the start of this training"
        if why:
            self._restored = self._near = None
            self.tell(f"the record of the checkpoint {why}: it belongs to another training. A new record starts here")

    def go_back(self, step: int, *, noted: bool = True) -> None:
        """Cut the record, because the training has gone back to this step.

        All measurements at this step or later are removed, and can be made again. Each member calls this method.

        Args:
            step: number of completed updates.
            noted: whether this starts another branch of the training, and is reported.
        """
        if step > self._reached or self._given_up or self._cut_at == (step, self.updates):
            return
        if step == 1 and noted:
            step = 0  # a restart may have other weights at step 0, too
        self._cut_at = step, self.updates
        run, before, self._reached = self._run, self._reached, step
        n_row = 0 if self.record is None else len(self.record)
        self._pending = [value for value in self._pending if value[1] < step]
        run.series = {name: {at: v for at, v in values.items() if at < step} for name, values in run.series.items()}
        for progress in run.progress.values():
            progress.last_step = min(progress.last_step, step - 1)
        if self._updates is not None:
            self._updates.go_back(step)
        if self.tracker is not None:
            self.tracker.forget_from(step)
            self.record = self.tracker.record
            self._hand_over([pair for pair in self.tracker.new_pairs() if sum(pair) < step], step)
        elif self.record is not None:
            self.record = self.record.before(step)
        if not noted:
            if self.record is not None and len(self.record) < n_row:
                run.sinks.go_back(self.record)  # the pair at lag 0 is measured again
            return
        if self.record is not None:
            self.record.start_branch(step=step, gone_back_from=before)
            run.resumed, run.branches = self.record.meta["resumed"], self.record.meta["branches"]
            run.sinks.go_back(self.record)
        self.tell(
            f"the training has gone back: step {step} comes after step {before}. What was measured at step {step} and "
            "later is cut from the record, which goes on from there"
        )

    def leave(self, member: str, step: int, *, completed: bool = False) -> bool:
        """End a fit at a step for one member. Return whether this member was the last and the output is complete.

        Args:
            member: name of the callback.
            step: number of completed updates.
            completed: whether the fit has come to its end.
        """
        if member not in self._open:
            return False
        if step < self._reached:
            try:
                self.go_back(step + 1)  # the measurements at the step itself are correct
            except Exception as error:  # a device that has failed
                self.warn("the record may have rows of an abandoned branch", error)
        self._open.discard(member)
        if not self._open:
            self._end_sums = self._sums()
        self._end = step
        if not self._open:
            self.close(step if completed else None)
        return not self._open

    def _sums(self) -> dict[str, Tensor]:
        """Return sums of the weights, if this process has all of them."""
        module = None if self._trained is None else self._trained()
        return {} if module is None or spread(module) else weight_sums(module, self._names)

    def give_up(self, reason: str) -> None:
        """Measure no more in this fit. The record so far is kept."""
        if not self._given_up:
            self._given_up = True
            if self.tracker is not None:
                self.tracker.give_up(RuntimeError(reason), self._reached)
            self.tell(f"{reason}: no more is measured in this fit")

    @property
    def given_up(self) -> bool:
        """Whether no more is measured in this fit."""
        return self._given_up

    def close(self, completed: int | None = None) -> None:
        """Complete the files and the loggers.

        Args:
            completed: the last step, if the fit has come to its end.
        """
        self._open, self._restored = set(), None
        self._run.seconds, self._started = self._seconds(), 0.0
        self._run.skipped = self._skipped(self._end)
        if self._updates is not None:
            self._updates.close()
            self._updates = None
        self.enter()
        if self.record is not None:
            if self._run.skipped:
                self.record.meta["steps_without_update"] = self._run.skipped
            if completed is not None:
                self.record.meta["completed"] = completed
            self._run.sinks.close(self.record)
            self._undrawn = True

    def draw(self) -> None:
        """Draw the figures for the loggers, if the record has been completed since the last call."""
        undrawn, self._undrawn = self._undrawn, False
        if undrawn and self.record is not None:
            self._run.sinks.draw(self.record)

    def end_trajectory(self) -> None:
        """Prevent a later fit from continuing this fit, because another callback has replaced the trained weights."""
        self._replaced = True

    def let_go(self) -> None:
        """Free everything that refers to the weights, but keep the state in host memory.

        A checkpoint or another fit can use the state. Then draw the figures, because no step has to wait for them any
        more.
        """
        if self._open:  # a callback has left the Trainer, or failed
            self.close()
        tracker = self.tracker
        self.free()
        if tracker is not None:
            try:
                self._ended = tracker.end()
            except Exception as error:
                self.warn("another fit cannot go on", error)
        if self._replaced:
            self._ended = None
        self.draw()

    def free(self) -> None:
        """Free everything that refers to the weights or to the Trainer."""
        self.tracker = self._watch = None
        self._followers = {}

    def _reach(self, step: int) -> None:
        if step > self._reached:
            self._reached, self._cut_at = step, None
        if self._updates is not None:
            self._updates.note(step)

    @property
    def updates(self) -> int:
        """Number of updates in this fit, as far as the optimisers report it."""
        return 0 if self._updates is None else self._updates.count

    @property
    def counts_all(self) -> bool:
        """Whether each step of this fit has been one update."""
        return self._updates is not None and self._updates.counts_all

    def _skipped(self, step: int) -> int:
        """Return the number of steps up to ``step`` that were no updates, as far as the optimisers report it."""
        home = None if self._home is None else self._home()
        counter, now = self._updates, getattr(home, "optimizers", None)
        if counter is None or (now is not None and [*map(id, now)] != [*map(id, counter.optimizers)]):
            return self._run.skipped  # other optimisers than at the start are not counted
        return self._run.skipped + counter.skipped(step)

    def summary(self) -> list[str]:
        """Return the lines to print at the end: the reports of the members, and the places of the output."""
        lines: list[str] = []
        for who, member in self._members.items():
            if self.record is not None and member.summary:
                try:
                    lines += member.report(self.record)
                except Exception as error:
                    self.warn("there is no summary", error, who)
        return [*lines, *self.where()] if lines else []

    def where(self) -> list[str]:
        """Return lines with the places of the record and the curves."""
        return self._run.sinks.where()

    # ------------------------------------------------------------------ measurements along the run

    def progress(self, member: str) -> Progress:
        """Return the progress of a measurement."""
        return self._run.progress.setdefault(member, Progress())

    def cost(self, member: str) -> dict[str, Any]:
        """Return the number of measurements and the time they took, for the metadata of the record."""
        progress, seconds = self.progress(member), self._seconds()
        return {
            "measurements": progress.count,
            "seconds": round(progress.seconds, 6),
            "fraction_of_training": round(progress.seconds / seconds, 6) if seconds else 0.0,
            **({"left_out": progress.left_out} if progress.left_out else {}),
        }

    def affords(self, member: str, share: float | None, step: int, end: int | None) -> bool:
        """Return whether another measurement, if it takes as long as the last, stays within its share of the time.

        Time for the measurement of the last step is reserved. If the length of the run is known, the share refers to
        the expected time of the whole training.

        Args:
            member: name of the callback.
            share: largest part of the time of the training, or None for no limit.
            step: number of completed updates.
            end: last step of the run, or None if it is unknown.
        """
        progress, whole = self.progress(member), self._seconds()
        if share is None or not progress.seconds:
            return True
        if end is not None and _SETTLED <= step < end:
            measured = sum(one.seconds for one in self._run.progress.values())
            whole = max(whole, measured + max(whole - measured, 0.0) * end / step)
        free = FREE_IF_SHORT if end is not None and end <= SHORT else FREE
        return progress.seconds + 2 * progress.latest <= max(free, share * whole)

    def leave_out(self, member: str, share: float | None) -> None:
        """Count a measurement that is left out, and report the first."""
        progress = self.progress(member)
        progress.left_out += 1
        if progress.left_out == 1:
            rank_zero_info(
                f"{member}: a measurement takes {progress.latest:.2g} s, so some steps are left out, to stay below "
                f"{share:.0%} of the time of the training (max_share={share}; max_share=None measures all)"
            )

    def _seconds(self) -> float:
        return self._run.seconds + (time.perf_counter() - self._started if self._started else 0.0)

    def add(self, step: int, values: Mapping[str, Any], who: str) -> None:
        """Take values of one step for the record, and log the numbers.

        Args:
            step: number of completed updates.
            values: the values by the names of their series. A value can be a matrix between replicas ``[n_replica,
                n_replica]``. The number is then its mean over pairs.
            who: name of the callback, for messages.

        Raises:
            TypeError: a name is not a string.
            ValueError: a value is neither a number nor a square matrix.
        """
        numbers: dict[str, float] = {}
        matrices: list[tuple[str, int, Any]] = []
        for name, value in values.items():
            matrix = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()
            if not isinstance(name, str):
                raise TypeError(f"{name!r} is not the name of a series")
            if matrix.dim():
                if matrix.dim() != 2 or len(matrix) != matrix.shape[1]:
                    raise ValueError(f"{name!r} has the shape {list(matrix.shape)}, and is not a number")
                matrices.append((name, step, matrix.numpy()))
                matrix = matrix[torch.triu(torch.ones_like(matrix), 1).bool()]
            if matrix.numel():
                numbers[name] = float(matrix.mean())
        self._pending += [*matrices, *((name, step, number) for name, number in numbers.items())]
        for name, number in numbers.items():
            self._run.series.setdefault(name, {})[step] = number
        self._reach(step)
        self.log(step, numbers, who)

    def log(self, step: int, numbers: Mapping[str, float], who: str) -> None:
        """Log numbers as ``<name>_series/<series>`` on the process that writes."""
        for logger in self._place.loggers if self._place.here and numbers else ():
            try:
                logger.log_metrics(
                    {f"{self.name}_series/{name}": number for name, number in numbers.items()}, step=step
                )
            except Exception as error:
                self.warn(f"{type(logger).__name__} takes no series", error, who)

    def enter(self, make: Callable[[dict[str, Any]], AgingRecord] | None = None) -> None:
        """Put new values into the record.

        Args:
            make: makes the record from its metadata if there is none. Without it, values wait for the record of an
                AgingMonitor.
        """
        if not self._place.here:
            self._pending = []
            return
        if self.record is None and make is not None:
            run = self._run
            resumed = {"resumed": run.resumed, "branches": run.branches} if run.resumed else {}
            try:
                self._adopt(make({"id": run.id, **resumed}))
            except Exception as error:
                self.warn("there is no record for what is measured", error)
        if self.record is None:
            return
        pending, self._pending = self._pending, []
        for name, step, value in pending:
            try:
                (self.record.append_between if np.ndim(value) else self.record.append_one_time)(name, step, value)
            except Exception as error:
                self.warn(f"the record could not take {name!r}", error)
        if pending or not self._open:
            self.note()
        if pending and self.tracker is None and self._open:
            self._run.sinks.update(self.record, [], max(step for _, step, _ in pending))

    def note(self) -> None:
        """Write the facts and the costs of all members into the metadata of the record."""
        for name, member in self._members.items():
            try:
                facts = member.facts()
                if facts is None or self.record is None:
                    continue
                if facts != self._facts.get(name):
                    check_meta({name: facts})
                    self._facts[name] = facts
                self.record.meta[name] = {**facts, **self.cost(name)}
            except Exception as error:
                self.warn("its facts are left out of the metadata", error, name)

    # ------------------------------------------------------------------ the tracker

    def track(
        self,
        make: Callable[[Mapping[str, Any] | None, Path | None], AgingTracker],
        module: nn.Module,
        step: int,
        *,
        strict: bool = False,
    ) -> AgingTracker:
        """Make the tracker, and adopt its record.

        Args:
            make: makes a tracker from a state and the directory of its snapshots, or a new one from ``None``.
            module: the module with the tracked parameters.
            step: number of completed updates.
            strict: whether a state that does not fit is an error. Otherwise a new record starts, with a warning.

        Raises:
            StateError: ``strict``, and the state does not fit.
        """
        state, near = (self._ended, None) if self._continues else (self._restored, self._near)
        if isinstance(state, Mapping) and "progress" in state and "version" not in state:
            state = None  # there was no tracker before
        self._restored = self._near = None
        self._continues &= state is not None
        try:
            tracker = make(state, near)
        except StateError as error:
            if strict:
                raise
            self.tell(f"the record of the checkpoint cannot go on: {error}")
            self._run, self._pending = _Run(), []
            state, self._continues, tracker = None, False, make(None, None)
        unknown = [group for group in self._place.logged.groups if group not in tracker.record.groups]
        if unknown:
            raise ValueError(
                f"log_groups names {unknown[0]!r}, which is no group of this record; there are {tracker.record.groups}"
            )
        self.tracker, self._ended = tracker, None
        self._watch = ParameterWatch(module, tracker.parameters.tensors)
        tracker.listeners = self._followers
        self._adopt(tracker.record, step)
        rank_zero_info(f"{self._place.who}: {tracker.description}")
        lacks = state is None or (not tracker.n_snapshots and state.get("left_out", 1))
        if step > 0 and lacks and not strict:
            self.tell(
                f"training starts at step {step} without earlier snapshots; "
                + ("a new record starts here" if state is None else "the record goes on with new waiting times")
            )
        return tracker

    def event(self, step: int, rates: Callable[[], Mapping[str, float]] = dict) -> int:
        """Take a snapshot and measure at a step, and pass finished measurements to the sinks.

        Args:
            step: number of completed updates.
            rates: returns the learning rates at an event.

        Returns:
            The next step at which to call this method.
        """
        tracker = self.tracker
        assert tracker is not None  # no event is due without a tracker
        found: Mapping[str, float] | None = None
        self._reach(step)
        # If parameters have changed or memory runs out, the record ends, and the training goes on.
        try:
            # Check only at events, which all processes have at the same steps, because FSDP2 may have to gather its
            # shards again.
            if step >= tracker.next_event:
                found = rates()
                self._check_parameters()
        except ParametersChangedError as error:
            tracker.give_up(error, step)
        try:
            tracker.update(step, found)
        except Exception as error:
            tracker.give_up(error, step)
        pairs = tracker.new_pairs()
        if self.record is not None:
            self._run.sinks.update(self.record, pairs, step)
        # While measurements are on their way from the device, look again at the next step.
        return step + 1 if tracker.pending else min(tracker.next_event, self._run.sinks.next_look(step))

    def drain(self, timeout: float | None = None) -> None:
        """Wait for the measurements under way.

        Args:
            timeout: most seconds to wait, for the case that other processes have stopped.
        """
        if self.tracker is None:
            return
        try:
            self.tracker.drain(timeout)
        except RuntimeError as error:  # the device failed, and the user must see the error of the device
            self.tell(f"the last measurements could not be read from the device: {error}")
        pairs = self.tracker.new_pairs()
        self._hand_over(pairs, max((waiting_time + lag for waiting_time, lag in pairs), default=0))

    def _hand_over(self, pairs: Pairs, step: int) -> None:
        if pairs and self.record is not None:
            self._run.sinks.update(self.record, pairs, step)

    def _check_parameters(self) -> None:
        """Raise if a tracked parameter has been replaced. Warn if others have become trainable."""
        assert self._watch is not None
        more = self._watch.check()
        if more:
            log.warning(
                "%s: %d parameters have become trainable since training started; they are not tracked",
                self._place.who,
                more,
            )

    # ------------------------------------------------------------------ files and loggers

    def _adopt(self, record: AgingRecord, step: int = 0) -> None:
        """Take a record, and make its sinks unless they go on."""
        self.record = record
        if self._continues or not self._place.here:
            return
        place, run, before = self._place, self._run, self._run.logger_runs
        run.sinks, new = Sinks(place.who, place.logged.groups), []
        # Files first, so that the record is on disk even if a logger hangs.
        if place.save:
            run.sinks.add("files", lambda: file_sink(self.directory()))
        run.logger_runs = [run_of(logger) for logger in place.loggers]
        for logger, logger_run in zip(place.loggers, run.logger_runs, strict=True):
            sink = run.sinks.add(type(logger).__name__, partial(sink_for, logger, self.name, place.logged.curves))
            # The run of this logger lacks the curves of the checkpoint.
            if sink is not None and (logger_run is None or logger_run not in before):
                new.append(sink)
        if place.loggers and place.logged.curves and len(record.groups) > MOST_GROUPS + 1:
            rank_zero_info(
                f"{place.who}: loggers get as scalars the curves of all parameters and of the {MOST_GROUPS} largest of "
                f"{len(record.groups) - 1:,} groups. The record, its files and the tab Glassy have all groups"
            )
        if len(record):
            waiting_times, lags = (steps.tolist() for steps in record.pairs)
            run.sinks.update(record, list(zip(waiting_times, lags, strict=True)), step, only=new)

    def directory(self) -> Directory:
        """Return the directory of the files. It is looked up once in a fit, so an error is logged once."""
        if self._directory is None:
            place = self._place
            near = place.dirpath or inside(directory_of(log_directory(place.loggers, place.root)), self.name)
            self._directory = near
        return self._directory

    def find_snapshots(self, checkpoint_callbacks: Iterable[Any] = ()) -> Path | None:
        """Return a directory for large snapshots, or ``None`` without a local directory.

        The directory is beside the checkpoints, or beside the record if there are no checkpoint callbacks.
        """
        for callback in checkpoint_callbacks:
            place = getattr(callback, "dirpath", None)
            place = None if place is None else directory_of(place)
            if isinstance(place, Path):
                return place / SNAPSHOTS
        try:
            directory = self.directory()
            return directory / SNAPSHOTS if isinstance(directory, Path) else None
        except Exception as error:  # a logger may raise any error
            self.warn("snapshots will be inside checkpoints", error)
            return None

    def tell(self, text: str) -> None:
        """Warn the user, on rank 0, once."""
        if (self._place.who, text) not in self._warned:
            self._warned.add((self._place.who, text))
            rank_zero_warn(f"{self._place.who}: {text}")

    def warn(self, what: str, error: Exception, who: str | None = None) -> None:
        """Log a failure, once for each callback and error. Training goes on."""
        speaker, words = who or self._place.who, f"{type(error).__name__}: {error}"
        if (speaker, words) not in self._warned:
            self._warned.add((speaker, words))
            log.warning("%s: %s (%s); training goes on", speaker, what, words)

    # ------------------------------------------------------------------ the state in a checkpoint

    def state_dict(self, step: int, module: nn.Module | None = None) -> dict[str, Any] | None:
        """Return the state for a checkpoint, as tensors and plain values, or ``None`` if nothing was measured.

        Args:
            step: number of completed updates. A training goes on with the state only from this step.
            module: the module whose weights are in the checkpoint. Default: the module that is trained.
        """
        if self._open and step < self._reached:
            self.go_back(step)
        if self._open and self.record is not None:
            self._run.sinks.flush(self.record)
        if not self._open and self._restored is not None:
            return dict(self._restored)  # a checkpoint of a fit that has not begun and that continues another fit
        other = module is not None and self._trained is not None and module is not self._trained()
        if not self._open and (self._begins_anew or other):
            return None
        state = dict(self._ended or {})
        if not self._open and self._weights_changed():
            self.tell(
                "the weights have been changed since the end of the fit: this checkpoint has no record to go on with"
            )
            return None
        if state:
            state["parts"] = repack(state["parts"], self.snapshots)
            state["directory"] = None if self.snapshots is None else str(self.snapshots.absolute())
            if state["left_out"]:
                self.tell(
                    "the snapshots were freed at the end of training, because several processes hold them or they do "
                    "not fit in host memory. A run that is resumed from this checkpoint goes on with new waiting "
                    "times: save checkpoints during the training, for example with a ModelCheckpoint"
                )
        if self.tracker is not None:
            try:
                state = self.tracker.state_dict(self.snapshots)
            except Exception as error:
                self.warn("this checkpoint has no record to go on with", error)
        run = self._run
        if not state and not run.progress:
            return None
        return state | {
            "runs": run.logger_runs,
            "series": {
                name: {
                    "steps": torch.tensor(list(values), dtype=torch.int64, device="cpu"),
                    "values": torch.tensor(list(values.values()), dtype=torch.float64, device="cpu"),
                }
                for name, values in run.series.items()
            },
            "progress": {
                who: {
                    "last_step": p.last_step,
                    "count": p.count,
                    "seconds": p.seconds,
                    "left_out": p.left_out,
                    "latest": p.latest,
                }
                for who, p in run.progress.items()
            },
            "step": step,
            "seconds": self._seconds(),
            "skipped": self._skipped(step),
            "id": run.id,
            "resumed_at": run.resumed,
            "branches": self._branches(),
            "weights": {name: sums.cpu() for name, sums in self._sums().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, near: Path | None = None) -> None:
        """Let the next fit go on from a state.

        Args:
            state: result of :meth:`state_dict`, or ``None`` to discard an earlier state.
            near: directory in which to search for the snapshots first.
        """
        self._restored, self._near = state, near

    def knows(self, state: object) -> bool:
        """Return whether a state is an earlier state of this training, and not of another branch."""
        if not isinstance(state, Mapping) or state.get("id") != self._run.id:
            return False
        before = list(state.get("branches", ()))
        return before == self._branches()[: len(before)]

    def _branches(self) -> list[str]:
        return list(self._run.branches if self.record is None else self.record.meta.get("branches", ()))

    def _restored_run(self) -> _Run:
        """Return the series and the costs of a checkpoint."""
        run, state = _Run(), self._restored
        if state is None:
            return run
        if not isinstance(state, Mapping):
            self.tell(f"the series of the checkpoint cannot go on: {type(state).__name__} is no state")
            return run
        try:
            run.logger_runs = [None if name is None else str(name) for name in state.get("runs", ())]
            for name, series in state.get("series", {}).items():
                steps, values = series["steps"].tolist(), series["values"].tolist()
                run.series[str(name)] = dict(zip(steps, values, strict=True))
            for who, numbers in state.get("progress", {}).items():
                count, seconds = int(numbers["count"]), float(numbers["seconds"])
                left_out, latest = int(numbers.get("left_out", 0)), float(numbers.get("latest", 0.0))
                run.progress[str(who)] = Progress(int(numbers["last_step"]), count, seconds, left_out, latest)
            run.seconds, run.id = float(state.get("seconds", 0.0)), str(state.get("id", run.id))
            run.skipped = int(state.get("skipped", 0))
            last = [{"step": p.last_step} for p in run.progress.values()]
            run.resumed = [*state.get("resumed_at", ()), *sorted(last, key=lambda at: at["step"])[-1:]]
            run.branches = [*map(str, state.get("branches", ())), secrets.token_hex(4)]
        except Exception as error:
            self.tell(f"the series of the checkpoint cannot go on: {type(error).__name__}: {error}")
            return _Run()
        return run
