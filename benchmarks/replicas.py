"""Compare the time of 16 replicas trained as one with the time of one network: ``python -m benchmarks replicas``.

Trainings of the ensemble and of a single network alternate. Each pair gives one ratio. Both trainings of a pair use the
same lines, in a Lightning Trainer or in a bare loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.report import Paired, paired, table, write
from lightning_glassy import ReplicaEnsemble, per_replica, replica_loader

REPLICAS, BATCH, PAIRS = 16, 50, 7
cross_entropy = nn.functional.cross_entropy


def mlp() -> nn.Module:
    """Return 784-5-5-5-10 with 4,045 parameters, the net of the two papers."""
    return nn.Sequential(nn.Linear(784, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(),
                         nn.Linear(5, 10))  # fmt: skip


class Written(nn.Module):
    """The same net with its own ``forward``, which hides that it is a sequence of plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, ``[batch, 10]``."""
        scores: Tensor = self.net(x)
        return scores


def cnn() -> nn.Module:
    """Return three convolutions and two linear layers, 5,378 parameters, for images of 28 x 28 pixels."""
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(),
                         nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.Flatten(),
                         nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))  # fmt: skip


class Net(LightningModule):
    """A network, or an ensemble of it, trained by SGD."""

    def __init__(self, net: nn.Module, shared: bool) -> None:
        super().__init__()
        self.net, self.shared = net, shared

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss, or the sum of the losses."""
        x, y = batch
        if isinstance(self.net, ReplicaEnsemble):
            return per_replica(cross_entropy, shared=self.shared)(self.net(x, shared=self.shared), y).sum()
        return cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def bare(module: Net, batches: Iterable[Any], steps: int) -> None:
    """Train in the shortest possible loop."""
    optimizer = module.configure_optimizers()
    done = 0
    while done < steps:
        for batch in batches:
            optimizer.zero_grad()
            module.training_step(batch, done).backward()
            optimizer.step()
            if (done := done + 1) == steps:
                break


def lightning(module: Net, batches: Iterable[Any], steps: int) -> None:
    """Train in a Trainer with nothing switched on."""
    Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, batches)


def pairs(
    make: Callable[[], nn.Module], shared: bool, loop: Callable[[Net, Iterable[Any], int], None], steps: int
) -> Paired:
    """Train the ensemble (A) and one network (B) in turns."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(10_000, 784, generator=generator), torch.randint(10, (10_000,), generator=generator)
    ensemble, lone = Net(ReplicaEnsemble(make, REPLICAS), shared), Net(make(), shared)
    many = replica_loader(TensorDataset(x, y), BATCH, 0 if shared else range(REPLICAS))
    one = replica_loader(TensorDataset(x, y), BATCH, 0)
    return paired(lambda: loop(ensemble, many, steps), lambda: loop(lone, one, steps), PAIRS)


def main() -> None:
    """Train, and write the table."""
    warnings.filterwarnings("ignore")
    rows, results = [], []
    nets = {"MLP, `nn.Sequential`": (mlp, 1000), "MLP, own `forward`": (Written, 1000), "CNN": (cnn, 200)}
    for (name, (make, steps)), shared, loop in product(nets.items(), (True, False), (lightning, bare)):
        result = pairs(make, shared, loop, steps)
        case = {
            "network": name,
            "parameters": f"{sum(p.numel() for p in make().parameters()):,}",
            "steps": steps,
            "minibatches": "the same for all" if shared else "each its own",
            "loop": "Trainer" if loop is lightning else "bare",
        }
        times = [f"{seconds / steps * 1e6:,.0f}" for seconds in (result.b, result.a)]
        rows.append([*case.values(), *times, f"{result.ratio:.2f} ({result.low:.2f} ... {result.high:.2f})"])
        results.append(case | vars(result))
        print(rows[-1], flush=True)
    header = [*case, "one alone (us a step)", f"{REPLICAS} replicas (us a step)", "ratio, median (quartiles)"]
    text = table(header, rows) + (
        f"\n\n{PAIRS} pairs of trainings, batch {BATCH}, plain SGD, float32; data in memory, read by "
        "`replica_loader` in\nboth. Promised in a Trainer: at most 2 for the MLPs, and 3 for the CNN."
    )
    write("replicas", f"Cost of {REPLICAS} replicas trained as one", text, results)


if __name__ == "__main__":
    main()
