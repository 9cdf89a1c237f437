"""Part: bytes per second of an event on the device, against reading, copying, ``_foreach`` and ``torch.compile``."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from benchmarks.device.findings import EPS, Findings
from benchmarks.models import resnet18
from benchmarks.moments import compiled, foreach
from benchmarks.report import Clock, in_turns
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import Moments, capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank

DUE = (1, 4, 32)
DTYPES = (torch.float32, torch.bfloat16)
FEW = ("4 tensors, 1e8 bytes an event", "4 tensors, 1e9 bytes an event")  # with one snapshot due
RESNET, SMALL, MANY = "ResNet-18", "10 tensors of 10,000", "1,000 tensors of 1,000"


def sizes(shape: str, dtype: torch.dtype, dry: bool) -> list[int]:
    """Return the number of coordinates of each tensor."""
    if shape in FEW:
        n = int(1e8 if shape == FEW[0] else 1e9) // (2 * 4 * dtype.itemsize)
        return [n // 10_000 if dry else n] * 4
    if shape == RESNET:
        return [max(1, p.numel() // (100 if dry else 1)) for p in resnet18().parameters()]
    return [10_000] * 10 if shape == SMALL else [1000] * (50 if dry else 1000)


@dataclass
class Case:
    """A model whose weights have moved since its snapshots."""

    parameters: list[torch.nn.Parameter]
    ours: Moments
    msd_only: Moments
    snapshots: list[Snapshot]
    spare: Snapshot

    @classmethod
    def make(cls, numbers: list[int], dtype: torch.dtype, device: str) -> Case:
        """Make the model, and the largest number of snapshots that are due."""
        parameters = [torch.nn.Parameter((torch.randn(n, device=device) * 0.05).to(dtype)) for n in numbers]
        named = [(f"w{index}", parameter) for index, parameter in enumerate(parameters)]
        tracked = TrackedParameters(select_parameters(named))
        bank, ours = SnapshotBank(tracked), moments_for(tracked, EPS)
        snapshots = [capture(bank, step, ours) for step in range(max(DUE))]
        for parameter in parameters:
            parameter.add_((torch.randn_like(parameter) * 1e-3).to(dtype))
        return cls(parameters, ours, moments_for(tracked, msd_only=True), snapshots, bank.add(max(DUE)))


@torch.no_grad()
def run(findings: Findings) -> None:
    """Measure the events first, and then the other ways if there is time."""
    reading = rates_of_the_device(findings)
    events(findings, reading)
    with findings.attempt("other ways"):
        others(findings)


def rates_of_the_device(findings: Findings) -> float:
    """Measure copying and reading a GiB, and return the GB/s of reading."""
    n_bytes = 1 << (22 if findings.dry else 30)
    source = torch.rand(n_bytes // 4, device=findings.device)
    target = torch.empty_like(source)
    ways = {"copy (read and written)": lambda: target.copy_(source), "`sum` of float32": lambda: source.sum()}
    times = in_turns(ways, findings.device, repeats=15)
    n_moved = dict(zip(ways, (2 * n_bytes, n_bytes), strict=True))
    rates = {name: n_moved[name] / time.median / 1e9 for name, time in times.items()}
    table = findings.table(f"A copy and a reading of {n_bytes / 2**30:.3g} GiB", ["what", "GB/s"])
    for name, rate in rates.items():
        table.add(name, f"{rate:.0f}")
    copying, reading = rates.values()
    findings.keep(copy_gb_per_s=copying, read_gb_per_s=reading)
    return reading


def events(findings: Findings, reading: float) -> None:
    """Measure the events of all models."""
    clock = Clock(findings.device)
    table = findings.table(
        "Bandwidth of an event",
        ["tensors", "dtype", "due", "MB read", "event (us, quartiles)", "GB/s", "of the reading",
         "with a capture (GB/s)", "msd only (GB/s)", "from call to end, idle device (us)", "by"],
        "Device time, the host being ahead, with other data in the L2 cache. An event reads the weights and all due "
        "snapshots once.\nThe bytes that a capture writes are counted. Two overlaps are among the sums.",
    )  # fmt: skip
    found: list[dict[str, Any]] = []
    for shape, dtype in product((*FEW, RESNET, SMALL, MANY), DTYPES):
        with findings.attempt((shape, dtype)):
            case = Case.make(sizes(shape, dtype, findings.dry), dtype, findings.device)
            for n_due in DUE:
                if findings.left < 6:
                    findings.say("no time left for", shape, dtype, n_due)
                    continue
                row = event(findings, clock, case, n_due)
                row |= {"tensors": shape, "dtype": str(dtype).removeprefix("torch."), "due": n_due}
                row["of_reading"] = row["gb_per_s"]["event"] / reading
                found.append(row)
                findings.keep(events=found)
                time, rates = row["seconds"], row["gb_per_s"]
                table.add(
                    *(row[name] for name in ("tensors", "dtype", "due")),
                    f"{row['bytes'] / 1e6:.4g}",
                    f"{1e6 * time['median']:.1f} ({1e6 * time['low']:.1f} ... {1e6 * time['high']:.1f})",
                    f"{rates['event']:.4g}",
                    f"{row['of_reading']:.0%}",
                    *(f"{rates[name]:.4g}" if name in rates else "" for name in ("capture", "msd")),
                    f"{1e6 * row['idle_s']:.0f}",
                    row["by"],
                )


def event(findings: Findings, clock: Clock, case: Case, n_due: int) -> dict[str, Any]:
    """Measure an event of one model, with and without a capture, and the displacement alone."""
    due = case.snapshots[:n_due]
    copy = sum(parameter.nbytes for parameter in case.parameters)
    n_bytes = {"event": copy * (1 + n_due), "capture": copy * (2 + n_due), "msd": copy * (1 + n_due)}
    ways: dict[str, Any] = {
        "event": lambda: case.ours(due),
        "capture": lambda: case.ours(due, case.spare),
        "msd": lambda: case.msd_only(due),
    }
    times = in_turns(ways, findings.device, enough=1.0)
    idle = statistics.median(clock.to_end(ways["event"]) for _ in range(5))
    rates = {name: n_bytes[name] / time.median / 1e9 for name, time in times.items()}
    return {"bytes": n_bytes["event"], "by": type(case.ours).__name__, "gb_per_s": rates, "idle_s": idle} | {
        "seconds": vars(times["event"])
    }


def others(findings: Findings) -> None:
    """Measure other ways to the same numbers, in turns with ours."""
    names = ["event", "reading as many bytes", "torch.compile, all moments", "_foreach, msd only", "event, msd only"]
    note = "GB/s of the weights and the due snapshots, read once, as above. The ways of a row are measured in turns."
    table = findings.table("Other ways to the same numbers (GB/s)", ["tensors", "dtype", "due", *names], note)
    found: list[dict[str, Any]] = []
    for shape, dtype, n_due in product((RESNET, FEW[0], MANY), DTYPES, (1, 4)):
        if findings.left < 25:  # torch.compile is slow
            findings.say("no time left for other ways:", shape, dtype, n_due)
            return
        with findings.attempt(("other ways", shape, dtype, n_due)):
            case = Case.make(sizes(shape, dtype, findings.dry), dtype, findings.device)
            # torch.compile takes seconds each time. It sees many tensors as one, so MANY would show nothing new.
            with_compile = n_due == 1 and shape != MANY and not (findings.dry and found)
            times = in_turns(ways_of(findings, case, n_due, with_compile), findings.device, repeats=7, enough=1.0)
            n_bytes = (1 + n_due) * sum(parameter.nbytes for parameter in case.parameters)
            rates = {name: n_bytes / time.median / 1e9 for name, time in times.items()}
            found.append({"tensors": shape, "dtype": str(dtype), "due": n_due, "gb_per_s": rates})
            rounded = (f"{rates[name]:.4g}" if name in rates else "" for name in names)
            table.add(shape, str(dtype).removeprefix("torch."), n_due, *rounded)
            findings.keep(others=found)


def ways_of(findings: Findings, case: Case, n_due: int, with_compile: bool) -> dict[str, Any]:
    """Return the other ways, and ours."""
    weights = [parameter.detach() for parameter in case.parameters]
    due, numbers = case.snapshots[:n_due], [w.numel() for w in weights]
    earlier = [list(snapshot.flats[0].split(numbers)) for snapshot in due]
    whole = torch.rand((1 + n_due) * sum(numbers), device=findings.device).to(weights[0].dtype)
    ways: dict[str, Any] = {
        "event": lambda: case.ours(due),
        "reading as many bytes": lambda: whole.sum(),
        "_foreach, msd only": foreach(weights, earlier),
        "event, msd only": lambda: case.msd_only(due),
    }
    if with_compile:
        ways["torch.compile, all moments"] = compiled(weights, earlier)
    return ways
