"""Part: the time for which an event keeps the host busy, and the functions that use this time."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.device.findings import Findings
from benchmarks.host import event_seconds, event_tracker
from benchmarks.report import Clock

ROOT = Path(__file__).parents[2]


def run(findings: Findings) -> None:
    """Time events of small models, profile some, and time the Python part alone."""
    events = 30 if findings.dry else 500
    table = findings.table(
        "Host time of an event",
        ["tensors", "due", "25 % (us)", "median (us)", "75 % (us)", "by"],
        "`AgingTracker.update`, from call to return, at steps one after the other. Tensors of 1,000 coordinates.",
    )
    found: dict[str, Any] = {}
    for n in (10, 62, 1000):
        with findings.attempt(f"{n} tensors"):
            tracker = event_tracker(n, findings.device, events)
            quartiles = statistics.quantiles(event_seconds(tracker, events), n=4)
            tracker.drain()
            found[str(n)] = {"seconds": quartiles, "by": type(tracker._moments).__name__}
            table.add(n, 2, *(f"{1e6 * value:.0f}" for value in quartiles), found[str(n)]["by"])
            findings.keep(host=found)
    with findings.attempt("the profile"):
        profiled(findings, events)
    with findings.attempt("the Python part alone"):
        python_alone(findings)


def profiled(findings: Findings, events: int) -> None:
    """Write which Python functions and calls of torch take the host's time. The profiler itself adds some time."""
    tracker, clock = event_tracker(62, findings.device, events), Clock(findings.device)
    for step in range(50):
        tracker.update(step)
    clock.wait()
    profile = cProfile.Profile()
    profile.enable()
    for step in range(50, 50 + events):
        tracker.update(step)
    profile.disable()
    tracker.drain()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    table = findings.table(
        "Where the host time of an event of 62 tensors goes",
        ["function", "calls an event", "own time (us)", "with what it calls (us)"],
        "By `cProfile`, which slows down short functions most.",
    )
    for (file, line, name), (_, calls, own, whole, _) in sorted(stats.items(), key=lambda item: -item[1][2])[:20]:
        where = f"{Path(file).name}:{line} {name}" if line else name
        table.add(where.replace("|", "/"), f"{calls / events:.1f}", *(f"{1e6 * t / events:.1f}" for t in (own, whole)))


def python_alone(findings: Findings) -> None:
    """Time the Python part on this machine, with a fake driver, in a process of its own."""
    if findings.left < 15:
        findings.say("no time left for the Python part alone")
        return
    command = [sys.executable, "-m", "benchmarks", "host", "--events", "50" if findings.dry else "300"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=findings.left - 3)
        findings.say("the Python part alone:", run.stdout if run.returncode == 0 else run.stderr[-1000:])
    except subprocess.TimeoutExpired:
        findings.say("the Python part alone took too long")
