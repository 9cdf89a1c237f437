"""What replicas that are trained together are to each other: distances and products of their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_glassy.parameters import TrackedParameters

_SCRATCH_BYTES = 1 << 20


class BetweenReplicas:
    r"""Sums over the tracked coordinates of :math:`(w_a - w_b)^2` and of :math:`w_a w_b`, for each pair of replicas.

    Differences are taken before they are squared, in float64: of clones that have hardly moved apart nothing is lost.
    The products follow from the distances, :math:`w_a w_b = (w_a^2 + w_b^2 - (w_a - w_b)^2)/2`, which is safe in this
    direction. Nothing waits for the device.

    Args:
        parameters: the tracked coordinates, with replicas.
    """

    def __init__(self, parameters: TrackedParameters) -> None:
        assert parameters.n_replica is not None
        self._n_replica, self._buckets = parameters.n_replica, parameters.buckets
        self._scratch = [
            torch.empty(max(_SCRATCH_BYTES // 8, self._n_replica), dtype=bucket.sum_dtype, device=bucket.device)
            for bucket in self._buckets
        ]
        self._tiles = [bucket.tiles(len(scratch)) for bucket, scratch in zip(self._buckets, self._scratch, strict=True)]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """``[2, n_replica, n_replica]``, float64: distances, then products with the sums of squares on the diagonal."""
        home, n = self._buckets[0].device, self._n_replica
        distances = torch.zeros(n, n, dtype=self._buckets[0].sum_dtype, device=home)
        squares = torch.zeros(n, dtype=distances.dtype, device=home)
        for bucket, scratch, tiles in zip(self._buckets, self._scratch, self._tiles, strict=True):
            for tile in tiles:
                w = bucket.read(tile, scratch)
                # The other mode would take the difference of products.
                apart = torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").square_()
                distances += apart.to(home, non_blocking=True)
                squares += w.square().sum(-1).to(home, non_blocking=True)
        return torch.stack([distances, (squares[:, None] + squares[None, :] - distances) / 2])
