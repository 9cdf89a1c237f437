"""Snapshots in host memory, of weights on a device: measured beside the training, which goes on.

The weights of an event are copied within the device, on the stream of the training; that is all the training waits
for. On a side stream the due snapshots are then brought to the device one after the other, each measured against that
copy, and a new snapshot leaves for the host. The order of the streams alone keeps it right: the next event copies the
weights only when the side stream has done with the last ones, and nobody on the host waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshots import Snapshot

if TYPE_CHECKING:
    from lightning_glassy.measure.moments import Moments


class OffloadedMoments:
    """An implementation of the moments for snapshots that are not on the device of the weights.

    It takes two copies of the tracked weights there: of the current ones, and of a snapshot in passing.

    Args:
        parameters: the tracked coordinates.
        make: gives the implementation that measures on the device, for the parameters it is called with.

    Attributes:
        inner: that implementation.
        streams: for each CUDA device the stream on which its sums are made: who takes them must wait for that one.
    """

    def __init__(self, parameters: TrackedParameters, make: Callable[[TrackedParameters], Moments]) -> None:
        self._buckets = parameters.buckets
        self._now = [torch.empty(b.shape, dtype=b.dtype, device=b.device) for b in self._buckets]
        self._passing = [torch.empty_like(flat) for flat in self._now]
        self.inner = make(parameters.over(self._now))
        devices = dict.fromkeys(bucket.device for bucket in self._buckets if bucket.device.type == "cuda")
        self.streams: Mapping[torch.device, torch.cuda.Stream] = {
            device: torch.cuda.Stream(device) for device in devices
        }
        self._outlive(self._now + self._passing)

    @torch.no_grad()
    def __call__(self, snapshots: Sequence[Snapshot], capture: Snapshot | None = None) -> list[Tensor]:
        """The sums of the current weights against each snapshot, per bucket ``[n_cell, n_snapshot, n_moment]``."""
        for device, side in self.streams.items():
            torch.cuda.current_stream(device).wait_stream(side)
        for bucket, flat in zip(self._buckets, self._now, strict=True):
            bucket.copy_to(flat)
        with ExitStack() as beside:
            for device, side in self.streams.items():
                side.wait_stream(torch.cuda.current_stream(device))
                beside.enter_context(torch.cuda.stream(side))
            parts = [self._measure(snapshot) for snapshot in snapshots]
            if capture is not None:
                nothing = self._capture(capture)
            return [torch.cat(of_bucket, dim=1) for of_bucket in zip(*parts, strict=True)] if parts else nothing

    def _measure(self, snapshot: Snapshot) -> list[Tensor]:
        for flat, host in zip(self._passing, snapshot.flats, strict=True):
            flat.copy_(host, non_blocking=True)
        return self.inner([Snapshot(snapshot.waiting_time, self._passing, snapshot.own_sums)])

    def _capture(self, snapshot: Snapshot) -> list[Tensor]:
        self._outlive(snapshot.own_sums)
        nothing = self.inner((), Snapshot(snapshot.waiting_time, self._passing, snapshot.own_sums))
        for flat, host in zip(self._passing, snapshot.flats, strict=True):
            host.copy_(flat, non_blocking=True)
        return nothing

    def _outlive(self, tensors: Sequence[Tensor]) -> None:
        """Have the memory of tensors of the training's stream kept, once freed, until the side stream is done."""
        for tensor in tensors:
            if tensor.device in self.streams:
                tensor.record_stream(self.streams[tensor.device])
