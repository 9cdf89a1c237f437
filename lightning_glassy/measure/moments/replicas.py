"""Compare replicas that are trained together: distances and products of their weights."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters

# Number of squares per replica that are summed in float32 before they are added to a float64 sum.
_COLUMNS = 4096


class BetweenReplicas:
    r"""Sums over the tracked coordinates of :math:`(w_a - w_b)^2` and of :math:`w_a w_b`, for each pair of replicas.

    Differences are taken before they are squared, so that no precision is lost if clones have hardly moved apart. The
    products follow from the squared distances, :math:`w_a w_b = (w_a^2 + w_b^2 - (w_a - w_b)^2)/2`. This direction is
    safe, because the error of a product is small compared with :math:`(w_a^2 + w_b^2)/2`. float64 weights are summed in
    float64, other weights in float32 within stretches of 4096 coordinates. Nothing waits for the device.

    Args:
        parameters: the tracked coordinates, with replicas.
    """

    def __init__(self, parameters: TrackedParameters) -> None:
        assert parameters.n_replica is not None
        self._n_replica, self._buckets = parameters.n_replica, parameters.buckets
        self._scratch = [
            torch.empty(
                _COLUMNS * self._n_replica,
                dtype=torch.float64 if bucket.dtype == torch.float64 else torch.float32,
                device=bucket.device,
            )
            for bucket in self._buckets
        ]
        self._tiles = [bucket.tiles(len(scratch)) for bucket, scratch in zip(self._buckets, self._scratch, strict=True)]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Return the squared distances of all pairs, then the sum of squares of each replica.

        The pairs are in the order of ``numpy.triu_indices(n_replica, 1)``.
        """
        n, home, dtype = self._n_replica, self._buckets[0].device, self._buckets[0].sum_dtype
        sums = torch.zeros(n * (n - 1) // 2 + n, dtype=dtype, device=home)
        for bucket, scratch, tiles in zip(self._buckets, self._scratch, self._tiles, strict=True):
            for tile in tiles:
                w = bucket.read(tile, scratch)
                of_tile = torch.cat([torch.pdist(w).to(dtype).square_(), w.square().sum(-1).to(dtype)])
                sums += of_tile.to(home, non_blocking=True)
        return sums


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
