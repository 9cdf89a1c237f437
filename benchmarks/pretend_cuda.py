"""A pretended GPU on a CPU: the calls of torch.cuda that the benchmarks make, with the signatures of torch.

The tests use it to run the branches for CUDA, and to compile kernels exactly as for a GPU. Do not time anything with
it, because it slows down torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from lightning_glassy.measure.layout import TrackedParameters

NAME = "Pretended GPU"


class Event:
    """Notes the time of the host."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.enable_timing = enable_timing
        self.at: float | None = None

    def record(self, stream: Any = None) -> None:
        """Note the time."""
        self.at = time.perf_counter()

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds until another event."""
        assert self.enable_timing
        assert end_event.enable_timing
        assert self.at is not None
        assert end_event.at is not None
        return 1000 * max(end_event.at - self.at, 1e-6)


class OnTheCpu(TorchFunctionMode):
    """Puts tensors on the CPU if a call of torch names CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*map(_moved, args), **{name: _moved(value) for name, value in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    meant = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cpu") if meant else value


@contextmanager
def pretend_cuda() -> Iterator[SimpleNamespace]:
    """Let the calls below work within this context. Yield the requested sleeps and the requested sync debug modes."""
    asked = SimpleNamespace(sleeps=[], modes=[])

    def sleep(cycles: int) -> None:
        assert type(cycles) is int
        assert cycles >= 0
        asked.sleeps.append(cycles)

    def set_mode(debug_mode: int | str) -> None:
        assert debug_mode in ("default", "warn", "error")
        asked.modes.append(debug_mode)

    properties = SimpleNamespace(
        name=NAME,
        major=9,
        minor=0,
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
    )
    profile = torch.profiler.profile
    with ExitStack() as stack, OnTheCpu():
        for name, call in {
            "Event": Event,
            "_sleep": sleep,
            "synchronize": lambda device=None: None,
            "get_device_name": lambda device=None: NAME,
            "get_device_properties": lambda device=None: properties,
            "get_device_capability": lambda device=None: (9, 0),
            "current_device": lambda: 0,
            "device": lambda device: nullcontext(),
            "device_count": lambda: 1,
            "set_sync_debug_mode": set_mode,
            "reset_peak_memory_stats": lambda device=None: None,
            "mem_get_info": lambda device=None: (60 << 30, 80 << 30),
            "max_memory_allocated": lambda device=None: 1 << 20,
        }.items():
            assert hasattr(torch.cuda, name)
            stack.enter_context(patch.object(torch.cuda, name, call))
        cpu = [torch.profiler.ProfilerActivity.CPU]
        stack.enter_context(patch.object(torch.profiler, "profile", lambda activities: profile(activities=cpu)))
        yield asked


def on_cuda(tracked: TrackedParameters) -> TrackedParameters:
    """Mark tracked parameters as being on CUDA, so that the same kernels are chosen as on CUDA."""
    for bucket in tracked.buckets:
        bucket.device = torch.device("cuda", 0)
    return tracked
