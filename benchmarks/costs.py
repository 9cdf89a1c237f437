"""Write the table in docs/cost.md from the results of ``event`` and ``training``: ``python -m benchmarks costs``.

This module measures nothing. Each figure is in ``results/event.json`` or ``results/training.json``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, table
from benchmarks.training import WITH_TENSORBOARD

PAGE = Path(__file__).parents[1] / "docs" / "cost.md"
START, END = "<!-- made by: python -m benchmarks costs -->", "<!-- end -->"


def load(name: str) -> dict[str, Any]:
    """Return the results of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def time_of(seconds: float) -> str:
    """Format a time in microseconds or milliseconds."""
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.{1 if seconds < 1e-2 else 0}f} ms"


def costs(event: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """Return the table, and the machines on which it was measured."""
    events = {row["parameters"]: row["ways"] for row in event["results"] if row["due"] == 1 and not row["busy"]}
    by_case: dict[tuple[str, int], dict[str, Any]] = {}
    for row in training["results"]:
        by_case.setdefault((row["case"], row["steps"]), {})[row["callback"]] = row
    rows: list[Sequence[object]] = []
    for (case, steps), callbacks in by_case.items():
        alone, logged = callbacks["AgingMonitor"], callbacks[WITH_TENSORBOARD]
        n = min(events, key=lambda size: abs(size - alone["parameters"]))
        ways = events[n]
        rows.append(
            [
                f"{case}, {steps:,} steps ({alone['events']} events)",
                f"{alone['parameters']:,}",
                time_of(ways["`AgingTracker.update`"]["seconds"]),
                time_of(ways["NumPy, the same sums"]["seconds"]),
                f"{statistics.median(alone['hook_share']):.1%}",
                f"{statistics.median(logged['hook_share']):.1%}",
            ]
        )
    header = ["training", "weights", "one event", "the same sums in NumPy", "hooks over steps", "with TensorBoard"]
    machines = dict.fromkeys(
        f"{run['machine']['cpu']}, {run['machine']['threads']} threads, {run['machine']['date']}"
        for run in (event, training)
    )
    return f"{table(header, rows)}\n\nMeasured on {' and on '.join(machines)}."


def page(text: str, made: str) -> str:
    """Return a page with the table in its place."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{made}\n\n{END}{after}"


def main() -> None:
    """Write the table."""
    made = costs(load("event"), load("training"))
    PAGE.write_text(page(PAGE.read_text(), made))
    print(made)


if __name__ == "__main__":
    main()
