"""Count how the default schedule grows with the length of the run, without timing: ``python -m benchmarks growth``."""

from __future__ import annotations

import math

from benchmarks.report import table, write
from lightning_glassy.schedule import schedule_growth


def main() -> None:
    growth = schedule_growth([10**k for k in range(3, 9)])
    rows = [
        [
            f"10^{round(math.log10(g.max_step))}",
            f"{g.n_events:,}",
            f"{g.n_pairs:,}",
            g.max_live_snapshots,
            f"{g.n_events / math.log10(g.max_step) ** 2:.1f}",
            f"{g.n_pairs / math.log10(g.max_step) ** 2:.1f}",
            f"{g.max_live_snapshots / math.log10(g.max_step):.2f}",
        ]
        for g in growth
    ]
    header = ["steps T", "events", "pairs", "snapshots"]
    header += ["events / (log10 T)^2", "pairs / (log10 T)^2", "snapshots / log10 T"]
    text = table(header, rows) + "\n\nEvents are the steps at which something happens; early pairs share theirs."
    write("growth", "The default schedule against the length of the run", text, [vars(g) for g in growth])


if __name__ == "__main__":
    main()
