"""Part: other versions of the kernels against ours, in sums and in time. Each version is a whole copy of the module.

``--variants FOLDER`` names a folder of copies of ``lightning_glassy/measure/moments/triton.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.device.findings import EPS, Findings
from benchmarks.fake_driver import SEEN, fake_driver
from benchmarks.pretend_cuda import on_cuda, pretend_cuda
from benchmarks.report import in_turns
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import EagerMoments, capture
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

OURS = "as it is"
RESNET_SIZE = 11_173_962


def run(findings: Findings) -> None:
    """Load all versions, and compare them."""
    kinds = load_all(findings)
    if not findings.cuda:
        only_compile(findings, kinds)
        return
    table = findings.table(
        "Versions of the kernels",
        ["version", "dtype", "coordinates", "right", "1 due (GB/s)", "8 due (GB/s)"],
        "All versions of a row of `dtype` and `coordinates` are measured in turns. Right: as plain torch, to 1e-5.",
    )
    found: list[dict[str, Any]] = []
    for dtype in (torch.bfloat16, torch.float32):
        for n in (1 << 16,) if findings.dry else (1 << 27, RESNET_SIZE):
            if findings.left < 10:
                findings.say("no time left for", dtype, n)
                return
            for row in compared(findings, kinds, n, dtype):
                found.append(row)
                rates = (f"{rate:.0f}" for rate in row["gb_per_s"])
                table.add(row["version"], str(dtype).removeprefix("torch."), f"{n:,}", row["right"], *rates)
            findings.keep(variants=found)


def load_all(findings: Findings) -> dict[str, Any]:
    """Return the class of each version that can be imported, ours first."""
    from lightning_glassy.measure.moments.triton import TritonMoments

    kinds: dict[str, Any] = {OURS: TritonMoments}
    paths = sorted(findings.variants.glob("*.py")) if findings.variants is not None else []
    for path in paths:
        with findings.attempt(path.name):
            kinds[path.stem] = _load(path).TritonMoments
    return kinds


def _load(path: Path) -> Any:
    name = f"glassy_variant_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def compared(findings: Findings, kinds: dict[str, Any], n: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Measure all versions with one and with eight due snapshots, in turns."""
    parameter = torch.nn.Parameter((torch.randn(n, device=findings.device) * 0.05).to(dtype))
    tracked = TrackedParameters(select_parameters([("w", parameter)]))
    bank, plain = SnapshotBank(tracked), EagerMoments(tracked, EPS)
    due = [capture(bank, step, plain) for step in range(8)]
    parameter.add_((torch.randn_like(parameter) * 1e-3).to(dtype))
    want = plain(due[:2])[0]
    made, right = {}, {}
    for name, kind in kinds.items():
        try:
            made[name] = kind(tracked, EPS)
            right[name] = bool(torch.allclose(made[name](due[:2])[0], want, rtol=1e-5, atol=5.0))
        except Exception as error:
            findings.say(name, dtype, "failed:", type(error).__name__, str(error)[:300])
            made.pop(name, None)
    rates: dict[str, list[float]] = {name: [] for name in made}
    for n_due in (1, 8):
        ways = {name: partial(ours, due[:n_due]) for name, ours in made.items()}
        for name, times in in_turns(ways, findings.device, repeats=15, enough=1.0).items():
            rates[name].append(dtype.itemsize * n * (1 + n_due) / times.median / 1e9)
    return [
        {"version": name, "dtype": str(dtype), "n": n, "right": right[name], "gb_per_s": rates[name]} for name in made
    ]


def only_compile(findings: Findings, kinds: dict[str, Any]) -> None:
    """Compile each version without a GPU. This finds errors, but checks no sums and measures no time."""
    table = findings.table("Versions of the kernels, compiled only", ["version", "dtype", "kernels compiled", "error"])
    for name, kind in kinds.items():
        for dtype in (torch.bfloat16, torch.float32):
            before, problem = len(SEEN.compiled), ""
            try:
                with fake_driver(), pretend_cuda():
                    named = [("w", torch.nn.Parameter(torch.randn(4096).to(dtype)))]
                    tracked = on_cuda(TrackedParameters(select_parameters(named)))
                    bank, ours = SnapshotBank(tracked), kind(tracked, EPS)
                    ours([capture(bank, 0, ours)], bank.add(1))
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
            table.add(name, str(dtype).removeprefix("torch."), len(SEEN.compiled) - before, problem)
