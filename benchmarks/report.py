"""Timing in pairs, and result files that say on which machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

import lightning_glassy
from lightning_glassy.measure.memory import free_memory

RESULTS = Path(__file__).parent / "results"


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Paired:
    """Median time of A and of B, and median and quartiles of the ratio A/B over pairs timed one after the other."""

    a: float
    b: float
    ratio: float
    low: float
    high: float


def paired(a: Callable[[], object], b: Callable[[], object], pairs: int = 41) -> Paired:
    """Time A B A B ...: on a machine that others use too, only neighbours can be compared."""
    a(), b()
    times = [(seconds(a), seconds(b)) for _ in range(pairs)]
    low, ratio, high = statistics.quantiles([x / y for x, y in times], n=4)
    return Paired(statistics.median(x for x, _ in times), statistics.median(y for _, y in times), ratio, low, high)


def quartiles_of_times(ways: dict[str, Callable[[], object]], repeats: int = 11) -> dict[str, list[float]]:
    """Quartiles of the seconds of each way, all of them measured in turns: A B C A B C ...

    On CUDA the time is that of the device, between two of its events; otherwise that of the host.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            times[name].append(_device_seconds(run) if torch.cuda.is_available() else seconds(run))
    return {name: statistics.quantiles(values, n=4) for name, values in times.items()}


def _device_seconds(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def machine_memory() -> int:
    """Bytes that can still be taken on the device that is measured."""
    return free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_glassy": lightning_glassy.__version__,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write(name: str, title: str, text: str, data: Any) -> None:
    """Print a result, and write it as ``results/<name>.md`` and ``.json``."""
    where = machine()
    device = f", {where['gpu']}" if where["gpu"] else ""
    signature = (
        f"Measured {where['date']} on {where['cpu']}, {where['threads']} threads{device}; Python {where['python']}, "
        f"torch {where['torch']}, lightning_glassy {where['lightning_glassy']}."
    )
    page = f"# {title}\n\n{signature}\n\n{text}\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, "results": data}, indent=1) + "\n")
    print(page, flush=True)
