"""The landscape around two networks that learn handwritten digits: flat directions, barriers, regimes of the loss.

An under-parametrised network (64-4-4-10, tanh) and an over-parametrised one (64-128-128-10) learn scikit-learn's 1,797
digits, as in ``examples.digits``, but each is trained once, not as replicas. The callbacks that look at the landscape
need this. Each network gets a record, a report and TensorBoard logs.

Run it with ``python -m examples.studies.landscape``. It takes about two minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.studies.common import Progress, at_steps, cross_entropy, digits, loader, quiet
from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
)
from lightning_glassy.analysis import NotEnoughDataError, loss_regimes
from lightning_glassy.observables import barrier_height
from lightning_glassy.report import report

STEPS, QUICK_STEPS = 20_000, 500
BATCH_SIZE = 32
HIDDEN = {"under-parametrised": 4, "over-parametrised": 128}  # units in each of two hidden layers


class DigitNet(LightningModule):
    """A tanh network with two hidden layers of h units."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, h), nn.Tanh(), nn.Linear(h, h), nn.Tanh(), nn.Linear(h, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the ten digits."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one minibatch."""
        x, y = batch
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD at a constant learning rate, as in the papers."""
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(name: str, hidden: int, steps: int, out: Path) -> AgingRecord:
    """Train one network with all callbacks that look at its landscape. Return its record."""
    seed_everything(0, verbose=False)
    train_set, test_set = digits()
    some = DataLoader(train_set, batch_size=300)
    sets = {name: DataLoader(part, batch_size=len(part)) for name, part in (("train", train_set), ("test", test_set))}
    spectra = at_steps(0, steps // 200, steps // 20, steps // 2, steps)
    # 330 products give all eigenvalues of the small network exactly.
    products = 330 if hidden == HIDDEN["under-parametrised"] else 200
    monitor = AgingMonitor(summary=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=TensorBoardLogger(out, name=name),
        callbacks=[
            monitor,
            LogTimeEvaluator(loaders=sets, summary=False),
            GradientNoiseMonitor(loader=DataLoader(train_set, batch_size=BATCH_SIZE), summary=False),
            CurvatureMonitor(
                spectra, loader=some, max_batches=1, max_products=products, n_eigenvalues=1, summary=False
            ),
            BarrierMonitor(loader=some, max_batches=2, summary=False),
            DisplacementDistribution(),
            Progress(name),
        ],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitNet(hidden), loader(train_set, steps, BATCH_SIZE, seeds=0))
    return monitor.record


def landscape(name: str, record: AgingRecord) -> str:
    """Return the regimes of the loss, the flat directions and the barriers in words."""
    lines = [f"THE LANDSCAPE OF ONE {name.upper()} NETWORK", ""]
    try:
        lines += [str(loss_regimes(record)), ""]
    except NotEnoughDataError as reason:
        lines += [f"no regimes of the loss: {reason}", ""]
    steps, flat = record.one_time("flat_fraction")
    errors = record.one_time("flat_fraction_error")[1]
    eps = record.meta["CurvatureMonitor"]["eps"]
    lines.append(f"flat directions (|curvature| < {eps:g}) on 300 digits")
    for step, fraction, error in zip(steps, flat, errors, strict=True):
        lines.append(f"    at step {step:>7,} {fraction:>6.1%}{f' +- {error:.1%}' if error else ', exactly'}")
    paths = record.profile("loss_path")
    heights = barrier_height(paths.values)
    k = int(heights.argmax())
    lines += ["", f"barriers on the straight line between the weights at {len(heights)} pairs of times, on 600 digits"]
    lines.append(f"    {int((heights > 0).sum())} have a barrier")
    if heights[k] > 0:
        first, last = int(paths.waiting_times[k]), int(paths.waiting_times[k] + paths.lags[k])
        lines[-1] += f", the highest of {heights[k]:.3g}, from step {first:,} to step {last:,}"
    return "\n".join(lines)


def main() -> None:
    """Train both networks and report."""
    parser = argparse.ArgumentParser(prog="python -m examples.studies.landscape", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of each network, not {STEPS:,}")
    parser.add_argument("--out", type=Path, default=Path("runs/landscape"), help="directory of the logs and reports")
    options = parser.parse_args()
    quiet()
    words, where = [], []
    for name, hidden in HIDDEN.items():
        record = train(name, hidden, QUICK_STEPS if options.quick else STEPS, options.out)
        report(record, title=f"{name} network on digits, alone").write(options.out / "report" / name)
        words.append(landscape(name, record))
        where.append(f"    report       {options.out / 'report' / name / 'report.html'}")
    print("\n" + "\n\n\n".join(words) + "\n\nWhere to look")
    print("\n".join(where))
    print(f"    TensorBoard  .venv/bin/lightning-glassy tensorboard {options.out}")


if __name__ == "__main__":
    main()
