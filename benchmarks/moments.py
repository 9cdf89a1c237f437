"""Measure the bytes per second of an event, and of other ways to the same numbers: ``python -m benchmarks moments``.

The models are small to large, in one tensor, in the 62 tensors of a ResNet-18 or in thousands of small tensors. An
event compares the weights with 1 to 32 snapshots. The other ways are the same moments in torch compiled by
``torch.compile``, the displacement alone by ``torch._foreach_*``, and a NumPy copy of all weights.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.by_hand import EPS, numpy_moments, numpy_msd, numpy_weights
from benchmarks.host import event_seconds, event_tracker
from benchmarks.models import resnet18
from benchmarks.report import TOO_LONG, in_turns, machine_memory, table, write
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGEST = 9 if DEVICE == "cuda" else 7  # decade of the largest model, of any shape
MOST_TENSORS = 100_000


def sizes(shape: str, n: int) -> list[int]:
    """Return the number of coordinates of each tensor, about ``n`` in all."""
    if shape == "ResNet-18":
        parts = [p.numel() for p in resnet18().parameters()]
        return [max(1, round(part * n / sum(parts))) for part in parts]
    return [n] if shape == "1 tensor" else [1000] * (n // 1000)


def compiled(weights: list[Tensor], snapshots: list[list[Tensor]]) -> Callable[[], object]:
    """Return a function that computes the moments of flat weights against each snapshot, in plain torch, compiled."""
    flat = torch.cat([w.flatten() for w in weights])
    flats = [torch.cat([s.flatten() for s in snapshot]) for snapshot in snapshots]

    @torch.compile(dynamic=False)
    def moments(w: Tensor, s: Tensor) -> Tensor:
        w, s = w.float(), s.float()
        d = w - s
        d2 = d * d
        quantities = [d2, d2 * d2, w * s, w * w, s * s, w, s, *((d.abs() <= eps).to(w.dtype) for eps in EPS)]
        return torch.stack([quantity.sum() for quantity in quantities])

    return lambda: [moments(flat, s) for s in flats]


def foreach(weights: list[Tensor], snapshots: list[list[Tensor]]) -> Callable[[], object]:
    """Return a function that computes the displacement alone, from a list of differences as large as the model."""
    return lambda: [torch._foreach_norm(torch._foreach_sub(weights, snapshot)) for snapshot in snapshots]


def fits(shape: str, n: int, due: int) -> bool:
    """Return whether a row fits into the memory of device and host, and has at most ``MOST_TENSORS`` tensors."""
    if shape == "tensors of 1,000" and n > 1000 * MOST_TENSORS:
        return False
    # On the device: weights and snapshots, copies of them for _foreach and for torch.compile, and the bytes to read.
    on_device, on_host = 4 * n * (4 * due + 5), 4 * n * (due + 5)
    if DEVICE == "cpu":
        return on_device + on_host < 0.6 * machine_memory("cpu")
    return on_device < 0.6 * machine_memory(DEVICE) and on_host < 0.6 * machine_memory("cpu")


@torch.no_grad()
def measure(shape: str, n: int, due: int, speeds: dict[str, float]) -> dict[str, Any]:
    """Measure each way in turns.

    Args:
        shape: how the coordinates are spread over tensors.
        n: number of coordinates.
        due: number of snapshots.
        speeds: bytes per second of each way in the row before, updated here. A way that would take longer than
            ``TOO_LONG`` seconds is left out.
    """
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(size, device=DEVICE) * 0.05) for size in sizes(shape, n)]
    total = sum(p.numel() for p in parameters)
    tracked = TrackedParameters(select_parameters([(f"w{i}", p) for i, p in enumerate(parameters)]))
    bank, ours = SnapshotBank(tracked), moments_for(tracked, EPS)
    snapshots = [capture(bank, k, ours) for k in range(due)]
    earlier = [[p.clone() for p in parameters] for _ in range(due)]
    copies = [numpy_weights(parameters).copy() for _ in range(due)]
    for p in parameters:
        p.add_(torch.randn_like(p) * 1e-3)
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
    n_bytes = dict.fromkeys(ways, 4 * total * (1 + due)) | {"copying": 8 * total}
    left_out = [name for name in ways if n_bytes[name] / speeds.get(name, float("inf")) > TOO_LONG]
    ways = {name: way for name, way in ways.items() if name not in left_out}
    found: dict[str, Any] = {}
    for name, times in in_turns(ways, DEVICE, repeats=11 if total * due < 3e7 else 7).items():
        speeds[name] = n_bytes[name] / times.median
        found[name] = {"seconds": asdict(times), "gb_per_s": speeds[name] / 1e9}
    row = {"shape": shape, "tensors": len(parameters), "parameters": total, "due": due, "ways": found}
    words = ", ".join(f"{name} {way['gb_per_s']:.3g}" for name, way in found.items())
    print(f"{shape}, {n:,}, {due}: {words} GB/s", flush=True)
    return row | {"left_out": left_out}


def host_time() -> dict[str, Any]:
    """Return the quartiles of the seconds for which an event of a small network delays the next step."""
    tracker = event_tracker(10, DEVICE, 500)
    times = event_seconds(tracker, 500)
    tracker.drain()
    return {"tensors": 10, "parameters": 10_000, "due": 2, "seconds": statistics.quantiles(times, n=4)}


def main(arguments: Sequence[str] = ()) -> None:
    """Measure all rows that fit into the memory, and write the table."""
    warnings.filterwarnings("ignore")
    data = []
    for shape in ("1 tensor", "ResNet-18", "tensors of 1,000"):
        speeds: dict[str, float] = {}
        decades = range(4 if shape == "1 tensor" else 6, LARGEST + 1)
        fitting = [(10**k, due) for k, due in product(decades, (1, 4, 32)) if fits(shape, 10**k, due)]
        data += [measure(shape, n, due, speeds) for n, due in fitting]
    rows = []
    for row in data:
        ways, event = row["ways"], row["ways"]["event"]["seconds"]
        rows.append(
            [
                row["shape"] if row["tensors"] == 1 else f"{row['shape']} ({row['tensors']:,})",
                f"{row['parameters']:,}",
                row["due"],
                f"{1000 * event['median']:.3g} ({1000 * event['low']:.3g} ... {1000 * event['high']:.3g})",
                *(_speed(row, name) for name in COLUMNS),
                *(_ratio(ways, a, b) for a, b in AGAINST),
            ]
        )
    header = ["weights (tensors)", "float32 parameters", "due", "event (ms, quartiles)"]
    header += [f"{name} (GB/s)" for name in COLUMNS] + [f"times faster than the {by_hand}" for by_hand, _ in AGAINST]
    text = table(header, rows) + (
        "\n\nGB/s are the bytes of the weights and of all due snapshots, once each, over the time; of `copying` those "
        "read and\nwritten. An event sums all moments and two overlaps. The ways of one row were measured in turns. An "
        "asterisk marks a way\nthat was run once, because it took seconds. A way that would have taken more than "
        f"{TOO_LONG:.0f} s was left out. The NumPy\ncopy takes d^4 as (d^2)^2: NumPy's `d**4` is many times slower."
    )
    host = host_time()
    low, middle, high = (1e6 * value for value in host["seconds"])
    text += (
        "\n\nAn event of a network of 10 tensors and 10,000 parameters against 2 snapshots, with the tracker's work, "
        f"keeps the\nhost for {middle:.0f} us ({low:.0f} ... {high:.0f})."
    )
    write("moments", "Bandwidth of an event", text, {"rows": data, "host": host}, DEVICE)


def _speed(row: dict[str, Any], name: str) -> str:
    if name not in row["ways"]:
        return "left out" if name in row["left_out"] else ""
    way = row["ways"][name]
    return f"{way['gb_per_s']:.3g}{'*' if way['seconds']['calls'] == 1 else ''}"


def _ratio(ways: dict[str, Any], a: str, b: str) -> str:
    return f"{ways[a]['seconds']['median'] / ways[b]['seconds']['median']:.1f}" if a in ways and b in ways else ""


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
