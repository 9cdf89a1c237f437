"""Plan how many coordinates fit into memory before any memory is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.shards import Processes

SAFE_FRACTION = 0.1
"""Fraction of a device's free memory that ``sample="auto"`` gives to the snapshots, if ``max_memory`` is not lower."""


def plan_sample(
    selected: Sequence[Selected],
    capacity: int,
    *,
    sample: int | str | None = "auto",
    device: str | torch.device | None = None,
    max_memory: int | None = None,
    processes: Processes | None = None,
) -> tuple[int | None, int]:
    """Choose how many coordinates to sample so that ``capacity`` snapshots fit, before any memory is taken.

    Args:
        selected: the tracked parameters.
        capacity: largest number of snapshots that are held at once.
        sample: a number of coordinates, ``None`` for all coordinates, or ``"auto"``. ``"auto"`` takes all coordinates
            if the snapshots fit in ``max_memory`` and in a tenth of the free memory of their device, otherwise as many
            as fit.
        device: ``"cpu"`` for host memory, or ``None`` to keep the snapshots with the parameters.
        max_memory: most bytes that the snapshots may take in this process. ``None`` allows the free memory of their
            device.
        processes: the processes that together hold the parameters. The smallest number of all processes is used.

    Returns:
        The number of coordinates to sample (``None`` for all), and the bytes that the snapshots take in this process.

    Raises:
        MemoryError: the snapshots do not fit, or their copies do not fit on the device of the weights. The message
            names the remedies.
    """
    plan = _Plan(selected, capacity, device, max_memory)
    n = plan.fit(sample) if processes is None else min(processes.gather(processes.together(lambda: plan.fit(sample))))
    return (None if n == plan.total else n), plan.footprint(n)


class _Plan:
    """The memory of the snapshots in this process, and the number of coordinates that fit."""

    def __init__(
        self,
        selected: Sequence[Selected],
        capacity: int,
        device: str | torch.device | None,
        max_memory: int | None,
    ) -> None:
        self.total = sum(parameter.numel for parameter in selected)
        self._capacity, self._device, self._max_memory = capacity, device, max_memory
        self._n_here = sum(parameter.n_counted for parameter in selected)
        self._vectors: dict[object, int] = {}
        for parameter in selected:
            key = parameter.tensor.device, parameter.dtype
            n_bytes = parameter.n_counted * parameter.dtype.itemsize * (parameter.n_replica or 1)
            self._vectors[key] = self._vectors.get(key, 0) + n_bytes
        self._width = sum(self._vectors.values()) / max(self._n_here, 1)
        homes = {parameter.tensor.device for parameter in selected}
        self._places = homes if device is None else {torch.device(device)}
        self._pinned = device is not None and any(home.type == "cuda" for home in homes)
        # Snapshots that are kept elsewhere pass through the device of the weights, beside a copy of the weights.
        self._away = [home for home in homes if home not in self._places]

    def _here(self, n: int) -> int:
        """Return about how many of ``n`` sampled coordinates are in this process."""
        return n if self._n_here == self.total else -(-n * self._n_here // self.total)

    def footprint(self, n: int) -> int:
        """Return the bytes that ``n`` coordinates take in this process: the snapshots and the positions of a sample."""
        here = self._here(n)
        # torch rounds the size of pinned memory up to a power of two.
        if self._pinned:
            of_each = (-(-n_bytes * n // self.total) for n_bytes in self._vectors.values())
            taken = self._capacity * sum(1 << (n_bytes - 1).bit_length() for n_bytes in of_each if n_bytes)
        else:
            taken = round(here * self._width * self._capacity)
        # A sample also keeps the position of each coordinate, as int64.
        return taken + (8 * here if n < self.total else 0)

    def fit(self, sample: int | str | None) -> int:
        """Return the number of coordinates to measure, over all processes."""
        free = sum(free_memory(place) for place in self._places)
        passing, free_there = (2 * self._width, sum(map(free_memory, self._away))) if self._away else (0.0, 0)
        if sample == "auto":
            budget = int(SAFE_FRACTION * free)
            budget = budget if self._max_memory is None else min(budget, self._max_memory)
            n = self.total
            if self.footprint(n) > budget:
                n_here = int(budget / (self._width * self._capacity + 8))
                n = min(self.total - 1, n_here * self.total // self._n_here)
            while n > 1 and self.footprint(n) > budget:
                n //= 2
            if passing * self._here(n) > SAFE_FRACTION * free_there:
                n = int(SAFE_FRACTION * free_there / passing) * self.total // self._n_here
            limit, of_what = budget, "a tenth of the free memory" if self._max_memory is None else "max_memory"
        else:
            n = self.total if sample is None else min(int(sample), self.total)
            limit, of_what = (free, "the free memory") if self._max_memory is None else (self._max_memory, "max_memory")
        if n < 1 or self.footprint(n) > limit:
            n = max(n, 1)
            raise MemoryError(
                f"{self._capacity} snapshots of {self._here(n):,} coordinates take {human_bytes(self.footprint(n))}, "
                f"more than {of_what}={human_bytes(limit)} on {', '.join(map(str, self._places))}. Use a schedule with "
                "fewer waiting times or a max_lag, a (smaller) sample=..., or snapshot_device='cpu'"
            )
        if passing * self._here(n) > free_there:
            raise MemoryError(
                f"with snapshot_device={str(self._device)!r} two copies of {self._here(n):,} coordinates pass through "
                f"{', '.join(map(str, self._away))}, {human_bytes(passing * self._here(n))}, more than the "
                f"{human_bytes(free_there)} free there. Use a (smaller) sample=..."
            )
        return n


def check_memory_options(sample: object, device: str | torch.device | None, max_memory: object) -> None:
    """Check the memory options before the parameters are known. :func:`plan_sample` does not check them again.

    Raises:
        ValueError: an argument is out of its range. The message names the argument, its value and the allowed values.
    """

    def counts(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    if sample is not None and sample != "auto" and not counts(sample):
        raise ValueError(f"sample={sample!r} must be 'auto', None or a whole number of coordinates, at least 1")
    if max_memory is not None and not counts(max_memory):
        raise ValueError(f"max_memory={max_memory!r} must be a whole number of bytes, at least 1, or None")
    if device is not None and str(device) != "cpu":
        raise ValueError(f"snapshot_device={device!r} must be 'cpu', or None to keep snapshots with the parameters")


def host_budget(max_memory: int | None) -> int:
    """Return the most bytes of host memory for snapshots that leave their device."""
    free = int(SAFE_FRACTION * free_memory(torch.device("cpu")))
    return free if max_memory is None else min(free, max_memory)


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device as the system reports them, or 2 GiB if the system reports nothing."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved from the driver and not yet allocated to tensors is free, too.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    known = [free for free in (_available_memory(), _cgroup_memory()) if free is not None]
    return min(known, default=2 << 30)


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        # Some systems (macOS) do not report the available memory. Use half of the installed memory.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that the container's limit leaves. /proc/meminfo describes the whole machine."""
    try:
        limit, used = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        # The system frees cached files when memory is needed.
        return max(0, limit - used + int(fields.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def human_bytes(n: float) -> str:
    """Format a number of bytes with a readable unit.

    Example:
        >>> human_bytes(10 * 2**20)
        '10.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
