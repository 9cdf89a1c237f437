"""Compare measuring checkpoints in one pass with the limits of the machine: ``python -m benchmarks measure``.

The limits are the time to read all files once, and the time of ``torch.dot`` for as many bytes as all pairs have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import seconds, table, write
from lightning_glassy import measure_checkpoints
from lightning_glassy.checkpoints import fused
from lightning_glassy.checkpoints.pairs import choose_pairs

N_LAYER = 20

# A case that does not fit on this machine: the 154 public checkpoints of Pythia-12B in float16.
PYTHIA = [0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)]
N_PYTHIA, BYTES_PYTHIA = 12e9, 24e9
DISK, CORES = 2e9, 32
SAMPLE = 1e8


def make(folder: Path, n: int, n_parameters: int) -> list[Path]:
    """Write the checkpoints of a random walk. Each of the ``N_LAYER`` layers has a large weight and a small bias."""
    torch.manual_seed(0)
    width = max(1, n_parameters // N_LAYER - 100)
    state = {f"layers.{k}.weight": 0.02 * torch.randn(width) for k in range(N_LAYER)}
    state |= {f"layers.{k}.bias": torch.zeros(100) for k in range(N_LAYER)}
    files = []
    for step in range(n):
        files.append(folder / f"model_step={100 * step}.pt")
        torch.save(state, files[-1])
        for tensor in state.values():
            tensor.add_(torch.randn(len(tensor)), alpha=2e-4)
    return files


def read(files: Sequence[Path]) -> int:
    """Read all files into one buffer, and return the number of bytes."""
    buffer, total = memoryview(bytearray(4 << 20)), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                total += n
    return total


def memory_speed() -> float:
    """Return the bytes per second of ``torch.dot`` on vectors that are too large for any cache."""
    a, b = torch.ones(2, 20_000_000)
    a.dot(b)
    return float(2 * a.nbytes / min(seconds(lambda: a.dot(b)) for _ in range(5)))


def peak() -> int:
    """Return the largest memory of this process so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        # On Linux, this would be at least the peak of the parent process.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one_pass(folder: Path, numba: bool) -> dict[str, float]:
    """Measure all pairs of the files, and return the seconds and the bytes by which the memory of the process grew."""
    if not numba:
        fused.available = lambda: False
    files = sorted(folder.glob("*.pt"))
    before = peak()
    start = time.perf_counter()
    measure_checkpoints(files)
    return {"seconds": time.perf_counter() - start, "peak": peak() - before}


def alone(folder: Path, numba: bool) -> dict[str, float]:
    """Call :func:`one_pass` in a process of its own."""
    call = f"json.dumps(one_pass(pathlib.Path({str(folder)!r}), {numba}))"
    code = f"import json, pathlib; from benchmarks.measure import one_pass; print({call})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(n: int, n_parameters: int, n_timed: int) -> dict[str, Any]:
    """Measure ``n`` checkpoints. Measure ``n_timed`` pairs alone, to extrapolate the time of all pairs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make(folder, n, n_parameters)
        n_bytes, n_pair = read(files), n * (n - 1) // 2  # the files are in the page cache from here on
        of_read = min(seconds(lambda: read(files)) for _ in range(2))
        speed = memory_speed()
        found, plain = alone(folder, True), alone(folder, False)
        timed = [(files[k % n], files[(k + 1 + k // n) % n]) for k in range(min(n_timed, n_pair))]
        of_pair = sum(seconds(partial(measure_checkpoints, pair)) for pair in timed) / len(timed)
    arithmetic = n_pair * 2 * n_bytes / n / speed
    return {
        "files": n,
        "pairs": n_pair,
        "bytes": n_bytes,
        "read": of_read,
        "memory_speed": speed,
        "arithmetic": arithmetic,
        "one_pass": found["seconds"],
        "without_numba": plain["seconds"],
        "of_limits": found["seconds"] / (of_read + arithmetic),
        "peak": found["peak"],
        "pairs_timed": len(timed),
        "by_pairs": of_pair * n_pair,
        "core_nanoseconds": 1e9 * found["seconds"] * torch.get_num_threads() / n_pair / n_parameters,
    }


def row(result: dict[str, Any]) -> list[object]:
    """Return the cells of one line of the table."""
    return [
        result["files"],
        f"{result['pairs']:,}",
        f"{result['bytes'] / 1e9:.2f}",
        f"{result['read']:.2f}",
        f"{result['arithmetic']:.1f}",
        f"{result['one_pass']:.1f}",
        f"{result['of_limits']:.2f}",
        f"{result['without_numba']:.1f}",
        f"{result['pairs'] / result['one_pass']:.0f}",
        f"{result['bytes'] / result['one_pass'] / 1e6:.0f}",
        f"{result['peak'] / 2**20:.0f}",
        f"{result['by_pairs']:.0f}",
    ]


def on_paper(core_nanoseconds: float) -> tuple[str, list[dict[str, Any]]]:
    """Estimate the time for Pythia-12B from the time of a pair and a coordinate on one core, in nanoseconds."""
    rows, data = [], []
    every, near = choose_pairs(PYTHIA, "all"), choose_pairs(PYTHIA, "log")
    for what, pairs, n in (
        ("all pairs", every, N_PYTHIA),
        ("`--pairs log`", near, N_PYTHIA),
        ("all pairs, `--sample 100000000`", every, SAMPLE),
    ):
        used = len({index for pair in pairs for index in pair})
        reading = used * BYTES_PYTHIA / DISK
        arithmetic = len(pairs) * n * core_nanoseconds * 1e-9 / CORES
        by_pairs = len(pairs) * 2 * BYTES_PYTHIA / DISK
        hours = [f"{time / 3600:.1f}" for time in (reading, arithmetic, max(reading, arithmetic), by_pairs)]
        rows.append([what, f"{len(pairs):,}", used, f"{used * BYTES_PYTHIA / 1e12:.1f}", *hours])
        data.append({"what": what, "pairs": len(pairs), "files": used, "read": reading, "arithmetic": arithmetic})
    header = ["Pythia-12B", "pairs", "files", "read once (TB)", "reading (h)", "arithmetic (h)", "one pass (h)"]
    return table([*header, "reading per pair (h)"], rows), data


def main(arguments: Sequence[str] = ()) -> None:
    """Measure, and write ``results/measure.md``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks measure", description=__doc__)
    parser.add_argument("--files", type=int, nargs="+", default=[10, 50, 150], help="numbers of checkpoints")
    parser.add_argument("--parameters", type=int, default=5_000_000, help="float32 parameters of each checkpoint")
    parser.add_argument("--timed", type=int, default=5, help="pairs that are measured alone, to extrapolate from")
    options = parser.parse_args(list(arguments))
    found = [run(n, options.parameters, options.timed) for n in options.files]
    last = found[-1]
    header = ["checkpoints", "pairs", "GB", "read once (s)", "arithmetic at memory speed (s)", "one pass (s)"]
    header += ["share of the two", "without numba (s)", "pairs/s", "MB/s of files", "peak memory (MiB)"]
    header += ["reading per pair (s)"]
    estimate, on_it = on_paper(last["core_nanoseconds"])
    text = "\n\n".join(
        [
            f"All files are in the page cache, {options.parameters:,} float32 parameters each. `torch.dot` reads "
            f"{last['memory_speed'] / 1e9:.1f} GB/s here, and the arithmetic of a pair is counted as one reading of "
            "both checkpoints. The one pass has all moments and two thresholds. Its time includes opening the files "
            "and, with numba, about two seconds of compiling. Its peak is the growth of the memory of its own process. "
            f"The last column is extrapolated from {last['pairs_timed']} pairs, each measured alone.",
            table(header, [row(result) for result in found]),
            "## On paper",
            f"Pythia-12B does not fit here: {len(PYTHIA)} checkpoints of {N_PYTHIA / 1e9:.0f} billion parameters in "
            f"float16, {BYTES_PYTHIA / 1e9:.0f} GB each. Assumed are a disk of {DISK / 1e9:.0f} GB/s, {CORES} cores, "
            f"and {last['core_nanoseconds']:.2f} ns for each pair and coordinate on one core, as measured above with "
            f"{last['files']} checkpoints. Reading and arithmetic run at the same time, so the longer one counts. A "
            "sample of one coordinate in 120 touches each page of the files, so it saves arithmetic and no reading.",
            estimate,
        ]
    )
    write("measure", "Checkpoints measured in one pass", text, {"measured": found, "on_paper": on_it})


if __name__ == "__main__":
    main(sys.argv[1:])
