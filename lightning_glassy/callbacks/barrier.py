"""Measure the loss along the straight line between two states of a training, and its barrier."""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import Unpack

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.kept import Kept
from lightning_glassy.callbacks.network import Loader, NetworkOptions, RunsNetwork, has_sync_batch_norm
from lightning_glassy.callbacks.pairs import PairMeasurement
from lightning_glassy.callbacks.undisturbed import repeatable, undisturbed
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.tracker import Finding, TrackerEvent, TrackerOptions
from lightning_glassy.observables import Array, barrier_height
from lightning_glassy.schedule import ScheduleLike


class BarrierMonitor(RunsNetwork, PairMeasurement):
    r"""Measures the loss along the straight line between the weights at two times.

    At chosen pairs :math:`(t_w, t)`, the loss :math:`L(\alpha)` at the weights
    :math:`(1-\alpha)\,w(t_w) + \alpha\,w(t_w+t)` is the mean over the batches of a fixed part of the training set. The
    height of the barrier is :math:`\max_\alpha L(\alpha) - \max(L(0), L(1))`. It is never negative, and it is 0 if the
    line has no barrier. Baity-Jesi et al. 2018 (arXiv 1803.06969) find that barriers do not cause the slowing down of a
    training. The height is an upper bound of the lowest pass, because a curved path may have a lower barrier. The
    distance between the two ends is :math:`\sqrt{N\Delta}`, with the mean squared displacement :math:`\Delta` of the
    pair in the record.

    ==================================  ===========================================================================
    key                                 recorded or logged value
    ==================================  ===========================================================================
    ``loss_path``                       :math:`L(\alpha)` on a grid of :math:`\alpha` for each pair: a profile of the
                                        record, ``record.profile("loss_path")``
    ``barrier/tw_<t_w>``                height of the barrier: a scalar ``glassy_series/barrier/tw_<t_w>`` in the
                                        loggers, at the step :math:`t_w+t`
    ``loss_difference/tw_<t_w>``        :math:`L(1) - L(0)`: a scalar of the same kind
    ==================================  ===========================================================================

    :func:`lightning_glassy.observables.barrier_height` returns the barriers of the values of the profile. The entry
    ``BarrierMonitor`` of the record's metadata has the numbers of used batches and samples, and the time of the
    measurements.

    The callback uses the snapshots of the :class:`AgingMonitor` of the same ``name`` in the same Trainer. This
    AgingMonitor must track all coordinates (``sample=None``). If there is no such AgingMonitor, the callback adds an
    AgingMonitor with its own schedule, and other callbacks share it. For each pair of ``schedule``, the callback takes
    the first pair that the AgingMonitor measures at or after it. Parameters that the AgingMonitor does not track stay
    unchanged. If P pairs are due at a step, the loss is evaluated on :math:`[1 + (points - 1) P]` times ``max_batches``
    batches, without gradients. The defaults give 21 pairs and fewer than 1900 batches in 10,000 steps. The callback
    needs memory for one copy of the weights.

    The loss is evaluated in evaluation mode. A BatchNorm that is in training mode during training uses the statistics
    of each batch, because its running statistics belong to the present weights. Random numbers in the loss are the same
    along a line. The data are read once for all lines of a step. The weights and the rest of the state are restored bit
    for bit, also after a failure. Training is therefore the same with the callback and without it. A checkpoint that a
    signal handler saves during a measurement gets the weights of the training. The lines of this step are then
    discarded. Under DDP rank 0 measures while the others wait, so a loss that communicates with other processes cannot
    be used.

    Args:
        schedule: a :class:`LogTimeSchedule` of the pairs, a number of waiting times and of lags per decade, or the name
            of a preset.
        points: number of points of a line, including both ends.
        loader: a ``DataLoader``, or a function that returns one when training starts. Its sampler decides which samples
            are used. Default: the loader of the training.
        max_batches: most batches to use, or ``None`` for all. They are random, and the same at all steps.
        **options: ``batch_size`` and ``loss``: see :class:`~lightning_glassy.callbacks.network.NetworkOptions`.
            ``name``, ``dirpath``, ``save``, ``summary`` and ``max_share``: see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range.
        MisconfigurationException: before training, the strategy spreads the weights over processes, the module has a
            :class:`ReplicaEnsemble`, the AgingMonitor tracks a sample, or there is no usable loss or data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BarrierMonitor(points=7)], logger=False)
    """

    profile = "loss_path"
    waits = True
    needs: TrackerOptions = {"sample": None}  # noqa: RUF012

    _data: Batches | None
    _lines: _Lines | None

    def __init__(
        self,
        schedule: ScheduleLike = 1,
        *,
        points: int = 11,
        loader: Loader | None = None,
        max_batches: int | None = 8,
        **options: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(schedule, mode="eval", max_batches=max_batches, **options)
        if not isinstance(points, int) or isinstance(points, bool) or not 3 <= points <= 1000:
            raise ValueError(f"points={points!r} must be a whole number between 3 and 1000, both ends included")
        self._alphas = np.linspace(0.0, 1.0, points)
        self._loader = loader
        self._data = self._lines = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings and the record for pickle and copy, without the training that is under way."""
        return super().__getstate__() | {"_data": None, "_lines": None}

    # ------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the data."""
        super().on_train_start(trainer, pl_module)
        with undisturbed(trainer, pl_module, seed=0):
            self.prepare(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an AgingMonitor that tracks a sample. It has planned its memory by now."""
        super().on_train_epoch_start(trainer, pl_module)
        tracker = self.recorder.tracker
        if tracker is not None and tracker.parameters.n_sampled != tracker.parameters.n_parameters:
            raise MisconfigurationException(
                f"BarrierMonitor needs all weights, and the AgingMonitor {self.name!r} tracks a sample of "
                f"{tracker.parameters.n_sampled['all']:,} of {tracker.parameters.n_parameters['all']:,}: give "
                "AgingMonitor(sample=None), perhaps with snapshot_device='cpu' or fewer waiting times, or leave "
                "BarrierMonitor out"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state of the record. Put the weights back if the checkpoint is saved in the middle of a line."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._lines is not None:
            self._lines.give_up()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the data and the snapshots."""
        super().teardown(trainer, pl_module, stage)
        self._data = None

    # ------------------------------------------------------------------ measuring

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the data."""
        if trainer.world_size > 1 and has_sync_batch_norm(module):
            raise MisconfigurationException(
                "BarrierMonitor measures in one process, and SyncBatchNorm would wait for the others: train without "
                "sync_batchnorm, or leave BarrierMonitor out"
            )
        # BatchNorm cannot normalise a batch of a single sample, so all batches are whole.
        self._data = self.batches(trainer, self._loader, "the training data", shuffled=True, whole=True, shared=False)

    def describe(self) -> dict[str, Any]:
        """Return the numbers of batches, samples and points."""
        return {} if self._data is None else {**self._data.counts, "points": len(self._alphas)}

    def measure(
        self, trainer: Trainer, module: LightningModule, event: TrackerEvent, snapshots: list[Snapshot]
    ) -> list[Finding]:
        """Return the losses along the lines from the snapshots to the present weights."""
        if not snapshots:
            return []
        assert self._data is not None  # all callbacks have started before the first event
        try:
            with _Lines(event.parameters, snapshots) as self._lines:
                paths = self._along(self._lines, self._data, trainer, module, seed=event.step)
        finally:
            self._lines = None
        found: list[Finding] = []
        for snapshot, losses in zip(snapshots, paths, strict=True):
            waiting_time, lag = snapshot.waiting_time, event.step - snapshot.waiting_time
            found.append(Finding("loss_path", waiting_time, lag, self._alphas, torch.from_numpy(losses)))
            values = {"barrier": barrier_height(losses), "loss_difference": losses[-1] - losses[0]}
            scalars = {f"{key}/tw_{waiting_time}": float(value) for key, value in values.items()}
            self.recorder.log(event.step, scalars, type(self).__name__)
        return found

    def _along(self, lines: _Lines, data: Batches, trainer: Trainer, module: LightningModule, seed: int) -> Array:
        """Return the losses along the lines, ``[n_pair, n_point]``. The data are read once."""
        sums, n = np.zeros((len(lines.snapshots), len(self._alphas))), 0

        def loss(batch: Any, i: int) -> float:
            """Return the loss at the present weights, and restore random numbers, counters and the batch."""
            with repeatable(kept, seed):
                return float(self.loss_of(trainer, module, copy.deepcopy(batch), i))

        normalising = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
        with self.undisturbed(trainer, module, seed), torch.no_grad():
            for part in normalising:
                # Use the statistics of the batch, and leave the running statistics unchanged.
                part.training, part.track_running_stats = True, False
            # Write the weights also for the present weights, because each other loss is evaluated after such a write.
            kept = Kept([*module.modules()])
            for i, (batch, size) in enumerate(data.of(trainer, module)):
                lines.put_back()  # all lines have this end
                sums[:, -1] += size * loss(batch, i)
                for row, snapshot in zip(sums, lines.snapshots, strict=True):
                    for k, alpha in enumerate(self._alphas[:-1].tolist()):
                        lines.go(snapshot, alpha)
                        row[k] += size * loss(batch, i)
                n += size
            lines.check()
        return sums / n


class _Lines:
    """Straight lines from earlier weights to the present weights, which are restored in the end."""

    def __init__(self, parameters: TrackedParameters, snapshots: list[Snapshot]) -> None:
        self.snapshots = snapshots
        self._buckets = parameters.buckets
        self._given_up = False

    @torch.no_grad()
    def __enter__(self) -> _Lines:
        self._now = [torch.empty(b.shape, dtype=b.dtype, device=b.device) for b in self._buckets]
        for bucket, flat in zip(self._buckets, self._now, strict=True):
            bucket.copy_to(flat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.put_back()

    def go(self, snapshot: Snapshot, alpha: float) -> None:
        """Set the weights to a point of a line."""
        self.check()
        self._put(snapshot.flats, alpha)

    def put_back(self) -> None:
        """Set the weights to the present weights."""
        self._put(self._now, 1.0)

    def give_up(self) -> None:
        """Restore the weights before the end, and discard the measurement."""
        self._given_up = True
        self.put_back()

    def check(self) -> None:
        """Raise a RuntimeError if the lines were given up."""
        if self._given_up:
            raise RuntimeError("a checkpoint was saved in the middle of a line, which is given up")

    @torch.no_grad()
    def _put(self, flats: list[Tensor], alpha: float) -> None:
        for bucket, flat, now in zip(self._buckets, flats, self._now, strict=True):
            bucket.put_between(flat, now, alpha)
