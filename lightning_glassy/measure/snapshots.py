"""Keep earlier weights as flat copies, on the device or in host memory, and reuse their memory."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshot_files import Stored


class Snapshot:
    """The tracked weights of one step: for each bucket of the parameters one flat tensor, in the bucket's dtype.

    A new snapshot is empty. The moments (:mod:`lightning_glassy.measure.moments`) fill it in the same pass in which
    they measure the weights.

    Attributes:
        waiting_time: the step at which the snapshot was captured.
        flats: per bucket a tensor of its shape, ``[numel]`` or with one row per replica.
        own_sums: per bucket the sums of s^2 and of s over each cell, ``[n_cell, 2]``. They are computed once, because a
            snapshot never changes.
        last_lag: the last lag at which the snapshot was measured, or -1 before the first measurement.
        next_step: the step at which the snapshot is measured next. The tracker sets it.
        stored: the file that holds the snapshot, or ``None`` if it has no file yet.
    """

    def __init__(self, waiting_time: int, flats: list[Tensor], own_sums: list[Tensor]) -> None:
        self.waiting_time = waiting_time
        self.flats = flats
        self.own_sums = own_sums
        self.last_lag = -1
        self.next_step = sys.maxsize
        self.stored: Stored | None = None


class SnapshotBank:
    """The live snapshots, by waiting time.

    Args:
        parameters: the coordinates to capture.
        device: device of the snapshots, or ``None`` to keep them with the parameters. ``"cpu"`` uses pinned memory for
            parameters on CUDA, so that the host need not wait for copies in either direction.
    """

    def __init__(self, parameters: TrackedParameters, device: str | torch.device | None = None) -> None:
        self._parameters = parameters
        self._device = None if device is None else torch.device(device)
        self._spare: list[Snapshot] = []
        self.live: dict[int, Snapshot] = {}

    def reserve(self, count: int) -> None:
        """Allocate memory for ``count`` snapshots, live and spare together, before they are captured."""
        while len(self.live) + len(self._spare) < count:
            self._spare.append(self.allocate())

    def add(self, step: int) -> Snapshot:
        """Return an empty snapshot for the weights of ``step``. It takes the memory of a spare snapshot, if any."""
        if self._spare:
            spare = self._spare.pop()
            # Make a new object, because sums that are still on their way to the host may refer to the old one.
            self.live[step] = Snapshot(step, spare.flats, spare.own_sums)
        else:
            self.live[step] = self.allocate(step)
        return self.live[step]

    def hold(self, step: int) -> Snapshot:
        """Return a snapshot without weights, for a process that cannot measure and takes part in the sums."""
        self.live[step] = Snapshot(step, [], [])
        return self.live[step]

    def allocate(self, step: int = -1) -> Snapshot:
        """Return an empty snapshot in new memory, which the bank does not keep."""
        flats, own_sums = [], []
        for bucket in self._parameters.buckets:
            device = self._device or bucket.device
            pinned = device.type == "cpu" and bucket.device.type == "cuda"
            flats.append(torch.empty(bucket.shape, dtype=bucket.dtype, device=device, pin_memory=pinned))
            shape = (self._parameters.n_cells, 2)
            own_sums.append(torch.empty(shape, dtype=bucket.sum_dtype, device=bucket.device))
        return Snapshot(step, flats, own_sums)

    def release(self, waiting_time: int, *, reuse: bool = True) -> None:
        """Release a snapshot after its last lag. The next capture reuses its memory.

        No wait is needed. The stream finishes the pending reads of the memory before the next capture writes to it.

        Args:
            waiting_time: waiting time of the snapshot.
            reuse: ``False`` if no capture follows. The memory of all spare snapshots is then freed.
        """
        self._spare.append(self.live.pop(waiting_time))
        if not reuse:
            self._spare.clear()

    def clear(self) -> None:
        """Free all snapshots."""
        self.live.clear()
        self._spare.clear()

    def empty(self) -> None:
        """Free the memory of all snapshots, but keep their waiting times and last lags."""
        self._spare.clear()
        for snapshot in self.live.values():
            snapshot.flats, snapshot.own_sums = [], []
