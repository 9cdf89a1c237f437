"""Part: hardware counters of the kernels, on machines with Nsight Compute."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.device.findings import Findings

ROOT = Path(__file__).parents[2]

METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
)

EVENTS = """
import torch
from benchmarks.device.bandwidth import Case
with torch.no_grad():
    for dtype in (torch.float32, torch.bfloat16):
        case = Case.make([1 << 26], dtype, "cuda")
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        for n_due in (1, 8):
            case.ours(case.snapshots[:n_due])
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
"""


def run(findings: Findings) -> None:
    """Read the counters of all launches of our kernels, and write them to the log."""
    if not findings.cuda or not shutil.which("ncu"):
        findings.say("not measured: there is no ncu, or no GPU")
        return
    # Do not change the settings of the clocks, because the GPU may be shared.
    command = [
        "ncu",
        "--clock-control",
        "none",
        "--profile-from-start",
        "no",
        "--kernel-name",
        "regex:_sum_jobs|_add_jobs",
    ]
    command += ["--metrics", ",".join(METRICS), sys.executable, "-c", EVENTS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(findings.left - 5, 1)
        )
        printed, code = done.stdout + done.stderr, str(done.returncode)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        code = "over its limit"
    findings.say(f"exit status {code}\n{printed[-12_000:]}")
    findings.keep(exit_status=code, counters=printed[-30_000:])
