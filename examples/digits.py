"""Train two networks on digits, in two minutes on two cores: ``make demo`` or ``python -m examples.digits``."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
    return lg.per_replica(nn.functional.cross_entropy)(module(batch[0]), batch[1])


def train(row: int, name: str, hidden: int, options: argparse.Namespace) -> tuple[lg.AgingRecord, str]:
    torch.set_num_threads(1)  # a second thread gains nothing for networks this small
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    data, test = TensorDataset(x[:1500], y[:1500]), DataLoader(TensorDataset(x[1500:], y[1500:]), batch_size=297)
    monitor, logger = lg.AgingMonitor(summary=False), loggers.TensorBoardLogger(options.out, name=name)
    evaluator = lg.LogTimeEvaluator(3, loaders={"test": test}, batch_size=1500, loss=loss)
    noise, overlap = lg.GradientNoiseMonitor(3, loss=loss), lg.ReplicaOverlap(x[1500:])
    watching = [monitor, evaluator, noise, overlap, callbacks.TQDMProgressBar(47, process_position=row)]
    limits: dict[str, Any] = {"max_steps": options.steps, "log_every_n_steps": 47, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", logger=logger, callbacks=watching, enable_checkpointing=False, **limits)
    trainer.fit(Nets(hidden), lg.replica_loader(data, batch_size=32, seeds=range(8)))
    return monitor.record, f"{logger.log_dir}/glassy/aging_record.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train two networks on handwritten digits, and report how they age.")
    parser.add_argument("--steps", type=int, default=20_000, help="updates of each network, at least 200")
    parser.add_argument("--out", default="runs/digits", help="directory of all files")
    options = parser.parse_args()
    if options.steps < 200:
        parser.error(f"--steps {options.steps} is too short to see anything: at least 200")
    out, figure, names = options.out, new_figure(2), ("under-parametrised", "over-parametrised")
    print(f"{options.steps // 47} epochs, the small net first. Watch: .venv/bin/lightning-glassy tensorboard {out}\n")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        works = pool.map(train, (0, 1), names, (4, 128), (options, options))
        for ax, name, (record, file) in zip(figure.axes, names, works, strict=True):
            title = f"{name}: 8 replicas of {record.n_parameters['all']:,} parameters"
            accuracy, error = (record.one_time(f"test_accuracy{end}")[1][-1] for end in ("", "_error"))
            found = report(record, title=f"{title}, test accuracy {accuracy:.1%} +- {error:.1%}")
            plot_two_time(record, ax=ax).set_title(title)
            figure.savefig(f"{out}/aging.png")
            found.write(f"{out}/report/{name}")
            print(f"\n\n{found}\n", file, f"{out}/report/{name}/report.html", f"{out}/aging.png\n", sep="\n    ")


if __name__ == "__main__":
    main()
