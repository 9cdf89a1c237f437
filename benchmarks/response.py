"""Compare the time of a training with clones with the time without: ``python -m benchmarks response``.

A ``ResponseMonitor`` with K waiting times trains K clones, here from the first steps to the end. Trainings with clones
and without clones alternate, and each pair gives one ratio. It should be at most about K + 1.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.replicas import BATCH, Net, cnn, mlp
from benchmarks.report import paired, table, write
from lightning_glassy import (
    AgingMonitor,
    LogTimeSchedule,
    ReplicaEnsemble,
    ReplicaTraining,
    ResponseMonitor,
    replica_loader,
)

REPLICAS, PAIRS = 8, 5


class Nets(ReplicaTraining, Net):
    """Replicas with their own minibatches."""


def train(make: Callable[[], nn.Module], clones: int, steps: int) -> int:
    """Train replicas with so many clones, and return the number of passes of the clones."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5_000, 784, generator=generator), torch.randint(10, (5_000,), generator=generator)
    schedule = LogTimeSchedule([*range(1, max(clones, 1) + 1)], [1, steps - 10])
    options: dict[str, Any] = {"save": False, "summary": False}
    monitor = AgingMonitor(schedule, sample=None, **options)
    Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[monitor, *([ResponseMonitor(1e-3, schedule, **options)] if clones else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        Nets(ReplicaEnsemble(make, REPLICAS), shared=False),
        replica_loader(TensorDataset(x, y), BATCH, range(REPLICAS)),
    )
    passes: int = monitor.record.meta.get("ResponseMonitor", {}).get("clone_passes", 0)
    return passes


def main() -> None:
    """Train, and write the table."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows, results = [], []
    for name, make, steps in (("MLP, 4,045 parameters", mlp, 600), ("CNN, 5,378 parameters", cnn, 150)):
        for clones in (1, 2, 4):
            passes = train(make, clones, steps)
            found = paired(partial(train, make, clones, steps), partial(train, make, 0, steps), PAIRS)
            ratio = f"{found.ratio:.2f} ({found.low:.2f} ... {found.high:.2f})"
            rows.append([name, clones, steps, f"{passes / steps:.2f}", ratio])
            case = {"network": name, "clones": clones, "steps": steps, "clone_passes": passes}
            results.append(case | vars(found))
            print(rows[-1], flush=True)
    header = [
        "network",
        "clones K",
        "steps",
        "passes of clones over steps",
        "time with over without, median (quartiles)",
    ]
    text = (
        f"{table(header, rows)}\n\n{REPLICAS} replicas with minibatches of {BATCH} each, in a Trainer. The time "
        f"includes the start of the Trainer. {PAIRS} pairs that alternate."
    )
    write("response", "The cost of clones with a field", text, results)


if __name__ == "__main__":
    main()
