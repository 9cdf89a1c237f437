"""Time the hook itself at a training step at which nothing is due: ``python -m benchmarks hook``."""

from __future__ import annotations

import statistics
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from benchmarks.report import table, write
from lightning_glassy import AgingMonitor, LogTimeSchedule

CALLS, REPEATS = 20_000, 25


class TimeTheHook(Callback):
    """Calls the monitor's hook and an empty hook many times in turns, at step 20 of a real training."""

    def __init__(self, monitor: AgingMonitor) -> None:
        self.monitor = monitor
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measure once, in the middle of an ordinary run."""
        if trainer.global_step == 20:
            for _ in range(REPEATS):
                self.times.append(tuple(self._time(hook, trainer, pl_module) for hook in self._hooks()))  # type: ignore[arg-type]

    def _hooks(self) -> tuple[Any, Any]:
        return self.monitor.on_train_batch_end, super().on_train_batch_end

    def _time(self, hook: Any, trainer: Trainer, module: LightningModule) -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            hook(trainer, module, None, None, 0)
        return (time.perf_counter() - start) / CALLS * 1e6


def main() -> None:
    monitor = AgingMonitor(schedule=LogTimeSchedule([0], [1, 1000]), save=False, summary=False)
    timer = TimeTheHook(monitor)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2000,
        limit_train_batches=25,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, timer],
    )
    trainer.fit(BoringModel())
    ours, empty = (statistics.median(column) for column in zip(*timer.times, strict=True))
    rows = [
        ["`AgingMonitor.on_train_batch_end`, nothing due", f"{ours:.2f}"],
        ["`Callback.on_train_batch_end`", f"{empty:.2f}"],
    ]
    text = table(["hook", "microseconds a call (median)"], rows) + "\n\nPromised: at most 2 microseconds."
    write("hook", "Cost of a step at which nothing is due", text, {"monitor_us": ours, "empty_us": empty})


if __name__ == "__main__":
    main()
