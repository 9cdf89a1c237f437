"""Whether there is a barrier between two states of a training: the loss along the straight line."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader

from lightning_glassy.callbacks.batches import Batches
from lightning_glassy.callbacks.following import Choice, bring_monitor, pairs_of
from lightning_glassy.callbacks.probe import Loss, Probe, monitor_of
from lightning_glassy.callbacks.shared import Follower
from lightning_glassy.callbacks.undisturbed import undisturbed
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from lightning_glassy.observables import Array, barrier_height
from lightning_glassy.schedule import LogTimeSchedule


class BarrierMonitor(Follower, Probe):
    r"""Measures the loss along the straight line between the weights at two times.

    At chosen pairs :math:`(t_w, t)` it is :math:`L(\alpha)` at the weights
    :math:`(1-\alpha)\,w(t_w) + \alpha\,w(t_w+t)`, on a fixed part of the training set: the mean over its batches. The
    height of the barrier is :math:`\max_\alpha L(\alpha) - \max(L(0), L(1))`, which is never negative, and 0 where the
    line has none (Baity-Jesi et al. 2018, arXiv 1803.06969, find that the slowing down of a training is not due to
    barriers). It is an upper bound of the lowest pass: a curved way may have less. The distance of the ends is
    :math:`\sqrt{N\Delta}`, with the mean squared displacement that the record has of the pair.

    ==================================  ===========================================================================
    key                                 what is recorded, or logged
    ==================================  ===========================================================================
    ``loss_path``                       :math:`L(\alpha)` on the grid of the :math:`\alpha`, of each pair: a profile
                                        of the record, ``record.profile("loss_path")``
    ``barrier/tw_<t_w>``                height of the barrier: a scalar ``glassy_series/barrier/tw_<t_w>`` in the
                                        loggers, at the step :math:`t_w+t`
    ``loss_difference/tw_<t_w>``        :math:`L(1) - L(0)`, likewise
    ==================================  ===========================================================================

    :func:`lightning_glassy.observables.barrier_height` makes barriers of the values of the profile. The entry
    ``BarrierMonitor`` of the record's metadata has the numbers of batches and samples that were used, and the time it
    took.

    The snapshots are those of the :class:`AgingMonitor` of the same ``name`` in the same Trainer, which must not be a
    sample (``sample=None``); without one it brings an AgingMonitor of its own schedule, which others then share. Pairs
    are the first that the monitor measures at or after each pair of ``schedule``. Parameters that it does not track
    stay as they are. With P pairs due at a step the loss is evaluated on :math:`[1 + (points - 1) P]` times
    ``max_batches`` batches, without gradients: with the defaults 21 pairs, and fewer than 1900 batches, in 10,000
    steps. It takes one copy of the weights as memory.

    Evaluation is in evaluation mode, but with the statistics of each batch in a BatchNorm that is in training: the
    running ones belong to the weights of now. Random numbers, if a loss draws any, are the same along a line, and the
    data are read once for all lines of a step. The weights, and all else, are put back to the bit, also after a
    failure: training is the same with the callback and without it. A checkpoint that the handler of a signal saves in
    between gets the weights of the training, and the lines of that step are given up. Under DDP rank 0 measures while
    the others wait: a loss that talks to other processes cannot be used.

    Args:
        schedule: a :class:`LogTimeSchedule` of the pairs, or the number of waiting times and of lags per decade;
            default 1.
        points: number of points of a line, both ends included.
        loader: whose data set to use: a ``DataLoader``, or a function that gives one when training starts. Default that
            of the training.
        max_batches: most batches to use, random ones, the same at all steps; None for all.
        batch_size: number of samples in a batch; default that of the training.
        loss: gives the loss of a module on a batch; default what ``training_step`` returns.
        name: of the AgingMonitor.
        dirpath: where the files go if there is no such monitor; default the directory ``name`` beside the logger's.
        save: whether to write these files.
        summary: whether to print a line at the end on the time it took.

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction, an argument out of its range.
        MisconfigurationException: before training, a strategy that spreads the weights over processes, a
            :class:`ReplicaEnsemble`, a monitor that tracks a sample, or no usable loss or data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BarrierMonitor(points=7)], logger=False)
    """

    _data: Batches | None
    _lines: _Lines | None
    _choice: Choice | None

    def __init__(
        self,
        schedule: LogTimeSchedule | int | None = None,
        *,
        points: int = 11,
        loader: DataLoader[Any] | Callable[[], Any] | None = None,
        max_batches: int | None = 8,
        batch_size: int | None = None,
        loss: Loss | None = None,
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
        save: bool = True,
        summary: bool = True,
    ) -> None:
        super().__init__(
            pairs_of(schedule, default=1),
            mode="eval",
            max_batches=max_batches,
            batch_size=batch_size,
            loss=loss,
            name=name,
            dirpath=dirpath,
            save=save,
            summary=summary,
        )
        if not isinstance(points, int) or isinstance(points, bool) or not 3 <= points <= 1000:
            raise ValueError(f"points={points!r} must be a whole number between 3 and 1000, both ends included")
        self._alphas = np.linspace(0.0, 1.0, points)
        self._loader = loader

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be measured, and find snapshots."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            options = {"dirpath": self._dirpath, "save": self._save, "summary": self._summary}
            bring_monitor(trainer, self.name, self.schedule, sample=None, **options)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a monitor that tracks a sample: now it has planned its memory, wherever it stands."""
        super().on_train_epoch_start(trainer, pl_module)
        monitor = monitor_of(trainer, self.name)
        tracker = None if monitor is None else monitor._tracker
        if tracker is not None and tracker.parameters.n_sampled != tracker.parameters.n_parameters:
            raise MisconfigurationException(
                f"BarrierMonitor needs all weights, and the AgingMonitor {self.name!r} tracks a sample of "
                f"{tracker.parameters.n_sampled['all']:,} of {tracker.parameters.n_parameters['all']:,}: give "
                "AgingMonitor(sample=None), perhaps with snapshot_device='cpu' or fewer waiting times, or leave "
                "BarrierMonitor out"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """As that of all probes; of a checkpoint that is saved in the middle of a line, the weights are put back."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._lines is not None:
            self._lines.give_up()

    # ------------------------------------------------------------------ measuring

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the data."""
        if trainer.world_size > 1 and any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            raise MisconfigurationException(
                "BarrierMonitor measures in one process, and SyncBatchNorm would wait for the others: train without "
                "sync_batchnorm, or leave BarrierMonitor out"
            )
        loader = self._loader
        if loader is not None and not isinstance(loader, DataLoader) and callable(loader):
            loader = loader()
        combined = trainer.fit_loop._combined_loader
        self._data = Batches(
            trainer.train_dataloader if loader is None else loader,
            "BarrierMonitor: the loader of the training data",
            mode=combined._mode if combined is not None else "max_size_cycle",
            batch_size=self._batch_size,
            max_batches=self._max_batches,
            shuffled=True,
            whole=True,  # BatchNorm cannot do with a batch of a single sample
        )

    def release(self) -> None:
        """Let go of the data."""
        self._data = self._lines = self._choice = None

    def describe(self) -> dict[str, Any]:
        """How much was evaluated."""
        if self._data is None:
            return {}
        return {
            "batches": self._data.used,
            "batches_available": self._data.available,
            "samples": self._data.samples,
            "points": len(self._alphas),
        }

    def follow(self, trainer: Trainer, module: LightningModule, event: TrackerEvent) -> list[Finding]:
        """Measure the lines from the snapshots that are looked at to the weights of now."""
        if self._choice is None or event.record is not self._record:
            self._record, self._choice = event.record, Choice(self.schedule, event.record, "loss_path")
        pairs = [s for s in event.due if self._choice.takes(s.waiting_time, event.step - s.waiting_time)]
        if not pairs:
            return []
        if self._data is None:  # a monitor that stands before this one measures at the start of a resumed training
            with undisturbed(trainer, module, seed=0):
                self.prepare(trainer, module)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what is under way is the training's
        started = time.perf_counter()
        self._last_step, found = event.step, []
        try:
            with _Lines(event.parameters, pairs) as self._lines:
                for snapshot, losses in zip(pairs, self.measure(trainer, module), strict=True):
                    lag = event.step - snapshot.waiting_time
                    path = torch.from_numpy(losses)
                    found.append(Finding("loss_path", snapshot.waiting_time, lag, self._alphas, path))
        finally:
            self._lines = None
            self._n_measured += len(found)
            self._own_seconds += time.perf_counter() - started
            event.record.meta["BarrierMonitor"] = self._meta()
        for finding in found:
            values = self.combine(trainer, finding.values)
            self._log(trainer, event.step, {f"{key}/tw_{finding.waiting_time}": v for key, v in values.items()})
        return found

    def measure(self, trainer: Trainer, module: LightningModule) -> Array:
        """The losses along the lines, ``[n_pair, n_point]``; the data are read once."""
        lines = self._lines
        assert lines is not None
        assert self._data is not None
        sums, n = np.zeros((len(lines.snapshots), len(self._alphas))), 0
        try:
            with undisturbed(trainer, module, seed=self._last_step) as self._buffers, torch.no_grad():
                normalising = [part for part in module.modules() if isinstance(part, _NormBase) and part.training]
                module.eval()
                for part in normalising:
                    # The statistics of the batch, without a trace in the running ones.
                    part.training, part.track_running_stats = True, False
                for i, (batch, size) in enumerate(self._data.of(trainer, module)):
                    lines.put_back()  # all lines have this end
                    sums[:, -1] += size * self._loss_here(trainer, module, batch, i)
                    for row, snapshot in zip(sums, lines.snapshots, strict=True):
                        for k, alpha in enumerate(self._alphas[:-1].tolist()):
                            lines.go(snapshot, alpha)
                            row[k] += size * self._loss_here(trainer, module, batch, i)
                    n += size
                lines.check()
        finally:
            self._buffers = {}
        return sums / n

    def _loss_here(self, trainer: Trainer, module: LightningModule, batch: Any, i: int) -> float:
        """The loss at the weights there are: of these alone, whatever it draws, counts, or does to a batch."""
        with undisturbed(trainer, module, seed=self._last_step):
            return float(self.loss_of(trainer, module, copy.deepcopy(batch), i))

    def combine(self, trainer: Trainer, measured: Tensor) -> dict[str, float]:
        """The height of the barrier, and the difference of the losses at the ends, of the losses along a line."""
        return {
            "barrier": float(barrier_height(measured.numpy())),
            "loss_difference": float(measured[-1] - measured[0]),
        }

    def _plan_next(self) -> None:
        self._next_event = sys.maxsize  # the events are those of the monitor


class _Lines:
    """The straight lines from earlier weights to those of now, which are put back in the end."""

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
        """Set the weights to those at a point of a line."""
        self.check()
        self._put(snapshot.flats, alpha)

    def put_back(self) -> None:
        """Set the weights to those of now."""
        self._put(self._now, 1.0)

    def give_up(self) -> None:
        """Put the weights back before the end; what is being measured is good for nothing."""
        self._given_up = True
        self.put_back()

    def check(self) -> None:
        """Raise a RuntimeError if they were given up."""
        if self._given_up:
            raise RuntimeError("a checkpoint was saved in the middle of a line, which is given up")

    @torch.no_grad()
    def _put(self, flats: list[Tensor], alpha: float) -> None:
        for bucket, flat, now in zip(self._buckets, flats, self._now, strict=True):
            bucket.put_between(flat, now, alpha)
