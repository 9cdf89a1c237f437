"""The callback: from the hooks of a Trainer to an :class:`~lightning_glassy.tracker.AgingTracker` and its sinks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import BatchSampler

from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule, Preset
from lightning_glassy.sinks import Sinks
from lightning_glassy.sinks.files import FileSink
from lightning_glassy.sinks.loggers import log_directory, sink_for
from lightning_glassy.tracker import AgingTracker

_NEVER = sys.maxsize


class AgingMonitor(Callback):
    r"""Measures how the weights move: two-time displacements and correlations on a logarithmic clock.

    A snapshot of the weights is taken at log-spaced waiting times :math:`t_w`, on their device; at log-spaced lags
    :math:`t` after each the weights are compared with it. If the curves depend on :math:`t_w`, the network *ages*
    (Baity-Jesi et al. 2018; Herrera Segura et al. 2022). Steps are completed optimiser updates. Training is the same,
    bit for bit, with the callback and without it.

    ====================================  =====================================================================
    key                                   what is logged
    ====================================  =====================================================================
    ``glassy/msd/tw_<t_w>``               mean squared displacement :math:`\Delta(t_w, t_w+t)`
    ``glassy/decorrelation/tw_<t_w>``     one minus the cosine of the weights at :math:`t_w` and :math:`t_w+t`
    ``glassy/non_gaussian/tw_<t_w>``      non-Gaussian parameter :math:`\alpha_2`
    ``glassy/overlap_<eps>/tw_<t_w>``     fraction of coordinates that moved by at most ``eps``
    ====================================  =====================================================================

    With several groups the group stands before ``tw_``. In TensorBoard the step of these is the lag, and
    ``glassy_figures/...`` shows all curves on logarithmic axes; other loggers get the training step :math:`t_w + t`.
    The directory ``glassy`` beside the logger's files gets ``aging_record.npz`` (written during the run, too) and
    ``aging_record.csv``. The one-time series of the record: ``learning_rate`` (``learning_rate_<i>_<j>`` for the
    parameter group j of the optimiser i where there are several), the one in force for the update after the step.

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
        moments: ``"full"``, or ``"msd"`` for the mean squared displacement alone, at less than half of the cost.
        name: prefix of the keys, and name of the directory. A second monitor of the same name gets a number.
        dirpath: where the files go; default the directory ``name`` beside the first logger's files.
        save: whether to write files at all.
        summary: whether to print a table at the end.

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction or at the start of training, an argument out of its range, or nothing to track.
        MemoryError: at the start of training, snapshots that would not fit; the message names the remedies.
        MisconfigurationException: at the start of training, a strategy that shards parameters.

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
        if not name or not all(c.isalnum() or c in "_-." for c in name) or name.startswith("."):
            raise ValueError(f"name={name!r} must consist of letters, digits, '_', '-' and '.': it names a directory")
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
        self.name = name
        self._dirpath = None if dirpath is None else Path(dirpath)
        self._save = save
        self._summary = summary
        self._tracker: AgingTracker | None = None
        self._sinks = Sinks([])
        self._next_event = _NEVER

    @property
    def record(self) -> AgingRecord:
        """What has been measured so far; complete once training has ended.

        Raises:
            RuntimeError: training has not started, or this process is not the one that measures.
        """
        if self._tracker is None:
            raise RuntimeError(
                "there is no record yet: training has not started in this process. Under ddp_spawn, and on ranks other "
                "than 0, read the file: AgingRecord.load('<log dir>/glassy/aging_record.npz')"
            )
        return self._tracker.record

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is moved or sharded, a strategy whose parameters are not whole on every rank."""
        names = [cls.__name__ for cls in type(trainer.strategy).__mro__]
        whole = "SingleDeviceStrategy" in names or ("DDPStrategy" in names and "DeepSpeedStrategy" not in names)
        if not whole:
            raise MisconfigurationException(
                f"AgingMonitor cannot measure parameters under {type(trainer.strategy).__name__}, which may shard them "
                "over processes: use a single device or strategy='ddp'"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan and allocate; measure the state before the first update."""
        self._next_event = _NEVER
        # Under DDP every rank holds the same weights: one of them measures, and no collective is needed.
        if not trainer.is_global_zero:
            return
        step, max_step = trainer.global_step, _max_step(trainer, pl_module)
        earlier = self._record_to_continue(step)
        try:
            self._tracker = self._make_tracker(trainer, pl_module, max_step, earlier)
        except ValueError:
            if earlier is None:
                raise
            earlier = None  # another model, or other settings: a record of its own
            self._tracker = self._make_tracker(trainer, pl_module, max_step, None)
        if earlier is None:
            self._sinks = Sinks(self._make_sinks(trainer))
        rank_zero_info(f"AgingMonitor: {self._tracker.description}")
        if step > 0:
            rank_zero_warn(
                f"AgingMonitor: training starts at step {step} without earlier snapshots; "
                + ("the record goes on with new waiting times" if earlier else "a new record starts here")
            )
        self._event(trainer, step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Nothing, at most steps; otherwise capture and measure what is due."""
        step = trainer.global_step
        if step >= self._next_event:
            self._event(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the record, write it, and say where it is."""
        tracker = self._finish()
        if tracker is None:
            return
        end = tracker.schedule.max_step
        if end is not None and trainer.global_step > end:
            rank_zero_warn(f"AgingMonitor: training went on to step {trainer.global_step}, the schedule ended at {end}")
        if self._summary:
            trainer.print("\n".join([_summary(tracker.record), *self._sinks.where()]))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured: after this, neither ``on_train_end`` nor ``teardown`` may come."""
        self._finish()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the snapshots."""
        self._next_event = _NEVER
        if self._tracker is not None:
            self._tracker.release()

    # ------------------------------------------------------------------ inside

    def _event(self, trainer: Trainer, step: int) -> None:
        tracker = self._tracker
        assert tracker is not None  # no event is ever due without one
        try:
            tracker.update(step, _learning_rates(trainer))
        except (MemoryError, torch.OutOfMemoryError) as error:
            # Better a record that ends here than a training that does.
            tracker.release()
            rank_zero_warn(f"AgingMonitor: out of memory at step {step}, no more is measured: {error}")
        pairs = tracker.new_pairs()
        if pairs:
            self._sinks.update(tracker.record, pairs, step)
        # While measurements are on their way from the device, look again at the next step.
        self._next_event = step + 1 if tracker.pending else tracker.next_event

    def _finish(self) -> AgingTracker | None:
        tracker, self._next_event = self._tracker, _NEVER
        if tracker is not None:
            tracker.drain()
            pairs = tracker.new_pairs()
            if pairs:
                self._sinks.update(tracker.record, pairs, max(waiting_time + lag for waiting_time, lag in pairs))
            self._sinks.close(tracker.record)
        return tracker

    def _record_to_continue(self, step: int) -> AgingRecord | None:
        """The record of an earlier ``fit`` of this callback, if training goes on where it ended."""
        if self._tracker is None or step == 0 or step < self._tracker.last_step:
            return None
        return self._tracker.record

    def _make_tracker(
        self, trainer: Trainer, pl_module: LightningModule, max_step: int | None, record: AgingRecord | None
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
            pl_module.named_parameters(remove_duplicate=False),
            schedule,
            max_step=max_step,
            meta=_describe_run(trainer, pl_module),
            record=record,
            **self._options,
        )

    def _make_sinks(self, trainer: Trainer) -> list[Any]:
        prefix = self._unique_name(trainer)
        sinks: list[Any] = [sink for logger in trainer.loggers if (sink := sink_for(logger, prefix)) is not None]
        if self._save and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            directory = self._dirpath or log_directory(trainer.loggers, trainer.default_root_dir) / prefix
            # First, so that the record is on disk even if a logger hangs.
            sinks.insert(0, FileSink(directory))
        return sinks

    def _unique_name(self, trainer: Trainer) -> str:
        namesakes = [c for c in trainer.callbacks if isinstance(c, AgingMonitor) and c.name == self.name]  # type: ignore[attr-defined]
        number = namesakes.index(self) + 1 if self in namesakes else 1
        return self.name if number == 1 else f"{self.name}_{number}"


def _max_step(trainer: Trainer, pl_module: LightningModule) -> int | None:
    """The last step of the run in completed optimiser updates, ``None`` where it cannot be known."""
    known = trainer.max_steps if trainer.max_steps != -1 else None
    # With manual optimisation a batch may be any number of updates, and a reloaded data set of any length.
    if pl_module.automatic_optimization and not trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        try:
            estimate = trainer.estimated_stepping_batches
        except MisconfigurationException:  # accumulation that changes from epoch to epoch
            return known
        return int(estimate) if estimate != float("inf") else known
    return known


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    rates = {}
    for i, optimizer in enumerate(trainer.optimizers):
        for j, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            # A rate that lives on the device is not worth waiting for.
            if isinstance(rate, (int, float)) or (isinstance(rate, torch.Tensor) and rate.device.type == "cpu"):
                rates["learning_rate" if i == j == 0 else f"learning_rate_{i}_{j}"] = float(rate)
    return rates


def _describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What a reader of the record will want to know of the run: plain values that JSON can hold."""

    def plain(value: Any) -> bool:
        return isinstance(value, (bool, int, float, str, type(None)))

    def versions() -> dict[str, str]:
        found = {"python": platform.python_version()}
        for package in ("lightning_glassy", "lightning", "torch", "numpy"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed as a package"
        return found

    loader = trainer.train_dataloader
    size, sampler = getattr(loader, "batch_size", None), getattr(loader, "sampler", None)
    if isinstance(sampler, BatchSampler):  # a loader whose data set takes whole batches of indices
        size, sampler = sampler.batch_size, sampler.sampler
    return {
        "module": type(pl_module).__qualname__,
        "optimizers": [
            {
                "name": type(optimizer).__name__,
                "parameter_groups": [
                    {key: value for key, value in group.items() if key != "params" and plain(value)}
                    for group in optimizer.param_groups
                ],
            }
            for optimizer in trainer.optimizers
        ],
        "lr_schedulers": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
        "batch_size": size if plain(size) else None,
        "sampler": None if sampler is None else type(sampler).__name__,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": versions(),
    }


def _summary(record: AgingRecord) -> str:
    """A table of the displacement for a few waiting times and lags, for the end of a run."""
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


def _spread(length: int, count: int) -> list[int]:
    """About ``count`` indices spread evenly over ``range(length)``, both ends among them."""
    if length <= count:
        return list(range(length))
    return sorted({round(k * (length - 1) / (count - 1)) for k in range(count)})
