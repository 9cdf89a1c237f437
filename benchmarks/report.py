"""A clock for CPU and CUDA, timing in turns, and result files that name the machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import lightning_glassy
from lightning_glassy.measure.memory import free_memory

RESULTS = Path(__file__).parent / "results"


# ENOUGH: seconds that all calls of a way may take. TOO_LONG: a way with a longer first call is not repeated, and a way
# that would take longer is not tried.
ENOUGH, TOO_LONG = 5.0, 20.0

# Bytes that are read before a timing on CUDA: several times the largest L2 cache.
_FLUSHED = 256 << 20


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Clock:
    """Times calls on a device: by wall time on a CPU, between two events of the device on CUDA.

    On CUDA, a queued sleep keeps the device busy until the host has queued the call. Otherwise a short call would
    measure how fast the host launches it. A large read before the sleep replaces the contents of the L2 cache. After a
    read, the cache has no data to write back during the call.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        if self.cuda:
            self._other = torch.zeros(_FLUSHED // 4, device=self.device)
            # An idle device has a slow clock. It must be awake before the cycles of a second are counted.
            for _ in range(100):
                self._other.sum()
            cycles = 10_000_000
            sleeps = [self._between(lambda: torch.cuda._sleep(cycles)) for _ in range(4)]
            self._cycles_per_second = cycles / min(sleeps)

    def wait(self) -> None:
        """Wait until the device has done all queued work."""
        if self.cuda:
            torch.cuda.synchronize()

    def to_end(self, run: Callable[[], object]) -> float:
        """Return the wall seconds from a call on an idle device until the device has done it."""

        def run_to_end() -> None:
            run()
            self.wait()

        self.wait()
        return seconds(run_to_end)

    def on_host(self, run: Callable[[], object]) -> float:
        """Return the wall seconds for which a call keeps the host busy. The device is idle before the call."""
        self.wait()
        return seconds(run)

    def __call__(self, run: Callable[[], object], host: float = 0.001) -> float:
        """Return the seconds of one call on the device.

        Args:
            run: the call.
            host: seconds for which the call keeps the host busy. The device sleeps for longer.
        """
        if not self.cuda:
            return seconds(run)
        self._other.sum()
        torch.cuda._sleep(int(min(2.5 * host + 5e-4, 0.5) * self._cycles_per_second))
        return self._between(run)

    def _between(self, run: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000


@dataclass(frozen=True)
class Paired:
    """Median time of A and of B, and median and quartiles of the ratio A/B over pairs timed one after the other."""

    a: float
    b: float
    ratio: float
    low: float
    high: float


def paired(
    a: Callable[[], object], b: Callable[[], object], pairs: int = 41, device: str | torch.device = "cpu"
) -> Paired:
    """Time A B A B ... On a shared machine, compare only calls that follow each other."""
    clock = Clock(device)
    a(), b()
    hosts = [clock.on_host(run) for run in (a, b)]
    times = [(clock(a, hosts[0]), clock(b, hosts[1])) for _ in range(pairs)]
    low, ratio, high = statistics.quantiles([x / y for x, y in times], n=4)
    return Paired(statistics.median(x for x, _ in times), statistics.median(y for _, y in times), ratio, low, high)


@dataclass(frozen=True)
class Times:
    """Quartiles of the seconds of one way, and the number of calls. All quartiles are equal if it was called once."""

    low: float
    median: float
    high: float
    calls: int


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    device: str | torch.device = "cpu",
    repeats: int = 11,
    enough: float = ENOUGH,
) -> dict[str, Times]:
    """Time all ways in turns: A B C A B C ...

    The first call of a way compiles and allocates. If it fails, the way is reported and left out. If it takes longer
    than ``TOO_LONG`` seconds, it is the result. Otherwise the second call decides how many more calls fit into
    ``enough`` seconds. If fewer than two fit, the second call is the result.
    """
    clock = Clock(device)
    first = {}
    for name, run in ways.items():
        try:
            first[name] = clock.to_end(run)
        except Exception as error:  # no compiler, no memory
            print(f"{name} failed ({type(error).__name__}: {str(error)[:200]})", flush=True)
    ways = {name: ways[name] for name in first}
    once, calls, hosts = {}, {}, {}
    for name, run in ways.items():
        once[name] = first[name] if first[name] > TOO_LONG else clock.to_end(run)
        calls[name] = 0 if 2 * once[name] > enough else min(repeats, int(enough / max(once[name], 1e-9)))
        hosts[name] = clock.on_host(run) if calls[name] else 0.0
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(max(calls.values(), default=0)):
        for name, run in ways.items():
            if turn < calls[name]:
                times[name].append(clock(run, hosts[name]))
    found = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4) if values else [once[name]] * 3
        found[name] = Times(low, median, high, len(values) or 1)
    return found


def machine_memory(device: str | torch.device) -> int:
    """Return the number of free bytes on a device."""
    return free_memory(torch.device(device))


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the date, the processor and the versions. The GPU is named if the device is a CUDA device."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        # A virtual machine gives several generations of a processor the same name.
        cpu = f"{about['model name']} (family {about['cpu family']}, model {about['model']})"
    except (OSError, KeyError):
        pass
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_glassy": lightning_glassy.__version__,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write(name: str, title: str, text: str, data: Any, device: str | torch.device = "cpu") -> None:
    """Print a result that was measured on a device, and write it as ``results/<name>.md`` and ``.json``."""
    where = machine(device)
    device = f", {where['gpu']}" if where["gpu"] else ""
    signature = (
        f"Measured {where['date']} on {where['cpu']}, {where['threads']} threads{device}. Python {where['python']}, "
        f"torch {where['torch']}, lightning_glassy {where['lightning_glassy']}."
    )
    page = f"# {title}\n\n{signature}\n\n{text}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, "results": data}, indent=1) + "\n")
    print(page, flush=True)
