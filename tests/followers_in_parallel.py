"""Follow the snapshots of a training, in one process or in several. This is a script, because Lightning starts it once
more for each further process. See ``tests/test_barrier.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor, nn

from lightning_glassy import BarrierMonitor, DisplacementDistribution
from tests.helpers import data, end_processes, quiet_trainer
from tests.parallel import Net


def loss(module: Any, batch: Any) -> Tensor:
    # This network trains on its own batches, which are the same in all processes.
    return nn.functional.cross_entropy(module(batch[0].double()), batch[1])


def fit(root: Path, *callbacks: Callback) -> None:
    root.mkdir(parents=True, exist_ok=True)
    seed_everything(1)
    strategy = "ddp" if devices > 1 else "auto"
    trainer = quiet_trainer(root, callbacks=list(callbacks), devices=devices, strategy=strategy, max_steps=20)
    net = Net("ddp")
    trainer.fit(net, data(n=44))
    torch.save(net.state_dict(), root / f"weights{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, devices = Path(sys.argv[1]), int(sys.argv[2])
    fit(place / "measured", DisplacementDistribution(), BarrierMonitor(loss=loss))
    fit(place / "alone")
    end_processes()
