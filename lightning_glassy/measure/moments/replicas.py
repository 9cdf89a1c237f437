"""Compare replicas that are trained together: distances and products of their weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure import tiling
from lightning_glassy.measure.layout import Bucket, TrackedParameters

# Number of squares per replica that are summed in float32 before they are added to a float64 sum. In the stretches of a
# large tile they are fewer, because `torch.cdist` adds one by one.
_COLUMNS, _STRETCH = 4096, 1024

# Memory of a coordinate of a large tile: the coordinate itself, its place in a stretch, and its square, in float32.
_BYTES = 16


class BetweenReplicas:
    r"""Sums over the tracked coordinates of :math:`(w_a - w_b)^2` and of :math:`w_a w_b`, for each pair of replicas.

    Differences are taken before they are squared, so that no precision is lost if clones have hardly moved apart. The
    products follow from the squared distances, :math:`w_a w_b = (w_a^2 + w_b^2 - (w_a - w_b)^2)/2`. This direction is
    safe, because the error of a product is small compared with :math:`(w_a^2 + w_b^2)/2`. float64 weights are summed in
    float64, other weights in float32 within stretches of at most 4096 coordinates. Nothing waits for the device.

    Args:
        parameters: the tracked coordinates, with replicas.
    """

    def __init__(self, parameters: TrackedParameters) -> None:
        assert parameters.n_replica is not None
        self._n_replica, self._plans = (
            parameters.n_replica,
            [_Plan(b, parameters.n_replica) for b in parameters.buckets],
        )

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the squared distances of all pairs, then the sum of squares of each replica.

        The pairs are in the order of ``numpy.triu_indices(n_replica, 1)``.
        """
        n, first = self._n_replica, self._plans[0].bucket
        home, dtype = first.device, first.sum_dtype
        sums = torch.zeros(n * (n - 1) // 2 + n, dtype=dtype, device=home)
        for plan in self._plans:
            for tile in plan.tiles:
                w = plan.bucket.read(tile, plan.scratch)
                whole = w.shape[1] // _STRETCH * _STRETCH if tiling.few_operations(w.device) else 0
                parts = [plan.stretches(w[:, :whole])] if whole else []
                if whole < w.shape[1]:
                    rest = w[:, whole:]
                    parts.append(torch.cat([torch.pdist(rest).to(dtype).square_(), rest.square().sum(-1).to(dtype)]))
                for of_tile in parts:
                    sums += of_tile.to(home, non_blocking=True)
        return sums


class _Plan:
    """The tiles of a bucket, and the scratch in which weights are gathered or widened."""

    def __init__(self, bucket: Bucket, n_replica: int) -> None:
        self.bucket = bucket
        self.dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        self.tiles = bucket.tiles(tiling.tile_size(bucket, _COLUMNS * n_replica, _BYTES))
        longest = max(tile.stop - tile.start for tile in self.tiles)
        self.scratch = torch.empty(longest * n_replica, dtype=self.dtype, device=bucket.device)
        first, second = np.triu_indices(n_replica, 1)
        self._pairs = torch.as_tensor(first * n_replica + second, device="cpu").to(bucket.device)

    def stretches(self, w: Tensor) -> Tensor:
        """Return the sums over all stretches of a large tile, a whole number of them, in a few operations."""
        rows = w.unflatten(1, (-1, _STRETCH)).transpose(0, 1).contiguous()  # [n_stretch, n_replica, _STRETCH]
        # Without matrix products, which would cancel.
        distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").flatten(1)
        squared = distances.to(self.bucket.sum_dtype).square_().sum(0)
        own = rows.square().sum(-1).sum(0, dtype=self.bucket.sum_dtype)
        return torch.cat([squared.index_select(0, self._pairs), own])


def as_matrices(sums: NDArray[np.float64], n_replica: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared distances and the products of all pairs, each ``[n_replica, n_replica]``.

    Args:
        sums: the sums from :class:`BetweenReplicas`.
        n_replica: number of replicas.
    """
    distances = np.zeros((n_replica, n_replica))
    pairs, squares = np.triu_indices(n_replica, 1), sums[-n_replica:]
    distances[pairs] = sums[:-n_replica]
    distances += distances.T
    return distances, (squares[:, None] + squares[None, :] - distances) / 2
