"""The moments in plain torch, tile by tile: any device, no kernel of our own.

A tile is small enough to stay in the cache of a CPU, so that the weights and each snapshot come from memory once and
every further sum reads the cache. What an event costs is measured in ``benchmarks/event.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_glassy.measure.layout import Bucket, Tile, TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.record import MOMENTS

# What a tile works in; it stays in the second cache of two cores. Less would be more calls, more would leave the cache.
_SCRATCH_BYTES = 3 << 20

# d^4 is summed as (2^40 d^2) d^2: unscaled it would leave float32 below |d| = 1e-9, scaled below 3e-13; at the other
# end the sum over a tile of |d| = 3e4 still fits. A power of two, so that it costs no rounding.
_D4_SCALE = 2.0**40

# Of squares that are summed in float32 before they go into a float64 sum.
_ROW = 1024


class EagerMoments:
    """Sums of one event in chunked torch; the contract is in :mod:`lightning_glassy.measure.moments`.

    Args:
        parameters: the tracked coordinates.
        overlap_thresholds: the epsilons whose ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone, in about half of the time; of the other moments only those of the
            snapshot are there, the rest is NaN.
    """

    streams: Mapping[torch.device, torch.cuda.Stream] = {}

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
    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """The sums of the current weights against each snapshot, per bucket ``[n_cell, n_snapshot, n_moment]``."""
        return [self._measure(plan, index, snapshots, capture) for index, plan in enumerate(self._plans)]

    def _measure(self, plan: _Plan, index: int, snapshots: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        bucket, own = plan.bucket, self._zeros(plan.bucket, 2)
        pair = self._zeros(bucket, len(snapshots), 1 if self._msd_only else 2 + len(self._thresholds))
        # A tile has a row for each replica, and so have its sums.
        n_replica = self._parameters.n_replica or 1
        own_rows, pair_rows = own.unflatten(0, (-1, n_replica)), pair.unflatten(0, (-1, n_replica))
        tiles, scratch = self._walk(plan)
        for tile in tiles:
            n = tile.stop - tile.start
            x, y = bucket.rows(scratch[0], n), bucket.rows(scratch[1], n)
            w = bucket.read(tile, scratch[-1])
            if capture is not None or not self._msd_only:
                own_rows[tile.cell] += _own_sums(w, x)
            sums = []
            for snapshot in snapshots:
                s = snapshot.flats[index][..., tile.start : tile.stop]
                if s.dtype != w.dtype:
                    s = bucket.rows(scratch[2], n).copy_(s)
                sums += self._pair_sums(w, s, x, y, plan.zero)
            if sums:
                pair_rows[tile.cell] += torch.stack(sums, dim=-1).view(n_replica, len(snapshots), -1)
        if capture is not None:
            bucket.copy_to(capture.flats[index])
            capture.own_sums[index].copy_(own)
        return self._columns(pair, own, [snapshot.own_sums[index] for snapshot in snapshots])

    @torch.no_grad()
    def own_sums(self) -> list[Tensor]:
        """The sums of w^2 and of w alone, as a snapshot has them: per bucket ``[n_cell, 2]``."""
        n_replica, found = self._parameters.n_replica or 1, []
        for plan in self._plans:
            own = self._zeros(plan.bucket, 2)
            rows = own.unflatten(0, (-1, n_replica))
            tiles, scratch = self._walk(plan)
            for tile in tiles:
                w = plan.bucket.read(tile, scratch[-1])
                rows[tile.cell] += _own_sums(w, plan.bucket.rows(scratch[0], tile.stop - tile.start))
            found.append(own)
        return found

    def _pair_sums(self, w: Tensor, s: Tensor, x: Tensor, y: Tensor, zero: Tensor) -> list[Tensor]:
        # One pass for (w - s)^2: `torch.nn.functional.mse_loss` has no `out=`, and would allocate a tile each time.
        d2 = torch.ops.aten.mse_loss.out(w, s, 0, out=y)
        # `sum` adds in a cascade; a BLAS dot product over a whole tile would lose up to 6e-6.
        sums = [d2.sum(-1)]
        if self._msd_only:
            return sums
        # d^2 <= eps^2 spares a pass for |d|. Comparing into a float vector is several times faster than into
        # booleans, and a tile has fewer coordinates than the 2^24 that float32 can count.
        counts = [torch.le(d2, eps**2, out=x).sum(-1) for eps in self._thresholds]
        d4 = torch.addcmul(zero, d2, d2, value=_D4_SCALE, out=y)
        return [*sums, d4.sum(-1), *counts]

    def _columns(self, pair: Tensor, own: Tensor, of_s: list[Tensor]) -> Tensor:
        """Sums of pairs ``[n_cell, n_snapshot, ...]``, of the weights and of the snapshots, in the order of MOMENTS."""
        assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")
        result = pair.new_full((*pair.shape[:2], len(MOMENTS) + len(self._thresholds)), torch.nan)
        if not of_s:
            return result
        s2, s = torch.stack(of_s, dim=1).unbind(-1)
        d2 = pair[..., 0]
        result[..., 0], result[..., 4], result[..., 6] = d2, s2, s
        if not self._msd_only:
            w2, w = own[:, None, 0], own[:, None, 1]
            result[..., 1], result[..., 3], result[..., 5] = pair[..., 1] / _D4_SCALE, w2, w
            # ws = (w^2 + s^2 - d^2)/2 spares a pass, and in this direction the identity is safe: its error is that of
            # the sums, a few 1e-8 of (w^2 + s^2)/2, which bounds |ws|. (d^2 from ws is what would cancel.)
            result[..., 2] = (w2 + s2 - d2) / 2
            result[..., len(MOMENTS) :] = pair[..., 2:]
        return result

    def _walk(self, plan: _Plan) -> tuple[list[Tile], Tensor]:
        """The tiles, and scratch ``[n, tile]``: two vectors, one to widen a snapshot, one (last) to gather weights."""
        size = max(tile.stop - tile.start for tile in plan.tiles) * (self._parameters.n_replica or 1)
        n_bytes, device = plan.n_scratch * size * plan.dtype.itemsize, plan.bucket.device
        if device not in self._scratch or len(self._scratch[device]) < n_bytes:
            self._scratch[device] = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        return plan.tiles, self._scratch[device][:n_bytes].view(plan.dtype).view(plan.n_scratch, size)

    def _zeros(self, bucket: Bucket, *shape: int) -> Tensor:
        return torch.zeros(self._parameters.n_cells, *shape, dtype=bucket.sum_dtype, device=bucket.device)


class _Plan:
    """How a bucket is walked: the precision of its sums, the scratch vectors of a tile, and tiles as large as fit."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        self.zero = torch.zeros((), dtype=self.dtype, device=bucket.device)
        widen = bucket.dtype != self.dtype
        self.n_scratch = 2 + widen + (widen or bucket.gathers)
        self.tiles = bucket.tiles(_SCRATCH_BYTES // (self.n_scratch * self.dtype.itemsize))


def _own_sums(values: Tensor, scratch: Tensor) -> Tensor:
    squares = _fine_sum(torch.mul(values, values, out=scratch))
    return torch.stack([squares, values.sum(-1).to(squares.dtype)], dim=-1)


def _fine_sum(values: Tensor) -> Tensor:
    """The sum, in float32 only within rows: 1 - C takes the difference of two such sums, far smaller than either."""
    if values.device.type == "mps":
        return values.sum(-1)
    n = values.shape[-1]
    whole = n // _ROW * _ROW
    rows: Tensor = values[..., :whole].unflatten(-1, (whole // _ROW, _ROW))
    total = rows.sum(-1).sum(-1, dtype=torch.float64)
    return total if whole == n else total + values[..., whole:].sum(-1)
