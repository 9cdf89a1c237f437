"""Compare the cost of a histogram of displacements with a pair's moments: ``python -m benchmarks histogram``."""

from __future__ import annotations

import os
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.report import paired, table, write
from lightning_glassy.callbacks.distribution import DISPLACEMENT_EDGES, _bins, _count
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

N = 1_000_000


def main() -> None:
    torch.manual_seed(0)
    weights = torch.nn.Parameter(torch.randn(N) * 0.05)
    tracked = TrackedParameters(select_parameters([("w", weights)]))
    moments = moments_for(tracked)
    snapshot = capture(SnapshotBank(tracked), 0, moments)
    values = torch.randn(N)
    weights.data += 1e-3 * values
    plain = TrackedParameters(select_parameters([("w", weights)]))
    with patch.dict(os.environ, {"LIGHTNING_GLASSY_EAGER": "1"}):
        _count(plain, DISPLACEMENT_EDGES)  # the first call decides which implementation counts
    scale, edges = torch.tensor(1e3), torch.tensor(np.asarray(DISPLACEMENT_EDGES), dtype=torch.float32)
    rows: list[list[object]] = []
    data = []
    for what, ours, other in (
        (
            "a histogram, against the moments of a pair",
            lambda: _count(tracked, DISPLACEMENT_EDGES, snapshot.flats, scale),
            lambda: moments([snapshot]),
        ),
        (
            "a histogram, against one in plain torch",
            lambda: _count(tracked, DISPLACEMENT_EDGES, snapshot.flats, scale),
            lambda: _count(plain, DISPLACEMENT_EDGES, snapshot.flats, scale),
        ),
        (
            "places of values by their logarithm, against `torch.bucketize`",
            lambda: _bins(values, DISPLACEMENT_EDGES),
            lambda: torch.bucketize(values, edges, right=True),
        ),
    ):
        time = paired(ours, other)
        ratio = f"{time.ratio:.2f} ({time.low:.2f} ... {time.high:.2f})"
        rows.append([what, f"{time.a * 1000:.1f}", f"{time.b * 1000:.1f}", ratio])
        data.append({"what": what} | vars(time))
    header = ["what", "first (ms)", "second (ms)", "ratio, median of 41 pairs (quartiles)"]
    write("histogram", "Cost of a histogram on a million float32 parameters", table(header, rows), data)


if __name__ == "__main__":
    main()
