"""From the device to the host without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
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
        self._queue: deque[tuple[T, list[Tensor], list[torch.cuda.Event]]] = deque()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __len__(self) -> int:
        """Number of batches that have not been taken yet."""
        return len(self._queue)

    def push(
        self, tag: T, tensors: Sequence[Tensor], streams: Mapping[torch.device, torch.cuda.Stream] | None = None
    ) -> None:
        """Send a batch on its way.

        Args:
            tag: what it belongs to.
            tensors: the batch.
            streams: for each CUDA device the stream on which they are made; default the current one.
        """
        hosts, events = [], []
        for tensor in tensors:
            if tensor.is_cuda:
                made_on = (streams or {}).get(tensor.device) or torch.cuda.current_stream(tensor.device)
                host, event = self._copy_from_cuda(tensor, made_on)
                events.append(event)
            else:
                host = tensor.cpu()
            hosts.append(host)
        self._queue.append((tag, hosts, events))

    def _copy_from_cuda(self, tensor: Tensor, made_on: torch.cuda.Stream) -> tuple[Tensor, torch.cuda.Event]:
        if tensor.device not in self._streams:
            self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        side = self._streams[tensor.device]
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        side.wait_stream(made_on)
        with torch.cuda.stream(side):
            host.copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()
            event.record(side)
        # The allocator must not hand this memory to the stream it was made on before the copy has read it.
        tensor.record_stream(side)
        return host, event

    def landed(self) -> list[tuple[T, list[NDArray[np.float64]]]]:
        """The batches that have arrived, in the order in which they were sent. Does not wait."""
        batches = []
        while self._queue and all(event.query() for event in self._queue[0][2]):
            batches.append(self._take())
        return batches

    def drain(self) -> list[tuple[T, list[NDArray[np.float64]]]]:
        """All batches; waits for those under way."""
        batches = []
        while self._queue:
            for event in self._queue[0][2]:
                event.synchronize()
            batches.append(self._take())
        return batches

    def _take(self) -> tuple[T, list[NDArray[np.float64]]]:
        tag, hosts, _ = self._queue.popleft()
        return tag, [host.to(torch.float64).numpy() for host in hosts]
