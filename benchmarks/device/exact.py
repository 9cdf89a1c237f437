"""Part: a small event of each precision against float64 NumPy, and the registers of the compiled kernels."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.device.findings import EPS, Findings
from lightning_glassy.measure.layout import TrackedParameters
from lightning_glassy.measure.moments import capture, moments_for
from lightning_glassy.measure.select import select_parameters
from lightning_glassy.measure.snapshots import SnapshotBank

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def run(findings: Findings) -> None:
    """Compare each precision."""
    table = findings.table(
        "A small event against float64 NumPy",
        ["dtype", "by", "error of d2, d4, w2, s2", "of ws", "counts off", "same bits twice", "first (s)", "second (s)"],
        "Promised: relative errors of 1e-6 at most. The error of ws is relative to (w2 + s2)/2. The counts of an "
        "overlap may be off\nby coordinates at the threshold. The last two columns: the seconds of `moments_for`, with "
        "and without compiling.",
    )
    exact: dict[str, Any] = {}
    for dtype in DTYPES:
        with findings.attempt(dtype):
            found = exact[str(dtype)] = compare(dtype, findings.device)
            table.add(
                str(dtype).removeprefix("torch."),
                found["by"],
                *(f"{found[name]:.1e}" for name in ("error", "ws_error")),
                f"{found['counts_off']:.0f} of {found['counted']:,}",
                found["same_bits"],
                *(f"{found[name]:.2f}" for name in ("first_s", "second_s")),
            )
            findings.keep(exact=exact)
    if kernels := compiled_kernels():
        table = findings.table("Compiled kernels", ["kernel", "registers", "spilled bytes", "shared bytes"])
        for row in kernels:
            table.add(*row)
        findings.keep(kernels=kernels)


def compare(dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Measure three snapshots, with a capture. Some of the tensors are not aligned or not dense."""
    parameters = [torch.randn(n, dtype=torch.float64).mul(0.05).to(dtype).to(device) for n in (70_001, 4096, 64, 10)]
    parameters.append((torch.randn(4097) * 0.05).to(dtype).to(device)[1:])
    parameters.append((torch.randn(6, 400) * 0.05).to(dtype).to(device)[:, ::2])
    named = [(f"layer{index}.w", torch.nn.Parameter(parameter)) for index, parameter in enumerate(parameters)]
    tracked = TrackedParameters(select_parameters(named, groups="layer"))
    start = time.perf_counter()
    ours = moments_for(tracked, EPS)
    first = time.perf_counter() - start
    moments_for(tracked, EPS)
    second = time.perf_counter() - start - first
    bank, earlier = SnapshotBank(tracked), []
    for step in range(3):
        capture(bank, step, ours)
        earlier.append([_flat(parameter) for _, parameter in named])
        with torch.no_grad():
            for _, parameter in named:
                parameter.add_((0.01 * torch.randn(parameter.shape)).to(dtype).to(device))
    due = list(bank.live.values())
    sums = ours(due, bank.add(3))[0].cpu().numpy()  # [n_cell, n_snapshot, n_moment]
    again = ours(due)[0].cpu().numpy()
    found: dict[str, Any] = {"by": type(ours).__name__, "error": 0.0, "ws_error": 0.0, "counts_off": 0.0, "counted": 0}
    for i, (_, parameter) in enumerate(named):
        for j in range(3):
            got, want = sums[i, j], exact_sums(_flat(parameter), earlier[j][i])
            positive = [0, 1, 3, 4]
            found["error"] = max(found["error"], *np.abs(got[positive] / want[positive] - 1))
            found["ws_error"] = max(found["ws_error"], abs(got[2] - want[2]) / ((want[3] + want[4]) / 2))
            found["counts_off"] = max(found["counts_off"], np.abs(got[7:] - want[7:]).max())
            found["counted"] = max(found["counted"], parameter.numel())
    found |= {"same_bits": np.array_equal(sums, again), "first_s": first, "second_s": second}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


def exact_sums(w: NDArray[np.float64], s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moments of one pair in float64, in the order of ``MOMENTS``, and the overlaps."""
    d = w - s
    d2 = d * d
    sums = [
        d2.sum(),
        (d2 * d2).sum(),
        w @ s,
        w @ w,
        s @ s,
        w.sum(),
        s.sum(),
        *((np.abs(d) <= eps).sum() for eps in EPS),
    ]
    return np.array(sums, dtype=np.float64)


def compiled_kernels() -> list[list[object]]:
    """Return name, registers, spilled bytes and shared bytes of each kernel that this process has compiled."""
    module = sys.modules.get("lightning_glassy.measure.moments.triton")
    rows = []
    for name, function in sorted(vars(module).items()) if module is not None else ():
        for cache in getattr(function, "device_caches", {}).values():
            for kernel in cache[0].values():
                shared = getattr(kernel.metadata, "shared", "?")
                rows.append([name, getattr(kernel, "n_regs", "?"), getattr(kernel, "n_spills", "?"), shared])
    return rows


def _flat(parameter: torch.Tensor) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = parameter.detach().double().cpu().numpy().ravel().copy()
    return flat
