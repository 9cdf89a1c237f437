"""Measure weights on a device against snapshots in host memory, while the training goes on.

At an event, the weights are copied within the device, on the stream of the training. The training waits only for this
copy. A side stream then brings the due snapshots to the device one after the other and measures the copy against each.
It also sends a new snapshot to the host. The order of the streams is enough to keep the results correct: the next event
copies the weights only after the side stream has finished with the last copy. The host never waits.

torch reuses freed memory for the stream that allocated it, without regard to other streams. The implementation that
measures is therefore made and called on the side stream. All its memory (scratch, tables, sums) and the copy of a
snapshot belong to this stream. Only the copy of the weights and the sums of the snapshots cross from the stream of the
training. They are recorded with ``record_stream``. A reader of the returned sums must do the same for its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot
from lightning_glassy.measure.streams import queued_on, side_streams

if TYPE_CHECKING:
    from lightning_glassy.measure.moments import Moments


class OffloadedMoments:
    """Moments of one event for snapshots that are not on the device of the weights.

    Memory for two copies of the tracked weights is taken on the device: one of the current weights, one of the snapshot
    that is being measured or captured.

    Args:
        parameters: the tracked coordinates.
        make: function of tracked parameters that returns the implementation for measuring on the device.

    Attributes:
        inner: the implementation that measures on the device.
        streams: for each CUDA device, the side stream that makes the sums. Wait for this stream before using the sums.
    """

    def __init__(self, parameters: TrackedParameters, make: Callable[[TrackedParameters], Moments]) -> None:
        self._buckets = parameters.buckets
        self.streams: Mapping[torch.device, torch.cuda.Stream] = side_streams(b.device for b in self._buckets)
        self._now = [torch.empty(b.shape, dtype=b.dtype, device=b.device) for b in self._buckets]
        self._outlive(self._now)
        with queued_on(self.streams):
            self._passing = [torch.empty_like(flat) for flat in self._now]
            self.inner = make(parameters.over(self._now))

    @torch.no_grad()
    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """Return the sums of current weights against each snapshot, ``[n_cell, n_snapshot, n_moment]`` per bucket."""
        for device, side in self.streams.items():
            torch.cuda.current_stream(device).wait_stream(side)
        for bucket, flat in zip(self._buckets, self._now, strict=True):
            bucket.copy_to(flat)
        for snapshot in (*snapshots, *(() if capture is None else (capture,))):
            self._outlive(snapshot.own_sums)
        with queued_on(self.streams):
            parts = [self._measure(snapshot) for snapshot in snapshots]
            if capture is not None:
                nothing = self._capture(capture)
            return [torch.cat(of_bucket, dim=1) for of_bucket in zip(*parts, strict=True)] if parts else nothing

    def _measure(self, snapshot: Snapshot) -> list[Tensor]:
        for flat, host in zip(self._passing, snapshot.flats, strict=True):
            flat.copy_(host, non_blocking=True)
        return self.inner([Snapshot(snapshot.waiting_time, self._passing, snapshot.own_sums)])

    def _capture(self, snapshot: Snapshot) -> list[Tensor]:
        nothing = self.inner((), Snapshot(snapshot.waiting_time, self._passing, snapshot.own_sums))
        for flat, host in zip(self._passing, snapshot.flats, strict=True):
            host.copy_(flat, non_blocking=True)
        return nothing

    def _outlive(self, tensors: Sequence[Tensor]) -> None:
        """Keep torch from reusing the memory of these tensors before the side stream has finished with them."""
        for tensor in tensors:
            if tensor.device in self.streams:
                tensor.record_stream(self.streams[tensor.device])
