r"""How it is measured: the sums over parameters of one event.

The contract of an implementation, so that one can be checked against another:

``implementation(parameters, overlap_thresholds)`` has a method ``own_sums()``, the sums of w^2 and of w as one tensor
``[n_cell, 2]`` per bucket of ``parameters.buckets``, which a snapshot keeps from its capture. It is called with a
list of live snapshots and returns one tensor per bucket, on the bucket's device, ``[n_cell, n_snapshot, n_moment]``.
With :math:`w_i` the current weights, :math:`s_i` those of the snapshot and :math:`d_i = w_i - s_i`, the last axis
holds

    =========================  ==========================================================
    0 ... 6                    the sums named by ``lightning_glassy.record.MOMENTS``:
                               :math:`\sum d^2, \sum d^4, \sum ws, \sum w^2, \sum s^2, \sum w, \sum s`
    7 ... 6 + n_threshold      number of coordinates with :math:`|d| \le \epsilon`, one each
                               (to within the rounding of :math:`\epsilon` to the precision of the weights)
    =========================  ==========================================================

* :math:`d` is a difference of weights, never :math:`w^2 + s^2 - 2ws`: that would lose everything at short lags.
* Weights of fewer bits than float32 are widened first; float64 weights are measured in float64. Sums within a tile may
  be float32, sums over tiles are float64 (float32 on MPS, which has no float64). The relative error of a sum of
  positive terms is at most 1e-6, the error of :math:`\sum ws` at most 1e-6 of :math:`(\sum w^2 + \sum s^2)/2`.
* Nothing waits for the device, no random number is drawn, autograd sees nothing, and the temporary memory is at most
  8 MiB per device, whatever the size of the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lightning_glassy.moments.eager import EagerMoments
from lightning_glassy.parameters import Selected, TrackedParameters
from lightning_glassy.snapshots import Snapshot, SnapshotBank

if TYPE_CHECKING:
    from lightning_glassy.moments.triton import TritonMoments

__all__ = ["EagerMoments", "Moments", "moments_for"]

log = logging.getLogger(__name__)


class Moments(Protocol):
    """An implementation of the contract above."""

    def own_sums(self) -> list[Tensor]:
        """Sums of w^2 and of w, per bucket ``[n_cell, 2]``."""

    def __call__(self, snapshots: Sequence[Snapshot]) -> list[Tensor]:
        """The sums of the current weights against each snapshot, per bucket ``[n_cell, n_snapshot, n_moment]``."""


def moments_for(
    parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
) -> Moments:
    """The fastest implementation that works here: our own kernels where everything is on CUDA, plain torch elsewhere.

    The kernels are compiled and tried on a few numbers first, which takes seconds on a machine that has not run them
    yet, and waits for the device. What stops them is logged, and plain torch serves instead; with the environment
    variable ``LIGHTNING_GLASSY_EAGER=1`` it always does.

    Args:
        parameters: the tracked coordinates.
        overlap_thresholds: the epsilons whose ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone.
    """
    on_cuda = all(bucket.device.type == "cuda" for bucket in parameters.buckets)
    if on_cuda and os.environ.get("LIGHTNING_GLASSY_EAGER", "0") in ("", "0"):
        try:
            # Only here: elsewhere triton may be missing, and is not worth its import.
            from lightning_glassy.moments.triton import TritonMoments

            _rehearse(TritonMoments, parameters, overlap_thresholds, msd_only)
            return TritonMoments(parameters, overlap_thresholds, msd_only=msd_only)
        except Exception as error:  # whatever a compiler, a driver or an older version may raise
            log.warning(
                "lightning_glassy: measuring with plain torch, which is slower, for the GPU kernels do not work here "
                "(%s: %s)",
                type(error).__name__,
                error,
            )
    return EagerMoments(parameters, overlap_thresholds, msd_only=msd_only)


def _rehearse(
    implementation: type[TritonMoments], parameters: TrackedParameters, thresholds: Sequence[float], msd_only: bool
) -> None:
    """Have an implementation measure a few numbers of the same dtypes, on the same devices, sampled or not.

    Raises:
        RuntimeError: the sums are not those of :class:`EagerMoments`.
    """
    path = torch.linspace(-1.0, 1.0, 2100, dtype=torch.float64, device="cpu")
    selected = [
        Selected(f"{index}.{n}", path[:n].to(bucket.dtype).to(bucket.device), ())
        for index, bucket in enumerate(parameters.buckets)
        for n in (2100, 7)
    ]
    sampled = parameters.n_sampled["all"] < parameters.n_parameters["all"]
    few = TrackedParameters(selected, sum(p.numel for p in selected) // 2 if sampled else None)
    ours, plain = (kind(few, thresholds, msd_only=msd_only) for kind in (implementation, EagerMoments))
    pairs = list(zip(ours.own_sums(), plain.own_sums(), strict=True))
    snapshot = SnapshotBank(few).capture(0, ours.own_sums())
    for parameter in selected:
        parameter.tensor.mul_(1.25)
    pairs += zip(ours([snapshot]), plain([snapshot]), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-5, atol=1e-2, equal_nan=True) for a, b in pairs):
        raise RuntimeError("their sums are not those of plain torch")
