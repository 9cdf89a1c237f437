"""Bytes per second of an event, and of other ways to the same numbers; ``python -m benchmarks moments``.

From small to large models, in one tensor, in the 62 of a ResNet-18 or in thousands of small ones, against 1 to 32
snapshots. The other ways: the same moments in torch compiled by ``torch.compile``, the displacement alone by
``torch._foreach_*``, and a NumPy copy of all weights.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.by_hand import EPS, numpy_moments, numpy_msd, numpy_weights
from benchmarks.models import resnet18
from benchmarks.report import machine_memory, quartiles_of_times, seconds, table, write
from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGEST = 9 if DEVICE == "cuda" else 7


def sizes(shape: str, n: int) -> list[int]:
    """How many coordinates each tensor has, about ``n`` in all."""
    if shape == "ResNet-18":
        parts = [p.numel() for p in resnet18().parameters()]
        return [max(1, round(part * n / sum(parts))) for part in parts]
    return [n] if shape == "1 tensor" else [1000] * (n // 1000)


def compiled(weights: list[Tensor], snapshots: list[list[Tensor]]) -> Callable[[], object]:
    """The moments of flat weights against each snapshot, in torch as it is written, compiled."""
    flat = torch.cat([w.flatten() for w in weights])
    flats = [torch.cat([s.flatten() for s in snapshot]) for snapshot in snapshots]

    @torch.compile
    def moments(w: Tensor, s: Tensor) -> Tensor:
        d = w - s
        d2 = d * d
        quantities = [d2, d2 * d2, w * s, w * w, s * s, w, s, *((d.abs() <= eps).to(w.dtype) for eps in EPS)]
        return torch.stack([quantity.sum() for quantity in quantities])

    return lambda: [moments(flat, s) for s in flats]


def foreach(weights: list[Tensor], snapshots: list[list[Tensor]]) -> Callable[[], object]:
    """The displacement alone, from a model-size list of differences."""
    return lambda: [torch._foreach_norm(torch._foreach_sub(weights, snapshot)) for snapshot in snapshots]


@torch.no_grad()
def measure(shape: str, n: int, due: int) -> dict[str, Any]:
    """Seconds (quartiles) of each way, measured in turns."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, device=DEVICE) * 0.05) for size in sizes(shape, n)]
    total = sum(p.numel() for p in parameters)
    tracked = TrackedParameters(select_parameters([(f"w{i}", p) for i, p in enumerate(parameters)]))
    bank, ours = SnapshotBank(tracked), moments_for(tracked, EPS)
    snapshots = [capture(bank, k, ours) for k in range(due)]
    earlier = [[p.clone() for p in parameters] for _ in range(due)]
    copies = [numpy_weights(parameters).copy() for _ in range(due)]
    for p in parameters:
        p += torch.randn_like(p) * 1e-3
    whole, target = torch.zeros((1 + due) * total, device=DEVICE), torch.zeros(total, device=DEVICE)

    def by_hand(quantities: Callable[..., object]) -> None:
        w = numpy_weights(parameters)
        for s in copies:
            quantities(w, s)

    alone = moments_for(tracked, msd_only=True)
    ways: dict[str, Callable[[], object]] = {
        "reading": lambda: whole.sum(),
        "copying": lambda: target.copy_(whole[:total]),
        "event": lambda: ours(snapshots),
        "event, msd only": lambda: alone(snapshots),
        "_foreach, msd only": foreach(parameters, earlier),  # type: ignore[arg-type]
        "NumPy copy": lambda: by_hand(numpy_moments),
        "NumPy copy, msd only": lambda: by_hand(numpy_msd),
    }
    if not isinstance(ours, EagerMoments):
        eager = EagerMoments(tracked, EPS)
        ways["eager event"] = lambda: eager(snapshots)
    if shape == "1 tensor":
        ways["torch.compile"] = compiled(parameters, earlier)  # type: ignore[arg-type]
    times: dict[str, Any] = {}
    for name in list(ways):
        try:
            ways[name]()
        except Exception as error:  # no compiler, no memory: a way that cannot be gone
            print(f"{shape}, {n:,}, {due}: {name} failed ({type(error).__name__})", flush=True)
            del ways[name]
    for name, quartiles in quartiles_of_times(ways, repeats=11 if total * due < 3e7 else 7).items():
        n_bytes = 8 * total if name == "copying" else 4 * total * (1 + due)
        times[name] = {"seconds": quartiles, "gb_per_s": n_bytes / quartiles[1] / 1e9}
    return {"shape": shape, "tensors": len(parameters), "parameters": total, "due": due, "ways": times}


def host_time() -> dict[str, Any]:
    """Seconds (quartiles) for which an event of a small network keeps the host: what the next step waits for."""
    parameters = [torch.nn.Parameter(torch.randn(10_000, device=DEVICE)) for _ in range(10)]
    named = [(f"{i}.w", parameter) for i, parameter in enumerate(parameters)]
    tracker = AgingTracker(named, LogTimeSchedule([0, 1], range(1, 1000)), sample=None)
    times = [seconds(lambda step=step: tracker.update(step)) for step in range(600)]  # type: ignore[misc]
    tracker.drain()
    return {"tensors": 10, "parameters": 100_000, "due": 2, "seconds": statistics.quantiles(times[100:], n=4)}


def main(arguments: Sequence[str] = ()) -> None:
    """Measure what fits into the memory, and write the table."""
    warnings.filterwarnings("ignore")
    data = []
    for shape in ("1 tensor", "ResNet-18", "tensors of 1,000"):
        for decade in range(4 if shape == "1 tensor" else 6, LARGEST + 1 if shape == "1 tensor" else 8):
            for due in (1, 4, 32):
                # Snapshots, twice more of them for the other ways, and the bytes to be read.
                fits = 4 * 10**decade * (4 * due + 4) < 0.6 * machine_memory()
                data += [measure(shape, 10**decade, due)] if fits else []
    rows = []
    for row in data:
        ways = row["ways"]
        event = ways["event"]["seconds"]
        rows.append(
            [
                row["shape"] if row["tensors"] == 1 else f"{row['shape']} ({row['tensors']:,})",
                f"{row['parameters']:,}",
                row["due"],
                f"{1000 * event[1]:.3g} ({1000 * event[0]:.3g} ... {1000 * event[2]:.3g})",
                *(f"{ways[name]['gb_per_s']:.3g}" if name in ways else "" for name in COLUMNS),
                *(f"{ways[a]['seconds'][1] / ways[b]['seconds'][1]:.1f}" for a, b in AGAINST),
            ]
        )
    header = ["weights (tensors)", "float32 parameters", "due", "event (ms, quartiles)"]
    header += [f"{name} (GB/s)" for name in COLUMNS] + [f"times faster than the {by_hand}" for by_hand, _ in AGAINST]
    text = table(header, rows) + (
        "\n\nGB/s are the bytes of the weights and of all due snapshots, once each, over the time; of `copying` those "
        "read and\nwritten. An event sums all moments and two overlaps. The ways of one row were measured in turns."
    )
    host = host_time()
    low, middle, high = (1e6 * value for value in host["seconds"])
    text += (
        "\n\nAn event of a network of 10 tensors and 100,000 parameters against 2 snapshots, with the tracker's work, "
        f"keeps the\nhost for {middle:.0f} us ({low:.0f} ... {high:.0f})."
    )
    write("moments", "Bandwidth of an event", text, {"rows": data, "host": host})


COLUMNS = (
    "reading",
    "copying",
    "event",
    "event, msd only",
    "eager event",
    "torch.compile",
    "_foreach, msd only",
    "NumPy copy",
    "NumPy copy, msd only",
)

AGAINST = (("NumPy copy", "event"), ("NumPy copy, msd only", "event, msd only"))

if __name__ == "__main__":
    main()
