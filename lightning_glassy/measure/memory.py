"""Plan how many coordinates fit into memory before any memory is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_glassy.measure.select import Selected
from lightning_glassy.measure.shards import Processes

SAFE_FRACTION = 0.1


"""Part of a device's free memory that the snapshots may take when nobody said how much."""


def plan_sample(
    selected: Sequence[Selected],
    capacity: int,
    *,
    sample: int | str | None = "auto",
    device: str | torch.device | None = None,
    max_memory: int | None = None,
    processes: Processes | None = None,
) -> tuple[int | None, int]:
    """How many coordinates to sample so that ``capacity`` snapshots fit, before any memory is taken.

    Args:
        selected: the tracked parameters.
        capacity: most snapshots that are held at once.
        sample: a number of coordinates, ``None`` for all of them, or ``"auto"``: all of them where the snapshots fit in
            ``max_memory`` and a tenth of the free memory of their device, otherwise as many as do.
        device: where the snapshots are kept; ``None``: with the parameters.
        max_memory: most bytes the snapshots may take in this process; ``None``: what is free on their device.
        processes: those that hold the parameters together. The number is the smallest of theirs.

    Returns:
        The number of coordinates to sample, ``None`` for all; and the bytes that the snapshots take in this process.

    Raises:
        ValueError: another ``sample``, or a ``max_memory`` that is not positive.
        MemoryError: the snapshots would not fit. The message names the three remedies.
    """
    check_memory_options(sample, device, max_memory)
    plan = _Plan(selected, capacity, device, max_memory)
    n = plan.fit(sample) if processes is None else min(processes.gather(processes.together(lambda: plan.fit(sample))))
    return (None if n == plan.total else n), plan.footprint(n)


class _Plan:
    """What snapshots take in this process, and how many coordinates fit."""

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
        # Snapshots that are kept elsewhere pass through the device of the weights, beside a copy of these.
        self._away = [home for home in homes if home not in self._places]

    def _here(self, n: int) -> int:
        """How many of ``n`` sampled coordinates are in this process, about."""
        return n if self._n_here == self.total else -(-n * self._n_here // self.total)

    def footprint(self, n: int) -> int:
        """Bytes of the snapshots, and of what else a sample of ``n`` coordinates of all keeps."""
        here = self._here(n)
        # torch rounds pinned memory up to a power of two.
        if self._pinned:
            of_each = (-(-n_bytes * n // self.total) for n_bytes in self._vectors.values())
            taken = self._capacity * sum(1 << (n_bytes - 1).bit_length() for n_bytes in of_each if n_bytes)
        else:
            taken = round(here * self._width * self._capacity)
        # A sample also keeps the place of each coordinate, as int64.
        return taken + (8 * here if n < self.total else 0)

    def fit(self, sample: int | str | None) -> int:
        """The number of coordinates to measure, over all processes."""
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


def check_memory_options(
    sample: object = "auto", device: str | torch.device | None = None, max_memory: object = None
) -> None:
    """Refuse what :func:`plan_sample` could not work with, as soon as it is known.

    Raises:
        ValueError: an argument out of its range; the message names it, its value and what it may be.
    """

    def counts(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    if sample is not None and sample != "auto" and not counts(sample):
        raise ValueError(f"sample={sample!r} must be 'auto', None or a whole number of coordinates, at least 1")
    if max_memory is not None and not counts(max_memory):
        raise ValueError(f"max_memory={max_memory!r} must be a whole number of bytes, at least 1, or None")
    if device is not None and str(device) != "cpu":
        raise ValueError(f"snapshot_device={device!r} must be 'cpu', or None to keep snapshots with the parameters")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device, as far as the system tells; 2 GiB where it does not."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved from the driver and not handed out is free to us as well.
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
        # No count of what is available (macOS): half of what is installed.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the container's limit leaves; /proc/meminfo tells of the whole machine."""
    try:
        limit, used = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        # Cached files are given back when memory is needed.
        return max(0, limit - used + int(fields.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


def human_bytes(n: float) -> str:
    """A number of bytes for people.

    Example:
        >>> human_bytes(10 * 2**20)
        '10.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
