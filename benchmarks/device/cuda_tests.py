"""Part: ``pytest -m cuda`` on the file of these tests alone. Other test files need more packages."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.device.findings import Findings

ROOT = Path(__file__).parents[2]
TEST_LIMIT = 45  # seconds of one test


def run(findings: Findings) -> None:
    """Run the tests, and write how many passed. The lines of ``pytest.log`` are written test by test."""
    log = findings.folder / "pytest.log"
    log.write_text("")
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-m", "cuda", "-q", "--tb=short", "--durations=12"]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.device.per_test"]
    if importlib.util.find_spec("pytest_benchmark"):
        command += ["-p", "no:benchmark"]
    environment = os.environ | {"GLASSY_TEST_LOG": str(log), "GLASSY_TEST_LIMIT": str(TEST_LIMIT)}
    if importlib.util.find_spec("xdist") and not findings.dry:  # most of the time goes into compiling
        command += ["-n", str(max(1, min(6, (os.cpu_count() or 2) // 2)))]
        environment["GLASSY_TESTS_IN_WORKERS"] = "1"
    findings.say(" ".join(command))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        printed, _ = process.communicate(timeout=max(findings.left - 8, 1))
        code: int | str = process.returncode
    except subprocess.TimeoutExpired as error:
        process.kill()
        printed, code = (
            error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else "",
            "over its limit",
        )
    lines = log.read_text().splitlines()
    with log.open("a") as file:
        file.write("\n" + printed[-400_000:])
    counts = {outcome: sum(line.startswith(outcome) for line in lines) for outcome in ("passed", "failed", "skipped")}
    failed = [line[:400] for line in lines if line.startswith("failed")]
    for line in failed:
        findings.say(line[:260])
    if not lines:
        findings.say("no test was run:", printed[-1500:])
    findings.table("pytest -m cuda", [*counts, "exit status"]).add(*counts.values(), code)
    findings.keep(exit_status=code, counts=counts, tests_failed=failed)
