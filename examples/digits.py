"""Aging of two small networks that learn handwritten digits: the demonstration behind ``make demo``.

An under-parametrised net (64-4-4-10, tanh) and an over-parametrised one (64-128-128-10) learn scikit-learn's 1,797 real
digits with plain SGD for 20,000 steps each: eight replicas of each, trained as one, with their own initial weights and
minibatches, for error bars, with callbacks for the aging, the loss, the accuracy and the gradient noise. Then one of
each is trained alone, with callbacks that look at the landscape: the loss in logarithmic time, how many directions are
flat, and whether barriers are crossed. At the end there are a record and a report of each net, a figure of both side by
side, and the command that shows the curves in TensorBoard.

Run it with ``python -m examples.digits`` (``--help`` for the options).
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.studies.common import Replicas, at_steps, cross_entropy, fully_connected, loader, losses, quiet
from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
    ReplicaOverlap,
)
from lightning_glassy.analysis import NotEnoughDataError, loss_regimes
from lightning_glassy.observables import barrier_height
from lightning_glassy.plotting import new_figure, plot_two_time
from lightning_glassy.report import Report, report

N_REPLICA = 8
N_TRAIN = 1500
BATCH_SIZE = 32
LEARNING_RATE = 0.05
NETS = {"under-parametrised": (64, 4, 4, 10), "over-parametrised": (64, 128, 128, 10)}


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Real handwritten digits, pixels in [0, 1], the first 1,500 for training."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(x[:N_TRAIN], y[:N_TRAIN]), TensorDataset(x[N_TRAIN:], y[N_TRAIN:])


class DigitNet(LightningModule):
    """One such network, alone."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = fully_connected(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        x, y = batch
        return cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD at a constant learning rate, as in the papers."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def train(name: str, sizes: tuple[int, ...], steps: int, directory: Path) -> tuple[AgingRecord, str]:
    """Train the replicas of one net; returns their record, and where the logs are."""
    seed_everything(0, verbose=False)
    train_set, test_set = digits()
    model = Replicas(partial(fully_connected, sizes), N_REPLICA, learning_rate=LEARNING_RATE)
    monitor = AgingMonitor(summary=False)  # the summary comes at the end, of both nets
    when = at_steps(*LogTimeSchedule.logspaced().until(steps).waiting_times, steps)
    whole = DataLoader(test_set, batch_size=len(test_set))
    logger = TensorBoardLogger(directory, name=name)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=logger,
        callbacks=[
            monitor,
            LogTimeEvaluator(when, loaders={"test": whole}, batch_size=N_TRAIN, loss=losses, summary=False),
            GradientNoiseMonitor(when, loss=losses, summary=False),
            ReplicaOverlap(test_set.tensors[0]),
            TQDMProgressBar(refresh_rate=200),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader(train_set, steps, BATCH_SIZE, range(N_REPLICA)))
    return monitor.record, logger.log_dir


def look_around(name: str, sizes: tuple[int, ...], steps: int, directory: Path) -> tuple[AgingRecord, str]:
    """Train one net alone, with callbacks that look at its landscape; returns its record and where the logs are."""
    seed_everything(0, verbose=False)
    train_set, test_set = digits()
    some, logger = DataLoader(train_set, batch_size=300), TensorBoardLogger(directory, name=f"{name}-alone")
    sets = {"train": DataLoader(train_set, batch_size=N_TRAIN), "test": DataLoader(test_set, batch_size=len(test_set))}
    quiet: dict[str, Any] = {"summary": False}
    monitor = AgingMonitor(**quiet)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=logger,
        callbacks=[
            monitor,
            LogTimeEvaluator(loaders=sets, **quiet),
            GradientNoiseMonitor(loader=DataLoader(train_set, batch_size=BATCH_SIZE), **quiet),
            # Of the small net all eigenvalues, exactly.
            CurvatureMonitor(
                LogTimeSchedule([0, steps // 200, steps // 20, steps // 2, steps], [0]), loader=some, max_batches=1,
                max_products=330 if name.startswith("under") else 200, n_eigenvalues=1, **quiet,
            ),
            BarrierMonitor(loader=some, max_batches=2, **quiet),
            DisplacementDistribution(),
            TQDMProgressBar(refresh_rate=200),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(DigitNet(sizes), loader(train_set, steps, BATCH_SIZE, seeds=0))
    return monitor.record, logger.log_dir


def landscape(name: str, record: AgingRecord) -> str:
    """What was seen of the landscape: regimes of the loss, flat directions, barriers."""
    lines = [f"THE LANDSCAPE OF ONE {name.upper()} NET", ""]
    try:
        lines += [str(loss_regimes(record)), ""]
    except NotEnoughDataError as error:
        lines += [f"no regimes of the loss: {error}", ""]
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


def picture(records: dict[str, AgingRecord], path: Path) -> None:
    """The two-time curves of the nets side by side, on the same axes."""
    figure = new_figure(len(records))
    for axes, (name, record) in zip(figure.axes, records.items(), strict=True):
        plot_two_time(record, ax=axes)
        axes.set_title(f"{name}, N = {record.n_parameters['all']:,}")
    drawn = figure.axes[: len(records)]
    low, high = min(a.get_ylim()[0] for a in drawn), max(a.get_ylim()[1] for a in drawn)
    for axes in drawn:
        axes.set_ylim(low, high)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def in_words(name: str, found: Report) -> str:
    """What was measured: the same lag after several waiting times, then the verdict and the exponent."""
    record = found.record
    of_replicas, waiting_times, lags = record.msd(), record.waiting_times, record.lags
    msd, error = of_replicas.mean(0), of_replicas.std(0, ddof=1) / np.sqrt(N_REPLICA)
    # The longest lag in the grid that all later waiting times up to a half of the run still have.
    late = [t for t in waiting_times.tolist() if t >= 10 and np.log10(t) % 1 == 0]
    common = np.isfinite(msd[np.isin(waiting_times, late)]).all(axis=0) & (np.log10(np.maximum(lags, 1)) % 1 == 0)
    lag = int(lags[common].max())
    accuracy, scatter = (record.one_time(f"test_accuracy{what}")[1][-1] for what in ("", "_error"))
    nets = f"{name.upper()}: {N_REPLICA} replicas of {record.n_parameters['all']:,} parameters"
    lines = [f"{nets}, test accuracy {accuracy:.1%} +- {scatter:.1%}"]
    lines.append("")
    for t in late:
        at = waiting_times == t, lags == lag
        rms = float(np.sqrt(msd[at][0]))
        uncertainty = float(error[at][0]) / (2 * rms)
        lines.append(f"in the {lag:,} steps after step {t:>7,} a weight moves by {rms:.4f} +- {uncertainty:.4f} (rms)")
    parts = [found.verdict, found.exponent or found.why_not, found.heterogeneity]
    return "\n\n".join(["\n".join(lines), *map(str, parts)])


def main() -> None:
    """Train both nets and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="updates of each net (default 20000, at least 200)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/digits"), help="directory for logs, records and the figure"
    )
    options = parser.parse_args()
    if options.steps < 200:
        parser.error(f"--steps {options.steps} is too short to see anything: at least 200")
    quiet()
    start, records, words, where = time.perf_counter(), {}, [], []
    for name, sizes in NETS.items():
        print(f"\n{name}: {N_REPLICA} x {'-'.join(map(str, sizes))}, {options.steps:,} steps of SGD", flush=True)
        records[name], directory = train(name, sizes, options.steps, options.out)
        found = report(records[name], title=f"{name} net on digits: {'-'.join(map(str, sizes))}")
        found.write(options.out / "report" / name)
        words.append(in_words(name, found))
        where.append(f"record       {directory}/glassy/aging_record.npz")
        where.append(f"report       {options.out / 'report' / name / 'report.html'}")
    for name, sizes in NETS.items():
        print(f"\n{name}, alone: what its landscape is like", flush=True)
        record, directory = look_around(name, sizes, options.steps, options.out)
        report(record, title=f"{name} net on digits, alone").write(options.out / "report" / f"{name}-alone")
        words.append(landscape(name, record))
        where.append(f"landscape    {options.out / 'report' / f'{name}-alone' / 'report.html'}")
    figure = options.out / "aging.png"
    picture(records, figure)
    print(f"\n{'=' * 100}\nWhat was measured ({time.perf_counter() - start:.0f} s)\n")
    print("\n\n\n".join(words))
    print(
        "\n\nSlowing down alone does not make a glass. Where every digit is learnt the gradient noise fades, and "
        "the motion\nwith it: compare how fast the displacement ages with how fast it ages over the noise."
    )
    print("\nWhere to look")
    print(f"    figure       {figure}")
    print("\n".join(f"    {line}" for line in where))
    print("    again        .venv/bin/lightning-glassy report RECORD")
    print(f"    TensorBoard  .venv/bin/lightning-glassy tensorboard {options.out}")


if __name__ == "__main__":
    main()
