"""Train eight replicas of a network as one, to get aging curves and an aging exponent with error bars.

Each replica has its own initial weights and minibatches. Run it with ``python -m examples.replicas``. It takes about
half a minute.
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import AgingMonitor, ReplicaEnsemble, ReplicaTraining, per_replica, replica_loader
from lightning_glassy.analysis import aging_exponent, verdict


class Nets(ReplicaTraining, LightningModule):
    """Eight replicas of one network. The sum of their losses is minimised, so each replica moves as it would alone."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__()
        self.data = data
        self.nets = ReplicaEnsemble(lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)), 8)

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        return replica_loader(self.data, batch_size=32, seeds=self.replicas_here)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch  # [n_replica, 32, 64] and [n_replica, 32]
        losses = per_replica(nn.functional.cross_entropy, shared=False)(self.nets(x, shared=False), y)
        self.log("train_loss", losses.mean())
        return losses.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(out: str = "runs/replicas", steps: int = 5_000) -> None:
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    monitor = AgingMonitor(summary=False)  # without the table at the end, because the lines below show more
    trainer = Trainer(max_steps=steps, callbacks=[monitor], default_root_dir=out)
    trainer.fit(Nets(data))

    msd = monitor.record.msd()  # [n_replica, n_tw, n_lag]
    mean, error = msd.mean(0), msd.std(0, ddof=1) / len(msd) ** 0.5
    for i, waiting_time in enumerate(monitor.record.waiting_times):
        print(f"t_w = {waiting_time:>6,}: mean squared displacement {mean[i, 0]:.2e} +- {error[i, 0]:.0e} after 1 step")
    print(verdict(monitor.record))
    print(aging_exponent(monitor.record))


if __name__ == "__main__":
    main()
