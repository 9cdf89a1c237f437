"""Order work between CUDA streams. The device waits, the host never does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_NOTHING = nullcontext()


def _has_streams(device: torch.device) -> bool:
    return device.type == "cuda"


def side_streams(devices: Iterable[torch.device]) -> dict[torch.device, torch.cuda.Stream]:
    """Return a new stream for each CUDA device among ``devices``."""
    return {device: torch.cuda.Stream(device) for device in dict.fromkeys(devices) if _has_streams(device)}


@contextmanager
def queued_on(streams: Mapping[torch.device, torch.cuda.Stream]) -> Iterator[None]:
    """Queue the work of the ``with`` block on these streams, after all work that the current streams have now.

    The current device stays the same.
    """
    with ExitStack() as entered:
        if streams:
            current = torch.cuda.current_device()
            for device, stream in streams.items():
                stream.wait_stream(torch.cuda.current_stream(device))
                entered.enter_context(torch.cuda.stream(stream))
            entered.enter_context(torch.cuda.device(current))  # a stream brings its own device along
        yield


class FixedStreams:
    """Queue all work on the streams that are current at construction, one for each CUDA device.

    Work on one stream runs in order. Memory that is allocated and used on one stream can be freed at any time, because
    torch reuses it only for later work of this stream. Both facts then hold for everything that the work shares:
    scratch, tables, snapshots and results.

    If another stream is current later, the fixed stream first waits for it, and it waits for the fixed stream
    afterwards. The caller can therefore change the weights right after the block.

    Args:
        devices: the devices of the work. Devices without streams are left out.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._streams = {
            device: torch.cuda.current_stream(device) for device in dict.fromkeys(devices) if _has_streams(device)
        }

    def entered(self) -> AbstractContextManager[None]:
        """Return the context in which to queue the work. It costs nothing if the fixed streams are current."""
        if not self._streams:
            return _NOTHING
        away = {device: own for device, own in self._streams.items() if torch.cuda.current_stream(device) != own}
        return self._instead(away) if away else _NOTHING

    @contextmanager
    def _instead(self, streams: Mapping[torch.device, torch.cuda.Stream]) -> Iterator[None]:
        left = {device: torch.cuda.current_stream(device) for device in streams}
        try:
            with queued_on(streams):
                yield
        finally:
            for device, current in left.items():
                current.wait_stream(streams[device])
