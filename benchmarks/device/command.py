"""Start the parts one after the other, end parts that take too long, and write the verdict."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.device.findings import Findings, load, store
from benchmarks.device.verdict import verdict

ROOT = Path(__file__).parents[2]
BUDGET = 410.0  # seconds of all parts together


@dataclass(frozen=True)
class Part:
    """A part: its module, and its limits in seconds on a GPU and in a dry run."""

    module: str
    limit: float
    dry_limit: float = 120.0
    usual: bool = True

    @property
    def name(self) -> str:
        """Name of the part on the command line and in the results."""
        return self.module.rsplit(".", 1)[-1]


# The most important parts come first. If the time is short, the last parts are left out. The trainings come after a
# shorter part, because they can run with fewer pairs.
PARTS = (
    Part("benchmarks.device.versions", 30),
    Part("benchmarks.device.exact", 60),
    Part("benchmarks.device.cuda_tests", 140),
    Part("benchmarks.device.bandwidth", 100),
    Part("benchmarks.device.host_time", 40),
    Part("benchmarks.device.waits", 40),
    Part("benchmarks.device.trace", 30),
    Part("benchmarks.device.trainings", 85),
    Part("benchmarks.device.variants", 60, usual=False),
    Part("benchmarks.device.counters", 60, usual=False),
)


def run_parts(parts: Sequence[Part], folder: Path, *, dry: bool, budget: float, options: Sequence[str] = ()) -> None:
    """Run the parts, each in its own process and process group, and write how each of them ended."""
    begin = time.monotonic()
    results = load(folder)
    for part in parts:  # results of an earlier run would look new
        results["parts"].pop(part.name, None)
    results["verdict"] = []
    store(folder, results)
    for part in parts:
        findings = Findings(folder, part.name)
        left, limit = budget - (time.monotonic() - begin), part.dry_limit if dry else part.limit
        limit = min(limit, left)
        if left < 8:
            findings.say("left out: no time")
            findings.keep(state="left out: no time")
            continue
        start = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.device.part", part.module, "--out", str(folder)]
        command += ["--limit", f"{limit:.1f}", *(["--dry"] if dry else []), *options]
        # A dry run measures in plain torch, which runs on a GPU and on a CPU.
        state = ended(command, limit, {"LIGHTNING_GLASSY_EAGER": "1"} if dry else None)
        findings.say(f"{state}, {time.monotonic() - start:.1f} s, {time.monotonic() - begin:.0f} s in all")
        findings.keep(state=state, seconds=round(time.monotonic() - start, 1))
    results = load(folder)
    results["verdict"] = verdict(results)
    store(folder, results)


def ended(command: Sequence[str], limit: float, more: Mapping[str, str] | None = None) -> str:
    """Run a command, kill its process group at the time limit or at its end, and return how it ended."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **(more or {})}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        until, over = time.monotonic() + limit, False
        # The process stays a zombie until wait() is called, so that no other process can get the number of its group.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and not over:
            time.sleep(0.05)
            over = time.monotonic() > until
    finally:
        # Kill the group in every case, because processes of this part must not disturb the next part.
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    if over:
        return f"ended after {limit:.0f} s"
    return "done" if code == 0 else f"failed, exit status {code}"


def main(arguments: Sequence[str] = ()) -> None:
    """Run the command."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks device", description="Measure what only a GPU can tell."
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--dry", action="store_true", help="on a CPU, small, without any figure of a GPU")
    usual = ",".join(part.name for part in PARTS if part.usual)
    parser.add_argument("--parts", default=usual, help=f"some of {', '.join(names)} (default {usual})")
    parser.add_argument("--variants", type=Path, help="folder with other versions of moments/triton.py, to compare")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of all parts together (default 410)")
    parser.add_argument("--precompile", action="store_true", help="fill a cache of kernels, without a GPU, and end")
    given = parser.parse_args(arguments)
    if given.precompile:
        from benchmarks.device.precompile import precompile

        precompile()
        return
    if given.out is None:
        parser.error("--out FOLDER: name the folder of the results")
    chosen = given.parts.split(",")
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"--parts: no part {unknown[0]!r}; there are {', '.join(names)}")
    if given.variants is not None:
        if not given.variants.is_dir():
            parser.error(f"--variants {given.variants}: no such folder")
        chosen += [] if "variants" in chosen else ["variants"]
    if not given.dry and not _has_gpu():
        parser.error("torch sees no CUDA device here: --dry tries the command on a CPU")
    given.out.mkdir(parents=True, exist_ok=True)
    options = [] if given.variants is None else ["--variants", str(given.variants.resolve())]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the running part is ended, too
    parts = [part for part in PARTS if part.name in chosen]
    budget = 1200.0 if given.dry and given.budget == BUDGET else given.budget
    run_parts(parts, given.out.resolve(), dry=given.dry, budget=budget, options=options)
    print((given.out / "summary.md").read_text(), flush=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
