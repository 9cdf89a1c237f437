"""Networks that the benchmarks train, and synthetic data of their shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Classifier(LightningModule):
    """Any network that maps a batch to class scores, trained by plain SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cross-entropy of one minibatch."""
        x, y = batch
        return nn.functional.cross_entropy(self.net(x).flatten(0, -2), y.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """The same few batches over and over, so that no time goes into making data."""

    def __init__(self, make: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [tuple(part.to(device) for part in make(generator)) for _ in range(4)]
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index % len(self.batches)]  # type: ignore[return-value]


def loader(make: Callable[[torch.Generator], tuple[Tensor, Tensor]], steps: int, device: str) -> DataLoader[Any]:
    """Return an epoch of ``steps`` ready batches on a device."""
    return DataLoader(Batches(make, steps, device), batch_size=None)


def papers() -> nn.Module:
    """Return 784-5-5-5-10 with 4,045 parameters, a network of both papers."""
    return nn.Sequential(nn.Linear(784, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(),
                         nn.Linear(5, 10))  # fmt: skip


def mlp() -> nn.Module:
    """Return 784-800-400-100-10 with one million parameters."""
    return nn.Sequential(nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 400), nn.ReLU(), nn.Linear(400, 100),
                         nn.ReLU(), nn.Linear(100, 10))  # fmt: skip


def resnet18() -> nn.Module:
    """Return a ResNet-18 for images of 32 x 32 pixels. It has a 3 x 3 stem without pooling, as is usual on CIFAR."""
    from torchvision.models import resnet18 as make

    net: nn.Module = make(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


class Transformer(nn.Module):
    """Four layers of width 256 over 64 tokens out of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 512, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores of the next token, ``[batch, token, 256]``."""
        scores: Tensor = self.head(self.layers(self.embedding(tokens)))
        return scores


def images(batch: int, *shape: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Return a function that makes random images and labels."""
    return lambda generator: (
        torch.randn(batch, *shape, generator=generator),
        torch.randint(10, (batch,), generator=generator),
    )


def tokens(batch: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    """Return a function that makes random token sequences, and as many labels."""
    return lambda generator: (
        torch.randint(256, (batch, 64), generator=generator),
        torch.randint(256, (batch, 64), generator=generator),
    )
