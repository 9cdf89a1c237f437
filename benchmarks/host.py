"""Time the Python part of an event on a GPU, on a machine without a GPU: ``python -m benchmarks host``.

Triton compiles the kernels for a GPU and launches them into a fake driver, so that no call of CUDA is part of the time.
A GPU adds the copies to the device, the launches themselves and the events of the readback. Use the figures to compare
two versions of the Python code. They are not the host time of an event.

To measure another checkout, run this file there: ``cd OTHER && python THIS/benchmarks/host.py --quick``.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    # Import the package from the working directory, and the benchmarks from the folder of this file.
    sys.path[0] = str(Path.cwd())
    import lightning_glassy

    sys.path[0] = str(Path(__file__).parents[1])

import torch

import lightning_glassy
from benchmarks.report import table, write
from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure import tracker as tracker_module

WARM_UP = 50


def event_tracker(n_tensors: int, device: str, events: int) -> AgingTracker:
    """Return a tracker of tensors of 1,000 coordinates each. It compares two snapshots at every step from 2 on."""
    parameters = [torch.nn.Parameter(torch.randn(1000, device=device)) for _ in range(n_tensors)]
    named = [(f"{index}.w", parameter) for index, parameter in enumerate(parameters)]
    return AgingTracker(named, LogTimeSchedule([0, 1], range(1, WARM_UP + events + 1)), sample=None)


def event_seconds(tracker: AgingTracker, events: int) -> list[float]:
    """Return the seconds for which each event keeps the host busy. The first events do not count."""
    times = []
    for step in range(WARM_UP + events):
        start = time.perf_counter()
        tracker.update(step)
        times.append(time.perf_counter() - start)
    return times[WARM_UP:]


def python_time(n_tensors: int, events: int) -> dict[str, Any]:
    """Return the launches of an event, and the quartiles of the Python time of an event and of its moments alone."""
    from benchmarks.fake_driver import fake_driver
    from lightning_glassy.measure.moments.triton import TritonMoments

    with fake_driver() as seen, patch.object(tracker_module, "moments_for", _kernels):
        tracker = event_tracker(n_tensors, "cpu", events)
        whole = event_seconds(tracker, events)
        before = seen.launches.total()
        moments, due, alone = tracker._moments, list(tracker._bank.live.values()), []
        assert isinstance(moments, TritonMoments)
        assert len(due) == 2
        for _ in range(events):
            start = time.perf_counter()
            moments(due)
            alone.append(time.perf_counter() - start)
        launches = (seen.launches.total() - before) / events
    quartiles = {"event": statistics.quantiles(whole, n=4), "moments": statistics.quantiles(alone, n=4)}
    return {"tensors": n_tensors, "due": 2, "events": events, "launches": launches} | quartiles


def _kernels(parameters: Any, thresholds: Sequence[float] = (), *, msd_only: bool = False, **_: Any) -> Any:
    from lightning_glassy.measure.moments.triton import TritonMoments

    class Computed(TritonMoments):
        """Sets all sums to 1, because the launches compute nothing. The tracker would look more closely at NaN sums."""

        def __call__(self, *arguments: Any) -> list[torch.Tensor]:
            return [sums.fill_(1.0) for sums in super().__call__(*arguments)]

    return Computed(parameters, thresholds, msd_only=msd_only)


def main(arguments: Sequence[str] = ()) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="benchmarks host", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 events instead of 1,000, nothing written")
    parser.add_argument("--events", type=int, help="number of events, nothing written")
    options = parser.parse_args(arguments)
    if find_spec("triton") is None:
        print("host: not measured, because triton is not installed", flush=True)
        return
    events = options.events or (200 if options.quick else 1000)
    logging.getLogger("lightning_glassy").setLevel(logging.ERROR)  # the sums are made up
    torch.manual_seed(0)
    data = [python_time(n, events) for n in (10, 1000)]
    rows = [
        [
            f"{row['tensors']:,}",
            row["due"],
            *(_microseconds(row[what]) for what in ("event", "moments")),
            row["launches"],
        ]
        for row in data
    ]
    header = ["tensors", "due", "`AgingTracker.update` (us, quartiles)", "of it `TritonMoments` (us)", "launches"]
    text = table(header, rows) + (
        f"\n\nThe Python part alone, over {events:,} events with a fake driver: no call of CUDA is in it. A GPU adds "
        f"the copies to\nthe device, the launches and the readback.\nTriton {_triton_version()}. A small model of 10 "
        "tensors may take 60 us in all on a GPU, and 1,000 tensors 150 us."
    )
    title = "Python time of an event, without a GPU"
    if options.quick or options.events:
        print(f"# {title}\n\n{Path(lightning_glassy.__file__).parent}\n\n{text}", flush=True)
    else:
        write("host", title, text, data)


def _microseconds(quartiles: Sequence[float]) -> str:
    low, middle, high = (1e6 * value for value in quartiles)
    return f"{middle:.0f} ({low:.0f} ... {high:.0f})"


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


if __name__ == "__main__":
    main(sys.argv[1:])
