"""Part: waits for the device during a training, and the lines that wait."""

from __future__ import annotations

import collections
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

import lightning_glassy
from benchmarks.device.findings import Findings
from lightning_glassy import AgingMonitor, LogTimeSchedule
from tests.helpers import SmallNet, data, quiet_trainer

PACKAGE = Path(lightning_glassy.__file__).parent

OPTIONS: dict[str, dict[str, Any]] = {
    "on the device": {},
    "snapshot_device='cpu'": {"snapshot_device": "cpu"},
    "groups='layer'": {"groups": "layer"},
    "moments='msd'": {"moments": "msd"},
}

SCHEDULE = LogTimeSchedule(list(range(0, 60, 7)), list(range(60))).until(60)  # an event at every step


class Debugging(Callback):
    """Turns on the debug mode of torch for synchronising calls, from the first batch to the end."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def on_train_batch_start(self, *_: Any) -> None:
        """Switch it on."""
        torch.cuda.set_sync_debug_mode(self.mode)

    def on_train_end(self, *_: Any) -> None:
        """Switch it off."""
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """Switch it off."""
        self.on_train_end()


def run(findings: Findings) -> None:
    """Train with warnings, which report all waits. Then train with errors, which stop at the first wait."""
    table = findings.table(
        "Waits for the device in a training with an event at every step",
        ["options", "waits of ours", "of others", "pairs measured", 'in mode "error"'],
        "From the first batch to the end of training, by `torch.cuda.set_sync_debug_mode`. That mode does not see "
        "every kind of wait.\nThe profile of an event shows the others. Lines that wait are in `results.json`.",
    )
    if findings.cuda and not hears(findings.device):
        raise RuntimeError("torch does not tell a deliberate wait here, so its silence would say nothing")
    waits: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        with findings.attempt(name):
            with told() as seen:
                pairs = train(findings, "warn", options)
            strict = "passed"
            try:
                # The callback catches errors in its own hooks, logs them and stops measuring.
                measured = train(findings, "error", options)
                if measured != len(SCHEDULE.pairs):
                    strict = f"{measured} of {len(SCHEDULE.pairs)} pairs: the reason is in the log"
            except Exception as error:
                line = _line(traceback.extract_tb(error.__traceback__))
                strict = f"{type(error).__name__} at {line}: {str(error)[:100]}".replace("|", "/").replace("\n", " ")
            ours = sum(count for line, count in seen.items() if line.startswith("lightning_glassy"))
            waits[name] = {"ours": ours, "others": seen.total() - ours, "pairs": pairs, "error": strict}
            waits[name]["lines"] = dict(seen)
            table.add(name, ours, seen.total() - ours, pairs, strict)
            findings.keep(waits=waits)


def hears(device: str) -> bool:
    """Return whether the debug mode of torch reports a deliberate wait."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with told() as seen:
            torch.ones(1, device=device).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return seen.total() > 0


@contextmanager
def told() -> Iterator[collections.Counter[str]]:
    """Count the warnings about waits by our running line, or else by the line that waited."""
    seen: collections.Counter[str] = collections.Counter()

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            seen[_line(traceback.extract_stack()[:-1])] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield seen


def train(findings: Findings, mode: str, options: dict[str, Any]) -> int:
    """Train a small network whose batches are on the device already, and return how many pairs were measured."""
    monitor = AgingMonitor(SCHEDULE, save=False, summary=False, **options)
    tensors = data().dataset.tensors  # type: ignore[attr-defined]
    loader = DataLoader(TensorDataset(*(t.to(findings.device) for t in tensors)), batch_size=4, shuffle=True)
    trainer = quiet_trainer(
        findings.folder,
        callbacks=[*([Debugging(mode)] if findings.cuda else []), monitor],
        accelerator="gpu" if findings.cuda else "cpu",
        limit_val_batches=0,
    )
    trainer.fit(SmallNet(), loader)
    return len(monitor.record)


def _line(stack: Any) -> str:
    """Return the innermost line of the package, or else the innermost line that is not torch's own warning."""
    # The folder of a checkout may have the name of the package, so compare the whole path.
    ours = [frame for frame in stack if PACKAGE in Path(frame.filename).parents]
    frames = ours or [frame for frame in stack if not frame.filename.endswith("/warnings.py")]
    if not frames:
        return "?"
    path = Path(frames[-1].filename)
    return f"{'lightning_glassy/' if ours else ''}{path.parent.name}/{path.name}:{frames[-1].lineno} {frames[-1].name}"
