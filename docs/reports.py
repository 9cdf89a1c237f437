"""Train the networks of the page "How to read a report", and write their reports: ``python docs/reports.py``.

Each report is printed by :func:`lightning_glassy.report.report`, and stored in ``docs/reports`` with a picture of its
curves. The three trainings take about five minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    LogTimeEvaluator,
    ReplicaEnsemble,
    ReplicaTraining,
    per_replica,
    replica_loader,
)
from lightning_glassy.plotting import new_figure, plot_two_time
from lightning_glassy.report import report


class Settings(NamedTuple):
    """Settings of a training."""

    hidden: int  # 0 is a linear classifier
    steps: int
    n_replica: int = 8
    batch_size: int = 32
    lr: float = 0.05
    weight_decay: float = 0.0
    schedule: str | None = None


class Nets(ReplicaTraining, LightningModule):
    """Replicas of a network with one hidden layer, or none, which learn handwritten digits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.nets = ReplicaEnsemble(self.network, settings.n_replica)

    def network(self) -> nn.Module:
        """Return one network, with new weights."""
        hidden = self.settings.hidden
        if not hidden:
            return nn.Linear(64, 10)
        return nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the predictions of each replica for one batch."""
        outputs: Tensor = self.nets(x)
        return outputs

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the losses of the replicas, each on its own minibatch."""
        x, y = batch
        return per_replica(nn.functional.cross_entropy, shared=False)(self.nets(x, shared=False), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)


TRAININGS = {
    "ages": Settings(hidden=64, steps=20_000),
    "stops": Settings(hidden=0, steps=20_000, batch_size=8, lr=0.1, weight_decay=0.03),
    "cannot_tell": Settings(hidden=64, steps=448, n_replica=1, schedule="epoch"),
}
"""Settings of the three trainings."""


def loss(module: LightningModule, batch: list[Tensor]) -> Tensor:
    """Return the loss of each replica on one batch."""
    losses: Tensor = per_replica(nn.functional.cross_entropy)(module(batch[0]), batch[1])
    return losses


def train(out: Path, settings: Settings) -> AgingRecord:
    """Train some replicas, and return their record."""
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    seeds = range(settings.n_replica)
    loader: DataLoader[list[Tensor]] = replica_loader(data, batch_size=settings.batch_size, seeds=seeds)
    monitor = AgingMonitor(settings.schedule, summary=False)
    evaluator = LogTimeEvaluator(3, loss=loss, batch_size=len(data))
    trainer = Trainer(
        accelerator="cpu",
        max_steps=settings.steps,
        callbacks=[monitor, evaluator],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Nets(settings), loader)
    return monitor.record


def main() -> None:
    """Write the reports that the command line names."""
    parser = argparse.ArgumentParser(description="Write the reports that the documentation explains.")
    parser.add_argument("names", nargs="*", default=list(TRAININGS), metavar="NAME", help=", ".join(TRAININGS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("reports"), help="directory to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        record = train(options.out / "runs" / name, TRAININGS[name])
        (options.out / f"{name}.txt").write_text(f"{report(record)}\n")
        figure = new_figure(1, width=5.0)
        plot_two_time(record, ax=figure.axes[0])
        figure.savefig(options.out / f"{name}.png", dpi=110)
        print(f"{options.out / name}.txt")


if __name__ == "__main__":
    main()
