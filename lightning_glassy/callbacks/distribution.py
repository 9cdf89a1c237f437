"""How displacements and weights are distributed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_glassy.callbacks.following import Choice, bring_monitor, pairs_of
from lightning_glassy.callbacks.shared import Follower, check_name
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.tiling import tile_size
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from lightning_glassy.observables import Array
from lightning_glassy.record import AgingRecord
from lightning_glassy.schedule import LogTimeSchedule

# Coordinates that are counted at once on a CPU, and the memory that each takes meanwhile: at most 12 MiB in all.
_TILE, _BYTES = 1 << 18, 48


# Bins per decade, on either side of 0.
_DENSITY = 10


def _edges(first: int, last: int) -> Array:
    """Those of bins from 10**first to 10**last, and of as many negative ones."""
    positive = 10.0 ** (np.arange(_DENSITY * first, _DENSITY * last + 1) / _DENSITY)
    return np.concatenate([-positive[::-1], positive])


DISPLACEMENT_EDGES = _edges(-3, 3)
"""Of the bins of the displacements, in units of their root mean square."""

WEIGHT_EDGES = _edges(-6, 3)
"""Of the bins of the weights."""


class DisplacementDistribution(Follower, Callback):
    r"""Counts how displacements are distributed at chosen pairs of times, and the weights at each waiting time.

    Of the displacements :math:`\Delta w_i = w_i(t_w+t) - w_i(t_w)` it is the histogram over all coordinates, in units
    of their root mean square :math:`\sqrt\Delta`: the self part of the van Hove function of a glass. Weights that move
    like free random walkers give a Gaussian (:func:`lightning_glassy.observables.gaussian_probabilities`); wider tails
    tell that a few of them move much more than the rest, as :math:`\alpha_2 > 0` does.

    ==================  ===============================================================================================
    key                 what is recorded
    ==================  ===============================================================================================
    ``displacement``    counts of :math:`\Delta w/\sqrt\Delta`: ten bins per decade from 0.001 to 1000, and as many of
                        negative ones
    ``weights``         counts of w at each waiting time, with lag 0: ten bins per decade from 1e-6 to 1000, and as
                        many of negative ones
    ==================  ===============================================================================================

    They are profiles of the record, ``record.profile("displacement")``, with the counts below the first and from the
    last edge on, so that they add up to the number of coordinates measured. Of them
    :func:`lightning_glassy.observables.fold` makes those of :math:`|\Delta w|/\sqrt\Delta`, and
    :func:`lightning_glassy.observables.density` a probability density. If nothing has moved, all displacements are
    counted in the bin around 0. Displacements that are not numbers are counted from the last edge on. Loggers get
    nothing.

    The snapshots are those of the :class:`AgingMonitor` of the same ``name`` in the same Trainer; without one it brings
    an AgingMonitor of its own schedule, which others then share. Pairs are the first that the monitor measures at or
    after each pair of ``schedule``; all parameters that it tracks (or a sample, if it does) are counted, on their
    device, whose counts are not waited for. Training is the same, bit for bit, with the callback and without it. Under
    DDP rank 0 measures.

    Args:
        schedule: a :class:`LogTimeSchedule` of the pairs, or the number of waiting times and of lags per decade;
            default 2.
        name: of the AgingMonitor.
        dirpath: where the files go if there is no such monitor; default the directory ``name`` beside the logger's.
        save: whether to write these files.
        summary: whether to print a line at the end on the time it took (on CUDA, to queue the work).

    Raises:
        TypeError: at construction, an argument of another type.
        ValueError: at construction, an argument out of its range.
        MisconfigurationException: before training, a strategy that spreads the weights over processes, or a
            :class:`ReplicaEnsemble`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DisplacementDistribution()], logger=False)
    """

    def __init__(
        self,
        schedule: LogTimeSchedule | int | None = None,
        *,
        name: str = "glassy",
        dirpath: str | os.PathLike[str] | None = None,
        save: bool = True,
        summary: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = pairs_of(schedule, default=2)
        self.name = check_name(name)
        self._dirpath = dirpath
        self._save = save
        self._summary = summary
        self._record: AgingRecord | None = None
        self._started = 0.0
        self._forget()

    def _forget(self) -> None:
        self._choice: Choice | None = None
        self._seconds = 0.0

    @property
    def record(self) -> AgingRecord:
        """What the histograms are in.

        Raises:
            RuntimeError: training has not started, or this process is not the one that measures.
        """
        if self._record is None:
            raise RuntimeError(
                "there is no record yet: training has not started in this process; on ranks other than 0, and after "
                "ddp_spawn, read the file with AgingRecord.load"
            )
        return self._record

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the settings and the record."""
        return self.__dict__ | {"_choice": None}

    # ------------------------------------------------------------------ hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be counted rightly, and find snapshots."""
        if stage != "fit":
            return
        check_whole_weights(trainer, pl_module, "DisplacementDistribution")
        bring_monitor(trainer, self.name, self.schedule, dirpath=self._dirpath, save=self._save, summary=self._summary)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()

    @torch.no_grad()
    def follow(self, trainer: Trainer, module: LightningModule, event: TrackerEvent) -> list[Finding]:
        """Count the weights if they are captured, and the displacements that are looked at."""
        started = time.perf_counter()
        if self._choice is None or event.record is not self._record:
            self._forget()
            self._record, self._choice = event.record, Choice(self.schedule, event.record, "displacement")
        parameters, found = event.parameters, []
        if event.captured is not None:
            counts = _count(parameters, WEIGHT_EDGES)
            found.append(Finding("weights", event.step, 0, WEIGHT_EDGES, counts))
        for i, snapshot in enumerate(event.due):
            lag = event.step - snapshot.waiting_time
            if self._choice.takes(snapshot.waiting_time, lag):
                scale = _inverse_rms([sums[:, i, 0] for sums in event.sums], parameters.n_sampled["all"])
                counts = _count(parameters, DISPLACEMENT_EDGES, snapshot.flats, scale)
                found.append(Finding("displacement", snapshot.waiting_time, lag, DISPLACEMENT_EDGES, counts))
        self._seconds += time.perf_counter() - started
        if found:
            event.record.meta["DisplacementDistribution"] = self._meta()
        return found

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the counting has cost."""
        if self._summary and trainer.is_global_zero:
            meta = self._meta()
            with contextlib.suppress(OSError, ValueError):  # an output that is closed, or takes no more
                trainer.print(
                    f"DisplacementDistribution: the histograms took {meta['seconds']:.3g} s, "
                    f"{meta['fraction_of_training']:.1%} of the time of the training"
                )

    # ------------------------------------------------------------------ inside

    def _meta(self) -> dict[str, Any]:
        seconds = time.perf_counter() - self._started if self._started else 0.0
        return {
            "seconds": round(self._seconds, 6),
            "fraction_of_training": round(self._seconds / seconds, 6) if seconds else 0.0,
        }


def _count(
    parameters: TrackedParameters, edges: Array, earlier: list[Tensor] | None = None, scale: Tensor | None = None
) -> Tensor:
    """The counts of the weights, or of their differences from earlier ones times a scale, ``[n_edge + 1]``."""
    total: Tensor | None = None
    for index, bucket in enumerate(parameters.buckets):
        dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        counts = torch.zeros(len(edges) + 1, dtype=torch.int64, device=bucket.device)
        size = tile_size(bucket, _TILE, _BYTES)
        scratch = torch.empty(min(size, bucket.numel), dtype=dtype, device=bucket.device)
        ones = torch.ones(len(scratch), dtype=torch.int64, device=bucket.device)
        factor = None if scale is None else scale.to(bucket.device, dtype)
        for tile in bucket.tiles(size, across_cells=True):
            values = bucket.read(tile, scratch)
            if earlier is not None and factor is not None:
                there = earlier[index][tile.start : tile.stop].to(bucket.device, non_blocking=True)
                values = (values - there.to(dtype)) * factor
            bins = _bins(values, edges)
            # Not `bincount`, for which CUDA is waited for.
            counts.scatter_add_(0, bins, ones[: len(bins)])
        total = counts if total is None else total + counts.to(total.device)
    assert total is not None  # nothing to track is refused
    return total


def _bins(values: Tensor, edges: Array) -> Tensor:
    """The place of each value in the counts.

    By its logarithm, which takes less time than `bucketize` (``benchmarks/histogram.py``); a value next to an edge, by
    a part in 1e5, may be counted on the other side.
    """
    n = len(edges) // 2
    place = values.abs().log10_().sub_(math.log10(edges[n])).mul_(_DENSITY).floor_().add_(1).clamp_(0, n)
    return place.copysign_(values).add_(n).nan_to_num_(nan=2 * n).long()


def check_whole_weights(trainer: Trainer, module: LightningModule, who: str) -> None:
    """Refuse weights that are spread over processes, and those of replicas.

    Raises:
        MisconfigurationException: with the remedy.
    """
    bases = {cls.__name__ for cls in type(trainer.strategy).__mro__}
    if not bases & {"SingleDeviceStrategy", "DDPStrategy"} or "DeepSpeedStrategy" in bases:
        raise MisconfigurationException(
            f"{who} cannot count weights that {type(trainer.strategy).__name__} spreads over processes: use a single "
            "device or 'ddp'"
        )
    if any(cls.__name__ == "ReplicaEnsemble" for part in module.modules() for cls in type(part).__mro__):
        raise MisconfigurationException(
            f"{who} does not know the replicas of a ReplicaEnsemble from each other: train a single network"
        )


def _inverse_rms(sums: list[Tensor], n: int) -> Tensor:
    """One over the root mean square displacement; 1 if there is none."""
    total = sums[0].sum()
    for others in sums[1:]:
        total = total + others.sum().to(total.device)
    return torch.where(total > 0, (total / n).rsqrt(), torch.ones_like(total))
