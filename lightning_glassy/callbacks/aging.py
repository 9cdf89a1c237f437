"""The callback that measures how the weights of a training move."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.fabric.utilities import rank_zero_info
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import Unpack

from lightning_glassy.callbacks.recorder import NEVER, RecorderOptions, check_known
from lightning_glassy.callbacks.recording import Recording
from lightning_glassy.callbacks.run import (
    check_clipping,
    describe_run,
    is_a,
    makes_no_updates,
    max_step,
    schedule_of,
    tracked_module,
)
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.measure.optimizers import learning_rates
from lightning_glassy.measure.select import Groups
from lightning_glassy.measure.shards import reshard, spread
from lightning_glassy.measure.tracker import AgingTracker, TrackerOptions, check_options
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import ScheduleLike, check_schedule


class MonitorOptions(RecorderOptions, TrackerOptions, total=False):
    """Options of an AgingMonitor."""


class AgingMonitor(Recording):
    r"""Measures how the weights move: two-time displacements and correlations on a logarithmic clock.

    At log-spaced waiting times :math:`t_w` the callback takes a snapshot of the weights, on their device. At log-spaced
    lags :math:`t` after each snapshot it compares the weights with the snapshot. If the curves depend on :math:`t_w`,
    the network *ages* (Baity-Jesi et al. 2018, Herrera Segura et al. 2022). Steps are completed optimiser updates.
    Training is the same, bit for bit, with the callback and without it.

    Loggers get a few tags:

    =============================  ====================================================================================
    tag                            content
    =============================  ====================================================================================
    ``glassy/moved_percent``       rms displacement between step n/10 and step n, in % of the rms weight
    ``glassy/aging_rate``          how fast the motion slows down, so far: 0 is no aging, 1 is full aging
    ``glassy/mu``                  the aging exponent at the end, if there is one
    ``glassy_figures/<name>``      the curves of an observable on logarithmic axes, at the end
    =============================  ====================================================================================

    The tab "Glassy" of TensorBoard shows the whole record. A ``CSVLogger`` gets the file ``glassy.csv`` beside its
    ``metrics.csv``. :mod:`lightning_glassy.loggers` lists the tags and files of each logger. ``curves="scalars"`` adds
    one tag for each waiting time, and ``log_groups=[...]`` adds the scalars of groups.

    The directory ``glassy`` beside the logger's files gets ``aging_record.npz`` (written during the run, too) and
    ``aging_record.csv``. The one-time series ``learning_rate`` of the record is the learning rate of the update after
    each event, in the first parameter group of the first optimiser. For any other group, the series
    ``learning_rate_<i>_<j>`` is the rate of group j of optimiser i, counted from 0.

    The tracked parameters are chosen when training starts. Parameters that are unfrozen later are not tracked.

    Under DDP all ranks hold the same weights, and rank 0 measures them. Other strategies spread the weights over the
    ranks: ``ModelParallelStrategy`` (FSDP2 and tensor parallelism), ``FSDPStrategy`` and ``DeepSpeedStrategy`` (its
    float32 weights are measured). Then each rank measures its shard. At each event, a few numbers are summed over the
    ranks, so that every rank has the same record. Rank 0 writes and logs it.

    If the module has a :class:`~lightning_glassy.ReplicaEnsemble`, each replica is measured. The record then has an
    axis of replicas, and loggers get the mean over the replicas. The record also has the distances and overlaps between
    replicas (:meth:`AgingRecord.replica_distance`, :meth:`AgingRecord.replica_overlap`). The one-time series
    ``replica_distance`` and ``replica_overlap`` are the means over all pairs of replicas.

    Checkpoints hold the state of the callback, so ``fit(ckpt_path=...)`` continues the record without a gap. Snapshots
    that take more than 16 MiB together are in separate files. The files are in the directory ``glassy_snapshots``
    beside the checkpoints (without a checkpoint callback, beside the record). Each file is written once, for any number
    of checkpoints. Keep these files as long as the checkpoints, and move them together.

    Args:
        schedule: when to measure: a :class:`LogTimeSchedule`, a number of waiting times and of lags per decade, or the
            name of a preset for a run of known length. ``"epoch"`` measures at the ends of epochs. Default:
            ``LogTimeSchedule.logspaced()``, with 3 waiting times and 10 lags per decade.
        groups: ``"all"`` for all parameters together, ``"layer"`` for one more group per module, or a mapping of group
            names to a name pattern or several (``{"attention": "*.attn.*"}``).
        **options: ``include``, ``exclude``, ``sample``, ``snapshot_device``, ``max_memory``, ``overlap_thresholds`` and
            ``moments``: see :class:`~lightning_glassy.measure.tracker.TrackerOptions`. ``name``, ``dirpath``, ``save``,
            ``summary``, ``curves`` and ``log_groups``: see
            :class:`~lightning_glassy.callbacks.recorder.RecorderOptions`.

    Raises:
        TypeError: at construction, an argument has the wrong type, or there is no such option.
        ValueError: at construction or at the start of training, an argument is out of its range, or there is nothing to
            track.
        MemoryError: at the start of training, the snapshots do not fit in memory. The message names the remedies.
        MisconfigurationException: at the start of training, the parameters cannot be measured correctly under the
            strategy, or gradient clipping by the norm over all replicas would couple the replicas.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AgingMonitor()], logger=False)
    """

    tracks = True

    def __init__(
        self, schedule: ScheduleLike | None = None, groups: Groups = "all", **options: Unpack[MonitorOptions]
    ) -> None:
        check_schedule(schedule)
        ours, of_tracker = split_options(options, type(self).__name__)
        super().__init__(schedule, **ours)
        self.groups = groups
        self.options = check_options(groups, of_tracker)

    # ------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the measurements, allocate memory, and continue from a checkpoint."""
        self._next_event = NEVER
        super().on_train_start(trainer, pl_module)
        reshard(pl_module)
        check_clipping(trainer, pl_module)
        if isinstance(self.schedule, int):
            rank_zero_info(
                f"{type(self).__name__}: schedule={self.schedule} stands for {self.schedule} waiting times and "
                f"{self.schedule} lags in each factor of ten of the steps"
            )
        sharded = spread(tracked_module(trainer, pl_module))
        # Under DDP every rank holds the same weights. One of them measures, and no collective is needed.
        if not (trainer.is_global_zero or sharded):
            self.recorder.load_state_dict(None)  # frees the state of the checkpoint
            return
        recorder, step = self.recorder, trainer.global_step
        recorder.track(partial(self._make_tracker, trainer, pl_module), pl_module, step)
        snapshots = recorder.find_snapshots(trainer.checkpoint_callbacks)
        recorder.snapshots = trainer.strategy.broadcast(snapshots) if sharded else snapshots

    def measure_now(self, trainer: Trainer, pl_module: LightningModule, *, first: bool = False) -> None:
        """Take the snapshot and make the measurements that are due."""
        if self.recorder.tracker is not None and not makes_no_updates(trainer) and not self.recorder.given_up:
            step = trainer.global_step
            self.note_event(step)
            self._next_event = self.recorder.event(step, partial(_rates, trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete the record."""
        self._next_event = NEVER
        self.recorder.drain()
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the measurements so far. Lightning may call neither ``on_train_end`` nor ``teardown`` afterwards."""
        if not self._is_ours(trainer):
            return
        # Other processes may have stopped before they added their part to a sum.
        self.recorder.drain(timeout=10.0)
        super().on_exception(trainer, pl_module, exception)
        # Keep the state of several processes only if a checkpoint will be saved. An older ModelCheckpoint has no
        # `save_on_exception`, and an OnExceptionCheckpoint always saves.
        callbacks, tracker = trainer.checkpoint_callbacks, self.recorder.tracker
        if tracker is None or tracker.alone:
            self.recorder.let_go()
        elif not any(getattr(c, "save_on_exception", not is_a(c, "ModelCheckpoint")) for c in callbacks):
            self.recorder.free()

    # ------------------------------------------------------------------ inside

    def facts(self) -> None:
        """Return nothing. The record itself describes the tracker."""

    def report(self, record: AgingRecord) -> list[str]:
        """Return the displacements, the verdict and the aging exponent, or the reason why there are none."""
        if self._standstill is not None and self._standstill.found and not len(record):
            return [f"{type(self).__name__}: {self._standstill.found}"]
        return summary(record, type(self).__name__)

    def _make_tracker(self, trainer: Trainer, pl_module: LightningModule, state: Any, directory: Any) -> AgingTracker:
        return AgingTracker(
            tracked_module(trainer, pl_module),
            schedule_of(self.schedule, trainer, pl_module),
            self.groups,
            max_step=max_step(trainer, pl_module),
            meta=describe_run(trainer, pl_module),
            state=state,
            directory=directory,
            **self.options,
        )


def _rates(trainer: Trainer) -> dict[str, float]:
    rates: dict[str, float] = {}
    for i, optimizer in enumerate(trainer.optimizers):
        rates |= learning_rates(i, optimizer.param_groups)
    return rates


def split_options(options: MonitorOptions, who: str) -> tuple[RecorderOptions, TrackerOptions]:
    """Return the options of the recorder, and the options of the tracker.

    Raises:
        TypeError: there is no such option of the callback ``who``.
    """
    check_known(who, options, TrackerOptions, RecorderOptions)
    ours = {key: value for key, value in options.items() if key in RecorderOptions.__annotations__}
    rest = {key: value for key, value in options.items() if key not in ours}
    return ours, rest  # type: ignore[return-value]
