"""Train a small and a large network on handwritten digits, and report how they age. ``make demo`` runs this script.

Eight replicas of each network give error bars. Run it with ``python -m examples.digits``. It takes about two minutes.
"""

import argparse
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks, loggers
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_glassy as lg
from lightning_glassy.plotting import new_figure, plot_two_time
from lightning_glassy.report import report


class Nets(lg.ReplicaTraining, LightningModule):
    """Eight replicas of a network with h units in each hidden layer. Each replica has its own initial weights."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.nets = lg.ReplicaEnsemble(
            lambda: nn.Sequential(nn.Linear(64, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, 10)), 8
        )

    def forward(self, x: Tensor) -> Any:
        return self.nets(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        losses = lg.per_replica(nn.functional.cross_entropy, shared=False)
        return losses(self.nets(batch[0], shared=False), batch[1]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loss(module: LightningModule, batch: list[Tensor]) -> Tensor:
    """Return the loss of each replica on a batch that all replicas share."""
    return lg.per_replica(nn.functional.cross_entropy)(module(batch[0]), batch[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two networks on handwritten digits, and report how they age.")
    parser.add_argument("--steps", type=int, default=20_000, help="updates of each network, at least 200")
    parser.add_argument("--out", default="runs/digits", help="directory of all files")
    options = parser.parse_args()
    if options.steps < 200:
        parser.error(f"--steps {options.steps} is too short to see anything: at least 200")
    torch.set_num_threads(1)  # a second thread gains nothing for networks this small
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    train, test = TensorDataset(x[:1500], y[:1500]), DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=297)
    figure, where = new_figure(2), [f"figure: {options.out}/aging.png"]
    for ax, name, hidden in zip(figure.axes, ("under-parametrised", "over-parametrised"), (4, 128), strict=False):
        monitor, logger = lg.AgingMonitor(summary=False), loggers.TensorBoardLogger(options.out, name=name)
        evaluator = lg.LogTimeEvaluator(3, loaders={"test": test}, batch_size=1500, loss=loss)
        noise, overlap = lg.GradientNoiseMonitor(3, loss=loss), lg.ReplicaOverlap(x[1500:])
        watching = [monitor, evaluator, noise, overlap, callbacks.TQDMProgressBar(refresh_rate=47)]
        limits: dict[str, Any] = {"max_steps": options.steps, "log_every_n_steps": 47}
        trainer = Trainer(accelerator="cpu", logger=logger, callbacks=watching, enable_checkpointing=False, **limits)
        trainer.fit(Nets(hidden), lg.replica_loader(train, batch_size=32, seeds=range(8)))
        accuracy, error = (monitor.record.one_time(f"test_accuracy{end}")[1][-1] for end in ("", "_error"))
        title = f"{name}: 8 replicas of {monitor.record.n_parameters['all']:,} parameters"
        found = report(monitor.record, title=f"{title}, test accuracy {accuracy:.1%} +- {error:.1%}")
        found.write(f"{options.out}/report/{name}")
        print(f"\n{found}\n")
        plot_two_time(monitor.record, ax=ax).set_title(title)
        where.append(f"record: {logger.log_dir}/glassy/aging_record.npz")
        where.append(f"report: {options.out}/report/{name}/report.html")
    figure.savefig(f"{options.out}/aging.png")
    print("Where to look", *where, f"TensorBoard: .venv/bin/lightning-glassy tensorboard {options.out}", sep="\n    ")


if __name__ == "__main__":
    main()
