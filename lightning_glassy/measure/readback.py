"""Copy small tensors from the device to the host without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")


class Readback(Generic[T]):
    """Queue of small tensors on their way to the host, each batch with a tag, first in, first out.

    On CUDA, a side stream copies a batch into pinned memory after the work queued so far is done. A CUDA event marks
    the end of the copy. Only :meth:`drain` waits for it. On other devices, a batch lands at once, or when its
    collective is completed.
    """

    def __init__(self) -> None:
        self._queue: deque[_Batch[T]] = deque()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __len__(self) -> int:
        """Return the number of batches that have not been taken yet."""
        return len(self._queue)

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
        hosts, events = [], []
        for tensor in tensors:
            if tensor.is_cuda:
                made_on = (streams or {}).get(tensor.device) or torch.cuda.current_stream(tensor.device)
                host, event = self._copy_from_cuda(tensor, made_on, work)
                events.append(event)
            else:
                host = tensor.cpu()
            hosts.append(host)
        # The side stream waits for the collective on CUDA. On a CPU, a thread finishes the collective.
        on_cpu = work if any(not tensor.is_cuda for tensor in tensors) else None
        self._queue.append(_Batch(tag, hosts, events, on_cpu))

    def _copy_from_cuda(
        self, tensor: Tensor, made_on: torch.cuda.Stream, work: torch.distributed.Work | None
    ) -> tuple[Tensor, torch.cuda.Event]:
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        side = self._streams[tensor.device]
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        side.wait_stream(made_on)
        with torch.cuda.stream(side):
            if work is not None:
                work.wait()  # with NCCL, this stream waits and not the host
            host.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        # The allocator must not reuse this memory for the stream that made the tensor before the copy has read it.
        tensor.record_stream(side)
        return host, event

    def landed(self) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """Yield the batches that have arrived, in the order in which they were sent, without waiting.

        A batch stays in the queue until the next batch is requested. A signal handler that interrupts the caller can
        thus still read the batch.
        """
        while self._queue and self._queue[0].landed():
            yield from self._first()

    def drain(self, timeout: float | None = None) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """Yield all batches as :meth:`landed` does, and wait for those under way.

        Args:
            timeout: most seconds to wait. Batches that have not arrived by then are dropped. Set this at the end of a
                run if other processes may have stopped, because a collective may then never finish.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._queue:
            while end is not None and not self._queue[0].landed():
                if time.monotonic() > end:
                    self._queue.clear()
                    return
                time.sleep(0.01)
            yield from self._first()

    def _first(self) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        batch = self._queue[0]
        try:
            yield batch.values()
        finally:
            if self._queue and self._queue[0] is batch:
                self._queue.popleft()


@dataclass(frozen=True)
class _Batch(Generic[T]):
    tag: T
    hosts: list[Tensor]
    events: list[torch.cuda.Event]
    work: torch.distributed.Work | None

    def landed(self) -> bool:
        return all(event.query() for event in self.events) and (self.work is None or self.work.is_completed())

    def values(self) -> tuple[T, list[NDArray[np.float64]]]:
        for event in self.events:
            event.synchronize()
        if self.work is not None:
            self.work.wait()
        return self.tag, [host.to(torch.float64).numpy() for host in self.hosts]
