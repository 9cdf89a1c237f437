"""Measure the loss and the gradient noise of a training, in one process or in several. This is a script, because
Lightning starts it once more for each further process. See ``tests/test_probes_in_parallel.py``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_glassy import AgingMonitor, GradientNoiseMonitor, LogTimeEvaluator
from tests.helpers import data, end_processes, quiet_trainer
from tests.parallel import Net


def loss(module: Any, batch: Any) -> Tensor:
    # This network trains on its own batches, which are the same in all processes.
    return nn.functional.cross_entropy(module(batch[0].double()), batch[1])


def broken(module: Any, batch: Any) -> Tensor:
    if module.trainer.global_step == 7 and module.trainer.global_rank == 1:
        raise RuntimeError("not here")
    return loss(module, batch)


def callbacks(loss: Any) -> list[Callback]:
    metrics = {"accuracy": MulticlassAccuracy(3, average="micro")}
    return [
        LogTimeEvaluator(loss=loss, metrics=metrics, predict=lambda module, b: (module(b[0].double()), b[1])),
        GradientNoiseMonitor(loss=loss, mode="eval", groups="layer"),
        AgingMonitor(groups="layer", summary=False),
        # In the mode of the training, all processes take equally many batches: 10 of 11. The last batch is left out.
        GradientNoiseMonitor(loss=loss, name="equal"),
        LogTimeEvaluator(loss=loss, metrics=None, name="equal", mode="train"),
    ]


def fit(root: Path, devices: int, *more: Callback) -> None:
    root.mkdir(parents=True, exist_ok=True)
    seed_everything(1)
    module = Net("ddp")
    trainer = quiet_trainer(
        root, callbacks=list(more), devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=20
    )
    trainer.fit(module, data(n=44))
    torch.save(module.state_dict(), root / f"weights{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    place, devices = Path(sys.argv[1]), int(sys.argv[2])
    fit(place / "measured", devices, *callbacks(loss))
    fit(place / "alone", devices)
    if devices > 1:
        fit(place / "broken", devices, *callbacks(broken))
    end_processes()
