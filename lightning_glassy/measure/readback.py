"""From the device to the host without waiting for the device."""

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
    """A queue of small tensors on their way to the host, each batch with a tag, first in, first out.

    On CUDA a batch is copied into pinned memory on a side stream that starts when the work queued so far is done, and
    an event tells when it has landed; nothing is waited for until :meth:`drain`. Elsewhere a batch lands at once.
    """

    def __init__(self) -> None:
        self._queue: deque[_Batch[T]] = deque()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __len__(self) -> int:
        """Number of batches that have not been taken yet."""
        return len(self._queue)

    def push(
        self,
        tag: T,
        tensors: Sequence[Tensor],
        streams: Mapping[torch.device, torch.cuda.Stream] | None = None,
        work: torch.distributed.Work | None = None,
    ) -> None:
        """Send a batch on its way.

        Args:
            tag: what it belongs to.
            tensors: the batch.
            streams: for each CUDA device the stream on which they are made; default the current one.
            work: a collective that is still to finish the tensors.
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
        # What is on CUDA waits for the collective on its stream; on a CPU a thread finishes it.
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
                work.wait()  # of NCCL: makes this stream wait, not the host
            host.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        # The allocator must not hand this memory to the stream it was made on before the copy has read it.
        tensor.record_stream(side)
        return host, event

    def landed(self) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """The batches that have arrived, in the order in which they were sent. Does not wait.

        A batch leaves the queue when the next one is asked for: what interrupts its user finds it there still.
        """
        while self._queue and self._queue[0].landed():
            yield from self._first()

    def drain(self, timeout: float | None = None) -> Iterator[tuple[T, list[NDArray[np.float64]]]]:
        """All batches, as :meth:`landed` gives them; waits for those under way.

        Args:
            timeout: most seconds to wait; what has not arrived by then is given up. For an end in which other processes
                may have stopped, so that a collective never finishes.
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
