"""Measure the moments in plain torch, tile by tile, on any device and without a kernel of our own.

It runs where our kernels do not. On a CPU, a tile is small enough for the cache. The weights and each snapshot are read
from memory once, and every further sum reads the cache. On a GPU, the tiles are large
(:mod:`lightning_glassy.measure.tiling`). ``benchmarks/event.py`` measures the cost of an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_glassy.measure import tiling
from lightning_glassy.measure.layout import Bucket, Tile, TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.record import MOMENTS

# Scratch memory of a tile on a CPU. This much stays in the second-level cache of two cores. Smaller tiles would need
# more calls, and larger tiles would leave the cache.
_SCRATCH_BYTES = 3 << 20

# d^4 is summed as (2^40 d^2) d^2. It leaves the range of float32 below |d| = 3e-13, and without the factor below 3e-10.
# At the other end, the sum over a tile of |d| = 3e4 still fits. A power of two costs no rounding.
D4_SCALE = 2.0**40

# Number of squares that are summed in float32 before they are added to a float64 sum.
_ROW = 1024


class EagerMoments:
    """Moments of one event in plain torch, tile by tile. The contract is in :mod:`lightning_glassy.measure.moments`.

    Args:
        parameters: the tracked coordinates.
        overlap_thresholds: the thresholds eps for which coordinates with ``|d| <= eps`` are counted.
        msd_only: compute the sum of d^2 alone, in about half of the time. The sums of the snapshot, s^2 and s, are
            returned too. All other moments are NaN.
    """

    streams: Mapping[torch.device, torch.cuda.Stream] = {}

    def __init__(
        self, parameters: TrackedParameters, overlap_thresholds: Sequence[float] = (), *, msd_only: bool = False
    ) -> None:
        self._parameters = parameters
        self._thresholds = tuple(overlap_thresholds)
        self._msd_only = msd_only
        self._eps = None if msd_only else self._thresholds
        self._plans = [_Plan(bucket) for bucket in parameters.buckets]
        # Keep the scratch memory. On a CPU, fresh memory pages at each event would cost up to a fifth of the event.
        self._scratch: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """Return the sums of current weights against each snapshot, ``[n_cell, n_snapshot, n_moment]`` per bucket."""
        return [self._measure(plan, index, snapshots, capture) for index, plan in enumerate(self._plans)]

    def _measure(self, plan: _Plan, index: int, snapshots: Sequence[Snapshot], capture: Snapshot | None) -> Tensor:
        bucket, own = plan.bucket, self._zeros(plan.bucket, 2)
        pair = self._zeros(bucket, len(snapshots), 1 if self._msd_only else 2 + len(self._thresholds))
        # A tile and its sums have one row for each replica.
        n_replica = self._parameters.n_replica or 1
        own_rows, pair_rows = own.unflatten(0, (-1, n_replica)), pair.unflatten(0, (-1, n_replica))
        tiles, scratch = self._walk(plan)
        for tile in tiles:
            n = tile.stop - tile.start
            x, y = bucket.rows(scratch[0], n), bucket.rows(scratch[1], n)
            w = bucket.read(tile, scratch[-1])
            if capture is not None or not self._msd_only:
                own_rows[tile.cell] += own_sums(w, x)
            sums = []
            for snapshot in snapshots:
                s = snapshot.flats[index][..., tile.start : tile.stop]
                if s.dtype != w.dtype:
                    s = bucket.rows(scratch[2], n).copy_(s)
                sums += pair_sums(w, s, self._eps, x, y, plan.zero)
            if sums:
                pair_rows[tile.cell] += torch.stack(sums, dim=-1).view(n_replica, len(snapshots), -1)
        if capture is not None:
            bucket.copy_to(capture.flats[index])
            capture.own_sums[index].copy_(own)
        if not snapshots:
            return pair.new_empty(len(pair), 0, len(MOMENTS) + len(self._thresholds))
        of_s = torch.stack([snapshot.own_sums[index] for snapshot in snapshots], dim=1)
        return in_columns(pair, own[:, None], of_s, len(self._thresholds))

    @torch.no_grad()
    def own_sums(self) -> list[Tensor]:
        """Return the sums of w^2 and of w alone, ``[n_cell, 2]`` per bucket, as a snapshot keeps them."""
        n_replica, found = self._parameters.n_replica or 1, []
        for plan in self._plans:
            own = self._zeros(plan.bucket, 2)
            rows = own.unflatten(0, (-1, n_replica))
            tiles, scratch = self._walk(plan)
            for tile in tiles:
                w = plan.bucket.read(tile, scratch[-1])
                rows[tile.cell] += own_sums(w, plan.bucket.rows(scratch[0], tile.stop - tile.start))
            found.append(own)
        return found

    def _walk(self, plan: _Plan) -> tuple[list[Tile], Tensor]:
        """Return the tiles and the scratch ``[n_scratch, tile]``.

        The first two scratch vectors hold intermediate results. If a bucket needs them, one more vector widens a
        snapshot, and the last vector gathers or widens the weights.
        """
        size = max(tile.stop - tile.start for tile in plan.tiles) * (self._parameters.n_replica or 1)
        n_bytes, device = plan.n_scratch * size * plan.dtype.itemsize, plan.bucket.device
        if device not in self._scratch or len(self._scratch[device]) < n_bytes:
            self._scratch[device] = torch.empty(n_bytes, dtype=torch.uint8, device=device)
        return plan.tiles, self._scratch[device][:n_bytes].view(plan.dtype).view(plan.n_scratch, size)

    def _zeros(self, bucket: Bucket, *shape: int) -> Tensor:
        return torch.zeros(self._parameters.n_cells, *shape, dtype=bucket.sum_dtype, device=bucket.device)


class _Plan:
    """The precision, the number of scratch vectors, and the tiles with which a bucket is measured.

    Tiles are as large as the scratch memory allows.
    """

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.dtype = torch.float64 if bucket.dtype == torch.float64 else torch.float32
        self.zero = torch.zeros((), dtype=self.dtype, device=bucket.device)
        widen = bucket.dtype != self.dtype
        self.n_scratch = 2 + widen + (widen or bucket.gathers)
        n_bytes = self.n_scratch * self.dtype.itemsize
        self.tiles = bucket.tiles(tiling.tile_size(bucket, _SCRATCH_BYTES // n_bytes, n_bytes))


def pair_sums(
    w: Tensor, s: Tensor, thresholds: Sequence[float] | None, x: Tensor, y: Tensor, zero: Tensor
) -> list[Tensor]:
    """Return sums over the last axis: of d^2, of d^4 times a constant, and one count per threshold.

    :func:`in_columns` takes the constant out again. Each row has the bits that it would have alone.

    Args:
        w: weights, ``[..., n]``, float32 or float64.
        s: weights of the snapshot, of the same shape.
        thresholds: the thresholds eps. ``None`` means the sum of d^2 alone.
        x: scratch of the same shape, contiguous in the last axis. It may hold ``w``.
        y: more scratch.
        zero: 0 of the same dtype, on the same device.
    """
    # Compute (w - s)^2 in one pass. `torch.nn.functional.mse_loss` has no `out=` and would allocate each tile.
    d2 = torch.ops.aten.mse_loss.out(w, s, 0, out=y)
    # On a CPU, `sum` adds in a cascade. A BLAS dot product over a whole tile would have a relative error of up to
    # 6e-6. On a GPU, each thread adds many squares one by one, so rows are summed first.
    total = _fine_sum if tiling.few_operations(d2.device) else _sum
    sums = [total(d2)]
    if thresholds is None:
        return sums
    # Comparing d^2 with eps^2 saves a pass for |d|. Writing the result as floats is several times faster than writing
    # booleans. float32 counts up to 2^24, and a tile has fewer coordinates.
    counts = [torch.le(d2, eps**2, out=x).sum(-1) for eps in thresholds]
    d4 = torch.addcmul(zero, d2, d2, value=D4_SCALE, out=y)
    return [*sums, total(d4), *counts]


def own_sums(values: Tensor, scratch: Tensor) -> Tensor:
    """Return the sums of w^2 and of w over the last axis, ``[..., 2]``, in float64 (on MPS in float32)."""
    squares = _fine_sum(torch.mul(values, values, out=scratch))
    return torch.stack([squares, values.sum(-1).to(squares.dtype)], dim=-1)


def in_columns(pair: Tensor, own_w: Tensor, own_s: Tensor, n_threshold: int) -> Tensor:
    """Arrange sums in the order of MOMENTS, followed by one count per threshold.

    Args:
        pair: sums over the tiles of :func:`pair_sums`, ``[n_cell, n_pair, n_sum]``.
        own_w: sums of :func:`own_sums` of the weights, ``[n_cell, n_pair or 1, 2]``.
        own_s: the same of the snapshots, ``[n_cell, n_pair, 2]``.
        n_threshold: number of thresholds.
    """
    assert MOMENTS == ("d2", "d4", "ws", "w2", "s2", "w", "s")
    result = pair.new_full((*pair.shape[:2], len(MOMENTS) + n_threshold), torch.nan)
    d2 = pair[..., 0]
    result[..., 0], result[..., 4], result[..., 6] = d2, own_s[..., 0], own_s[..., 1]
    if pair.shape[-1] > 1:
        w2 = own_w[..., 0]
        result[..., 1], result[..., 3], result[..., 5] = pair[..., 1] / D4_SCALE, w2, own_w[..., 1]
        # ws = (w^2 + s^2 - d^2)/2 saves a pass and is safe. Its error is the error of the sums, a few 1e-8 of
        # (w^2 + s^2)/2, which bounds |ws|. Only the other direction, d^2 from ws, would suffer from cancellation.
        result[..., 2] = (w2 + own_s[..., 0] - d2) / 2
        result[..., len(MOMENTS) :] = pair[..., 2:]
    return result


def _sum(values: Tensor) -> Tensor:
    return values.sum(-1)


def _fine_sum(values: Tensor) -> Tensor:
    """Return the sum over the last axis, in float64 across rows of 1024 values (on MPS all in float32).

    The decorrelation 1 - C needs this precision. It is a difference of two such sums and far smaller than either.
    """
    if values.device.type == "mps":
        return values.sum(-1)
    n = values.shape[-1]
    whole = n // _ROW * _ROW
    rows: Tensor = values[..., :whole].unflatten(-1, (whole // _ROW, _ROW))
    total = rows.sum(-1).sum(-1, dtype=torch.float64)
    return total if whole == n else total + values[..., whole:].sum(-1)
