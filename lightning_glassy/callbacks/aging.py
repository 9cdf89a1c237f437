"""The callback: from the hooks of a Trainer to an :class:`~lightning_glassy.AgingTracker` and its sinks."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_glassy.callbacks.shared import (
    SNAPSHOTS,
    Follower,
    Restored,
    check_clipping,
    check_name,
    check_parameters,
    check_strategy,
    describe_optimizers,
)
from lightning_glassy.loggers.dispatch import log_directory, run_of, sink_for
from lightning_glassy.loggers.files import FileSink
from lightning_glassy.loggers.sinks import Sink, Sinks
from lightning_glassy.measure.optimizers import is_plain, learning_rates
from lightning_glassy.measure.resume import StateError
from lightning_glassy.measure.shards import ParametersChangedError, reshard, spread
from lightning_glassy.measure.tracker import AgingTracker, check_options
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule, Preset

log = logging.getLogger(__name__)

_NEVER = sys.maxsize

# In a checkpoint, the states of all monitors by their names.
_KEY = "lightning_glassy"


class AgingMonitor(Callback):
    r"""Measures how the weights move: two-time displacements and correlations on a logarithmic clock.

    At log-spaced waiting times :math:`t_w` the callback takes a snapshot of the weights, on their device. At log-spaced
    lags :math:`t` after each snapshot it compares the weights with the snapshot. If the curves depend on :math:`t_w`,
    the network *ages* (Baity-Jesi et al. 2018; Herrera Segura et al. 2022). Steps are completed optimiser updates.
    Training is the same, bit for bit, with the callback and without it.

    Loggers get the curve of each waiting time as ``glassy/<observable>/tw_<t_w>``, and figures of all curves on
    logarithmic axes as ``glassy_figures/<observable>``. :mod:`lightning_glassy.loggers` has the table of tags, and says
    how each logger shows them. TensorBoard has everything in the tab "Glassy". Beside the ``metrics.csv`` of a
    ``CSVLogger`` there is ``glassy.csv``.

    The directory ``glassy`` beside the logger's files gets ``aging_record.npz`` (written during the run, too) and
    ``aging_record.csv``. The one-time series of the record: ``learning_rate`` (``learning_rate_<i>_<j>`` for the
    parameter group j of the optimiser i where there are several), the one in force for the update after the step.

    The tracked parameters are chosen when training starts. Parameters that are unfrozen later are not tracked.

    Under DDP all ranks hold the same weights, and rank 0 measures them. Other strategies spread the weights over the
    ranks: ``ModelParallelStrategy`` (FSDP2 and tensor parallelism), ``FSDPStrategy`` and ``DeepSpeedStrategy`` (its
    float32 weights are measured). Then each rank measures its shard, one small sum over the ranks per event gives all
    ranks the record, and rank 0 writes and logs it.

    Each replica of a :class:`~lightning_glassy.ReplicaEnsemble` in the module is measured. The record then has an axis
    of replicas, and loggers get the mean over them. The record also has the distances and overlaps between replicas
    (:meth:`AgingRecord.replica_distance`, :meth:`AgingRecord.replica_overlap`). The one-time series
    ``replica_distance`` and ``replica_overlap`` are their means over pairs.

    Checkpoints hold what is needed to go on: ``fit(ckpt_path=...)`` continues the record as if nothing had happened.
    Snapshots that take more than 16 MiB together are in files of their own, in the directory ``glassy_snapshots``
    beside the checkpoints (without a checkpoint callback, beside the record). Each is written once, whatever the number
    of checkpoints; keep them as long as the checkpoints, and move them together.

    Args:
        schedule: when to measure: a :class:`LogTimeSchedule`, or the name of a preset for a run of known length.
            Default ``LogTimeSchedule.logspaced()``: 3 waiting times and 10 lags per decade, for as long as it takes.
        groups: ``"all"`` for all parameters together; ``"layer"`` for one more group per module; or a mapping of group
            names to a name pattern or several (``{"attention": "*.attn.*"}``).
        include: track only parameters whose name matches one of these shell patterns; default all trainable ones.
        exclude: do not track parameters whose name matches one of these.
        sample: number of coordinates to measure, drawn at random; ``None`` for all; ``"auto"`` for all where the
            snapshots fit in a tenth of the free memory of their device, otherwise as many as do.
        snapshot_device: ``"cpu"`` keeps the snapshots in (on CUDA pinned) host memory; default with the weights.
        max_memory: most bytes that the snapshots may take; default what is free.
        overlap_thresholds: the epsilons of the overlap; ``"auto"`` for about a hundredth and a tenth of the standard
            deviation of the weights at the start.
        moments: ``"full"``, or ``"msd"`` for the mean squared displacement alone, at about half of the cost. No
            overlaps are counted then, whatever ``overlap_thresholds``.
        name: prefix of the keys, and name of the directory. A second monitor of the same name gets a number.
        dirpath: where the files go; default the directory ``name`` beside the first logger's files. A file that is
            there already is never overwritten: the new one gets a number.
        save: whether to write files there; loggers that keep files get the record all the same.
        summary: whether to print a table at the end, with the verdict and the aging exponent if the run was long enough
            for them.

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction or at the start of training, an argument out of its range, or nothing to track.
        MemoryError: at the start of training, snapshots that would not fit; the message names the remedies.
        MisconfigurationException: at the start of training, a strategy whose parameters cannot be measured rightly, or
            clipping by a norm over all replicas, which couples them.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AgingMonitor()], logger=False)
    """

    def __init__(
        self,
        schedule: LogTimeSchedule | Preset | None = None,
        groups: Literal["all", "layer"] | Mapping[str, str | Sequence[str]] = "all",
        *,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        sample: int | Literal["auto"] | None = "auto",
        snapshot_device: str | None = None,
        max_memory: int | None = None,
        overlap_thresholds: Sequence[float] | Literal["auto"] = "auto",
        moments: Literal["full", "msd"] = "full",
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
        save: bool = True,
        summary: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(schedule, str) and schedule not in get_args(Preset):
            raise ValueError(
                f"schedule={schedule!r} is not a preset; choose from {', '.join(map(repr, get_args(Preset)))}"
            )
        if not isinstance(schedule, (LogTimeSchedule, str, type(None))):
            raise TypeError(f"schedule={schedule!r} is not a LogTimeSchedule, the name of a preset or None")
        check_options(groups, include, exclude, sample, snapshot_device, max_memory, overlap_thresholds, moments)
        self._schedule = schedule
        self._options: dict[str, Any] = {
            "groups": groups,
            "include": include,
            "exclude": exclude,
            "sample": sample,
            "snapshot_device": snapshot_device,
            "max_memory": max_memory,
            "overlap_thresholds": overlap_thresholds,
            "moments": moments,
        }
        self.name = check_name(name)
        self._dirpath = None if dirpath is None else Path(dirpath).expanduser()
        self._save = save
        self._summary = summary
        self._tracker: AgingTracker | None = None
        self._record: AgingRecord | None = None
        # What was fitted last, to know a second fit of the same from a new training; not kept alive.
        self._fitted: tuple[weakref.ref[Trainer], weakref.ref[LightningModule]] | None = None
        self._sinks = Sinks()
        self._n_trainable: int | None = None
        # From a checkpoint, and from the end of the last fit: what to go on from.
        self._restored: Restored | None = None
        self._ended: dict[str, Any] | None = None
        self._runs: list[str | None] = []
        self._place: Path | None = None
        self._directory: Path | None = None
        self._next_event = _NEVER

    @property
    def record(self) -> AgingRecord:
        """What has been measured so far; complete once training has ended.

        Raises:
            RuntimeError: training has not started, or this process is not the one that measures.
        """
        if self._record is None:
            raise RuntimeError(
                "there is no record yet: training has not started in this process. Under ddp_spawn, and on ranks other "
                "than 0, read the file: AgingRecord.load('<log dir>/glassy/aging_record.npz')"
            )
        return self._record

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the settings and the record, not what belongs to a training that is under way."""
        fresh = {"_fitted": None, "_tracker": None, "_restored": None, "_ended": None}
        return self.__dict__ | fresh | {"_sinks": Sinks(), "_next_event": _NEVER}

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is moved or sharded, a strategy whose parameters cannot be measured rightly."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy, "AgingMonitor")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan and allocate; go on from a checkpoint; measure the state before the first update."""
        self._next_event, self._n_trainable, self._place = _NEVER, None, self._dirpath
        restored, self._restored, self._tracker = self._restored, None, None
        reshard(pl_module)
        check_clipping(trainer, pl_module)
        sharded = spread(_model(trainer, pl_module))
        # Under DDP every rank holds the same weights: one of them measures, and no collective is needed.
        if not (trainer.is_global_zero or sharded):
            return
        step, max_step = trainer.global_step, _max_step(trainer, pl_module)
        goes_on = restored is None and self._ended is not None and self._continues(trainer, pl_module)
        if goes_on and self._ended is not None:
            restored = Restored(self._ended, None)
        try:
            self._tracker = self._make_tracker(trainer, pl_module, max_step, restored)
        except StateError as error:
            rank_zero_warn(f"AgingMonitor: the record of the checkpoint cannot go on: {error}")
            restored, goes_on = None, False
            self._tracker = self._make_tracker(trainer, pl_module, max_step, None)
        self._tracker.listeners = {
            type(callback).__name__: partial(callback.follow, trainer, pl_module)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Follower) and callback.name == self._unique_name(trainer)
        }
        self._record, self._ended = self._tracker.record, None
        self._fitted = None if trainer.fast_dev_run else (weakref.ref(trainer), weakref.ref(pl_module))  # type: ignore[attr-defined]
        directory = self._snapshot_directory(trainer)
        self._directory = trainer.strategy.broadcast(directory) if sharded else directory
        if not goes_on:
            self._sinks, new = self._make_sinks(trainer, restored) if trainer.is_global_zero else (Sinks(), Sinks())
            if len(self._record):  # what the checkpoint brought
                new.update(self._record, list(zip(*map(np.ndarray.tolist, self._record.pairs), strict=True)), step)
        rank_zero_info(f"AgingMonitor: {self._tracker.description}")
        if step > 0 and not self._tracker.n_snapshots:
            rank_zero_warn(
                f"AgingMonitor: training starts at step {step} without earlier snapshots; "
                + ("a new record starts here" if restored is None else "the record goes on with new waiting times")
            )
        self._event(trainer, pl_module, step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing, at most steps; otherwise capture and measure what is due."""
        step = trainer.global_step
        if step >= self._next_event:
            self._event(trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the record, write it, and say where it is."""
        if self._tracker is not None:
            self._tracker.record.meta["completed"] = trainer.global_step
        tracker = self._finish()
        if tracker is not None and self._summary and trainer.is_global_zero:
            told = [_summary(tracker.record), *_findings(tracker.record), *self._sinks.where()]
            with contextlib.suppress(OSError, ValueError):  # an output that is closed, or takes no more
                trainer.print("\n".join(told))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured: after this, neither ``on_train_end`` nor ``teardown`` may come."""
        # Other processes may have stopped before they added their part to a sum.
        self._finish(timeout=10.0)
        # An older ModelCheckpoint does not know of it; an OnExceptionCheckpoint is there for nothing else.
        callbacks = trainer.checkpoint_callbacks
        if not any(getattr(c, "save_on_exception", not isinstance(c, ModelCheckpoint)) for c in callbacks):
            self._tracker = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put in what a resumed training needs to go on with the record: tensors and plain values only."""
        state = self._ended
        if self._tracker is not None:
            try:
                state = self._tracker.state_dict(self._directory) | {"runs": self._runs}
            except Exception as error:
                log.warning(
                    "AgingMonitor: this checkpoint has no record to go on with (%s: %s)", type(error).__name__, error
                )
        if state is not None:
            checkpoint.setdefault(_KEY, {})[self._unique_name(trainer)] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take out what :meth:`on_save_checkpoint` put in; it is used when training starts."""
        states = checkpoint.get(_KEY)
        state = states.get(self._unique_name(trainer)) if isinstance(states, dict) else None
        if trainer.training and state is not None:
            near = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).parent / SNAPSHOTS
            self._restored = Restored(state, near)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the snapshots, and whatever else refers to the weights."""
        self._next_event = _NEVER
        if self._tracker is not None:
            # A checkpoint that is saved after this, and another fit, go on from the record at least.
            try:
                self._ended = self._tracker.state_dict(snapshots=False) | {"runs": self._runs}
            except Exception as error:
                log.warning("AgingMonitor: another fit cannot go on (%s: %s)", type(error).__name__, error)
            with contextlib.suppress(RuntimeError):  # a connection that has failed already
                self._tracker.close()
        self._tracker = None

    # ------------------------------------------------------------------ inside

    def _event(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        tracker = self._tracker
        assert tracker is not None  # no event is ever due without one
        rates: dict[str, float] = {}
        # Parameters that have changed, or out of memory: better a record that ends here than a training that does.
        try:
            # At events alone, which all processes have at the same steps: FSDP2 may be made to gather anew.
            if step >= tracker.next_event:
                for i, optimizer in enumerate(trainer.optimizers):
                    rates |= learning_rates(i, optimizer.param_groups)
                self._check_parameters(tracker, pl_module)
        except ParametersChangedError as error:
            tracker.give_up(error, step)
        try:
            tracker.update(step, rates)
        except Exception as error:
            tracker.give_up(error, step)
        pairs = tracker.new_pairs()
        if pairs:
            self._sinks.update(tracker.record, pairs, step)
        # While measurements are on their way from the device, look again at the next step.
        self._next_event = step + 1 if tracker.pending else tracker.next_event

    def _check_parameters(self, tracker: AgingTracker, pl_module: LightningModule) -> None:
        """Stop if a tracked parameter is no longer the module's; say so once if others have become trainable."""
        trainable = check_parameters(tracker, pl_module)
        if self._n_trainable is not None and trainable > self._n_trainable:
            log.warning(
                "AgingMonitor: %d parameters have become trainable since training started; they are not tracked",
                trainable - self._n_trainable,
            )
        self._n_trainable = trainable

    def _finish(self, timeout: float | None = None) -> AgingTracker | None:
        tracker, self._next_event = self._tracker, _NEVER
        if tracker is not None:
            try:
                tracker.drain(timeout)
            except RuntimeError as error:  # a device that failed: its own error is the one to be seen
                rank_zero_warn(f"AgingMonitor: the last measurements could not be read from the device: {error}")
            pairs = tracker.new_pairs()
            if pairs:
                self._sinks.update(tracker.record, pairs, max(waiting_time + lag for waiting_time, lag in pairs))
            self._sinks.close(tracker.record)
        return tracker

    def _continues(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether this is a second ``fit`` of the same Trainer and module, from where the first one ended."""
        if self._fitted is None or self._record is None or trainer.global_step == 0:
            return False
        last = max((int(waiting_time + lag) for waiting_time, lag in zip(*self._record.pairs, strict=True)), default=0)
        return self._fitted[0]() is trainer and self._fitted[1]() is pl_module and trainer.global_step >= last

    def _make_tracker(
        self, trainer: Trainer, pl_module: LightningModule, max_step: int | None, restored: Restored | None
    ) -> AgingTracker:
        schedule = self._schedule
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            schedule = None  # a handful of steps, in which the run's own schedule may have nothing to measure
        if isinstance(schedule, str):
            if max_step is None:
                raise ValueError(
                    f"schedule={schedule!r} needs a run of known length: set max_steps, or use the default schedule"
                )
            schedule = LogTimeSchedule.preset(schedule, max_step)
        return AgingTracker(
            _model(trainer, pl_module),
            schedule,
            max_step=max_step,
            meta=describe_run(trainer, pl_module),
            state=None if restored is None else restored.state,
            directory=None if restored is None else restored.directory,
            **self._options,
        )

    def _make_sinks(self, trainer: Trainer, restored: Restored | None) -> tuple[Sinks, Sinks]:
        """All sinks; and those to which a record that goes on is new, as its logger's run is another one."""
        prefix, sinks = self._unique_name(trainer), Sinks()
        new: list[Sink] = []
        before = () if restored is None else restored.state.get("runs", ())
        # Files first, so that the record is on disk even if a logger hangs.
        if self._save and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            sinks.add("files", lambda: FileSink(self._files(trainer)))
        self._runs = [run_of(logger) for logger in trainer.loggers]
        for logger, run in zip(trainer.loggers, self._runs, strict=True):
            sink = sinks.add(type(logger).__name__, partial(sink_for, logger, prefix))
            if sink is not None and (run is None or run not in before):
                new.append(sink)
        return sinks, Sinks(new)

    def _files(self, trainer: Trainer) -> Path:
        """The directory of our files, found once for a training: what goes wrong with it is said once."""
        if self._place is None:
            self._place = log_directory(trainer.loggers, trainer.default_root_dir) / self._unique_name(trainer)
        return self._place

    def _snapshot_directory(self, trainer: Trainer) -> Path | None:
        """Where large snapshots go: beside the checkpoints, or the record; ``None`` where neither is on a disk here."""
        for callback in trainer.checkpoint_callbacks:
            place = getattr(callback, "dirpath", None)
            if place is not None and "://" not in str(place):
                return Path(place) / SNAPSHOTS
        try:
            return self._files(trainer) / SNAPSHOTS
        except Exception as error:  # whatever a logger may raise that is asked for its directory
            log.warning("AgingMonitor: snapshots will be inside checkpoints (%s: %s)", type(error).__name__, error)
            return None

    def _unique_name(self, trainer: Trainer) -> str:
        names: dict[int, str] = {}
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, AgingMonitor)]  # type: ignore[attr-defined]
        for monitor in monitors:
            candidates = (f"{monitor.name}_{i}" if i > 1 else monitor.name for i in itertools.count(1))
            names[id(monitor)] = next(name for name in candidates if name not in names.values())
        return names.get(id(self), self.name)


def _model(trainer: Trainer, pl_module: LightningModule) -> nn.Module:
    """What has the parameters: the module, or what FSDP1 has wrapped it in, which holds its shards."""
    wrapped = any(cls.__name__ == "FSDPStrategy" for cls in type(trainer.strategy).__mro__)
    return trainer.strategy.model if wrapped and trainer.strategy.model is not None else pl_module


def _max_step(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The last step of the run in completed optimiser updates, ``None`` where it cannot be known."""
    known = trainer.max_steps if trainer.max_steps != -1 else None
    # With manual optimisation a batch may be any number of updates, and a reloaded data set has any length.
    countable = pl_module.automatic_optimization and not trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if countable:
        estimate = trainer.estimated_stepping_batches
        return int(estimate) if trainer.global_step < estimate < float("inf") else known
    return known


def describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What a reader of the record will want to know of the run: plain values that JSON can hold."""

    def versions() -> dict[str, str]:
        found = {"python": platform.python_version()}
        for package in ("lightning_glassy", "lightning", "torch", "numpy"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed as a package"
        return found

    def value(thing: Any) -> Any:
        return thing if is_plain(thing) else repr(thing)

    loader = trainer.train_dataloader
    # Whole batches of indices come from `batch_sampler`, or, where the data set takes them itself, from `sampler`.
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:
        sampler = getattr(loader, "sampler", None)
    size = getattr(sampler, "batch_size", getattr(loader, "batch_size", None))
    sampler = getattr(sampler, "sampler", sampler)
    return {
        "module": type(pl_module).__qualname__,
        "optimizers": describe_optimizers(trainer.optimizers),
        "lr_schedulers": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
        "batch_size": size if is_plain(size) else None,
        "sampler": None if sampler is None else type(sampler).__name__,
        "accumulate_grad_batches": value(trainer.accumulate_grad_batches),
        "gradient_clip_val": value(trainer.gradient_clip_val),
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": versions(),
    }


def _summary(record: AgingRecord) -> str:
    """Return a table of the displacement for a few waiting times and lags. With replicas, it is the mean over them."""
    if not len(record):
        return "AgingMonitor: training ended before a pair could be measured"
    waiting_times, lags, msd = record.waiting_times, record.lags, record.msd()
    if record.n_replica is not None:
        msd = msd.mean(axis=0)
    rows = _spread(len(waiting_times), 6)
    columns = _spread(len(lags), 7)
    lines = [
        f"Aging of {record.n_parameters['all']:,} parameters: mean squared displacement at lag t after step t_w",
        f"{'t_w':>10} |" + "".join(f"{f't={lags[j]:,}':>12}" for j in columns),
    ]
    for i in rows:
        cells = ("" if msd[i, j] != msd[i, j] else f"{msd[i, j]:.2e}" for j in columns)
        lines.append(f"{waiting_times[i]:>10,} |" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _findings(record: AgingRecord) -> list[str]:
    """The verdict and the aging exponent in words, as far as the record is long enough for them."""
    try:
        from lightning_glassy.analysis import NotEnoughDataError, aging_exponent, verdict
    except ImportError as error:
        return [f"no verdict and no aging exponent: {error}"]
    found: list[str] = []
    try:
        judged = verdict(record)
        if judged.rates:  # too short a run is not worth a line that says so
            found.append(str(judged))
            found.append(str(aging_exponent(record)))
    except NotEnoughDataError:
        pass
    except Exception as error:
        log.warning("AgingMonitor: the record could not be analysed (%s: %s)", type(error).__name__, str(error))
    return found


def _spread(length: int, count: int) -> list[int]:
    """About ``count`` indices spread evenly over ``range(length)``, both ends among them."""
    if length <= count:
        return list(range(length))
    return sorted({round(k * (length - 1) / (count - 1)) for k in range(count)})
