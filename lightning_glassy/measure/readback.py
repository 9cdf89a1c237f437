"""Copy small tensors from the device to the host without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

# Number of copies that are usually under way at once. More than these take new memory.
_N_LANDING = 8


class Readback(Generic[T]):
    """Queue of small tensors on their way to the host, each batch with a tag, first in, first out.

    On CUDA, the copy goes into pinned memory, on the stream that makes the tensors. A CUDA event marks its end. The
    memory and the events are made at the start and used again. Only :meth:`drain` waits for a copy. On other devices, a
    batch lands at once, or when its collective is completed.

    Args:
        devices: the devices of the tensors.
        n_bytes: size of a usual tensor. A larger tensor takes new memory when it comes.

    Attributes:
        queue: the batches that have not been taken yet.
    """

    def __init__(self, devices: Iterable[torch.device] = (), n_bytes: int = 0) -> None:
        self.queue: deque[_Batch[T]] = deque()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._free = {
            device: [_Landing(n_bytes) for _ in range(_N_LANDING)] for device in devices if device.type == "cuda"
        }

    def push(
        self,
        tag: T,
        tensors: Sequence[Tensor],
        streams: Mapping[torch.device, torch.cuda.Stream] | None = None,
        work: torch.distributed.Work | None = None,
    ) -> None:
        """Start to copy a batch to the host.

        Args:
            tag: object that is returned with the batch.
            tensors: the batch.
            streams: for each CUDA device, the stream that makes the tensors. Default: the current stream.
            work: a collective that must still finish the tensors.
        """
        landings, hosts = [], []
        for tensor in tensors:
            if tensor.is_cuda:
                landing = self._copy_from_cuda(tensor, (streams or {}).get(tensor.device), work)
                landings.append((tensor.device, landing))
                hosts.append(landing.host)
            else:
                hosts.append(tensor.cpu())
        # A stream waits for the collective on CUDA. On a CPU, a thread finishes the collective.
        on_cpu = None if work is None or len(landings) == len(hosts) else work
        self.queue.append(_Batch(tag, hosts, landings, on_cpu))

    def _copy_from_cuda(
        self, tensor: Tensor, made_on: torch.cuda.Stream | None, work: torch.distributed.Work | None
    ) -> _Landing:
        device, free = tensor.device, self._free.setdefault(tensor.device, [])
        landing = free.pop() if free else _Landing(tensor.nbytes)
        if work is None:
            with nullcontext() if made_on is None else torch.cuda.stream(made_on):
                landing.copy(tensor)
            return landing
        # The training must not wait for the other processes, so another stream waits for the collective.
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side = self._streams[device]
        side.wait_stream(made_on or torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            work.wait()  # with NCCL, this stream waits and not the host
            landing.copy(tensor)
        # The allocator must not reuse this memory for the stream that made the tensor before the copy has read it.
        tensor.record_stream(side)
        return landing

    def landed(self) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """Yield the batches that have arrived, in the order in which they were sent, without waiting.

        A batch stays in the queue until the next batch is requested. A signal handler that interrupts the caller can
        thus still read the batch.
        """
        while self.queue and self.queue[0].landed():
            yield from self._first()

    def drain(self, timeout: float | None = None) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """Yield all batches as :meth:`landed` does, and wait for those under way.

        Args:
            timeout: most seconds to wait. Batches that have not arrived by then are dropped. Set this at the end of a
                run if other processes may have stopped, because a collective may then never finish.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.queue:
            while end is not None and not self.queue[0].landed():
                if time.monotonic() > end:
                    self.queue.clear()
                    return
                time.sleep(0.01)
            yield from self._first()

    def _first(self) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        batch = self.queue[0]
        try:
            yield batch.values()
        finally:
            if self.queue and self.queue[0] is batch:
                self.queue.popleft()
                for device, landing in batch.landings:
                    self._free[device].append(landing)


class _Landing:
    """Pinned memory for one tensor at a time, and an event that marks the end of a copy into it."""

    def __init__(self, n_bytes: int) -> None:
        self._memory = torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.event = torch.cuda.Event()
        self.host = self._memory

    def copy(self, tensor: Tensor) -> None:
        """Start to copy a tensor on the current stream of its device."""
        if len(self._memory) < tensor.nbytes:
            self._memory = torch.empty(tensor.nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.host = self._memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.host.copy_(tensor, non_blocking=True)
        self.event.record(torch.cuda.current_stream(tensor.device))


@dataclass(slots=True)
class _Batch(Generic[T]):
    tag: T
    hosts: list[Tensor]
    landings: list[tuple[torch.device, _Landing]]
    work: torch.distributed.Work | None

    def landed(self) -> bool:
        for _, landing in self.landings:
            if not landing.event.query():
                return False
        return self.work is None or self.work.is_completed()

    def values(self) -> tuple[T, list[NDArray[np.float64]]]:
        for _, landing in self.landings:
            if not landing.event.query():
                landing.event.synchronize()
        if self.work is not None:
            self.work.wait()
        arrays = [(host if host.dtype is torch.float64 else host.double()).numpy() for host in self.hosts]
        # A copy, because the pinned memory is used again.
        return self.tag, [np.array(array) for array in arrays] if self.landings else arrays
