"""A Triton driver for machines without a GPU. It compiles kernels for a real GPU, and only counts their launches.

The driver serves two purposes: to time the Python part of a launch (``python -m benchmarks host``), and to fill a cache
of compiled kernels that a machine with a GPU reads later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Compute capability 9.0 (H100, H200), and the largest shared memory of a block there.
TARGET, SHARED_BYTES = GPUTarget("cuda", 90, 32), 232_448


@dataclass
class Seen:
    """Launches and compilations that the fake driver has counted since the process started.

    Attributes:
        launches: number of launches by name of the kernel.
        compiled: requested kernels in order, each with its name and whether the cache had it.
    """

    launches: Counter[str] = field(default_factory=Counter)
    compiled: list[tuple[str, bool]] = field(default_factory=list)


class _Utils:
    """Loads nothing, and returns zeros in the form of the real loader.

    The form is: module, function, registers, spills, largest number of threads.
    """

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132}


# One object for the whole process, because a compiled kernel keeps its launcher after its context has ended.
SEEN = Seen()


class _Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: Any) -> None:
        SEEN.launches[self.name] += 1
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                argument.data_ptr()  # the real launcher does this, too


class _Driver:
    """The part of a driver that Triton uses between the call of a kernel and its launch."""

    binary_ext = "cubin"

    def __init__(self) -> None:
        self.utils, self.launcher_cls = _Utils(), _Launcher

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def is_active(self) -> bool:
        return True

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextmanager
def fake_driver() -> Iterator[Seen]:
    """Let Triton compile for TARGET and launch nothing within this context. Tensors may be on a CPU within it."""
    before, listener = driver._active, triton.knobs.compilation.listener

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        SEEN.compiled.append((src.name, cache_hit))

    driver.set_active(_Driver())
    triton.knobs.compilation.listener = listen
    try:
        yield SEEN
    finally:
        driver.set_active(before)
        triton.knobs.compilation.listener = listener
