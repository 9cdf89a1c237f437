"""A pytest plugin that writes a line for each test at once, and ends a test that takes too long, also in workers."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path
from typing import Any

_LIMIT, _LOG = int(os.environ.get("GLASSY_TEST_LIMIT", "45")), Path(os.environ.get("GLASSY_TEST_LOG", os.devnull))
_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# If there are workers, only the workers run tests. The process that started them only reports.
_RUNS = _WORKER or "GLASSY_TESTS_IN_WORKERS" not in os.environ


def _expired(*_: Any) -> None:
    raise TimeoutError(f"took more than {_LIMIT} s")


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Set the limit of a test."""
    if _RUNS:
        signal.signal(signal.SIGALRM, _expired)
        signal.alarm(_LIMIT)
        # A wait in C does not react to signals.
        faulthandler.dump_traceback_later(_LIMIT + 15, exit=True)


def pytest_runtest_logreport(report: Any) -> None:
    """Write the line of a test."""
    if _WORKER or (report.when != "call" and report.outcome == "passed"):
        return
    words = ""
    if report.outcome == "failed":
        crash = getattr(report.longrepr, "reprcrash", None)
        words = " | " + str(getattr(crash, "message", report.longrepr)).replace("\n", " ")[:300]
    with _LOG.open("a") as file:
        file.write(f"{report.outcome:8s} {report.duration:6.1f} s {report.nodeid}{words}\n")


def pytest_runtest_logfinish(nodeid: str, location: Any) -> None:
    """Lift the limit."""
    if _RUNS:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
