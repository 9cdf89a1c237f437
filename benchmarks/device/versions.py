"""Part: versions of all packages and tools, and the properties of the GPU."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.device.findings import Findings

PACKAGES = ("torch", "triton", "lightning", "pytorch-lightning", "torchmetrics", "torchvision", "numpy", "scipy",
            "matplotlib", "psutil", "pytest", "pytest-timeout", "pytest-xdist", "pytest-benchmark",
            "hypothesis")  # fmt: skip


def run(findings: Findings) -> None:
    """Write the versions."""
    found: dict[str, Any] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["compiler"] = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    found["CUDA of torch"] = torch.version.cuda
    if findings.cuda:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "L2": getattr(properties, "L2_cache_size", None),
            **_clocks(),
        }
    table = findings.table("Versions", ["what", "version"])
    for name, value in found.items():
        table.add(name, value)
    findings.keep(versions=found)


def _clocks() -> dict[str, str]:
    """Return the clocks and the driver, read only."""
    names = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return dict(zip(names, (word.strip() for word in run.stdout.split(",")), strict=False))
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia-smi": type(error).__name__}
