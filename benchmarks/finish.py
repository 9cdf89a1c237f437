"""Time the end of a training, and a report, against the size of the record: ``python -m benchmarks finish``.

The columns are the summary, the figures of a logger, the table, and a report with its figures and page.
"""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.report import seconds, table, write
from lightning_glassy import AgingRecord
from lightning_glassy.callbacks.summary import summary
from lightning_glassy.loggers.figures import Figures, png
from lightning_glassy.report import report

BEFORE = """Before large records were thinned (commit 71de484, on an AMD EPYC), the summary took 1.3 s, 8.1 s and 23 s
for 20 x 60, 40 x 100 and 80 x 100. The machine was shared, so times vary by a factor of two."""

SIZES = [(20, 60, None), (40, 100, None), (200, 200, None), (300, 300, None), (200, 200, 16)]


def record_of(n_tw: int, n_lag: int, n_replica: int | None) -> AgingRecord:
    """Return curves that scale with t/t_w^0.7, with 2 % of noise. All waiting times are in the window of the fit."""
    rng, record = np.random.default_rng(0), AgingRecord({"all": 1000}, n_replica=n_replica)
    shape = (1, 7) if n_replica is None else (n_replica, 1, 7)
    for waiting_time in np.geomspace(1e4, 1e6, n_tw).round().astype(int).tolist():
        for lag in np.geomspace(1e3, 1e7, n_lag).round().astype(int).tolist():
            moments = np.ones(shape)
            moments[..., 0] = (lag / waiting_time**0.7) ** 0.5 * np.exp(0.02 * rng.normal(size=shape[:-1]))
            record.append(waiting_time, lag, moments)
    return record


def peak(run: Callable[[], object]) -> float:
    """Return the megabytes that a call takes at its peak."""
    tracemalloc.start()
    run()
    found = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return found


def measured(record: AgingRecord, path: Path) -> dict[str, float]:
    """Return the seconds of each way, and the megabytes of the summary."""
    ways: dict[str, Callable[[], object]] = {
        "summary": lambda: summary(record, "AgingMonitor"),
        "figures": lambda: [png(figure) for _, figure in Figures("").draw(record)],
        "table": lambda: record.to_csv(path / "table.csv"),
        "report": lambda: report(record).write(path),
    }
    ways["figures"]()  # imports
    return {name: seconds(run) for name, run in ways.items()} | {"megabytes": peak(ways["summary"])}


def main() -> None:
    """Measure, and write ``results/finish.md``."""
    rows, found = [], []
    for n_tw, n_lag, n_replica in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            result = measured(record_of(n_tw, n_lag, n_replica), Path(folder))
        *times, memory = result.values()
        size = f"{n_tw} x {n_lag}" + (f" x {n_replica} replicas" if n_replica else "")
        rows.append([size, *(f"{time:.1f} s" for time in times), f"{memory:.0f} MB"])
        found.append({"size": size, **result})
    header = ["waiting times x lags", "summary", "figures", "table", "report", "memory of the summary"]
    text = BEFORE + "\n\n" + table(header, rows)
    write("finish", "The end of a training against the size of its record", text, found)


if __name__ == "__main__":
    main()
