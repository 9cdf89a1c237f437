"""The cost of an event against reading the same bytes once with ``torch.sum``; ``python -m benchmarks event``.

An event reads the weights and each due snapshot; no measurement can be cheaper than that reading.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.report import paired, table, write
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import Snapshot, SnapshotBank

N = 10_000_000
EPS = (5e-4, 5e-3)


def layers(shape: str) -> list[tuple[str, torch.nn.Parameter]]:
    """Ten million float32 weights: one tensor, or as in a network, many large ones with a small one after each."""
    sizes = [N] if shape == "1 tensor" else [n for _ in range(100) for n in (N // 100 - 500, 500)]
    return [(f"w{i}", torch.nn.Parameter(torch.randn(n) * 0.05)) for i, n in enumerate(sizes)]


def peak_bytes(moments: EagerMoments, snapshots: list[Snapshot]) -> int:
    """Largest memory an event has allocated at once, its scratch among it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        moments(snapshots)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    rows: list[list[object]] = []
    data: list[dict[str, Any]] = []
    for shape in ("1 tensor", "200 tensors"):
        for n_due in (1, 4):
            torch.manual_seed(0)
            parameters = layers(shape)
            tracked = TrackedParameters(select_parameters(parameters))
            bank = SnapshotBank(tracked)
            snapshots = [capture(bank, k, EagerMoments(tracked)) for k in range(n_due)]
            with torch.no_grad():
                for _, parameter in parameters:
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
            weights = [parameter.detach() for _, parameter in parameters]

            def read(weights: list[torch.Tensor] = weights, snapshots: list[Snapshot] = snapshots) -> None:
                for tensor in weights:
                    tensor.sum()
                for snapshot in snapshots:
                    snapshot.flats[0].sum()

            for what, moments, promise in (
                ("MSD alone", EagerMoments(tracked, msd_only=True), 2.0),
                ("all moments, no overlap", EagerMoments(tracked), None),
                ("all moments, 2 overlaps", EagerMoments(tracked, EPS), 5.0),
            ):
                time = paired(lambda m=moments, s=snapshots: m(s), read)  # type: ignore[misc]
                fresh = EagerMoments(tracked, EPS, msd_only=what == "MSD alone")
                memory = peak_bytes(fresh, snapshots) / 2**20
                rows.append(
                    [
                        shape,
                        n_due,
                        what,
                        f"{time.a * 1000.0:.1f}",
                        f"{time.b * 1000.0:.1f}",
                        f"{time.ratio:.2f} ({time.low:.2f} ... {time.high:.2f})",
                        promise or "",
                        f"{memory:.1f}",
                    ]
                )
                data.append({"shape": shape, "due": n_due, "moments": what, "peak_mib": memory} | vars(time))
    header = ["weights", "snapshots due", "what", "event (ms)", "`torch.sum` of the same bytes (ms)"]
    header += ["ratio, median of 41 pairs (quartiles)", "promised at most", "scratch (MiB)"]
    write("event", "Cost of an event on 10 million float32 parameters", table(header, rows), data)


if __name__ == "__main__":
    main()
