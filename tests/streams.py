"""CUDA streams simulated on a CPU, to find work on tensors that is not ordered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeStream:
    """A stream that knows how much work of each stream comes before its next work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock: dict[FakeStream, int] = {self: 0}

    def __repr__(self) -> str:
        return self.name

    def wait_stream(self, other: FakeStream) -> None:
        for stream, count in other.clock.items():
            self.clock[stream] = max(count, self.clock.get(stream, 0))

    def synchronize(self) -> None:
        pass


class FakeStreams(TorchDispatchMode):
    """Put CPU tensors on simulated streams within ``with``.

    Attributes:
        current: the current stream, at first ``default``.
        races: the operations on memory that another stream may be using at the same time.
        used: per memory that was allocated within ``with``: the stream that allocated it, and the other streams that
            use it.
        recorded: per memory, the streams for which ``record_stream`` was called.
        n_waits: number of waits.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.default = self.current = FakeStream("default")
        self.made: list[FakeStream] = []
        self.races: list[str] = []
        self.used: dict[int, tuple[FakeStream, dict[FakeStream, str]]] = {}
        self.recorded: dict[int, set[FakeStream]] = {}
        self._writes: dict[int, tuple[FakeStream, int]] = {}
        self._reads: dict[int, dict[FakeStream, int]] = {}
        self._kept: dict[int, torch.UntypedStorage] = {}  # so that no address is used twice
        monkeypatch.setattr("lightning_glassy.measure.streams._has_streams", lambda device: device.type == "cpu")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "Stream", self.make)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self._record(tensor, stream))

    def make(self, device: object = None) -> FakeStream:
        self.made.append(FakeStream(f"stream {len(self.made) + 1}"))
        return self.made[-1]

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def unrecorded(self, but: Sequence[Tensor] = ()) -> list[str]:
        """Return the uses of memory on streams for which torch's allocator does not wait."""
        left_out = {self._key(tensor) for tensor in but}
        return [
            f"{name} on {stream} of memory of {of}"
            for key, (of, streams) in self.used.items()
            for stream, name in streams.items()
            if stream not in self.recorded.get(key, ()) and key not in left_out
        ]

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        self._kept.setdefault(key, storage)
        return key

    def _record(self, tensor: Tensor, stream: FakeStream) -> None:
        self.recorded.setdefault(self._key(tensor), set()).add(stream)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {self._key(tensor) for tensor in given}
        written, views = set(), False
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None:
                keys = {self._key(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
                written |= keys if argument.alias_info.is_write else set()
                views |= not argument.alias_info.is_write
        fresh = {self._key(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)} - known
        if views and not written and not fresh:
            return result
        stream, name = self.current, str(func)
        stream.clock[stream] += 1
        for key in fresh:
            self.used[key] = (stream, {})
        for key in known | fresh:
            of, streams = self.used.get(key, (stream, {}))
            if of is not stream:
                streams.setdefault(stream, name)
            before = dict([self._writes[key]] if key in self._writes else [])
            if key in written:
                for other, count in self._reads.get(key, {}).items():
                    before[other] = max(count, before.get(other, 0))
            for other, count in before.items():
                if stream.clock.get(other, 0) < count:
                    self.races.append(f"{name} on {stream}, not after {other}")
            if key in written or key in fresh:
                self._writes[key] = (stream, stream.clock[stream])
                self._reads.pop(key, None)
            else:
                self._reads.setdefault(key, {})[stream] = stream.clock[stream]
        return result
