"""Measure the curvature of a training, in one process or in several. This is a script, because Lightning starts it once
more for each further process. See ``tests/test_curvature_monitor.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, seed_everything

from lightning_glassy import CurvatureMonitor
from tests.helpers import SmallNet, data, end_processes, quiet_trainer


def fit(root: Path, devices: int, *callbacks: Callback) -> None:
    trainer = quiet_trainer(
        root, callbacks=list(callbacks), devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=4
    )
    module = SmallNet()
    trainer.fit(module, data())
    torch.save(module.state_dict(), root / f"weights{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, devices = Path(sys.argv[1]), int(sys.argv[2])
    for name, callbacks in (("measured", [CurvatureMonitor(n_nodes=8)]), ("alone", [])):
        (place / name).mkdir(parents=True, exist_ok=True)
        seed_everything(1)
        fit(place / name, devices, *callbacks)
    end_processes()
