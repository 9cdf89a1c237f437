"""Measure the aging of a ResNet-18 that learns CIFAR-10, as in Baity-Jesi et al. 2018 (arXiv 1803.06969), on a GPU.

Callbacks measure a million of the 11 million weights, the losses and the gradient noise. Run it with
``python -m examples.resnet18_cifar``. **It has not been run in full yet**. ``--quick`` runs on any device.
"""

import argparse
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import CIFAR10
from torchvision.models import resnet18

from lightning_glassy import AgingMonitor, GradientNoiseMonitor, LogTimeEvaluator, replica_loader
from lightning_glassy.report import report


class ResNet(LightningModule):
    """The network of torchvision, with a first layer for small images, and plain SGD at a constant learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=10)
        self.net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)  # momentum or a schedule would change the clock


def cifar10(folder: str, train: bool) -> TensorDataset:
    """Return CIFAR-10 in memory, each colour with mean 0 and variance 1. torchvision downloads it if it is missing."""
    found = CIFAR10(folder, train=train, download=True)
    x = torch.as_tensor(found.data).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]]).view(2, 3, 1, 1)
    return TensorDataset((x - mean) / deviation, torch.as_tensor(found.targets))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the aging of a ResNet-18 that learns CIFAR-10.")
    parser.add_argument("--quick", action="store_true", help="a few steps with random images, on any device")
    parser.add_argument("--data-dir", default="data", help="directory of CIFAR-10, downloaded if it is missing")
    parser.add_argument("--out", default="runs/resnet18_cifar", help="directory of the logs and the report")
    options = parser.parse_args()
    if not (options.quick or torch.cuda.is_available() or torch.backends.mps.is_available()):
        parser.error("this training needs a GPU, and torch sees none here. --quick runs on any device")
    seed_everything(0)
    if options.quick:
        train, test = (TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(10, (8,))) for _ in range(2))
    else:
        train, test = (cifar10(options.data_dir, part) for part in (True, False))
    steps, batch_size = (4, 4) if options.quick else (100_000, 100)

    # In the first tens of steps the averages of the batch norms lag behind, so the losses belong to older weights.
    sets = {"train": DataLoader(train, batch_size=1000), "test": DataLoader(test, batch_size=1000)}
    noise = GradientNoiseMonitor(loader=DataLoader(train, batch_size=batch_size), max_batches=50)
    monitor, logger = AgingMonitor(sample=1_000_000), TensorBoardLogger(options.out, name="")
    watching: list[Callback] = [monitor, noise, LogTimeEvaluator(loaders=sets, max_batches=10)]
    trainer = Trainer(max_steps=steps, devices=1, logger=logger, callbacks=watching, enable_checkpointing=False)
    trainer.fit(ResNet(), replica_loader(train, batch_size, seeds=0))  # reads a minibatch at once, without workers

    title = f"ResNet-18 on {'random images' if options.quick else 'CIFAR-10'}"
    report(monitor.record, title=title).write(f"{logger.log_dir}/report")
    print(f"record: {logger.log_dir}/glassy/aging_record.npz\nreport: {logger.log_dir}/report/report.html")


if __name__ == "__main__":
    main()
