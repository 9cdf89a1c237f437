"""Aging of a ResNet-18 that learns CIFAR-10, a system of Baity-Jesi et al. 2018 (arXiv 1803.06969), on a GPU.

torchvision's network with what is usual for images of 32 x 32 pixels (a first convolution of 3 x 3 without stride, and
no pooling after it), plain SGD, images as they are. One callback follows a million of the 11 million weights, others
measure the loss and the accuracy on both sets and the gradient noise. The loss is that of the network in use, with the
running averages of its batch norms, which in the first tens of steps are behind the weights. At the end there are a
record, a report with its figures, and the logs for TensorBoard.

**It has not been run in full yet**, for want of a GPU: there are no results of it. What is tested is ``--quick``, a few
steps with made-up images on whatever device there is.

Run it with ``python -m examples.resnet18_cifar`` (``--help`` for the options).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.studies.common import cross_entropy, loader, not_there
from lightning_glassy import AgingMonitor, AgingRecord, GradientNoiseMonitor, LogTimeEvaluator
from lightning_glassy.report import report

LEARNING_RATE = 0.01
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of the three colours over the training images."""


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured: numbers of steps, images, coordinates and batches."""

    steps: int
    batch_size: int
    sample: int
    evaluated: int
    """Batches of each set for its loss."""
    of_evaluation: int
    """Images in each of these."""
    for_noise: int
    """Batches for the gradient noise."""
    per_decade: int
    """Steps per decade at which loss and noise are measured."""


# All test images, and as many of the training images.
FULL = Scale(100_000, batch_size=100, sample=1_000_000, evaluated=10, of_evaluation=1000, for_noise=50, per_decade=6)
QUICK = Scale(10, batch_size=4, sample=10_000, evaluated=2, of_evaluation=4, for_noise=2, per_decade=3)


def resnet18() -> nn.Module:
    """The ResNet-18 of torchvision for ten classes of small images: 11,173,962 parameters."""
    from torchvision.models import resnet18 as of_torchvision

    net: nn.Module = of_torchvision(num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


class ResNet(LightningModule):
    """The network with a softmax cross-entropy loss and plain SGD at a constant learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18()

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten classes."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """No momentum, no weight decay, no schedule: each would move the clock by itself."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def cifar10(data_dir: Path, *, train: bool) -> TensorDataset:
    """CIFAR-10 in memory; torchvision downloads it if it is not there."""
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(root=data_dir, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise SystemExit(not_there("CIFAR-10", data_dir, error)) from None
    return _normalised(found.data, found.targets)


def made_up(n_images: int, *, train: bool) -> TensorDataset:
    """Images of noise with labels at random."""
    from torchvision.datasets import FakeData

    found = FakeData(n_images, image_size=(3, 32, 32), num_classes=10, random_offset=0 if train else n_images)
    pixels, labels = zip(*((np.asarray(image), int(label)) for image, label in found), strict=True)
    return _normalised(np.stack(pixels), labels)


def _normalised(pixels: Any, labels: Any) -> TensorDataset:
    """Pixels ``[N, 32, 32, 3]`` of 0 ... 255 to ``[N, 3, 32, 32]``, each colour with mean 0 and variance 1."""
    x = torch.as_tensor(pixels).permute(0, 3, 1, 2).float().div_(255)
    x.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(DEVIATION).view(3, 1, 1))
    return TensorDataset(x.contiguous(), torch.as_tensor(labels))


def train(
    scale: Scale, data: TensorDataset, test_set: TensorDataset, accelerator: str, out: Path
) -> tuple[Path, AgingRecord]:
    """Train the network; returns the directory of its logs, and its record."""
    seed_everything(0, verbose=False)
    sets = {"train": data, "test": test_set}
    monitor, logger = AgingMonitor(sample=scale.sample, summary=False), TensorBoardLogger(out, name="")
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=scale.steps,
        max_epochs=1,
        logger=logger,
        callbacks=[
            monitor,
            LogTimeEvaluator(
                scale.per_decade,
                loaders={name: DataLoader(part, batch_size=scale.of_evaluation) for name, part in sets.items()},
                max_batches=scale.evaluated,
            ),
            GradientNoiseMonitor(
                scale.per_decade,
                loader=DataLoader(data, batch_size=scale.batch_size),
                max_batches=scale.for_noise,
            ),
            TQDMProgressBar(refresh_rate=50),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=50,
    )
    # The images are in memory, and a minibatch of them is one reading: workers would only pass it on.
    trainer.fit(ResNet(), loader(data, scale.steps, scale.batch_size, seeds=0))
    return Path(logger.log_dir), monitor.record


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.steps} steps with made-up images, on any device")
    parser.add_argument("--steps", type=int, help=f"updates of the weights (default {FULL.steps:,})")
    parser.add_argument("--accelerator", default="auto", help="where to train (default the GPU; cpu takes days)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="of CIFAR-10, downloaded if it is not there"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/resnet18_cifar"), help="directory for logs and report")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    scale = replace(scale, steps=scale.steps if options.steps is None else options.steps)
    if scale.steps < 1:
        parser.error(f"--steps {scale.steps} trains nothing: at least 1")
    wants_gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and not options.quick)
    if wants_gpu and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        parser.error(
            f"{scale.steps:,} steps of a ResNet-18 need a GPU, and torch sees none here. --quick takes a few steps "
            "with made-up images on any device, to see that all works; --accelerator cpu trains all the same, for days."
        )
    if options.quick:
        data, test_set = (made_up(scale.evaluated * scale.of_evaluation, train=part) for part in (True, False))
    else:
        data, test_set = (cifar10(options.data_dir, train=part) for part in (True, False))
    directory, record = train(scale, data, test_set, options.accelerator, options.out)
    found = report(record, title="ResNet-18 on made-up images" if options.quick else "ResNet-18 on CIFAR-10")
    found.write(directory / "report")
    print(f"\n{found}\n\nWhere to look")
    print(f"    record       {directory / 'glassy' / 'aging_record.npz'}")
    print(f"    report       {directory / 'report' / 'report.html'}")
    print(f"    figures      {directory / 'report'}/*.png")
    print(f"    TensorBoard  .venv/bin/lightning-glassy tensorboard {options.out}")


if __name__ == "__main__":
    main()
