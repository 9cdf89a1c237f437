"""Part: single events in the profiler, with the work of the device and the calls of the host."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from benchmarks.device.findings import Findings
from benchmarks.models import resnet18
from benchmarks.report import Clock
from lightning_glassy import AgingTracker, LogTimeSchedule

# Names in the profiler for calls of the host that wait for the device.
WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize"),
)
MODELS = ("10 tensors", "ResNet-18")
EVENTS = {14: "4 due and a capture", 15: "1 due"}


def run(findings: Findings) -> None:
    """Profile two events of two models, and keep the trace of the second."""
    device = findings.table("What the device ran in an event", ["model", "event", "what", "start (us)", "took (us)"])
    host = findings.table("Calls of the host in an event", ["model", "event", "call", "times", "took (us)"])
    found: dict[str, Any] = {}
    for model in MODELS:
        with findings.attempt(model):
            profile = profiled(model, findings)
            for step, event in EVENTS.items():
                ran, called = split(profile, f"event {step}")
                found[f"{model}, {event}"] = described(ran, called)
                findings.keep(events=found)
                start = min((e.time_range.start for e in ran), default=0.0)
                for e in ran:
                    begun, took = e.time_range.start - start, e.time_range.elapsed_us()
                    device.add(model, event, e.name[:80].replace("|", "/"), f"{begun:.1f}", f"{took:.1f}")
                calls = found[f"{model}, {event}"]["host_calls"]
                for name, (times, took) in sorted(calls.items(), key=lambda item: -item[1][1])[:12]:
                    host.add(model, event, name[:60].replace("|", "/"), times, f"{took:.1f}")
            profile.export_chrome_trace(str(findings.folder / "trace.json.gz"))


def described(ran: list[Any], called: list[Any]) -> dict[str, Any]:
    """Return the names of kernels, copies and waits, and the number and total time (us) of each call of the host."""
    calls: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for e in called:
        calls[e.name][0] += 1
        calls[e.name][1] += e.time_range.elapsed_us()
    copies = [e.name for e in ran if e.name.startswith(("Memcpy", "Memset"))]
    kernels = [e.name for e in ran if not e.name.startswith(("Memcpy", "Memset"))]
    waits = [name for name in calls if name in WAITS]
    return {"kernels": kernels, "copies": copies, "waits": waits, "host_calls": dict(calls)}


def profiled(model: str, findings: Findings) -> Any:
    """Profile the two events. Both kinds run once before, so that nothing is loaded or allocated in the profile."""
    clock = Clock(findings.device)
    parameters = (
        list(resnet18().to(findings.device).named_parameters())
        if model == "ResNet-18"
        else [(f"{i}.w", torch.nn.Parameter(torch.randn(1000, device=findings.device))) for i in range(10)]
    )
    tracker = AgingTracker(parameters, LogTimeSchedule([0, 1, 2, 3, 14], [1, 2, 10, 11, 12, 13, 14, 15]), sample=None)
    for step in range(14):
        tracker.update(step)
    clock.wait()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if findings.cuda else []
    with torch.profiler.profile(activities=activities):  # the first profile of a process is slow
        torch.ones(10, device=findings.device).sum()
        clock.wait()
    with torch.profiler.profile(activities=activities) as profile:
        for step in EVENTS:
            with torch.profiler.record_function(f"event {step}"):
                tracker.update(step)
            clock.wait()
    tracker.drain()
    return profile


def split(profile: Any, name: str) -> tuple[list[Any], list[Any]]:
    """Return the device's work for a named span, and the host's calls within the span, in order of time."""
    cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    spans = [e.time_range for e in events if e.name == name and e.device_type != cuda]
    if not spans:
        return [], []
    begin, end = spans[0].start, spans[0].end
    # The device may do the work after the span, but before the next span, because the host waits in between.
    later = [e.time_range.start for e in events if e.name.startswith("event ") and e.time_range.start > end]
    until = min(later, default=float("inf"))
    ran = [e for e in events if e.device_type == cuda and begin <= e.time_range.start < until]
    called = [e for e in events if e.device_type != cuda and begin <= e.time_range.start <= end and e.name != name]
    return [e for e in ran if not e.name.startswith("event ")], called
