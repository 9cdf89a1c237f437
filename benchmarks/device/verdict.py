"""Compare the measured figures with the promises. Each promise is "met", "not met" or "not measured"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# The figures of a promise by the names of their cases. ``None`` means not measured.
Figures = Mapping[str, float | None]


@dataclass(frozen=True)
class Promise:
    """A bound, and the figures that it holds for.

    Attributes:
        words: the promise.
        bound: the bound.
        figures: function of the parts' results that returns the figures.
        least: whether the figures must reach the bound. Otherwise they must not exceed it.
        write: function that formats a figure.
    """

    words: str
    bound: float
    figures: Callable[[Mapping[str, Any]], Figures]
    least: bool = False
    write: Callable[[float], str] = "{:.3g}".format


def verdict(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row for each promise: its words, the measured figures, and whether the promise is met.

    One figure beyond the bound is enough for "not met". "Met" needs all figures.
    """
    parts = {name: part for name, part in results["parts"].items() if part.get("gpu")}
    return [_row(promise, parts) for promise in PROMISES]


def _row(promise: Promise, parts: Mapping[str, Any]) -> dict[str, str]:
    found = promise.figures(parts)
    known = {name: value for name, value in found.items() if value is not None and not math.isnan(value)}
    good = {name: value >= promise.bound if promise.least else value <= promise.bound for name, value in known.items()}
    if not all(good.values()):
        judgement = "not met"
    elif known and len(known) == len(found):
        judgement = "met"
    else:
        judgement = "not measured"
    words = ", ".join(f"{name}: {promise.write(known[name])}" if name in known else f"{name}: ?" for name in found)
    return {"promise": promise.words, "measured": words if known else "", "verdict": judgement}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _microseconds(value: float) -> str:
    return f"{value:.0f} us"


def _exact(parts: Mapping[str, Any]) -> Figures:
    found = parts.get("exact", {}).get("exact", {})
    dtypes = ("float32", "bfloat16", "float64", "float16")
    return {dtype: _worst(found.get(f"torch.{dtype}")) for dtype in dtypes}


def _worst(found: Mapping[str, Any] | None) -> float | None:
    if found is None:
        return None
    if found["by"] != "TritonMoments" or not found["same_bits"]:
        return math.inf
    errors = (found["error"], found["ws_error"])
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def _tests(parts: Mapping[str, Any]) -> Figures:
    part = parts.get("cuda_tests", {})
    counts = part.get("counts", {})
    if part.get("exit_status") == 0 and counts.get("passed"):
        return {"failed": float(counts["failed"])}
    if counts.get("failed"):
        return {"failed": float(counts["failed"])}
    return {"failed": None}  # no test has failed, but not all were run


def _of_reading(due: tuple[int, ...], *shapes: str) -> Callable[[Mapping[str, Any]], Figures]:
    def figures(parts: Mapping[str, Any]) -> Figures:
        rows = parts.get("bandwidth", {}).get("events", [])
        found = {(row["tensors"], row["dtype"], row["due"]): row["of_reading"] for row in rows}
        wanted = [(shape, dtype, n) for shape in shapes for dtype in ("float32", "bfloat16") for n in due]
        return {f"{shape}, {dtype}, {n} due": found.get((shape, dtype, n)) for shape, dtype, n in wanted}

    return figures


def _host(n: str) -> Callable[[Mapping[str, Any]], Figures]:
    def figures(parts: Mapping[str, Any]) -> Figures:
        found = parts.get("host_time", {}).get("host", {}).get(n)
        return {"median": None if found is None else 1e6 * found["seconds"][1]}

    return figures


def _launches(parts: Mapping[str, Any]) -> Figures:
    found = _traced(parts)
    # A profiler that sees no kernel has measured nothing.
    return {name: float(len(event["kernels"])) or None if event else None for name, event in found.items()}


def _waits(parts: Mapping[str, Any]) -> Figures:
    found = parts.get("waits", {}).get("waits", {})
    wanted = ("on the device", "snapshot_device='cpu'", "groups='layer'", "moments='msd'")
    figures: dict[str, float | None] = {
        name: float(found[name]["ours"] or (found[name]["error"] != "passed")) if name in found else None
        for name in wanted
    }
    for name, event in _traced(parts).items():
        figures[f"profile of {name}"] = float(len(event["waits"])) if event and event["kernels"] else None
    return figures


def _traced(parts: Mapping[str, Any]) -> dict[str, Any]:
    found = parts.get("trace", {}).get("events", {})
    wanted = [
        f"{model}, {event}" for model in ("10 tensors", "ResNet-18") for event in ("1 due", "4 due and a capture")
    ]
    return {name: found.get(name) for name in wanted}


def _hooks(parts: Mapping[str, Any]) -> Figures:
    part = parts.get("trainings", {})
    shares = sorted(pair["share"] for pair in part.get("pairs", []))
    if not shares or not part["network"].startswith("ResNet-18"):
        return {"median of the pairs": None}
    # A callback that stops measuring costs little, so its time does not count.
    complete = all(pair["complete"] for pair in part["pairs"])
    return {"median of the pairs": shares[len(shares) // 2] if complete else math.inf}


# The part ``bandwidth`` has the same names of models. A test compares them.
FEW = ("4 tensors, 1e8 bytes an event", "4 tensors, 1e9 bytes an event")

PROMISES = (
    Promise("sums of every dtype within 1e-6 of float64, by the kernels, twice the same bits", 1e-6, _exact),
    Promise("no test of `pytest -m cuda` fails", 0, _tests, write="{:.0f}".format),
    Promise("from 1e8 bytes on, few tensors: at least 90 % of the bandwidth of reading", 0.9,
            _of_reading((1, 4, 32), *FEW), least=True, write=_percent),
    Promise("62 tensors of a ResNet-18, 1 due: at least 75 %", 0.75, _of_reading((1,), "ResNet-18"), least=True,
            write=_percent),
    Promise("62 tensors of a ResNet-18, 4 due: at least 90 %", 0.9, _of_reading((4,), "ResNet-18"), least=True,
            write=_percent),
    Promise("at most 3 launches an event", 3, _launches, write="{:.0f}".format),
    Promise("host time of an event of 10 tensors at most 60 us", 60, _host("10"), write=_microseconds),
    Promise("host time of an event of 1,000 tensors at most 150 us", 150, _host("1000"), write=_microseconds),
    Promise("an event waits for nothing", 0, _waits, write="{:.0f}".format),
    Promise("ResNet-18, 32 x 32, bf16-mixed, batch 128: hooks at most 0.3 % of the time", 0.003, _hooks,
            write="{:.3%}".format),
)  # fmt: skip
