"""Start scripts in processes that have imported torch and Lightning already.

An import of both takes seconds. The first script of a test run starts a server process, which imports them once. Each
further process is a fork of this server and starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.helpers import environment

ROOT = Path(__file__).parent.parent
PRELOADED = ["tests.parallel", "tests.test_faults", "lightning_glassy.plotting", "torch.utils.tensorboard"]


def children() -> ForkServerContext:
    """Return the context whose processes are forks of the server. Start the server if there is none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def launch(script: str | Path, *arguments: object, processes: int = 1, timeout: float = 240, **variables: str) -> str:
    """Run a script in the root of the repository, as ``python script arguments`` does, and return all that it prints.

    Args:
        script: Path of the script, relative to the root of the repository.
        arguments: Arguments of its command line.
        processes: Number of processes that run the script as one group, like the processes that Lightning starts.
        timeout: Seconds after which all processes are killed.
        variables: Additional environment variables.

    Raises:
        AssertionError: A process failed, or was killed because the time is over. The message has the end of the output.
    """
    if processes > 1:
        port = str(find_free_network_port())
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "NODE_RANK": "0"}
    command = [str(ROOT / script), *map(str, arguments)]
    context, group, end = children(), [], time.monotonic() + timeout
    with tempfile.NamedTemporaryFile() as output:
        try:
            for rank in range(processes):
                own = variables | ({"LOCAL_RANK": str(rank)} if processes > 1 else {})
                group.append(context.Process(target=_run, args=(output.name, command, environment(**own))))
                group[-1].start()
            running = list(group)
            while running and all(process.exitcode in (None, 0) for process in group):
                if not wait([process.sentinel for process in running], timeout=max(0.0, end - time.monotonic())):
                    break
                running = [process for process in running if process.is_alive()]
            if running and time.monotonic() < end:  # one has failed, and the others may print why
                wait([process.sentinel for process in running], timeout=5)
        finally:
            for process in group:
                if process.pid is not None and process.is_alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.kill()
                process.join()
        printed = Path(output.name).read_text()
    statuses = [process.exitcode for process in group]
    assert not any(statuses), f"exit statuses {statuses} of {command}\n{printed[-5000:]}"
    return printed


def _run(output: str, command: list[str], variables: dict[str, str]) -> None:
    """Run the script in the forked process."""
    os.setsid()  # so that the parent can kill the processes that the script starts as well
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    os.environ.clear()  # the server has the variables of the test that started it
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
