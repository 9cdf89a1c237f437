"""The moments in plain torch, tile by tile: any device, no kernel of our own.

A tile is small enough to stay in the cache of a CPU, so that the weights and each snapshot come from memory once and
every further sum reads the cache. What an event costs is measured in ``benchmarks/event.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_glassy.parameters import Bucket, Tile, TrackedParameters
from lightning_glassy.record import MOMENTS
from lightning_glassy.snapshots import Snapshot

# Of the 8 MiB that an event may take; the rest is left to small tensors, and to 16-bit weights gathered from a sample.
_SCRATCH_BYTES = 7 << 20

# d^4 is summed as (2^40 d^2) d^2: unscaled it would leave float32 below |d| = 1e-9, scaled below 3e-13; at the other
# end the sum over a tile of |d| = 3e4 still fits. A power of two, so that it costs no rounding.
_D4_SCALE = 2.0**40

# Of squares that are summed in float32 before they go into a float64 sum.
_ROW = 1024


class EagerMoments:
    """Sums of one event in chunked torch; the contract is in :mod:`lightning_glassy.moments`.

    Args:
        parameters: the tracked coordinates.
        overlap_thresholds: the epsilons whose ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone, in about half of the time; of the other moments only those of the
            snapshot are there, the rest is NaN.
    """

    def __init__(
        self, parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
    ) -> None:
        self._parameters = parameters
        self._thresholds = tuple(overlap_thresholds)
        self._msd_only = msd_only
        self._plans = [_Plan(bucket) for bucket in parameters.buckets]
        # Scratch is kept: fresh pages at each event would cost a CPU as much as a fifth of the event itself.
        self._scratch: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def own_sums(self) -> list[Tensor]:
        """Sums of w^2 and of w, per bucket ``[n_cell, 2]``."""
        result = [self._zeros(bucket, 2) for bucket in self._parameters.buckets]
        for plan, sums in zip(self._plans, result, strict=True):
            tiles, scratch = self._walk(plan)
            for tile in tiles:
                w = plan.bucket.read(tile, scratch[-1])
                sums[tile.cell] += _own_sums(w, scratch[0, : len(w)])
        return result

    @torch.no_grad()
    def __call__(self, snapshots: Sequence[Snapshot]) -> list[Tensor]:
        """The sums of the current weights against each snapshot, per bucket ``[n_cell, n_snapshot, n_moment]``."""
        return [self._measure(plan, index, snapshots) for index, plan in enumerate(self._plans)]

    def _measure(self, plan: _Plan, index: int, snapshots: Sequence[Snapshot]) -> Tensor:
        bucket, own = plan.bucket, self._zeros(plan.bucket, 2)
        pair = self._zeros(bucket, len(snapshots), 1 if self._msd_only else 2 + len(self._thresholds))
        offloaded = any(snapshot.flats[index].device != bucket.device for snapshot in snapshots)
        tiles, scratch = self._walk(plan, offloaded)
        for tile in tiles:
            n = tile.stop - tile.start
            x, y = scratch[0, :n], scratch[1, :n]
            w = bucket.read(tile, scratch[-1])
            if not self._msd_only:
                own[tile.cell] += _own_sums(w, x)
            sums = []
            for snapshot in snapshots:
                s = snapshot.flats[index][tile.start : tile.stop]
                if offloaded or s.dtype != w.dtype:
                    s = scratch[2, :n].copy_(s, non_blocking=True)
                sums += self._pair_sums(w, s, x, y, plan.zero)
            pair[tile.cell] += torch.stack(sums).view(len(snapshots), -1)
        return self._columns(pair, own, torch.stack([snapshot.own_sums[index] for snapshot in snapshots], dim=1))

    def _pair_sums(self, w: Tensor, s: Tensor, x: Tensor, y: Tensor, zero: Tensor) -> list[Tensor]:
        # One pass for (w - s)^2: `torch.nn.functional.mse_loss` has no `out=`, and would allocate a tile each time.
        d2 = torch.ops.aten.mse_loss.out(w, s, 0, out=y)
        # `sum` adds in a cascade; a BLAS dot product over a whole tile would lose up to 6e-6.
        sums = [d2.sum()]
        if self._msd_only:
            return sums
        # d^2 <= eps^2 spares a pass for |d|. Comparing into a float vector is several times faster than into
        # booleans, and a tile has fewer coordinates than the 2^24 that float32 can count.
        counts = [torch.le(d2, eps**2, out=x).sum() for eps in self._thresholds]
        d4 = torch.addcmul(zero, d2, d2, value=_D4_SCALE, out=y)
        return [*sums, d4.sum(), *counts]

    def _columns(self, pair: Tensor, own: Tensor, of_s: Tensor) -> Tensor:
        """Sums of pairs ``[n_cell, n_snapshot, ...]``, of the weights and of the snapshots, in the order of MOMENTS."""
        assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")
        if self._msd_only:
            columns = torch.full_like(pair, torch.nan).repeat(1, 1, len(MOMENTS) + len(self._thresholds))
            columns[..., :1], columns[..., 4], columns[..., 6] = pair, of_s[..., 0], of_s[..., 1]
            return columns
        of_w = own[:, None].expand_as(of_s)
        d2, d4 = pair[..., 0], pair[..., 1] / _D4_SCALE
        # ws = (w^2 + s^2 - d^2)/2 spares a pass, and in this direction the identity is safe: its error is that of the
        # sums, a few 1e-8 of (w^2 + s^2)/2, which bounds |ws|. (d^2 from ws is what would cancel.)
        ws = (of_w[..., 0] + of_s[..., 0] - d2) / 2
        columns = torch.stack([d2, d4, ws, of_w[..., 0], of_s[..., 0], of_w[..., 1], of_s[..., 1]], dim=-1)
        return torch.cat([columns, pair[..., 2:]], dim=-1)

    def _walk(self, plan: _Plan, offloaded: bool = False) -> tuple[list[Tile], Tensor]:
        """The tiles, and scratch ``[n, tile]``: two vectors, one to widen a snapshot, one (last) to gather weights."""
        n, tiles = plan.tiles(offloaded)
        size = max(tile.stop - tile.start for tile in tiles)
        n_bytes, device = n * size * plan.dtype.itemsize, plan.bucket.device
        if device not in self._scratch or len(self._scratch[device]) < n_bytes:
            self._scratch[device] = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        return tiles, self._scratch[device][:n_bytes].view(plan.dtype).view(n, size)

    def _zeros(self, bucket: Bucket, *shape: int) -> Tensor:
        dtype = torch.float32 if bucket.device.type == "mps" else torch.float64
        return torch.zeros(self._parameters.n_cells, *shape, dtype=dtype, device=bucket.device)


class _Plan:
    """How a bucket is walked: the precision of its sums, and its tiles."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        self.zero = torch.zeros((), dtype=self.dtype, device=bucket.device)
        self._tiles: dict[int, list[Tile]] = {}

    def tiles(self, offloaded: bool) -> tuple[int, list[Tile]]:
        """The number of scratch vectors that a tile needs, and tiles as large as they leave room for."""
        widen = offloaded or self.bucket.dtype != self.dtype
        n = 2 + widen + (widen or self.bucket.gathers)
        if n not in self._tiles:
            self._tiles[n] = self.bucket.tiles(_SCRATCH_BYTES // (n * self.dtype.itemsize))
        return n, self._tiles[n]


def _own_sums(values: Tensor, scratch: Tensor) -> Tensor:
    squares = _fine_sum(torch.mul(values, values, out=scratch))
    return torch.stack([squares, values.sum().to(squares.dtype)])


def _fine_sum(values: Tensor) -> Tensor:
    """The sum, in float32 only within rows: 1 - C takes the difference of two such sums, far smaller than either."""
    if values.device.type == "mps":
        return values.sum()
    whole = len(values) // _ROW * _ROW
    rows = values[:whole].view(-1, _ROW).sum(dim=1)
    return rows.to(torch.float64).sum() + values[whole:].sum()
