"""Aging of two small networks that learn handwritten digits: the demonstration behind ``make demo``.

An under-parametrised net (64-4-4-10, tanh) and an over-parametrised one (64-128-128-10) learn scikit-learn's 1,797 real
digits with plain SGD for 20,000 steps each: eight replicas of each, trained as one, with their own initial weights and
minibatches, for error bars. One callback is added, and a second one of this example that notes the loss, the accuracy
and the gradient noise. Then one of each is trained alone, with callbacks that look at the landscape: the loss in
logarithmic time, how many directions are flat, and whether barriers are crossed. At the end there are a record and a
report of each net, a figure of both side by side, and the command that shows the curves in TensorBoard.

Run it with ``python -m examples.digits`` (``--help`` for the options).
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_glassy import (
    AgingMonitor,
    AgingRecord,
    BarrierMonitor,
    CurvatureMonitor,
    DisplacementDistribution,
    GradientNoiseMonitor,
    LogTimeEvaluator,
    LogTimeSchedule,
    ReplicaEnsemble,
    ReplicaOverlap,
    ReplicaTraining,
    per_replica,
    replica_loader,
)
from lightning_glassy.analysis import NotEnoughDataError, loss_regimes
from lightning_glassy.observables import barrier_height
from lightning_glassy.plotting import new_figure, plot_two_time
from lightning_glassy.replicas import ReplicaBatchSampler
from lightning_glassy.report import Report, report

N_REPLICA = 8
N_TRAIN = 1500
BATCH_SIZE = 32
LEARNING_RATE = 0.05
NETS = {"under-parametrised": (64, 4, 4, 10), "over-parametrised": (64, 128, 128, 10)}


cross_entropy = nn.functional.cross_entropy


def network(sizes: tuple[int, ...]) -> nn.Sequential:
    """A fully connected tanh network."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class DigitNets(ReplicaTraining, LightningModule):
    """Replicas of a network with a softmax cross-entropy loss, trained by plain SGD."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.nets = ReplicaEnsemble(partial(network, sizes), N_REPLICA)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the losses, each of a minibatch of its own: its gradient is that of each alone."""
        x, y = batch
        return per_replica(cross_entropy, shared=False)(self.nets(x, shared=False), y).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD at a constant learning rate, as in the papers."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Real handwritten digits, pixels in [0, 1], the first 1,500 for training."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(x[:N_TRAIN], y[:N_TRAIN]), TensorDataset(x[N_TRAIN:], y[N_TRAIN:])


class DigitNet(LightningModule):
    """One such network, alone."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.net = network(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the ten digits."""
        scores: Tensor = self.net(x)
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        x, y = batch
        return cross_entropy(self(x), y)

    configure_optimizers = DigitNets.configure_optimizers


class Passes(Sampler[Tensor]):
    """One pass over the data after another, each in a new order: as one epoch, with one progress bar."""

    def __init__(self, batches: ReplicaBatchSampler, steps: int) -> None:
        self.batches, self.steps, self.batch_size = batches, steps, batches.batch_size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Tensor]:
        passes = (iter(self.batches) for _ in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(passes), self.steps)


def loader(dataset: TensorDataset, steps: int, seeds: int | range = range(N_REPLICA)) -> DataLoader[Any]:
    """Minibatches for each replica, in an order of its own; or for a net alone."""
    one_pass = replica_loader(dataset, BATCH_SIZE, seeds=seeds)
    return DataLoader(one_pass.dataset, sampler=Passes(one_pass.sampler, steps), batch_size=None)  # type: ignore[arg-type]


@torch.no_grad()
def evaluate(model: DigitNets, dataset: TensorDataset) -> tuple[float, Tensor]:
    """Mean loss, and the accuracy of each replica, on a whole data set."""
    x, y = dataset.tensors
    scores = model.nets(x)
    return float(per_replica(cross_entropy)(scores, y).mean()), (scores.argmax(-1) == y).float().mean(-1)


def gradient_noise(model: DigitNets, dataset: TensorDataset, seed: int) -> float:
    """D: the variance over minibatches of the gradient at fixed weights, summed over the weights; mean over replicas.

    Over the disjoint minibatches of one permutation, which is not drawn from the generator of the training.
    """
    x, y = dataset.tensors
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    squares, batches = 0.0, order[: len(x) // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE)
    for batch in batches:
        loss = per_replica(cross_entropy)(model.nets(x[batch]), y[batch]).sum()
        for sum_of, part in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_of += part
            squares += float(part.square().sum())
    n = len(batches)
    mean = sum(float((part / n).square().sum()) for part in total)
    return (squares / n - mean) * n / (n - 1) / N_REPLICA


class Observer(Callback):
    """Adds to a monitor's record, at its waiting times and at the end, what the verdict looks at."""

    def __init__(self, monitor: AgingMonitor, dataset: TensorDataset) -> None:
        self.monitor = monitor
        self.dataset = dataset
        self.steps = {*LogTimeSchedule.logspaced().until(10**9).waiting_times}

    def note(self, model: DigitNets, step: int) -> None:
        """Append loss, accuracy and noise at one step."""
        loss, accuracy = evaluate(model, self.dataset)
        record = self.monitor.record
        record.append_one_time("train_loss", step, loss)
        record.append_one_time("train_accuracy", step, float(accuracy.mean()))
        record.append_one_time("gradient_noise", step, gradient_noise(model, self.dataset, seed=step))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """At a waiting time: so many updates are done when this batch begins."""
        if trainer.global_step in self.steps:
            self.note(pl_module, trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """At the end, before the monitor writes its record."""
        self.note(pl_module, trainer.global_step)


def train(name: str, sizes: tuple[int, ...], steps: int, directory: Path) -> tuple[AgingRecord, Tensor, str]:
    """Train the replicas of one net; returns their record, their accuracies on the test set and where the logs are."""
    seed_everything(0, verbose=False)
    train_set, test_set = digits()
    model, monitor = DigitNets(sizes), AgingMonitor(summary=False)  # the summary comes at the end, of both nets
    logger = TensorBoardLogger(directory, name=name)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=logger,
        callbacks=[
            Observer(monitor, train_set),
            ReplicaOverlap(test_set.tensors[0]),
            monitor,
            TQDMProgressBar(refresh_rate=200),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader(train_set, steps))
    return monitor.record, evaluate(model, test_set)[1], logger.log_dir


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
    trainer.fit(DigitNet(sizes), loader(train_set, steps, seeds=0))
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


def in_words(name: str, found: Report, test_accuracy: Tensor) -> str:
    """What was measured: the same lag after several waiting times, then the verdict and the exponent."""
    record = found.record
    of_replicas, waiting_times, lags = record.msd(), record.waiting_times, record.lags
    msd, error = of_replicas.mean(0), of_replicas.std(0, ddof=1) / np.sqrt(N_REPLICA)
    # The longest lag in the grid that all later waiting times up to a half of the run still have.
    late = [t for t in waiting_times.tolist() if t >= 10 and np.log10(t) % 1 == 0]
    common = np.isfinite(msd[np.isin(waiting_times, late)]).all(axis=0) & (np.log10(np.maximum(lags, 1)) % 1 == 0)
    lag = int(lags[common].max())
    accuracy = f"{float(test_accuracy.mean()):.1%} +- {float(test_accuracy.std()):.1%}"
    lines = [
        f"{name.upper()}: {N_REPLICA} replicas of {record.n_parameters['all']:,} parameters, test accuracy {accuracy}"
    ]
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
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")

    # Nets this small gain nothing from a second thread, and lose tenfold where another process wants the core.
    torch.set_num_threads(1)
    start, records, words, where = time.perf_counter(), {}, [], []
    for name, sizes in NETS.items():
        print(f"\n{name}: {N_REPLICA} x {'-'.join(map(str, sizes))}, {options.steps:,} steps of SGD", flush=True)
        records[name], test_accuracy, directory = train(name, sizes, options.steps, options.out)
        found = report(records[name], title=f"{name} net on digits: {'-'.join(map(str, sizes))}")
        found.write(options.out / "report" / name)
        words.append(in_words(name, found, test_accuracy))
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
