"""Measure the cost of an event, from a thousand to ten million weights: ``python -m benchmarks event``.

The cost is compared with reading the same bytes once, and with code written by hand. No measurement can be faster than
the reading. All ways take turns in one process, first on a quiet machine and then beside a process that never rests.
``--quick`` measures the two smallest sizes, and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.by_hand import EPS, numpy_moments, numpy_pair, numpy_weights
from benchmarks.moments import compiled
from benchmarks.report import seconds, table, write
from lightning_glassy import AgingTracker, LogTimeSchedule
from lightning_glassy.measure.moments import EagerMoments

# 784-5-5-5-10 is the network of both papers. The other sizes have four equal layers, each with weights and ten biases.
PAPERS = (3920, 5, 25, 5, 25, 5, 50, 10)
SIZES = (1_250, 4_045, 100_000, 1_000_000, 10_000_000)
DUE = (1, 4)

# ENOUGH: seconds that all ways of a row may take. TURNS: the largest number of turns.
ENOUGH, TURNS = 20.0, 301

Row = tuple[int, int, bool]  # parameters, due snapshots, and whether a busy process runs beside

# A process that keeps a core busy and does not load the memory.
BUSY = "while True: pass"


def weights_of(n: int) -> list[torch.nn.Parameter]:
    """Return float32 weights in tensors like the tensors of a network."""
    sizes = PAPERS if n == sum(PAPERS) else [part for _ in range(4) for part in (n // 4 - 10, 10)]
    return [torch.nn.Parameter(torch.randn(size) * 0.05) for size in sizes]


def tracker_of(parameters: list[torch.nn.Parameter], due: int, events: int) -> AgingTracker:
    """Return a tracker that compares the weights with ``due`` snapshots at each step from ``due`` on."""
    named = [(f"{index}.w", parameter) for index, parameter in enumerate(parameters)]
    schedule = LogTimeSchedule(range(due), range(1, due + events + 1))
    return AgingTracker(named, schedule, sample=None, overlap_thresholds=EPS)


class Clocked:
    """Calls ``update`` for one step after the other."""

    def __init__(self, tracker: AgingTracker, due: int) -> None:
        self.tracker, self.step = tracker, due
        for step in range(due):
            tracker.update(step)

    def __call__(self) -> None:
        """Handle the event of the next step."""
        self.tracker.update(self.step)
        self.step += 1


@torch.no_grad()
def ways_of(n: int, due: int) -> dict[str, Callable[[], object]]:
    """Return the ways to measure ``n`` weights against ``due`` snapshots."""
    torch.manual_seed(0)
    parameters = weights_of(n)
    update = Clocked(tracker_of(parameters, due, 3 * TURNS), due)
    for parameter in parameters:
        parameter.add_(torch.randn_like(parameter) * 1e-3)
    tracker = update.tracker
    snapshots = list(tracker._bank.live.values())
    eager = EagerMoments(tracker.parameters, EPS)
    copies = [numpy_weights(parameters).copy() for _ in range(due)]
    flats = [torch.cat([p.flatten() for p in parameters]) for _ in range(due)]

    def by_hand(quantities: Callable[..., object]) -> None:
        w = numpy_weights(parameters)
        for s in copies:
            quantities(w, s)

    def read() -> None:
        for parameter in parameters:
            parameter.sum()
        for snapshot in snapshots:
            snapshot.flats[0].sum()

    def two_sums() -> None:
        w = torch.cat([p.detach().flatten() for p in parameters])
        for s in flats:
            ((w - s).square().mean().item(), (w * s).mean().item())

    return {
        "`AgingTracker.update`": update,
        "its sums": lambda: tracker._moments(snapshots),
        "`torch.sum` of the bytes": read,
        "plain torch": lambda: eager(snapshots),
        "NumPy, the same sums": lambda: by_hand(numpy_moments),
        "NumPy, five sums": lambda: by_hand(numpy_pair),
        "loop of two sums": two_sums,
        "`torch.compile`": compiled(parameters, [[s] for s in flats]),  # type: ignore[arg-type]
    }


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Keep one core busy with another process."""
    process = subprocess.Popen([sys.executable, "-c", BUSY]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def in_turns(ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Time all ways in turns, and return the seconds of each turn. A way that fails is left out."""
    usable = {}
    for name, run in ways.items():
        try:
            run(), run()
            usable[name] = run
        except Exception as error:  # no compiler
            print(f"{name} failed ({type(error).__name__}: {str(error)[:200]})", flush=True)
    once = sum(seconds(run) for run in usable.values())
    turns = max(7, min(TURNS, int(ENOUGH / once)))
    times: dict[str, list[float]] = {name: [] for name in usable}
    for _ in range(turns):
        for name, run in usable.items():
            times[name].append(seconds(run))
    return times


def row_of(n: int, due: int, beside: bool) -> dict[str, Any]:
    """Measure one row of the table."""
    ways = ways_of(n, due)
    with busy(beside):
        update = ways["`AgingTracker.update`"]
        alone = statistics.median(seconds(update) for _ in range(TURNS if n < 10**6 else 15))
        times = in_turns(ways)
    first, sums = times["`AgingTracker.update`"], times["its sums"]
    found: dict[str, dict[str, Any]] = {
        name: {
            "seconds": statistics.median(values),
            "quartiles": statistics.quantiles(values, n=4),
            "of_update": statistics.median(x / y for x, y in zip(values, first, strict=True)),
            "of_sums": statistics.median(x / y for x, y in zip(values, sums, strict=True)),
        }
        for name, values in times.items()
    }
    row = {"parameters": n, "due": due, "busy": beside, "turns": len(first), "ways": found, "alone": alone}
    print(f"{n:,}, {due}, {'busy' if beside else 'quiet'}: "
          + ", ".join(f"{name} {way['seconds'] * 1e6:.1f} us" for name, way in found.items()), flush=True)  # fmt: skip
    return row


def text_of(data: Sequence[dict[str, Any]]) -> str:
    """Return two tables: the times, and the promises with the measured ratios."""
    names = list(dict.fromkeys(name for row in data for name in row["ways"]))
    rows = [
        [
            f"{row['parameters']:,}",
            row["due"],
            "one busy process" if row["busy"] else "nothing",
            f"{1e6 * row['alone']:,.1f}",
            *(f"{1e6 * row['ways'][name]['seconds']:,.1f}" if name in row["ways"] else "" for name in names),
        ]
        for row in data
    ]
    header = ["float32 parameters", "due", "beside", "`update` in a loop of its own (us)"]
    header += [f"{name} (us)" for name in names]
    return "\n\n".join(
        [
            table(header, rows),
            "Medians of turns: all ways of a row take turns in one process, and each finds the caches full of the "
            "others' data. Before, `update` runs in a loop of its own. `update` is the whole event: all moments, "
            "two overlaps, the record. The sums in NumPy are the same nine, or five of them (of d^2, w^2, s^2, w s and "
            "one overlap). The loop has the two quantities of Baity-Jesi et al. 2018 alone, from flat copies. "
            "`torch.compile` has the same sums of one flat vector, compiled for its size.",
            "## Promised",
            table(["what", "where", "promised", "median of ratios", ""], promises(data)),
        ]
    )


def promises(data: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Return a row for each promise: its limit, the measured value, and whether the promise is met."""
    by = {(row["parameters"], row["due"], row["busy"]): row["ways"] for row in data}
    alone = {(row["parameters"], row["due"], row["busy"]): 1e6 * row["alone"] for row in data}
    found: list[list[object]] = []

    def promise(
        what: str, where: tuple[int, int, bool], limit: float, value: float | None, least: bool = False
    ) -> None:
        if value is not None:
            met = value >= limit if least else value <= limit
            words = f"{where[0]:,} parameters, {where[1]} due{', beside a busy process' if where[2] else ''}"
            sign = "at least" if least else "at most"
            found.append([what, words, f"{sign} {limit:g}", f"{value:.2f}", "met" if met else "not met"])

    def ratio(where: Row, name: str, key: str) -> float | None:
        return by[where][name][key] if where in by and name in by[where] else None

    def inverse(value: float | None) -> float | None:
        return None if value is None else 1 / value

    for due, limit in ((1, 1.5), (4, 1.3)):
        where = (10_000_000, due, False)
        promise(
            "sums over `torch.sum` of the bytes",
            where,
            limit,
            inverse(ratio(where, "`torch.sum` of the bytes", "of_sums")),
        )
    where = (1_000_000, 1, False)
    promise("plain torch over sums", where, 4, ratio(where, "plain torch", "of_sums"), least=True)
    for n, limit in ((1_250, 40), (4_045, 60)):
        where = (n, 1, False)
        promise("microseconds of `update` in a loop of its own", where, limit, alone.get(where))
        value = inverse(ratio(where, "NumPy, the same sums", "of_update"))
        promise("`update` over NumPy by hand, the same sums", where, 1, value)
    for n in SIZES:
        quiet, beside = (ratio((n, 1, b), "`AgingTracker.update`", "seconds") for b in (False, True))
        promise("time beside a busy process over quiet time", (n, 1, True), 2,
                None if quiet is None or beside is None else beside / quiet)  # fmt: skip
    return found


def main(arguments: Sequence[str] = ()) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="benchmarks event", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, nothing written")
    quick = parser.parse_args(arguments).quick
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # its workers would compete with the ways for the cores
    sizes = SIZES[:2] if quick else SIZES
    data = [row_of(n, due, beside) for beside in (False, True) for n in sizes for due in (DUE[:1] if beside else DUE)]
    text = text_of(data)
    if quick:
        print(text)
    else:
        write("event", "Cost of an event on a CPU", text, data)


if __name__ == "__main__":
    main(sys.argv[1:])
