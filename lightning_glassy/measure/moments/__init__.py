r"""Measure the moments of one event, which are sums over the parameters.

All implementations keep the following contract, so that one can be checked against another.

``implementation(parameters, overlap_thresholds)`` returns an object that is called at each event. The arguments are a
list of live snapshots and, if the weights are to be captured, a new snapshot. The list does not contain the new
snapshot. The call returns one tensor ``[n_cell, n_snapshot, n_moment]`` per bucket of ``parameters.buckets``, on the
device of the bucket. It fills the new snapshot while it reads the weights for the measurement. A snapshot keeps a copy
of the weights and, per bucket, the sums of w^2 and of w as ``[n_cell, 2]``. Let :math:`w_i` be the current weights,
:math:`s_i` the weights of a snapshot, and :math:`d_i = w_i - s_i`. The last axis holds

    =========================  ==========================================================
    0 ... 6                    the sums named by ``lightning_glassy.record.MOMENTS``:
                               :math:`\sum d^2, \sum d^4, \sum ws, \sum w^2, \sum s^2, \sum w, \sum s`
    7 ... 6 + n_threshold      number of coordinates with :math:`|d| \le \epsilon`, one each
                               (to within the rounding of :math:`\epsilon` to the precision of the weights)
    =========================  ==========================================================

* :math:`d^2` is the square of a difference of weights, never :math:`w^2 + s^2 - 2ws`. At short lags, this expression
  would lose all correct digits to cancellation.
* Weights of fewer bits than float32 are widened first. float64 weights are measured in float64. Sums within a tile may
  be float32. Sums over tiles are float64 (float32 on MPS, which has no float64). The relative error of a sum of
  positive terms is at most 1e-6. The error of :math:`\sum ws` is at most 1e-6 of :math:`(\sum w^2 + \sum s^2)/2`.
* Sums of the weights alone have the same bits whether or not snapshots are due. Weights that have not moved therefore
  have a decorrelation of exactly 0.
* Nothing waits for the device, no random number is drawn, and autograd sees nothing. The temporary memory is at most
  8 MiB per device, for a model of any size, or 64 MiB in plain torch on a GPU. Snapshots in host memory need two more
  copies of the weights on the device (:mod:`lightning_glassy.measure.moments.offload`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments.eager import EagerMoments
from lightning_glassy.measure.moments.offload import OffloadedMoments
from lightning_glassy.measure.moments.replicas import BetweenReplicas
from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank

if TYPE_CHECKING:
    from lightning_glassy.measure.moments.cpu import CompiledMoments
    from lightning_glassy.measure.moments.triton import TritonMoments

__all__ = ["EagerMoments", "Moments", "OffloadedMoments", "capture", "moments_for"]

log = logging.getLogger(__name__)


class Moments(Protocol):
    """An implementation of the contract above.

    Attributes:
        streams: the stream that makes the sums, for each CUDA device on which this is not the current stream. The
            memory of the sums belongs to this stream. Another stream that reads them needs ``record_stream``.
    """

    streams: Mapping[torch.device, torch.cuda.Stream]

    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """Return the sums of current weights against each snapshot, ``[n_cell, n_snapshot, n_moment]`` per bucket."""


def capture(bank: SnapshotBank, step: int, moments: Moments) -> Snapshot:
    """Capture the current weights without measuring."""
    snapshot = bank.add(step)
    moments((), snapshot)
    return snapshot


def moments_for(
    parameters: TrackedParameters,
    overlap_thresholds: Sequence[float] = (),
    *,
    msd_only: bool = False,
    snapshot_device: str | torch.device | None = None,
) -> Moments:
    """Return the fastest implementation that works here: our own kernels on CUDA or on a CPU, else plain torch.

    The kernels are first compiled and tried on a few numbers. The trial waits for the device, and it takes seconds on a
    machine that has not run the kernels yet. If the trial fails, the reason is logged and plain torch is used. Set the
    environment variable ``LIGHTNING_GLASSY_EAGER=1`` to always use plain torch. The kernel for a CPU needs numba.

    Args:
        parameters: the tracked coordinates.
        overlap_thresholds: the thresholds eps for which coordinates with ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone.
        snapshot_device: the device of the snapshots. ``None`` means the device of the parameters.
    """

    def on_device(tracked: TrackedParameters) -> Moments:
        place = _place_of_kernels(tracked)
        if place is not None:
            try:
                kernels = _kernels(place)
                _rehearse(kernels, tracked, overlap_thresholds, msd_only)
                return kernels(tracked, overlap_thresholds, msd_only=msd_only)
            except Exception as error:  # a compiler, a driver or an older version may raise anything
                log.warning(
                    "lightning_glassy: measuring with plain torch, which is slower, because the kernels do not "
                    "work here (%s: %s)",
                    type(error).__name__,
                    error,
                )
        return EagerMoments(tracked, overlap_thresholds, msd_only=msd_only)

    kept = None if snapshot_device is None else torch.device(snapshot_device)
    if kept is not None and any(bucket.device.type != kept.type for bucket in parameters.buckets):
        return OffloadedMoments(parameters, on_device)
    return on_device(parameters)


def _place_of_kernels(parameters: TrackedParameters) -> str | None:
    """Return the type of the device for which there are kernels of our own, or ``None``."""
    places = {bucket.device.type for bucket in parameters.buckets}
    if len(places) > 1 or os.environ.get("LIGHTNING_GLASSY_EAGER", "0") not in ("", "0"):
        return None
    if "cpu" in places:
        try:
            import numba  # noqa: F401
        except ImportError as error:
            _tell_once(
                "lightning_glassy: measuring with plain torch. `pip install 'lightning-glassy[cpu]'` makes it several "
                f"times faster ({error})"
            )
            return None
    return next(iter(places & {"cpu", "cuda"}), None)


def _kernels(place: str) -> type[TritonMoments] | type[CompiledMoments]:
    """Return our own implementation for a type of device. Its import takes time, and may fail."""
    if place == "cuda":
        from lightning_glassy.measure.moments.triton import TritonMoments

        return TritonMoments
    from lightning_glassy.measure.moments.cpu import CompiledMoments

    return CompiledMoments


def distances_for(parameters: TrackedParameters) -> Callable[[], Tensor]:
    """Return the fastest function that works here for the distances between replicas, see :class:`BetweenReplicas`."""
    plain = BetweenReplicas(parameters)
    if _place_of_kernels(parameters) == "cpu":
        with contextlib.suppress(Exception):  # the moments have logged why numba does not work
            from lightning_glassy.measure.moments.cpu import CompiledDistances

            ours = CompiledDistances(parameters)
            if torch.allclose(ours(), plain(), rtol=1e-5, equal_nan=True):
                return ours
    return plain


def counts_for(
    parameters: TrackedParameters, edges: NDArray[np.float64]
) -> Callable[[Sequence[Tensor] | None, float], Tensor] | None:
    """Return a fast function that counts weights or displacements in bins, or ``None`` if there is none here.

    The function is :meth:`lightning_glassy.measure.moments.cpu.CompiledCounts.__call__`.
    """
    if _place_of_kernels(parameters) == "cpu":
        with contextlib.suppress(Exception):
            from lightning_glassy.measure.moments.cpu import CompiledCounts

            ours = CompiledCounts(parameters, edges)
            if int(ours().sum()) == sum(bucket.numel for bucket in parameters.buckets):
                return ours
    return None


@lru_cache
def _tell_once(words: str) -> None:
    log.warning("%s", words)


def _rehearse(
    implementation: type[TritonMoments] | type[CompiledMoments],
    parameters: TrackedParameters,
    thresholds: Sequence[float],
    msd_only: bool,
) -> None:
    """Check the sums of an implementation on a few numbers.

    The numbers have the dtypes and the devices of the parameters. They are scattered in memory if some parameters are.

    Raises:
        RuntimeError: the sums differ from the sums of :class:`EagerMoments`.
    """
    path = torch.linspace(-1.0, 1.0, 4208, dtype=torch.float64, device="cpu")
    scattered = any(bucket.scattered for bucket in parameters.buckets)
    tensors = [
        whole[::2] if scattered else whole[:n]
        for bucket in parameters.buckets
        for n in (2104, 7)  # whole rows, a row that ends at a multiple of 16 bytes, and one that does not
        for whole in (path[: 2 * n].to(bucket.dtype).to(bucket.device),)
    ]
    few = TrackedParameters([Selected(str(index), tensor, ()) for index, tensor in enumerate(tensors)])
    ours, plain = (kind(few, thresholds, msd_only=msd_only) for kind in (implementation, EagerMoments))
    first, second, third = (SnapshotBank(few).allocate(step) for step in range(3))
    ours((), first)
    for tensor in tensors:
        tensor.mul_(1.25)
    # Try everything that a run does: captures, measurements, and both at once.
    pairs = list(zip(ours([first], second), plain([first]), strict=True))
    for _ in range(2):  # the second time, the kernels are launched as they were compiled
        pairs += zip(ours([second, first]), plain([second, first]), strict=True)
    plain((), third)
    pairs += zip((*second.own_sums, *second.flats), (*third.own_sums, *third.flats), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-2, equal_nan=True) for a, b in pairs):
        raise RuntimeError("their sums differ from the sums of plain torch")
