"""Where earlier weights are kept: a bank of flat copies, on the device or offloaded; memory is used again."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.snapshot_files import Stored


class Snapshot:
    """The tracked weights of one step: for each bucket of the parameters one flat tensor, in the bucket's dtype.

    It is made empty; whatever measures the weights fills it in the same reading
    (:mod:`lightning_glassy.measure.moments`).

    Attributes:
        waiting_time: the step at which it was captured.
        flats: per bucket a tensor of its shape: ``[numel]``, or a row for each replica.
        own_sums: per bucket the sums of s^2 and of s over each cell, ``[n_cell, 2]``: taken once, as it never changes.
        last_lag: the lag at which it was last measured; -1 before the first.
        stored: the file that holds it, once there is one.
    """

    def __init__(self, waiting_time: int, flats: list[Tensor], own_sums: list[Tensor]) -> None:
        self.waiting_time = waiting_time
        self.flats = flats
        self.own_sums = own_sums
        self.last_lag = -1
        self.stored: Stored | None = None


class SnapshotBank:
    """The live snapshots, by waiting time.

    Args:
        parameters: what is captured.
        device: where the snapshots are kept; ``None``: with the parameters. ``"cpu"`` for parameters on CUDA uses
            pinned memory, so that copies either way need not be waited for.
    """

    def __init__(self, parameters: TrackedParameters, device: str | torch.device | None = None) -> None:
        self._parameters = parameters
        self._device = None if device is None else torch.device(device)
        self._spare: list[Snapshot] = []
        self.live: dict[int, Snapshot] = {}

    def reserve(self, count: int) -> None:
        """Take the memory of so many snapshots, live ones and spare ones together, before they are captured."""
        while len(self.live) + len(self._spare) < count:
            self._spare.append(self._allocate())

    def add(self, step: int) -> Snapshot:
        """A snapshot for the weights of ``step``, still to be filled; the memory is that of one given up, if any."""
        if self._spare:
            spare = self._spare.pop()
            # A new object: what is still on its way to the host may belong to the old one.
            self.live[step] = Snapshot(step, spare.flats, spare.own_sums)
        else:
            self.live[step] = self._allocate(step)
        return self.live[step]

    def _allocate(self, step: int = -1) -> Snapshot:
        flats, own_sums = [], []
        for bucket in self._parameters.buckets:
            device = self._device or bucket.device
            pinned = device.type == "cpu" and bucket.device.type == "cuda"
            flats.append(torch.empty(bucket.shape, dtype=bucket.dtype, device=device, pin_memory=pinned))
            shape = (self._parameters.n_cells, 2)
            own_sums.append(torch.empty(shape, dtype=bucket.sum_dtype, device=bucket.device))
        return Snapshot(step, flats, own_sums)

    def release(self, waiting_time: int, *, reuse: bool = True) -> None:
        """Give up a snapshot that has had its last lag; the next capture takes its memory.

        Nothing has to be waited for: what is still to be read on the stream comes before what that capture writes.

        Args:
            waiting_time: of the snapshot.
            reuse: ``False`` where no capture is to come: the memory is freed.
        """
        self._spare.append(self.live.pop(waiting_time))
        if not reuse:
            self._spare.clear()

    def clear(self) -> None:
        """Free all snapshots."""
        self.live.clear()
        self._spare.clear()

    def empty(self) -> None:
        """Free the memory of all snapshots, and keep the account of their waiting times and lags."""
        self._spare.clear()
        for snapshot in self.live.values():
            snapshot.flats, snapshot.own_sums = [], []
