"""Measure all that needs a GPU, in one command of a few minutes: ``python -m benchmarks device --out FOLDER``.

A GPU may be available rarely and briefly. The command therefore measures and does not fail. Each part is a process of
its own with a time limit of its own. Each result is written to disk at once. If a part hangs or breaks the device, no
other result is lost. The last table shows which promises of the package are met.

    python -m benchmarks device --out FOLDER                          all parts, under seven minutes
    python -m benchmarks device --out FOLDER --parts exact,bandwidth  some of them
    python -m benchmarks device --out FOLDER --dry                    on a CPU, small, to try the command itself
    python -m benchmarks device --precompile                          fill TRITON_CACHE_DIR on a machine without a GPU

Files in the folder: ``summary.md``, ``results.json``, ``log.txt``, ``pytest.log`` and ``trace.json.gz``. Copy the first
two to ``benchmarks/results`` as ``device.md`` and ``device.json`` to publish them.
"""

from benchmarks.device.command import main

__all__ = ["main"]
