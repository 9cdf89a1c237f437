"""Run one part in this process: ``python -m benchmarks.device.part MODULE --out FOLDER``. The command starts this."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.device.findings import Findings


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that the command passes on."""
    found = argparse.ArgumentParser(prog="benchmarks.device.part", description=__doc__)
    found.add_argument("module")
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--dry", action="store_true")
    found.add_argument("--limit", type=float, default=60.0)
    found.add_argument("--variants", type=Path)
    return found


class Told(logging.Handler):
    """Writes the warnings of the package to the log, for example a warning that the kernels do not work here."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.WARNING)
        self.findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        """Log a warning."""
        self.findings.say("WARNING", record.getMessage())


def run(findings: Findings, module: str) -> bool:
    """Run a part, and report its error if there is one. Return whether there was none."""
    handler = Told(findings)
    logging.getLogger("lightning_glassy").addHandler(handler)
    try:
        import torch

        from benchmarks.report import machine

        torch.manual_seed(0)
        findings.machine(machine(findings.device))
        import_module(module).run(findings)
    except BaseException as error:
        findings.failed("ended", error)
        return False
    finally:
        logging.getLogger("lightning_glassy").removeHandler(handler)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the part, and exit at once without a cleanup, because a broken device could block it."""
    given = parser().parse_args(arguments)
    name, device = given.module.rsplit(".", 1)[-1], "cpu" if given.dry else "cuda"
    findings = Findings(given.out, name, given.dry, given.limit, device, given.variants)
    done = run(findings, given.module)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if done else 1)


if __name__ == "__main__":
    main()
