"""Count how displacements and weights are distributed."""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import Unpack

from lightning_glassy.callbacks.pairs import PairMeasurement
from lightning_glassy.callbacks.recorder import MeasurementOptions
from lightning_glassy.measure import tiling
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import counts_for
from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.tracker import Finding, TrackerEvent
from lightning_glassy.observables import Array
from lightning_glassy.replicas.ensemble import ReplicaEnsemble
from lightning_glassy.schedule import ScheduleLike

# Coordinates that are counted at once on a CPU, and the bytes for each coordinate: at most 12 MiB in all.
_TILE, _BYTES = 1 << 18, 48


_Counts = Callable[[list[Tensor] | None, float], Tensor]

# The functions that count the weights of a training, by the number of their edges.
_compiled: WeakKeyDictionary[TrackedParameters, dict[int, Callable[[list[Tensor] | None, float], Tensor] | None]] = (
    WeakKeyDictionary()
)

# Bins per decade, on either side of 0.
_DENSITY = 10


def _edges(first: int, last: int) -> Array:
    """Return the edges of bins from 10**first to 10**last, and of the negative bins."""
    positive = 10.0 ** (np.arange(_DENSITY * first, _DENSITY * last + 1) / _DENSITY)
    return np.concatenate([-positive[::-1], positive])


DISPLACEMENT_EDGES = _edges(-3, 3)
"""Edges of the bins of the displacements, in units of their root mean square."""

WEIGHT_EDGES = _edges(-6, 3)
"""Edges of the bins of the weights."""


class DisplacementDistribution(PairMeasurement):
    r"""Counts how displacements are distributed at chosen pairs of times, and the weights at each waiting time.

    The histogram of the displacements :math:`\Delta w_i = w_i(t_w+t) - w_i(t_w)` is over all coordinates, in units of
    their root mean square :math:`\sqrt\Delta`. It is the self part of the van Hove function of a glass. Weights that
    move like free random walkers give a Gaussian (:func:`lightning_glassy.observables.gaussian_probabilities`). Wider
    tails show that a few weights move much more than the rest, as :math:`\alpha_2 > 0` does.

    ==================  ===============================================================================================
    key                 recorded value
    ==================  ===============================================================================================
    ``displacement``    counts of :math:`\Delta w/\sqrt\Delta`: ten bins per decade from 0.001 to 1000, and the same for
                        negative values
    ``weights``         counts of w at each waiting time, with lag 0: ten bins per decade from 1e-6 to 1000, and the
                        same for negative values
    ==================  ===============================================================================================

    Both are profiles of the record, such as ``record.profile("displacement")``. They include the counts below the first
    edge and from the last edge on, so their sum is the number of measured coordinates.
    :func:`lightning_glassy.observables.fold` returns the counts of :math:`|\Delta w|/\sqrt\Delta`, and
    :func:`lightning_glassy.observables.density` a probability density. If nothing has moved, all displacements are
    counted in the bin around 0. Displacements that are not numbers are counted from the last edge on. Loggers get
    nothing.

    The callback uses the snapshots of the :class:`AgingMonitor` of the same ``name`` in the same Trainer. If there is
    no such AgingMonitor, the callback adds an AgingMonitor with its own schedule, and other callbacks share it. For
    each pair of ``schedule``, the callback takes the first pair that the AgingMonitor measures at or after it. All
    parameters that the AgingMonitor tracks (or its sample) are counted on their device, without waiting for the device.
    Training is the same, bit for bit, with the callback and without it. Under DDP rank 0 measures.

    Args:
        schedule: a :class:`LogTimeSchedule` of the pairs, a number of waiting times and of lags per decade, or the name
            of a preset.
        **options: ``name``, ``dirpath``, ``save`` and ``summary``, see
            :class:`~lightning_glassy.callbacks.recorder.MeasurementOptions`. On CUDA, the summary reports the time to
            queue the work.

    Raises:
        TypeError: at construction, an argument has the wrong type.
        ValueError: at construction, an argument is out of its range.
        MisconfigurationException: before training, the strategy spreads the weights over processes, or the module has a
            :class:`ReplicaEnsemble`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DisplacementDistribution()], logger=False)
    """

    profile = "displacement"

    def __init__(self, schedule: ScheduleLike = 2, **options: Unpack[MeasurementOptions]) -> None:
        super().__init__(schedule, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse replicas, before anything is moved."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and any(isinstance(part, ReplicaEnsemble) for part in pl_module.modules()):
            raise MisconfigurationException(
                f"{type(self).__name__} cannot tell the replicas of a ReplicaEnsemble apart: train a single network"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile the counting of these dtypes now, because an event may come in the middle of a step."""
        super().on_train_start(trainer, pl_module)
        for dtype in {weights.dtype for weights in pl_module.parameters() if weights.device.type == "cpu"}:
            few = torch.zeros(8, dtype=dtype, device="cpu")
            _compiled_counts(TrackedParameters([Selected("few", few, ())]), WEIGHT_EDGES)

    @torch.no_grad()
    def measure(
        self, trainer: Trainer, module: LightningModule, event: TrackerEvent, snapshots: list[Snapshot]
    ) -> list[Finding]:
        """Count the weights if they are captured, and the displacements from the snapshots."""
        parameters, found = event.parameters, []
        if event.captured is not None:
            counts = _count(parameters, WEIGHT_EDGES)
            found.append(Finding("weights", event.step, 0, WEIGHT_EDGES, counts))
        for snapshot in snapshots:
            i, lag = event.due.index(snapshot), event.step - snapshot.waiting_time
            scale = _inverse_rms([sums[:, i, 0] for sums in event.sums], parameters.n_sampled["all"])
            counts = _count(parameters, DISPLACEMENT_EDGES, snapshot.flats, scale)
            found.append(Finding("displacement", snapshot.waiting_time, lag, DISPLACEMENT_EDGES, counts))
        return found


def _compiled_counts(parameters: TrackedParameters, edges: Array) -> _Counts | None:
    """Return the function that counts weights in host memory, made once per training, or ``None`` for plain torch."""
    if any(tiling.few_operations(bucket.device) for bucket in parameters.buckets):
        return None
    made = _compiled.setdefault(parameters, {})
    if len(edges) not in made:
        made[len(edges)] = counts_for(parameters, edges)
    return made[len(edges)]


def _count(
    parameters: TrackedParameters, edges: Array, earlier: list[Tensor] | None = None, scale: Tensor | None = None
) -> Tensor:
    """Return the counts of the weights, or of their scaled differences from earlier weights, ``[n_edge + 1]``."""
    compiled = _compiled_counts(parameters, edges)
    if compiled is not None:
        return compiled(earlier, 1.0 if scale is None else float(scale))
    total: Tensor | None = None
    for index, bucket in enumerate(parameters.buckets):
        dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        counts = torch.zeros(len(edges) + 1, dtype=torch.int64, device=bucket.device)
        size = tiling.tile_size(bucket, _TILE, _BYTES)
        scratch = torch.empty(min(size, bucket.numel), dtype=dtype, device=bucket.device)
        ones = torch.ones(len(scratch), dtype=torch.int64, device=bucket.device)
        factor = None if scale is None else scale.to(bucket.device, dtype)
        for tile in bucket.tiles(size, across_cells=True):
            values = bucket.read(tile, scratch)
            if earlier is not None and factor is not None:
                there = earlier[index][tile.start : tile.stop].to(bucket.device, non_blocking=True)
                values = (values - there.to(dtype)) * factor
            bins = _bins(values, edges)
            # Do not use `bincount`, because it waits for CUDA.
            counts.scatter_add_(0, bins, ones[: len(bins)])
        total = counts if total is None else total + counts.to(total.device)
    assert total is not None  # nothing to track is refused
    return total


def _bins(values: Tensor, edges: Array) -> Tensor:
    """Return the index of the bin of each value.

    The index follows from the logarithm, which is faster than `bucketize` (``benchmarks/histogram.py``). A value within
    a part in 1e5 of an edge may be counted on the other side.
    """
    n = len(edges) // 2
    place = values.abs().log10_().sub_(math.log10(edges[n])).mul_(_DENSITY).floor_().add_(1).clamp_(0, n)
    return place.copysign_(values).add_(n).nan_to_num_(nan=2 * n).long()


def _inverse_rms(sums: list[Tensor], n: int) -> Tensor:
    """Return one over the root mean square displacement, or 1 if nothing has moved."""
    total = sums[0].sum()
    for others in sums[1:]:
        total = total + others.sum().to(total.device)
    return torch.where(total > 0, (total / n).rsqrt(), torch.ones_like(total))
