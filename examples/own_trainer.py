"""Add aging curves to your own Trainer with one callback. The example trains a small network on handwritten digits.

The curves go to the logger of the Trainer, and into a record. Run it with ``python -m examples.own_trainer``. It takes
a few seconds.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_glassy import AgingMonitor


class Classifier(LightningModule):
    """Replace this module by your own module. It does not need to know about the callback."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main(out: str = "runs/own_trainer", epochs: int = 20) -> None:
    seed_everything(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))

    monitor = AgingMonitor()
    trainer = Trainer(max_epochs=epochs, callbacks=[monitor], logger=TensorBoardLogger(out))
    trainer.fit(Classifier(), DataLoader(data, batch_size=32, shuffle=True))

    record = monitor.record  # or AgingRecord.load(".../glassy/aging_record.npz")
    print("waiting times:", record.waiting_times)
    print("lags:", record.lags)
    print("mean squared displacements, from the first waiting time:", record.msd()[0])  # msd() is [n_tw, n_lag]
    print(f"to see the curves: .venv/bin/lightning-glassy tensorboard {out}")


if __name__ == "__main__":
    main()
