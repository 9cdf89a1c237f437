"""Measure how the cost grows with the run, the model and the sample: ``python -m benchmarks scaling``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import in_turns, machine_memory, paired, table, write
from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure.memory import human_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGEST = 8 if DEVICE == "cuda" else 7  # decade of the largest model


def wait() -> None:
    """Wait for the device if it is a GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def run_length() -> tuple[str, list[dict[str, Any]]]:
    """Simulate a training. The tracker handles every event. At each other step it would compare two integers."""
    rows, data = [], []
    weights = torch.nn.Parameter(torch.randn(100_000, device=DEVICE))
    for decade in range(3, 8):
        steps = 10**decade
        events = [event.step for event in LogTimeSchedule.logspaced().until(steps).events]
        tracker = AgingTracker([("w", weights)], max_step=steps, sample=None)
        wait()
        start = time.perf_counter()
        for step in events:
            with torch.no_grad():
                weights.add_(1e-6)
            tracker.update(step)
        tracker.drain()
        total = time.perf_counter() - start
        rows.append([f"10^{decade}", len(events), f"{1e6 * total / len(events):.0f}", f"{1e6 * total / steps:.3f}"])
        data.append({"steps": steps, "events": len(events), "seconds_at_events": total})
    return table(["steps", "events", "an event (us)", "at events, per step (us)"], rows), data


def model_size() -> tuple[str, list[dict[str, Any]]]:
    """Time an event against four snapshots, and compute the memory of the default schedule over 10^5 steps."""
    rows, data = [], []
    for decade in range(4, LARGEST + 1):
        n = 10**decade
        if 4 * n * 8 > 0.6 * machine_memory(DEVICE):
            break
        weights = torch.nn.Parameter(torch.randn(n, device=DEVICE))
        tracker = AgingTracker([("w", weights)], LogTimeSchedule([0, 1, 2, 3], range(1, 60)), sample=None)
        for step in range(9):
            tracker.update(step)
        times = in_turns({"event": Events(tracker)}, DEVICE, repeats=21)["event"]
        tracker.drain()
        low, middle, high = times.low, times.median, times.high
        live = LogTimeSchedule.logspaced(100_000).max_live_snapshots
        rows.append(
            [
                f"10^{decade}",
                f"{1000 * middle:.2f} ({1000 * low:.2f} ... {1000 * high:.2f})",
                f"{5 * 4 * n / middle / 1e9:.1f}",
                human_bytes(4 * n * live),
            ]
        )
        data.append({"parameters": n, "event_s": middle, "snapshots": live})
    return table(["float32 parameters", "event, 4 due (ms)", "GB/s", "snapshots of 10^5 steps"], rows), data


class Events:
    """Runs one event of a tracker after the other."""

    def __init__(self, tracker: AgingTracker) -> None:
        self.tracker = tracker

    def __call__(self) -> None:
        """Measure once."""
        self.tracker.update(self.tracker.last_step + 1)


def sampling() -> tuple[str, list[dict[str, Any]]]:
    """Compare the error of a sampled MSD with the cost of the event, in a network with layers that move differently."""
    rows, data = [], []
    torch.manual_seed(0)
    n = 5_000_000
    start = torch.randn(n) * 0.05
    # Heavy tails, and ten layers whose steps differ by a factor of ten.
    step = torch.randn(n).pow(3) * 1e-4 * torch.logspace(0, 1, 10).repeat_interleave(n // 10)
    exact = float(step.double().pow(2).mean())
    full: Events | None = None
    for size in (None, 1_000_000, 100_000, 10_000, 1000):
        weights = torch.nn.Parameter(start.to(DEVICE))
        tracker = AgingTracker([("w", weights)], LogTimeSchedule([0], range(1, 1000)), sample=size)
        tracker.update(0)
        with torch.no_grad():
            weights.copy_(start + step)
        tracker.update(1)
        tracker.drain()
        msd, error = float(tracker.record.msd()[0, 0]), float(tracker.record.standard_error("msd")[0, 0])
        events = Events(tracker)
        full = full or events
        cost = paired(events, full, pairs=15, device=DEVICE)
        rows.append(
            [
                "all" if size is None else f"{size:,}",
                f"{abs(msd / exact - 1):.1e}",
                f"{error / exact:.1e}",
                f"{cost.ratio:.3f} ({cost.low:.3f} ... {cost.high:.3f})" if size else "1",
            ]
        )
        data.append({"sample": size, "relative_error": msd / exact - 1, "stated_error": error / exact} | vars(cost))
    header = ["sample of 5 million", "relative error of the MSD", "stated standard error", "event over that of all"]
    return table(header, rows), data


def main(arguments: Sequence[str] = ()) -> None:
    """Measure all three, and write the tables."""
    parts = {"run length": run_length(), "model size": model_size(), "sample": sampling()}
    notes = {
        "run length": "## Against the length of the run\n\n100,000 parameters, default schedule, simulated training.",
        "model size": "## Against the size of the model",
        "sample": "## Against the size of a sample\n\n"
        "One draw. The displacements have heavy tails (cubes of normal numbers): a sample of a thousand misses the "
        "largest ones,\nand so does its stated error.",
    }
    text = "\n\n".join(f"{notes[name]}\n\n{rows}" for name, (rows, _) in parts.items())
    write("scaling", "How the cost grows", text, {name: data for name, (_, data) in parts.items()}, DEVICE)


if __name__ == "__main__":
    main()
