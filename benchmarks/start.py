"""Time the import of the package, and ``--help``, beside a bare interpreter: ``python -m benchmarks start``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.report import table, write

ROUNDS = 25
CODES = {
    "`pass`": "pass",
    "`import lightning_glassy`": "import lightning_glassy",
    "`lightning-glassy --help`": "from lightning_glassy.cli import main; main(['--help'])",
}
PROMISED = {"`import lightning_glassy`": "50", "`lightning-glassy --help`": "300"}


def main() -> None:
    """Time new processes. They alternate, so that other load meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in CODES}
    for _ in range(ROUNDS):
        for name, code in CODES.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, stdout=subprocess.DEVNULL)
            times[name].append(1e3 * (time.perf_counter() - start))
    bare = statistics.median(times["`pass`"])
    rows = []
    for name, found in times.items():
        median = statistics.median(found)
        more = f"{median - bare:.0f}" if name in PROMISED else ""
        rows.append([name, f"{median:.0f} ({min(found):.0f} ... {max(found):.0f})", more, PROMISED.get(name, "")])
    header = ["new process", "median (range), ms", "more than a bare interpreter, ms", "promised at most, ms"]
    text = f"{table(header, rows)}\n\n{ROUNDS} turns. The promise for the import is for the time that it adds."
    write("start", "Time to start", text, {"milliseconds": times})


if __name__ == "__main__":
    main()
